//! Types that lie in eBPF maps: the contract between the programs and user space.
//!
//! Every type is `repr(C)`, without implicit padding, valid for every bit pattern, and zero means deny. A change of any layout
//! here raises [`VERSION`], which is part of the pin path.
//!
//! Addresses are kept as they lie in the packet (network byte order), in native integers that are only compared:
//! `u32::from_ne_bytes(octets)` for IPv4, four of these for IPv6. Ports are host byte order. Times are jiffies of the kernel.

/// Version of the layout of maps and pins; the directory below the pin path is `v{VERSION}`.
pub const VERSION: u32 = 7;

/// Largest number of endpoints on a node, slot 0 (the node itself) included: the mark has at most 12 bits for a slot.
pub const MAX_SLOTS: u32 = 4096;
/// 64-bit words of a row: 4,096 selectors.
pub const ROW_WORDS: u32 = 64;
/// Intervals of one port table.
pub const PORT_INTERVALS: usize = 28;
/// Intervals of a policy set's class: each of its table may go on in another one.
pub const SET_INTERVALS: usize = PORT_INTERVALS * PORT_INTERVALS;
/// Entries of one block of a list.
pub const LIST_ENTRIES: usize = 8;
/// Blocks that a list may chain.
pub const LIST_CHAIN: u32 = 8;
/// Views that a chain of deadlines may have.
pub const VIEW_CHAIN: u32 = 8;
/// Addresses of each family that one endpoint may have.
pub const ENDPOINT_ADDRESSES: usize = 4;
/// VXLAN ports and own VTEP addresses that a node may have.
pub const TUNNEL_PORTS: usize = 4;
/// Own VTEP addresses of a node.
pub const OWN_VTEPS: usize = 8;
/// Distinct (row, target port) pairs that the backends of one service address may have.
pub const BACKENDS: usize = 8;

/// Bits of `skb->mark` that are Bulkhead's inside the node, where they are by default and as verdict code knows them. A node may have other places
/// for them, see [`crate::mark::Layout`].
pub mod mark {
    /// Never ours: kube-proxy's and kubelet's.
    pub const RESERVED: u32 = 0x0000_c000;
    /// All bits that are ours.
    pub const MASK: u32 = 0x3f00_0fff;
    /// The slot of the local endpoint that sent the packet.
    pub const SLOT: u32 = 0x0000_0fff;
    /// The underlay check has passed; stays on what was decapsulated until it leaves the node's network namespace.
    pub const VERIFIED: u32 = 0x0100_0000;
    /// The egress verdict needs no second look.
    pub const FINAL: u32 = 0x0200_0000;
    /// Both, which nothing else has. With a slot: it was forwarded directly, see [`crate::direct`], so that nobody can have put another address in it.
    /// Without one: it was for a workload of this node when it was decapsulated.
    pub const DIRECT: u32 = VERIFIED | FINAL;
}

/// What `skb->cb[0]` carries from the link stub of a VXLAN device to `overlay_in` and `overlay_out`: the VNI, and these flags above its 24 bits.
pub mod overlay {
    /// The VNI.
    pub const VNI: u32 = 0x00ff_ffff;
    /// The mark of the underlay check does not survive to this device (its socket is in another network namespace).
    pub const UNMARKED: u32 = 0x0100_0000;
}

/// Indexes of the pinned program arrays.
pub mod program {
    /// TC ingress of links that carry the overlay; also index 0 of the XDP array.
    pub const UNDERLAY: u32 = 0;
    /// TC egress of links that carry the overlay.
    pub const UNDERLAY_OUT: u32 = 1;
    /// TC ingress of a VXLAN device.
    pub const OVERLAY_IN: u32 = 2;
    /// TC egress of a VXLAN device.
    pub const OVERLAY_OUT: u32 = 3;
    /// Host side of a workload's veth, TC ingress.
    pub const FROM_WORKLOAD: u32 = 4;
    /// Host side of a workload's veth, TC egress.
    pub const TO_WORKLOAD: u32 = 5;
    /// The sender's egress verdict on what a node has translated; `to_workload` and `overlay_out` jump there.
    pub const TRANSLATED: u32 = 6;
    /// Asks the lists for what no flow decides, IPv4; the programs of workloads jump there.
    pub const DECIDE4: u32 = 7;
    /// The same, IPv6.
    pub const DECIDE6: u32 = 8;
    /// Forwards what a workload sent directly, see [`crate::direct`]; `from_workload` and those that ask the lists jump there.
    pub const FORWARD: u32 = 9;
    /// Length of the TC array.
    pub const COUNT: u32 = 10;
}

