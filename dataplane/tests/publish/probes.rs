//! Packets between all pairs: what the verdict code says of them over tables that stand still, and what the programs say over those of the kernel.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    load::Programs,
    memory::{Snapshot, from_bytes},
    names::endpoint_identity,
    store::{
        Addresses4, Addresses6, BackendTable, EndpointInfos, Endpoints, Lists, Node, Ports, Prefixes4, Prefixes6, Rows,
        RuleCounters, Services, Table, Views,
    },
    sys::{SkbContext, test_run},
};
use bulkhead_ebpf::{
    abi::{
        AddressKey4, AddressKey6, AddressWord, Backend, Class, Config, Direction, EndpointInfo, EndpointWord,
        ServiceKey, ServiceWord, mark,
    },
    host::{HostTables, words},
    reason::Reason,
    verdict::{self, Meta},
};
use bulkhead_fixtures::{Frame, tcp::SYN};

use crate::{
    judge::{NOW, Question, meant, questions},
    world::SERVICES,
};

/// What a TC program returns for a packet that goes on to the next one, and for a dropped one.
const NEXT: u32 = u32::MAX;
const SHOT: u32 = 2;
/// Verdicts, as bits of a set.
const DROP: u8 = 1;
const PASS: u8 = 2;
/// It passes, and is judged again after translation.
pub(crate) const PROVISIONAL: u8 = 4;
/// Beside [`DROP`]: the source is another endpoint's than the mark's. A flow that is known does not ask whose an address is by now, and nobody's
/// policy says that it shall.
const FORGED: u8 = 8;
/// The mark's endpoint is not there: nothing can have such a mark.
const NOBODY: u8 = 16;

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const OVERLAY: u32 = 1;

pub(crate) fn config() -> Config {
    Config { tunnel_ports: [8472, 0, 0, 0], budget: 100, ..Config::default() }
}

/// Verdicts that a packet may meet: by the policy of whom it is from where that is asked, and by that of the link's own endpoint. They are two
/// enforcement points, and may meet different revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Verdicts {
    sender: u8,
    own: u8,
    /// Rows of a caller of a service address, and those of the service's backends on this node, as bits.
    caller: u64,
    backends: u64,
}

impl Verdicts {
    pub(crate) fn add(&mut self, other: Self) {
        self.sender |= other.sender;
        self.own |= other.own;
        self.caller |= other.caller;
        self.backends |= other.backends;
    }

    /// Of the packet, which is the first of a flow or not, and meets a publish on its way or not; `None` where no verdict is promised.
    ///
    /// Nor is one to a caller that may be a backend itself of what it calls, while labels change: it is known for one by its row, and no single write
    /// moves both that and the backends' rows. So somebody else may be taken for it until both are written; and if the service comes or goes
    /// meanwhile, it may be taken for somebody else.
    pub(crate) fn all(self, first: bool, moving: bool) -> Option<u8> {
        let passed = if self.sender & PASS != 0 { self.own } else { 0 };
        let itself = moving && self.caller & self.backends != 0;
        let promised = self.own & NOBODY == 0 && (first || passed & FORGED == 0) && !itself;
        promised.then_some((passed | self.sender & DROP) & !FORGED)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    From,
    To,
    Out,
}

/// A packet at a program.
#[derive(Debug)]
pub(crate) struct Probe {
    program: Program,
    /// Slot of the link's endpoint; VNI of an overlay.
    place: u32,
    mark: u32,
    transit: bool,
    frame: Vec<u8>,
    /// Where the source port stands, or what is one for ICMP.
    port_at: usize,
    /// A port of its own.
    port: u16,
    /// The same in words that need no tables: who is asked, and what.
    asks: Option<(u64, Question)>,
    /// The service address that it goes to.
    service: Option<ServiceKey>,
}

/// The programs.
#[derive(Clone, Copy)]
pub(crate) struct Loaded<'a>([BorrowedFd<'a>; 3]);

