//! One by one it comes to what all of it comes to.

use std::{
    any::Any,
    collections::BTreeSet,
    path::Path,
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use bulkhead_dataplane::{
    cni::protocol::{Ask, Attached, Interface, Key as ContainerKey, Request, VERSION},
    desired::{Manner, ServiceAddress},
    memory::{Links, MemoryNode, MemoryStore},
    node::Discovered,
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::{
    kinds::{KINDS, Key, NAMESPACES, NODES, PODS, SERVICES, SLICES},
    store::Store,
};
use crate::{
    adopt::Scope,
    agent::{Agent, Settings},
    compile::compile,
    control::Control,
    diagnostic::source,
    input::{Files, Listing},
    model::Model,
    policy,
    source::{Changes, Heard, Source},
    workloads::Workloads,
};

const POLICIES: usize = 5;
/// The last one is of no namespace object at first.
const SPACES: [&str; 3] = ["a", "b", "c"];
/// That of the cluster's resolver.
const RESOLVING: &str = "kube-system";
/// The agent's, and two others.
const MACHINES: [&str; 3] = ["n1", "n2", "n3"];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1", "2001:db8::2"];
/// What slices may say beside these: an address outside, and one that a node may have.
const ANSWERING: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1", "2001:db8::2", "203.0.113.5", "192.0.2.12"];

/// What an API server or a runtime tells.
#[derive(Clone, Debug)]
enum Told {
    Is(usize, Value),
    Gone(usize, Value),
    Attached(&'static str, &'static str, usize, &'static str),
    Detached(&'static str, &'static str),
}

fn named(space: &str, name: &str) -> Value {
    json!({ "namespace": space, "name": name })
}

fn pod_of() -> impl Strategy<Value = Told> {
    let who = (select(&SPACES), select(&["p0", "p1", "p2", "p3"]), select(&["u1", "u2"]), select(&["1", "2", "3"]));
    let what = (
        proptest::option::weighted(0.9, select(&MACHINES)),
        proptest::collection::btree_set(select(&ADDRESSES), 0..3),
        select(&["web", "db", "other"]),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
    );
    (who, what).prop_map(|((space, name, uid, second), (node, addresses, app, host, ended))| {
        let mut metadata = named(space, name);
        metadata["uid"] = format!("{name}-{uid}").into();
        metadata["creationTimestamp"] = format!("2026-01-01T00:00:0{second}Z").into();
        metadata["labels"] = json!({ "app": app });
        let ips: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let mut status = json!({ "phase": if ended { "Failed" } else { "Running" } });
        if !ips.is_empty() {
            status["podIPs"] = ips.into();
        }
        let mut spec = json!({ "hostNetwork": host, "containers": [] });
        if let Some(node) = node {
            spec["nodeName"] = node.into();
        }
        Told::Is(PODS, json!({ "metadata": metadata, "spec": spec, "status": status }))
    })
}

fn service_of() -> impl Strategy<Value = Told> {
    let names = select(&["s0", "s1"]);
    let addresses = (0..2_u8, proptest::option::of(select(&["198.51.100.1", "192.0.2.2", "192.0.2.12"])));
    let labels = (select(&["web", "db", ""]), proptest::bool::weighted(0.1));
    let made = (addresses, select(&["1", "2"]), select(&[80, 443]));
    (select(&SPACES), names, labels, made).prop_map(|(space, name, (app, resolves), ((last, external), second, port))| {
        let mut spec = json!({ "clusterIP": format!("10.96.{}.{last}", name.len() + space.len()), "ports": [{ "port": port }] });
        spec["externalIPs"] = external.into_iter().collect();
        let mut metadata = named(space, name);
        metadata["creationTimestamp"] = format!("2026-01-01T00:00:0{second}Z").into();
        if resolves {
            metadata["namespace"] = RESOLVING.into();
            metadata["labels"] = json!({ "k8s-app": "kube-dns" });
        }
        if !app.is_empty() {
            spec["selector"] = json!({ "app": app });
        }
        Told::Is(SERVICES, json!({ "metadata": metadata, "spec": spec }))
    })
}

/// One of any service: one with a selector may have such slices too, and each may have several.
fn slice_of() -> impl Strategy<Value = Told> {
    let names = (select(&["s0", "s1"]), select(&["s0", "s1"]));
    let endpoint = (select(&ANSWERING), proptest::option::of(select(&["p0", "p1"])));
    let endpoints = proptest::collection::vec(endpoint, 1..3);
    (select(&SPACES), names, endpoints, select(&[80, 8080])).prop_map(|(space, (name, service), endpoints, port)| {
        let mut metadata = named(space, name);
        metadata["labels"] = json!({ "kubernetes.io/service-name": service });
        let endpoint = |(address, pod): (&str, Option<&str>)| {
            let mut endpoint = json!({ "addresses": [address] });
            if let Some(pod) = pod {
                endpoint["targetRef"] = json!({ "kind": "Pod", "name": pod });
            }
            endpoint
        };
        let endpoints: Vec<_> = endpoints.into_iter().map(endpoint).collect();
        let ports = json!([{ "name": "", "port": port, "protocol": "TCP" }]);
        Told::Is(SLICES, json!({ "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports }))
    })
}

fn policy_of() -> impl Strategy<Value = Told> {
    let peer = select(&["web", "db", "everybody"]);
    (select(&SPACES), select(&["x", "y"]), select(&["web", "db"]), peer)
        .prop_map(|(space, name, app, peer)| policy(space, name, app, peer))
}

fn policy(space: &str, name: &str, app: &str, peer: &str) -> Told {
    let from = match peer {
        "everybody" => json!([{ "namespaceSelector": {} }]),
        app => json!([{ "podSelector": { "matchLabels": { "app": app } } }]),
    };
    let selector = json!({ "matchLabels": { "app": app } });
    let spec = json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{ "from": from }] });
    Told::Is(POLICIES, json!({ "metadata": named(space, name), "spec": spec }))
}

fn namespace(name: &str, tenant: &str) -> Told {
    Told::Is(NAMESPACES, json!({ "metadata": { "name": name, "labels": { "tenant": tenant } } }))
}

/// A node with an address, or another one, whose pods are in an overlay or not.
fn node(name: &str, other: bool, zone: &str, overlay: bool) -> Told {
    let number = name.trim_start_matches('n');
    let address = format!("192.0.2.{}{number}", if other { "1" } else { "" });
    let mut metadata = json!({ "name": name, "labels": { "zone": zone } });
    if overlay {
        metadata["annotations"] = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:0{number}\"}}"),
            "flannel.alpha.coreos.com/public-ip": address,
        });
    }
    let spec = json!({ "podCIDR": "10.0.0.0/30", "podCIDRs": ["10.0.0.0/30"] });
    let addresses = json!([{ "type": "InternalIP", "address": address }]);
    Told::Is(NODES, json!({ "metadata": metadata, "spec": spec, "status": { "addresses": addresses } }))
}

