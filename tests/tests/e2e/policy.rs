//! An allow-list holds, for every protocol, family, place and XDP mode.

use std::time::Instant;

use bulkhead_dataplane::{
    kernel::{Options, XdpMode},
    node::Reading,
};
use bulkhead_fixtures::{Frame, skip, tcp};
use bulkhead_tests::Lab;
use bulkhead_topology::{
    Topology,
    traffic::{Capture, RawLink},
};

use crate::probe::{Ask, BRIEF, PATIENCE, Servers, allowed, ask, denied};

/// `web` may call `cart`, which has a replica on each node, and `cart` may call `db`. `guest` is in no policy.
pub(crate) const SHOP: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:8080, cart:5300/udp, cart:echo/icmp]
  cart:
    calls: [db:5432]
  db: {}
";

pub(crate) fn shop() -> Lab {
    let builder = Topology::builder()
        .nodes(2)
        .workload("web", 0)
        .workload("cart-1", 0)
        .workload("cart-2", 1)
        .workload("db", 1)
        .workload("guest", 0);
    let lab = Lab::new(builder).unwrap();
    lab.policy("shop.yaml", SHOP).unwrap();
    lab
}

#[test]
fn the_allow_list_holds_without_xdp() {
    if skip::root() {
        holds(|options| options.xdp(XdpMode::Off), false);
    }
}

/// Twelve bits of the upper half, where by default are none or others.
#[test]
fn the_allow_list_holds_with_another_mask() {
    if skip::root() {
        holds(|options| options.mark_mask(0x0fff_0000), false);
    }
}

#[test]
fn the_allow_list_holds_where_nodes_forward_directly() {
    if skip::root() {
        holds(|options| options, true);
    }
}

#[test]
fn the_allow_list_holds_with_generic_xdp() {
    if skip::root() {
        holds(|options| options.xdp(XdpMode::Generic), false);
    }
}

#[test]
fn the_allow_list_holds_with_native_xdp() {
    if skip::root() {
        holds(|options| options.xdp(XdpMode::Native), false);
    }
}

fn holds(options: fn(Options) -> Options, direct: bool) {
    let mut lab = shop();
    (lab.options, lab.direct) = (options, direct);
    let servers: Vec<_> = ["cart-1", "cart-2", "db", "web", "guest"]
        .map(|workload| Servers::start(&lab, workload, &[8080, 9999, 5432], &[5300, 5301]))
        .into();
    // Before: everything is reachable, so that what fails below fails by policy.
    for to in ["cart-1", "cart-2", "db"] {
        for what in [Ask::Tcp(9999), Ask::Udp(5301), Ask::Ping] {
            allowed(&lab, "web", to, what);
        }
    }

    lab.publish().unwrap();
    let before: u64 = servers.iter().map(Servers::seen).sum();
    for to in ["cart-1", "cart-2"] {
        for what in [Ask::Tcp(8080), Ask::Udp(5300), Ask::Ping] {
            allowed(&lab, "web", to, what);
        }
    }
    allowed(&lab, "cart-1", "db", Ask::Tcp(5432));
    allowed(&lab, "cart-2", "db", Ask::Tcp(5432));
    // A service that no policy lists is untouched.
    let after: u64 = servers.iter().map(Servers::seen).sum();
    assert_eq!(after - before, 12, "each allowed probe reached its server once: two families, TCP and UDP");

    for to in ["cart-1", "cart-2"] {
        for what in [Ask::Tcp(9999), Ask::Udp(5301)] {
            denied(&lab, "web", to, what);
        }
        for from in ["guest", "db"] {
            for what in [Ask::Tcp(8080), Ask::Udp(5300), Ask::Ping] {
                denied(&lab, from, to, what);
            }
        }
    }
    for (from, to) in [("web", "db"), ("guest", "db"), ("cart-2", "web"), ("db", "guest")] {
        for what in [Ask::Tcp(5432), Ask::Udp(5300), Ask::Ping] {
            denied(&lab, from, to, what);
        }
    }
    assert_eq!(servers.iter().map(Servers::seen).sum::<u64>(), after, "no denied probe reached a server");

    // Denied at the caller's own wall, and at the wall of who is called: each drop is counted under its reason.
    assert!(lab.packets(0, Some("web"), "egress", "isolated").unwrap() > 0);
    assert!(lab.packets(0, Some("cart-1"), "ingress", "isolated").unwrap() > 0);
    assert!(lab.packets(1, Some("cart-2"), "ingress", "isolated").unwrap() > 0);
    assert_eq!(lab.packets(0, Some("guest"), "egress", "isolated").unwrap(), 0);
}

