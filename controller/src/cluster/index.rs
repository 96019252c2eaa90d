//! Which objects say something of an address or a service: whom news concern is found without a look at all others. Pure.

use std::{collections::BTreeSet, mem, net::IpAddr};

use super::kinds::{Key, NODES, SERVICES, SLICES};
use crate::manifest::Seen;

/// Objects by something that they say, of which each may say several.
#[derive(Debug)]
pub(super) struct By<K>(BTreeSet<(K, Key)>);

impl<K> Default for By<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Clone + Ord> By<K> {
    /// An object says something else.
    pub(super) fn change(&mut self, name: &Key, before: &BTreeSet<K>, after: &BTreeSet<K>) {
        for gone in before.difference(after) {
            self.0.remove(&(gone.clone(), name.clone()));
        }
        self.0.extend(after.difference(before).map(|new| (new.clone(), name.clone())));
    }

    /// Has it take no more room than what is in it: what grew one by one takes up to twice as much.
    pub(super) fn compact(&mut self) {
        self.0 = mem::take(&mut self.0).into_iter().collect();
    }

    /// Who says this.
    pub(super) fn of<'a>(&'a self, what: &K) -> impl Iterator<Item = &'a Key> + use<'a, K> {
        let from = self.0.range((what.clone(), Key::new("", ""))..);
        let some: Vec<_> = from.take_while(|(said, _)| said == what).map(|(_, name)| name).collect();
        some.into_iter()
    }
}

/// What is known of services, slices and nodes.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Services by their addresses.
    pub(super) services: By<IpAddr>,
    /// Nodes by theirs.
    pub(super) nodes: By<IpAddr>,
    /// Slices by their services.
    pub(super) slices: By<Key>,
    /// Slices by the addresses that answer.
    pub(super) answering: By<IpAddr>,
}

impl Index {
    /// An object is another one now.
    pub(super) fn change(&mut self, kind: usize, name: &Key, before: Option<&Seen>, after: Option<&Seen>) {
        let addresses =
            |seen: Option<&Seen>| -> BTreeSet<IpAddr> { seen.into_iter().flat_map(Seen::addresses).collect() };
        match kind {
            SERVICES => self.services.change(name, &addresses(before), &addresses(after)),
            NODES => self.nodes.change(name, &addresses(before), &addresses(after)),
            SLICES => {
                let service = |seen: Option<&Seen>| seen.and_then(|seen| service_of(name, seen)).into_iter().collect();
                self.slices.change(name, &service(before), &service(after));
                self.answering.change(name, &addresses(before), &addresses(after));
            }
            _ => {}
        }
    }
}

/// Service of a slice.
pub(super) fn service_of(name: &Key, slice: &Seen) -> Option<Key> {
    slice.service().map(|service| Key::new(name.namespace.as_str(), service))
}
