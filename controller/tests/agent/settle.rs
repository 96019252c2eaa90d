//! One bad file does not hold back the others.

use std::net::IpAddr;

use bulkhead_controller::{
    diagnostic::{Diagnostic, Diagnostics},
    explain::{Party, Question, Verdict, explain},
    guard::Whom,
    input::{Files, Inputs, Listing},
    model::Model,
    network_policy::NetworkPolicy,
    settle::{Blame, Memory, Settled, settle, settle_with},
};
use bulkhead_ebpf::abi::Class;

use crate::support::{INTENT, WORKLOADS};

const BAD: &str = "not: [a policy";

/// Texts by name; what begins with `w` is the workloads file.
fn inputs(texts: &[(&str, &str)]) -> Inputs {
    let mut inputs = Inputs::default();
    for (name, text) in texts {
        let (name, text) = ((*name).to_owned(), (*text).to_owned());
        if name.starts_with('w') {
            inputs.workloads = (name, text);
        } else {
            inputs.policies.insert(name, text);
        }
    }
    inputs
}

fn settled(now: &[(&str, &str)], last: &[(&str, &str)]) -> Result<Settled<Model>, Diagnostics> {
    settle(&inputs(now).into(), Some(&inputs(last)), Model::build)
}

/// Asserts which texts are used, and gives back what is said of the others.
#[track_caller]
fn used(now: &[(&str, &str)], last: &[(&str, &str)], expected: &[(&str, &str)]) -> String {
    let settled = settled(now, last).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(settled.inputs, inputs(expected), "{}", settled.refused);
    settled.refused.to_string()
}

fn intent(namespace: &str, body: &str) -> String {
    format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {namespace}\nservices:\n{body}")
}

const W: (&str, &str) = ("w.yaml", WORKLOADS);

#[test]
fn good_files_are_used_as_they_are() {
    let ops = intent("ops", "  backup: {}\n");
    let now = [("shop.yaml", INTENT), ("ops.yaml", &ops), W];
    for last in [&now[..], &[("shop.yaml", INTENT), W], &[("old.yaml", INTENT), ("w2.yaml", WORKLOADS)]] {
        assert_eq!(used(&now, last, &now), "");
    }
}

#[test]
fn a_bad_file_is_as_it_was_and_the_others_are_as_they_are() {
    let more = WORKLOADS.replace("db-1", "db-2");
    let ops = intent("ops", "  backup: {}\n");
    let now = [("a.yaml", BAD), ("ops.yaml", ops.as_str()), ("w.yaml", &more)];
    let said = used(&now, &[("a.yaml", INTENT), W], &[("a.yaml", INTENT), now[1], now[2]]);
    assert!(said.starts_with("a.yaml:"), "{said}");
    assert!(said.ends_with("\na.yaml is not in force as it is: its last good text is"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("a.yaml:")).count(), 1, "said once: {said}");

    // A name that nobody has is no less a mistake.
    let unknown = INTENT.replace("db:5432", "bd:5432");
    let said =
        used(&[("a.yaml", &unknown), now[1], now[2]], &[("a.yaml", INTENT), W], &[("a.yaml", INTENT), now[1], now[2]]);
    assert!(said.contains("did you mean `db`?"), "{said}");
}

#[test]
fn what_never_was_good_is_left_out_by_name() {
    let more = WORKLOADS.replace("db-1", "db-2");
    let now = [("new.yaml", BAD), ("shop.yaml", INTENT), ("w.yaml", more.as_str())];
    let said = used(&now, &[("shop.yaml", INTENT), W], &now[1..]);
    assert!(said.ends_with("\nnew.yaml is not in force: it never was good"), "{said}");
}

/// What is used of `new.yaml` with this text beside a good file, where `last` isolates this much of it.
#[track_caller]
fn isolated(text: Result<&str, Diagnostic>, last: Option<&Inputs>) -> Settled<Model> {
    let good = inputs(&[("shop.yaml", INTENT), W]);
    let mut files: Files = good.clone().into();
    files.policies.as_mut().unwrap().insert("new.yaml".to_owned(), text.map(str::to_owned));
    let settled = settle(&files, Some(last.unwrap_or(&good)), Model::build).unwrap_or_else(|found| panic!("{found}"));
    // What is stored means the same at the next start.
    let again = settled.inputs.model().unwrap();
    assert_eq!(again.services.keys().collect::<Vec<_>>(), settled.built.services.keys().collect::<Vec<_>>());
    settled
}

