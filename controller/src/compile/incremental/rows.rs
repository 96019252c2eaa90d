//! Rows of known addresses and of prefixes, kept up to date.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{Address, Desired, Segment, SelectorId},
    pieces::Pieces,
};
use ipnetwork::IpNetwork;

use super::{
    super::{draft::Selector, members::Members, network::endpoint_name},
    Cluster,
    change::Touch,
    labelled::Labelled,
    registry::Registry,
};
use crate::{
    model::{Peer, Workload},
    workloads::WorkloadName,
};

/// Who has which address, and which selectors are to be asked.
#[derive(Debug, Default)]
pub(super) struct Rows {
    members: Members,
    labelled: Labelled,
    owners: BTreeSet<(Segment, IpAddr, WorkloadName)>,
    /// Addresses that several workloads have.
    contested: BTreeSet<(Segment, IpAddr)>,
    /// Addresses that are made up.
    placeholders: BTreeSet<(Segment, IpAddr)>,
    /// How many selectors mention a prefix.
    nets: BTreeMap<IpNetwork, usize>,
    /// Segments in use on the node.
    segments: BTreeSet<Segment>,
}

/// What rows are written from and to.
pub(super) struct Pen<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) selectors: &'a Registry<Selector>,
    pub(super) desired: &'a mut Desired,
    pub(super) touch: &'a mut Touch,
    /// Addresses whose rows are written anew at the end, so that nothing else writes them.
    pub(super) due: BTreeSet<(Segment, IpAddr)>,
}

impl Pen<'_> {
    fn selectors(&self) -> impl Iterator<Item = (SelectorId, &Selector)> + Clone {
        self.selectors.iter().map(|(id, selector)| (SelectorId(id), selector))
    }

    /// Has a known address named by a selector, or no longer.
    fn name(&mut self, key: (Segment, IpAddr), id: SelectorId, named: bool) {
        if self.due.contains(&key) {
            return;
        }
        let is_other = |known: &Address| known.selectors.contains(&id) != named;
        if self.desired.addresses.change(&key, is_other, |known| set(&mut known.selectors, id, named)) {
            self.touch.addresses.set(key);
        }
    }

    /// Has an address known as this.
    fn know(&mut self, key: (Segment, IpAddr), known: Address) {
        if self.desired.addresses.get(&key) != Some(&known) {
            self.desired.addresses.insert(key, known);
            self.touch.addresses.set(key);
        }
    }
}

/// Whether that changed something.
fn set(selectors: &mut BTreeSet<SelectorId>, id: SelectorId, named: bool) -> bool {
    if named { selectors.insert(id) } else { selectors.remove(&id) }
}

impl Rows {
    /// Writes all rows.
    pub(super) fn new(used: &BTreeSet<Segment>, pen: &mut Pen<'_>) -> Self {
        let mut rows = Self { members: Members::new(pen.selectors()), ..Self::default() };
        for (_, selector) in pen.selectors.iter() {
            selector.nets().for_each(|net| *rows.nets.entry(*net).or_default() += 1);
        }
        let cluster = pen.cluster;
        for (name, workload) in &cluster.model.workloads {
            rows.own(name, workload);
            rows.write_of(name, workload, pen);
        }
        rows.labelled.compact();
        // It grew one by one, and not in order: such a set takes up to twice what is in it.
        rows.owners = mem::take(&mut rows.owners).into_iter().collect();
        let known = rows.contested.iter().copied().collect::<Vec<_>>();
        known.into_iter().for_each(|key| rows.write(key, pen));
        rows.enter_segments(used, pen);
        rows
    }

    /// Notes who has a workload's addresses. To be told once.
    pub(super) fn own(&mut self, name: &WorkloadName, workload: &Workload) {
        self.labelled.add(name, workload);
        for key in keys(workload) {
            self.owners.insert((key.0, key.1, name.clone()));
            self.contest(key);
        }
    }

