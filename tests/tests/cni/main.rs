//! The CNI plugin, called as a container runtime calls it, behind the reference plugins on real links and a real overlay.
//!
//! Containers are network namespaces; those of a real runtime are in `podman`.

mod found;
mod gate;
mod install;
mod kept;
mod lifecycle;
mod podman;

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Lab, chain};

/// For what must happen on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not happen.
const BRIEF: Duration = Duration::from_millis(300);

/// Where the reference plugins are.
#[track_caller]
fn plugins() -> Option<PathBuf> {
    let found = chain::reference_plugins();
    let what = "the reference CNI plugins (`tests/setup/setup.sh --test` installs containernetworking-plugins)";
    if skip::programs() && skip::require(what, found.is_some()) { found } else { None }
}

/// What is pinned for the links of a node.
fn pinned(lab: &Lab, node: usize) -> Vec<String> {
    let layouts = fs::read_dir(lab.pins(node)).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    let layouts: Vec<_> = layouts.unwrap_or_default();
    let links = layouts.iter().filter_map(|layout| fs::read_dir(layout.join("links")).ok());
    let mut names: Vec<_> = links.flatten().map(|pin| pin.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}
