//! An ordered map in pieces that copies of it share: to copy one costs a pointer for each piece, to tell two apart what differs.

mod neighbours;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Index, RangeInclusive},
    sync::Arc,
};

pub(crate) use self::neighbours::Neighbours;
use crate::desired::Segment;

/// A key that says in which piece it is, and where.
pub trait Piece: Ord + Copy {
    /// The piece: no key of another one lies between two of its own.
    #[must_use]
    fn piece(&self) -> Self;

    /// The place in it, which no other key of the same map has. Places are in the order of their keys.
    #[must_use]
    fn place(&self) -> u8;
}

/// Of addresses of a segment 256 neighbours, as many as a node of a cluster mostly has.
impl Piece for (Segment, IpAddr) {
    fn piece(&self) -> Self {
        (self.0, neighbours(self.1))
    }

    fn place(&self) -> u8 {
        among_neighbours(self.1)
    }
}

/// The first of 256 neighbours.
pub(crate) fn neighbours(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & !0xff).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & !0xff).into(),
    }
}

/// Which of them it is.
pub(crate) const fn among_neighbours(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(a) => a.octets()[3],
        IpAddr::V6(a) => a.octets()[15],
    }
}

/// The map.
#[derive(Clone)]
pub struct Pieces<K, V>(BTreeMap<K, Arc<Neighbours<K, V>>>);

impl<K, V> Default for Pieces<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Piece, V> Pieces<K, V> {
    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(|piece| piece.len()).sum()
    }

    /// No entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(&key.piece())?.get(key)
    }

    /// Whether a key is there.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// All of it, by key.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { pieces: self.0.values(), piece: neighbours::Iter::default() }
    }

    /// Keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Some of it, by key.
    pub fn range(&self, range: RangeInclusive<K>) -> impl Iterator<Item = (&K, &V)> {
        let pieces = self.0.range(range.start().piece()..=*range.end());
        pieces.flat_map(move |(_, piece)| piece.range(&range))
    }

    /// Pieces with their first possible keys.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&K, &Arc<Neighbours<K, V>>)> {
        self.0.iter()
    }

    /// A piece by any of its keys.
    pub(crate) fn piece(&self, key: &K) -> Option<&Arc<Neighbours<K, V>>> {
        self.0.get(&key.piece())
    }

    /// Puts a piece into its place; one without entries is none.
    pub(crate) fn put_piece(&mut self, piece: Arc<Neighbours<K, V>>) {
        if let Some((first, _)) = piece.iter().next() {
            self.0.insert(first.piece(), piece);
        }
    }
}

impl<K: Piece, V: PartialEq> Pieces<K, V> {
    /// Takes another map's pieces for those that are equal, so that both share them.
    pub fn share(&mut self, other: &Self) {
        for (at, piece) in &mut self.0 {
            if let Some(equal) = other.0.get(at).filter(|equal| **equal == *piece) {
                piece.clone_from(equal);
            }
        }
    }

    /// Keys that are not in both with the same value. Costs little where pieces are shared.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<K> {
        let mut keys = BTreeSet::new();
        let at: BTreeSet<&K> = self.0.keys().chain(other.0.keys()).collect();
        for at in at {
            let (one, another) = (self.0.get(at), other.0.get(at));
            if let (Some(one), Some(another)) = (one, another)
                && Arc::ptr_eq(one, another)
            {
                continue;
            }
            let all = [one, another].into_iter().flatten().flat_map(|piece| piece.iter());
            keys.extend(all.map(|(key, _)| key).filter(|key| self.get(key) != other.get(key)).copied());
        }
        keys
    }
}

impl<K: Piece, V: Clone> Pieces<K, V> {
    /// The value of a key, to be changed: its piece is this map's own then.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let piece = self.0.get_mut(&key.piece()).filter(|piece| piece.get(key).is_some())?;
        Arc::make_mut(piece).get_mut(key)
    }

    /// Changes the value of a key if `is_due`; says whether `change` did. A piece that others share stays theirs as long as nothing is due.
    pub fn change(&mut self, key: &K, is_due: impl FnOnce(&V) -> bool, change: impl FnOnce(&mut V) -> bool) -> bool {
        let Some(piece) = self.0.get_mut(&key.piece()) else { return false };
        if let Some(own) = Arc::get_mut(piece) {
            return own.get_mut(key).filter(|value| is_due(value)).is_some_and(change);
        }
        piece.get(key).is_some_and(is_due) && Arc::make_mut(piece).get_mut(key).is_some_and(change)
    }

    /// Puts a value into the place of what a key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        Arc::make_mut(self.0.entry(key.piece()).or_default()).insert(key, value)
    }

    /// Takes a key away. What it had.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let piece = self.0.get_mut(&key.piece()).filter(|piece| piece.get(key).is_some())?;
        let piece = Arc::make_mut(piece);
        let value = piece.remove(key);
        if piece.is_empty() {
            self.0.remove(&key.piece());
        }
        value
    }

    /// Has each piece that is this map's own take no more room than what is in it: one that grew entry by entry takes up to twice as much.
    pub fn compact(&mut self) {
        self.0.values_mut().filter_map(Arc::get_mut).for_each(Neighbours::compact);
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut().flat_map(|piece| Arc::make_mut(piece).values_mut())
    }
}

