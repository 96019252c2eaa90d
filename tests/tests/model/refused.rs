//! A call whose backends are refused for different reasons: which of them the programs ask first depends on the rows in the tables.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use bulkhead_fixtures::skip;
use bulkhead_model::{
    Prefix, World,
    generate::{Conversation, Move, Scenario, Step, TUNNEL_PORT, Target},
    intent::{Intent, Line, Name, Service},
    policy::{Action, Direction, Guard, Level, Ports, Rule, Want, Whom},
    reason,
    world::{Backend, Endpoint, EndpointId, Front, FrontPort, Node, NodeSegment, Protocol, Workload},
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
    walls::{Programs, Walls},
};

const NODE_PORT: u16 = 30_080;

pub(crate) fn node(n: u8) -> Node {
    let address = IpAddr::from([192, 0, 2, n]);
    let prefixes = vec![Prefix::literal(&format!("10.244.{n}.0/24"))];
    Node {
        name: format!("n{n}"),
        addresses: vec![address],
        segments: vec![NodeSegment { vni: 1, vtep: address, prefixes }],
    }
}

pub(crate) fn workload(name: &str, n: u8) -> Workload {
    Workload {
        namespace: "shop".into(),
        name: name.into(),
        labels: [("app".into(), name.into())].into(),
        node: 0,
        ports: [].into(),
        endpoints: vec![Endpoint {
            segment: 1,
            addresses: vec![IpAddr::from([10, 244, 1, n])],
            mac: [2, 0x42, 0, 0, 1, n],
            link: format!("veth{n}"),
        }],
    }
}

/// web may call nobody, and a Guard forbids it one of the two backends by name. The service names them in the order given.
fn world(denied: &str, backends: [&str; 2]) -> World {
    let line = |name: &str| {
        let (peer, ports) = (Name::Own(name.into()), Ports::Range(Protocol::Tcp, 80, 80));
        Line { id: yaml::edge(&peer, &ports), peer, ports }
    };
    // Named by a line each, so that each backend has a row of its own.
    let web = Service { accepts: vec![line("cart"), line("db")], ..Service::default() };
    let deny = Rule {
        action: Action::Deny,
        direction: Direction::Egress,
        peers: vec![(Whom::Service("shop".into(), denied.into()), None)],
        ports: vec![],
        audit: false,
        expires: None,
    };
    World {
        here: 0,
        service_label: "app".into(),
        nodes: vec![node(1), node(2)],
        tunnel_ports: vec![TUNNEL_PORT],
        workloads: vec![workload("web", 5), workload("cart", 6), workload("db", 7)],
        services: vec![Front {
            namespace: "shop".into(),
            name: "store".into(),
            addresses: vec![IpAddr::from([10, 96, 3, 4])],
            ports: vec![FrontPort { port: 80, target: 5432, node_port: Some(NODE_PORT), protocol: Protocol::Tcp }],
            backends: backends.map(|name| Backend::Workload(name.into())).into(),
        }],
        policy: vec![
            Level::Guard(Guard { name: "wall".into(), priority: 1, rules: vec![deny], ..Guard::default() }),
            Level::Intents(vec![Intent {
                namespace: "shop".into(),
                services: [("web", web), ("cart", Service::default()), ("db", Service::default())]
                    .map(|(name, service)| (name.to_owned(), service))
                    .into(),
                ..Intent::default()
            }]),
        ],
        ..World::default()
    }
}

/// A segment in the middle of a connection that nobody knows, to a port of another node, which may hand it to any backend.
fn scenario(denied: &str, backends: [&str; 2]) -> Scenario {
    let only = any::<Index>().new_tree(&mut TestRunner::deterministic()).expect("a number").current();
    Scenario {
        worlds: vec![Arc::new(world(denied, backends))],
        conversations: vec![Conversation {
            near: web(),
            near_address: IpAddr::from([10, 244, 1, 5]),
            far: Target::Elsewhere(IpAddr::from([192, 0, 2, 2])),
            far_address: IpAddr::from([192, 0, 2, 2]),
            direction: Direction::Egress,
            want: Want::Port(Protocol::Tcp, NODE_PORT),
            port: 40_000,
        }],
        steps: vec![Step::Packet(only, Move::Continue)],
    }
}

fn web() -> EndpointId {
    EndpointId { namespace: "shop".into(), workload: "web".into(), index: 0 }
}

/// Whichever of the backends is forbidden by name, and whichever the service names first, the model knows both reasons; and both are seen.
fn either<P: Programs>(raise: impl Fn() -> Walls<P>) {
    let mut seen = BTreeSet::new();
    for denied in ["cart", "db"] {
        for backends in [["cart", "db"], ["db", "cart"]] {
            let mut walls = raise();
            let compared = walls.check(&scenario(denied, backends));
            compared.unwrap_or_else(|difference| panic!("{denied} is denied, of {backends:?}:\n{difference}"));
            seen.extend(walls.reasons(&web(), "egress"));
        }
    }
    seen.retain(|reason| *reason != reason::PENDING && *reason != reason::RESOLUTION);
    assert_eq!(seen, BTreeSet::from([reason::DENIED_BY_RULE, reason::NO_FLOW]));
}

#[test]
fn by_the_library() {
    either(library);
}

#[test]
fn by_the_kernel() {
    if !skip::programs() {
        return;
    }
    either(programs);
}
