//! The API is what its OpenAPI document says, and the document says what there is.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use axum::Extension;
use bulkhead_controller::api::{self, document, identity::Identity};
use bulkhead_fixtures::skip;
use serde_json::Value;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{
    home::Home,
    node::{denied, slot},
    served::{Served, home},
};

/// Python with schemathesis, as `tests/setup/setup.sh` makes it beside what cargo builds.
fn python() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../python/bin/python")
}

/// Serves the API on an address as if every connection were of this user. The product never does.
fn serve(runtime: &Runtime, home: &Home, served: &Served, name: &str, applies: bool) -> SocketAddr {
    let identity = Identity { uid: 4242, name: name.to_owned(), applies };
    let routes = api::routes(served.handle.clone(), &home.state()).layer(Extension(identity));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, routes).await });
    address
}

#[test]
fn it_answers_as_its_document_says() {
    let python = python();
    let works =
        Command::new(&python).args(["-c", "import schemathesis"]).output().is_ok_and(|run| run.status.success());
    if !skip::require("schemathesis (tests/setup/setup.sh installs it)", works) {
        return;
    }
    let home = home();
    let served = Served::new(&home);
    denied(&home.store, slot(&served, "web-1"), 22, 3);
    let runtime = Runtime::new().unwrap();
    let base = |name, applies| format!("http://{}", serve(&runtime, &home, &served, name, applies));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/contract.py");
    // What it leaves, it leaves in a directory that goes.
    let mut run = Command::new(python);
    run.arg(script).args([base("applier", true), base("reader", false)]).current_dir(home.directory.path());
    let output = run.output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{wrong}");
    assert!(served.status().troubles.is_empty(), "all is well afterwards");
}

/// What is wrong with a schema: it must say what it holds.
fn loose(schema: &Value, at: &str, found: &mut Vec<String>) {
    let Some(fields) = schema.as_object() else { return found.push(format!("{at}: {schema}")) };
    let says =
        ["type", "$ref", "oneOf", "allOf", "anyOf", "enum", "const"].iter().any(|word| fields.contains_key(*word));
    if !says {
        found.push(format!("{at} holds anything"));
    }
    let types: BTreeSet<&str> = match &schema["type"] {
        Value::String(one) => [one.as_str()].into(),
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    };
    if types.contains("object") && !fields.contains_key("properties") && !schema["additionalProperties"].is_object() {
        found.push(format!("{at} is any object"));
    }
    if types.contains("array") && !["items", "prefixItems"].iter().any(|word| fields.contains_key(*word)) {
        found.push(format!("{at} is any array"));
    }
    match &schema["additionalProperties"] {
        Value::Bool(true) => found.push(format!("{at} may have more")),
        Value::Object(_) => loose(&schema["additionalProperties"], &format!("{at}/*"), found),
        _ => {}
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        loose(property, &format!("{at}/{name}"), found);
    }
    for word in ["oneOf", "allOf", "anyOf", "prefixItems"] {
        for (index, part) in schema[word].as_array().into_iter().flatten().enumerate() {
            loose(part, &format!("{at}/{word}/{index}"), found);
        }
    }
    if fields.contains_key("items") && schema["items"] != Value::Bool(false) {
        loose(&schema["items"], &format!("{at}[]"), found);
    }
}

/// Every schema that stands in the document, wherever that is.
fn schemas(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = format!("{at}/{name}");
                match name.as_str() {
                    "schema" => loose(value, &at, found),
                    "schemas" => {
                        value.as_object().unwrap().iter().for_each(|(name, schema)| loose(schema, name, found));
                    }
                    _ => schemas(value, &at, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| schemas(value, at, found)),
        _ => {}
    }
}

#[test]
fn no_schema_of_the_document_is_free_form() {
    let document = serde_json::to_value(document()).unwrap();
    let mut found = Vec::new();
    schemas(&document, "", &mut found);
    assert_eq!(found, [""; 0]);
    assert!(document["components"]["schemas"].as_object().unwrap().len() > 20);
    // It would be seen.
    for bad in [serde_json::json!({}), serde_json::json!({ "type": "object" }), serde_json::json!({ "type": "array" })]
    {
        let mut found = Vec::new();
        schemas(&serde_json::json!({ "schema": { "type": "object", "properties": { "a": bad } } }), "", &mut found);
        assert_eq!(found.len(), 1);
    }
}

/// Each operation says what it answers, and each problem what it is.
#[test]
fn every_operation_tells_of_its_answers() {
    let document = serde_json::to_value(document()).unwrap();
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{what}");
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers["200"]["content"].is_object(), "{what}");
            for (status, answer) in answers.iter().filter(|(status, _)| status.as_str() >= "300") {
                let schema = &answer["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{what} {status}");
            }
            operations += 1;
        }
    }
    assert!(operations > 20, "{operations}");
}
