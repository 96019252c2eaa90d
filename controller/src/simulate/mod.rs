//! What a model lets through: who may call whom on which ports, for all workloads and everything outside.
//!
//! Each node's policy is compiled as the agent would, its sets are lowered as the publisher would, and [`bulkhead_dataplane::publish::Judge`] asks
//! the programs' own code.

pub mod blast;
mod connections;
pub mod diff;
mod ranges;
pub mod text;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    rc::Rc,
};

use bulkhead_dataplane::{
    desired::{Desired, EndpointName, Peers, Segment, SelectorId, SetId, View},
    node::Discovered,
    publish::{Answer, Judge, Row},
};
use bulkhead_ebpf::abi::{Class, Direction, Mode};
use ipnetwork::IpNetwork;

pub use self::{connections::Connections, ranges::Range};
use crate::{
    compile::compile,
    diagnostic::{Diagnostic, Diagnostics, suggest},
    model::{Model, Workload},
    workloads::WorkloadName,
};

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party<'a> {
    /// Addresses outside.
    Outside(Range),
    /// Workloads that one thing made, or a single one.
    Group(&'a str),
}

/// What may begin between two parties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection<'a> {
    /// Who begins.
    pub from: Party<'a>,
    /// Who listens.
    pub to: Party<'a>,
    /// On which ports, never none.
    pub ports: Connections,
}

/// A stretch of a class's axis that both walls let through, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Class.
    pub class: Class,
    /// First value.
    pub first: u16,
    /// Last value.
    pub last: u16,
    /// Names of the deciding rules of the caller's and of the callee's wall; `None` where there is no wall.
    pub rules: [Option<String>; 2],
}

/// Somebody, as a row is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Met {
    Known(IpAddr),
    Outside(Range),
    Nobody,
}

/// A stretch that one wall lets through.
#[derive(Clone, Copy, Debug)]
struct Open {
    class: Class,
    first: u16,
    last: u16,
    answer: Answer,
}

/// A model that is ready to be asked.
#[derive(Debug)]
pub struct Simulation<'a> {
    model: &'a Model,
    nodes: BTreeMap<&'a str, Node>,
    /// Members by display name.
    groups: BTreeMap<String, Vec<&'a WorkloadName>>,
    /// Outside, for traffic from there and to there.
    outside: [Vec<Range>; 2],
}

/// One node's tables.
#[derive(Debug)]
struct Node {
    desired: Desired,
    judge: RefCell<Judge>,
    /// Index in [`Desired::endpoints`].
    endpoints: HashMap<EndpointName, usize>,
    /// Longest-prefix look-up of what is not known, by segment and family.
    outside: BTreeMap<(Segment, bool), ranges::Covers<SelectorId>>,
    /// Rows of those who were met, by segment.
    rows: RefCell<HashMap<(Segment, Met), Row>>,
    /// What sets let through, by row.
    open: RefCell<HashMap<(SetId, Row, bool), Rc<Vec<Open>>>>,
}

/// How a workload is named: after what made it, `shop/web[Deployment]`, a lone pod `shop/web-1[Pod]`; `shop/web-1` where nobody says what it is.
#[must_use]
pub fn display(name: &WorkloadName, workload: &Workload) -> String {
    match &workload.owner {
        Some(owner) => format!("{}/{}[{}]", name.namespace, owner.name, owner.kind),
        None => name.to_string(),
    }
}

