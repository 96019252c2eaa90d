//! What is published for the benchmark: a node of a large overlay, and the packets that it meets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bulkhead_dataplane::{
    desired::{
        Address, Backend, Desired, Endpoint, EndpointName, Entry, Interval, Overlay, Peers, PolicySet, Prefix, Rule,
        RuleId, SelectorId, ServiceAddress, SetId, View,
    },
    pieces::Pieces,
};
use bulkhead_ebpf::{
    abi::{Action, Config, Direction, FlowKey4, Mode, mapped},
    reason::Reason,
};
use bulkhead_fixtures::{Frame, Mac, VXLAN_PORT, tcp};
use ipnetwork::IpNetwork;

/// Family of a case's packets, inside and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// VNI of the overlay whose tunnels are of this family.
    pub(crate) const fn vni(self) -> u32 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }
}

/// What is published, and into tables of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tables {
    /// Few prefixes for what is not a known address, tables of the default sizes.
    Usual,
    /// Many prefixes.
    ManyPrefixes,
    /// Flow tables for many flows; and lists with audited entries, of which no established flow takes notice.
    ManyFlows,
}

/// Overlay of the endpoint.
pub(crate) const SEGMENT: u32 = Family::V4.vni();
/// Nodes of the overlay beside this one, and workloads on each of them.
const NODES: u16 = 250;
const WORKLOADS: u16 = 200;
/// Prefixes of [`Tables::ManyPrefixes`], of each family.
pub(crate) const MANY: u32 = 50_000;
/// Services that the workloads belong to. Policies name the first 36 of them.
const SERVICES: u16 = 40;
/// CIDRs that policies might name.
const CIDRS: u32 = 32;
/// Port that policies speak of.
pub(crate) const PORT: u16 = 5432;
/// Ports with a list whose deciding entry is in this tier, behind passes in all tiers before it.
pub(crate) const TIERS: [(u16, u8); 3] = [(6001, 1), (6002, 3), (6003, 8)];
/// Port of the service address.
pub(crate) const SERVICE_PORT: u16 = 80;

/// The endpoint under test.
pub(crate) const OWN_MAC: Mac = [2, 0x42, 10, 244, 0, 10];
/// The bridge, and what is behind it.
pub(crate) const OTHER_MAC: Mac = [2, 0x42, 10, 244, 0, 1];

/// A workload's address: node 0 is this one.
pub(crate) fn workload(family: Family, node: u16, host: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node as u8, host as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, host).into(),
    }
}

/// A node's address on the underlay: node 0 is this one.
pub(crate) fn vtep(family: Family, node: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, node as u8 + 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, node + 1).into(),
    }
}

/// The endpoint under test.
pub(crate) fn own(family: Family) -> IpAddr {
    workload(family, 0, 10)
}

/// A workload of another node that may talk to the endpoint and be talked to, on [`PORT`]: of service 7.
pub(crate) fn allowed(family: Family) -> IpAddr {
    member(family, 7)
}

/// A workload of another node that no rule names: of service 39.
pub(crate) fn denied(family: Family) -> IpAddr {
    member(family, 39)
}

/// A workload of another node that may talk to the endpoint and be talked to, and may not as far as audited entries say ([`Tables::ManyFlows`]).
pub(crate) fn doubtful(family: Family) -> IpAddr {
    member(family, 8)
}

/// A service address that leads to [`allowed`] and [`doubtful`].
pub(crate) fn service(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, 80).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x80).into(),
    }
}

/// Where in a frame the number of the peer's node is, in the destination or the source.
pub(crate) const fn peer_at(family: Family, sent: bool) -> u32 {
    match (family, sent) {
        (Family::V4, true) => 32,
        (Family::V4, false) => 28,
        (Family::V6, true) => 45,
        (Family::V6, false) => 29,
    }
}

fn member(family: Family, service: u16) -> IpAddr {
    let (node, host) = (125, 120 + service);
    debug_assert_eq!((node * WORKLOADS + host) % SERVICES, service);
    workload(family, node, host)
}

