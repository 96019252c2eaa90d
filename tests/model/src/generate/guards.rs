use std::collections::BTreeSet;

use proptest::{prelude::*, sample::Index};

use super::{
    Features, START, TICK,
    worlds::{ENTITIES, NAMESPACES, TIERS, offers},
};
use crate::{
    World,
    intent::named_member,
    policy::{Action, Direction, Guard, Level, Ports, Rule, Subject, Whom},
    world::{Labels, Protocol},
    yaml,
};

/// Label that says to whom a namespace belongs.
const TENANT: &str = "tenant";

/// Guards of a revision, before names are resolved.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw {
    /// For each namespace, whose it is.
    tenants: [usize; NAMESPACES.len()],
    guards: Vec<RawGuard>,
}

#[derive(Clone, Debug)]
struct RawGuard {
    /// An address in X, Y and Z: X passes, Y is denied, the namespace may allow Z.
    pass_and_deny: bool,
    subject: u8,
    names: [Index; 2],
    priority: u32,
    audit: bool,
    rules: Vec<RawRule>,
}

#[derive(Clone, Debug)]
struct RawRule {
    action: Index,
    ingress: bool,
    peers: Vec<Index>,
    ports: Vec<Index>,
    /// The port stands beside the peer.
    beside: bool,
    audit: bool,
    expires: Option<u64>,
}

/// Guards, in a good part of the worlds.
pub(super) fn raw(features: Features) -> BoxedStrategy<Raw> {
    if !features.guards {
        return Just(Raw::default()).boxed();
    }
    let some = prop::collection::vec(guard(features), 1..4);
    let guards = prop_oneof![1 => Just(Vec::new()), 3 => some];
    (prop::array::uniform(0..4_usize), guards)
        .prop_map(|(mut tenants, guards)| {
            // A label that nobody has is a mistake to the product.
            if tenants == [0; NAMESPACES.len()] {
                tenants[0] = 1;
            }
            Raw { tenants, guards }
        })
        .boxed()
}

fn guard(features: Features) -> impl Strategy<Value = RawGuard> {
    let audit = prop::bool::weighted(if features.audit { 0.25 } else { 0.0 });
    let rules = prop::collection::vec(rule(features), 1..5);
    (prop::bool::weighted(0.3), 0..10_u8, any::<[Index; 2]>(), 0..100_u32, audit, rules).prop_map(
        |(pass_and_deny, subject, names, priority, audit, rules)| RawGuard {
            pass_and_deny,
            subject,
            names,
            priority,
            audit,
            rules,
        },
    )
}

fn rule(features: Features) -> impl Strategy<Value = RawRule> {
    let audit = prop::bool::weighted(if features.audit { 0.25 } else { 0.0 });
    let expires = if features.expiry { prop::option::weighted(0.4, 0..10_u64).boxed() } else { Just(None).boxed() };
    let peers = prop::collection::vec(any::<Index>(), 1..3);
    let ports = prop_oneof![1 => Just(Vec::new()), 1 => prop::collection::vec(any::<Index>(), 1..3)];
    (any::<Index>(), any::<bool>(), peers, ports, prop::bool::weighted(0.2), audit, expires).prop_map(
        |(action, ingress, peers, ports, beside, audit, expires)| RawRule {
            action,
            ingress,
            peers,
            ports,
            beside,
            audit,
            expires,
        },
    )
}

impl Raw {
    /// Gives a world, whose allow-lists are there, its Guards.
    pub(super) fn give(&self, world: &mut World) {
        for (namespace, tenant) in NAMESPACES.iter().zip(&self.tenants) {
            let tenant = [None, Some("a"), Some("a"), Some("b")][*tenant];
            let labels: Labels = tenant.iter().map(|value| (TENANT.to_owned(), (*value).to_owned())).collect();
            if !labels.is_empty() && !self.guards.is_empty() {
                world.namespaces.insert((*namespace).to_owned(), labels);
            }
        }
        let mut priorities = BTreeSet::new();
        for (n, raw) in self.guards.iter().enumerate() {
            let mut priority = raw.priority;
            while !priorities.insert(priority) {
                priority += 1;
            }
            let guard = raw.guard(world, &format!("guard{n}"), priority);
            if !guard.rules.is_empty() {
                world.policy.push(Level::Guard(guard));
            }
        }
    }
}

