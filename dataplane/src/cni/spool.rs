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
    for request in read(socket).requests {
        if let Ask::Add(attached) = &request.ask
            && request.network == network
            && !valid.contains(&attached.key)
        {
            forget(socket, &attached.key);
        }
    }
}

/// What is there.
#[derive(Debug, Default)]
pub struct Spooled {
    /// Those that can be read.
    pub requests: Vec<Request>,
    /// Files that cannot, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// All that are there.
#[must_use]
pub fn read(socket: &Path) -> Spooled {
    let mut spooled = Spooled::default();
    for entry in fs::read_dir(directory(socket)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(request) => spooled.requests.push(request),
            // Its container went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => spooled.unreadable.push((path, error.to_string())),
        }
    }
    spooled
}

/// Keeps one that cannot be read under another name, for people to look at: it is asked no more.
///
/// # Errors
/// The file cannot be renamed.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("unreadable");
    fs::rename(path, &aside).map(|()| aside)
}