/// Indexes of the `NODE` array of words.
pub mod node {
    /// The epoch: node-wide, only grows.
    pub const EPOCH: u32 = 0;
    /// Jiffies until which enforcement is bypassed, 0 for none.
    pub const BYPASS: u32 = 1;
    /// Not 0: judge and count, drop nothing.
    pub const OBSERVE: u32 = 2;
    /// Generation of `VTEPS` and `OWNERS`: odd while they change and even afterwards, another one each time; what was found under another one is
    /// looked up again. 0 before the first change: nothing is kept then, nor while it is odd.
    pub const OVERLAYS: u32 = 3;
    /// Not 0: packets between workloads are forwarded directly, see [`crate::direct`].
    pub const DIRECT: u32 = 4;
    /// Indexes of the VXLAN devices that packets are forwarded into directly, as many as [`OVERLAY_LINKS`]; 0 for none.
    pub const OVERLAY_LINK: u32 = 5;
    /// How many of these there are.
    pub const OVERLAY_LINKS: u32 = 4;
    /// Length of the array.
    pub const COUNT: u32 = OVERLAY_LINK + OVERLAY_LINKS;
}

/// Direction of a packet as the workload sees it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the workload.
    Ingress = 0,
    /// From the workload.
    Egress = 1,
}

impl Direction {
    /// The other direction.
    #[must_use]
    #[inline(always)]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// From its number in a map.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        if n == Self::Egress as u8 { Self::Egress } else { Self::Ingress }
    }
}

/// Mode of an endpoint. Unknown numbers count as `Pending`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// No policy published yet: everything but ARP and ND is dropped.
    Pending = 0,
    /// Policy holds.
    Enforce = 1,
    /// Policy is judged and counted, and whatever it says passes.
    Observe = 2,
    /// Everything is dropped, whatever the policy says.
    Quarantine = 3,
}

/// Action of a list entry. Zero denies; unknown numbers deny.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Drop.
    Deny = 0,
    /// Let pass.
    Allow = 1,
    /// Leave the decision to the next tier.
    Pass = 2,
    /// Drop and tell the sender; reserved.
    Reject = 3,
}

/// Class of transport protocols: one axis of a policy set's port tables.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Axis: destination port.
    Tcp = 0,
    /// Axis: destination port.
    Udp = 1,
    /// Axis: destination port.
    Sctp = 2,
    /// Axis: type << 8 | code.
    Icmp = 3,
    /// Axis: type << 8 | code.
    Icmp6 = 4,
    /// Axis: IP protocol number.
    Other = 5,
}

impl Class {
    /// Number of classes.
    pub const COUNT: u32 = 6;
    /// All, in order of their numbers.
    pub const ALL: [Self; 6] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp, Self::Icmp6, Self::Other];

    /// From its number; unknown ones are `Other`.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Tcp,
            1 => Self::Udp,
            2 => Self::Sctp,
            3 => Self::Icmp,
            4 => Self::Icmp6,
            _ => Self::Other,
        }
    }
}

/// Word of an endpoint: `epoch << 32 | view << 8 | mode`. Written by user space with one aligned store; zero is mode pending.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointWord(pub u64);

impl EndpointWord {
    /// Largest view number.
    pub const MAX_VIEW: u32 = 0x00ff_ffff;

    /// Puts a word together.
    #[must_use]
    #[inline(always)]
    pub const fn new(epoch: u32, view: u32, mode: Mode) -> Self {
        Self((epoch as u64) << 32 | ((view & Self::MAX_VIEW) as u64) << 8 | mode as u64)
    }

    /// Epoch in which flows of this endpoint are good.
    #[must_use]
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Index of the view.
    #[must_use]
    #[inline(always)]
    pub const fn view(self) -> u32 {
        (self.0 >> 8) as u32 & Self::MAX_VIEW
    }

