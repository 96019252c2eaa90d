//! Sets of few, of which there are many: an ordered slice takes no more than what is in it.

use std::{collections::BTreeSet, ops::Deref, slice};

/// A set that is as large as what is in it. In order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Few<T>(Box<[T]>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Ord> Few<T> {
    /// Adds one. Whether it was not there.
    pub fn insert(&mut self, one: T) -> bool {
        let Err(at) = self.0.binary_search(&one) else { return false };
        let mut all = Vec::with_capacity(self.0.len() + 1);
        all.extend(std::mem::take(&mut self.0));
        all.insert(at, one);
        self.0 = all.into();
        true
    }

    /// Takes one away. Whether it was there.
    pub fn remove(&mut self, one: &T) -> bool {
        let Ok(at) = self.0.binary_search(one) else { return false };
        let mut all = std::mem::take(&mut self.0).into_vec();
        all.remove(at);
        self.0 = all.into();
        true
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(some: I) -> Self {
        Self(some.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(first in proptest::collection::vec(0..8_u8, 0..6), told in proptest::collection::vec((any::<bool>(), 0..8_u8), 0..12)) {
            let mut few: Few<u8> = first.iter().copied().collect();
            let mut set: BTreeSet<u8> = first.into_iter().collect();
            for (comes, one) in told {
                let same = if comes { few.insert(one) == set.insert(one) } else { few.remove(&one) == set.remove(&one) };
                prop_assert!(same);
                prop_assert!(few.iter().eq(&set));
            }
        }
    }
}
