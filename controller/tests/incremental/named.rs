//! A prefix with the name of a port is about workloads that have this port.

use std::sync::Arc;

use bulkhead_controller::{intent::Cidrs, labels::Selector, model::Peer, ports::Ports};
use bulkhead_ebpf::abi::Direction;

use crate::cluster::{Cluster, Event, address, name, policy, service, workload};

#[test]
fn another_workload_in_the_prefix_is_not_named() {
    let nets = vec!["10.0.0.0/8".parse().unwrap()];
    let peer = Peer::Cidrs(Cidrs { cidrs: nets, except: Vec::new() });
    let rules = vec![(Direction::Egress, vec![peer], vec![Ports::named("http")])];
    let mut without = workload("n1", "db", &["10.0.1.3"], "");
    without.ports = Arc::default();
    let cluster = [
        Event::Workload(name("a", "caller"), workload("n0", "web", &["10.0.0.2"], "veth0")),
        Event::Workload(name("a", "with"), workload("n1", "db", &["10.0.1.2"], "")),
        Event::Workload(name("a", "without"), without),
        Event::Policy(policy(&service("a", "out"), Selector::everybody(), &rules)),
    ]
    .iter()
    .fold(Cluster::new(), |cluster, event| cluster.with(event));
    let desired = cluster.compile(&cluster.model().unwrap()).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(desired.selectors, vec!["cidr 10.0.0.0/8 with port http=8080/tcp".to_owned()].into());
    let named = ["10.0.1.2", "10.0.1.3"].map(|at| desired.addresses[&(1, address(at))].selectors.len());
    assert_eq!(named, [1, 0]);
}
