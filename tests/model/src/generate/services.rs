use std::{collections::BTreeSet, net::IpAddr};

use proptest::{prelude::*, sample::Index};

use super::{
    Features, TUNNEL_PORT,
    worlds::{NAMESPACES, SERVICES},
};
use crate::{
    World,
    world::{Backend, Front, FrontPort, Protocol, Workload},
};

/// What may be called, and where that leads.
const PORTS: [(Protocol, u16, u16); 9] = [
    (Protocol::Tcp, 80, 8080),
    (Protocol::Tcp, 80, 80),
    (Protocol::Tcp, 443, 5432),
    (Protocol::Tcp, 8443, 8050),
    (Protocol::Tcp, 5432, 5432),
    (Protocol::Udp, 53, 53),
    (Protocol::Udp, 5353, 8200),
    (Protocol::Sctp, 9000, 9000),
    (Protocol::Udp, 4789, TUNNEL_PORT),
];

/// A service of the source, before it has backends.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    namespace: Index,
    name: Index,
    single_family: u8,
    ports: Vec<(Index, bool)>,
}

/// The backends of a service in one revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawBackends {
    /// Which of the namespace's workloads are not.
    without: u8,
    /// Who else is.
    others: u8,
}

/// How many services a world may have.
const SOME: usize = 4;

/// Services, in a good part of the worlds.
pub(super) fn raw(features: Features) -> BoxedStrategy<Vec<Raw>> {
    if !features.services {
        return Just(Vec::new()).boxed();
    }
    let ports = prop::collection::vec(any::<(Index, bool)>(), 1..4);
    let one = (any::<[Index; 2]>(), 0..8_u8, ports).prop_map(|([namespace, name], single_family, ports)| Raw {
        namespace,
        name,
        single_family,
        ports,
    });
    prop_oneof![1 => Just(Vec::new()), 4 => prop::collection::vec(one, 1..=SOME)].boxed()
}

pub(super) fn backends(features: Features) -> BoxedStrategy<Vec<RawBackends>> {
    if !features.services {
        return Just(Vec::new()).boxed();
    }
    let one = (any::<u8>(), any::<u8>(), 0..10_u8);
    let one = one.prop_map(|(a, b, others)| RawBackends { without: a & b, others });
    prop::collection::vec(one, SOME).boxed()
}

/// The services of a base world: every workload of the namespace is a backend.
pub(super) fn fronts(raw: &[Raw], workloads: &[Workload]) -> Vec<Front> {
    let mut fronts: Vec<Front> = Vec::new();
    for (n, raw) in raw.iter().enumerate() {
        let namespace = NAMESPACES[raw.namespace.index(NAMESPACES.len())];
        let name = format!("{}-{n}", SERVICES[raw.name.index(SERVICES.len())]);
        let [low, number] = u16::try_from(n).expect("few").to_be_bytes();
        let v4 = IpAddr::from([10, 96, low, 80 + number]);
        let v6 = IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x80 + u16::from(number)]);
        let addresses = match raw.single_family {
            0 => vec![v4],
            1 => vec![v6],
            _ => vec![v4, v6],
        };
        let mut taken = BTreeSet::new();
        let ports = raw.ports.iter().enumerate().filter_map(|(p, (index, at_nodes))| {
            let (protocol, port, target) = *index.get(&PORTS);
            let node_port = at_nodes.then(|| 30_080 + u16::try_from(10 * n + p).expect("few"));
            taken.insert((protocol, port)).then_some(FrontPort { port, target, node_port, protocol })
        });
        fronts.push(Front {
            namespace: namespace.to_owned(),
            name,
            addresses,
            ports: ports.collect(),
            backends: workloads
                .iter()
                .filter(|workload| workload.namespace == namespace)
                .map(|workload| Backend::Workload(workload.name.clone()))
                .collect(),
        });
    }
    fronts
}

/// Leaves some of the backends, and adds others that are no workloads.
pub(super) fn revise(world: &mut World, raw: &[RawBackends]) {
    let there: BTreeSet<_> =
        world.workloads.iter().map(|workload| (workload.namespace.clone(), workload.name.clone())).collect();
    let nodes: Vec<_> = world.nodes.iter().map(|node| node.addresses[..2].to_vec()).collect();
    for (front, raw) in world.services.iter_mut().zip(raw) {
        let mut nth = 0;
        front.backends.retain(|backend| {
            let Backend::Workload(name) = backend else { return true };
            nth += 1;
            raw.without >> (nth - 1) & 1 == 0 && there.contains(&(front.namespace.clone(), name.clone()))
        });
        let others: Vec<IpAddr> = match raw.others {
            0 => nodes[0].clone(),
            1 => nodes[1].clone(),
            2 => vec![IpAddr::from([203, 0, 113, 9]), IpAddr::from([0x2001, 0xdb8, 5, 0, 0, 0, 0, 1])],
            3 => nodes.iter().flatten().copied().collect(),
            _ => Vec::new(),
        };
        // Nobody but those, now and then.
        if raw.others == 0 || raw.without & 0x80 != 0 {
            front.backends.clear();
        }
        front.backends.extend(others.into_iter().map(Backend::Address));
    }
}
