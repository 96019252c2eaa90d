//! A cluster, with the plugin in its nodes' networks and an agent on each.
//!
//! For tests and benchmarks: what goes wrong is a panic.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use bulkhead_cluster::{Builder, Cluster, Daemon, available};
use bulkhead_fixtures::skip;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{bulkhead, http_get};

/// The image that a cluster has.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// For what must happen on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What a user applies.
pub const OBSERVE: &str = include_str!("../../controller/deploy/kubernetes/bulkhead.yaml");

/// Definitions of Intent and Guard, which a user applies before.
pub const DEFINITIONS: &str = include_str!("../../controller/deploy/kubernetes/crds.yaml");

/// Clusters are large, and mostly wait: two at a time.
const CLUSTERS: u32 = 2;
/// Room for them. Who came first goes first, so that one who wants all of it gets it.
static ROOM: Semaphore = Semaphore::const_new(CLUSTERS as usize);

/// How a cluster is guarded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// No other cluster runs beside it in this process: something is measured, or must be in time.
    pub alone: bool,
    /// As [`Guarded::direct`].
    pub direct: bool,
}

impl Way {
    /// With nobody beside it.
    pub const ALONE: Self = Self { alone: true, direct: false };
}

/// A guarded cluster.
pub struct Guarded {
    // In the order in which they go.
    agents: Vec<[Daemon; 2]>,
    /// What is guarded.
    pub cluster: Cluster,
    /// Whether agents that start have their nodes forward directly.
    pub direct: bool,
    _room: SemaphorePermit<'static>,
}

impl Guarded {
    /// Starts it; `None` for a test that is skipped.
    #[track_caller]
    pub fn start(builder: Builder) -> Option<Self> {
        Self::start_as(builder, Way::default())
    }

    /// The same in some way.
    #[track_caller]
    pub fn start_as(builder: Builder, way: Way) -> Option<Self> {
        let mut guarded = Self::bare(builder, way)?;
        guarded.cluster.apply(&rights()).unwrap();
        guarded.write_kubeconfig();
        (0..guarded.cluster.nodes().len()).for_each(|node| guarded.begin(node));
        for node in 0..guarded.agents.len() {
            guarded.wait_for_agent(node);
        }
        Some(guarded)
    }

    /// Installs on a node that was guarded, or on the one behind those that are, and starts its agent.
    fn begin(&mut self, node: usize) {
        self.install(node);
        let daemons = [self.agent(node), self.follower(node)];
        match self.agents.get_mut(node) {
            Some(before) => *before = daemons,
            None => self.agents.push(daemons),
        }
    }

    /// Takes the last node out of the cluster.
    pub fn remove_last_node(&mut self) {
        self.agents.pop();
        self.cluster.remove_last_node().unwrap();
    }

    /// Adds one with a range of pods' addresses.
    pub fn add_node(&mut self, pods: &str) {
        self.cluster.add_node(pods.parse().unwrap()).unwrap();
        self.guard(self.agents.len());
    }