    /// The same word for another view: what a flow judged by a later view of the chain carries.
    #[must_use]
    #[inline(always)]
    pub const fn with_view(self, view: u32) -> Self {
        Self(self.0 & !((Self::MAX_VIEW as u64) << 8) | ((view & Self::MAX_VIEW) as u64) << 8)
    }

    /// Mode of the endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn mode(self) -> Mode {
        match self.0 as u8 {
            1 => Mode::Enforce,
            2 => Mode::Observe,
            3 => Mode::Quarantine,
            _ => Mode::Pending,
        }
    }
}

/// What is known of an address or prefix: `tag << 32 | row << 16 | slot << 4 | flags`. Zero is an unknown address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressWord(pub u64);

impl AddressWord {
    /// The address is a node's (in every segment).
    pub const NODE: u8 = 1;
    /// The prefix is an overlay's: an address in it that is not known is neither world nor cluster.
    pub const OVERLAY: u8 = 2;
    /// Packets with this source arrive encapsulated only: what lacks [`mark::VERIFIED`] is forged.
    pub const ENCAPSULATED: u8 = 4;
    /// The node whose address it is is this one. (Of known addresses: the bit is [`Self::OVERLAY`] of prefixes.)
    pub const OWN: u8 = 2;
    /// The node translates some ports of the address: see `SERVICES`.
    pub const SERVICE: u8 = 8;

    /// Puts a word together.
    #[must_use]
    #[inline(always)]
    pub const fn new(tag: u32, row: u16, slot: u16, flags: u8) -> Self {
        Self((tag as u64) << 32 | (row as u64) << 16 | ((slot & 0xfff) as u64) << 4 | (flags & 0xf) as u64)
    }

    /// Hash of the key, which a recycled hash value of another key does not have.
    #[must_use]
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Index of the row in `ROWS`, in rows.
    #[must_use]
    #[inline(always)]
    pub const fn row(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    /// Slot of the endpoint when it is on this node, else 0.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> 4) as u32 & 0xfff
    }

    /// Flags.
    #[must_use]
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        self.0 as u8 & 0xf
    }
}

/// Key of `ADDRESSES4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey4 {
    /// VNI, 0 for none.
    pub segment: u32,
    /// Address as in the packet.
    pub address: u32,
}

/// Key of `ADDRESSES6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey6 {
    /// VNI, 0 for none.
    pub segment: u32,
    /// Address as in the packet.
    pub address: [u32; 4],
}

impl AddressKey4 {
    /// Tag of this key in an [`AddressWord`]; never 0.
    #[must_use]
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        tag(((self.segment as u64) << 32) | self.address as u64)
    }
}

impl AddressKey6 {
    /// Tag of this key in an [`AddressWord`]; never 0.
    #[must_use]
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        let a = &self.address;
        let high = ((a[0] as u64) << 32 | a[1] as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let low = ((a[2] as u64) << 32 | a[3] as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        tag(high ^ low.rotate_left(31) ^ self.segment as u64)
    }
}

#[inline(always)]
const fn tag(x: u64) -> u32 {
    (x.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 | 1
}

/// Data part of a key of `PREFIXES4`; the segment in network byte order, so that its 32 bits lead every prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey4 {
    /// VNI, big endian.
    pub segment: [u8; 4],
    /// Address.
    pub address: [u8; 4],
}

/// Data part of a key of `PREFIXES6` and of `OWNERS` (there IPv4 as ::ffff:a.b.c.d).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey6 {
    /// VNI, big endian.
    pub segment: [u8; 4],
    /// Address.
    pub address: [u8; 16],
}

/// Static data of an endpoint. Written before its slot is referenced by any link. While it is, only `link`, `bridge` and `router` change, which no verdict
/// asks: who reads half of a change has a packet take the node's way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Which endpoint this is (a hash that user space chooses); 0 for a free slot.
    pub identity: u64,
    /// VNI, 0 for none.
    pub segment: u32,
    /// Own MAC.
    pub mac: [u8; 6],
    /// Addresses in use of `ipv4`.
    pub ipv4_count: u8,
    /// Addresses in use of `ipv6`; the link-local address of the MAC is implied.
    pub ipv6_count: u8,
    /// Tells the owners of a slot apart: those before this one had other numbers. Flows keep the lowest 20 bits, see [`tenant`].
    pub tenancy: u32,
    /// Index of the host-side link, 0 where it is not known: nothing is forwarded directly from or to it.
    pub link: u32,
    /// Index of the bridge that the link is a port of, 0 for none.
    pub bridge: u32,
    /// MAC address by which the node routes what the endpoint sends: of the bridge, or of the link where there is none.
    pub router: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// Own addresses.
    pub ipv4: [u32; ENDPOINT_ADDRESSES],
    /// Own addresses.
    pub ipv6: [[u32; 4]; ENDPOINT_ADDRESSES],
}

