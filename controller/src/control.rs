//! How others change what an agent enforces: they plan on a [`Basis`] and hand in a [`Put`], which holds only as long as the basis does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bulkhead_dataplane::{
    cni::protocol::{Answer, Request},
    desired::{Desired, Manner},
    node::{Contacts, Discovered, FlowRecord, MarkConflicts, NodeError, Rehearsal, Status},
};
use serde::{Deserialize, Serialize};

use crate::{
    accounts::Accounts,
    adopt::Found,
    agent::Unguarded,
    attachments::Attachments,
    audit::{Losses, Outcome},
    bypass,
    diagnostic::Diagnostics,
    drift::Drift,
    input::Files,
    metrics::Health,
    model::Model,
    overlay::{Overlay, digest},
    peers::Unmade,
    store::{Author, Head, Origin, Revision, StoreError},
};

/// What a plan stands on, as digests: it holds as long as all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Revision in force.
    pub revision: u64,
    /// Policy files and documents.
    policies: BTreeMap<String, String>,
    workloads: String,
    network: String,
}

impl Fingerprint {
    /// Of a revision, of files with documents among them, and of a network.
    #[must_use]
    pub fn new(revision: u64, files: &Files, discovered: &Discovered) -> Self {
        let of = |text: &Result<String, _>| text.as_deref().map_or_else(|_| "unreadable".to_owned(), digest);
        let policies = files.policies.as_ref().map(|files| files.iter().map(|(name, text)| (name.clone(), of(text))));
        Self {
            revision,
            policies: policies.map(Iterator::collect).unwrap_or_default(),
            workloads: files
                .workloads
                .1
                .as_ref()
                .map_or_else(|_| "unreadable".to_owned(), |listing| digest(listing.text())),
            // Plain data: nothing of it can fail.
            network: digest(&serde_json::to_string(discovered).unwrap_or_default()),
        }
    }

    /// What is other than it was, in words; empty when nothing is.
    #[must_use]
    pub fn changes(&self, now: &Self, in_force: &Head) -> Vec<String> {
        let mut changes = Vec::new();
        if self.revision != now.revision {
            changes.push(format!(
                "revision {} by {} is in force, not {}",
                now.revision, in_force.author.name, self.revision
            ));
        }
        let names = self.policies.keys().chain(now.policies.keys().filter(|name| !self.policies.contains_key(*name)));
        for name in names {
            match (self.policies.get(name), now.policies.get(name)) {
                (Some(before), Some(after)) if before == after => {}
                (Some(_), Some(_)) => changes.push(format!("{name} was changed")),
                (None, _) => changes.push(format!("{name} is new")),
                (_, None) => changes.push(format!("{name} is gone")),
            }
        }
        if self.workloads != now.workloads {
            changes.push("the workloads changed".to_owned());
        }
        if self.network != now.network {
            changes.push("the node's network changed".to_owned());
        }
        changes
    }
}

/// What is in force and what it is made from, to plan on.
#[derive(Clone, Debug)]
pub struct Basis {
    /// What a plan on it holds for.
    pub fingerprint: Fingerprint,
    /// In force.
    pub revision: Arc<Revision>,
    /// What that means.
    pub model: Arc<Model>,
    /// The directory of policies and the workloads file as they are now.
    pub files: Files,
    /// What holds over them.
    pub overlay: Overlay,
    /// Name of the node.
    pub node: String,
    /// What runtimes told of its containers.
    pub attachments: Attachments,
    /// What its network says.
    pub discovered: Discovered,
    /// How it enforces.
    pub manner: Manner,
}

/// Something that shall be in force.
#[derive(Clone, Debug)]
pub struct Put {
    /// What holds over the files.
    pub overlay: Overlay,
    /// Whose change it is.
    pub author: Author,
    /// From where.
    pub origin: Origin,
    /// What its author says of it.
    pub reason: String,
    /// Unless it is confirmed by then, what was before comes back.
    pub confirm_within: Option<Duration>,
    /// What it was planned on; `None` for what shall hold whatever has changed.
    pub basis: Option<Fingerprint>,
}

/// What waits for somebody to say that it is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The revision.
    pub revision: u64,
    /// Until when, nanoseconds of Unix time.
    pub until: u64,
    /// What comes back then.
    pub(crate) back: Overlay,
}

/// Why something was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The basis of the plan does not hold any more.
    #[error("{}", .0.join("; "))]
    Changed(Vec<String>),
    /// It cannot be used, or does not fit the tables.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// The kernel refused.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another change waits for its confirmation.
    #[error(
        "revision {revision} waits to be confirmed until {until}; confirm it, or wait until what was before is back"
    )]
    Pending {
        /// Its number.
        revision: u64,
        /// Until when.
        until: String,
    },
    /// Nothing waits for a confirmation, or something else does.
    #[error("revision {0} does not wait to be confirmed")]
    NotPending(u64),
}

