//! Hears that files change.

use notify::{
    EventKind, RecommendedWatcher,
    event::{AccessKind, AccessMode},
};

/// A watcher that calls `changed` for whatever may be a change, errors among it. Reading is none: who listens reads, and would wake itself for ever.
pub(crate) fn watcher(changed: impl Fn() + Send + 'static) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let read = event.is_ok_and(
            |event| matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)),
        );
        if !read {
            changed();
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc, time::Duration};

    use notify::{RecursiveMode, Watcher as _};

    use super::*;

    #[test]
    fn who_reads_does_not_wake_himself() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "one").unwrap();
        let (sender, heard) = mpsc::channel();
        let mut watcher = watcher(move || sender.send(()).unwrap()).unwrap();
        watcher.watch(home.path(), RecursiveMode::NonRecursive).unwrap();
        for entry in fs::read_dir(home.path()).unwrap() {
            fs::read(entry.unwrap().path()).unwrap();
        }
        assert!(heard.recv_timeout(Duration::from_millis(200)).is_err());
        fs::write(&file, "two").unwrap();
        heard.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}
