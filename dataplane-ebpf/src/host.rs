//! The tables as plain collections: what tests and fuzzers run verdict code over.
//!
//! What user space publishes are public fields, one for each map, so that a test may put anything there; helpers fill them from
//! readable input. What the programs write is read back by methods. One CPU, and flow tables that never evict.

use core::ptr::NonNull;
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
};

use crate::{
    abi::{
        Action, AddressKey4, AddressKey6, AddressWord, Backend, Backends, Binding, Budget, Class, Config, Contact,
        ContactKey, Counter, Direction, EndpointInfo, EndpointWord, Entry, Flow, FlowKey4, FlowKey6, Half,
        LIST_ENTRIES, List, Owner, PORT_INTERVALS, PortTable, PrefixKey4, PrefixKey6, ROW_WORDS, SET_INTERVALS,
        ServiceKey, ServiceWord, View, VtepKey, endpoint_counter, mapped, mark,
    },
    family::prefix_key,
    packet::{Fault, Frame, Parsed},
    reason::{REASONS, Reason},
    tables::{FlowRef, Lists, Size, Tables},
    verdict::{self, Meta, Next, Outcome},
};

/// The tables of one node.
#[derive(Default)]
pub struct HostTables {
    /// The clock, in jiffies.
    pub now: u64,
    /// `NODE`.
    pub node: BTreeMap<u32, u64>,
    /// `CONFIG`.
    pub config: Config,
    /// `ENDPOINTS`.
    pub words: BTreeMap<u32, EndpointWord>,
    /// `ENDPOINT_INFO`.
    pub infos: BTreeMap<u32, EndpointInfo>,
    /// `VIEWS`.
    pub views: BTreeMap<u32, View>,
    /// `PORTS`.
    pub ports: BTreeMap<u32, PortTable>,
    /// `LISTS`.
    pub lists: BTreeMap<u32, List>,
    /// `ROWS`.
    pub rows: BTreeMap<u32, u64>,
    /// `RULE_COUNTERS`.
    pub rule_counters: BTreeMap<u32, u32>,
    /// `ADDRESSES4`.
    pub addresses4: BTreeMap<AddressKey4, u64>,
    /// `ADDRESSES6`.
    pub addresses6: BTreeMap<AddressKey6, u64>,
    /// `PREFIXES4`; the length in bits counts the segment's 32.
    pub prefixes4: BTreeMap<(u32, PrefixKey4), u64>,
    /// `PREFIXES6`, as above.
    pub prefixes6: BTreeMap<(u32, PrefixKey6), u64>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, u64>,
    /// `BACKENDS`.
    pub backends: BTreeMap<u32, Backends>,
    /// `VTEPS`.
    pub vteps: BTreeSet<VtepKey>,
    /// `OWNERS`, as `PREFIXES6`.
    pub owners: BTreeMap<(u32, PrefixKey6), Owner>,
    flows4: FlowTable<FlowKey4>,
    flows6: FlowTable<FlowKey6>,
    counters: RefCell<BTreeMap<u32, Counter>>,
    endpoint_counters: RefCell<BTreeMap<u32, Counter>>,
    contacts: RefCell<BTreeMap<ContactKey, Contact>>,
    budget: Cell<Budget>,
    bindings: RefCell<BTreeMap<u32, Binding>>,
}

/// Counters that stand for a rule of a view: its own, and the next one for replies of its flows.
const RULES: u32 = 128;

/// An entry that matches one of `selectors`, which lie in one word of the row. It names rule `rule`, and those that follow for further selectors.
///
/// # Panics
/// If `selectors` lie in different words, or there is none.
#[must_use]
pub fn entry(action: Action, reason: Reason, rule: u16, selectors: &[u32]) -> Entry {
    let word = selectors[0] / 64;
    assert!(selectors.iter().all(|selector| selector / 64 == word), "{selectors:?} lie in different words");
    Entry {
        mask: selectors.iter().fold(0, |mask, selector| mask | 1 << (selector % 64)),
        word: u16::try_from(word).expect("a row has 64 words"),
        rule,
        tier: 0,
        action: action as u8,
        flags: 0,
        reason: reason as u8,
    }
}

