//! Why something is allowed or blocked, in the words and lines of those who wrote the policy.

pub mod near;
mod report;
mod translated;
mod walls;
mod who;

use std::{collections::BTreeSet, fmt, net::IpAddr};

use bulkhead_ebpf::abi::{Class, Direction};

pub use self::{
    report::{Explained, Nearest, Side},
    who::{Who, no_workload},
};
use crate::{
    compile::NODE_REACHES,
    diagnostic::{Diagnostics, Place},
    guard,
    intent::Entity,
    judge::Judges,
    model::{Isolation, METADATA, Model, Peer, Rule, ServiceName, Wall, Workload, holds, local_prefixes},
    ports::{Ports, Stretch, point},
    workloads::{Node, WorkloadName},
};

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party<'a> {
    /// A workload.
    Workload(&'a WorkloadName),
    /// An address that no workload has.
    Address(IpAddr),
}

/// What is asked: may `from` begin this with `to`?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// Who begins.
    pub from: Party<'a>,
    /// Who listens.
    pub to: Party<'a>,
    /// Class.
    pub class: Class,
    /// Point on its axis: destination port, type << 8 | code, or protocol.
    pub value: u16,
}

/// What one wall says.
#[derive(Clone, Debug)]
pub enum Verdict<'a> {
    /// No workload stands there, or nothing isolates it.
    Open,
    /// A node may reach the workloads that run on it.
    OwnNode,
    /// A rule of a Guard allows it.
    Guarded(&'a guard::Rule),
    /// A rule of a Guard denies it.
    Denied(&'a guard::Rule),
    /// A rule allows it.
    Allowed(&'a Rule),
    /// The workload is in quarantine: no rule is asked.
    Quarantined(&'a Place),
    /// No rule allows it.
    Refused {
        /// The first that isolates the workload.
        by: Isolation<'a>,
        /// What it lets through in this direction.
        lets: Vec<&'a Rule>,
    },
}

impl Verdict<'_> {
    /// Whether it lets the connection through.
    #[must_use]
    pub const fn allows(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Denied(_) | Self::Quarantined(_))
    }

    /// Name and place of the rule that decides; a refusal has only a place.
    #[must_use]
    pub fn decider(&self) -> Option<(&str, &Place)> {
        match self {
            Self::Open | Self::OwnNode => None,
            Self::Guarded(rule) | Self::Denied(rule) => Some((&rule.name, &rule.place)),
            Self::Allowed(rule) => Some((&rule.named.name, &rule.place)),
            Self::Refused { by, .. } => Some(("", by.place())),
            Self::Quarantined(place) => Some(("", place)),
        }
    }
}

/// A rule that would almost have allowed it.
#[derive(Clone, Debug)]
pub struct Near<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// In what the connection differs from it: caller, callee, port, protocol.
    pub differs: Vec<&'static str>,
}

/// The answer. Its text is one line.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    question: Question<'a>,
    names: [String; 2],
    /// What the caller's wall says.
    pub egress: Verdict<'a>,
    /// What the callee's wall says.
    pub ingress: Verdict<'a>,
    /// What the callers' and the callee's wall would say if what is audited were enforced.
    pub would_be: [Verdict<'a>; 2],
    /// Rules of Guards that leave the decision to what comes after their Guard.
    pub passed: Vec<&'a guard::Rule>,
    /// The nearest rule when it is blocked and there is one.
    pub nearest: Option<Near<'a>>,
    /// The service address that was asked about, where some of its backends may be called and some may not.
    mixed: Option<Mixed<'a>>,
    /// Why the caller must be allowed to more than one of several backends.
    every: Option<String>,
}

/// A service address of which only some backends may be called.
#[derive(Clone, Debug)]
struct Mixed<'a> {
    address: Party<'a>,
    /// How many backends it has.
    backends: usize,
    /// Those that may not be called.
    shut: Vec<Party<'a>>,
}

impl Explanation<'_> {
    /// Whether both walls let it through.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }

    /// Whether both would if what is audited were enforced.
    #[must_use]
    pub fn would_be_allowed(&self) -> bool {
        self.would_be.iter().all(Verdict::allows)
    }
}

/// Answers questions about a model; walls that are asked about are compiled once.
#[derive(Debug)]
pub struct Explainer<'a>(Judges<'a>);

