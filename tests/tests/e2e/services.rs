//! Addresses of services, which the node translates: the policy holds for who answers in the end, on whatever way a call takes.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use bulkhead_dataplane::kernel::{Options, XdpMode};
use bulkhead_fixtures::{Frame, skip};
use bulkhead_tests::{Lab, Service};
use bulkhead_topology::{
    Netns, Topology,
    traffic::{Capture, Outcome, RawLink},
};

use crate::{
    established::{alive, cut},
    probe::{Ask, BRIEF, PATIENCE, Servers, ask},
};

/// `guest` is in no policy.
const POLICY: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
dns: cluster
services:
  web:
    calls: [cart:8080]
  cart:
    calls: [db:5432]
  db: {}
---
apiVersion: bulkhead/v1
kind: Intent
namespace: kube-system
services:
  dns: {}
";

/// Runs a test without XDP, with generic XDP and another mask of the mark, and where nodes forward directly.
fn each_mode(test: fn(Lab)) {
    if !skip::root() {
        return;
    }
    let off: fn(Options) -> Options = |options| options.xdp(XdpMode::Off);
    let other: fn(Options) -> Options = |options| options.xdp(XdpMode::Generic).mark_mask(0x0fff_0000);
    for (options, direct) in [(off, false), (other, false), (other, true)] {
        let mut lab = lab();
        (lab.options, lab.direct) = (options, direct);
        test(lab);
    }
}

pub(crate) fn lab() -> Lab {
    let builder = Topology::builder()
        .nodes(2)
        .workload("web", 0)
        .workload("cart-1", 0)
        .workload("cart-2", 1)
        .workload("db", 1)
        .workload("guest", 0)
        .workload("dns-1", 0)
        .workload("dns-2", 1);
    let mut lab = Lab::new(builder).unwrap();
    for dns in ["dns-1", "dns-2"] {
        lab.roles.get_mut(dns).unwrap().namespace = "kube-system".into();
    }
    let chosen = |service: Service, chosen: &str| Service { chosen: Some(chosen.into()), ..service };
    let node_port = |service: Service, port| Service { node_port: Some(port), ..service };
    let dns = Service {
        namespace: "kube-system".into(),
        protocol: "udp",
        port: 53,
        target: 53,
        ..Service::new("dns", 53, &["dns-1", "dns-2"])
    };
    lab.resolvers = dns.addresses.to_vec();
    lab.services = vec![
        node_port(Service::new("near", 10, &["cart-1"]), 30080),
        node_port(Service::new("far", 11, &["cart-2"]), 30081),
        Service::new("both", 12, &["cart-1", "cart-2"]),
        node_port(Service { target: 5432, ..Service::new("store", 13, &["db"]) }, 30082),
        // Who calls these may call one of the backends, and the node chooses the other one.
        chosen(Service::new("mixed-far", 14, &["cart-1", "db"]), "db"),
        chosen(Service::new("mixed-near", 15, &["cart-2", "guest"]), "guest"),
        dns,
    ];
    lab.write_workloads().unwrap();
    lab.policy("shop.yaml", POLICY).unwrap();
    lab.proxy().unwrap();
    lab
}

pub(crate) fn servers(lab: &Lab) -> Vec<Servers> {
    ["cart-1", "cart-2", "db", "guest"]
        .map(|workload| Servers::start(lab, workload, &[8080, 5432], &[]))
        .into_iter()
        .chain(["dns-1", "dns-2"].map(|workload| Servers::start(lab, workload, &[], &[53])))
        .collect()
}

fn seen(servers: &[Servers]) -> u64 {
    servers.iter().map(Servers::seen).sum()
}

pub(crate) fn addresses(lab: &Lab, service: &str) -> [IpAddr; 2] {
    lab.services.iter().find(|found| found.name == service).unwrap().addresses
}

#[track_caller]
pub(crate) fn reaches(lab: &Lab, from: &str, service: &str, what: Ask) {
    for address in addresses(lab, service) {
        assert_eq!(ask(lab, from, address, what, PATIENCE), Outcome::Answered, "{from} -> {service} ({address})");
    }
}

#[track_caller]
pub(crate) fn misses(lab: &Lab, from: &str, service: &str) {
    for address in addresses(lab, service) {
        assert_eq!(ask(lab, from, address, Ask::Tcp(80), BRIEF), Outcome::TimedOut, "{from} -> {service} ({address})");
    }
}