    /// Forgets who had them.
    pub(super) fn disown(&mut self, name: &WorkloadName, workload: &Workload) {
        self.labelled.remove(name, workload);
        for key in keys(workload) {
            self.owners.remove(&(key.0, key.1, name.clone()));
            self.contest(key);
        }
    }

    fn contest(&mut self, key: (Segment, IpAddr)) {
        if self.owners_of(key).nth(1).is_some() {
            self.contested.insert(key);
        } else {
            self.contested.remove(&key);
        }
    }

    pub(super) fn owners_of(
        &self,
        (segment, address): (Segment, IpAddr),
    ) -> impl DoubleEndedIterator<Item = &WorkloadName> {
        let first = WorkloadName::new(String::new(), String::new());
        let from = self.owners.range((segment, address, first)..);
        let some: Vec<_> = from.take_while(|owner| (owner.0, owner.1) == (segment, address)).collect();
        some.into_iter().map(|(_, _, name)| name)
    }

    /// Writes the row of an address: of several workloads that of the last one.
    pub(super) fn write(&mut self, key: (Segment, IpAddr), pen: &mut Pen<'_>) {
        let cluster = pen.cluster;
        let owner = self.owners_of(key).next_back().and_then(|name| cluster.model.workloads.get_key_value(name));
        if let Some((name, workload)) = owner {
            let named = self.named(name, workload, pen);
            self.write_as(key, (name, workload), &named, pen);
        } else {
            self.placeholders.remove(&key);
            // That of a node stays.
            if pen.desired.addresses.get(&key).is_some_and(|known| !known.node) {
                pen.desired.addresses.remove(&key);
                pen.touch.addresses.removed(key);
            }
        }
    }

    /// Writes the rows of a workload that has all of its addresses to itself.
    fn write_of(&mut self, name: &WorkloadName, workload: &Workload, pen: &mut Pen<'_>) {
        let named = self.named(name, workload, pen);
        keys(workload).for_each(|key| self.write_as(key, (name, workload), &named, pen));
    }

    /// Selectors that name a workload.
    fn named(&self, name: &WorkloadName, workload: &Workload, pen: &Pen<'_>) -> BTreeSet<SelectorId> {
        self.members.of(|id| pen.selectors.get(id.0), &pen.cluster.model, name, workload)
    }

    fn write_as(
        &mut self,
        key: (Segment, IpAddr),
        (name, workload): (&WorkloadName, &Workload),
        named: &BTreeSet<SelectorId>,
        pen: &mut Pen<'_>,
    ) {
        let (segment, address) = key;
        let all = (0..).zip(&workload.endpoints);
        let having = all.filter(|(_, endpoint)| endpoint.segment == segment && endpoint.addresses.contains(&address));
        let Some((index, endpoint)) = having.last() else { return };
        let mut selectors = named.clone();
        if endpoint.placeholder {
            self.placeholders.insert(key);
        } else {
            self.placeholders.remove(&key);
            selectors.extend(self.members.at(|id| pen.selectors.get(id.0), address, workload));
        }
        let here = (*workload.node == *pen.cluster.node).then(|| endpoint_name(name, index));
        let known = pen.cluster.underlay.known(segment, address, selectors, here);
        pen.know(key, known);
    }

    /// Takes note of selectors that are new and that are gone, and names with the new ones whom they match.
    pub(super) fn change_selectors(
        &mut self,
        new: &[SelectorId],
        gone: &[(SelectorId, Arc<Selector>)],
        pen: &mut Pen<'_>,
    ) {
        let registry = pen.selectors;
        let new: Vec<_> = new.iter().filter_map(|&id| Some((id, registry.get(id.0)?))).collect();
        for (id, selector) in gone {
            self.members.remove(*id, selector);
            self.name(*id, selector, false, pen);
        }
        for &(id, selector) in &new {
            self.members.add(id, selector);
            self.name(id, selector, true, pen);
        }
        let all = new.iter().map(|(_, selector)| *selector).chain(gone.iter().map(|(_, selector)| &**selector));
        if all.into_iter().any(|selector| matches!(*selector.peer, Peer::Cidrs(_))) {
            self.members.renew_prefixes(pen.selectors());
        }
        self.mention(&new, gone, pen);
        for (id, selector) in gone {
            self.name_beyond(*id, selector, false, pen);
        }
        for &(id, selector) in &new {
            self.name_beyond(id, selector, true, pen);
        }
    }