/// An entry that matches every peer.
#[must_use]
pub const fn everyone(action: Action, reason: Reason, rule: u16) -> Entry {
    Entry { mask: 0, word: 0, rule, tier: 0, action: action as u8, flags: Entry::ANY, reason: reason as u8 }
}

/// A line of a policy set: an entry for some values of some classes.
#[derive(Clone, Debug)]
pub struct Line {
    /// Classes.
    pub classes: Vec<Class>,
    /// Values on their axis.
    pub values: RangeInclusive<u16>,
    /// What it says.
    pub entry: Entry,
}

impl Line {
    /// A line for one class.
    #[must_use]
    pub fn new(class: Class, values: RangeInclusive<u16>, entry: Entry) -> Self {
        Self { classes: vec![class], values, entry }
    }

    /// A line for everything.
    #[must_use]
    pub fn everything(entry: Entry) -> Self {
        Self { classes: Class::ALL.to_vec(), values: 0..=u16::MAX, entry }
    }
}

/// An address as it lies in a packet, IPv4 as ::ffff:a.b.c.d.
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            [0, 1, 2, 3].map(|i| u32::from_ne_bytes(words[i]))
        }
    }
}

impl HostTables {
    /// An endpoint with its addresses; its word is left as it is.
    ///
    /// # Panics
    /// If there are more addresses than an endpoint may have.
    pub fn set_info(&mut self, slot: u32, segment: u32, mac: [u8; 6], addresses: &[IpAddr]) {
        let mut info = EndpointInfo { identity: u64::from(slot) + 1, segment, mac, ..EndpointInfo::default() };
        for address in addresses {
            let [.., last] = words(*address);
            if address.is_ipv4() {
                info.ipv4[usize::from(info.ipv4_count)] = last;
                info.ipv4_count += 1;
            } else {
                info.ipv6[usize::from(info.ipv6_count)] = words(*address);
                info.ipv6_count += 1;
            }
        }
        self.infos.insert(slot, info);
    }

    /// A known address, its tag right.
    pub fn set_address(&mut self, segment: u32, address: IpAddr, row: u16, slot: u16, flags: u8) {
        let address = words(address);
        if address[..3] == words(IpAddr::from([0; 4]))[..3] {
            let key = AddressKey4 { segment, address: address[3] };
            self.addresses4.insert(key, AddressWord::new(key.tag(), row, slot, flags).0);
        } else {
            let key = AddressKey6 { segment, address };
            self.addresses6.insert(key, AddressWord::new(key.tag(), row, slot, flags).0);
        }
    }

    /// A prefix, `len` bits long in its own family.
    pub fn set_prefix(&mut self, segment: u32, address: IpAddr, len: u32, row: u16, flags: u8) {
        let word = AddressWord::new(0, row, 0, flags).0;
        match address {
            IpAddr::V4(address) => {
                let key = PrefixKey4 { segment: segment.to_be_bytes(), address: address.octets() };
                self.prefixes4.insert((32 + len, key), word);
            }
            IpAddr::V6(_) => {
                self.prefixes6.insert((32 + len, prefix_key(segment, words(address))), word);
            }
        }
    }

    /// A row with these selectors.
    pub fn set_row(&mut self, row: u32, selectors: &[u32]) {
        for word in 0..ROW_WORDS {
            self.rows.remove(&(row * ROW_WORDS + word));
        }
        for selector in selectors {
            *self.rows.entry(row * ROW_WORDS + selector / 64).or_default() |= 1 << (selector % 64);
        }
    }

