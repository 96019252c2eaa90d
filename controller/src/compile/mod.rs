//! From the model to what one node shall enforce. Pure: the same model and the same network give the same [`Desired`].

mod cut;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bulkhead_dataplane::{
    desired::{self, Desired, EndpointName, Entry, Interval, Peers, PolicySet, RuleId, SelectorId, SetId, View},
    node::{Discovered, direction_label},
};
use bulkhead_ebpf::{
    abi::{Action, Class, Direction, Mode, PORT_INTERVALS},
    reason::Reason,
};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, suggest},
    intent::Entity,
    model::{Model, Peer, ServiceName, Workload},
    ports::{Ports, Stretch, Transport},
};

/// Tier of Intent among those that later sources add before and behind it.
pub const TIER: u8 = 10;
/// Rule of what no policy isolates.
pub const NOT_ISOLATED: &str = "not isolated";
/// Rule by which a node reaches the workloads that run on it.
pub const NODE_REACHES: &str = "node may reach its workloads";

/// A distinct peer expression. Its text is its identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Selector {
    peer: Peer,
    /// Of the peer's workloads only those whose port of this name has this number.
    port: Option<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NamedPort {
    name: String,
    transport: Transport,
    number: u16,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)?;
        if let Some(NamedPort { name, transport, number }) = &self.port {
            write!(f, " with port {name}={number}/{transport}")?;
        }
        Ok(())
    }
}

/// A rule, resolved for one endpoint.
#[derive(Clone, Debug)]
struct Grant {
    stretch: Stretch,
    selector: Selector,
    rule: desired::Rule,
}

/// One direction of a workload before ids are given.
#[derive(Clone, Debug)]
enum Draft {
    /// No policy isolates it.
    Open,
    /// What is granted, and the rule that denies the rest.
    Isolated { grants: Vec<Grant>, rest: desired::Rule },
}

/// Compiles what the named node shall enforce. `discovered` is what that node's own network says.
///
/// # Errors
/// An unknown node, an address of a workload that is a node's, policies that do not fit the tables.
pub fn compile(model: &Model, node: &str, discovered: &Discovered) -> Result<Desired, Diagnostics> {
    let Some(own) = model.nodes.get(node) else {
        let error = Diagnostic::nowhere(format!("node `{node}` is not in the workloads file"));
        return Err(error.help(suggest(node, model.nodes.keys().map(String::as_str))).into());
    };
    let local: Vec<_> = model
        .workloads
        .iter()
        .filter(|(_, workload)| workload.node == node && !workload.endpoints.is_empty())
        .collect();
    let drafts: Vec<[Draft; 2]> = local
        .iter()
        .map(|(_, workload)| [Direction::Ingress, Direction::Egress].map(|direction| draft(model, workload, direction)))
        .collect();
    let names = Names::of(drafts.iter().flatten());

    let mut found = Diagnostics::default();
    let mut sets: BTreeMap<PolicySet, usize> = BTreeMap::new();
    let mut views = Vec::new();
    for ((_, workload), drafts) in local.iter().zip(&drafts) {
        let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
            let draft = &drafts[direction as usize];
            let set = names.set(direction, draft);
            found.0.extend(too_long(model, workload, &set, draft));
            let next = sets.len();
            *sets.entry(set).or_insert(next)
        });
        views.push((ingress, egress));
    }
    let network = network::Network::new(model, node, discovered, &names.selectors);
    let addresses = found.take(network.addresses());
    found.0.dedup();
    found.or(())?;

    // Ids follow the content, not the order of workloads.
    let mut ids = vec![SetId(0); sets.len()];
    for (id, &index) in (0..).map(SetId).zip(sets.values()) {
        ids[index] = id;
    }
    let mut endpoints = Vec::new();
    for ((name, workload), (ingress, egress)) in local.iter().zip(views) {
        let view = View { ingress: ids[ingress], egress: ids[egress], until: None };
        for (index, endpoint) in (0..).zip(&workload.endpoints) {
            endpoints.push(desired::Endpoint {
                name: EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index },
                service: workload.service.clone(),
                link: endpoint.link.clone(),
                segment: endpoint.segment,
                addresses: endpoint.addresses.clone(),
                mode: Mode::Enforce,
                views: vec![view],
            });
        }
    }
    let prefixes = network.prefixes();
    Ok(Desired {
        selectors: names.selectors.iter().map(ToString::to_string).collect(),
        rules: names.rules.clone(),
        sets: sets.into_keys().collect(),
        endpoints,
        addresses: addresses.unwrap_or_default(),
        prefixes,
        overlays: network::overlays(model, node, own, discovered),
        services: BTreeMap::new(),
        observe: false,
    })
}

