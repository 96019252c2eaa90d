//! The agent as its user sees it.

use std::fs;

use bulkhead_fixtures::skip;
use bulkhead_tests::Agent;

use crate::{
    policy::{SHOP, shop},
    probe::{Ask, Servers, allowed, command_line, denied},
};

#[test]
fn files_are_read_again_when_they_change() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers =
        [Servers::start(&lab, "cart-1", &[8080, 9999], &[]), Servers::start(&lab, "cart-2", &[8080, 9999], &[])];
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    allowed(&lab, "web", "cart-2", Ask::Tcp(8080));
    denied(&lab, "web", "cart-2", Ask::Tcp(9999));
    let [first, second] = &mut agents[..] else { unreachable!("two nodes") };
    first.apply(|| second.apply(|| lab.policy("shop.yaml", &SHOP.replace("cart:8080", "cart:9999")))).unwrap();
    allowed(&lab, "web", "cart-2", Ask::Tcp(9999));
    denied(&lab, "web", "cart-2", Ask::Tcp(8080));
    denied(&lab, "web", "cart-1", Ask::Tcp(8080));
}

/// Bad input: file, line, what is wrong, how to mend it; the last good revision stays, and a metric says so.
#[test]
fn a_bad_file_changes_nothing_and_is_told() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    assert_eq!(agent.metric("bulkhead_policy_error", &[]).unwrap(), 0.0);
    lab.policy("shop.yaml", &SHOP.replace("cart:8080", "crat:8080")).unwrap();
    while agent.metric("bulkhead_policy_error", &[]).unwrap() == 0.0 {
        std::thread::yield_now();
    }
    let log = agent.log();
    assert!(log.contains("shop.yaml:6"), "{log}");
    assert!(log.contains("crat") && log.contains("cart"), "{log}");
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    // A new agent starts from the last good revision, not from the bad file.
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    assert_eq!(agent.metric("bulkhead_policy_error", &[]).unwrap(), 1.0);
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    // Mended, it goes on.
    lab.policy("shop.yaml", SHOP).unwrap();
    while agent.metric("bulkhead_policy_error", &[]).unwrap() != 0.0 {
        std::thread::yield_now();
    }
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
}

#[test]
fn without_any_good_revision_the_agent_does_not_start() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    lab.policy("shop.yaml", &SHOP.replace("calls: [db:5432]", "calls: [db]")).unwrap();
    let (status, log) = Agent::spawn(&lab, 0, &[]).unwrap().ended().unwrap();
    assert_ne!(status, 0);
    assert!(log.contains("shop.yaml:8") && log.contains("db"), "{log}");
}

/// `status`, `get` and `observe` work from the pins, with no agent.
#[test]
fn the_command_line_reads_the_pins_with_no_agent() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    Agent::start(&lab, 0, &[]).unwrap().kill().unwrap();
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    let run = |words: &[&str]| command_line(&lab, 0, words);
    let status = run(&["status"]);
    assert!(status.contains("web") && status.contains("cart-1"), "{status}");
    let flows = run(&["get", "flows"]);
    assert!(flows.contains("8080"), "{flows}");
    let observed = run(&["observe"]);
    assert!(observed.contains("guest") && observed.contains("isolated"), "{observed}");
    assert!(fs::metadata(lab.pins(0)).is_ok(), "reading leaves the pins");
}
