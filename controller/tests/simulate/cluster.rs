//! Random clusters with policies of Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bulkhead_controller::{
    diagnostic::{Place, source},
    guard::{self, Guard, Kind, Subjects, Tier, Whom},
    intent::Cidrs,
    labels::{Labels, Requirement, Selector},
    model::{Peer, PolicyName, Scope},
    network_policy::{NetworkPolicy, Rule},
    ports::{Ports, Transport},
    workloads::{Endpoint, Node, PortNames, Workload, WorkloadName, Workloads},
};
use bulkhead_ebpf::abi::{Action, Direction, Mode};
use proptest::{prelude::*, sample::select};

/// Namespaces.
pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 2] = ["x", "y"];

pub(crate) fn place() -> Place {
    Place::start(&source("random", ""))
}

fn labels(name: &'static str) -> impl Strategy<Value = Labels> {
    let value = select(&VALUES[..]);
    prop::option::of(value)
        .prop_map(move |value| value.map(|value| (name.to_owned(), value.to_owned())).into_iter().collect())
}

/// Requirements that nobody fulfils by lacking something.
fn selector(name: &'static str) -> impl Strategy<Value = Selector> {
    let values = prop::collection::btree_set(select(&VALUES[..]).prop_map(str::to_owned), 1..3);
    let requirement = prop_oneof![
        values.prop_map(move |values| Requirement::In(name.to_owned(), values)),
        Just(Requirement::Exists(name.to_owned())),
    ];
    prop::option::of(requirement).prop_map(|requirement| requirement.into_iter().collect())
}

fn peer() -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        select(&NAMESPACES[..]).prop_map(|name| Scope::Named(name.to_owned())),
        selector("team").prop_map(Scope::Labelled),
    ];
    (scope, selector("app")).prop_map(|(namespaces, labels)| Peer::Workloads { namespaces, labels })
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        Just(Ports::Any),
        Just(Ports::one(Transport::Tcp, 80)),
        Just(Ports::Named { name: "http".to_owned(), transport: Some(Transport::Tcp) }),
    ]
}

fn policy(number: usize) -> impl Strategy<Value = NetworkPolicy> {
    let rule = (any::<bool>(), prop::collection::vec(peer(), 1..3), prop::collection::vec(ports(), 1..3));
    let isolates = prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))];
    let rules = prop::collection::vec(rule, 0..3);
    (select(&NAMESPACES[..]), selector("app"), isolates, rules).prop_map(
        move |(namespace, pods, (ingress, egress), rules)| {
            let name = PolicyName::new(namespace.to_owned(), format!("p{number}"));
            let rules = rules.into_iter().enumerate().map(|(i, (inbound, peers, ports))| Rule {
                name: format!("networkpolicy {name}: {i}"),
                place: place(),
                direction: if inbound { Direction::Ingress } else { Direction::Egress },
                peers,
                ports,
            });
            NetworkPolicy { place: place(), pods, ingress, egress, rules: rules.collect(), name: name.clone() }
        },
    )
}

fn workload(number: u8) -> impl Strategy<Value = (WorkloadName, Workload)> {
    let ports = prop::sample::subsequence(vec![80_u16, 8080], 0..=2);
    (select(&NAMESPACES[..]), labels("app"), ports).prop_map(move |(namespace, labels, ports)| {
        let name = WorkloadName::new(namespace.to_owned(), format!("w{number}"));
        let endpoint = Endpoint {
            segment: 0,
            addresses: vec![[10, 0, 0, number + 1].into()],
            link: format!("veth{number}"),
            placeholder: false,
        };
        let workload = Workload {
            place: place(),
            labels: labels.into(),
            node: "n1".into(),
            mode: Mode::Enforce,
            ports: Arc::new(PortNames::from([(
                "http".to_owned(),
                ports.into_iter().map(|port| (Transport::Tcp, port)).collect(),
            )])),
            endpoints: vec![endpoint],
            host: false,
            owner: None,
            uid: None,
        };
        (name, workload)
    })
}

