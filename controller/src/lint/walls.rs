//! Who decides what at each wall, line by line. The compiler leaves out what nobody reaches; here that is what is asked for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bulkhead_ebpf::abi::{Action, Direction, Mode};
use ipnetwork::IpNetwork;

use crate::{
    compile::{NODE_REACHES, isolated},
    diagnostic::Place,
    guard::{self, Guard, Tier},
    intent::Entity,
    labels::Selector,
    model::{Isolation, METADATA, Model, Peer, Rule, Wall, Workload, holds, local_prefixes},
    ports::{Ports, Stretch, Transport},
    simulate::{Range, Simulation},
    workloads::{Node, WorkloadName},
};

/// All walls of a model, each once, and all who come to them, each kind once.
pub(super) struct Walls<'a> {
    pub(super) model: &'a Model,
    /// Distinct peers that lines name.
    peers: BTreeMap<Peer, usize>,
    /// Distinct walls.
    walls: Vec<Vec<Line<'a>>>,
    /// Workloads that are judged alike, at their own walls and at those of others.
    pub(super) kinds: Vec<Kind<'a>>,
    /// Nodes as workloads on other nodes meet them, then everybody outside.
    strangers: Vec<Stranger>,
    /// Kinds behind the walls that rules open.
    owners: BTreeMap<Wall, BTreeSet<usize>>,
}

/// Workloads that are judged alike.
pub(super) struct Kind<'a> {
    /// Names of all of them, never none.
    pub(super) members: Vec<&'a WorkloadName>,
    /// One of them.
    pub(super) workload: &'a Workload,
    /// Its walls for traffic to it and from it.
    walls: [usize; 2],
    /// Whether each peer is it.
    matched: Vec<bool>,
    /// Its own node among the strangers.
    pub(super) node: Vec<usize>,
}

/// Who is no workload.
struct Stranger {
    matched: Vec<bool>,
}

/// Somebody who is met at a wall.
#[derive(Clone, Copy)]
pub(super) struct Met<'s> {
    matched: &'s [bool],
    /// Named ports, where it is a workload.
    ports: Option<&'s BTreeMap<String, (Transport, u16)>>,
    /// It is the node on which the wall's owner runs.
    own: bool,
}

/// What is judged at a wall, in the order of judgement.
pub(super) struct Line<'a> {
    /// Who says it.
    pub(super) says: Says<'a>,
    /// What a match does.
    pub(super) action: Action,
    /// It is judged beside what is enforced.
    pub(super) audit: bool,
    /// Index of its peer; `None` for everyone.
    peer: Option<usize>,
    ports: Vec<On<'a>>,
}

/// Ports of a line.
enum On<'a> {
    These(Vec<Stretch>),
    /// What the other side calls so.
    Named(&'a str, Option<Transport>),
}

/// Who says a line.
#[derive(Clone, Copy)]
pub(super) enum Says<'a> {
    /// A Guard.
    Guard(&'a Guard, &'a guard::Rule),
    /// An Intent or a `NetworkPolicy`.
    Rule(&'a Rule),
    /// Nobody let it through before.
    Isolated(Isolation<'a>, Direction),
    /// A node reaches what runs on it.
    Node,
}

impl<'a> Says<'a> {
    /// Its name, where it is written as a rule.
    pub(super) fn rule(self) -> Option<&'a str> {
        match self {
            Self::Guard(_, rule) => Some(&rule.name),
            Self::Rule(rule) => Some(&rule.name),
            Self::Isolated(..) | Self::Node => None,
        }
    }

    /// Where it is written, if it is.
    pub(super) const fn place(self) -> Option<&'a Place> {
        match self {
            Self::Guard(_, rule) => Some(&rule.place),
            Self::Rule(rule) => Some(&rule.place),
            Self::Isolated(isolation, _) => Some(isolation.place()),
            Self::Node => None,
        }
    }

    /// Whether both are of one Guard, which a `pass` leaves.
    fn shares_document(self, other: Self) -> bool {
        matches!((self, other), (Self::Guard(one, _), Self::Guard(other, _)) if std::ptr::eq(one, other))
    }

    /// What makes it the same as another.
    fn identity(self) -> usize {
        match self {
            Self::Guard(_, rule) => std::ptr::from_ref(rule).addr(),
            Self::Rule(rule) => std::ptr::from_ref(rule).addr(),
            Self::Isolated(Isolation::Service(_, service), _) => std::ptr::from_ref(service).addr(),
            Self::Isolated(Isolation::Policy(policy), _) => std::ptr::from_ref(policy).addr(),
            Self::Node => 0,
        }
    }
}

