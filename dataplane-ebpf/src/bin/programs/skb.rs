//! Packets as the kernel hands them over.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_fib_lookup as Route},
    helpers::{
        bpf_skb_pull_data,
        generated::{bpf_fib_lookup, bpf_redirect, bpf_skb_store_bytes},
    },
};
use bulkhead_ebpf::{
    abi::Class,
    direct::{self, Hop},
    mark::Layout,
    packet::{Behind, Ethernet, Fault, Frame, Header, Parsed, Role, Transport, protocol, transport_header},
    verdict::Meta,
};

use crate::maps::Maps;

/// Bytes that are made readable when a header is not: more than the longest chain of headers that the parser follows.
const PULL: u32 = 1280;

/// Readable bytes of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    start: usize,
    end: usize,
}

impl Buffer {
    /// From the addresses in the program's context.
    #[inline(always)]
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

impl Frame for Buffer {
    #[inline(always)]
    fn at<T: Header>(&self, offset: usize) -> Option<&T> {
        let header = self.start + offset;
        if header + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, which lives as long as the program runs; `Header` promises alignment 1 and no invalid pattern.
        Some(unsafe { &*(header as *const T) })
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        false
    }
}

/// Readable bytes of a socket buffer.
#[derive(Clone, Copy)]
pub(crate) struct SkbBuffer {
    skb: Skb,
    buffer: Buffer,
}

impl Frame for SkbBuffer {
    #[inline(always)]
    fn at<T: Header>(&self, offset: usize) -> Option<&T> {
        let header = self.buffer.start + offset;
        if header + size_of::<T>() > self.buffer.end {
            return None;
        }
        // SAFETY: within the packet, which lives as long as the program runs; `Header` promises alignment 1 and no invalid pattern.
        Some(unsafe { &*(header as *const T) })
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        self.buffer.end - self.buffer.start >= self.skb.len() as usize
    }

    #[inline(always)]
    fn extensions(&self, offset: usize, protocol: u8) -> Parsed<Behind> {
        // The compiler sees the callee and knows its bounds, the verifier does not: the former must not drop the check of the offset.
        let packed = core::hint::black_box(extensions(self.skb.0, offset as u32, protocol as u32));
        let [.., status, protocol, fragment, later_fragment] = packed.to_ne_bytes();
        match status {
            0 => Ok(Behind {
                transport: packed as u16 as usize,
                protocol,
                fragment: fragment != 0,
                later_fragment: later_fragment != 0,
            }),
            1 => Err(Fault::Truncated),
            _ => Err(Fault::Malformed),
        }
    }

