//! What was tried, what should come of it, and what came.

use crate::{
    calls::Answer,
    show::{self, BAD, GOOD},
};

/// The score of a run.
#[derive(Debug, Default)]
pub(crate) struct Score {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    expected: String,
    seen: String,
}

impl Row {
    fn good(&self) -> bool {
        self.expected == self.seen
    }
}

impl Score {
    /// Notes something. It is good if what was seen is what was expected.
    pub(crate) fn note(&mut self, what: impl Into<String>, expected: impl Into<String>, seen: impl Into<String>) {
        self.rows.push(Row { what: what.into(), expected: expected.into(), seen: seen.into() });
    }

    /// Notes a fact that has only two sides.
    pub(crate) fn fact(&mut self, what: &str, expected: &str, holds: bool) {
        self.note(what, expected, if holds { expected.to_owned() } else { format!("NOT {expected}") });
    }

    /// Notes calls: how many the policy allows and blocks, and how many the wire did.
    pub(crate) fn calls(&mut self, what: &str, answers: &[Answer]) {
        let tell = |allowed: usize| match (allowed, answers.len() - allowed) {
            (allowed, 0) => format!("{allowed} allowed"),
            (0, blocked) => format!("{blocked} blocked"),
            (allowed, blocked) => format!("{allowed} allowed, {blocked} blocked"),
        };
        let expected = tell(answers.iter().filter(|answer| answer.expected.allowed).count());
        let differing = answers.iter().filter(|answer| !answer.agrees()).count();
        let seen = if differing == 0 { expected.clone() } else { format!("{differing} DIFFER FROM THE POLICY") };
        self.note(format!("{} {what}", answers.len()), expected, seen);
    }

    /// Whether everything went as expected.
    pub(crate) fn good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::good)
    }

    /// Draws it.
    pub(crate) fn draw(&self) {
        let mut rows = vec![["tried", "expected", "seen", ""].map(str::to_owned).to_vec()];
        for row in &self.rows {
            let mark = if row.good() { GOOD } else { BAD };
            rows.push(vec![row.what.clone(), row.expected.clone(), row.seen.clone(), mark.to_owned()]);
        }
        show::table(&rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_expected_is_good() {
        let mut score = Score::default();
        assert!(!score.good(), "nothing tried is nothing shown");
        score.note("a call", "allowed", "allowed");
        assert!(score.good());
        score.fact("the connection", "cut", false);
        assert!(!score.good());
    }
}
