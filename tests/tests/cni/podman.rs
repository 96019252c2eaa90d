//! A real container runtime: podman on its CNI back end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, chain::our_plugin};
use bulkhead_topology::{Netns, Topology};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    plugins,
    support::{BUSYBOX, Busy, Witness, eventually, image, installed},
};

const POLICY: &str = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: ['db:8080'] }\n  db: {}\n  guest: {}\n";
/// Podman in the network namespace of a node, with everything of its own in a directory.
struct Podman {
    netns: Netns,
    directory: TempDir,
}

impl Podman {
    fn new(lab: &Lab, reference: &Path) -> Self {
        let (node, directory) = (lab.topology.node(0), tempfile::tempdir().unwrap());
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("net.d")).unwrap();
        let ranges: Vec<_> = node
            .overlays()
            .into_iter()
            .map(|overlay| json!([{ "subnet": overlay.prefix.to_string(), "gateway": overlay.gateway.to_string() }]))
            .collect();
        // The whole chain that podman writes for a network by itself, and ours behind it.
        let conflist = json!({
            "cniVersion": "0.4.0", "name": "shop",
            "plugins": [
                {
                    "type": "bridge", "bridge": node.bridge.name, "mtu": 1400,
                    "ipam": {
                        "type": "host-local", "dataDir": at("ipam"), "ranges": ranges,
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
                    }
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "tuning" },
                {
                    "type": "bulkhead-cni", "namespace": "shop", "socket": lab.cni_socket(0), "pins": lab.pins(0),
                    "timeoutSeconds": 60
                }
            ]
        });
        fs::write(at("net.d/10-shop.conflist"), conflist.to_string()).unwrap();
        let plugins = our_plugin().unwrap().parent().unwrap().to_owned();
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = {:?}\ncni_plugin_dirs = [{reference:?}, {plugins:?}]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
            at("net.d")
        );
        fs::write(at("containers.conf"), settings).unwrap();
        let podman = Self { netns: node.netns.clone(), directory };
        image(&podman.at("image"));
        let tar = podman.at("image.tar");
        let packed = Command::new("tar").arg("-C").arg(podman.at("image")).arg("-cf").arg(&tar).arg("bin").status();
        assert!(packed.unwrap().success());
        podman.good(&["import", tar.to_str().unwrap(), "busybox:test"]);
        podman
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn run(&self, words: &[&str]) -> Output {
        self.netns
            .command("podman")
            .env("CONTAINERS_CONF", self.at("containers.conf"))
            .arg("--root")
            .arg(self.at("root"))
            .arg("--runroot")
            .arg(self.at("runroot"))
            .args(["--storage-driver", "vfs"])
            .args(words)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "podman {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a script in a new container to its end; what it printed.
    #[track_caller]
    fn script(&self, name: &str, script: &str) -> String {
        self.good(&["run", "--rm", "--name", name, "--network", "shop", "busybox:test", "/bin/sh", "-c", script])
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Containers first: what is mounted could not be removed.
        self.run(&["rm", "--all", "--force", "--time", "0"]);
        self.run(&["system", "reset", "--force"]);
    }
}

/// Starts in a row, each of which sends from its first moment.
#[test]
fn podman_starts_guarded_containers() {
    let Some(reference) = plugins() else { return };
    if !installed(&["podman", "runc", "busybox", "tar"]) {
        return;
    }
    let mut lab = Lab::new(Topology::builder().nodes(2).workload("db", 1)).unwrap();
    lab.contained = ["web-1", "guest-1"].map(|name| (name.to_owned(), (0, Vec::new()))).into();
    lab.write_workloads().unwrap();
    lab.policy(
        "shop.yaml",
        &POLICY.replace("web: { calls: ['db:8080'] }", "web: { calls: ['db:8080', 'db:echo/icmp'] }"),
    )
    .unwrap();
    let db = lab.topology.workload("db").v4;
    let _agent = Agent::start(&lab, 0, &[]).unwrap();
    let podman = Podman::new(&lab, &reference);
    let pins = || {
        let found = Command::new("find").arg(lab.pins(0)).args(["-path", "*/links/*"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().count()
    };
    let before = pins();
    let witness = Witness::new(&lab);
    let send = Witness::sends(db);
    let (idle, busy) = if skip::long() { (200, 200) } else { (5, 3) };
    witness.sees_nothing_of(idle, "podman, idle", || podman.script("guest-1", &send));
    {
        let _busy = Busy::start();
        witness.sees_nothing_of(busy, "podman, all CPUs busy", || podman.script("guest-1", &send));
    }
    assert_eq!(pins(), before, "a container that went has left something");
    let said = podman.script("web-1", &send);
    assert!(said.contains("12 packets transmitted"), "{said}");
    eventually("the witness sees what is allowed", || witness.saw().iter().all(|frames| *frames >= 12));

    // A container beside it on the same node, and a published port: the node translates, and the container's own wall holds.
    let server = "while true; do echo hi | busybox nc -l -p 8080; done";
    lab.policy(
        "shop.yaml",
        &POLICY.replace("guest: {}", "guest: { accepts: ['web:8080'] }").replace("'db:8080'", "'guest:8080'"),
    )
    .unwrap();
    podman.good(&[
        "run",
        "--detach",
        "--name",
        "guest-1",
        "--network",
        "shop",
        "--publish",
        "18080:8080",
        "busybox:test",
        "/bin/sh",
        "-c",
        server,
    ]);
    let address = podman.good(&["inspect", "guest-1", "--format", "{{.NetworkSettings.Networks.shop.IPAddress}}"]);
    let call = |to: &str, port: u16| format!("busybox timeout 3 busybox nc -w 2 {to} {port} </dev/null; echo exit $?");
    let begin = Instant::now();
    loop {
        let said = podman.script("web-1", &call(address.trim(), 8080));
        if said.contains("hi") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{said}");
    }
    let (here, there) = (lab.topology.node(0), lab.topology.node(1));
    let outside = || {
        let mut call = there.netns.command("timeout");
        call.args(["3", BUSYBOX, "nc", "-w", "2"]).arg(here.underlay.v4.to_string()).arg("18080");
        String::from_utf8(call.output().unwrap().stdout).unwrap()
    };
    assert_eq!(outside(), "", "the world reaches a port that nobody opened");
    lab.policy(
        "shop.yaml",
        &POLICY.replace("guest: {}", "guest: { accepts: ['web:8080', 'world:8080', 'nodes:8080'] }"),
    )
    .unwrap();
    let begin = Instant::now();
    while !outside().contains("hi") {
        assert!(begin.elapsed() < Duration::from_secs(60), "the world is let in by the rule, and does not get in");
    }
    podman.good(&["rm", "--force", "--time", "0", "guest-1"]);
    assert_eq!(pins(), before);
}
