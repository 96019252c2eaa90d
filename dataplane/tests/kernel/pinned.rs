//! Where a test pins, so that nothing of it stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use bulkhead_dataplane::{
    attach::{Classifiers, Links},
    pins::Pins,
};
use bulkhead_fixtures::skip;

const BPFFS: &str = "/sys/fs/bpf";

/// Whether maps can be pinned here.
#[track_caller]
pub(crate) fn ready() -> bool {
    skip::programs()
}

/// A directory of pins of its own. What is attached and pinned there goes with it.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::below(Path::new(BPFFS), &NEXT.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(crate) fn below(parent: &Path, label: &str) -> Self {
        Self(parent.join(format!("bulkhead-test-{}-{label}", process::id())))
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.0)
    }

    pub(crate) fn links(&self) -> Links {
        Links::new(&self.pins(), Classifiers::Auto)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = self.links().detach_all() {
            eprintln!("{}: {error}", self.0.display());
        }
        // What the tests put there beside what the crate makes goes too; a BPF file system has no special files.
        if let Err(error) = fs::remove_dir_all(&self.0)
            && self.0.exists()
        {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
