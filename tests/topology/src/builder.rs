use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

use crate::{
    Error, Host, Mac, Netns, Nic, Node, Overlay, Result, Topology, netns, random_mac,
    rtnl::{Rtnl, VethEnd, Vxlan},
    sweep,
};

/// Of the underlay. VXLAN takes 50 bytes of it over IPv4 and 70 over IPv6.
const UNDERLAY_MTU: u32 = 1500;
const OVERLAY4_MTU: u32 = UNDERLAY_MTU - 50;
const OVERLAY6_MTU: u32 = UNDERLAY_MTU - 70;
/// Of bridges and workloads: what fits both overlays.
pub(crate) const WORKLOAD_MTU: u32 = OVERLAY6_MTU;

/// `flannel-v6.VNI` must fit 15 characters.
const MAX_VNI: u32 = 9999;
/// Node numbers, and with them pod subnets, stay within one byte.
const MAX_NODES: usize = 50;
/// The last byte of the outsider's underlay addresses; nodes have lower ones.
const OUTSIDER_HOST: u8 = 200;

/// What a [`Topology`] shall have. Made by [`Topology::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: usize,
    workloads: Vec<WorkloadSpec>,
    second_nic: bool,
    vni: Option<u32>,
    vni6: Option<u32>,
    port: u16,
    keep: bool,
}

/// A workload that shall be made.
#[derive(Clone, Debug)]
pub struct WorkloadSpec {
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) mac: Option<Mac>,
    pub(crate) host: Option<u8>,
}

impl WorkloadSpec {
    /// A workload on the node with this index, with a random MAC and the next free addresses.
    pub fn new(name: impl Into<String>, node: usize) -> Self {
        Self { name: name.into(), node, mac: None, host: None }
    }

    /// Sets the MAC address of the workload's own link.
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Sets the last byte of both addresses; 0 and 1 are the node's, 255 is the broadcast address.
    pub fn host(mut self, host: u8) -> Self {
        self.host = Some(host);
        self
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self { nodes: 2, workloads: Vec::new(), second_nic: false, vni: None, vni6: None, port: 8472, keep: false }
    }
}

impl Builder {
    /// How many nodes; 2 unless said.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Adds a workload to the node with this index.
    pub fn workload(self, name: impl Into<String>, node: usize) -> Self {
        self.workload_with(WorkloadSpec::new(name, node))
    }

    /// Adds a workload with a MAC or addresses of choice.
    pub fn workload_with(mut self, spec: WorkloadSpec) -> Self {
        self.workloads.push(spec);
        self
    }

    /// Gives each node, and the outsider, a second NIC `eth1` on a network of its own.
    pub fn second_nic(mut self) -> Self {
        self.second_nic = true;
        self
    }

    /// Sets the VNI of both overlays (1 to 9999); random unless said.
    pub fn vni(mut self, vni: u32) -> Self {
        self.vni = Some(vni);
        self
    }

    /// Gives the IPv6 overlay a VNI of its own. flannel uses one for both families, and so does a topology
    /// unless told otherwise.
    pub fn vni6(mut self, vni: u32) -> Self {
        self.vni6 = Some(vni);
        self
    }

    /// Sets the VXLAN port; flannel's 8472 unless said.
    pub fn vxlan_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Leaves everything standing when the topology is dropped, for people who want to look around.
    /// [`kept`](crate::kept) finds it and [`remove_kept`](crate::remove_kept) takes it away.
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Builds it. On return packets between workloads of any two nodes would arrive: every link has its
    /// carrier and no address is tentative. On an error nothing is left.
    pub fn build(self) -> Result<Topology> {
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(Error::Invalid(format!("{} nodes: a topology has 1 to {MAX_NODES}", self.nodes)));
        }
        for vni in [self.vni, self.vni6].into_iter().flatten() {
            if !(1..=MAX_VNI).contains(&vni) {
                return Err(Error::Invalid(format!(
                    "VNI {vni}: 1 to {MAX_VNI}, so that flannel-v6.VNI is a link name"
                )));
            }
        }
        sweep();
        let plan = Plan::random();
        let id = netns::random_id();
        let make_netns = |label: &str| Netns::create(&netns::name(self.keep, &id, label), self.keep);

