//! Random states that a node shall be in, and how one becomes the next: small enough that everything meets everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_dataplane::desired::{
    Address, Backend, Desired, Endpoint, EndpointName, Entry, Interval, Overlay, Peers, PolicySet, Prefix, Rule,
    RuleId, SelectorId, ServiceAddress, SetId, View,
};
use bulkhead_ebpf::{
    abi::{Action, Direction, Mode},
    reason::Reason,
};
use proptest::{collection::vec, prelude::*};

pub(crate) const SELECTORS: u32 = 8;
const ENDPOINTS: usize = 4;
const SETS: usize = 5;
/// Addresses of others: remote workloads, nodes.
const OTHERS: [(u32, &str, bool); 5] = [
    (1, "10.0.0.9", false),
    (2, "10.0.0.1", false),
    (1, "fd00::9", false),
    (1, "192.0.2.1", true),
    (2, "192.0.2.1", true),
];
/// Nested on purpose: what comes and goes changes what covers other things.
const PREFIXES: [(u32, &str); 8] = [
    (1, "0.0.0.0/0"),
    (1, "10.0.0.0/8"),
    (1, "10.0.0.0/16"),
    (1, "10.0.0.0/28"),
    (2, "0.0.0.0/0"),
    (1, "::/0"),
    (1, "fd00::/8"),
    (1, "192.0.2.1/32"),
];
/// Peers that nobody knows by address.
const STRANGERS: [&str; 5] = ["10.0.0.7", "10.0.9.9", "10.9.9.9", "203.0.113.5", "fd00::77"];
/// Service addresses and ports, TCP: one of each family, and a port of every node.
pub(crate) const SERVICES: [(Option<&str>, u16); 3] = [(Some("10.96.3.4"), 80), (Some("fd96::4"), 80), (None, 30_080)];
/// Who may be a backend beside the endpoints of this node: somebody's workload, and somebody whom nobody knows.
const BACKENDS: [[&str; 2]; 2] = [["10.0.0.9", "fd00::9"], ["203.0.113.5", "fd00::77"]];
/// A deadline that no test lives to see: in the year 2100, the same for every process.
const LATER: u64 = 4_102_444_800_000_000_000;

/// One line of a list; the last one of every interval is added by [`World::desired`].
#[derive(Clone, Debug)]
pub(crate) struct Line {
    tier: u8,
    action: Action,
    /// Everyone, or bits of selectors.
    peers: Option<u8>,
    /// Rules are `rule`, `rule + 1`, .. for the selectors in turn.
    rule: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Set {
    isolated: bool,
    /// Starts and lines: TCP has all, ICMP the first, the others none.
    intervals: Vec<(u16, Vec<Line>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    there: bool,
    selectors: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Guest {
    there: bool,
    selectors: u8,
    sets: (usize, usize),
    mode: Mode,
    /// Another address beside the first: new data, so a new slot.
    second_address: bool,
    /// What held before a deadline, and whether the deadline is past.
    deadline: Option<(usize, bool)>,
}

/// A service address.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    there: bool,
    /// Bits of the endpoints, then of [`BACKENDS`].
    backends: u8,
    /// Those of them that listen on another port.
    elsewhere: u8,
    /// Those of them to which no program of this node stands on the way.
    unjudged: u8,
}

/// All that can change.
#[derive(Clone, Debug)]
pub(crate) struct World {
    guests: Vec<Guest>,
    others: Vec<Member>,
    prefixes: Vec<Member>,
    sets: Vec<Set>,
    /// Selectors that exist though no list reads them.
    declared: u8,
    vteps: u8,
    services: Vec<Served>,
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Guest(usize, Guest),
    Relabel(usize, u8),
    Other(usize, Member),
    Prefix(usize, Member),
    Set(usize, Set),
    Declare(u8),
    Vteps(u8),
    Service(usize, Served),
    Namespace(Namespace),
}

/// Every other workload, on this node and elsewhere, has other labels and other policies at once: rows and endpoint words move together.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    odd: bool,
    labels: u8,
    sets: (usize, usize),
}

/// What lists do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbs {
    /// Whatever they can.
    Anything,
    /// They allow some peers, and no more.
    Allow,
    /// They deny some peers, and no more.
    Deny,
}

fn line(verbs: Verbs) -> impl Strategy<Value = Line> {
    let actions = match verbs {
        Verbs::Anything => vec![Action::Allow, Action::Deny, Action::Pass],
        Verbs::Allow => vec![Action::Allow],
        Verbs::Deny => vec![Action::Deny],
    };
    let some = (verbs != Verbs::Anything).then_some(1);
    (0..3u8, proptest::sample::select(actions), proptest::option::weighted(0.9, 1..=u8::MAX), 0..12u8)
        .prop_map(move |(tier, action, peers, rule)| Line { tier, action, peers: peers.or(some), rule })
}

