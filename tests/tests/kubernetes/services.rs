//! What a policy sees of calls to addresses of services as kube-proxy writes them, to ports of nodes, and of those that nodes and hosts make. The table
//! in README.md has a line for each function.

mod calls;
mod inside;
mod nodes;
mod shop;

use std::{collections::BTreeSet, time::Instant};

use bulkhead_cluster::ProxyMode;

use shop::Shop;

const README: &str = include_str!("../../../README.md");

const LINES: [(&str, fn(&Shop)); 11] = [
    ("cluster_ip", inside::cluster_ip),
    ("headless", inside::headless),
    ("dns", inside::dns),
    ("session_affinity", inside::session_affinity),
    ("hairpin", inside::hairpin),
    ("api_server", inside::api_server),
    ("node_port", nodes::node_port),
    ("node_port_local", nodes::node_port_local),
    ("host_port", nodes::host_port),
    ("probes", nodes::probes),
    ("host_network", nodes::host_network),
];

fn each_line(proxy: ProxyMode, direct: bool) {
    let Some(shop) = Shop::open(proxy, direct) else { return };
    for (name, line) in LINES {
        let start = Instant::now();
        line(&shop);
        println!("{name}: {:.1?}", start.elapsed());
    }
}

#[test]
fn services_lead_where_policy_lets_with_iptables() {
    each_line(ProxyMode::Iptables, false);
}

#[test]
fn services_lead_where_policy_lets_with_nftables() {
    each_line(ProxyMode::Nftables, false);
}

#[test]
fn services_lead_where_policy_lets_where_nodes_forward_directly() {
    each_line(ProxyMode::Iptables, true);
}

#[test]
fn each_line_of_the_table_is_shown() {
    let rows = README.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once("| `services::"));
    let written: Vec<_> = rows.map(|(_, name)| name).collect();
    let shown: BTreeSet<_> = LINES.map(|(name, _)| name).into();
    assert_eq!(BTreeSet::from_iter(written.iter().copied()), shown);
}
