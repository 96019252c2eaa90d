//! What outlives the agent: revisions, documents given through the API, and settings, in one SQLite database in the state directory.
//!
//! A revision is written before it takes effect ([`Store::stage`]) and marked after it has ([`Store::commit`], [`Store::refuse`]). Every change is
//! one transaction that is on the disk when the call returns (write-ahead log, `synchronous=FULL`): a cut at any point leaves the old or the new.
//!
//! Of the revisions that are neither staged nor in force, [`Retention`] says how many stay.

mod documents;
mod error;
pub(crate) mod file;
mod open;
mod read;
mod revision;
mod write;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

pub use self::{
    error::StoreError,
    file::FileError,
    open::SetAside,
    read::Reader,
    revision::{Author, Condition, Document, Draft, Head, Origin, Revision, Summary},
    write::Write,
};

/// Name of the database in the state directory.
pub const FILE: &str = "bulkhead.db";

/// How many revisions stay. Those that are staged or in force always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones.
    pub revisions: u64,
    /// Bytes of what people wrote in the newest ones: a revision that lies behind as many goes earlier.
    pub bytes: u64,
    /// So many of those that were in force before the one that is stay whatever the others say, to roll back to.
    pub predecessors: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { revisions: 1000, bytes: 64 << 20, predecessors: 10 }
    }
}

/// The database, to read and write. One process at a time should have it; what another does meanwhile is waited for.
#[derive(Debug)]
pub struct Store {
    reader: Reader,
    retention: Retention,
}

impl Store {
    /// Opens the database, made if it is missing, and looks whether it is whole.
    ///
    /// # Errors
    /// It cannot be opened, is damaged, is none of Bulkhead's, or was written by another version.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        Self::open_with(state, Retention::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(state: &Path, retention: Retention) -> Result<Self, StoreError> {
        Ok(Self { reader: open::open(state)?, retention })
    }

    /// The same, but a database that cannot be used is renamed and a new one begun; nothing is removed. That costs the history and no more, unless
    /// documents of the API were in force: files alone would not bring back what those guard, and then the database stays where it is.
    ///
    /// # Errors
    /// As [`Self::open`], for what renaming does not mend or must not touch.
    pub fn open_or_set_aside(state: &Path) -> Result<(Self, Option<SetAside>), StoreError> {
        let unusable = match Self::open(state) {
            Err(error) if error.is_unusable() => error,
            other => return Ok((other?, None)),
        };
        let aside = open::set_aside(state, unusable)?;
        Ok((Self::open(state)?, Some(aside)))
    }

    /// Reading.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Does several things in one transaction: all of them hold when it returns, or none when it fails.
    ///
    /// # Errors
    /// What `change` says; the database cannot be written. Nothing was changed then.
    pub fn write<T>(&mut self, change: impl FnOnce(&Write<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        write::write(&self.reader, self.retention, change)
    }

    /// Writes a revision that shall take effect. What was staged before and never was in force is superseded. What the latest revision says already
    /// is staged again under its number, so that who tries again does not fill the history.
    ///
    /// # Errors
    /// The database cannot be written. Nothing was changed then, and the revision must not take effect.
    pub fn stage(&mut self, draft: &Draft) -> Result<Revision, StoreError> {
        self.write(|write| write.stage(draft))
    }

    /// Says that the staged revision is in force, instead of the one before. Its documents are those of the API from now on.
    ///
    /// # Errors
    /// It is neither staged nor in force; the database cannot be written.
    pub fn commit(&mut self, number: u64) -> Result<Head, StoreError> {
        self.write(|write| write.commit(number))
    }

    /// Says that the staged revision did not take effect.
    ///
    /// # Errors
    /// It is not staged; the database cannot be written.
    pub fn refuse(&mut self, number: u64, why: &str) -> Result<Head, StoreError> {
        self.write(|write| write.refuse(number, why))
    }

    /// Sets a setting.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), StoreError> {
        self.write(|write| write.set(key, value))
    }

    /// Removes a setting; says whether it was there.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn unset(&mut self, key: &str) -> Result<bool, StoreError> {
        self.write(|write| write.unset(key))
    }
}

/// Nanoseconds of Unix time.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds of Unix time.
#[must_use]
pub fn seconds() -> u64 {
    now() / 1_000_000_000
}
