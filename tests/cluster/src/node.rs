//! Nodes.

use std::{
    ffi::OsStr,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_topology::{
    Netns, random_mac,
    rtnl::{Rtnl, VethEnd},
};
use serde_json::json;

use crate::{
    control::Control,
    credentials::flag,
    daemon::Daemon,
    groups::Groups,
    plan::{self, MTU, PODS},
    shared::Shared,
    space::Space,
};

/// Prepares the node's namespaces.
const PREPARE: &str = include_str!("node.sh");
/// The file that flannel's DaemonSet writes.
const CONFLIST: &str = "10-flannel.conflist";
/// A node's link to the others.
pub(crate) const UPLINK: &str = "eth0";
/// What flanneld tells its CNI plugin.
const SUBNET: &str = "/run/flannel/subnet.env";

/// A node: containerd, kubelet, flanneld and kube-proxy in namespaces of their own.
#[derive(Debug)]
pub struct Node {
    /// As Kubernetes knows it: `n1` and so on.
    pub name: String,
    /// Its address on the underlay.
    pub address: IpAddr,
    /// Where its links and sockets are. Programs of the node need more than this: [`Node::command`].
    pub netns: Netns,
    // In the order in which they go: the namespaces with all processes first.
    space: Space,
    flannel: Option<Daemon>,
    daemons: Vec<Daemon>,
    _groups: Groups,
    directory: PathBuf,
    path: String,
    /// The program with its arguments.
    flanneld: Vec<String>,
    conflist: String,
}

impl Node {
    pub(crate) fn start(shared: &Shared, control: &Control, number: u8) -> Result<Self> {
        let name = format!("n{number}");
        let directory = shared.directory.join(&name);
        for part in ["net.d", "plugins", "containerd", "kubelet", "cni"] {
            fs::create_dir_all(directory.join(part))?;
        }
        shared.programs.copy_plugins(&directory.join("plugins"))?;
        let netns = wire(shared, control, number)?;
        let groups = Groups::new(&format!("{}-{name}", shared.name))?;
        write_settings(shared, &directory, &name, &groups)?;
        let space = Space::new(&netns, &directory, PREPARE, [directory.as_os_str(), OsStr::new(&name)])
            .with_context(|| format!("namespaces of node {name}"))?;
        let flanneld = vec![
            shared.programs.program("flanneld").display().to_string(),
            "--kube-subnet-mgr".to_owned(),
            shared.credentials.option("kubeconfig-file", "admin.kubeconfig"),
            format!("--iface={UPLINK}"),
            "--ip-masq".to_owned(),
            flag("net-config-path", &directory.join("net-conf.json")),
        ];
        let mut node = Self {
            address: plan::underlay(number)[0],
            name,
            netns,
            space,
            flannel: None,
            daemons: Vec::new(),
            _groups: groups,
            directory,
            path: shared.programs.path(),
            flanneld,
            conflist: conflist(shared, number),
        };
        let mut containerd = node.command("containerd");
        containerd.arg("--config").arg(node.directory.join("containerd.toml"));
        node.run("containerd", containerd)?;
        node.start_flannel()?;
        node.start_proxy(shared)?;
        shared.eventually("containerd answers", || Ok(node.file("/run/containerd/containerd.sock").exists()))?;
        node.start_kubelet(shared, number)?;
        node.import(&shared.programs.images())?;
        Ok(node)
    }

    /// Brings images onto it.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let import = self.command("ctr").args(["--namespace=k8s.io", "images", "import"]).arg(archive).output()?;
        ensure!(import.status.success(), "import images: {}", String::from_utf8_lossy(&import.stderr));
        Ok(())
    }

    /// A command whose program runs as one of the node's own: in all its namespaces, where its BPF file system, its `/run`, `/etc/cni` and control groups are.
    /// What is spawned is only the program's parent: to kill the program itself, or to keep it after this call, give it to [`Node::run_daemon`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.space.command(program);
        command.env("PATH", &self.path);
        command
    }

    /// Starts a program of [`Node::command`], whose output goes to `NAME.log` in the node's directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_daemon(&self, name: &str, command: Command) -> Result<Daemon> {
        self.space.start(name, command)
    }

    /// Its state and logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the node sees as `/etc/cni/net.d`.
    #[must_use]
    pub fn conflists(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    /// What the node sees as `/opt/cni/bin`: CNI plugins of this node alone.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    /// A file as the node sees it.
    #[must_use]
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.space.file(path)
    }

    /// Stops flanneld, copies its conflist over what is there and starts it again, as flannel's DaemonSet does when its pod is made anew.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart_flannel(&mut self) -> Result<()> {
        if let Some(mut flannel) = self.flannel.take() {
            flannel.stop()?;
        }
        self.start_flannel()
    }

    fn start_flannel(&mut self) -> Result<()> {
        // The same file, not another one in its place: so `cp -f` does it in the DaemonSet.
        fs::write(self.conflists().join(CONFLIST), &self.conflist)?;
        let mut command = self.command(&self.flanneld[0]);
        command.args(&self.flanneld[1..]).env("NODE_NAME", &self.name);
        self.flannel = Some(self.space.start("flanneld", command)?);
        Ok(())
    }

    fn start_proxy(&mut self, shared: &Shared) -> Result<()> {
        let mut command = self.command(shared.programs.program("kube-proxy"));
        command.args([
            &shared.credentials.option("kubeconfig", "kube-proxy.kubeconfig"),
            &format!("--hostname-override={}", self.name),
            &format!("--proxy-mode={}", shared.plan.proxy.name()),
            &format!("--cluster-cidr={}", shared.plan.pods()),
            // These are of the machine, not of its namespaces.
            "--oom-score-adj=0",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]);
        self.run("kube-proxy", command)
    }

    fn start_kubelet(&mut self, shared: &Shared, number: u8) -> Result<()> {
        let mut command = self.command(shared.programs.program("kubelet"));
        command.args([
            &flag("config", &self.directory.join("kubelet.json")),
            &shared.credentials.option("kubeconfig", &format!("{}.kubeconfig", self.name)),
            &format!("--hostname-override={}", self.name),
            &format!("--node-ip={}", shared.plan.list(plan::underlay(number))),
        ]);
        self.run("kubelet", command)
    }

    fn run(&mut self, name: &str, command: Command) -> Result<()> {
        self.daemons.push(self.space.start(name, command)?);
        Ok(())
    }

    /// Whether all programs run.
    pub(crate) fn check(&mut self) -> Result<()> {
        let mut all = self.daemons.iter_mut().chain(&mut self.flannel);
        all.try_for_each(Daemon::check).with_context(|| format!("node {}", self.name))
    }

    /// Whether flanneld has laid out the network.
    pub(crate) fn has_subnet(&self) -> bool {
        self.file(SUBNET).exists()
    }

    pub(crate) fn end(&mut self) {
        self.space.end();
    }
}

