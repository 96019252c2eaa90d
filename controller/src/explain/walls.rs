//! What both walls of a connection say, as the tables do, and who wrote it.

use std::net::IpAddr;

use bulkhead_dataplane::desired::{RuleId, Segment};
use bulkhead_ebpf::abi::{Action, Direction, Mode};

use super::{Party, Question, Verdict, workload};
use crate::{
    compile::Met,
    diagnostic::{Diagnostic, Diagnostics},
    guard,
    judge::{Judges, Ruling, Says, Walls},
    model::{Model, Rule, Workload},
    workloads::WorkloadName,
};

/// What the caller's and the callee's wall say.
pub(super) struct Found<'a> {
    pub(super) egress: Verdict<'a>,
    pub(super) ingress: Verdict<'a>,
    /// The same as if what is audited were enforced.
    pub(super) would_be: [Verdict<'a>; 2],
    pub(super) passed: Vec<&'a guard::Rule>,
}

/// A side of a connection by one of its addresses.
#[derive(Clone, Copy)]
struct End<'a> {
    met: Met<'a>,
    /// Overlay and family, where it is known by which address it is met.
    at: Option<(Option<Segment>, bool)>,
}

/// Asks both walls. Of several pairs of addresses that can meet, one that may is told of, if there is any.
pub(super) fn ask<'a>(judges: &Judges<'a>, question: &Question<'a>, now: u64) -> Result<Found<'a>, Diagnostics> {
    let model = judges.model();
    let [from, to] = [question.from, question.to].map(|party| ends(model, party));
    let all = || from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    let mut pairs: Vec<_> = all().filter(|(from, to)| from.meets(to)).collect();
    if pairs.is_empty() {
        pairs = all().collect();
    }
    let mut first = None;
    for (from, to) in pairs {
        let found = pair(judges, question, [from, to], now)?;
        if found.egress.allows() && found.ingress.allows() {
            return Ok(found);
        }
        first.get_or_insert(found);
    }
    first.ok_or_else(|| Diagnostic::nowhere("nobody is asked about").into())
}

fn pair<'a>(
    judges: &Judges<'a>,
    question: &Question<'a>,
    [from, to]: [End<'a>; 2],
    now: u64,
) -> Result<Found<'a>, Diagnostics> {
    let mut passed = Vec::new();
    // As it is, and as if what is audited were enforced.
    let mut wall = |direction| {
        let (own, peer) = if direction == Direction::Egress { (from, to) } else { (to, from) };
        let Met::Workload(name, subject, _) = own.met else { return Ok([Verdict::Open, Verdict::Open]) };
        if matches!(subject.mode, Mode::Quarantine | Mode::Pending) {
            return Ok([Verdict::Quarantined(&subject.place), Verdict::Quarantined(&subject.place)]);
        }
        let walls = judges.walls(name, subject, now)?;
        let row = walls.row(judges.model(), peer.met);
        let [now, would_be] = [false, true].map(|audit| {
            let ruling = walls.ask(direction, (question.class, question.value), &row, audit);
            (Wall { model: judges.model(), name, subject, walls: &walls, direction, audit }, ruling)
        });
        for rule in &now.1.passed {
            passed.push(now.0.pass(*rule)?);
        }
        Ok::<_, Diagnostics>([now.0.verdict(&now.1)?, would_be.0.verdict(&would_be.1)?])
    };
    let [egress, would_send] = wall(Direction::Egress)?;
    let [ingress, would_receive] = wall(Direction::Ingress)?;
    Ok(Found { egress, ingress, would_be: [would_send, would_receive], passed })
}

/// Addresses by which a party is met; never none.
fn ends<'a>(model: &'a Model, party: Party<'a>) -> Vec<End<'a>> {
    let node = |address: IpAddr| End { met: Met::Node(address), at: Some((None, address.is_ipv6())) };
    match (workload(model, party), party) {
        (Some((name, workload)), _) if workload.host => {
            let addresses = model.nodes.get(&*workload.node).into_iter().flat_map(|node| &node.addresses);
            let ends: Vec<_> = addresses.map(|&address| node(address)).collect();
            if ends.is_empty() { vec![End { met: Met::Workload(name, workload, None), at: None }] } else { ends }
        }
        (Some((name, workload)), _) => {
            let asked = |address: &IpAddr| !matches!(party, Party::Address(asked) if asked != *address);
            let known = workload.endpoints.iter().filter(|endpoint| !endpoint.placeholder);
            let known =
                known.flat_map(|endpoint| endpoint.addresses.iter().map(|address| (endpoint.segment, *address)));
            let ends: Vec<_> = known
                .filter(|(_, address)| asked(address))
                .map(|(segment, address)| End {
                    met: Met::Workload(name, workload, Some(address)),
                    at: Some((Some(segment), address.is_ipv6())),
                })
                .collect();
            if ends.is_empty() { vec![End { met: Met::Workload(name, workload, None), at: None }] } else { ends }
        }
        (None, Party::Address(address)) if model.nodes.values().any(|node| node.addresses.contains(&address)) => {
            vec![node(address)]
        }
        (None, Party::Address(address)) => {
            vec![End { met: Met::Outside(address), at: Some((None, address.is_ipv6())) }]
        }
        (None, Party::Workload(_)) => Vec::new(),
    }
}

