//! Rules that never decide, since others did before.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{Action, Direction};

use super::{
    Check, Finding,
    walls::{Kind, Line, Walls},
};
use crate::{diagnostic::Diagnostics, guard::Tier, judge::Says};

/// What became of a rule at all walls and for everybody who comes to them.
struct Fate<'a> {
    says: Says<'a>,
    action: Action,
    decides: bool,
    /// Who decides before it, in the order in which that is seen.
    before: Vec<(Says<'a>, Action)>,
}

/// A rule as people know it: one that opens both ends has a fate at each.
type Key<'a> = (&'a str, Direction);

pub(super) fn check(walls: &Walls<'_>) -> Result<Vec<Finding>, Diagnostics> {
    let mut fates = BTreeMap::new();
    for audit in [false, true] {
        for direction in [Direction::Ingress, Direction::Egress] {
            ask(walls, direction, audit, &mut fates)?;
        }
    }
    let mut reported = BTreeSet::new();
    let mut findings = Vec::new();
    for ((name, direction), fate) in &fates {
        if let Some(finding) = fate.finding(name, *direction)
            && reported.insert(name)
        {
            findings.push(finding);
        }
    }
    Ok(findings)
}

/// Asks each wall in which Guards speak once for everybody; with `audit` of what is audited, as if it were enforced.
fn ask<'a>(
    walls: &Walls<'a>,
    direction: Direction,
    audit: bool,
    fates: &mut BTreeMap<Key<'a>, Fate<'a>>,
) -> Result<(), Diagnostics> {
    let mut behind: BTreeMap<(usize, &[usize]), (&Kind<'a>, usize)> = BTreeMap::new();
    for kind in &walls.kinds {
        let (at, _) = walls.wall(kind, direction);
        behind.entry((at, &kind.node)).or_insert((kind, 0)).1 += kind.members.len();
    }
    let wanted = |line: &Line<'_>| line.audit == audit;
    for (kind, members) in behind.into_values() {
        let (number, wall) = walls.wall(kind, direction);
        if !wall.iter().any(|line| guards(line.says)) {
            continue;
        }
        for met in walls.all(kind, members == 1) {
            if wall.iter().filter(|line| wanted(line)).all(|line| settled(fates, line, direction)) {
                break;
            }
            for (line, by) in walls.judge(number, met, audit)? {
                if wanted(&wall[line]) {
                    record(fates, &wall[line], (line != by).then_some(&wall[by]), direction);
                }
            }
        }
    }
    Ok(())
}

/// Whether a line is known to decide something.
fn settled(fates: &BTreeMap<Key<'_>, Fate<'_>>, line: &Line<'_>, direction: Direction) -> bool {
    let known = |name| fates.get(&(name, direction)).is_some_and(|fate| fate.decides);
    line.says.rule().is_none_or(known)
}

fn record<'a>(fates: &mut BTreeMap<Key<'a>, Fate<'a>>, line: &Line<'a>, by: Option<&Line<'a>>, direction: Direction) {
    let Some(name) = line.says.rule() else { return };
    let fresh = || Fate { says: line.says, action: line.action, decides: false, before: Vec::new() };
    let fate = fates.entry((name, direction)).or_insert_with(fresh);
    let Some(by) = by else {
        fate.decides = true;
        return;
    };
    // One of an action is enough to say.
    let same = |before: &&(Says<'_>, Action)| before.1 == by.action && guards(before.0) == guards(by.says);
    if !fate.before.iter().any(|before| same(&before)) {
        fate.before.push((by.says, by.action));
    }
}

const fn guards(says: Says<'_>) -> bool {
    matches!(says, Says::Guard(..))
}

impl Fate<'_> {
    fn finding(&self, name: &str, direction: Direction) -> Option<Finding> {
        let place = self.says.place().filter(|_| !self.decides)?;
        match self.says {
            Says::Guard(guard, _) => {
                let (by, _) = self.before.iter().find(|(by, action)| {
                    // A baseline is there for what others leave to it.
                    let expected = guard.tier == Tier::Baseline && self.action == Action::Deny && !guards(*by);
                    *action != self.action && !expected
                })?;
                let message = format!("`{name}` never decides: {by} does before it");
                Some(Finding::new(Check::ShadowedRule, place, message, "put it before that one, or remove it"))
            }
            Says::Rule(_) => {
                let denied = self.before.iter().all(|(by, action)| guards(*by) && *action == Action::Deny);
                let (by, _) = self.before.first().filter(|_| denied)?;
                let nobody = if direction == Direction::Ingress { "lets nobody in" } else { "lets nobody out" };
                let message = format!("`{name}` {nobody}: {by} denies all of it before");
                let help = "let that Guard `pass` or `allow` it, or remove the line";
                Some(Finding::new(Check::ShadowedRule, place, message, help))
            }
            Says::Isolated(..) | Says::Node | Says::Nobody => None,
        }
    }
}
