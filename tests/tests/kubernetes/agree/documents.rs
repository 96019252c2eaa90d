//! Random Intents and Guards as objects: most of them right, some with something at the edge of what may be written or behind it, some torn.

use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::{Index, select},
    strategy::{BoxedStrategy, Union},
};
use serde_json::{Map, Value, json};

/// The longest name there may be, and one that is too long.
const LONGEST: &str = "a23456789-123456789-123456789-123456789-123456789-123456789-123";
const TOO_LONG: &str = "a23456789-123456789-123456789-123456789-123456789-123456789-1234";

const NAMES: &[&str] = &["web", "db", "cart", "w", "a.b_c-d", "UP", "0", LONGEST];
const ODD_NAMES: &[&str] = &[
    "",
    "-a",
    "a-",
    "a b",
    "wörld",
    TOO_LONG,
    "any",
    "same",
    "other",
    "world",
    "node",
    "300.1.1.1",
    "10.0.0.1",
    "a/b",
    "a:b",
];
const PORTS: &[&str] = &[
    "1",
    "65535",
    "5432",
    "8000-8099",
    "1-65535",
    "7-7",
    "443/tcp",
    "53/udp",
    "7/sctp",
    "5-6/udp",
    "any",
    "echo/icmp",
    "proto/0",
    "proto/255",
    "http",
    "8080-alt",
    "a--b",
    "0a",
    LONGEST,
];
const ODD_PORTS: &[&str] = &[
    "",
    "0",
    "08",
    "65536",
    "99999",
    "80-",
    "-80",
    "90-80",
    "1-2-3",
    "80/",
    "80/icmp",
    "80/TCP",
    "any/tcp",
    "http/tcp",
    "echo/udp",
    "proto/256",
    "proto/07",
    "proto/",
    "HTTP",
    "a_b",
    "-a",
    "a-",
    "1-a",
    " 80",
    "80 ",
    "80\n",
    "+80",
    "٣",
    "1:2",
    TOO_LONG,
];
const PREFIXES: &[&str] = &[
    "198.51.100.0/24",
    "10.0.0.0/8",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "2001:db8::/32",
    "2001:db8::1/128",
    "::/0",
    "10.1.2.3",
];
const ODD_PREFIXES: &[&str] = &[
    "",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10.0.0.0/08",
    "10.0.0.0/+8",
    "10.0.0.0/",
    "10.0.0/8",
    "010.0.0.0/8",
    "10.0.0.0/255.0.0.0",
    "2001:db8::1/32",
    "2001:db8::/129",
    "::ffff:10.0.0.0/104",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "fe80::%eth0/64",
    "[::]/0",
    "10.0.0.0/8 ",
    "all",
    "2001:DB8::/32",
    "2001:db8:0::/32",
    "2001:db8::1",
    "::10.0.0.0/104",
    "::10.0.0.1",
];
const TIMES: &[&str] = &[
    "2027-01-31T12:00:00Z",
    "2027-01-31T13:30:00+01:30",
    "2028-02-29T00:00:00.123456789-13:00",
    "2554-01-01T00:00:00Z",
];
const ODD_TIMES: &[&str] = &[
    "",
    "tomorrow",
    "2027-01-31",
    "2027-01-31T12:00:00",
    "2027-01-31 12:00:00Z",
    "2027-01-31t12:00:00z",
    "2027-02-30T12:00:00Z",
    "2027-02-29T12:00:00Z",
    "2027-13-01T12:00:00Z",
    "2027-01-31T24:00:00Z",
    "2027-01-31T12:60:00Z",
    "2027-01-31T12:00:60Z",
    "2027-01-31T12:00:00+24:00",
    "2027-01-31T12:00:00+0100",
    "2027-01-31T12:00:00+01",
    "2027-01-31T12:00:00.Z",
    "2027-01-31T12:00:00.1234567891Z",
    "1969-12-31T23:59:59Z",
    "1970-01-01T00:00:00Z",
    "2555-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0000-01-01T00:00:00Z",
    "2027-1-31T12:00:00Z",
    "12027-01-31T12:00:00Z",
    "2027-01-31T12:00Z",
    "2027-01-31T12:00:00+01:60",
    "2027-01-31T12:00:00,5Z",
];
const WORDS: &[&str] = &["world", "node", "nodes", "metadata", "cluster"];

