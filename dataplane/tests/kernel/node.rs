//! A whole node: from what is desired to what arrives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bulkhead_dataplane::{
    attach::{Classifiers, Guard, Hook, Links},
    desired::{
        Address, Desired, Endpoint, EndpointName, Entry, Interval, Manner, Overlay, Peers, PolicySet, Prefix, Rule,
        RuleId, SelectorId, SetId, View,
    },
    kernel::{self, KernelNode, Options, Reader, XdpMode},
    load::{Maps, Sizes},
    mark,
    node::{Node as _, NodeError, Published, Status},
    pieces::Pieces,
    pins::Kind,
    sys,
};
use bulkhead_ebpf::{
    abi::{Action, Class, Direction, Mode, program::UNDERLAY},
    reason::Reason,
};
use bulkhead_topology::{
    Node, Topology, Workload,
    traffic::{TcpEcho, echo},
};

use crate::{Directory, ready, refused};

/// One program load after the other: the verifier takes a while for each.
pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const SLOTS: Sizes = Sizes {
    slots: 16,
    views: 64,
    sets: 16,
    lists: 64,
    rows: 64,
    addresses: 256,
    prefixes: 64,
    rule_counters: 256,
    counters: 256,
    vteps: 64,
    owners: 64,
    services: 64,
    backends: 64,
    contacts: 64,
    flows: 256,
};

pub(crate) const BUDGET: u32 = 100;
/// For what must happen on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not happen.
const BRIEF: Duration = Duration::from_millis(300);

/// What a node enforces: `web` may call `db` when `allowed`, and nothing else passes either.
pub(crate) fn desired(topology: &Topology, node: usize, allowed: bool) -> Desired {
    let own = topology.node(node);
    let rule = |name: &str| Rule { name: name.to_owned(), origin: String::new() };
    let everyone = |direction, action, rule, reason| PolicySet {
        direction,
        isolated: true,
        classes: Class::ALL.map(|_| {
            let entry = Entry { tier: 0, action, audit: false, reason, peers: Peers::Any(RuleId(rule)) };
            vec![Interval { start: 0, entries: vec![entry] }]
        }),
    };
    let web = |direction| {
        let mut set = everyone(direction, Action::Deny, 1, Reason::Isolated);
        if allowed {
            let allow = Entry {
                tier: 0,
                action: Action::Allow,
                audit: false,
                reason: Reason::Rule,
                peers: Peers::Selectors(vec![(SelectorId(0), RuleId(0))]),
            };
            set.classes[Class::Tcp as usize][0].entries.insert(0, allow);
        }
        set
    };
    let name =
        |workload: &Workload| EndpointName { namespace: "shop".to_owned(), workload: workload.name.clone(), index: 0 };
    let here = |workload: &&Workload| workload.node == node;
    let segment = own.overlay4.vni;
    let mut addresses = Pieces::default();
    for workload in topology.workloads() {
        for address in workload.addresses() {
            let endpoint = here(&workload).then(|| name(workload));
            addresses.insert(
                (segment, address),
                Address {
                    selectors: BTreeSet::from([SelectorId(0)]),
                    endpoint: endpoint.map(Box::new),
                    ..Address::default()
                },
            );
        }
    }
    let peers = |overlay: fn(&Node) -> &bulkhead_topology::Overlay| -> BTreeMap<IpAddr, BTreeSet<_>> {
        let others = topology.nodes().iter().enumerate().filter(|(index, _)| *index != node);
        others.map(|(_, other)| (overlay(other).vtep, BTreeSet::from([overlay(other).prefix]))).collect()
    };
    let overlays = [(&own.overlay4, peers(|node| &node.overlay4)), (&own.overlay6, peers(|node| &node.overlay6))];
    Desired {
        selectors: vec!["everyone of the shop".to_owned()].into(),
        rules: vec![rule("shop calls shop"), rule("default")].into(),
        sets: vec![web(Direction::Ingress), web(Direction::Egress)].into(),
        endpoints: topology
            .workloads()
            .iter()
            .filter(here)
            .map(|workload| Endpoint {
                name: name(workload),
                service: workload.name.clone(),
                link: workload.link.name.clone(),
                segment,
                addresses: workload.addresses().to_vec(),
                mode: Mode::Enforce,
                views: vec![View { ingress: SetId(0), egress: SetId(1), until: None }],
            })
            .collect(),
        addresses,
        prefixes: topology
            .nodes()
            .iter()
            .flat_map(|node| {
                node.overlays()
                    .map(|overlay| ((segment, overlay.prefix), Prefix { overlay: true, ..Prefix::default() }))
            })
            .collect(),
        overlays: overlays
            .into_iter()
            .map(|(overlay, peers)| Overlay { vni: overlay.vni, port: overlay.port, own: vec![overlay.vtep], peers })
            .collect(),
        ..Desired::default()
    }
}

