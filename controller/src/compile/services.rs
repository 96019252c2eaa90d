//! Addresses that this node's kernel translates, and where calls to them end.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_dataplane::desired::{Backend, Segment, ServiceAddress};

use super::network::Network;
use crate::{
    model::Model,
    workloads::{Frontend, FrontendPort, Target},
};

/// Every port of every service address, in each segment in use on the node.
pub(super) fn services(
    model: &Model,
    node: &str,
    network: &Network<'_>,
) -> BTreeMap<ServiceAddress, BTreeSet<Backend>> {
    let mut services: BTreeMap<ServiceAddress, BTreeSet<Backend>> = BTreeMap::new();
    for &segment in network.segments() {
        for frontend in model.frontends.values() {
            for port in &frontend.ports {
                let backends = backends(model, node, network, segment, frontend, port);
                let key = |address, number| ServiceAddress {
                    segment,
                    address,
                    protocol: port.transport.protocol(),
                    port: number,
                };
                for &address in &frontend.addresses {
                    let of_family = backends.iter().filter(|backend| backend.address.is_ipv4() == address.is_ipv4());
                    // Without any it is there all the same: nobody may be allowed to an address because nobody answers.
                    services.entry(key(Some(address), port.port)).or_default().extend(of_family);
                }
                if let Some(number) = port.node_port {
                    services.entry(key(None, number)).or_default().extend(&backends);
                }
            }
        }
    }
    services
}

fn backends(
    model: &Model,
    node: &str,
    network: &Network<'_>,
    segment: Segment,
    frontend: &Frontend,
    port: &FrontendPort,
) -> BTreeSet<Backend> {
    let mut backends = BTreeSet::new();
    for workload in frontend.workloads.iter().filter_map(|name| model.workloads.get(name)) {
        let Some(number) = port.target_of(&workload.ports) else { continue };
        for endpoint in workload.endpoints.iter().filter(|endpoint| [endpoint.segment, 0].contains(&segment)) {
            for &address in &endpoint.addresses {
                let judged_later = workload.node == node || network.is_encapsulated(endpoint.segment, address.into());
                backends.insert(Backend { address, port: number, judged_later });
            }
        }
    }
    if let Target::Number(number) = port.target {
        backends.extend(frontend.outside.iter().map(|&address| Backend {
            address,
            port: number,
            judged_later: network.is_encapsulated(segment, address.into()),
        }));
    }
    backends
}
