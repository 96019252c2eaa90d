//! Direct forwarding: from the hook where a packet has its verdict straight to the next hook, past what the node has between the two (bridge, routes,
//! netfilter, other programs at the first hook). Off unless the node asks for it ([`node::DIRECT`]).
//!
//! Every hook stays in its place and judges as ever; only the way between them is shorter. Three ways there are: from a workload to another one on its
//! bridge, from a workload into the overlay, and from the overlay to a workload.
//!
//! What the node translates (services, masquerading) needs its connection tracking in both directions, so it takes the node's way. All else takes one way
//! from its first packet to its last, in both directions: connection tracking calls a TCP segment invalid whose connection it saw only a part of, and rules
//! of kube-proxy drop such. (Of other protocols the node sees the first packet that comes by the overlay, which may be an answer to a call that it
//! translated.) So it is a property of a flow, [`crate::abi::Flow::DIRECT`]. The flow of a workload that calls gets it when it begins, never later, and loses
//! it when the node turns out to be needed ([`gives_up`]), or has translated a packet of it. That of one that is called follows its caller's packets, by
//! [`mark::DIRECT`]: answers take the way that the calls come. Where it ends while a connection lives, connection tracking has not seen any of it, and takes it
//! up where it is (`nf_conntrack_tcp_loose`, on by default), unless what it sees first is the end.
//!
//! Nor does connection tracking know such a connection's ports to be in use. Of two that a workload has at the same time from one port, one of them to a
//! service and the other to the very backend that it leads to, the second one does not come about, and the first one is cut if it went directly: both are
//! one flow here. The kernel may give one port to connections with different destinations, so it can happen to who calls both ways.

use crate::{
    abi::{AddressWord, EndpointInfo, mark, node},
    family::{Family, V4, V6},
    packet::{Ethernet, Fault, Frame, Ip, Parsed, Role, Transport, protocol, quoted, same_mac},
    tables::Tables,
    verdict::{key_ports, observes, peer},
};

/// Whether packets of a workload, and to it, are forwarded directly, where nothing else speaks against it. Not while it or the node only observes, or
/// enforcement is bypassed: then a call to a service passes that nobody judges behind the translation.
#[inline(always)]
pub(crate) fn may<T: Tables>(tables: &T, slot: u32, info: &EndpointInfo) -> bool {
    tables.node(node::DIRECT) != 0 && info.link != 0 && !observes(tables, slot, tables.now())
}

/// Where a packet that a workload sent goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The node's way.
    Node,
    /// Out by a link: it is for the workload behind it, and addressed to it; both links are ports of one bridge.
    Link(u32),
    /// Into the overlay, by the node's route.
    Overlay(Hop),
}

/// A packet that is to be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// IPv6.
    pub v6: bool,
    /// Source; IPv4 in the last word.
    pub source: [u32; 4],
    /// Destination; IPv4 in the last word.
    pub destination: [u32; 4],
    /// The link by which it came to the node's routes: the bridge, if there is one.
    pub link: u32,
    /// Bytes of the headers above the frame's: each segment repeats them.
    pub headers: u32,
}

/// Whether a link is a VXLAN device that carries one of the node's overlays.
#[must_use]
#[inline(always)]
pub fn carries<T: Tables>(tables: &T, link: u32) -> bool {
    for i in 0..node::OVERLAY_LINKS {
        if link != 0 && tables.node(node::OVERLAY_LINK + i) == link as u64 {
            return true;
        }
    }
    false
}

/// Where a packet goes whose verdict is [`crate::verdict::Next::Direct`].
///
/// # Errors
/// [`Fault::Truncated`]. What is malformed takes the node's way.
#[inline(always)]
pub fn leaves<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, slot: u32) -> Parsed<Way> {
    let Some(info) = tables.info(slot).filter(|info| may(tables, slot, info)) else {
        return Ok(Way::Node);
    };
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    match ethernet.ethertype() {
        Ethernet::IPV4 => way::<V4, T, F>(tables, frame, ethernet, slot, info),
        Ethernet::IPV6 => way::<V6, T, F>(tables, frame, ethernet, slot, info),
        _ => Ok(Way::Node),
    }
}

#[inline(always)]
fn way<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    ethernet: &Ethernet,
    slot: u32,
    info: &EndpointInfo,
) -> Parsed<Way> {
    let ip: Ip<A::Address> = A::parse(frame, Ethernet::LEN)?;
    let Some(known) = peer::<A, T>(tables, info.segment, ip.destination, false) else {
        return Ok(Way::Node);
    };
    if known.slot() != 0 {
        // Who has the slot by now may be somebody else: the link is that of who has the address.
        let to = tables.info(known.slot()).filter(|to| {
            known.slot() != slot
                && info.bridge != 0
                && info.bridge == to.bridge
                && same_mac(&ethernet.destination, &to.mac)
                && A::own(to, ip.destination).is_some()
        });
        let to = to.filter(|to| may(tables, known.slot(), to));
        return Ok(to.map_or(Way::Node, |to| Way::Link(to.link)));
    }
    // What another router is to have, the bridge brings there. The node answers where the hop limit is at its end.
    let routed = same_mac(&ethernet.destination, &info.router);
    if known.flags() & AddressWord::ENCAPSULATED == 0 || !routed || ip.hop_limit <= 1 {
        return Ok(Way::Node);
    }
    let headers = frame.transport(ip.transport, ip.protocol, A::V6)?.end - Ethernet::LEN;
    let (source, destination) = (A::mapped(ip.source), A::mapped(ip.destination));
    let link = if info.bridge == 0 { info.link } else { info.bridge };
    Ok(Way::Overlay(Hop { v6: A::V6, source, destination, link, headers: headers as u32 }))
}

