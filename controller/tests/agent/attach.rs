//! What CNI plugins ask of the agent, over a node in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    sync::{Arc, Mutex},
};

use bulkhead_controller::agent::{Agent, Settings};
use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Attached, Interface, Key, Request, VERSION},
    memory::MemoryNode,
    node::Node as _,
    store::{Prefixes4, Store as _},
};

use crate::support::{Home, INTENT, WORKLOADS, Wrapped};

fn key(container: &str) -> Key {
    Key { container: container.to_owned(), ifname: "eth0".to_owned() }
}

fn attached(container: &str, name: &str, link: &str, address: &str) -> Attached {
    let addresses = vec![address.parse().unwrap()];
    Attached {
        key: key(container),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: None,
        labels: BTreeMap::new(),
        interfaces: vec![Interface { name: "eth0".to_owned(), link: link.to_owned(), ifindex: 7, addresses }],
    }
}

fn request(ask: Ask) -> Request {
    Request { version: VERSION, network: "lab".to_owned(), waits: true, ask }
}

fn add(container: &str, name: &str, link: &str, address: &str) -> Request {
    request(Ask::Add(attached(container, name, link, address)))
}

/// Links that are guarded as the tables say, sorted.
fn guarded(agent: &mut Agent<MemoryNode>) -> Vec<String> {
    let endpoints = agent.node().status().unwrap().endpoints.into_iter();
    let mut links: Vec<_> = endpoints.map(|endpoint| endpoint.link).collect();
    links.sort();
    links
}

#[track_caller]
fn refused(answer: &Answer, why: &str) {
    let Answer::Refused { message, remedy } = answer else { panic!("it was done, not refused for {why}") };
    assert!(message.contains(why), "{message}");
    assert!(!remedy.is_empty());
}

/// A node whose file lists `cart-1` and leaves its endpoint to the runtime.
fn home() -> Home {
    let home = Home::new();
    home.write(
        "workloads.yaml",
        &format!("{WORKLOADS}  - {{ name: cart-1, namespace: shop, labels: {{ app: web }}, node: n1 }}\n"),
    );
    home
}

fn agent(home: &Home) -> Agent<MemoryNode> {
    let settings = Settings { cni: Some(home.path("state/cni.sock")), ..home.settings() };
    Agent::start(home.node().unwrap(), settings).unwrap()
}

