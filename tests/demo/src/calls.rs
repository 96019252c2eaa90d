//! Calls: made on the wire, explained from the policy, and compared.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use bulkhead_controller::{
    explain::{Explanation, Party, Question, Verdict, explain, parse_point},
    model::Model,
};
use bulkhead_topology::traffic::Outcome;

use crate::{
    shop::{self, Shop},
    show::{self, BAD, GOOD, SHUT},
};

/// For what must happen: long enough for a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not happen.
pub(crate) const BRIEF: Duration = Duration::from_millis(600);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Tcp(u16),
    Ping,
}

/// Who calls whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) ask: Ask,
}

impl Call {
    pub(crate) const fn tcp(from: &'static str, to: &'static str, port: u16) -> Self {
        Self { from, to, ask: Ask::Tcp(port) }
    }
}

/// What should become of a call.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) allowed: bool,
    /// `ALLOWED` or `BLOCKED`, who, what, and why; a line of text.
    pub(crate) text: String,
    /// What would become of it if what is audited were enforced.
    pub(crate) would_be_allowed: bool,
    /// Line of the policy that decides; none where nothing is isolated.
    line: Option<u32>,
}

impl Expected {
    /// Without a policy everything is allowed.
    fn unguarded() -> Self {
        Self { allowed: true, text: String::new(), would_be_allowed: true, line: None }
    }

    fn by(model: &Model, explanation: &Explanation<'_>) -> Self {
        let line = |verdict: &Verdict<'_>| verdict.decider().map(|(_, place)| place.line);
        // The wall that decides: the caller's own, unless it lets the call through.
        let walls = if explanation.egress.allows() && !explanation.ingress.allows() {
            [&explanation.ingress, &explanation.egress]
        } else {
            [&explanation.egress, &explanation.ingress]
        };
        Self {
            allowed: explanation.allowed(),
            text: explanation.text(model),
            would_be_allowed: explanation.would_be_allowed(),
            line: walls.into_iter().find_map(line),
        }
    }
}

/// What became of a call.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) call: Call,
    pub(crate) expected: Expected,
    /// Over IPv4 and over IPv6.
    outcomes: [Outcome; 2],
}

impl Answer {
    /// Whether the wire did as the policy says, in both families. A blocked call gets no answer at all: also no reset and no ICMP.
    pub(crate) fn agrees(&self) -> bool {
        let wanted = if self.expected.allowed { Outcome::Answered } else { Outcome::TimedOut };
        self.outcomes == [wanted; 2]
    }

    /// Says what became of it and why; or, loudly, that it is not what the policy says.
    pub(crate) fn tell(&self) {
        show::verdict(&self.expected.text);
        self.warn();
    }

    /// The same without what else is worth knowing about a blocked call.
    pub(crate) fn tell_briefly(&self) {
        show::verdict(self.expected.text.split("; ").next().unwrap_or_default());
        self.warn();
    }

    fn warn(&self) {
        if !self.agrees() {
            let [v4, v6] = self.outcomes;
            let Call { from, to, ask } = self.call;
            show::alarm(&format!("but on the wire {from} -> {to} {ask:?}: IPv4 {v4:?}, IPv6 {v6:?}"));
        }
    }

    fn cell(&self) -> String {
        let mark = match (self.agrees(), self.expected.allowed) {
            (false, _) => BAD,
            (true, true) => GOOD,
            (true, false) => SHUT,
        };
        self.expected.line.map_or_else(|| mark.to_owned(), |line| format!("{mark} :{line}"))
    }
}

/// Makes calls without a guard: each should be answered.
pub(crate) fn unguarded(shop: &Shop, calls: &[Call]) -> Result<Vec<Answer>> {
    make(shop, calls, |_| Ok(Expected::unguarded()))
}

/// Makes calls under the policy that is in force.
pub(crate) fn guarded(shop: &Shop, calls: &[Call]) -> Result<Vec<Answer>> {
    let model = shop.model()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    make(shop, calls, |call| {
        let [from, to] = [call.from, call.to].map(|name| shop.party(name));
        let (class, value) = match call.ask {
            Ask::Tcp(port) => parse_point(&port.to_string()),
            Ask::Ping => parse_point("echo/icmp"),
        }
        .context("a point on an axis of ports")?;
        fn party<'a>(party: &'a shop::Party<'_>) -> Party<'a> {
            party.workload.as_ref().map_or(Party::Address(party.addresses[0]), Party::Workload)
        }
        let question = Question { from: party(&from), to: party(&to), class, value };
        Ok(Expected::by(&model, &explain(&model, question, now)?))
    })
}

