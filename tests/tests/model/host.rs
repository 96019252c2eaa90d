//! The verdict code on the host, over tables that a publisher wrote.

use std::{
    cell::{RefCell, UnsafeCell},
    collections::{BTreeMap, HashMap},
    hash::Hash,
    ptr::NonNull,
};

use bulkhead_dataplane::{
    memory::MemoryStore,
    store::{
        self, Addresses4, Addresses6, BackendTable, EndpointInfos, Endpoints, LpmKey, Node, Ports, Prefixes4,
        Prefixes6, Rows, RuleCounters, Services, Store, Table, Views,
    },
};
use bulkhead_ebpf::{
    abi::{
        AddressKey4, AddressKey6, Backends, Binding, Config, Contact, ContactKey, Direction, EndpointInfo,
        EndpointWord, Flow, FlowKey4, FlowKey6, List, Owner, PortTable, PrefixKey4, PrefixKey6, ServiceKey, View,
        VtepKey,
    },
    host::{enters, leaves, truncated},
    tables::{self, FlowRef, Size, Tables},
    verdict::{self, Meta},
};
use bulkhead_model::{Packet, generate::TUNNEL_PORT};
use bulkhead_tests::test_run::{Frame, Passed};

use crate::walls::Programs;

/// A copy of the tables, taken after each publish, and flow tables of its own.
pub(crate) struct Host {
    store: MemoryStore,
    node: HashMap<u32, u64>,
    services: BTreeMap<ServiceKey, u64>,
    backends: HashMap<u32, Backends>,
    words: HashMap<u32, u64>,
    infos: HashMap<u32, EndpointInfo>,
    views: HashMap<u32, View>,
    ports: HashMap<u32, PortTable>,
    lists: HashMap<u32, List>,
    rows: HashMap<u32, u64>,
    rule_counters: HashMap<u32, u32>,
    addresses4: HashMap<[u8; 8], u64>,
    addresses6: HashMap<(u32, [u32; 4]), u64>,
    prefixes4: HashMap<(u32, [u8; 8]), u64>,
    prefixes6: HashMap<(u32, Vec<u8>), u64>,
    flows4: Flows<FlowKey4>,
    flows6: Flows<FlowKey6>,
    config: Config,
}

type Flows<K> = RefCell<HashMap<(u32, K), Box<UnsafeCell<Flow>>>>;

impl Host {
    pub(crate) fn new(store: MemoryStore) -> Self {
        let config = Config { tunnel_ports: [TUNNEL_PORT, 0, 0, 0], budget: 100, ..Config::default() };
        Self {
            store,
            node: HashMap::new(),
            services: BTreeMap::new(),
            backends: HashMap::new(),
            words: HashMap::new(),
            infos: HashMap::new(),
            views: HashMap::new(),
            ports: HashMap::new(),
            lists: HashMap::new(),
            rows: HashMap::new(),
            rule_counters: HashMap::new(),
            addresses4: HashMap::new(),
            addresses6: HashMap::new(),
            prefixes4: HashMap::new(),
            prefixes6: HashMap::new(),
            flows4: Flows::default(),
            flows6: Flows::default(),
            config,
        }
    }

    fn array<T: Table<Key = u32>>(&self) -> HashMap<u32, T::Value> {
        self.store.entries::<T>().expect("memory").into_iter().collect()
    }
}

fn masked(bytes: &[u8], bits: u32) -> Vec<u8> {
    let keep = |(i, byte): (usize, &u8)| {
        let bits = bits.saturating_sub(8 * u32::try_from(i).expect("few")).min(8);
        byte & u8::try_from(0xff00_u32 >> bits & 0xff).expect("a byte")
    };
    bytes.iter().enumerate().map(keep).collect()
}

impl Programs for Host {
    type Store = MemoryStore;

    fn published(&mut self, fresh: &[u32]) {
        self.node = self.array::<Node>();
        self.backends = self.array::<BackendTable>();
        self.services = self.store.entries::<Services>().expect("memory").into_iter().collect();
        self.words = self.array::<Endpoints>();
        self.infos = self.array::<EndpointInfos>();
        self.views = self.array::<Views>();
        self.ports = self.array::<Ports>();
        self.lists = self.array::<store::Lists>();
        self.rows = self.array::<Rows>();
        self.rule_counters =
            self.array::<RuleCounters>().into_iter().map(|(index, counter)| (index, counter as u32)).collect();
        let entries = |(key, value): (AddressKey4, u64)| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&key.segment.to_ne_bytes());
            bytes[4..].copy_from_slice(&key.address.to_ne_bytes());
            (bytes, value)
        };
        self.addresses4 = self.store.entries::<Addresses4>().expect("memory").into_iter().map(entries).collect();
        let entries = |(key, value): (AddressKey6, u64)| ((key.segment, key.address), value);
        self.addresses6 = self.store.entries::<Addresses6>().expect("memory").into_iter().map(entries).collect();
        let bytes4 = |key: &PrefixKey4| [key.segment, key.address].concat().try_into().expect("8 bytes");
        let entries = |(key, value): (LpmKey<PrefixKey4>, u64)| ((key.prefix_len, bytes4(&key.data)), value);
        self.prefixes4 = self.store.entries::<Prefixes4>().expect("memory").into_iter().map(entries).collect();
        let entries = |(key, value): (LpmKey<PrefixKey6>, u64)| {
            ((key.prefix_len, [&key.data.segment[..], &key.data.address].concat()), value)
        };
        self.prefixes6 = self.store.entries::<Prefixes6>().expect("memory").into_iter().map(entries).collect();
        self.flows4.borrow_mut().retain(|(slot, _), _| !fresh.contains(slot));
        self.flows6.borrow_mut().retain(|(slot, _), _| !fresh.contains(slot));
    }

    fn can_run(&self, _packet: &Packet) -> bool {
        true
    }

    fn leave(&mut self, vni: u32, frame: &Frame) -> Result<Passed, String> {
        let len = u32::try_from(frame.bytes.len()).expect("short");
        let meta = Meta { slot: 0, len, segments: 1, vlan: false, transit: frame.transit, mark: frame.mark };
        let outcome = verdict::translated(self, &frame.bytes[..], &meta, vni).map_err(|fault| format!("{fault:?}"))?;
        Ok(Passed { pass: outcome.pass, mark: 0, reason: Some(outcome.reason) })
    }

    fn run(&mut self, direction: Direction, slot: u32, frame: &Frame) -> Result<Passed, String> {
        let bytes = &frame.bytes[..];
        let meta = Meta {
            slot,
            len: u32::try_from(bytes.len()).expect("short"),
            segments: 1,
            vlan: false,
            transit: frame.transit,
            mark: frame.mark,
        };
        let outcome = match direction {
            Direction::Egress => leaves(self, bytes, &meta),
            Direction::Ingress => enters(self, bytes, &meta),
        };
        // All of the frame is readable, so one that asks for more ends there.
        let outcome = outcome.unwrap_or_else(|_| truncated(self, direction, &meta));
        let mark = verdict::outgoing_mark(slot, outcome.is_provisional());
        Ok(Passed { pass: outcome.pass, mark, reason: Some(outcome.reason) })
    }
}

