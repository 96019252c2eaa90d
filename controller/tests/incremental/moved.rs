//! What an event says that it moved.

use std::collections::BTreeMap;

use bulkhead_controller::compile::{Change, Moved};
use bulkhead_dataplane::{
    desired::{Desired, PolicySet, SelectorId},
    pieces::{Piece, Pieces},
};

/// Panics if a change does not say what moved.
pub(crate) fn assert_tells(change: &Change, before: &Desired, after: &Desired, when: &str) {
    let list = |len: usize| 0..u32::try_from(len).unwrap();
    let selectors = |desired: &Desired| -> BTreeMap<u32, String> {
        let all = list(desired.selectors.len()).zip(desired.selectors.iter().cloned());
        all.filter(|(_, text)| !text.is_empty()).collect()
    };
    let rules = |desired: &Desired| -> BTreeMap<u32, String> {
        let all = list(desired.rules.len()).zip(desired.rules.iter().map(|rule| rule.name.clone() + &rule.origin));
        all.filter(|(_, text)| !text.is_empty()).collect()
    };
    let sets = |desired: &Desired| -> BTreeMap<u32, PolicySet> {
        let all = list(desired.sets.len()).zip(desired.sets.iter().map(|set| PolicySet::clone(set)));
        all.filter(|(_, set)| !set.classes[0].is_empty()).collect()
    };
    let endpoints = |desired: &Desired| -> BTreeMap<_, _> {
        desired.endpoints.iter().map(|endpoint| (endpoint.name.clone(), endpoint.clone())).collect()
    };
    let overlays = |desired: &Desired| -> BTreeMap<_, _> {
        desired.overlays.iter().map(|overlay| (overlay.vni, overlay.clone())).collect()
    };
    let ids = |moved: &Moved<SelectorId>| Moved {
        set: moved.set.iter().map(|id| id.0).collect(),
        removed: moved.removed.iter().map(|id| id.0).collect(),
    };
    assert_eq!(ids(&change.selectors), moved(&selectors(before), &selectors(after)), "selectors {when}");
    let found = moved(&rules(before), &rules(after));
    assert_eq!(change.rules.set.iter().map(|id| id.0).collect::<Vec<_>>(), found.set, "rules {when}");
    assert_eq!(change.rules.removed.iter().map(|id| id.0).collect::<Vec<_>>(), found.removed, "rules {when}");
    let found = moved(&sets(before), &sets(after));
    assert_eq!(change.sets.set.iter().map(|id| id.0).collect::<Vec<_>>(), found.set, "sets {when}");
    assert_eq!(change.sets.removed.iter().map(|id| id.0).collect::<Vec<_>>(), found.removed, "sets {when}");
    assert_eq!(change.endpoints, moved(&endpoints(before), &endpoints(after)), "endpoints {when}");
    assert_eq!(change.addresses, moved(&whole(&before.addresses), &whole(&after.addresses)), "addresses {when}");
    assert_eq!(change.prefixes, moved(&before.prefixes, &after.prefixes), "prefixes {when}");
    assert_eq!(change.overlays, moved(&overlays(before), &overlays(after)), "overlays {when}");
    assert_eq!(change.services, moved(&before.services, &after.services), "services {when}");
}

fn moved<K: Clone + Ord, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Moved<K> {
    let set = after.iter().filter(|(key, value)| before.get(key) != Some(value));
    Moved {
        set: set.map(|(key, _)| key.clone()).collect(),
        removed: before.keys().filter(|key| !after.contains_key(key)).cloned().collect(),
    }
}

/// In one piece.
fn whole<K: Piece, V: Clone>(pieces: &Pieces<K, V>) -> BTreeMap<K, V> {
    pieces.iter().map(|(key, value)| (*key, value.clone())).collect()
}
