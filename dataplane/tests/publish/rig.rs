//! A publisher over tables in memory that can be copied, stopped and started again.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use bulkhead_dataplane::{
    desired::{Desired, Endpoint, EndpointName},
    memory::{MemoryStore, Snapshot},
    names::FILE,
    node::{NodeError, Published, Rehearsal, TableUse, Wire},
    publish::{CrashPoint, Publisher},
    store::Table,
};
use tempfile::TempDir;

use crate::judge::{Question, meant, read};

pub(crate) struct Rig {
    pub(crate) store: MemoryStore,
    pub(crate) directory: TempDir,
    pub(crate) publisher: Publisher<MemoryStore>,
    /// Slots of the latest publish.
    pub(crate) slots: BTreeMap<EndpointName, u32>,
    /// What was to be published last: what is equal is shared with it, as a compiler does that goes on from it.
    last: Desired,
}

/// What the kernel would say of a link.
#[expect(clippy::unnecessary_wraps, reason = "the publisher asks for a function that may fail")]
pub(crate) fn wire(endpoint: &Endpoint) -> Result<Wire, NodeError> {
    Ok(Wire::to([2, 0, 0, 0, 0, endpoint.link.as_bytes()[4]]))
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::open(MemoryStore::default(), tempfile::tempdir().unwrap())
    }

    pub(crate) fn with_limit<T: Table>(limit: usize) -> Self {
        let store = MemoryStore::default();
        store.set_limit::<T>(limit);
        Self::open(store, tempfile::tempdir().unwrap())
    }

    pub(crate) fn open(store: MemoryStore, directory: TempDir) -> Self {
        let publisher = Publisher::open(store.clone(), directory.path()).unwrap();
        Self { store, directory, publisher, slots: BTreeMap::new(), last: Desired::default() }
    }

    /// A node of its own with the same tables, and a new publisher that has to find out what is in force.
    pub(crate) fn fork(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Ok(names) = fs::read(self.directory.path().join(FILE)) {
            fs::write(directory.path().join(FILE), names).unwrap();
        }
        Self { slots: self.slots.clone(), ..Self::open(self.store.fork(), directory) }
    }

    pub(crate) fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        let before = std::mem::replace(&mut self.last, desired.clone());
        self.last.addresses.share(&before.addresses);
        let plan = self.publisher.prepare(&self.last, &mut wire)?;
        let slots = plan.attach.iter().map(|attach| (attach.endpoint.clone(), attach.slot)).collect();
        let removed = plan.removed.clone();
        let published = self.publisher.commit(plan)?;
        self.slots = slots;
        self.publisher.release(&removed)?;
        Ok(published)
    }

    /// Rehearses, and holds that this leaves everything as it was: tables, files, names, and what is taken for free.
    pub(crate) fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        let everything = |rig: &Self| (rig.store.snapshot(), rig.files(), rig.publisher.names().clone());
        let before = everything(self);
        let flows = self.store.memory().flows.clone();
        self.store.memory().journal = Some(Vec::new());
        let rehearsal = self.publisher.rehearse(desired, &mut wire);
        assert_eq!(self.store.memory().journal.take(), Some(Vec::new()), "a rehearsal writes");
        assert_eq!(self.store.memory().flows, flows);
        assert_eq!(everything(self), before);
        rehearsal
    }

    /// Names and contents of what lies in the state directory.
    fn files(&self) -> BTreeMap<OsString, Vec<u8>> {
        let files = fs::read_dir(self.directory.path()).unwrap().map(Result::unwrap);
        files.map(|file| (file.file_name(), fs::read(file.path()).unwrap())).collect()
    }

    /// Has copies of the tables kept, one for each point of the publishes that follow.
    pub(crate) fn keep_copies(&mut self) -> Arc<Mutex<BTreeMap<CrashPoint, Snapshot>>> {
        let copies = Arc::new(Mutex::new(BTreeMap::new()));
        let (kept, store) = (copies.clone(), self.store.clone());
        self.publisher.set_hook(Some(Box::new(move |point| {
            kept.lock().unwrap().insert(point, store.snapshot());
            ControlFlow::Continue(())
        })));
        copies
    }

    /// The tables say what `desired` says, of every endpoint and question.
    pub(crate) fn assert_means(&self, desired: &Desired, questions: &[Question]) {
        let tables = self.store.snapshot();
        for endpoint in &desired.endpoints {
            for question in questions {
                let answer = read(&mut &tables, self.slots[&endpoint.name], question);
                let meant = meant(desired, endpoint, question);
                assert!(
                    meant.contains(&answer),
                    "{} asked {question:?} says {answer:?}, not one of {meant:?}",
                    endpoint.name.workload
                );
            }
        }
    }

    pub(crate) fn usage(&mut self) -> BTreeMap<&'static str, usize> {
        self.publisher.usage().unwrap().into_iter().map(|TableUse { table, used, .. }| (table, used)).collect()
    }
}
