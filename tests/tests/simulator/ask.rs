//! The question, put to both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::AddAssign,
};

use bulkhead_controller::simulate::{Connections, Party, Simulation};
use bulkhead_dataplane::desired::{EndpointName, Segment};
use bulkhead_ebpf::abi::{Class, Direction, mark};
use bulkhead_fixtures::{Frame, tcp};
use bulkhead_tests::test_run;

use crate::{
    cases::{Case, NOW},
    node::{Kernels, MAC, Node},
};

/// Port from which all is sent. No policy speaks of it, so that no question is taken for an answer to another one.
const SOURCE: u16 = 47_111;
/// Ports that are asked for whatever the policies say.
const PORTS: [u16; 3] = [1, 80, u16::MAX];
/// GRE and OSPF, for all protocols that have a class together. Without ports nothing tells questions from answers, so each way has one of its own.
const OTHER: [u8; 2] = [47, 89];

/// How much was compared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Compared {
    pub(crate) pairs: usize,
    pub(crate) verdicts: usize,
    /// Verdicts that let pass.
    pub(crate) allowed: usize,
}

impl AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.verdicts += other.verdicts;
        self.allowed += other.allowed;
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pairs, verdicts, allowed } = self;
        write!(f, "{pairs} pairs, {verdicts} verdicts, {allowed} of them let pass")
    }
}

/// One address that calls or is called.
struct End<'a> {
    party: Party<'a>,
    address: IpAddr,
    wall: Option<Wall<'a>>,
}

/// The link of a workload.
struct Wall<'a> {
    at: &'a str,
    node: &'a Node<'a>,
    slot: u32,
    segment: Segment,
}

/// The first packet of a connection.
#[derive(Clone, Copy)]
struct Call {
    class: Class,
    value: u16,
}

/// What the walls of caller and callee say, where there is one and the packet comes so far.
type Walls = [Option<bool>; 2];

/// Compares all of a case; differences are added to `wrong`.
pub(crate) fn compare(case: &Case, kernels: &mut Kernels, wrong: &mut Vec<String>) -> Compared {
    let simulation = Simulation::new(&case.model, NOW).unwrap_or_else(|found| panic!("{}: {found}", case.name));
    let nodes = kernels.publish(&case.model);
    let boundaries = boundaries(&nodes);
    let workloads = workloads(&simulation, &nodes);
    let [callers, callees] =
        [Direction::Ingress, Direction::Egress].map(|direction| outside(&simulation, &nodes, direction));
    let between = workloads.iter().flat_map(|from| workloads.iter().map(move |to| (from, to)));
    let incoming = callers.iter().flat_map(|from| workloads.iter().map(move |to| (from, to)));
    let outgoing = workloads.iter().flat_map(|from| callees.iter().map(move |to| (from, to)));
    let mut compared = Compared::default();
    for (from, to) in between.chain(incoming).chain(outgoing).filter(|(from, to)| from.meets(to)) {
        let says = simulation.between(from.party, to.party);
        compared.pairs += 1;
        for call in calls(&boundaries, &says, from.address, to.address) {
            let walls = call.send(from, to).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let (simulated, passes) = (call.is_in(&says), walls.into_iter().flatten().all(|pass| pass));
            compared.verdicts += 1;
            compared.allowed += usize::from(passes);
            if simulated != passes {
                wrong.push(difference(&case.name, &simulation, (from, to), call, walls));
            }
        }
    }
    compared
}

/// Everything that a disagreement is looked into with.
fn difference(
    case: &str,
    simulation: &Simulation<'_>,
    (from, to): (&End<'_>, &End<'_>),
    call: Call,
    walls: Walls,
) -> String {
    let passages = simulation.passages(from.party, to.party);
    let near: Vec<_> = passages.iter().filter(|passage| passage.class == call.class).collect();
    let says = if call.is_in(&simulation.between(from.party, to.party)) { "passes" } else { "does not pass" };
    let seen = walls.map(|wall| match wall {
        None => "is not asked",
        Some(true) => "lets it pass",
        Some(false) => "drops it",
    });
    format!(
        "{case}: {from} calls {to}, {:?} {}\n  simulator: it {says}; of this class pass: {near:#?}\n  \
         kernel: the caller's wall {}, the callee's {}",
        call.class, call.value, seen[0], seen[1]
    )
}

/// Workloads that have a wall. What is in a node's own network has none.
fn workloads<'a>(simulation: &'a Simulation<'_>, nodes: &'a BTreeMap<&str, Node<'a>>) -> Vec<End<'a>> {
    let mut ends = Vec::new();
    for (name, workload) in simulation.model().workloads.iter().filter(|(_, workload)| !workload.host) {
        let party = simulation.find(name).expect("a group for each workload");
        for (index, endpoint) in (0..).zip(&workload.endpoints) {
            let (at, node) = nodes.get_key_value(&*workload.node).expect("all nodes with endpoints");
            let endpoint_name = EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index };
            let slot = node.slots[&endpoint_name];
            ends.extend(endpoint.addresses.iter().map(|&address| End {
                party,
                address,
                wall: Some(Wall { at, node, slot, segment: endpoint.segment }),
            }));
        }
    }
    ends
}

