//! Intents and Guards as objects of the cluster: what the API server refuses, what is enforced, and what their statuses say.

use std::{fs, path::Path, process::Command, time::Instant};

use bulkhead_cluster::Cluster;
use serde_json::{Value, json};

use bulkhead_tests::{
    bulkhead,
    guarded::{DEFINITIONS, Guarded, NAMESPACE, eventually, server},
};

use crate::{agree, dump::Dump, flood::Flood};

/// Who the agents are.
const AGENTS: &str = "system:serviceaccount:bulkhead-system:bulkhead";

/// Every example as an object, by the command that users are told.
fn examples() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy-examples");
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    names.retain(|path| !path.to_str().unwrap().ends_with("workloads.yaml"));
    let convert = |path: &std::path::PathBuf| {
        let output = Command::new(bulkhead().unwrap()).arg("manifest").arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (path.display().to_string(), String::from_utf8(output.stdout).unwrap())
    };
    names.iter().map(convert).collect()
}

/// An object of ours.
fn object(kind: &str, name: &str, spec: &Value) -> String {
    let metadata = match kind {
        "Intent" => json!({ "name": name, "namespace": "shop" }),
        _ => json!({ "name": name }),
    };
    json!({ "apiVersion": "bulkhead.io/v1", "kind": kind, "metadata": metadata, "spec": spec }).to_string()
}

fn intent(name: &str, services: &Value) -> String {
    object("Intent", name, &json!({ "services": services }))
}

/// What the API server refuses, and words of what it says.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let services = |services: Value| json!({ "services": services });
    let rule = |rule: Value| json!({ "priority": 1, "rules": [rule] });
    vec![
        ("Intent", json!({}), "spec.services: Required value"),
        ("Intent", json!({ "mode": "observe", "services": {} }), "supported values: \"enforce\", \"audit\""),
        ("Intent", json!({ "namespace": "shop", "services": {} }), "unknown field \"spec.namespace\""),
        ("Intent", services(json!({ "web": { "call": [] } })), "unknown field \"spec.services.web.call\""),
        ("Intent", services(json!({ "web": { "calls": ["db"] } })), "spec.services[web].calls[0]"),
        ("Intent", services(json!({ "web": { "calls": ["db"] } })), "write a peer and its port, such as cart:8080"),
        ("Intent", services(json!({ "web": { "calls": ["db:99999"] } })), "spec.services.web.calls[0]"),
        ("Intent", services(json!({ "web": { "accepts": ["2001:db8::1:80"] } })), "an address gets a name in external"),
        ("Intent", services(json!({ "web": { "isolate": "no" } })), "spec.services.web.isolate"),
        ("Intent", services(json!({ "web": { "select": {} } })), "should have at least 1 properties"),
        ("Intent", services(json!({ "world": {} })), "have meanings of their own and cannot be names"),
        ("Intent", services(json!({ "a b": {} })), "names are 1 to 63 letters, digits"),
        (
            "Intent",
            json!({ "external": { "a": { "cidrs": ["198.51.100.1/24"] } }, "services": {} }),
            "write a prefix without bits behind its length",
        ),
        (
            "Intent",
            json!({ "external": { "a": { "cidrs": ["198.51.100.0/24"] } }, "services": { "a": {} } }),
            "that of a service or of an external, not of both",
        ),
        ("Guard", json!({ "rules": [{ "deny": { "from": ["any"] } }] }), "spec.priority: Required value"),
        ("Guard", json!({ "priority": 1, "rules": [] }), "should have at least 1 items"),
        (
            "Guard",
            json!({ "priority": 4_294_967_296_u64, "rules": [{ "deny": { "to": ["any"] } }] }),
            "less than or equal to 4294967295",
        ),
        ("Guard", rule(json!({ "deny": { "from": ["other"] } })), "same and other have no meaning without compare"),
        ("Guard", rule(json!({ "deny": { "from": ["any"], "to": ["any"] } })), "a rule has one of from"),
        ("Guard", rule(json!({ "deny": {} })), "a rule has one of from"),
        ("Guard", rule(json!({})), "a rule has one of allow, deny and pass"),
        ("Guard", rule(json!({ "deny": { "from": "any" } })), "must be of type array"),
        (
            "Guard",
            rule(json!({ "deny": { "from": ["any:1"], "ports": [2] } })),
            "a peer has a port of its own, and its rule has ports",
        ),
        ("Guard", rule(json!({ "deny": { "from": ["any"], "ports": [0] } })), "greater than or equal to 1"),
        ("Guard", rule(json!({ "deny": { "from": ["any"], "ports": ["x_y"] } })), "spec.rules[0].deny.ports[0]"),
        ("Guard", rule(json!({ "deny": { "from": ["any"], "expires": "tomorrow" } })), "must be of type date-time"),
        (
            "Guard",
            json!({ "priority": 1, "for": { "services": ["web"] }, "rules": [{ "deny": { "from": ["any"] } }] }),
            "a Guard has no namespace of its own",
        ),
    ]
}

