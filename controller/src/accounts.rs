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

/// So long metrics tell of a workload that is gone: until it was read what was counted last. What is counted stays, for who comes back by its name.
const GRACE: u64 = 3600 * 1_000_000_000;

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
        let mut readings = self.observer.counters()?;
        readings.retain(|reading| reading.gone.is_none_or(|gone| now.saturating_sub(gone) < GRACE));
        let flows = self.observer.flows()?;
        let contacts = self.observer.contacts()?;
        self.totals.update(&readings, &flows, &contacts.records, peers);
        self.read_at = now;
        Ok((readings, contacts))
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_dataplane::{desired::EndpointName, node::Discovered};
    use bulkhead_ebpf::reason::Reason;

    use super::*;
    use crate::{diagnostic::source, model::Model, workloads};

    /// A node that has counted this.
    struct Counted(Vec<Reading>);

    impl Observer for Counted {
        fn counters(&self) -> Result<Vec<Reading>, NodeError> {
            Ok(self.0.clone())
        }

        fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
            Ok(Vec::new())
        }

        fn contacts(&self) -> Result<Contacts, NodeError> {
            Ok(Contacts::default())
        }

        fn status(&self) -> Result<Status, NodeError> {
            Ok(Status::default())
        }

        fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
            Ok(MarkConflicts::default())
        }
    }

    fn reading(workload: &str, gone: Option<u64>) -> Reading {
        Reading {
            endpoint: Some(EndpointName { namespace: "shop".to_owned(), workload: workload.to_owned(), index: 0 }),
            service: "web".to_owned(),
            gone,
            direction: "egress",
            reason: Reason::Isolated,
            rule: "r".to_owned(),
            packets: 3,
            bytes: 300,
            flows: 1,
        }
    }

    /// A job of each minute would add a thousand series a day, for ever.
    #[test]
    fn who_is_gone_is_no_metric_any_more_after_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let [late, early] = [60, 7200].map(|ago| Some(now() - ago * 1_000_000_000));
        let readings = vec![reading("there", None), reading("late", late), reading("early", early)];
        let accounts = Accounts::open(Box::new(Counted(readings.clone())), directory.path().to_owned());
        let listed =
            "apiVersion: bulkhead/v1\nkind: Workloads\nnodes: [{ name: n1, addresses: [192.0.2.1] }]\nworkloads: []\n";
        let model = Model::build(&[], &workloads::parse(&source("workloads.yaml", listed)).unwrap()).unwrap();
        let peers = Peers::new(&model, "n1", &Discovered::default());
        let text = accounts.metrics(Health::default(), &peers).unwrap();
        accounts.account(&peers).unwrap();
        let written = std::fs::read_to_string(directory.path().join(TOTALS)).unwrap();
        for (text, place) in [(text, "metrics"), (written, TOTALS)] {
            let names = ["there", "late", "early"].map(|workload| text.contains(&format!("\"{workload}\"")));
            assert_eq!(names, [true, true, false], "{place}: {text}");
        }
        assert_eq!(accounts.counters().unwrap(), readings, "what rules have counted stays");
    }
}
