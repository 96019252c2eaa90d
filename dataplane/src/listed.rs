//! A list in pieces that copies of it share, as [`crate::pieces`] is a map: to copy one costs a pointer for each piece.

use std::{fmt, ops::Index, sync::Arc};

/// How many values make a piece.
const LEN: usize = 64;

/// The list. All pieces but the last are full.
#[derive(Clone)]
pub struct Listed<T>(Vec<Arc<Vec<T>>>);

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Listed<T> {
    /// How many values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * LEN + last.len())
    }

    /// No value.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value by its place.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.0.get(at / LEN)?.get(at % LEN)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().flat_map(|piece| piece.iter())
    }

    /// Whether a piece by the place of a value is the very same in both.
    fn shares(&self, other: &Self, piece: usize) -> bool {
        self.0.get(piece).zip(other.0.get(piece)).is_some_and(|(one, another)| Arc::ptr_eq(one, another))
    }

    /// Places of values that may not be the same in both, those of `self` that the other has not among them. Costs little where pieces are shared.
    pub(crate) fn beside<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (usize, &'a T)> {
        let pieces = self.0.iter().enumerate().filter(|(piece, _)| !self.shares(other, *piece));
        pieces.flat_map(|(piece, values)| (piece * LEN..).zip(values.iter()))
    }

    /// What is made of each value: of one that is `before`'s in this place, what was made then.
    pub(crate) fn map_beside<U: Clone>(&self, before: &Self, made: &Listed<U>, make: impl Fn(&T) -> U) -> Listed<U>
    where
        T: PartialEq,
    {
        let of_value = |(at, value): (usize, &T)| match made.get(at) {
            Some(made) if before.get(at) == Some(value) => made.clone(),
            _ => make(value),
        };
        let of_piece = |(at, piece): (usize, &Arc<Vec<T>>)| match made.0.get(at) {
            Some(made) if self.shares(before, at) => Arc::clone(made),
            _ => Arc::new((at * LEN..).zip(piece.iter()).map(of_value).collect()),
        };
        Listed(self.0.iter().enumerate().map(of_piece).collect())
    }
}

impl<T: Clone> Listed<T> {
    /// Adds a value behind the last.
    pub fn push(&mut self, value: T) {
        match self.0.last_mut().filter(|last| last.len() < LEN) {
            Some(last) => Arc::make_mut(last).push(value),
            None => self.0.push(Arc::new(vec![value])),
        }
    }

    /// Puts a value into a place that there is.
    pub fn set(&mut self, at: usize, value: T) {
        let piece = self.0.get_mut(at / LEN).filter(|piece| at % LEN < piece.len());
        piece.into_iter().for_each(|piece| Arc::make_mut(piece)[at % LEN] = value.clone());
    }

    /// Leaves so many.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        self.0.truncate(len.div_ceil(LEN));
        if let Some(last) = self.0.last_mut().filter(|_| !len.is_multiple_of(LEN)) {
            Arc::make_mut(last).truncate(len % LEN);
        }
    }
}

impl<T> Index<usize> for Listed<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.0[at / LEN][at % LEN]
    }
}

impl<T: Clone> FromIterator<T> for Listed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut list = Self::default();
        values.into_iter().for_each(|value| list.push(value));
        list
    }
}

impl<T: Clone> From<Vec<T>> for Listed<T> {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().collect()
    }
}

impl<T> From<Vec<T>> for Listed<Arc<T>> {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().map(Arc::new).collect()
    }
}

impl<T: PartialEq> PartialEq for Listed<T> {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, another): (&Arc<Vec<T>>, &Arc<Vec<T>>)| Arc::ptr_eq(one, another) || one == another;
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

impl<T: Eq> Eq for Listed<T> {}

impl<T: fmt::Debug> fmt::Debug for Listed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Set(usize, u8),
        Truncate(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(Step::Push),
            2 => (0..200_usize, any::<u8>()).prop_map(|(at, value)| Step::Set(at, value)),
            1 => (0..200_usize).prop_map(Step::Truncate),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn it_is_a_list(first in prop::collection::vec(any::<u8>(), 0..200), steps in steps()) {
            let mut list: Listed<u8> = first.clone().into();
            let mut plain = first;
            let doubled = |value: &u8| u16::from(*value) * 2;
            let (mut before, mut made) = (Listed::default(), Listed::default());
            for step in steps {
                match step {
                    Step::Push(value) => {
                        list.push(value);
                        plain.push(value);
                    }
                    Step::Set(at, value) => {
                        list.set(at, value);
                        plain.get_mut(at).into_iter().for_each(|place| *place = value);
                    }
                    Step::Truncate(len) => {
                        list.truncate(len);
                        plain.truncate(len);
                    }
                }
                prop_assert_eq!(list.len(), plain.len());
                prop_assert_eq!(list.is_empty(), plain.is_empty());
                prop_assert!(list.iter().eq(&plain));
                prop_assert!((0..220).all(|at| list.get(at) == plain.get(at)));
                prop_assert_eq!(&list, &Listed::from(plain.clone()));
                let beside: Vec<usize> = list.beside(&before).map(|(at, _)| at).collect();
                prop_assert!((0..plain.len()).all(|at| beside.contains(&at) || before.get(at) == plain.get(at)));
                made = list.map_beside(&before, &made, doubled);
                prop_assert!(made.iter().copied().eq(plain.iter().map(doubled)));
                before = list.clone();
            }
        }
    }
}
