//! Sums by peer are the exact counts, and never shrink.

use std::collections::BTreeMap;

use bulkhead_controller::metrics::{Compiles, Health, Totals, render};
use bulkhead_dataplane::node::{ContactRecord, Contacts, FlowRecord, Reading, Status, TableUse};
use bulkhead_ebpf::reason::Reason;
use proptest::prelude::*;

use crate::support::{contact, flow, peers, reading, value};

fn text(readings: &[Reading], totals: &Totals) -> String {
    render(Health::default(), readings, totals, &Contacts::default(), &Status::default()).unwrap()
}

const WEB_OUT: [&str; 2] = ["workload=\"web-1\"", "direction=\"egress\""];

#[test]
fn peers_have_names_and_the_rest_is_other() {
    let readings = [
        reading("web-1", "egress", Reason::Rule, "shop: web calls db:5432/tcp", 10),
        reading("web-1", "ingress", Reason::Reply, "shop: web calls db:5432/tcp", 8),
        reading("web-1", "egress", Reason::Isolated, "shop/web isolated egress", 20),
        reading("web-1", "egress", Reason::SpoofedSource, "", 3),
        reading("web-1", "ingress", Reason::NotForUs, "", 1000),
    ];
    let flows = [flow("web-1", "10.0.0.2", 5432, [7, 8], 100)];
    let contacts = [
        contact("web-1", "egress", "198.51.100.9", 443, 5, 100),
        contact("web-1", "egress", "203.0.113.9", 443, 4, 100),
        contact("web-1", "egress", "192.0.2.1", 22, 1, 100),
        contact("web-1", "egress", "169.254.169.254", 80, 1, 100),
        contact("web-1", "egress", "224.0.0.1", 5, 1, 100),
    ];
    let mut totals = Totals::default();
    totals.update(&readings, &flows, &contacts, &peers());
    let text = text(&readings, &totals);
    let web = |metric: &str, direction: &str, verdict: &str, label: &str| {
        let labels =
            ["workload=\"web-1\"", &format!("direction=\"{direction}\""), &format!("verdict=\"{verdict}\""), label]
                .map(ToOwned::to_owned);
        value(&text, metric, &labels.each_ref().map(String::as_str))
    };
    let packets = "bulkhead_peer_packets_total";
    assert_eq!(web(packets, "egress", "allowed", "peer=\"shop/db\",port=\"5432\",protocol=\"tcp\""), Some(7));
    assert_eq!(web("bulkhead_peer_bytes_total", "egress", "allowed", "peer=\"shop/db\""), Some(700));
    assert_eq!(web(packets, "egress", "allowed", "peer=\"other\",port=\"\""), Some(3));
    assert_eq!(web(packets, "ingress", "allowed", "peer=\"shop/db\",port=\"5432\""), Some(8));
    assert_eq!(web(packets, "ingress", "allowed", "peer=\"other\""), None, "all of it is explained");
    for (peer, expected) in
        [("shop/stripe", 5), ("world", 4), ("node", 1), ("metadata", 1), ("unknown", 1), ("other", 11)]
    {
        assert_eq!(web(packets, "egress", "blocked", &format!("peer=\"{peer}\"")), Some(expected), "{peer} in\n{text}");
    }
    assert_eq!(web("bulkhead_flooded_packets_total", "", "", ""), None, "has no direction");
    assert_eq!(value(&text, "bulkhead_flooded_packets_total", &["workload=\"web-1\""]), Some(1000));
    assert_eq!(web("bulkhead_packets_total", "egress", "blocked", "reason=\"spoofed_source\",rule=\"\""), Some(3));
    assert_eq!(web("bulkhead_flows_total", "egress", "allowed", "reason=\"rule\""), Some(1));
    assert!(!text.contains("10.0.0.2") && !text.contains("203.0.113.9"), "no address is a label:\n{text}");
}

