//! What is only watched passes, and is told as what it is.

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, Service};
use bulkhead_topology::Topology;

use crate::{
    policy::shop,
    probe::{Ask, PATIENCE, Servers, allowed, ask, command_line},
};

/// `web` may call `cart`, and its own walls only report.
const AUDITED: &str = "\
apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:8080]
    isolate: audit
  cart: {}
";

#[test]
fn a_wall_that_is_audited_reports_calls_to_service_addresses() {
    if !skip::root() {
        return;
    }
    let builder =
        Topology::builder().nodes(2).workload("web", 0).workload("cart", 0).workload("db-1", 0).workload("db-2", 1);
    let mut lab = Lab::new(builder).unwrap();
    lab.services = vec![Service::new("near", 10, &["db-1"]), Service::new("far", 11, &["db-2"])];
    lab.write_workloads().unwrap();
    lab.policy("shop.yaml", AUDITED).unwrap();
    lab.proxy().unwrap();
    let _servers = ["db-1", "db-2", "cart"].map(|name| Servers::start(&lab, name, &[8080], &[]));
    let agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let metric = |labels: &[&str]| {
        let all: Vec<_> = labels.iter().copied().chain([r#"workload="web""#, r#"direction="egress""#]).collect();
        agents[0].metric("bulkhead_audit_packets_total", &all).unwrap()
    };
    allowed(&lab, "web", "cart", Ask::Tcp(8080));
    assert_eq!(metric(&[]), 0.0, "what is allowed is no matter of audit");
    let mut before = 0.0;
    for service in &lab.services {
        for address in service.addresses {
            assert!(ask(&lab, "web", address, Ask::Tcp(80), PATIENCE).is_answered(), "web -> {}", service.name);
            let now = metric(&[r#"verdict="would_deny""#]);
            assert!(now > before, "web -> {} is reported", service.name);
            before = now;
        }
    }
    let blocked = agents[0].metric("bulkhead_packets_total", &[r#"workload="web""#, r#"verdict="blocked""#]).unwrap();
    assert_eq!(blocked, 0.0);

    let rules = command_line(&lab, 0, &["get", "rules"]);
    let line =
        rules.lines().find(|line| line.contains("shop/web isolated egress")).unwrap_or_else(|| panic!("{rules}"));
    let cells: Vec<_> = line.split_whitespace().rev().take(4).collect();
    assert!(cells[0] != "0" && cells[1..] == ["0", "0", "0"], "would deny, would allow, blocked, allowed: {line}");
    let observed = command_line(&lab, 0, &["observe"]);
    assert!(observed.contains("WOULD DENY") && !observed.contains("BLOCKED"), "{observed}");
}

#[test]
fn a_workload_that_is_observed_lets_everything_pass() {
    if !skip::root() {
        return;
    }
    let mut lab = shop();
    for name in ["cart-1", "web"] {
        lab.roles.get_mut(name).unwrap().mode = "observe".into();
    }
    lab.write_workloads().unwrap();
    let _servers = Servers::start(&lab, "cart-1", &[8080, 9999], &[5301]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    for from in ["guest", "web"] {
        for what in [Ask::Tcp(9999), Ask::Udp(5301), Ask::Ping] {
            allowed(&lab, from, "cart-1", what);
        }
    }
    let metric = |workload: &str, direction: &str| {
        let labels =
            [&*format!(r#"workload="{workload}""#), &*format!(r#"direction="{direction}""#), r#"verdict="observed""#];
        agent.metric("bulkhead_audit_packets_total", &labels).unwrap()
    };
    assert!(metric("cart-1", "ingress") > 0.0 && metric("web", "egress") > 0.0);
    let blocked = agent.metric("bulkhead_packets_total", &[r#"workload="cart-1""#, r#"verdict="blocked""#]).unwrap();
    assert_eq!(blocked, 0.0);
    let observed = command_line(&lab, 0, &["observe"]);
    assert!(
        observed.contains("OBSERVED shop/guest -> shop/cart 9999/tcp")
            || observed.contains("OBSERVED guest -> cart 9999/tcp"),
        "{observed}"
    );
    assert!(!observed.contains("BLOCKED"), "{observed}");
}
