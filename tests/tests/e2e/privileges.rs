//! The agent has what it needs and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
};

use bulkhead_controller::client::Client;
use bulkhead_dataplane::{
    kernel::{KernelNode, Options, detach},
    node::{Node as _, NodeError},
    pins::{Kind, Pins},
    rights::{NEEDED, Right},
    sys,
};
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};
use caps::{CapSet, Capability, CapsHashSet};

use crate::{
    bypass::wait,
    policy::{SHOP, shop},
    probe::{Ask, Servers, allowed, command_line, denied},
};

const GROUP: u32 = 4242;
/// A rule of the old iptables, which nftables knows nothing of: only iptables-legacy-save shows it.
const LEGACY: &str = "-t mangle -A PREROUTING -j MARK --set-xmark 0x01000000/0x01000000";

fn legacy(lab: &Lab) -> bool {
    let netns = &lab.topology.node(0).netns;
    let made = netns.command("iptables-legacy").args(LEGACY.split(' ')).status();
    skip::require("iptables-legacy, and a kernel with its tables", made.is_ok_and(|status| status.success()))
}

/// As setpriv calls it.
fn short(right: &Right) -> String {
    right.name.trim_start_matches("CAP_").to_lowercase()
}

/// Fields of the status of each thread of a process.
fn statuses(process: u32) -> Vec<BTreeMap<String, String>> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let read = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap();
    let fields = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    threads.map(|thread| read(thread.unwrap()).lines().filter_map(fields).collect()).collect()
}

#[track_caller]
fn confined(agent: &Agent) {
    let kept = NEEDED.iter().fold(0_u64, |set, right| set | 1 << right.number);
    let threads = statuses(agent.id());
    assert!(threads.len() > 1, "it has threads");
    for status in threads {
        for (field, expected) in [("CapPrm", kept), ("CapEff", kept), ("CapBnd", kept), ("CapInh", 0), ("CapAmb", 0)] {
            assert_eq!(u64::from_str_radix(&status[field], 16), Ok(expected), "{field} of {}", status["Name"]);
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{}", status["Name"]);
    }
}

/// Pinned attachments of node 0 whose link is gone or that were detached.
fn detached(pins: &Pins) -> usize {
    let names = pins.names(Kind::Link).unwrap();
    let links = names.iter().filter_map(|name| sys::obj_get(&pins.path(Kind::Link, name)).ok());
    links.filter(|link| sys::link_facts(link).is_ok_and(|facts| facts.ifindex == 0)).count()
}

/// With exactly the list: it starts, publishes, attaches, follows changes, answers, reads the marks of others, takes over pins, mends drift.
#[test]
fn a_confined_agent_does_all_of_its_work() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    if !legacy(&lab) {
        return;
    }
    let servers = Servers::start(&lab, "cart-1", &[8080, 9999], &[]);
    let group = GROUP.to_string();
    let arguments = ["--socket-group", group.as_str()];
    let systemd = lab.state(0).with_extension("notify");
    let told = UnixDatagram::bind(&systemd).unwrap();
    told.set_nonblocking(true).unwrap();
    let by = ["env".to_owned(), format!("NOTIFY_SOCKET={}", systemd.display())];
    let mut agent = Agent::spawn_by(&lab, 0, &by.each_ref().map(String::as_str), &arguments).unwrap();
    agent.wait().unwrap();
    let mut message = [0; 64];
    let length = told.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1\n", "systemd is told that the walls stand");
    confined(&agent);
    let names = NEEDED.map(|right| right.name).join(", ");
    let log = agent.log();
    assert!(log.contains(&format!("kept {names} and ")), "{log}");
    assert!(log.contains("--set-xmark") && !log.contains("could not be read"), "marks of others are read: {log}");
    assert_eq!(agent.metric("bulkhead_mark_conflicts", &[]).unwrap(), 1.0);
    let socket = fs::metadata(lab.socket(0)).unwrap();
    assert_eq!((socket.gid(), socket.permissions().mode() & 0o777), (GROUP, 0o660));

    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));
    let seen = servers.seen();
    denied(&lab, "web", "cart-1", Ask::Tcp(9999));
    assert_eq!(servers.seen(), seen);
    agent.apply(|| lab.policy("shop.yaml", &SHOP.replace("cart:8080", "cart:9999"))).unwrap();
    allowed(&lab, "web", "cart-1", Ask::Tcp(9999));
    denied(&lab, "web", "cart-1", Ask::Tcp(8080));

    assert!(command_line(&lab, 0, &["status"]).contains("agent     version"), "the API answers");
    let flows: serde_json::Value = Client::new(&lab.socket(0)).get("/v1/flows").unwrap();
    assert!(flows.to_string().contains("9999"), "flow tables are read: {flows}");

    agent.kill().unwrap();
    // As the unit has it: a mount namespace of its own, in which all but state and pins is read-only (pins outlive it), no more capabilities than
    // are needed, and the group, which it could not join.
    let directory = lab.state(0).parent().unwrap().display().to_string();
    let bounding: String = NEEDED.iter().map(|right| format!(",+{}", short(right))).collect();
    let script = format!(
        "mount --bind \"$0\" \"$0\" && mount --bind /sys/fs/bpf /sys/fs/bpf && mount -o remount,bind,ro / && \
         exec setpriv --no-new-privs --groups {GROUP} --bounding-set=-all{bounding} \"$@\""
    );
    let by = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", &script, &directory];
    let mut agent = Agent::spawn_by(&lab, 0, &by, &arguments).unwrap();
    agent.wait().unwrap();
    confined(&agent);
    agent.apply(|| lab.policy("shop.yaml", &SHOP.replace("cart:8080", "cart:9998"))).unwrap();
    agent.kill().unwrap();
    denied(&lab, "web", "cart-1", Ask::Tcp(9999));
    let mut agent = Agent::start(&lab, 0, &arguments).unwrap();
    agent.apply(|| lab.policy("shop.yaml", &SHOP.replace("cart:8080", "cart:9999"))).unwrap();
    allowed(&lab, "web", "cart-1", Ask::Tcp(9999));

    // Somebody detaches what guards links, and removes the input rule.
    let pins = Pins::new(&lab.pins(0));
    for name in pins.names(Kind::Link).unwrap() {
        sys::link_detach(&sys::obj_get(&pins.path(Kind::Link, &name)).unwrap()).unwrap();
    }
    let removed = lab.topology.node(0).netns.command("nft").args(["delete", "table", "inet", "bulkhead"]).status();
    assert!(removed.unwrap().success());
    assert!(detached(&pins) > 0);
    wait("what is missing is put up again", || detached(&pins) == 0 && agent.log().contains("found missing"));
    wait("the input rule too", || {
        command_line(&lab, 0, &["status"]).contains("agent     version") && {
            let listed = lab.topology.node(0).netns.command("nft").args(["list", "table", "inet", "bulkhead"]).output();
            listed.unwrap().status.success()
        }
    });
    denied(&lab, "guest", "cart-1", Ask::Tcp(9999));
    allowed(&lab, "web", "cart-1", Ask::Tcp(9999));
    assert_eq!(agent.metric("bulkhead_policy_error", &[]).unwrap(), 0.0);
}

