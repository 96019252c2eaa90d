//! A real containerd: its own choice among networks (the first file), and the results that its libcni keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, chain::Chain};
use bulkhead_topology::Topology;

use crate::{
    files::{FIRST, Files, Follow, OWNERS, owners, while_rewritten, words},
    plugins,
    support::{Witness, eventually, image, installed, pinned},
};

const POLICY: &str = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: ['db:echo/icmp'] }\n  db: {}\n  guest: {}\n";
/// Where containerd's users look by default is a directory of the test's (`$1`), and `$2` the cache of results, for it and for all that it starts.
const ENTER: &str = r#"
set -e
mount --make-rprivate /
mkdir -p /etc/cni /opt /var/lib/cni
for directory in /etc/cni /opt /run; do mount -t tmpfs tmpfs $directory; done
mkdir -p /etc/cni/net.d /opt/cni/bin
mount --bind "$1"/net.d /etc/cni/net.d
mount --bind "$1"/plugins /opt/cni/bin
mount --bind "$2" /var/lib/cni
exec containerd --config "$1"/containerd.toml --log-level error
"#;

/// containerd in the network namespace of a node, and in a mount namespace of its own.
struct Containerd {
    files: Files,
    daemon: Child,
}

impl Containerd {
    fn start(lab: &Lab, reference: &Path) -> Self {
        let files = Files::new(&lab.topology.node(0).netns);
        image(&files.at("image"));
        for plugin in ["bridge", "host-local", "loopback"] {
            fs::copy(reference.join(plugin), files.at("plugins").join(plugin)).unwrap();
        }
        fs::create_dir_all(lab.cni_cache(0)).unwrap();
        let settings = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = {:?}\n",
            files.at("root"),
            files.at("state"),
            files.at("sock")
        );
        fs::write(files.at("containerd.toml"), settings).unwrap();
        let mut command = files.netns.command("unshare");
        command.args(["--mount", "sh", "-c", ENTER, "containerd"]).arg(files.at("")).arg(lab.cni_cache(0));
        let daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let containerd = Self { files, daemon };
        eventually("containerd answers", || containerd.ctr(&["version"]).status.success());
        containerd
    }

    fn ctr(&self, words: &[&str]) -> Output {
        let pid = self.daemon.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "--mount", "--net", "ctr", "--address"]).arg(self.files.at("sock"));
        command.args(words).output().unwrap()
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.ctr(words);
        assert!(output.status.success(), "ctr {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn image(&self) -> PathBuf {
        self.files.at("image")
    }

    /// Runs a script to its end in a new container, which the network knows as `SERVICE-1`; what it printed.
    #[track_caller]
    fn script(&self, service: &str, script: &str) -> String {
        let image = self.image();
        let run = ["--namespace", service, "run", "--rm", "--cni", "--rootfs"];
        self.good(&[&run[..], &[image.to_str().unwrap(), "1", "/bin/sh", "-c", script]].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Each container has a process of its own beside the daemon, which ends with it.
        let list = |words: &[&str]| String::from_utf8(self.ctr(words).stdout).unwrap_or_default();
        for namespace in list(&["namespaces", "list", "--quiet"]).lines() {
            for task in list(&["--namespace", namespace, "tasks", "list", "--quiet"]).lines() {
                self.ctr(&["--namespace", namespace, "tasks", "delete", "--force", task]);
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// One that started before anything was installed is found by the result that libcni keeps. Then the owner rewrites his file all the time: containers start
/// guarded, and send nothing that is denied from their first packet on.
#[test]
fn containerd_starts_guarded_containers() {
    let Some(reference) = plugins() else { return };
    if !installed(&["containerd", "ctr", "runc", "busybox"]) {
        return;
    }
    let mut lab = Lab::new(Topology::builder().nodes(2).workload("db", 1)).unwrap();
    lab.contained = ["web-1", "guest-1", "guest-2"].map(|name| (name.to_owned(), (0, Vec::new()))).into();
    lab.write_workloads().unwrap();
    lab.policy("shop.yaml", POLICY).unwrap();
    let db = lab.topology.workload("db").v4;
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let containerd = Containerd::start(&lab, &reference);
    let files = &containerd.files;
    let before = pinned(&lab, 0);

    let text = owners(&Chain::new(&lab, 0, &reference, "1.0.0", 100));
    files.write(OWNERS, &text);
    let image = containerd.image();
    containerd.good(&[
        "--namespace",
        "guest",
        "run",
        "--detach",
        "--cni",
        "--rootfs",
        image.to_str().unwrap(),
        "2",
        "/bin/busybox",
        "sleep",
        "600",
    ]);
    eventually("who started unguarded is found", || agent.log().contains("shop/guest-2"));
    eventually("and guarded", || pinned(&lab, 0).len() == before.len() + 2);
    assert_eq!(agent.metric("bulkhead_unenforced_starts_total", &[]).unwrap(), 1.0);
    let send = Witness::sends(db);
    let witness = Witness::new(&lab);
    let said =
        containerd.good(&["--namespace", "guest", "tasks", "exec", "--exec-id", "send", "2", "/bin/sh", "-c", &send]);
    assert!(said.contains("12 packets transmitted, 0 packets received"), "{said}");
    containerd.good(&["--namespace", "guest", "tasks", "delete", "--force", "2"]);
    containerd.good(&["--namespace", "guest", "containers", "delete", "2"]);
    // ctr calls no DEL for such a container; the agent sees its link go.
    eventually("nothing is left of it", || pinned(&lab, 0) == before);

    let (socket, pins) = (lab.cni_socket(0).display().to_string(), lab.pins(0).display().to_string());
    let install = files.install(
        "containerd",
        &["--enforce", "--namespace", "shop", "--timeout", "60", "--cni-socket", &socket, "--pins", &pins],
    );
    files.good(&words(&install));
    assert!(files.read(FIRST).contains("bulkhead-cni"));
    let _follow = Follow::start(files);
    while_rewritten(files, &text, || {
        let starts = if skip::long() { 200 } else { 6 };
        witness.sees_nothing_of(starts, "containerd, its network rewritten", || containerd.script("guest", &send));
    });
    let said = containerd.script("web", &send);
    assert!(said.contains("12 packets transmitted"), "{said}");
    eventually("the witness sees what is allowed", || witness.saw().iter().all(|frames| *frames >= 12));
    eventually("nothing is left of them", || pinned(&lab, 0) == before);
    assert_eq!(agent.metric("bulkhead_unenforced_starts_total", &[]).unwrap(), 1.0, "{}", agent.log());
}
