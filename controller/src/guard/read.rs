//! From what is written to what is meant.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use bulkhead_ebpf::abi::{Action, Direction};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Guard, Kind, Rule, Subjects, Tier, Whom};
use crate::{
    diagnostic::{Diagnostic, Place, suggest},
    intent::{Cidrs, Entity, ExternalFields, valid_name},
    labels::{Requirement, Selector},
    model::{Peer, ServiceName},
    policy::Reader,
    ports::Ports,
    yaml::{Entries, OneOrMany},
};

/// What a peer may be called besides entities, externals and services.
const WORDS: [&str; 3] = ["any", "other", "same"];

/// Fields of a document, as they are written.
pub(crate) struct Fields {
    pub(crate) name: Spanned<String>,
    pub(crate) priority: Spanned<String>,
    pub(crate) mode: Option<Spanned<String>>,
    pub(crate) subjects: Option<Spanned<SubjectFields>>,
    pub(crate) compare: Option<Spanned<String>>,
    pub(crate) external: Entries<ExternalFields>,
    pub(crate) rules: Spanned<Vec<Spanned<RuleFields>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubjectFields {
    pub(crate) namespaces: Option<Spanned<BTreeMap<String, String>>>,
    pub(crate) services: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) workloads: Option<Spanned<BTreeMap<String, String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleFields {
    pub(crate) allow: Option<Spanned<MatchFields>>,
    pub(crate) deny: Option<Spanned<MatchFields>>,
    pub(crate) pass: Option<Spanned<MatchFields>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MatchFields {
    pub(crate) from: Option<OneOrMany>,
    pub(crate) to: Option<OneOrMany>,
    pub(crate) ports: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) mode: Option<Spanned<String>>,
    pub(crate) expires: Option<Spanned<String>>,
}

/// What rules of a document need to know of it.
struct Around {
    name: String,
    audit: bool,
    compare: bool,
    externals: BTreeMap<String, Cidrs>,
}

impl Reader<'_> {
    pub(crate) fn guard(&mut self, fields: Fields) -> Guard {
        let name = self.name(&fields.name, "a Guard");
        let priority = fields.priority.value.parse::<u32>().unwrap_or_else(|_| {
            self.error(
                &fields.priority,
                format!("`{}` is not a priority", fields.priority.value),
                format!("write a number from 0 to {}; lower is judged first", u32::MAX),
            );
            0
        });
        let audit = self.audit(fields.mode.as_ref());
        let subjects = fields.subjects.as_ref().map(|subjects| self.subjects(subjects)).unwrap_or_default();
        let mut externals = BTreeMap::new();
        for (name, fields) in &fields.external.0 {
            if WORDS.contains(&name.value.as_str()) {
                let message =
                    format!("`{}` has a meaning of its own and cannot be the name of an external", name.value);
                self.error(name, message, "choose another name");
            }
            let external = self.external(name, fields);
            externals.insert(external.name, external.cidrs);
        }
        if fields.rules.value.is_empty() {
            self.error(&fields.rules, format!("Guard `{name}` has no rules"), "write `- deny: { from: other }`");
        }
        if let Some(label) = fields.compare.as_ref().filter(|label| label.value.is_empty()) {
            self.error(label, "`compare` is empty", "write the label of namespaces that tells tenants from each other");
        }
        let around = Around { name: name.clone(), audit, compare: fields.compare.is_some(), externals };
        let mut rules = Vec::new();
        for written in &fields.rules.value {
            self.rule(&around, written, &mut rules);
        }
        Guard {
            kind: Kind::Guard,
            tier: Tier::Admin,
            name,
            place: self.at(&fields.name),
            priority,
            priority_place: self.at(&fields.priority),
            subjects,
            compare: fields.compare.map(|label| (label.value.clone(), self.at(&label))),
            rules,
        }
    }

    fn subjects(&mut self, written: &Spanned<SubjectFields>) -> Subjects {
        let SubjectFields { namespaces, services, workloads } = &written.value;
        if namespaces.is_none() && services.is_none() && workloads.is_none() {
            let help =
                "write `namespaces`, `services` or `workloads`, or leave `for` out: then it concerns every workload";
            self.error(written, "`for` is empty", help);
        }
        let mut labels = |written: Option<&Spanned<BTreeMap<String, String>>>, field| {
            let Some(written) = written else { return Selector::everybody() };
            if written.value.is_empty() {
                self.error(
                    written,
                    format!("`{field}` is empty"),
                    format!("write `{field}: {{ label: value }}`, or `label: any`; or leave it out"),
                );
            }
            let requirement = |(label, text): (&String, &String)| match text.as_str() {
                "any" => Requirement::Exists(label.clone()),
                value => Requirement::is(label, value),
            };
            written.value.iter().map(requirement).collect()
        };
        let namespaces = labels(namespaces.as_ref(), "namespaces");
        let workloads = labels(workloads.as_ref(), "workloads");
        let mut members = Vec::new();
        if let Some(services) = services {
            if services.value.is_empty() {
                self.error(services, "`services` is empty and would match nobody", "write `services: [shop/web]`");
            }
            for written in &services.value {
                match service(&written.value) {
                    Some(service) => members.push((service, self.at(written))),
                    None => self.error(
                        written,
                        format!("`{}` is not a service", written.value),
                        "write `namespace/service`, such as `shop/web`: a Guard has no namespace of its own",
                    ),
                }
            }
        }
        Subjects { place: Some(self.at(written)), namespaces, services: members, workloads }
    }

