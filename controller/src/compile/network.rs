//! Whose an address is: known ones, prefixes for the rest, and who may carry them through an overlay.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{Address, EndpointName, Overlay, Prefix, Segment, SelectorId},
    node::Discovered,
    pieces::Pieces,
};
use foldhash::{HashMap, HashMapExt as _, HashSet};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{draft, members::Members};
use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    intent::{Entity, contains},
    labels::Selector,
    model::{METADATA, Model, Peer, Workload, holds, local_prefixes},
    workloads::{Node, NodeSegment, VXLAN_PORT, WorkloadName},
};

/// What the model's nodes and the node's own network say, as far as addresses go.
#[derive(Debug)]
pub(super) struct Underlay {
    /// Addresses of nodes, and whether the node is this one.
    pub(super) nodes: BTreeMap<IpAddr, bool>,
    /// Prefixes of each overlay.
    overlays: BTreeMap<Segment, Prefixes>,
    /// Prefixes of each overlay that the kernel routes by way of a VXLAN device of this node.
    encapsulated: BTreeMap<Segment, Prefixes>,
    /// What is no part of the world.
    local: Vec<IpNetwork>,
    /// Nodes that the file says have an address.
    named: HashMap<IpAddr, Vec<String>>,
}

impl Underlay {
    pub(super) fn new(model: &Model, node: &str, discovered: &Discovered) -> Self {
        let mut named: HashMap<IpAddr, Vec<String>> = HashMap::new();
        for (name, described) in &model.nodes {
            described.addresses.iter().for_each(|&address| named.entry(address).or_default().push(name.clone()));
        }
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
        let local = local_prefixes().into_iter().chain(METADATA.map(IpNetwork::from)).collect();
        Self { nodes: nodes(model, node, discovered), overlays, encapsulated, local, named }
    }

    /// Whether packets to or from it travel encapsulated.
    pub(super) fn is_encapsulated(&self, segment: Segment, net: IpNetwork) -> bool {
        let own = self.nodes.get(&net.ip()).copied().unwrap_or_default() && IpNetwork::from(net.ip()) == net;
        !own && within(&self.encapsulated, segment, net)
    }

    /// Row of a workload's address.
    pub(super) fn known(
        &self,
        segment: Segment,
        address: IpAddr,
        selectors: BTreeSet<SelectorId>,
        here: Option<EndpointName>,
    ) -> Address {
        let encapsulated = here.is_none() && self.is_encapsulated(segment, address.into());
        Address { selectors, endpoint: here.map(Box::new), node: false, own: false, encapsulated }
    }

    /// Row of a node's address.
    pub(super) fn of_node(&self, segment: Segment, address: IpAddr, selectors: BTreeSet<SelectorId>) -> Address {
        let own = self.nodes.get(&address).copied().unwrap_or_default();
        let encapsulated = self.is_encapsulated(segment, address.into());
        Address { selectors, endpoint: None, node: true, own, encapsulated }
    }

    /// Row of a prefix.
    pub(super) fn prefix(&self, segment: Segment, net: IpNetwork, selectors: BTreeSet<SelectorId>) -> Prefix {
        let overlay = within(&self.overlays, segment, net);
        Prefix { selectors, overlay, encapsulated: self.is_encapsulated(segment, net) }
    }

    /// Prefixes that a distinction of ours mentions in a segment, whatever selectors there are.
    pub(super) fn mentioned(&self, segment: Segment) -> BTreeSet<IpNetwork> {
        let mut mentioned = BTreeSet::from(whole());
        mentioned.extend(&self.local);
        mentioned.extend(self.nodes.keys().map(|&address| IpNetwork::from(address)));
        let of_segment = [&self.overlays, &self.encapsulated].map(|prefixes| prefixes.get(&segment));
        mentioned.extend(of_segment.into_iter().flatten().flat_map(Prefixes::iter));
        mentioned
    }

    /// The longest of what [`Underlay::mentioned`] has, and of other prefixes, that holds an address: what a look-up finds.
    pub(super) fn longest(
        &self,
        segment: Segment,
        address: IpAddr,
        others: impl Iterator<Item = IpNetwork>,
    ) -> IpNetwork {
        let host = IpNetwork::from(address);
        if self.is_masqueraded(host) {
            return host;
        }
        let of_segment = [&self.overlays, &self.encapsulated].map(|prefixes| prefixes.get(&segment));
        let longest = of_segment.into_iter().flatten().filter_map(|prefixes| prefixes.longest(address));
        let fixed = whole().into_iter().chain(self.local.iter().copied()).chain(others);
        let holding = fixed.filter(|net| net.contains(address)).chain(longest);
        holding.max_by_key(IpNetwork::prefix).unwrap_or(host)
    }

