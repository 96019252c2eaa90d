//! Addresses by namespace and labels of who has them: whom a selector may match is found without a look at everybody else. Those that one controller
//! makes have the same labels, so that these are few.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
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

type ByLabels = HashMap<Arc<Labels>, Addresses>;

/// Who has certain labels.
#[derive(Debug)]
struct Addresses {
    /// Of all the labels together.
    marks: Marks,
    all: Vec<(Segment, IpAddr)>,
}

/// Two bits for each label and value of some. Labels without the bits of one do not have it: to know that, nobody need follow them to where they are.
#[derive(Clone, Copy, Debug, Default)]
struct Marks(u64);

impl Marks {
    fn of(label: &str, value: &str) -> Self {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((label, value));
        Self(1 << (hash % 64) | 1 << (hash / 64 % 64))
    }

    fn of_all(labels: &Labels) -> Self {
        labels.iter().fold(Self::default(), |all, (label, value)| Self(all.0 | Self::of(label, value).0))
    }

    const fn may_have(self, one: Self) -> bool {
        self.0 & one.0 == one.0
    }
}

impl Labelled {
    /// A workload has its addresses. To be told once.
    pub(super) fn add(&mut self, name: &WorkloadName, workload: &Workload) {
        // Whoever lives in its node's own network is no peer by its labels.
        if workload.host || keys(workload).next().is_none() {
            return;
        }
        let by_labels = self.0.entry(name.namespace.clone()).or_default();
        let of_labels = || Addresses { marks: Marks::of_all(&workload.labels), all: Vec::new() };
        let addresses = &mut by_labels.entry(Arc::clone(&workload.labels)).or_insert_with(of_labels).all;
        // Some have labels of their own.
        if addresses.is_empty() {
            addresses.reserve_exact(1);
        }
        addresses.extend(keys(workload));
    }

    /// A workload has them no longer, as it was added.
    pub(super) fn remove(&mut self, name: &WorkloadName, workload: &Workload) {
        let Some(by_labels) = self.0.get_mut(&name.namespace).filter(|_| !workload.host) else { return };
        let Some(Addresses { all: addresses, .. }) = by_labels.get_mut(&workload.labels) else { return };
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
    pub(super) fn of<'a>(
        &'a self,
        namespace: &str,
        asked: &'a Asked<'_>,
    ) -> impl Iterator<Item = (Segment, IpAddr)> + use<'a> {
        let fulfils = |labels: &Labels| labels.get(asked.label).is_some_and(|value| asked.values.contains(value));
        let may = |marks: Marks| asked.marks.iter().any(|one| marks.may_have(*one));
        let all = self.0.get(namespace).into_iter().flatten();
        let some = all.filter(move |(labels, addresses)| may(addresses.marks) && fulfils(labels));
        some.flat_map(|(_, addresses)| &addresses.all).copied()
    }
}

/// A label and the values of which one is required.
pub(super) struct Asked<'a> {
    label: &'a str,
    values: &'a BTreeSet<String>,
    /// Of each value.
    marks: Vec<Marks>,
    /// Nothing else is required.
    pub(super) alone: bool,
}

impl<'a> Asked<'a> {
    /// What a selector can be found by; `None` when no value is required of any label.
    pub(super) fn of(labels: &'a Selector) -> Option<Self> {
        let alone = labels.requirements().nth(1).is_none();
        labels.requirements().find_map(|requirement| match requirement {
            Requirement::In(label, values) => {
                let marks = values.iter().map(|value| Marks::of(label, value)).collect();
                Some(Self { label, values, marks, alone })
            }
            Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::Missing(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        diagnostic::{Place, source},
        workloads,
    };

    fn labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[ab]", "[a-z]", 0..3)
    }

    fn workload(index: u8, labels: Labels, host: bool) -> Workload {
        let endpoint = workloads::Endpoint {
            segment: 0,
            addresses: vec![[10, 0, 0, index].into()],
            link: String::new(),
            placeholder: false,
        };
        let described = workloads::Workload {
            place: Place::start(&source("w.yaml", "")),
            labels: Arc::new(labels),
            node: "n".into(),
            mode: bulkhead_ebpf::abi::Mode::Enforce,
            ports: Arc::default(),
            endpoints: vec![endpoint],
            host,
            owner: None,
            uid: None,
        };
        Workload {
            described: Arc::new(described),
            services: [].into_iter().collect(),
            policies: [].into_iter().collect(),
            frontends: [].into_iter().collect(),
            service: String::new().into(),
        }
    }

    proptest! {
        /// However labels are marked, nobody who has what is asked for is missed, and nobody else is found.
        #[test]
        fn who_has_a_label_is_found(
            all in prop::collection::vec((labels(), any::<bool>(), any::<bool>()), 0..40),
            values in prop::collection::btree_set("[a-z]", 1..4),
        ) {
            let mut labelled = Labelled::default();
            let name = |index: u8| WorkloadName::new("a".to_owned(), index.to_string());
            let mut expected = Vec::new();
            let all: Vec<_> = (0..).zip(all).collect();
            for (index, (labels, host, _)) in &all {
                labelled.add(&name(*index), &workload(*index, labels.clone(), *host));
            }
            for (index, (labels, host, goes)) in all {
                let workload = workload(index, labels, host);
                if goes {
                    labelled.remove(&name(index), &workload);
                } else if !host && workload.labels.get("a").is_some_and(|value| values.contains(value)) {
                    expected.extend(keys(&workload));
                }
            }
            let selector: Selector = [Requirement::In("a".to_owned(), values)].into_iter().collect();
            let asked = Asked::of(&selector).expect("a value is asked for");
            let mut found: Vec<_> = labelled.of("a", &asked).collect();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(labelled.of("b", &asked).next(), None);
        }
    }
}
