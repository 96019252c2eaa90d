//! Headers of a frame: Ethernet, VLAN tags, ARP, IPv4 with options, IPv6 with extension headers, TCP, UDP, SCTP, ICMP, ICMPv6, VXLAN.
//!
//! The parser reads whole headers only, copies nothing it does not need, and never looks at a checksum (TC and generic XDP see partial ones)
//! or at a length beyond the header it belongs to (GSO packets carry lengths that are not theirs).

use crate::abi::Class;

/// A header that may be read in place.
///
/// # Safety
/// Made of `u8` only (alignment 1, every bit pattern valid).
pub unsafe trait Header: Copy {}

/// Bytes of a frame, from its first one.
pub trait Frame {
    /// The header at `offset`, if all of it is there.
    fn at<T: Header>(&self, offset: usize) -> Option<&T>;
    /// Whether what [`Self::at`] sees is the whole packet. (An skb may keep part of it elsewhere.)
    fn whole(&self) -> bool;
    /// [`extensions`]. The kernel half makes a function of its own of it, which the verifier looks at once instead of at every call.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline(always)]
    fn extensions(&self, offset: usize, protocol: u8) -> Parsed<Behind> {
        extensions(self, offset, protocol)
    }
    /// [`transport_header`], for the same reason.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline(always)]
    fn transport(&self, offset: usize, protocol: u8, v6: bool) -> Parsed<Transport> {
        transport_header(self, offset, protocol, v6)
    }
}

impl Frame for [u8] {
    #[inline]
    fn at<T: Header>(&self, offset: usize) -> Option<&T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice has the size of `T`, and `Header` promises alignment 1 and no invalid pattern.
        Some(unsafe { &*bytes.as_ptr().cast::<T>() })
    }

    fn whole(&self) -> bool {
        true
    }
}

/// Why a frame cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A header does not lie wholly in the readable bytes.
    Truncated,
    /// A header contradicts itself.
    Malformed,
}

/// Parser's result.
pub type Parsed<T> = Result<T, Fault>;

/// Ethernet header, IEEE 802.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub destination: [u8; 6],
    /// Source.
    pub source: [u8; 6],
    /// EtherType, big endian.
    pub ethertype: [u8; 2],
}

impl Ethernet {
    /// Size of the header.
    pub const LEN: usize = size_of::<Self>();
    /// Size of the shortest frame, without its checksum (IEEE 802.3): what is shorter is padded on the wire.
    pub const SHORTEST: u32 = 60;
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;

    /// EtherType.
    #[must_use]
    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        half(&self.ethertype)
    }

    /// Whether the EtherType announces a VLAN tag (802.1Q, 802.1ad and the older 0x9100).
    #[must_use]
    #[inline(always)]
    pub fn tagged(&self) -> bool {
        matches!(self.ethertype(), 0x8100 | 0x88a8 | 0x9100)
    }

    /// Whether the destination is multicast or broadcast.
    #[must_use]
    #[inline(always)]
    pub const fn to_group(&self) -> bool {
        self.destination[0] & 1 != 0
    }
}

/// ARP for IPv4 over Ethernet, RFC 826.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// Hardware type, protocol type, lengths: 00 01 08 00 06 04.
    pub kinds: [u8; 6],
    /// 1 request, 2 reply.
    pub operation: [u8; 2],
    /// Sender's MAC.
    pub sender_mac: [u8; 6],
    /// Sender's address.
    pub sender: [u8; 4],
    /// Target's MAC.
    pub target_mac: [u8; 6],
    /// Target's address.
    pub target: [u8; 4],
}

impl Arp {
    /// Whether it is IPv4 over Ethernet, request or reply.
    #[must_use]
    #[inline(always)]
    pub fn known(&self) -> bool {
        self.kinds == [0, 1, 8, 0, 6, 4] && self.operation[0] == 0 && matches!(self.operation[1], 1 | 2)
    }

    /// Whether it is a request.
    #[must_use]
    #[inline(always)]
    pub const fn request(&self) -> bool {
        self.operation[1] == 1
    }
}