/// What the kernel has of a node that must not change when everything is detached: filters, qdiscs, rules, links.
fn traces(node: &Node) -> String {
    ["tc qdisc show", "nft list ruleset", "ip link show"]
        .map(|line| {
            let mut words = line.split(' ');
            let output = node.netns.command(words.next().unwrap()).args(words).output().unwrap();
            assert!(output.status.success(), "{line}");
            String::from_utf8(output.stdout).unwrap()
        })
        .concat()
}

pub(crate) struct Guarded<'a> {
    pub(crate) node: &'a Node,
    directory: Directory,
    state: tempfile::TempDir,
    xdp: XdpMode,
    pub(crate) mark_mask: u32,
    classifiers: Classifiers,
}

impl<'a> Guarded<'a> {
    pub(crate) fn new(node: &'a Node, xdp: XdpMode) -> Self {
        let (directory, state) = (Directory::new(), tempfile::tempdir().unwrap());
        Self { node, directory, state, xdp, mark_mask: mark::DEFAULT, classifiers: Classifiers::Auto }
    }

    pub(crate) fn open(&self, budget: u32) -> Result<KernelNode, NodeError> {
        let options = Options::new(&self.directory.0, self.state.path()).xdp(self.xdp).mark_mask(self.mark_mask);
        let options = Options { sizes: SLOTS, budget, classifiers: self.classifiers, ..options };
        self.node.netns.run(|| KernelNode::open(options))
    }

    pub(crate) fn read(&self) -> Status {
        self.node.netns.run(|| Reader::open(&self.directory.0, self.state.path()).unwrap().status()).unwrap()
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        // The input rule goes with the namespace.
        if self.directory.pins().exist()
            && let Err(error) = self.node.netns.run(|| kernel::detach(&self.directory.0))
        {
            eprintln!("{error}");
        }
    }
}

#[test]
fn policy_holds_across_nodes_restarts_and_upgrades_until_it_is_detached() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology =
        Topology::builder().nodes(2).workload("web", 0).workload("near", 0).workload("db", 1).build().unwrap();
    let [web, near, db] = ["web", "near", "db"].map(|name| topology.workload(name));
    let before: Vec<String> = topology.nodes().iter().map(traces).collect();
    let guarded = [Guarded::new(topology.node(0), XdpMode::Native), Guarded::new(topology.node(1), XdpMode::Off)];
    let mut nodes = guarded.each_ref().map(|guarded| guarded.open(BUDGET).unwrap());
    let publish = |nodes: &mut [KernelNode; 2], allowed| {
        for (index, node) in nodes.iter_mut().enumerate() {
            topology.node(index).netns.run(|| node.publish(&desired(&topology, index, allowed))).unwrap();
        }
    };
    let servers: Vec<TcpEcho> = [near, db]
        .iter()
        .flat_map(|workload| {
            workload.addresses().map(|address| TcpEcho::start(&workload.netns, (address, 5432).into()).unwrap())
        })
        .collect();
    let answers =
        || servers.iter().map(|server| web.client().tcp(server.addr()).unwrap().is_answered()).collect::<Vec<_>>();

    publish(&mut nodes, false);
    assert_eq!(answers(), [false; 4]);
    publish(&mut nodes, true);
    assert_eq!(answers(), [true; 4], "IPv4 and IPv6, on the same node and across nodes");
    assert!(!web.client().ping(db.v4.into()).unwrap().is_answered(), "TCP alone is allowed");

    // Connections outlive agents and upgrades of the programs; policy holds without an agent.
    let mut connection = web.client().connect((db.v4, 5432).into()).unwrap();
    let deadline = Duration::from_secs(1);
    assert!(echo(&mut connection, deadline).unwrap().is_answered());
    let running =
        |guarded: &Guarded<'_>| fs::metadata(guarded.directory.pins().path(Kind::Program, "to_workload")).unwrap();
    let inode = |guarded: &Guarded<'_>| std::os::unix::fs::MetadataExt::ino(&running(guarded));
    let programs = guarded.each_ref().map(inode);
    drop(nodes);
    assert!(echo(&mut connection, deadline).unwrap().is_answered());
    assert!(!web.client().ping(db.v4.into()).unwrap().is_answered());
    // Other settings need other programs.
    let mut nodes = [guarded[0].open(BUDGET + 1).unwrap(), guarded[1].open(BUDGET).unwrap()];
    publish(&mut nodes, true);
    let changed: Vec<bool> = guarded.iter().zip(programs).map(|(guarded, before)| inode(guarded) != before).collect();
    assert_eq!(changed, [true, false], "programs are replaced where they must be");
    assert!(echo(&mut connection, deadline).unwrap().is_answered());
    assert_eq!(answers(), [true; 4]);

    let status = topology.node(0).netns.run(|| nodes[0].status()).unwrap();
    assert_eq!(guarded[0].read(), status, "readers without an agent see the same");
    assert_eq!(
        status
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.name.workload.as_str(), endpoint.attached))
            .collect::<BTreeMap<_, _>>(),
        [("near", true), ("web", true)].into()
    );
    assert!(status.input_rule);
    let guards: BTreeSet<(&str, &str)> =
        status.links.iter().map(|link| (link.link.as_str(), link.guard.as_str())).collect();
    for guard in ["tcx ingress underlay", "tcx egress underlay_out", "xdp native underlay"] {
        assert!(guards.contains(&(topology.node(0).underlay.link.name.as_str(), guard)), "{guards:?}");
    }
    for overlay in topology.node(0).overlays() {
        assert!(guards.contains(&(overlay.device.name.as_str(), "tcx ingress overlay_in")), "{guards:?}");
    }

    // A second agent, or a detach, would work against the one that runs.
    for why in [
        refused(guarded[0].open(BUDGET)),
        refused(topology.node(0).netns.run(|| kernel::detach(&guarded[0].directory.0))),
    ] {
        assert!(why.contains("an agent runs with these pins"), "{why}");
    }

    // A revoked rule cuts the connection.
    publish(&mut nodes, false);
    assert!(!echo(&mut connection, deadline).is_ok_and(bulkhead_topology::traffic::Outcome::is_answered));
    assert_eq!(answers(), [false; 4]);

    drop(nodes);
    for guarded in &guarded {
        guarded.node.netns.run(|| kernel::detach(&guarded.directory.0)).unwrap();
        assert!(!Path::new(&guarded.directory.0).exists());
    }
    assert_eq!(answers(), [true; 4], "nothing is left");
    assert_eq!(topology.nodes().iter().map(traces).collect::<Vec<_>>(), before);
}