impl<'a> Simulation<'a> {
    /// Compiles for every node that has workloads. `now` is in nanoseconds of Unix time.
    ///
    /// # Errors
    /// What the compiler refuses, and what does not fit the tables.
    pub fn new(model: &'a Model, now: u64) -> Result<Self, Diagnostics> {
        let mut found = Diagnostics::default();
        let used: BTreeSet<&str> = model.workloads.values().map(|workload| &*workload.node).collect();
        let mut nodes = BTreeMap::new();
        for name in used {
            let desired = found.take(compile(model, name, &Discovered::default(), now));
            let node = desired.map(Node::new).transpose();
            match node {
                Ok(node) => nodes.extend(node.map(|node| (name, node))),
                Err(error) => found.push(Diagnostic::nowhere(format!("node `{name}`: {error}"))),
            }
        }
        let mut groups: BTreeMap<String, Vec<&WorkloadName>> = BTreeMap::new();
        for (name, workload) in &model.workloads {
            groups.entry(display(name, workload)).or_default().push(name);
        }
        let mut simulation = Self { model, nodes, groups, outside: [Vec::new(), Vec::new()] };
        simulation.outside = [Direction::Ingress, Direction::Egress].map(|direction| simulation.partition(direction));
        found.or(simulation)
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &'a Model {
        self.model
    }