/// Answers one question, see [`Explainer::explain`]. Of a service address all backends are asked.
///
/// # Errors
/// As [`Explainer::explain`].
pub fn explain<'a>(model: &'a Model, question: Question<'a>, now: u64) -> Result<Explanation<'a>, Diagnostics> {
    let explainer = Explainer::new(model);
    let mut explanation = explainer.explain(question, now)?;
    let backends = translated::backends(model, question);
    let mut shut = Vec::new();
    for backend in backends.iter().filter(|_| explanation.allowed()) {
        if !answer(&explainer.0, *backend, now)?.allowed() {
            shut.push(backend.to);
        }
    }
    if !shut.is_empty() {
        explanation.mixed = Some(Mixed { address: question.to, backends: backends.len(), shut });
    }
    Ok(explanation)
}

impl<'m> Explainer<'m> {
    /// About a model.
    #[must_use]
    pub fn new(model: &'m Model) -> Self {
        Self(Judges::new(model))
    }

    /// Answers a question by the rules of the model that hold at `now`, in nanoseconds of Unix time; on the tables of no node. One about a service
    /// address or the port of a node that leads to a service is about who answers there: about one to whom the caller may not go where he must be
    /// allowed to all, else about one who may be called, if there is any.
    ///
    /// # Errors
    /// Policies that do not fit the tables, and tables that say something else than the policies.
    pub fn explain<'a>(&self, question: Question<'a>, now: u64) -> Result<Explanation<'a>, Diagnostics>
    where
        'm: 'a,
    {
        let model = self.0.model();
        let backends = translated::backends(model, question);
        let elsewhere = translated::elsewhere(model, question).filter(|_| !backends.is_empty());
        let (count, mut open, mut shut) = (backends.len(), None, None);
        for backend in backends {
            let for_good = elsewhere.is_some() || translated::is_for_good(model, backend.to);
            if open.is_some() && !for_good {
                continue;
            }
            let mut answer = answer(&self.0, backend, now)?;
            if for_good && !answer.egress.allows() {
                answer.every = elsewhere.or_else(|| (count > 1).then(|| translated::outside(question.to)));
                return Ok(answer);
            }
            let kept = if answer.allowed() { &mut open } else { &mut shut };
            kept.get_or_insert(answer);
        }
        let Some(mut answer) = open.or(shut) else { return answer(&self.0, question, now) };
        answer.every = elsewhere;
        Ok(answer)
    }
}

fn answer<'a>(judges: &Judges<'a>, question: Question<'a>, now: u64) -> Result<Explanation<'a>, Diagnostics> {
    let model = judges.model();
    let walls::Found { egress, ingress, would_be, passed } = walls::ask(judges, &question, now)?;
    // What a Guard or a quarantine denies no rule of an Intent opens.
    let refused = |verdict: &Verdict<'_>| matches!(verdict, Verdict::Refused { .. });
    let denied = |verdict: &Verdict<'_>| matches!(verdict, Verdict::Denied(_) | Verdict::Quarantined(_));
    let both = [&egress, &ingress];
    let near = both.into_iter().any(refused) && !both.into_iter().any(denied);
    let nearest = if near { nearest(model, &question) } else { None };
    let home = [question.from, question.to].map(|party| workload(model, party).map(|(name, _)| name.namespace.clone()));
    let same = home[0] == home[1] || home.iter().any(Option::is_none);
    let names = [question.from, question.to].map(|party| {
        let name = party_name(model, party, !same);
        match name.as_str() {
            "" => party.to_string(),
            // Which part of the world is what a person asks next.
            "world" => format!("world ({party})"),
            _ => name,
        }
    });
    Ok(Explanation { question, names, egress, ingress, would_be, passed, nearest, mixed: None, every: None })
}

/// Name of a peer as metrics and texts show it: never an address where anything better is known.
/// `shop/cart` (also of a service address), `shop/stripe`, `node n1`, `metadata`, `world`; workloads without a service by their own name; empty for
/// what is none of these (an address of an overlay that no workload has).
#[must_use]
pub fn peer_name(model: &Model, party: Party<'_>) -> String {
    party_name(model, party, true)
}

