//! What requests and answers say. Times are seconds of Unix time unless a field says otherwise.

use bulkhead_dataplane::node::{MarkConflicts, Status, TableUse};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    adopt::{Found, Stranger},
    bypass::Record,
    control::Report,
    show::{full_name, time},
    simulate::{diff::ChangeLine, text::ConnectionLine},
    store::{Author, Condition, Head, Origin, Summary},
};

/// A policy document that shall be other than it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Its name: 1 to 63 small letters, digits, `-`, `_` and `.`, a letter or digit first and last.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
    pub name: String,
    /// What it shall say, in YAML; left out or null to remove it.
    #[serde(default)]
    pub text: Option<String>,
}

/// Changes to plan.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Documents to put or remove; others stay as they are.
    #[schema(min_items = 1, max_items = 256)]
    pub documents: Vec<Edit>,
}

/// What a change would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanBody {
    /// To apply it with; the same for the same change while nothing else changes.
    pub id: String,
    /// The revision that it stands on.
    pub revision: u64,
    /// Until when it can be applied.
    pub expires: u64,
    /// Connections that are added and removed, the first 1,000.
    pub changes: Vec<ChangeLine>,
    /// How many there are.
    pub changes_total: u64,
    /// Map entries that applying would write.
    pub writes: u64,
    /// Use of bounded tables afterwards.
    pub tables: Vec<TableBody>,
    /// What somebody should look at, `file:line:column: warning: ..`.
    pub notes: Vec<String>,
}

/// Use of a bounded table.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TableBody {
    /// Its name.
    pub table: String,
    /// In use.
    pub used: u64,
    /// Configured.
    pub limit: u64,
}

impl From<&TableUse> for TableBody {
    fn from(table: &TableUse) -> Self {
        Self { table: table.table.to_owned(), used: table.used as u64, limit: table.limit as u64 }
    }
}

/// A plan to put in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Id of a plan.
    pub plan: String,
    /// Why, for whoever reads the history.
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub reason: String,
    /// Seconds within which it has to be confirmed; else what was before comes back.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86400)]
    pub confirm_within: Option<u64>,
}

/// A revision to go back to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Its number.
    #[schema(minimum = 1)]
    pub revision: u64,
    /// Why, for whoever reads the history.
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub reason: String,
    /// Seconds within which it has to be confirmed; else what was before comes back.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86400)]
    pub confirm_within: Option<u64>,
}

/// A document to put in force at once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// What it says, in YAML.
    pub text: String,
    /// Why, for whoever reads the history.
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub reason: String,
}

/// A policy document or file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyBody {
    /// Its name; of a document of the API behind `api/`.
    pub name: String,
    /// Where it came from.
    pub source: PolicySource,
    /// For `If-Match`.
    pub etag: String,
    /// What of it is in force; for a file that is bad its last good text, or walls.
    pub text: String,
    /// Who gave it; of a file nobody is known.
    pub author: Option<AuthorBody>,
    /// When it was given; of a file nobody knows.
    pub time: Option<u64>,
}

/// Where a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicySource {
    /// The directory of policies.
    File,
    /// A file that was rolled back: its text is of an older revision until somebody changes it.
    FileRolledBack,
    /// A file that never was good: its text is what it isolates, and what can be read of its admin policies.
    FileIsolating,
    /// The API.
    Api,
}

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthorBody {
    /// User id; none for what changed by itself.
    pub uid: Option<u32>,
    /// Name of the user, or of what changed by itself: `files`, `bulkhead`.
    pub name: String,
}

impl From<&Author> for AuthorBody {
    fn from(author: &Author) -> Self {
        Self { uid: author.uid, name: author.name.clone() }
    }
}

/// Which revisions.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many, the newest first.
    #[serde(default = "Page::most")]
    #[param(minimum = 1, maximum = 1000, default = 50)]
    pub limit: u32,
    /// Only those with a smaller number.
    pub before: Option<u64>,
}

impl Page {
    const fn most() -> u32 {
        50
    }
}

