//! Which packets are forwarded directly, and whereto; and that nothing else changes by it.

use std::net::IpAddr;

use bulkhead_ebpf::{
    abi::{AddressWord, Backend, Direction, EndpointWord, Flow, Mode, ServiceKey, mark, node},
    direct::{Arrival, Hop, Way, arrives, carries, gives_up, leaves},
    host::{HostTables, words},
    verdict::{Meta, Next, Outcome},
};
use bulkhead_fixtures::{
    Frame, IcmpError, Mac,
    catalogue::{A, B, Family, NODE_A, NODE_B, VNI},
    proto, tcp,
};

use crate::{
    lab::BRIDGE,
    node::{CLOSED, FAMILIES, LOCAL, OPEN, SLOT, local, tables},
};

/// Links of the two workloads of the node.
const LINKS: [u32; 2] = [11, 12];
/// The bridge of both.
const CNI0: u32 = 10;
/// The overlay's device.
const FLANNEL: u32 = 7;
const LOCAL_MAC: Mac = [2, 0x42, 10, 244, 1, 6];
const PORTS: (u16, u16) = (40_000, 8080);

/// Forwards directly; no policy isolates anybody.
fn forwarding() -> HostTables {
    let mut tables = tables();
    tables.node.insert(node::DIRECT, 1);
    tables.node.insert(node::OVERLAY_LINK + 1, FLANNEL.into());
    for (slot, link) in [SLOT, LOCAL].into_iter().zip(LINKS) {
        tables.words.insert(slot, EndpointWord::new(1, OPEN, Mode::Enforce));
        let info = tables.infos.get_mut(&slot).expect("the lab's");
        (info.link, info.bridge, info.router) = (link, CNI0, BRIDGE);
    }
    tables
}

fn judge(tables: &HostTables, direction: Direction, frame: &Frame, slot: u32, packet_mark: u32) -> Outcome {
    let frame = frame.build();
    let meta = Meta { slot, len: frame.len() as u32, segments: 1, vlan: false, transit: true, mark: packet_mark };
    let outcome = tables.judge(direction, &frame, &meta);
    assert!(outcome.pass, "{outcome:?}");
    outcome
}

fn sends(tables: &HostTables, frame: &Frame, slot: u32) -> Next {
    judge(tables, Direction::Egress, frame, slot, 0).next
}

fn gets(tables: &HostTables, frame: &Frame, slot: u32, packet_mark: u32) {
    assert_eq!(judge(tables, Direction::Ingress, frame, slot, packet_mark).next, Next::Settled);
}

fn way(tables: &HostTables, frame: &Frame, slot: u32) -> Way {
    leaves(tables, &frame.build()[..], slot).expect("whole")
}

fn arrival(tables: &HostTables, frame: &Frame) -> Arrival {
    arrives(tables, &frame.build()[..], VNI, mark::VERIFIED, FLANNEL).expect("whole")
}

/// From the workload on the node's bridge to `A` and back.
fn between(family: Family) -> [Frame; 2] {
    let (local, own) = (local(family), A.ip(family));
    [Frame::eth(LOCAL_MAC, A.mac).ip(local, own), Frame::eth(A.mac, LOCAL_MAC).ip(own, local)]
}

/// From `A` to `B` behind the overlay as `A` sends it, and back as it is decapsulated.
fn across(family: Family) -> [Frame; 2] {
    let (own, far) = (A.ip(family), B.ip(family));
    [Frame::eth(A.mac, BRIDGE).ip(own, far), Frame::eth(NODE_B.mac, NODE_A.mac).ip(far, own)]
}

fn there(frame: &Frame, flags: u8) -> Frame {
    frame.clone().tcp(PORTS.0, PORTS.1, flags)
}

fn back(frame: &Frame, flags: u8) -> Frame {
    frame.clone().tcp(PORTS.1, PORTS.0, flags)
}

fn is_direct(tables: &HostTables, slot: u32) -> bool {
    let four = tables.flows4().into_iter().map(|((slot, _), flow)| (slot, flow));
    let six = tables.flows6().into_iter().map(|((slot, _), flow)| (slot, flow));
    let flows: Vec<_> = four.chain(six).filter(|(of, _)| *of == slot).collect();
    assert_eq!(flows.len(), 1, "{flows:?}");
    flows[0].1.initiator & Flow::DIRECT != 0
}

