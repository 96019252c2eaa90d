//! What is in force, as the publisher knows it, and which objects that reaches.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bulkhead_ebpf::abi::{
    Action, Backends, Class, EndpointInfo, EndpointWord, Entry, LIST_CHAIN, List, Owner, PortTable, PrefixKey6,
    ROW_WORDS, ServiceKey, VIEW_CHAIN, View, VtepKey, node,
};
use foldhash::{HashMap, HashMapExt as _};

use crate::{
    desired::Manner,
    node::TableUse,
    publish::{
        ids::{Bits, Blocks, Counters, Pool, SELECTORS, Selectors},
        places::Places,
        standing::Standing,
        troubles::Troubles,
    },
    store::{self, LpmKey, Store, Table},
};

/// The port tables of a policy set.
pub(crate) type PortSet = [PortTable; Class::COUNT as usize];

/// The words of a manner in the node's table.
pub(crate) fn manner_words(Manner { observe, direct }: Manner) -> [(u32, u64); 2] {
    [(node::OBSERVE, observe.into()), (node::DIRECT, direct.into())]
}

/// What is in force.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) epoch: u32,
    /// Endpoints' words that are not 0, by slot.
    pub(crate) words: BTreeMap<u32, EndpointWord>,
    /// Slots that have an owner; one without a word is new, or removed and not yet released.
    pub(crate) infos: BTreeMap<u32, EndpointInfo>,
    pub(crate) places: Places,
    /// What they were made from, where this publisher has made them.
    pub(crate) standing: Option<Standing>,
    /// Ports that the node translates, and the id of their backends.
    pub(crate) services: BTreeMap<ServiceKey, u32>,
    pub(crate) manner: Manner,
    /// Generation of the two tables that follow.
    pub(crate) overlays: u64,
    pub(crate) vteps: BTreeSet<VtepKey>,
    pub(crate) owners: BTreeMap<LpmKey<PrefixKey6>, Owner>,
    pub(crate) selectors: Selectors,
    pub(crate) rows: Pool<Bits>,
    pub(crate) lists: Pool<List>,
    pub(crate) sets: Pool<PortSet>,
    pub(crate) views: Pool<View>,
    pub(crate) backends: Pool<Backends>,
    pub(crate) blocks: Blocks,
    pub(crate) counters: Counters,
    pub(crate) troubles: Troubles,
}

impl State {
    /// Takes back what a plan allocated that came to nothing.
    pub(crate) fn roll_back(&mut self) {
        self.selectors.roll_back();
        self.rows.roll_back();
        self.lists.roll_back();
        self.sets.roll_back();
        self.views.roll_back();
        self.backends.roll_back();
        self.blocks.roll_back();
        self.counters.roll_back();
    }

    /// Use of the bounded tables that are published.
    pub(crate) fn usage<S: Store>(&self, store: &S) -> Vec<TableUse> {
        let places = self.places.counts();
        let of = |table, used, limit| TableUse { table, used, limit };
        vec![
            of(store::Endpoints::NAME, self.infos.len(), store.limit::<store::Endpoints>() - 1),
            of(store::Views::NAME, self.views.used(), store.limit::<store::Views>() - 1),
            of(store::Ports::NAME, self.sets.used(), sets_limit(store) - 1),
            of(store::Lists::NAME, self.lists.used(), store.limit::<store::Lists>() - 1),
            of(store::Rows::NAME, self.rows.used(), rows_limit(store) - 1),
            of("selectors", self.selectors.used(), SELECTORS),
            of(Blocks::TABLE, self.blocks.used(), store.limit::<store::RuleCounters>() - 1),
            of(Counters::TABLE, self.counters.used(&self.blocks), store.limit::<store::CounterKeys>() - 2),
            of(store::Addresses4::NAME, places[0], store.limit::<store::Addresses4>()),
            of(store::Addresses6::NAME, places[1], store.limit::<store::Addresses6>()),
            of(store::Prefixes4::NAME, places[2], store.limit::<store::Prefixes4>()),
            of(store::Prefixes6::NAME, places[3], store.limit::<store::Prefixes6>()),
            of(store::Services::NAME, self.services.len(), store.limit::<store::Services>()),
            of(store::BackendTable::NAME, self.backends.used(), store.limit::<store::BackendTable>() - 1),
            of(store::Vteps::NAME, self.vteps.len(), store.limit::<store::Vteps>()),
            of(store::Owners::NAME, self.owners.len(), store.limit::<store::Owners>()),
        ]
    }
}

/// Rows that the table holds, row 0 included.
pub(crate) fn rows_limit<S: Store>(store: &S) -> usize {
    (store.limit::<store::Rows>() / ROW_WORDS as usize).min(1 << 16)
}

/// Policy sets that the table holds, set 0 included.
pub(crate) fn sets_limit<S: Store>(store: &S) -> usize {
    store.limit::<store::Ports>() / Class::COUNT as usize
}

/// Where objects are looked up: in the pools, or in what was read from the tables.
pub(crate) trait Objects {
    fn view(&self, id: u32) -> Option<View>;
    fn set(&self, id: u32) -> Option<&PortSet>;
    fn list(&self, id: u32) -> Option<&List>;
    fn backends(&self, id: u32) -> Option<&Backends>;

    /// A set and those in which its tables go on, and the first blocks of their lists.
    fn parts(&self, set: u32) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let (mut sets, mut lists) = (BTreeSet::from([set]), BTreeSet::new());
        let used = |set: u32| self.set(set).into_iter().flatten().flat_map(PortTable::used);
        for used_by_set in used(set) {
            match used_by_set {
                Ok(list) => _ = lists.insert(list),
                Err(more) if sets.insert(more) => lists.extend(used(more).flatten()),
                Err(_) => {}
            }
        }
        (sets, lists)
    }
}

