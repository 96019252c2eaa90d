//! Pods that come and go: each is deleted, and one of its application's next edition made, with another address of its node, as it runs.

use std::{
    cell::RefCell,
    collections::VecDeque,
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

use super::{Size, Stage, objects};

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
    let addresses = RefCell::new(Addresses::new(size));
    let begin = tokio::time::Instant::now();
    let worker = || async {
        while !over.load(Ordering::Relaxed) {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep_until(begin + every.mul_f64(turn as f64)).await;
            let Some((at, edition)) = size.replaced(turn) else { continue };
            let what = || format!("replace pod {at}");
            replace(&client, size, (at, edition), &addresses).await.with_context(what)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, anyhow::Error>(())
    };
    futures_util::future::try_join_all((0..AT_ONCE).map(|_| worker())).await?;
    Ok(done.load(Ordering::Relaxed))
}

/// Which addresses of the nodes' ranges pods have, as the nodes give them: one that was given back is given again after all others.
struct Addresses {
    nodes: usize,
    /// By pod.
    given: Vec<usize>,
    /// By node.
    free: Vec<VecDeque<usize>>,
}

impl Addresses {
    fn new(size: Size) -> Self {
        let pods = |node| (size.pods + size.nodes - 1 - node) / size.nodes;
        let free = (0..size.nodes).map(|node| (pods(node)..objects::HOSTS).collect()).collect();
        Self { nodes: size.nodes, given: (0..size.pods).map(|at| at / size.nodes).collect(), free }
    }

    /// That of a pod.
    fn of(&self, at: usize) -> usize {
        self.given[at]
    }

    /// The pod is gone, and the next one in its place gets another.
    fn change(&mut self, at: usize) -> usize {
        let free = &mut self.free[at % self.nodes];
        free.push_back(self.given[at]);
        self.given[at] = free.pop_front().unwrap_or(self.given[at]);
        self.given[at]
    }
}

async fn replace(
    client: &Client,
    size: Size,
    (at, edition): (usize, usize),
    addresses: &RefCell<Addresses>,
) -> Result<()> {
    let name = |pod: &serde_json::Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let (namespace, old, _) = size.pod(at, edition, addresses.borrow().of(at));
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    api.delete(&name(&old), &DeleteParams::default().grace_period(0)).await?;
    let host = addresses.borrow_mut().change(at);
    let (_, mut new, status) = size.pod(at, edition + 1, host);
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
