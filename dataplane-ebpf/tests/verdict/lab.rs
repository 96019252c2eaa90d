//! One node with its tables, and packets with what must become of them. After each packet every counter is compared.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::Location,
};

use bulkhead_ebpf::{
    abi::{Counter, Direction, EndpointWord, Mode, mark},
    host::HostTables,
    reason::Reason,
    verdict::{Meta, Next, Outcome},
};
use bulkhead_fixtures::{
    Frame,
    catalogue::{A, Family},
};

use crate::node::{CLOSED, OPEN, SLOT, tables};

/// MAC of the bridge.
pub(crate) const BRIDGE: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// An address of the world.
pub(crate) fn world(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 7).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 7).into(),
    }
}

/// An address of the overlay that nobody is known to have.
pub(crate) fn nobody(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, 2, 99).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 0x99).into(),
    }
}

/// What `A` sends to `peer`: Ethernet and IP.
pub(crate) fn to(peer: IpAddr) -> Frame {
    Frame::eth(A.mac, BRIDGE).ip(of_a(peer), peer)
}

/// What `A` gets from `peer`.
pub(crate) fn from(peer: IpAddr) -> Frame {
    Frame::eth(BRIDGE, A.mac).ip(peer, of_a(peer))
}

fn of_a(peer: IpAddr) -> IpAddr {
    if peer.is_ipv4() { A.v4.into() } else { A.v6.into() }
}

thread_local! {
    /// Reasons that this thread has seen.
    static REACHED: RefCell<BTreeSet<Reason>> = const { RefCell::new(BTreeSet::new()) };
}

pub(crate) fn reached() -> BTreeSet<Reason> {
    REACHED.take()
}

pub(crate) fn reach(reason: Reason) {
    REACHED.with_borrow_mut(|reached| reached.insert(reason));
}

/// What a counter is, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// Of a view's rule, in the initiator's direction.
    Rule(u32, Direction, u16),
    /// Replies of its flows.
    Replies(u32, Direction, u16),
    /// Of a slot.
    Endpoint(u32, Direction, Reason),
}

impl Name {
    const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Endpoint(_, _, reason) => Some(*reason),
            Self::Rule(..) | Self::Replies(..) => None,
        }
    }
}

/// Every counter that is not zero.
pub(crate) fn counters(tables: &HostTables) -> BTreeMap<Name, Counter> {
    let mut all: BTreeMap<_, _> = tables
        .endpoint_counters()
        .into_iter()
        .map(|((slot, direction, reason), counter)| (Name::Endpoint(slot, direction, reason), counter))
        .collect();
    for (index, counter) in tables.counters() {
        let rule = |view, direction| {
            let first = HostTables::rule_counter(view, direction, 0);
            let name = if index % 2 == 0 { Name::Rule } else { Name::Replies };
            (first..first + 256).contains(&index).then(|| name(view, direction, ((index - first) / 2) as u16))
        };
        let name = (0..64).find_map(|view| rule(view, Direction::Ingress).or_else(|| rule(view, Direction::Egress)));
        all.insert(name.unwrap_or_else(|| panic!("no rule has counter {index}")), counter);
    }
    all
}

/// By how much counters have grown.
pub(crate) fn grown(before: &BTreeMap<Name, Counter>, after: &BTreeMap<Name, Counter>) -> BTreeMap<Name, Counter> {
    let growth = |(name, now): (&Name, &Counter)| {
        let was = before.get(name).copied().unwrap_or_default();
        let grown =
            Counter { packets: now.packets - was.packets, bytes: now.bytes - was.bytes, flows: now.flows - was.flows };
        (*now != was).then(|| (name.clone(), grown))
    };
    after.iter().filter_map(growth).collect()
}

/// A packet on a workload's link.
#[derive(Clone)]
pub(crate) struct Packet {
    place: &'static Location<'static>,
    frame: Vec<u8>,
    direction: Direction,
    meta: Meta,
    view: u32,
}

/// A packet with what must become of it.
pub(crate) struct Step {
    packet: Packet,
    outcome: Outcome,
    name: Name,
    counter: Counter,
    /// Beside it, of the same packets.
    also: Vec<(Name, u64)>,
    /// By how many the endpoints' flows grow.
    flows: isize,
}

#[track_caller]
fn packet(frame: &Frame, direction: Direction, mark: u32) -> Packet {
    let frame = frame.build();
    let meta = Meta { slot: SLOT, len: frame.len().try_into().unwrap(), segments: 1, vlan: false, transit: true, mark };
    Packet { place: Location::caller(), frame, direction, meta, view: CLOSED }
}

/// `A` sends.
#[track_caller]
pub(crate) fn sends(frame: &Frame) -> Packet {
    packet(frame, Direction::Egress, 0)
}

/// `A` gets, by the overlay.
#[track_caller]
pub(crate) fn gets(frame: &Frame) -> Packet {
    packet(frame, Direction::Ingress, mark::VERIFIED)
}

impl Packet {
    pub(crate) fn slot(mut self, slot: u32) -> Self {
        self.meta.slot = slot;
        self
    }

    /// With this mark and no other.
    pub(crate) fn mark(mut self, mark: u32) -> Self {
        self.meta.mark = mark;
        self
    }

    /// A process of the node sent it.
    pub(crate) fn by_node(mut self) -> Self {
        self.meta.transit = false;
        self.mark(0)
    }

    pub(crate) fn vlan(mut self) -> Self {
        self.meta.vlan = true;
        self
    }

    pub(crate) fn segments(mut self, segments: u32) -> Self {
        self.meta.segments = segments;
        self
    }

    /// The view whose counters count it.
    pub(crate) fn view(mut self, view: u32) -> Self {
        self.view = view;
        self
    }

