//! What does not fit is refused as a full compile refuses it, and changes nothing.

use std::sync::Arc;

use bulkhead_controller::{
    compile::{Compiler, Extent, Misfits, compile},
    diagnostic::source,
    intent::Cidrs,
    labels::{Requirement, Selector},
    model::{Model, Peer},
    policy,
    ports::{Ports, Transport},
};
use bulkhead_dataplane::desired::Desired;
use bulkhead_ebpf::abi::Direction;

use crate::{
    canonical::Canonical,
    cluster::{Cluster, Event, name, policy, service, workload},
};

fn refused(event: &Event, says: &str) {
    let local = Event::Workload(name("a", "w0"), workload("n0", "web", &["10.0.0.2"], "veth0"));
    let cluster = Cluster::new().with(&local);
    let mut compiler = cluster.compiler();
    let before = compiler.desired().clone();
    let refusal = cluster.tell(&mut compiler, event).unwrap().unwrap_err();
    assert!(refusal.to_string().contains(says), "{refusal}");
    assert_eq!(compiler.desired(), &before);

    let with = cluster.with(event);
    let whole = with.compile(&with.model().unwrap());
    assert_eq!(whole, Err(refusal));
    // What comes next finds things as they were.
    let next = Event::Workload(name("a", "w1"), workload("n0", "web", &["10.0.0.3"], "veth1"));
    let change = cluster.tell(&mut compiler, &next).unwrap().unwrap_or_else(|found| panic!("{found}"));
    assert_eq!((change.endpoints.set.len(), change.sets.len()), (1, 0), "the other one has the same sets");
}

#[test]
fn too_many_intervals() {
    let ports = (1..1600).step_by(2).map(|port| Ports::one(Transport::Tcp, port)).collect();
    let rules = vec![(Direction::Ingress, vec![Peer::Any], ports)];
    refused(&Event::Policy(policy(&service("a", "many"), Selector::everybody(), &rules)), "intervals, 784 fit");
}

#[test]
fn the_address_of_a_node() {
    let pod = workload("n1", "web", &["192.0.2.12"], "");
    refused(&Event::Workload(name("c", "w0"), pod), "is an address of a node");
}

#[test]
fn too_many_ends() {
    let event = Event::Replace { documents: [5].into(), devices: false, later: false };
    let mut cluster = Cluster::new();
    let mut odd = workload("n0", "web", &["10.0.0.2"], "veth0");
    Arc::make_mut(&mut odd.labels).insert("tier".to_owned(), "odd".to_owned());
    cluster.workloads.workloads.insert(name("a", "w0"), Arc::new(odd));
    let mut compiler = cluster.compiler();
    let before = compiler.desired().clone();
    let refusal = cluster.tell(&mut compiler, &event).unwrap().unwrap_err();
    assert!(refusal.to_string().contains("8 times, 7 fit"), "{refusal}");
    assert_eq!(compiler.desired(), &before);
}

/// Each of two policies fits beside the other as that was, but the new one not beside the old one.
#[test]
fn what_fits_in_the_end_alone_is_compiled_whole() {
    let local = Event::Workload(name("a", "w0"), workload("n0", "web", &["10.0.0.2"], "veth0"));
    let with = |first: u16, second: u16| {
        let ports = |from, count: u16| (0..count).map(|at| Ports::one(Transport::Tcp, from + 2 * at)).collect();
        let rules = |ports| vec![(Direction::Ingress, vec![Peer::Any], ports)];
        let first = policy(&service("a", "first"), Selector::everybody(), &rules(ports(1, first)));
        let second = policy(&service("a", "second"), Selector::everybody(), &rules(ports(1001, second)));
        Cluster::new().with(&local).with(&Event::Policy(first)).with(&Event::Policy(second))
    };
    let (before, after) = (with(1, 300), with(300, 1));
    let mut compiler = before.compiler();
    let follow = |compiler: &mut Compiler, to: &Cluster| {
        let model = to.model().unwrap_or_else(|found| panic!("{found}"));
        let extent = to.follow(compiler, Arc::new(model)).unwrap_or_else(|found| panic!("{found}"));
        let whole = to.compile(compiler.model()).unwrap_or_else(|found| panic!("{found}"));
        Canonical::of(compiler.desired()).assert_is(&Canonical::of(&whole), "afterwards");
        extent
    };
    compiler.begin();
    assert_eq!(follow(&mut compiler, &after), Extent::Whole);
    compiler.go_back();
    let whole = before.compile(compiler.model()).unwrap_or_else(|found| panic!("{found}"));
    Canonical::of(compiler.desired()).assert_is(&Canonical::of(&whole), "taken back");
    // The other way what goes makes room.
    let mut compiler = after.compiler();
    assert_eq!(follow(&mut compiler, &before), Extent::Changes);
}

