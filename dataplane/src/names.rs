//! Names of what the tables know by hash only, for readers that have nothing but the pins and the state directory.
//!
//! One small JSON file, replaced atomically before any table refers to a new hash. Losing it costs names and the totals of slots that changed
//! hands, never enforcement.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use bulkhead_ebpf::abi::{Counter, Direction};
use foldhash::HashMap;
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::{
    desired::{EndpointName, Rule},
    node::NodeError,
};

/// Name of the file in the state directory.
pub const FILE: &str = "names.json";

/// What the hashes in the tables stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Rules, by [`rule_hash`]. Each publish asks for all of them.
    #[serde(serialize_with = "in_order")]
    pub rules: HashMap<u64, Rule>,
    /// Endpoints, by [`endpoint_identity`]; those that are gone stay for as long as a counter or slot refers to them.
    pub endpoints: BTreeMap<u64, NamedEndpoint>,
    /// Latest owner of each slot, gone or not.
    pub slots: BTreeMap<u32, SlotOwner>,
}

/// So that equal names are equal files.
fn in_order<S: Serializer>(rules: &HashMap<u64, Rule>, to: S) -> Result<S::Ok, S::Error> {
    rules.iter().collect::<BTreeMap<_, _>>().serialize(to)
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedEndpoint {
    /// Its name.
    pub name: EndpointName,
    /// Service when it was last published; empty for none.
    pub service: String,
    /// Host-side link.
    pub link: String,
    /// Node's epoch when it was removed, `None` while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u32>,
    /// When that was, nanoseconds of Unix time; of those that went before it was kept it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<u64>,
    /// What it counted in slots that others own now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Total>,
}

/// The latest owner of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotOwner {
    /// Identity of the endpoint.
    pub endpoint: u64,
    /// Link that refers to the slot.
    pub link: String,
    /// What stood in the slot's `ENDPOINT_COUNTERS` when this owner got it; they are never reset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<Total>,
}

/// A sum of what no rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// [`Direction`] as a number.
    pub direction: u8,
    /// [`bulkhead_ebpf::reason::Reason`] as a number.
    pub reason: u8,
    /// As in [`Counter`].
    pub packets: u64,
    /// As in [`Counter`].
    pub bytes: u64,
    /// As in [`Counter`].
    pub flows: u64,
}

impl Total {
    /// From a counter.
    #[must_use]
    pub const fn new(direction: Direction, reason: u8, counter: Counter) -> Self {
        Self {
            direction: direction as u8,
            reason,
            packets: counter.packets,
            bytes: counter.bytes,
            flows: counter.flows,
        }
    }

    /// The sums.
    #[must_use]
    pub const fn counter(&self) -> Counter {
        Counter { packets: self.packets, bytes: self.bytes, flows: self.flows }
    }
}

/// First eight bytes of a digest: wide enough for names that nobody gains by forging; what is forged is only a label.
#[must_use]
pub fn rule_hash(name: &str) -> u64 {
    digest("rule", name.as_bytes())[0]
}

/// [`bulkhead_ebpf::abi::EndpointInfo::identity`] of an endpoint; never 0.
#[must_use]
pub fn endpoint_identity(name: &EndpointName) -> u64 {
    let text = format!("{}\0{}\0{}", name.namespace, name.workload, name.index);
    digest("endpoint", text.as_bytes())[0].max(1)
}

/// Hash of a selector's text. Selectors with one hash would share a bit, and so what they may do: hence a cryptographic digest.
#[must_use]
pub fn selector_hash(text: &str) -> [u64; 2] {
    digest("selector", text.as_bytes())
}

fn digest(domain: &str, bytes: &[u8]) -> [u64; 2] {
    let mut hasher = Sha256::new();
    hasher.update(domain.as_bytes());
    hasher.update([0]);
    hasher.update(bytes);
    let digest = hasher.finalize();
    let word = |at: usize| digest[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    [word(0), word(8)]
}

impl Names {
    /// Reads the file of a state directory; one that is not there has no names.
    ///
    /// # Errors
    /// [`NodeError::Kernel`] for a file that cannot be read or understood.
    pub fn load(state: &Path) -> Result<Self, NodeError> {
        let path = state.join(FILE);
        let failed = |why: String| NodeError::Kernel { doing: format!("read {}", path.display()), why };
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| failed(format!("{e}; the next publish writes it anew")))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(failed(e.to_string())),
        }
    }

    /// Replaces the file atomically: a crash of the agent leaves the old or the new one. Nobody waits for the disk: a crash of the machine takes the
    /// tables, to which the names belong.
    ///
    /// # Errors
    /// [`NodeError::Kernel`].
    pub fn save(&self, state: &Path) -> Result<(), NodeError> {
        let path = state.join(FILE);
        write_atomically(state, &path, self)
            .map_err(|e| NodeError::Kernel { doing: format!("write {}", path.display()), why: e.to_string() })
    }
}

fn write_atomically(state: &Path, path: &PathBuf, names: &Names) -> std::io::Result<()> {
    fs::create_dir_all(state)?;
    let mut file = tempfile::Builder::new().prefix(".names-").tempfile_in(state)?;
    file.write_all(&serde_json::to_vec(names)?)?;
    file.persist(path)?;
    Ok(())
}
