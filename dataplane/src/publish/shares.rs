//! Who fills a table: how much of it the rules of each policy would take, lowered by the publisher's own code.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;

use crate::{
    desired::{Desired, Peers, RuleId, SelectorId, SetId},
    names::rule_hash,
    node::NodeError,
    publish::{
        ids::{Blocks, Counters},
        judge::{Lowered, lower_sets},
        state::{Objects as _, State},
    },
    store::{self, Table},
};

/// How much of a table each policy needs, in the table's own unit; `policy` says whose a rule is. What several share counts for each of them. Nothing
/// for a table that no rule fills (workloads do, or prefixes), and for what is not a table's size.
///
/// # Errors
/// What no size of the tables has room for.
pub fn shares<K: Copy + Ord>(
    desired: &Desired,
    table: &str,
    policy: impl Fn(RuleId) -> Option<K>,
) -> Result<BTreeMap<K, usize>, NodeError> {
    let mut shares = BTreeMap::new();
    let mut count = |policies: BTreeSet<K>, size: usize| {
        policies.into_iter().for_each(|policy| *shares.entry(policy).or_default() += size);
    };
    let naming = || naming(desired, &policy);
    let of = |selectors: &BTreeSet<SelectorId>, naming: &BTreeMap<SelectorId, BTreeSet<K>>| {
        selectors.iter().filter_map(|selector| naming.get(selector)).flatten().copied().collect::<BTreeSet<K>>()
    };
    match table {
        // What is told apart by its bit, and what has a number for it.
        "selectors" | store::Ids::NAME => naming().into_values().for_each(|policies| count(policies, 1)),
        store::Rows::NAME => {
            let naming = naming();
            let known = desired.addresses.values().map(|known| &known.selectors);
            let all: BTreeSet<_> = known.chain(desired.prefixes.values().map(|prefix| &prefix.selectors)).collect();
            all.into_iter().for_each(|selectors| count(of(selectors, &naming), 1));
        }
        store::Lists::NAME | store::Ports::NAME | Blocks::TABLE | Counters::TABLE => {
            let Lowered { state, sets, .. } = lower_sets(desired)?;
            // By rule, as numbers name it.
            let rules = (0..).map(RuleId).zip(desired.rules.iter());
            let policies: HashMap<u64, K> =
                rules.filter_map(|(id, rule)| Some((rule_hash(&rule.name), policy(id)?))).collect();
            let mut lists: BTreeMap<u32, BTreeSet<K>> = BTreeMap::new();
            let mut tables: BTreeMap<u32, BTreeSet<K>> = BTreeMap::new();
            let mut numbered: BTreeMap<SetId, Vec<K>> = BTreeMap::new();
            for (set, lowered) in &sets {
                let by_number: Vec<Option<K>> =
                    lowered.numbers.iter().map(|number| policies.get(&number.as_ref()?.0).copied()).collect();
                for list in lists_of(&state, lowered.id) {
                    let run = |entry: &bulkhead_ebpf::abi::Entry| {
                        let first = usize::from(entry.rule);
                        first..first + entry.mask.count_ones().max(1) as usize
                    };
                    let entries =
                        state.lists.get(list).into_iter().flat_map(|block| &block.entries[..block.len as usize]);
                    let some = entries.flat_map(run).filter_map(|number| by_number.get(number).copied().flatten());
                    lists.entry(list).or_default().extend(some);
                }
                for part in state.parts(lowered.id).0 {
                    tables.entry(part).or_default().extend(by_number.iter().flatten());
                }
                numbered.insert(*set, by_number.into_iter().flatten().collect());
            }
            match table {
                store::Lists::NAME => lists.into_values().for_each(|policies| count(policies, 1)),
                store::Ports::NAME => tables.into_values().for_each(|policies| count(policies, 1)),
                _ => {
                    let views = desired.endpoints.iter().map(|endpoint| &endpoint.views);
                    for views in views {
                        let sets: BTreeSet<SetId> = views.iter().flat_map(|view| [view.ingress, view.egress]).collect();
                        let some = sets.iter().filter_map(|set| numbered.get(set)).flatten();
                        some.for_each(|policy| count([*policy].into(), 1));
                    }
                }
            }
        }
        _ => {}
    }
    Ok(shares)
}

/// Whose rules name each selector.
fn naming<K: Copy + Ord>(desired: &Desired, policy: impl Fn(RuleId) -> Option<K>) -> BTreeMap<SelectorId, BTreeSet<K>> {
    let mut naming: BTreeMap<SelectorId, BTreeSet<K>> = BTreeMap::new();
    let entries =
        desired.sets.iter().flat_map(|set| set.classes.iter().flatten()).flat_map(|interval| &interval.entries);
    for entry in entries {
        let Peers::Selectors(some) = &entry.peers else { continue };
        for (selector, rule) in some {
            naming.entry(*selector).or_default().extend(policy(*rule));
        }
    }
    naming
}

/// Every block of the lists of a set.
fn lists_of(state: &State, set: u32) -> BTreeSet<u32> {
    let mut open: Vec<u32> = state.parts(set).1.into_iter().collect();
    let mut all = BTreeSet::new();
    while let Some(list) = open.pop() {
        if list != 0 && all.insert(list) {
            open.extend(state.lists.get(list).map(|block| block.next));
        }
    }
    all
}
