//! A container whose interface is asked for by hand, as a runtime asks for a pod's: of the plugins and the chain that a node of the cluster has.

use std::fs;

use bulkhead_cluster::Node;
use serde_json::Value;

use bulkhead_tests::chain;

/// Where the node has its plugins.
const PLUGINS: &str = "/opt/cni/bin";

pub(crate) struct Hand<'a> {
    node: &'a Node,
    /// Of the container and its network namespace, which goes with the node.
    name: &'a str,
    arguments: String,
    network: Value,
    /// What the plugins before ours said.
    result: Option<Value>,
}

impl<'a> Hand<'a> {
    /// One that has no interface yet, of a pod of the shop with a unique id.
    pub(crate) fn new(node: &'a Node, name: &'a str, pod: &str, uid: &str) -> Self {
        let made = node.command("ip").args(["netns", "add", name]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let network = fs::read(node.conflists().join("00-bulkhead.conflist")).unwrap();
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID={uid}");
        Self { node, name, arguments, network: serde_json::from_slice(&network).unwrap(), result: None }
    }

    /// Has our plugin wait for an agent no longer than this.
    pub(crate) fn patient(mut self, seconds: u64) -> Self {
        let plugins = self.network["plugins"].as_array_mut().unwrap();
        let ours = plugins.iter_mut().find(|plugin| plugin["type"] == "bulkhead-cni").unwrap();
        ours["timeoutSeconds"] = seconds.into();
        self
    }

    fn call(&self, verb: &str, plugin: &Value) -> Result<String, Value> {
        let mut config = plugin.clone();
        for field in ["name", "cniVersion"] {
            config[field] = self.network[field].clone();
        }
        if let Some(result) = &self.result {
            config["prevResult"] = result.clone();
        }
        let mut command = self.node.command(format!("{PLUGINS}/{}", plugin["type"].as_str().unwrap()));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.name)
            .env("CNI_NETNS", format!("/run/netns/{}", self.name))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &self.arguments)
            .env("CNI_PATH", PLUGINS);
        chain::call(command, &config)
    }

    fn plugins(&self) -> &[Value] {
        self.network["plugins"].as_array().unwrap()
    }

    /// ADD of all plugins.
    ///
    /// # Errors
    /// What a plugin said.
    pub(crate) fn add(&mut self) -> Result<(), Value> {
        for at in 0..self.plugins().len() {
            let result = self.call("ADD", &self.plugins()[at])?;
            self.result = Some(serde_json::from_str(&result).unwrap());
        }
        Ok(())
    }

    /// DEL of all plugins, the last one first.
    pub(crate) fn del(&mut self) {
        for plugin in self.plugins().iter().rev() {
            self.call("DEL", plugin).unwrap();
        }
        self.result = None;
    }
}