fn set(verbs: Verbs) -> impl Strategy<Value = Set> {
    let lines = || vec(line(verbs), 0..4);
    // More than one table has, here and there.
    let many = prop::option::weighted(0.2, 20..70u16);
    let others = vec((proptest::sample::select(vec![80u16, 443, 8080]), lines()), 0..3);
    let isolated = prop::bool::weighted(if verbs == Verbs::Deny { 0.2 } else { 0.8 });
    (isolated, others, lines(), many, lines()).prop_map(|(isolated, others, first, many, every_second)| {
        let mut intervals: BTreeMap<u16, Vec<Line>> = others.into_iter().collect();
        for number in 0..many.unwrap_or_default() {
            let lines = if number % 2 == 0 { &first } else { &every_second };
            intervals.insert(1000 + 10 * number, lines.clone());
        }
        intervals.insert(0, first);
        intervals.values_mut().for_each(|lines| lines.sort_by_key(|line| line.tier));
        Set { isolated, intervals: intervals.into_iter().collect() }
    })
}

fn guest() -> impl Strategy<Value = Guest> {
    let mode = prop_oneof![8 => Just(Mode::Enforce), 1 => Just(Mode::Quarantine)];
    let deadline = proptest::option::weighted(0.2, (0..SETS, any::<bool>()));
    (prop::bool::weighted(0.8), any::<u8>(), (0..SETS, 0..SETS), mode, prop::bool::weighted(0.2), deadline).prop_map(
        |(there, selectors, sets, mode, second_address, deadline)| Guest {
            there,
            selectors,
            sets,
            mode,
            second_address,
            deadline,
        },
    )
}

fn member() -> impl Strategy<Value = Member> {
    (prop::bool::weighted(0.7), any::<u8>()).prop_map(|(there, selectors)| Member { there, selectors })
}

/// A random world.
pub(crate) fn world(verbs: Verbs) -> impl Strategy<Value = World> {
    (
        vec(guest(), ENDPOINTS),
        vec(member(), OTHERS.len()),
        vec(member(), PREFIXES.len()),
        vec(set(verbs), SETS),
        any::<u8>(),
        0..8u8,
        vec(served(), SERVICES.len()),
    )
        .prop_map(|(guests, others, prefixes, sets, declared, vteps, services)| World {
            guests,
            others,
            prefixes,
            sets,
            declared,
            vteps,
            services,
        })
}

fn served() -> impl Strategy<Value = Served> {
    (prop::bool::weighted(0.8), any::<u8>(), any::<u8>(), prop_oneof![3 => Just(0), 1 => any::<u8>()])
        .prop_map(|(there, backends, elsewhere, unjudged)| Served { there, backends, elsewhere, unjudged })
}

/// A namespace that is relabelled.
pub(crate) fn namespace() -> impl Strategy<Value = Edit> {
    (any::<bool>(), 1..=u8::MAX, (0..SETS, 0..SETS))
        .prop_map(|(odd, labels, sets)| Edit::Namespace(Namespace { odd, labels, sets }))
}

fn edit(verbs: Verbs) -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => (0..ENDPOINTS, guest()).prop_map(|(at, guest)| Edit::Guest(at, guest)),
        4 => (0..ENDPOINTS, any::<u8>()).prop_map(|(at, selectors)| Edit::Relabel(at, selectors)),
        3 => (0..OTHERS.len(), member()).prop_map(|(at, member)| Edit::Other(at, member)),
        4 => (0..PREFIXES.len(), member()).prop_map(|(at, member)| Edit::Prefix(at, member)),
        4 => (0..SETS, set(verbs)).prop_map(|(at, set)| Edit::Set(at, set)),
        1 => any::<u8>().prop_map(Edit::Declare),
        1 => (0..8u8).prop_map(Edit::Vteps),
        2 => (0..SERVICES.len(), served()).prop_map(|(at, served)| Edit::Service(at, served)),
        1 => namespace(),
    ]
}

/// Changes for one publish after another.
pub(crate) fn edits(verbs: Verbs, publishes: usize) -> impl Strategy<Value = Vec<Vec<Edit>>> {
    vec(vec(edit(verbs), 1..5), publishes)
}

fn bits(set: u8) -> impl Iterator<Item = u32> {
    (0..SELECTORS).filter(move |bit| set & (1 << bit) != 0)
}

pub(crate) fn name(at: usize) -> EndpointName {
    EndpointName { namespace: "shop".to_owned(), workload: format!("w{at}"), index: 0 }
}

