//! The cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_topology::Netns;
use ipnetwork::IpNetwork;
use serde_json::json;

use crate::{
    control::Control,
    credentials::Credentials,
    groups,
    node::{Node, UPLINK},
    plan::{self, Backend, Plan, ProxyMode},
    programs::Programs,
    shared::Shared,
};

/// Names of what is outside of the cluster's namespaces begin with this and the number of the process that owns it, as `bulkhead-topology` has it.
const PREFIX: &str = "bh-";
const DNS: &str = include_str!("dns.yaml");

/// What a [`Cluster`] shall have. Made by [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    plan: Plan,
}

impl Builder {
    /// How many nodes; 2 unless said.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.plan.nodes = nodes;
        self
    }

    /// What translates Service addresses; iptables unless said.
    #[must_use]
    pub fn proxy(mut self, mode: ProxyMode) -> Self {
        self.plan.proxy = mode;
        self
    }

    /// Whether pods and Services have IPv6 addresses beside those of IPv4; not unless said.
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.plan.dual_stack = dual_stack;
        self
    }

    /// How flannel takes packets from node to node; by VXLAN unless said.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.plan.backend = backend;
        self
    }

    /// Which controllers run, as `--controllers` has it: `*,-NAME` leaves one out. All that run by default unless said.
    #[must_use]
    pub fn controllers(mut self, controllers: &'static str) -> Self {
        self.plan.controllers = controllers;
        self
    }

    /// Whose requests to the API server are written down, by the name of the user; see [`Cluster::requests`]. Nobody's unless said.
    #[must_use]
    pub fn audit(mut self, user: &'static str) -> Self {
        self.plan.audited = Some(user);
        self
    }

    /// Starts it. On return the nodes are ready, and names of Services are resolved.
    ///
    /// # Errors
    /// Something is missing or does not start; the message has the end of its log. Nothing is left then.
    pub fn start(self) -> Result<Cluster> {
        ensure!((1..=9).contains(&self.plan.nodes), "{} nodes: a cluster has 1 to 9", self.plan.nodes);
        sweep();
        let directory = Directory::new()?;
        let programs = Programs::find()?;
        let credentials = Credentials::make(directory.0.join("credentials"), self.plan)?;
        let shared = Shared {
            name: directory.name().to_owned(),
            directory: directory.0.clone(),
            programs,
            credentials,
            plan: self.plan,
        };
        let control = Control::start(&shared)?;
        let mut cluster = Cluster { nodes: Vec::new(), control, shared, _directory: directory };
        cluster.register((1..=self.plan.nodes).map(|number| (number, self.plan.pods_of(number))))?;
        let (shared, control) = (&cluster.shared, &cluster.control);
        cluster.nodes = thread::scope(|scope| {
            let starts: Vec<_> =
                (1..=self.plan.nodes).map(|number| scope.spawn(move || Node::start(shared, control, number))).collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
                .collect::<Result<_>>()
        })?;
        cluster.apply(DNS)?;
        cluster.wait_ready()?;
        Ok(cluster)
    }
}

/// A running cluster. Dropped, it ends with all that it started.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they go.
    nodes: Vec<Node>,
    control: Control,
    shared: Shared,
    _directory: Directory,
}

impl Cluster {
    /// Starts with two nodes, iptables, IPv4 and VXLAN.
    #[must_use]
    pub fn builder() -> Builder {
        let plan = Plan {
            nodes: 2,
            proxy: ProxyMode::Iptables,
            dual_stack: false,
            backend: Backend::Vxlan,
            controllers: "*",
            audited: None,
        };
        Builder { plan }
    }

