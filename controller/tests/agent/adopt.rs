//! Containers that nobody told of, found by an agent on a node in memory.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_controller::{
    adopt::{Scope, arriving::Arriving},
    agent::{Agent, Settings},
};
use bulkhead_dataplane::{
    cni::protocol::{Answer, Ask, Attached, Interface, Key, Request, VERSION},
    desired::Manner,
    memory::MemoryNode,
    node::{ContainerLink, Containers},
};

use crate::{
    home::{Home, WORKLOADS, eventually},
    support::{Wrapped, keep_result, report},
};

fn home() -> Home {
    let home = Home::new();
    let listed = "  - { name: cart-1, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ addresses: [10.0.0.7] }] }\n";
    home.write("workloads.yaml", &format!("{WORKLOADS}{listed}"));
    fs::create_dir_all(home.path("cache/results")).unwrap();
    home
}

fn agent(home: &Home, observe: bool) -> Agent<MemoryNode> {
    agent_of(home, observe, &["br0"])
}

/// An agent that is to keep bridges.
fn agent_of(home: &Home, observe: bool, bridges: &[&str]) -> Agent<MemoryNode> {
    let bridges = bridges.iter().map(|bridge| (*bridge).to_owned()).collect();
    agent_with(home, observe, Scope { bridges, ..Scope::default() })
}

fn agent_with(home: &Home, observe: bool, scope: Scope) -> Agent<MemoryNode> {
    let scope = Scope { cache: Some(home.path("cache")), ..scope };
    let settings = Settings {
        cni: Some(home.path("state/cni.sock")),
        manner: Manner { observe, direct: false },
        scope,
        ..home.settings()
    };
    Agent::start(home.node().unwrap(), settings).unwrap()
}

/// A link on the bridge that is to be kept.
fn link(name: &str, index: u32, address: &str) -> ContainerLink {
    ContainerLink {
        link: name.to_owned(),
        index,
        bridge: Some("br0".to_owned()),
        inside: "eth0".to_owned(),
        addresses: vec![address.parse().unwrap()],
        ..ContainerLink::default()
    }
}

fn set(home: &Home, links: &[ContainerLink]) {
    let names = links.iter().map(|link| link.link.clone()).chain(["br0".to_owned()]).collect();
    home.links.network().containers = Containers { links: links.to_vec(), names };
}

/// A runtime's result.
fn result(home: &Home, container: &str, link: &str, address: &str) {
    keep_result(home, "net", (container, container, container), link, address);
}

