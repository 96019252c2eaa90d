//! What is wanted: levels of Guards and intents, judged in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Prefix, World,
    intent::{self, Intent, named_member},
    world::{Entity, Labels, Peer, Protocol, Workload},
    yaml,
};

/// Direction of the packet that begins a conversation, as the workload sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the workload.
    Ingress,
    /// From the workload.
    Egress,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

/// A level of the policy. Guards are asked in the order of their priorities, allow-lists after them; the first level that
/// decides is the last that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// An ordered list of rules; isolates nobody.
    Guard(Guard),
    /// Allow-lists: all of them together are one level, and they isolate whom they list.
    Intents(Vec<Intent>),
}

/// An ordered list of rules: the first match decides, no match is a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Its name.
    pub name: String,
    /// Lower is judged first.
    pub priority: u32,
    /// It only reports.
    pub audit: bool,
    /// Whom it concerns.
    pub subject: Subject,
    /// Label of namespaces, of whose value [`Whom::Same`] and [`Whom::Other`] speak.
    pub compare: Option<String>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A rule of a Guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What a match does.
    pub action: Action,
    /// Direction.
    pub direction: Direction,
    /// The other end is one of these, and asked for the port beside it, where one is written.
    pub peers: Vec<(Whom, Option<Ports>)>,
    /// What is asked for: one of these; everything where there are none.
    pub ports: Vec<Ports>,
    /// It only reports.
    pub audit: bool,
    /// From then on there is no such rule: nanoseconds of Unix time.
    pub expires: Option<u64>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let pass, and ask nobody else.
    Allow,
    /// Drop, and ask nobody else.
    Deny,
    /// Leave it to the next level.
    Pass,
}

/// Whom a Guard concerns. An absent part is no condition; all that are present hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Labels that the workload's namespace must have; `None` for any value.
    pub namespaces: BTreeMap<String, Option<String>>,
    /// Namespace and name of services of which the workload must be in one.
    pub services: Vec<(String, String)>,
    /// Labels that the workload must have; `None` for any value.
    pub workloads: BTreeMap<String, Option<String>>,
}

/// The other end, of a rule of a Guard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whom {
    /// A workload whose namespace has the same value of the label that the Guard compares.
    Same,
    /// Everyone else, known or not.
    Other,
    /// An entity.
    Entity(Entity),
    /// A service: namespace and name.
    Service(String, String),
}

/// Addresses by range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs {
    /// In one of these,
    pub cidrs: Vec<Prefix>,
    /// and in none of these.
    pub except: Vec<Prefix>,
}

/// What a rule lets people ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Everything.
    Any,
    /// Ports from the first to the last one.
    Range(Protocol, u16, u16),
    /// Echo requests.
    Echo,
    /// Everything of an IP protocol.
    Proto(u8),
    /// A port that the listening workload has given a name.
    Named(String),
}

/// What the packet that begins a conversation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Want {
    /// A port.
    Port(Protocol, u16),
    /// An ICMP message: type and code.
    Icmp(u8, u8),
    /// An ICMPv6 message: type and code.
    Icmp6(u8, u8),
    /// Another protocol.
    Other(u8),
}

/// An answer of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Let pass.
    pub allow: bool,
    /// Why.
    pub why: Why,
    /// Names of the rules any of which may be said to have decided.
    pub rules: BTreeSet<String>,
}

/// Why a policy answers what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A rule says so.
    Rule,
    /// The workload is isolated and no rule lets it.
    Isolated,
    /// Nothing speaks of it.
    NotIsolated,
    /// The workload would not be let through to itself.
    Itself,
}

/// The two answers of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What holds: of what is enforced alone.
    pub enforced: Decision,
    /// What would hold if all that is audited were enforced.
    pub would: Decision,
}

/// How a policy is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When: nanoseconds of Unix time.
    pub now: u64,
    /// What is audited counts as if it were enforced.
    pub audited: bool,
}

impl Reading {
    /// The two verdicts that are formed: what holds, and what would.
    #[must_use]
    pub fn both(now: u64) -> [Self; 2] {
        [false, true].map(|audited| Self { now, audited })
    }

    /// Whether a document, rule or wall counts.
    #[must_use]
    pub const fn counts(self, audit: bool) -> bool {
        self.audited || !audit
    }
}

/// Name of the rule that lets a node reach its workloads.
pub const NODE_RULE: &str = "node may reach its workloads";

