//! Policy sets as port tables and lists.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::{
    abi::{self, Action, Class, LIST_CHAIN, LIST_ENTRIES, List, PORT_INTERVALS, PortTable, SET_INTERVALS},
    reason::Reason,
};
use foldhash::{HashMap, HashMapExt as _};

use crate::{
    desired::{Desired, Entry, Interval, Peers, PolicySet, RuleId, SelectorId, SetId},
    node::{NodeError, direction_label},
    publish::{
        check::capacity,
        display,
        state::{PortSet, State},
    },
};

impl SetId {
    /// The set itself.
    pub(crate) fn of(self, desired: &Desired) -> &PolicySet {
        &desired.sets[self.0 as usize]
    }
}

/// Rules by number; `None` for a number that nothing has.
pub(crate) type Numbers = Vec<Option<(u64, Reason)>>;

/// A set that has its place in the tables.
#[derive(Debug)]
pub(crate) struct LoweredSet {
    pub(crate) id: u32,
    pub(crate) numbers: Numbers,
    /// The rules that these are, some more than once.
    pub(crate) rules: Vec<RuleId>,
}

/// Policy sets that views refer to, with the name of the first user.
pub(crate) fn used_sets(desired: &Desired) -> BTreeMap<SetId, String> {
    let mut sets = BTreeMap::new();
    for endpoint in &desired.endpoints {
        for set in endpoint.views.iter().flat_map(|view| [view.ingress, view.egress]) {
            sets.entry(set).or_insert_with(|| {
                format!("{} of {}", direction_label(set.of(desired).direction), display(&endpoint.name))
            });
        }
    }
    sets
}

/// Selectors that stand in one entry.
pub(crate) fn groups<'a>(desired: &Desired, sets: impl Iterator<Item = &'a SetId>) -> BTreeSet<Vec<u32>> {
    let entries = sets.flat_map(|set| set.of(desired).classes.iter().flatten().flat_map(|interval| &interval.entries));
    let selectors = entries.filter_map(|entry| match &entry.peers {
        Peers::Any(_) => None,
        Peers::Selectors(some) => Some(some.iter().map(|(selector, _)| selector.0).collect()),
    });
    selectors.collect()
}

/// Lowers one set.
pub(crate) struct SetLowering<'a> {
    state: &'a mut State,
    /// Bits of selectors.
    bits: &'a [u16],
    /// Hashes of rules.
    hashes: &'a [u64],
    /// Whose set it is, for messages.
    who: &'a str,
    numbers: Numbers,
    rules: Vec<RuleId>,
    /// First number of each run of rules that stands in some entry.
    runs: HashMap<Vec<(u64, Reason)>, u16>,
}

impl<'a> SetLowering<'a> {
    pub(crate) fn new(state: &'a mut State, bits: &'a [u16], hashes: &'a [u64], who: &'a str) -> Self {
        Self { state, bits, hashes, who, numbers: Vec::new(), rules: Vec::new(), runs: HashMap::new() }
    }

    pub(crate) fn lower(mut self, set: &PolicySet) -> Result<LoweredSet, NodeError> {
        // What no entry matches, the programs deny by rule 0: the isolation, where there is one.
        let isolation =
            set.classes.iter().flatten().flat_map(|interval| &interval.entries).find_map(|entry| match entry.peers {
                Peers::Any(rule)
                    if entry.action == Action::Deny && entry.reason == Reason::Isolated && !entry.audit =>
                {
                    Some((self.rule(rule), entry.reason))
                }
                _ => None,
            });
        self.numbers.push(isolation);
        self.runs.extend(isolation.map(|isolation| (vec![isolation], 0)));

        let mut lists: HashMap<&[Entry], u32> = HashMap::new();
        let mut tables = PortSet::default();
        // In which tables go on that are too small; the first table of a class that does, then the second, in one set each.
        let mut more: Vec<PortSet> = Vec::new();
        for ((at, intervals), class) in (0..).zip(&set.classes).zip(Class::ALL) {
            let found = format!("{} ({class:?})", self.who);
            capacity(found, "intervals of one class", intervals.len(), SET_INTERVALS)?;
            let mut lowered = Vec::with_capacity(intervals.len());
            for Interval { start, entries } in intervals {
                let list = match lists.get(entries.as_slice()) {
                    Some(list) => *list,
                    None => {
                        let list = self.list(entries, class, *start)?;
                        *lists.entry(entries).insert_entry(list).get()
                    }
                };
                lowered.push((*start, list));
            }
            if lowered.len() <= PORT_INTERVALS {
                tables[at] = PortTable::new(&lowered);
                continue;
            }
            let parts = lowered.chunks(PORT_INTERVALS);
            more.resize(more.len().max(parts.len()), PortSet::default());
            more.iter_mut().zip(parts).for_each(|(set, part)| set[at] = PortTable::new(part));
        }
        let more: Vec<u32> = more.into_iter().map(|set| self.state.sets.intern(set, || self.who.to_owned())).collect();
        for (table, intervals) in tables.iter_mut().zip(&set.classes).filter(|(_, all)| all.len() > PORT_INTERVALS) {
            let firsts = intervals.chunks(PORT_INTERVALS).map(|part| part[0].start);
            let parts: Vec<_> = firsts.zip(&more).map(|(first, set)| (first, set | PortTable::MORE)).collect();
            *table = PortTable::new(&parts);
        }
        let id = self.state.sets.intern(tables, || self.who.to_owned());
        Ok(LoweredSet { id, numbers: self.numbers, rules: self.rules })
    }

