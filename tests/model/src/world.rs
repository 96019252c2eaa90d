//! What there is: nodes, workloads and their addresses.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{Prefix, policy::Level};

/// VNI of an overlay, 0 for none.
pub type Segment = u32;

/// Labels of a workload or a namespace.
pub type Labels = BTreeMap<String, String>;

/// All that a verdict depends on besides the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// The node that judges: index in `nodes`.
    pub here: usize,
    /// Label that says to which service a workload belongs.
    pub service_label: String,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// UDP ports of the overlay.
    pub tunnel_ports: Vec<u16>,
    /// Addresses of name servers.
    pub resolvers: Vec<IpAddr>,
    /// Labels of namespaces; one that has none need not be here.
    pub namespaces: BTreeMap<String, Labels>,
    /// Workloads on all nodes.
    pub workloads: Vec<Workload>,
    /// Services of the source.
    pub services: Vec<Front>,
    /// What is wanted.
    pub policy: Vec<Level>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Own addresses; they are the node's in every segment.
    pub addresses: Vec<IpAddr>,
    /// Overlays it is a member of.
    pub segments: Vec<NodeSegment>,
}

/// A node's part of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSegment {
    /// VNI.
    pub vni: Segment,
    /// The node's address on the underlay.
    pub vtep: IpAddr,
    /// Addresses of the node's workloads.
    pub prefixes: Vec<Prefix>,
}

/// A container or pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Index in [`World::nodes`].
    pub node: usize,
    /// Named ports.
    pub ports: BTreeMap<String, (u16, Protocol)>,
    /// Links.
    pub endpoints: Vec<Endpoint>,
}

/// A service of the source: addresses that each node translates to those of its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Front {
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
    /// Own addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports, of which each leads to all backends.
    pub ports: Vec<FrontPort>,
    /// Where calls end.
    pub backends: Vec<Backend>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontPort {
    /// Port of the service's addresses.
    pub port: u16,
    /// Port on which backends listen.
    pub target: u16,
    /// Port of every address of every node that means the same.
    pub node_port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

/// Where calls to a service may end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// A workload of the service's namespace.
    Workload(String),
    /// Somebody who is no workload.
    Address(IpAddr),
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As it is written behind a port.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A link of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Overlay.
    pub segment: Segment,
    /// Own addresses.
    pub addresses: Vec<IpAddr>,
    /// Own MAC.
    pub mac: [u8; 6],
    /// Host-side link.
    pub link: String,
}

/// Names an endpoint across changes of the world.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Namespace.
    pub namespace: String,
    /// Workload.
    pub workload: String,
    /// Which of its links.
    pub index: usize,
}

/// The other end of a packet, as an endpoint in `segment` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Its address.
    pub address: IpAddr,
    /// A workload of the segment that is known to have the address.
    pub workload: Option<&'a Workload>,
    /// A node that has the address.
    pub node: Option<&'a Node>,
    /// The node that judges has the address.
    pub here: bool,
    /// Belongs to the overlay's range.
    pub overlay: bool,
    /// Belongs to another node's part of the overlay: its packets arrive encapsulated.
    pub behind: bool,
    /// The packet passed through this node with a node's address: nobody knows who sent it.
    pub masqueraded: bool,
}

/// Who somebody can be without being a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// Everything outside.
    World,
    /// The workload's own node.
    Node,
    /// Any node.
    Nodes,
    /// Every known workload.
    Cluster,
    /// The cloud's metadata service.
    Metadata,
}

impl Entity {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Node => "node",
            Self::Nodes => "nodes",
            Self::Cluster => "cluster",
            Self::Metadata => "metadata",
        }
    }
}

/// Addresses of metadata services.
pub const METADATA: [&str; 3] = ["169.254.169.254", "fd00:ec2::254", "fd20:ce::254"];

/// What is never outside, because it never leaves a link or a host, or names nobody.
const NOT_OUTSIDE: [&str; 9] = [
    "0.0.0.0/32",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

impl World {
    /// The workload of that name.
    #[must_use]
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.namespace == namespace && w.name == name)
    }

    /// The endpoint of that name, and its workload.
    #[must_use]
    pub fn endpoint(&self, id: &EndpointId) -> Option<(&Workload, &Endpoint)> {
        let workload = self.workload(&id.namespace, &id.workload)?;
        Some((workload, workload.endpoints.get(id.index)?))
    }

    /// Endpoints on the node that judges.
    pub fn local(&self) -> impl Iterator<Item = EndpointId> {
        self.workloads.iter().filter(|w| w.node == self.here).flat_map(|w| {
            (0..w.endpoints.len()).map(|index| EndpointId {
                namespace: w.namespace.clone(),
                workload: w.name.clone(),
                index,
            })
        })
    }

    /// The local endpoint that has the address.
    #[must_use]
    pub fn local_owner(&self, segment: Segment, address: IpAddr) -> Option<EndpointId> {
        self.local()
            .find(|id| self.endpoint(id).is_some_and(|(_, e)| e.segment == segment && e.addresses.contains(&address)))
    }

    /// Whether some service has the address.
    #[must_use]
    pub fn is_service(&self, address: IpAddr) -> bool {
        self.services.iter().any(|front| front.addresses.contains(&address))
    }

    /// Who an address is. `passing` says that the packet came to this node from elsewhere and does not name a local
    /// sender.
    #[must_use]
    pub fn peer(&self, segment: Segment, address: IpAddr, passing: bool) -> Peer<'_> {
        let node = self.nodes.iter().find(|node| node.addresses.contains(&address));
        let within = |node: &Node| {
            let mut parts = node.segments.iter().filter(|part| part.vni == segment);
            parts.any(|part| part.prefixes.iter().any(|prefix| prefix.contains(address)))
        };
        Peer {
            address,
            workload: self
                .workloads
                .iter()
                .find(|w| w.endpoints.iter().any(|e| e.segment == segment && e.addresses.contains(&address))),
            node,
            here: self.nodes[self.here].addresses.contains(&address),
            overlay: self.nodes.iter().any(within),
            behind: self.nodes.iter().enumerate().any(|(n, node)| n != self.here && within(node)),
            masqueraded: passing && node.is_some(),
        }
    }
}

impl Peer<'_> {
    /// Whether the peer is that entity.
    #[must_use]
    pub fn is(&self, entity: Entity) -> bool {
        match entity {
            Entity::Cluster => self.workload.is_some(),
            Entity::Metadata => METADATA.iter().any(|text| self.address == text.parse::<IpAddr>().expect("literal")),
            Entity::Nodes => self.node.is_some(),
            Entity::Node => self.here && !self.masqueraded,
            Entity::World => {
                let outside = self.workload.is_none() && self.node.is_none() && !self.overlay;
                let nobody = NOT_OUTSIDE.iter().any(|text| Prefix::literal(text).contains(self.address));
                self.masqueraded || outside && !nobody && !self.is(Entity::Metadata)
            }
        }
    }
}