fn told() -> impl Strategy<Value = Told> {
    let gone =
        (select(&SPACES), select(&["p0", "p1", "p2", "p3"])).prop_map(|(space, name)| (PODS, named(space, name)));
    let spaces = select(&["a", "b", "c", RESOLVING]);
    let services = (select(&[SERVICES, SLICES]), spaces, select(&["s0", "s1"]))
        .prop_map(|(kind, space, name)| (kind, named(space, name)));
    let policies = (select(&SPACES), select(&["x", "y"])).prop_map(|(space, name)| (POLICIES, named(space, name)));
    let spaces = select(&SPACES).prop_map(|name| (NAMESPACES, json!({ "name": name })));
    let machines = select(&["n2", "n3"]).prop_map(|name| (NODES, json!({ "name": name })));
    let gone = prop_oneof![4 => gone, 1 => services, 1 => policies, 1 => spaces, 1 => machines];
    prop_oneof![
        16 => pod_of(),
        2 => service_of(),
        2 => slice_of(),
        4 => policy_of(),
        2 => (select(&SPACES), select(&["red", "blue"])).prop_map(|(name, tenant)| namespace(name, tenant)),
        2 => (select(&MACHINES), any::<bool>(), select(&["a", "b"]), any::<bool>())
            .prop_map(|(name, other, zone, overlay)| node(name, other, zone, overlay)),
        8 => gone.prop_map(|(kind, metadata)| Told::Gone(kind, json!({ "metadata": metadata }))),
        3 => (select(&SPACES), select(&["p0", "p1"]), 1..3_usize, select(&ADDRESSES))
            .prop_map(|(space, name, uid, address)| Told::Attached(space, name, uid, address)),
        2 => (select(&SPACES), select(&["p0", "p1"])).prop_map(|(space, name)| Told::Detached(space, name)),
    ]
}

