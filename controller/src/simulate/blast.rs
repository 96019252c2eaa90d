//! What somebody reaches who has taken over a workload, hop by hop.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Connections, Party, Simulation, text::PortSet, text::party};
use crate::show::table as columns;

/// Somebody is reached for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// How many hops that takes, from 1.
    pub hop: usize,
    /// From whom.
    pub from: Party<'a>,
    /// Who is reached.
    pub to: Party<'a>,
    /// On which ports.
    pub ports: Connections,
    /// Rules that let it through, `None` for a side that nothing isolates.
    pub rules: BTreeSet<Option<String>>,
}

/// Everyone whom `from` reaches in at most so many hops, nearest first; each once, by the first way.
#[must_use]
pub fn radius<'a>(simulation: &'a Simulation<'_>, from: Party<'a>, hops: usize) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let mut reached = BTreeSet::from([from]);
    let mut edge = vec![from];
    for hop in 1..=hops {
        let mut next = Vec::new();
        for &from in &edge {
            for to in simulation.targets() {
                if reached.contains(&to) {
                    continue;
                }
                let passages = simulation.passages(from, to);
                if passages.is_empty() {
                    continue;
                }
                let mut ports = Connections::default();
                passages.iter().for_each(|passage| ports.add(passage.class, passage.first, passage.last));
                let rules = passages.into_iter().flat_map(|passage| passage.rules).collect();
                reached.insert(to);
                next.push(to);
                steps.push(Step { hop, from, to, ports, rules });
            }
        }
        // Nobody goes on from outside.
        next.retain(|party| matches!(party, Party::Group(_)));
        edge = next;
    }
    steps
}

fn through(rules: &BTreeSet<Option<String>>) -> String {
    let named: Vec<&str> = rules.iter().flatten().map(String::as_str).collect();
    if named.is_empty() { "nothing isolates either side".to_owned() } else { named.join("; ") }
}

/// A table, and how many are reached.
#[must_use]
pub fn table(from: Party<'_>, steps: &[Step<'_>]) -> String {
    let mut by_hop: BTreeMap<usize, usize> = BTreeMap::new();
    for step in steps.iter().filter(|step| matches!(step.to, Party::Group(_))) {
        *by_hop.entry(step.hop).or_default() += 1;
    }
    let counts: Vec<_> = by_hop.iter().map(|(hop, count)| format!("{count} in hop {hop}")).collect();
    let counts = if counts.is_empty() { "no workload".to_owned() } else { counts.join(", ") };
    let outside = match steps.iter().any(|step| matches!(step.to, Party::Outside(_))) {
        true => "something outside",
        false => "nothing outside",
    };
    let rows: Vec<_> = steps
        .iter()
        .map(|Step { hop, from, to, ports, rules }| {
            [hop.to_string(), party(*from), party(*to), ports.to_string(), through(rules)]
        })
        .collect();
    let mut text = format!("{} reaches {counts}, and {outside}\n", party(from));
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&columns(["HOP", "FROM", "TO", "PORTS", "THROUGH"], &rows));
    }
    text
}

/// An array of objects.
#[must_use]
pub fn json(steps: &[Step<'_>]) -> Value {
    let of = |Step { hop, from, to, ports: on, rules }: &Step<'_>| {
        let rules: Vec<_> = rules.iter().flatten().collect();
        json!({ "hop": hop, "from": party(*from), "to": party(*to), "ports": PortSet::from(on), "rules": rules })
    };
    steps.iter().map(of).collect()
}