#[test]
fn the_boundary_and_tables_have_metrics_of_their_own() {
    let at_boundary = |reason, rule: &str, packets| Reading {
        endpoint: None,
        service: String::new(),
        gone: None,
        direction: "ingress",
        reason,
        rule: rule.to_owned(),
        packets,
        bytes: 50 * packets,
        flows: 0,
    };
    let readings = [
        at_boundary(Reason::Verified, "", 9),
        at_boundary(Reason::UnknownVtep, "", 4),
        at_boundary(Reason::Unverified, "", 1),
        at_boundary(Reason::Unverified, bulkhead_dataplane::kernel::INPUT_RULE, 2),
    ];
    let contacts = Contacts { records: Vec::new(), unsent: 77 };
    let status = Status {
        epoch: 5,
        direct: true,
        input_rule: true,
        bypassed_until: Some(1_700_000_000_000_000_001),
        mark_mask: 0x3f00_0fff,
        tables: vec![TableUse { table: "LISTS", used: 3, limit: 10 }],
        ..Status::default()
    };
    let health = Health {
        revision: 4,
        refused: true,
        failed: true,
        unwritten: false,
        unguarded: 2,
        mark_conflicts: 3,
        audit_lost: 6,
        drift_found: 8,
        drift_repaired: 7,
        unenforced: 9,
        strangers: 5,
        compiles: Compiles { whole: 5, changes: 6 },
        behind: true,
    };
    let text = render(health, &readings, &Totals::default(), &contacts, &status).unwrap();
    for (metric, labels, expected) in [
        ("bulkhead_underlay_packets_total", vec!["verdict=\"allowed\"", "reason=\"verified\""], 9),
        ("bulkhead_underlay_packets_total", vec!["verdict=\"blocked\"", "reason=\"unknown_vtep\""], 4),
        ("bulkhead_underlay_packets_total", vec!["reason=\"unverified\""], 1),
        ("bulkhead_underlay_bytes_total", vec!["reason=\"unknown_vtep\""], 200),
        ("bulkhead_input_rule_dropped_packets_total", vec![], 2),
        ("bulkhead_samples_unsent_total", vec![], 77),
        ("bulkhead_table_used", vec!["table=\"LISTS\""], 3),
        ("bulkhead_table_limit", vec!["table=\"LISTS\""], 10),
        ("bulkhead_revision", vec![], 4),
        ("bulkhead_policy_error", vec![], 1),
        ("bulkhead_source_behind", vec![], 1),
        ("bulkhead_publish_error", vec![], 1),
        ("bulkhead_endpoints_unguarded", vec![], 2),
        ("bulkhead_mark_conflicts", vec![], 3),
        ("bulkhead_audit_lost_total", vec![], 6),
        ("bulkhead_drift_found_total", vec![], 8),
        ("bulkhead_drift_repaired_total", vec![], 7),
        ("bulkhead_unenforced_starts_total", vec![], 9),
        ("bulkhead_links_unknown", vec![], 5),
        ("bulkhead_compiles_total", vec!["extent=\"whole\""], 5),
        ("bulkhead_compiles_total", vec!["extent=\"changes\""], 6),
        ("bulkhead_epoch", vec![], 5),
        ("bulkhead_direct_forwarding", vec![], 1),
        ("bulkhead_input_rule", vec![], 1),
        ("bulkhead_bypass_active", vec![], 1),
        ("bulkhead_bypass_until_seconds", vec![], 1_700_000_001),
    ] {
        assert_eq!(value(&text, metric, &labels), Some(expected), "{metric} {labels:?} in\n{text}");
    }
    assert_eq!(value(&text, "bulkhead_packets_total", &[]), None, "the boundary is no workload");
    for (failed, unwritten) in [(false, false), (true, false), (false, true)] {
        let health = Health { failed, unwritten, ..Health::default() };
        let text = render(health, &readings, &Totals::default(), &contacts, &status).unwrap();
        let expected = u64::from(failed || unwritten);
        assert_eq!(value(&text, "bulkhead_publish_error", &[]), Some(expected), "{health:?}");
        assert_eq!(health.unready().is_some(), failed, "what is in force guards the node: {health:?}");
    }
}

