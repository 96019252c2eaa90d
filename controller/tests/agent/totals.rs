//! Totals by peer come to what the plainest way of counting comes to.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bulkhead_controller::{
    metrics::{OTHER, Totals, protocol},
    peers::Peers,
};
use bulkhead_dataplane::{
    desired::EndpointName,
    node::{ContactRecord, FlowRecord, Reading},
};
use bulkhead_ebpf::reason::Reason;
use proptest::prelude::*;

use crate::support::{contact, endpoint, flow, peers, reading};

/// Workload, namespace, service, direction, whether it is blocked.
type Side = (String, String, String, String, bool);
/// Name, port, protocol.
type Peer = (String, String, String);
/// Packets and bytes.
type Size = [u64; 2];
/// Endpoint, direction in which it was begun, and of the packets; own address of a flow, peer, protocol, ports; why a sample was denied, and whether
/// audited policies would let it pass.
type Source =
    (EndpointName, &'static str, &'static str, Option<IpAddr>, IpAddr, u8, (u16, u16), Option<(Reason, bool)>);

fn each(a: Size, b: Size, of: impl Fn(u64, u64) -> u64) -> Size {
    [of(a[0], b[0]), of(a[1], b[1])]
}

/// Every source is looked up by all that it is, and every peer named anew.
#[derive(Default)]
struct Plain {
    sides: BTreeMap<Side, BTreeMap<Peer, Size>>,
    seen: BTreeMap<Source, (u64, Size)>,
    since: u64,
}

impl Plain {
    fn restart(&mut self, at: u64) {
        (self.seen, self.since) = (BTreeMap::new(), at);
    }

    fn update(&mut self, readings: &[Reading], flows: &[FlowRecord], contacts: &[ContactRecord], peers: &Peers) {
        let side = |name: &EndpointName, service: &str, direction: &str, blocked| -> Side {
            let [workload, namespace, service, direction] =
                [&name.workload, &name.namespace, service, direction].map(str::to_owned);
            (workload, namespace, service, direction, blocked)
        };
        let mut left: BTreeMap<Side, Size> = BTreeMap::new();
        for at in readings.iter().filter(|at| !at.reason.beside() && at.reason != Reason::NotForUs) {
            let side = side(at.endpoint.as_ref().unwrap(), &at.service, at.direction, at.reason.blocked());
            let sum = left.entry(side).or_default();
            *sum = each(*sum, [at.packets, at.bytes], |a, b| a + b);
        }
        self.sides.retain(|side, _| left.contains_key(side));
        for (side, left) in &mut left {
            let by_peer = self.sides.entry(side.clone()).or_default();
            let counted = by_peer.values().fold([0, 0], |sum, size| each(sum, *size, |a, b| a + b));
            if counted[0] > left[0] || counted[1] > left[1] {
                by_peer.clear();
            } else {
                *left = each(*left, counted, |a, b| a - b);
            }
        }
        let mut seen = BTreeMap::new();
        for (source, first, size) in flows.iter().flat_map(both_ways).chain(contacts.iter().filter_map(denied)) {
            let (ref name, _, direction, _, remote, number, ports, denied) = source;
            let counted = match self.seen.get(&source) {
                Some(&(began, was)) => {
                    let is_same = began.abs_diff(first) < 1_000_000_000 && size[0] >= was[0] && size[1] >= was[1];
                    if is_same { was } else { [0, 0] }
                }
                None if first < self.since => size,
                None => [0, 0],
            };
            let service = readings.iter().rev().find(|at| at.endpoint.as_ref() == Some(name));
            let service = service.map_or("", |at| &at.service);
            let mut taken = [0, 0];
            if let Some(left) = left.get_mut(&side(name, service, direction, denied.is_some())) {
                taken = each(each(size, counted, u64::saturating_sub), *left, u64::min);
                *left = each(*left, taken, |a, b| a - b);
            }
            if taken != [0, 0] {
                let by_peer = self.sides.get_mut(&side(name, service, direction, denied.is_some())).unwrap();
                let port = if [6, 17, 132].contains(&number) { ports.0.to_string() } else { String::new() };
                let mut peer = (peers.name(name, remote), port, protocol(number));
                if by_peer.len() >= 256 && !by_peer.contains_key(&peer) {
                    peer = other();
                }
                let sum = by_peer.entry(peer).or_default();
                *sum = each(*sum, taken, |a, b| a + b);
            }
            seen.insert(source, (first, each(counted, taken, |a, b| a + b)));
        }
        self.seen = seen;
        for (side, rest) in left.into_iter().filter(|(_, rest)| *rest != [0, 0]) {
            let sum = self.sides.get_mut(&side).unwrap().entry(other()).or_default();
            *sum = each(*sum, rest, |a, b| a + b);
        }
    }
}

