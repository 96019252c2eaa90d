//! Why policies do not fit a node's tables: which of them fill the table that is full, and where they are written. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_dataplane::{
    desired::{Desired, RuleId},
    node::NodeError,
    publish::shares,
};
use ipnetwork::IpNetwork;

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    guard::Whom,
    model::{Model, Peer, Wall},
};

/// So many policies are named.
const NAMED: usize = 3;

/// A policy as people know it.
struct Author<'a> {
    name: String,
    /// Where it begins.
    place: &'a Place,
    /// Prefixes that it mentions.
    nets: BTreeSet<IpNetwork>,
}

/// What to say when a node has no room for what a model means: of whatever fills the table when that is no policy. `None` for other errors. `so` is what
/// becomes of it.
#[must_use]
pub fn no_room(error: &NodeError, desired: &Desired, model: &Model, so: &str) -> Option<Diagnostics> {
    no_room_beside(None, error, desired, model, so)
}

/// The same; first of all who needs more than `before`.
#[must_use]
pub fn no_room_beside(
    before: Option<&Desired>,
    error: &NodeError,
    desired: &Desired,
    model: &Model,
    so: &str,
) -> Option<Diagnostics> {
    let NodeError::Capacity { table, need, limit, .. } = error else { return None };
    let filled = filled((before, desired), model, (table, *need, *limit), so);
    Some(filled.unwrap_or_else(|| Diagnostic::nowhere(format!("{error}; {so}"))).as_local().into())
}

/// What becomes of all that does not fit: what stays in force instead.
#[must_use]
pub fn stays(revision: Option<u64>) -> String {
    match revision {
        Some(revision) => format!("not applied, revision {revision} stays in force"),
        None => "not applied, nothing was in force".to_owned(),
    }
}

fn filled(
    (before, desired): (Option<&Desired>, &Desired),
    model: &Model,
    (table, need, limit): (&str, usize, usize),
    so: &str,
) -> Option<Diagnostic> {
    let authors = authors(model);
    let held = before.map(|before| authors.shares(before, table)).unwrap_or_default();
    let more = |at: usize, share: usize| share.saturating_sub(held.get(&at).copied().unwrap_or_default());
    let shares = authors.shares(desired, table);
    let mut largest: Vec<_> =
        shares.into_iter().map(|(at, share)| (more(at, share), share, &authors.all[at])).collect();
    largest.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then_with(|| a.2.name.cmp(&b.2.name)));
    let largest: Vec<_> = largest.into_iter().map(|(_, share, author)| (share, author)).collect();
    let (share, first) = largest.first()?;
    let message = format!(
        "`{}` needs {} of {} {}, {} are configured; {so}",
        first.name,
        thousands(*share),
        thousands(need),
        unit(table),
        thousands(limit)
    );
    let error = Diagnostic::error(first.place, message).help(help(table));
    let others = largest.iter().skip(1).take(NAMED - 1);
    let error = others.fold(error, |error, (share, other)| {
        error.note(other.place, format!("`{}` needs {}", other.name, thousands(*share)))
    });
    Some(error)
}

/// What a table has room for.
fn unit(table: &str) -> String {
    let what = match table {
        "LISTS" => "blocks of rules",
        "PORTS" => "policy sets",
        "ROWS" => "kinds of peers",
        "RULE_COUNTERS" | "COUNTERS" => "counters of rules",
        "PREFIXES4" | "PREFIXES6" => "prefixes",
        _ => "distinct peers",
    };
    format!("{what} ({table})")
}

/// How fewer are needed.
fn help(table: &str) -> &'static str {
    match table {
        "LISTS" | "PORTS" => {
            "policies that open the same ports to the same peers share; write neighbouring ports as one range, and fewer kinds of peers for each port"
        }
        "RULE_COUNTERS" | "COUNTERS" => {
            "each rule is counted for each workload of the node: write fewer rules, or one for several peers"
        }
        "PREFIXES4" | "PREFIXES6" => "write neighbouring prefixes as one",
        _ => "write fewer distinct peers: the same labels or prefixes in several rules are one",
    }
}

/// Who wrote the rules of a model. That nothing else passes is nobody's: it ends whatever others open.
#[derive(Default)]
struct Authors<'a> {
    all: Vec<Author<'a>>,
    by_rule: BTreeMap<&'a str, usize>,
}

impl<'a> Authors<'a> {
    /// Adds one, with the names and peers of its rules.
    fn add(&mut self, name: String, place: &'a Place, rules: impl IntoIterator<Item = (&'a str, Option<&'a Peer>)>) {
        let mut nets = BTreeSet::new();
        for (rule, peer) in rules {
            self.by_rule.insert(rule, self.all.len());
            if let Some(Peer::Cidrs(cidrs)) = peer {
                nets.extend(cidrs.cidrs.iter().chain(&cidrs.except).copied());
            }
        }
        self.all.push(Author { name, place, nets });
    }

    /// How much of a table each needs, by its place among all.
    fn shares(&self, desired: &Desired, table: &str) -> BTreeMap<usize, usize> {
        if let Some(v4) = (table == "PREFIXES4").then_some(true).or((table == "PREFIXES6").then_some(false)) {
            let nets = || desired.prefixes.keys().map(|(_, net)| net).filter(|net| net.is_ipv4() == v4);
            let of = |author: &Author<'_>| nets().filter(|net| author.nets.contains(*net)).count();
            return self.all.iter().map(of).enumerate().filter(|(_, share)| *share > 0).collect();
        }
        let policy = |rule: RuleId| self.by_rule.get(desired.rules.get(rule.0 as usize)?.name.as_str()).copied();
        shares(desired, table, policy).map(|shares| shares.into_iter().collect()).unwrap_or_default()
    }
}

fn authors(model: &Model) -> Authors<'_> {
    let mut authors = Authors::default();
    for (name, policy) in &model.network_policies {
        let rules = policy.rules.iter();
        let rules = rules.flat_map(|rule| rule.peers.iter().map(|peer| (rule.name.as_str(), Some(peer))));
        authors.add(format!("networkpolicy {name}"), &policy.place, rules);
    }
    for guard in &model.guards {
        let rules = guard.rules.iter().map(|rule| match &rule.peer {
            Whom::Is(peer) => (rule.name.as_str(), Some(peer)),
            Whom::Same | Whom::Other => (rule.name.as_str(), None),
        });
        authors.add(format!("{} {}", guard.kind.name().to_lowercase(), guard.name), &guard.place, rules);
    }
    // An Intent has no name of its own: it is its namespace's part of a file.
    let mut intents: BTreeMap<(&str, &str), (&Place, Vec<(&str, Option<&Peer>)>)> = BTreeMap::new();
    for rule in &model.rules {
        let namespace = match (&rule.wall, &*rule.peer) {
            (Wall::Service(name), _) | (Wall::Resolvers | Wall::Backends(_), Peer::Service(name)) => &name.namespace,
            _ => continue,
        };
        let key = (namespace.as_str(), rule.place.file());
        let (place, rules) = intents.entry(key).or_insert((&rule.place, Vec::new()));
        if rule.place.line < place.line {
            *place = &rule.place;
        }
        rules.push((rule.named.name.as_str(), Some(&rule.peer)));
    }
    for ((namespace, _), (place, rules)) in intents {
        authors.add(format!("intent {namespace}"), place, rules);
    }
    authors
}

/// `17,102`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_of_counters_are_told_as_such() {
        for table in ["RULE_COUNTERS", "COUNTERS"] {
            assert_eq!(unit(table), format!("counters of rules ({table})"));
            assert!(help(table).contains("counted for each workload"));
        }
    }
}
