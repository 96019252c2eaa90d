//! Service addresses: the provisional verdict before translation, and the one after it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_ebpf::{
    abi::{Action, AddressWord, BACKENDS, Backend, Class, Direction, EndpointWord, Mode, ServiceKey, View, mark},
    host::{HostTables, Line, entry, everyone, words},
    reason::Reason,
    verdict::{self, Meta},
};
use bulkhead_fixtures::{
    Frame, IcmpError, VXLAN_PORT,
    catalogue::{A, B, Family, NODE_A, NODE_B, VNI},
    proto, tcp,
};

use crate::{
    lab::{BRIDGE, Lab, Name, from, gets, reach, sends, to},
    node::{CLOSED, FAMILIES, ISOLATED, LOCAL, SLOT, local, row, selector},
};

crate::scenarios! {
    a_call_is_provisional_while_a_backend_is_judged_later
    backends_that_nothing_judges_later_must_all_be_allowed
    backends_that_have_no_room_let_nobody_pass
    node_ports
    a_service_without_backends_is_a_plain_address
    a_nodes_tunnel_port_is_no_backend
    a_workload_reaches_itself
    errors_about_calls
    after_translation_the_sender_is_judged
    a_caller_that_is_gone_gets_no_answer
    what_no_mark_vouches_for_enters_no_overlay
}

use Reason::{Isolated, Itself, PlainOverlaySource, Rule, Tunnel};

const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

/// The service's address.
fn cluster_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 3, 4).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 4).into(),
    }
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn key(address: IpAddr, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { segment: VNI, address: words(address), port, protocol, padding: 0 }
}

fn backend(row: u16, target: u16, flags: u16) -> Backend {
    Backend { row, target, flags, padding: 0 }
}

const LATER: u16 = Backend::LATER;

/// A node with the service on TCP port 80, and these backends.
fn lab(family: Family, backends: &[Backend]) -> Lab {
    let mut lab = Lab::new();
    lab.tables.set_address(VNI, cluster_ip(family), row::WORLD, 0, AddressWord::SERVICE);
    lab.tables.set_service(key(cluster_ip(family), 80, proto::TCP), 1, backends);
    lab
}

fn a_call_is_provisional_while_a_backend_is_judged_later() {
    for family in FAMILIES {
        let service = cluster_ip(family);
        let syn = |port| sends(&to(service).tcp(port, 80, tcp::SYN));
        // `A` may call peers on 8080. One backend that it may call is enough.
        let mut lab = lab(family, &[backend(row::FAR, 8080, LATER), backend(row::PEER, 8080, LATER)]);
        lab.check([
            syn(1).begins(Rule, 1).provisional(),
            syn(1).goes_on(1).provisional(),
            // So are those that begin nothing.
            sends(&to(service).tcp(1, 80, tcp::ACK)).goes_on(1).provisional(),
            // Whoever answers in its name is a backend.
            gets(&from(service).tcp(80, 1, SYN_ACK)).mark(LOCAL | mark::FINAL).replies(1),
            gets(&from(service).tcp(80, 1, SYN_ACK)).replies(1),
            sends(&to(service).tcp(2, 81, tcp::SYN)).refused(Isolated, ISOLATED),
        ]);
        // The port is the backend's, not the service's.
        lab.tables.set_service(key(service, 80, proto::TCP), 1, &[backend(row::PEER, 80, LATER)]);
        lab.check([syn(2).refused(Isolated, ISOLATED), syn(1).goes_on(1).provisional()]);
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([gets(&from(service).tcp(80, 1, SYN_ACK)).settled(Reason::Revoked)]);
        // An entry of another key.
        lab.tables.services.values_mut().for_each(|word| *word ^= 1 << 40);
        lab.check([syn(3).settled(Reason::Changing)]);
    }
}

fn backends_that_nothing_judges_later_must_all_be_allowed() {
    for family in FAMILIES {
        let syn = |port| sends(&to(cluster_ip(family)).tcp(port, 80, tcp::SYN));
        lab(family, &[backend(row::PEER, 8080, 0)]).check([syn(1).begins(Rule, 1), syn(1).goes_on(1)]);
        lab(family, &[backend(row::PEER, 8080, 0), backend(row::FAR, 8080, 0)])
            .check([syn(1).refused(Isolated, ISOLATED)]);
        lab(family, &[backend(row::PEER, 8080, LATER), backend(row::FAR, 8080, 0)])
            .check([syn(1).refused(Isolated, ISOLATED)]);
        lab(family, &[backend(row::FAR, 8080, LATER), backend(row::PEER, 8080, 0)])
            .check([syn(1).begins(Rule, 1).provisional()]);
    }
}

