//! From ADD to DEL.

use std::{
    fs,
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use bulkhead_dataplane::{
    expedite::SWITCH,
    sys::{link_detach, obj_get},
};
use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Agent,
    chain::{Chain, Container, call, our_plugin},
};
use bulkhead_topology::traffic::{Outcome, TcpEcho};
use serde_json::json;

use crate::{
    plugins,
    support::{BRIEF, PATIENCE, POLICY, calls, db, eventually, foretell, lab, none, pin_paths, pinned},
};

/// In each version of the specification: guarded when ADD returns, on this node and across the overlay; all verbs; and nothing is left.
#[test]
fn a_container_is_guarded_from_add_to_del() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1", "guest-1"]);
    let addresses = foretell(&mut lab, "web-1");
    let (_allowed, _denied) = (db(&lab, 8080), db(&lab, 9999));
    let targets = lab.topology.workload("db").addresses();
    let _agents = [Agent::start(&lab, 0, &[]).unwrap(), Agent::start(&lab, 1, &[]).unwrap()];
    let before = pinned(&lab, 0);
    for (reference, version) in [("0.4.0", "0.4.0"), ("1.0.0", "1.0.0"), ("1.0.0", "1.1.0")] {
        // From a fresh store of addresses, so that each time it gets those of the file.
        let mut chain = Chain::new(&lab, 0, &directory, reference, 100);
        chain.ours = version;
        let (mut web, mut guest) = (Container::new("web-1"), Container::new("guest-1"));
        chain.add(&mut web).unwrap();
        assert_eq!(web.addresses(), addresses, "{version}");
        chain.add(&mut guest).unwrap();
        for to in targets {
            calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
            calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
            if to.is_ipv4() {
                assert_eq!(web.netns.client().ping(to).unwrap(), Outcome::Answered);
            }
            calls(&guest.netns, to, 8080, BRIEF, Outcome::TimedOut);
        }
        // The runtime may ask twice, and may look.
        let again: serde_json::Value = serde_json::from_str(&chain.ask("ADD", &web, none()).unwrap()).unwrap();
        assert_eq!(again, web.result);
        assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "");
        assert_eq!(chain.ask("STATUS", &web, none()).unwrap(), "");
        // What GC does not list goes.
        let valid = json!([{ "containerID": web.id(), "ifname": "eth0" }]);
        let valid = [("cni.dev/valid-attachments".to_owned(), valid)].into_iter().collect();
        chain.ask("GC", &web, valid).unwrap();
        let link = guest.link();
        assert!(!pinned(&lab, 0).iter().any(|pin| pin.starts_with(&link)), "GC left {link}");
        assert!(pinned(&lab, 0).iter().any(|pin| pin.starts_with(&web.link())));
        assert_eq!(chain.ask("CHECK", &guest, none()).unwrap_err()["code"], 104);

        chain.del(&web);
        chain.del(&guest);
        // Twice, and when nothing is there any more.
        chain.del(&web);
        assert_eq!(pinned(&lab, 0), before, "{version}");
    }
}

/// The kernel is asked to hurry while an agent attaches, by an agent that was not told to leave that alone. Others may do the same meanwhile.
#[test]
fn grace_periods_are_hurried_unless_the_agent_is_told_not_to() {
    let Some(directory) = plugins() else { return };
    if !skip::require("a kernel that is not built for real time", !Path::new("/sys/kernel/realtime").exists()) {
        return;
    }
    let lab = lab(&["web-1"]);
    let holds = |agent: &Agent| {
        let files = fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap();
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|path| path == Path::new(SWITCH)))
    };
    let normal = Agent::start(&lab, 0, &["--grace-periods", "normal"]).unwrap();
    assert!(!holds(&normal), "{}", normal.log());
    drop(normal);

    let agent = Agent::start(&lab, 0, &[]).unwrap();
    assert!(holds(&agent), "{}", agent.log());
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let is = || fs::read_to_string(SWITCH).unwrap().trim().to_owned();
    let (seen, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let refused = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                seen.fetch_or(is() != "0", Ordering::Relaxed);
            }
        });
        let refused = (0..20).find_map(|_| {
            let mut web = Container::new("web-1");
            let refused = chain.add(&mut web).err();
            chain.del(&web);
            refused
        });
        done.store(true, Ordering::Relaxed);
        refused
    });
    assert_eq!(refused, None);
    assert!(seen.into_inner(), "{SWITCH} was not set by any of 20 starts");
    eventually("it is set back", || is() == "0");
}

