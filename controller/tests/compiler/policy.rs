//! What the words of an Intent mean, entry by entry.

use std::collections::BTreeSet;

use bulkhead_controller::compile::compile;
use bulkhead_dataplane::{
    desired::{Desired, EndpointName, Peers, SetId},
    node::Discovered,
};
use bulkhead_ebpf::{
    abi::{Action, Class, Direction, Mode},
    reason::Reason,
};

use crate::support::{NOW, desired, example, example_model, model};

/// Who is let through at a point, by selector; `None` when everyone is.
fn let_through(
    desired: &Desired,
    workload: &str,
    direction: Direction,
    class: Class,
    value: u16,
) -> Option<Vec<String>> {
    let endpoint = desired.endpoints.iter().find(|endpoint| endpoint.name.workload == workload).unwrap();
    let view = endpoint.views[0];
    let SetId(set) = if direction == Direction::Ingress { view.ingress } else { view.egress };
    let set = &desired.sets[set as usize];
    assert_eq!(set.direction, direction);
    let interval = set.classes[class as usize].iter().rev().find(|interval| interval.start <= value).unwrap();
    let mut peers = Vec::new();
    for entry in &interval.entries {
        match (&entry.peers, entry.action) {
            (Peers::Any(_), Action::Allow) => {
                assert_eq!(entry.reason, Reason::NotIsolated);
                return None;
            }
            (Peers::Any(_), action) => {
                assert_eq!((action, entry.reason), (Action::Deny, Reason::Isolated));
            }
            (Peers::Selectors(selectors), action) => {
                assert_eq!((action, entry.reason), (Action::Allow, Reason::Rule));
                assert!(!selectors.is_empty());
                peers.extend(selectors.iter().map(|(id, _)| desired.selectors[id.0 as usize].clone()));
            }
        }
    }
    assert!(matches!(interval.entries.last().unwrap().peers, Peers::Any(_)), "the last entry is for everyone");
    Some(peers)
}

const NODE: &str = "entity node";

fn workloads(of: &str) -> String {
    let mut text = "apiVersion: bulkhead/v1\nkind: Workloads\nresolvers: [10.0.0.53]\nnodes: [{ name: n1, addresses: [192.0.2.1] }]\nworkloads:\n".to_owned();
    for (i, line) in of.lines().enumerate() {
        let (name, rest) = line.trim().split_once(' ').unwrap();
        let (namespace, name) = name.split_once('/').unwrap();
        text += &format!(
            "  - {{ name: {name}, namespace: {namespace}, node: n1, {rest}, endpoints: [{{ addresses: [10.0.0.{}], link: veth{i} }}] }}\n",
            i + 50
        );
    }
    text
}

fn intent(namespace: &str, body: &str) -> String {
    format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {namespace}\n{body}---\n")
}

#[test]
fn one_calls_opens_both_ends_inside_a_namespace() {
    let policy = intent("a", "services:\n  x: { calls: [y:80] }\n  y: {}\n");
    let desired = desired(&policy, &workloads("a/x labels: { app: x }\na/y labels: { app: y }"), "n1").unwrap();
    assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Tcp, 80), Some(vec!["service a/y".to_owned()]));
    assert_eq!(
        let_through(&desired, "y", Direction::Ingress, Class::Tcp, 80),
        Some(vec![NODE.to_owned(), "service a/x".to_owned()])
    );
    for value in [79, 81] {
        assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Tcp, value), Some(vec![]));
        assert_eq!(let_through(&desired, "y", Direction::Ingress, Class::Tcp, value), Some(vec![NODE.to_owned()]));
    }
    assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Udp, 80), Some(vec![]), "another protocol");
    assert_eq!(
        let_through(&desired, "x", Direction::Ingress, Class::Tcp, 80),
        Some(vec![NODE.to_owned()]),
        "not the other way round"
    );
}

