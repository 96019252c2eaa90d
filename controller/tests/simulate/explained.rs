//! What is said of a connection at length: who isolates, and what the rules that come nearest lack.

use bulkhead_controller::{
    diagnostic::source,
    explain::{Who, explain, parse_point},
    manifest::Manifests,
    model::Model,
    policy,
    simulate::Simulation,
};

/// Two databases, of which only the first has a port called `sql`, those who call them, and an address for both and for somebody outside.
const CLUSTER: &str = r#"apiVersion: v1
kind: List
items:
- { apiVersion: v1, kind: Namespace, metadata: { name: shop, labels: { team: shop } } }
- { apiVersion: v1, kind: Namespace, metadata: { name: ops, labels: { team: ops } } }
- { apiVersion: v1, kind: Pod, metadata: { name: web, namespace: shop, labels: { app: web } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.1 } }
- { apiVersion: v1, kind: Pod, metadata: { name: cart, namespace: shop, labels: { app: cart } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.2 } }
- apiVersion: v1
  kind: Pod
  metadata: { name: db, namespace: shop, labels: { app: db, role: primary } }
  spec: { nodeName: n1, containers: [{ ports: [{ name: sql, containerPort: 5432 }] }] }
  status: { podIP: 10.244.1.3 }
- { apiVersion: v1, kind: Pod, metadata: { name: copy, namespace: shop, labels: { app: db, role: copy } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.4 } }
- { apiVersion: v1, kind: Pod, metadata: { name: web, namespace: ops, labels: { app: web } }, spec: { nodeName: n2 }, status: { podIP: 10.244.2.1 } }
- { apiVersion: v1, kind: Service, metadata: { name: db, namespace: shop }, spec: { clusterIP: 10.96.0.9, ports: [{ port: 5432 }] } }
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: { name: db-1, namespace: shop, labels: { kubernetes.io/service-name: db } }
  ports: [{ port: 5432 }]
  endpoints: [{ addresses: [10.244.1.3] }, { addresses: [10.244.1.4] }, { addresses: [203.0.113.9] }]
"#;

/// The same for both, and one rule.
fn policies(selects: &str, rule: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: all, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ app: db }} }}, policyTypes: [Ingress] }}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: db, namespace: shop }}\nspec:\n  \
         podSelector: {{ matchLabels: {{ {selects} }} }}\n  {rule}\n"
    )
}

const WEB: &str = "ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ port: 5432 }] }]";

/// The report of one connection.
fn report(policies: &str, intents: &str, from: &str, to: &str, port: &str) -> String {
    let mut manifests = Manifests::default();
    for (name, text) in [("cluster.yaml", CLUSTER), ("p.yaml", policies)] {
        manifests.read(&source(name, text)).unwrap_or_else(|found| panic!("{found}"));
    }
    let mut all = manifests.policies.clone();
    if !intents.is_empty() {
        all.extend(policy::parse(&source("i.yaml", intents)).unwrap_or_else(|found| panic!("{found}")));
    }
    let model = Model::build(&all, &manifests.workloads().unwrap()).unwrap_or_else(|found| panic!("{found}"));
    let simulation = Simulation::new(&model, 0).unwrap();
    let [from, to] = [from, to].map(|name| Who::parse(&simulation, name).unwrap());
    let (class, value) = parse_point(port).unwrap();
    let question = bulkhead_controller::explain::Question { from: from.party(), to: to.party(), class, value };
    let explanation = explain(&model, question, 0).unwrap_or_else(|found| panic!("{found}"));
    let (text, json) = (explanation.report(&model), explanation.json(&model));
    assert_eq!(json.report, text);
    for near in &json.nearest {
        assert!(text.contains(&format!("    {}  {}\n        {}\n", near.place, near.rule, near.lacks)), "{text}");
    }
    text
}

#[test]
fn what_is_missing_is_said_with_its_line() {
    let (db, every) = (policies("app: db", WEB), policies("app: db, role: primary", WEB));
    let named = policies("app: db", &WEB.replace("5432", "sql"));
    let out = policies(
        "app: web",
        "policyTypes: [Egress]\n  egress: [{ to: [{ podSelector: { matchLabels: { role: primary } } }] }]",
    );
    let isolated = |app: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: shut, namespace: shop }}\n\
             spec: {{ podSelector: {{ matchLabels: {{ app: {app} }} }} }}\n"
        )
    };
    let (shut, half) = (db.clone() + &isolated("web"), out.clone() + &isolated("db"));
    let accepts = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: ops\nservices:\n  web: { accepts: [shop/web:80] }\n\
                   ---\napiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: {}\n";
    let calls = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: ops\nservices:\n  web: {}\n\
                 ---\napiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: [ops/web:80] }\n";
    let said = [
        ("nothing", &db, "", "shop/web", "shop/db", "5432"),
        ("label of the caller", &db, "", "shop/cart", "shop/db", "5432"),
        ("namespace of the caller", &db, "", "ops/web", "shop/db", "5432"),
        ("caller that has no labels", &db, "", "203.0.113.9", "shop/db", "5432"),
        ("port", &db, "", "shop/web", "shop/db", "5433"),
        ("protocol", &db, "", "shop/web", "shop/db", "5432/udp"),
        ("name of the port", &named, "", "shop/web", "shop/copy", "5432"),
        ("label of the callee", &every, "", "shop/web", "shop/copy", "5432"),
        ("label of the callee, at the caller", &out, "", "shop/web", "shop/copy", "5432"),
        ("direction", &shut, "", "shop/db", "shop/web", "5432"),
        ("two things", &db, "", "shop/cart", "shop/db", "5433"),
        ("calls", &db, accepts, "shop/web", "ops/web", "80"),
        ("accepts", &db, calls, "shop/web", "ops/web", "80"),
        ("a rule of the other side", &half, "", "shop/web", "shop/db", "5432"),
        ("one of the backends", &every, "", "shop/web", "10.96.0.9", "5432"),
    ]
    .map(|(missing, policies, intents, from, to, port)| {
        format!("=== {missing}\n{}", report(policies, intents, from, to, port))
    });
    insta::assert_snapshot!(said.join("\n"));
}
