//! Half-open edges, mixed backends, ports for administrators.

use bulkhead_controller::{lint::Check, model::Peer, policy::Policy, ports::Ports};
use bulkhead_ebpf::abi::Direction;

use crate::support::{WORKLOADS, all, cidrs, found, guard, intent, network, ours, pods, tcp};

fn half(policies: &[Policy]) -> Vec<String> {
    found(Check::HalfOpenEdge, policies, WORKLOADS)
}

#[test]
fn a_call_across_namespaces_needs_both_walls() {
    let shop = |accepts: &str| intent("shop", &format!("services:\n  db:\n    accepts: [{accepts}]\n"));
    let ops = |calls: &str| intent("ops", &format!("services:\n  backup:\n    calls: [{calls}]\n"));
    assert_eq!(half(&all(&[shop("ops/backup:5432"), ops("shop/db:5432")])), [""; 0]);
    assert_eq!(
        half(&all(&[shop(""), ops("shop/db:5432")])),
        [
            "p.yaml:13:13: warning: `ops: backup calls shop/db:5432/tcp` opens the caller's wall alone: `service shop/db on 5432/tcp` does not accept it, \
             by shop/db isolated ingress (p.yaml:5)\n  help: let the other side accept it as well, or remove the line"
        ]
    );
    assert_eq!(
        half(&all(&[shop("ops/backup:5432"), ops("")])),
        [
            "p.yaml:6:15: warning: `shop: db accepts ops/backup:5432/tcp` opens the listener's wall alone: `service ops/backup on 5432/tcp` may not call it, \
             by ops/backup isolated egress (p.yaml:12)\n  help: let the other side call it as well, or remove the line"
        ]
    );
    // Another port is another edge, on either side.
    assert_eq!(half(&all(&[shop("ops/backup:5432"), ops("shop/db:5433")])).len(), 2);
    // Who is not isolated has no wall to open.
    assert_eq!(half(&ours(&shop("ops/backup:5432"))), [""; 0]);
    // What only reports refuses nothing.
    let audited = intent("ops", "services:\n  backup: { isolate: audit }\n");
    assert_eq!(half(&all(&[shop("ops/backup:5432"), audited])), [""; 0]);
}

#[test]
fn a_guard_that_denies_refuses_too() {
    let ops = intent("ops", "services:\n  backup:\n    calls: [shop/db:5432]\n");
    let denies = guard("g", 1, "for: { services: [shop/db] }\nrules:\n  - deny: { from: ops/backup }\n");
    let edges = half(&all(&[ops, denies]));
    assert_eq!(edges.len(), 1, "{edges:?}");
    assert!(edges[0].contains("by guard g: deny from ops/backup"), "{edges:?}");
}

#[test]
fn policies_of_kubernetes_open_one_wall_each() {
    let web =
        |ports| network("web", &[("app", "web")], vec![(Direction::Egress, pods("shop", &[("app", "db")]), ports)]);
    let db =
        |of: &[(&str, &str)]| network("db", of, vec![(Direction::Ingress, pods("shop", &[("app", "web")]), tcp(5432))]);
    let all_of_it = [("app", "db")];
    assert_eq!(half(&[web(tcp(5432)), db(&all_of_it)]), [""; 0]);
    let edges = half(&[web(tcp(9100)), db(&all_of_it)]);
    assert_eq!(edges.len(), 2, "{edges:?}");
    assert!(edges[0].starts_with("db.yaml:1:1") && edges[1].starts_with("web.yaml:1:1"), "{edges:?}");
    assert!(edges[1].contains("by networkpolicy shop/db isolated ingress"), "{edges:?}");
    // One of its peers is not isolated.
    let edges = half(&[web(tcp(9100)), db(&[("app", "db"), ("role", "primary")])]);
    assert!(!edges.iter().any(|edge| edge.starts_with("web.yaml")), "{edges:?}");
    // A name is a number there.
    assert_eq!(half(&[web(Ports::named("sql")), db(&all_of_it)]), [""; 0]);
    // Prefixes and the world name no workload.
    let wide = network("web", &[("app", "web")], vec![(Direction::Egress, cidrs(&["172.20.0.0/16"], &[]), tcp(9100))]);
    assert!(!half(&[wide, db(&all_of_it)]).iter().any(|edge| edge.starts_with("web.yaml")));
}