#[test]
fn across_namespaces_each_side_opens_its_own_wall() {
    let all = workloads("a/x labels: { app: x }\nb/y labels: { app: y }");
    let half = desired(&intent("a", "services:\n  x: { calls: [b/y:80] }\n"), &all, "n1").unwrap();
    assert_eq!(let_through(&half, "x", Direction::Egress, Class::Tcp, 80), Some(vec!["service b/y".to_owned()]));
    assert_eq!(let_through(&half, "y", Direction::Ingress, Class::Tcp, 80), None, "nothing isolates it");

    let walls = intent("a", "services:\n  x: { calls: [b/y:80] }\n") + &intent("b", "services:\n  y: {}\n");
    let walls = desired(&walls, &all, "n1").unwrap();
    assert_eq!(
        let_through(&walls, "y", Direction::Ingress, Class::Tcp, 80),
        Some(vec![NODE.to_owned()]),
        "a stranger's `calls` opens no door"
    );
}

#[test]
fn accepts_opens_only_the_own_wall() {
    let desired = desired(
        &intent("a", "services:\n  x: {}\n  y: { accepts: [x:80] }\n"),
        &workloads("a/x labels: { app: x }\na/y labels: { app: y }"),
        "n1",
    )
    .unwrap();
    assert_eq!(
        let_through(&desired, "y", Direction::Ingress, Class::Tcp, 80),
        Some(vec![NODE.to_owned(), "service a/x".to_owned()])
    );
    assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Tcp, 80), Some(vec![]));
}

#[test]
fn what_nobody_lists_is_untouched() {
    let desired = desired(
        &intent("a", "services:\n  x: {}\n"),
        &workloads("a/x labels: { app: x }\na/y labels: { app: y }\nb/x labels: { app: x }"),
        "n1",
    )
    .unwrap();
    let x = desired.endpoints.iter().filter(|endpoint| endpoint.name.workload == "x").map(|endpoint| {
        (endpoint.name.namespace.as_str(), desired.sets[endpoint.views[0].ingress.0 as usize].isolated)
    });
    assert_eq!(x.collect::<Vec<_>>(), [("a", true), ("b", false)], "a namespace of its own");
    assert_eq!(let_through(&desired, "y", Direction::Egress, Class::Other, 89), None);
}

#[test]
fn named_ports_are_those_of_whoever_listens() {
    let all = workloads(
        "a/x labels: { app: x }\na/y1 labels: { app: y }, ports: { api: 80 }\na/y2 labels: { app: y }, ports: { api: 81/udp }\na/y3 labels: { app: y }",
    );
    let desired = desired(&intent("a", "services:\n  x: { calls: [y:api] }\n  y: {}\n"), &all, "n1").unwrap();
    let caller = Some(vec![NODE.to_owned(), "service a/x".to_owned()]);
    let closed = Some(vec![NODE.to_owned()]);
    assert_eq!(let_through(&desired, "y1", Direction::Ingress, Class::Tcp, 80), caller);
    assert_eq!(let_through(&desired, "y1", Direction::Ingress, Class::Udp, 81), closed);
    assert_eq!(let_through(&desired, "y2", Direction::Ingress, Class::Udp, 81), caller);
    assert_eq!(let_through(&desired, "y3", Direction::Ingress, Class::Tcp, 80), closed);
    assert_eq!(
        let_through(&desired, "x", Direction::Egress, Class::Tcp, 80),
        Some(vec!["service a/y with port api=80/tcp".to_owned()])
    );
    assert_eq!(
        let_through(&desired, "x", Direction::Egress, Class::Udp, 81),
        Some(vec!["service a/y with port api=81/udp".to_owned()])
    );
    let selectors_of = |workload: &str| {
        let known = desired
            .addresses
            .values()
            .find(|known| known.endpoint.as_ref().is_some_and(|name| name.workload == workload))
            .unwrap();
        known.selectors.iter().map(|id| desired.selectors[id.0 as usize].as_str()).collect::<Vec<_>>()
    };
    assert_eq!(
        selectors_of("y1"),
        ["service a/y with port api=80/tcp"],
        "only selectors that somebody on this node reads"
    );
    assert_eq!(selectors_of("y3"), [""; 0]);
}