    /// Lets it through, whatever becomes of it.
    pub(crate) fn judge(&self, tables: &HostTables) -> Outcome {
        tables.judge(self.direction, &self.frame, &self.meta)
    }

    fn step(self, pass: bool, reason: Reason, name: Name) -> Step {
        let packets = self.meta.segments.max(1).into();
        let counter = Counter { packets, bytes: self.frame.len() as u64, flows: 0 };
        Step {
            packet: self,
            outcome: Outcome { pass, reason, next: Next::Settled },
            name,
            counter,
            also: Vec::new(),
            flows: 0,
        }
    }

    /// Passes by a rule, and begins a flow.
    pub(crate) fn begins(self, reason: Reason, rule: u16) -> Step {
        let name = Name::Rule(self.view, self.direction, rule);
        Step { flows: 1, ..self.step(true, reason, name) }.starts(1)
    }

    /// Passes by a rule, and belongs to no flow.
    pub(crate) fn passes_alone(self, reason: Reason, rule: u16) -> Step {
        let name = Name::Rule(self.view, self.direction, rule);
        self.step(true, reason, name)
    }

    /// Passes in the initiator's direction of a flow.
    pub(crate) fn goes_on(self, rule: u16) -> Step {
        self.passes_alone(Reason::Rule, rule)
    }

    /// Passes as a reply in a flow.
    pub(crate) fn replies(self, rule: u16) -> Step {
        let name = Name::Replies(self.view, self.direction.reverse(), rule);
        self.step(true, Reason::Reply, name)
    }

    /// Dropped by a rule; it could have begun a flow.
    pub(crate) fn refused(self, reason: Reason, rule: u16) -> Step {
        let name = Name::Rule(self.view, self.direction, rule);
        self.step(false, reason, name).starts(1)
    }

    /// Passes or is dropped for a reason that is no rule's.
    pub(crate) fn settled(self, reason: Reason) -> Step {
        let name = Name::Endpoint(self.meta.slot, self.direction, reason);
        self.step(!reason.blocked(), reason, name)
    }
}

impl Step {
    /// Flows that the counter counts.
    pub(crate) fn starts(mut self, flows: u64) -> Self {
        self.counter.flows = flows;
        self
    }

    /// Bytes that the counter counts, where it is not the frame's length.
    pub(crate) fn bytes(mut self, bytes: usize) -> Self {
        self.counter.bytes = bytes as u64;
        self
    }

    /// Counted there, too, with this many flows.
    pub(crate) fn also(mut self, name: Name, flows: u64) -> Self {
        self.also.push((name, flows));
        self
    }

    /// Counted there instead.
    pub(crate) fn set_name(&mut self, name: Name) {
        self.name = name;
    }

    /// By how many flows grow.
    pub(crate) fn grows(mut self, flows: isize) -> Self {
        self.flows = flows;
        self
    }

    /// To be judged again after translation: counted there.
    pub(crate) fn provisional(mut self) -> Self {
        self.outcome.next = Next::Provisional;
        self.name = Name::Rule(0, Direction::Ingress, 0);
        self.counter = Counter::default();
        self
    }

    /// Takes the place of another flow.
    pub(crate) fn replaces(mut self) -> Self {
        self.flows = 0;
        self
    }

    /// The flow is forgotten.
    pub(crate) fn forgets(mut self) -> Self {
        self.flows = -1;
        self
    }
}

/// The node.
pub(crate) struct Lab {
    pub(crate) tables: HostTables,
    log: Vec<String>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { tables: tables(), log: Vec::new() }
    }

    /// A node where nothing isolates `A`.
    pub(crate) fn open() -> Self {
        let mut lab = Self::new();
        lab.publish(1, OPEN, Mode::Enforce);
        lab
    }

    /// Sets the word of `A`.
    pub(crate) fn publish(&mut self, epoch: u32, view: u32, mode: Mode) {
        self.tables.words.insert(SLOT, EndpointWord::new(epoch, view, mode));
        self.log.push(format!("epoch {epoch}, view {view}, {mode:?}"));
    }

    pub(crate) fn flows(&self) -> isize {
        (self.tables.flows4().len() + self.tables.flows6().len()).try_into().unwrap()
    }

    /// Lets packets through, one after the other.
    ///
    /// # Panics
    /// If anything else becomes of one than its step says, or any other counter changes.
    pub(crate) fn check(&mut self, steps: impl IntoIterator<Item = Step>) {
        for Step { packet, outcome, name, counter, also, flows } in steps {
            let Packet { place, frame, direction, meta, .. } = packet;
            let (before, had) = (counters(&self.tables), self.flows());
            let found = self.tables.judge(direction, &frame, &meta);
            let now = grown(&before, &counters(&self.tables));
            let mut expected = BTreeMap::from([(name, counter)]);
            let told: Vec<_> = also.iter().filter_map(|(name, _)| name.reason()).collect();
            expected.extend(also.into_iter().map(|(name, flows)| (name, Counter { flows, ..counter })));
            expected.retain(|_, counter| *counter != Counter::default());
            let fits = found == outcome && now == expected && self.flows() - had == flows;
            assert!(
                fits,
                "{place}: {direction:?} {meta:?}\n{frame:02x?}\nexpected {outcome:?}, {expected:?}, {flows} more flows\n\
                 found    {found:?}, {now:?}, {} more flows\nbefore: {:#?}\n{:#?}",
                self.flows() - had,
                self.log,
                self.tables
            );
            self.log.push(format!("{place}: {found:?}"));
            reach(outcome.reason);
            told.into_iter().for_each(reach);
        }
    }
}
