//! A small cluster, and what can happen to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_controller::{
    compile::{Change, Compiler, Extent, Misfits, compile},
    diagnostic::{Diagnostics, Place, Source, source},
    intent::{Cidrs, Entity},
    labels::{Labels, NAMESPACE_NAME, Requirement, Selector},
    manifest::Manifests,
    model::{Model, Peer, Scope, ServiceName},
    network_policy::{NetworkPolicy, Rule},
    policy::{self, Policy},
    ports::{Ports, Transport},
    workloads::{
        Endpoint, Frontend, FrontendPort, Listens, Node, NodeSegment, Outside, PortNames, Target, Workload,
        WorkloadName, Workloads,
    },
};
use bulkhead_dataplane::{
    desired::Desired,
    node::{Discovered, DiscoveredOverlay},
};
use bulkhead_ebpf::abi::{Direction, Mode};
use proptest::prelude::*;

/// When policies are compiled: 2026-01-01, before some rules end.
pub(crate) const NOW: u64 = 1_767_225_600_000_000_000;
/// Later: some have ended.
const LATER: u64 = 1_800_000_000_000_000_000;
/// Namespaces; the last one is never labelled before something happens.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
/// Documents of Intents and Guards, any of which may be there.
pub(crate) const DOCUMENTS: [&str; 6] = [
    "apiVersion: bulkhead/v1
kind: Intent
namespace: a
dns: cluster
external: { far: { cidrs: [198.51.100.0/24], except: [198.51.100.13/32] } }
services:
  web:
    accepts: [world:443, b/db:any]
    calls: [db:http, far:443]
  db: {}
",
    "apiVersion: bulkhead/v1
kind: Intent
namespace: b
services:
  db:
    accepts: [a/web:http, node:any]
    calls: [cluster:metrics]
    isolate: audit
",
    "apiVersion: bulkhead/v1
kind: Guard
name: tenants
priority: 100
for: { namespaces: { tenant: any } }
compare: tenant
rules:
  - pass: { from: [node, world] }
  - deny: { from: other }
  - deny: { to: other, ports: [22] }
",
    "apiVersion: bulkhead/v1
kind: Guard
name: late
priority: 5
for: { workloads: { app: db } }
external: { far: { cidrs: [203.0.113.0/24] } }
rules:
  - allow: { from: far, ports: [5432], expires: 2026-12-01T04:00:00Z }
  - deny: { to: metadata }
",
    "apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: { name: top }
spec:
  priority: 7
  subject: { namespaces: { matchLabels: { tenant: t1 } } }
  ingress:
    - { name: i, action: Deny, from: [{ namespaces: { matchLabels: { tenant: t0 } } }], ports: [{ namedPort: http }] }
  egress:
    - { name: e, action: Allow, to: [{ namespaces: {} }], ports: [{ namedPort: metrics }] }
    - { name: zone, action: Deny, to: [{ nodes: { matchLabels: { zone: z1 } } }] }
",
    "apiVersion: bulkhead/v1
kind: Guard
name: many
priority: 1
for: { workloads: { tier: odd } }
rules:
  - allow: { from: world, ports: [1], expires: 2026-12-01T01:00:00Z }
  - allow: { from: world, ports: [2], expires: 2026-12-01T02:00:00Z }
  - allow: { from: world, ports: [3], expires: 2026-12-01T03:00:00Z }
  - allow: { from: world, ports: [4], expires: 2026-12-01T04:00:00Z }
  - allow: { from: world, ports: [5], expires: 2026-12-01T05:00:00Z }
  - allow: { from: world, ports: [6], expires: 2026-12-01T06:00:00Z }
  - allow: { from: world, ports: [7], expires: 2026-12-01T07:00:00Z }
  - allow: { from: world, ports: [8], expires: 2026-12-01T08:00:00Z }
",
];

/// Something happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Workload(WorkloadName, Workload),
    NoWorkload(WorkloadName),
    Policy(NetworkPolicy),
    NoPolicy(ServiceName),
    Labels(String, Option<Labels>),
    Service(ServiceName, Frontend),
    NoService(ServiceName),
    /// Other documents, another network or another time.
    Replace {
        documents: BTreeSet<usize>,
        devices: bool,
        later: bool,
    },
}

