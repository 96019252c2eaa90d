//! Namespaces that live as long as their first process, and that as long as we.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use bulkhead_topology::Netns;

use crate::daemon::{self, Daemon};

/// Becomes process 1: prepares with `$0`, says so, and waits for the end of its standard input, whose other end only we hold. So it ends when we do, however we
/// end, and the kernel kills what is left in its namespace. While it waits it also reaps: shims of containerd become its children.
const INIT: &str = r#"
set -eu
exec 3<&0 </dev/null
eval "$0"
echo ready
exec >/dev/null
cat <&3 &
wait "$!"
"#;

/// Mount, UTS, IPC and PID namespaces within a network namespace. Dropped, all processes in them are killed.
#[derive(Debug)]
pub(crate) struct Space {
    unshare: Child,
    /// Process 1, by its number as we see it.
    init: u32,
    logs: PathBuf,
}

impl Space {
    /// Makes them. `prepare` is a shell script that runs in them first; its arguments begin with `$1`. Logs of it and of daemons go to a directory.
    pub(crate) fn new<'a>(
        netns: &Netns,
        logs: &Path,
        prepare: &str,
        arguments: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Self> {
        let log = logs.join("init.log");
        let mut unshare = netns
            .command("unshare")
            .args([
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                INIT,
                prepare,
            ])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("start unshare")?;
        let stdout = unshare.stdout.take().context("the first process has no output")?;
        let mut space = Self { unshare, init: 0, logs: logs.to_owned() };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said)?;
        if said.trim() != "ready" {
            bail!("namespaces of {}: {said}{}", netns.name(), fs::read_to_string(log).unwrap_or_default());
        }
        space.init = daemon::child_of(space.unshare.id()).context("unshare has no child")?;
        Ok(space)
    }

    /// A command whose program runs in these namespaces. What is spawned is the program's parent; a [`Daemon`] knows the program itself.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"]).arg(program);
        command
    }

    /// Starts a program of [`Space::command`]; its output goes to `NAME.log`.
    pub(crate) fn start(&self, name: &str, command: Command) -> Result<Daemon> {
        Daemon::start(name, command, &self.logs.join(format!("{name}.log")))
    }

    /// A file as these namespaces see it.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.init)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Has all processes end, without waiting for it.
    pub(crate) fn end(&mut self) {
        drop(self.unshare.stdin.take());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.end();
        // Returns once the last process of the namespace is gone.
        let _ = self.unshare.wait();
    }
}
