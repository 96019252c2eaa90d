//! A cluster as a source, against an API server in memory that fails as real ones do.

mod server;
mod status;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use bulkhead_controller::{
    cluster::Cluster,
    input::{Files, Listing},
    source::Source as _,
    workloads::Workloads,
};
use bulkhead_dataplane::cni::protocol::{Attached, Key};
use serde_json::{Value, json};

use self::server::{NAMESPACES, PODS, POLICIES, Server};

/// The bound is for a machine that hangs, not for one that is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for what must not happen to be likely seen.
const A_WHILE: Duration = Duration::from_millis(700);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn follow(server: &Server) -> Cluster {
    let cluster = Cluster::follow(Some(&server.kubeconfig())).unwrap();
    assert!(cluster.wait(PATIENCE), "{}", cluster.missing());
    cluster
}

fn workloads(files: &Files) -> Arc<Workloads> {
    match &files.workloads.1 {
        Ok(Listing::Live(workloads)) => Arc::clone(workloads),
        other => panic!("{other:?}"),
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    workloads(&cluster.read()).workloads.keys().map(ToString::to_string).collect()
}

fn policies(cluster: &Cluster) -> Vec<String> {
    cluster.read().policies.unwrap().into_keys().collect()
}

/// An Intent of the namespace `shop`.
fn intent(name: &str, generation: u64) -> Value {
    let metadata = json!({ "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": generation });
    json!({ "metadata": metadata, "spec": { "services": { "db": {} } } })
}

fn pod(name: &str, uid: &str, address: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": uid, "labels": { "app": name }, "managedFields": [{ "manager": "kubelet" }] },
        "spec": { "nodeName": "n1", "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
    })
}

fn policy(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "shop", "uid": "x" }, "spec": { "podSelector": {}, "policyTypes": ["Ingress"] } })
}

fn attached(name: &str, uid: &str) -> Attached {
    Attached {
        key: Key { container: "c".to_owned(), ifname: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: Some(uid.to_owned()),
        labels: [].into(),
        interfaces: Vec::new(),
    }
}

#[test]
fn nothing_is_known_before_every_kind_was_listed() {
    let server = Server::start();
    server.put(PODS, pod("web", "u1", "10.244.1.5"));
    server.slow(Some(POLICIES));
    let cluster = Cluster::follow(Some(&server.kubeconfig())).unwrap();
    eventually("it asks", || server.lists(POLICIES) > 0);
    assert!(!cluster.wait(A_WHILE));
    assert!(cluster.missing().contains("NetworkPolicy"), "{}", cluster.missing());
    server.slow(None);
    assert!(cluster.wait(PATIENCE), "{}", cluster.missing());
    assert_eq!((names(&cluster), cluster.missing()), (vec!["shop/web".to_owned()], String::new()));
}

#[test]
fn changes_are_heard_and_read() {
    let server = Server::start();
    let cluster = follow(&server);
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heard);
    let _watch = cluster.watch(Box::new(move || _ = counted.fetch_add(1, SeqCst)));
    assert_eq!(names(&cluster), [""; 0]);
    assert!(!cluster.has_news());

    server.put(PODS, pod("web", "u1", "10.244.1.5"));
    eventually("a pod that comes", || cluster.has_news());
    assert_eq!(names(&cluster), ["shop/web"]);
    server.put(POLICIES, policy("deny"));
    eventually("a policy that comes", || policies(&cluster) == ["networkpolicy/shop/deny"]);
    let text = cluster.read().policies.unwrap()["networkpolicy/shop/deny"].clone().unwrap();
    assert_eq!(
        text,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: deny\n  namespace: shop\nspec:\n  podSelector: {}\n  policyTypes:\n  - Ingress\n",
        "as somebody could have written it"
    );
    let before = heard.load(SeqCst);
    assert!(before >= 2);

    let mut same = pod("web", "u1", "10.244.1.5");
    same["status"]["conditions"] = json!([{ "type": "Ready" }]);
    server.put(PODS, same);
    server.delete(POLICIES, "shop", "deny");
    eventually("a policy that goes", || policies(&cluster).is_empty());
    thread::sleep(A_WHILE);
    assert_eq!(heard.load(SeqCst), before + 1, "what is not read of an object wakes nobody");
    server.delete(PODS, "shop", "web");
    eventually("a pod that goes", || names(&cluster).is_empty());
}

