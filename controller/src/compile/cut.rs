//! Cuts the axes of the classes into elementary intervals, so that one look-up of a port finds all that concerns it.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::Class;

use crate::ports::Stretch;

/// For each class its axis: intervals by their first value, the first at 0, with what covers them, in the order of the keys. Neighbours differ.
pub(super) type Axes<K, V> = [BTreeMap<u16, Vec<(K, V)>>; Class::COUNT as usize];

/// Where several values meet under one key, that of the earliest stretch stays.
pub(super) fn cut<K: Ord + Copy, V: Eq + Copy>(stretches: &[(Stretch, K, V)]) -> Axes<K, V> {
    Class::ALL.map(|class| {
        let of_class: Vec<_> = stretches.iter().filter(|(stretch, ..)| stretch.class == class).collect();
        let mut axis = BTreeMap::from([(0, Vec::new())]);
        for (stretch, ..) in &of_class {
            axis.entry(stretch.first).or_default();
            if let Some(after) = stretch.last.checked_add(1) {
                axis.entry(after).or_default();
            }
        }
        for &&(stretch, key, value) in &of_class {
            axis.range_mut(stretch.first..=stretch.last).for_each(|(_, covering)| covering.push((key, value)));
        }
        for covering in axis.values_mut() {
            // Of one key the earliest stays before the later ones.
            covering.sort_by_key(|(key, _)| *key);
            covering.dedup_by_key(|(key, _)| *key);
        }
        let pairs = axis.iter().zip(axis.iter().skip(1));
        let equal: Vec<u16> = pairs.filter(|((_, one), (_, next))| one == next).map(|(_, (at, _))| *at).collect();
        equal.iter().for_each(|at| _ = axis.remove(at));
        axis
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stretches() -> impl Strategy<Value = Vec<(Stretch, u8, u8)>> {
        // Edges of the axis and neighbours are what goes wrong.
        let value = prop_oneof![Just(0), Just(1), Just(u16::MAX), Just(u16::MAX - 1), 0..40_u16, any::<u16>()];
        let stretch = (0..Class::COUNT as usize, value.clone(), value).prop_map(|(class, a, b)| Stretch {
            class: Class::ALL[class],
            first: a.min(b),
            last: a.max(b),
        });
        prop::collection::vec((stretch, 0..6_u8, any::<u8>()), 0..24)
    }

    proptest! {
        #[test]
        fn every_port_has_exactly_what_covers_it(stretches in stretches(), more in prop::collection::vec(any::<u16>(), 32)) {
            let axes = cut(&stretches);
            for class in Class::ALL {
                let axis = &axes[class as usize];
                prop_assert_eq!(axis.first_key_value().map(|(&start, _)| start), Some(0));
                let neighbours: Vec<_> = axis.values().collect();
                prop_assert!(neighbours.windows(2).all(|pair| pair[0] != pair[1]), "equal neighbours are one interval");
                let edges = stretches.iter().flat_map(|(stretch, ..)| [stretch.first, stretch.last, stretch.first.wrapping_sub(1), stretch.last.wrapping_add(1)]);
                for value in edges.chain(more.iter().copied()) {
                    let mut naive = BTreeMap::new();
                    for &(stretch, key, rule) in &stretches {
                        if stretch.class == class && (stretch.first..=stretch.last).contains(&value) {
                            naive.entry(key).or_insert(rule);
                        }
                    }
                    let found = axis.range(..=value).next_back().map(|(_, covering)| covering);
                    prop_assert_eq!(found.cloned(), Some(naive.into_iter().collect::<Vec<_>>()), "{:?} {}", class, value);
                }
            }
        }
    }
}
