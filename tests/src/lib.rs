//! A lab: a topology of namespaces whose nodes Bulkhead guards. Used by the end-to-end tests and the demonstration.
//!
//! A [`Lab`] keeps the directory of policies and the workloads file that a user would write, and guards its nodes in one of two ways:
//! [`Lab::publish`] runs compiler and node half in this process, so that what was published holds when the call returns; an [`Agent`] is
//! the real program in a process of its own, which a test may kill.
//!
//! A [`chain::Chain`] makes containers on a node as a runtime with CNI plugins does.
//!
//! A [`guarded::Guarded`] is a real Kubernetes with flannel whose nodes are guarded; an [`inside::Pod`] runs something in the network of one of its pods, as calls
//! do that [`probe`] makes.
//!
//! [`test_run`] needs no network at all: it asks the loaded programs about single packets.

mod agent;
pub mod chain;
pub mod guarded;
pub mod inside;
mod lab;
pub mod probe;
mod proxy;
pub mod systemd;
pub mod test_run;
mod visit;

pub use self::{
    agent::{Agent, bulkhead, http_get, http_get_from},
    lab::{Lab, Role},
    proxy::Service,
    visit::visit,
};
