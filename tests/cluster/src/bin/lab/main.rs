//! `make lab`: a cluster to look around in. Bulkhead comes into it as users bring it, by the chart; then the shop, and its policies.
//!
//! `up` starts a process that has the cluster, waits until it stands and says what can be done there; `down` ends that process, and everything with it.

mod place;
mod shop;
mod stand;
mod tools;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some("up") => place::up(),
        Some("down") => place::down(),
        Some("stand") => stand::run(),
        _ => usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> Result<()> {
    bail!("usage: bulkhead-lab up|down")
}
