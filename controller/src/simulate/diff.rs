//! What a change adds and removes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Connections, Party, Range, Simulation, ranges,
    text::{PortSet, party},
};
use bulkhead_ebpf::abi::Direction;

/// Two parties between which something changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Who begins.
    pub from: Party<'a>,
    /// Who listens.
    pub to: Party<'a>,
    /// What may begin now and could not.
    pub added: Connections,
    /// What could begin and may not now.
    pub removed: Connections,
}

/// All changes, in order. A party that only one side has reaches nothing on the other.
#[must_use]
pub fn diff<'a>(before: &'a Simulation<'_>, after: &'a Simulation<'_>) -> Vec<Change<'a>> {
    let groups: BTreeSet<&str> = before.groups().chain(after.groups()).collect();
    let groups: Vec<Party<'_>> = groups.into_iter().map(Party::Group).collect();
    let outside = |direction| -> Vec<Range> { ranges::refine(before.outside(direction), after.outside(direction)) };
    let mut changes: Vec<Change<'_>> = Vec::new();
    let mut compare = |from, to| {
        let (old, new) = (before.between(from, to), after.between(from, to));
        if old != new {
            changes.push(Change { from, to, added: new.without(&old), removed: old.without(&new) });
        }
    };
    for &group in &groups {
        outside(Direction::Ingress).into_iter().for_each(|range| compare(Party::Outside(range), group));
        groups.iter().for_each(|&to| compare(group, to));
        outside(Direction::Egress).into_iter().for_each(|range| compare(group, Party::Outside(range)));
    }
    join(changes)
}

/// Neighbouring ranges with the same change are one.
fn join(changes: Vec<Change<'_>>) -> Vec<Change<'_>> {
    let mut joined: Vec<Change<'_>> = Vec::new();
    for change in changes {
        if let Some(last) = joined.last_mut()
            && (&last.added, &last.removed) == (&change.added, &change.removed)
        {
            match (last.from, change.from, last.to, change.to) {
                (Party::Outside(first), Party::Outside(next), to, other) if to == other => {
                    if let Some(both) = first.join(next) {
                        last.from = Party::Outside(both);
                        continue;
                    }
                }
                (from, other, Party::Outside(first), Party::Outside(next)) if from == other => {
                    if let Some(both) = first.join(next) {
                        last.to = Party::Outside(both);
                        continue;
                    }
                }
                _ => {}
            }
        }
        joined.push(change);
    }
    joined
}

/// A line for each: `+` for what is added, `-` for what is removed.
#[must_use]
pub fn text(changes: &[Change<'_>]) -> String {
    if changes.is_empty() {
        return "no connection is added or removed\n".to_owned();
    }
    let mut text = String::new();
    for Change { from, to, added, removed } in changes {
        for (sign, ports) in [('-', removed), ('+', added)].into_iter().filter(|(_, ports)| !ports.is_empty()) {
            text.push_str(&format!("{sign} {} => {} : {ports}\n", party(*from), party(*to)));
        }
    }
    text
}

/// A change for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeLine {
    /// Who begins: a workload, `shop/web[Deployment]`, or a range outside, `10.0.0.0-10.0.0.255[External]`.
    pub from: String,
    /// Who listens.
    pub to: String,
    /// What may begin and could not.
    pub added: PortSet,
    /// What could begin and may not.
    pub removed: PortSet,
}

/// Changes for programs.
#[must_use]
pub fn json(changes: &[Change<'_>]) -> Vec<ChangeLine> {
    let of = |Change { from, to, added, removed }: &Change<'_>| ChangeLine {
        from: party(*from),
        to: party(*to),
        added: added.into(),
        removed: removed.into(),
    };
    changes.iter().map(of).collect()
}
