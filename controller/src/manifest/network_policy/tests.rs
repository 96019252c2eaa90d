use crate::{
    manifest::read::testing::{policies, table, wrong},
    network_policy::NetworkPolicy,
    policy::Policy,
};

/// A policy of a body, which must be good.
fn policy(body: &str) -> NetworkPolicy {
    let (policies, found) = policies("p.yaml", &document(body));
    assert!(found.0.is_empty(), "{found}");
    match <[Policy; 1]>::try_from(policies) {
        Ok([Policy::Network(policy)]) => policy,
        other => panic!("{other:?}"),
    }
}

fn document(spec: &str) -> String {
    let spec: Vec<_> = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: web, namespace: shop }}\nspec:\n{}",
        spec.concat()
    )
}

/// Peers and ports of the rules of a body, a rule a line.
fn rules(body: &str) -> String {
    let text = |rule: &crate::network_policy::Rule| {
        let peers: Vec<_> = rule.peers.iter().map(ToString::to_string).collect();
        let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
        format!("{} | {} | {}", rule.name, peers.join(" or "), ports.join(" or "))
    };
    policy(body).rules.iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_policy_has_its_name_and_selects_its_pods() {
    let found = policy("podSelector: { matchLabels: { app: web } }");
    assert_eq!((found.name.to_string().as_str(), found.place.line, found.place.column), ("shop/web", 3, 19));
    assert_eq!(found.pods.to_string(), "app=web");
    assert!(policy("podSelector: {}").pods.is_everybody());
    assert!(policy("podSelector:").pods.is_everybody(), "nothing is required");
    let text = document("podSelector: {}").replace(", namespace: shop", ", labels: { a: b }, uid: 7") + "status: {}\n";
    let (policies, found) = policies("p.yaml", &text);
    assert!(found.0.is_empty(), "{found}");
    assert!(matches!(&policies[..], [Policy::Network(policy)] if policy.name.namespace == "default"));
}

#[test]
fn types_say_in_which_directions_it_isolates() {
    for (body, isolates) in [
        ("podSelector: {}", (true, false)),
        ("podSelector: {}\npolicyTypes: []", (true, false)),
        ("podSelector: {}\negress: [{}]", (true, true)),
        ("podSelector: {}\npolicyTypes: [Egress]", (false, true)),
        ("podSelector: {}\npolicyTypes: [Ingress]", (true, false)),
        ("podSelector: {}\npolicyTypes: [Egress, Ingress]", (true, true)),
        ("podSelector: {}\npolicyTypes: [Egress]\negress: []", (false, true)),
    ] {
        let found = policy(body);
        assert_eq!((found.ingress, found.egress), isolates, "{body}");
    }
}

#[test]
fn a_rule_without_peers_or_ports_is_about_all_of_them() {
    let all = "networkpolicy shop/web: ingress[0] | any | any";
    for rule in ["{}", "{ from: [], ports: [] }", "{ from: , ports: }"] {
        assert_eq!(rules(&format!("podSelector: {{}}\ningress: [{rule}]")), all, "{rule}");
    }
    assert_eq!(rules("podSelector: {}"), "");
    let found = policy("podSelector: {}\ningress:\n  - {}\n  - from: []\negress:\n  - {}");
    let places: Vec<_> = found.rules.iter().map(|rule| (rule.name.as_str(), rule.place.line)).collect();
    let name = |of| format!("networkpolicy shop/web: {of}");
    assert_eq!(places, [(name("ingress[0]").as_str(), 7), (&name("ingress[1]"), 8), (&name("egress[0]"), 10)]);
}

#[test]
fn peers_are_workloads_or_addresses() {
    let said = rules(
        "podSelector: {}
ingress:
  - from:
      - podSelector: { matchLabels: { app: a } }
      - podSelector: {}
      - namespaceSelector: {}
      - namespaceSelector: { matchLabels: { tier: b } }
      - { namespaceSelector: { matchLabels: { tier: b } }, podSelector: { matchExpressions: [{ key: c, operator: Exists }] } }
egress:
  - to:
      - ipBlock: { cidr: 10.1.2.3/8, except: [10.9.0.1/16, 10.2.0.0/16, 10.9.0.0/16] }
      - ipBlock: { cidr: '2001:db8::/32' }",
    );
    assert_eq!(
        said,
        "networkpolicy shop/web: ingress[0] | workloads shop/[app=a] or workloads shop/* or workloads */* or workloads [tier=b]/* or workloads [tier=b]/[c] | any
networkpolicy shop/web: egress[0] | cidr 10.0.0.0/8 except 10.2.0.0/16,10.9.0.0/16 or cidr 2001:db8::/32 | any"
    );
}

#[test]
fn ports_have_numbers_names_and_ranges() {
    let ports = "[{}, { protocol: UDP }, { port: 80 }, { port: 80, protocol: TCP }, { port: 53, protocol: UDP }, { port: http }, \
                 { port: m3ua, protocol: SCTP }, { port: 8000, endPort: 8099 }, { port: 1, endPort: 1 }, { port: 65535 }]";
    assert_eq!(
        rules(&format!("podSelector: {{}}\ningress: [{{ ports: {ports} }}]")),
        "networkpolicy shop/web: ingress[0] | any | 1-65535/tcp or 1-65535/udp or 80/tcp or 53/udp or http/tcp or m3ua/sctp or 8000-8099/tcp \
         or 1/tcp or 65535/tcp"
    );
}

#[test]
fn what_is_wrong_with_a_network_policy() {
    let whole = [
        "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: { name: web }\nspec: { podSelector: {} }",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web }",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: { podSelector: {} }",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { generateName: web- }\nspec: { podSelector: {} }",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: 'a b', namespace: a.b }\nspec: { podSelector: {} }",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web }\nspec: { podSelector: {} }\ningress: []",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web }\nspec: []",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: a }\nspec: { podSelector: {} }\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: a }\nspec: { podSelector: {} }",
    ];
    let specs = [
        "podSelector: { app: web }",
        "podselector: {}",
        "podSelector: {}\npolicyTypes: [ingress]",
        "podSelector: {}\npolicyTypes: Ingress",
        "podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]",
        "podSelector: {}\negress: []",
        "podSelector: {}\ningress: {}",
        "podSelector: {}\ningress: [~]",
        "podSelector: {}\ningress: [{ to: [] }]",
        "podSelector: {}\negress: [{ from: [], port: [] }]",
        "podSelector: {}\ningress: [{ from: { podSelector: {} } }]",
        "podSelector: {}\ningress: [{ from: [{}, { podSelector: }, { pods: {} }] }]",
        "podSelector: {}\ningress: [{ from: [{ podSelector: {}, ipBlock: { cidr: 10.0.0.0/8 } }] }]",
        "podSelector: {}\ningress: [{ from: [{ ipBlock: {} }, { ipBlock: { cidr: 10.0.0.1 } }, { ipBlock: { cidr: any, only: [] } }] }]",
        "podSelector: {}\ningress: [{ from: [{ ipBlock: { cidr: '::ffff:10.0.0.0/104' } }] }]",
        "podSelector: {}\ningress: [{ from: [{ ipBlock: { cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/16, '::/0', x] } }] }]",
        "podSelector: {}\ningress: [{ ports: [80] }]",
        "podSelector: {}\ningress: [{ ports: [{ port: 0 }, { port: 65536 }, { port: -1 }, { port: 1.5 }] }]",
        "podSelector: {}\ningress: [{ ports: [{ port: '80' }, { port: HTTP }, { port: any }, { port: a--b }, { port: sixteen-letters-x }] }]",
        "podSelector: {}\ningress: [{ ports: [{ port: 80, protocol: tcp }, { protocol: ICMP }] }]",
        "podSelector: {}\ningress: [{ ports: [{ endPort: 80 }, { port: http, endPort: 80 }, { port: 80, endPort: 79 }, { port: 80, endPort: 65536 }] }]",
        "podSelector: {}\ningress: [{ ports: [{ port: 80, endport: 90 }] }]",
    ]
    .map(document);
    let cases: Vec<_> = whole.into_iter().chain(specs.iter().map(String::as_str)).collect();
    insta::assert_snapshot!(table(&cases, |case| wrong("p.yaml", case)));
}
