//! Addresses that this node's kernel translates, and where calls to them end.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_dataplane::desired::{Backend, Segment, ServiceAddress};

use super::network::Underlay;
use crate::{
    model::Model,
    workloads::{Frontend, FrontendPort},
};

/// Every port of every service address, in each segment in use on the node.
pub(super) fn services(
    model: &Model,
    node: &str,
    underlay: &Underlay,
    segments: &BTreeSet<Segment>,
) -> BTreeMap<ServiceAddress, BTreeSet<Backend>> {
    let mut services: BTreeMap<ServiceAddress, BTreeSet<Backend>> = BTreeMap::new();
    for &segment in segments {
        for (address, backends) in
            model.frontends.values().flat_map(|frontend| of_frontend(model, node, underlay, segment, frontend))
        {
            services.entry(address).or_default().extend(backends);
        }
    }
    services
}

/// Ports of one service's addresses in a segment. Without any backend they are there all the same: nobody may be allowed to an address because
/// nobody answers.
pub(super) fn of_frontend(
    model: &Model,
    node: &str,
    underlay: &Underlay,
    segment: Segment,
    frontend: &Frontend,
) -> Vec<(ServiceAddress, BTreeSet<Backend>)> {
    let mut services = Vec::new();
    for port in &frontend.ports {
        let backends = backends(model, node, underlay, segment, frontend, port);
        let key =
            |address, number| ServiceAddress { segment, address, protocol: port.transport.protocol(), port: number };
        for &address in &frontend.addresses {
            let of_family = backends.iter().filter(|backend| backend.address.is_ipv4() == address.is_ipv4());
            services.push((key(Some(address), port.port), of_family.copied().collect()));
        }
        if let Some(number) = port.node_port {
            services.push((key(None, number), backends));
        }
    }
    services
}

fn backends(
    model: &Model,
    node: &str,
    underlay: &Underlay,
    segment: Segment,
    frontend: &Frontend,
    port: &FrontendPort,
) -> BTreeSet<Backend> {
    let mut backends = BTreeSet::new();
    for workload in frontend.workloads.iter().filter_map(|name| model.workloads.get(name)) {
        let Some(number) = port.target_of(&workload.ports) else { continue };
        for endpoint in workload.endpoints.iter().filter(|endpoint| [endpoint.segment, 0].contains(&segment)) {
            for &address in &endpoint.addresses {
                let judged_later =
                    *workload.node == *node || underlay.is_encapsulated(endpoint.segment, address.into());
                backends.insert(Backend { address, port: number, judged_later });
            }
        }
    }
    backends.extend(frontend.outside.iter().filter_map(|outside| {
        let judged_later = underlay.is_encapsulated(segment, outside.address.into());
        Some(Backend { address: outside.address, port: port.answered_by(outside)?, judged_later })
    }));
    backends
}