/// IPv4 header without options, RFC 791.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// IPv6 header, RFC 8200.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6 {
    version_class_flow: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// First eight bytes of an IPv6 extension header; enough for every kind.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Extension {
    next_header: u8,
    len: u8,
    /// Routing header: type and segments left. Fragment header: offset and flags.
    data: [u8; 6],
}

/// TCP header without options, RFC 9293.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Tcp {
    source: [u8; 2],
    destination: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    offset: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

/// First eight bytes of a transport header: all of UDP's and of ICMP's, ports of TCP's and SCTP's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Eight([[u8; 2]; 4]);

/// First twelve bytes: SCTP's common header, RFC 9260.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Twelve([[u8; 2]; 6]);

/// VXLAN header, RFC 7348.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    flags: [u8; 4],
    vni: [u8; 4],
}

impl Vxlan {
    /// Size of the header.
    pub const LEN: usize = size_of::<Self>();

    /// The VNI, if the I flag is set and everything reserved is 0 (RFC 7348 section 5). Extensions (GBP, GPE) use those bits and are refused.
    #[must_use]
    #[inline(always)]
    pub fn vni(&self) -> Option<u32> {
        let vni = u32::from_be(word(&self.vni));
        (word(&self.flags) == 0x0800_0000_u32.to_be() && vni & 0xff == 0).then_some(vni >> 8)
    }
}

// SAFETY: bytes only.
unsafe impl Header for Ethernet {}
// SAFETY: bytes only.
unsafe impl Header for Arp {}
// SAFETY: bytes only.
unsafe impl Header for Ipv4 {}
// SAFETY: bytes only.
unsafe impl Header for Ipv6 {}
// SAFETY: bytes only.
unsafe impl Header for Extension {}
// SAFETY: bytes only.
unsafe impl Header for Tcp {}
// SAFETY: bytes only.
unsafe impl Header for Eight {}
// SAFETY: bytes only.
unsafe impl Header for Twelve {}
// SAFETY: bytes only.
unsafe impl Header for Vxlan {}
// SAFETY: bytes only.
unsafe impl Header for NeighbourOption {}
// SAFETY: bytes only.
unsafe impl Header for [u8; 16] {}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What of an IP packet concerns us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// Source, as it lies in the packet.
    pub source: A,
    /// Destination.
    pub destination: A,
    /// Offset of the transport header.
    pub transport: usize,
    /// Protocol behind all extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// A fragment, first or later. (An IPv6 fragment header around a whole packet, RFC 6946, is none.)
    pub fragment: bool,
    /// Neither the first nor the only fragment: what lies at `transport` is no header.
    pub later_fragment: bool,
}

/// Parses an IPv4 header at `offset`.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn ipv4<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Ip<u32>> {
    let header: &Ipv4 = frame.at(offset).ok_or(Fault::Truncated)?;
    let len = (header.version_ihl & 0xf) as usize * 4;
    if header.version_ihl >> 4 != 4 || len < 20 {
        return Err(Fault::Malformed);
    }
    // 0 in BIG TCP packets, otherwise it holds at least the header.
    let total = half(&header.total_len) as usize;
    if total != 0 && total < len {
        return Err(Fault::Malformed);
    }
    let fragment = half(&header.fragment);
    Ok(Ip {
        source: word(&header.source),
        destination: word(&header.destination),
        transport: offset + len,
        protocol: header.protocol,
        hop_limit: header.ttl,
        fragment: fragment & 0x3fff != 0,
        later_fragment: fragment & 0x1fff != 0,
    })
}

/// Extension headers that an IPv6 packet may have; more are malformed.
const MAX_EXTENSIONS: usize = 6;
/// No header begins later than this; keeps offsets bounded for the verifier.
const MAX_OFFSET: usize = 1024;

/// Parses an IPv6 header at `offset` and what extends it.
///
/// A routing header with segments left is malformed: it hides where the packet goes.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn ipv6<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Ip<[u32; 4]>> {
    let header: &Ipv6 = frame.at(offset).ok_or(Fault::Truncated)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return Err(Fault::Malformed);
    }
    let mut ip = Ip {
        source: words(&header.source),
        destination: words(&header.destination),
        transport: offset + size_of::<Ipv6>(),
        protocol: header.next_header,
        hop_limit: header.hop_limit,
        fragment: false,
        later_fragment: false,
    };
    if !matches!(ip.protocol, protocol::TCP | protocol::UDP | protocol::ICMP6) {
        let behind = frame.extensions(ip.transport, ip.protocol)?;
        if behind.transport > MAX_OFFSET {
            return Err(Fault::Malformed);
        }
        ip.transport = behind.transport;
        ip.protocol = behind.protocol;
        ip.fragment = behind.fragment;
        ip.later_fragment = behind.later_fragment;
    }
    Ok(ip)
}