impl<'a> Loaded<'a> {
    pub(crate) fn new(programs: &'a Programs) -> Self {
        Self(["from_workload", "to_workload", "overlay_out"].map(|name| programs.get(name).unwrap()))
    }
}

impl Probe {
    fn frame(&self, port: u16) -> Vec<u8> {
        let mut frame = self.frame.clone();
        frame[self.port_at..self.port_at + 2].copy_from_slice(&port.to_be_bytes());
        frame
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// What the verdict code says.
    pub(crate) fn judged(&self, tables: &HostTables) -> Verdicts {
        let frame = &self.frame(self.port)[..];
        let slot = if self.program == Program::Out { 0 } else { self.place };
        let len = u32::try_from(frame.len()).unwrap();
        let meta = Meta { slot, len, segments: 1, vlan: false, transit: self.transit, mark: self.mark };
        let of = |pass| if pass { PASS } else { DROP };
        let sender = meta.mark & mark::SLOT;
        if sender != 0 && !tables.words.contains_key(&sender) {
            return Verdicts { sender: PASS, own: NOBODY, ..Verdicts::default() };
        }
        match self.program {
            Program::From => {
                let outcome = verdict::from_workload(tables, frame, &meta).unwrap();
                let own = if outcome.pass && outcome.is_provisional() { PROVISIONAL } else { of(outcome.pass) };
                let (caller, backends) = self.service.map_or((0, 0), |key| rows(tables, self.place, &key));
                Verdicts { sender: PASS, own, caller, backends }
            }
            Program::To => {
                let unsettled = verdict::unsettled(meta.transit, meta.mark);
                let sender = !unsettled || verdict::translated(tables, frame, &meta, 0).unwrap().pass;
                let settled = Meta { mark: meta.mark | mark::FINAL, ..meta };
                let meta = if unsettled { settled } else { meta };
                let outcome = verdict::to_workload(tables, frame, &meta).unwrap();
                let forged = outcome.reason == Reason::PlainOverlaySource;
                let own = if forged { DROP | FORGED } else { of(outcome.pass) };
                Verdicts { sender: of(sender), own, ..Verdicts::default() }
            }
            Program::Out => {
                let outcome = verdict::translated(tables, frame, &meta, self.place).unwrap();
                Verdicts { sender: of(outcome.pass), own: PASS, ..Verdicts::default() }
            }
        }
    }

    /// What the program says of it, from this port.
    pub(crate) fn run(&self, programs: Loaded<'_>, port: u16) -> u8 {
        let context = SkbContext {
            mark: self.mark,
            ingress_ifindex: u32::from(self.transit),
            cb: [self.place, 0, 0, 0, 0],
            ..SkbContext::default()
        };
        let ran = test_run(&programs.0[self.program as usize], &self.frame(port), context, 1).unwrap();
        match ran.verdict {
            SHOT => DROP,
            NEXT if self.program == Program::From => {
                assert_eq!(ran.context.mark & mark::SLOT, self.place, "the mark tells the sender");
                if ran.context.mark & mark::FINAL == 0 { PROVISIONAL } else { PASS }
            }
            NEXT => PASS,
            other => panic!("{other} is no verdict"),
        }
    }

    /// What it shall be by what was desired alone, where that says it in few words. `slots` are those in force.
    pub(crate) fn desired(&self, desired: &Desired, slots: impl Fn(&EndpointName) -> u32) -> Option<u8> {
        let (identity, question) = self.asks.as_ref()?;
        let endpoint = desired.endpoints.iter().find(|endpoint| endpoint_identity(&endpoint.name) == *identity)?;
        let known = desired.addresses.get(&(endpoint.segment, question.peer));
        let sender = known.and_then(|known| known.endpoint.as_deref()).map_or(0, &slots);
        let told = question.direction == Direction::Egress || self.mark & mark::SLOT == sender;
        // A call to a node's port may be one to a service.
        let service = question.direction == Direction::Egress && known.is_some_and(|known| known.node);
        (told && !service && slots(&endpoint.name) == self.place).then(|| {
            let allowed = meant(desired, endpoint, question).iter().any(|answer| answer.allows());
            if allowed { PASS } else { DROP }
        })
    }
}

fn addresses(info: &EndpointInfo) -> Vec<IpAddr> {
    let v4 = info.ipv4.iter().take(info.ipv4_count.into()).map(|address| IpAddr::from(address.to_ne_bytes()));
    let v6 = info.ipv6.iter().take(info.ipv6_count.into()).map(|address| {
        let mut octets = [0; 16];
        octets.chunks_exact_mut(4).zip(address).for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_ne_bytes()));
        IpAddr::from(octets)
    });
    v4.chain(v6).collect()
}

