//! What the command line says.

use std::collections::BTreeMap;

use bulkhead_controller::{
    adopt::{Found, Stranger},
    api::types::{NodeBody, StatusBody},
    audit::Losses,
    control::Report,
    drift::Drift,
    input::Inputs,
    model::Model,
    show::{self, Names, Streams},
    store::{Author, Condition, Head, Origin, Revision, Summary},
};
use bulkhead_dataplane::node::{EndpointStatus, LinkStatus, MarkConflicts, MarkUser, Status, TableUse};
use bulkhead_ebpf::{abi::Mode, reason::Reason};

use crate::support::{INTENT, WORKLOADS, contact, endpoint, flow, reading};

fn revision() -> (Revision, Model) {
    let inputs = Inputs {
        policies: [("shop.yaml".to_owned(), INTENT.to_owned())].into(),
        workloads: ("w.yaml".to_owned(), WORKLOADS.to_owned()),
        ..Inputs::default()
    };
    let model = inputs.model().unwrap();
    let head = Head {
        number: 7,
        node: "n1".to_owned(),
        parent: None,
        author: Author::files(),
        origin: Origin::Files,
        time: 1_700_000_000,
        reason: String::new(),
        summary: Summary::default(),
        condition: Condition::InForce,
        took_effect: true,
    };
    (Revision { head, inputs, documents: BTreeMap::new() }, model)
}

fn agent() -> StatusBody {
    let latest = Some((1_700_000_000_000_000_000, "input rule, ingress underlay on eth0".to_owned()));
    let mut drift = Drift::default();
    (drift.found, drift.repaired, drift.latest) = (2, 1, latest);
    let stranger = Stranger {
        link: "veth-9".to_owned(),
        bridge: Some("br0".to_owned()),
        addresses: vec!["10.0.0.9".parse().unwrap()],
        shut: true,
        why: "no workload of the file has its addresses".to_owned(),
    };
    let open = Stranger { link: "veth-8".to_owned(), shut: false, ..stranger.clone() };
    let found = Found { adopted: 4, unenforced: 1, strangers: vec![stranger, open] };
    let report = Report {
        head: revision().0.head,
        started: 1_700_000_000_000_000_000,
        status: status(),
        marks: MarkConflicts::default(),
        unguarded: Vec::new(),
        refused: String::new(),
        failed: String::new(),
        unstored: String::new(),
        behind: String::new(),
        pending: None,
        held: Vec::new(),
        lost: 0,
        bypass: None,
        drift,
        found,
        audit: Losses { total: 3, unsaid: 1, why: "audit.jsonl: cannot write: no space".to_owned() },
    };
    StatusBody { version: "1.2.3".to_owned(), ..report.into() }
}

fn conflicts() -> MarkConflicts {
    let rule = "iptables-nft -t mangle -A X -j MARK --set-xmark 0x20000/0xf0000".to_owned();
    MarkConflicts {
        users: vec![MarkUser { rule, reads: 0, writes: 0x0f00_0000 }],
        unread: vec!["list the rules of policy routing: no".to_owned()],
        remedy: "`--mark-mask 0x00000fff` keeps out of the way".to_owned(),
    }
}

fn status() -> Status {
    let endpoint = |workload: &str, slot, attached| EndpointStatus {
        name: endpoint(workload),
        slot,
        link: format!("veth-{workload}"),
        mode: Mode::Enforce,
        epoch: 3,
        attached,
    };
    Status {
        observe: false,
        bypassed_until: None,
        epoch: 3,
        endpoints: vec![endpoint("web-1", 1, true), endpoint("db-1", 2, false)],
        missing: Vec::new(),
        links: vec![LinkStatus { link: "veth-web-1".to_owned(), guard: "tcx ingress".to_owned() }],
        tables: vec![TableUse { table: "LISTS", used: 3, limit: 16384 }],
        direct: true,
        input_rule: true,
        mark_mask: 0x3f00_0fff,
    }
}

