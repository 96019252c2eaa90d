//! Ids: who gives out numbers of objects, and what has which.
//!
//! Content-addressed: equal content has one id, and an id keeps its content for as long as it is reachable. What a plan allocates is `fresh`: taken
//! back when the plan comes to nothing, kept when it is carried out. Only selectors need `IDS`: every other content can be read back from its table.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    sync::Arc,
};

use bulkhead_ebpf::abi::{CounterKey, Direction, ROW_WORDS};
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::node::NodeError;

const WORDS: usize = ROW_WORDS as usize;

/// Selectors that a row may have.
pub(crate) const SELECTORS: usize = WORDS * 64;

/// A set of selector bits: the content of a row, or what lists read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bits(pub(crate) [u64; WORDS]);

impl Bits {
    pub(crate) const NONE: Self = Self([0; WORDS]);
    pub(crate) const ALL: Self = Self([u64::MAX; WORDS]);

    pub(crate) fn word(&self, word: u32) -> u64 {
        self.0[word as usize]
    }

    pub(crate) fn set(&mut self, bit: u16) {
        self.0[usize::from(bit) / 64] |= 1 << (bit % 64);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(word, other)| word & other != 0)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Combines words of several sets.
    pub(crate) fn zip<const N: usize>(sets: [&Self; N], combine: impl Fn([u64; N]) -> u64) -> Self {
        Self(std::array::from_fn(|word| combine(sets.map(|set| set.0[word]))))
    }
}

/// A table that is too small for what a plan wants of it.
fn over<T>(what: String, table: &'static str, need: usize, limit: usize) -> Result<T, NodeError> {
    Err(NodeError::Capacity { what, table, need, limit })
}

/// Objects of one array, by content. Id 0 is never given: it is what zeroed memory points to.
#[derive(Clone, Debug)]
pub(crate) struct Pool<T> {
    table: &'static str,
    limit: usize,
    ids: HashMap<T, u32>,
    slots: Vec<Option<T>>,
    used: usize,
    /// Every id below is in use.
    cursor: u32,
    fresh: Vec<u32>,
    refused: Option<String>,
}

