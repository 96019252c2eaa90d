//! What several tests need.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bulkhead_controller::{
    agent::{Agent, Settings, StartError},
    input::Locations,
    store::Reader,
};
use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    memory::{Links, MemoryNode, MemoryStore},
    node::{ContactRecord, Contacts, Discovered, FlowRecord, Node, NodeError, Published, Reading, Rehearsal, Status},
};
use bulkhead_ebpf::reason::Reason;
use tempfile::TempDir;

pub(crate) const INTENT: &str = "apiVersion: bulkhead/v1
kind: Intent
namespace: shop
external: { stripe: { cidrs: [198.51.100.0/24] } }
services:
  web: { calls: [db:5432] }
  db: {}
";

pub(crate) const WORKLOADS: &str = "apiVersion: bulkhead/v1
kind: Workloads
nodes: [{ name: n1, addresses: [192.0.2.1] }]
workloads:
  - { name: web-1, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ addresses: [10.0.0.1], link: veth-web }] }
  - { name: db-1, namespace: shop, labels: { app: db }, node: n1, endpoints: [{ addresses: [10.0.0.2], link: veth-db }] }
";

/// Files, tables and links of a node, which outlive its agents.
pub(crate) struct Home {
    pub(crate) directory: TempDir,
    pub(crate) store: MemoryStore,
    pub(crate) links: Links,
}

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self { directory: TempDir::new().unwrap(), store: MemoryStore::default(), links: Links::default() };
        for directory in ["policies", "state"] {
            fs::create_dir(home.path(directory)).unwrap();
        }
        home.write("policies/shop.yaml", INTENT);
        home.write("workloads.yaml", WORKLOADS);
        home
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn locations(&self) -> Locations {
        Locations { policies: self.path("policies"), workloads: self.path("workloads.yaml") }
    }

    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.path("state")
    }

    pub(crate) fn start(&self) -> Result<Agent<MemoryNode>, StartError> {
        Agent::start(self.node()?, self.settings())
    }

    pub(crate) fn node(&self) -> Result<MemoryNode, NodeError> {
        MemoryNode::open(self.store.clone(), self.links.clone(), &self.state())
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings { locations: self.locations(), node: "n1".to_owned(), state: self.state(), observe: false }
    }

    pub(crate) fn agent(&self) -> Agent<MemoryNode> {
        self.start().unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn attached(&self) -> Vec<String> {
        self.links.network().attached.keys().cloned().collect()
    }
}

/// A node that remembers what it was asked last, and may take its time to be read.
pub(crate) struct Wrapped {
    pub(crate) node: MemoryNode,
    pub(crate) asked: Arc<Mutex<Desired>>,
    pub(crate) pause: Duration,
}

impl Wrapped {
    pub(crate) fn new(home: &Home) -> Self {
        Self { node: home.node().unwrap(), asked: Arc::default(), pause: Duration::ZERO }
    }
}

impl Node for Wrapped {
    fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        desired.clone_into(&mut self.asked.lock().unwrap());
        self.node.publish(desired)
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        self.node.rehearse(desired)
    }

    fn discover(&mut self) -> Result<Discovered, NodeError> {
        self.node.discover()
    }

    fn counters(&mut self) -> Result<Vec<Reading>, NodeError> {
        thread::sleep(self.pause);
        self.node.counters()
    }

    fn flows(&mut self) -> Result<Vec<FlowRecord>, NodeError> {
        self.node.flows()
    }

    fn contacts(&mut self) -> Result<Contacts, NodeError> {
        self.node.contacts()
    }

    fn status(&mut self) -> Result<Status, NodeError> {
        self.node.status()
    }
}

/// Number of the revision that is in force according to a state directory.
pub(crate) fn stored(state: &Path) -> Option<u64> {
    let reader = Reader::open(state).unwrap()?;
    reader.in_force().unwrap().map(|revision| revision.head.number)
}

/// Value of a metric with these labels, in any order of them.
pub(crate) fn value(text: &str, metric: &str, labels: &[&str]) -> Option<u64> {
    let line = text.lines().find(|line| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

pub(crate) fn endpoint(workload: &str) -> EndpointName {
    EndpointName { namespace: "shop".to_owned(), workload: workload.to_owned(), index: 0 }
}

pub(crate) fn reading(workload: &str, direction: &'static str, reason: Reason, rule: &str, packets: u64) -> Reading {
    let service = workload.trim_end_matches("-1").to_owned();
    let (endpoint, rule) = (Some(endpoint(workload)), rule.to_owned());
    Reading { endpoint, service, direction, reason, rule, packets, bytes: 100 * packets, flows: 1 }
}

pub(crate) fn flow(workload: &str, remote: &str, remote_port: u16, packets: [u64; 2], first: u64) -> FlowRecord {
    FlowRecord {
        endpoint: endpoint(workload),
        direction: "egress",
        local: "10.0.0.1".parse().unwrap(),
        remote: remote.parse().unwrap(),
        protocol: 6,
        local_port: 40000,
        remote_port,
        rule: "shop: web calls db:5432/tcp".to_owned(),
        reason: Reason::Rule,
        packets,
        bytes: packets.map(|packets| 100 * packets),
        first,
        last: first + 5_000_000_000,
        current: true,
    }
}

pub(crate) fn contact(
    workload: &str,
    direction: &'static str,
    peer: &str,
    port: u16,
    packets: u64,
    first: u64,
) -> ContactRecord {
    ContactRecord {
        observed: false,
        would_pass: false,
        endpoint: Some(endpoint(workload)),
        direction,
        peer: peer.parse().unwrap(),
        protocol: 6,
        port,
        reason: Reason::Isolated,
        rule: format!("shop/{} isolated {direction}", workload.trim_end_matches("-1")),
        packets,
        bytes: 100 * packets,
        first,
        last: first,
        inner: None,
    }
}
