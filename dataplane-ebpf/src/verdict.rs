//! The verdict: which packets a workload may send and get.
//!
//! [`from_workload`] and [`to_workload`] are the whole of what the programs on a workload's link do with a frame; they run unchanged on the host.
//! Both return [`Fault::Truncated`] when a header is not readable: the program then makes more of the packet readable and calls again, and a
//! packet that ends there is malformed.

use crate::{
    abi::{
        Action, AddressWord, Class, Contact, ContactKey, Direction, EndpointInfo, EndpointWord, Entry, Flow, Half,
        LIST_CHAIN, LIST_ENTRIES, Mode, PORT_INTERVALS, ROW_WORDS, VIEW_CHAIN, View, endpoint_counter, mark,
    },
    family::{Family, V4, V6, same},
    packet::{
        Arp, Ethernet, Fault, Frame, Ip, NeighbourOption, Parsed, Role, Transport, neighbour, neighbour_target,
        protocol, quoted, same_mac,
    },
    reason::Reason,
    tables::{FlowRef, Size, Tables},
};

/// What the kernel knows of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Slot of the link's endpoint.
    pub slot: u32,
    /// Length of the frame in bytes, all of it.
    pub len: u32,
    /// Wire segments that the frame stands for.
    pub segments: u32,
    /// A VLAN tag stands beside the frame.
    pub vlan: bool,
    /// The packet came in by an interface: a process of this node did not make it.
    pub transit: bool,
    /// `skb->mark`.
    pub mark: u32,
}

impl Meta {
    /// Size on the wire of a frame whose headers end at `headers`: each segment repeats them.
    #[inline(always)]
    fn size(&self, headers: usize) -> Size {
        let packets = if self.segments == 0 { 1 } else { self.segments as u64 };
        Size { packets, bytes: self.len as u64 + (packets - 1) * headers as u64 }
    }
}

/// What becomes of a packet. In the initiator's direction of a known flow the reason is [`Reason::Rule`], whatever allowed it at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Let it pass.
    pub pass: bool,
    /// Why.
    pub reason: Reason,
}

impl Outcome {
    #[inline(always)]
    const fn of(reason: Reason) -> Self {
        Self { pass: !reason.blocked(), reason }
    }
}

/// Judges what a workload sends.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn from_workload<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let Some(info) = endpoint(tables, meta) else {
        return Ok(settle(tables, meta, Direction::Egress, Reason::NoEndpoint));
    };
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let refusal = if meta.vlan || ethernet.tagged() {
        Reason::VlanTag
    } else if same_mac(&ethernet.source, &info.mac) {
        match ethernet.ethertype() {
            Ethernet::IPV4 => {
                return malformed(
                    ip::<V4, T, F>(tables, frame, meta, info, Direction::Egress, false),
                    tables,
                    meta,
                    Direction::Egress,
                );
            }
            Ethernet::IPV6 => {
                return malformed(
                    ip::<V6, T, F>(tables, frame, meta, info, Direction::Egress, false),
                    tables,
                    meta,
                    Direction::Egress,
                );
            }
            Ethernet::ARP => arp(frame, info)?,
            _ => Reason::NotIp,
        }
    } else {
        Reason::SpoofedMac
    };
    Ok(settle(tables, meta, Direction::Egress, refusal))
}

/// Judges what a workload gets.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn to_workload<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let Some(info) = endpoint(tables, meta) else {
        return Ok(settle(tables, meta, Direction::Ingress, Reason::NoEndpoint));
    };
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let group = ethernet.to_group();
    let refusal = if !group && !same_mac(&ethernet.destination, &info.mac) {
        Reason::NotForUs
    } else if meta.vlan || ethernet.tagged() {
        Reason::VlanTag
    } else {
        match ethernet.ethertype() {
            Ethernet::IPV4 => {
                return malformed(
                    ip::<V4, T, F>(tables, frame, meta, info, Direction::Ingress, group),
                    tables,
                    meta,
                    Direction::Ingress,
                );
            }
            Ethernet::IPV6 => {
                return malformed(
                    ip::<V6, T, F>(tables, frame, meta, info, Direction::Ingress, group),
                    tables,
                    meta,
                    Direction::Ingress,
                );
            }
            Ethernet::ARP => match frame.at::<Arp>(Ethernet::LEN).ok_or(Fault::Truncated)?.known() {
                true => Reason::Resolution,
                false => Reason::SpoofedResolution,
            },
            _ => Reason::NotIp,
        }
    };
    Ok(settle(tables, meta, Direction::Ingress, refusal))
}

