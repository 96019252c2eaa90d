//! The maps, and [`Tables`] over them. Sizes here are defaults; the loader sets them.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{ArrayOfMaps, LruHashMap as FlowTable},
    helpers::generated::bpf_jiffies64,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use bulkhead_ebpf::{
    abi::{
        AddressKey4, AddressKey6, BINDINGS as PLACES, Backends, Binding, Budget, Class, Config, Contact, ContactKey,
        Counter, EndpointInfo, EndpointWord, Flow, FlowKey4, FlowKey6, List, Owner, PortTable, PrefixKey4, PrefixKey6,
        ServiceKey, View, VtepKey, node,
    },
    family::{V4, V6},
    tables::{FlowRef, Lists, Size, Tables},
    verdict::{self, Among, Case, Choice, Decision, Next, Outcome},
};

use crate::skb::hide;

/// User space maps these arrays into its memory and stores single words.
const MMAPABLE: u32 = 1 << 10;
/// Tries must not be preallocated.
const NO_PREALLOC: u32 = 1;

#[map]
static NODE: Array<u64> = Array::with_max_entries(node::COUNT, MMAPABLE);
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static ENDPOINTS: Array<u64> = Array::with_max_entries(1024, MMAPABLE);
#[map]
static ENDPOINT_INFO: Array<EndpointInfo> = Array::with_max_entries(1024, 0);
#[map]
static VIEWS: Array<View> = Array::with_max_entries(8192, 0);
#[map]
static PORTS: Array<PortTable> = Array::with_max_entries(6144, 0);
#[map]
static LISTS: Array<List> = Array::with_max_entries(16384, 0);
#[map]
static ROWS: Array<u64> = Array::with_max_entries(4096 * 64, MMAPABLE);
#[map]
static RULE_COUNTERS: Array<u64> = Array::with_max_entries(131_072, MMAPABLE);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(65_536, 0);
#[map]
static ENDPOINT_COUNTERS: PerCpuArray<Counter> =
    PerCpuArray::with_max_entries(1024 * 2 * bulkhead_ebpf::reason::REASONS, 0);
#[map]
static ADDRESSES4: HashMap<AddressKey4, u64> = HashMap::with_max_entries(65_536, 0);
#[map]
static ADDRESSES6: HashMap<AddressKey6, u64> = HashMap::with_max_entries(65_536, 0);
#[map]
static PREFIXES4: LpmTrie<PrefixKey4, u64> = LpmTrie::with_max_entries(16_384, NO_PREALLOC);
#[map]
static PREFIXES6: LpmTrie<PrefixKey6, u64> = LpmTrie::with_max_entries(16_384, NO_PREALLOC);
#[map]
static SERVICES: HashMap<ServiceKey, u64> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map]
static BACKENDS: Array<Backends> = Array::with_max_entries(16_384, 0);
#[map]
static VTEPS: HashMap<VtepKey, u64> = HashMap::with_max_entries(16_384, 0);
#[map]
static OWNERS: LpmTrie<PrefixKey6, Owner> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
/// No two programs that use it run at a time on a CPU, as for [`CASE4`].
#[map]
static BINDINGS: PerCpuArray<Binding> = PerCpuArray::with_max_entries(PLACES, 0);
#[map]
static CONTACTS: LruHashMap<ContactKey, Contact> = LruHashMap::with_max_entries(8192, 0);
#[map]
static BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);
/// What the programs that ask the lists are told; one of each for each CPU, where no two TC programs run at a time.
#[map]
static CASE4: PerCpuArray<Case<FlowKey4, u32>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static CASE6: PerCpuArray<Case<FlowKey6, [u32; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
static FLOWS4: ArrayOfMaps<FlowTable<FlowKey4, Flow, 16384>, 1024> = ArrayOfMaps::new();
#[btf_map]
static FLOWS6: ArrayOfMaps<FlowTable<FlowKey6, Flow, 16384>, 1024> = ArrayOfMaps::new();

/// The maps of this object.
pub(crate) struct Maps;

#[inline(always)]
fn add(counter: Option<*mut Counter>, size: Size, flows: u64) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's slot of a per-CPU array; no other CPU writes it, and programs are not preempted by programs of the same kind
        // on the same CPU.
        unsafe {
            (*counter).packets += size.packets;
            (*counter).bytes += size.bytes;
            (*counter).flows += flows;
        }
    }
}