#[test]
fn tables_for_people() {
    let (revision, model) = revision();
    let readings = [
        reading("web-1", "egress", Reason::Rule, "shop: web calls db:5432/tcp", 10),
        reading("web-1", "ingress", Reason::Reply, "shop: web calls db:5432/tcp", 8),
        reading("web-1", "egress", Reason::Isolated, "shop/web isolated egress", 20),
        reading("db-1", "ingress", Reason::Rule, "shop: old calls db:1/tcp", 2),
    ];
    let flows = [flow("web-1", "10.0.0.2", 5432, [7, 8], 1_700_000_000_000_000_000)];
    let text = [
        show::agent(&agent()),
        show::status(Ok(Some(&(&revision.head).into())), &NodeBody::new(&status(), &conflicts(), None)),
        show::status(Ok(None), &NodeBody::new(&Status::default(), &MarkConflicts::default(), None)),
        show::status(Err("the disk is gone"), &NodeBody::new(&Status::default(), &MarkConflicts::default(), None)),
        show::workloads_table(&show::workloads(&model, "n1", &status())),
        show::policies_table(&show::policies(&revision, &model).unwrap()),
        show::rules_table(&show::rules(&model, &readings)),
        show::flows_table(&show::flows(&Names::new(&model, "n1"), &flows)),
    ]
    .join("\n");
    insta::assert_snapshot!(text);
}

#[test]
fn guards_are_shown_by_their_rules() {
    let guard =
        "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nrules:\n  - deny: { to: [metadata, world:25] }\n";
    let inputs = Inputs {
        policies: [("shop.yaml", INTENT), ("guard.yaml", guard)]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into(),
        workloads: ("w.yaml".to_owned(), WORKLOADS.to_owned()),
        ..Inputs::default()
    };
    let model = inputs.model().unwrap();
    let rule = "guard g: deny to world:25/tcp";
    let table = show::rules_table(&show::rules(&model, &[reading("web-1", "egress", Reason::DeniedByRule, rule, 7)]));
    let lines: Vec<_> = table.lines().filter(|line| line.starts_with("guard")).collect();
    assert_eq!(lines.len(), 2, "{table}");
    let cells: Vec<_> = lines[1].split_whitespace().rev().take(5).collect();
    assert_eq!(cells, ["0", "0", "7", "0", "guard.yaml:6"]);

    let mut denied = contact("web-1", "egress", "203.0.113.9", 25, 3, 1_700_000_000_000_000_000);
    (denied.reason, denied.rule) = (Reason::DeniedByRule, rule.into());
    assert_eq!(
        Names::new(&model, "n1").contact(&denied).text,
        "BLOCKED web -> world (203.0.113.9) 25/tcp  at web's egress: denied by guard g: deny to world:25/tcp (guard.yaml:6)"
    );
}

#[test]
fn observations() {
    let (_, model) = revision();
    let names = Names::new(&model, "n1");
    let mut forged = contact("web-1", "ingress", "192.0.2.66", 0, 1, 1_700_000_000_000_000_000);
    (forged.endpoint, forged.reason, forged.protocol, forged.inner) =
        (None, Reason::WrongVtep, 17, Some((7, "10.244.1.9".parse().unwrap())));
    let mut spoofed = contact("web-1", "egress", "10.0.0.2", 5432, 1, 1_700_000_000_000_000_000);
    (spoofed.reason, spoofed.rule) = (Reason::SpoofedSource, "".into());
    let mut ping = contact("db-1", "ingress", "10.0.0.1", 8 << 8, 1, 1_700_000_000_000_000_000);
    ping.protocol = 1;
    // Denied under a revision that is gone.
    let outdated = contact("web-1", "egress", "10.0.0.2", 5432, 1, 1_700_000_000_000_000_000);
    let contacts = [
        contact("db-1", "ingress", "203.0.113.9", 5432, 3, 1_700_000_000_000_000_000),
        contact("web-1", "egress", "198.51.100.9", 443, 2, 5),
        ping,
        outdated,
        spoofed,
        forged,
    ];
    let mut stale = flow("web-1", "10.0.0.2", 5432, [7, 8], 5);
    stale.current = false;
    let mut lines: Vec<String> = contacts.iter().map(|contact| names.contact(contact).text).collect();
    lines.extend([flow("web-1", "10.0.0.2", 5432, [7, 8], 5), stale].iter().map(|flow| names.flow(flow).text));
    lines.push(serde_json::to_string(&names.contact(&contacts[0])).unwrap());
    let lines = lines.join("\n");
    insta::assert_snapshot!(lines);
}