fn party_name(model: &Model, party: Party<'_>, full: bool) -> String {
    if let Some((name, workload)) = workload(model, party) {
        let short = if workload.service.is_empty() { name.name.as_str() } else { &workload.service };
        return if full { format!("{}/{short}", name.namespace) } else { short.to_owned() };
    }
    let Party::Address(address) = party else {
        return String::new();
    };
    if let Some(name) = model.frontend_at(address) {
        return if full { name.to_string() } else { name.name.clone() };
    }
    if let Some((name, _)) = model.externals.iter().find(|(_, cidrs)| holds(cidrs, address)) {
        return if full { name.to_string() } else { name.name.clone() };
    }
    if let Some((name, _)) = model.nodes.iter().find(|(_, node)| has(node, address)) {
        return format!("node {name}");
    }
    [Entity::Metadata, Entity::World]
        .into_iter()
        .find(|&entity| is(model, entity, address))
        .map_or_else(String::new, |entity| entity.to_string())
}

fn workload<'a>(model: &'a Model, party: Party<'_>) -> Option<(&'a WorkloadName, &'a Workload)> {
    match party {
        Party::Workload(name) => model.workloads.get_key_value(name),
        Party::Address(address) => {
            model.workloads.iter().find(|(_, workload)| workload.addresses().any(|own| own == address))
        }
    }
}

/// Whether an address counts as a node's. One of a cloud's metadata service does not, also where a node answers for it.
fn has(node: &Node, address: IpAddr) -> bool {
    node.addresses.contains(&address) && !METADATA.contains(&address)
}

/// Whether an address that no workload has belongs to an entity that does not depend on who asks.
fn is(model: &Model, entity: Entity, address: IpAddr) -> bool {
    let metadata = METADATA.contains(&address);
    let node = || model.nodes.values().any(|node| has(node, address));
    match entity {
        Entity::Metadata => metadata,
        Entity::Nodes => node(),
        Entity::World => {
            let mut overlay =
                model.nodes.values().flat_map(|node| &node.segments).flat_map(|segment| &segment.prefixes);
            !metadata
                && !node()
                && !overlay.any(|prefix| prefix.contains(address))
                && !local_prefixes().iter().any(|prefix| prefix.contains(address))
        }
        Entity::Cluster | Entity::Node => false,
    }
}

/// Whether a peer of a rule is this party, seen from a workload on `node`.
fn matches(model: &Model, peer: &Peer, party: Party<'_>, node: &str) -> bool {
    if let Some((name, workload)) = workload(model, party) {
        return model.matches(peer, name, workload);
    }
    let Party::Address(address) = party else { return false };
    match peer {
        Peer::Service(_) | Peer::Backends(_) | Peer::Workloads { .. } => false,
        Peer::Nodes(labels) => model.nodes.values().any(|node| has(node, address) && labels.matches(&node.labels)),
        Peer::Namespaces { other, .. } => *other,
        Peer::Any => true,
        Peer::Cidrs(cidrs) => holds(cidrs, address),
        Peer::Entity(Entity::Node) => model.nodes.get(node).is_some_and(|node| has(node, address)),
        Peer::Entity(entity) => is(model, *entity, address),
    }
}

/// Whether ports of a rule hold what is asked, on the side that listens.
fn covers(model: &Model, ports: &Ports, question: &Question<'_>) -> bool {
    stretches(model, ports, question.to)
        .iter()
        .any(|stretch| stretch.class == question.class && (stretch.first..=stretch.last).contains(&question.value))
}

fn stretches(model: &Model, ports: &Ports, to: Party<'_>) -> Vec<Stretch> {
    match ports {
        Ports::Named { name, transport } => {
            let listening =
                workload(model, to).into_iter().flat_map(|(_, workload)| workload.listens(name, *transport));
            listening.flat_map(|(transport, port)| Ports::one(transport, port).stretches()).collect()
        }
        ports => ports.stretches(),
    }
}

