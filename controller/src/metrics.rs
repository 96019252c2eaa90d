//! Metrics: exact counts as the node has them, and who the other side was as far as flows and samples tell.

use std::collections::BTreeMap;

use bulkhead_dataplane::{
    desired::EndpointName,
    kernel::{GATE, INPUT_RULE},
    node::{ContactRecord, Contacts, FlowRecord, Reading, Status},
};
use bulkhead_ebpf::reason::Reason;
use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use serde::{Deserialize, Serialize};

use crate::peers::Peers;

/// Peers, ports and protocols that one side of a workload may have series for; what is beyond counts as [`OTHER`]. A scan of all ports must not
/// become as many series.
const MAX_PEERS: usize = 256;
/// The peer of what no flow or sample tells.
pub const OTHER: &str = "other";

/// One side of a workload: what sums by peer are exact for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Side {
    workload: String,
    namespace: String,
    service: String,
    direction: String,
    blocked: bool,
}

impl Side {
    /// `None` for what is no workload's, for frames that a bridge merely flooded past it, and for what audited policies say of packets that are
    /// counted already.
    fn of(reading: &Reading) -> Option<Self> {
        let counts = reading.reason != Reason::NotForUs && !reading.reason.beside();
        let endpoint = reading.endpoint.as_ref().filter(|_| counts)?;
        Some(Self {
            workload: endpoint.workload.clone(),
            namespace: endpoint.namespace.clone(),
            service: reading.service.clone(),
            direction: reading.direction.to_owned(),
            blocked: reading.reason.blocked(),
        })
    }
}

/// The other side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    peer: String,
    port: String,
    protocol: String,
}