/// What a runtime tells of a container.
fn add(container: &str, link: &str, index: u32, address: &str) -> Request {
    let interface = Interface {
        name: "eth0".to_owned(),
        link: link.to_owned(),
        ifindex: index,
        addresses: vec![address.parse().unwrap()],
    };
    let attached = Attached {
        key: Key { container: container.to_owned(), ifname: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        name: container.to_owned(),
        uid: None,
        labels: [].into(),
        interfaces: vec![interface],
    };
    Request { version: VERSION, network: "net".to_owned(), waits: true, ask: Ask::Add(attached) }
}

fn is_shut(home: &Home, name: &str) -> bool {
    home.links.network().containers.links.iter().any(|link| link.link == name && link.shut)
}

fn guarded(home: &Home) -> Vec<String> {
    home.attached()
}

#[test]
fn who_ran_before_is_adopted_and_who_comes_later_is_counted() {
    let home = home();
    result(&home, "early", "veth-e", "10.0.0.8");
    let mut links = vec![link("veth-e", 1, "10.0.0.8"), link("veth-c", 2, "10.0.0.7")];
    set(&home, &links);
    let mut agent = agent(&home, false);
    assert_eq!(guarded(&home), ["veth-c", "veth-db", "veth-e", "veth-web"]);
    let found = report(&mut agent).found;
    assert_eq!((found.adopted, found.unenforced, found.strangers), (2, 0, vec![]));
    assert_eq!(agent.until_ripe(), None);

    // Not at once: its ADD may be under way. On a bridge that is to be kept it is shut until then.
    let elsewhere = ContainerLink { bridge: Some("br1".to_owned()), ..link("veth-o", 4, "203.0.113.1") };
    links.extend([link("veth-l", 3, "10.0.0.9"), elsewhere]);
    result(&home, "late", "veth-l", "10.0.0.9");
    set(&home, &links);
    agent.adopt();
    assert!(!guarded(&home).contains(&"veth-l".to_owned()));
    assert_eq!(["veth-l", "veth-o", "veth-e"].map(|name| is_shut(&home, name)), [true, false, false]);
    assert!(agent.until_ripe().is_some_and(|left| left <= Duration::from_secs(1)));
    eventually("it is guarded", || {
        agent.adopt();
        guarded(&home).contains(&"veth-l".to_owned())
    });
    agent.adopt();
    let found = report(&mut agent).found;
    assert_eq!((found.adopted, found.unenforced, found.strangers), (2, 1, vec![]));
    assert_eq!((agent.health().unenforced, agent.health().strangers), (1, 0));
    let audit = fs::read_to_string(home.path("state/audit.jsonl")).unwrap();
    assert_eq!(audit.matches("enforcement.unenforced_start").count(), 1, "{audit}");

    // The runtime's DEL is about it as about any other.
    let key = Key { container: "late".to_owned(), ifname: "eth0".to_owned() };
    let gone = Request { version: VERSION, network: "net".to_owned(), waits: false, ask: Ask::Del { key } };
    assert_eq!(agent.attach(&[gone]), [Answer::Done]);
    assert_eq!(guarded(&home), ["veth-c", "veth-db", "veth-e", "veth-web"]);
}

/// Where nothing is dropped a new link is not shut either, nor is one whose ADD waits: that comes with the tables.
#[test]
fn who_is_new_is_shut_only_where_that_is_wanted() {
    let home = home();
    set(&home, &[]);
    let mut observing = agent(&home, true);
    set(&home, &[link("veth-n", 3, "10.0.0.9")]);
    observing.adopt();
    assert!(!is_shut(&home, "veth-n"));
    drop(observing);
    set(&home, &[]);
    let arriving = Arriving::default();
    let scope = Scope { bridges: ["br0".to_owned()].into(), arriving: arriving.clone(), ..Scope::default() };
    let mut agent = agent_with(&home, false, scope);
    set(&home, &[link("veth-n", 3, "10.0.0.9"), link("veth-l", 4, "10.0.0.11")]);
    let told = add("new", "veth-n", 3, "10.0.0.9");
    let Ask::Add(attached) = &told.ask else { unreachable!("it is an ADD") };
    let arrival = arriving.begin(attached);
    agent.adopt();
    assert_eq!(["veth-n", "veth-l"].map(|name| is_shut(&home, name)), [false, true]);
    drop(arrival);
    assert_eq!(agent.attach(&[told]), [Answer::Done]);
    assert_eq!(guarded(&home), ["veth-db", "veth-n", "veth-web"]);
}

/// The agent may wait long until it knows who that is.
#[test]
fn whose_add_waits_has_not_started() {
    let home = home();
    let known = link("veth-c", 2, "10.0.0.7");
    set(&home, std::slice::from_ref(&known));
    let arriving = Arriving::default();
    let mut agent = agent_with(&home, false, Scope { arriving: arriving.clone(), ..Scope::default() });
    let interface = |name: &str, ifindex| Interface {
        name: "eth0".to_owned(),
        link: name.to_owned(),
        ifindex,
        addresses: Vec::new(),
    };
    let attached = Attached {
        key: Key { container: "new".to_owned(), ifname: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        name: "new".to_owned(),
        uid: None,
        labels: std::collections::BTreeMap::new(),
        interfaces: vec![interface("veth-n", 3)],
    };
    // It is asked for twice, and one of the two is given up.
    let (first, second) = (arriving.begin(&attached), arriving.begin(&attached));
    drop(first);
    // The other one came at the same time, and nobody waits for it.
    set(&home, &[known, link("veth-n", 3, "10.0.0.10"), link("veth-o", 4, "10.0.0.11")]);
    let strangers = |agent: &mut Agent<MemoryNode>| -> Vec<String> {
        report(agent).found.strangers.into_iter().map(|stranger| stranger.link).collect()
    };
    eventually("the other one is counted", || {
        agent.adopt();
        agent.health().unenforced == 1
    });
    assert_eq!(strangers(&mut agent), ["veth-o"]);
    drop(second);
    eventually("nobody waits any more", || {
        agent.adopt();
        agent.health().unenforced == 2
    });
    assert_eq!(strangers(&mut agent), ["veth-n", "veth-o"]);
}

/// The plugins of a busy node may not be done yet.
#[test]
fn who_is_nobody_is_said_before_it_is_counted() {
    let home = home();
    let known = link("veth-c", 2, "10.0.0.7");
    set(&home, std::slice::from_ref(&known));
    // What is on a bridge that is kept would be shut.
    let mut agent = agent_of(&home, false, &[]);
    let came = Instant::now();
    set(&home, &[known, link("veth-n", 3, "10.0.0.10")]);
    eventually("nobody knows it", || {
        agent.adopt();
        agent.health().strangers == 1
    });
    // A machine may stop in between.
    if came.elapsed() < Duration::from_secs(4) {
        assert_eq!(agent.health().unenforced, 0);
    }
    eventually("it is counted", || {
        agent.adopt();
        agent.health().unenforced == 1
    });
}

/// A container whose ADD tells of it in time is no unguarded one.
#[test]
fn who_is_told_of_in_time_is_not_counted() {
    let home = home();
    let mut agent = agent(&home, false);
    set(&home, &[link("veth-t", 3, "10.0.0.9")]);
    agent.adopt();
    assert_eq!(agent.attach(&[add("told", "veth-t", 3, "10.0.0.9")]), [Answer::Done]);
    agent.adopt();
    assert_eq!(agent.until_ripe(), None, "there is nothing to wait for");
    assert_eq!(agent.health().unenforced, 0);
}

/// Whose guard stands is not let go when it cannot be put up anew: its link is shut until it can, unless nothing is to be dropped.
#[test]
fn who_cannot_be_guarded_any_more_is_shut_in_place_of_the_guard() {
    let home = home();
    set(&home, &[link("veth-web", 1, "10.0.0.1"), link("veth-db", 2, "10.0.0.2")]);
    let break_ = |link: &str| _ = home.links.network().broken.insert(link.to_owned(), "it cannot be read".to_owned());
    let shut = || ["veth-web", "veth-db"].map(|name| is_shut(&home, name));
    // Who never had a guard is not cut.
    break_("veth-web");
    let first = agent(&home, false);
    assert_eq!((guarded(&home), shut()), (vec!["veth-db".to_owned()], [false, false]));
    assert_eq!(first.unguarded()[0].why, "it cannot be read");
    drop(first);

    break_("veth-db");
    let mut second = agent(&home, false);
    assert_eq!((guarded(&home), shut()), (vec![], [false, true]));
    let why = |agent: &Agent<MemoryNode>, link: &str| {
        agent.unguarded().iter().find(|unguarded| unguarded.link == link).map(|unguarded| unguarded.why.clone())
    };
    assert_eq!(why(&second, "veth-web").as_deref(), Some("it cannot be read"));
    let told = "nothing passes its link meanwhile: it cannot be read";
    assert_eq!(why(&second, "veth-db").as_deref(), Some(told));
    assert_eq!((second.health().unguarded, second.health().strangers), (2, 0));
    second.refresh();
    assert_eq!((shut(), why(&second, "veth-db").as_deref()), ([false, true], Some(told)));
    drop(second);

    // It is opened where nothing is dropped, and shut no more by the publish that guards it.
    let third = agent(&home, true);
    assert_eq!((shut(), why(&third, "veth-db").as_deref()), ([false, false], Some("it cannot be read")));
    drop(third);
    home.links.network().broken.clear();
    let mut fourth = agent(&home, false);
    assert_eq!((fourth.unguarded(), shut()), (&[][..], [false, false]));
    // While an agent runs it is the same: here the network changed.
    break_("veth-db");
    home.links.network().discovered.addresses.push("192.0.2.7".parse().unwrap());
    fourth.refresh();
    assert_eq!((shut(), why(&fourth, "veth-db").as_deref()), ([false, true], Some(told)));
    home.links.network().broken.clear();
    fourth.refresh();
    assert_eq!((guarded(&home), shut()), (vec!["veth-db".to_owned(), "veth-web".to_owned()], [false, false]));
}

#[test]
fn who_is_nobody_is_shut_and_opened_where_nothing_is_dropped() {
    let home = home();
    let elsewhere = ContainerLink { bridge: None, ..link("veth-f", 5, "203.0.113.1") };
    set(&home, &[link("veth-n", 4, "10.0.0.10"), elsewhere]);
    let shut = |name: &str| is_shut(&home, name);
    let mut first = agent(&home, false);
    eventually("it is shut", || {
        first.adopt();
        shut("veth-n")
    });
    assert!(!shut("veth-f"), "that one is none of ours");
    let told = report(&mut first);
    let [stranger] = &told.found.strangers[..] else { panic!("{:?}", told.found) };
    assert_eq!((stranger.link.as_str(), stranger.shut), ("veth-n", true));
    assert!(stranger.why.contains("no workload of the file"), "{}", stranger.why);
    drop(first);
    let mut second = agent(&home, true);
    eventually("it is open", || {
        second.adopt();
        !shut("veth-n")
    });
    assert_eq!(second.health().strangers, 1);
    drop(second);
    // Somebody knows it at last.
    let mut third = agent(&home, false);
    result(&home, "nobody", "veth-n", "10.0.0.10");
    eventually("it is guarded", || {
        third.adopt();
        guarded(&home).contains(&"veth-n".to_owned())
    });
    assert_eq!(third.health().strangers, 0);
}

/// Whoever gives itself the address of a container does not get its place.
#[test]
fn nobody_takes_the_place_of_another() {
    let home = home();
    result(&home, "victim", "veth-v", "10.0.0.8");
    let victim = link("veth-v", 1, "10.0.0.8");
    set(&home, std::slice::from_ref(&victim));
    let mut agent = agent(&home, false);
    assert!(guarded(&home).contains(&"veth-v".to_owned()));
    // With a result that names no link at all, too.
    let text = fs::read_to_string(home.path("cache/results/net-victim-eth0")).unwrap();
    let without = text.replace(r#"{"name":"veth-v"},"#, "").replace(r#""interface":1"#, r#""interface":0"#);
    for written in [text, without] {
        fs::write(home.path("cache/results/net-victim-eth0"), written).unwrap();
        set(&home, &[victim.clone(), link("veth-a", 2, "10.0.0.8")]);
        eventually("it is a stranger", || {
            agent.adopt();
            agent.health().strangers == 1
        });
        assert!(guarded(&home).contains(&"veth-v".to_owned()) && !guarded(&home).contains(&"veth-a".to_owned()));
    }
}

/// The plugin is the first of a chain to be told that a container goes: its link is there for a while, and the runtime's result too.
#[test]
fn who_goes_has_not_started_without_a_guard() {
    let home = home();
    result(&home, "early", "veth-e", "10.0.0.8");
    set(&home, &[link("veth-e", 1, "10.0.0.8")]);
    let mut agent = agent(&home, false);
    assert!(guarded(&home).contains(&"veth-e".to_owned()));
    let del = Ask::Del { key: Key { container: "early".to_owned(), ifname: "eth0".to_owned() } };
    let request = Request { version: VERSION, network: "net".to_owned(), waits: false, ask: del };
    assert_eq!(agent.attach(&[request]), [Answer::Done]);
    agent.adopt();
    eventually("its link has been there for long", || agent.until_ripe().is_none());
    agent.adopt();
    assert!(!guarded(&home).contains(&"veth-e".to_owned()), "nobody guards it again");
    let found = report(&mut agent).found;
    assert_eq!(found.unenforced, 0);
    let [stranger] = &found.strangers[..] else { panic!("{:?}", found.strangers) };
    assert!(stranger.shut && stranger.why.contains("it goes"), "a bridge that is to be kept is: {stranger:?}");
}

/// Guarded containers of each kind, and the file that tells of them is lost with the agent.
fn lost() -> Home {
    let home = home();
    result(&home, "cached", "veth-e", "10.0.0.8");
    let links = [
        link("veth-db", 1, "10.0.0.2"),
        link("veth-c", 2, "10.0.0.7"),
        link("veth-e", 3, "10.0.0.8"),
        link("veth-n", 4, "10.0.0.9"),
        link("veth-m", 5, "10.0.0.10"),
    ];
    set(&home, &links);
    let mut agent = agent_of(&home, false, &[]);
    let told = [add("nobody", "veth-n", 4, "10.0.0.9"), add("moved", "veth-m", 5, "10.0.0.10")];
    assert_eq!(agent.attach(&told), [Answer::Done, Answer::Done]);
    assert_eq!(guarded(&home), ["veth-c", "veth-db", "veth-e", "veth-m", "veth-n", "veth-web"]);
    drop(agent);
    fs::remove_file(home.path("state/attachments.json")).unwrap();
    // Meanwhile somebody took a workload out of the file, and another one is elsewhere by now, whatever the runtime's result says.
    let text = fs::read_to_string(home.path("workloads.yaml")).unwrap();
    let without: String =
        text.lines().filter(|line| !line.contains("veth-db")).map(|line| format!("{line}\n")).collect();
    let listed = without.replace("nodes: [", "nodes: [{ name: n2, addresses: [192.0.2.2] }, ");
    home.write("workloads.yaml", &format!("{listed}  - {{ name: moved, namespace: shop, node: n2 }}\n"));
    result(&home, "moved", "veth-m", "10.0.0.10");
    home
}

#[test]
fn who_had_a_guard_keeps_it_or_is_shut() {
    let home = lost();
    let node = Wrapped::new(&home);
    let publishes = Arc::clone(&node.shut);
    let scope = Scope { cache: Some(home.path("cache")), ..Scope::default() };
    let settings = Settings { cni: Some(home.path("state/cni.sock")), scope, ..home.settings() };
    let mut agent = Agent::start(node, settings).unwrap();
    assert_eq!(publishes.lock().unwrap().len(), 1, "the first publish has them");
    assert_eq!(guarded(&home), ["veth-c", "veth-e", "veth-web"]);
    let shut = |name| is_shut(&home, name);
    assert_eq!(["veth-db", "veth-m", "veth-n"].map(shut), [false, true, true], "the file took out the first");
    assert_eq!(report(&mut agent).found.adopted, 2);
    eventually("they are told of", || {
        agent.adopt();
        agent.health().strangers >= 2
    });
    let found = report(&mut agent).found;
    let why = |name: &str| {
        let stranger = found.strangers.iter().find(|stranger| stranger.link == name && stranger.shut);
        stranger.map(|stranger| stranger.why.as_str()).unwrap_or_default()
    };
    assert!(why("veth-m").contains("the file says that it runs on node `n2`"), "{found:?}");
    assert!(why("veth-n").contains("no workload of the file"), "{found:?}");
    assert_eq!(found.unenforced, 0);

    // What is taken out of the file while the agent runs is let go, as ever.
    let text = fs::read_to_string(home.path("workloads.yaml")).unwrap();
    let without = text.lines().filter(|line| !line.contains("veth-web")).map(|line| format!("{line}\n"));
    home.write("workloads.yaml", &without.collect::<String>());
    agent.refresh();
    assert_eq!(guarded(&home), ["veth-c", "veth-e"]);
    // They stay shut until somebody knows them.
    drop(agent);
    let mut agent = agent_of(&home, false, &[]);
    assert!(shut("veth-m") && shut("veth-n"));
    assert_eq!(agent.attach(&[add("nobody", "veth-n", 4, "10.0.0.9")]), [Answer::Done]);
    assert_eq!(guarded(&home), ["veth-c", "veth-e", "veth-n"]);
}

#[test]
fn nothing_is_shut_where_nothing_is_dropped() {
    let home = lost();
    let _agent = agent_of(&home, true, &[]);
    assert_eq!(guarded(&home), ["veth-c", "veth-e", "veth-web"]);
    assert!(["veth-db", "veth-m", "veth-n"].into_iter().all(|name| !is_shut(&home, name)));
}