/// A cluster of which somebody tells.
#[derive(Debug)]
struct Followed(Mutex<Store>);

impl Followed {
    fn new() -> Self {
        let mut store = Store::new();
        (0..KINDS.len()).for_each(|kind| _ = store.absent(kind));
        let followed = Self(Mutex::new(store));
        for name in ["a", "b", RESOLVING] {
            followed.tell(&namespace(name, "red"));
        }
        for name in ["n1", "n2"] {
            followed.tell(&node(name, false, "a", false));
        }
        followed
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: &Told) {
        match told.clone() {
            Told::Is(kind, object) => _ = self.store().apply(kind, object).unwrap_or_else(|found| panic!("{found}")),
            Told::Gone(kind, object) => _ = self.store().delete(kind, &object),
            Told::Attached(..) | Told::Detached(..) => {}
        }
    }
}

impl Source for Followed {
    fn read(&self) -> Files {
        self.store().read()
    }

    fn watch(&self, _heard: Heard) -> Option<Box<dyn Any>> {
        None
    }

    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn has_news(&self) -> bool {
        self.store().has_news()
    }

    fn changes(&self) -> Option<Changes> {
        self.store().changes()
    }
}

/// Of node n1, with these tables.
fn agent(store: &MemoryStore, source: &Arc<Followed>, state: &Path) -> Agent<MemoryNode> {
    let node = MemoryNode::open(store.clone(), Links::default(), state).unwrap();
    let settings = Settings {
        source: Arc::clone(source) as Arc<dyn Source>,
        node: "n1".to_owned(),
        state: state.to_owned(),
        manner: Manner::default(),
        cni: Some(state.join("cni.sock")),
        scope: Scope::default(),
    };
    Agent::start(node, settings).unwrap_or_else(|error| panic!("{error}"))
}

/// What took effect is written down while other changes take effect, and after those that came meanwhile nothing is missing.
#[test]
fn a_disk_that_takes_its_time_holds_up_nobody() {
    let home = tempfile::TempDir::new().unwrap();
    let (store, source) = (MemoryStore::default(), Arc::new(Followed::new()));
    let mut agent = agent(&store, &source, home.path());
    let mut pod = placed("web", "2026-01-01T00:00:00Z", Some("10.0.0.1"));
    pod["metadata"]["labels"]["app"] = "web".into();
    pod["metadata"]["uid"] = "web-u1".into();
    source.tell(&Told::Is(PODS, pod));
    agent.refresh();
    let web = Told::Attached("a", "web", 1, "10.0.0.1");
    asked(&web).iter().for_each(|request| _ = agent.attach(slice::from_ref(request)));
    let slow = rusqlite::Connection::open(home.path().join(crate::store::FILE)).unwrap();
    let follow = |agent: &mut Agent<MemoryNode>, name: &str| {
        let before = store.snapshot();
        source.tell(&policy("a", name, "web", name));
        assert!(agent.follow_changes() && store.snapshot() != before, "{name} takes effect");
    };
    let begin = |agent: &mut Agent<MemoryNode>, held: &str| {
        slow.execute_batch(held).unwrap();
        while agent.until_written() != Some(Duration::ZERO) {
            thread::sleep(Duration::from_millis(10));
        }
        agent.go_on_writing();
    };
    follow(&mut agent, "first");
    begin(&mut agent, "BEGIN IMMEDIATE");
    follow(&mut agent, "second");
    // Not a time from now at which it is tried again.
    let left = agent.until_written().unwrap();
    assert!(!left.is_zero() && left <= Duration::from_millis(50), "{left:?}: the first one is being written");
    slow.execute_batch("ROLLBACK").unwrap();
    agent.write_down();
    let written = || {
        let reader = crate::store::Reader::open(home.path()).unwrap().unwrap();
        let revision = reader.in_force().unwrap().unwrap();
        revision.inputs.policies.into_keys().filter(|name| name.contains('/')).collect::<Vec<_>>()
    };
    assert_eq!(written(), ["networkpolicy/a/first", "networkpolicy/a/second"]);

    // Where it cannot be written, it is tried again, with what came meanwhile.
    follow(&mut agent, "third");
    begin(&mut agent, "ALTER TABLE revisions RENAME TO away");
    follow(&mut agent, "fourth");
    agent.write_down();
    slow.execute_batch("ALTER TABLE away RENAME TO revisions").unwrap();
    assert_eq!(written().len(), 2);
    agent.write_down();
    assert_eq!(written().len(), 4);
}