fn other() -> Peer {
    (OTHER.to_owned(), String::new(), String::new())
}

fn both_ways(flow: &FlowRecord) -> [(Source, u64, Size); 2] {
    let (reverse, ports) = match flow.direction {
        "ingress" => ("egress", (flow.local_port, flow.remote_port)),
        _ => ("ingress", (flow.remote_port, flow.local_port)),
    };
    [(0, flow.direction), (1, reverse)].map(|(way, direction)| {
        let name = EndpointName::clone(&flow.endpoint);
        let source = (name, flow.direction, direction, Some(flow.local), flow.remote, flow.protocol, ports, None);
        (source, flow.first, [flow.packets[way], flow.bytes[way]])
    })
}

fn denied(contact: &ContactRecord) -> Option<(Source, u64, Size)> {
    let name = EndpointName::clone(contact.endpoint.as_ref().filter(|_| !contact.observed)?);
    let ContactRecord { direction, peer, protocol, port, reason, would_pass, .. } = *contact;
    let source = (name, direction, direction, None, peer, protocol, (port, 0), Some((reason, would_pass)));
    reason.blocked().then_some((source, contact.first, [contact.packets, contact.bytes]))
}

/// Totals as they are written to the disk, in order.
fn written(totals: &Totals) -> BTreeMap<Side, BTreeMap<Peer, Size>> {
    let saved = serde_json::to_value(totals.save(0)).unwrap();
    let text = |of: &serde_json::Value, field: &str| of[field].as_str().unwrap().to_owned();
    let peer = |entry: &serde_json::Value| {
        let (peer, size) = (&entry[0], &entry[1]);
        let size = ["packets", "bytes"].map(|field| size[field].as_u64().unwrap());
        ((text(peer, "peer"), text(peer, "port"), text(peer, "protocol")), size)
    };
    let side = |entry: &serde_json::Value| {
        let [workload, namespace, service, direction] =
            ["workload", "namespace", "service", "direction"].map(|field| text(&entry[0], field));
        let side = (workload, namespace, service, direction, entry[0]["blocked"].as_bool().unwrap());
        (side, entry[1].as_array().unwrap().iter().map(peer).collect())
    };
    saved["sides"].as_array().unwrap().iter().map(side).collect()
}

const ENDPOINTS: [(&str, u32); 3] = [("web-1", 0), ("web-1", 1), ("db-1", 0)];
const REMOTES: [&str; 4] = ["10.0.0.2", "198.51.100.9", "203.0.113.9", "2001:db8::9"];
const LOCALS: [&str; 2] = ["10.0.0.1", "10.0.0.11"];
const PROTOCOLS: [u8; 3] = [6, 17, 1];
const REASONS: [Reason; 3] = [Reason::Isolated, Reason::DeniedByRule, Reason::SpoofedSource];

/// One of a few flows or samples: there are so few that they meet again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Which {
    endpoint: usize,
    inward: bool,
    local: usize,
    remote: usize,
    protocol: usize,
    port: u16,
    reason: usize,
    would_pass: bool,
}

impl Which {
    fn direction(self) -> &'static str {
        if self.inward { "ingress" } else { "egress" }
    }

    fn name(self) -> Arc<EndpointName> {
        let (workload, index) = ENDPOINTS[self.endpoint];
        EndpointName { index, ..endpoint(workload) }.into()
    }

    fn flow(self, first: u64) -> FlowRecord {
        let record = flow("web-1", REMOTES[self.remote], 0, [0, 0], first);
        let (local_port, remote_port) = if self.inward { (self.port, 40000) } else { (40000, self.port) };
        let (endpoint, direction, local) = (self.name(), self.direction(), LOCALS[self.local].parse().unwrap());
        FlowRecord { endpoint, direction, local, local_port, remote_port, protocol: PROTOCOLS[self.protocol], ..record }
    }

    fn contact(self, first: u64) -> ContactRecord {
        let record = contact("web-1", self.direction(), REMOTES[self.remote], self.port, 0, first);
        let (reason, protocol) = (REASONS[self.reason], PROTOCOLS[self.protocol]);
        ContactRecord { endpoint: Some(self.name()), reason, protocol, would_pass: self.would_pass, ..record }
    }
}