/// One of the first, rarely one of the second or any short text.
fn mostly(usual: &'static [&'static str], odd: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        50 => select(usual).prop_map(str::to_owned),
        2 => select(odd).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9./:_-]{0,12}",
    ]
}

fn name() -> impl Strategy<Value = String> + Clone {
    mostly(NAMES, ODD_NAMES)
}

fn ports() -> impl Strategy<Value = String> + Clone {
    mostly(PORTS, ODD_PORTS)
}

/// A name, or one with its namespace.
fn service() -> impl Strategy<Value = String> + Clone {
    (name(), name()).prop_map(|(namespace, name)| format!("{namespace}/{name}"))
}

/// An item of `calls` or `accepts`.
fn line() -> impl Strategy<Value = String> + Clone {
    let peer = prop_oneof![4 => name(), 2 => service(), 1 => select(WORDS).prop_map(str::to_owned)];
    prop_oneof![30 => (peer, ports()).prop_map(|(peer, ports)| format!("{peer}:{ports}")), 1 => name()]
}

/// A peer of a Guard; its externals are often called as here.
fn peer() -> impl Strategy<Value = String> + Clone {
    let words = select(&["any", "same", "other", "any", "world", "nodes", "metadata", "cluster", "node"][..])
        .prop_map(str::to_owned);
    prop_oneof![6 => words, 4 => service(), 1 => Just("web".to_owned())]
}

fn labels() -> impl Strategy<Value = Value> {
    let value = mostly(
        &["any", "postgres", "", "1.10", "true", LONGEST],
        &["a b", "~", "\u{7f}", "\u{85}", "é\u{2028}", "\"\\", "\0"],
    );
    object(vec((name(), value.prop_map(Value::from)), 1..3)).prop_map(|labels| json!(labels))
}

fn object<S: Strategy<Value = Vec<(String, Value)>>>(entries: S) -> impl Strategy<Value = Map<String, Value>> {
    entries.prop_map(|entries| entries.into_iter().collect())
}

fn externals() -> impl Strategy<Value = Value> {
    let prefixes = || vec(mostly(PREFIXES, ODD_PREFIXES), 1..3).prop_map(|prefixes| json!(prefixes));
    // Most exceptions lie inside.
    let except = prop_oneof![4 => Just(json!(["10.1.0.0/16"])), 1 => prefixes()];
    let external = fields(vec![
        ("cidrs", 99, prop_oneof![Just(json!(["10.0.0.0/8"])), prefixes()].boxed()),
        ("except", 20, except.boxed()),
    ]);
    object(vec((name(), external), 1..3)).prop_map(Value::from)
}

/// A mapping whose fields are there with a chance in percent.
fn fields(those: Vec<(&'static str, u32, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let each: Vec<_> = those
        .into_iter()
        .map(|(name, percent, value)| {
            option::weighted(f64::from(percent) / 100.0, value)
                .prop_map(move |value| value.map(|value| (name.to_owned(), value)))
        })
        .collect();
    each.prop_map(|fields| fields.into_iter().flatten().collect::<Map<_, _>>().into()).boxed()
}

fn one_of(usual: &'static [&'static str], odd: &'static [&'static str]) -> BoxedStrategy<Value> {
    mostly(usual, odd).prop_map(Value::from).boxed()
}

const MODES: [&[&str]; 2] = [&["enforce", "audit"], &["observe", "", "Audit"]];

fn intent() -> impl Strategy<Value = Value> {
    let lines = || vec(line(), 0..4).prop_map(|lines| json!(lines)).boxed();
    let service = fields(vec![
        ("select", 30, labels().boxed()),
        ("accepts", 50, lines()),
        ("calls", 50, lines()),
        ("isolate", 20, one_of(&["audit"], &["enforce", "", "no"])),
    ]);
    let services = object(vec((name(), prop_oneof![1 => Just(Value::Null), 5 => service]), 0..4)).prop_map(Value::from);
    fields(vec![
        ("mode", 40, one_of(MODES[0], MODES[1])),
        ("dns", 30, one_of(&["cluster", "none"], &["", "on"])),
        ("external", 30, externals().boxed()),
        ("services", 99, services.boxed()),
    ])
}

