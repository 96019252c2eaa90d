//! What the plugin and the agent say to each other: one line of JSON each, over a unix socket that only root can open.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Version of what is said here. Both sides say theirs; another one is refused by name.
pub const VERSION: u32 = 1;
/// Longest line.
pub const MAX_BYTES: u64 = 1 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// Name of the network.
    pub network: String,
    /// The container waits for the answer: nothing of it runs yet, and its link may be shut until its policy is in force.
    #[serde(default)]
    pub waits: bool,
    /// What for.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Ask {
    /// Guard these from now on; answered when their policy is in force.
    Add(Attached),
    /// They go.
    Del {
        /// Which.
        key: Key,
    },
    /// Is what guards them what is meant to?
    Check(Attached),
    /// Those of the network that are not listed go.
    Gc {
        /// What the runtime knows.
        valid: Vec<Key>,
    },
    /// Can ADD be served?
    Status,
}

/// An attachment, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The container.
    pub container: String,
    /// The interface that was asked for.
    pub ifname: String,
}

/// A container's interfaces, of one ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Which ADD.
    pub key: Key,
    /// Namespace of the workload.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unique id of the pod, where there is one.
    #[serde(default)]
    pub uid: Option<String>,
    /// Its labels, as far as the runtime gives any.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

/// One of a container's interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name in the container.
    pub name: String,
    /// Name of the link on the host.
    pub link: String,
    /// Its index there.
    pub ifindex: u32,
    /// Addresses of the container.
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// How it went.
    pub answer: Answer,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Done, and read back from the kernel.
    Done,
    /// It cannot be, and why.
    Refused {
        /// What is wrong.
        message: String,
        /// How to mend it.
        remedy: String,
    },
}