        let fabric = Fabric::new(make_netns("fabric")?, self.second_nic)?;
        let outsider = fabric.attach(&plan, format!("outsider-{id}"), make_netns("outsider")?, OUTSIDER_HOST)?;
        let vni = self.vni.unwrap_or_else(|| fastrand::u32(2..=MAX_VNI));
        let overlay = OverlayPlan { vni4: vni, vni6: self.vni6.unwrap_or(vni), port: self.port };
        let mut nodes = Vec::with_capacity(self.nodes);
        for (host, index) in (11..).zip(0..self.nodes) {
            let label = format!("n{}", index + 1);
            let attached = fabric.attach(&plan, format!("{label}-{id}"), make_netns(&label)?, host)?;
            nodes.push(make_node(attached, &overlay, plan.pods4(host), plan.pods6(host))?);
        }
        for node in &nodes {
            peer_with_others(node, &nodes)?;
        }
        let mut topology =
            Topology { id, keep: self.keep, nodes, workloads: Vec::new(), outsider, fabric: fabric.netns };
        let mut names = HashSet::new();
        for spec in self.workloads {
            if !names.insert(spec.name.clone()) {
                return Err(Error::Invalid(format!("two workloads are named {}", spec.name)));
            }
            topology.make_workload(&spec)?;
        }
        topology.wait_ready()?;
        Ok(topology)
    }
}

/// The namespace whose bridges are the wires between the hosts.
struct Fabric {
    netns: Netns,
    /// Indexes of the bridges behind `eth0` and `eth1`.
    bridges: Vec<u32>,
}

impl Fabric {
    fn new(netns: Netns, second: bool) -> Result<Self> {
        let mut rtnl = Rtnl::open(&netns)?;
        let names = ["br0", "br1"].into_iter().take(1 + usize::from(second));
        let bridges =
            names.map(|name| Ok(rtnl.add_bridge(name, random_mac(), UNDERLAY_MTU)?.index)).collect::<Result<_>>()?;
        // The wires are no hosts: they say nothing of their own, and pass what br_netfilter would call
        // malformed.
        for key in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
            netns.set_sysctl(key, "1")?;
        }
        set_bridge_netfilter(&netns, "0")?;
        Ok(Self { netns, bridges })
    }

    fn attach(&self, plan: &Plan, name: String, netns: Netns, host: u8) -> Result<Host> {
        let mut nics = Vec::new();
        for (wire, &bridge) in self.bridges.iter().enumerate() {
            let (port, eth) = (format!("p{host}-{wire}"), format!("eth{wire}"));
            let ends = [&port, &eth].map(|name| VethEnd { name, mac: random_mac() });
            let (_, link) = Rtnl::open(&self.netns)?.add_veth(ends[0], bridge, ends[1], &netns, UNDERLAY_MTU)?;
            let (v4, v6) = plan.underlay(wire, host);
            let mut rtnl = Rtnl::open(&netns)?;
            rtnl.add_address(link.index, network(v4.into(), 24))?;
            rtnl.add_address(link.index, network(v6.into(), 64))?;
            nics.push(Nic { link, v4, v6 });
        }
        let mut nics = nics.into_iter();
        let underlay = nics.next().expect("a fabric has at least one bridge");
        Ok(Host { name, netns, underlay, second: nics.next() })
    }
}

struct OverlayPlan {
    vni4: u32,
    vni6: u32,
    port: u16,
}

