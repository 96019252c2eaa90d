//! Policy sets as the programs would find them in their tables, to be asked without a node.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::{
    abi::{Class, List, PortTable, ROW_WORDS},
    reason::Reason,
    tables::Lists,
    verdict,
};
use foldhash::{HashMap, HashMapExt as _};

use crate::{
    desired::{Desired, RuleId, SelectorId, SetId},
    memory::MemoryStore,
    node::NodeError,
    publish::{
        ids::Bits,
        recover::scan,
        sets::{LoweredSet, SetLowering, groups, used_sets},
        standing::Symbols,
        state::State,
    },
    store,
};

/// Entries of the tables whose size is a setting.
const ROOM: usize = 1 << 22;

/// A bitmap over the selectors of a [`Judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row(u32);

/// What a policy set says of a peer and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It passes.
    pub allow: bool,
    /// Why.
    pub reason: Reason,
    /// The rule that says so: an index of [`Desired::rules`].
    pub rule: Option<RuleId>,
}

/// The policy sets of a [`Desired`], lowered by the publisher's own code, and rows; judged by the programs' own [`verdict::walk`].
#[derive(Debug)]
pub struct Judge {
    state: State,
    /// Bits of selectors.
    bits: Vec<u16>,
    sets: BTreeMap<SetId, LoweredSet>,
    rules: HashMap<u64, RuleId>,
    rows: Vec<Bits>,
    by_row: HashMap<Bits, Row>,
}

/// Policy sets in tables that have room.
pub(crate) struct Lowered {
    pub(crate) state: State,
    /// Bits of selectors.
    pub(crate) bits: Vec<u16>,
    pub(crate) sets: BTreeMap<SetId, LoweredSet>,
    /// Hashes of rules.
    pub(crate) hashes: Vec<u64>,
}

/// Lowers all sets that endpoints use.
pub(crate) fn lower_sets(desired: &Desired) -> Result<Lowered, NodeError> {
    let store = MemoryStore::default();
    store.set_limit::<store::Lists>(ROOM);
    store.set_limit::<store::Ports>(ROOM);
    let mut state = scan(&store)?;
    let symbols = Symbols::of(desired, &Symbols::default());
    let selectors: Vec<(&str, [u64; 2])> = symbols.selectors().collect();
    let used = used_sets(desired);
    let bits = state.selectors.place(&selectors, || groups(desired, used.keys()))?;
    let hashes: Vec<u64> = symbols.rule_hashes.iter().copied().collect();
    let mut sets = BTreeMap::new();
    for (set, who) in &used {
        sets.insert(*set, SetLowering::new(&mut state, &bits, &hashes, who).lower(set.of(desired))?);
    }
    state.sets.check()?;
    state.lists.check()?;
    Ok(Lowered { state, bits, sets, hashes })
}

impl Judge {
    /// Lowers all sets that endpoints use.
    ///
    /// # Errors
    /// What no size of the tables has room for: too many selectors, or rules of one set.
    pub fn new(desired: &Desired) -> Result<Self, NodeError> {
        let Lowered { state, bits, sets, hashes } = lower_sets(desired)?;
        let rules = (0..).map(RuleId).zip(hashes).map(|(rule, hash)| (hash, rule)).collect();
        Ok(Self { state, bits, sets, rules, rows: Vec::new(), by_row: HashMap::new() })
    }

    /// The row of a peer that these selectors match.
    pub fn row(&mut self, selectors: &BTreeSet<SelectorId>) -> Row {
        let mut bits = Bits::NONE;
        for selector in selectors {
            bits.set(self.bits[selector.0 as usize]);
        }
        let next = Row(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
        *self.by_row.entry(bits).or_insert_with_key(|bits| {
            self.rows.push(bits.clone());
            next
        })
    }

    /// What a set says of a peer at a point of a class's axis. With `would` audited entries count as if they were enforced.
    ///
    /// # Panics
    /// If no endpoint uses the set.
    #[must_use]
    pub fn ask(&self, set: SetId, class: Class, value: u16, row: Row, would: bool) -> Answer {
        let LoweredSet { id, numbers, .. } = &self.sets[&set];
        let decision = verdict::walk(self, *id, class, value, row.0, would);
        let number = numbers.get(usize::from(decision.rule())).copied().flatten();
        let (hash, reason) = number.unzip();
        Answer {
            allow: decision.allows(),
            reason: reason.unwrap_or(Reason::Isolated),
            rule: hash.and_then(|hash| self.rules.get(&hash)).copied(),
        }
    }
}

impl Lists for Judge {
    fn ports(&self, index: u32) -> Option<&PortTable> {
        Some(&self.state.sets.get(index / Class::COUNT)?[(index % Class::COUNT) as usize])
    }

    fn list(&self, index: u32) -> Option<&List> {
        self.state.lists.get(index)
    }

    fn row_word(&self, index: u32) -> u64 {
        self.rows.get((index / ROW_WORDS) as usize).map_or(0, |bits| bits.word(index % ROW_WORDS))
    }
}
