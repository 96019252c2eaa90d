//! What agents say of Intents in their statuses, and in events.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::http::StatusCode;
use bulkhead_controller::{
    adopt::Scope,
    agent::{Agent, Settings},
    cluster::Cluster,
    run::{Life, Stopper},
    source::Source as _,
};
use bulkhead_dataplane::{
    desired::Manner,
    memory::{Links, MemoryNode, MemoryStore},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    A_WHILE, eventually, follow, intent, pod,
    server::{EVENTS, PODS, POLICIES, Server},
};

const INTENTS: &str = "/apis/bulkhead.io/v1/intents";
const NODES: &str = "/api/v1/nodes";
const SERVICES: &str = "/api/v1/services";
const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

/// A server with two nodes and all that statuses take.
fn server() -> Server {
    let server = Server::start();
    for kind in [INTENTS, LEASES, EVENTS] {
        server.define(kind);
    }
    for (number, node) in [(1, "n1"), (2, "n2")] {
        let addresses = [json!({ "type": "InternalIP", "address": format!("192.0.2.{number}") })];
        let metadata = json!({ "name": node, "uid": format!("uid-{node}") });
        server.put("/api/v1/nodes", json!({ "metadata": metadata, "status": { "addresses": addresses } }));
    }
    server
}

/// The agent of a node, which tells.
struct Running {
    stopper: Stopper,
    worker: Option<JoinHandle<()>>,
    cluster: Arc<Cluster>,
    _home: TempDir,
}

impl Running {
    fn start(server: &Server, node: &str) -> Self {
        Self::start_tainted(server, node, None)
    }

    /// The same where the node registers with a taint of this key.
    fn start_tainted(server: &Server, node: &str, taint: Option<&str>) -> Self {
        let home = TempDir::new().unwrap();
        let cluster = Arc::new(follow(server));
        let settings = Settings {
            source: Arc::<Cluster>::clone(&cluster),
            node: node.to_owned(),
            state: home.path().to_owned(),
            manner: Manner::default(),
            cni: None,
            scope: Scope::default(),
        };
        let kernel = MemoryNode::open(MemoryStore::default(), Links::default(), home.path()).unwrap();
        let mut agent = Agent::start(kernel, settings).unwrap_or_else(|error| panic!("{error}"));
        let life = Life::new(None).unwrap();
        cluster.tell(node, &life.handle(), taint).unwrap();
        let (stopper, source) = (life.stopper(), Arc::clone(&cluster));
        let worker = thread::spawn(move || life.run(&mut agent, &*source).unwrap());
        Self { stopper, worker: Some(worker), cluster, _home: home }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        self.worker.take().into_iter().for_each(|worker| worker.join().unwrap());
    }
}

fn condition(server: &Server, name: &str, of: &str) -> (String, String) {
    let status = server.get(INTENTS, "shop", name).unwrap()["status"].clone();
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == of).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

#[track_caller]
fn becomes(server: &Server, name: &str, of: &str, status: &str, message: &str) {
    eventually(&format!("{name}: {of} becomes {status}, {message}"), || {
        let (is, says) = condition(server, name, of);
        is == status && says.contains(message)
    });
}

fn with(mut intent: Value, spec: Value) -> Value {
    intent["spec"] = spec;
    intent
}

