//! How handlers reach the agent, which lives on a thread of its own.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot};

use super::problem::{Kind, Problem};
use crate::{control::Control, diagnostic::Diagnostics, run::Wake};

/// Questions that may wait for the agent at once.
const WAITING: usize = 64;
/// Questions that take a processor for long, at once.
const HEAVY: usize = 1;
/// Longest wait for an answer. Changes wait longer: who is not told whether one was made has to look.
const PATIENCE: Duration = Duration::from_secs(8);
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

    async fn wait<T: Send + 'static>(
        &self,
        patience: Duration,
        late: &str,
        question: impl FnOnce(&mut dyn Control) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return Err(Problem::new(Kind::Busy, "too many requests wait for the agent; ask again"));
        };
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
