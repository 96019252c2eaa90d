//! Readers: what the tables say, in the words of [`crate::node`]. They need the tables and [`Names`] only, no agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_ebpf::{
    abi::{
        Contact, ContactKey, Counter, CounterKey, Direction, ENDPOINT_ADDRESSES, EndpointInfo, EndpointWord, Flow, View,
    },
    reason::Reason,
};

use crate::{
    bypass::bypassed_until,
    desired::EndpointName,
    names::{NamedEndpoint, Names, Total},
    node::{
        ContactRecord, Contacts, EndpointStatus, FlowRecord, NodeError, Reading, Status, TableUse, direction_label,
    },
    publish::{epoch, from_packet, manner, scan, since, slot_totals},
    store::{ContactTable, CounterKeys, EndpointInfos, Endpoints, Store, Table, Views},
};

/// Reads with names that fit the tables: reads again when a publish changed the names meanwhile.
///
/// # Errors
/// Those of `read` and of [`Names::load`].
pub fn with_names<R>(state: &Path, mut read: impl FnMut(&Names) -> Result<R, NodeError>) -> Result<R, NodeError> {
    let mut names = Names::load(state)?;
    loop {
        let result = read(&names)?;
        let after = Names::load(state)?;
        if after == names {
            return Ok(result);
        }
        names = after;
    }
}

/// What slots have counted that nobody owns: nothing counts there any more, so that it is read once.
#[derive(Debug, Default)]
pub struct Idle {
    /// All but these are.
    owned: BTreeSet<u32>,
    totals: Vec<(u32, Total)>,
}

impl Idle {
    /// Totals of all slots.
    fn totals<S: Store>(&mut self, store: &S, owned: BTreeSet<u32>) -> Result<Vec<(u32, Total)>, NodeError> {
        if self.owned != owned {
            let all = slot_totals(store, None)?;
            self.totals = all.iter().filter(|(slot, _)| !owned.contains(slot)).copied().collect();
            self.owned = owned;
            return Ok(all);
        }
        let mut all = self.totals.clone();
        for slot in owned {
            all.extend(slot_totals(store, Some(slot))?);
        }
        Ok(all)
    }
}

/// Exact counters since the pins were made; what was never counted is left out. Who reads them again and again keeps what is `idle`.
///
/// # Errors
/// What the kernel refused.
pub fn counters<S: Store>(store: &S, names: &Names, idle: &mut Idle) -> Result<Vec<Reading>, NodeError> {
    let mut sums: BTreeMap<(Option<u64>, u8, u8, u64), Counter> = BTreeMap::new();
    let mut add = |endpoint, direction: u8, reason, rule, counter: Counter| {
        let sum = sums.entry((endpoint, direction, reason, rule)).or_default();
        sum.packets += counter.packets;
        sum.bytes += counter.bytes;
        sum.flows += counter.flows;
    };
    let keys = counter_keys(store)?;
    let indexes: Vec<u32> = keys.keys().flat_map(|index| [*index, index + 1]).collect();
    let values = store.counters(&indexes)?;
    for (index, counter) in indexes.into_iter().zip(values) {
        let (direction, reason, key) = half(&keys, index);
        if let Some(key) = key {
            add(Some(key.endpoint), direction as u8, reason as u8, key.rule, counter);
        }
    }
    let mut by_slot: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    let owners = slot_identities(store, names)?;
    // The first slot is the node's own.
    let totals = idle.totals(store, owners.keys().copied().chain([0]).collect())?;
    totals.into_iter().for_each(|(slot, total)| by_slot.entry(slot).or_default().push(total));
    for (slot, totals) in by_slot {
        let base = names.slots.get(&slot).map_or(&[][..], |owner| &owner.base);
        // What a slot counted that nobody is known to have owned is told as the node's rather than not at all.
        let owner = owners.get(&slot).copied();
        since(&totals, base).iter().for_each(|total| add(owner, total.direction, total.reason, 0, total.counter()));
    }
    for (identity, endpoint) in &names.endpoints {
        endpoint
            .retired
            .iter()
            .for_each(|total| add(Some(*identity), total.direction, total.reason, 0, total.counter()));
    }

    let gone = gone(names);
    let reading = |((endpoint, direction, reason, rule), counter): (_, Counter)| {
        let endpoint: Option<u64> = endpoint;
        let known = endpoint.and_then(|identity| names.endpoints.get(&identity));
        Some(Reading {
            endpoint: endpoint.map(|identity| endpoint_name(names, identity)),
            service: known.map(|endpoint| endpoint.service.clone()).unwrap_or_default(),
            gone: known.and_then(|endpoint| gone.get(&workload(endpoint)).copied().flatten()),
            direction: direction_label(Direction::from_u8(direction)),
            reason: Reason::from_u8(reason)?,
            rule: rule_name(names, rule),
            packets: counter.packets,
            bytes: counter.bytes,
            flows: counter.flows,
        })
    };
    Ok(sums.into_iter().filter(|(_, counter)| *counter != Counter::default()).filter_map(reading).collect())
}