/// What a cluster is described by.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) workloads: Workloads,
    policies: BTreeMap<ServiceName, NetworkPolicy>,
    documents: Vec<Policy>,
    pub(crate) discovered: Discovered,
    pub(crate) now: u64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let mut workloads = Workloads { service_label: "app".to_owned(), ..Workloads::default() };
        workloads.resolvers = [address("10.96.0.10"), address("10.0.1.9")].into();
        // Two nodes list the same prefix, so that it binds to none of them.
        let nodes = [
            ("n0", "192.0.2.10", &["10.0.0.0/24", "2001:db8::/64"][..], &["172.16.0.0/24"][..]),
            ("n1", "192.0.2.11", &["10.0.1.0/24", "10.0.9.0/24"], &["172.16.1.0/24"]),
            ("n2", "192.0.2.12", &["10.0.2.0/24", "10.0.9.0/24"], &[]),
        ];
        for (at, (name, vtep, first, second)) in nodes.into_iter().enumerate() {
            let segment = |vni, prefixes: &[&str]| NodeSegment {
                vni,
                vtep: address(vtep),
                port: None,
                prefixes: prefixes.iter().map(|net| net.parse().unwrap()).collect(),
            };
            let all = [segment(1, first), segment(2, second)];
            let node = Node {
                place: place(),
                labels: labels(&[("zone", &format!("z{at}"))]),
                addresses: [address(vtep)].into(),
                segments: all.into_iter().filter(|segment| !segment.prefixes.is_empty()).collect(),
            };
            workloads.nodes.insert(name.to_owned(), Arc::new(node));
        }
        for (at, namespace) in NAMESPACES[..2].iter().enumerate() {
            let own = labels(&[("tenant", &format!("t{at}")), (NAMESPACE_NAME, namespace)]);
            workloads.namespaces.insert((*namespace).to_owned(), own);
        }
        let discovered = Discovered::default();
        Self { workloads, policies: BTreeMap::new(), documents: Vec::new(), discovered, now: NOW }
    }

    pub(crate) fn model(&self) -> Result<Model, Diagnostics> {
        let network = self.policies.values().cloned().map(Policy::Network);
        let policies: Vec<_> = self.documents.iter().cloned().chain(network).collect();
        Model::build(&policies, &self.workloads)
    }

    /// Whether rules depend on the services of resolvers.
    pub(crate) fn asks_dns(&self) -> bool {
        self.documents.iter().any(|document| matches!(document, Policy::Intent(intent) if intent.dns.is_some()))
    }

    pub(crate) fn compile(&self, model: &Model) -> Result<Desired, Diagnostics> {
        compile(model, "n0", &self.discovered, self.now)
    }

    pub(crate) fn compiler(&self) -> Compiler {
        let model = self.model().unwrap_or_else(|found| panic!("{found}"));
        Compiler::new(model, "n0", self.discovered.clone(), self.now).unwrap_or_else(|found| panic!("{found}"))
    }

    /// Has a compiler follow to a model of this cluster.
    pub(crate) fn follow(&self, compiler: &mut Compiler, model: Arc<Model>) -> Result<Extent, Diagnostics> {
        compiler.follow(model, &self.discovered, self.now, Misfits::None)
    }

    /// The same with an event.
    pub(crate) fn with(&self, event: &Event) -> Self {
        let mut with = self.clone();
        match event.clone() {
            Event::Workload(name, workload) => _ = with.workloads.workloads.insert(name, Arc::new(workload)),
            Event::NoWorkload(name) => _ = with.workloads.workloads.remove(&name),
            Event::Policy(policy) => _ = with.policies.insert(policy.name.clone(), policy),
            Event::NoPolicy(name) => _ = with.policies.remove(&name),
            Event::Labels(name, Some(labels)) => _ = with.workloads.namespaces.insert(name, labels),
            Event::Labels(name, None) => _ = with.workloads.namespaces.remove(&name),
            Event::Service(name, frontend) => _ = with.workloads.frontends.insert(name, frontend),
            Event::NoService(name) => _ = with.workloads.frontends.remove(&name),
            Event::Replace { documents, devices, later } => {
                with.documents = documents.into_iter().flat_map(read).collect();
                with.discovered = if devices { discovered() } else { Discovered::default() };
                with.now = if later { LATER } else { NOW };
            }
        }
        with
    }

    /// Tells a compiler of an event; `None` where there is nothing to tell, since the model refuses it.
    pub(crate) fn tell(&self, compiler: &mut Compiler, event: &Event) -> Option<Result<Change, Diagnostics>> {
        Some(match event.clone() {
            Event::Workload(name, workload) => compiler.upsert_workload(&name, &workload.into()),
            Event::NoWorkload(name) => compiler.remove_workload(&name),
            Event::Policy(policy) => compiler.upsert_network_policy(policy),
            Event::NoPolicy(name) => compiler.remove_network_policy(&name),
            Event::Labels(name, labels) => compiler.label_namespace(&name, labels),
            Event::Service(name, frontend) => compiler.upsert_service(&name, frontend),
            Event::NoService(name) => compiler.remove_service(&name),
            Event::Replace { .. } => {
                let with = self.with(event);
                compiler.replace(with.model().ok()?, with.discovered.clone(), with.now)
            }
        })
    }
}

