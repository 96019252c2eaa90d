//! What must hold for every frame over any tables: the fuzzers' targets, and what the tests replay.

use std::{collections::BTreeMap, fmt::Debug};

use bulkhead_ebpf::{
    abi::{AddressKey4, AddressKey6, AddressWord, Counter, Direction, Flow, mark, node},
    direct::{self, Arrival, Way},
    host::HostTables,
    packet::{Ethernet, Fault, Frame as _, Parsed, Transport, Vxlan, ipv4, ipv6, neighbour_target, quoted, transport},
    tables::Size,
    underlay::{self, Passage},
    verdict::{self, Meta, Outcome},
};
use bulkhead_fixtures::{
    Frame,
    catalogue::{B, NODE_A, NODE_B, VNI},
};

use crate::node::{SLOT, tables};

/// What of a packet is read, as far as it concerns us.
type Read = (Transport, u8, bool, bool);

fn read(frame: &[u8]) -> Parsed<Option<(usize, Read)>> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    Ok(match ethernet.ethertype() {
        Ethernet::IPV4 => {
            let ip = ipv4(frame, Ethernet::LEN)?;
            Some((ip.transport, (transport(frame, &ip, false)?, ip.hop_limit, ip.fragment, ip.later_fragment)))
        }
        Ethernet::IPV6 => {
            let ip = ipv6(frame, Ethernet::LEN)?;
            Some((ip.transport, (transport(frame, &ip, true)?, ip.hop_limit, ip.fragment, ip.later_fragment)))
        }
        _ => None,
    })
}

/// Reads a frame with everything inside.
///
/// # Panics
/// If what is read depends on bytes behind the headers, or lies outside of the frame.
pub(crate) fn packet(frame: &[u8]) {
    let Ok(Some((start, found))) = read(frame) else { return };
    let end = found.0.end;
    assert!(start <= end, "{found:?}");
    // A header that is not read (a later fragment's, another protocol's) need not be there.
    if let Some(headers) = frame.get(..end) {
        assert_eq!(read(headers), Ok(Some((start, found))));
    }
    for offset in [start, end] {
        let _ = neighbour_target(frame, offset);
        let _ = ipv4(frame, offset).and_then(|ip| quoted(frame, &ip, false));
        let _ = ipv6(frame, offset).and_then(|ip| quoted(frame, &ip, true));
        if let Some(vxlan) = frame.at::<Vxlan>(offset) {
            assert!(vxlan.vni().is_none_or(|vni| vni < 1 << 24));
            let _ = frame.get(offset + Vxlan::LEN..).map(read);
        }
    }
}

/// Bytes of input; zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }
}

/// A change of the tables.
struct Patch {
    /// Which table; with [`Self::ALL`] every entry of it, with [`Self::LATER`] after the packet was judged once.
    table: u8,
    entry: u8,
    offset: u16,
    value: u64,
}

impl Patch {
    const ALL: u8 = 0x40;
    const LATER: u8 = 0x80;

    fn read(input: &mut Input<'_>) -> Self {
        let [table, entry] = input.take();
        Self { table, entry, offset: u16::from_le_bytes(input.take()), value: u64::from_le_bytes(input.take()) }
    }

    /// XORs into a value; all of it with numbers that follow from the patch's, or eight bytes at its offset.
    fn into<T: Copy>(&self, seed: u64, value: &mut T) {
        // SAFETY: a type of the ABI: no padding, every bit pattern is valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut *value).cast::<u8>(), size_of::<T>()) };
        if self.table & Self::ALL == 0 {
            let at = usize::from(self.offset) % bytes.len();
            bytes[at..].iter_mut().zip(self.value.to_le_bytes()).for_each(|(byte, other)| *byte ^= other);
            return;
        }
        let mut state = self.value ^ seed << 32;
        for chunk in bytes.chunks_mut(8) {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.iter_mut().zip((mixed ^ mixed >> 31).to_le_bytes()).for_each(|(byte, other)| *byte ^= other);
        }
    }

    fn entries<K, T: Copy>(&self, table: &mut BTreeMap<K, T>) {
        let len = table.len().max(1);
        for (i, value) in table.values_mut().enumerate() {
            if self.table & Self::ALL != 0 || i == usize::from(self.entry) % len {
                self.into(i as u64, value);
            }
        }
    }

