//! Keeps our plugin in the networks while their owners rewrite them.
//!
//! It is a process of its own: the agent, which packets and plugins talk to, may not write where runtimes read which programs to start.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};

use super::{InstallError, Record, lock};
use crate::watch::watcher;

/// Files are looked at this often even if nobody says that they changed.
const LOOK: Duration = Duration::from_secs(2);

/// Does not return while something is installed.
///
/// # Errors
/// The record cannot be read, or what is to be written is mounted read-only. Everything else is tried again.
pub fn follow(directory: &Path) -> Result<(), InstallError> {
    let (sender, changed) = mpsc::channel();
    let heard = move || {
        // When nobody listens, nobody follows any more.
        let _ = sender.send(());
    };
    let mut watcher = watcher(heard)
        .inspect_err(|error| tracing::warn!("changes are seen within {} s only: {error}", LOOK.as_secs()))
        .ok();
    let mut watched = false;
    let mut told = BTreeSet::new();
    loop {
        // Whoever uninstalls has done all of it, or nothing yet.
        let locked = lock(directory)?;
        let Some(record) = Record::load(directory)? else {
            tracing::info!("nothing is installed any more");
            return Ok(());
        };
        // The directory may be made later, by whoever installs the network.
        if let Some(watcher) = watcher.as_mut().filter(|_| !watched) {
            watched = watcher.watch(&record.networks, RecursiveMode::NonRecursive).is_ok();
        }
        let mut now = BTreeSet::new();
        match record.changes() {
            Ok(changes) => {
                match record.steps(&changes, directory).run(|step| tracing::warn!("an owner changed it: {step}")) {
                    // A directory that was made after systemd had mounted what its unit may write. Who is started again gets it.
                    Err(error) if error.is_read_only() => return Err(error),
                    written => now.extend(written.err().map(|error| error.to_string())),
                }
                now.extend(changes.unguarded.iter().map(|unguarded| format!("not guarded: {unguarded}")));
            }
            Err(error) => _ = now.insert(error.to_string()),
        }
        // Said when it begins, not every two seconds.
        for why in now.difference(&told) {
            tracing::error!("{why}");
        }
        told = now;
        drop(locked);
        match changed.recv_timeout(LOOK) {
            // What else has happened meanwhile is seen with it.
            Ok(()) => while changed.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            // There is no watcher.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        if watched && !record.networks.is_dir() {
            watched = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, thread};

    use bulkhead_fixtures::skip;
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    use serde_json::json;

    use super::*;
    use crate::install::place::Placement;

    const NONE: Option<&str> = None;

    /// Its unit has it started again, and so with a mount of the directory that may be written.
    #[test]
    fn what_is_mounted_read_only_ends_it() {
        if !skip::root() {
            return;
        }
        let (home, networks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let network = json!({ "cniVersion": "1.0.0", "name": "shop", "plugins": [{ "type": "bridge" }] });
        let entry = json!({ "type": "bulkhead-cni" }).as_object().unwrap().clone();
        let record = Record {
            runtime: None,
            placement: Placement::InPlace,
            networks: networks.path().to_owned(),
            only: Vec::new(),
            entry,
            plugin: PathBuf::from("/opt/cni/bin/bulkhead-cni"),
            made: Vec::new(),
        };
        record.store(home.path()).unwrap();
        let follows = thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            mount(NONE, networks.path(), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            fs::write(networks.path().join("10-shop.conflist"), network.to_string()).unwrap();
            mount(NONE, networks.path(), NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE).unwrap();
            follow(home.path())
        });
        let ended = follows.join().unwrap();
        assert!(ended.as_ref().is_err_and(InstallError::is_read_only), "{ended:?}");
    }
}
