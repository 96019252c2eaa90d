//! Whose an address is: known ones, prefixes for the rest, and who may carry them through an overlay.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use bulkhead_dataplane::{
    desired::{Address, EndpointName, Overlay, Prefix, Segment, SelectorId},
    node::Discovered,
};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{draft, members::Members};
use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    intent::{Entity, contains},
    labels::Selector,
    model::{METADATA, Model, Peer, holds, local_prefixes},
    workloads::{Endpoint, Node, VXLAN_PORT},
};

/// What the model and the node's own network say, as far as addresses go.
pub(super) struct Network<'a> {
    model: &'a Model,
    node: &'a str,
    selectors: &'a [draft::Selector],
    /// Addresses of nodes, and whether the node is this one.
    nodes: BTreeMap<IpAddr, bool>,
    /// Segments in which somebody on this node can meet an address. 0 is always there: plain traffic of the underlay is looked up in it.
    segments: BTreeSet<Segment>,
    /// Prefixes of each overlay.
    overlays: BTreeMap<Segment, Prefixes>,
    /// Prefixes of each overlay that the kernel routes by way of a VXLAN device of this node.
    encapsulated: BTreeMap<Segment, Prefixes>,
}

impl<'a> Network<'a> {
    pub(super) fn new(
        model: &'a Model,
        node: &'a str,
        discovered: &Discovered,
        selectors: &'a [draft::Selector],
    ) -> Self {
        let mut nodes = BTreeMap::new();
        for peer in discovered.overlays.iter().flat_map(|overlay| &overlay.peers) {
            nodes.insert(peer.0, false);
        }
        for (name, described) in &model.nodes {
            for &address in &described.addresses {
                *nodes.entry(address).or_default() |= name == node;
            }
        }
        // What the kernel says of this node beats what the file says of others.
        nodes.extend(
            discovered
                .addresses
                .iter()
                .chain(discovered.overlays.iter().filter_map(|overlay| overlay.own.as_ref()))
                .map(|&address| (address, true)),
        );

        let mut overlays: BTreeMap<Segment, Prefixes> = BTreeMap::new();
        let mut encapsulated: BTreeMap<Segment, Prefixes> = BTreeMap::new();
        for segment in model.nodes.values().flat_map(|node| &node.segments) {
            overlays.entry(segment.vni).or_default().extend(segment.prefixes.iter().copied());
        }
        for overlay in &discovered.overlays {
            for (_, prefixes) in &overlay.peers {
                overlays.entry(overlay.vni).or_default().extend(prefixes.iter().copied());
                encapsulated.entry(overlay.vni).or_default().extend(prefixes.iter().copied());
            }
        }
        for by_segment in [&mut overlays, &mut encapsulated] {
            let mut all = Prefixes::default();
            by_segment.values().for_each(|prefixes| all.extend(prefixes.iter()));
            by_segment.insert(0, all);
        }
        let here = model.workloads.values().filter(|workload| workload.node == node);
        let segments =
            here.flat_map(|workload| &workload.endpoints).map(|endpoint| endpoint.segment).chain([0]).collect();
        Self { model, node, selectors, nodes, segments, overlays, encapsulated }
    }

    fn matching(&self, mut matches: impl FnMut(&draft::Selector) -> bool) -> BTreeSet<SelectorId> {
        (0..).map(SelectorId).zip(self.selectors).filter(|(_, selector)| matches(selector)).map(|(id, _)| id).collect()
    }

    /// Whether it is the address of a node with these labels.
    fn is_labelled(&self, address: IpAddr, labels: &Selector) -> bool {
        self.model.nodes.values().any(|node| node.addresses.contains(&address) && labels.matches(&node.labels))
    }

    /// Segments in which somebody on this node can meet an address.
    pub(super) const fn segments(&self) -> &BTreeSet<Segment> {
        &self.segments
    }

    /// Whether packets to or from it travel encapsulated.
    pub(super) fn is_encapsulated(&self, segment: Segment, net: IpNetwork) -> bool {
        let own = self.nodes.get(&net.ip()).copied().unwrap_or_default() && IpNetwork::from(net.ip()) == net;
        !own && within(&self.encapsulated, segment, net)
    }

