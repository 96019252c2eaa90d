//! What arrives on the underlay, leaves by it, and comes out of a VXLAN device.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::Location,
};

use bulkhead_ebpf::{
    abi::{BINDINGS, ContactKey, Counter, Direction, mark, node, overlay},
    host::{HostTables, words},
    packet::Fault,
    reason::Reason,
    underlay::{self, Passage},
};
use bulkhead_fixtures::{
    Frame, VXLAN_PORT,
    catalogue::{A, B, Family, NODE_A, NODE_B, VNI, catalogue, named},
    proto, tcp,
};

use crate::{
    lab::{Name, counters, grown, reach},
    node::{FAMILIES, tables},
};

crate::scenarios! {
    the_catalogue_of_encapsulated_frames
    forged_packets
    owners_are_looked_up_by_the_longest_prefix
    who_was_verified_stays_so_for_a_generation
    traffic_of_others_passes
    outer_fragments
    inner_frames
    drops_are_sampled
    a_sender_with_its_own_segments
    forwarded_tunnel_traffic
    decapsulated_packets
    a_tunnel_in_a_tunnel
}

use Passage::{Drop, Foreign, Observed, Verified};
use Reason::{
    BadVxlan, ForwardedTunnel, Malformed, NotIp, OuterFragment, UnknownVni, UnknownVtep, Unverified, WrongVtep,
};

/// A third node.
const NODE_C: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3))];

/// The tables of `NODE_B`: `NODE_A`, which has `A`'s subnet, and `NODE_C` are VTEPs by either family.
fn node() -> HostTables {
    let mut tables = tables();
    tables.node.insert(node::OVERLAYS, 2);
    for vtep in NODE_C {
        tables.set_vtep(VNI, vtep);
    }
    tables
}

/// `A`'s subnets belong to the VTEP of this family.
fn own(tables: &mut HostTables, family: Family) {
    tables.set_owner(VNI, A.v4.into(), 24, NODE_A.ip(family));
    tables.set_owner(VNI, A.v6.into(), 64, NODE_A.ip(family));
}

/// A packet with what must become of it.
#[track_caller]
fn arrives(tables: &HostTables, frame: &Frame, expected: Passage) {
    arrives_as(tables, frame, 1, 0, expected);
}

#[track_caller]
fn arrives_as(tables: &HostTables, frame: &Frame, segments: u32, vlan: u16, expected: Passage) {
    let place = Location::caller();
    let frame = frame.build();
    let before = counters(tables);
    let len = u32::try_from(frame.len()).unwrap();
    let found = match underlay::arrives(tables, &frame[..], len, segments, vlan, false) {
        Ok(found) => found,
        // What cannot be read is foreign, and passes without the bit.
        Err(Fault::Truncated) => Foreign,
        Err(Fault::Malformed) => panic!("{place}: not an answer"),
    };
    // What passes is counted by the program, in TC alone, as XDP looks at the same packets.
    let counted = match expected {
        Drop(reason) => {
            reach(reason);
            let counter = Counter { packets: segments.max(1).into(), bytes: len.into(), flows: 0 };
            BTreeMap::from([(Name::Endpoint(0, Direction::Ingress, reason), counter)])
        }
        Verified => {
            reach(Reason::Verified);
            BTreeMap::new()
        }
        Observed => {
            reach(Reason::Observed);
            let counter = Counter { packets: segments.max(1).into(), bytes: len.into(), flows: 0 };
            BTreeMap::from([(Name::Endpoint(0, Direction::Ingress, Reason::Observed), counter)])
        }
        Foreign => BTreeMap::new(),
        Passage::Denied => unreachable!("in XDP alone"),
    };
    let now = grown(&before, &counters(tables));
    assert!(
        found == expected && now == counted,
        "{place}: expected {expected:?}, {counted:?}\nfound {found:?}, {now:?}\n{frame:02x?}\n{tables:#?}"
    );
}

fn syn() -> Frame {
    Frame::eth(A.mac, B.mac).ipv4(A.v4, B.v4).tcp(40_000, 5432, tcp::SYN)
}

fn outer(from: IpAddr, to: IpAddr) -> Frame {
    Frame::eth(NODE_A.mac, NODE_B.mac).ip(from, to)
}

fn tunnel(family: Family) -> Frame {
    outer(NODE_A.ip(family), NODE_B.ip(family)).vxlan(VNI)
}

