//! What a revision is.

use std::{collections::BTreeMap, fmt};

use bulkhead_dataplane::desired::Desired;
use serde::{Deserialize, Serialize};

use crate::input::Inputs;

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Author {
    /// User id, of a person or a process that is known by it.
    pub uid: Option<u32>,
    /// Name; of the user, or what changed by itself, such as `files`.
    pub name: String,
}

impl Author {
    /// Whoever may write the files that the agent reads.
    #[must_use]
    pub fn files() -> Self {
        Self { uid: None, name: "files".to_owned() }
    }
}

/// Where a revision comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Files that changed.
    Files,
    /// A call of the API.
    Api,
    /// Somebody went back to an older one.
    Rollback {
        /// Its number.
        of: u64,
    },
    /// Something went back by itself, since nobody confirmed what came after.
    Restore,
}

/// What became of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Written, and about to take effect; it may have in part.
    Staged,
    /// What the node enforces.
    InForce,
    /// It did not take effect.
    Refused {
        /// Why.
        why: String,
    },
    /// Another took its place.
    Superseded,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staged => "staged",
            Self::InForce => "in force",
            Self::Refused { .. } => "refused",
            Self::Superseded => "superseded",
        })
    }
}

/// A policy document that was given through the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// As it was written.
    pub text: String,
    /// Who gave it.
    pub author: Author,
    /// When, seconds of Unix time.
    pub time: u64,
}

/// Size of what was compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Distinct peer expressions.
    pub selectors: usize,
    /// Rules.
    pub rules: usize,
    /// Policy sets.
    pub sets: usize,
    /// Endpoints on the node.
    pub endpoints: usize,
    /// Known addresses.
    pub addresses: usize,
    /// Prefixes.
    pub prefixes: usize,
}

impl From<&Desired> for Summary {
    fn from(desired: &Desired) -> Self {
        Self {
            selectors: desired.selectors.len(),
            rules: desired.rules.len(),
            sets: desired.sets.len(),
            endpoints: desired.endpoints.len(),
            addresses: desired.addresses.len(),
            prefixes: desired.prefixes.len(),
        }
    }
}

/// A revision that shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Node that it is compiled for.
    pub node: String,
    /// Who changes.
    pub author: Author,
    /// From where.
    pub origin: Origin,
    /// When, seconds of Unix time.
    pub time: u64,
    /// What its author says of it; may be empty.
    pub reason: String,
    /// What people wrote, all of it.
    pub inputs: Inputs,
    /// What it was compiled to.
    pub summary: Summary,
    /// All documents of the API that hold with it, by name; `None` for those that do now.
    pub documents: Option<BTreeMap<String, Document>>,
}

/// The same again.
impl From<&Revision> for Draft {
    fn from(revision: &Revision) -> Self {
        let Revision { head, inputs, documents } = revision.clone();
        let Head { node, author, origin, time, reason, summary, .. } = head;
        Self { node, author, origin, time, reason, inputs, summary, documents: Some(documents) }
    }
}

/// A revision without what people wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Grows by one with each revision, whatever became of those before.
    pub number: u64,
    /// Node that it was compiled for.
    pub node: String,
    /// The revision that was in force when it was staged.
    pub parent: Option<u64>,
    /// Who changed.
    pub author: Author,
    /// From where.
    pub origin: Origin,
    /// When it was staged, seconds of Unix time.
    pub time: u64,
    /// What its author says of it.
    pub reason: String,
    /// What it was compiled to.
    pub summary: Summary,
    /// What became of it.
    pub condition: Condition,
    /// Whether it was ever in force.
    pub took_effect: bool,
}

/// A revision: what a node enforces, as people wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// All but the texts.
    pub head: Head,
    /// What people wrote, of files and documents together.
    pub inputs: Inputs,
    /// Documents of the API among them, by name.
    pub documents: BTreeMap<String, Document>,
}
