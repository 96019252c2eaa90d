//! What several tests need.

use std::{collections::BTreeMap, fs, path::PathBuf};

use bulkhead_controller::{
    diagnostic::{Place, source},
    guard::{self, Guard, Kind, Subjects, Tier, Whom},
    intent::Cidrs,
    labels::Selector,
    lint::{Check, Finding, lint},
    model::{Model, Peer, Scope, ServiceName},
    network_policy::{self, NetworkPolicy},
    policy::{self, Policy},
    ports::{Ports, Transport},
    simulate::Simulation,
    workloads,
};
use bulkhead_ebpf::abi::{Action, Direction};

/// As of when is asked, in nanoseconds of Unix time: 2026-01-01.
pub(crate) const NOW: u64 = 1_767_225_600_000_000_000;

/// Workloads of two namespaces and a service address with two backends.
pub(crate) const WORKLOADS: &str = r#"apiVersion: bulkhead/v1
kind: Workloads
namespaces:
  - { name: shop, labels: { tenant: a } }
  - { name: ops, labels: { tenant: b } }
nodes:
  - { name: n1, labels: { zone: east }, addresses: [192.0.2.1] }
  - { name: n2, addresses: [192.0.2.2] }
workloads:
  - { name: web-1, namespace: shop, labels: { app: web }, node: n1, ports: { http: 8080 }, endpoints: [{ addresses: [172.20.0.10], link: v10 }] }
  - { name: web-2, namespace: shop, labels: { app: web }, node: n2, ports: { http: 8080 }, endpoints: [{ addresses: [172.20.0.11], link: v11 }] }
  - { name: db-1, namespace: shop, labels: { app: db, role: primary }, node: n1, ports: { sql: 5432 }, endpoints: [{ addresses: [172.20.0.12], link: v12 }] }
  - { name: db-2, namespace: shop, labels: { app: db, role: replica }, node: n2, ports: { sql: 5432 }, endpoints: [{ addresses: [172.20.0.13], link: v13 }] }
  - { name: backup-1, namespace: ops, labels: { app: backup }, node: n2, endpoints: [{ addresses: [172.20.0.14], link: v14 }] }
services:
  - { name: sql, namespace: shop, addresses: [172.30.0.4], ports: [{ port: 5432, target: sql }], backends: [db-1, db-2] }
"#;

/// What is found of one check, as text.
pub(crate) fn found(check: Check, policies: &[Policy], with: &str) -> Vec<String> {
    let findings = findings(policies, with);
    let of_check = findings.iter().filter(|finding| finding.check == check);
    of_check.map(|finding| finding.diagnostic.to_string()).collect()
}

/// Everything that is found.
pub(crate) fn findings(policies: &[Policy], with: &str) -> Vec<Finding> {
    let workloads = workloads::parse(&source("w.yaml", with)).unwrap_or_else(|found| panic!("{found}"));
    let model = Model::build(policies, &workloads).unwrap_or_else(|found| panic!("{found}"));
    let simulation = Simulation::new(&model, NOW).unwrap_or_else(|found| panic!("{found}"));
    lint(&model, &simulation, NOW).unwrap_or_else(|found| panic!("{found}"))
}

/// Policies of a text of our own kinds.
pub(crate) fn ours(text: &str) -> Vec<Policy> {
    policy::parse(&source("p.yaml", text)).unwrap_or_else(|found| panic!("{found}"))
}

/// An Intent of a namespace.
pub(crate) fn intent(namespace: &str, body: &str) -> String {
    format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {namespace}\n{body}")
}

/// A Guard.
pub(crate) fn guard(name: &str, priority: u32, body: &str) -> String {
    format!("apiVersion: bulkhead/v1\nkind: Guard\nname: {name}\npriority: {priority}\n{body}")
}

/// Documents of one file.
pub(crate) fn all(documents: &[String]) -> Vec<Policy> {
    ours(&documents.join("---\n"))
}

fn place(file: &str) -> Place {
    Place::start(&source(file, "\n"))
}

/// Labels.
pub(crate) fn labels(labels: &[(&str, &str)]) -> Selector {
    Selector::equal(
        &labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
    )
}

/// Workloads of a namespace.
pub(crate) fn pods(namespace: &str, of: &[(&str, &str)]) -> Peer {
    Peer::Workloads { namespaces: Scope::Named(namespace.to_owned()), labels: labels(of) }
}

/// Prefixes.
pub(crate) fn cidrs(cidrs: &[&str], except: &[&str]) -> Peer {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    Peer::Cidrs(Cidrs { cidrs: nets(cidrs), except: nets(except) })
}

/// A TCP port.
pub(crate) fn tcp(port: u16) -> Ports {
    Ports::one(Transport::Tcp, port)
}

/// A `NetworkPolicy` of the namespace `shop` in a file of its name, with one rule for each direction, peer and ports.
pub(crate) fn network(name: &str, of: &[(&str, &str)], rules: Vec<(Direction, Peer, Ports)>) -> Policy {
    let name = ServiceName::new("shop".to_owned(), name.to_owned());
    let file = format!("{}.yaml", name.name);
    let isolates = |direction| rules.is_empty() || rules.iter().any(|(of, ..)| *of == direction);
    let (ingress, egress) = (isolates(Direction::Ingress), isolates(Direction::Egress));
    let rule = |(at, (direction, peer, ports)): (usize, (Direction, Peer, Ports))| network_policy::Rule {
        name: format!("networkpolicy {name}: {direction:?}[{at}]").to_lowercase(),
        place: place(&file),
        direction,
        peers: vec![peer],
        ports: vec![ports],
    };
    let rules = rules.into_iter().enumerate().map(rule).collect();
    Policy::Network(NetworkPolicy { place: place(&file), pods: labels(of), ingress, egress, rules, name })
}

/// An `AdminNetworkPolicy` or, in the baseline tier, what stands behind everything.
pub(crate) fn admin(tier: Tier, priority: u32, rules: Vec<(Action, Direction, Peer, Ports)>) -> Policy {
    let kind = if tier == Tier::Admin { Kind::AdminNetworkPolicy } else { Kind::BaselineAdminNetworkPolicy };
    let file = format!("{tier:?}{priority}.yaml").to_lowercase();
    let rule = |(at, (action, direction, peer, ports)): (usize, (Action, Direction, Peer, Ports))| guard::Rule {
        name: format!("{} {priority}: rule {at}", kind.name()).to_lowercase(),
        place: place(&file),
        action,
        direction,
        peer: Whom::Is(peer),
        ports: vec![ports],
        audit: false,
        expires: None,
    };
    Policy::Guard(Guard {
        kind,
        tier,
        name: format!("{tier:?}{priority}").to_lowercase(),
        place: place(&file),
        priority,
        priority_place: place(&file),
        subjects: Subjects::default(),
        compare: None,
        rules: rules.into_iter().enumerate().map(rule).collect(),
    })
}

/// Where the policies to copy are.
pub(crate) fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples")
}

/// Text of one of the policies to copy.
pub(crate) fn example(name: &str) -> String {
    fs::read_to_string(examples().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
