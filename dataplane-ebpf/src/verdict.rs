//! The verdict: which packets a workload may send and get.
//!
//! [`from_workload`] and [`to_workload`] are the whole of what the programs on a workload's link do with a frame, and [`translated`] of what becomes
//! of it between the two when the node has put another destination in its place; they run unchanged on the host. They return [`Fault::Truncated`]
//! when a header is not readable: the program then makes more of the packet readable and calls again, and a packet that ends there is malformed.

pub(crate) mod early;
mod established;

pub use self::established::established;
use crate::{
    abi::{
        Action, AddressWord, BACKENDS, Backend, Class, Contact, ContactKey, Direction, ENDPOINT_ADDRESSES,
        EndpointInfo, EndpointWord, Entry, Flow, LIST_CHAIN, LIST_ENTRIES, Mode, PORT_INTERVALS, PortTable, ROW_WORDS,
        ServiceKey, ServiceWord, TRANSLATED, VIEW_CHAIN, View, endpoint_counter, mark, node, tenant,
    },
    direct,
    family::{Family, V4, V6, same},
    packet::{
        Arp, Ethernet, Fault, Frame, Ip, NeighbourOption, Parsed, Role, Transport, neighbour, neighbour_target,
        protocol, quoted, same_mac,
    },
    reason::Reason,
    tables::{FlowRef, Lists, Size, Tables},
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
    /// Our bits of `skb->mark`, as [`mark`] has them.
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
    /// What comes next.
    pub next: Next,
}

/// What comes after an [`Outcome`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Settled = 0,
    /// It goes to a service address, and where that leads needs another verdict: see [`translated`].
    Provisional = 1,
    /// Nothing is settled: the lists have to be asked, by [`decide`], and the tables have kept the case. The kernel half jumps there, so that its
    /// verifier looks at it once, with a stack of its own. IPv4.
    Decide4 = 2,
    /// The same, IPv6.
    Decide6 = 3,
    /// It may be forwarded directly, see [`crate::direct`].
    Direct = 4,
}

impl Next {
    #[inline(always)]
    const fn of(provisional: bool, direct: bool) -> Self {
        match (provisional, direct) {
            (true, _) => Self::Provisional,
            (false, true) => Self::Direct,
            (false, false) => Self::Settled,
        }
    }
}

impl Outcome {
    /// The lists have to be asked.
    #[must_use]
    #[inline(always)]
    pub const fn undecided(next: Next) -> Self {
        Self { pass: false, reason: Reason::None, next }
    }

    /// Whether it needs another verdict.
    #[must_use]
    #[inline(always)]
    pub const fn is_provisional(&self) -> bool {
        matches!(self.next, Next::Provisional)
    }

    /// Passes without a verdict of its own, and is counted elsewhere.
    const UNJUDGED: Self = Self { pass: true, reason: Reason::None, next: Next::Settled };

    #[inline(always)]
    const fn of(reason: Reason) -> Self {
        Self { pass: !reason.blocked(), reason, next: Next::Settled }
    }
}

/// Judges what a workload sends.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn from_workload<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let judged = judge_sent(tables, frame, meta);
    settled(judged, tables, meta, Direction::Egress)
}

#[inline(always)]
fn judge_sent<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Judged {
    let info = endpoint(tables, meta)?;
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    if meta.vlan || ethernet.tagged() {
        return Err(Stop::Settled(Reason::VlanTag));
    }
    if !same_mac(&ethernet.source, &info.mac) {
        return Err(Stop::Settled(Reason::SpoofedMac));
    }
    match ethernet.ethertype() {
        Ethernet::IPV4 => ip::<V4, T, F>(tables, frame, meta, info, Direction::Egress, false),
        Ethernet::IPV6 => ip::<V6, T, F>(tables, frame, meta, info, Direction::Egress, false),
        Ethernet::ARP => Err(Stop::Settled(arp(frame, info, meta.len)?)),
        _ => Err(Stop::Settled(Reason::NotIp)),
    }
}

/// Judges what a workload gets.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn to_workload<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let judged = judge_received(tables, frame, meta);
    settled(judged, tables, meta, Direction::Ingress)
}

#[inline(always)]
fn judge_received<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Judged {
    let info = endpoint(tables, meta)?;
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let group = ethernet.to_group();
    if !group && !same_mac(&ethernet.destination, &info.mac) {
        return Err(Stop::Settled(Reason::NotForUs));
    }
    if meta.vlan || ethernet.tagged() {
        return Err(Stop::Settled(Reason::VlanTag));
    }
    match ethernet.ethertype() {
        Ethernet::IPV4 => ip::<V4, T, F>(tables, frame, meta, info, Direction::Ingress, group),
        Ethernet::IPV6 => ip::<V6, T, F>(tables, frame, meta, info, Direction::Ingress, group),
        Ethernet::ARP => {
            let known = frame.at::<Arp>(Ethernet::LEN).ok_or(Fault::Truncated)?.known();
            Err(Stop::Settled(if known { Reason::Resolution } else { Reason::SpoofedResolution }))
        }
        _ => Err(Stop::Settled(Reason::NotIp)),
    }
}

/// A verdict, or why there is none yet.
type Judged = Result<Outcome, Stop>;

/// What ends the judging of a packet before a flow or a list decides.
#[derive(Clone, Copy)]
enum Stop {
    /// See [`Fault::Truncated`].
    Truncated,
    /// No rule is asked: this is what the packet is counted for, and it passes or not by that.
    Settled(Reason),
    /// An error that a workload sends about a flow whose packets are forwarded directly.
    Direct,
}

impl From<Fault> for Stop {
    #[inline(always)]
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Truncated => Self::Truncated,
            Fault::Malformed => Self::Settled(Reason::Malformed),
        }
    }
}

/// Settles what no rule decides, in one place: the compiler copies whatever stands in several into each of them.
#[inline(always)]
fn settled<T: Tables>(judged: Judged, tables: &T, meta: &Meta, direction: Direction) -> Parsed<Outcome> {
    match judged {
        Ok(outcome) => Ok(outcome),
        Err(Stop::Truncated) => Err(Fault::Truncated),
        Err(Stop::Settled(reason)) => Ok(settle(tables, meta, direction, reason)),
        Err(Stop::Direct) => Ok(Outcome { next: Next::Direct, ..settle(tables, meta, direction, Reason::Related) }),
    }
}

#[inline(always)]
fn endpoint<'a, T: Tables>(tables: &'a T, meta: &Meta) -> Result<&'a EndpointInfo, Stop> {
    tables.info(meta.slot).filter(|info| info.identity != 0).ok_or(Stop::Settled(Reason::NoEndpoint))
}

