//! What the chart makes for Prometheus' operator: the API server takes it, and what Prometheus would find by it answers.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use bulkhead_tests::{
    guarded::{Guarded, eventually},
    http_get_from,
};
use serde_json::Value;

/// With which a node joins.
pub(crate) const TAINT: &str = "bulkhead.io/starting";
/// What the DaemonSet runs in, as the plain manifests have it.
const NAMESPACE: &str = "bulkhead-system";

/// The chart with some values.
pub(crate) fn rendered(guarded: &Guarded, values: &str) -> String {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/deploy/kubernetes/chart");
    let mut helm = Command::new(guarded.cluster.helm());
    helm.args(["template", "bulkhead"]).arg(chart).args(["--namespace", NAMESPACE, "--kube-version", "1.34"]);
    helm.args(["--set", values]);
    let output = helm.stderr(Stdio::inherit()).output().unwrap_or_else(|error| panic!("{helm:?}: {error}"));
    assert!(output.status.success(), "{helm:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Applies the chart with its monitor, for nodes that join with a taint and forward directly, as strictly as the API server can be: what the definition does
/// not know is an error.
pub(crate) fn apply(guarded: &Guarded) {
    let definition = guarded.cluster.program("operator/servicemonitors.yaml");
    let name = "customresourcedefinition/servicemonitors.monitoring.coreos.com";
    // As the operator's own instructions have it.
    guarded.kubectl(&["apply", "--server-side", "--filename", definition.to_str().unwrap()]);
    guarded.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", name]);

    let values = "observe=false,direct=true,serviceMonitor.enabled=true,metrics.address=0.0.0.0";
    let text = rendered(guarded, &format!("{values},startupTaint={TAINT}"));
    let file = guarded.cluster.directory().join("monitor.yaml");
    let apply = |text: &str, words: &[&str]| {
        fs::write(&file, text).unwrap();
        let apply = ["apply", "--validate=strict", "--filename", file.to_str().unwrap()];
        guarded.cluster.kubectl(&[&apply, words].concat())
    };
    let misspelt = text.replace("namespaceSelector:", "namespacesSelector:");
    let refused = apply(&misspelt, &["--dry-run=server"]).unwrap_err().to_string();
    assert!(refused.contains("unknown field \"spec.namespacesSelector\""), "{refused}");
    apply(&text, &[]).unwrap();
}

/// What is listed in the DaemonSet's namespace.
fn list(guarded: &Guarded, kind: &str, selector: &str) -> Vec<Value> {
    let words = [&format!("--namespace={NAMESPACE}"), "get", kind, "--output=json", &format!("--selector={selector}")];
    let listed: Value = serde_json::from_str(&guarded.kubectl(&words)).unwrap();
    listed["items"].as_array().unwrap().clone()
}

/// Finds by the monitor what Prometheus would: each node's agent, which a pod reaches, and which answers with metrics.
pub(crate) fn answers(guarded: &Guarded, pod: &str) {
    let monitors = list(guarded, "servicemonitors", "");
    let [monitor] = &monitors[..] else { panic!("{monitors:?}") };
    let spec = &monitor["spec"];
    assert_eq!(spec["namespaceSelector"]["matchNames"], serde_json::json!([NAMESPACE]));
    let labels = spec["selector"]["matchLabels"].as_object().unwrap().iter();
    let labels: Vec<_> = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
    let services = list(guarded, "services", &labels.join(","));
    let [service] = &services[..] else { panic!("{services:?}") };
    let endpoints = spec["endpoints"].as_array().unwrap();
    let [endpoint] = &endpoints[..] else { panic!("{endpoints:?}") };
    // Namespaces and services of metrics are those of workloads.
    assert_eq!(endpoint["honorLabels"], true, "{endpoint}");
    let ports = service["spec"]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{endpoint} of {ports:?}");

    let of = format!("kubernetes.io/service-name={}", service["metadata"]["name"].as_str().unwrap());
    let mut found = Vec::new();
    for slice in list(guarded, "endpointslices", &of) {
        let ports = slice["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == endpoint["port"]).unwrap()["port"].as_u64().unwrap();
        for target in slice["endpoints"].as_array().unwrap().iter().filter(|of| of["conditions"]["ready"] == true) {
            let path = endpoint["path"].as_str().unwrap_or("/metrics");
            let address = format!("{}:{port}", target["addresses"][0].as_str().unwrap());
            assert!(guarded.connects(pod, &address), "{address}");
            eventually(&format!("{address} answers"), || {
                // The agent may be too busy to answer at once.
                let (status, page) = http_get_from(guarded.cluster.control_plane(), &address, path).unwrap();
                let says = |line| page.contains(&format!("\n{line}\n"));
                status == 200 && says("bulkhead_publish_error 0") && says("bulkhead_direct_forwarding 1")
            });
            found.push(target["nodeName"].as_str().unwrap().to_owned());
        }
    }
    found.sort();
    assert_eq!(found, guarded.cluster.nodes().iter().map(|node| node.name.clone()).collect::<Vec<_>>());
}