fn the_catalogue_of_encapsulated_frames() {
    let mut count = 0;
    for (family, kind) in FAMILIES.into_iter().zip(["vxlan/ipv4/", "vxlan/ipv6/"]) {
        let mut tables = node();
        own(&mut tables, family);
        for entry in catalogue() {
            let Some(name) = entry.name.strip_prefix(kind) else { continue };
            count += 1;
            let expected = match name {
                "tcp" | "tcp6" | "udp" | "icmp" | "full" | "arp" | "checksummed" | "no-checksum" | "inner-fragment"
                | "options" => Verified,
                // Its own headers are in order; lengths and transport are the receiver's matter.
                "inner-len" | "inner-tcp" => Verified,
                "vlan-outside" | "outer-fragment-second" => Foreign,
                // No socket takes what it cannot read.
                "short" | "empty" | "no-frame" | "inner-short" | "inner-no-ip" => Foreign,
                "vlan-inside" => Drop(NotIp),
                "vni-0" | "vni-largest" | "port-4789" => Drop(UnknownVni),
                // The inner source is a node's.
                "nested" => Drop(WrongVtep),
                "outer-fragment-first" => Drop(OuterFragment),
                "reserved" | "group-policy" | "all-flags" | "no-vni" | "no-vni-others" => Drop(BadVxlan),
                "inner-ihl" => Drop(Malformed),
                _ => panic!("what becomes of {name}?"),
            };
            println!("{}", entry.name);
            arrives(&tables, &entry.frame, expected);
        }
    }
    assert_eq!(count, 62);
}

fn forged_packets() {
    let stranger: IpAddr = [192, 0, 2, 66].into();
    let stranger6: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66).into();
    for family in FAMILIES {
        let mut tables = node();
        own(&mut tables, family);
        let [us, c] = [NODE_B.ip(family), NODE_C[family as usize]];
        let unknown = if family == Family::V4 { stranger } else { stranger6 };
        arrives(&tables, &outer(unknown, us).vxlan(VNI).inner(syn()), Drop(UnknownVtep));
        arrives(&tables, &outer(c, us).vxlan(VNI).inner(syn()), Drop(WrongVtep));
        arrives(&tables, &outer(us, us).vxlan(VNI).inner(syn()), Drop(UnknownVtep));
        let foreign = Frame::eth(A.mac, B.mac).ipv4(B.v4, A.v4).udp(1, 53);
        arrives(&tables, &tunnel(family).inner(foreign), Drop(WrongVtep));
        let foreign = Frame::eth(A.mac, B.mac).ipv6(B.v6, A.v6).udp(1, 53);
        arrives(&tables, &tunnel(family).inner(foreign), Drop(WrongVtep));
        for vni in [0, VNI + 1, 0xff_ffff] {
            arrives(&tables, &outer(NODE_A.ip(family), us).vxlan(vni).inner(syn()), Drop(UnknownVni));
            arrives(&tables, &outer(unknown, us).vxlan(vni).inner(syn()), Drop(UnknownVni));
        }
        // Segments that were merged; a packet that a driver says nothing about.
        let frame = outer(unknown, us).vxlan(VNI).inner(syn());
        arrives_as(&tables, &frame, 17, 0, Drop(UnknownVtep));
        arrives_as(&tables, &frame, 0, 0, Drop(UnknownVtep));
        // By the other family the same node is a VTEP, but not the owner.
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        arrives(&tables, &tunnel(other).inner(syn()), Drop(WrongVtep));
        // A VTEP of another segment.
        tables.set_vtep(VNI + 1, unknown);
        arrives(&tables, &outer(unknown, us).vxlan(VNI).inner(syn()), Drop(UnknownVtep));
        arrives(&tables, &outer(unknown, us).vxlan(VNI + 1).inner(syn()), Drop(WrongVtep));
    }
}

fn owners_are_looked_up_by_the_longest_prefix() {
    let mut tables = node();
    let [us, a, c] = [NODE_B.ip(Family::V4), NODE_A.ip(Family::V4), NODE_C[0]];
    // One address of the subnet has moved.
    tables.set_owner(VNI, A.v4.into(), 32, c);
    arrives(&tables, &outer(a, us).vxlan(VNI).inner(syn()), Drop(WrongVtep));
    arrives(&tables, &outer(c, us).vxlan(VNI).inner(syn()), Verified);
    let neighbour = Frame::eth(A.mac, B.mac).ipv4([10, 244, 1, 6].into(), B.v4).udp(1, 53);
    arrives(&tables, &outer(a, us).vxlan(VNI).inner(neighbour), Verified);
    // A default route for one family is none for the other.
    tables.set_owner(VNI, Ipv4Addr::UNSPECIFIED.into(), 0, a);
    let far4 = Frame::eth(A.mac, B.mac).ipv4([198, 51, 100, 7].into(), B.v4).udp(1, 53);
    let far6 = Frame::eth(A.mac, B.mac).ipv6(B.v6, A.v6).udp(1, 53);
    arrives(&tables, &outer(a, us).vxlan(VNI).inner(far4), Verified);
    arrives(&tables, &outer(a, us).vxlan(VNI).inner(far6), Drop(WrongVtep));
}