#[test]
fn a_connection_on_the_bridge_goes_from_link_to_link() {
    for family in FAMILIES {
        let tables = forwarding();
        let [to, from] = between(family);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), LOCAL), Next::Direct);
        assert_eq!(way(&tables, &there(&to, tcp::SYN), LOCAL), Way::Link(LINKS[0]));
        gets(&tables, &there(&to, tcp::SYN), SLOT, LOCAL | mark::DIRECT);
        for flags in [tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            assert_eq!(sends(&tables, &back(&from, flags), SLOT), Next::Direct);
            assert_eq!(way(&tables, &back(&from, flags), SLOT), Way::Link(LINKS[1]));
        }
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), LOCAL), Next::Direct);
        // Errors about it, too.
        let quoted = there(&to, tcp::ACK);
        let error = from.icmp_error(IcmpError::PortUnreachable, &quoted);
        assert_eq!(sends(&tables, &error, SLOT), Next::Direct);
    }
}

#[test]
fn what_was_translated_goes_back_by_the_node() {
    for family in FAMILIES {
        let tables = forwarding();
        let [to, from] = between(family);
        // As it comes behind `translated`.
        gets(&tables, &there(&to, tcp::SYN), SLOT, LOCAL | mark::FINAL);
        assert_eq!(sends(&tables, &back(&from, tcp::SYN | tcp::ACK), SLOT), Next::Settled);
        // The caller's table has the translated call, too, and what answers it is for the node.
        let tables = forwarding();
        let [to, answer] = across(family);
        let meta = Meta { slot: SLOT, len: 0, segments: 1, vlan: false, transit: true, mark: SLOT };
        let frame = there(&to, tcp::SYN).build();
        assert!(bulkhead_ebpf::verdict::translated(&tables, &frame[..], &meta, VNI).expect("whole").pass);
        assert!(!is_direct(&tables, SLOT));
        assert_eq!(arrival(&tables, &back(&answer, tcp::SYN | tcp::ACK)), Arrival::Node);
    }
}

/// Entries outlive their connections, and ports are used again: by what the node has to see, or the other way round.
#[test]
fn an_old_connection_says_nothing_about_the_next_one() {
    for family in FAMILIES {
        // A call to a service that the node leads to who was called directly before.
        let [to, answer] = across(family);
        let tables = forwarding();
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Direct);
        assert!(is_direct(&tables, SLOT));
        let frame = there(&to, tcp::SYN).build();
        let meta = Meta { slot: SLOT, len: 0, segments: 1, vlan: false, transit: true, mark: SLOT };
        assert!(bulkhead_ebpf::verdict::translated(&tables, &frame[..], &meta, VNI).expect("whole").pass);
        assert_eq!(arrival(&tables, &back(&answer, tcp::SYN | tcp::ACK)), Arrival::Node);

        // Who is called on this node answers as it was called, whatever was before.
        let [to, from] = between(family);
        let mut tables = forwarding();
        for (epoch, packet_mark, next) in [
            (1, LOCAL | mark::FINAL, Next::Settled),
            (1, LOCAL | mark::DIRECT, Next::Direct),
            (1, LOCAL | mark::FINAL, Next::Settled),
            // Judged again.
            (2, LOCAL | mark::DIRECT, Next::Direct),
            (3, LOCAL | mark::FINAL, Next::Settled),
        ] {
            tables.words.insert(SLOT, EndpointWord::new(epoch, OPEN, Mode::Enforce));
            gets(&tables, &there(&to, tcp::SYN), SLOT, packet_mark);
            assert_eq!(sends(&tables, &back(&from, tcp::SYN | tcp::ACK), SLOT), next, "{packet_mark:#x}");
        }
        // Datagrams, of which either side may have begun what stands in the tables.
        let [to, answer] = across(family);
        let tables = forwarding();
        let entered = Frame::eth(NODE_A.mac, A.mac).ip(B.ip(family), A.ip(family)).udp(PORTS.1, PORTS.0);
        gets(&tables, &entered, SLOT, mark::DIRECT);
        assert!(is_direct(&tables, SLOT));
        let frame = to.udp(PORTS.0, PORTS.1).build();
        let meta = Meta { slot: SLOT, len: 0, segments: 1, vlan: false, transit: true, mark: SLOT };
        assert!(bulkhead_ebpf::verdict::translated(&tables, &frame[..], &meta, VNI).expect("whole").pass);
        assert_eq!(arrival(&tables, &answer.udp(PORTS.1, PORTS.0)), Arrival::Node);
        // On the bridge: what the node brings is answered by the node.
        let [to, from] = between(family);
        let tables = forwarding();
        assert_eq!(sends(&tables, &from.clone().udp(PORTS.1, PORTS.0), SLOT), Next::Direct);
        gets(&tables, &to.clone().udp(PORTS.0, PORTS.1), SLOT, LOCAL | mark::FINAL);
        assert_eq!(sends(&tables, &from.clone().udp(PORTS.1, PORTS.0), SLOT), Next::Settled);
        // Heard of anew while it is underway.
        let tables = forwarding();
        gets(&tables, &there(&to, tcp::ACK), SLOT, LOCAL | mark::DIRECT);
        assert_eq!(sends(&tables, &back(&from, tcp::ACK), SLOT), Next::Direct);
        // What the node's own processes set in a mark is none of ours.
        let tables = forwarding();
        let frame = there(&Frame::eth(BRIDGE, A.mac).ip(NODE_A.ip(family), A.ip(family)), tcp::SYN).build();
        let meta = Meta { slot: SLOT, len: 0, segments: 1, vlan: false, transit: false, mark: mark::DIRECT };
        assert!(tables.judge(Direction::Ingress, &frame, &meta).pass);
        assert!(!is_direct(&tables, SLOT));
    }
}