/// What is said of it at the end.
#[track_caller]
fn says(settled: &Settled<Model>, names: &str) {
    let until = if names.is_empty() { "" } else { "; isolated until it is: " };
    let expected = format!("\nnew.yaml is not in force: it never was good{until}{names}");
    assert!(settled.refused.to_string().ends_with(&expected), "{}\nnot: {expected}", settled.refused);
}

#[test]
fn what_never_was_good_isolates_what_can_be_read_of_it() {
    let services = "  # A name that nobody has.\n  backup: { calls: [bd:5432] }\n  mail:\n    select: { app: postfix }\n    accepts: [nobody:80]\n";
    let bad = intent("ops", services);
    let first = isolated(Ok(&bad), None);
    says(&first, "ops/backup, ops/mail");
    assert!(first.refused.to_string().contains("new.yaml:6:21"), "{}", first.refused);
    let text = &first.inputs.policies["new.yaml"];
    let line = |name: &str| text.lines().position(|line| line.contains(name)).unwrap() + 1;
    assert_eq!([line("backup"), line("mail"), line("postfix")], [6, 7, 7], "{text}");

    // That is no good version: as soon as the file says more, more is isolated, and nothing is when it is gone or good.
    let last = &first.inputs;
    says(&isolated(Ok(&format!("{bad}  more: {{}}\n")), Some(last)), "ops/backup, ops/mail, ops/more");
    says(&isolated(Ok(&intent("ops", "  mail: { calls: [nobody:80] }\n")), Some(last)), "ops/mail");
    let without = inputs(&[("shop.yaml", INTENT), W]);
    let gone = settle(&without.clone().into(), Some(last), Model::build).unwrap();
    assert_eq!((gone.inputs, gone.refused), (without, Diagnostics::default()));
    let good = isolated(Ok(&intent("ops", "  backup: {}\n")), Some(last));
    assert_eq!(good.refused, Diagnostics::default());
    assert!(good.inputs.isolating.is_empty());

    // Where less can be read than before, nothing opens.
    let error = || Diagnostic::nowhere("new.yaml cannot be read: I/O error");
    for text in [Err(error()), Ok(""), Ok(BAD), Ok(&bad[..bad.len() - 30]), Ok("kind: Intents\nnamespace: ops\n")] {
        says(&isolated(text, Some(last)), "ops/backup, ops/mail");
    }
    let files = Files { policies: Err(error()), ..last.clone().into() };
    let settled = settle(&files, Some(last), Model::build).unwrap();
    assert_eq!(settled.inputs.policies.keys().collect::<Vec<_>>(), ["new.yaml", "shop.yaml"]);
    says(&settled, "ops/backup, ops/mail");
}