#[inline(always)]
fn endpoint<'a, T: Tables>(tables: &'a T, meta: &Meta) -> Option<&'a EndpointInfo> {
    tables.info(meta.slot).filter(|info| info.identity != 0)
}

/// Counts what no rule decided.
#[inline(always)]
fn settle<T: Tables>(tables: &T, meta: &Meta, direction: Direction, reason: Reason) -> Outcome {
    tables.count_endpoint(endpoint_counter(meta.slot, direction, reason as u8), meta.size(0), 0);
    Outcome::of(reason)
}

#[inline(always)]
fn malformed<T: Tables>(parsed: Parsed<Outcome>, tables: &T, meta: &Meta, direction: Direction) -> Parsed<Outcome> {
    match parsed {
        Err(Fault::Malformed) => Ok(settle(tables, meta, direction, Reason::Malformed)),
        other => other,
    }
}

/// A workload's ARP may state its own addresses only; a probe (RFC 5227) states none.
#[inline(always)]
fn arp<F: Frame + ?Sized>(frame: &F, info: &EndpointInfo) -> Parsed<Reason> {
    let arp: &Arp = frame.at(Ethernet::LEN).ok_or(Fault::Truncated)?;
    let sender = u32::from_ne_bytes(arp.sender);
    let honest = arp.known()
        && same_mac(&arp.sender_mac, &info.mac)
        && (V4::own(info, sender).is_some() || sender == 0 && arp.request());
    Ok(if honest { Reason::Resolution } else { Reason::SpoofedResolution })
}

/// Neighbour discovery and multicast listener reports that a workload sends: solicitations and reports from `::` or a link-local address,
/// advertisements of own addresses only, its own MAC in every option; nothing that routers say. `None` for other traffic.
#[inline(always)]
fn solicitation<F: Frame + ?Sized>(
    frame: &F,
    ip: &Ip<[u32; 4]>,
    transport: &Transport,
    info: &EndpointInfo,
) -> Parsed<Option<Reason>> {
    let icmp = ip.transport;
    let (hop_limit, options) = match transport.icmp_type() {
        neighbour::SOLICITATION | neighbour::ADVERTISEMENT => (255, icmp + 24),
        neighbour::ROUTER_SOLICITATION => (255, icmp + 8),
        neighbour::LISTENER_REPORT | neighbour::LISTENER_DONE | neighbour::LISTENER_REPORT_2 => (1, 0),
        neighbour::ROUTER_ADVERTISEMENT | neighbour::REDIRECT | neighbour::LISTENER_QUERY => {
            return Ok(Some(Reason::SpoofedResolution));
        }
        _ => return Ok(None),
    };
    if !frame.whole() {
        return Err(Fault::Truncated);
    }
    let advertises = transport.icmp_type() == neighbour::ADVERTISEMENT;
    let source_fits = V6::own(info, ip.source).is_some()
        || !advertises && (same(&ip.source, &[0; 4]) || ip.source[0].to_be() & 0xffc0_0000 == 0xfe80_0000);
    let target_fits = !advertises || V6::own(info, neighbour_target(frame, icmp)?).is_some();
    if ip.hop_limit != hop_limit || ip.fragment || !source_fits || !target_fits {
        return Ok(Some(Reason::SpoofedResolution));
    }
    let mut offset = options;
    if options != 0 {
        for _ in 0..4 {
            let Some(option) = frame.at::<NeighbourOption>(offset) else {
                return Ok(Some(Reason::Resolution));
            };
            let claims = option.kind == 1 || option.kind == 2;
            if option.len == 0 || claims && !(option.len == 1 && same_mac(&option.mac, &info.mac)) {
                return Ok(Some(Reason::SpoofedResolution));
            }
            offset += option.len as usize * 8;
        }
        return Ok(Some(Reason::SpoofedResolution));
    }
    Ok(Some(Reason::Resolution))
}