fn backends_that_have_no_room_let_nobody_pass() {
    for family in FAMILIES {
        let syn = sends(&to(cluster_ip(family)).tcp(1, 80, tcp::SYN));
        let crowd = |first: Backend, rest: Backend, last: Backend| {
            let mut all = [rest; BACKENDS + 1];
            (all[0], all[BACKENDS]) = (first, last);
            lab(family, &all)
        };
        let (peer, far) = (backend(row::PEER, 8080, 0), backend(row::FAR, 8080, 0));
        let (later, far_later) = (backend(row::PEER, 8080, LATER), backend(row::FAR, 8080, LATER));
        // What is missing is judged later, or it passes nobody.
        crowd(peer, later, far_later).check([syn.clone().begins(Rule, 1).provisional()]);
        crowd(far_later, far_later, later).check([syn.clone().refused(Isolated, ISOLATED)]);
        // Might be refused: by no rule's entry, but by the isolation.
        crowd(peer, peer, far).check([syn.refused(Isolated, 0)]);

        let mut lab = Lab::new();
        lab.tables.set_address(VNI, NODE_A.ip(family), row::OWN_NODE, 0, AddressWord::NODE | AddressWord::OWN);
        lab.tables.set_service(key(any(family), 30_080, proto::TCP), 1, &[later; BACKENDS + 1]);
        let call = |node: IpAddr| sends(&to(node).tcp(1, 30_080, tcp::SYN));
        lab.check([
            call(NODE_A.ip(family)).begins(Rule, 1).provisional(),
            // Another node translates, and nobody judges what is missing.
            call(NODE_B.ip(family)).refused(Isolated, 0),
        ]);
    }
}

fn node_ports() {
    for family in FAMILIES {
        let mut lab = Lab::new();
        let both = [backend(row::FAR, 8080, LATER), backend(row::PEER, 8080, LATER)];
        lab.tables.set_address(VNI, NODE_A.ip(family), row::OWN_NODE, 0, AddressWord::NODE | AddressWord::OWN);
        lab.tables.set_service(key(any(family), 30_080, proto::TCP), 1, &both);
        let call = |node: IpAddr, port| sends(&to(node).tcp(port, 30_080, tcp::SYN));
        lab.check([
            // This node translates; whoever is chosen is judged then.
            call(NODE_A.ip(family), 1).begins(Rule, 1).provisional(),
            // Another one does, and nothing is judged any more.
            call(NODE_B.ip(family), 1).refused(Isolated, ISOLATED),
        ]);
        lab.tables.set_service(key(any(family), 30_080, proto::TCP), 1, &both[1..]);
        lab.check([call(NODE_B.ip(family), 1).begins(Rule, 1), call(NODE_B.ip(family), 1).goes_on(1)]);
    }
}

fn a_service_without_backends_is_a_plain_address() {
    for family in FAMILIES {
        let mut lab = lab(family, &[]);
        lab.tables.set_service(key(cluster_ip(family), 53, proto::UDP), 2, &[]);
        lab.check([
            sends(&to(cluster_ip(family)).tcp(1, 80, tcp::SYN)).refused(Isolated, ISOLATED),
            // The world may be asked on 53. Should somebody answer all the same, that is who is judged next.
            sends(&to(cluster_ip(family)).udp(1, 53)).begins(Rule, 2).provisional(),
            sends(&to(cluster_ip(family)).udp(1, 53)).goes_on(2).provisional(),
        ]);
    }
}

fn a_nodes_tunnel_port_is_no_backend() {
    for family in FAMILIES {
        let mut lab = Lab::new();
        lab.tables.set_address(VNI, cluster_ip(family), 0, 0, AddressWord::SERVICE);
        let node = backend(row::OTHER_NODE, VXLAN_PORT, Backend::NODE);
        lab.tables.set_service(key(cluster_ip(family), 80, proto::UDP), 1, &[node]);
        lab.check([sends(&to(cluster_ip(family)).udp(1, 80)).settled(Tunnel).starts(1)]);
        // Nor does one call, so that no answer goes there.
        let (node, service) = (NODE_B.ip(family), cluster_ip(family));
        lab.check([
            gets(&from(service).udp(80, 7)).mark(0).settled(Tunnel).starts(1),
            gets(&from(service).udp(80, 7)).mark(LOCAL | mark::FINAL).settled(Tunnel).starts(1),
            sends(&to(service).udp(7, 80)).settled(Tunnel).starts(1),
            gets(&from(node).udp(VXLAN_PORT, 7)).mark(0).settled(Tunnel).starts(1),
            gets(&from(NODE_A.ip(family)).udp(VXLAN_PORT, 7)).by_node().settled(Tunnel).starts(1),
            sends(&to(node).udp(7, VXLAN_PORT)).settled(Tunnel).starts(1),
        ]);
    }
}

