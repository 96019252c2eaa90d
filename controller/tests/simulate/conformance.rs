//! Policies of the conformance tests of network-policy-api, each with what its test expects: of the policy as it is written, and after each change that
//! the test makes. Both tiers are tried as `ClusterNetworkPolicy`, and once more as the older kinds, of which the same was expected.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use bulkhead_controller::{
    diagnostic::source,
    manifest::Manifests,
    workloads::{Endpoint, WorkloadName, Workloads},
};
use bulkhead_fixtures::{skip, templates::host_ports};
use serde_json::{Value, json};

use crate::calls::{
    Edit::{Delete, Prepend, Set, Swap},
    NODES, OUTSIDE, Step, after, allowed, as_written, closed_without_policy, denied, differences, documents, files,
    nodes, stages, workload_address, yaml,
};

/// Workloads of all tests.
const WORKLOADS: &str = "manifests.yaml";

// The pods: two of each house, on two nodes.
const HARRY0: &str = "network-policy-conformance-gryffindor/harry-potter-0";
const HARRY1: &str = "network-policy-conformance-gryffindor/harry-potter-1";
const DRACO0: &str = "network-policy-conformance-slytherin/draco-malfoy-0";
const DRACO1: &str = "network-policy-conformance-slytherin/draco-malfoy-1";
const CEDRIC0: &str = "network-policy-conformance-hufflepuff/cedric-diggory-0";
const CEDRIC1: &str = "network-policy-conformance-hufflepuff/cedric-diggory-1";
const LUNA0: &str = "network-policy-conformance-ravenclaw/luna-lovegood-0";
const LUNA1: &str = "network-policy-conformance-ravenclaw/luna-lovegood-1";
/// In its node's own network, with the ports that [`host_ports`] fills in.
const CENTAUR1: &str = "network-policy-conformance-forbidden-forrest/centaur-1";

/// Files with their steps, which those of both tiers share as far as a baseline has such rules. One file may be the subject of several tests.
const CASES: [(&str, &[&[Step]]); 24] = [
    ("admin_tier/standard-egress-tcp-rules.yaml", &[EGRESS_TCP, EGRESS_TCP_PASS]),
    ("baseline_tier/standard-egress-tcp-rules.yaml", &[EGRESS_TCP]),
    ("admin_tier/standard-ingress-tcp-rules.yaml", &[INGRESS_TCP, INGRESS_TCP_PASS]),
    ("baseline_tier/standard-ingress-tcp-rules.yaml", &[INGRESS_TCP]),
    ("admin_tier/standard-egress-udp-rules.yaml", &[EGRESS_UDP, EGRESS_UDP_PASS]),
    ("baseline_tier/standard-egress-udp-rules.yaml", &[EGRESS_UDP]),
    ("admin_tier/standard-ingress-udp-rules.yaml", &[INGRESS_UDP, INGRESS_UDP_PASS]),
    ("baseline_tier/standard-ingress-udp-rules.yaml", &[INGRESS_UDP]),
    ("admin_tier/standard-egress-sctp-rules.yaml", &[EGRESS_SCTP, EGRESS_SCTP_PASS]),
    ("baseline_tier/standard-egress-sctp-rules.yaml", &[EGRESS_SCTP]),
    ("admin_tier/standard-ingress-sctp-rules.yaml", &[INGRESS_SCTP, INGRESS_SCTP_PASS]),
    ("baseline_tier/standard-ingress-sctp-rules.yaml", &[INGRESS_SCTP]),
    ("admin_tier/standard-gress-rules-combined.yaml", &[BOTH_WAYS, BOTH_WAYS_PASS]),
    ("baseline_tier/standard-gress-rules-combined.yaml", &[BOTH_WAYS]),
    ("admin_tier/standard-egress-inline-cidr-rules.yaml", &[NETWORKS]),
    ("baseline_tier/standard-egress-inline-cidr-rules.yaml", &[NETWORKS]),
    ("admin_tier/experimental-egress-selector-rules.yaml", &[ADMIN_NODES]),
    ("baseline_tier/experimental-egress-selector-rules.yaml", &[BASELINE_NODES]),
    ("admin_tier/standard-priority-field.yaml", &[PRIORITY]),
    ("api_integration/standard-anp-np-banp.yaml", &[ALL_TIERS]),
    // Named ports have tests of their own, which replace the rule about a number.
    ("admin_tier/standard-egress-tcp-rules.yaml", &[EGRESS_NAMED_TCP]),
    ("admin_tier/standard-ingress-udp-rules.yaml", &[INGRESS_NAMED_UDP]),
    ("baseline_tier/standard-egress-udp-rules.yaml", &[EGRESS_NAMED_UDP]),
    ("baseline_tier/standard-ingress-tcp-rules.yaml", &[INGRESS_NAMED_TCP]),
];