/// Name and place: `guard tenants: deny from other (guard.yaml:9)`.
impl fmt::Display for Says<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Isolated(isolation, direction) => f.write_str(&isolated(isolation, direction))?,
            says => f.write_str(says.rule().unwrap_or(NODE_REACHES))?,
        }
        self.place().map_or(Ok(()), |place| write!(f, " ({})", place.origin()))
    }
}

/// What became of the lines of a wall.
pub(super) struct Judged {
    /// What was decided for good, and by which line; everything else passes.
    decided: Vec<(Stretch, usize)>,
    /// Lines that match, each with a line that decides some of what it matches, itself perhaps.
    pub(super) met: BTreeSet<(usize, usize)>,
}

/// Ports that a line has on this wall, as a key.
type Resolved = (usize, Option<usize>, bool, Vec<(u8, u16)>);

impl<'a> Walls<'a> {
    pub(super) fn new(simulation: &Simulation<'a>, now: u64) -> Self {
        let model = simulation.model();
        let mut walls = Self {
            model,
            peers: BTreeMap::new(),
            walls: Vec::new(),
            kinds: Vec::new(),
            strangers: Vec::new(),
            owners: BTreeMap::new(),
        };
        let mut known: HashMap<Vec<Resolved>, usize> = HashMap::new();
        // Whoever lives in its node's own network has no wall, and is met as the node.
        let workloads = || model.workloads.iter().filter(|(_, workload)| !workload.host);
        let of: Vec<[usize; 2]> = workloads()
            .map(|(name, workload)| {
                [Direction::Ingress, Direction::Egress].map(|direction| {
                    let lines = walls.lines(name, workload, direction, now);
                    let key = lines.iter().map(|line| line.key(direction)).collect();
                    *known.entry(key).or_insert_with(|| {
                        walls.walls.push(lines);
                        walls.walls.len() - 1
                    })
                })
            })
            .collect();
        let nodes = walls.strangers(simulation);
        let none = Vec::new();
        let mut by_key = HashMap::new();
        for ((name, workload), own) in workloads().zip(of) {
            let mut matched = vec![false; walls.peers.len()];
            walls.peers.iter().for_each(|(peer, &at)| matched[at] = model.matches(peer, name, workload));
            let node = nodes.get(workload.node.as_str()).unwrap_or(&none);
            let key = (own, matched.clone(), node.clone(), workload.mode, &workload.ports);
            let kind = *by_key.entry(key).or_insert_with(|| {
                walls.kinds.push(Kind { members: Vec::new(), workload, walls: own, matched, node: node.clone() });
                walls.kinds.len() - 1
            });
            walls.kinds[kind].members.push(name);
            for wall in opened(model, workload) {
                walls.owners.entry(wall).or_default().insert(kind);
            }
        }
        walls
    }