/// Two networks' interfaces, each with an ADD of its own as podman does for `--network a,b`, and both in the result of one ADD: each has walls of its own.
#[test]
fn each_interface_of_a_container_is_guarded() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1"]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to = lab.topology.workload("db").v4.into();
    let gateway: IpAddr = [10, 200, 0, 1].into();
    let node = &lab.topology.node(0).netns;
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    let policy = |calls: &str| lab.policy("shop.yaml", &POLICY.replace("'db:8080'", calls)).unwrap();
    policy("'db:8080'");
    let before = pinned(&lab, 0);
    let guards = |link: &str| pinned(&lab, 0).iter().filter(|pin| pin.starts_with(&format!("{link}-"))).count();

    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let mut second = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    second.ifname = "eth1";
    let ipam = tempfile::tempdir().unwrap();
    second.plugins[0] = json!({
        "type": "ptp",
        "ipam": { "type": "host-local", "dataDir": ipam.path(), "ranges": [[{ "subnet": "10.200.0.0/24" }]] }
    });
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    let first = (web.result.clone(), web.link());
    second.add(&mut web).unwrap();
    let links = [first.1.as_str(), &web.link()];
    assert_eq!(links.map(guards), [2, 2], "{:?}", pinned(&lab, 0));
    let _server = TcpEcho::start(node, (gateway, 9999).into()).unwrap();
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
    calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
    calls(&web.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    // The witness that the second interface's wall alone was in the way.
    policy("'db:8080', 'node:9999'");
    calls(&web.netns, gateway, 9999, PATIENCE, Outcome::Answered);
    calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
    policy("'db:8080'");
    eventually("it is closed again", || {
        let client = web.netns.client().deadline(BRIEF);
        client.tcp((gateway, 9999).into()).unwrap() == Outcome::TimedOut
    });

    // One of the two goes.
    let eth1 = web.result.clone();
    assert_eq!(second.ask("DEL", &web, none()).unwrap(), "");
    assert_eq!(links.map(guards), [2, 0]);
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);

    // Both in one result.
    let mut both = first.0.clone();
    let list = |of: &serde_json::Value, key: &str| of[key].as_array().unwrap().clone();
    let offset = list(&both, "interfaces").len();
    both["interfaces"].as_array_mut().unwrap().extend(list(&eth1, "interfaces"));
    for mut ip in list(&eth1, "ips") {
        ip["interface"] = json!(usize::try_from(ip["interface"].as_u64().unwrap()).unwrap() + offset);
        both["ips"].as_array_mut().unwrap().push(ip);
    }
    web.result = both;
    let said: serde_json::Value = serde_json::from_str(&chain.ask("ADD", &web, none()).unwrap()).unwrap();
    assert_eq!(said, web.result);
    assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "");
    assert_eq!(links.map(guards), [2, 2], "{:?}", pinned(&lab, 0));
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
    calls(&web.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    web.result = eth1;
    second.del(&web);
    web.result = first.0;
    chain.del(&web);
    assert_eq!(pinned(&lab, 0), before);
}

/// Who is in no file has the labels that its runtime gives, by either of two ways; without any it may call nobody.
#[test]
fn a_runtime_may_give_the_labels() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&[]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to: IpAddr = lab.topology.workload("db").v4.into();
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    for given in ["args", "runtimeConfig"] {
        let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
        match given {
            "args" => chain.set("args", json!({ "cni": { "labels": [{ "key": "app", "value": "web" }] } })),
            _ => chain.set("runtimeConfig", json!({ "labels": { "app": "web" } })),
        }
        let mut named = Container::new("named");
        chain.add(&mut named).unwrap();
        calls(&named.netns, to, 8080, PATIENCE, Outcome::Answered);
        calls(&named.netns, to, 9999, BRIEF, Outcome::TimedOut);
        chain.del(&named);
    }
}

