//! Bulkhead as users bring it into a cluster: the manifests, as they are, and an image.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use bulkhead_cluster::{Cluster, Node};
use bulkhead_dataplane::rights::NEEDED;
use bulkhead_tests::{
    bulkhead,
    guarded::{Guarded, NAMESPACE, OBSERVE, POLICY, Way, eventually, server},
};

use crate::{
    lasting::{self, caller, calls},
    mesh::{Mesh, Probes, member},
    monitor,
};

pub(crate) const ENFORCE: &str = include_str!("../../../controller/deploy/kubernetes/enforce.yaml");
/// Those that start while agents are replaced.
const HASTY: [&str; 3] = ["hasty-0", "hasty-1", "hasty-2"];
const UNINSTALL: &str = include_str!("../../../controller/deploy/kubernetes/uninstall.yaml");
const PINS: &str = "/sys/fs/bpf/bulkhead";

/// Makes the image that the manifests name, and brings it onto all nodes.
pub(crate) fn import_image(guarded: &Guarded) {
    let archive = guarded.cluster.directory().join("bulkhead.tar");
    let program = bulkhead().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/agent-image.sh");
    let reference = format!("bulkhead:{}", env!("CARGO_PKG_VERSION"));
    let mut make = Command::new(script);
    make.arg(program.parent().unwrap()).arg(&archive).arg(reference);
    let output = make.output().unwrap();
    assert!(output.status.success(), "{make:?}: {}", String::from_utf8_lossy(&output.stderr));
    guarded.cluster.import(&archive).unwrap();
}

/// Waits until the DaemonSet is as it was applied, and ready on all nodes.
#[track_caller]
pub(crate) fn rolled_out(guarded: &Guarded) {
    let words = ["--namespace=bulkhead-system", "rollout", "status", "daemonset/bulkhead", "--timeout=120s"];
    if let Err(error) = guarded.cluster.kubectl(&words) {
        let selector = "--selector=app.kubernetes.io/name=bulkhead";
        let told = [
            &["--namespace=bulkhead-system", "describe", "pods", selector] as &[_],
            &["--namespace=bulkhead-system", "logs", "--all-containers", "--prefix", "--tail=30", selector],
        ]
        .map(|words| guarded.cluster.kubectl(words).unwrap_or_else(|error| error.to_string()));
        panic!("{error}\n{}", told.join("\n"));
    }
}

/// Keys of a node's taints.
fn taints(guarded: &Guarded, node: &str) -> String {
    guarded.kubectl(&["get", "node", node, "--output=jsonpath={.spec.taints[*].key}"])
}