/// An address that no table of addresses has; with [`Tables::ManyPrefixes`] it lies in one of those.
pub(crate) fn unknown(family: Family, tables: Tables) -> IpAddr {
    match (tables, family) {
        (Tables::ManyPrefixes, family) => match many(family, MANY / 2).network() {
            IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() + 7).into(),
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() + 7).into(),
        },
        (_, Family::V4) => Ipv4Addr::new(203, 0, 113, 7).into(),
        (_, Family::V6) => Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 7).into(),
    }
}

fn many(family: Family, index: u32) -> IpNetwork {
    match family {
        Family::V4 => network(Ipv4Addr::from_bits(0x1000_0000 + (index << 8)).into(), 24),
        Family::V6 => network(Ipv6Addr::from_bits(0x2600_u128 << 112 | u128::from(index) << 80).into(), 48),
    }
}

fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).expect("a prefix length of its family")
}

/// Name of the endpoint under test.
pub(crate) fn name() -> EndpointName {
    EndpointName { namespace: "bench".to_owned(), workload: "db".to_owned(), index: 0 }
}

/// Settings of the node.
pub(crate) fn config() -> Config {
    let mut config = Config { tunnel_ports: [VXLAN_PORT, 0, 0, 0], vtep_count: 2, budget: 256, ..Config::default() };
    for (to, family) in config.vteps.iter_mut().zip(Family::ALL) {
        *to = words(vtep(family, 0));
    }
    config
}

/// An address as it lies in a packet, IPv4 mapped.
pub(crate) fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            [0, 1, 2, 3].map(|at| u32::from_ne_bytes(words[at]))
        }
    }
}

/// Ids by name while a [`Desired`] is put together.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn id(&mut self, name: String) -> u32 {
        let at = self.0.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.0.push(name);
            self.0.len() - 1
        });
        at as u32
    }
}

/// The state to publish.
pub(crate) fn desired(tables: Tables) -> Desired {
    let mut selectors = Names::default();
    let mut selector = |name: String| SelectorId(selectors.id(name));
    let services: Vec<SelectorId> = (0..SERVICES).map(|k| selector(format!("service bench/s{k}"))).collect();
    let cidrs: Vec<SelectorId> = (0..CIDRS).map(|k| selector(format!("cidr {k}"))).collect();
    let (world, node) = (selector("entity world".to_owned()), selector("entity node".to_owned()));

    let mut rules = Names::default();
    let sets = [Direction::Ingress, Direction::Egress]
        .map(|direction| set(direction, &services, node, tables, &mut |name| RuleId(rules.id(name))));

    let endpoint = Endpoint {
        name: name(),
        service: "bench/db".to_owned(),
        link: "bench0".to_owned(),
        segment: SEGMENT,
        addresses: Family::ALL.map(own).to_vec(),
        mode: Mode::Enforce,
        views: vec![View { ingress: SetId(0), egress: SetId(1), until: None }],
    };
    let mut addresses = Pieces::default();
    let mut known = BTreeMap::new();
    for family in Family::ALL {
        let own = Address { endpoint: Some(Box::new(name())), ..Address::default() };
        addresses.insert((SEGMENT, self::own(family)), own);
        for (node, host) in (1..=NODES).flat_map(|node| (1..=WORKLOADS).map(move |host| (node, host))) {
            let service = services[usize::from((node * WORKLOADS + host) % SERVICES)];
            let address = Address { selectors: [service].into(), encapsulated: true, ..Address::default() };
            addresses.insert((SEGMENT, workload(family, node, host)), address);
        }
        let (all, overlay) = match family {
            Family::V4 => (network(Ipv4Addr::UNSPECIFIED.into(), 0), network(Ipv4Addr::new(10, 244, 0, 0).into(), 16)),
            Family::V6 => (
                network(Ipv6Addr::UNSPECIFIED.into(), 0),
                network(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0).into(), 48),
            ),
        };
        known.insert((SEGMENT, all), Prefix { selectors: [world].into(), ..Prefix::default() });
        known.insert((SEGMENT, overlay), Prefix { overlay: true, encapsulated: true, ..Prefix::default() });
        let named = if tables == Tables::ManyPrefixes { MANY } else { 4 };
        for index in 0..named {
            let cidr = cidrs[(index % CIDRS) as usize];
            let prefix = Prefix { selectors: [world, cidr].into(), ..Prefix::default() };
            known.insert((SEGMENT, many(family, index)), prefix);
        }
    }
    Desired {
        selectors: selectors.0.into(),
        rules: rules.0.into_iter().map(|name| Rule { name, origin: String::new() }).collect(),
        sets: Vec::from(sets).into(),
        endpoints: vec![endpoint],
        addresses,
        prefixes: known,
        overlays: Family::ALL.map(overlay).into(),
        services: Family::ALL.map(translated).into(),
        ..Desired::default()
    }
}

