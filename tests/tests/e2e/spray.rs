//! A workload that begins more flows than its table holds pushes out its own, and nobody else's.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use bulkhead_fixtures::skip;
use bulkhead_tests::Lab;
use bulkhead_topology::{Topology, Workload, cpu};

use crate::probe::{BRIEF, PATIENCE};

const POLICY: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:8080, sink:any]
  other:
    calls: [cart:8080]
  cart: {}
  sink: {}
";

/// Flows that a table holds.
const TABLE: u32 = 1024;
/// Flows that each CPU begins.
const SPRAYED: u16 = 5_000;

/// A connection and what the server has of it: it speaks first, so that only a flow lets its words in.
fn connection(client: &Workload, server: &Workload) -> (TcpStream, TcpStream) {
    let listener = server.netns.run(|| TcpListener::bind((server.v4, 8080))).unwrap();
    let near = client.client().deadline(PATIENCE).connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn hears(pair: &mut (TcpStream, TcpStream), deadline: Duration) -> bool {
    pair.1.write_all(b"news").unwrap();
    pair.0.set_read_timeout(Some(deadline)).unwrap();
    pair.0.read_exact(&mut [0; 4]).is_ok()
}

/// Sends two packets each by many flows, from every CPU: what a CPU has inserted lately waits in a list of its own, out of reach of the others,
/// until the same CPU inserts more.
fn spray(from: &Workload, to: &Workload) -> u64 {
    let sent = cpu::allowed().unwrap().into_iter().map(|cpu| {
        from.netns.run(|| {
            cpu::stay_on(cpu).unwrap();
            let socket = UdpSocket::bind((from.v4, 0)).unwrap();
            for port in 1..=SPRAYED {
                for _ in 0..2 {
                    socket.send_to(b"spray", (to.v4, port)).unwrap();
                }
            }
            2 * u64::from(SPRAYED)
        })
    });
    sent.sum()
}

#[test]
fn a_spray_pushes_out_no_flow_of_others() {
    if !skip::root() {
        return;
    }
    let builder =
        Topology::builder().nodes(1).workload("web", 0).workload("other", 0).workload("cart", 0).workload("sink", 0);
    let mut lab = Lab::new(builder).unwrap();
    lab.policy("shop.yaml", POLICY).unwrap();
    lab.options = |mut options| {
        options.sizes.flows = TABLE;
        options
    };
    lab.publish().unwrap();
    let [web, other, cart, sink] = ["web", "other", "cart", "sink"].map(|name| lab.topology.workload(name).clone());
    let mut sprayed = connection(&web, &cart);
    let mut spared = connection(&other, &cart);
    assert!(hears(&mut sprayed, PATIENCE) && hears(&mut spared, PATIENCE));

    let sprayed_packets = spray(&web, &sink);
    let allowed = lab.packets(0, Some("web"), "egress", "rule").unwrap();
    assert!(allowed >= sprayed_packets, "all of it was allowed: {allowed} of {sprayed_packets}");

    assert!(hears(&mut spared, PATIENCE), "the flow of another workload goes on");
    assert_eq!(lab.packets(0, Some("other"), "ingress", "no_flow").unwrap(), 0);
    assert_eq!(lab.packets(0, Some("cart"), "ingress", "no_flow").unwrap(), 0);
    // Of its own nothing is left: what was a reply is none now, and counted as what it is.
    assert!(!hears(&mut sprayed, BRIEF), "its own flow was pushed out");
    assert!(lab.packets(0, Some("web"), "ingress", "no_flow").unwrap() > 0);
}
