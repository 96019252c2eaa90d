//! What guards links already when a publish is about to attach.

use std::collections::{BTreeMap, BTreeSet};

use nix::net::if_::if_nametoindex;

use crate::{
    attach::{Attachment, Guard, Known, Links},
    network,
    node::{NodeError, Port, Wire},
};

/// What stood after the latest publish.
#[derive(Debug, Default)]
pub(super) struct Stood {
    pub(super) guards: Vec<Guard>,
    /// Indexes of these guards' links, as they were before anything was attached.
    pub(super) indexes: BTreeMap<String, u32>,
    /// What the kernel said of links of endpoints.
    pub(super) wires: BTreeMap<String, Wire>,
    /// Nothing has been missing since.
    pub(super) whole: bool,
}

impl Stood {
    /// Whether a link is the one that was guarded then: not another one of its name, and not one that was renamed.
    pub(super) fn has(&self, link: &str) -> bool {
        self.whole && self.indexes.get(link).is_some_and(|index| if_nametoindex(link) == Ok(*index))
    }

    /// Links of endpoints by which the node forwards otherwise than then.
    pub(super) fn moved(&self, ports: &BTreeMap<u32, Port>) -> BTreeSet<String> {
        let now = |link: &str| ports.get(self.indexes.get(link)?);
        let moved = self.wires.iter().filter(|(link, wire)| now(link).is_some_and(|port| *port != wire.port));
        moved.map(|(link, _)| link.clone()).collect()
    }

    /// Links that need these guards and no others, and had them.
    fn certain<'a>(&self, guards: impl IntoIterator<Item = &'a Guard>) -> Known<'a> {
        let had = by_link(&self.guards);
        let mut known = Known::default();
        for (link, wanted) in by_link(guards) {
            if had.get(link) == Some(&wanted) && self.has(link) {
                known.links.insert(link);
                known.values.extend(wanted.iter().map(|guard| guard.value));
            }
        }
        known
    }
}

fn by_link<'a>(guards: impl IntoIterator<Item = &'a Guard>) -> BTreeMap<&'a str, BTreeSet<&'a Guard>> {
    let mut by_link: BTreeMap<&str, BTreeSet<&Guard>> = BTreeMap::new();
    guards.into_iter().for_each(|guard| _ = by_link.entry(&guard.link).or_default().insert(guard));
    by_link
}

/// What hangs on links when a publish is about to attach.
pub(super) struct Standing<'a> {
    /// Links whose guards stand, and are not looked at.
    pub(super) known: Known<'a>,
    /// On others.
    found: Vec<Attachment>,
    /// The network namespace of the node.
    here: u64,
    /// Guards there that this process has put up and that still stand.
    kept: BTreeSet<Guard>,
}

impl<'a> Standing<'a> {
    /// Of what is found. A guard that somebody else has put up is not among those that stand: whether its stub jumps into the program array of today is for
    /// [`Links::attach`] to say. Nor is one whose link has its name from another one that was renamed.
    pub(super) fn new(
        links: &Links,
        stood: &Stood,
        wanted: impl Iterator<Item = &'a Guard>,
    ) -> Result<Self, NodeError> {
        let known = stood.certain(wanted);
        let (found, here) = (links.list_beside(&known)?, network::namespace()?);
        let ours: BTreeSet<&Guard> = stood.guards.iter().collect();
        let mut kept = BTreeSet::new();
        for attachment in found.iter().filter(|found| found.namespace == here) {
            if let Some(guard) = attachment.guard()
                && ours.contains(&guard)
                && if_nametoindex(attachment.link.as_str()) == Ok(attachment.ifindex)
            {
                kept.insert(guard);
            }
        }
        Ok(Self { known, found, here, kept })
    }

    /// What hangs before a link for an endpoint, or shuts it, by the link's index: before the one that has the name, and before one that had it and was
    /// renamed. Of links that are known nothing is told.
    pub(super) fn hanging(&self, link: &str) -> BTreeMap<u32, Vec<&Attachment>> {
        let index = if_nametoindex(link);
        let mut hanging: BTreeMap<u32, Vec<&Attachment>> = BTreeMap::new();
        for found in self.of_endpoints().filter(|found| found.link == link || Ok(found.ifindex) == index) {
            hanging.entry(found.ifindex).or_default().push(found);
        }
        hanging
    }

    /// Names that links of endpoints had, and do not have any more.
    pub(super) fn old_names(&self) -> BTreeSet<&str> {
        let renamed = |found: &&Attachment| if_nametoindex(found.link.as_str()) != Ok(found.ifindex);
        self.of_endpoints().filter(renamed).map(|found| found.link.as_str()).collect()
    }

    /// Links that something shuts.
    pub(super) fn shut(&self) -> BTreeSet<&str> {
        self.of_endpoints().filter(|found| found.shuts()).map(|found| found.link.as_str()).collect()
    }

    fn of_endpoints(&self) -> impl Iterator<Item = &Attachment> {
        self.found.iter().filter(|found| found.namespace == self.here && found.alive && found.endpoint.is_some())
    }

    pub(super) fn holds(&self, guard: &Guard) -> bool {
        self.known.links.contains(guard.link.as_str()) || self.kept.contains(guard)
    }

    /// Whether something was found that is neither one of these guards nor in place of one, of a link that was shut until then.
    pub(super) fn has_more_than(&self, guards: &[Guard]) -> bool {
        let guards: BTreeSet<&Guard> = guards.iter().collect();
        let meant =
            |found: &Attachment| found.shuts() && found.alive || found.guard().is_some_and(|of| guards.contains(&of));
        !self.found.iter().all(meant)
    }
}