/// However it says so: that it has too much to do, and that nobody is there behind what stands before it, too.
#[test]
fn what_is_known_stays_while_the_server_is_away() {
    let errors = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
    let stays = |error| {
        let server = Server::start();
        server.put(PODS, pod("web", "u1", "10.244.1.5"));
        server.put(POLICIES, policy("deny"));
        let cluster = follow(&server);
        assert_eq!(cluster.behind(), "");
        server.down(Some(error));
        eventually("it is said", || !cluster.behind().is_empty());
        assert_eq!((names(&cluster).len(), policies(&cluster).len()), (1, 1));
        server.delete(POLICIES, "shop", "deny");
        server.put(PODS, pod("db", "u2", "10.244.1.6"));
        thread::sleep(A_WHILE);
        assert_eq!((names(&cluster).len(), policies(&cluster).len()), (1, 1));
        server.down(None);
        eventually("it is followed again", || names(&cluster).len() == 2 && policies(&cluster).is_empty());
        eventually("and that is said", || cluster.behind().is_empty());
    };
    thread::scope(|scope| errors.into_iter().for_each(|error| _ = scope.spawn(move || stays(error))));
}

/// The server has forgotten from where the watch went on: all is listed anew, and until that is done what was known holds.
#[test]
fn a_list_that_is_made_anew_takes_effect_when_it_is_complete() {
    let server = Server::start();
    server.put(PODS, pod("old", "u1", "10.244.1.5"));
    server.put(PODS, pod("kept", "u2", "10.244.1.6"));
    let cluster = follow(&server);
    let known = cluster.read();
    server.slow(Some(PODS));
    let before = (server.lists(PODS), server.lists(POLICIES));
    server.forget();
    eventually("it lists anew", || server.lists(PODS) > before.0 && server.lists(POLICIES) > before.1);
    server.delete(PODS, "shop", "old");
    server.put(PODS, pod("new", "u3", "10.244.1.7"));
    thread::sleep(A_WHILE);
    assert_eq!(cluster.read(), known, "a slow list changes nothing");
    server.slow(None);
    eventually("the new list", || names(&cluster) == ["shop/kept", "shop/new"]);
}

#[test]
fn kinds_that_a_cluster_may_lack_are_seen_when_it_has_none() {
    let server = Server::start();
    let cluster = follow(&server);
    assert_eq!((policies(&cluster), cluster.behind()), (Vec::new(), String::new()));
    let admin = "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies";
    server.define(admin);
    let spec = json!({ "priority": 1, "subject": { "namespaces": {} } });
    server.put(admin, json!({ "metadata": { "name": "tenants" }, "spec": spec }));
    let intents = "/apis/bulkhead.io/v1/intents";
    server.define(intents);
    server.put(intents, intent("shop", 1));
    let there = follow(&server);
    assert_eq!(policies(&there), ["adminnetworkpolicy/tenants", "intent/shop/shop"]);
}

/// What stands before a server may know nothing of it. Only the server says that it has no such kind.
#[test]
fn a_page_that_is_not_found_takes_no_policy_away() {
    let server = Server::start();
    let intents = "/apis/bulkhead.io/v1/intents";
    server.define(intents);
    server.define("/apis/bulkhead.io/v1/guards");
    server.put(intents, intent("shop", 1));
    let cluster = follow(&server);
    server.lose(true);
    eventually("it is said", || cluster.behind().contains("404"));
    thread::sleep(A_WHILE);
    assert_eq!(policies(&cluster), ["intent/shop/shop"]);
    server.lose(false);
    eventually("it is followed again", || cluster.behind().is_empty());
    assert_eq!(policies(&cluster), ["intent/shop/shop"]);
    server.undefine(intents);
    eventually("the kind is gone", || policies(&cluster).is_empty());
    eventually("and that is no failure", || cluster.behind().is_empty());
}

/// A definition that is served in another version alone takes no policy away, and none that is written so is passed over.
#[test]
fn a_version_that_is_not_read_is_not_taken_for_none() {
    let server = Server::start();
    let (read, next) = ("/apis/bulkhead.io/v1/intents", "/apis/bulkhead.io/v2/intents");
    for version in [read, "/apis/bulkhead.io/v1/guards", next] {
        server.define(version);
    }
    server.put(read, intent("shop", 1));
    server.put(next, intent("shop", 1));
    let cluster = follow(&server);
    server.undefine(read);
    eventually("it is said", || cluster.behind().contains("the cluster has some of bulkhead.io/v2, which is not read"));
    thread::sleep(A_WHILE);
    assert_eq!(policies(&cluster), ["intent/shop/shop"]);
    let late = Cluster::follow(Some(&server.kubeconfig())).unwrap();
    eventually("it is said from the start", || late.missing().contains("bulkhead.io/v2, which is not read"));
    server.delete(next, "shop", "shop");
    assert!(late.wait(PATIENCE), "where there is none nothing is missed: {}", late.missing());
    eventually("nor here", || policies(&cluster).is_empty() && cluster.behind().is_empty());
}

