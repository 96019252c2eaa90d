//! The specification, rule by rule, as the model reads it. The product is held against the model; this is what holds the model.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_model::{
    Machine, Mode, Origin, Packet, Prefix, Verdict, World,
    intent::{Intent, Line, Name, Service},
    packet::{Arp, Body, ErrorKind, Fragment, Ip, Message, Neighbour, Transport, flag, link_local},
    policy::{Action, Cidrs, Direction, Guard, Judgement, Level, Ports, Rule, Subject, Want, Whom},
    reason,
    world::{Backend, Endpoint, EndpointId, Entity, Front, FrontPort, Node, NodeSegment, Protocol, Workload},
    yaml,
};

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(namespace: &str, name: &str, app: &str, node: usize, addresses: &[&str]) -> Workload {
    let last = addresses[0].rsplit(['.', ':']).next().unwrap().parse().unwrap();
    Workload {
        namespace: namespace.into(),
        name: name.into(),
        labels: [("app".into(), app.into())].into(),
        node,
        ports: [("http".into(), (8080, Protocol::Tcp))].into(),
        endpoints: vec![Endpoint {
            segment: 1,
            addresses: addresses.iter().map(|text| address(text)).collect(),
            mac: [2, 0x42, 0, 0, 0, last],
            link: format!("veth-{name}"),
        }],
    }
}

fn node(n: u8) -> Node {
    Node {
        name: format!("n{n}"),
        addresses: vec![IpAddr::from([192, 0, 2, n])],
        segments: vec![NodeSegment {
            vni: 1,
            vtep: IpAddr::from([192, 0, 2, n]),
            prefixes: vec![Prefix::literal(&format!("10.244.{n}.0/24")), Prefix::literal(&format!("fd00:{n}::/64"))],
        }],
    }
}

/// web, cart and two databases of `shop`, one of them on the other node, and an operator's workload.
fn shop(intents: Vec<Intent>) -> World {
    World {
        here: 0,
        service_label: "app".into(),
        nodes: vec![node(1), node(2)],
        tunnel_ports: vec![8472],
        resolvers: vec![address("10.96.0.10")],
        namespaces: [
            ("shop".to_owned(), [("tenant".to_owned(), "a".to_owned())].into()),
            ("ops".to_owned(), [("tenant".to_owned(), "b".to_owned())].into()),
        ]
        .into(),
        workloads: vec![
            workload("shop", "web-1", "web", 0, &["10.244.1.5", "fd00:1::5"]),
            workload("shop", "cart-1", "cart", 0, &["10.244.1.6", "fd00:1::6"]),
            workload("shop", "db-1", "db", 0, &["10.244.1.7", "fd00:1::7"]),
            workload("shop", "db-2", "db", 1, &["10.244.2.7", "fd00:2::7"]),
            workload("ops", "backup-1", "backup", 1, &["10.244.2.9", "fd00:2::9"]),
            workload("ops", "free-1", "free", 0, &["10.244.1.9", "fd00:1::9"]),
        ],
        services: vec![],
        policy: vec![Level::Intents(intents)],
    }
}

fn line(peer: Name, ports: Ports) -> Line {
    Line { id: yaml::edge(&peer, &ports), peer, ports }
}

fn own(name: &str) -> Name {
    Name::Own(name.into())
}

const fn tcp(port: u16) -> Ports {
    Ports::Range(Protocol::Tcp, port, port)
}

fn service(accepts: Vec<Line>, calls: Vec<Line>) -> Service {
    Service { accepts, calls, ..Service::default() }
}

