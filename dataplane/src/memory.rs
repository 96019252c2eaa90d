//! Tables in plain memory, and a node made of them: for tests of the publisher, the readers and the controller.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bulkhead_ebpf::{
    abi::{self, Class, ROW_WORDS},
    reason::REASONS,
};

use crate::{
    bytes,
    desired::{Desired, Endpoint},
    names::Names,
    node::{
        Contacts, Containers, Discovered, FlowRecord, LinkStatus, MarkConflicts, Node, NodeError, Observer, Published,
        Reading, Rehearsal, Status, Wire,
    },
    publish::{Publisher, Removed, display},
    read::{self, Idle},
    store::{self, Kind, Plain, Store, Table},
    sys::Doing as _,
};

/// Bytes of a table's entries: keys and values as they would lie in a map.
pub type Bytes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything that the tables hold, by name of the table.
pub type Snapshot = BTreeMap<&'static str, Bytes>;

/// Something that happened to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One entry was written, or removed where there is no value.
    Write {
        /// Table.
        table: &'static str,
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Option<Vec<u8>>,
    },
    /// Programs that started before this have ended.
    GracePeriod,
}

/// What is in a [`MemoryStore`] beside its tables, and how it behaves.
#[derive(Debug)]
pub struct Memory {
    tables: Snapshot,
    limits: BTreeMap<&'static str, usize>,
    /// `COUNTERS`.
    pub counters: BTreeMap<u32, abi::Counter>,
    /// `ENDPOINT_COUNTERS`.
    pub endpoint_counters: BTreeMap<u32, abi::Counter>,
    /// Flow tables by slot.
    pub flows: BTreeMap<u32, FlowTables>,
    /// Samples that did not fit.
    pub unsent: u64,
    /// When jiffies were 0, and jiffies a second: they go with the wall clock.
    clock: (SystemTime, u64),
    /// Everything that happened, from the moment on when this was set.
    pub journal: Option<Vec<Event>>,
    /// Entries that may still be written; then every write fails, in the middle of a batch as well.
    pub budget: Option<usize>,
}

/// Flow tables of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTables {
    /// IPv4.
    pub v4: Vec<(abi::FlowKey4, abi::Flow)>,
    /// IPv6.
    pub v6: Vec<(abi::FlowKey6, abi::Flow)>,
}

/// Tables in plain memory. Clones are handles to the same tables.
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Mutex<Memory>>);

impl Default for MemoryStore {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Memory {
            tables: Snapshot::new(),
            limits: [
                (store::Node::NAME, abi::node::COUNT as usize),
                (store::Endpoints::NAME, 1024),
                (store::Rows::NAME, 4096 * ROW_WORDS as usize),
                (store::Config::NAME, 1),
                (store::EndpointInfos::NAME, 1024),
                (store::Views::NAME, 8192),
                (store::Ports::NAME, 1024 * Class::COUNT as usize),
                (store::Lists::NAME, 16384),
                (store::RuleCounters::NAME, 131_072),
                (store::CounterKeys::NAME, 65536),
                (store::Addresses4::NAME, 65536),
                (store::Addresses6::NAME, 65536),
                (store::Prefixes4::NAME, 16384),
                (store::Prefixes6::NAME, 16384),
                (store::Services::NAME, 4096),
                (store::BackendTable::NAME, 1024),
                (store::Vteps::NAME, 4096),
                (store::Owners::NAME, 65536),
                (store::Ids::NAME, 16384),
                (store::ContactTable::NAME, 8192),
            ]
            .into(),
            counters: BTreeMap::new(),
            endpoint_counters: BTreeMap::new(),
            flows: BTreeMap::new(),
            unsent: 0,
            clock: (SystemTime::now() - Duration::from_secs(4000), 250),
            journal: None,
            budget: None,
        })))
    }
}

/// The bytes of a key or value, as in a [`Snapshot`].
pub fn to_bytes<P: Plain>(value: &P) -> Vec<u8> {
    bytes::of(value).to_vec()
}

/// A key or value from its bytes.
///
/// # Panics
/// When there are not exactly as many as it has.
#[must_use]
pub fn from_bytes<P: Plain>(from: &[u8]) -> P {
    assert_eq!(from.len(), size_of::<P>(), "size of a value");
    bytes::to(from)
}

