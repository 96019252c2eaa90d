//! Where calls end that a node translates: to addresses of services, and to ports of nodes that lead to one.

use std::net::IpAddr;

use super::{Party, Question, has, workload};
use crate::{
    model::Model,
    workloads::{Frontend, FrontendPort},
};

/// What is asked of each backend, of all services that have what is called; nothing where nothing is translated. As the compiler has it.
pub(super) fn backends<'a>(model: &'a Model, question: Question<'a>) -> Vec<Question<'a>> {
    // Who has an address keeps it, whatever a service says.
    let Party::Address(address) = question.to else { return Vec::new() };
    if workload(model, question.to).is_some() {
        return Vec::new();
    }
    let is_node = node(model, address).is_some();
    let mut backends = Vec::new();
    for frontend in model.frontends.values().filter(|frontend| is_node || frontend.addresses.contains(&address)) {
        let number = |port: &FrontendPort| if is_node { port.node_port } else { Some(port.port) };
        let called =
            |port: &&FrontendPort| port.transport.class() == question.class && number(port) == Some(question.value);
        for port in frontend.ports.iter().filter(called) {
            let some = answering(model, frontend, port, address.is_ipv4());
            backends.extend(some.map(|(to, value)| Question { to, value, ..question }));
        }
    }
    let mut each = Vec::with_capacity(backends.len());
    for backend in backends {
        if !each.contains(&backend) {
            each.push(backend);
        }
    }
    each
}

/// Who answers a port by addresses of a family, those that are made up included, and where.
fn answering<'a>(
    model: &'a Model,
    frontend: &'a Frontend,
    port: &FrontendPort,
    is_v4: bool,
) -> impl Iterator<Item = (Party<'a>, u16)> {
    let workloads = frontend.workloads.iter().filter_map(move |name| {
        let workload = model.workloads.get(name)?;
        let mut addresses = workload.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let is_met = addresses.any(|own| own.is_ipv4() == is_v4);
        is_met.then_some((Party::Workload(name), port.target_of(&workload.ports)?))
    });
    let outside = frontend.outside.iter().filter(move |outside| outside.address.is_ipv4() == is_v4);
    workloads.chain(outside.filter_map(|outside| Some((Party::Address(outside.address), port.answered_by(outside)?))))
}

/// Why a caller must be allowed to all backends of the port of another node than his: that one translates, and nothing is judged again.
pub(super) fn elsewhere(model: &Model, question: Question<'_>) -> Option<String> {
    let Party::Address(address) = question.to else { return None };
    let (_, caller) = workload(model, question.from)?;
    let name = node(model, address).filter(|name| **name != *caller.node)?;
    Some(format!(
        "node {name} translates {address}, and not the caller's: all backends must be allowed to the caller, whose address they may not see"
    ))
}

/// Why a caller must be allowed to all backends outside.
pub(super) fn outside(called: Party<'_>) -> String {
    format!("{called} leads outside too: all backends there must be allowed to the caller")
}

/// Whether nothing judges again what is sent to a backend, once it is chosen: no workload has its address, nor does an overlay.
pub(super) fn is_for_good(model: &Model, backend: Party<'_>) -> bool {
    let Party::Address(address) = backend else { return false };
    let mut overlays = model.nodes.values().flat_map(|node| &node.segments).flat_map(|segment| &segment.prefixes);
    workload(model, backend).is_none() && !overlays.any(|prefix| prefix.contains(address))
}

/// Node of an address.
fn node(model: &Model, address: IpAddr) -> Option<&String> {
    model.nodes.iter().find(|(_, node)| has(node, address)).map(|(name, _)| name)
}
