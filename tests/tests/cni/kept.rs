//! Connections that are older than the walls.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, bulkhead};
use bulkhead_topology::Topology;

use crate::support::{BRIEF, PATIENCE, age_stubs, eventually};

const POLICY: &str = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: ['cart:8080', 'db:8080'] }\n  cart: {}\n  db: {}\n  guest: {}\n";
const PORT: u16 = 8080;

/// As most policies of Kubernetes: only what comes in is walled.
const INGRESS: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: servers, namespace: shop }\nspec:\n  podSelector: { matchExpressions: [{ key: app, operator: In, values: [cart, db] }] }\n  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }] }]\n";

fn lab() -> Lab {
    lab_under(POLICY)
}

/// Callers and servers on one node, and a server on another.
fn lab_under(policy: &str) -> Lab {
    let builder = Topology::builder().nodes(2).workload("web", 0).workload("guest", 0).workload("cart", 0);
    let lab = Lab::new(builder.workload("db", 1)).unwrap();
    lab.policy("shop.yaml", policy).unwrap();
    lab
}

/// Both ends of a connection.
struct Pair {
    name: String,
    client: TcpStream,
    server: TcpStream,
}

/// Servers that listen as long as they live: on all addresses of both families with one socket, so that those of IPv4 are mapped.
fn listen(lab: &Lab) -> Vec<(&'static str, TcpListener)> {
    let listen = |name| {
        let listener = lab.topology.workload(name).netns.run(|| TcpListener::bind(("::", PORT)).unwrap());
        (name, listener)
    };
    ["cart", "db"].map(listen).into()
}

