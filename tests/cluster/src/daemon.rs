//! Programs that run until they are stopped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::shared;

/// How long a program may take to end when it is asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program in a node, behind the process that entered its namespaces. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    parent: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts what [`Node::command`](crate::Node::command) made.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let parent = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), parent, log: log.to_owned() })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program's number as we see it; none if it has ended, or has not begun.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        child_of(self.parent.id())
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// It does not; the end of what it wrote.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.parent.try_wait()? {
            bail!("{} ended, {status}: {}", self.name, shared::last(&self.log()));
        }
        Ok(())
    }

    /// Asks it to end, and kills it when it does not.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        while self.parent.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                return self.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills it, as if it had crashed.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // It may not have begun yet; then there is nobody to kill until it has.
        while self.parent.try_wait()?.is_none() {
            self.signal(Signal::SIGKILL);
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The first child of a process.
pub(crate) fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