/// A cluster keeps its policies itself, and what it says is in force on a node whose disk is full, too.
#[test]
fn what_a_disk_does_not_take_is_in_force_all_the_same() {
    let home = tempfile::TempDir::new().unwrap();
    let (store, source) = (MemoryStore::default(), Arc::new(Followed::new()));
    let mut agent = agent(&store, &source, home.path());
    let stands = |agent: &mut Agent<MemoryNode>| {
        let texts = source.read().policies.unwrap();
        let texts = texts.into_iter().map(|(name, text)| (name, text.unwrap().into())).collect();
        let standing = Control::standing(agent, &texts);
        (standing.differ.is_empty(), standing.failed)
    };
    let disk = rusqlite::Connection::open(home.path().join(crate::store::FILE)).unwrap();
    disk.execute_batch("ALTER TABLE revisions RENAME TO away").unwrap();
    source.tell(&policy("a", "first", "web", "first"));
    source.store().doubt();
    agent.refresh();
    assert_eq!(stands(&mut agent), (true, String::new()), "it is in force");
    let health = agent.health();
    assert!(health.unwritten && health.unready().is_none(), "{health:?}");

    disk.execute_batch("ALTER TABLE away RENAME TO revisions").unwrap();
    agent.refresh();
    assert_eq!(stands(&mut agent), (true, String::new()));
    assert!(!agent.health().unwritten);
    drop(agent);
    let revision = crate::store::Reader::open(home.path()).unwrap().unwrap().in_force().unwrap().unwrap();
    assert!(revision.inputs.policies.contains_key("networkpolicy/a/first"), "{:?}", revision.inputs.policies.keys());
}

/// Where calls to a port of an address end, by the tables of the agent's node.
fn ends(known: &Workloads, address: &str, port: u16) -> Vec<String> {
    let model = Model::build(&[], known).unwrap_or_else(|found| panic!("{found}"));
    let desired = compile(&model, "n1", &Discovered::default(), 0).unwrap_or_else(|found| panic!("{found}"));
    let at = ServiceAddress { segment: 0, address: address.parse().ok(), protocol: 6, port };
    desired.services[&at].iter().map(|backend| format!("{}:{}", backend.address, backend.port)).collect()
}

fn listed(files: &Files) -> Workloads {
    match &files.workloads.1 {
        Ok(Listing::Live(workloads)) => (**workloads).clone(),
        other => panic!("{other:?}"),
    }
}

/// What a container's runtime asks.
fn asked(told: &Told) -> Option<Request> {
    let key =
        |space: &str, name: &str| ContainerKey { container: format!("{space}-{name}"), ifname: "eth0".to_owned() };
    let ask = match *told {
        Told::Attached(space, name, uid, address) => Ask::Add(Attached {
            key: key(space, name),
            namespace: space.to_owned(),
            name: name.to_owned(),
            uid: Some(format!("{name}-u{uid}")),
            labels: [].into(),
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                link: format!("veth-{space}-{name}"),
                ifindex: 7,
                addresses: vec![address.parse().ok()?],
            }],
        }),
        Told::Detached(space, name) => Ask::Del { key: key(space, name) },
        Told::Is(..) | Told::Gone(..) => return None,
    };
    Some(Request { version: VERSION, network: "cbr0".to_owned(), waits: false, ask })
}

/// A pod on a node, with an address or none.
fn placed(name: &str, created: &str, address: Option<&str>) -> Value {
    let mut pod = json!({
        "metadata": { "namespace": "a", "name": name, "uid": name, "creationTimestamp": created },
        "spec": { "nodeName": "n1", "containers": [] },
        "status": { "phase": "Running" },
    });
    if let Some(address) = address {
        pod["status"]["podIP"] = address.into();
    }
    pod
}