impl RawGuard {
    fn guard(&self, world: &World, name: &str, priority: u32) -> Guard {
        let services = services(world);
        let tenant = |value: Option<&str>| [(TENANT.to_owned(), value.map(str::to_owned))].into();
        let tier = || [("tier".to_owned(), Some(TIERS[0].to_owned()))].into();
        let mut subject = Subject::default();
        match self.subject {
            0 => subject.namespaces = tenant(None),
            1 => subject.namespaces = tenant(Some("a")),
            2 if !services.is_empty() => subject.services = self.names.map(|i| i.get(&services).clone()).into(),
            3 => subject.workloads = tier(),
            4 => (subject.namespaces, subject.workloads) = (tenant(None), tier()),
            _ => {}
        }
        subject.services.dedup();
        let mut guard = Guard {
            name: name.to_owned(),
            priority,
            audit: self.audit,
            subject,
            compare: Some(TENANT.to_owned()),
            rules: Vec::new(),
        };
        let mut rules: Vec<_> = self.rules.iter().map(|raw| raw.rule(world, &guard)).collect();
        if let [first, second, ..] = &mut *rules
            && self.pass_and_deny
        {
            (first.action, second.action) = (Action::Pass, Action::Deny);
            second.peers.extend([(Whom::Other, None), (Whom::Same, None)]);
            second.ports.clear();
            // In the other direction somebody else listens, who need not have a port of the name that stands beside a peer.
            if second.direction != first.direction {
                second.peers.iter_mut().for_each(|(_, beside)| *beside = None);
            }
            second.direction = first.direction;
        }
        let mut seen = BTreeSet::new();
        for mut rule in rules {
            let ids: Vec<_> = (0..rule.peers.len()).map(|number| yaml::rule_id(&guard, &rule, number)).collect();
            let mut new = ids.into_iter().map(|id| seen.insert(id));
            rule.peers.retain(|_| new.next().unwrap_or_default());
            if !rule.peers.is_empty() {
                guard.rules.push(rule);
            }
        }
        guard
    }
}

impl RawRule {
    fn rule(&self, world: &World, guard: &Guard) -> Rule {
        let direction = if self.ingress { Direction::Ingress } else { Direction::Egress };
        let mut whom = vec![Whom::Same, Whom::Other, Whom::Same, Whom::Other];
        whom.extend(ENTITIES.map(Whom::Entity));
        whom.extend(services(world).into_iter().map(|(namespace, name)| Whom::Service(namespace, name)));
        whom.push(Whom::Service(NAMESPACES[0].to_owned(), "ghost".to_owned()));
        let mut peers: Vec<_> = self.peers.iter().map(|i| (i.get(&whom).clone(), None)).collect();
        peers.dedup();
        let ports = self.ports.iter().map(|i| i.get(&offers()).clone());
        // No port is every port, and is written so.
        let ports = ports.filter(|ports| *ports != Ports::Any).map(|ports| match ports {
            Ports::Named(name) if !self.listens(world, guard, &peers, &name) => Ports::Range(Protocol::Tcp, 443, 443),
            other => other,
        });
        let mut ports: Vec<_> = ports.collect::<BTreeSet<_>>().into_iter().collect();
        if self.beside && !ports.is_empty() {
            peers[0].1 = Some(ports.remove(0));
            ports.clear();
        }
        Rule {
            action: *self.action.get(&[
                Action::Allow,
                Action::Allow,
                Action::Deny,
                Action::Deny,
                Action::Pass,
                Action::Pass,
            ]),
            direction,
            peers,
            ports,
            audit: self.audit,
            // Some before all begins, and none at a time that the clock shows.
            expires: self.expires.map(|n| {
                let half = TICK.as_secs() * 1_000_000_000 / 2;
                START - 7 * half + 2 * half * n
            }),
        }
    }

    /// Whether somebody has a port of that name whom the rule concerns.
    fn listens(&self, world: &World, guard: &Guard, peers: &[(Whom, Option<Ports>)], port: &str) -> bool {
        world.workloads.iter().filter(|workload| workload.ports.contains_key(port)).any(|workload| {
            if self.ingress {
                guard.subject.holds(world, workload)
            } else {
                peers.iter().all(|(whom, _)| match whom {
                    Whom::Service(namespace, name) => named_member(world, namespace, name, workload),
                    _ => false,
                })
            }
        })
    }
}

/// Every service that a document declares.
fn services(world: &World) -> Vec<(String, String)> {
    let named =
        world.intents().flat_map(|intent| intent.services.keys().map(|name| (intent.namespace.clone(), name.clone())));
    named.collect()
}
