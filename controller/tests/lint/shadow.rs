//! Rules that never decide.

use bulkhead_controller::{guard::Tier, lint::Check, model::Peer, policy::Policy, ports::Ports};
use bulkhead_ebpf::abi::{Action, Direction};

use crate::support::{WORKLOADS, admin, all, found, guard, intent, network, ours, pods, tcp};

fn shadowed(policies: &[Policy]) -> Vec<String> {
    found(Check::ShadowedRule, policies, WORKLOADS)
}

#[test]
fn a_rule_of_a_guard_behind_a_wider_one_never_decides() {
    let rules = |first: &str, second: &str| ours(&guard("g", 1, &format!("rules:\n  - {first}\n  - {second}\n")));
    assert_eq!(
        shadowed(&rules("deny: { from: any }", "allow: { from: ops/backup, ports: [9100] }")),
        [
            "p.yaml:7:20: warning: `guard g: allow from ops/backup:9100/tcp` never decides: guard g: deny from any (p.yaml:6) does before it\n  \
             help: put it before that one, or remove it"
        ]
    );
    // Ports are left.
    let rest = rules("deny: { from: any, ports: [1-9000] }", "allow: { from: ops/backup, ports: [8000-9100] }");
    assert_eq!(shadowed(&rest), [""; 0]);
    // The other way round the wider one decides the rest.
    assert_eq!(shadowed(&rules("allow: { from: ops/backup, ports: [9100] }", "deny: { from: any }")), [""; 0]);
    // What does the same is no surprise.
    assert_eq!(shadowed(&rules("deny: { from: any }", "deny: { from: world, ports: [22] }")), [""; 0]);
    // An audited one hides nothing that is enforced.
    let audited = rules("deny: { from: any, mode: audit }", "allow: { from: ops/backup, ports: [9100] }");
    assert_eq!(shadowed(&audited), [""; 0]);
    // One that has ended hides nothing.
    let ended =
        rules("deny: { from: any, expires: 2025-01-01T00:00:00Z }", "allow: { from: ops/backup, ports: [9100] }");
    assert_eq!(shadowed(&ended), [""; 0]);
    // Who is nobody is not hidden.
    assert_eq!(shadowed(&rules("deny: { from: any }", "allow: { from: ops/nobody, ports: [9100] }")), [""; 0]);
}

#[test]
fn a_pass_leaves_its_own_guard_only() {
    let same = guard("g", 1, "rules:\n  - pass: { from: any }\n  - deny: { from: ops/backup }\n");
    assert_eq!(
        shadowed(&ours(&same)),
        [
            "p.yaml:7:19: warning: `guard g: deny from ops/backup` never decides: guard g: pass from any (p.yaml:6) does before it\n  \
             help: put it before that one, or remove it"
        ]
    );
    let first = guard("first", 1, "rules:\n  - pass: { from: any }\n");
    let second = guard("second", 2, "rules:\n  - deny: { from: ops/backup }\n");
    assert_eq!(shadowed(&all(&[first, second])), [""; 0]);
}

#[test]
fn a_rule_behind_those_of_an_earlier_guard_never_decides_where_it_concerns_nobody_else() {
    let first =
        |subjects: &str| guard("first", 1, &format!("for: {{ {subjects} }}\nrules:\n  - deny: {{ from: any }}\n"));
    let second =
        guard("second", 2, "for: { services: [shop/db] }\nrules:\n  - allow: { from: shop/web, ports: [5432] }\n");
    let hidden = shadowed(&all(&[first("namespaces: { tenant: a }"), second.clone()]));
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(
        hidden[0].contains("guard second: allow from shop/web:5432/tcp` never decides: guard first: deny"),
        "{hidden:?}"
    );
    // One of the two workloads is left.
    assert_eq!(shadowed(&all(&[first("workloads: { role: primary }"), second])), [""; 0]);
}

