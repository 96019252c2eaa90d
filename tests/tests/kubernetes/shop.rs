//! Pods on two nodes under policies that kubectl applies.

use std::thread;

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::skip;
use bulkhead_topology::traffic::{Capture, Frame};

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, eventually, pod, server};

use crate::{dump::Dump, netpol};

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

    let blocked = |node, workload: &str, direction: &str, policy: &str| {
        let labels = [
            format!("workload=\"{workload}\""),
            format!("direction=\"{direction}\""),
            format!("rule=\"networkpolicy shop/{policy} isolated {direction}\""),
            "verdict=\"blocked\"".to_owned(),
        ];
        let labels: Vec<_> = ["namespace=\"shop\""].into_iter().chain(labels.iter().map(String::as_str)).collect();
        guarded.metric(node, "bulkhead_", &labels)
    };
    eventually("the caller's node counts it", || blocked(0, "guest", "egress", "guests") > 0.0);
    eventually("the callee's node counts it", || blocked(1, "db", "ingress", "db") > 0.0);
    as_without_a_cluster(&guarded);

    // Labels decide, and they change.
    guarded.kubectl(&["--namespace=shop", "label", "pod", "guest", "app=web", "--overwrite"]);
    guarded.becomes("guest", &db, true);
    guarded.kubectl(&["--namespace=shop", "label", "pod", "guest", "app=guest", "--overwrite"]);
    guarded.becomes("guest", &db, false);
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "db", "guests"]);
    guarded.becomes("guest", &db, true);
    assert_eq!(guarded.metric(0, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(0));
}

