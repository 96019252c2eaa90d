//! Errors as the specification wants them.

use serde_json::{Value, json};

/// Codes of the specification (1 to 99), and our own (from 100).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the specification is not known.
    Version = 1,
    /// Necessary environment variables are missing or bad.
    Environment = 4,
    /// Something cannot be read.
    Io = 5,
    /// What was given is no JSON of the expected form.
    Decode = 6,
    /// The network's configuration is bad.
    Configuration = 7,
    /// The plugin cannot serve ADD.
    Unavailable = 50,
    /// The same, and what runs already may be limited.
    UnavailableLimited = 51,
    /// The agent does not answer.
    AgentAway = 100,
    /// The agent refuses.
    Refused = 101,
    /// The agent did not get there in time.
    TimedOut = 102,
    /// The interface cannot be guarded.
    Link = 103,
    /// What guards the container is not what is meant to.
    Drift = 104,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Error {
    /// Which kind.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub details: String,
}

impl Error {
    /// An error with its remedy.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// As the specification wants it on standard output.
    #[must_use]
    pub fn json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code as u32, "msg": self.message, "details": self.details })
    }
}
