//! The boundary of the overlay: who may hand encapsulated packets to this node.

use crate::{
    abi::{
        BINDINGS, Binding, Contact, ContactKey, Direction, OWN_VTEPS, VtepKey, endpoint_counter, mapped, mark, node,
        overlay,
    },
    family::{Family, V4, V6, prefix_key},
    packet::{Arp, Ethernet, Fault, Frame, Ip, Parsed, Vxlan, datagram_len, protocol, transport},
    reason::Reason,
    tables::{Size, Tables},
    verdict::{early, node_observes, tunnel},
};

/// What the check says of a packet on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Not encapsulated traffic for this node: none of our business.
    Foreign,
    /// Comes from a VTEP that owns the inner source.
    Verified,
    /// Forged or broken.
    Drop(Reason),
    /// Verified, and denied by the policy of the endpoint that it is for: in XDP alone, and counted as TC would count it.
    Denied,
    /// The same, on a node that only observes.
    Observed,
}

/// Checks a packet that arrives on a link which carries the overlay. `vlan` is the VLAN that stands beside the frame, 0 for none: a packet
/// of a VLAN belongs to another link. `early` is for XDP: what it lets pass is checked again, and counts there; and what policy will drop for certain
/// is dropped already.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn arrives<T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    len: u32,
    segments: u32,
    vlan: u16,
    early: bool,
) -> Parsed<Passage> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    if vlan != 0 {
        return Ok(Passage::Foreign);
    }
    let checked = match ethernet.ethertype() {
        Ethernet::IPV4 => outer::<V4, T, F>(tables, frame),
        Ethernet::IPV6 => outer::<V6, T, F>(tables, frame),
        _ => return Ok(Passage::Foreign),
    };
    let size = Size::of(len, segments);
    match checked {
        Ok(None) => Ok(Passage::Foreign),
        Ok(Some(found)) => {
            if matches!(found.reason, Reason::Verified) {
                let whole = found.end == len as usize;
                let denied = early && whole && early::denies(tables, frame, len as usize, found.inner_frame, found.vni);
                return Ok(if denied { Passage::Denied } else { Passage::Verified });
            }
            let now = tables.now();
            let observed = node_observes(tables, now);
            if observed && early {
                return Ok(Passage::Observed);
            }
            let counted = if observed { Reason::Observed } else { found.reason };
            tables.count_endpoint(endpoint_counter(0, Direction::Ingress, counted as u8), size, 0);
            let key = ContactKey {
                peer: found.outer,
                slot: 0,
                port: 0,
                protocol: protocol::UDP,
                direction: Direction::Ingress as u8,
                reason: found.reason as u8,
                flags: if observed { ContactKey::OBSERVED } else { 0 },
            };
            let contact = Contact {
                packets: size.packets,
                bytes: size.bytes,
                first: now,
                last: now,
                counter: 0,
                vni: found.vni,
                inner: found.inner,
            };
            tables.sample(&key, &contact);
            Ok(if observed { Passage::Observed } else { Passage::Drop(found.reason) })
        }
        // What is not ours on the underlay passes; what cannot be parsed never reaches a tunnel socket without the bit.
        Err(Fault::Malformed) => Ok(Passage::Foreign),
        Err(Fault::Truncated) => Err(Fault::Truncated),
    }
}

/// Verdict on a packet for an own VTEP.
struct Found {
    reason: Reason,
    outer: [u32; 4],
    vni: u32,
    inner: [u32; 4],
    /// Where the inner frame begins.
    inner_frame: usize,
    /// Where the datagram ends, as its header says it.
    end: usize,
}

/// Counts what passed the check.
#[inline(always)]
pub fn count_verified<T: Tables>(tables: &T, size: Size) {
    tables.count_endpoint(endpoint_counter(0, Direction::Ingress, Reason::Verified as u8), size, 0);
}

