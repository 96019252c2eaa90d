//! The CNI plugin, called as a container runtime calls it, behind the reference plugins on real links and a real overlay.
//!
//! Containers are network namespaces; those of real runtimes are in `podman` and `containerd`.

mod chains;
mod containerd;
mod files;
mod found;
mod gate;
mod install;
mod kept;
mod leaks;
mod lifecycle;
mod podman;
mod starts;
mod support;
mod systemd;

use std::path::PathBuf;

use bulkhead_fixtures::skip;
use bulkhead_tests::chain;

/// Where the reference plugins are.
#[track_caller]
fn plugins() -> Option<PathBuf> {
    let found = chain::reference_plugins();
    let what = "the reference CNI plugins (`tests/setup/setup.sh --test` installs containernetworking-plugins)";
    if skip::programs() && skip::require(what, found.is_some()) { found } else { None }
}
