//! Where an agent gets policies and workloads from.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bulkhead_dataplane::cni::protocol::Attached;
use notify::{RecursiveMode, Watcher as _};

use crate::{
    input::{Files, Locations},
    labels::Labels,
    model::ServiceName,
    watch::watcher,
    workloads::{Frontend, Node, Workload, WorkloadName, Workloads},
    yaml::tree::Item,
};

/// What changed, where that can be told one by one.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Policies by their names; `None` for those that are gone.
    pub policies: BTreeMap<String, Option<PolicyText>>,
    /// Labels of namespaces; `None` for those that are gone.
    pub namespaces: BTreeMap<String, Option<Labels>>,
    /// Workloads, without what runtimes told; `None` for those that are gone.
    pub workloads: BTreeMap<WorkloadName, Option<Arc<Workload>>>,
    /// Service addresses, and who answers there; `None` for services that are gone.
    pub frontends: BTreeMap<ServiceName, Option<Frontend>>,
    /// Nodes; `None` for those that are gone.
    pub nodes: BTreeMap<String, Option<Arc<Node>>>,
}

impl Changes {
    /// Puts what changed in the place of what was there, which is returned, but for policies.
    #[must_use]
    pub fn exchange(self, listed: &mut Workloads) -> Self {
        let Self { policies: _, namespaces, workloads, frontends, nodes } = self;
        Self {
            policies: BTreeMap::new(),
            namespaces: exchange(namespaces, &mut listed.namespaces),
            workloads: exchange(workloads, &mut listed.workloads),
            frontends: exchange(frontends, &mut listed.frontends),
            nodes: exchange(nodes, &mut listed.nodes),
        }
    }
}

fn exchange<K: Clone + Ord, V>(changes: BTreeMap<K, Option<V>>, listed: &mut BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    let put = |(name, value): (K, Option<V>)| {
        let was = match value {
            Some(value) => listed.insert(name.clone(), value),
            None => listed.remove(&name),
        };
        (name, was)
    };
    changes.into_iter().map(put).collect()
}

/// A policy as its source has written it.
#[derive(Clone, Debug)]
pub struct PolicyText {
    /// YAML.
    pub text: String,
    /// What would be read of it, where that is known.
    pub(crate) document: Option<Item>,
}

impl From<String> for PolicyText {
    fn from(text: String) -> Self {
        Self { text, document: None }
    }
}

/// Called after something may have changed, from whatever thread.
pub type Heard = Box<dyn Fn() + Send + Sync>;

/// A source.
pub trait Source: fmt::Debug + Send + Sync {
    /// All that it says now.
    fn read(&self) -> Files;

    /// Calls after changes for as long as what is returned lives. What is not heard of is seen when it is read the next time.
    fn watch(&self, heard: Heard) -> Option<Box<dyn Any>>;

    /// Quiet time after a change before it is read.
    fn quiet(&self) -> Duration;

    /// Whether it says something else than when it was read last, where that costs nothing to tell.
    fn has_news(&self) -> bool {
        false
    }

    /// What changed since it was read last or asked this, whichever came later; `None` where only reading all of it says that.
    fn changes(&self) -> Option<Changes> {
        None
    }

    /// Waits until it can say who a container is that is about to start.
    ///
    /// # Errors
    /// It could not be found out; the text says why.
    fn complete(&self, _attached: &Attached) -> Result<(), String> {
        Ok(())
    }

    /// Whether what it says of a container is enough to let it run for the first time. Does not wait.
    ///
    /// # Errors
    /// It may not know by now what was said since; the text says why.
    fn vouches(&self, _attached: &Attached) -> Result<(), String> {
        Ok(())
    }

    /// Why it may say what is not so any more; empty when it says what is.
    fn behind(&self) -> String {
        String::new()
    }
}

/// Editors and tools write files in several steps.
const QUIET: Duration = Duration::from_millis(100);

impl Source for Locations {
    fn read(&self) -> Files {
        Files::read(self)
    }

    /// Watches the directories in which the files are: a file that is replaced is another one.
    fn watch(&self, heard: Heard) -> Option<Box<dyn Any>> {
        let watched = watcher(heard).and_then(|mut watcher| {
            for directory in [&self.policies, &parent(&self.workloads)] {
                watcher.watch(directory, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        let watched =
            watched.inspect_err(|error| tracing::warn!("changes are seen later, when files are looked at: {error}"));
        Some(Box::new(watched.ok()?))
    }

    fn quiet(&self) -> Duration {
        QUIET
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
