//! The tables as verdict code sees them: eBPF maps in the kernel, plain collections on the host.

use core::ptr::NonNull;

use crate::{
    abi::{
        AddressKey4, AddressKey6, Backends, Binding, Class, Config, Contact, ContactKey, EndpointInfo, EndpointWord,
        Flow, FlowKey4, FlowKey6, List, Owner, PortTable, PrefixKey4, PrefixKey6, ServiceKey, View, VtepKey,
    },
    family::{V4, V6},
    verdict::{self, Among, Case, Choice, Decision, Outcome},
};

/// Size of what a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Wire segments.
    pub packets: u64,
    /// Bytes of the frames on the wire.
    pub bytes: u64,
}

impl Size {
    /// Nothing.
    pub const NONE: Self = Self { packets: 0, bytes: 0 };

    /// Of a frame of that length, which stands for so many segments; for one, where none is counted.
    #[must_use]
    #[inline(always)]
    pub const fn of(len: u32, segments: u32) -> Self {
        Self { packets: if segments == 0 { 1 } else { segments as u64 }, bytes: len as u64 }
    }
}

/// Policy sets and rows: all that [`verdict::walk`] reads. `None` is an index beyond the table.
pub trait Lists {
    /// A port table.
    fn ports(&self, index: u32) -> Option<&PortTable>;
    /// A block of a list.
    fn list(&self, index: u32) -> Option<&List>;
    /// A word of a row, 0 beyond the table.
    fn row_word(&self, index: u32) -> u64;
}

/// Read access to what user space publishes, and what the programs write. `None` is an index beyond the table or a key that is not there.
pub trait Tables: Lists {
    /// Now, in jiffies.
    fn now(&self) -> u64;
    /// A word of the node, see [`crate::abi::node`]; 0 beyond the table.
    fn node(&self, index: u32) -> u64;
    /// Word of an endpoint; the null word beyond the table. An acquiring load: what it leads to was written before it.
    fn endpoint(&self, slot: u32) -> EndpointWord;
    /// Static data of an endpoint.
    fn info(&self, slot: u32) -> Option<&EndpointInfo>;
    /// A view.
    fn view(&self, index: u32) -> Option<&View>;
    /// Index in `COUNTERS`, 0 beyond the table.
    fn rule_counter(&self, index: u32) -> u32;
    /// [`crate::abi::AddressWord`] of a known address.
    fn address4(&self, key: &AddressKey4) -> Option<u64>;
    /// [`crate::abi::AddressWord`] of a known address.
    fn address6(&self, key: &AddressKey6) -> Option<u64>;
    /// [`crate::abi::AddressWord`] of the longest prefix.
    fn prefix4(&self, key: &PrefixKey4) -> Option<u64>;
    /// [`crate::abi::AddressWord`] of the longest prefix.
    fn prefix6(&self, key: &PrefixKey6) -> Option<u64>;
    /// [`crate::abi::ServiceWord`] of a port that the node translates.
    fn service(&self, key: &ServiceKey) -> Option<u64>;
    /// Backends of such a port.
    fn backends(&self, index: u32) -> Option<&Backends>;
    /// A flow of an endpoint.
    fn flow4(&self, slot: u32, key: &FlowKey4) -> Option<FlowRef>;
    /// A flow of an endpoint.
    fn flow6(&self, slot: u32, key: &FlowKey6) -> Option<FlowRef>;
    /// Inserts a flow unless it is there.
    fn insert4(&self, slot: u32, key: &FlowKey4, flow: &Flow);
    /// Inserts a flow unless it is there.
    fn insert6(&self, slot: u32, key: &FlowKey6, flow: &Flow);
    /// Removes a flow.
    fn remove4(&self, slot: u32, key: &FlowKey4);
    /// Removes a flow.
    fn remove6(&self, slot: u32, key: &FlowKey6);
    /// Adds to a counter of a rule.
    fn count(&self, index: u32, size: Size, flows: u64);
    /// Adds to a counter of an endpoint, see [`crate::abi::endpoint_counter`].
    fn count_endpoint(&self, index: u32, size: Size, flows: u64);
    /// Takes a sample of what was denied, if the budget allows it.
    fn sample(&self, key: &ContactKey, contact: &Contact);
    /// Node-wide settings.
    fn config(&self) -> Option<&Config>;
    /// Whether a VTEP is known for a VNI.
    fn vtep(&self, key: &VtepKey) -> bool;
    /// The VTEP that owns an inner address.
    fn owner(&self, key: &PrefixKey6) -> Option<&Owner>;
    /// What this CPU has kept at a place, see [`Binding`].
    fn binding(&self, place: u32) -> Option<Binding>;
    /// Keeps it there.
    fn keep_binding(&self, place: u32, binding: &Binding);

    /// The same number. The kernel half makes it one that its verifier knows nothing of; `seed` is a number of which that holds already.
    #[inline(always)]
    fn blur(&self, number: u64, _seed: u64) -> u64 {
        number
    }

    /// [`verdict::decide`], IPv4. The kernel half keeps the case and answers [`verdict::Next::Decide4`].
    #[inline(always)]
    fn decide4(&self, case: Case<FlowKey4, u32>, flow: Option<FlowRef>) -> Outcome
    where
        Self: Sized,
    {
        verdict::decide::<V4, Self>(self, &case, flow)
    }

