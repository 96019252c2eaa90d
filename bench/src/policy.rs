//! What it costs to compile: of a whole cluster for one node.

mod world;

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use bulkhead_controller::{compile::compile, model::Model};
use bulkhead_dataplane::node::Discovered;

use self::world::{HERE, Size, World};

/// Options of the suite.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Small clusters only, each once: everything works; no figures.
    #[arg(long)]
    smoke: bool,
}

const SIZES: [Size; 3] = [
    Size { nodes: 20, workloads: 1_000, namespaces: 40, policies: 200, local: 110 },
    Size { nodes: 200, workloads: 10_000, namespaces: 400, policies: 2_000, local: 110 },
    Size { nodes: 1_000, workloads: 50_000, namespaces: 2_000, policies: 10_000, local: 110 },
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let sizes = if options.smoke { &SIZES[..1] } else { &SIZES[..] };
    for &size in sizes {
        let world = World::new(size);
        let before = resident("VmRSS")?;
        let start = Instant::now();
        let model = Model::build(&world.policies, &world.workloads).map_err(|found| anyhow!("{found}"))?;
        let built = start.elapsed();
        let desired = compile(&model, HERE, &Discovered::default(), 0).map_err(|found| anyhow!("{found}"))?;
        let compiled = start.elapsed();
        println!(
            "{} workloads: build {built:?}, with compile {compiled:?}, {} MiB (was {before}), {} selectors, {} sets",
            size.workloads,
            resident("VmHWM")?,
            desired.selectors.len(),
            desired.sets.len()
        );
    }
    Ok(())
}

/// Memory of this process in MiB.
fn resident(what: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).context("no such line")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