impl<T: Clone + Eq + Hash> Pool<T> {
    /// `limit` counts id 0.
    pub(crate) fn new(table: &'static str, limit: usize) -> Self {
        Self {
            table,
            limit,
            ids: HashMap::new(),
            slots: Vec::new(),
            used: 0,
            cursor: 1,
            fresh: Vec::new(),
            refused: None,
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// An object that was found in its table.
    pub(crate) fn restore(&mut self, id: u32, content: T) {
        if self.slots.len() <= id as usize {
            self.slots.resize(id as usize + 1, None);
        }
        self.ids.insert(content.clone(), id);
        self.used += usize::from(self.slots[id as usize].replace(content).is_none());
    }

    /// Id of a content, a new one if need be; `None` where there is no room.
    pub(crate) fn try_intern(&mut self, content: T) -> Option<u32> {
        let room = self.used + 1 < self.limit || self.ids.contains_key(&content);
        room.then(|| self.intern(content, String::new))
    }

    /// Id of a content, a new one if need be; beyond the limit if it must, so that [`Pool::check`] can say how many are needed.
    pub(crate) fn intern(&mut self, content: T, who: impl FnOnce() -> String) -> u32 {
        if let Some(id) = self.ids.get(&content) {
            return *id;
        }
        while self.get(self.cursor).is_some() {
            self.cursor += 1;
        }
        let id = self.cursor;
        if id as usize >= self.limit && self.refused.is_none() {
            self.refused = Some(who());
        }
        self.restore(id, content);
        self.fresh.push(id);
        id
    }

    pub(crate) fn check(&self) -> Result<(), NodeError> {
        match &self.refused {
            Some(who) => over(who.clone(), self.table, self.used, self.limit - 1),
            None => Ok(()),
        }
    }

    pub(crate) fn fresh(&self) -> impl Iterator<Item = (u32, &T)> {
        self.fresh.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Gives back what a plan took.
    pub(crate) fn roll_back(&mut self) {
        for id in std::mem::take(&mut self.fresh) {
            self.free(id);
        }
        self.refused = None;
        self.cursor = 1;
    }

    /// Whether [`Pool::sweep`] would free something.
    pub(crate) fn has_garbage(&self, keep: &BTreeSet<u32>) -> bool {
        self.used > keep.iter().filter(|id| self.get(**id).is_some()).count()
    }

    /// Frees everything else. What was fresh is not any more.
    pub(crate) fn sweep(&mut self, keep: &BTreeSet<u32>) {
        self.fresh.clear();
        self.cursor = 1;
        for id in (1u32..).take(self.slots.len().saturating_sub(1)) {
            if !keep.contains(&id) {
                self.free(id);
            }
        }
    }

    fn free(&mut self, id: u32) {
        if let Some(content) = self.slots.get_mut(id as usize).and_then(Option::take) {
            self.used -= 1;
            if self.ids.get(&content) == Some(&id) {
                self.ids.remove(&content);
            }
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// Blocks of `RULE_COUNTERS`, by content.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    limit: usize,
    bases: HashMap<Arc<[u32]>, u32>,
    at: BTreeMap<u32, Arc<[u32]>>,
    cursor: u32,
    fresh: Vec<u32>,
    refused: Option<String>,
}

impl Blocks {
    pub(crate) const TABLE: &str = "RULE_COUNTERS";

    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, bases: HashMap::new(), at: BTreeMap::new(), cursor: 1, fresh: Vec::new(), refused: None }
    }

    pub(crate) fn get(&self, base: u32) -> Option<&[u32]> {
        self.at.get(&base).map(AsRef::as_ref)
    }

    pub(crate) fn restore(&mut self, base: u32, content: &[u32]) {
        let content: Arc<[u32]> = content.into();
        self.bases.insert(content.clone(), base);
        self.at.insert(base, content);
    }

    pub(crate) fn intern(&mut self, content: &[u32], who: impl FnOnce() -> String) -> u32 {
        if let Some(base) = self.bases.get(content) {
            return *base;
        }
        let len = content.len();
        let base = self.gap(self.cursor, len).or_else(|| self.gap(1, len)).unwrap_or_else(|| {
            self.refused.get_or_insert_with(who);
            self.end().max(self.limit as u32)
        });
        self.cursor = base + len as u32;
        self.restore(base, content);
        self.fresh.push(base);
        base
    }

    /// First place for `len` words from `from` on.
    fn gap(&self, from: u32, len: usize) -> Option<u32> {
        let before = self.at.range(..from).next_back().map_or(1, |(base, block)| base + block.len() as u32);
        let mut start = from.max(before);
        for (base, block) in self.at.range(from..) {
            if start as usize + len <= *base as usize {
                break;
            }
            start = start.max(base + block.len() as u32);
        }
        (start as usize + len <= self.limit).then_some(start)
    }

    fn end(&self) -> u32 {
        self.at.iter().map(|(base, block)| base + block.len() as u32).max().unwrap_or(1)
    }

    pub(crate) fn check(&self) -> Result<(), NodeError> {
        match &self.refused {
            Some(who) => over(who.clone(), Self::TABLE, self.end() as usize, self.limit),
            None => Ok(()),
        }
    }

    pub(crate) fn fresh(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.fresh.iter().filter_map(|base| Some((*base, self.get(*base)?)))
    }

    pub(crate) fn roll_back(&mut self) {
        for base in std::mem::take(&mut self.fresh) {
            self.free(base);
        }
        self.refused = None;
        self.cursor = 1;
    }

    pub(crate) fn has_garbage(&self, keep: &BTreeMap<u32, usize>) -> bool {
        self.at.keys().any(|base| !keep.contains_key(base))
    }

    pub(crate) fn sweep(&mut self, keep: &BTreeMap<u32, usize>) {
        self.fresh.clear();
        self.cursor = 1;
        let garbage: Vec<u32> = self.at.keys().copied().filter(|base| !keep.contains_key(base)).collect();
        garbage.into_iter().for_each(|base| self.free(base));
    }

    fn free(&mut self, base: u32) {
        if let Some(content) = self.at.remove(&base)
            && self.bases.get(&content) == Some(&base)
        {
            self.bases.remove(&content);
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.at.values().map(|block| block.len()).sum()
    }

    /// Every counter that a block refers to.
    pub(crate) fn counters(&self) -> HashSet<u32> {
        self.at.values().flat_map(|block| block.iter().copied()).collect()
    }
}

/// Selectors' bits, by the hash of their text.
#[derive(Clone, Debug)]
pub(crate) struct Selectors {
    bits: HashMap<[u64; 2], u16>,
    /// Bits of `bits`, and those that rows and lists still have though no name is known for them.
    taken: Bits,
    fresh: Vec<[u64; 2]>,
}

impl Selectors {
    pub(crate) fn new(named: impl IntoIterator<Item = ([u64; 2], u16)>, reachable: &Bits) -> Self {
        let mut new = Self { bits: HashMap::new(), taken: reachable.clone(), fresh: Vec::new() };
        for (hash, bit) in named {
            new.bits.insert(hash, bit);
            new.taken.set(bit);
        }
        new
    }

    pub(crate) fn bit(&self, hash: &[u64; 2]) -> Option<u16> {
        self.bits.get(hash).copied()
    }

    pub(crate) fn used(&self) -> usize {
        self.bits.len()
    }

    pub(crate) fn fresh(&self) -> impl Iterator<Item = ([u64; 2], u16)> {
        self.fresh.iter().map(|hash| (*hash, self.bits[hash]))
    }

    /// Those not in `keep`, which all have bits and differ.
    pub(crate) fn garbage(&self, keep: impl Iterator<Item = [u64; 2]> + Clone) -> Vec<[u64; 2]> {
        debug_assert_eq!(
            keep.clone().filter(|hash| self.bits.contains_key(hash)).collect::<HashSet<_>>().len(),
            keep.clone().count()
        );
        if keep.clone().count() == self.bits.len() {
            return Vec::new();
        }
        let keep: HashSet<[u64; 2]> = keep.collect();
        self.bits.keys().filter(|hash| !keep.contains(*hash)).copied().collect()
    }

    /// Bits of all, 0 for what has no text. What has one and no bit yet gets one: first the groups, each in one word where there is room (an entry of a list
    /// reads one word), then the rest.
    pub(crate) fn place(
        &mut self,
        all: &[(&str, [u64; 2])],
        groups: impl FnOnce() -> BTreeSet<Vec<u32>>,
    ) -> Result<Vec<u16>, NodeError> {
        let mut missing = BTreeSet::new();
        let mut bits: Vec<u16> = Vec::with_capacity(all.len());
        for (text, hash) in all {
            let bit = self.bit(hash);
            if bit.is_none() && !text.is_empty() {
                missing.insert(*hash);
            }
            bits.push(bit.unwrap_or_default());
        }
        if self.taken.count() + missing.len() > SELECTORS {
            let first = all.iter().find(|(_, hash)| missing.contains(hash)).map_or("", |(text, _)| text);
            return over(format!("selector {first}"), "selectors", self.taken.count() + missing.len(), SELECTORS);
        }
        if missing.is_empty() {
            return Ok(bits);
        }
        let lacks = |group: &Vec<u32>| group.iter().any(|selector| missing.contains(&all[*selector as usize].1));
        let mut order: Vec<Vec<u32>> = groups().into_iter().filter(lacks).collect();
        order.sort_by_key(|group| std::cmp::Reverse(group.len()));
        for group in order {
            let hashes: BTreeSet<[u64; 2]> = group.iter().map(|selector| all[*selector as usize].1).collect();
            let mut kin = [0usize; WORDS];
            hashes.iter().filter_map(|hash| self.bit(hash)).for_each(|bit| kin[usize::from(bit) / 64] += 1);
            let mut left: Vec<[u64; 2]> = hashes.into_iter().filter(|hash| !self.bits.contains_key(hash)).collect();
            while !left.is_empty() {
                let best = (0..WORDS)
                    .map(|word| (word, self.taken.0[word].count_zeros() as usize))
                    .filter(|(_, room)| *room > 0)
                    .max_by_key(|(word, room)| {
                        let fits = *room >= left.len();
                        // The word with most of the group; then the fullest that has room, else the emptiest.
                        (fits, kin[*word], if fits { WORDS - room } else { *room }, std::cmp::Reverse(*word))
                    });
                let Some((word, room)) = best else { break };
                for hash in left.drain(..room.min(left.len())) {
                    self.give(hash, word);
                }
            }
        }
        for hash in missing {
            if !self.bits.contains_key(&hash)
                && let Some(word) = (0..WORDS).find(|word| self.taken.0[*word] != u64::MAX)
            {
                self.give(hash, word);
            }
        }
        Ok(all.iter().map(|(_, hash)| self.bit(hash).unwrap_or_default()).collect())
    }

    fn give(&mut self, hash: [u64; 2], word: usize) {
        let bit = (word * 64) as u16 + self.taken.0[word].trailing_ones() as u16;
        self.taken.set(bit);
        self.bits.insert(hash, bit);
        self.fresh.push(hash);
    }

    pub(crate) fn roll_back(&mut self) {
        for hash in std::mem::take(&mut self.fresh) {
            if let Some(bit) = self.bits.remove(&hash) {
                self.taken.0[usize::from(bit) / 64] &= !(1 << (bit % 64));
            }
        }
    }

    /// Forgets `garbage`; bits without a name are free as well, since nothing that is reachable has them now.
    pub(crate) fn sweep(&mut self, garbage: &[[u64; 2]]) {
        self.fresh.clear();
        for hash in garbage {
            self.bits.remove(hash);
        }
        self.taken = Bits::NONE;
        self.bits.values().for_each(|bit| self.taken.set(*bit));
    }
}

/// What a counter stands for, whatever slot its endpoint has.
pub(crate) type CounterName = (u64, u64, u8, u8);

/// Counters, in pairs: packets in the initiator's direction, and replies. The first pair is never given.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    pairs: usize,
    /// Index of each, and the slot of its key.
    names: HashMap<CounterName, (u32, u16)>,
    keys: BTreeMap<u32, CounterKey>,
    fresh: Vec<Assigned>,
}

/// A counter that a plan gives to another name or slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Assigned {
    pub(crate) index: u32,
    pub(crate) key: CounterKey,
    /// Whose it was.
    before: Option<CounterKey>,
}

impl Assigned {
    /// Whether it counted something else before.
    pub(crate) fn reused(&self) -> bool {
        self.before.is_some_and(|before| name(&before) != name(&self.key))
    }
}

fn name(key: &CounterKey) -> CounterName {
    (key.rule, key.endpoint, key.direction, key.reason)
}

/// Key of the replies' half of a pair.
pub(crate) fn reply_key(key: &CounterKey) -> CounterKey {
    let direction = Direction::from_u8(key.direction).reverse() as u8;
    CounterKey { direction, reason: bulkhead_ebpf::reason::Reason::Reply as u8, ..*key }
}

impl Counters {
    pub(crate) const TABLE: &str = "COUNTERS";

    /// `limit` in counters.
    pub(crate) fn new(limit: usize, keys: impl IntoIterator<Item = (u32, CounterKey)>) -> Self {
        let keys: BTreeMap<u32, CounterKey> =
            keys.into_iter().filter(|(index, _)| *index >= 2 && index % 2 == 0).collect();
        Self {
            pairs: limit / 2,
            names: keys.iter().map(|(index, key)| (name(key), (*index, key.slot))).collect(),
            keys,
            fresh: Vec::new(),
        }
    }

    pub(crate) fn index(&self, key: &CounterKey) -> Option<u32> {
        self.names.get(&name(key)).map(|(index, _)| *index)
    }

    /// Whatever has a counter, what a plan takes one from included.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &CounterKey> {
        self.keys.values().chain(self.fresh.iter().filter_map(|given| given.before.as_ref()))
    }

    /// Those that were given to somebody. Most of them are kept for who is gone, until others want them.
    pub(crate) fn given(&self) -> usize {
        self.keys.len() * 2
    }

    /// Those of pairs that blocks refer to, which no other name can have meanwhile.
    pub(crate) fn used(&self, blocks: &Blocks) -> usize {
        let mut is_used = vec![false; self.pairs];
        // What no rule decides has the first pair, which is never given.
        for index in blocks.at.values().flat_map(|block| block.iter()).filter(|index| **index >= 2) {
            if let Some(pair) = is_used.get_mut(*index as usize / 2) {
                *pair = true;
            }
        }
        is_used.into_iter().filter(|used| *used).count() * 2
    }

    pub(crate) fn fresh(&self) -> &[Assigned] {
        &self.fresh
    }

    /// Gives a pair to every key, and tells its index. When there is none left, takes those of the lowest `rank`, never one in `busy`.
    pub(crate) fn assign(
        &mut self,
        wanted: &[(CounterKey, &str)],
        busy: impl FnOnce() -> HashSet<u32>,
        rank: impl Fn(&CounterKey) -> u64,
    ) -> Result<Vec<u32>, NodeError> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        // 0 is never given.
        let mut indexes = Vec::with_capacity(wanted.len());
        for (key, who) in wanted {
            let known = self.names.get(&name(key)).copied();
            match known {
                Some((index, slot)) if slot != key.slot => self.give(index, *key),
                None if seen.insert(name(key)) => missing.push((*key, *who)),
                _ => {}
            }
            indexes.push(known.map_or(0, |(index, _)| index));
        }
        let mut free = self.free(missing.len());
        if free.len() < missing.len() {
            let mut kept = busy();
            kept.extend(wanted.iter().filter_map(|(key, _)| self.index(key)));
            let mut idle: Vec<(u64, u32)> = self
                .keys
                .iter()
                .filter(|(index, _)| !kept.contains(index))
                .map(|(index, key)| (rank(key), *index))
                .collect();
            idle.sort_unstable();
            free.extend(idle.into_iter().map(|(_, index)| index).take(missing.len() - free.len()));
            if free.len() < missing.len() {
                kept.remove(&0);
                return over(
                    missing[free.len()].1.to_owned(),
                    Self::TABLE,
                    (kept.len() + missing.len()) * 2,
                    self.pairs * 2 - 2,
                );
            }
        }
        missing.into_iter().zip(free).for_each(|((key, _), index)| self.give(index, key));
        for (index, (key, _)) in indexes.iter_mut().zip(wanted).filter(|(index, _)| **index == 0) {
            *index = self.index(key).unwrap_or_default();
        }
        Ok(indexes)
    }

    /// The lowest pairs that nothing has, up to so many.
    fn free(&self, most: usize) -> Vec<u32> {
        let mut taken = self.keys.keys().peekable();
        let pairs = (1..self.pairs as u32).map(|pair| pair * 2);
        pairs.filter(|index| taken.next_if_eq(&index).is_none()).take(most).collect()
    }

    fn give(&mut self, index: u32, key: CounterKey) {
        let before = self.keys.insert(index, key);
        if let Some(before) = &before {
            self.names.remove(&name(before));
        }
        self.names.insert(name(&key), (index, key.slot));
        self.fresh.push(Assigned { index, key, before });
    }

    pub(crate) fn roll_back(&mut self) {
        for Assigned { index, key, before } in std::mem::take(&mut self.fresh).into_iter().rev() {
            self.names.remove(&name(&key));
            match before {
                Some(before) => {
                    self.names.insert(name(&before), (index, before.slot));
                    self.keys.insert(index, before);
                }
                None => drop(self.keys.remove(&index)),
            }
        }
    }

    /// What was fresh is in the tables.
    pub(crate) fn settle(&mut self) {
        self.fresh.clear();
    }
}