/// Neighbour discovery and listener reports that arrive at a workload. What a workload sends was checked where it left; what crosses an overlay
/// needs a source that its node owns. So only the hop limit and, for what routers say, the absence of a local sender are left to check.
#[inline(always)]
fn solicited(ip: &Ip<[u32; 4]>, transport: &Transport, meta: &Meta) -> Option<Reason> {
    let fits = match transport.icmp_type() {
        neighbour::SOLICITATION | neighbour::ADVERTISEMENT | neighbour::ROUTER_SOLICITATION => ip.hop_limit == 255,
        neighbour::ROUTER_ADVERTISEMENT | neighbour::REDIRECT => ip.hop_limit == 255 && sender(meta) == 0,
        neighbour::LISTENER_QUERY
        | neighbour::LISTENER_REPORT
        | neighbour::LISTENER_DONE
        | neighbour::LISTENER_REPORT_2 => ip.hop_limit == 1,
        _ => return None,
    };
    Some(if fits && !ip.fragment { Reason::Resolution } else { Reason::SpoofedResolution })
}

/// Slot of the local endpoint that sent the packet, by its mark; 0 for none. A process of the node may set any mark: its packets have none of ours.
#[inline(always)]
fn sender(meta: &Meta) -> u32 {
    if meta.transit { meta.mark & mark::SLOT } else { 0 }
}

/// Value on the class's axis, of the packet that began the flow: this one's, or the one that this one answers.
#[inline(always)]
fn value(class: Class, transport: &Transport, answers: bool) -> u16 {
    match class {
        Class::Other => transport.protocol as u16,
        Class::Icmp | Class::Icmp6 if !answers => transport.destination_port,
        Class::Icmp => 8 << 8,
        Class::Icmp6 => 128 << 8,
        _ if answers => transport.source_port,
        _ => transport.destination_port,
    }
}

/// Ports of the flow key. `sent` by the endpoint or to it.
#[inline(always)]
fn key_ports(transport: &Transport, sent: bool) -> (u16, u16) {
    if transport.icmp() {
        return match transport.echo() {
            Some(request) => (transport.source_port, if request == sent { 1 } else { 2 }),
            // Nothing tells questions from answers: each direction is a flow of its own.
            None => (if sent { 1 } else { 2 }, transport.destination_port),
        };
    }
    if sent {
        (transport.source_port, transport.destination_port)
    } else {
        (transport.destination_port, transport.source_port)
    }
}

/// The view that holds now.
#[inline(always)]
fn view_now<T: Tables>(tables: &T, word: EndpointWord, now: u64) -> Option<(u32, &View)> {
    let mut index = word.view();
    for _ in 0..VIEW_CHAIN {
        let view = tables.view(index)?;
        if now < view.deadline {
            return Some((index, view));
        }
        index = view.next;
    }
    None
}

/// What the lists say of a peer.
#[derive(Clone, Copy)]
struct Judgement {
    allow: bool,
    reason: u8,
    /// Index in `COUNTERS`.
    counter: u32,
}

/// Finds the list of a value and walks it.
#[inline(always)]
fn judge<T: Tables>(tables: &T, half: &Half, class: Class, value: u16, row: u32) -> Judgement {
    let decision = tables.walk(half.set, class, value, row);
    let counter = tables.rule_counter(half.counters.wrapping_add(decision.rule as u32));
    Judgement { allow: decision.action == Action::Allow as u8, reason: decision.reason, counter }
}

/// What a list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// [`Action`].
    pub action: u8,
    /// [`Reason`].
    pub reason: u8,
    /// Number of the rule within the policy set.
    pub rule: u16,
}

impl Decision {
    /// No entry matches: denied by rule 0, the isolation.
    const ISOLATED: Self = Self { action: Action::Deny as u8, reason: Reason::Isolated as u8, rule: 0 };
}