    /// Whether [`Underlay::mentioned`] has it.
    pub(super) fn mentions(&self, segment: Segment, net: IpNetwork) -> bool {
        let of_segment = [&self.overlays, &self.encapsulated].map(|prefixes| prefixes.get(&segment));
        whole().contains(&net)
            || self.local.contains(&net)
            || self.is_masqueraded(net)
            || of_segment.into_iter().flatten().any(|prefixes| prefixes.has(net))
    }

    /// Whole addresses of nodes stand for traffic that is masqueraded with them.
    fn is_masqueraded(&self, net: IpNetwork) -> bool {
        IpNetwork::from(net.ip()) == net && self.nodes.contains_key(&net.ip())
    }

    fn is_world(&self, segment: Segment, net: IpNetwork) -> bool {
        let local = || self.local.iter().any(|&outer| contains(outer, net));
        self.is_masqueraded(net) || !within(&self.overlays, segment, net) && !local()
    }

    /// Whether it is the address of a node with these labels.
    fn is_labelled(&self, model: &Model, address: IpAddr, labels: &Selector) -> bool {
        let names = self.named.get(&address).into_iter().flatten();
        names.filter_map(|name| model.nodes.get(name)).any(|node| labels.matches(&node.labels))
    }

    /// Those of some selectors that match all of a prefix.
    pub(super) fn covering<'a>(
        &self,
        model: &Model,
        segment: Segment,
        net: IpNetwork,
        selectors: impl Iterator<Item = (SelectorId, &'a draft::Selector)>,
    ) -> BTreeSet<SelectorId> {
        selectors.filter(|(_, selector)| selector.covers(model, self, segment, net)).map(|(id, _)| id).collect()
    }
}

/// What the model and the node's own network say to the selectors of a node.
pub(super) struct Network<'a> {
    model: &'a Model,
    node: &'a str,
    selectors: &'a [draft::Selector],
    pub(super) underlay: Underlay,
    /// Segments in which somebody on this node can meet an address. 0 is always there: plain traffic of the underlay is looked up in it.
    pub(super) segments: BTreeSet<Segment>,
}

/// Addresses of nodes, and whether the node is this one.
fn nodes(model: &Model, node: &str, discovered: &Discovered) -> BTreeMap<IpAddr, bool> {
    let peers = discovered.overlays.iter().flat_map(|overlay| &overlay.peers);
    let mut nodes: BTreeMap<_, _> = peers.map(|(address, _)| (*address, false)).collect();
    for (name, described) in &model.nodes {
        described.addresses.iter().for_each(|&address| *nodes.entry(address).or_default() |= name == node);
    }
    // What the kernel says of this node beats what the file says of others.
    let own = discovered.overlays.iter().filter_map(|overlay| overlay.own.as_ref());
    nodes.extend(discovered.addresses.iter().chain(own).map(|&address| (address, true)));
    // Where the node itself answers for a cloud, rules about that are meant.
    METADATA.iter().for_each(|address| _ = nodes.remove(address));
    nodes
}

/// Takes the addresses of nodes from workloads that have them too: whoever says so, of a pod or of a node, must not be in the way of everybody's policy.
/// An address is a node's then, and a workload that is left without one sends and gets nothing.
pub(crate) fn yield_to_nodes(model: &mut Model, node: &str, discovered: &Discovered) {
    let nodes = nodes(model, node, discovered);
    for (name, workload) in &mut model.workloads {
        let Some(address) = workload.addresses().find(|address| nodes.contains_key(address)) else { continue };
        tracing::warn!(
            "{address} of workload `{name}` is an address of a node as well, and counts as that: see who wrote it, the status of the pod or that of the node"
        );
        for endpoint in &mut Arc::make_mut(&mut workload.described).endpoints {
            endpoint.addresses.retain(|address| !nodes.contains_key(address));
        }
    }
}

