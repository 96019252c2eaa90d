//! What Bulkhead takes from the traffic between pods: on the nodes that have it and on the same nodes without it, between the same pods, in turns. Each
//! end stays on a processor of its own, since a stream depends on where the scheduler puts it more than on anything that is measured.

mod tcp;

use std::{thread, time::Duration};

use anyhow::Result;
use bulkhead_tests::inside::Pod;
use clap::Args;

use self::tcp::Server;
use super::Stage;

/// Policies of those who call and those who are called.
const POLICIES: [usize; 2] = [1, 1000];
/// So often is each figure taken in a turn.
const SAMPLES: u32 = 8;
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
    /// Rounds of a turn with Bulkhead and one without it, in `traffic`.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Milliseconds for each figure of a turn, in `traffic`.
    #[arg(long, default_value_t = 2000)]
    time: u64,
}

/// A figure of each metric.
type Figures = [f64; METRICS.len()];

/// Samples of the turns with Bulkhead and without, of one path.
type Turns = [Vec<Vec<Figures>>; 2];

/// Measures, and prints a table.
pub(super) fn run(stage: &mut Stage, options: &Options, smoke: bool) -> Result<()> {
    let (rounds, time, samples, counts) =
        if smoke { (1, 100, 1, &POLICIES[..1]) } else { (options.rounds.max(1), options.time, SAMPLES, &POLICIES[..]) };
    let time = Duration::from_millis(time) / samples;
    let servers = [Server::start(&stage.servers[0])?, Server::start(&stage.servers[1])?];
    if !smoke {
        println!("policies  path         metric               with   without     ratio  of {rounds} rounds");
    }
    for &count in counts {
        stage.guarded.apply(&policies(count));
        let mut paths: [Turns; 2] = Default::default();
        let mut guarded = true;
        for round in 0..rounds {
            // There and back: what becomes slower with time does so for both, and every second round begins as the one before ended.
            for turn in if round % 2 == 0 { [true, false] } else { [false, true] } {
                if turn != guarded {
                    if turn {
                        stage.guard()?;
                    } else {
                        stage.unguard()?;
                    }
                    guarded = turn;
                }
                if !smoke {
                    thread::sleep(SETTLED);
                }
                let mut taken = [Vec::new(), Vec::new()];
                for _ in 0..samples {
                    for (taken, server) in taken.iter_mut().zip(&servers) {
                        taken.push(measure(&stage.callers[0], server, time)?);
                    }
                }
                paths.iter_mut().zip(taken).for_each(|(turns, taken)| turns[usize::from(!turn)].push(taken));
            }
        }
        if !guarded {
            stage.guard()?;
        }
        for (path, turns) in ["same node", "across nodes"].iter().zip(&paths).filter(|_| !smoke) {
            print(count, path, turns);
        }
    }
    if smoke {
        println!("pods talk to each other, with Bulkhead and without");
    }
    Ok(())
}

/// Prints medians of all samples, and between which ratios of a round's medians lie.
fn print(policies: usize, path: &str, [with, without]: &Turns) {
    for (at, (metric, more)) in METRICS.iter().enumerate() {
        let ratio = |with: f64, without: f64| if *more { with / without } else { without / with };
        let of = |turns: &[Vec<Figures>]| median(turns.iter().flatten().map(|figures| figures[at]));
        let rounds = with.chunks(1).zip(without.chunks(1)).map(|(with, without)| ratio(of(with), of(without)));
        let (least, most) =
            rounds.fold((f64::MAX, f64::MIN), |(least, most), ratio| (least.min(ratio), most.max(ratio)));
        let (with, without) = (of(with), of(without));
        let ratio = ratio(with, without);
        let verdict = if ratio >= TARGET { "met" } else { "missed" };
        println!(
            "{policies:<8}  {path:<12} {metric:<17} {with:>9.1} {without:>9.1}   {ratio:>7.3}  {least:.3}-{most:.3}  {verdict}"
        );
    }
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
