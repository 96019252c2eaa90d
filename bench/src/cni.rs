//! What the CNI plugin adds to the start of a container, on a real chain with a real agent.

mod reach;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Agent, Lab,
    chain::{Chain, Container, reference_plugins},
};
use bulkhead_topology::Topology;
use clap::Args;
use serde_json::Map;

const POLICY: &str = "apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web: { calls: [db:8080] }
  db: {}
";

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Starts of a container, each with and without Bulkhead.
    #[arg(long, default_value_t = 200)]
    starts: usize,
    /// Other containers of the service that run meanwhile; a row for each number.
    #[arg(long, value_delimiter = ',', default_value = "0,50,100")]
    others: Vec<usize>,
    /// How long the kernel may take for what attaching waits for, as agents are told; rows for each.
    #[arg(long, value_delimiter = ',', default_value = "expedited,normal")]
    grace_periods: Vec<String>,
    /// Few of all, and no figures.
    #[arg(long)]
    smoke: bool,
}

/// Measures.
///
/// # Errors
/// It cannot be measured here, or a container does not start.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(skip::programs(), "root and a BPF file system are needed");
    let reference =
        reference_plugins().context("the reference CNI plugins are missing: `tests/setup/setup.sh --test`")?;
    let (starts, others): (usize, &[usize]) =
        if options.smoke { (3, &[0, 3]) } else { (options.starts, &options.others) };
    if starts == 0 {
        bail!("nothing is measured in 0 starts");
    }
    if !options.smoke {
        println!(
            "milliseconds               ADD of bridge and host-local    ADD of bulkhead-cni behind them     DEL of it"
        );
        println!(
            "grace periods   others              p50      p99                     p50      p99               p50      p99"
        );
    }
    for grace_periods in &options.grace_periods {
        added(&reference, starts, others, grace_periods, !options.smoke)?;
    }
    reach::run(&reference, starts, !options.smoke)?;
    if options.smoke {
        println!(
            "containers start with and without the plugin, and beside others; their first packets arrive on another node"
        );
    }
    Ok(())
}

/// What the plugin adds to ADD, by the number of other containers.
fn added(reference: &Path, starts: usize, others: &[usize], grace_periods: &str, figures: bool) -> Result<()> {
    let most = others.iter().copied().max().unwrap_or_default();
    let mut lab = Lab::new(Topology::builder().nodes(2).workload("db", 1))?;
    lab.contained = (0..=most).map(|n| (format!("web-{n}"), (0, Vec::new()))).collect();
    lab.write_workloads()?;
    lab.policy("shop.yaml", POLICY)?;
    let _agent = Agent::start(&lab, 0, &["--grace-periods", grace_periods])?;
    let chain = Chain::new(&lab, 0, reference, "1.0.0", 100);
    // The same store of addresses: no two containers have one.
    let mut bare = Chain::new(&lab, 0, reference, "1.0.0", 100);
    bare.plugins.clone_from(&chain.plugins);
    bare.plugins.retain(|plugin| plugin["type"] != "bulkhead-cni");

    let mut running: Vec<Container> = Vec::new();
    for &count in others {
        while running.len() > count {
            chain.del(&running.pop().context("one more runs")?);
        }
        while running.len() < count {
            let mut other = Container::new(&format!("web-{}", running.len() + 1));
            chain.add(&mut other).map_err(|refused| anyhow::anyhow!("{refused}"))?;
            running.push(other);
        }
        let (mut before, mut added, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        // The first one fills caches.
        for start in 0..=starts {
            let mut web = Container::new("web-0");
            let begin = Instant::now();
            bare.add(&mut web).map_err(|refused| anyhow::anyhow!("{refused}"))?;
            let made = begin.elapsed();
            let begin = Instant::now();
            chain.ask("ADD", &web, Map::new()).map_err(|refused| anyhow::anyhow!("{refused}"))?;
            let guarded = begin.elapsed();
            let begin = Instant::now();
            chain.ask("DEL", &web, Map::new()).map_err(|refused| anyhow::anyhow!("{refused}"))?;
            let gone = begin.elapsed();
            bare.del(&web);
            if start > 0 {
                before.push(made);
                added.push(guarded);
                removed.push(gone);
            }
        }
        if figures {
            let [before, added, removed] = [before, added, removed].map(|times| (at(&times, 50), at(&times, 99)));
            println!(
                "{grace_periods:<13} {count:>8}          {:>7.1}  {:>7.1}                 {:>7.1}  {:>7.1}           {:>7.1}  {:>7.1}",
                before.0, before.1, added.0, added.1, removed.0, removed.1
            );
        }
    }
    running.iter().for_each(|container| chain.del(container));
    Ok(())
}

/// A percentile, in milliseconds.
pub(crate) fn at(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let index = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1;
    sorted[index].as_secs_f64() * 1000.0
}