impl End<'_> {
    /// Whether packets can go between them.
    fn meets(&self, other: &Self) -> bool {
        let (Some((one, v6)), Some((another, other_v6))) = (self.at, other.at) else { return true };
        v6 == other_v6 && one.zip(another).is_none_or(|(one, another)| one == another)
    }
}

/// A wall that has been asked.
struct Wall<'w, 'a> {
    model: &'a Model,
    name: &'a WorkloadName,
    subject: &'a Workload,
    walls: &'w Walls,
    direction: Direction,
    /// As if what is audited were enforced.
    audit: bool,
}

impl<'a> Wall<'_, 'a> {
    fn verdict(&self, ruling: &Ruling) -> Result<Verdict<'a>, Diagnostics> {
        let says = ruling.rule.and_then(|rule| self.says(rule));
        match (says, ruling.allow) {
            (Some(Says::Nobody), true) => Ok(Verdict::Open),
            (Some(Says::Node), true) => Ok(Verdict::OwnNode),
            (Some(Says::Guard(_, rule)), true) if rule.action == Action::Allow => Ok(Verdict::Guarded(rule)),
            (Some(Says::Guard(_, rule)), false) if rule.action == Action::Deny => Ok(Verdict::Denied(rule)),
            (Some(Says::Rule(rule)), true) => Ok(Verdict::Allowed(rule)),
            (Some(Says::Isolated(by, _)), false) => {
                let rules = self.model.rules_of(self.subject, self.direction);
                let lets: Vec<&Rule> = rules.filter(|rule| self.audit || !rule.audit).collect();
                Ok(Verdict::Refused { by, lets })
            }
            _ => Err(self.contradiction(ruling.rule, if ruling.allow { "allowed" } else { "denied" })),
        }
    }

    /// The rule of a Guard that passes something on.
    fn pass(&self, rule: RuleId) -> Result<&'a guard::Rule, Diagnostics> {
        match self.says(rule) {
            Some(Says::Guard(_, says)) if says.action == Action::Pass => Ok(says),
            _ => Err(self.contradiction(Some(rule), "passed on")),
        }
    }

    fn says(&self, rule: RuleId) -> Option<Says<'a>> {
        Says::of(self.model, self.subject, self.direction, self.walls.rule(rule))
    }

    /// No story is better than a wrong one.
    fn contradiction(&self, rule: Option<RuleId>, what: &str) -> Diagnostics {
        let rule = rule.map_or("no rule", |rule| &self.walls.rule(rule).name);
        let message = format!("the tables of workload `{}` say {what} by `{rule}`, the policies do not", self.name);
        let error = Diagnostic::error(&self.subject.place, message);
        error.help("this is a defect of Bulkhead: please report it with these policies; the tables hold").into()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_ebpf::abi::Class;

    use super::*;
    use crate::{explain::Explainer, offline};

    fn example(with: &str) -> Model {
        let directory = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples");
        let text = std::fs::read_to_string(directory.join("shop-workloads.yaml")).unwrap();
        let home = tempfile::tempdir().unwrap();
        let workloads = home.path().join("shop-workloads.yaml");
        std::fs::write(&workloads, text.replacen("name: db-1", with, 1)).unwrap();
        offline::load(&[directory.join("shop.yaml"), workloads]).unwrap().model
    }

    fn name(name: &str) -> WorkloadName {
        WorkloadName::new("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn what_the_policies_do_not_say_is_not_told() {
        let model = example("name: db-1");
        let judges = Judges::new(&model);
        let (cart, db) = (name("cart-1"), name("db-1"));
        let [caller, subject] = [&cart, &db].map(|name| &model.workloads[name]);
        let walls = judges.walls(&db, subject, 0).unwrap();
        let direction = Direction::Ingress;
        let row = walls.row(&model, Met::Workload(&cart, caller, caller.addresses().next()));
        let wall = Wall { model: &model, name: &db, subject, walls: &walls, direction, audit: false };
        for (port, allow) in [(5432, true), (22, false)] {
            let ruling = walls.ask(direction, (Class::Tcp, port), &row, false);
            assert_eq!(ruling.allow, allow);
            assert_eq!(wall.verdict(&ruling).unwrap().allows(), allow);
            for other in [Ruling { allow: !allow, ..ruling.clone() }, Ruling { rule: None, ..ruling.clone() }] {
                let found = wall.verdict(&other).unwrap_err().to_string();
                assert!(found.contains("the policies do not"), "{found}");
            }
            assert!(wall.pass(ruling.rule.unwrap()).is_err());
        }
    }

    #[test]
    fn nobody_calls_who_is_in_quarantine() {
        let model = example("name: db-1\n    mode: quarantine");
        let (cart, db) = (name("cart-1"), name("db-1"));
        let question =
            Question { from: Party::Workload(&cart), to: Party::Workload(&db), class: Class::Tcp, value: 5432 };
        let answer = Explainer::new(&model).explain(question, 0).unwrap();
        assert!(!answer.allowed() && answer.egress.allows());
        let text = answer.text(&model);
        assert!(text.starts_with("BLOCKED cart -> db 5432/tcp  at db's ingress: db is in quarantine ("), "{text}");
        assert!(answer.report(&model).contains("ingress of shop/db-1: denied, it is in quarantine ("));
    }
}
