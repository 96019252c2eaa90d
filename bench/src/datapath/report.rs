//! From rounds to figures.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
};

use anyhow::Result;
use serde::Serialize;

use super::cases::{self, Case};

/// What the floor program took above the empty one where the targets were set.
const FLOOR: f64 = 43.0;

/// Nanoseconds of a run, mean over one test run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// The empty program.
    pub(crate) empty: u32,
    /// The floor program.
    pub(crate) floor: u32,
    /// What the subject is measured above: the case's driver before the empty program, or the empty program.
    pub(crate) idle: u32,
    /// The subject, behind its driver if it has one.
    pub(crate) subject: u32,
}

/// Runs of a case.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) runs: Vec<Vec<Round>>,
}

/// A figure: median over rounds and smallest.
#[derive(Clone, Copy, Debug)]
struct Figure {
    median: f64,
    min: f64,
}

/// Figures of a case.
#[derive(Clone, Copy, Debug)]
struct Figures {
    subject: Figure,
    floor: Figure,
    empty: Figure,
    target: Option<f64>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Of differences the median of the rounds', which adjacent runs make. Their smallest would be the one whose subtrahend was disturbed most, so
/// that the difference of the two smallest stands for it.
fn above(rounds: &[Round], what: fn(&Round) -> u32, base: fn(&Round) -> u32) -> Figure {
    let smallest = |what: fn(&Round) -> u32| rounds.iter().map(what).min().map_or(0.0, f64::from);
    Figure {
        median: median(rounds.iter().map(|round| f64::from(what(round)) - f64::from(base(round))).collect()),
        min: smallest(what) - smallest(base),
    }
}

fn figures(rounds: &[Round], target: Option<f64>) -> Figures {
    let floor = above(rounds, |round| round.floor, |round| round.empty);
    Figures {
        subject: above(rounds, |round| round.subject, |round| round.idle),
        floor,
        empty: above(rounds, |round| round.empty, |_| 0),
        target: target.map(|target| target * floor.median / FLOOR),
    }
}

/// Of several runs: medians of medians, smallest of smallest; and in how many the target was exceeded.
fn summary(measured: &Measured, target: Option<f64>) -> (Figures, usize) {
    let runs: Vec<Figures> = measured.runs.iter().map(|rounds| figures(rounds, target)).collect();
    let figure = |of: fn(&Figures) -> Figure| Figure {
        median: median(runs.iter().map(|run| of(run).median).collect()),
        min: runs.iter().map(|run| of(run).min).fold(f64::INFINITY, f64::min),
    };
    let targets: Vec<f64> = runs.iter().filter_map(|run| run.target).collect();
    let over = runs.iter().filter(|run| run.target.is_some_and(|target| run.subject.median > target)).count();
    let all = Figures {
        subject: figure(|run| run.subject),
        floor: figure(|run| run.floor),
        empty: figure(|run| run.empty),
        target: (!targets.is_empty()).then(|| median(targets)),
    };
    (all, over)
}

/// A target is missed when each of three or more runs is over it; fewer runs tell nothing.
const fn verdict(target: Option<f64>, over: usize, runs: usize) -> Option<&'static str> {
    match target {
        Some(_) if runs >= 3 && over == runs => Some("missed"),
        Some(_) if runs >= 3 => Some("met"),
        _ => None,
    }
}

/// Prints the table for people.
pub(crate) fn print(cases: &[Case], measured: &[Measured], smoke: bool) {
    println!("ns per packet above the empty program: median of the rounds (smallest)");
    println!("{:<22} {:<14} {:<5} {:>13} {:>11} {:>8}  verdict", "case", "program", "", "subject", "floor", "target");
    let (mut met, mut missed) = (0, Vec::new());
    for (case, measured) in cases.iter().zip(measured) {
        let (figures, over) = summary(measured, case.target);
        let verdict = if smoke { None } else { verdict(case.target, over, measured.runs.len()) };
        match verdict {
            Some("missed") => missed.push(format!(
                "{} ({:.0} for {:.0})",
                case.id(),
                figures.subject.median,
                figures.target.unwrap_or_default()
            )),
            Some(_) => met += 1,
            None => {}
        }
        println!(
            "{:<22} {:<14} {:<5} {:>7.1} {:>5} {:>5.1} {:>5} {:>8}  {}",
            case.name,
            case.subject.name(),
            cases::family(case.family),
            figures.subject.median,
            format!("({:.0})", figures.subject.min),
            figures.floor.median,
            format!("({:.0})", figures.floor.min),
            figures.target.map_or_else(String::new, |target| format!("{target:.0}")),
            verdict.unwrap_or("-"),
        );
    }
    if smoke {
        println!("{} cases do what they should; too brief to compare with targets", cases.len());
    } else if met + missed.len() > 0 {
        println!(
            "targets (scaled by the floor, which took {FLOOR} ns where they were set) met: {met}, missed: {}",
            missed.len()
        );
        missed.iter().for_each(|case| println!("  missed: {case}"));
    }
}

