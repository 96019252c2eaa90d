//! Calls that a node translates: who answers in the end decides, by the tables.

use bulkhead_controller::{
    diagnostic::source,
    explain::{Question, Who, explain, parse_point},
    manifest::Manifests,
    model::Model,
    simulate::Simulation,
};

/// `web` may call the primary database and pods of its own name, on whatever port.
const CLUSTER: &str = r#"apiVersion: v1
kind: List
items:
- { apiVersion: v1, kind: Node, metadata: { name: n1 }, status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }] } }
- { apiVersion: v1, kind: Node, metadata: { name: n2 }, status: { addresses: [{ type: InternalIP, address: 192.0.2.2 }] } }
- { apiVersion: v1, kind: Pod, metadata: { name: web, namespace: shop, labels: { app: web } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.1 } }
- { apiVersion: v1, kind: Pod, metadata: { name: db, namespace: shop, labels: { app: db, role: primary } }, spec: { nodeName: n1 }, status: { podIP: 10.244.1.3 } }
- { apiVersion: v1, kind: Pod, metadata: { name: copy, namespace: shop, labels: { app: db, role: copy } }, spec: { nodeName: n2 }, status: { podIP: 10.244.2.4 } }
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: { name: web, namespace: shop }
  spec:
    podSelector: { matchLabels: { app: web } }
    policyTypes: [Egress]
    egress: [{ to: [{ podSelector: { matchLabels: { role: primary } } }, { podSelector: { matchLabels: { app: web } } }] }]
"#;

/// What is said of a call of `web`, in one line, with more objects.
fn said(objects: &str, to: &str, port: &str) -> String {
    let mut manifests = Manifests::default();
    for (name, text) in [("cluster.yaml", CLUSTER), ("more.yaml", objects)] {
        manifests.read(&source(name, text)).unwrap_or_else(|found| panic!("{found}"));
    }
    let workloads = manifests.workloads().unwrap_or_else(|found| panic!("{found}"));
    let model = Model::build(&manifests.policies, &workloads).unwrap_or_else(|found| panic!("{found}"));
    let simulation = Simulation::new(&model, 0).unwrap_or_else(|found| panic!("{found}"));
    let [from, to] = ["shop/web", to].map(|name| Who::parse(&simulation, name).unwrap());
    let (class, value) = parse_point(port).unwrap();
    let question = Question { from: from.party(), to: to.party(), class, value };
    let explanation = explain(&model, question, 0).unwrap_or_else(|found| panic!("{found}"));
    let (text, report) = (explanation.text(&model), explanation.report(&model));
    // What must be allowed besides is told in both.
    assert_eq!(text.contains("all backends"), report.contains("all backends"), "{text}\n{report}");
    text
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ {spec} }}\n---\n")
}

fn slice(name: &str, service: &str, endpoint: &str, port: u16) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{ name: {name}, namespace: shop, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         endpoints: [{{ {endpoint} }}]\nports: [{{ port: {port} }}]\n---\n"
    )
}

/// kube-proxy sends to the addresses in slices, whomever they name and whatever the service selects.
#[test]
fn a_slice_is_no_way_around_a_policy() {
    let alone = service("db", "clusterIP: 10.96.0.9, ports: [{ port: 80 }]");
    let selects = service("db", "clusterIP: 10.96.0.9, ports: [{ port: 80 }], selector: { role: primary }");
    let outside = slice("s1", "db", "addresses: [203.0.113.5], targetRef: { kind: Pod, name: web }", 80);
    let other = slice("s1", "db", "addresses: [10.244.2.4], targetRef: { kind: Pod, name: web }", 80);
    let own = slice("s2", "db", "addresses: [10.244.1.1], targetRef: { kind: Pod, name: copy }", 80);
    for (objects, starts, several) in [
        (selects.clone(), "ALLOWED web -> db 80/tcp  by ", false),
        (alone.clone() + &own, "ALLOWED web -> web 80/tcp  by ", false),
        (alone.clone() + &outside, "BLOCKED web -> world (203.0.113.5) 80/tcp  at web's egress: ", false),
        (alone.clone() + &other, "BLOCKED web -> db 80/tcp  at web's egress: ", false),
        (selects + &outside, "BLOCKED web -> world (203.0.113.5) 80/tcp  at web's egress: ", true),
        (alone + &own + &outside, "BLOCKED web -> world (203.0.113.5) 80/tcp  at web's egress: ", true),
    ] {
        let said = said(&objects, "10.96.0.9", "80");
        assert!(said.starts_with(starts), "{objects}{said}");
        let all = said.contains("; 10.96.0.9 leads outside too: all backends there must be allowed to the caller");
        assert_eq!(all, several, "{said}");
    }
}

#[test]
fn a_port_of_a_node_is_answered_by_backends() {
    let all = service("db", "ports: [{ port: 80, nodePort: 30080 }], selector: { app: db }");
    let one = service("db", "ports: [{ port: 80, nodePort: 30080 }], selector: { role: primary }");
    let elsewhere = "; node n2 translates 192.0.2.2, and not the caller's: all backends must be allowed to the caller";
    for (objects, to, port, starts, is_elsewhere) in [
        (&all, "192.0.2.1", "30080", "ALLOWED web -> db 80/tcp  by ", false),
        (&all, "192.0.2.2", "30080", "BLOCKED web -> db 80/tcp  at web's egress: ", true),
        (&one, "192.0.2.2", "30080", "ALLOWED web -> db 80/tcp  by ", true),
        (&one, "192.0.2.2", "30081", "BLOCKED web -> node n2 30081/tcp  at web's egress: ", false),
        (&one, "192.0.2.1", "30080/udp", "BLOCKED web -> node n1 30080/udp  at web's egress: ", false),
    ] {
        let said = said(objects, to, port);
        assert!(said.starts_with(starts), "{to}:{port} {said}");
        assert_eq!(said.contains(elsewhere), is_elsewhere, "{to}:{port} {said}");
    }
}

#[test]
fn of_services_with_one_address_the_one_with_the_port_is_asked() {
    let objects = service("a", "externalIPs: [198.51.100.7], ports: [{ port: 80 }], selector: { role: copy }")
        + &service("b", "externalIPs: [198.51.100.7], ports: [{ port: 443 }], selector: { role: primary }");
    assert!(said(&objects, "198.51.100.7", "80").starts_with("BLOCKED web -> db 80/tcp "));
    assert!(said(&objects, "198.51.100.7", "443").starts_with("ALLOWED web -> db 443/tcp "));
}

/// Of what makes them it is known who they will be.
#[test]
fn pods_whose_addresses_nobody_knows_answer_too() {
    let deployment = |name: &str, role: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ template: {{ metadata: {{ labels: {{ app: {name}, role: {role} }} }}, spec: {{}} }} }}\n---\n"
        )
    };
    let objects = deployment("new", "primary")
        + &deployment("old", "copy")
        + &service("new", "clusterIP: 10.96.0.20, ports: [{ port: 80, targetPort: 8080 }], selector: { app: new }")
        + &service("old", "clusterIP: 10.96.0.21, ports: [{ port: 80 }], selector: { app: old }");
    assert!(said(&objects, "10.96.0.20", "80").starts_with("ALLOWED web -> new 8080/tcp "));
    assert!(said(&objects, "10.96.0.21", "80").starts_with("BLOCKED web -> old 80/tcp "));
}
