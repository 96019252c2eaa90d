//! Calls the plugins of a network as a runtime does.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;
use bulkhead_topology::Netns;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{Lab, bulkhead};

/// Where Debian, and where most others put the reference plugins.
const DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Where the reference plugins are, if they are installed.
#[must_use]
pub fn reference_plugins() -> Option<PathBuf> {
    DIRECTORIES.map(PathBuf::from).into_iter().find(|directory| directory.join("bridge").is_file())
}

/// Our plugin, next to the program that runs.
///
/// # Errors
/// As [`bulkhead`].
pub fn our_plugin() -> Result<PathBuf> {
    Ok(bulkhead()?.with_file_name("bulkhead-cni"))
}

/// Flannel's own plugin, where `tests/setup/setup.sh --test` puts it: in `cni` beside the directory of our programs.
#[must_use]
pub fn flannel_plugin() -> Option<PathBuf> {
    Some(our_plugin().ok()?.parent()?.parent()?.join("cni/flannel"))
}

/// Runs a plugin whose environment says what for, with its configuration.
///
/// # Errors
/// What it said.
///
/// # Panics
/// It cannot be started.
pub fn call(mut plugin: Command, config: &Value) -> Result<String, Value> {
    let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    if child.wait().unwrap().success() {
        Ok(text)
    } else {
        Err(serde_json::from_str(&text).unwrap_or_else(|_| json!({ "msg": text })))
    }
}

/// A network of one node, and what was made in it.
pub struct Chain<'a> {
    netns: &'a Netns,
    directory: PathBuf,
    version: &'static str,
    /// Version of the specification that ours is called with; the reference plugins of today do not know the newest.
    pub ours: &'static str,
    /// Name of the interface in the container that is asked for.
    pub ifname: &'static str,
    /// Plugins in order, as in a conflist.
    pub plugins: Vec<Value>,
    /// Programs of types that are neither ours nor reference plugins.
    pub programs: BTreeMap<String, PathBuf>,
    _ipam: TempDir,
}

/// A container of the tests: a network namespace, and what the plugins said of it.
pub struct Container {
    /// Name of the workload.
    pub name: String,
    /// Where its sockets are.
    pub netns: Netns,
    /// What ADD said last.
    pub result: Value,
}

impl Container {
    /// One that has no interface yet.
    ///
    /// # Panics
    /// No namespace can be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), netns: Netns::new(name).unwrap(), result: Value::Null }
    }

    /// The id that a runtime would give it.
    #[must_use]
    pub fn id(&self) -> String {
        format!("c0ffee-{}", self.name)
    }

    /// Its addresses, as the result says.
    ///
    /// # Panics
    /// There is no result.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().unwrap();
        ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
    }

    /// Name of its link on the node.
    ///
    /// # Panics
    /// The result names none.
    #[must_use]
    pub fn link(&self) -> String {
        let interfaces = self.result["interfaces"].as_array().unwrap();
        let outside = |interface: &&Value| {
            interface["sandbox"].as_str().unwrap_or_default().is_empty()
                && interface["name"].as_str().unwrap().starts_with("veth")
        };
        interfaces.iter().find(outside).unwrap()["name"].as_str().unwrap().to_owned()
    }
}

impl<'a> Chain<'a> {
    /// The bridge of a node of the lab, dual stack, as flannel's delegate makes it, and ours behind it. `first` is the last part of the first address.
    ///
    /// # Panics
    /// The disk refuses a directory for the addresses in use.
    #[must_use]
    pub fn new(lab: &'a Lab, node: usize, directory: &Path, version: &'static str, first: u8) -> Self {
        let of = lab.topology.node(node);
        let ipam = tempfile::tempdir().unwrap();
        let ranges: Vec<_> = of
            .overlays()
            .into_iter()
            .map(|overlay| {
                let base = overlay.prefix.network().to_string();
                let start = match overlay.prefix.network() {
                    IpAddr::V4(_) => format!("{}.{first}", base.rsplit_once('.').unwrap().0),
                    IpAddr::V6(_) => format!("{base}{first:x}"),
                };
                json!([{ "subnet": overlay.prefix.to_string(), "rangeStart": start, "gateway": overlay.gateway.to_string() }])
            })
            .collect();
        let bridge = json!({
            "type": "bridge", "bridge": of.bridge.name, "mtu": 1400,
            "ipam": {
                "type": "host-local", "dataDir": ipam.path(), "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
            }
        });
        let ours = json!({
            "type": "bulkhead-cni", "namespace": "shop", "socket": lab.cni_socket(node), "pins": lab.pins(node), "timeoutSeconds": 60
        });
        let directory = directory.to_owned();
        let (plugins, programs) = (vec![bridge, ours], BTreeMap::new());
        Self { netns: &of.netns, directory, version, ours: version, ifname: "eth0", plugins, programs, _ipam: ipam }
    }