impl Objects for State {
    fn view(&self, id: u32) -> Option<View> {
        self.views.get(id).copied()
    }

    fn set(&self, id: u32) -> Option<&PortSet> {
        self.sets.get(id)
    }

    fn list(&self, id: u32) -> Option<&List> {
        self.lists.get(id)
    }

    fn backends(&self, id: u32) -> Option<&Backends> {
        self.backends.get(id)
    }
}

/// What a policy set reaches.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Itself, and sets in which its tables go on.
    pub(crate) sets: BTreeSet<u32>,
    pub(crate) lists: BTreeSet<u32>,
    /// Bits that its lists read.
    pub(crate) reads: Option<Box<Bits>>,
    /// Those of them by which they deny.
    pub(crate) denies: Option<Box<Bits>>,
    /// Numbers of rules, number 0 included: the length of its blocks of counters.
    pub(crate) numbers: usize,
}

/// Follows references, and remembers what it found of each policy set.
pub(crate) struct Walker<'a, O> {
    objects: &'a O,
    sets: HashMap<u32, Rc<Facts>>,
}

impl<'a, O: Objects> Walker<'a, O> {
    pub(crate) fn new(objects: &'a O) -> Self {
        Self { objects, sets: HashMap::new() }
    }

    /// The views from one on, each with its id.
    pub(crate) fn chain(&self, first: u32) -> Vec<(u32, View)> {
        let mut chain: Vec<(u32, View)> = Vec::new();
        let mut id = first;
        while id != 0 && chain.len() < VIEW_CHAIN as usize && chain.iter().all(|(seen, _)| *seen != id) {
            let Some(view) = self.objects.view(id) else { break };
            chain.push((id, view));
            id = if view.deadline == u64::MAX { 0 } else { view.next };
        }
        chain
    }

    pub(crate) fn set(&mut self, id: u32) -> Rc<Facts> {
        if let Some(facts) = self.sets.get(&id) {
            return facts.clone();
        }
        let mut facts = Facts { numbers: 1, ..Facts::default() };
        let (mut reads, mut denies) = (Bits::NONE, Bits::NONE);
        let (sets, lists) = self.objects.parts(id);
        facts.sets = sets;
        for first in lists {
            let mut block = first;
            for _ in 0..LIST_CHAIN {
                if block == 0 || !facts.lists.insert(block) {
                    break;
                }
                let Some(list) = self.objects.list(block) else { break };
                for entry in list.entries.iter().take(list.len as usize) {
                    let rules = if entry.flags & Entry::ANY != 0 { 1 } else { entry.mask.count_ones() };
                    facts.numbers = facts.numbers.max(usize::from(entry.rule) + rules as usize);
                    let word = usize::from(entry.word) % ROW_WORDS as usize;
                    reads.0[word] |= entry.mask;
                    if entry.action == Action::Deny as u8 && entry.flags & Entry::AUDIT == 0 {
                        denies.0[word] |= entry.mask;
                    }
                }
                block = list.next;
            }
        }
        [facts.reads, facts.denies] = [reads, denies].map(|bits| (!bits.is_empty()).then(|| Box::new(bits)));
        self.sets.entry(id).insert_entry(facts.into()).get().clone()
    }

    /// Bits that the lists of a word's views read.
    pub(crate) fn reads(&mut self, word: EndpointWord) -> Bits {
        self.bits(word, |facts| facts.reads.as_deref())
    }

    /// Those of them by which they deny.
    pub(crate) fn denies(&mut self, word: EndpointWord) -> Bits {
        self.bits(word, |facts| facts.denies.as_deref())
    }

    fn bits(&mut self, word: EndpointWord, which: fn(&Facts) -> Option<&Bits>) -> Bits {
        let mut bits = Bits::NONE;
        for (_, view) in self.chain(word.view()) {
            for half in [view.ingress, view.egress] {
                which(&self.set(half.set)).iter().for_each(|some| bits.add(some));
            }
        }
        bits
    }
}

/// Everything that words and addresses reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reachable {
    pub(crate) views: BTreeSet<u32>,
    pub(crate) sets: BTreeSet<u32>,
    pub(crate) lists: BTreeSet<u32>,
    pub(crate) rows: BTreeSet<u32>,
    pub(crate) backends: BTreeSet<u32>,
    /// Blocks of `RULE_COUNTERS` and their lengths.
    pub(crate) blocks: BTreeMap<u32, usize>,
}

impl Reachable {
    pub(crate) fn from(
        objects: &impl Objects,
        words: impl Iterator<Item = EndpointWord>,
        rows: impl Iterator<Item = u32>,
        services: &BTreeMap<ServiceKey, u32>,
    ) -> Self {
        let mut reachable = Self::default();
        let mut walker = Walker::new(objects);
        for word in words {
            for (id, view) in walker.chain(word.view()) {
                if !reachable.views.insert(id) {
                    continue;
                }
                for half in [view.ingress, view.egress].into_iter().filter(|half| half.set != 0) {
                    let facts = walker.set(half.set);
                    if reachable.sets.insert(half.set) {
                        reachable.sets.extend(&facts.sets);
                        reachable.lists.extend(&facts.lists);
                    }
                    let len = reachable.blocks.entry(half.counters).or_default();
                    *len = facts.numbers.max(*len);
                }
            }
        }
        reachable.backends.extend(services.values());
        let of_backends = reachable.backends.iter().filter_map(|id| objects.backends(*id));
        let of_backends = of_backends.flat_map(|some| some.backends.iter().take(some.len as usize));
        let rows = rows.chain(of_backends.map(|backend| backend.row.into()));
        reachable.rows.extend(rows.filter(|row| *row != 0));
        reachable
    }
}
