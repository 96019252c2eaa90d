//! The cases of netpol-analyzer, each with the complete list of its connections.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bulkhead_controller::{
    diagnostic::{Diagnostics, source},
    manifest::Manifests,
    model::Model,
    offline::{self, Loaded},
    simulate::{Simulation, text},
};
use bulkhead_fixtures::skip;

/// Cases in which policies select pods of a node's own network. No policy is about such a pod, which has its node's address and no link of its own;
/// the analyzer judges it as if one were. Their pods are given networks of their own before they are compared.
const HOST_NETWORK: [&str; 5] = [
    "ipblockstest_3",
    "ipblockstest_4",
    "multiple_topology_resources_2",
    "semanticDiff-same-topologies-new2",
    "semanticDiff-same-topologies-old1",
];
/// The analyzer knows no IPv6: of the case that mentions it only the lines about IPv4 are compared.
const IPV6: [&str; 1] = ["anp_banp_test_multiple_warnings"];

fn load(path: PathBuf) -> Result<Model, Diagnostics> {
    offline::load(&[path]).map(|Loaded { model, .. }| model)
}

/// The same where no pod lives in its node's own network, nor has its node's address.
fn load_apart(path: &Path) -> Result<Model, Diagnostics> {
    let mut manifests = Manifests::default();
    for (name, path) in directories(path) {
        let text = fs::read_to_string(path).unwrap();
        let text = text.replace("hostNetwork", "unknownHostNetwork").replace("podIP", "unknownPodIP");
        manifests.read(&source(name, text))?;
    }
    Model::build(&manifests.policies, &manifests.workloads()?)
}

fn directories(path: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect();
    all.sort();
    all
}

#[test]
fn every_case_has_the_connections_that_are_expected() {
    let Some(data) = skip::test_data() else { return };
    let analyzer = data.join("policies/netpol-analyzer");
    let (mut cases, mut wrong) = (0, Vec::new());
    for (name, path) in directories(&analyzer.join("tests")) {
        let apart = HOST_NETWORK.contains(&name.as_str());
        let model = if apart { load_apart(&path) } else { load(path) };
        let model = model.unwrap_or_else(|found| panic!("{name}: {found}"));
        let simulation = Simulation::new(&model, 0).unwrap_or_else(|found| panic!("{name}: {found}"));
        let listed = text::list(&simulation.connections());
        let expected = fs::read_to_string(analyzer.join(format!("expected/{name}.txt"))).unwrap();
        let compared = |line: &&str| {
            let (from, to) = line.split_once(" : ").and_then(|(sides, _)| sides.split_once(" => ")).unwrap_or_default();
            let v6 = IPV6.contains(&name.as_str()) && [from, to].iter().any(|side| side.contains("::"));
            !line.contains("{ingress-controller}") && !v6
        };
        let listed: BTreeSet<&str> = listed.lines().filter(compared).collect();
        let expected: BTreeSet<&str> = expected.lines().filter(compared).collect();
        assert!(!expected.is_empty(), "{name}");
        if listed != expected {
            let more: Vec<_> = listed.difference(&expected).collect();
            let less: Vec<_> = expected.difference(&listed).collect();
            wrong.push(format!("{name}\n  not expected: {more:#?}\n  expected: {less:#?}"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases >= 44, "{cases} cases");
}

/// What is wrong in each, as far as it is said here: the file and the cause.
#[test]
fn every_bad_case_is_refused_with_file_and_cause() {
    let Some(data) = skip::test_data() else { return };
    let mut said = Vec::new();
    let mut cases = 0;
    for (name, path) in directories(&data.join("policies/netpol-analyzer/bad")) {
        let found = load(path.clone()).err().unwrap_or_else(|| panic!("{name} is read"));
        let prefix = format!("{}/", path.display());
        said.push(format!("{name}\n{}\n", found.to_string().replace(&prefix, "")));
        cases += 1;
    }
    assert!(cases >= 17, "{cases} cases");
    insta::assert_snapshot!(said.join("\n"));
}
