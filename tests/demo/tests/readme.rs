//! What README.md shows of policies is true.

use std::{fs, path::Path};

use bulkhead_controller::{
    diagnostic,
    explain::{Party, Question, explain, parse_point},
    model::Model,
    policy,
    workloads::{self, WorkloadName},
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// The fenced blocks of one language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let parts = text.split("```").skip(1).step_by(2);
    parts
        .filter_map(|block| block.split_once('\n').filter(|(head, _)| *head == language))
        .map(|(_, body)| body)
        .collect()
}

fn model(policy: &str) -> Model {
    let policies = policy::parse(&diagnostic::source("shop.yaml", policy)).unwrap_or_else(|found| panic!("{found}"));
    let workloads = diagnostic::source("shop-workloads.yaml", read("policy-examples/shop-workloads.yaml"));
    Model::build(&policies, &workloads::parse(&workloads).unwrap()).unwrap_or_else(|found| panic!("{found}"))
}

fn ask(model: &Model, from: &str, to: &str, port: &str) -> String {
    let name = |name: &str| WorkloadName::new("shop", format!("{name}-1"));
    let (from, to) = (name(from), name(to));
    let (class, value) = parse_point(port).unwrap();
    let question = Question { from: Party::Workload(&from), to: Party::Workload(&to), class, value };
    explain(model, question, 0).unwrap().text(model)
}

#[test]
fn its_policy_says_what_its_comments_say() {
    let readme = read("README.md");
    let policies = blocks(&readme, "yaml");
    // The second one is an object of Kubernetes.
    assert_eq!(policies.len(), 2);
    let object = policy::parse(&diagnostic::source("object.yaml", policies[1]));
    assert_eq!(object.unwrap_or_else(|found| panic!("{found}")).len(), 1);
    let model = model(policies[0]);
    for (from, to, port, verdict) in [
        ("web", "cart", "8080", "ALLOWED"),
        ("web", "cart", "8080/udp", "BLOCKED"),
        ("cart", "db", "5432", "ALLOWED"),
        ("web", "db", "5432", "BLOCKED"),
        ("db", "cart", "8080", "BLOCKED"),
    ] {
        let answer = ask(&model, from, to, port);
        assert!(answer.starts_with(verdict), "{answer}");
    }
}

/// The excerpt's explanation is the one of today.
#[test]
fn its_excerpt_is_what_is_said() {
    let readme = read("README.md");
    let excerpt = blocks(&readme, "").into_iter().find(|block| block.contains("BLOCKED")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = ask(&model(&read("policy-examples/shop.yaml")), "web", "db", "5432");
    assert!(words(excerpt).contains(&words(&said)), "{said}");
}
