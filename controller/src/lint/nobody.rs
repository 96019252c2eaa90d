//! Policies and peers that nobody is, and ports that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::Direction;

use super::{Check, Finding, quoted};
use crate::{
    diagnostic::{Diagnostic, Place, suggest},
    guard::{Guard, Kind, Whom},
    labels::{Labels, Requirement, Selector},
    model::{Model, Peer, Rule, Scope, Wall, Workload},
    network_policy::NetworkPolicy,
    ports::Ports,
    workloads::WorkloadName,
};

pub(super) fn check(model: &Model) -> Vec<Finding> {
    let mut findings: Vec<Finding> = model.warnings.0.iter().map(known).collect();
    findings.extend(model.network_policies.values().filter_map(|policy| selected(model, policy)));
    let mut peers: BTreeMap<(&str, &Peer), &Place> = BTreeMap::new();
    for guard in &model.guards {
        peers.extend(guard.rules.iter().filter_map(|rule| match &rule.peer {
            Whom::Is(peer) => Some(((rule.name.as_str(), peer), &rule.place)),
            Whom::Same | Whom::Other => None,
        }));
    }
    peers.extend(model.rules.iter().map(|rule| ((rule.name.as_str(), &rule.peer), &rule.place)));
    let mut asked: BTreeMap<&Peer, Option<String>> = BTreeMap::new();
    for ((name, peer), place) in peers {
        if let Some(help) = asked.entry(peer).or_insert_with(|| nobody(model, peer)) {
            let message = format!("`{name}`: nobody is {}", quoted(peer));
            findings.push(Finding::new(Check::SelectsNothing, place, message, help.as_str()));
        }
    }
    findings.extend(ports(model));
    findings
}

/// What the model says itself, by the name of its check.
fn known(warning: &Diagnostic) -> Finding {
    let health = warning.message.ends_with("such as health checks");
    let check = if health { Check::DeniesHealthChecks } else { Check::SelectsNothing };
    Finding { check, diagnostic: warning.clone() }
}

fn selected(model: &Model, policy: &NetworkPolicy) -> Option<Finding> {
    let namespace = &policy.name.namespace;
    let here: Vec<&Labels> = of_namespaces(model, |name| name == namespace);
    if model.workloads.values().any(|workload| workload.policies.contains(&policy.name)) {
        return None;
    }
    let message = format!("NetworkPolicy `{}` selects no workload", policy.name);
    let help = match here.is_empty() {
        true => foreign(model, namespace),
        false => missing(&policy.pods, &here, "workload of its namespace"),
    };
    Some(Finding::new(Check::SelectsNothing, &policy.place, message, help))
}

/// What to do about a peer by labels that nobody is; of names the model says it itself.
fn nobody(model: &Model, peer: &Peer) -> Option<String> {
    match peer {
        Peer::Workloads { namespaces, labels } => {
            let is = |(name, workload): (&WorkloadName, &Workload)| model.matches(peer, name, workload);
            if model.workloads.iter().any(is) {
                return None;
            }
            let here = of_namespaces(model, |name| namespaces.holds(model, name));
            Some(match namespaces {
                Scope::Named(name) if here.is_empty() => foreign(model, name),
                Scope::Labelled(wanted) if here.is_empty() => {
                    missing(wanted, &model.namespaces.values().collect::<Vec<_>>(), "namespace with workloads")
                }
                _ => missing(labels, &here, "workload there"),
            })
        }
        Peer::Nodes(labels) => {
            let all: Vec<_> = model.nodes.values().map(|node| &node.labels).collect();
            (!all.iter().any(|own| labels.matches(own))).then(|| missing(labels, &all, "node"))
        }
        _ => None,
    }
}

/// Labels of the workloads of some namespaces.
fn of_namespaces(model: &Model, holds: impl Fn(&str) -> bool) -> Vec<&Labels> {
    let workloads = model.workloads.iter().filter(|(name, workload)| !workload.host && holds(&name.namespace));
    workloads.map(|(_, workload)| &workload.labels).collect()
}

/// About a namespace in which nobody is.
fn foreign(model: &Model, namespace: &str) -> String {
    let all: BTreeSet<&str> = model.workloads.keys().map(|name| name.namespace.as_str()).collect();
    format!("no workload is in namespace `{namespace}`: {}", suggest(namespace, all))
}