fn a_workload_reaches_itself() {
    for family in FAMILIES {
        let (service, own) = (cluster_ip(family), A.ip(family));
        // By its row it may be one of the backends.
        let mut lab = lab(family, &[backend(row::FAR, 9, LATER | Backend::LOCAL)]);
        let syn = sends(&to(service).tcp(1, 80, tcp::SYN));
        lab.check([syn.clone().refused(Isolated, ISOLATED)]);
        lab.tables.set_address(VNI, own, row::FAR, SLOT as u16, 0);
        lab.check([syn.begins(Rule, ISOLATED).provisional()]);
        // Translated to itself, with the node's address in place of its own, as it would come back.
        let node = NODE_A.ip(family);
        let step = gets(&from(node).tcp(1, 9, tcp::SYN)).mark(SLOT).settled(Itself).starts(1);
        let sender = Name::Endpoint(SLOT, Direction::Egress, Itself);
        lab.check([
            step.also(sender.clone(), 1).grows(2),
            gets(&from(node).tcp(1, 9, tcp::ACK)).mark(SLOT).settled(Itself).also(sender, 0),
            sends(&to(node).tcp(9, 1, SYN_ACK)).settled(Itself),
        ]);
        // From the service's address, of which nobody else knows who that is.
        lab.check([
            gets(&from(service).tcp(80, 3, tcp::SYN)).mark(SLOT | mark::FINAL).settled(Itself).starts(1).grows(1),
            sends(&to(service).tcp(3, 80, SYN_ACK)).settled(Itself),
        ]);
    }
}

fn errors_about_calls() {
    for family in FAMILIES {
        let service = cluster_ip(family);
        let call = to(service).tcp(1, 80, tcp::SYN);
        let mut lab = lab(family, &[backend(row::PEER, 8080, LATER)]);
        lab.check([sends(&call).begins(Rule, 1).provisional()]);
        let quoted = Frame::bare().ip(A.ip(family), service).tcp(1, 80, tcp::SYN);
        let error = gets(&from(service).icmp_error(IcmpError::PortUnreachable, &quoted)).mark(LOCAL | mark::FINAL);
        // Whom it may reach is asked with its next packet,
        lab.publish(2, CLOSED, Mode::Enforce);
        lab.check([error.clone().settled(Reason::Related)]);
        // but only while that address leads somewhere.
        lab.tables.set_service(key(service, 80, proto::TCP), 1, &[]);
        lab.publish(3, CLOSED, Mode::Enforce);
        lab.check([error.settled(Reason::NoFlow)]);
    }
}

fn after_translation_the_sender_is_judged() {
    for family in FAMILIES {
        let (peer, node) = (local(family), NODE_A.ip(family));
        let mut lab = Lab::new();
        // What may enter `A` is one thing, what the peer may send another.
        lab.tables.set_address(VNI, A.ip(family), row::FAR, SLOT as u16, 0);
        lab.tables.set_policy(
            13,
            &[
                Line::new(Class::Tcp, 5432..=5432, entry(Action::Allow, Rule, 1, &[selector::FAR])),
                Line::everything(everyone(Action::Deny, Isolated, ISOLATED)),
            ],
        );
        lab.tables.set_view(4, 3, 13, View::OPEN_INGRESS);
        lab.tables.words.insert(LOCAL, EndpointWord::new(1, 4, Mode::Enforce));
        let sent = |direction| match direction {
            Direction::Egress => Name::Rule(4, Direction::Egress, 1),
            Direction::Ingress => Name::Replies(4, Direction::Egress, 1),
        };
        let mut settled = Vec::new();
        // Its own address, or one that the node put in its place: the mark tells.
        for (source, port) in [(peer, 1), (node, 2)] {
            let gets = |flags| gets(&from(source).tcp(port, 5432, flags)).mark(LOCAL);
            settled.push(gets(tcp::SYN).begins(Rule, 1).also(sent(Direction::Egress), 1).grows(2));
            settled.push(gets(tcp::ACK).goes_on(1).also(sent(Direction::Egress), 0));
            // The answer is `A`'s flow alone: the caller knows it by the service's address.
            settled.push(sends(&to(source).tcp(5432, port, SYN_ACK)).replies(1));
        }
        lab.check(settled);
        // What its own policy forbids does not get there, and counts as its own.
        let refused = |port| {
            let packet = gets(&from(peer).tcp(port, 53, tcp::SYN)).mark(LOCAL);
            let mut step = packet.refused(Isolated, ISOLATED);
            step.set_name(Name::Rule(4, Direction::Egress, ISOLATED));
            step
        };
        lab.check([refused(3)]);
        // A revoked rule of the sender cuts what is established, though the receiver's policy is as it was.
        lab.tables.set_view(6, 3, 2, View::OPEN_INGRESS);
        lab.tables.words.insert(LOCAL, EndpointWord::new(2, 6, Mode::Enforce));
        let mut cut = gets(&from(peer).tcp(1, 5432, tcp::ACK)).mark(LOCAL).refused(Isolated, ISOLATED).starts(0);
        cut.set_name(Name::Rule(6, Direction::Egress, ISOLATED));
        lab.check([cut]);
    }
}