fn intent(services: impl IntoIterator<Item = (&'static str, Service)>) -> Intent {
    Intent {
        namespace: "shop".into(),
        external: [(
            "stripe".to_owned(),
            Cidrs {
                cidrs: vec![Prefix::literal("198.51.100.0/24")],
                except: vec![Prefix::literal("198.51.100.13/32")],
            },
        )]
        .into(),
        services: services.into_iter().map(|(name, service)| (name.to_owned(), service)).collect(),
        ..Intent::default()
    }
}

/// The policy of the other tests: world -> web:8443, web -> cart:http, cart -> db:5432 and echo, db -> stripe:443.
fn policy() -> Intent {
    intent([
        (
            "web",
            service(
                vec![line(Name::Entity(Entity::World), tcp(8443))],
                vec![line(own("cart"), Ports::Named("http".into()))],
            ),
        ),
        ("cart", service(vec![], vec![line(own("db"), tcp(5432)), line(own("db"), Ports::Echo)])),
        (
            "db",
            service(
                vec![line(Name::Other("ops".into(), "backup".into()), tcp(5432))],
                vec![line(own("stripe"), tcp(443))],
            ),
        ),
    ])
}

fn id(name: &str) -> EndpointId {
    let namespace = if name.starts_with("free") || name.starts_with("backup") { "ops" } else { "shop" };
    EndpointId { namespace: namespace.into(), workload: name.into(), index: 0 }
}

fn judge(world: &World, name: &str, direction: Direction, peer: &str, want: Want) -> bool {
    judgement(world, name, direction, peer, want, 0).enforced.allow
}

fn judgement(world: &World, name: &str, direction: Direction, peer: &str, want: Want, now: u64) -> Judgement {
    let (workload, endpoint) = world.endpoint(&id(name)).unwrap();
    world.judge(workload, direction, &world.peer(endpoint.segment, address(peer), false), want, now)
}

const fn port(port: u16) -> Want {
    Want::Port(Protocol::Tcp, port)
}

use Direction::{Egress, Ingress};

#[test]
fn a_call_opens_both_ends_and_nothing_else() {
    let world = shop(vec![policy()]);
    for (name, direction, peer, want, allowed) in [
        ("web-1", Egress, "10.244.1.6", port(8080), true),
        ("cart-1", Ingress, "10.244.1.5", port(8080), true),
        ("cart-1", Ingress, "fd00:1::5", port(8080), true),
        ("cart-1", Ingress, "10.244.1.5", port(8081), false),
        ("cart-1", Ingress, "10.244.1.7", port(8080), false),
        ("web-1", Egress, "10.244.1.7", port(5432), false),
        ("cart-1", Egress, "10.244.2.7", port(5432), true),
        ("cart-1", Egress, "10.244.2.7", Want::Icmp(8, 0), true),
        ("cart-1", Egress, "fd00:2::7", Want::Icmp6(128, 0), true),
        ("cart-1", Egress, "10.244.2.7", Want::Icmp(0, 0), false),
        ("cart-1", Egress, "10.244.2.7", Want::Port(Protocol::Udp, 5432), false),
        // Another namespace opens its own wall, or has none.
        ("db-1", Ingress, "10.244.2.9", port(5432), true),
        ("free-1", Egress, "10.244.1.7", port(5432), true),
        ("db-1", Ingress, "10.244.1.9", port(5432), false),
        // Externals have holes.
        ("db-1", Egress, "198.51.100.12", port(443), true),
        ("db-1", Egress, "198.51.100.13", port(443), false),
    ] {
        assert_eq!(judge(&world, name, direction, peer, want), allowed, "{name} {direction:?} {peer} {want:?}");
    }
}

#[test]
fn an_accept_opens_one_end() {
    let world = shop(vec![intent([
        ("web", service(vec![], vec![])),
        ("cart", service(vec![line(own("web"), tcp(80))], vec![])),
    ])]);
    assert!(judge(&world, "cart-1", Ingress, "10.244.1.5", port(80)));
    assert!(!judge(&world, "web-1", Egress, "10.244.1.6", port(80)));
}

#[test]
fn who_is_who() {
    let world = shop(vec![]);
    let is = |text: &str, passing: bool| {
        let peer = world.peer(1, address(text), passing);
        [Entity::World, Entity::Node, Entity::Nodes, Entity::Cluster, Entity::Metadata]
            .into_iter()
            .filter(|entity| peer.is(*entity))
            .map(Entity::name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (peer, passing, entities) in [
        ("203.0.113.1", true, "world"),
        ("2001:db8::77", true, "world"),
        ("10.244.1.5", true, "cluster"),
        // In the overlay's range and nobody's.
        ("10.244.1.99", true, ""),
        ("fd00:2::99", true, ""),
        ("192.0.2.1", false, "node nodes"),
        ("192.0.2.2", false, "nodes"),
        // Masqueraded: nobody knows.
        ("192.0.2.1", true, "world nodes"),
        ("192.0.2.2", true, "world nodes"),
        ("169.254.169.254", false, "metadata"),
        ("fd00:ec2::254", false, "metadata"),
        ("fd20:ce::254", false, "metadata"),
        ("169.254.0.1", true, ""),
        ("fe80::1", true, ""),
        ("127.0.0.1", true, ""),
        ("::1", true, ""),
        ("224.0.0.251", true, ""),
        ("ff02::fb", true, ""),
        ("255.255.255.255", true, ""),
        ("0.0.0.0", true, ""),
        ("::", true, ""),
    ] {
        assert_eq!(is(peer, passing), entities, "{peer} passing {passing}");
    }
    // Another overlay gives out the same addresses.
    assert!(!world.peer(2, address("10.244.1.5"), true).is(Entity::Cluster));
}

fn rule(action: Action, direction: Direction, peers: &[Whom], ports: &[Ports]) -> Rule {
    let peers: Vec<_> = peers.iter().map(|peer| (peer.clone(), None)).collect();
    Rule { action, direction, peers, ports: ports.to_vec(), audit: false, expires: None }
}

fn guard(priority: u32, rules: Vec<Rule>) -> Guard {
    let name = format!("guard{priority}");
    Guard { name, priority, compare: Some("tenant".into()), rules, ..Guard::default() }
}

fn guarded(guards: impl IntoIterator<Item = Guard>, intents: Vec<Intent>) -> World {
    let mut world = shop(intents);
    world.policy.extend(guards.into_iter().map(Level::Guard));
    world
}

fn everyone() -> [Whom; 2] {
    [Whom::Same, Whom::Other]
}

fn service_of(namespace: &str, name: &str) -> Whom {
    Whom::Service(namespace.into(), name.into())
}

#[test]
fn guards_stand_before_intents() {
    let judge = |guards: Vec<Guard>| {
        let world = guarded(guards, vec![policy()]);
        let decision = judgement(&world, "web-1", Ingress, "203.0.113.1", port(8443), 0).enforced;
        (decision.allow, decision.rules.into_iter().collect::<Vec<_>>().join(" "))
    };
    let rule = |action, ports: &[Ports]| rule(action, Ingress, &everyone(), ports);
    let named = |priority: u32, verb: &str| format!("guard guard{priority}: {verb} from other");
    let no = || rule(Action::Deny, &[]);
    assert_eq!(judge(vec![guard(1, vec![no()])]), (false, named(1, "deny")));
    assert_eq!(judge(vec![guard(1, vec![rule(Action::Deny, &[tcp(80), tcp(81)])])]), (true, "world:8443".into()));
    // The first match counts, and a pass leaves the Guard.
    let pass = rule(Action::Pass, &[tcp(80), tcp(8443)]);
    assert_eq!(judge(vec![guard(1, vec![pass.clone(), no()])]), (true, "world:8443".into()));
    let yes = rule(Action::Allow, &[]);
    assert_eq!(judge(vec![guard(1, vec![yes.clone(), no()])]), (true, named(1, "allow")));
    // A pass goes to the next Guard; lower priorities are asked first, wherever they are written.
    assert_eq!(judge(vec![guard(2, vec![no()]), guard(1, vec![pass])]), (false, named(2, "deny")));
    assert_eq!(judge(vec![guard(2, vec![no()]), guard(1, vec![yes.clone()])]), (true, named(1, "allow")));
    // A port beside a peer is that peer's alone.
    let mut beside = no();
    beside.peers = vec![(Whom::Same, None), (Whom::Other, Some(tcp(22)))];
    assert_eq!(judge(vec![guard(1, vec![beside])]), (true, "world:8443".into()));
}

#[test]
fn an_address_that_passes_here_and_is_denied_there() {
    // web is in X and in Y: it passes X, so that Y is not asked, and cart's own policy allows it; db is in Y alone.
    let rules = |x| {
        vec![
            rule(Action::Pass, Ingress, &[service_of("shop", x)], &[]),
            rule(Action::Deny, Ingress, &[Whom::Same], &[]),
        ]
    };
    let cart = |guards| {
        let accepts = vec![line(own("web"), tcp(80)), line(own("db"), tcp(80))];
        let intents = vec![intent([("cart", service(accepts, vec![]))]), intent([("web", service(vec![], vec![]))])];
        let world = guarded(guards, intents);
        ["10.244.1.5", "10.244.1.7"].map(|peer| judge(&world, "cart-1", Ingress, peer, port(80)))
    };
    assert_eq!(cart(vec![]), [true, true]);
    assert_eq!(cart(vec![guard(1, rules("web"))]), [true, false]);
    assert_eq!(cart(vec![guard(1, rules("ghost"))]), [false, false]);
    // Y in the next Guard is asked.
    let mut both = rules("web");
    let second = both.remove(1);
    assert_eq!(cart(vec![guard(1, both), guard(2, vec![second])]), [false, false]);
}

#[test]
fn whom_a_guard_concerns() {
    let subjects: [(Subject, [bool; 3]); 8] = [
        (Subject::default(), [true, true, true]),
        (Subject { namespaces: [("tenant".into(), None)].into(), ..Subject::default() }, [true, true, true]),
        (
            Subject { namespaces: [("tenant".into(), Some("a".into()))].into(), ..Subject::default() },
            [true, true, false],
        ),
        (Subject { namespaces: [("zone".into(), None)].into(), ..Subject::default() }, [false; 3]),
        (Subject { services: vec![("shop".into(), "web".into())], ..Subject::default() }, [true, false, false]),
        (
            Subject {
                services: vec![("shop".into(), "web".into()), ("ops".into(), "free".into())],
                ..Subject::default()
            },
            [true, false, true],
        ),
        (
            Subject { workloads: [("app".into(), Some("cart".into()))].into(), ..Subject::default() },
            [false, true, false],
        ),
        (
            Subject {
                namespaces: [("tenant".into(), Some("b".into()))].into(),
                workloads: [("app".into(), Some("cart".into()))].into(),
                ..Subject::default()
            },
            [false; 3],
        ),
    ];
    for (subject, concerned) in subjects {
        let world = guarded(
            [Guard { subject: subject.clone(), ..guard(1, vec![rule(Action::Deny, Egress, &everyone(), &[])]) }],
            vec![],
        );
        let denied = ["web-1", "cart-1", "free-1"].map(|name| !judge(&world, name, Egress, "203.0.113.1", port(1)));
        assert_eq!(denied, concerned, "{subject:?}");
    }
}

#[test]
fn same_and_other() {
    let mut world = guarded([guard(1, vec![rule(Action::Deny, Ingress, &[Whom::Other], &[])])], vec![]);
    let is_other = |world: &World, name: &str, peer: &str| !judge(world, name, Ingress, peer, port(1));
    for (peer, other) in [
        ("10.244.1.6", false),
        ("10.244.2.7", false),
        ("fd00:2::7", false),
        ("10.244.2.9", true),
        // Unknown in the overlay, nodes, outside.
        ("10.244.1.99", true),
        ("192.0.2.1", true),
        ("203.0.113.1", true),
        ("169.254.169.254", true),
    ] {
        assert_eq!(is_other(&world, "web-1", peer), other, "{peer}");
    }
    // Two namespaces of one tenant.
    let tenant = |value: &str| [("tenant".to_owned(), value.to_owned())].into();
    world.namespaces.insert("ops".into(), tenant("a"));
    assert!(!is_other(&world, "web-1", "10.244.2.9"));
    // Without the label everyone is other, of the own namespace too.
    world.namespaces.remove("ops");
    assert!(is_other(&world, "web-1", "10.244.2.9"));
    assert!(is_other(&world, "free-1", "10.244.2.9"));
    assert!(is_other(&world, "free-1", "10.244.1.5"));
}

#[test]
fn what_is_audited_only_reports() {
    let see = |world: World, name: &str, direction, peer: &str, want| {
        let judgement = judgement(&world, name, direction, peer, want, 0);
        (judgement.enforced.allow, judgement.would.allow)
    };
    let outside = |world| see(world, "web-1", Ingress, "203.0.113.1", port(8443));
    // A document: neither isolates nor allows.
    let audited = || Intent { audit: true, ..policy() };
    assert_eq!(see(shop(vec![audited()]), "web-1", Ingress, "203.0.113.1", port(1)), (true, false));
    assert_eq!(outside(shop(vec![audited()])), (true, true));
    let closed = intent([("web", service(vec![], vec![]))]);
    assert_eq!(outside(shop(vec![closed.clone(), audited()])), (false, true));
    // Its names are known all the same.
    let store = Service { select: Some([("app".to_owned(), "db".to_owned())].into()), ..Service::default() };
    let names = Intent { audit: true, ..intent([("store", store)]) };
    let caller = intent([("web", service(vec![], vec![line(own("store"), tcp(1))]))]);
    assert_eq!(see(shop(vec![names, caller]), "web-1", Egress, "10.244.2.7", port(1)), (true, true));
    // A Guard, and a rule of one; the next rule is asked instead.
    let deny = || rule(Action::Deny, Ingress, &everyone(), &[]);
    let guards = |guard: Guard| guarded([guard], vec![policy()]);
    assert_eq!(outside(guards(Guard { audit: true, ..guard(1, vec![deny()]) })), (true, false));
    assert_eq!(outside(guards(guard(1, vec![Rule { audit: true, ..deny() }]))), (true, false));
    let allow = rule(Action::Allow, Ingress, &everyone(), &[]);
    assert_eq!(outside(guards(guard(1, vec![Rule { audit: true, ..allow }, deny()]))), (false, true));
    // A wall: the service's lines grant at both ends.
    let mut one = policy();
    one.services.get_mut("cart").unwrap().audit = true;
    let see = |name, direction, peer, want| see(shop(vec![one.clone()]), name, direction, peer, want);
    assert_eq!(see("cart-1", Ingress, "203.0.113.1", port(1)), (true, false));
    assert_eq!(see("cart-1", Egress, "203.0.113.1", port(1)), (true, false));
    assert_eq!(see("db-1", Ingress, "10.244.1.6", port(5432)), (true, true));
    assert_eq!(see("db-1", Ingress, "10.244.1.6", port(5433)), (false, false));
    assert_eq!(see("web-1", Egress, "10.244.1.6", port(8080)), (true, true));
}

#[test]
fn an_expired_rule_is_none() {
    let mut first = rule(Action::Allow, Ingress, &everyone(), &[]);
    first.expires = Some(100);
    let world = guarded([guard(1, vec![first, rule(Action::Deny, Ingress, &everyone(), &[])])], vec![]);
    let allowed = |now| judgement(&world, "web-1", Ingress, "203.0.113.1", port(1), now).enforced.allow;
    assert_eq!([0, 99, 100, 101].map(allowed), [true, true, false, false]);
}

fn packet(name: &str, direction: Direction, peer: &str, transport: Transport) -> (EndpointId, Packet) {
    let world = shop(vec![]);
    let id = id(name);
    let (_, endpoint) = world.endpoint(&id).unwrap();
    let peer = address(peer);
    let mine = *endpoint.addresses.iter().find(|a| a.is_ipv4() == peer.is_ipv4()).unwrap();
    let (source, destination) = if direction == Egress { (mine, peer) } else { (peer, mine) };
    let (from, to) = if direction == Egress { (endpoint.mac, GATEWAY) } else { (GATEWAY, endpoint.mac) };
    let ip = Ip { source, destination, fragment: None, extended: false, transport };
    (id, Packet { from, to, tagged: false, body: Body::Ip(ip) })
}

const fn segment(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Tcp { source, destination, flags }
}

/// Sends or delivers (from elsewhere); the label of the reason.
fn step(machine: &mut Machine, name: &str, direction: Direction, peer: &str, transport: Transport) -> &'static str {
    see(machine, name, direction, peer, transport).reason
}

fn see(machine: &mut Machine, name: &str, direction: Direction, peer: &str, transport: Transport) -> Verdict {
    let (id, packet) = packet(name, direction, peer, transport);
    match direction {
        Egress => machine.send(&id, &packet),
        Ingress if peer.starts_with("10.244.2.") || peer.starts_with("fd00:2:") => {
            machine.deliver(&id, &packet, &Origin::Overlay)
        }
        Ingress => machine.deliver(&id, &packet, &Origin::Forwarded),
    }
}

#[test]
fn each_packet_says_what_it_would_be() {
    let reason = |verdict: Verdict| (verdict.reason, verdict.would.map(|would| (would.allow, would.reason)));
    let db = "10.244.2.7";
    // Would-deny: of a flow every packet says so, and so does what is about it.
    let machine = &mut Machine::new(shop(vec![Intent { audit: true, ..intent([("cart", service(vec![], vec![]))]) }]));
    let syn = segment(4000, 5432, flag::SYN);
    let no = |reason| Some((false, reason));
    assert_eq!(reason(see(machine, "cart-1", Egress, db, syn.clone())), (reason::NOT_ISOLATED, no(reason::ISOLATED)));
    let answer = segment(5432, 4000, flag::SYN | flag::ACK);
    assert_eq!(reason(see(machine, "cart-1", Ingress, db, answer)), (reason::REPLY, no(reason::REVOKED)));
    let (_, Packet { body: Body::Ip(question), .. }) = packet("cart-1", Egress, db, syn.clone()) else {
        unreachable!()
    };
    let error = Transport::Error { kind: ErrorKind::TooBig, about: Box::new(question) };
    assert_eq!(reason(see(machine, "cart-1", Ingress, db, error)), (reason::RELATED, no(reason::NO_FLOW)));
    let ack = segment(5432, 9, flag::ACK);
    assert_eq!(reason(see(machine, "cart-1", Ingress, db, ack)), (reason::NOT_ISOLATED, no(reason::NO_FLOW)));
    let (id, mut part) = packet("cart-1", Egress, db, syn.clone());
    let Body::Ip(ip) = &mut part.body else { unreachable!() };
    ip.fragment = Some(Fragment::First);
    assert_eq!(reason(machine.send(&id, &part)), (reason::NOT_ISOLATED, no(reason::FRAGMENT)));
    // What is dropped all the same has nothing to say.
    part.tagged = true;
    assert_eq!(reason(machine.send(&id, &part)), (reason::VLAN_TAG, None));
    machine.change(shop(vec![]));
    let ack = segment(4000, 5432, flag::ACK);
    assert_eq!(reason(see(machine, "cart-1", Egress, db, ack)), (reason::NOT_ISOLATED, None));

    // Would-allow: what is dropped is not remembered.
    let closed = intent([("cart", service(vec![], vec![]))]);
    let machine = &mut Machine::new(shop(vec![closed, Intent { audit: true, ..policy() }]));
    assert_eq!(reason(see(machine, "cart-1", Egress, db, syn)), (reason::ISOLATED, Some((true, reason::RULE))));
    assert_eq!(machine.remembered(&id), 0);
}

#[test]
fn a_deadline_cuts_what_it_let_in() {
    let mut allow = rule(Action::Allow, Egress, &[service_of("shop", "db")], &[]);
    allow.expires = Some(100);
    let closed = intent([("cart", service(vec![], vec![]))]);
    let machine = &mut Machine::new(guarded([guard(1, vec![allow])], vec![closed]));
    let db = "10.244.2.7";
    assert_eq!(step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN)), reason::RULE);
    machine.set_now(99);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::REPLY);
    machine.set_now(100);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::REVOKED);
}

