//! Ports by a name that no workload has which listens there. Such a rule is about nothing on that port, as in Kubernetes, and somebody should know:
//! but it is no reason to refuse a file, since the last one who has the port may go at any time.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::Direction;

use super::{Model, Peer, Rule, Wall, Workload};
use crate::{
    diagnostic::{Diagnostic, Place, suggest},
    guard::{self, Guard, Kind, Whom},
    ports::Ports,
};

/// A named port of a rule.
struct Unknown<'a> {
    place: &'a Place,
    /// Some workload has it.
    known: bool,
    /// Names that there are.
    names: BTreeSet<&'a str>,
    /// Nobody who listens is there yet, and that is said elsewhere.
    unsettled: bool,
}

type Found<'a> = BTreeMap<(&'a str, &'a str), Unknown<'a>>;

/// Warnings about all of them, by rule and name.
pub(super) fn unknown(model: &Model) -> Vec<Diagnostic> {
    let mut found = Found::new();
    for guard in &model.guards {
        for rule in &guard.rules {
            let ours = guard.kind == Kind::Guard;
            rule.ports.iter().for_each(|ports| {
                look((ports, &rule.name, &rule.place), ours, || guarded(model, guard, rule), &mut found);
            });
        }
    }
    for rule in &model.rules {
        let ours = match &rule.wall {
            Wall::Service(_) => true,
            Wall::Policy(_) => false,
            Wall::Resolvers | Wall::Backends(_) => continue,
        };
        // Those are made of a service's own target ports.
        if !matches!(*rule.peer, Peer::Backends(_)) {
            look((&rule.ports, &rule.named.name, &rule.place), ours, || listeners(model, rule), &mut found);
        }
    }
    let unknown = found.into_iter().filter(|(_, unknown)| !unknown.known && !unknown.unsettled);
    unknown.map(|((rule, port), unknown)| unknown.warning(rule, port)).collect()
}

fn look<'a>(
    (ports, rule, place): (&'a Ports, &'a str, &'a Place),
    ours: bool,
    listeners: impl Fn() -> Vec<&'a Workload>,
    found: &mut Found<'a>,
) {
    let Ports::Named { name, transport } = ports else { return };
    let fresh = || Unknown { place, known: false, names: BTreeSet::new(), unsettled: ours };
    let entry = found.entry((rule, name)).or_insert_with(fresh);
    if !entry.known {
        let listeners = listeners();
        entry.known = listeners.iter().any(|workload| workload.listens(name, *transport).next().is_some());
        entry.unsettled &= listeners.is_empty();
        entry.names.extend(listeners.iter().flat_map(|workload| workload.ports.keys()).map(String::as_str));
    }
}

/// Who listens according to a rule of an Intent or a `NetworkPolicy`.
fn listeners<'a>(model: &'a Model, rule: &'a Rule) -> Vec<&'a Workload> {
    match (rule.direction, &rule.wall) {
        (Direction::Ingress, Wall::Policy(policy)) => {
            let here = model.of_namespace(&policy.namespace).map(|(_, workload)| workload);
            here.filter(|workload| workload.policies.contains(policy)).collect()
        }
        (Direction::Ingress, Wall::Service(service)) => model.members(service).map(|(_, workload)| workload).collect(),
        _ => are(model, &rule.peer),
    }
}

/// Who listens according to a rule of a Guard.
fn guarded<'a>(model: &'a Model, guard: &'a Guard, rule: &'a guard::Rule) -> Vec<&'a Workload> {
    let concerned = || {
        let all = model.workloads.iter();
        all.filter(|(name, workload)| !workload.host && guard.subjects.hold(model, name, workload))
    };
    match (rule.direction, &rule.peer) {
        (Direction::Ingress, _) => concerned().map(|(_, workload)| workload).collect(),
        (Direction::Egress, Whom::Is(peer)) => are(model, peer),
        // Who is the same or other depends on whom it concerns.
        (Direction::Egress, Whom::Same | Whom::Other) => {
            let namespaces: BTreeSet<&str> = concerned().map(|(name, _)| name.namespace.as_str()).collect();
            let peers: BTreeSet<_> = namespaces.into_iter().filter_map(|own| guard.peer(rule, model, own)).collect();
            let is = |(name, workload): &(&_, &_)| peers.iter().any(|peer| model.matches(peer, name, workload));
            model.workloads.iter().filter(is).map(|(_, workload)| workload).collect()
        }
    }
}

fn are<'a>(model: &'a Model, peer: &'a Peer) -> Vec<&'a Workload> {
    let some = model.candidates(peer).filter(|(name, workload)| model.matches(peer, name, workload));
    some.map(|(_, workload)| workload).collect()
}

impl Unknown<'_> {
    fn warning(self, rule: &str, port: &str) -> Diagnostic {
        let message = format!("`{rule}`: no workload that it is about has a port `{port}` of its protocol");
        let help = match self.names.is_empty() {
            true => "write the port's number: no workload that listens there names its ports".to_owned(),
            false if self.names.contains(port) => format!("`{port}` is there with another protocol"),
            false => suggest(port, self.names),
        };
        Diagnostic::warning(self.place, message).help(help)
    }
}

/// Whether a warning is one of these.
pub(crate) fn is_unknown(warning: &Diagnostic) -> bool {
    warning.message.contains("no workload that it is about has a port")
}
