//! Totals by peer: exact counts, shared out among those whom flows and samples name.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{Hash, Hasher},
    mem,
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::EndpointName,
    node::{ContactRecord, FlowRecord, Reading, direction_label},
};
use bulkhead_ebpf::{abi::Direction, reason::Reason};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::protocol;
use crate::peers::Peers;

/// Peers, ports and protocols that one side of a workload may have series for; what is beyond counts as [`OTHER`]. A scan of all ports must not
/// become as many series.
const MAX_PEERS: usize = 256;
const INGRESS: &str = direction_label(Direction::Ingress);
const EGRESS: &str = direction_label(Direction::Egress);

/// The peer of what no flow or sample tells.
pub const OTHER: &str = "other";

/// One side of a workload: what sums by peer are exact for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Side {
    pub(super) workload: String,
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) direction: String,
    pub(super) blocked: bool,
}

impl Side {
    fn new(endpoint: &EndpointName, service: &str, direction: &str, blocked: bool) -> Self {
        Self {
            workload: endpoint.workload.clone(),
            namespace: endpoint.namespace.clone(),
            service: service.to_owned(),
            direction: direction.to_owned(),
            blocked,
        }
    }

    /// `None` for what is no workload's, for frames that a bridge merely flooded past it, and for what audited policies say of packets that are
    /// counted already.
    fn of(reading: &Reading) -> Option<Self> {
        let counts = reading.reason != Reason::NotForUs && !reading.reason.beside();
        let endpoint = reading.endpoint.as_ref().filter(|_| counts)?;
        Some(Self::new(endpoint, &reading.service, reading.direction, reading.reason.blocked()))
    }
}

/// The other side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) peer: String,
    pub(super) port: String,
    pub(super) protocol: String,
}

