//! Our bits of packet marks, where a node wants them elsewhere.

use bulkhead_dataplane::{
    kernel::XdpMode,
    load::Programs,
    node::Node as _,
    sys::{self, SkbContext},
};
use bulkhead_ebpf::{abi::mark, mark::Layout};
use bulkhead_fixtures::{Frame, tcp};
use bulkhead_topology::{Topology, Workload};

use crate::{
    node::{BUDGET, Guarded, ONE_AT_A_TIME, desired},
    ready, refused,
};

/// `TCX_NEXT` and `TCX_DROP`.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// Each program reads and writes the mark as the mask says, and leaves all other bits as they are.
#[test]
fn programs_keep_to_the_mask() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology =
        Topology::builder().nodes(2).workload("web", 0).workload("near", 0).workload("db", 1).build().unwrap();
    let [web, near, db] = ["web", "near", "db"].map(|name| topology.workload(name));
    // Four bits for sixteen slots and two flags: at the very top; in two parts with the flags below; in three parts.
    for mask in [0xfc00_0000, 0x000f_0003, 0x8000_0f01, mark::MASK] {
        let mut guarded = Guarded::new(topology.node(0), XdpMode::Off);
        guarded.mark_mask = mask;
        let layout = Layout::new(mask).unwrap();
        let mut node = guarded.open(BUDGET).unwrap();
        let mut wanted = desired(&topology, 0, true);
        for address in wanted.addresses.values_mut().filter(|address| address.endpoint.is_none()) {
            address.encapsulated = true;
        }
        guarded.node.netns.run(|| node.publish(&wanted)).unwrap();
        let status = guarded.read();
        assert_eq!((status.mark_mask, status.input_rule), (mask, true));
        let slot = |workload: &Workload| {
            status.endpoints.iter().find(|found| found.name.workload == workload.name).unwrap().slot
        };
        let programs = node.programs().unwrap();
        // What others have in the mark: nothing, everything, and kube-proxy's bit.
        for others in [0, !mask, 0x4000] {
            let run = |program, frame: &[u8], value, ours| run(&programs, program, frame, value, others & !mask | ours);
            let is = |ours| others & !mask | layout.encode(0, ours);

            // What is left over in our bits means nothing on what a workload sends.
            let sent =
                Frame::eth(web.eth0.mac, [2, 0, 0, 0, 0, 9]).ipv4(web.v4, db.v4).tcp(40_000, 5432, tcp::SYN).build();
            for before in [0, mask] {
                assert_eq!(
                    run("from_workload", &sent, slot(web), before),
                    (NEXT, is(slot(web) | mark::FINAL)),
                    "{mask:#x}"
                );
            }

            let (node, peer) = (topology.node(0), topology.node(1));
            let inner = || {
                Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac).ipv4(db.v4, web.v4).tcp(40_000, 5432, tcp::SYN)
            };
            let tunnelled = Frame::eth(peer.underlay.link.mac, node.underlay.link.mac)
                .ipv4(peer.underlay.v4, node.underlay.v4)
                .udp(45_000, node.overlay4.port)
                .vxlan(node.overlay4.vni)
                .inner(inner())
                .build();
            for before in [0, mask] {
                assert_eq!(run("underlay", &tunnelled, 0, before), (NEXT, is(mark::VERIFIED)), "{mask:#x}");
            }
            for (ours, verdict) in [(mark::VERIFIED, NEXT), (mark::FINAL, DROP), (mark::SLOT & layout.slot, DROP)] {
                assert_eq!(
                    run("overlay_in", &inner().build(), node.overlay4.vni, layout.encode(0, ours)).0,
                    verdict,
                    "{mask:#x}"
                );
            }

            // What comes from another node needs the bit, what comes from a workload here its slot; nothing is left of either.
            let to = |from: &Workload| {
                Frame::eth([2, 0, 0, 0, 0, 9], web.eth0.mac).ipv4(from.v4, web.v4).tcp(40_001, 5432, tcp::SYN).build()
            };
            for (from, ours, passes) in [
                (db, mark::VERIFIED, true),
                (db, 0, false),
                (db, mark::FINAL, false),
                (near, slot(near) | mark::FINAL, true),
                (near, slot(web) | mark::FINAL, false),
                (near, mark::VERIFIED, false),
            ] {
                let (verdict, left) = run("to_workload", &to(from), slot(web), layout.encode(0, ours));
                assert_eq!(verdict, if passes { NEXT } else { DROP }, "{mask:#x}: {} with {ours:#x}", from.name);
                if passes {
                    assert_eq!(left, others & !mask, "{mask:#x}");
                }
            }
            let (verdict, left) =
                run("overlay_out", &sent, node.overlay4.vni, is(slot(web) | mark::FINAL) | mask & !layout.clear(mask));
            assert_eq!((verdict, left), (NEXT, others & !mask), "{mask:#x}");
        }
    }
}

fn run(programs: &Programs, program: &str, frame: &[u8], value: u32, mark: u32) -> (u32, u32) {
    let context = SkbContext { cb: [value, 0, 0, 0, 0], ingress_ifindex: 1, mark, ..SkbContext::default() };
    let ran = sys::test_run(&programs.get(program).unwrap(), frame, context, 1).unwrap();
    (ran.verdict, ran.context.mark)
}

/// Nothing is touched where the mask cannot be used.
#[test]
fn a_mask_that_cannot_be_used_is_refused() {
    if !ready() {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let mut guarded = Guarded::new(topology.node(0), XdpMode::Off);
    for (mask, expected) in [
        (0x3f, None),
        (0x1f, Some("16 endpoints need 4 adjacent bits")),
        (0x3f00_4fff, Some("0x00004000 of it are kube-proxy's (0x4000) or kubelet's (0x8000); 0x3f000fff would do")),
    ] {
        guarded.mark_mask = mask;
        match expected {
            None => drop(guarded.open(BUDGET).unwrap()),
            Some(expected) => {
                let why = refused(guarded.open(BUDGET));
                assert!(why.contains(expected), "{why}");
            }
        }
    }
}