const EGRESS_TCP: &[Step] = &[
    as_written(&[
        allowed(HARRY0, LUNA0, "80/tcp"),
        allowed(HARRY1, LUNA0, "8080/tcp"),
        allowed(HARRY0, CEDRIC1, "8080/tcp"),
        denied(HARRY1, CEDRIC1, "80/tcp"),
        denied(HARRY0, DRACO0, "80/tcp"),
        allowed(HARRY1, DRACO0, "8080/tcp"),
        // The other direction is as it was.
        allowed(LUNA0, HARRY0, "80/tcp"),
        allowed(DRACO0, HARRY1, "80/tcp"),
    ]),
    after(
        &[Swap("/0/spec/egress", 0, 1)],
        &[denied(HARRY0, LUNA1, "80/tcp"), denied(HARRY1, LUNA1, "8080/tcp"), allowed(HARRY0, CEDRIC1, "8080/tcp")],
    ),
];
const EGRESS_TCP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/egress", 0, 2)],
        &[allowed(HARRY0, LUNA0, "80/tcp"), allowed(HARRY1, LUNA0, "8080/tcp"), denied(HARRY0, DRACO0, "80/tcp")],
    ),
    after(
        &[Swap("/0/spec/egress", 3, 4)],
        &[allowed(HARRY0, DRACO0, "80/tcp"), allowed(HARRY1, DRACO0, "8080/tcp"), denied(HARRY1, CEDRIC1, "80/tcp")],
    ),
];

const INGRESS_TCP: &[Step] = &[
    as_written(&[
        allowed(LUNA0, HARRY0, "80/tcp"),
        allowed(LUNA1, HARRY0, "8080/tcp"),
        allowed(CEDRIC0, HARRY1, "80/tcp"),
        denied(CEDRIC1, HARRY1, "8080/tcp"),
        denied(DRACO0, HARRY0, "80/tcp"),
        allowed(DRACO1, HARRY0, "8080/tcp"),
        allowed(HARRY0, LUNA0, "80/tcp"),
        allowed(HARRY1, DRACO0, "80/tcp"),
    ]),
    after(
        &[Swap("/0/spec/ingress", 0, 1)],
        &[denied(LUNA0, HARRY1, "80/tcp"), denied(LUNA1, HARRY1, "8080/tcp"), allowed(CEDRIC0, HARRY1, "80/tcp")],
    ),
];
const INGRESS_TCP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/ingress", 0, 2)],
        &[allowed(LUNA0, HARRY0, "80/tcp"), allowed(LUNA1, HARRY0, "8080/tcp"), denied(DRACO0, HARRY0, "80/tcp")],
    ),
    after(
        &[Swap("/0/spec/ingress", 3, 4)],
        &[allowed(DRACO0, HARRY0, "80/tcp"), allowed(DRACO1, HARRY0, "8080/tcp"), denied(CEDRIC1, HARRY1, "8080/tcp")],
    ),
];