/// A revision without its texts.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevisionBody {
    /// Grows by one with each revision.
    pub number: u64,
    /// Name of the node that it is compiled for.
    pub node: String,
    /// The one that was in force before.
    pub parent: Option<u64>,
    /// Who changed.
    pub author: AuthorBody,
    /// From where: `files`, `api`, `rollback`, `restore`.
    pub origin: String,
    /// Of a rollback the revision that it went back to.
    pub rollback_of: Option<u64>,
    /// When.
    pub time: u64,
    /// What its author says of it.
    pub reason: String,
    /// `staged`, `in force`, `refused`, `superseded`.
    pub condition: String,
    /// Why it was refused.
    pub refused: Option<String>,
    /// What it was compiled to.
    pub summary: SummaryBody,
}

/// Size of what was compiled.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SummaryBody {
    /// Distinct peer expressions.
    pub selectors: u64,
    /// Rules.
    pub rules: u64,
    /// Policy sets.
    pub sets: u64,
    /// Endpoints on the node.
    pub endpoints: u64,
    /// Known addresses.
    pub addresses: u64,
    /// Prefixes.
    pub prefixes: u64,
}

impl From<&Summary> for SummaryBody {
    fn from(summary: &Summary) -> Self {
        Self {
            selectors: summary.selectors as u64,
            rules: summary.rules as u64,
            sets: summary.sets as u64,
            endpoints: summary.endpoints as u64,
            addresses: summary.addresses as u64,
            prefixes: summary.prefixes as u64,
        }
    }
}

impl From<&Head> for RevisionBody {
    fn from(head: &Head) -> Self {
        let (origin, rollback_of) = match head.origin {
            Origin::Files => ("files", None),
            Origin::Api => ("api", None),
            Origin::Rollback { of } => ("rollback", Some(of)),
            Origin::Restore => ("restore", None),
        };
        Self {
            number: head.number,
            node: head.node.clone(),
            parent: head.parent,
            author: (&head.author).into(),
            origin: origin.to_owned(),
            rollback_of,
            time: head.time,
            reason: head.reason.clone(),
            condition: head.condition.to_string(),
            refused: match &head.condition {
                Condition::Refused { why } => Some(why.clone()),
                _ => None,
            },
            summary: (&head.summary).into(),
        }
    }
}

/// A revision with all that people wrote.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WholeRevision {
    /// All but the texts.
    pub revision: RevisionBody,
    /// Policy files and documents.
    pub policies: Vec<TextBody>,
    /// The workloads file.
    pub workloads: TextBody,
}

/// A text that people wrote.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TextBody {
    /// Name of the file; of a document of the API behind `api/`.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// A question about a connection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who calls: a workload `namespace/name`, or an address.
    pub from: String,
    /// Who is called: a workload `namespace/name`, or an address, also of a service.
    pub to: String,
    /// About what: `5432/tcp`, `53/udp`, `echo/icmp`, `proto/89`; tcp unless said.
    pub port: String,
}

/// All that is allowed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Connectivity {
    /// The revision that says so.
    pub revision: u64,
    /// Workload to workload, and to and from ranges outside.
    pub connections: Vec<ConnectionLine>,
}

/// What the agent says of itself and its node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusBody {
    /// Version of the agent.
    pub version: String,
    /// Since when the agent runs.
    pub started: u64,
    /// In force.
    pub revision: RevisionBody,
    /// What is not well; empty when all is.
    pub troubles: Vec<String>,
    /// A revision that waits to be confirmed.
    pub pending: Option<PendingBody>,
    /// Files that were rolled back, and stay so until somebody changes them.
    pub rolled_back: Vec<String>,
    /// Samples of denied packets that did not fit the budget; the packets are counted all the same.
    pub samples_lost: u64,
    /// Records that the agent could not write to the audit log since it started.
    pub audit_lost: u64,
    /// Guards that were found missing since the agent started.
    pub drift: DriftBody,
    /// Containers that were found without a guard.
    pub found: FoundBody,
    /// What its kernel says.
    #[serde(flatten)]
    pub node: NodeBody,
}

