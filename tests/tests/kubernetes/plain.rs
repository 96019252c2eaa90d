//! Back ends of flannel that send packets plain from node to node.

use std::net::Ipv4Addr;

use bulkhead_cluster::{Backend, Cluster};
use bulkhead_fixtures::{Frame as Packet, tcp};
use bulkhead_topology::traffic::{Capture, Frame, RawLink};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, eventually, server};

use crate::puppet::mac_of;

/// Source port of what is forged.
const FORGED: u16 = 6666;

/// A host that is no node calls `db` with the addresses of pods. Nothing on the wire tells it from the node of a pod, so that it is judged as the pod; with
/// the address of a pod that runs on the same node as `db`, it is known for what it is.
fn who_sends_as_a_pod_counts_as_that_pod(guarded: &Guarded) {
    let address = |pod: &str| guarded.address(pod).parse::<Ipv4Addr>().unwrap();
    let node = guarded.cluster.node(1);
    let (host, db) = (RawLink::open(guarded.cluster.control_plane(), "underlay").unwrap(), address("db"));
    let call = |pod: &str| {
        let frame = Packet::eth([2, 0, 0, 0, 0, 9], mac_of(node, "eth0")).ipv4(address(pod), db);
        host.send(&frame.tcp(FORGED, 8080, tcp::SYN).build()).unwrap();
    };
    let answer = move |frame: &Frame| {
        frame.bytes.get(26..30) == Some(&db.octets()[..]) && frame.bytes.get(36..38) == Some(&FORGED.to_be_bytes()[..])
    };
    let answered = Capture::count(&node.netns, "eth0", answer).unwrap();
    let blocked = |reason: &str| {
        let labels = ["workload=\"db\"", "direction=\"ingress\"", "verdict=\"blocked\"", reason];
        guarded.metric(1, "bulkhead_packets_total", &labels)
    };
    for (pod, reason) in [("guest", ""), ("near", "reason=\"plain_overlay_source\"")] {
        let before = blocked(reason);
        call(pod);
        eventually(&format!("as {pod}: counted"), || blocked(reason) > before);
    }
    assert_eq!(answered.counts().frames, 0, "as one who may not call");
    eventually("as one who may: answered", || {
        call("web");
        answered.counts().frames > 0
    });
}

/// Whether a frame is IPv4 from one address to another, and nothing around it.
fn plain(from: &str, to: &str) -> impl Fn(&Frame) -> bool + Send + 'static {
    let addresses = [from, to].map(|address| address.parse::<Ipv4Addr>().unwrap().octets()).concat();
    move |frame| frame.bytes.get(26..34) == Some(&addresses[..])
}

fn a_policy_holds(backend: Backend) {
    let Some(guarded) = Guarded::start(Cluster::builder().backend(backend)) else { return };
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: db, namespace: shop }\n\
        spec: { selector: { app: db }, ports: [{ port: 80, targetPort: 8080 }] }\n---\n";
    let pods = [server("db", "n2"), server("web", "n1"), server("guest", "n1"), server("near", "n2")].concat();
    guarded.apply(&[NAMESPACE, &pods, service].concat());
    guarded.wait_for(&["db", "web", "guest", "near"]);
    let mut targets = guarded.listed("service", "db", ".spec.clusterIP", 80);
    targets.extend(guarded.listed("pod", "db", ".status.podIP", 8080));
    let node = guarded.cluster.node(0);
    let witness = Capture::count(&node.netns, "eth0", plain(&guarded.address("web"), &guarded.address("db"))).unwrap();
    for to in &targets {
        for from in ["web", "guest", "near"] {
            guarded.becomes(from, to, true);
        }
    }
    guarded.apply(POLICY);
    for to in &targets {
        guarded.becomes("guest", to, false);
        guarded.becomes("near", to, false);
        guarded.becomes("web", to, true);
    }
    assert!(witness.counts().frames > 0, "it was sent plain");
    let web = format!("{}:8080", guarded.address("web"));
    assert!(guarded.connects("db", &web), "ingress alone is isolated");
    for node in 0..2 {
        assert_eq!(guarded.metric(node, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(node));
        let spoofed = ["reason=\"plain_overlay_source\""];
        assert_eq!(guarded.metric(node, "bulkhead_packets_total", &spoofed), 0.0, "{}", guarded.log(node));
    }
    who_sends_as_a_pod_counts_as_that_pod(&guarded);
}

#[test]
fn a_policy_holds_with_direct_routing() {
    a_policy_holds(Backend::DirectRouting);
}

#[test]
fn a_policy_holds_with_host_gw() {
    a_policy_holds(Backend::HostGw);
}
