//! The agent as its user sees it.

use std::{fs, process::Stdio};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, bulkhead};

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

/// A mask that cannot be used is refused, and who else uses the bits of one that can be is told.
#[test]
fn the_mark_is_checked_against_other_users() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let (status, log) = Agent::spawn(&lab, 0, &["--mark-mask", "0x3f00cfff"]).unwrap().ended().unwrap();
    assert_ne!(status, 0);
    assert!(log.contains("kube-proxy's (0x4000)") && log.contains("0x3f000fff would do"), "{log}");

    let netns = &lab.topology.node(0).netns;
    for line in [
        "add table inet vpn",
        "add chain inet vpn forward",
        "add rule inet vpn forward meta mark set meta mark or 0x01000000",
    ] {
        assert!(netns.command("nft").args(line.split(' ')).status().unwrap().success(), "{line}");
    }
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    assert_eq!(agent.metric("bulkhead_mark_conflicts", &[]).unwrap(), 1.0);
    let log = agent.log();
    assert!(log.contains("nftables inet vpn forward") && log.contains("--mark-mask 0x00000fff"), "{log}");
    let status = command_line(&lab, 0, &["status"]);
    assert!(status.contains("CONFLICT  0x01000000 of it is used by nftables inet vpn forward"), "{status}");
    agent.kill().unwrap();

    let agent = Agent::start(&lab, 0, &["--mark-mask", "0x00000fff"]).unwrap();
    assert_eq!(agent.metric("bulkhead_mark_conflicts", &[]).unwrap(), 0.0);
    assert!(agent.log().contains("another mask of the mark is in force: 0x00000fff"), "{}", agent.log());
    let status = command_line(&lab, 0, &["status"]);
    assert!(status.contains("mark      0x00000fff") && !status.contains("CONFLICT"), "{status}");
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
}

/// `status` falls back on the pins when no agent answers; `get` and `observe` read them where they are told to, and say how otherwise.
#[test]
fn the_command_line_reads_the_pins_with_no_agent() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let mut follow = lab.topology.node(0).netns.command(bulkhead().unwrap());
    follow.args(["observe", "--follow"]).arg("--socket").arg(lab.socket(0));
    let follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    agent.kill().unwrap();
    // Who follows an agent that dies is told so.
    let followed = follow.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&followed.stderr);
    assert!(followed.status.code() == Some(1) && said.contains("no agent answers"), "{said}");
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    let run = |words: &[&str]| command_line(&lab, 0, words);
    let status = run(&["status"]);
    assert!(status.contains("web") && status.contains("cart-1"), "{status}");
    assert!(
        status.starts_with("ENFORCING\nAGENT     DOES NOT ANSWER") && status.contains("the pins below"),
        "{status}"
    );
    for verb in [["get", "flows"].as_slice(), &["observe"], &["observe", "--follow"]] {
        let mut command = lab.topology.node(0).netns.command(bulkhead().unwrap());
        let output = command.args(verb).arg("--socket").arg(lab.socket(0)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{verb:?}: {said}");
        assert!(said.contains("no agent answers") && said.contains("--offline"), "{verb:?}: {said}");
    }
    // Without its database the walls are told all the same.
    let database = lab.state(0).join("bulkhead.db");
    let whole = fs::read(&database).unwrap();
    fs::write(&database, "no database").unwrap();
    let status = run(&["status"]);
    assert!(status.contains("revision  UNKNOWN, ") && status.contains("guarded"), "{status}");
    fs::write(&database, whole).unwrap();
    let flows = run(&["get", "flows", "--offline"]);
    assert!(flows.contains("8080"), "{flows}");
    let observed = run(&["observe", "--offline"]);
    assert!(observed.contains("guest") && observed.contains("isolated"), "{observed}");
    assert!(fs::metadata(lab.pins(0)).is_ok(), "reading leaves the pins");
}