fn which() -> impl Strategy<Value = Which> {
    let kind = (0..ENDPOINTS.len(), any::<bool>(), 0..LOCALS.len(), 0..REMOTES.len());
    (kind, 0..PROTOCOLS.len(), 1..3_u16, 0..REASONS.len(), any::<bool>()).prop_map(
        |((endpoint, inward, local, remote), protocol, port, reason, would_pass)| Which {
            endpoint,
            inward,
            local,
            remote,
            protocol,
            port,
            reason,
            would_pass,
        },
    )
}

/// What a node does between two readings.
#[derive(Clone, Debug)]
enum Step {
    /// Packets of a flow, and of them those that the counters do not hold yet when it is read.
    Flow(Which, [u64; 2], u64),
    /// Another rule allows it now.
    Judge(usize),
    /// It falls out of its table. If it goes on it comes back as new.
    Evict(usize),
    /// Another one takes its place at once.
    Replace(usize),
    /// Denied packets, of which some are sampled.
    Denied(Which, u64, u64),
    /// Samples fall out of their table.
    Forget(usize),
    /// Denied packets to each of so many ports.
    Scan(Which, u16),
    /// Packets of an endpoint that no flow tells of.
    Untold(usize, bool, u64),
    Read,
    /// The agent ends and starts again.
    Restart,
    /// The counters begin anew.
    Anew,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (which(), [0..50_u64, 0..50], 0..5_u64).prop_map(|(which, ways, late)| Step::Flow(which, ways, late)),
        1 => any::<usize>().prop_map(Step::Judge),
        2 => any::<usize>().prop_map(Step::Evict),
        1 => any::<usize>().prop_map(Step::Replace),
        6 => (which(), 0..50_u64, 0..80_u64).prop_map(|(which, all, some)| Step::Denied(which, all, some.min(all))),
        1 => any::<usize>().prop_map(Step::Forget),
        1 => (which(), 200..300_u16).prop_map(|(which, ports)| Step::Scan(which, ports)),
        1 => (0..ENDPOINTS.len(), any::<bool>(), 1..50_u64).prop_map(|(at, inward, packets)| Step::Untold(at, inward, packets)),
        6 => Just(Step::Read),
        1 => Just(Step::Restart),
        1 => Just(Step::Anew),
    ]
}

/// A node that counts.
#[derive(Default)]
struct Node {
    /// Packets by endpoint, direction and whether they are blocked; bytes are a hundred times as many.
    counted: BTreeMap<(usize, bool, bool), u64>,
    /// What is counted after the counters and before the flows are read.
    late: Vec<((usize, bool, bool), u64)>,
    flows: BTreeMap<Which, FlowRecord>,
    contacts: BTreeMap<Which, ContactRecord>,
}

impl Node {
    fn count(&mut self, at: (usize, bool, bool), packets: u64) {
        *self.counted.entry(at).or_default() += packets;
    }

    fn any<V>(of: &BTreeMap<Which, V>, at: usize) -> Option<Which> {
        of.keys().nth(at % of.len().max(1)).copied()
    }

    fn flow(&mut self, which: Which, ways: [u64; 2], late: u64, now: u64) {
        // What a sample has is no part of a flow.
        let which = Which { reason: 0, would_pass: false, ..which };
        let flow = self.flows.entry(which).or_insert_with(|| which.flow(now));
        for (way, inward) in [(0, which.inward), (1, !which.inward)] {
            flow.packets[way] += ways[way] + late;
            flow.bytes[way] += 100 * (ways[way] + late);
            *self.counted.entry((which.endpoint, inward, false)).or_default() += ways[way];
            self.late.push(((which.endpoint, inward, false), late));
        }
    }

    fn denied(&mut self, which: Which, packets: u64, sampled: u64, now: u64) {
        // It does not show which address of the endpoint it was.
        let which = Which { local: 0, ..which };
        self.count((which.endpoint, which.inward, true), packets);
        let contact = self.contacts.entry(which).or_insert_with(|| which.contact(now));
        contact.packets += sampled;
        contact.bytes += 100 * sampled;
    }

