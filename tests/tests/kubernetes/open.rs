//! Connections that are open while policies come and go.

use std::{thread, time::Duration};

use bulkhead_cluster::Cluster;

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, eventually, pod, server};

/// How long nothing may arrive until the connection counts as cut: many times what lies between two lines.
const SILENCE: Duration = Duration::from_secs(2);

/// Takes one connection, and prints what arrives. Its input stays open, so that it does not end the connection by itself.
fn listener() -> String {
    pod("db", "n2", "command: [sh, -c, 'sleep 1000 | nc -l -p 8080']")
}

/// Calls once, and sends a line again and again.
fn sender(name: &str, db: &str) -> String {
    let script = format!("while true; do echo line; sleep 0.1; done | nc {db} 8080; sleep 1000");
    pod(name, "n1", &format!("command: [sh, -c, '{script}']"))
}

fn arrived(guarded: &Guarded) -> usize {
    guarded.kubectl(&["--namespace=shop", "logs", "db"]).lines().filter(|line| *line == "line").count()
}

#[test]
fn a_new_deny_cuts_what_is_open_and_no_other_policy_does() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    guarded.apply(&[NAMESPACE, &listener(), &server("guest", "n1")].concat());
    guarded.wait_for(&["db", "guest"]);
    guarded.apply(&sender("web", &guarded.address("db")));
    let goes_on = |what: &str| {
        let before = arrived(&guarded);
        eventually(what, || arrived(&guarded) > before + 10);
    };
    goes_on("what is sent arrives");

    // It isolates `db`, allows this, and is about others too.
    guarded.apply(POLICY);
    guarded.becomes("guest", "10.96.0.10:53", false);
    goes_on("a policy that allows it");
    let other = POLICY.replace("name: guests", "name: others").replace("values: [web, db]", "values: [web, db, guest]");
    guarded.apply(&other);
    goes_on("a policy about others");
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "others"]);
    goes_on("one that goes");

    guarded.apply(&POLICY.replace("app: web", "app: nobody"));
    eventually("it is cut", || {
        let before = arrived(&guarded);
        thread::sleep(SILENCE);
        arrived(&guarded) == before
    });
    let labels = ["workload=\"db\"", "direction=\"ingress\"", "verdict=\"blocked\""];
    eventually("what still comes is counted", || guarded.metric(1, "bulkhead_packets_total", &labels) > 0.0);
}
