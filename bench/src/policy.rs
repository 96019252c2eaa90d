//! What it costs to compile: a whole cluster for one node, and then one pod or policy more, less or other.

mod crowd;
mod events;
mod plot;
mod report;
mod world;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use bulkhead_controller::{
    compile::{Compiler, compile},
    model::Model,
};
use bulkhead_dataplane::node::Discovered;

use self::{
    events::Events,
    report::{Figure, Unit},
    world::{HERE, Size, World},
};

/// Options of the suite.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The smallest cluster only, each event once: everything works; no figures.
    #[arg(long)]
    smoke: bool,
    /// Only many policies on one workload, not whole clusters.
    #[arg(long)]
    crowd: bool,
    /// Also write one JSON object a line for each figure to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw times by the size of the cluster, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// The node is the same in all: 110 workloads, each of another namespace.
const SIZES: [Size; 3] = [
    Size { nodes: 20, workloads: 1_000, namespaces: 110, policies: 550, local: 110 },
    Size { nodes: 200, workloads: 10_000, namespaces: 400, policies: 2_000, local: 110 },
    Size { nodes: 1_000, workloads: 50_000, namespaces: 2_000, policies: 10_000, local: 110 },
];

/// Runs of the full compile, and of each event.
const FULL: usize = 5;
const EVENTS: u32 = 51;
/// Of one policy beside many, which takes less.
const CROWD: u32 = 501;

/// Targets of the full compile.
const FULL_US: f64 = 2e6;
const FULL_MIB: f64 = 400.0;

pub(crate) fn run(options: &Options) -> Result<()> {
    let (sizes, full, events) = if options.smoke { (&SIZES[..1], 1, 1) } else { (&SIZES[..], FULL, EVENTS) };
    let mut figures = Vec::new();
    for &size in sizes.iter().filter(|_| !options.crowd) {
        eprintln!("{} workloads", size.workloads);
        let world = World::new(size);
        let mut compiler = whole(&world, full, &mut figures)?;
        Events::new(&world, &mut compiler, events, &mut figures).run()?;
        figures.push(Figure::new("memory_with_compiler", size.workloads, Unit::Mebibytes, vec![peak()?], None));
    }
    eprintln!("many policies on one workload");
    crowd::run(if options.smoke { 1 } else { CROWD }, &mut figures)?;
    report::print(&figures, options.smoke);
    if let Some(path) = &options.json {
        fs::write(path, report::json(&figures)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.plot {
        fs::write(path, plot::svg(&figures)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Measures the model and the full compile together, and makes what events are told to.
fn whole(world: &World, runs: usize, figures: &mut Vec<Figure>) -> Result<Compiler> {
    let workloads = world.size.workloads;
    forget_peak()?;
    let (mut times, mut memory) = (Vec::new(), 0.0);
    let build = || Model::build(&world.policies, &world.workloads).map_err(|found| anyhow!("{found}"));
    for run in 0..runs {
        let start = Instant::now();
        let model = build()?;
        let desired = compile(&model, HERE, &Discovered::default(), 0).map_err(|found| anyhow!("{found}"))?;
        times.push(micros(start));
        if run == 0 {
            memory = peak()?;
        }
        drop(desired);
    }
    figures.push(Figure::new("full", workloads, Unit::Micros, times, Some(FULL_US)));
    figures.push(Figure::new("full_memory", workloads, Unit::Mebibytes, vec![memory], Some(FULL_MIB)));
    let model = build()?;
    let start = Instant::now();
    let compiler = Compiler::new(model, HERE, Discovered::default(), 0).map_err(|found| anyhow!("{found}"))?;
    figures.push(Figure::new("compiler", workloads, Unit::Micros, vec![micros(start)], None));
    Ok(compiler)
}

/// Microseconds since then.
fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Most memory of this process since [`forget_peak`], in MiB.
fn peak() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no such line")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Has the kernel begin anew.
fn forget_peak() -> Result<()> {
    fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of memory")
}
