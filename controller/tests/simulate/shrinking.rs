//! Nothing that goes away opens anything.
//!
//! Policies that allow are drawn at random over a small cluster; then a workload, a namespace or a label goes. Of those whose own walls stay what they
//! were nobody may reach more than before, and nobody may be reached by more. (A label that goes may take a workload out of a policy's reach, which
//! opens that workload's own walls; and who is asked not to have a label fulfils that without it. Neither is about peers that resolve to nobody.)

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_controller::{
    diagnostic::{Place, source},
    labels::{Labels, Requirement, Selector},
    model::{Model, Peer, PolicyName, Scope},
    network_policy::{NetworkPolicy, Rule},
    policy::Policy,
    ports::{Ports, Transport},
    simulate::{Connections, Party, Simulation, display},
    workloads::{Endpoint, Node, Workload, WorkloadName, Workloads},
};
use bulkhead_ebpf::abi::{Direction, Mode};
use proptest::{prelude::*, sample::select};

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 2] = ["x", "y"];

fn place() -> Place {
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
            let name = PolicyName { namespace: namespace.to_owned(), name: format!("p{number}") };
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
    let port = prop::option::of(prop_oneof![Just(80_u16), Just(8080)]);
    (select(&NAMESPACES[..]), labels("app"), port).prop_map(move |(namespace, labels, port)| {
        let name = WorkloadName { namespace: namespace.to_owned(), name: format!("w{number}") };
        let endpoint = Endpoint {
            segment: 0,
            addresses: vec![[10, 0, 0, number + 1].into()],
            link: format!("veth{number}"),
            placeholder: false,
        };
        let workload = Workload {
            place: place(),
            labels,
            node: "n1".to_owned(),
            mode: Mode::Enforce,
            ports: port.map(|port| ("http".to_owned(), (Transport::Tcp, port))).into_iter().collect(),
            endpoints: vec![endpoint],
            host: false,
            owner: None,
        };
        (name, workload)
    })
}

fn cluster() -> impl Strategy<Value = (Vec<Policy>, Workloads)> {
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
            nodes: BTreeMap::from([("n1".to_owned(), node)]),
            workloads: all.into_iter().collect(),
            namespaces: NAMESPACES.iter().map(ToString::to_string).zip(namespaces).collect(),
            ..Workloads::default()
        };
        (policies.into_iter().map(Policy::Network).collect(), workloads)
    })
}

/// What goes away.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Workload(usize),
    Namespace(usize),
    WorkloadsLabel(usize),
    NamespacesLabel(usize),
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        (0..6_usize).prop_map(Loss::Workload),
        (0..3_usize).prop_map(Loss::Namespace),
        (0..6_usize).prop_map(Loss::WorkloadsLabel),
        (0..3_usize).prop_map(Loss::NamespacesLabel),
    ]
}

/// The cluster after a loss, and those whose own walls may be others now.
fn lose(workloads: &Workloads, loss: Loss) -> (Workloads, BTreeSet<WorkloadName>) {
    let mut left = workloads.clone();
    let mut changed = BTreeSet::new();
    match loss {
        Loss::Workload(index) => drop(left.workloads.remove(&workloads.workloads.keys().nth(index).unwrap().clone())),
        Loss::Namespace(index) => {
            left.workloads.retain(|name, _| name.namespace != NAMESPACES[index]);
            left.namespaces.remove(NAMESPACES[index]);
        }
        Loss::WorkloadsLabel(index) => {
            let (name, workload) = left.workloads.iter_mut().nth(index).unwrap();
            workload.labels.clear();
            changed.insert(name.clone());
        }
        Loss::NamespacesLabel(index) => left.namespaces.values_mut().nth(index).unwrap().clear(),
    }
    (left, changed)
}

type Walls = BTreeMap<(WorkloadName, WorkloadName), Connections>;

fn connections(policies: &[Policy], workloads: &Workloads) -> Walls {
    let model = Model::build(policies, workloads).unwrap();
    let simulation = Simulation::new(&model, 0).unwrap();
    let mut all = Walls::new();
    for (from, caller) in &model.workloads {
        for (to, callee) in &model.workloads {
            let (caller, callee) = (display(from, caller), display(to, callee));
            let ports = simulation.between(Party::Group(&caller), Party::Group(&callee));
            all.insert((from.clone(), to.clone()), ports);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_goes_away_opens_nothing((policies, workloads) in cluster(), losses in prop::collection::vec(loss(), 1..4)) {
        let mut before = connections(&policies, &workloads);
        let mut left = workloads;
        for loss in losses {
            let possible = match loss {
                Loss::Workload(index) | Loss::WorkloadsLabel(index) => index < left.workloads.len(),
                Loss::Namespace(_) => true,
                Loss::NamespacesLabel(index) => index < left.namespaces.len(),
            };
            if !possible {
                continue;
            }
            let (after, changed) = lose(&left, loss);
            let connections = connections(&policies, &after);
            for ((from, to), ports) in &connections {
                if changed.contains(from) || changed.contains(to) {
                    continue;
                }
                let more = ports.without(&before[&(from.clone(), to.clone())]);
                prop_assert!(more.is_empty(), "{:?}: {} may call {} on {}", loss, from, to, more);
            }
            (left, before) = (after, connections);
        }
    }
}
