//! Verbs that ask the agent.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_controller::{
    api::types::{
        ApplyRequest, Edit, ExplainRequest, PlanBody, PlanRequest, PolicyBody, PolicySource, RevisionBody,
        RollbackRequest,
    },
    client::Client,
    explain::Explained,
    overlay::is_name,
    show::{self, table},
    simulate::text::PortSet,
};
use clap::Args;
use miette::{IntoDiagnostic as _, Report, WrapErr as _, miette};
use serde::Serialize;

use crate::{SOCKET, ask::pretty};

/// Where the agent is.
#[derive(Args)]
pub(crate) struct Agent {
    /// Socket that the agent was given.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

impl Agent {
    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn say<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> String {
        if self.json { pretty(value) } else { text(value) }
    }
}

#[derive(Args)]
#[command(
    after_help = "A document is called after its file: `plan ops.yaml` puts the document `ops`, beside what the agent's directory of policies has.\n\nExamples:\n  bulkhead plan ops.yaml\n  bulkhead plan --remove ops"
)]
pub(crate) struct PlanArgs {
    /// Files of policies.
    #[arg(value_name = "FILE", required_unless_present = "remove")]
    files: Vec<PathBuf>,
    /// Document to remove; may be given several times.
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    #[command(flatten)]
    agent: Agent,
}

/// Why, and for how long at first.
#[derive(Args)]
pub(crate) struct Because {
    /// Why, for whoever reads the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Bring back what was before unless `bulkhead confirm` follows within this time, such as 60s: a way back when the change cuts yourself off.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm_within: Option<Duration>,
}

#[derive(Args)]
#[command(
    after_help = "Fails with what changed when the world is not the one that was planned on.\n\nExample:\n  bulkhead apply 1f0c6f3f9a5e4c2bb8f1a0d2c3e4f506 --reason 'ops may scrape' --confirm-within 60s"
)]
pub(crate) struct ApplyArgs {
    /// Id that `bulkhead plan` printed.
    #[arg(value_name = "PLAN")]
    plan: String,
    #[command(flatten)]
    because: Because,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
#[command(
    after_help = "Policies of the revision take effect again as a new revision; workloads stay as they are. Files of the directory of policies that are other now are held back until somebody changes them: `bulkhead policies` says which.\n\nExample:\n  bulkhead rollback 41 --reason 'payments is down'"
)]
pub(crate) struct RollbackArgs {
    /// Number of the revision.
    #[arg(value_name = "REVISION")]
    revision: u64,
    #[command(flatten)]
    because: Because,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
pub(crate) struct ConfirmArgs {
    /// Number of the revision that is good.
    #[arg(value_name = "REVISION")]
    revision: u64,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
pub(crate) struct RevisionsArgs {
    /// How many, the newest first.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
pub(crate) struct PoliciesArgs {
    #[command(flatten)]
    agent: Agent,
}

pub(crate) fn plan(args: &PlanArgs) -> Result<String, Report> {
    let mut documents = Vec::new();
    for file in &args.files {
        let text = fs::read_to_string(file).into_diagnostic().wrap_err_with(|| file.display().to_string())?;
        documents.push(Edit { name: name(file)?, text: Some(text) });
    }
    documents.extend(args.remove.iter().map(|name| Edit { name: name.clone(), text: None }));
    let plan: PlanBody = args.agent.client().post("/v1/plan", &PlanRequest { documents }).into_diagnostic()?;
    Ok(args.agent.say(&plan, plan_text))
}

/// A document is called after its file.
fn name(file: &Path) -> Result<String, Report> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if is_name(&stem) {
        return Ok(stem);
    }
    Err(miette!("{}: a document is called after its file, of small letters, digits, `-`, `_` and `.`", file.display()))
}

fn plan_text(plan: &PlanBody) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        for (sign, ports) in [('-', &change.removed), ('+', &change.added)] {
            if *ports != PortSet::default() {
                text.push_str(&format!("{sign} {} => {} : {}\n", change.from, change.to, ports_text(ports)));
            }
        }
    }
    let told = plan.changes.len() as u64;
    if plan.changes_total > told {
        text.push_str(&format!("and {} pairs more\n", plan.changes_total - told));
    }
    if plan.changes_total == 0 {
        text.push_str("no connection is added or removed\n");
    }
    for note in &plan.notes {
        text.push_str(&format!("{note}\n"));
    }
    let fullest =
        plan.tables.iter().filter(|table| table.limit > 0).max_by_key(|table| table.used * 1000 / table.limit);
    let room =
        fullest.map(|table| format!("; the fullest table would be {}, {} of {}", table.table, table.used, table.limit));
    text.push_str(&format!("\n{} map entries would be written{}\n", plan.writes, room.unwrap_or_default()));
    text.push_str(&format!(
        "nothing is changed yet; on revision {} apply it with\n  bulkhead apply {}\n",
        plan.revision, plan.id
    ));
    text
}

