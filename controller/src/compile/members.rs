//! Which selectors match a workload or an address, without asking each of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use bulkhead_dataplane::desired::SelectorId;

use super::draft::Selector;
use crate::{
    labels::Requirement,
    model::{Model, Peer, Scope, Workload},
    workloads::WorkloadName,
};

/// Selectors by what a workload must have for them to match.
pub(super) struct Members<'a> {
    selectors: &'a [Selector],
    /// Of one namespace.
    by_namespace: HashMap<&'a str, Vec<SelectorId>>,
    /// Of namespaces with this value of a label, among other things.
    by_label: HashMap<(&'a str, &'a str), Vec<SelectorId>>,
    /// To be asked of everybody.
    others: Vec<SelectorId>,
    /// Those of prefixes that match from each address on, up to the next; by family.
    prefixes: [Vec<(u128, BTreeSet<SelectorId>)>; 2],
}

impl<'a> Members<'a> {
    pub(super) fn new(selectors: &'a [Selector]) -> Self {
        let mut members = Self {
            selectors,
            by_namespace: HashMap::new(),
            by_label: HashMap::new(),
            others: Vec::new(),
            prefixes: [false, true].map(|v6| prefixes(selectors, v6)),
        };
        for (id, selector) in (0..).map(SelectorId).zip(selectors) {
            members.add(id, selector);
        }
        members
    }

    fn add(&mut self, id: SelectorId, selector: &'a Selector) {
        let namespace = match &selector.peer {
            Peer::Cidrs(_) => return,
            Peer::Service(name) => Some(name.namespace.as_str()),
            Peer::Workloads { namespaces: Scope::Named(name), .. } => Some(name.as_str()),
            Peer::Workloads { namespaces: Scope::Labelled(labels), .. } => {
                let values = labels.requirements().find_map(|requirement| match requirement {
                    Requirement::In(label, values) => Some((label.as_str(), values)),
                    _ => None,
                });
                if let Some((label, values)) = values {
                    for value in values {
                        self.by_label.entry((label, value)).or_default().push(id);
                    }
                    return;
                }
                None
            }
            _ => None,
        };
        match namespace {
            Some(namespace) => self.by_namespace.entry(namespace).or_default().push(id),
            None => self.others.push(id),
        }
    }

    /// Selectors that name a workload, whatever its address.
    pub(super) fn of(&self, model: &Model, name: &WorkloadName, workload: &Workload) -> BTreeSet<SelectorId> {
        let labels = model.namespace(&name.namespace).iter();
        let by_label = labels.filter_map(|(label, value)| self.by_label.get(&(label.as_str(), value.as_str())));
        let by_namespace = self.by_namespace.get(name.namespace.as_str());
        let asked = by_label.chain(by_namespace).chain([&self.others]).flatten();
        let names = |id: &&SelectorId| self.selectors[id.0 as usize].has_member(model, name, workload);
        asked.filter(names).copied().collect()
    }

    /// Selectors that name an address, whoever has it.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = SelectorId> {
        let prefixes = &self.prefixes[usize::from(address.is_ipv6())];
        let after = prefixes.partition_point(|(first, _)| *first <= bits(address));
        prefixes[..after].last().into_iter().flat_map(|(_, selectors)| selectors.iter().copied())
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Stretches of a family in which the same selectors of prefixes match.
fn prefixes(selectors: &[Selector], v6: bool) -> Vec<(u128, BTreeSet<SelectorId>)> {
    let mut edges: Vec<(u128, IpAddr)> = Vec::new();
    let of_cidrs = |selector: &Selector| match &selector.peer {
        Peer::Cidrs(cidrs) => cidrs.cidrs.iter().chain(&cidrs.except).copied().collect(),
        _ => Vec::new(),
    };
    for net in selectors.iter().flat_map(of_cidrs).filter(|net| net.is_ipv6() == v6) {
        edges.push((bits(net.network()), net.network()));
        let after = match net.broadcast() {
            IpAddr::V4(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V4(next.into())),
            IpAddr::V6(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V6(next.into())),
        };
        edges.extend(after.map(|after| (bits(after), after)));
    }
    edges.sort_unstable();
    edges.dedup();
    let matching = |address| {
        let all = (0..).map(SelectorId).zip(selectors);
        all.filter(|(_, selector)| selector.holds(address)).map(|(id, _)| id).collect()
    };
    edges.into_iter().map(|(first, address)| (first, matching(address))).collect()
}
