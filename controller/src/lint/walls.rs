//! Who decides what at each wall, line by line: which lines are about somebody is read from them, what becomes of it is asked of the tables. The
//! compiler leaves out what nobody reaches; here that is what is asked for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
};

use bulkhead_dataplane::desired::SelectorId;
use bulkhead_ebpf::abi::{Action, Direction, Mode};
use ipnetwork::IpNetwork;

use crate::{
    compile::{self, Key, Met, Surroundings},
    diagnostic::{Diagnostic, Diagnostics},
    judge::{self, Judges, Says},
    model::{METADATA, Model, Peer, Wall, Workload, local_prefixes},
    ports::Stretch,
    simulate::{Range, Simulation},
    workloads::WorkloadName,
};

/// All walls of a model, each once, and all who come to them, each kind once.
pub(super) struct Walls<'a> {
    pub(super) model: &'a Model,
    /// Distinct peers that lines name.
    peers: BTreeMap<Peer, usize>,
    /// Distinct walls.
    walls: Vec<Described<'a>>,
    /// Workloads that are judged alike, at their own walls and at those of others.
    pub(super) kinds: Vec<Kind<'a>>,
    /// Nodes as workloads on other nodes meet them, then everybody outside.
    strangers: Vec<Vec<Met<'a>>>,
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
    /// What its own node is to others, of which it is told apart by its address.
    pub(super) node: Vec<usize>,
}

/// A wall with its lines.
struct Described<'a> {
    asked: Rc<judge::Walls>,
    direction: Direction,
    lines: Vec<Line<'a>>,
}

/// What is judged at a wall, in the order of judgement.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    /// Who says it.
    pub(super) says: Says<'a>,
    /// What a match does.
    pub(super) action: Action,
    /// It is judged beside what is enforced.
    pub(super) audit: bool,
    /// About whom; `None` for everyone.
    selector: Option<SelectorId>,
    stretch: Stretch,
}

impl<'a> Walls<'a> {
    pub(super) fn new(simulation: &Simulation<'a>, now: u64) -> Result<Self, Diagnostics> {
        let model = simulation.model();
        let mut walls = Self {
            model,
            peers: BTreeMap::new(),
            walls: Vec::new(),
            kinds: Vec::new(),
            strangers: Vec::new(),
            owners: BTreeMap::new(),
        };
        let judges = Judges::new(model);
        let mut known: BTreeMap<Vec<Key>, usize> = BTreeMap::new();
        // Whoever lives in its node's own network has no wall, and is met as the node.
        let workloads = || model.workloads.iter().filter(|(_, workload)| !workload.host);
        let mut of: Vec<[usize; 2]> = Vec::new();
        for (name, workload) in workloads() {
            let compiled = compile::Walls::new(model, name, workload, now)?;
            let keys = [Direction::Ingress, Direction::Egress].map(|direction| (direction, compiled.key(direction)));
            if keys.iter().any(|(_, key)| !known.contains_key(key)) {
                let asked = judges.lower(name, workload, compiled)?;
                for (direction, key) in &keys {
                    if !known.contains_key(key) {
                        walls.describe(&asked, (name, workload), *direction)?;
                        known.insert(key.clone(), walls.walls.len() - 1);
                    }
                }
            }
            of.push(keys.map(|(_, key)| known[&key]));
        }
        let nodes = walls.strangers(simulation);
        let none = Vec::new();
        let mut by_key = HashMap::new();
        for ((name, workload), own) in workloads().zip(of) {
            let mut matched = vec![false; walls.peers.len()];
            walls.peers.iter().for_each(|(peer, &at)| matched[at] = model.matches(peer, name, workload));
            let node = nodes.get(&*workload.node).unwrap_or(&none);
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
        Ok(walls)
    }

    /// Reads the lines of a wall.
    fn describe(
        &mut self,
        asked: &Rc<judge::Walls>,
        (name, workload): (&WorkloadName, &'a Workload),
        direction: Direction,
    ) -> Result<(), Diagnostics> {
        let mut lines = Vec::new();
        for line in &asked.compiled.lines[direction as usize] {
            let rule = asked.rule(line.rule);
            let says =
                Says::of(self.model, workload, direction, rule).ok_or_else(|| contradiction(name, &rule.name))?;
            lines.push(Line {
                says,
                action: line.action,
                audit: line.audit,
                selector: line.selector,
                stretch: line.stretch,
            });
            if let Some(peer) = asked.compiled.peer(line) {
                let next = self.peers.len();
                self.peers.entry(peer.clone()).or_insert(next);
            }
        }
        self.walls.push(Described { asked: Rc::clone(asked), direction, lines });
        Ok(())
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
        (at, &self.walls[at].lines)
    }

    /// Everybody who comes to the walls of a kind; its own members too, unless it is `alone`.
    pub(super) fn all<'s>(&'s self, kind: &'s Kind<'a>, alone: bool) -> impl Iterator<Item = Met<'a>> {
        let others = self.kinds.iter().filter(move |other| !(alone && std::ptr::eq(*other, kind)));
        let node = self.model.nodes.get(&*kind.workload.node).into_iter().flat_map(|node| &node.addresses);
        others.flat_map(Kind::met).chain(self.strangers.iter().flatten().copied()).chain(node.copied().map(Met::Node))
    }

