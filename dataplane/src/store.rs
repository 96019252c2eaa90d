//! The tables as the publisher and the readers see them, over kernel maps or plain memory.

use std::collections::BTreeSet;

use bulkhead_ebpf::abi;

use crate::node::NodeError;

/// A type that may be copied to and from a map byte by byte.
///
/// # Safety
/// Valid for every bit pattern, without padding, `repr(C)` or `repr(transparent)` or a primitive.
pub unsafe trait Plain: Copy + Send + 'static {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        // SAFETY: integers, and ABI types, whose layout tests in `bulkhead_ebpf::abi` exclude padding.
        $(unsafe impl Plain for $type {})*
    };
}
plain!(
    u32,
    u64,
    abi::AddressKey4,
    abi::AddressKey6,
    abi::EndpointInfo,
    abi::View,
    abi::PortTable,
    abi::List,
    abi::FlowKey4,
    abi::FlowKey6,
    abi::Flow,
    abi::Counter,
    abi::ContactKey,
    abi::Contact,
    abi::Budget,
    abi::Config,
    abi::VtepKey,
    abi::Owner,
    abi::ServiceKey,
    abi::Backends,
    abi::IdKey,
    abi::CounterKey,
    bulkhead_ebpf::mark::Layout,
    LpmKey<abi::PrefixKey4>,
    LpmKey<abi::PrefixKey6>,
);

/// Key of an LPM trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LpmKey<K> {
    /// Bits of `data` that count, the segment's 32 included.
    pub prefix_len: u32,
    /// Segment and address.
    pub data: K,
}

/// How a table is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Array of 8-byte words that user space maps into memory: a store is one aligned write with release order.
    Words,
    /// Array.
    Array,
    /// Hash or LPM trie.
    Hash,
}

/// One of the pinned maps: its name, key and value.
pub trait Table: 'static {
    /// Key; `u32` for arrays.
    type Key: Plain + Ord + std::fmt::Debug;
    /// Value.
    type Value: Plain + PartialEq + std::fmt::Debug;
    /// Name of the map in the eBPF object and of its pin.
    const NAME: &'static str;
    /// How it is kept.
    const KIND: Kind;
}