impl<K: Piece, V: PartialEq> PartialEq for Pieces<K, V> {
    fn eq(&self, other: &Self) -> bool {
        // Equal pieces that are one need not be looked at.
        let same = |(one, another): (&Arc<Neighbours<K, V>>, &Arc<_>)| Arc::ptr_eq(one, another) || one == another;
        self.0.len() == other.0.len()
            && self.0.keys().eq(other.0.keys())
            && self.0.values().zip(other.0.values()).all(same)
    }
}

impl<K: Piece, V: Eq> Eq for Pieces<K, V> {}

impl<K: Piece + fmt::Debug, V: fmt::Debug> fmt::Debug for Pieces<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Piece, V: Clone> Extend<(K, V)> for Pieces<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| _ = self.insert(key, value));
    }
}

impl<K: Piece, V: Clone> FromIterator<(K, V)> for Pieces<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut pieces = Self::default();
        pieces.extend(entries);
        pieces
    }
}

impl<K: Piece, V> Index<&K> for Pieces<K, V> {
    type Output = V;

    /// # Panics
    /// The key is not there.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

impl<'a, K: Piece, V> IntoIterator for &'a Pieces<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

/// Entries by key.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    pieces: btree_map::Values<'a, K, Arc<Neighbours<K, V>>>,
    piece: neighbours::Iter<'a, K, V>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(next) = self.piece.next() {
                return Some(next);
            }
            self.piece = self.pieces.next()?.iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use proptest::prelude::*;

    use super::*;

    type Key = (Segment, IpAddr);

    fn key() -> impl Strategy<Value = Key> {
        // Few enough to meet again, on both sides of the borders of pieces.
        let v4 = (0..2_u32, 0x0a00_00f0..0x0a00_0110_u32)
            .prop_map(|(segment, bits)| (segment, Ipv4Addr::from_bits(bits).into()));
        let v6 = (0..2_u32, 0xf0..0x110_u128).prop_map(|(segment, bits)| (segment, Ipv6Addr::from_bits(bits).into()));
        prop_oneof![v4, v6]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Share,
        Insert(Key, u8),
        Remove(Key),
        Change(Key),
        ChangeFrom(Key, u8),
        Copy,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (key(), 0..3_u8).prop_map(|(key, value)| Step::Insert(key, value)),
            2 => key().prop_map(Step::Remove),
            2 => key().prop_map(Step::Change),
            2 => (key(), prop_oneof![0..3_u8, Just(9)]).prop_map(|(key, due)| Step::ChangeFrom(key, due)),
            1 => Just(Step::Copy),
            1 => Just(Step::Share),
        ]
    }

    proptest! {
        /// It is what a map in one piece is, and so is a copy that was taken on the way.
        #[test]
        fn pieces_are_one_map(steps in prop::collection::vec(step(), 0..120), range in (key(), key())) {
            let (mut pieces, mut plain) = (Pieces::default(), BTreeMap::new());
            let mut copies = (pieces.clone(), plain.clone());
            for step in steps {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(pieces.insert(key, value), plain.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(pieces.remove(&key), plain.remove(&key)),
                    Step::Change(key) => {
                        prop_assert_eq!(pieces.get(&key), plain.get(&key));
                        if let (Some(one), Some(another)) = (pieces.get_mut(&key), plain.get_mut(&key)) {
                            (*one, *another) = (7, 7);
                        }
                    }
                    Step::ChangeFrom(key, due) => {
                        let before = pieces.piece(&key).map(Arc::as_ptr);
                        let changed = pieces.change(&key, |value| *value == due, |value| mem::replace(value, 9) != 9);
                        let is_due = plain.get(&key) == Some(&due);
                        if is_due {
                            plain.insert(key, 9);
                        } else {
                            prop_assert_eq!(pieces.piece(&key).map(Arc::as_ptr), before, "what is as it was is shared");
                        }
                        prop_assert_eq!(changed, is_due && due != 9);
                    }
                    Step::Share => {
                        // Anew, and from a copy.
                        pieces = plain.iter().map(|(key, value)| (*key, *value)).collect();
                        pieces.share(&copies.0);
                    }
                    Step::Copy => copies = (pieces.clone(), plain.clone()),
                }
            }
            for (pieces, plain) in [(&pieces, &plain), (&copies.0, &copies.1)] {
                prop_assert!(pieces.iter().eq(plain));
                prop_assert_eq!((pieces.len(), pieces.is_empty()), (plain.len(), plain.is_empty()));
                let range = range.0.min(range.1)..=range.0.max(range.1);
                prop_assert!(pieces.range(range.clone()).eq(plain.range(range)));
                prop_assert_eq!(pieces, &plain.iter().map(|(key, value)| (*key, *value)).collect());
            }
            let keys = plain.keys().chain(copies.1.keys());
            let differing: BTreeSet<Key> = keys.filter(|key| plain.get(key) != copies.1.get(key)).copied().collect();
            prop_assert_eq!(pieces == copies.0, differing.is_empty());
            prop_assert_eq!(pieces.differing(&copies.0), differing);
        }
    }
}