#[test]
fn a_rule_that_denies_is_named() {
    let deny = |ports: &[Ports]| vec![rule(Action::Deny, Ingress, &everyone(), ports)];
    let machine = &mut Machine::new(guarded([guard(1, deny(&[tcp(22)]))], vec![]));
    // Of a packet that looks like an answer too.
    for flags in [flag::SYN, flag::ACK] {
        let transport = segment(9, 22, flags);
        assert_eq!(step(machine, "cart-1", Ingress, "203.0.113.1", transport), reason::DENIED_BY_RULE);
    }
    assert_eq!(step(machine, "cart-1", Ingress, "203.0.113.1", segment(9, 23, flag::SYN)), reason::NOT_ISOLATED);
    // A part of a packet might be what the rule denies.
    let (id, mut part) = packet("cart-1", Ingress, "203.0.113.1", segment(9, 23, flag::SYN));
    let Body::Ip(ip) = &mut part.body else { unreachable!() };
    ip.fragment = Some(Fragment::First);
    assert_eq!(machine.deliver(&id, &part, &Origin::Forwarded).reason, reason::FRAGMENT);
}

#[test]
fn who_observes_drops_nothing() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let cart = id("cart-1");
    machine.set_mode(&cart, Mode::Observe);
    let db = "10.244.2.7";
    // What passes anyway says so.
    assert_eq!(step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN)), reason::RULE);
    // What would not is remembered: its answers, and what is about it, are no conversations of their own.
    let verdict = see(machine, "cart-1", Egress, db, segment(4000, 22, flag::SYN));
    assert_eq!((verdict.allow, verdict.reason, verdict.begins), (true, reason::OBSERVED, true));
    assert!(verdict.rules.contains("shop/cart isolated"), "{verdict:?}");
    for (direction, transport) in [
        (Ingress, segment(22, 4000, flag::SYN | flag::ACK)),
        (Egress, segment(4000, 22, flag::ACK)),
        (Ingress, segment(22, 4000, flag::ACK)),
    ] {
        let verdict = see(machine, "cart-1", direction, db, transport);
        assert_eq!((verdict.reason, verdict.begins), (reason::OBSERVED, false));
    }
    assert_eq!(machine.remembered(&cart), 2);
    // What looks like an answer begins nothing: whose it is is not known.
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(22, 4001, flag::ACK)), reason::OBSERVED);
    assert_eq!(machine.remembered(&cart), 2);
    // Forged frames as well, but not what is for somebody else.
    let (_, mut packet) = packet("cart-1", Egress, db, segment(4000, 5432, flag::SYN));
    packet.from[5] = 99;
    assert_eq!(machine.send(&cart, &packet).reason, reason::OBSERVED);
    packet.tagged = true;
    assert_eq!(machine.send(&cart, &packet).reason, reason::OBSERVED);
    packet.to[5] = 98;
    assert_eq!(machine.deliver(&cart, &packet, &Origin::Forwarded).reason, reason::NOT_FOR_US);
    // Others enforce.
    assert_eq!(step(machine, "web-1", Egress, db, segment(1, 1, flag::SYN)), reason::ISOLATED);
    // A policy that lets it makes it a flow as any other; one that is enforced cuts it.
    let mut open = policy();
    open.services.get_mut("cart").unwrap().calls.push(line(own("db"), tcp(22)));
    machine.change(shop(vec![open]));
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(22, 4000, flag::ACK)), reason::REPLY);
    machine.change(shop(vec![policy()]));
    machine.set_mode(&cart, Mode::Enforce);
    for _ in 0..2 {
        assert_eq!(step(machine, "cart-1", Ingress, db, segment(22, 4000, flag::ACK)), reason::REVOKED);
    }
}

