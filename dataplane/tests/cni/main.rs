//! The CNI plugin as a program: what it says of input that no runtime should hand to it. No agent runs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_dataplane::cni::{
    Code,
    ask::{Patience, ask},
    protocol::{Answer, Ask, Attached, Key, Reply, Request, VERSION},
};
use bulkhead_fixtures::skip;
use bulkhead_topology::Netns;
use proptest::prelude::*;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

fn environment() -> BTreeMap<&'static str, String> {
    [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
    .map(|(key, value)| (key, value.to_owned()))
    .into()
}

fn config() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "bulkhead-cni", "socket": "/nonexistent/cni.sock", "timeoutSeconds": 1,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "veth0" }, { "name": "lo", "sandbox": "/proc/self/ns/net" }],
            "ips": [{ "address": "10.88.0.2/16", "interface": 1 }]
        }
    })
}

/// Runs it; with what it prints as JSON, `Null` for nothing, and whether it succeeds.
fn run(environment: &BTreeMap<&str, String>, input: &[u8]) -> (Value, bool) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-cni"))
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have read enough.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (value, output.status.success())
}

#[track_caller]
fn refused(environment: &BTreeMap<&str, String>, input: &[u8], code: u64, why: &str) {
    let (said, good) = run(environment, input);
    assert!(!good, "{said}");
    assert_eq!(said["code"], code, "{said}");
    assert!(["0.4.0", "1.0.0", "1.1.0"].contains(&said["cniVersion"].as_str().unwrap()), "{said}");
    assert!(said["msg"].as_str().unwrap().contains(why), "{said}");
    assert!(!said["details"].as_str().unwrap().is_empty(), "a remedy is said: {said}");
}

#[test]
fn the_environment_is_not_believed() {
    let with = |key, value: &str| {
        let mut environment = environment();
        environment.insert(key, value.to_owned());
        environment
    };
    let input = config().to_string();
    for (key, value, why) in [
        ("CNI_COMMAND", "add", "CNI_COMMAND"),
        ("CNI_COMMAND", "", "CNI_COMMAND"),
        ("CNI_CONTAINERID", "../../etc/passwd", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", ".hidden", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "sixteen-letters0", "CNI_IFNAME"),
        ("CNI_IFNAME", "eth/0", "CNI_IFNAME"),
        ("CNI_IFNAME", "..", "CNI_IFNAME"),
        ("CNI_NETNS", "relative", "CNI_NETNS"),
        ("CNI_NETNS", "", "CNI_NETNS"),
        ("CNI_ARGS", "K8S_POD_NAME", "CNI_ARGS"),
        ("CNI_ARGS", "K8S_POD_NAME=../web", "K8S_POD_NAME"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a b", "K8S_POD_NAMESPACE"),
    ] {
        refused(&with(key, value), input.as_bytes(), 4, why);
    }
    let mut bare = environment();
    bare.remove("CNI_COMMAND");
    refused(&bare, input.as_bytes(), 4, "CNI_COMMAND is not set");
}

#[test]
fn the_configuration_is_not_believed() {
    let environment = environment();
    let large = [b"{\"x\":\"".as_slice(), &vec![b'a'; 10 << 20], b"\"}"].concat();
    refused(&environment, &large, 6, "more than 1048576 bytes");
    let text = config().to_string();
    for input in [&text[..text.len() / 2], "", "[]", "null", "\u{0}", "{\"cniVersion\": \"1.0.0\"} trailing"] {
        refused(&environment, input.as_bytes(), 6, "no JSON object");
    }
    refused(&environment, b"\xff\xfe{}", 6, "no JSON object");
    let with = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config.to_string().into_bytes()
    };
    for version in [json!("9.9.9"), json!(1), json!(null), json!("")] {
        refused(&environment, &with("cniVersion", version), 1, "of CNI is not known");
    }
    for (key, value, why) in [
        ("mode", json!("off"), "another form than expected: mode: unknown variant"),
        ("mode", json!(3), "another form"),
        ("onTimeout", json!("open"), "another form"),
        ("name", json!(5), "another form than expected: name: invalid type: integer `5`"),
        ("args", json!({ "cni": { "labels": [{ "key": "app" }] } }), "args.cni.labels[0]"),
        ("timeoutSeconds", json!(0), "timeoutSeconds"),
        ("timeoutSeconds", json!(301), "timeoutSeconds"),
        ("timeoutSeconds", json!(-1), "another form"),
        ("socket", json!("relative"), "absolute"),
        ("namespace", json!("a/b"), "namespace"),
        ("prevResult", json!(null), "no `prevResult`"),
        ("prevResult", json!("text"), "another form"),
        ("prevResult", json!({ "interfaces": [{ "name": 1 }] }), "another form: interfaces[0].name"),
        ("prevResult", json!({ "interfaces": [] }), "no interface in a container"),
        (
            "prevResult",
            json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [{ "address": "300.1.1.1/8", "interface": 0 }] }),
            "no address",
        ),
        (
            "prevResult",
            json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [{ "address": "10.0.0.1/8", "interface": 7 }] }),
            "belongs to no interface",
        ),
        ("prevResult", json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [] }), "has no address"),
    ] {
        refused(&environment, &with(key, value), 7, why);
    }
    // Names that no link can have lead to no link, and to no file.
    for (name, why) in
        [("sixteen-letters0", "interface sixteen-letters0"), ("../../../etc/passwd", "passwd"), ("", "interface ")]
    {
        let interfaces = json!([{ "name": name, "sandbox": "/proc/self/ns/net" }]);
        let previous = json!({ "interfaces": interfaces, "ips": [{ "address": "10.0.0.1/8", "interface": 0 }] });
        refused(&environment, &with("prevResult", previous), 103, why);
    }
}

