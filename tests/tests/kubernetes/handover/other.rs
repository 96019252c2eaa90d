//! Others that enforce policies.

use std::process::Command;

use bulkhead_cluster::{Daemon, Node};
use bulkhead_tests::guarded::{Guarded, eventually};

/// Another program that enforces policies, on all nodes.
pub(super) trait Other {
    /// How `bulkhead check` begins to tell of it.
    fn found(&self) -> &'static str;
    /// What it says to do about it, in part.
    fn remedy(&self) -> &'static str;
    /// Whether its rules drop what is allowed too while it does not run.
    fn shuts(&self) -> bool;
    /// Starts it.
    fn start(&mut self, guarded: &Guarded);
    /// Ends it. Its rules stay.
    fn end(&mut self, guarded: &Guarded);
    /// Removes its rules.
    fn clear(&self, guarded: &Guarded);
    /// Both, so that no call is lost.
    fn leave(&mut self, guarded: &Guarded);
}

fn shell(node: &Node, script: &str) -> Command {
    let mut shell = node.command("sh");
    shell.args(["-c", script]);
    shell
}

/// Whether a script succeeds on each node.
fn everywhere(guarded: &Guarded, script: &str) -> bool {
    guarded.cluster.nodes().iter().all(|node| shell(node, script).output().unwrap().status.success())
}

#[track_caller]
fn run_everywhere(guarded: &Guarded, script: &str) {
    for node in guarded.cluster.nodes() {
        let output = shell(node, script).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Is asked about the first packet of each connection, by a rule of nftables with `queue`. Where the kernel has no such rules (`CONFIG_NFT_QUEUE`), its
/// table cannot be; then iptables' `NFQUEUE` asks it instead about the same pods.
pub(super) struct KubeNetworkPolicies {
    own_table: bool,
}

impl KubeNetworkPolicies {
    const MANIFEST: &str = include_str!("kube-network-policies.yaml");
    const NAMESPACE: &str = "--namespace=kube-system";

    pub(super) fn new() -> Self {
        let table =
            "table inet probe { chain postrouting { type filter hook postrouting priority 0; queue num 100; }; }";
        let probe = Command::new("unshare").args(["--net", "nft", table]).output().unwrap();
        Self { own_table: probe.status.success() }
    }

    fn list(&self) -> &'static str {
        if self.own_table {
            "nft list table inet kube-network-policies"
        } else {
            "iptables --table mangle --list-rules ASK"
        }
    }

    fn delete(&self) -> &'static str {
        if self.own_table {
            "nft delete table inet kube-network-policies"
        } else {
            "iptables --table mangle --delete POSTROUTING --jump ASK && iptables --table mangle --flush ASK \
             && iptables --table mangle --delete-chain ASK"
        }
    }

    /// As its table has it, for the pods that some policy selects.
    fn ask(guarded: &Guarded) {
        let [db, guest] = ["db", "guest"].map(|pod| guarded.address(pod));
        let script = format!(
            "set -e; iptables --table mangle --new-chain ASK
             iptables --table mangle --append ASK --match conntrack --ctstate ESTABLISHED,RELATED --jump RETURN
             iptables --table mangle --append ASK --source {guest} --jump NFQUEUE --queue-num 100
             iptables --table mangle --append ASK --destination {db} --jump NFQUEUE --queue-num 100
             iptables --table mangle --append POSTROUTING --jump ASK"
        );
        run_everywhere(guarded, &script);
    }
}

impl Other for KubeNetworkPolicies {
    fn found(&self) -> &'static str {
        if self.own_table {
            "kube-network-policies is here"
        } else {
            "the nftables table ip mangle asks a program about packets"
        }
    }

    fn remedy(&self) -> &'static str {
        if self.own_table { self.delete() } else { "nft list table ip mangle" }
    }

    fn shuts(&self) -> bool {
        true
    }

    fn start(&mut self, guarded: &Guarded) {
        guarded.cluster.import(&guarded.cluster.program("kube-network-policies.tar")).unwrap();
        guarded.apply(Self::MANIFEST);
        guarded.kubectl(&[Self::NAMESPACE, "rollout", "status", "daemonset/kube-network-policies", "--timeout=120s"]);
        if !self.own_table {
            Self::ask(guarded);
        }
        eventually("its rules are there", || everywhere(guarded, self.list()));
    }

    fn end(&mut self, guarded: &Guarded) {
        let daemon_set = ["delete", "daemonset", "kube-network-policies", "--cascade=foreground"];
        guarded.kubectl(&[&[Self::NAMESPACE], &daemon_set[..]].concat());
    }

    fn clear(&self, guarded: &Guarded) {
        run_everywhere(guarded, self.delete());
    }

    fn leave(&mut self, guarded: &Guarded) {
        // Without the program they drop whatever they would ask about.
        self.clear(guarded);
        self.end(guarded);
        // It writes its table as long as it runs.
        run_everywhere(guarded, &format!("{} >/dev/null 2>&1 || exit 0; {}", self.list(), self.delete()));
    }
}

/// Writes chains of iptables; here without its routing and its proxy, as k3s runs it.
#[derive(Default)]
pub(super) struct KubeRouter {
    daemons: Vec<Daemon>,
}

impl KubeRouter {
    const CLEAR: &str = "iptables-save --table filter | grep -vE 'KUBE-(ROUTER-(INPUT|FORWARD|OUTPUT)|POD-FW|NWPLCY)' | iptables-restore";
}

impl Other for KubeRouter {
    fn found(&self) -> &'static str {
        "kube-router is here"
    }

    fn remedy(&self) -> &'static str {
        Self::CLEAR
    }

    fn shuts(&self) -> bool {
        false
    }

    fn start(&mut self, guarded: &Guarded) {
        let cluster = &guarded.cluster;
        for node in cluster.nodes() {
            let mut command = node.command(cluster.program("kube-router"));
            command.args(["--run-firewall", "--run-router=false", "--run-service-proxy=false", "--health-port=0"]);
            command.arg(format!("--hostname-override={}", node.name));
            command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
            self.daemons.push(node.run_daemon("kube-router", command).unwrap());
        }
        eventually("its chains are there", || {
            self.daemons.iter_mut().for_each(|daemon| daemon.check().unwrap());
            everywhere(guarded, "iptables-save | grep KUBE-POD-FW-")
        });
    }

    fn end(&mut self, _: &Guarded) {
        self.daemons.drain(..).for_each(|mut daemon| daemon.stop().unwrap());
    }

    fn clear(&self, guarded: &Guarded) {
        run_everywhere(guarded, Self::CLEAR);
    }

    fn leave(&mut self, guarded: &Guarded) {
        self.end(guarded);
        self.clear(guarded);
    }
}

/// What kube-router calls.
pub(super) fn has_ipset() -> bool {
    Command::new("ipset").arg("version").output().is_ok()
}
