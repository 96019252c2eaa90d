//! What nothing isolates, what only reports, and what has ended.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_dataplane::node::direction_label;
use bulkhead_ebpf::abi::{Action, Direction, Mode};

use super::{Check, Finding};
use crate::{
    diagnostic::Place,
    guard::{self, Guard, Whom},
    model::{Model, Peer, ServiceName, Wall, Workload},
    ports::Ports,
    show,
    simulate::display,
    workloads::WorkloadName,
};

pub(super) fn check(model: &Model, now: u64) -> Vec<Finding> {
    let mut findings = not_isolated(model, now);
    findings.extend(model.services.iter().filter(|(_, service)| service.audit).map(|(name, service)| {
        let help = "remove it when what is reported is as you want";
        let message = format!("service `{name}` isolates nobody: {}", audited(model, name));
        Finding::new(Check::AuditLeftOn, &service.place, message, help)
    }));
    findings.extend(model.guards.iter().flat_map(|guard| reporting(guard, now)));
    findings.extend(model.guards.iter().flat_map(|guard| &guard.rules).filter_map(|rule| ended(rule, now)));
    findings.extend(model.workloads.iter().filter(|(_, workload)| workload.mode == Mode::Observe).map(
        |(name, workload)| {
            let message = format!("nothing is blocked at workload `{name}`: its mode is `observe`");
            let help = "remove its `mode` when what is reported is as you want";
            Finding::new(Check::AuditLeftOn, &workload.place, message, help)
        },
    ));
    findings
}

/// What makes a service report only.
fn audited(model: &Model, name: &ServiceName) -> &'static str {
    let rules = || model.rules.iter().filter(|rule| matches!(&rule.wall, Wall::Service(of) if of == name));
    match (rules().next().is_some(), rules().any(|rule| rule.audit)) {
        (true, true) => "its Intent says `mode: audit`",
        (true, false) => "it says `isolate: audit`",
        (false, _) => "it says `isolate: audit`, or its Intent `mode: audit`",
    }
}

/// Workloads by what they are: what made them, else their service, else themselves.
fn group(name: &WorkloadName, workload: &Workload) -> String {
    match workload.owner {
        None if !workload.service.is_empty() => format!("{}/{}", name.namespace, workload.service),
        _ => display(name, workload),
    }
}

fn not_isolated(model: &Model, now: u64) -> Vec<Finding> {
    let mut groups: BTreeMap<String, (&Place, BTreeSet<Direction>)> = BTreeMap::new();
    // Policy is not about what lives in its node's own network, and quarantine lets nothing through.
    let judged = model.workloads.iter().filter(|(_, workload)| !workload.host && workload.mode != Mode::Quarantine);
    for (name, workload) in judged {
        let open: Vec<_> = [Direction::Ingress, Direction::Egress]
            .into_iter()
            .filter(|&direction| model.isolating(workload, direction, true).is_none())
            .filter(|&direction| !closed(model, name, workload, direction, now))
            .collect();
        if !open.is_empty() {
            groups.entry(group(name, workload)).or_insert((&workload.place, BTreeSet::new())).1.extend(open);
        }
    }
    let finding = |(group, (place, directions)): (String, (&Place, BTreeSet<Direction>))| {
        let directions: Vec<_> = directions.into_iter().map(direction_label).collect();
        let message = format!("nothing isolates `{group}` at {}", directions.join(" and "));
        let help = "list it as a service of an Intent, or select it by a NetworkPolicy of that direction";
        Finding::new(Check::NotIsolated, place, message, help)
    };
    groups.into_iter().map(finding).collect()
}

/// Whether a Guard denies everything that no rule before lets through.
fn closed(model: &Model, name: &WorkloadName, workload: &Workload, direction: Direction, now: u64) -> bool {
    let denies = |rule: &guard::Rule| {
        rule.action == Action::Deny
            && !rule.audit
            && rule.peer == Whom::Is(Peer::Any)
            && rule.ports.contains(&Ports::Any)
    };
    let mut guards = model.guards.iter().filter(|guard| guard.rules(direction, now).any(denies));
    guards.any(|guard| guard.subjects.hold(model, name, workload))
}

/// Rules of a Guard that only report; where all do it is the document.
fn reporting(guard: &Guard, now: u64) -> Vec<Finding> {
    let help = "remove `mode: audit` when what is reported is as you want";
    let audited: Vec<_> = guard.rules.iter().filter(|rule| rule.audit && rule.holds(now)).collect();
    if audited.len() > 1 && guard.rules.iter().all(|rule| rule.audit) {
        let message = format!("every rule of {} `{}` only reports: `mode: audit`", guard.kind.name(), guard.name);
        return vec![Finding::new(Check::AuditLeftOn, &guard.place, message, help)];
    }
    let finding = |rule: &guard::Rule| {
        let message = format!("`{}` only reports: `mode: audit`", rule.name);
        Finding::new(Check::AuditLeftOn, &rule.place, message, help)
    };
    audited.into_iter().map(finding).collect()
}

fn ended(rule: &guard::Rule, now: u64) -> Option<Finding> {
    let end = rule.expires.filter(|_| !rule.holds(now))?;
    let message = format!("`{}` says nothing any more: it ended {}", rule.name, show::time(end));
    Some(Finding::new(Check::Expired, &rule.place, message, "remove it, or give it a later `expires`"))
}
