//! A file that stands while documents of the API may be in force.
//!
//! Files are there to be read again when the database is lost; those documents are not, and an agent that went on without them would open what they
//! guard. So that this is known without the database, the file is made before documents take effect and removed after the last of them does not.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::StoreError;

pub(super) fn marker(state: &Path) -> PathBuf {
    state.join("api-documents-in-force")
}

pub(super) fn set(state: &Path) -> Result<(), StoreError> {
    let path = marker(state);
    let make = || -> io::Result<()> {
        if path.try_exists()? {
            return Ok(());
        }
        File::create(&path)?.sync_all()?;
        File::open(state)?.sync_all()
    };
    make().map_err(|error| StoreError::io(&path, "make the file that says that documents are in force", &error))
}

/// A marker that stays although it need not costs a question to the operator, no more.
pub(super) fn clear(state: &Path) {
    match fs::remove_file(marker(state)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {error}", marker(state).display());
        }
        _ => {}
    }
}