impl<'a> Network<'a> {
    pub(super) fn new(
        model: &'a Model,
        node: &'a str,
        discovered: &Discovered,
        selectors: &'a [draft::Selector],
    ) -> Self {
        let here = model.workloads.values().filter(|workload| *workload.node == *node);
        let segments =
            here.flat_map(|workload| &workload.endpoints).map(|endpoint| endpoint.segment).chain([0]).collect();
        Self { model, node, selectors, underlay: Underlay::new(model, node, discovered), segments }
    }

    /// Known addresses: those of all workloads in their segments, and those of nodes in every segment in use.
    pub(super) fn addresses(&self) -> Result<Pieces<(Segment, IpAddr), Address>, Diagnostics> {
        let Self { model, node, underlay, .. } = self;
        let mut found = Diagnostics::default();
        let mut addresses = Pieces::default();
        let members = Members::new(ids(self.selectors));
        let selector = |id: SelectorId| self.selectors.get(id.0 as usize);
        for (name, workload) in &model.workloads {
            let named = members.of(selector, model, name, workload);
            for (index, endpoint) in (0..).zip(&workload.endpoints) {
                for &address in &endpoint.addresses {
                    if underlay.nodes.contains_key(&address) {
                        let error = Diagnostic::error(
                            &workload.place,
                            format!("{address} of workload `{name}` is an address of a node"),
                        );
                        found.push(error.help("a workload in a node's own network has no endpoint: leave it out"));
                    }
                    let mut selectors = named.clone();
                    if !endpoint.placeholder {
                        selectors.extend(members.at(selector, address, workload));
                    }
                    let here = || endpoint_name(name, index);
                    let here = (*workload.node == **node).then(here);
                    let known = underlay.known(endpoint.segment, address, selectors, here);
                    addresses.insert((endpoint.segment, address), known);
                }
            }
        }
        for &segment in &self.segments {
            for &address in underlay.nodes.keys() {
                let some = ids(self.selectors).filter(|(_, selector)| selector.has_node(model, underlay, address));
                let selectors = some.map(|(id, _)| id).collect();
                addresses.insert((segment, address), underlay.of_node(segment, address, selectors));
            }
        }
        found.or(addresses)
    }

    /// Prefixes for what is not known. A look-up finds the longest one only, hence each has all that matches it; every prefix that a selector or
    /// a distinction of ours mentions is there, so that what matches the longest one matches all of the addresses that find it.
    pub(super) fn prefixes(&self) -> BTreeMap<(Segment, IpNetwork), Prefix> {
        let of_selectors: BTreeSet<IpNetwork> =
            self.selectors.iter().flat_map(draft::Selector::nets).copied().collect();
        let mut prefixes = BTreeMap::new();
        for &segment in &self.segments {
            for net in self.underlay.mentioned(segment).into_iter().chain(of_selectors.iter().copied()) {
                let selectors = self.underlay.covering(self.model, segment, net, ids(self.selectors));
                prefixes.insert((segment, net), self.underlay.prefix(segment, net, selectors));
            }
        }
        prefixes
    }
}

/// Selectors with their ids.
fn ids(selectors: &[draft::Selector]) -> impl Iterator<Item = (SelectorId, &draft::Selector)> + Clone {
    (0..).map(SelectorId).zip(selectors)
}

/// Name of one of a workload's endpoints.
pub(super) fn endpoint_name(name: &WorkloadName, index: u32) -> EndpointName {
    EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index }
}

impl draft::Selector {
    /// Whether it names a workload, whatever the address.
    pub(super) fn has_member(&self, model: &Model, name: &WorkloadName, workload: &Workload) -> bool {
        self.has_port(workload) && !matches!(*self.peer, Peer::Cidrs(_)) && model.matches(&self.peer, name, workload)
    }

    /// As [`Self::has_member`], of one of [`Model::candidates`]: its namespace has been looked at.
    pub(super) fn has_candidate(&self, model: &Model, name: &WorkloadName, workload: &Workload) -> bool {
        match &*self.peer {
            Peer::Workloads { labels, .. } => {
                !workload.host && self.has_port(workload) && labels.matches(&workload.labels)
            }
            Peer::Namespaces { .. } => !workload.host && self.has_port(workload),
            _ => self.has_member(model, name, workload),
        }
    }

    /// Whether a workload has the port, where one is named.
    pub(super) fn has_port(&self, workload: &Workload) -> bool {
        let of = |port: &draft::NamedPort| {
            workload.listens(&port.name, Some(port.transport)).any(|(_, number)| number == port.number)
        };
        self.port.as_ref().is_none_or(of)
    }

