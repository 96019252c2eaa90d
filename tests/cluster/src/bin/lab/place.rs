//! The process that has the lab: where it is noted, and how it begins and ends.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_cluster::{available, sweep};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One lab stands at a time.
const DIRECTORY: &str = "/run/bulkhead-lab";
const PID: &str = "/run/bulkhead-lab/pid";
const LOG: &str = "/run/bulkhead-lab/log";
/// Written last: what can be done there.
pub(crate) const HINTS: &str = "/run/bulkhead-lab/hints";
/// As the kernel calls the program.
const NAME: &str = "bulkhead-lab";
/// How long it may take to end when it is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts it and waits until it stands.
pub(crate) fn up() -> Result<()> {
    available().map_err(|missing| anyhow::anyhow!("missing: {missing}"))?;
    if noted().as_ref().is_some_and(runs) {
        print!("{}", fs::read_to_string(HINTS).unwrap_or_default());
        bail!("a lab stands already; `make lab-down` removes it");
    }
    let _ = fs::remove_dir_all(DIRECTORY);
    fs::create_dir(DIRECTORY).with_context(|| format!("make {DIRECTORY}; a lab is for root alone"))?;
    let log = File::create(LOG)?;
    let mut stand = Command::new(env::current_exe()?);
    stand.arg("stand").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut stand = stand.spawn()?;
    fs::write(PID, stand.id().to_string())?;
    let mut told = File::open(LOG)?;
    let mut tell = || -> Result<()> {
        let mut text = String::new();
        told.read_to_string(&mut text)?;
        print!("{text}");
        Ok(())
    };
    while !Path::new(HINTS).exists() {
        let ended = stand.try_wait()?;
        tell()?;
        if let Some(status) = ended {
            let _ = fs::remove_dir_all(DIRECTORY);
            bail!("it did not come up: {status}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    tell()?;
    print!("{}", fs::read_to_string(HINTS)?);
    Ok(())
}

/// Ends it, and removes what it left if it was killed.
pub(crate) fn down() -> Result<()> {
    match noted() {
        None => println!("no lab stands"),
        Some(pid) => end(pid)?,
    }
    sweep();
    let _ = fs::remove_dir_all(DIRECTORY);
    Ok(())
}

fn end(pid: Pid) -> Result<()> {
    let start = Instant::now();
    kill(pid, Signal::SIGTERM)?;
    while noted() == Some(pid) {
        if start.elapsed() > PATIENCE {
            // Its namespaces end with it, and with them all processes.
            let _ = kill(pid, Signal::SIGKILL);
        }
        ensure!(start.elapsed() < 2 * PATIENCE, "process {pid} does not end");
        thread::sleep(Duration::from_millis(50));
    }
    println!("the lab is gone");
    Ok(())
}

/// The process that has the lab, also when it has ended and its parent has not asked for it yet: what it left is removed when it is gone.
fn noted() -> Option<Pid> {
    let pid: i32 = fs::read_to_string(PID).ok()?.trim().parse().ok()?;
    (fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == NAME).then(|| Pid::from_raw(pid))
}

fn runs(pid: &Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains("State:\t") && !status.contains("State:\tZ")
}