/// Says which it is and what for, and leaves the node alone.
#[test]
fn an_agent_that_lacks_one_says_which_and_ends() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    // Errors are drawn in lines of a terminal's width.
    let words = |text: &str| {
        let all = text.split(|c: char| c.is_whitespace() || c == '│');
        all.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    };
    let ended = |without: &str, arguments: &[&str]| {
        let agent = Agent::spawn_by(&lab, 0, &["setpriv", "--bounding-set", without], arguments).unwrap();
        let (status, log) = agent.ended().unwrap();
        assert_eq!(status, 1, "{log}");
        assert!(!lab.pins(0).exists() && !lab.socket(0).exists(), "{without}");
        fs::remove_file(lab.state(0).with_extension("log")).unwrap();
        words(&log)
    };
    for right in NEEDED {
        let log = ended(&format!("-{}", short(&right)), &[]);
        assert!(log.contains(&words(&format!("the agent lacks {} ({})", right.name, right.purpose))), "{log}");
        assert!(log.contains("run it as root with at least CAP_NET_ADMIN, "), "{log}");
        assert!(!lab.state(0).exists(), "{}", right.name);
    }
    let log = ended("-setgid", &["--socket-group", "4242"]);
    assert!(log.contains("not in the group 4242") && log.contains("`SupplementaryGroups=4242`"), "{log}");
}

/// The calling thread, and what it starts, keep these alone.
fn keep(rights: &[Right]) {
    let kept: CapsHashSet = rights.iter().map(|right| right.name.parse::<Capability>().unwrap()).collect();
    for capability in caps::read(None, CapSet::Bounding).unwrap().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability).unwrap();
    }
    caps::set(None, CapSet::Effective, &kept).unwrap();
    caps::set(None, CapSet::Permitted, &kept).unwrap();
}

/// What a node half with these alone says to its work: taking the tables, publishing, and looking for other users of marks.
fn work(rights: &[Right]) -> (Result<(), NodeError>, Vec<String>) {
    let mut lab = shop();
    if !legacy(&lab) {
        return (Ok(()), vec![]);
    }
    let desired = lab.compile(0).unwrap();
    // That made tables, with all rights.
    lab.forget(0);
    let options = Options::new(&lab.pins(0), &lab.state(0));
    lab.topology.node(0).netns.run(|| detach(&options.pins)).unwrap();
    fs::create_dir_all(lab.state(0)).unwrap();
    let netns = lab.topology.node(0).netns.clone();
    netns.run(|| {
        keep(rights);
        let mut node = match KernelNode::open(options) {
            Ok(node) => node,
            Err(error) => return (Err(error), vec![]),
        };
        let observer = node.observer().unwrap();
        let published = node.publish(&desired).and_then(|_| observer.flows()).and_then(|_| node.status()).map(drop);
        (published, observer.mark_conflicts().map_or_else(|error| vec![error.to_string()], |found| found.unread))
    })
}

/// None is on the list without need: with all but one, a real function fails; with all of them, none does.
#[test]
fn each_capability_of_the_list_is_needed() {
    if !skip::root() {
        return;
    }
    let (published, unread) = work(&NEEDED);
    assert!(published.is_ok() && unread.is_empty(), "{published:?} {unread:?}");
    for right in NEEDED {
        let others: Vec<Right> = NEEDED.into_iter().filter(|other| *other != right).collect();
        let (published, unread) = work(&others);
        eprintln!("without {}: {published:?}, unread {unread:?}", right.name);
        match right.name {
            "CAP_NET_RAW" => {
                assert!(published.is_ok(), "{published:?}");
                assert!(unread.iter().any(|why| why.contains("tables-legacy-save")), "{unread:?}");
            }
            name => {
                let said = published.unwrap_err().to_string();
                let expected = match name {
                    "CAP_BPF" => "create the map",
                    "CAP_PERFMON" => "load the program",
                    _ => "",
                };
                // Without CAP_PERFMON the verifier follows paths that no processor takes either, and may give up before it comes to what is not permitted.
                let gives_up = name == "CAP_PERFMON" && said.contains("BPF program is too large");
                assert!(
                    said.contains(expected) && said.contains("not permitted") | said.contains("denied") | gives_up,
                    "{name}: {said}"
                );
            }
        }
    }
}
