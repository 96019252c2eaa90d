//! The agent dies and nothing changes.

use std::{thread, time::Duration};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};
use bulkhead_topology::{
    Topology,
    traffic::{Capture, NumberedReceiver, NumberedSender, Outcome, Stream, TcpEcho, echo},
};

use crate::probe::PATIENCE;

/// Datagrams of each of the four streams: a million in all.
const DATAGRAMS: u64 = 250_000;
/// Datagrams a second of each stream.
const RATE: u32 = 8_000;
const KILLS: usize = 20;

const POLICY: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:5300/udp, cart:8080]
  cart: {}
";

/// Every allowed packet arrives, no denied one does, and counters equal what captures at both ends saw, over twenty deaths of the agent. A run in which
/// the machine itself lost packets (socket buffers, captures) says nothing and is repeated.
#[test]
fn a_million_packets_over_twenty_kills() {
    if !skip::root() {
        return;
    }
    for attempt in 1..=3 {
        match run() {
            Ok(()) => return,
            Err(loss) => eprintln!("attempt {attempt} is repeated: {loss}"),
        }
    }
    panic!("the machine lost packets in three runs");
}

fn run() -> Result<(), String> {
    let lab =
        Lab::new(Topology::builder().nodes(2).workload("web", 0).workload("cart-1", 0).workload("cart-2", 1)).unwrap();
    lab.policy("shop.yaml", POLICY).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Some(Agent::start(&lab, node, &[]).unwrap())).collect();

    let web = lab.topology.workload("web");
    let carts = ["cart-1", "cart-2"].map(|cart| lab.topology.workload(cart));
    let [allowed, denied] = [5300, 5301]
        .map(|port| carts.map(|cart| NumberedReceiver::start(&cart.netns, (cart.v4, port).into()).unwrap()));
    let to_port = |port: u16| {
        move |frame: &bulkhead_topology::traffic::Frame| {
            frame.bytes.get(23) == Some(&17) && frame.bytes.get(36..38) == Some(&port.to_be_bytes()[..])
        }
    };
    let sent = [5300, 5301].map(|port| Capture::count(&web.netns, "eth0", to_port(port)).unwrap());
    let arrived = carts.map(|cart| Capture::count(&cart.netns, "eth0", to_port(5300)).unwrap());
    let streams = |port: u16| {
        carts.map(|cart| {
            NumberedSender::start(&web.netns, Stream::new((cart.v4, port).into(), RATE).limit(DATAGRAMS)).unwrap()
        })
    };
    let server = TcpEcho::start(&carts[1].netns, (carts[1].v4, 8080).into()).unwrap();
    let mut live = web.client().deadline(PATIENCE).connect(server.addr()).unwrap();

    let (good, bad) = (streams(5300), streams(5301));
    let ids = good.each_ref().map(NumberedSender::id);
    let bad_ids = bad.each_ref().map(NumberedSender::id);
    for round in 0..KILLS {
        let node = round % 2;
        agents[node].take().unwrap().kill().unwrap();
        assert_eq!(echo(&mut live, PATIENCE).unwrap(), Outcome::Answered, "the connection lives without an agent");
        thread::sleep(Duration::from_millis(200));
        agents[node] = Some(Agent::start(&lab, node, &[]).unwrap());
        assert_eq!(echo(&mut live, PATIENCE).unwrap(), Outcome::Answered, "the connection lives with a new agent");
    }
    let good_sent: Vec<u64> = good.into_iter().map(|sender| sender.finish().unwrap()).collect();
    let bad_sent: Vec<u64> = bad.into_iter().map(|sender| sender.finish().unwrap()).collect();
    assert!(good_sent.iter().chain(&bad_sent).sum::<u64>() >= 4 * DATAGRAMS);
    thread::sleep(Duration::from_millis(300));

    for (receiver, id) in denied.iter().zip(bad_ids) {
        assert_eq!(receiver.received(id).datagrams, 0, "no denied datagram arrives");
    }
    for (cart, receiver) in carts.iter().zip(&allowed) {
        let errors = cart.netns.udp_buffer_errors().unwrap();
        if errors > 0 {
            return Err(format!("{errors} datagrams did not fit the socket of {}", cart.name));
        }
        let lost = receiver.foreign();
        assert_eq!(lost, 0, "nobody else sends there");
    }
    for ((receiver, id), sent) in allowed.iter().zip(ids).zip(&good_sent) {
        assert_eq!(receiver.received(id).missing(*sent), [], "every allowed datagram arrives");
    }

    let [sent_good, sent_bad] = sent.map(|capture| capture.stop().unwrap());
    let arrived = arrived.map(|capture| capture.stop().unwrap());
    let captures = [&sent_good, &sent_bad, &arrived[0], &arrived[1]];
    if let Some(lost) = captures.iter().map(|captured| captured.lost).find(|lost| *lost > 0) {
        return Err(format!("a capture lost {lost} frames"));
    }
    let metric = |node: usize, labels: &[&str]| {
        agents[node].as_ref().unwrap().metric("bulkhead_packets_total", labels).unwrap() as u64
    };
    let udp_rule = |direction: &'static str| [r#"reason="rule""#, direction, "5300/udp"];
    let [from_web] = [udp_rule(r#"direction="egress""#)];
    assert_eq!(metric(0, &[&from_web[..], &[r#"workload="web""#]].concat()), sent_good.counts.segments, "web sent");
    assert_eq!(
        metric(0, &[r#"workload="web""#, r#"direction="egress""#, r#"reason="isolated""#]),
        sent_bad.counts.segments,
        "web was denied"
    );
    for (node, (cart, arrived)) in carts.iter().zip(&arrived).enumerate() {
        let workload = format!(r#"workload="{}""#, cart.name);
        let labels = udp_rule(r#"direction="ingress""#);
        assert_eq!(
            metric(node, &[&labels[..], &[workload.as_str()]].concat()),
            arrived.counts.segments,
            "{} got",
            cart.name
        );
    }
    Ok(())
}