#[test]
fn a_node_that_observes_drops_nothing() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let syn = || segment(1, 1, flag::SYN);
    machine.set_mode(&id("db-1"), Mode::Pending);
    machine.set_observe(true);
    for name in ["web-1", "db-1"] {
        assert_eq!(step(machine, name, Egress, "203.0.113.1", syn()), reason::OBSERVED);
    }
    machine.set_observe(false);
    assert_eq!(step(machine, "web-1", Egress, "203.0.113.1", syn()), reason::ISOLATED);
    // For a time.
    machine.set_bypass(100);
    machine.set_now(99);
    assert_eq!(step(machine, "web-1", Egress, "203.0.113.1", syn()), reason::OBSERVED);
    machine.set_now(100);
    assert_eq!(step(machine, "web-1", Ingress, "203.0.113.1", segment(1, 1, flag::ACK)), reason::REVOKED);
    assert_eq!(step(machine, "db-1", Egress, "203.0.113.1", syn()), reason::PENDING);
}

#[test]
fn what_observes_says_what_audited_policies_would_do() {
    let closed = intent([("cart", service(vec![], vec![]))]);
    let machine = &mut Machine::new(shop(vec![closed, Intent { audit: true, ..policy() }]));
    machine.set_mode(&id("cart-1"), Mode::Observe);
    let db = "10.244.2.7";
    let verdict = see(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN));
    assert_eq!((verdict.reason, verdict.would.unwrap().allow), (reason::OBSERVED, true));
    let verdict = see(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK));
    assert_eq!((verdict.reason, verdict.would.unwrap().reason), (reason::OBSERVED, reason::REPLY));
    let verdict = see(machine, "cart-1", Egress, db, segment(4000, 22, flag::SYN));
    assert_eq!((verdict.reason, verdict.would), (reason::OBSERVED, None));
}

/// A service of shop with these backends: web-1, "203.0.113.5".
fn front(backends: &[&str]) -> Front {
    let backend = |text: &&str| match text.parse() {
        Ok(address) => Backend::Address(address),
        Err(_) => Backend::Workload((*text).to_owned()),
    };
    let tcp = FrontPort { port: 80, target: 5432, node_port: Some(30_080), protocol: Protocol::Tcp };
    Front {
        namespace: "shop".into(),
        name: "store".into(),
        addresses: vec![address("10.96.3.4"), address("fd00:96::4")],
        ports: vec![tcp, FrontPort { port: 53, target: 8472, node_port: None, protocol: Protocol::Udp }],
        backends: backends.iter().map(backend).collect(),
    }
}

