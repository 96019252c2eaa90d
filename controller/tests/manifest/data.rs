//! Manifests of other projects.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bulkhead_controller::{
    diagnostic::{Diagnostics, source},
    manifest::Manifests,
    workloads::{Workload, WorkloadName, Workloads},
};
use bulkhead_fixtures::{skip, templates::host_ports};

/// What the expected connections leave out: in these cases nothing reaches these workloads and they reach nothing.
const UNREACHED: [(&str, &str); 2] = [
    ("exposure_test_pod_exposed_only_to_representative_peers", "hello-world/workload-b[Deployment]"),
    ("netpol_named_port_test", "helloworld/pod-a[Deployment]"),
];

/// Examples of network-policy-api that are written for a version of the API that was never called one. No recipe and no conformance test is among them.
const OUTDATED: [&str; 9] = [
    "examples/demos/kubecon-eu-2024/policies/anp1.yaml",
    "examples/demos/kubecon-eu-2024/policies/anp2.yaml",
    "examples/demos/kubecon-eu-2024/policies/anp3.yaml",
    "examples/demos/kubecon-eu-2024/policies/banp.yaml",
    "examples/demos/walkthrough/policies/anp1.yaml",
    "examples/demos/walkthrough/policies/anp2.yaml",
    "examples/demos/walkthrough/policies/banp.yaml",
    "test/example-policies/anps/anp.yaml",
    "test/example-policies/banp/banp.yaml",
];

/// Files of a directory and those below it, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Reads all manifests of a directory. What a tool printed about them stands beside them, and is none.
fn read(dir: &Path) -> Result<Manifests, Diagnostics> {
    let mut manifests = Manifests::default();
    for path in files(dir).iter().filter(|path| !path.ends_with("connlist_output.json")) {
        let name = path.strip_prefix(dir).unwrap().display().to_string();
        manifests.read(&source(name, fs::read_to_string(path).unwrap()))?;
    }
    Ok(manifests)
}

/// Workloads as the expected connections call them.
fn names(workloads: &Workloads) -> BTreeSet<String> {
    let name = |(name, workload): (&WorkloadName, &std::sync::Arc<Workload>)| match &workload.owner {
        Some(owner) => format!("{}/{}[{}]", name.namespace, owner.name, owner.kind),
        None => name.to_string(),
    };
    workloads.workloads.iter().map(name).collect()
}

/// Workloads that occur in expected connections: `a/b[Kind] => c/d[Kind] : TCP 80`.
fn expected(text: &str) -> BTreeSet<String> {
    let sides = text.lines().filter_map(|line| line.split_once(" : ")?.0.split_once(" => "));
    let sides = sides.flat_map(|(from, to)| [from, to]);
    sides.filter(|side| side.contains('/') && side.ends_with(']')).map(str::to_owned).collect()
}

#[test]
fn workloads_are_called_as_the_expected_connections_call_them() {
    let Some(data) = skip::test_data() else { return };
    let analyzer = data.join("policies/netpol-analyzer");
    let cases = fs::read_dir(analyzer.join("tests")).unwrap().map(|case| case.unwrap());
    let mut count = 0;
    for case in cases {
        let name = case.file_name().into_string().unwrap();
        let manifests = read(&case.path()).unwrap_or_else(|found| panic!("{name}: {found}"));
        let workloads = manifests.workloads().unwrap_or_else(|found| panic!("{name}: {found}"));
        let mut expected = expected(&fs::read_to_string(analyzer.join(format!("expected/{name}.txt"))).unwrap());
        assert!(!expected.is_empty(), "{name}");
        expected.extend(UNREACHED.iter().filter(|(case, _)| *case == name).map(|(_, workload)| (*workload).to_owned()));
        assert_eq!(names(&workloads), expected, "{name}");
        count += 1;
    }
    assert!(count >= 40, "{count} cases");
}

#[test]
fn manifests_of_tutorials_and_of_the_policy_api_are_read() {
    let Some(data) = skip::test_data() else { return };
    let (mut objects, mut outdated) = (0, BTreeSet::new());
    for dir in ["recipes/yaml", "network-policy-api"] {
        let dir = data.join("policies").join(dir);
        // Each file alone: they are examples, and some say the same of one object.
        for path in files(&dir).iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
            let mut manifests = Manifests::default();
            let text = fs::read_to_string(path).unwrap();
            let text = source(path.display().to_string(), host_ports(&text));
            match manifests.read(&text) {
                Ok(()) => {}
                Err(found) if found.to_string().contains("v1alpha1 once had it") => {
                    outdated.insert(path.strip_prefix(data.join("policies")).unwrap().display().to_string());
                    continue;
                }
                Err(found) => panic!("{found}"),
            }
            let unused = manifests.notes.0.iter().find(|note| note.message.contains("not used"));
            assert_eq!(unused, None);
            objects += manifests.workloads().unwrap_or_else(|found| panic!("{found}")).workloads.len();
        }
    }
    let examples = OUTDATED.map(|path| format!("network-policy-api/cmd/policy-assistant/{path}"));
    assert_eq!(outdated, BTreeSet::from(examples));
    assert!(objects >= 10, "{objects} workloads");
}

#[test]
fn a_namespace_is_defined_once() {
    let Some(data) = skip::test_data() else { return };
    let case = data.join("policies/netpol-analyzer/bad/bad_path_namespace_with_same_name");
    let said = read(&case).unwrap().workloads().unwrap_err().to_string();
    assert_eq!(
        said,
        "objects.yaml:12:9: Namespace `blue` is defined twice\n  objects.yaml:5:9: first here\n  help: keep one of the two"
    );
}

#[test]
fn pods_in_their_nodes_own_network_are_kept_without_an_address() {
    let Some(data) = skip::test_data() else { return };
    let manifests = read(&data.join("policies/netpol-analyzer/tests/ipblockstest_3")).unwrap();
    let workloads = manifests.workloads().unwrap();
    let (host, own): (Vec<_>, Vec<_>) = workloads.workloads.values().partition(|workload| workload.host);
    assert!(host.len() >= 10 && own.len() >= 5);
    assert!(host.iter().all(|workload| workload.endpoints.is_empty()));
    assert!(own.iter().all(|workload| workload.endpoints.len() == 1 && !workload.endpoints[0].placeholder));
    let nodes: Vec<_> = workloads.nodes.keys().map(String::as_str).collect();
    assert!(nodes.contains(&"10.186.164.174"), "{nodes:?}");
}