const EGRESS_UDP: &[Step] = &[
    as_written(&[
        allowed(CEDRIC0, LUNA0, "53/udp"),
        allowed(CEDRIC1, LUNA0, "5353/udp"),
        allowed(CEDRIC0, HARRY1, "53/udp"),
        denied(CEDRIC1, HARRY1, "5353/udp"),
        denied(CEDRIC0, DRACO0, "5353/udp"),
        allowed(CEDRIC1, DRACO0, "53/udp"),
    ]),
    after(
        &[Swap("/0/spec/egress", 0, 1)],
        &[denied(CEDRIC0, LUNA1, "53/udp"), denied(CEDRIC1, LUNA1, "5353/udp"), allowed(CEDRIC0, HARRY1, "53/udp")],
    ),
];
const EGRESS_UDP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/egress", 0, 2)],
        &[allowed(CEDRIC0, LUNA1, "5353/udp"), allowed(CEDRIC1, LUNA1, "53/udp"), denied(CEDRIC0, DRACO0, "5353/udp")],
    ),
    after(
        &[Swap("/0/spec/egress", 3, 4)],
        &[
            allowed(CEDRIC0, DRACO0, "5353/udp"),
            allowed(CEDRIC1, DRACO0, "53/udp"),
            denied(CEDRIC1, HARRY1, "5353/udp"),
        ],
    ),
];

const INGRESS_UDP: &[Step] = &[
    as_written(&[
        allowed(LUNA0, CEDRIC0, "53/udp"),
        allowed(LUNA1, CEDRIC0, "5353/udp"),
        allowed(HARRY0, CEDRIC1, "53/udp"),
        denied(HARRY1, CEDRIC1, "5353/udp"),
        denied(DRACO0, CEDRIC0, "5353/udp"),
        allowed(DRACO1, CEDRIC0, "53/udp"),
    ]),
    after(
        &[Swap("/0/spec/ingress", 0, 1)],
        &[denied(LUNA0, CEDRIC1, "53/udp"), denied(LUNA1, CEDRIC1, "5353/udp"), allowed(HARRY0, CEDRIC1, "53/udp")],
    ),
];
const INGRESS_UDP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/ingress", 0, 2)],
        &[allowed(LUNA0, CEDRIC1, "5353/udp"), allowed(LUNA1, CEDRIC1, "53/udp"), denied(DRACO0, CEDRIC0, "5353/udp")],
    ),
    after(
        &[Swap("/0/spec/ingress", 3, 4)],
        &[
            allowed(DRACO0, CEDRIC0, "5353/udp"),
            allowed(DRACO1, CEDRIC0, "53/udp"),
            denied(HARRY1, CEDRIC1, "5353/udp"),
        ],
    ),
];

const EGRESS_SCTP: &[Step] = &[
    as_written(&[
        allowed(LUNA0, HARRY0, "9003/sctp"),
        allowed(LUNA1, HARRY0, "9005/sctp"),
        allowed(LUNA0, CEDRIC1, "9003/sctp"),
        denied(LUNA1, CEDRIC1, "9005/sctp"),
        denied(LUNA0, DRACO0, "9003/sctp"),
        allowed(LUNA1, DRACO0, "9005/sctp"),
    ]),
    after(
        &[Swap("/0/spec/egress", 0, 1)],
        &[denied(LUNA0, HARRY1, "9003/sctp"), denied(LUNA1, HARRY1, "9005/sctp"), allowed(LUNA0, CEDRIC1, "9003/sctp")],
    ),
];
const EGRESS_SCTP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/egress", 0, 2)],
        &[allowed(LUNA0, HARRY1, "9003/sctp"), allowed(LUNA1, HARRY1, "9005/sctp"), denied(LUNA0, DRACO0, "9003/sctp")],
    ),
    after(
        &[Swap("/0/spec/egress", 3, 4)],
        &[
            allowed(LUNA0, DRACO0, "9003/sctp"),
            allowed(LUNA1, DRACO0, "9005/sctp"),
            denied(LUNA1, CEDRIC1, "9005/sctp"),
        ],
    ),
];

