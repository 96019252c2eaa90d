//! The agent in a process of its own.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_topology::Netns;

use crate::Lab;

/// Where an agent serves its metrics, in the namespace of its node.
const METRICS: &str = "127.0.0.1:9477";
/// How long an agent may take to do what it was asked; a busy machine is slow, and no test measures time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running agent. Dropping it kills it; what it pinned stays until the [`Lab`] goes.
pub struct Agent {
    process: Child,
    netns: Netns,
    log: PathBuf,
}

/// The program, next to the one that runs: cargo builds both.
///
/// # Errors
/// It was not built.
pub fn bulkhead() -> Result<PathBuf> {
    let running = env::current_exe()?;
    let found =
        running.ancestors().skip(1).take(2).map(|directory| directory.join("bulkhead")).find(|path| path.is_file());
    found.with_context(|| {
        format!("`bulkhead` is not built next to {}: run `cargo build -p bulkhead-controller`", running.display())
    })
}

impl Agent {
    /// Starts an agent and waits until it is ready: what the files say holds.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the log is in the message.
    pub fn start(lab: &Lab, node: usize, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(lab, node, arguments)?;
        agent.wait()?;
        Ok(agent)
    }

    /// Starts an agent and does not wait.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(lab: &Lab, node: usize, arguments: &[&str]) -> Result<Self> {
        Self::spawn_by(lab, node, &[], arguments)
    }

    /// The same by a command that changes what it needs to and becomes the agent, as `setpriv` does.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn_by(lab: &Lab, node: usize, by: &[&str], arguments: &[&str]) -> Result<Self> {
        let program = bulkhead()?;
        let program = program.to_str().context("a path that is no UTF-8")?;
        let words = [by, &[program, "agent"]].concat();
        let netns = lab.topology.node(node).netns.clone();
        let log = lab.state(node).with_extension("log");
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let process = netns
            .command(words[0])
            .args(&words[1..])
            .arg("--policies")
            .arg(lab.policies())
            .arg("--workloads")
            .arg(lab.workloads_file())
            .args(["--node", &lab.topology.node(node).name, "--metrics", METRICS])
            .arg("--pins")
            .arg(lab.pins(node))
            .arg("--state")
            .arg(lab.state(node))
            .arg("--socket")
            .arg(lab.socket(node))
            .arg("--cni-socket")
            .arg(lab.cni_socket(node))
            .arg("--cni-cache")
            .arg(lab.cni_cache(node))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { process, netns, log })
    }

    /// Kills it: SIGKILL, nothing of it runs after the call.
    ///
    /// # Errors
    /// It had ended by itself.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("the agent had ended by itself: {status}\n{}", self.log());
        }
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Path of its log.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }

    /// What it answers at a path of its metrics server: status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http_get(&self.netns, path)
    }

    /// Sum of a metric's samples whose labels have all of these `key="value"` texts.
    ///
    /// # Errors
    /// The agent does not answer, or what it answers is no metrics page.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let start = Instant::now();
        let page = loop {
            match self.get("/metrics")? {
                (200, page) => break page,
                // It is too busy to answer in the time that a scraper has.
                (503, _) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(100)),
                (status, page) => bail!("/metrics: {status} {page}"),
            }
        };
        let mut sum = 0.0;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').with_context(|| format!("no metrics line: {line}"))?;
            let found = sample.split('{').next().unwrap_or(sample);
            if found == name && labels.iter().all(|label| sample.contains(label)) {
                sum += value.parse::<f64>().with_context(|| format!("no number: {line}"))?;
            }
        }
        Ok(sum)
    }

    /// Does something to the files and waits until the agent has published it: its revision has grown.
    ///
    /// # Errors
    /// The change itself, or the agent does not get there.
    pub fn apply(&mut self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.metric("bulkhead_revision", &[])?;
        change()?;
        let start = Instant::now();
        while self.metric("bulkhead_revision", &[])? <= before {
            ensure!(start.elapsed() < PATIENCE, "no new revision\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the log is in the message.
    pub fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("the agent ended: {status}\n{}", self.log());
            }
            // It serves metrics from its first revision on.
            if self.metric("bulkhead_revision", &[]).is_ok_and(|revision| revision > 0.0) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the agent is not ready\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It goes on.
    pub fn ended(mut self) -> Result<(i32, String)> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status.code().unwrap_or(-1), self.log()));
            }
            ensure!(start.elapsed() < PATIENCE, "the agent goes on\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks the metrics server in a namespace: status and body.
///
/// # Errors
/// Nobody answers.
pub fn http_get(netns: &Netns, path: &str) -> Result<(u16, String)> {
    http_get_from(netns, METRICS, path)
}

/// The same from an address and port that is reached from that namespace.
///
/// # Errors
/// Nobody answers.
pub fn http_get_from(netns: &Netns, address: &str, path: &str) -> Result<(u16, String)> {
    netns.run(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: bulkhead\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            dechunk(body)?
        } else {
            body.to_owned()
        };
        Ok((status, body))
    })
}

fn dechunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("no chunk")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("short chunk")?);
        body = rest.get(size + 2..).context("short chunk")?;
    }
}