/// Containers that nobody had told the agent of.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FoundBody {
    /// Those that ran when the agent started, and are guarded since.
    pub adopted: u64,
    /// Those that started without a guard while the agent ran.
    pub unenforced_starts: u64,
    /// Links of the node's networks behind which somebody runs whom nobody knows.
    pub unknown: Vec<UnknownBody>,
}

/// A link that nobody is known for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UnknownBody {
    /// Name of the link.
    pub link: String,
    /// Name of the bridge that it is a port of.
    pub bridge: Option<String>,
    /// Addresses at its other end.
    pub addresses: Vec<String>,
    /// Nothing passes it. If it is not, everything does.
    pub shut: bool,
    /// Why nobody is known.
    pub why: String,
}

/// Guards that stood and were found missing: programs on links, the input rule.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DriftBody {
    /// How many were found missing.
    pub found: u64,
    /// How many of them were put back.
    pub repaired: u64,
    /// When some were found missing last.
    pub latest: Option<u64>,
    /// Which these were: `ingress underlay on eth0`.
    pub what: Option<String>,
}

/// What a node enforces, as its kernel says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeBody {
    /// What happens to what policy forbids: `enforcing`, `observing`, `bypassed`.
    pub state: String,
    /// Until when enforcement is bypassed.
    pub bypassed_until: Option<u64>,
    /// Who bypassed it and why, as far as that was recorded.
    pub bypass: Option<Record>,
    /// Node's epoch.
    pub epoch: u32,
    /// Packets between workloads are forwarded directly, past bridge, routes and netfilter.
    #[serde(default)]
    pub direct: bool,
    /// The input rule stands, or is not needed.
    pub input_rule: bool,
    /// Endpoints on the node.
    pub endpoints: Vec<EndpointBody>,
    /// Guards on links.
    pub links: Vec<LinkBody>,
    /// Use of bounded tables.
    pub tables: Vec<TableBody>,
    /// Bits of packet marks that are in use, `0x3f000fff`.
    pub mark_mask: String,
    /// Who else uses some of these bits.
    pub mark_users: Vec<MarkUserBody>,
    /// What of that could not be looked at, and why.
    pub mark_unread: Vec<String>,
    /// How to get out of their way; empty without any.
    pub mark_remedy: String,
}

/// A rule of somebody else that uses bits of packet marks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MarkUserBody {
    /// Which of those that are in use here, `0x00000100`.
    pub bits: String,
    /// Where it stands and, as far as it is known, how it reads.
    pub rule: String,
}

impl NodeBody {
    /// Of what was read; `bypass` is the record of the bypass that is in force.
    #[must_use]
    pub fn new(status: &Status, marks: &MarkConflicts, bypass: Option<Record>) -> Self {
        let endpoints = status.endpoints.iter().map(|endpoint| EndpointBody {
            name: full_name(&endpoint.name),
            link: endpoint.link.clone(),
            mode: format!("{:?}", endpoint.mode).to_lowercase(),
            guarded: endpoint.attached,
            epoch: endpoint.epoch,
            slot: endpoint.slot,
        });
        let links = status.links.iter().map(|link| LinkBody { link: link.link.clone(), guard: link.guard.clone() });
        let users = marks.users.iter().map(|user| MarkUserBody {
            bits: format!("{:#010x}", user.bits() & status.mark_mask),
            rule: user.rule.clone(),
        });
        Self {
            state: match () {
                () if status.bypassed_until.is_some() => "bypassed",
                () if status.observe => "observing",
                () => "enforcing",
            }
            .to_owned(),
            bypassed_until: status.bypassed_until.map(|until| until / 1_000_000_000),
            bypass,
            epoch: status.epoch,
            direct: status.direct,
            input_rule: status.input_rule,
            endpoints: endpoints.collect(),
            links: links.collect(),
            tables: status.tables.iter().map(Into::into).collect(),
            mark_mask: format!("{:#010x}", status.mark_mask),
            mark_users: users.collect(),
            mark_unread: marks.unread.clone(),
            mark_remedy: marks.remedy.clone(),
        }
    }
}