/// What was a workload's address alone becomes a service's.
#[test]
fn what_becomes_a_service_is_the_nodes() {
    for family in FAMILIES {
        let mut tables = forwarding();
        let [_, to] = between(family);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Direct);
        let address = local(family);
        tables.set_address(VNI, address, 0, LOCAL as u16, AddressWord::SERVICE);
        let key = ServiceKey {
            segment: VNI,
            address: words(address),
            port: PORTS.1,
            protocol: proto::TCP,
            ..ServiceKey::default()
        };
        tables.set_service(key, 1, &[Backend { target: PORTS.1, ..Backend::default() }]);
        tables.words.insert(SLOT, EndpointWord::new(2, OPEN, Mode::Enforce));
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), SLOT), Next::Settled);
        assert!(!is_direct(&tables, SLOT));
    }
}

#[test]
fn what_the_node_is_needed_for_it_keeps() {
    for family in FAMILIES {
        let tables = forwarding();
        let [to, from] = across(family);
        let call = there(&to, tcp::SYN);
        assert_eq!(sends(&tables, &call, SLOT), Next::Direct);
        gives_up(&tables, &call.build()[..], SLOT);
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), SLOT), Next::Settled);
        assert_eq!(arrival(&tables, &back(&from, tcp::SYN | tcp::ACK)), Arrival::Node);

        // On the node's bridge both ends have a flow, and who is called may be the one who needs the node.
        let tables = forwarding();
        let [to, from] = between(family);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), LOCAL), Next::Direct);
        gets(&tables, &there(&to, tcp::SYN), SLOT, LOCAL | mark::DIRECT);
        gives_up(&tables, &back(&from, tcp::SYN | tcp::ACK).build()[..], SLOT);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), LOCAL), Next::Settled);
        gets(&tables, &there(&to, tcp::SYN), SLOT, LOCAL | mark::FINAL);
        assert_eq!(sends(&tables, &back(&from, tcp::SYN | tcp::ACK), SLOT), Next::Settled);
    }
}