/// A policy that is refused as it is now goes on as it was, and may be changed from there.
#[test]
fn what_is_refused_leaves_what_it_said() {
    let one = |at: &str, address: &str| workload("n0", "web", &[address], &format!("veth{at}"));
    let saying = |count: u16| {
        let ports = (0..count).map(|at| Ports::one(Transport::Tcp, 1 + 2 * at)).collect();
        Event::Policy(policy(
            &service("a", "first"),
            Selector::everybody(),
            &[(Direction::Ingress, vec![Peer::Any], ports)],
        ))
    };
    let beside = policy(
        &service("a", "second"),
        Selector::everybody(),
        &[(Direction::Egress, vec![Peer::Any], vec![Ports::one(Transport::Udp, 53)])],
    );
    let mut cluster = Cluster::new()
        .with(&Event::Workload(name("a", "w0"), one("0", "10.0.0.2")))
        .with(&saying(1))
        .with(&Event::Policy(beside));
    let mut compiler = cluster.compiler();
    cluster.tell(&mut compiler, &saying(500)).unwrap().unwrap_err();
    let events = [
        Event::Workload(name("a", "w1"), one("1", "10.0.0.3")),
        saying(2),
        Event::NoPolicy(service("a", "second")),
        Event::NoPolicy(service("a", "first")),
        saying(3),
    ];
    for event in events {
        cluster.tell(&mut compiler, &event).unwrap().unwrap_or_else(|found| panic!("{found}"));
        cluster = cluster.with(&event);
        let whole = cluster.compile(compiler.model()).unwrap_or_else(|found| panic!("{found}"));
        Canonical::of(compiler.desired()).assert_is(&Canonical::of(&whole), &format!("after {event:?}"));
    }
}

