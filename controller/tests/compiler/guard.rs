//! What Guards and audited policies mean, entry by entry and in words.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_controller::{
    compile::compile,
    diagnostic::source,
    explain::{Explainer, Party, Question, Verdict, explain, parse_point},
    model::Model,
    policy,
    workloads::{self, WorkloadName, Workloads},
};
use bulkhead_dataplane::{
    desired::{Desired, Entry, Peers, SelectorId},
    node::Discovered,
};
use bulkhead_ebpf::{
    abi::{Action, Class, Direction, VIEW_CHAIN},
    reason::Reason,
};

use proptest::{prelude::*, sample::select};

use crate::support::{NOW, desired, model};

const WORKLOADS: &str = "apiVersion: bulkhead/v1
kind: Workloads
namespaces:
  - { name: shop, labels: { tenant: a } }
  - { name: desk, labels: { tenant: a } }
  - { name: mill, labels: { tenant: b } }
nodes:
  - { name: n1, addresses: [192.0.2.1], segments: [{ vni: 1, vtep: 192.0.2.1, prefixes: [10.0.0.0/24] }] }
  - { name: n2, addresses: [192.0.2.2] }
workloads:
  - { name: web, namespace: shop, labels: { app: web }, node: n1, ports: { http: 80, admin: 9000 }, endpoints: [{ segment: 1, addresses: [10.0.0.1], link: v1 }] }
  - { name: db, namespace: shop, labels: { app: db, tier: data }, node: n1, ports: { http: 82 }, endpoints: [{ segment: 1, addresses: [10.0.0.2], link: v2 }] }
  - { name: till, namespace: desk, labels: { app: till }, node: n1, ports: { http: 81 }, endpoints: [{ segment: 1, addresses: [10.0.0.3], link: v3 }] }
  - { name: saw, namespace: mill, labels: { app: saw, tier: data }, node: n1, endpoints: [{ segment: 1, addresses: [10.0.0.4], link: v4 }] }
  - { name: probe, namespace: ops, labels: { app: probe }, node: n1, ports: { http: 83 }, endpoints: [{ segment: 1, addresses: [10.0.0.5], link: v5 }] }
";

const HOUR: u64 = 3_600_000_000_000;

fn guard(name: &str, priority: u32, rest: &str) -> String {
    format!("---\napiVersion: bulkhead/v1\nkind: Guard\nname: {name}\npriority: {priority}\n{rest}")
}

fn intent(rest: &str) -> String {
    format!("---\napiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n{rest}")
}

/// A packet that begins something, as a wall sees it.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    workload: &'a str,
    direction: Direction,
    peer: IpAddr,
    class: Class,
    value: u16,
    now: u64,
}

/// Action, reason and rule; by enforced entries, or by all of them.
fn walk(desired: &Desired, asked: Asked<'_>, audit: bool) -> (Action, Reason, String) {
    let endpoint = desired.endpoints.iter().find(|endpoint| endpoint.name.workload == asked.workload).unwrap();
    let view = endpoint.views.iter().find(|view| view.until.is_none_or(|until| asked.now < until)).unwrap();
    let set = if asked.direction == Direction::Ingress { view.ingress } else { view.egress };
    let set = &desired.sets[set.0 as usize];
    let intervals = &set.classes[asked.class as usize];
    let interval = intervals.iter().rev().find(|interval| interval.start <= asked.value).unwrap();
    let known = desired.addresses.get(&(endpoint.segment, asked.peer)).map(|known| &known.selectors);
    let prefixes =
        desired.prefixes.iter().filter(|((of, prefix), _)| *of == endpoint.segment && prefix.contains(asked.peer));
    let longest = prefixes.max_by_key(|((_, prefix), _)| prefix.prefix()).map(|(_, known)| &known.selectors);
    let row: &BTreeSet<SelectorId> = known.or(longest).unwrap();
    let mut tier = 0;
    for Entry { tier: of, action, audit: audited, reason, peers } in &interval.entries {
        let hit = match peers {
            Peers::Any(rule) => Some(rule),
            Peers::Selectors(some) => some.iter().find(|(selector, _)| row.contains(selector)).map(|(_, rule)| rule),
        };
        let Some(rule) = hit.filter(|_| *of >= tier && (audit || !audited)) else { continue };
        if *action != Action::Pass {
            assert!(*action == Action::Allow || set.isolated || audit, "{set:?} may deny");
            return (*action, *reason, desired.rules[rule.0 as usize].name.clone());
        }
        tier = of + 1;
    }
    panic!("the last entry of {interval:?} matches everyone");
}