impl Want {
    /// Its IP protocol.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Port(Protocol::Tcp, _) => 6,
            Self::Port(Protocol::Udp, _) => 17,
            Self::Port(Protocol::Sctp, _) => 132,
            Self::Icmp(..) => 1,
            Self::Icmp6(..) => 58,
            Self::Other(number) => number,
        }
    }
}

impl Ports {
    /// Whether they hold what is wanted of `listener`, where that is a workload.
    #[must_use]
    pub fn hold(&self, want: Want, listener: Option<&Workload>) -> bool {
        match self {
            Self::Any => true,
            Self::Range(protocol, first, last) => {
                matches!(want, Want::Port(p, port) if p == *protocol && (*first..=*last).contains(&port))
            }
            Self::Echo => matches!(want, Want::Icmp(8, 0) | Want::Icmp6(128, 0)),
            Self::Proto(number) => want.protocol() == *number,
            Self::Named(name) => {
                let found = listener.and_then(|workload| workload.ports.get(name));
                found.is_some_and(|(port, protocol)| want == Want::Port(*protocol, *port))
            }
        }
    }
}

impl Cidrs {
    /// Whether the address is meant.
    #[must_use]
    pub fn hold(&self, peer: &Peer<'_>) -> bool {
        let within = |prefixes: &[Prefix]| prefixes.iter().any(|prefix| prefix.contains(peer.address));
        within(&self.cidrs) && !within(&self.except)
    }
}

impl Subject {
    /// Whether the workload is meant.
    #[must_use]
    pub fn holds(&self, world: &World, workload: &Workload) -> bool {
        let has = |labels: Option<&Labels>, wanted: &BTreeMap<String, Option<String>>| {
            wanted.iter().all(|(key, value)| {
                let found = labels.and_then(|labels| labels.get(key));
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            })
        };
        has(world.namespaces.get(&workload.namespace), &self.namespaces)
            && has(Some(&workload.labels), &self.workloads)
            && (self.services.is_empty()
                || self.services.iter().any(|(namespace, name)| named_member(world, namespace, name, workload)))
    }
}

impl Rule {
    /// Whether there is such a rule.
    #[must_use]
    pub fn stands(&self, reading: Reading) -> bool {
        reading.counts(self.audit) && self.expires.is_none_or(|end| reading.now < end)
    }
}

impl Guard {
    /// Whether the two ends are known to have the same value of the label that is compared.
    fn same(&self, world: &World, subject: &Workload, peer: &Peer<'_>) -> bool {
        let value = |workload: &Workload| world.namespaces.get(&workload.namespace)?.get(self.compare.as_ref()?);
        value(subject).is_some() && peer.workload.and_then(value) == value(subject)
    }

    fn means(&self, world: &World, whom: &Whom, subject: &Workload, peer: &Peer<'_>) -> bool {
        match whom {
            Whom::Same => self.same(world, subject, peer),
            Whom::Other => !self.same(world, subject, peer),
            Whom::Entity(entity) => peer.is(*entity),
            Whom::Service(namespace, name) => peer.workload.is_some_and(|w| named_member(world, namespace, name, w)),
        }
    }

    /// The rule that decides.
    fn first(
        &self,
        world: &World,
        reading: Reading,
        subject: &Workload,
        direction: Direction,
        peer: &Peer<'_>,
        want: Want,
    ) -> Option<&Rule> {
        let asked = Asked { subject, direction, peer, want };
        self.rules.iter().find(|rule| self.matching(world, reading, rule, &asked).next().is_some())
    }

    /// Numbers of the rule's peers that match.
    fn matching<'a>(
        &'a self,
        world: &'a World,
        reading: Reading,
        rule: &'a Rule,
        asked: &'a Asked<'a>,
    ) -> impl Iterator<Item = usize> + 'a {
        let Asked { subject, direction, peer, want } = *asked;
        let listener = listener(subject, direction, peer);
        let whole = rule.direction == direction
            && rule.stands(reading)
            && (rule.ports.is_empty() || rule.ports.iter().any(|ports| ports.hold(want, listener)));
        let meant = move |(whom, ports): &(Whom, Option<Ports>)| {
            whole
                && self.means(world, whom, subject, peer)
                && ports.as_ref().is_none_or(|ports| ports.hold(want, listener))
        };
        rule.peers.iter().enumerate().filter(move |(_, peer)| meant(peer)).map(|(number, _)| number)
    }

    /// Names that may be given to what `first` decides: of neighbours that say the same any may be named.
    fn names(&self, world: &World, reading: Reading, first: &Rule, asked: &Asked<'_>) -> BTreeSet<String> {
        let alike = self.rules.iter().filter(|rule| (rule.action, rule.audit) == (first.action, first.audit));
        alike
            .flat_map(|rule| {
                let numbers: Vec<_> = self.matching(world, reading, rule, asked).collect();
                numbers.into_iter().map(|number| yaml::rule_id(self, rule, number))
            })
            .collect()
    }
}