/// Outcomes at a port of a node's underlay addresses.
fn at_node(lab: &Lab, from: &Netns, node: usize, port: u16, deadline: std::time::Duration) -> [Outcome; 2] {
    let underlay = &lab.topology.node(node).underlay;
    [underlay.v4.into(), underlay.v6.into()]
        .map(|address: IpAddr| from.client().deadline(deadline).tcp((address, port).into()).unwrap())
}

#[test]
fn a_service_address_leads_where_policy_lets() {
    each_mode(|mut lab| {
        let servers = servers(&lab);
        // Before: everything is reachable, so that what fails below fails by policy.
        for from in ["web", "guest"] {
            for service in ["near", "far", "both", "store", "mixed-far", "mixed-near"] {
                reaches(&lab, from, service, Ask::Tcp(80));
            }
        }
        lab.publish().unwrap();
        for service in ["near", "far", "both", "both", "both"] {
            reaches(&lab, "web", service, Ask::Tcp(80));
        }
        reaches(&lab, "cart-1", "store", Ask::Tcp(80));
        reaches(&lab, "cart-2", "store", Ask::Tcp(80));
        assert_eq!(lab.packets(0, Some("web"), "egress", "isolated").unwrap(), 0);

        let before = seen(&servers);
        // The caller's wall: at once where no backend is allowed, after translation where another one is.
        let mut counted = 0;
        for service in ["store", "mixed-far", "mixed-near"] {
            misses(&lab, "web", service);
            let now = lab.packets(0, Some("web"), "egress", "isolated").unwrap();
            assert!(now > counted, "web -> {service} is counted at web");
            counted = now;
        }
        // The callee's wall.
        misses(&lab, "guest", "near");
        misses(&lab, "guest", "far");
        misses(&lab, "guest", "store");
        for (node, callee) in [(0, "cart-1"), (1, "cart-2"), (1, "db")] {
            assert!(lab.packets(node, Some(callee), "ingress", "isolated").unwrap() > 0, "counted at {callee}");
        }
        assert_eq!(lab.packets(0, Some("guest"), "egress", "isolated").unwrap(), 0);
        assert_eq!(seen(&servers), before, "no denied call reached a server");
    });
}

#[test]
fn names_are_resolved_by_a_service_address() {
    each_mode(|mut lab| {
        let _servers = servers(&lab);
        lab.publish().unwrap();
        for _ in 0..3 {
            reaches(&lab, "web", "dns", Ask::Udp(53));
            reaches(&lab, "db", "dns", Ask::Udp(53));
        }
        // The resolvers' walls are open to those that ask for `dns`, and to nobody else.
        for address in addresses(&lab, "dns") {
            assert_eq!(ask(&lab, "guest", address, Ask::Udp(53), BRIEF), Outcome::TimedOut);
        }
    });
}

#[test]
fn a_workload_reaches_itself_by_its_service() {
    each_mode(|mut lab| {
        let servers = servers(&lab);
        lab.publish().unwrap();
        let before = seen(&servers);
        reaches(&lab, "cart-1", "near", Ask::Tcp(80));
        reaches(&lab, "cart-2", "far", Ask::Tcp(80));
        assert_eq!(seen(&servers) - before, 4);
        assert!(lab.packets(0, Some("cart-1"), "ingress", "itself").unwrap() > 0);
        // Its replica is somebody else.
        misses(&lab, "cart-1", "far");
    });
}

