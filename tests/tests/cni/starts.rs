//! The first packets of containers: many starts in a row, on an idle and on a busy machine.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Agent, Lab,
    chain::{Chain, Container},
};
use bulkhead_topology::{
    Netns,
    traffic::{Capture, Frame},
};

use crate::{
    plugins,
    support::{BRIEF, Busy, PATIENCE, db, lab},
};

/// What a witness knows datagrams by.
const MARK: &[u8] = b"bulkhead first packets";
/// Of a container's life, what is looked at.
const FIRST: Duration = Duration::from_millis(100);
/// Packets that a container must have sent by then, for its start to count.
const ENOUGH: usize = 10;

/// A container's program: from its first moment on it sends marked datagrams, and logs when it sent each.
pub(crate) fn entry(netns: &Netns, to: Ipv4Addr) -> Vec<Duration> {
    netns.run(|| {
        let begin = Instant::now();
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        let mut log = Vec::new();
        while begin.elapsed() < FIRST {
            if socket.send_to(MARK, (to, 7777)).is_ok() {
                log.push(begin.elapsed());
            }
            thread::sleep(Duration::from_millis(2));
        }
        log
    })
}

/// Packets of the log that were sent in time.
fn early(log: &[Duration]) -> usize {
    log.iter().filter(|sent| **sent <= FIRST).count()
}

/// The peer's end of the underlay, and the bridge of the container's node. They stand before the first container.
pub(crate) struct Witnesses {
    wire: Capture,
    bridge: Capture,
}

impl Witnesses {
    pub(crate) fn stand(lab: &Lab) -> Self {
        let mark = |frame: &Frame| frame.bytes.windows(MARK.len()).any(|bytes| bytes == MARK);
        let (here, there) = (lab.topology.node(0), lab.topology.node(1));
        Self {
            wire: Capture::count(&there.netns, &there.underlay.link.name, mark).unwrap(),
            bridge: Capture::count(&here.netns, &here.bridge.name, mark).unwrap(),
        }
    }

    pub(crate) fn seen(&self) -> (u64, u64) {
        (self.wire.counts().frames, self.bridge.counts().frames)
    }
}

/// Starts containers that may call nobody, until so many starts count. A start that sent too little shows nothing, and is done again.
pub(crate) fn starts(chain: &Chain<'_>, to: Ipv4Addr, wanted: usize, witnesses: &Witnesses, how: &str) {
    let (mut counted, mut repeated, mut packets) = (0, 0, 0);
    while counted < wanted {
        let mut guest = Container::new("guest-1");
        chain.add(&mut guest).unwrap();
        let sent = early(&entry(&guest.netns, to));
        chain.del(&guest);
        packets += sent;
        if sent >= ENOUGH {
            counted += 1;
        } else {
            repeated += 1;
            assert!(repeated <= wanted, "{repeated} starts sent less than {ENOUGH} packets in {FIRST:?}");
        }
        assert_eq!(witnesses.seen(), (0, 0), "{how}, start {}", counted + repeated);
    }
    thread::sleep(BRIEF);
    let seen = witnesses.seen();
    eprintln!(
        "{how}: {counted} starts count, {repeated} sent too little and were repeated; {packets} packets in the first {FIRST:?}, \
         seen on the wire {}, on the bridge {}",
        seen.0, seen.1
    );
    assert_eq!(seen, (0, 0), "{how}");
}

/// Nothing that is denied gets out, from the first packet of a container on; what is allowed does.
#[test]
fn nothing_denied_leaves_a_container_that_starts() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1", "guest-1"]);
    let _servers = db(&lab, 8080);
    let to = lab.topology.workload("db").v4;
    let _agents = [Agent::start(&lab, 0, &[]).unwrap(), Agent::start(&lab, 1, &[]).unwrap()];
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let witnesses = Witnesses::stand(&lab);
    let (idle, busy) = if skip::long() { (200, 200) } else { (25, 5) };
    starts(&chain, to, idle, &witnesses, "idle");
    {
        let _busy = Busy::start();
        starts(&chain, to, busy, &witnesses, "all CPUs busy");
    }
    // The witnesses do see what passes, from the first packet on.
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    let sent = entry(&web.netns, to).len() as u64;
    assert!(sent > 0);
    let Witnesses { wire, bridge } = &witnesses;
    assert!(wire.wait_for(sent, PATIENCE) && bridge.wait_for(sent, PATIENCE), "{sent}: {:?}", witnesses.seen());
    chain.del(&web);
}