    /// Names workloads' addresses with a selector, or no longer.
    fn name(&self, id: SelectorId, selector: &Selector, named: bool, pen: &mut Pen<'_>) {
        let cluster = pen.cluster;
        if let Peer::Cidrs(cidrs) = &*selector.peer {
            for segment in segments_of(&pen.desired.addresses) {
                for net in &cidrs.cidrs {
                    let range = (segment, net.network())..=(segment, net.broadcast());
                    let known = pen.desired.addresses.range(range).filter(|(_, known)| !known.node);
                    let keys: Vec<_> = known.map(|(key, _)| *key).collect();
                    for key in keys {
                        if !named || selector.holds(key.1) && self.answers(key, selector, cluster) {
                            pen.name(key, id, named);
                        }
                    }
                }
            }
            return;
        }
        if let Peer::Workloads { namespaces, labels } = &*selector.peer
            && let Some(asked) = self.labelled.asked(labels)
        {
            for namespace in cluster.model.namespaces_of(namespaces) {
                for key in self.labelled.of(namespace, &asked) {
                    let certain = selector.port.is_none() && !self.contested.contains(&key);
                    if !named || certain || self.is_named(key, selector, cluster) {
                        pen.name(key, id, named);
                    }
                }
            }
            return;
        }
        for (name, workload) in cluster.model.candidates(&selector.peer) {
            if !selector.has_candidate(&cluster.model, name, workload) {
                continue;
            }
            for key in keys(workload) {
                // Whoever has it as well may be the one that counts.
                if !named || !self.contested.contains(&key) || self.owners_of(key).next_back() == Some(name) {
                    pen.name(key, id, named);
                }
            }
        }
    }

    /// Whether a selector names the workload that counts as an address's owner.
    fn is_named(&self, key: (Segment, IpAddr), selector: &Selector, cluster: &Cluster) -> bool {
        let owner = self.owners_of(key).next_back().and_then(|name| cluster.model.workloads.get_key_value(name));
        owner.is_some_and(|(name, workload)| selector.has_member(&cluster.model, name, workload))
    }

    /// Whether an address is one that prefixes hold, and its owner has the selector's port.
    fn answers(&self, key: (Segment, IpAddr), selector: &Selector, cluster: &Cluster) -> bool {
        let owner = || self.owners_of(key).next_back().and_then(|name| cluster.model.workloads.get(name));
        !self.placeholders.contains(&key)
            && (selector.port.is_none() || owner().is_some_and(|workload| selector.has_port(workload)))
    }

    /// Names nodes and prefixes with a selector, or no longer.
    fn name_beyond(&self, id: SelectorId, selector: &Selector, named: bool, pen: &mut Pen<'_>) {
        let Cluster { model, underlay, .. } = pen.cluster;
        if !selector.is_beyond() || selector.port.is_some() {
            return;
        }
        for &address in underlay.nodes.keys().filter(|&&address| selector.has_node(model, underlay, address)) {
            self.segments.iter().for_each(|&segment| pen.name((segment, address), id, named));
        }
        for (&(segment, net), prefix) in &mut pen.desired.prefixes {
            if selector.covers(model, underlay, segment, net) && set(&mut prefix.selectors, id, named) {
                pen.touch.prefixes.set((segment, net));
            }
        }
    }

