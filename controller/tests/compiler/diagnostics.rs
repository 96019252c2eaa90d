//! What is said of bad input: where, what, how to mend it.

use bulkhead_controller::{
    compile::compile,
    diagnostic::{Drawn, source},
    manifest::Manifests,
    policy, workloads,
};
use bulkhead_dataplane::node::Discovered;

use crate::support::{NOW, example, model};

/// Diagnostics of a policy beside the shop's workloads, errors and warnings.
fn policy(text: &str) -> String {
    let workloads = example("shop-workloads.yaml");
    match model(("p.yaml", text), ("w.yaml", &workloads)) {
        Ok(model) => model.warnings.to_string(),
        Err(found) => found.to_string(),
    }
}

fn intent(body: &str) -> String {
    policy(&format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n{body}"))
}

fn workloads(body: &str) -> String {
    let text = format!("apiVersion: bulkhead/v1\nkind: Workloads\n{body}");
    workloads::parse(&source("w.yaml", text)).map_or_else(|found| found.to_string(), |_| "accepted".to_owned())
}

fn manifests(body: &str) -> String {
    let text = format!("apiVersion: example.com/v1\n{body}");
    let read = Manifests::default().read(&source("m.yaml", text));
    read.map_or_else(|found| found.to_string(), |()| "accepted".to_owned())
}

/// A case a line: the input, then what is said of it.
fn all(cases: &[&str], say: impl Fn(&str) -> String) -> String {
    cases.iter().map(|case| format!("{}\n---\n{}\n", case.trim_end(), say(case))).collect::<Vec<_>>().join("\n=====\n")
}

#[test]
fn documents() {
    let said = all(
        &[
            "",
            "kind: Intent\nnamespace: shop\nservices: {}\n",
            "apiVersion: bulkhead/v2\nkind: Intent\nnamespace: shop\nservices: {}\n",
            "apiVersion: bulkhead/v1\nnamespace: shop\n",
            "apiVersion: bulkhead/v1\nkind: Guard\nname: tenants\nrules:\n  - deny: { from: other }\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices: {}\n---\napiVersion: bulkhead/v1\nkind: Workloads\n",
            "apiVersion: bulkhead/v1\nkind: Indent\nnamespace: shop\nservices: {}\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nkind: Intent\nservices: {}\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n\tweb: {}\n",
            "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices: {\n",
            "- a\n- b\n",
            "just text",
        ],
        policy,
    );
    insta::assert_snapshot!(said);
}

#[test]
fn what_aliases_multiply_is_refused_and_what_is_long_is_not() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", ")));
    }
    for said in [intent(&bomb), workloads(&bomb), manifests(&bomb)] {
        // It stands where an alias does.
        let line: usize = said.split(':').nth(1).unwrap().parse().unwrap();
        assert!(line > 4 && said.contains("more than one of its length can, by its aliases"), "{said}");
    }
    let many: String = (0..60_000).map(|i| format!("  - {{ name: n{i}, labels: {{}} }}\n")).collect();
    for said in [workloads(&format!("namespaces:\n{many}")), manifests(&format!("kind: X\nitems:\n{many}"))] {
        assert_eq!(said, "accepted");
    }
}