/// First and last address of each range outside, unless somebody is known to have it.
fn outside<'a>(simulation: &Simulation<'_>, nodes: &BTreeMap<&str, Node<'_>>, direction: Direction) -> Vec<End<'a>> {
    let mut known: BTreeSet<IpAddr> = BTreeSet::new();
    for Node { desired, .. } in nodes.values() {
        known.extend(desired.addresses.keys().map(|(_, address)| *address));
        known.extend(desired.services.keys().filter_map(|service| service.address));
    }
    let mut ends = Vec::new();
    for range in simulation.outside(direction) {
        let addresses = BTreeSet::from([range.first(), range.last()]);
        let free = addresses.difference(&known);
        ends.extend(free.map(|&address| End { party: Party::Outside(*range), address, wall: None }));
    }
    ends
}

/// Where something may change: both sides of where an interval of any policy set begins, by class.
fn boundaries(nodes: &BTreeMap<&str, Node<'_>>) -> BTreeMap<u8, BTreeSet<u16>> {
    let mut boundaries: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for set in nodes.values().flat_map(|node| node.desired.sets.iter()) {
        for (class, intervals) in Class::ALL.into_iter().zip(&set.classes) {
            let sides = intervals.iter().flat_map(|interval| [interval.start.saturating_sub(1), interval.start]);
            boundaries.entry(class as u8).or_default().extend(sides);
        }
    }
    boundaries
}

/// What is asked about a pair: at each boundary, at those of its own answer, and a few ports more; echo and one protocol without ports.
fn calls(boundaries: &BTreeMap<u8, BTreeSet<u16>>, says: &Connections, from: IpAddr, to: IpAddr) -> Vec<Call> {
    let echo = if from.is_ipv6() { (Class::Icmp6, 128 << 8) } else { (Class::Icmp, 8 << 8) };
    let other = (Class::Other, OTHER[usize::from(from < to)].into());
    let mut calls = [echo, other].map(|(class, value)| Call { class, value }).to_vec();
    for class in [Class::Tcp, Class::Udp, Class::Sctp] {
        let mut ports = BTreeSet::from(PORTS);
        ports.extend(boundaries.get(&(class as u8)).into_iter().flatten());
        for (first, last) in says.of(class) {
            ports.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
        }
        // No connection has port 0.
        ports.remove(&0);
        assert!(!ports.contains(&SOURCE), "{SOURCE} is nobody's port");
        calls.extend(ports.into_iter().map(|value| Call { class, value }));
    }
    calls
}

impl End<'_> {
    /// Whether packets can go between them, and both ends are not one.
    fn meets(&self, other: &Self) -> bool {
        let segments = [self, other].map(|end| end.wall.as_ref().map(|wall| wall.segment));
        let apart = matches!(segments, [Some(one), Some(other)] if one != other);
        self.party != other.party && self.address.is_ipv6() == other.address.is_ipv6() && !apart
    }
}

impl fmt::Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.party {
            Party::Group(name) => write!(f, "{name} ({})", self.address),
            Party::Outside(range) => write!(f, "{} (outside, {range})", self.address),
        }
    }
}

impl Call {
    /// Whether the simulator lets it pass.
    fn is_in(self, connections: &Connections) -> bool {
        connections.of(self.class).any(|(first, last)| (first..=last).contains(&self.value))
    }

    /// Sends it by the caller's wall, and what comes through by the callee's.
    fn send(self, from: &End<'_>, to: &End<'_>) -> Result<Walls, String> {
        let bytes = self.frame(from.address, to.address);
        let mut frame = test_run::Frame { bytes, mark: 0, transit: true };
        let mut sent = None;
        if let Some(Wall { node, slot, .. }) = from.wall {
            let passed = node.kernel.wall(Direction::Egress, slot, &frame)?;
            if !passed.pass {
                return Ok([Some(false), None]);
            }
            (sent, frame.mark) = (Some(true), passed.mark);
        }
        let Some(Wall { at, node, slot, segment }) = to.wall else { return Ok([sent, None]) };
        // A mark does not leave its node. What arrives by an overlay has the one that the check on the underlay gives it.
        if from.wall.as_ref().is_some_and(|wall| wall.at != at) {
            frame.mark = if segment == 0 { 0 } else { mark::VERIFIED };
        }
        let received = node.kernel.wall(Direction::Ingress, slot, &frame)?;
        Ok([sent, Some(received.pass)])
    }

    fn frame(self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let frame = Frame::eth(MAC, MAC).ip(from, to);
        let frame = match self.class {
            Class::Tcp => frame.tcp(SOURCE, self.value, tcp::SYN),
            Class::Udp => frame.udp(SOURCE, self.value).payload(8),
            Class::Sctp => frame.sctp(SOURCE, self.value).sctp_chunk(1, 0, &[0; 16]),
            Class::Icmp | Class::Icmp6 => frame.icmp_echo(1, 1).payload(8),
            Class::Other => frame.raw_l4(self.value.to_be_bytes()[1], &[0; 24]),
        };
        frame.build()
    }
}