#[inline(always)]
fn flow(found: Option<*mut Flow>) -> Option<FlowRef> {
    // SAFETY: a value in a map, valid while the program runs.
    NonNull::new(found?).map(|flow| unsafe { FlowRef::new(flow) })
}

impl Lists for Maps {
    #[inline(always)]
    fn ports(&self, index: u32) -> Option<&PortTable> {
        PORTS.get(index)
    }

    #[inline(always)]
    fn list(&self, index: u32) -> Option<&List> {
        LISTS.get(index)
    }

    #[inline(always)]
    fn row_word(&self, index: u32) -> u64 {
        // SAFETY: an aligned word in an array.
        ROWS.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn node(&self, index: u32) -> u64 {
        // SAFETY: an aligned word in an array.
        NODE.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> EndpointWord {
        // SAFETY: an aligned word in an array.
        EndpointWord(ENDPOINTS.get_ptr(slot).map_or(0, |word| unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn info(&self, slot: u32) -> Option<&EndpointInfo> {
        ENDPOINT_INFO.get(slot)
    }

    #[inline(always)]
    fn view(&self, index: u32) -> Option<&View> {
        VIEWS.get(index)
    }

    #[inline(always)]
    fn rule_counter(&self, index: u32) -> u32 {
        RULE_COUNTERS.get(index).map_or(0, |counter| *counter as u32)
    }

    #[inline(always)]
    fn address4(&self, key: &AddressKey4) -> Option<u64> {
        // SAFETY: an aligned word, read once; the tag in it tells whose it is.
        ADDRESSES4.get_ptr(key).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn address6(&self, key: &AddressKey6) -> Option<u64> {
        // SAFETY: as above.
        ADDRESSES6.get_ptr(key).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn prefix4(&self, key: &PrefixKey4) -> Option<u64> {
        PREFIXES4.get(Key::new(8 * size_of::<PrefixKey4>() as u32, *key)).copied()
    }

    #[inline(always)]
    fn prefix6(&self, key: &PrefixKey6) -> Option<u64> {
        PREFIXES6.get(Key::new(8 * size_of::<PrefixKey6>() as u32, *key)).copied()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<u64> {
        // SAFETY: as for addresses.
        SERVICES.get_ptr(key).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn backends(&self, index: u32) -> Option<&Backends> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn flow4(&self, slot: u32, key: &FlowKey4) -> Option<FlowRef> {
        flow(FLOWS4.get(slot)?.get_ptr_mut(key))
    }

    #[inline(always)]
    fn flow6(&self, slot: u32, key: &FlowKey6) -> Option<FlowRef> {
        flow(FLOWS6.get(slot)?.get_ptr_mut(key))
    }

    #[inline(always)]
    fn insert4(&self, slot: u32, key: &FlowKey4, flow: &Flow) {
        if let Some(flows) = FLOWS4.get(slot) {
            // Another CPU may have been first; its entry serves as well.
            let _ = flows.insert(key, flow, BPF_NOEXIST as u64);
        }
    }

    #[inline(always)]
    fn insert6(&self, slot: u32, key: &FlowKey6, flow: &Flow) {
        if let Some(flows) = FLOWS6.get(slot) {
            // As above.
            let _ = flows.insert(key, flow, BPF_NOEXIST as u64);
        }
    }

    #[inline(always)]
    fn remove4(&self, slot: u32, key: &FlowKey4) {
        if let Some(flows) = FLOWS4.get(slot) {
            // Not there any more is what is wanted.
            let _ = flows.remove(key);
        }
    }

    #[inline(always)]
    fn remove6(&self, slot: u32, key: &FlowKey6) {
        if let Some(flows) = FLOWS6.get(slot) {
            // As above.
            let _ = flows.remove(key);
        }
    }

    #[inline(always)]
    fn count(&self, index: u32, size: Size, flows: u64) {
        add(COUNTERS.get_ptr_mut(index), size, flows);
    }

    #[inline(always)]
    fn count_endpoint(&self, index: u32, size: Size, flows: u64) {
        add(ENDPOINT_COUNTERS.get_ptr_mut(index), size, flows);
    }

    #[inline(always)]
    fn sample(&self, key: &ContactKey, contact: &Contact) {
        let (Some(budget), Some(config)) = (BUDGET.get_ptr_mut(0), CONFIG.get(0)) else {
            return;
        };
        // SAFETY: this CPU's slot of a per-CPU array.
        let budget = unsafe { &mut *budget };
        let window = contact.last >> 7;
        if budget.window != window {
            budget.window = window;
            budget.taken = 0;
        }
        if budget.taken >= config.budget as u64 {
            budget.unsent += contact.packets;
            return;
        }
        budget.taken += 1;
        if let Some(known) = CONTACTS.get_ptr_mut(key) {
            // SAFETY: a value in a map, valid while the program runs. A race between CPUs loses a sample, which is a sample anyway.
            unsafe {
                (*known).packets += contact.packets;
                (*known).bytes += contact.bytes;
                (*known).last = contact.last;
                (*known).counter = contact.counter;
                (*known).vni = contact.vni;
                (*known).inner = contact.inner;
            }
        } else {
            // Another CPU may have been first.
            let _ = CONTACTS.insert(key, contact, BPF_NOEXIST as u64);
        }
    }

    #[inline(always)]
    fn blur(&self, number: u64, seed: u64) -> u64 {
        number ^ hide(seed) ^ seed
    }

    #[inline(always)]
    fn decide4(&self, case: Case<FlowKey4, u32>, _flow: Option<FlowRef>) -> Outcome {
        let Some(scratch) = CASE4.get_ptr_mut(0) else {
            return Outcome::undecided(Next::Settled);
        };
        // SAFETY: this CPU's slot of a per-CPU array.
        unsafe { scratch.write(case) };
        Outcome::undecided(Next::Decide4)
    }

    #[inline(always)]
    fn decide6(&self, case: Case<FlowKey6, [u32; 4]>, _flow: Option<FlowRef>) -> Outcome {
        let Some(scratch) = CASE6.get_ptr_mut(0) else {
            return Outcome::undecided(Next::Settled);
        };
        // SAFETY: as above.
        unsafe { scratch.write(case) };
        Outcome::undecided(Next::Decide6)
    }

    #[inline(always)]
    fn walk(&self, set: u32, class: Class, value: u16, row: u32, would: bool) -> Decision {
        Decision(walk(set, class as u32, value as u32, row, would as u32))
    }

    #[inline(always)]
    fn choose(&self, among: Among) -> Choice {
        let how = among.would as u32 | (among.all as u32) << 1;
        Choice(choose(among.backends, among.set, among.class as u32, how, among.own))
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn vtep(&self, key: &VtepKey) -> bool {
        VTEPS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn owner(&self, key: &PrefixKey6) -> Option<&Owner> {
        OWNERS.get(Key::new(8 * size_of::<PrefixKey6>() as u32, *key))
    }

    #[inline(always)]
    fn binding(&self, place: u32) -> Option<Binding> {
        BINDINGS.get(place).copied()
    }

    #[inline(always)]
    fn keep_binding(&self, place: u32, binding: &Binding) {
        if let Some(kept) = BINDINGS.get_ptr_mut(place) {
            // SAFETY: this CPU's slot of a per-CPU array.
            unsafe { kept.write(*binding) };
        }
    }
}

impl Maps {
    /// Decides the case that [`Tables::decide4`] kept.
    #[inline(always)]
    pub(crate) fn kept4(&self) -> Outcome {
        let Some(case) = CASE4.get(0) else {
            return Outcome::undecided(Next::Settled);
        };
        verdict::decide::<V4, Self>(self, case, case.flow::<V4, Self>(self))
    }

    /// Decides the case that [`Tables::decide6`] kept.
    #[inline(always)]
    pub(crate) fn kept6(&self) -> Outcome {
        let Some(case) = CASE6.get(0) else {
            return Outcome::undecided(Next::Settled);
        };
        verdict::decide::<V6, Self>(self, case, case.flow::<V6, Self>(self))
    }
}

/// [`verdict::walk`] as a global function of the object: numbers in, numbers out, so that the verifier looks at it by itself. The result is a
/// packed [`Decision`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk(set: u32, class: u32, value: u32, row: u32, would: u32) -> u64 {
    verdict::walk(&Maps, set, Class::from_u8(class as u8), value as u16, row, would != 0).0
}

/// [`verdict::choose`], likewise; the flags are the sixth byte of the result.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose(backends: u32, set: u32, class: u32, how: u32, own: u32) -> u64 {
    let among =
        Among { backends, set, class: Class::from_u8(class as u8), would: how & 1 != 0, all: how & 2 != 0, own };
    verdict::choose(&Maps, among).0
}