fn ports_text(ports: &PortSet) -> String {
    let PortSet { tcp, udp, sctp, icmp, icmp6, other } = ports;
    let whole = |stretches: &[[u16; 2]]| matches!(stretches, [[0 | 1, u16::MAX]]);
    if [tcp, udp, sctp, icmp, icmp6, other].iter().all(|stretches| whole(stretches)) {
        return "everything".to_owned();
    }
    let named = [("tcp", tcp), ("udp", udp), ("sctp", sctp), ("icmp", icmp), ("icmp6", icmp6), ("proto", other)];
    let mut words = Vec::new();
    for (name, stretches) in named {
        if whole(stretches) {
            words.push(format!("all {name}"));
            continue;
        }
        for [first, last] in stretches {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            words.push(format!("{range}/{name}"));
        }
    }
    words.join(", ")
}

fn seconds(within: Option<Duration>) -> Option<u64> {
    within.map(|within| within.as_secs())
}

pub(crate) fn apply(args: &ApplyArgs) -> Result<String, Report> {
    let Because { reason, confirm_within } = &args.because;
    let (reason, confirm_within) = (reason.clone(), seconds(*confirm_within));
    let request = ApplyRequest { plan: args.plan.clone(), reason, confirm_within };
    let revision: RevisionBody = args.agent.client().post("/v1/apply", &request).into_diagnostic()?;
    Ok(args.agent.say(&revision, |revision| done(revision, confirm_within)))
}

pub(crate) fn rollback(args: &RollbackArgs) -> Result<String, Report> {
    let Because { reason, confirm_within } = &args.because;
    let (reason, confirm_within) = (reason.clone(), seconds(*confirm_within));
    let request = RollbackRequest { revision: args.revision, reason, confirm_within };
    let revision: RevisionBody = args.agent.client().post("/v1/rollback", &request).into_diagnostic()?;
    Ok(args.agent.say(&revision, |revision| done(revision, confirm_within)))
}

fn done(revision: &RevisionBody, confirm_within: Option<u64>) -> String {
    let number = revision.number;
    let mut text = format!("revision {number} is in force\n");
    if let Some(within) = confirm_within {
        text.push_str(&format!(
            "what was before comes back in {within} s unless you say that it is good:\n  bulkhead confirm {number}\n"
        ));
    }
    text
}

pub(crate) fn confirm(args: &ConfirmArgs) -> Result<String, Report> {
    let path = format!("/v1/revisions/{}/confirm", args.revision);
    let revision: RevisionBody = args.agent.client().post(&path, &()).into_diagnostic()?;
    Ok(args.agent.say(&revision, |revision| format!("revision {} stays in force\n", revision.number)))
}

pub(crate) fn revisions(args: &RevisionsArgs) -> Result<String, Report> {
    let path = format!("/v1/revisions?limit={}", args.limit);
    let revisions: Vec<RevisionBody> = args.agent.client().get(&path).into_diagnostic()?;
    Ok(args.agent.say(&revisions, |revisions| {
        let rows: Vec<_> = revisions
            .iter()
            .map(|revision| {
                let origin = match revision.rollback_of {
                    Some(of) => format!("{} to {of}", revision.origin),
                    None => revision.origin.clone(),
                };
                [
                    revision.number.to_string(),
                    show::time(revision.time.saturating_mul(1_000_000_000)),
                    revision.author.name.clone(),
                    origin,
                    revision.condition.clone(),
                    revision.refused.as_ref().unwrap_or(&revision.reason).clone(),
                ]
            })
            .collect();
        table(["REVISION", "TIME", "AUTHOR", "ORIGIN", "CONDITION", "REASON"], &rows)
    }))
}

pub(crate) fn policies(args: &PoliciesArgs) -> Result<String, Report> {
    let policies: Vec<PolicyBody> = args.agent.client().get("/v1/policies").into_diagnostic()?;
    Ok(args.agent.say(&policies, |policies| {
        let rows: Vec<_> = policies
            .iter()
            .map(|policy| {
                let source = match policy.source {
                    PolicySource::File => "file",
                    PolicySource::FileRolledBack => "file, rolled back until it is changed",
                    PolicySource::FileIsolating => "file, bad: it isolates and no more",
                    PolicySource::Api => "API",
                };
                let author = policy.author.as_ref().map(|author| author.name.clone()).unwrap_or_default();
                let time = policy.time.map(|time| show::time(time.saturating_mul(1_000_000_000))).unwrap_or_default();
                [policy.name.clone(), source.to_owned(), author, time]
            })
            .collect();
        table(["POLICY", "SOURCE", "AUTHOR", "TIME"], &rows)
    }))
}

/// Asks the agent about a connection. Says whether it is allowed.
pub(crate) fn explain(socket: &Path, json: bool, from: &str, to: &str, port: &str) -> Result<(String, bool), Report> {
    let request = ExplainRequest { from: from.to_owned(), to: to.to_owned(), port: port.to_owned() };
    let explained: Explained = Client::new(socket).post("/v1/explain", &request).into_diagnostic()?;
    let text = if json { pretty(&explained) } else { explained.report.clone() };
    Ok((text, explained.allow))
}
