//! What a runtime hands to the plugin on standard input: the network's configuration, and with it the result of the plugins before.

use std::{
    collections::BTreeMap,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Code, Error, PINS, SOCKET};

/// Versions of the specification that are understood.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// Largest configuration that is read; runtimes pass some kilobytes.
const MAX_BYTES: u64 = 1 << 20;
/// How long ADD waits for the agent at most, unless the configuration says otherwise. Runtimes give a container minutes.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait that can be set.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// What becomes of a container whose policy is not in force in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It does not start.
    #[default]
    Fail,
    /// It starts with its interface shut, which opens when the agent has published its policy.
    Pending,
}

/// Whether a container that cannot be guarded may start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No.
    #[default]
    Enforce,
    /// Yes, and nothing waits: the agent is told, and whatever it says the container starts.
    Observe,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    name: Option<String>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    on_timeout: OnTimeout,
    timeout_seconds: Option<u64>,
    socket: Option<PathBuf>,
    pins: Option<PathBuf>,
    namespace: Option<String>,
    #[serde(default)]
    exempt: Vec<String>,
    prev_result: Option<Value>,
    #[serde(default)]
    args: Args,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "list")]
    valid_attachments: Option<Vec<Valid>>,
    /// The same as the specification calls it. libcni writes both.
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "list")]
    attachments: Option<Vec<Valid>>,
}

/// What is written there; `null` is how Go writes an empty list.
fn list<'de, D: Deserializer<'de>>(written: D) -> Result<Option<Vec<Valid>>, D::Error> {
    Option::deserialize(written).map(|written| Some(written.unwrap_or_default()))
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Conventions,
}

/// <https://www.cni.dev/docs/conventions/#args-in-network-config>
#[derive(Debug, Default, Deserialize)]
struct Conventions {
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Debug, Deserialize)]
struct Label {
    key: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// An attachment that the runtime knows, see GC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Valid {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Name of its interface.
    pub ifname: String,
}

/// A configuration that can be worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Version of the specification that the runtime speaks.
    pub version: &'static str,
    /// Name of the network.
    pub network: String,
    /// Whether a container that cannot be guarded may start.
    pub mode: Mode,
    /// What a wait in vain leads to.
    pub on_timeout: OnTimeout,
    /// How long to wait.
    pub timeout: Duration,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// Where it pins.
    pub pins: PathBuf,
    /// Namespace of workloads whose runtime names none.
    pub namespace: String,
    /// Namespaces whose containers start as in [`Mode::Observe`]: those that a node needs to come up.
    pub exempt: Vec<String>,
    /// Labels that the runtime gives.
    pub labels: BTreeMap<String, String>,
    /// The result of the plugins before, as it came.
    pub previous: Option<Value>,
    /// Attachments that the runtime knows, in GC.
    pub valid: Option<Vec<Valid>>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is too large, no JSON, of an unknown version or of another form. With the version in which the error must be told.
    pub fn read(input: impl Read) -> Result<Self, (&'static str, Error)> {
        let newest = VERSIONS[VERSIONS.len() - 1];
        let value = json(input).map_err(|error| (newest, error))?;
        let version = version(&value).map_err(|error| (newest, error))?;
        Self::understand(value, version).map_err(|error| (version, error))
    }

    /// Whether a container of this namespace may start that cannot be guarded.
    #[must_use]
    pub fn mode_of(&self, namespace: &str) -> Mode {
        if self.exempt.iter().any(|exempt| exempt == namespace) { Mode::Observe } else { self.mode }
    }

    fn understand(value: Map<String, Value>, version: &'static str) -> Result<Self, Error> {
        let written: Written = serde_path_to_error::deserialize(Value::Object(value)).map_err(|error| {
            Error::new(
                Code::Configuration,
                format!("the network's configuration has another form than expected: {error}"),
                "look at the entry of type `bulkhead-cni` in the network's conflist: the README says what may stand there",
            )
        })?;
        let bad = |message: String, details: &str| Err(Error::new(Code::Configuration, message, details));
        let timeout = written.timeout_seconds.map_or(TIMEOUT, Duration::from_secs);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            let message = format!("`timeoutSeconds` is {}", timeout.as_secs());
            return bad(message, "write 1 to 300");
        }
        let namespace = written.namespace.unwrap_or_else(|| "default".to_owned());
        if let Some(wrong) = written.exempt.iter().chain([&namespace]).find(|namespace| !name(namespace)) {
            return bad(format!("`{wrong}` cannot be a namespace"), "letters, digits, `-`, `_` and `.`");
        }
        let absolute = |path: Option<PathBuf>, standard: &str| {
            let path = path.unwrap_or_else(|| Path::new(standard).to_owned());
            if path.is_absolute() { Ok(path) } else { Err(path) }
        };
        let (socket, pins) = match (absolute(written.socket, SOCKET), absolute(written.pins, PINS)) {
            (Ok(socket), Ok(pins)) => (socket, pins),
            (Err(path), _) | (_, Err(path)) => {
                return bad(format!("`{}` is no absolute path", path.display()), "write `socket` and `pins` whole");
            }
        };
        let mut labels: BTreeMap<String, String> =
            written.args.cni.labels.into_iter().map(|label| (label.key, label.value)).collect();
        labels.extend(written.runtime_config.labels);
        Ok(Self {
            version,
            network: written.name.unwrap_or_default(),
            mode: written.mode,
            on_timeout: written.on_timeout,
            timeout,
            socket,
            pins,
            namespace,
            exempt: written.exempt,
            labels,
            previous: written.prev_result,
            valid: written.valid_attachments.or(written.attachments),
        })
    }
}