/// Everyone who may talk to an endpoint in segment 1.
pub(crate) fn peers() -> Vec<IpAddr> {
    let own = (0..ENDPOINTS).flat_map(addresses);
    let others = OTHERS.iter().map(|(_, address, _)| address.parse().unwrap());
    own.chain(others)
        .chain(STRANGERS.iter().map(|address| address.parse().unwrap()))
        .collect::<BTreeSet<IpAddr>>()
        .into_iter()
        .collect()
}

fn addresses(at: usize) -> [IpAddr; 3] {
    [format!("10.0.0.{}", at + 1), format!("fd00::{}", at + 1), format!("10.0.1.{}", at + 1)]
        .map(|address| address.parse().unwrap())
}

impl World {
    pub(crate) fn apply(&mut self, edits: &[Edit]) {
        for edit in edits.iter().cloned() {
            match edit {
                Edit::Guest(at, guest) => self.guests[at] = guest,
                Edit::Relabel(at, selectors) => self.guests[at].selectors = selectors,
                Edit::Other(at, member) => self.others[at] = member,
                Edit::Prefix(at, member) => self.prefixes[at] = member,
                Edit::Set(at, set) => self.sets[at] = set,
                Edit::Declare(declared) => self.declared = declared,
                Edit::Vteps(vteps) => self.vteps = vteps,
                Edit::Service(at, served) => self.services[at] = served,
                Edit::Namespace(Namespace { odd, labels, sets }) => {
                    for guest in self.guests.iter_mut().skip(usize::from(odd)).step_by(2) {
                        guest.selectors ^= labels;
                        guest.sets = sets;
                    }
                    self.others
                        .iter_mut()
                        .skip(usize::from(odd))
                        .step_by(2)
                        .for_each(|other| other.selectors ^= labels);
                }
            }
        }
    }

    /// Selectors that some used set reads, or that are declared.
    fn selectors(&self) -> Vec<u32> {
        let there = self.guests.iter().filter(|guest| guest.there);
        let used: BTreeSet<usize> = there
            .flat_map(|guest| [Some(guest.sets.0), Some(guest.sets.1), guest.deadline.map(|(set, _)| set)])
            .flatten()
            .collect();
        let lines = used.iter().flat_map(|set| self.sets[*set].intervals.iter().flat_map(|(_, lines)| lines));
        let read = lines.filter_map(|line| line.peers).fold(self.declared & 0x0f, |all, peers| all | peers);
        // Not in order: an index says nothing of what a selector is.
        bits(read).rev_by(usize::from(self.declared))
    }

