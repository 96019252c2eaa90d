//! The control plane: etcd, API server, controller manager and scheduler.

use std::{fs, path::PathBuf};

use anyhow::Result;
use bulkhead_topology::{Netns, random_mac, rtnl::Rtnl};
use serde_json::json;

use crate::{
    credentials::flag,
    daemon::Daemon,
    plan::{self, MTU},
    shared::Shared,
    space::Space,
};

const ETCD: &str = "--etcd-servers=http://127.0.0.1:2379";
const LEADER: &str = "--leader-elect=false";
const LOCAL: &str = "--bind-address=127.0.0.1";

/// Its programs, and the bridge that is the wire between the nodes.
#[derive(Debug)]
pub(crate) struct Control {
    // In the order in which they go: the namespaces with all processes first.
    space: Space,
    api: Option<Daemon>,
    others: Vec<Daemon>,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    pub(crate) netns: Netns,
}

impl Control {
    pub(crate) fn start(shared: &Shared) -> Result<Self> {
        let directory = shared.directory.join("control");
        fs::create_dir(&directory)?;
        let netns = Netns::new("control")?;
        // The wire is no router: rules of iptables have nothing to do with what passes over it.
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if netns.sysctl(key).is_ok() {
                netns.set_sysctl(key, "0")?;
            }
        }
        let mut rtnl = Rtnl::open(&netns)?;
        let bridge = rtnl.add_bridge("underlay", random_mac(), MTU)?.index;
        for address in shared.plan.underlay(plan::control_host()) {
            rtnl.add_address(bridge, address)?;
        }
        let space = Space::new(&netns, &directory, "", [])?;
        let mut control = Self { space, api: None, others: Vec::new(), bridge, netns };
        let data = flag("data-dir", &directory.join("etcd"));
        control.run(
            shared,
            "etcd",
            &[
                &data,
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                // What is written need not survive this machine.
                "--unsafe-no-fsync",
            ],
        )?;
        control.start_api(shared)?;
        control.start_controllers(shared)?;
        Ok(control)
    }

    /// Starts the API server and waits until it is ready.
    pub(crate) fn start_api(&mut self, shared: &Shared) -> Result<()> {
        if self.api.is_some() {
            return Ok(());
        }
        let credentials = &shared.credentials;
        let mut command = self.space.command(shared.programs.program("kube-apiserver"));
        command.args([
            ETCD,
            &format!("--bind-address={}", plan::control()),
            &format!("--advertise-address={}", plan::control()),
            &format!("--service-cluster-ip-range={}", shared.plan.services()),
            &credentials.option("tls-cert-file", "apiserver.crt"),
            &credentials.option("tls-private-key-file", "apiserver.key"),
            &credentials.option("client-ca-file", "ca.crt"),
            &credentials.option("service-account-key-file", "tokens.pub"),
            &credentials.option("service-account-signing-key-file", "tokens.key"),
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            &credentials.option("kubelet-client-certificate", "admin.crt"),
            &credentials.option("kubelet-client-key", "admin.key"),
            &credentials.option("kubelet-certificate-authority", "ca.crt"),
            "--kubelet-preferred-address-types=InternalIP",
        ]);
        if let Some(user) = shared.plan.audited {
            let policy = shared.directory.join("control/audit.json");
            let rules = json!([{ "level": "Metadata", "users": [user], "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"] }]);
            let document = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules });
            fs::write(&policy, document.to_string())?;
            let log = Self::requests(shared);
            command.args([flag("audit-policy-file", &policy), flag("audit-log-path", &log)]);
        }
        let mut api = self.space.start("kube-apiserver", command)?;
        shared.eventually("the API server is ready", || {
            api.check()?;
            Ok(shared.kubectl(&self.netns, &["get", "--raw=/readyz"], "").is_ok())
        })?;
        self.api = Some(api);
        Ok(())
    }

    /// Where requests are written down, one a line.
    pub(crate) fn requests(shared: &Shared) -> PathBuf {
        shared.directory.join("control/requests.jsonl")
    }

    /// Stops the API server; what it knows stays in etcd.
    pub(crate) fn stop_api(&mut self) -> Result<()> {
        match self.api.take() {
            // It would wait a minute for those who watch.
            Some(mut api) => api.kill(),
            None => Ok(()),
        }
    }

    fn start_controllers(&mut self, shared: &Shared) -> Result<()> {
        let credentials = &shared.credentials;
        self.run(
            shared,
            "kube-controller-manager",
            &[
                LEADER,
                LOCAL,
                &credentials.option("kubeconfig", "kube-controller-manager.kubeconfig"),
                &credentials.option("service-account-private-key-file", "tokens.key"),
                &credentials.option("root-ca-file", "ca.crt"),
                &format!("--service-cluster-ip-range={}", shared.plan.services()),
                "--use-service-account-credentials",
                &format!("--controllers={}", shared.plan.controllers),
                // By default it starts a controller every 150 ms.
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ],
        )?;
        self.run(
            shared,
            "kube-scheduler",
            &[LEADER, LOCAL, &credentials.option("kubeconfig", "kube-scheduler.kubeconfig")],
        )
    }

    fn run(&mut self, shared: &Shared, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.space.command(shared.programs.program(name));
        command.args(arguments);
        self.others.push(self.space.start(name, command)?);
        Ok(())
    }

    /// Whether all programs run.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.others.iter_mut().chain(&mut self.api).try_for_each(Daemon::check)
    }

    pub(crate) fn end(&mut self) {
        self.space.end();
    }
}