/// Where what does not fit is shut, others are as they would be without it, and the way back leads to what was.
#[test]
fn what_is_shut_touches_nobody_else() {
    let pod = |app: &str, at: usize| {
        let event = workload("n0", app, &[&format!("10.0.0.{}", at + 2)], &format!("veth{at}"));
        Event::Workload(name("a", &format!("w{at}")), event)
    };
    let selecting = |apps: [&str; 2]| -> Selector {
        [Requirement::In("app".to_owned(), apps.map(str::to_owned).into())].into_iter().collect()
    };
    let to = |name: &str, apps: [&str; 2], first: u16| {
        let ports = (0..300).map(|at| Ports::one(Transport::Tcp, first + 2 * at)).collect();
        Event::Policy(policy(&service("a", name), selecting(apps), &[(Direction::Ingress, vec![Peer::Any], ports)]))
    };
    let (low, high) = (to("low", ["low", "both"], 1001), to("high", ["high", "both"], 3001));
    // One prefix, of which another policy makes an exception, and a third one speaks too, with ports by name, so that each kind has its own selectors.
    let from = |name: &str, apps: [&str; 2], except: &[&str], cidr: &str, ports: Ports| {
        let net = |text: &&str| text.parse().unwrap();
        let cidrs = Cidrs { cidrs: vec![net(&cidr)], except: except.iter().map(net).collect() };
        let rules = [(Direction::Ingress, vec![Peer::Cidrs(cidrs)], vec![ports])];
        Event::Policy(policy(&service("a", name), selecting(apps), &rules))
    };
    let outer = from("outer", ["high", "high"], &["198.51.0.0/16"], "198.0.0.0/8", Ports::Any);
    let inner = from("inner", ["both", "both"], &[], "198.51.0.0/16", Ports::named("http"));
    let good = Cluster::new().with(&low).with(&high).with(&outer).with(&inner);
    let good = good.with(&pod("low", 0)).with(&pod("high", 1));
    let bad = good.with(&pod("both", 0));
    let without = good.with(&Event::NoWorkload(name("a", "w0")));
    let model = |cluster: &Cluster| Arc::new(cluster.model().unwrap_or_else(|found| panic!("{found}")));
    let sets_of = |desired: &Desired, at: &str| {
        let endpoint = desired.endpoints.iter().find(|endpoint| endpoint.name.workload == at).unwrap();
        [endpoint.views[0].ingress, endpoint.views[0].egress].map(|set| desired.sets[set.0 as usize].classes.clone())
    };

    let mut compiler = good.compiler();
    let before = compiler.desired().clone();
    let why = bad.follow(&mut compiler, model(&bad)).unwrap_err();
    assert_eq!((compiler.desired(), compiler.shut().count()), (&before, 0));
    compiler.begin();
    compiler.follow(model(&bad), &bad.discovered, bad.now, Misfits::Any).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!((compiler.shut().collect::<Vec<_>>(), compiler.why_shut()), (vec![&name("a", "w0")], why.clone()));
    assert_eq!(sets_of(compiler.desired(), "w1").map(|set| set[0].len()), [601, 1], "as before");
    assert_eq!(sets_of(compiler.desired(), "w0").map(|set| set[0].len()), [1, 1]);
    let others = without.compile(&model(&without)).unwrap_or_else(|found| panic!("{found}"));
    assert!(compiler.desired().prefixes.keys().eq(others.prefixes.keys()), "{:?}", compiler.desired().prefixes.keys());
    let walls: Vec<_> = sets_of(compiler.desired(), "w0").iter().map(|set| set[0][0].entries.len()).collect();
    assert_eq!(walls, [2, 1], "its node and nobody; nobody");
    compiler.go_back();
    assert_eq!(compiler.shut().count(), 0);
    let whole = good.compile(compiler.model()).unwrap_or_else(|found| panic!("{found}"));
    Canonical::of(compiler.desired()).assert_is(&Canonical::of(&whole), "taken back");

    // What is shut is not taken for good later, whatever is asked.
    compiler.follow(model(&bad), &bad.discovered, bad.now, Misfits::Any).unwrap_or_else(|found| panic!("{found}"));
    let same = Arc::clone(compiler.model());
    assert_eq!(bad.follow(&mut compiler, same), Err(why));
    // Nor does it keep anybody from what comes next.
    for (then, shut) in [(bad.with(&pod("low", 2)), 1), (without, 0)] {
        let done = compiler.follow(model(&then), &then.discovered, then.now, Misfits::Any);
        assert_eq!((done, compiler.shut().count()), (Ok(Extent::Changes), shut));
    }
    let whole = compile(compiler.model(), "n0", &good.discovered, good.now).unwrap_or_else(|found| panic!("{found}"));
    Canonical::of(compiler.desired()).assert_is(&Canonical::of(&whole), "without it");
}

/// Whoever is only reported about is not cut off because all that would be reported does not fit.
#[test]
fn what_is_audited_alone_shuts_nobody() {
    let guard = |name: &str, priority: u16, mode: &str| {
        let ports: Vec<_> = (0..300).map(|at| (priority * 1000 + 2 * at).to_string()).collect();
        let rule = format!("  - deny: {{ from: any, ports: [{}] }}\n", ports.join(", "));
        let text =
            format!("apiVersion: bulkhead/v1\nkind: Guard\nname: {name}\npriority: {priority}\n{mode}rules:\n{rule}");
        policy::parse(&source(name, text)).unwrap_or_else(|found| panic!("{found}"))
    };
    let audit = "mode: audit\n";
    for (modes, walls) in [([audit, audit], [1, 1]), ([audit, ""], [2, 1])] {
        let cluster =
            Cluster::new().with(&Event::Workload(name("a", "w0"), workload("n0", "web", &["10.0.0.2"], "veth0")));
        let guards = [guard("g", 1, modes[0]), guard("h", 3, modes[1])].concat();
        let model = Model::build(&guards, &cluster.workloads).unwrap_or_else(|found| panic!("{found}"));
        let compiler = Compiler::with(Arc::new(model), "n0", cluster.discovered.clone(), cluster.now, Misfits::Any);
        let compiler = compiler.unwrap_or_else(|found| panic!("{found}"));
        assert_eq!(compiler.shut().count(), 1);
        let desired = compiler.desired();
        let view = &desired.endpoints.iter().find(|endpoint| endpoint.name.workload == "w0").unwrap().views[0];
        let sets = [view.ingress, view.egress].map(|set| &desired.sets[set.0 as usize]);
        assert_eq!(sets.map(|set| set.classes[0][0].entries.len()), walls, "{modes:?}");
        assert_eq!(sets.map(|set| set.isolated), [walls[0] == 2, false]);
    }
}