    #[inline(always)]
    fn transport(&self, offset: usize, protocol: u8, v6: bool) -> Parsed<Transport> {
        if matches!(protocol, protocol::TCP | protocol::UDP) {
            // Most packets: without a call, whose return alone costs as much as all that it does (where the kernel guards returns against
            // speculation). The verifier must not tell roles and classes apart, or it looks at all that follows once for each.
            let mut found = transport_header(&self.buffer, offset, protocol, v6)?;
            let unknown = found.source_port as u64;
            let nothing = (hide(unknown) ^ unknown) as u8;
            // SAFETY: 0 leaves the number as it is.
            found.role = unsafe { core::mem::transmute::<u8, Role>(found.role as u8 ^ nothing) };
            // SAFETY: as above.
            found.class = unsafe { core::mem::transmute::<u8, Class>(found.class as u8 ^ nothing) };
            return Ok(found);
        }
        let packed = core::hint::black_box(transport(self.skb.0, offset as u32, protocol as u32, v6 as u32));
        let [a, b, c, d, tcp_flags, kind, len, status] = packed.to_ne_bytes();
        match status {
            0 => Ok(Transport {
                protocol,
                tcp_flags,
                // SAFETY: `transport` puts the number of a role here.
                role: unsafe { core::mem::transmute::<u8, Role>(kind & 0xf) },
                // SAFETY: `transport` puts the number of a class here.
                class: unsafe { core::mem::transmute::<u8, Class>(kind >> 4) },
                source_port: u16::from_ne_bytes([a, b]),
                destination_port: u16::from_ne_bytes([c, d]),
                end: offset + len as usize,
            }),
            1 => Err(Fault::Truncated),
            _ => Err(Fault::Malformed),
        }
    }
}

/// A number that the compiler knows nothing of.
#[inline(always)]
pub(crate) fn hide(mut number: u64) -> u64 {
    // SAFETY: copies a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// [`transport_header`] as a global function of the object, which the verifier looks at by itself: numbers come out that it knows nothing of, and
/// what follows is looked at once instead of for every kind of header. The result, byte by byte: ports, TCP flags, role and class, length, status.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn transport(skb: *mut __sk_buff, offset: u32, protocol: u32, v6: u32) -> u64 {
    // The compiler knows what callers pass, the verifier does not: the check must stay.
    let offset = core::hint::black_box(offset);
    if offset > MAX_OFFSET {
        return 2 << 56;
    }
    match transport_header(&Skb(skb).buffer().buffer, offset as usize, protocol as u8, v6 != 0) {
        Ok(found) => {
            let [a, b] = found.source_port.to_ne_bytes();
            let [c, d] = found.destination_port.to_ne_bytes();
            let kind = found.role as u8 | (found.class as u8) << 4;
            let len = (found.end - offset as usize) as u8;
            u64::from_ne_bytes([a, b, c, d, found.tcp_flags, kind, len, 0])
        }
        Err(Fault::Truncated) => 1 << 56,
        Err(Fault::Malformed) => 2 << 56,
    }
}

/// [`bulkhead_ebpf::packet::extensions`] as a global function of the object, which the verifier looks at by itself. The result:
/// the offset in 16 bits, 16 unused ones; then status (0, 1 for truncated, else malformed), protocol, the two fragment flags, a byte each.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn extensions(skb: *mut __sk_buff, offset: u32, protocol: u32) -> u64 {
    // The compiler knows what callers pass, the verifier does not: the check must stay.
    let offset = core::hint::black_box(offset);
    if offset > MAX_OFFSET {
        return 2 << 32;
    }
    match bulkhead_ebpf::packet::extensions(&Skb(skb).buffer().buffer, offset as usize, protocol as u8) {
        Ok(behind) => {
            let [low, high, ..] = behind.transport.to_ne_bytes();
            u64::from_ne_bytes([
                low,
                high,
                0,
                0,
                0,
                behind.protocol,
                behind.fragment as u8,
                behind.later_fragment as u8,
            ])
        }
        Err(Fault::Truncated) => 1 << 32,
        Err(Fault::Malformed) => 2 << 32,
    }
}

/// Largest offset of a header that is looked at by itself; larger ones were refused before.
const MAX_OFFSET: u32 = 0x7fff;

/// Where our bits lie in the mark. Set by the loader, and frozen: the verifier knows what it reads.
#[unsafe(no_mangle)]
static MARK: Layout = Layout::DEFAULT;

/// [`MARK`], of whose address the compiler does not know that its value is there: it leaves out loads that nobody needs, and folds none.
#[inline(always)]
fn layout() -> &'static Layout {
    let mut address = &raw const MARK;
    // SAFETY: copies a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) address, options(pure, nomem, nostack, preserves_flags)) };
    // SAFETY: the static's address, and nobody writes to it.
    unsafe { &*address }
}

/// `AF_INET` of the kernel.
const AF_INET: u8 = 2;
/// `AF_INET6` of the kernel.
const AF_INET6: u8 = 10;

/// What a router changes of a frame: an Ethernet header, and of the IP header behind it as much as is needed, in the places of either version.
#[repr(C)]
struct Routed {
    ethernet: Ethernet,
    before: [u8; 6],
    /// IPv6.
    next_header_and_hop_limit: [u8; 2],
    /// IPv4.
    ttl: u8,
    protocol: u8,
    /// IPv4.
    checksum: [u8; 2],
}