/// A stream that begins anew tells what the one before told, and more.
#[test]
fn what_a_stream_told_is_no_news_of_the_next() {
    let (_, model) = revision();
    let names = Names::new(&model, "n1");
    let at = 1_700_000_000_000_000_000;
    let flow = names.flow(&flow("web-1", "10.0.0.2", 5432, [7, 8], at));
    let denied = |packets| names.contact(&contact("web-1", "egress", "203.0.113.9", 443, packets, at));
    let mut streams = Streams::default();
    for stream in 0..3 {
        assert_eq!(streams.is_new(&flow), stream == 0, "a flow is told once");
        assert_eq!(streams.is_new(&denied(2)), stream == 0);
        // Each stream knows what it told itself.
        assert!(streams.is_new(&flow));
        assert!(streams.is_new(&denied(2)));
        streams.begin();
    }
    assert!(streams.is_new(&denied(3)), "denied again");
    // What was gone when the last stream began is new when it comes back.
    streams.begin();
    assert!(streams.is_new(&flow));
}

const AUDITED: &str = "\
apiVersion: bulkhead/v1
kind: Guard
name: g
priority: 1
rules:
  - deny: { to: [world:25], mode: audit }
---
apiVersion: bulkhead/v1
kind: Guard
name: loose
priority: 2
rules:
  - allow: { to: [world:26], mode: audit }
";

/// What passed although something is against it is not called blocked, and an audited rule's counts are not those of packets.
#[test]
fn what_passes_all_the_same_is_not_called_blocked() {
    let inputs = Inputs {
        policies: [("shop.yaml", INTENT), ("guard.yaml", AUDITED)]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into(),
        workloads: ("w.yaml".to_owned(), WORKLOADS.to_owned()),
        ..Inputs::default()
    };
    let model = inputs.model().unwrap();
    let names = Names::new(&model, "n1");
    let rule = "guard g: deny to world:25/tcp";
    let at = 1_700_000_000_000_000_000;

    let mut observed = contact("web-1", "egress", "203.0.113.9", 443, 2, at);
    observed.observed = true;
    let observed = names.contact(&observed);
    assert_eq!(observed.verdict, "observed");
    assert!(
        observed.text.starts_with("OBSERVED web -> world (203.0.113.9) 443/tcp  at web's egress: "),
        "{}",
        observed.text
    );

    // The caller has no wall of its own, so that the audited rule alone is against it.
    let mut would = contact("lone", "egress", "203.0.113.9", 25, 2, at);
    (would.reason, would.rule) = (Reason::WouldDeny, rule.into());
    let told = names.contact(&would);
    assert_eq!(told.verdict, "would_deny");
    assert!(
        told.text.starts_with("WOULD DENY shop/lone -> 203.0.113.9 25/tcp  at shop/lone's egress: by guard g"),
        "{}",
        told.text
    );
    would.observed = true;
    assert_ne!(names.contact(&would).key, told.key, "each is shown by itself");

    let mut forged = contact("web-1", "ingress", "192.0.2.66", 0, 1, at);
    (forged.endpoint, forged.reason, forged.observed) = (None, Reason::UnknownVtep, true);
    assert!(names.contact(&forged).text.starts_with("OBSERVED tunnel packet from 192.0.2.66"));

    let readings = [
        reading("web-1", "egress", Reason::WouldDeny, rule, 7),
        reading("web-1", "egress", Reason::WouldAllow, "guard loose: allow to world:26/tcp", 5),
        reading("web-1", "egress", Reason::Rule, "shop: web calls db:5432/tcp", 7),
    ];
    let table = show::rules_table(&show::rules(&model, &readings));
    let counts = |rule: &str| {
        let line = table.lines().find(|line| line.starts_with(rule)).unwrap_or_else(|| panic!("{rule} in\n{table}"));
        let mut cells: Vec<_> = line.split_whitespace().rev().take(4).collect();
        cells.reverse();
        cells.join(" ")
    };
    assert_eq!(counts(rule), "0 0 0 7");
    assert_eq!(counts("guard loose"), "0 0 5 0");
    assert_eq!(counts("shop: web calls db"), "7 0 0 0");
}
