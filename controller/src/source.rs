//! Where an agent gets policies and workloads from.

use std::{
    any::Any,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_dataplane::cni::protocol::Attached;
use notify::{RecursiveMode, Watcher as _};

use crate::{
    input::{Files, Locations},
    watch::watcher,
};

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

    /// Waits until it can say who a container is that is about to start.
    ///
    /// # Errors
    /// It could not be found out; the text says why.
    fn complete(&self, _attached: &Attached) -> Result<(), String> {
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