#[test]
fn what_is_isolated_is_read_as_far_as_it_goes() {
    let cases = [
        // A text that ends in the middle of a service, which may select anything.
        (intent("ops", "  a: { calls: [nobody:1] }\n  b:\n    select: { app: "), "ops/a"),
        // And below one, which cannot be meant any more.
        (intent("ops", "  a: { calls: [nobody:1] }\n  b: {}\n") + "---\nkind: [", "ops/a, ops/b"),
        (intent("ops", "  a: {}\n  a: { calls: [web] }\n  b: {}\n"), "ops/a"),
        // The mistake is above.
        (intent("ops", "  a: {}\n").replace("bulkhead/v1", "bulkhead/v2"), "ops/a"),
        (intent("ops", "  a: { unknown: 1, select: { app: x, tier: \"1\" } }\n"), "ops/a"),
        (intent("ops", "  a: {}\n").replace("services", "mode: loud\nservices"), "ops/a"),
        // Several documents.
        (intent("ops", "  a: {}\n") + "---\n" + &intent("mail", "  b: { calls: [nobody:1] }\n"), "mail/b, ops/a"),
        // Who is listed elsewhere is isolated there.
        (intent("shop", "  web: {}\n  other: { calls: [nobody:1] }\n"), "shop/other"),
        // What cannot be a service does not keep others open.
        (intent("ops", "  node: {}\n  a: {}\n  b: { select: {} }\n  'c d': {}\n"), "ops/a"),
        (intent("ops", "  a: { select: { app: \"\\e \\\" ü\" }, calls: [nobody:1] }\n"), "ops/a"),
        (intent("ops", "  a: {}\n").replace("namespace: ops", "namespace: [ops]"), ""),
        (intent("ops", "  a: {}\n").replace("Intent", "Intents"), ""),
        (BAD.to_owned(), ""),
        (String::new(), ""),
    ];
    for (text, expected) in cases {
        println!("{text}");
        says(&isolated(Ok(&text), None), expected);
    }
    // What only reports goes on to do so.
    let audited = intent("ops", "  a: { isolate: audit, calls: [nobody:1] }\n");
    for text in [&audited, &audited.replace("services", "mode: audit\nservices").replace("isolate: audit, ", "")] {
        assert!(isolated(Ok(text), None).built.services.values().any(|service| service.walls_only && service.audit));
    }
    // A name that somebody uses otherwise is left out alone, and why is said.
    let shop = INTENT.replace("external: {", "external: { taken: { cidrs: [203.0.113.0/24] },");
    let good = inputs(&[("shop.yaml", &shop), W]);
    let mut now: Files = good.clone().into();
    let bad = intent("shop", "  taken: {}\n  other: { calls: [nobody:1] }\n");
    now.policies.as_mut().unwrap().insert("new.yaml".to_owned(), Ok(bad));
    let settled = settle(&now, Some(&good), Model::build).unwrap();
    says(&settled, "shop/other");
    let said = settled.refused.to_string();
    assert!(said.contains("shop/taken cannot be isolated: the name `shop/taken` is given twice"), "{said}");
}

/// The same of objects of Kubernetes, alone, in a list, and beside a NetworkPolicy.
#[test]
fn an_object_that_never_was_good_isolates_as_a_file_does() {
    let object = |name: &str, services: &str| {
        format!(
            "apiVersion: bulkhead.io/v1\nkind: Intent\nmetadata: {{ name: {name}, namespace: ops }}\nspec: {{ services: {services} }}\n"
        )
    };
    let bad = object("a", "{ backup: { calls: [nobody:80] }, mail: {} }");
    says(&isolated(Ok(&bad), None), "ops/backup, ops/mail");
    let policy = network_policy("db", "  podSelector: { matchLabels: { app: db } }\n  ingres: []\n");
    says(&isolated(Ok(&format!("{bad}---\n{policy}")), None), "networkpolicy ops/db, ops/backup, ops/mail");
    let item = "{ apiVersion: bulkhead.io/v1, kind: Intent, metadata: { namespace: ops }, spec: { services: { a: {}, b: { calls: [c] } } } }";
    says(&isolated(Ok(&format!("apiVersion: v1\nkind: List\nitems:\n- {item}\n")), None), "ops/a, ops/b");
}

/// A NetworkPolicy with this `spec`.
fn network_policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: ops\nspec:\n{spec}"
    )
}