/// Namespace and name of an endpoint's workload.
fn workload(NamedEndpoint { name, .. }: &NamedEndpoint) -> (&str, &str) {
    (&name.namespace, &name.workload)
}

/// Since when each workload has no endpoint any more; `None` for those that have one.
fn gone(names: &Names) -> HashMap<(&str, &str), Option<u64>> {
    let mut gone: HashMap<_, Option<u64>> = HashMap::new();
    for endpoint in names.endpoints.values() {
        // What is not known is long ago.
        let at = endpoint.gone.map(|_| endpoint.gone_at.unwrap_or(0));
        gone.entry(workload(endpoint))
            .and_modify(|latest| *latest = latest.zip(at).map(|(a, b)| a.max(b)))
            .or_insert(at);
    }
    gone
}

/// First halves of pairs: of a pair only this half says what it is.
fn counter_keys<S: Store>(store: &S) -> Result<BTreeMap<u32, CounterKey>, NodeError> {
    Ok(store.leading::<CounterKeys>()?.into_iter().filter(|(index, _)| *index >= 2 && index % 2 == 0).collect())
}

/// What an index of `COUNTERS` counts: direction of the packets, reason, and the pair's key.
fn half(keys: &BTreeMap<u32, CounterKey>, index: u32) -> (Direction, Reason, Option<&CounterKey>) {
    let key = keys.get(&(index & !1));
    let initiator = Direction::from_u8(key.map_or(0, |key| key.direction));
    let reason = key.and_then(|key| Reason::from_u8(key.reason)).unwrap_or(Reason::None);
    match index % 2 {
        0 => (initiator, reason, key),
        _ if reason.beside() => (initiator.reverse(), reason, key),
        _ => (initiator.reverse(), Reason::Reply, key),
    }
}

fn rule_name(names: &Names, rule: u64) -> String {
    match names.rules.get(&rule) {
        Some(rule) => rule.name.clone(),
        None if rule == 0 => String::new(),
        None => format!("unnamed {rule:016x}"),
    }
}

fn endpoint_name(names: &Names, identity: u64) -> EndpointName {
    match names.endpoints.get(&identity) {
        Some(NamedEndpoint { name, .. }) => name.clone(),
        None => EndpointName { namespace: "unnamed".to_owned(), workload: format!("{identity:016x}"), index: 0 },
    }
}

/// Names that the records of one reading share: there are many records, and few names.
struct Shared<'a> {
    names: &'a Names,
    endpoints: HashMap<u64, Arc<EndpointName>>,
    rules: HashMap<u64, Arc<str>>,
}

impl<'a> Shared<'a> {
    fn new(names: &'a Names) -> Self {
        Self { names, endpoints: HashMap::new(), rules: HashMap::new() }
    }

    fn endpoint(&mut self, identity: u64) -> Arc<EndpointName> {
        let new = || Arc::new(endpoint_name(self.names, identity));
        Arc::clone(self.endpoints.entry(identity).or_insert_with(new))
    }

    fn rule(&mut self, rule: u64) -> Arc<str> {
        Arc::clone(self.rules.entry(rule).or_insert_with(|| rule_name(self.names, rule).into()))
    }
}

/// Latest owner of each slot: what the kernel says, else what is remembered.
fn slot_identities<S: Store>(store: &S, names: &Names) -> Result<HashMap<u32, u64>, NodeError> {
    let mut owners: HashMap<u32, u64> = names.slots.iter().map(|(slot, owner)| (*slot, owner.endpoint)).collect();
    owners.extend(infos(store)?.into_iter().map(|(slot, info)| (slot, info.identity)));
    Ok(owners)
}

