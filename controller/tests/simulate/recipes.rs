//! Recipes for NetworkPolicy, each with what its text says of it: that of its trials, of its remarks, and of the changes that it proposes.

use std::{collections::BTreeSet, fs};

use bulkhead_controller::{diagnostic::source, manifest::Manifests, workloads::Workloads};
use bulkhead_fixtures::skip;

use crate::calls::{
    Call,
    Edit::{Set, Unset},
    NODES, OUTSIDE, Step, after, allowed, as_written, closed_without_policy, denied, differences, files, nodes, stages,
    workload_address,
};

/// A recipe, and those that are applied beside it.
struct Recipe {
    file: &'static str,
    with: &'static [&'static str],
    steps: &'static [Step],
}

const DENY_WEB: &str = "01-deny-all-traffic-to-an-application-0.yaml";
const DENY_ALL: &str = "03-deny-all-non-whitelisted-traffic-in-the-namespace-0.yaml";
const DENY_EXTERNAL: &str = "14-deny-external-egress-traffic-0.yaml";

/// Namespaces with their labels.
const NAMESPACES: [(&str, &str); 7] = [
    ("default", ""),
    ("prod", "purpose: production"),
    ("dev", "purpose: testing"),
    ("other", "team: operations"),
    ("foo", ""),
    ("secondary", ""),
    ("kube-system", ""),
];

/// Pods with their labels: everybody whom some recipe starts, one cluster for all of them.
const PODS: [(&str, &str); 23] = [
    ("default/web", "app: web"),
    ("default/test", ""),
    ("default/api", "app: bookstore, role: api"),
    ("default/frontend", "app: bookstore, role: frontend"),
    ("default/search", "app: bookstore, role: search"),
    ("default/db", "app: bookstore, role: db"),
    ("default/catalog", "app: inventory, role: web"),
    ("default/unrelated", "app: other"),
    ("default/watcher", "type: monitoring"),
    ("default/apiserver", "app: apiserver"),
    ("default/monitor", "role: monitoring"),
    ("default/foo", "app: foo"),
    ("prod/test", ""),
    ("prod/monitor", "role: monitoring"),
    ("prod/watcher", "type: monitoring"),
    ("dev/test", ""),
    ("dev/frontend", "app: bookstore, role: frontend"),
    ("other/test", ""),
    ("other/watcher", "type: monitoring"),
    ("foo/test", ""),
    ("secondary/test", ""),
    ("kube-system/dns", "k8s-app: kube-dns"),
    ("kube-system/metrics", "k8s-app: metrics-server"),
];

/// What the text of [`DENY_EXTERNAL`] says and its policy does not: it shows that `foo` reaches `web`, while the only rule of the policy is about DNS.
const MISTAKE: Call = allowed("default/foo", "default/web", "80/tcp");