    /// A policy set, from its lines in order: cuts the axis of each class into intervals, each with the entries of all lines that cover it. Where these are
    /// too many for a port table, it goes on in those of sets from [`Self::more`] on.
    ///
    /// # Panics
    /// If a class needs more intervals than these have.
    pub fn set_policy(&mut self, set: u32, lines: &[Line]) {
        for class in Class::ALL {
            let lines: Vec<_> = lines.iter().filter(|line| line.classes.contains(&class)).collect();
            let ends = lines.iter().filter_map(|line| line.values.end().checked_add(1));
            let starts: BTreeSet<_> = lines.iter().map(|line| *line.values.start()).chain(ends).chain([0]).collect();
            assert!(starts.len() <= SET_INTERVALS, "{class:?} of set {set} needs {} intervals", starts.len());
            let intervals = starts.into_iter().map(|start| {
                let covering = lines.iter().filter(|line| line.values.contains(&start));
                (start, self.add_list(&covering.map(|line| line.entry).collect::<Vec<_>>()))
            });
            let mut intervals: Vec<_> = intervals.collect();
            if intervals.len() > PORT_INTERVALS {
                let parts = intervals.chunks(PORT_INTERVALS).zip(Self::more(set)..);
                intervals = parts
                    .map(|(part, more)| (part[0].0, self.add_table(more, class, part) | PortTable::MORE))
                    .collect();
            }
            self.add_table(set, class, &intervals);
        }
    }

    /// The first of the sets in which tables of a set go on.
    #[must_use]
    pub const fn more(set: u32) -> u32 {
        1 << 16 | set << 5
    }

    /// A port table, see [`PortTable::new`]. The set.
    fn add_table(&mut self, set: u32, class: Class, intervals: &[(u16, u32)]) -> u32 {
        self.ports.insert(set * Class::COUNT + class as u32, PortTable::new(intervals));
        set
    }

    /// A chain of blocks; returns the index of the first, 0 for no entry.
    pub fn add_list(&mut self, entries: &[Entry]) -> u32 {
        let first = self.lists.keys().last().map_or(1, |last| last + 1);
        let blocks = entries.chunks(LIST_ENTRIES);
        let count = blocks.len() as u32;
        for (i, block) in (1..).zip(blocks) {
            let mut list =
                List { len: block.len() as u32, next: if i < count { first + i } else { 0 }, ..List::default() };
            list.entries[..block.len()].copy_from_slice(block);
            self.lists.insert(first + i - 1, list);
        }
        if count == 0 { 0 } else { first }
    }

    /// A view without a deadline, its rules counted where [`Self::rule_counter`] says.
    pub fn set_view(&mut self, index: u32, ingress: u32, egress: u32, flags: u32) {
        let half = |set, direction| Half { set, counters: (index * 2 + direction as u32) * RULES };
        let view = View {
            ingress: half(ingress, Direction::Ingress),
            egress: half(egress, Direction::Egress),
            deadline: u64::MAX,
            next: 0,
            flags,
        };
        self.views.insert(index, view);
        for i in index * 2 * RULES..(index + 1) * 2 * RULES {
            self.rule_counters.insert(i, i * 2);
        }
    }

    /// Index in `COUNTERS` of a rule of a view that [`Self::set_view`] made.
    #[must_use]
    pub const fn rule_counter(view: u32, direction: Direction, rule: u16) -> u32 {
        ((view * 2 + direction as u32) * RULES + rule as u32) * 2
    }

    /// A port that the node translates, its tag right. What has no room is counted alone.
    pub fn set_service(&mut self, key: ServiceKey, index: u32, backends: &[Backend]) {
        let mut value = Backends { len: backends.len() as u32, ..Backends::default() };
        value.backends.iter_mut().zip(backends).for_each(|(to, backend)| *to = *backend);
        self.backends.insert(index, value);
        self.services.insert(key, ServiceWord::new(key.tag(), index).0);
    }