fn fronted(intents: Vec<Intent>, backends: &[&str]) -> World {
    World { services: vec![front(backends)], ..shop(intents) }
}

#[test]
fn a_call_may_end_at_some_backend_or_must_at_all() {
    let call = |backends: &[&str], to: &str| {
        let mut allows = policy();
        let calls = &mut allows.services.get_mut("cart").unwrap().calls;
        calls.push(line(own("stripe"), Ports::Any));
        let machine = &mut Machine::new(fronted(vec![allows], backends));
        let port = if to.starts_with("192.") { 30_080 } else { 80 };
        let verdict = see(machine, "cart-1", Egress, to, segment(4000, port, flag::SYN));
        (verdict.allow, verdict.provisional)
    };
    for (backends, ways, cluster, here, elsewhere) in [
        // cart may call the databases on the port that they listen on, not web; one is enough where a wall follows.
        (&["db-1", "db-2"][..], "local, remote", (true, true), (true, true), (true, false)),
        (&["db-1", "web-1"], "one allowed", (true, true), (true, true), (false, false)),
        (&["web-1"], "none allowed", (false, true), (false, true), (false, false)),
        // Of others all must be allowed: stripe is, its hole is not, nor are nodes.
        (&["198.51.100.1"], "outside", (true, false), (true, false), (true, false)),
        (&["198.51.100.1", "198.51.100.13"], "a hole", (false, false), (false, false), (false, false)),
        (&["db-1", "198.51.100.1"], "both", (true, true), (true, true), (true, false)),
        (&["web-1", "198.51.100.1"], "outside decides", (true, true), (true, true), (false, false)),
        (&["db-1", "192.0.2.2"], "a node", (false, true), (false, true), (false, false)),
        (&["db-1", "192.0.2.1"], "the own node", (false, true), (false, true), (false, false)),
        // Itself.
        (&["cart-1", "web-1"], "itself", (true, true), (true, true), (false, false)),
        // Nobody that is known: the address stands for itself, and a wall follows for whoever answers all the same.
        (&[], "nobody", (false, true), (false, true), (false, false)),
    ] {
        assert_eq!(call(backends, "10.96.3.4"), cluster, "{ways}");
        if backends.iter().all(|backend| backend.contains('-')) {
            assert_eq!(call(backends, "fd00:96::4"), cluster, "{ways}");
        }
        assert_eq!(call(backends, "192.0.2.1"), here, "{ways}, at this node");
        assert_eq!(call(backends, "192.0.2.2"), elsewhere, "{ways}, at another node");
    }
    // Another port, another protocol, another family than the backends': the address stands for itself.
    let world = fronted(vec![], &["198.51.100.1"]);
    let translated = |to, want| world.translation(1, address(to), want).is_some();
    assert!(translated("10.96.3.4", port(80)));
    assert!(!translated("10.96.3.4", port(5432)));
    assert!(!translated("10.96.3.4", port(30_080)));
    assert!(!translated("10.96.3.4", Want::Port(Protocol::Udp, 80)));
    assert!(!translated("fd00:96::4", port(80)));
    assert!(!translated("192.0.2.1", port(80)));
}

#[test]
fn backends_that_are_refused_for_different_reasons() {
    // web may call nobody, and db is forbidden by name.
    for backends in [["cart-1", "db-1"], ["db-1", "cart-1"]] {
        let mut world = fronted(vec![intent([("web", service(vec![], vec![]))])], &backends);
        let deny = rule(Action::Deny, Egress, &[service_of("shop", "db")], &[]);
        world.policy.push(Level::Guard(guard(1, vec![deny])));
        let machine = &mut Machine::new(world);
        for (flags, isolated) in [(flag::SYN, reason::ISOLATED), (flag::ACK, reason::NO_FLOW)] {
            let verdict = see(machine, "web-1", Egress, "192.0.2.2", segment(4000, 30_080, flags));
            let reasons: BTreeSet<_> = verdict.or.into_iter().chain([verdict.reason]).collect();
            assert_eq!(
                (verdict.allow, reasons),
                (false, BTreeSet::from([reason::DENIED_BY_RULE, isolated])),
                "{backends:?}"
            );
            assert!(verdict.rules.contains("guard guard1: deny to shop/db"), "{:?}", verdict.rules);
        }
        // Where one alone is left, its reason is the only one.
        machine.change(World { services: vec![front(&["cart-1"])], ..World::clone(machine.world()) });
        let verdict = see(machine, "web-1", Egress, "192.0.2.2", segment(4000, 30_080, flag::ACK));
        assert_eq!((verdict.reason, verdict.rules, verdict.or), (reason::NO_FLOW, [].into(), [].into()));
    }
}

/// The packet of a call that gets to `to` after the node has chosen it.
fn translated(to: &str, from: &str, flags: u8) -> Packet {
    packet(to, Ingress, from, segment(4000, 5432, flags)).1
}

/// What becomes of a call once a backend of this node is chosen.
fn reach(machine: &mut Machine, caller: &EndpointId, to: &str, packet: &Packet) -> Verdict {
    let left = machine.leave(caller, packet);
    if left.allow { machine.deliver(&id(to), packet, &Origin::Local(caller.clone())) } else { left }
}

#[test]
fn the_choice_is_judged_where_it_is_known() {
    let calls = |peers: &[&str]| {
        let lines = peers.iter().map(|peer| line(own(peer), tcp(5432))).collect();
        let open = || service(vec![line(own("web"), tcp(5432))], vec![]);
        intent([("web", service(vec![], lines)), ("cart", open()), ("db", open())])
    };
    let backends = ["cart-1", "db-1", "db-2"];
    let machine = &mut Machine::new(fronted(vec![calls(&["db"])], &backends));
    let web = id("web-1");
    let verdict = see(machine, "web-1", Egress, "10.96.3.4", segment(4000, 80, flag::SYN));
    assert_eq!((verdict.reason, verdict.provisional, verdict.begins), (reason::RULE, true, true));
    for from in ["10.244.1.5", "192.0.2.1"] {
        // cart accepts web, and web may not call cart; the node's address hides nobody.
        let cart = reach(machine, &web, "cart-1", &translated("cart-1", from, flag::SYN));
        assert_eq!((cart.allow, cart.reason, cart.begins), (false, reason::ISOLATED, false), "{from}");
        assert_eq!(machine.remembered(&id("cart-1")), 0);
        let db = reach(machine, &web, "db-1", &translated("db-1", from, flag::SYN));
        assert_eq!((db.reason, db.begins), (reason::RULE, true), "{from}");
        assert_eq!(step(machine, "db-1", Egress, from, segment(5432, 4000, flag::ACK)), reason::REPLY);
    }
    // What passes through the node with its address is somebody else.
    let (db, other) = packet("db-1", Ingress, "192.0.2.1", segment(4000, 5432, flag::ACK));
    assert_eq!(machine.deliver(&db, &other, &Origin::Forwarded).reason, reason::NO_FLOW);
    // The other node's backend is judged where the packet leaves.
    let leaving = |to| {
        let mut packet = translated("db-1", "192.0.2.1", flag::SYN);
        let Body::Ip(ip) = &mut packet.body else { unreachable!() };
        ip.destination = address(to);
        packet
    };
    assert_eq!(machine.leave(&web, &leaving("10.244.2.7")).reason, reason::RULE);
    let denied = machine.leave(&web, &leaving("10.244.2.9"));
    assert_eq!((denied.allow, denied.reason), (false, reason::ISOLATED));
    // The answer has the address that was called.
    assert_eq!(step(machine, "web-1", Ingress, "10.96.3.4", segment(80, 4000, flag::ACK)), reason::REPLY);

    // web may not call db any more: the next question is cut, though another backend is allowed.
    machine.change(fronted(vec![calls(&["cart"])], &backends));
    let ack = segment(4000, 80, flag::ACK);
    assert_eq!(step(machine, "web-1", Egress, "10.96.3.4", ack.clone()), reason::RULE);
    let cut = reach(machine, &web, "db-1", &translated("db-1", "192.0.2.1", flag::ACK));
    assert_eq!(cut.reason, reason::ISOLATED);
    // What db remembers is its own: it accepts web.
    assert_eq!(step(machine, "db-1", Egress, "192.0.2.1", segment(5432, 4000, flag::ACK)), reason::REPLY);
    // Nor any backend.
    machine.change(fronted(vec![calls(&[])], &backends));
    assert_eq!(step(machine, "web-1", Egress, "10.96.3.4", ack), reason::ISOLATED);
}

