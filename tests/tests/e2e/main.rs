//! Bulkhead end to end: the real programs on real links, real VXLAN between nodes in namespaces.
//!
//! A denied probe is one whose client saw nothing *and* whose server saw nothing *and* that stands in a counter with its reason.

mod agent;
mod applies;
mod bypass;
mod detach;
mod direct;
mod drift;
mod established;
mod expiry;
mod foreign;
mod forged;
mod kills;
mod listing;
mod memory;
mod observe;
mod policy;
mod privileges;
mod probe;
mod readme;
mod services;
mod spray;
