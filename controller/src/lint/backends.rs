//! Service addresses that answer or not, as chance has it.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::Direction;

use super::{Check, Finding, quoted};
use crate::{
    model::Model,
    ports::point,
    simulate::{Party, Simulation, display, text::party},
    workloads::{Frontend, FrontendPort},
};

pub(super) fn check(model: &Model, simulation: &Simulation<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, frontend) in &model.frontends {
        for port in &frontend.ports {
            let backends = backends(model, frontend, port);
            if backends.len() < 2 {
                continue;
            }
            if let Some(mixed) = mixed(simulation, port, &backends) {
                let called = point(port.transport.class(), port.port);
                let message = format!("service address `{name}` on {called}: {mixed}");
                let help = "let the same callers call all of its backends, or lead it to those alone that answer";
                findings.push(Finding::new(Check::MixedBackends, &frontend.place, message, help));
            }
        }
    }
    findings
}

/// Backends of a port by group, with the port on which they listen.
fn backends(model: &Model, frontend: &Frontend, port: &FrontendPort) -> BTreeMap<String, u16> {
    let workloads = frontend.workloads.iter().filter_map(|name| model.workloads.get_key_value(name));
    workloads.filter_map(|(name, workload)| Some((display(name, workload), port.target_of(&workload.ports)?))).collect()
}

/// What callers of whom only some backends answer meet.
fn mixed(simulation: &Simulation<'_>, port: &FrontendPort, backends: &BTreeMap<String, u16>) -> Option<String> {
    let class = port.transport.class();
    let outside = simulation.outside(Direction::Ingress).iter().filter(|_| port.node_port.is_some());
    let callers = simulation.groups().filter(|group| !backends.contains_key(*group)).map(Party::Group);
    let mut first = None;
    let mut more = 0;
    for from in callers.chain(outside.copied().map(Party::Outside)) {
        let answers = |(backend, target): &(&String, &u16)| {
            let ports = simulation.between(from, Party::Group(backend));
            ports.of(class).any(|(first, last)| (first..=last).contains(*target))
        };
        let (may, may_not): (Vec<_>, Vec<_>) = backends.iter().partition(answers);
        let (Some((may, _)), Some((may_not, _))) = (may.first(), may_not.first()) else { continue };
        match first {
            None => {
                let names = [party(from), (*may).clone(), (*may_not).clone()].map(quoted);
                first = Some(format!("{} may call backend {} and not {}", names[0], names[1], names[2]));
            }
            Some(_) => more += 1,
        }
    }
    first.map(|text| if more > 0 { format!("{text}; so it is for {more} other callers") } else { text })
}