/// The service address and its backends.
fn translated(family: Family) -> (ServiceAddress, BTreeSet<Backend>) {
    let service = ServiceAddress { segment: SEGMENT, address: Some(service(family)), protocol: 6, port: SERVICE_PORT };
    let backend = |address| Backend { address, port: PORT, judged_later: true };
    (service, [allowed(family), doubtful(family)].map(backend).into())
}

/// A flannel-like overlay: each node owns a prefix of either family.
fn overlay(family: Family) -> Overlay {
    let prefixes =
        |node| BTreeSet::from([network(workload(Family::V4, node, 0), 24), network(workload(Family::V6, node, 0), 64)]);
    Overlay {
        vni: family.vni(),
        port: VXLAN_PORT,
        own: vec![vtep(family, 0)],
        peers: (1..=NODES).map(|node| (vtep(family, node), prefixes(node))).collect(),
    }
}

/// An isolated direction with rules for a dozen intervals of ports. What begins at [`PORT`] has five entries; [`allowed`] hits the fourth,
/// what is denied runs down to the last.
fn set(
    direction: Direction,
    services: &[SelectorId],
    node: SelectorId,
    tables: Tables,
    rule: &mut dyn FnMut(String) -> RuleId,
) -> PolicySet {
    let mut entry = |tier, action, reason, peers: &[SelectorId]| Entry {
        tier,
        action,
        audit: false,
        reason,
        peers: Peers::Selectors(
            peers.iter().map(|id| (*id, rule(format!("{direction:?} {action:?} {}", id.0)))).collect(),
        ),
    };
    let audited = Entry { audit: true, ..entry(0, Action::Deny, Reason::DeniedByRule, &services[8..9]) };
    let tiers = TIERS.map(|(port, tier)| {
        let passes = (1..tier).map(|tier| entry(tier, Action::Pass, Reason::Rule, &services[..10]));
        let mut entries: Vec<_> = passes.collect();
        entries.push(entry(tier, Action::Allow, Reason::Rule, &services[..10]));
        (port, entries)
    });
    let mut entries = vec![
        entry(0, Action::Deny, Reason::DeniedByRule, &services[30..36]),
        entry(10, Action::Allow, Reason::Rule, &[node]),
        entry(10, Action::Allow, Reason::Rule, &services[10..20]),
        entry(10, Action::Allow, Reason::Rule, &services[..10]),
    ];
    if tables == Tables::ManyFlows {
        entries.insert(0, audited);
    }
    let other = vec![
        entry(10, Action::Allow, Reason::Rule, &services[20..30]),
        entry(10, Action::Allow, Reason::Rule, &[node]),
    ];
    let isolated = Entry {
        tier: 10,
        action: Action::Deny,
        audit: false,
        reason: Reason::Isolated,
        peers: Peers::Any(rule(format!("{direction:?} isolated"))),
    };
    let interval =
        |start, entries: &[Entry]| Interval { start, entries: [entries, std::slice::from_ref(&isolated)].concat() };
    let ports: Vec<Interval> =
        [(0, false), (22, true), (23, false), (80, true), (81, false), (443, true), (444, false)]
            .map(|(start, open)| interval(start, if open { &other } else { &[] }))
            .into_iter()
            .chain([interval(PORT, &entries), interval(PORT + 1, &[])])
            .chain(tiers.iter().map(|(port, entries)| interval(*port, entries)))
            .chain([interval(TIERS[2].0 + 1, &[]), interval(8080, &other), interval(8090, &[])])
            .collect();
    let closed = || vec![interval(0, &[])];
    PolicySet { direction, isolated: true, classes: [ports.clone(), ports, closed(), closed(), closed(), closed()] }
}

