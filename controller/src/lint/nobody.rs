//! Policies and peers that nobody is, and ports that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Finding, quoted};
use crate::{
    diagnostic::{Diagnostic, Place, suggest},
    guard::Whom,
    labels::{Labels, Requirement, Selector},
    model::{Model, Peer, Scope, Workload, is_unknown_port},
    network_policy::NetworkPolicy,
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
    peers.extend(model.rules.iter().map(|rule| ((rule.named.name.as_str(), &*rule.peer), &rule.place)));
    let mut asked: BTreeMap<&Peer, Option<String>> = BTreeMap::new();
    for ((name, peer), place) in peers {
        if let Some(help) = asked.entry(peer).or_insert_with(|| nobody(model, peer)) {
            let message = format!("`{name}`: nobody is {}", quoted(peer));
            findings.push(Finding::new(Check::SelectsNothing, place, message, help.as_str()));
        }
    }
    findings
}

/// What the model says itself, by the name of its check.
fn known(warning: &Diagnostic) -> Finding {
    let health = warning.message.ends_with("such as health checks");
    let check = match health {
        true => Check::DeniesHealthChecks,
        false if is_unknown_port(warning) => Check::UnknownNamedPort,
        false => Check::SelectsNothing,
    };
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
    workloads.map(|(_, workload)| &*workload.labels).collect()
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
    let values: BTreeSet<&str> = all.iter().filter_map(|own| own.get(requirement.label())).collect();
    let none = format!("no {who} fulfils `{requirement}`");
    match requirement {
        Requirement::In(_, named) if !values.is_empty() => {
            let first = named.first().map_or("", String::as_str);
            format!("{none}: {}", suggest(first, values))
        }
        Requirement::In(label, _) | Requirement::Exists(label) => {
            let labels: BTreeSet<&str> = all.iter().flat_map(|own| own.iter()).map(|(label, _)| label).collect();
            format!("{none}: {}", suggest(label, labels))
        }
        Requirement::NotIn(..) | Requirement::Missing(_) => none,
    }
}
