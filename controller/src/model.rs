//! What is meant, once names are resolved: one model whatever the source, in deterministic order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bulkhead_ebpf::abi::{Direction, Mode};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, suggest},
    guard::{self, Guard},
    intent::{Cidrs, Entity, Intent, Line, PeerName},
    policy::Policy,
    ports::{Ports, Transport},
    workloads::{self, Endpoint, Frontend, FrontendPort, Node, Target, WorkloadName, Workloads},
};

/// Everything that policy speaks of, and what it says.
#[derive(Clone, Debug)]
pub struct Model {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Workloads by name.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Services that an Intent lists: the isolated ones, and those whose isolation is only judged.
    pub services: BTreeMap<ServiceName, Service>,
    /// Peers without a container, by namespace and name.
    pub externals: BTreeMap<ServiceName, Cidrs>,
    /// Service addresses.
    pub frontends: BTreeMap<ServiceName, Frontend>,
    /// DNS resolvers.
    pub resolvers: BTreeSet<IpAddr>,
    /// Label that names the service of a workload that no listed service selects.
    pub service_label: String,
    /// Guards in the order in which they are judged, before all rules.
    pub guards: Vec<Guard>,
    /// Rules of Intents in the order in which they are written. Names are unique for each wall and direction.
    pub rules: Vec<Rule>,
    /// What somebody should look at although the input is used.
    pub warnings: Diagnostics,
}

/// Namespace and name of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A listed service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it is listed.
    pub place: Place,
    /// Labels that its workloads have.
    pub select: BTreeMap<String, String>,
    /// It isolates nobody: what it would block is reported.
    pub audit: bool,
    /// See [`intent::Service::walls_only`].
    pub walls_only: bool,
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Node that it runs on.
    pub node: String,
    /// Whether policy holds, is only judged, or nothing passes at all.
    pub mode: Mode,
    /// Named ports that it listens on.
    pub ports: BTreeMap<String, (Transport, u16)>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Listed services that select it.
    pub services: BTreeSet<ServiceName>,
    /// Service addresses that lead to it.
    pub frontends: BTreeSet<ServiceName>,
    /// Service for metrics: the first listed one, else what the service label says, else empty.
    pub service: String,
    /// Where it is described.
    pub place: Place,
}

impl Workload {
    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
    }
}

/// Opens one wall of somebody to somebody.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Stable and without line numbers: `shop: cart calls db:5432/tcp`. One line that opens both ends is two rules of one name.
    pub name: String,
    /// Where it is written.
    pub place: Place,
    /// Whose wall.
    pub wall: Wall,
    /// Traffic to the wall's owner, or from it.
    pub direction: Direction,
    /// Who is let through.
    pub peer: Peer,
    /// Ports on the side that listens.
    pub ports: Ports,
    /// It grants nothing: what it would let through is reported.
    pub audit: bool,
}

/// Whose wall a rule opens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// That of a listed service.
    Service(ServiceName),
    /// That of each workload with a resolver's address, if it has one.
    Resolvers,
    /// That of each workload to which a service address leads, if it has one.
    Backends(ServiceName),
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Addresses.
    Cidrs(Cidrs),
    /// What has its name from us.
    Entity(Entity),
    /// A service: a listed one, or what the service label says.
    Service(ServiceName),
    /// Workloads by a label of their namespaces.
    Namespaces {
        /// Label.
        label: String,
        /// Its value.
        value: String,
        /// Everyone else instead, known or not.
        other: bool,
    },
    /// Everyone, known or not.
    Any,
    /// The workloads to which a service address leads.
    Backends(ServiceName),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidrs(cidrs) => write!(f, "cidr {cidrs}"),
            Self::Entity(entity) => write!(f, "entity {entity}"),
            Self::Service(service) => write!(f, "service {service}"),
            Self::Namespaces { label, value, other: false } => write!(f, "namespaces {label}={value}"),
            Self::Namespaces { label, value, other: true } => write!(f, "other than namespaces {label}={value}"),
            Self::Any => f.write_str("any"),
            Self::Backends(frontend) => write!(f, "backends {frontend}"),
        }
    }
}