fn traffic_of_others_passes() {
    for family in FAMILIES {
        let tables = node();
        let stranger = Frame::eth(NODE_A.mac, NODE_B.mac).ip(B.ip(family), NODE_B.ip(family));
        // No tunnel's port, no UDP, no address of ours, a VLAN that is another link's.
        arrives(&tables, &stranger.clone().udp(1, 8473).vxlan(VNI).inner(syn()), Foreign);
        arrives(&tables, &stranger.clone().udp(VXLAN_PORT, 1).payload(64), Foreign);
        arrives(&tables, &stranger.clone().udp(1, 0).payload(64), Foreign);
        arrives(&tables, &stranger.clone().tcp(1, VXLAN_PORT, tcp::SYN), Foreign);
        arrives(&tables, &outer(B.ip(family), NODE_A.ip(family)).vxlan(VNI).inner(syn()), Foreign);
        let forged = stranger.clone().vxlan(VNI).inner(syn());
        arrives_as(&tables, &forged, 1, 5, Foreign);
        arrives_as(&tables, &forged, 1, 0, Drop(UnknownVtep));
        arrives(&tables, &stranger.raw_l4(proto::UDP, &[0; 3]), Foreign);
        // Addresses beyond those in use.
        let mut fewer = node();
        fewer.config.vtep_count = 0;
        arrives(&fewer, &forged, Foreign);
    }
    for entry in catalogue() {
        if !entry.name.starts_with("vxlan/") {
            arrives(&node(), &entry.frame, Foreign);
        }
    }
    // More own addresses than there is room for.
    let mut more = node();
    more.config.vtep_count = u32::MAX;
    arrives(&more, &tunnel(Family::V4).inner(syn()), Verified);
}

fn who_was_verified_stays_so_for_a_generation() {
    for family in FAMILIES {
        let mut tables = node();
        own(&mut tables, family);
        let c = outer(NODE_C[family as usize], NODE_B.ip(family)).vxlan(VNI).inner(syn());
        let genuine = tunnel(family).inner(syn());
        arrives(&tables, &c, Drop(WrongVtep));
        arrives(&tables, &genuine, Verified);
        // The tables change, and their generation not yet: as if the packet had come before.
        tables.owners.clear();
        arrives(&tables, &genuine, Verified);
        // Nothing but that: another sender, segment or inner source.
        arrives(&tables, &c, Drop(WrongVtep));
        tables.set_vtep(VNI + 1, NODE_A.ip(family));
        let segment = outer(NODE_A.ip(family), NODE_B.ip(family)).vxlan(VNI + 1).inner(syn());
        arrives(&tables, &segment, Drop(WrongVtep));
        let neighbour = Frame::eth(A.mac, B.mac).ipv4([10, 244, 1, 6].into(), B.v4).udp(1, 53);
        arrives(&tables, &tunnel(family).inner(neighbour), Drop(WrongVtep));
        for generation in [3, 4] {
            tables.node.insert(node::OVERLAYS, generation);
            arrives(&tables, &genuine, Drop(WrongVtep));
        }
        // What was refused is not kept.
        own(&mut tables, family);
        arrives(&tables, &genuine, Verified);
        // Nothing is before the first generation, and while the tables change.
        for generation in [0, 5] {
            own(&mut tables, family);
            tables.node.insert(node::OVERLAYS, generation);
            arrives(&tables, &genuine, Verified);
            tables.owners.clear();
            arrives(&tables, &genuine, Drop(WrongVtep));
        }
    }
    // More senders than places: whoever finds another one there is looked up.
    let mut tables = node();
    own(&mut tables, Family::V4);
    let [us, a, c] = [NODE_B.ip(Family::V4), NODE_A.ip(Family::V4), NODE_C[0]];
    for _ in 0..2 {
        for host in 0..=u8::MAX {
            let inner = |subnet| Frame::eth(A.mac, B.mac).ipv4([10, 244, subnet, host].into(), B.v4).udp(1, 53);
            arrives(&tables, &outer(a, us).vxlan(VNI).inner(inner(1)), Verified);
            arrives(&tables, &outer(a, us).vxlan(VNI).inner(inner(9)), Drop(WrongVtep));
            arrives(&tables, &outer(c, us).vxlan(VNI).inner(inner(1)), Drop(WrongVtep));
        }
    }
    assert!(BINDINGS.is_power_of_two());
}