/// A revision that waits to be confirmed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PendingBody {
    /// Its number.
    pub revision: u64,
    /// Until when.
    pub until: u64,
}

/// An endpoint as the kernel has it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EndpointBody {
    /// `namespace/workload#index`.
    pub name: String,
    /// Host-side link.
    pub link: String,
    /// `pending`, `enforce`, `observe`, `quarantine`.
    pub mode: String,
    /// Both programs are attached.
    pub guarded: bool,
    /// Epoch of its flows.
    pub epoch: u32,
    /// Its slot.
    pub slot: u32,
}

/// A guard on a link.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LinkBody {
    /// Name of the link.
    pub link: String,
    /// What guards it: `tcx ingress underlay`.
    pub guard: String,
}

impl From<Report> for StatusBody {
    fn from(report: Report) -> Self {
        let troubles = troubles(&report);
        let Report { head, started, status, marks, pending, held, lost, bypass, drift, found, audit, .. } = report;
        let (latest, what) = drift.latest.map(|(at, what)| (at / 1_000_000_000, what)).unzip();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: started / 1_000_000_000,
            revision: (&head).into(),
            troubles,
            pending: pending
                .map(|pending| PendingBody { revision: pending.revision, until: pending.until / 1_000_000_000 }),
            rolled_back: held,
            samples_lost: lost,
            audit_lost: audit.total,
            found: found.into(),
            drift: DriftBody { found: drift.found, repaired: drift.repaired, latest, what },
            node: NodeBody::new(&status, &marks, bypass),
        }
    }
}

impl From<Found> for FoundBody {
    fn from(found: Found) -> Self {
        let unknown = found.strangers.into_iter().map(|Stranger { link, bridge, addresses, shut, why }| {
            let addresses = addresses.iter().map(ToString::to_string).collect();
            UnknownBody { link, bridge, addresses, shut, why }
        });
        Self { adopted: found.adopted, unenforced_starts: found.unenforced, unknown: unknown.collect() }
    }
}

/// A table is reported when it is this full, in percent.
const FULL: usize = 90;

fn troubles(report: &Report) -> Vec<String> {
    let mut troubles = Vec::new();
    let mut add = |text: String| troubles.push(text);
    if !report.failed.is_empty() {
        add(format!("publishing failed and is tried again: {}", report.failed));
    }
    if !report.refused.is_empty() {
        add(format!("not all input is used:\n{}", report.refused));
    }
    if !report.behind.is_empty() {
        add(format!("what is in force may be behind its source: {}", report.behind));
    }
    if !report.unstored.is_empty() {
        add(format!("the database cannot be written: {}", report.unstored));
    }
    let audit = &report.audit;
    if audit.unsaid > 0 {
        add(format!("{} records could not be written to the audit log: {}", audit.unsaid, audit.why));
    }
    if !report.drift.missing().is_empty() {
        add(format!("found missing, and tried to be put back: {}", report.drift.missing()));
    }
    for unguarded in &report.unguarded {
        add(format!("{} is not guarded: {}", unguarded.endpoint, unguarded.why));
    }
    for Stranger { link, shut, why, .. } in &report.found.strangers {
        let state = if *shut { "is shut" } else { "is not guarded" };
        add(format!("link {link} {state}, and nobody is known who runs behind it: {why}"));
    }
    let status = &report.status;
    if !status.input_rule {
        add("the input rule is missing: tunnel packets are not checked before the socket".to_owned());
    }
    let is_full = |table: &&TableUse| !table.is_to_fill() && table.used * 100 >= table.limit * FULL;
    for table in status.tables.iter().filter(is_full) {
        add(format!("table {} has {} of {} entries in use", table.table, table.used, table.limit));
    }
    for user in &report.marks.users {
        add(format!("{:#010x} of the packet mark is used by {}", user.bits() & status.mark_mask, user.rule));
    }
    for why in &report.marks.unread {
        add(format!("who else uses packet marks is not known in full: {why}"));
    }
    if let Some(pending) = &report.pending {
        add(format!("revision {} waits to be confirmed until {}", pending.revision, time(pending.until)));
    }
    troubles
}