#[inline(always)]
fn own_vtep<T: Tables>(tables: &T, address: &[u32; 4]) -> bool {
    let Some(config) = tables.config() else {
        return false;
    };
    for i in 0..OWN_VTEPS {
        if i >= config.vtep_count as usize {
            break;
        }
        let own = &config.vteps[i];
        if equal(own, address) {
            return true;
        }
    }
    false
}

/// `None` for what is not encapsulated traffic to an own VTEP.
#[inline(always)]
fn outer<A: Family, T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F) -> Parsed<Option<Found>> {
    let ip: Ip<A::Address> = A::parse(frame, Ethernet::LEN)?;
    // Later fragments pass: without the first one, which is dropped, nothing is reassembled.
    if ip.protocol != protocol::UDP || ip.later_fragment {
        return Ok(None);
    }
    let udp = transport(frame, &ip, A::V6)?;
    if !tunnel(tables, udp.destination_port) || !own_vtep(tables, &A::mapped(ip.destination)) {
        return Ok(None);
    }
    let mut found = Found {
        reason: Reason::BadVxlan,
        outer: A::mapped(ip.source),
        vni: 0,
        inner: [0; 4],
        inner_frame: udp.end + Vxlan::LEN,
        end: ip.transport + datagram_len(frame, ip.transport).ok_or(Fault::Truncated)?,
    };
    if ip.fragment {
        found.reason = Reason::OuterFragment;
        return Ok(Some(found));
    }
    let vxlan: &Vxlan = frame.at(udp.end).ok_or(Fault::Truncated)?;
    let Some(vni) = vxlan.vni() else {
        return Ok(Some(found));
    };
    found.vni = vni;
    match inner_source(frame, found.inner_frame) {
        Ok(Some(source)) => found.inner = source,
        Ok(None) => {
            found.reason = Reason::NotIp;
            return Ok(Some(found));
        }
        Err(Fault::Malformed) => {
            found.reason = Reason::Malformed;
            return Ok(Some(found));
        }
        Err(Fault::Truncated) => return Err(Fault::Truncated),
    }
    found.reason = binding(tables, vni, &found.outer, &found.inner);
    Ok(Some(found))
}

/// Source of the inner packet, IPv4 mapped. `None` for what is neither IP nor ARP, tagged frames included.
#[inline(always)]
fn inner_source<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Option<[u32; 4]>> {
    let ethernet: &Ethernet = frame.at(offset).ok_or(Fault::Truncated)?;
    let offset = offset + Ethernet::LEN;
    Ok(match ethernet.ethertype() {
        Ethernet::IPV4 => Some(mapped(crate::packet::ipv4(frame, offset)?.source)),
        Ethernet::IPV6 => Some(crate::packet::ipv6_source(frame, offset)?),
        Ethernet::ARP => {
            let arp: &Arp = frame.at(offset).ok_or(Fault::Truncated)?;
            if !arp.known() {
                return Err(Fault::Malformed);
            }
            Some(mapped(u32::from_ne_bytes(arp.sender)))
        }
        _ => None,
    })
}

/// Whether the VTEP owns the inner source; if not, what is wrong. Only that it does is kept.
#[inline(always)]
fn binding<T: Tables>(tables: &T, vni: u32, outer: &[u32; 4], inner: &[u32; 4]) -> Reason {
    // Before the prefixes: what they say may be newer than this generation, never older. (The publisher waits for whoever may have begun before.)
    let generation = tables.node(node::OVERLAYS);
    let settled = generation != 0 && generation & 1 == 0;
    let place = place(vni, outer, inner);
    let kept = tables.binding(place);
    if kept.is_some_and(|kept| {
        settled
            && kept.generation == generation
            && kept.vni == vni
            && equal(&kept.inner, inner)
            && equal(&kept.outer, outer)
    }) {
        return Reason::Verified;
    }
    if let Some(owner) = tables.owner(&prefix_key(vni, *inner))
        && equal(&owner.vtep, outer)
    {
        if settled {
            tables.keep_binding(place, &Binding { generation, vni, padding: 0, outer: *outer, inner: *inner });
        }
        return Reason::Verified;
    }
    if !tables.vtep(&VtepKey { vni, address: [0; 4] }) {
        Reason::UnknownVni
    } else if tables.vtep(&VtepKey { vni, address: *outer }) {
        Reason::WrongVtep
    } else {
        Reason::UnknownVtep
    }
}

