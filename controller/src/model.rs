//! What is meant, once names are resolved: one model whatever the source, in deterministic order.

mod events;
mod ports;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
};

pub(crate) use self::ports::is_unknown as is_unknown_port;
pub use crate::names::{PolicyName, ServiceName};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, suggest},
    few::Few,
    guard::{self, Guard},
    intent::{Cidrs, Entity, Intent, Line, PeerName},
    labels::{Labels, NAMESPACE_NAME, Selector},
    network_policy::NetworkPolicy,
    policy::Policy,
    ports::{Ports, Transport},
    workloads::{self, Frontend, FrontendPort, Node, Outside, Target, WorkloadName, Workloads},
};
use bulkhead_dataplane::desired;
use bulkhead_ebpf::abi::Direction;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// Everything that policy speaks of, and what it says.
#[derive(Clone, Debug)]
pub struct Model {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Workloads by name.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
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
    /// Guards in the order in which they are judged, first those before all rules.
    pub guards: Vec<Guard>,
    /// Kubernetes policies.
    pub network_policies: BTreeMap<PolicyName, Arc<NetworkPolicy>>,
    /// Rules of Intents in the order in which they are written, and behind them those of Kubernetes policies: of each in order, the policies by
    /// name until one changes. One line that opens a wall to several peers or ports is several rules of one name.
    pub rules: Vec<Rule>,
    /// Indexes of the rules that open a wall of Intents, in order.
    by_wall: BTreeMap<Wall, Vec<usize>>,
    /// Indexes of the rules of a Kubernetes policy, in order.
    by_policy: BTreeMap<PolicyName, Vec<usize>>,
    /// Service addresses that lead to a workload, whether it is there or not.
    leading: BTreeMap<WorkloadName, BTreeSet<ServiceName>>,
    /// Namespaces by a label and its value.
    labelled: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// What somebody should look at although the input is used.
    pub warnings: Diagnostics,
}

/// Who isolates a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation<'a> {
    /// A listed service.
    Service(&'a ServiceName, &'a Service),
    /// A `NetworkPolicy`.
    Policy(&'a NetworkPolicy),
}

impl<'a> Isolation<'a> {
    /// It only reports.
    #[must_use]
    pub const fn audit(self) -> bool {
        match self {
            Self::Service(_, service) => service.audit,
            Self::Policy(_) => false,
        }
    }

    /// Where it is written.
    #[must_use]
    pub const fn place(self) -> &'a Place {
        match self {
            Self::Service(_, service) => &service.place,
            Self::Policy(policy) => &policy.place,
        }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(self) -> &'a str {
        match self {
            Self::Service(name, _) => &name.namespace,
            Self::Policy(policy) => &policy.name.namespace,
        }
    }
}

impl fmt::Display for Isolation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, _) => name.fmt(f),
            Self::Policy(policy) => write!(f, "networkpolicy {}", policy.name),
        }
    }
}

/// A listed service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Where it is listed.
    pub place: Place,
    /// Labels that its workloads have.
    pub select: BTreeMap<String, String>,
    /// It isolates nobody: what it would block is reported.
    pub audit: bool,
    /// See [`crate::intent::Service::walls_only`].
    pub walls_only: bool,
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What is said of it.
    pub described: Arc<workloads::Workload>,
    /// Listed services that select it.
    pub services: Few<ServiceName>,
    /// Kubernetes policies that select it.
    pub policies: Few<PolicyName>,
    /// Service addresses that lead to it.
    pub frontends: Few<ServiceName>,
    /// Service for metrics: the first listed one, else what the service label says, else empty.
    pub service: Arc<str>,
}

impl Deref for Workload {
    type Target = workloads::Workload;

    fn deref(&self) -> &workloads::Workload {
        &self.described
    }
}

impl Workload {
    /// Where it listens by the name of a port, with this protocol or any.
    pub fn listens(
        &self,
        port: &str,
        transport: Option<Transport>,
    ) -> impl Iterator<Item = (Transport, u16)> + use<'_> {
        let all = self.ports.get(port).into_iter().flatten().copied();
        all.filter(move |(own, _)| transport.is_none_or(|transport| transport == *own))
    }

    /// All of its addresses that are known.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let known = self.endpoints.iter().filter(|endpoint| !endpoint.placeholder);
        known.flat_map(|endpoint| endpoint.addresses.iter().copied())
    }
}

