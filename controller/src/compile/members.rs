//! Which selectors match a workload or an address, without asking each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_dataplane::desired::SelectorId;
use foldhash::HashMap;

use super::draft::Selector;
use crate::{
    labels::Requirement,
    model::{Model, Peer, Scope, Workload},
    workloads::WorkloadName,
};

/// Selectors by what a workload must have for them to match.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Of one namespace.
    by_namespace: HashMap<String, BTreeSet<SelectorId>>,
    /// Of namespaces with this label and value, among other things.
    by_label: HashMap<String, HashMap<String, BTreeSet<SelectorId>>>,
    /// To be asked of everybody.
    others: BTreeSet<SelectorId>,
    /// Those of prefixes that match from each address on, up to the next; by family.
    prefixes: [Vec<(u128, BTreeSet<SelectorId>)>; 2],
}

/// Where [`Members`] has a selector.
enum Place<'a> {
    Namespace(&'a str),
    Label(&'a str, &'a BTreeSet<String>),
    Everybody,
    Prefixes,
}

impl Place<'_> {
    fn of(selector: &Selector) -> Place<'_> {
        match &*selector.peer {
            Peer::Cidrs(_) => Place::Prefixes,
            Peer::Service(name) => Place::Namespace(&name.namespace),
            Peer::Workloads { namespaces: Scope::Named(name), .. } => Place::Namespace(name),
            Peer::Workloads { namespaces: Scope::Labelled(labels), .. } => {
                let values = labels.requirements().find_map(|requirement| match requirement {
                    Requirement::In(label, values) => Some(Place::Label(label, values)),
                    _ => None,
                });
                values.unwrap_or(Place::Everybody)
            }
            _ => Place::Everybody,
        }
    }
}

impl Members {
    pub(super) fn new<'a>(selectors: impl Iterator<Item = (SelectorId, &'a Selector)> + Clone) -> Self {
        let mut members = Self::default();
        for (id, selector) in selectors.clone() {
            members.add(id, selector);
        }
        members.renew_prefixes(selectors);
        members
    }

    /// Adds a selector; one of prefixes is there when [`Members::renew_prefixes`] has been called.
    pub(super) fn add(&mut self, id: SelectorId, selector: &Selector) {
        match Place::of(selector) {
            Place::Namespace(name) => _ = self.by_namespace.entry(name.to_owned()).or_default().insert(id),
            Place::Label(label, values) => {
                let by_value = self.by_label.entry(label.to_owned()).or_default();
                values.iter().for_each(|value| _ = by_value.entry(value.clone()).or_default().insert(id));
            }
            Place::Everybody => _ = self.others.insert(id),
            Place::Prefixes => {}
        }
    }

    /// Takes a selector away; as [`Members::add`].
    pub(super) fn remove(&mut self, id: SelectorId, selector: &Selector) {
        match Place::of(selector) {
            Place::Namespace(name) => remove(&mut self.by_namespace, name, id),
            Place::Label(label, values) => {
                let Some(by_value) = self.by_label.get_mut(label) else { return };
                values.iter().for_each(|value| remove(by_value, value, id));
                if by_value.is_empty() {
                    self.by_label.remove(label);
                }
            }
            Place::Everybody => _ = self.others.remove(&id),
            Place::Prefixes => {}
        }
    }

    /// Reads selectors of prefixes anew.
    pub(super) fn renew_prefixes<'a>(&mut self, selectors: impl Iterator<Item = (SelectorId, &'a Selector)>) {
        let some: Vec<_> = selectors.filter(|(_, selector)| matches!(*selector.peer, Peer::Cidrs(_))).collect();
        self.prefixes = [false, true].map(|v6| prefixes(&some, v6));
    }

    /// Selectors that name a workload, whatever its address.
    pub(super) fn of<'a>(
        &self,
        selector: impl Fn(SelectorId) -> Option<&'a Selector>,
        model: &Model,
        name: &WorkloadName,
        workload: &Workload,
    ) -> BTreeSet<SelectorId> {
        let labels = model.namespace(&name.namespace);
        let by_label = labels.iter().filter_map(|(label, value)| self.by_label.get(label)?.get(value));
        let by_namespace = self.by_namespace.get(name.namespace.as_str());
        let asked = by_label.chain(by_namespace).chain([&self.others]).flatten();
        let names = |id: &&SelectorId| selector(**id).is_some_and(|some| some.has_member(model, name, workload));
        asked.filter(names).copied().collect()
    }

    /// Selectors that name an address of a workload for the address's sake.
    pub(super) fn at<'a>(
        &self,
        selector: impl Fn(SelectorId) -> Option<&'a Selector>,
        address: IpAddr,
        workload: &Workload,
    ) -> impl Iterator<Item = SelectorId> {
        let prefixes = &self.prefixes[usize::from(address.is_ipv6())];
        let after = prefixes.partition_point(|(first, _)| *first <= bits(address));
        let all = prefixes[..after].last().into_iter().flat_map(|(_, selectors)| selectors.iter().copied());
        all.filter(move |id| selector(*id).is_some_and(|some| some.has_port(workload)))
    }
}

fn remove(from: &mut HashMap<String, BTreeSet<SelectorId>>, key: &str, id: SelectorId) {
    if let Some(some) = from.get_mut(key) {
        some.remove(&id);
        if some.is_empty() {
            from.remove(key);
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Stretches of a family in which the same selectors of prefixes match.
fn prefixes(selectors: &[(SelectorId, &Selector)], v6: bool) -> Vec<(u128, BTreeSet<SelectorId>)> {
    let nets = selectors.iter().flat_map(|(id, selector)| selector.nets().map(move |net| (*id, *selector, net)));
    // A selector begins or ends to match where a prefix of its own does, and nowhere else.
    let mut edges: BTreeMap<IpAddr, Vec<(SelectorId, &Selector)>> = BTreeMap::new();
    for (id, selector, net) in nets.filter(|(_, _, net)| net.is_ipv6() == v6) {
        let after = match net.broadcast() {
            IpAddr::V4(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V4(next.into())),
            IpAddr::V6(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V6(next.into())),
        };
        for edge in after.into_iter().chain([net.network()]) {
            edges.entry(edge).or_default().push((id, selector));
        }
    }
    let mut matching = BTreeSet::new();
    let stretch = |(address, some): (IpAddr, Vec<(SelectorId, &Selector)>)| {
        for (id, selector) in some {
            match selector.holds(address) {
                true => _ = matching.insert(id),
                false => _ = matching.remove(&id),
            }
        }
        (bits(address), matching.clone())
    };
    edges.into_iter().map(stretch).collect()
}