fn infos<S: Store>(store: &S) -> Result<BTreeMap<u32, EndpointInfo>, NodeError> {
    Ok(store.entries::<EndpointInfos>()?.into_iter().filter(|(_, info)| info.identity != 0).collect())
}

/// Jiffies to wall clock.
struct Clock {
    now: u64,
    jiffies: u64,
    hz: u64,
}

impl Clock {
    fn new<S: Store>(store: &S) -> Result<Self, NodeError> {
        let (jiffies, hz) = store.clock()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        Ok(Self { now, jiffies, hz: hz.max(1) })
    }

    fn unix(&self, jiffies: u64) -> u64 {
        let ago = u128::from(self.jiffies.saturating_sub(jiffies)) * 1_000_000_000 / u128::from(self.hz);
        self.now.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
    }
}

/// The word that good flows of an endpoint have now: its own, with the view that holds.
fn good_word(word: EndpointWord, views: &HashMap<u32, View>, now: u64) -> u64 {
    let mut index = word.view();
    for _ in 0..bulkhead_ebpf::abi::VIEW_CHAIN {
        match views.get(&index) {
            Some(view) if now < view.deadline => return word.with_view(index).0,
            Some(view) => index = view.next,
            None => break,
        }
    }
    0
}

/// Flows that are in the tables now.
///
/// # Errors
/// What the kernel refused.
pub fn flows<S: Store>(store: &S, names: &Names) -> Result<Vec<FlowRecord>, NodeError> {
    let clock = Clock::new(store)?;
    let keys = counter_keys(store)?;
    let views: HashMap<u32, View> = store.entries::<Views>()?.into_iter().collect();
    let words: HashMap<u32, u64> = store.entries::<Endpoints>()?.into_iter().collect();
    let mut shared = Shared::new(names);
    let mut judged: HashMap<u32, (Reason, Arc<str>)> = HashMap::new();
    let mut records = Vec::new();
    for (slot, info) in infos(store)? {
        let word = EndpointWord(words.get(&slot).copied().unwrap_or(0));
        let good = good_word(word, &views, clock.jiffies);
        let endpoint = shared.endpoint(info.identity);
        let mut record = |local, remote, protocol, local_port, remote_port, flow: Flow| {
            let (reason, rule) = judged.entry(flow.counter & !1).or_insert_with_key(|&counter| {
                let (_, reason, key) = half(&keys, counter);
                // What nothing is known of has no rule, as what none decided.
                (reason, shared.rule(key.map_or(0, |key| key.rule)))
            });
            FlowRecord {
                endpoint: Arc::clone(&endpoint),
                direction: direction_label(flow.begun()),
                local,
                remote,
                protocol,
                local_port,
                remote_port,
                rule: Arc::clone(rule),
                reason: *reason,
                packets: flow.packets,
                bytes: flow.bytes,
                first: clock.unix(flow.last.saturating_sub(u64::from((flow.last as u32).wrapping_sub(flow.first)))),
                last: clock.unix(flow.last),
                current: good != 0 && (flow.word == good || flow.flags & Flow::AUDIT != 0),
                direct: flow.initiator & Flow::DIRECT != 0,
            }
        };
        let (v4, v6) = store.flows(slot)?;
        records.reserve(v4.len() + v6.len());
        let address = |address: u32| IpAddr::from(address.to_ne_bytes());
        records.extend(v4.into_iter().map(|(key, flow)| {
            record(address(key.local), address(key.remote), key.protocol, key.local_port, key.remote_port, flow)
        }));
        records.extend(v6.into_iter().map(|(key, flow)| {
            record(
                own_address(&info, key.local),
                from_packet(key.remote),
                key.protocol,
                key.local_port,
                key.remote_port,
                flow,
            )
        }));
    }
    Ok(records)
}

/// The endpoint's address that a flow's key names; the link-local one is made of the MAC (RFC 4291, appendix A).
fn own_address(info: &EndpointInfo, index: u8) -> IpAddr {
    match info.ipv6.get(usize::from(index)) {
        Some(address) if usize::from(index) < ENDPOINT_ADDRESSES => from_packet(*address),
        _ => {
            let [a, b, c, d, e, f] = info.mac;
            IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
        }
    }
}

