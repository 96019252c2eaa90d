//! What XDP drops by policy: what TC drops for certain, counted as TC counts it; nothing else.

use std::net::IpAddr;

use bulkhead_ebpf::{
    abi::{Action, AddressWord, ContactKey, Counter, Direction, EndpointWord, Entry, Mode, View, node},
    host::{HostTables, Line, everyone, words},
    reason::Reason,
    underlay::{self, Passage},
    verdict::Meta,
};
use bulkhead_fixtures::{
    Frame, Mac,
    catalogue::{A, B, NODE_A, NODE_B, VNI},
    proto, skip, tcp,
};
use proptest::{
    collection::vec, prelude::*, sample::select, strategy::ValueTree as _, test_runner::FileFailurePersistence,
};

use crate::{
    harness,
    lab::{BRIDGE, Name, counters, grown, nobody, reach},
    node::{CLOSED, FAMILIES, ISOLATED, SLOT, allow, local, tables},
};

crate::scenarios! {
    a_denied_syn_is_counted_as_in_tc
    what_may_be_a_reply_passes
    what_is_not_whole_or_not_alone_passes
    only_what_the_endpoint_enforces_is_dropped
    only_of_peers_that_keep_their_address
    of_a_flow_tc_decides
    would_be_verdicts_are_asked_in_tc
}

/// The node, to which `NODE_A` sends what `B` says.
fn guarded() -> HostTables {
    let mut tables = tables();
    tables.set_owner(VNI, B.v4.into(), 16, NODE_A.v4.into());
    tables.set_owner(VNI, B.v6.into(), 48, NODE_A.v4.into());
    tables
}

fn outer(inner: Frame) -> Frame {
    Frame::eth(NODE_A.mac, NODE_B.mac).ip(NODE_A.v4.into(), NODE_B.v4.into()).vxlan(VNI).inner(inner)
}

/// To the endpoint, routed.
fn from(peer: IpAddr) -> Frame {
    let own = if peer.is_ipv4() { A.v4.into() } else { A.v6.into() };
    Frame::eth(B.mac, BRIDGE).ip(peer, own)
}

#[track_caller]
fn arrives(tables: &HostTables, frame: &Frame) -> Passage {
    let frame = frame.build();
    underlay::arrives(tables, &frame[..], frame.len() as u32, 1, 0, true).expect("readable")
}

#[track_caller]
fn passes(tables: &HostTables, inner: Frame) {
    let before = format!("{tables:?}");
    assert_eq!(arrives(tables, &outer(inner)), Passage::Verified);
    assert_eq!(format!("{tables:?}"), before);
}

#[track_caller]
fn denied(tables: &HostTables, inner: &Frame, reason: Reason, rule: u16) {
    let before = counters(tables);
    assert_eq!(arrives(tables, &outer(inner.clone())), Passage::Denied);
    let counter = |frame: &Frame, flows| Counter { packets: 1, bytes: frame.build().len() as u64, flows };
    let expected = [
        (Name::Rule(CLOSED, Direction::Ingress, rule), counter(inner, 1)),
        (Name::Endpoint(0, Direction::Ingress, Reason::Verified), counter(&outer(inner.clone()), 0)),
    ];
    assert_eq!(grown(&before, &counters(tables)), expected.into());
    reach(reason);
}

fn a_denied_syn_is_counted_as_in_tc() {
    for family in FAMILIES {
        let tables = guarded();
        let b = B.ip(family);
        denied(&tables, &from(b).tcp(1, 22, tcp::SYN), Reason::DeniedByRule, 6);
        denied(&tables, &from(b).tcp(1, 23, tcp::SYN), Reason::Isolated, ISOLATED);
        denied(
            &tables,
            &from(b).tcp(1, 23, tcp::SYN | tcp::ECE | tcp::CWR).tcp_options(&[2, 4, 5, 0xb4]),
            Reason::Isolated,
            ISOLATED,
        );
        denied(&tables, &from(nobody(family)).tcp(1, 5432, tcp::SYN), Reason::Isolated, ISOLATED);
        let contacts = tables.contacts();
        let key = ContactKey {
            peer: words(b),
            slot: SLOT as u16,
            port: 22,
            protocol: proto::TCP,
            direction: Direction::Ingress as u8,
            reason: Reason::DeniedByRule as u8,
            flags: 0,
        };
        assert_eq!(contacts.len(), 3);
        assert_eq!(contacts[&key].counter, HostTables::rule_counter(CLOSED, Direction::Ingress, 6));
        passes(&tables, from(b).tcp(1, 5432, tcp::SYN));
        // Forged stays forged.
        let forged = Frame::eth(NODE_A.mac, NODE_B.mac).ip(B.v4.into(), NODE_B.v4.into()).vxlan(VNI);
        let passage = arrives(&tables, &forged.inner(from(b).tcp(1, 22, tcp::SYN)));
        assert_eq!(passage, Passage::Drop(Reason::UnknownVtep));
    }
}

