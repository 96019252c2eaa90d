//! [`Store`] over the pinned maps.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{OnceLock, atomic::Ordering},
    thread,
};

use bulkhead_ebpf::{abi, reason::REASONS};

use crate::{
    bytes,
    clock::Clock,
    connections::NewFlow,
    expedite,
    grace::Grace,
    load::Maps,
    node::NodeError,
    store::{self, Kind, Plain, Store, Table},
    sys::{Doing as _, Map, Words},
};

const FLOWS: [&str; 2] = ["FLOWS4", "FLOWS6"];
/// Values that one look-up of per-CPU arrays copies.
const CHUNK: u32 = 4096;

/// The pinned maps as tables.
#[derive(Debug)]
pub struct KernelStore {
    maps: Maps,
    node: Words,
    endpoints: Words,
    rows: Words,
    rule_counters: Words,
    grace: Grace,
    clock: OnceLock<Clock>,
    /// Slots without an owner whose flow tables this process has made, and nobody has used.
    ready: BTreeSet<u32>,
}

impl KernelStore {
    /// Tables over these maps.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn new(maps: Maps) -> Result<Self, NodeError> {
        let words = |name| Words::map(maps.get(name)?).doing(|| format!("map {name} into memory"));
        Ok(Self {
            node: words(store::Node::NAME)?,
            endpoints: words(store::Endpoints::NAME)?,
            rows: words(store::Rows::NAME)?,
            rule_counters: words(store::RuleCounters::NAME)?,
            maps,
            grace: Grace::new()?,
            clock: OnceLock::new(),
            ready: BTreeSet::new(),
        })
    }

    /// The maps.
    #[must_use]
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, for [`crate::load::Programs::load`].
    pub const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Brings the flow tables of slots without an owner to what is wanted: fresh ones for these slots, so that a new endpoint need not wait for a grace
    /// period, and none for others, whoever left them.
    ///
    /// # Errors
    /// The kernel's. What is not ready then is made when somebody needs it.
    pub fn keep_ready(&mut self, owned: &BTreeSet<u32>, wanted: &BTreeSet<u32>) -> Result<(), NodeError> {
        self.ready.retain(|slot| wanted.contains(slot) && !owned.contains(slot));
        let unowned = self.maps.pinned_inner()?;
        let left: Vec<u32> =
            unowned.into_iter().filter(|slot| !owned.contains(slot) && !wanted.contains(slot)).collect();
        if !left.is_empty() {
            self.drop_flow_tables(&left)?;
        }
        let missing: Vec<u32> = wanted.difference(owned).filter(|slot| !self.ready.contains(slot)).copied().collect();
        if !missing.is_empty() {
            self.make_flow_tables(&missing)?;
            self.ready.extend(missing);
        }
        Ok(())
    }

    /// Gives slots new flow tables, in place of those that they had.
    fn make_flow_tables(&self, slots: &[u32]) -> Result<(), NodeError> {
        both(|outer| {
            let mut tables = Vec::with_capacity(slots.len());
            for slot in slots {
                let table = self.maps.create_inner(outer)?;
                self.maps.pin_inner(outer, *slot, &table)?;
                tables.push(table);
            }
            // A map of maps takes descriptors, and each call waits for who may still use an older table.
            let values: Vec<u8> = tables.iter().flat_map(|table| table.as_fd().as_raw_fd().to_ne_bytes()).collect();
            let outer = self.maps.get(outer)?;
            expedite::waiting(|| outer.put_batch(&keys(slots), &values)).doing(|| "give endpoints their flow tables")
        })
    }

    /// Frees the flow tables of slots that no link refers to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drop_flow_tables(&mut self, slots: &[u32]) -> Result<(), NodeError> {
        both(|outer| {
            // The pin first: one that is left over would keep the table's memory.
            slots.iter().try_for_each(|slot| self.maps.unpin_inner(outer, *slot))?;
            let outer = self.maps.get(outer)?;
            expedite::waiting(|| outer.remove_batch(&keys(slots))).doing(|| "free flow tables")
        })
    }

    /// Puts flows into the tables of a slot, each unless one is there already and it does not replace that. How many were put; `None` when the slot has no
    /// tables.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn add_flows(
        &self,
        slot: u32,
        four: &[(abi::FlowKey4, NewFlow)],
        six: &[(abi::FlowKey6, NewFlow)],
    ) -> Result<Option<usize>, NodeError> {
        let (Some(tables4), Some(tables6)) = (self.maps.inner(FLOWS[0], slot)?, self.maps.inner(FLOWS[1], slot)?)
        else {
            return Ok(None);
        };
        let put = |table: &Map, key: &[u8], new: &NewFlow| {
            if table.insert(key, bytes::of(&new.flow))? {
                return Ok(true);
            }
            let mut there = vec![0; table.value_len()];
            if table.get(key, &mut there)? && !new.replaces(&bytes::to(&there)) {
                return Ok(false);
            }
            table.put(key, bytes::of(&new.flow)).map(|()| true)
        };
        let four = four.iter().map(|(key, flow)| put(&tables4, bytes::of(key), flow));
        let six = six.iter().map(|(key, flow)| put(&tables6, bytes::of(key), flow));
        let mut added = 0;
        for put in four.chain(six) {
            added += usize::from(put.doing(|| format!("write the flows of slot {slot}"))?);
        }
        Ok(Some(added))
    }

    fn words<T: Table>(&self) -> Result<&Words, NodeError> {
        match T::NAME {
            store::Node::NAME => Ok(&self.node),
            store::Endpoints::NAME => Ok(&self.endpoints),
            store::Rows::NAME => Ok(&self.rows),
            store::RuleCounters::NAME => Ok(&self.rule_counters),
            name => Err(NodeError::Kernel {
                doing: format!("open the words of {name}"),
                why: "the table is not kept in words".to_owned(),
            }),
        }
    }

    /// Sums over CPUs of a range of a per-CPU array.
    fn sums(&self, map: &Map, first: u32, count: u32) -> io::Result<Vec<abi::Counter>> {
        let values = map.range(first, count)?;
        Ok(values
            .chunks_exact(map.value_len())
            .map(|cpus| bytes::each::<abi::Counter>(cpus).fold(abi::Counter::default(), sum))
            .collect())
    }
}

