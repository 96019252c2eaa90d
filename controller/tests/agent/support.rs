//! What several tests need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use bulkhead_controller::{
    agent::Agent,
    control::{Control as _, Report},
    diagnostic::source,
    model::Model,
    peers::Peers,
    policy,
    store::Reader,
    workloads,
};
use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    memory::MemoryNode,
    node::{
        ContactRecord, Contacts, Containers, Discovered, FlowRecord, MarkConflicts, Node, NodeError, Observer,
        Published, Reading, Rehearsal, Status,
    },
};
use bulkhead_ebpf::reason::Reason;

pub(crate) use crate::home::{Home, INTENT, WORKLOADS};

/// A node that remembers what it was asked last.
pub(crate) struct Wrapped {
    pub(crate) node: MemoryNode,
    pub(crate) asked: Arc<Mutex<Desired>>,
    pub(crate) held: BTreeSet<String>,
    /// Links that were held at each publish.
    pub(crate) shut: Arc<Mutex<Vec<BTreeSet<String>>>>,
    /// Whoever reads its status from another thread panics.
    pub(crate) deadly: bool,
}

/// See [`Wrapped::deadly`].
struct Deadly(Box<dyn Observer>);

impl Observer for Deadly {
    fn counters(&self) -> Result<Vec<Reading>, NodeError> {
        self.0.counters()
    }

    fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
        self.0.flows()
    }

    fn contacts(&self) -> Result<Contacts, NodeError> {
        self.0.contacts()
    }

    fn status(&self) -> Result<Status, NodeError> {
        panic!("as the test wants it");
    }

    fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
        self.0.mark_conflicts()
    }
}

impl Wrapped {
    pub(crate) fn new(home: &Home) -> Self {
        let (node, asked, shut) = (home.node().unwrap(), Arc::default(), Arc::default());
        Self { node, asked, held: BTreeSet::new(), shut, deadly: false }
    }
}

impl Node for Wrapped {
    fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        desired.clone_into(&mut self.asked.lock().unwrap());
        self.shut.lock().unwrap().push(self.held.clone());
        self.node.publish(desired)
    }

    fn hold(&mut self, links: BTreeSet<String>) {
        self.held = links;
    }

    fn keep_shut(&mut self, links: BTreeSet<String>) {
        self.node.keep_shut(links);
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        self.node.rehearse(desired)
    }

    fn discover(&mut self) -> Result<Discovered, NodeError> {
        self.node.discover()
    }

    fn status(&mut self) -> Result<Status, NodeError> {
        self.node.status()
    }

    fn gone(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeSet<(String, u32)>, NodeError> {
        self.node.gone(links)
    }

    fn renamed(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeMap<(String, u32), String>, NodeError> {
        self.node.renamed(links)
    }

    fn containers(&mut self) -> Result<Containers, NodeError> {
        self.node.containers()
    }

    fn shut(&mut self, link: &str) -> Result<(), NodeError> {
        self.node.shut(link)
    }

    fn unshut(&mut self, link: &str) -> Result<(), NodeError> {
        self.node.unshut(link)
    }

    fn observer(&mut self) -> Result<Box<dyn Observer>, NodeError> {
        let observer = self.node.observer()?;
        Ok(if self.deadly { Box::new(Deadly(observer)) } else { observer })
    }
}

/// Keeps a result as a runtime does, of a container, the pod of the shop that it says and the pod's unique id.
pub(crate) fn keep_result(
    home: &Home,
    network: &str,
    (container, pod, uid): (&str, &str, &str),
    link: &str,
    address: &str,
) {
    let text = format!(
        r#"{{"kind":"cniCacheV1","containerId":"{container}","ifName":"eth0","networkName":"{network}","cniArgs":[
        ["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","{pod}"],["K8S_POD_UID","{uid}"]],"result":{{"interfaces":[{{"name":"{link}"}},
        {{"name":"eth0","sandbox":"/run/netns/x"}}],"ips":[{{"interface":1,"address":"{address}/24"}}]}}}}"#
    );
    fs::create_dir_all(home.path("cache/results")).unwrap();
    fs::write(home.path(&format!("cache/results/{network}-{container}-eth0")), text).unwrap();
}

/// Metrics of an agent, as they are served.
pub(crate) fn metrics<N: Node>(agent: &mut Agent<N>) -> String {
    let (health, peers) = (agent.health(), agent.peers());
    agent.accounts().metrics(health, &peers.make()).unwrap()
}

/// What an agent says of itself, as it is served.
pub(crate) fn report<N: Node>(agent: &mut Agent<N>) -> Report {
    let accounts = agent.accounts();
    agent.report(accounts.status().unwrap(), accounts.contacts().unwrap().unsent)
}

/// Number of the revision that is in force according to a state directory.
pub(crate) fn stored(state: &Path) -> Option<u64> {
    let reader = Reader::open(state).unwrap()?;
    reader.in_force().unwrap().map(|revision| revision.head.number)
}

/// Names for addresses of the shop.
pub(crate) fn peers() -> Peers {
    let workloads = workloads::parse(&source("w.yaml", WORKLOADS)).unwrap();
    let model = Model::build(&policy::parse(&source("shop.yaml", INTENT)).unwrap(), &workloads).unwrap();
    Peers::new(&model, "n1", &Discovered::default())
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
    Reading { endpoint, service, gone: None, direction, reason, rule, packets, bytes: 100 * packets, flows: 1 }
}

pub(crate) fn flow(workload: &str, remote: &str, remote_port: u16, packets: [u64; 2], first: u64) -> FlowRecord {
    FlowRecord {
        endpoint: endpoint(workload).into(),
        direction: "egress",
        local: "10.0.0.1".parse().unwrap(),
        remote: remote.parse().unwrap(),
        protocol: 6,
        local_port: 40000,
        remote_port,
        rule: "shop: web calls db:5432/tcp".into(),
        reason: Reason::Rule,
        packets,
        bytes: packets.map(|packets| 100 * packets),
        first,
        last: first + 5_000_000_000,
        current: true,
        direct: false,
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
        endpoint: Some(endpoint(workload).into()),
        direction,
        peer: peer.parse().unwrap(),
        protocol: 6,
        port,
        reason: Reason::Isolated,
        rule: format!("shop/{} isolated {direction}", workload.trim_end_matches("-1")).into(),
        packets,
        bytes: 100 * packets,
        first,
        last: first,
        inner: None,
    }
}