/// Opens one wall of somebody to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, stable and without line numbers: `shop: cart calls db:5432/tcp`; and where it is written. One line that opens both ends is two rules of
    /// one name.
    pub named: Arc<desired::Rule>,
    /// Where it is written.
    pub place: Place,
    /// Whose wall.
    pub wall: Wall,
    /// Traffic to the wall's owner, or from it.
    pub direction: Direction,
    /// Who is let through.
    pub peer: Arc<Peer>,
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
    /// That of the workloads that a `NetworkPolicy` selects.
    Policy(PolicyName),
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Workloads by labels.
    Workloads {
        /// Their namespaces.
        namespaces: Scope,
        /// Their own labels.
        labels: Selector,
    },
    /// Nodes by labels.
    Nodes(Selector),
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// This one.
    Named(String),
    /// Those that have labels.
    Labelled(Selector),
}

impl Scope {
    /// Whether a namespace is one of them.
    #[must_use]
    pub fn holds(&self, model: &Model, namespace: &str) -> bool {
        match self {
            Self::Named(name) => name == namespace,
            Self::Labelled(selector) => selector.matches(&model.namespace(namespace)),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Labelled(selector) if selector.is_everybody() => f.write_str("*"),
            Self::Labelled(selector) => write!(f, "[{selector}]"),
        }
    }
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
            Self::Workloads { namespaces, labels } if labels.is_everybody() => write!(f, "workloads {namespaces}/*"),
            Self::Workloads { namespaces, labels } => write!(f, "workloads {namespaces}/[{labels}]"),
            Self::Nodes(labels) => write!(f, "nodes [{labels}]"),
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
                _ => None,
            })
            .collect();
        let guards = policies.iter().filter_map(|policy| match policy {
            Policy::Guard(guard) => Some(guard),
            _ => None,
        });
        let network = policies.iter().filter_map(|policy| match policy {
            Policy::Network(policy) => Some(policy),
            _ => None,
        });
        let network = network_policies(network, &mut found);
        let services = services(&intents, &workloads.service_label, &mut found);
        let externals = externals(&intents, &services, &mut found);
        let mut leading: BTreeMap<WorkloadName, BTreeSet<ServiceName>> = BTreeMap::new();
        for (name, frontend) in &workloads.frontends {
            frontend.workloads.iter().for_each(|to| _ = leading.entry(to.clone()).or_default().insert(name.clone()));
        }
        let mut model = Self {
            nodes: workloads.nodes.clone(),
            namespaces: workloads.namespaces.clone(),
            workloads: workloads
                .workloads
                .iter()
                .map(|(name, workload)| {
                    let frontends = leading.get(name).into_iter().flatten().cloned().collect();
                    let selected = select(name, workload, &services, &network, &workloads.service_label, frontends);
                    (name.clone(), selected)
                })
                .collect(),
            services,
            externals: externals.iter().map(|(name, (_, cidrs))| (name.clone(), cidrs.clone())).collect(),
            frontends: workloads.frontends.clone(),
            resolvers: workloads.resolvers.clone(),
            service_label: workloads.service_label.clone(),
            guards: Vec::new(),
            network_policies: network,
            rules: Vec::new(),
            by_wall: BTreeMap::new(),
            by_policy: BTreeMap::new(),
            leading,
            labelled: events::labelled(&workloads.namespaces),
            warnings: Diagnostics::default(),
        };
        model.warnings.0.extend(policies.iter().filter_map(|policy| match policy {
            Policy::Noted(note) => Some(note.clone()),
            _ => None,
        }));
        for intent in intents {
            Builder { model: &mut model, found: &mut found, intent, live: workloads.live }.intent();
        }
        let of_intents = mem::take(&mut model.rules);
        of_intents.into_iter().for_each(|rule| model.open(rule));
        let opened: Vec<_> = model.network_policies.values().flat_map(|policy| opened(policy)).collect();
        opened.into_iter().for_each(|rule| model.open(rule));
        guard::resolve(&mut model, guards, workloads.live, &mut found);
        model.warn_of_empty_services();
        let unknown = ports::unknown(&model);
        model.warnings.0.extend(unknown);
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
            _ if workload.host => false,
            Peer::Service(service) => self.is_member(service, name, workload),
            Peer::Backends(frontend) => workload.frontends.contains(frontend),
            Peer::Entity(entity) => *entity == Entity::Cluster,
            Peer::Cidrs(cidrs) => workload.addresses().any(|address| holds(cidrs, address)),
            Peer::Namespaces { label, value, other } => {
                (self.namespace(&name.namespace).get(label) == Some(value)) != *other
            }
            Peer::Any => true,
            Peer::Workloads { namespaces, labels } => {
                namespaces.holds(self, &name.namespace) && labels.matches(&workload.labels)
            }
            // A workload in a node's own network has no address of its own.
            Peer::Nodes(_) => false,
        }
    }

    /// Labels of a namespace: one that nobody has listed has its name.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Cow<'_, Labels> {
        let unlisted = || Cow::Owned(Labels::from_iter([(NAMESPACE_NAME, name)]));
        self.namespaces.get(name).map_or_else(unlisted, Cow::Borrowed)
    }

    /// All that isolates a workload in a direction, or would if it were enforced: first what does.
    #[must_use]
    pub fn isolations(&self, workload: &Workload, direction: Direction) -> Vec<Isolation<'_>> {
        let mut isolations: Vec<_> = self.isolating_any(workload, direction).collect();
        isolations.sort_by_key(|isolation| isolation.audit());
        isolations
    }

    /// The same, services first.
    fn isolating_any(&self, workload: &Workload, direction: Direction) -> impl Iterator<Item = Isolation<'_>> {
        let policies = self.policies_of(workload).filter(move |policy| policy.isolates(direction));
        self.isolating_services(workload).chain(policies.map(Isolation::Policy))
    }

    /// Listed services that a workload belongs to: each isolates it.
    pub(crate) fn isolating_services(&self, workload: &Workload) -> impl Iterator<Item = Isolation<'_>> {
        let services = workload.services.iter().filter_map(|name| self.services.get_key_value(name));
        services.map(|(name, service)| Isolation::Service(name, service))
    }

    /// Kubernetes policies that select a workload.
    pub(crate) fn policies_of(&self, workload: &Workload) -> impl Iterator<Item = &NetworkPolicy> {
        workload.policies.iter().filter_map(|name| self.network_policies.get(name).map(Arc::as_ref))
    }

    /// The first that isolates a workload in a direction, or with `audit` the first that would.
    #[must_use]
    pub fn isolating(&self, workload: &Workload, direction: Direction, audit: bool) -> Option<Isolation<'_>> {
        let mut all = self.isolating_any(workload, direction);
        let first = all.next()?;
        let enforced = if first.audit() { all.find(|isolation| !isolation.audit()) } else { Some(first) };
        enforced.or_else(|| Some(first).filter(|_| audit))
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
            .map(|(_, workload)| &*workload.service)
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

    /// Whether these are the resolvers' addresses.
    pub(crate) fn is_resolvers(&self, cidrs: &Cidrs) -> bool {
        hosts(&self.resolvers) == Peer::Cidrs(cidrs.clone()) || !self.resolvers.is_empty() && self.answers(cidrs)
    }

    /// Whether these are outside addresses that answer for a resolver.
    fn answers(&self, cidrs: &Cidrs) -> bool {
        let mut resolving = self.frontends.values().filter(|frontend| frontend.resolver);
        resolving.any(|frontend| hosts(&addresses(&frontend.outside)) == Peer::Cidrs(cidrs.clone()))
    }

    /// Every prefix that a policy mentions.
    pub fn cidrs(&self) -> impl Iterator<Item = &IpNetwork> {
        let guards = self.guards.iter().flat_map(|guard| &guard.rules);
        let peers = guards.filter_map(|rule| match &rule.peer {
            guard::Whom::Is(peer) => Some(peer),
            guard::Whom::Same | guard::Whom::Other => None,
        });
        let peers = peers.chain(self.rules.iter().map(|rule| &*rule.peer));
        let prefixes = peers.filter_map(|peer| match peer {
            Peer::Cidrs(cidrs) => Some(cidrs.cidrs.iter().chain(&cidrs.except)),
            _ => None,
        });
        prefixes.flatten()
    }

    /// Rules that open a wall of a workload, in order.
    pub fn rules_of<'a>(&'a self, workload: &'a Workload, direction: Direction) -> impl Iterator<Item = &'a Rule> {
        let policies = workload.policies.iter().flat_map(move |name| self.rules_of_policy(name, direction));
        self.rules_of_intents(workload, direction).chain(policies)
    }

    /// Those of Intents.
    pub(crate) fn rules_of_intents(&self, workload: &Workload, direction: Direction) -> impl Iterator<Item = &Rule> {
        let resolver = workload.addresses().any(|address| self.resolvers.contains(&address));
        let services = workload.services.iter().cloned().map(Wall::Service);
        let frontends = workload.frontends.iter().cloned().map(Wall::Backends);
        let walls = services.chain(resolver.then_some(Wall::Resolvers)).chain(frontends);
        let rules: BTreeSet<usize> = walls.filter_map(|wall| self.by_wall.get(&wall)).flatten().copied().collect();
        rules.into_iter().map(|index| &self.rules[index]).filter(move |rule| rule.direction == direction)
    }

    /// Those of a Kubernetes policy.
    pub(crate) fn rules_of_policy(&self, name: &PolicyName, direction: Direction) -> impl Iterator<Item = &Rule> {
        let rules = self.by_policy.get(name).into_iter().flatten().map(|index| &self.rules[*index]);
        rules.filter(move |rule| rule.direction == direction)
    }

    fn open(&mut self, rule: Rule) {
        let at = self.rules.len();
        self.index(&rule.wall).push(at);
        self.rules.push(rule);
    }

    /// Indexes of the rules that open a wall.
    fn index(&mut self, wall: &Wall) -> &mut Vec<usize> {
        match wall {
            Wall::Policy(name) => self.by_policy.entry(name.clone()).or_default(),
            wall => self.by_wall.entry(wall.clone()).or_default(),
        }
    }

    fn warn_of_empty_services(&mut self) {
        let populated: BTreeSet<_> = self.workloads.values().flat_map(|workload| &workload.services).collect();
        let mut warnings = Vec::new();
        for (name, service) in &self.services {
            if !populated.contains(name) {
                let labels: Vec<_> = service.select.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let values = self.workloads.iter().filter(|(workload, _)| workload.namespace == name.namespace);
                let values: Vec<_> =
                    values.filter_map(|(_, workload)| workload.labels.get(&self.service_label)).collect();
                let message = format!("service `{name}` selects no workload (it selects {})", labels.join(", "));
                warnings.push(Diagnostic::warning(&service.place, message).help(suggest(&name.name, values)));
            }
        }
        self.warnings.0.append(&mut warnings);
    }
}