/// Programs that somebody took off a container's link: CHECK says so until the agent has put them up again.
#[test]
fn check_tells_that_a_guard_is_gone() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1"]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "");
    let mut said = None;
    // The agent may just have repaired it.
    eventually("CHECK tells", || {
        for pin in pin_paths(&lab, 0, "links").into_iter().filter(|(name, _)| name.starts_with(&web.link())) {
            link_detach(&obj_get(&pin.1).unwrap()).unwrap();
        }
        said = chain.ask("CHECK", &web, none()).err();
        said.is_some()
    });
    let said = said.unwrap();
    assert_eq!(said["code"], 104, "{said}");
    assert!(said["msg"].as_str().unwrap().contains("is not guarded"), "{said}");
    eventually("the agent repairs it", || chain.ask("CHECK", &web, none()).is_ok());
    assert!(agent.metric("bulkhead_drift_repaired_total", &[]).unwrap() >= 1.0);
    chain.del(&web);
}

/// Another user is told nothing and changes nothing, even where the socket's mode lets him connect.
#[test]
fn only_root_attaches_containers() {
    if plugins().is_none() {
        return;
    }
    let lab = lab(&[]);
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    let open = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let (plugin, socket) = (open.path().join("bulkhead-cni"), open.path().join("cni.sock"));
    fs::copy(our_plugin().unwrap(), &plugin).unwrap();
    fs::hard_link(lab.cni_socket(0), &socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let ask = |user: u32| {
        let mut command = Command::new(&plugin);
        command.uid(user).env("CNI_COMMAND", "STATUS");
        call(command, &json!({ "cniVersion": "1.1.0", "name": "lab", "type": "bulkhead-cni", "socket": socket }))
    };
    assert_eq!(ask(0).unwrap(), "");
    let refused = ask(65534).unwrap_err();
    assert_eq!((&refused["code"], &refused["msg"]), (&json!(50), &json!("user 65534 may not attach containers")));
}

/// Without an agent nothing starts; where the operator chose so, it starts shut, and an agent that comes later opens what its policy allows.
#[test]
fn without_an_agent_a_container_fails_or_starts_shut() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1"]);
    let _server =
        TcpEcho::start(&lab.topology.node(0).netns, (lab.topology.node(0).overlay4.gateway, 9999).into()).unwrap();
    let gateway = lab.topology.node(0).overlay4.gateway;
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    chain.set("timeoutSeconds", 1);
    let mut early = Container::new("web-1");
    let refused = chain.add(&mut early).unwrap_err();
    assert_eq!(refused["code"], 100, "{refused}");
    assert!(refused["details"].as_str().unwrap().contains("systemctl start bulkhead"), "{refused}");
    assert_eq!(chain.ask("STATUS", &early, none()).unwrap_err()["code"], 50);
    chain.del(&early);

    // Shut needs programs: those that an agent left.
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    agent.kill().unwrap();
    chain.set("onTimeout", "pending");
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    calls(&web.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    eventually("an agent takes it over", || chain.ask("CHECK", &web, none()).is_ok());
    // It may call nobody here, and itself.
    calls(&web.netns, gateway, 9999, BRIEF, Outcome::TimedOut);
    lab.policy("shop.yaml", &POLICY.replace("'db:8080'", "'node:9999'")).unwrap();
    calls(&web.netns, gateway, 9999, PATIENCE, Outcome::Answered);
    chain.del(&web);
}

/// After a reboot: nothing is pinned, the runtime starts twenty containers at once, half of them before and half while the agent starts, and all wait for it.
#[test]
fn twenty_at_once_wait_for_the_agent() {
    let Some(directory) = plugins() else { return };
    let names: Vec<String> = (1..=20).map(|n| format!("web-{n}")).collect();
    let lab = lab(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to = lab.topology.workload("db").v4.into();
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let agent = thread::scope(|scope| {
        let adds: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| {
                let chain = &chain;
                scope.spawn(move || {
                    let mut container = Container::new(name);
                    if n >= 10 {
                        thread::sleep(Duration::from_secs(1));
                    }
                    chain.add(&mut container).map(|()| container)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let agent = Agent::start(&lab, 0, &[]).unwrap();
        let containers: Vec<Container> = adds.into_iter().map(|add| add.join().unwrap().unwrap()).collect();
        for container in &containers {
            assert_eq!(chain.ask("CHECK", container, none()).unwrap(), "");
        }
        for container in [&containers[0], &containers[19]] {
            calls(&container.netns, to, 8080, PATIENCE, Outcome::Answered);
            calls(&container.netns, to, 9999, BRIEF, Outcome::TimedOut);
        }
        // The next agent knows them all.
        agent.kill().unwrap();
        let agent = Agent::start(&lab, 0, &[]).unwrap();
        for container in &containers {
            assert_eq!(chain.ask("CHECK", container, none()).unwrap(), "");
        }
        for container in &containers {
            chain.del(container);
        }
        agent
    });
    assert_eq!(agent.metric("bulkhead_endpoints_unguarded", &[]).unwrap(), 0.0);
}

/// A container whose runtime never says that it is gone.
#[test]
fn what_no_container_owns_is_swept() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1", "guest-1"]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let before = pinned(&lab, 0);
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    drop(web);
    eventually("the sweep of a living agent", || pinned(&lab, 0) == before);

    let mut guest = Container::new("guest-1");
    chain.add(&mut guest).unwrap();
    agent.kill().unwrap();
    chain.del(&guest);
    drop(guest);
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    eventually("the next agent's sweep", || pinned(&lab, 0) == before);
}

/// In observe mode a container starts whatever becomes of Bulkhead, and without waiting for it.
#[test]
fn observing_never_keeps_a_container() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1"]);
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    chain.set("mode", "observe");
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    assert_eq!(chain.ask("CHECK", &web, none()).unwrap(), "");
    assert_eq!(chain.ask("STATUS", &web, none()).unwrap(), "");
    chain.del(&web);
    let _agent = Agent::start(&lab, 0, &["--observe"]).unwrap();
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    let link = web.link();
    eventually("it is watched", || pinned(&lab, 0).iter().any(|pin| pin.starts_with(&link)));
    chain.del(&web);
}

/// Where its namespace is exempt a container waits for nobody either, and has its walls as soon as an agent has heard of it.
#[test]
fn who_is_exempt_starts_without_an_agent_and_is_guarded_by_one() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["guest-1"]);
    let _servers = db(&lab, 8080);
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    chain.set("exempt", vec!["shop"]);
    let mut guest = Container::new("guest-1");
    chain.add(&mut guest).unwrap();
    chain.del(&guest);
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    let mut guest = Container::new("guest-1");
    chain.add(&mut guest).unwrap();
    let link = guest.link();
    eventually("it is guarded", || pinned(&lab, 0).iter().filter(|pin| pin.starts_with(&link)).count() == 2);
    calls(&guest.netns, lab.topology.workload("db").v4.into(), 8080, BRIEF, Outcome::TimedOut);
    chain.del(&guest);
}

/// What the file says of a container and what the runtime says must agree.
#[test]
fn a_contradiction_keeps_a_container_from_starting() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1"]);
    lab.contained.insert("web-1".to_owned(), (0, vec!["10.99.0.1".parse().unwrap()]));
    lab.contained.insert("guest-1".to_owned(), (1, Vec::new()));
    lab.write_workloads().unwrap();
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    let before = pinned(&lab, 0);
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    for (name, why) in [("web-1", "lists no endpoint with the addresses"), ("guest-1", "runs on node `n2")] {
        let refused = chain.add(&mut Container::new(name)).unwrap_err();
        assert_eq!(refused["code"], 101, "{refused}");
        assert!(refused["msg"].as_str().unwrap().contains(why), "{refused}");
    }
    assert_eq!(pinned(&lab, 0), before);
    // Who is not in the file at all is a workload without labels.
    let mut stranger = Container::new("stranger");
    chain.add(&mut stranger).unwrap();
    chain.del(&stranger);
}