    /// A cluster that nobody guards yet.
    #[track_caller]
    pub fn bare(builder: Builder, way: Way) -> Option<Self> {
        let missing = available().err();
        if !skip::programs() || !skip::require(missing.as_deref().unwrap_or_default(), missing.is_none()) {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let room = runtime.block_on(ROOM.acquire_many(if way.alone { CLUSTERS } else { 1 })).unwrap();
        Some(Self { agents: Vec::new(), cluster: builder.start().unwrap(), direct: way.direct, _room: room })
    }

    /// With the rights of the manifest and no others.
    fn write_kubeconfig(&self) {
        let token = self.cluster.kubectl(&["--namespace=bulkhead-system", "create", "token", "bulkhead"]).unwrap();
        let admin = fs::read(self.cluster.kubeconfig()).unwrap();
        let mut settings: Value = serde_json::from_slice(&admin).unwrap();
        settings["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
        // Where a pod's service account would be.
        settings["contexts"][0]["context"]["namespace"] = "bulkhead-system".into();
        fs::write(self.kubeconfig(), settings.to_string()).unwrap();
    }

    fn kubeconfig(&self) -> PathBuf {
        self.cluster.directory().join("bulkhead.kubeconfig")
    }

    fn state(&self, node: usize, name: &str) -> PathBuf {
        self.cluster.node(node).directory().join("bulkhead").join(name)
    }

    fn install(&self, node: usize) {
        let program = bulkhead().unwrap();
        let mut install = self.cluster.node(node).command(&program);
        install.args(["install", "--enforce", "--runtime", "containerd", "--no-units", "--timeout", "60", "--record"]);
        install.arg(self.state(node, "install")).arg("--program").arg(&program);
        let output = install.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn agent(&self, node: usize) -> Daemon {
        let node_of = self.cluster.node(node);
        let mut agent = node_of.command(bulkhead().unwrap());
        agent.args(["agent", "--source", "kubernetes", "--node", &node_of.name, "--kubeconfig"]).arg(self.kubeconfig());
        agent.arg("--state").arg(self.state(node, "state")).args(self.direct.then_some("--direct"));
        node_of.run_daemon("bulkhead-agent", agent).unwrap()
    }

    fn follower(&self, node: usize) -> Daemon {
        let node_of = self.cluster.node(node);
        let mut follow = node_of.command(bulkhead().unwrap());
        follow.arg("follow").arg("--record").arg(self.state(node, "install"));
        node_of.run_daemon("bulkhead-follow", follow).unwrap()
    }

    /// Kills the agent of a node at once, and starts another one.
    pub fn kill_agent(&mut self, node: usize) {
        self.kill_agent_without_source(node);
        self.wait_for_agent(node);
    }

    /// Kills the agent of a node at once. What is in force stays.
    pub fn end_agent(&mut self, node: usize) {
        self.agents[node][0].kill().unwrap();
    }

    /// The same while no source answers: it waits.
    pub fn kill_agent_without_source(&mut self, node: usize) {
        self.agents[node][0].kill().unwrap();
        self.agents[node][0] = self.agent(node);
    }

    /// Number of the process of a node's agent.
    pub fn agent_pid(&self, node: usize) -> Option<u32> {
        self.agents[node][0].pid()
    }

    /// Has the agent of a node, which must have ended, forget all that it knew.
    pub fn forget(&self, node: usize) {
        fs::remove_dir_all(self.state(node, "state")).unwrap();
    }

    /// Ends a node's programs and takes out of it all that was installed.
    pub fn unguard(&mut self, node: usize) {
        self.agents[node].iter_mut().for_each(|daemon| daemon.stop().unwrap());
        let mut uninstall = self.cluster.node(node).command(bulkhead().unwrap());
        uninstall.arg("uninstall").arg("--record").arg(self.state(node, "install"));
        let output = uninstall.arg("--state").arg(self.state(node, "state")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Installs, and has an agent guard what runs there.
    pub fn guard(&mut self, node: usize) {
        self.begin(node);
        self.wait_for_agent(node);
    }

    /// Waits until all agents answer.
    pub fn wait_for_agents(&mut self) {
        (0..self.agents.len()).for_each(|node| self.wait_for_agent(node));
    }

    fn wait_for_agent(&mut self, node: usize) {
        eventually("the agent answers", || {
            self.agents[node].iter_mut().for_each(|daemon| daemon.check().unwrap());
            self.metrics(node).is_some()
        });
    }

    /// What an agent counts, if it answers.
    pub fn metrics(&self, node: usize) -> Option<String> {
        let (status, page) = http_get(&self.cluster.node(node).netns, "/metrics").ok()?;
        (status == 200).then_some(page)
    }

    /// Sum of a metric's samples on a node whose labels have all of these texts. An agent that has very many pods to start answers late.
    pub fn metric(&self, node: usize, name: &str, labels: &[&str]) -> f64 {
        let mut page = None;
        eventually("the agent answers", || {
            page = self.metrics(node);
            page.is_some()
        });
        let page = page.expect("it answered");
        let of = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        page.lines().filter(of).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// How many programs are attached to links of a node and pinned.
    pub fn links(&self, node: usize) -> usize {
        let pins = self.cluster.node(node).file("/sys/fs/bpf/bulkhead");
        // Nothing is there where nothing is installed.
        let layouts = fs::read_dir(pins).into_iter().flatten().map(|layout| layout.unwrap().path().join("links"));
        layouts.filter_map(|links| fs::read_dir(links).ok()).map(Iterator::count).sum()
    }

    /// What the agent of a node wrote.
    pub fn log(&self, node: usize) -> String {
        self.agents[node][0].log()
    }

    /// What kubectl printed.
    #[track_caller]
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.cluster.kubectl(words).unwrap()
    }

    /// Applies manifests.
    #[track_caller]
    pub fn apply(&self, text: &str) {
        self.cluster.apply(text).unwrap();
    }

    /// Waits until pods of the shop are ready.
    #[track_caller]
    pub fn wait_for(&self, pods: &[&str]) {
        let names: Vec<_> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let words = ["--namespace=shop", "wait", "--for=condition=Ready", "--timeout=120s"];
        let names = names.iter().map(String::as_str);
        self.kubectl(&words.into_iter().chain(names).collect::<Vec<_>>());
    }

    /// Address of a pod of the shop.
    pub fn address(&self, pod: &str) -> String {
        self.kubectl(&["--namespace=shop", "get", "pod", pod, "--output=jsonpath={.status.podIP}"])
    }

    /// Whether a pod of the shop can open a TCP connection.
    pub fn connects(&self, pod: &str, to: &str) -> bool {
        self.connects_from("shop", pod, to)
    }

    /// Whether a pod of some namespace can.
    pub fn connects_from(&self, namespace: &str, pod: &str, to: &str) -> bool {
        let words = ["--namespace", namespace, "exec", pod, "--", "/agnhost", "connect", to, "--timeout=1s"];
        self.cluster.kubectl(&words).is_ok()
    }

    /// What is listed of something of the shop, each with a port.
    pub fn listed(&self, kind: &str, name: &str, path: &str, port: u16) -> Vec<String> {
        let listed = self.kubectl(&["--namespace=shop", "get", kind, name, &format!("--output=jsonpath={{{path}}}")]);
        let shown = |address: &str| match address.parse().unwrap() {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        listed.split(' ').map(shown).collect()
    }

    /// Waits until it can, or cannot.
    #[track_caller]
    pub fn becomes(&self, pod: &str, to: &str, connects: bool) {
        eventually(&format!("{pod} to {to}: {connects}"), || self.connects(pod, to) == connects);
    }
}

/// What the agent may ask, and who it is: of the manifest all but the agent itself.
fn rights() -> String {
    let documents = OBSERVE.split("\n---\n").filter(|document| !document.contains("kind: DaemonSet"));
    documents.collect::<Vec<_>>().join("\n---\n")
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A pod of the shop that serves HTTP on port 8080.
pub fn server(name: &str, node: &str) -> String {
    pod(name, node, r#"args: [netexec]"#)
}

/// A pod of the shop, by what its container does.
pub fn pod(name: &str, node: &str, does: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}\n\
         spec:\n  nodeName: {node}\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{ name: main, image: '{AGNHOST}', {does} }}\n---\n"
    )
}

/// The shop's namespace.
pub const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n---\n";
/// `db` is called by `web` on one port, and `guest` calls nobody.
pub const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ port: 8080 }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: guests, namespace: shop }
spec:
  podSelector: { matchExpressions: [{ key: app, operator: NotIn, values: [web, db] }] }
  policyTypes: [Egress]
";