/// What lies behind the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Offset of the transport header.
    pub transport: usize,
    /// Its protocol.
    pub protocol: u8,
    /// See [`Ip::fragment`].
    pub fragment: bool,
    /// See [`Ip::later_fragment`].
    pub later_fragment: bool,
}

/// A frame whose IPv6 packets must do without extension headers, so that nobody has to follow them.
pub(crate) struct Plain<'a, F: ?Sized>(pub(crate) &'a F);

impl<F: Frame + ?Sized> Frame for Plain<'_, F> {
    #[inline(always)]
    fn at<T: Header>(&self, offset: usize) -> Option<&T> {
        self.0.at(offset)
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        self.0.whole()
    }

    #[inline(always)]
    fn extensions(&self, _offset: usize, _protocol: u8) -> Parsed<Behind> {
        Err(Fault::Malformed)
    }
}

/// Follows extension headers from `offset`, whose kind is `protocol`.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn extensions<F: Frame + ?Sized>(frame: &F, offset: usize, protocol: u8) -> Parsed<Behind> {
    let mut behind = Behind { transport: offset, protocol, fragment: false, later_fragment: false };
    for _ in 0..=MAX_EXTENSIONS {
        if behind.transport > MAX_OFFSET {
            return Err(Fault::Malformed);
        }
        // Hop-by-hop, routing, fragment, authentication, destination options: what the receiver walks over.
        if !matches!(behind.protocol, 0 | 43 | 44 | 51 | 60) || behind.later_fragment {
            return Ok(behind);
        }
        let extension: &Extension = frame.at(behind.transport).ok_or(Fault::Truncated)?;
        behind.transport += match behind.protocol {
            44 => {
                let fragment = u16::from_be_bytes([extension.data[0], extension.data[1]]);
                behind.fragment |= fragment & 0xfff9 != 0;
                behind.later_fragment = fragment & 0xfff8 != 0;
                8
            }
            51 => (extension.len as usize + 2) * 4,
            43 if extension.data[1] != 0 => return Err(Fault::Malformed),
            _ => (extension.len as usize + 1) * 8,
        };
        behind.protocol = extension.next_header;
    }
    Err(Fault::Malformed)
}

/// Four bytes as they lie in the packet. Where unaligned access is cheap the kernel half loads them at once: the compiler, which must assume
/// that it is not, would load bytes and shift.
#[inline(always)]
pub(crate) fn word(octets: &[u8; 4]) -> u32 {
    if cfg!(target_arch = "bpf") {
        // SAFETY: readable; the verifier permits an unaligned load of packet data on every architecture where it is efficient, and refuses
        // the program elsewhere.
        unsafe { octets.as_ptr().cast::<u32>().read() }
    } else {
        u32::from_ne_bytes(*octets)
    }
}

/// Two bytes in network byte order, loaded like [`word`].
#[inline(always)]
fn half(octets: &[u8; 2]) -> u16 {
    if cfg!(target_arch = "bpf") {
        // SAFETY: as in `word`.
        u16::from_be(unsafe { octets.as_ptr().cast::<u16>().read() })
    } else {
        u16::from_be_bytes(*octets)
    }
}

/// Whether two MACs are equal, without a call of `bcmp`.
#[must_use]
#[inline(always)]
pub fn same_mac(a: &[u8; 6], b: &[u8; 6]) -> bool {
    let (Some(a4), Some(b4), Some(a2), Some(b2)) = (a.first_chunk(), b.first_chunk(), a.last_chunk(), b.last_chunk())
    else {
        return false;
    };
    word(a4) == word(b4) && half(a2) == half(b2)
}

#[inline(always)]
fn words(o: &[u8; 16]) -> [u32; 4] {
    let (words, _) = o.as_chunks::<4>();
    [word(&words[0]), word(&words[1]), word(&words[2]), word(&words[3])]
}