/// A loopback device is no veth pair, and a file no network namespace.
#[test]
fn what_is_no_veth_pair_is_refused() {
    let mut environment = environment();
    environment.insert("CNI_NETNS", "/etc/hostname".to_owned());
    refused(&environment, config().to_string().as_bytes(), 103, "/etc/hostname");
    environment.insert("CNI_NETNS", "/nonexistent".to_owned());
    refused(&environment, config().to_string().as_bytes(), 103, "No such file");
}

#[test]
fn verbs_that_need_nothing_answer_without_an_agent() {
    let mut environment = environment();
    environment.insert("CNI_COMMAND", "VERSION".to_owned());
    let (said, good) = run(&environment, br#"{"cniVersion":"0.4.0"}"#);
    assert!(good);
    assert_eq!(said, json!({ "cniVersion": "0.4.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"] }));
    // A runtime of another day asks before it knows what to speak.
    let (said, good) = run(&environment, br#"{"cniVersion":"0.2.0"}"#);
    assert!(good && said["supportedVersions"][0] == "0.4.0", "{said}");

    // DEL never fails, and STATUS says what is the matter.
    environment.insert("CNI_COMMAND", "DEL".to_owned());
    environment.remove("CNI_NETNS");
    assert_eq!(run(&environment, config().to_string().as_bytes()), (Value::Null, true));
    environment.insert("CNI_COMMAND", "STATUS".to_owned());
    refused(&environment, config().to_string().as_bytes(), 50, "no Bulkhead agent answers at /nonexistent/cni.sock");
    environment.insert("CNI_COMMAND", "GC".to_owned());
    refused(&environment, config().to_string().as_bytes(), 7, "valid-attachments");
}

/// In observe mode ADD gives back what it got, whatever is wrong, and GC does not fail a runtime either.
#[test]
fn observing_gives_back_the_result() {
    let mut config = config();
    config["mode"] = json!("observe");
    let mut environment = environment();
    assert_eq!(run(&environment, config.to_string().as_bytes()), (config["prevResult"].clone(), true));
    // Where nothing came a result must come out all the same: without one a runtime lets the container fail.
    let bare = json!({ "cniVersion": "1.0.0", "name": "lab", "type": "bulkhead-cni", "mode": "observe" });
    assert_eq!(run(&environment, bare.to_string().as_bytes()), (json!({ "cniVersion": "1.0.0" }), true));
    config["cni.dev/valid-attachments"] = json!([]);
    environment.insert("CNI_COMMAND", "GC".to_owned());
    assert_eq!(run(&environment, config.to_string().as_bytes()), (Value::Null, true));
    config["mode"] = json!("enforce");
    refused(&environment, config.to_string().as_bytes(), 100, "no Bulkhead agent answers");
}

/// Containers of exempt namespaces start as if it only observed, those of others do not.
#[test]
fn exempt_namespaces_wait_for_nobody() {
    let (mut config, mut environment) = (config(), environment());
    config["exempt"] = json!(["kube-system", "boot"]);
    environment.insert("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=proxy".to_owned());
    let input = config.to_string();
    assert_eq!(run(&environment, input.as_bytes()), (config["prevResult"].clone(), true));
    environment.insert("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system-2".to_owned());
    let (said, good) = run(&environment, input.as_bytes());
    assert!(!good, "{said}");
    // What names none is of the network's namespace.
    environment.remove("CNI_ARGS");
    assert!(!run(&environment, input.as_bytes()).1);
    config["namespace"] = json!("boot");
    assert!(run(&environment, config.to_string().as_bytes()).1);
    config["exempt"] = json!(["../boot"]);
    refused(&environment, config.to_string().as_bytes(), 7, "`../boot` cannot be a namespace");
}

/// Whose namespace is exempt runs whatever the agent says: it is told that nobody waits, so that it shuts nobody who runs.
#[test]
fn only_for_those_who_wait_it_is_said_so() {
    if !skip::root() {
        return;
    }
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    let made = ["link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", far.name()];
    assert!(near.command("ip").args(made).status().unwrap().success());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut config = config();
    (config["socket"], config["exempt"]) = (json!(socket), json!(["kube-system"]));
    config["prevResult"]["interfaces"][1] = json!({ "name": "eth0", "sandbox": far.path() });
    for (namespace, waits) in [("kube-system", false), ("shop", true)] {
        let mut plugin = near.command(env!("CARGO_BIN_EXE_bulkhead-cni"));
        plugin.envs(environment()).env("CNI_NETNS", far.path());
        plugin.env("CNI_ARGS", format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=pod"));
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let told: Request = serde_json::from_str(&line).unwrap();
        assert!(matches!(&told.ask, Ask::Add(attached) if attached.interfaces[0].link == "veth0"), "{line}");
        assert_eq!(told.waits, waits, "{namespace}");
        let reply = Reply { version: VERSION, answer: Answer::Done };
        // Who waits for nothing may be gone.
        let _ = writeln!(stream, "{}", serde_json::to_string(&reply).unwrap());
        assert!(child.wait().unwrap().success(), "{namespace}");
    }
}

/// An agent that ends while it is asked, another that speaks another version, and one that says nothing.
#[test]
fn an_agent_that_ends_is_asked_again() {
    if !skip::root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let request = Request { version: VERSION, network: "lab".to_owned(), waits: false, ask: Ask::Status };
    let patience = |seconds| Patience { until: Instant::now() + Duration::from_secs(seconds), for_agent: true };
    let answer = |version| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        let reply = Reply { version, answer: Answer::Done };
        writeln!(stream, "{}", serde_json::to_string(&reply).unwrap()).unwrap();
    };
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&socket, &request, patience(60)));
        drop(listener.accept().unwrap());
        answer(VERSION);
        assert_eq!(asked.join().unwrap(), Ok(()));
        let asked = scope.spawn(|| ask(&socket, &request, patience(60)));
        answer(VERSION + 1);
        assert!(asked.join().unwrap().unwrap_err().message.contains("version"));
        // What it answers need have no form that is known.
        let asked = scope.spawn(|| ask(&socket, &request, patience(60)));
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, r#"{{"version":{},"answer":{{"later":[]}}}}"#, VERSION + 1).unwrap();
        assert!(asked.join().unwrap().unwrap_err().message.contains("the agent speaks version 2"));
    });
    assert_eq!(ask(&socket, &request, patience(1)).unwrap_err().code, Code::TimedOut);
}