/// Counts what no rule decided. What is not for this workload is no matter of enforcement: it is dropped where all else passes, too.
#[inline(always)]
fn settle<T: Tables>(tables: &T, meta: &Meta, direction: Direction, reason: Reason) -> Outcome {
    let passes = reason.blocked() && !matches!(reason, Reason::NotForUs) && observes(tables, meta.slot, tables.now());
    let reason = if passes { Reason::Observed } else { reason };
    tables.count_endpoint(endpoint_counter(meta.slot, direction, reason as u8), meta.size(0), 0);
    Outcome::of(reason)
}

/// Whether what is forbidden passes: the endpoint or the node only observes, or enforcement is bypassed for a while.
#[inline(always)]
pub fn observes<T: Tables>(tables: &T, slot: u32, now: u64) -> bool {
    tables.endpoint(slot).mode() as u8 == Mode::Observe as u8 || node_observes(tables, now)
}

/// As [`observes`], of the node.
#[inline(always)]
pub fn node_observes<T: Tables>(tables: &T, now: u64) -> bool {
    tables.node(node::OBSERVE) != 0 || now < tables.node(node::BYPASS)
}

/// A workload's ARP may state its own addresses only; a probe (RFC 5227) states none. Nor does it say much beside that: the frame is no longer than the
/// shortest of Ethernet.
#[inline(always)]
fn arp<F: Frame + ?Sized>(frame: &F, info: &EndpointInfo, len: u32) -> Parsed<Reason> {
    let arp: &Arp = frame.at(Ethernet::LEN).ok_or(Fault::Truncated)?;
    let sender = u32::from_ne_bytes(arp.sender);
    let honest = arp.known()
        && len <= Ethernet::SHORTEST
        && same_mac(&arp.sender_mac, &info.mac)
        && (V4::own(info, sender).is_some() || sender == 0 && arp.request());
    Ok(if honest { Reason::Resolution } else { Reason::SpoofedResolution })
}

/// Whether somebody with this address may be on the endpoint's link: it is known in the segment, of its overlay (some of which is behind the node where that
/// routes), or of the /64 of an own address, whose other half names the interface (RFC 4291).
#[inline(always)]
fn on_link<T: Tables>(tables: &T, info: &EndpointInfo, address: [u32; 4]) -> bool {
    let mut near = V6::address(tables, info.segment, address).is_some()
        || V6::prefix(tables, info.segment, address).flags() & AddressWord::OVERLAY != 0;
    for i in 0..ENDPOINT_ADDRESSES {
        if i >= info.ipv6_count as usize {
            break;
        }
        near |= info.ipv6[i][0] == address[0] && info.ipv6[i][1] == address[1];
    }
    near
}

