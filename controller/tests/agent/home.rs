//! A node in memory with its files, for the agent's tests and those of its API.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bulkhead_controller::{
    adopt::Scope,
    agent::{Agent, Settings, StartError},
    input::Locations,
};
use bulkhead_dataplane::{
    desired::Manner,
    memory::{Links, MemoryNode, MemoryStore},
    node::NodeError,
};
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
        Settings {
            source: Arc::new(self.locations()),
            node: "n1".to_owned(),
            state: self.state(),
            manner: Manner::default(),
            cni: None,
            scope: Scope::default(),
        }
    }

    pub(crate) fn agent(&self) -> Agent<MemoryNode> {
        self.start().unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn attached(&self) -> Vec<String> {
        self.links.network().attached.keys().cloned().collect()
    }
}

/// The bound is for a machine that hangs, not for one that is slow.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}
