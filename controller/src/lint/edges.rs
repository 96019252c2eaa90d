//! Connections of which one wall is opened and the other is not.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::Direction;

use super::{
    Check, Finding, quoted, some,
    walls::{Kind, Walls},
};
use crate::{
    diagnostic::Place,
    judge::Says,
    model::{Peer, Rule, Workload},
    ports::{Ports, Stretch},
};

/// Lines of one name that open a wall to no avail.
struct Half<'a> {
    place: &'a Place,
    direction: Direction,
    what: BTreeSet<String>,
    by: Says<'a>,
}

/// What is found of lines that are not among those which never decide.
pub(super) fn check(walls: &Walls<'_>, shadowed: &[Finding]) -> Vec<Finding> {
    let dead: BTreeSet<_> = shadowed.iter().filter_map(|finding| finding.diagnostic.place.as_ref()).map(key).collect();
    let mut halves: BTreeMap<&str, Half<'_>> = BTreeMap::new();
    for rule in walls.model.rules.iter().filter(|rule| !rule.audit && names_workloads(&rule.peer)) {
        if dead.contains(&key(&rule.place)) {
            continue;
        }
        if let Some(by) = refused(walls, rule) {
            let fresh = || Half { place: &rule.place, direction: rule.direction, what: BTreeSet::new(), by };
            halves
                .entry(&rule.named.name)
                .or_insert_with(fresh)
                .what
                .insert(format!("{} on {}", rule.peer, rule.ports));
        }
    }
    halves.into_iter().map(|(name, half)| half.finding(name)).collect()
}

fn key(place: &Place) -> (&str, u32, u32) {
    (place.file(), place.line, place.column)
}

const fn names_workloads(peer: &Peer) -> bool {
    matches!(peer, Peer::Service(_) | Peer::Workloads { .. } | Peer::Backends(_))
}

/// Who refuses all of what a rule lets through, at the walls of all whom it names; `None` where somebody does not, or there is nobody.
fn refused<'a>(walls: &Walls<'a>, rule: &Rule) -> Option<Says<'a>> {
    let mut by = None;
    for owner in walls.owners(&rule.wall) {
        for peer in walls.are(&rule.peer).filter(|peer| meet(owner, peer)) {
            let listener = if rule.direction == Direction::Ingress { owner } else { peer };
            let stretches = stretches(&rule.ports, listener.workload);
            if !stretches.is_empty() {
                by = Some(walls.refuses(peer, rule.direction.reverse(), owner, &stretches)?);
            }
        }
    }
    by
}

/// Whether they are two: a workload always reaches itself.
fn meet(one: &Kind<'_>, other: &Kind<'_>) -> bool {
    !std::ptr::eq(one, other) || one.members.len() > 1
}

fn stretches(ports: &Ports, listener: &Workload) -> Vec<Stretch> {
    match ports {
        Ports::Named { name, transport } => {
            let listens = listener.listens(name, *transport);
            listens.flat_map(|(transport, port)| Ports::one(transport, port).stretches()).collect()
        }
        ports => ports.stretches(),
    }
}

impl Half<'_> {
    fn finding(self, name: &str) -> Finding {
        let Self { place, direction, what, by } = self;
        let what = some(what.iter().map(quoted));
        let (message, help) = match direction {
            Direction::Egress => (
                format!("`{name}` opens the caller's wall alone: {what} does not accept it, by {by}"),
                "let the other side accept it as well, or remove the line",
            ),
            Direction::Ingress => (
                format!("`{name}` opens the listener's wall alone: {what} may not call it, by {by}"),
                "let the other side call it as well, or remove the line",
            ),
        };
        Finding::new(Check::HalfOpenEdge, place, message, help)
    }
}