#[test]
fn intents() {
    let said = all(
        &[
            "mode: audit\nservices: {}\n",
            "mode: enforced\nservices: {}\n",
            "dns: clutser\nservices: {}\n",
            "dns: cluster\nservices: {}\n",
            "servces: {}\n",
            "services: [web]\n",
            "services:\n  web: {}\n  web: {}\n",
            "services:\n  web: { acepts: [world:443] }\n",
            "services:\n  web: { isolate: audit }\n",
            "services:\n  web: { isolate: false }\n",
            "services: {}\nrules: []\npriority: 1\n",
            "services:\n  web: { select: {} }\n",
            "services:\n  world: {}\n",
            "services:\n  we b: {}\n",
            "services:\n  wbe: {}\n",
            "services:\n  web: { calls: cart:8080 }\n",
            "services:\n  web: { calls: [{ cart: 8080 }] }\n",
            "services:\n  web: { calls: [cart] }\n",
            "services:\n  web: { calls: [crat:8080] }\n  cart: {}\n",
            "services:\n  web: { calls: ['cart:'] }\n  cart: {}\n",
            "services:\n  web: { calls: [cart:80800] }\n  cart: {}\n",
            "services:\n  web: { calls: [cart:8080/tpc] }\n  cart: {}\n",
            "services:\n  web: { calls: [cart:any/udp] }\n  cart: {}\n",
            "services:\n  web: { calls: [cart:8099-8000] }\n  cart: {}\n",
            "services:\n  web: { calls: [cart:htpt] }\n  cart: {}\n",
            "services:\n  web: { calls: [world:http] }\n",
            "services:\n  web: { calls: [cart:8080, cart:8080/tcp] }\n  cart: {}\n",
            "services:\n  web: { calls: ['198.51.100.0/24:443', '[2001:db8::1]:443'] }\n",
            "services:\n  web: { calls: [ops/bakcup:22, 'ops/:22', '*:80'] }\n",
            "external:\n  stripe: { cidrs: [] }\nservices: {}\n",
            "external:\n  stripe: { cidrs: [198.51.100.13/24] }\nservices: {}\n",
            "external:\n  stripe: { cidrs: [198.51.100.0/33, stripe.com] }\nservices: {}\n",
            "external:\n  stripe: { cidrs: [198.51.100.0/24], except: [203.0.113.0/24] }\nservices: {}\n",
            "external:\n  web: { cidrs: [198.51.100.0/24] }\nservices:\n  web: {}\n",
        ],
        intent,
    );
    insta::assert_snapshot!(said);
}

#[test]
fn guards() {
    let head = "apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\n";
    let rule = |rule: &str| format!("{head}compare: tenant\nrules:\n  - {rule}\n");
    let of = |subjects: &str| format!("{head}for: {subjects}\nrules:\n  - deny: {{ to: metadata }}\n");
    let cases = [
        "apiVersion: bulkhead/v1\nkind: Guard\nrules: []\n".to_owned(),
        format!("{head}rules: []\n"),
        format!("{head}namespace: shop\nservices: {{}}\nrules: [{{ deny: {{ to: metadata }} }}]\n"),
        format!("{head}ruels: []\n"),
        format!("{head}services: {{}}\nrulez: []\n"),
        "apiVersion: bulkhead/v1\nkind: Guard\nname: a guard\npriority: high\nmode: dry\nrules: [{ deny: { to: metadata } }]\n".to_owned(),
        format!("{head}rules: [{{ deny: {{ from: other }} }}]\n"),
        format!("{head}compare: tennant\nrules: [{{ pass: {{ from: node }} }}, {{ deny: {{ from: other }} }}]\n"),
        format!("{head}mode: audit\nrules: [{{ deny: {{ to: world, mode: enforce }} }}]\n"),
        format!("{head}external: {{ same: {{ cidrs: [10.0.0.0/8] }}, office: {{ cidrs: [203.0.113.1/24] }} }}\nrules: [{{ deny: {{ to: ofice }} }}]\n"),
        rule("deny: { from: other }"),
        rule("deny: { from: node }\n  - deny: { from: other }"),
        rule("{}"),
        rule("{ allow: { to: world }, deny: { to: world } }"),
        rule("reject: { to: world }"),
        rule("deny: {}"),
        rule("deny: { from: world, to: world }"),
        rule("deny: { to: [] }"),
        rule("deny: { to: { world: 25 } }"),
        rule("deny: { to: 25 }"),
        rule("deny: { to: wrld }"),
        rule("deny: { to: 203.0.113.0/24 }"),
        rule("deny: { to: cart }"),
        rule("deny: { to: shop/crat }"),
        rule("deny: { to: ['world:', 'world:25/tpc'] }"),
        rule("deny: { to: [world, world:25], ports: [25] }"),
        rule("deny: { to: world, ports: [] }"),
        rule("deny: { to: world, ports: 25 }"),
        rule("deny: { to: world, ports: [25, smtp/tcp, 25/tcp] }"),
        rule("deny: { to: world, ports: [smtp] }"),
        rule("deny: { to: cluster, ports: [htpp] }"),
        rule("deny: { to: world, mode: report }"),
        rule("deny: { to: world, expires: tomorrow }"),
        rule("deny: { to: world:25 }\n  - deny: { to: [metadata, world:25/tcp] }"),
        rule("deny: { to: world, except: metadata }"),
        of("{}"),
        of("{ namespace: { tenant: a } }"),
        of("{ namespaces: {} }"),
        of("{ namespaces: { tennant: any } }"),
        of("{ namespaces: { tenant: wholesale } }"),
        of("{ services: [] }"),
        of("{ services: [web, shop/wbe] }"),
        format!("{}---\n{}", rule("deny: { to: metadata }"), rule("deny: { to: metadata }")),
    ];
    let said = all(&cases.each_ref().map(String::as_str), policy);
    insta::assert_snapshot!(said);
}

