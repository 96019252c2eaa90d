//! The entries of one piece of a map of neighbours.

use std::{mem, ops::RangeInclusive, slice};

use super::Piece;

/// The entries of a piece, by the order of their keys. What is looked up is found by the places that are taken before it: events look up addresses all
/// over a cluster, so that what that costs is how often memory is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbours<K, V> {
    /// A bit for each place.
    taken: [u64; 4],
    all: Vec<(K, V)>,
}

impl<K, V> Default for Neighbours<K, V> {
    fn default() -> Self {
        Self { taken: [0; 4], all: Vec::new() }
    }
}

impl<K, V> Neighbours<K, V> {
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.all.iter_mut().map(|(_, value)| value)
    }

    /// Takes no more room than what is in it.
    pub(super) fn compact(&mut self) {
        self.all.shrink_to_fit();
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) const fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        Iter(self.all.iter())
    }
}

impl<K: Piece, V> Neighbours<K, V> {
    /// Where the entry in a key's place is, or would be.
    fn find(&self, key: &K) -> Result<usize, usize> {
        let (word, bit) = (usize::from(key.place() / 64), 1 << (key.place() % 64));
        let before = self.taken[..word].iter().map(|word| word.count_ones()).sum::<u32>();
        let at = (before + (self.taken[word] & (bit - 1)).count_ones()) as usize;
        if self.taken[word] & bit == 0 { Err(at) } else { Ok(at) }
    }

    /// Notes whether a key has an entry.
    const fn mark(&mut self, place: u8) {
        self.taken[place as usize / 64] ^= 1 << (place % 64);
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let (known, value) = &self.all[self.find(key).ok()?];
        (known == key).then_some(value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        let (known, value) = &mut self.all[at];
        (known == key).then_some(value)
    }

    /// # Panics
    /// Another key has its place.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => {
                let (known, before) = &mut self.all[at];
                assert!(*known == key, "no two keys of a map have the same place");
                Some(mem::replace(before, value))
            }
            Err(at) => {
                self.mark(key.place());
                self.all.insert(at, (key, value));
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok().filter(|at| self.all[*at].0 == *key)?;
        self.mark(key.place());
        Some(self.all.remove(at).1)
    }

    pub(super) fn range(&self, range: &RangeInclusive<K>) -> Iter<'_, K, V> {
        let first = self.all.partition_point(|(key, _)| key < range.start());
        let behind = self.all.partition_point(|(key, _)| key <= range.end());
        Iter(self.all.get(first..behind).unwrap_or_default().iter())
    }
}

impl<K: Piece, V> FromIterator<(K, V)> for Neighbours<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        let mut neighbours = Self::default();
        all.into_iter().for_each(|(key, value)| _ = neighbours.insert(key, value));
        neighbours.compact();
        neighbours
    }
}

/// Entries by key.
#[derive(Debug)]
pub(crate) struct Iter<'a, K, V>(slice::Iter<'a, (K, V)>);

impl<K, V> Default for Iter<'_, K, V> {
    fn default() -> Self {
        Self([].iter())
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }
}