/// What passes although nothing allows it may be for a service, and is not judged where it was led to.
#[test]
fn who_only_observes_is_the_nodes() {
    type Observe = fn(&mut HostTables);
    let ways: [Observe; 3] = [
        |tables| _ = tables.words.insert(SLOT, EndpointWord::new(1, OPEN, Mode::Observe)),
        |tables| _ = tables.node.insert(node::OBSERVE, 1),
        |tables| _ = tables.node.insert(node::BYPASS, u64::MAX),
    ];
    for (family, observe) in FAMILIES.into_iter().flat_map(|family| ways.map(|observe| (family, observe))) {
        let mut tables = forwarding();
        let [to, from] = across(family);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Direct);
        observe(&mut tables);
        assert_eq!(way(&tables, &there(&to, tcp::ACK), SLOT), Way::Node);
        assert_eq!(arrival(&tables, &back(&from, tcp::ACK)), Arrival::Node);
        assert_eq!(arrival(&tables, &there(&from, tcp::SYN)), Arrival::Node);
        let [to, _] = between(family);
        assert_eq!(way(&tables, &there(&to, tcp::SYN), LOCAL), Way::Node);
        tables = forwarding();
        observe(&mut tables);
        let [to, _] = across(family);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Settled);
    }
}

/// Only by ports of one bridge, and only where an overlay is routed into.
#[test]
fn bridges_stay_apart() {
    for family in FAMILIES {
        let [to, _] = between(family);
        let call = there(&to, tcp::SYN);
        for bridge in [CNI0 + 1, 0] {
            let mut tables = forwarding();
            tables.infos.get_mut(&SLOT).expect("the lab's").bridge = bridge;
            assert_eq!(way(&tables, &call, LOCAL), Way::Node);
        }
        let mut tables = forwarding();
        tables.infos.values_mut().for_each(|info| info.bridge = 0);
        assert_eq!(way(&tables, &call, LOCAL), Way::Node);
        let [to, _] = across(family);
        assert!(
            matches!(way(&tables, &there(&to, tcp::SYN), SLOT), Way::Overlay(Hop { link, .. }) if link == LINKS[0])
        );
        // A device that is a port of the bridge: the frame is for the workload already.
        let bridged = Frame::eth(BRIDGE, A.mac).ip(B.ip(family), A.ip(family));
        assert_eq!(arrival(&forwarding(), &there(&bridged, tcp::SYN)), Arrival::Node);

        assert!(!carries(&tables, 0) && carries(&tables, FLANNEL) && !carries(&tables, FLANNEL + 1));
    }
}

#[test]
fn a_call_into_the_overlay_is_routed_and_its_answer_delivered() {
    for family in FAMILIES {
        let tables = forwarding();
        let [to, from] = across(family);
        let call = there(&to, tcp::SYN);
        assert_eq!(sends(&tables, &call, SLOT), Next::Direct);
        let (source, destination) = (words(A.ip(family)), words(B.ip(family)));
        let headers = if family == Family::V4 { 40 } else { 60 };
        let hop = Hop { v6: family == Family::V6, source, destination, link: CNI0, headers };
        assert_eq!(way(&tables, &call, SLOT), Way::Overlay(hop));
        let delivered = Arrival::Link(A.mac, LINKS[0]);
        assert_eq!(arrival(&tables, &back(&from, tcp::SYN | tcp::ACK)), delivered);
        let error = from.clone().icmp_error(IcmpError::PortUnreachable, &call);
        assert_eq!(arrival(&tables, &error), delivered);
        // Where the node has to say that a hop limit is at its end, or to put fragments together.
        for frame in [back(&from.clone().ttl(1), tcp::ACK), back(&from.clone().fragment(1, 0, true), tcp::ACK)] {
            assert_eq!(arrival(&tables, &frame), Arrival::Node);
        }
        assert_eq!(way(&tables, &there(&to.clone().ttl(1), tcp::ACK), SLOT), Way::Node);
    }
}

