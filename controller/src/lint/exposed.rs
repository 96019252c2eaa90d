//! Ports for administrators and for other programs that anybody may call.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{Class, Direction};
use ipnetwork::IpNetwork;

use super::{Check, Finding, quoted, some, walls::after};
use crate::{
    compile::NOT_ISOLATED,
    diagnostic::Place,
    explain::{self, peer_name},
    model::{Model, local_prefixes},
    ports::point,
    simulate::{Party, Passage, Range, Simulation, display},
};

/// Ports that nobody outside should need, and what listens there.
const ADMIN: [(Class, u16, &str); 66] = [
    (Class::Tcp, 22, "SSH"),
    (Class::Tcp, 23, "Telnet"),
    (Class::Udp, 69, "TFTP"),
    (Class::Tcp, 111, "portmapper"),
    (Class::Udp, 111, "portmapper"),
    (Class::Tcp, 135, "Windows RPC"),
    (Class::Udp, 137, "NetBIOS names"),
    (Class::Tcp, 139, "NetBIOS"),
    (Class::Udp, 161, "SNMP"),
    (Class::Tcp, 389, "LDAP"),
    (Class::Tcp, 445, "SMB"),
    (Class::Tcp, 512, "rexec"),
    (Class::Tcp, 513, "rlogin"),
    (Class::Tcp, 514, "rsh"),
    (Class::Udp, 623, "IPMI"),
    (Class::Tcp, 873, "rsync"),
    (Class::Tcp, 1433, "SQL Server"),
    (Class::Udp, 1434, "SQL Server browser"),
    (Class::Tcp, 1521, "Oracle"),
    (Class::Tcp, 2049, "NFS"),
    (Class::Udp, 2049, "NFS"),
    (Class::Tcp, 2181, "ZooKeeper"),
    (Class::Tcp, 2375, "Docker without TLS"),
    (Class::Tcp, 2376, "Docker"),
    (Class::Tcp, 2377, "Docker Swarm"),
    (Class::Tcp, 2379, "etcd clients"),
    (Class::Tcp, 2380, "etcd peers"),
    (Class::Tcp, 3306, "MySQL"),
    (Class::Tcp, 3389, "Remote Desktop"),
    (Class::Tcp, 4369, "Erlang port mapper"),
    (Class::Tcp, 5432, "PostgreSQL"),
    (Class::Tcp, 5601, "Kibana"),
    (Class::Tcp, 5672, "AMQP"),
    (Class::Tcp, 5900, "VNC"),
    (Class::Tcp, 5984, "CouchDB"),
    (Class::Tcp, 5985, "WinRM without TLS"),
    (Class::Tcp, 5986, "WinRM"),
    (Class::Tcp, 6379, "Redis"),
    (Class::Tcp, 6443, "Kubernetes API"),
    (Class::Tcp, 7000, "Cassandra peers"),
    (Class::Tcp, 7001, "Cassandra peers with TLS"),
    (Class::Tcp, 7199, "Cassandra JMX"),
    (Class::Tcp, 7474, "Neo4j"),
    (Class::Tcp, 7687, "Neo4j Bolt"),
    (Class::Tcp, 8086, "InfluxDB"),
    (Class::Tcp, 8500, "Consul"),
    (Class::Tcp, 9042, "Cassandra clients"),
    (Class::Tcp, 9092, "Kafka"),
    (Class::Tcp, 9160, "Cassandra Thrift"),
    (Class::Tcp, 9200, "Elasticsearch"),
    (Class::Tcp, 9300, "Elasticsearch peers"),
    (Class::Tcp, 10250, "kubelet"),
    (Class::Tcp, 10255, "kubelet, read only"),
    (Class::Tcp, 10257, "kube-controller-manager"),
    (Class::Tcp, 10259, "kube-scheduler"),
    (Class::Tcp, 11211, "memcached"),
    (Class::Udp, 11211, "memcached"),
    (Class::Tcp, 15672, "RabbitMQ management"),
    (Class::Tcp, 16379, "Redis cluster"),
    (Class::Tcp, 25672, "RabbitMQ peers"),
    (Class::Tcp, 27017, "MongoDB"),
    (Class::Tcp, 27018, "MongoDB shards"),
    (Class::Tcp, 27019, "MongoDB configuration"),
    (Class::Tcp, 28015, "RethinkDB"),
    (Class::Tcp, 50000, "Db2"),
    (Class::Tcp, 50070, "HDFS name node"),
];

