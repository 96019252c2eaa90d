//! How long after the call to the API server a policy holds, on a real cluster with flannel.
//!
//! A caller on each node calls a server on the other one, each millisecond from a fresh port, so that every call is judged by the lists. The callers'
//! egress is isolated by one policy; another one that opens it comes and goes. It holds when it holds on both nodes, each of which judges its own caller.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::json;

use super::{
    PORT, Stage,
    probe::{Flow, until},
};

/// Policies beside those that are measured.
const OTHERS: [usize; 3] = [0, 100, 1000];
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Measures, and prints a table.
///
/// # Errors
/// A policy does not come to hold.
pub(super) fn run(stage: &Stage, repetitions: usize, smoke: bool) -> Result<()> {
    let [a, b] = &stage.callers;
    let [s1, s2] = &stage.servers;
    let flows = [Flow::start(a, s2.address, PORT)?, Flow::start(b, s1.address, PORT)?];
    let others: &[usize] = if smoke { &OTHERS[..1] } else { &OTHERS };
    let repetitions = if smoke { 2 } else { repetitions };
    stage.ask(async |client| measure(client, &flows, others, repetitions, !smoke).await)?;
    if smoke {
        println!("policies come to hold, and cease to, on both nodes of a cluster");
    }
    Ok(())
}

async fn measure(client: Client, flows: &[Flow; 2], others: &[usize], repetitions: usize, figures: bool) -> Result<()> {
    let policies = Policies::new(client);
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