/// The deciding entry for a value of a class and a peer's row.
#[inline(always)]
pub fn walk<T: Tables>(tables: &T, set: u32, class: Class, value: u16, row: u32) -> Decision {
    let Some(table) = tables.ports(set.wrapping_mul(Class::COUNT).wrapping_add(class as u32)) else {
        return Decision::ISOLATED;
    };
    // Largest interval that begins at or before the value.
    let mut at = 0;
    let mut step = 16;
    while step > 0 {
        let next = at + step;
        if next < PORT_INTERVALS && next < table.len as usize && table.starts[next] <= value {
            at = next;
        }
        step /= 2;
    }
    if at >= PORT_INTERVALS || at >= table.len as usize {
        return Decision::ISOLATED;
    }
    let mut block = table.lists[at];
    let mut tier = 0_u32;
    for _ in 0..LIST_CHAIN {
        let list = match tables.list(block) {
            Some(list) if block != 0 => list,
            _ => return Decision::ISOLATED,
        };
        for i in 0..LIST_ENTRIES {
            if i >= list.len as usize {
                break;
            }
            let entry = &list.entries[i];
            let hits = if entry.flags & Entry::ANY != 0 {
                u64::MAX
            } else {
                tables.row_word(row * ROW_WORDS + entry.word as u32) & entry.mask
            };
            if hits == 0 || (entry.tier as u32) < tier || entry.flags & Entry::AUDIT != 0 {
                continue;
            }
            if entry.action != Action::Pass as u8 {
                return decision(entry, hits);
            }
            tier = entry.tier as u32 + 1;
        }
        block = list.next;
    }
    Decision::ISOLATED
}

/// What a matching entry says. The rank of the lowest hit, how many of the mask's bits lie below it, tells the rule.
#[inline(always)]
fn decision(entry: &Entry, hits: u64) -> Decision {
    let below = entry.mask & (hits & hits.wrapping_neg()).wrapping_sub(1);
    Decision { action: entry.action, reason: entry.reason, rule: entry.rule.wrapping_add(ones(below)) }
}

/// Number of bits set; the target has no instruction for it, and a lone rule needs none.
#[inline(always)]
const fn ones(bits: u64) -> u16 {
    if bits == 0 { 0 } else { bits.count_ones() as u16 }
}

/// What is known of a peer. A forwarded packet with a node's address is masqueraded: not the address decides but the prefixes, where the same
/// address stands with what such traffic matches.
#[inline(always)]
fn peer<F: Family, T: Tables>(tables: &T, segment: u32, address: F::Address, masqueraded: bool) -> AddressWord {
    match F::address(tables, segment, address) {
        Some(word) if !(masqueraded && word.flags() & AddressWord::NODE != 0) => word,
        _ => F::prefix(tables, segment, address),
    }
}

/// Whether the egress policy of the endpoint at `slot` on this node forbids what arrives: only asked when its own link did not settle it.
#[inline(always)]
fn source_denies<F: Family, T: Tables>(
    tables: &T,
    slot: u32,
    destination: F::Address,
    class: Class,
    value: u16,
    now: u64,
) -> bool {
    let word = tables.endpoint(slot);
    if word.mode() != Mode::Enforce {
        return true;
    }
    let (Some(info), Some((_, view))) = (tables.info(slot), view_now(tables, word, now)) else {
        return true;
    };
    let row = peer::<F, T>(tables, info.segment, destination, false).row();
    tables.walk(view.egress.set, class, value, row).action != Action::Allow as u8
}

