//! What holds for any input: no panic, places inside the text, and a result that the tables can take.

use bulkhead_controller::{
    compile::compile,
    diagnostic::{Diagnostics, source},
    manifest::Manifests,
    model::Model,
    policy, workloads,
};
use bulkhead_dataplane::{
    desired::{Entry, Interval, Peers},
    node::Discovered,
};
use bulkhead_ebpf::abi::{Action, PORT_INTERVALS, VIEW_CHAIN};

const POLICY: &str = include_str!("../../policy-examples/shop.yaml");
const WORKLOADS: &str = include_str!("../../policy-examples/shop-workloads.yaml");

/// Reads what is a text as every front end does.
pub(super) fn check(data: &[u8]) {
    for front_end in [policies, workloads, manifests] {
        text(data, front_end);
    }
}

/// Reads what is a text as one front end does.
pub(super) fn text(data: &[u8], front_end: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(data) {
        front_end(text);
    }
}

/// Reads the text as policies beside the shop's workloads.
pub(super) fn policies(text: &str) {
    both(text, WORKLOADS);
}

/// Reads the text as workloads beside the shop's policy.
pub(super) fn workloads(text: &str) {
    both(POLICY, text);
}

/// Reads the text as Kubernetes manifests.
pub(super) fn manifests(text: &str) {
    let lines = text.matches(['\n', '\r']).count() + 1;
    let read = || -> Result<(), Diagnostics> {
        let mut manifests = Manifests::default();
        manifests.read(&source("manifests.yaml", text))?;
        let workloads = manifests.workloads()?;
        all_nodes(&Model::build(&manifests.policies, &workloads)?)
    };
    if let Err(found) = read() {
        placed(&found, lines);
    }
}

fn both(policy: &str, workloads: &str) {
    // A carriage return ends a line in YAML, with a line feed or without.
    let breaks = |text: &str| text.matches(['\n', '\r']).count();
    let lines = breaks(policy).max(breaks(workloads)) + 1;
    if let Err(found) = compiled(policy, workloads) {
        placed(&found, lines);
    }
}

/// What is wrong stands somewhere.
fn placed(found: &Diagnostics, lines: usize) {
    assert!(!found.0.is_empty());
    for diagnostic in &found.0 {
        assert!(!diagnostic.message.is_empty());
        let place = diagnostic.place.as_ref().expect("a file is to blame");
        assert!((1..=lines).contains(&(place.line as usize)), "{diagnostic} of {lines} lines");
    }
}

fn compiled(policy: &str, workloads: &str) -> Result<(), Diagnostics> {
    let workloads = workloads::parse(&source("workloads.yaml", workloads))?;
    all_nodes(&Model::build(&policy::parse(&source("policy.yaml", policy))?, &workloads)?)
}

fn all_nodes(model: &Model) -> Result<(), Diagnostics> {
    for node in model.nodes.keys() {
        let desired = compile(model, node, &Discovered::default(), 0)?;
        for interval in desired.sets.iter().flat_map(|set| &set.classes) {
            assert!((1..=PORT_INTERVALS).contains(&interval.len()));
            assert_eq!(interval[0].start, 0);
            assert!(interval.windows(2).all(|pair| pair[0].start < pair[1].start));
            assert!(
                interval
                    .iter()
                    .all(|interval| matches!(interval.entries.last().map(|last| &last.peers), Some(Peers::Any(_))))
            );
            // What passes on over several tiers has the last of them.
            let judging = |entry: &&Entry| entry.action != Action::Pass;
            let sorted =
                |interval: &Interval| interval.entries.iter().filter(judging).is_sorted_by_key(|entry| entry.tier);
            assert!(interval.iter().all(sorted));
        }
        for views in desired.endpoints.iter().map(|endpoint| &endpoint.views) {
            assert!((1..=VIEW_CHAIN as usize).contains(&views.len()));
            let ends: Vec<_> = views.iter().map(|view| view.until.unwrap_or(u64::MAX)).collect();
            assert!(ends.is_sorted_by(|a, b| a < b) && views.last().is_some_and(|last| last.until.is_none()));
        }
    }
    Ok(())
}
