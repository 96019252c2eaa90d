//! The shop: who is where, the agents that guard it, and what the kernel says.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use bulkhead_controller::{diagnostic, model::Model, policy, workloads, workloads::WorkloadName};
use bulkhead_dataplane::{
    kernel::Reader,
    node::{ContactRecord, Reading},
};
use bulkhead_ebpf::reason::Reason;
use bulkhead_tests::{Agent, Lab, Role};
use bulkhead_topology::{Netns, Process, Topology, rtnl::Rtnl};
use ipnetwork::IpNetwork;

use crate::{serve, service, show, stop::Stop};

/// The policy that the demonstration applies.
pub(crate) const POLICY: &str = include_str!("../../../policy-examples/shop.yaml");
/// Its name, in the directory of policies and in every reason.
pub(crate) const POLICY_FILE: &str = "shop.yaml";

/// A container.
struct Member {
    name: &'static str,
    node: usize,
    namespace: &'static str,
    labels: &'static [(&'static str, &'static str)],
    port: Option<u16>,
}

/// As in policy-examples/shop-workloads.yaml.
const MEMBERS: [Member; 5] = [
    Member { name: "web", node: 0, namespace: "shop", labels: &[("app", "web")], port: Some(8443) },
    Member { name: "cart", node: 0, namespace: "shop", labels: &[("app", "cart")], port: Some(8080) },
    Member { name: "payments", node: 1, namespace: "shop", labels: &[("app", "payments")], port: Some(9090) },
    Member {
        name: "db",
        node: 1,
        namespace: "shop",
        labels: &[("app", "postgres"), ("tier", "data")],
        port: Some(5432),
    },
    Member { name: "backup", node: 1, namespace: "ops", labels: &[("app", "backup")], port: None },
];

/// Somebody on the Internet, which is the third host. The addresses are reserved for documentation.
struct Stranger {
    name: &'static str,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    port: Option<u16>,
}

const STRANGERS: [Stranger; 4] = [
    Stranger {
        name: "customer",
        v4: Ipv4Addr::new(203, 0, 113, 9),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 9),
        port: None,
    },
    Stranger {
        name: "stripe",
        v4: Ipv4Addr::new(198, 51, 100, 7),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 7),
        port: Some(443),
    },
    Stranger {
        name: "thief",
        v4: Ipv4Addr::new(203, 0, 113, 66),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0x66),
        port: Some(443),
    },
    // Where a cloud gives its machines their credentials.
    Stranger {
        name: "metadata",
        v4: Ipv4Addr::new(169, 254, 169, 254),
        v6: Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        port: Some(80),
    },
];

/// What the nodes route to the third host.
const INTERNET: [&str; 6] = [
    "203.0.113.0/24",
    "198.51.100.0/24",
    "169.254.169.254/32",
    "2001:db8:5::/48",
    "2001:db8:c::/48",
    "fd00:ec2::254/128",
];

/// How long agents may take. It is seconds, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// Somebody who calls or is called.
pub(crate) struct Party<'a> {
    pub(crate) netns: &'a Netns,
    /// IPv4 first.
    pub(crate) addresses: [IpAddr; 2],
    /// `None` outside the cluster.
    pub(crate) workload: Option<WorkloadName>,
}

/// Everything that stands. Dropped in this order.
pub(crate) struct Shop {
    agents: Vec<Agent>,
    servers: Vec<Process>,
    pub(crate) lab: Lab,
    pub(crate) stop: Stop,
    /// Of every process that was started.
    processes: Vec<u32>,
}

impl Shop {
    /// Builds the network and starts the containers' processes. Nothing is guarded yet.
    pub(crate) fn build(keep: bool, stop: Stop) -> Result<Self> {
        let mut builder = Topology::builder().nodes(2).keep(keep);
        for member in MEMBERS {
            builder = builder.workload(member.name, member.node);
        }
        let lab = Lab::new(builder)?;
        let mut shop = Self { agents: Vec::new(), servers: Vec::new(), lab, stop, processes: Vec::new() };
        for member in MEMBERS {
            let labels = member.labels.iter().map(|&(key, value)| (key.into(), value.into())).collect();
            let role = Role {
                namespace: member.namespace.into(),
                labels,
                ports: BTreeMap::new(),
                listed: true,
                mode: "enforce".into(),
            };
            shop.lab.roles.insert(member.name.into(), role);
        }
        shop.lab.services.push(service::entry());
        shop.lab.write_workloads()?;
        shop.connect_internet()?;
        service::install(&shop.lab)?;
        for (name, port) in servers() {
            shop.stop.check()?;
            let party = shop.party(name);
            let server = serve::start(party.netns, &party.addresses.map(|address| (address, port).into()))?;
            shop.processes.push(server.id());
            shop.servers.push(server);
        }
        Ok(shop)
    }

