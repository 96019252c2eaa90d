//! What does not fit the tables: which policies fill them is said, and nothing changes.

use bulkhead_controller::compile::compile;
use bulkhead_dataplane::{
    node::{Discovered, Node as _},
    publish::shares,
    store::{Lists, Ports, Prefixes4, RuleCounters, Store, Table},
};

use bulkhead_ebpf::abi::Class;

use crate::support::{Home, INTENT};

/// A NetworkPolicy that opens so many ports, each to another prefix.
fn policy(name: &str, ports: u16) -> String {
    let rule = |port| {
        format!("  - from: [{{ ipBlock: {{ cidr: 198.51.100.{port}/32 }} }}]\n    ports: [{{ port: {port} }}]\n")
    };
    let rules: String = (1..=ports).map(rule).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  podSelector: {{}}\n  ingress:\n{rules}"
    )
}

fn used(home: &Home, table: &str) -> usize {
    let tables = home.node().unwrap().status().unwrap().tables;
    tables.iter().find(|of| of.table == table).unwrap().used
}

/// What is said of policies that come when a table has next to no room for them.
fn refused<T: Table>() -> String {
    let home = Home::new();
    drop(home.agent());
    let room = home.store.limit::<T>();
    let of_one = if T::NAME == Ports::NAME { Class::COUNT as usize } else { 1 };
    home.store.set_limit::<T>((used(&home, T::NAME) + 1) * of_one);
    let mut agent = home.agent();
    let before = home.store.snapshot();
    home.write("policies/few.yaml", &policy("few", 2));
    home.write("policies/many.yaml", &format!("# Who opens much.\n{}", policy("many", 6)));
    home.write(
        "policies/guard.yaml",
        "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nrules:\n  - deny: { to: world:25 }\n",
    );
    agent.refresh();
    assert!(home.store.snapshot() == before, "{} changed: {}", T::NAME, agent.refused());
    assert_eq!(agent.health().revision, 1);
    let said = agent.refused().to_owned();
    drop(agent);
    home.store.set_limit::<T>(room);
    let agent = home.agent();
    assert_eq!(agent.refused(), "", "with room it is used");
    said
}

#[test]
fn the_largest_policies_are_named_with_their_lines() {
    let all = [refused::<Lists>(), refused::<Ports>(), refused::<Prefixes4>(), refused::<RuleCounters>()];
    insta::assert_snapshot!(all.join("\n\n"));
}

/// At the first start nothing was in force.
#[test]
fn nothing_is_in_force_when_the_first_does_not_fit() {
    let home = Home::new();
    home.store.set_limit::<Lists>(2);
    insta::assert_snapshot!(home.start().unwrap_err().to_string());
}

/// What fills a table that no policy does is said as before.
#[test]
fn workloads_are_to_blame_for_their_addresses() {
    let home = Home::new();
    let mut agent = home.agent();
    home.store.set_limit::<bulkhead_dataplane::store::Addresses4>(3);
    let more = "  - { name: x, namespace: shop, node: n1, endpoints: [{ addresses: [10.0.0.3], link: veth-x }] }\n";
    home.write("workloads.yaml", &format!("{}{more}", crate::support::WORKLOADS));
    agent.refresh();
    insta::assert_snapshot!(agent.refused());
}

/// All policies together have what the tables say.
#[test]
fn shares_are_what_the_publisher_uses() {
    let home = Home::new();
    home.write("policies/many.yaml", &policy("many", 9));
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:1-9, 'world:any'] }"));
    home.agent();
    let reader = bulkhead_controller::store::Reader::open(&home.state()).unwrap().unwrap();
    let model = reader.in_force().unwrap().unwrap().inputs.model().unwrap();
    let desired = compile(&model, "n1", &Discovered::default(), 1).unwrap();
    for table in [Lists::NAME, Ports::NAME, "selectors", "ROWS"] {
        let all = shares(&desired, table, |_| Some(())).unwrap();
        assert_eq!(all.get(&()).copied(), Some(used(&home, table)), "{table}");
        assert_eq!(shares(&desired, table, |_| None::<()>).unwrap().len(), 0, "{table}");
    }
    // Of those that two of them share each has its part.
    let two = shares(&desired, Lists::NAME, |rule| Some(rule.0 % 2)).unwrap();
    assert!(two.values().sum::<usize>() >= used(&home, Lists::NAME), "{two:?}");
    assert!(two.values().all(|share| *share <= used(&home, Lists::NAME)), "{two:?}");
}
