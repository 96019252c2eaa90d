//! What a node shall enforce without ids, so that two of them can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_dataplane::desired::{
    Address, Backend, Desired, Interval, Overlay, Peers, PolicySet, Prefix, RuleId, Segment, SelectorId, ServiceAddress,
};
use ipnetwork::IpNetwork;

/// All of it by text.
#[derive(Debug, PartialEq)]
pub(crate) struct Canonical {
    selectors: BTreeSet<String>,
    rules: BTreeSet<(String, String)>,
    sets: BTreeSet<String>,
    endpoints: Vec<String>,
    addresses: BTreeMap<(Segment, IpAddr), (BTreeSet<String>, Address)>,
    prefixes: BTreeMap<(Segment, IpNetwork), (BTreeSet<String>, Prefix)>,
    overlays: Vec<Overlay>,
    services: BTreeMap<ServiceAddress, BTreeSet<Backend>>,
}

impl Canonical {
    pub(crate) fn of(desired: &Desired) -> Self {
        let selectors = |ids: &BTreeSet<SelectorId>| ids.iter().map(|id| selector(desired, *id)).collect();
        let sets = desired.sets.iter().filter(|set| !set.classes[0].is_empty());
        let endpoints = desired.endpoints.iter().map(|endpoint| {
            let views = endpoint.views.iter().map(|view| {
                let set = |id: u32| render(desired, &desired.sets[id as usize]);
                format!("until {:?}\n{}{}", view.until, set(view.ingress.0), set(view.egress.0))
            });
            let views: Vec<_> = views.collect();
            format!("{:?}", (desired_endpoint(endpoint), views))
        });
        Self {
            selectors: desired.selectors.iter().filter(|text| !text.is_empty()).cloned().collect(),
            rules: desired
                .rules
                .iter()
                .filter(|rule| !rule.name.is_empty())
                .map(|rule| (rule.name.clone(), rule.origin.clone()))
                .collect(),
            sets: sets.map(|set| render(desired, set)).collect(),
            endpoints: endpoints.collect(),
            addresses: desired
                .addresses
                .iter()
                .map(|(key, known)| {
                    (*key, (selectors(&known.selectors), Address { selectors: BTreeSet::new(), ..known.clone() }))
                })
                .collect(),
            prefixes: desired
                .prefixes
                .iter()
                .map(|(key, prefix)| {
                    (*key, (selectors(&prefix.selectors), Prefix { selectors: BTreeSet::new(), ..prefix.clone() }))
                })
                .collect(),
            overlays: desired.overlays.clone(),
            services: desired.services.clone(),
        }
    }

    /// Panics where two differ, and says what differs first.
    pub(crate) fn assert_is(&self, oracle: &Self, when: &str) {
        assert_eq!(self.selectors, oracle.selectors, "selectors {when}");
        assert_eq!(self.rules, oracle.rules, "rules {when}");
        assert_eq!(self.sets, oracle.sets, "sets {when}");
        assert_eq!(self.endpoints, oracle.endpoints, "endpoints {when}");
        same(&self.addresses, &oracle.addresses, when);
        same(&self.prefixes, &oracle.prefixes, when);
        assert_eq!(self.overlays, oracle.overlays, "overlays {when}");
        same(&self.services, &oracle.services, when);
    }
}

fn same<K: Copy + Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    found: &BTreeMap<K, V>,
    oracle: &BTreeMap<K, V>,
    when: &str,
) {
    for key in found.keys().chain(oracle.keys()) {
        assert_eq!(found.get(key), oracle.get(key), "{key:?} {when}");
    }
}

fn desired_endpoint(endpoint: &bulkhead_dataplane::desired::Endpoint) -> impl std::fmt::Debug {
    bulkhead_dataplane::desired::Endpoint { views: Vec::new(), ..endpoint.clone() }
}

fn selector(desired: &Desired, id: SelectorId) -> String {
    let text = desired.selectors[id.0 as usize].clone();
    assert!(!text.is_empty(), "selector {} is gone", id.0);
    text
}

fn render(desired: &Desired, set: &PolicySet) -> String {
    let rule = |id: RuleId| {
        let rule = &desired.rules[id.0 as usize];
        assert!(!rule.name.is_empty(), "rule {} is gone", id.0);
        format!("[{} {}]", rule.name, rule.origin)
    };
    let interval = |interval: &Interval| {
        let entries = interval.entries.iter().map(|entry| {
            let peers = match &entry.peers {
                Peers::Any(id) => vec![rule(*id)],
                Peers::Selectors(some) => {
                    some.iter().map(|(id, of)| format!("{} {}", selector(desired, *id), rule(*of))).collect()
                }
            };
            let peers: BTreeSet<_> = peers.into_iter().collect();
            format!("{} {:?} {} {:?} {peers:?}", entry.tier, entry.action, entry.audit, entry.reason)
        });
        format!("from {}: {:#?}", interval.start, entries.collect::<Vec<_>>())
    };
    let classes = set.classes.each_ref().map(|axis| axis.iter().map(interval).collect::<Vec<_>>());
    format!("{:?} isolated {}\n{classes:#?}\n", set.direction, set.isolated)
}