/// Reads one of [`DOCUMENTS`].
fn read(at: usize) -> Vec<Policy> {
    let source = source(format!("d{at}.yaml"), DOCUMENTS[at]);
    if DOCUMENTS[at].starts_with("apiVersion: bulkhead") {
        return policy::parse(&source).unwrap_or_else(|found| panic!("{found}"));
    }
    let mut manifests = Manifests::default();
    manifests.read(&source).unwrap_or_else(|found| panic!("{found}"));
    manifests.policies
}

/// A device of another node's prefixes, of which the file contradicts some.
fn discovered() -> Discovered {
    let peers = vec![
        (address("192.0.2.11"), vec!["10.0.1.0/24".parse().unwrap(), "10.0.2.128/25".parse().unwrap()]),
        (address("192.0.2.77"), vec!["10.0.7.0/24".parse().unwrap(), "10.0.9.7/32".parse().unwrap()]),
    ];
    let overlay = DiscoveredOverlay {
        device: "vxlan.1".to_owned(),
        vni: 1,
        port: 8472,
        own: Some(address("192.0.2.10")),
        underlays: Vec::new(),
        peers,
    };
    Discovered {
        addresses: vec![address("192.0.2.10"), address("10.0.0.1")],
        overlays: vec![overlay],
        ..Discovered::default()
    }
}

fn text() -> Arc<Source> {
    source("test", "")
}

fn place() -> Place {
    Place::start(&text())
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(some: &[(&str, &str)]) -> Labels {
    some.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

/// A workload that listens at 8080 by the name of `http`.
pub(crate) fn workload(node: &str, app: &str, addresses: &[&str], link: &str) -> Workload {
    let endpoint = |addresses: &[&str]| Endpoint {
        segment: 1,
        addresses: addresses.iter().map(|text| address(text)).collect(),
        link: link.to_owned(),
        placeholder: false,
    };
    Workload {
        place: place(),
        labels: labels(&[("app", app)]).into(),
        node: node.into(),
        mode: Mode::Enforce,
        ports: Arc::new([("http".to_owned(), vec![(Transport::Tcp, 8080)])].into()),
        endpoints: vec![endpoint(addresses)],
        host: false,
        owner: None,
        uid: None,
    }
}

pub(crate) fn name(namespace: &str, name: &str) -> WorkloadName {
    WorkloadName::new(namespace.to_owned(), name.to_owned())
}

pub(crate) fn service(namespace: &str, name: &str) -> ServiceName {
    ServiceName::new(namespace.to_owned(), name.to_owned())
}

/// A policy of a namespace for all of its workloads, with these rules.
pub(crate) fn policy(
    name: &ServiceName,
    pods: Selector,
    rules: &[(Direction, Vec<Peer>, Vec<Ports>)],
) -> NetworkPolicy {
    let rule = |(at, (direction, peers, ports)): (usize, &(Direction, Vec<Peer>, Vec<Ports>))| Rule {
        name: format!("networkpolicy {name}: {direction:?}[{at}]"),
        place: place(),
        direction: *direction,
        peers: peers.clone(),
        ports: ports.clone(),
    };
    let isolates = |direction| rules.is_empty() || rules.iter().any(|rule| rule.0 == direction);
    NetworkPolicy {
        place: place(),
        pods,
        ingress: isolates(Direction::Ingress),
        egress: isolates(Direction::Egress),
        rules: rules.iter().enumerate().map(rule).collect(),
        name: name.clone(),
    }
}

pub(crate) fn frontend(addresses: &[&str], ports: Vec<FrontendPort>, workloads: BTreeSet<WorkloadName>) -> Frontend {
    Frontend {
        place: place(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        ports,
        workloads,
        outside: BTreeSet::new(),
        resolver: addresses.contains(&"10.96.0.10"),
    }
}

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(&NAMESPACES[..]).prop_map(str::to_owned)
}

fn workload_name() -> impl Strategy<Value = WorkloadName> {
    (namespace(), prop::sample::select(&["w0", "w1", "w2"][..])).prop_map(|(namespace, own)| name(&namespace, own))
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (namespace(), prop::sample::select(&["s0", "s1"][..])).prop_map(|(namespace, name)| service(&namespace, name))
}

/// Addresses in and outside of prefixes, some of several workloads, one of a resolver, one of a node.
const ADDRESSES: [&str; 12] = [
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.1.2",
    "10.0.1.9",
    "10.0.2.2",
    "10.0.9.7",
    "10.9.9.9",
    "198.51.100.13",
    "2001:db8::2",
    "2001:db8:1::2",
    "192.0.2.12",
];

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = prop_oneof![30 => 0..ADDRESSES.len() - 1, 1 => Just(ADDRESSES.len() - 1)];
    let addresses = prop::collection::vec(address.prop_map(address_of), 1..3);
    (prop_oneof![4 => Just(1), 1 => Just(2), 1 => Just(0)], addresses, prop::bool::weighted(0.1)).prop_map(
        |(segment, addresses, placeholder)| Endpoint { segment, addresses, link: "veth".to_owned(), placeholder },
    )
}

fn address_of(at: usize) -> IpAddr {
    address(ADDRESSES[at])
}

fn some_workload() -> impl Strategy<Value = Workload> {
    let port = |name: &'static str, number: u16| {
        prop::option::weighted(0.5, (prop::sample::select(vec![Transport::Tcp, Transport::Udp]), Just(number)))
            .prop_map(move |port| port.map(|port| (name.to_owned(), port)))
    };
    let ports = [port("http", 8080), port("http", 80), port("metrics", 9090)];
    let app = prop::option::weighted(0.9, prop::sample::select(&["web", "db"][..]));
    let tier = prop::option::weighted(0.3, prop::sample::select(&["even", "odd"][..]));
    let endpoints = prop_oneof![1 => Just(0..1_usize), 9 => Just(1..2_usize), 2 => Just(2..3_usize)];
    let endpoints = endpoints.prop_flat_map(|count| prop::collection::vec(endpoint(), count));
    (prop_oneof![3 => Just(0), 2 => Just(1), 1 => Just(2)], app, tier, ports, endpoints, prop::bool::weighted(0.05))
        .prop_map(|(node, app, tier, ports, endpoints, host)| {
            let mut names = PortNames::new();
            for (name, port) in ports.into_iter().flatten() {
                names.entry(name).or_default().push(port);
            }
            let app = app.map(|app| ("app", app));
            let tier = tier.map(|tier| ("tier", tier));
            Workload {
                place: place(),
                labels: labels(&app.into_iter().chain(tier).collect::<Vec<_>>()).into(),
                node: format!("n{node}").into(),
                mode: Mode::Enforce,
                ports: Arc::new(names),
                endpoints,
                host,
                owner: None,
                uid: None,
            }
        })
}

