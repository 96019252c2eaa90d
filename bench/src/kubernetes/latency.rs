//! How long after the call to the API server a policy holds, on a real cluster with flannel.
//!
//! A caller on each node calls a server on the other one, each millisecond from a fresh port, so that every call is judged by the lists. The callers'
//! egress is isolated by one policy; another one that opens it comes and goes. It holds when it holds on both nodes, each of which judges its own caller.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use bulkhead_tests::probe::{Flow, Pace, until};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, WatchEvent},
    core::{ApiResource, DynamicObject},
};
use serde_json::json;

use super::{
    PORT, Stage,
    news::{News, became},
};
use crate::cni::at;

/// Policies beside those that are measured.
const OTHERS: [usize; 3] = [0, 100, 1000];
/// The policy that comes and goes.
const OPEN: &str = "open";
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Measures, and prints a table.
///
/// # Errors
/// A policy does not come to hold.
pub(super) fn run(stage: &mut Stage, repetitions: usize, smoke: bool) -> Result<()> {
    let [a, b] = &stage.callers;
    let [s1, s2] = &stage.servers;
    let flows = [Flow::start(a, s2.address, PORT, Pace::FINE)?, Flow::start(b, s1.address, PORT, Pace::FINE)?];
    let others: &[usize] = if smoke { &OTHERS[..1] } else { &OTHERS };
    let repetitions = if smoke { 2 } else { repetitions };
    let news = News::watch(stage, OPEN, |event: &WatchEvent<NetworkPolicy>| matches!(event, WatchEvent::Added(_)))?;
    if !smoke {
        println!(
            "milliseconds: from the call until it holds on both nodes; until those who watch are told; from then until it holds"
        );
        println!("other policies                p50      p99    told p50      p99    then p50      p99");
    }
    // What the same calls take on the same machine where nobody enforces anything.
    stage.unguard()?;
    let told = stage.ask(async |client| unguarded(client, &news, repetitions).await)?;
    stage.guard()?;
    for (told, what) in told.iter().zip(["allow", "deny"]).filter(|_| !smoke) {
        println!("unguarded      {what:<9} {:>17}    {:>8.1} {:>8.1}", "", at(told, 50), at(told, 99));
    }
    stage.ask(async |client| measure(client, (&flows, &news), others, repetitions, !smoke).await)?;
    if smoke {
        println!("policies come to hold, and cease to, on both nodes of a cluster");
    }
    Ok(())
}

/// When the API server told of each change, after the call.
async fn unguarded(client: Client, news: &News, repetitions: usize) -> Result<[Vec<Duration>; 2]> {
    let policies = Policies::new(client);
    policies.create("base", &json!([])).await?;
    thread::sleep(PAUSE * 10);
    let mut told = [Vec::new(), Vec::new()];
    for _ in 0..repetitions {
        for (told, open) in told.iter_mut().zip([true, false]) {
            let start = policies.open(open).await?;
            thread::sleep(PAUSE);
            told.push(news.told(start, open)?.duration_since(start));
        }
    }
    policies.delete("base").await?;
    Ok(told)
}

async fn measure(
    client: Client,
    (flows, news): (&[Flow; 2], &News),
    others: &[usize],
    repetitions: usize,
    figures: bool,
) -> Result<()> {
    let policies = Policies::new(client);
    policies.create("base", &json!([])).await?;
    until(flows, false)?;
    let mut there = 0;
    for &count in others {
        while there < count {
            let peer = json!([{ "podSelector": { "matchLabels": { "app": format!("other-{there}") } } }]);
            policies.create(&format!("other-{there}"), &json!([{ "to": peer, "ports": [port()] }])).await?;
            there += 1;
        }
        thread::sleep(PAUSE * 10);
        let mut changes = [Times::default(), Times::default()];
        for _ in 0..repetitions {
            for (times, open) in changes.iter_mut().zip([true, false]) {
                let start = policies.open(open).await?;
                until(flows, open)?;
                thread::sleep(PAUSE);
                times.all.push(became(flows, start, open)?);
                times.told.push(news.told(start, open)?.duration_since(start));
                times.then.push(news.until(flows, start, open)?);
            }
        }
        if figures {
            for (times, what) in changes.iter().zip(["allow", "deny"]) {
                let [all, told, then] = [&times.all, &times.told, &times.then].map(|of| (at(of, 50), at(of, 99)));
                println!(
                    "{count:<14} {what:<9} {:>8.1} {:>8.1}    {:>8.1} {:>8.1}    {:>8.1} {:>8.1}",
                    all.0, all.1, told.0, told.1, then.0, then.1
                );
            }
        }
    }
    Ok(())
}

/// Of one kind of change.
#[derive(Default)]
struct Times {
    /// From the call until it holds on both nodes.
    all: Vec<Duration>,
    /// From the call until the API server told those who watch, as the agents do.
    told: Vec<Duration>,
    /// From then until it holds on both nodes.
    then: Vec<Duration>,
}

fn port() -> serde_json::Value {
    json!({ "protocol": "UDP", "port": PORT })
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

    /// Creates the policy that opens the path, or deletes it. Tells when the call began.
    async fn open(&self, open: bool) -> Result<Instant> {
        let start = Instant::now();
        if open {
            self.create(OPEN, &json!([{ "ports": [port()] }])).await?;
        } else {
            self.delete(OPEN).await?;
        }
        Ok(start)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}
