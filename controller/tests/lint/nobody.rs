//! What is about nobody.

use bulkhead_controller::{
    guard::Tier,
    labels::{Requirement, Selector},
    lint::Check,
    model::{Peer, Scope},
    policy::Policy,
    ports::{Ports, Transport},
};
use bulkhead_ebpf::abi::{Action, Direction};

use crate::support::{WORKLOADS, admin, cidrs, found, guard, intent, labels, network, ours, pods, tcp};

fn nobody(policies: &[Policy]) -> Vec<String> {
    found(Check::SelectsNothing, policies, WORKLOADS)
}

#[test]
fn what_the_model_says_itself_has_a_name() {
    let text = intent("shop", "services:\n  wbe: {}\n  db:\n    accepts: [ops/bakup:5432]\n");
    assert_eq!(
        nobody(&ours(&text)),
        [
            "p.yaml:5:3: warning: service `shop/wbe` selects no workload (it selects app=wbe)\n  help: did you mean `web`?",
            "p.yaml:7:15: warning: nobody is `ops/bakup`: the line matches nobody\n  help: did you mean `backup`?",
        ]
    );
    let subjects = guard("g", 1, "for: { workloads: { app: nothing } }\nrules:\n  - deny: { from: world }\n");
    assert_eq!(nobody(&ours(&subjects)).len(), 1);
    let health = guard("g", 1, "rules:\n  - deny: { from: any }\n");
    assert_eq!(found(Check::DeniesHealthChecks, &ours(&health), WORKLOADS).len(), 1);
    let health = guard("g", 1, "rules:\n  - pass: { from: node }\n  - deny: { from: any }\n");
    assert_eq!(found(Check::DeniesHealthChecks, &ours(&health), WORKLOADS), [""; 0]);
    let good = intent("shop", "services:\n  db:\n    accepts: [ops/backup:5432]\n");
    assert_eq!(nobody(&ours(&good)), [""; 0]);
}

#[test]
fn policies_of_kubernetes_and_their_peers_are_somebody() {
    let rules = |peer| vec![(Direction::Ingress, peer, tcp(80))];
    assert_eq!(nobody(&[network("a", &[("app", "web")], rules(pods("ops", &[("app", "backup")])))]), [""; 0]);
    assert_eq!(nobody(&[network("a", &[("app", "web")], rules(cidrs(&["10.0.0.0/8"], &[])))]), [""; 0]);
    let labelled =
        Peer::Workloads { namespaces: Scope::Labelled(labels(&[("tenant", "c")])), labels: Selector::everybody() };
    let zones = Peer::Nodes(labels(&[("zone", "west")]));
    let gone: Selector = [Requirement::Missing("app".to_owned())].into_iter().collect();
    let gone = Peer::Workloads { namespaces: Scope::Named("shop".to_owned()), labels: gone };
    let said: Vec<String> = [
        network("a", &[("app", "wbe")], rules(Peer::Any)),
        network("a", &[("ap", "web")], rules(Peer::Any)),
        network("a", &[("app", "web")], rules(pods("opps", &[]))),
        network("a", &[("app", "web")], rules(pods("ops", &[("app", "bakcup")]))),
        network("a", &[("app", "web"), ("role", "primary")], rules(Peer::Any)),
        network("a", &[("app", "web")], rules(labelled)),
        network("a", &[("app", "web")], rules(gone)),
        admin(Tier::Admin, 1, vec![(Action::Deny, Direction::Egress, zones, Ports::Any)]),
    ]
    .into_iter()
    .map(|policy| nobody(&[policy]).join("\n"))
    .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn somebody_has_a_named_port() {
    let unknown = |policies: &[Policy]| found(Check::UnknownNamedPort, policies, WORKLOADS);
    let of = |direction, peer, ports| network("a", &[("app", "web")], vec![(direction, peer, ports)]);
    let udp = Ports::Named { name: "http".to_owned(), transport: Some(Transport::Udp) };
    let db = || pods("shop", &[("app", "db")]);
    assert_eq!(unknown(&[of(Direction::Ingress, Peer::Any, Ports::named("http"))]), [""; 0]);
    assert_eq!(unknown(&[of(Direction::Egress, db(), Ports::named("sql"))]), [""; 0]);
    let admin = |name| admin(Tier::Admin, 1, vec![(Action::Deny, Direction::Ingress, Peer::Any, Ports::named(name))]);
    assert_eq!(unknown(&[admin("sql")]), [""; 0]);
    let said: Vec<String> = [
        of(Direction::Ingress, Peer::Any, Ports::named("htpt")),
        of(Direction::Ingress, Peer::Any, Ports::named("sql")),
        of(Direction::Ingress, Peer::Any, udp),
        of(Direction::Egress, db(), Ports::named("http")),
        of(Direction::Egress, cidrs(&["198.51.100.0/24"], &[]), Ports::named("http")),
        admin("metrics"),
    ]
    .into_iter()
    .map(|policy| unknown(&[policy]).join("\n"))
    .collect();
    insta::assert_snapshot!(said.join("\n"));
}
