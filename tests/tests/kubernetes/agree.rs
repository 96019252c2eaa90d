//! The API server, which knows Intents and Guards by their definitions, and the agents' own reader: what one takes the other takes.

mod documents;

use std::{cell::Cell, collections::BTreeSet, fs};

use bulkhead_controller::{
    diagnostic::{Severity, source},
    model::Model,
    policy::{self, Policy},
    workloads::Workloads,
};
use bulkhead_fixtures::skip;
use proptest::{
    collection::vec,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};

use bulkhead_tests::guarded::Guarded;

/// What only the reader refuses, by its words.
const BEYOND: [&str; 3] = [
    // A rule of a definition does not compare numbers that stand in a text,
    "the range ",
    // nor items of a list with each other, as they are meant,
    "is written twice in one ",
    // nor each prefix with each other one: that may cost too much.
    "is not inside any of the prefixes of ",
];

/// Documents that go to the API server together.
const TOGETHER: usize = 64;

/// Asks both about random documents.
pub(crate) fn with_the_reader(guarded: &Guarded) {
    let list = guarded.cluster.directory().join("documents.json");
    compare(|documents| {
        fs::write(&list, documents).unwrap();
        let mut kubectl = guarded.cluster.control_plane().command(guarded.cluster.program("kubectl"));
        kubectl.arg(format!("--kubeconfig={}", guarded.cluster.kubeconfig().display()));
        kubectl.args(["create", "--dry-run=server", "--output=name"]).arg(format!("--filename={}", list.display()));
        let output = kubectl.output().unwrap();
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    });
}

/// `create` says which objects are taken, by kind and name, and what is wrong with others.
fn compare(create: impl Fn(&str) -> [String; 2]) {
    let counts = [const { Cell::new(0) }; 2];
    for edges in documents::edges().chunks(TOGETHER) {
        ask(edges.to_vec(), &create, &counts).unwrap_or_else(|differs| panic!("{differs}"));
    }
    let cases = if skip::long() { 200 } else { 8 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let result = TestRunner::new(config).run(&vec(documents::object_of_ours(), TOGETHER), |documents| {
        ask(documents, &create, &counts).map_err(TestCaseError::fail)
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let [refused, taken] = counts.map(Cell::into_inner);
    println!("{taken} documents taken and {refused} refused by both");
    let all = refused + taken;
    assert!(taken > all / 4 && refused > all / 4, "of these documents little is learnt: {taken} of {all} are taken");
}

/// Asks about objects without `metadata`, and counts those that are refused and those that are taken.
fn ask(mut objects: Vec<Value>, create: &impl Fn(&str) -> [String; 2], counts: &[Cell<u32>; 2]) -> Result<(), String> {
    for (number, object) in objects.iter_mut().enumerate() {
        object["metadata"] = json!({ "name": format!("d{number}") });
        if object["kind"] == "Intent" {
            object["metadata"]["namespace"] = "shop".into();
        }
    }
    let [names, errors] = create(&objects.iter().map(|object| format!("{object}\n")).collect::<String>());
    let taken: BTreeSet<&str> = names.lines().filter_map(|line| line.rsplit('/').next()).collect();
    for object in &objects {
        let name = object["metadata"]["name"].as_str().unwrap();
        let taken = taken.contains(name);
        counts[usize::from(taken)].update(|count| count + 1);
        if let Some(differs) = differs(object, taken) {
            let said: Vec<_> = errors.lines().filter(|line| line.contains(&format!("\"{name}\""))).collect();
            return Err(format!("{differs}\n{object:#}\nAPI server: {said:#?}"));
        }
    }
    Ok(())
}

/// How the reader differs from the API server.
fn differs(object: &Value, taken: bool) -> Option<String> {
    // Fields that are null the API server takes away before it looks. In a file they are values that somebody forgot.
    let object = if taken { &without_null(object.clone()) } else { object };
    let read = policy::parse(&source("object", object.to_string()));
    match read {
        // Documents are compared with each other later, and one with itself.
        Ok(policies) if !taken && gives_a_name_twice(&policies) => None,
        Ok(_) if !taken => Some("the reader takes what the API server refuses".to_owned()),
        Err(found) if taken => {
            let errors = found.0.iter().filter(|found| found.severity == Severity::Error);
            let plain = errors.filter(|error| !BEYOND.iter().any(|words| error.message.contains(words)));
            let plain: Vec<_> = plain.map(ToString::to_string).collect();
            (!plain.is_empty()).then(|| format!("the API server takes what the reader refuses: {plain:#?}"))
        }
        _ => None,
    }
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name, without_null(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_null).collect(),
        value => value,
    }
}

fn gives_a_name_twice(policies: &[Policy]) -> bool {
    let found = Model::build(policies, &Workloads::default()).err().unwrap_or_default();
    found.0.iter().any(|found| found.message.ends_with("is given twice"))
}
