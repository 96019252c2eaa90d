//! A Kubernetes cluster as a source: its API server is asked for workloads and policies, and followed.
//!
//! Nothing of a cluster is used before every kind was listed in full: half of it would open and close what nobody meant to. From then on what was told
//! holds until the API server says something else: a watch that breaks, a server that is away or a history that is too old change nothing; a list that
//! is made anew takes effect when it is complete.
//!
//! Written are only statuses, events and leases, from a thread of their own that nothing waits for. The rights that all this takes are those in
//! `deploy/kubernetes`.

mod blocked;
mod changes;
mod client;
mod conditions;
mod events;
mod index;
mod kinds;
mod lease;
mod object;
mod report;
mod roster;
mod status;
mod store;
mod taint;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    any::Any,
    fmt, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bulkhead_dataplane::cni::protocol::Attached;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::Notify;

use self::{blocked::Blocked, kinds::KINDS, roster::Roster, status::Statuses, store::Store, taint::Taint};
use crate::{
    api::handle::Handle,
    diagnostic::Diagnostics,
    input::Files,
    slice::shorten,
    source::{Changes, Heard, Source},
};

/// How long it is waited for a pod that is about to start and is not known yet. The plugin waits no longer than it was told to.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Why a cluster cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Where the API server is, or who one is, is not known.
    #[error("{0}; inside of a pod its service account says it, elsewhere give --kubeconfig")]
    Config(String),
    /// No thread or descriptor is left.
    #[error("follow the cluster: {0}")]
    Start(#[from] io::Error),
}

/// What the watches tell, and who waits for it.
struct Shared {
    store: Mutex<Store>,
    /// Something was told.
    told: Condvar,
    heard: Mutex<Option<Heard>>,
    /// Why each kind cannot be followed; empty for those that can.
    behind: Mutex<[String; KINDS.len()]>,
    /// Objects whose status is written.
    roster: Mutex<Roster>,
    /// They are others than before.
    news: Notify,
}

impl Shared {
    fn new() -> Self {
        Self {
            store: Mutex::new(Store::new()),
            told: Condvar::new(),
            heard: Mutex::new(None),
            behind: Mutex::default(),
            roster: Mutex::default(),
            news: Notify::new(),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self) -> MutexGuard<'_, [String; KINDS.len()]> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells whoever wants to know.
    fn change(&self, change: impl FnOnce(&mut Store) -> bool) {
        if change(&mut self.store()) {
            self.told.notify_all();
            if let Some(heard) = &*self.heard.lock().unwrap_or_else(PoisonError::into_inner) {
                heard();
            }
        }
    }

    /// What of it cannot be used is said, and nothing else comes of it.
    fn refuse(found: &Diagnostics) {
        tracing::error!("an object of the cluster is not used: {found}");
    }
}

/// A cluster that is followed.
pub struct Cluster {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    client: Client,
    /// Where its API server is.
    server: String,
    /// Where its leases are.
    namespace: String,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Begins to follow a cluster, from a thread of its own: that of a file, else that whose pod this is.
    ///
    /// # Errors
    /// It is not known which, or no thread can be started.
    pub fn follow(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(config(kubeconfig))?;
        let (server, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let client = {
            let _guard = runtime.enter();
            client::client(config)?
        };
        let shared = Arc::new(Shared::new());
        for kind in 0..KINDS.len() {
            runtime.spawn(watch::follow(kind, client.clone(), Arc::clone(&shared)));
        }
        let handle = runtime.handle().clone();
        thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            if let Err(error) = shorten() {
                tracing::warn!("where processors are busy policies are heard of somewhat later: {error}");
            }
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { shared, runtime: handle, client, server, namespace })
    }

    /// Begins to tell how policies stand with the agent of a node, and what is blocked there, from a thread of its own. A taint by this key is taken from the
    /// node when it is guarded, each time it registers.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn tell(&self, node: &str, agent: &Handle, taint: Option<&str>) -> Result<(), ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let statuses =
            Statuses::new(Arc::clone(&self.shared), self.client.clone(), agent.clone(), &self.namespace, node);
        let blocked = Blocked::new(self.client.clone(), agent.clone(), node);
        let taint = taint.map(|key| {
            let (client, handle, shared) = (self.client.clone(), agent.clone(), Arc::clone(&self.shared));
            Taint { client, handle, shared, node: node.to_owned(), key: key.to_owned() }
        });
        let lift = async { futures_util::future::OptionFuture::from(taint.map(Taint::lift)).await };
        let tell = async { tokio::join!(statuses.follow(), blocked.follow(), lift) };
        thread::Builder::new().name("status".to_owned()).spawn(move || runtime.block_on(tell)).map(drop)?;
        Ok(())
    }