#[test]
fn dns_opens_the_callers_wall_and_the_resolvers() {
    let all = workloads(
        "a/x labels: { app: x }\nb/y labels: { app: y }\ninfra/r1 labels: { app: r }\ninfra/resolver labels: { app: resolver }",
    );
    let policy = intent("a", "dns: cluster\nservices:\n  x: {}\n") + &intent("infra", "services:\n  resolver: {}\n");
    let desired = desired(&policy, &all, "n1").unwrap();
    for class in [Class::Udp, Class::Tcp] {
        assert_eq!(
            let_through(&desired, "x", Direction::Egress, class, 53),
            Some(vec!["cidr 10.0.0.53/32".to_owned()])
        );
        assert_eq!(
            let_through(&desired, "resolver", Direction::Ingress, class, 53),
            Some(vec![NODE.to_owned(), "service a/x".to_owned()])
        );
        assert_eq!(let_through(&desired, "resolver", Direction::Ingress, class, 54), Some(vec![NODE.to_owned()]));
    }
    assert_eq!(
        let_through(&desired, "r1", Direction::Ingress, Class::Udp, 53),
        None,
        "not a resolver, and not isolated"
    );
}

#[test]
fn dns_opens_to_those_who_answer_for_a_service_address() {
    let all = workloads(
        "a/x labels: { app: x }\ninfra/dns-1 labels: { app: dns }, ports: { dns: 5353/udp, dns-tcp: 5354 }\ninfra/dns-2 labels: { app: dns }, ports: { dns: 5363/udp, dns-tcp: 5354 }",
    )
    .replace("10.0.0.53]", "10.96.0.10]")
        + "services:
  - { name: dns, namespace: infra, addresses: [10.96.0.10], backends: [dns-1, dns-2],
      ports: [{ port: 53, protocol: udp, target: dns }, { port: 53, target: dns-tcp }, { port: 9153 }] }
  - { name: upstream, namespace: infra, addresses: [10.96.0.11], ports: [{ port: 53, protocol: udp }], backends: [192.0.2.53] }
  - { name: other, namespace: infra, addresses: [10.96.0.12], ports: [{ port: 53, target: 99 }], backends: [dns-1] }
";
    let policy = intent("a", "dns: cluster\nservices:\n  x: {}\n") + &intent("infra", "services:\n  dns: {}\n");
    let desired = desired(&policy, &all, "n1").unwrap();
    let named = |port: &str| Some(vec![format!("backends infra/dns with port {port}")]);
    let egress = |class, port| let_through(&desired, "x", Direction::Egress, class, port);
    assert_eq!(egress(Class::Udp, 5353), named("dns=5353/udp"));
    assert_eq!(egress(Class::Udp, 5363), named("dns=5363/udp"));
    assert_eq!(egress(Class::Tcp, 5354), named("dns-tcp=5354/tcp"));
    assert_eq!(egress(Class::Udp, 53), Some(vec!["cidr 10.96.0.10/32".to_owned()]), "the resolver by its own address");
    assert_eq!((egress(Class::Tcp, 9153), egress(Class::Tcp, 99)), (Some(vec![]), Some(vec![])), "nothing else");

    let ingress = |workload, class, port| let_through(&desired, workload, Direction::Ingress, class, port);
    let (open, shut) = (Some(vec![NODE.to_owned(), "service a/x".to_owned()]), Some(vec![NODE.to_owned()]));
    for (workload, udp) in [("dns-1", 5353), ("dns-2", 5363)] {
        assert_eq!(
            (ingress(workload, Class::Udp, udp), ingress(workload, Class::Tcp, 5354)),
            (open.clone(), open.clone())
        );
        for port in [53, 5353 + 5363 - udp] {
            assert_eq!(ingress(workload, Class::Udp, port), shut, "{workload} {port}");
        }
        assert_eq!(ingress(workload, Class::Tcp, 9153), shut);
    }

    // Who answers may be outside, or be a number.
    let outside = all.replace("10.96.0.10]\n", "10.96.0.11, 10.96.0.12]\n");
    let desired = crate::support::desired(&policy, &outside, "n1").unwrap();
    let egress = |class, port| let_through(&desired, "x", Direction::Egress, class, port);
    let cidr = |text: &str| format!("cidr {text}");
    assert_eq!(egress(Class::Udp, 53), Some(vec![cidr("10.96.0.11/32,10.96.0.12/32"), cidr("192.0.2.53/32")]));
    assert_eq!(egress(Class::Tcp, 99), Some(vec!["backends infra/other".to_owned()]));
    let ingress = |workload| let_through(&desired, workload, Direction::Ingress, Class::Tcp, 99);
    assert_eq!((ingress("dns-1"), ingress("dns-2")), (open, shut));
}

