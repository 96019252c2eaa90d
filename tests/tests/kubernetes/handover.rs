//! From another program that enforces policies to Bulkhead, with callers that notice nothing.

mod other;

use bulkhead_cluster::{Cluster, Node, ProxyMode};
use bulkhead_fixtures::skip;
use bulkhead_tests::{
    bulkhead,
    guarded::{Guarded, NAMESPACE, OBSERVE, Way, eventually, server},
};
use serde_json::Value;

use self::other::{KubeNetworkPolicies, KubeRouter, Other};
use crate::{
    daemonset::{ENFORCE, import_image, rolled_out},
    lasting::{caller, calls},
};

/// `db` is called by `web` alone, and `guest` calls nobody.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ port: 8080 }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: guest, namespace: shop }
spec:
  podSelector: { matchLabels: { app: guest } }
  policyTypes: [Egress]
";

/// Who calls `db` on `n2`, from where, and whether policy lets them: `guest` is stopped where it leaves, the others at `db`.
const CALLERS: [(&str, &str, bool); 4] =
    [("web", "n1", true), ("guest", "n1", false), ("clerk", "n1", false), ("near", "n2", false)];

/// What `bulkhead check` says of a node on a topic.
fn checked(node: &Node, topic: &str) -> Vec<[String; 2]> {
    let output = node.command(bulkhead().unwrap()).args(["check", "--json"]).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(said["enforceable"], true, "{:#}", said["lines"]);
    let lines = said["lines"].as_array().unwrap().iter().filter(|line| line["topic"] == topic);
    lines.map(|line| ["found", "remedy"].map(|part| line[part].as_str().unwrap().to_owned())).collect()
}

/// Packets that would have been blocked on a node, by the labels of the metric.
fn observed(guarded: &Guarded, node: usize, labels: &[&str]) -> f64 {
    let labels: Vec<_> = labels.iter().copied().chain(["verdict=\"observed\""]).collect();
    guarded.metric(node, "bulkhead_audit_packets_total", &labels)
}

fn hand_over(other: &mut dyn Other, proxy: ProxyMode, mode: &str) {
    let Some(guarded) = Guarded::bare(Cluster::builder().proxy(proxy), Way::default()) else { return };
    import_image(&guarded);
    guarded.apply(&[NAMESPACE, &server("db", "n2"), "---\n", POLICY].concat());
    guarded.wait_for(&["db"]);
    let db = guarded.address("db");
    let port = format!("{db}:8080");
    let names = CALLERS.map(|(name, ..)| name);
    guarded.apply(&CALLERS.map(|(name, node, _)| caller(name, node, &db)).concat());
    guarded.wait_for(&names);
    let as_policy_says = |guarded: &Guarded| {
        for (name, _, allowed) in CALLERS {
            guarded.becomes(name, &port, allowed);
        }
    };

    // What people run today.
    other.start(&guarded);
    as_policy_says(&guarded);
    for node in guarded.cluster.nodes() {
        let lines = checked(node, "policies");
        let [[found, remedy]] = &lines[..] else { panic!("{lines:?}") };
        assert!(found.starts_with(other.found()), "{found}");
        assert!(remedy.contains(other.remedy()), "{remedy}");
        let [[found, _]] = &checked(node, "kube-proxy")[..] else { panic!("one line") };
        assert!(found.starts_with(mode), "{found}");
    }

    // Bulkhead beside it drops nothing, and is of the same opinion about everybody.
    guarded.apply(OBSERVE);
    rolled_out(&guarded);
    as_policy_says(&guarded);
    for (name, _, allowed) in CALLERS {
        let mut explain = guarded.cluster.node(1).command(bulkhead().unwrap());
        explain.args(["explain", "--from", &format!("shop/{name}"), "--to", "shop/db", "--port", "8080"]);
        eventually(&format!("{name} would pass: {allowed}"), || {
            explain.output().unwrap().status.code() == Some(i32::from(!allowed))
        });
    }
    let leaving = ["workload=\"guest\"", "direction=\"egress\""];
    let arriving = ["workload=\"db\"", "direction=\"ingress\""];
    eventually("what guest sends would be blocked", || observed(&guarded, 0, &leaving) > 0.0);

    // What the other one lets pass and Bulkhead would block is seen. Its rules stay when it ends.
    other.end(&guarded);
    guarded.becomes("web", &port, !other.shuts());
    assert!(!guarded.connects("near", &port));
    other.clear(&guarded);
    for name in names {
        guarded.becomes(name, &port, true);
    }
    eventually("what reaches db would be blocked", || observed(&guarded, 1, &arriving) > 0.0);
    assert_eq!(observed(&guarded, 0, &["workload=\"web\""]), 0.0, "web does nothing that is forbidden");
    other.start(&guarded);
    as_policy_says(&guarded);

    // The switch.
    let before = names.map(|name| calls(&guarded, name).len());
    guarded.apply(ENFORCE);
    rolled_out(&guarded);
    other.leave(&guarded);
    for (name, alone) in names.map(|name| (name, calls(&guarded, name).len())) {
        eventually(&format!("{name} calls on"), || calls(&guarded, name).len() > alone + 8);
    }
    for ((name, _, allowed), before) in CALLERS.into_iter().zip(before) {
        let said = &calls(&guarded, name)[before..];
        let same = if allowed { "answered" } else { "silent" };
        assert!(said.iter().all(|call| call == same), "{name}: {said:?}");
    }
    for node in guarded.cluster.nodes() {
        let [[found, _]] = &checked(node, "policies")[..] else { panic!("one line") };
        assert!(found.starts_with("no other program"), "{found}");
    }

    // Nobody else is asked any more.
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "db"]);
    guarded.becomes("near", &port, true);
    guarded.becomes("guest", &port, false);
}

#[test]
fn kube_network_policies_hands_over() {
    hand_over(&mut KubeNetworkPolicies::new(), ProxyMode::Nftables, "nftables (table kube-proxy)");
}

#[test]
fn kube_router_hands_over() {
    if !skip::require("ipset (`tests/setup/setup.sh --test` installs it)", other::has_ipset()) {
        return;
    }
    hand_over(&mut KubeRouter::default(), ProxyMode::Iptables, "iptables (chains KUBE-SVC-");
}