fn json(input: impl Read) -> Result<Map<String, Value>, Error> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        Error::new(Code::Io, format!("standard input cannot be read: {error}"), "call it as CNI says")
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::new(
            Code::Decode,
            format!("the network's configuration has more than {MAX_BYTES} bytes"),
            "a configuration has some kilobytes: look at what calls the plugin",
        ));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(
            Code::Decode,
            format!("the network's configuration is no JSON object: {error}"),
            "a runtime passes it on standard input",
        )
    })
}

fn version(value: &Map<String, Value>) -> Result<&'static str, Error> {
    // Before 0.2.0 there was no such field.
    let written = value.get("cniVersion").map_or(Some("0.1.0"), Value::as_str).unwrap_or_default();
    VERSIONS.into_iter().find(|version| *version == written).ok_or_else(|| {
        Error::new(
            Code::Version,
            format!("version `{written}` of CNI is not known"),
            format!("`cniVersion` of the network's configuration must be one of {}", VERSIONS.join(", ")),
        )
    })
}

/// Whether this can be the name of a namespace or workload, also in a file's name: no `/`, no blank, nothing that begins with a dot.
#[must_use]
pub fn name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.len() <= 253 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inner)
}

/// What the result of the plugins before says of an interface in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name there.
    pub name: String,
    /// The network namespace, as the plugin wrote it.
    pub sandbox: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Vec<PreviousInterface>,
    #[serde(default)]
    ips: Vec<PreviousIp>,
}

#[derive(Debug, Deserialize)]
struct PreviousInterface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct PreviousIp {
    address: String,
    interface: Option<usize>,
}

/// Interfaces in the container, in the order of the result.
///
/// # Errors
/// There is no result, it has another form, or an address belongs to no interface of the container.
pub fn interfaces(previous: Option<&Value>, ifname: &str) -> Result<Vec<Interface>, Error> {
    let bad = |message: String| {
        Error::new(
            Code::Configuration,
            message,
            "`bulkhead-cni` stands behind a plugin that makes a veth pair, such as bridge or ptp: see its place in the conflist",
        )
    };
    let previous = previous.ok_or_else(|| bad("there is no `prevResult`".to_owned()))?;
    let previous: Previous = serde_path_to_error::deserialize(previous)
        .map_err(|error| bad(format!("`prevResult` has another form: {error}")))?;
    let mut found: Vec<(usize, Interface)> = (0..)
        .zip(&previous.interfaces)
        .filter(|(_, interface)| !interface.sandbox.is_empty())
        .map(|(index, interface)| {
            let (name, sandbox) = (interface.name.clone(), interface.sandbox.clone());
            (index, Interface { name, sandbox, addresses: Vec::new() })
        })
        .collect();
    for ip in &previous.ips {
        let address = ip.address.parse::<IpNetwork>().map_err(|_| bad(format!("`{}` is no address", ip.address)))?;
        let owner = match ip.interface {
            Some(index) => found.iter_mut().find(|(at, _)| *at == index),
            // The specification lets a plugin leave it out; then it is that of the interface that was asked for.
            None => found.iter_mut().find(|(_, interface)| interface.name == ifname),
        };
        let (_, owner) = owner.ok_or_else(|| bad(format!("address {} belongs to no interface", ip.address)))?;
        owner.addresses.push(address.ip());
    }
    let found: Vec<Interface> = found.into_iter().map(|(_, interface)| interface).collect();
    if found.is_empty() {
        return Err(bad("`prevResult` has no interface in a container".to_owned()));
    }
    if let Some(bare) = found.iter().find(|interface| interface.addresses.is_empty()) {
        return Err(bad(format!("interface {} of the container has no address", bare.name)));
    }
    Ok(found)
}
