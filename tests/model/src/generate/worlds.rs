use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::{prelude::*, sample::Index};

use super::{Features, guards, services};
use crate::{
    Prefix, World,
    intent::{self, Intent, Line, Name, Service},
    policy::{Cidrs, Level, Ports},
    world::{Endpoint, Entity, Labels, Node, NodeSegment, Protocol, Segment, Workload},
    yaml,
};

/// MAC of the node's side of every link.
pub const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// UDP port of the overlay.
pub const TUNNEL_PORT: u16 = 8472;

pub(super) const NAMESPACES: [&str; 2] = ["shop", "ops"];
pub(super) const SERVICES: [&str; 5] = ["web", "cart", "db", "cache", "jobs"];
pub(super) const TIERS: [&str; 2] = ["front", "back"];
const LABEL: &str = "app";

/// What external peers may be. The ranges overlap on purpose, hold workloads and nodes, and have holes in holes.
const EXTERNAL: [(&str, &[&str], &[&str]); 6] = [
    ("stripe", &["198.51.100.0/24", "2001:db8:5::/48"], &["198.51.100.13/32"]),
    ("office", &["198.51.100.0/28", "203.0.113.0/24"], &["203.0.113.128/25", "203.0.113.7/32"]),
    ("pods", &["10.244.0.0/16", "fd00:10:244::/48"], &["10.244.2.0/24", "fd00:10:244:2::/64"]),
    ("legacy", &["10.0.0.0/8", "192.0.2.0/24"], &["10.244.1.4/31", "192.0.2.2/32"]),
    ("all4", &["0.0.0.0/0"], &[]),
    ("all6", &["::/0"], &["2001:db8::/32"]),
];

pub(super) const ENTITIES: [Entity; 5] =
    [Entity::World, Entity::Node, Entity::Nodes, Entity::Cluster, Entity::Metadata];

/// A workload, before it has a place.
#[derive(Clone, Debug)]
struct Raw {
    namespace: Index,
    service: Index,
    tier: Index,
    remote: bool,
    second_segment: bool,
    single_family: u8,
    ports: [Index; 3],
}

/// A service of a policy, before names are resolved.
#[derive(Clone, Debug)]
struct RawService {
    namespace: Index,
    name: Index,
    second_document: bool,
    /// 0: by the service label; 1: by tier; 2: by both.
    select: u8,
    accepts: Vec<(Index, Index)>,
    calls: Vec<(Index, Index)>,
}

#[derive(Clone, Debug)]
struct RawRevision {
    services: Vec<RawService>,
    externals: [[bool; EXTERNAL.len()]; NAMESPACES.len()],
    dns: [bool; NAMESPACES.len()],
    /// A node without overlay that has addresses which are otherwise outside.
    third_node: bool,
    /// For each workload: 0 gone, 1 another label, else as it is.
    fates: Vec<u8>,
    audit: RawAudit,
    guards: guards::Raw,
    backends: Vec<services::RawBackends>,
}

/// What only reports, of the allow-lists.
#[derive(Clone, Debug, Default)]
struct RawAudit {
    documents: [[bool; 2]; NAMESPACES.len()],
    services: [[bool; SERVICES.len()]; NAMESPACES.len()],
}

/// A series of worlds: the same nodes and places, workloads that come, go and change their labels, and a policy of its
/// own each.
pub fn worlds(features: Features) -> impl Strategy<Value = Vec<World>> {
    let workloads = prop::collection::vec(raw_workload(), 3..8);
    // Names of workloads occur in one scenario only: who runs many on the same tables can tell their counters apart.
    let tag = any::<u32>().no_shrink();
    let revisions = prop::collection::vec(revision(features), 1..4);
    (workloads, any::<Index>(), revisions, tag, services::raw(features)).prop_map(
        |(raw, resolver, revisions, tag, fronts)| {
            let mut base = base(&raw, resolver, tag);
            base.services = services::fronts(&fronts, &base.workloads);
            revisions.iter().map(|revision| revise(&base, revision)).collect()
        },
    )
}

fn raw_workload() -> impl Strategy<Value = Raw> {
    (any::<[Index; 3]>(), prop::bool::weighted(0.35), prop::bool::weighted(0.1), 0..10_u8, any::<[Index; 3]>())
        .prop_map(|([namespace, service, tier], remote, second_segment, single_family, ports)| Raw {
            namespace,
            service,
            tier,
            remote,
            second_segment,
            single_family,
            ports,
        })
}