    /// Where its API server is.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Waits until every kind was listed. `false` when that takes longer.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        let incomplete = |store: &mut Store| !store.is_complete();
        let waited = self.shared.told.wait_timeout_while(self.shared.store(), time, incomplete);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// What it waits for before anything of it can be used; empty when all of it is known.
    #[must_use]
    pub fn missing(&self) -> String {
        let missing = self.shared.store().missing();
        missing
            .map(|kind| format!("no list of kind {kind} from {}: {}", self.server, self.behind()))
            .unwrap_or_default()
    }

    fn unknown_since(&self, why: &str) -> String {
        format!("what {} says since is not known: {why}", self.server)
    }

    /// Asks for one pod, and takes it for known if it is the one that is meant.
    async fn ask(&self, namespace: &str, name: &str, uid: &str) -> Result<(), String> {
        let question = self.shared.store().ask(namespace, name);
        let asked = tokio::time::timeout(ANSWER, watch::pod(&self.client, namespace, name)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("{} does not answer", self.server)));
        let pod = asked.as_ref().ok().cloned();
        self.shared.change(|store| store.answered(question, uid, pod).inspect_err(Shared::refuse).unwrap_or_default());
        asked?;
        let store = self.shared.store();
        match store.has_pod(namespace, name, uid) {
            true => Ok(()),
            false if !store.has_namespace(namespace) => {
                Err(format!("namespace {namespace} of pod {name} is not known of {} yet", self.server))
            }
            false => Err(format!("pod {namespace}/{name} of {} is not the one with uid {uid}", self.server)),
        }
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, ClusterError> {
    let refuse = |error: &dyn fmt::Display| ClusterError::Config(error.to_string());
    match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| refuse(&error))?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            config.map_err(|error| refuse(&error))
        }
        None => Config::incluster().map_err(|error| refuse(&error)),
    }
}

impl Source for Cluster {
    fn read(&self) -> Files {
        self.shared.store().read()
    }

    fn watch(&self, heard: Heard) -> Option<Box<dyn Any>> {
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
        Some(Box::new(()))
    }

    /// Objects are whole: there is nothing to wait for.
    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn has_news(&self) -> bool {
        self.shared.store().has_news()
    }

    fn changes(&self) -> Option<Changes> {
        self.shared.store().changes()
    }

    /// ADD names a pod and brings no labels. A pod of the same name may be another, so that its unique id counts.
    ///
    /// While some watch is behind, policies may be older than a pod and not known yet: then only one that has run before starts again.
    fn complete(&self, attached: &Attached) -> Result<(), String> {
        let Attached { key, namespace, name, uid, .. } = attached;
        let Some(uid) = uid else {
            // What is no pod's has its own id for a name.
            return match *name == key.container {
                true => Ok(()),
                false => Err(format!(
                    "the runtime names pod {namespace}/{name} without its unique id, and a pod of that name may be another one; use a release of the runtime \
                     that gives K8S_POD_UID in CNI_ARGS"
                )),
            };
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let behind = self.behind();
            let is_known = |store: &Store| match behind.as_str() {
                "" => store.has_pod(namespace, name, uid),
                _ => store.has_run(namespace, name, uid),
            };
            if is_known(&self.shared.store()) {
                return Ok(());
            }
            let asked = match behind.as_str() {
                "" => self.runtime.block_on(self.ask(namespace, name, uid)),
                why => Err(self.unknown_since(why)),
            };
            match asked {
                Err(why) if Instant::now() >= end => return Err(why),
                Err(_) => {
                    // The watch may tell of it first.
                    let again = Duration::from_millis(500);
                    let unknown = |store: &mut Store| !is_known(store);
                    drop(self.shared.told.wait_timeout_while(self.shared.store(), again, unknown));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn vouches(&self, attached: &Attached) -> Result<(), String> {
        let why = self.behind();
        let Attached { namespace, name, uid, .. } = attached;
        let has_run = |uid: &String| self.shared.store().has_run(namespace, name, uid);
        match why.is_empty() || uid.as_ref().is_none_or(has_run) {
            true => Ok(()),
            false => Err(self.unknown_since(&why)),
        }
    }

    fn behind(&self) -> String {
        let behind = self.shared.behind();
        behind.iter().find(|why| !why.is_empty()).cloned().unwrap_or_default()
    }
}