#[test]
fn those_that_come_together_are_answered_each_for_itself() {
    let home = home();
    let mut agent = agent(&home);
    home.links.network().broken.insert("veth-bad".to_owned(), "it is no veth".to_owned());
    let answers = agent.attach(&[
        add("a", "cart-1", "veth-a", "10.0.0.7"),
        add("b", "stranger", "veth-b", "10.0.0.8"),
        // An address of somebody else, a link that cannot be guarded, another release.
        add("c", "thief", "veth-c", "10.0.0.1"),
        add("d", "unlucky", "veth-bad", "10.0.0.9"),
        Request { version: VERSION + 1, ..add("e", "new", "veth-e", "10.0.0.10") },
    ]);
    assert_eq!(answers[..2], [Answer::Done, Answer::Done]);
    refused(&answers[2], "belongs to shop/web-1 already");
    refused(&answers[3], "it is no veth");
    refused(&answers[4], "version");
    assert_eq!(guarded(&mut agent), ["veth-a", "veth-b", "veth-db", "veth-web"]);

    // Asked again it is the same; other interfaces under its key take its place.
    assert_eq!(agent.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7")]), [Answer::Done]);
    assert_eq!(agent.attach(&[add("a", "cart-1", "veth-a2", "10.0.0.7")]), [Answer::Done]);
    assert_eq!(guarded(&mut agent), ["veth-a2", "veth-b", "veth-db", "veth-web"]);
    let check = |container, link| request(Ask::Check(attached(container, "cart-1", link, "10.0.0.7")));
    let answers = agent.attach(&[check("a", "veth-a2"), check("a", "veth-a"), check("x", "veth-a")]);
    assert_eq!(answers[0], Answer::Done);
    refused(&answers[1], "not those that were attached");
    refused(&answers[2], "does not know");

    let gone = |container| request(Ask::Del { key: key(container) });
    assert_eq!(agent.attach(&[gone("a"), gone("a"), gone("nobody")]), [Answer::Done, Answer::Done, Answer::Done]);
    assert_eq!(
        agent.attach(&[request(Ask::Gc { valid: Vec::new() }), request(Ask::Status)]),
        [Answer::Done, Answer::Done]
    );
    assert_eq!(guarded(&mut agent), ["veth-db", "veth-web"]);
}

/// A node whose kernel refuses what ought to be in force says so to its runtime, as long as it is so.
#[test]
fn status_tells_that_publishing_fails() {
    let home = home();
    let mut agent = agent(&home);
    assert_eq!(agent.attach(&[request(Ask::Status)]), [Answer::Done]);
    home.store.memory().budget = Some(3);
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    agent.refresh();
    refused(&agent.attach(&[request(Ask::Status)])[0], "publishing fails");
    home.store.memory().budget = None;
    agent.refresh();
    assert_eq!(agent.attach(&[request(Ask::Status)]), [Answer::Done]);
}

/// A container starts when all of its interfaces are guarded, and they go together.
#[test]
fn a_container_may_have_several_interfaces() {
    let home = home();
    let mut agent = agent(&home);
    let several = |second: &str| {
        let mut attached = attached("a", "cart-1", "veth-a", "10.0.0.7");
        let addresses = vec!["10.1.0.7".parse().unwrap(), "fd01::7".parse().unwrap()];
        let name = "eth1".to_owned();
        attached.interfaces.push(Interface { name, link: second.to_owned(), ifindex: 8, addresses });
        attached
    };
    home.links.network().broken.insert("veth-bad".to_owned(), "it is no veth".to_owned());
    refused(&agent.attach(&[request(Ask::Add(several("veth-bad")))])[0], "it is no veth");
    // The runtime takes back what it could not add.
    assert_eq!(agent.attach(&[request(Ask::Del { key: key("a") })]), [Answer::Done]);
    assert_eq!(guarded(&mut agent), ["veth-db", "veth-web"]);
    assert_eq!(agent.attach(&[request(Ask::Add(several("veth-a2")))]), [Answer::Done]);
    assert_eq!(guarded(&mut agent), ["veth-a", "veth-a2", "veth-db", "veth-web"]);
    assert_eq!(agent.attach(&[request(Ask::Check(several("veth-a2")))]), [Answer::Done]);
    refused(&agent.attach(&[request(Ask::Check(attached("a", "cart-1", "veth-a", "10.0.0.7")))])[0], "not those that");
    assert_eq!(agent.attach(&[request(Ask::Del { key: key("a") })]), [Answer::Done]);
    assert_eq!(guarded(&mut agent), ["veth-db", "veth-web"]);
}

/// Only what does not run yet may be shut: neither who waits for nothing, nor who was refused, nor whoever is published later.
#[test]
fn only_those_who_wait_are_held() {
    let home = home();
    let node = Wrapped::new(&home);
    let shut = Arc::clone(&node.shut);
    let settings = Settings { cni: Some(home.path("state/cni.sock")), ..home.settings() };
    let mut agent = Agent::start(node, settings).unwrap();
    shut.lock().unwrap().clear();
    let answers = agent.attach(&[
        add("a", "cart-1", "veth-a", "10.0.0.7"),
        Request { waits: false, ..add("b", "stranger", "veth-b", "10.0.0.8") },
        // An address of somebody else.
        add("c", "thief", "veth-c", "10.0.0.1"),
    ]);
    assert_eq!(answers[..2], [Answer::Done, Answer::Done]);
    agent.attach(&[request(Ask::Del { key: key("b") })]);
    assert_eq!(*shut.lock().unwrap(), [BTreeSet::from(["veth-a".to_owned()]), BTreeSet::new()]);
}

/// Containers outlive agents, and what is gone by then is forgotten.
#[test]
fn the_next_agent_knows_who_runs() {
    let home = home();
    let mut first = agent(&home);
    assert_eq!(
        first.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7"), add("b", "other", "veth-b", "10.0.0.8")]),
        [Answer::Done, Answer::Done]
    );
    drop(first);
    home.links.network().gone.insert("veth-b".to_owned());
    let mut second = agent(&home);
    assert_eq!(guarded(&mut second), ["veth-a", "veth-db", "veth-web"]);
    home.links.network().gone.insert("veth-a".to_owned());
    second.refresh();
    assert_eq!(guarded(&mut second), ["veth-db", "veth-web"]);
}

/// A link that was renamed is the same one, while an agent runs and while none does.
#[test]
fn a_link_is_known_by_its_new_name() {
    let home = home();
    let mut first = agent(&home);
    assert_eq!(first.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7")]), [Answer::Done]);
    let rename = |from: &str, to: &str| home.links.network().renamed = [(from.to_owned(), to.to_owned())].into();
    rename("veth-a", "veth-b");
    first.refresh();
    assert_eq!(guarded(&mut first), ["veth-b", "veth-db", "veth-web"]);
    let check = |link| request(Ask::Check(attached("a", "cart-1", link, "10.0.0.7")));
    assert_eq!(first.attach(&[check("veth-b")]), [Answer::Done]);
    drop(first);
    rename("veth-b", "veth-c");
    let mut second = agent(&home);
    assert_eq!(guarded(&mut second), ["veth-c", "veth-db", "veth-web"]);
    assert_eq!(second.attach(&[check("veth-c")]), [Answer::Done]);
}

/// Whose containers nobody knows any more would lose their guards: no agent starts then, and what is pinned stays.
#[test]
fn an_agent_that_cannot_tell_who_runs_does_not_start() {
    let home = home();
    let mut first = agent(&home);
    assert_eq!(first.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7")]), [Answer::Done]);
    drop(first);
    home.write("state/attachments.json", "{");
    let settings = Settings { cni: Some(home.path("state/cni.sock")), ..home.settings() };
    let refused = Agent::start(home.node().unwrap(), settings).unwrap_err().to_string();
    assert!(refused.contains("attachments.json") && refused.contains("remove the file to start anew"), "{refused}");
    assert!(home.attached().contains(&"veth-a".to_owned()));
}

/// A file that contradicts what runs is not used: the container stays guarded as it was.
#[test]
fn a_file_that_contradicts_a_running_container_is_refused() {
    let home = home();
    let mut agent = agent(&home);
    assert_eq!(agent.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7")]), [Answer::Done]);
    let other = "  - { name: cart-1, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ addresses: [10.0.0.99] }] }\n";
    home.write("workloads.yaml", &format!("{WORKLOADS}{other}"));
    agent.refresh();
    assert!(agent.refused().contains("lists no endpoint with the addresses 10.0.0.7"), "{}", agent.refused());
    assert_eq!(guarded(&mut agent), ["veth-a", "veth-db", "veth-web"]);
    // Without it the file is good, and the addresses that it says are those that the next one must have.
    assert_eq!(agent.attach(&[request(Ask::Del { key: key("a") })]), [Answer::Done]);
    agent.refresh();
    assert_eq!(agent.refused(), "");
    refused(&agent.attach(&[add("a", "cart-1", "veth-a", "10.0.0.7")])[0], "lists no endpoint");
    assert_eq!(agent.attach(&[add("a", "cart-1", "veth-a", "10.0.0.99")]), [Answer::Done]);
}

/// Whatever is wrong with the files, who is gone has no address any more.
#[test]
fn an_address_of_one_who_is_gone_is_free_while_files_are_refused() {
    let home = home();
    let mut agent = agent(&home);
    assert_eq!(agent.attach(&[add("a", "one", "veth-a", "10.0.0.7")]), [Answer::Done]);
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:1] }"));
    home.links.network().gone.insert("veth-a".to_owned());
    agent.refresh();
    assert!(agent.refused().contains("PREFIXES4"), "{}", agent.refused());
    assert_eq!(guarded(&mut agent), ["veth-db", "veth-web"]);
    assert_eq!(agent.attach(&[add("b", "other", "veth-b", "10.0.0.7")]), [Answer::Done]);
    assert_eq!(guarded(&mut agent), ["veth-b", "veth-db", "veth-web"]);
}

/// What is logged.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whose link is gone is attached to nothing, and one that started shut is forgotten: it would be published again and again, in vain.
#[test]
fn whose_link_is_gone_is_not_attached() {
    let home = home();
    let node = Wrapped::new(&home);
    let publishes = Arc::clone(&node.shut);
    let settings = Settings { cni: Some(home.path("state/cni.sock")), ..home.settings() };
    let mut agent = Agent::start(node, settings).unwrap();
    publishes.lock().unwrap().clear();
    let gone = add("a", "cart-1", "veth-a", "10.0.0.7");
    home.links.network().gone.insert("veth-a".to_owned());
    fs::create_dir(home.path("state/shut")).unwrap();
    fs::write(home.path("state/shut/a,eth0.json"), serde_json::to_vec(&gone).unwrap()).unwrap();
    agent.refresh();
    assert_eq!(fs::read_dir(home.path("state/shut")).unwrap().count(), 0);
    refused(&agent.attach(&[gone])[0], "the links of container a are gone");
    assert_eq!(publishes.lock().unwrap().len(), 0);
    assert_eq!(agent.attach(&[add("b", "cart-1", "veth-b", "10.0.0.7")]), [Answer::Done]);
}

/// Of who starts shut and stays so the log says it once, as long as the reason is the same.
#[test]
fn who_stays_shut_is_told_once() {
    let home = home();
    let mut agent = agent(&home);
    let file = |name: &str| home.path(&format!("state/shut/{name}"));
    fs::create_dir(file("")).unwrap();
    let start = |request: &Request| fs::write(file("a,eth0.json"), serde_json::to_vec(request).unwrap()).unwrap();
    let said = Said::default();
    let writer = said.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let lines = |about: &str| {
        let text = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(about)).count()
    };
    tracing::subscriber::with_default(log, || {
        start(&add("a", "thief", "veth-a", "10.0.0.1"));
        (0..3).for_each(|_| agent.refresh());
        assert_eq!(lines("a container stays shut"), 1);
        home.links.network().broken.insert("veth-a".to_owned(), "it is no veth".to_owned());
        start(&add("a", "cart-1", "veth-a", "10.0.0.7"));
        (0..3).for_each(|_| agent.refresh());
        assert_eq!(lines("a container stays shut"), 2);
        home.links.network().broken.clear();
        (0..3).for_each(|_| agent.refresh());
        assert_eq!(lines("it started shut, and is guarded by its policy now"), 1);
        assert_eq!(fs::read_dir(file("")).unwrap().count(), 0);

        // What cannot be read is kept for people to look at.
        fs::write(file("b,eth0.json"), "{").unwrap();
        (0..3).for_each(|_| agent.refresh());
        assert_eq!(lines("b,eth0.json: EOF"), 1);
        assert_eq!(fs::read_to_string(file("b,eth0.unreadable")).unwrap(), "{");
    });
    assert_eq!(guarded(&mut agent), ["veth-a", "veth-db", "veth-web"]);
}