fn revision(features: Features) -> impl Strategy<Value = RawRevision> {
    let services = prop::collection::vec(raw_service(), 8..20);
    let fates = prop::collection::vec(0..12_u8, 8);
    let lists = (services, any::<[[bool; EXTERNAL.len()]; 2]>(), any::<[bool; 2]>(), prop::bool::weighted(0.3), fates);
    (lists, audit(features), guards::raw(features), services::backends(features)).prop_map(
        |((services, externals, dns, third_node, fates), audit, guards, backends)| RawRevision {
            services,
            externals,
            dns,
            third_node,
            fates,
            audit,
            guards,
            backends,
        },
    )
}

fn audit(features: Features) -> BoxedStrategy<RawAudit> {
    if !features.audit {
        return Just(RawAudit::default()).boxed();
    }
    let some = prop::bool::weighted;
    let documents = prop::array::uniform(prop::array::uniform(some(0.25)));
    let services = prop::array::uniform(prop::array::uniform(some(0.15)));
    let audit = (documents, services).prop_map(|(documents, services)| RawAudit { documents, services });
    prop_oneof![1 => Just(RawAudit::default()), 2 => audit].boxed()
}

fn raw_service() -> impl Strategy<Value = RawService> {
    let lines = || prop::collection::vec(any::<(Index, Index)>(), 0..6);
    (any::<[Index; 2]>(), any::<bool>(), 0..6_u8, lines(), lines()).prop_map(
        |([namespace, name], second_document, select, accepts, calls)| RawService {
            namespace,
            name,
            second_document,
            select,
            accepts,
            calls,
        },
    )
}

fn base(raw: &[Raw], resolver: Index, tag: u32) -> World {
    let node = |n: u8, vnis: &[Segment]| Node {
        name: format!("n{n}"),
        addresses: vec![
            IpAddr::from([192, 0, 2, n]),
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]),
            // The bridge's own addresses lie in the overlay's range.
            IpAddr::from([10, 244, n, 1]),
            IpAddr::from([0xfd00, 0x10, 0x244, u16::from(n), 0, 0, 0, 1]),
        ],
        segments: vnis
            .iter()
            .map(|&vni| NodeSegment {
                vni,
                vtep: IpAddr::from([192, 0, 2, n]),
                prefixes: vec![
                    Prefix::literal(&format!("10.244.{n}.0/24")),
                    Prefix::literal(&format!("fd00:10:244:{n}::/64")),
                ],
            })
            .collect(),
    };
    // Two overlays with the same addresses, where anybody is in the second.
    let vnis: &[Segment] = if raw.iter().any(|raw| raw.second_segment) { &[1, 2] } else { &[1] };
    let workloads: Vec<_> = raw.iter().enumerate().map(|(i, raw)| place(i, raw, tag)).collect();
    let resolvers = if resolver.index(3) == 0 {
        vec![IpAddr::from([203, 0, 113, 53]), IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x53])]
    } else {
        workloads[resolver.index(workloads.len())].endpoints[0].addresses.clone()
    };
    World {
        here: 0,
        service_label: LABEL.to_owned(),
        nodes: vec![node(1, vnis), node(2, vnis)],
        tunnel_ports: vec![TUNNEL_PORT],
        resolvers,
        namespaces: BTreeMap::new(),
        workloads,
        services: Vec::new(),
        policy: Vec::new(),
    }
}