#[test]
fn an_audited_rule_is_held_against_what_is_before_it() {
    let text = guard("g", 1, "rules:\n  - deny: { from: any }\n  - allow: { from: world, ports: [80], mode: audit }\n");
    let hidden = shadowed(&ours(&text));
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(hidden[0].contains("allow from world:80/tcp"), "{hidden:?}");
}

#[test]
fn an_intent_cannot_open_what_a_guard_denies() {
    let intent = |peer: &str| intent("shop", &format!("services:\n  db:\n    accepts: [{peer}]\n"));
    let tenants = guard("tenants", 1, "compare: tenant\nrules:\n  - pass: { from: node }\n  - deny: { from: other }\n");
    assert_eq!(
        shadowed(&all(&[intent("ops/backup:5432"), tenants.clone()])),
        [
            "p.yaml:6:15: warning: `shop: db accepts ops/backup:5432/tcp` lets nobody in: guard tenants: deny from other (p.yaml:15) denies all of it before\n  \
             help: let that Guard `pass` or `allow` it, or remove the line"
        ]
    );
    // Of all workloads some are of the same tenant.
    assert_eq!(shadowed(&all(&[intent("cluster:5432"), tenants])), [""; 0]);
    let allows = guard("tenants", 1, "rules:\n  - allow: { from: any, ports: [5432] }\n");
    assert_eq!(shadowed(&all(&[intent("ops/backup:5432"), allows])), [""; 0], "what does the same is no surprise");
}

#[test]
fn a_call_is_lost_when_either_of_its_ends_is() {
    let text = intent("shop", "services:\n  web: { calls: [db:5432] }\n  db: {}\n");
    let inwards = guard("g", 1, "for: { services: [shop/db] }\nrules:\n  - deny: { from: shop/web }\n");
    let hidden = shadowed(&all(&[text.clone(), inwards.clone()]));
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(hidden[0].contains("`shop: web calls db:5432/tcp` lets nobody in"), "{hidden:?}");
    let edges = found(Check::HalfOpenEdge, &all(&[text, inwards]), WORKLOADS);
    assert_eq!(edges, [""; 0], "said once");
}

#[test]
fn policies_of_kubernetes_are_judged_alike() {
    let allow = (Action::Allow, Direction::Ingress, pods("ops", &[]), tcp(9100));
    let deny = (Action::Deny, Direction::Ingress, Peer::Any, Ports::Any);
    let hidden = shadowed(&[admin(Tier::Admin, 1, vec![deny.clone()]), admin(Tier::Admin, 2, vec![allow.clone()])]);
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(hidden[0].starts_with("admin2.yaml:1:1"), "{hidden:?}");
    let policy = network("db", &[("app", "db")], vec![(Direction::Ingress, pods("ops", &[]), tcp(5432))]);
    let hidden = shadowed(&[admin(Tier::Admin, 1, vec![deny.clone()]), policy.clone()]);
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(hidden[0].contains("`networkpolicy shop/db: ingress[0]` lets nobody in"), "{hidden:?}");
    // A baseline may have nothing to do: others are more precise.
    assert_eq!(shadowed(&[admin(Tier::Baseline, 0, vec![deny.clone()]), policy]), [""; 0]);
    let hidden = shadowed(&[admin(Tier::Baseline, 0, vec![deny, allow])]);
    assert_eq!(hidden.len(), 1, "{hidden:?}");
}

#[test]
fn a_baseline_opens_nothing_that_is_isolated() {
    let allow = (Action::Allow, Direction::Ingress, pods("ops", &[]), tcp(9100));
    let baseline = || admin(Tier::Baseline, 0, vec![allow.clone()]);
    let everybody = "services:\n  web: {}\n  db: {}\n";
    let hidden = shadowed(
        &[ours(&intent("shop", everybody)), ours(&intent("ops", "services:\n  backup: {}\n")), vec![baseline()]]
            .concat(),
    );
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(hidden[0].contains("isolated ingress"), "{hidden:?}");
    assert_eq!(shadowed(&[ours(&intent("shop", "services:\n  web: {}\n")), vec![baseline()]].concat()), [""; 0]);
}
