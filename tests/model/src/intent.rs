//! What an `Intent` means, read line by line.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    World,
    policy::{Cidrs, Direction, Ports, Reading, Want, listener},
    world::{Entity, Labels, Peer, Protocol, Workload},
};

/// One document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Namespace that it speaks for.
    pub namespace: String,
    /// It only reports: it neither isolates nor allows. The names that it gives hold all the same.
    pub audit: bool,
    /// Its services may ask the name servers.
    pub dns: bool,
    /// Peers without a container.
    pub external: BTreeMap<String, Cidrs>,
    /// Services that it isolates.
    pub services: BTreeMap<String, Service>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Labels of its workloads; `None`: those whose service label says its name.
    pub select: Option<Labels>,
    /// Its own walls only report; its lines grant as ever.
    pub audit: bool,
    /// Who may begin a conversation with it.
    pub accepts: Vec<Line>,
    /// With whom it may begin one.
    pub calls: Vec<Line>,
}

/// A line of an allow-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name, which the caller chooses.
    pub id: String,
    /// The other end.
    pub peer: Name,
    /// What may be asked for; of the service that listens.
    pub ports: Ports,
}

/// How a line names the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// An entity.
    Entity(Entity),
    /// A service or an external peer of the namespace.
    Own(String),
    /// A service of another namespace.
    Other(String, String),
}

/// Name of what isolates a service.
#[must_use]
pub fn isolation_id(namespace: &str, service: &str) -> String {
    format!("{namespace}/{service} isolated")
}

/// Name of a service's permission to ask name servers.
#[must_use]
pub fn dns_id(namespace: &str, service: &str, protocol: Protocol) -> String {
    format!("{namespace}: {service} asks dns 53/{}", protocol.name())
}

/// Whether the workload is one of the service's.
fn member(world: &World, namespace: &str, name: &str, service: &Service, workload: &Workload) -> bool {
    let labelled = match &service.select {
        Some(labels) => labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value)),
        None => workload.labels.get(&world.service_label).is_some_and(|label| label == name),
    };
    workload.namespace == namespace && labelled
}

/// Whether the workload is one of the service of that name, whoever declares it.
pub(crate) fn named_member(world: &World, namespace: &str, name: &str, workload: &Workload) -> bool {
    let mut declared = of_namespace(world, namespace).flat_map(|intent| &intent.services).filter(|(n, _)| *n == name);
    match declared.next() {
        Some((name, service)) => member(world, namespace, name, service, workload),
        // Nobody declares it; the source knows it by the label.
        None => member(world, namespace, name, &Service::default(), workload),
    }
}

fn of_namespace<'a>(world: &'a World, namespace: &str) -> impl Iterator<Item = &'a Intent> {
    world.intents().filter(move |intent| intent.namespace == namespace)
}

/// Names of what isolates the workload; empty when nothing does.
#[must_use]
pub fn isolating(world: &World, reading: Reading, workload: &Workload) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for intent in world.intents().filter(|intent| reading.counts(intent.audit)) {
        for (name, service) in &intent.services {
            if reading.counts(service.audit) && member(world, &intent.namespace, name, service, workload) {
                found.insert(isolation_id(&intent.namespace, name));
            }
        }
    }
    found
}

/// Names of the lines that allow the conversation.
#[must_use]
pub fn grants(
    world: &World,
    reading: Reading,
    subject: &Workload,
    direction: Direction,
    peer: &Peer<'_>,
    want: Want,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let listener = listener(subject, direction, peer);
    for intent in world.intents().filter(|intent| reading.counts(intent.audit)) {
        let namespace = &intent.namespace;
        let named = |name: &Name| match name {
            Name::Entity(entity) => peer.is(*entity),
            Name::Own(name) => {
                let external = of_namespace(world, namespace).find_map(|intent| intent.external.get(name));
                match external {
                    Some(cidrs) => cidrs.hold(peer),
                    None => peer.workload.is_some_and(|w| named_member(world, namespace, name, w)),
                }
            }
            Name::Other(namespace, name) => peer.workload.is_some_and(|w| named_member(world, namespace, name, w)),
        };
        for (name, service) in &intent.services {
            let subject_in = member(world, namespace, name, service, subject);
            let peer_in = peer.workload.is_some_and(|w| member(world, namespace, name, service, w));
            // A service's own lines open its own walls.
            let own = match direction {
                Direction::Ingress => &service.accepts,
                Direction::Egress => &service.calls,
            };
            for line in own {
                if subject_in && named(&line.peer) && line.ports.hold(want, listener) {
                    found.insert(line.id.clone());
                }
            }
            // A call opens the other end as well, where that is of the same namespace.
            for line in &service.calls {
                if let Name::Own(target) = &line.peer
                    && direction == Direction::Ingress
                    && peer_in
                    && named_member(world, namespace, target, subject)
                    && line.ports.hold(want, listener)
                {
                    found.insert(line.id.clone());
                }
            }
            // Name servers: the caller's wall, and theirs.
            if intent.dns
                && let Want::Port(protocol @ (Protocol::Udp | Protocol::Tcp), 53) = want
            {
                let asks = direction == Direction::Egress && subject_in && world.resolvers.contains(&peer.address);
                let answers = direction == Direction::Ingress
                    && peer_in
                    && subject.endpoints.iter().flat_map(|e| &e.addresses).any(|a| world.resolvers.contains(a));
                if asks || answers {
                    found.insert(dns_id(namespace, name, protocol));
                }
            }
        }
    }
    found
}
