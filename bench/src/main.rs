//! Benchmarks of Bulkhead. Each measures against a baseline in the same run; `bench/README.md` says how to read what comes out.

mod cni;
mod datapath;
mod kubernetes;
mod policy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks of Bulkhead.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Time per packet of the eBPF programs, by BPF_PROG_TEST_RUN. Needs root.
    Datapath(datapath::Options),
    /// Time and memory of the policy compiler by the size of the cluster.
    Policy(policy::Options),
    /// What Bulkhead takes, and how soon what is said holds, on a real cluster. Needs root and the programs of the tests.
    Kubernetes(kubernetes::Options),
    /// Time that the CNI plugin adds to the start of a container. Needs root and the reference plugins.
    Cni(cni::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().suite {
        Suite::Datapath(options) => datapath::run(&options),
        Suite::Policy(options) => policy::run(&options),
        Suite::Cni(options) => cni::run(&options),
        Suite::Kubernetes(options) => kubernetes::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
