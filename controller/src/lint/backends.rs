//! Service addresses that answer or not, as chance has it.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::Direction;

use super::{Check, Finding, quoted};
use crate::{
    ports::point,
    simulate::{Party, Range, Simulation, display, text::party},
    workloads::{Frontend, FrontendPort},
};

/// Backends of a port by name, each with the port on which it listens; of one outside the range in which it is.
type Backends = BTreeMap<String, (Option<Range>, u16)>;

pub(super) fn check(simulation: &Simulation<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, frontend) in &simulation.model().frontends {
        let has = |v6: &bool| {
            frontend.addresses.is_empty() || frontend.addresses.iter().any(|address| address.is_ipv6() == *v6)
        };
        for port in &frontend.ports {
            let mixed = [false, true].into_iter().filter(has).find_map(|v6| {
                let backends = backends(simulation, frontend, port, v6);
                if backends.len() < 2 { None } else { mixed(simulation, port, &backends, v6) }
            });
            if let Some(mixed) = mixed {
                let called = point(port.transport.class(), port.port);
                let message = format!("service address `{name}` on {called}: {mixed}");
                let help = "let the same callers call all of its backends, or lead it to those alone that answer";
                findings.push(Finding::new(Check::MixedBackends, &frontend.place, message, help));
            }
        }
    }
    findings
}

/// Backends of a port with an address of a family: workloads by group.
fn backends(simulation: &Simulation<'_>, frontend: &Frontend, port: &FrontendPort, v6: bool) -> Backends {
    let model = simulation.model();
    let workloads = frontend.workloads.iter().filter_map(|name| {
        let workload = model.workloads.get(name)?;
        let group = display(name, workload);
        let target = port.target_of(&workload.ports)?;
        simulation.meets(&group, v6).then_some((group, (None, target)))
    });
    let outside = frontend.outside.iter().filter_map(|outside| {
        let address = outside.address;
        let mut ranges = simulation.outside(Direction::Egress).iter();
        let range = ranges.find(|range| range.is_ipv6() == v6 && (range.first()..=range.last()).contains(&address))?;
        Some((address.to_string(), (Some(*range), port.answered_by(outside)?)))
    });
    workloads.chain(outside).collect()
}

/// What callers of whom only some backends answer meet.
fn mixed(simulation: &Simulation<'_>, port: &FrontendPort, backends: &Backends, v6: bool) -> Option<String> {
    let class = port.transport.class();
    let outside = simulation.outside(Direction::Ingress).iter().filter(|_| port.node_port.is_some());
    let outside = outside.filter(|range| range.is_ipv6() == v6);
    let callers = simulation.groups().filter(|group| !backends.contains_key(*group) && simulation.meets(group, v6));
    let mut first = None;
    let mut more = 0;
    for from in callers.map(Party::Group).chain(outside.copied().map(Party::Outside)) {
        let answers = |(backend, (range, target)): &(&String, &(Option<Range>, u16))| {
            let to = range.map_or(Party::Group(backend), Party::Outside);
            // Between those outside there is no wall.
            let open = matches!((from, to), (Party::Outside(_), Party::Outside(_)));
            let ports = || simulation.between(from, to);
            open || ports().of(class).any(|(first, last)| (first..=last).contains(target))
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