/// Neighbour discovery and multicast listener reports that a workload sends: solicitations and reports from `::` or a link-local address,
/// advertisements of own addresses only, its own MAC in every option; nothing that routers say. `None` for other traffic.
///
/// No list is asked about it, so that it carries little else, and goes where it can be meant for: a router would pass it on into the world. It has short
/// options alone.
#[inline(always)]
fn solicitation<T: Tables, F: Frame + ?Sized>(
    tables: &T,
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
    let to = ip.destination[0].to_be();
    let destination_fits = if options == 0 {
        to >> 24 == 0xff
    } else {
        to >> 16 == 0xff02 || to & 0xffc0_0000 == 0xfe80_0000 || on_link(tables, info, ip.destination)
    };
    if ip.hop_limit != hop_limit || ip.fragment || !source_fits || !target_fits || !destination_fits {
        return Ok(Some(Reason::SpoofedResolution));
    }
    let mut offset = options;
    if options != 0 {
        for _ in 0..4 {
            let Some(option) = frame.at::<NeighbourOption>(offset) else {
                return Ok(Some(Reason::Resolution));
            };
            let claims = option.kind == 1 || option.kind == 2;
            if option.len != 1 || claims && !same_mac(&option.mac, &info.mac) {
                return Ok(Some(Reason::SpoofedResolution));
            }
            offset += 8;
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
fn value(class: Class, protocol: u8, source_port: u16, destination_port: u16, answers: bool) -> u16 {
    match class {
        Class::Other => protocol as u16,
        Class::Icmp | Class::Icmp6 if !answers => destination_port,
        Class::Icmp => 8 << 8,
        Class::Icmp6 => 128 << 8,
        _ if answers => source_port,
        _ => destination_port,
    }
}

/// Ports of the flow key. `sent` by the endpoint or to it.
#[inline(always)]
pub(crate) fn key_ports(transport: &Transport, sent: bool) -> (u16, u16) {
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

/// The view that holds now for an endpoint whose policy is asked at all; else why it is not.
#[inline(always)]
fn in_force<T: Tables>(tables: &T, word: EndpointWord, now: u64) -> Result<(u32, &View), Stop> {
    match word.mode() {
        Mode::Enforce | Mode::Observe => view_now(tables, word, now).ok_or(Stop::Settled(Reason::Pending)),
        Mode::Quarantine => Err(Stop::Settled(Reason::Quarantine)),
        Mode::Pending => Err(Stop::Settled(Reason::Pending)),
    }
}

/// What a list says: [`Action`], [`Reason`], rule and whether an audited entry said it, from the lowest byte on. One number, because the kernel half
/// hands it from function to function, and has room for few numbers more.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision(pub u64);

impl Decision {
    /// No entry matches: denied by rule 0, the isolation.
    const ISOLATED: Self = Self::new(Action::Deny as u8, Reason::Isolated as u8, 0, false);

    /// Puts one together.
    #[must_use]
    #[inline(always)]
    pub const fn new(action: u8, reason: u8, rule: u16, audit: bool) -> Self {
        Self(action as u64 | (reason as u64) << 8 | (rule as u64) << 16 | (audit as u64) << 32)
    }

    /// [`Action`].
    #[must_use]
    #[inline(always)]
    pub const fn action(self) -> u8 {
        self.0 as u8
    }

    /// [`Reason`].
    #[must_use]
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Number of the rule within the policy set.
    #[must_use]
    #[inline(always)]
    pub const fn rule(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// An audited entry decided.
    #[must_use]
    #[inline(always)]
    pub const fn audit(self) -> bool {
        self.0 >> 32 & 1 != 0
    }

    /// Let pass.
    #[must_use]
    #[inline(always)]
    pub const fn allows(self) -> bool {
        self.action() == Action::Allow as u8
    }
}

/// What is asked of the lists about a service address.
#[derive(Clone, Copy, Debug)]
pub struct Among {
    /// Index in `BACKENDS`.
    pub backends: u32,
    /// The caller's policy set.
    pub set: u32,
    /// Class.
    pub class: Class,
    /// As in [`walk`].
    pub would: bool,
    /// Another node translates: nothing is judged later.
    pub all: bool,
    /// Row of the caller, to find it among the backends; [`Among::NOBODY`] to leave that out.
    pub own: u32,
}

impl Among {
    /// No row.
    pub const NOBODY: u32 = u32::MAX;
}

/// What becomes of a call to a service address: the [`Decision`] about the backend that decided, and above it these flags.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(pub u64);

impl Choice {
    /// Judged for good after translation.
    pub const LATER: u64 = 1 << 40;
    /// Some backend is an endpoint of this node.
    pub const LOCAL: u64 = 1 << 41;
    /// A backend is a node's tunnel port.
    pub const TUNNEL: u64 = 1 << 42;
    /// There are backends.
    pub const SOME: u64 = 1 << 43;
    const FLAGS: u64 = Self::LATER | Self::LOCAL | Self::TUNNEL | Self::SOME;

    /// Of the backend that decided.
    #[must_use]
    #[inline(always)]
    pub const fn decision(self) -> Decision {
        Decision(self.0 & !Self::FLAGS)
    }

    /// Whether this flag is set.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// The provisional verdict on a call to a service address: it passes when some backend is allowed that is judged again later, and all are that are
/// not. A caller that may be a backend itself passes. Where more kinds are told apart than have room, nobody passes because of one that is missing, and
/// nobody at all where all would have to be allowed.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, among: Among) -> Choice {
    let (mut decided, mut found_flags) = (Decision::ISOLATED, 0);
    let Some(backends) = tables.backends(among.backends) else {
        return Choice(decided.0);
    };
    // Weight of what decided so far: a refusal that counts, an allowance, a refusal that another backend may still make up for.
    let mut weight = 0;
    for i in 0..BACKENDS {
        if i >= backends.len as usize {
            break;
        }
        let backend = &backends.backends[i];
        let flags = backend.flags;
        found_flags |= Choice::SOME;
        if flags & Backend::LOCAL != 0 {
            found_flags |= Choice::LOCAL;
        }
        if flags & Backend::NODE != 0 && among.class as u8 == Class::Udp as u8 && tunnel(tables, backend.target) {
            found_flags |= Choice::TUNNEL;
        }
        let later = flags & Backend::LATER != 0 && !among.all;
        if later {
            found_flags |= Choice::LATER;
        }
        let mut decision = tables.walk(among.set, among.class, backend.target, backend.row as u32, among.would);
        if flags & Backend::LOCAL != 0 && backend.row as u32 == among.own {
            decision = Decision::new(Action::Allow as u8, Reason::Rule as u8, decision.rule(), false);
        }
        let found = match (later, decision.allows()) {
            (false, false) => 4,
            (false, true) => 3,
            (true, true) => 2,
            (true, false) => 1,
        };
        if found > weight {
            (weight, decided) = (found, decision);
        }
    }
    // Kinds that have no room are not looked at. Among those that nobody judges later one might be refused.
    if backends.len as usize > BACKENDS && (among.all || backends.backends[BACKENDS - 1].flags & Backend::LATER == 0) {
        decided = Decision::ISOLATED;
    }
    Choice(decided.0 | found_flags)
}

/// The deciding entry for a value of a class and a peer's row. With `would` audited entries count as if they were enforced.
#[inline(always)]
pub fn walk<T: Lists>(tables: &T, set: u32, class: Class, value: u16, row: u32, would: bool) -> Decision {
    let mut block = interval(tables, set, class, value);
    if block & PortTable::MORE != 0 {
        // What goes on once more is no list: it denies.
        block = interval(tables, block & !PortTable::MORE, class, value);
    }
    let left_out = if would { 0 } else { Entry::AUDIT };
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
            if hits == 0 || (entry.tier as u32) < tier || entry.flags & left_out != 0 {
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

/// What a port table has for a value, see [`PortTable::lists`]; 0 where there is none.
#[inline(always)]
fn interval<T: Lists>(tables: &T, set: u32, class: Class, value: u16) -> u32 {
    let Some(table) = tables.ports(set.wrapping_mul(Class::COUNT).wrapping_add(class as u32)) else {
        return 0;
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
    if at < PORT_INTERVALS && at < table.len as usize { table.lists[at] } else { 0 }
}

/// What a matching entry says. The rank of the lowest hit, how many of the mask's bits lie below it, tells the rule.
#[inline(always)]
fn decision(entry: &Entry, hits: u64) -> Decision {
    let below = entry.mask & (hits & hits.wrapping_neg()).wrapping_sub(1);
    Decision::new(entry.action, entry.reason, entry.rule.wrapping_add(ones(below)), entry.flags & Entry::AUDIT != 0)
}

/// Number of bits set; the target has no instruction for it, and a lone rule needs none.
#[inline(always)]
const fn ones(bits: u64) -> u16 {
    if bits == 0 { 0 } else { bits.count_ones() as u16 }
}

/// What is known of a peer; `None` when that cannot be told. A forwarded packet with a node's address is masqueraded: not the address decides but
/// the prefixes, where the same address stands with what such traffic matches.
#[inline(always)]
pub(crate) fn peer<F: Family, T: Tables>(
    tables: &T,
    segment: u32,
    address: F::Address,
    masqueraded: bool,
) -> Option<AddressWord> {
    let mut found = F::address(tables, segment, address);
    if matches!(found, Some((_, false))) {
        found = F::address(tables, segment, address);
    }
    match found {
        Some((_, false)) => None,
        Some((word, true)) if !(masqueraded && word.flags() & AddressWord::NODE != 0) => Some(word),
        _ => Some(F::prefix(tables, segment, address)),
    }
}

/// Row of a local endpoint, by its first address of the family.
#[inline(always)]
fn row_of<F: Family, T: Tables>(tables: &T, slot: u32) -> Option<u32> {
    let info = tables.info(slot)?;
    Some(peer::<F, T>(tables, info.segment, F::first(info)?, false)?.row())
}

/// What flows with the endpoint in a slot keep of it, see [`tenant`].
#[inline(always)]
fn tenant_of<T: Tables>(tables: &T, slot: u32) -> u32 {
    tenant(slot, tables.info(slot).map_or(0, |info| info.tenancy))
}

/// Whether the local endpoint that a flow names is gone; its slot may be another's by now.
#[inline(always)]
fn gone<T: Tables>(tables: &T, sender: u32) -> bool {
    let slot = sender & mark::SLOT;
    slot != 0 && (tables.endpoint(slot).0 == 0 || tenant_of(tables, slot) != sender)
}

/// Whether the node may have put an address in place of a local endpoint's own: one of its own, or a service's.
#[inline(always)]
fn replaced(known: AddressWord) -> bool {
    known.flags() & (AddressWord::NODE | AddressWord::SERVICE) != 0
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
) -> Judged {
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
            if sent { solicitation(tables, frame, &ip6, &headers, info)? } else { solicited(&ip6, &headers, meta) };
        if let Some(reason) = resolution {
            return Err(Stop::Settled(reason));
        }
    }
    if own.is_none() {
        if sent {
            return Err(Stop::Settled(Reason::SpoofedSource));
        }
        if !to_group && !A::group(local) {
            return Err(Stop::Settled(Reason::NotForUs));
        }
    }
    let now = tables.now();
    let (index, view) = in_force(tables, word, now)?;
    if ip.fragment && !view.open(direction) {
        return Err(Stop::Settled(Reason::Fragment));
    }

    let good = word.with_view(index).0;
    let size = meta.size(headers.end);
    let fragment = ip.fragment;
    let packet = Packet { direction, transport: headers, remote, now, fragment, view: index, good, size };
    if headers.role == Role::Error {
        // An error has no flow of its own: it passes about one of ours, or where nothing is asked.
        let forged = !sent
            && match peer::<A, T>(tables, info.segment, remote, false) {
                None => return Err(Stop::Settled(Reason::Changing)),
                Some(known) => forged(known, meta),
            };
        let related = if forged { None } else { related::<A, T, F>(tables, frame, meta, info, view, &ip, &packet)? };
        let reason = if forged {
            Reason::PlainOverlaySource
        } else if let Some(direct) = related {
            if direct {
                return Err(Stop::Direct);
            }
            Reason::Related
        } else if view.open(direction) {
            Reason::NotIsolated
        } else {
            Reason::NoFlow
        };
        return Err(Stop::Settled(reason));
    }
    let key = own.filter(|_| !ip.fragment).map(|own| {
        let (local_port, remote_port) = key_ports(&headers, sent);
        A::key((local, own), remote, local_port, remote_port, ip.protocol)
    });
    let via = if sent { Via::begins(direct::may(tables, meta.slot, info)) } else { Via::came(meta) };
    flow_or_lists::<A, T>(tables, meta, &packet, key, via)
}

/// How a packet of a flow's initiator is forwarded, which its flow follows: see [`direct`].
#[derive(Clone, Copy)]
struct Via(u8);

impl Via {
    /// Directly.
    const DIRECT: u8 = 1;
    /// A flow that is known follows it, too.
    const KNOWN: u8 = 2;

    /// It leaves its workload: a flow that is known stays as it is.
    #[inline(always)]
    const fn begins(direct: bool) -> Self {
        Self(direct as u8)
    }

    /// It enters its workload.
    #[inline(always)]
    const fn came(meta: &Meta) -> Self {
        Self(Self::KNOWN | (meta.transit && meta.mark & mark::DIRECT == mark::DIRECT) as u8)
    }

    /// The node has translated it.
    const TRANSLATED: Self = Self(Self::KNOWN);

    /// A flow that is known follows its initiator's packets; and where the node has seen an answer, it has to see all that follows, too.
    #[inline(always)]
    fn follow(self, flow: FlowRef, answers: bool) {
        let direct = self.0 & Self::DIRECT != 0;
        if self.0 & Self::KNOWN != 0 && flow.is_direct() != direct && !(answers && direct) {
            flow.set_direct(direct);
        }
    }
}

/// By the flow that the packet belongs to, if there is one that holds, else by the lists.
#[inline(always)]
fn flow_or_lists<A: Family, T: Tables>(
    tables: &T,
    meta: &Meta,
    packet: &Packet<A::Address>,
    key: Option<A::FlowKey>,
    via: Via,
) -> Judged {
    let Packet { direction, transport, remote, size, now, good, view, .. } = *packet;
    let sent = matches!(direction, Direction::Egress);
    let flow = key.as_ref().and_then(|key| A::flow(tables, meta.slot, key));
    if let Some(flow) = flow {
        let answers = flow.initiator() != direction as u8;
        if flow.word() == good
            && !(answers && transport.role == Role::Begin)
            && (sent || from_peer(flow, meta, answers))
        {
            let flags = flow.flags();
            if !sent && flags & Flow::ENCAPSULATED != 0 && meta.mark & mark::VERIFIED == 0 {
                return Err(Stop::Settled(Reason::PlainOverlaySource));
            }
            return Ok(goes_on(tables, flow, direction, size, now, transport.tcp_flags, via));
        }
    }
    let case = Case {
        key: key.unwrap_or_default(),
        remote,
        now,
        good,
        packets: size.packets,
        bytes: size.bytes,
        slot: meta.slot,
        mark: meta.mark,
        view,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        direction: direction as u8,
        class: transport.class as u8,
        role: transport.role as u8,
        protocol: transport.protocol,
        tcp_flags: transport.tcp_flags,
        keyed: key.is_some() as u8,
        fragment: packet.fragment as u8,
        transit: meta.transit as u8,
        held: flow.is_some() as u8,
        via: via.0,
    };
    Ok(A::decide(tables, case, flow))
}

/// Passes a packet of a flow that holds, and counts it.
#[inline(always)]
fn goes_on<T: Tables>(
    tables: &T,
    flow: FlowRef,
    direction: Direction,
    size: Size,
    now: u64,
    tcp_flags: u8,
    via: Via,
) -> Outcome {
    let answers = flow.initiator() != direction as u8;
    let side = answers as usize;
    via.follow(flow, answers);
    // What is judged again after translation is counted there.
    let sent = matches!(direction, Direction::Egress);
    let provisional = sent && !answers && flow.flags() & Flow::PROVISIONAL != 0;
    if provisional {
        flow.account(side, Size::NONE, now, tcp_flags);
    } else {
        flow.account(side, size, now, tcp_flags);
        tables.count(flow.counter().wrapping_add(side as u32), size, 0);
    }
    let next = Next::of(provisional, sent && flow.is_direct());
    Outcome { pass: true, reason: if answers { Reason::Reply } else { Reason::Rule }, next }
}

/// Whether a packet that arrives was sent by whom the flow is with. Marks tell local endpoints from whoever has their addresses; and of what has a
/// node's address, its own packets and those that pass through it are of two senders.
#[inline(always)]
fn from_peer(flow: FlowRef, meta: &Meta, answers: bool) -> bool {
    let flags = flow.flags();
    (flags & Flow::SERVICE != 0 || flow.sender() & mark::SLOT == sender(meta))
        && (answers || (flags & Flow::TRANSIT != 0) == meta.transit)
}

/// Whether a packet that arrives lacks what packets with its source have: the bit of the check on the underlay, or the mark of a local endpoint.
#[inline(always)]
fn forged(source: AddressWord, meta: &Meta) -> bool {
    source.flags() & AddressWord::ENCAPSULATED != 0 && meta.mark & mark::VERIFIED == 0
        || source.slot() != 0 && source.slot() != sender(meta)
}

/// What is known of a packet when its flow is looked for.
struct Packet<A> {
    direction: Direction,
    transport: Transport,
    remote: A,
    now: u64,
    /// A fragment, in a direction in which nothing denies.
    fragment: bool,
    /// Index of the view.
    view: u32,
    /// The word that flows of this endpoint shall have now.
    good: u64,
    size: Size,
}

/// What is known of a packet when the lists are asked: plain memory, which the kernel half keeps while it jumps to another program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Case<K, A> {
    key: K,
    remote: A,
    now: u64,
    good: u64,
    packets: u64,
    bytes: u64,
    slot: u32,
    mark: u32,
    view: u32,
    source_port: u16,
    destination_port: u16,
    direction: u8,
    class: u8,
    role: u8,
    protocol: u8,
    tcp_flags: u8,
    /// `key` is one.
    keyed: u8,
    /// No list is asked: what has no transport header passes where nothing denies.
    fragment: u8,
    transit: u8,
    /// A flow stands in the table under `key`.
    held: u8,
    /// [`Via`].
    via: u8,
}

impl<K, A> Case<K, A> {
    /// The flow that stands in the table, if one does.
    #[inline(always)]
    pub fn flow<F: Family<FlowKey = K, Address = A>, T: Tables>(&self, tables: &T) -> Option<FlowRef> {
        if self.held == 0 { None } else { F::flow(tables, self.slot, &self.key) }
    }
}

/// Whether an ICMP error is about a flow of ours that holds; one that was judged under another word is judged again, and refreshed by its own packets.
/// If so, whether the error is to be forwarded directly.
#[inline(always)]
fn related<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    meta: &Meta,
    info: &EndpointInfo,
    view: &View,
    ip: &Ip<A::Address>,
    packet: &Packet<A::Address>,
) -> Parsed<Option<bool>> {
    // An error that arrives is about what the endpoint sent, and the other way round; it goes to who sent what it is about.
    let quoted_sent = matches!(packet.direction, Direction::Ingress);
    let inner = match A::parse(frame, packet.transport.end) {
        Ok(inner) if inner.source == ip.destination => inner,
        Err(Fault::Truncated) if !frame.whole() => return Err(Fault::Truncated),
        _ => return Ok(None),
    };
    let transport = match quoted(frame, &inner, A::V6) {
        Ok(transport) => transport,
        Err(Fault::Truncated) if !frame.whole() => return Err(Fault::Truncated),
        Err(_) => return Ok(None),
    };
    let (local, remote) =
        if quoted_sent { (inner.source, inner.destination) } else { (inner.destination, inner.source) };
    let Some(own) = A::own(info, local) else {
        return Ok(None);
    };
    let (local_port, remote_port) = key_ports(&transport, quoted_sent);
    let key = A::key((local, own), remote, local_port, remote_port, inner.protocol);
    let Some(flow) = A::flow(tables, meta.slot, &key) else {
        return Ok(None);
    };
    let yes = Ok(Some(!quoted_sent && flow.is_direct()));
    if flow.word() == packet.good {
        return yes;
    }
    let initiator = Direction::from_u8(flow.initiator());
    let incoming = matches!(initiator, Direction::Ingress);
    let masqueraded = incoming && flow.flags() & Flow::TRANSIT != 0;
    let sender = flow.sender();
    // A workload reaches itself.
    if sender & mark::SLOT == meta.slot {
        return yes;
    }
    let Transport { class, protocol, source_port, destination_port, .. } = transport;
    let value = value(class, protocol, source_port, destination_port, incoming == quoted_sent);
    let left = incoming && gone(tables, sender);
    let row = match sender & mark::SLOT {
        slot if incoming && slot != 0 && !left => row_of::<A, T>(tables, slot),
        _ => {
            let Some(known) = peer::<A, T>(tables, info.segment, remote, masqueraded && !left) else {
                return Ok(None);
            };
            if left && replaced(known) {
                return Ok(None);
            }
            // Where it leads is judged with its next packet; what passes until then are errors about what did pass.
            if !incoming && translates(tables, &service_key::<A>(info, known, remote, value, protocol), known) {
                return yes;
            }
            Some(known.row())
        }
    };
    let set = view.half(initiator).set;
    if row.is_some_and(|row| tables.walk(set, class, value, row, false).allows()) { yes } else { Ok(None) }
}

/// Asks the lists: for a packet that begins a flow, or for a flow that was judged under another word, in its initiator's direction.
#[inline(always)]
pub fn decide<A: Family, T: Tables>(tables: &T, case: &Case<A::FlowKey, A::Address>, flow: Option<FlowRef>) -> Outcome {
    let meta = Meta {
        slot: case.slot,
        len: case.bytes as u32,
        segments: case.packets as u32,
        vlan: false,
        transit: case.transit != 0,
        mark: case.mark,
    };
    match asked::<A, T>(tables, case, &meta, flow) {
        Ok(outcome) => outcome,
        Err(reason) => settle(tables, &meta, Direction::from_u8(case.direction), reason),
    }
}

/// What the lists say, or why they cannot be asked.
#[inline(always)]
fn asked<A: Family, T: Tables>(
    tables: &T,
    case: &Case<A::FlowKey, A::Address>,
    meta: &Meta,
    flow: Option<FlowRef>,
) -> Result<Outcome, Reason> {
    let direction = Direction::from_u8(case.direction);
    let (class, role) = (Class::from_u8(case.class), Role::from_u8(case.role));
    let (Some(info), Some(view)) = (tables.info(case.slot), tables.view(case.view)) else {
        return Err(Reason::NoEndpoint);
    };
    let begins = role == Role::Begin;
    let ingress = matches!(direction, Direction::Ingress);
    let Some(word) = peer::<A, T>(tables, info.segment, case.remote, false) else {
        return Err(Reason::Changing);
    };
    if ingress && forged(word, meta) {
        return Err(Reason::PlainOverlaySource);
    }
    // Underway while its sender was removed. A flow that names who is gone would be that of the slot's next owner.
    let caller = if ingress { sender(meta) } else { 0 };
    if caller != 0 && tables.endpoint(caller).0 == 0 {
        return Err(Reason::Changing);
    }
    // Here and below: see `Tables::blur`.
    let word = AddressWord(tables.blur(word.0, case.now));
    // Of what has a node's address the marks tell who sent it.
    let at_node = word.flags() & AddressWord::NODE != 0;
    // Another flow on the same ports: begun by a SYN against the initiator's direction, or by somebody else with a node's address.
    let flow = flow.filter(|flow| {
        let answers = flow.initiator() != direction as u8;
        let same = || from_peer(*flow, meta, false) && flow.sender() == tenant_of(tables, caller);
        if answers { !begins } else { !(ingress && at_node) || same() }
    });
    let initiator = flow.map_or(direction, |flow| Direction::from_u8(flow.initiator()));
    let transit = match flow {
        Some(flow) if !ingress => flow.flags() & Flow::TRANSIT != 0,
        _ => meta.transit,
    };
    let begun = tables.blur(initiator as u64 | (transit as u64) << 1, case.now);
    let (initiator, transit) = (Direction::from_u8(begun as u8 & 1), begun & 2 != 0);
    let incoming = matches!(initiator, Direction::Ingress);
    let answers = initiator as u8 != direction as u8;
    let value = value(class, case.protocol, case.source_port, case.destination_port, answers);
    let known = if transit && incoming && at_node { A::prefix(tables, info.segment, case.remote) } else { word };
    // The local endpoint that the peer is, if it is one: by its mark where it is the initiator, since the node may have put an address in place of
    // its own, a node's or that of a service; else by its address.
    let replaced = replaced(word);
    let (party, left) = match flow {
        _ if incoming && ingress => (caller, false),
        Some(flow) if incoming && replaced => match flow.sender() {
            sender if gone(tables, sender) => (0, true),
            sender => (sender & mark::SLOT, false),
        },
        _ => (known.slot(), false),
    };
    let known = AddressWord(tables.blur(known.0, case.now));
    let party = tables.blur(party as u64 | (left as u64) << 32, case.now);
    let (party, left) = (party as u32, party >> 32 & 1);
    let row =
        if incoming && party != 0 && party != known.slot() { row_of::<A, T>(tables, party) } else { Some(known.row()) };
    let Some(row) = row else {
        return Err(Reason::Changing);
    };

    let row = tables.blur(row as u64, case.now) as u32;

    let half = view.half(initiator);
    let mut flags = if transit { Flow::TRANSIT } else { 0 };
    if known.flags() & AddressWord::ENCAPSULATED != 0 {
        flags |= Flow::ENCAPSULATED;
    }
    let mut tunnelled = false;
    let mut decision = tables.walk(half.set, class, value, row, false);
    let mut would = if view.audited(initiator) { tables.walk(half.set, class, value, row, true) } else { decision };
    // The other end's port. Where a call to it would lead to a tunnel, nothing comes from it either, so that nothing to it is ever an answer.
    let port = if ingress { case.source_port } else { case.destination_port };
    if replaced && (!incoming || class as u8 == Class::Udp as u8) {
        let node = word.flags() & AddressWord::NODE != 0;
        let service = service_key::<A>(info, word, case.remote, port, case.protocol);
        let Some(backends) = backends(tables, &service) else {
            return Err(Reason::Changing);
        };
        if backends != 0 {
            let all = node && word.flags() & AddressWord::OWN == 0;
            let mut among = Among { backends, set: half.set, class, would: false, all, own: Among::NOBODY };
            let mut choice = tables.choose(among);
            if !incoming && !choice.decision().allows() && choice.has(Choice::LOCAL) && !all {
                among.own = A::first(info)
                    .and_then(|own| peer::<A, T>(tables, info.segment, own, false))
                    .map_or(Among::NOBODY, AddressWord::row);
                choice = tables.choose(among);
            }
            tunnelled = choice.has(Choice::TUNNEL);
            // Where nobody is known to answer the address stands for itself; whoever answers all the same is judged behind the node.
            let known = choice.has(Choice::SOME);
            if !incoming && (known || !all) {
                flags = flags & !Flow::ENCAPSULATED | Flow::SERVICE;
                if known {
                    decision = choice.decision();
                }
                let later = choice.has(Choice::LATER) || !known;
                if later {
                    flags |= Flow::PROVISIONAL;
                }
                if known || later && decision.allows() {
                    would = decision;
                }
                if known && view.audited(initiator) && !(later && decision.allows()) {
                    among.would = true;
                    would = tables.choose(among).decision();
                }
            }
        }
    }
    // From the first packet on or not at all.
    let first = begins || class as u8 != Class::Tcp as u8;
    let straight = flags & Flow::SERVICE == 0 && !replaced && (known.slot() != 0 || flags & Flow::ENCAPSULATED != 0);
    let direct = case.via & Via::DIRECT != 0 && (ingress || first && straight);
    let decision = Decision(tables.blur(decision.0, case.now));
    let would = Decision(tables.blur(would.0, case.now));
    let found = tables.blur(flags as u64 | (tunnelled as u64) << 8 | (direct as u64) << 9, case.now);
    let (flags, mut tunnelled, direct) = (found as u8, found >> 8 & 1 != 0, found >> 9 & 1);
    // No node's tunnel port calls or is called by a workload, so that no answer goes there either.
    if class as u8 == Class::Udp as u8 && tunnel(tables, port) {
        tunnelled |= match A::address(tables, info.segment, case.remote) {
            Some((word, true)) => word.flags() & AddressWord::NODE != 0,
            Some((_, false)) => true,
            // What a node has in its part of an overlay need not be known here.
            None => A::prefix(tables, info.segment, case.remote).flags() & AddressWord::OVERLAY != 0,
        };
    }
    // From here to `finish` numbers instead of conditions, as far as it goes: each condition would be two ways, and all that follows looked at
    // once for each of them.
    let tunnelled = tables.blur(tunnelled as u64, case.now) & 1;
    let itself = equal(tables, party as u64, meta.slot as u64, case.now);
    let fragment = tables.blur(case.fragment as u64, case.now) & 1;
    // What the lists say counts for its rule; what overrules them does not.
    let ruled = !(itself | tunnelled | fragment | left) & 1;
    let allow = equal(tables, decision.action() as u64, Action::Allow as u64, case.now);
    let allow = (allow | itself | fragment) & !tunnelled & !left;
    let would_allow = equal(tables, would.action() as u64, Action::Allow as u64, case.now);
    let differs = ruled & (would_allow ^ allow);
    let choice = |bit, yes, no| choice(tables, bit, yes, no, case.now);
    let reason = choice(itself, Reason::Itself as u64, decision.reason() as u64);
    let reason = choice(fragment, Reason::NotIsolated as u64, reason);
    let reason = choice(left, Reason::Revoked as u64, reason);
    let reason = choice(tunnelled, Reason::Tunnel as u64, reason);
    let observed = tables.blur((allow == 0 && observes(tables, meta.slot, case.now)) as u64, case.now) & 1;
    let flags = flags as u64 & !choice(observed | fragment, Flow::PROVISIONAL as u64, 0);
    let answers = (begun ^ case.direction as u64) & 1;
    let packed = reason
        | flags << 8
        | allow << 16
        | observed << 17
        | ruled << 18
        | differs << 19
        | answers << 20
        | itself << 21
        | direct << 22
        | (tenant_of(tables, party) as u64) << 32;
    // Where no audited entry decided, an index beyond the table, which reads as 0.
    let first = half.counters;
    let audited = choice(would.audit() as u64, 0, u32::MAX as u64) as u32;
    let counter = tables.rule_counter(first.wrapping_add(decision.rule() as u32));
    let would = tables.rule_counter(first.wrapping_add(would.rule() as u32) | audited);
    Ok(finish::<A, T>(tables, case, value, flow, Verdict::unpacked(tables, packed, counter, would, case.now)))
}

/// 1 for equal numbers, else 0, without a condition.
#[inline(always)]
fn equal<T: Tables>(tables: &T, a: u64, b: u64, seed: u64) -> u64 {
    let differ = a ^ b;
    // Hidden from the compiler, which would know what it amounts to; so is the result.
    let negative = tables.blur(differ.wrapping_neg(), seed);
    tables.blur((differ | negative) >> 63 ^ 1, seed)
}

/// `yes` for the bit 1, `no` for 0, likewise.
#[inline(always)]
fn choice<T: Tables>(tables: &T, bit: u64, yes: u64, no: u64, seed: u64) -> u64 {
    let mask = tables.blur(bit.wrapping_neg(), seed);
    yes & mask | no & !mask
}

/// What [`decide`] found.
#[derive(Clone, Copy)]
struct Verdict {
    reason: u8,
    /// Of the flow.
    flags: u8,
    allow: bool,
    observed: bool,
    /// The lists decided: it counts for a rule.
    ruled: bool,
    /// Audited policies say otherwise.
    differs: bool,
    answers: bool,
    itself: bool,
    /// A new flow is forwarded directly.
    direct: bool,
    counter: u32,
    /// Counter of the audited rule that says otherwise, 0 for none.
    would: u32,
    /// The local endpoint that the peer is, see [`tenant`].
    peer: u32,
}

impl Verdict {
    /// From one number, so that the verifier cannot tell the ways apart that lead here: it would look at all that follows once for each.
    #[inline(always)]
    fn unpacked<T: Tables>(tables: &T, packed: u64, counter: u32, would: u32, seed: u64) -> Self {
        let packed = tables.blur(packed, seed);
        let set = |at: u32| packed >> at & 1 != 0;
        Self {
            reason: packed as u8,
            flags: (packed >> 8) as u8,
            allow: set(16),
            observed: set(17),
            ruled: set(18),
            differs: set(19),
            answers: set(20),
            itself: set(21),
            direct: set(22),
            peer: (packed >> 32) as u32,
            counter: tables.blur(counter as u64, seed) as u32,
            would: tables.blur(would as u64, seed) as u32,
        }
    }
}

/// Does what a verdict says: keeps, makes or forgets the flow, counts, samples.
#[inline(always)]
fn finish<A: Family, T: Tables>(
    tables: &T,
    case: &Case<A::FlowKey, A::Address>,
    value: u16,
    flow: Option<FlowRef>,
    verdict: Verdict,
) -> Outcome {
    let direction = Direction::from_u8(case.direction);
    let role = Role::from_u8(case.role);
    let icmp = matches!(Class::from_u8(case.class), Class::Icmp | Class::Icmp6);
    let Verdict { flags, allow, observed, differs, answers, .. } = verdict;
    let pass = allow || observed;
    let provisional = pass && !answers && flags & Flow::PROVISIONAL != 0;
    let side = answers as u32;
    let all = Size { packets: case.packets, bytes: case.bytes };
    let size = if provisional { Size::NONE } else { all };
    let (mut new, mut direct) = (false, false);
    if pass {
        // What some verdict is against is judged at each packet, so that each is counted.
        let audit = observed || differs || verdict.itself;
        let word = if audit { 0 } else { case.good };
        let flags = if audit { flags | Flow::AUDIT } else { flags };
        let counter = if verdict.ruled && !observed { verdict.counter } else { 0 };
        let expected = if flags & Flow::SERVICE != 0 { 0 } else { verdict.peer };
        match flow {
            Some(flow) => {
                flow.set_counter(counter);
                flow.set_flags(flags);
                // Whom an answer is for is who was heard last.
                if !(answers && matches!(direction, Direction::Egress)) {
                    flow.set_sender(expected);
                }
                let via = if flags & Flow::SERVICE != 0 { Via::TRANSLATED } else { Via(case.via) };
                via.follow(flow, answers);
                direct = flow.is_direct();
                flow.set_word(word);
                flow.account(side as usize, size, case.now, case.tcp_flags);
            }
            // An answer that nobody asked for may pass; it does not turn the questions of the other side into answers.
            None if case.keyed != 0
                && !(role == Role::Continue && (icmp || observed))
                && (verdict.ruled || !observed) =>
            {
                if case.held != 0 {
                    A::remove(tables, case.slot, &case.key);
                }
                let flow = Flow {
                    word,
                    packets: [size.packets, 0],
                    bytes: [size.bytes, 0],
                    last: case.now,
                    first: case.now as u32,
                    counter,
                    initiator: direction as u8 | if verdict.direct { Flow::DIRECT } else { 0 },
                    tcp_flags: [case.tcp_flags, 0],
                    flags,
                    sender: expected,
                };
                A::insert(tables, case.slot, &case.key, &flow);
                (new, direct) = (true, verdict.direct);
            }
            None => {}
        }
    } else if let Some(flow) = flow {
        if matches!(role, Role::Begin | Role::Continue) && !icmp {
            // It is known whose it was: forgotten, what the called side sends once more would begin a flow of its own where it may send, and turn the
            // caller's packets into answers. Under the word of nobody it is judged by its initiator's direction, however often it comes.
            flow.set_flags(flags);
            flow.set_word(0);
        } else {
            A::remove(tables, case.slot, &case.key);
        }
    }

    let (mut reason, mut ruled) = (verdict.reason, verdict.ruled);
    if observed {
        (reason, ruled) = (Reason::Observed as u8, false);
    } else if !allow && answers && reason != Reason::Tunnel as u8 {
        (reason, ruled) = (Reason::Revoked as u8, false);
    } else if !allow && flow.is_none() && role == Role::Continue && verdict.reason == Reason::Isolated as u8 {
        (reason, ruled) = (Reason::NoFlow as u8, false);
    }
    let starts = matches!(role, Role::Begin | Role::Any);
    let flows = if pass { new } else { starts } as u64;
    if provisional {
        // Judged again after translation, and counted there.
    } else if ruled {
        tables.count(verdict.counter.wrapping_add(side), size, flows);
    } else {
        tables.count_endpoint(endpoint_counter(case.slot, direction, reason), size, flows);
    }
    // Of what would have been dropped the reason is kept that it would have been dropped for.
    let told = if observed { verdict.reason } else { reason };
    let mut told = (told, if verdict.ruled && !answers && told == verdict.reason { verdict.counter } else { 0 });
    let mut kept = if observed { ContactKey::OBSERVED } else { 0 };
    if differs && !provisional && !observed {
        let reason = if allow { Reason::WouldDeny } else { Reason::WouldAllow } as u8;
        if allow {
            told = (reason, verdict.would);
        } else {
            kept = ContactKey::WOULD_PASS;
        }
        if verdict.would != 0 {
            tables.count(verdict.would.wrapping_add(side), size, flows);
        } else {
            tables.count_endpoint(endpoint_counter(case.slot, direction, reason), size, flows);
        }
    }
    if !pass || !answers && (observed || differs && !provisional) {
        sample::<A, T>(tables, case, value, told, kept);
    }
    let reason = match Reason::from_u8(reason) {
        Some(reason) if !(allow && answers && ruled) => reason,
        Some(_) => Reason::Reply,
        None => Reason::None,
    };
    let sent = matches!(direction, Direction::Egress);
    Outcome { pass, reason, next: Next::of(provisional, sent && direct) }
}

/// Under what a port of a service's address, or of a node's, is kept.
#[inline(always)]
fn service_key<A: Family>(
    info: &EndpointInfo,
    known: AddressWord,
    remote: A::Address,
    port: u16,
    protocol: u8,
) -> ServiceKey {
    let node = known.flags() & AddressWord::NODE != 0;
    ServiceKey {
        segment: info.segment,
        address: if node { A::any() } else { A::mapped(remote) },
        port,
        protocol,
        padding: 0,
    }
}

/// Whether what is sent to a known address goes to backends of a service.
#[inline(always)]
fn translates<T: Tables>(tables: &T, service: &ServiceKey, known: AddressWord) -> bool {
    known.flags() & (AddressWord::SERVICE | AddressWord::NODE) != 0
        && match backends(tables, service) {
            Some(index) if index != 0 => tables.backends(index).is_some_and(|backends| backends.len != 0),
            _ => false,
        }
}

/// Index of the backends of a service address, 0 for none; `None` when that cannot be told.
#[inline(always)]
fn backends<T: Tables>(tables: &T, service: &ServiceKey) -> Option<u32> {
    for _ in 0..2 {
        match tables.service(service).map(ServiceWord) {
            None => return Some(0),
            Some(word) if word.tag() == service.tag() => return Some(word.backends()),
            Some(_) => {}
        }
    }
    None
}

/// Keeps who was denied what, or would be, as far as the budget allows.
#[inline(always)]
fn sample<A: Family, T: Tables>(
    tables: &T,
    case: &Case<A::FlowKey, A::Address>,
    value: u16,
    (reason, counter): (u8, u32),
    flags: u8,
) {
    let contact = ContactKey {
        peer: A::mapped(case.remote),
        slot: case.slot as u16,
        port: if case.class == Class::Other as u8 { 0 } else { value },
        protocol: case.protocol,
        direction: case.direction,
        reason,
        flags,
    };
    let sample = Contact {
        packets: case.packets,
        bytes: case.bytes,
        first: case.now,
        last: case.now,
        counter,
        vni: 0,
        inner: [0; 4],
    };
    tables.sample(&contact, &sample);
}

/// Whether a packet needs [`translated`] before it enters a workload: it went to a service address, and the node has chosen a backend by now.
#[must_use]
#[inline(always)]
pub const fn unsettled(transit: bool, packet_mark: u32) -> bool {
    transit && packet_mark & mark::SLOT != 0 && packet_mark & mark::FINAL == 0
}

/// Whether it needs [`translated`] before it enters an overlay: there also what no local endpoint is known to have sent, which might forge one.
#[must_use]
#[inline(always)]
pub const fn unsettled_out(transit: bool, packet_mark: u32) -> bool {
    transit && packet_mark & mark::FINAL == 0
}

/// Judges what the node translated or forwards by its sender's policy, on its way into another workload or an overlay: the sender is known by the
/// mark, since its address may have been replaced. What has no mark and a local endpoint's address is forged.
///
/// `segment` is that of the link by which it leaves.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn translated<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta, segment: u32) -> Parsed<Outcome> {
    let slot = sender(meta);
    // As its own link would see it, had it sent the packet like this.
    let meta = Meta { slot, mark: 0, ..*meta };
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let judged = match ethernet.ethertype() {
        Ethernet::IPV4 => after_translation::<V4, T, F>(tables, frame, &meta, segment),
        Ethernet::IPV6 => after_translation::<V6, T, F>(tables, frame, &meta, segment),
        // Nothing else is translated; what it is was judged where it left its workload.
        _ => Ok(Outcome::UNJUDGED),
    };
    settled(judged, tables, &meta, Direction::Egress)
}

#[inline(always)]
fn after_translation<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    meta: &Meta,
    segment: u32,
) -> Judged {
    let direction = Direction::Egress;
    let word = tables.endpoint(meta.slot);
    let ip = A::parse(frame, Ethernet::LEN)?;
    if meta.slot == 0 {
        let reason = match peer::<A, T>(tables, segment, ip.source, false) {
            None => Reason::Changing,
            Some(known) if known.slot() != 0 => Reason::PlainOverlaySource,
            Some(_) => return Ok(Outcome::UNJUDGED),
        };
        return Err(Stop::Settled(reason));
    }
    let info = endpoint(tables, meta)?;
    let headers = if ip.later_fragment {
        Transport::opaque(ip.transport, ip.protocol, A::V6)
    } else {
        frame.transport(ip.transport, ip.protocol, A::V6)?
    };
    let now = tables.now();
    let (index, view) = in_force(tables, word, now)?;
    if ip.fragment && !view.open(direction) {
        return Err(Stop::Settled(Reason::Fragment));
    }
    let own = A::own(info, ip.source).unwrap_or(TRANSLATED);
    let (local_port, remote_port) = key_ports(&headers, true);
    let key = A::key((ip.source, own), ip.destination, local_port, remote_port, ip.protocol);
    let packet = Packet {
        direction,
        transport: headers,
        remote: ip.destination,
        now,
        fragment: ip.fragment,
        view: index,
        good: word.with_view(index).0,
        size: meta.size(headers.end),
    };
    flow_or_lists::<A, T>(tables, meta, &packet, (!ip.fragment).then_some(key), Via::TRANSLATED)
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
pub const fn outgoing_mark(slot: u32, provisional: bool) -> u32 {
    (slot & mark::SLOT) | if provisional { 0 } else { mark::FINAL }
}
