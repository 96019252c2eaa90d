//! What a node's facts mean for whoever wants to guard it: one verdict a line, each with its remedy. Nothing is looked at here.
//!
//! What no probe could look at is never good: where it could have told that the node cannot be guarded it counts as that, else it is a warning.

mod kernel;
mod network;
mod others;

use std::fmt::Write as _;

use bulkhead_dataplane::check::Facts;
use serde::Serialize;
use serde_json::{Value, json};

/// What a line says of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The node can be guarded, and somebody should know this.
    Warning,
    /// The node cannot be guarded while this is so.
    Problem,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Verdict.
    pub verdict: Verdict,
    /// What was looked at.
    pub topic: &'static str,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Line {
    fn ok(topic: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, topic, found: found.into(), remedy: String::new() }
    }

    fn warning(topic: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, topic, found: found.into(), remedy: remedy.into() }
    }

    fn problem(topic: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Problem, topic, found: found.into(), remedy: remedy.into() }
    }
}

/// What to do when a probe was not allowed to look.
const AS_ROOT: &str = "run it as root, in the host's namespaces";

/// Judges the facts.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = kernel::judge(facts);
    lines.extend(network::judge(facts));
    lines.extend(others::judge(facts));
    lines
}

/// Whether the node can be guarded: no line is a problem.
#[must_use]
pub fn enforceable(lines: &[Line]) -> bool {
    count(lines, Verdict::Problem) == 0
}

fn count(lines: &[Line], verdict: Verdict) -> usize {
    lines.iter().filter(|line| line.verdict == verdict).count()
}

/// For people.
#[must_use]
pub fn text(lines: &[Line]) -> String {
    const INDENT: &str = "                     ";
    let mut text = String::new();
    for Line { verdict, topic, found, remedy } in lines {
        // A refusal of the verifier has several lines.
        let found = found.replace('\n', &format!("\n{INDENT}"));
        let written = writeln!(text, "{:<8} {topic:<11} {found}", verdict.name());
        written.expect("a String takes everything");
        if !remedy.is_empty() {
            writeln!(text, "{INDENT}-> {remedy}").expect("a String takes everything");
        }
    }
    text + &summary(lines) + "\n"
}

fn summary(lines: &[Line]) -> String {
    let counted = |number: usize, what: &str| match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    };
    let warnings = counted(count(lines, Verdict::Warning), "warning");
    match count(lines, Verdict::Problem) {
        0 => format!("this node can be guarded; {warnings}"),
        problems => format!("this node cannot be guarded as it is: {}, {warnings}", counted(problems, "problem")),
    }
}

/// For programs; the facts as the probes gave them are beside the lines.
#[must_use]
pub fn json(facts: &Facts, lines: &[Line]) -> Value {
    json!({ "enforceable": enforceable(lines), "lines": lines, "facts": facts })
}