fn status(guarded: &Guarded, what: &[&str]) -> Value {
    let words = [&["--namespace=shop", "get", "--output=json"], what].concat();
    let object: Value = serde_json::from_str(&guarded.kubectl(&words)).unwrap();
    let mut status = object["status"].clone();
    status["generation"] = object["metadata"]["generation"].clone();
    status
}

/// Status, reason and message of a condition.
fn condition(status: &Value, of: &str) -> [String; 3] {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == of).cloned().unwrap_or_default();
    ["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default().to_owned())
}

/// Waits until a condition of the object's present generation is so.
#[track_caller]
fn becomes(guarded: &Guarded, what: &[&str], of: &str, is: &str, says: &str) -> Value {
    let mut last = Value::Null;
    let start = Instant::now();
    eventually(&format!("{what:?}: {of} becomes {is} and says {says}"), || {
        last = status(guarded, what);
        let [status, _, message] = condition(&last, of);
        let so = last["observedGeneration"] == last["generation"] && status == is && message.contains(says);
        // Where the agent that ended wrote the statuses, the next one begins after 30 s, and takes another 30 to miss it.
        assert!(so || start.elapsed().as_secs() < 110, "{last:#}\n{}\n{}", guarded.log(0), guarded.log(1));
        so
    });
    last
}

/// How many calls the events on `db` tell of at once that were changed since they were made.
fn kinds_of_calls(guarded: &Guarded) -> u32 {
    let of_db = "--field-selector=reason=Blocked,involvedObject.name=db";
    let events = guarded.kubectl(&["--namespace=shop", "get", "events", of_db, "--output=json"]);
    let events: Value = serde_json::from_str(&events).unwrap();
    let changed =
        events["items"].as_array().unwrap().iter().filter(|event| event["series"]["count"].as_u64() > Some(1));
    let said: Vec<_> = changed.filter_map(|event| event["message"].as_str()).collect();
    let said = said.join(" ");
    let before = said.split(" kinds of calls").filter_map(|before| before.rsplit(' ').next()?.parse::<u32>().ok());
    before.max().unwrap_or_default()
}

/// How often the agents wrote an event, and how often one on `db`.
fn events_written(guarded: &Guarded) -> (usize, usize) {
    let requests = guarded.cluster.requests().unwrap();
    let written =
        requests.iter().filter(|(verb, path)| matches!(verb.as_str(), "create" | "patch") && path.contains("/events"));
    let events = ["--namespace=shop", "get", "events.events.k8s.io", "--output=json"];
    let events: Value = serde_json::from_str(&guarded.kubectl(&events)).unwrap();
    let events = events["items"].as_array().unwrap().iter().filter(|event| event["reason"] == "Blocked");
    let of_db = events.filter(|event| event["regarding"]["name"] == "db");
    // The first time has no series.
    let times = of_db.map(|event| event["series"]["count"].as_u64().unwrap_or(1));
    (written.count(), usize::try_from(times.sum::<u64>()).unwrap())
}

/// What kubectl prints of Intents and Guards is enough to say what is so.
fn as_without_a_cluster(guarded: &Guarded) {
    let dump = Dump::of(guarded, &["namespaces,nodes,pods,services,endpointslices,intents", "guards"]);
    let (passes, why) = dump.explain("web", "db");
    assert!(!passes && why.contains("stop"), "{why}");
    assert!(!dump.explain("guest", "db").0, "the Intent isolates it");
    let open = "not-isolated: nothing isolates `shop/guest[Pod]` at ingress and egress";
    assert_eq!(dump.lint(), [open], "the others are of the Intent");
    let dump = dump.without("guards");
    let (passes, why) = dump.explain("web", "db");
    assert!(passes && why.contains("shop"), "{why}");
    assert!(!dump.explain("guest", "db").0, "the Intent isolates it");
}

/// What kubectl prints of the only object of a kind: the columns' names, and what is in them.
fn table(guarded: &Guarded, words: &[&str]) -> [Vec<String>; 2] {
    let table = guarded.kubectl(words);
    let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    lines.try_into().unwrap_or_else(|_| panic!("{table}"))
}