fn a_caller_that_is_gone_gets_no_answer() {
    for family in FAMILIES {
        let (peer, node) = (local(family), NODE_A.ip(family));
        let mut lab = Lab::new();
        let call = |port, flags| gets(&from(node).tcp(port, 5432, flags)).mark(LOCAL | mark::FINAL);
        let answer = |port| sends(&to(node).tcp(5432, port, SYN_ACK));
        let calls = (1..=6).flat_map(|port| [call(port, tcp::SYN).begins(Rule, 1), answer(port).replies(1)]);
        lab.check(calls.collect::<Vec<_>>());
        let by_itself = gets(&from(peer).tcp(7, 5432, tcp::SYN)).mark(LOCAL | mark::FINAL);
        lab.check([by_itself.begins(Rule, 1)]);

        // As the publisher removes an endpoint: its word first, then a new epoch for the others.
        let word = lab.tables.words.remove(&LOCAL).unwrap();
        lab.publish(2, CLOSED, Mode::Enforce);
        let quoted = Frame::bare().ip(node, A.ip(family)).tcp(2, 5432, tcp::ACK);
        let error = sends(&to(node).icmp_error(IcmpError::PortUnreachable, &quoted));
        lab.check([
            answer(1).settled(Reason::Revoked),
            // What it sent before that gets nowhere, and leaves nothing that its slot's next owner could go on with.
            call(2, tcp::ACK).settled(Reason::Changing),
            call(8, tcp::SYN).settled(Reason::Changing),
            error.clone().settled(Reason::NoFlow),
        ]);
        lab.publish(3, CLOSED, Mode::Observe);
        lab.check([answer(2).settled(Reason::Observed), answer(2).settled(Reason::Observed)]);
        lab.publish(4, CLOSED, Mode::Enforce);
        lab.check([answer(2).settled(Reason::Revoked)]);

        // Somebody else has its slot.
        lab.tables.words.insert(LOCAL, word);
        lab.tables.infos.get_mut(&LOCAL).unwrap().tenancy = 1;
        lab.check([
            answer(3).settled(Reason::Revoked),
            // On the ports of the one before it: a flow of its own.
            call(4, tcp::ACK).begins(Rule, 1).grows(0),
            answer(4).replies(1),
            call(4, tcp::ACK).goes_on(1),
        ]);
        // Where nothing stands in place of an address, that says who is there now.
        lab.tables.set_address(VNI, peer, row::PEER, 0, 0);
        lab.check([sends(&to(peer).tcp(5432, 7, SYN_ACK)).replies(1)]);
        lab.tables.set_address(VNI, peer, row::FAR, 0, 0);
        lab.publish(5, CLOSED, Mode::Enforce);
        lab.check([sends(&to(peer).tcp(5432, 7, SYN_ACK)).settled(Reason::Revoked)]);
    }
}

fn what_no_mark_vouches_for_enters_no_overlay() {
    for family in FAMILIES {
        let judge = |tables: &HostTables, source: IpAddr, mark: u32| {
            let frame = Frame::eth(BRIDGE, B.mac).ip(source, B.ip(family)).udp(1, 53).build();
            let meta = Meta { slot: 0, len: frame.len() as u32, segments: 1, vlan: false, transit: true, mark };
            verdict::translated(tables, &frame[..], &meta, VNI).unwrap()
        };
        let lab = Lab::new();
        let forged = judge(&lab.tables, local(family), 0);
        assert_eq!((forged.pass, forged.reason), (false, PlainOverlaySource));
        reach(forged.reason);
        // Another node's, or outsiders that the node translates.
        assert!(judge(&lab.tables, B.ip(family), mark::VERIFIED).pass);
        assert!(judge(&lab.tables, NODE_A.ip(family), 0).pass);
        assert!(judge(&lab.tables, local(family), LOCAL).pass, "nothing isolates it");
        assert_eq!(lab.tables.endpoint_counters()[&(0, Direction::Egress, PlainOverlaySource)].packets, 1);
    }
}
