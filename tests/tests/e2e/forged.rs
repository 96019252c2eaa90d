//! Nobody spoofs into the overlay: forged encapsulated packets reach no container, on whatever way they come in.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use bulkhead_dataplane::{
    baseline::Baseline,
    kernel::{KernelNode, Options, XdpMode},
    node::Node as _,
    pins::Pins,
};
use bulkhead_fixtures::{Frame, skip, tcp};
use bulkhead_tests::{Agent, Lab};
use bulkhead_topology::{
    Mac, Node, Topology,
    traffic::{Capture, RawLink, TcpEcho, echo},
};

use crate::probe::{PATIENCE, command_line};

/// Marks forged packets, so that captures know them.
const FORGED: u16 = 6666;
/// Marks genuine ones.
const GENUINE: u16 = 7777;

fn lab() -> Lab {
    let builder = Topology::builder()
        .nodes(3)
        .second_nic()
        .workload("db", 0)
        .workload("web", 1)
        .workload("guest", 0)
        .workload("far", 2);
    let lab = Lab::new(builder).unwrap();
    // `db` takes whatever comes from the cluster: only the boundary stands between it and a forger.
    let policy =
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  db:\n    accepts: [cluster:any]\n";
    lab.policy("shop.yaml", policy).unwrap();
    lab
}

/// A packet for `db` as it would lie in the overlay's frame on its node.
fn inner(lab: &Lab, source: Ipv4Addr, source_port: u16) -> Frame {
    let node = lab.topology.node(0);
    Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac)
        .ipv4(source, lab.topology.workload("db").v4)
        .udp(source_port, 5300)
        .payload(32)
}

struct Outer {
    source_mac: Mac,
    source: Ipv4Addr,
    mac: Mac,
    to: Ipv4Addr,
}

fn encapsulated(outer: &Outer, port: u16, vni: u32, inner: Frame) -> Vec<u8> {
    Frame::eth(outer.source_mac, outer.mac)
        .ipv4(outer.source, outer.to)
        .udp(45_000, port)
        .vxlan(vni)
        .inner(inner)
        .build()
}

/// VXLAN header and inner frame alone, for a UDP socket.
fn tunnelled(vni: u32, inner: &Frame) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(inner.build());
    bytes
}

fn capture(lab: &Lab, port: u16) -> Capture {
    let db = lab.topology.workload("db");
    let wanted = port.to_be_bytes();
    Capture::start(&db.netns, "eth0", move |frame| frame.bytes.get(34..36) == Some(&wanted[..])).unwrap()
}

fn underlay(node: &Node, source_mac: Mac, source: Ipv4Addr) -> Outer {
    Outer { source_mac, source, mac: node.underlay.link.mac, to: node.underlay.v4 }
}

/// The premise: unguarded, the very same packets arrive.
#[test]
fn without_a_guard_forged_packets_arrive() {
    if !skip::root() {
        return;
    }
    let lab = lab();
    let node = lab.topology.node(0);
    let outsider = lab.topology.outsider();
    let web = lab.topology.workload("web").v4;
    let seen = capture(&lab, FORGED);
    let link = RawLink::open(&outsider.netns, "eth0").unwrap();
    let outer = underlay(node, outsider.underlay.link.mac, outsider.underlay.v4);
    link.send(&encapsulated(&outer, node.overlay4.port, node.overlay4.vni, inner(&lab, web, FORGED))).unwrap();
    assert!(seen.wait_for(1, PATIENCE), "a forged packet reaches an unguarded workload");
    // The bridge's address is a node's, and what comes out of one tunnel goes into the next.
    nested(&lab, 1);
    assert!(seen.wait_for(2, PATIENCE), "so does one in a genuine one");
}

/// `web` calls the tunnel of another node through the overlay, by an address that the node has in it, with packets that say they are from `far`.
fn nested(lab: &Lab, count: usize) {
    let node = lab.topology.node(0);
    let message = tunnelled(node.overlay4.vni, &inner(lab, lab.topology.workload("far").v4, FORGED));
    lab.topology.workload("web").netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..count {
            socket.send_to(&message, (node.overlay4.gateway, node.overlay4.port)).unwrap();
        }
    });
}

#[test]
fn forged_packets_reach_nobody_without_xdp() {
    if skip::root() {
        dropped(XdpMode::Off);
    }
}

#[test]
fn forged_packets_reach_nobody_with_generic_xdp() {
    if skip::root() {
        dropped(XdpMode::Generic);
    }
}

#[test]
fn forged_packets_reach_nobody_with_native_xdp() {
    if skip::root() {
        dropped(XdpMode::Native);
    }
}