impl Model {
    /// Resolves names.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn build(policies: &[Policy], workloads: &Workloads) -> Result<Self, Diagnostics> {
        let mut found = Diagnostics::default();
        let intents: Vec<&Intent> = policies
            .iter()
            .filter_map(|policy| match policy {
                Policy::Intent(intent) => Some(intent),
                Policy::Guard(_) => None,
            })
            .collect();
        let guards = policies.iter().filter_map(|policy| match policy {
            Policy::Guard(guard) => Some(guard),
            Policy::Intent(_) => None,
        });
        let services = services(&intents, &workloads.service_label, &mut found);
        let externals = externals(&intents, &services, &mut found);
        let mut leading: BTreeMap<&WorkloadName, BTreeSet<ServiceName>> = BTreeMap::new();
        for (name, frontend) in &workloads.frontends {
            frontend.workloads.iter().for_each(|to| _ = leading.entry(to).or_default().insert(name.clone()));
        }
        let mut model = Self {
            nodes: workloads.nodes.clone(),
            namespaces: workloads.namespaces.clone(),
            workloads: workloads
                .workloads
                .iter()
                .map(|(name, workload)| {
                    let frontends = leading.remove(name).unwrap_or_default();
                    (name.clone(), select(name, workload, &services, &workloads.service_label, frontends))
                })
                .collect(),
            services,
            externals: externals.iter().map(|(name, (_, cidrs))| (name.clone(), cidrs.clone())).collect(),
            frontends: workloads.frontends.clone(),
            resolvers: workloads.resolvers.clone(),
            service_label: workloads.service_label.clone(),
            guards: Vec::new(),
            rules: Vec::new(),
            warnings: Diagnostics::default(),
        };
        for intent in intents {
            Builder { model: &mut model, found: &mut found, intent }.intent();
        }
        guard::resolve(&mut model, guards, &mut found);
        model.warn_of_empty_services();
        found.or(model)
    }

    /// Whether a workload belongs to a service, listed or not.
    #[must_use]
    pub fn is_member(&self, service: &ServiceName, name: &WorkloadName, workload: &Workload) -> bool {
        if self.services.get(service).is_some_and(|listed| !listed.walls_only) {
            workload.services.contains(service)
        } else {
            name.namespace == service.namespace && workload.labels.get(&self.service_label) == Some(&service.name)
        }
    }

    /// Members of a service, listed or not.
    pub fn members<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = (&'a WorkloadName, &'a Workload)> {
        self.workloads.iter().filter(|(name, workload)| self.is_member(service, name, workload))
    }

    /// Whether a peer is this workload (on whatever segment), and not merely an address of its node.
    #[must_use]
    pub fn matches(&self, peer: &Peer, name: &WorkloadName, workload: &Workload) -> bool {
        match peer {
            Peer::Service(service) => self.is_member(service, name, workload),
            Peer::Backends(frontend) => workload.frontends.contains(frontend),
            Peer::Entity(entity) => *entity == Entity::Cluster,
            Peer::Cidrs(cidrs) => workload.addresses().any(|address| holds(cidrs, address)),
            Peer::Namespaces { label, value, other } => {
                (self.namespace(&name.namespace).get(label) == Some(value)) != *other
            }
            Peer::Any => true,
        }
    }

    /// Labels of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.namespaces.get(name).unwrap_or(NONE)
    }

    /// The first listed service that isolates a workload, or with `audit` the first that would.
    #[must_use]
    pub fn isolating(&self, workload: &Workload, audit: bool) -> Option<(&ServiceName, &Service)> {
        let listed = || workload.services.iter().filter_map(|name| self.services.get_key_value(name));
        listed().find(|(_, service)| !service.audit).or_else(|| listed().next().filter(|_| audit))
    }

    /// What to say of a service that nobody is.
    pub(crate) fn nobody(&self, service: &ServiceName, place: &Place, so: &str) -> Option<Diagnostic> {
        if self.services.contains_key(service) || self.members(service).next().is_some() {
            return None;
        }
        let names: Vec<_> = self
            .workloads
            .iter()
            .filter(|(workload, _)| workload.namespace == service.namespace)
            .map(|(_, workload)| workload.service.as_str())
            .filter(|service| !service.is_empty())
            .collect();
        let warning = Diagnostic::warning(place, format!("nobody is `{service}`: {so}"));
        Some(warning.help(suggest(&service.name, names)))
    }

    /// The service to whose addresses this one belongs.
    #[must_use]
    pub fn frontend_at(&self, address: IpAddr) -> Option<&ServiceName> {
        self.frontends.iter().find(|(_, frontend)| frontend.addresses.contains(&address)).map(|(name, _)| name)
    }

    /// Rules that open a wall of a workload, in order.
    pub fn rules_of<'a>(&'a self, workload: &'a Workload, direction: Direction) -> impl Iterator<Item = &'a Rule> {
        let resolver = workload.addresses().any(|address| self.resolvers.contains(&address));
        self.rules.iter().filter(move |rule| {
            rule.direction == direction
                && match &rule.wall {
                    Wall::Service(service) => workload.services.contains(service),
                    Wall::Resolvers => resolver,
                    Wall::Backends(frontend) => workload.frontends.contains(frontend),
                }
        })
    }

    fn warn_of_empty_services(&mut self) {
        let populated: BTreeSet<_> = self.workloads.values().flat_map(|workload| &workload.services).collect();
        let mut warnings = Vec::new();
        for (name, service) in &self.services {
            if !populated.contains(name) {
                let labels: Vec<_> = service.select.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let values = self.workloads.iter().filter(|(workload, _)| workload.namespace == name.namespace);
                let values: Vec<_> = values
                    .filter_map(|(_, workload)| workload.labels.get(&self.service_label))
                    .map(String::as_str)
                    .collect();
                let message = format!("service `{name}` selects no workload (it selects {})", labels.join(", "));
                warnings.push(Diagnostic::warning(&service.place, message).help(suggest(&name.name, values)));
            }
        }
        self.warnings.0.append(&mut warnings);
    }
}