/// The runtime's networks on a node.
fn networks(node: &Node) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(node.conflists()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

#[test]
fn the_daemon_set_has_the_agents_rights_and_no_privileges() {
    let names = NEEDED.map(|right| right.name.trim_start_matches("CAP_"));
    let added = format!("add: [{}]", names.join(", "));
    let image = format!("image: bulkhead:{}", env!("CARGO_PKG_VERSION"));
    for manifest in [OBSERVE, ENFORCE, UNINSTALL] {
        assert!(manifest.contains(&image), "the chart has this version");
        let additions: Vec<_> = manifest.lines().map(str::trim).filter(|line| line.starts_with("add:")).collect();
        assert_eq!(additions, [added.as_str()]);
        assert!(!manifest.contains("privileged: true") && !manifest.contains("hostPID"));
        // What the agent may ask of the API server is not for the containers beside it.
        let accounts = manifest.matches("mountPath: /var/run/secrets/kubernetes.io/serviceaccount").count();
        assert_eq!(accounts, usize::from(manifest != UNINSTALL));
        assert!(manifest.contains("automountServiceAccountToken: false"));
    }
}

/// Takes away all that the agent of a node has written there, but what the kernel has.
fn empty(node: &Node) {
    for directory in ["/run/bulkhead", "/var/lib/bulkhead"] {
        for entry in fs::read_dir(node.file(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    }
}

/// The agents that began without any of it know all the same who has a guard.
fn found_again(guarded: &Guarded) {
    let words =
        ["--namespace=bulkhead-system", "logs", "--container=agent", "--selector=app.kubernetes.io/name=bulkhead"];
    let log = guarded.kubectl(&[&words as &[_], &["--tail=-1"]].concat());
    for pod in ["db", "old", "web", "guest", "near"] {
        assert!(lasting::found_again(&log, &format!("shop/{pod}")), "{pod}: {log}");
    }
    for node in 0..2 {
        assert_eq!(guarded.metric(node, "bulkhead_links_unknown", &[]), 0.0, "{log}");
        assert_eq!(guarded.metric(node, "bulkhead_endpoints_unguarded", &[]), 0.0, "{log}");
    }
}

/// Observe, enforce, begin anew with nothing left of what agents knew, replace all agents twice, the second time by the chart with what it makes for
/// Prometheus' operator, uninstall.
#[test]
fn the_manifests_guard_a_cluster_and_give_it_back() {
    let Some(guarded) = Guarded::bare(Cluster::builder(), Way::ALONE) else { return };
    import_image(&guarded);
    let before: Vec<_> = guarded.cluster.nodes().iter().map(networks).collect();
    guarded.apply(&[NAMESPACE, &member("db", "n2"), &server("old", "n1"), POLICY].concat());
    guarded.wait_for(&["db", "old"]);
    let db = guarded.address("db");
    let port = format!("{db}:8080");

    // Nothing is dropped yet.
    guarded.apply(OBSERVE);
    rolled_out(&guarded);
    assert!(guarded.connects("old", &port));
    eventually("what would be blocked is counted", || {
        assert!(guarded.connects("old", &port));
        let observed = ["workload=\"old\"", "direction=\"egress\"", "verdict=\"observed\""];
        guarded.metric(0, "bulkhead_audit_packets_total", &observed) > 0.0
    });

    guarded.apply(ENFORCE);
    rolled_out(&guarded);
    guarded.becomes("old", &port, false);
    guarded.apply(&[member("web", "n1"), member("guest", "n1"), member("near", "n2")].concat());
    let mesh = Mesh::begin(&guarded);
    let probes = Probes::begin(&guarded);

    for (number, hasty) in HASTY.iter().enumerate() {
        match number {
            0 => {
                // What is in force stays so without agents.
                guarded.kubectl(&[
                    "--namespace=bulkhead-system",
                    "delete",
                    "daemonset/bulkhead",
                    "--cascade=foreground",
                ]);
                guarded.cluster.nodes().iter().for_each(empty);
                guarded.apply(ENFORCE);
            }
            1 => _ = guarded.kubectl(&["--namespace=bulkhead-system", "rollout", "restart", "daemonset/bulkhead"]),
            _ => {
                for taint in [monitor::TAINT, "example.com/other"] {
                    guarded.kubectl(&["taint", "node", "n2", &format!("{taint}=:NoSchedule")]);
                }
                monitor::apply(&guarded);
            }
        }
        guarded.apply(&caller(hasty, "n1", &db));
        rolled_out(&guarded);
        if number == 0 {
            found_again(&guarded);
        }
    }
    guarded.wait_for(&HASTY);
    eventually("those that came have called", || HASTY.iter().all(|pod| calls(&guarded, pod).len() > 2));
    monitor::answers(&guarded, "web");
    eventually("the taint of a node that joins is gone, others are not", || {
        taints(&guarded, "n2") == "example.com/other"
    });
    mesh.goes_on("after all agents were replaced");
    probes.end(&guarded);
    mesh.assert_unchanged();
    for pod in HASTY {
        let calls = calls(&guarded, pod);
        assert!(calls.iter().all(|call| call == "silent"), "{pod}: {calls:?}");
    }
    for node in 0..2 {
        assert_eq!(guarded.metric(node, "bulkhead_unenforced_starts_total", &[]), 0.0);
    }

    let status =
        ["--namespace=bulkhead-system", "exec", "daemonset/bulkhead", "--container=agent", "--", "bulkhead", "status"];
    let status = guarded.cluster.kubectl(&status).expect("all is well, by the exit status");
    assert!(status.contains("enforc"), "{status}");

    assert!(guarded.cluster.nodes().iter().all(|node| node.file(PINS).exists()));
    guarded.apply(UNINSTALL);
    rolled_out(&guarded);
    for (node, before) in guarded.cluster.nodes().iter().zip(&before) {
        assert_eq!(&networks(node), before, "{}", node.name);
        assert!(!node.file(PINS).exists(), "{}: pins are left", node.name);
        let rules = node.command("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&rules.stdout).contains("bulkhead"), "{}: rules are left", node.name);
    }
    guarded.becomes("guest", &port, true);
    guarded
        .cluster
        .kubectl(&["--namespace=bulkhead-system", "delete", "daemonset,serviceaccount", "bulkhead"])
        .unwrap();
    guarded.apply(&server("new", "n1"));
    guarded.wait_for(&["new"]);
    assert!(guarded.connects("new", &port), "who starts now is nobody's");
    a_node_without_bpffs_gets_one(&guarded, &port);
}

/// Whether a node has a file system for pins.
fn has_bpffs(node: &Node) -> bool {
    let mounts = node.command("cat").arg("/proc/mounts").output().unwrap();
    String::from_utf8(mounts.stdout).unwrap().lines().any(|line| line.contains(" /sys/fs/bpf bpf "))
}

/// The chart mounts it where nobody has, on one node of two. It stays when its pods go, and with it all that is in force.
fn a_node_without_bpffs_gets_one(guarded: &Guarded, port: &str) {
    let [there, missing] = guarded.cluster.nodes() else { panic!("two nodes") };
    assert!(missing.command("umount").arg("/sys/fs/bpf").status().unwrap().success());
    assert!(has_bpffs(there) && !has_bpffs(missing));
    guarded.apply(&monitor::rendered(guarded, "observe=false,crds=false,bpffs.mount=true"));
    rolled_out(guarded);
    // Each node stops one of its own.
    for from in ["guest", "near"] {
        guarded.becomes(from, port, false);
    }
    assert!(guarded.connects("web", port));
    guarded.kubectl(&["--namespace=bulkhead-system", "delete", "daemonset/bulkhead", "--cascade=foreground"]);
    for (number, node) in [there, missing].into_iter().enumerate() {
        assert!(has_bpffs(node) && node.file(PINS).exists(), "{}", node.name);
        assert_eq!(guarded.metrics(number), None, "no agent is left on {}", node.name);
    }
    assert!(["guest", "near"].iter().all(|from| !guarded.connects(from, port)) && guarded.connects("web", port));
}
