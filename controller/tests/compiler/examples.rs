//! Every policy to copy compiles for every node, and says what its comments say.

use std::collections::BTreeSet;

use crate::support::{EXAMPLES, NOW, example_model, render};
use bulkhead_controller::{
    compile::compile,
    explain::{Party, Question, explain, parse_point},
    model::Model,
    workloads::WorkloadName,
};
use bulkhead_dataplane::node::Discovered;

#[test]
fn every_example_is_listed_and_compiles_for_every_node() {
    let directory = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = files.filter(|name| name.ends_with(".yaml")).collect();
    let listed: BTreeSet<String> =
        EXAMPLES.iter().flat_map(|(policy, workloads)| [(*policy).to_owned(), (*workloads).to_owned()]).collect();
    assert_eq!(files, listed);
    for (policy, workloads) in EXAMPLES {
        let model = example_model(policy, workloads);
        assert_eq!(model.warnings.to_string(), "", "{policy}");
        for node in model.nodes.keys() {
            let desired = compile(&model, node, &Discovered::default(), NOW)
                .unwrap_or_else(|found| panic!("{policy} {node}: {found}"));
            assert!(!desired.endpoints.is_empty(), "{policy} {node}");
            insta::assert_snapshot!(format!("{policy}-{node}"), render(&desired));
        }
    }
}

fn ask(model: &Model, from: &str, to: &str, point: &str) -> String {
    let parties: Vec<_> = [from, to].map(|text| text.parse().map_err(|_| workload(text))).into();
    let party = |i: usize| match &parties[i] {
        Ok(address) => Party::Address(*address),
        Err(name) => Party::Workload(name),
    };
    let (class, value) = parse_point(point).unwrap();
    explain(model, Question { from: party(0), to: party(1), class, value }, NOW).text(model)
}

fn workload(text: &str) -> WorkloadName {
    let (namespace, name) = text.split_once('/').unwrap();
    WorkloadName { namespace: namespace.to_owned(), name: name.to_owned() }
}

#[test]
fn the_shop_is_explained_by_its_lines() {
    let model = example_model("shop.yaml", "shop-workloads.yaml");
    let answers: Vec<String> = [
        ("shop/web-1", "shop/db-1", "5432"),
        ("shop/web-1", "shop/cart-1", "8080"),
        ("shop/web-1", "shop/cart-1", "8081"),
        ("shop/web-1", "shop/cart-1", "8080/udp"),
        ("shop/web-1", "shop/cart-1", "echo/icmp"),
        ("shop/payments-1", "198.51.100.7", "443"),
        ("shop/payments-1", "198.51.100.13", "443"),
        ("shop/cart-1", "198.51.100.7", "443"),
        ("203.0.113.9", "shop/web-1", "8443"),
        ("203.0.113.9", "shop/db-1", "5432"),
        ("192.0.2.1", "shop/web-1", "22"),
        ("192.0.2.2", "shop/web-1", "22"),
        ("10.244.2.99", "shop/web-1", "8443"),
        ("shop/web-1", "169.254.169.254", "80"),
        ("ops/backup-1", "shop/db-1", "5432"),
        ("ops/backup-1", "shop/cart-1", "8080"),
        ("ops/backup-1", "203.0.113.9", "443"),
        ("shop/cart-1", "ops/backup-1", "22"),
        ("shop/web-1", "10.96.3.4", "80"),
        ("ops/backup-1", "fd00:96::34", "80"),
        ("shop/web-1", "10.96.3.4", "81"),
        ("shop/web-1", "10.96.0.1", "443"),
    ]
    .iter()
    .map(|(from, to, point)| ask(&model, from, to, point))
    .collect();
    assert_eq!(
        answers[0],
        "BLOCKED web -> db 5432/tcp  at web's egress: web is isolated (shop.yaml:9) and may call cart:8080; db would refuse too (shop.yaml:17); \
         nearest rule cart -> db:5432 (shop.yaml:13), differs in: caller"
    );
    let answers = answers.join("\n");
    insta::assert_snapshot!(answers);
}
