//! Verbs that answer from files alone.

use std::{path::PathBuf, time::SystemTime};

use bulkhead_controller::{
    diagnostic::{Diagnostic, Diagnostics},
    offline::{self, Loaded},
    simulate::{Simulation, blast, diff, text},
    workloads::WorkloadName,
};
use clap::{Args, ValueEnum};

/// What a verb says.
pub(crate) struct Answer {
    /// For standard output.
    pub(crate) text: String,
    /// For standard error.
    pub(crate) notes: Diagnostics,
    /// Whether the exit status is 0.
    pub(crate) good: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  bulkhead simulate policy-examples/shop.yaml policy-examples/shop-workloads.yaml")]
pub(crate) struct SimulateArgs {
    /// Files and directories: policies and workloads files of Bulkhead, Kubernetes manifests, or what `kubectl get --output json` printed.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Form of the output.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// As of which time, such as 2027-01-31T12:00:00Z; rules that have ended by then say nothing. Now unless said.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    at: Option<SystemTime>,
}

#[derive(Args)]
#[command(after_help = "Example:\n  bulkhead diff old/ new/")]
pub(crate) struct DiffArgs {
    /// File or directory as it was.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// File or directory as it shall be.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Files and directories that are on both sides, such as the workloads.
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  bulkhead blast-radius shop/web-1 policy-examples/shop.yaml policy-examples/shop-workloads.yaml"
)]
pub(crate) struct BlastArgs {
    /// The workload that is taken over, `namespace/name`.
    #[arg(value_name = "NS/NAME")]
    workload: String,
    /// Files and directories, as for `simulate`.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How many times somebody goes on from what was reached.
    #[arg(long, default_value_t = 3)]
    hops: usize,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For reading.
    #[default]
    Table,
    /// One connection a line; protocols with ports alone.
    List,
    /// For programs.
    Json,
    /// A graph for Graphviz: `| dot -Tsvg`.
    Dot,
}

fn now() -> u64 {
    nanoseconds(SystemTime::now())
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn simulate(args: &SimulateArgs) -> Result<Answer, Diagnostics> {
    let Loaded { model, notes } = offline::load(&args.paths)?;
    let simulation = Simulation::new(&model, args.at.map_or_else(now, nanoseconds))?;
    let connections = simulation.connections();
    let text = match args.output {
        Output::Table => text::table(&simulation, &connections),
        Output::List => text::list(&connections),
        Output::Json => pretty(&text::json(&connections)),
        Output::Dot => text::dot(&connections),
    };
    Ok(Answer { text, notes, good: true })
}

pub(crate) fn diff(args: &DiffArgs) -> Result<Answer, Diagnostics> {
    let load = |path: &PathBuf| {
        let paths: Vec<_> = [path].into_iter().chain(&args.with).cloned().collect();
        offline::load(&paths)
    };
    let (old, new) = (load(&args.old)?, load(&args.new)?);
    let now = now();
    let (before, after) = (Simulation::new(&old.model, now)?, Simulation::new(&new.model, now)?);
    let changes = diff::diff(&before, &after);
    let text = if args.json { pretty(&diff::json(&changes)) } else { diff::text(&changes) };
    Ok(Answer { text, notes: new.notes, good: true })
}

pub(crate) fn blast_radius(args: &BlastArgs) -> Result<Answer, Diagnostics> {
    let Loaded { model, notes } = offline::load(&args.paths)?;
    let simulation = Simulation::new(&model, now())?;
    let name = args
        .workload
        .split_once('/')
        .map(|(namespace, name)| WorkloadName { namespace: namespace.to_owned(), name: name.to_owned() });
    let from = name.as_ref().and_then(|name| simulation.find(name));
    let Some(from) = from else {
        let error = Diagnostic::nowhere(format!("there is no workload `{}`", args.workload));
        return Err(error.help(simulation.suggest(&args.workload)).into());
    };
    let steps = blast::radius(&simulation, from, args.hops);
    let text = if args.json { pretty(&blast::json(&steps)) } else { blast::table(from, &steps) };
    Ok(Answer { text, notes, good: true })
}