/// The rule from which the connection differs least. A rule whose caller and callee both differ is about somebody else.
fn nearest<'a>(model: &'a Model, question: &Question<'_>) -> Option<Near<'a>> {
    let node_of = |party| workload(model, party).map_or("", |(_, workload)| &*workload.node);
    let mut best: Option<Near<'a>> = None;
    for rule in model.rules.iter().filter(|rule| !rule.audit) {
        let of_wall = |party| {
            workload(model, party).is_some_and(|(_, workload)| match &rule.wall {
                Wall::Service(owner) => workload.services.contains(owner),
                Wall::Policy(policy) => workload.policies.contains(policy),
                Wall::Resolvers | Wall::Backends(_) => false,
            })
        };
        let (caller, callee) = match rule.direction {
            Direction::Egress => {
                (of_wall(question.from), matches(model, &rule.peer, question.to, node_of(question.from)))
            }
            Direction::Ingress => {
                (matches(model, &rule.peer, question.from, node_of(question.to)), of_wall(question.to))
            }
        };
        if !caller && !callee {
            continue;
        }
        let covering = stretches(model, &rule.ports, question.to);
        let protocol = covering.iter().any(|stretch| stretch.class == question.class);
        // A named port that the callee does not have is another port, not another protocol.
        let protocol = protocol || covering.is_empty();
        let port = covers(model, &rule.ports, question) || !protocol;
        let differs: Vec<_> = [("caller", caller), ("callee", callee), ("protocol", protocol), ("port", port)]
            .into_iter()
            .filter(|(_, same)| !same)
            .map(|(what, _)| what)
            .collect();
        if !differs.is_empty() && best.as_ref().is_none_or(|best| differs.len() < best.differs.len()) {
            best = Some(Near { rule, differs });
        }
    }
    best
}

/// `cart:8080`, with the protocol where it is not TCP.
fn target(rule: &Rule, home: &str, model: &Model) -> String {
    let ports = rule.ports.to_string();
    format!("{}:{}", short(&rule.peer, home, model), ports.strip_suffix("/tcp").unwrap_or(&ports))
}

fn short(peer: &Peer, home: &str, model: &Model) -> String {
    let local = |name: &ServiceName| {
        if name.namespace == home { name.name.clone() } else { name.to_string() }
    };
    match peer {
        Peer::Service(name) | Peer::Backends(name) => local(name),
        Peer::Entity(entity) => entity.to_string(),
        // Only Guards have these.
        Peer::Namespaces { .. } | Peer::Any | Peer::Workloads { .. } | Peer::Nodes(_) => peer.to_string(),
        Peer::Cidrs(cidrs) => model
            .externals
            .iter()
            .find(|(name, known)| name.namespace == home && *known == cidrs)
            .map(|(name, _)| local(name))
            .or_else(|| model.is_resolvers(cidrs).then(|| "dns".to_owned()))
            .unwrap_or_else(|| cidrs.to_string()),
    }
}