fn find<K: Eq + Hash + Copy>(flows: &Flows<K>, slot: u32, key: &K) -> Option<FlowRef> {
    let flow = NonNull::new(flows.borrow().get(&(slot, *key))?.get())?;
    // SAFETY: boxed, so it stays where it is until it is removed, after which verdict code does not touch it.
    Some(unsafe { FlowRef::new(flow) })
}

fn insert<K: Eq + Hash + Copy>(flows: &Flows<K>, slot: u32, key: &K, flow: &Flow) {
    flows.borrow_mut().entry((slot, *key)).or_insert_with(|| Box::new(UnsafeCell::new(*flow)));
}

impl tables::Lists for Host {
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

impl Tables for Host {
    fn now(&self) -> u64 {
        self.store.clock().expect("memory").0
    }

    fn node(&self, index: u32) -> u64 {
        self.node.get(&index).copied().unwrap_or(0)
    }

    fn endpoint(&self, slot: u32) -> EndpointWord {
        EndpointWord(self.words.get(&slot).copied().unwrap_or(0))
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
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&key.segment.to_ne_bytes());
        bytes[4..].copy_from_slice(&key.address.to_ne_bytes());
        self.addresses4.get(&bytes).copied()
    }

    fn address6(&self, key: &AddressKey6) -> Option<u64> {
        self.addresses6.get(&(key.segment, key.address)).copied()
    }

    fn prefix4(&self, key: &PrefixKey4) -> Option<u64> {
        let bytes = [key.segment, key.address].concat();
        (0..=64).rev().find_map(|len| {
            let masked: [u8; 8] = masked(&bytes, len).try_into().expect("8 bytes");
            self.prefixes4.get(&(len, masked)).copied()
        })
    }

    fn prefix6(&self, key: &PrefixKey6) -> Option<u64> {
        let bytes = [&key.segment[..], &key.address].concat();
        (0..=160).rev().find_map(|len| self.prefixes6.get(&(len, masked(&bytes, len))).copied())
    }

    fn service(&self, key: &ServiceKey) -> Option<u64> {
        self.services.get(key).copied()
    }

    fn backends(&self, index: u32) -> Option<&Backends> {
        self.backends.get(&index)
    }

    fn flow4(&self, slot: u32, key: &FlowKey4) -> Option<FlowRef> {
        find(&self.flows4, slot, key)
    }

    fn flow6(&self, slot: u32, key: &FlowKey6) -> Option<FlowRef> {
        find(&self.flows6, slot, key)
    }

    fn insert4(&self, slot: u32, key: &FlowKey4, flow: &Flow) {
        insert(&self.flows4, slot, key, flow);
    }

    fn insert6(&self, slot: u32, key: &FlowKey6, flow: &Flow) {
        insert(&self.flows6, slot, key, flow);
    }

    fn remove4(&self, slot: u32, key: &FlowKey4) {
        self.flows4.borrow_mut().remove(&(slot, *key));
    }

    fn remove6(&self, slot: u32, key: &FlowKey6) {
        self.flows6.borrow_mut().remove(&(slot, *key));
    }

    fn count(&self, index: u32, size: Size, flows: u64) {
        let mut memory = self.store.memory();
        let counter = memory.counters.entry(index).or_default();
        counter.packets += size.packets;
        counter.bytes += size.bytes;
        counter.flows += flows;
    }

    fn count_endpoint(&self, index: u32, size: Size, flows: u64) {
        let mut memory = self.store.memory();
        let counter = memory.endpoint_counters.entry(index).or_default();
        counter.packets += size.packets;
        counter.bytes += size.bytes;
        counter.flows += flows;
    }

    fn sample(&self, _key: &ContactKey, _contact: &Contact) {}

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn vtep(&self, _key: &VtepKey) -> bool {
        false
    }

    fn owner(&self, _key: &PrefixKey6) -> Option<&Owner> {
        None
    }

    fn binding(&self, _place: u32) -> Option<Binding> {
        None
    }

    fn keep_binding(&self, _place: u32, _binding: &Binding) {}
}