/// Rules of a Kubernetes policy, one for each peer and port.
fn opened(policy: &NetworkPolicy) -> impl Iterator<Item = Rule> {
    let rules = policy.rules.iter().filter(|rule| policy.isolates(rule.direction));
    let peers = rules.flat_map(|rule| rule.peers.iter().map(move |peer| (rule, peer)));
    peers.flat_map(move |(rule, peer)| {
        rule.ports.iter().map(move |ports| Rule {
            named: Arc::new(desired::Rule { name: rule.name.clone(), origin: rule.place.origin() }),
            place: rule.place.clone(),
            wall: Wall::Policy(policy.name.clone()),
            direction: rule.direction,
            peer: Arc::new(peer.clone()),
            ports: ports.clone(),
            audit: false,
        })
    })
}

/// Whether an address belongs to prefixes with exceptions.
#[must_use]
pub fn holds(cidrs: &Cidrs, address: IpAddr) -> bool {
    let any = |nets: &[IpNetwork]| nets.iter().any(|net| net.contains(address));
    any(&cidrs.cidrs) && !any(&cidrs.except)
}

/// Who answers a port outside, by the port that answers.
fn by_port(outside: &BTreeSet<Outside>, port: &FrontendPort) -> BTreeMap<u16, BTreeSet<IpAddr>> {
    let mut by_port: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for outside in outside {
        if let Some(number) = port.answered_by(outside) {
            by_port.entry(number).or_default().insert(outside.address);
        }
    }
    by_port
}

