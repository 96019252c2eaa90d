//! Networks of namespaces for tests, the demo and benchmarks.
//!
//! A [`Topology`] is a small cluster on one machine: two or more *nodes* in network namespaces, joined by an
//! underlay, each with the bridge and the VXLAN devices that flannel would give it; *workloads* in namespaces
//! of their own behind those bridges; and an *outsider*, a host on the underlay that belongs to nobody and
//! can send any frame. Names, addresses and VNI are random, so that any number of topologies live side by
//! side, and everything goes when the value is dropped, also on a panic. What a killed process left is
//! removed by the next one ([`sweep`]).
//!
//! ```no_run
//! use bulkhead_topology::{Topology, traffic::TcpEcho};
//!
//! let topology = Topology::builder().nodes(2).workload("web", 0).workload("db", 1).build()?;
//! let (web, db) = (topology.workload("web"), topology.workload("db"));
//! let server = TcpEcho::start(&db.netns, (db.v4, 5432).into())?;
//! assert!(web.client().tcp(server.addr())?.is_answered());
//! # Ok::<(), bulkhead_topology::Error>(())
//! ```
//!
//! Everything blocks and nothing needs an async runtime. A socket belongs to the namespace in which it was
//! opened, whatever its thread does later; so only the opening happens inside ([`Netns::run`]), and threads
//! use it from anywhere.

mod builder;
pub mod cpu;
mod error;
mod netns;
pub mod rtnl;
mod topology;
pub mod traffic;

pub use builder::{Builder, WorkloadSpec};
pub use error::{Error, Result};
pub use netns::{Netns, NetnsGuard, Process, kept, remove_kept, sweep};
pub use topology::{Host, Nic, Node, Overlay, Topology, Workload};

/// A MAC address, in the order of the wire.
pub type Mac = [u8; 6];

/// A random unicast MAC address with the bit for locally administered ones.
pub fn random_mac() -> Mac {
    let mut mac = [0; 6];
    fastrand::fill(&mut mac);
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}