/// ::ffff:a.b.c.d as what it stands for.
fn unmapped(words: [u32; 4]) -> IpAddr {
    match from_packet(words) {
        IpAddr::V6(address) => {
            address.to_ipv4_mapped().map_or(IpAddr::V6(address), |address: Ipv4Addr| IpAddr::V4(address))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Samples of what was denied.
///
/// # Errors
/// What the kernel refused.
pub fn contacts<S: Store>(store: &S, names: &Names) -> Result<Contacts, NodeError> {
    let clock = Clock::new(store)?;
    let keys = counter_keys(store)?;
    let owners = slot_identities(store, names)?;
    let mut shared = Shared::new(names);
    let record = |(key, contact): (ContactKey, Contact)| {
        let owner = owners.get(&u32::from(key.slot)).copied().filter(|_| key.slot != 0);
        // A counter that was given to somebody else meanwhile says nothing of this contact.
        let rule = keys.get(&(contact.counter & !1)).filter(|counter| {
            contact.counter != 0
                && Some(counter.endpoint) == owner
                && (counter.direction, counter.reason) == (key.direction, key.reason)
        });
        Some(ContactRecord {
            endpoint: owner.map(|identity| shared.endpoint(identity)),
            direction: direction_label(Direction::from_u8(key.direction)),
            peer: unmapped(key.peer),
            protocol: key.protocol,
            port: key.port,
            reason: Reason::from_u8(key.reason)?,
            rule: shared.rule(rule.map_or(0, |counter| counter.rule)),
            observed: key.flags & ContactKey::OBSERVED != 0,
            would_pass: key.flags & ContactKey::WOULD_PASS != 0,
            packets: contact.packets,
            bytes: contact.bytes,
            first: clock.unix(contact.first),
            last: clock.unix(contact.last),
            inner: (contact.vni != 0 || contact.inner != [0; 4]).then(|| (contact.vni, unmapped(contact.inner))),
        })
    };
    Ok(Contacts {
        records: store.entries::<ContactTable>()?.into_iter().filter_map(record).collect(),
        unsent: store.unsent()?,
    })
}

/// Endpoints alone, without looking through the other tables.
///
/// # Errors
/// What the kernel refused.
pub fn endpoints<S: Store>(store: &S, names: &Names) -> Result<Vec<EndpointStatus>, NodeError> {
    let words: BTreeMap<u32, EndpointWord> =
        store.entries::<Endpoints>()?.into_iter().map(|(slot, word)| (slot, EndpointWord(word))).collect();
    let known = store.entries::<EndpointInfos>()?.into_iter().filter(|(slot, _)| words.contains_key(slot));
    Ok(known.map(|(slot, info)| endpoint_status(names, slot, &info, words[&slot])).collect())
}

fn endpoint_status(names: &Names, slot: u32, info: &EndpointInfo, word: EndpointWord) -> EndpointStatus {
    let link = names.slots.get(&slot).filter(|owner| owner.endpoint == info.identity).map(|owner| owner.link.clone());
    EndpointStatus {
        name: endpoint_name(names, info.identity),
        slot,
        link: link.unwrap_or_default(),
        mode: word.mode(),
        epoch: word.epoch(),
        attached: false,
    }
}

/// What is in force, as far as the tables say it: links and input rule are left for who knows the network. Who knows how full the tables are that a
/// publisher writes, says so; else all of them are read.
///
/// # Errors
/// What the kernel refused.
pub fn status<S: Store>(store: &S, names: &Names, usage: Option<Vec<TableUse>>) -> Result<Status, NodeError> {
    let words: HashMap<u32, u64> = store.entries::<Endpoints>()?.into_iter().collect();
    let infos = infos(store)?;
    let word = |slot: &u32| EndpointWord(words.get(slot).copied().unwrap_or_default());
    let endpoint = |(slot, info): (&u32, &EndpointInfo)| endpoint_status(names, *slot, info, word(slot));
    let mut tables = match usage {
        Some(usage) => usage,
        None => scan(store)?.usage(store),
    };
    tables.push(TableUse {
        table: ContactTable::NAME,
        used: store.entries::<ContactTable>()?.len(),
        limit: store.limit::<ContactTable>(),
    });
    let (manner, bypassed_until) = (manner(store)?, bypassed_until(store)?);
    Ok(Status {
        epoch: epoch(store, words.values().map(|word| EndpointWord(*word)))?,
        observe: manner.observe,
        direct: manner.direct && !manner.observe && bypassed_until.is_none(),
        bypassed_until,
        endpoints: infos.iter().map(endpoint).collect(),
        links: Vec::new(),
        missing: Vec::new(),
        tables,
        input_rule: false,
        mark_mask: 0,
    })
}
