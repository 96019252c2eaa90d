//! What Bulkhead takes from the traffic between pods: on the nodes that have it and on the same nodes without it, between the same pods, in turns.

mod tcp;

use std::{thread, time::Duration};

use anyhow::Result;
use clap::Args;

use self::tcp::Server;
use super::{Stage, probe::Pod};

/// Policies of those who call and those who are called.
const POLICIES: [usize; 2] = [1, 1000];
/// Until what starts or ends is done with: an agent takes more than a second of a processor for its programs and tables.
const SETTLED: Duration = Duration::from_secs(5);
/// What a ratio is to be at least.
const TARGET: f64 = 0.97;
/// What is measured: more is better, or less.
const METRICS: [(&str, bool); 4] =
    [("stream, Mbit/s", true), ("request p50, µs", false), ("request p99, µs", false), ("connections/s", true)];

/// What to measure.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct Options {
    /// Turns with Bulkhead and without it, in `traffic`.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds for each figure, in `traffic`.
    #[arg(long, default_value_t = 2000)]
    time: u64,
}

/// A figure of each metric.
type Figures = [f64; METRICS.len()];

/// Measures, and prints a table.
pub(super) fn run(stage: &mut Stage, options: &Options, smoke: bool) -> Result<()> {
    let (rounds, time, counts) =
        if smoke { (1, 100, &POLICIES[..1]) } else { (options.rounds.max(1), options.time, &POLICIES[..]) };
    let time = Duration::from_millis(time);
    let servers = [Server::start(&stage.servers[0])?, Server::start(&stage.servers[1])?];
    if !smoke {
        println!("policies  path         metric               with   without     ratio  of {rounds} rounds");
    }
    for &count in counts {
        stage.guarded.apply(&policies(count));
        // By path, with Bulkhead and without.
        let mut figures: [[Vec<Figures>; 2]; 2] = Default::default();
        for _ in 0..rounds {
            for guarded in [true, false] {
                if !guarded {
                    stage.unguard()?;
                }
                if !smoke {
                    thread::sleep(SETTLED);
                }
                for (figures, server) in figures.iter_mut().zip(&servers) {
                    figures[usize::from(!guarded)].push(measure(&stage.callers[0], server, time)?);
                }
            }
            stage.guard()?;
        }
        for (path, [with, without]) in ["same node", "across nodes"].iter().zip(&figures).filter(|_| !smoke) {
            for (at, (metric, more)) in METRICS.iter().enumerate() {
                let [with, without] = [with, without].map(|figures| median(figures.iter().map(|figures| figures[at])));
                let ratio = if *more { with / without } else { without / with };
                let verdict = if ratio >= TARGET { "met" } else { "missed" };
                println!("{count:<8}  {path:<12} {metric:<17} {with:>9.1} {without:>9.1}   {ratio:>7.3}  {verdict}");
            }
        }
    }
    if smoke {
        println!("pods talk to each other, with Bulkhead and without");
    }
    Ok(())
}

fn measure(caller: &Pod, server: &Server, time: Duration) -> Result<Figures> {
    let stream = tcp::stream(caller, server, time)?;
    let (p50, p99) = tcp::requests(caller, server, time)?;
    Ok([stream, p50, p99, tcp::connections(caller, server, time)?])
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The last one lets callers call and servers be called; the others let others.
fn policies(count: usize) -> String {
    let policy = |at: usize| {
        let (callers, servers) = if at + 1 == count { ("a", "s") } else { ("x", "y") };
        let peers = |of: &str| {
            let names: Vec<_> = (1..=2)
                .map(|number| if of == "a" { ["a", "b"][number - 1].to_owned() } else { format!("{of}{number}") })
                .collect();
            format!(
                "[{{ podSelector: {{ matchExpressions: [{{ key: app, operator: In, values: [{}, other-{at}] }}] }} }}]",
                names.join(", ")
            )
        };
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: policy-{at}, namespace: shop }}\nspec:\n  podSelector: {{}}\n  \
             policyTypes: [Ingress, Egress]\n  ingress: [{{ from: {}, ports: [{{ port: {port} }}] }}]\n  egress: [{{ to: {}, ports: [{{ port: {port} }}] }}]\n---\n",
            peers(callers),
            peers(servers),
            port = tcp::PORT,
        )
    };
    (0..count).map(policy).collect()
}