fn guard() -> impl Strategy<Value = Value> {
    let port = || prop_oneof![2 => ports().prop_map(Value::from), 1 => select(&[1, 80, 65535, 8080, 0, 65536, -1][..]).prop_map(Value::from)];
    let ports_of_rule = || vec(port(), 1..3).prop_map(Value::from).boxed();
    let peers = || {
        let with_port = (peer(), ports()).prop_map(|(peer, ports)| format!("{peer}:{ports}"));
        vec(prop_oneof![8 => peer(), 2 => with_port], 1..3).prop_map(|peers| json!(peers)).boxed()
    };
    let side = |name: &'static str| {
        fields(vec![
            (name, 99, peers()),
            (if name == "from" { "to" } else { "from" }, 2, peers()),
            ("ports", 30, ports_of_rule()),
            ("mode", 20, one_of(&["audit", "audit", "enforce"], MODES[1])),
            ("expires", 20, one_of(TIMES, ODD_TIMES)),
        ])
    };
    let matches = || prop_oneof![side("from"), side("to")];
    let rule = || {
        let one = Union::new(
            ["allow", "deny", "pass"]
                .map(|action| matches().prop_map(move |matches| json!({ action: matches })).boxed()),
        );
        prop_oneof![
            40 => one,
            1 => fields(vec![("allow", 30, matches().boxed()), ("deny", 30, matches().boxed())]),
        ]
    };
    let services = vec(service(), 1..3).prop_map(|services| json!(services));
    let subjects = fields(vec![
        ("namespaces", 60, labels().boxed()),
        ("workloads", 50, labels().boxed()),
        ("services", 30, services.boxed()),
    ]);
    let priority = prop_oneof![20 => (0..=u32::MAX).prop_map(Value::from), 1 => select(&[-1, 0, 4_294_967_295_i64, 4_294_967_296][..]).prop_map(Value::from), 1 => Just(json!("7"))];
    fields(vec![
        ("priority", 99, priority.boxed()),
        ("mode", 30, one_of(MODES[0], MODES[1])),
        ("for", 50, subjects),
        ("compare", 70, one_of(&["tenant", "bulkhead.io/tenant"], &["", "a b"])),
        ("external", 40, externals().boxed()),
        ("rules", 99, vec(rule(), 1..4).prop_map(Value::from).boxed()),
    ])
}

/// What happens to a document.
#[derive(Clone, Debug)]
enum Damage {
    Replace(Value),
    Remove,
    Twice,
    List,
    Field(String, Value),
}

fn damage() -> impl Strategy<Value = Damage> {
    let junk = select(vec![
        json!(null),
        json!(true),
        json!(5),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!("80"),
        json!(""),
        json!([]),
        json!({}),
        json!([null]),
        json!(["x"]),
        json!({ "a": "b" }),
        json!({ "a": null }),
        json!("any"),
        json!([5]),
        json!(["any"]),
        json!(1e300),
        json!("~"),
        json!("null"),
    ]);
    let fields =
        &["mode", "ports", "from", "namespace", "call", "spec", "name", "select", "", "services", "status"][..];
    prop_oneof![
        3 => junk.clone().prop_map(Damage::Replace),
        2 => Just(Damage::Remove),
        1 => Just(Damage::Twice),
        1 => Just(Damage::List),
        1 => (select(fields).prop_map(str::to_owned), junk).prop_map(|(name, value)| Damage::Field(name, value)),
    ]
}

/// Does it at one place of a `spec`.
fn damaged(spec: &Value, at: Index, damage: Damage) -> Value {
    let mut object = json!({ "spec": spec });
    let places = places(&object["spec"], "/spec");
    let (pointer, last) = at.get(&places).rsplit_once('/').unwrap();
    let key = last.replace("~1", "/").replace("~0", "~");
    let of = object.pointer_mut(pointer).unwrap();
    let here = match &mut *of {
        Value::Object(fields) => &mut fields[&key],
        items => &mut items[key.parse::<usize>().unwrap()],
    };
    match damage {
        Damage::Replace(value) => *here = value,
        Damage::List => *here = json!([here]),
        Damage::Field(name, value) => {
            if let Value::Object(fields) = here {
                fields.insert(name, value);
            }
        }
        Damage::Twice => {
            if let Value::Array(items) = here {
                items.extend(items.first().cloned());
            }
        }
        Damage::Remove => match of {
            Value::Object(fields) => drop(fields.remove(&key)),
            items => drop(items.as_array_mut().unwrap().remove(key.parse().unwrap())),
        },
    }
    object
}