fn addresses(outside: &BTreeSet<Outside>) -> BTreeSet<IpAddr> {
    outside.iter().map(|outside| outside.address).collect()
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
            let name = ServiceName::new(intent.namespace.clone(), service.name.clone());
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
            let name = ServiceName::new(intent.namespace.clone(), external.name.clone());
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

fn network_policies<'a>(
    policies: impl Iterator<Item = &'a NetworkPolicy>,
    found: &mut Diagnostics,
) -> BTreeMap<PolicyName, Arc<NetworkPolicy>> {
    let mut by_name: BTreeMap<PolicyName, Arc<NetworkPolicy>> = BTreeMap::new();
    for policy in policies {
        if let Some(first) = by_name.get(&policy.name) {
            let message = format!("NetworkPolicy `{}` is written twice", policy.name);
            let error = Diagnostic::error(&policy.place, message).note(&first.place, "first here");
            found.push(error.help("give it another name, or remove one of the two"));
        }
        by_name.insert(policy.name.clone(), Arc::new(policy.clone()));
    }
    by_name
}

/// What a map that is ordered by namespace has of one.
fn of_namespace<'a, T>(
    by_name: &'a BTreeMap<ServiceName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ServiceName, &'a T)> {
    let first = ServiceName::new(namespace.to_owned(), String::new());
    by_name.range(first..).take_while(move |(name, _)| name.namespace == namespace)
}