fn dropped(mode: XdpMode) {
    let mut lab = lab();
    lab.options = match mode {
        XdpMode::Off => |options| options.xdp(XdpMode::Off),
        XdpMode::Generic => |options| options.xdp(XdpMode::Generic),
        XdpMode::Native => |options| options.xdp(XdpMode::Native),
    };
    lab.publish().unwrap();
    let node = lab.topology.node(0).clone();
    let (web, far) = (lab.topology.workload("web").v4, lab.topology.workload("far").v4);
    let known = lab.topology.node(1).underlay.clone();
    let outsider = lab.topology.outsider().clone();
    let (port, vni) = (node.overlay4.port, node.overlay4.vni);
    let (seen, genuine) = (capture(&lab, FORGED), capture(&lab, GENUINE));

    // By the underlay, each kind of forgery with its own reason.
    let link = RawLink::open(&outsider.netns, "eth0").unwrap();
    let stranger = underlay(&node, outsider.underlay.link.mac, outsider.underlay.v4);
    let member = underlay(&node, outsider.underlay.link.mac, known.v4);
    let own = lab.topology.workload("guest").v4;
    for (reason, outer, vni, source) in [
        ("unknown_vtep", &stranger, vni, web),
        ("wrong_vtep", &member, vni, far),
        ("wrong_vtep", &member, vni, own),
        ("wrong_vtep", &member, vni, Ipv4Addr::new(192, 0, 2, 77)),
        ("unknown_vni", &member, vni ^ 1, web),
    ] {
        let before = lab.packets(0, None, "ingress", reason).unwrap();
        for _ in 0..5 {
            link.send(&encapsulated(outer, port, vni, inner(&lab, source, FORGED))).unwrap();
        }
        assert_eq!(lab.packets(0, None, "ingress", reason).unwrap() - before, 5, "{reason}");
    }

    // A plain packet from the underlay with the source of another node's workload.
    let plain = Frame::eth(outsider.underlay.link.mac, node.underlay.link.mac)
        .ipv4(web, lab.topology.workload("db").v4)
        .udp(FORGED, 5300)
        .payload(32)
        .build();
    let before = lab.packets(0, Some("db"), "ingress", "plain_overlay_source").unwrap();
    lab.topology.node(0).netns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0").unwrap();
    lab.topology.node(0).netns.set_sysctl("net/ipv4/conf/all/rp_filter", "0").unwrap();
    link.send(&plain).unwrap();
    assert_eq!(lab.packets(0, Some("db"), "ingress", "plain_overlay_source").unwrap() - before, 1);

    // To a second interface, which no program of ours guards: the input rule keeps it from the socket.
    let rule = |lab: &mut Lab| lab.packets(0, None, "ingress", "unverified").unwrap();
    let before = rule(&mut lab);
    let second = node.second.clone().expect("built with a second NIC");
    let outer = Outer {
        source_mac: outsider.second.as_ref().expect("built with a second NIC").link.mac,
        source: known.v4,
        mac: second.link.mac,
        to: second.v4,
    };
    let second_link = RawLink::open(&outsider.netns, "eth1").unwrap();
    second_link.send(&encapsulated(&outer, port, vni, inner(&lab, web, FORGED))).unwrap();
    // To loopback, by a process of the node.
    let message = tunnelled(vni, &inner(&lab, web, FORGED));
    node.netns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&message, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    });
    assert_eq!(rule(&mut lab) - before, 2, "dropped by the input rule");

    // To the bridge's address and to the node's, from a container that no policy isolates.
    let IpAddr::V4(gateway) = node.overlay4.gateway else { unreachable!("an IPv4 overlay") };
    let before = lab.packets(0, Some("guest"), "egress", "tunnel").unwrap();
    lab.topology.workload("guest").netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for to in [gateway, node.underlay.v4, lab.topology.node(1).underlay.v4] {
            socket.send_to(&message, SocketAddr::from((to, port))).unwrap();
        }
    });
    assert_eq!(lab.packets(0, Some("guest"), "egress", "tunnel").unwrap() - before, 3);

    // Through the overlay, from a workload: its node lets it reach nobody's tunnel, and what came out of a tunnel goes into no other.
    let before = lab.packets(1, Some("web"), "egress", "tunnel").unwrap();
    nested(&lab, 3);
    assert_eq!(lab.packets(1, Some("web"), "egress", "tunnel").unwrap() - before, 3);
    let before = lab.packets(0, None, "ingress", "forwarded_tunnel").unwrap();
    let within = Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac).ipv4(web, gateway).udp(45_000, port);
    let within = within.vxlan(vni).inner(inner(&lab, far, FORGED));
    link.send(&encapsulated(&member, port, vni, within)).unwrap();
    assert_eq!(lab.packets(0, None, "ingress", "forwarded_tunnel").unwrap() - before, 1);

    // Genuine ones come through, and came after all the forged ones.
    link.send(&encapsulated(&member, port, vni, inner(&lab, web, GENUINE))).unwrap();
    assert!(genuine.wait_for(1, PATIENCE), "a genuine packet arrives");
    assert_eq!(seen.stop().unwrap().counts.frames, 0, "no forged packet arrived");
}