const INGRESS_SCTP: &[Step] = &[
    as_written(&[
        allowed(HARRY0, LUNA0, "9003/sctp"),
        allowed(HARRY1, LUNA0, "9005/sctp"),
        allowed(CEDRIC0, LUNA1, "9003/sctp"),
        denied(CEDRIC1, LUNA1, "9005/sctp"),
        denied(DRACO0, LUNA0, "9003/sctp"),
        allowed(DRACO1, LUNA0, "9005/sctp"),
    ]),
    after(
        &[Swap("/0/spec/ingress", 0, 1)],
        &[denied(HARRY0, LUNA1, "9003/sctp"), denied(HARRY1, LUNA1, "9005/sctp"), allowed(CEDRIC0, LUNA1, "9003/sctp")],
    ),
];
const INGRESS_SCTP_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/ingress", 0, 2)],
        &[allowed(HARRY0, LUNA1, "9003/sctp"), allowed(HARRY1, LUNA1, "9005/sctp"), denied(DRACO0, LUNA0, "9003/sctp")],
    ),
    after(
        &[Swap("/0/spec/ingress", 3, 4)],
        &[
            allowed(DRACO0, LUNA0, "9003/sctp"),
            allowed(DRACO1, LUNA0, "9005/sctp"),
            denied(CEDRIC1, LUNA1, "9005/sctp"),
        ],
    ),
];

const BOTH_WAYS: &[Step] = &[
    as_written(&[
        allowed(HARRY0, LUNA0, "80/tcp"),
        allowed(HARRY1, LUNA0, "53/udp"),
        allowed(HARRY0, LUNA0, "9003/sctp"),
        allowed(LUNA0, HARRY0, "80/tcp"),
        allowed(LUNA1, HARRY0, "53/udp"),
        allowed(LUNA1, HARRY0, "9003/sctp"),
        allowed(HARRY0, CEDRIC1, "8080/tcp"),
        denied(HARRY1, CEDRIC1, "80/tcp"),
        allowed(HARRY0, CEDRIC1, "5353/udp"),
        denied(HARRY1, CEDRIC1, "53/udp"),
        allowed(HARRY0, CEDRIC1, "9003/sctp"),
        denied(HARRY1, CEDRIC1, "9005/sctp"),
        allowed(CEDRIC0, HARRY1, "80/tcp"),
        denied(CEDRIC1, HARRY1, "8080/tcp"),
        allowed(CEDRIC0, HARRY1, "5353/udp"),
        denied(CEDRIC1, HARRY1, "53/udp"),
        allowed(CEDRIC0, HARRY1, "9003/sctp"),
        denied(CEDRIC1, HARRY1, "9005/sctp"),
    ]),
    after(
        &[Swap("/0/spec/egress", 0, 1), Swap("/0/spec/ingress", 0, 1)],
        &[
            denied(HARRY0, LUNA1, "80/tcp"),
            denied(HARRY1, LUNA1, "53/udp"),
            denied(HARRY0, LUNA1, "9003/sctp"),
            denied(LUNA0, HARRY1, "80/tcp"),
            denied(LUNA1, HARRY1, "53/udp"),
            denied(LUNA1, HARRY1, "9003/sctp"),
            denied(HARRY0, DRACO0, "80/tcp"),
            allowed(HARRY1, DRACO0, "8080/tcp"),
            denied(HARRY0, DRACO0, "53/udp"),
            allowed(HARRY1, DRACO0, "5353/udp"),
            denied(HARRY0, DRACO0, "9003/sctp"),
            allowed(HARRY1, DRACO0, "9005/sctp"),
            denied(DRACO0, HARRY0, "80/tcp"),
            allowed(DRACO1, HARRY0, "8080/tcp"),
            denied(DRACO0, HARRY0, "53/udp"),
            allowed(DRACO1, HARRY0, "5353/udp"),
            denied(DRACO0, HARRY0, "9003/sctp"),
            allowed(DRACO1, HARRY0, "9005/sctp"),
        ],
    ),
];
const BOTH_WAYS_PASS: &[Step] = &[
    after(
        &[Swap("/0/spec/egress", 0, 2), Swap("/0/spec/ingress", 0, 2)],
        &[
            allowed(HARRY0, LUNA0, "80/tcp"),
            allowed(HARRY0, LUNA0, "5353/udp"),
            allowed(HARRY0, LUNA0, "9003/sctp"),
            allowed(LUNA0, HARRY0, "80/tcp"),
            allowed(LUNA1, HARRY0, "53/udp"),
            allowed(LUNA1, HARRY0, "9003/sctp"),
            denied(HARRY0, DRACO0, "80/tcp"),
            denied(DRACO0, HARRY0, "53/udp"),
        ],
    ),
    after(
        &[Swap("/0/spec/egress", 3, 4), Swap("/0/spec/ingress", 3, 4)],
        &[
            allowed(HARRY0, DRACO0, "80/tcp"),
            allowed(HARRY1, DRACO0, "8080/tcp"),
            allowed(HARRY0, DRACO0, "53/udp"),
            allowed(HARRY1, DRACO0, "5353/udp"),
            allowed(HARRY0, DRACO0, "9003/sctp"),
            allowed(HARRY1, DRACO0, "9005/sctp"),
            allowed(DRACO0, HARRY0, "80/tcp"),
            allowed(DRACO1, HARRY0, "8080/tcp"),
            allowed(DRACO0, HARRY0, "53/udp"),
            allowed(DRACO1, HARRY0, "5353/udp"),
            allowed(DRACO0, HARRY0, "9003/sctp"),
            allowed(DRACO1, HARRY0, "9005/sctp"),
            denied(HARRY1, CEDRIC1, "80/tcp"),
            denied(CEDRIC1, HARRY1, "8080/tcp"),
        ],
    ),
];