/// Judges an IP packet.
#[inline(always)]
fn ip<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    meta: &Meta,
    info: &EndpointInfo,
    direction: Direction,
    to_group: bool,
) -> Parsed<Outcome> {
    let sent = matches!(direction, Direction::Egress);
    // The endpoint's word comes first: whatever is read after it is at least as new as its epoch.
    let word = tables.endpoint(meta.slot);
    let ip = A::parse(frame, Ethernet::LEN)?;
    let (local, remote) = if sent { (ip.source, ip.destination) } else { (ip.destination, ip.source) };
    let own = A::own(info, local);

    // A first fragment is read as well: what it begins may be neighbour discovery or a tunnel's.
    let headers = if ip.later_fragment {
        Transport::opaque(ip.transport, ip.protocol, A::V6)
    } else {
        frame.transport(ip.transport, ip.protocol, A::V6)?
    };
    if A::V6 && ip.protocol == protocol::ICMP6 {
        let ip6 = Ip {
            source: A::mapped(ip.source),
            destination: A::mapped(ip.destination),
            transport: ip.transport,
            protocol: ip.protocol,
            hop_limit: ip.hop_limit,
            fragment: ip.fragment,
            later_fragment: ip.later_fragment,
        };
        let resolution =
            if sent { solicitation(frame, &ip6, &headers, info)? } else { solicited(&ip6, &headers, meta) };
        if let Some(reason) = resolution {
            return Ok(settle(tables, meta, direction, reason));
        }
    }
    if own.is_none() {
        if sent {
            return Ok(settle(tables, meta, direction, Reason::SpoofedSource));
        }
        if !to_group && !A::group(local) {
            return Ok(settle(tables, meta, direction, Reason::NotForUs));
        }
    }
    match word.mode() {
        Mode::Enforce => {}
        Mode::Quarantine => return Ok(settle(tables, meta, direction, Reason::Quarantine)),
        Mode::Pending | Mode::Observe => {
            return Ok(settle(tables, meta, direction, Reason::Pending));
        }
    }
    let now = tables.now();
    let Some((index, view)) = view_now(tables, word, now) else {
        return Ok(settle(tables, meta, direction, Reason::Pending));
    };
    if ip.fragment && !view.open(direction) {
        return Ok(settle(tables, meta, direction, Reason::Fragment));
    }

    let good = word.with_view(index).0;
    let size = meta.size(headers.end);
    let packet = Packet { direction, class: headers.class, transport: headers, remote, now, good, size };
    if headers.role == Role::Error {
        // An error has no flow of its own: it passes about one of ours, or where nothing is asked.
        let plain = !sent && meta.mark & mark::VERIFIED == 0;
        let reason =
            if plain && peer::<A, T>(tables, info.segment, remote, false).flags() & AddressWord::ENCAPSULATED != 0 {
                Reason::PlainOverlaySource
            } else if related::<A, T, F>(tables, frame, meta, info, view, &ip, &packet)? {
                Reason::Related
            } else if view.open(direction) {
                Reason::NotIsolated
            } else {
                Reason::NoFlow
            };
        return Ok(settle(tables, meta, direction, reason));
    }
    let key = own.filter(|_| !ip.fragment).map(|own| {
        let (local_port, remote_port) = key_ports(&headers, sent);
        A::key((local, own), remote, local_port, remote_port, ip.protocol)
    });
    let flow = key.as_ref().and_then(|key| A::flow(tables, meta.slot, key));
    if let Some(flow) = flow {
        let answers = flow.initiator() != direction as u8;
        if flow.word() == good
            && !(answers && headers.role == Role::Begin)
            && (sent || answers || same_sender(flow, meta))
        {
            if !sent && flow.flags() & Flow::ENCAPSULATED != 0 && meta.mark & mark::VERIFIED == 0 {
                return Ok(settle(tables, meta, direction, Reason::PlainOverlaySource));
            }
            let side = answers as usize;
            flow.account(side, size, now, headers.tcp_flags);
            tables.count(flow.counter().wrapping_add(side as u32), size, 0);
            return Ok(Outcome::of(if answers { Reason::Reply } else { Reason::Rule }));
        }
    }
    Ok(decide::<A, T>(tables, meta, info, view, &packet, key.as_ref(), flow))
}

/// Whether a packet from the initiator of a flow is its own: the node's own packets and what passes through the node with its address are two
/// senders.
#[inline(always)]
fn same_sender(flow: FlowRef, meta: &Meta) -> bool {
    (flow.flags() & Flow::TRANSIT != 0) == meta.transit
}

