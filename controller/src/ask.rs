//! Verbs that answer from files alone.

use std::{path::PathBuf, time::SystemTime};

use bulkhead_controller::{
    convert,
    diagnostic::{Diagnostic, Diagnostics, Drawn},
    explain::{self, Question, Who, no_workload, parse_point},
    lint::{self, Check},
    offline::{self, Loaded},
    simulate::{Simulation, blast, diff, text},
    workloads::WorkloadName,
};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use miette::Report;
use serde::Serialize;

use crate::SOCKET;

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
#[command(
    after_help = "The exit status is 1 when it is blocked.\n\nExamples:\n  bulkhead explain --from shop/web-1 --to shop/cart-1 --port 8080 policy-examples/shop.yaml policy-examples/shop-workloads.yaml\n  bulkhead explain --from shop/web-1 --to shop/db-1 --port 5432 policy-examples/shop.yaml policy-examples/shop-workloads.yaml || echo blocked"
)]
pub(crate) struct ExplainArgs {
    /// Who calls: a workload `namespace/name`, or an address.
    #[arg(long, value_name = "WHO")]
    pub(crate) from: String,
    /// Who is called: a workload `namespace/name`, or an address, also of a service.
    #[arg(long, value_name = "WHO")]
    pub(crate) to: String,
    /// About what: `5432/tcp`, `53/udp`, `echo/icmp`, `proto/89`; tcp unless said.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: String,
    /// Files and directories, as for `simulate`. Without any the agent is asked about what is in force.
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Socket that the agent was given.
    #[arg(long, value_name = "PATH", default_value = SOCKET, conflicts_with = "paths")]
    pub(crate) socket: PathBuf,
    /// As of which time; now unless said.
    #[arg(long, requires = "paths", value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    at: Option<SystemTime>,
    /// JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  bulkhead diff --with policy-examples/examples-workloads.yaml policy-examples/tenants.yaml policy-examples/database.yaml"
)]
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
#[command(after_help = "Example:\n  bulkhead manifest policy-examples/shop.yaml | kubectl apply --filename=-")]
pub(crate) struct ManifestArgs {
    /// Files and directories with policies of Bulkhead.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
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

#[derive(Args)]
#[command(
    after_help = "The exit status is 1 when something is found.\n\nExample:\n  bulkhead lint policy-examples/shop.yaml policy-examples/shop-workloads.yaml"
)]
pub(crate) struct LintArgs {
    /// Files and directories, as for `simulate`.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Do not report this; may be given several times.
    #[arg(long, value_name = "CHECK", value_parser = check())]
    allow: Vec<Check>,
    /// As of which time, as for `simulate`.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    at: Option<SystemTime>,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

fn check() -> impl TypedValueParser<Value = Check> {
    PossibleValuesParser::new(Check::ALL.map(Check::name)).try_map(|name| name.parse::<Check>())
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

pub(crate) fn pretty(value: &impl Serialize) -> String {
    // Plain data without maps: nothing of it can fail.
    serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default()
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

pub(crate) fn explain(args: &ExplainArgs) -> Result<Answer, Diagnostics> {
    let Some((class, value)) = parse_point(&args.port) else {
        let error = Diagnostic::nowhere(format!("`{}` is not one port", args.port));
        return Err(error.help("write `5432/tcp`, `53/udp`, `echo/icmp` or `proto/89`").into());
    };
    let Loaded { model, notes } = offline::load(&args.paths)?;
    let now = args.at.map_or_else(now, nanoseconds);
    let simulation = Simulation::new(&model, now)?;
    let (from, to) = (Who::parse(&simulation, &args.from)?, Who::parse(&simulation, &args.to)?);
    let question = Question { from: from.party(), to: to.party(), class, value };
    let explanation = explain::explain(&model, question, now)?;
    let good = explanation.allowed();
    let text = if args.json { pretty(&explanation.json(&model)) } else { explanation.report(&model) };
    Ok(Answer { text, notes, good })
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
    let name =
        args.workload.split_once('/').map(|(namespace, name)| WorkloadName::new(namespace.to_owned(), name.to_owned()));
    let from = name.as_ref().and_then(|name| simulation.find(name));
    let Some(from) = from else {
        return Err(no_workload(&simulation, &args.workload).into());
    };
    let steps = blast::radius(&simulation, from, args.hops);
    let text = if args.json { pretty(&blast::json(&steps)) } else { blast::table(from, &steps) };
    Ok(Answer { text, notes, good: true })
}

pub(crate) fn lint(args: &LintArgs) -> Result<Answer, Diagnostics> {
    let Loaded { model, mut notes } = offline::load(&args.paths)?;
    // What looks wrong with the model is among the findings.
    notes.0.retain(|note| !model.warnings.0.contains(note));
    let now = args.at.map_or_else(now, nanoseconds);
    let simulation = Simulation::new(&model, now)?;
    let mut findings = lint::lint(&model, &simulation, now)?;
    findings.retain(|finding| !args.allow.contains(&finding.check));
    let text = if args.json {
        pretty(&lint::json(&findings))
    } else {
        let drawn = findings.iter().map(|finding| format!("{:?}\n", Report::new(Drawn::from(finding.named()))));
        format!("{}{}\n", drawn.collect::<String>(), lint::summary(&findings))
    };
    Ok(Answer { text, notes, good: findings.is_empty() })
}

pub(crate) fn manifest(args: &ManifestArgs) -> Result<Answer, Diagnostics> {
    let mut found = Diagnostics::default();
    let texts = offline::sources(&args.paths, &mut found);
    let texts: Vec<_> = texts.iter().filter_map(|source| found.take(convert::manifests(source))).collect();
    Ok(Answer { text: found.or(texts.join("---\n"))?, notes: Diagnostics::default(), good: true })
}