impl Peer {
    fn other() -> Self {
        Self { peer: OTHER.to_owned(), port: String::new(), protocol: String::new() }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    packets: u64,
    bytes: u64,
}

impl Size {
    fn saturating_sub(self, other: Self) -> Self {
        Self { packets: self.packets.saturating_sub(other.packets), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn at_most(self, limit: Self) -> Self {
        Self { packets: self.packets.min(limit.packets), bytes: self.bytes.min(limit.bytes) }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What counts on by itself until it is gone: one direction of a flow, or a sample of what was denied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    endpoint: EndpointName,
    direction: &'static str,
    blocked: bool,
    remote: std::net::IpAddr,
    protocol: u8,
    ports: (u16, u16),
    reason: Reason,
}

/// How much of a [`Source`] is counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// When it began, nanoseconds of Unix time.
    first: u64,
    size: Size,
}

impl Counted {
    /// Beginnings are computed from jiffies anew each time.
    const JITTER: u64 = 1_000_000_000;

    /// Whether a source that began at `first` and has `size` now may be this one, and not another that came back under its key.
    fn grew_to(&self, first: u64, size: Size) -> bool {
        self.first.abs_diff(first) < Self::JITTER && size.packets >= self.size.packets && size.bytes >= self.size.bytes
    }
}

/// Totals by peer since the pins were made. Each side's sum is exactly what the node counted for it: what no flow or sample explains is
/// [`OTHER`]'s. No total ever shrinks unless the node's counters began anew.
#[derive(Debug, Default)]
pub struct Totals {
    sides: BTreeMap<Side, BTreeMap<Peer, Size>>,
    seen: BTreeMap<Source, Counted>,
    /// What began before this is counted from where it was found: another process counted it before.
    since: u64,
}

/// What outlives the process.
#[derive(Default, Serialize, Deserialize)]
pub struct Saved {
    at: u64,
    sides: Vec<(Side, Vec<(Peer, Size)>)>,
}

impl Totals {
    /// Goes on from what another process saved.
    pub fn restore(saved: Saved) -> Self {
        let sides = saved.sides.into_iter().map(|(side, peers)| (side, peers.into_iter().collect())).collect();
        Self { sides, seen: BTreeMap::new(), since: saved.at }
    }

    /// What to save; `at` is nanoseconds of Unix time before the records of the latest [`Self::update`] were read.
    pub fn save(&self, at: u64) -> Saved {
        let sides =
            self.sides.iter().map(|(side, peers)| (side.clone(), peers.clone().into_iter().collect())).collect();
        Saved { at, sides }
    }

    /// Takes what the node says now. `readings` were read before `flows` and `contacts`, so that these explain all of them.
    pub fn update(&mut self, readings: &[Reading], flows: &[FlowRecord], contacts: &[ContactRecord], peers: &Peers) {
        let mut now: BTreeMap<Side, Size> = BTreeMap::new();
        let mut services: BTreeMap<&EndpointName, &str> = BTreeMap::new();
        for reading in readings {
            if let Some(side) = Side::of(reading) {
                now.entry(side).or_default().add(Size { packets: reading.packets, bytes: reading.bytes });
            }
            if let Some(endpoint) = &reading.endpoint {
                services.insert(endpoint, &reading.service);
            }
        }
        self.sides.retain(|side, _| now.contains_key(side));
        let mut left: BTreeMap<Side, Size> = BTreeMap::new();
        for (side, total) in now {
            let by_peer = self.sides.entry(side.clone()).or_default();
            let mut counted = Size::default();
            by_peer.values().for_each(|&size| counted.add(size));
            if counted.packets > total.packets || counted.bytes > total.bytes {
                // The pins are new.
                by_peer.clear();
                counted = Size::default();
            }
            left.insert(side, total.saturating_sub(counted));
        }
        let records = flows.iter().flat_map(of_flow).chain(contacts.iter().filter_map(of_contact));
        let mut seen = BTreeMap::new();
        for (source, first, size) in records {
            let before = match self.seen.get(&source) {
                Some(counted) if counted.grew_to(first, size) => counted.size,
                None if first < self.since => size,
                _ => Size::default(),
            };
            let side = Side {
                workload: source.endpoint.workload.clone(),
                namespace: source.endpoint.namespace.clone(),
                service: services.get(&source.endpoint).map_or_else(String::new, |&service| service.to_owned()),
                direction: source.direction.to_owned(),
                blocked: source.blocked,
            };
            let mut taken = Size::default();
            if let (Some(left), Some(by_peer)) = (left.get_mut(&side), self.sides.get_mut(&side)) {
                // What the counters do not hold yet waits for the next time.
                taken = size.saturating_sub(before).at_most(*left);
                if taken != Size::default() {
                    let peer = peer(&source, peers);
                    let known = by_peer.contains_key(&peer) || by_peer.len() < MAX_PEERS;
                    by_peer.entry(if known { peer } else { Peer::other() }).or_default().add(taken);
                    *left = left.saturating_sub(taken);
                }
            }
            let mut counted = before;
            counted.add(taken);
            seen.insert(source, Counted { first, size: counted });
        }
        self.seen = seen;
        for (side, rest) in left {
            if rest != Size::default() {
                self.sides.entry(side).or_default().entry(Peer::other()).or_default().add(rest);
            }
        }
    }
}

fn of_flow(flow: &FlowRecord) -> [(Source, u64, Size); 2] {
    let reverse = if flow.direction == "ingress" { "egress" } else { "ingress" };
    let source = |direction| Source {
        endpoint: flow.endpoint.clone(),
        direction,
        blocked: false,
        remote: flow.remote,
        protocol: flow.protocol,
        // The port that somebody listens on leads: it is the one that is shown.
        ports: if flow.direction == "ingress" {
            (flow.local_port, flow.remote_port)
        } else {
            (flow.remote_port, flow.local_port)
        },
        reason: flow.reason,
    };
    let size = |side: usize| Size { packets: flow.packets[side], bytes: flow.bytes[side] };
    [(source(flow.direction), flow.first, size(0)), (source(reverse), flow.first, size(1))]
}

/// `None` for samples of what passed: flows tell of those.
fn of_contact(contact: &ContactRecord) -> Option<(Source, u64, Size)> {
    if contact.observed || !contact.reason.blocked() {
        return None;
    }
    let source = Source {
        endpoint: contact.endpoint.clone()?,
        direction: contact.direction,
        blocked: true,
        remote: contact.peer,
        protocol: contact.protocol,
        ports: (contact.port, 0),
        reason: contact.reason,
    };
    Some((source, contact.first, Size { packets: contact.packets, bytes: contact.bytes }))
}

fn peer(source: &Source, peers: &Peers) -> Peer {
    let protocol = protocol(source.protocol);
    let port = if matches!(source.protocol, 6 | 17 | 132) { source.ports.0.to_string() } else { String::new() };
    Peer { peer: peers.name(&source.endpoint, source.remote), port, protocol }
}

/// Name of an IP protocol.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// What an agent says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    /// Number of the revision in force.
    pub revision: u64,
    /// The input as it is now was refused.
    pub refused: bool,
    /// The latest attempt to publish failed.
    pub failed: bool,
    /// Endpoints whose links cannot be guarded now.
    pub unguarded: usize,
    /// Rules of others that use bits of packet marks that are ours.
    pub mark_conflicts: usize,
    /// Records that could not be written to the audit log.
    pub audit_lost: u64,
    /// Guards that were found missing.
    pub drift_found: u64,
    /// Those of them that were put back.
    pub drift_repaired: u64,
    /// Containers that started without a guard.
    pub unenforced: u64,
    /// Links of the node's networks that nobody is known for.
    pub strangers: usize,
    /// How much was compiled how often.
    pub compiles: Compiles,
    /// The source of policies and workloads cannot be followed.
    pub behind: bool,
}

/// How often what shall be enforced was compiled, by how much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compiles {
    /// All of it.
    pub whole: u64,
    /// What differed.
    pub changes: u64,
}

const SIDE: [&str; 5] = ["workload", "namespace", "service", "direction", "verdict"];

const fn verdict(blocked: bool) -> &'static str {
    if blocked { "blocked" } else { "allowed" }
}