/// What is known of a packet when the lists are asked.
struct Packet<A> {
    direction: Direction,
    class: Class,
    transport: Transport,
    remote: A,
    now: u64,
    /// The word that flows of this endpoint shall have now.
    good: u64,
    size: Size,
}

/// Whether an ICMP error is about a flow of ours that holds; one that was judged under another word is judged again, and refreshed by its own packets.
#[inline(always)]
fn related<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    meta: &Meta,
    info: &EndpointInfo,
    view: &View,
    ip: &Ip<A::Address>,
    packet: &Packet<A::Address>,
) -> Parsed<bool> {
    // An error that arrives is about what the endpoint sent, and the other way round; it goes to who sent what it is about.
    let quoted_sent = matches!(packet.direction, Direction::Ingress);
    let inner = match A::parse(frame, packet.transport.end) {
        Ok(inner) if inner.source == ip.destination => inner,
        Err(Fault::Truncated) if !frame.whole() => return Err(Fault::Truncated),
        _ => return Ok(false),
    };
    let transport = match quoted(frame, &inner, A::V6) {
        Ok(transport) => transport,
        Err(Fault::Truncated) if !frame.whole() => return Err(Fault::Truncated),
        Err(_) => return Ok(false),
    };
    let (local, remote) =
        if quoted_sent { (inner.source, inner.destination) } else { (inner.destination, inner.source) };
    let Some(own) = A::own(info, local) else {
        return Ok(false);
    };
    let (local_port, remote_port) = key_ports(&transport, quoted_sent);
    let key = A::key((local, own), remote, local_port, remote_port, inner.protocol);
    let Some(flow) = A::flow(tables, meta.slot, &key) else {
        return Ok(false);
    };
    if flow.word() == packet.good {
        return Ok(true);
    }
    let initiator = Direction::from_u8(flow.initiator());
    let incoming = matches!(initiator, Direction::Ingress);
    let masqueraded = incoming && flow.flags() & Flow::TRANSIT != 0;
    let row = peer::<A, T>(tables, info.segment, remote, masqueraded).row();
    let value = value(transport.class, &transport, incoming == quoted_sent);
    Ok(tables.walk(view.half(initiator).set, transport.class, value, row).action == Action::Allow as u8)
}