#[test]
fn a_workload_reaches_itself() {
    let deny = [Ingress, Egress].map(|direction| rule(Action::Deny, direction, &everyone(), &[]));
    let mut world = fronted(vec![intent([("cart", service(vec![], vec![]))])], &["cart-1"]);
    world.policy.push(Level::Guard(guard(1, deny.into())));
    let machine = &mut Machine::new(world);
    let cart = id("cart-1");
    assert_eq!(step(machine, "cart-1", Egress, "10.96.3.4", segment(4000, 80, flag::SYN)), reason::RULE);
    let masqueraded = translated("cart-1", "192.0.2.1", flag::SYN);
    assert_eq!(reach(machine, &cart, "cart-1", &masqueraded).reason, reason::ITSELF);
    assert_eq!(machine.deliver(&cart, &masqueraded, &Origin::Forwarded).reason, reason::DENIED_BY_RULE);
    assert_eq!(step(machine, "cart-1", Egress, "192.0.2.1", segment(5432, 4000, flag::ACK)), reason::ITSELF);
}

#[test]
fn a_caller_that_is_gone_gets_no_answer() {
    let world = || fronted(vec![], &["cart-1"]);
    let gone = || {
        let mut world = world();
        world.workloads.retain(|workload| workload.name != "web-1");
        world
    };
    let machine = &mut Machine::new(world());
    let web = id("web-1");
    assert_eq!(
        reach(machine, &web, "cart-1", &translated("cart-1", "192.0.2.1", flag::SYN)).reason,
        reason::NOT_ISOLATED
    );
    let answer = segment(5432, 4000, flag::ACK);
    assert_eq!(step(machine, "cart-1", Egress, "192.0.2.1", answer.clone()), reason::REPLY);
    machine.change(gone());
    // Nor does one of its name that comes after it.
    machine.change(world());
    for _ in 0..2 {
        assert_eq!(step(machine, "cart-1", Egress, "192.0.2.1", answer.clone()), reason::REVOKED);
    }
    // By its own address it was called by whoever has that.
    let own = world().workload("shop", "web-1").unwrap().endpoints[0].addresses[0].to_string();
    assert_eq!(reach(machine, &web, "cart-1", &translated("cart-1", &own, flag::SYN)).reason, reason::NOT_ISOLATED);
    machine.change(gone());
    assert_eq!(step(machine, "cart-1", Egress, &own, answer), reason::REPLY);
}

#[test]
fn no_service_leads_to_a_tunnel() {
    let udp = |destination| Transport::Udp { source: 1, destination };
    for (backend, seen) in [("192.0.2.2", reason::TUNNEL), ("203.0.113.5", reason::NOT_ISOLATED)] {
        let machine = &mut Machine::new(fronted(vec![], &["db-1", backend]));
        assert_eq!(step(machine, "free-1", Egress, "10.96.3.4", udp(53)), seen, "{backend}");
        assert_eq!(step(machine, "free-1", Egress, "10.96.3.4", udp(54)), reason::NOT_ISOLATED);
    }
}

#[test]
fn calls_of_those_who_observe() {
    let calls = intent([("web", service(vec![], vec![line(own("db"), tcp(5432))])), ("db", service(vec![], vec![]))]);
    let world = || fronted(vec![calls.clone()], &["cart-1", "db-1"]);
    let web = id("web-1");
    let syn = translated("cart-1", "192.0.2.1", flag::SYN);
    // The backend watches: that is no matter of its caller's policy.
    let machine = &mut Machine::new(world());
    machine.set_mode(&id("cart-1"), Mode::Observe);
    assert_eq!(reach(machine, &web, "cart-1", &syn).reason, reason::ISOLATED);
    // The caller watches: its policy drops nothing, wherever it is asked.
    let machine = &mut Machine::new(world());
    machine.set_mode(&web, Mode::Observe);
    assert_eq!(machine.leave(&web, &syn).reason, reason::OBSERVED);
    assert_eq!(reach(machine, &web, "cart-1", &syn).reason, reason::NOT_ISOLATED);
    // Where the caller's policy is audited, the difference is told.
    let audited = Intent { audit: true, ..calls.clone() };
    let machine = &mut Machine::new(fronted(vec![audited], &["cart-1", "db-1"]));
    let verdict = machine.leave(&web, &syn);
    assert_eq!((verdict.reason, verdict.would.unwrap().allow), (reason::NOT_ISOLATED, false));
}

#[test]
fn documents_are_written_as_people_write_them() {
    let mut last = rule(Action::Deny, Egress, &[Whom::Entity(Entity::World)], &[]);
    last.peers[0].1 = Some(tcp(25));
    (last.audit, last.expires) = (true, Some(1_801_396_800_000_000_000));
    let tenants = Guard {
        subject: Subject { namespaces: [("tenant".into(), None)].into(), ..Subject::default() },
        ..guard(
            100,
            vec![
                rule(Action::Allow, Ingress, &[service_of("ops", "prometheus")], &[tcp(9100)]),
                rule(Action::Deny, Egress, &[Whom::Entity(Entity::Metadata), Whom::Other], &[]),
                last,
            ],
        )
    };
    let mut audited = intent([("web", service(vec![], vec![]))]);
    audited.audit = true;
    audited.external.clear();
    audited.services.get_mut("web").unwrap().audit = true;
    let world = guarded([tenants], vec![audited]);
    let texts: Vec<_> = yaml::policies(&world).into_iter().map(|(_, text)| text).collect();
    assert_eq!(
        texts[0],
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nmode: audit\nservices:\n  web:\n    isolate: audit\n"
    );
    assert_eq!(
        texts[1],
        "apiVersion: bulkhead/v1\nkind: Guard\nname: guard100\npriority: 100\nfor: { namespaces: {tenant: any} }\n\
         compare: tenant\nrules:\n  \
         - allow: { from: ops/prometheus, ports: [9100] }\n  \
         - deny: { to: [metadata, other] }\n  \
         - deny: { to: world:25, mode: audit, expires: 2027-01-31T12:00:00Z }\n"
    );
    let workloads = yaml::workloads(&World { services: vec![front(&["db-1", "192.0.2.2"])], ..world });
    assert!(
        workloads.ends_with(
            "services:\n  - { name: store, namespace: shop, addresses: [\"10.96.3.4\", \"fd00:96::4\"], ports: [{ port: 80, \
             target: 5432, nodePort: 30080 }, { port: 53, target: 8472, protocol: udp }], backends: [db-1, \"192.0.2.2\"] }\n"
        ),
        "{workloads}"
    );
    assert!(workloads.contains("namespaces:\n  - { name: ops, labels: {tenant: b} }\n"), "{workloads}");
}

