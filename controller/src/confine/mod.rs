//! What the agent gives away before it opens anything that others can talk to. Nothing of it can be taken back, and what the agent starts (nft,
//! iptables-save) has no more.
//!
//! Capabilities go down to [`rights::NEEDED`], files can be written where the agent keeps something and nowhere else, and system calls that neither
//! the agent nor what it starts has a use for are refused. What stays open is said in the topic `threat-model`: the agent is still root's process.

mod capabilities;
mod files;
mod syscalls;
#[cfg(test)]
mod unit;

use std::{env, fmt, fs, io, path::PathBuf};

use bulkhead_dataplane::rights::{self, Right};

/// What this agent needs beside the fixed lists.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The state directory, made if it is missing.
    pub state: PathBuf,
    /// The directories of the sockets, made if they are missing.
    pub sockets: Vec<PathBuf>,
    /// The directory of pins, which the agent makes itself once it has looked at the file system.
    pub pins: PathBuf,
    /// A group that the agent gives its socket to.
    pub group: Option<u32>,
}

/// What the agent has left. Displays as a line for the log.
#[derive(Clone, Debug)]
pub struct Confined {
    writable: Vec<PathBuf>,
    enforced: files::Enforced,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = rights::NEEDED.map(|right| right.name).join(", ");
        let writable: Vec<_> = self.writable.iter().map(|path| path.display().to_string()).collect();
        write!(
            f,
            "kept {kept} and {} system calls; writes below {} {}",
            syscalls::LEFT,
            writable.join(", "),
            self.enforced
        )
    }
}

/// Why the agent does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// It has less than it needs.
    #[error("the agent lacks {}: run it as root with at least {}", told(.0), rights::NEEDED.map(|right| right.name).join(", "))]
    Lacking(Vec<Right>),
    /// It could not be told what it has.
    #[error("it cannot be told which capabilities the agent has: {0}")]
    Unknown(String),
    /// A directory of its own cannot be made.
    #[error("make {}: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// What is given away is each thread's own: another thread would keep all of it.
    #[error("{0} threads run already, and would keep every right")]
    Threads(usize),
    /// The socket's group cannot be joined, and root without CAP_CHOWN gives files to groups of its own only.
    #[error(
        "the agent is not in the group {group} of --socket-group and may not join it ({why}): in the unit write `SupplementaryGroups={group}`, by hand \
         start it with CAP_SETGID"
    )]
    Group {
        /// The group.
        group: u32,
        /// What the kernel said.
        why: nix::Error,
    },
    /// Something cannot be given away.
    #[error("give away {what}: {why}")]
    Keeps {
        /// What.
        what: &'static str,
        /// What the kernel said, and what helps.
        why: String,
    },
}

fn told(lacking: &[Right]) -> String {
    let each: Vec<_> = lacking.iter().map(|Right { name, purpose, .. }| format!("{name} ({purpose})")).collect();
    each.join(", ")
}

/// Gives away what the agent does not need. Call it before any thread is started.
///
/// # Errors
/// The agent has less than it needs, and then nothing was changed; or the kernel refuses.
pub fn confine(needs: &Needs) -> Result<Confined, ConfineError> {
    let lacking = rights::lacking().map_err(ConfineError::Unknown)?;
    if !lacking.is_empty() {
        return Err(ConfineError::Lacking(lacking));
    }
    let threads = fs::read_dir("/proc/self/task").map_err(|error| ConfineError::Unknown(error.to_string()))?.count();
    if threads != 1 {
        return Err(ConfineError::Threads(threads));
    }
    for path in std::iter::once(&needs.state).chain(&needs.sockets) {
        fs::create_dir_all(path).map_err(|why| ConfineError::Directory { path: path.clone(), why })?;
    }
    // SAFETY: no other thread runs that could read the environment meanwhile, as was just seen.
    unsafe { env::set_var("SQLITE_TMPDIR", &needs.state) };
    if let Some(group) = needs.group {
        capabilities::join(group)?;
    }
    capabilities::shed()?;
    let keeps = |what| move |why: nix::Error| ConfineError::Keeps { what, why: why.to_string() };
    nix::sys::prctl::set_no_new_privs().map_err(keeps("new rights by programs that are started"))?;
    let mut writable = vec![needs.state.clone(), files::nearest(&needs.pins)];
    writable.extend(needs.sockets.iter().cloned());
    writable.sort();
    writable.dedup();
    let enforced = files::restrict(&writable)?;
    // The last: it refuses what stands above.
    syscalls::restrict()?;
    Ok(Confined { writable, enforced })
}

/// Lets this thread, and threads that it starts, write below these directories and nowhere else, as far as the kernel has Landlock.
///
/// # Errors
/// The kernel refuses.
pub fn write_below(directories: &[PathBuf]) -> Result<(), ConfineError> {
    let there: Vec<_> = directories.iter().map(|directory| files::nearest(directory)).collect();
    files::restrict(&there).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_use_and_remedy() {
        let text = ConfineError::Lacking(vec![rights::NEEDED[2], rights::NEEDED[3]]).to_string();
        assert!(
            text.contains("CAP_PERFMON (loading programs") && text.contains("CAP_BPF (loading programs, making"),
            "{text}"
        );
        assert!(
            text.ends_with("run it as root with at least CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF"),
            "{text}"
        );
    }

    /// The test runner has threads.
    #[test]
    fn no_thread_keeps_what_the_others_gave_away() {
        let refused = confine(&Needs::default());
        // Who has not the rights is told that first.
        assert!(matches!(refused, Err(ConfineError::Threads(2..) | ConfineError::Lacking(_))), "{refused:?}");
    }
}
