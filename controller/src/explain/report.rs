//! An explanation at length: each wall with what decides it, and what is missing.

use bulkhead_ebpf::abi::Direction;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Explanation, Mixed, Party, Verdict, near::near, some, target, workload};
use crate::{
    compile::NODE_REACHES,
    model::{Isolation, Model, ServiceName},
    ports::point,
};

/// Rules that are shown when something is blocked.
const NEAR: usize = 5;

/// An explanation for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explained {
    /// Who calls.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// About what: `5432/tcp`.
    pub port: String,
    /// Whether it is allowed.
    pub allow: bool,
    /// Whether it would be if what is audited were enforced.
    pub would_allow: bool,
    /// The caller's wall.
    pub egress: Side,
    /// The callee's wall.
    pub ingress: Side,
    /// Rules that passed it on to the next tier.
    pub passed_on_by: Vec<String>,
    /// Of what is blocked the rules that come nearest.
    pub nearest: Vec<Nearest>,
    /// The same at length for people.
    pub report: String,
}

/// What a wall says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Side {
    /// Whether it lets it through.
    pub allow: bool,
    /// Why, in words.
    pub because: String,
    /// Name of the deciding rule.
    pub rule: Option<String>,
    /// Where that is written, `file:line`.
    pub place: Option<String>,
}

/// A rule that would allow it but for one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nearest {
    /// Its name.
    pub rule: String,
    /// Where it is written, `file:line`.
    pub place: String,
    /// What it lacks.
    pub lacks: String,
}

impl<'a> Explanation<'a> {
    /// The answer in several lines. The model is the one that was asked.
    #[must_use]
    pub fn report(&self, model: &'a Model) -> String {
        let question = self.question;
        let verdict = if self.allowed() { "ALLOWED" } else { "BLOCKED" };
        let asked = point(question.class, question.value);
        let mut text = format!("{verdict}  {} -> {}  {asked}\n\n", question.from, question.to);
        for (side, direction, own, verdict) in [
            ("egress ", Direction::Egress, question.from, &self.egress),
            ("ingress", Direction::Ingress, question.to, &self.ingress),
        ] {
            line(&mut text, &format!("{side} of {own}: {}", wall(verdict, own, model)));
            if let Verdict::Refused { by, lets } = verdict {
                let isolating = match workload(model, own) {
                    Some((_, workload)) => model.isolations(workload, direction),
                    None => vec![*by],
                };
                for isolation in isolating.iter().filter(|isolation| !isolation.audit()) {
                    line(&mut text, &format!("    isolated by {isolation} ({})", isolation.place().origin()));
                }
                let targets: Vec<_> = lets.iter().map(|rule| target(rule, by.namespace(), model)).collect();
                let verb = if direction == Direction::Egress { "it may call" } else { "it accepts" };
                line(&mut text, &format!("    {verb} {}", some(targets)));
            }
        }
        if let Some(Mixed { address, backends, shut }) = &self.mixed {
            let names = some(shut.iter().map(ToString::to_string).collect());
            let of = format!("{} of the {backends} backends of {address}", shut.len());
            line(&mut text, &format!("blocked as often as chance leads there: {of}: {names}"));
        }
        if let Some(every) = &self.every {
            line(&mut text, every);
        }
        for rule in &self.passed {
            line(&mut text, &format!("passed on by {} ({})", rule.name, rule.place.origin()));
        }
        if let Some(why) = self.would_block(model) {
            line(&mut text, &format!("audit: would be blocked {why}"));
        } else if !self.allowed() && self.would_be_allowed() {
            line(&mut text, "audit: would be allowed if what is audited were enforced");
        }
        let half = self.half(model);
        if let Some(half) = &half {
            line(&mut text, half);
        }
        self.near(&mut text, model, half.is_some());
        text
    }

