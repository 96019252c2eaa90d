//! The way out on the worst day: what is forbidden passes for a while, by the pins alone, and stops passing without anybody's doing.

use std::{
    fs,
    net::TcpStream,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use bulkhead_dataplane::kernel::Reader;
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, bulkhead};

use crate::{
    established::{alive, cut},
    policy::{SHOP, shop},
    probe::{Ask, PATIENCE, Servers, allowed, command_line, denied},
};

const BYPASSED: &str = "BYPASSED until ";
/// For what the machine does when it comes to it.
const LONG: Duration = Duration::from_secs(180);

/// What `guest` may not do on node 0, where `cart-1` is too.
struct Walls {
    lab: Lab,
    servers: Servers,
}

impl Walls {
    /// A node that nobody guards yet. An agent has to end before this goes: nothing is detached beside one.
    fn new() -> Self {
        let lab = shop();
        let servers = Servers::start(&lab, "cart-1", &[8080], &[5301]);
        Self { lab, servers }
    }

    /// A node whose walls stand and whose agent is dead.
    fn without_agent() -> Self {
        let walls = Self::new();
        Agent::start(&walls.lab, 0, &[]).unwrap().kill().unwrap();
        walls.stand();
        walls
    }

    #[track_caller]
    fn stand(&self) {
        let seen = self.servers.seen();
        denied(&self.lab, "guest", "cart-1", Ask::Tcp(8080));
        denied(&self.lab, "web", "cart-1", Ask::Udp(5301));
        assert_eq!(self.servers.seen(), seen, "nothing reached a server");
        allowed(&self.lab, "web", "cart-1", Ask::Tcp(8080));
    }

    #[track_caller]
    fn are_open(&self) {
        allowed(&self.lab, "guest", "cart-1", Ask::Tcp(8080));
        allowed(&self.lab, "web", "cart-1", Ask::Udp(5301));
        allowed(&self.lab, "web", "cart-1", Ask::Tcp(8080));
    }

    /// Connections that policy forbids.
    fn connect(&self) -> Vec<TcpStream> {
        let client = self.lab.topology.workload("guest").client().deadline(PATIENCE);
        let cart = self.lab.topology.workload("cart-1").addresses();
        cart.map(|to| client.connect((to, 8080).into()).unwrap()).into()
    }

    /// Packets that passed although policy forbids them.
    fn observed(&self) -> u64 {
        let (pins, state) = (self.lab.pins(0), self.lab.state(0));
        let readings = self.lab.topology.node(0).netns.run(|| Reader::open(&pins, &state).unwrap().counters()).unwrap();
        let observed = readings.iter().filter(|reading| reading.reason.label() == "observed");
        observed.map(|reading| reading.packets).sum()
    }

    fn bypass(&self, words: &[&str]) -> String {
        command_line(&self.lab, 0, &[&["bypass", "--reason", "the cart is down"], words].concat())
    }

    fn status(&self) -> String {
        command_line(&self.lab, 0, &["status"])
    }

    /// A command that need not succeed.
    fn run(&self, program: &str, words: &[&str]) -> Output {
        self.lab.topology.node(0).netns.command(program).args(words).output().unwrap()
    }
}

/// What a command said on standard output, and on standard error in one line: there errors are set in lines of a terminal's width.
fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let line = |text: String| {
        text.split(|c: char| c.is_whitespace() || c == '│')
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    };
    (text(&output.stdout), line(text(&output.stderr)))
}