    /// [`verdict::decide`], IPv6.
    #[inline(always)]
    fn decide6(&self, case: Case<FlowKey6, [u32; 4]>, flow: Option<FlowRef>) -> Outcome
    where
        Self: Sized,
    {
        verdict::decide::<V6, Self>(self, &case, flow)
    }

    /// [`verdict::walk`]. The kernel half makes a function of its own of it, which the verifier looks at once instead of at every call.
    #[inline(always)]
    fn walk(&self, set: u32, class: Class, value: u16, row: u32, would: bool) -> Decision
    where
        Self: Sized,
    {
        verdict::walk(self, set, class, value, row, would)
    }

    /// [`verdict::choose`], for the same reason.
    #[inline(always)]
    fn choose(&self, among: Among) -> Choice
    where
        Self: Sized,
    {
        verdict::choose(self, among)
    }
}

/// A flow in its table. Other CPUs may write it at the same time: words are read and written whole, sums are added atomically.
#[derive(Clone, Copy, Debug)]
pub struct FlowRef(NonNull<Flow>);

impl FlowRef {
    /// Wraps a pointer into a table.
    ///
    /// # Safety
    /// The pointer is valid for reads and writes of a [`Flow`] for as long as the reference is used.
    #[must_use]
    #[inline(always)]
    pub const unsafe fn new(flow: NonNull<Flow>) -> Self {
        Self(flow)
    }

    /// Where it lies.
    #[must_use]
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut Flow {
        self.0.as_ptr()
    }

    /// See [`Flow::word`].
    #[must_use]
    #[inline(always)]
    pub fn word(self) -> u64 {
        // SAFETY: valid by `new`; an aligned word.
        unsafe { (&raw const (*self.0.as_ptr()).word).read_volatile() }
    }

    /// Sets [`Flow::word`].
    #[inline(always)]
    pub fn set_word(self, word: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).word).write_volatile(word) }
    }

    /// [`Direction`](crate::abi::Direction) of the initiator.
    #[must_use]
    #[inline(always)]
    pub fn initiator(self) -> u8 {
        self.begun() & !Flow::DIRECT
    }

    /// Whether [`Flow::DIRECT`] is set.
    #[must_use]
    #[inline(always)]
    pub fn is_direct(self) -> bool {
        self.begun() & Flow::DIRECT != 0
    }

    /// Sets [`Flow::DIRECT`].
    #[inline(always)]
    pub fn set_direct(self, direct: bool) {
        let begun = self.initiator() | if direct { Flow::DIRECT } else { 0 };
        // The rest of the byte is what it was: of a flow it never changes. (An evicting table may give the place to another flow meanwhile, as it may
        // before any write here.)
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).initiator).write_volatile(begun) }
    }

    /// See [`Flow::initiator`].
    #[inline(always)]
    fn begun(self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).initiator).read_volatile() }
    }

    /// See [`Flow::flags`].
    #[must_use]
    #[inline(always)]
    pub fn flags(self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).flags).read_volatile() }
    }

    /// Sets [`Flow::flags`].
    #[inline(always)]
    pub fn set_flags(self, flags: u8) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).flags).write_volatile(flags) }
    }

    /// See [`Flow::sender`].
    #[must_use]
    #[inline(always)]
    pub fn sender(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).sender).read_volatile() }
    }

    /// Sets [`Flow::sender`].
    #[inline(always)]
    pub fn set_sender(self, sender: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).sender).write_volatile(sender) }
    }

    /// See [`Flow::counter`].
    #[must_use]
    #[inline(always)]
    pub fn counter(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).counter).read_volatile() }
    }

    /// Sets [`Flow::counter`].
    #[inline(always)]
    pub fn set_counter(self, counter: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).counter).write_volatile(counter) }
    }

    /// Accounts a packet of the initiator (0) or a reply (1).
    #[inline(always)]
    pub fn account(self, side: usize, size: Size, now: u64, tcp_flags: u8) {
        let flow = self.0.as_ptr();
        // SAFETY: valid by `new`; `side` is 0 or 1. Lost updates of `last` and `tcp_flags` by a race are harmless: both racing values are recent.
        unsafe {
            add(&raw mut (*flow).packets[side & 1], size.packets);
            add(&raw mut (*flow).bytes[side & 1], size.bytes);
            (&raw mut (*flow).last).write_volatile(now);
            let seen = &raw mut (*flow).tcp_flags[side & 1];
            if tcp_flags & !seen.read_volatile() != 0 {
                seen.write_volatile(seen.read_volatile() | tcp_flags);
            }
        }
    }
}

/// Adds to a word that other CPUs add to.
///
/// # Safety
/// Valid for reads and writes, aligned.
#[inline(always)]
#[cfg(target_arch = "bpf")]
unsafe fn add(word: *mut u64, n: u64) {
    // The result must stay unused: a used relaxed result is miscompiled for this target.
    // SAFETY: promised by the caller.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(word, n);
    }
}

/// Adds to a word that other threads add to.
///
/// # Safety
/// Valid for reads and writes, aligned.
#[inline(always)]
#[cfg(not(target_arch = "bpf"))]
unsafe fn add(word: *mut u64, n: u64) {
    // SAFETY: promised by the caller.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.fetch_add(n, core::sync::atomic::Ordering::Relaxed);
}