#[test]
fn a_node_that_no_longer_owns_a_prefix_is_refused_at_once() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("db", 1).build().unwrap();
    let [web, db] = ["web", "db"].map(|name| topology.workload(name));
    for xdp in [XdpMode::Native, XdpMode::Off] {
        let guarded = Guarded::new(topology.node(1), xdp);
        let mut node = guarded.open(BUDGET).unwrap();
        let mut publish = |desired: &Desired| guarded.node.netns.run(|| node.publish(desired)).unwrap();
        let whole = desired(&topology, 1, true);
        let mut without = whole.clone();
        without.overlays.iter_mut().flat_map(|overlay| overlay.peers.values_mut()).for_each(BTreeSet::clear);
        publish(&whole);
        let servers = db.addresses().map(|address| TcpEcho::start(&db.netns, (address, 5432).into()).unwrap());
        let mut connections = servers.each_ref().map(|server| web.client().connect(server.addr()).unwrap());
        let mut all = |deadline| {
            connections.each_mut().map(|connection| {
                echo(connection, deadline).is_ok_and(bulkhead_topology::traffic::Outcome::is_answered)
            })
        };
        // More than once: what was verified lately is not looked up again.
        for _ in 0..3 {
            assert_eq!(all(Duration::from_secs(5)), [true; 2]);
        }
        publish(&without);
        assert_eq!(all(Duration::from_millis(300)), [false; 2]);
        publish(&whole);
        drop(connections);
        assert!(servers.iter().all(|server| web.client().tcp(server.addr()).unwrap().is_answered()));
    }
}

/// The same before the workload `late` has come.
fn without_late(desired: &Desired) -> Desired {
    let mut some = desired.clone();
    some.endpoints.retain(|endpoint| endpoint.name.workload != "late");
    for address in some.addresses.values_mut() {
        address.endpoint.take_if(|name| name.workload == "late");
    }
    some
}

