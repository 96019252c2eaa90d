//! Pods on two nodes under policies that kubectl applies.

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::skip;
use bulkhead_topology::traffic::{Capture, Frame};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, eventually, pod, server};

use crate::netpol;

fn shop() -> String {
    [NAMESPACE.to_owned(), server("db", "n2"), server("web", "n1"), server("guest", "n1"), server("near", "n2")]
        .concat()
}

/// Across nodes and on one node; what is blocked is counted with its pod, namespace and rule, and cut where it was open.
#[test]
fn a_policy_from_kubectl_holds_on_both_nodes() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&shop());
    guarded.wait_for(&["db", "web", "guest", "near"]);
    let db = format!("{}:8080", guarded.address("db"));
    let web = format!("{}:8080", guarded.address("web"));
    for from in ["web", "guest", "near"] {
        assert!(guarded.connects(from, &db), "{from}: nothing isolates yet");
    }
    guarded.apply(POLICY);
    guarded.becomes("guest", &db, false);
    guarded.becomes("near", &db, false);
    assert!(guarded.connects("web", &db));
    assert!(guarded.connects("db", &web), "ingress alone is isolated");
    assert!(!guarded.connects("web", &db.replace(":8080", ":8081")), "another port");

    let blocked = |node, workload: &str, direction: &str| {
        let labels = [
            format!("workload=\"{workload}\""),
            format!("direction=\"{direction}\""),
            "verdict=\"blocked\"".to_owned(),
        ];
        let labels: Vec<_> = ["namespace=\"shop\""].into_iter().chain(labels.iter().map(String::as_str)).collect();
        guarded.metric(node, "bulkhead_", &labels)
    };
    eventually("the caller's node counts it", || blocked(0, "guest", "egress") > 0.0);
    eventually("the callee's node counts it", || blocked(1, "db", "ingress") > 0.0);

    // Labels decide, and they change.
    guarded.kubectl(&["--namespace=shop", "label", "pod", "guest", "app=web", "--overwrite"]);
    guarded.becomes("guest", &db, true);
    guarded.kubectl(&["--namespace=shop", "label", "pod", "guest", "app=guest", "--overwrite"]);
    guarded.becomes("guest", &db, false);
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "db", "guests"]);
    guarded.becomes("guest", &db, true);
    assert_eq!(guarded.metric(0, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(0));
}

/// The same by IPv4 and IPv6, by addresses of pods and of a Service.
#[test]
fn a_policy_holds_for_both_families() {
    let Some(guarded) = Guarded::start(Cluster::builder().dual_stack(true)) else { return };
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: db, namespace: shop }\n\
        spec: { ipFamilyPolicy: RequireDualStack, selector: { app: db }, ports: [{ port: 80, targetPort: 8080 }] }\n---\n";
    guarded.apply(&[&shop(), service, POLICY].concat());
    guarded.wait_for(&["db", "web", "guest", "near"]);
    let pods = guarded.listed("pod", "db", ".status.podIPs[*].ip", 8080);
    let services = guarded.listed("service", "db", ".spec.clusterIPs[*]", 80);
    assert_eq!((pods.len(), services.len()), (2, 2));
    for to in pods.iter().chain(&services) {
        guarded.becomes("web", to, true);
        guarded.becomes("guest", to, false);
        guarded.becomes("near", to, false);
    }
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "db", "guests"]);
    for to in pods.iter().chain(&services) {
        guarded.becomes("guest", to, true);
    }
    assert_eq!(netpol::quick(&guarded, "two families"), 3);
}

/// Labels of a namespace decide, and with a namespace goes all that is known of its pods.
#[test]
fn namespaces_are_followed() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    let ops = |text: String| text.replace("namespace: shop", "namespace: ops");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: db, namespace: shop }\nspec:\n  podSelector: {}\n  \
        ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: ops } } }] }]\n---\n";
    let crowd: String = (0..10).map(|number| ops(pod(&format!("crowd-{number}"), "n1", "args: [pause]"))).collect();
    let namespace = NAMESPACE.replace("name: shop", "name: ops");
    guarded.apply(&[NAMESPACE, &server("db", "n2"), policy, &namespace, &ops(server("web", "n1"))].concat());
    guarded.wait_for(&["db"]);
    guarded.kubectl(&["--namespace=ops", "wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let db = format!("{}:8080", guarded.address("db"));
    let becomes = |connects| {
        eventually(&format!("it connects: {connects}"), || guarded.connects_from("ops", "web", &db) == connects);
    };
    becomes(false);
    guarded.kubectl(&["label", "namespace", "ops", "team=ops"]);
    becomes(true);
    guarded.kubectl(&["label", "namespace", "ops", "team=dev", "--overwrite"]);
    becomes(false);

    let links = || guarded.links(0);
    let before = links();
    guarded.apply(&crowd);
    eventually("all are guarded", || links() == before + 20);
    guarded.kubectl(&["delete", "namespace", "ops"]);
    // With the pod that called.
    eventually("nothing is left of them", || links() == before - 2);
    assert_eq!(guarded.metric(0, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(0));
}

/// Pods whose program sends at once: nothing that is denied leaves the node, from the first packet of each.
#[test]
fn a_pod_is_denied_from_its_first_packet() {
    /// The beginning of IPv4 packets of 805 bytes, which nobody else sends.
    const MARK: [u8; 4] = [0x45, 0, 0x03, 0x25];
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), "---\n", POLICY].concat());
    guarded.wait_for(&["db"]);
    let db = guarded.address("db");
    let marked = |frame: &Frame| frame.bytes.windows(MARK.len()).any(|bytes| bytes == MARK);
    let node = guarded.cluster.node(0);
    let witness = Capture::count(&node.netns, "flannel.1", marked).unwrap();
    let sends = |name: &str| {
        let script = format!("ping -c 12 -i 0.008 -W 1 -s 777 {db}; true");
        pod(name, "n1", &format!("command: [sh, -c, '{script}']"))
    };
    let pods = if skip::long() { 100 } else { 8 };
    for number in 0..pods {
        let name = format!("hasty-{number}");
        guarded.apply(&sends(&name));
        let phase = ["--namespace=shop", "get", "pod", &name, "--output=jsonpath={.status.phase}"];
        eventually("it has sent", || guarded.kubectl(&phase) == "Succeeded");
        let log = guarded.kubectl(&["--namespace=shop", "logs", &name]);
        assert!(log.contains("12 packets transmitted, 0 packets received"), "{log}");
        guarded.kubectl(&["--namespace=shop", "delete", "pod", &name, "--wait=false"]);
    }
    assert_eq!(witness.counts().frames, 0, "of pods that may call nobody");

    // The same from one that may.
    guarded.apply(&sends("web"));
    eventually("what is allowed leaves the node", || witness.counts().frames > 0);
}