impl Peer {
    fn other() -> Self {
        Self { peer: OTHER.to_owned(), port: String::new(), protocol: String::new() }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Size {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Size {
    fn saturating_sub(self, other: Self) -> Self {
        Self { packets: self.packets.saturating_sub(other.packets), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn at_most(self, limit: Self) -> Self {
        Self { packets: self.packets.min(limit.packets), bytes: self.bytes.min(limit.bytes) }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What counts on by itself until it is gone, of one endpoint: a flow, or a sample of what was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    /// It was begun from outside.
    inward: bool,
    /// Of flows.
    local: Option<IpAddr>,
    remote: IpAddr,
    protocol: u8,
    /// The port that somebody listens on leads: it is the one that is shown.
    ports: (u16, u16),
    /// Of samples: why, and whether audited policies would let it pass. A flow stays the same one when another rule allows it.
    denied: Option<(Reason, bool)>,
}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Few differ in anything else alone, and all are hashed at each reading.
        (self.remote, self.ports).hash(state);
    }
}

impl Source {
    fn of_flow(flow: &FlowRecord) -> Self {
        let (inward, local, remote) = (flow.direction == INGRESS, flow.local_port, flow.remote_port);
        Self {
            inward,
            local: Some(flow.local),
            remote: flow.remote,
            protocol: flow.protocol,
            ports: if inward { (local, remote) } else { (remote, local) },
            denied: None,
        }
    }

    /// `None` for samples of what passed: flows tell of those.
    fn of_contact(contact: &ContactRecord) -> Option<Self> {
        (!contact.observed && contact.reason.blocked()).then(|| Self {
            inward: contact.direction == INGRESS,
            local: None,
            remote: contact.peer,
            protocol: contact.protocol,
            ports: (contact.port, 0),
            denied: Some((contact.reason, contact.would_pass)),
        })
    }
}

/// Both ways of a [`Source`]: the way in which it was begun, and the replies. A sample has no replies.
type Ways = [Size; 2];

/// How much of a [`Source`] is counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// When it began, nanoseconds of Unix time.
    first: u64,
    ways: Ways,
    /// Number of the update that found it last.
    found: u64,
}

impl Counted {
    /// Beginnings are computed from jiffies anew each time.
    const JITTER: u64 = 1_000_000_000;

    /// How much is counted of what began at `first` and has a size now: nothing where that is not this one, but another that came back under its key.
    fn of(&self, first: u64, now: Ways) -> Ways {
        let is_same = self.first.abs_diff(first) < Self::JITTER;
        let grew = |before: Size, now: Size| now.packets >= before.packets && now.bytes >= before.bytes;
        [0, 1].map(|way| if is_same && grew(self.ways[way], now[way]) { self.ways[way] } else { Size::default() })
    }
}

/// What is counted of the sources of one endpoint.
type Seen = HashMap<Source, Counted>;

/// Totals by peer since the pins were made. Each side's sum is exactly what the node counted for it: what no flow or sample explains is
/// [`OTHER`]'s. No total ever shrinks unless the node's counters began anew, or nothing was read of its side meanwhile: then only flows and samples
/// that are still there say whose it was.
#[derive(Debug, Default)]
pub struct Totals {
    sides: BTreeMap<Side, IndexMap<Peer, Size>>,
    seen: HashMap<Arc<EndpointName>, Seen>,
    /// Updates so far.
    updates: u64,
    /// What began before this is counted from where it was found: another process counted it before.
    since: u64,
}

/// What outlives the process.
#[derive(Default, Serialize, Deserialize)]
pub struct Saved {
    at: u64,
    sides: Vec<(Side, Vec<(Peer, Size)>)>,
}

impl Totals {
    /// Goes on from what another process saved.
    pub fn restore(saved: Saved) -> Self {
        let sides = saved.sides.into_iter().map(|(side, peers)| (side, peers.into_iter().collect())).collect();
        Self { sides, since: saved.at, ..Self::default() }
    }

    /// What to save; `at` is nanoseconds of Unix time before the records of the latest [`Self::update`] were read.
    pub fn save(&self, at: u64) -> Saved {
        let sides =
            self.sides.iter().map(|(side, peers)| (side.clone(), peers.clone().into_iter().collect())).collect();
        Saved { at, sides }
    }

    /// What each peer of each side has.
    pub(super) fn by_peer(&self) -> impl Iterator<Item = (&Side, &Peer, Size)> {
        self.sides.iter().flat_map(|(side, by_peer)| by_peer.iter().map(move |(peer, size)| (side, peer, *size)))
    }

    /// Takes what the node says now. `readings` were read before `flows` and `contacts`, so that these explain all of them. Tables may be full of flows
    /// that rest: such a one costs a look-up.
    pub fn update(&mut self, readings: &[Reading], flows: &[FlowRecord], contacts: &[ContactRecord], peers: &Peers) {
        let mut now: BTreeMap<Side, Size> = BTreeMap::new();
        let mut services: HashMap<&EndpointName, &str> = HashMap::new();
        for reading in readings {
            if let Some(side) = Side::of(reading) {
                now.entry(side).or_default().add(Size { packets: reading.packets, bytes: reading.bytes });
            }
            if let Some(endpoint) = &reading.endpoint {
                services.insert(endpoint, &reading.service);
            }
        }
        self.sides.retain(|side, _| now.contains_key(side));
        for side in now.keys() {
            if !self.sides.contains_key(side) {
                self.sides.insert(side.clone(), IndexMap::new());
            }
        }
        // Both have the same sides, in order.
        let open = self.sides.iter_mut().zip(now.into_values());
        let open = open.map(|((side, by_peer), total)| Open::new(side, by_peer, total)).collect();
        self.updates += 1;
        let mut sharing = Sharing { open, peers, since: self.since, update: self.updates };

        let flows = flows.iter().map(|flow| {
            let size = |way: usize| Size { packets: flow.packets[way], bytes: flow.bytes[way] };
            (&flow.endpoint, Source::of_flow(flow), flow.first, [size(0), size(1)])
        });
        let contacts = contacts.iter().filter_map(|contact| {
            let ways = [Size { packets: contact.packets, bytes: contact.bytes }, Size::default()];
            Some((contact.endpoint.as_ref()?, Source::of_contact(contact)?, contact.first, ways))
        });
        let mut seen = mem::take(&mut self.seen);
        let mut endpoints: IndexMap<&EndpointName, Told<'_>> = IndexMap::new();
        let mut latest: Option<(&Arc<EndpointName>, usize)> = None;
        for (name, source, first, ways) in flows.chain(contacts) {
            let at = match latest {
                // Flows of an endpoint come one after the other.
                Some((latest, at)) if Arc::ptr_eq(latest, name) => at,
                _ => {
                    let entry = endpoints.entry(&**name);
                    let at = entry.index();
                    entry.or_insert_with(|| {
                        let service = services.get(&**name).copied().unwrap_or_default();
                        Told::new(name, sharing.sides(name, service), seen.remove(&**name).unwrap_or_default())
                    });
                    at
                }
            };
            latest = Some((name, at));
            sharing.share_out(&mut endpoints[at], source, first, ways);
        }
        self.seen = endpoints.into_values().map(|told| told.finish(self.updates)).collect();
        for Open { by_peer, left, .. } in sharing.open {
            if left != Size::default() {
                by_peer.entry(Peer::other()).or_default().add(left);
            }
        }
    }
}

/// A side while what it counted is shared out.
struct Open<'a> {
    side: &'a Side,
    by_peer: &'a mut IndexMap<Peer, Size>,
    /// What nobody has yet.
    left: Size,
}

impl<'a> Open<'a> {
    fn new(side: &'a Side, by_peer: &'a mut IndexMap<Peer, Size>, total: Size) -> Self {
        let mut counted = Size::default();
        by_peer.values().for_each(|&size| counted.add(size));
        if counted.packets > total.packets || counted.bytes > total.bytes {
            // The pins are new.
            by_peer.clear();
            counted = Size::default();
        }
        Self { side, by_peer, left: total.saturating_sub(counted) }
    }

    /// Where a peer's total is; that of [`OTHER`] where there are too many.
    fn place(&mut self, peer: Peer) -> usize {
        let known = self.by_peer.len() < MAX_PEERS || self.by_peer.contains_key(&peer);
        let entry = self.by_peer.entry(if known { peer } else { Peer::other() });
        let at = entry.index();
        entry.or_default();
        at
    }
}

/// Peers as packets tell them apart: index of the side, address, and port and protocol that are shown.
type Met = (usize, IpAddr, u16, u8);

/// An endpoint while its flows and samples are told.
struct Told<'a> {
    name: &'a Arc<EndpointName>,
    /// Indexes of its sides by whether they are blocked and whether they are inward, where they counted anything.
    sides: [[Option<usize>; 2]; 2],
    seen: Seen,
    /// Where totals of peers are. Most flows are of few peers: each peer is named once.
    places: HashMap<Met, usize>,
}

impl<'a> Told<'a> {
    fn new(name: &'a Arc<EndpointName>, sides: [[Option<usize>; 2]; 2], seen: Seen) -> Self {
        Self { name, sides, seen, places: HashMap::new() }
    }

