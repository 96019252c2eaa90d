//! Addresses by namespace and labels of who has them: whom a selector may match is found without a look at everybody else. Those that one controller
//! makes have the same labels, so that these are few.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::desired::Segment;

use super::rows::keys;
use crate::{
    labels::{Labels, Requirement, Selector},
    model::Workload,
    workloads::WorkloadName,
};

/// An address that two workloads have is there for each of them.
#[derive(Debug, Default)]
pub(super) struct Labelled(HashMap<String, ByLabels>);

type ByLabels = HashMap<Arc<Labels>, Vec<(Segment, IpAddr)>>;

impl Labelled {
    /// A workload has its addresses. To be told once.
    pub(super) fn add(&mut self, name: &WorkloadName, workload: &Workload) {
        // Whoever lives in its node's own network is no peer by its labels.
        if workload.host || keys(workload).next().is_none() {
            return;
        }
        let by_labels = self.0.entry(name.namespace.clone()).or_default();
        let addresses = by_labels.entry(Arc::clone(&workload.labels)).or_default();
        // Some have labels of their own.
        if addresses.is_empty() {
            addresses.reserve_exact(1);
        }
        addresses.extend(keys(workload));
    }

    /// A workload has them no longer, as it was added.
    pub(super) fn remove(&mut self, name: &WorkloadName, workload: &Workload) {
        let Some(by_labels) = self.0.get_mut(&name.namespace).filter(|_| !workload.host) else { return };
        let Some(addresses) = by_labels.get_mut(&workload.labels) else { return };
        for key in keys(workload) {
            if let Some(at) = addresses.iter().position(|known| *known == key) {
                addresses.swap_remove(at);
            }
        }
        if addresses.is_empty() {
            by_labels.remove(&workload.labels);
        }
        if by_labels.is_empty() {
            self.0.remove(&name.namespace);
        }
    }

    /// At least the addresses of everybody in a namespace who fulfils this requirement and others.
    pub(super) fn of(&self, namespace: &str, asked: Asked<'_>) -> impl Iterator<Item = (Segment, IpAddr)> {
        let fulfils = move |labels: &Labels| labels.get(asked.label).is_some_and(|value| asked.values.contains(value));
        let some = self.0.get(namespace).into_iter().flatten().filter(move |(labels, _)| fulfils(labels));
        some.flat_map(|(_, addresses)| addresses).copied()
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