    /// Kinds behind the wall that a rule opens.
    pub(super) fn owners(&self, wall: &Wall) -> impl Iterator<Item = &Kind<'a>> {
        self.owners.get(wall).into_iter().flatten().map(|&kind| &self.kinds[kind])
    }

    /// Kinds that a peer is.
    pub(super) fn are<'s>(&'s self, peer: &Peer) -> impl Iterator<Item = &'s Kind<'a>> {
        let at = self.peers.get(peer).copied();
        let everyone = *peer == Peer::Any;
        self.kinds.iter().filter(move |kind| everyone || at.is_some_and(|at| kind.matched[at]))
    }

    /// A wall with its number.
    pub(super) fn wall(&self, kind: &Kind<'a>, direction: Direction) -> (usize, &[Line<'a>]) {
        let at = kind.walls[direction as usize];
        (at, &self.walls[at])
    }

    /// Everybody who comes to the walls of a kind; its own members too, unless it is `alone`.
    pub(super) fn all<'s>(&'s self, kind: &'s Kind<'a>, alone: bool) -> impl Iterator<Item = Met<'s>> {
        let others = self.kinds.iter().filter(move |other| !(alone && std::ptr::eq(*other, kind)));
        let stranger = |at: usize, own| Met { matched: &self.strangers[at].matched, ports: None, own };
        let strangers = (0..self.strangers.len()).map(move |at| stranger(at, false));
        let node = kind.node.iter().map(move |&at| stranger(at, true));
        others.map(Kind::met).chain(strangers).chain(node)
    }

    /// Asks the lines of a wall; with `audit` as if all of them were enforced.
    pub(super) fn judge(&self, wall: &[Line<'_>], met: Met<'_>, audit: bool) -> Judged {
        let mut judged = Judged { decided: Vec::new(), met: BTreeSet::new() };
        let mut passed: Vec<(Stretch, usize)> = Vec::new();
        for (at, line) in wall.iter().enumerate().filter(|(_, line)| audit || !line.audit) {
            if !self.is(line, met) {
                continue;
            }
            for stretch in line.ports.iter().flat_map(|on| on.stretches(met.ports)) {
                let mut rest = vec![stretch];
                let left = passed.iter().filter(|(_, by)| line.says.shares_document(wall[*by].says));
                for &(other, by) in judged.decided.iter().chain(left) {
                    if by != at && rest.iter().any(|stretch| overlap(*stretch, other)) {
                        judged.met.insert((at, by));
                    }
                    rest = without(&rest, other);
                }
                if !rest.is_empty() {
                    judged.met.insert((at, at));
                }
                let decided = if line.action == Action::Pass { &mut passed } else { &mut judged.decided };
                decided.extend(rest.into_iter().map(|stretch| (stretch, at)));
            }
        }
        judged
    }

    /// Who denies all of these stretches at the wall of `kind`; `None` where some of them pass, or policy does not hold.
    pub(super) fn refuses(
        &self,
        kind: &Kind<'a>,
        direction: Direction,
        other: &Kind<'a>,
        stretches: &[Stretch],
    ) -> Option<Says<'a>> {
        if kind.workload.mode != Mode::Enforce {
            return None;
        }
        let (_, wall) = self.wall(kind, direction);
        let judged = self.judge(wall, other.met(), false);
        let mut by = None;
        for &stretch in stretches {
            let mut rest = vec![stretch];
            for &(other, at) in judged.decided.iter().filter(|(_, at)| wall[*at].action != Action::Allow) {
                if overlap(stretch, other) {
                    by = by.or(Some(wall[at].says));
                }
                rest = without(&rest, other);
            }
            if !rest.is_empty() {
                return None;
            }
        }
        by
    }

    fn is(&self, line: &Line<'_>, met: Met<'_>) -> bool {
        line.peer
            .is_none_or(|at| met.matched[at] || met.own && self.peers.get(&Peer::Entity(Entity::Node)) == Some(&at))
    }

    /// Lines of a wall of a workload in the order of judgement: the compiler's order.
    fn lines(&mut self, name: &WorkloadName, workload: &'a Workload, direction: Direction, now: u64) -> Vec<Line<'a>> {
        let mut own = Own { walls: self, workload, direction, lines: Vec::new() };
        own.guards(name, Tier::Admin, now);
        own.isolation();
        own.guards(name, Tier::Baseline, now);
        own.lines
    }

    /// Finds everybody who is no workload, and says who of them are which node.
    fn strangers(&mut self, simulation: &Simulation<'a>) -> BTreeMap<&'a str, Vec<usize>> {
        let mut known: HashMap<Vec<bool>, usize> = HashMap::new();
        let mut nodes = BTreeMap::new();
        for (name, node) in &self.model.nodes {
            let mut of = BTreeSet::new();
            for &address in &node.addresses {
                of.insert(self.stranger(&mut known, |peer| is_node(peer, node, address)));
            }
            nodes.insert(name.as_str(), of.into_iter().collect());
        }
        let outside = Outside::new(self.model);
        let v6 = simulation.outside(Direction::Ingress).iter().any(Range::is_ipv6);
        for address in outside.examples(self.peers.keys(), v6) {
            self.stranger(&mut known, |peer| outside.is(peer, address));
        }
        nodes
    }

    fn stranger(&mut self, known: &mut HashMap<Vec<bool>, usize>, is: impl Fn(&Peer) -> bool) -> usize {
        let mut matched = vec![false; self.peers.len()];
        self.peers.iter().for_each(|(peer, &at)| matched[at] = is(peer));
        *known.entry(matched).or_insert_with_key(|matched| {
            self.strangers.push(Stranger { matched: matched.clone() });
            self.strangers.len() - 1
        })
    }
}

impl Kind<'_> {
    /// As others meet it.
    pub(super) fn met(&self) -> Met<'_> {
        Met { matched: &self.matched, ports: Some(&self.workload.ports), own: false }
    }
}

