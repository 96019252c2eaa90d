//! What can be wrong with the database, and how to mend it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its bytes are not what was written.
    #[error(
        "{}: the database is damaged: {why}; stop the agent and put a copy in its place, or rename it: the agent begins a new one", path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is a file of something else.
    #[error("{}: {why}, so it is no database of Bulkhead; give another state directory, or rename the file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What tells so.
        why: String,
    },
    /// Another version of Bulkhead has written it.
    #[error("{}: the database has schema version {found}, this version of Bulkhead reads {known}; use the version that wrote it, or rename the file", path.display())]
    Version {
        /// The database.
        path: PathBuf,
        /// Of the database.
        found: i64,
        /// Of this program.
        known: i64,
    },
    /// No space is left.
    #[error("{}: no space is left, nothing was changed; free some in its file system and try again", path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// Another process holds it.
    #[error("{}: another process is writing and did not end; is a second agent running on this state directory?", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: cannot {doing}: {why}; look at the directory's owner, mode and file system", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        why: String,
    },
    /// A revision is not in the condition that is asked for.
    #[error("revision {number} is {condition}, not staged")]
    NotStaged {
        /// Its number.
        number: u64,
        /// What it is.
        condition: String,
    },
    /// A setting, or what a revision says, has no such form.
    #[error("{}: {what} has another form than expected: {why}", path.display())]
    Form {
        /// The database.
        path: PathBuf,
        /// Which value.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A database that cannot be used must not be replaced.
    #[error(
        "{unusable}\nPolicies given through the API were in force, which only this database knows; what is in force stays. Put a copy of the \
         database in its place, or remove {} to go on with the files alone",
        marker.display()
    )]
    DocumentsInForce {
        /// What is wrong with it.
        unusable: Box<Self>,
        /// File that says that documents are in force.
        marker: PathBuf,
    },
}

impl StoreError {
    /// Whether the database will never be usable as it is, by this version: no other directory, no patience and no space mends it.
    #[must_use]
    pub const fn is_unusable(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Foreign { .. } | Self::Version { .. })
    }

    /// What SQLite said.
    pub(super) fn sqlite(path: &Path, doing: &'static str, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        let why = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, why },
            Some(ErrorCode::NotADatabase) => Self::Foreign { path, why },
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path },
            Some(_) => Self::System { path, doing, why },
            // A value is not of the type that the schema says.
            None => Self::Damaged { path, why },
        }
    }

    pub(super) fn io(path: &Path, doing: &'static str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::Full { path: path.to_owned() };
        }
        Self::System { path: path.to_owned(), doing, why: error.to_string() }
    }
}