fn selector(label: &'static str, values: [&'static str; 2]) -> impl Strategy<Value = Selector> {
    let set = move || prop::sample::subsequence(values.to_vec(), 1..=2);
    let set = move || set().prop_map(|some| some.into_iter().map(str::to_owned).collect::<BTreeSet<_>>());
    let requirement = prop_oneof![
        4 => set().prop_map(move |values| Requirement::In(label.to_owned(), values)),
        1 => set().prop_map(move |values| Requirement::NotIn(label.to_owned(), values)),
        1 => Just(Requirement::Exists(label.to_owned())),
        1 => Just(Requirement::Missing(label.to_owned())),
    ];
    prop::collection::vec(requirement, 0..2).prop_map(|some| some.into_iter().collect())
}

fn cidrs() -> impl Strategy<Value = Cidrs> {
    const NETS: [&str; 8] = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "10.0.2.2/32",
        "198.51.100.0/24",
        "198.51.100.13/32",
        "::/0",
        "2001:db8::/32",
    ];
    let some = |range: std::ops::RangeInclusive<usize>| {
        prop::sample::subsequence(&NETS[..], range)
            .prop_map(|nets| nets.into_iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    };
    (some(1..=2), some(0..=2)).prop_map(|(cidrs, except)| Cidrs { cidrs, except })
}

fn peer() -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        2 => namespace().prop_map(Scope::Named),
        2 => selector("tenant", ["t0", "t1"]).prop_map(Scope::Labelled),
        1 => selector(NAMESPACE_NAME, ["a", "c"]).prop_map(Scope::Labelled),
    ];
    let entities = [Entity::Cluster, Entity::World, Entity::Node, Entity::Nodes, Entity::Metadata];
    prop_oneof![
        6 => (scope, selector("app", ["web", "db"]))
            .prop_map(|(namespaces, labels)| Peer::Workloads { namespaces, labels }),
        3 => cidrs().prop_map(Peer::Cidrs),
        1 => Just(Peer::Any),
        1 => prop::sample::select(entities.to_vec()).prop_map(Peer::Entity),
        1 => prop::sample::select(&["web", "db"][..]).prop_map(|name| Peer::Service(service("a", name))),
        1 => service_name().prop_map(Peer::Backends),
        1 => selector("zone", ["z0", "z1"]).prop_map(Peer::Nodes),
        1 => any::<bool>().prop_map(|other| Peer::Namespaces {
            label: "tenant".to_owned(),
            value: "t1".to_owned(),
            other,
        }),
    ]
}