/// Waits for what must come.
#[track_caller]
pub(crate) fn wait(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_bypass_ends_by_itself_though_the_agent_is_dead() {
    if !skip::root() {
        return;
    }
    let walls = Walls::without_agent();
    assert!(!walls.status().contains(BYPASSED));
    assert_eq!(walls.observed(), 0);
    // A machine that is too busy to look before the time is over gets more of it.
    for seconds in [4, 20, 120] {
        let said = walls.bypass(&["--for", &format!("{seconds}s")]);
        assert!(said.starts_with(BYPASSED) && said.contains("the cart is down"), "{said}");
        let client = walls.lab.topology.workload("guest").client().deadline(Duration::from_millis(500));
        let to = walls.lab.topology.workload("cart-1").addresses();
        let streams: Result<Vec<_>, _> = to.iter().map(|to| client.connect((*to, 8080).into())).collect();
        let status = walls.status();
        let Some(mut streams) = streams.ok().filter(|_| status.starts_with(BYPASSED)) else { continue };
        assert!(status.contains("the cart is down"), "{status}");
        let json: String = command_line(&walls.lab, 0, &["status", "--json"]);
        assert!(json.contains("\"bypassed_until\""), "{json}");
        assert!(walls.observed() > 0, "what passes is counted as what it is");

        wait("the bypass ends", || !walls.status().contains(BYPASSED));
        cut(&mut streams);
        walls.stand();
        let before = walls.observed();
        walls.stand();
        assert_eq!(walls.observed(), before);
        return;
    }
    panic!("two minutes were not enough to connect");
}

#[test]
fn a_bypass_is_ended_at_once_and_detach_works_meanwhile() {
    if !skip::root() {
        return;
    }
    let walls = Walls::without_agent();
    walls.bypass(&["--for", "1h"]);
    walls.are_open();
    let mut streams = walls.connect();
    alive(&mut streams);
    // Longer and shorter, each in place of the one before.
    walls.bypass(&["--for", "24h"]);
    walls.bypass(&["--for", "10m"]);
    alive(&mut streams);
    let said = walls.bypass(&["--end"]);
    assert!(said.contains("this node enforces again"), "{said}");
    cut(&mut streams);
    walls.stand();
    assert!(!walls.status().contains(BYPASSED));
    let said = walls.bypass(&["--end"]);
    assert!(said.contains("there was no bypass"), "{said}");

    walls.bypass(&["--for", "1h"]);
    let mut streams = walls.connect();
    let pins = walls.lab.pins(0);
    let program = bulkhead().unwrap();
    let program = program.to_str().unwrap();
    let detached = walls.run(program, &["detach", "--all", "--pins", pins.to_str().unwrap()]);
    assert!(detached.status.success(), "{:?}", text(&detached));
    assert!(!pins.exists());
    alive(&mut streams);
    walls.are_open();
    for words in [["--for", "1h"].as_slice(), &["--end"]] {
        let all = [["bypass", "--reason", "late", "--pins", pins.to_str().unwrap()].as_slice(), words].concat();
        let (_, refused) = text(&walls.run(program, &all));
        assert!(refused.contains("nothing is pinned there"), "{refused}");
    }
}

#[test]
fn a_bypass_needs_no_disk() {
    if !skip::root() {
        return;
    }
    let walls = Walls::without_agent();
    let pins = walls.lab.pins(0);
    let program = bulkhead().unwrap();
    let (program, pins) = (program.to_str().unwrap(), pins.to_str().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "no directory").unwrap();
    fs::create_dir(path("full")).unwrap();
    let full = format!(
        "mount -t tmpfs -o size=64k tmpfs {0} && echo old > {0}/bypass.json && ! dd if=/dev/zero of={0}/all bs=4k 2>/dev/null && \
         \"$@\" --state {0} && cat {0}/bypass.json",
        path("full")
    );
    let plain = |state: &str| format!("exec \"$@\" --state {state}");
    // A mount namespace of its own: what is mounted in it goes with it.
    let run = |script: &str, words: &[&str]| {
        let bypass = ["--mount", "sh", "-c", script, "sh", program, "bypass", "--reason", "no disk", "--pins", pins];
        walls.run("unshare", &[&bypass, words].concat())
    };
    for (script, left) in [(full, "old\n"), (plain(&path("missing")), ""), (plain(&path("file")), "")] {
        let output = run(&script, &["--for", "1h"]);
        let (said, noted) = text(&output);
        assert!(output.status.success() && said.starts_with(BYPASSED), "{script}: {said}{noted}");
        assert!(noted.contains("could not be recorded: "), "{script}: {noted}");
        assert!(noted.contains("no disk"), "the log has it: {noted}");
        assert!(said.ends_with(left), "what was recorded before is whole: {said}");
        walls.are_open();
        let output = run(&script, &["--end"]);
        let (said, noted) = text(&output);
        assert!(output.status.success() && said.contains("enforces again"), "{script}: {said}{noted}");
        assert!(noted.contains("could not be recorded: "), "{script}: {noted}");
        walls.stand();
    }
    // Where there is a disk, nothing is left unsaid.
    let output = run(&plain(&path("full")), &["--for", "1h"]);
    let (said, noted) = text(&output);
    assert!(output.status.success() && !noted.contains("could not be recorded"), "{said}{noted}");
    // What was there is not believed.
    for file in ["bypass.json", "names.json", "revision.json"] {
        fs::write(format!("{}/{file}", path("full")), "{").unwrap();
    }
    let output = run(&plain(&path("full")), &["--end"]);
    assert!(output.status.success(), "{:?}", text(&output));
    walls.stand();
}

#[test]
fn an_agent_tells_of_a_bypass_and_never_ends_it() {
    if !skip::root() {
        return;
    }
    let walls = Walls::new();
    let mut agent = Agent::start(&walls.lab, 0, &[]).unwrap();
    walls.stand();
    let metric = |agent: &Agent, name: &str| agent.metric(name, &[]).unwrap();
    assert_eq!(metric(&agent, "bulkhead_bypass_active"), 0.0);
    assert_eq!(metric(&agent, "bulkhead_bypass_until_seconds"), 0.0);

    walls.bypass(&["--for", "1h"]);
    let until = metric(&agent, "bulkhead_bypass_until_seconds");
    assert_eq!(metric(&agent, "bulkhead_bypass_active"), 1.0);
    assert!(until > 1e9, "{until}");
    wait("the agent says that it begins", || {
        agent.log().contains(BYPASSED) && agent.log().contains("the cart is down")
    });
    walls.are_open();

    // It publishes, dies, starts again, with other settings and programs, and observes for a while: the deadline is what it was.
    let same = |agent: &Agent, what: &str| {
        walls.are_open();
        let now = metric(agent, "bulkhead_bypass_until_seconds");
        // The wall clock may be corrected meanwhile.
        assert!((now - until).abs() <= 2.0, "{what}: {now}, not {until}");
    };
    agent.apply(|| walls.lab.policy("shop.yaml", &SHOP.replace("db:5432", "db:5433"))).unwrap();
    same(&agent, "after a publish");
    for arguments in [[].as_slice(), &["--observe"], &["--mark-mask", "0x0fff0000"], &[]] {
        agent.kill().unwrap();
        agent = Agent::start(&walls.lab, 0, arguments).unwrap();
        same(&agent, &format!("after a start with {arguments:?}"));
    }
    walls.bypass(&["--end"]);
    walls.stand();
    assert_eq!(metric(&agent, "bulkhead_bypass_active"), 0.0);
    walls.bypass(&["--for", "1h"]);
    wait("the agent says that one is in force", || agent.log().matches(BYPASSED).count() > 1);
    walls.bypass(&["--end"]);
    wait("the agent says that it is over", || agent.log().contains("the bypass is over: this node enforces again"));
}

#[test]
fn what_is_no_bypass_is_refused_by_name() {
    let run = |words: &[&str]| {
        let pins = ["--pins", "/nonexistent", "--state", "/nonexistent"];
        let output = Command::new(bulkhead().unwrap()).arg("bypass").args(words).args(pins).output().unwrap();
        assert!(!output.status.success(), "{words:?}");
        text(&output).1
    };
    for (words, why) in [
        (["--reason", "x"].as_slice(), "--for"),
        (&["--for", "15m"], "--reason"),
        (&["--end"], "--reason"),
        (&["--for", "15m", "--end", "--reason", "x"], "cannot be used with"),
        (&["--for", "15m", "--reason", " "], "say why"),
        (&["--for", "15m", "--reason", "x\ny"], "without control characters"),
        (&["--for", "15", "--reason", "x"], "invalid value '15' for '--for <TIME>'"),
        (&["--for", "900ms", "--reason", "x"], "900ms: it lasts at least 1s and at most 24 h"),
        (&["--for", "1day 1s", "--reason", "x"], "86401s: it lasts at least 1s and at most 24 h"),
        (&["--for", "24h", "--reason", "x"], "nothing is pinned there"),
    ] {
        let said = run(words);
        assert!(said.contains(why), "{words:?}: {said}");
    }
}
