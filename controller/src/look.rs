//! What is in force and what happens: asked of the agent, or read from the pins and the state directory when there is none.

use std::{
    fs,
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bulkhead_controller::{
    api::types::{NodeBody, RevisionBody, StatusBody},
    bypass,
    client::{Client, ClientError},
    install::Record,
    model::Model,
    show::{self, Names, News, Observation, Streams},
    store::{self, Revision},
};
use bulkhead_dataplane::kernel::Reader;
use clap::{Args, ValueEnum};
use miette::{IntoDiagnostic as _, Report, WrapErr as _, miette};
use serde::{Serialize, de::DeserializeOwned};

use crate::{PINS, RECORD, SOCKET, STATE, ask::pretty, out};

/// Whom to ask.
#[derive(Args)]
struct Source {
    /// Socket that the agent was given.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Ask no agent, but read the pins and the state directory. Needs root.
    #[arg(long, conflicts_with = "socket")]
    offline: bool,
    /// Directory on a bpffs that the agent was given.
    #[arg(long, requires = "offline", default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given.
    #[arg(long, requires = "offline", default_value = STATE)]
    state: PathBuf,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  bulkhead get rules\n  bulkhead get workloads --offline")]
pub(crate) struct GetArgs {
    /// What to list.
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    source: Source,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Endpoints, their services, and whether they are guarded.
    Workloads,
    /// Listed services as they are written.
    Policies,
    /// Rules, where they are written and what they decided here.
    Rules,
    /// Flows in the tables.
    Flows,
    /// Service addresses, and what they lead to.
    Services,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  bulkhead observe\n  bulkhead observe --follow")]
pub(crate) struct ObserveArgs {
    /// Go on until interrupted.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    source: Source,
    /// A JSON object a line instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Socket that the agent was given.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Directory on a bpffs that the agent was given, read when no agent answers.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given, read when no agent answers.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
    /// Where `bulkhead install` wrote down what it did.
    #[arg(long, value_name = "DIR", default_value = RECORD)]
    record: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Pins, and the revision that is in force there.
struct Pinned {
    reader: Reader,
    revision: Revision,
    model: Model,
}

impl Source {
    fn pinned(&self) -> Result<Pinned, Report> {
        let reader = reader(&self.pins, &self.state)?;
        let (revision, model) = in_force(&self.state)?;
        Ok(Pinned { reader, revision, model })
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Report> {
        Client::new(&self.socket).get(path).map_err(unanswered)
    }

    /// What the agent answers, or what the pins say where it shall not be asked.
    fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        read: impl FnOnce(&Pinned) -> Result<Vec<T>, Report>,
    ) -> Result<Vec<T>, Report> {
        if self.offline { read(&self.pinned()?) } else { self.ask(path) }
    }
}

/// What can be done where nobody answers.
fn unanswered(error: ClientError) -> Report {
    match error {
        ClientError::Away { .. } => miette!(
            help = "what is in force stays so without an agent; with `--offline` it is read from the pins and the state directory",
            "{error}"
        ),
        error => Report::from_err(error),
    }
}

fn reader(pins: &Path, state: &Path) -> Result<Reader, Report> {
    Reader::open(pins, state).into_diagnostic().wrap_err_with(|| match fs::read_dir(pins) {
        Err(error) if error.kind() == ErrorKind::NotFound => format!("nothing is in force below {}", pins.display()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            format!("root alone can read what is in force below {}", pins.display())
        }
        _ => format!("what is in force below {} cannot be read", pins.display()),
    })
}

fn stored(state: &Path) -> Result<Option<Revision>, Report> {
    let Some(reader) = store::Reader::open(state).into_diagnostic()? else { return Ok(None) };
    reader.in_force().into_diagnostic()
}

fn in_force(state: &Path) -> Result<(Revision, Model), Report> {
    let revision = stored(state)?;
    let revision =
        revision.ok_or_else(|| miette!("{} holds no revision: give the agent's `--state`", state.display()))?;
    // It was good when it was stored: what is wrong with it now is this version's doing.
    let model = revision.inputs.model().into_diagnostic().wrap_err("this version cannot read the stored revision")?;
    Ok((revision, model))
}

/// What is in force, and whether all is well.
pub(crate) fn status(args: &StatusArgs) -> Result<(String, bool), Report> {
    let answer = match Client::new(&args.socket).get::<StatusBody>("/v1/status") {
        // Nothing is wrong with the agent, and who may not ask it may not read the pins.
        Err(error @ ClientError::Forbidden { .. }) => return Err(Report::from_err(error)),
        answer => answer.map_err(|error| error.to_string()),
    };
    let (revision, node) = match &answer {
        Ok(agent) => (Ok(Some(agent.revision.clone())), agent.node.clone()),
        Err(_) => {
            let reader = reader(&args.pins, &args.state)?;
            let (status, marks) = (reader.status().into_diagnostic()?, reader.mark_conflicts().into_diagnostic()?);
            let record = status.bypassed_until.and_then(|until| bypass::Record::of(until, &args.state));
            // Without the database the walls stand all the same.
            let revision = stored(&args.state).map(|revision| revision.map(|revision| (&revision.head).into()));
            (revision.map_err(|error| error.to_string()), NodeBody::new(&status, &marks, record))
        }
    };
    let revision: Result<Option<RevisionBody>, String> = revision;
    let guarded = node.endpoints.iter().all(|endpoint| endpoint.guarded);
    let exempt = Record::load(&args.record).map(|record| record.map(|record| record.exempt()));
    let exempt = exempt.map_err(|error| error.to_string());
    let well = node.bypassed_until.is_none() && guarded && answer.as_ref().is_ok_and(|agent| agent.troubles.is_empty());
    if args.json {
        let (agent, unanswered) = (answer.as_ref().ok(), answer.as_ref().err());
        let (revision, unknown) = (revision.as_ref().ok(), revision.as_ref().err());
        let all = serde_json::json!({
            "well": well, "node": node, "revision": revision, "revision_unknown": unknown,
            "agent": agent, "agent_does_not_answer": unanswered,
            "exempt": exempt.as_ref().ok(), "exempt_unknown": exempt.as_ref().err(),
        });
        return Ok((pretty(&all), well));
    }
    let mut text = match node.bypassed_until {
        Some(until) => {
            let record = node.bypass.as_ref();
            let until = record.and_then(|record| record.until).unwrap_or(until.saturating_mul(1_000_000_000));
            format!("{}\n", bypass::banner(until, record))
        }
        None if node.state == "observing" => "OBSERVING: nothing is dropped on this node\n".to_owned(),
        None if node.endpoints.is_empty() => "NOTHING TO ENFORCE: no workload of this node is guarded\n".to_owned(),
        None => "ENFORCING\n".to_owned(),
    };
    match &answer {
        Ok(agent) => text.push_str(&show::agent(agent)),
        Err(why) => {
            text.push_str(&format!(
                "AGENT     DOES NOT ANSWER, what is in force stays and nothing new takes effect: {why}\n\
                 source    the pins below {}\n",
                args.pins.display()
            ));
        }
    }
    text.push_str(&match exempt {
        Ok(None) => String::new(),
        Ok(Some(namespaces)) if namespaces.is_empty() => "exempt    no namespace\n".to_owned(),
        Ok(Some(namespaces)) => {
            format!("exempt    {}: containers start whatever becomes of Bulkhead\n", namespaces.join(", "))
        }
        Err(why) => format!("exempt    not known: {why}\n"),
    });
    text.push_str(&show::status(revision.as_ref().map(Option::as_ref).map_err(String::as_str), &node));
    Ok((text, well))
}

/// A list, as a table or as JSON.
pub(crate) fn get(args: &GetArgs) -> Result<String, Report> {
    let GetArgs { what, source, json } = args;
    fn say<T: Serialize>(json: bool, lines: &[T], table: fn(&[T]) -> String) -> String {
        if json { pretty(&lines) } else { table(lines) }
    }
    Ok(match what {
        What::Workloads => {
            let read = |at: &Pinned| {
                Ok(show::workloads(&at.model, &at.revision.head.node, &at.reader.status().into_diagnostic()?))
            };
            say(*json, &source.lines("/v1/workloads", read)?, show::workloads_table)
        }
        What::Policies => {
            let read = |at: &Pinned| show::policies(&at.revision, &at.model).into_diagnostic();
            say(*json, &source.lines("/v1/policy-lines", read)?, show::policies_table)
        }
        What::Rules => {
            let read = |at: &Pinned| Ok(show::rules(&at.model, &at.reader.counters().into_diagnostic()?));
            say(*json, &source.lines("/v1/rules", read)?, show::rules_table)
        }
        What::Flows => {
            let read = |at: &Pinned| {
                let names = Names::new(&at.model, &at.revision.head.node);
                Ok(show::flows(&names, &at.reader.flows().into_diagnostic()?))
            };
            say(*json, &source.lines("/v1/flows", read)?, show::flows_table)
        }
        What::Services => {
            let read = |at: &Pinned| Ok(show::services(&at.model));
            say(*json, &source.lines("/v1/services", read)?, show::services_table)
        }
    })
}

/// How often the pins are looked at, and how long a stream that ended is not asked for again.
const LOOK: Duration = Duration::from_millis(500);

/// Prints observations, until it is interrupted if they shall be followed.
pub(crate) fn observe(args: &ObserveArgs) -> Result<(), Report> {
    let ObserveArgs { follow, source, json } = args;
    let print = |observation: &Observation| {
        if *json {
            return out(&format!("{}\n", serde_json::to_string(observation).into_diagnostic()?));
        }
        out(&format!("{}  {}\n", show::time(observation.last), observation.text))
    };
    match (source.offline, follow) {
        (false, false) => source.ask::<Vec<Observation>>("/v1/observations")?.iter().try_for_each(print),
        (false, true) => follow_agent(&source.socket, print),
        (true, _) => look_at_pins(source, *follow, print),
    }
}

/// An agent ends its streams from time to time. One that does not answer any more ends this.
fn follow_agent(socket: &Path, print: impl Fn(&Observation) -> Result<(), Report>) -> Result<(), Report> {
    let mut streams = Streams::default();
    loop {
        let mut printed = Ok(());
        let told = Client::new(socket).follow("/v1/observations/stream", |observation: Observation| {
            if streams.is_new(&observation) {
                printed = print(&observation);
            }
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        printed?;
        told.map_err(unanswered)?;
        streams.begin();
        thread::sleep(LOOK);
    }
}

fn look_at_pins(
    source: &Source,
    follow: bool,
    print: impl Fn(&Observation) -> Result<(), Report>,
) -> Result<(), Report> {
    let reader = reader(&source.pins, &source.state)?;
    let mut news = News::default();
    loop {
        // An agent may have published meanwhile.
        let (revision, model) = in_force(&source.state)?;
        let (flows, contacts) = (reader.flows().into_diagnostic()?, reader.contacts().into_diagnostic()?);
        let names = || Names::new(&model, &revision.head.node);
        news.of(&flows, &contacts, names).iter().try_for_each(&print)?;
        if !follow {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}