#[test]
fn who_comes_by_a_node_port_is_the_world_and_not_the_node() {
    each_mode(|mut lab| {
        let servers = servers(&lab);
        let outsider = lab.topology.outsider().netns.clone();
        for port in [30080, 30081] {
            assert_eq!(at_node(&lab, &outsider, 0, port, PATIENCE), [Outcome::Answered; 2], "before, {port}");
        }
        lab.publish().unwrap();
        let before = seen(&servers);
        for (port, node, cart) in [(30080, 0, "cart-1"), (30081, 1, "cart-2")] {
            assert_eq!(at_node(&lab, &outsider, 0, port, BRIEF), [Outcome::TimedOut; 2], "{port}");
            assert!(lab.packets(node, Some(cart), "ingress", "isolated").unwrap() > 0, "counted at {cart}");
        }
        assert_eq!(seen(&servers), before);
        // What the node itself begins passes, with the very addresses that it masquerades others with.
        for address in lab.topology.workload("cart-1").addresses() {
            let client = lab.topology.node(0).netns.client().deadline(PATIENCE);
            assert_eq!(client.tcp((address, 8080).into()).unwrap(), Outcome::Answered, "own node to {address}");
        }
        lab.policy("shop.yaml", &POLICY.replace("calls: [db:5432]", "calls: [db:5432]\n    accepts: [world:8080]"))
            .unwrap();
        lab.publish().unwrap();
        for node in [0, 1] {
            for port in [30080, 30081] {
                assert_eq!(at_node(&lab, &outsider, node, port, PATIENCE), [Outcome::Answered; 2], "{node}, {port}");
            }
        }
        assert_eq!(at_node(&lab, &outsider, 0, 30082, BRIEF), [Outcome::TimedOut; 2], "db is not for the world");
    });
}

#[test]
fn a_node_port_is_no_way_around_an_egress_policy() {
    each_mode(|mut lab| {
        let servers = servers(&lab);
        // Whatever a rule says of nodes, and whoever may come to `db`.
        let policy = POLICY
            .replace("calls: [cart:8080]", "calls: [cart:8080, nodes:any]")
            .replace("  db: {}", "  db:\n    accepts: [world:any]");
        lab.policy("shop.yaml", &policy.replace("calls: [db:5432]", "accepts: [world:8080]")).unwrap();
        let web = lab.topology.workload("web").netns.clone();
        for node in [0, 1] {
            assert_eq!(at_node(&lab, &web, node, 30082, PATIENCE), [Outcome::Answered; 2], "before, node {node}");
        }
        lab.publish().unwrap();
        let before = seen(&servers);
        for node in [0, 1] {
            let counted = lab.packets(0, Some("web"), "egress", "isolated").unwrap();
            assert_eq!(at_node(&lab, &web, node, 30082, BRIEF), [Outcome::TimedOut; 2], "node {node}");
            assert!(lab.packets(0, Some("web"), "egress", "isolated").unwrap() > counted, "node {node}");
        }
        for gateway in lab.topology.node(0).overlays().map(|overlay| overlay.gateway) {
            assert_eq!(ask(&lab, "web", gateway, Ask::Tcp(30082), BRIEF), Outcome::TimedOut, "{gateway}");
        }
        assert_eq!(seen(&servers), before);
        // Whom it may call it reaches so, too.
        for node in [0, 1] {
            for port in [30080, 30081] {
                assert_eq!(at_node(&lab, &web, node, port, PATIENCE), [Outcome::Answered; 2], "node {node}, {port}");
            }
        }
    });
}

