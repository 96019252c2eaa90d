//! Nothing that happens to the API server, the agent or flannel changes a verdict.

use std::fs;

use bulkhead_cluster::Cluster;

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, Way, eventually, pod};

use crate::{
    hand::Hand,
    mesh::{Mesh, Probes, member},
};

/// Calls `db` again and again, and prints of each call whether it was answered.
pub(crate) fn caller(name: &str, node: &str, db: &str) -> String {
    let script = format!(
        "while true; do /agnhost connect {db}:8080 --timeout=1s && echo answered || echo silent; sleep 0.2; done"
    );
    pod(name, node, &format!("command: [sh, -c, '{script}']"))
}

/// What a caller's calls came to.
pub(crate) fn calls(guarded: &Guarded, pod: &str) -> Vec<String> {
    let log = guarded.kubectl(&["--namespace=shop", "logs", pod]);
    lines(log.lines())
}

/// Of what a caller prints, what says how a call went.
pub(crate) fn lines<'a>(said: impl Iterator<Item = &'a str>) -> Vec<String> {
    said.filter(|line| matches!(*line, "answered" | "silent")).map(str::to_owned).collect()
}

/// Whether an agent that started found out by itself who a pod with a guard is.
pub(crate) fn found_again(log: &str, pod: &str) -> bool {
    log.lines().any(|line| line.contains("adopted: its guard stood, and stays") && line.contains(pod))
}

#[test]
fn verdicts_outlive_api_server_agent_and_flannel() {
    let Some(mut guarded) = Guarded::start_as(Cluster::builder(), Way::ALONE) else { return };
    let members = [member("db", "n2"), member("web", "n1"), member("guest", "n1"), member("near", "n2")];
    guarded.apply(&[NAMESPACE, &members.concat(), POLICY].concat());
    let mesh = Mesh::begin(&guarded);
    let db = guarded.address("db");
    let uid = guarded.kubectl(&["--namespace=shop", "get", "pod", "guest", "--output=jsonpath={.metadata.uid}"]);
    let probes = Probes::begin(&guarded);

    guarded.cluster.stop_api_server().unwrap();
    eventually("the agents say that they may be behind", || {
        (0..2).all(|node| guarded.metric(node, "bulkhead_source_behind", &[]) == 1.0)
    });
    let links = guarded.links(0);
    guarded.kill_agent_without_source(0);
    // It has run, and policy may have changed since: an agent that was there all the time would let it start again.
    let mut hand = Hand::new(guarded.cluster.node(0), "hand", "guest", &uid).patient(2);
    let refused = hand.add().unwrap_err();
    let said = refused["msg"].as_str().unwrap();
    // Which of both depends on whether the agent has come so far.
    let waited = ["the policy of this container was not in force in time", "no Bulkhead agent answers at "];
    assert!(waited.iter().any(|waited| said.contains(waited)), "{refused}");
    hand.del();
    assert_eq!(guarded.links(0), links, "of who was refused");
    guarded.cluster.start_api_server().unwrap();
    guarded.wait_for_agents();
    eventually("the agents follow again", || {
        (0..2).all(|node| guarded.metric(node, "bulkhead_source_behind", &[]) == 0.0)
    });
    mesh.goes_on("after the API server came back");

    // The next one does not know whom the runtime told of, either.
    fs::remove_file(guarded.cluster.node(1).file("/run/bulkhead/attachments.json")).unwrap();
    guarded.kill_agent(1);
    let log = guarded.log(1);
    assert!(["shop/db", "shop/near"].iter().all(|pod| found_again(&log, pod)), "{log}");
    assert_eq!(guarded.metric(1, "bulkhead_links_unknown", &[]), 0.0, "{log}");
    mesh.goes_on("after an agent was killed");
    probes.end(&guarded);

    // flannel writes its conflist anew while pods start.
    for number in 0..3 {
        guarded.apply(&caller(&format!("hasty-{number}"), "n1", &db));
        guarded.cluster.node_mut(0).restart_flannel().unwrap();
    }
    guarded.wait_for(&["hasty-0", "hasty-1", "hasty-2"]);
    mesh.goes_on("after flannel was restarted");
    eventually("those that came have called", || {
        ["hasty-0", "hasty-1", "hasty-2"].iter().all(|pod| calls(&guarded, pod).len() > 2)
    });

    mesh.assert_unchanged();
    for pod in ["hasty-0", "hasty-1", "hasty-2"] {
        let calls = calls(&guarded, pod);
        assert!(calls.iter().all(|call| call == "silent"), "{pod}: {calls:?}\n{}", guarded.log(0));
    }
    for node in 0..2 {
        assert_eq!(guarded.metric(node, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(node));
    }

    // What changed while nobody could tell is seen.
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "db", "guests"]);
    guarded.becomes("guest", &format!("{db}:8080"), true);
}