    /// Known addresses: those of all workloads in their segments, and those of nodes in every segment in use.
    pub(super) fn addresses(&self) -> Result<BTreeMap<(Segment, IpAddr), Address>, Diagnostics> {
        let mut found = Diagnostics::default();
        let mut addresses = BTreeMap::new();
        let members = Members::new(self.selectors);
        for (name, workload) in &self.model.workloads {
            let named = members.of(self.model, name, workload);
            for (index, endpoint) in (0..).zip(&workload.endpoints) {
                for &address in &endpoint.addresses {
                    if self.nodes.contains_key(&address) {
                        let error = Diagnostic::error(
                            &workload.place,
                            format!("{address} of workload `{name}` is an address of a node"),
                        );
                        found.push(error.help("a workload in a node's own network has no endpoint: leave it out"));
                    }
                    let mut selectors = named.clone();
                    if !endpoint.placeholder {
                        selectors.extend(members.at(address));
                    }
                    let endpoint_name =
                        || EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index };
                    let known = Address {
                        selectors,
                        endpoint: (workload.node == self.node).then(endpoint_name),
                        node: false,
                        own: false,
                        encapsulated: workload.node != self.node
                            && self.is_encapsulated(endpoint.segment, address.into()),
                    };
                    addresses.insert((endpoint.segment, address), known);
                }
            }
        }
        for &segment in &self.segments {
            for (&address, &own) in &self.nodes {
                let selectors = self.matching(|selector| match selector.peer {
                    // Only workloads name their ports.
                    _ if selector.port.is_some() => false,
                    Peer::Entity(Entity::Node) => own,
                    Peer::Entity(Entity::Nodes) => true,
                    Peer::Namespaces { other, .. } => other,
                    Peer::Nodes(ref labels) => self.is_labelled(address, labels),
                    _ => selector.holds(address),
                });
                let known = Address {
                    selectors,
                    endpoint: None,
                    node: true,
                    own,
                    encapsulated: self.is_encapsulated(segment, address.into()),
                };
                addresses.insert((segment, address), known);
            }
        }
        found.or(addresses)
    }

    /// Prefixes for what is not known. A look-up finds the longest one only, hence each has all that matches it; every prefix that a selector or
    /// a distinction of ours mentions is there, so that what matches the longest one matches all of the addresses that find it.
    pub(super) fn prefixes(&self) -> BTreeMap<(Segment, IpNetwork), Prefix> {
        let mut mentioned = BTreeSet::from(whole());
        let local: Vec<IpNetwork> = local_prefixes().into_iter().chain(METADATA.map(IpNetwork::from)).collect();
        mentioned.extend(&local);
        mentioned.extend(self.nodes.keys().map(|&address| IpNetwork::from(address)));
        for selector in self.selectors {
            if let Peer::Cidrs(cidrs) = &selector.peer {
                mentioned.extend(cidrs.cidrs.iter().chain(&cidrs.except));
            }
        }
        let mut prefixes = BTreeMap::new();
        for &segment in &self.segments {
            let of_segment = [&self.overlays, &self.encapsulated]
                .map(|prefixes| prefixes.get(&segment))
                .into_iter()
                .flatten()
                .flat_map(Prefixes::iter);
            for net in mentioned.iter().copied().chain(of_segment) {
                // Whole addresses of nodes stand for traffic that is masqueraded with them.
                let masqueraded = IpNetwork::from(net.ip()) == net && self.nodes.contains_key(&net.ip());
                let overlay = within(&self.overlays, segment, net);
                let world = masqueraded || !overlay && !local.iter().any(|&outer| contains(outer, net));
                let selectors = self.matching(|selector| match &selector.peer {
                    _ if selector.port.is_some() => false,
                    Peer::Entity(Entity::World) => world,
                    Peer::Entity(Entity::Nodes) => masqueraded,
                    Peer::Entity(Entity::Metadata) => METADATA.iter().any(|&address| IpNetwork::from(address) == net),
                    Peer::Nodes(labels) => masqueraded && self.is_labelled(net.ip(), labels),
                    Peer::Entity(Entity::Node | Entity::Cluster)
                    | Peer::Service(_)
                    | Peer::Backends(_)
                    | Peer::Workloads { .. } => false,
                    // What nobody is known to have is other.
                    Peer::Namespaces { other, .. } => *other,
                    Peer::Any => true,
                    Peer::Cidrs(cidrs) => {
                        let any = |outers: &[IpNetwork]| outers.iter().any(|&outer| contains(outer, net));
                        any(&cidrs.cidrs) && !any(&cidrs.except)
                    }
                });
                prefixes.insert(
                    (segment, net),
                    Prefix { selectors, overlay, encapsulated: self.is_encapsulated(segment, net) },
                );
            }
        }
        prefixes
    }
}

impl draft::Selector {
    /// Whether it names a workload, whatever the address.
    pub(super) fn has_member(
        &self,
        model: &Model,
        name: &crate::workloads::WorkloadName,
        workload: &crate::model::Workload,
    ) -> bool {
        let named = self
            .port
            .as_ref()
            .is_none_or(|port| workload.ports.get(&port.name) == Some(&(port.transport, port.number)));
        named && !matches!(self.peer, Peer::Cidrs(_)) && model.matches(&self.peer, name, workload)
    }

    /// Whether it names an address, whoever has it.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        matches!(&self.peer, Peer::Cidrs(cidrs) if holds(cidrs, address))
    }
}

/// Overlays of which a node is a member. The file says who owns which inner prefix; what the kernel binds for good is added where the file says
/// nothing else.
pub(super) fn overlays(model: &Model, node: &str, own: &Node, discovered: &Discovered) -> Vec<Overlay> {
    let vnis: BTreeSet<Segment> = own
        .segments
        .iter()
        .map(|segment| segment.vni)
        .chain(discovered.overlays.iter().map(|overlay| overlay.vni))
        .collect();
    vnis.into_iter().map(|vni| overlay(model, node, own, discovered, vni)).collect()
}

