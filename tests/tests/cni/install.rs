//! `bulkhead install`, `follow` and `uninstall`: files of a runtime's networks, and containers that start from them.

use std::fs;

use bulkhead_tests::{
    Agent,
    chain::{Chain, Container},
};
use bulkhead_topology::{
    Netns,
    traffic::{Outcome, echo},
};
use serde_json::{Value, json};

use crate::{
    files::{FIRST, Files, Follow, OWNERS, owners, while_rewritten, words},
    plugins,
    support::{BRIEF, PATIENCE, calls, db, eventually, foretell, lab, pinned},
};

/// The network that containerd would take: the first file.
fn take_first(files: &Files) -> Option<Vec<Value>> {
    let mut names: Vec<_> = fs::read_dir(files.at("net.d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_str().unwrap().ends_with(".conflist"));
    names.sort();
    let text = fs::read_to_string(files.at("net.d").join(names.first()?)).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["plugins"].as_array().cloned()
}

#[test]
fn what_is_installed_is_shown_first_and_goes_again() {
    if plugins().is_none() {
        return;
    }
    let netns = Netns::new("install").unwrap();
    let files = Files::new(&netns);
    let flannel = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
    files.write(OWNERS, flannel);
    let before = files.all();

    // Looking changes nothing, not even the record.
    let observe = files.install("containerd", &["--dry-run"]);
    let said = files.good(&words(&observe));
    assert!(
        said.contains("would copy") && said.contains(&format!("would write  {}", files.at("net.d/00-").display())),
        "{said}"
    );
    assert_eq!(files.all(), before);

    // Units are put where they are wanted, with the paths of this node.
    let at = |path: &str| files.at(path).display().to_string();
    let mut observe =
        files.install("containerd", &["--program", &at("bin/bulkhead"), "--environment", &at("install.env")]);
    observe.retain(|word| word != "--no-units");
    observe.extend(["--units".to_owned(), at("units")]);
    let said = files.good(&words(&observe));
    assert!(said.contains("network cbr0 (00-bulkhead.conflist)") && said.contains("observes, until"), "{said}");
    let list: Value = serde_json::from_str(&files.read(FIRST)).unwrap();
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.4.0"), &json!("cbr0")));
    assert_eq!(list["plugins"][2], json!({ "type": "bulkhead-cni", "mode": "observe" }));
    assert_eq!(files.read(OWNERS), flannel, "the owner's file is his");
    assert_eq!(fs::read_to_string(files.at("install.env")).unwrap().lines().last(), Some("MODE=--observe"));
    let unit = |name: &str| fs::read_to_string(files.at("units").join(name)).unwrap();
    assert!(unit("bulkhead.service").contains(&format!("ExecStart={} agent", at("bin/bulkhead"))));
    let follows = unit("bulkhead-follow.service");
    assert!(follows.contains(&format!("ReadWritePaths={} -{}", at("record"), at("net.d"))), "{follows}");
    let output = netns.command(files.at("plugins/bulkhead-cni")).env("CNI_COMMAND", "VERSION").output().unwrap();
    assert!(output.status.success(), "the copy of the plugin runs");

    // Again: nothing. With another mode: just that.
    let said = files.good(&words(&observe));
    assert!(!said.contains("write  ") && !said.contains("copy  "), "{said}");
    let mut enforce = observe.clone();
    enforce.extend(["--enforce", "--timeout", "30", "--exempt", "kube-system"].map(str::to_owned));
    let said = files.good(&words(&enforce));
    assert!(said.contains("the node then enforces"), "{said}");
    let list: Value = serde_json::from_str(&files.read(FIRST)).unwrap();
    let told = json!({ "type": "bulkhead-cni", "mode": "enforce", "timeoutSeconds": 30, "exempt": ["kube-system"] });
    assert_eq!(list["plugins"][2], told);
    assert_eq!(fs::read_to_string(files.at("install.env")).unwrap().lines().last(), Some("MODE="));

    // What is not said again stays as it was, runtime and directories too.
    let entry = || serde_json::from_str::<Value>(&files.read(FIRST)).unwrap()["plugins"][2].clone();
    assert!(!files.good(&["install", "--no-units"]).contains("write  "));
    files.good(&["install", "--no-units", "--timeout", "10", "--observe"]);
    assert_eq!(entry(), json!({ "type": "bulkhead-cni", "mode": "observe", "exempt": ["kube-system"] }));
    files.good(&["install", "--no-units", "--enforce"]);
    assert_eq!(entry(), json!({ "type": "bulkhead-cni", "mode": "enforce", "exempt": ["kube-system"] }));
    // Unless it is said that all is.
    files.good(&words(&files.install("containerd", &["--anew"])));
    assert_eq!(entry(), json!({ "type": "bulkhead-cni", "mode": "observe" }));

    // While the runtime has an attachment, the plugin stays for its DEL.
    fs::write(files.at("cache/results/cbr0-c0ffee-eth0"), "{}").unwrap();
    let out = ["uninstall", "--pins", &at("none"), "--state", &at("none"), "--cni-cache", &at("cache")];
    let said = files.good(&[&out[..], &["--dry-run"]].concat());
    assert!(said.contains(&format!("would remove {}", files.at("net.d").join(FIRST).display())), "{said}");
    assert!(files.at("net.d").join(FIRST).exists());
    let said = files.good(&out);
    assert!(said.contains("bulkhead-cni stays"), "{said}");
    fs::remove_file(files.at("cache/results/cbr0-c0ffee-eth0")).unwrap();
    fs::remove_file(files.at("plugins/bulkhead-cni")).unwrap();
    fs::remove_file(files.at("bin/bulkhead")).unwrap();
    assert_eq!(files.all(), before);

    // With nothing to call it, it goes too.
    files.good(&words(&files.install("containerd", &[])));
    files.good(&out);
    assert_eq!(files.all(), before);
    let said = files.good(&out);
    assert!(said.contains("no network was changed"), "{said}");
}

#[test]
fn what_cannot_be_installed_changes_nothing() {
    if plugins().is_none() {
        return;
    }
    let netns = Netns::new("refused").unwrap();
    let files = Files::new(&netns);
    for (file, text, why) in [
        ("10-half.conflist", "{", "is no network configuration"),
        (
            "10-old.conflist",
            r#"{"name":"x","cniVersion":"0.2.0","plugins":[{"type":"bridge"}]}"#,
            "speaks version 0.2.0",
        ),
        (
            "10-macvlan.conflist",
            r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"macvlan"}]}"#,
            "makes no veth pair",
        ),
        ("00-a.conflist", r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#, "comes before 00-"),
    ] {
        files.write(file, text);
        let before = files.all();
        let said = files.bad(&words(&files.install("crio", &[])));
        assert!(said.contains(why), "{file}: {said}");
        assert_eq!(files.all(), before, "{file}");
        fs::remove_file(files.at("net.d").join(file)).unwrap();
    }
    let said = files.bad(&words(&files.install("containerd", &["--network", "x"])));
    assert!(said.contains("one network, its first"), "{said}");
    let said = files.bad(&["follow"]);
    assert!(said.contains("nothing is installed"), "{said}");
    // Another place than before is not this one's second half.
    files.good(&words(&files.install("crio", &[])));
    let said = files.bad(&words(&files.install("podman", &[])));
    assert!(said.contains("uninstall, and then install anew"), "{said}");
}