/// Whether the peer's call to a port of the workload is let in, and by what.
fn enters(desired: &Desired, workload: &str, peer: &str, port: u16) -> (Action, Reason, String) {
    let peer = peer.parse().unwrap();
    walk(
        desired,
        Asked { workload, direction: Direction::Ingress, peer, class: Class::Tcp, value: port, now: NOW },
        false,
    )
}

fn leaves(desired: &Desired, workload: &str, peer: &str, port: u16) -> (Action, Reason, String) {
    let peer = peer.parse().unwrap();
    walk(
        desired,
        Asked { workload, direction: Direction::Egress, peer, class: Class::Tcp, value: port, now: NOW },
        false,
    )
}

fn would_enter(desired: &Desired, workload: &str, peer: &str, port: u16) -> (Action, Reason, String) {
    let peer = peer.parse().unwrap();
    walk(
        desired,
        Asked { workload, direction: Direction::Ingress, peer, class: Class::Tcp, value: port, now: NOW },
        true,
    )
}

fn by(action: Action, reason: Reason, rule: &str) -> (Action, Reason, String) {
    (action, reason, rule.to_owned())
}

fn allowed(rule: &str) -> (Action, Reason, String) {
    by(Action::Allow, Reason::Rule, rule)
}

fn denied(rule: &str) -> (Action, Reason, String) {
    by(Action::Deny, Reason::DeniedByRule, rule)
}

fn open() -> (Action, Reason, String) {
    by(Action::Allow, Reason::NotIsolated, "not isolated")
}

