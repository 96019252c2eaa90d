//! Time per packet of the programs, by BPF_PROG_TEST_RUN.

mod cases;
mod report;
mod rig;
mod world;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_ebpf::abi::mark;
use bulkhead_topology::cpu;
use clap::Args;

use self::{
    cases::{Case, Driver, Flows},
    report::{Measured, Round},
    rig::{Counters, Input, Rig, Subject},
    world::{Family, Tables},
};

/// Packets of one test run: of one hot packet, of new flows that fit an empty table, and of new flows that find it full.
const HOT: u32 = 100_000;
const ROOM: u32 = 8_000;
const FULL: u32 = 40_000;
/// New flows that fill a table, from other ports than those that are measured: an LRU map may keep any of the old ones.
const FILL: u16 = 20_000;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Also write one JSON object a line for each case to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run every case briefly, to see that it does what it should; measures nothing worth reading.
    #[arg(long, conflicts_with_all = ["rounds", "runs"])]
    smoke: bool,
    /// Rounds of a run; in each of them the empty program, the floor program and the subject take their turn.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Runs over all cases. A target is missed when every one of at least three is over it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only cases whose name, as in `established/from_workload/ipv4`, contains this.
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut cases = cases::all();
    if let Some(only) = &options.only {
        let names: Vec<String> = cases.iter().map(Case::id).collect();
        cases.retain(|case| case.id().contains(only.as_str()));
        ensure!(!cases.is_empty(), "no case contains `{only}`; there are:\n{}", names.join("\n"));
    }
    let json = match &options.json {
        // Opened first: a run takes minutes.
        Some(path) => Some(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        None => None,
    };
    let (rounds, runs, hurry) = if options.smoke { (3, 1, 50) } else { (options.rounds, options.runs, 1) };
    let cpu = stay()?;
    eprintln!("{} cases, {runs} runs of {rounds} rounds, on CPU {cpu}", cases.len());

    let mut rigs: BTreeMap<Tables, Rig> = BTreeMap::new();
    for case in &cases {
        if let Entry::Vacant(rig) = rigs.entry(case.tables) {
            eprintln!("publishing ({:?})", case.tables);
            rig.insert(Rig::new(case.tables)?);
        }
    }
    let progress = io::stderr().is_terminal();
    let mut measured: Vec<Measured> = cases.iter().map(|_| Measured::default()).collect();
    for run in 1..=runs {
        for (case, measured) in cases.iter().zip(&mut measured) {
            if progress {
                eprint!("\r\x1b[Krun {run} of {runs}: {}", case.id());
            }
            let rig = rigs.get_mut(&case.tables).context("a rig for every case")?;
            measured.runs.push(measure(rig, case, rounds, hurry).with_context(|| case.id())?);
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    report::print(&cases, &measured, options.smoke);
    if let Some(file) = json {
        report::json(&cases, &measured, options.smoke, file)?;
    }
    Ok(())
}

/// Keeps this thread on one CPU, the last one that it may use: the first one has most of the interrupts.
fn stay() -> Result<usize> {
    let last = *cpu::allowed()?.last().context("no CPU may be used")?;
    cpu::stay_on(last)?;
    Ok(last)
}

/// Measures a case, and sees to it that the program did what the case is about, for every packet.
fn measure(rig: &mut Rig, case: &Case, rounds: u32, hurry: u32) -> Result<Vec<Round>> {
    let word = rig.word()?;
    rig.forget_flows()?;
    for (subject, packet) in &case.before {
        let mark = match subject {
            Subject::OverlayOut => rig.slot(),
            // It means nothing to what a workload sends.
            _ => mark::VERIFIED,
        };
        let input = Input { subject: *subject, packet, mark, ..input(rig, case, packet) };
        let (program, repeat) = match case.driver {
            Driver::RandomFlow(flows) => (rig.drivers("each_flow", *subject)?[1], flows),
            _ => (rig.subject(*subject)?, 1),
        };
        let (action, _) = rig.run(program, &input, repeat)?;
        ensure!(action == -1, "{} returned {action} for a packet that comes before", subject.name());
    }
    let repeat = match case.flows {
        Flows::Kept => HOT / hurry,
        Flows::Room => ROOM / hurry,
        // Not in a hurry: a table that is not full is another case.
        Flows::Full => FULL,
    };
    turn(rig, case, &case.packet, repeat / 10)?;

    let (before, floor_before) = (rig.counters()?, rig.floor_packets()?);
    let (mut result, mut filled) = (Vec::new(), 0);
    for _ in 0..rounds {
        if case.flows != Flows::Kept {
            rig.forget_flows()?;
        }
        let packet = if case.flows == Flows::Full {
            turn(rig, case, &from_port(case, 0), FILL.into())?;
            filled += u64::from(FILL);
            from_port(case, FILL)
        } else {
            case.packet.clone()
        };
        let floor_packet = world::floor_packet();
        let baseline = |name: &str| {
            let program = rig.baseline(&format!("{name}_{}", case.subject.of_type()))?;
            anyhow::Ok(rig.run(program, &input(rig, case, &floor_packet), HOT / hurry)?.1)
        };
        let (empty, floor) = (baseline("empty")?, baseline("floor")?);
        let (idle, subject) = turn(rig, case, &packet, repeat)?;
        result.push(Round { empty, floor, idle: idle.unwrap_or(empty), subject });
    }
    rig.set_word(word)?;

    let known = rig.floor_packets()? - floor_before;
    ensure!(known == u64::from(rounds * (HOT / hurry)), "the floor program found its flow {known} times");
    let packets = u64::from(rounds) * u64::from(repeat) + filled;
    let mut expected: Vec<_> = case
        .counts
        .iter()
        .map(|(reason, starts)| ((case.direction(), reason.label()), (packets, if *starts { packets } else { 0 })))
        .collect();
    expected.sort_unstable();
    let moved = moved(&before, &rig.counters()?);
    let mut found: Vec<_> = moved.iter().map(|(key, by)| ((key.1, key.2), *by)).collect();
    found.sort_unstable();
    if found != expected {
        bail!("expected of the counters: {expected:?} (direction, reason; packets, flows); what moved: {moved:?}");
    }
    Ok(result)
}

/// The case's packet with another source port, from which on [`cases::Driver::NextFlow`] counts up.
fn from_port(case: &Case, port: u16) -> Vec<u8> {
    let at = match case.family {
        Family::V4 => 34,
        Family::V6 => 54,
    };
    let mut packet = case.packet.clone();
    packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
    packet
}

/// What a program is run on for the case.
fn input<'a>(rig: &Rig, case: &Case, packet: &'a [u8]) -> Input<'a> {
    let flows = case.spread();
    let sent = case.subject == Subject::FromWorkload;
    Input {
        subject: case.subject,
        packet,
        mark: if case.subject == Subject::OverlayOut { rig.slot() } else { case.mark },
        flows: flows.unwrap_or(0),
        peer_at: world::peer_at(case.family, sent),
    }
}

/// The subject's turn, after its driver's with nothing to drive, if it has one. Checks the action.
fn turn(rig: &Rig, case: &Case, packet: &[u8], repeat: u32) -> Result<(Option<u32>, u32)> {
    let input = input(rig, case, packet);
    let (idle, program) = match case.driver.program() {
        Some(driver) => {
            let [idle, busy] = rig.drivers(driver, case.subject)?;
            (Some(rig.run(idle, &input, repeat)?.1), busy)
        }
        None => (None, rig.subject(case.subject)?),
    };
    let (action, time) = rig.run(program, &input, repeat)?;
    ensure!(action == case.action, "returned {action}, expected {}", case.action);
    Ok((idle, time))
}

/// Counters that moved, and by how much.
fn moved(before: &Counters, after: &Counters) -> Vec<((bool, &'static str, &'static str, String), (u64, u64))> {
    let by = |(key, (packets, flows)): (&(bool, &'static str, &'static str, String), &(u64, u64))| {
        let (old_packets, old_flows) = before.get(key).copied().unwrap_or_default();
        (key.clone(), (packets - old_packets, flows - old_flows))
    };
    after.iter().map(by).filter(|(_, by)| *by != (0, 0)).collect()
}