fn place(i: usize, raw: &Raw, tag: u32) -> Workload {
    // There is somebody to ask on this node.
    let node = usize::from(raw.remote && i > 0);
    let segment = 1 + u32::from(raw.second_segment && i > 0);
    // Both overlays give the same addresses out.
    let number = 4 + u16::try_from(i).expect("few") - u16::from(segment == 2);
    let [_, low] = number.to_be_bytes();
    let [_, n] = u16::try_from(node + 1).expect("few").to_be_bytes();
    let v4 = IpAddr::from([10, 244, n, low]);
    let v6 = IpAddr::from([0xfd00, 0x10, 0x244, u16::from(n), 0, 0, 0, number]);
    let addresses = match raw.single_family {
        0 => vec![v4],
        1 => vec![v6],
        _ => vec![v4, v6],
    };
    let service = SERVICES[raw.service.index(SERVICES.len())];
    let [http, metrics, dns] = raw.ports;
    let mut ports = BTreeMap::new();
    ports.insert("http".to_owned(), ([80, 8080][http.index(2)], Protocol::Tcp));
    if metrics.index(2) == 0 {
        ports.insert("metrics".to_owned(), ([9100, 8050][metrics.index(4) / 2], Protocol::Tcp));
    }
    if dns.index(3) == 0 {
        ports.insert("dns".to_owned(), (53, Protocol::Udp));
    }
    Workload {
        namespace: NAMESPACES[raw.namespace.index(NAMESPACES.len())].to_owned(),
        name: format!("{service}-{i}-{tag:x}"),
        labels: labels(service, TIERS[raw.tier.index(TIERS.len())]),
        node,
        ports,
        endpoints: vec![Endpoint {
            segment,
            addresses,
            mac: [0x02, 0x42, 0, 0, segment.to_be_bytes()[3], low],
            link: format!("veth{i}"),
        }],
    }
}

fn labels(service: &str, tier: &str) -> Labels {
    [(LABEL.to_owned(), service.to_owned()), ("tier".to_owned(), tier.to_owned())].into()
}

fn revise(base: &World, raw: &RawRevision) -> World {
    let mut world = base.clone();
    if raw.third_node {
        let addresses = vec![IpAddr::from([198, 51, 100, 200]), IpAddr::from([0x2001, 0xdb8, 6, 0, 0, 0, 0, 1])];
        world.nodes.push(Node { name: "n3".to_owned(), addresses, segments: Vec::new() });
    }
    for (workload, fate) in world.workloads.iter_mut().zip(&raw.fates) {
        if *fate == 1 {
            let next = SERVICES.iter().position(|name| workload.labels[LABEL] == **name).map_or(0, |at| at + 1);
            workload.labels.insert(LABEL.to_owned(), SERVICES[next % SERVICES.len()].to_owned());
        }
    }
    let mut fates = raw.fates.iter();
    world.workloads.retain(|_| fates.next() != Some(&0));
    let mut intents = intents(raw);
    // Who has a port is asked of what is wanted.
    world.policy = vec![Level::Intents(intents.clone())];
    name_ports(&world, &mut intents);
    world.policy = vec![Level::Intents(intents)];
    raw.guards.give(&mut world);
    services::revise(&mut world, &raw.backends);
    world
}

/// A port's name that none of the listeners has is an error of who writes it. Gives lines their names.
fn name_ports(world: &World, intents: &mut [Intent]) {
    let listens = |namespace: &str, service: &str, port: &str| {
        let mut members =
            world.workloads.iter().filter(|w| intent::named_member(world, namespace, service, w)).peekable();
        members.peek().is_none() || members.any(|w| w.ports.contains_key(port))
    };
    for Intent { namespace, services, .. } in intents {
        for (name, service) in services {
            for (verb, lines) in [("accepts", &mut service.accepts), ("calls", &mut service.calls)] {
                let mut seen = BTreeSet::new();
                for line in lines.iter_mut() {
                    let Line { id, peer, ports } = line;
                    if let Ports::Named(port) = ports {
                        let known = match peer {
                            _ if verb == "accepts" => listens(namespace, name, port),
                            Name::Own(service) => listens(namespace, service, port),
                            Name::Other(namespace, service) => listens(namespace, service, port),
                            Name::Entity(Entity::Cluster) => world.workloads.iter().any(|w| w.ports.contains_key(port)),
                            Name::Entity(_) => false,
                        };
                        if !known {
                            *ports = Ports::Range(Protocol::Tcp, 443, 443);
                        }
                    }
                    *id = format!("{namespace}: {name} {verb} {}", yaml::canonical_edge(peer, ports));
                }
                lines.retain(|line| seen.insert(line.id.clone()));
            }
        }
    }
}

