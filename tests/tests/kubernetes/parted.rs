//! A node and the API server that do not hear each other.

use std::{
    thread,
    time::{Duration, Instant},
};

use bulkhead_cluster::Cluster;
use bulkhead_fixtures::skip;
use bulkhead_topology::traffic::Capture;

use bulkhead_tests::guarded::{Guarded, NAMESPACE, POLICY, eventually, server};

use crate::{
    hand::Hand,
    lasting::{caller, lines},
    said::Said,
    shop::{hasty, is_hasty},
};

/// How soon an agent knows that nothing comes any more where packets vanish, as README.md has it, and what a busy machine may add.
const NOTICES: Duration = Duration::from_secs(30);
const SLACK: Duration = Duration::from_secs(15);
/// How long an agent waits to hear of a pod that is about to start.
const BOUND: Duration = Duration::from_secs(30);

/// What the calls of a pod of the shop came to, without asking its kubelet, which the API server may not reach.
fn calls(guarded: &Guarded, pod: &str) -> Vec<String> {
    lines(Said::by(guarded, pod).lines().iter().map(String::as_str))
}

/// Kills what holds the namespaces of a pod: kubelet makes it anew, with another address.
fn kill_sandbox(guarded: &Guarded, node: usize, pod: &str) {
    let node = guarded.cluster.node(node);
    let ctr = |words: &[&str]| {
        let output = node.command("ctr").arg("--namespace=k8s.io").args(words).output().unwrap();
        assert!(output.status.success(), "ctr {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let which = format!("labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.cri-containerd.kind\"==sandbox");
    let sandbox = ctr(&["containers", "list", "--quiet", &which]);
    ctr(&["tasks", "kill", "--signal=SIGKILL", sandbox.trim()]);
}

/// What was in force stays, also for a pod that starts again; what came meanwhile holds when they hear each other again, for a new pod from its first packet.
#[test]
fn a_parted_node_keeps_its_verdicts() {
    let Some(guarded) = Guarded::start(Cluster::builder()) else { return };
    let is =
        |of: &str, text: String, name: &str| text.replace(&format!("app: {name}"), &format!("app: {of}, also: {name}"));
    let also = |text, name| is("web", text, name);
    let far = is("db", server("far", "n1"), "far");
    guarded.apply(&[NAMESPACE, &server("db", "n2"), &server("open", "n2"), &far, POLICY].concat());
    guarded.wait_for(&["db", "open", "far"]);
    let (db, open, far) = (guarded.address("db"), guarded.address("open"), guarded.address("far"));
    // Only the node of those that call decides whether `open` is called.
    let again = caller("again", "n1", &open).replace("while true", &format!("{}; while true", hasty(&open)));
    let again = again.replace("restartPolicy: Never", "restartPolicy: Always");
    let callers =
        [caller("web", "n1", &db), also(caller("late", "n1", &db), "late"), caller("guest", "n1", &open), again];
    let witness = Capture::count(&guarded.cluster.node(0).netns, "eth0", is_hasty).unwrap();
    guarded.apply(&callers.concat());
    let answered = |pod: &str| calls(&guarded, pod).last().is_some_and(|call| call == "answered");
    eventually("who may is answered", || answered("web") && answered("late"));
    let count = |pod: &str| calls(&guarded, pod).len();
    eventually("all have called", || count("guest") > 2 && count("again") > 2);
    // Who calls a pod of the parted node: from the other one, and from there. What that pod's policy allows is `web` alone.
    let to_far = [(1, "visitor", true), (0, "near", true), (1, "stranger", false), (0, "neighbour", false)];
    for (node, name, may) in to_far {
        let text = caller(name, ["n1", "n2"][node], &far);
        guarded.apply(&if may { also(text, name) } else { text });
    }
    let unchanged = |what: &str| {
        let before = to_far.map(|(_, name, _)| calls(&guarded, name).len());
        for ((_, name, may), before) in to_far.into_iter().zip(before) {
            let called = || calls(&guarded, name);
            eventually(&format!("{name} calls: {what}"), || called().len() > before + 3);
            // A caller may be known later than it calls.
            let calls: Vec<_> = called().into_iter().skip_while(|call| may && call != "answered").collect();
            let said = if may { "answered" } else { "silent" };
            assert!(calls.len() > 3 && calls.iter().all(|call| call == said), "{name}, {what}: {calls:?}");
        }
    };
    for (_, name, _) in to_far {
        eventually("all call", || calls(&guarded, name).len() > 3);
    }
    unchanged("before");
    let before = ["web", "late"].map(count);
    let links = guarded.links(0);

    guarded.cluster.part(0).unwrap();
    let start = Instant::now();
    let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: late, namespace: shop }\nspec:\n  \
        podSelector: { matchLabels: { also: late } }\n  policyTypes: [Egress]\n---\n";
    guarded.apply(deny);
    guarded.kubectl(&["--namespace=shop", "delete", "networkpolicy", "guests"]);
    // It is under the new policy alone, which the node cannot know.
    let new = caller("new", "n1", &open).replace("while true", &format!("{}; while true", hasty(&open)));
    guarded.apply(&new.replace("app: new", "app: new, also: late"));
    kill_sandbox(&guarded, 0, "again");
    let calls_of_again = count("again");
    eventually("the agent says that it may be behind", || guarded.metric(0, "bulkhead_source_behind", &[]) == 1.0);
    let noticed = start.elapsed();
    println!("it says that it may be behind after {noticed:.1?}");
    assert!(noticed < NOTICES + SLACK, "{noticed:?}");
    assert_eq!(guarded.metric(1, "bulkhead_source_behind", &[]), 0.0, "the other node");
    // A runtime that starts it all the same waits, and hears what to do about it.
    let uid = guarded.kubectl(&["--namespace=shop", "get", "pod", "new", "--output=jsonpath={.metadata.uid}"]);
    let mut hand = Hand::new(guarded.cluster.node(0), "hand", "new", &uid);
    let asked = Instant::now();
    let refused = hand.add().unwrap_err();
    assert!(asked.elapsed() >= BOUND, "{:?}: {refused}", asked.elapsed());
    let said = refused["msg"].as_str().unwrap();
    assert!(said.contains("who container hand is could not be found out: what "), "{refused}");
    assert!(said.contains(" says since is not known"), "{refused}");
    assert!(refused["details"].as_str().unwrap().contains("`bulkhead status` say more"), "{refused}");
    println!("an ADD of a pod that the node cannot know fails after {:.1?}: {said}", asked.elapsed());
    hand.del();
    let long = if skip::long() { 180 } else { 30 };
    thread::sleep(Duration::from_secs(long).saturating_sub(start.elapsed()));
    eventually("the pod that starts again calls", || count("again") > calls_of_again + 2);
    eventually("nothing is left of the one that was refused", || guarded.links(0) == links);
    for (pod, before) in ["web", "late"].into_iter().zip(before) {
        let meanwhile = calls(&guarded, pod).split_off(before);
        assert!(meanwhile.len() > 20 && meanwhile.iter().all(|call| call == "answered"), "{pod}: {meanwhile:?}");
    }
    for pod in ["guest", "again"] {
        let calls = calls(&guarded, pod);
        assert!(calls.iter().all(|call| call == "silent"), "{pod}: {calls:?}");
    }
    unchanged("while they are parted");
    assert_eq!(witness.counts().frames, 0, "of a pod that starts again");
    assert_eq!(count("new"), 0, "nobody has told the node of it");

    // What changed meanwhile comes to hold. Of those that may now, one sends what is counted here only when it starts.
    guarded.cluster.join(0).unwrap();
    let joined = Instant::now();
    eventually("what is forbidden now is silent", || calls(&guarded, "late").ends_with(&vec!["silent".to_owned(); 3]));
    println!("a policy held {:.1?} after they heard each other again", joined.elapsed());
    eventually("what is allowed now is answered", || answered("guest") && answered("again"));
    eventually("the pod that came meanwhile has called", || count("new") > 2);
    assert!(calls(&guarded, "new").iter().all(|call| call == "silent"), "{}", guarded.log(0));
    assert_eq!(witness.counts().frames, 0, "of the pod that came meanwhile");
    eventually("it is guarded", || guarded.links(0) == links + 2);
    eventually("nobody is behind", || guarded.metric(0, "bulkhead_source_behind", &[]) == 0.0);
    println!("not behind any more {:.1?} after", joined.elapsed());
    assert_eq!(guarded.metric(0, "bulkhead_unenforced_starts_total", &[]), 0.0, "{}", guarded.log(0));
    let web = calls(&guarded, "web").split_off(before[0]);
    assert!(web.iter().all(|call| call == "answered"), "{web:?}");
    unchanged("together again");
}