/// An agent that starts with another mask of the mark changes programs and input rule. Meanwhile nothing forged gets in, on guarded links and on
/// others, and afterwards what passed before passes again, the same connections included.
#[test]
fn nothing_forged_arrives_while_the_mask_changes() {
    if !skip::root() {
        return;
    }
    let mut lab = lab();
    lab.publish().unwrap();
    let node = lab.topology.node(0).clone();
    let (web, db) = (lab.topology.workload("web").clone(), lab.topology.workload("db").clone());
    let outsider = lab.topology.outsider().clone();
    let (port, vni) = (node.overlay4.port, node.overlay4.vni);
    let server = TcpEcho::start(&db.netns, (db.v4, 5432).into()).unwrap();
    let mut connection = web.client().connect((db.v4, 5432).into()).unwrap();
    assert!(echo(&mut connection, PATIENCE).unwrap().is_answered());
    let forged = inner(&lab, web.v4, FORGED);
    let seen = capture(&lab, FORGED);

    // By a link that is guarded, by one that is not, and from a container that would have its node decapsulate.
    let second = node.second.clone().expect("built with a second NIC");
    let stranger = underlay(&node, outsider.underlay.link.mac, outsider.underlay.v4);
    let unguarded = Outer {
        source_mac: outsider.second.as_ref().expect("built with a second NIC").link.mac,
        source: lab.topology.node(1).underlay.v4,
        mac: second.link.mac,
        to: second.v4,
    };
    let links = [RawLink::open(&outsider.netns, "eth0").unwrap(), RawLink::open(&outsider.netns, "eth1").unwrap()];
    let frames = [&stranger, &unguarded].map(|outer| encapsulated(outer, port, vni, forged.clone()));
    let message = tunnelled(vni, &forged);
    let guest = lab.topology.workload("guest").netns.clone();
    let from_guest = guest.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_u64;
            while !done.load(Ordering::Relaxed) {
                for (link, frame) in links.iter().zip(&frames) {
                    link.send(frame).unwrap();
                }
                // Held links may leave no room for it.
                let _ = from_guest.send_to(&message, SocketAddr::from((node.underlay.v4, port)));
                sent += 1;
            }
            sent
        });
        // The first has the bit that opens the socket where the default has a bit of slots, the second the other way round.
        for (mask, options) in [
            (0x0000_0fff, (|options| options.mark_mask(0x0000_0fff)) as fn(Options) -> Options),
            (0x0fff_0000, |options| options.mark_mask(0x0fff_0000)),
            (0x3f00_0fff, |options| options),
        ] {
            lab.forget(0);
            lab.options = options;
            lab.publish_on(0).unwrap();
            let status = lab.with(0, KernelNode::status).unwrap();
            assert_eq!((status.mark_mask, status.input_rule), (mask, true));
            assert!(echo(&mut connection, PATIENCE).unwrap().is_answered(), "the connection goes on with {mask:#x}");
            assert!(web.client().deadline(PATIENCE).tcp(server.addr()).unwrap().is_answered());
        }
        done.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    assert!(sent > 0);
    assert_eq!(seen.stop().unwrap().counts.frames, 0, "of {sent} forged packets on each way");
}

