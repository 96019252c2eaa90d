//! Addresses by namespace, label and value of who has them: whom a selector may match is found without a look at everybody else.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use bulkhead_dataplane::desired::Segment;

use super::rows::keys;
use crate::{
    labels::{Requirement, Selector},
    model::Workload,
    workloads::WorkloadName,
};

/// An address that two workloads have is there for each of them.
#[derive(Debug, Default)]
pub(super) struct Labelled(HashMap<String, ByLabel>);

type ByLabel = HashMap<String, HashMap<String, Vec<(Segment, IpAddr)>>>;

impl Labelled {
    /// A workload has its addresses. To be told once.
    pub(super) fn add(&mut self, name: &WorkloadName, workload: &Workload) {
        // Whoever lives in its node's own network is no peer by its labels.
        if workload.host || keys(workload).next().is_none() {
            return;
        }
        let by_label = self.0.entry(name.namespace.clone()).or_default();
        for (label, value) in &workload.labels {
            let addresses = by_label.entry(label.clone()).or_default().entry(value.clone()).or_default();
            // Many a label has a value of its own for each workload.
            if addresses.is_empty() {
                addresses.reserve_exact(1);
            }
            addresses.extend(keys(workload));
        }
    }

    /// A workload has them no longer, as it was added.
    pub(super) fn remove(&mut self, name: &WorkloadName, workload: &Workload) {
        let Some(by_label) = self.0.get_mut(&name.namespace).filter(|_| !workload.host) else { return };
        for (label, value) in &workload.labels {
            let Some(by_value) = by_label.get_mut(label) else { continue };
            let Some(addresses) = by_value.get_mut(value) else { continue };
            for key in keys(workload) {
                if let Some(at) = addresses.iter().position(|known| *known == key) {
                    addresses.swap_remove(at);
                }
            }
            if addresses.is_empty() {
                by_value.remove(value);
            }
            if by_value.is_empty() {
                by_label.remove(label);
            }
        }
        if by_label.is_empty() {
            self.0.remove(&name.namespace);
        }
    }

    /// At least the addresses of everybody in a namespace who fulfils this requirement and others.
    pub(super) fn of(&self, namespace: &str, asked: Asked<'_>) -> impl Iterator<Item = (Segment, IpAddr)> {
        let by_value = self.0.get(namespace).and_then(|by_label| by_label.get(asked.label));
        let values =
            by_value.into_iter().flat_map(move |by_value| asked.values.iter().filter_map(|value| by_value.get(value)));
        values.flatten().copied()
    }
}

/// A label and the values of which one is required.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    label: &'a str,
    values: &'a BTreeSet<String>,
    /// Nothing else is required.
    pub(super) alone: bool,
}

impl<'a> Asked<'a> {
    /// What a selector can be found by; `None` when no value is required of any label.
    pub(super) fn of(labels: &'a Selector) -> Option<Self> {
        let alone = labels.requirements().nth(1).is_none();
        labels.requirements().find_map(|requirement| match requirement {
            Requirement::In(label, values) => Some(Self { label, values, alone }),
            Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::Missing(_) => None,
        })
    }
}