fn refused(doing: &str, why: &str) -> NodeError {
    NodeError::Kernel { doing: doing.to_owned(), why: why.to_owned() }
}

impl Memory {
    fn table<T: Table>(&mut self) -> &mut Bytes {
        self.tables.entry(T::NAME).or_default()
    }

    fn write<T: Table>(&mut self, key: &T::Key, value: Option<&T::Value>) -> Result<(), NodeError> {
        match &mut self.budget {
            Some(0) => return Err(refused(&format!("write {}", T::NAME), "the budget is spent")),
            Some(budget) => *budget -= 1,
            None => {}
        }
        let limit = self.limits.get(T::NAME).copied().unwrap_or(0);
        let (key, mut value) = (to_bytes(key), value.map(to_bytes));
        if matches!(T::KIND, Kind::Hash) {
            let table = self.table::<T>();
            if value.is_some() && table.len() >= limit && !table.contains_key(&key) {
                return Err(refused(&format!("write {}", T::NAME), "the table is full"));
            }
        } else if from_bytes::<u32>(&key) as usize >= limit {
            return Err(refused(&format!("write {}", T::NAME), "beyond the end of the array"));
        } else {
            // An entry that is zero is the same as one that was never written.
            value = value.filter(|value| value.iter().any(|byte| *byte != 0));
        }
        if let Some(journal) = &mut self.journal {
            journal.push(Event::Write { table: T::NAME, key: key.clone(), value: value.clone() });
        }
        match value {
            Some(value) => drop(self.table::<T>().insert(key, value)),
            None => drop(self.table::<T>().remove(&key)),
        }
        Ok(())
    }
}

impl MemoryStore {
    /// What lies beside the tables, to look at and to set.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        // A test that failed while it held the lock has said so already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many entries a table may have.
    pub fn set_limit<T: Table>(&self, limit: usize) {
        self.memory().limits.insert(T::NAME, limit);
    }

    /// Sets the jiffies of this moment, as if the wall clock had been stepped.
    pub fn set_jiffies(&self, jiffies: u64) {
        let mut memory = self.memory();
        memory.clock.0 = SystemTime::now() - Duration::from_millis(jiffies * 1000 / memory.clock.1);
    }

    /// A copy of all tables.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut tables = self.memory().tables.clone();
        tables.retain(|_, entries| !entries.is_empty());
        tables
    }

    /// Tables of their own with the same content and behaviour, without journal and budget.
    #[must_use]
    pub fn fork(&self) -> Self {
        let memory = self.memory();
        Self(Arc::new(Mutex::new(Memory {
            tables: memory.tables.clone(),
            limits: memory.limits.clone(),
            counters: memory.counters.clone(),
            endpoint_counters: memory.endpoint_counters.clone(),
            flows: memory.flows.clone(),
            journal: None,
            budget: None,
            ..*memory
        })))
    }
}

impl Store for MemoryStore {
    fn limit<T: Table>(&self) -> usize {
        self.memory().limits.get(T::NAME).copied().unwrap_or(0)
    }

    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, NodeError> {
        let key = to_bytes(key);
        let limit = self.limit::<T>();
        let found = self.memory().table::<T>().get(&key).map(|value| from_bytes(value));
        Ok(match T::KIND {
            Kind::Hash => found,
            Kind::Words | Kind::Array if (from_bytes::<u32>(&key) as usize) < limit => {
                Some(found.unwrap_or_else(|| from_bytes(&vec![0; size_of::<T::Value>()])))
            }
            Kind::Words | Kind::Array => None,
        })
    }

