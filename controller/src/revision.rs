//! The last good revision: what was published, as people wrote it. Readers and the next start of the agent find it in the state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_dataplane::desired::Desired;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::input::Inputs;

/// Name of the file in the state directory.
pub const FILE: &str = "revision.json";
/// Version of its form.
const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    format: u32,
    /// Grows by one with each input that was published.
    pub number: u64,
    /// Node that it was compiled for.
    pub node: String,
    /// When it was published, seconds of Unix time.
    pub published: u64,
    /// What people wrote.
    pub inputs: Inputs,
    /// What it was compiled to.
    pub summary: Summary,
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

impl Revision {
    /// A revision that is published now.
    #[must_use]
    pub fn new(number: u64, node: &str, inputs: Inputs, desired: &Desired) -> Self {
        Self {
            format: FORMAT,
            number,
            node: node.to_owned(),
            published: now() / 1_000_000_000,
            inputs,
            summary: desired.into(),
        }
    }

    /// The last good revision, if one was ever stored.
    ///
    /// # Errors
    /// What is there cannot be read, or is of another version.
    pub fn load(state: &Path) -> Result<Option<Self>, StateError> {
        let Some(revision) = load::<Self>(state, FILE)? else { return Ok(None) };
        if revision.format != FORMAT {
            let why = format!("it has format {}, this version reads {FORMAT}", revision.format);
            return Err(StateError { path: state.join(FILE), why });
        }
        Ok(Some(revision))
    }

    /// Stores it.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn store(&self, state: &Path) -> Result<(), StateError> {
        store(state, FILE, self)
    }
}

/// A file in the state directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct StateError {
    path: PathBuf,
    why: String,
}

/// Reads a JSON file, if it is there.
pub(crate) fn load<T: DeserializeOwned>(state: &Path, file: &str) -> Result<Option<T>, StateError> {
    let path = state.join(file);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError { path, why: error.to_string() }),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| StateError { path, why: format!("{error}; remove the file to start anew") })
}

/// Replaces a JSON file at once: a crash leaves the old or the new one.
pub(crate) fn store<T: Serialize>(state: &Path, file: &str, value: &T) -> Result<(), StateError> {
    let write = || -> io::Result<()> {
        let temporary = tempfile::NamedTempFile::new_in(state)?;
        serde_json::to_writer(io::BufWriter::new(&temporary), value)?;
        temporary.as_file().sync_all()?;
        temporary.persist(state.join(file)).map_err(|error| error.error)?;
        fs::File::open(state)?.sync_all()
    };
    write().map_err(|error| StateError { path: state.join(file), why: error.to_string() })
}

/// Nanoseconds of Unix time.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
