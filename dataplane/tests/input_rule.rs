//! The input rule against real packets, and what it leaves alone.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use bulkhead_dataplane::{input_rule, node::NodeError};
use bulkhead_ebpf::mark::Layout;
use bulkhead_fixtures::skip;
use bulkhead_topology::{Netns, Topology, traffic::TcpEcho};

/// For what happens in milliseconds, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Marks as the underlay program does, long before the rule's hook.
const VERIFY: &str = "table inet verify {
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        udp dport { 8472, 4789 } meta mark set meta mark | 0x01000000
    }
}";
const FOREIGN: &str = "table inet firewall {
    counter seen { }
    set friends { type ipv4_addr; elements = { 192.0.2.7 }; }
    chain input {
        type filter hook input priority filter; policy accept;
        udp dport 9 counter name seen drop
    }
}
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        ip daddr 192.0.2.9 masquerade
    }
}";

fn able() -> bool {
    let nft = std::process::Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success());
    skip::root() && skip::require("nft (package nftables)", nft)
}

fn ports<const N: usize>(ports: [u16; N]) -> BTreeSet<u16> {
    ports.into()
}

#[track_caller]
fn nft<const N: usize>(netns: &Netns, args: [&str; N]) -> String {
    let output = netns.command("nft").args(args).output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset(netns: &Netns) -> String {
    nft(netns, ["list", "ruleset"])
}

#[track_caller]
fn ensure<const N: usize>(netns: &Netns, of: [u16; N]) {
    netns.run(|| input_rule::ensure(&ports(of), &Layout::DEFAULT)).unwrap();
}

#[track_caller]
fn present<const N: usize>(netns: &Netns, of: [u16; N]) -> bool {
    netns.run(|| input_rule::present(&ports(of), &Layout::DEFAULT)).unwrap()
}

#[track_caller]
fn counter(netns: &Netns) -> u64 {
    netns.run(input_rule::counter).unwrap()
}

#[track_caller]
fn remove(netns: &Netns) {
    netns.run(input_rule::remove).unwrap();
}

/// Sends datagrams to a port and returns when the counter says `expected`, or panics.
#[track_caller]
fn send_until_counted(from: &Netns, to: SocketAddr, datagrams: u64, at: &Netns, expected: u64) {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = from.run(|| UdpSocket::bind((any, 0))).unwrap();
    for _ in 0..datagrams {
        socket.send_to(b"forged", to).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while counter(at) < expected && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(counter(at), expected, "datagrams to {to}");
}

#[test]
fn unverified_packets_are_dropped_on_every_link_and_counted() {
    if !able() {
        return;
    }
    let topology = Topology::builder().nodes(2).second_nic().workload("web", 0).build().unwrap();
    let (node, outsider, web) = (topology.node(0), topology.outsider(), topology.workload("web"));
    ensure(&node.netns, [8472]);
    assert_eq!(counter(&node.netns), 0);
    let second = node.second.as_ref().unwrap();
    // The VTEP, the second NIC, the bridge from a container, and loopback.
    let ways: [(&Netns, IpAddr); 8] = [
        (&outsider.netns, node.underlay.v4.into()),
        (&outsider.netns, node.underlay.v6.into()),
        (&outsider.netns, second.v4.into()),
        (&outsider.netns, second.v6.into()),
        (&web.netns, node.overlay4.gateway),
        (&web.netns, node.overlay6.gateway),
        (&node.netns, [127, 0, 0, 1].into()),
        (&node.netns, node.underlay.v6.into()),
    ];
    let mut sent = 0;
    for (from, to) in ways {
        sent += 3;
        send_until_counted(from, (to, 8472).into(), 3, &node.netns, sent);
    }
}

#[test]
fn marked_packets_pass_and_others_do_not() {
    if !able() {
        return;
    }
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("db", 1).build().unwrap();
    let (web, db) = (topology.workload("web"), topology.workload("db"));
    let servers = db.addresses().map(|address| TcpEcho::start(&db.netns, (address, 5432).into()).unwrap());
    // An answer ends the wait, so that only what is blocked takes a whole second.
    let answered = |patience| {
        servers.each_ref().map(|server| web.client().deadline(patience).tcp(server.addr()).unwrap().is_answered())
    };
    let (reached, blocked) = (|| answered(PATIENCE), || answered(Duration::from_secs(1)));
    assert_eq!(reached(), [true; 2]);

    for node in topology.nodes() {
        ensure(&node.netns, [8472]);
    }
    assert_eq!(blocked(), [false; 2]);
    let dropped = topology.nodes().iter().map(|node| counter(&node.netns)).collect::<Vec<_>>();
    assert!(dropped[1] >= 2, "at db's node {dropped:?}");

    for node in topology.nodes() {
        nft(&node.netns, [VERIFY]);
    }
    // Retransmissions of the connections before may still come; from here on they are marked.
    let before = topology.nodes().iter().map(|node| counter(&node.netns)).collect::<Vec<_>>();
    assert_eq!(reached(), [true; 2]);
    assert_eq!(topology.nodes().iter().map(|node| counter(&node.netns)).collect::<Vec<_>>(), before);

    for node in topology.nodes() {
        nft(&node.netns, ["delete", "table", "inet", "verify"]);
    }
    assert_eq!(blocked(), [false; 2]);
}

#[test]
fn remove_leaves_the_ruleset_as_it_was() {
    if !able() {
        return;
    }
    let netns = Netns::new("remove").unwrap();
    nft(&netns, [FOREIGN]);
    let before = ruleset(&netns);
    remove(&netns);
    assert_eq!(ruleset(&netns), before, "nothing to remove");
    ensure(&netns, [8472]);
    ensure(&netns, [4789, 8472]);
    let with = ruleset(&netns);
    assert!(with.contains("table inet bulkhead") && with.contains("made by Bulkhead"), "{with}");
    assert_eq!(with.replace(&nft(&netns, ["list", "table", "inet", "bulkhead"]), ""), before, "other tables");
    remove(&netns);
    assert_eq!(ruleset(&netns), before);
    assert!(!present(&netns, [4789, 8472]));
    assert_eq!(counter(&netns), 0);
}

#[test]
fn it_is_idempotent_and_the_counter_goes_on() {
    if !able() {
        return;
    }
    let netns = Netns::new("again").unwrap();
    assert!(!present(&netns, [8472]));
    ensure(&netns, [8472]);
    assert!(present(&netns, [8472]));
    assert!(!present(&netns, [4789]) && !present(&netns, [4789, 8472]));
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    send_until_counted(&netns, local(8472), 5, &netns, 5);

    // With handles, which change when anything is made anew.
    let listing = || nft(&netns, ["-a", "list", "table", "inet", "bulkhead"]);
    let before = listing();
    ensure(&netns, [8472]);
    assert_eq!(listing(), before);

    ensure(&netns, [4789, 8472, 51820]);
    assert!(present(&netns, [4789, 8472, 51820]) && !present(&netns, [8472]));
    assert_eq!(counter(&netns), 5);
    send_until_counted(&netns, local(51820), 2, &netns, 7);
    ensure(&netns, [4789]);
    // No longer one of the ports: passes uncounted, before one that is counted.
    let open = netns.run(|| UdpSocket::bind("127.0.0.1:8472")).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    netns.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().send_to(b"plain", local(8472)).unwrap();
    assert_eq!(open.recv(&mut [0; 8]).unwrap(), 5);
    send_until_counted(&netns, local(4789), 1, &netns, 8);
}

#[test]
fn drift_is_seen_and_repaired() {
    if !able() {
        return;
    }
    let netns = Netns::new("drift").unwrap();
    nft(&netns, [FOREIGN]);
    let foreign = ruleset(&netns);
    ensure(&netns, [4789, 8472]);
    send_until_counted(&netns, ([127, 0, 0, 1], 8472).into(), 4, &netns, 4);
    let intact = nft(&netns, ["list", "table", "inet", "bulkhead"]);
    let drifts = [
        "flush chain inet bulkhead input",
        "insert rule inet bulkhead input udp dport 8472 accept",
        "add rule inet bulkhead input accept",
        "flush chain inet bulkhead input; delete chain inet bulkhead input",
        "add chain inet bulkhead input { policy drop; }",
        "add chain inet bulkhead early { type filter hook input priority -300; policy accept; }",
        "add set inet bulkhead extra { type inet_service; }",
        "add table inet bulkhead { flags dormant; }",
        "flush chain inet bulkhead input; delete chain inet bulkhead input; \
         add chain inet bulkhead input { type filter hook input priority 300; policy accept; }; \
         add rule inet bulkhead input udp dport { 4789, 8472 } meta mark & 0x01000000 == 0 counter name unverified drop",
        "flush chain inet bulkhead input; \
         add rule inet bulkhead input udp dport { 4789, 8472 } meta mark & 0x02000000 == 0 counter name unverified drop",
    ];
    for drift in drifts {
        nft(&netns, [drift]);
        assert!(!present(&netns, [4789, 8472]), "after {drift}");
        ensure(&netns, [4789, 8472]);
        assert!(present(&netns, [4789, 8472]), "repaired after {drift}");
        assert_eq!(nft(&netns, ["list", "table", "inet", "bulkhead"]), intact, "after {drift}");
    }
    // The whole table gone takes the count with it.
    nft(&netns, ["delete", "table", "inet", "bulkhead"]);
    assert!(!present(&netns, [4789, 8472]));
    ensure(&netns, [4789, 8472]);
    assert_eq!(counter(&netns), 0);
    send_until_counted(&netns, ([127, 0, 0, 1], 4789).into(), 1, &netns, 1);
    remove(&netns);
    assert_eq!(ruleset(&netns), foreign);
}

#[test]
fn a_table_of_somebody_else_is_refused_and_stays() {
    if !able() {
        return;
    }
    let netns = Netns::new("theirs").unwrap();
    nft(&netns, ["table inet bulkhead {\n chain theirs {\n udp dport 53 accept\n }\n }"]);
    let before = ruleset(&netns);
    let refused: NodeError = netns.run(|| input_rule::ensure(&ports([8472]), &Layout::DEFAULT)).unwrap_err();
    assert!(refused.to_string().contains("nft delete table inet bulkhead"), "{refused}");
    assert_eq!(counter(&netns), 0);
    remove(&netns);
    assert_eq!(ruleset(&netns), before);
}

#[test]
fn a_rule_that_stands_follows_the_layout_of_the_mark() {
    if !able() {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    let other = Layout::new(0x0fff_0000).unwrap();
    let follow = |mark: &Layout| netns.run(|| input_rule::follow(&ports([8472]), mark)).unwrap();
    follow(&other);
    assert_eq!(ruleset(netns), "", "none is made");
    ensure(netns, [8472]);
    send_until_counted(netns, ([127, 0, 0, 1], 8472).into(), 2, netns, 2);
    follow(&other);
    assert!(!present(netns, [8472]));
    assert!(netns.run(|| input_rule::present(&ports([8472]), &other)).unwrap());
    assert!(ruleset(netns).contains("0x04000000"), "{}", ruleset(netns));
    assert_eq!(counter(netns), 2, "and goes on counting");
    netns.run(|| input_rule::follow(&ports([]), &Layout::DEFAULT)).unwrap();
    assert!(!present(netns, [8472]), "without ports nothing is to be asked for");
}
