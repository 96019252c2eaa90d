//! The verdict before decapsulation: XDP drops here what TC would certainly drop at the endpoint's link, and counts what TC would count. What is not
//! certain passes, and TC judges it.
//!
//! Certain is little: a TCP segment with SYN and without ACK, alone in its packet, for an endpoint of this node that enforces, from a peer of the
//! overlay, without a flow, which the lists of ingress deny and about which nobody asks what audited policies say. All else may be a reply, may be
//! translated on its way, or may pass all the same. What the node's own stack would drop in between (a wrong checksum) is taken as if it arrived.

use super::{Case, Verdict, finish, key_ports, node_observes, peer, view_now};
use crate::{
    abi::{AddressWord, Class, Direction, Mode},
    family::{Family, V4, V6},
    packet::{Ethernet, Frame, Plain, Role, ip_len, protocol, same_mac},
    tables::{Size, Tables},
    underlay::count_verified,
};

/// Whether what is encapsulated is dropped, and counted if so. The frame is `len` bytes long and ends with its
/// datagram, the inner one of overlay `vni` begins at `inner`; that its sender may send it is known.
#[inline(always)]
pub(crate) fn denies<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, len: usize, inner: usize, vni: u32) -> bool {
    let Some(ethernet) = frame.at::<Ethernet>(inner) else {
        return false;
    };
    let denied = match ethernet.ethertype() {
        Ethernet::IPV4 => syn::<V4, T, F>(tables, frame, len, inner, vni),
        Ethernet::IPV6 => syn::<V6, T, F>(tables, frame, len, inner, vni),
        _ => None,
    };
    denied.is_some()
}

/// `None` for what passes.
#[inline(always)]
fn syn<A: Family, T: Tables, F: Frame + ?Sized>(
    tables: &T,
    frame: &F,
    len: usize,
    inner: usize,
    segment: u32,
) -> Option<()> {
    let sure = |sure: bool| if sure { Some(()) } else { None };
    let ip = A::parse(&Plain(frame), inner + Ethernet::LEN).ok()?;
    sure(ip.protocol == protocol::TCP && !ip.fragment)?;
    let transport = frame.transport(ip.transport, protocol::TCP, A::V6).ok()?;
    sure(transport.role == Role::Begin)?;
    // Every length says that it ends behind its headers. So it stands for one segment, and nothing is cut off before it is counted in TC. A router
    // drops it neither for its time to live, nor looks at options.
    sure(
        transport.end == len
            && ip_len(frame, inner + Ethernet::LEN, A::V6)? == len - inner - Ethernet::LEN
            && ip.transport == inner + Ethernet::LEN + A::HEADER
            && ip.hop_limit > 1,
    )?;

    let Some((to, true)) = A::address(tables, segment, ip.destination) else {
        return None;
    };
    let slot = to.slot();
    sure(slot != 0)?;
    // From here on as in TC: the endpoint's word before whatever it leads to.
    let info = tables.info(slot).filter(|info| info.identity != 0 && info.segment == segment)?;
    let word = tables.endpoint(slot);
    let own = A::own(info, ip.destination)?;
    let now = tables.now();
    sure(word.mode() as u8 == Mode::Enforce as u8 && !node_observes(tables, now))?;
    let (index, view) = view_now(tables, word, now)?;
    sure(!view.audited(Direction::Ingress))?;

    // Of a node, or in the name of a local endpoint: the node may put another address in its place, or it is forged.
    let from = peer::<A, T>(tables, segment, ip.source, false)?;
    sure(from.flags() & AddressWord::NODE == 0 && from.slot() == 0)?;
    // Bridged to the endpoint, or routed within the overlay, so that no other address is put in the place of its own.
    let ethernet: &Ethernet = frame.at(inner)?;
    let routed = from.flags() & AddressWord::ENCAPSULATED != 0 && !ethernet.to_group();
    sure(routed || same_mac(&ethernet.destination, &info.mac))?;

    let (local_port, remote_port) = key_ports(&transport, false);
    let key = A::key((ip.destination, own), ip.source, local_port, remote_port, protocol::TCP);
    sure(A::flow(tables, slot, &key).is_none())?;

    let half = view.ingress;
    let decision = tables.walk(half.set, Class::Tcp, transport.destination_port, from.row(), false);
    sure(!decision.allows())?;

    let case = Case {
        key,
        remote: ip.source,
        now,
        good: word.0,
        packets: 1,
        bytes: (len - inner) as u64,
        slot,
        mark: 0,
        view: index,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        direction: Direction::Ingress as u8,
        class: Class::Tcp as u8,
        role: Role::Begin as u8,
        protocol: protocol::TCP,
        tcp_flags: transport.tcp_flags,
        keyed: 1,
        fragment: 0,
        transit: 1,
        held: 0,
        via: 0,
    };
    let verdict = Verdict {
        reason: decision.reason(),
        flags: 0,
        allow: false,
        observed: false,
        ruled: true,
        differs: false,
        answers: false,
        itself: false,
        direct: false,
        counter: tables.rule_counter(half.counters.wrapping_add(decision.rule() as u32)),
        would: 0,
        peer: 0,
    };
    count_verified(tables, Size { packets: 1, bytes: len as u64 });
    finish::<A, T>(tables, &case, transport.destination_port, None, verdict);
    Some(())
}