fn select(
    name: &WorkloadName,
    workload: &Arc<workloads::Workload>,
    services: &BTreeMap<ServiceName, Service>,
    policies: &BTreeMap<PolicyName, Arc<NetworkPolicy>>,
    label: &str,
    frontends: Few<ServiceName>,
) -> Workload {
    let selects = |(_, of): &(&ServiceName, &Service)| {
        !workload.host && of.select.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    };
    let here = of_namespace(services, &name.namespace).filter(selects);
    let services: Few<ServiceName> = here.map(|(service, _)| service.clone()).collect();
    let here = of_namespace(policies, &name.namespace)
        .filter(|(_, policy)| !workload.host && policy.pods.matches(&workload.labels));
    let policies = here.map(|(policy, _)| policy.clone()).collect();
    let service = services
        .first()
        .map(|service| service.name.as_str())
        .or_else(|| workload.labels.get(label))
        .map_or_else(Arc::default, Into::into);
    Workload { described: Arc::clone(workload), services, policies, frontends, service }
}

/// Adds the rules of one document.
struct Builder<'a> {
    model: &'a mut Model,
    found: &'a mut Diagnostics,
    intent: &'a Intent,
    /// The cluster's objects come and go by themselves.
    live: bool,
}

impl Builder<'_> {
    fn intent(&mut self) {
        for service in &self.intent.services {
            let name = ServiceName::new(self.intent.namespace.clone(), service.name.clone());
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
        let named = Arc::new(desired::Rule { name, origin: line.place.origin() });
        let rule = |wall: &ServiceName, direction, peer| Rule {
            named: Arc::clone(&named),
            place: line.place.clone(),
            wall: Wall::Service(wall.clone()),
            direction,
            peer: Arc::new(peer),
            ports: line.ports.clone(),
            audit: self.intent.audit,
        };
        if let Ports::Named { .. } = &line.ports {
            let listener = if direction == Direction::Ingress { &Peer::Service(service.clone()) } else { &peer };
            if !self.named_port(line, listener) {
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
                let full = ServiceName::new(self.intent.namespace.clone(), name.clone());
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
                let full = ServiceName::new(namespace.clone(), name.clone());
                if let Some(warning) = self.model.nobody(&full, &line.place, "the line matches nobody") {
                    self.model.warnings.push(warning);
                }
                Some(Peer::Service(full))
            }
        }
    }

    /// Whether somebody can have a named port.
    fn named_port(&mut self, line: &Line, listener: &Peer) -> bool {
        let can = matches!(listener, Peer::Service(_) | Peer::Entity(Entity::Cluster));
        if !can {
            let error = Diagnostic::error(&line.place, format!("`{}` has no port names", line.peer));
            self.found.push(error.help("write the port's number; only workloads name their ports"));
        }
        can
    }

    fn dns(&mut self, place: &Place) {
        if self.model.resolvers.is_empty() && self.live {
            // Nobody asks it until it is there again, and nobody else's policy waits for that.
            let warning = Diagnostic::warning(place, "`dns: cluster` opens nothing: the cluster has no resolver now");
            self.model
                .warnings
                .push(warning.help("see `kubectl get services --namespace kube-system --selector k8s-app=kube-dns`"));
            return;
        }
        if self.model.resolvers.is_empty() {
            let error = Diagnostic::error(place, "`dns: cluster` has no effect: no resolver is known");
            self.found.push(error.help("write `resolvers: [10.96.0.10]` in the workloads file, or remove `dns`"));
            return;
        }
        let resolvers = hosts(&self.model.resolvers);
        // Calls to a service address are judged by who answers in the end.
        let mut answering = Vec::new();
        for (name, frontend) in &self.model.frontends {
            if frontend.resolver {
                let dns = |port: &&FrontendPort| port.port == 53 && port.transport != Transport::Sctp;
                let workloads = (!frontend.workloads.is_empty()).then(|| name.clone());
                let ports = frontend.ports.iter().filter(dns);
                answering.extend(
                    ports.map(|port| (name.clone(), workloads.clone(), by_port(&frontend.outside, port), port.clone())),
                );
            }
        }
        for service in &self.intent.services {
            let full = ServiceName::new(self.intent.namespace.clone(), service.name.clone());
            for ports in [Ports::one(Transport::Udp, 53), Ports::one(Transport::Tcp, 53)] {
                let name = format!("{}: {} asks dns {ports}", self.intent.namespace, service.name);
                let named = Arc::new(desired::Rule { name, origin: place.origin() });
                let rule = |wall, direction, peer| Rule {
                    named: Arc::clone(&named),
                    place: place.clone(),
                    wall,
                    direction,
                    peer: Arc::new(peer),
                    ports: ports.clone(),
                    audit: self.intent.audit,
                };
                self.model.rules.push(rule(Wall::Service(full.clone()), Direction::Egress, resolvers.clone()));
                self.model.rules.push(rule(Wall::Resolvers, Direction::Ingress, Peer::Service(full.clone())));
            }
            for (name, workloads, outside, FrontendPort { transport, target, .. }) in &answering {
                let ports = match target {
                    Target::Number(number) => Ports::one(*transport, *number),
                    Target::Named(name) => Ports::named(name),
                };
                let named = |ports: &Ports, from: &str| desired::Rule {
                    name: format!("{}: {} asks dns {ports} {from} {name}", self.intent.namespace, service.name),
                    origin: place.origin(),
                };
                let rule = |ports: &Ports, from: &str, wall, direction, peer| Rule {
                    named: Arc::new(named(ports, from)),
                    place: place.clone(),
                    wall,
                    direction,
                    peer: Arc::new(peer),
                    ports: ports.clone(),
                    audit: self.intent.audit,
                };
                let caller = || Wall::Service(full.clone());
                if let Some(frontend) = workloads {
                    let backends = (Wall::Backends(frontend.clone()), Peer::Backends(frontend.clone()));
                    self.model.rules.push(rule(&ports, "of", caller(), Direction::Egress, backends.1));
                    self.model.rules.push(rule(
                        &ports,
                        "of",
                        backends.0,
                        Direction::Ingress,
                        Peer::Service(full.clone()),
                    ));
                }
                for (number, addresses) in outside {
                    let ports = Ports::one(*transport, *number);
                    let outside = rule(&ports, "outside, of", caller(), Direction::Egress, hosts(addresses));
                    self.model.rules.push(outside);
                }
            }
        }
    }
}
