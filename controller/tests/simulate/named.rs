//! A port's name that several containers of a pod have given.

use bulkhead_controller::{
    diagnostic::source,
    manifest::Manifests,
    model::Model,
    simulate::{Party, Simulation, display},
    workloads::WorkloadName,
};

const CLUSTER: &str = "apiVersion: v1
kind: List
items:
- { apiVersion: v1, kind: Namespace, metadata: { name: shop } }
- { apiVersion: v1, kind: Pod, metadata: { name: web, namespace: shop, labels: { app: web } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.1 } }
- apiVersion: v1
  kind: Pod
  metadata: { name: names, namespace: shop, labels: { app: names } }
  spec:
    nodeName: n2
    containers:
    - ports: [{ name: dns, containerPort: 53, protocol: UDP }]
    - ports: [{ name: dns, containerPort: 53 }, { name: http, containerPort: 80 }]
    - ports: [{ name: dns, containerPort: 5353 }]
  status: { podIP: 10.244.2.1 }
";

/// What `web` may call `names` on.
fn called(policy: &str) -> String {
    let mut manifests = Manifests::default();
    for (name, text) in [("cluster.yaml", CLUSTER), ("policy.yaml", policy)] {
        manifests.read(&source(name, text)).unwrap_or_else(|found| panic!("{found}"));
    }
    let model = Model::build(&manifests.policies, &manifests.workloads().unwrap()).unwrap();
    let simulation = Simulation::new(&model, 0).unwrap();
    let [web, names] = ["web", "names"].map(|name| {
        let name = WorkloadName::new("shop".to_owned(), name.to_owned());
        display(&name, &model.workloads[&name])
    });
    simulation.between(Party::Group(&web), Party::Group(&names)).to_string()
}

#[test]
fn it_means_the_port_of_each() {
    let select = "podSelector: { matchLabels: { app: names } }";
    for (protocol, allowed) in [("TCP", "53/tcp, 5353/tcp"), ("UDP", "53/udp")] {
        let allow = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: dns, namespace: shop }}\n\
             spec: {{ {select}, ingress: [{{ ports: [{{ port: dns, protocol: {protocol} }}] }}] }}\n"
        );
        assert_eq!(called(&allow), allowed);
        // The wall of who calls knows them as well.
        let out = allow.replace("app: names", "app: web").replace("ingress", "policyTypes: [Egress], egress");
        let out = out.replace("{ ports", "{ to: [{ podSelector: {} }], ports");
        assert_eq!(called(&out), allowed);
    }
    let deny = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: { name: dns }\n\
                spec:\n  priority: 1\n  subject: { namespaces: {} }\n  \
                ingress: [{ action: Deny, from: [{ namespaces: {} }], ports: [{ namedPort: dns }] }]\n";
    let open = called(deny);
    let of = |transport| open.split(", ").filter(move |word| word.ends_with(transport)).collect::<Vec<_>>();
    assert_eq!(of("tcp"), ["1-52/tcp", "54-5352/tcp", "5354-65535/tcp"], "{open}");
    assert_eq!(of("udp"), ["1-52/udp", "54-65535/udp"], "{open}");
}