/// Audited policies and what only observes say something of packets that are counted once, as what became of them.
#[test]
fn would_be_verdicts_count_no_packet_twice() {
    let readings = [
        reading("web-1", "egress", Reason::Rule, "shop: web calls db:5432/tcp", 10),
        reading("web-1", "egress", Reason::WouldDeny, "guard g: deny to shop/db", 6),
        reading("web-1", "egress", Reason::Isolated, "shop/web isolated egress", 4),
        reading("web-1", "egress", Reason::WouldAllow, "guard h: allow to world", 3),
        reading("db-1", "ingress", Reason::Observed, "", 5),
    ];
    let flows = [flow("web-1", "10.0.0.2", 5432, [10, 0], 100)];
    let mut would_deny = contact("web-1", "egress", "10.0.0.2", 5432, 6, 100);
    would_deny.reason = Reason::WouldDeny;
    let mut observed = contact("db-1", "ingress", "203.0.113.9", 5432, 5, 100);
    observed.observed = true;
    let mut would_pass = contact("web-1", "egress", "203.0.113.9", 443, 4, 100);
    would_pass.would_pass = true;
    let mut totals = Totals::default();
    totals.update(&readings, &flows, &[would_deny, observed, would_pass], &peers());
    let text = text(&readings, &totals);
    let sum = |metric: &str, labels: &[&str]| -> u64 {
        let of =
            |line: &&str| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|label| line.contains(label));
        text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    for metric in ["bulkhead_packets_total", "bulkhead_peer_packets_total"] {
        assert_eq!(sum(metric, &[WEB_OUT[0], "verdict=\"allowed\""]), 10, "{metric} in\n{text}");
        assert_eq!(sum(metric, &[WEB_OUT[0], "verdict=\"blocked\""]), 4, "{metric} in\n{text}");
        assert_eq!(sum(metric, &["workload=\"db-1\"", "verdict=\"allowed\""]), 5, "{metric} in\n{text}");
        assert_eq!(sum(metric, &["workload=\"db-1\"", "verdict=\"blocked\""]), 0, "{metric} in\n{text}");
    }
    assert_eq!(sum("bulkhead_peer_packets_total", &["peer=\"shop/db\""]), 10);
    let audit = "bulkhead_audit_packets_total";
    assert_eq!(sum(audit, &[WEB_OUT[0], "verdict=\"would_deny\"", "rule=\"guard g: deny to shop/db\""]), 6);
    assert_eq!(sum(audit, &[WEB_OUT[0], "verdict=\"would_allow\"", "rule=\"guard h: allow to world\""]), 3);
    assert_eq!(sum(audit, &["workload=\"db-1\"", "verdict=\"observed\""]), 5);
    assert_eq!(sum(audit, &[]), 14);
}