const RECIPES: [Recipe; 15] = [
    Recipe {
        file: DENY_WEB,
        with: &[],
        steps: &[as_written(&[
            denied("default/test", "default/web", "80/tcp"),
            denied("default/api", "default/web", "80/tcp"),
            denied("dev/test", "default/web", "80/tcp"),
            denied(OUTSIDE, "default/web", "80/tcp"),
            allowed("default/web", "default/test", "80/tcp"),
            allowed("default/test", "default/api", "80/tcp"),
        ])],
    },
    Recipe {
        file: "02-limit-traffic-to-an-application-0.yaml",
        with: &[],
        steps: &[as_written(&[
            denied("default/test", "default/api", "80/tcp"),
            denied("default/unrelated", "default/api", "80/tcp"),
            denied("dev/frontend", "default/api", "80/tcp"),
            allowed("default/frontend", "default/api", "80/tcp"),
            allowed("default/search", "default/api", "80/tcp"),
            allowed("default/test", "default/frontend", "80/tcp"),
        ])],
    },
    Recipe {
        file: "02a-allow-all-traffic-to-an-application-0.yaml",
        with: &[DENY_WEB],
        steps: &[
            as_written(&[
                allowed("default/test", "default/web", "80/tcp"),
                allowed("dev/test", "default/web", "80/tcp"),
                allowed("default/test", "default/web", "443/tcp"),
            ]),
            after(
                &[Set("/0/spec", "ingress", r#"[{ "from": [{ "podSelector": {}, "namespaceSelector": {} }] }]"#)],
                &[
                    allowed("default/test", "default/web", "80/tcp"),
                    allowed("dev/test", "default/web", "80/tcp"),
                    denied(OUTSIDE, "default/web", "80/tcp"),
                ],
            ),
        ],
    },
    Recipe {
        file: DENY_ALL,
        with: &[],
        steps: &[
            as_written(NOBODY_ENTERS),
            after(&[Set("/0/spec", "ingress", "null")], NOBODY_ENTERS),
            after(&[Unset("/0/spec", "ingress")], NOBODY_ENTERS),
        ],
    },
    Recipe {
        file: "04-deny-traffic-from-other-namespaces-0.yaml",
        with: &[],
        steps: &[as_written(&[
            denied("foo/test", "default/web", "80/tcp"),
            denied("dev/test", "default/db", "6379/tcp"),
            denied(OUTSIDE, "default/web", "80/tcp"),
            allowed("default/test", "default/web", "80/tcp"),
            allowed("default/frontend", "default/db", "6379/tcp"),
            allowed("default/web", "foo/test", "80/tcp"),
        ])],
    },
    Recipe {
        file: "05-allow-traffic-from-all-namespaces-0.yaml",
        with: &[DENY_ALL],
        steps: &[
            as_written(&[
                allowed("secondary/test", "default/web", "80/tcp"),
                allowed("dev/test", "default/web", "80/tcp"),
                allowed("default/test", "default/web", "80/tcp"),
                denied("secondary/test", "default/api", "80/tcp"),
                denied("default/test", "default/api", "80/tcp"),
                denied(OUTSIDE, "default/web", "80/tcp"),
            ]),
            after(
                &[Set("/0/spec/ingress/0", "from", "null")],
                &[
                    allowed("secondary/test", "default/web", "80/tcp"),
                    allowed("default/test", "default/web", "80/tcp"),
                    denied("secondary/test", "default/api", "80/tcp"),
                ],
            ),
        ],
    },
    Recipe {
        file: "06-allow-traffic-from-a-namespace-0.yaml",
        with: &[],
        steps: &[as_written(&[
            denied("dev/test", "default/web", "80/tcp"),
            denied("default/test", "default/web", "80/tcp"),
            denied("foo/test", "default/web", "80/tcp"),
            allowed("prod/test", "default/web", "80/tcp"),
            allowed("prod/monitor", "default/web", "443/tcp"),
            allowed("dev/test", "default/api", "80/tcp"),
        ])],
    },
    Recipe {
        file: "07-allow-traffic-from-some-pods-in-another-namespace-0.yaml",
        with: &[],
        steps: &[
            as_written(&[
                denied("default/test", "default/web", "80/tcp"),
                denied("default/watcher", "default/web", "80/tcp"),
                denied("other/test", "default/web", "80/tcp"),
                denied("prod/watcher", "default/web", "80/tcp"),
                allowed("other/watcher", "default/web", "80/tcp"),
                allowed("other/test", "default/api", "80/tcp"),
            ]),
            after(
                &[Set(
                    "/0/spec/ingress/0",
                    "from",
                    r#"[{ "namespaceSelector": { "matchLabels": { "team": "operations" } } },
                        { "podSelector": { "matchLabels": { "type": "monitoring" } } }]"#,
                )],
                &[
                    allowed("other/test", "default/web", "80/tcp"),
                    allowed("default/watcher", "default/web", "80/tcp"),
                    denied("default/test", "default/web", "80/tcp"),
                    denied("prod/watcher", "default/web", "80/tcp"),
                ],
            ),
        ],
    },
    Recipe {
        file: "08-allow-external-traffic-0.yaml",
        with: &[DENY_ALL],
        steps: &[
            as_written(&[
                allowed(OUTSIDE, "default/web", "80/tcp"),
                allowed("default/test", "default/web", "80/tcp"),
                allowed("dev/test", "default/web", "443/tcp"),
                denied(OUTSIDE, "default/api", "80/tcp"),
                denied("default/test", "default/api", "80/tcp"),
            ]),
            after(
                &[Set("/0/spec", "ingress", r#"[{ "ports": [{ "port": 80 }] }]"#)],
                &[
                    allowed(OUTSIDE, "default/web", "80/tcp"),
                    denied(OUTSIDE, "default/web", "443/tcp"),
                    denied(OUTSIDE, "default/web", "80/udp"),
                ],
            ),
        ],
    },
    Recipe {
        file: "09-allow-traffic-only-to-a-port-0.yaml",
        with: &[],
        steps: &[
            as_written(ONE_PORT),
            after(&[Set("/0/spec/ingress/0", "ports", r#"[{ "port": "api-port" }]"#)], ONE_PORT),
        ],
    },
    Recipe {
        file: "10-allowing-traffic-with-multiple-selectors-0.yaml",
        with: &[],
        steps: &[as_written(&[
            allowed("default/catalog", "default/db", "6379/tcp"),
            allowed("default/search", "default/db", "6379/tcp"),
            allowed("default/api", "default/db", "6379/tcp"),
            denied("default/unrelated", "default/db", "6379/tcp"),
            denied("default/frontend", "default/db", "6379/tcp"),
            denied("default/web", "default/db", "6379/tcp"),
        ])],
    },
    Recipe {
        file: "11-deny-egress-traffic-from-an-application-0.yaml",
        with: &[],
        steps: &[as_written(NOTHING_LEAVES), after(&[Unset("/0/spec", "egress")], NOTHING_LEAVES)],
    },
    Recipe {
        file: "11-deny-egress-traffic-from-an-application-1.yaml",
        with: &[],
        steps: &[as_written(&[
            allowed("default/foo", "kube-system/dns", "53/udp"),
            allowed("default/foo", "kube-system/dns", "53/tcp"),
            denied("default/foo", "kube-system/dns", "80/tcp"),
            denied("default/foo", "kube-system/metrics", "53/udp"),
            denied("default/foo", "default/web", "80/tcp"),
            denied("default/foo", OUTSIDE, "80/tcp"),
            denied("default/foo", OUTSIDE, "echo"),
            allowed("default/test", OUTSIDE, "echo"),
        ])],
    },
    Recipe {
        file: "12-deny-all-non-whitelisted-traffic-from-the-namespace-0.yaml",
        with: &[],
        steps: &[as_written(&[
            denied("default/test", "default/web", "80/tcp"),
            denied("default/web", "dev/test", "80/tcp"),
            denied("default/test", "kube-system/dns", "53/udp"),
            denied("default/foo", OUTSIDE, "443/tcp"),
            allowed("dev/test", "default/web", "80/tcp"),
            allowed("dev/test", OUTSIDE, "443/tcp"),
        ])],
    },
    Recipe {
        file: DENY_EXTERNAL,
        with: &[],
        steps: &[as_written(&[
            allowed("default/foo", "kube-system/dns", "53/udp"),
            allowed("default/foo", "kube-system/dns", "53/tcp"),
            denied("default/foo", "kube-system/metrics", "53/udp"),
            denied("default/foo", OUTSIDE, "80/tcp"),
            denied("default/foo", OUTSIDE, "443/tcp"),
            allowed("default/test", OUTSIDE, "80/tcp"),
        ])],
    },
];

const NOBODY_ENTERS: &[Call] = &[
    denied("default/test", "default/web", "80/tcp"),
    denied("default/monitor", "default/apiserver", "5000/tcp"),
    denied("dev/test", "default/web", "80/tcp"),
    denied(OUTSIDE, "default/foo", "443/tcp"),
    allowed("default/web", "dev/test", "80/tcp"),
    allowed("dev/test", "prod/test", "80/tcp"),
];

const ONE_PORT: &[Call] = &[
    denied("default/test", "default/apiserver", "8000/tcp"),
    denied("default/test", "default/apiserver", "5000/tcp"),
    denied("default/monitor", "default/apiserver", "8000/tcp"),
    denied("default/monitor", "default/apiserver", "5000/udp"),
    denied("prod/monitor", "default/apiserver", "5000/tcp"),
    allowed("default/monitor", "default/apiserver", "5000/tcp"),
    allowed("default/apiserver", "default/monitor", "8000/tcp"),
];

const NOTHING_LEAVES: &[Call] = &[
    denied("default/foo", "default/web", "80/tcp"),
    denied("default/foo", "kube-system/dns", "53/udp"),
    denied("default/foo", OUTSIDE, "80/tcp"),
    allowed("default/test", "default/web", "80/tcp"),
    allowed("default/web", "default/foo", "80/tcp"),
];

/// The cluster with addresses of a family. `apiserver` calls its port 5000 by a name.
fn cluster(v6: bool) -> Workloads {
    let mut documents = vec![nodes(v6)];
    for (name, labels) in NAMESPACES {
        documents
            .push(format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name}, labels: {{ {labels} }} }}\n"));
    }
    for (number, (name, labels)) in PODS.iter().enumerate() {
        let (namespace, name) = name.split_once('/').unwrap();
        let node = number % NODES.len();
        let address = workload_address(v6, node, number + 1);
        let port = if name == "apiserver" { "{ name: api-port, containerPort: 5000 }" } else { "" };
        documents.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: {namespace}, labels: {{ {labels} }} }}\n\
             spec: {{ nodeName: {}, containers: [{{ name: main, ports: [{port}] }}] }}\nstatus: {{ podIP: \"{address}\" }}\n",
            NODES[node]
        ));
    }
    let mut manifests = Manifests::default();
    manifests.read(&source("cluster.yaml", documents.join("---\n"))).unwrap_or_else(|found| panic!("{found}"));
    manifests.workloads().unwrap_or_else(|found| panic!("{found}"))
}

#[test]
fn every_recipe_does_what_its_text_says() {
    let Some(data) = skip::test_data() else { return };
    let recipes = data.join("policies/recipes/yaml");
    let stated: BTreeSet<_> = RECIPES.iter().map(|recipe| recipe.file.to_owned()).collect();
    assert_eq!(files(&recipes), stated, "each file has its calls, and no calls are of a file that is not there");
    let read = |file: &str| fs::read_to_string(recipes.join(file)).unwrap();
    let mut wrong = Vec::new();
    for cluster in [false, true].map(cluster) {
        for Recipe { file, with, steps } in &RECIPES {
            for (number, (text, calls)) in stages(&read(file), *steps).into_iter().enumerate() {
                let name = format!("{file}, step {number}");
                let beside = with.iter().map(|file| read(file));
                let policies = [text].into_iter().chain(beside).collect::<Vec<_>>().join("\n---\n");
                wrong.extend(differences(&name, &policies, &cluster, calls));
                wrong.extend(closed_without_policy(&name, &cluster, calls));
            }
        }
        // The text is wrong only as long as the policy does not do what it says.
        if differences(DENY_EXTERNAL, &read(DENY_EXTERNAL), &cluster, &[MISTAKE]).is_empty() {
            wrong.push(format!("{DENY_EXTERNAL} does all that its text says"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
