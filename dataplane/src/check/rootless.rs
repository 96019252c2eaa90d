//! Containers that somebody without rights runs: their packets reach the node as those of one of its processes, so that no link can be guarded.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use serde::Serialize;

use super::Probe;

/// Programs that carry the packets of rootless containers, as `/proc/<pid>/comm` names them (15 characters).
const CARRIERS: [&str; 6] = ["slirp4netns", "pasta", "pasta.avx2", "rootlesskit", "rootlessport", "rootlessport-ch"];

/// What looks like rootless containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rootless {
    /// Programs that carry their packets.
    pub carriers: Vec<Process>,
    /// One process of each network namespace that a user other than root has made, by way of a user namespace; the uid is that user's.
    pub namespaces: Vec<Process>,
    /// Processes of whose network namespace it could not be told who made it.
    pub unseen: usize,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// Name of its program.
    pub program: String,
}

impl Rootless {
    /// Looks at the processes that `/proc` shows.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn look() -> Probe<Self> {
        look().map_err(|error| format!("look at the processes in /proc: {error}"))
    }
}

fn look() -> io::Result<Rootless> {
    let mut found = Rootless::default();
    let mut seen = BTreeSet::from([fs::metadata("/proc/thread-self/ns/net")?.ino()]);
    let mut pids: Vec<u32> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.sort_unstable();
    for pid in pids {
        let directory = Path::new("/proc").join(pid.to_string());
        // A process that ends while it is looked at is none.
        let (Ok(program), Ok(owner)) = (fs::read_to_string(directory.join("comm")), fs::metadata(&directory)) else {
            continue;
        };
        let process = |uid| Process { pid, uid, program: program.trim_end().to_owned() };
        if CARRIERS.contains(&program.trim_end()) {
            found.carriers.push(process(owner.uid()));
        }
        let namespace = directory.join("ns/net");
        match fs::metadata(&namespace) {
            Ok(metadata) if !seen.insert(metadata.ino()) => {}
            Ok(_) => match maker(&namespace) {
                Ok(0) => {}
                Ok(uid) => found.namespaces.push(process(uid)),
                Err(error) if gone(&error) => {}
                Err(_) => found.unseen += 1,
            },
            Err(error) if gone(&error) => {}
            Err(_) => found.unseen += 1,
        }
    }
    Ok(found)
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The user who made the user namespace that owns a network namespace; 0 for those of the node itself and of runtimes that root runs.
fn maker(namespace: &Path) -> io::Result<u32> {
    /// `_IO(0xb7, 1)` of `linux/nsfs.h`: a descriptor of the owning user namespace.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    /// `_IO(0xb7, 4)`: writes the uid of its maker.
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    let namespace = File::open(namespace)?;
    // SAFETY: no pointers.
    let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let owner = unsafe { OwnedFd::from_raw_fd(owner) };
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one `uid_t`.
    let result = unsafe { libc::ioctl(owner.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}
