//! A host that is no node sends into the pods' network.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::Frame;
use bulkhead_tests::bulkhead;
use bulkhead_topology::traffic::{Capture, Frame as Seen};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, eventually, server};

/// Source port of what is forged.
const FORGED: u16 = 6666;
/// flannel's.
const PORT: u16 = 8472;
const VNI: u32 = 1;

fn address(guarded: &Guarded, pod: &str) -> Ipv4Addr {
    guarded.address(pod).parse().unwrap()
}

/// Nothing of it is delivered, and it is counted by its reason. The very same packets are delivered while enforcement is bypassed.
#[test]
fn forged_tunnel_packets_reach_no_pod() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), &server("web", "n1")].concat());
    guarded.wait_for(&["db", "web"]);
    let node = guarded.cluster.node(1);
    let said = node.command("cat").arg("/sys/class/net/flannel.1/address").output().unwrap();
    let mac: Vec<u8> = String::from_utf8(said.stdout)
        .unwrap()
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let inner = Frame::eth([2, 0, 0, 0, 0, 9], mac.try_into().unwrap())
        .ipv4(address(&guarded, "web"), address(&guarded, "db"))
        .udp(FORGED, 8081)
        .payload(32);
    // VXLAN's header and the inner frame: the rest is the socket's.
    let datagram = [&[8, 0, 0, 0][..], &(VNI << 8).to_be_bytes(), &inner.build()].concat();
    let to = (node.address, PORT);
    let send = || {
        guarded.cluster.control_plane().run(|| {
            let socket = UdpSocket::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), 0)).unwrap();
            for _ in 0..10 {
                socket.send_to(&datagram, to).unwrap();
            }
        });
    };
    let forged = |frame: &Seen| frame.bytes.get(34..36) == Some(&FORGED.to_be_bytes()[..]);
    let witness = Capture::count(&node.netns, "cni0", forged).unwrap();

    let counted =
        || guarded.metric(1, "bulkhead_underlay_packets_total", &["verdict=\"blocked\"", "reason=\"unknown_vtep\""]);
    let before = counted();
    send();
    eventually("all of it is counted", || counted() == before + 10.0);
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
