//! Puts `bulkhead-cni` into the networks of a container runtime, keeps it there, and takes it out again. Needs no agent and no kernel.
//!
//! ```text
//! conflist ─> place ─> Steps ─> files        what is to be done is known before anything is done, and can be shown
//!                 └──> follow                whenever an owner rewrites a file of his
//! ```
//!
//! What was installed stands in a [`Record`], with copies of files that were changed: `follow` and `uninstall` ask nothing else.

pub mod conflist;
pub mod follow;
pub mod place;
pub mod runtime;
mod steps;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::steps::{Step, Steps};
use self::{
    place::{Changes, Directory, Placement, Refused, is_network},
    runtime::Runtime,
};
use crate::store::file::{self, FileError};

/// Name of the record's file.
const RECORD: &str = "record.json";
/// Directory of copies beside it.
const ORIGINALS: &str = "originals";
/// Largest file that is read as a network's configuration.
const MAX_BYTES: u64 = 1 << 20;

/// What was installed, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The container runtime; records before 2026-11-29 do not say it.
    #[serde(default)]
    pub runtime: Option<Runtime>,
    /// How the runtime chooses among networks.
    pub placement: Placement,
    /// Directory of networks.
    pub networks: PathBuf,
    /// Names of the networks that are meant; all, where there is none.
    pub only: Vec<String>,
    /// Our entry in a network's chain.
    pub entry: Map<String, Value>,
    /// Our plugin.
    pub plugin: PathBuf,
    /// Other files that were made.
    pub made: Vec<PathBuf>,
}

/// Why nothing was installed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Something cannot be read or written.
    #[error("{}: {why}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// The record.
    #[error(transparent)]
    Record(#[from] FileError),
    /// The networks are not such that containers would be held.
    #[error("in {}: {why}", networks.display())]
    Refused {
        /// The directory.
        networks: PathBuf,
        /// Why.
        why: Refused,
    },
}

impl InstallError {
    /// Whether something cannot be written before it is mounted otherwise.
    fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { why, .. } if why.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// Says which path an error is about.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, InstallError> {
    result.map_err(|why| InstallError::Io { path: path.to_owned(), why })
}

impl Record {
    /// What was installed, if something was.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn load(directory: &Path) -> Result<Option<Self>, InstallError> {
        Ok(file::load(directory, RECORD)?)
    }

    /// Writes it down; the directory is made.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn store(&self, directory: &Path) -> Result<(), InstallError> {
        at(directory, fs::create_dir_all(directory))?;
        Ok(file::store(directory, RECORD, self)?)
    }

    /// Whether containers wait for their policy when they start.
    #[must_use]
    pub fn enforces(&self) -> bool {
        self.entry.get("mode").is_some_and(|mode| mode == "enforce")
    }

    /// Namespaces whose containers start whatever becomes of us.
    #[must_use]
    pub fn exempt(&self) -> Vec<String> {
        let listed = self.entry.get("exempt").and_then(Value::as_array);
        listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// What brings the networks to what is installed.
    ///
    /// # Errors
    /// The directory cannot be read, or containers would not be held.
    pub fn changes(&self) -> Result<Changes, InstallError> {
        let files = read(&self.networks)?;
        match self.placement {
            Placement::InPlace => Ok(place::in_place(&files, &self.only, &self.entry)),
            Placement::First => place::first(&files, &self.entry)
                .map_err(|why| InstallError::Refused { networks: self.networks.clone(), why }),
        }
    }

    /// Steps to it. Copies come first: what was not kept is not changed.
    #[must_use]
    pub fn steps(&self, changes: &Changes, directory: &Path) -> Steps {
        let mut steps = Steps::default();
        for (name, text) in &changes.keep {
            steps.write(&directory.join(ORIGINALS).join(name), text.clone(), 0o600);
        }
        for (name, text) in &changes.write {
            steps.write(&self.networks.join(name), text.clone().into_bytes(), 0o644);
        }
        steps
    }

    /// Steps that take our plugin out of the networks.
    ///
    /// # Errors
    /// A directory cannot be read, or a file that has our plugin.
    pub fn out(&self, directory: &Path) -> Result<Steps, InstallError> {
        let originals = read(&directory.join(ORIGINALS))?;
        let (write, remove) = place::out(&read(&self.networks)?, &originals, &self.entry)
            .map_err(|why| InstallError::Refused { networks: self.networks.clone(), why })?;
        let mut steps = Steps::default();
        for name in remove {
            steps.remove(&self.networks.join(name));
        }
        for (name, text) in write {
            steps.write(&self.networks.join(name), text, 0o644);
        }
        Ok(steps)
    }

    /// Steps that remove what else was made. The plugin stays while `in_use`: a runtime that cannot call it cannot remove a container.
    #[must_use]
    pub fn clear(&self, directory: &Path, in_use: bool) -> Steps {
        let mut steps = Steps::default();
        let plugin = Some(&self.plugin).filter(|_| !in_use);
        for path in self.made.iter().chain(plugin) {
            steps.remove(path);
        }
        steps.remove(&directory.join(ORIGINALS));
        // The last: without it nobody knows what is to be removed.
        steps.remove(&directory.join(RECORD));
        steps
    }
}

/// Keeps others that install, follow or uninstall with this record from doing so meanwhile.
///
/// # Errors
/// The directory cannot be made or locked.
pub fn lock(directory: &Path) -> Result<fs::File, InstallError> {
    let lock = || {
        fs::create_dir_all(directory)?;
        let locked = fs::File::open(directory)?;
        locked.lock()?;
        Ok(locked)
    };
    at(directory, lock())
}

/// The files of a directory that runtimes read; none where there is no directory.
fn read(directory: &Path) -> Result<Directory, InstallError> {
    let mut files = Directory::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => at(directory, entries)?,
    };
    for entry in entries {
        let path = at(directory, entry)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_network(name)) else {
            continue;
        };
        // Between the listing and now its owner may have taken it away.
        let known = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            known => at(&path, known)?,
        };
        if !known.is_file() {
            continue;
        }
        let text = if known.size() > MAX_BYTES {
            // Whoever reads it finds that it is no configuration.
            Vec::new()
        } else {
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => at(&path, text)?,
            }
        };
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

/// Containers that a runtime has attached to networks, as libcni's cache lists them (`NETWORK-CONTAINER-INTERFACE`), of the networks whose chain has
/// our plugin: their DEL may still call it.
///
/// # Errors
/// A directory cannot be read.
pub fn attached(record: &Record, cache: &Path) -> Result<usize, InstallError> {
    let files = read(&record.networks)?;
    let names: Vec<_> = files.values().filter_map(|text| conflist::Conflist::name_of(text)).collect();
    let results = cache.join("results");
    let entries = match fs::read_dir(&results) {
        // No runtime has kept a result yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => at(&results, entries)?,
    };
    let of_ours = |file: &str| names.iter().any(|name| file.starts_with(&format!("{name}-")));
    Ok(entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(of_ours)).count())
}

/// The permission bits of a file, or what is said for one that is new.
fn mode(path: &Path, new: u32) -> u32 {
    fs::metadata(path).map_or(new, |known| known.permissions().mode() & 0o7777)
}