/// Makes a node of a host: forwarding, the bridge of its workloads and the two VXLAN devices.
fn make_node(host: Host, plan: &OverlayPlan, pods4: IpNetwork, pods6: IpNetwork) -> Result<Node> {
    let Host { name, netns, underlay, second } = host;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns.set_sysctl(key, "1")?;
    }
    // As kube-proxy needs it.
    set_bridge_netfilter(&netns, "1")?;
    let mut rtnl = Rtnl::open(&netns)?;
    let bridge = rtnl.add_bridge("cni0", random_mac(), WORKLOAD_MTU)?;
    let mut overlay = |device: String, vni: u32, vtep: IpAddr, prefix: IpNetwork, mtu: u32| -> Result<Overlay> {
        let vxlan =
            Vxlan { name: &device, mac: random_mac(), vni, port: plan.port, link: underlay.link.index, vtep, mtu };
        let device = rtnl.add_vxlan(&vxlan)?;
        let (address, gateway) = (prefix.network(), nth(prefix, 1));
        // A single address, so that no route of the device covers the prefix.
        rtnl.add_address(device.index, IpNetwork::from(address))?;
        rtnl.add_address(bridge.index, network(gateway, prefix.prefix()))?;
        Ok(Overlay { device, vni, port: plan.port, vtep, address, prefix, gateway })
    };
    let overlay4 = overlay(format!("flannel.{}", plan.vni4), plan.vni4, underlay.v4.into(), pods4, OVERLAY4_MTU)?;
    let overlay6 = overlay(format!("flannel-v6.{}", plan.vni6), plan.vni6, underlay.v6.into(), pods6, OVERLAY6_MTU)?;
    Ok(Node { name, netns, underlay, second, bridge, overlay4, overlay6 })
}

/// Whether bridged frames meet iptables and nftables as routed ones do. The keys exist only with
/// br_netfilter; without it they never do.
fn set_bridge_netfilter(netns: &Netns, value: &str) -> Result<()> {
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if netns.sysctl(key).is_ok() {
            netns.set_sysctl(key, value)?;
        }
    }
    Ok(())
}

/// Gives `node` a route, a neighbour and a forwarding entry for each other node, as flannel does for each
/// lease.
fn peer_with_others(node: &Node, nodes: &[Node]) -> Result<()> {
    let mut rtnl = Rtnl::open(&node.netns)?;
    for other in nodes.iter().filter(|other| other.name != node.name) {
        for (own, remote) in [(&node.overlay4, &other.overlay4), (&node.overlay6, &other.overlay6)] {
            rtnl.add_neighbour(own.device.index, remote.address, remote.device.mac)?;
            rtnl.add_fdb(own.device.index, remote.device.mac, remote.vtep)?;
            rtnl.add_route(remote.prefix, remote.address, own.device.index, true)?;
        }
    }
    Ok(())
}

/// The random part of all addresses of a topology.
struct Plan {
    /// Second byte of the pod network 10.x.0.0/16.
    pods4: u8,
    /// Global id of the pod network fdXX:XXXX:XXXX::/48.
    pods6: u64,
    /// Second and third byte of 172.x.y.0/24.
    underlay4: (u8, u8),
    underlay6: u64,
}

impl Plan {
    fn random() -> Self {
        let global_id = || 0xfd << 40 | fastrand::u64(..1 << 40);
        Self {
            pods4: fastrand::u8(1..=250),
            pods6: global_id(),
            underlay4: (fastrand::u8(16..=31), fastrand::u8(0..=253)),
            underlay6: global_id(),
        }
    }

    fn pods4(&self, node: u8) -> IpNetwork {
        network(Ipv4Addr::new(10, self.pods4, node, 0).into(), 24)
    }

    fn pods6(&self, node: u8) -> IpNetwork {
        network(subnet6(self.pods6, node.into(), 0).into(), 64)
    }

    /// The addresses of a host on the network of `eth0` (wire 0) or `eth1` (wire 1).
    fn underlay(&self, wire: usize, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let wire = u8::from(wire > 0);
        (
            Ipv4Addr::new(172, self.underlay4.0, self.underlay4.1 + wire, host),
            subnet6(self.underlay6, wire.into(), host),
        )
    }
}

fn subnet6(global_id: u64, subnet: u16, host: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(global_id) << 80 | u128::from(subnet) << 64 | u128::from(host))
}

pub(crate) fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).expect("prefix lengths here are constants of the family")
}

/// The address at an offset from the prefix's first.
pub(crate) fn nth(prefix: IpNetwork, offset: u8) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + u32::from(offset)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(offset)).into(),
    }
}
