//! ADDs that the agent has yet to hear of: a container that started with its link shut while no agent answered.
//!
//! One file each in a directory beside the agent's socket, which is on a file system that a reboot empties, as it does away with the containers.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::protocol::{Ask, Key, Request};

const DIRECTORY: &str = "shut";

/// Where they are.
#[must_use]
pub fn directory(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join(DIRECTORY)
}

/// Neither part can hold a `/` or begin with a dot; `,` is in neither.
fn file(key: &Key) -> String {
    format!("{},{}.json", key.container, key.ifname.replace(',', "%2C"))
}

/// Writes one, whole or not at all.
pub(super) fn write(socket: &Path, request: &Request) -> io::Result<()> {
    let Ask::Add(attached) = &request.ask else { return Ok(()) };
    let directory = directory(socket);
    fs::create_dir_all(&directory)?;
    let mut temporary = tempfile::NamedTempFile::new_in(&directory)?;
    temporary.write_all(&serde_json::to_vec(request)?)?;
    temporary.persist(directory.join(file(&attached.key))).map(drop).map_err(|error| error.error)
}

/// Forgets one, where there is one.
pub fn forget(socket: &Path, key: &Key) {
    let _ = fs::remove_file(directory(socket).join(file(key)));
}

/// Forgets those of a network that are not listed.
pub(super) fn keep(socket: &Path, network: &str, valid: &[Key]) {
    for request in read(socket) {
        if let Ask::Add(attached) = &request.ask
            && request.network == network
            && !valid.contains(&attached.key)
        {
            forget(socket, &attached.key);
        }
    }
}

/// All that are there. One that cannot be read is none of ours.
#[must_use]
pub fn read(socket: &Path) -> Vec<Request> {
    let Ok(entries) = fs::read_dir(directory(socket)) else { return Vec::new() };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}