#[test]
fn an_endpoint_without_a_link_refuses_the_publish() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology =
        Topology::builder().nodes(2).workload("web", 0).workload("db", 0).workload("late", 0).build().unwrap();
    let [web, db] = ["web", "db"].map(|name| topology.workload(name));
    let guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let mut node = guarded.open(BUDGET).unwrap();
    let server = TcpEcho::start(&db.netns, (db.v4, 5432).into()).unwrap();
    let mut publish = |desired: &Desired| guarded.node.netns.run(|| node.publish(desired));

    // The first one that works is without `late`, which is not guarded then.
    let all = desired(&topology, 0, true);
    let some = without_late(&all);
    publish(&some).unwrap();
    assert!(web.client().tcp(server.addr()).unwrap().is_answered());
    let before = guarded.read();

    let mut broken = desired(&topology, 0, false);
    for endpoint in &mut broken.endpoints {
        if endpoint.name.workload == "db" {
            endpoint.link = "nosuch0".to_owned();
        }
    }
    let error = publish(&broken).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, NodeError::Link { .. }) && text.contains("nosuch0") && text.contains("shop/db"), "{text}");
    assert_eq!(guarded.read(), before, "`late` is not guarded either");
    assert!(web.client().tcp(server.addr()).unwrap().is_answered());

    // Endpoints come and go.
    publish(&all).unwrap();
    assert_eq!(guarded.read().endpoints.len(), 3);
    publish(&some).unwrap();
    assert_eq!(guarded.read().links, before.links);
    publish(&Desired { overlays: Vec::new(), ..some.clone() }).unwrap();
    let status = guarded.read();
    assert!(!traces(guarded.node).contains("table inet bulkhead"));
    assert!(status.links.iter().all(|link| link.guard.ends_with("workload")), "{:?}", status.links);

    let many = Desired {
        overlays: vec![Overlay {
            own: (0..9).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
            ..some.overlays[0].clone()
        }],
        ..some
    };
    let why = refused(guarded.node.netns.run(|| node.publish(&many)));
    assert!(why.contains("needs 9 own VTEP addresses, 8 are configured"), "{why}");
}

/// Links whose containers wait are shut while the tables are written, and stay so when nothing comes of it. Who runs already is never shut.
#[test]
fn those_who_wait_are_shut_while_the_tables_are_written() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("db", 0).build().unwrap();
    let [web, db] = ["web", "db"].map(|name| topology.workload(name));
    let guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let mut node = guarded.open(BUDGET).unwrap();
    let server = TcpEcho::start(&db.netns, (db.v4, 5432).into()).unwrap();
    let call = || web.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
    let all = desired(&topology, 0, true);
    let base = guarded.directory.0.clone();
    let hanging = move || -> Vec<(String, String)> {
        let attached = kernel::attached(&base).unwrap().into_iter();
        let attached = attached.map(|status| (status.link, status.guard));
        let mut hanging: Vec<_> = attached.filter(|(_, guard)| guard.ends_with("workload")).collect();
        hanging.sort();
        hanging
    };
    let shut = |link: &str| {
        ["tcx egress to_workload", "tcx ingress from_workload"].map(|way| (link.to_owned(), way.to_owned()))
    };
    // A publish that ends before anything is in force, and what hangs on links when it does.
    let mut stopped = |held: &[&str], desired: &Desired, expected: usize| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (tell, look) = (Arc::clone(&seen), hanging.clone());
        node.publisher().set_hook(Some(Box::new(move |_| {
            let begin = Instant::now();
            // What was begun hangs at last; what was not begun has had the time to.
            while begin.elapsed() < if expected > 0 { PATIENCE } else { BRIEF } && look().len() != expected.max(1) {
                thread::sleep(Duration::from_millis(10));
            }
            *tell.lock().unwrap() = look();
            ControlFlow::Break(())
        })));
        node.hold(held.iter().map(|link| (*link).to_owned()).collect());
        let why = refused(guarded.node.netns.run(|| node.publish(desired)));
        assert!(why.contains("stopped at Prepared"), "{why}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(guarded.node.netns.run(&hanging), seen, "what is shut stays so");
        seen
    };
    assert_eq!(stopped(&[], &all, 0), []);
    assert_eq!(stopped(&["nosuch0"], &all, 0), []);
    assert_eq!(
        stopped(&[&web.link.name], &Desired { manner: Manner { observe: true, direct: false }, ..all.clone() }, 0),
        [],
        "such a node drops nothing"
    );
    assert!(call(), "nothing is in force yet");
    assert_eq!(stopped(&[&web.link.name], &all, 2), shut(&web.link.name));
    assert!(!call(), "a container whose policy did not come says nothing");

    node.publisher().set_hook(None);
    node.hold([web.link.name.clone()].into());
    guarded.node.netns.run(|| node.publish(&all)).unwrap();
    assert!(guarded.read().endpoints.iter().all(|endpoint| endpoint.attached), "{:?}", guarded.read());
    assert!(call());
    // Who is guarded already is not shut.
    guarded.node.netns.run(|| node.publish(&desired(&topology, 0, false))).unwrap();
    assert!(!call());
    guarded.node.netns.run(|| node.publish(&all)).unwrap();
    assert!(call());
}

