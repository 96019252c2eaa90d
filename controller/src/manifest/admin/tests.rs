use bulkhead_ebpf::abi::{Action, Direction};

use crate::{
    guard::{Guard, Tier, Whom},
    manifest::read::testing::{policies, table, wrong},
    policy::Policy,
};

const ADMIN: &str = "AdminNetworkPolicy";
const BASELINE: &str = "BaselineAdminNetworkPolicy";
const CLUSTER: &str = "ClusterNetworkPolicy";

/// An object of a kind with what comes first in a good `spec` of it, and more.
fn document(kind: &str, body: &str) -> String {
    let (version, name, first) = match kind {
        ADMIN => ("v1alpha1", "tenants", "priority: 7"),
        BASELINE => ("v1alpha1", "default", ""),
        _ => ("v1alpha2", "tenants", "tier: Admin\npriority: 7"),
    };
    let body = format!("{first}\nsubject: {{ namespaces: {{}} }}\n{body}");
    let body: Vec<_> = body.trim_start().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec:\n{}",
        body.concat()
    )
}

fn guard(text: &str) -> Guard {
    let (policies, found) = policies("p.yaml", text);
    assert!(found.0.is_empty(), "{found}");
    match <[Policy; 1]>::try_from(policies) {
        Ok([Policy::Guard(guard)]) => guard,
        other => panic!("{other:?}"),
    }
}

/// Rules, one a line.
fn rules(guard: &Guard) -> String {
    let text = |rule: &crate::guard::Rule| {
        let action = match rule.action {
            Action::Allow => "allow",
            Action::Pass => "pass",
            Action::Deny | Action::Reject => "deny",
        };
        let side = if rule.direction == Direction::Ingress { "from" } else { "to" };
        let Whom::Is(peer) = &rule.peer else { panic!("{rule:?}") };
        let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
        assert!(!rule.audit && rule.expires.is_none());
        format!("{} | {action} {side} {peer} : {}", rule.name, ports.join(" or "))
    };
    guard.rules.iter().map(text).collect::<Vec<_>>().join("\n")
}

fn rules_of(kind: &str, body: &str) -> String {
    rules(&guard(&document(kind, body)))
}

#[test]
fn kinds_have_their_tiers_and_priorities() {
    let admin = guard(&document(ADMIN, ""));
    assert_eq!(
        (admin.kind.name(), admin.tier, admin.priority, admin.name.as_str()),
        (ADMIN, Tier::Admin, 7, "tenants")
    );
    assert_eq!((admin.place.line, admin.priority_place.line), (3, 5));
    let baseline = guard(&document(BASELINE, ""));
    assert_eq!((baseline.kind.name(), baseline.tier, baseline.priority), (BASELINE, Tier::Baseline, u32::MAX));
    assert_eq!(baseline.priority_place, baseline.place);
    let cluster = guard(&document(CLUSTER, ""));
    assert_eq!((cluster.kind.name(), cluster.tier, cluster.priority), (CLUSTER, Tier::Admin, 7));
    let behind = document(CLUSTER, "").replace("tier: Admin", "tier: Baseline").replace(": 7", ": 1000");
    assert_eq!((guard(&behind).tier, guard(&behind).priority), (Tier::Baseline, 1000));
}

#[test]
fn subjects_are_selected_by_namespaces_or_pods() {
    for (subject, namespaces, workloads) in [
        ("namespaces: {}", "", ""),
        ("namespaces: { matchLabels: { tier: a } }", "tier=a", ""),
        (
            "pods: { namespaceSelector: { matchLabels: { tier: a } }, podSelector: { matchLabels: { app: b } } }",
            "tier=a",
            "app=b",
        ),
    ] {
        let guard = guard(&document(ADMIN, "").replace("namespaces: {}", subject));
        let subjects = &guard.subjects;
        assert_eq!(
            (subjects.namespaces.to_string().as_str(), subjects.workloads.to_string().as_str()),
            (namespaces, workloads)
        );
        assert_eq!(subjects.place.as_ref().map(|place| place.line), Some(6));
        assert!(subjects.services.is_empty() && guard.compare.is_none());
    }
    let alone = document(CLUSTER, "").replace("namespaces: {}", "pods: { podSelector: {} }");
    assert!(guard(&alone).subjects.namespaces.is_everybody(), "v1alpha2 does without namespaces");
}