    fn rule(&mut self, rule: RuleId) -> u64 {
        self.rules.push(rule);
        self.hashes[rule.0 as usize]
    }

    /// Id of a list, written from its last block to the first.
    fn list(&mut self, entries: &[Entry], class: Class, start: u16) -> Result<u32, NodeError> {
        let mut lowered = Vec::new();
        for entry in entries {
            self.entry(entry, &mut lowered)?;
        }
        let limit = LIST_ENTRIES * LIST_CHAIN as usize;
        capacity(format!("{} ({class:?} from {start})", self.who), "entries of one list", lowered.len(), limit)?;
        let mut next = 0;
        for block in lowered.chunks(LIST_ENTRIES).rev() {
            let mut list = List { len: block.len() as u32, next, ..List::default() };
            list.entries[..block.len()].copy_from_slice(block);
            next = self.state.lists.intern(list, || self.who.to_owned());
        }
        Ok(next)
    }

    /// One entry, or one for each word of the row that its selectors lie in.
    fn entry(&mut self, entry: &Entry, to: &mut Vec<abi::Entry>) -> Result<(), NodeError> {
        let audit = if entry.audit { abi::Entry::AUDIT } else { 0 };
        // What an audited entry decides is counted beside the verdict, in a counter of its own.
        let reason = match entry.action {
            _ if !entry.audit => entry.reason,
            Action::Allow => Reason::WouldAllow,
            _ => Reason::WouldDeny,
        };
        let common = abi::Entry {
            tier: entry.tier,
            action: entry.action as u8,
            flags: audit,
            reason: reason as u8,
            ..abi::Entry::default()
        };
        match &entry.peers {
            Peers::Any(rule) => {
                let run = vec![(self.rule(*rule), reason)];
                let rule = self.number(run)?;
                to.push(abi::Entry { rule, flags: audit | abi::Entry::ANY, ..common });
            }
            Peers::Selectors(some) => {
                let bit = |(selector, rule): &(SelectorId, RuleId)| (self.bits[selector.0 as usize], *rule);
                let mut bits: Vec<(u16, RuleId)> = some.iter().map(bit).collect();
                // Of those with one bit the first stays.
                bits.sort_by_key(|(bit, _)| *bit);
                bits.dedup_by_key(|(bit, _)| *bit);
                for of_word in bits.chunk_by(|(one, _), (next, _)| one / 64 == next / 64) {
                    let mask = of_word.iter().fold(0, |mask, (bit, _)| mask | 1 << (bit % 64));
                    let run = of_word.iter().map(|(_, rule)| (self.rule(*rule), reason)).collect();
                    let rule = self.number(run)?;
                    to.push(abi::Entry { mask, word: of_word[0].0 / 64, rule, ..common });
                }
            }
        }
        Ok(())
    }

    /// First number of a run of rules.
    fn number(&mut self, run: Vec<(u64, Reason)>) -> Result<u16, NodeError> {
        if let Some(number) = self.runs.get(&run) {
            return Ok(*number);
        }
        let first = self.numbers.len();
        capacity(self.who, "rules of one policy set", first + run.len(), 1 << 16)?;
        self.numbers.extend(run.iter().copied().map(Some));
        self.runs.insert(run, first as u16);
        Ok(first as u16)
    }
}
