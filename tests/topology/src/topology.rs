use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;

use crate::{
    Builder, Error, Netns, Result, WorkloadSpec,
    builder::{WORKLOAD_MTU, network, nth},
    netns, random_mac,
    rtnl::{Link, Rtnl, VethEnd},
    traffic::Client,
};

/// How long links may take to get their carrier. It is milliseconds, unless the machine is very busy.
const READY_SECONDS: u64 = 20;

/// A cluster of namespaces. Dropping it removes them all.
#[derive(Debug)]
pub struct Topology {
    pub(crate) id: String,
    pub(crate) keep: bool,
    pub(crate) nodes: Vec<Node>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) outsider: Host,
    pub(crate) fabric: Netns,
}

/// A NIC on the underlay: `eth0`, or `eth1` for the second one.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The link in its host's namespace.
    pub link: Link,
    /// Its address, with a prefix length of 24.
    pub v4: Ipv4Addr,
    /// Its address, with a prefix length of 64.
    pub v6: Ipv6Addr,
}

/// A host on the underlay that is no node.
#[derive(Clone, Debug)]
pub struct Host {
    /// Unique over all topologies.
    pub name: String,
    /// Where its links and sockets are.
    pub netns: Netns,
    /// `eth0`.
    pub underlay: Nic,
    /// `eth1`, with [`Builder::second_nic`].
    pub second: Option<Nic>,
}

/// A machine that carries workloads.
#[derive(Clone, Debug)]
pub struct Node {
    /// Unique over all topologies.
    pub name: String,
    /// Where its links and sockets are.
    pub netns: Netns,
    /// `eth0`; its addresses are the VTEPs.
    pub underlay: Nic,
    /// `eth1`, with [`Builder::second_nic`].
    pub second: Option<Nic>,
    /// `cni0`: the bridge of the workloads, which holds both gateways.
    pub bridge: Link,
    /// IPv4 inside IPv4.
    pub overlay4: Overlay,
    /// IPv6 inside IPv6.
    pub overlay6: Overlay,
}

/// A node's part of one overlay, as flannel lays it out.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// `flannel.VNI` or `flannel-v6.VNI`. Its MAC is the one that other nodes' entries name.
    pub device: Link,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port of the outer packets.
    pub port: u16,
    /// The node's underlay address.
    pub vtep: IpAddr,
    /// The device's own address: the first of the prefix, as /32 or /128. Other nodes route through it.
    pub address: IpAddr,
    /// The node's workloads are in it; /24 or /64.
    pub prefix: IpNetwork,
    /// The bridge's address, second of the prefix; the workloads' default route.
    pub gateway: IpAddr,
}

/// A container: a namespace with one link, `eth0`, into its node's bridge.
#[derive(Clone, Debug)]
pub struct Workload {
    /// As it was given to the builder.
    pub name: String,
    /// Index of its node.
    pub node: usize,
    /// Where its sockets are.
    pub netns: Netns,
    /// The host side of its veth pair, in the **node's** namespace.
    pub link: Link,
    /// The workload's own side.
    pub eth0: Link,
    /// Its address, with a prefix length of 24.
    pub v4: Ipv4Addr,
    /// Its address, with a prefix length of 64.
    pub v6: Ipv6Addr,
}

impl Workload {
    /// Sends probes from this workload.
    pub fn client(&self) -> Client<'_> {
        self.netns.client()
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Node {
    /// Both overlays, IPv4 first.
    pub fn overlays(&self) -> [&Overlay; 2] {
        [&self.overlay4, &self.overlay6]
    }
}

impl Topology {
    /// Starts with two nodes and no workload.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The part of all its namespaces' names that no other topology shares.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this index.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All workloads, in the order in which they were made.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// The workload with this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads
            .iter()
            .find(|workload| workload.name == name)
            .unwrap_or_else(|| panic!("no workload {name} in this topology"))
    }

    /// The node that a workload is on.
    pub fn node_of(&self, workload: &Workload) -> &Node {
        &self.nodes[workload.node]
    }

    /// A host on the underlay that is no node, for forged packets.
    pub fn outsider(&self) -> &Host {
        &self.outsider
    }