#[test]
fn what_begins_in_the_overlay_is_delivered() {
    for family in FAMILIES {
        let tables = forwarding();
        let [to, from] = across(family);
        let delivered = Arrival::Link(A.mac, LINKS[0]);
        let (call, answer) = (there(&from, tcp::SYN), back(&to, tcp::SYN | tcp::ACK));
        assert_eq!(arrival(&tables, &call), delivered);
        let entered = Frame::eth(NODE_A.mac, A.mac).ip(B.ip(family), A.ip(family));
        gets(&tables, &there(&entered, tcp::SYN), SLOT, mark::DIRECT);
        assert!(is_direct(&tables, SLOT));
        assert_eq!(sends(&tables, &answer, SLOT), Next::Direct);
        assert_eq!(arrival(&tables, &there(&from, tcp::ACK)), delivered);

        // A datagram may be the answer to a call that was translated: the node sees the first one.
        let tables = forwarding();
        let datagram = from.udp(PORTS.0, PORTS.1);
        assert_eq!(arrival(&tables, &datagram), Arrival::Marked);
        gets(&tables, &entered.udp(PORTS.0, PORTS.1), SLOT, mark::DIRECT);
        assert_eq!(arrival(&tables, &datagram), delivered);
        assert_eq!(sends(&tables, &to.udp(PORTS.1, PORTS.0), SLOT), Next::Direct);
    }
}

#[test]
fn what_the_node_saw_begin_stays_with_it() {
    for family in FAMILIES {
        let mut tables = forwarding();
        let [to, from] = across(family);
        // Underway when it is first heard of.
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), SLOT), Next::Settled);
        assert_eq!(arrival(&tables, &back(&from, tcp::ACK)), Arrival::Node);
        assert_eq!(arrival(&tables, &back(&from, tcp::SYN | tcp::ACK)), Arrival::Node);

        // Begun before, and judged again since.
        tables = forwarding();
        tables.node.insert(node::DIRECT, 0);
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Settled);
        tables.node.insert(node::DIRECT, 1);
        tables.words.insert(SLOT, EndpointWord::new(2, OPEN, Mode::Enforce));
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), SLOT), Next::Settled);
        assert!(!is_direct(&tables, SLOT));

        // And the other way round.
        tables = forwarding();
        assert_eq!(sends(&tables, &there(&to, tcp::SYN), SLOT), Next::Direct);
        tables.words.insert(SLOT, EndpointWord::new(2, OPEN, Mode::Enforce));
        assert_eq!(sends(&tables, &there(&to, tcp::ACK), SLOT), Next::Direct);
        assert!(is_direct(&tables, SLOT));
        tables.node.insert(node::DIRECT, 0);
        assert_eq!(way(&tables, &there(&to, tcp::ACK), SLOT), Way::Node);
        assert_eq!(arrival(&tables, &back(&from, tcp::ACK)), Arrival::Node);
    }
}

/// An entry that speaks of somebody else by now, or of the sender itself, and a frame that another router is to have.
#[test]
fn what_is_not_meant_so_goes_by_the_node() {
    for family in FAMILIES {
        let mut tables = forwarding();
        let (own, far) = (A.ip(family), B.ip(family));
        let to_itself = there(&Frame::eth(A.mac, A.mac).ip(own, own), tcp::SYN);
        assert_eq!(way(&tables, &to_itself, SLOT), Way::Node);
        let by_another = there(&Frame::eth(A.mac, NODE_B.mac).ip(own, far), tcp::SYN);
        assert_eq!(way(&tables, &by_another, SLOT), Way::Node);

        tables.set_address(VNI, far, 0, SLOT as u16, 0);
        let to_another = Frame::eth(LOCAL_MAC, A.mac).ip(local(family), far);
        assert_eq!(way(&tables, &there(&to_another, tcp::SYN), LOCAL), Way::Node);
        assert_eq!(arrival(&tables, &there(&to_another, tcp::SYN)), Arrival::Node);

        let mut tables = forwarding();
        let words = tables.addresses4.values_mut().chain(tables.addresses6.values_mut());
        words.for_each(|word| {
            let old = AddressWord(*word);
            *word = AddressWord::new(old.tag() ^ 1, old.row() as u16, old.slot() as u16, old.flags()).0;
        });
        let ([to, _], [_, entering]) = (between(family), across(family));
        assert_eq!(way(&tables, &there(&to, tcp::SYN), LOCAL), Way::Node);
        assert_eq!(arrival(&tables, &there(&entering, tcp::SYN)), Arrival::Node);
    }
}