/// All at once: what is blocked takes its time.
fn make(shop: &Shop, calls: &[Call], expect: impl Fn(&Call) -> Result<Expected>) -> Result<Vec<Answer>> {
    shop.stop.check()?;
    let expected: Vec<Expected> = calls.iter().map(expect).collect::<Result<_>>()?;
    let outcomes: Vec<[Result<Outcome>; 2]> = thread::scope(|scope| {
        let spawn = |(call, expected): (&Call, &Expected)| {
            let deadline = if expected.allowed { PATIENCE } else { BRIEF };
            [0, 1].map(|family| {
                let (from, to, ask) = (shop.party(call.from), shop.party(call.to), call.ask);
                scope.spawn(move || probe(&from, &to, ask, family, deadline))
            })
        };
        let probes: Vec<_> = calls.iter().zip(&expected).map(spawn).collect();
        probes.into_iter().map(|pair| pair.map(|probe| probe.join().expect("a probe does not panic"))).collect()
    });
    let answers = calls.iter().zip(expected).zip(outcomes);
    answers.map(|((&call, expected), [v4, v6])| Ok(Answer { call, expected, outcomes: [v4?, v6?] })).collect()
}

fn probe(from: &shop::Party<'_>, to: &shop::Party<'_>, ask: Ask, family: usize, deadline: Duration) -> Result<Outcome> {
    let client = from.netns.client().source(from.addresses[family]).deadline(deadline);
    let address = to.addresses[family];
    Ok(match ask {
        Ask::Tcp(port) => client.tcp((address, port).into())?,
        Ask::Ping => client.ping(address)?,
    })
}

/// Those who call.
const CALLERS: [&str; 6] = ["web", "cart", "payments", "db", "backup", "customer"];
/// Those who are called, on the ports on which they listen.
const CALLEES: [(&str, u16); 5] = [("web", 8443), ("cart", 8080), ("payments", 9090), ("db", 5432), ("stripe", 443)];

/// Everybody calls everybody. (Customer and stripe are both on the third host: what they say to each other passes no node.)
pub(crate) fn everybody() -> Vec<Call> {
    let pairs = CALLERS.into_iter().flat_map(|from| CALLEES.map(|(to, port)| Call::tcp(from, to, port)));
    pairs.filter(|call| call.from != call.to && (call.from, call.to) != ("customer", "stripe")).collect()
}

/// Callers down, callees across.
pub(crate) fn table(answers: &[Answer]) {
    let mut rows = vec![vec!["from \\ to".to_owned()]];
    rows[0].extend(CALLEES.map(|(to, port)| format!("{to}:{port}")));
    for from in CALLERS {
        let mut row = vec![from.to_owned()];
        row.extend(CALLEES.map(|(to, _)| {
            let found = answers.iter().find(|answer| (answer.call.from, answer.call.to) == (from, to));
            found.map_or_else(|| "·".to_owned(), Answer::cell)
        }));
        rows.push(row);
    }
    show::table(&rows);
}

#[cfg(test)]
mod tests {
    use std::iter::successors;

    use super::*;

    /// The next of all outcomes; one that is added must be put in here.
    fn next(outcome: &Outcome) -> Option<Outcome> {
        match outcome {
            Outcome::Answered => Some(Outcome::TimedOut),
            Outcome::TimedOut => Some(Outcome::Refused),
            Outcome::Refused => Some(Outcome::Reset),
            Outcome::Reset => Some(Outcome::Unreachable),
            Outcome::Unreachable => None,
        }
    }

    #[test]
    fn a_disagreement_between_wire_and_explanation_is_never_good() {
        let outcomes: Vec<Outcome> = successors(Some(Outcome::Answered), next).collect();
        for (allowed, wanted, mark) in [(true, Outcome::Answered, GOOD), (false, Outcome::TimedOut, SHUT)] {
            for &v4 in &outcomes {
                for &v6 in &outcomes {
                    let answer = Answer {
                        call: Call::tcp("web", "cart", 8080),
                        expected: Expected { line: Some(7), allowed, ..Expected::unguarded() },
                        outcomes: [v4, v6],
                    };
                    let agrees = v4 == wanted && v6 == wanted;
                    assert_eq!(answer.agrees(), agrees, "{answer:?}");
                    assert_eq!(answer.cell(), format!("{} :7", if agrees { mark } else { BAD }), "{answer:?}");
                }
            }
        }
    }
}