    /// Whether it names an address, whoever has it.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        matches!(&*self.peer, Peer::Cidrs(cidrs) if holds(cidrs, address))
    }

    /// Prefixes that it mentions.
    pub(super) fn nets(&self) -> impl Iterator<Item = &IpNetwork> {
        let cidrs = match &*self.peer {
            Peer::Cidrs(cidrs) => Some(cidrs.cidrs.iter().chain(&cidrs.except)),
            _ => None,
        };
        cidrs.into_iter().flatten()
    }

    /// Whether it may name a node or a prefix.
    pub(super) fn is_beyond(&self) -> bool {
        match &*self.peer {
            Peer::Cidrs(_) | Peer::Any | Peer::Nodes(_) => true,
            Peer::Entity(entity) => !matches!(entity, Entity::Cluster),
            Peer::Namespaces { other, .. } => *other,
            Peer::Service(_) | Peer::Backends(_) | Peer::Workloads { .. } => false,
        }
    }

    /// Whether it names the address of a node, this one or another.
    pub(super) fn has_node(&self, model: &Model, underlay: &Underlay, address: IpAddr) -> bool {
        match &*self.peer {
            // Only workloads name their ports.
            _ if self.port.is_some() => false,
            Peer::Entity(Entity::Node) => underlay.nodes.get(&address).copied().unwrap_or_default(),
            Peer::Entity(Entity::Nodes) => true,
            Peer::Namespaces { other, .. } => *other,
            Peer::Nodes(labels) => underlay.is_labelled(model, address, labels),
            _ => self.holds(address),
        }
    }

    /// Whether it matches all of a prefix.
    pub(super) fn covers(&self, model: &Model, underlay: &Underlay, segment: Segment, net: IpNetwork) -> bool {
        match &*self.peer {
            _ if self.port.is_some() => false,
            Peer::Entity(Entity::World) => underlay.is_world(segment, net),
            Peer::Entity(Entity::Nodes) => underlay.is_masqueraded(net),
            Peer::Entity(Entity::Metadata) => METADATA.iter().any(|&address| IpNetwork::from(address) == net),
            Peer::Nodes(labels) => underlay.is_masqueraded(net) && underlay.is_labelled(model, net.ip(), labels),
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
        }
    }
}

/// Overlays of which a node is a member. The file says who owns which inner prefix; what the kernel binds for good is added where the file says
/// nothing else.
pub(super) fn overlays(model: &Model, node: &str, own: &Node, discovered: &Discovered) -> Vec<Overlay> {
    let of = |vni| {
        let listed = Listed::new(model, vni);
        let others = model.workloads.values().filter(|workload| *workload.node != *node);
        let bound = others.flat_map(|workload| listed.bindings(model, workload)).collect();
        listed.overlay(model, node, own, discovered, &bound)
    };
    vnis(own, discovered).into_iter().map(of).collect()
}

/// Overlays of which a node is a member.
pub(super) fn vnis(own: &Node, discovered: &Discovered) -> BTreeSet<Segment> {
    let written = own.segments.iter().map(|segment| segment.vni);
    written.chain(discovered.overlays.iter().map(|overlay| overlay.vni)).collect()
}

/// Inner prefixes of an overlay that exactly one node lists: they bind to it.
#[derive(Debug)]
pub(super) struct Listed {
    vni: Segment,
    lone: HashSet<IpNetwork>,
}

impl Listed {
    pub(super) fn new(model: &Model, vni: Segment) -> Self {
        let mut by_prefix: HashMap<IpNetwork, BTreeSet<&str>> = HashMap::new();
        for (name, segment) in members(model, vni) {
            for &prefix in &segment.prefixes {
                by_prefix.entry(prefix).or_default().insert(name);
            }
        }
        let lone = by_prefix.into_iter().filter(|(_, nodes)| nodes.len() == 1).map(|(prefix, _)| prefix).collect();
        Self { vni, lone }
    }

    /// Whether it binds to a node already.
    pub(super) fn binds(&self, net: &IpNetwork) -> bool {
        self.lone.contains(net)
    }