/// As many as fit a line.
fn some(mut items: Vec<String>) -> String {
    const MOST: usize = 5;
    items.dedup();
    let more = items.len().saturating_sub(MOST);
    items.truncate(MOST);
    let mut text = if items.is_empty() { "nothing".to_owned() } else { items.join(", ") };
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

impl<'a> Explanation<'a> {
    /// The answer as text. The model is the one that was asked.
    #[must_use]
    pub fn text(&self, model: &'a Model) -> String {
        let what = self.subject();
        let mut text = if self.allowed() {
            format!("ALLOWED {what}  {}", grounds(&self.egress, &self.ingress))
        } else {
            format!("BLOCKED {what}  {}", self.blocked(model))
        };
        let passed: BTreeSet<_> =
            self.passed.iter().map(|rule| format!("{} ({})", rule.name, rule.place.origin())).collect();
        if !passed.is_empty() {
            text.push_str(&format!("; passed on by {}", passed.into_iter().collect::<Vec<_>>().join(" and ")));
        }
        if let Some(every) = &self.every {
            text.push_str(&format!("; {every}"));
        }
        if let Some(why) = self.would_block(model) {
            text.push_str(&format!("; audit: would be blocked {why}"));
        } else if !self.allowed() && self.would_be_allowed() {
            let [egress, ingress] = &self.would_be;
            text.push_str(&format!("; audit: would be allowed, {}", grounds(egress, ingress)));
        }
        text
    }

    /// The question as text: who calls whom, and about what.
    #[must_use]
    pub fn subject(&self) -> String {
        let [from, to] = &self.names;
        format!("{from} -> {to} {}", point(self.question.class, self.question.value))
    }

    /// Where and why audited policies would block what is allowed; `None` when they would not. The model is the one that was asked.
    #[must_use]
    pub fn would_block(&self, model: &'a Model) -> Option<String> {
        if !self.allowed() || self.would_be_allowed() {
            return None;
        }
        let ([from, to], [egress, ingress]) = (&self.names, &self.would_be);
        let at = if egress.allows() { format!("{to}'s ingress") } else { format!("{from}'s egress") };
        let why = self
            .sentence(egress, Direction::Egress, model)
            .or_else(|| self.sentence(ingress, Direction::Ingress, model));
        Some(format!("at {at}: {}", why.unwrap_or_default()))
    }

    /// Why a wall blocks; `None` when it does not.
    fn sentence(&self, verdict: &Verdict<'_>, direction: Direction, model: &Model) -> Option<String> {
        let (name, verb) = match direction {
            Direction::Egress => (&self.names[0], "may call"),
            Direction::Ingress => (&self.names[1], "accepts"),
        };
        match verdict {
            Verdict::Refused { by, lets } => {
                let targets: Vec<_> = lets.iter().map(|rule| target(rule, by.namespace(), model)).collect();
                Some(format!("{name} is isolated ({}) and {verb} {}", by.place().origin(), some(targets)))
            }
            Verdict::Denied(rule) => Some(format!("denied by {} ({})", rule.name, rule.place.origin())),
            Verdict::Quarantined(place) => Some(format!("{name} is in quarantine ({})", place.origin())),
            _ => None,
        }
    }

    fn blocked(&self, model: &'a Model) -> String {
        let [from, to] = &self.names;
        let origin = |verdict: &Verdict<'_>| verdict.decider().map(|(_, place)| place.origin());
        let sentences = (
            self.sentence(&self.egress, Direction::Egress, model),
            self.sentence(&self.ingress, Direction::Ingress, model),
        );
        let mut text = String::new();
        match sentences {
            (Some(why), other) => {
                text.push_str(&format!("at {from}'s egress: {why}"));
                if let Some(origin) = origin(&self.ingress) {
                    let would = if other.is_some() { "refuse too" } else { "accept it" };
                    text.push_str(&format!("; {to} would {would} ({origin})"));
                }
            }
            (None, Some(why)) => {
                text.push_str(&format!("at {to}'s ingress: {why}"));
                if let Some(origin) = origin(&self.egress) {
                    text.push_str(&format!("; {from} may call it ({origin})"));
                }
            }
            (None, None) => {}
        }
        if let Some(Near { rule, differs }) = &self.nearest
            && let Wall::Service(owner) | Wall::Policy(owner) = &rule.wall
        {
            let home = owner.namespace.as_str();
            let ports = rule.ports.to_string();
            let ports = ports.strip_suffix("/tcp").unwrap_or(&ports);
            let (caller, callee) = match rule.direction {
                Direction::Egress => (owner.name.clone(), short(&rule.peer, home, model)),
                Direction::Ingress => (short(&rule.peer, home, model), owner.name.clone()),
            };
            text.push_str(&format!(
                "; nearest rule {caller} -> {callee}:{ports} ({}), differs in: {}",
                rule.place.origin(),
                differs.join(", ")
            ));
        }
        text
    }
}

/// Why both walls let something through.
fn grounds(egress: &Verdict<'_>, ingress: &Verdict<'_>) -> String {
    let by = |verdict: &Verdict<'_>| match verdict {
        Verdict::OwnNode => Some(NODE_REACHES.to_owned()),
        verdict => verdict.decider().map(|(name, place)| format!("{name} ({})", place.origin())),
    };
    match (by(egress), by(ingress)) {
        (None, None) => "neither side is isolated".to_owned(),
        (Some(egress), Some(ingress)) if egress != ingress => format!("by {egress} and {ingress}"),
        (Some(one), _) | (None, Some(one)) => format!("by {one}"),
    }
}

/// Parses what a question is about: `5432/tcp`, `echo/icmp`, `proto/89`. One point, so that there is one answer.
#[must_use]
pub fn parse_point(text: &str) -> Option<(Class, u16)> {
    let ports = Ports::parse(text).ok()?;
    match (&ports, ports.stretches().as_slice()) {
        (Ports::Echo, [stretch, ..]) => Some((stretch.class, stretch.first)),
        (_, [stretch]) if stretch.first == stretch.last => Some((stretch.class, stretch.first)),
        _ => None,
    }
}

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}
