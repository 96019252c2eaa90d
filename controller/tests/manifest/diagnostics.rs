//! What is said of bad manifests: where, what, how to mend it.

use bulkhead_controller::{diagnostic::source, manifest::Manifests};

/// What is said of a file, errors or notes.
fn say(text: &str) -> String {
    let mut manifests = Manifests::default();
    let found = match manifests.read(&source("m.yaml", text)) {
        Ok(()) => manifests.workloads().err(),
        Err(found) => Some(found),
    };
    found.unwrap_or(manifests.notes).to_string()
}

/// A case a line: the input, then what is said of it.
fn all(cases: &[&str]) -> String {
    cases.iter().map(|case| format!("{}\n---\n{}\n", case.trim_end(), say(case))).collect::<Vec<_>>().join("\n=====\n")
}

#[test]
fn headers_and_kinds() {
    let said = all(&[
        "# nothing yet\n",
        "kind: Pod\nmetadata: { name: a }\n",
        "apiVersion: v1\nmetadata: { name: a }\n",
        "image: web:1\nreplicas: 3\n",
        "- a\n- b\n",
        "apiVersion: v1\nkind: [Pod]\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: {{ .Release.Name }} }\n",
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices: {}\n---\napiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n",
        "apiVersion: v1\nkind: Deployment\nmetadata: { name: web }\nspec: {}\n",
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: { name: a }\n",
        "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: { name: a }\n",
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: { name: a }\n",
        "apiVersion: policy.networking.k8s.io/v1beta1\nkind: NodePolicy\nmetadata: { name: a }\n",
        "apiVersion: networking.k8s.io/v2\nkind: EdgePolicy\nmetadata: { name: a }\n",
        "apiVersion: v1\nkind: List\nitems:\n- { apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: { name: a } }\n- { apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: { name: b } }\n- { apiVersion: serving.knative.dev/v1, kind: Service, metadata: { name: c } }\n- { kind: Pod }\n",
        "apiVersion: v1\nkind: List\nitems:\n- { apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: { name: a } }\n- { apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: { name: b } }\n- { apiVersion: serving.knative.dev/v1, kind: Service, metadata: { name: c } }\n",
    ]);
    insta::assert_snapshot!(said);
}

#[test]
fn objects() {
    let said = all(&[
        "apiVersion: v1\nkind: Pod\nspec: {}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: Web_1, namespace: sh/op, labels: { app: 1 } }\nspec: {}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: web }\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: web }\nspec:\n  hostNetwork: \"yes\"\n  containers:\n  - ports: [{ name: http, containerPort: 80800 }, { name: dns, containerPort: 53, protocol: udp }, { name: x }]\nstatus: { podIP: 10.244.1 }\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web }\nspec: { replicas: 1 }\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web, Labels: { app: web } }\nspec: { template: { metadata: { label: {} }, spec: {} } }\n",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web, nmespace: shop, selfLink: /a, managedFields: [] }\nspec: { podSelector: {} }\n",
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: { name: web }\nspec: { jobTemplate: { spec: {} } }\n",
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: { name: web }\nspec:\n  schdule: \"* * * * *\"\n  jobTemplate: { labels: {}, spec: { paralelism: 1, template: { lables: {}, spec: {} } } }\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec:\n  hostNetwrok: true\n  initContainers: [{ restartPolicies: Always }]\n  containers:\n  - { name: a, prots: [], tty: true, ports: [{ nmae: http, containerPort: 80, hostPort: 80 }] }\nhostNetwork: true\n",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec:\n  selecter: { app: web }\n  topologyKeys: []\n  ports: [{ port: 80, target: 8080, appProtocol: h2c }]\n",
        "apiVersion: v1\nkind: Endpoints\nmetadata: { name: web }\nsubset: []\n",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec:\n  clusterIP: 10.96.0.300\n  ports: [{ port: 0 }, { targetPort: 80 }, { port: 80, targetPort: Web }, { port: 80, protocol: HTTP }]\n",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { type: ExternalName, externalName: example.com }\n",
    ]);
    insta::assert_snapshot!(said);
}

#[test]
fn what_does_not_fit_together() {
    let said = all(&[
        "apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: {}\nstatus: { podIP: 10.244.1.5 }\n---\napiVersion: v1\nkind: Pod\nmetadata: { name: b }\nspec: {}\nstatus: { podIP: 10.244.1.5 }\n",
        "apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: {}\n---\napiVersion: v1\nkind: Pod\nmetadata: { name: a, namespace: default }\nspec: {}\n",
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: { name: a }\n  spec: { clusterIP: 10.96.0.5, ports: [{ port: 80, nodePort: 30080 }] }\n- metadata: { name: b }\n  spec: { clusterIP: 10.96.0.5, ports: [{ port: 80, nodePort: 30080 }] }\n",
    ]);
    insta::assert_snapshot!(said);
}