    /// A VTEP of a VNI, and that the VNI is configured.
    pub fn set_vtep(&mut self, vni: u32, vtep: IpAddr) {
        self.vteps.extend([VtepKey { vni, address: [0; 4] }, VtepKey { vni, address: words(vtep) }]);
    }

    /// An inner prefix that a VTEP owns, `len` bits long in its own family.
    pub fn set_owner(&mut self, vni: u32, prefix: IpAddr, len: u32, vtep: IpAddr) {
        let len = if prefix.is_ipv4() { 32 + 96 + len } else { 32 + len };
        self.owners.insert((len, prefix_key(vni, words(prefix))), Owner { vtep: words(vtep) });
    }

    /// What the program on a workload's link does with a frame that is readable to its end: one that asks for more is malformed.
    pub fn judge(&self, direction: Direction, frame: &[u8], meta: &Meta) -> Outcome {
        let outcome = match direction {
            Direction::Egress => leaves(self, frame, meta),
            Direction::Ingress => enters(self, frame, meta),
        };
        match outcome {
            Ok(outcome) => outcome,
            Err(Fault::Truncated) => truncated(self, direction, meta),
            Err(Fault::Malformed) => panic!("dropped and not counted"),
        }
    }

    /// `COUNTERS`, without those that are zero.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<u32, Counter> {
        self.counters.borrow().clone()
    }

    /// `ENDPOINT_COUNTERS` by slot, direction and reason, without those that are zero.
    #[must_use]
    pub fn endpoint_counters(&self) -> BTreeMap<(u32, Direction, Reason), Counter> {
        let key = |index: u32| {
            let direction = Direction::from_u8((index / REASONS % 2) as u8);
            let reason = Reason::from_u8((index % REASONS) as u8).expect("only reasons are counted");
            (index / REASONS / 2, direction, reason)
        };
        self.endpoint_counters.borrow().iter().map(|(index, counter)| (key(*index), *counter)).collect()
    }

    /// `CONTACTS`.
    #[must_use]
    pub fn contacts(&self) -> BTreeMap<ContactKey, Contact> {
        self.contacts.borrow().clone()
    }

    /// `BUDGET`.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.budget.get()
    }

    /// Flows by slot.
    #[must_use]
    pub fn flows4(&self) -> BTreeMap<(u32, FlowKey4), Flow> {
        self.flows4.snapshot()
    }

    /// Flows by slot.
    #[must_use]
    pub fn flows6(&self) -> BTreeMap<(u32, FlowKey6), Flow> {
        self.flows6.snapshot()
    }

    /// Forgets all flows of a slot, as for a new owner.
    pub fn forget(&mut self, slot: u32) {
        self.flows4.0.get_mut().retain(|(of, _), _| *of != slot);
        self.flows6.0.get_mut().retain(|(of, _), _| *of != slot);
    }
}

/// What the programs do with a packet that ends in the middle of a header.
pub fn truncated<T: Tables>(tables: &T, direction: Direction, meta: &Meta) -> Outcome {
    let size = Size { packets: u64::from(meta.segments.max(1)), bytes: u64::from(meta.len) };
    let pass = verdict::observes(tables, meta.slot, tables.now());
    let reason = if pass { Reason::Observed } else { Reason::Malformed };
    tables.count_endpoint(endpoint_counter(meta.slot, direction, reason as u8), size, 0);
    Outcome { pass, reason, next: Next::Settled }
}

/// What the program does with a packet that a workload sends: the short way where that decides.
///
/// # Errors
/// As [`verdict::from_workload`].
pub fn leaves<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let known = verdict::established(tables, frame, meta, Direction::Egress);
    known.map_or_else(|| verdict::from_workload(tables, frame, meta), Ok)
}