    /// Lines of a wall that are about somebody, each with a line that decides some of what it is about, itself perhaps; with `audit` as if all
    /// of them were enforced.
    pub(super) fn judge(
        &self,
        wall: usize,
        met: Met<'_>,
        audit: bool,
    ) -> Result<BTreeSet<(usize, usize)>, Diagnostics> {
        let Described { asked, direction, lines } = &self.walls[wall];
        let rules = &asked.compiled.lines[*direction as usize];
        let row = asked.row(self.model, met);
        let is = |line: &Line<'_>| line.selector.is_none_or(|selector| row.contains(&selector));
        let about: Vec<usize> = (0..lines.len()).filter(|&at| (audit || !lines[at].audit) && is(&lines[at])).collect();
        let mut judged = BTreeSet::new();
        for stretch in asked.stretches(*direction) {
            let about: Vec<usize> = about.iter().copied().filter(|&at| overlap(lines[at].stretch, stretch)).collect();
            let ruling = asked.ask(*direction, (stretch.class, stretch.first), &row, audit);
            let line = |rule| {
                let line = about.iter().copied().find(|&at| rules[at].rule == rule);
                line.ok_or_else(|| contradiction("of a kind", &asked.rule(rule).name))
            };
            let passes: Vec<usize> = ruling.passed.iter().map(|&rule| line(rule)).collect::<Result<_, _>>()?;
            let last = ruling.rule.map(line).transpose()?;
            for &at in &about {
                let decides = ruling.passed.iter().chain(&ruling.rule).any(|&rule| rules[at].rule == rule);
                // Whoever did not come to a line has been decided before, or was led past it.
                let led = || passes.iter().copied().rfind(|&pass| pass < at && last > Some(at));
                let by = if decides { Some(at) } else { led().or(last) };
                judged.extend(by.map(|by| (at, by)));
            }
        }
        Ok(judged)
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
        let Described { asked, lines, .. } = &self.walls[kind.walls[direction as usize]];
        let rules = &asked.compiled.lines[direction as usize];
        let mut by = None;
        for met in other.met() {
            let row = asked.row(self.model, met);
            for stretch in asked.stretches(direction).filter(|own| stretches.iter().any(|other| overlap(*own, *other)))
            {
                let ruling = asked.ask(direction, (stretch.class, stretch.first), &row, false);
                if ruling.allow {
                    return None;
                }
                let line = rules.iter().position(|line| ruling.rule == Some(line.rule));
                by = by.or(line.map(|line| lines[line].says));
            }
        }
        by
    }

    /// Finds everybody who is no workload, and says who of them are which node.
    fn strangers(&mut self, simulation: &Simulation<'a>) -> BTreeMap<&'a str, Vec<usize>> {
        let model = self.model;
        // As nodes look to who does not live on them.
        let surroundings = Surroundings::new(model, "");
        let mut known: HashMap<Vec<bool>, usize> = HashMap::new();
        let mut stranger = |met| {
            let mut matched = vec![false; self.peers.len()];
            self.peers.iter().for_each(|(peer, &at)| matched[at] = surroundings.is(model, 0, peer, met));
            let at = *known.entry(matched).or_insert(self.strangers.len());
            match self.strangers.get_mut(at) {
                None => self.strangers.push(vec![met]),
                // One of two nodes is another one to whoever lives on a node.
                Some(alike) if alike.len() == 1 && matches!(met, Met::Node(_)) => alike.push(met),
                Some(_) => {}
            }
            at
        };
        let mut nodes = BTreeMap::new();
        for (name, node) in &model.nodes {
            let of: BTreeSet<usize> = node.addresses.iter().map(|&address| stranger(Met::Node(address))).collect();
            nodes.insert(name.as_str(), of.into_iter().collect());
        }
        let v6 = simulation.outside(Direction::Ingress).iter().any(Range::is_ipv6);
        for address in examples(model, self.peers.keys(), v6) {
            stranger(Met::Outside(address));
        }
        nodes
    }
}

impl<'a> Kind<'a> {
    /// As others meet it, by each of its addresses.
    pub(super) fn met(&self) -> Vec<Met<'a>> {
        let (name, workload) = (self.members[0], self.workload);
        let known: Vec<_> = workload.addresses().map(|address| Met::Workload(name, workload, Some(address))).collect();
        if known.is_empty() { vec![Met::Workload(name, workload, None)] } else { known }
    }
}