/// One direction of a [`View`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Half {
    /// Policy set; set 0 has no port table and denies.
    pub set: u32,
    /// First index in `RULE_COUNTERS`; rule `n` of the set counts in the counter that stands at `counters + n`.
    pub counters: u32,
}

/// What an endpoint's word points to; immutable while reachable.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// Traffic to the workload.
    pub ingress: Half,
    /// Traffic from the workload.
    pub egress: Half,
    /// Jiffies after which the next view holds; `u64::MAX` for never.
    pub deadline: u64,
    /// Index of the next view.
    pub next: u32,
    /// [`View::OPEN_INGRESS`] and [`View::OPEN_EGRESS`].
    pub flags: u32,
}

impl View {
    /// No policy isolates ingress: what has no transport header (fragments) may pass.
    pub const OPEN_INGRESS: u32 = 1;
    /// No policy isolates egress.
    pub const OPEN_EGRESS: u32 = 2;
    /// The lists of ingress have audited entries: there is a would-be verdict.
    pub const AUDIT_INGRESS: u32 = 4;
    /// The lists of egress have audited entries.
    pub const AUDIT_EGRESS: u32 = 8;

    /// The half of a direction.
    #[must_use]
    #[inline(always)]
    pub const fn half(&self, direction: Direction) -> &Half {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether no policy isolates this direction.
    #[must_use]
    #[inline(always)]
    pub const fn open(&self, direction: Direction) -> bool {
        self.flags & (1 << direction as u32) != 0
    }

    /// Whether there is a would-be verdict for this direction.
    #[must_use]
    #[inline(always)]
    pub const fn audited(&self, direction: Direction) -> bool {
        self.flags & (Self::AUDIT_INGRESS << direction as u32) != 0
    }
}

/// Port table of (policy set, class), at index `set * Class::COUNT + class` of `PORTS`.
///
/// `starts[i]` begins an interval of the class's axis that ends before `starts[i + 1]`; `starts[0]` is 0. Beyond `len` all is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortTable {
    /// Intervals in use.
    pub len: u32,
    /// First value of each interval, ascending.
    pub starts: [u16; PORT_INTERVALS],
    /// Index of each interval's list in `LISTS`; 0 denies. With [`PortTable::MORE`] it is the number of a policy set whose table of the same class
    /// cuts the interval further; its intervals have lists.
    pub lists: [u32; PORT_INTERVALS],
}

impl PortTable {
    /// See [`PortTable::lists`]. No list has such an index: a program that does not know of it denies.
    pub const MORE: u32 = 1 << 31;

    /// A table of intervals in order: where each begins, and what it has, see [`PortTable::lists`].
    ///
    /// # Panics
    /// There are more than [`PORT_INTERVALS`].
    #[must_use]
    pub fn new(intervals: &[(u16, u32)]) -> Self {
        let mut table = Self { len: intervals.len() as u32, ..Self::default() };
        for (at, (start, list)) in intervals.iter().enumerate() {
            (table.starts[at], table.lists[at]) = (*start, *list);
        }
        table
    }

    /// Indexes of lists, and numbers of sets in which the table goes on.
    pub fn used(&self) -> impl Iterator<Item = Result<u32, u32>> {
        let used = self.lists.iter().take(self.len as usize);
        used.map(|list| if list & Self::MORE == 0 { Ok(*list) } else { Err(list & !Self::MORE) })
    }
}

/// One entry of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Selectors of the row's word, any of which matches.
    pub mask: u64,
    /// Word of the row.
    pub word: u16,
    /// Number of the rule of the lowest bit of `mask`, within the policy set; others follow by rank.
    pub rule: u16,
    /// Tier, ascending along the list.
    pub tier: u8,
    /// [`Action`].
    pub action: u8,
    /// [`Entry::ANY`] and [`Entry::AUDIT`].
    pub flags: u8,
    /// [`crate::reason::Reason`] that a match gives.
    pub reason: u8,
}