/// Of admin policies what denies must not wait for what opens: names of the DNS, for one, stand in many an Allow.
#[test]
fn an_admin_policy_that_never_was_good_holds_as_far_as_it_can_be_read() {
    let admin = |spec: &str| {
        let head =
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: { name: edge }\n";
        format!("{head}spec:\n  tier: Admin\n  priority: 5\n{spec}")
    };
    let rules = |settled: &Settled<Model>| -> Vec<String> {
        let guards = settled.built.guards.iter();
        let rules = guards.flat_map(|guard| guard.rules.iter().map(move |rule| (guard, rule)));
        let shown = rules.map(|(guard, rule)| {
            let Whom::Is(peer) = &rule.peer else { panic!("no peer of Kubernetes") };
            let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
            let name = rule.name.strip_prefix("clusternetworkpolicy edge: ").unwrap();
            format!(
                "{}:{} {name} {:?} {peer} {}",
                guard.subjects.place.is_some(),
                rule.place.line,
                rule.action,
                ports.join(",")
            )
        });
        shown.collect()
    };
    let subject = "  subject: { namespaces: {} }\n";
    let deny = "  - { action: Deny, to: [{ networks: [198.51.100.0/24] }] }\n";
    let names = "  - { action: Accept, to: [{ domainNames: [example.com] }, { networks: [192.0.2.0/24] }], protocols: [{ tcp: { destinationPort: { number: 443 } } }, { quic: {} }] }\n";
    let only_names = "  - { name: dns, action: Accept, to: [{ domainNames: [example.com] }] }\n";
    let text = admin(&format!("{subject}  egress:\n{names}{only_names}{deny}"));
    let first = isolated(Ok(&text), None);
    let said = first.refused.to_string();
    assert!(said.contains("`domainNames` cannot be enforced"), "{said}");
    let remains = "it never was good; what can be read of it is, and a Deny or Pass that cannot be denies all: clusternetworkpolicy edge";
    assert!(said.ends_with(remains), "{said}");
    let nobody = "workloads [bulkhead.io/nobody,!bulkhead.io/nobody]/*";
    let expected = [
        "true:1 egress[0] Allow cidr 192.0.2.0/24 443/tcp".to_owned(),
        format!("true:1 egress[1] Deny {nobody} any"),
        "true:1 egress[2] Deny cidr 198.51.100.0/24 any".to_owned(),
    ];
    assert_eq!(rules(&first), expected);
    // Whom what denies or passes on is about besides nobody knows: it may be everybody.
    let accept = "  - { action: Accept, to: [{ networks: [192.0.2.0/24] }] }\n";
    let pass = "  - { action: Pass, to: [{ networks: [203.0.113.0/24] }] }\n";
    let unread = "  - { action: ACTION, to: [{ networks: [198.18.0.0/15] }, { internet: {} }], protocols: null }\n";
    let shut = &["Deny 198.51", "Deny */*", "Deny []", "Deny 0.0.0", "Allow 192.0", "Pass 203.0"][..];
    for (action, expected) in [
        ("Accept", &["Deny 198.51", "Allow 198.18", "Allow 192.0", "Pass 203.0"][..]),
        ("Deny", shut),
        ("Pass", shut),
        ("Drop", shut),
    ] {
        let rest = [deny, &unread.replace("ACTION", action), accept, pass].concat();
        let settled = isolated(Ok(&admin(&format!("{subject}  egress:\n{rest}"))), None);
        let short = |rule: &String| {
            let words: Vec<_> = rule.split(' ').collect();
            format!("{} {}", words[2], words[4][..words[4].len().min(6)].trim_end_matches('.'))
        };
        assert_eq!(rules(&settled).iter().map(short).collect::<Vec<_>>(), expected, "{action}");
        let db = settled.built.workloads.keys().next().unwrap();
        let far = [[192, 0, 2, 9], [203, 0, 113, 9], [8, 8, 8, 8]].map(|address| {
            let to = Party::Address(IpAddr::from(address));
            let question = Question { from: Party::Workload(db), to, class: Class::Tcp, value: 443 };
            matches!(explain(&settled.built, question, 0).unwrap().egress, Verdict::Denied(_))
        });
        assert_eq!(far, [action != "Accept"; 3], "{action}");
    }
    let ingress = "  - { action: Deny, from: [{ pods: { podSelector: {} } }, { internet: {} }] }\n";
    let settled = isolated(Ok(&admin(&format!("{subject}  ingress:\n{ingress}"))), None);
    assert_eq!(rules(&settled), ["true:1 ingress[0] Deny workloads */* any"]);
    // A denial is of all ports where some cannot be read.
    let ports = "  - { action: Deny, to: [{ networks: [198.18.0.0/15] }], protocols: [{ tcp: { destinationPort: { number: 22 } } }, { quic: {} }] }\n";
    let wide = isolated(Ok(&admin(&format!("{subject}  egress:\n{ports}"))), None);
    assert_eq!(rules(&wide), ["true:1 egress[0] Deny cidr 198.18.0.0/15 any"]);
    // As soon as less is bad more holds, and where less can be read what held stays.
    let good = isolated(Ok(&admin(&format!("{subject}  egress:\n{deny}"))), Some(&first.inputs));
    assert_eq!((good.refused.to_string().as_str(), rules(&good).len()), ("", 1));
    for text in [Ok(""), Ok(BAD), Err(Diagnostic::nowhere("new.yaml cannot be read: I/O error"))] {
        let settled = isolated(text, Some(&first.inputs));
        assert!(settled.refused.to_string().ends_with(remains), "{}", settled.refused);
        assert_eq!(rules(&settled).len(), 3);
    }
    // Whom it is about, or when it is judged, is nobody's guess; and a text that is cut off may go on.
    for text in [
        admin(&format!("  subject: {{ namespace: {{}} }}\n  egress:\n{deny}")),
        admin(&format!("{subject}  egress:\n{deny}")).replace("priority: 5", "priority: 5000"),
        admin(&format!("{subject}  egress:\n{deny}  ingress: [")),
    ] {
        let settled = isolated(Ok(&text), None);
        assert!(settled.refused.to_string().ends_with("it never was good"), "{}", settled.refused);
        assert_eq!(rules(&settled), [""; 0]);
    }
}

