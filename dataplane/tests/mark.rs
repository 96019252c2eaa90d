//! Who else uses the mark, found among real rules of nftables, iptables and policy routing.

use std::{collections::BTreeSet, process::Command};

use bulkhead_dataplane::{input_rule, mark, node::MarkConflicts};
use bulkhead_ebpf::mark::Layout;
use bulkhead_fixtures::skip;
use bulkhead_topology::{Netns, Topology};

fn able(programs: &[&str]) -> bool {
    let there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let missing: Vec<_> = programs.iter().filter(|program| !there(program)).collect();
    skip::root()
        && skip::require(&format!("{programs:?} (packages nftables, iptables and iproute2)"), missing.is_empty())
}

#[track_caller]
fn run(netns: &Netns, line: &str) {
    let mut words = line.split_whitespace();
    let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn conflicts(netns: &Netns, mask: u32) -> MarkConflicts {
    netns.run(|| mark::conflicts(mask, 1024))
}

/// Which rules use which bits: read, written.
#[track_caller]
fn found(netns: &Netns, mask: u32) -> Vec<(String, u32, u32)> {
    let MarkConflicts { users, unread, remedy } = conflicts(netns, mask);
    assert_eq!(unread, Vec::<String>::new());
    assert_eq!(users.is_empty(), remedy.is_empty());
    users.into_iter().map(|user| (user.rule, user.reads, user.writes)).collect()
}

#[test]
fn our_own_rule_and_other_bits_are_no_conflict() {
    if !able(&["nft", "ip"]) {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    netns.run(|| input_rule::ensure(&BTreeSet::from([8472]), &Layout::DEFAULT)).unwrap();
    assert_eq!(found(netns, mark::DEFAULT), []);
    assert_eq!(found(netns, u32::MAX), []);
    run(netns, "ip rule add fwmark 0x4000/0x4000 lookup 100");
    run(netns, "nft add table inet kube");
    run(netns, "nft add chain inet kube post");
    run(netns, "nft add rule inet kube post meta mark set meta mark xor 0x4000");
    run(netns, "nft add rule inet kube post ct mark 0x1 accept");
    assert_eq!(found(netns, mark::DEFAULT), [], "kube-proxy's bit is none of ours");
    assert_eq!(found(netns, 0x4000).len(), 2);
}

#[test]
fn rules_of_nftables_are_found() {
    if !able(&["nft"]) {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    run(netns, "nft add table inet vpn");
    run(netns, "nft add chain inet vpn forward { type filter hook forward priority 0 ; }");
    for (rule, reads, writes) in [
        ("meta mark set 0x1", 0, u32::MAX),
        ("meta mark set meta mark and 0xffffff00 or 0x12", 0, 0xff),
        ("meta mark set ct mark", 0, u32::MAX),
        ("meta mark and 0x1000000 == 0x1000000 accept", 0x0100_0000, 0),
        ("meta mark { 1, 2 } accept", u32::MAX, 0),
        ("ct mark set meta mark", u32::MAX, 0),
    ] {
        run(netns, &format!("nft add rule inet vpn forward {rule}"));
        let users = found(netns, mark::DEFAULT);
        assert_eq!(users.len(), 1, "{rule}: {users:x?}");
        assert!(users[0].0.starts_with("nftables inet vpn forward, handle "), "{users:?}");
        assert_eq!((users[0].1, users[0].2), (reads, writes), "{rule}");
        run(netns, "nft flush chain inet vpn forward");
    }
}

/// Both kinds of iptables, and both families.
#[test]
fn rules_of_iptables_are_found() {
    if !able(&["nft", "iptables-nft", "iptables-nft-save"]) {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    let calico = "-t mangle -A PREROUTING -m mark --mark 0x1000000/0x1000000 -j MARK --set-xmark 0x20000/0xf0000";
    let (reads, writes) = (0x0100_0000, 0x000f_0000);
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        // Not every kernel has the legacy tables.
        let list = netns.command(program).args(["-t", "mangle", "-S"]).output();
        if program.ends_with("legacy") && !skip::require(program, list.is_ok_and(|output| output.status.success())) {
            continue;
        }
        run(netns, &format!("{program} {calico}"));
        assert_eq!(found(netns, mark::DEFAULT), [(format!("{program} {calico}"), reads, writes)]);
        let remedy = conflicts(netns, mark::DEFAULT).remedy;
        assert!(remedy.contains("`--mark-mask 0x00000fff`"), "{remedy}");
        assert_eq!(found(netns, 0x0fff), [], "which is out of the way indeed");
        run(netns, &format!("{program} -t mangle -F"));
        assert_eq!(found(netns, mark::DEFAULT), []);
    }
}

#[test]
fn rules_of_policy_routing_are_found() {
    if !able(&["nft", "ip"]) {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    run(netns, "ip rule add fwmark 0x100/0x300 lookup 100 priority 50");
    run(netns, "ip -6 rule add not fwmark 0xca6c lookup 51820 priority 60");
    run(netns, "ip rule add fwmark 0/0x3000000 lookup 101 priority 70");
    assert_eq!(
        found(netns, mark::DEFAULT),
        [
            ("ip -6 rule 60: not from all fwmark 0xca6c/0xffffffff lookup 51820".to_owned(), u32::MAX, 0),
            ("ip rule 50: from all fwmark 0x100/0x300 lookup 100".to_owned(), 0x300, 0),
            ("ip rule 70: from all fwmark 0x0/0x3000000 lookup 101".to_owned(), 0x0300_0000, 0),
        ]
    );
    let remedy = conflicts(netns, mark::DEFAULT).remedy;
    assert!(remedy.contains("all 32 bits"), "{remedy}");
}
