//! SCTP between pods, packet by packet: it needs no SCTP in the kernel, which has to forward these packets alone.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::{Frame, proto};
use bulkhead_tests::{
    guarded::{Guarded, NAMESPACE, eventually, pod},
    inside::Pod,
};
use socket2::{Domain, Protocol, Socket, Type};

/// How long a packet may take to come.
const ANSWER: Duration = Duration::from_secs(1);
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ port: 9000, protocol: SCTP }] }]
";

fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(proto::SCTP)))).unwrap();
    socket.set_read_timeout(Some(ANSWER / 10)).unwrap();
    socket
}

/// A heartbeat, with header and checksum, as it lies behind the IP header.
fn heartbeat(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let frame = Frame::eth([2; 6], [2; 6]).ip(from, to).sctp(40_000, port).sctp_chunk(4, 0, &[0, 1, 0, 4]).build();
    frame[34..].to_vec()
}

/// Whether a packet to this port arrives.
fn arrives(from: &Pod, to: &Pod, port: u16) -> bool {
    let (source, target) = (from.address, to.address);
    let receiver = to.spawn(socket).unwrap().recv().unwrap();
    let sender = from.spawn(socket).unwrap().recv().unwrap();
    sender.send_to(&heartbeat(source, target, port), &SocketAddr::new(target, 0).into()).unwrap();
    let start = Instant::now();
    while start.elapsed() < ANSWER {
        let mut bytes = [0; 128];
        let Ok(len) = (&receiver).read(&mut bytes) else { continue };
        // Behind the IP header: source port, destination port.
        if bytes[..len].get(22..24) == Some(&port.to_be_bytes()[..]) {
            return true;
        }
    }
    false
}

#[test]
fn sctp_between_pods_is_judged_by_its_ports() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    let pause = |name: &str, node: &str| pod(name, node, "args: [pause]");
    guarded.apply(&[NAMESPACE, &pause("db", "n2"), &pause("web", "n1"), &pause("near", "n2")].concat());
    guarded.wait_for(&["db", "web", "near"]);
    let of = |name: &str, node: usize| Pod::new(guarded.cluster.node(node), &guarded.address(name)).unwrap();
    let (db, web, near) = (of("db", 1), of("web", 0), of("near", 1));
    for (pod, port) in [(&web, 9000), (&web, 9001), (&near, 9000)] {
        eventually("without a policy all of it arrives", || arrives(pod, &db, port));
    }
    guarded.apply(POLICY);
    // The port is another one, or the pod.
    eventually("a port that nobody allows is shut", || !arrives(&web, &db, 9001));
    assert!(!arrives(&near, &db, 9000));
    assert!(arrives(&web, &db, 9000));
    let blocked = ["workload=\"db\"", "direction=\"ingress\"", "verdict=\"blocked\""];
    eventually("what is blocked is counted", || guarded.metric(1, "bulkhead_packets_total", &blocked) >= 2.0);
}