impl Line<'_> {
    fn key(&self, direction: Direction) -> Resolved {
        let of = |on: &On<'_>| match (on, direction) {
            (On::These(stretches), Direction::Ingress) => stretches.iter().map(|s| (s.class as u8, s.first)).collect(),
            // Those of the other side do not depend on whose wall it is.
            _ => Vec::new(),
        };
        (self.says.identity(), self.peer, self.audit, self.ports.iter().flat_map(of).collect())
    }
}

impl On<'_> {
    fn stretches(&self, ports: Option<&BTreeMap<String, (Transport, u16)>>) -> Vec<Stretch> {
        match self {
            Self::These(stretches) => stretches.clone(),
            Self::Named(name, transport) => {
                let found = ports.and_then(|ports| ports.get(*name));
                let found = found.filter(|(own, _)| transport.is_none_or(|transport| transport == *own));
                found.map(|&(transport, number)| Ports::one(transport, number).stretches()).unwrap_or_default()
            }
        }
    }
}

/// A wall that is being described.
struct Own<'w, 'a> {
    walls: &'w mut Walls<'a>,
    workload: &'a Workload,
    direction: Direction,
    lines: Vec<Line<'a>>,
}

impl<'a> Own<'_, 'a> {
    fn guards(&mut self, name: &WorkloadName, tier: Tier, now: u64) {
        let model = self.walls.model;
        let concerning =
            model.guards.iter().filter(|guard| guard.tier == tier && guard.subjects.hold(model, name, self.workload));
        for guard in concerning {
            for rule in guard.rules(self.direction, now) {
                let Some(peer) = guard.peer(rule, model, &name.namespace) else { continue };
                self.push(Says::Guard(guard, rule), (rule.action, rule.audit), &peer, &rule.ports);
            }
        }
    }

    fn isolation(&mut self) {
        let model = self.walls.model;
        let Some(first) = model.isolating(self.workload, self.direction, true) else { return };
        let only_audit = first.audit();
        for rule in model.rules_of(self.workload, self.direction) {
            let does = (Action::Allow, rule.audit || only_audit);
            self.push(Says::Rule(rule), does, &rule.peer, std::slice::from_ref(&rule.ports));
        }
        if self.direction == Direction::Ingress {
            self.push(Says::Node, (Action::Allow, only_audit), &Peer::Entity(Entity::Node), EVERYTHING);
        }
        self.push(Says::Isolated(first, self.direction), (Action::Deny, only_audit), &Peer::Any, EVERYTHING);
    }

    /// Adds a line, unless it is about named ports alone that the workload does not have.
    fn push(&mut self, says: Says<'a>, (action, audit): (Action, bool), peer: &Peer, ports: &'a [Ports]) {
        let on = |ports: &'a Ports| match (ports, self.direction) {
            (Ports::Named { name, transport }, Direction::Ingress) => {
                let own = self.workload.listens(name, *transport);
                own.map(|(transport, number)| On::These(Ports::one(transport, number).stretches()))
            }
            (Ports::Named { name, transport }, Direction::Egress) => Some(On::Named(name, *transport)),
            (ports, _) => Some(On::These(ports.stretches())),
        };
        let ports: Vec<On<'a>> = ports.iter().filter_map(on).collect();
        if ports.is_empty() {
            return;
        }
        let peer = (*peer != Peer::Any).then(|| match self.walls.peers.get(peer) {
            Some(&at) => at,
            None => {
                let at = self.walls.peers.len();
                self.walls.peers.insert(peer.clone(), at);
                at
            }
        });
        self.lines.push(Line { says, action, audit, peer, ports });
    }
}

/// Every port and protocol.
const EVERYTHING: &[Ports] = &[Ports::Any];

/// Walls of a workload that rules may open.
fn opened(model: &Model, workload: &Workload) -> Vec<Wall> {
    let resolver = workload.addresses().any(|address| model.resolvers.contains(&address));
    let services = workload.services.iter().cloned().map(Wall::Service);
    let frontends = workload.frontends.iter().cloned().map(Wall::Backends);
    let policies = workload.policies.iter().cloned().map(Wall::Policy);
    services.chain(resolver.then_some(Wall::Resolvers)).chain(frontends).chain(policies).collect()
}