    /// The answer for programs.
    #[must_use]
    pub fn json(&self, model: &'a Model) -> Explained {
        let side = |verdict: &Verdict<'_>, own| {
            let decider = verdict.decider();
            Side {
                allow: verdict.allows(),
                because: wall(verdict, own, model),
                rule: decider.map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty()),
                place: decider.map(|(_, place)| place.origin()),
            }
        };
        let near = || {
            near(model, &self.question, NEAR).into_iter().map(|lack| Nearest {
                rule: lack.rule.named.name.clone(),
                place: lack.rule.place.origin(),
                lacks: lack.lacks.clone(),
            })
        };
        Explained {
            from: self.question.from.to_string(),
            to: self.question.to.to_string(),
            port: point(self.question.class, self.question.value),
            allow: self.allowed(),
            would_allow: self.would_be_allowed(),
            egress: side(&self.egress, self.question.from),
            ingress: side(&self.ingress, self.question.to),
            passed_on_by: self.passed.iter().map(|rule| rule.name.clone()).collect(),
            nearest: if self.allowed() { Vec::new() } else { near().collect() },
            report: self.report(model),
        }
    }

    /// The other half of a call of which one side has opened its wall.
    fn half(&self, model: &Model) -> Option<String> {
        let opened = |verdict: &Verdict<'_>| matches!(verdict, Verdict::Allowed(_));
        let service = |party| -> Option<ServiceName> {
            let (name, workload) = workload(model, party)?;
            let own = workload.services.first().cloned();
            Some(own.unwrap_or(ServiceName::new(name.namespace.clone(), name.name.clone())))
        };
        let (from, to) = (service(self.question.from)?, service(self.question.to)?);
        let ports = point(self.question.class, self.question.value);
        let ports = ports.strip_suffix("/tcp").unwrap_or(&ports);
        // What would open the wall that is shut, in the words of who has put it up.
        let wants = |by: &Isolation<'_>, list: &str, field: &str, peer: &ServiceName| match by {
            Isolation::Service(..) => format!("it wants `{list}: [{peer}:{ports}]`"),
            Isolation::Policy(_) => format!("it wants a NetworkPolicy with `{field}` {peer} on {ports}"),
        };
        let (place, missing) = match (&self.egress, &self.ingress) {
            (egress, Verdict::Refused { by, .. }) if opened(egress) => {
                (egress.decider()?.1, format!("{to} does not accept it: {}", wants(by, "accepts", "from", &from)))
            }
            (Verdict::Refused { by, .. }, ingress) if opened(ingress) => {
                (ingress.decider()?.1, format!("{from} may not call it: {}", wants(by, "calls", "to", &to)))
            }
            _ => return None,
        };
        let across =
            if from.namespace == to.namespace { "" } else { " (across namespaces each side opens its own wall)" };
        Some(format!("half of the call is there ({}), but {missing}{across}", place.origin()))
    }

    /// Rules that come near; where `told`, what is missing was said already.
    fn near(&self, text: &mut String, model: &'a Model, told: bool) {
        let refused = |verdict: &Verdict<'_>| matches!(verdict, Verdict::Refused { .. });
        if !refused(&self.egress) && !refused(&self.ingress) {
            return;
        }
        let near = near(model, &self.question, NEAR);
        if near.is_empty() {
            if !told {
                line(text, "no rule lacks only one thing");
            }
            return;
        }
        line(text, "nearest rules, and what each lacks:");
        for lack in near {
            line(text, &format!("    {}  {}", lack.rule.place.origin(), lack.rule.named.name));
            line(text, &format!("        {}", lack.lacks));
        }
    }
}

/// What one wall says.
fn wall(verdict: &Verdict<'_>, own: Party<'_>, model: &Model) -> String {
    match verdict {
        Verdict::Open if workload(model, own).is_none() => "no wall, it is no workload".to_owned(),
        Verdict::Open => "allowed, nothing isolates it".to_owned(),
        Verdict::OwnNode => format!("allowed, a {NODE_REACHES}"),
        Verdict::Guarded(rule) => format!("allowed by {} ({})", rule.name, rule.place.origin()),
        Verdict::Allowed(rule) => format!("allowed by {} ({})", rule.named.name, rule.place.origin()),
        Verdict::Denied(rule) => format!("denied by {} ({})", rule.name, rule.place.origin()),
        Verdict::Refused { .. } => "denied, no rule allows it".to_owned(),
        Verdict::Quarantined(place) => format!("denied, it is in quarantine ({})", place.origin()),
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
