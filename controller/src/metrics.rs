//! Metrics: exact counts as the node has them, and who the other side was as far as flows and samples tell.

mod totals;

use bulkhead_dataplane::{
    kernel::{GATE, INPUT_RULE},
    node::{Contacts, Reading, Status},
};
use bulkhead_ebpf::reason::Reason;
use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

pub use self::totals::{OTHER, Saved, Totals};

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
    /// The latest attempt to publish failed, or was not made, since it could not be written down first.
    pub failed: bool,
    /// What is in force could not be written down, which its source keeps itself.
    pub unwritten: bool,
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

impl Health {
    /// Why what is in force does not guard all of the node; `None` when it does. Bad input is none: its last good text holds.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.failed {
            return Some("publishing fails and is tried again".to_owned());
        }
        (self.unguarded > 0).then(|| format!("{} endpoints are not guarded", self.unguarded))
    }
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
        "1 while the latest attempt to publish has failed, and what was in force still is, or while what is in force cannot be written down.",
        (health.failed || health.unwritten).into(),
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
        "bulkhead_direct_forwarding",
        "1 while packets between workloads are forwarded directly, past bridge, routes and netfilter.",
        status.direct.into(),
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
    for (side, peer, size) in totals.by_peer() {
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
    registry.register(Box::new(packets))?;
    registry.register(Box::new(bytes))
}