/// Asks the lists: for a packet that begins a flow, or for a flow that was judged under another word, in its initiator's direction.
#[inline(always)]
fn decide<A: Family, T: Tables>(
    tables: &T,
    meta: &Meta,
    info: &EndpointInfo,
    view: &View,
    packet: &Packet<A::Address>,
    key: Option<&A::FlowKey>,
    flow: Option<FlowRef>,
) -> Outcome {
    let Packet { direction, class, transport, .. } = *packet;
    let begins = transport.role == Role::Begin;
    let ingress = matches!(direction, Direction::Ingress);
    let held = flow.is_some();
    // Another flow on the same ports: begun by a SYN against the initiator's direction, or by somebody else with the initiator's address.
    let flow =
        flow.filter(
            |flow| {
                if flow.initiator() == direction as u8 { !ingress || same_sender(*flow, meta) } else { !begins }
            },
        );
    let initiator = flow.map_or(direction, |flow| Direction::from_u8(flow.initiator()));
    let transit = flow.map_or(meta.transit, |flow| flow.flags() & Flow::TRANSIT != 0);
    let answers = initiator as u8 != direction as u8;

    let value = value(class, &transport, answers);
    let known = peer::<A, T>(tables, info.segment, packet.remote, transit && matches!(initiator, Direction::Ingress));
    let encapsulated = known.flags() & AddressWord::ENCAPSULATED != 0;
    if encapsulated && matches!(direction, Direction::Ingress) && meta.mark & mark::VERIFIED == 0 {
        return settle(tables, meta, direction, Reason::PlainOverlaySource);
    }
    let judgement = judge(tables, view.half(initiator), class, value, known.row());
    let mut reason = Reason::from_u8(judgement.reason).unwrap_or(Reason::None);
    let mut allow = judgement.allow;
    // What the lists say counts for its rule; what overrules them does not.
    let mut ruled = true;

    if matches!(direction, Direction::Egress)
        && class as u8 == Class::Udp as u8
        && known.flags() & AddressWord::NODE != 0
        && tunnel(tables, transport.destination_port)
    {
        (allow, reason, ruled) = (false, Reason::Tunnel, false);
    }
    if allow && !answers && matches!(direction, Direction::Ingress) && meta.mark & mark::FINAL == 0 {
        let slot = if sender(meta) != 0 { sender(meta) } else { known.slot() };
        if slot != 0 && slot != meta.slot {
            let own = A::first(info).filter(|_| key.is_some());
            if own.is_none_or(|own| source_denies::<A, T>(tables, slot, own, class, value, packet.now)) {
                (allow, reason, ruled) = (false, Reason::SourceDenied, false);
            }
        }
    }

    if allow {
        let side = answers as usize;
        let flags = if transit { Flow::TRANSIT } else { 0 } | if encapsulated { Flow::ENCAPSULATED } else { 0 };
        let new = match (flow, key) {
            (Some(flow), _) => {
                flow.set_counter(judgement.counter);
                flow.set_flags(flags);
                flow.set_word(packet.good);
                flow.account(side, packet.size, packet.now, transport.tcp_flags);
                false
            }
            // An answer that nobody asked for may pass; it does not turn the questions of the other side into answers.
            (None, Some(key)) if !(transport.icmp() && transport.role == Role::Continue) => {
                if held {
                    A::remove(tables, meta.slot, key);
                }
                let flow = Flow {
                    word: packet.good,
                    packets: [packet.size.packets, 0],
                    bytes: [packet.size.bytes, 0],
                    first: packet.now,
                    last: packet.now,
                    counter: judgement.counter,
                    initiator: direction as u8,
                    tcp_flags: [transport.tcp_flags, 0],
                    flags,
                };
                A::insert(tables, meta.slot, key, &flow);
                true
            }
            _ => false,
        };
        tables.count(judgement.counter.wrapping_add(side as u32), packet.size, new as u64);
        return Outcome { pass: true, reason: if answers { Reason::Reply } else { reason } };
    }

    if let (Some(_), Some(key)) = (flow, key) {
        A::remove(tables, meta.slot, key);
    }
    if answers {
        (reason, ruled) = (Reason::Revoked, false);
    } else if flow.is_none() && transport.role == Role::Continue && matches!(reason, Reason::Isolated) {
        (reason, ruled) = (Reason::NoFlow, false);
    }
    let starts = matches!(transport.role, Role::Begin | Role::Any) as u64;
    if ruled {
        tables.count(judgement.counter, packet.size, starts);
    } else {
        tables.count_endpoint(endpoint_counter(meta.slot, direction, reason as u8), packet.size, starts);
    }
    let contact = ContactKey {
        peer: A::mapped(packet.remote),
        slot: meta.slot as u16,
        port: if matches!(class, Class::Other) { 0 } else { value },
        protocol: transport.protocol,
        direction: direction as u8,
        reason: reason as u8,
        padding: 0,
    };
    let sample = Contact {
        packets: packet.size.packets,
        bytes: packet.size.bytes,
        first: packet.now,
        last: packet.now,
        counter: if ruled { judgement.counter } else { 0 },
        vni: 0,
        inner: [0; 4],
    };
    tables.sample(&contact, &sample);
    Outcome { pass: false, reason }
}

/// Whether a UDP port is one of the overlay's.
#[inline(always)]
pub(crate) fn tunnel<T: Tables>(tables: &T, port: u16) -> bool {
    tables.config().is_some_and(|config| {
        let ports = &config.tunnel_ports;
        port != 0 && (port == ports[0] || port == ports[1] || port == ports[2] || port == ports[3])
    })
}

/// Bits that `from_workload` leaves in the mark of what it lets pass.
#[must_use]
#[inline(always)]
pub const fn outgoing_mark(slot: u32) -> u32 {
    (slot & mark::SLOT) | mark::FINAL
}
