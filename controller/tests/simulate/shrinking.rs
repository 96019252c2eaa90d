//! Nothing that goes away opens anything.
//!
//! Policies that allow, and Intents, are drawn at random over a small cluster; then a workload, a namespace or a label goes. Of those whose own walls stay what they
//! were nobody may reach more than before, and nobody may be reached by more. (A label that goes may take a workload out of a policy's reach, which
//! opens that workload's own walls; and who is asked not to have a label fulfils that without it. Neither is about peers that resolve to nobody.)

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bulkhead_controller::{
    diagnostic::source,
    labels::Labels,
    model::Model,
    policy::{self, Policy},
    simulate::{Connections, Party, Simulation, display},
    workloads::{WorkloadName, Workloads},
};
use proptest::{prelude::*, sample::select};

use crate::cluster::{NAMESPACES, cluster};

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
            Arc::make_mut(workload).labels = Arc::default();
            changed.insert(name.clone());
        }
        Loss::NamespacesLabel(index) => *left.namespaces.values_mut().nth(index).unwrap() = Labels::new(),
    }
    (left, changed)
}

/// Services of every Intent, each the workloads whose label `app` is its name: nobody is the last one.
const SERVICES: [&str; 3] = ["x", "y", "z"];

/// Services of any namespace with a port, as they are written in this one.
fn edges(own: &'static str) -> impl Strategy<Value = String> {
    let edge = (select(&NAMESPACES[..]), select(&SERVICES[..]), select(&[80, 8080][..]));
    let edge = edge.prop_map(move |(namespace, service, port)| match namespace {
        _ if namespace == own => format!("\"{service}:{port}\""),
        _ => format!("\"{namespace}/{service}:{port}\""),
    });
    prop::collection::btree_set(edge, 0..3).prop_map(|edges| edges.into_iter().collect::<Vec<_>>().join(", "))
}

/// An Intent for each namespace, or none at all.
fn intents() -> impl Strategy<Value = Vec<Policy>> {
    let intent = |namespace| {
        let service = |name| {
            (edges(namespace), edges(namespace)).prop_map(move |(calls, accepts)| {
                format!("  {name}: {{ select: {{ app: {name} }}, calls: [{calls}], accepts: [{accepts}] }}\n")
            })
        };
        SERVICES.map(service).prop_map(move |services| {
            let services = services.concat();
            format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {namespace}\nservices:\n{services}")
        })
    };
    prop::option::of(NAMESPACES.map(intent)).prop_map(|texts| {
        let texts = texts.into_iter().flatten();
        texts.flat_map(|text| policy::parse(&source("intent.yaml", text)).unwrap()).collect()
    })
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
    fn what_goes_away_opens_nothing(
        (policies, workloads) in cluster(),
        intents in intents(),
        losses in prop::collection::vec(loss(), 1..4),
    ) {
        let policies: Vec<Policy> = policies.into_iter().map(Policy::Network).chain(intents).collect();
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