/// Its owner rewrites the network all the time, half first and then whole, or away and anew: no container starts unguarded, and changes of his arrive.
#[test]
fn an_owner_who_rewrites_his_network_opens_nothing() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1", "guest-1"]);
    foretell(&mut lab, "web-1");
    let files = Files::new(&lab.topology.node(0).netns);
    let _servers = db(&lab, 8080);
    let target = lab.topology.workload("db").v4.into();
    let agents = [Agent::start(&lab, 0, &[]).unwrap(), Agent::start(&lab, 1, &[]).unwrap()];
    let before = pinned(&lab, 0);
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let text = owners(&chain);
    let (socket, pins) = (lab.cni_socket(0).display().to_string(), lab.pins(0).display().to_string());
    let install = files.install(
        "containerd",
        &["--enforce", "--namespace", "shop", "--timeout", "60", "--cni-socket", &socket, "--pins", &pins],
    );
    // Before the network is there at all, as at the first boot of a node.
    let said = files.good(&words(&install));
    assert!(said.contains("no network is in"), "{said}");
    let mut follow = Follow::start(&files);
    files.write(OWNERS, &text);
    eventually("the plugin is behind the new network", || files.at("net.d").join(FIRST).exists());

    let mut web = Container::new("web-1");
    chain.plugins = take_first(&files).unwrap();
    chain.add(&mut web).unwrap();
    calls(&web.netns, target, 8080, PATIENCE, Outcome::Answered);

    let starts = while_rewritten(&files, &text, || {
        let mut starts = 0;
        for _ in 0..20 {
            // A conflist of nobody is no start: the runtime tries again.
            let Some(taken) = take_first(&files) else { continue };
            chain.plugins = taken;
            assert_eq!(chain.plugins.last().unwrap()["type"], "bulkhead-cni", "start {starts} is unguarded");
            let mut guest = Container::new("guest-1");
            chain.add(&mut guest).unwrap();
            calls(&guest.netns, target, 8080, BRIEF, Outcome::TimedOut);
            chain.del(&guest);
            starts += 1;
        }
        starts
    });
    assert!(starts >= 15, "{starts} starts");

    // What he changes reaches the runtime, and what somebody takes away comes back.
    files.write(OWNERS, &text.replace("1400", "1390"));
    eventually("the owner's change is followed", || files.read(FIRST).contains("1390"));
    fs::remove_file(files.at("net.d").join(FIRST)).unwrap();
    eventually("our file is there again", || files.at("net.d").join(FIRST).exists());

    // With the agents dead.
    chain.del(&web);
    drop(agents);
    let out = ["uninstall", "--pins", &pins, "--state", &lab.state(0).display().to_string()];
    files.good(&[&out[..], &["--cni-cache", &files.at("cache").display().to_string()]].concat());
    assert!(!files.at("net.d").join(FIRST).exists());
    assert_eq!(files.read(OWNERS), text.replace("1400", "1390"));
    eventually("who follows ends by himself", || follow.ended());
    assert!(pinned(&lab, 0).is_empty() && !before.is_empty());
}