#[test]
fn labels_are_escaped() {
    let readings = [reading("web-1", "egress", Reason::Rule, "a \"quoted\" \\ rule\nin two lines", 1)];
    let text = text(&readings, &Totals::default());
    assert!(text.contains(r#"rule="a \"quoted\" \\ rule\nin two lines""#), "{text}");
}

#[test]
fn counters_that_begin_anew_are_followed() {
    let allowed = |packets| [reading("web-1", "egress", Reason::Rule, "r", packets)];
    let mut totals = Totals::default();
    totals.update(&allowed(100), &[flow("web-1", "10.0.0.2", 5432, [90, 0], 100)], &[], &peers());
    let readings = allowed(5);
    totals.update(&readings, &[flow("web-1", "10.0.0.2", 5432, [2, 0], 90_000_000_000)], &[], &peers());
    let text = text(&readings, &totals);
    let peer = |peer: &str| value(&text, "bulkhead_peer_packets_total", &[WEB_OUT[0], WEB_OUT[1], peer]);
    assert_eq!((peer("shop/db"), peer("other")), (Some(2), Some(3)), "{text}");
}

#[test]
fn a_scan_of_all_ports_does_not_become_as_many_series() {
    let readings = [reading("web-1", "egress", Reason::Isolated, "shop/web isolated egress", 5000)];
    let contacts: Vec<_> = (1..=5000).map(|port| contact("web-1", "egress", "203.0.113.9", port, 1, 100)).collect();
    let mut totals = Totals::default();
    totals.update(&readings, &[], &contacts, &peers());
    let text = text(&readings, &totals);
    let values: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("bulkhead_peer_packets_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(values.len() <= 257, "{}", values.len());
    assert_eq!(values.iter().sum::<u64>(), 5000);
}

/// What a node does between two readings.
#[derive(Clone, Debug)]
enum Step {
    /// Packets of a flow that is in the table.
    Flow { port: u16, packets: [u64; 2] },
    /// A flow falls out of its table.
    Evict { port: u16 },
    /// Denied packets, of which some are sampled.
    Denied { port: u16, packets: u64, sampled: u64 },
    /// Packets that are counted after the counters and before the flows were read.
    Late { port: u16, packets: u64 },
    /// Metrics are read.
    Read,
    /// The agent ends and starts again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let port = 1..5_u16;
    prop_oneof![
        3 => (port.clone(), 0..50_u64, 0..50_u64).prop_map(|(port, there, back)| Step::Flow { port, packets: [there, back] }),
        1 => port.clone().prop_map(|port| Step::Evict { port }),
        3 => (port.clone(), 0..50_u64, 0..80_u64).prop_map(|(port, packets, sampled)| Step::Denied { port, packets, sampled: sampled.min(packets) }),
        1 => (port, 1..50_u64).prop_map(|(port, packets)| Step::Late { port, packets }),
        4 => Just(Step::Read),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn sums_are_exact_and_nothing_shrinks(steps in prop::collection::vec(step(), 1..60)) {
        let peers = peers();
        let mut totals = Totals::default();
        let mut counted = [[0_u64; 2]; 2];
        let mut flows: BTreeMap<u16, FlowRecord> = BTreeMap::new();
        let mut contacts: BTreeMap<u16, ContactRecord> = BTreeMap::new();
        let mut late: Vec<(u16, u64)> = Vec::new();
        let mut before: BTreeMap<String, u64> = BTreeMap::new();
        let mut clock = 1_000_000_000_000_u64;
        for step in steps.into_iter().chain([Step::Read]) {
            clock += 10_000_000_000;
            let mut carry = |flows: &mut BTreeMap<u16, FlowRecord>, port: u16, packets: [u64; 2]| {
                let flow = flows.entry(port).or_insert_with(|| flow("web-1", "10.0.0.2", port, [0, 0], clock));
                for side in 0..2 {
                    flow.packets[side] += packets[side];
                    flow.bytes[side] += 100 * packets[side];
                    counted[0][side] += packets[side];
                }
            };
            match step {
                Step::Flow { port, packets } => carry(&mut flows, port, packets),
                Step::Evict { port } => _ = flows.remove(&port),
                Step::Late { port, packets } => late.push((port, packets)),
                Step::Denied { port, packets, sampled } => {
                    counted[1][0] += packets;
                    let contact = contacts.entry(port).or_insert_with(|| contact("web-1", "egress", "203.0.113.9", port, 0, clock));
                    contact.packets += sampled;
                    contact.bytes += 100 * sampled;
                }
                Step::Restart => {
                    let saved = serde_json::to_string(&totals.save(clock)).unwrap();
                    totals = Totals::restore(serde_json::from_str(&saved).unwrap());
                }
                Step::Read => {
                    let readings = [
                        reading("web-1", "egress", Reason::Rule, "r", counted[0][0]),
                        reading("web-1", "ingress", Reason::Reply, "r", counted[0][1]),
                        reading("web-1", "egress", Reason::Isolated, "d", counted[1][0]),
                    ];
                    for (port, packets) in late.drain(..) {
                        let flow = flows.entry(port).or_insert_with(|| flow("web-1", "10.0.0.2", port, [0, 0], clock));
                        flow.packets[0] += packets;
                        flow.bytes[0] += 100 * packets;
                        counted[0][0] += packets;
                    }
                    let flows: Vec<_> = flows.values().cloned().collect();
                    let contacts: Vec<_> = contacts.values().cloned().collect();
                    totals.update(&readings, &flows, &contacts, &peers);
                    let text = text(&readings, &totals);
                    let mut now = BTreeMap::new();
                    let mut sums: BTreeMap<(bool, bool, bool), u64> = BTreeMap::new();
                    for line in text.lines().filter(|line| line.starts_with("bulkhead_peer_")) {
                        let (series, count) = line.rsplit_once(' ').unwrap();
                        let count: u64 = count.parse().unwrap();
                        *sums.entry((series.contains("_bytes_"), series.contains("blocked"), series.contains("ingress"))).or_default() += count;
                        now.insert(series.to_owned(), count);
                    }
                    for (i, reading) in readings.iter().enumerate() {
                        let key = |bytes| (bytes, i == 2, i == 1);
                        prop_assert_eq!(sums.get(&key(false)).copied().unwrap_or_default(), reading.packets);
                        prop_assert_eq!(sums.get(&key(true)).copied().unwrap_or_default(), reading.bytes);
                    }
                    for (series, count) in before {
                        prop_assert!(now.get(&series).is_some_and(|now| *now >= count), "{} was {}", series, count);
                    }
                    before = now;
                }
            }
        }
    }
}

/// What stands in braces or behind `by` in a query, of the metric before it: names of labels.
fn labels(query: &str) -> impl Iterator<Item = &str> {
    let braces = query.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(inside, _)| inside);
    let by = query.split(" by (").skip(1).filter_map(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    braces.chain(by).flat_map(|inside| inside.split(", ")).map(|label| label.split(['=', '!', '~']).next().unwrap())
}

#[test]
fn the_dashboard_asks_for_what_is_served() {
    let board = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/bulkhead.json");
    let board: serde_json::Value = serde_json::from_slice(&std::fs::read(board).unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 10);

    let boundary = Reading { endpoint: None, ..reading("", "ingress", Reason::UnknownVtep, "", 1) };
    let readings = [
        reading("web-1", "egress", Reason::Isolated, "r", 1),
        reading("web-1", "egress", Reason::WouldDeny, "r", 1),
        boundary,
    ];
    let mut totals = Totals::default();
    totals.update(&readings, &[], &[], &peers());
    let table = TableUse { table: "FLOWS", used: 1, limit: 2 };
    let status = Status { tables: vec![table], ..Status::default() };
    let text = render(Health::default(), &readings, &totals, &Contacts::default(), &status).unwrap();
    // A series begins with what is counted first, which is no increase: what happened once would not be shown.
    assert!(!queries.iter().any(|query| query.contains("increase(bulkhead_peer_")));
    for query in queries {
        let word = |c: char| !c.is_ascii_lowercase() && c != '_';
        let metric = query.split(word).find(|word| word.starts_with("bulkhead_")).unwrap();
        let line = text.lines().find(|line| line.split(['{', ' ']).next() == Some(metric));
        let line = line.unwrap_or_else(|| panic!("{query}: no {metric} in\n{text}"));
        for label in labels(query) {
            assert!(line.contains(&format!("{label}=\"")), "{query}: {line} has no {label}");
        }
    }
}
