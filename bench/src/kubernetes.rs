//! How long after the call to the API server a policy holds, on a real cluster with flannel.
//!
//! A caller on each node calls a server on the other one, each millisecond from a fresh port, so that every call is judged by the lists. The callers'
//! egress is isolated by one policy; another one that opens it comes and goes. It holds when it holds on both nodes, each of which judges its own caller.

mod probe;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_cluster::Cluster;
use bulkhead_tests::guarded::{Guarded, NAMESPACE, pod};
use clap::Args;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject},
};
use serde_json::json;

use self::probe::{Flow, server};

/// Port on which the servers answer.
const PORT: u16 = 9000;
/// Policies beside those that are measured.
const OTHERS: [usize; 3] = [0, 100, 1000];
/// What nobody waits longer for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Changes of each kind.
    #[arg(long, default_value_t = 50)]
    repetitions: usize,
    /// Few changes without other policies, and no figures: does it work at all?
    #[arg(long)]
    smoke: bool,
}

/// Measures, and prints a table.
///
/// # Errors
/// The cluster cannot be started, or a policy does not come to hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    let guarded =
        Guarded::start(Cluster::builder()).context("the programs of the tests: `tests/setup/setup.sh --test`")?;
    let pause = |name: &str, node: &str| pod(name, node, "args: [pause]");
    guarded.apply(&[NAMESPACE, &pause("a", "n1"), &pause("b", "n2"), &pause("s1", "n1"), &pause("s2", "n2")].concat());
    guarded.wait_for(&["a", "b", "s1", "s2"]);
    let of = |pod: &str, node: usize| probe::Pod::new(guarded.cluster.node(node), &guarded.address(pod));
    let (a, b, s1, s2) = (of("a", 0)?, of("b", 1)?, of("s1", 0)?, of("s2", 1)?);
    server(&s1, PORT)?;
    server(&s2, PORT)?;
    let flows = [Flow::start(&a, s2.address, PORT)?, Flow::start(&b, s1.address, PORT)?];

    let kubeconfig = Kubeconfig::read_from(guarded.cluster.kubeconfig())?;
    let others: &[usize] = if options.smoke { &OTHERS[..1] } else { &OTHERS };
    let repetitions = if options.smoke { 2 } else { options.repetitions };
    // The connection is made, and kept, in the namespace of the API server.
    guarded.cluster.control_plane().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(kubeconfig, &flows, others, repetitions, !options.smoke))
    })?;
    if options.smoke {
        println!("policies come to hold, and cease to, on both nodes of a cluster");
    }
    Ok(())
}

async fn measure(
    kubeconfig: Kubeconfig,
    flows: &[Flow; 2],
    others: &[usize],
    repetitions: usize,
    figures: bool,
) -> Result<()> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let policies = Policies::new(Client::try_from(config)?);
    policies.create("base", &json!([])).await?;
    until(flows, false)?;
    if figures {
        println!("milliseconds from the call until it holds on both nodes");
        println!("other policies     allow p50      p99     deny p50      p99");
    }
    let mut there = 0;
    for &count in others {
        while there < count {
            let peer = json!([{ "podSelector": { "matchLabels": { "app": format!("other-{there}") } } }]);
            policies.create(&format!("other-{there}"), &json!([{ "to": peer, "ports": [port()] }])).await?;
            there += 1;
        }
        thread::sleep(PAUSE * 10);
        let (mut allow, mut deny) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            let start = Instant::now();
            policies.create("open", &json!([{ "ports": [port()] }])).await?;
            until(flows, true)?;
            thread::sleep(PAUSE);
            allow.push(latest(flows, |flow| flow.first_answered(start))?);
            let start = Instant::now();
            policies.delete("open").await?;
            until(flows, false)?;
            thread::sleep(PAUSE);
            deny.push(latest(flows, |flow| flow.last_answered(start))?);
        }
        if figures {
            let at = crate::cni::at;
            println!(
                "{count:<14} {:>13.1} {:>8.1} {:>12.1} {:>8.1}",
                at(&allow, 50),
                at(&allow, 99),
                at(&deny, 50),
                at(&deny, 99)
            );
        }
    }
    Ok(())
}

fn port() -> serde_json::Value {
    json!({ "protocol": "UDP", "port": PORT })
}

/// Waits until all calls are answered, or none is.
fn until(flows: &[Flow; 2], answered: bool) -> Result<()> {
    let start = Instant::now();
    while !flows.iter().all(|flow| flow.is_answered() == answered) {
        ensure!(start.elapsed() < PATIENCE, "calls are answered: not {answered} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// When the last of them had changed.
fn latest(flows: &[Flow; 2], when: impl Fn(&Flow) -> Option<Duration>) -> Result<Duration> {
    let times: Option<Vec<_>> = flows.iter().map(when).collect();
    times.and_then(|times| times.into_iter().max()).context("no call was seen in time")
}

/// Policies of the callers, by a connection that is kept.
struct Policies(Api<DynamicObject>, ApiResource);

impl Policies {
    fn new(client: Client) -> Self {
        let resource = ApiResource {
            group: "networking.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "networking.k8s.io/v1".to_owned(),
            kind: "NetworkPolicy".to_owned(),
            plural: "networkpolicies".to_owned(),
        };
        Self(Api::namespaced_with(client, "shop", &resource), resource)
    }

    async fn create(&self, name: &str, egress: &serde_json::Value) -> Result<()> {
        let callers = json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["a", "b"] }] });
        let spec = json!({ "podSelector": callers, "policyTypes": ["Egress"], "egress": egress });
        let policy = DynamicObject::new(name, &self.1).data(json!({ "spec": spec }));
        self.0.create(&PostParams::default(), &policy).await?;
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}