    fn rule(&mut self, around: &Around, written: &Spanned<RuleFields>, rules: &mut Vec<Rule>) {
        let RuleFields { allow, deny, pass } = &written.value;
        let actions: Vec<_> = [(Action::Allow, allow), (Action::Deny, deny), (Action::Pass, pass)]
            .into_iter()
            .filter_map(|(action, fields)| Some((action, fields.as_ref()?)))
            .collect();
        let [(action, fields)] = actions.as_slice() else {
            let message = format!("a rule has one of `allow`, `deny` and `pass`; this one has {}", actions.len());
            self.error(written, message, "write each as an item of its own: `- deny: { from: other }`");
            return;
        };
        let (action, MatchFields { from, to, ports, mode, expires }) = (*action, &fields.value);
        let (direction, peers) = match (from, to) {
            (Some(from), None) => (Direction::Ingress, from),
            (None, Some(to)) => (Direction::Egress, to),
            (from, _) => {
                let has = if from.is_some() { "both" } else { "none" };
                let help = "`from` is about traffic to whom the Guard concerns, `to` about traffic from them; write two rules for both";
                self.error(fields, format!("a rule has one of `from` and `to`; this one has {has}"), help);
                return;
            }
        };
        if peers.0.is_empty() {
            self.error(fields, "the rule has no peer and would match nobody", "write `from: other`, or `from: any`");
        }
        if let Some(enforce) = mode.as_ref().filter(|mode| around.audit && mode.value == "enforce") {
            let help = "remove one of the two; a rule that is enforced stands in a Guard that is enforced";
            self.error(enforce, "the document says `mode: audit`, its rule `mode: enforce`", help);
        }
        let audit = self.audit(mode.as_ref()) || around.audit;
        let expires = expires.as_ref().and_then(|expires| self.expires(expires));
        let common = ports.as_ref().map(|ports| self.ports(ports));
        for peer in &peers.0 {
            let Some((whom, text, own)) = self.peer(around, peer) else { continue };
            if let (Some(_), Some(ports)) = (&own, ports) {
                let message = format!("`{}` has a port, and its rule has `ports`", peer.value);
                self.found.push(
                    Diagnostic::error(&self.at(peer), message)
                        .note(&self.at(ports), "here")
                        .help("keep one of the two"),
                );
                continue;
            }
            let ports = own.map(|own| vec![own]).or_else(|| common.clone()).unwrap_or_else(|| vec![Ports::Any]);
            let verb = match action {
                Action::Allow => "allow",
                Action::Pass => "pass",
                Action::Deny | Action::Reject => "deny",
            };
            let side = if direction == Direction::Ingress { "from" } else { "to" };
            let mut name = format!("guard {}: {verb} {side} {text}", around.name);
            if !ports.contains(&Ports::Any) {
                let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                name.push_str(&format!(":{}", ports.join(",")));
            }
            let rule = Rule { name, place: self.at(peer), action, direction, peer: whom, ports, audit, expires };
            self.add(rule, rules);
        }
    }