    /// What is kept of it: what was found by this update.
    fn finish(mut self, update: u64) -> (Arc<EndpointName>, Seen) {
        self.seen.retain(|_, counted| counted.found == update);
        (Arc::clone(self.name), self.seen)
    }
}

/// What an update shares out.
struct Sharing<'a> {
    /// Sorted.
    open: Vec<Open<'a>>,
    peers: &'a Peers,
    since: u64,
    update: u64,
}

impl Sharing<'_> {
    /// As in [`Told::sides`].
    fn sides(&self, name: &EndpointName, service: &str) -> [[Option<usize>; 2]; 2] {
        [false, true].map(|blocked| {
            [EGRESS, INGRESS].map(|direction| {
                let side = Side::new(name, service, direction, blocked);
                self.open.binary_search_by(|open| open.side.cmp(&side)).ok()
            })
        })
    }

    /// Takes what a source of an endpoint has now.
    fn share_out(&mut self, told: &mut Told<'_>, source: Source, first: u64, now: Ways) {
        let Told { name, sides, seen, places } = told;
        let (before, counted) = match seen.entry(source) {
            Entry::Occupied(entry) => (entry.get().of(first, now), entry.into_mut()),
            Entry::Vacant(entry) => {
                let before = if first < self.since { now } else { Ways::default() };
                (before, entry.insert(Counted { first, ways: before, found: self.update }))
            }
        };
        *counted = Counted { first, ways: before, found: self.update };
        for way in [0, 1] {
            let more = now[way].saturating_sub(before[way]);
            let inward = source.inward == (way == 0);
            let Some(side) = sides[usize::from(source.denied.is_some())][usize::from(inward)] else { continue };
            let open = &mut self.open[side];
            // What the counters do not hold yet waits for the next time.
            let taken = more.at_most(open.left);
            if taken == Size::default() {
                continue;
            }
            let port = if has_ports(source.protocol) { source.ports.0 } else { 0 };
            let place = *places
                .entry((side, source.remote, port, source.protocol))
                .or_insert_with(|| open.place(peer(name, &source, self.peers)));
            open.by_peer[place].add(taken);
            open.left = open.left.saturating_sub(taken);
            counted.ways[way].add(taken);
        }
    }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

fn peer(endpoint: &EndpointName, source: &Source, peers: &Peers) -> Peer {
    let port = if has_ports(source.protocol) { source.ports.0.to_string() } else { String::new() };
    Peer { peer: peers.name(endpoint, source.remote), port, protocol: protocol(source.protocol) }
}
