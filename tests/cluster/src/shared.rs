//! What all parts of a cluster know, and need.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_topology::Netns;

use crate::{credentials::Credentials, plan::Plan, programs::Programs};

/// For what must happen on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines of each log that are told when something goes wrong.
const LAST: usize = 8;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) credentials: Credentials,
    pub(crate) plan: Plan,
}

impl Shared {
    /// What kubectl prints in the namespace of the control plane.
    pub(crate) fn kubectl(&self, control: &Netns, words: &[&str], input: &str) -> Result<String> {
        let mut command = control.command(self.programs.program("kubectl"));
        command.arg("--kubeconfig").arg(self.credentials.kubeconfig("admin"));
        // It keeps there what kinds there are.
        command.arg("--cache-dir").arg(self.directory.join("kubectl")).args(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        if !input.is_empty() {
            stdin.write_all(input.as_bytes())?;
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        let [said, wrong] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status.success(), "kubectl {}: {}: {said}{wrong}", words.join(" "), output.status);
        Ok(said)
    }

    /// Waits until something holds; an error of the question ends the waiting.
    pub(crate) fn eventually(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !holds()? {
            // The directory goes with the cluster; this is all that will be left of the logs.
            ensure!(start.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}{}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The last lines of all logs.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        let directories = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for file in directories.flat_map(|entry| fs::read_dir(entry.path())).flatten().flatten() {
            let name = file.path();
            if name.extension().is_some_and(|extension| extension == "log") {
                let log = String::from_utf8_lossy(&fs::read(&name).unwrap_or_default()).into_owned();
                let name = name.strip_prefix(&self.directory).unwrap_or(&name).display().to_string();
                let _ = write!(text, "\n--- {name}\n{}", last(&log));
            }
        }
        text
    }
}

/// The last lines of a log.
pub(crate) fn last(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST)..].join("\n")
}
