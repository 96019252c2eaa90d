//! What a node counted and saw: read beside the agent, so that no policy waits for it. To read all tables takes long.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_dataplane::node::{Contacts, FlowRecord, MarkConflicts, NodeError, Observer, Reading, Status};

use crate::{
    metrics::{Health, Totals, render},
    peers::Peers,
    store::{file, now},
};

/// Name of the file with totals by peer in the state directory.
const TOTALS: &str = "peers.json";

/// Reads and sums up. Clones are handles to the same; calls take as long as the node does, one at a time.
#[derive(Clone)]
pub struct Accounts(Arc<Mutex<Inner>>);

struct Inner {
    observer: Box<dyn Observer>,
    totals: Totals,
    state: PathBuf,
    /// When it was read last, nanoseconds of Unix time.
    read_at: u64,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

impl Accounts {
    /// Goes on from the totals of the process before, which are in the state directory.
    #[must_use]
    pub fn open(observer: Box<dyn Observer>, state: PathBuf) -> Self {
        let totals = file::load(&state, TOTALS).unwrap_or_else(|error| {
            tracing::warn!("{error}; totals by peer begin anew");
            None
        });
        let totals = totals.map(Totals::restore).unwrap_or_default();
        Self(Arc::new(Mutex::new(Inner { observer, totals, state, read_at: 0 })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Totals that were being brought up to date when somebody panicked are made good by the next time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the totals by peer up to date and stores them. Flows live in tables that evict: called often enough, few are missed.
    ///
    /// # Errors
    /// What the node says.
    pub fn account(&self, peers: &Peers) -> Result<(), NodeError> {
        let mut inner = self.inner();
        inner.read(peers)?;
        if let Err(error) = file::store(&inner.state, TOTALS, &inner.totals.save(inner.read_at)) {
            tracing::warn!("totals by peer would not survive the agent: {error}");
        }
        Ok(())
    }

    /// Metrics in Prometheus's text format.
    ///
    /// # Errors
    /// What the node says.
    pub fn metrics(&self, health: Health, peers: &Peers) -> Result<String, NodeError> {
        let mut inner = self.inner();
        let (readings, contacts) = inner.read(peers)?;
        let status = inner.observer.status()?;
        render(health, &readings, &inner.totals, &contacts, &status)
            .map_err(|error| NodeError::Kernel { doing: "writing metrics".to_owned(), why: error.to_string() })
    }

    /// See [`Observer::counters`].
    ///
    /// # Errors
    /// What the node says.
    pub fn counters(&self) -> Result<Vec<Reading>, NodeError> {
        self.inner().observer.counters()
    }

    /// See [`Observer::flows`].
    ///
    /// # Errors
    /// What the node says.
    pub fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
        self.inner().observer.flows()
    }

    /// See [`Observer::contacts`].
    ///
    /// # Errors
    /// What the node says.
    pub fn contacts(&self) -> Result<Contacts, NodeError> {
        self.inner().observer.contacts()
    }

    /// See [`Observer::status`].
    ///
    /// # Errors
    /// What the node says.
    pub fn status(&self) -> Result<Status, NodeError> {
        self.inner().observer.status()
    }

    /// See [`Observer::mark_conflicts`].
    ///
    /// # Errors
    /// What the node says.
    pub fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
        self.inner().observer.mark_conflicts()
    }
}

impl Inner {
    fn read(&mut self, peers: &Peers) -> Result<(Vec<Reading>, Contacts), NodeError> {
        let now = now();
        let readings = self.observer.counters()?;
        let flows = self.observer.flows()?;
        let contacts = self.observer.contacts()?;
        self.totals.update(&readings, &flows, &contacts.records, peers);
        self.read_at = now;
        Ok((readings, contacts))
    }
}
