//! How tests read objects, and what third-party objects must come to.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bulkhead_fixtures::skip;

use crate::{
    diagnostic::{Diagnostics, Severity, source},
    model::Model,
    policy::Policy,
    workloads::{self, Workloads},
    yaml::tree::{self, Node},
};

/// A case and what is said of it, for a snapshot.
pub(in crate::manifest) fn table(cases: &[&str], say: impl Fn(&str) -> String) -> String {
    cases.iter().map(|case| format!("{}\n---\n{}\n", case.trim_end(), say(case))).collect::<Vec<_>>().join("\n=====\n")
}

/// Policies of all documents of a text, also of those in lists.
pub(in crate::manifest) fn policies(file: &str, text: &str) -> (Vec<Policy>, Diagnostics) {
    let source = source(file, text);
    let (mut policies, mut found) = (Vec::new(), Diagnostics::default());
    match tree::documents(&source) {
        Ok(documents) => documents
            .iter()
            .for_each(|document| walk(Node::new(&source, document), ("", ""), &mut policies, &mut found)),
        Err(error) => found.push(error),
    }
    (policies, found)
}

fn walk(node: Node<'_>, (version, kind): (&str, &str), policies: &mut Vec<Policy>, found: &mut Diagnostics) {
    let tree::Value::Mapping(_) = node.value() else { return };
    let Some(mut object) = node.fields(found) else { return };
    let mut text = |name, or| match object.get(name).map(Node::value) {
        Some(tree::Value::Text(text)) => text.clone(),
        _ => str::to_owned(or),
    };
    let (version, kind) = (text("apiVersion", version), text("kind", kind));
    if let Some(of) = kind.strip_suffix("List") {
        let items = object.get("items").map(|items| items.list(found)).unwrap_or_default();
        items.into_iter().for_each(|item| walk(item, (&version, of), policies, found));
    } else if let Some(policy) = crate::manifest::policy(&version, &kind, &mut object, found) {
        policies.extend(policy);
    }
}

/// What is wrong with the policies of a text, also together; `accepted` for nothing.
pub(in crate::manifest) fn wrong(file: &str, text: &str) -> String {
    let (policies, mut found) = policies(file, text);
    if errors(&found) == 0
        && let Err(together) = Model::build(&policies, &nobody())
    {
        found.0.extend(together.0);
    }
    if found.0.is_empty() { "accepted".to_owned() } else { found.to_string() }
}

/// No workloads.
fn nobody() -> Workloads {
    let text = "apiVersion: bulkhead/v1\nkind: Workloads\nnodes: []\nworkloads: []\n";
    workloads::parse(&source("w.yaml", text)).unwrap()
}

fn errors(found: &Diagnostics) -> usize {
    found.0.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
}

/// Files of manifests below a directory, in order.
fn manifests(below: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(manifests(&path));
        } else if path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
    files.sort_unstable();
    files
}

/// Templates in YAML's clothes: a program fills in what stands between braces.
const TEMPLATES: [&str; 3] = [
    "network-policy-api/conformance/base/admin_tier/experimental-egress-selector-rules.yaml",
    "network-policy-api/conformance/base/baseline_tier/experimental-egress-selector-rules.yaml",
    "network-policy-api/conformance/base/manifests.yaml",
];

/// They say `namespaces: { namespaceSelector: .. }`, which v1alpha1 no longer has. Who passed over the unknown field would take them to mean every
/// namespace.
const OUTDATED: [&str; 9] = [
    "network-policy-api/cmd/policy-assistant/examples/demos/kubecon-eu-2024/policies/anp1.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/kubecon-eu-2024/policies/anp2.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/kubecon-eu-2024/policies/anp3.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/kubecon-eu-2024/policies/banp.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/walkthrough/policies/anp1.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/walkthrough/policies/anp2.yaml",
    "network-policy-api/cmd/policy-assistant/examples/demos/walkthrough/policies/banp.yaml",
    "network-policy-api/cmd/policy-assistant/test/example-policies/anps/anp.yaml",
    "network-policy-api/cmd/policy-assistant/test/example-policies/banp/banp.yaml",
];

#[test]
fn policies_that_others_wrote_are_read() {
    let Some(data) = skip::test_data() else { return };
    let data = data.join("policies");
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = String::new();
    for below in ["netpol-analyzer/tests", "network-policy-api", "recipes"] {
        for path in manifests(&data.join(below)) {
            let name = path.strip_prefix(&data).unwrap().to_str().unwrap();
            let mut text = fs::read_to_string(&path).unwrap();
            if TEMPLATES.contains(&name) {
                text = filled(&text);
            }
            let (policies, found) = policies(name, &text);
            if OUTDATED.contains(&name) {
                assert!(found.to_string().contains("has no `namespaceSelector`"), "{name}: {found}");
            } else if errors(&found) > 0 {
                wrong.push_str(&format!("{found}\n"));
            }
            for policy in policies {
                let kind = match &policy {
                    Policy::Guard(guard) => guard.kind.name(),
                    Policy::Network(_) => "NetworkPolicy",
                    Policy::Intent(_) => "Intent",
                    Policy::Noted(_) => "note",
                };
                *kinds.entry(kind).or_default() += 1;
            }
        }
    }
    assert_eq!(wrong, "");
    let all = ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy", "NetworkPolicy"];
    assert_eq!(kinds.keys().copied().collect::<Vec<_>>(), all);
}

/// A template with a port for each blank, ascending by the blank's own number.
fn filled(template: &str) -> String {
    let mut parts = template.split("{{ index .HostNetworkPorts ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(" }}").unwrap();
        text.push_str(&format!("3600{number}{rest}"));
    }
    text
}

#[test]
fn policies_that_others_hold_to_be_bad_are_refused() {
    let Some(data) = skip::test_data() else { return };
    let bad = data.join("policies/netpol-analyzer/bad");
    let mut said = String::new();
    for path in manifests(&bad) {
        let name = path.strip_prefix(&bad).unwrap().to_str().unwrap();
        // Whose namespaces are bad, or which are about workloads.
        if name.starts_with("bad_path_namespace_with_same_name") || name.ends_with("/manifests.yaml") {
            continue;
        }
        let wrong = wrong(name, &fs::read_to_string(&path).unwrap());
        let errors = wrong.lines().filter(|line| line.starts_with(name) && !line.contains(": warning: "));
        let errors: Vec<_> = errors.collect();
        assert!(!errors.is_empty(), "{name}: {wrong}");
        said.push_str(&format!("{}\n", errors.join("\n")));
    }
    insta::assert_snapshot!(said);
}
