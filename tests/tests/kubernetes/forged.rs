//! Hosts that send into the pods' network what is not theirs to send.

use std::net::Ipv4Addr;

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::Frame;
use bulkhead_tests::bulkhead;
use bulkhead_topology::traffic::{Capture, Frame as Seen};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, eventually, server};

use crate::puppet::{Puppet, dropped, mac_of};

/// Source port of what is forged.
const FORGED: u16 = 6666;

fn address(guarded: &Guarded, pod: &str) -> Ipv4Addr {
    guarded.address(pod).parse().unwrap()
}

/// Neither of a host that is no node nor of a node, with a source of another node's range. Nothing of it is delivered, and it is counted by its reason. The
/// very same packets are delivered while enforcement is bypassed.
#[test]
fn forged_tunnel_packets_reach_no_pod() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), &server("web", "n1")].concat());
    guarded.wait_for(&["db", "web"]);
    let node = guarded.cluster.node(1);
    let (web, db) = (address(&guarded, "web"), address(&guarded, "db"));
    let frame = Frame::eth([2, 0, 0, 0, 0, 9], mac_of(node, "flannel.1")).ipv4(web, db).udp(FORGED, 8081).payload(32);
    let host = Puppet::new(&guarded, 8);
    let send = || (0..10).for_each(|_| host.send(&frame, node));
    let forged = |frame: &Seen| frame.bytes.get(34..36) == Some(&FORGED.to_be_bytes()[..]);
    let witness = Capture::count(&node.netns, "cni0", forged).unwrap();
    let counted = |reason: &str| dropped(&guarded, 1, reason);
    let before = counted("unknown_vtep");
    send();
    eventually("all of it is counted", || counted("unknown_vtep") == before + 10.0);

    // As a node it may say what pods of its own range would, and nothing else.
    host.register("10.244.8.0/24");
    eventually("a pod there is answered", || host.is_answered(Ipv4Addr::new(10, 244, 8, 5), node, db));
    let before = counted("wrong_vtep");
    send();
    eventually("all of it is counted", || counted("wrong_vtep") == before + 10.0);
    assert_eq!(witness.counts().frames, 0);

    let mut bypass = node.command(bulkhead().unwrap());
    bypass.args(["bypass", "--for", "1m", "--reason", "to see that the packets are good", "--state"]);
    let done = bypass.arg(node.directory().join("bulkhead/state")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    eventually("it is delivered", || {
        send();
        witness.counts().frames > 0
    });
}