fn overlay(model: &Model, node: &str, own: &Node, discovered: &Discovered, vni: Segment) -> Overlay {
    let members = || {
        model
            .nodes
            .iter()
            .flat_map(|(name, node)| node.segments.iter().map(move |segment| (name, segment)))
            .filter(|(_, segment)| segment.vni == vni)
    };
    let devices = || discovered.overlays.iter().filter(|overlay| overlay.vni == vni);
    let ours: BTreeSet<IpAddr> = own
        .segments
        .iter()
        .filter(|segment| segment.vni == vni)
        .map(|segment| segment.vtep)
        .chain(devices().filter_map(|device| device.own))
        .collect();

    let mut listed: BTreeMap<IpNetwork, BTreeSet<&str>> = BTreeMap::new();
    for (name, segment) in members() {
        for &prefix in &segment.prefixes {
            listed.entry(prefix).or_default().insert(name);
        }
    }
    // Of each node those who may need a binding of their own.
    let mut inhabitants: HashMap<&str, Vec<&Endpoint>> = HashMap::new();
    for workload in model.workloads.values() {
        let endpoints = workload.endpoints.iter().filter(|endpoint| endpoint.segment == vni);
        inhabitants.entry(&workload.node).or_default().extend(endpoints);
    }
    let mut peers: BTreeMap<IpAddr, BTreeSet<IpNetwork>> = BTreeMap::new();
    for (name, segment) in members().filter(|(name, _)| *name != node) {
        let bound = segment.prefixes.iter().copied().filter(|prefix| listed[prefix].len() == 1);
        peers.entry(segment.vtep).or_default().extend(bound);
        // What no prefix of its own node covers is bound by address.
        let segments = model.nodes.get(name).map(|node| node.segments.iter());
        let of_node: Vec<_> = segments.into_iter().flatten().filter(|segment| segment.vni == vni).collect();
        let endpoints = inhabitants.get(name.as_str()).into_iter().flatten();
        for address in endpoints.flat_map(|endpoint| &endpoint.addresses) {
            let covered = of_node
                .iter()
                .flat_map(|segment| &segment.prefixes)
                .any(|prefix| listed[prefix].len() == 1 && prefix.contains(*address));
            let carrier =
                of_node.iter().find(|segment| segment.vtep.is_ipv4() == address.is_ipv4()).or(of_node.first());
            if !covered && carrier.is_some_and(|carrier| carrier.vtep == segment.vtep) {
                peers.entry(segment.vtep).or_default().insert((*address).into());
            }
        }
    }
    let written: Vec<(IpAddr, IpNetwork)> =
        peers.iter().flat_map(|(&vtep, prefixes)| prefixes.iter().map(move |&prefix| (vtep, prefix))).collect();
    for (vtep, prefixes) in devices().flat_map(|device| &device.peers).filter(|(vtep, _)| !ours.contains(vtep)) {
        let known = peers.entry(*vtep).or_default();
        let contradicted = |&&net: &&IpNetwork| {
            written.iter().any(|&(other, prefix)| other != *vtep && (contains(prefix, net) || contains(net, prefix)))
        };
        known.extend(prefixes.iter().filter(|net| !contradicted(net)));
    }
    let port = devices()
        .map(|device| device.port)
        .next()
        .or_else(|| own.segments.iter().filter(|segment| segment.vni == vni).find_map(|segment| segment.port));
    Overlay { vni, port: port.unwrap_or(VXLAN_PORT), own: ours.into_iter().collect(), peers }
}

fn within(prefixes: &BTreeMap<Segment, Prefixes>, segment: Segment, net: IpNetwork) -> bool {
    prefixes.get(&segment).is_some_and(|outers| outers.cover(net))
}

/// Prefixes by their length: of few lengths there may be thousands.
#[derive(Default)]
struct Prefixes(BTreeMap<u8, HashSet<IpNetwork>>);

impl Prefixes {
    fn extend(&mut self, prefixes: impl IntoIterator<Item = IpNetwork>) {
        for net in prefixes {
            self.0.entry(net.prefix()).or_default().insert(net);
        }
    }

    fn iter(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.values().flatten().copied()
    }

    /// Whether one of them holds all of another prefix.
    fn cover(&self, net: IpNetwork) -> bool {
        self.0.range(..=net.prefix()).any(|(&length, prefixes)| {
            let outer = IpNetwork::new(net.ip(), length).and_then(|net| IpNetwork::new(net.network(), length));
            outer.is_ok_and(|outer| prefixes.contains(&outer))
        })
    }
}

/// The prefixes that hold every address.
fn whole() -> [IpNetwork; 2] {
    [
        IpNetwork::V4(Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED)),
        IpNetwork::V6(Ipv6Network::from(std::net::Ipv6Addr::UNSPECIFIED)),
    ]
    .map(|host| IpNetwork::new(host.ip(), 0).unwrap_or(host))
}