/// Leaves the flow of a packet to the node, which alone has a way for it: what answers it has to take that way, too. So has what it answers, where
/// that comes from this node.
#[inline(always)]
pub fn gives_up<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, slot: u32) {
    let (Some(info), Some(ethernet)) = (tables.info(slot), frame.at::<Ethernet>(0)) else {
        return;
    };
    // It was read before: nothing of it is missing.
    let _ = match ethernet.ethertype() {
        Ethernet::IPV4 => leave::<V4, T, F>(tables, frame, slot, info),
        _ => leave::<V6, T, F>(tables, frame, slot, info),
    };
}

#[inline(always)]
fn leave<A: Family, T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, slot: u32, info: &EndpointInfo) -> Parsed<()> {
    let ip: Ip<A::Address> = A::parse(frame, Ethernet::LEN)?;
    let transport = frame.transport(ip.transport, ip.protocol, A::V6)?;
    clear::<A, T>(tables, slot, info, &ip, &transport, true);
    if let Some(known) = peer::<A, T>(tables, info.segment, ip.destination, false)
        && let Some(to) = tables.info(known.slot()).filter(|_| known.slot() != 0)
    {
        clear::<A, T>(tables, known.slot(), to, &ip, &transport, false);
    }
    Ok(())
}

/// Leaves to the node the flow that a workload has of a packet which it sent or is sent.
#[inline(always)]
fn clear<A: Family, T: Tables>(
    tables: &T,
    slot: u32,
    info: &EndpointInfo,
    ip: &Ip<A::Address>,
    transport: &Transport,
    sent: bool,
) {
    if let Some(own) = A::own(info, if sent { ip.source } else { ip.destination })
        && let Some(flow) = A::flow(tables, slot, &about::<A>(ip, transport, own, sent))
    {
        flow.set_direct(false);
    }
}

/// What becomes of a decapsulated packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It takes the node's way.
    Node,
    /// The same; and what it begins may be forwarded directly: it gets [`mark::DIRECT`].
    Marked,
    /// To the workload with this MAC, by this link.
    Link([u8; 6], u32),
}

/// Where a packet goes that passed the check on the underlay and was decapsulated by a device (its index), in an overlay (its VNI).
///
/// # Errors
/// [`Fault::Truncated`]. What is malformed takes the node's way.
#[inline(always)]
pub fn arrives<T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    segment: u32,
    packet_mark: u32,
    device: u32,
) -> Parsed<Arrival> {
    // What answers has to find the way back.
    if tables.node(node::DIRECT) == 0 || packet_mark & mark::VERIFIED == 0 || !carries(tables, device) {
        return Ok(Arrival::Node);
    }
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    match ethernet.ethertype() {
        Ethernet::IPV4 => to_workload::<V4, T, F>(tables, frame, ethernet, segment),
        Ethernet::IPV6 => to_workload::<V6, T, F>(tables, frame, ethernet, segment),
        _ => Ok(Arrival::Node),
    }
}

#[inline(always)]
fn to_workload<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    ethernet: &Ethernet,
    segment: u32,
) -> Parsed<Arrival> {
    let ip: Ip<A::Address> = A::parse(frame, Ethernet::LEN)?;
    let slot = match A::address(tables, segment, ip.destination) {
        Some((known, true)) => known.slot(),
        _ => 0,
    };
    if slot == 0 || ip.fragment || ip.hop_limit <= 1 {
        return Ok(Arrival::Node);
    }
    // An overlay that is part of a bridge addresses frames to workloads, and has nothing to route.
    let routed = |info: &&EndpointInfo| may(tables, slot, info) && !same_mac(&ethernet.destination, &info.mac);
    let Some(info) = tables.info(slot).filter(routed) else {
        return Ok(Arrival::Node);
    };
    let Some(own) = A::own(info, ip.destination) else {
        return Ok(Arrival::Node);
    };
    let headers = frame.transport(ip.transport, ip.protocol, A::V6)?;
    let about = if headers.role as u8 == Role::Error as u8 {
        // About what the workload sent.
        let inner = A::parse(frame, headers.end)?;
        if inner.source != ip.destination {
            return Ok(Arrival::Node);
        }
        about::<A>(&inner, &quoted(frame, &inner, A::V6)?, own, true)
    } else {
        about::<A>(&ip, &headers, own, false)
    };
    let direct = match A::flow(tables, slot, &about) {
        Some(flow) => flow.is_direct(),
        // Unless its answer goes another way.
        None if headers.role as u8 == Role::Begin as u8 => peer::<A, T>(tables, segment, ip.source, false)
            .is_some_and(|known| known.flags() & AddressWord::ENCAPSULATED != 0),
        // An answer in the name of a service, or the first one of its flow.
        None if ip.protocol != protocol::TCP && headers.role as u8 != Role::Error as u8 => return Ok(Arrival::Marked),
        None => false,
    };
    Ok(if direct { Arrival::Link(info.mac, info.link) } else { Arrival::Node })
}

/// Key of the flow of a packet that the workload sent or is sent.
#[inline(always)]
fn about<A: Family>(ip: &Ip<A::Address>, transport: &Transport, own: u8, sent: bool) -> A::FlowKey {
    let (local, remote) = if sent { (ip.source, ip.destination) } else { (ip.destination, ip.source) };
    let (local_port, remote_port) = key_ports(transport, sent);
    A::key((local, own), remote, local_port, remote_port, ip.protocol)
}