/// Who had a guard and is no endpoint any more is shut in the place of the guard where that was asked for, until it is one again, and else let go.
#[test]
fn who_is_kept_shut_is_not_let_go() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    for classifiers in [Classifiers::Auto, Classifiers::Clsact] {
        let topology = Topology::builder().nodes(2).workload("web", 0).workload("late", 0).build().unwrap();
        let [web, late] = ["web", "late"].map(|name| topology.workload(name));
        let mut guarded = Guarded::new(topology.node(0), XdpMode::Off);
        guarded.classifiers = classifiers;
        // Who has no guard reaches the node, which no endpoint may.
        let server = TcpEcho::start(&guarded.node.netns, (guarded.node.overlay4.gateway, 9999).into()).unwrap();
        let is_open = || late.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
        assert!(is_open());
        let (all, some) = (desired(&topology, 0, true), without_late(&desired(&topology, 0, true)));
        let mut node = guarded.open(BUDGET).unwrap();
        guarded.node.netns.run(|| node.publish(&all)).unwrap();
        drop(node);

        let mut node = guarded.open(BUDGET).unwrap();
        let stands = |node: &mut KernelNode, workload: &Workload| {
            let links = guarded.node.netns.run(|| node.containers()).unwrap().links;
            let found = links.into_iter().find(|found| found.link == workload.link.name).unwrap();
            (found.guarded, found.shut)
        };
        assert_eq!(stands(&mut node, late), (true, false), "{classifiers:?}");
        // Endpoints are not shut, and nor is what is not there.
        node.keep_shut([late.link.name.as_str(), &web.link.name, "nosuch0"].map(str::to_owned).into());
        guarded.node.netns.run(|| node.publish(&some)).unwrap();
        node.keep_shut(BTreeSet::new());
        assert_eq!([late, web].map(|of| stands(&mut node, of)), [(false, true), (true, false)], "{classifiers:?}");
        assert!(!is_open(), "{classifiers:?}");
        guarded.node.netns.run(|| node.publish(&some)).unwrap();
        assert!(!is_open(), "{classifiers:?}");

        guarded.node.netns.run(|| node.publish(&all)).unwrap();
        assert_eq!(stands(&mut node, late), (true, false), "{classifiers:?}");
        assert!(!is_open(), "{classifiers:?}");
        guarded.node.netns.run(|| node.publish(&some)).unwrap();
        assert_eq!(stands(&mut node, late), (false, false), "{classifiers:?}");
        assert!(is_open(), "{classifiers:?}");
    }
}

/// Whose guard stands and cannot be put up anew is shut in its place, by what hangs there already, and guarded again as soon as that works.
#[test]
fn who_cannot_be_guarded_any_more_is_shut_in_place_of_the_guard() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("late", 0).build().unwrap();
    let [web, late] = ["web", "late"].map(|name| topology.workload(name));
    let mut guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let server = TcpEcho::start(&guarded.node.netns, (guarded.node.overlay4.gateway, 9999).into()).unwrap();
    let is_open = || late.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
    let (all, some) = (desired(&topology, 0, true), without_late(&desired(&topology, 0, true)));
    let mut node = guarded.open(BUDGET).unwrap();
    guarded.node.netns.run(|| node.publish(&all)).unwrap();
    drop(node);
    assert!(!is_open());

    // The next agent uses clsact, which this excludes.
    let qdisc = |what: &str| {
        let arguments = ["qdisc", what, "dev", &late.link.name, "ingress"];
        assert!(topology.node(0).netns.command("tc").args(arguments).status().unwrap().success(), "{what}");
    };
    qdisc("add");
    guarded.classifiers = Classifiers::Clsact;
    let mut node = guarded.open(BUDGET).unwrap();
    let publish = |node: &mut KernelNode, desired: &Desired| guarded.node.netns.run(|| node.publish(desired));
    let refused = publish(&mut node, &all).unwrap_err();
    assert!(matches!(&refused, NodeError::Link { link, .. } if *link == late.link.name), "{refused}");
    node.keep_shut([late.link.name.clone(), web.link.name.clone()].into());
    for again in [false, true] {
        let published = publish(&mut node, &some).unwrap();
        assert_eq!(published.shut, [late.link.name.clone()].into(), "again: {again}");
        assert!(!is_open(), "again: {again}");
    }
    node.keep_shut(BTreeSet::new());

    qdisc("del");
    assert_eq!(publish(&mut node, &all).unwrap().shut, BTreeSet::new());
    assert!(guarded.read().endpoints.iter().all(|endpoint| endpoint.attached), "{:?}", guarded.read());
    assert!(!is_open());
    publish(&mut node, &some).unwrap();
    assert!(is_open(), "nobody asked for it to be kept shut");
}