fn intents(raw: &RawRevision) -> Vec<Intent> {
    let mut intents = Vec::new();
    // A service is declared once; the first wish is granted.
    let declared: BTreeMap<(usize, usize), &RawService> = raw
        .services
        .iter()
        .rev()
        .map(|service| ((service.namespace.index(NAMESPACES.len()), service.name.index(SERVICES.len())), service))
        .collect();
    for (n, namespace) in NAMESPACES.iter().enumerate() {
        let externals: Vec<_> = (0..EXTERNAL.len()).filter(|&i| raw.externals[n][i]).map(|i| EXTERNAL[i]).collect();
        let own: Vec<_> = declared.keys().filter(|key| key.0 == n).map(|key| SERVICES[key.1]).collect();
        let other = NAMESPACES[1 - n];
        let mut names: Vec<Name> = ENTITIES.iter().map(|entity| Name::Entity(*entity)).collect();
        // Services twice, so that walls get doors.
        names.extend(own.iter().chain(&own).map(|name| Name::Own((*name).to_owned())));
        names.extend(externals.iter().map(|(name, ..)| Name::Own((*name).to_owned())));
        names.extend(
            declared
                .keys()
                .filter(|key| key.0 != n)
                .map(|key| Name::Other(other.to_owned(), SERVICES[key.1].to_owned())),
        );
        names.push(Name::Other(other.to_owned(), "ghost".to_owned()));

        for second in [false, true] {
            let mut intent = Intent {
                namespace: (*namespace).to_owned(),
                audit: raw.audit.documents[n][usize::from(second)],
                // Stated in the first document, true for its services.
                dns: raw.dns[n] && !second,
                ..Intent::default()
            };
            if !second {
                for (name, cidrs, except) in &externals {
                    let prefixes = |texts: &[&str]| texts.iter().map(|text| Prefix::literal(text)).collect();
                    let cidrs = Cidrs { cidrs: prefixes(cidrs), except: prefixes(except) };
                    intent.external.insert((*name).to_owned(), cidrs);
                }
            }
            for ((_, at), raw_service) in
                declared.iter().filter(|(key, raw)| key.0 == n && raw.second_document == second)
            {
                let name = SERVICES[*at];
                let lines = |verb: &str, raw: &[(Index, Index)]| lines(verb, raw, &names);
                let tier = TIERS[raw_service.name.index(2)];
                let select = match raw_service.select {
                    0 => Some([("tier".to_owned(), tier.to_owned())].into()),
                    1 => Some(labels(name, tier)),
                    _ => None,
                };
                let service = Service {
                    select,
                    audit: raw.audit.services[n][*at],
                    accepts: lines("accepts", &raw_service.accepts),
                    calls: lines("calls", &raw_service.calls),
                };
                intent.services.insert(name.to_owned(), service);
            }
            if !intent.services.is_empty() || !intent.external.is_empty() {
                intents.push(intent);
            }
        }
    }
    intents
}

fn lines(verb: &str, raw: &[(Index, Index)], names: &[Name]) -> Vec<Line> {
    let line = |(peer, ports): &(Index, Index)| {
        let peer = peer.get(names).clone();
        let mut ports = ports.get(&offers()).clone();
        // A port's name is looked up at the workload that listens; what is no workload has none.
        let external = matches!(&peer, Name::Own(name) if !SERVICES.contains(&name.as_str()));
        if verb == "calls" && external && matches!(ports, Ports::Named(_)) {
            ports = Ports::Range(Protocol::Tcp, 443, 443);
        }
        Line { id: String::new(), peer, ports }
    };
    raw.iter().map(line).collect()
}

/// What lines may offer.
pub(super) fn offers() -> Vec<Ports> {
    use Protocol::{Sctp, Tcp, Udp};
    let named = |name: &str| Ports::Named(name.to_owned());
    vec![
        Ports::Range(Tcp, 80, 80),
        Ports::Range(Tcp, 443, 443),
        Ports::Range(Tcp, 5432, 5432),
        Ports::Range(Tcp, 8080, 8080),
        Ports::Range(Tcp, 8000, 8099),
        Ports::Range(Tcp, 8050, 8472),
        Ports::Range(Tcp, 1, 65535),
        Ports::Range(Udp, 53, 53),
        Ports::Range(Udp, 8050, 8200),
        Ports::Range(Udp, 8400, 8500),
        Ports::Range(Sctp, 9000, 9000),
        Ports::Echo,
        Ports::Echo,
        Ports::Proto(89),
        Ports::Proto(47),
        named("http"),
        named("metrics"),
        named("dns"),
        Ports::Any,
        Ports::Any,
    ]
}