/// `explain`, `simulate` and `lint` say of what kubectl prints of this cluster what is so.
fn as_without_a_cluster(guarded: &Guarded) {
    let dump = Dump::of(guarded, &["namespaces", "nodes", "pods", "services", "endpointslices", "networkpolicies"]);
    dump.explains_what_is(guarded, &["db", "web", "guest", "near"]);
    let (code, [text, noted]) = dump.said(&["simulate", "--output", "list"]);
    assert_eq!(code, Some(0), "{text}{noted}");
    let paths = |path: &str| text.lines().filter(|line| line.starts_with(path)).collect::<Vec<_>>();
    assert_eq!(paths("shop/web[Pod] => shop/db["), ["shop/web[Pod] => shop/db[Pod] : TCP 8080"], "{text}");
    assert_eq!(paths("shop/guest[Pod] => shop/db["), [""; 0], "{text}");
    let open = [("db", "egress"), ("guest", "ingress"), ("near", "ingress"), ("web", "ingress and egress")];
    let mut found = dump.lint();
    found.sort();
    assert_eq!(found, open.map(|(pod, at)| format!("not-isolated: nothing isolates `shop/{pod}[Pod]` at {at}")));
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

/// How often labels change in a row.
const FLIPS: usize = 50;

/// Labels of a namespace and of a pod decide, however often they change, and with a namespace goes all that is known of its pods.
#[test]
fn namespaces_are_followed() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    let ops = |text: String| text.replace("namespace: shop", "namespace: ops");
    // Who may call may send nothing, and who may send may not call: nobody who has either label is answered.
    let policies = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: db, namespace: shop }\nspec:\n  \
        podSelector: { matchLabels: { app: db } }\n  ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: ops } } }] }, \
        { from: [{ podSelector: { matchLabels: { may: call } } }] }]\n---\n\
        apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: callers, namespace: shop }\nspec:\n  \
        podSelector: { matchLabels: { may: call } }\n  policyTypes: [Egress]\n---\n";
    let long = skip::long();
    let number = if long { 100 } else { 10 };
    let crowd: String = (0..number).map(|number| ops(pod(&format!("crowd-{number}"), "n1", "args: [pause]"))).collect();
    let namespace = NAMESPACE.replace("name: shop", "name: ops");
    guarded.apply(&[NAMESPACE, &server("db", "n2"), policies, &namespace, &ops(server("web", "n1"))].concat());
    guarded.wait_for(&["db"]);
    let address = guarded.address("db");
    // On the node of `db`: what two nodes know differs for a moment, and what one knows does not.
    let torn = pod("torn", "n2", &format!("command: [sh, -c, 'ping -i 0.002 {address}']"));
    guarded.apply(&torn.replace("app: torn", "app: torn, may: call"));
    guarded.wait_for(&["torn"]);
    guarded.kubectl(&["--namespace=ops", "wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let db = format!("{address}:8080");
    let becomes = |connects| {
        eventually(&format!("it connects: {connects}"), || guarded.connects_from("ops", "web", &db) == connects);
    };
    becomes(false);
    guarded.kubectl(&["label", "namespace", "ops", "team=ops"]);
    becomes(true);
    guarded.kubectl(&["label", "namespace", "ops", "team=dev", "--overwrite"]);
    becomes(false);

    let flip = |words: &[&str], labels: [&str; 2]| {
        for label in labels.into_iter().cycle().take(FLIPS) {
            guarded.kubectl(&[words, &[label, "--overwrite"]].concat());
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| flip(&["label", "namespace", "ops"], ["team=dev", "team=ops"]));
        scope.spawn(|| flip(&["--namespace=shop", "label", "pod", "torn"], ["may=send", "may=call"]));
    });
    becomes(true);
    flip(&["label", "namespace", "ops"], ["team=ops", "team=dev"]);
    becomes(false);
    let answers = || guarded.kubectl(&["--namespace=shop", "logs", "torn"]).matches("bytes from").count();
    // What leaves before a publish and arrives behind it meets two revisions, each of which lets it: a packet or two, and not what lies between two flips.
    assert!(answers() <= FLIPS / 10, "{}: {}", answers(), guarded.log(1));
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "callers"]);
    eventually("one of both is enough", || answers() > 0);
    guarded.kubectl(&["--namespace=shop", "delete", "pod", "torn"]);

    // Who is selected is known to both.
    guarded.kubectl(&["label", "namespace", "ops", "team=ops", "--overwrite"]);
    becomes(true);
    let links = || guarded.links(0);
    let known = || [0, 1].map(|node| guarded.metric(node, "bulkhead_table_used", &["table=\"ADDRESSES4\""]));
    let (before, known_before) = (links(), known());
    guarded.apply(&crowd);
    eventually("all are guarded", || links() == before + 2 * number);
    // That of `torn` may go as late as this.
    let more = if long { 99.0 } else { 9.0 };
    eventually("both nodes know all", || known().iter().zip(known_before).all(|(now, before)| *now >= before + more));
    guarded.kubectl(&["delete", "namespace", "ops"]);
    // With the pod that called.
    eventually("nothing is left of them", || links() == before - 2);
    eventually("nor of their addresses", || known().iter().zip(known_before).all(|(now, before)| *now < before));
    // A link of whom nobody knows counts when it has been there for five seconds: so long no chain of plugins takes to tell of it, of a hundred at once.
    assert_eq!(guarded.metric(0, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(0));
}

/// Sends at once, twelve IPv4 packets of 805 bytes, which nobody else sends.
pub(crate) fn hasty(to: &str) -> String {
    format!("ping -c 12 -i 0.008 -W 1 -s 777 {to}")
}

/// Whether a frame has such a packet.
pub(crate) fn is_hasty(frame: &Frame) -> bool {
    const BEGINNING: [u8; 4] = [0x45, 0, 0x03, 0x25];
    frame.bytes.windows(BEGINNING.len()).any(|bytes| bytes == BEGINNING)
}

/// Pods whose program sends at once: nothing that is denied leaves the node, from the first packet of each.
#[test]
fn a_pod_is_denied_from_its_first_packet() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), "---\n", POLICY].concat());
    guarded.wait_for(&["db"]);
    let db = guarded.address("db");
    let node = guarded.cluster.node(0);
    // On the underlay: in the tunnel they look the same.
    let witness = Capture::count(&node.netns, "eth0", is_hasty).unwrap();
    let sends = |name: &str| pod(name, "n1", &format!("command: [sh, -c, '{}; true']", hasty(&db)));
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