/// Whether a peer is a node as its own address says.
fn is_node(peer: &Peer, node: &Node, address: IpAddr) -> bool {
    match peer {
        Peer::Entity(Entity::Nodes) | Peer::Any => true,
        Peer::Namespaces { other, .. } => *other,
        Peer::Nodes(labels) => labels.matches(&node.labels),
        Peer::Cidrs(cidrs) => holds(cidrs, address),
        // Whose own node it is depends on the wall.
        Peer::Entity(_) | Peer::Service(_) | Peer::Backends(_) | Peer::Workloads { .. } => false,
    }
}

/// What is no known address.
struct Outside<'a> {
    model: &'a Model,
    nodes: BTreeMap<IpAddr, &'a Node>,
    workloads: BTreeSet<IpAddr>,
    overlays: BTreeSet<IpNetwork>,
    local: Vec<IpNetwork>,
}

impl<'a> Outside<'a> {
    fn new(model: &'a Model) -> Self {
        let nodes = model.nodes.values();
        Self {
            model,
            nodes: nodes.clone().flat_map(|node| node.addresses.iter().map(move |&address| (address, node))).collect(),
            workloads: model.workloads.values().flat_map(Workload::addresses).collect(),
            overlays: nodes.flat_map(|node| &node.segments).flat_map(|segment| &segment.prefixes).copied().collect(),
            local: local_prefixes().into_iter().chain(METADATA.map(IpNetwork::from)).collect(),
        }
    }

    /// One address of each stretch between the ends of prefixes that somebody speaks of.
    fn examples<'p>(&self, peers: impl Iterator<Item = &'p Peer>, v6: bool) -> Vec<IpAddr> {
        let mut mentioned: BTreeSet<IpNetwork> = self.overlays.clone();
        mentioned.extend(&self.local);
        mentioned.extend(self.nodes.keys().map(|&address| IpNetwork::from(address)));
        for peer in peers {
            if let Peer::Cidrs(cidrs) = peer {
                mentioned.extend(cidrs.cidrs.iter().chain(&cidrs.except));
            }
        }
        let whole = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let mut firsts = BTreeSet::from(whole);
        for net in mentioned {
            firsts.insert(net.network());
            firsts.extend(after(net.broadcast()));
        }
        let firsts: Vec<IpAddr> = firsts.into_iter().filter(|first| v6 || first.is_ipv4()).collect();
        let ends = firsts.iter().skip(1).copied().map(Some).chain([None]);
        firsts.iter().zip(ends).filter_map(|(&first, end)| self.unknown(first, end)).collect()
    }

    /// The first address from here that no workload has.
    fn unknown(&self, first: IpAddr, end: Option<IpAddr>) -> Option<IpAddr> {
        let mut address = first;
        while self.workloads.contains(&address) {
            address = after(address).filter(|next| Some(*next) != end)?;
        }
        Some(address)
    }

    /// Whether a peer is whoever comes with this address from outside.
    fn is(&self, peer: &Peer, address: IpAddr) -> bool {
        let within = |net: &IpNetwork| net.contains(address);
        // With a node's address comes what is masqueraded.
        let node = self.nodes.get(&address);
        match peer {
            Peer::Entity(Entity::World) => {
                node.is_some() || !self.overlays.iter().any(within) && !self.local.iter().any(within)
            }
            Peer::Entity(Entity::Nodes) => node.is_some(),
            Peer::Entity(Entity::Metadata) => METADATA.contains(&address),
            Peer::Nodes(labels) => self.labelled(address, labels),
            Peer::Namespaces { other, .. } => *other,
            Peer::Any => true,
            Peer::Cidrs(cidrs) => holds(cidrs, address),
            Peer::Entity(Entity::Node | Entity::Cluster)
            | Peer::Service(_)
            | Peer::Backends(_)
            | Peer::Workloads { .. } => false,
        }
    }

    fn labelled(&self, address: IpAddr, labels: &Selector) -> bool {
        self.model.nodes.values().any(|node| node.addresses.contains(&address) && labels.matches(&node.labels))
    }
}

/// The next address.
pub(super) fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Whether two stretches share a value.
pub(super) fn overlap(one: Stretch, other: Stretch) -> bool {
    one.class == other.class && one.first <= other.last && other.first <= one.last
}