    /// Display names of all groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The group of a workload, or the one that is called so.
    #[must_use]
    pub fn find(&self, name: &WorkloadName) -> Option<Party<'_>> {
        let member = || self.groups.iter().find(|(_, members)| members.contains(&name));
        let called = || {
            let begins = |group: &str| {
                group.strip_prefix(&name.to_string()).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
            };
            self.groups.iter().find(|(group, _)| begins(group))
        };
        member().or_else(called).map(|(group, _)| Party::Group(group))
    }

    /// The workload of this name, or the first member of the group that is called so.
    #[must_use]
    pub fn member(&self, name: &WorkloadName) -> Option<&'a WorkloadName> {
        if let Some((own, _)) = self.model.workloads.get_key_value(name) {
            return Some(own);
        }
        match self.find(name)? {
            Party::Group(group) => self.groups.get(group)?.first().copied(),
            Party::Outside(_) => None,
        }
    }

    /// What to say of a name that nobody has.
    #[must_use]
    pub fn suggest(&self, name: &str) -> String {
        let names: BTreeSet<String> = self.model.workloads.keys().map(ToString::to_string).collect();
        suggest(name, names.iter().map(String::as_str))
    }

    /// Whether members of a group have addresses of a family.
    #[must_use]
    pub fn meets(&self, group: &str, v6: bool) -> bool {
        self.ends(Party::Group(group)).iter().any(|end| end.is_v6().is_none_or(|family| family == v6))
    }

    /// Ranges outside, as traffic of a direction sees them.
    #[must_use]
    pub fn outside(&self, direction: Direction) -> &[Range] {
        match direction {
            Direction::Ingress => &self.outside[0],
            Direction::Egress => &self.outside[1],
        }
    }

    /// Everything that may begin, in order; nothing between members of one group, nor between addresses outside.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection<'_>> {
        let mut all = Vec::new();
        for from in self.sources() {
            for to in self.targets() {
                let ports = self.between(from, to);
                if !ports.is_empty() {
                    all.push(Connection { from, to, ports });
                }
            }
        }
        all
    }

    /// Everyone who may begin.
    fn sources(&self) -> impl Iterator<Item = Party<'_>> {
        let [from, _] = &self.outside;
        from.iter().copied().map(Party::Outside).chain(self.groups().map(Party::Group))
    }

    /// Everyone who may be called.
    pub fn targets(&self) -> impl Iterator<Item = Party<'_>> {
        let [_, to] = &self.outside;
        to.iter().copied().map(Party::Outside).chain(self.groups().map(Party::Group))
    }

    /// On which ports one party may call another.
    #[must_use]
    pub fn between(&self, from: Party<'_>, to: Party<'_>) -> Connections {
        let mut ports = Connections::default();
        if from != to {
            self.each(from, to, |egress, ingress| {
                meet(egress, ingress, |class, first, last, _| ports.add(class, first, last));
            });
        }
        ports
    }

    /// The same with the rules that decide; of members of a group those of the first that may.
    #[must_use]
    pub fn passages(&self, from: Party<'_>, to: Party<'_>) -> Vec<Passage> {
        let mut passages: Vec<Passage> = Vec::new();
        self.each_with_rules(from, to, |passage| {
            let known = |other: &Passage| {
                (other.class, other.first, other.last) == (passage.class, passage.first, passage.last)
            };
            if !passages.iter().any(known) {
                passages.push(passage);
            }
        });
        passages.sort_by_key(|passage| (passage.class as u8, passage.first, passage.last));
        passages
    }

    fn each_with_rules(&self, from: Party<'_>, to: Party<'_>, mut each: impl FnMut(Passage)) {
        for (caller, callee) in self.pairs(from, to) {
            let names = |wall: &Ends<'_>, answer: Option<Answer>| {
                let node = self.node_of(wall)?;
                answer.and_then(|answer| answer.rule).map(|rule| node.desired.rules[rule.0 as usize].name.clone())
            };
            self.pair(&caller, &callee, |egress, ingress| {
                meet(egress, ingress, |class, first, last, [out, into]| {
                    let rules = [names(&caller, out), names(&callee, into)];
                    each(Passage { class, first, last, rules });
                });
            });
        }
    }

    fn each(&self, from: Party<'_>, to: Party<'_>, mut each: impl FnMut(Option<&[Open]>, Option<&[Open]>)) {
        for (caller, callee) in self.pairs(from, to) {
            self.pair(&caller, &callee, &mut each);
        }
    }

    /// Ends that can meet.
    fn pairs<'s>(&'s self, from: Party<'s>, to: Party<'s>) -> Vec<(Ends<'s>, Ends<'s>)> {
        let (callers, callees) = (self.ends(from), self.ends(to));
        let mut pairs = Vec::new();
        for caller in &callers {
            for callee in callees.iter().filter(|callee| caller.meets(callee)) {
                pairs.push((*caller, *callee));
            }
        }
        pairs
    }

    /// What the walls of a pair let through; `None` for no wall.
    fn pair(&self, caller: &Ends<'_>, callee: &Ends<'_>, mut each: impl FnMut(Option<&[Open]>, Option<&[Open]>)) {
        let egress = self.wall(caller, callee, Direction::Egress);
        let ingress = self.wall(callee, caller, Direction::Ingress);
        each(egress.as_ref().map(|open| open.as_slice()), ingress.as_ref().map(|open| open.as_slice()));
    }

    fn node_of(&self, end: &Ends<'_>) -> Option<&Node> {
        match end {
            Ends::Workload { workload, .. } => self.nodes.get(&*workload.node),
            Ends::Host { .. } | Ends::Outside(_) => None,
        }
    }

    /// What the wall of `own` lets through in a direction; `None` where it has none.
    fn wall(&self, own: &Ends<'_>, peer: &Ends<'_>, direction: Direction) -> Option<Rc<Vec<Open>>> {
        let Ends::Workload { name, workload, index, segment, .. } = *own else { return None };
        match workload.mode {
            Mode::Observe => return None,
            Mode::Pending | Mode::Quarantine => return Some(Rc::default()),
            Mode::Enforce => {}
        }
        let node = self.nodes.get(&*workload.node)?;
        let view = node.view(name, index)?;
        let set = if direction == Direction::Ingress { view.ingress } else { view.egress };
        Some(node.open(set, node.row(peer, segment), false))
    }

    /// Addresses of a party.
    fn ends<'s>(&'s self, party: Party<'s>) -> Vec<Ends<'s>> {
        match party {
            Party::Outside(range) => vec![Ends::Outside(range)],
            Party::Group(group) => {
                let members = self.groups.get(group).into_iter().flatten();
                members.flat_map(|name| self.workload_ends(name)).collect()
            }
        }
    }

    fn workload_ends<'s>(&'s self, name: &'s WorkloadName) -> Vec<Ends<'s>> {
        let Some(workload) = self.model.workloads.get(name) else { return Vec::new() };
        if workload.host {
            let node = self.model.nodes.get(&*workload.node);
            let addresses: Vec<_> = node.iter().flat_map(|node| &node.addresses).copied().collect();
            return match addresses.as_slice() {
                [] => vec![Ends::Host { address: None }],
                some => some.iter().map(|&address| Ends::Host { address: Some(address) }).collect(),
            };
        }
        let mut ends = Vec::new();
        for (index, endpoint) in (0..).zip(&workload.endpoints) {
            ends.extend(endpoint.addresses.iter().map(|&address| Ends::Workload {
                name,
                workload,
                index,
                segment: endpoint.segment,
                address,
            }));
        }
        ends
    }

    /// Outside as traffic of a direction sees it: ranges between which some wall tells a difference. IPv6 only where somebody speaks of it.
    fn partition(&self, direction: Direction) -> Vec<Range> {
        let mut ranges = Vec::new();
        for v6 in [false, true] {
            if v6 && !self.speaks_v6() {
                continue;
            }
            let nodes = self.nodes.values();
            let covers: Vec<_> = nodes
                .flat_map(|node| {
                    let used = node.used(direction);
                    let outside = node.outside.iter().filter(move |((_, family), _)| *family == v6);
                    outside.map(move |(_, covers)| {
                        covers.map(|selectors| selectors.intersection(&used).copied().collect())
                    })
                })
                .collect();
            ranges.extend(ranges::partition(&covers, v6));
        }
        ranges
    }

    fn speaks_v6(&self) -> bool {
        let endpoints = self.model.workloads.values().flat_map(|workload| &workload.endpoints);
        let known = endpoints.filter(|endpoint| !endpoint.placeholder).flat_map(|endpoint| &endpoint.addresses);
        let nodes = self.model.nodes.values().flat_map(|node| &node.addresses);
        known.chain(nodes).any(IpAddr::is_ipv6) || self.model.cidrs().any(IpNetwork::is_ipv6)
    }
}