impl Entry {
    /// Matches every peer.
    pub const ANY: u8 = 1;
    /// Counts only for the would-be verdict.
    pub const AUDIT: u8 = 2;
}

/// A block of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List {
    /// Entries; the first that matches decides.
    pub entries: [Entry; LIST_ENTRIES],
    /// Entries in use.
    pub len: u32,
    /// Index of the next block, 0 for none.
    pub next: u32,
}

/// Key of a flow of an endpoint, IPv4: the same for both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey4 {
    /// The endpoint's address, or the one that the node put in its place.
    pub local: u32,
    /// The peer's address.
    pub remote: u32,
    /// The endpoint's port; ICMP echo: identifier; other ICMP: 1 when the endpoint sends, 2 when the peer does.
    pub local_port: u16,
    /// The peer's port; ICMP echo: 1 when the endpoint asks, 2 when the peer does; other ICMP: type << 8 | code.
    pub remote_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Always 0.
    pub padding: [u8; 3],
}

/// Key of a flow of an endpoint, IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey6 {
    /// The peer's address.
    pub remote: [u32; 4],
    /// As in [`FlowKey4`].
    pub local_port: u16,
    /// As in [`FlowKey4`].
    pub remote_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Which of the endpoint's addresses: index in [`EndpointInfo::ipv6`], [`ENDPOINT_ADDRESSES`] for its link-local one, [`TRANSLATED`] for one that
    /// the node put in its place.
    pub local: u8,
    /// Always 0.
    pub padding: [u8; 2],
}

/// See [`FlowKey6::local`].
pub const TRANSLATED: u8 = u8::MAX;

/// A flow that passed. Index 0 of the pairs is the initiator's direction, 1 the replies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The endpoint's word under which it was judged, with the view that held; another word means judge again. 0 for what is judged at each packet:
    /// [`Flow::AUDIT`], and what was revoked.
    pub word: u64,
    /// Wire segments.
    pub packets: [u64; 2],
    /// Bytes of the frames on the wire.
    pub bytes: [u64; 2],
    /// Latest packet, jiffies.
    pub last: u64,
    /// First packet, the low half of jiffies.
    pub first: u32,
    /// Index in `COUNTERS` of the initiator's direction; replies count in the next one.
    pub counter: u32,
    /// [`Direction`] of the initiator in the lowest bit, which stays as it is, and [`Flow::DIRECT`], which does not: no program writes both anew, or
    /// the latter beside other flags, so that no two CPUs undo what the other one wrote.
    pub initiator: u8,
    /// TCP flags seen, initiator and replies.
    pub tcp_flags: [u8; 2],
    /// [`Flow::AUDIT`] and the others.
    pub flags: u8,
    /// The local endpoint that the peer is, see [`tenant`]; 0 for none. Its packets carry the slot in their mark. Where the node has put another
    /// address in place of a caller's, nothing else tells whom an answer is for: once that endpoint is gone, an answer is dropped as revoked.
    pub sender: u32,
}

/// What flows keep of a local endpoint: its slot in the bits of [`mark::SLOT`], and above them which of the slot's owners it is.
#[must_use]
#[inline(always)]
pub const fn tenant(slot: u32, tenancy: u32) -> u32 {
    slot & mark::SLOT | tenancy << mark::SLOT.count_ones()
}

impl Flow {
    /// It passes although some verdict is against it (that of audited policies, or that of an endpoint which only observes), or the other way round.
    pub const AUDIT: u8 = 1;
    /// The peer's packets were forwarded by this node: with a node's address they are masqueraded, not the node's own.
    pub const TRANSIT: u8 = 2;
    /// The peer's packets arrive encapsulated only, see [`AddressWord::ENCAPSULATED`].
    pub const ENCAPSULATED: u8 = 4;
    /// To a service address: whoever answers in its name may be any backend.
    pub const SERVICE: u8 = 8;
    /// To a service address, judged for good after translation: the initiator's packets are counted there.
    pub const PROVISIONAL: u8 = 16;
    /// In [`Flow::initiator`]: its packets are forwarded directly, see [`crate::direct`].
    pub const DIRECT: u8 = 128;

