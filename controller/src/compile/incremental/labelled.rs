//! Addresses by namespace and labels of who has them: whom a selector may match is found without a look at anybody else.
//!
//! Many have the same labels, all that a controller makes: they are looked at once, and kept together.

use std::{
    collections::hash_map::Entry,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::desired::Segment;
use foldhash::HashMap;

use super::rows::keys;
use crate::{
    few::Few,
    labels::{Labels, Requirement, Selector},
    model::Workload,
    workloads::WorkloadName,
};

/// An address that two workloads have is there for each of them.
#[derive(Debug, Default)]
pub(super) struct Labelled<S = RandomState> {
    hashing: S,
    namespaces: HashMap<String, Alike>,
}

/// Those of a namespace.
#[derive(Debug, Default)]
struct Alike {
    all: HashMap<Arc<Labels>, Vec<(Segment, IpAddr)>>,
    /// Which labels have one with a value, by the hash of both. Others with the same hash may be among them.
    having: HashMap<u64, Vec<Arc<Labels>>>,
}

impl<S: BuildHasher> Labelled<S> {
    fn hash(&self, label: &str, value: &str) -> u64 {
        self.hashing.hash_one((label, value))
    }

    /// Of all labels, each hash once.
    fn hashes(&self, labels: &Labels) -> Few<u64> {
        labels.iter().map(|(label, value)| self.hash(label, value)).collect()
    }

    /// A workload has its addresses. To be told once.
    pub(super) fn add(&mut self, name: &WorkloadName, workload: &Workload) {
        // Whoever lives in its node's own network is no peer by its labels, and by none nobody is found.
        if workload.host || workload.labels.is_empty() || keys(workload).next().is_none() {
            return;
        }
        let alike = self.namespaces.get_mut(name.namespace.as_str());
        if let Some(known) = alike.and_then(|alike| alike.all.get_mut(&workload.labels)) {
            known.extend(keys(workload));
            return;
        }
        let hashes = self.hashes(&workload.labels);
        let alike = self.namespaces.entry(name.namespace.clone()).or_default();
        // Some have labels of their own.
        let mut all = Vec::with_capacity(keys(workload).count());
        all.extend(keys(workload));
        alike.all.insert(Arc::clone(&workload.labels), all);
        for &hash in &hashes {
            let having = alike.having.entry(hash).or_insert_with(|| Vec::with_capacity(1));
            having.push(Arc::clone(&workload.labels));
        }
    }

    /// A workload has them no longer, as it was added.
    pub(super) fn remove(&mut self, name: &WorkloadName, workload: &Workload) {
        let hashes = self.hashes(&workload.labels);
        let Some(alike) = self.namespaces.get_mut(&name.namespace).filter(|_| !workload.host) else { return };
        let Entry::Occupied(mut known) = alike.all.entry(Arc::clone(&workload.labels)) else { return };
        for key in keys(workload) {
            if let Some(at) = known.get().iter().position(|known| *known == key) {
                known.get_mut().swap_remove(at);
            }
        }
        if !known.get().is_empty() {
            return;
        }
        known.remove();
        for &hash in &hashes {
            let Entry::Occupied(mut having) = alike.having.entry(hash) else { continue };
            if let Some(at) = having.get().iter().position(|labels| *labels == workload.labels) {
                having.get_mut().swap_remove(at);
            }
            if having.get().is_empty() {
                having.remove();
            }
        }
        if alike.all.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
    }

    /// Takes no more room than what is in it.
    pub(super) fn compact(&mut self) {
        for alike in self.namespaces.values_mut() {
            alike.all.values_mut().for_each(Vec::shrink_to_fit);
            alike.all.shrink_to_fit();
            alike.having.values_mut().for_each(Vec::shrink_to_fit);
            alike.having.shrink_to_fit();
        }
    }

    /// What a selector can be found by; `None` when no value is required of any label.
    pub(super) fn asked<'a>(&self, labels: &'a Selector) -> Option<Asked<'a>> {
        labels.requirements().find_map(|requirement| match requirement {
            Requirement::In(label, values) => {
                let hashes = values.iter().map(|value| self.hash(label, value)).collect();
                Some(Asked { labels, label, hashes })
            }
            Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::Missing(_) => None,
        })
    }

    /// Addresses in a namespace of everybody whose labels a selector matches, each once for each who has it.
    pub(super) fn of<'a>(
        &'a self,
        namespace: &str,
        asked: &'a Asked<'_>,
    ) -> impl Iterator<Item = (Segment, IpAddr)> + use<'a, S> {
        let alike = self.namespaces.get(namespace);
        let having = asked.hashes.iter().filter_map(move |hash| Some((*hash, alike?.having.get(hash)?)));
        having.flat_map(move |(hash, some)| {
            // Another label of theirs may have one of the other hashes: they are found by this one.
            let is = move |labels: &&Arc<Labels>| {
                asked.labels.matches(labels)
                    && labels.get(asked.label).is_some_and(|value| self.hash(asked.label, value) == hash)
            };
            some.iter().filter(is).filter_map(move |labels| alike?.all.get(labels)).flatten().copied()
        })
    }
}

/// A selector, and what finds whom it matches.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    labels: &'a Selector,
    /// A label, and hashes of it with each of the values of which one is required.
    label: &'a str,
    hashes: Few<u64>,
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, Hasher};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        diagnostic::{Place, source},
        workloads,
    };

    fn labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[ab]", "[a-z]", 0..3).prop_map(Labels::from)
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

    /// A selector that asks for values of one label, and may ask something of another.
    fn selector() -> impl Strategy<Value = Selector> {
        let values = || prop::collection::btree_set("[a-z]", 1..4);
        (values(), prop::option::of(values())).prop_map(|(a, b)| {
            let a = Requirement::In("a".to_owned(), a);
            [a].into_iter().chain(b.map(|b| Requirement::NotIn("b".to_owned(), b))).collect()
        })
    }

    proptest! {
        /// Whom a selector matches is found and nobody else, also where hashes are the same.
        #[test]
        fn who_has_labels_is_found(
            all in prop::collection::vec((labels(), any::<bool>(), any::<bool>()), 0..40), selector in selector()
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
                } else if !host && selector.matches(&workload.labels) {
                    expected.extend(keys(&workload));
                }
            }
            let asked = labelled.asked(&selector).expect("a value is asked for");
            let asked_weakly = weak.asked(&selector).expect("a value is asked for");
            let mut found: Vec<_> = labelled.of("a", &asked).collect();
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
            let mut found: Vec<_> = weak.of("a", &asked_weakly).collect();
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(labelled.of("b", &asked).next(), None);
        }

        /// Nothing stays of those who go, while somebody stays and when he goes as well.
        #[test]
        fn nothing_is_left_of_nobody(all in prop::collection::vec(labels(), 0..40)) {
            let mut labelled = Labelled::<RandomState>::default();
            let of = |(index, labels)| (WorkloadName::new("a", u8::to_string(&index)), workload(index, labels, false));
            let all: Vec<_> = (0..).zip(all).map(of).collect();
            let (who, stays) = of((u8::MAX, Labels::from_iter([("c", "stays")])));
            labelled.add(&who, &stays);
            all.iter().for_each(|(name, workload)| labelled.add(name, workload));
            labelled.compact();
            all.iter().for_each(|(name, workload)| labelled.remove(name, workload));
            let alike = &labelled.namespaces["a"];
            prop_assert_eq!((alike.all.len(), alike.having.len()), (1, 1), "{:?}", alike);
            labelled.remove(&who, &stays);
            prop_assert!(labelled.namespaces.is_empty(), "{labelled:?}");
        }
    }
}