fn outer_fragments() {
    for family in FAMILIES {
        let mut tables = node();
        own(&mut tables, family);
        let whole = tunnel(family).inner(syn());
        let [first, later @ ..] = &whole.fragmented(0, 32, 9)[..] else { panic!() };
        arrives(&tables, first, Drop(OuterFragment));
        assert!(!later.is_empty());
        for later in later {
            arrives(&tables, later, Foreign);
        }
        // Of other traffic.
        for piece in outer(B.ip(family), NODE_B.ip(family)).udp(1, 53).payload(64).fragmented(0, 32, 9) {
            arrives(&tables, &piece, Foreign);
        }
    }
    // A fragment header around a whole packet.
    let mut tables = node();
    own(&mut tables, Family::V6);
    let atomic = outer(NODE_A.v6.into(), NODE_B.v6.into()).fragment(7, 0, false).udp(1, VXLAN_PORT).vxlan(VNI);
    arrives(&tables, &atomic.inner(syn()), Verified);
}

fn inner_frames() {
    let tables = node();
    let tunnel = || tunnel(Family::V4);
    let inner = || Frame::eth(A.mac, B.mac);
    arrives(&tables, &tunnel().inner(inner().arp_request(A.mac, A.v4, B.v4)), Verified);
    arrives(&tables, &tunnel().inner(inner().arp_request(A.mac, B.v4, A.v4)), Drop(WrongVtep));
    arrives(&tables, &tunnel().inner(inner().arp(9, A.mac, A.v4, B.mac, B.v4)), Drop(Malformed));
    arrives(&tables, &tunnel().inner(inner().ether_type(0x88b5).payload(46)), Drop(NotIp));
    arrives(&tables, &tunnel().inner(inner().ipv6(A.v6, B.v6).ip_version(4).udp(1, 2)), Drop(Malformed));
    // Neighbour discovery from an address that belongs to no node.
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5);
    arrives(&tables, &tunnel().inner(inner().ipv6(link_local, B.v6).nd_ns(B.v6, &[])), Drop(WrongVtep));
    arrives(&tables, &tunnel().inner(inner().ipv6(A.v6, B.v6).nd_ns(B.v6, &[])), Verified);
    // Extension headers of the inner packet are not looked at: its source is.
    arrives(&tables, &tunnel().inner(named("ipv6/chain-13").frame), Verified);
}

fn drops_are_sampled() {
    let mut tables = node();
    let forged = outer(NODE_C[0], NODE_B.v4.into()).vxlan(VNI).inner(syn());
    arrives(&tables, &forged, Drop(WrongVtep));
    tables.now += 5;
    arrives_as(&tables, &forged, 3, 0, Drop(WrongVtep));
    let contacts = tables.contacts();
    let key = ContactKey {
        peer: words(NODE_C[0]),
        slot: 0,
        port: 0,
        protocol: proto::UDP,
        direction: Direction::Ingress as u8,
        reason: WrongVtep as u8,
        flags: 0,
    };
    assert_eq!(contacts.len(), 1, "{contacts:?}");
    let contact = contacts[&key];
    assert_eq!((contact.vni, contact.inner), (VNI, words(A.v4.into())));
    assert_eq!((contact.packets, contact.bytes), (4, 2 * forged.build().len() as u64));
    assert_eq!((contact.first, contact.last), (1_000_000, 1_000_005));
    // What passes is no event.
    arrives(&tables, &tunnel(Family::V4).inner(syn()), Verified);
    assert_eq!(tables.contacts().len(), 1);
}

fn a_sender_with_its_own_segments() {
    let mut tables = node();
    // Docker: another port and VNI, addresses instead of prefixes.
    let docker = || outer(NODE_A.v4.into(), NODE_B.v4.into()).udp(50_000, 4789).vxlan(4096);
    arrives(&tables, &docker().inner(syn()), Drop(UnknownVni));
    tables.set_vtep(4096, NODE_A.v4.into());
    arrives(&tables, &docker().inner(syn()), Drop(WrongVtep));
    tables.set_owner(4096, A.v4.into(), 32, NODE_A.v4.into());
    arrives(&tables, &docker().inner(syn()), Verified);
}

#[track_caller]
fn forwards(tables: &HostTables, frame: &Frame, segments: u32, expected: bool) {
    tunnels(tables, frame, Direction::Egress, segments, expected);
}