/// Whoever else listens there is told nothing.
#[test]
fn an_agent_that_is_not_roots_is_not_asked() {
    if !skip::root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    let listen = || {
        // SAFETY: the call takes numbers alone. It changes the user of this thread and of no other one, which the library's function would.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        socket.listen(1).unwrap();
    };
    thread::scope(|scope| scope.spawn(listen).join().unwrap());
    let request = Request { version: VERSION, network: "lab".to_owned(), waits: false, ask: Ask::Status };
    let patience = Patience { until: Instant::now() + Duration::from_secs(1), for_agent: false };
    let refused = ask(&path, &request, patience).unwrap_err();
    assert_eq!(refused.code, Code::AgentAway);
    assert!(refused.message.contains("user 65534's, not root's"), "{refused}");
    let (mut heard, mut bytes) = (socket.accept().unwrap().0, [0; 1]);
    assert_eq!(std::io::Read::read(&mut heard, &mut bytes).unwrap(), 0, "it was told something");
}

/// Who starts shut is written down for the next agent, and DEL takes that away again, with no agent at all.
#[test]
fn del_without_an_agent_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config();
    config["socket"] = json!(directory.path().join("cni.sock"));
    let (shut, mut environment) = (directory.path().join("shut"), environment());
    let key = |container: &str| Key { container: container.to_owned(), ifname: "eth0".to_owned() };
    let written = |container: &str| {
        let attached = Attached {
            key: key(container),
            namespace: "shop".to_owned(),
            name: container.to_owned(),
            uid: None,
            labels: BTreeMap::new(),
            interfaces: Vec::new(),
        };
        let request = Request { version: VERSION, network: "lab".to_owned(), waits: true, ask: Ask::Add(attached) };
        fs::write(shut.join(format!("{container},eth0.json")), serde_json::to_vec(&request).unwrap()).unwrap();
    };
    let left = || {
        let mut names: Vec<_> =
            fs::read_dir(&shut).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    fs::create_dir(&shut).unwrap();
    ["c0ffee", "gone", "runs"].iter().copied().for_each(written);
    environment.insert("CNI_COMMAND", "DEL".to_owned());
    environment.remove("CNI_NETNS");
    assert_eq!(run(&environment, config.to_string().as_bytes()), (Value::Null, true));
    assert_eq!(left(), ["gone,eth0.json", "runs,eth0.json"]);
    environment.insert("CNI_COMMAND", "GC".to_owned());
    config["mode"] = json!("observe");
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "runs", "ifname": "eth0" }]);
    assert_eq!(run(&environment, config.to_string().as_bytes()), (Value::Null, true));
    assert_eq!(left(), ["runs,eth0.json"]);

    // What the specification calls it, and what Go writes where a runtime knows none.
    config.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    config["cni.dev/attachments"] = json!([{ "containerID": "runs", "ifname": "eth0" }]);
    assert_eq!(run(&environment, config.to_string().as_bytes()), (Value::Null, true));
    assert_eq!(left(), ["runs,eth0.json"]);
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        written("runs");
        config.as_object_mut().unwrap().remove("cni.dev/attachments");
        config[key] = Value::Null;
        assert_eq!(run(&environment, config.to_string().as_bytes()), (Value::Null, true), "{key}");
        assert_eq!(left(), Vec::<String>::new(), "{key}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Bytes changed at random: a result or an error of the specification, and never anything else.
    #[test]
    fn whatever_comes_in_an_answer_comes_out(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut input = config().to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(input.len());
            input[at] = byte;
        }
        let mut environment = environment();
        environment.insert("CNI_NETNS", "/nonexistent".to_owned());
        let (said, good) = run(&environment, &input);
        // Only a changed mode lets ADD succeed here.
        prop_assert!(good || said["code"].is_u64() && said["msg"].is_string(), "{}", said);
    }
}