/// The node's network namespace, on the underlay.
fn wire(shared: &Shared, control: &Control, number: u8) -> Result<Netns> {
    let netns = Netns::new(&format!("n{number}"))?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns.set_sysctl(key, "1")?;
    }
    let port = format!("n{number}");
    let [near, far] = [&port, UPLINK].map(|name| VethEnd { name, mac: random_mac() });
    let (_, eth0) = Rtnl::open(&control.netns)?.add_veth(near, control.bridge, far, &netns, MTU)?;
    let mut rtnl = Rtnl::open(&netns)?;
    for address in shared.plan.underlay(number) {
        rtnl.add_address(eth0.index, address)?;
    }
    rtnl.add_default_route(plan::control(), eth0.index)?;
    Ok(netns)
}

/// As flannel's DaemonSet has it.
fn conflist(shared: &Shared, number: u8) -> String {
    let bridge = json!({ "hairpinMode": true, "isDefaultGateway": true });
    let first = if shared.plan.dual_stack {
        // The plugin at hand is older than flannel's IPv6: this is what newer ones make of it.
        let pods = shared.plan.pods_of(number);
        let ranges: Vec<_> = pods.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "type": "bridge", "bridge": "cni0", "hairpinMode": true, "isDefaultGateway": true, "ipMasq": false, "mtu": MTU - 70,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": PODS.map(|pods| json!({ "dst": pods })) },
        })
    } else {
        json!({ "type": "flannel", "delegate": bridge })
    };
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let list = json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": [first, portmap] });
    format!("{list:#}\n")
}

fn write_settings(shared: &Shared, directory: &Path, name: &str, groups: &Groups) -> Result<()> {
    let mut network = json!({ "Network": PODS[0], "Backend": shared.plan.backend.settings() });
    if shared.plan.dual_stack {
        network["EnableIPv6"] = json!(true);
        network["IPv6Network"] = json!(PODS[1]);
    }
    fs::write(directory.join("net-conf.json"), network.to_string())?;
    let containerd = format!(
        r#"version = 2
root = {:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.10"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#,
        directory.join("containerd")
    );
    fs::write(directory.join("containerd.toml"), containerd)?;
    let credentials = &shared.credentials;
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": credentials.ca() } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": credentials.file(&format!("{name}.crt")),
        "tlsPrivateKeyFile": credentials.file(&format!("{name}.key")),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [plan::DNS_SERVICE],
        "clusterDomain": "cluster.local",
        // That of the machine is none of the cluster's business.
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": groups.root(),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        // The machine is shared with others: how full it is decides nothing here.
        "enforceNodeAllocatable": [],
        "evictionHard": { "memory.available": "10Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
    });
    fs::write(directory.join("kubelet.json"), kubelet.to_string())?;
    Ok(())
}
