//! A publish that is only tried: the publisher's own code, over tables of which no write reaches the real ones.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{Counter, Flow, FlowKey4, FlowKey6};
use foldhash::{HashSet, HashSetExt as _};

use crate::{
    bytes,
    desired::{Desired, Endpoint},
    node::{NodeError, Rehearsal, Wire},
    publish::Publisher,
    store::{Kind, Store, Table},
};

impl<S: Store> Publisher<S> {
    /// What publishing `desired` now would do. Tables, names and what this publisher knows stay as they are; a plan that is under way holds.
    ///
    /// # Errors
    /// Those of [`Publisher::prepare`], for the same reasons.
    pub fn rehearse(
        &self,
        desired: &Desired,
        wire: &mut dyn FnMut(&Endpoint) -> Result<Wire, NodeError>,
    ) -> Result<Rehearsal, NodeError> {
        let mut stand_in = Publisher {
            store: Overlay::new(&self.store),
            directory: None,
            names: self.names.clone(),
            state: self.state.clone(),
            generation: 0,
            hook: None,
            clock: self.clock,
        };
        let plan = stand_in.prepare(desired, wire)?;
        let removed = plan.removed.clone();
        let published = stand_in.commit(plan)?;
        stand_in.release(&removed)?;
        Ok(Rehearsal { writes: published.writes, grace_periods: published.grace_periods, tables: stand_in.usage()? })
    }
}

/// The tables as they would be: what is written lies in memory, over a store that is only read. Nobody sees it, so that there is nobody to wait for.
#[derive(Debug)]
struct Overlay<'a, S> {
    store: &'a S,
    /// Values by table and key; `None` for what is removed.
    written: BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    /// Counters that are zero now.
    reset: HashSet<u32>,
    /// Slots with a new flow table.
    fresh: HashSet<u32>,
}

impl<'a, S> Overlay<'a, S> {
    fn new(store: &'a S) -> Self {
        Self { store, written: BTreeMap::new(), reset: HashSet::new(), fresh: HashSet::new() }
    }
}

impl<S: Store> Store for Overlay<'_, S> {
    fn limit<T: Table>(&self) -> usize {
        self.store.limit::<T>()
    }

    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, NodeError> {
        match self.written.get(T::NAME).and_then(|written| written.get(bytes::of(key))) {
            Some(value) => Ok(value.as_deref().map(bytes::to)),
            None => self.store.get::<T>(key),
        }
    }

    fn entries<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        let mut entries = self.store.entries::<T>()?;
        let Some(written) = self.written.get(T::NAME) else { return Ok(entries) };
        entries.retain(|(key, _)| !written.contains_key(bytes::of(key)));
        let shows = |value: &[u8]| T::KIND == Kind::Hash || value.iter().any(|byte| *byte != 0);
        let new = written.iter().filter_map(|(key, value)| Some((key, value.as_deref().filter(|value| shows(value))?)));
        entries.extend(new.map(|(key, value)| (bytes::to(key), bytes::to(value))));
        Ok(entries)
    }

    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError> {
        let owned = |(key, value): &(T::Key, T::Value)| (bytes::of(key).to_vec(), Some(bytes::of(value).to_vec()));
        self.written.entry(T::NAME).or_default().extend(entries.iter().map(owned));
        Ok(())
    }

    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError> {
        self.written.entry(T::NAME).or_default().extend(keys.iter().map(|key| (bytes::of(key).to_vec(), None)));
        Ok(())
    }

    fn grace_period(&mut self) {}

    fn flow_tables(&mut self, fresh: &[u32]) -> Result<(), NodeError> {
        self.fresh.extend(fresh);
        Ok(())
    }

    fn ready_slots(&self) -> BTreeSet<u32> {
        self.store.ready_slots()
    }

    fn counters(&self, indexes: &[u32]) -> Result<Vec<Counter>, NodeError> {
        let mut counters = self.store.counters(indexes)?;
        let reset = indexes.iter().zip(&mut counters).filter(|(index, _)| self.reset.contains(index));
        reset.for_each(|(_, counter)| *counter = Counter::default());
        Ok(counters)
    }

    fn endpoint_counters(&self, slot: Option<u32>) -> Result<Vec<(u32, Counter)>, NodeError> {
        self.store.endpoint_counters(slot)
    }

    fn reset_counters(&mut self, indexes: &[u32]) -> Result<(), NodeError> {
        self.reset.extend(indexes);
        Ok(())
    }

    fn flows(&self, slot: u32) -> Result<(Vec<(FlowKey4, Flow)>, Vec<(FlowKey6, Flow)>), NodeError> {
        if self.fresh.contains(&slot) { Ok(Default::default()) } else { self.store.flows(slot) }
    }

    fn unsent(&self) -> Result<u64, NodeError> {
        self.store.unsent()
    }

    fn clock(&self) -> Result<(u64, u64), NodeError> {
        self.store.clock()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_ebpf::abi::{AddressKey4, node};

    use super::*;
    use crate::{
        memory::MemoryStore,
        store::{Addresses4, Node},
    };

    #[test]
    fn writes_are_read_back_and_reach_nothing() {
        let mut store = MemoryStore::default();
        let [a, b, c] = [1, 2, 3].map(|address| AddressKey4 { segment: 0, address });
        store.put::<Addresses4>(&[(a, 1), (b, 2)]).unwrap();
        store.put::<Node>(&[(node::EPOCH, 7), (node::OBSERVE, 1)]).unwrap();
        let counter = Counter { packets: 5, bytes: 6, flows: 7 };
        store.memory().counters.extend([(4, counter), (5, counter)]);
        store.memory().flows.entry(3).or_default().v4.push((FlowKey4::default(), Flow::default()));
        store.memory().journal = Some(Vec::new());
        let before = store.snapshot();

        let mut overlay = Overlay::new(&store);
        overlay.delete::<Addresses4>(&[a]).unwrap();
        overlay.put::<Addresses4>(&[(b, 4), (c, 0)]).unwrap();
        overlay.put::<Node>(&[(node::EPOCH, 0), (node::OVERLAYS, 2)]).unwrap();
        overlay.reset_counters(&[4]).unwrap();
        overlay.flow_tables(&[3]).unwrap();
        overlay.grace_period();

        assert_eq!([a, b, c].map(|key| overlay.get::<Addresses4>(&key).unwrap()), [None, Some(4), Some(0)]);
        let addresses: BTreeMap<_, _> = overlay.entries::<Addresses4>().unwrap().into_iter().collect();
        assert_eq!(addresses, [(b, 4), (c, 0)].into());
        // Of an array, zero is what was never written.
        let words: BTreeMap<_, _> = overlay.entries::<Node>().unwrap().into_iter().collect();
        assert_eq!(words, [(node::OBSERVE, 1), (node::OVERLAYS, 2)].into());
        assert_eq!(overlay.get::<Node>(&node::EPOCH).unwrap(), Some(0));
        assert_eq!(overlay.counters(&[4, 5]).unwrap(), [Counter::default(), counter]);
        assert_eq!(overlay.flows(3).unwrap(), (Vec::new(), Vec::new()));

        assert_eq!(store.snapshot(), before);
        assert_eq!(store.memory().journal.take(), Some(Vec::new()));
        assert_eq!(store.counters(&[4]).unwrap(), [counter]);
        assert_eq!(store.flows(3).unwrap().0.len(), 1);
    }
}
