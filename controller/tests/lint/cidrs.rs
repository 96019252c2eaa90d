//! Prefixes that do not mean what they seem to.

use bulkhead_controller::{lint::Check, policy::Policy};
use bulkhead_ebpf::abi::Direction;

use crate::support::{WORKLOADS, cidrs, found, guard, intent, network, ours, tcp};

fn odd(policies: &[Policy]) -> Vec<String> {
    found(Check::OddCidr, policies, WORKLOADS)
}

fn calls(nets: &[&str], except: &[&str]) -> Vec<String> {
    odd(&[network("a", &[("app", "web")], vec![(Direction::Egress, cidrs(nets, except), tcp(443))])])
}

#[test]
fn exceptions_take_some_of_their_prefixes() {
    assert_eq!(calls(&["198.51.100.0/24"], &["198.51.100.13/32"]), [""; 0]);
    assert_eq!(
        calls(&["198.51.100.0/24"], &["203.0.113.0/24"]),
        [
            "a.yaml:1:1: warning: `networkpolicy shop/a: egress[0]`: the exception 203.0.113.0/24 lies in none of its prefixes\n  \
             help: an exception takes from its own prefixes alone: correct it, or remove it"
        ]
    );
    let all = calls(&["198.51.100.0/24"], &["198.51.100.0/24"]);
    assert!(all.len() == 1 && all[0].contains("an exception takes away all of 198.51.100.0/24"), "{all:?}");
}

#[test]
fn service_addresses_are_translated_before() {
    for net in ["172.30.0.4/32", "172.30.0.0/16"] {
        let found = calls(&[net], &[]);
        assert!(found.len() == 1 && found[0].contains("is about service addresses"), "{found:?}");
    }
    assert_eq!(calls(&["172.31.0.0/16"], &[]), [""; 0], "no service address is there");
    assert_eq!(calls(&["128.0.0.0/1"], &["172.20.0.0/16"]), [""; 0], "much else is there");
}

#[test]
fn one_family_is_half_of_the_world() {
    let dual = WORKLOADS.replace("[172.20.0.14]", "[172.20.0.14, \"fd00::14\"]");
    let calls = |nets: &[&str], except: &[&str], with: &str| {
        let rule = (Direction::Egress, cidrs(nets, except), tcp(443));
        found(Check::OddCidr, &[network("a", &[("app", "web")], vec![rule])], with)
    };
    let except = ["172.20.0.0/16", "fd00::/16"];
    let found = calls(&["0.0.0.0/0"], &except[..1], &dual);
    assert!(found.len() == 1 && found[0].contains("0.0.0.0/0 is every IPv4 address"), "{found:?}");
    assert_eq!(calls(&["0.0.0.0/0", "::/0"], &except, &dual), [""; 0]);
    assert_eq!(calls(&["0.0.0.0/0"], &except[..1], WORKLOADS), [""; 0], "nobody has the other family");
    let found = calls(&["::/0"], &[], WORKLOADS);
    assert!(found.len() == 1 && found[0].contains("::/0 is every IPv6 address"), "{found:?}");
}

#[test]
fn prefixes_hold_no_workloads() {
    let text =
        intent("shop", "external:\n  legacy: { cidrs: [172.20.0.0/28] }\nservices:\n  web: { calls: [legacy:443] }\n");
    assert_eq!(
        odd(&ours(&text)),
        [
            "p.yaml:7:18: warning: `shop: web calls legacy:443/tcp`: 172.20.0.0/28 holds addresses of `ops/backup-1`, `shop/db-1`, `shop/db-2`, `shop/web-1` and 1 more, \
             and matches them too\n  help: addresses of workloads change when they start again: name them by service or labels, and except their prefix here"
        ]
    );
    let except = text.replace("[172.20.0.0/28]", "[172.20.0.0/24], except: [172.20.0.0/28]");
    assert_eq!(odd(&ours(&except)), [""; 0]);
    let by_guard = guard("g", 1, "external:\n  old: { cidrs: [172.20.0.14/32] }\nrules:\n  - deny: { to: old }\n");
    assert_eq!(odd(&ours(&by_guard)).len(), 1);
    // Addresses that the model writes itself are nobody's.
    let resolver = WORKLOADS.replace("nodes:\n", "resolvers: [172.20.0.14, 172.30.0.4]\nnodes:\n");
    let dns = intent("shop", "dns: cluster\nservices:\n  web: {}\n");
    assert_eq!(found(Check::OddCidr, &ours(&dns), &resolver), [""; 0]);
}