#[test]
fn the_first_rule_decides_and_comes_before_intents() {
    let policy = guard(
        "g",
        1,
        "rules:\n  - allow: { from: ops/probe, ports: [9100] }\n  - deny: { from: [ops/probe, world], ports: [9100, 9200] }\n",
    ) + &intent("services:\n  web: { accepts: [world:9200, world:443, ops/probe:9300] }\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let probe = "10.0.0.5";
    assert_eq!(enters(&desired, "web", probe, 9100), allowed("guard g: allow from ops/probe:9100/tcp"));
    assert_eq!(enters(&desired, "web", probe, 9200), denied("guard g: deny from ops/probe:9100/tcp,9200/tcp"));
    assert_eq!(enters(&desired, "web", "203.0.113.9", 9200), denied("guard g: deny from world:9100/tcp,9200/tcp"));
    assert_eq!(enters(&desired, "web", "203.0.113.9", 443), allowed("shop: web accepts world:443/tcp"));
    assert_eq!(enters(&desired, "web", probe, 9300), allowed("shop: web accepts ops/probe:9300/tcp"));
    assert_eq!(enters(&desired, "db", probe, 9300), open(), "a Guard isolates nobody");
    assert_eq!(leaves(&desired, "db", "203.0.113.9", 9100), open(), "the other direction");
}

/// As in Kubernetes, whether somebody lists the namespace or not.
#[test]
fn every_namespace_has_its_name_as_a_label() {
    for (namespace, expected) in [("ops", [true, false]), ("mill", [false, true])] {
        let from = format!("{{ namespaces: {{ matchLabels: {{ kubernetes.io/metadata.name: {namespace} }} }} }}");
        let policy = format!(
            "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{ name: a }}\n\
             spec: {{ subject: {{ namespaces: {{}} }}, priority: 7, ingress: [{{ action: Deny, from: [{from}] }}] }}\n"
        );
        let policies = policy::parse(&source("policy.yaml", policy)).unwrap();
        let listed = workloads::parse(&source("workloads.yaml", WORKLOADS)).unwrap();
        let told = Workloads { namespaces: [].into(), ..listed.clone() };
        for workloads in [listed, told] {
            let model = Model::build(&policies, &workloads).unwrap();
            let desired = compile(&model, "n1", &Discovered::default(), NOW).unwrap();
            let denied = ["10.0.0.5", "10.0.0.4"].map(|from| enters(&desired, "web", from, 80).0 == Action::Deny);
            assert_eq!(denied, expected, "from {namespace}, listed: {:?}", workloads.namespaces.keys());
        }
    }
}

/// Of what Kubernetes leaves open, every node makes the same: it must not depend on which it heard of first.
#[test]
fn of_one_priority_a_name_comes_first() {
    let admin = |kind: &str, name: &str, action: &str| {
        let rule = format!("{{ action: {action}, from: [{{ namespaces: {{}} }}] }}");
        let spec = format!("{{ subject: {{ namespaces: {{}} }}, priority: 7, ingress: [{rule}] }}");
        let head = "apiVersion: policy.networking.k8s.io/v1alpha1";
        format!("---\n{head}\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
    };
    let [a, b] = [("a", "Deny"), ("b", "Allow")].map(|(name, action)| admin("AdminNetworkPolicy", name, action));
    for policy in [format!("{a}{b}"), format!("{b}{a}")] {
        let model = model(("policy.yaml", &policy), ("workloads.yaml", WORKLOADS)).unwrap();
        let warnings = model.warnings.to_string();
        assert!(warnings.contains("AdminNetworkPolicies `a` and `b` have priority 7"), "{warnings}");
        let desired = desired(&policy, WORKLOADS, "n1").unwrap();
        let (action, _, rule) = enters(&desired, "web", "10.0.0.2", 7);
        assert_eq!((action, rule.contains(" a")), (Action::Deny, true), "{rule}");
    }

    let own = |name: &str| guard(name, 7, "rules:\n  - deny: { from: ops/probe }\n");
    let read = |text: &str| policy::parse(&source("policy.yaml", text)).unwrap();
    let mut listed = workloads::parse(&source("workloads.yaml", WORKLOADS)).unwrap();
    let beside = Model::build(&[read(&a), read(&own("g"))].concat(), &listed).unwrap();
    assert_eq!(beside.guards.iter().map(|guard| guard.name.as_str()).collect::<Vec<_>>(), ["g", "a"]);
    assert!(beside.warnings.to_string().contains("Guard `g` and AdminNetworkPolicy `a` have priority 7"));
    let both = format!("{}{}", own("h"), own("g"));
    let refused = model(("policy.yaml", &both), ("workloads.yaml", WORKLOADS)).unwrap_err().to_string();
    assert!(refused.contains("Guards `g` and `h` have priority 7"), "{refused}");
    listed.live = true;
    let taken = Model::build(&read(&both), &listed).unwrap();
    assert_eq!(taken.guards.iter().map(|guard| guard.name.as_str()).collect::<Vec<_>>(), ["g", "h"]);
    assert!(taken.warnings.to_string().contains("Guards `g` and `h` have priority 7"));
}

/// The last namespace that had a label may lose it: then everybody is other, as it is written.
#[test]
fn a_label_that_goes_takes_no_guard_with_it() {
    let policy = guard("tenants", 1, "compare: tnt\nrules:\n  - deny: { from: other }\n");
    let policies = policy::parse(&source("policy.yaml", policy)).unwrap();
    let mut listed = workloads::parse(&source("workloads.yaml", WORKLOADS)).unwrap();
    let refused = Model::build(&policies, &listed).unwrap_err().to_string();
    let said = "no namespace has the label `tnt`: everybody would be other";
    assert!(refused.contains(said), "{refused}");
    listed.live = true;
    let model = Model::build(&policies, &listed).unwrap();
    assert!(model.warnings.to_string().contains(said), "{}", model.warnings);
    let desired = compile(&model, "n1", &Discovered::default(), NOW).unwrap();
    assert_eq!(enters(&desired, "web", "10.0.0.3", 7).0, Action::Deny);
}

#[test]
fn pass_leaves_the_guard_and_no_other() {
    let policy = guard("low", 20, "rules:\n  - deny: { from: [node, nodes, other] }\ncompare: tenant\n")
        + &guard(
            "high",
            10,
            "rules:\n  - pass: { from: ops/probe }\n  - deny: { from: any, ports: [7] }\n  - pass: { from: any }\n  - deny: { from: any }\n",
        );
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    assert_eq!(
        enters(&desired, "web", "10.0.0.5", 7),
        denied("guard low: deny from other"),
        "by priority, not as written"
    );
    assert_eq!(enters(&desired, "web", "10.0.0.2", 7), denied("guard high: deny from any:7/tcp"));
    assert_eq!(enters(&desired, "web", "10.0.0.2", 8), open());
    assert_eq!(enters(&desired, "web", "192.0.2.1", 8), denied("guard low: deny from node"));
}

#[test]
fn same_and_other() {
    let policy =
        guard("g", 1, "compare: tenant\nrules:\n  - allow: { from: same, ports: [1] }\n  - deny: { from: other }\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let same = allowed("guard g: allow from same:1/tcp");
    let other = denied("guard g: deny from other");
    for (peer, verdict) in [
        ("10.0.0.2", &same),
        ("10.0.0.3", &same),
        ("10.0.0.4", &other),
        ("10.0.0.5", &other),
        // Of the overlay and of nobody; nodes; everywhere else.
        ("10.0.0.99", &other),
        ("192.0.2.1", &other),
        ("192.0.2.2", &other),
        ("203.0.113.9", &other),
        ("169.254.169.254", &other),
        ("127.0.0.1", &other),
    ] {
        assert_eq!(enters(&desired, "web", peer, 1), *verdict, "{peer}");
    }
    assert_eq!(enters(&desired, "web", "10.0.0.3", 2), open());
    assert_eq!(enters(&desired, "saw", "10.0.0.1", 1), other);
    for peer in ["10.0.0.1", "10.0.0.4", "10.0.0.5", "203.0.113.9"] {
        assert_eq!(enters(&desired, "probe", peer, 1), other, "what lacks the label has only others: {peer}");
    }
    let masqueraded = &desired.prefixes[&(1, "192.0.2.1/32".parse().unwrap())].selectors;
    let names: Vec<_> = masqueraded.iter().map(|id| desired.selectors[id.0 as usize].as_str()).collect();
    assert_eq!(names, ["other than namespaces tenant=a", "other than namespaces tenant=b"]);
}

#[test]
fn whom_a_guard_concerns() {
    let rules = "rules:\n  - deny: { from: ops/probe }\n";
    let concerned = |subjects: &str| {
        let desired = desired(&guard("g", 1, &format!("for: {{ {subjects} }}\n{rules}")), WORKLOADS, "n1").unwrap();
        let workloads = ["web", "db", "till", "saw", "probe"].into_iter();
        workloads.filter(|workload| enters(&desired, workload, "10.0.0.5", 1) != open()).collect::<Vec<_>>()
    };
    assert_eq!(concerned("namespaces: { tenant: any }"), ["web", "db", "till", "saw"]);
    assert_eq!(concerned("namespaces: { tenant: b }"), ["saw"]);
    assert_eq!(concerned("services: [shop/web, desk/till]"), ["web", "till"]);
    assert_eq!(concerned("workloads: { tier: data }"), ["db", "saw"]);
    assert_eq!(concerned("namespaces: { tenant: a }, workloads: { tier: any }"), ["db"]);
    assert_eq!(concerned("namespaces: { tenant: c }"), [""; 0]);
}

#[test]
fn ports_by_name_are_those_of_whoever_listens() {
    let policy = guard(
        "g",
        1,
        "compare: tenant\nrules:\n  - deny: { from: any, ports: [http] }\n  - deny: { to: [same, any], ports: [http] }\n",
    );
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    assert_eq!(enters(&desired, "web", "10.0.0.5", 80), denied("guard g: deny from any:http"));
    assert_eq!(enters(&desired, "till", "10.0.0.5", 80), open());
    assert_eq!(enters(&desired, "till", "203.0.113.9", 81), denied("guard g: deny from any:http"));
    assert_eq!(leaves(&desired, "db", "10.0.0.1", 80), denied("guard g: deny to same:http"));
    assert_eq!(leaves(&desired, "db", "10.0.0.3", 80), open());
    assert_eq!(leaves(&desired, "saw", "10.0.0.3", 81), denied("guard g: deny to any:http"));
    assert_eq!(leaves(&desired, "saw", "203.0.113.9", 81), open(), "only workloads name their ports");
    assert_eq!(leaves(&desired, "saw", "192.0.2.1", 81), open());
}

#[test]
fn an_audited_guard_is_judged_beside_what_is_enforced() {
    let policy =
        guard("g", 1, "rules:\n  - deny: { from: world, mode: audit }\n  - allow: { from: any, ports: [1] }\n")
            + &guard("h", 2, "mode: audit\nrules:\n  - allow: { from: any, ports: [2] }\n  - deny: { from: any }\n")
            + &intent("services:\n  web: {}\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let world = "203.0.113.9";
    assert_eq!(enters(&desired, "web", world, 1), allowed("guard g: allow from any:1/tcp"));
    assert_eq!(would_enter(&desired, "web", world, 1), denied("guard g: deny from world"));
    assert_eq!(enters(&desired, "web", "10.0.0.2", 2), by(Action::Deny, Reason::Isolated, "shop/web isolated ingress"));
    assert_eq!(would_enter(&desired, "web", "10.0.0.2", 2), allowed("guard h: allow from any:2/tcp"));
    assert_eq!(enters(&desired, "db", "10.0.0.5", 3), open());
    assert_eq!(would_enter(&desired, "db", "10.0.0.5", 3), denied("guard h: deny from any"));
}

#[test]
fn an_audited_document_neither_isolates_nor_allows() {
    let policy = intent("services:\n  web: {}\n") + &intent("mode: audit\nservices:\n  db: { calls: [web:80] }\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let isolated = |of: &str| by(Action::Deny, Reason::Isolated, of);
    assert_eq!(enters(&desired, "web", "10.0.0.2", 80), isolated("shop/web isolated ingress"));
    assert_eq!(would_enter(&desired, "web", "10.0.0.2", 80), allowed("shop: db calls web:80/tcp"));
    assert_eq!(enters(&desired, "db", "10.0.0.5", 80), open());
    assert_eq!(would_enter(&desired, "db", "10.0.0.5", 80), isolated("shop/db isolated ingress"));
    assert_eq!(would_enter(&desired, "db", "192.0.2.1", 80), allowed("node may reach its workloads"));
    let db = desired.endpoints.iter().find(|endpoint| endpoint.name.workload == "db").unwrap().views[0];
    assert!(!desired.sets[db.ingress.0 as usize].isolated);
    assert!(!desired.sets[db.egress.0 as usize].isolated);
}

#[test]
fn a_service_that_isolates_in_audit_still_grants() {
    let policy = intent("services:\n  web: { calls: [db:5432], isolate: audit }\n  db: {}\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    assert_eq!(enters(&desired, "db", "10.0.0.1", 5432), allowed("shop: web calls db:5432/tcp"));
    assert_eq!(enters(&desired, "web", "10.0.0.2", 80), open());
    assert_eq!(
        would_enter(&desired, "web", "10.0.0.2", 80),
        by(Action::Deny, Reason::Isolated, "shop/web isolated ingress")
    );
    assert_eq!(leaves(&desired, "web", "10.0.0.3", 81), open());
}

#[test]
fn what_an_enforced_guard_may_deny_is_not_open() {
    let isolated = |rules: &str| {
        let desired = desired(&guard("g", 1, &format!("rules:\n  - {rules}\n")), WORKLOADS, "n1").unwrap();
        let view = desired.endpoints[0].views[0];
        [view.ingress, view.egress].map(|set| desired.sets[set.0 as usize].isolated)
    };
    assert_eq!(isolated("deny: { to: world:25 }"), [false, true], "a fragment has no ports to judge it by");
    assert_eq!(isolated("deny: { from: world:25, mode: audit }"), [false, false]);
    assert_eq!(isolated("allow: { from: world }"), [false, false]);
}

#[test]
fn rules_that_do_the_same_are_one_entry_and_what_nobody_reaches_is_none() {
    let policy = guard(
        "g",
        1,
        "rules:\n  - deny: { to: [metadata, node:22] }\n  - deny: { to: world }\n  - allow: { to: any }\n  - deny: { to: nodes }\n",
    ) + &guard("h", 2, "rules:\n  - deny: { to: any }\n");
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let set = &desired.sets[desired.endpoints[0].views[0].egress.0 as usize];
    let at = |value| set.classes[Class::Tcp as usize].iter().rev().find(|interval| interval.start <= value).unwrap();
    let entries: Vec<_> = at(22)
        .entries
        .iter()
        .map(|entry| (entry.tier, entry.action, matches!(&entry.peers, Peers::Selectors(some) if some.len() == 3)))
        .collect();
    assert_eq!(entries, [(0, Action::Deny, true), (0, Action::Allow, false)]);
}

#[test]
fn rules_end_by_the_clock_of_the_programs() {
    let at = |hours: u64| bulkhead_controller::show::time(NOW + hours * HOUR);
    let rules = |ends: &[u64]| {
        let rule = |(i, &hours): (usize, &u64)| {
            format!("  - deny: {{ to: world, ports: [{}], expires: {} }}\n", 20 + i, at(hours))
        };
        guard(
            "g",
            1,
            &format!(
                "rules:\n  - allow: {{ to: world:99 }}\n{}",
                ends.iter().enumerate().map(rule).collect::<String>()
            ),
        )
    };
    let desired = |ends: &[u64]| desired(&rules(ends), WORKLOADS, "n1");
    let chain = desired(&[2, 1, 2]).unwrap();
    let deadlines: Vec<_> = chain.endpoints[0].views.iter().map(|view| view.until).collect();
    assert_eq!(deadlines, [Some(NOW + HOUR), Some(NOW + 2 * HOUR), None]);
    let leaves = |port: u16, now| {
        let asked = Asked {
            workload: "web",
            direction: Direction::Egress,
            peer: "203.0.113.9".parse().unwrap(),
            class: Class::Tcp,
            value: port,
            now,
        };
        walk(&chain, asked, false).0
    };
    for (port, hours) in [(20, 2), (21, 1), (22, 2)] {
        assert_eq!(leaves(port, NOW + hours * HOUR - 1), Action::Deny, "{port}");
        assert_eq!(leaves(port, NOW + hours * HOUR), Action::Allow, "{port}");
    }
    assert_eq!(desired(&[0]).unwrap().endpoints[0].views.len(), 1, "what has ended is left out");
    assert!(!desired(&[0]).unwrap().rules.iter().any(|rule| rule.name.contains("deny")));

    let most = u64::from(VIEW_CHAIN) - 1;
    assert!(desired(&(1..=most).collect::<Vec<_>>()).is_ok());
    let refused = desired(&(1..=most + 1).collect::<Vec<_>>()).unwrap_err().to_string();
    let expected = format!(
        "policy.yaml:8:17: rules that concern workload `desk/till` end at {} times, {most} fit: guard g: deny to world:20/tcp (policy.yaml:8), ",
        most + 1
    );
    assert!(refused.starts_with(&expected), "{refused}");
}

#[test]
fn more_guards_than_tiers_are_refused() {
    let guards: String = (0..251)
        .map(|i| guard(&format!("g{i}"), i, "for: { services: [shop/web] }\nrules: [{ deny: { to: metadata } }]\n"))
        .collect();
    let refused = desired(&guards, WORKLOADS, "n1").unwrap_err().to_string();
    assert_eq!(
        refused,
        "policy.yaml:1404:7: 251 Guards of one tier concern workload `shop/web` at egress, 200 fit\n  help: put rules of several of them into one"
    );
    let long = |count| -> String {
        (0..count).map(|i| guard(&format!("g{i}"), i, "rules: [{ deny: { to: metadata } }]\n")).collect()
    };
    assert!(desired(&long(63), WORKLOADS, "n1").is_ok());
    let refused = desired(&long(64), WORKLOADS, "n1").unwrap_err().to_string();
    assert!(refused.contains("become 65 entries of one list of Tcp at egress, 64 fit"), "{refused}");
}

#[test]
fn what_decides_is_said_in_words() {
    let policy = guard(
        "tenants",
        100,
        "for: { namespaces: { tenant: any } }\ncompare: tenant\nrules:\n  - pass: { from: node }\n  - allow: { from: ops/probe:9100 }\n  - deny: { from: other }\n",
    ) + &guard(
        "platform",
        10,
        "rules:\n  - deny: { to: [metadata, node:22] }\n  - pass: { from: desk/till }\n  - deny: { to: world:25, mode: audit, expires: 2026-06-01T00:00:00Z }\n  - allow: { to: world:26, mode: audit }\n",
    ) + &intent("services:\n  db: { accepts: [world:5432, desk/till:5432], calls: [world:25] }\n")
        + &intent("mode: audit\nservices:\n  web: { accepts: [world:443] }\n");
    let model = model(("p.yaml", &policy), ("w.yaml", WORKLOADS)).unwrap();
    let parties: Vec<_> = PARTIES.iter().map(|(address, of)| (*address, of.map(name))).collect();
    let party = |text: &str| {
        let found = parties.iter().find_map(|(_, of)| of.as_ref().filter(|of| of.name == text));
        found.map_or_else(|| Party::Address(text.parse().unwrap()), Party::Workload)
    };
    let ask = |(from, to, port, now): &(&str, &str, &str, u64)| {
        let (class, value) = parse_point(port).unwrap();
        explain(&model, Question { from: party(from), to: party(to), class, value }, *now).unwrap().text(&model)
    };
    let later = NOW + 365 * 24 * HOUR;
    let answers: Vec<String> = [
        ("probe", "web", "9100", NOW),
        ("probe", "web", "9101", NOW),
        ("probe", "db", "5432", NOW),
        ("203.0.113.9", "db", "5432", NOW),
        ("till", "db", "5432", NOW),
        ("till", "db", "5433", NOW),
        ("till", "web", "443", NOW),
        ("saw", "169.254.169.254", "80", NOW),
        ("db", "192.0.2.1", "22", NOW),
        ("db", "203.0.113.9", "25", NOW),
        ("db", "203.0.113.9", "25", later),
        ("db", "203.0.113.9", "26", NOW),
        ("web", "203.0.113.9", "80", NOW),
        ("192.0.2.1", "web", "80", NOW),
        ("probe", "203.0.113.9", "25", NOW),
        ("db", "web", "80", NOW),
    ]
    .iter()
    .map(ask)
    .collect();
    let answers = answers.join("\n");
    insta::assert_snapshot!(answers);
}

/// Who may stand for a peer: workloads, nodes, an address of the overlay that nobody has, and addresses of none.
const PARTIES: [(&str, Option<(&str, &str)>); 11] = [
    ("10.0.0.1", Some(("shop", "web"))),
    ("10.0.0.2", Some(("shop", "db"))),
    ("10.0.0.3", Some(("desk", "till"))),
    ("10.0.0.4", Some(("mill", "saw"))),
    ("10.0.0.5", Some(("ops", "probe"))),
    ("10.0.0.99", None),
    ("192.0.2.1", None),
    ("192.0.2.2", None),
    ("203.0.113.9", None),
    ("198.51.100.1", None),
    ("169.254.169.254", None),
];

fn name(of: (&str, &str)) -> WorkloadName {
    WorkloadName::new(of.0.to_owned(), of.1.to_owned())
}

fn rule() -> impl Strategy<Value = String> {
    let peer = select(vec![
        "same",
        "other",
        "any",
        "world",
        "node",
        "nodes",
        "metadata",
        "cluster",
        "office",
        "ops/probe",
        "shop/web",
        "desk/till",
    ]);
    let ports =
        select(vec!["", ", ports: [80]", ", ports: [70-90, 53/udp]", ", ports: [http]", ", ports: [echo/icmp]"]);
    let mode = select(vec!["", "", "", ", mode: audit"]);
    let expires = prop_oneof![4 => Just(None), 1 => (0..=2_u64).prop_map(Some)];
    (select(vec!["allow", "deny", "pass"]), select(vec!["from", "to"]), peer, ports, mode, expires)
        .prop_filter("only workloads name their ports", |(_, side, peer, ports, ..)| {
            !ports.contains("http")
                || *side == "from"
                || !["world", "node", "nodes", "metadata", "office", "ops/probe"].contains(peer)
        })
        .prop_map(|(action, side, peer, ports, mode, expires)| {
            let expires =
                expires.map(|hours| format!(", expires: {}", bulkhead_controller::show::time(NOW + hours * HOUR)));
            format!("  - {action}: {{ {side}: {peer}{ports}{mode}{} }}\n", expires.unwrap_or_default())
        })
}

fn one_guard() -> impl Strategy<Value = String> {
    let subjects = select(vec![
        "",
        "for: { namespaces: { tenant: any } }\n",
        "for: { workloads: { tier: data } }\n",
        "for: { services: [shop/web, ops/probe] }\n",
    ]);
    let mode = select(vec!["", "", "", "mode: audit\n"]);
    (subjects, mode, prop::collection::vec(rule(), 1..6)).prop_map(|(subjects, mode, rules)| {
        // What the same text says twice is an error.
        let mut seen = BTreeSet::new();
        let text = |rule: &str| rule.split(", mode").next().unwrap_or_default().split(", expires").next().unwrap_or_default().replace(" }\n", "");
        let rules: String = rules.into_iter().filter(|rule| seen.insert(text(rule))).collect();
        format!("{subjects}{mode}compare: tenant\nexternal: {{ office: {{ cidrs: [198.51.100.0/24, 10.0.0.2/31] }} }}\nrules:\n{rules}")
    })
}

fn policies() -> impl Strategy<Value = String> {
    let lines = |verb: &'static str| {
        prop::sample::subsequence(
            vec!["db:80", "web:http", "world:80", "node:any", "cluster:53/udp", "ops/probe:80", "desk/till:http"],
            0..4,
        )
        .prop_map(move |lines| format!("{verb}: [{}]", lines.join(", ")))
    };
    let service = (lines("accepts"), lines("calls"), any::<bool>()).prop_map(|(accepts, calls, audit)| {
        format!("{{ {accepts}, {calls}{} }}", if audit { ", isolate: audit" } else { "" })
    });
    let intents = (service.clone(), service, any::<bool>(), any::<bool>()).prop_map(|(web, db, first, second)| {
        let mode = |audit| if audit { "mode: audit\n" } else { "" };
        intent(&format!("{}services:\n  web: {web}\n", mode(first)))
            + &intent(&format!("{}services:\n  db: {db}\n", mode(second)))
    });
    (prop::collection::vec(one_guard(), 0..4), prop::option::of(intents)).prop_map(|(guards, intents)| {
        let guards: String = (0..).zip(guards).map(|(i, rest)| guard(&format!("g{i}"), 10 - i, &rest)).collect();
        let text = guards + &intents.unwrap_or_default();
        if text.is_empty() { intent("services: {}\n") } else { text }
    })
}

/// A verdict in the words of a walk; the Guard's name instead of its rule's, of which several may match.
fn told(verdict: &Verdict<'_>) -> (Action, Reason, String) {
    let guard = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    match verdict {
        Verdict::Open => open(),
        Verdict::OwnNode => allowed("node may reach its workloads"),
        Verdict::Guarded(rule) => allowed(&guard(&rule.name)),
        Verdict::Denied(rule) => denied(&guard(&rule.name)),
        Verdict::Allowed(_) => allowed("intent"),
        Verdict::Refused { by: isolation, .. } => by(Action::Deny, Reason::Isolated, &isolation.to_string()),
        Verdict::Quarantined(place) => panic!("nobody is in quarantine: {}", place.origin()),
    }
}

fn walked(desired: &Desired, asked: Asked<'_>, audit: bool) -> (Action, Reason, String) {
    let (action, reason, rule) = walk(desired, asked, audit);
    let short = match reason {
        Reason::Isolated => rule.split(' ').next().unwrap_or_default().to_owned(),
        _ if rule.starts_with("guard ") => rule.split(':').next().unwrap_or_default().to_owned(),
        Reason::Rule if !rule.starts_with("node ") => "intent".to_owned(),
        _ => rule,
    };
    (action, reason, short)
}

fn disagreements(text: &str, model: &Model, desired: &Desired) {
    let subjects = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    let names: Vec<_> = PARTIES.iter().map(|(_, of)| of.map(name)).collect();
    let explainer = Explainer::new(model);
    let points = ["80", "81", "9000", "53/udp", "echo/icmp", "proto/47"].map(|text| parse_point(text).unwrap());
    for (subject, own) in PARTIES.iter().zip(&names).filter(|((address, _), _)| subjects.contains(address)) {
        let own = Party::Workload(own.as_ref().unwrap());
        for ((address, _), peer) in PARTIES.iter().zip(&names).filter(|((address, _), _)| *address != subject.0) {
            let peer = peer.as_ref().map_or_else(|| Party::Address(address.parse().unwrap()), Party::Workload);
            for ((class, value), hours) in points.into_iter().flat_map(|point| [0, 1, 2].map(|hours| (point, hours))) {
                let now = NOW + hours * HOUR;
                for direction in [Direction::Ingress, Direction::Egress] {
                    let (from, to) = if direction == Direction::Ingress { (peer, own) } else { (own, peer) };
                    let answer = explainer.explain(Question { from, to, class, value }, now);
                    let answer = answer.unwrap_or_else(|found| panic!("{found}\n{text}"));
                    let [egress, ingress] = &answer.would_be;
                    let (verdict, would_be) = match direction {
                        Direction::Ingress => (&answer.ingress, ingress),
                        Direction::Egress => (&answer.egress, egress),
                    };
                    let asked = Asked {
                        workload: subject.1.unwrap().1,
                        direction,
                        peer: address.parse().unwrap(),
                        class,
                        value,
                        now,
                    };
                    for (verdict, audit) in [(verdict, false), (would_be, true)] {
                        let mut said = told(verdict);
                        let found = walked(desired, asked, audit);
                        // The node's own rule stands in one entry with lines of services that match it too.
                        if found.2.starts_with("node ") && said.2 == "intent" {
                            said.2 = found.2.clone();
                        }
                        assert_eq!(found, said, "{asked:?} audit={audit}\n{text}");
                    }
                    assert!(!answer.text(model).is_empty());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is explained on one wall's own tables is what a plain walk through the entries of the whole node finds.
    #[test]
    fn entries_say_what_is_explained(text in policies()) {
        let model = model(("policy.yaml", &text), ("workloads.yaml", WORKLOADS)).unwrap_or_else(|found| panic!("{found}\n{text}"));
        let desired = compile(&model, "n1", &Default::default(), NOW).unwrap_or_else(|found| panic!("{found}\n{text}"));
        disagreements(&text, &model, &desired);
    }
}