/// Everything in Prometheus's text format.
///
/// # Errors
/// None that input can cause; two metrics of one name would.
pub fn render(
    health: Health,
    readings: &[Reading],
    totals: &Totals,
    contacts: &Contacts,
    status: &Status,
) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    counts(&registry, readings)?;
    by_peer(&registry, totals)?;

    let counter = |name, help, value| -> Result<(), prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        registry.register(Box::new(counter))
    };
    let unsent = "Denied packets that the budget for samples did not let through; they are counted all the same.";
    counter("bulkhead_samples_unsent_total", unsent, contacts.unsent)?;
    let lost = "Records that the agent could not write to the audit log since it started.";
    counter("bulkhead_audit_lost_total", lost, health.audit_lost)?;
    let found = "Guards that stood and were found missing since the agent started: programs on links, the input rule; looked for every ten seconds.";
    counter("bulkhead_drift_found_total", found, health.drift_found)?;
    let repaired = "Those of the guards that were found missing that were put back.";
    counter("bulkhead_drift_repaired_total", repaired, health.drift_repaired)?;
    let unenforced = "Containers that started without a guard since the agent did, and were found running.";
    counter("bulkhead_unenforced_starts_total", unenforced, health.unenforced)?;
    let help = "How often the agent compiled since it started: all of it (whole), or what differed (changes).";
    let compiles = IntCounterVec::new(Opts::new("bulkhead_compiles_total", help), &["extent"])?;
    for (extent, times) in [("whole", health.compiles.whole), ("changes", health.compiles.changes)] {
        compiles.with_label_values(&[extent]).inc_by(times);
    }
    registry.register(Box::new(compiles))?;
    let gauge = |name, help, value: u64| -> Result<(), prometheus::Error> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(Box::new(gauge))
    };
    let strangers = "Links of the node's networks behind which somebody runs whom nobody knows; they are shut on the bridges that the agent keeps.";
    gauge("bulkhead_links_unknown", strangers, health.strangers as u64)?;
    let behind = "1 while the source of policies and workloads cannot be followed; what it said last is in force.";
    gauge("bulkhead_source_behind", behind, health.behind.into())?;
    gauge("bulkhead_revision", "Number of the revision in force.", health.revision)?;
    gauge(
        "bulkhead_policy_error",
        "1 while the input as it is now, or a file of it, is refused; its last good text is in force.",
        health.refused.into(),
    )?;
    gauge(
        "bulkhead_publish_error",
        "1 while the latest attempt to publish has failed; what was in force still is.",
        health.failed.into(),
    )?;
    gauge(
        "bulkhead_endpoints_unguarded",
        "Endpoints whose links are missing or cannot be guarded.",
        health.unguarded as u64,
    )?;
    gauge(
        "bulkhead_mark_conflicts",
        "Rules of others (nftables, iptables, policy routing) that use bits of packet marks that are Bulkhead's; looked for every five minutes.",
        health.mark_conflicts as u64,
    )?;
    gauge("bulkhead_epoch", "Epoch of the node.", status.epoch.into())?;
    gauge(
        "bulkhead_bypass_active",
        "1 while enforcement is bypassed: what is forbidden passes, and is counted as observed.",
        status.bypassed_until.is_some().into(),
    )?;
    gauge(
        "bulkhead_bypass_until_seconds",
        "Unix time at which the bypass ends; 0 while there is none.",
        status.bypassed_until.map_or(0, |until| until.div_ceil(1_000_000_000)),
    )?;
    gauge(
        "bulkhead_input_rule",
        "1 while the input rule stands that drops unchecked tunnel traffic, or none is needed.",
        status.input_rule.into(),
    )?;
    for (name, help, value) in [
        (
            "bulkhead_table_used",
            "Entries of a bounded table in use.",
            (|table| table.used) as fn(&bulkhead_dataplane::node::TableUse) -> usize,
        ),
        ("bulkhead_table_limit", "Entries that a bounded table may have.", |table| table.limit),
    ] {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &["table"])?;
        for table in &status.tables {
            gauges.with_label_values(&[table.table]).set(i64::try_from(value(table)).unwrap_or(i64::MAX));
        }
        registry.register(Box::new(gauges))?;
    }

    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// Exact counts. Readings of several endpoints of one workload come together.
