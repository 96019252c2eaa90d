//! Back ends of flannel that send packets plain from node to node.

use bulkhead_cluster::{Backend, Cluster};
use bulkhead_topology::traffic::{Capture, Frame};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, server};

/// Whether a frame is IPv4 from one address to another, and nothing around it.
fn plain(from: &str, to: &str) -> impl Fn(&Frame) -> bool + Send + 'static {
    let addresses = [from, to].map(|address| address.parse::<std::net::Ipv4Addr>().unwrap().octets()).concat();
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
}

#[test]
fn a_policy_holds_with_direct_routing() {
    a_policy_holds(Backend::DirectRouting);
}

#[test]
fn a_policy_holds_with_host_gw() {
    a_policy_holds(Backend::HostGw);
}
