//! The database and the audit log. What took effect by itself is written on a thread of its own: a disk may take seconds, and whoever changes something
//! waits for the kernel alone.

use std::{
    io, panic,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{BESIDE, BESIDE_STAGED, Beside, record};
use crate::{
    audit::{Event, Log, Losses},
    store::{Draft, Head, Revision, Store, StoreError},
};

/// Both. One thread at a time has them.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) store: Store,
    pub(super) log: Log,
}

/// They, and what is being written to them.
#[derive(Debug)]
pub(super) struct Keeper {
    records: Arc<Mutex<Records>>,
    writing: Option<JoinHandle<Written>>,
    /// What the log lacked when it was written last.
    losses: Losses,
}

/// A revision that was written, and how long that took.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) revision: Result<Revision, StoreError>,
    pub(super) took: Duration,
}

impl Keeper {
    pub(super) fn new(records: Records) -> Self {
        let losses = records.log.losses();
        Self { records: Arc::new(Mutex::new(records)), writing: None, losses }
    }

    /// Begins to write a revision that is in force already, which `event` says.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn begin(
        &mut self,
        draft: Draft,
        beside: Beside,
        event: impl FnOnce(&Head) -> Event + Send + 'static,
    ) -> io::Result<()> {
        let records = Arc::clone(&self.records);
        let write = move || {
            let begun = Instant::now();
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
            let Records { store, log } = &mut *records;
            let revision = store.write(|write| {
                let revision = write.stage(&draft)?;
                let number = revision.head.number;
                write.set(BESIDE, &Beside { revision: number, ..beside })?;
                write.unset(BESIDE_STAGED)?;
                Ok(Revision { head: write.commit(number)?, ..revision })
            });
            if let Ok(revision) = &revision {
                record(log, &event(&revision.head));
            }
            Written { revision, took: begun.elapsed() }
        };
        let thread = thread::Builder::new().name("write".to_owned()).spawn(write);
        self.writing = Some(thread?);
        Ok(())
    }

    /// Something is being written; whether that is done.
    pub(super) fn writing(&self) -> Option<bool> {
        self.writing.as_ref().map(JoinHandle::is_finished)
    }

    /// Waits for what is being written.
    pub(super) fn end(&mut self) -> Option<Written> {
        let written = self.writing.take()?.join().unwrap_or_else(|why| panic::resume_unwind(why));
        let losses = self.lock().log.losses();
        self.losses = losses;
        Some(written)
    }

    /// The database. Whoever writes to it has [ended](Self::end) what is being written: what the agent says of itself must not be older than that.
    pub(super) fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&mut self, event: &Event) {
        let mut records = self.lock();
        record(&mut records.log, event);
        let losses = records.log.losses();
        drop(records);
        self.losses = losses;
    }

    pub(super) const fn losses(&self) -> &Losses {
        &self.losses
    }
}

impl Drop for Keeper {
    /// Who comes next finds the database whole, and nobody writing.
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}