/// Rows of an endpoint, by its first address of the service's family, and of a service's backends on this node: each a bit.
fn rows(tables: &HostTables, slot: u32, key: &ServiceKey) -> (u64, u64) {
    let bit = |row: u32| 1 << (row % 64);
    let Some(info) = tables.infos.get(&slot) else { return (0, 0) };
    let v4 = key.address[..3] == words(Ipv4Addr::UNSPECIFIED.into())[..3];
    let word = if v4 {
        tables.addresses4.get(&AddressKey4 { segment: info.segment, address: info.ipv4[0] })
    } else {
        tables.addresses6.get(&AddressKey6 { segment: info.segment, address: info.ipv6[0] })
    };
    // What is not known has some row.
    let caller = word.map_or(u64::MAX, |word| bit(AddressWord(*word).row()));
    let backends = tables.services.get(key).and_then(|word| tables.backends.get(&ServiceWord(*word).backends()));
    let backends = backends.into_iter().flat_map(|found| &found.backends[..found.len as usize]);
    let local = backends.filter(|backend| backend.flags & Backend::LOCAL != 0);
    (caller, local.fold(0, |all, backend| all | bit(backend.row.into())))
}

/// All packets worth probing with between these endpoints and everyone else.
pub(crate) fn probes(slots: &[(u32, EndpointInfo)]) -> Vec<Probe> {
    let mut all = Probes(Vec::new());
    let questions: Vec<Question> = questions().into_iter().filter(|question| question.class != Class::Other).collect();
    for (slot, info) in slots {
        let own = addresses(info);
        let like = |peer: IpAddr| own.iter().copied().find(|own| own.is_ipv4() == peer.is_ipv4()).unwrap();
        for question in questions.iter().filter(|question| !own.contains(&question.peer)) {
            let Question { peer, direction, transit, class, value } = *question;
            let asks = Some((info.identity, *question));
            let packet = |from, to| (from, to, class, value);
            if direction == Direction::Egress {
                all.add(Program::From, *slot, 0, true, info.mac, packet(like(peer), peer), asks);
                continue;
            }
            all.add(Program::To, *slot, 0, transit, info.mac, packet(peer, like(peer)), asks);
            for (sender, _) in slots.iter().filter(|(_, info)| addresses(info).contains(&peer)) {
                let mark = sender | mark::FINAL;
                all.add(Program::To, *slot, mark, true, info.mac, packet(peer, like(peer)), asks);
            }
        }
        all.calls(*slot, info);
        // What the node has translated.
        for value in [80, 500, 8080] {
            for (_, other) in slots.iter().filter(|(_, other)| other.identity != info.identity) {
                for address in addresses(other) {
                    let packet = (address, like(address), Class::Tcp, value);
                    let senders = slots.iter().filter(|(_, info)| addresses(info).contains(&address));
                    for (sender, _) in senders {
                        all.add(Program::To, *slot, *sender, true, info.mac, packet, None);
                    }
                }
            }
            for remote in ["10.0.0.9", "fd00::9", "203.0.113.5"].map(|remote| remote.parse().unwrap()) {
                let packet = (like(remote), remote, Class::Tcp, value);
                all.add(Program::Out, OVERLAY, *slot, true, info.mac, packet, None);
            }
        }
    }
    all.0
}