/// What the programs do with a packet on its way into a workload: [`verdict::translated`] first where that is asked for, then the short way where that
/// decides.
///
/// # Errors
/// As theirs.
pub fn enters<T: Tables, F: Frame + ?Sized>(tables: &T, frame: &F, meta: &Meta) -> Parsed<Outcome> {
    let mut meta = *meta;
    if verdict::unsettled(meta.transit, meta.mark) {
        let sender = verdict::translated(tables, frame, &meta, 0)?;
        if !sender.pass {
            return Ok(sender);
        }
        meta.mark |= mark::FINAL;
    }
    let known = verdict::established(tables, frame, &meta, Direction::Ingress);
    known.map_or_else(|| verdict::to_workload(tables, frame, &meta), Ok)
}

/// What changes while packets pass, for the message of a test that fails.
impl fmt::Debug for HostTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTables")
            .field("now", &self.now)
            .field("words", &self.words)
            .field("views", &self.views)
            .field("counters", &self.counters())
            .field("endpoint_counters", &self.endpoint_counters())
            .field("flows4", &self.flows4())
            .field("flows6", &self.flows6())
            .field("contacts", &self.contacts())
            .field("budget", &self.budget())
            .finish_non_exhaustive()
    }
}

/// Flows by slot and key. Boxed, so that a flow stays where it is while others come and go.
type Flows<K> = BTreeMap<(u32, K), Box<UnsafeCell<Flow>>>;

/// Flows of all endpoints.
struct FlowTable<K>(RefCell<Flows<K>>);

impl<K> Default for FlowTable<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Ord + Copy> FlowTable<K> {
    fn find(&self, slot: u32, key: &K) -> Option<FlowRef> {
        let flow = NonNull::new(self.0.borrow().get(&(slot, *key))?.get())?;
        // SAFETY: boxed, so it stays until it is removed, after which verdict code uses it no more; one thread.
        Some(unsafe { FlowRef::new(flow) })
    }

    fn insert(&self, slot: u32, key: &K, flow: &Flow) {
        self.0.borrow_mut().entry((slot, *key)).or_insert_with(|| Box::new(UnsafeCell::new(*flow)));
    }

    fn remove(&self, slot: u32, key: &K) {
        self.0.borrow_mut().remove(&(slot, *key));
    }

    fn snapshot(&self) -> BTreeMap<(u32, K), Flow> {
        // SAFETY: no verdict is being formed, so nobody writes.
        self.0.borrow().iter().map(|(key, flow)| (*key, unsafe { *flow.get() })).collect()
    }
}

/// The value of the longest prefix that covers `key`.
fn longest<'a, K, V>(prefixes: &'a BTreeMap<(u32, K), V>, key: &K, bytes: impl Fn(&K) -> Vec<u8>) -> Option<&'a V> {
    let key = bytes(key);
    let covers = |len: u32, prefix: Vec<u8>| {
        (0..len).all(|bit| {
            let (byte, shift) = ((bit / 8) as usize, 7 - bit % 8);
            prefix[byte] >> shift & 1 == key[byte] >> shift & 1
        })
    };
    let longest = prefixes.iter().rfind(|((len, prefix), _)| covers(*len, bytes(prefix)));
    longest.map(|(_, value)| value)
}

fn bytes4(key: &PrefixKey4) -> Vec<u8> {
    [key.segment, key.address].concat()
}

fn bytes6(key: &PrefixKey6) -> Vec<u8> {
    [&key.segment[..], &key.address].concat()
}

fn add(counters: &RefCell<BTreeMap<u32, Counter>>, index: u32, size: Size, flows: u64) {
    let mut counters = counters.borrow_mut();
    let counter = counters.entry(index).or_default();
    counter.packets += size.packets;
    counter.bytes += size.bytes;
    counter.flows += flows;
}

impl Lists for HostTables {
    fn ports(&self, index: u32) -> Option<&PortTable> {
        self.ports.get(&index)
    }

    fn list(&self, index: u32) -> Option<&List> {
        self.lists.get(&index)
    }