/// A node that only observes keeps nobody out, and tells of it.
#[test]
fn a_node_that_observes_reports_forged_packets_and_lets_them_in() {
    if !skip::root() {
        return;
    }
    let lab = lab();
    let agent = Agent::start(&lab, 0, &["--observe"]).unwrap();
    let node = lab.topology.node(0).clone();
    let outsider = lab.topology.outsider().clone();
    let web = lab.topology.workload("web").v4;
    let seen = capture(&lab, FORGED);
    let link = RawLink::open(&outsider.netns, "eth0").unwrap();
    let outer = underlay(&node, outsider.underlay.link.mac, outsider.underlay.v4);
    link.send(&encapsulated(&outer, node.overlay4.port, node.overlay4.vni, inner(&lab, web, FORGED))).unwrap();
    assert!(seen.wait_for(1, PATIENCE), "it arrives");
    let counted = |verdict: &str| {
        let verdict = format!(r#"verdict="{verdict}""#);
        agent.metric("bulkhead_underlay_packets_total", &[&verdict, r#"reason="observed""#]).unwrap()
    };
    assert_eq!((counted("allowed"), counted("blocked")), (1.0, 0.0));
    assert_eq!(agent.metric("bulkhead_input_rule", &[]).unwrap(), 1.0, "none is needed");
    let observed = command_line(&lab, 0, &["observe"]);
    assert!(observed.contains("OBSERVED tunnel packet from") && observed.contains("unknown_vtep"), "{observed}");
    let status = command_line(&lab, 0, &["status"]);
    assert!(status.starts_with("OBSERVING"), "{status}");
}

/// A bypass opens the boundary too, where the programs look, and closes it again; the input rule keeps the ways on which none looks.
#[test]
fn a_bypass_lets_forged_packets_in_where_programs_look() {
    if !skip::root() {
        return;
    }
    let mut lab = lab();
    lab.publish_on(0).unwrap();
    lab.forget(0);
    let node = lab.topology.node(0).clone();
    let outsider = lab.topology.outsider().clone();
    let web = lab.topology.workload("web").v4;
    let (seen, aside) = (capture(&lab, FORGED), capture(&lab, FORGED + 1));
    let link = RawLink::open(&outsider.netns, "eth0").unwrap();
    let send = || {
        let outer = underlay(&node, outsider.underlay.link.mac, outsider.underlay.v4);
        link.send(&encapsulated(&outer, node.overlay4.port, node.overlay4.vni, inner(&lab, web, FORGED))).unwrap();
        // No program looks at what the node itself sends by way of loopback.
        let packet = tunnelled(node.overlay4.vni, &inner(&lab, web, FORGED + 1));
        node.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(&packet, SocketAddr::from((node.underlay.v4, node.overlay4.port))).unwrap();
        });
    };
    command_line(&lab, 0, &["bypass", "--for", "1h", "--reason", "test"]);
    send();
    assert!(seen.wait_for(1, PATIENCE), "it arrives");
    command_line(&lab, 0, &["bypass", "--end", "--reason", "test"]);
    send();
    assert_eq!(lab.packets(0, None, "ingress", "unknown_vtep").unwrap(), 1);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(seen.stop().unwrap().counts.frames, 1, "closed again");
    assert_eq!(aside.stop().unwrap().counts.frames, 0, "the input rule stands all the while");
    assert_eq!(lab.packets(0, None, "ingress", "unverified").unwrap(), 2, "by the input rule");
}

/// Genuine and forged segments of one inner TCP flow in one batch. Behind decapsulation they look alike and GRO on the VXLAN device merges
/// them, marks unread: a check there would let the forged half in.
#[test]
fn forged_segments_among_genuine_ones_in_one_batch() {
    if !skip::root() {
        return;
    }
    let mut lab = lab();
    lab.publish().unwrap();
    let node = lab.topology.node(0).clone();
    let web = lab.topology.workload("web").v4;
    let db = lab.topology.workload("db");
    let outsider = lab.topology.outsider().clone();
    let known = lab.topology.node(1).underlay.clone();

    let genuine_mark = *b"genuine!";
    let forged_mark = *b"forged!!";
    let (good, bad) = (genuine_mark, forged_mark);
    let has = |mark: [u8; 8]| {
        move |frame: &bulkhead_topology::traffic::Frame| frame.bytes.windows(8).any(|window| window == mark)
    };
    let genuine = Capture::start(&db.netns, "eth0", has(good)).unwrap();
    let forged = Capture::start(&db.netns, "eth0", has(bad)).unwrap();
    let stranger = underlay(&node, outsider.underlay.link.mac, outsider.underlay.v4);
    let member = underlay(&node, outsider.underlay.link.mac, known.v4);
    let segment = |number: u32, mark: [u8; 8]| {
        Frame::eth([2, 0, 0, 0, 0, 9], node.overlay4.device.mac)
            .ipv4(web, db.v4)
            .tcp(40_000, 5432, tcp::ACK)
            .seq(1000 + number * 88)
            .bytes(&mark.repeat(11))
    };
    let frames: Vec<[u8; 192]> = (0..64)
        .map(|number| {
            let (outer, mark) = if number % 2 == 0 { (&member, good) } else { (&stranger, bad) };
            let frame = encapsulated(outer, node.overlay4.port, node.overlay4.vni, segment(number, mark));
            frame.try_into().expect("all frames have one length")
        })
        .collect();
    let pins = Pins::new(&lab.pins(0));
    let ifindex = node.underlay.link.index;
    node.netns.run(|| Baseline::load(&pins).unwrap().replay(&frames, ifindex).unwrap());
    assert!(genuine.wait_for(1, PATIENCE), "genuine segments arrive");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(lab.packets(0, None, "ingress", "unknown_vtep").unwrap(), 32);
    let segments: u64 = genuine
        .stop()
        .unwrap()
        .frames
        .iter()
        .map(|frame| (frame.bytes.windows(8).filter(|window| *window == good).count() / 11) as u64)
        .sum();
    assert_eq!(segments, 32, "every genuine segment arrived");
    assert_eq!(forged.stop().unwrap().counts.frames, 0, "no forged segment arrived, merged or alone");
}