    fn apply(&self, tables: &mut HostTables) {
        match self.table & 0xf {
            0 => self.into(0, &mut tables.config),
            1 => self.entries(&mut tables.words),
            2 => self.entries(&mut tables.infos),
            3 => self.entries(&mut tables.views),
            4 => self.entries(&mut tables.ports),
            5 => self.entries(&mut tables.lists),
            6 => self.entries(&mut tables.rows),
            7 => self.entries(&mut tables.rule_counters),
            8 => self.entries(&mut tables.addresses4),
            9 => self.entries(&mut tables.addresses6),
            10 => self.entries(&mut tables.prefixes4),
            11 => self.entries(&mut tables.prefixes6),
            12 => self.entries(&mut tables.owners),
            _ => self.into(0, &mut tables.now),
        }
    }
}

/// Length of what stands before the frame in an input of [`verdict`] that changes nothing: all zero it means a forwarded packet of one
/// segment that came by the overlay.
pub(crate) const PLAIN: usize = 8;
/// Length of a patch in the input.
const PATCH: usize = 12;

/// An input, read.
struct Case<'a> {
    meta: Meta,
    vlan: u16,
    /// Changes after the packet was judged once.
    later: Vec<Patch>,
    /// Changes before.
    now: Vec<Patch>,
    frame: &'a [u8],
}

impl<'a> Case<'a> {
    fn read(input: &'a [u8]) -> Self {
        let mut input = Input(input);
        let [flags, slot] = input.take();
        let packet_mark = u32::from_le_bytes(input.take()) ^ mark::VERIFIED;
        let [segments, patches] = input.take();
        let patches = (0..patches.min((input.0.len() / PATCH) as u8)).map(|_| Patch::read(&mut input));
        let (later, now) = patches.partition(|patch| patch.table & Patch::LATER != 0);
        let frame = input.0;
        let meta = Meta {
            slot: SLOT + u32::from(slot % 8),
            len: frame.len() as u32,
            segments: segments.into(),
            vlan: flags & 1 != 0,
            transit: flags & 2 == 0,
            mark: packet_mark,
        };
        Self { meta, vlan: if flags & 4 == 0 { 0 } else { slot.into() }, later, now, frame }
    }
}

/// Judges a frame over a node's tables, some of whose bytes the input changes, before and between its packets.
///
/// # Panics
/// If a packet is counted twice or not at all, a dropped one makes a flow, or one that passed does not pass again; and as [`alike`] does.
pub(crate) fn verdict(input: &[u8]) {
    let Case { meta, vlan, later, now, frame } = Case::read(input);
    let mut tables = tables();
    now.iter().for_each(|patch| patch.apply(&mut tables));
    both_ways(&tables, frame, &meta);
    later.iter().for_each(|patch| patch.apply(&mut tables));
    both_ways(&tables, frame, &meta);
    on_the_underlay(&tables, frame, &meta, vlan);
    short(input);
    forwarded(input);
}

/// The same input, the short way first, as the programs go: see [`alike`].
fn short(input: &[u8]) {
    let Case { meta, later, now, frame, .. } = Case::read(input);
    let mut nodes = [tables(), tables()];
    for patches in [now, later] {
        nodes.iter_mut().for_each(|node| patches.iter().for_each(|patch| patch.apply(node)));
        for direction in [Direction::Egress, Direction::Ingress] {
            alike(&nodes, direction, frame, &meta);
        }
    }
}

/// The same input over a node that forwards directly and one that does not: judged, counted and remembered alike.
fn forwarded(input: &[u8]) {
    let Case { meta, later, now, frame, .. } = Case::read(input);
    let mut nodes = [tables(), tables()];
    // Whoever the frame is for, it may be the node's to route.
    let router = frame.first_chunk().copied().unwrap_or_default();
    for (slot, info) in nodes.iter_mut().flat_map(|node| &mut node.infos) {
        (info.link, info.bridge, info.router) = (*slot, 1, router);
    }
    nodes[1].node.insert(node::DIRECT, 1);
    nodes[1].node.insert(node::OVERLAY_LINK, 1);
    for patches in [now, later] {
        nodes.iter_mut().for_each(|node| patches.iter().for_each(|patch| patch.apply(node)));
        for direction in [Direction::Egress, Direction::Ingress] {
            let [by_node, directly] = nodes.each_ref().map(|node| {
                let outcome = judged(node, direction, frame, &meta)?;
                Ok::<_, Fault>((outcome.pass, outcome.reason, outcome.is_provisional()))
            });
            assert_eq!(by_node, directly, "{direction:?}: {nodes:#?}");
            let [by_node, directly] = nodes.each_ref().map(|node| left_but(node, Flow::DIRECT));
            assert!(by_node == directly, "{direction:?}: {nodes:#?}");
            // Whatever these are asked about, they send nobody's frame to nobody.
            if let Ok(Way::Link(link)) = direct::leaves(&nodes[1], frame, meta.slot) {
                let to = &nodes[1].infos[&link];
                assert!(link != meta.slot && frame.starts_with(&to.mac), "{link}: {nodes:#?}");
            }
            if let Ok(Arrival::Link(mac, link)) = direct::arrives(&nodes[1], frame, VNI, meta.mark, 1) {
                assert_eq!(nodes[1].infos[&link].mac, mac, "{link}: {nodes:#?}");
                assert!(meta.mark & mark::VERIFIED != 0, "nobody has checked it: {meta:?}");
            }
            direct::gives_up(&nodes[1], frame, meta.slot);
            let translated = |flow: &Flow| flow.flags & Flow::SERVICE != 0 && flow.initiator & Flow::DIRECT != 0;
            let (four, six) = (nodes[1].flows4(), nodes[1].flows6());
            assert!(
                !four.values().chain(six.values()).any(translated),
                "a service's flow is the node's: {:#?}",
                nodes[1]
            );
        }
    }
}