    fn row_word(&self, index: u32) -> u64 {
        self.rows.get(&index).copied().unwrap_or(0)
    }
}

impl Tables for HostTables {
    fn now(&self) -> u64 {
        self.now
    }

    fn node(&self, index: u32) -> u64 {
        self.node.get(&index).copied().unwrap_or(0)
    }

    fn endpoint(&self, slot: u32) -> EndpointWord {
        self.words.get(&slot).copied().unwrap_or_default()
    }

    fn info(&self, slot: u32) -> Option<&EndpointInfo> {
        self.infos.get(&slot)
    }

    fn view(&self, index: u32) -> Option<&View> {
        self.views.get(&index)
    }

    fn rule_counter(&self, index: u32) -> u32 {
        self.rule_counters.get(&index).copied().unwrap_or(0)
    }

    fn address4(&self, key: &AddressKey4) -> Option<u64> {
        self.addresses4.get(key).copied()
    }

    fn address6(&self, key: &AddressKey6) -> Option<u64> {
        self.addresses6.get(key).copied()
    }

    fn prefix4(&self, key: &PrefixKey4) -> Option<u64> {
        longest(&self.prefixes4, key, bytes4).copied()
    }

    fn prefix6(&self, key: &PrefixKey6) -> Option<u64> {
        longest(&self.prefixes6, key, bytes6).copied()
    }

    fn service(&self, key: &ServiceKey) -> Option<u64> {
        self.services.get(key).copied()
    }

    fn backends(&self, index: u32) -> Option<&Backends> {
        self.backends.get(&index)
    }

    fn flow4(&self, slot: u32, key: &FlowKey4) -> Option<FlowRef> {
        self.flows4.find(slot, key)
    }

    fn flow6(&self, slot: u32, key: &FlowKey6) -> Option<FlowRef> {
        self.flows6.find(slot, key)
    }

    fn insert4(&self, slot: u32, key: &FlowKey4, flow: &Flow) {
        self.flows4.insert(slot, key, flow);
    }

    fn insert6(&self, slot: u32, key: &FlowKey6, flow: &Flow) {
        self.flows6.insert(slot, key, flow);
    }

    fn remove4(&self, slot: u32, key: &FlowKey4) {
        self.flows4.remove(slot, key);
    }

    fn remove6(&self, slot: u32, key: &FlowKey6) {
        self.flows6.remove(slot, key);
    }

    fn count(&self, index: u32, size: Size, flows: u64) {
        add(&self.counters, index, size, flows);
    }

    fn count_endpoint(&self, index: u32, size: Size, flows: u64) {
        add(&self.endpoint_counters, index, size, flows);
    }

    fn sample(&self, key: &ContactKey, contact: &Contact) {
        let mut budget = self.budget.get();
        let window = contact.last >> 7;
        if budget.window != window {
            (budget.window, budget.taken) = (window, 0);
        }
        if budget.taken >= u64::from(self.config.budget) {
            budget.unsent += contact.packets;
            self.budget.set(budget);
            return;
        }
        budget.taken += 1;
        self.budget.set(budget);
        self.contacts
            .borrow_mut()
            .entry(*key)
            .and_modify(|known| {
                *known = Contact {
                    packets: known.packets + contact.packets,
                    bytes: known.bytes + contact.bytes,
                    first: known.first,
                    ..*contact
                };
            })
            .or_insert(*contact);
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn vtep(&self, key: &VtepKey) -> bool {
        self.vteps.contains(key)
    }

    fn owner(&self, key: &PrefixKey6) -> Option<&Owner> {
        longest(&self.owners, key, bytes6)
    }

    fn binding(&self, place: u32) -> Option<Binding> {
        self.bindings.borrow().get(&place).copied()
    }

    fn keep_binding(&self, place: u32, binding: &Binding) {
        self.bindings.borrow_mut().insert(place, *binding);
    }
}