/// Whoever was shut until a publish that guards him, and has his guard when that fails for another reason, is not let go by the one that takes it back.
#[test]
fn who_was_shut_is_not_let_go_by_a_publish_that_failed() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("late", 0).build().unwrap();
    let late = topology.workload("late");
    let guarded = Guarded::new(topology.node(0), XdpMode::Generic);
    let netns = &guarded.node.netns;
    let server = TcpEcho::start(netns, (guarded.node.overlay4.gateway, 9999).into()).unwrap();
    let is_open = || late.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
    let (all, some) = (desired(&topology, 0, true), without_late(&desired(&topology, 0, true)));
    let mut node = guarded.open(BUDGET).unwrap();
    let publish = |node: &mut KernelNode, desired: &Desired| netns.run(|| node.publish(desired));
    let stands = |node: &mut KernelNode| {
        let links = netns.run(|| node.containers()).unwrap().links;
        let found = links.into_iter().find(|found| found.index == late.link.index).unwrap();
        (found.guarded, found.shut)
    };
    // Somebody's XDP program, where ours has been taken away.
    let (pins, others) = (guarded.directory.pins(), Directory::new());
    let (maps, theirs) = (Maps::create(&others.pins(), &SLOTS).unwrap(), Links::new(&others.pins(), Classifiers::Auto));
    let link = guarded.node.underlay.link.name.clone();
    let guard = Guard { link, hook: Hook::XdpGeneric, program: UNDERLAY, value: 0 };
    for held in [false, true] {
        publish(&mut node, &some).unwrap();
        assert!(is_open());
        if held {
            node.hold([late.link.name.clone()].into());
        } else {
            netns.run(|| node.shut(&late.link.name)).unwrap();
        }
        let ours = pins.names(Kind::Link).unwrap().into_iter().find(|name| name.ends_with("xdp_generic")).unwrap();
        sys::link_detach(&sys::obj_get(&pins.path(Kind::Link, &ours)).unwrap()).unwrap();
        netns.run(|| theirs.attach(&maps, &guard)).unwrap();
        assert_eq!(netns.run(|| node.status()).unwrap().missing.len(), 1);
        for _ in 0..2 {
            let why = refused(publish(&mut node, &all));
            assert!(why.contains("another XDP program is on the link"), "{why}");
            assert_eq!(stands(&mut node), (true, false), "held: {held}");
            node.hold(BTreeSet::new());
        }
        netns.run(|| theirs.detach_all()).unwrap();
        publish(&mut node, &some).unwrap();
        assert_eq!(stands(&mut node), (false, true), "held: {held}");
        assert!(!is_open(), "held: {held}");
        // Who has been an endpoint since is let go as anybody else.
        publish(&mut node, &all).unwrap();
        publish(&mut node, &some).unwrap();
    }
}

/// A container gets its addresses one by one, and may be looked at in between: who it is, is asked of all of them as long as nobody knows.
#[test]
fn addresses_are_read_until_their_container_is_guarded() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("late", 0).build().unwrap();
    let guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let mut node = guarded.open(BUDGET).unwrap();
    guarded.node.netns.run(|| node.publish(&without_late(&desired(&topology, 0, true)))).unwrap();
    let [web, late] = ["web", "late"].map(|name| topology.workload(name));
    let mut addresses = |of: &Workload| {
        let links = guarded.node.netns.run(|| node.containers()).unwrap().links;
        links.into_iter().find(|found| found.link == of.link.name).unwrap().addresses
    };
    let before = [web, late].map(&mut addresses);
    let more: IpAddr = "2001:db8::99".parse().unwrap();
    for of in [web, late] {
        let words = ["address", "add", "2001:db8::99/128", "dev", "eth0", "nodad"];
        assert!(of.netns.command("ip").args(words).status().unwrap().success());
    }
    assert_eq!(addresses(web), before[0], "that is known");
    let now = addresses(late);
    assert!(now.contains(&more) && now.len() == before[1].len() + 1, "{now:?}");
}