macro_rules! tables {
    ($($(#[doc = $doc:literal])+ $type:ident = $name:literal, $kind:ident, $key:ty => $value:ty;)*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $type;
            impl Table for $type {
                type Key = $key;
                type Value = $value;
                const NAME: &'static str = $name;
                const KIND: Kind = Kind::$kind;
            }
        )*
    };
}
tables! {
    /// Words of the node, see [`abi::node`].
    Node = "NODE", Words, u32 => u64;
    /// Words of the endpoints, [`abi::EndpointWord`], by slot.
    Endpoints = "ENDPOINTS", Words, u32 => u64;
    /// Rows: word `w` of row `r` at `r * ROW_WORDS + w`.
    Rows = "ROWS", Words, u32 => u64;
    /// Node-wide settings, one entry.
    Config = "CONFIG", Array, u32 => abi::Config;
    /// Static data of endpoints, by slot.
    EndpointInfos = "ENDPOINT_INFO", Array, u32 => abi::EndpointInfo;
    /// Views.
    Views = "VIEWS", Array, u32 => abi::View;
    /// Port tables, at `set * Class::COUNT + class`.
    Ports = "PORTS", Array, u32 => abi::PortTable;
    /// Blocks of lists; index 0 is never used.
    Lists = "LISTS", Array, u32 => abi::List;
    /// From a view's counter base plus a rule's number in its set to the index in `COUNTERS`.
    RuleCounters = "RULE_COUNTERS", Words, u32 => u64;
    /// What each counter counts.
    CounterKeys = "COUNTER_KEYS", Array, u32 => abi::CounterKey;
    /// Known IPv4 addresses, to [`abi::AddressWord`].
    Addresses4 = "ADDRESSES4", Hash, abi::AddressKey4 => u64;
    /// Known IPv6 addresses, to [`abi::AddressWord`].
    Addresses6 = "ADDRESSES6", Hash, abi::AddressKey6 => u64;
    /// IPv4 prefixes, to [`abi::AddressWord`].
    Prefixes4 = "PREFIXES4", Hash, LpmKey<abi::PrefixKey4> => u64;
    /// IPv6 prefixes, to [`abi::AddressWord`].
    Prefixes6 = "PREFIXES6", Hash, LpmKey<abi::PrefixKey6> => u64;
    /// VTEPs that are known for a VNI, to 1.
    Vteps = "VTEPS", Hash, abi::VtepKey => u64;
    /// Inner prefixes and the VTEP that owns them.
    Owners = "OWNERS", Hash, LpmKey<abi::PrefixKey6> => abi::Owner;
    /// Ports that the node translates, to [`abi::ServiceWord`].
    Services = "SERVICES", Hash, abi::ServiceKey => u64;
    /// What the backends of such ports are to a policy; index 0 is never used.
    BackendTable = "BACKENDS", Array, u32 => abi::Backends;
    /// What user space has given ids to.
    Ids = "IDS", Hash, abi::IdKey => u32;
    /// Samples of what was denied.
    ContactTable = "CONTACTS", Hash, abi::ContactKey => abi::Contact;
}

/// Access to the tables. Writes are visible to the programs when the call returns.
pub trait Store {
    /// Entries that the table may have.
    fn limit<T: Table>(&self) -> usize;
    /// Value of a key; arrays give zeroed values for what was never written, `None` beyond the limit.
    ///
    /// # Errors
    /// What the kernel refused.
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, NodeError>;
    /// All entries; of arrays those that are not all zero bytes.
    ///
    /// # Errors
    /// What the kernel refused.
    fn entries<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError>;
    /// The same of an array that is filled from its first entry on: ends where thousands in a row are zero.
    ///
    /// # Errors
    /// What the kernel refused.
    fn leading<T: Table>(&self) -> Result<Vec<(T::Key, T::Value)>, NodeError> {
        self.entries::<T>()
    }
    /// Writes entries, in order for [`Kind::Words`] (each with release order), in batches else.
    ///
    /// # Errors
    /// What the kernel refused.
    fn put<T: Table>(&mut self, entries: &[(T::Key, T::Value)]) -> Result<(), NodeError>;
    /// Removes entries of a [`Kind::Hash`] table; what is not there is no error.
    ///
    /// # Errors
    /// What the kernel refused.
    fn delete<T: Table>(&mut self, keys: &[T::Key]) -> Result<(), NodeError>;
    /// Returns when no program runs any more that started before the call.
    fn grace_period(&mut self);
    /// Makes sure that these slots have flow tables, empty ones where `fresh` says so.
    ///
    /// # Errors
    /// What the kernel refused.
    fn flow_tables(&mut self, fresh: &[u32]) -> Result<(), NodeError>;
    /// Slots without an owner that have flow tables already, empty ones: [`Self::flow_tables`] does not wait for these.
    fn ready_slots(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }
    /// Sums over CPUs of `COUNTERS`, by index, for the indexes asked.
    ///
    /// # Errors
    /// What the kernel refused.
    fn counters(&self, indexes: &[u32]) -> Result<Vec<abi::Counter>, NodeError>;
    /// Sums over CPUs of those of `ENDPOINT_COUNTERS` that are not zero, by index: of one slot, or of all, which takes as long as there are slots.
    ///
    /// # Errors
    /// What the kernel refused.
    fn endpoint_counters(&self, slot: Option<u32>) -> Result<Vec<(u32, abi::Counter)>, NodeError>;
    /// Sets counters to zero before they are given to another rule.
    ///
    /// # Errors
    /// What the kernel refused.
    fn reset_counters(&mut self, indexes: &[u32]) -> Result<(), NodeError>;
    /// Flows of an endpoint.
    ///
    /// # Errors
    /// What the kernel refused.
    fn flows(&self, slot: u32)
    -> Result<(Vec<(abi::FlowKey4, abi::Flow)>, Vec<(abi::FlowKey6, abi::Flow)>), NodeError>;
    /// Samples that did not fit the budget, over all CPUs.
    ///
    /// # Errors
    /// What the kernel refused.
    fn unsent(&self) -> Result<u64, NodeError>;
    /// Now, in jiffies, and jiffies a second.
    ///
    /// # Errors
    /// What the kernel refused.
    fn clock(&self) -> Result<(u64, u64), NodeError>;
}