/// What stretches have and another one lacks.
fn without(stretches: &[Stretch], other: Stretch) -> Vec<Stretch> {
    let mut rest = Vec::new();
    for &stretch in stretches {
        if !overlap(stretch, other) {
            rest.push(stretch);
            continue;
        }
        if stretch.first < other.first {
            rest.push(Stretch { last: other.first - 1, ..stretch });
        }
        if stretch.last > other.last {
            rest.push(Stretch { first: other.last + 1, ..stretch });
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use bulkhead_ebpf::abi::Class;

    use super::*;
    use crate::{
        offline,
        simulate::{Connections, Party, display},
    };

    const NOW: u64 = 1_767_225_600_000_000_000;

    /// What a wall lets through.
    fn open(walls: &Walls<'_>, kind: &Kind<'_>, direction: Direction, met: Met<'_>) -> Vec<Stretch> {
        let everything = Ports::Any.stretches();
        match kind.workload.mode {
            Mode::Observe => return everything,
            Mode::Pending | Mode::Quarantine => return Vec::new(),
            Mode::Enforce => {}
        }
        let (_, wall) = walls.wall(kind, direction);
        let judged = walls.judge(wall, met, false);
        let denied = judged.decided.iter().filter(|(_, by)| wall[*by].action != Action::Allow);
        denied.fold(everything, |rest, (stretch, _)| without(&rest, *stretch))
    }

    fn both(egress: &[Stretch], ingress: &[Stretch]) -> Connections {
        let mut both = Connections::default();
        for out in egress {
            for into in ingress.iter().filter(|into| overlap(*out, **into)) {
                both.add(out.class, out.first.max(into.first), out.last.min(into.last));
            }
        }
        both
    }

    #[test]
    fn walls_say_what_the_tables_say() {
        let directory = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples");
        let mut asked = 0;
        for (policy, with) in [
            ("shop.yaml", "shop-workloads.yaml"),
            ("guard.yaml", "examples-workloads.yaml"),
            ("ports.yaml", "ports-workloads.yaml"),
            ("tenants.yaml", "examples-workloads.yaml"),
            ("quarantine.yaml", "examples-workloads.yaml"),
            ("audit.yaml", "examples-workloads.yaml"),
            ("kubernetes/shop.yaml", "kubernetes/shop-manifests.yaml"),
            ("kubernetes/default-deny-dns.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/database.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/egress-external.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/tenants.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/tenant-guard.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/metadata-kubelet.yaml", "kubernetes/examples-manifests.yaml"),
            ("kubernetes/quarantine.yaml", "kubernetes/examples-manifests.yaml"),
        ] {
            let model = offline::load(&[policy, with].map(|name| directory.join(name))).unwrap().model;
            let simulation = Simulation::new(&model, NOW).unwrap();
            let walls = Walls::new(&simulation, NOW);
            for from in &walls.kinds {
                for to in walls.kinds.iter().filter(|to| !std::ptr::eq(from, *to)) {
                    let egress = open(&walls, from, Direction::Egress, to.met());
                    let ingress = open(&walls, to, Direction::Ingress, from.met());
                    let names = [from, to].map(|kind| display(kind.members[0], kind.workload));
                    let expected = simulation.between(Party::Group(&names[0]), Party::Group(&names[1]));
                    assert_eq!(both(&egress, &ingress), expected, "{policy} {names:?}");
                    asked += 1;
                }
                let name = display(from.members[0], from.workload);
                for range in simulation.outside(Direction::Egress) {
                    let expected = simulation.between(Party::Group(&name), Party::Outside(*range));
                    let outside = Outside::new(&model);
                    let Some(address) = outside.unknown(range.first(), after(range.last())) else { continue };
                    let mut matched = vec![false; walls.peers.len()];
                    walls.peers.iter().for_each(|(peer, &at)| matched[at] = outside.is(peer, address));
                    let met = Met { matched: &matched, ports: None, own: false };
                    let egress = open(&walls, from, Direction::Egress, met);
                    let speaks = |address: IpAddr| address.is_ipv6() == range.is_ipv6();
                    if from.workload.addresses().any(speaks) && !outside.nodes.contains_key(&address) {
                        assert_eq!(both(&egress, &Ports::Any.stretches()), expected, "{policy} {name} {range}");
                        asked += 1;
                    }
                }
            }
        }
        assert!(asked > 200, "{asked}");
    }

    #[test]
    fn stretches_are_cut() {
        let of = |first, last| Stretch { class: Class::Tcp, first, last };
        assert_eq!(without(&[of(1, 9)], of(3, 5)), [of(1, 2), of(6, 9)]);
        assert_eq!(without(&[of(1, 9)], of(0, u16::MAX)), []);
        assert_eq!(without(&[of(1, 9)], Stretch { class: Class::Udp, ..of(1, 9) }), [of(1, 9)]);
    }
}
