//! Reads what is in force back from the tables alone: marks what endpoint words and addresses reach, and takes all else for free.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::{Backends, Class, EndpointWord, IdKey, List, ROW_WORDS, ServiceKey, ServiceWord, View, node};
use foldhash::{HashMap, HashMapExt as _};

use crate::{
    desired::Manner,
    node::NodeError,
    publish::{
        ids::{Bits, Blocks, Counters, Pool, SELECTORS, Selectors},
        places::{Places, put},
        state::{Objects, PortSet, Reachable, State, rows_limit, sets_limit},
        troubles::Troubles,
    },
    store::{
        BackendTable, CounterKeys, EndpointInfos, Endpoints, Ids, Lists, Node, Owners, Ports, Rows, RuleCounters,
        Services, Store, Table, Views, Vteps,
    },
};

/// [`IdKey::kind`] of a selector's bit.
pub(crate) const SELECTOR: u32 = 1;

/// Contents of the arrays, garbage included.
struct Raw {
    views: HashMap<u32, View>,
    sets: HashMap<u32, PortSet>,
    lists: HashMap<u32, List>,
    backends: HashMap<u32, Backends>,
}

impl Objects for Raw {
    fn view(&self, id: u32) -> Option<View> {
        self.views.get(&id).copied()
    }

    fn set(&self, id: u32) -> Option<&PortSet> {
        self.sets.get(&id)
    }

    fn list(&self, id: u32) -> Option<&List> {
        self.lists.get(&id)
    }

    fn backends(&self, id: u32) -> Option<&Backends> {
        self.backends.get(&id)
    }
}

/// The latest epoch that was given.
pub(crate) fn epoch<S: Store>(store: &S, words: impl Iterator<Item = EndpointWord>) -> Result<u32, NodeError> {
    let last = store.get::<Node>(&node::EPOCH)?.map(|epoch| epoch as u32);
    Ok(words.map(EndpointWord::epoch).chain(last).max().unwrap_or(0))
}

/// How the node enforces.
pub(crate) fn manner<S: Store>(store: &S) -> Result<Manner, NodeError> {
    let on = |word| Ok(store.get::<Node>(&word)?.is_some_and(|value| value != 0));
    Ok(Manner { observe: on(node::OBSERVE)?, direct: on(node::DIRECT)? })
}

