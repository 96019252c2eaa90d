//! Direct forwarding: what the node has on the way between two workloads does not see their packets, all or none of a connection; verdicts are the same.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use bulkhead_dataplane::{
    kernel::{KernelNode, KernelStore},
    load::Maps,
    node::Node as _,
    pins::Pins,
    store::{self, Store as _},
};
use bulkhead_ebpf::abi::node;
use bulkhead_fixtures::skip;
use bulkhead_tests::Lab;
use bulkhead_topology::traffic::{Outcome, fresh_port};
use socket2::{Domain, Socket, Type};

use crate::{
    established::{alive, connections, revokes},
    policy::shop,
    probe::{Ask, BRIEF, PATIENCE, Servers, allowed, ask, denied},
    services,
};

/// Nothing that the node forwards reaches the port of `cart`.
const WALL: &str = "
table inet wall {
    chain forward {
        type filter hook forward priority -10
        tcp dport 8080 drop
    }
}
";

/// As kube-proxy has it, and counted.
const INVALID: &str = "
table inet invalid {
    chain forward {
        type filter hook forward priority 0
        ct state invalid counter drop
    }
}
";

fn everywhere(lab: &Lab, script: &str) {
    (0..2).for_each(|node| lab.nft(node, script).unwrap());
}

/// Packets that the node took for parts of no connection.
fn invalid(lab: &Lab, node: usize) -> u64 {
    let listed = lab.topology.node(node).netns.command("nft").args(["list", "table", "inet", "invalid"]).output();
    let text = String::from_utf8(listed.unwrap().stdout).unwrap();
    let counted = text.split("packets ").nth(1).unwrap_or_else(|| panic!("{text}"));
    counted.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_node_does_not_see_what_is_forwarded_directly() {
    if !skip::root() {
        return;
    }
    let mut lab = services::lab();
    let _servers = services::servers(&lab);
    let carts = ["cart-1", "cart-2"];
    let each = |lab: &Lab, judge: fn(&Lab, &str, &str, Ask)| {
        carts.iter().for_each(|cart| judge(lab, "web", cart, Ask::Tcp(8080)));
    };
    lab.publish().unwrap();
    each(&lab, allowed);
    everywhere(&lab, WALL);
    each(&lab, denied);

    lab.direct = true;
    lab.publish().unwrap();
    each(&lab, allowed);
    // What the node translates it has to see, there and back.
    for service in ["near", "far"] {
        services::misses(&lab, "web", service);
    }
    everywhere(&lab, "delete table inet wall");
    for service in ["near", "far", "both", "both", "both"] {
        services::reaches(&lab, "web", service, Ask::Tcp(80));
    }
    // And so it is told: calls to a pod's own port, calls to a service.
    let flows = lab.with(0, |node| node.observer()?.flows()).unwrap();
    let told = |port| flows.iter().filter(move |flow| &*flow.endpoint.workload == "web" && flow.remote_port == port);
    assert!(told(8080).any(|flow| flow.direct), "{flows:#?}");
    assert!(told(80).count() > 0 && !told(80).any(|flow| flow.direct), "{flows:#?}");

    everywhere(&lab, WALL);
    lab.direct = false;
    lab.publish().unwrap();
    each(&lab, denied);
}

/// The same ports again, now by the address of a service: what stands in the tables of the call before says nothing about this one, and the other way round.
#[test]
fn a_port_is_used_again_for_a_service() {
    if !skip::root() {
        return;
    }
    let mut lab = services::lab();
    let _servers = services::servers(&lab);
    lab.direct = true;
    lab.publish().unwrap();
    let web = lab.topology.workload("web");
    let from = |port| web.client().deadline(PATIENCE).source_port(port);
    let mut port = fresh_port();
    for (backends, service, target, stream) in [
        (["cart-1"].as_slice(), "near", 8080, true),
        (&["cart-2"], "far", 8080, true),
        (&["dns-1", "dns-2"], "dns", 53, false),
    ] {
        for (family, service) in services::addresses(&lab, service).into_iter().enumerate() {
            for service_first in [false, true, false, true] {
                // One that is not used twice for the same address: a connection may linger.
                port += 1;
                let by_service = (service, if stream { 80 } else { 53 }).into();
                let direct =
                    backends.iter().map(|backend| (lab.topology.workload(backend).addresses()[family], target));
                let direct: Vec<SocketAddr> = direct.map(Into::into).collect();
                let mut calls = [&direct[..], &[by_service]];
                if service_first {
                    calls.reverse();
                }
                for to in calls.concat() {
                    let outcome = if stream { from(port).tcp(to) } else { from(port).udp(to) };
                    assert_eq!(outcome.unwrap(), Outcome::Answered, "{port} -> {to}");
                }
            }
        }
    }
}

#[test]
fn the_node_sees_all_of_a_connection_or_nothing() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    let carts = ["cart-1", "cart-2"];
    let _servers = carts.map(|cart| Servers::start(&lab, cart, &[8080], &[]));
    everywhere(&lab, INVALID);
    lab.publish().unwrap();
    let mut old = connections(&lab);
    alive(&mut old);

    lab.direct = true;
    lab.publish().unwrap();
    alive(&mut old);
    let mut new = connections(&lab);
    alive(&mut new);
    for cart in carts {
        allowed(&lab, "web", cart, Ask::Ping);
        for address in lab.topology.workload(cart).addresses() {
            // Errors go the same way as what they are about.
            assert_eq!(ask(&lab, "web", address, Ask::Udp(5300), PATIENCE), Outcome::Refused, "{address}");
        }
    }
    // Ends of connections, too: nothing is left to be said when both ends are done.
    for mut stream in connections(&lab) {
        stream.shutdown(Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    alive(&mut old);
    assert_eq!([invalid(&lab, 0), invalid(&lab, 1)], [0, 0]);

    // And where it ends: the node takes up what it has not seen so far.
    lab.direct = false;
    lab.publish().unwrap();
    alive(&mut old);
    alive(&mut new);
    lab.direct = true;
    lab.publish().unwrap();
    alive(&mut old);
    alive(&mut new);
    assert_eq!([invalid(&lab, 0), invalid(&lab, 1)], [0, 0]);
}

#[test]
fn a_revoked_rule_cuts_what_is_forwarded_directly() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    lab.direct = true;
    revokes(lab, |lab| everywhere(lab, WALL));
}

/// As on a node with more overlays than have room.
#[test]
fn where_there_is_no_direct_way_the_node_sees_to_the_whole_connection() {
    if !skip::root() {
        return;
    }
    for (node, end) in [(0, "web"), (1, "cart-2")] {
        let mut lab = shop();
        lab.direct = true;
        let _servers = Servers::start(&lab, "cart-2", &[8080], &[]);
        everywhere(&lab, INVALID);
        lab.publish().unwrap();
        let links: Vec<_> = (node::OVERLAY_LINK..node::COUNT).map(|word| (word, 0)).collect();
        KernelStore::new(Maps::open(&Pins::new(&lab.pins(node))).unwrap()).unwrap().put::<store::Node>(&links).unwrap();
        alive(&mut far(&lab));
        assert_eq!([invalid(&lab, 0), invalid(&lab, 1)], [0, 0], "{end}");
        everywhere(&lab, WALL);
        denied(&lab, "web", "cart-2", Ask::Tcp(8080));
    }
}

/// What the tables say of a link's bridge follows the link, which stays the same one.
#[test]
fn bridges_that_do_not_meet_stay_apart_also_when_a_link_moves() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    lab.direct = true;
    let _servers = Servers::start(&lab, "cart-1", &[8080], &[]);
    lab.publish().unwrap();
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    let ip = |lab: &Lab, arguments: &str| {
        let mut ip = lab.topology.node(0).netns.command("ip");
        assert!(ip.args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
    };
    ip(&lab, "link add apart up type bridge");
    let (link, home) = (lab.topology.workload("cart-1").link.name.clone(), lab.topology.node(0).bridge.name.clone());
    let moves = [("apart", denied as fn(&Lab, &str, &str, Ask)), (&home, allowed)];
    for (to, judge) in moves.map(|(bridge, judge)| (format!("link set {link} master {bridge}"), judge)) {
        ip(&lab, &to);
        // So that an agent does not wait for another reason to publish.
        let moved = |lab: &mut Lab| lab.with(0, KernelNode::discover).unwrap().moved;
        assert_eq!(moved(&mut lab), [link.clone()].into());
        lab.publish().unwrap();
        assert_eq!(moved(&mut lab), [].into());
        judge(&lab, "web", "cart-1", Ask::Tcp(8080));
    }
}

/// Connections across nodes, in both families.
fn far(lab: &Lab) -> Vec<TcpStream> {
    let client = lab.topology.workload("web").client().deadline(PATIENCE);
    let to = lab.topology.workload("cart-2").addresses().map(|address| (address, 8080).into());
    to.map(|to| client.connect(to).unwrap()).into()
}

/// Routers on the way count: the node of the caller, and that of who is called.
#[test]
fn hops_are_counted_as_the_node_counts_them() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    let _servers = ["cart-1", "cart-2"].map(|cart| Servers::start(&lab, cart, &[8080], &[]));
    for direct in [false, true] {
        lab.direct = direct;
        lab.publish().unwrap();
        for (cart, hops) in [("cart-1", 1), ("cart-2", 3)] {
            for address in lab.topology.workload(cart).addresses() {
                assert!(reaches_in(&lab, address, hops), "{cart} ({address}) is {hops} hops away; direct: {direct}");
                if hops > 1 {
                    assert!(!reaches_in(&lab, address, hops - 1), "{cart} ({address}): {hops}; direct: {direct}");
                }
            }
        }
    }
}

fn reaches_in(lab: &Lab, address: IpAddr, hops: u32) -> bool {
    let to: SocketAddr = (address, 8080).into();
    lab.topology.workload("web").netns.run(move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        if to.is_ipv4() {
            socket.set_ttl_v4(hops).unwrap();
        } else {
            socket.set_unicast_hops_v6(hops).unwrap();
        }
        let patience = if hops == 2 { BRIEF } else { PATIENCE };
        socket.connect_timeout(&to.into(), patience).is_ok()
    })
}

/// Segments that the kernel merges into packets of 64 KiB, and what they add up to.
#[test]
fn much_data_comes_through_whole() {
    const BYTES: usize = 8 << 20;
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    lab.direct = true;
    let _servers = ["cart-1", "cart-2"].map(|cart| Servers::start(&lab, cart, &[8080], &[]));
    lab.publish().unwrap();
    everywhere(&lab, WALL);
    for mut stream in connections(&lab) {
        let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut back = stream.try_clone().unwrap();
        let mut got = vec![0; BYTES];
        thread::scope(|scope| {
            scope.spawn(|| send(&mut stream, &sent));
            back.read_exact(&mut got).unwrap();
        });
        assert!(got == sent, "{}", back.peer_addr().unwrap());
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}
