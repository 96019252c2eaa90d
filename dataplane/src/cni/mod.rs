//! The chained CNI plugin `bulkhead-cni`: what a container runtime calls when a container's interface is made and goes.
//!
//! It stands behind a plugin that makes a veth pair, finds the host's side of it, and asks the agent to guard that before it returns: no packet of
//! the container is sent before. It changes nothing of the result of the plugins before it. Specification: CNI 1.1.0
//! (<https://www.cni.dev/docs/spec/>), also 1.0.0 and 0.4.0.

pub mod ask;
pub mod call;
mod close;
pub mod config;
mod error;
mod links;
pub mod protocol;
pub mod run;
pub mod spool;

pub use self::error::{Code, Error};

/// Where the agent listens for the plugin, unless the network's configuration says another.
pub const SOCKET: &str = "/run/bulkhead/cni.sock";
/// Where the agent pins, unless the network's configuration says another.
pub const PINS: &str = "/sys/fs/bpf/bulkhead";
/// Type of the plugin in a network's configuration, and the name of its program.
pub const PLUGIN: &str = "bulkhead-cni";
