//! Names for addresses, as metrics and texts show them: never an address where policy knows anything better.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use bulkhead_dataplane::{
    desired::{EndpointName, Segment},
    node::Discovered,
};
use ipnetwork::IpNetwork;

use crate::{
    model::{METADATA, Model, ServiceName, holds, local_prefixes},
    workloads::WorkloadName,
};

/// An address that no word of policy but a CIDR could match: of an overlay, but of no known workload; link-local; multicast.
pub const UNKNOWN: &str = "unknown";

/// Names as one node sees them.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Who has an address, and the name of its service; empty where it is its own.
    workloads: BTreeMap<(Segment, IpAddr), (WorkloadName, Arc<str>)>,
    /// Of endpoints of this node.
    segments: BTreeMap<EndpointName, Segment>,
    own: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
    externals: Vec<(ServiceName, crate::intent::Cidrs)>,
    frontends: BTreeMap<IpAddr, ServiceName>,
    neither: Vec<IpNetwork>,
}

impl Peers {
    /// Names of a model.
    #[must_use]
    pub fn new(model: &Model, node: &str, discovered: &Discovered) -> Self {
        let mut peers = Self {
            workloads: known(model),
            segments: BTreeMap::new(),
            own: discovered.addresses.iter().copied().collect(),
            nodes: discovered.overlays.iter().flat_map(|overlay| &overlay.peers).map(|peer| peer.0).collect(),
            externals: model.externals.iter().map(|(name, cidrs)| (name.clone(), cidrs.clone())).collect(),
            frontends: BTreeMap::new(),
            neither: local_prefixes(),
        };
        for (name, frontend) in &model.frontends {
            peers.frontends.extend(frontend.addresses.iter().map(|&address| (address, name.clone())));
        }
        for (name, workload) in model.workloads.iter().filter(|(_, workload)| *workload.node == *node) {
            for (index, endpoint) in (0..).zip(&workload.endpoints) {
                let endpoint_name =
                    EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index };
                peers.segments.insert(endpoint_name, endpoint.segment);
            }
        }
        for (name, described) in &model.nodes {
            let of = if name == node { &mut peers.own } else { &mut peers.nodes };
            of.extend(&described.addresses);
            peers.neither.extend(described.segments.iter().flat_map(|segment| &segment.prefixes));
        }
        peers.neither.extend(discovered.overlays.iter().flat_map(|overlay| &overlay.peers).flat_map(|peer| &peer.1));
        peers
    }

    /// The workload that has an address, as an endpoint sees it.
    #[must_use]
    pub fn workload(&self, endpoint: &EndpointName, address: IpAddr) -> Option<&WorkloadName> {
        self.owner(endpoint, address).map(|(name, _)| name)
    }

    fn owner(&self, endpoint: &EndpointName, address: IpAddr) -> Option<&(WorkloadName, Arc<str>)> {
        let segment = self.segments.get(endpoint).copied().unwrap_or_default();
        self.workloads.get(&(segment, address))
    }

    /// Name of an address, as an endpoint sees it: `shop/cart`, `shop/stripe`, `node`, `nodes`, `metadata`, `world` or [`UNKNOWN`].
    #[must_use]
    pub fn name(&self, endpoint: &EndpointName, address: IpAddr) -> String {
        if let Some((name, service)) = self.owner(endpoint, address) {
            return if service.is_empty() { name.to_string() } else { format!("{}/{service}", name.namespace) };
        }
        if let Some(service) = self.frontends.get(&address) {
            return service.to_string();
        }
        // The name that the workload's own people gave comes before others' names.
        let named = || self.externals.iter().filter(|(_, cidrs)| holds(cidrs, address));
        if let Some((name, _)) =
            named().find(|(name, _)| name.namespace == endpoint.namespace).or_else(|| named().next())
        {
            return name.to_string();
        }
        // Also where a node answers for it.
        let name = if METADATA.contains(&address) {
            "metadata"
        } else if self.own.contains(&address) {
            "node"
        } else if self.nodes.contains(&address) {
            "nodes"
        } else if self.neither.iter().any(|prefix| prefix.contains(address)) {
            UNKNOWN
        } else {
            "world"
        };
        name.to_owned()
    }
}

/// Where [`Peers`] are once somebody has made them, until names are other ones.
#[derive(Clone, Debug, Default)]
pub struct Made(Arc<OnceLock<Arc<Peers>>>);

/// [`Peers`] to come: they take long to make where there are many workloads, so that whoever needs them does it on a thread of their own. Keeps the
/// model from being changed in place, unless they were made before.
#[derive(Debug)]
pub struct Unmade {
    made: Made,
    of: Option<(Arc<Model>, String, Discovered)>,
}

impl Made {
    /// To be made of a model, unless they are.
    #[must_use]
    pub fn of(&self, model: &Arc<Model>, node: &str, discovered: &Discovered) -> Unmade {
        let of = || (Arc::clone(model), node.to_owned(), discovered.clone());
        Unmade { made: self.clone(), of: self.0.get().is_none().then(of) }
    }
}

impl Unmade {
    /// The names; made by the first who asks.
    #[must_use]
    pub fn make(self) -> Arc<Peers> {
        let new = || {
            let (model, node, discovered) =
                self.of.as_ref().expect("they were made, or what they are made of was kept");
            Arc::new(Peers::new(model, node, discovered))
        };
        Arc::clone(self.made.0.get_or_init(new))
    }
}

/// Who has which address. There are many: a map that is made of all of them has no gaps.
fn known(model: &Model) -> BTreeMap<(Segment, IpAddr), (WorkloadName, Arc<str>)> {
    let all = model.workloads.iter().flat_map(|(name, workload)| {
        let keys =
            workload.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().map(|at| (endpoint.segment, *at)));
        keys.map(move |key| (key, (name.clone(), Arc::clone(&workload.service))))
    });
    all.collect()
}