#[test]
fn a_workload_of_two_services_has_the_rules_of_both() {
    let policy = intent(
        "a",
        "services:\n  x: { select: { app: x }, calls: [z:1] }\n  y: { select: { tier: t }, calls: [z:2] }\n  z: {}\n",
    );
    let desired =
        desired(&policy, &workloads("a/x labels: { app: x, tier: t }\na/z labels: { app: z }"), "n1").unwrap();
    let z = Some(vec!["service a/z".to_owned()]);
    assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Tcp, 1), z);
    assert_eq!(let_through(&desired, "x", Direction::Egress, Class::Tcp, 2), z);
    assert_eq!(desired.endpoints[0].service, "x", "metrics name the first");
}

#[test]
fn replicas_share_their_sets_and_the_order_of_input_does_not_matter() {
    let policy = intent("a", "services:\n  x: { calls: [y:80] }\n  y: {}\n");
    let forward =
        desired(&policy, &workloads("a/x1 labels: { app: x }\na/x2 labels: { app: x }\na/y labels: { app: y }"), "n1")
            .unwrap();
    assert_eq!(forward.endpoints[0].views, forward.endpoints[1].views);
    assert_eq!(forward.sets.len(), 4, "ingress and egress of x and of y");

    let text = example("shop-workloads.yaml");
    let (head, tail) = text.split_once("workloads:\n").unwrap();
    let (tail, services) = tail.split_at(tail.find("services:").unwrap());
    let mut items: Vec<_> =
        tail.split("  - name:").filter(|item| !item.is_empty()).map(|item| format!("  - name:{item}")).collect();
    items.reverse();
    let reversed = model(
        ("shop.yaml", &example("shop.yaml")),
        ("w.yaml", &format!("{head}workloads:\n{}{services}", items.concat())),
    )
    .unwrap();
    let model = example_model("shop.yaml", "shop-workloads.yaml");
    for node in ["n1", "n2"] {
        assert_eq!(
            compile(&model, node, &Discovered::default(), NOW),
            compile(&reversed, node, &Discovered::default(), NOW)
        );
    }
}

#[test]
fn a_workload_has_its_mode_and_enforces_unless_said() {
    let policy = intent("a", "services:\n  x: {}\n");
    let all = workloads(
        "a/x labels: { app: x }\na/y labels: { app: x }, mode: enforce\na/z labels: { app: x }, mode: observe\na/q mode: quarantine",
    );
    let desired = desired(&policy, &all, "n1").unwrap();
    let modes: Vec<_> =
        desired.endpoints.iter().map(|endpoint| (endpoint.name.workload.as_str(), endpoint.mode)).collect();
    assert_eq!(modes, [("q", Mode::Quarantine), ("x", Mode::Enforce), ("y", Mode::Enforce), ("z", Mode::Observe)]);
    let views: BTreeSet<_> = desired.endpoints[1..].iter().map(|endpoint| endpoint.views.clone()).collect();
    assert_eq!(views.len(), 1, "the policy is the same");
    assert!(!desired.manner.observe);
}

#[test]
fn an_endpoint_is_named_by_its_place_in_its_workload() {
    let text = "apiVersion: bulkhead/v1\nkind: Workloads\nnodes: [{ name: n1, addresses: [192.0.2.1] }]\nworkloads:\n  - { name: w, namespace: a, node: n1, endpoints: [{ addresses: [10.0.0.1], link: l0 }, { addresses: [10.0.0.2], link: l1 }] }\n";
    let desired = desired(&intent("a", "services: {}\n"), text, "n1").unwrap();
    let name = |index| EndpointName { namespace: "a".to_owned(), workload: "w".to_owned(), index };
    assert_eq!(desired.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect::<Vec<_>>(), [name(0), name(1)]);
    assert_eq!(desired.addresses[&(0, "10.0.0.2".parse().unwrap())].endpoint.as_deref(), Some(&name(1)));
}
