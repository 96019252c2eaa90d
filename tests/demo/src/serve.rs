//! The process of a container: it sends back what it gets.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::Stdio,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_topology::{Netns, Process};

/// What it prints once it listens.
const READY: &str = "ready";

/// Listens in this process until it is killed.
pub(crate) fn run(addresses: &[SocketAddr]) -> Result<()> {
    for &address in addresses {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // A connection that breaks is its client's to notice.
                thread::spawn(move || {
                    stream.set_nodelay(true)?;
                    io::copy(&mut stream.try_clone()?, &mut stream)
                });
            }
        });
    }
    writeln!(io::stdout(), "{READY}")?;
    loop {
        thread::park();
    }
}

/// Starts such a process in a namespace, and waits until it listens.
pub(crate) fn start(netns: &Netns, addresses: &[SocketAddr]) -> Result<Process> {
    let mut command = netns.command(std::env::current_exe()?);
    command.arg("serve").args(addresses.iter().map(ToString::to_string));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut process = Process::from(child);
    let mut said = String::new();
    BufReader::new(process.stdout.take().context("stdout is a pipe")?).read_line(&mut said)?;
    if said.trim_end() != READY {
        process.stderr.take().context("stderr is a pipe")?.read_to_string(&mut said)?;
    }
    ensure!(said.trim_end() == READY, "the server in {} does not start: {said}", netns.name());
    Ok(process)
}