/// Prefixes that the internet does not route.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// Ways by which a line lets somebody in.
#[derive(Default)]
struct Open {
    ports: BTreeSet<(u16, String)>,
    groups: BTreeSet<String>,
    from: BTreeSet<String>,
}

pub(super) fn check(model: &Model, simulation: &Simulation<'_>) -> Vec<Finding> {
    let places = places(model);
    let isolated = isolated(model);
    let ranges: Vec<Range> = simulation.outside(Direction::Ingress).to_vec();
    let private = private(model);
    let mut opened: BTreeMap<String, Open> = BTreeMap::new();
    for range in ranges.into_iter().filter(|range| public(&private, *range)) {
        for group in &isolated {
            for passage in simulation.passages(Party::Outside(range), Party::Group(group)) {
                let listed = ports(&passage);
                let Passage { rules: [_, Some(rule)], .. } = passage else { continue };
                if listed.is_empty() || !places.contains_key(rule.as_str()) {
                    continue;
                }
                let open = opened.entry(rule).or_default();
                open.ports.extend(listed);
                open.groups.insert(group.clone());
                open.from.insert(name(model, range));
            }
        }
    }
    opened.into_iter().filter_map(|(rule, open)| Some(open.finding(&rule, places.get(rule.as_str())?))).collect()
}

/// Where rules are written.
fn places(model: &Model) -> BTreeMap<&str, &Place> {
    let guards = model.guards.iter().flat_map(|guard| &guard.rules).map(|rule| (rule.name.as_str(), &rule.place));
    let places = guards.chain(model.rules.iter().map(|rule| (rule.named.name.as_str(), &rule.place)));
    places.filter(|(name, _)| *name != NOT_ISOLATED).collect()
}

/// Groups of workloads that something isolates at ingress.
fn isolated(model: &Model) -> BTreeSet<String> {
    let isolated =
        model.workloads.iter().filter(|(_, workload)| model.isolating(workload, Direction::Ingress, false).is_some());
    isolated.map(|(name, workload)| display(name, workload)).collect()
}

/// What is not public: also what is no part of the world, and what overlays own.
pub(super) fn private(model: &Model) -> Vec<IpNetwork> {
    let overlays = model.nodes.values().flat_map(|node| &node.segments).flat_map(|segment| &segment.prefixes);
    let known = PRIVATE.iter().filter_map(|net| net.parse().ok());
    known.chain(local_prefixes()).chain(overlays.copied()).collect()
}

/// Whether some address of a range lies in none of these prefixes.
fn public(private: &[IpNetwork], range: Range) -> bool {
    let mut next = Some(range.first());
    while let Some(address) = next.filter(|address| *address <= range.last()) {
        let within = private.iter().filter(|net| net.contains(address)).map(IpNetwork::broadcast);
        match within.max() {
            Some(last) => next = after(last),
            None => return true,
        }
    }
    false
}

fn ports(passage: &Passage) -> Vec<(u16, String)> {
    let open = |&(class, port, _): &(Class, u16, &str)| {
        class == passage.class && (passage.first..=passage.last).contains(&port)
    };
    let text = |(class, port, what)| (port, format!("{} ({what})", point(class, port)));
    ADMIN.into_iter().filter(open).map(text).collect()
}

fn name(model: &Model, range: Range) -> String {
    let name = peer_name(model, explain::Party::Address(range.first()));
    if name.is_empty() { range.to_string() } else { name }
}

impl Open {
    fn finding(self, rule: &str, place: &Place) -> Finding {
        let (from, groups) = (some(self.from), some(self.groups.iter().map(quoted)));
        let ports = some(self.ports.into_iter().map(|(_, text)| text));
        let message = format!("`{rule}` lets {from} call {groups} on {ports}");
        let help = "name who needs it, such as `external` with the prefixes of your office, or leave the port out";
        Finding::new(Check::WorldOnAdminPort, place, message, help)
    }
}
