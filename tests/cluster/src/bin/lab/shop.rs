//! The shop of policy-examples/, as pods on both nodes.

use std::{fs, path::Path, thread, time::Duration, time::Instant};

use anyhow::{Result, ensure};
use bulkhead_cluster::Cluster;

/// Pods and Services.
const PODS: &str = include_str!("shop.yaml");
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts it.
pub(crate) fn open(cluster: &Cluster, tree: &Path) -> Result<()> {
    cluster.apply(PODS)?;
    for namespace in ["--namespace=shop", "--namespace=ops"] {
        cluster.kubectl(&[namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=120s"])?;
    }
    cluster.apply(&fs::read_to_string(tree.join("policy-examples/kubernetes/shop.yaml"))?)?;
    Ok(())
}

/// Calls what may be called and what may not.
pub(crate) fn check(cluster: &Cluster) -> Result<()> {
    for (namespace, from, to, passes) in [
        ("shop", "web", "cart:8080", true),
        ("shop", "web", "db:5432", false),
        ("ops", "backup", "db.shop:5432", true),
        ("ops", "backup", "cart.shop:8080", false),
    ] {
        let start = Instant::now();
        while calls(cluster, namespace, from, to) != passes {
            ensure!(start.elapsed() < PATIENCE, "{from} -> {to} should pass: {passes}; it does not hold");
            thread::sleep(Duration::from_millis(200));
        }
        println!("  {from} -> {to}: {}", if passes { "passes" } else { "blocked" });
    }
    Ok(())
}

fn calls(cluster: &Cluster, namespace: &str, from: &str, to: &str) -> bool {
    let words = ["--namespace", namespace, "exec", from, "--", "/agnhost", "connect", to, "--timeout=1s"];
    cluster.kubectl(&words).is_ok()
}
