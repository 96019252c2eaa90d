//! Intents and Guards as objects of Kubernetes.

use std::{fs, path::Path};

use bulkhead_controller::{
    convert,
    diagnostic::source,
    guard::Rule,
    intent::{Line, Service},
    manifest::Manifests,
    policy::{self, Policy},
};

/// Files with policies of ours among the examples.
fn examples() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy-examples");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let yaml = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let read =
        yaml.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap()));
    read.filter(|(name, _)| !name.ends_with("workloads.yaml")).collect()
}

/// What is meant, without where it stands.
fn meant(policy: &Policy) -> Vec<String> {
    let mut said = match policy {
        Policy::Intent(intent) => {
            let lines =
                |lines: &[Line]| lines.iter().map(|line| format!("{}:{}", line.peer, line.ports)).collect::<Vec<_>>();
            let services = intent.services.iter().map(|service| {
                let Service { name, select, audit, accepts, calls, .. } = service;
                format!("{name} {select:?} {audit} {:?} {:?}", lines(accepts), lines(calls))
            });
            let externals = intent.external.iter().map(|external| format!("{} {}", external.name, external.cidrs));
            let whole = format!("{} {} {}", intent.namespace, intent.audit, intent.dns.is_some());
            services.chain(externals).chain([whole]).collect::<Vec<_>>()
        }
        Policy::Guard(guard) => {
            let compare = guard.compare.as_ref().map(|(label, _)| label);
            let whole = format!("{} {} {} {compare:?}", guard.name, guard.priority, guard.subjects);
            let rules = guard.rules.iter().enumerate();
            let rule = |(at, rule): (usize, &Rule)| {
                format!("{at} {} {:?} {:?} {} {:?}", rule.name, rule.peer, rule.ports, rule.audit, rule.expires)
            };
            rules.map(rule).chain([whole]).collect()
        }
        other => panic!("{other:?}"),
    };
    said.sort_unstable();
    said
}

/// The object says what the file says, as the reader of files of policies and as that of manifests sees it.
#[test]
fn every_example_means_the_same_as_an_object() {
    let examples = examples();
    assert!(examples.len() > 10);
    for (name, text) in examples {
        let file = policy::parse(&source("f.yaml", &*text)).unwrap();
        let objects = convert::manifests(&source("f.yaml", &*text)).unwrap_or_else(|found| panic!("{name}: {found}"));
        let read = policy::parse(&source("f.yaml", &*objects)).unwrap_or_else(|found| panic!("{name}: {found}"));
        assert_eq!(file.len(), read.len(), "{name}");
        let mut manifests = Manifests::default();
        manifests.read(&source("f.yaml", &*objects)).unwrap();
        assert_eq!((manifests.policies.len(), manifests.notes.0.len()), (file.len(), 0), "{name}");
        let [file, read] = [file, read].map(|policies| policies.iter().map(meant).collect::<Vec<_>>());
        assert_eq!(file, read, "{name}");
    }
}

#[test]
fn a_label_stays_the_text_that_it_is() {
    let text = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  db: { select: { version: 1.10, on: true, app: \"07\" } }\n";
    let objects = convert::manifests(&source("db.yaml", text)).unwrap();
    let Policy::Intent(intent) = &policy::parse(&source("m.yaml", objects)).unwrap()[0] else { panic!() };
    let select = intent.services[0].select.as_ref().unwrap();
    let select: Vec<_> = select.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
    assert_eq!(select, [("app", "07"), ("on", "true"), ("version", "1.10")]);
}

#[test]
fn manifests_are_not_made_of_manifests() {
    let said = convert::manifests(&source("m.yaml", "apiVersion: v1\nkind: Pod\nmetadata: { name: a }\n")).unwrap_err();
    assert!(said.to_string().contains("holds no policies of Bulkhead"), "{said}");
}

/// What is said of an object, without its file and help.
fn say(kind: &str, metadata: &str, spec: &str) -> String {
    let text = format!("apiVersion: bulkhead.io/v1\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n");
    let found = policy::parse(&source("m", text)).map(|policies| format!("{policies:?}")).unwrap_err();
    let lines = found.0.iter().map(|error| format!("{}: {}", error.place.as_ref().unwrap(), error.message));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_wrong_with_an_object_is_said_where_it_stands() {
    let intent = |spec: &str| say("Intent", "{ name: a, namespace: shop }", spec);
    let guard = |spec: &str| say("Guard", "{ name: a }", spec);
    assert_eq!(intent("{}"), "m:4:7: `services` is missing");
    assert_eq!(intent("{ services: { web: { calls: [db] } } }"), "m:4:36: `db` has no port");
    assert_eq!(intent("{ services: { web: { call: [db:1] } } }"), "m:4:28: unknown field `call`");
    assert_eq!(intent("{ namespace: shop, services: {} }"), "m:4:9: unknown field `namespace`");
    assert_eq!(intent("{ services: { db: { select: { tier: 1 } } } }"), "m:4:43: text is expected here, not a number");
    assert_eq!(intent("{ mode: silent, services: {} }").lines().next(), Some("m:4:15: mode `silent` is not known"));
    assert_eq!(
        guard("{ priority: ten, rules: [] }").lines().next(),
        Some("m:4:19: an integer is expected here, not text")
    );
    assert_eq!(guard("{ priority: 1, rules: [{ deny: { from: any } }] }"), "m:4:46: a list is expected here, not text");
    assert_eq!(
        guard("{ priority: 1, rules: [{ deny: { from: [other] } }] }").split(':').nth(3),
        Some(" `other` has no meaning")
    );
    let said =
        policy::parse(&source("m", "apiVersion: bulkhead.io/v2\nkind: Guard\nmetadata: { name: a }\n")).unwrap_err();
    assert!(said.to_string().contains("write it as `apiVersion: bulkhead.io/v1`"), "{said}");
    let said =
        policy::parse(&source("m", "apiVersion: bulkhead.io/v1\nkind: Intents\nmetadata: { name: a }\n")).unwrap_err();
    assert!(said.to_string().contains("has the kinds `Intent` and `Guard`"), "{said}");
    let beside = "apiVersion: bulkhead.io/v1\nkind: Intent\nmetadata: { name: a }\nservices: {}\n";
    let said = policy::parse(&source("m", beside)).unwrap_err().to_string();
    assert!(said.contains("move `services` into `spec`"), "{said}");
}

/// Other groups may have kinds of these names.
#[test]
fn kinds_of_other_groups_are_not_ours() {
    let text = "apiVersion: example.com/v1\nkind: Guard\nmetadata: { name: a }\nspec: { rules: [] }\n";
    let mut manifests = Manifests::default();
    manifests.read(&source("m.yaml", text)).unwrap();
    assert_eq!((manifests.policies.len(), manifests.notes.0.len()), (0, 1));
}