/// Which requirement is not fulfilled, and what would be.
fn missing(wanted: &Selector, all: &[&Labels], who: &str) -> String {
    let Some(requirement) = wanted.requirements().find(|requirement| !all.iter().any(|own| requirement.holds(own)))
    else {
        return format!("no {who} has all of these labels");
    };
    let values: BTreeSet<&str> =
        all.iter().filter_map(|own| own.get(requirement.label())).map(String::as_str).collect();
    let none = format!("no {who} fulfils `{requirement}`");
    match requirement {
        Requirement::In(_, named) if !values.is_empty() => {
            let first = named.first().map_or("", String::as_str);
            format!("{none}: {}", suggest(first, values))
        }
        Requirement::In(label, _) | Requirement::Exists(label) => {
            let labels: BTreeSet<&str> = all.iter().flat_map(|own| own.keys()).map(String::as_str).collect();
            format!("{none}: {}", suggest(label, labels))
        }
        Requirement::NotIn(..) | Requirement::Missing(_) => none,
    }
}

/// Named ports of Kubernetes policies. What names none that is there is an error in our own documents.
fn ports(model: &Model) -> Vec<Finding> {
    let mut unknown: BTreeMap<(&str, &str), Unknown<'_>> = BTreeMap::new();
    for guard in model.guards.iter().filter(|guard| guard.kind != Kind::Guard) {
        for rule in &guard.rules {
            for ports in &rule.ports {
                let asked = || guarded(model, guard, rule);
                unknown_port(ports, &rule.name, &rule.place, asked, &mut unknown);
            }
        }
    }
    for rule in model.rules.iter().filter(|rule| matches!(rule.wall, Wall::Policy(_))) {
        unknown_port(&rule.ports, &rule.name, &rule.place, || listeners(model, rule), &mut unknown);
    }
    let findings = unknown.into_iter().filter(|(_, unknown)| !unknown.known);
    findings.map(|((rule, port), unknown)| unknown.finding(rule, port)).collect()
}

/// A named port of a rule.
struct Unknown<'a> {
    place: &'a Place,
    /// Some workload has it.
    known: bool,
    /// Names that there are.
    names: BTreeSet<&'a str>,
}

fn unknown_port<'a>(
    ports: &'a Ports,
    rule: &'a str,
    place: &'a Place,
    listeners: impl Fn() -> Vec<&'a Workload>,
    unknown: &mut BTreeMap<(&'a str, &'a str), Unknown<'a>>,
) {
    let Ports::Named { name, transport } = ports else { return };
    let entry = unknown.entry((rule, name)).or_insert_with(|| Unknown { place, known: false, names: BTreeSet::new() });
    if !entry.known {
        let listeners = listeners();
        entry.known = listeners.iter().any(|workload| workload.listens(name, *transport).is_some());
        entry.names.extend(listeners.iter().flat_map(|workload| workload.ports.keys()).map(String::as_str));
    }
}

/// Who listens according to a rule of a `NetworkPolicy`.
fn listeners<'a>(model: &'a Model, rule: &Rule) -> Vec<&'a Workload> {
    let listens = |(name, workload): &(&WorkloadName, &Workload)| match (rule.direction, &rule.wall) {
        (Direction::Ingress, Wall::Policy(policy)) => workload.policies.contains(policy),
        _ => model.matches(&rule.peer, name, workload),
    };
    model.workloads.iter().filter(listens).map(|(_, workload)| workload).collect()
}

/// Who listens according to a rule of a Guard by another name.
fn guarded<'a>(model: &'a Model, guard: &Guard, rule: &crate::guard::Rule) -> Vec<&'a Workload> {
    let listens = |(name, workload): &(&WorkloadName, &Workload)| match (rule.direction, &rule.peer) {
        (Direction::Ingress, _) => !workload.host && guard.subjects.hold(model, name, workload),
        (Direction::Egress, Whom::Is(peer)) => model.matches(peer, name, workload),
        // Who is the same or other depends on whom it concerns.
        (Direction::Egress, _) => !workload.host,
    };
    model.workloads.iter().filter(listens).map(|(_, workload)| workload).collect()
}

impl Unknown<'_> {
    fn finding(self, rule: &str, port: &str) -> Finding {
        let message = format!("`{rule}`: no workload that it is about has a port `{port}` of its protocol");
        let help = match self.names.is_empty() {
            true => "write the port's number: no workload that listens there names its ports".to_owned(),
            false if self.names.contains(port) => format!("`{port}` is there with another protocol"),
            false => suggest(port, self.names),
        };
        Finding::new(Check::UnknownNamedPort, self.place, message, help)
    }
}