    fn entries<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        Ok(self.memory().table::<T>().iter().map(|(key, value)| (from_bytes(key), from_bytes(value))).collect())
    }

    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError> {
        let mut memory = self.memory();
        entries.iter().try_for_each(|(key, value)| memory.write::<T>(key, Some(value)))
    }

    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError> {
        let mut memory = self.memory();
        keys.iter().try_for_each(|key| memory.write::<T>(key, None))
    }

    fn grace_period(&mut self) {
        if let Some(journal) = &mut self.memory().journal {
            journal.push(Event::GracePeriod);
        }
    }

    fn flow_tables(&mut self, fresh: &[u32]) -> Result<(), NodeError> {
        self.memory().flows.extend(fresh.iter().map(|slot| (*slot, FlowTables::default())));
        Ok(())
    }

    fn counters(&self, indexes: &[u32]) -> Result<Vec<abi::Counter>, NodeError> {
        let memory = self.memory();
        Ok(indexes.iter().map(|index| memory.counters.get(index).copied().unwrap_or_default()).collect())
    }

    fn endpoint_counters(&self, slot: Option<u32>) -> Result<Vec<(u32, abi::Counter)>, NodeError> {
        let of = |index: &u32| slot.is_none_or(|slot| index / (2 * REASONS) == slot);
        let memory = self.memory();
        let counters = memory.endpoint_counters.iter().filter(|(index, _)| of(index));
        Ok(counters.map(|(index, counter)| (*index, *counter)).collect())
    }

    fn reset_counters(&mut self, indexes: &[u32]) -> Result<(), NodeError> {
        self.memory().counters.retain(|index, _| !indexes.contains(index));
        Ok(())
    }

    fn flows(
        &self,
        slot: u32,
    ) -> Result<(Vec<(abi::FlowKey4, abi::Flow)>, Vec<(abi::FlowKey6, abi::Flow)>), NodeError> {
        let FlowTables { v4, v6 } = self.memory().flows.get(&slot).cloned().unwrap_or_default();
        Ok((v4, v6))
    }

    fn unsent(&self) -> Result<u64, NodeError> {
        Ok(self.memory().unsent)
    }

    fn clock(&self) -> Result<(u64, u64), NodeError> {
        let (zero, hz) = self.memory().clock;
        let since = zero.elapsed().unwrap_or_default();
        Ok(((since.as_millis() * u128::from(hz) / 1000) as u64, hz))
    }
}

/// A node without a kernel: tables in memory, links that are only remembered.
#[derive(Debug)]
pub struct MemoryNode {
    publisher: Publisher<MemoryStore>,
    links: Links,
    directory: PathBuf,
    /// Links that are shut rather than let go.
    kept_shut: BTreeSet<String>,
}

/// The [`Observer`] of a [`MemoryNode`].
struct MemoryObserver {
    store: MemoryStore,
    links: Links,
    directory: PathBuf,
}

/// What a [`MemoryNode`] knows of its network. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<Network>>);

/// See [`Links`].
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// What [`Node::discover`] answers.
    pub discovered: Discovered,
    /// Links that cannot be guarded, and why.
    pub broken: BTreeMap<String, String>,
    /// Links that are not there any more.
    pub gone: BTreeSet<String>,
    /// Links that have another name now, by the one that they had.
    pub renamed: BTreeMap<String, String>,
    /// What [`Node::containers`] answers.
    pub containers: Containers,
    /// Links that are guarded, and with which slot.
    pub attached: BTreeMap<String, u32>,
}

impl Links {
    /// Access.
    pub fn network(&self) -> MutexGuard<'_, Network> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some MAC that is always the same for a link.
    fn wire(&self, endpoint: &Endpoint) -> Result<Wire, NodeError> {
        if let Some(why) = self.network().broken.get(&endpoint.link) {
            let (link, endpoint) = (endpoint.link.clone(), display(&endpoint.name));
            return Err(NodeError::Link { link, endpoint, why: why.clone() });
        }
        let hash = crate::names::rule_hash(&endpoint.link).to_be_bytes();
        Ok(Wire::to([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]))
    }
}

impl MemoryNode {
    /// A node over these tables, with its names in `directory`.
    ///
    /// # Errors
    /// As [`Publisher::open`].
    pub fn open(store: MemoryStore, links: Links, directory: &Path) -> Result<Self, NodeError> {
        let (publisher, directory) = (Publisher::open(store, directory)?, directory.to_owned());
        Ok(Self { publisher, links, directory, kept_shut: BTreeSet::new() })
    }

    /// The publisher.
    pub const fn publisher(&mut self) -> &mut Publisher<MemoryStore> {
        &mut self.publisher
    }

    fn names(&self) -> &Names {
        self.publisher.names()
    }
}