const NETWORKS: &[Step] = &[
    as_written(&[
        denied(HARRY1, LUNA0, "80/tcp"),
        denied(HARRY1, LUNA0, "53/udp"),
        denied(HARRY1, LUNA0, "9003/sctp"),
        denied(HARRY1, CEDRIC0, "80/tcp"),
        denied(HARRY1, CEDRIC0, "53/udp"),
        denied(HARRY1, CEDRIC0, "9003/sctp"),
        allowed(HARRY1, DRACO0, "80/tcp"),
        allowed(HARRY1, DRACO0, "53/udp"),
        allowed(HARRY1, DRACO0, "9003/sctp"),
        denied(HARRY1, OUTSIDE, "443/tcp"),
        allowed(LUNA0, HARRY1, "80/tcp"),
    ]),
    after(
        &[Prepend(
            "/0/spec/egress",
            r#"{ "name": "two-pods", "action": "Accept", "to": [{ "networks": [
                "@network-policy-conformance-ravenclaw/luna-lovegood-0",
                "@network-policy-conformance-hufflepuff/cedric-diggory-0"] }] }"#,
        )],
        &[
            allowed(HARRY1, LUNA0, "80/tcp"),
            allowed(HARRY1, LUNA0, "53/udp"),
            allowed(HARRY1, LUNA0, "9003/sctp"),
            allowed(HARRY1, CEDRIC0, "80/tcp"),
            allowed(HARRY1, CEDRIC0, "53/udp"),
            allowed(HARRY1, CEDRIC0, "9003/sctp"),
            denied(HARRY1, LUNA1, "80/tcp"),
            denied(HARRY1, LUNA1, "53/udp"),
            denied(HARRY1, LUNA1, "9003/sctp"),
            denied(HARRY1, CEDRIC1, "80/tcp"),
            denied(HARRY1, CEDRIC1, "53/udp"),
            denied(HARRY1, CEDRIC1, "9003/sctp"),
        ],
    ),
];

const ADMIN_NODES: &[Step] = &[as_written(&[
    allowed(HARRY1, CENTAUR1, "34450/tcp"),
    allowed(HARRY1, CENTAUR1, "34452/udp"),
    denied(HARRY1, CENTAUR1, "34451/tcp"),
    denied(HARRY1, CENTAUR1, "34454/udp"),
    denied(HARRY1, CENTAUR1, "34456/sctp"),
    // The name of its last rule says so.
    denied(HARRY0, DRACO0, "80/tcp"),
    denied(HARRY0, OUTSIDE, "443/tcp"),
])];
const BASELINE_NODES: &[Step] = &[as_written(&[
    allowed(HARRY0, CENTAUR1, "34450/tcp"),
    allowed(HARRY1, CENTAUR1, "34451/tcp"),
    denied(HARRY1, CENTAUR1, "34454/udp"),
    denied(HARRY1, CENTAUR1, "34456/sctp"),
    denied(HARRY0, OUTSIDE, "443/tcp"),
])];

