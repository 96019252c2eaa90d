//! JSON files beside the database, for what changes all the time and may be lost: the totals by peer are written every few seconds and would only
//! wear the database's log.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// A file in the state directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct FileError {
    path: PathBuf,
    why: String,
}

/// Reads a JSON file, if it is there.
pub(crate) fn load<T: DeserializeOwned>(state: &Path, file: &str) -> Result<Option<T>, FileError> {
    let path = state.join(file);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError { path, why: error.to_string() }),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| FileError { path, why: format!("{error}; remove the file to start anew") })
}

/// Replaces a JSON file at once: a crash leaves the old or the new one, that of the machine too.
pub(crate) fn store<T: Serialize>(state: &Path, file: &str, value: &T) -> Result<(), FileError> {
    let write = || -> io::Result<()> {
        let temporary = written(state, value)?;
        temporary.as_file().sync_all()?;
        temporary.persist(state.join(file)).map_err(|error| error.error)?;
        fs::File::open(state)?.sync_all()
    };
    write().map_err(|error| FileError { path: state.join(file), why: error.to_string() })
}

/// The same for what need not outlive the machine: only a crash of the agent leaves the old file or the new one, and nobody waits for a disk.
pub(crate) fn replace<T: Serialize>(directory: &Path, file: &str, value: &T) -> Result<(), FileError> {
    let path = directory.join(file);
    let write = || written(directory, value)?.persist(&path).map_err(|error| error.error);
    write().map(drop).map_err(|error| FileError { path: path.clone(), why: error.to_string() })
}

fn written<T: Serialize>(directory: &Path, value: &T) -> io::Result<tempfile::NamedTempFile> {
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    // Not through a buffer: it would lose the error of its last write when it is dropped.
    temporary.write_all(&serde_json::to_vec(value)?)?;
    Ok(temporary)
}
