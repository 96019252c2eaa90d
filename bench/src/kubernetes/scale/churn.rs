//! Pods that come and go: each is deleted, and another one of its application made at its address, as it runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{Size, Stage};

/// Replacements on the way at once.
const AT_ONCE: usize = 8;

/// It goes on until it is stopped.
pub(super) struct Churn {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Churn {
    /// Replaces a pod, one after the other, each such time.
    pub(super) fn start(stage: &Stage, size: Size, every: Duration) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = stage.beside(async move |client| churn(client, size, every, &ends).await)?;
        Ok(Self { over, thread })
    }

    /// How many were replaced.
    pub(super) fn stop(self) -> Result<usize> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the replacing of pods panicked"))?
    }
}

async fn churn(client: Client, size: Size, every: Duration, over: &AtomicBool) -> Result<usize> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begin = tokio::time::Instant::now();
    let worker = || async {
        while !over.load(Ordering::Relaxed) {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep_until(begin + every.mul_f64(turn as f64)).await;
            // All over the cluster, and not one node after the other.
            let at = turn.wrapping_mul(7919) % size.pods;
            replace(&client, size, at, turn / size.pods).await.with_context(|| format!("replace pod {at}"))?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, anyhow::Error>(())
    };
    futures_util::future::try_join_all((0..AT_ONCE).map(|_| worker())).await?;
    Ok(done.load(Ordering::Relaxed))
}

async fn replace(client: &Client, size: Size, at: usize, edition: usize) -> Result<()> {
    let name = |pod: &serde_json::Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let (namespace, old, _) = size.pod(at, edition);
    let (_, mut new, status) = size.pod(at, edition + 1);
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    api.delete(&name(&old), &DeleteParams::default().grace_period(0)).await?;
    let called = name(&new);
    if let Some(metadata) = new["metadata"].as_object_mut() {
        // The API server says these itself.
        for field in ["uid", "creationTimestamp", "managedFields"] {
            metadata.remove(field);
        }
    }
    api.create(&PostParams::default(), &serde_json::from_value(new)?).await?;
    api.patch_status(&called, &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await?;
    Ok(())
}