fn what_may_be_a_reply_passes() {
    for family in FAMILIES {
        let tables = guarded();
        let b = B.ip(family);
        for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK, 0] {
            passes(&tables, from(b).tcp(1, 22, flags));
        }
        passes(&tables, from(b).udp(1, 54));
        passes(&tables, from(b).sctp(1, 22));
        passes(&tables, from(b).icmp_echo(1, 2));
    }
    passes(&guarded(), Frame::eth(B.mac, BRIDGE).arp_request(B.mac, B.v4, A.v4));
}

fn what_is_not_whole_or_not_alone_passes() {
    for family in FAMILIES {
        let tables = guarded();
        let syn = || from(B.ip(family)).tcp(1, 22, tcp::SYN);
        passes(&tables, syn().payload(1));
        passes(&tables, syn().trailer(&[0; 6]));
        passes(&tables, syn().data_offset(6));
        passes(&tables, from(B.ip(family)).ttl(1).tcp(1, 22, tcp::SYN));
        passes(&tables, from(B.ip(family)).fragment(1, 0, true).tcp(1, 22, tcp::SYN));
        for (len, padding) in [(39, 0), (41, 0), (41, 1)] {
            let len = len + if family == bulkhead_fixtures::catalogue::Family::V4 { 0 } else { -20 };
            passes(&tables, from(B.ip(family)).ip_len(len as u16).tcp(1, 22, tcp::SYN).trailer(&vec![0; padding]));
        }
        // Behind the datagram.
        let frame = outer(syn()).trailer(&[0; 4]);
        assert_eq!(arrives(&tables, &frame), Passage::Verified);
    }
    let tables = guarded();
    passes(&tables, from(B.v4.into()).ipv4_options(&[1, 1, 1, 1]).tcp(1, 22, tcp::SYN));
    passes(&tables, from(B.v6.into()).dest_opts(&[1, 4, 0, 0, 0, 0]).tcp(1, 22, tcp::SYN));
}

fn only_what_the_endpoint_enforces_is_dropped() {
    for family in FAMILIES {
        let syn = || from(B.ip(family)).tcp(1, 22, tcp::SYN);
        let with = |change: &dyn Fn(&mut HostTables)| {
            let mut tables = guarded();
            change(&mut tables);
            tables
        };
        for mode in [Mode::Pending, Mode::Observe, Mode::Quarantine] {
            let word = EndpointWord::new(1, CLOSED, mode);
            passes(&with(&|tables| _ = tables.words.insert(SLOT, word)), syn());
        }
        passes(&with(&|tables| _ = tables.node.insert(node::OBSERVE, 1)), syn());
        passes(&with(&|tables| _ = tables.node.insert(node::BYPASS, 1_000_001)), syn());
        let over = with(&|tables| _ = tables.node.insert(node::BYPASS, 1_000_000));
        denied(&over, &syn(), Reason::DeniedByRule, 6);
        // Another endpoint's, nobody's, another segment's address.
        passes(&guarded(), Frame::eth(B.mac, BRIDGE).ip(B.ip(family), local(family)).tcp(1, 22, tcp::SYN));
        passes(&guarded(), Frame::eth(B.mac, BRIDGE).ip(B.ip(family), nobody(family)).tcp(1, 22, tcp::SYN));
        passes(&with(&|tables| tables.infos.get_mut(&SLOT).unwrap().segment = 0), syn());
        passes(&with(&|tables| tables.infos.get_mut(&SLOT).unwrap().identity = 0), syn());
        passes(&with(&|tables| _ = tables.infos.insert(SLOT, Default::default())), syn());
        passes(&with(&|tables| tables.views.clear()), syn());
        // The view that holds now decides.
        let late = with(&|tables| {
            tables.set_view(7, 3, 3, 0);
            tables.views.get_mut(&CLOSED).unwrap().deadline = 1_000_000;
            tables.views.get_mut(&CLOSED).unwrap().next = 7;
        });
        passes(&late, syn());
    }
}

fn only_of_peers_that_keep_their_address() {
    for family in FAMILIES {
        let b = B.ip(family);
        let to = |mac: Mac| Frame::eth(B.mac, mac).ip(b, A.ip(family)).tcp(1, 22, tcp::SYN);
        let known = |row, slot, flags| {
            let mut tables = guarded();
            tables.set_address(VNI, b, row, slot, flags);
            tables
        };
        passes(&known(1, 0, AddressWord::NODE | AddressWord::ENCAPSULATED), to(A.mac));
        passes(&known(1, 2, AddressWord::ENCAPSULATED), to(A.mac));
        // Not of the overlay as far as this node's marks go: only where nothing stands between.
        passes(&known(1, 0, 0), to(BRIDGE));
        denied(&known(1, 0, 0), &to(A.mac), Reason::DeniedByRule, 6);
        passes(&guarded(), to([0xff; 6]));
    }
}

