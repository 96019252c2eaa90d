//! What the command line asks the agent: the socket is all that it needs.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Child, Command, Stdio},
};

use bulkhead_controller::show::Observation;
use bulkhead_fixtures::skip;
use serde_json::Value;

use crate::{
    home::{Home, eventually},
    node::{denied, slot},
    served::{CART, NOBODY, Served, audited, enterable, home},
};

fn bulkhead(home: &Home, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(words).arg("--socket").arg(home.path("run/api.sock"));
    command
}

/// What a command prints, and its exit status.
fn run(home: &Home, words: &[&str]) -> (String, Option<i32>) {
    let output = bulkhead(home, words).output().unwrap();
    assert!(output.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

#[test]
fn lists_and_status_come_from_the_agent() {
    let home = home();
    let served = Served::new(&home);
    denied(&home.store, slot(&served, "web-1"), 22, 3);
    for (what, told) in [
        ("workloads", "cart-1"),
        ("policies", "shop.yaml:6"),
        ("rules", "shop: web calls db:5432/tcp"),
        ("flows", "WORKLOAD"),
        ("services", "NAMESPACE"),
    ] {
        let (text, code) = run(&home, &["get", what]);
        assert!(code == Some(0) && text.contains(told), "{what}: {text}");
        let (text, code) = run(&home, &["get", what, "--json"]);
        let lines: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(code == Some(0) && lines.is_empty() == matches!(what, "flows" | "services"), "{what}: {text}");
    }
    let (text, code) = run(&home, &["observe"]);
    assert!(code == Some(0) && text.contains("BLOCKED") && text.contains("shop.yaml:6"), "{text}");

    let (text, code) = run(&home, &["status"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("ENFORCING\nagent     version "), "{text}");
    assert!(text.contains("revision  1 of node n1") && text.contains("shop/cart-1#0"), "{text}");
    let (text, code) = run(&home, &["status", "--json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &status["well"], &status["node"]["state"]), (Some(0), &true.into(), &"enforcing".into()));
    assert_eq!(status["node"]["endpoints"].as_array().unwrap().len(), 3);

    // What is not well is told, and is the exit status.
    home.write("policies/bad.yaml", "{");
    eventually("the agent has seen it", || !served.status().troubles.is_empty());
    let (text, code) = run(&home, &["status"]);
    assert!(code == Some(2) && text.contains("TROUBLE   not all input is used:"), "{text}");
}

/// Who may not ask is told that, and not that there is no agent, or no wall.
#[test]
fn who_may_not_connect_is_told_who_may() {
    if !skip::require("root, to be somebody else", nix::unistd::geteuid().is_root()) {
        return;
    }
    let home = home();
    enterable(&home);
    let _served = Served::new(&home);
    // Where nobody may run it.
    let program = home.path("bulkhead");
    fs::copy(env!("CARGO_BIN_EXE_bulkhead"), &program).unwrap();
    let run = |words: &[&str], path: &str| {
        let mut command = Command::new(&program);
        command.args(words).arg("--socket").arg(home.path(path)).uid(NOBODY).gid(NOBODY);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let words = said.split(|c: char| c.is_whitespace() || c == '│').filter(|word| !word.is_empty());
        (output.status.code(), words.collect::<Vec<_>>().join(" "))
    };
    for words in [&["status"][..], &["get", "rules"], &["observe"], &["observe", "--follow"]] {
        let (code, said) = run(words, "run/api.sock");
        assert!(code == Some(1) && said.contains("you may not connect") && said.contains("--socket-group"), "{said}");
        assert!(!said.contains("in force") && !said.contains("start it"), "{words:?}: {said}");
    }
    let (code, said) = run(&["status", "--pins", "/nowhere"], "run/other.sock");
    assert!(code == Some(1) && said.contains("nothing is in force below /nowhere"), "{said}");
    let shut = home.path("shut");
    fs::create_dir(&shut).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o700)).unwrap();
    let (code, said) = run(&["status", "--pins", shut.join("pins").to_str().unwrap()], "run/other.sock");
    assert!(code == Some(1) && said.contains("root alone can read") && !said.contains("nothing"), "{said}");
}

/// A command that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_happens_is_followed() {
    let home = home();
    let served = Served::new(&home);
    let slot = slot(&served, "web-1");
    denied(&home.store, slot, 22, 1);
    let words = ["observe", "--follow", "--json"];
    let mut running = Running(bulkhead(&home, &words).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut packets = || serde_json::from_str::<Observation>(&lines.next().unwrap().unwrap()).unwrap().packets;
    assert_eq!(packets(), 1);
    denied(&home.store, slot, 22, 5);
    assert_eq!(packets(), 5);
    denied(&home.store, slot, 23, 2);
    assert_eq!(packets(), 2);
}

#[test]
fn what_the_audit_log_lacks_is_told() {
    let home = home();
    let log = home.state().join("audit.jsonl");
    fs::create_dir(&log).unwrap();
    let served = Served::new(&home);
    let lacks = |served: &Served| {
        let said = served.status().troubles.concat();
        assert_eq!(said.contains("could not be written to the audit log"), !served.status().troubles.is_empty());
        !said.is_empty()
    };
    assert!(lacks(&served));
    let lost = served.status().audit_lost;
    assert!(lost > 0);
    let metric = format!("bulkhead_audit_lost_total {lost}\n");
    assert!(served.client.get("/v1/metrics").text().contains(&metric), "{metric}");
    let (text, code) = run(&home, &["status"]);
    assert!(code == Some(2) && text.contains(&format!("audit     {lost} records could not be written")), "{text}");

    // When it can be written again it says so itself, and all is well.
    fs::remove_dir(&log).unwrap();
    served.apply(&[("cart", Some(CART))]);
    assert!(!lacks(&served));
    assert_eq!(served.status().audit_lost, lost, "of what was lost nothing comes back");
    assert_eq!(audited(&home, "audit.lost").len(), 1);
}
