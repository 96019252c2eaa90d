//! What the node is asked for: lists, and what happens on it as it happens.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use bulkhead_controller::show::Observation;
use bulkhead_dataplane::{
    memory::MemoryStore,
    store::{ContactTable, Store as _, Views},
};
use bulkhead_ebpf::{
    abi::{Contact, ContactKey, Direction},
    reason::Reason,
};
use serde_json::Value;

use crate::{
    home::INTENT,
    served::{Served, home},
};

/// A sample of a packet to this port of `web-1`, seen so often.
pub(crate) fn denied(store: &MemoryStore, slot: u16, port: u16, packets: u64) {
    let key = ContactKey {
        peer: [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes([203, 0, 113, 9])],
        slot,
        port,
        protocol: 6,
        direction: Direction::Ingress as u8,
        reason: Reason::Isolated as u8,
        flags: 0,
    };
    let contact = Contact { packets, bytes: 100 * packets, first: 1, last: packets, ..Contact::default() };
    store.clone().put::<ContactTable>(&[(key, contact)]).unwrap();
}

/// Slot of a workload's only endpoint.
pub(crate) fn slot(served: &Served, workload: &str) -> u16 {
    let name = format!("shop/{workload}#0");
    let endpoint = served.status().node.endpoints.into_iter().find(|endpoint| endpoint.name == name).unwrap();
    endpoint.slot.try_into().unwrap()
}

/// What fills in time on every node is no trouble; what leaves no room for the next container is.
#[test]
fn a_table_that_is_full_is_a_trouble_unless_it_is_to_fill() {
    let home = home();
    let served = Served::new(&home);
    let slot = slot(&served, "web-1");
    home.store.set_limit::<ContactTable>(4);
    (1..=4).for_each(|port| denied(&home.store, slot, port, 1));
    let status = served.status();
    let table = |name: &str| status.node.tables.iter().find(|table| table.table == name).unwrap();
    assert_eq!((table("CONTACTS").used, table("CONTACTS").limit), (4, 4));
    assert_eq!(status.troubles, [""; 0]);
    home.store.set_limit::<Views>(usize::try_from(table("VIEWS").used).unwrap() + 1);
    let troubles = served.status().troubles;
    assert!(troubles.len() == 1 && troubles[0].starts_with("table VIEWS has "), "{troubles:?}");
}

#[test]
fn lists_say_what_is_on_the_node() {
    let home = home();
    let served = Served::new(&home);
    let list = |path: &str| -> Vec<Value> { served.client.get(&format!("/v1/{path}")).ok() };
    let workloads = list("workloads");
    assert_eq!(workloads.len(), 3);
    assert!(workloads.iter().all(|workload| workload["guard"] == "guarded"), "{workloads:?}");
    assert!(list("rules").iter().any(|rule| rule["rule"] == "shop: web calls db:5432/tcp"), "{:?}", list("rules"));
    let lines = list("policy-lines");
    assert_eq!(lines.iter().map(|line| line["name"].as_str().unwrap()).collect::<Vec<_>>(), ["web", "db"]);
    assert!(list("services").is_empty() && list("flows").is_empty() && list("observations").is_empty());
    let simulated: Value = served.client.get("/v1/simulate").ok();
    assert_eq!(simulated["revision"], 1);
    assert!(!simulated["connections"].as_array().unwrap().is_empty());
    let metrics = served.client.get("/v1/metrics");
    assert!(metrics.status == 200 && metrics.text().contains("bulkhead_revision 1"), "{}", metrics.text());
    assert!(served.client.get("/v1/openapi.json").ok::<Value>()["paths"]["/v1/plan"].is_object());
    let status = served.status();
    assert_eq!((status.node.state.as_str(), status.node.endpoints.len()), ("enforcing", 3));

    denied(&home.store, slot(&served, "web-1"), 22, 3);
    let observations = list("observations");
    assert_eq!(observations.len(), 1);
    assert!(observations[0]["text"].as_str().unwrap().contains("shop.yaml:6"), "{observations:?} {INTENT}");
}

/// As it has in the metrics.
#[test]
fn who_is_known_by_the_network_alone_has_a_name_where_it_is_observed() {
    let home = home();
    home.links.network().discovered.addresses.push("203.0.113.9".parse().unwrap());
    let served = Served::new(&home);
    denied(&home.store, slot(&served, "web-1"), 22, 3);
    let observations: Vec<Value> = served.client.get("/v1/observations").ok();
    assert_eq!((observations.len(), &observations[0]["from"]), (1, &"node".into()), "{observations:?}");
    let told = serde_json::to_value(follow(&served).next().unwrap()).unwrap();
    assert_eq!(told["text"], observations[0]["text"]);
}

/// Lines of the stream as they come. A read that waits longer than a machine may hang fails.
pub(crate) fn follow(served: &Served) -> impl Iterator<Item = Observation> + use<> {
    let crate::client::Client::Socket(socket) = &served.client else { unreachable!() };
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    write!(stream, "GET /v1/observations/stream HTTP/1.1\r\nhost: bulkhead\r\n\r\n").unwrap();
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    // Of the head and the sizes of chunks none is an object.
    lines.filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(&line).unwrap())
}

#[test]
fn the_stream_tells_what_is_new() {
    let home = home();
    let served = Served::new(&home);
    let slot = slot(&served, "web-1");
    denied(&home.store, slot, 22, 1);
    let mut stream = follow(&served);
    let mut next = || stream.next().map(|line| (line.packets, line.verdict)).unwrap();
    assert_eq!(next(), (1, "blocked".to_owned()));
    denied(&home.store, slot, 22, 5);
    assert_eq!(next(), (5, "blocked".to_owned()));
    denied(&home.store, slot, 23, 2);
    assert_eq!(next(), (2, "blocked".to_owned()));
}

/// More than fits between the node and the reader at once.
#[test]
fn a_reader_that_keeps_up_gets_every_line() {
    const MANY: u16 = 6000;
    let home = home();
    let served = Served::new(&home);
    let slot = slot(&served, "web-1");
    (1..=MANY).for_each(|port| denied(&home.store, slot, port, 1));
    let mut stream = follow(&served);
    assert_eq!(stream.by_ref().take(MANY.into()).count(), usize::from(MANY));
    denied(&home.store, slot, 1, 2);
    assert_eq!(stream.next().unwrap().packets, 2);
}
