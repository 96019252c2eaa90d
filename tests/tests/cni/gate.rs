//! The gate of bridges: what is started past the plugin reaches nobody.

use std::{fs, process::Output, time::Instant};

use bulkhead_tests::{
    Agent, bulkhead,
    chain::{Chain, Container},
};
use bulkhead_topology::{Netns, traffic::Outcome};

use serde_json::Value;

use crate::{
    files::{Files, Follow, OWNERS, owners, while_rewritten, words},
    plugins,
    starts::{Witnesses, entry, starts},
    support::{BRIEF, PATIENCE, calls, db, eventually, foretell, lab},
};

fn nft(netns: &Netns, words: &[&str]) -> Output {
    netns.command("nft").args(words).output().unwrap()
}

#[test]
fn a_port_that_nothing_guards_reaches_nobody() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1", "guest-1"]);
    foretell(&mut lab, "web-1");
    let _servers = db(&lab, 8080);
    let target = lab.topology.workload("db").v4.into();
    let here = lab.topology.node(0).netns.clone();
    let gateway = lab.topology.node(0).overlays()[0].gateway;
    let _other = Agent::start(&lab, 1, &[]).unwrap();
    let agent = Agent::start(&lab, 0, &["--gate", "veth*"]).unwrap();
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    calls(&web.netns, target, 8080, PATIENCE, Outcome::Answered);

    // With nobody there, and past the plugin: its own node does not answer it, whom no policy keeps from anything.
    agent.kill().unwrap();
    let mut past = Chain::new(&lab, 0, &directory, "1.0.0", 110);
    past.plugins.truncate(1);
    let mut guest = Container::new("guest-1");
    past.add(&mut guest).unwrap();
    let asks = || guest.netns.client().deadline(BRIEF).ping(gateway).unwrap();
    assert_ne!(asks(), Outcome::Answered);
    calls(&web.netns, target, 8080, PATIENCE, Outcome::Answered);
    // The witness that the gate alone was in the way.
    let listed = String::from_utf8(nft(&here, &["list", "table", "bridge", "bulkhead"]).stdout).unwrap();
    nft(&here, &["delete", "table", "bridge", "bulkhead"]);
    eventually(&listed, || asks() == Outcome::Answered);

    // The next agent puts it up again, and whoever takes it away is found out.
    let agent = Agent::start(&lab, 0, &["--gate", "veth*"]).unwrap();
    let stands = || nft(&here, &["list", "table", "bridge", "bulkhead"]).status.success();
    assert!(stands());
    calls(&web.netns, target, 8080, PATIENCE, Outcome::Answered);
    nft(&here, &["delete", "table", "bridge", "bulkhead"]);
    eventually("the gate is put up again", stands);
    assert!(agent.log().contains("gate of bridges"), "{}", agent.log());
    // In observe mode nothing is shut, and a detach leaves nothing.
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &["--gate", "veth*", "--observe"]).unwrap();
    assert!(!stands());
    agent.kill().unwrap();
    let agent = Agent::start(&lab, 0, &["--gate", "veth*"]).unwrap();
    assert!(stands());
    agent.kill().unwrap();
    let pins = lab.pins(0).display().to_string();
    let detached = here.command(bulkhead().unwrap()).args(["detach", "--all", "--pins", &pins]).output().unwrap();
    assert!(detached.status.success() && !stands());
    eventually("the node answers", || asks() == Outcome::Answered);
    past.del(&guest);
    chain.del(&web);
}

/// Where networks are changed in place, some containers start from what their owner has just written, without the plugin: what they send from their first
/// moment on reaches nobody.
#[test]
fn nothing_leaves_who_starts_from_a_rewritten_network() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["guest-1"]);
    let here = &lab.topology.node(0).netns;
    let to = lab.topology.workload("db").v4;
    let files = Files::new(here);
    let agent = Agent::start(&lab, 0, &["--gate", "veth*"]).unwrap();
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let text = owners(&chain);
    files.write(OWNERS, &text);
    let (socket, pins) = (lab.cni_socket(0).display().to_string(), lab.pins(0).display().to_string());
    let install = files.install(
        "podman",
        &["--enforce", "--namespace", "shop", "--timeout", "60", "--cni-socket", &socket, "--pins", &pins],
    );
    files.good(&words(&install));
    assert!(files.read(OWNERS).contains("bulkhead-cni"));
    let _follow = Follow::start(&files);
    let witnesses = Witnesses::stand(&lab);
    let (mut past, mut held) = (0, 0);
    while_rewritten(&files, &text, || {
        let begin = Instant::now();
        while past < 5 {
            assert!(begin.elapsed() < PATIENCE, "{past} started past the plugin, {held} did not");
            // Half of a file is no network: the runtime tries again.
            let there = fs::read(files.at("net.d").join(OWNERS)).unwrap_or_default();
            let Ok(Value::Object(list)) = serde_json::from_slice(&there) else { continue };
            chain.plugins = list["plugins"].as_array().unwrap().clone();
            let ours = chain.plugins.last().unwrap()["type"] == "bulkhead-cni";
            *(if ours { &mut held } else { &mut past }) += 1;
            starts(&chain, to, 1, &witnesses, if ours { "with the plugin" } else { "past the plugin" });
        }
    });
    // The witnesses see what comes where there is no gate.
    agent.kill().unwrap();
    nft(here, &["delete", "table", "bridge", "bulkhead"]);
    chain.plugins.truncate(1);
    let mut guest = Container::new("guest-1");
    chain.add(&mut guest).unwrap();
    assert!(!entry(&guest.netns, to).is_empty());
    eventually("it is seen", || witnesses.seen().0 > 0 && witnesses.seen().1 > 0);
    chain.del(&guest);
}

/// A table of that name that is somebody else's is not touched, and said.
#[test]
fn somebody_elses_table_is_his() {
    if plugins().is_none() {
        return;
    }
    let lab = lab(&[]);
    let here = &lab.topology.node(0).netns;
    nft(here, &["add", "table", "bridge", "bulkhead"]);
    let refused = Agent::start(&lab, 0, &["--gate", "veth*"]).map(|_| ()).unwrap_err().to_string();
    // The terminal breaks lines.
    let refused = refused.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
    assert!(refused.contains("there is a table `bridge bulkhead` that Bulkhead did not make"), "{refused}");
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    assert!(nft(here, &["list", "table", "bridge", "bulkhead"]).status.success());
}