/// A backend that is a tunnel port would make the node encapsulate, or decapsulate, what a workload wrote: with the node's own address.
#[test]
fn a_service_does_not_lead_into_a_tunnel() {
    const BEFORE: u16 = 6665;
    const AFTER: u16 = 6666;
    const GENUINE: u16 = 7777;
    each_mode(|mut lab| {
        // `cart` takes whatever comes from the cluster.
        lab.policy("shop.yaml", &POLICY.replace("calls: [db:5432]", "accepts: [cluster:any]")).unwrap();
        let port = lab.topology.node(0).overlay4.port;
        for (number, node, listed) in [(20, 0, true), (21, 1, true), (22, 0, false), (23, 1, false)] {
            let outside = vec![lab.topology.node(node).underlay.v4.into()];
            let service = Service::new(&format!("tunnel-{number}"), number, &[]);
            lab.services.push(Service { protocol: "udp", port: 9, target: port, outside, listed, ..service });
        }
        lab.write_workloads().unwrap();
        lab.proxy().unwrap();
        let guest = lab.topology.workload("guest").clone();
        let (cart_1, cart_2) = (lab.topology.workload("cart-1").v4, lab.topology.workload("cart-2").v4);
        let captures = |port: u16| {
            ["cart-1", "cart-2"].map(|cart| {
                let wanted = port.to_be_bytes();
                let netns = &lab.topology.workload(cart).netns;
                Capture::start(netns, "eth0", move |frame| frame.bytes.get(34..36) == Some(&wanted[..])).unwrap()
            })
        };
        let send = |lab: &Lab, source_port: u16| {
            for number in 20..24 {
                let node = lab.topology.node(number % 2);
                // To its own node as from the other one, to the other one as what its own node may send there.
                let (from, to) = if number % 2 == 0 { (cart_2, cart_1) } else { (guest.v4, cart_2) };
                let inner = Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac).ipv4(from, to);
                let mut bytes = vec![8, 0, 0, 0];
                bytes.extend((node.overlay4.vni << 8).to_be_bytes());
                bytes.extend(inner.udp(source_port, 5300).payload(32).build());
                guest.netns.run(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let address = [10, 96, 0, u8::try_from(number).unwrap()];
                    socket.send_to(&bytes, SocketAddr::from((address, 9))).unwrap();
                });
            }
        };
        let before = captures(BEFORE);
        send(&lab, BEFORE);
        assert!(before.iter().all(|capture| capture.wait_for(2, PATIENCE)), "unguarded they arrive");

        let [after, genuine] = [captures(AFTER), captures(GENUINE)];
        lab.publish().unwrap();
        send(&lab, AFTER);
        assert_eq!(lab.packets(0, Some("guest"), "egress", "tunnel").unwrap(), 2, "by services that are known");
        assert_eq!(lab.packets(0, None, "ingress", "unverified").unwrap(), 1, "at the node's own socket");
        assert_eq!(lab.packets(0, None, "egress", "forwarded_tunnel").unwrap(), 1, "on the way to the other node");
        // What a node encapsulates for its workload comes through, and came after the others.
        let node = lab.topology.node(0);
        let link = RawLink::open(&guest.netns, "eth0").unwrap();
        for (mac, to) in [(lab.topology.workload("cart-1").eth0.mac, cart_1), (node.bridge.mac, cart_2)] {
            let frame = Frame::eth(guest.eth0.mac, mac).ipv4(guest.v4, to).udp(GENUINE, 5300).payload(32);
            link.send(&frame.build()).unwrap();
        }
        assert!(genuine.iter().all(|capture| capture.wait_for(1, PATIENCE)), "genuine packets arrive");
        for capture in after {
            assert_eq!(capture.stop().unwrap().counts.frames, 0, "no forged packet arrived");
        }
    });
}

#[test]
fn a_revoked_rule_cuts_what_was_begun_by_a_service_address() {
    each_mode(|mut lab| {
        let _servers = servers(&lab);
        lab.publish().unwrap();
        let web = lab.topology.workload("web").clone();
        let to: Vec<_> = ["near", "far"].into_iter().flat_map(|service| addresses(&lab, service)).collect();
        let mut streams: Vec<_> =
            to.iter().map(|&to| web.client().deadline(PATIENCE).connect((to, 80).into()).unwrap()).collect();
        alive(&mut streams);
        lab.policy("shop.yaml", &POLICY.replace("db:5432", "db:5433")).unwrap();
        lab.publish().unwrap();
        alive(&mut streams);
        lab.policy("shop.yaml", &POLICY.replace("cart:8080", "cart:8081")).unwrap();
        lab.publish().unwrap();
        cut(&mut streams);
    });
}

/// Another backend may still be called, so that only the verdict after translation can know; and the walls of those who answer only report.
#[test]
fn a_revoked_rule_about_the_chosen_backend_cuts() {
    const AUDITED: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:8080, db:8080, guest:8080]
  cart: {}
  db:
    isolate: audit
  guest:
    isolate: audit
";
    each_mode(|mut lab| {
        let _servers = servers(&lab);
        lab.policy("shop.yaml", AUDITED).unwrap();
        lab.publish().unwrap();
        let web = lab.topology.workload("web").clone();
        let to: Vec<_> = ["mixed-far", "mixed-near"].into_iter().flat_map(|service| addresses(&lab, service)).collect();
        let connect = |to: &IpAddr| web.client().deadline(PATIENCE).connect((*to, 80).into()).unwrap();
        let mut streams: Vec<_> = to.iter().map(connect).collect();
        alive(&mut streams);
        lab.policy("shop.yaml", &AUDITED.replace(", db:8080, guest:8080", "")).unwrap();
        lab.publish().unwrap();
        assert_eq!(lab.packets(0, Some("web"), "egress", "isolated").unwrap(), 0);
        cut(&mut streams);
        assert!(lab.packets(0, Some("web"), "egress", "isolated").unwrap() >= 4, "counted at the caller");
    });
}