/// Workloads, and policies that allow.
pub(crate) fn cluster() -> impl Strategy<Value = (Vec<NetworkPolicy>, Workloads)> {
    let policies: Vec<_> = (0..5).map(policy).collect();
    let all: Vec<_> = (0..6).map(workload).collect();
    let namespaces: Vec<_> = NAMESPACES.iter().map(|_| labels("team")).collect();
    (policies, all, namespaces).prop_map(|(policies, all, namespaces)| {
        let node = Node {
            place: place(),
            labels: Labels::new(),
            addresses: BTreeSet::from([[192, 0, 2, 1].into()]),
            segments: Vec::new(),
        };
        let workloads = Workloads {
            nodes: BTreeMap::from([("n1".to_owned(), Arc::new(node))]),
            workloads: all.into_iter().map(|(name, workload)| (name, Arc::new(workload))).collect(),
            namespaces: NAMESPACES.iter().map(ToString::to_string).zip(namespaces).collect(),
            ..Workloads::default()
        };
        (policies, workloads)
    })
}

/// Peers of admin policies: also prefixes, where they are about traffic from a workload.
fn admin_peer(direction: Direction) -> impl Strategy<Value = Peer> {
    let net = select(&["10.0.0.0/30", "10.0.0.4/31", "10.0.0.2/32", "0.0.0.0/0"][..]);
    let cidrs = net.prop_map(|net| Peer::Cidrs(Cidrs { cidrs: vec![net.parse().unwrap()], except: Vec::new() }));
    let labelled = (selector("team"), selector("app"));
    let labelled =
        labelled.prop_map(|(team, labels)| Peer::Workloads { namespaces: Scope::Labelled(team), labels }).boxed();
    match direction {
        Direction::Ingress => labelled,
        Direction::Egress => prop_oneof![3 => labelled, 1 => cidrs].boxed(),
    }
}

fn admin_rule(direction: Direction, pass: bool) -> impl Strategy<Value = guard::Rule> {
    let actions: &[Action] =
        if pass { &[Action::Allow, Action::Deny, Action::Pass] } else { &[Action::Allow, Action::Deny] };
    (select(actions), admin_peer(direction), prop::collection::vec(ports(), 1..3)).prop_map(
        move |(action, peer, mut ports)| {
            // Only workloads name their ports.
            if matches!(peer, Peer::Cidrs(_)) {
                ports.retain(|ports| !matches!(ports, Ports::Named { .. }));
                ports.push(Ports::one(Transport::Tcp, 8080));
            }
            let (name, peer) = (String::new(), Whom::Is(peer));
            guard::Rule { name, place: place(), action, direction, peer, ports, audit: false, expires: None }
        },
    )
}

/// A policy of a tier. The baseline of v1alpha1 is judged last and passes nothing on.
fn admin(kind: Kind, tier: Tier, number: u32, priority: u32) -> impl Strategy<Value = Guard> {
    let pass = kind != Kind::BaselineAdminNetworkPolicy;
    let rules = |direction| prop::collection::vec(admin_rule(direction, pass), 0..4);
    let rules = (rules(Direction::Ingress), rules(Direction::Egress));
    (selector("team"), selector("app"), rules).prop_map(move |(namespaces, workloads, (ingress, egress))| {
        let mut rules: Vec<guard::Rule> = ingress.into_iter().chain(egress).collect();
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("{kind:?} {number}: {i}");
        }
        Guard {
            kind,
            tier,
            name: format!("g{number}"),
            place: place(),
            priority,
            priority_place: place(),
            subjects: Subjects { place: None, namespaces, services: Vec::new(), workloads },
            compare: None,
            rules,
        }
    })
}

/// Policies of the admin tier, and perhaps some behind all others, in no order of their priorities.
pub(crate) fn admins() -> impl Strategy<Value = Vec<Guard>> {
    let admins = Just([0, 1, 2]).prop_shuffle().prop_flat_map(|priorities| {
        let policies = (0..).zip(priorities).map(|(number, priority)| {
            let kinds = select(&[Kind::AdminNetworkPolicy, Kind::ClusterNetworkPolicy][..]);
            kinds.prop_flat_map(move |kind| admin(kind, Tier::Admin, number, priority)).boxed()
        });
        policies.collect::<Vec<_>>()
    });
    let baselines = [(3, 1), (4, 0)].map(|(number, priority)| {
        prop::option::of(admin(Kind::ClusterNetworkPolicy, Tier::Baseline, number, priority)).boxed()
    });
    let last = prop::option::of(admin(Kind::BaselineAdminNetworkPolicy, Tier::Baseline, 5, u32::MAX));
    (admins, baselines.to_vec(), last).prop_map(|(admins, baselines, last)| {
        admins.into_iter().chain(baselines.into_iter().flatten()).chain(last).collect()
    })
}
