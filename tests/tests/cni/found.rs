//! Containers whose start nobody told of: a chain without our plugin, or one that was through before there was an agent.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bulkhead_tests::{
    Agent, Lab, bulkhead,
    chain::{Chain, Container},
};
use bulkhead_topology::{
    Netns,
    traffic::{Capture, Frame, Outcome, TcpEcho},
};

use crate::{
    plugins,
    support::{BRIEF, PATIENCE, age_stubs, calls, db, eventually, lab, none, pinned},
};

fn started(agent: &Agent) -> f64 {
    agent.metric("bulkhead_unenforced_starts_total", &[]).unwrap()
}

fn unknown(agent: &Agent) -> f64 {
    agent.metric("bulkhead_links_unknown", &[]).unwrap()
}

/// What `bulkhead status` says of an agent.
fn status(lab: &Lab, node: usize) -> String {
    let mut command = Command::new(bulkhead().unwrap());
    let output = command.arg("status").arg("--socket").arg(lab.socket(node)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn guards(lab: &Lab, link: &str) -> bool {
    pinned(lab, 0).iter().filter(|pin| pin.starts_with(link)).count() == 2
}

/// It is found by the result that its runtime keeps, counted once, guarded like any other, and goes like any other.
#[test]
fn a_start_without_the_plugin_is_found() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1"]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to = lab.topology.workload("db").v4.into();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let before = pinned(&lab, 0);
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let ours = chain.without_ours();
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    chain.keep_result(&web, &lab.cni_cache(0));
    eventually("it is counted", || started(&agent) == 1.0);
    eventually("it is guarded", || guards(&lab, &web.link()));
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
    calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
    // One whose chain has ours is none, and nothing is counted twice.
    chain.plugins.push(ours);
    let mut other = Container::new("other");
    chain.add(&mut other).unwrap();
    let mut late = Container::new("late");
    let ours = chain.without_ours();
    chain.add(&mut late).unwrap();
    chain.keep_result(&late, &lab.cni_cache(0));
    chain.plugins.push(ours);
    eventually("a second one is counted", || started(&agent) >= 2.0);
    assert_eq!(started(&agent), 2.0, "{}", agent.log());
    let said = status(&lab, 0);
    assert!(said.contains("2 started without a guard"), "{said}");
    let log = agent.log();
    assert!(log.contains("a container started without a guard") && log.contains("shop/web-1"), "{log}");

    assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "");
    for container in [&web, &other, &late] {
        chain.del(container);
    }
    assert_eq!(pinned(&lab, 0), before);
    assert_eq!(unknown(&agent), 0.0);
}

