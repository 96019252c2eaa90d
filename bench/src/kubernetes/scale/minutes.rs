//! Memory of a process, minute by minute.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{mib, process::Process};

/// Looks at it until it is stopped.
pub(super) struct Minutes {
    end: Sender<()>,
    thread: JoinHandle<Result<Vec<u64>>>,
}

impl Minutes {
    /// Looks each such time.
    pub(super) fn start(process: Process, every: Duration) -> Self {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut resident = Vec::new();
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                resident.push(process.memory()?.resident);
            }
            Ok(resident)
        });
        Self { end, thread }
    }

    /// Bytes that were resident each time.
    pub(super) fn stop(self) -> Result<Vec<u64>> {
        drop(self.end);
        self.thread.join().map_err(|_| anyhow!("who looks at memory panicked"))?
    }
}

/// All of them, and what it grew from the first one behind the first minute, in which all comes into motion, to the last.
pub(super) fn told(resident: &[u64]) -> String {
    let all: Vec<_> = resident.iter().map(|bytes| format!("{:.0}", mib(*bytes))).collect();
    let growth = match resident {
        [_, first, .., last] => format!("grown by {:.1} MiB since the second", mib(*last) - mib(*first)),
        _ => "too short to see growth".to_owned(),
    };
    format!("{}   {growth}", all.join(" "))
}
