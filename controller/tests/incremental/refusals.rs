//! What does not fit is refused as a full compile refuses it, and changes nothing.

use bulkhead_controller::{
    labels::Selector,
    model::Peer,
    ports::{Ports, Transport},
};
use bulkhead_ebpf::abi::Direction;

use crate::cluster::{Cluster, Event, name, policy, service, workload};

fn refused(event: &Event, says: &str) {
    let local = Event::Workload(name("a", "w0"), workload("n0", "web", &["10.0.0.2"], "veth0"));
    let cluster = Cluster::new().with(&local);
    let mut compiler = cluster.compiler();
    let before = compiler.desired().clone();
    let refusal = cluster.tell(&mut compiler, event).unwrap().unwrap_err();
    assert!(refusal.to_string().contains(says), "{refusal}");
    assert_eq!(compiler.desired(), &before);

    let with = cluster.with(event);
    let whole = with.compile(&with.model().unwrap());
    assert_eq!(whole, Err(refusal));
    // What comes next finds things as they were.
    let next = Event::Workload(name("a", "w1"), workload("n0", "web", &["10.0.0.3"], "veth1"));
    let change = cluster.tell(&mut compiler, &next).unwrap().unwrap_or_else(|found| panic!("{found}"));
    assert_eq!((change.endpoints.set.len(), change.sets.len()), (1, 0), "the other one has the same sets");
}

#[test]
fn too_many_intervals() {
    let ports = (1..60).step_by(2).map(|port| Ports::one(Transport::Tcp, port)).collect();
    let rules = vec![(Direction::Ingress, vec![Peer::Any], ports)];
    refused(&Event::Policy(policy(&service("a", "many"), Selector::everybody(), &rules)), "intervals, 28 fit");
}

#[test]
fn the_address_of_a_node() {
    let pod = workload("n1", "web", &["192.0.2.12"], "");
    refused(&Event::Workload(name("c", "w0"), pod), "is an address of a node");
}

#[test]
fn too_many_ends() {
    let event = Event::Replace { documents: [5].into(), devices: false, later: false };
    let mut cluster = Cluster::new();
    let mut odd = workload("n0", "web", &["10.0.0.2"], "veth0");
    odd.labels.insert("tier".to_owned(), "odd".to_owned());
    cluster.workloads.workloads.insert(name("a", "w0"), odd);
    let mut compiler = cluster.compiler();
    let before = compiler.desired().clone();
    let refusal = cluster.tell(&mut compiler, &event).unwrap().unwrap_err();
    assert!(refusal.to_string().contains("8 times, 7 fit"), "{refusal}");
    assert_eq!(compiler.desired(), &before);
}