#[test]
fn a_rule_with_several_peers_is_several_rules_of_one_name() {
    let body = "ingress:
  - { action: Deny, from: [{ namespaces: { matchLabels: { a: b } } }, { pods: { namespaceSelector: {}, podSelector: { matchLabels: { c: d } } } }] }
  - { name: '', action: Allow, from: [{ namespaces: {} }] }
egress:
  - name: out and about
    action: Pass
    to:
      - nodes: { matchExpressions: [{ key: e, operator: Exists }] }
      - networks: ['2001:db8::1/32', 10.0.0.0/8, 0.0.0.0/0, 10.0.0.1/8]
";
    let guard = guard(&document(ADMIN, body));
    assert_eq!(
        rules(&guard),
        "adminnetworkpolicy tenants: ingress[0] | deny from workloads [a=b]/* : any
adminnetworkpolicy tenants: ingress[0] | deny from workloads */[c=d] : any
adminnetworkpolicy tenants: ingress[1] | allow from workloads */* : any
adminnetworkpolicy tenants: egress[0] out and about | pass to nodes [e] : any
adminnetworkpolicy tenants: egress[0] out and about | pass to cidr 0.0.0.0/0,10.0.0.0/8,2001:db8::/32 : any"
    );
    assert_eq!(guard.rules.iter().map(|rule| rule.place.line).collect::<Vec<_>>(), [8, 8, 9, 11, 11]);
    assert_eq!(
        rules_of(BASELINE, "egress: [{ name: x, action: Deny, to: [{ namespaces: {} }] }]"),
        "baselineadminnetworkpolicy default: egress[0] x | deny to workloads */* : any"
    );
}

#[test]
fn ports_of_v1alpha1() {
    let ports = "[{ portNumber: { protocol: UDP, port: 53 } }, { portNumber: { port: 80 } }, { portNumber: { protocol: TCP, port: 80 } }, \
                 { portRange: { protocol: SCTP, start: 1, end: 65535 } }, { portRange: { start: 80, end: 81 } }, { namedPort: http }]";
    assert_eq!(
        rules_of(ADMIN, &format!("ingress: [{{ action: Allow, from: [{{ namespaces: {{}} }}], ports: {ports} }}]")),
        "adminnetworkpolicy tenants: ingress[0] | allow from workloads */* : 53/udp or 80/tcp or 1-65535/sctp or 80-81/tcp or http"
    );
}

#[test]
fn protocols_of_v1alpha2() {
    let protocols = "[{ tcp: { destinationPort: { number: 80 } } }, { udp: { destinationPort: { range: { start: 5, end: 6 } } } }, \
                     { sctp: { destinationPort: { number: 9 } } }, { destinationNamedPort: http }]";
    assert_eq!(
        rules_of(
            CLUSTER,
            &format!("egress: [{{ action: Accept, to: [{{ namespaces: {{}} }}], protocols: {protocols} }}]")
        ),
        "clusternetworkpolicy tenants: egress[0] | allow to workloads */* : 80/tcp or 5-6/udp or 9/sctp or http"
    );
}

/// Cases of a kind: whole objects with something replaced, then bodies.
fn cases(kind: &str, replaced: &[(&str, &str)], bodies: &[String]) -> String {
    let whole = replaced.iter().map(|(what, with)| {
        let text = document(kind, "");
        assert!(text.contains(what), "{what}");
        text.replace(what, with)
    });
    let all: Vec<_> = whole.chain(bodies.iter().map(|body| document(kind, body))).collect();
    table(&all.iter().map(String::as_str).collect::<Vec<_>>(), |case| wrong("p.yaml", case))
}

/// An ingress rule with a peer or ports.
fn rule(text: &str) -> String {
    format!("ingress: [{{ action: Deny, {text} }}]")
}

/// An egress rule to a peer, and more.
fn to(peer: &str, more: &str) -> String {
    format!("egress: [{{ action: Deny, to: [{peer}]{more} }}]")
}

/// An ingress rule about a port.
fn port(field: &str, port: &str) -> String {
    rule(&format!("from: [{{ namespaces: {{}} }}], {field}: [{port}]"))
}

/// So many of a kind, as items of a list.
fn many(count: usize, item: &str) -> String {
    vec![item; count].join(", ")
}

#[test]
fn what_is_wrong_with_an_admin_network_policy() {
    let subject = "namespaces: {}";
    let replaced = [
        ("v1alpha1", "v1alpha2"),
        ("metadata: { name: tenants }", "metadata: {}"),
        ("spec:", "specs:"),
        ("priority: 7", "priority: 1001"),
        ("priority: 7", "priority: -1"),
        ("priority: 7", "priority: '7'"),
        ("priority: 7", "tier: Admin"),
        ("subject: { namespaces: {} }", "subject:"),
        (subject, ""),
        (subject, "namespaces: {}, pods: { namespaceSelector: {}, podSelector: {} }"),
        (subject, "nodes: {}"),
        (subject, "namespaces: { tenant: a }"),
        (subject, "namespaces: { namespaceSelector: {} }"),
        (subject, "pods: {}"),
        (subject, "pods: { podSelector: {} }"),
        (subject, "pods: { namespaceSelector: {} }"),
    ];
    let bodies = [
        "ingress: {}".to_owned(),
        "ingress: [{}]".to_owned(),
        rule("from: []"),
        rule("from:"),
        rule("to: [{ namespaces: {} }]"),
        "ingress: [{ action: Accept, from: [{ namespaces: {} }] }, { action: deny, from: [{ namespaces: {} }] }]"
            .to_owned(),
        rule("from: [{}, { namespaces: {}, pods: { namespaceSelector: {}, podSelector: {} } }]"),
        rule("from: [{ networks: [10.0.0.0/8] }, { nodes: {} }, { node: {} }]"),
        to("{ networks: [] }", ""),
        to("{ networks: [10.0.0.1, 10.0.0.0/33, '::ffff:a00:0/104'] }", ""),
        to("{ domainNames: [example.com] }", ""),
        to("{ nodes: {} }", ", ports: [{ namedPort: http }]"),
        to(
            "{ networks: [10.0.0.0/8] }, { namespaces: {} }",
            ", ports: [{ portNumber: { port: 1 } }, { namedPort: http }]",
        ),
        rule("from: [{ namespaces: {} }], ports: []"),
        port("ports", "{}"),
        port("ports", "{ portNumber: { port: 80 }, namedPort: http }"),
        port("ports", "{ port: 80 }"),
        port("ports", "{ portNumber: { protocol: tcp, port: 80 } }, { portNumber: { port: 0 } }, { portNumber: {} }"),
        port(
            "ports",
            "{ portRange: { start: 2, end: 1 } }, { portRange: { start: 1, end: 1 } }, { portRange: { start: 1, last: 2 } }",
        ),
        port("ports", "{ namedPort: '80' }, { namedPort: a_b }"),
        port("protocols", "{ tcp: { destinationPort: { number: 80 } } }"),
        rule(&format!("name: {}, from: [{{ namespaces: {{}} }}]", "é".repeat(101))),
        rule("name: \"two\\nlines\", from: [{ namespaces: {} }]"),
    ];
    insta::assert_snapshot!(cases(ADMIN, &replaced, &bodies));
}