fn of_a_flow_tc_decides() {
    for family in FAMILIES {
        let tables = guarded();
        let syn = from(B.ip(family)).tcp(1, 5432, tcp::SYN);
        let frame = Frame::eth(BRIDGE, A.mac).ip(B.ip(family), A.ip(family)).tcp(1, 5432, tcp::SYN).build();
        let meta = Meta {
            slot: SLOT,
            len: frame.len() as u32,
            segments: 1,
            vlan: false,
            transit: true,
            mark: bulkhead_ebpf::abi::mark::VERIFIED,
        };
        assert!(tables.judge(Direction::Ingress, &frame, &meta).pass);
        let mut revoked = tables;
        revoked.set_policy(1, &[Line::everything(everyone(Action::Deny, Reason::Isolated, ISOLATED))]);
        revoked.words.insert(SLOT, EndpointWord::new(2, CLOSED, Mode::Enforce));
        // It is TC that forgets the flow.
        passes(&revoked, syn);
        denied(&revoked, &from(B.ip(family)).tcp(2, 5432, tcp::SYN), Reason::Isolated, ISOLATED);
    }
}

fn would_be_verdicts_are_asked_in_tc() {
    for family in FAMILIES {
        let mut tables = guarded();
        let audited = Entry { flags: Entry::AUDIT, ..allow(1, 0) };
        tables.set_policy(
            1,
            &[Line::everything(audited), Line::everything(everyone(Action::Deny, Reason::Isolated, ISOLATED))],
        );
        tables.set_view(CLOSED, 1, 2, View::AUDIT_EGRESS);
        let syn = || from(B.ip(family)).tcp(1, 22, tcp::SYN);
        denied(&tables, &syn(), Reason::Isolated, ISOLATED);
        tables.set_view(CLOSED, 1, 2, View::AUDIT_INGRESS);
        passes(&tables, syn());
    }
}

/// What a peer sends to an endpoint of the node, most of it a SYN as it should be.
fn inner() -> impl Strategy<Value = Vec<u8>> {
    let mac = prop_oneof![4 => Just(BRIDGE), 2 => Just(A.mac), 1 => Just([0xff; 6])];
    let flags = prop_oneof![6 => Just(tcp::SYN), 1 => any::<u8>()];
    let port = select(vec![0, 22, 23, 53, 5432, 8443, 9000, u16::MAX]);
    let peer = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(2)];
    let odd = prop_oneof![6 => Just(0_u8), 2 => any::<u8>()];
    (select(FAMILIES.to_vec()), peer, any::<bool>(), mac, port, flags, odd).prop_map(
        |(family, peer, own, mac, port, flags, odd)| {
            let peer = [B.ip(family), nobody(family), local(family)][peer];
            let to = if own { A.ip(family) } else { local(family) };
            let frame = Frame::eth(B.mac, mac).ip(peer, to);
            let frame = if odd & 0x0f == 1 { frame.ttl(odd >> 4) } else { frame };
            let frame = if odd & 0x0f == 2 { frame.fragment(1, 0, odd & 0x10 == 0) } else { frame };
            let frame = frame.tcp(1, port, flags);
            let frame = if odd & 0x0f == 3 { frame.payload(odd.into()) } else { frame };
            if odd & 0x0f == 4 { frame.trailer(&vec![0; odd.into()]) } else { frame }.build()
        },
    )
}

/// An input of [`harness::early`].
fn input(patches: usize) -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![3 => Just(0), 1 => any::<u8>()];
    let damage = vec((0..120_usize, any::<u8>()), 0..3);
    let damage = prop_oneof![2 => Just(Vec::new()), 1 => damage];
    (flags, vec(any::<[u8; 12]>(), 0..=patches), inner(), damage).prop_map(|(flags, patches, mut frame, damage)| {
        let len = frame.len();
        damage.into_iter().filter(|(at, _)| *at < len).for_each(|(at, value)| frame[at] = value);
        let count = u8::try_from(patches.len()).expect("few");
        [&[flags, 0, 0, 0, 0, 0, 0, count][..], &patches.concat(), &frame].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(if skip::long() { 100_000 } else { 1_000 })
    })]

    #[test]
    fn xdp_and_tc_agree(input in input(0)) {
        harness::early(&input);
    }

    #[test]
    fn xdp_and_tc_agree_over_random_tables(input in input(6)) {
        harness::early(&input);
    }
}

/// Of what the generator makes, enough is dropped for the properties above to say something.
#[test]
fn a_good_part_of_it_is_dropped() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for (patches, least) in [(0, 100), (6, 30)] {
        let strategy = input(patches);
        let dropped =
            (0..1000).filter(|_| harness::early(&strategy.new_tree(&mut runner).expect("a value").current())).count();
        assert!(dropped > least, "{dropped} of 1,000 with {patches} patches");
    }
}