#[test]
fn flows() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let db = "10.244.2.7";
    // A reply without a question, the question, the reply; then the other side begins on the same ports.
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::SYN | flag::ACK)), reason::NO_FLOW);
    assert_eq!(step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN)), reason::RULE);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::SYN | flag::ACK)), reason::REPLY);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::SYN)), reason::ISOLATED);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::RST)), reason::REPLY);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4001, flag::ACK)), reason::NO_FLOW);
    // A flow is taken up in the middle where the policy allows it.
    assert_eq!(step(machine, "cart-1", Egress, db, segment(4002, 5432, flag::ACK)), reason::RULE);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4002, flag::ACK)), reason::REPLY);
}

#[test]
fn echo_belongs_to_whom_asks() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let echo = |request, id| Transport::Echo { request, id };
    for db in ["10.244.2.7", "fd00:2::7"] {
        assert_eq!(step(machine, "cart-1", Egress, db, echo(true, 7)), reason::RULE);
        assert_eq!(step(machine, "cart-1", Ingress, db, echo(true, 7)), reason::ISOLATED);
        assert_eq!(step(machine, "cart-1", Ingress, db, echo(false, 8)), reason::NO_FLOW);
        assert_eq!(step(machine, "cart-1", Ingress, db, echo(false, 7)), reason::REPLY);
    }
}

#[test]
fn revocation_cuts_on_the_next_packet() {
    let mut without = policy();
    without.services.get_mut("cart").unwrap().calls.clear();
    let db = "10.244.2.7";
    for (direction, transport, first) in [
        (Egress, segment(4000, 5432, flag::ACK), reason::ISOLATED),
        (Ingress, segment(5432, 4000, flag::ACK), reason::REVOKED),
    ] {
        let machine = &mut Machine::new(shop(vec![policy()]));
        assert_eq!(step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN)), reason::RULE);
        machine.change(shop(vec![without.clone()]));
        assert_eq!(step(machine, "cart-1", direction, db, transport.clone()), first);
        assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::REVOKED);
        // It is known whose it was, so it comes back with the rule.
        machine.change(shop(vec![policy()]));
        assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::REPLY);
    }
    // The peer loses its label.
    let machine = &mut Machine::new(shop(vec![policy()]));
    step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN));
    let mut world = shop(vec![policy()]);
    world.workloads[3].labels.clear();
    machine.change(world);
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::REVOKED);
    // A workload that goes takes its flows with it.
    let machine = &mut Machine::new(shop(vec![policy()]));
    step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN));
    let mut world = shop(vec![policy()]);
    world.workloads.retain(|w| w.name != "cart-1");
    machine.change(world);
    machine.change(shop(vec![policy()]));
    assert_eq!(step(machine, "cart-1", Ingress, db, segment(5432, 4000, flag::ACK)), reason::NO_FLOW);
}

#[test]
fn errors_are_about_flows() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let db = "10.244.2.7";
    let error = |about: &Packet| {
        let Body::Ip(about) = &about.body else { unreachable!() };
        Transport::Error { kind: ErrorKind::TooBig, about: Box::new(about.clone()) }
    };
    let (_, question) = packet("cart-1", Egress, db, segment(4000, 5432, flag::ACK));
    let (_, answer) = packet("cart-1", Ingress, db, segment(5432, 4000, flag::ACK));
    assert_eq!(step(machine, "cart-1", Ingress, "203.0.113.1", error(&question)), reason::NO_FLOW);
    step(machine, "cart-1", Egress, db, segment(4000, 5432, flag::SYN));
    // From any router; about what was sent, not about what came.
    assert_eq!(step(machine, "cart-1", Ingress, "203.0.113.1", error(&question)), reason::RELATED);
    assert_eq!(step(machine, "cart-1", Ingress, db, error(&answer)), reason::NO_FLOW);
    assert_eq!(step(machine, "cart-1", Egress, db, error(&answer)), reason::RELATED);
    assert_eq!(step(machine, "cart-1", Egress, "10.244.1.7", error(&answer)), reason::NO_FLOW);
    // Nothing is closed for whom nobody isolates.
    assert_eq!(step(machine, "free-1", Ingress, db, error(&question)), reason::NOT_ISOLATED);
    // A flow that does not hold any more is none.
    machine.change(shop(vec![intent([("cart", service(vec![], vec![]))])]));
    assert_eq!(step(machine, "cart-1", Ingress, "203.0.113.1", error(&question)), reason::NO_FLOW);
}

#[test]
fn the_node_and_what_passes_through_it() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let probe = |source, flags| packet("cart-1", Ingress, "192.0.2.1", segment(source, 8080, flags));
    let (id, packet) = probe(5000, flag::SYN);
    assert_eq!(machine.deliver(&id, &packet, &Origin::Forwarded).reason, reason::ISOLATED);
    assert_eq!(machine.deliver(&id, &packet, &Origin::Node).reason, reason::RULE);
    // What passes through is not the node, not even on the node's flow.
    let (_, packet) = probe(5000, flag::ACK);
    assert_eq!(machine.deliver(&id, &packet, &Origin::Forwarded).reason, reason::NO_FLOW);
    assert_eq!(step(machine, "cart-1", Egress, "192.0.2.1", segment(8080, 5000, flag::ACK)), reason::REPLY);
    assert_eq!(step(machine, "cart-1", Egress, "192.0.2.1", segment(8080, 5001, flag::SYN)), reason::ISOLATED);
    // Masqueraded clients are outside clients.
    assert_eq!(step(machine, "web-1", Ingress, "192.0.2.2", segment(5000, 8443, flag::SYN)), reason::RULE);
}

#[test]
fn a_local_sender_is_named() {
    let machine = &mut Machine::new(shop(vec![]));
    let (cart, packet) = packet("cart-1", Ingress, "10.244.1.5", segment(4000, 80, flag::SYN));
    let plain = |machine: &mut Machine| machine.deliver(&cart, &packet, &Origin::Forwarded).reason;
    assert_eq!(plain(machine), reason::PLAIN_OVERLAY_SOURCE);
    assert_eq!(machine.deliver(&cart, &packet, &Origin::Local(id("web-1"))).reason, reason::NOT_ISOLATED);
    // Nor on a flow that is known, nor with the receiver's own address.
    assert_eq!(plain(machine), reason::PLAIN_OVERLAY_SOURCE);
    assert_eq!(
        step(machine, "cart-1", Ingress, "10.244.1.6", segment(4000, 80, flag::SYN)),
        reason::PLAIN_OVERLAY_SOURCE
    );
}

#[test]
fn nothing_of_a_tunnel_is_an_answer() {
    let machine = &mut Machine::new(shop(vec![]));
    let udp = |source| Transport::Udp { source, destination: 9 };
    for origin in [Origin::Node, Origin::Forwarded] {
        for (peer, port, seen) in [
            ("192.0.2.1", 8472, reason::TUNNEL),
            ("192.0.2.2", 8472, reason::TUNNEL),
            ("192.0.2.1", 8473, reason::NOT_ISOLATED),
            ("203.0.113.1", 8472, reason::NOT_ISOLATED),
        ] {
            let (id, packet) = packet("free-1", Ingress, peer, udp(port));
            assert_eq!(machine.deliver(&id, &packet, &origin).reason, seen, "{peer} {port} {origin:?}");
        }
    }
}