/// Two packets over two nodes that are the same: what takes the short way is judged, counted and remembered as on the long one. Tells whether one took it.
///
/// # Panics
/// If that does not hold.
pub(crate) fn alike([long, short]: &[HostTables; 2], direction: Direction, frame: &[u8], meta: &Meta) -> bool {
    let mut taken = false;
    // The second one finds what the first one left.
    for _ in 0..2 {
        let known = verdict::established(short, frame, meta, direction);
        taken |= known.is_some();
        let known = known.map_or_else(|| judged(short, direction, frame, meta), Ok);
        assert_eq!(judged(long, direction, frame, meta), known, "{direction:?}: {long:#?}");
        assert!(left(long) == left(short), "{direction:?}: {long:#?} and {short:#?}");
    }
    taken
}

fn judged(tables: &HostTables, direction: Direction, frame: &[u8], meta: &Meta) -> Parsed<Outcome> {
    match direction {
        Direction::Egress => verdict::from_workload(tables, frame, meta),
        Direction::Ingress => verdict::to_workload(tables, frame, meta),
    }
}

fn both_ways(tables: &HostTables, frame: &[u8], meta: &Meta) {
    for direction in [Direction::Egress, Direction::Ingress] {
        if judge(tables, direction, frame, meta) {
            assert!(judge(tables, direction, frame, meta), "{direction:?}: passed once and not again: {tables:#?}");
        }
    }
}

/// The same input, whose frame another node's VTEP sends: what XDP drops by policy TC drops too, and all that either leaves in the tables is the
/// same; what XDP lets pass it leaves no trace of. Tells whether it dropped.
///
/// # Panics
/// If that does not hold.
pub(crate) fn early(input: &[u8]) -> bool {
    let mut input = Input(input);
    let [flags, _] = input.take();
    let _: [u8; 4] = input.take();
    let [_, patches] = input.take();
    let patches: Vec<_> = (0..patches.min((input.0.len() / PATCH) as u8)).map(|_| Patch::read(&mut input)).collect();
    let inner = input.0;
    let outer = Frame::eth(NODE_A.mac, NODE_B.mac).ip(NODE_A.v4.into(), NODE_B.v4.into()).vxlan(VNI);
    let frame = outer.bytes(inner).build();
    let node = || {
        let mut tables = tables();
        tables.set_owner(VNI, B.v4.into(), 16, NODE_A.v4.into());
        tables.set_owner(VNI, B.v6.into(), 48, NODE_A.v4.into());
        patches.iter().for_each(|patch| patch.apply(&mut tables));
        if flags & 1 != 0 {
            // There is a flow already, perhaps this packet's.
            let meta = Meta { slot: SLOT, len: 0, segments: 1, vlan: false, transit: true, mark: mark::VERIFIED };
            let _ = verdict::to_workload(&tables, inner, &meta);
        }
        if flags & 2 != 0 {
            tables.words.values_mut().for_each(|word| word.0 ^= 1 << 32);
        }
        tables
    };
    let (xdp, tc) = (node(), node());
    let len = u32::try_from(frame.len()).expect("short");
    let before = left(&xdp);
    let passage = underlay::arrives(&xdp, &frame[..], len, 1, 0, true);
    if passage != Ok(Passage::Denied) {
        let dropped = matches!(passage, Ok(Passage::Drop(_)));
        assert!(dropped || left(&xdp) == before, "{passage:?} left a trace: {xdp:#?}");
        return false;
    }
    assert_eq!(underlay::arrives(&tc, &frame[..], len, 1, 0, false), Ok(Passage::Verified));
    underlay::count_verified(&tc, Size { packets: 1, bytes: len.into() });
    let slot = destination(&tc, inner).expect("an endpoint of this node");
    let mut routed = inner.to_vec();
    routed[..6].copy_from_slice(&tc.infos[&slot].mac);
    let meta = Meta { slot, len: inner.len() as u32, segments: 1, vlan: false, transit: true, mark: mark::VERIFIED };
    let outcome = verdict::to_workload(&tc, &routed[..], &meta).expect("readable");
    assert!(!outcome.pass, "{outcome:?}: {tc:#?}");
    assert_eq!(left(&xdp), left(&tc));
    true
}

