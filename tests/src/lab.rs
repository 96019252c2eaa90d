//! The lab.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use bulkhead_controller::{compile::compile, diagnostic, model::Model, policy, workloads};
use bulkhead_dataplane::{
    desired::{Desired, Manner},
    kernel::{KernelNode, Options},
    node::{Node as _, NodeError, Published, Reading},
};
use bulkhead_topology::{Builder, Topology};
use tempfile::TempDir;

use crate::Service;

/// What a workload of the topology is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Namespace.
    pub namespace: String,
    /// Labels; `app` names the service.
    pub labels: BTreeMap<String, String>,
    /// Named ports, as the workloads file writes them: `8080/tcp`.
    pub ports: BTreeMap<String, String>,
    /// Whether the workloads file knows it.
    pub listed: bool,
    /// Mode, as the workloads file writes it.
    pub mode: String,
}

/// A guarded topology. Dropping it detaches what was attached, removes pins and namespaces.
pub struct Lab {
    guards: Vec<Option<KernelNode>>,
    /// The network.
    pub topology: Topology,
    /// What each workload is; by default its name without a number at the end, in namespace `shop`.
    pub roles: BTreeMap<String, Role>,
    /// Workloads that a container runtime makes: on which node, and their addresses where the file says them.
    pub contained: BTreeMap<String, (usize, Vec<IpAddr>)>,
    /// Addresses that nodes translate; see [`Lab::proxy`].
    pub services: Vec<Service>,
    /// Addresses of DNS resolvers.
    pub resolvers: Vec<IpAddr>,
    directory: TempDir,
    pins: PathBuf,
    /// How nodes are guarded: XDP modes and the like.
    pub options: fn(Options) -> Options,
    /// Whether nodes forward directly.
    pub direct: bool,
}

impl Lab {
    /// Builds the topology. Nothing is guarded yet.
    ///
    /// # Errors
    /// What the network or the disk refuses.
    pub fn new(builder: Builder) -> Result<Self> {
        let topology = builder.build()?;
        let directory = tempfile::Builder::new().prefix("bulkhead-lab-").tempdir()?;
        fs::create_dir(directory.path().join("policies"))?;
        let roles =
            topology.workloads().iter().map(|workload| (workload.name.clone(), Role::of(&workload.name))).collect();
        let pins = Path::new("/sys/fs/bpf").join(format!("bulkhead-lab-{}", topology.id()));
        let guards = topology.nodes().iter().map(|_| None).collect();
        let (services, resolvers, contained) = (Vec::new(), Vec::new(), BTreeMap::new());
        let options = |options| options;
        let direct = false;
        let lab = Self { guards, topology, roles, contained, services, resolvers, directory, pins, options, direct };
        lab.write_workloads()?;
        Ok(lab)
    }

    /// Directory of policies.
    #[must_use]
    pub fn policies(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    /// The workloads file.
    #[must_use]
    pub fn workloads_file(&self) -> PathBuf {
        self.directory.path().join("workloads.yaml")
    }

    /// Pins of a node.
    #[must_use]
    pub fn pins(&self, node: usize) -> PathBuf {
        self.pins.join(&self.topology.node(node).name)
    }

    /// State of a node.
    #[must_use]
    pub fn state(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("state-{node}"))
    }