#[test]
fn backends_of_one_address_answer_alike() {
    let mixed = |policies: &[Policy]| found(Check::MixedBackends, policies, WORKLOADS);
    let db =
        |of: &[(&str, &str)]| network("db", of, vec![(Direction::Ingress, pods("shop", &[("app", "web")]), tcp(5432))]);
    assert_eq!(mixed(&[db(&[("app", "db")])]), [""; 0]);
    let found = mixed(&[db(&[("role", "replica")])]);
    assert_eq!(
        found,
        [
            "w.yaml:16:13: warning: service address `shop/sql` on 5432/tcp: `ops/backup-1` may call backend `shop/db-1` and not `shop/db-2`\n  \
             help: let the same callers call all of its backends, or lead it to those alone that answer"
        ]
    );
    // One that is no workload answers as well, or does not.
    let outside = WORKLOADS.replace("target: sql }], backends: [", "target: 5432 }], backends: [203.0.113.9, ");
    let mixed_with = |policy| crate::support::found(Check::MixedBackends, &[policy], &outside);
    let web = |peer| network("web", &[("app", "web")], vec![(Direction::Egress, peer, tcp(5432))]);
    assert_eq!(mixed_with(web(Peer::Any)), [""; 0]);
    let found = mixed_with(web(pods("shop", &[("app", "db")])));
    assert!(
        found.len() == 1 && found[0].contains("`shop/web-1` may call backend `shop/db-1` and not `203.0.113.9`"),
        "{found:?}"
    );
    // Nobody answers: that is one verdict.
    let none = network("db", &[("app", "db")], vec![(Direction::Ingress, pods("shop", &[("app", "web")]), tcp(80))]);
    assert_eq!(mixed(&[none]), [""; 0]);
}

#[test]
fn the_world_has_no_business_on_ports_for_administrators() {
    let open = |policies: &[Policy]| found(Check::WorldOnAdminPort, policies, WORKLOADS);
    let accepts = |line: &str| {
        ours(&intent(
            "shop",
            &format!(
                "external:\n  office: {{ cidrs: [203.0.113.0/24] }}\n  lan: {{ cidrs: [10.0.0.0/8, 192.168.0.0/16] }}\nservices:\n  db:\n    accepts: [\"{line}\"]\n"
            ),
        ))
    };
    assert_eq!(
        open(&accepts("world:5432")),
        [
            "p.yaml:9:15: warning: `shop: db accepts world:5432/tcp` lets world call `shop/db-1` and `shop/db-2` on 5432/tcp (PostgreSQL)\n  \
             help: name who needs it, such as `external` with the prefixes of your office, or leave the port out"
        ]
    );
    for (line, wanted) in [
        ("world:443", None),
        ("world:5432/udp", None),
        (
            "world:8443-9443",
            Some(
                "8500/tcp (Consul), 9042/tcp (Cassandra clients), 9092/tcp (Kafka), 9160/tcp (Cassandra Thrift) and 2 more",
            ),
        ),
        ("world:any", Some("and 62 more")),
        ("office:22", Some("lets shop/office call")),
        ("lan:22", None),
        ("nodes:22", None),
    ] {
        let found = open(&accepts(line));
        match wanted {
            Some(wanted) => assert!(found.len() == 1 && found[0].contains(wanted), "{line}: {found:?}"),
            None => assert_eq!(found, [""; 0], "{line}"),
        }
    }
    // A Guard decides before.
    let denied = guard("g", 1, "rules:\n  - deny: { from: world, ports: [22] }\n");
    let text = intent("shop", "services:\n  db:\n    accepts: [world:22]\n");
    assert_eq!(open(&all(&[text, denied])), [""; 0]);
    let allowed = guard("g", 1, "rules:\n  - allow: { from: any, ports: [22] }\n");
    let found = open(&all(&[intent("shop", "services:\n  db: {}\n"), allowed]));
    assert!(found.len() == 1 && found[0].starts_with("p.yaml:12:20"), "{found:?}");
    // In a policy of Kubernetes everybody is who is not named.
    let policy = network("db", &[("app", "db")], vec![(Direction::Ingress, Peer::Any, Ports::named("sql"))]);
    let found = open(&[policy]);
    assert!(found.len() == 1 && found[0].contains("5432/tcp (PostgreSQL)"), "{found:?}");
}