/// Flows among which each packet's is drawn, or one hot packet.
#[derive(Serialize)]
#[serde(untagged)]
enum Spread {
    Hot(&'static str),
    Flows(u32),
}

/// One line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    suite: &'static str,
    case: &'a str,
    program: &'a str,
    family: &'a str,
    spread: Spread,
    ns: f64,
    ns_min: f64,
    floor_ns: f64,
    floor_ns_min: f64,
    empty_ns: f64,
    empty_ns_min: f64,
    target_ns: Option<f64>,
    runs: usize,
    over: usize,
    verdict: Option<&'static str>,
}

/// Writes the same as JSON lines.
pub(crate) fn json(cases: &[Case], measured: &[Measured], smoke: bool, file: File) -> Result<()> {
    let mut file = BufWriter::new(file);
    for (case, measured) in cases.iter().zip(measured) {
        let (Figures { subject, floor, empty, target }, over) = summary(measured, case.target);
        let runs = measured.runs.len();
        let line = Line {
            suite: "datapath",
            case: case.name,
            program: case.subject.name(),
            family: cases::family(case.family),
            spread: case.spread().map_or(Spread::Hot("hot"), Spread::Flows),
            ns: round(subject.median),
            ns_min: round(subject.min),
            floor_ns: round(floor.median),
            floor_ns_min: round(floor.min),
            empty_ns: round(empty.median),
            empty_ns_min: round(empty.min),
            target_ns: target.map(round),
            runs,
            over,
            verdict: if smoke { None } else { verdict(target, over, runs) },
        };
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

/// To tenths: the kernel tells whole nanoseconds.
fn round(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(runs: &[&[[u32; 4]]]) -> Measured {
        let round = |[empty, floor, idle, subject]: &[u32; 4]| Round {
            empty: *empty,
            floor: *floor,
            idle: *idle,
            subject: *subject,
        };
        Measured { runs: runs.iter().map(|rounds| rounds.iter().map(round).collect()).collect() }
    }

    /// A disturbed round moves neither the median nor, whichever program it hit, the smallest figure.
    #[test]
    fn figures_stand_above_what_the_subject_was_measured_above() {
        let measured =
            measured(&[&[[10, 53, 12, 62], [10, 53, 90, 62], [10, 53, 12, 200], [10, 53, 12, 62], [10, 96, 12, 63]]]);
        let (figures, over) = summary(&measured, Some(45.0));
        assert_eq!((figures.subject.median, figures.subject.min), (50.0, 50.0));
        assert_eq!((figures.floor.median, figures.floor.min), (43.0, 43.0));
        assert_eq!((figures.empty.median, figures.empty.min), (10.0, 10.0));
        assert_eq!((figures.target, over), (Some(45.0), 1));
    }

    /// A machine on which the floor takes twice as long may take twice as long.
    #[test]
    fn the_target_follows_the_floor() {
        let (figures, over) = summary(&measured(&[&[[10, 96, 10, 100]]]), Some(45.0));
        assert_eq!((figures.target, over), (Some(90.0), 0));
    }

    #[test]
    fn one_good_run_in_three_meets_a_target() {
        let (slow, fast): (&[[u32; 4]], &[[u32; 4]]) = (&[[10, 53, 10, 56]], &[[10, 53, 10, 55]]);
        let verdict_of = |runs: &[&[[u32; 4]]]| {
            let (figures, over) = summary(&measured(runs), Some(45.0));
            verdict(figures.target, over, runs.len())
        };
        assert_eq!(verdict_of(&[slow, slow, slow]), Some("missed"));
        assert_eq!(verdict_of(&[slow, fast, slow]), Some("met"));
        assert_eq!(verdict_of(&[slow, slow]), None);
        assert_eq!(verdict(None, 0, 3), None);
    }

    #[test]
    fn an_even_number_has_a_median_too() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