/// One address of a party.
#[derive(Clone, Copy, Debug)]
enum Ends<'a> {
    Workload {
        name: &'a WorkloadName,
        workload: &'a Workload,
        index: u32,
        segment: Segment,
        address: IpAddr,
    },
    /// In a node's own network.
    Host {
        address: Option<IpAddr>,
    },
    Outside(Range),
}

impl Ends<'_> {
    const fn is_v6(&self) -> Option<bool> {
        match self {
            Self::Workload { address, .. } | Self::Host { address: Some(address) } => Some(address.is_ipv6()),
            Self::Host { address: None } => None,
            Self::Outside(range) => Some(range.is_ipv6()),
        }
    }

    /// Whether packets can go between them.
    fn meets(&self, other: &Self) -> bool {
        let family = match (self.is_v6(), other.is_v6()) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        family
            && match (self, other) {
                (Self::Workload { segment: one, .. }, Self::Workload { segment: other, .. }) => one == other,
                (Self::Outside(_), Self::Outside(_)) => false,
                _ => true,
            }
    }
}

impl Node {
    fn new(desired: Desired) -> Result<Self, bulkhead_dataplane::node::NodeError> {
        let judge = Judge::new(&desired)?;
        let known: BTreeSet<IpAddr> = desired.addresses.keys().map(|(_, address)| *address).collect();
        let mut prefixes: BTreeMap<(Segment, bool), Vec<(IpNetwork, BTreeSet<SelectorId>)>> = BTreeMap::new();
        for (&(segment, net), prefix) in &desired.prefixes {
            // Who has it is a party of its own; a node's stands there for what is masqueraded with it.
            if IpNetwork::from(net.ip()) == net && known.contains(&net.ip()) {
                continue;
            }
            prefixes.entry((segment, net.is_ipv6())).or_default().push((net, prefix.selectors.clone()));
        }
        let endpoints =
            desired.endpoints.iter().enumerate().map(|(at, endpoint)| (endpoint.name.clone(), at)).collect();
        let outside = prefixes.into_iter().map(|(key, prefixes)| (key, ranges::Covers::new(prefixes))).collect();
        let (judge, rows, open) = (RefCell::new(judge), RefCell::default(), RefCell::default());
        Ok(Self { desired, judge, endpoints, outside, rows, open })
    }