/// SYNs from another node that policy denies are counted the same, once each, whoever drops them: TC, or XDP, behind which nothing of them is seen.
#[test]
fn denied_syns_are_counted_alike_in_all_modes_of_xdp() {
    if !skip::root() {
        return;
    }
    let [off, generic, native] = [XdpMode::Off, XdpMode::Generic, XdpMode::Native].map(denied_syns);
    assert_eq!(off.0.len(), 1, "{:?}", off.0);
    assert_eq!((off.0[0].packets, off.0[0].flows), (5, 5));
    assert_eq!(off.1, 5, "without XDP they get into the node");
    assert_eq!(generic, (off.0.clone(), 0));
    assert_eq!(native, (off.0, 0));
}

/// What was counted at `db`, and how many of the packets were seen behind XDP.
fn denied_syns(mode: XdpMode) -> (Vec<Reading>, u64) {
    /// Marks the packets, so that captures know them.
    const PORT: u16 = 6666;
    let mut lab = shop();
    lab.options = match mode {
        XdpMode::Off => |options| options.xdp(XdpMode::Off),
        XdpMode::Generic => |options| options.xdp(XdpMode::Generic),
        XdpMode::Native => |options| options.xdp(XdpMode::Native),
    };
    lab.publish().unwrap();
    let (sender, node, outsider) = (lab.topology.node(0), lab.topology.node(1), lab.topology.outsider());
    let (guest, db) = (lab.topology.workload("guest"), lab.topology.workload("db"));
    let inner =
        Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac).ipv4(guest.v4, db.v4).tcp(PORT, 5432, tcp::SYN);
    let frame = Frame::eth(outsider.underlay.link.mac, node.underlay.link.mac)
        .ipv4(sender.underlay.v4, node.underlay.v4)
        .udp(45_000, node.overlay4.port)
        .vxlan(node.overlay4.vni)
        .inner(inner)
        .build();
    let wanted = PORT.to_be_bytes();
    let matches = move |frame: &bulkhead_topology::traffic::Frame| frame.bytes.get(84..86) == Some(&wanted[..]);
    let seen = Capture::start(&node.netns, "eth0", matches).unwrap();
    let link = RawLink::open(&outsider.netns, "eth0").unwrap();
    for _ in 0..5 {
        link.send(&frame).unwrap();
    }
    let start = Instant::now();
    loop {
        let mut counted = lab.counters(1).unwrap();
        counted.retain(|reading| {
            reading.endpoint.as_ref().is_some_and(|endpoint| endpoint.workload == "db") && reading.reason.blocked()
        });
        if counted.iter().any(|reading| reading.packets >= 5) || start.elapsed() > PATIENCE {
            return (counted, seen.stop().unwrap().counts.frames);
        }
    }
}

/// Rule 9: what the workload's own node originates is allowed by default; another node is a stranger.
#[test]
fn the_own_node_reaches_an_isolated_workload_and_no_other_node_does() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    let servers = Servers::start(&lab, "db", &[5432], &[5300]);
    lab.publish().unwrap();
    let db = lab.topology.workload("db").addresses();
    for address in db {
        let probe = |node: usize, deadline| {
            let client = lab.topology.node(node).netns.client().deadline(deadline);
            [
                client.ping(address).unwrap(),
                client.udp((address, 5300).into()).unwrap(),
                client.tcp((address, 5432).into()).unwrap(),
            ]
        };
        assert!(probe(1, PATIENCE).iter().all(|outcome| outcome.is_answered()), "own node to {address}");
        let seen = servers.seen();
        assert!(probe(0, BRIEF).iter().all(|outcome| !outcome.is_answered()), "other node to {address}");
        assert_eq!(servers.seen(), seen);
    }
    // The workload may not call its node back: replies only.
    let gateway = lab.topology.node(1).overlay4.gateway;
    assert!(!ask(&lab, "db", gateway, Ask::Ping, BRIEF).is_answered());
}

/// Fragments of isolated workloads are dropped, whatever they carry; those of others pass.
#[test]
fn fragments_of_isolated_workloads_are_dropped() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    lab.publish().unwrap();
    let cart = lab.topology.workload("cart-1").netns.clone();
    let guest = lab.topology.workload("guest").v4;
    let big = |netns: &bulkhead_topology::Netns, to: std::net::Ipv4Addr| {
        netns.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(&[0; 4000], (to, 5300)).unwrap();
        });
    };
    big(&cart, guest);
    assert!(lab.packets(0, Some("cart-1"), "egress", "fragment").unwrap() >= 3);
    let to = lab.topology.workload("cart-1").v4;
    big(&lab.topology.workload("guest").netns.clone(), to);
    assert!(lab.packets(0, Some("cart-1"), "ingress", "fragment").unwrap() >= 3);
    assert_eq!(lab.packets(0, Some("guest"), "egress", "fragment").unwrap(), 0);
}