/// What leaves by the underlay, or comes out of the device of [`VNI`].
#[track_caller]
fn tunnels(tables: &HostTables, frame: &Frame, direction: Direction, segments: u32, expected: bool) {
    let frame = frame.build();
    let before = counters(tables);
    let len = u32::try_from(frame.len()).unwrap();
    let found = match direction {
        Direction::Egress => underlay::forwards_tunnel(tables, &frame[..], len, segments),
        Direction::Ingress => underlay::nested(tables, &frame[..], VNI, len, segments),
    };
    // The programs let pass what they cannot read: no tunnel socket can read it either.
    let found = found.unwrap_or(false);
    let mut counted = BTreeMap::new();
    if expected {
        reach(ForwardedTunnel);
        let counter = Counter { packets: segments.max(1).into(), bytes: len.into(), flows: 0 };
        counted.insert(Name::Endpoint(0, direction, ForwardedTunnel), counter);
    }
    assert_eq!((found, grown(&before, &counters(tables))), (expected, counted), "{frame:02x?}");
}

fn forwarded_tunnel_traffic() {
    for family in FAMILIES {
        let tables = node();
        let out = || outer(A.ip(family), NODE_A.ip(family));
        forwards(&tables, &out().vxlan(VNI).inner(syn()), 1, true);
        forwards(&tables, &out().udp(1, 4789).payload(9), 3, true);
        forwards(&tables, &out().udp(1, 4789), 0, true);
        // To whom it goes makes no difference.
        forwards(&tables, &outer(A.ip(family), B.ip(family)).udp(1, VXLAN_PORT), 1, true);
        forwards(&tables, &out().udp(VXLAN_PORT, 1), 1, false);
        forwards(&tables, &out().udp(1, 0), 1, false);
        forwards(&tables, &out().tcp(1, VXLAN_PORT, tcp::SYN), 1, false);
        let [first, later, ..] = &out().vxlan(VNI).inner(syn()).fragmented(0, 32, 9)[..] else { panic!() };
        forwards(&tables, first, 1, true);
        forwards(&tables, later, 1, false);
    }
    for name in ["arp/request", "eth/lldp", "ipv4/ihl-0", "ipv4/cut", "ipv6/ext-cut", "eth/empty"] {
        forwards(&node(), &named(name).frame, 1, false);
    }
}

fn decapsulated_packets() {
    let tables = node();
    for (link, packet_mark, segments, passes) in [
        (VNI, mark::VERIFIED, 1, true),
        (VNI, mark::VERIFIED | 0x4000, 1, true),
        (VNI | overlay::UNMARKED, 0, 1, true),
        (VNI, 0, 1, false),
        (VNI, !mark::VERIFIED, 5, false),
        (overlay::VNI, 0, 0, false),
    ] {
        let before = counters(&tables);
        let found = underlay::decapsulated(&tables, link, packet_mark, 100, segments);
        let mut counted = BTreeMap::new();
        if !passes {
            reach(Unverified);
            let counter = Counter { packets: segments.max(1).into(), bytes: 100, flows: 0 };
            counted.insert(Name::Endpoint(0, Direction::Ingress, Unverified), counter);
        }
        assert_eq!((found, grown(&before, &counters(&tables))), (passes, counted), "{link:#x} {packet_mark:#x}");
    }
}

/// What was checked is what was around it: a node's own tunnel would take it for checked once more, whoever it says that it is from.
fn a_tunnel_in_a_tunnel() {
    for family in FAMILIES {
        let tables = node();
        let comes = |frame: &Frame, segments, expected| tunnels(&tables, frame, Direction::Ingress, segments, expected);
        let gateway = |family| match A.ip(family) {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & !0xff | 1).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0xff | 1).into(),
        };
        let out = |to: IpAddr| outer(B.ip(family), to);
        comes(&out(gateway(family)).vxlan(VNI).inner(syn()), 1, true);
        comes(&out(NODE_A.ip(family)).udp(1, 4789).payload(9), 3, true);
        comes(&out(gateway(family)).udp(1, 53), 1, false);
        comes(&out(gateway(family)).tcp(1, VXLAN_PORT, tcp::SYN), 1, false);
        // A workload's own service on that port.
        comes(&out(A.ip(family)).udp(1, VXLAN_PORT), 1, false);
        // Another node's workload is none that is here.
        comes(&out(B.ip(family)).udp(1, VXLAN_PORT), 1, true);
        let [first, later, ..] = &out(gateway(family)).vxlan(VNI).inner(syn()).fragmented(0, 32, 9)[..] else {
            panic!()
        };
        comes(first, 1, true);
        comes(later, 1, false);
    }
}