const PRIORITY: &[Step] = &[
    as_written(&[
        denied(DRACO0, HARRY0, "80/tcp"),
        denied(DRACO1, HARRY0, "8080/tcp"),
        denied(HARRY0, DRACO0, "80/tcp"),
        denied(HARRY1, DRACO0, "8080/tcp"),
    ]),
    after(
        &[Set("/1/spec", "priority", "40")],
        &[
            allowed(DRACO0, HARRY0, "80/tcp"),
            allowed(DRACO1, HARRY0, "8080/tcp"),
            allowed(HARRY0, DRACO0, "80/tcp"),
            allowed(HARRY1, DRACO0, "8080/tcp"),
        ],
    ),
];

/// An admin policy, a NetworkPolicy and a baseline.
const ALL_TIERS: &[Step] = &[
    as_written(&[
        denied(DRACO0, HARRY0, "80/tcp"),
        denied(DRACO1, HARRY0, "8080/tcp"),
        denied(HARRY0, DRACO0, "80/tcp"),
        denied(HARRY1, DRACO0, "8080/tcp"),
    ]),
    after(
        &[Set("/0/spec/ingress/0", "action", r#""Pass""#)],
        &[
            allowed(DRACO0, HARRY0, "80/tcp"),
            allowed(DRACO1, HARRY0, "8080/tcp"),
            denied(HARRY0, DRACO0, "80/tcp"),
            denied(HARRY1, DRACO0, "8080/tcp"),
        ],
    ),
    after(
        &[Set("/0/spec/egress/0", "action", r#""Pass""#)],
        &[allowed(HARRY0, DRACO0, "80/tcp"), allowed(HARRY1, DRACO0, "8080/tcp")],
    ),
    after(
        &[Delete(1)],
        &[
            denied(DRACO0, HARRY0, "80/tcp"),
            denied(DRACO1, HARRY0, "8080/tcp"),
            denied(HARRY0, DRACO0, "80/tcp"),
            denied(HARRY1, DRACO0, "8080/tcp"),
        ],
    ),
];

const EGRESS_NAMED_TCP: &[Step] = &[after(
    &[Set("/0/spec/egress/5", "protocols", r#"[{ "destinationNamedPort": "web" }]"#)],
    &[allowed(HARRY0, CEDRIC1, "80/tcp"), denied(HARRY1, CEDRIC1, "8080/tcp")],
)];
const INGRESS_NAMED_UDP: &[Step] = &[after(
    &[Set("/0/spec/ingress/5", "protocols", r#"[{ "destinationNamedPort": "dns" }]"#)],
    &[allowed(HARRY0, CEDRIC1, "53/udp"), denied(HARRY1, CEDRIC1, "5353/udp")],
)];
const EGRESS_NAMED_UDP: &[Step] = &[after(
    &[Set("/0/spec/egress/3", "protocols", r#"[{ "destinationNamedPort": "dns" }]"#)],
    &[allowed(CEDRIC0, HARRY1, "53/udp"), denied(CEDRIC1, HARRY1, "5353/udp")],
)];
const INGRESS_NAMED_TCP: &[Step] = &[after(
    &[Set("/0/spec/ingress/3", "protocols", r#"[{ "destinationNamedPort": "web" }]"#)],
    &[allowed(CEDRIC0, HARRY1, "80/tcp"), denied(CEDRIC1, HARRY1, "8080/tcp")],
)];

fn read(path: &Path) -> String {
    host_ports(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The workloads of the tests with addresses of a family. A StatefulSet stands for all of its pods; here are the two that each makes, one to a node.
fn cluster(text: &str, v6: bool) -> Workloads {
    let mut manifests = Manifests::default();
    for text in [text, &nodes(v6)] {
        manifests.read(&source(WORKLOADS, text)).unwrap_or_else(|found| panic!("{found}"));
    }
    let mut workloads = manifests.workloads().unwrap_or_else(|found| panic!("{found}"));
    let sets = std::mem::take(&mut workloads.workloads);
    for (number, (set, mut workload)) in (1..).zip(sets) {
        for (index, node) in NODES.iter().enumerate() {
            let pod = Arc::make_mut(&mut workload);
            pod.owner = None;
            pod.node = (*node).into();
            if !pod.host {
                let addresses = vec![workload_address(v6, index, number)];
                pod.endpoints = vec![Endpoint { segment: 0, addresses, link: String::new(), placeholder: false }];
            }
            let name = format!("{}-{index}", set.name);
            workloads.workloads.insert(WorkloadName::new(set.namespace.clone(), name), Arc::clone(&workload));
        }
    }
    workloads
}

/// The same policies in v1alpha1, where each tier is a kind. Others are left as they are.
fn older(text: &str) -> String {
    let older = |mut document: Value| {
        if document["kind"] != "ClusterNetworkPolicy" {
            return document;
        }
        document["apiVersion"] = "policy.networking.k8s.io/v1alpha1".into();
        let spec = document["spec"].as_object_mut().expect("a spec");
        let baseline = spec.remove("tier").expect("a tier") == "Baseline";
        if baseline {
            spec.remove("priority").expect("a priority");
        }
        for side in ["ingress", "egress"] {
            let rules = spec.get_mut(side).map(|rules| rules.as_array_mut().expect("a list of rules"));
            rules.into_iter().flatten().for_each(older_rule);
        }
        document["kind"] = if baseline { "BaselineAdminNetworkPolicy" } else { "AdminNetworkPolicy" }.into();
        document
    };
    yaml(&documents(text).into_iter().map(older).collect::<Vec<_>>())
}

fn older_rule(rule: &mut Value) {
    let rule = rule.as_object_mut().expect("a rule");
    if rule["action"] == "Accept" {
        rule["action"] = "Allow".into();
    }
    if let Some(protocols) = rule.remove("protocols") {
        rule.insert("ports".to_owned(), protocols.as_array().expect("protocols").iter().map(older_port).collect());
    }
}

fn older_port(protocol: &Value) -> Value {
    let (name, ports) = protocol.as_object().expect("a protocol").iter().next().expect("one protocol");
    let transport = name.to_uppercase();
    match (&ports["destinationPort"]["number"], &ports["destinationPort"]["range"]) {
        _ if name == "destinationNamedPort" => json!({ "namedPort": ports }),
        (Value::Null, range) => {
            json!({ "portRange": { "protocol": transport, "start": range["start"], "end": range["end"] } })
        }
        (number, _) => json!({ "portNumber": { "protocol": transport, "port": number } }),
    }
}

#[test]
fn every_policy_does_what_its_conformance_test_expects() {
    let Some(data) = skip::test_data() else { return };
    let base = data.join("policies/network-policy-api/conformance/base");
    let mut stated: BTreeSet<_> = CASES.iter().map(|(file, _)| (*file).to_owned()).collect();
    stated.insert(WORKLOADS.to_owned());
    assert_eq!(files(&base), stated, "each file has its calls, and no calls are of a file that is not there");
    let mut wrong = Vec::new();
    for cluster in [false, true].map(|v6| cluster(&read(&base.join(WORKLOADS)), v6)) {
        for (file, steps) in CASES {
            let steps = steps.iter().copied().flatten();
            for (number, (text, calls)) in stages(&read(&base.join(file)), steps).into_iter().enumerate() {
                let name = format!("{file}, step {number}");
                wrong.extend(differences(&name, &text, &cluster, calls));
                wrong.extend(differences(&format!("{name}, in v1alpha1"), &older(&text), &cluster, calls));
                wrong.extend(closed_without_policy(&name, &cluster, calls));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