/// A question to a Guard.
#[derive(Clone, Copy)]
struct Asked<'a> {
    subject: &'a Workload,
    direction: Direction,
    peer: &'a Peer<'a>,
    want: Want,
}

/// Whose names ports have.
pub(crate) fn listener<'a>(subject: &'a Workload, direction: Direction, peer: &Peer<'a>) -> Option<&'a Workload> {
    match direction {
        Direction::Ingress => Some(subject),
        Direction::Egress => peer.workload,
    }
}

impl World {
    /// Guards that count and concern the workload, in order.
    fn guards(&self, reading: Reading, subject: &Workload) -> Vec<&Guard> {
        let mut guards: Vec<_> = self
            .policy
            .iter()
            .filter_map(|level| match level {
                Level::Guard(guard) => Some(guard),
                Level::Intents(_) => None,
            })
            .filter(|guard| reading.counts(guard.audit) && guard.subject.holds(self, subject))
            .collect();
        guards.sort_by_key(|guard| guard.priority);
        guards
    }

    /// All documents of the allow-lists.
    pub(crate) fn intents(&self) -> impl Iterator<Item = &Intent> {
        self.policy.iter().flat_map(|level| match level {
            Level::Guard(_) => &[],
            Level::Intents(intents) => intents.as_slice(),
        })
    }

    /// Whether `subject` may have the conversation that `peer` (ingress) or it (egress) begins, at that time (nanoseconds of
    /// Unix time).
    #[must_use]
    pub fn judge(&self, subject: &Workload, direction: Direction, peer: &Peer<'_>, want: Want, now: u64) -> Judgement {
        let [enforced, would] = Reading::both(now).map(|reading| self.decide(reading, subject, direction, peer, want));
        Judgement { enforced, would }
    }

    /// The answer under one reading. A workload always reaches itself.
    #[must_use]
    pub fn decide(
        &self,
        reading: Reading,
        subject: &Workload,
        direction: Direction,
        peer: &Peer<'_>,
        want: Want,
    ) -> Decision {
        let decision = self.read(reading, subject, direction, peer, want);
        let itself = |w: &Workload| (&w.namespace, &w.name) == (&subject.namespace, &subject.name);
        if !decision.allow && peer.workload.is_some_and(itself) {
            return Decision { allow: true, why: Why::Itself, rules: BTreeSet::new() };
        }
        decision
    }

    /// The same without that.
    pub(crate) fn read(
        &self,
        reading: Reading,
        subject: &Workload,
        direction: Direction,
        peer: &Peer<'_>,
        want: Want,
    ) -> Decision {
        for guard in self.guards(reading, subject) {
            let rule = guard.first(self, reading, subject, direction, peer, want);
            if let Some(rule) = rule.filter(|rule| rule.action != Action::Pass) {
                let rules = guard.names(self, reading, rule, &Asked { subject, direction, peer, want });
                return Decision { allow: rule.action == Action::Allow, why: Why::Rule, rules };
            }
        }
        let isolating = intent::isolating(self, reading, subject);
        if isolating.is_empty() {
            return Decision { allow: true, why: Why::NotIsolated, rules: BTreeSet::new() };
        }
        let mut rules = intent::grants(self, reading, subject, direction, peer, want);
        if direction == Direction::Ingress && peer.is(Entity::Node) {
            rules.insert(NODE_RULE.to_owned());
        }
        if rules.is_empty() {
            Decision { allow: false, why: Why::Isolated, rules: isolating }
        } else {
            Decision { allow: true, why: Why::Rule, rules }
        }
    }

    /// Whether something isolates the workload in that direction, or may deny it something, so that what cannot be judged may
    /// not pass.
    #[must_use]
    pub fn isolated(&self, reading: Reading, subject: &Workload, direction: Direction) -> bool {
        let denies = |rule: &Rule| rule.direction == direction && rule.action == Action::Deny && rule.stands(reading);
        self.guards(reading, subject).iter().any(|guard| guard.rules.iter().any(denies))
            || !intent::isolating(self, reading, subject).is_empty()
    }
}
