//! What an event costs in writes to the tables: that of a pod does not grow with the cluster.

use std::{collections::BTreeSet, net::Ipv4Addr};

use bulkhead_controller::{
    compile::Compiler,
    labels::{Requirement, Selector},
    model::{Peer, Scope},
    ports::{Ports, Transport},
    workloads::{FrontendPort, Target, Workload, WorkloadName},
};
use bulkhead_dataplane::{
    memory::{Event as Happened, MemoryStore},
    node::Wire,
    publish::Publisher,
};
use bulkhead_ebpf::abi::Direction;

use crate::cluster::{Cluster, Event, frontend, name, policy, service, workload};

/// A compiler and the tables that it is published to.
struct Rig {
    cluster: Cluster,
    compiler: Compiler,
    publisher: Publisher<MemoryStore>,
    _directory: tempfile::TempDir,
}

impl Rig {
    /// A cluster with so many workloads on other nodes, and one here that some of them may call.
    fn new(others: u32) -> Self {
        let mut cluster = Cluster::new();
        let (local, described) = (name("a", "local"), workload("n0", "db", &["10.0.0.2"], "veth0"));
        cluster = cluster.with(&Event::Workload(local, described));
        for at in 0..others {
            let (name, described) = other(at);
            cluster.workloads.workloads.insert(name, std::sync::Arc::new(described));
        }
        let web: Selector = [Requirement::is("app", "web")].into_iter().collect();
        let peer = Peer::Workloads { namespaces: Scope::Named("a".to_owned()), labels: web };
        let rules = vec![(Direction::Ingress, vec![peer], vec![Ports::one(Transport::Tcp, 5432)])];
        cluster = cluster.with(&Event::Policy(policy(&service("a", "db"), Selector::everybody(), &rules)));
        let port = FrontendPort { transport: Transport::Tcp, port: 80, target: Target::Number(8080), node_port: None };
        let backends: BTreeSet<_> = [name("a", "w0"), name("a", "new")].into();
        cluster = cluster.with(&Event::Service(service("a", "web"), frontend(&["10.96.0.1"], vec![port], backends)));

        let directory = tempfile::tempdir().unwrap();
        let publisher = Publisher::open(MemoryStore::default(), directory.path()).unwrap();
        let compiler = cluster.compiler();
        let mut rig = Self { cluster, compiler, publisher, _directory: directory };
        rig.publish();
        rig
    }

    /// Writes that it took.
    fn publish(&mut self) -> usize {
        self.publisher.store().memory().journal = Some(Vec::new());
        let plan = self.publisher.prepare(self.compiler.desired(), &mut |_| Ok(Wire::to([2, 0, 0, 0, 0, 1]))).unwrap();
        self.publisher.commit(plan).unwrap();
        let journal = self.publisher.store().memory().journal.take().unwrap_or_default();
        journal.iter().filter(|happened| matches!(happened, Happened::Write { .. })).count()
    }

    fn tell(&mut self, event: &Event) -> usize {
        let told = self.cluster.tell(&mut self.compiler, event);
        told.unwrap().unwrap_or_else(|found| panic!("{found}"));
        self.cluster = self.cluster.with(event);
        self.publish()
    }
}

/// A workload of another node: every namespace has some that are `web`.
fn other(at: u32) -> (WorkloadName, Workload) {
    let address = Ipv4Addr::from_bits(0x0a40_0000 + at).to_string();
    let app = if at.is_multiple_of(2) { "web" } else { "db" };
    let namespace = ["a", "b", "c"][at as usize % 3];
    (name(namespace, &format!("w{at}")), workload("n1", app, &[&address], ""))
}

/// Writes for one more pod, for other labels of it, and for one less.
fn writes(others: u32) -> [usize; 3] {
    let mut rig = Rig::new(others);
    let pod = |app| Event::Workload(name("a", "new"), workload("n1", app, &["10.0.1.200"], ""));
    [pod("web"), pod("db"), Event::NoWorkload(name("a", "new"))].map(|event| rig.tell(&event))
}

#[test]
fn a_pod_costs_the_same_in_a_cluster_of_any_size() {
    let (small, large) = (writes(1_000), writes(10_000));
    assert_eq!(small, large);
    // Four for its address, and one for the one service port that it backs.
    assert!(small.into_iter().all(|count| count <= 5), "{small:?}");
}

#[test]
fn the_publisher_leaves_places_alone_that_are_empty() {
    let mut rig = Rig::new(10);
    for (at, app) in ["x", "y", "z"].into_iter().enumerate() {
        let labels = [Requirement::is("app", app)].into_iter().collect();
        let peer = Peer::Workloads { namespaces: Scope::Named("b".to_owned()), labels };
        let rules = vec![(Direction::Ingress, vec![peer], vec![Ports::Any])];
        rig.tell(&Event::Policy(policy(&service("a", &format!("p{at}")), Selector::everybody(), &rules)));
    }
    rig.tell(&Event::NoPolicy(service("a", "p1")));
    let selectors = &rig.compiler.desired().selectors;
    assert!(selectors.iter().any(String::is_empty), "{selectors:?}");
    let there = selectors.iter().filter(|text| !text.is_empty()).count();
    let usage = rig.publisher.usage().unwrap();
    let used = usage.iter().find(|table| table.table == "selectors").map(|table| table.used);
    assert_eq!(used, Some(there));
}