    /// Adds a rule. What can never match is an error; else rules of one text have a number behind it.
    fn add(&mut self, mut rule: Rule, rules: &mut Vec<Rule>) {
        let of_text = |other: &&Rule| {
            other.name.strip_prefix(&rule.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
        };
        let same: Vec<_> = rules.iter().filter(of_text).collect();
        if let Some(first) = same.iter().find(|first| !first.audit && first.expires.is_none()) {
            let text = rule.name.rsplit_once(": ").map_or(rule.name.as_str(), |(_, text)| text);
            let error = Diagnostic::error(&rule.place, format!("`{text}` is written twice in one Guard"));
            self.found.push(
                error.note(&first.place, "first here, and the first that matches decides").help("keep one of the two"),
            );
            return;
        }
        if !same.is_empty() {
            rule.name = format!("{} ({})", rule.name, same.len() + 1);
        }
        rules.push(rule);
    }

    fn ports(&mut self, written: &Spanned<Vec<Spanned<String>>>) -> Vec<Ports> {
        if written.value.is_empty() {
            let help = "write `ports: [9100, 53/udp]`, or leave it out for every port and protocol";
            self.error(written, "`ports` is empty and would match nothing", help);
        }
        let mut ports: Vec<(Ports, Place)> = Vec::new();
        for text in &written.value {
            match Ports::parse(&text.value) {
                Err((message, help)) => self.error(text, message, help),
                Ok(port) => match ports.iter().find(|(known, _)| *known == port) {
                    Some((_, first)) => {
                        let error = Diagnostic::error(&self.at(text), format!("`{port}` is written twice in one list"));
                        self.found.push(error.note(first, "first here").help("keep one of the two"));
                    }
                    None => ports.push((port, self.at(text))),
                },
            }
        }
        ports.into_iter().map(|(port, _)| port).collect()
    }

    /// A peer, how it is called, and the port that is written behind it.
    fn peer<'a>(&mut self, around: &Around, written: &'a Spanned<String>) -> Option<(Whom, &'a str, Option<Ports>)> {
        if self.address(written) {
            return None;
        }
        let (name, port) =
            written.value.split_once(':').map_or((written.value.as_str(), None), |(name, port)| (name, Some(port)));
        let port = match port.map(Ports::parse).transpose() {
            Ok(port) => port,
            Err((message, help)) => {
                self.error(written, format!("`{}`: {message}", written.value), help);
                return None;
            }
        };
        let whom = match name {
            "same" | "other" if !around.compare => {
                let help = "write `compare: tenant` with the label of namespaces that tells tenants from each other";
                self.error(written, format!("`{name}` has no meaning: the Guard has no `compare`"), help);
                return None;
            }
            "same" => Whom::Same,
            "other" => Whom::Other,
            "any" => Whom::Is(Peer::Any),
            _ => {
                let known = Entity::parse(name)
                    .map(Peer::Entity)
                    .or_else(|| around.externals.get(name).cloned().map(Peer::Cidrs))
                    .or_else(|| service(name).map(Peer::Service));
                let Some(peer) = known else {
                    let names = WORDS.into_iter().chain(Entity::ALL.map(Entity::name));
                    let names: Vec<_> = names.chain(around.externals.keys().map(String::as_str)).collect();
                    let help = format!("{} (a service is written `namespace/service`)", suggest(name, names));
                    self.error(written, format!("`{name}` is no peer"), help);
                    return None;
                };
                Whom::Is(peer)
            }
        };
        Some((whom, name, port))
    }

    /// RFC 3339, as nanoseconds of Unix time.
    fn expires(&mut self, written: &Spanned<String>) -> Option<u64> {
        let end = time(&written.value);
        if end.is_none() {
            let help = "write `2027-01-31T12:00:00Z`, or with an offset `2027-01-31T13:00:00+01:00`; until 2554";
            self.error(written, format!("`{}` is not a time", written.value), help);
        }
        end
    }
}

/// `namespace/service`.
fn service(text: &str) -> Option<ServiceName> {
    let (namespace, name) = text.split_once('/')?;
    let valid = valid_name(namespace) && valid_name(name);
    valid.then(|| ServiceName::new(namespace.to_owned(), name.to_owned()))
}

fn time(text: &str) -> Option<u64> {
    // The parser below takes the 61st second, a point that no digit follows, and digits that it cannot keep.
    if text.get(17..19) == Some("60") {
        return None;
    }
    if let Some(fraction) = text.get("2027-01-31T12:00:00".len()..).and_then(|rest| rest.strip_prefix('.')) {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
    }
    let offset = || {
        let at = text.len().checked_sub("+00:00".len())?;
        let (local, offset) = (text.get(..at)?, text.get(at..)?);
        let (hours, minutes) = offset.get(1..)?.split_once(':')?;
        let number = |text: &str, below: u64| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten().filter(|&number| number < below)
        };
        let offset_by = Duration::from_secs(3600 * number(hours, 24)? + 60 * number(minutes, 60)?);
        let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
        // What is ahead of UTC reached the hour earlier.
        match offset.as_bytes()[0] {
            b'+' => local.checked_sub(offset_by),
            b'-' => local.checked_add(offset_by),
            _ => None,
        }
    };
    let time = if text.ends_with('Z') { humantime::parse_rfc3339(text).ok() } else { offset() }?;
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_offsets() {
        let noon = Some(1_801_396_800_000_000_000);
        for text in [
            "2027-01-31T12:00:00Z",
            "2027-01-31T13:30:00+01:30",
            "2027-01-31T12:00:00-00:00",
            "2027-01-30T23:00:00.000-13:00",
        ] {
            assert_eq!(time(text), noon, "{text}");
        }
        for wrong in [
            "",
            "2027-01-31",
            "2027-01-31T12:00:00",
            "2027-01-31 12:00:00Z",
            "2027-02-30T12:00:00Z",
            "2027-01-31T12:00:00.Z",
            "2027-01-31T12:00:00.+01:00",
            "2027-01-31T12:00:00.1234567891Z",
            "2027-01-31T12:00:60Z",
            "2027-01-31T12:00:00+1:00",
            "2027-01-31T12:00:00+24:00",
            "2027-01-31T12:00:00é0:00",
            "1969-12-31T23:59:59Z",
            "2700-01-01T00:00:00Z",
            "tomorrow",
        ] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }
}