/// A link that is renamed is the same link: it goes on with what guards it where somebody asks for it by its new name, and is shut where nobody does.
#[test]
fn a_link_that_is_renamed_is_never_let_go() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    for classifiers in [Classifiers::Auto, Classifiers::Clsact] {
        let topology = Topology::builder().nodes(2).workload("web", 0).workload("late", 0).build().unwrap();
        let late = topology.workload("late");
        let mut guarded = Guarded::new(topology.node(0), XdpMode::Off);
        guarded.classifiers = classifiers;
        let netns = &guarded.node.netns;
        let server = TcpEcho::start(netns, (guarded.node.overlay4.gateway, 9999).into()).unwrap();
        let is_open = || late.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
        assert!(is_open());
        let (all, some) = (desired(&topology, 0, true), without_late(&desired(&topology, 0, true)));
        let called = |name: &str| {
            let mut all = all.clone();
            let mut endpoints = all.endpoints.iter_mut();
            name.clone_into(&mut endpoints.find(|endpoint| endpoint.name.workload == "late").unwrap().link);
            all
        };
        let publish = |node: &mut KernelNode, desired: &Desired| netns.run(|| node.publish(desired));
        // Whether it is guarded, and shut.
        let stands = |node: &mut KernelNode| {
            let links = netns.run(|| node.containers()).unwrap().links;
            let found = links.into_iter().find(|found| found.index == late.link.index).unwrap();
            (found.guarded, found.shut)
        };
        let pinned = |name: &str| {
            let names = guarded.directory.pins().names(Kind::Link).unwrap();
            names.into_iter().filter(|pin| pin.starts_with(&format!("{name}-"))).count()
        };
        let mut node = guarded.open(BUDGET).unwrap();
        publish(&mut node, &all).unwrap();
        let before = pinned(&late.link.name);

        // It has the same guard by its new name, and nothing beside.
        netns.rename_link(&late.link.name, "second0").unwrap();
        let known = BTreeSet::from([(late.link.name.clone(), late.link.index)]);
        assert_eq!(netns.run(|| node.gone(&known)).unwrap(), BTreeSet::new());
        let renamed = netns.run(|| node.renamed(&known)).unwrap();
        assert_eq!(renamed.into_values().collect::<Vec<_>>(), ["second0"]);
        publish(&mut node, &called("second0")).unwrap();
        assert_eq!([late.link.name.as_str(), "second0"].map(pinned), [0, before], "{classifiers:?}");
        assert_eq!(stands(&mut node), (true, false), "{classifiers:?}");
        assert!(guarded.read().endpoints.iter().all(|endpoint| endpoint.attached), "{:?}", guarded.read());
        assert!(!is_open(), "{classifiers:?}");
        drop(node);

        // While no agent runs: by the name that it has, then by one that it had.
        netns.rename_link("second0", "third0").unwrap();
        for (now, asked) in [("third0", "third0"), ("fourth0", "third0")] {
            if now != asked {
                netns.rename_link(asked, now).unwrap();
            }
            let mut node = guarded.open(BUDGET).unwrap();
            assert_eq!(stands(&mut node), (true, false), "{classifiers:?}, {now}");
            node.keep_shut([asked.to_owned()].into());
            for _ in 0..2 {
                let published = publish(&mut node, &some).unwrap();
                assert_eq!(published.shut, [asked.to_owned()].into(), "{classifiers:?}, {now}");
                assert_eq!(stands(&mut node), (false, true), "{classifiers:?}, {now}");
                assert!(!is_open(), "{classifiers:?}, {now}");
            }
            node.keep_shut(BTreeSet::new());
            publish(&mut node, &called(now)).unwrap();
            assert_eq!(stands(&mut node), (true, false), "{classifiers:?}, {now}");
        }

        // Nobody asks for it by any name.
        netns.rename_link("fourth0", "fifth0").unwrap();
        let mut node = guarded.open(BUDGET).unwrap();
        for _ in 0..2 {
            publish(&mut node, &some).unwrap();
            assert_eq!(stands(&mut node), (false, true), "{classifiers:?}");
            assert!(!is_open(), "{classifiers:?}");
        }
        netns.run(|| node.unshut("fifth0")).unwrap();
        assert!(is_open(), "{classifiers:?}: where nothing is to be dropped it is opened");

        // To take everything away is to take that away too.
        publish(&mut node, &called("fifth0")).unwrap();
        assert!(!is_open(), "{classifiers:?}");
        drop(node);
        netns.rename_link("fifth0", "sixth0").unwrap();
        netns.run(|| kernel::detach(&guarded.directory.0)).unwrap();
        assert!(is_open(), "{classifiers:?}");
    }
}

/// What stood after a publish is not looked at by the next one: who looks is [`Node::status`], and what it misses is put up again.
#[test]
fn what_somebody_took_away_is_missed_and_put_up_again() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology = Topology::builder().nodes(2).workload("web", 0).workload("db", 0).build().unwrap();
    let [web, db] = ["web", "db"].map(|name| topology.workload(name));
    let guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let mut node = guarded.open(BUDGET).unwrap();
    let (open, shut) = (desired(&topology, 0, true), desired(&topology, 0, false));
    let server = TcpEcho::start(&db.netns, (db.v4, 5432).into()).unwrap();
    let call = || web.client().deadline(BRIEF).tcp(server.addr()).unwrap().is_answered();
    guarded.node.netns.run(|| node.publish(&open)).unwrap();
    let observer = Mutex::new(guarded.node.netns.run(|| node.observer()).unwrap());
    let missing = || -> Vec<String> {
        let status = guarded.node.netns.run(|| observer.lock().unwrap().status()).unwrap();
        status.missing.iter().map(|guard| format!("{} {}", guard.link, guard.guard)).collect()
    };
    assert_eq!(missing(), Vec::<String>::new());

    let pins = guarded.directory.pins();
    let name = |name: &String| name.starts_with(&web.link.name) && name.ends_with("tcx_ingress");
    let pin = pins.names(Kind::Link).unwrap().into_iter().find(name).unwrap();
    pins.remove(Kind::Link, &pin).unwrap();
    guarded.node.netns.run(|| node.publish(&shut)).unwrap();
    let expected = [format!("{} ingress from_workload", web.link.name)];
    assert_eq!(missing(), expected, "a publish did not look");
    assert!(!call(), "the other side judges too");
    assert_eq!(guarded.node.netns.run(|| node.status()).unwrap().missing.len(), 1);
    guarded.node.netns.run(|| node.publish(&shut)).unwrap();
    assert_eq!(missing(), Vec::<String>::new());
    guarded.node.netns.run(|| node.publish(&open)).unwrap();
    assert!(call());
}