#[test]
fn a_network_policy_that_never_was_good_isolates_its_pods() {
    let unknown = "  podSelector: { matchLabels: { app: db } }\n  ingress:\n  - from: [{ podSelectors: {} }]\n";
    let first = isolated(Ok(&network_policy("a", unknown)), None);
    says(&first, "networkpolicy ops/a");
    let walls = |settled: &Settled<Model>| -> Vec<String> {
        let policies = settled.built.network_policies.values();
        policies
            .map(|policy| {
                assert!(policy.rules.is_empty());
                format!(
                    "{}:{} {:?} {}",
                    policy.name.name,
                    policy.place.line,
                    policy.pods.to_string(),
                    [if policy.ingress { "in" } else { "" }, if policy.egress { "out" } else { "" },].concat()
                )
            })
            .collect()
    };
    assert_eq!(walls(&first), ["a:4 \"app=db\" in"]);

    let everybody = "  podSelector: {}\n";
    let db = "  podSelector: { matchLabels: { app: db } }\n";
    let ports = "  ingress:\n  - ports: [{ port: 70000 }]\n";
    let json = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {\"name\": \"a\", \"namespace\": \"ops\"}, \"spec\": {\"podSelector\": {\"matchExpressions\": [{\"key\": \"app\", \"operator\": \"Exists\"}]}, \"ingres\": []}}]}";
    for (text, expected) in [
        (network_policy("a", &format!("{everybody}{ports}")), vec!["a:4 \"\" in"]),
        (
            network_policy("a", &format!("{db}  policyTypes: [Egress]\n{ports}  egres: []\n")),
            vec!["a:4 \"app=db\" out"],
        ),
        // It isolates in more directions rather than in fewer.
        (network_policy("a", &format!("{db}  policyTypes: [Ingres]\n")), vec!["a:4 \"app=db\" inout"]),
        (network_policy("a", &format!("{db}{ports}  egress:\n  - {{}}\n")), vec!["a:4 \"app=db\" inout"]),
        // A text that ends where its rules cannot be read, or its selector.
        (network_policy("a", &format!("{db}  ingress:\n  - from: [")), vec!["a:4 \"app=db\" inout"]),
        (network_policy("a", "  podSelector:\n    matchLabels:\n      app: db\n      tier: ["), vec![]),
        (network_policy("a", db) + "---\nkind: [", vec!["a:4 \"app=db\" in"]),
        // Whom it selects is not known.
        (network_policy("a", &format!("  podSelector: {{ matchLabels: [app] }}\n{ports}")), vec![]),
        (network_policy("a", &format!("  podSelectors: {{ matchLabels: {{ app: db }} }}\n{ports}")), vec![]),
        (network_policy("a", ports), vec!["a:4 \"\" in"]),
        // Others in the file, which is used as a whole or not at all.
        (network_policy("a", db) + "---\n" + &network_policy("b", ports), vec!["a:4 \"app=db\" in", "b:12 \"\" in"]),
        (json.to_owned(), vec!["a:1 \"app\" in"]),
    ] {
        println!("{text}");
        let settled = isolated(Ok(&text), None);
        assert_eq!(walls(&settled), expected);
    }

    // Where less can be read than before, nothing opens; a policy that another file has is that file's.
    let last = &first.inputs;
    for text in [Ok(""), Ok(BAD), Err(Diagnostic::nowhere("new.yaml cannot be read: I/O error"))] {
        says(&isolated(text, Some(last)), "networkpolicy ops/a");
    }
    let good = isolated(Ok(&network_policy("b", db)), Some(last));
    assert_eq!((good.refused.to_string(), walls(&good)), (String::new(), vec!["b:4 \"app=db\" in".to_owned()]));
    let elsewhere = network_policy("a", db);
    let last = inputs(&[("shop.yaml", INTENT), ("a.yaml", &elsewhere), W]);
    let mut now: Files = last.clone().into();
    now.policies.as_mut().unwrap().insert("new.yaml".to_owned(), Ok(network_policy("a", unknown)));
    let settled = settle(&now, Some(&last), Model::build).unwrap();
    says(&settled, "");
}

#[test]
fn what_is_only_isolated_is_nobody_elses_peer() {
    // `ops/backup` is who has the service label, whatever a file that never was good makes of that name.
    let workloads = format!(
        "{WORKLOADS}  - {{ name: b-1, namespace: ops, labels: {{ app: backup }}, node: n1, endpoints: [{{ addresses: [10.0.0.8], link: veth-b }}] }}\n  \
         - {{ name: x-1, namespace: ops, labels: {{ app: x }}, node: n1, endpoints: [{{ addresses: [10.0.0.9], link: veth-x }}] }}\n"
    );
    let shop = INTENT.replace("  db: {}", "  db: { accepts: [ops/backup:5432] }");
    let good = inputs(&[("shop.yaml", &shop), ("w.yaml", &workloads)]);
    let mut now: Files = good.clone().into();
    let bad = intent("ops", "  backup: { select: { app: x }, isolate: audit, calls: [nobody:1] }\n");
    now.policies.as_mut().unwrap().insert("new.yaml".to_owned(), Ok(bad));
    let model = settle(&now, Some(&good), Model::build).unwrap().built;
    let backup = model.services.keys().find(|service| service.name == "backup").unwrap().clone();
    let members: Vec<_> = model.members(&backup).map(|(name, _)| name.name.as_str()).collect();
    let walled: Vec<_> = model
        .workloads
        .iter()
        .filter(|(_, w)| w.services.contains(&backup))
        .map(|(name, _)| name.name.as_str())
        .collect();
    assert_eq!((members, walled), (vec!["b-1"], vec!["x-1"]));
}

#[test]
fn bad_workloads_are_as_they_were() {
    let changed = INTENT.replace("5432", "5433");
    let said = used(
        &[("shop.yaml", &changed), ("w.yaml", "nodes: [")],
        &[("shop.yaml", INTENT), W],
        &[("shop.yaml", &changed), W],
    );
    assert!(said.ends_with("\nw.yaml is not in force as it is: its last good text is"), "{said}");

    // A policy of the same name is another file.
    let (mut last, mut now) = (inputs(&[W]), inputs(&[("w.yaml", &WORKLOADS.replace("db-1", "db-2"))]));
    last.policies.insert("w.yaml".to_owned(), INTENT.to_owned());
    now.policies.insert("w.yaml".to_owned(), INTENT.replace("db:5432", "bd:5432"));
    let settled = settle(&now.clone().into(), Some(&last), Model::build).unwrap();
    assert_eq!(settled.inputs, Inputs { policies: last.policies, ..now });
}

#[test]
fn who_takes_away_what_others_need_is_held_not_the_others() {
    let (web, db) = (intent("shop", "  web: { calls: [db:5432] }\n"), intent("shop", "  db: {}\n"));
    let last = [("db.yaml", db.as_str()), ("front.yaml", &web), W];
    let renamed = db.replace("db", "dbs");
    let comment = format!("# db is the shop's.\n{web}");
    let said = used(
        &[("db.yaml", &renamed), ("front.yaml", &comment), W],
        &last,
        &[("db.yaml", &db), ("front.yaml", &comment), W],
    );
    assert!(said.contains("front.yaml:6:18: nothing in namespace `shop` is called `db`"), "{said}");
    assert!(said.ends_with("\ndb.yaml is not in force as it is: its last good text is"), "{said}");
    assert_eq!(said.matches("is not in force").count(), 1, "{said}");

    // Or is gone.
    let said = used(&[("front.yaml", &comment), W], &last, &[("db.yaml", &db), ("front.yaml", &comment), W]);
    assert!(said.contains("db.yaml is gone, but stays in force"), "{said}");

    // Both changed so that they fit are used, whatever another says.
    let fit = web.replace("db:", "dbs:");
    let now = [("db.yaml", renamed.as_str()), ("front.yaml", &fit), W, ("bad.yaml", BAD)];
    used(&now, &last, &now[..3]);
}

#[test]
fn a_service_that_is_listed_already_is_not_taken_over() {
    let new = intent("shop", "  web: {}\n");
    let now = [("a.yaml", new.as_str()), ("shop.yaml", INTENT), W];
    let said = used(&now, &now[1..], &now[1..]);
    assert!(said.contains("`shop/web` is listed twice"), "{said}");
    assert!(said.ends_with("\na.yaml is not in force: it never was good"), "{said}");
}

#[test]
fn workloads_that_do_not_fit_the_policies_are_held_and_other_policies_are_not() {
    let resolving = WORKLOADS.replace("nodes:", "resolvers: [10.96.0.10]\nnodes:");
    let policy = INTENT.replace("services:", "dns: cluster\nservices:");
    let last = [("shop.yaml", policy.as_str()), ("w.yaml", &resolving)];
    let ops = intent("ops", "  backup: {}\n");
    let said = used(&[("ops.yaml", &ops), last[0], W], &last, &[("ops.yaml", &ops), last[0], last[1]]);
    assert!(said.contains("no resolver is known"), "{said}");
    assert!(said.ends_with("\nw.yaml is not in force as it is: its last good text is"), "{said}");
}

#[test]
fn a_file_that_was_renamed_and_broken_at_once_opens_nothing() {
    let last = [("shop.yaml", INTENT), W];
    let said = used(&[("store.yaml", BAD), W], &last, &last);
    assert!(said.contains("shop.yaml is gone, but stays in force until the other files are good without it"), "{said}");
    assert!(said.contains("store.yaml is not in force: it never was good"), "{said}");

    // Its services are listed elsewhere: it is gone.
    let now = [("store.yaml", INTENT), W, ("bad.yaml", BAD)];
    let said = used(&now, &last, &now[..2]);
    assert!(!said.contains("is gone"), "{said}");
}

#[test]
fn what_cannot_be_read_is_bad() {
    let error = || Diagnostic::nowhere("shop.yaml cannot be read: I/O error");
    let last = inputs(&[("shop.yaml", INTENT), W]);
    let ops = intent("ops", "  backup: {}\n");
    let mut files: Files = inputs(&[("ops.yaml", &ops), W]).into();
    let build = |files: &Files| settle(files, Some(&last), Model::build).unwrap();
    files.policies.as_mut().unwrap().insert("shop.yaml".to_owned(), Err(error()));
    let settled = build(&files);
    assert_eq!(settled.inputs, inputs(&[("ops.yaml", &ops), ("shop.yaml", INTENT), W]));
    assert!(settled.refused.to_string().starts_with("shop.yaml cannot be read: I/O error\n"), "{}", settled.refused);

    // Without their directory policies are as they were; workloads go on.
    let more = WORKLOADS.replace("db-1", "db-2");
    let files = Files { policies: Err(error()), workloads: ("w.yaml".to_owned(), Ok(Listing::Text(more.clone()))) };
    let settled = build(&files);
    assert_eq!(settled.inputs, inputs(&[("shop.yaml", INTENT), ("w.yaml", &more)]));
    assert_eq!(settled.refused, error().into());
}

#[test]
fn what_no_mix_mends_is_refused_whole() {
    let refuse = |now: &[(&str, &str)], last: &[(&str, &str)]| settled(now, last).unwrap_err().to_string();
    // A version that cannot read a text that was good must not leave it out.
    let last = [("shop.yaml", BAD), W];
    let ops = intent("ops", "  backup: {}\n");
    for now in
        [[("shop.yaml", BAD), W].as_slice(), &[("shop.yaml", "{"), W], &[("shop.yaml", BAD), ("ops.yaml", &ops), W]]
    {
        assert!(refuse(now, &last).starts_with("shop.yaml:"), "{now:?}");
    }
    // Nor is anything mixed when nothing fits.
    let files: Files = inputs(&[("shop.yaml", INTENT), W, ("ops.yaml", &ops)]).into();
    let never = settle(&files, Some(&inputs(&[("shop.yaml", INTENT), W])), |_, _| {
        Err::<(), Diagnostics>(Diagnostic::nowhere("no").into())
    });
    assert_eq!(never.unwrap_err().to_string(), "no");
    // And without a good revision there is nothing to mix with.
    let first = settle(&inputs(&[("a.yaml", BAD), ("b.yaml", INTENT), W]).into(), None, Model::build);
    assert!(first.unwrap_err().to_string().starts_with("a.yaml:"));
}

/// Files that are left out are isolated together, in one build, where all of it fits, and else each for itself.
#[test]
fn many_files_are_isolated_at_once_and_one_that_does_not_fit_alone_is_not() {
    let last = inputs(&[W]);
    let mut now = last.clone();
    let unknown = |name: &str| network_policy(name, "  podSelector: {}\n  ingres: []\n");
    let names: Vec<_> = (10..40).map(|at| format!("p{at}")).collect();
    for name in &names {
        now.policies.insert(format!("{name}.yaml"), unknown(name));
    }
    let settled = |refused: &str| {
        let mut builds = 0;
        let settled = settle(&now.clone().into(), Some(&last), |policies, workloads| {
            builds += 1;
            let model = Model::build(policies, workloads)?;
            match model.network_policies.keys().any(|policy| policy.name == refused) {
                true => Err(Diagnostic::nowhere("no room").into()),
                false => Ok(model),
            }
        });
        let settled = settled.unwrap_or_else(|found| panic!("{found}"));
        let walls = settled.built.network_policies.keys().map(|policy| policy.name.clone()).collect::<Vec<_>>();
        (builds, walls, settled.refused.to_string())
    };
    let (builds, walls, said) = settled("nobody");
    assert_eq!((builds, &walls), (2, &names), "without them, and with all of them: {said}");
    let (_, walls, said) = settled("p20");
    assert_eq!(walls, names.iter().filter(|name| *name != "p20").cloned().collect::<Vec<_>>());
    assert!(said.contains("networkpolicy ops/p20 cannot be isolated: no room"), "{said}");
    assert_eq!(said.matches("cannot be isolated").count(), 1, "{said}");
}

/// What was good is let go only if whom it isolated stays isolated.
#[test]
fn nothing_is_let_go_that_would_open_whom_it_isolates() {
    let policy = network_policy("a", "  podSelector: {}\n  ingress:\n  - ports: [{ port: 80 }]\n");
    let last = inputs(&[("shop.yaml", INTENT), ("a.yaml", &policy), W]);
    let settled = |most_rules: Option<usize>| {
        settle_with(&mut Memory::default(), &last.clone().into(), Some(&last), Blame::All, |policies, workloads| {
            let model = Model::build(policies, workloads)?;
            let large = |policy: &NetworkPolicy| most_rules.is_none_or(|most| policy.rules.len() > most);
            match model.network_policies.values().find(|policy| large(policy)) {
                Some(policy) => Err(Diagnostic::error(&policy.place, "there is no room for it").into()),
                None => Ok(model),
            }
        })
    };
    let walls = settled(Some(0)).unwrap();
    assert!(walls.refused.to_string().ends_with("fit any more; isolated until it is: networkpolicy ops/a"));
    assert!(walls.built.network_policies.values().all(|policy| policy.ingress && policy.rules.is_empty()));
    let said = settled(None).unwrap_err().to_string();
    assert!(said.contains("there is no room for it"), "{said}");
}
