//! Results that libcni keeps of each ADD: `results/NETWORK-CONTAINER-INTERFACE` in its directory, JSON of kind `cniCacheV1` (libcni's `api.go`, type
//! `cachedInfo`). They are the runtime's, and bytes like any others: what does not fit is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_dataplane::cni::{
    PLUGIN,
    call::{Subject, Verb},
    config::{Config, Interface, interfaces},
    protocol::Key,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Largest file that is read; a result and the configuration of its network have some kilobytes.
const MAX_BYTES: u64 = 1 << 20;
/// Most files that are looked at: far more than a node has containers.
const MAX_FILES: usize = 1 << 14;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: Map<String, Value>,
    /// The network's configuration, in base64.
    #[serde(default)]
    config: String,
    result: Value,
}

#[derive(Deserialize)]
struct Conflist {
    #[serde(default)]
    plugins: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Outside {
    name: String,
    #[serde(default)]
    sandbox: String,
}

/// What a runtime keeps of a container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Name of the network.
    pub network: String,
    /// Which ADD it was.
    pub key: Key,
    /// Namespace of the workload, where the runtime or our entry in the network's configuration names one.
    pub namespace: Option<String>,
    /// Its name, where the runtime names one.
    pub name: Option<String>,
    /// Unique id of the pod, where there is one.
    pub uid: Option<String>,
    /// Labels, as far as ADD would have brought any.
    pub labels: BTreeMap<String, String>,
    /// Interfaces on the host that the result names, bridges among them.
    pub outside: BTreeSet<String>,
    /// Interfaces in the container.
    pub inside: Vec<Interface>,
}

impl Cached {
    /// Reads one.
    ///
    /// # Errors
    /// It has another form, or something in it could not have been told by an ADD.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if written.kind != "cniCacheV1" {
            return Err(format!("kind `{}` is not known", written.kind.escape_debug()));
        }
        let arguments: Vec<String> = written.cni_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let arguments = arguments.join(";");
        // The same is asked of it as of a call.
        let variable = |key: &str| match key {
            "CNI_CONTAINERID" => Some(written.container_id.clone()),
            "CNI_IFNAME" => Some(written.if_name.clone()),
            "CNI_ARGS" => Some(arguments.clone()),
            _ => None,
        };
        let subject = Subject::read(Verb::Del, variable).map_err(|error| error.to_string())?;
        let inside = interfaces(Some(&written.result), &subject.ifname).map_err(|error| error.to_string())?;
        let outside = written.result.get("interfaces").cloned().unwrap_or(Value::Array(Vec::new()));
        let outside: Vec<Outside> = serde_json::from_value(outside).map_err(|error| error.to_string())?;
        let outside = outside.into_iter().filter(|interface| interface.sandbox.is_empty());
        let config = ours(&written)?;
        let (namespace, labels) = config.map(|config| (config.namespace, config.labels)).unzip();
        Ok(Self {
            network: written.network_name,
            key: Key { container: subject.container, ifname: subject.ifname },
            namespace: subject.namespace.or(namespace),
            name: subject.name,
            uid: subject.uid,
            labels: labels.unwrap_or_default(),
            outside: outside.map(|interface| interface.name).collect(),
            inside,
        })
    }

    fn file_name(&self) -> String {
        format!("{}-{}-{}", self.network, self.key.container, self.key.ifname)
    }
}

/// Our entry in the network's configuration, as the plugin would have been given it; `None` where there is none.
fn ours(written: &Written) -> Result<Option<Config>, String> {
    if written.config.is_empty() {
        return Ok(None);
    }
    let config = STANDARD.decode(&written.config).map_err(|error| format!("its configuration: {error}"))?;
    let list: Conflist = serde_json::from_slice(&config).map_err(|error| format!("its configuration: {error}"))?;
    let entry = list.plugins.into_iter().find(|entry| entry.get("type").and_then(Value::as_str) == Some(PLUGIN));
    let Some(mut entry) = entry else { return Ok(None) };
    // The version is the runtime's affair, of which nothing depends here.
    entry.insert("cniVersion".to_owned(), "1.0.0".into());
    entry.insert("runtimeConfig".to_owned(), Value::Object(written.capability_args.clone()));
    let entry = Value::Object(entry).to_string();
    Config::read(entry.as_bytes()).map(Some).map_err(|(_, error)| format!("our entry of its configuration: {error}"))
}

/// All that can be read in libcni's directory. What cannot is said once in the log: `told` are those.
pub fn read(directory: &Path, told: &mut BTreeSet<PathBuf>) -> Vec<Cached> {
    // Where no runtime has kept a result yet, there is none.
    let Ok(entries) = fs::read_dir(directory.join("results")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).take(MAX_FILES + 1).collect();
    paths.sort();
    let mut tell = |path: &Path, why: &str| {
        if told.len() < MAX_FILES && told.insert(path.to_owned()) {
            tracing::warn!("a runtime's result is left out, {}: {why}", path.display());
        }
    };
    if paths.len() > MAX_FILES {
        tell(directory, &format!("there are more than {MAX_FILES} files; remove those of containers that are gone"));
    }
    let mut found = Vec::new();
    for path in paths {
        match file(&path) {
            Ok(Some(cached)) => found.push(cached),
            Ok(None) => {}
            Err(why) => tell(&path, &why),
        }
    }
    found
}

/// `None` for what went meanwhile.
fn file(path: &Path) -> Result<Option<Cached>, String> {
    // Whatever it is: nothing is followed, and no pipe is waited for.
    let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let cached = Cached::parse(&bytes)?;
    if path.file_name().and_then(|name| name.to_str()) != Some(&cached.file_name()) {
        return Err(format!("it is of {}", cached.file_name()));
    }
    Ok(Some(cached))
}