/// Runs a job for both families at once: each waits for a grace period of its own.
fn both(job: impl Fn(&'static str) -> Result<(), NodeError> + Sync) -> Result<(), NodeError> {
    thread::scope(|scope| {
        let other = scope.spawn(|| job(FLOWS[1]));
        let first = job(FLOWS[0]);
        let second = other.join().unwrap_or_else(|_| Err("the thread panicked").doing(|| "write flow tables"));
        first.and(second)
    })
}

fn keys(slots: &[u32]) -> Vec<u8> {
    slots.iter().flat_map(|slot| slot.to_ne_bytes()).collect()
}

fn sum(a: abi::Counter, b: abi::Counter) -> abi::Counter {
    abi::Counter {
        packets: a.packets.wrapping_add(b.packets),
        bytes: a.bytes.wrapping_add(b.bytes),
        flows: a.flows.wrapping_add(b.flows),
    }
}

/// Neighbouring indexes, as first and count, of at most [`CHUNK`].
fn runs(indexes: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = indexes.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for index in sorted {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == index && *count < CHUNK => *count += 1,
            _ => runs.push((index, 1)),
        }
    }
    runs
}

fn pairs<K: Plain, V: Plain>((keys, values): &(Vec<u8>, Vec<u8>)) -> Vec<(K, V)> {
    bytes::each(keys).zip(bytes::each(values)).collect()
}

fn doing<T: Table>(what: &str) -> String {
    format!("{what} {}", T::NAME)
}

impl Store for KernelStore {
    fn limit<T: Table>(&self) -> usize {
        self.maps.get(T::NAME).map_or(0, |map| map.shape().max_entries as usize)
    }

    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, NodeError> {
        if T::KIND == Kind::Words {
            let index = bytes::to::<u32>(bytes::of(key)) as usize;
            let word = self.words::<T>()?.get(index).map(|word| word.load(Ordering::Acquire));
            return Ok(word.map(|word| bytes::to(bytes::of(&word))));
        }
        let map = self.maps.get(T::NAME)?;
        let mut value = vec![0; map.value_len()];
        let found = map.get(bytes::of(key), &mut value).doing(|| doing::<T>("read"))?;
        Ok(found.then(|| bytes::to(&value)))
    }