/// Reads the state; changes nothing.
pub(crate) fn scan<S: Store>(store: &S) -> Result<State, NodeError> {
    let words: Vec<(u32, EndpointWord)> =
        store.entries::<Endpoints>()?.into_iter().map(|(slot, word)| (slot, EndpointWord(word))).collect();
    let places = Places::read(store)?;

    let mut raw = Raw {
        views: store.entries::<Views>()?.into_iter().collect(),
        sets: HashMap::new(),
        lists: store.entries::<Lists>()?.into_iter().collect(),
        backends: store.entries::<BackendTable>()?.into_iter().collect(),
    };
    let services: BTreeMap<ServiceKey, u32> =
        store.entries::<Services>()?.into_iter().map(|(key, word)| (key, ServiceWord(word).backends())).collect();
    for (index, table) in store.entries::<Ports>()? {
        raw.sets.entry(index / Class::COUNT).or_default()[(index % Class::COUNT) as usize] = table;
    }
    let rows = places.rows_of_known().chain(places.rows_of_others());
    let reachable = Reachable::from(&raw, words.iter().map(|(_, word)| *word), rows, &services);

    let mut views = Pool::new(Views::NAME, store.limit::<Views>());
    reachable.views.iter().for_each(|id| views.restore(*id, raw.views.remove(id).unwrap_or_default()));
    let mut lists = Pool::new(Lists::NAME, store.limit::<Lists>());
    reachable.lists.iter().for_each(|id| lists.restore(*id, raw.lists.remove(id).unwrap_or_default()));
    let mut sets = Pool::new(Ports::NAME, sets_limit(store));
    reachable.sets.iter().for_each(|id| sets.restore(*id, raw.sets.remove(id).unwrap_or_default()));

    let mut backends = Pool::new(BackendTable::NAME, store.limit::<BackendTable>());
    reachable.backends.iter().for_each(|id| backends.restore(*id, raw.backends.remove(id).unwrap_or_default()));

    let mut contents: HashMap<u32, Bits> = HashMap::new();
    for (index, word) in store.entries::<Rows>()? {
        contents.entry(index / ROW_WORDS).or_insert(Bits::NONE).0[(index % ROW_WORDS) as usize] = word;
    }
    let mut rows = Pool::new(Rows::NAME, rows_limit(store));
    let mut taken = Bits::NONE;
    for row in &reachable.rows {
        let bits = contents.remove(row).unwrap_or(Bits::NONE);
        taken.add(&bits);
        rows.restore(*row, bits);
    }
    for (_, list) in reachable.lists.iter().filter_map(|id| Some((id, lists.get(*id)?))) {
        list.entries
            .iter()
            .take(list.len as usize)
            .for_each(|entry| taken.0[usize::from(entry.word) % ROW_WORDS as usize] |= entry.mask);
    }

    let indexes: HashMap<u32, u64> = store.entries::<RuleCounters>()?.into_iter().collect();
    let mut blocks = Blocks::new(store.limit::<RuleCounters>());
    for (base, len) in &reachable.blocks {
        let block: Vec<u32> =
            (*base..).take(*len).map(|index| indexes.get(&index).map_or(0, |counter| *counter as u32)).collect();
        blocks.restore(*base, &block);
    }

    let named = store
        .entries::<Ids>()?
        .into_iter()
        .filter(|(IdKey { kind, .. }, bit)| *kind == SELECTOR && (*bit as usize) < SELECTORS);
    Ok(State {
        epoch: epoch(store, words.iter().map(|(_, word)| *word))?,
        infos: store.entries::<EndpointInfos>()?.into_iter().filter(|(_, info)| info.identity != 0).collect(),
        places,
        standing: None,
        services,
        manner: manner(store)?,
        overlays: store.get::<Node>(&node::OVERLAYS)?.unwrap_or(0),
        vteps: store.entries::<Vteps>()?.into_iter().map(|(key, _)| key).collect(),
        owners: store.entries::<Owners>()?.into_iter().collect(),
        selectors: Selectors::new(named.map(|(key, bit)| (key.hash, bit as u16)), &taken),
        rows,
        lists,
        sets,
        views,
        backends,
        blocks,
        counters: Counters::new(store.limit::<CounterKeys>(), store.entries::<CounterKeys>()?),
        words: words.into_iter().collect(),
        troubles: Troubles::default(),
    })
}

/// Takes over what a publisher before this one left, wherever it was stopped.
///
/// Programs that started before it stopped may still read objects that nothing reaches any more: one grace period, then they are free. A stop
/// between a change of rows and the change of epochs that belongs to it leaves flows that nobody has judged by the new rows: a new epoch for all.
/// Likewise a stop while the overlays changed: a new generation of them.
pub(crate) fn recover<S: Store>(store: &mut S) -> Result<State, NodeError> {
    let mut state = scan(store)?;
    if state.overlays != 0 || !state.vteps.is_empty() || !state.owners.is_empty() {
        state.overlays = (state.overlays | 1) + 1;
        store.put::<Node>(&[(node::OVERLAYS, state.overlays)])?;
    }
    if !state.infos.is_empty() || !state.words.is_empty() {
        state.epoch += 1;
        store.put::<Node>(&[(node::EPOCH, state.epoch.into())])?;
        let words: Vec<(u32, EndpointWord)> = state
            .words
            .iter()
            .map(|(slot, word)| (*slot, EndpointWord::new(state.epoch, word.view(), word.mode())))
            .collect();
        put::<S, Endpoints>(store, &words.iter().map(|(slot, word)| (*slot, word.0)).collect::<Vec<_>>())?;
        state.words.extend(words);
        store.grace_period();
    }
    Ok(state)
}