fn counts(registry: &Registry, readings: &[Reading]) -> Result<(), prometheus::Error> {
    let vec = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
        let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(vec.clone()))?;
        Ok(vec)
    };
    let labels: Vec<_> = SIDE.into_iter().chain(["reason", "rule"]).collect();
    let packets = vec("bulkhead_packets_total", "Packets (wire segments) of workloads, by verdict.", &labels)?;
    let bytes = vec("bulkhead_bytes_total", "Bytes of frames of workloads, by verdict.", &labels)?;
    let flows = vec(
        "bulkhead_flows_total",
        "Flows of workloads: those that were allowed, and packets that would have begun one.",
        &labels,
    )?;
    let audit = vec(
        "bulkhead_audit_packets_total",
        "What would become of packets if audited policies were enforced (would_deny, would_allow) or what only observes were guarded (observed).",
        &labels[..SIDE.len()].iter().copied().chain(["rule"]).collect::<Vec<_>>(),
    )?;
    let flooded =
        vec("bulkhead_flooded_packets_total", "Frames flooded past a workload that they do not concern.", &SIDE[..3])?;
    let underlay = vec(
        "bulkhead_underlay_packets_total",
        "Tunnel packets at the node's boundary, by verdict.",
        &["direction", "verdict", "reason"],
    )?;
    let underlay_bytes = vec(
        "bulkhead_underlay_bytes_total",
        "Bytes of tunnel packets at the node's boundary, by verdict.",
        &["direction", "verdict", "reason"],
    )?;
    let input = IntCounter::new(
        "bulkhead_input_rule_dropped_packets_total",
        "Tunnel packets that no program had checked, dropped before the socket.",
    )?;
    registry.register(Box::new(input.clone()))?;
    let gate = IntCounter::new(
        "bulkhead_gate_dropped_frames_total",
        "Frames from and to ports of bridges that no program guards, dropped by the gate.",
    )?;
    registry.register(Box::new(gate.clone()))?;
    for reading in readings {
        let Some(endpoint) = &reading.endpoint else {
            if reading.rule == INPUT_RULE {
                input.inc_by(reading.packets);
            } else if reading.rule == GATE {
                gate.inc_by(reading.packets);
            } else {
                let labels = [reading.direction, verdict(reading.reason.blocked()), reading.reason.label()];
                underlay.with_label_values(&labels).inc_by(reading.packets);
                underlay_bytes.with_label_values(&labels).inc_by(reading.bytes);
            }
            continue;
        };
        if reading.reason == Reason::NotForUs {
            flooded
                .with_label_values(&[&endpoint.workload, &endpoint.namespace, &reading.service])
                .inc_by(reading.packets);
            continue;
        }
        let (workload, namespace) = (endpoint.workload.as_str(), endpoint.namespace.as_str());
        if reading.reason.beside() || reading.reason == Reason::Observed {
            let verdict = reading.reason.label();
            audit
                .with_label_values(&[workload, namespace, &reading.service, reading.direction, verdict, &reading.rule])
                .inc_by(reading.packets);
        }
        if reading.reason.beside() {
            continue;
        }
        let labels = [
            workload,
            namespace,
            &reading.service,
            reading.direction,
            verdict(reading.reason.blocked()),
            reading.reason.label(),
            &reading.rule,
        ];
        packets.with_label_values(&labels).inc_by(reading.packets);
        bytes.with_label_values(&labels).inc_by(reading.bytes);
        flows.with_label_values(&labels).inc_by(reading.flows);
    }
    Ok(())
}

fn by_peer(registry: &Registry, totals: &Totals) -> Result<(), prometheus::Error> {
    let labels: Vec<_> = SIDE.into_iter().chain(["peer", "port", "protocol"]).collect();
    let packets = IntCounterVec::new(
        Opts::new("bulkhead_peer_packets_total", "The same packets by peer, as far as flows and samples tell."),
        &labels,
    )?;
    let bytes = IntCounterVec::new(
        Opts::new("bulkhead_peer_bytes_total", "The same bytes by peer, as far as flows and samples tell."),
        &labels,
    )?;
    for (side, by_peer) in &totals.sides {
        for (peer, size) in by_peer {
            let labels = [
                &side.workload,
                &side.namespace,
                &side.service,
                &side.direction,
                verdict(side.blocked),
                &peer.peer,
                &peer.port,
                &peer.protocol,
            ];
            packets.with_label_values(&labels).inc_by(size.packets);
            bytes.with_label_values(&labels).inc_by(size.bytes);
        }
    }
    registry.register(Box::new(packets))?;
    registry.register(Box::new(bytes))
}