/// Whether an address belongs to prefixes with exceptions.
#[must_use]
pub fn holds(cidrs: &Cidrs, address: IpAddr) -> bool {
    let any = |nets: &[IpNetwork]| nets.iter().any(|net| net.contains(address));
    any(&cidrs.cidrs) && !any(&cidrs.except)
}

/// Addresses as a peer.
fn hosts(addresses: &BTreeSet<IpAddr>) -> Peer {
    Peer::Cidrs(Cidrs { cidrs: addresses.iter().map(|&address| address.into()).collect(), except: Vec::new() })
}

/// Addresses where clouds keep credentials.
pub const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// What is no part of the world although it may be no part of the cluster either: unspecified, loopback, link-local, multicast, broadcast.
#[must_use]
pub fn local_prefixes() -> Vec<IpNetwork> {
    let v4 = |address: [u8; 4], prefix| Ipv4Network::new(address.into(), prefix).map(IpNetwork::V4);
    let v6 = |first: u16, last: u16, prefix| {
        Ipv6Network::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last), prefix).map(IpNetwork::V6)
    };
    let all = [
        v4([0, 0, 0, 0], 32),
        v4([127, 0, 0, 0], 8),
        v4([169, 254, 0, 0], 16),
        v4([224, 0, 0, 0], 4),
        v4([255, 255, 255, 255], 32),
        v6(0, 0, 128),
        v6(0, 1, 128),
        v6(0xfe80, 0, 10),
        v6(0xff00, 0, 8),
    ];
    all.into_iter().flatten().collect()
}

fn services(intents: &[&Intent], label: &str, found: &mut Diagnostics) -> BTreeMap<ServiceName, Service> {
    let mut services: BTreeMap<ServiceName, Service> = BTreeMap::new();
    for intent in intents {
        for service in &intent.services {
            let name = ServiceName { namespace: intent.namespace.clone(), name: service.name.clone() };
            if let Some(first) = services.get(&name) {
                let error = Diagnostic::error(&service.place, format!("service `{name}` is listed twice"))
                    .note(&first.place, "first here");
                found.push(error.help("put its lines together in one place"));
            }
            let select =
                service.select.clone().unwrap_or_else(|| BTreeMap::from([(label.to_owned(), service.name.clone())]));
            let audit = intent.audit || service.audit;
            let walls_only = service.walls_only;
            services.insert(name, Service { place: service.place.clone(), select, audit, walls_only });
        }
    }
    services
}

fn externals(
    intents: &[&Intent],
    services: &BTreeMap<ServiceName, Service>,
    found: &mut Diagnostics,
) -> BTreeMap<ServiceName, (Place, Cidrs)> {
    let mut externals: BTreeMap<ServiceName, (Place, Cidrs)> = BTreeMap::new();
    for intent in intents {
        for external in &intent.external {
            let name = ServiceName { namespace: intent.namespace.clone(), name: external.name.clone() };
            let first = services
                .get(&name)
                .map(|service| &service.place)
                .or_else(|| externals.get(&name).map(|(place, _)| place));
            if let Some(first) = first {
                let error = Diagnostic::error(&external.place, format!("the name `{name}` is given twice"))
                    .note(first, "first here");
                found.push(error.help("services and externals of a namespace have names of their own"));
            }
            externals.insert(name, (external.place.clone(), external.cidrs.clone()));
        }
    }
    externals
}