    /// Every namespace that belongs to it.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let nodes = self.nodes.iter().map(|node| &node.netns);
        let workloads = self.workloads.iter().map(|workload| &workload.netns);
        nodes.chain(workloads).chain([&self.outsider.netns, &self.fabric])
    }

    /// Adds a workload while everything runs, and waits until it can be reached.
    pub fn add_workload(&mut self, spec: &WorkloadSpec) -> Result<&Workload> {
        if self.workloads.iter().any(|workload| workload.name == spec.name) {
            return Err(Error::Invalid(format!("there is a workload {} already", spec.name)));
        }
        let index = self.make_workload(spec)?;
        let workload = &self.workloads[index];
        wait_ready(&[&self.nodes[workload.node].netns, &workload.netns])?;
        Ok(workload)
    }

    /// Removes a workload, its links and its namespace.
    pub fn remove_workload(&mut self, name: &str) -> Result<()> {
        let index = self.workloads.iter().position(|workload| workload.name == name);
        let index = index.ok_or_else(|| Error::Invalid(format!("no workload {name} in this topology")))?;
        let workload = self.workloads.remove(index);
        Rtnl::open(&self.nodes[workload.node].netns)?.delete_link(&workload.link.name)?;
        workload.netns.remove();
        Ok(())
    }

    pub(crate) fn make_workload(&mut self, spec: &WorkloadSpec) -> Result<usize> {
        let node = self.nodes.get(spec.node);
        let node =
            node.ok_or_else(|| Error::Invalid(format!("workload {}: there is no node {}", spec.name, spec.node)))?;
        let taken = |host: u8| {
            let v4 = nth(node.overlay4.prefix, host);
            self.workloads.iter().any(|other| IpAddr::from(other.v4) == v4)
        };
        let host = match spec.host {
            Some(host) if !(2..=254).contains(&host) || taken(host) => {
                return Err(Error::Invalid(format!("workload {}: host number {host} is not free", spec.name)));
            }
            Some(host) => host,
            None => (2..=254)
                .find(|host| !taken(*host))
                .ok_or_else(|| Error::Invalid(format!("workload {}: node {} is full", spec.name, spec.node)))?,
        };
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (nth(node.overlay4.prefix, host), nth(node.overlay6.prefix, host))
        else {
            unreachable!("overlay4 holds IPv4 and overlay6 IPv6");
        };
        // Marked, so that a workload may be called "fabric".
        let label = format!("w-{}", spec.name);
        let netns = Netns::create(&netns::name(self.keep, &self.id, &label), self.keep)?;
        let near = VethEnd { name: &format!("veth{:08x}", fastrand::u32(..)), mac: random_mac() };
        let far = VethEnd { name: "eth0", mac: spec.mac.unwrap_or_else(random_mac) };
        let mut rtnl = Rtnl::open(&node.netns)?;
        let (link, eth0) = rtnl.add_veth(near, node.bridge.index, far, &netns, WORKLOAD_MTU)?;
        rtnl.set_hairpin(link.index)?;

        let mut rtnl = Rtnl::open(&netns)?;
        for (address, overlay) in [(v4.into(), &node.overlay4), (v6.into(), &node.overlay6)] {
            rtnl.add_address(eth0.index, network(address, overlay.prefix.prefix()))?;
            rtnl.add_default_route(overlay.gateway, eth0.index)?;
        }
        self.workloads.push(Workload { name: spec.name.clone(), node: spec.node, netns, link, eth0, v4, v6 });
        Ok(self.workloads.len() - 1)
    }

    pub(crate) fn wait_ready(&self) -> Result<()> {
        wait_ready(&self.namespaces().collect::<Vec<_>>())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // Handles may live on in somebody's thread; the names go now.
        if !self.keep {
            self.namespaces().for_each(Netns::remove);
        }
    }
}

fn wait_ready(namespaces: &[&Netns]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(READY_SECONDS);
    for netns in namespaces {
        let mut rtnl = Rtnl::open(netns)?;
        loop {
            let unready = rtnl.unready()?;
            if unready.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::NotReady { seconds: READY_SECONDS, what: unready.join(", ") });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}