/// Who ran before the agent is adopted, by a runtime's result or by the addresses of the file. Who is nobody is shut on a bridge that is to be kept.
#[test]
fn what_ran_before_the_agent_is_adopted_or_shut() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1"]);
    let first = lab.topology.node(0).overlays().map(|overlay| match overlay.prefix.network() {
        IpAddr::V4(base) => IpAddr::from((u32::from(base) + 100).to_be_bytes()),
        IpAddr::V6(base) => IpAddr::from((u128::from(base) + 0x64).to_be_bytes()),
    });
    lab.contained.insert("guest-1".to_owned(), (0, first.to_vec()));
    lab.write_workloads().unwrap();
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to = lab.topology.workload("db").v4.into();
    let gateway = lab.topology.node(0).overlay4.gateway;
    let _node = TcpEcho::start(&lab.topology.node(0).netns, (gateway, 9999).into()).unwrap();
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let ours = chain.without_ours();
    let [mut guest, mut web, mut stranger] = ["guest-1", "web-1", "stranger"].map(Container::new);
    chain.add(&mut guest).unwrap();
    chain.add(&mut web).unwrap();
    chain.add(&mut stranger).unwrap();
    assert_eq!(guest.addresses(), first);
    chain.keep_result(&web, &lab.cni_cache(0));
    let bridge = lab.topology.node(0).bridge.name.clone();
    calls(&stranger.netns, gateway, 9999, PATIENCE, Outcome::Answered);

    // When it is ready it has adopted those whom somebody knows.
    let agent = Agent::start(&lab, 0, &["--bridge", &bridge]).unwrap();
    assert!(guards(&lab, &web.link()) && guards(&lab, &guest.link()), "{}", agent.log());
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
    calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
    calls(&guest.netns, to, 8080, BRIEF, Outcome::TimedOut);
    eventually("the stranger is shut", || unknown(&agent) == 1.0);
    calls(&stranger.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    assert_eq!(started(&agent), 0.0, "they ran before");
    let said = status(&lab, 0);
    assert!(said.contains("2 containers that ran before the agent were adopted, 0 started"), "{said}");
    assert!(said.contains(&format!("TROUBLE   link {} is shut, and nobody is known", stranger.link())), "{said}");

    // It stays shut without that option, and is open where nothing is dropped.
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    eventually("the stranger is known as one", || unknown(&agent) == 1.0);
    calls(&stranger.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &["--observe", "--bridge", &bridge]).unwrap();
    calls(&stranger.netns, gateway, 9999, PATIENCE, Outcome::Answered);
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &["--bridge", &bridge]).unwrap();
    // Nothing is dropped either way, so that its link may still be shut from before: that it is looked at is what is waited for.
    eventually("the stranger is shut again", || unknown(&agent) == 1.0 && guards(&lab, &stranger.link()));

    // Once somebody knows it, it is a workload like others: this one may call nobody, and is called by nobody.
    chain.keep_result(&stranger, &lab.cni_cache(0));
    eventually("the stranger is known", || unknown(&agent) == 0.0);
    // What comes is shut until its ADD, which may be slow, has put up the guard in place of that.
    let mut late = Container::new("late");
    chain.add(&mut late).unwrap();
    eventually("it is shut when it comes", || guards(&lab, &late.link()));
    calls(&late.netns, to, 8080, BRIEF, Outcome::TimedOut);
    chain.plugins.push(ours);
    chain.ask("ADD", &late, none()).unwrap();
    assert_eq!(chain.ask("CHECK", &late, none()).unwrap(), "");
    // No policy is about it.
    calls(&late.netns, to, 8080, PATIENCE, Outcome::Answered);
    chain.del(&late);
    assert_eq!(chain.ask("CHECK", &stranger, none()).unwrap(), "");
    for container in [&web, &guest, &stranger] {
        chain.del(container);
    }
    let links = [web.link(), guest.link(), stranger.link()];
    eventually("nothing is left", || !pinned(&lab, 0).iter().any(|pin| links.iter().any(|link| pin.starts_with(link))));
}

/// What the witness of [`Sender`]s knows their datagrams by.
const MARK: &[u8] = b"bulkhead kept wall";

/// Sends a marked datagram each millisecond, as long as it lives.
struct Sender {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    fn start(netns: &Netns, to: Ipv4Addr) -> Self {
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, stopped, netns) = (Arc::clone(&sent), Arc::clone(&stop), netns.clone());
        let send = move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            while !stopped.load(Relaxed) {
                if socket.send_to(MARK, (to, 7777)).is_ok() {
                    counter.fetch_add(1, Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        };
        Self { sent, stop, thread: Some(thread::spawn(move || netns.run(send))) }
    }

    /// Waits until it has sent some more.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.sent.load(Relaxed);
        eventually("it sends", || self.sent.load(Relaxed) > before + 100);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // One that could not send has said so.
        self.thread.take().map(JoinHandle::join);
    }
}

