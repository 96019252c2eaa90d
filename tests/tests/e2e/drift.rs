//! What somebody takes away from a node is put back by its agent, and told.

use std::{fs, path::PathBuf};

use bulkhead_dataplane::sys::{LinkKind, link_detach, obj_get};
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};

use crate::{
    bypass::wait,
    listing::{say, tcx},
    policy::shop,
    probe::{Ask, Servers, command_line, denied},
};

/// The pinned attachment of a link on one side.
fn pin(lab: &Lab, link: &str, side: &str) -> PathBuf {
    let mut found = Vec::new();
    for layout in fs::read_dir(lab.pins(0)).unwrap() {
        for pin in fs::read_dir(layout.unwrap().path().join("links")).unwrap() {
            let path = pin.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with(&format!("{link}-")) && name.ends_with(side) {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{link} {side}: {found:?}");
    found.remove(0)
}

#[test]
fn what_is_taken_away_is_put_back() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let node = lab.topology.node(0);
    let (eth0, cart) = (&node.underlay.link, &lab.topology.workload("cart-1").link);
    let hung = || {
        let at = |link: u32, side| tcx(&node.netns, link, side);
        [at(eth0.index, LinkKind::TcxIngress), at(cart.index, LinkKind::TcxEgress)]
    };
    let rules = || say(&node.netns, "nft list ruleset").contains("bulkhead");
    let metric = |name: &str| agent.metric(name, &[]).unwrap();
    let before = hung();
    assert!(before.iter().all(|side| side.len() == 1) && rules());
    assert_eq!((metric("bulkhead_drift_found_total"), metric("bulkhead_drift_repaired_total")), (0.0, 0.0));
    assert!(!command_line(&lab, 0, &["status"]).contains("drift "));

    // One that is the node's boundary, one of a workload, and the input rule.
    link_detach(&obj_get(&pin(&lab, &eth0.name, "tcx_ingress")).unwrap()).unwrap();
    link_detach(&obj_get(&pin(&lab, &cart.name, "tcx_egress")).unwrap()).unwrap();
    say(&node.netns, "nft delete table inet bulkhead");
    assert!(hung().iter().all(Vec::is_empty) && !rules());

    wait("what was taken away is put back", || metric("bulkhead_drift_repaired_total") >= 3.0);
    assert_eq!(metric("bulkhead_drift_found_total"), metric("bulkhead_drift_repaired_total"));
    assert_eq!(hung(), before);
    assert!(rules());
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    let status = command_line(&lab, 0, &["status"]);
    assert!(status.contains("guards were found missing since then"), "{status}");
    let log = agent.log();
    for what in ["input rule", &format!("ingress underlay on {}", eth0.name), &format!("to_workload on {}", cart.name)]
    {
        let told = |verb: &str| log.lines().any(|line| line.contains(verb) && line.contains(what));
        assert!(told("found missing") && told("put up again: "), "{what}: {log}");
    }
    agent.kill().unwrap();
}