/// Where a node begins to send what others still encapsulate by itself, as with `DirectRouting`.
#[test]
fn what_is_answered_another_way_is_the_nodes() {
    for family in FAMILIES {
        let mut tables = forwarding();
        let [_, from] = across(family);
        assert_eq!(arrival(&tables, &there(&from, tcp::SYN)), Arrival::Link(A.mac, LINKS[0]));
        tables.set_address(VNI, B.ip(family), 0, 0, 0);
        assert_eq!(arrival(&tables, &there(&from, tcp::SYN)), Arrival::Node);
    }
}

/// What is not for a workload that the node knows, not for it alone, or not from one.
#[test]
fn all_else_goes_by_the_node() {
    for family in FAMILIES {
        let tables = forwarding();
        let world: IpAddr = crate::lab::world(family);
        for peer in [world, NODE_A.ip(family), NODE_B.ip(family), crate::lab::nobody(family)] {
            let frame = there(&Frame::eth(A.mac, BRIDGE).ip(A.ip(family), peer), tcp::SYN);
            let next = sends(&tables, &frame, SLOT);
            // Of an address in the overlay nobody is known; whoever has it is behind it all the same.
            let overlay = peer == crate::lab::nobody(family);
            assert_eq!(next, if overlay { Next::Direct } else { Next::Settled }, "{peer}");
            assert_eq!(way(&tables, &frame, SLOT) == Way::Node, !overlay, "{peer}");
        }
        // Addresses behind which the node may have put others: of a node in the overlay, and of a workload that is a service's, too.
        for (peer, slot, flags) in [
            (B.ip(family), 0, AddressWord::NODE | AddressWord::ENCAPSULATED),
            (local(family), LOCAL as u16, AddressWord::SERVICE),
        ] {
            let mut tables = forwarding();
            tables.set_address(VNI, peer, 0, slot, flags);
            let frame = there(&Frame::eth(A.mac, LOCAL_MAC).ip(A.ip(family), peer), tcp::SYN);
            assert_eq!(sends(&tables, &frame, SLOT), Next::Settled, "{peer}");
            assert!(!is_direct(&tables, SLOT), "{peer}");
        }
        // To another workload by a router, as where they do not share a bridge.
        let routed = there(&Frame::eth(LOCAL_MAC, BRIDGE).ip(local(family), A.ip(family)), tcp::SYN);
        assert_eq!(way(&tables, &routed, LOCAL), Way::Node);
        // Nobody has said that it passed the check.
        let [_, from] = across(family);
        let call = there(&from, tcp::SYN).build();
        assert_eq!(arrives(&tables, &call[..], VNI, 0, FLANNEL).expect("whole"), Arrival::Node);
        // Nothing goes back by that device.
        assert_eq!(arrives(&tables, &call[..], VNI, mark::VERIFIED, FLANNEL + 1).expect("whole"), Arrival::Node);
        // For another overlay's workload, and for a link that is not known.
        assert_eq!(arrives(&tables, &call[..], VNI + 1, mark::VERIFIED, FLANNEL).expect("whole"), Arrival::Node);
        let mut unknown = forwarding();
        unknown.infos.values_mut().for_each(|info| info.link = 0);
        assert_eq!(arrival(&unknown, &there(&from, tcp::SYN)), Arrival::Node);
        let [to, _] = between(family);
        assert_eq!(sends(&unknown, &there(&to, tcp::SYN), LOCAL), Next::Settled);
        assert_eq!(way(&unknown, &there(&to, tcp::SYN), LOCAL), Way::Node);
        // What is denied goes nowhere.
        let mut closed = forwarding();
        closed.words.insert(SLOT, EndpointWord::new(1, CLOSED, Mode::Enforce));
        let [to, _] = across(family);
        let frame = to.tcp(PORTS.0, 9999, tcp::SYN).build();
        let meta = Meta { slot: SLOT, len: frame.len() as u32, segments: 1, vlan: false, transit: true, mark: 0 };
        let outcome = closed.judge(Direction::Egress, &frame, &meta);
        assert_eq!((outcome.pass, outcome.next), (false, Next::Settled));
    }
}