    /// What the names of all its control groups and its directory begin with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its directory: state and logs of all programs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// What a client with all rights reads. It is good in the namespaces of the control plane and of the nodes.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.shared.credentials.kubeconfig("admin")
    }

    /// A built program, as `e2e.test`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.shared.programs.program(name)
    }

    /// Where helm is built: beside the directory of these programs.
    #[must_use]
    pub fn helm(&self) -> PathBuf {
        self.program("").with_file_name("helm").join("helm")
    }

    /// The namespace of the API server, from where all nodes are reached.
    #[must_use]
    pub fn control_plane(&self) -> &Netns {
        &self.control.netns
    }

    /// All nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this index.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The same, to stop and start what runs there.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// What kubectl printed.
    ///
    /// # Errors
    /// It failed; the error has what it printed.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.shared.kubectl(&self.control.netns, words, "")
    }

    /// Requests of the user of [`Builder::audit`] so far, each as verb and path.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn requests(&self) -> Result<Vec<(String, String)>> {
        let text = match fs::read_to_string(Control::requests(&self.shared)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let request = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line)?;
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            Ok((text("verb"), text("requestURI")))
        };
        // The last line may not be whole yet.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(request).collect()
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// The API server refuses them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.shared.kubectl(&self.control.netns, &["apply", "--filename=-"], yaml)
    }

    /// Brings the images of an archive onto all nodes.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.import(archive))
    }

    /// The last lines of the logs of all its programs, for the message of a test that fails.
    #[must_use]
    pub fn logs(&self) -> String {
        self.shared.logs()
    }

    /// Kills the API server. Nodes, pods and kube-proxy's rules stay.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.control.stop_api()
    }

    /// Starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.control.start_api(&self.shared)
    }

    /// Drops every packet between a node and the API server from now on, in both directions and without a word: connections that are open hang.
    ///
    /// # Errors
    /// nft refuses it.
    pub fn part(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        let control = plan::control();
        // What a node sends is dropped where it arrives: a sender whose own node dropped it would hear of that.
        drop_arriving(&self.control.netns, &node.name, &format!("ip saddr {} ip daddr {control}", node.address))?;
        drop_arriving(&node.netns, UPLINK, &format!("ip saddr {control}"))
    }

    /// Lets them pass again.
    ///
    /// # Errors
    /// nft refuses it.
    pub fn join(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        nft(&self.control.netns, &format!("delete table netdev {}", table(&node.name)))?;
        nft(&node.netns, &format!("delete table netdev {}", table(UPLINK)))
    }

    /// Waits until all nodes and CoreDNS are ready.
    ///
    /// # Errors
    /// A program has ended, or they are not in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let (shared, netns, nodes) = (&self.shared, self.control.netns.clone(), &mut self.nodes);
        let control = &mut self.control;
        let mut said = String::new();
        shared
            .eventually("nodes and CoreDNS are ready", || {
                control.check()?;
                nodes.iter_mut().try_for_each(Node::check)?;
                let readiness = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{.status.readyReplicas} {end}";
                said = shared.kubectl(
                    &netns,
                    &["get", "nodes,deployments", "--all-namespaces", "--output", readiness],
                    "",
                )?;
                let ready = said.split_whitespace().filter(|word| matches!(*word, "True" | "1")).count();
                Ok(ready == nodes.len() + 1 && nodes.iter().all(Node::has_subnet))
            })
            .with_context(|| format!("what is ready: {said}"))
    }

    /// Says which nodes there will be, and which pods' addresses each has: flanneld asks for them when it starts, and nobody has to wait for the others.
    fn register(&self, nodes: impl Iterator<Item = (u8, Vec<IpNetwork>)>) -> Result<()> {
        let nodes: Vec<_> = nodes
            .map(|(number, pods)| {
                json!({
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": { "name": format!("n{number}") },
                    "spec": { "podCIDR": pods[0], "podCIDRs": pods },
                })
            })
            .collect();
        self.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": nodes }).to_string()).map(drop)
    }

    /// Takes the last node out: the machine is gone with its disk, and nobody in the cluster knows of it any more.
    ///
    /// # Errors
    /// The API server or the disk refuses.
    pub fn remove_last_node(&mut self) -> Result<()> {
        let node = self.nodes.pop().context("a cluster without nodes")?;
        let (name, directory) = (node.name.clone(), node.directory().to_owned());
        drop(node);
        // Its namespace goes with its link when the kernel finds the time, and the next node needs the name.
        let gone = || Ok(!self.control.netns.command("ip").args(["link", "show", &name]).output()?.status.success());
        let _ = self.control.netns.command("ip").args(["link", "delete", &name]).output()?;
        self.shared.eventually("its link is gone", gone)?;
        fs::remove_dir_all(directory)?;
        self.kubectl(&["delete", "node", &name]).map(drop)
    }

    /// Adds a node behind the others, as a new machine with a range of pods' addresses, and waits until it is ready. For a cluster of one family.
    ///
    /// # Errors
    /// It is not ready in time, or the cluster has two.
    pub fn add_node(&mut self, pods: IpNetwork) -> Result<()> {
        ensure!(!self.shared.plan.dual_stack, "one range for two families");
        let number = u8::try_from(self.nodes.len() + 1)?;
        self.register([(number, vec![pods])].into_iter())?;
        self.nodes.push(Node::start(&self.shared, &self.control, number)?);
        self.wait_ready()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once; then they are waited for one by one.
        self.nodes.iter_mut().for_each(Node::end);
        self.control.end();
    }
}

/// Of what is dropped that arrives on a link.
fn table(link: &str) -> String {
    format!("parted_{link}")
}

fn drop_arriving(netns: &Netns, link: &str, matches: &str) -> Result<()> {
    let hook = format!("type filter hook ingress device {link} priority 0;");
    nft(netns, &format!("table netdev {} {{ chain arriving {{ {hook} {matches} drop; }}; }}", table(link)))
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let output = netns.command("nft").arg(rules).output().context("start nft")?;
    ensure!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A directory that goes with its owner.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let name = format!("{PREFIX}{}-{:06x}", std::process::id(), fastrand::u32(..1 << 24));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bulkhead-cluster: remove {}: {error}", self.0.display());
        }
    }
}

/// Removes what owners left who were killed: their processes ended with them. A cluster that starts does it too.
pub fn sweep() {
    bulkhead_topology::sweep();
    let orphaned = |name: &str| {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    groups::sweep(orphaned);
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(orphaned) {
            // What somebody still uses goes with the next one.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
