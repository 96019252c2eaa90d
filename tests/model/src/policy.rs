//! What is wanted: levels of tiers and intents, judged in order.

use std::collections::BTreeSet;

use crate::{
    Prefix, World,
    intent::{self, Intent},
    world::{Entity, Labels, Peer, Protocol, Workload},
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

/// A level of the policy. The first level that decides is the last that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// An ordered list of rules; isolates nobody.
    Tier(Tier),
    /// Allow-lists: all of them together are one level, and they isolate whom they list.
    Intents(Vec<Intent>),
}

/// An ordered list of rules: the first match decides, no match is a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A rule of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which the caller chooses.
    pub id: String,
    /// Whom it concerns.
    pub subject: Subject,
    /// Direction.
    pub direction: Direction,
    /// The other end.
    pub peer: Whom,
    /// What is asked for.
    pub ports: Ports,
    /// What a match does.
    pub action: Action,
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

/// Whom a rule concerns. An absent part is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Namespace.
    pub namespace: Option<String>,
    /// Labels that the workload must have.
    pub labels: Labels,
}

/// The other end, of a rule of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Everyone, known or not.
    Everyone,
    /// An entity.
    Entity(Entity),
    /// Known workloads.
    Workloads(Subject),
    /// Addresses.
    Cidrs(Cidrs),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A rule says so.
    Rule,
    /// The workload is isolated and no rule lets it.
    Isolated,
    /// Nothing speaks of it.
    NotIsolated,
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
    pub fn holds(&self, workload: &Workload) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
            && self.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl Whom {
    /// Whether the peer is meant.
    #[must_use]
    pub fn holds(&self, peer: &Peer<'_>) -> bool {
        match self {
            Self::Everyone => true,
            Self::Entity(entity) => peer.is(*entity),
            Self::Workloads(subject) => peer.workload.is_some_and(|workload| subject.holds(workload)),
            Self::Cidrs(cidrs) => cidrs.hold(peer),
        }
    }
}

impl World {
    /// Whether `subject` may have the conversation that `peer` (ingress) or it (egress) begins.
    #[must_use]
    pub fn judge(&self, subject: &Workload, direction: Direction, peer: &Peer<'_>, want: Want) -> Decision {
        let listener = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => peer.workload,
        };
        for level in &self.policy {
            match level {
                Level::Tier(tier) => {
                    let matched = tier.rules.iter().find(|rule| {
                        rule.direction == direction
                            && rule.subject.holds(subject)
                            && rule.peer.holds(peer)
                            && rule.ports.hold(want, listener)
                    });
                    if let Some(rule) = matched
                        && rule.action != Action::Pass
                    {
                        let rules = BTreeSet::from([rule.id.clone()]);
                        return Decision { allow: rule.action == Action::Allow, why: Why::Rule, rules };
                    }
                }
                Level::Intents(intents) => {
                    let isolating = intent::isolating(self, intents, subject);
                    if isolating.is_empty() {
                        continue;
                    }
                    let mut rules = intent::grants(self, intents, subject, direction, peer, want);
                    if direction == Direction::Ingress && peer.is(Entity::Node) {
                        rules.insert(NODE_RULE.to_owned());
                    }
                    return if rules.is_empty() {
                        Decision { allow: false, why: Why::Isolated, rules: isolating }
                    } else {
                        Decision { allow: true, why: Why::Rule, rules }
                    };
                }
            }
        }
        Decision { allow: true, why: Why::NotIsolated, rules: BTreeSet::new() }
    }

    /// Whether something isolates the workload in that direction, so that what cannot be judged may not pass.
    #[must_use]
    pub fn isolated(&self, subject: &Workload, direction: Direction) -> bool {
        self.policy.iter().any(|level| match level {
            Level::Tier(tier) => tier
                .rules
                .iter()
                .any(|rule| rule.direction == direction && rule.action == Action::Deny && rule.subject.holds(subject)),
            Level::Intents(intents) => !intent::isolating(self, intents, subject).is_empty(),
        })
    }
}
