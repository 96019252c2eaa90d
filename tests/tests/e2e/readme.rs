//! What README.md tells people to paste does what it says, on a node whose agent runs.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, bulkhead};
use bulkhead_topology::Topology;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    policy::SHOP,
    probe::{Ask, denied},
};

/// Where the agent of README.md listens.
const SOCKET: &str = "/run/bulkhead/api.sock";

/// Commands of the only block of shell that contains `what`, each as a shell takes it: with what its last character continues.
fn commands(what: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let found: Vec<_> = blocks.filter(|block| block.contains(what)).collect();
    assert_eq!(found.len(), 1, "{what}: {found:?}");
    let whole = found[0].replace("\\\n", "\\\r");
    let lines = whole.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.replace('\r', "\n")).collect()
}

/// A node with the names of README.md, and somewhere to paste.
struct Desk {
    lab: Lab,
    agent: Option<Agent>,
    directory: TempDir,
}

impl Desk {
    fn new() -> Self {
        let builder = Topology::builder().nodes(2).workload("web-1", 0).workload("cart-1", 0).workload("db-1", 0);
        let lab = Lab::new(builder).unwrap();
        lab.policy("shop.yaml", SHOP).unwrap();
        let agent = Some(Agent::start(&lab, 0, &[]).unwrap());
        Self { lab, agent, directory: tempfile::tempdir().unwrap() }
    }

    /// Pastes a command: its exit status, and what it printed. All that is other than on a node with one agent is where that agent's files are, and
    /// that `curl` says the status of the answer in a line of its own at the end.
    fn paste(&self, command: &str, curl: &str) -> (Option<i32>, String, String) {
        let prelude = format!(
            "bulkhead() {{
                case $1 in
                    status|get|observe) set -- \"$@\" --socket \"$SOCKET\" --pins \"$PINS\" --state \"$STATE\" ;;
                    bypass|detach) set -- \"$@\" --pins \"$PINS\" --state \"$STATE\" ;;
                    *) set -- \"$@\" --socket \"$SOCKET\" ;;
                esac
                \"$BULKHEAD\" \"$@\"
            }}
            curl() {{ command curl {curl} --write-out '\\n%{{http_code}}\\n' \"$@\"; }}\n"
        );
        let socket = self.lab.socket(0);
        let script = command.replace(SOCKET, socket.to_str().unwrap()).replace("target/release/bulkhead", "bulkhead");
        let mut shell: Command = self.lab.topology.node(0).netns.command("sh");
        shell.arg("-c").arg(prelude + &script).current_dir(self.directory.path()).stdin(Stdio::null());
        shell.env("BULKHEAD", bulkhead().unwrap()).env("SOCKET", &socket);
        shell.env("PINS", self.lab.pins(0)).env("STATE", self.lab.state(0));
        let output = shell.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Nothing is detached beside an agent.
        self.agent = None;
    }
}

#[test]
fn the_api_answers_by_hand() {
    let curl = Command::new("curl").arg("--version").output().is_ok();
    if !skip::root() || !skip::require("curl (tests/setup/setup.sh installs it)", curl) {
        return;
    }
    let desk = Desk::new();
    denied(&desk.lab, "web-1", "db-1", Ask::Tcp(5432));
    let commands = commands("--unix-socket");
    assert_eq!(commands.len(), 4, "{commands:?}");
    for command in &commands {
        let stream = command.contains("/stream");
        // The stream goes on until somebody ends it; a busy machine gets more time to begin.
        let limits: &[&str] = if stream { &["--max-time 3", "--max-time 120"] } else { &["--max-time 120"] };
        let answers = limits.iter().map(|limit| desk.paste(command, limit));
        let answer = answers.into_iter().find(|(_, out, _)| !stream || out.contains("verdict"));
        let (code, out, error) = answer.unwrap_or_else(|| panic!("{command} says nothing"));
        let (body, status) = out.trim_end().rsplit_once('\n').unwrap_or_else(|| panic!("{command}: {out}{error}"));
        assert_eq!(status, "200", "{command}: {body}{error}");
        // 28 of curl: the time was over.
        assert_eq!(code, Some(if stream { 28 } else { 0 }), "{command}: {out}{error}");
        let body: Value = serde_json::from_str(body.lines().next().unwrap()).unwrap();
        let field = match command {
            status if status.contains("/v1/status") => "/revision/number",
            document if document.contains("/v1/openapi.json") => "/openapi",
            plan if plan.contains("/v1/plan") => "/id",
            _ => "/verdict",
        };
        assert!(body.pointer(field).is_some_and(|value| !value.is_null()), "{command}: {field} in {body}");
    }
}

#[test]
fn a_change_has_a_way_back_by_hand() {
    if !skip::root() {
        return;
    }
    let desk = Desk::new();
    fs::write(
        desk.directory.path().join("ops.yaml"),
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  guest: {}\n",
    )
    .unwrap();
    let mut id = String::new();
    let mut verbs = Vec::new();
    for command in commands("bulkhead plan ops.yaml") {
        let (code, out, error) = desk.paste(&command.replace(" ID ", &format!(" {id} ")), "");
        let verb = command.split(' ').nth(1).unwrap().to_owned();
        // `web` may not call `db`, and the exit status says so.
        assert_eq!(code, Some(i32::from(verb == "explain")), "{command}: {out}{error}");
        let told = match verb.as_str() {
            "plan" => {
                id = out.split("bulkhead apply ").nth(1).unwrap().trim().to_owned();
                "map entries would be written"
            }
            "apply" => "bulkhead confirm 2",
            "confirm" => "revision 2 stays in force",
            "rollback" => "revision 3 is in force",
            "revisions" => "rollback to 1",
            "policies" => "shop.yaml",
            "explain" => "BLOCKED",
            other => panic!("{other}: nothing is known of it here"),
        };
        assert!(out.contains(told), "{command}: {out}");
        verbs.push(verb);
    }
    assert_eq!(verbs, ["plan", "apply", "confirm", "rollback", "revisions", "policies", "explain"]);
}

#[test]
fn a_node_is_looked_at_and_bypassed_by_hand() {
    if !skip::root() {
        return;
    }
    let desk = Desk::new();
    denied(&desk.lab, "web-1", "db-1", Ask::Tcp(5432));
    let by_hand = commands("target/release/bulkhead agent");
    let looks = by_hand.iter().filter(|command| command.contains("status") || command.contains("get rules"));
    let worst = commands("bypass --for");
    let mut pasted = 0;
    for (command, (code, told)) in looks.chain(&worst).zip([
        (0, "ENFORCING"),
        (0, "shop.yaml:"),
        (0, "BYPASSED until "),
        (2, "cart cannot reach db"),
        (0, "this node enforces again"),
    ]) {
        let (status, out, error) = desk.paste(command, "");
        assert_eq!(status, Some(code), "{command}: {out}{error}");
        assert!(out.contains(told), "{command}: {told} in {out}{error}");
        pasted += 1;
    }
    assert_eq!((pasted, worst.len()), (5, 3));
}