#[test]
fn the_same_service_in_two_documents() {
    let text = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: {}\n";
    insta::assert_snapshot!(policy(&format!("{text}---\n{text}")), @r"
    p.yaml:11:3: service `shop/web` is listed twice
      p.yaml:5:3: first here
      help: put its lines together in one place
    ");
}

#[test]
fn workloads_files() {
    let node = "nodes: [{ name: n1, addresses: [192.0.2.1], segments: [{ vni: 1, vtep: 192.0.2.1, prefixes: [10.244.1.0/24] }] }]\n";
    let with = |workload: &str| format!("{node}workloads:\n  - {{ name: w, namespace: shop, node: n1, {workload} }}\n");
    let cases = [
        "nodes: [{ name: n1 }]\n".to_owned(),
        "nodes: [{ name: n1, addresses: [192.0.2.1] }, { name: n1, addresses: [192.0.2.2] }]\n".to_owned(),
        "nodes: [{ name: n1, addresses: [192.0.2.256, 127.0.0.1] }]\n".to_owned(),
        "nodes: [{ name: n1, addresses: [192.0.2.1], segments: [{ vni: 0, vtep: 192.0.2.1 }] }]\n".to_owned(),
        "nodes: [{ name: n1, addresses: [192.0.2.1], segments: [{ vni: 1, vtep: 192.0.2.1, prefixes: [10.244.1.5/24] }] }]\n".to_owned(),
        "namespaces: [{ name: shop, labels: { tenant: a } }, { name: a b }, { name: shop }, { name: ops, labels: { kubernetes.io/metadata.name: shop } }]\n".to_owned(),
        format!("{node}---\nkind: Workloads\napiVersion: bulkhead/v1\n"),
        with("nod: n2"),
        with("mode: observe"),
        with("mode: quarantined"),
        with("mode: pending"),
        format!("{node}workloads: [{{ name: w, namespace: shop, node: n11 }}]\n"),
        with("ports: { HTTP: 80, http: 99999, any: 1 }"),
        with("endpoints: [{ segment: 2, addresses: [10.244.1.5], link: veth1 }]"),
        with("endpoints: [{ addresses: [], link: veth1 }]"),
        with("endpoints: [{ addresses: [192.0.2.1], link: veth1 }]"),
        with("endpoints: [{ addresses: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5], link: veth1 }]"),
        with("endpoints: [{ addresses: [10.0.0.1], link: an-interface-name-too-long }]"),
        with("endpoints: [{ addresses: [10.0.0.1], link: veth1 }, { addresses: [10.0.0.1], link: veth1 }]"),
        with("endpoints: [{ addresses: [10.0.0.1] }]"),
        with("endpoints: []") + "  - { name: w, namespace: shop, node: n1 }\n",
    ];
    let said = all(&cases.each_ref().map(String::as_str), workloads);
    insta::assert_snapshot!(said);
}

#[test]
fn service_addresses() {
    let head = "nodes: [{ name: n1, addresses: [192.0.2.1] }]\nworkloads:\n  - { name: cart-1, namespace: shop, node: n1, ports: { http: 8080, dns: 53/udp }, endpoints: [{ addresses: [10.0.0.5], link: veth1 }] }\n";
    let of = |services: &[&str]| {
        format!(
            "{head}services:\n{}",
            services.iter().map(|service| format!("  - {{ {service} }}\n")).collect::<String>()
        )
    };
    let cart = |fields: &str| of(&[&format!("name: cart, namespace: shop, addresses: [10.96.3.4], {fields}")]);
    let cases = [
        cart("ports: [{ port: 80, target: http, nodePort: 30080 }, { port: 53, protocol: udp }], backends: [cart-1]"),
        cart("ports: [{ port: 80 }], backends: [cart-11, other/cart-1]"),
        cart("ports: [{ port: 80 }], backends: [10.0.0.5, 10.96.3.4, 127.0.0.1]"),
        cart("ports: [{ port: 80 }], backends: [cart-1, cart-1, 192.0.2.1, 192.0.2.9, 192.0.2.9]"),
        cart("ports: [], backends: [cart-1]"),
        cart("backends: [cart-1]"),
        cart("ports: [{ port: 0 }, { port: 80-81 }, { target: 80 }]"),
        cart("ports: [{ port: 0 }, { port: 65536, nodePort: x, protocol: icmp }, { port: 1, target: HTTP }]"),
        cart("ports: [{ port: 80, target: htpt }, { port: 81, target: dns }], backends: [cart-1]"),
        cart("ports: [{ port: 80, target: http }], backends: [192.0.2.9]"),
        cart("ports: [{ port: 80 }, { port: 80, target: 1 }, { port: 80, protocol: udp }]"),
        cart("ports: [{ port: 80, node_port: 30080 }]"),
        of(&[
            "name: a, namespace: shop, addresses: [10.0.0.5, 192.0.2.1, 10.96.3.4, 10.96.3.4, 224.0.0.1], ports: [{ port: 80 }]",
        ]),
        of(&[
            "name: a, namespace: shop, ports: [{ port: 80 }]",
            "name: b, namespace: shop, ports: [{ port: 80, nodePort: 30080 }]",
        ]),
        of(&[
            "name: a, namespace: shop, addresses: [10.96.3.4], ports: [{ port: 80, nodePort: 30080 }]",
            "name: b, namespace: shop, addresses: [10.96.3.4], ports: [{ port: 80, nodePort: 30080 }, { port: 81, nodePort: 30080, protocol: udp }]",
        ]),
        of(&[
            "name: a, namespace: shop, addresses: [10.96.3.4], ports: [{ port: 80 }]",
            "name: a, namespace: shop, addresses: [10.96.3.5], ports: [{ port: 80 }]",
        ]),
        of(&[&format!(
            "name: a, namespace: shop, addresses: [10.96.3.4], ports: [{}]",
            (1..=129).map(|port| format!("{{ port: {port} }}")).collect::<Vec<_>>().join(", ")
        )]),
    ];
    let said = cases.each_ref().map(|case| {
        let what = case.strip_prefix(head).unwrap().chars().take(250).collect::<String>();
        format!("{}\n---\n{}\n", what.trim_end(), workloads(case))
    });
    insta::assert_snapshot!(said.join("\n=====\n"));
}

#[test]
fn what_only_the_compiler_sees() {
    let model_of = |policy: &str, workloads: &str| {
        model(("p.yaml", policy), ("w.yaml", workloads)).unwrap_or_else(|found| panic!("{found}"))
    };
    let head = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n";
    let workloads = example("shop-workloads.yaml");

    let model = model_of(&format!("{head}services: {{}}\n"), &workloads);
    let unknown = compile(&model, "n22", &Discovered::default(), NOW).unwrap_err();

    let ports: Vec<String> = (0..400).map(|i| format!("world:{}", 8000 + 2 * i)).collect();
    let crowded = format!("{head}services:\n  web:\n    accepts: [{}]\n", ports.join(", "));
    let model = model_of(&crowded, &workloads);
    let long = compile(&model, "n1", &Discovered::default(), NOW).unwrap_err();

    let discovered = Discovered { addresses: vec!["10.244.1.5".parse().unwrap()], ..Discovered::default() };
    let stolen =
        compile(&model_of(&format!("{head}services: {{}}\n"), &workloads), "n1", &discovered, NOW).unwrap_err();
    let said = format!("{unknown}\n\n{long}\n\n{stolen}");
    insta::assert_snapshot!(said);
}

#[test]
fn a_diagnostic_is_drawn_with_its_line() {
    let drawn = |text: &str| {
        let found = policy::parse(&source("p.yaml", text)).unwrap_err();
        let drawn = Drawn::from(found.0.into_iter().next().unwrap());
        let mut picture = String::new();
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::none())
            .render_report(&mut picture, &drawn)
            .unwrap();
        picture
    };
    let text = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: [cart] }\n";
    insta::assert_snapshot!(drawn(text));
    // What a program has written into one line is not shown as a whole.
    let long = drawn(&text.replace("[cart]", &format!("[cart{}]", ", db:5432".repeat(10_000))));
    assert!(long.contains("p.yaml:5:18: `cart` has no port") && long.len() < 400, "{long}");
}
