//! What somebody should look at: input that is used, and says something else than it seems to.
//!
//! Who may call whom is asked of a [`Simulation`]; which line decides, and which never does, of the walls that `walls` describes: both ask the
//! programs' own code.

mod backends;
mod cidrs;
mod edges;
mod exposed;
mod nobody;
mod shadow;
mod unguarded;
mod walls;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde_json::{Value, json};

use self::walls::Walls;
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, suggest},
    model::Model,
    simulate::Simulation,
};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// A mode that only reports.
    AuditLeftOn,
    /// A Guard that denies health checks as well.
    DeniesHealthChecks,
    /// A rule that has ended.
    Expired,
    /// One wall is opened and the other is not.
    HalfOpenEdge,
    /// A service address that leads to workloads of which only some may be called.
    MixedBackends,
    /// A workload that nothing isolates.
    NotIsolated,
    /// Prefixes that do not mean what they seem to.
    OddCidr,
    /// A policy about nobody, or a peer that nobody is.
    SelectsNothing,
    /// A rule that never decides.
    ShadowedRule,
    /// The name of a port that nobody has.
    UnknownNamedPort,
    /// Anybody may call where administrators or other programs alone should.
    WorldOnAdminPort,
}

impl Check {
    /// All of them, by name.
    pub const ALL: [Self; 11] = [
        Self::AuditLeftOn,
        Self::DeniesHealthChecks,
        Self::Expired,
        Self::HalfOpenEdge,
        Self::MixedBackends,
        Self::NotIsolated,
        Self::OddCidr,
        Self::SelectsNothing,
        Self::ShadowedRule,
        Self::UnknownNamedPort,
        Self::WorldOnAdminPort,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuditLeftOn => "audit-left-on",
            Self::DeniesHealthChecks => "denies-health-checks",
            Self::Expired => "expired",
            Self::HalfOpenEdge => "half-open-edge",
            Self::MixedBackends => "mixed-backends",
            Self::NotIsolated => "not-isolated",
            Self::OddCidr => "odd-cidr",
            Self::SelectsNothing => "selects-nothing",
            Self::ShadowedRule => "shadowed-rule",
            Self::UnknownNamedPort => "unknown-named-port",
            Self::WorldOnAdminPort => "world-on-admin-port",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|check| check.name() == text);
        known.ok_or_else(|| format!("there is no such check: {}", suggest(text, Self::ALL.map(Self::name))))
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub check: Check,
    /// Where, what, and how to mend it; always a warning.
    pub diagnostic: Diagnostic,
}

impl Finding {
    fn new(check: Check, place: &Place, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, diagnostic: Diagnostic::warning(place, message).help(help) }
    }

    /// For reading: the message begins with the name of the check.
    #[must_use]
    pub fn named(&self) -> Diagnostic {
        let message = format!("{}: {}", self.check, self.diagnostic.message);
        Diagnostic { message, ..self.diagnostic.clone() }
    }

    fn order(&self) -> (&str, u32, u32, Check, &str) {
        let Diagnostic { place, message, .. } = &self.diagnostic;
        let (file, line, column) = place.as_ref().map_or(("", 0, 0), |place| (place.file(), place.line, place.column));
        (file, line, column, self.check, message)
    }
}

/// Everything that is found, by file and line. `now` is in nanoseconds of Unix time.
///
/// # Errors
/// Policies that do not fit the tables, and tables that say something else than the policies.
pub fn lint(model: &Model, simulation: &Simulation<'_>, now: u64) -> Result<Vec<Finding>, Diagnostics> {
    let walls = Walls::new(simulation, now)?;
    let shadowed = shadow::check(&walls)?;
    let mut findings = nobody::check(model);
    findings.extend(edges::check(&walls, &shadowed));
    findings.extend(shadowed);
    findings.extend(exposed::check(model, simulation));
    findings.extend(unguarded::check(model, now));
    findings.extend(backends::check(simulation));
    findings.extend(cidrs::check(model));
    findings.sort_by(|one, other| one.order().cmp(&other.order()));
    findings.dedup();
    Ok(findings)
}

/// How many of what: `3 findings: 1 expired, 2 not-isolated`.
#[must_use]
pub fn summary(findings: &[Finding]) -> String {
    let mut counts: BTreeMap<Check, usize> = BTreeMap::new();
    findings.iter().for_each(|finding| *counts.entry(finding.check).or_default() += 1);
    let counts: Vec<_> = counts.into_iter().map(|(check, count)| format!("{count} {check}")).collect();
    match findings.len() {
        0 => "nothing found".to_owned(),
        1 => format!("1 finding: {}", counts.join(", ")),
        n => format!("{n} findings: {}", counts.join(", ")),
    }
}

/// An array of objects.
#[must_use]
pub fn json(findings: &[Finding]) -> Value {
    let of = |Finding { check, diagnostic }: &Finding| {
        let place = diagnostic.place.as_ref();
        json!({
            "check": check.name(),
            "severity": "warning",
            "file": place.map(Place::file),
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
            "message": diagnostic.message,
            "help": diagnostic.help,
        })
    };
    findings.iter().map(of).collect()
}

/// As many as fit a line: `a`, `b` and 3 more.
fn some(items: impl IntoIterator<Item = String>) -> String {
    const MOST: usize = 4;
    let mut items: Vec<String> = items.into_iter().collect();
    items.dedup();
    let more = items.len().saturating_sub(MOST);
    items.truncate(MOST);
    match (more, items.as_slice()) {
        (0, [head @ .., last]) if !head.is_empty() => format!("{} and {last}", head.join(", ")),
        (0, _) => items.concat(),
        (more, _) => format!("{} and {more} more", items.join(", ")),
    }
}

/// A name as messages show it.
fn quoted(name: impl fmt::Display) -> String {
    format!("`{name}`")
}