    fn readings(&self) -> Vec<Reading> {
        let counted = self.counted.iter().filter(|(_, packets)| **packets > 0);
        let reading = |(&(at, inward, blocked), &packets): (&(usize, bool, bool), &u64)| {
            let (workload, index) = ENDPOINTS[at];
            let direction = if inward { "ingress" } else { "egress" };
            let reason = if blocked { Reason::Isolated } else { Reason::Rule };
            let of = EndpointName { index, ..endpoint(workload) };
            Reading { endpoint: Some(of), ..reading(workload, direction, reason, "r", packets) }
        };
        counted.map(reading).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn totals_are_those_of_the_plain_way(steps in prop::collection::vec(step(), 1..80)) {
        let peers = peers();
        let (mut totals, mut plain, mut node) = (Totals::default(), Plain::default(), Node::default());
        let mut now = 1_000_000_000_000_u64;
        for step in steps.into_iter().chain([Step::Read]) {
            now += 10_000_000_000;
            match step {
                Step::Flow(which, ways, late) => node.flow(which, ways, late, now),
                Step::Judge(at) => {
                    if let Some(flow) = Node::any(&node.flows, at).and_then(|at| node.flows.get_mut(&at)) {
                        (flow.reason, flow.rule) = (Reason::NotIsolated, "".into());
                    }
                }
                Step::Evict(at) => _ = Node::any(&node.flows, at).and_then(|at| node.flows.remove(&at)),
                Step::Replace(at) => {
                    if let Some(flow) = Node::any(&node.flows, at).and_then(|at| node.flows.get_mut(&at)) {
                        (flow.packets, flow.bytes, flow.first) = ([0, 0], [0, 0], flow.first + 500_000_000);
                    }
                }
                Step::Denied(which, packets, sampled) => node.denied(which, packets, sampled, now),
                Step::Forget(at) => _ = Node::any(&node.contacts, at).and_then(|at| node.contacts.remove(&at)),
                Step::Scan(which, ports) => {
                    (1..=ports).for_each(|port| node.denied(Which { port, ..which }, 2, 1, now));
                }
                Step::Untold(at, inward, packets) => node.count((at, inward, false), packets),
                Step::Restart => {
                    let saved = serde_json::to_string(&totals.save(now)).unwrap();
                    totals = Totals::restore(serde_json::from_str(&saved).unwrap());
                    plain.restart(now);
                }
                Step::Anew => node.counted.clear(),
                Step::Read => {
                    let readings = node.readings();
                    for (at, packets) in std::mem::take(&mut node.late) {
                        node.count(at, packets);
                    }
                    let flows: Vec<_> = node.flows.values().cloned().collect();
                    let contacts: Vec<_> = node.contacts.values().cloned().collect();
                    totals.update(&readings, &flows, &contacts, &peers);
                    plain.update(&readings, &flows, &contacts, &peers);
                    prop_assert_eq!(written(&totals), plain.sides.clone());
                }
            }
        }
    }
}

/// Packets of a side of `web-1` by peer.
fn outward(totals: &Totals) -> BTreeMap<String, u64> {
    let sides = written(totals);
    let (_, by_peer) = sides.iter().find(|(side, _)| side.0 == "web-1" && side.3 == "egress" && !side.4).unwrap();
    by_peer.iter().map(|((peer, ..), [packets, _])| (peer.clone(), *packets)).collect()
}

fn of<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.map(|(peer, packets)| (peer.to_owned(), packets)).into()
}

/// After a change of policy another rule allows it: what it had counted before is counted.
#[test]
fn a_flow_that_is_judged_anew_counts_once() {
    let allowed = |packets| [reading("web-1", "egress", Reason::Rule, "r", packets)];
    let mut flow = flow("web-1", "10.0.0.2", 5432, [90, 0], 100);
    let mut totals = Totals::default();
    totals.update(&allowed(90), &[flow.clone()], &[], &peers());
    assert_eq!(outward(&totals), of([("shop/db", 90)]));
    (flow.reason, flow.rule) = (Reason::NotIsolated, "".into());
    totals.update(&allowed(120), &[flow], &[], &peers());
    assert_eq!(outward(&totals), of([("shop/db", 90), ("other", 30)]), "the flow rested meanwhile");
}

#[test]
fn flows_of_two_addresses_of_an_endpoint_are_two() {
    let allowed = |packets| [reading("web-1", "egress", Reason::Rule, "r", packets)];
    let flows: [FlowRecord; 2] = [("10.0.0.1", 50), ("10.0.0.11", 3)].map(|(local, packets)| FlowRecord {
        local: local.parse().unwrap(),
        ..flow("web-1", "10.0.0.2", 5432, [packets, 0], 100)
    });
    let mut totals = Totals::default();
    totals.update(&allowed(53), &flows, &[], &peers());
    totals.update(&allowed(83), &flows, &[], &peers());
    assert_eq!(outward(&totals), of([("shop/db", 53), ("other", 30)]), "both rested meanwhile");
}