/// Source of an IPv6 packet at `offset`, its extension headers unread.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn ipv6_source<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<[u32; 4]> {
    let header: &Ipv6 = frame.at(offset).ok_or(Fault::Truncated)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return Err(Fault::Malformed);
    }
    Ok(words(&header.source))
}

/// Length of the IP packet at `offset` as its header says it, header included.
#[inline(always)]
pub(crate) fn ip_len<F: Frame + ?Sized>(frame: &F, offset: usize, v6: bool) -> Option<usize> {
    Some(if v6 {
        size_of::<Ipv6>() + half(&frame.at::<Ipv6>(offset)?.payload_len) as usize
    } else {
        half(&frame.at::<Ipv4>(offset)?.total_len) as usize
    })
}

/// Length of the UDP datagram at `offset` as its header says it, header included.
#[inline(always)]
pub(crate) fn datagram_len<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<usize> {
    Some(half(&frame.at::<Eight>(offset)?.0[2]) as usize)
}

/// What a packet can be in the life of a flow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// TCP SYN without ACK: begins a flow, always.
    Begin,
    /// May begin a flow or go on with one.
    Any,
    /// Any other TCP segment, or an ICMP echo reply: goes on with a flow that exists.
    Continue,
    /// ICMP error about a packet of a flow.
    Error,
}

impl Role {
    /// From its number; unknown ones are `Error`.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Begin,
            1 => Self::Any,
            2 => Self::Continue,
            _ => Self::Error,
        }
    }
}

/// Transport header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// What it can be.
    pub role: Role,
    /// Class of the protocol in the packet's family.
    pub class: Class,
    /// Source port; ICMP echo: identifier; else 0.
    pub source_port: u16,
    /// Destination port; ICMP: type << 8 | code; else 0.
    pub destination_port: u16,
    /// Offset behind the header.
    pub end: usize,
}

/// ICMP echo request and reply, IPv4 then IPv6.
const ECHO: [[u8; 2]; 2] = [[8, 0], [128, 129]];

impl Transport {
    /// TCP FIN, SYN, RST, ACK.
    pub const FIN: u8 = 0x01;
    /// See [`Self::FIN`].
    pub const SYN: u8 = 0x02;
    /// See [`Self::FIN`].
    pub const RST: u8 = 0x04;
    /// See [`Self::FIN`].
    pub const ACK: u8 = 0x10;

    /// What is known of a transport header that is not read.
    #[must_use]
    #[inline(always)]
    pub const fn opaque(offset: usize, protocol: u8, v6: bool) -> Self {
        let class = match protocol {
            protocol::TCP => Class::Tcp,
            protocol::UDP => Class::Udp,
            protocol::SCTP => Class::Sctp,
            protocol::ICMP if !v6 => Class::Icmp,
            protocol::ICMP6 if v6 => Class::Icmp6,
            _ => Class::Other,
        };
        Self { protocol, tcp_flags: 0, role: Role::Any, class, source_port: 0, destination_port: 0, end: offset }
    }

    /// Whether it is ICMP of the packet's family.
    #[must_use]
    #[inline(always)]
    pub const fn icmp(&self) -> bool {
        matches!(self.class, Class::Icmp | Class::Icmp6)
    }

    /// ICMP type.
    #[must_use]
    #[inline(always)]
    pub const fn icmp_type(&self) -> u8 {
        (self.destination_port >> 8) as u8
    }

    /// Whether it is an ICMP echo: `Some(true)` for the request.
    #[must_use]
    #[inline(always)]
    pub const fn echo(&self) -> Option<bool> {
        let kinds = match self.class {
            Class::Icmp => ECHO[0],
            Class::Icmp6 => ECHO[1],
            _ => return None,
        };
        let kind = self.icmp_type();
        if kind == kinds[0] {
            Some(true)
        } else if kind == kinds[1] {
            Some(false)
        } else {
            None
        }
    }
}

/// Parses the transport header of `ip`. Protocols without one we know have ports 0. `v6` tells which ICMP belongs to the family; the other one is
/// just another protocol, and so is anything in a later fragment.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn transport<A, F: Frame + ?Sized>(frame: &F, ip: &Ip<A>, v6: bool) -> Parsed<Transport> {
    if ip.later_fragment {
        return Ok(Transport::opaque(ip.transport, ip.protocol, v6));
    }
    frame.transport(ip.transport, ip.protocol, v6)
}

