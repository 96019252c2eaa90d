//! When the API server told those who watch of a change: an agent hears of it at that time too.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_tests::probe::Flow;
use futures_util::TryStreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    api::{WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Stage;

/// What was told of an object that opens a path and shuts it. Dropped, it watches no more.
pub(super) struct News {
    told: Arc<Mutex<Told>>,
    watch: Option<(oneshot::Sender<()>, JoinHandle<Result<()>>)>,
}

#[derive(Default)]
struct Told {
    /// When, and whether the path is open.
    events: Vec<(Instant, bool)>,
    /// Why nothing more is told.
    ended: Option<anyhow::Error>,
}

impl News {
    /// Watches an object of the shop, until the API server ends. `opens` says whether the path is open after an event.
    pub(super) fn watch<K>(stage: &Stage, name: &str, opens: fn(&WatchEvent<K>) -> bool) -> Result<Self>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let told: Arc<Mutex<Told>> = Arc::default();
        let hears = Arc::clone(&told);
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let (end, ended) = oneshot::channel();
        let thread = stage.beside(async move |client| {
            let api = Api::<K>::namespaced(client, "shop");
            tokio::select! {
                result = follow(&hears, &api, &only, opens) => locked(&hears).ended = result.err(),
                _ = ended => {}
            }
            Ok(())
        })?;
        Ok(Self { told, watch: Some((end, thread)) })
    }

    /// When it was told, after a moment, that the path is open, or that it is not.
    pub(super) fn told(&self, since: Instant, open: bool) -> Result<Instant> {
        let told = locked(&self.told);
        let found = told.events.iter().find(|(at, is)| *at >= since && *is == open);
        let ended = told.ended.as_ref().map(|error| format!(", since the watch ended: {error:#}"));
        found.map(|(at, _)| *at).with_context(|| format!("the change was not told of{}", ended.unwrap_or_default()))
    }

    /// How long after it was told, since a moment, that the path is open, or that it is not, the calls of all flows became what that means.
    pub(super) fn until(&self, flows: &[Flow], since: Instant, open: bool) -> Result<Duration> {
        Ok((since + became(flows, since, open)?).saturating_duration_since(self.told(since, open)?))
    }
}

impl Drop for News {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.watch.take() {
            // Nobody can end it any more: that ends it.
            drop(end);
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("the watch beside the agents: {error:#}"),
                Err(_) => eprintln!("the watch beside the agents panicked"),
            }
        }
    }
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow<K>(
    told: &Mutex<Told>,
    api: &Api<K>,
    only: &WatchParams,
    opens: fn(&WatchEvent<K>) -> bool,
) -> Result<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    loop {
        // It begins with what is there, and the server ends it after some minutes.
        let mut events = Box::pin(api.watch(only, "0").await?);
        while let Some(event) = events.try_next().await? {
            let now = Instant::now();
            if matches!(event, WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_)) {
                locked(told).events.push((now, opens(&event)));
            }
        }
    }
}

/// How long after a moment the calls of all flows were answered, or none of them any more.
pub(super) fn became(flows: &[Flow], since: Instant, open: bool) -> Result<Duration> {
    let when = |flow: &Flow| if open { flow.first_answered(since) } else { flow.last_answered(since) };
    let times: Option<Vec<_>> = flows.iter().map(when).collect();
    times.and_then(|times| times.into_iter().max()).context("no call was seen in time")
}