#[test]
fn objects_of_ours_are_enforced_and_say_how_they_stand() {
    let Some(mut guarded) = Guarded::start(Cluster::builder().audit(AGENTS)) else { return };
    let start = Instant::now();
    guarded.apply(&[NAMESPACE, &server("db", "n2"), &server("web", "n1"), &server("guest", "n1")].concat());
    // The agents run already, and take the kinds up when they come.
    guarded.apply(DEFINITIONS);
    guarded.kubectl(&["wait", "--for=condition=Established", "crd/intents.bulkhead.io", "crd/guards.bulkhead.io"]);
    guarded.wait_for(&["db", "web", "guest"]);

    for namespace in ["ops", "warehouse", "reports", "media"] {
        guarded.kubectl(&["create", "namespace", namespace]);
    }
    for (name, objects) in examples() {
        let applied = guarded.cluster.apply(&objects).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(applied.lines().count(), objects.matches("kind: ").count(), "{name}: {applied}");
        guarded.kubectl(&["delete", "intents,guards", "--all", "--all-namespaces"]);
    }
    for (kind, spec, says) in refused() {
        let error = guarded.cluster.apply(&object(kind, "bad", &spec)).map_err(|error| error.to_string());
        assert!(error.as_ref().is_err_and(|error| error.contains(says)), "{kind} {spec}: {error:?}\nnot: {says}");
    }

    agree::with_the_reader(&guarded);

    let address = guarded.address("db");
    let db = format!("{address}:8080");
    assert!(guarded.connects("guest", &db), "nothing isolates yet");
    guarded.apply(&intent("shop", &json!({ "db": {}, "web": { "calls": ["db:8080"] } })));
    guarded.becomes("guest", &db, false);
    guarded.becomes("web", &db, true);
    let stands =
        becomes(&guarded, &["intent", "shop"], "Published", "True", "generation 1 is in force on 2 of 2 nodes");
    assert_eq!(stands["published"], "2/2");
    for of in ["Accepted", "Compiled"] {
        assert_eq!(condition(&stands, of)[0], "True", "{stands:#}");
    }
    let [header, line] = table(&guarded, &["--namespace=shop", "get", "intents"]);
    assert_eq!(header, ["NAME", "MODE", "ACCEPTED", "PUBLISHED", "AGE"]);
    assert_eq!(line[..4], ["shop", "enforce", "True", "2/2"]);

    // A Guard is judged before it, and is of no namespace.
    let deny = json!({ "priority": 7, "rules": [{ "deny": { "to": ["any"], "ports": [8080] } }], "for": { "workloads": { "app": "web" } } });
    guarded.apply(&object("Guard", "stop", &deny));
    guarded.becomes("web", &db, false);
    becomes(&guarded, &["guard", "stop"], "Published", "True", "2 of 2 nodes");
    let [header, line] = table(&guarded, &["get", "guards"]);
    assert_eq!(header, ["NAME", "PRIORITY", "MODE", "ACCEPTED", "PUBLISHED", "AGE"]);
    assert_eq!(line[..5], ["stop", "7", "enforce", "True", "2/2"]);
    as_without_a_cluster(&guarded);
    guarded.kubectl(&["delete", "guard", "stop"]);
    guarded.becomes("web", &db, true);

    // What passes the schema and cannot be used is refused in words that say where, and what was in force stays.
    guarded.apply(&intent("shop", &json!({ "db": {}, "web": { "calls": ["bd:8080"] } })));
    let wrong = becomes(&guarded, &["intent", "shop"], "Accepted", "False", "spec.services.web.calls[0]: ");
    assert!(condition(&wrong, "Accepted")[2].contains("did you mean `db`?"), "{wrong:#}");
    becomes(&guarded, &["intent", "shop"], "Published", "False", "generation 2 is in force on 0 of 2 nodes");
    assert!(guarded.connects("web", &db) && !guarded.connects("guest", &db), "the last good one is in force");
    guarded.apply(&intent("shop", &json!({ "db": {}, "web": { "calls": ["db:8080"] } })));
    becomes(&guarded, &["intent", "shop"], "Published", "True", "generation 3 is in force on 2 of 2 nodes");

    // Nobody has to look for what is blocked.
    eventually("an event on the pod", || {
        guarded.connects("guest", &db);
        let events = ["--namespace=shop", "get", "events", "--field-selector=reason=Blocked,involvedObject.name=db"];
        let said = guarded.kubectl(&[&events[..], &["--output=jsonpath={.items[*].message}"]].concat());
        said.contains("8080/tcp") && said.contains("packets seen in")
    });
    let events = guarded.kubectl(&["--namespace=shop", "describe", "pod", "db"]);
    assert!(events.lines().any(|line| line.contains("Warning") && line.contains("Blocked")), "{events}");

    // However much it is.
    let flood = Flood::new(&guarded.cluster.node(0).netns, address.parse().unwrap());

    // A node whose agent is silent is not taken for up to date.
    guarded.end_agent(0);
    guarded.apply(&intent("shop", &json!({ "db": {}, "web": { "calls": ["db:8080", "db:8081"] } })));
    becomes(&guarded, &["intent", "shop"], "Published", "False", "1 of 2 nodes; no word from n1");
    assert!(guarded.connects("web", &db) && !guarded.connects("guest", &db));
    guarded.kill_agent(0);
    becomes(&guarded, &["intent", "shop"], "Published", "True", "2 of 2 nodes");
    println!("{}", guarded.kubectl(&["--namespace=shop", "get", "intents", "--output=wide"]));

    eventually("an event tells of very many calls", || kinds_of_calls(&guarded) > 1000);
    let rounds = flood.end();
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).unwrap() + 1;
    let (told, of_db) = events_written(&guarded);
    println!(
        "{rounds} times 4,000 calls were blocked, and {told} events written in {minutes} minutes, {of_db} of them on the pod that was called"
    );
    // The second agent of the first node begins anew.
    assert!(told <= 3 * 10 * minutes && of_db <= minutes + 1, "{told} events, {of_db} on one pod");
}