    /// What of a workload is bound by address, since no prefix of its own node covers it: VTEP and address.
    pub(super) fn bindings(&self, model: &Model, workload: &Workload) -> impl Iterator<Item = (IpAddr, IpNetwork)> {
        let segments = model.nodes.get(&*workload.node).map(|node| node.segments.iter());
        let of_node: Vec<_> = segments.into_iter().flatten().filter(|segment| segment.vni == self.vni).collect();
        let here = workload.endpoints.iter().filter(|endpoint| endpoint.segment == self.vni);
        here.flat_map(|endpoint| &endpoint.addresses).filter_map(move |address| {
            let prefixes = of_node.iter().flat_map(|segment| &segment.prefixes);
            let covered = prefixes.into_iter().any(|prefix| self.binds(prefix) && prefix.contains(*address));
            let of_family = of_node.iter().find(|segment| segment.vtep.is_ipv4() == address.is_ipv4());
            let carrier = of_family.or(of_node.first())?;
            (!covered).then_some((carrier.vtep, (*address).into()))
        })
    }

    /// The overlay, with what is bound by address.
    pub(super) fn overlay(
        &self,
        model: &Model,
        node: &str,
        own: &Node,
        discovered: &Discovered,
        bound: &BTreeSet<(IpAddr, IpNetwork)>,
    ) -> Overlay {
        let vni = self.vni;
        let devices = || discovered.overlays.iter().filter(|overlay| overlay.vni == vni);
        let ours: BTreeSet<IpAddr> = own
            .segments
            .iter()
            .filter(|segment| segment.vni == vni)
            .map(|segment| segment.vtep)
            .chain(devices().filter_map(|device| device.own))
            .collect();

        let mut peers: BTreeMap<IpAddr, BTreeSet<IpNetwork>> = BTreeMap::new();
        for (_, segment) in members(model, vni).filter(|(name, _)| *name != node) {
            let lone = segment.prefixes.iter().copied().filter(|prefix| self.binds(prefix));
            peers.entry(segment.vtep).or_default().extend(lone);
        }
        for &(vtep, net) in bound {
            peers.entry(vtep).or_default().insert(net);
        }
        let written: Vec<(IpAddr, IpNetwork)> =
            peers.iter().flat_map(|(&vtep, prefixes)| prefixes.iter().map(move |&prefix| (vtep, prefix))).collect();
        for (vtep, prefixes) in devices().flat_map(|device| &device.peers).filter(|(vtep, _)| !ours.contains(vtep)) {
            let known = peers.entry(*vtep).or_default();
            let contradicted = |&&net: &&IpNetwork| {
                written
                    .iter()
                    .any(|&(other, prefix)| other != *vtep && (contains(prefix, net) || contains(net, prefix)))
            };
            known.extend(prefixes.iter().filter(|net| !contradicted(net)));
        }
        let port = devices()
            .map(|device| device.port)
            .next()
            .or_else(|| own.segments.iter().filter(|segment| segment.vni == vni).find_map(|segment| segment.port));
        Overlay { vni, port: port.unwrap_or(VXLAN_PORT), own: ours.into_iter().collect(), peers }
    }
}

/// Memberships in an overlay.
fn members(model: &Model, vni: Segment) -> impl Iterator<Item = (&str, &NodeSegment)> {
    let all = model.nodes.iter().flat_map(|(name, node)| node.segments.iter().map(move |at| (name.as_str(), at)));
    all.filter(move |(_, segment)| segment.vni == vni)
}

fn within(prefixes: &BTreeMap<Segment, Prefixes>, segment: Segment, net: IpNetwork) -> bool {
    prefixes.get(&segment).is_some_and(|outers| outers.cover(net))
}

/// Prefixes by their length: of few lengths there may be thousands.
#[derive(Debug, Default)]
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

    fn has(&self, net: IpNetwork) -> bool {
        self.0.get(&net.prefix()).is_some_and(|prefixes| prefixes.contains(&net))
    }

    /// Whether one of them holds all of another prefix.
    fn cover(&self, net: IpNetwork) -> bool {
        self.holding(net).next().is_some()
    }

    /// The longest that holds an address.
    fn longest(&self, address: IpAddr) -> Option<IpNetwork> {
        self.holding(address.into()).next_back()
    }

    /// Those that hold all of another prefix, by their length.
    fn holding(&self, net: IpNetwork) -> impl DoubleEndedIterator<Item = IpNetwork> {
        self.0.range(..=net.prefix()).filter_map(move |(&length, prefixes)| {
            let outer = IpNetwork::new(net.ip(), length).and_then(|net| IpNetwork::new(net.network(), length));
            outer.ok().filter(|outer| prefixes.contains(outer))
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
