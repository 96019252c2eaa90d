//! Other plugins before ours than the one that the other tests have.

use std::{fs, net::IpAddr, path::PathBuf};

use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Agent, Lab,
    chain::{Chain, flannel_plugin},
};
use serde_json::json;

use crate::{
    plugins,
    support::{db, eventually, guarded, lab, pinned},
};

/// Two nodes on which the containers' own node alone decides: the other one knows none of them by address, so its `db` lets in whoever comes.
fn open(lab: &Lab) -> [Agent; 2] {
    let to: IpAddr = lab.topology.workload("db").v4.into();
    let agents = [Agent::start(lab, 0, &[]).unwrap(), Agent::start(lab, 1, &[]).unwrap()];
    let head = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n";
    let policy = "services:\n  web: { calls: ['there:8080'] }\n  guest: {}\n";
    lab.policy("shop.yaml", &format!("{head}external: {{ there: {{ cidrs: ['{to}/32'] }} }}\n{policy}")).unwrap();
    eventually("no wall of db", || agents.iter().all(|agent| agent.metric("bulkhead_revision", &[]).unwrap() >= 2.0));
    agents
}

/// Other plugins between the one that makes the pair and ours, and another one that makes it.
#[test]
fn other_chains_are_guarded_as_well() {
    let Some(directory) = plugins() else { return };
    let lab = lab(&["web-1", "guest-1"]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to: IpAddr = lab.topology.workload("db").v4.into();
    let _agents = open(&lab);
    let before = pinned(&lab, 0);
    let between: [&[serde_json::Value]; 3] = [
        &[json!({ "type": "portmap", "capabilities": { "portMappings": true } }), json!({ "type": "tuning" })],
        &[json!({ "type": "bandwidth", "ingressRate": 100_000_000, "ingressBurst": 10_000_000 })],
        &[json!({ "type": "firewall", "backend": "iptables" })],
    ];
    for plugins in between {
        let mut chain = Chain::new(&lab, 0, &directory, "0.4.0", 100);
        let last = chain.plugins.len() - 1;
        chain.plugins.splice(last..last, plugins.iter().cloned());
        guarded(&chain, to);
    }
    let mut chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    chain.plugins[0]["type"] = "ptp".into();
    guarded(&chain, to);
    assert_eq!(pinned(&lab, 0), before);
}

/// Where flannel's own plugin is.
#[track_caller]
fn flannel() -> Option<PathBuf> {
    let found = flannel_plugin().filter(|path| path.is_file());
    let what = "flannel's CNI plugin (`tests/setup/setup.sh --test` builds it with Go)";
    if skip::require(what, found.is_some()) { found } else { None }
}

/// The conflist that flannel's DaemonSet writes: its plugin reads the file that flanneld writes for the node, and delegates to the bridge plugin.
#[test]
fn flannels_delegate_is_guarded() {
    let Some((directory, flannel)) = plugins().zip(flannel()) else { return };
    let lab = lab(&["web-1", "guest-1"]);
    let _servers = (db(&lab, 8080), db(&lab, 9999));
    let to: IpAddr = lab.topology.workload("db").v4.into();
    let _agents = open(&lab);
    let before = pinned(&lab, 0);

    let files = tempfile::tempdir().unwrap();
    let node = lab.topology.node(0);
    let [four, six] = node.overlays();
    // The networks of all nodes; flannel names this node's part of it by the gateway's address.
    let subnets = format!(
        "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET={}/{}\nFLANNEL_IPV6_NETWORK=fd00::/8\nFLANNEL_IPV6_SUBNET={}/{}\n\
         FLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n",
        four.gateway,
        four.prefix.prefix(),
        six.gateway,
        six.prefix.prefix()
    );
    fs::write(files.path().join("subnet.env"), subnets).unwrap();
    // Its newest version is 0.4.0.
    let mut chain = Chain::new(&lab, 0, &directory, "0.4.0", 100);
    chain.plugins[0] = json!({
        "type": "flannel", "subnetFile": files.path().join("subnet.env"), "dataDir": files.path().join("flannel"),
        "ipam": { "dataDir": files.path().join("ipam") },
        "delegate": { "bridge": node.bridge.name, "hairpinMode": true, "isDefaultGateway": true }
    });
    chain.plugins.insert(1, json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    chain.programs.insert("flannel".to_owned(), flannel);
    guarded(&chain, to);
    assert_eq!(pinned(&lab, 0), before);
    let left = fs::read_dir(files.path().join("flannel")).unwrap().count();
    assert_eq!(left, 0, "flannel's DEL was asked, and knew whom it had delegated to");
}