/// Parses the transport header at `offset`.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn transport_header<F: Frame + ?Sized>(frame: &F, offset: usize, protocol: u8, v6: bool) -> Parsed<Transport> {
    let mut found = Transport::opaque(offset, protocol, v6);
    match found.class {
        Class::Tcp => {
            let tcp: &Tcp = frame.at(offset).ok_or(Fault::Truncated)?;
            let len = (tcp.offset >> 4) as usize * 4;
            if len < size_of::<Tcp>() {
                return Err(Fault::Malformed);
            }
            found.source_port = half(&tcp.source);
            found.destination_port = half(&tcp.destination);
            found.tcp_flags = tcp.flags;
            found.role = if tcp.flags & (Transport::SYN | Transport::ACK) == Transport::SYN {
                Role::Begin
            } else {
                Role::Continue
            };
            found.end += len;
        }
        Class::Udp => {
            let udp: &Eight = frame.at(offset).ok_or(Fault::Truncated)?;
            found.source_port = half(&udp.0[0]);
            found.destination_port = half(&udp.0[1]);
            found.end += size_of::<Eight>();
        }
        Class::Sctp => {
            let sctp: &Twelve = frame.at(offset).ok_or(Fault::Truncated)?;
            found.source_port = half(&sctp.0[0]);
            found.destination_port = half(&sctp.0[1]);
            found.end += size_of::<Twelve>();
        }
        Class::Icmp | Class::Icmp6 => {
            let icmp: &Eight = frame.at(offset).ok_or(Fault::Truncated)?;
            found.destination_port = half(&icmp.0[0]);
            found.end += size_of::<Eight>();
            let error = if v6 { matches!(icmp.0[0][0], 1..=4) } else { matches!(icmp.0[0][0], 3 | 4 | 11 | 12) };
            if error {
                found.role = Role::Error;
            } else if let Some(request) = found.echo() {
                found.source_port = half(&icmp.0[2]);
                if !request {
                    found.role = Role::Continue;
                }
            }
        }
        Class::Other => {}
    }
    Ok(found)
}

/// Ports of the packet that an ICMP error quotes: eight bytes of its transport header are all that RFC 792 promises.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn quoted<A, F: Frame + ?Sized>(frame: &F, ip: &Ip<A>, v6: bool) -> Parsed<Transport> {
    let mut found = Transport::opaque(ip.transport, ip.protocol, v6);
    if ip.later_fragment {
        return Err(Fault::Malformed);
    }
    if found.class as u8 == Class::Other as u8 {
        return Ok(found);
    }
    let eight: &Eight = frame.at(ip.transport).ok_or(Fault::Truncated)?;
    if found.icmp() {
        found.destination_port = half(&eight.0[0]);
        if found.echo().is_some() {
            found.source_port = half(&eight.0[2]);
        }
    } else {
        found.source_port = half(&eight.0[0]);
        found.destination_port = half(&eight.0[1]);
    }
    Ok(found)
}

/// A link-layer address option of neighbour discovery, RFC 4861 section 4.6.1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NeighbourOption {
    /// 1 source, 2 target.
    pub kind: u8,
    /// Length in units of eight bytes.
    pub len: u8,
    /// MAC.
    pub mac: [u8; 6],
}

/// Types of ICMPv6 that resolve addresses and manage groups.
pub mod neighbour {
    /// Multicast listener query.
    pub const LISTENER_QUERY: u8 = 130;
    /// Multicast listener report, version 1.
    pub const LISTENER_REPORT: u8 = 131;
    /// Multicast listener done.
    pub const LISTENER_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report, version 2.
    pub const LISTENER_REPORT_2: u8 = 143;
}

/// Target address of a neighbour solicitation or advertisement whose ICMPv6 header is at `offset`.
///
/// # Errors
/// [`Fault`].
#[inline(always)]
pub fn neighbour_target<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<[u32; 4]> {
    frame.at::<[u8; 16]>(offset + 8).map(words).ok_or(Fault::Truncated)
}