    /// What holds of an endpoint now.
    fn view(&self, name: &WorkloadName, index: u32) -> Option<View> {
        let name = EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index };
        self.desired.endpoints[*self.endpoints.get(&name)?].views.first().copied()
    }

    /// The row of a peer as an endpoint in a segment meets it.
    fn row(&self, peer: &Ends<'_>, segment: Segment) -> Row {
        let peer = match peer {
            Ends::Workload { address, .. } | Ends::Host { address: Some(address) } => Met::Known(*address),
            Ends::Host { address: None } => Met::Nobody,
            Ends::Outside(range) => Met::Outside(*range),
        };
        let row = || {
            let selectors = match peer {
                Met::Known(address) => self.desired.addresses.get(&(segment, address)).map(|known| &known.selectors),
                Met::Nobody => None,
                Met::Outside(range) => {
                    let covers = self.outside.get(&(segment, range.is_ipv6()));
                    covers.and_then(|covers| covers.at(range.first()))
                }
            };
            self.judge.borrow_mut().row(selectors.unwrap_or(&BTreeSet::new()))
        };
        *self.rows.borrow_mut().entry((segment, peer)).or_insert_with(row)
    }

    /// Selectors that sets of a direction use.
    fn used(&self, direction: Direction) -> BTreeSet<SelectorId> {
        let sets = self.desired.sets.iter().filter(|set| set.direction == direction);
        let entries = sets.flat_map(|set| set.classes.iter().flatten()).flat_map(|interval| &interval.entries);
        let peers = entries.filter_map(|entry| match &entry.peers {
            Peers::Any(_) => None,
            Peers::Selectors(selectors) => Some(selectors),
        });
        peers.flatten().map(|(selector, _)| *selector).collect()
    }

    /// What a set lets a row through on.
    fn open(&self, set: SetId, row: Row, would: bool) -> Rc<Vec<Open>> {
        let mut known = self.open.borrow_mut();
        let asked = known.entry((set, row, would)).or_insert_with(|| {
            let mut open: Vec<Open> = Vec::new();
            let judge = self.judge.borrow();
            for (class, intervals) in Class::ALL.into_iter().zip(&self.desired.sets[set.0 as usize].classes) {
                let ends = intervals.iter().skip(1).map(|next| next.start - 1).chain([u16::MAX]);
                for (interval, last) in intervals.iter().zip(ends) {
                    let answer = judge.ask(set, class, interval.start, row, would);
                    if answer.allow {
                        open.push(Open { class, first: interval.start, last, answer });
                    }
                }
            }
            Rc::new(open)
        });
        Rc::clone(asked)
    }
}

/// Where two walls are both open.
fn meet(egress: Option<&[Open]>, ingress: Option<&[Open]>, mut each: impl FnMut(Class, u16, u16, [Option<Answer>; 2])) {
    match (egress, ingress) {
        (None, None) => Class::ALL.into_iter().for_each(|class| each(class, 0, u16::MAX, [None; 2])),
        (Some(open), None) => {
            open.iter().for_each(|open| each(open.class, open.first, open.last, [Some(open.answer), None]));
        }
        (None, Some(open)) => {
            open.iter().for_each(|open| each(open.class, open.first, open.last, [None, Some(open.answer)]));
        }
        (Some(egress), Some(ingress)) => {
            for out in egress {
                for into in ingress.iter().filter(|into| into.class == out.class) {
                    let (first, last) = (out.first.max(into.first), out.last.min(into.last));
                    if first <= last {
                        each(out.class, first, last, [Some(out.answer), Some(into.answer)]);
                    }
                }
            }
        }
    }
}