    /// Who began it.
    #[must_use]
    #[inline(always)]
    pub const fn begun(&self) -> Direction {
        Direction::from_u8(self.initiator & !Self::DIRECT)
    }
}

/// A counter, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Wire segments.
    pub packets: u64,
    /// Bytes of the frames on the wire.
    pub bytes: u64,
    /// Flows: those inserted for allowed traffic; for blocked, packets that could begin one (a TCP SYN, any other datagram).
    pub flows: u64,
}

/// Index in `ENDPOINT_COUNTERS` of what no rule decides.
#[must_use]
#[inline(always)]
pub const fn endpoint_counter(slot: u32, direction: Direction, reason: u8) -> u32 {
    (slot * 2 + direction as u32) * crate::reason::REASONS + reason as u32
}

/// Key of `CONTACTS`: who was denied what.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContactKey {
    /// The peer; IPv4 as ::ffff:a.b.c.d. On the underlay the outer source.
    pub peer: [u32; 4],
    /// Slot, 0 for the underlay.
    pub slot: u16,
    /// Destination port; ICMP: type << 8 | code. On the underlay 0.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// [`Direction`] of the packet.
    pub direction: u8,
    /// [`crate::reason::Reason`].
    pub reason: u8,
    /// [`ContactKey::OBSERVED`] and [`ContactKey::WOULD_PASS`].
    pub flags: u8,
}

impl ContactKey {
    /// It passed all the same: the endpoint or the node only observes.
    pub const OBSERVED: u8 = 1;
    /// It was dropped, and audited policies would let it pass.
    pub const WOULD_PASS: u8 = 2;
}

/// Value of `CONTACTS`: a sample, bounded by the budget.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// Wire segments that were sampled.
    pub packets: u64,
    /// Bytes that were sampled.
    pub bytes: u64,
    /// First sample, jiffies.
    pub first: u64,
    /// Latest sample, jiffies.
    pub last: u64,
    /// Index in `COUNTERS` of the deciding rule, 0 where no rule decided.
    pub counter: u32,
    /// VNI on the underlay, else 0.
    pub vni: u32,
    /// The inner source on the underlay, else 0.
    pub inner: [u32; 4],
}

/// Budget of samples, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Window of 128 jiffies that `taken` counts in.
    pub window: u64,
    /// Samples taken in this window.
    pub taken: u64,
    /// Samples that did not fit, ever.
    pub unsent: u64,
}

/// Node-wide settings: the only entry of `CONFIG`. Written before any program is attached; a change is a reload.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// UDP ports of VXLAN, host byte order, 0 for none.
    pub tunnel_ports: [u16; TUNNEL_PORTS],
    /// Own VTEP addresses (IPv4 as ::ffff:a.b.c.d); unused ones are `::`.
    pub vteps: [[u32; 4]; OWN_VTEPS],
    /// Own VTEP addresses in use.
    pub vtep_count: u32,
    /// Samples a CPU may take in 128 jiffies.
    pub budget: u32,
    /// Mask of the mark that these programs were loaded with; 0 before any was. They have it as a constant and read no map for it.
    pub mark_mask: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tunnel_ports: [0; TUNNEL_PORTS],
            vteps: [[0; 4]; OWN_VTEPS],
            vtep_count: 0,
            budget: 0,
            mark_mask: mark::MASK,
        }
    }
}

/// Key of `VTEPS`. An entry with address `::` says that the VNI is configured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepKey {
    /// VNI.
    pub vni: u32,
    /// Outer address; IPv4 as ::ffff:a.b.c.d.
    pub address: [u32; 4],
}

/// Value of `OWNERS`: the VTEP that owns the inner prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Outer address; IPv4 as ::ffff:a.b.c.d.
    pub vtep: [u32; 4],
}

/// Entry of `BINDINGS`: a sender that its CPU has lately found to own what it sends, so that the next packet of the same does without the prefixes.
/// The place is a hash of the addresses, and whoever comes there last stays.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// [`node::OVERLAYS`] as it was before the prefixes were asked; 0 for none.
    pub generation: u64,
    /// VNI.
    pub vni: u32,
    /// Always 0.
    pub padding: u32,
    /// Outer address; IPv4 as ::ffff:a.b.c.d.
    pub outer: [u32; 4],
    /// Inner source, as above.
    pub inner: [u32; 4],
}