/// Connections of a caller to both servers in both families, so many of each.
fn connect(lab: &Lab, listeners: &[(&'static str, TcpListener)], caller: &str, each: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (name, listener) in listeners {
        for address in lab.topology.workload(name).addresses() {
            for _ in 0..each {
                let to = SocketAddr::new(address, PORT);
                let client =
                    lab.topology.workload(caller).netns.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
                let (server, from) = listener.accept().unwrap();
                assert_eq!(from.port(), client.local_addr().unwrap().port());
                pairs.push(Pair { name: format!("{caller} to {name} at {address}"), client, server });
            }
        }
    }
    pairs
}

/// Whether what one side says reaches the other one.
fn says(from: &mut TcpStream, to: &mut TcpStream, within: std::time::Duration) -> bool {
    let said = fastrand::u64(1..).to_be_bytes();
    if from.write_all(&said).is_err() {
        return false;
    }
    hears(to, within).is_some_and(|heard| heard == said)
}

fn hears(to: &mut TcpStream, within: std::time::Duration) -> Option<[u8; 8]> {
    to.set_read_timeout(Some(within)).unwrap();
    let mut heard = [0; 8];
    to.read_exact(&mut heard).ok().map(|()| heard)
}

/// The first word is the client's or the server's; the other one answers.
#[track_caller]
fn alive(pairs: &mut [Pair], server_first: bool) {
    for Pair { name, client, server } in pairs {
        let (first, second) = if server_first { (server, client) } else { (client, server) };
        assert!(says(first, second, PATIENCE), "{name}, server first: {server_first}");
        assert!(says(second, first, PATIENCE), "{name}, the answer, server first: {server_first}");
    }
}

#[track_caller]
fn dead(pairs: &mut [Pair], server_first: bool) {
    for Pair { name, client, server } in pairs {
        let (first, second) = if server_first { (server, client) } else { (client, server) };
        assert!(!says(first, second, BRIEF), "{name}, server first: {server_first}");
    }
}

/// Connections on which both sides never stop to talk; on every other one the server speaks first.
struct Busy {
    turns: Vec<(String, Arc<AtomicU64>)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start(pairs: Vec<Pair>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut busy = Self { turns: Vec::new(), stop: stop.clone(), threads: Vec::new() };
        for (number, Pair { name, client, server }) in pairs.into_iter().enumerate() {
            let (mut first, mut second) = if number % 2 == 0 { (client, server) } else { (server, client) };
            let (turns, stop) = (Arc::new(AtomicU64::new(0)), stop.clone());
            busy.turns.push((name, turns.clone()));
            busy.threads.push(thread::spawn(move || {
                let heard = |stream: &mut TcpStream| {
                    stream.set_read_timeout(Some(BRIEF)).unwrap();
                    let mut byte = [0];
                    while !stop.load(Ordering::Relaxed) {
                        match stream.read(&mut byte) {
                            Ok(1) => return true,
                            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                            // It ended.
                            _ => return false,
                        }
                    }
                    false
                };
                while first.write_all(b"?").is_ok()
                    && heard(&mut second)
                    && second.write_all(b"!").is_ok()
                    && heard(&mut first)
                {
                    turns.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(std::time::Duration::from_millis(20));
                }
            }));
        }
        busy
    }

    fn counts(&self) -> Vec<u64> {
        self.turns.iter().map(|(_, turns)| turns.load(Ordering::Relaxed)).collect()
    }

    #[track_caller]
    fn go_on(&self) {
        let before = self.counts();
        for ((name, turns), before) in self.turns.iter().zip(before) {
            eventually(name, || turns.load(Ordering::Relaxed) > before + 1);
        }
    }

    #[track_caller]
    fn stand_still(&self) {
        // What was under way when the walls came up may still arrive.
        thread::sleep(BRIEF);
        let before = self.counts();
        thread::sleep(BRIEF);
        assert_eq!(self.counts(), before);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Calls the program in the network of a node; what it printed.
#[track_caller]
fn run(lab: &Lab, node: usize, words: &[&str]) -> String {
    let mut command = lab.topology.node(node).netns.command(bulkhead().unwrap());
    command.args(words).arg("--pins").arg(lab.pins(node)).arg("--state").arg(lab.state(node));
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn agents(lab: &Lab, arguments: &[&str]) -> [Agent; 2] {
    [0, 1].map(|node| Agent::start(lab, node, arguments).unwrap())
}

/// What `adopt` counted under a word, of all endpoints of a node.
#[track_caller]
fn count(text: &str, word: &str) -> usize {
    let of = |line: &str| line.split(&format!("{word} ")).nth(1)?.split(',').next()?.trim().parse::<usize>().ok();
    text.lines().map(|line| of(line).unwrap_or_else(|| panic!("no {word} in `{line}`"))).sum()
}

/// A hundred connections, allowed and denied, of callers and servers that speak first, idle and busy: through the first start, a restart, an
/// upgrade and the end.
#[test]
fn what_is_allowed_goes_on_and_what_is_not_is_cut() {
    if !skip::programs() {
        return;
    }
    let lab = lab();
    let listeners = listen(&lab);
    // Two servers and two families each.
    let idle = |caller| [false, true].map(|server_first| (server_first, connect(&lab, &listeners, caller, 4)));
    let (mut allowed, mut denied) = (idle("web"), idle("guest"));
    let busy = Busy::start(connect(&lab, &listeners, "web", 5));
    let blocked = Busy::start(connect(&lab, &listeners, "guest", 4));
    for (_, pairs) in allowed.iter_mut().chain(&mut denied) {
        alive(&mut pairs[..1], false);
    }
    busy.go_on();
    blocked.go_on();

    let mut running = agents(&lab, &[]);
    let said = [0, 1].map(|node| run(&lab, node, &["adopt"]));
    // Each endpoint has all of its connections: those that were busy may have been seen before.
    let known = |said: &str| count(said, "kept") + count(said, "known before");
    assert_eq!((known(&said[0]), known(&said[1])), (100 + 50, 50), "{said:?}");
    assert!(count(&said[1], "kept") >= 32, "{said:?}");
    blocked.stand_still();
    busy.go_on();
    for (server_first, pairs) in &mut allowed {
        alive(pairs, *server_first);
    }
    for (server_first, pairs) in &mut denied {
        dead(pairs, *server_first);
    }

    for upgrade in [false, true] {
        running.into_iter().for_each(|agent| agent.kill().unwrap());
        if upgrade {
            [0, 1].iter().for_each(|node| age_stubs(&lab, *node));
        }
        running = agents(&lab, &[]);
        let said = [0, 1].map(|node| run(&lab, node, &["adopt"]));
        assert!(said.iter().all(|said| count(said, "cut") == 0), "upgrade: {upgrade}, {said:?}");
        busy.go_on();
        for (server_first, pairs) in &mut allowed {
            alive(pairs, *server_first);
        }
    }

    running.into_iter().for_each(|agent| agent.kill().unwrap());
    for node in [0, 1] {
        run(&lab, node, &["detach", "--all"]);
    }
    busy.go_on();
    for (server_first, pairs) in &mut allowed {
        alive(pairs, *server_first);
    }
}

/// What the test above would not show: a server's word on a connection that was idle passes because of what `adopt` has put there, and not without.
#[test]
fn an_idle_servers_word_passes_by_what_was_kept_alone() {
    if !skip::programs() {
        return;
    }
    let lab = lab();
    let listeners = listen(&lab);
    let mut pairs = connect(&lab, &listeners, "web", 1);
    let _agents = agents(&lab, &[]);
    dead(&mut pairs, true);
    for node in [0, 1] {
        run(&lab, node, &["adopt"]);
    }
    // What was lost comes again.
    for Pair { name, client, .. } in &mut pairs {
        assert!(hears(client, PATIENCE).is_some(), "{name}");
    }
    alive(&mut pairs, true);
}

/// A server that is heard first where it may call looks as if it had begun: its word passes, and then the denied caller's as an answer. Its listening socket
/// says otherwise.
#[test]
fn a_server_that_was_heard_first_was_called_all_the_same() {
    if !skip::programs() {
        return;
    }
    let lab = lab_under(INGRESS);
    let listeners = listen(&lab);
    let mut allowed = connect(&lab, &listeners, "web", 1);
    let mut denied = connect(&lab, &listeners, "guest", 1);
    let _agents = agents(&lab, &[]);
    alive(&mut allowed, true);
    alive(&mut denied, true);
    let said = [0, 1].map(|node| run(&lab, node, &["adopt"]));
    // At both ends of each.
    assert_eq!([0, 1].map(|node| count(&said[node], "kept")), [12, 4], "{said:?}");
    dead(&mut denied, true);
    dead(&mut denied, false);
    alive(&mut allowed, true);
    let said = [0, 1].map(|node| run(&lab, node, &["adopt"]));
    assert_eq!([0, 1].map(|node| count(&said[node], "kept")), [0, 0], "{said:?}");
}

/// Where nothing is dropped, what policy is against goes on, and is reported.
#[test]
fn where_nothing_is_dropped_connections_go_on_and_are_reported() {
    if !skip::programs() {
        return;
    }
    let lab = lab();
    let listeners = listen(&lab);
    let mut pairs = [false, true].map(|server_first| (server_first, connect(&lab, &listeners, "guest", 1)));
    let _agents = agents(&lab, &["--observe"]);
    for node in [0, 1] {
        run(&lab, node, &["adopt"]);
    }
    for (server_first, pairs) in &mut pairs {
        alive(pairs, *server_first);
    }
    let addresses: [IpAddr; 2] = lab.topology.workload("db").addresses();
    for node in [0, 1] {
        let seen = run(&lab, node, &["observe", "--offline"]);
        let observed =
            |line: &&str| line.contains("guest") && line.contains("db") && line.to_lowercase().contains("observed");
        assert!(seen.lines().any(|line| observed(&line)), "node {node}, {addresses:?}:\n{seen}");
    }
}

/// All of them end, on both sides.
#[test]
fn cut_ends_all_of_them() {
    if !skip::programs() {
        return;
    }
    let lab = lab();
    let listeners = listen(&lab);
    let mut pairs = connect(&lab, &listeners, "web", 2);
    let _agents = agents(&lab, &[]);
    let said = run(&lab, 0, &["adopt", "--connections", "cut"]);
    // Those to the other node have one end here.
    assert_eq!((count(&said, "cut"), count(&said, "kept")), (12, 0), "{said}");
    for Pair { name, client, .. } in &mut pairs {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = match client.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        assert!(ended, "{name}");
    }
    // New ones are made as before.
    alive(&mut connect(&lab, &listeners, "web", 1), false);
}
