//! What an event moved.

use std::net::IpAddr;

use bulkhead_dataplane::desired::{EndpointName, RuleId, Segment, SelectorId, ServiceAddress, SetId};
use ipnetwork::IpNetwork;

/// Keys of what is new or other than before, and of what is gone; each ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved<K> {
    /// It is new, or other than before.
    pub set: Vec<K>,
    /// It is gone.
    pub removed: Vec<K>,
}

impl<K> Default for Moved<K> {
    fn default() -> Self {
        Self { set: Vec::new(), removed: Vec::new() }
    }
}

impl<K> Moved<K> {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.set.len() + self.removed.len()
    }

    /// Nothing moved.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How what a node shall enforce became other by an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Selectors.
    pub selectors: Moved<SelectorId>,
    /// Rules.
    pub rules: Moved<RuleId>,
    /// Policy sets.
    pub sets: Moved<SetId>,
    /// Endpoints of this node.
    pub endpoints: Moved<EndpointName>,
    /// Known addresses.
    pub addresses: Moved<(Segment, IpAddr)>,
    /// Prefixes.
    pub prefixes: Moved<(Segment, IpNetwork)>,
    /// Overlays, by VNI.
    pub overlays: Moved<Segment>,
    /// Service addresses.
    pub services: Moved<ServiceAddress>,
}

impl Change {
    /// Nothing moved.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.selectors.is_empty()
            && self.rules.is_empty()
            && self.sets.is_empty()
            && self.endpoints.is_empty()
            && self.addresses.is_empty()
            && self.prefixes.is_empty()
            && self.overlays.is_empty()
            && self.services.is_empty()
    }
}

/// Keys that an event touched, and whether they are there since.
#[derive(Debug)]
pub(super) struct Touched<K>(Vec<(K, bool)>);

impl<K> Default for Touched<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord> Touched<K> {
    pub(super) fn set(&mut self, key: K) {
        self.0.push((key, true));
    }

    pub(super) fn removed(&mut self, key: K) {
        self.0.push((key, false));
    }

    /// What was touched last holds.
    fn moved(mut self) -> Moved<K> {
        self.0.reverse();
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.0.dedup_by(|(later, _), (first, _)| later == first);
        let mut moved = Moved::default();
        for (key, there) in self.0 {
            if there { &mut moved.set } else { &mut moved.removed }.push(key);
        }
        moved
    }
}

/// All that an event touched.
#[derive(Debug, Default)]
pub(super) struct Touch {
    pub(super) selectors: Touched<SelectorId>,
    pub(super) rules: Touched<RuleId>,
    pub(super) sets: Touched<SetId>,
    pub(super) endpoints: Touched<EndpointName>,
    pub(super) addresses: Touched<(Segment, IpAddr)>,
    pub(super) prefixes: Touched<(Segment, IpNetwork)>,
    pub(super) overlays: Touched<Segment>,
    pub(super) services: Touched<ServiceAddress>,
}

impl From<Touch> for Change {
    fn from(touch: Touch) -> Self {
        Self {
            selectors: touch.selectors.moved(),
            rules: touch.rules.moved(),
            sets: touch.sets.moved(),
            endpoints: touch.endpoints.moved(),
            addresses: touch.addresses.moved(),
            prefixes: touch.prefixes.moved(),
            overlays: touch.overlays.moved(),
            services: touch.services.moved(),
        }
    }
}
