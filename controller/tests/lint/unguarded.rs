//! What nothing isolates, what only reports, what has ended.

use bulkhead_controller::{guard::Tier, lint::Check, model::Peer, policy::Policy, ports::Ports};
use bulkhead_ebpf::abi::{Action, Direction};

use crate::support::{WORKLOADS, admin, all, found, guard, intent, network, ours, pods, tcp};

#[test]
fn what_nothing_isolates_is_said_once_for_all_of_a_kind() {
    let open = |policies: &[Policy]| found(Check::NotIsolated, policies, WORKLOADS);
    let help = "\n  help: list it as a service of an Intent, or select it by a NetworkPolicy of that direction";
    let web = network("web", &[("app", "web")], vec![(Direction::Ingress, pods("shop", &[]), tcp(80))]);
    let policies = [ours(&intent("shop", "services:\n  db: {}\n")), vec![web]].concat();
    assert_eq!(
        open(&policies),
        [
            format!("w.yaml:10:13: warning: nothing isolates `shop/web` at egress{help}"),
            format!("w.yaml:14:13: warning: nothing isolates `ops/backup` at ingress and egress{help}"),
        ]
    );
    let everybody = [intent("shop", "services:\n  web: {}\n  db: {}\n"), intent("ops", "services:\n  backup: {}\n")];
    assert_eq!(open(&all(&everybody)), [""; 0]);
    let deny = |direction| (Action::Deny, direction, Peer::Any, Ports::Any);
    let baseline = admin(Tier::Baseline, 0, vec![deny(Direction::Ingress), deny(Direction::Egress)]);
    assert_eq!(open(&[baseline]), [""; 0]);
    let half = admin(Tier::Baseline, 0, vec![deny(Direction::Ingress)]);
    assert!(open(&[half]).iter().all(|found| found.contains("at egress\n")));
}

#[test]
fn what_only_reports_is_not_forgotten() {
    let audited = |policies: &[Policy], with: &str| found(Check::AuditLeftOn, policies, with);
    let of = |text: &str| audited(&ours(text), WORKLOADS);
    assert_eq!(
        of(&intent("shop", "services:\n  db: { isolate: audit, accepts: [world:443] }\n  web: {}\n")),
        [
            "p.yaml:5:3: warning: service `shop/db` isolates nobody: it says `isolate: audit`\n  help: remove it when what is reported is as you want"
        ]
    );
    let document = of(&intent("shop", "mode: audit\nservices:\n  db: { accepts: [world:443] }\n"));
    assert!(document.len() == 1 && document[0].contains("its Intent says `mode: audit`"), "{document:?}");
    let rule = of(&guard("g", 1, "rules:\n  - deny: { to: world, mode: audit }\n  - deny: { to: metadata }\n"));
    assert!(rule.len() == 1 && rule[0].starts_with("p.yaml:6:17"), "{rule:?}");
    let whole = of(&guard("g", 1, "mode: audit\nrules:\n  - deny: { to: world }\n  - deny: { to: metadata }\n"));
    assert!(whole.len() == 1 && whole[0].contains("every rule of Guard `g` only reports"), "{whole:?}");
    assert_eq!(of(&guard("g", 1, "rules:\n  - deny: { to: metadata }\n")), [""; 0]);
    let observed = WORKLOADS.replace("namespace: ops,", "namespace: ops, mode: observe,");
    let found = audited(&[], &observed);
    assert!(found.len() == 1 && found[0].contains("workload `ops/backup-1`"), "{found:?}");
}

#[test]
fn what_has_ended_can_go() {
    let ended = |time: &str| {
        let text = guard("g", 1, &format!("rules:\n  - deny: {{ to: world, expires: {time} }}\n"));
        found(Check::Expired, &ours(&text), WORKLOADS)
    };
    assert_eq!(
        ended("2025-12-31T23:59:59Z"),
        [
            "p.yaml:6:17: warning: `guard g: deny to world` says nothing any more: it ended 2025-12-31T23:59:59.000Z\n  help: remove it, or give it a later `expires`"
        ]
    );
    assert_eq!(ended("2026-01-01T00:00:00Z").len(), 1, "an end is no longer part of it");
    assert_eq!(ended("2026-01-01T00:00:01Z"), [""; 0]);
}