    /// Adds prefixes that are mentioned now, and takes away those that no longer are.
    fn mention(&mut self, new: &[(SelectorId, &Selector)], gone: &[(SelectorId, Arc<Selector>)], pen: &mut Pen<'_>) {
        let mut changed = BTreeSet::new();
        for net in new.iter().flat_map(|(_, selector)| selector.nets()) {
            *self.nets.entry(*net).or_default() += 1;
            changed.insert(*net);
        }
        for net in gone.iter().flat_map(|(_, selector)| selector.nets()) {
            if let Entry::Occupied(mut uses) = self.nets.entry(*net) {
                *uses.get_mut() -= 1;
                if *uses.get() == 0 {
                    uses.remove();
                }
            }
            changed.insert(*net);
        }
        let Cluster { model, underlay, .. } = pen.cluster;
        for (&segment, &net) in self.segments.iter().flat_map(|segment| changed.iter().map(move |net| (segment, net))) {
            let key = (segment, net);
            match (self.nets.contains_key(&net) || underlay.mentions(segment, net), pen.desired.prefixes.entry(key)) {
                (true, Entry::Vacant(entry)) => {
                    let all = pen.selectors.iter().map(|(id, selector)| (SelectorId(id), selector));
                    let selectors = underlay.covering(model, segment, net, all);
                    entry.insert(underlay.prefix(segment, net, selectors));
                    pen.touch.prefixes.set(key);
                }
                (false, Entry::Occupied(entry)) => {
                    entry.remove();
                    pen.touch.prefixes.removed(key);
                }
                _ => {}
            }
        }
    }

    /// Forgets nodes and prefixes in segments other than these.
    pub(super) fn leave_segments(&mut self, used: &BTreeSet<Segment>, pen: &mut Pen<'_>) {
        let underlay = &pen.cluster.underlay;
        for segment in self.segments.extract_if(.., |segment| !used.contains(segment)) {
            for &address in underlay.nodes.keys() {
                pen.desired.addresses.remove(&(segment, address));
                pen.touch.addresses.removed((segment, address));
            }
            let gone: Vec<_> = pen.desired.prefixes.keys().filter(|(of, _)| *of == segment).copied().collect();
            for key in gone {
                pen.desired.prefixes.remove(&key);
                pen.touch.prefixes.removed(key);
            }
        }
    }

    /// Has nodes and prefixes known in these segments.
    pub(super) fn enter_segments(&mut self, used: &BTreeSet<Segment>, pen: &mut Pen<'_>) {
        let Cluster { model, underlay, .. } = pen.cluster;
        for &segment in used.difference(&self.segments) {
            for &address in underlay.nodes.keys() {
                let some = pen.selectors().filter(|(_, selector)| selector.has_node(model, underlay, address));
                let known = underlay.of_node(segment, address, some.map(|(id, _)| id).collect());
                pen.know((segment, address), known);
            }
            for net in underlay.mentioned(segment).into_iter().chain(self.nets.keys().copied()) {
                let prefix = underlay.prefix(segment, net, underlay.covering(model, segment, net, pen.selectors()));
                put(&mut pen.desired.prefixes, (segment, net), prefix, |key| pen.touch.prefixes.set(key));
            }
        }
        self.segments.clone_from(used);
    }
}

/// Where a workload's addresses are known.
pub(super) fn keys(workload: &Workload) -> impl Iterator<Item = (Segment, IpAddr)> {
    let all = workload.endpoints.iter();
    all.flat_map(|endpoint| endpoint.addresses.iter().map(move |&address| (endpoint.segment, address)))
}

/// Puts something where there is nothing equal, and tells that.
pub(super) fn put<K: Copy + Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V, moved: impl FnOnce(K)) {
    match map.entry(key) {
        Entry::Occupied(same) if *same.get() == value => return,
        Entry::Occupied(mut other) => _ = other.insert(value),
        Entry::Vacant(free) => _ = free.insert(value),
    }
    moved(key);
}

/// No key lies behind it.
const LAST: (Segment, IpAddr) = (Segment::MAX, IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));

/// Segments in which addresses are known.
fn segments_of(addresses: &Pieces<(Segment, IpAddr), Address>) -> Vec<Segment> {
    let least = IpAddr::from([0; 4]);
    let mut segments: Vec<Segment> = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let found = addresses.range((from, least)..=LAST).next().map(|(&(segment, _), _)| segment);
        segments.extend(found);
        next = found.and_then(|segment| segment.checked_add(1));
    }
    segments
}