impl Node for MemoryNode {
    fn publish(&mut self, desired: &Desired) -> Result<Published, NodeError> {
        let links = self.links.clone();
        let plan = self.publisher.prepare(desired, &mut |endpoint| links.wire(endpoint))?;
        links.network().attached.extend(plan.attach.iter().map(|attach| (attach.link.clone(), attach.slot)));
        let removed: Vec<Removed> = plan.removed.clone();
        let attached: BTreeSet<String> = plan.attach.iter().map(|attach| attach.link.clone()).collect();
        let mut published = self.publisher.commit(plan)?;
        let gone: BTreeSet<&String> = removed.iter().filter_map(|removed| removed.link.as_ref()).collect();
        let mut network = links.network();
        network.attached.retain(|link, _| !gone.contains(link));
        for found in &mut network.containers.links {
            let kept = gone.contains(&found.link) && self.kept_shut.contains(&found.link);
            found.shut = (found.shut || kept) && !attached.contains(&found.link);
            if found.shut && self.kept_shut.contains(&found.link) {
                published.shut.insert(found.link.clone());
            }
        }
        drop(network);
        self.publisher.release(&removed)?;
        Ok(published)
    }

    fn keep_shut(&mut self, links: BTreeSet<String>) {
        self.kept_shut = links;
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        self.publisher.rehearse(desired, &mut |endpoint| self.links.wire(endpoint))
    }

    fn discover(&mut self) -> Result<Discovered, NodeError> {
        Ok(self.links.network().discovered.clone())
    }

    fn status(&mut self) -> Result<Status, NodeError> {
        status(self.publisher.store(), self.names(), &self.links)
    }

    fn gone(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeSet<(String, u32)>, NodeError> {
        let network = self.links.network();
        Ok(links.iter().filter(|(name, _)| network.gone.contains(name)).cloned().collect())
    }

    fn renamed(&mut self, links: &BTreeSet<(String, u32)>) -> Result<BTreeMap<(String, u32), String>, NodeError> {
        let network = self.links.network();
        Ok(links.iter().filter_map(|link| Some((link.clone(), network.renamed.get(&link.0)?.clone()))).collect())
    }

    fn containers(&mut self) -> Result<Containers, NodeError> {
        let network = self.links.network();
        let mut containers = network.containers.clone();
        containers.links.iter_mut().for_each(|found| found.guarded = network.attached.contains_key(&found.link));
        Ok(containers)
    }

    fn shut(&mut self, link: &str) -> Result<(), NodeError> {
        let mut network = self.links.network();
        let Network { containers, attached, .. } = &mut *network;
        let found = containers.links.iter_mut().find(|found| found.link == link);
        let found = found.ok_or("there is no such link").doing(|| format!("shut link {link}"))?;
        found.shut = !attached.contains_key(link);
        Ok(())
    }

    fn unshut(&mut self, link: &str) -> Result<(), NodeError> {
        let mut network = self.links.network();
        network.containers.links.iter_mut().filter(|found| found.link == link).for_each(|found| found.shut = false);
        Ok(())
    }

    fn observer(&mut self) -> Result<Box<dyn Observer>, NodeError> {
        let (links, directory) = (self.links.clone(), self.directory.clone());
        Ok(Box::new(MemoryObserver { store: self.publisher.store().clone(), links, directory }))
    }
}

impl Observer for MemoryObserver {
    fn counters(&self) -> Result<Vec<Reading>, NodeError> {
        read::with_names(&self.directory, |names| read::counters(&self.store, names, &mut Idle::default()))
    }

    fn flows(&self) -> Result<Vec<FlowRecord>, NodeError> {
        read::with_names(&self.directory, |names| read::flows(&self.store, names))
    }

    fn contacts(&self) -> Result<Contacts, NodeError> {
        read::with_names(&self.directory, |names| read::contacts(&self.store, names))
    }

    fn status(&self) -> Result<Status, NodeError> {
        read::with_names(&self.directory, |names| status(&self.store, names, &self.links))
    }

    fn mark_conflicts(&self) -> Result<MarkConflicts, NodeError> {
        Ok(MarkConflicts::default())
    }
}

fn status(store: &MemoryStore, names: &Names, links: &Links) -> Result<Status, NodeError> {
    let mut status = read::status(store, names, None)?;
    let network = links.network();
    for endpoint in &mut status.endpoints {
        endpoint.attached = network.attached.get(&endpoint.link) == Some(&endpoint.slot);
    }
    // There is no socket that tunnel packets could reach unchecked.
    status.input_rule = true;
    status.links =
        network.attached.keys().map(|link| LinkStatus { link: link.clone(), guard: "memory".to_owned() }).collect();
    Ok(status)
}