/// From the last word on, where addresses differ.
#[inline(always)]
const fn equal(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
}

/// Where a [`Binding`] is kept: a multiplicative hash, of which the upper bits are the good ones.
#[inline(always)]
const fn place(vni: u32, outer: &[u32; 4], inner: &[u32; 4]) -> u32 {
    let mixed = (inner[3] as u64) << 32 | (outer[3] ^ inner[2] ^ vni) as u64;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 & (BINDINGS - 1)
}

/// Whether a packet that leaves by a link which carries the overlay is tunnel traffic that somebody made this node forward, past every check
/// of what is inside (a service whose backend is a node's tunnel port). Encapsulation by this node's own device starts here: it has no ingress.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn forwards_tunnel<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, len: u32, segments: u32) -> Parsed<bool> {
    refuses_tunnel(tables, frame, Direction::Egress, None, (len, segments))
}

/// Whether a packet that leaves a VXLAN device is tunnel traffic itself, and not for an endpoint of the device's segment. It has passed the check of what was
/// around it, which the tunnel's socket would take for its own: who sent it would be whoever it says inside.
///
/// # Errors
/// [`Fault::Truncated`], nothing counted.
#[inline(always)]
pub fn nested<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, link: u32, len: u32, segments: u32) -> Parsed<bool> {
    refuses_tunnel(tables, frame, Direction::Ingress, Some(link & overlay::VNI), (len, segments))
}

/// Counts tunnel traffic, unless it is for an endpoint of this node in a segment. Whether it is dropped.
#[inline(always)]
fn refuses_tunnel<T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    direction: Direction,
    segment: Option<u32>,
    (len, segments): (u32, u32),
) -> Parsed<bool> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let found = match ethernet.ethertype() {
        Ethernet::IPV4 => to_tunnel::<V4, T, F>(tables, frame, segment),
        Ethernet::IPV6 => to_tunnel::<V6, T, F>(tables, frame, segment),
        _ => Ok(false),
    };
    match found {
        Ok(true) => Ok(!refuse(tables, direction, Reason::ForwardedTunnel, len, segments)),
        Err(Fault::Malformed) => Ok(false),
        other => other,
    }
}

#[inline(always)]
fn to_tunnel<A: Family, T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, segment: Option<u32>) -> Parsed<bool> {
    let ip: Ip<A::Address> = A::parse(frame, Ethernet::LEN)?;
    if ip.protocol != protocol::UDP || ip.later_fragment {
        return Ok(false);
    }
    if !tunnel(tables, transport(frame, &ip, A::V6)?.destination_port) {
        return Ok(false);
    }
    let here = |segment| matches!(A::address(tables, segment, ip.destination), Some((word, true)) if word.slot() != 0);
    Ok(!segment.is_some_and(here))
}

/// Whether a packet may leave a VXLAN device towards the node's stack: it passed the check, or the device is in a namespace that no mark reaches.
#[inline(always)]
pub fn decapsulated<T: Tables>(tables: &T, link: u32, packet_mark: u32, len: u32, segments: u32) -> bool {
    if link & overlay::UNMARKED != 0 || packet_mark & mark::VERIFIED != 0 {
        return true;
    }
    refuse(tables, Direction::Ingress, Reason::Unverified, len, segments)
}

/// Counts what is refused for the node; `true` where it passes all the same, because the node only observes.
#[inline(always)]
pub fn refuse<T: Tables>(tables: &T, direction: Direction, reason: Reason, len: u32, segments: u32) -> bool {
    let observed = node_observes(tables, tables.now());
    let reason = if observed { Reason::Observed } else { reason };
    tables.count_endpoint(endpoint_counter(0, direction, reason as u8), Size::of(len, segments), 0);
    observed
}