/// Entries of `BINDINGS`, for each CPU; a power of two.
pub const BINDINGS: u32 = 256;

/// Key of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// VNI, 0 for none.
    pub segment: u32,
    /// Service address; IPv4 as ::ffff:a.b.c.d; `::ffff:0.0.0.0` and `::` for a port on any node's address.
    pub address: [u32; 4],
    /// Service port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Always 0.
    pub padding: u8,
}

impl ServiceKey {
    /// Tag of this key in a [`ServiceWord`]; never 0.
    #[must_use]
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        let address = AddressKey6 { segment: self.segment, address: self.address };
        tag((address.tag() as u64) << 32 | (self.port as u64) << 8 | self.protocol as u64)
    }
}

/// Value of `SERVICES`: `tag << 32 | index in BACKENDS`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceWord(pub u64);

impl ServiceWord {
    /// Puts a word together.
    #[must_use]
    #[inline(always)]
    pub const fn new(tag: u32, backends: u32) -> Self {
        Self((tag as u64) << 32 | backends as u64)
    }

    /// Hash of the key, which a recycled hash value of another key does not have.
    #[must_use]
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Index in `BACKENDS`.
    #[must_use]
    #[inline(always)]
    pub const fn backends(self) -> u32 {
        self.0 as u32
    }
}

/// What the backends of a service address are to a policy; immutable while reachable.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backends {
    /// Distinct ones; where not all have room, those that are not [`Backend::LATER`] come first.
    pub backends: [Backend; BACKENDS],
    /// How many there are, [`BACKENDS`] of which have room.
    pub len: u32,
    /// Always 0.
    pub padding: u32,
}

/// Backends that a policy cannot tell apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Row of their addresses.
    pub row: u16,
    /// Port that they listen on.
    pub target: u16,
    /// [`Backend::LATER`] and the others.
    pub flags: u16,
    /// Always 0.
    pub padding: u16,
}

impl Backend {
    /// The way there passes one of this node's programs after translation, which judges for good.
    pub const LATER: u16 = 1;
    /// Endpoints of this node.
    pub const LOCAL: u16 = 2;
    /// Addresses of nodes.
    pub const NODE: u16 = 4;
}

/// Key of `IDS`, which only user space reads: what an object in an array is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdKey {
    /// Hash of the object's content or name.
    pub hash: [u64; 2],
    /// Kind of object: a number of user space.
    pub kind: u32,
    /// Always 0.
    pub padding: u32,
}

/// Value of `COUNTER_KEYS`, which only user space reads: what a counter counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// Hash of the rule's name.
    pub rule: u64,
    /// [`EndpointInfo::identity`].
    pub endpoint: u64,
    /// Slot.
    pub slot: u16,
    /// [`Direction`] of the packets.
    pub direction: u8,
    /// [`crate::reason::Reason`].
    pub reason: u8,
    /// Always 0.
    pub padding: u32,
}

/// IPv4 address as ::ffff:a.b.c.d, as it lies in a packet.
#[must_use]
#[inline(always)]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0x0000_ffff_u32.to_be(), address]
}

macro_rules! layout {
    ($($type:ty: $size:expr, $align:expr;)*) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);)*
    };
}
layout! {
    EndpointWord: 8, 8;
    AddressWord: 8, 8;
    AddressKey4: 8, 4;
    AddressKey6: 20, 4;
    PrefixKey4: 8, 1;
    PrefixKey6: 20, 1;
    EndpointInfo: 120, 8;
    Half: 8, 4;
    View: 32, 8;
    PortTable: 172, 4;
    Entry: 16, 8;
    List: 136, 8;
    FlowKey4: 16, 4;
    FlowKey6: 24, 4;
    Flow: 64, 8;
    Counter: 24, 8;
    ContactKey: 24, 4;
    Contact: 56, 8;
    Budget: 24, 8;
    Config: 148, 4;
    VtepKey: 20, 4;
    Owner: 16, 4;
    ServiceKey: 24, 4;
    ServiceWord: 8, 8;
    Backend: 8, 2;
    Backends: 72, 4;
    IdKey: 24, 8;
    CounterKey: 24, 8;
}