/// JSON pointers to all values.
fn places(value: &Value, here: &str) -> Vec<String> {
    let mut all = vec![here.to_owned()];
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                all.extend(places(value, &format!("{here}/{}", key.replace('~', "~0").replace('/', "~1"))));
            }
        }
        Value::Array(items) => {
            all.extend(items.iter().enumerate().flat_map(|(at, item)| places(item, &format!("{here}/{at}"))));
        }
        _ => {}
    }
    all
}

/// Each text of those above once, wherever it may stand, in an object that is right otherwise.
pub(super) fn edges() -> Vec<Value> {
    let all = |usual: &'static [&'static str], odd: &'static [&'static str]| usual.iter().chain(odd).copied();
    let intent = |spec: Value| ("Intent", spec);
    let guard = |rule: Value| ("Guard", json!({ "priority": 1, "compare": "tenant", "rules": [rule] }));
    let external = |name: &str, prefix: &str| json!({ name: { "cidrs": [prefix] } });
    let mut edges = Vec::new();
    for name in all(NAMES, ODD_NAMES) {
        edges.push(intent(json!({ "services": { name: {} } })));
        edges.push(intent(json!({ "services": {}, "external": external(name, "10.0.0.0/8") })));
        edges.push(intent(json!({ "services": { "x": { "calls": [format!("{name}:80")], "accepts": [format!("{name}/{name}:80")] } } })));
        edges.push(intent(json!({ "services": { "x": { "select": { name: "x" } } } })));
        edges.push(intent(json!({ "services": { "x": { "select": { format!("{name}/x"): "x" } } } })));
        edges.push(intent(json!({ "services": { "x": { "select": { "x": name } } } })));
        edges.push(guard(json!({ "deny": { "from": [name] } })));
        edges.push(guard(json!({ "deny": { "to": [format!("{name}/{name}")] } })));
        let mut concerns = guard(json!({ "deny": { "from": ["any"] } }));
        concerns.1["for"] = json!({ "services": [format!("x/{name}")], "namespaces": { "x": name } });
        concerns.1["external"] = external(name, "10.0.0.0/8");
        edges.push(concerns);
        let mut compares = guard(json!({ "deny": { "from": ["other"] } }));
        compares.1["compare"] = name.into();
        edges.push(compares);
    }
    for port in all(PORTS, ODD_PORTS) {
        edges.push(intent(json!({ "services": { "x": { "calls": [format!("db:{port}")] } } })));
        edges.push(guard(json!({ "deny": { "from": [format!("any:{port}")] } })));
        edges.push(guard(json!({ "deny": { "from": ["any"], "ports": [port] } })));
    }
    for prefix in all(PREFIXES, ODD_PREFIXES) {
        edges.push(intent(json!({ "services": {}, "external": external("x", prefix) })));
        edges.push(intent(json!({ "services": { "x": { "calls": [format!("{prefix}:80")] } } })));
        edges.push(guard(json!({ "deny": { "from": [prefix] } })));
    }
    for time in all(TIMES, ODD_TIMES) {
        edges.push(guard(json!({ "deny": { "from": ["any"], "expires": time } })));
    }
    edges.into_iter().map(|(kind, spec)| object_of(kind, json!({ "spec": spec }))).collect()
}

fn object_of(kind: &str, mut object: Value) -> Value {
    object["apiVersion"] = "bulkhead.io/v1".into();
    object["kind"] = kind.into();
    object
}

/// An object without `metadata`.
pub(super) fn object_of_ours() -> impl Strategy<Value = Value> {
    let spec = prop_oneof![intent().prop_map(|spec| ("Intent", spec)), guard().prop_map(|spec| ("Guard", spec))];
    let damage = option::weighted(0.4, (any::<Index>(), damage()));
    // What belongs into `spec`, or nowhere.
    let beside = option::weighted(0.03, select(&["rules", "services", "Spec", "more"][..]));
    (spec, damage, beside).prop_map(|((kind, spec), damage, beside)| {
        let mut object = match damage {
            Some((at, damage)) => damaged(&spec, at, damage),
            None => json!({ "spec": spec }),
        };
        if let Some(name) = beside {
            object[name] = json!({});
        }
        object_of(kind, object)
    })
}