fn ports() -> impl Strategy<Value = Vec<Ports>> {
    let one = prop_oneof![
        2 => Just(Ports::Any),
        2 => (1..4_u16).prop_map(|port| Ports::one(Transport::Tcp, port)),
        3 => prop::sample::select(&["http", "metrics"][..]).prop_map(Ports::named),
        1 => Just(Ports::Named { name: "http".to_owned(), transport: Some(Transport::Udp) }),
    ];
    // More than one port table has, and more than all that it may go on in.
    let many = |last: u16| (1..last).step_by(2).map(|port| Ports::one(Transport::Tcp, port)).collect::<Vec<_>>();
    prop_oneof![80 => prop::collection::vec(one, 1..3), 1 => Just(many(60)), 1 => Just(many(1600))]
}

fn some_policy() -> impl Strategy<Value = NetworkPolicy> {
    let direction = prop::sample::select(vec![Direction::Ingress, Direction::Egress]);
    let rule = (direction, prop::collection::vec(peer(), 1..3), ports());
    (service_name(), selector("app", ["web", "db"]), prop::collection::vec(rule, 0..3))
        .prop_map(|(name, pods, rules)| policy(&name, pods, &rules))
}

fn some_frontend() -> impl Strategy<Value = Frontend> {
    let target = prop_oneof![Just(Target::Number(8080)), Just(Target::Named("http".to_owned()))];
    let port = (any::<bool>(), prop::option::of(Just(30_080))).prop_flat_map(move |(udp, node_port)| {
        let transport = if udp { Transport::Udp } else { Transport::Tcp };
        target.clone().prop_map(move |target| FrontendPort { transport, port: 80, target, node_port })
    });
    let addresses = prop::sample::subsequence(&["10.96.0.1", "10.96.0.2", "10.96.0.10", "2001:db8:96::1"][..], 1..=2);
    let backends = prop::collection::btree_set(workload_name(), 0..4);
    // A pod in its node's network has names for ports, who is outside has none, and who is in a slice listens where that says, whoever has the address.
    let named = Listens::Named(Arc::new(PortNames::from([("http".to_owned(), vec![(Transport::Tcp, 9100)])])));
    let at = Listens::At(Arc::new([((Transport::Tcp, 80), 9200)].into()));
    let outside = prop_oneof![
        Just(Outside::from(address("192.0.2.12"))),
        Just(Outside { address: address("192.0.2.12"), listens: named }),
        prop::sample::select(vec!["203.0.113.5", "10.0.0.2", "10.0.1.2", "192.0.2.12"])
            .prop_map(move |text| Outside { address: address(text), listens: at.clone() }),
    ];
    let outside = prop::option::weighted(0.3, outside);
    (addresses, prop::collection::vec(port, 1..3), backends, outside).prop_map(
        |(addresses, ports, workloads, outside)| Frontend {
            outside: outside.into_iter().collect(),
            ..frontend(&addresses, ports, workloads)
        },
    )
}

/// Anything.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    let tenant = prop::option::of(prop::sample::select(&["t0", "t1"][..]));
    let documents = prop::sample::subsequence((0..DOCUMENTS.len()).collect::<Vec<_>>(), 0..=DOCUMENTS.len());
    prop_oneof![
        12 => (workload_name(), some_workload()).prop_map(|(name, workload)| Event::Workload(name, workload)),
        3 => workload_name().prop_map(Event::NoWorkload),
        8 => some_policy().prop_map(Event::Policy),
        3 => service_name().prop_map(Event::NoPolicy),
        3 => (namespace(), tenant).prop_map(|(name, tenant)| {
            let own = tenant.map(|tenant| labels(&[("tenant", tenant), (NAMESPACE_NAME, &name)]));
            Event::Labels(name, own)
        }),
        3 => (service_name(), some_frontend()).prop_map(|(name, frontend)| Event::Service(name, frontend)),
        1 => service_name().prop_map(Event::NoService),
        2 => (documents, any::<bool>(), any::<bool>()).prop_map(|(documents, devices, later)| Event::Replace {
            documents: documents.into_iter().collect(),
            devices,
            later,
        }),
    ]
}
