//! Rules that would almost have let a connection through, and the one thing that each lacks.

use std::collections::BTreeSet;

use bulkhead_ebpf::abi::Direction;

use super::{Party, Question, covers, matches, short, stretches, workload};
use crate::{
    labels::Selector,
    model::{Model, Peer, Rule, Scope, ServiceName, Wall, Workload},
    workloads::WorkloadName,
};

/// A rule that lets through everything but one thing of what was asked.
#[derive(Clone, Debug)]
pub struct Lack<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// What is missing, as a sentence.
    pub lacks: String,
    /// Lower is nearer.
    rank: u8,
}

/// A condition of a rule that the connection does not fulfil.
enum Missing {
    /// Another port, or another protocol.
    Port,
    /// The side that the wall belongs to.
    Owner,
    /// The other side.
    Peer,
}

/// Rules of the walls in question that lack one thing, nearest first, at most so many.
#[must_use]
pub fn near<'a>(model: &'a Model, question: &Question<'_>, most: usize) -> Vec<Lack<'a>> {
    let enforced = model.rules.iter().filter(|rule| !rule.audit);
    let mut found: Vec<Lack<'a>> = enforced.filter_map(|rule| lack(model, rule, question)).collect();
    found.sort_by_key(|lack| lack.rank);
    // One line that opens both ends, or lists several peers, is several rules of one name.
    let mut seen = BTreeSet::new();
    found.retain(|lack| seen.insert(&lack.rule.named.name));
    found.truncate(most);
    found
}

fn lack<'a>(model: &'a Model, rule: &'a Rule, question: &Question<'_>) -> Option<Lack<'a>> {
    let (own, peer) = sides(rule.direction, question);
    let (_, subject) = workload(model, own).unzip();
    let node = subject.map_or("", |subject| &*subject.node);
    let owner = subject.is_some_and(|subject| belongs(rule, subject));
    let other = matches(model, &rule.peer, peer, node);
    let port = covers(model, &rule.ports, question);
    let missing = match (owner, other, port) {
        (true, true, false) => Missing::Port,
        (false, true, true) => Missing::Owner,
        (true, false, true) => Missing::Peer,
        (false, false, true) => return reversed(model, rule, question),
        _ => return None,
    };
    let (rank, lacks) = match missing {
        Missing::Port => (0, ports(model, rule, question)?),
        Missing::Peer => (1, peers(model, rule, peer)?),
        Missing::Owner => (2, owners(model, rule, own)?),
    };
    Some(Lack { rule, lacks, rank })
}

/// Whose wall it is, and the other side.
const fn sides<'a>(direction: Direction, question: &Question<'a>) -> (Party<'a>, Party<'a>) {
    match direction {
        Direction::Egress => (question.from, question.to),
        Direction::Ingress => (question.to, question.from),
    }
}

fn belongs(rule: &Rule, workload: &Workload) -> bool {
    match &rule.wall {
        Wall::Service(service) => workload.services.contains(service),
        Wall::Policy(policy) => workload.policies.contains(policy),
        Wall::Resolvers | Wall::Backends(_) => false,
    }
}

/// A rule that would let it through the other way round.
fn reversed<'a>(model: &'a Model, rule: &'a Rule, question: &Question<'_>) -> Option<Lack<'a>> {
    let (peer, own) = sides(rule.direction, question);
    let (_, subject) = workload(model, own)?;
    let fits = belongs(rule, subject) && matches(model, &rule.peer, peer, &subject.node);
    let way = if rule.direction == Direction::Egress { "calls from" } else { "calls to" };
    fits.then(|| Lack {
        rule,
        lacks: format!("direction: it is about {way} {own}, not the other way round; replies pass without a rule"),
        rank: 3,
    })
}

fn ports(model: &Model, rule: &Rule, question: &Question<'_>) -> Option<String> {
    let covering = stretches(model, &rule.ports, question.to);
    if covering.is_empty() {
        return Some(format!("port: {} has no port that is called `{}`", question.to, rule.ports));
    }
    let what = if covering.iter().any(|stretch| stretch.class == question.class) { "port" } else { "protocol" };
    Some(format!("{what}: it is about {}", rule.ports))
}

fn peers(model: &Model, rule: &Rule, peer: Party<'_>) -> Option<String> {
    let side = if rule.direction == Direction::Egress { "callee" } else { "caller" };
    let home = match &rule.wall {
        Wall::Service(name) | Wall::Policy(name) | Wall::Backends(name) => name.namespace.as_str(),
        Wall::Resolvers => "",
    };
    let who = workload(model, peer);
    Some(match (&*rule.peer, who) {
        (Peer::Workloads { namespaces, labels }, Some((name, workload))) => {
            let namespace = namespaces.holds(model, &name.namespace);
            match (namespace, labels.matches(&workload.labels)) {
                (false, true) => format!("namespace of the {side}: {}", scope(model, namespaces, &name.namespace)),
                (true, false) => format!("label of the {side}: {}", labelled(labels, &workload.labels, peer)),
                _ => return None,
            }
        }
        (other, _) => format!("{side}: it is about {}", short(other, home, model)),
    })
}

fn scope(model: &Model, scope: &Scope, namespace: &str) -> String {
    match scope {
        Scope::Named(name) => {
            format!("{namespace} is not {name}; without a namespaceSelector a rule is about its own")
        }
        Scope::Labelled(selector) => labelled(selector, &model.namespace(namespace), namespace),
    }
}

/// Which requirement labels do not fulfil.
fn labelled(selector: &Selector, labels: &crate::labels::Labels, who: impl std::fmt::Display) -> String {
    let failing = selector.requirements().find(|requirement| !requirement.holds(labels));
    let Some(requirement) = failing else { return format!("{who} has the labels") };
    match labels.get(requirement.label()) {
        Some(value) => format!("{who} has {}={value}, {requirement} is wanted", requirement.label()),
        None => format!("{who} has no `{}`, {requirement} is wanted", requirement.label()),
    }
}

fn owners(model: &Model, rule: &Rule, own: Party<'_>) -> Option<String> {
    let side = if rule.direction == Direction::Egress { "caller" } else { "callee" };
    let (name, workload): (&WorkloadName, &Workload) = workload(model, own)?;
    let in_namespace = |wall: &ServiceName| wall.namespace == name.namespace;
    match &rule.wall {
        Wall::Service(service) if in_namespace(service) => {
            let wanted = Selector::equal(&model.services.get(service)?.select);
            Some(format!("{side}: it is about {service}; {}", labelled(&wanted, &workload.labels, own)))
        }
        Wall::Policy(policy) if in_namespace(policy) => {
            let selector = &model.network_policies.get(policy)?.pods;
            Some(format!("label of the {side}: {}", labelled(selector, &workload.labels, own)))
        }
        // Another namespace's policy is never about this one.
        _ => None,
    }
}
