//! How handlers reach the agent, which lives on a thread of its own.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use bulkhead_dataplane::node::{Contacts, NodeError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::problem::{Kind, Problem};
use crate::{
    accounts::Accounts,
    control::{Control, Seen},
    diagnostic::Diagnostics,
    run::Wake,
};

/// Questions that may wait for the agent at once.
const WAITING: usize = 64;
/// Questions that take a processor for long, at once.
const HEAVY: usize = 1;
/// Longest wait for an answer. Changes wait longer: who is not told whether one was made has to look.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// The agent, from another thread.
#[derive(Clone)]
pub struct Handle {
    waker: Sender<Wake>,
    waiting: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
}

impl Handle {
    /// The agent that `waker` wakes.
    #[must_use]
    pub fn new(waker: Sender<Wake>) -> Self {
        Self { waker, waiting: Arc::new(Semaphore::new(WAITING)), heavy: Arc::new(Semaphore::new(HEAVY)) }
    }

    /// The same agent, with places of its own for so many questions: others cannot take these away.
    #[must_use]
    pub(super) fn apart(&self, questions: usize) -> Self {
        Self { waiting: Arc::new(Semaphore::new(questions)), ..self.clone() }
    }

    /// Asks the agent.
    ///
    /// # Errors
    /// It has no time, or has stopped.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Control) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        self.wait(PATIENCE, "the agent is busy; ask again", question).await
    }

    /// Has the agent change something.
    ///
    /// # Errors
    /// It has no time, or has stopped.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut dyn Control) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let late = "the agent is busy; the change may still be made: look at /v1/revisions before you ask again";
        self.wait(LONG_PATIENCE, late, change).await
    }

    /// A place among those who wait.
    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full = |_| Problem::new(Kind::Busy, "too many requests wait for the agent; ask again");
        Arc::clone(&self.waiting).try_acquire_owned().map_err(full)
    }

    async fn wait<T: Send + 'static>(
        &self,
        patience: Duration,
        late: &str,
        question: impl FnOnce(&mut dyn Control) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let place = self.place()?;
        let (reply, answer) = oneshot::channel();
        let ask = Wake::Ask(Box::new(move |agent| {
            let _place = place;
            // Whoever asked may be gone.
            let _ = reply.send(question(agent));
        }));
        let stopped = || Problem::new(Kind::Busy, "the agent has stopped");
        self.waker.send(ask).map_err(|_| stopped())?;
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| stopped()),
            Err(_) => Err(Problem::new(Kind::Busy, late)),
        }
    }

    /// Reads what the node counted and saw, beside the agent.
    ///
    /// # Errors
    /// The agent has no time, or has stopped; the node's.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Accounts) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, Problem> {
        let accounts = self.ask(|agent| agent.accounts()).await?;
        let late = |_| Problem::new(Kind::Busy, "it takes long to read what the node counted; ask again");
        let looked = tokio::time::timeout(PATIENCE, self.beside(move || look(&accounts))).await.map_err(late)?;
        looked?.map_err(|error| Problem::new(Kind::Busy, error.to_string()))
    }

    /// Does what takes a while on a thread of its own, in a place among those who wait.
    ///
    /// # Errors
    /// There is no place.
    pub(super) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let place = self.place()?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|error| Problem::new(Kind::Internal, format!("it ended early: {error}")))
    }

    /// Metrics in Prometheus's text format.
    ///
    /// # Errors
    /// As [`Self::ask`]; the node's.
    pub(super) async fn metrics(&self) -> Result<String, Problem> {
        let (health, peers) = self.ask(|agent| (agent.health(), agent.peers())).await?;
        self.look(move |accounts| accounts.metrics(health, &peers.make())).await
    }

    /// What was seen on the node.
    ///
    /// # Errors
    /// As [`Self::ask`]; the node's.
    pub(super) async fn seen(&self) -> Result<Seen, Problem> {
        let (flows, contacts) = self.look(|accounts| Ok((accounts.flows()?, accounts.contacts()?))).await?;
        let (known, peers) = self.ask(|agent| (agent.known(), agent.peers())).await?;
        Ok(Seen { known, peers, flows, contacts })
    }

    /// Samples of what was denied on the node.
    ///
    /// # Errors
    /// As [`Self::ask`]; the node's.
    pub(crate) async fn denied(&self) -> Result<Contacts, Problem> {
        self.look(Accounts::contacts).await
    }

    /// Does what takes long on a thread of its own, one at a time.
    ///
    /// # Errors
    /// Another one is under way; what `work` says.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let Ok(place) = Arc::clone(&self.heavy).try_acquire_owned() else {
            return Err(Problem::new(Kind::TooMany, "another plan, simulation or explanation is under way; ask again"));
        };
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|error| Problem::new(Kind::Internal, format!("it ended early: {error}")))?
    }
}

impl From<Diagnostics> for Problem {
    fn from(found: Diagnostics) -> Self {
        Self::documents(&found, |_| String::new())
    }
}
