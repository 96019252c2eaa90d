//! A caller of a service that leaves the node while its backend still knows it, by the node's address and the mark alone.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use bulkhead_fixtures::skip;
use bulkhead_model::{
    World,
    generate::{Behind, Conversation, Move, Scenario, Step, TUNNEL_PORT, Target, Translated},
    intent::{Intent, Line, Name, Service},
    packet::ErrorKind,
    policy::{Direction, Level, Ports, Want},
    reason,
    world::{Backend, EndpointId, Front, FrontPort, Protocol},
    yaml,
};
use proptest::{
    prelude::any,
    sample::Index,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use crate::{
    library, programs,
    refused::{node, workload},
    walls::{Programs, Walls},
};

const NODE: [u8; 4] = [192, 0, 2, 1];
const FRONT: [u8; 4] = [10, 96, 3, 4];
const CART: [u8; 4] = [10, 244, 1, 6];
const PORT: u16 = 5432;

/// Without `web`, or with it; cart accepts it by name, or whoever comes.
fn world(web: bool, isolated: bool) -> World {
    let line = |what: &str, name: &str| {
        let (peer, ports) = (Name::Own(name.into()), Ports::Range(Protocol::Tcp, PORT, PORT));
        Line { id: format!("shop: {what} {}", yaml::canonical_edge(&peer, &ports)), peer, ports }
    };
    let caller = Service { calls: vec![line("web calls", "cart")], ..Service::default() };
    let backend = Service { accepts: vec![line("cart accepts", "web")], ..Service::default() };
    let services = [("web", caller), ("cart", backend)].map(|(name, service)| (name.to_owned(), service));
    let intent = Intent { namespace: "shop".into(), services: services.into(), ..Intent::default() };
    World {
        here: 0,
        service_label: "app".into(),
        nodes: vec![node(1), node(2)],
        tunnel_ports: vec![TUNNEL_PORT],
        workloads: [web.then(|| workload("web", 5)), Some(workload("cart", 6))].into_iter().flatten().collect(),
        services: vec![Front {
            namespace: "shop".into(),
            name: "store".into(),
            addresses: vec![IpAddr::from(FRONT)],
            ports: vec![FrontPort { port: 80, target: PORT, node_port: None, protocol: Protocol::Tcp }],
            backends: vec![Backend::Workload("cart".into())],
        }],
        policy: if isolated { vec![Level::Intents(vec![intent])] } else { Vec::new() },
        ..World::default()
    }
}

fn id(workload: &str) -> EndpointId {
    EndpointId { namespace: "shop".into(), workload: workload.into(), index: 0 }
}

/// What chooses the `nth` of two.
fn choice(nth: usize) -> Index {
    let mut runner = TestRunner::deterministic();
    let mut choices = std::iter::repeat_with(|| any::<Index>().new_tree(&mut runner).expect("a number").current());
    choices.find(|index| index.index(2) == nth).expect("each of them, in the end")
}

/// web calls cart by the service's address; and cart talks to the node's address, on the same ports.
fn scenario(isolated: bool, steps: impl IntoIterator<Item = Step>) -> Scenario {
    let call = Translated {
        called: IpAddr::from(FRONT),
        backend: (IpAddr::from(CART), Behind::Local(id("cart"))),
        port: PORT,
        masquerade: Some(IpAddr::from(NODE)),
    };
    let web = Conversation {
        near: id("web"),
        near_address: IpAddr::from([10, 244, 1, 5]),
        far: Target::Service(call),
        far_address: IpAddr::from(FRONT),
        direction: Direction::Egress,
        want: Want::Port(Protocol::Tcp, 80),
        port: 40_000,
    };
    let cart = Conversation {
        near: id("cart"),
        near_address: IpAddr::from(CART),
        far: Target::Node(IpAddr::from(NODE)),
        far_address: IpAddr::from(NODE),
        direction: Direction::Ingress,
        want: Want::Port(Protocol::Tcp, PORT),
        port: 40_000,
    };
    Scenario {
        worlds: [true, false].map(|web| Arc::new(world(web, isolated))).into(),
        conversations: vec![web, cart],
        steps: steps.into_iter().collect(),
    }
}

/// What may come next when the caller is gone, one after the other: whether cart's policy names the caller or not.
fn unanswered<P: Programs>(raise: impl Fn() -> Walls<P>) {
    let (call, talk) = (choice(0), choice(1));
    let (ask, answer) = (Step::Packet(call, Move::Ask), Step::Packet(talk, Move::Answer));
    let (comes, goes) = (Step::Change(choice(0)), Step::Change(choice(1)));
    let error = Step::Packet(talk, Move::Error(true, ErrorKind::PortUnreachable));
    let begin = [&comes, &ask, &answer, &goes];
    let ends: [&[&Step]; 5] = [
        &[&answer, &answer],
        // One of its name has come again,
        &[&comes, &answer, &answer],
        // and calls by the same ports.
        &[&comes, &ask, &answer, &goes, &answer],
        &[&error, &answer],
        &[&Step::Observe(true), &answer, &answer, &Step::Observe(false), &answer],
    ];
    for isolated in [true, false] {
        let mut walls = raise();
        let steps = ends.iter().flat_map(|end| begin.iter().chain(*end)).map(|step| Step::clone(step));
        let compared = walls.check(&scenario(isolated, steps));
        compared.unwrap_or_else(|difference| panic!("isolated: {isolated}\n{difference}"));
        let seen = walls.reasons(&id("cart"), "egress");
        let both = BTreeSet::from([reason::REPLY, reason::REVOKED]);
        assert!(seen.is_superset(&both), "isolated: {isolated}: {seen:?}");
    }
}

#[test]
fn by_the_library() {
    unanswered(library);
}

#[test]
fn by_the_kernel() {
    if !skip::programs() {
        return;
    }
    unanswered(programs);
}