#[test]
fn who_said_last_that_it_has_an_address_has_it() {
    const SAME: &str = "2026-01-01T00:00:01Z";
    const LATER: &str = "2026-01-01T00:00:02Z";
    let followed = Followed::new();
    let owners = || {
        let workloads = listed(&followed.read()).workloads;
        let owners = workloads.iter().filter(|(_, workload)| !workload.endpoints.is_empty());
        owners.map(|(name, _)| name.name.clone()).collect::<Vec<_>>()
    };
    let is = |pod: Value| followed.tell(&Told::Is(PODS, pod));
    let [one, other] = [Some(ADDRESSES[0]), Some(ADDRESSES[1])];
    // The younger one is first to have it.
    is(placed("p1", LATER, one));
    is(placed("p0", SAME, None));
    assert_eq!(owners(), ["p1"]);
    is(placed("p0", SAME, one));
    assert_eq!(owners(), ["p0"]);
    is(placed("p2", SAME, one));
    assert_eq!(owners(), ["p2"]);
    is(placed("p0", SAME, other));
    is(placed("p0", SAME, one));
    assert_eq!(owners(), ["p0"]);

    // What is listed anew says nothing of an order that is known, and of others who is younger.
    let mut store = followed.store();
    store.begin(PODS);
    for pod in [placed("p0", SAME, one), placed("p1", LATER, one), placed("p2", SAME, one)] {
        store.list(PODS, pod).unwrap();
    }
    store.end(PODS);
    drop(store);
    assert_eq!(owners(), ["p0"]);
    let mut store = followed.store();
    store.begin(PODS);
    for pod in [placed("p0", SAME, one), placed("p3", LATER, one), placed("p4", SAME, one)] {
        store.list(PODS, pod).unwrap();
    }
    store.end(PODS);
    drop(store);
    assert_eq!(owners(), ["p3"]);
}

#[test]
fn a_pod_has_run_that_has_an_address() {
    let followed = Followed::new();
    let known = || {
        let store = followed.store();
        (store.has_pod("a", "p0", "p0"), store.has_run("a", "p0", "p0"))
    };
    assert_eq!(known(), (false, false));
    followed.tell(&Told::Is(PODS, placed("p0", "", None)));
    assert_eq!(known(), (true, false));
    followed.tell(&Told::Is(PODS, placed("p0", "", Some(ADDRESSES[0]))));
    assert_eq!(known(), (true, true));
    assert!(!followed.store().has_run("a", "p0", "another"));
}