/// ADD may be faster than the watch, and a name may be another pod's by now.
#[test]
fn a_pod_that_starts_is_asked_for_by_its_unique_id() {
    let server = Server::start();
    let cluster = Arc::new(follow(&server));
    server.put(PODS, pod("web", "u1", "10.244.1.5"));
    assert_eq!(cluster.complete(&attached("web", "u1")), Ok(()));
    assert_eq!(cluster.complete(&Attached { uid: None, ..attached("c", "") }), Ok(()), "no pod");
    let unnamed = cluster.complete(&Attached { uid: None, ..attached("web", "") }).unwrap_err();
    assert!(unnamed.contains("pod shop/web without its unique id") && unnamed.contains("K8S_POD_UID"), "{unnamed}");

    let asked = Arc::clone(&cluster);
    let next = thread::spawn(move || asked.complete(&attached("web", "u2")));
    thread::sleep(A_WHILE);
    assert!(!next.is_finished(), "it waits for the next pod of that name");
    server.put(PODS, pod("web", "u2", "10.244.1.9"));
    assert_eq!(next.join().unwrap(), Ok(()));
    let uid = |cluster: &Cluster| workloads(&cluster.read()).workloads.values().next().unwrap().uid.clone();
    assert_eq!(uid(&cluster).as_deref(), Some("u2"));
}

/// Policies select by labels of namespaces, and the watches of pods and of namespaces are two.
#[test]
fn no_pod_starts_before_its_namespace_is_known() {
    let server = Server::start();
    server.delete(NAMESPACES, "", "shop");
    let cluster = Arc::new(follow(&server));
    server.put(PODS, pod("web", "u1", "10.244.1.5"));
    eventually("the pod", || names(&cluster) == ["shop/web"]);
    let asked = Arc::clone(&cluster);
    let start = thread::spawn(move || asked.complete(&attached("web", "u1")));
    thread::sleep(A_WHILE);
    assert!(!start.is_finished(), "its namespace has no labels yet");
    server.put(NAMESPACES, json!({ "metadata": { "name": "shop", "labels": { "tenant": "a" } } }));
    assert_eq!(start.join().unwrap(), Ok(()));
    assert_eq!(workloads(&cluster.read()).namespaces["shop"].get("tenant"), Some("a"));
}

/// What was said while a server had forgotten where a watch was is not known before all is listed: a policy against a pod that starts may be in it.
#[test]
fn no_pod_starts_while_a_kind_is_listed_anew() {
    for slow in [POLICIES, PODS] {
        let server = Server::start();
        let cluster = Arc::new(follow(&server));
        server.slow(Some(slow));
        let before = server.lists(slow);
        server.forget();
        server.put(POLICIES, policy("deny"));
        server.put(PODS, pod("web", "u1", ""));
        eventually("it lists anew", || server.lists(slow) > before);
        let asked = Arc::clone(&cluster);
        let start = thread::spawn(move || asked.complete(&attached("web", "u1")));
        thread::sleep(A_WHILE);
        assert!(!start.is_finished() && cluster.behind().contains("is listed anew"), "{slow}: {}", cluster.behind());
        server.slow(None);
        assert_eq!(start.join().unwrap(), Ok(()));
        assert_eq!((names(&cluster).len(), policies(&cluster).len()), (1, 1), "{slow}");
    }
}

/// What cannot be read is left out, and nothing else with it.
#[test]
fn an_object_that_cannot_be_read_harms_no_other() {
    let server = Server::start();
    let mut broken = pod("broken", "u1", "10.244.1.5");
    broken["spec"]["nodeName"] = json!(["n1"]);
    server.put(PODS, broken);
    server.put(PODS, pod("web", "u2", "10.244.1.6"));
    let cluster = follow(&server);
    assert!(names(&cluster).contains(&"shop/web".to_owned()));
}

/// A pod that is known is not forgotten because its next form cannot be read, in a list either: who is unknown is selected by no policy.
#[test]
fn an_object_that_becomes_unreadable_stays_as_it_was() {
    let server = Server::start();
    server.put(PODS, pod("web", "u1", "10.244.1.5"));
    let cluster = follow(&server);
    let known = workloads(&cluster.read()).workloads.keys().cloned().collect::<Vec<_>>();
    let mut broken = pod("web", "u1", "10.244.1.5");
    broken["spec"]["nodeName"] = json!(["n1"]);
    server.put(PODS, broken);
    server.forget();
    server.put(PODS, pod("db", "u2", "10.244.1.6"));
    eventually("the new list", || names(&cluster).contains(&"shop/db".to_owned()));
    let listed = workloads(&cluster.read());
    assert!(known.iter().all(|name| listed.workloads[name].labels.get("app") == Some("web")), "{:?}", names(&cluster));
}

#[test]
fn a_kubeconfig_that_cannot_be_read_is_told() {
    let server = Server::start();
    let missing = server.home().join("nothing");
    let said = Cluster::follow(Some(&missing)).unwrap_err().to_string();
    assert!(said.contains("nothing") && said.contains("--kubeconfig"), "{said}");
    let alone: BTreeSet<_> =
        std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("KUBERNETES_")).collect();
    if alone.is_empty() {
        let said = Cluster::follow(None).unwrap_err().to_string();
        assert!(said.contains("service account"), "{said}");
    }
}