fn select(
    name: &WorkloadName,
    workload: &workloads::Workload,
    services: &BTreeMap<ServiceName, Service>,
    label: &str,
    frontends: BTreeSet<ServiceName>,
) -> Workload {
    let selects = |(service, of): &(&ServiceName, &Service)| {
        service.namespace == name.namespace
            && of.select.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    };
    let services: BTreeSet<ServiceName> = services.iter().filter(selects).map(|(service, _)| service.clone()).collect();
    let service = services
        .first()
        .map(|service| service.name.clone())
        .or_else(|| workload.labels.get(label).cloned())
        .unwrap_or_default();
    Workload {
        labels: workload.labels.clone(),
        node: workload.node.clone(),
        mode: workload.mode,
        ports: workload.ports.clone(),
        endpoints: workload.endpoints.clone(),
        services,
        frontends,
        service,
        place: workload.place.clone(),
    }
}

/// Adds the rules of one document.
struct Builder<'a> {
    model: &'a mut Model,
    found: &'a mut Diagnostics,
    intent: &'a Intent,
}

impl Builder<'_> {
    fn intent(&mut self) {
        for service in &self.intent.services {
            let name = ServiceName { namespace: self.intent.namespace.clone(), name: service.name.clone() };
            for (lines, direction) in [(&service.accepts, Direction::Ingress), (&service.calls, Direction::Egress)] {
                let mut first: BTreeMap<String, &Place> = BTreeMap::new();
                for line in lines {
                    let text = format!("{}:{}", line.peer, line.ports);
                    if let Some(first) = first.insert(text.clone(), &line.place) {
                        let error = Diagnostic::error(&line.place, format!("`{text}` is written twice in one list"))
                            .note(first, "first here");
                        self.found.push(error.help("keep one of the two"));
                        continue;
                    }
                    self.line(&name, line, direction);
                }
            }
        }
        if let Some(place) = &self.intent.dns {
            self.dns(place);
        }
    }

    fn line(&mut self, service: &ServiceName, line: &Line, direction: Direction) {
        let Some(peer) = self.peer(line) else { return };
        let verb = if direction == Direction::Ingress { "accepts" } else { "calls" };
        let name = format!("{}: {} {verb} {}:{}", service.namespace, service.name, line.peer, line.ports);
        let rule = |wall: &ServiceName, direction, peer| Rule {
            name: name.clone(),
            place: line.place.clone(),
            wall: Wall::Service(wall.clone()),
            direction,
            peer,
            ports: line.ports.clone(),
            audit: self.intent.audit,
        };
        if let Ports::Named(port) = &line.ports {
            let listener = if direction == Direction::Ingress { &Peer::Service(service.clone()) } else { &peer };
            if !self.named_port(line, port, listener) {
                return;
            }
        }
        // Inside a namespace one `calls` opens both ends; across namespaces each side opens its own wall.
        if let (Direction::Egress, Peer::Service(callee)) = (direction, &peer)
            && callee.namespace == service.namespace
        {
            self.model.rules.push(rule(callee, Direction::Ingress, Peer::Service(service.clone())));
        }
        self.model.rules.push(rule(service, direction, peer));
    }

    fn peer(&mut self, line: &Line) -> Option<Peer> {
        match &line.peer {
            PeerName::Entity(entity) => Some(Peer::Entity(*entity)),
            PeerName::Local(name) => {
                let full = ServiceName { namespace: self.intent.namespace.clone(), name: name.clone() };
                if let Some(cidrs) = self.model.externals.get(&full) {
                    return Some(Peer::Cidrs(cidrs.clone()));
                }
                if !self.model.services.contains_key(&full) {
                    let here = |full: &&ServiceName| full.namespace == self.intent.namespace;
                    let names = self.model.services.keys().filter(here).chain(self.model.externals.keys().filter(here));
                    let names: Vec<_> =
                        names.map(|full| full.name.as_str()).chain(Entity::ALL.map(Entity::name)).collect();
                    let error = Diagnostic::error(
                        &line.place,
                        format!("nothing in namespace `{}` is called `{name}`", self.intent.namespace),
                    );
                    self.found.push(error.help(suggest(name, names)));
                    return None;
                }
                Some(Peer::Service(full))
            }
            PeerName::Remote { namespace, name } => {
                let full = ServiceName { namespace: namespace.clone(), name: name.clone() };
                if let Some(warning) = self.model.nobody(&full, &line.place, "the line matches nobody") {
                    self.model.warnings.push(warning);
                }
                Some(Peer::Service(full))
            }
        }
    }

    /// Whether somebody can have a named port. Nobody is there yet: somebody may come who has it.
    fn named_port(&mut self, line: &Line, port: &str, listener: &Peer) -> bool {
        if !matches!(listener, Peer::Service(_) | Peer::Entity(Entity::Cluster)) {
            let error = Diagnostic::error(&line.place, format!("`{}` has no port names", line.peer));
            self.found.push(error.help("write the port's number; only workloads name their ports"));
            return false;
        }
        let members: Vec<_> = self
            .model
            .workloads
            .iter()
            .filter(|(name, workload)| self.model.matches(listener, name, workload))
            .collect();
        if members.is_empty() || members.iter().any(|(_, workload)| workload.ports.contains_key(port)) {
            return true;
        }
        let names: Vec<_> =
            members.iter().flat_map(|(_, workload)| workload.ports.keys()).map(String::as_str).collect();
        let error = Diagnostic::error(&line.place, format!("no workload that listens there has a port `{port}`"));
        self.found.push(error.help(suggest(port, names)));
        false
    }

    fn dns(&mut self, place: &Place) {
        if self.model.resolvers.is_empty() {
            let error = Diagnostic::error(place, "`dns: cluster` has no effect: no resolver is known");
            self.found.push(error.help("write `resolvers: [10.96.0.10]` in the workloads file, or remove `dns`"));
            return;
        }
        let resolvers = hosts(&self.model.resolvers);
        // Calls to a service address are judged by who answers in the end.
        let mut answering = Vec::new();
        for (name, frontend) in &self.model.frontends {
            if !frontend.addresses.is_disjoint(&self.model.resolvers) {
                let dns = |port: &&FrontendPort| port.port == 53 && port.transport != Transport::Sctp;
                let workloads = (!frontend.workloads.is_empty()).then(|| name.clone());
                let ports = frontend.ports.iter().filter(dns);
                answering.extend(
                    ports.map(|port| (name.clone(), workloads.clone(), frontend.outside.clone(), port.clone())),
                );
            }
        }
        for service in &self.intent.services {
            let full = ServiceName { namespace: self.intent.namespace.clone(), name: service.name.clone() };
            for ports in [Ports::one(Transport::Udp, 53), Ports::one(Transport::Tcp, 53)] {
                let name = format!("{}: {} asks dns {ports}", self.intent.namespace, service.name);
                let rule = |wall, direction, peer| Rule {
                    name: name.clone(),
                    place: place.clone(),
                    wall,
                    direction,
                    peer,
                    ports: ports.clone(),
                    audit: self.intent.audit,
                };
                self.model.rules.push(rule(Wall::Service(full.clone()), Direction::Egress, resolvers.clone()));
                self.model.rules.push(rule(Wall::Resolvers, Direction::Ingress, Peer::Service(full.clone())));
            }
            for (name, workloads, outside, FrontendPort { transport, target, .. }) in &answering {
                let ports = match target {
                    Target::Number(number) => Ports::one(*transport, *number),
                    Target::Named(name) => Ports::Named(name.clone()),
                };
                let rule = |from: &str, wall, direction, peer| Rule {
                    name: format!("{}: {} asks dns {ports} {from} {name}", self.intent.namespace, service.name),
                    place: place.clone(),
                    wall,
                    direction,
                    peer,
                    ports: ports.clone(),
                    audit: self.intent.audit,
                };
                let caller = || Wall::Service(full.clone());
                if let Some(frontend) = workloads {
                    let backends = (Wall::Backends(frontend.clone()), Peer::Backends(frontend.clone()));
                    self.model.rules.push(rule("of", caller(), Direction::Egress, backends.1));
                    self.model.rules.push(rule("of", backends.0, Direction::Ingress, Peer::Service(full.clone())));
                }
                if !outside.is_empty() {
                    self.model.rules.push(rule("outside, of", caller(), Direction::Egress, hosts(outside)));
                }
            }
        }
    }
}
