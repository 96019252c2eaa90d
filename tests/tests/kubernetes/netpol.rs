//! Kubernetes' own end-to-end tests of NetworkPolicy.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path, thread};

use bulkhead_cluster::{Cluster, ProxyMode};
use bulkhead_fixtures::skip;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use bulkhead_tests::guarded::Guarded;

/// Specs outside of [`SCTP`], and those.
const SPECS: [usize; 2] = [47, 3];
/// Feature of those that need a kernel with SCTP.
const SCTP: &str = "SCTPConnectivity";
/// Some that are quick and say much, for each mode of kube-proxy.
const QUICK: [(ProxyMode, [&str; 3]); 2] = [
    (
        ProxyMode::Iptables,
        [
            "should support a 'default-deny-all' policy",
            "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
            "should enforce except clause while egress access to server in CIDR block",
        ],
    ),
    (
        ProxyMode::Nftables,
        [
            "should allow ingress access from namespace on one named port",
            "should deny ingress access to updated pod",
            "should properly isolate pods that are selected by a policy allowing SCTP",
        ],
    ),
];

/// Runs specs whose names match, those of each expression beside the others', says how long each took, and counts those that passed.
fn run(guarded: &Guarded, what: &str, focuses: &[String]) -> usize {
    let results = thread::scope(|scope| {
        let runs: Vec<_> = (0..)
            .zip(focuses)
            .map(|(number, focus)| scope.spawn(move || one_run(guarded, &format!("e2e-{number}.json"), focus)))
            .collect();
        runs.into_iter().fold(Results::default(), |mut all, run| {
            let Results { passed, failed, skipped } = run.join().unwrap();
            all.passed.extend(passed);
            all.failed.extend(failed);
            all.skipped.extend(skipped);
            all
        })
    });
    let Results { passed, failed, skipped } = results;
    let mut lines: String = passed.iter().map(|(name, seconds)| format!("{seconds:7.1} s  {name}\n")).collect();
    if !has_sctp() {
        lines.extend(skipped.iter().map(|name| format!("  skipped  {name}: this kernel has no SCTP\n")));
    }
    // Not `eprint`, whose output the test runner keeps to itself when a test passes.
    let _ = std::io::stderr().write_all(format!("NetworkPolicy suite, {what}:\n{lines}").as_bytes());
    assert!(failed.is_empty(), "{failed:#?}");
    passed.len()
}

fn one_run(guarded: &Guarded, report: &str, focus: &str) -> Results {
    let report = guarded.cluster.directory().join(report);
    let mut suite = guarded.cluster.control_plane().command(guarded.cluster.program("e2e.test"));
    suite.arg(format!("--kubeconfig={}", guarded.cluster.kubeconfig().display()));
    suite.args(["--provider=skeleton", "--ginkgo.no-color", "--ginkgo.timeout=3h"]);
    if !has_sctp() {
        suite.arg(format!("--ginkgo.skip={SCTP}"));
    }
    suite.arg(format!("--ginkgo.focus={focus}")).arg(format!("--ginkgo.json-report={}", report.display()));
    let output = suite.current_dir(guarded.cluster.directory()).output().unwrap();
    let results = results(&report);
    assert!(output.status.success() || !results.failed.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    results
}

/// Whether the kernel has SCTP, which it may load for whoever asks.
fn has_sctp() -> bool {
    const PROTOCOL: i32 = 132;
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(PROTOCOL))).is_ok()
}

/// What became of specs.
#[derive(Default)]
struct Results {
    /// Names and seconds.
    passed: Vec<(String, f64)>,
    /// Names and reasons.
    failed: Vec<String>,
    /// Names of those that need SCTP.
    skipped: BTreeSet<String>,
}

fn results(report: &Path) -> Results {
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let mut results = Results::default();
    for spec in report[0]["SpecReports"].as_array().unwrap() {
        let name = spec["LeafNodeText"].as_str().unwrap().to_owned();
        let path = spec["ContainerHierarchyTexts"].to_string();
        match (spec["State"].as_str().unwrap(), spec["LeafNodeType"].as_str().unwrap()) {
            ("skipped", "It") if path.contains("Netpol") && path.contains(SCTP) => _ = results.skipped.insert(name),
            ("skipped" | "pending", _) => {}
            ("passed", "It") => results.passed.push((name, spec["RunTime"].as_f64().unwrap() / 1e9)),
            ("passed", _) => {}
            (state, _) => results.failed.push(format!("{name}: {state}: {}", spec["Failure"]["Message"])),
        }
    }
    results
}

/// The same of some quick ones.
pub(crate) fn quick(guarded: &Guarded, what: &str) -> usize {
    run(guarded, what, &focus(&QUICK[0].1))
}

fn focus(quick: &[&str]) -> Vec<String> {
    quick.iter().map(|name| format!("Netpol.*{name}")).collect()
}

#[test]
fn kubernetes_own_policy_suite_passes() {
    let long = skip::long();
    for (proxy, quick) in QUICK {
        let Some(guarded) = Guarded::start(Cluster::builder().proxy(proxy)) else { return };
        let what = format!("kube-proxy in mode {proxy:?}");
        if long {
            let specs = SPECS[0] + if has_sctp() { SPECS[1] } else { 0 };
            assert_eq!(run(&guarded, &what, &["Netpol".to_owned()]), specs);
        } else {
            assert_eq!(run(&guarded, &what, &focus(&quick)), quick.len());
        }
    }
}