fn draft(model: &Model, workload: &Workload, direction: Direction) -> Draft {
    let Some((first, service)) = workload.services.first().and_then(|first| Some((first, model.services.get(first)?)))
    else {
        return Draft::Open;
    };
    let mut grants = Vec::new();
    for rule in model.rules_of(workload, direction) {
        let named = desired::Rule { name: rule.name.clone(), origin: rule.place.origin() };
        let mut grant = |stretch, port| {
            grants.push(Grant { stretch, selector: Selector { peer: rule.peer.clone(), port }, rule: named.clone() });
        };
        match (&rule.ports, direction) {
            (Ports::Named(name), Direction::Ingress) => {
                if let Some(&(transport, number)) = workload.ports.get(name) {
                    grant(one(transport, number), None);
                }
            }
            (Ports::Named(name), Direction::Egress) => {
                let listeners =
                    model.workloads.iter().filter(|(member, workload)| model.matches(&rule.peer, member, workload));
                let listening: BTreeSet<_> =
                    listeners.filter_map(|(_, workload)| workload.ports.get(name)).copied().collect();
                for (transport, number) in listening {
                    grant(one(transport, number), Some(NamedPort { name: name.clone(), transport, number }));
                }
            }
            (ports, _) => ports.stretches().into_iter().for_each(|stretch| grant(stretch, None)),
        }
    }
    if direction == Direction::Ingress {
        let rule = desired::Rule { name: NODE_REACHES.to_owned(), origin: String::new() };
        let node = Selector { peer: Peer::Entity(Entity::Node), port: None };
        grants.extend(Ports::Any.stretches().into_iter().map(|stretch| Grant {
            stretch,
            selector: node.clone(),
            rule: rule.clone(),
        }));
    }
    let rest = desired::Rule { name: isolated(first, direction), origin: service.place.origin() };
    Draft::Isolated { grants, rest }
}

/// Name of the rule that denies what no other allows.
#[must_use]
pub fn isolated(service: &ServiceName, direction: Direction) -> String {
    format!("{service} isolated {}", direction_label(direction))
}

fn one(transport: Transport, number: u16) -> Stretch {
    Stretch { class: transport.class(), first: number, last: number }
}

/// Selectors and rules of a node in the order of their ids.
struct Names {
    selectors: Vec<Selector>,
    rules: Vec<desired::Rule>,
}

impl Names {
    fn of<'a>(drafts: impl Iterator<Item = &'a Draft>) -> Self {
        let (mut selectors, mut rules) = (BTreeMap::new(), BTreeSet::new());
        for draft in drafts {
            match draft {
                Draft::Open => _ = rules.insert(open()),
                Draft::Isolated { grants, rest } => {
                    rules.insert(rest.clone());
                    for grant in grants {
                        selectors.insert(grant.selector.to_string(), grant.selector.clone());
                        rules.insert(grant.rule.clone());
                    }
                }
            }
        }
        let mut selectors: Vec<_> = selectors.into_values().collect();
        selectors.sort();
        Self { selectors, rules: rules.into_iter().collect() }
    }

    fn selector(&self, selector: &Selector) -> SelectorId {
        SelectorId(id(self.selectors.binary_search(selector)))
    }

    fn rule(&self, rule: &desired::Rule) -> RuleId {
        RuleId(id(self.rules.binary_search(rule)))
    }

    fn set(&self, direction: Direction, draft: &Draft) -> PolicySet {
        let last = |action, reason, rule: &desired::Rule| Entry {
            tier: TIER,
            action,
            audit: false,
            reason,
            peers: Peers::Any(self.rule(rule)),
        };
        match draft {
            Draft::Open => {
                let entries = vec![last(Action::Allow, Reason::NotIsolated, &open())];
                PolicySet {
                    direction,
                    isolated: false,
                    classes: Class::ALL.map(|_| vec![Interval { start: 0, entries: entries.clone() }]),
                }
            }
            Draft::Isolated { grants, rest } => {
                let stretches: Vec<_> = grants
                    .iter()
                    .map(|grant| (grant.stretch, self.selector(&grant.selector), self.rule(&grant.rule)))
                    .collect();
                let interval = |(start, covering): (u16, BTreeMap<SelectorId, RuleId>)| {
                    let mut entries = Vec::new();
                    if !covering.is_empty() {
                        let peers = Peers::Selectors(covering.into_iter().collect());
                        entries.push(Entry {
                            tier: TIER,
                            action: Action::Allow,
                            audit: false,
                            reason: Reason::Rule,
                            peers,
                        });
                    }
                    entries.push(last(Action::Deny, Reason::Isolated, rest));
                    Interval { start, entries }
                };
                PolicySet {
                    direction,
                    isolated: true,
                    classes: cut::cut(&stretches).map(|axis| axis.into_iter().map(interval).collect()),
                }
            }
        }
    }
}

fn open() -> desired::Rule {
    desired::Rule { name: NOT_ISOLATED.to_owned(), origin: String::new() }
}

/// Both come from the same drafts: what is looked up is there.
fn id(found: Result<usize, usize>) -> u32 {
    u32::try_from(found.unwrap_or_else(|at| at)).unwrap_or(u32::MAX)
}

/// What is wrong when the rules of a workload cut a class into more intervals than a port table has.
fn too_long(model: &Model, workload: &Workload, set: &PolicySet, draft: &Draft) -> Option<Diagnostic> {
    let (class, intervals) =
        Class::ALL.into_iter().zip(&set.classes).find(|(_, intervals)| intervals.len() > PORT_INTERVALS)?;
    let Draft::Isolated { grants, .. } = draft else {
        return None;
    };
    let (name, service) = workload.services.first().and_then(|first| Some((first, model.services.get(first)?)))?;
    let mut ranges: Vec<String> = Vec::new();
    for grant in grants.iter().filter(|grant| grant.stretch.class == class) {
        let Stretch { first, last, .. } = grant.stretch;
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let text = if grant.rule.origin.is_empty() {
            continue;
        } else {
            format!("{range} ({})", grant.rule.origin)
        };
        if !ranges.contains(&text) {
            ranges.push(text);
        }
    }
    let message = format!(
        "the rules of `{name}` cut {class:?} at {} into {} intervals, {PORT_INTERVALS} fit: {}",
        direction_label(set.direction),
        intervals.len(),
        ranges.join(", ")
    );
    Some(Diagnostic::error(&service.place, message).help("write neighbouring ports as one range, or split the service"))
}