/// A socket buffer.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

macro_rules! field {
    ($skb:expr, $field:ident) => {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*$skb.0).$field }
    };
}

impl Skb {
    /// Wraps the context.
    #[inline(always)]
    pub(crate) const fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// What the link's stub says.
    #[inline(always)]
    pub(crate) fn value(self) -> u32 {
        field!(self, cb)[0]
    }

    /// What the program before a jump left: `cb[1]`.
    #[inline(always)]
    pub(crate) fn stage(self) -> u32 {
        field!(self, cb)[1]
    }

    /// Leaves it.
    #[inline(always)]
    pub(crate) fn set_stage(self, stage: u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).cb[1] = stage }
    }

    /// Length of the frame.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        field!(self, len)
    }

    /// Our bits of the mark.
    #[inline(always)]
    pub(crate) fn mark(self) -> u32 {
        layout().decode(field!(self, mark))
    }

    /// Sets our bits of the mark.
    #[inline(always)]
    pub(crate) fn set_mark(self, ours: u32) {
        let encoded = layout().encode(field!(self, mark), ours);
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).mark = encoded }
    }

    /// Takes our bits from the mark.
    #[inline(always)]
    pub(crate) fn clear_mark(self) {
        let found = field!(self, mark);
        let cleared = layout().clear(found);
        if cleared != found {
            // SAFETY: the context is valid while the program runs.
            unsafe { (*self.0).mark = cleared }
        }
    }

    /// Wire segments that the packet stands for.
    #[inline(always)]
    pub(crate) fn segments(self) -> u32 {
        // Not a GSO packet, whatever `gso_segs` says: most are not, and each field costs three loads.
        let size = field!(self, gso_size);
        if size == 0 {
            return 1;
        }
        // Not every driver counts the segments of what it merged.
        match field!(self, gso_segs) {
            0 => self.len().div_ceil(size),
            segments => segments,
        }
    }

    /// VLAN that stands beside the frame, 0 for none or a priority tag.
    #[inline(always)]
    pub(crate) fn vlan_id(self) -> u16 {
        if field!(self, vlan_present) == 0 { 0 } else { field!(self, vlan_tci) as u16 & 0xfff }
    }

    /// Whether the packet came in by an interface.
    #[inline(always)]
    pub(crate) fn transit(self) -> bool {
        field!(self, ingress_ifindex) != 0
    }

    /// The device whose hook this is.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        field!(self, ifindex)
    }

    /// Whether the frame was addressed to the device that it came in by: `PACKET_HOST`.
    #[inline(always)]
    pub(crate) fn for_device(self) -> bool {
        field!(self, pkt_type) == 0
    }

    /// What verdict code wants to know beside the bytes.
    #[inline(always)]
    pub(crate) fn meta(self) -> Meta {
        Meta {
            slot: self.value(),
            len: self.len(),
            segments: self.segments(),
            vlan: field!(self, vlan_present) != 0,
            transit: self.transit(),
            mark: self.mark(),
        }
    }

    /// Readable bytes.
    #[inline(always)]
    pub(crate) fn buffer(self) -> SkbBuffer {
        let (start, end) = (field!(self, data) as usize, field!(self, data_end) as usize);
        SkbBuffer { skb: self, buffer: Buffer::new(start, end) }
    }

    /// Makes the headers readable; `false` when memory is short.
    #[inline(always)]
    pub(crate) fn pull(self) -> bool {
        let len = self.len();
        // SAFETY: the context is valid; packet pointers are read anew afterwards.
        unsafe { bpf_skb_pull_data(self.0, if len < PULL { len } else { PULL }) == 0 }
    }

    /// Addresses the frame to the next hop of the node's route into an overlay and takes one from its hop limit. The device by which it leaves; `None`,
    /// and nothing done, where the node has to see to it: another route or none, an unknown neighbour, a packet that is too long.
    #[inline(always)]
    pub(crate) fn route(self, hop: &Hop) -> Option<u32> {
        // SAFETY: plain memory.
        let mut route: Route = unsafe { core::mem::zeroed() };
        route.ifindex = hop.link;
        let len = match field!(self, gso_size) {
            0 => self.len() - Ethernet::LEN as u32,
            segment => segment + hop.headers,
        };
        route.__bindgen_anon_1.tot_len = if len > u16::MAX as u32 { u16::MAX } else { len as u16 };
        if hop.v6 {
            route.family = AF_INET6;
            route.__bindgen_anon_3.ipv6_src = hop.source;
            route.__bindgen_anon_4.ipv6_dst = hop.destination;
        } else {
            route.family = AF_INET;
            route.__bindgen_anon_3.ipv4_src = hop.source[3];
            route.__bindgen_anon_4.ipv4_dst = hop.destination[3];
        }
        // SAFETY: the context is valid, and the struct has the size that is said.
        let found = unsafe { bpf_fib_lookup(self.0.cast(), &raw mut route, size_of::<Route>() as i32, 0) };
        let good = found == 0 && direct::carries(&Maps, route.ifindex);
        (good && self.address(route.dmac, Some(route.smac))).then_some(route.ifindex)
    }

    /// Addresses the frame to a workload behind a bridge, from whom it was for so far: the overlay's device, a router for the workload. Takes one from
    /// its hop limit. `false`, and nothing done, when it cannot be written to.
    #[inline(always)]
    pub(crate) fn deliver(self, mac: [u8; 6]) -> bool {
        self.address(mac, None)
    }

    /// Puts MACs into the frame; as source, where none is given, who it was for so far. Takes one from the hop limit.
    #[inline(always)]
    fn address(self, destination: [u8; 6], source: Option<[u8; 6]>) -> bool {
        let Some(frame) = self.routed() else {
            return false;
        };
        if frame.ethernet.ethertype() == Ethernet::IPV4 {
            frame.ttl = frame.ttl.wrapping_sub(1);
            // What a word of the header loses its checksum gains, RFC 1141.
            let sum = u16::from_be_bytes(frame.checksum) as u32 + 0x100;
            frame.checksum = ((sum + (sum >= 0xffff) as u32) as u16).to_be_bytes();
        } else {
            // No checksum of the header makes up for it: the one that a device may have computed over the whole packet has to be told.
            let [next_header, hop_limit] = frame.next_header_and_hop_limit;
            let bytes = [next_header, hop_limit.wrapping_sub(1)];
            let (from, offset) = (bytes.as_ptr().cast(), core::mem::offset_of!(Routed, next_header_and_hop_limit));
            // SAFETY: two bytes on the stack; packet pointers are read anew afterwards.
            if unsafe { bpf_skb_store_bytes(self.0, offset as u32, from, 2, BPF_F_RECOMPUTE_CSUM as u64) } != 0 {
                return false;
            }
        }
        let Some(frame) = self.routed() else {
            return false;
        };
        frame.ethernet.source = source.unwrap_or(frame.ethernet.destination);
        frame.ethernet.destination = destination;
        true
    }

    /// What a router changes, if it is readable.
    #[inline(always)]
    fn routed(&self) -> Option<&mut Routed> {
        let (start, end) = (field!(self, data) as usize, field!(self, data_end) as usize);
        if start + size_of::<Routed>() > end {
            return None;
        }
        // SAFETY: within the packet, which lives as long as the program runs, and to which nothing else refers while this is used; `Routed` has alignment
        // 1 and no invalid pattern.
        Some(unsafe { &mut *(start as *mut Routed) })
    }

    /// Goes out by a link of this network namespace.
    #[inline(always)]
    pub(crate) fn redirect(self, link: u32) -> i32 {
        // SAFETY: a helper that takes numbers.
        unsafe { bpf_redirect(link, 0) as i32 }
    }
}