/// A link that somebody renames is the same one: its container is never without a guard, whether an agent runs or not, and then has its own again.
#[test]
fn no_wall_falls_when_a_link_is_renamed() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1", "guest-1"]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let db = lab.topology.workload("db").v4;
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let before = pinned(&lab, 0);
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let [mut web, mut guest] = ["web-1", "guest-1"].map(Container::new);
    chain.add(&mut web).unwrap();
    chain.add(&mut guest).unwrap();
    let node = lab.topology.node(0);
    let mark = |frame: &Frame| frame.bytes.windows(MARK.len()).any(|bytes| bytes == MARK);
    let witness = Capture::count(&node.netns, &node.bridge.name, mark).unwrap();
    let sender = Sender::start(&guest.netns, db);
    sender.goes_on();

    let rename = |from: [&str; 2], to: [&str; 2]| {
        from.iter().zip(to).for_each(|(from, to)| node.netns.rename_link(from, to).unwrap());
    };
    let holds = |agent: &Agent, names: [&str; 2]| {
        eventually("they are guarded by their new names", || names.iter().all(|name| guards(&lab, name)));
        eventually("all is as it was", || chain.ask("CHECK", &web, none()).is_ok());
        sender.goes_on();
        assert_eq!(witness.counts().frames, 0, "{names:?}: {}", agent.log());
        calls(&web.netns, db.into(), 8080, PATIENCE, Outcome::Answered);
        calls(&web.netns, db.into(), 9999, BRIEF, Outcome::TimedOut);
        assert_eq!((unknown(agent), started(agent)), (0.0, 0.0), "{}", agent.log());
    };
    let (first, second) = (["first0", "first1"], ["second0", "second1"]);
    rename([&web.link(), &guest.link()], first);
    holds(&agent, first);
    agent.kill().unwrap();
    rename(first, second);
    agent = Agent::start(&lab, 0, &[]).unwrap();
    holds(&agent, second);
    drop(sender);
    // The witness does see what passes.
    let passing = Sender::start(&web.netns, db);
    assert!(witness.wait_for(10, PATIENCE));
    drop(passing);
    chain.del(&web);
    chain.del(&guest);
    assert_eq!(pinned(&lab, 0), before);
}

/// An agent that starts without what the one before was told opens nothing, not for a moment: whom a runtime's result explains keeps its guard, and whoever is
/// nobody is shut until somebody knows it. So does one of another version.
#[test]
fn no_wall_falls_when_what_runtimes_told_is_lost() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1", "guest-1", "guest-2"]);
    let _server = db(&lab, 8080);
    let db = lab.topology.workload("db").v4;
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let [mut web, mut known, mut lost] = ["web-1", "guest-1", "guest-2"].map(Container::new);
    for container in [&mut web, &mut known, &mut lost] {
        chain.add(container).unwrap();
    }
    chain.keep_result(&web, &lab.cni_cache(0));
    chain.keep_result(&known, &lab.cni_cache(0));
    let node = lab.topology.node(0);
    let mark = |frame: &Frame| frame.bytes.windows(MARK.len()).any(|bytes| bytes == MARK);
    let witness = Capture::count(&node.netns, &node.bridge.name, mark).unwrap();
    let senders = [&known, &lost].map(|container| Sender::start(&container.netns, db));
    senders.iter().for_each(Sender::goes_on);
    assert_eq!(witness.counts().frames, 0, "they may call nobody");

    for upgrade in [false, true] {
        agent.kill().unwrap();
        fs::remove_file(lab.cni_socket(0).with_file_name("attachments.json")).unwrap();
        if upgrade {
            age_stubs(&lab, 0);
        }
        agent = Agent::start(&lab, 0, &[]).unwrap();
        assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "", "it is guarded when the agent is ready");
        eventually("one is nobody", || unknown(&agent) == 1.0);
        senders.iter().for_each(Sender::goes_on);
        assert_eq!(witness.counts().frames, 0, "upgrade: {upgrade}; {}", agent.log());
        let said = status(&lab, 0);
        assert!(said.contains(&format!("TROUBLE   link {} is shut, and nobody is known", lost.link())), "{said}");
        // Whom the last agent had shut is no container that had a guard.
        assert!(said.contains("2 containers that ran before the agent were adopted, 0 started"), "{said}");
        calls(&web.netns, db.into(), 8080, PATIENCE, Outcome::Answered);
        calls(&web.netns, db.into(), 9999, BRIEF, Outcome::TimedOut);
    }

    // Who starts meanwhile opens it no more.
    let mut other = Container::new("other");
    chain.add(&mut other).unwrap();
    senders.iter().for_each(Sender::goes_on);
    assert_eq!(witness.counts().frames, 0);
    // Once somebody knows it, it is guarded like the others.
    chain.keep_result(&lost, &lab.cni_cache(0));
    eventually("it is known", || unknown(&agent) == 0.0);
    assert_eq!(chain.ask("CHECK", &lost, none()).unwrap(), "");
    senders.iter().for_each(Sender::goes_on);
    assert_eq!(witness.counts().frames, 0);
    // The witness does see what passes.
    let passing = Sender::start(&web.netns, db);
    assert!(witness.wait_for(10, PATIENCE));
    drop((passing, senders));
    for container in [&web, &known, &lost, &other] {
        chain.del(container);
    }
}