/// Calls to service addresses from these endpoints.
pub(crate) fn calls(slots: &[(u32, EndpointInfo)]) -> Vec<Probe> {
    let mut all = Probes(Vec::new());
    slots.iter().for_each(|(slot, info)| all.calls(*slot, info));
    all.0
}

struct Probes(Vec<Probe>);

impl Probes {
    fn calls(&mut self, slot: u32, info: &EndpointInfo) {
        for (service, port) in SERVICES {
            let any = service.is_none();
            let service: IpAddr = service.unwrap_or("192.0.2.1").parse().unwrap();
            let address = if any { words(Ipv4Addr::UNSPECIFIED.into()) } else { words(service) };
            let key = ServiceKey { segment: OVERLAY, address, port, protocol: 6, padding: 0 };
            for own in addresses(info).into_iter().filter(|own| own.is_ipv4() == service.is_ipv4()) {
                self.add(Program::From, slot, 0, true, info.mac, (own, service, Class::Tcp, port), None);
                self.0.last_mut().unwrap().service = Some(key);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a packet, where it is, and why")]
    fn add(
        &mut self,
        program: Program,
        place: u32,
        mark: u32,
        transit: bool,
        mac: [u8; 6],
        (from, to, class, value): (IpAddr, IpAddr, Class, u16),
        asks: Option<(u64, Question)>,
    ) {
        let [source, destination] = if program == Program::To { [GATEWAY, mac] } else { [mac, GATEWAY] };
        let ip = Frame::eth(source, destination).ip(from, to);
        let (frame, ahead) = if class == Class::Tcp { (ip.tcp(0, value, SYN), 0) } else { (ip.icmp_echo(0, 1), 4) };
        let port_at = if from.is_ipv4() { 34 } else { 54 } + ahead;
        let port = 10_000 + u16::try_from(self.0.len()).unwrap();
        assert!(port < FIRST_PORT, "too many probes for ports of their own");
        self.0.push(Probe { program, place, mark, transit, frame: frame.build(), port_at, port, asks, service: None });
    }
}

/// The first of the ports that no probe has for its own.
pub(crate) const FIRST_PORT: u16 = 30_000;

fn entries<T: Table>(snapshot: &Snapshot) -> impl Iterator<Item = (T::Key, T::Value)> {
    let entries = snapshot.get(T::NAME).into_iter().flatten();
    entries.map(|(key, value)| (from_bytes(key), from_bytes(value)))
}

/// Slots and what they have.
pub(crate) fn slots(snapshot: &Snapshot) -> impl Iterator<Item = (u32, EndpointInfo)> {
    entries::<EndpointInfos>(snapshot)
}

/// Tables as the verdict code can read them.
pub(crate) fn host(snapshot: &Snapshot) -> HostTables {
    let mut tables = HostTables::default();
    tables.now = NOW;
    tables.config = config();
    tables.node = entries::<Node>(snapshot).collect();
    tables.words = entries::<Endpoints>(snapshot).map(|(slot, word)| (slot, EndpointWord(word))).collect();
    tables.infos = slots(snapshot).collect();
    tables.views = entries::<Views>(snapshot).collect();
    tables.ports = entries::<Ports>(snapshot).collect();
    tables.lists = entries::<Lists>(snapshot).collect();
    tables.rows = entries::<Rows>(snapshot).collect();
    tables.rule_counters = entries::<RuleCounters>(snapshot).map(|(index, counter)| (index, counter as u32)).collect();
    tables.addresses4 = entries::<Addresses4>(snapshot).collect();
    tables.addresses6 = entries::<Addresses6>(snapshot).collect();
    tables.prefixes4 = entries::<Prefixes4>(snapshot).map(|(key, word)| ((key.prefix_len, key.data), word)).collect();
    tables.prefixes6 = entries::<Prefixes6>(snapshot).map(|(key, word)| ((key.prefix_len, key.data), word)).collect();
    tables.services = entries::<Services>(snapshot).collect();
    tables.backends = entries::<BackendTable>(snapshot).collect();
    tables
}
