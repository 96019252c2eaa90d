//! From ADD to DEL.

use std::{thread, time::Duration};

use bulkhead_tests::{
    Agent,
    chain::{Chain, Container},
};
use bulkhead_topology::traffic::{Outcome, TcpEcho};
use serde_json::json;

use crate::{
    plugins,
    support::{BRIEF, PATIENCE, POLICY, calls, db, eventually, foretell, lab, none, pinned},
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

/// After a reboot: nothing is pinned, the runtime starts twenty containers at once, and the agent comes while they wait.
#[test]
fn twenty_at_once_wait_for_the_agent() {
    let Some(directory) = plugins() else { return };
    let names: Vec<String> = (1..=20).map(|n| format!("web-{n}")).collect();
    let lab = lab(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let _servers = db(&lab, 8080);
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let agent = thread::scope(|scope| {
        let adds: Vec<_> = names
            .iter()
            .map(|name| {
                let chain = &chain;
                scope.spawn(move || {
                    let mut container = Container::new(name);
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
