//! The short way decides as the long one, whatever the flow's entry, the packet and the endpoint are; and it is taken.

use std::collections::BTreeMap;

use bulkhead_ebpf::{
    abi::{Direction, EndpointWord, Flow, FlowKey4, FlowKey6, Mode, mark, tenant},
    host::{HostTables, words},
    tables::Tables as _,
    verdict::Meta,
};
use bulkhead_fixtures::{
    Frame,
    catalogue::{A, B, Family},
    proto, skip, tcp,
};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree as _,
    test_runner::{FileFailurePersistence, TestRunner},
};

use crate::{
    harness::alike,
    lab::BRIDGE,
    node::{CLOSED, FAMILIES, LOCAL, OPEN, SLOT, tables},
};

/// Ports of the endpoint and of its peer.
const PORTS: (u16, u16) = (1000, 2000);

/// A packet, and what stands in the tables about it.
#[derive(Clone, Debug)]
struct Case {
    family: Family,
    sent: bool,
    stream: bool,
    /// TCP flags.
    flags: u8,
    /// In a fragment.
    fragment: bool,
    flow: Flow,
    meta: Meta,
    mode: Mode,
    /// The view has ended, and another one holds.
    ended: bool,
    /// The endpoint is gone, its flow is not.
    gone: bool,
}

fn flow() -> impl Strategy<Value = Flow> {
    let good = EndpointWord::new(1, CLOSED, Mode::Enforce).0;
    let word = prop_oneof![
        6 => Just(good),
        1 => select(vec![0, EndpointWord::new(2, CLOSED, Mode::Enforce).0, EndpointWord::new(1, OPEN, Mode::Enforce).0]),
    ];
    let sender = select(vec![0, LOCAL, tenant(LOCAL, 1), SLOT]);
    (word, 0..32_u8, select(vec![0, 1, Flow::DIRECT, Flow::DIRECT | 1]), sender, 0..100_u32, any::<[u8; 2]>()).prop_map(
        |(word, flags, initiator, sender, counter, tcp_flags)| Flow {
            word,
            flags,
            initiator,
            sender,
            counter,
            tcp_flags,
            ..Flow::default()
        },
    )
}

fn meta() -> impl Strategy<Value = Meta> {
    let marks = select(vec![0, mark::VERIFIED, mark::FINAL | LOCAL, mark::VERIFIED | mark::FINAL | LOCAL]);
    let vlan = prop_oneof![9 => Just(false), 1 => Just(true)];
    (marks, any::<bool>(), vlan, 0..5_u32).prop_map(|(mark, transit, vlan, segments)| Meta {
        slot: SLOT,
        len: 0,
        segments,
        vlan,
        transit,
        mark,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let seldom = || prop_oneof![9 => Just(false), 1 => Just(true)];
    let flags = prop_oneof![4 => Just(tcp::ACK), 1 => Just(tcp::SYN), 1 => any::<u8>()];
    let mode = prop_oneof![
        6 => Just(Mode::Enforce),
        1 => select(vec![Mode::Observe, Mode::Quarantine, Mode::Pending]),
    ];
    let kind = (select(FAMILIES.to_vec()), any::<[bool; 2]>(), flags);
    (kind, flow(), meta(), mode, [seldom(), seldom(), seldom()]).prop_map(
        |((family, [sent, stream], flags), flow, meta, mode, [fragment, ended, gone])| {
            // Mostly a flow that was judged in this mode.
            let flow =
                Flow { word: if flow.word as u8 == 1 { flow.word & !0xff | mode as u64 } else { flow.word }, ..flow };
            Case { family, sent, stream, flags, fragment, flow, meta, mode, ended, gone }
        },
    )
}

impl Case {
    const fn direction(&self) -> Direction {
        if self.sent { Direction::Egress } else { Direction::Ingress }
    }

    fn frame(&self) -> Vec<u8> {
        let ((own, peer), (local, remote)) = ((A.ip(self.family), B.ip(self.family)), PORTS);
        let (frame, from, to) = if self.sent {
            (Frame::eth(A.mac, BRIDGE).ip(own, peer), local, remote)
        } else {
            (Frame::eth(BRIDGE, A.mac).ip(peer, own), remote, local)
        };
        let frame = if self.fragment { frame.fragment(1, 0, true) } else { frame };
        if self.stream { frame.tcp(from, to, self.flags) } else { frame.udp(from, to) }.build()
    }

    fn node(&self) -> HostTables {
        let mut tables = tables();
        tables.words.insert(SLOT, EndpointWord::new(1, CLOSED, self.mode));
        let view = tables.views.get_mut(&CLOSED).expect("the lab's");
        view.deadline = tables.now + u64::from(!self.ended);
        view.next = OPEN;
        if self.gone {
            tables.infos.get_mut(&SLOT).expect("the lab's").identity = 0;
        }
        let (local_port, remote_port) = PORTS;
        let protocol = if self.stream { proto::TCP } else { proto::UDP };
        let [.., local] = words(A.v4.into());
        let [.., remote] = words(B.v4.into());
        let key = FlowKey4 { local, remote, local_port, remote_port, protocol, padding: [0; 3] };
        tables.insert4(SLOT, &key, &self.flow);
        let remote = words(B.v6.into());
        let key = FlowKey6 { remote, local_port, remote_port, protocol, local: 0, padding: [0; 2] };
        tables.insert6(SLOT, &key, &self.flow);
        tables
    }

    /// Judges it both ways. Tells whether the short one was taken.
    fn run(&self) -> bool {
        let frame = self.frame();
        let meta = Meta { len: frame.len() as u32, ..self.meta };
        alike(&[self.node(), self.node()], self.direction(), &frame, &meta)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(if skip::long() { 100_000 } else { 5_000 })
    })]

    #[test]
    fn the_short_way_decides_as_the_long_one(case in case()) {
        case.run();
    }
}

/// Each kind of packet and each flag of a flow is among those that take it.
#[test]
fn all_kinds_take_the_short_way() {
    let mut runner = TestRunner::deterministic();
    let mut taken: BTreeMap<_, u32> = BTreeMap::new();
    let mut flags = [0; 5];
    for _ in 0..10_000 {
        let case = case().new_tree(&mut runner).expect("a value").current();
        if case.run() {
            let (answers, direct) = (case.flow.begun() != case.direction(), case.flow.initiator & Flow::DIRECT != 0);
            *taken.entry((case.family == Family::V4, case.sent, case.stream, answers, direct)).or_default() += 1;
            flags.iter_mut().enumerate().for_each(|(bit, count)| *count += u32::from(case.flow.flags >> bit & 1));
        }
    }
    assert!(taken.len() == 32 && taken.values().all(|count| *count > 10), "{taken:?}");
    assert!(flags.iter().all(|count| *count > 10), "{flags:?}");
}
