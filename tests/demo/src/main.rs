//! The demonstration: a shop on two nodes, with an intruder.
//!
//! Everything in it is real: network namespaces, VXLAN, TCP connections, agents in processes of their own. Each call is made on the wire *and*
//! explained from the policy; where the two differ the demonstration fails.

mod audit;
mod calls;
mod forgery;
mod kept;
mod score;
mod serve;
mod service;
mod shop;
mod show;
mod stop;
mod story;

use std::{env, net::SocketAddr, process::ExitCode};

use anyhow::{Result, bail};
use bulkhead_fixtures::skip::{self, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN};
use clap::{Parser, Subcommand};

/// A shop on two nodes, with an intruder: what a policy allows and blocks.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Leaves everything standing at the end, agents included, and says how to look around (also: KEEP=1).
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Removes what `--keep` left standing.
    Clean,
    /// Listens and sends back what it gets: the process of a container.
    #[command(hide = true)]
    Serve {
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Serve { addresses }) => serve::run(&addresses).map(|()| ExitCode::SUCCESS),
        Some(Command::Clean) => may_run().and_then(|()| kept::clean()).map(|()| ExitCode::SUCCESS),
        None => may_run().and_then(|()| story::run(arguments.keep || keep_asked())),
    };
    result.unwrap_or_else(|error| {
        show::failure(&error);
        ExitCode::FAILURE
    })
}

fn keep_asked() -> bool {
    env::var("KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"))
}

/// Said at once, and not by the first thing that fails.
fn may_run() -> Result<()> {
    if [CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN].into_iter().all(skip::capability) {
        return Ok(());
    }
    bail!(
        "this needs root: it makes network namespaces and loads eBPF programs.\n\
         Run it as `sudo -E env PATH=\"$PATH\" make demo`; in a container, with `--privileged`."
    )
}
