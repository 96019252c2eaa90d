//! Policies of the cluster's administrators, from a real API server that comes to serve them.

use bulkhead_cluster::Cluster;
use bulkhead_tests::guarded::{Guarded, NAMESPACE, eventually, server};
use serde_json::{Value, json};

/// Kinds of `policy.networking.k8s.io`, by plural, with the version that is read of each.
const KINDS: [(&str, &str, &str); 3] = [
    ("adminnetworkpolicies", "AdminNetworkPolicy", "v1alpha1"),
    ("baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy", "v1alpha1"),
    ("clusternetworkpolicies", "ClusterNetworkPolicy", "v1alpha2"),
];

/// A definition that takes whatever is written: what is to be shown is what is read.
fn definition((plural, kind, version): (&str, &str, &str)) -> Value {
    let schema = json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.policy.networking.k8s.io"),
            "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
        },
        "spec": {
            "group": "policy.networking.k8s.io",
            "scope": "Cluster",
            "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind },
            "versions": [{ "name": version, "served": true, "storage": true, "schema": schema }],
        },
    })
}

fn policy((_, kind, version): (&str, &str, &str), name: &str, mut spec: Value) -> String {
    let named =
        |labels: Value| json!({ "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": labels } } });
    spec["subject"] = named(json!({ "app": "db" }));
    for rule in spec["ingress"].as_array_mut().unwrap() {
        rule["from"] = json!([named(json!({ "app": "web" }))]);
    }
    let api = format!("policy.networking.k8s.io/{version}");
    json!({ "apiVersion": api, "kind": kind, "metadata": { "name": name }, "spec": spec }).to_string()
}

/// Of each kind one denies what nothing else does, and lets go of it when it is gone. One that cannot be read is said to be so, and does not
/// keep the others from their walls.
#[test]
fn policies_of_administrators_hold() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &server("db", "n2"), &server("web", "n1")].concat());
    guarded.wait_for(&["db", "web"]);
    let db = format!("{}:8080", guarded.address("db"));
    guarded.becomes("web", &db, true);
    // What is not served yet is looked for every half a minute.
    KINDS.iter().for_each(|kind| guarded.apply(&definition(*kind).to_string()));
    for (plural, ..) in KINDS {
        let name = format!("crd/{plural}.policy.networking.k8s.io");
        guarded.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name]);
    }
    let deny = json!([{ "name": "no", "action": "Deny" }]);
    let [admin, baseline, cluster] = KINDS;
    for (kind, name, spec) in [
        (admin, "top", json!({ "priority": 5, "ingress": deny })),
        (baseline, "default", json!({ "ingress": deny })),
        (cluster, "edge", json!({ "tier": "Admin", "priority": 5, "ingress": deny })),
        (cluster, "base", json!({ "tier": "Baseline", "priority": 5, "ingress": deny })),
    ] {
        guarded.apply(&policy(kind, name, spec));
        guarded.becomes("web", &db, false);
        guarded.kubectl(&["delete", kind.0, name]);
        guarded.becomes("web", &db, true);
    }

    guarded.apply(&policy(admin, "wrong", json!({ "priority": 7, "ingress": [{ "name": "x", "action": "Refuse" }] })));
    let words = ["get", "events.events.k8s.io", "--all-namespaces", "--output=json"];
    eventually("it is said that it cannot be read", || {
        let events: Value = serde_json::from_str(&guarded.kubectl(&words)).unwrap();
        let about = |event: &Value| event["regarding"]["kind"] == admin.1 && event["regarding"]["name"] == "wrong";
        events["items"].as_array().unwrap().iter().any(|event| about(event) && event["reason"] == "Refused")
    });
    guarded.apply(&policy(admin, "top", json!({ "priority": 5, "ingress": deny })));
    guarded.becomes("web", &db, false);
}
