//! Tables of which one entry is written at a time, with a pause after each that programs can see: whoever probes meets every state on the way.

use std::{thread, time::Duration};

use bulkhead_dataplane::{
    kernel::KernelStore,
    node::NodeError,
    store::{Addresses4, Addresses6, Endpoints, Node, Prefixes4, Prefixes6, Services, Store, Table},
};
use bulkhead_ebpf::abi::{Counter, Flow, FlowKey4, FlowKey6};

/// Tables in which the programs begin to look: what is written there is seen at once.
pub(crate) const SEEN: [&str; 7] =
    [Node::NAME, Endpoints::NAME, Addresses4::NAME, Addresses6::NAME, Prefixes4::NAME, Prefixes6::NAME, Services::NAME];

pub(crate) struct Slow {
    pub(crate) store: KernelStore,
    /// After each entry that is seen at once; `None` writes them together, as fast as it goes.
    pub(crate) pause: Option<Duration>,
}

impl Slow {
    fn each<T: Table, E>(
        &mut self,
        entries: &[E],
        mut write: impl FnMut(&mut KernelStore, &[E]) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        let Some(pause) = self.pause.filter(|_| SEEN.contains(&T::NAME)) else {
            return write(&mut self.store, entries);
        };
        entries.chunks(1).try_for_each(|entry| {
            write(&mut self.store, entry)?;
            thread::sleep(pause);
            Ok(())
        })
    }
}

type Flows = (Vec<(FlowKey4, Flow)>, Vec<(FlowKey6, Flow)>);

impl Store for Slow {
    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError> {
        self.each::<T, _>(entries, KernelStore::put::<T>)
    }

    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError> {
        self.each::<T, _>(keys, KernelStore::delete::<T>)
    }

    fn limit<T: Table>(&self) -> usize {
        self.store.limit::<T>()
    }

    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, NodeError> {
        self.store.get::<T>(key)
    }

    fn entries<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        self.store.entries::<T>()
    }

    fn grace_period(&mut self) {
        self.store.grace_period();
    }

    fn flow_tables(&mut self, fresh: &[u32]) -> Result<(), NodeError> {
        self.store.flow_tables(fresh)
    }

    fn counters(&self, indexes: &[u32]) -> Result<Vec<Counter>, NodeError> {
        self.store.counters(indexes)
    }

    fn endpoint_counters(&self, slot: Option<u32>) -> Result<Vec<(u32, Counter)>, NodeError> {
        self.store.endpoint_counters(slot)
    }

    fn reset_counters(&mut self, indexes: &[u32]) -> Result<(), NodeError> {
        self.store.reset_counters(indexes)
    }

    fn flows(&self, slot: u32) -> Result<Flows, NodeError> {
        self.store.flows(slot)
    }

    fn unsent(&self) -> Result<u64, NodeError> {
        self.store.unsent()
    }

    fn clock(&self) -> Result<(u64, u64), NodeError> {
        self.store.clock()
    }
}