    /// The third host has the strangers' addresses, and there are routes both ways.
    fn connect_internet(&self) -> Result<()> {
        let topology = &self.lab.topology;
        let outsider = topology.outsider();
        let mut rtnl = Rtnl::open(&outsider.netns)?;
        let loopback = rtnl.link("lo")?.index;
        for stranger in &STRANGERS {
            rtnl.add_address(loopback, IpNetwork::from(IpAddr::V4(stranger.v4)))?;
            rtnl.add_address(loopback, IpNetwork::from(IpAddr::V6(stranger.v6)))?;
        }
        for node in topology.nodes() {
            for overlay in node.overlays() {
                rtnl.add_route(overlay.prefix, overlay.vtep, outsider.underlay.link.index, false)?;
            }
            let mut node_rtnl = Rtnl::open(&node.netns)?;
            for prefix in INTERNET {
                let prefix: IpNetwork = prefix.parse()?;
                let gateway = if prefix.is_ipv4() { outsider.underlay.v4.into() } else { outsider.underlay.v6.into() };
                node_rtnl.add_route(prefix, gateway, node.underlay.link.index, false)?;
            }
        }
        Ok(())
    }

    /// A container, a stranger, or the service address.
    ///
    /// # Panics
    /// If nobody has that name.
    pub(crate) fn party(&self, name: &str) -> Party<'_> {
        if let Some(stranger) = STRANGERS.iter().find(|stranger| stranger.name == name) {
            let netns = &self.lab.topology.outsider().netns;
            return Party { netns, addresses: [stranger.v4.into(), stranger.v6.into()], workload: None };
        }
        if name == service::NAME {
            let netns = &self.lab.topology.workload(service::BACKEND).netns;
            return Party { netns, addresses: service::ADDRESSES, workload: None };
        }
        let workload = self.lab.topology.workload(name);
        let namespace = self.lab.roles[name].namespace.clone();
        Party {
            netns: &workload.netns,
            addresses: workload.addresses(),
            workload: Some(WorkloadName::new(namespace, name.to_owned())),
        }
    }

    /// The policies in force, as the agents read them.
    pub(crate) fn model(&self) -> Result<Model> {
        let mut files = fs::read_dir(self.lab.policies())?.collect::<Result<Vec<_>, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        let mut policies = Vec::new();
        for file in files {
            let text = diagnostic::source(file.file_name().to_string_lossy(), fs::read_to_string(file.path())?);
            policies.extend(policy::parse(&text).map_err(|found| anyhow!("{found}"))?);
        }
        let workloads = diagnostic::source("workloads.yaml", fs::read_to_string(self.lab.workloads_file())?);
        let workloads = workloads::parse(&workloads).map_err(|found| anyhow!("{found}"))?;
        Model::build(&policies, &workloads).map_err(|found| anyhow!("{found}"))
    }

    /// Starts an agent on each node, at the same time, and waits until what the files say is in force.
    pub(crate) fn start_agents(&mut self) -> Result<()> {
        for node in 0..self.lab.topology.nodes().len() {
            let agent = Agent::spawn(&self.lab, node, &[])?;
            self.processes.push(agent.id());
            self.agents.push(agent);
        }
        self.agents.iter_mut().try_for_each(Agent::wait)
    }

    /// SIGKILL to all agents. Returns their process ids.
    pub(crate) fn kill_agents(&mut self) -> Result<Vec<u32>> {
        self.agents
            .drain(..)
            .map(|agent| {
                let id = agent.id();
                agent.kill().map(|()| id)
            })
            .collect()
    }

    /// The agent of a node.
    pub(crate) fn agent(&self, node: usize) -> &Agent {
        &self.agents[node]
    }

    /// Writes a policy file, and waits until every agent has noticed and put it in force.
    pub(crate) fn edit(&self, file: &str, text: &str) -> Result<()> {
        // An agent that is busy with what it was told before may not answer in time.
        let start = Instant::now();
        let revision = |agent: &Agent| agent.metric("bulkhead_revision", &[]).ok();
        let before: Vec<f64> = self.agents.iter().map(|agent| patiently(|| revision(agent))).collect::<Result<_>>()?;
        self.lab.policy(file, text)?;
        let noticed = |(agent, before): (&Agent, &f64)| revision(agent).is_some_and(|now| now > *before);
        while !self.agents.iter().zip(&before).all(noticed) {
            self.stop.check()?;
            ensure!(
                start.elapsed() < PATIENCE,
                "no new revision\n{}",
                self.agents.iter().map(Agent::log).collect::<String>()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Exact counters of a node, read from what is pinned: no agent is needed.
    pub(crate) fn counters(&self, node: usize) -> Result<Vec<Reading>> {
        let (pins, state) = (self.lab.pins(node), self.lab.state(node));
        Ok(self.lab.topology.node(node).netns.run(|| Reader::open(&pins, &state)?.counters())?)
    }

    /// Packets that a node counted with a reason: a workload's, or with `None` the node's own.
    pub(crate) fn packets(&self, node: usize, workload: Option<&str>, reason: Reason) -> Result<u64> {
        let of = |reading: &Reading| reading.endpoint.as_ref().map(|endpoint| endpoint.workload.clone());
        let readings = self.counters(node)?;
        let fits = readings.iter().filter(|reading| of(reading).as_deref() == workload && reading.reason == reason);
        Ok(fits.map(|reading| reading.packets).sum())
    }

    /// Samples of what a node denied or would deny, read from what is pinned.
    pub(crate) fn contacts(&self, node: usize) -> Result<Vec<ContactRecord>> {
        let (pins, state) = (self.lab.pins(node), self.lab.state(node));
        Ok(self.lab.topology.node(node).netns.run(|| Reader::open(&pins, &state)?.contacts())?.records)
    }

    /// What must be gone once the shop is.
    pub(crate) fn traces(&self) -> Traces {
        Traces {
            id: self.lab.topology.id().to_owned(),
            files: vec![self.lab.pins(0).parent().map(Path::to_owned).unwrap_or_default(), self.directory()],
            processes: self.processes.clone(),
        }
    }

    /// Where policies, workloads file and the agents' state are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.lab.policies().parent().map(Path::to_owned).unwrap_or_default()
    }

    /// Draws the network.
    pub(crate) fn draw(&self) {
        const INSIDE: usize = 30;
        let topology = &self.lab.topology;
        let column = |index: usize| {
            let node = topology.node(index);
            let mut lines: Vec<String> = Vec::new();
            for workload in topology.workloads().iter().filter(|workload| workload.node == index) {
                let port = servers().find(|(name, _)| *name == workload.name).map(|(_, port)| format!(":{port}"));
                lines.push(format!("{:<9}{}{}", workload.name, workload.v4, port.unwrap_or_default()));
            }
            lines.resize(MEMBERS.len().div_ceil(2), String::new());
            lines.push(format!("{} ── {}", node.bridge.name, node.overlay4.device.name));
            lines.push(format!("eth0     {}", node.underlay.v4));
            lines
        };
        let (left, right) = (column(0), column(1));
        let edge = "─".repeat(INSIDE + 2);
        let mut text = format!("┌{:─<w$}┐         ┌{:─<w$}┐\n", "─ node n1 ", "─ node n2 ", w = INSIDE + 2);
        for (index, (left, right)) in left.iter().zip(&right).enumerate() {
            // The tunnel joins the VXLAN devices.
            let between = if index + 2 == column(0).len() { "├─ VXLAN ─┤" } else { "│         │" };
            text.push_str(&format!("│ {left:<INSIDE$} {between} {right:<INSIDE$} │\n"));
        }
        let gap = INSIDE / 2;
        let (before, after) = ("─".repeat(gap), "─".repeat(INSIDE + 1 - gap));
        text.push_str(&format!("└{before}┬{after}┘         └{before}┬{after}┘\n"));
        text.push_str(&format!(
            "{0}└{1}┬{2}┘\n",
            " ".repeat(gap + 1),
            "─".repeat(edge.len() / 6 + 5),
            "─".repeat(edge.len() / 6 + 4)
        ));
        let head = format!("third host {}, no node: ", topology.outsider().underlay.v4);
        let strangers: Vec<_> = STRANGERS.iter().map(|stranger| format!("{} {}", stranger.name, stranger.v4)).collect();
        let strangers: Vec<_> = strangers.chunks(2).map(|pair| pair.join(", ")).collect();
        text.push_str(&format!("{head}{}", strangers.join(&format!(",\n{}", " ".repeat(head.len())))));
        show::verbatim(&text);
    }
}

/// Asks until there is an answer.
fn patiently<T>(ask: impl Fn() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        ensure!(start.elapsed() < PATIENCE, "an agent does not answer");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Who listens on which port.
fn servers() -> impl Iterator<Item = (&'static str, u16)> {
    let members = MEMBERS.iter().map(|member| (member.name, member.port));
    let strangers = STRANGERS.iter().map(|stranger| (stranger.name, stranger.port));
    members.chain(strangers).filter_map(|(name, port)| Some((name, port?)))
}

/// What a shop leaves while it stands.
pub(crate) struct Traces {
    id: String,
    files: Vec<PathBuf>,
    processes: Vec<u32>,
}

impl Traces {
    /// What of it is there.
    pub(crate) fn found(&self) -> Vec<String> {
        let marked = format!("-{}-", self.id);
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let namespaces =
            names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.contains(&marked));
        let files = self.files.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
        let alive = self.processes.iter().filter(|id| Path::new(&format!("/proc/{id}")).exists());
        namespaces
            .map(|name| format!("/run/netns/{name}"))
            .chain(files)
            .chain(alive.map(|id| format!("process {id}")))
            .collect()
    }
}