/// What is told of a pod while it is asked for is newer than the answer may be.
#[test]
fn an_answer_brings_no_pod_back() {
    type Meanwhile = fn(&mut Store);
    let gone = |store: &mut Store| _ = store.delete(PODS, &placed("p0", "", None));
    let listed_anew = |store: &mut Store| {
        store.begin(PODS);
        store.end(PODS);
    };
    let moved = |store: &mut Store| _ = store.apply(PODS, placed("p0", "", Some(ADDRESSES[1]))).unwrap();
    let other = |store: &mut Store| _ = store.apply(PODS, placed("p1", "", None)).unwrap();
    let cases: [(Meanwhile, &str, Option<&str>); 6] = [
        (|_| {}, "p0", Some(ADDRESSES[0])),
        (other, "p0", Some(ADDRESSES[0])),
        (|_| {}, "another", None),
        (gone, "p0", None),
        (listed_anew, "p0", None),
        (moved, "p0", Some(ADDRESSES[1])),
    ];
    let mut mirrored = placed("p0", "", Some(ADDRESSES[0]));
    mirrored["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "original" });
    let followed = Followed::new();
    let question = followed.store().ask("a", "p0");
    assert!(followed.store().answered(question, "original", Some(mirrored)).unwrap());

    for (at, (meanwhile, uid, has)) in cases.into_iter().enumerate() {
        let followed = Followed::new();
        let question = followed.store().ask("a", "p0");
        meanwhile(&mut followed.store());
        followed.store().answered(question, uid, Some(placed("p0", "", Some(ADDRESSES[0])))).unwrap();
        let workloads = listed(&followed.read()).workloads;
        let p0 = workloads.get(&Key::new("a", "p0"));
        let address = p0.and_then(|pod| pod.endpoints.first()).map(|endpoint| endpoint.addresses[0].to_string());
        assert_eq!(address.as_deref(), has, "case {at}");
    }
}

/// kube-proxy may send to either, and at a port that only one has to that one; but no service is asked for names because it took the resolver's address.
#[test]
fn services_that_share_a_port_are_answered_by_all_of_theirs() {
    let followed = Followed::new();
    for (space, name, app, address) in
        [("a", "p0", "web", "10.0.0.1"), ("a", "p1", "db", "10.0.0.2"), (RESOLVING, "p2", "dns", "10.0.0.3")]
    {
        let mut pod = placed(name, "", Some(address));
        pod["metadata"]["namespace"] = space.into();
        pod["metadata"]["labels"] = json!({ "app": app });
        followed.tell(&Told::Is(PODS, pod));
    }
    let service = |space: &str, name: &str, app: &str, address: &str, ports: &[u16]| {
        let ports: Vec<_> = ports.iter().map(|port| json!({ "name": format!("p{port}"), "port": port })).collect();
        let spec = json!({ "externalIPs": [address], "ports": ports, "selector": { "app": app } });
        let mut service = json!({ "metadata": named(space, name), "spec": spec });
        if space == RESOLVING {
            service["metadata"]["labels"] = json!({ "k8s-app": "kube-dns" });
            service["spec"]["clusterIP"] = address.into();
        }
        Told::Is(SERVICES, service)
    };
    followed.tell(&service("a", "s0", "web", "198.51.100.1", &[80]));
    followed.tell(&service("a", "s1", "db", "198.51.100.1", &[80, 443]));
    let known = listed(&followed.read());
    assert_eq!(ends(&known, "198.51.100.1", 80), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(ends(&known, "198.51.100.1", 443), ["10.0.0.2:443"]);

    followed.tell(&service(RESOLVING, "s0", "dns", "10.96.0.10", &[53]));
    followed.tell(&service("a", "s1", "db", "10.96.0.10", &[53]));
    let intent = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: a\ndns: cluster\nservices: { web: {} }\n";
    let policies = policy::parse(&source("i.yaml", intent)).unwrap_or_else(|found| panic!("{found}"));
    let model = Model::build(&policies, &listed(&followed.read())).unwrap_or_else(|found| panic!("{found}"));
    let peers: BTreeSet<_> = model.rules.iter().map(|rule| rule.peer.to_string()).collect();
    let leading: Vec<_> = peers.iter().filter(|peer| peer.starts_with("backends ")).collect();
    assert_eq!(leading, ["backends kube-system/s0"]);
    assert_eq!(ends(&listed(&followed.read()), "10.96.0.10", 53), ["10.0.0.2:53", "10.0.0.3:53"]);
}

/// A pod that calls is not sent to itself because a slice calls somebody else by its name.
#[test]
fn calls_to_a_service_end_at_the_addresses_in_its_slices() {
    let followed = Followed::new();
    let web = |mut pod: Value| {
        pod["metadata"]["labels"] = json!({ "app": "web" });
        Told::Is(PODS, pod)
    };
    followed.tell(&web(placed("p0", "", Some("10.0.0.1"))));
    followed.tell(&web(placed("p1", "", None)));
    let service = |selector: Value| {
        let spec = json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }], "selector": selector });
        Told::Is(SERVICES, json!({ "metadata": named("a", "s0"), "spec": spec }))
    };
    let slice = |name: &str, address: &str, pod: &str, port: u16| {
        let mut metadata = named("a", name);
        metadata["labels"] = json!({ "kubernetes.io/service-name": "s0" });
        let endpoint = json!({ "addresses": [address], "targetRef": { "kind": "Pod", "name": pod } });
        let ports = json!([{ "port": port }]);
        Told::Is(
            SLICES,
            json!({ "metadata": metadata, "addressType": "IPv4", "endpoints": [endpoint], "ports": ports }),
        )
    };
    let ends = || ends(&listed(&followed.read()), "10.96.0.1", 80);
    followed.tell(&service(json!({})));
    followed.tell(&slice("x", "203.0.113.5", "p0", 80));
    assert_eq!(ends(), ["203.0.113.5:80"]);
    // It may be the address of that pod, of which nobody has said it yet.
    followed.tell(&slice("x", "203.0.113.6", "p1", 80));
    assert_eq!(ends(), ["203.0.113.6:80"]);
    followed.tell(&service(json!({ "app": "web" })));
    followed.tell(&slice("y", "203.0.113.5", "p0", 81));
    assert_eq!(ends(), ["10.0.0.1:80", "203.0.113.5:81", "203.0.113.6:80"]);
}

