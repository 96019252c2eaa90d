//! The audit log: who changed what, when, and what came of it, refusals too. Only ever appended to.
//!
//! A record is a line of JSON in `audit.jsonl` of the state directory. It ends with its own hash and names the hash of the record before:
//!
//! ```text
//! {"seq":8,"time":"2026-11-26T09:00:00.000001Z","actor":{"uid":null,"name":"files"},"action":"revision.apply","target":"n1",
//!  "revision_before":3,"revision_after":4,"outcome":"ok","detail":"","prev":"<hash of 7>","hash":"<hash of 8>"}
//! ```
//!
//! The hash is the SHA-256 of the line's bytes before `,"hash":`, in hex; what is hashed are the bytes that are there, in no other form. The first
//! record's `prev` is 64 zeros. A file that has grown to [`Limits::bytes`] is renamed to `audit-000001.jsonl` and so on, and the chain goes on in a
//! new one. Nothing is ever removed: who archives the oldest files keeps the hash of their last record for `bulkhead audit verify --after`.
//!
//! There is no key. Who can write the file can also write a whole new chain; only a hash that is kept elsewhere tells.

mod line;
mod log;
mod tail;
mod verify;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::{
    log::{Limits, Log, Losses},
    verify::{Broken, Torn, Verified, Wanted, files, verify, verify_state},
};
use crate::store::Author;

/// Name of the file that is written.
pub const FILE: &str = "audit.jsonl";
/// What the first record names as the hash before it.
pub const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It was not done, and need not be tried again as it is.
    Refused,
    /// It could not be done.
    Failed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who.
    pub actor: Author,
    /// What, as `noun.verb`, with a revision's number behind it where one was asked for; of who may not, the method and path of the request. Those that
    /// begin with `audit.` are the log's own.
    pub action: String,
    /// To what.
    pub target: String,
    /// The revision that was in force before.
    pub revision_before: Option<u64>,
    /// The revision that is in force after it.
    pub revision_after: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
    /// Why, and what else is worth to know. What is longer than 8 KiB is cut, and says so.
    pub detail: String,
}

/// The last record of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The system refuses.
    #[error("{}: cannot {doing}: {why}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        why: String,
    },
    /// Two chains cannot grow from one record.
    #[error("{}: another process is writing it; is a second agent running on this state directory?", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}