    pub(crate) fn desired(&self) -> Desired {
        let selectors = self.selectors();
        let index: BTreeMap<u32, SelectorId> =
            selectors.iter().zip(0..).map(|(bit, at)| (*bit, SelectorId(at))).collect();
        let some = |set: u8| bits(set).filter_map(|bit| index.get(&bit).copied()).collect::<BTreeSet<SelectorId>>();
        let mut rules: Vec<Rule> =
            (0..20).map(|n| Rule { name: format!("rule {n}"), origin: format!("shop.yaml:{n}") }).collect();
        let isolation = RuleId(rules.len() as u32);
        rules.push(Rule { name: "isolated".to_owned(), origin: String::new() });
        let open = RuleId(rules.len() as u32);
        rules.push(Rule { name: "not isolated".to_owned(), origin: String::new() });

        let mut desired = Desired {
            selectors: selectors.iter().map(|bit| format!("selector {bit}")).collect(),
            rules: rules.into(),
            ..Desired::default()
        };
        let mut ids: BTreeMap<(usize, Direction), SetId> = BTreeMap::new();
        let mut set = |at: usize, direction: Direction| {
            *ids.entry((at, direction)).or_insert_with(|| {
                let entries = |lines: &[Line]| {
                    let line = |line: &Line| Entry {
                        tier: line.tier,
                        action: line.action,
                        audit: false,
                        reason: if line.action == Action::Allow { Reason::Rule } else { Reason::DeniedByRule },
                        peers: match line.peers {
                            None => Peers::Any(RuleId(line.rule.into())),
                            Some(set) => Peers::Selectors(
                                some(set)
                                    .into_iter()
                                    .zip(u32::from(line.rule)..)
                                    .map(|(s, rule)| (s, RuleId(rule)))
                                    .collect(),
                            ),
                        },
                    };
                    let last = match self.sets[at].isolated {
                        true => Entry {
                            tier: 10,
                            action: Action::Deny,
                            audit: false,
                            reason: Reason::Isolated,
                            peers: Peers::Any(isolation),
                        },
                        false => Entry {
                            tier: 10,
                            action: Action::Allow,
                            audit: false,
                            reason: Reason::NotIsolated,
                            peers: Peers::Any(open),
                        },
                    };
                    lines.iter().map(line).chain([last]).collect::<Vec<Entry>>()
                };
                let intervals = |lines: &[(u16, Vec<Line>)]| {
                    lines
                        .iter()
                        .map(|(start, lines)| Interval { start: *start, entries: entries(lines) })
                        .collect::<Vec<Interval>>()
                };
                let (tcp, icmp, rest) = (
                    intervals(&self.sets[at].intervals),
                    intervals(&self.sets[at].intervals[..1]),
                    intervals(&[(0, Vec::new())]),
                );
                let classes = [tcp, rest.clone(), rest.clone(), icmp.clone(), icmp, rest];
                desired.sets.push(PolicySet { direction, isolated: self.sets[at].isolated, classes }.into());
                SetId(desired.sets.len() as u32 - 1)
            })
        };
        let mut endpoints = Vec::new();
        for (at, guest) in self.guests.iter().enumerate().filter(|(_, guest)| guest.there) {
            let mut views = vec![View {
                ingress: set(guest.sets.0, Direction::Ingress),
                egress: set(guest.sets.1, Direction::Egress),
                until: None,
            }];
            if let Some((before, past)) = guest.deadline {
                let until = Some(if past { 1 } else { LATER });
                views.insert(
                    0,
                    View { ingress: set(before, Direction::Ingress), egress: set(before, Direction::Egress), until },
                );
            }
            let addresses = addresses(at)[..if guest.second_address { 3 } else { 2 }].to_vec();
            endpoints.push(Endpoint {
                name: name(at),
                service: format!("service {}", at % 2),
                link: format!("veth{at}"),
                segment: 1,
                addresses,
                mode: guest.mode,
                views,
            });
            for address in &endpoints.last().unwrap().addresses {
                let known = Address {
                    selectors: some(guest.selectors),
                    endpoint: Some(Box::new(name(at))),
                    ..Address::default()
                };
                desired.addresses.insert((1, *address), known);
            }
        }
        desired.endpoints = endpoints;
        for ((segment, address, node), other) in OTHERS.iter().zip(&self.others).filter(|(_, other)| other.there) {
            // The first is a workload's address at one time and a node's at another.
            let node = *node || *address == OTHERS[0].1 && other.selectors & 0x80 != 0;
            let known = Address { selectors: some(other.selectors), node, ..Address::default() };
            desired.addresses.insert((*segment, address.parse().unwrap()), known);
        }
        for ((segment, prefix), member) in PREFIXES.iter().zip(&self.prefixes).filter(|(_, member)| member.there) {
            let prefix_of = Prefix { selectors: some(member.selectors), ..Prefix::default() };
            desired.prefixes.insert((*segment, prefix.parse().unwrap()), prefix_of);
        }
        for ((address, port), served) in SERVICES.iter().zip(&self.services).filter(|(_, served)| served.there) {
            let address: Option<IpAddr> = address.map(|address| address.parse().unwrap());
            let families = [IpAddr::is_ipv4, IpAddr::is_ipv6].into_iter().enumerate();
            let families = families.filter(|(_, is)| address.as_ref().is_none_or(is));
            let backends = families.flat_map(|(family, _)| {
                bits(served.backends).take_while(|bit| (*bit as usize) < ENDPOINTS + BACKENDS.len()).map(move |bit| {
                    let at = bit as usize;
                    let others = || BACKENDS[at - ENDPOINTS][family].parse().unwrap();
                    Backend {
                        address: if at < ENDPOINTS { addresses(at)[family] } else { others() },
                        port: if served.elsewhere & 1 << bit == 0 { 8080 } else { 500 },
                        judged_later: at < ENDPOINTS || served.unjudged & 1 << bit == 0,
                    }
                })
            });
            let service = ServiceAddress { segment: 1, address, protocol: 6, port: *port };
            desired.services.insert(service, backends.collect());
        }
        let peers = bits(self.vteps).map(|n| {
            let owned = [format!("10.{}.0.0/16", self.vteps ^ n as u8), format!("fd0{n}::/64")];
            (IpAddr::from([192, 0, 2, n as u8]), owned.map(|prefix| prefix.parse().unwrap()).into())
        });
        desired.overlays.push(Overlay { vni: 1, port: 8472, own: Vec::new(), peers: peers.collect() });
        desired
    }
}

trait RevBy: Iterator<Item = u32> + Sized {
    /// All of it, turned by some places.
    fn rev_by(self, places: usize) -> Vec<u32> {
        let mut all: Vec<u32> = self.collect();
        let len = all.len().max(1);
        all.rotate_left(places % len);
        all
    }
}
impl<I: Iterator<Item = u32>> RevBy for I {}
