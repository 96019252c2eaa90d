//! Addresses by namespace and labels of who has them: whom a selector may match is found without a look at anybody else.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::desired::Segment;
use foldhash::HashMap;

use super::rows::keys;
use crate::{
    labels::{Labels, Requirement, Selector},
    model::Workload,
    workloads::WorkloadName,
};

/// An address that two workloads have is there for each of them.
#[derive(Debug, Default)]
pub(super) struct Labelled<S = RandomState> {
    hashing: S,
    namespaces: HashMap<String, HashMap<u64, Having>>,
}

/// Who has a label with a value, by the hash of both: a look at the labels of one tells whether that is what is asked for, instead of one at everybody's.
#[derive(Debug)]
struct Having {
    /// Labels of somebody who has it, or had it, and which of them it is.
    witness: (Arc<Labels>, usize),
    /// Others with the same hash have another label or value.
    mixed: bool,
    all: Vec<(Segment, IpAddr)>,
}

impl Having {
    fn is(&self, label: &str, value: &str) -> bool {
        let (labels, at) = &self.witness;
        labels.iter().nth(*at).is_some_and(|known| (&**known.0, &**known.1) == (label, value))
    }
}

impl<S: BuildHasher> Labelled<S> {
    fn hash(&self, label: &str, value: &str) -> u64 {
        self.hashing.hash_one((label, value))
    }

    /// Of each label, in their order.
    fn hashes(&self, labels: &Labels) -> Vec<u64> {
        labels.iter().map(|(label, value)| self.hash(label, value)).collect()
    }

    /// A workload has its addresses. To be told once.
    pub(super) fn add(&mut self, name: &WorkloadName, workload: &Workload) {
        // Whoever lives in its node's own network is no peer by its labels.
        if workload.host || keys(workload).next().is_none() {
            return;
        }
        let hashes = self.hashes(&workload.labels);
        let namespace = self.namespaces.entry(name.namespace.clone()).or_default();
        for (at, ((label, value), hash)) in workload.labels.iter().zip(hashes).enumerate() {
            let new = || Having { witness: (Arc::clone(&workload.labels), at), mixed: false, all: Vec::new() };
            let having = namespace.entry(hash).or_insert_with(new);
            having.mixed |= !having.is(label, value);
            // Some have labels of their own.
            if having.all.is_empty() {
                having.all.reserve_exact(1);
            }
            having.all.extend(keys(workload));
        }
    }

    /// A workload has them no longer, as it was added.
    pub(super) fn remove(&mut self, name: &WorkloadName, workload: &Workload) {
        let hashes = self.hashes(&workload.labels);
        let Some(namespace) = self.namespaces.get_mut(&name.namespace).filter(|_| !workload.host) else { return };
        for hash in hashes {
            let Some(having) = namespace.get_mut(&hash) else { continue };
            for key in keys(workload) {
                if let Some(at) = having.all.iter().position(|known| *known == key) {
                    having.all.swap_remove(at);
                }
            }
            if having.all.is_empty() {
                namespace.remove(&hash);
            }
        }
        if namespace.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
    }

    /// Takes no more room than what is in it.
    pub(super) fn compact(&mut self) {
        let all = self.namespaces.values_mut().flat_map(HashMap::values_mut);
        all.for_each(|having| having.all.shrink_to_fit());
    }

    /// What a selector can be found by; `None` when no value is required of any label.
    pub(super) fn asked<'a>(&self, labels: &'a Selector) -> Option<Asked<'a>> {
        let alone = labels.requirements().nth(1).is_none();
        labels.requirements().find_map(|requirement| match requirement {
            Requirement::In(label, values) => {
                let values = values.iter().map(|value| (&**value, self.hash(label, value))).collect();
                Some(Asked { label, values, alone })
            }
            Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::Missing(_) => None,
        })
    }

    /// Addresses in a namespace of at least everybody who has what is asked for, and whether that is certain.
    pub(super) fn of<'a>(
        &'a self,
        namespace: &str,
        asked: &'a Asked<'_>,
    ) -> impl Iterator<Item = ((Segment, IpAddr), bool)> + use<'a, S> {
        let namespace = self.namespaces.get(namespace);
        let all = asked.values.iter().filter_map(move |(value, hash)| {
            let having = namespace?.get(hash)?;
            (having.mixed || having.is(asked.label, value)).then_some(having)
        });
        all.flat_map(|having| having.all.iter().map(|key| (*key, !having.mixed)))
    }
}

/// A label and the values of which one is required.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    label: &'a str,
    /// With the hash of label and value.
    values: Vec<(&'a str, u64)>,
    /// Nothing else is required.
    pub(super) alone: bool,
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        hash::{BuildHasherDefault, Hasher},
    };

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

    /// Has three values.
    #[derive(Default)]
    struct Weak(u64);

    impl Hasher for Weak {
        fn write(&mut self, bytes: &[u8]) {
            bytes.iter().for_each(|byte| self.0 = (self.0 + u64::from(*byte)) % 3);
        }

        fn finish(&self) -> u64 {
            self.0
        }
    }

    proptest! {
        /// Nobody who has what is asked for is missed, nor anybody else found where it is certain, even if hashes are the same.
        #[test]
        fn who_has_a_label_is_found(
            all in prop::collection::vec((labels(), any::<bool>(), any::<bool>()), 0..40),
            values in prop::collection::btree_set("[a-z]", 1..4),
        ) {
            let (mut labelled, mut weak) = (Labelled::<RandomState>::default(), Labelled::<BuildHasherDefault<Weak>>::default());
            let name = |index: u8| WorkloadName::new("a".to_owned(), index.to_string());
            let mut expected = Vec::new();
            let all: Vec<_> = (0..).zip(all).collect();
            for (index, (labels, host, _)) in &all {
                let workload = workload(*index, labels.clone(), *host);
                labelled.add(&name(*index), &workload);
                weak.add(&name(*index), &workload);
            }
            for (index, (labels, host, goes)) in all {
                let workload = workload(index, labels, host);
                if goes {
                    labelled.remove(&name(index), &workload);
                    weak.remove(&name(index), &workload);
                } else if !host && workload.labels.get("a").is_some_and(|value| values.contains(value)) {
                    expected.extend(keys(&workload));
                }
            }
            let selector: Selector = [Requirement::In("a".to_owned(), values)].into_iter().collect();
            let asked = labelled.asked(&selector).expect("a value is asked for");
            let found: BTreeSet<_> = labelled.of("a", &asked).collect();
            let certain: BTreeSet<_> = expected.iter().map(|key| (*key, true)).collect();
            prop_assert_eq!(&found, &certain);
            let asked_weakly = weak.asked(&selector).expect("a value is asked for");
            let found: BTreeSet<_> = weak.of("a", &asked_weakly).collect();
            for (key, is_certain) in &found {
                prop_assert!(!is_certain || expected.contains(key), "{key:?}");
            }
            let found: BTreeSet<_> = found.into_iter().map(|(key, _)| key).collect();
            prop_assert!(expected.iter().all(|key| found.contains(key)));
            prop_assert_eq!(labelled.of("b", &asked).next(), None);
        }
    }
}