/// What comes and goes in a large cluster does not have all of it put together.
#[test]
fn nodes_and_services_are_told_one_by_one() {
    let followed = Followed::new();
    // The first address is the gateway of a node's pods.
    let address = ADDRESSES[1];
    followed.tell(&Told::Is(PODS, placed("p0", "", Some(address))));
    let mut known = listed(&followed.read());
    let gone = |kind: usize, metadata: Value| Told::Gone(kind, json!({ "metadata": metadata }));
    let selector = json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }], "selector": { "app": "web" } });
    let alone = json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] });
    let service = |spec: &Value| Told::Is(SERVICES, json!({ "metadata": named("a", "s0"), "spec": spec }));
    let mut slice = named("a", "s0-x");
    slice["labels"] = json!({ "kubernetes.io/service-name": "s0" });
    let answers = json!([{ "addresses": [address] }]);
    let slice = json!({ "metadata": slice, "addressType": "IPv4", "endpoints": answers, "ports": [{ "port": 80 }] });
    let mut tell = |told: &[Told]| {
        told.iter().for_each(|told| followed.tell(told));
        let changes = followed.changes().unwrap_or_else(|| panic!("{told:?} has all read"));
        _ = changes.exchange(&mut known);
        assert_eq!(format!("{known:#?}"), format!("{:#?}", listed(&followed.read())), "{told:?}");
        known.clone()
    };
    assert_eq!(tell(&[node("n1", false, "b", false)]).nodes["n1"].labels.get("zone"), Some("b"));
    let p0 = |known: &Workloads| known.workloads[&Key::new("a", "p0")].endpoints[0].segment;
    assert_eq!(p0(&tell(&[node("n1", true, "b", true)])), 1, "it is in the overlay of its node");
    assert_eq!(p0(&tell(&[node("n1", true, "b", false)])), 0);
    assert!(tell(&[node("n3", false, "a", true)]).nodes.contains_key("n3"));
    assert!(!tell(&[gone(NODES, json!({ "name": "n3" }))]).nodes.contains_key("n3"));
    let s0 = |known: &Workloads| known.frontends[&(&Key::new("a", "s0")).into()].workloads.len();
    assert_eq!(s0(&tell(&[service(&selector)])), 0);
    assert_eq!(s0(&tell(&[service(&alone), Told::Is(SLICES, slice)])), 1, "the pod has the slice's address");
    assert_eq!(s0(&tell(&[gone(SLICES, named("a", "s0-x"))])), 0);
    assert!(tell(&[gone(SERVICES, named("a", "s0"))]).frontends.is_empty());
    // What pods are on is known from them where nobody describes it any more.
    followed.tell(&gone(NODES, json!({ "name": "n1" })));
    assert!(followed.changes().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn changes_come_to_what_is_read(batches in proptest::collection::vec(proptest::collection::vec(told(), 1..4), 1..24)) {
        let followed = Followed::new();
        let mut known = listed(&followed.read());
        let mut texts = followed.read().policies.unwrap();
        for told in batches.iter().flatten() {
            followed.tell(told);
            let changes = followed.changes();
            prop_assert_eq!(followed.store().has_news(), changes.is_none());
            match changes {
                Some(changes) => {
                    for (name, text) in changes.policies.clone() {
                        match text {
                            Some(text) => _ = texts.insert(name, Ok(text.text)),
                            None => _ = texts.remove(&name),
                        }
                    }
                    _ = changes.exchange(&mut known);
                    let all = followed.read();
                    prop_assert_eq!(format!("{known:#?}"), format!("{:#?}", listed(&all)));
                    prop_assert_eq!(&Ok(texts.clone()), &all.policies);
                }
                None => (known, texts) = (listed(&followed.read()), followed.read().policies.unwrap()),
            }
        }
    }

    /// What an agent makes of changes is what it makes of all: reading that changes nothing in the tables.
    #[test]
    fn an_agent_that_follows_is_where_one_that_reads_is(
        batches in proptest::collection::vec(proptest::collection::vec(told(), 1..4), 1..24)
    ) {
        let home = tempfile::TempDir::new().unwrap();
        let (store, source) = (MemoryStore::default(), Arc::new(Followed::new()));
        let mut agent = agent(&store, &source, home.path());
        for batch in &batches {
            for told in batch {
                source.tell(told);
                asked(told).iter().for_each(|request| _ = agent.attach(slice::from_ref(request)));
            }
            let followed = agent.follow_changes();
            let before = store.snapshot();
            source.store().doubt();
            agent.refresh();
            if followed {
                prop_assert_eq!(before, store.snapshot());
            }
        }
    }
}
