//! What is refused before anything else: states that contradict themselves, and what no limit allows.

use std::collections::BTreeSet;

use bulkhead_ebpf::abi::{Direction, VIEW_CHAIN};
use foldhash::{HashSet, HashSetExt as _};

use crate::{
    desired::{Desired, Peers, RuleId, SelectorId},
    names::endpoint_identity,
    node::{NodeError, direction_label},
    publish::display,
};

pub(crate) fn invalid<T>(why: impl Into<String>) -> Result<T, NodeError> {
    Err(NodeError::Kernel { doing: "read the desired state".to_owned(), why: why.into() })
}

pub(crate) fn capacity(
    what: impl Into<String>,
    table: &'static str,
    need: usize,
    limit: usize,
) -> Result<(), NodeError> {
    if need <= limit { Ok(()) } else { Err(NodeError::Capacity { what: what.into(), table, need, limit }) }
}

/// What a compiler may not hand over, but for selectors of addresses ([`are_there`]). Lookups after this need not ask again.
pub(crate) fn check(desired: &Desired) -> Result<(), NodeError> {
    let (mut names, mut links) = (HashSet::new(), HashSet::new());
    for endpoint in &desired.endpoints {
        let who = display(&endpoint.name);
        if !names.insert(endpoint_identity(&endpoint.name)) {
            return invalid(format!("two endpoints are called {who}"));
        }
        if !links.insert(&endpoint.link) {
            return invalid(format!("link {} of {who} is another endpoint's as well", endpoint.link));
        }
        capacity(&who, "views in a chain of deadlines", endpoint.views.len(), VIEW_CHAIN as usize)?;
        let ends: Vec<u64> = endpoint.views.iter().map(|view| view.until.unwrap_or(u64::MAX)).collect();
        if ends.last() != Some(&u64::MAX) || !ends.is_sorted() {
            return invalid(format!("the views of {who} are not in order of their deadlines, or the last one ends"));
        }
        for view in &endpoint.views {
            for (set, direction) in [(view.ingress, Direction::Ingress), (view.egress, Direction::Egress)] {
                if desired.sets.get(set.0 as usize).is_none_or(|set| set.direction != direction) {
                    return invalid(format!("{} of {who} has no policy set {}", direction_label(direction), set.0));
                }
            }
        }
    }
    for (index, set) in desired.sets.iter().enumerate() {
        for interval in set.classes.iter().flatten() {
            for entry in &interval.entries {
                let fits = match &entry.peers {
                    Peers::Any(rule) => (rule.0 as usize) < desired.rules.len(),
                    Peers::Selectors(some) => {
                        let within = |(selector, rule): &(SelectorId, RuleId)| {
                            is_there(desired, *selector) && (rule.0 as usize) < desired.rules.len()
                        };
                        !some.is_empty() && some.iter().all(within)
                    }
                };
                if !fits {
                    return invalid(format!(
                        "policy set {index} has an entry without peers, or with a selector or rule that is not there"
                    ));
                }
            }
        }
        if set.classes.iter().any(|class| {
            class.first().is_some_and(|first| first.start != 0) || !class.is_sorted_by(|a, b| a.start < b.start)
        }) {
            return invalid(format!("policy set {index} has intervals that are out of order or do not begin at 0"));
        }
    }
    Ok(())
}

/// Whether all selectors of an address or a prefix are there.
pub(crate) fn are_there(desired: &Desired, selectors: &BTreeSet<SelectorId>) -> Result<(), NodeError> {
    let is_there = |selector: &SelectorId| is_there(desired, *selector);
    if selectors.iter().all(is_there) {
        return Ok(());
    }
    invalid("an address or prefix has a selector that is not there")
}

fn is_there(desired: &Desired, selector: SelectorId) -> bool {
    !desired.selectors.get(selector.0 as usize).is_none_or(String::is_empty)
}