#[test]
fn what_is_wrong_with_a_baseline_admin_network_policy() {
    let replaced = [("default", "other"), ("  subject", "  priority: 7\n  subject"), ("v1alpha1", "v1")];
    let bodies = [
        "ingress: [{ action: Pass, from: [{ namespaces: {} }] }]".to_owned(),
        to("{ domainNames: [example.com] }", ""),
    ];
    let text = document(BASELINE, "");
    let twice = wrong("p.yaml", &format!("{text}---\n{text}"));
    insta::assert_snapshot!(format!("{}\n=====\ntwice\n---\n{twice}", cases(BASELINE, &replaced, &bodies)));
}

#[test]
fn what_is_wrong_with_a_cluster_network_policy() {
    let replaced = [
        ("v1alpha2", "v1alpha1"),
        ("tier: Admin", "tier: NetworkPolicy"),
        ("tier: Admin", ""),
        ("priority: 7", "priority: 1001"),
        ("namespaces: {}", "pods: { namespaceSelector: {} }"),
        ("namespaces: {}", "pods: {}"),
    ];
    let bodies = [
        "ingress: [{ action: Allow, from: [{ namespaces: {} }] }]".to_owned(),
        to("{ domainNames: [example.com] }", ""),
        to("{ nodes: {} }", ", protocols: [{ destinationNamedPort: http }]"),
        rule("from: [{ namespaces: {} }], protocols: []"),
        port("ports", "{ portNumber: { port: 80 } }"),
        port("protocols", "{}, { icmp: {} }, { tcp: {}, udp: {} }"),
        port("protocols", "{ tcp: {} }"),
        port("protocols", "{ tcp: { port: 80 } }"),
        port("protocols", "{ tcp: { destinationPort: 80 } }, { tcp: { destinationPort: {} } }"),
        port(
            "protocols",
            "{ tcp: { destinationPort: { number: 0 } } }, { udp: { destinationPort: { range: { start: 9, end: 8 } } } }",
        ),
        port("protocols", "{ tcp: { destinationPort: { number: 1, range: { start: 8, end: 9 } } } }"),
        port("protocols", "{ destinationNamedPort: HTTP }"),
    ];
    insta::assert_snapshot!(cases(CLUSTER, &replaced, &bodies));
}

#[test]
fn lists_are_not_longer_than_kubernetes_takes() {
    let item = "{ action: Deny, from: [{ namespaces: {} }] }";
    for (kind, most, ports, one) in [
        (ADMIN, 100, "ports", "{ namedPort: a }"),
        (BASELINE, 100, "ports", "{ namedPort: a }"),
        (CLUSTER, 25, "protocols", "{ destinationNamedPort: a }"),
    ] {
        let bodies = |count| {
            [
                ("ingress", format!("ingress: [{}]", many(count, item))),
                ("from", rule(&format!("from: [{}]", many(count, "{ namespaces: {} }")))),
                (ports, port(ports, &many(count, one))),
            ]
        };
        for (_, body) in bodies(most) {
            guard(&document(kind, &body));
        }
        for (list, body) in bodies(most + 1) {
            let said = wrong("p.yaml", &document(kind, &body));
            assert!(said.contains(&format!("`{list}` has {} items, more than {most}\n", most + 1)), "{said}");
        }
    }
    let networks = |count| to(&format!("{{ networks: [{}] }}", many(count, "10.0.0.0/8")), "");
    guard(&document(ADMIN, &networks(25)));
    let said = wrong("p.yaml", &document(ADMIN, &networks(26)));
    assert!(said.contains("`networks` has 26 items, more than 25\n"), "{said}");
}