/// All that packets leave behind.
fn left(tables: &HostTables) -> impl PartialEq + Debug + use<> {
    left_but(tables, 0)
}

/// The same, but how flows are forwarded.
fn left_but(tables: &HostTables, bit: u8) -> impl PartialEq + Debug + use<> {
    let but = |flow: Flow| Flow { initiator: flow.initiator & !bit, ..flow };
    let four: Vec<_> = tables.flows4().into_iter().map(|(key, flow)| (key, but(flow))).collect();
    let six: Vec<_> = tables.flows6().into_iter().map(|(key, flow)| (key, but(flow))).collect();
    let flows = (four, six);
    (tables.counters(), tables.endpoint_counters(), tables.contacts(), tables.budget(), flows)
}

/// Slot of the endpoint whose address is the destination.
fn destination(tables: &HostTables, frame: &[u8]) -> Option<u32> {
    let word = match frame.at::<Ethernet>(0)?.ethertype() {
        Ethernet::IPV4 => {
            let address = ipv4(frame, Ethernet::LEN).ok()?.destination;
            tables.addresses4.get(&AddressKey4 { segment: VNI, address })
        }
        _ => {
            let address = ipv6(frame, Ethernet::LEN).ok()?.destination;
            tables.addresses6.get(&AddressKey6 { segment: VNI, address })
        }
    };
    word.map(|word| AddressWord(*word).slot())
}

fn flows(tables: &HostTables) -> usize {
    tables.flows4().len() + tables.flows6().len()
}

/// Packets in all counters.
fn counted(tables: &HostTables) -> u64 {
    let packets = |counter: &Counter| counter.packets;
    let rules: u64 = tables.counters().values().map(packets).sum();
    rules + tables.endpoint_counters().values().map(packets).sum::<u64>()
}

/// Whether it passes.
fn judge(tables: &HostTables, direction: Direction, frame: &[u8], meta: &Meta) -> bool {
    let (packets, known) = (counted(tables), flows(tables));
    let outcome = judged(tables, direction, frame, meta);
    let (grown, known) = (counted(tables) - packets, (known, flows(tables)));
    match outcome {
        Ok(Outcome { pass, .. }) => {
            assert_eq!(grown, u64::from(meta.segments.max(1)), "{outcome:?}: {tables:#?}");
            assert!(known.1 <= known.0 + usize::from(pass), "{outcome:?}: {tables:#?}");
            pass
        }
        Err(Fault::Truncated) => {
            assert_eq!((grown, known.0), (0, known.1), "{tables:#?}");
            false
        }
        Err(Fault::Malformed) => panic!("dropped and not counted"),
    }
}

fn on_the_underlay(tables: &HostTables, frame: &[u8], meta: &Meta, vlan: u16) {
    let segments = u64::from(meta.segments.max(1));
    let before = counted(tables);
    let passage = underlay::arrives(tables, frame, meta.len, meta.segments, vlan, false);
    let dropped = matches!(passage, Ok(Passage::Drop(_)));
    assert_eq!(counted(tables) - before, if dropped { segments } else { 0 }, "{passage:?}: {tables:#?}");
    assert_ne!(passage, Err(Fault::Malformed));

    let before = counted(tables);
    let forwards = underlay::forwards_tunnel(tables, frame, meta.len, meta.segments);
    assert_eq!(counted(tables) - before, if forwards == Ok(true) { segments } else { 0 }, "{forwards:?}: {tables:#?}");
    assert_ne!(forwards, Err(Fault::Malformed));

    let before = counted(tables);
    let nested = underlay::nested(tables, frame, meta.mark >> 3, meta.len, meta.segments);
    assert_eq!(counted(tables) - before, if nested == Ok(true) { segments } else { 0 }, "{nested:?}: {tables:#?}");
    assert_ne!(nested, Err(Fault::Malformed));

    let before = counted(tables);
    let passes = underlay::decapsulated(tables, meta.mark >> 3, meta.mark, meta.len, meta.segments);
    assert_eq!(counted(tables) - before, if passes { 0 } else { segments }, "{tables:#?}");
}