    /// Socket of a node's agent.
    #[must_use]
    pub fn socket(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("api-{node}.sock"))
    }

    /// Socket of a node's agent for the CNI plugin, in a directory of its own: what runtimes tell is kept beside it.
    #[must_use]
    pub fn cni_socket(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("cni-{node}/cni.sock"))
    }

    /// Directory in which a runtime of a node would keep results.
    #[must_use]
    pub fn cni_cache(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("cache-{node}"))
    }

    /// Writes a policy file, as an editor does: all of it, then in place.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn policy(&self, file: &str, text: &str) -> Result<()> {
        replace(&self.policies().join(file), text)
    }

    /// Removes a policy file.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn remove_policy(&self, file: &str) -> Result<()> {
        fs::remove_file(self.policies().join(file)).with_context(|| format!("cannot remove {file}"))
    }

    /// Writes the workloads file anew, after roles or topology changed.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn write_workloads(&self) -> Result<()> {
        replace(&self.workloads_file(), &self.workloads_text()?)
    }

    fn workloads_text(&self) -> Result<String> {
        let mut text = String::from("apiVersion: bulkhead/v1\nkind: Workloads\n");
        writeln!(text, "resolvers: {}\nnodes:", list(&self.resolvers))?;
        for node in self.topology.nodes() {
            let underlay = &node.underlay;
            let mut addresses = vec![underlay.v4.to_string(), underlay.v6.to_string()];
            let mut segments = Vec::new();
            for overlay in node.overlays() {
                // A node answers pods of other nodes from its device's address, pods of its own from the gateway's.
                addresses.extend([overlay.address.to_string(), overlay.gateway.to_string()]);
                segments.push(format!(
                    "{{ vni: {}, vtep: '{}', port: {}, prefixes: ['{}'] }}",
                    overlay.vni, overlay.vtep, overlay.port, overlay.prefix
                ));
            }
            writeln!(
                text,
                "  - {{ name: {}, addresses: {}, segments: [{}] }}",
                node.name,
                list(&addresses),
                segments.join(", ")
            )?;
        }
        text.push_str("workloads:\n");
        for workload in self.topology.workloads() {
            let role = self.roles.get(&workload.name).cloned().unwrap_or_else(|| Role::of(&workload.name));
            if !role.listed {
                continue;
            }
            let node = self.topology.node_of(workload);
            writeln!(
                text,
                "  - {{ name: {}, namespace: {}, labels: {{ {} }}, node: {}, mode: {}, ports: {{ {} }}, \
                 endpoints: [{{ segment: {}, addresses: ['{}', '{}'], link: {} }}] }}",
                workload.name,
                role.namespace,
                pairs(&role.labels),
                node.name,
                role.mode,
                pairs(&role.ports),
                node.overlay4.vni,
                workload.v4,
                workload.v6,
                workload.link.name,
            )?;
        }
        for (name, (node, addresses)) in &self.contained {
            let (node, role) = (self.topology.node(*node), Role::of(name));
            let endpoint = format!("{{ segment: {}, addresses: {} }}", node.overlay4.vni, list(addresses));
            writeln!(
                text,
                "  - {{ name: {name}, namespace: {}, labels: {{ {} }}, node: {}, endpoints: [{}] }}",
                role.namespace,
                pairs(&role.labels),
                node.name,
                if addresses.is_empty() { "" } else { &endpoint },
            )?;
        }
        let services: Vec<_> = self.services.iter().filter(|service| service.listed).map(Service::entry).collect();
        writeln!(text, "services: [{}]", services.join(", "))?;
        Ok(text)
    }

    /// Compiles the files for a node.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn compile(&mut self, node: usize) -> Result<Desired> {
        let mut policies = Vec::new();
        let mut files: Vec<_> = fs::read_dir(self.policies())?.collect::<Result<_, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            let source = diagnostic::source(file.file_name().to_string_lossy(), fs::read_to_string(file.path())?);
            policies.extend(policy::parse(&source).map_err(|found| anyhow::anyhow!("{found}"))?);
        }
        let source = diagnostic::source("workloads.yaml", fs::read_to_string(self.workloads_file())?);
        let workloads = workloads::parse(&source).map_err(|found| anyhow::anyhow!("{found}"))?;
        let model = Model::build(&policies, &workloads).map_err(|found| anyhow::anyhow!("{found}"))?;
        let name = self.topology.node(node).name.clone();
        let discovered = self.with(node, KernelNode::discover)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let desired = compile(&model, &name, &discovered, now).map_err(|found| anyhow::anyhow!("{found}"))?;
        Ok(Desired { manner: Manner { direct: self.direct, ..desired.manner }, ..desired })
    }

    /// Publishes the files on every node. When it returns, they hold.
    ///
    /// # Errors
    /// What is wrong with the files, or what the kernel refuses.
    pub fn publish(&mut self) -> Result<Vec<Published>> {
        (0..self.topology.nodes().len()).map(|node| self.publish_on(node)).collect()
    }

    /// Publishes the files on one node.
    ///
    /// # Errors
    /// What is wrong with the files, or what the kernel refuses.
    pub fn publish_on(&mut self, node: usize) -> Result<Published> {
        let desired = self.compile(node)?;
        Ok(self.with(node, |guard| guard.publish(&desired))?)
    }

    /// Runs a call of the node half in the network namespace of its node.
    ///
    /// # Errors
    /// What the call returns.
    pub fn with<R: Send>(
        &mut self,
        node: usize,
        call: impl FnOnce(&mut KernelNode) -> Result<R, NodeError> + Send,
    ) -> Result<R, NodeError> {
        let (pins, state) = (self.pins(node), self.state(node));
        let options = self.options;
        let netns = self.topology.node(node).netns.clone();
        let guard = &mut self.guards[node];
        netns.run(move || {
            if guard.is_none() {
                *guard = Some(KernelNode::open(options(Options::new(&pins, &state)))?);
            }
            call(guard.as_mut().expect("opened above"))
        })
    }

    /// Forgets a node's guard in this process, as if the agent had died: everything pinned stays.
    pub fn forget(&mut self, node: usize) {
        self.guards[node] = None;
    }

    /// Exact counters of a node.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn counters(&mut self, node: usize) -> Result<Vec<Reading>> {
        Ok(self.with(node, |node| node.observer()?.counters())?)
    }

    /// Packets that a node counted under a reason; for one workload, or with `None` those of the node itself.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn packets(&mut self, node: usize, workload: Option<&str>, direction: &str, reason: &str) -> Result<u64> {
        let readings = self.counters(node)?;
        let fits = |reading: &&Reading| {
            reading.endpoint.as_ref().map(|endpoint| endpoint.workload.as_str()) == workload
                && reading.direction == direction
                && reading.reason.label() == reason
        };
        Ok(readings.iter().filter(fits).map(|reading| reading.packets).sum())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.guards.clear();
        for node in 0..self.topology.nodes().len() {
            let pins = self.pins(node);
            let netns = self.topology.node(node).netns.clone();
            if let Err(error) = netns.run(|| bulkhead_dataplane::kernel::detach(&pins)) {
                eprintln!("cannot detach {}: {error}", pins.display());
            }
        }
        // Only what `detach` could not remove is left in it, and it was told above.
        let _ = fs::remove_dir(&self.pins);
    }
}

impl Role {
    /// The default: namespace `shop`, service by the name without a number at its end (`web-2` is of `web`).
    #[must_use]
    pub fn of(name: &str) -> Self {
        let service = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        Self {
            namespace: "shop".into(),
            labels: BTreeMap::from([("app".into(), service.into())]),
            ports: BTreeMap::new(),
            listed: true,
            mode: "enforce".into(),
        }
    }
}

pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(|item| format!("'{}'", item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}: '{value}'")).collect::<Vec<_>>().join(", ")
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new~");
    fs::write(&beside, text)?;
    fs::rename(&beside, path).with_context(|| format!("cannot replace {}", path.display()))
}
