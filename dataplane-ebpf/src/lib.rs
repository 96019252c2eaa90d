//! The kernel half of Bulkhead as a library: ABI types, packet parser and verdict code.
//!
//! It builds without `std` for `bpfel-unknown-none` (the programs in `src/bin`) and for the host, where user space
//! shares the ABI types and tests run the very same verdict code over plain collections.

#![cfg_attr(target_arch = "bpf", no_std, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the target has atomic_xadd, and not what fetch_add needs")
)]

pub mod abi;
pub mod direct;
pub mod family;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod mark;
pub mod packet;
pub mod reason;
pub mod tables;
pub mod underlay;
pub mod verdict;
