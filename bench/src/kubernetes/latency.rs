//! How long after the call to the API server a policy holds, on a real cluster with flannel.
//!
//! A caller on each node calls a server on the other one, each millisecond from a fresh port, so that every call is judged by the lists. The callers'
//! egress is isolated by one policy; another one that opens it comes and goes. It holds when it holds on both nodes, each of which judges its own caller.

use std::{
    ops::Range,
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
    if !smoke {
        println!(
            "milliseconds: from the call until it holds on both nodes; and while one more watches, until he is told, and from then until it holds"
        );
        println!("other policies                p50      p99    told p50      p99    then p50      p99");
    }
    // What the same calls take on the same machine where nobody enforces anything.
    stage.unguard()?;
    let news = News::watch(stage, OPEN, opens)?;
    let told = stage.ask(async |client| unguarded(client, &news, repetitions).await)?;
    drop(news);
    stage.guard()?;
    for (told, what) in told.iter().zip(["allow", "deny"]).filter(|_| !smoke) {
        println!("unguarded      {what:<9} {:>17}    {:>8.1} {:>8.1}", "", at(told, 50), at(told, 99));
    }
    stage.ask(async |client| Policies::new(client).create("base", &json!([])).await)?;
    until(&flows, false)?;
    let mut there = 0;
    for &count in others {
        stage.ask(async |client| beside(client, there..count).await)?;
        there = count;
        thread::sleep(PAUSE * 10);
        // Whoever watches beside the agents is woken with them, and competes with them for the processors.
        let all = stage.ask(async |client| {
            changes(client, &flows, repetitions, |start, open| became(&flows, start, open)).await
        })?;
        let news = News::watch(stage, OPEN, opens)?;
        thread::sleep(PAUSE * 10);
        let heard = |start, open| Ok((news.told(start, open)?.duration_since(start), news.until(&flows, start, open)?));
        let heard = stage.ask(async |client| changes(client, &flows, repetitions, heard).await)?;
        for ((all, heard), what) in all.iter().zip(heard).zip(["allow", "deny"]).filter(|_| !smoke) {
            let (told, then): (Vec<_>, Vec<_>) = heard.into_iter().unzip();
            let [all, told, then] = [all, &told, &then].map(|of| (at(of, 50), at(of, 99)));
            println!(
                "{count:<14} {what:<9} {:>8.1} {:>8.1}    {:>8.1} {:>8.1}    {:>8.1} {:>8.1}",
                all.0, all.1, told.0, told.1, then.0, then.1
            );
        }
    }
    if smoke {
        println!("policies come to hold, and cease to, on both nodes of a cluster");
    }
    Ok(())
}

/// Whether the path is open after an event of the policy that opens it.
fn opens(event: &WatchEvent<NetworkPolicy>) -> bool {
    matches!(event, WatchEvent::Added(_))
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

/// Adds policies with these numbers that open the callers' egress to somebody else.
async fn beside(client: Client, numbers: Range<usize>) -> Result<()> {
    let policies = Policies::new(client);
    for number in numbers {
        let peer = json!([{ "podSelector": { "matchLabels": { "app": format!("other-{number}") } } }]);
        policies.create(&format!("other-{number}"), &json!([{ "to": peer, "ports": [port()] }])).await?;
    }
    Ok(())
}

/// What is seen of each allow and of each deny, by when the call began.
async fn changes<T>(
    client: Client,
    flows: &[Flow; 2],
    repetitions: usize,
    seen: impl Fn(Instant, bool) -> Result<T>,
) -> Result<[Vec<T>; 2]> {
    let policies = Policies::new(client);
    // The connection is kept, and is there when it is measured.
    policies.0.get("base").await?;
    let mut changes = [Vec::new(), Vec::new()];
    for _ in 0..repetitions {
        for (change, open) in changes.iter_mut().zip([true, false]) {
            let start = policies.open(open).await?;
            until(flows, open)?;
            thread::sleep(PAUSE);
            change.push(seen(start, open)?);
        }
    }
    Ok(changes)
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