/// Where each container names its network, files are changed in place, come back when their owner rewrites them, and are as they were afterwards.
#[test]
fn networks_in_place_are_followed_and_restored() {
    let Some(directory) = plugins() else { return };
    let mut lab = lab(&["web-1"]);
    foretell(&mut lab, "web-1");
    let files = Files::new(&lab.topology.node(0).netns);
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let text = owners(&chain);
    files.write("87-shop.conflist", &text);
    files.write("90-other.conflist", &text.replace("\"lab\"", "\"other\""));
    let pins = lab.pins(0).display().to_string();
    let install = files.install("podman", &["--network", "lab", "--pins", &pins]);
    files.good(&words(&install));
    let ours = |file: &str| files.read(file).contains("bulkhead-cni");
    assert!(ours("87-shop.conflist") && !ours("90-other.conflist"));
    let mut follow = Follow::start(&files);
    // His next text is another one: that is what comes back.
    let next = text.replace("1400", "1390");
    files.write("87-shop.conflist", &next);
    eventually("ours is behind the new text", || ours("87-shop.conflist"));
    assert!(files.read("87-shop.conflist").contains("1390"));
    // A container that runs meanwhile, allowed to call: uninstalling does not cut it off.
    let (_server, target) = (db(&lab, 8080), lab.topology.workload("db").v4);
    let _other = Agent::start(&lab, 1, &[]).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let mut web = Container::new("web-1");
    chain.add(&mut web).unwrap();
    calls(&web.netns, target.into(), 8080, PATIENCE, Outcome::Answered);
    let mut live = web.netns.client().connect((target, 8080).into()).unwrap();
    assert_eq!(echo(&mut live, PATIENCE).unwrap(), Outcome::Answered);
    let state = lab.state(0).display().to_string();
    let cache = files.at("cache").display().to_string();
    let out = ["uninstall", "--pins", &pins, "--state", &state, "--cni-cache", &cache];
    let said = files.bad(&out);
    assert!(said.contains("nothing was changed; stop the agent first") && ours("87-shop.conflist"), "{said}");
    agent.kill().unwrap();
    files.good(&out);
    assert_eq!(files.read("87-shop.conflist"), next);
    assert_eq!(echo(&mut live, PATIENCE).unwrap(), Outcome::Answered);
    eventually("who follows ends by himself", || follow.ended());
    assert!(pinned(&lab, 0).is_empty());
}