impl PutError {
    /// What the audit log says of it.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Changed(_) | Self::Invalid(_) | Self::Pending { .. } | Self::NotPending(_) => Outcome::Refused,
            Self::Node(_) | Self::Store(_) => Outcome::Failed,
        }
    }
}

/// What an agent says of itself and its node.
#[derive(Clone, Debug)]
pub struct Report {
    /// In force.
    pub head: Head,
    /// Since when the agent runs, nanoseconds of Unix time.
    pub started: u64,
    /// What the kernel says.
    pub status: Status,
    /// Who else uses our bits of packet marks.
    pub marks: MarkConflicts,
    /// Endpoints that are not guarded.
    pub unguarded: Vec<Unguarded>,
    /// What of the input is not used, and why; empty when all is.
    pub refused: String,
    /// Why the latest publish failed; empty when it did not.
    pub failed: String,
    /// Why the database could not be written; empty when it can.
    pub unstored: String,
    /// Why the source of policies and workloads cannot be followed; empty when it can.
    pub behind: String,
    /// What waits to be confirmed.
    pub pending: Option<Pending>,
    /// Files that were rolled back.
    pub held: Vec<String>,
    /// Samples of denied packets that the budget did not let through.
    pub lost: u64,
    /// Who bypassed enforcement and why, as far as that was recorded.
    pub bypass: Option<bypass::Record>,
    /// What was found missing on the node, and put back.
    pub drift: Drift,
    /// Containers that were found without a guard.
    pub found: Found,
    /// What could not be written to the audit log.
    pub audit: Losses,
}

/// What names what is seen on a node.
#[derive(Clone, Debug)]
pub struct Known {
    /// In force.
    pub model: Arc<Model>,
    /// Name of the node.
    pub node: String,
}

/// What was seen on the node, and what names it.
#[derive(Debug)]
pub struct Seen {
    /// What names it.
    pub known: Known,
    /// Names for addresses.
    pub peers: Unmade,
    /// Flows in the tables.
    pub flows: Vec<FlowRecord>,
    /// Samples of what was denied.
    pub contacts: Contacts,
}

/// How policies stand with an agent.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Names of those asked about that are not in force as they are.
    pub differ: BTreeSet<String>,
    /// What is wrong with policies that are not used beside those that are.
    pub found: Diagnostics,
    /// Why nothing of what changed is used; empty when some of it is.
    pub refused: String,
    /// Why the latest publish failed, or was not made, since it could not be written down first; empty when neither.
    pub failed: String,
    /// The node drops nothing.
    pub observe: bool,
}

/// An agent, for those who ask it from another thread. Calls that change something take as long as the node does.
pub trait Control {
    /// What is in force, and what a change would start from.
    fn basis(&mut self) -> Basis;

    /// What publishing would write, and what room it would leave.
    ///
    /// # Errors
    /// As publishing would.
    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError>;

    /// Puts a change in force, all of it or nothing.
    ///
    /// # Errors
    /// Why nothing was changed.
    fn put(&mut self, put: Put) -> Result<Head, PutError>;

    /// Says that a revision that waits for it is good.
    ///
    /// # Errors
    /// It does not wait; the database cannot be written.
    fn confirm(&mut self, revision: u64, author: &Author) -> Result<Head, PutError>;

    /// What CNI plugins ask, all at once: those that come together share one publish. An answer each, in their order.
    fn attach(&mut self, requests: &[Request]) -> Vec<Answer>;

    /// Makes ahead what the next containers will need. Called when those that asked have their answers.
    fn make_ready(&mut self);

    /// Says that somebody tried what they may not.
    fn forbidden(&mut self, author: &Author, what: &str);

    /// What the agent says of itself and its node, of which others have read the status and how many samples were lost.
    fn report(&mut self, status: Status, lost: u64) -> Report;

    /// How policies stand, by name and text.
    fn standing(&mut self, texts: &BTreeMap<String, Arc<str>>) -> Standing;

    /// What names what is seen on the node.
    fn known(&mut self) -> Known;

    /// What the node counted and saw. To be read beside the agent: it takes long.
    fn accounts(&mut self) -> Accounts;

    /// Names for addresses. To be made beside the agent.
    fn peers(&mut self) -> Unmade;

    /// Takes what others have read of what is in force, and puts up again what is missing.
    fn looked(&mut self, status: Result<Status, NodeError>);

    /// Takes who else uses our bits of packet marks.
    fn take_marks(&mut self, found: Result<MarkConflicts, NodeError>);

    /// Whether it is well, as far as it knows.
    fn health(&mut self) -> Health;
}