/// Everything that a publish may change: entries of all maps but those that the programs write to, pins, links, the input rule, files.
fn everything(guarded: &Guarded<'_>) -> impl PartialEq + use<> {
    let programs_write = ["BINDINGS", "BUDGET", "CASE4", "CASE6", "CONTACTS", "COUNTERS", "ENDPOINT_COUNTERS"];
    let pins = guarded.directory.pins();
    let maps = Maps::open(&pins).unwrap();
    let names = pins.names(Kind::Map).unwrap();
    let entries = |name: &String| {
        let map = maps.get(name).unwrap();
        let (keys, values) = map.entries().unwrap();
        let keys = keys.chunks(map.shape().key_size as usize).map(<[u8]>::to_vec);
        (name.clone(), keys.zip(values.chunks(map.value_len()).map(<[u8]>::to_vec)).collect::<BTreeMap<_, _>>())
    };
    let tables: BTreeMap<_, _> =
        names.iter().filter(|name| !programs_write.contains(&name.as_str())).map(entries).collect();
    let pinned = [Kind::Map, Kind::Program, Kind::Stub, Kind::Link].map(|kind| pins.names(kind).unwrap());
    let file = |file: std::io::Result<fs::DirEntry>| {
        let file = file.unwrap();
        (file.file_name(), fs::read(file.path()).unwrap())
    };
    let files: BTreeMap<_, _> = fs::read_dir(guarded.state.path()).unwrap().map(file).collect();
    (tables, pinned, files, guarded.read().links, traces(guarded.node))
}

#[test]
fn a_rehearsal_changes_no_map_and_says_what_the_publish_then_does() {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let topology =
        Topology::builder().nodes(2).workload("web", 0).workload("db", 0).workload("late", 0).build().unwrap();
    let guarded = Guarded::new(topology.node(0), XdpMode::Off);
    let mut node = guarded.open(BUDGET).unwrap();
    let all = desired(&topology, 0, false);
    let some = without_late(&desired(&topology, 0, true));
    guarded.node.netns.run(|| node.publish(&some)).unwrap();

    for next in [&all, &some, &Desired::default(), &all] {
        let before = everything(&guarded);
        let rehearsal = guarded.node.netns.run(|| node.rehearse(next)).unwrap();
        assert!(everything(&guarded) == before, "a rehearsal shows");
        let Published { writes, grace_periods, .. } = guarded.node.netns.run(|| node.publish(next)).unwrap();
        assert!(writes > 0 && everything(&guarded) != before, "a publish shows");
        assert_eq!((rehearsal.writes, rehearsal.grace_periods), (writes, grace_periods));
        let mut tables = guarded.read().tables;
        tables.retain(|table| table.table != "CONTACTS");
        assert_eq!(rehearsal.tables, tables);
    }

    // What is refused is refused in the same words, by the publisher, by the settings of the programs, and by what the links say.
    let many = (0..SLOTS.prefixes)
        .map(|n| ((0, ipnetwork::IpNetwork::V4(format!("10.{n}.0.0/16").parse().unwrap())), Prefix::default()));
    let prefixes = Desired { prefixes: all.prefixes.clone().into_iter().chain(many).collect(), ..all.clone() };
    let mut vteps = all.clone();
    vteps.overlays[0].own = (0..9).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let mut link = all.clone();
    link.endpoints[0].link = "nosuch0".to_owned();
    for (next, why) in
        [(prefixes, "64 are configured"), (vteps, "own VTEP addresses, 8 are configured"), (link, "nosuch0")]
    {
        let before = everything(&guarded);
        let rehearsed = guarded.node.netns.run(|| node.rehearse(&next)).unwrap_err();
        assert!(everything(&guarded) == before, "a rehearsal shows");
        let published = guarded.node.netns.run(|| node.publish(&next)).unwrap_err();
        assert_eq!(format!("{rehearsed:?}"), format!("{published:?}"));
        assert!(published.to_string().contains(why), "{published}");
    }
}