/// Walls of a workload that rules may open.
fn opened(model: &Model, workload: &Workload) -> Vec<Wall> {
    let resolver = workload.addresses().any(|address| model.resolvers.contains(&address));
    let services = workload.services.iter().cloned().map(Wall::Service);
    let frontends = workload.frontends.iter().cloned().map(Wall::Backends);
    let policies = workload.policies.iter().cloned().map(Wall::Policy);
    services.chain(resolver.then_some(Wall::Resolvers)).chain(frontends).chain(policies).collect()
}

/// What the tables say and the policies do not.
fn contradiction(whose: impl std::fmt::Display, rule: &str) -> Diagnostic {
    let error = Diagnostic::nowhere(format!("the tables of workload {whose} decide by `{rule}`, the policies do not"));
    error.help("this is a defect of Bulkhead: please report it with these policies; the tables hold")
}

/// One unknown address of each stretch between the ends of prefixes that somebody speaks of.
fn examples<'p>(model: &Model, peers: impl Iterator<Item = &'p Peer>, v6: bool) -> Vec<IpAddr> {
    let workloads: BTreeSet<IpAddr> = model.workloads.values().flat_map(Workload::addresses).collect();
    let segments = model.nodes.values().flat_map(|node| &node.segments);
    let mut mentioned: BTreeSet<IpNetwork> = segments.flat_map(|segment| &segment.prefixes).copied().collect();
    mentioned.extend(local_prefixes().into_iter().chain(METADATA.map(IpNetwork::from)));
    mentioned.extend(model.nodes.values().flat_map(|node| &node.addresses).copied().map(IpNetwork::from));
    for peer in peers {
        if let Peer::Cidrs(cidrs) = peer {
            mentioned.extend(cidrs.cidrs.iter().chain(&cidrs.except));
        }
    }
    let mut firsts = BTreeSet::from([IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]);
    for net in mentioned {
        firsts.insert(net.network());
        firsts.extend(after(net.broadcast()));
    }
    let firsts: Vec<IpAddr> = firsts.into_iter().filter(|first| v6 || first.is_ipv4()).collect();
    let ends = firsts.iter().skip(1).copied().map(Some).chain([None]);
    firsts.iter().zip(ends).filter_map(|(&first, end)| unknown(&workloads, first, end)).collect()
}

/// The first address from here that no workload has.
fn unknown(workloads: &BTreeSet<IpAddr>, first: IpAddr, end: Option<IpAddr>) -> Option<IpAddr> {
    let mut address = first;
    while workloads.contains(&address) {
        address = after(address).filter(|next| Some(*next) != end)?;
    }
    Some(address)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offline,
        ports::Ports,
        simulate::{Connections, Party, display},
    };

    const NOW: u64 = 1_767_225_600_000_000_000;

    /// What a wall lets through.
    fn open(walls: &Walls<'_>, kind: &Kind<'_>, direction: Direction, met: Met<'_>) -> Vec<Stretch> {
        match kind.workload.mode {
            Mode::Observe => return Ports::Any.stretches(),
            Mode::Pending | Mode::Quarantine => return Vec::new(),
            Mode::Enforce => {}
        }
        let asked = &walls.walls[kind.walls[direction as usize]].asked;
        let row = asked.row(walls.model, met);
        let allows = |stretch: &Stretch| asked.ask(direction, (stretch.class, stretch.first), &row, false).allow;
        asked.stretches(direction).filter(allows).collect()
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
    fn walls_say_what_the_tables_of_their_nodes_say() {
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
            let walls = Walls::new(&simulation, NOW).unwrap();
            let known = model.workloads.values().flat_map(Workload::addresses).collect();
            for from in &walls.kinds {
                for to in walls.kinds.iter().filter(|to| !std::ptr::eq(from, *to)) {
                    let egress = open(&walls, from, Direction::Egress, to.met()[0]);
                    let ingress = open(&walls, to, Direction::Ingress, from.met()[0]);
                    let names = [from, to].map(|kind| display(kind.members[0], kind.workload));
                    let expected = simulation.between(Party::Group(&names[0]), Party::Group(&names[1]));
                    assert_eq!(both(&egress, &ingress), expected, "{policy} {names:?}");
                    asked += 1;
                }
                let name = display(from.members[0], from.workload);
                for range in simulation.outside(Direction::Egress) {
                    let expected = simulation.between(Party::Group(&name), Party::Outside(*range));
                    let Some(address) = unknown(&known, range.first(), after(range.last())) else { continue };
                    let egress = open(&walls, from, Direction::Egress, Met::Outside(address));
                    let speaks = |address: IpAddr| address.is_ipv6() == range.is_ipv6();
                    if from.workload.addresses().any(speaks)
                        && !model.nodes.values().any(|node| node.addresses.contains(&address))
                    {
                        assert_eq!(both(&egress, &Ports::Any.stretches()), expected, "{policy} {name} {range}");
                        asked += 1;
                    }
                }
            }
        }
        assert!(asked > 200, "{asked}");
    }
}