/// A Service by which the cluster resolves names.
fn resolver() -> Value {
    let metadata = json!({ "name": "kube-dns", "namespace": "kube-system", "uid": "uid-dns", "labels": { "k8s-app": "kube-dns" } });
    let ports = [json!({ "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 })];
    json!({ "metadata": metadata, "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports } })
}

#[test]
fn a_node_that_registers_again_loses_its_taint_again() {
    const TAINT: &str = "bulkhead.io/starting";
    let server = server();
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    let taints = || server.get(NODES, "", "n1").unwrap()["spec"]["taints"].clone();
    let both = json!([taint("example.com/other"), taint(TAINT)]);
    let register = |uid: &str, ready: &str| {
        let conditions = [json!({ "type": "Ready", "status": ready })];
        let metadata = json!({ "name": "n1", "uid": uid });
        let object =
            json!({ "metadata": metadata, "spec": { "taints": both }, "status": { "conditions": conditions } });
        server.put(NODES, object);
    };
    let loses_it = |what: &str| {
        eventually(what, || taints() == json!([taint("example.com/other")]));
    };
    register("uid-n1", "False");
    let _agent = Running::start_tainted(&server, "n1", Some(TAINT));
    thread::sleep(A_WHILE * 2);
    assert_eq!(taints(), both, "there is no network yet");
    register("uid-n1", "True");
    loses_it("it joins");
    server.delete(NODES, "", "n1");
    register("uid-n1-again", "True");
    loses_it("it joins again");
}

/// What nobody's policy says must not be in the way of everybody's: the address of a pod is a node's too, and the resolver is replaced.
#[test]
fn what_is_no_policy_keeps_no_policy_from_its_walls() {
    let server = server();
    server.put(SERVICES, resolver());
    server.put(PODS, pod("db", "u1", "10.244.1.5"));
    server.put(INTENTS, with(intent("asks", 1), json!({ "services": { "db": {} }, "dns": "cluster" })));
    let _agents = [Running::start(&server, "n1"), Running::start(&server, "n2")];
    becomes(&server, "asks", "Published", "True", "2 of 2 nodes");

    server.delete(SERVICES, "kube-system", "kube-dns");
    server.put(INTENTS, with(intent("before", 1), json!({ "services": { "web": {} } })));
    becomes(&server, "before", "Published", "True", "2 of 2 nodes");
    server.put(SERVICES, resolver());
    server.put(INTENTS, with(intent("after", 1), json!({ "services": { "shop": {} } })));
    becomes(&server, "after", "Published", "True", "2 of 2 nodes");

    // Of a node that is there, then of a pod that comes, then of all that an agent finds when it starts.
    let addresses = [
        json!({ "type": "InternalIP", "address": "192.0.2.2" }),
        json!({ "type": "InternalIP", "address": "10.244.1.5" }),
    ];
    let metadata = json!({ "name": "n2", "uid": "uid-n2" });
    server.put(NODES, json!({ "metadata": metadata, "status": { "addresses": addresses } }));
    server.put(PODS, pod("cache", "u2", "192.0.2.1"));
    server.put(INTENTS, with(intent("beside", 1), json!({ "services": { "cart": {} } })));
    becomes(&server, "beside", "Published", "True", "2 of 2 nodes");
    server.put(PODS, pod("queue", "u3", "192.0.2.2"));
    server.put(INTENTS, with(intent("still", 1), json!({ "services": { "bell": {} } })));
    becomes(&server, "still", "Published", "True", "2 of 2 nodes");
    let _another = Running::start(&server, "n1");
}

#[test]
fn agents_agree_on_what_is_in_force() {
    let server = server();
    server.put(INTENTS, intent("shop", 1));
    let agents = [Running::start(&server, "n1"), Running::start(&server, "n2")];
    becomes(&server, "shop", "Published", "True", "generation 1 is in force on 2 of 2 nodes");
    becomes(&server, "shop", "Accepted", "True", "");
    assert_eq!(server.get(INTENTS, "shop", "shop").unwrap()["status"]["published"], "2/2");
    let lease = server.get(LEASES, "default", "bulkhead-node-n1").unwrap();
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-n1", "it goes with its node");

    // One writes, once, and what it writes is no news of a policy.
    thread::sleep(A_WHILE);
    let writes = server.writes(INTENTS);
    assert!((1..=4).contains(&writes), "{writes}");
    assert!(!agents[0].cluster.has_news());
    let heard = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (count, still) = (Arc::clone(&heard), follow(&server));
    // What it was told at its start is heard by then.
    thread::sleep(A_WHILE);
    let _watched = still.watch(Box::new(move || _ = count.fetch_add(1, SeqCst)));
    let mut said = server.get(INTENTS, "shop", "shop").unwrap();
    said["status"]["published"] = "0/0".into();
    server.put(INTENTS, said);
    becomes(&server, "shop", "Published", "True", "2 of 2 nodes");
    eventually("what somebody else wrote is put right", || {
        server.get(INTENTS, "shop", "shop").unwrap()["status"]["published"] == "2/2"
    });
    assert_eq!(heard.load(SeqCst), 0, "a status wakes nobody");

    // What is wrong is said where it stands, and of nothing else.
    server.put(INTENTS, intent("other", 1));
    let wrong = json!({ "services": { "db": {}, "web": { "calls": ["bd:1"] } } });
    server.put(INTENTS, with(intent("shop", 2), wrong));
    becomes(&server, "shop", "Accepted", "False", "spec.services.web.calls[0]: ");
    becomes(&server, "shop", "Compiled", "False", "on n1");
    becomes(&server, "shop", "Published", "False", "generation 2 is in force on 0 of 2 nodes; refused on n1, n2");
    becomes(&server, "other", "Accepted", "False", "intent/shop/shop spec.services.db: ");
    server.delete(INTENTS, "shop", "other");
    server.put(INTENTS, intent("shop", 3));
    becomes(&server, "shop", "Published", "True", "generation 3 is in force on 2 of 2 nodes");
}

/// Statuses are worth nothing without what is in force, and that does not wait for them.
#[test]
fn without_rights_and_without_a_server_policies_hold() {
    let server = server();
    server.forbid(&[LEASES]);
    server.put(INTENTS, intent("shop", 1));
    let agent = Running::start(&server, "n1");
    server.put(INTENTS, with(intent("shop", 2), json!({ "services": { "web": {} } })));
    eventually("the next edition is read", || !agent.cluster.has_news());
    thread::sleep(A_WHILE);
    assert_eq!((server.all(LEASES).len(), server.writes(INTENTS)), (0, 0));
    drop(agent);

    server.forbid(&[]);
    let agent = Running::start(&server, "n1");
    becomes(&server, "shop", "Published", "True", "1 of 1 nodes");
    server.down(Some(StatusCode::INTERNAL_SERVER_ERROR));
    thread::sleep(Duration::from_secs(2));
    server.down(None);
    server.put(INTENTS, intent("shop", 3));
    becomes(&server, "shop", "Published", "True", "generation 3");
    drop(agent);
}

/// As somebody's admission policy may: what is refused is asked for once, and the others are told of.
#[test]
fn a_status_that_is_refused_keeps_no_other_from_being_written() {
    let server = server();
    server.forbid(&[&format!("{INTENTS}/first")]);
    for (name, service) in [("first", "web"), ("then", "db")] {
        server.put(INTENTS, with(intent(name, 1), json!({ "services": { service: {} } })));
    }
    let agent = Running::start(&server, "n1");
    becomes(&server, "then", "Published", "True", "1 of 1 nodes");
    server.put(INTENTS, with(intent("then", 2), json!({ "services": { "db": {}, "cart": {} } })));
    becomes(&server, "then", "Published", "True", "generation 2");
    assert_eq!(server.get(INTENTS, "shop", "first").unwrap()["status"], Value::Null);
    drop(agent);
}

/// A policy of Kubernetes has no status that could say it.
#[test]
fn a_network_policy_that_is_refused_has_an_event() {
    let server = server();
    let metadata = json!({ "name": "db", "namespace": "shop", "uid": "uid-db", "generation": 1 });
    let spec = json!({ "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/40" } }] }] });
    server.put(POLICIES, json!({ "metadata": &metadata, "spec": spec }));
    // One bad policy keeps no agent from its start.
    let _agents = [Running::start(&server, "n1"), Running::start(&server, "n2")];
    eventually("an event", || !server.all(EVENTS).is_empty());
    thread::sleep(A_WHILE);
    let events = server.all(EVENTS);
    assert_eq!(events.len(), 1, "one agent writes it, once: {events:?}");
    assert_eq!((&events[0]["reason"], &events[0]["regarding"]["uid"]), (&json!("Refused"), &json!("uid-db")));
    let note = events[0]["note"].as_str().unwrap();
    assert!(note.starts_with("spec.ingress[0].from[0].ipBlock.cidr: "), "{note}");

    // What is wrong then is said by the same event.
    let spec = json!({ "podSelector": {}, "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/40" } }] }] });
    server.put(POLICIES, json!({ "metadata": metadata, "spec": spec }));
    let says = |event: &Value| event["note"].as_str().is_some_and(|note| note.starts_with("spec.egress[0].to[0]."));
    eventually("the event says it", || server.all(EVENTS).iter().any(says));
    let events = server.all(EVENTS);
    assert_eq!((events.len(), &events[0]["series"]["count"]), (1, &json!(2)), "{events:?}");
}
