//! What the lab's process does: it raises the lab, and waits.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use bulkhead_cluster::{Cluster, sweep};
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::setsid,
};

use crate::{place::HINTS, shop, tools};

/// Of this source tree.
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const NAMESPACE: &str = "--namespace=bulkhead-system";

/// Stands until it is told to end.
pub(crate) fn run() -> Result<()> {
    // Ctrl-C in the terminal of `up` is not for the lab.
    setsid().context("a session of its own")?;
    let end = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    end.thread_block()?;
    sweep();
    println!("a cluster of two nodes with flannel ...");
    let cluster = Cluster::builder().start()?;
    let tools = tools::write(&cluster)?;
    println!("Bulkhead, by its chart: it observes ...");
    import_image(&cluster)?;
    let chart = tools::chart(&cluster, Path::new(TREE))?;
    helm(&cluster, &["install", "bulkhead", &chart, NAMESPACE, "--create-namespace"])?;
    rolled_out(&cluster)?;
    println!("the shop and its policies ...");
    shop::open(&cluster, Path::new(TREE))?;
    println!("Bulkhead enforces ...");
    helm(&cluster, &["upgrade", "bulkhead", &chart, NAMESPACE, "--reset-then-reuse-values", "--set=observe=false"])?;
    rolled_out(&cluster)?;
    shop::check(&cluster)?;
    // At once, since somebody waits for it.
    let hints = cluster.directory().join("hints");
    fs::write(&hints, tools::hints(&cluster, &tools, &chart)?)?;
    fs::copy(&hints, format!("{HINTS}.new"))?;
    fs::rename(format!("{HINTS}.new"), HINTS)?;
    end.wait()?;
    Ok(())
}

/// Makes an image of the programs that were built with this one, and brings it onto the nodes.
fn import_image(cluster: &Cluster) -> Result<()> {
    let archive = cluster.directory().join("bulkhead.tar");
    let running = env::current_exe()?;
    let mut make = Command::new(format!("{TREE}/tests/kubernetes/agent-image.sh"));
    make.arg(running.parent().context("no directory of programs")?).arg(&archive);
    succeed(make.arg(concat!("bulkhead:", env!("CARGO_PKG_VERSION"))))?;
    cluster.import(&archive)
}

fn helm(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let helm = cluster.helm();
    ensure!(helm.is_file(), "no {}: `tests/setup/setup.sh --lab` builds it", helm.display());
    let mut command = cluster.control_plane().command(helm);
    // Its caches go with the cluster.
    command.env("HOME", cluster.directory()).env("KUBECONFIG", cluster.kubeconfig());
    succeed(command.args(words))
}

fn rolled_out(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&[NAMESPACE, "rollout", "status", "daemonset/bulkhead", "--timeout=180s"]).map(drop)
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}