/// A packet that the endpoint sends: TCP with these flags, UDP without.
pub(crate) fn sent(to: IpAddr, from_port: u16, to_port: u16, flags: Option<u8>) -> Vec<u8> {
    segment(OWN_MAC, OTHER_MAC, own(of(to)), to, (from_port, to_port), flags)
}

/// A packet that the endpoint gets.
pub(crate) fn got(from: IpAddr, from_port: u16, to_port: u16, flags: Option<u8>) -> Vec<u8> {
    segment(OTHER_MAC, OWN_MAC, from, own(of(from)), (from_port, to_port), flags)
}

const fn of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// A packet from another node's tunnel, as [`Tunnel`] says.
pub(crate) fn tunnelled(family: Family, tunnel: &Tunnel) -> Vec<u8> {
    let Tunnel { vtep, vni, ref inner, fragment, broken } = *tunnel;
    let mut outer = Frame::eth([2, 0, 192, 0, 2, 2], [2, 0, 192, 0, 2, 1]).ip(vtep, self::vtep(family, 0));
    if fragment {
        outer = outer.fragment(1, 0, true);
    }
    let outer = outer.vxlan(vni);
    if broken { outer.vxlan_flags(0) } else { outer }.inner(inner.clone()).build()
}

/// What is in, and on, an encapsulated packet.
pub(crate) struct Tunnel {
    /// Outer source.
    pub(crate) vtep: IpAddr,
    pub(crate) vni: u32,
    pub(crate) inner: Frame,
    /// The first of several outer fragments.
    pub(crate) fragment: bool,
    /// The VXLAN header lacks its flag.
    pub(crate) broken: bool,
}

impl Tunnel {
    /// What a workload of node 2 sends to the endpoint, encapsulated by its node.
    pub(crate) fn genuine(family: Family) -> Self {
        let inner = Frame::eth([2, 0x42, 10, 244, 2, 0], [2, 0x42, 10, 244, 0, 0])
            .ip(workload(family, 2, 20), own(family))
            .tcp(40_000, PORT, tcp::ACK)
            .payload(32);
        Self { vtep: vtep(family, 2), vni: family.vni(), inner, fragment: false, broken: false }
    }

    /// A TCP segment of these flags from a workload of another node to the endpoint's [`PORT`], without payload. The tunnel is of IPv4.
    pub(crate) fn knocks(from: IpAddr, flags: u8) -> Self {
        let inner = Frame::eth([2, 0x42, 10, 244, 125, 0], [2, 0x42, 10, 244, 0, 0])
            .ip(from, own(of(from)))
            .tcp(40_000, PORT, flags);
        Self { vtep: vtep(Family::V4, 125), vni: Family::V4.vni(), inner, fragment: false, broken: false }
    }
}

/// A TCP segment for the node itself.
pub(crate) fn plain(family: Family) -> Vec<u8> {
    segment([2, 0, 192, 0, 2, 2], [2, 0, 192, 0, 2, 1], vtep(family, 2), vtep(family, 0), (40_000, 22), Some(tcp::ACK))
}

fn segment(src: Mac, dst: Mac, from: IpAddr, to: IpAddr, ports: (u16, u16), flags: Option<u8>) -> Vec<u8> {
    let packet = Frame::eth(src, dst).ip(from, to);
    match flags {
        Some(flags) => packet.tcp(ports.0, ports.1, flags),
        None => packet.udp(ports.0, ports.1),
    }
    .payload(32)
    .build()
}

/// Key of the flow that the floor programs know, and the packet that has it.
pub(crate) fn floor_flow() -> FlowKey4 {
    let address = |address| words(address)[3];
    FlowKey4 {
        local: address(own(Family::V4)),
        remote: address(allowed(Family::V4)),
        local_port: 40_000_u16.to_be(),
        remote_port: PORT.to_be(),
        protocol: 6,
        padding: [0; 3],
    }
}

/// See [`floor_flow`].
pub(crate) fn floor_packet() -> Vec<u8> {
    sent(allowed(Family::V4), 40_000, PORT, Some(tcp::ACK))
}