    /// Sets something in our plugin's configuration.
    ///
    /// # Panics
    /// Ours is not in the chain.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let ours = self.plugins.iter_mut().find(|plugin| plugin["type"] == "bulkhead-cni").unwrap();
        ours[key] = value.into();
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        container: &Container,
        more: Map<String, Value>,
    ) -> Result<String, Value> {
        let mut config = plugin.as_object().unwrap().clone();
        let (program, version) = match plugin["type"].as_str().unwrap() {
            "bulkhead-cni" => (our_plugin().expect("it is built"), self.ours),
            other => match self.programs.get(other) {
                Some(program) => (program.clone(), self.version),
                None => (self.directory.join(other), self.version),
            },
        };
        config.extend([("cniVersion".to_owned(), json!(version)), ("name".to_owned(), json!("lab"))]);
        config.extend(more);
        let mut command = self.netns.command(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container.id())
            .env("CNI_NETNS", container.netns.path())
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAME={}", container.name))
            .env("CNI_PATH", &self.directory);
        call(command, &Value::Object(config))
    }

    /// ADD of all plugins.
    ///
    /// # Errors
    /// What a plugin said.
    ///
    /// # Panics
    /// What a plugin says is no JSON, or ours changes the result of those before.
    pub fn add(&self, container: &mut Container) -> Result<(), Value> {
        let mut previous: Option<Value> = None;
        for plugin in &self.plugins {
            let more = previous.iter().map(|result| ("prevResult".to_owned(), result.clone())).collect();
            let result: Value = serde_json::from_str(&self.call("ADD", plugin, container, more)?).unwrap();
            if plugin["type"] == "bulkhead-cni" {
                assert_eq!(Some(&result), previous.as_ref(), "ours changes nothing of the result");
            }
            container.result.clone_from(&result);
            previous = Some(result);
        }
        Ok(())
    }

    /// Takes ours out of the chain, as in a network that nobody has told of us. What it was is for who puts it back.
    ///
    /// # Panics
    /// Ours is not in the chain.
    pub fn without_ours(&mut self) -> Value {
        let at = self.plugins.iter().position(|plugin| plugin["type"] == "bulkhead-cni").unwrap();
        self.plugins.remove(at)
    }

    /// Keeps the result of an ADD below a directory, where and as libcni does when its chain is through.
    ///
    /// # Panics
    /// The disk refuses.
    pub fn keep_result(&self, container: &Container, directory: &Path) {
        let results = directory.join("results");
        fs::create_dir_all(&results).unwrap();
        let cached = json!({
            "kind": "cniCacheV1", "containerId": container.id(), "config": "", "ifName": "eth0", "networkName": "lab",
            "netns": container.netns.path(), "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", container.name]],
            "result": container.result,
        });
        fs::write(results.join(format!("lab-{}-eth0", container.id())), cached.to_string()).unwrap();
    }

    /// One verb of our plugin alone, with the result.
    ///
    /// # Errors
    /// What it said.
    ///
    /// # Panics
    /// Ours is not in the chain.
    pub fn ask(&self, verb: &str, container: &Container, more: Map<String, Value>) -> Result<String, Value> {
        let mut with = more;
        if verb != "GC" && verb != "STATUS" {
            with.insert("prevResult".to_owned(), container.result.clone());
        }
        let ours = self.plugins.iter().find(|plugin| plugin["type"] == "bulkhead-cni").unwrap();
        self.call(verb, ours, container, with)
    }

    /// DEL of all plugins, the last one first.
    ///
    /// # Panics
    /// A plugin refuses.
    pub fn del(&self, container: &Container) {
        for plugin in self.plugins.iter().rev() {
            let more = [("prevResult".to_owned(), container.result.clone())].into_iter().collect();
            self.call("DEL", plugin, container, more).unwrap();
        }
    }
}