    fn entries<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        match T::KIND {
            Kind::Words => {
                let words = self.words::<T>()?.iter().map(|word| word.load(Ordering::Acquire));
                Ok((0_u32..)
                    .zip(words)
                    .filter(|(_, word)| *word != 0)
                    .map(|(index, word)| (bytes::to(bytes::of(&index)), bytes::to(bytes::of(&word))))
                    .collect())
            }
            Kind::Hash => Ok(pairs(&self.maps.get(T::NAME)?.entries().doing(|| doing::<T>("read"))?)),
            Kind::Array => {
                let mut entries =
                    pairs::<T::Key, T::Value>(&self.maps.get(T::NAME)?.entries().doing(|| doing::<T>("read"))?);
                entries.retain(|(_, value)| bytes::of(value).iter().any(|byte| *byte != 0));
                Ok(entries)
            }
        }
    }

    fn leading<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        if T::KIND != Kind::Array {
            return self.entries::<T>();
        }
        let map = self.maps.get(T::NAME)?;
        let entries = map.shape().max_entries;
        let mut leading = Vec::new();
        for first in (0..entries).step_by(CHUNK as usize) {
            let values = map.range(first, CHUNK.min(entries - first)).doing(|| doing::<T>("read"))?;
            if values.iter().all(|byte| *byte == 0) {
                break;
            }
            let some = (first..).zip(values.chunks_exact(size_of::<T::Value>()));
            let some = some.filter(|(_, value)| value.iter().any(|byte| *byte != 0));
            leading.extend(some.map(|(index, value)| (bytes::to(bytes::of(&index)), bytes::to(value))));
        }
        Ok(leading)
    }

    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError> {
        if T::KIND == Kind::Words {
            let words = self.words::<T>()?;
            for (key, value) in entries {
                let index = bytes::to::<u32>(bytes::of(key));
                let word =
                    words.get(index as usize).ok_or_else(|| format!("{index} is beyond its {} words", words.len()));
                word.doing(|| doing::<T>("write"))?.store(bytes::to(bytes::of(value)), Ordering::Release);
            }
            return Ok(());
        }
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| bytes::of(key)).copied().collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, value)| bytes::of(value)).copied().collect();
        self.maps.get(T::NAME)?.put_batch(&keys, &values).doing(|| doing::<T>("write"))
    }

    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError> {
        let keys: Vec<u8> = keys.iter().flat_map(bytes::of).copied().collect();
        self.maps.get(T::NAME)?.remove_batch(&keys).doing(|| doing::<T>("delete from"))
    }

    fn grace_period(&mut self) {
        self.grace.wait();
    }

    fn flow_tables(&mut self, fresh: &[u32]) -> Result<(), NodeError> {
        let missing: Vec<u32> = fresh.iter().copied().filter(|slot| !self.ready.remove(slot)).collect();
        if missing.is_empty() { Ok(()) } else { self.make_flow_tables(&missing) }
    }

    fn ready_slots(&self) -> BTreeSet<u32> {
        self.ready.clone()
    }

    fn counters(&self, indexes: &[u32]) -> Result<Vec<abi::Counter>, NodeError> {
        let map = self.maps.get("COUNTERS")?;
        let mut read = Vec::with_capacity(indexes.len());
        for (first, count) in runs(indexes) {
            read.extend((first..).zip(self.sums(map, first, count).doing(|| "read COUNTERS")?));
        }
        // Sorted by index, like the runs.
        let find = |index: &u32| {
            read.binary_search_by_key(index, |(at, _)| *at).map_or_else(|_| abi::Counter::default(), |at| read[at].1)
        };
        Ok(indexes.iter().map(find).collect())
    }

    fn endpoint_counters(&self, slot: Option<u32>) -> Result<Vec<(u32, abi::Counter)>, NodeError> {
        let map = self.maps.get("ENDPOINT_COUNTERS")?;
        let of = |slot: u32| slot * 2 * REASONS;
        let range = slot.map_or(0..map.shape().max_entries, |slot| of(slot)..of(slot + 1));
        let mut counters = Vec::new();
        for first in range.clone().step_by(CHUNK as usize) {
            let sums = self.sums(map, first, CHUNK.min(range.end - first)).doing(|| "read ENDPOINT_COUNTERS")?;
            counters.extend((first..).zip(sums).filter(|(_, counter)| *counter != abi::Counter::default()));
        }
        Ok(counters)
    }

    fn reset_counters(&mut self, indexes: &[u32]) -> Result<(), NodeError> {
        let map = self.maps.get("COUNTERS")?;
        map.put_batch(&keys(indexes), &vec![0; indexes.len() * map.value_len()]).doing(|| "reset COUNTERS")
    }

    fn flows(
        &self,
        slot: u32,
    ) -> Result<(Vec<(abi::FlowKey4, abi::Flow)>, Vec<(abi::FlowKey6, abi::Flow)>), NodeError> {
        let read = |outer: &str| match self.maps.inner(outer, slot)? {
            Some(map) => map.entries().map(Some).doing(|| format!("read {outer}")),
            None => Ok(None),
        };
        let (four, six) = (read(FLOWS[0])?, read(FLOWS[1])?);
        Ok((four.as_ref().map(pairs).unwrap_or_default(), six.as_ref().map(pairs).unwrap_or_default()))
    }

    fn unsent(&self) -> Result<u64, NodeError> {
        let map = self.maps.get("BUDGET")?;
        let value = map.range(0, 1).doing(|| "read BUDGET")?;
        Ok(bytes::each::<abi::Budget>(&value).map(|budget| budget.unsent).sum())
    }

    fn clock(&self) -> Result<(u64, u64), NodeError> {
        let clock = match self.clock.get() {
            Some(clock) => clock,
            None => {
                let clock = Clock::new().doing(|| "load the program that reads jiffies")?;
                self.clock.get_or_init(|| clock)
            }
        };
        Ok((clock.jiffies().doing(|| "read jiffies")?, clock.hz()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[7, 3, 4, 5, 9, 4]), [(3, 3), (7, 1), (9, 1)]);
        assert_eq!(runs(&(0..CHUNK + 2).collect::<Vec<_>>()), [(0, CHUNK), (CHUNK, 2)]);
    }
}
