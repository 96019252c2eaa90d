//! When the API server told those who watch of a pod's label: an agent hears of it at that time too.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{WatchEvent, WatchParams},
};

use super::{Flow, Stage};

/// What was told of the label, until the API server ends.
#[derive(Clone)]
pub(super) struct News(Arc<Mutex<Vec<(Instant, bool)>>>);

impl News {
    /// Watches a pod of the shop.
    pub(super) fn watch(stage: &Stage, pod: &'static str, label: &'static str) -> Result<Self> {
        let news = Self(Arc::default());
        let told = news.clone();
        stage.beside(async move |client| told.follow(client, pod, label).await)?;
        Ok(news)
    }

    async fn follow(self, client: Client, pod: &str, label: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(client, "shop");
        let only = WatchParams::default().fields(&format!("metadata.name={pod}"));
        loop {
            // It begins with what is there, and the server ends it after some minutes.
            let mut events = Box::pin(api.watch(&only, "0").await?);
            while let Some(event) = events.try_next().await? {
                let now = Instant::now();
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                    let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    told.push((now, pod.labels().contains_key(label)));
                }
            }
        }
    }

    /// How long after it was told, since a moment, that the label is there, or that it is not, the calls of a flow became what that means.
    pub(super) fn until(&self, flow: &Flow, since: Instant, there: bool) -> Result<Duration> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.iter().find(|(at, is)| *at >= since && *is == there).context("the label was not told of")?.0;
        let held = if there { flow.first_answered(since) } else { flow.last_answered(since) };
        let held = since + held.context("no call was seen in time")?;
        Ok(held.saturating_duration_since(told))
    }
}