#[test]
fn another_nodes_workloads_come_by_the_overlay() {
    let machine = &mut Machine::new(shop(vec![]));
    for peer in ["10.244.2.7", "10.244.2.99", "fd00:2::7"] {
        let (id, packet) = packet("cart-1", Ingress, peer, segment(4000, 80, flag::SYN));
        assert_eq!(machine.deliver(&id, &packet, &Origin::Forwarded).reason, reason::PLAIN_OVERLAY_SOURCE);
        assert_eq!(machine.deliver(&id, &packet, &Origin::Overlay).reason, reason::NOT_ISOLATED);
        // Nor on a flow that is known.
        assert_eq!(machine.deliver(&id, &packet, &Origin::Forwarded).reason, reason::PLAIN_OVERLAY_SOURCE);
    }
}

#[test]
fn frames_that_no_policy_is_asked_about() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let syn = || packet("cart-1", Egress, "10.244.2.7", segment(4000, 5432, flag::SYN));
    let send = |machine: &mut Machine, edit: &dyn Fn(&mut Packet)| {
        let (id, mut packet) = syn();
        edit(&mut packet);
        machine.send(&id, &packet).reason
    };
    let ip = |packet: &mut Packet, edit: &dyn Fn(&mut Ip)| match &mut packet.body {
        Body::Ip(ip) => edit(ip),
        _ => unreachable!(),
    };
    assert_eq!(send(machine, &|packet| packet.tagged = true), reason::VLAN_TAG);
    assert_eq!(send(machine, &|packet| packet.from[5] = 99), reason::SPOOFED_MAC);
    assert_eq!(send(machine, &|packet| packet.body = Body::Foreign), reason::NOT_IP);
    assert_eq!(send(machine, &|p| ip(p, &|ip| ip.source = address("10.244.1.7"))), reason::SPOOFED_SOURCE);
    assert_eq!(send(machine, &|p| ip(p, &|ip| ip.fragment = Some(Fragment::First))), reason::FRAGMENT);
    let tunnel = Transport::Udp { source: 1, destination: 8472 };
    assert_eq!(step(machine, "free-1", Egress, "192.0.2.2", tunnel.clone()), reason::TUNNEL);
    assert_eq!(step(machine, "free-1", Egress, "203.0.113.9", tunnel), reason::NOT_ISOLATED);

    let (cart, mut packet) = syn();
    packet.to = [2, 0x42, 0, 0, 0, 99];
    assert_eq!(machine.deliver(&cart, &packet, &Origin::Forwarded).reason, reason::NOT_FOR_US);
    packet.to = [2, 0x42, 0, 0, 0, 6];
    assert_eq!(machine.deliver(&cart, &packet, &Origin::Forwarded).reason, reason::NOT_FOR_US);

    machine.set_mode(&cart, Mode::Pending);
    assert_eq!(send(machine, &|_| {}), reason::PENDING);
    machine.set_mode(&cart, Mode::Quarantine);
    assert_eq!(send(machine, &|_| {}), reason::QUARANTINE);
}

#[test]
fn addresses_are_resolved_honestly() {
    let machine = &mut Machine::new(shop(vec![policy()]));
    let cart = id("cart-1");
    machine.set_mode(&cart, Mode::Pending);
    let mac = [2, 0x42, 0, 0, 0, 6];
    let arp = Arp {
        request: true,
        sender_mac: mac,
        sender: "10.244.1.6".parse().unwrap(),
        target: "10.244.1.1".parse().unwrap(),
    };
    let probe = Arp { sender: "0.0.0.0".parse().unwrap(), ..arp };
    let theirs = Arp { sender: "10.244.1.7".parse().unwrap(), ..arp };
    for (arp, honest) in [
        (arp, true),
        (Arp { request: false, ..arp }, true),
        (probe, true),
        (Arp { request: false, ..probe }, false),
        (theirs, false),
        (Arp { sender_mac: [2; 6], ..arp }, false),
    ] {
        let frame = Packet { from: mac, to: [0xff; 6], tagged: false, body: Body::Arp(arp) };
        assert_eq!(machine.send(&cart, &frame).allow, honest, "{arp:?}");
    }
    let own: std::net::Ipv6Addr = "fd00:1::6".parse().unwrap();
    let near: std::net::Ipv6Addr = "fe80::77".parse().unwrap();
    let any = std::net::Ipv6Addr::UNSPECIFIED;
    for (source, message, hop_limit, claimed, honest) in [
        (own, Message::Solicitation(near), 255, Some(mac), true),
        (near, Message::Solicitation(own), 255, Some(mac), true),
        (any, Message::Solicitation(own), 255, None, true),
        (any, Message::Solicitation(own), 64, None, false),
        ("fd00:1::7".parse().unwrap(), Message::Solicitation(own), 255, None, false),
        (own, Message::Solicitation(near), 255, Some([2; 6]), false),
        (own, Message::Advertisement(own), 255, Some(mac), true),
        (own, Message::Advertisement(link_local(mac)), 255, Some(mac), true),
        (own, Message::Advertisement(near), 255, Some(mac), false),
        (near, Message::Advertisement(own), 255, Some(mac), false),
        (near, Message::RouterSolicitation, 255, None, true),
        (own, Message::RouterAdvertisement, 255, None, false),
        (own, Message::Redirect, 255, None, false),
        (near, Message::ListenerReport("ff02::fb".parse().unwrap()), 1, None, true),
        (near, Message::ListenerQuery, 1, None, false),
    ] {
        let transport = Transport::Neighbour(Neighbour { message, hop_limit, mac: claimed });
        let ip =
            Ip { source: source.into(), destination: address("ff02::1"), fragment: None, extended: false, transport };
        let frame = Packet { from: mac, to: [0x33, 0x33, 0, 0, 0, 1], tagged: false, body: Body::Ip(ip) };
        assert_eq!(machine.send(&cart, &frame).allow, honest, "{frame:?}");
    }
}

#[test]
fn name_servers() {
    let mut with_dns = policy();
    with_dns.dns = true;
    let mut world = shop(vec![with_dns]);
    assert!(judge(&world, "web-1", Egress, "10.96.0.10", Want::Port(Protocol::Udp, 53)));
    assert!(judge(&world, "web-1", Egress, "10.96.0.10", port(53)));
    assert!(!judge(&world, "web-1", Egress, "10.96.0.11", port(53)));
    // A name server that is isolated itself opens for them.
    world.resolvers = vec![address("10.244.1.7")];
    assert!(judge(&world, "db-1", Ingress, "10.244.1.5", Want::Port(Protocol::Udp, 53)));
    assert!(!judge(&world, "db-1", Ingress, "10.244.1.9", Want::Port(Protocol::Udp, 53)));
}

#[test]
fn selected_services_and_other_documents() {
    let mut world = shop(vec![
        Intent { namespace: "ops".into(), ..intent([("backup", service(vec![], vec![]))]) },
        intent([(
            "store",
            Service { select: Some([("app".to_owned(), "db".to_owned())].into()), ..service(vec![], vec![]) },
        )]),
        intent([("web", service(vec![], vec![line(own("store"), Ports::Any)]))]),
    ]);
    // Names of one document hold in the other.
    assert!(judge(&world, "web-1", Egress, "10.244.2.7", Want::Other(89)));
    assert!(judge(&world, "db-1", Ingress, "10.244.1.5", port(1)));
    // `free` is listed nowhere.
    assert!(judge(&world, "free-1", Ingress, "203.0.113.1", port(1)));
    world.workloads[2].labels.clear();
    assert!(judge(&world, "db-1", Ingress, "203.0.113.1", port(1)));
}
