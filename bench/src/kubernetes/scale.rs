//! What an agent needs in a large cluster: to begin, and while pods come and go.
//!
//! Generated nodes and pods are objects of the real API server, and nothing runs there. One agent starts then, on a real node; a pod of it gets and loses
//! a label that opens it a path.

mod churn;
mod etcd;
mod minutes;
mod objects;
mod process;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_tests::{
    guarded::{Guarded, eventually},
    probe::{Flow, PATIENCE, Pace, until},
};
use clap::Args;
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams, WatchEvent},
};
use serde_json::json;

use self::{churn::Churn, minutes::Minutes, process::Process};
use super::{
    PORT, Stage,
    news::{News, became},
};
use crate::cni::at;

/// Time to come to rest, and between two changes.
const REST: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
/// Pods of a page of the list that is read for comparison, as the agent has it.
const PAGE: usize = 500;
/// Label of who may call the server.
const DOOR: &str = "door";
/// On this node the agent starts.
const NODE: usize = 0;

/// What to measure.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct Options {
    /// Generated nodes, in `scale`.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Generated pods, in `scale`; a namespace and a policy for each 25 of them.
    #[arg(long, default_value_t = 5000)]
    pods: usize,
    /// Seconds during which a tenth of the pods is replaced each minute, in `scale`. Whether memory grows is seen after three minutes.
    #[arg(long, default_value_t = 60)]
    churn: u64,
}

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
struct Size {
    nodes: usize,
    pods: usize,
    namespaces: usize,
}

/// Measures, and prints a table. Generated objects stay.
pub(super) fn run(stage: &mut Stage, options: &Options, smoke: bool) -> Result<()> {
    let (nodes, pods, churn) = if smoke { (10, 200, 2) } else { (options.nodes, options.pods, options.churn) };
    let (rest, minute) = if smoke { (Duration::ZERO, Duration::from_millis(500)) } else { (REST, MINUTE) };
    ensure!((1..=objects::MOST).contains(&nodes), "{nodes} nodes: there are addresses for 1 to {}", objects::MOST);
    ensure!((1..=nodes * objects::DENSITY).contains(&pods), "{pods} pods: a node has at most {}", objects::DENSITY);
    let size = Size { nodes, pods, namespaces: pods.div_ceil(objects::CROWD) };
    // The policies of the part before must be gone before the agents are: what is in force stays without them.
    let [caller, _] = &stage.callers;
    let flow = [Flow::start(caller, stage.servers[0].address, PORT, Pace::FINE)?];
    until(&flow, true)?;
    // An agent that has just begun where there is next to nothing.
    stage.guarded.end_agent(NODE);
    stage.guarded.forget(NODE);
    stage.guarded.kill_agent(NODE);
    thread::sleep(rest);
    let empty = agent(&stage.guarded)?.memory()?.resident;
    for node in 0..2 {
        stage.guarded.end_agent(node);
    }
    let begin = Instant::now();
    stage.guarded.cluster.control_plane().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(etcd::write(size.others().chain(size.pods())))
    })?;
    until(&flow, true)?;
    let listed = stage.ask(async |client| {
        isolate(&client).await?;
        wait_for(&client, pods).await?;
        list(&client).await
    })?;
    if !smoke {
        println!(
            "{nodes} nodes, {pods} pods, {} namespaces; written in {:.1} s",
            size.namespaces,
            begin.elapsed().as_secs_f64()
        );
        println!(
            "all pods listed, {PAGE} at a time   {:>7.1} s   {:>7.1} MiB of JSON",
            listed.0.as_secs_f64(),
            mib(listed.1)
        );
        thread::sleep(REST);
    }

    stage.guarded.forget(NODE);
    let before = stage.guarded.cluster.requests()?.len();
    let begin = Instant::now();
    stage.guarded.kill_agent_without_source(NODE);
    let (process, synced) = synced(&stage.guarded, begin)?;
    until(&flow, false)?;
    if !smoke {
        let at_once = process.memory()?;
        println!(
            "start until in force           {:>7.1} s   {:>7.2} of the list   {}",
            synced.as_secs_f64(),
            synced.as_secs_f64() / listed.0.as_secs_f64(),
            verdict(synced <= Duration::from_secs(10))
        );
        println!("processor time of that         {:>7.1} s", process.processor()?.as_secs_f64());
        thread::sleep(REST);
        let memory = process.memory()?;
        println!(
            "resident, at once and {REST:?} later {:>6.0} and {:.0} MiB   {}",
            mib(at_once.resident),
            mib(memory.resident),
            verdict(memory.resident <= 150 << 20)
        );
        println!(
            "resident at the peak           {:>7.0} MiB   {}",
            mib(memory.peak),
            verdict(memory.peak <= 400 << 20)
        );
        println!(
            "resident for each pod          {:>7.2} KiB  ({:.0} MiB without them)",
            memory.resident.saturating_sub(empty) as f64 / 1024.0 / pods as f64,
            mib(empty)
        );
        println!("maps                           {:>7.1} MiB", mib(process.maps()?));
        println!("requests to the API server     {}", requests(&stage.guarded.cluster.requests()?[before..]));
    }

    let news = News::watch(stage, "a", is_open)?;
    let quiet = Duration::from_secs(if smoke { 1 } else { churn });
    let still = flips(stage, (&flow, &news), quiet, &process)?;
    // A tenth a minute.
    let before = stage.guarded.cluster.requests()?.len();
    let churning = Churn::start(stage, size, Duration::from_secs(600).div_f64(pods as f64))?;
    let minutes = Minutes::start(agent(&stage.guarded)?, minute);
    let moving = flips(stage, (&flow, &news), Duration::from_secs(churn), &process);
    let replaced = churning.stop()?;
    let (moving, minutes) = (moving?, minutes.stop()?);
    let asked = requests(&stage.guarded.cluster.requests()?[before..]);
    ensure!(replaced > 0, "no pod was replaced");
    ensure!(!smoke || !minutes.is_empty(), "nobody looked at the agent's memory");
    if smoke {
        println!("an agent starts in a cluster of generated pods, and follows while they come and go");
        return Ok(());
    }
    println!("                        opens p50      p99    shuts p50      p99    processor   resident   peak");
    for (name, flips) in [("nothing else happens", &still), ("pods come and go", &moving)] {
        let (opens, shuts) = (&flips.opens, &flips.shuts);
        println!(
            "{name:<22} {:>8.1} {:>8.1}     {:>8.1} {:>8.1}      {:>6.1} %   {:>4.0} MiB   {:>4.0} MiB   {} of each, ms from the call",
            at(opens, 50),
            at(opens, 99),
            at(shuts, 50),
            at(shuts, 99),
            flips.processor * 100.0,
            mib(flips.memory.resident),
            mib(flips.memory.peak),
            opens.len()
        );
    }
    println!("replaced {replaced} pods, {:.1} a second", replaced as f64 / churn as f64);
    println!("resident after each minute of that, MiB   {}", minutes::told(&minutes));
    println!("requests to the API server meanwhile   {asked}");
    for (name, flips) in [("nothing else happens", &still), ("pods come and go", &moving)] {
        let heard = &flips.heard;
        let (p50, p99) = (at(heard, 50), at(heard, 99));
        println!("{name:<22} {p50:>8.1} {p99:>8.1} ms at p99 after the watch event   {}", verdict(p99 <= 100.0));
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Who calls the server of the agent's node needs a label.
async fn isolate(client: &Client) -> Result<()> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), "shop");
    let from = json!([{ "podSelector": { "matchLabels": { DOOR: "open" } } }]);
    let spec = json!({ "podSelector": { "matchLabels": { "app": "s1" } }, "policyTypes": ["Ingress"], "ingress": [{ "from": from }] });
    let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "door" }, "spec": spec });
    api.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
    Ok(())
}

/// Waits until the API server has heard of all generated pods.
async fn wait_for(client: &Client, pods: usize) -> Result<()> {
    let begin = Instant::now();
    loop {
        let page: serde_json::Value =
            client.request(http::Request::get("/api/v1/pods?limit=1&labelSelector=team").body(Vec::new())?).await?;
        // With a selector it does not say how many there are, so that one is asked for the last.
        let last = client
            .request_text(
                http::Request::get(format!(
                    "/api/v1/namespaces/{}/pods",
                    objects::namespace_name((pods - 1) % pods.div_ceil(objects::CROWD))
                ))
                .body(Vec::new())?,
            )
            .await?;
        if page["items"].as_array().is_some_and(|items| !items.is_empty())
            && last.contains(&format!("-{:06}-", pods - 1))
        {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the API server does not know all pods");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Lists all pods as the agent does, and does nothing with them: how long that takes, and how much it is.
async fn list(client: &Client) -> Result<(Duration, u64)> {
    let begin = Instant::now();
    let (mut next, mut bytes) = (String::new(), 0);
    loop {
        let request = http::Request::get(format!("/api/v1/pods?limit={PAGE}&continue={next}")).body(Vec::new())?;
        let page = client.request_text(request).await?;
        bytes += page.len() as u64;
        // It is in the metadata of the list, which come first.
        let found =
            page.get(..2000).unwrap_or(&page).split_once("\"continue\":\"").and_then(|(_, rest)| rest.split_once('"'));
        match found {
            Some((token, _)) if !token.is_empty() => next = token.to_owned(),
            _ => return Ok((begin.elapsed(), bytes)),
        }
    }
}

/// Waits until an agent that has just begun has its first revision in force.
fn synced(guarded: &Guarded, begin: Instant) -> Result<(Process, Duration)> {
    let mut took = Duration::ZERO;
    eventually("the agent has a revision in force", || {
        // An answer comes when the agent has begun, and not before.
        let answers = guarded.metrics(NODE).is_some();
        took = begin.elapsed();
        answers
    });
    Ok((agent(guarded)?, took))
}

fn agent(guarded: &Guarded) -> Result<Process> {
    Ok(Process(guarded.agent_pid(NODE).context("the agent has ended")?))
}

/// How often what was asked for, all pages of a list for one.
fn requests(all: &[(String, String)]) -> String {
    let mut counted = BTreeMap::<String, usize>::new();
    for (verb, path) in all {
        let resource = path.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        *counted.entry(format!("{verb} {resource}")).or_default() += 1;
    }
    let counted: Vec<_> = counted.iter().map(|(what, count)| format!("{what} {count}")).collect();
    format!("{:>7}: {}", all.len(), counted.join(", "))
}

/// Changes of a label, and the agent meanwhile.
struct Flips {
    opens: Vec<Duration>,
    shuts: Vec<Duration>,
    /// Both, from when those who watch were told.
    heard: Vec<Duration>,
    /// Part of a processor's time.
    processor: f64,
    memory: process::Memory,
}

/// Whether a pod has the label, as an event tells.
fn is_open(event: &WatchEvent<Pod>) -> bool {
    matches!(event, WatchEvent::Added(pod) | WatchEvent::Modified(pod) if pod.labels().contains_key(DOOR))
}

/// Gives the caller the label and takes it away, one after the other, for some time.
fn flips(stage: &Stage, (flow, news): (&[Flow; 1], &News), time: Duration, process: &Process) -> Result<Flips> {
    stage.ask(async |client| {
        let api: Api<Pod> = Api::namespaced(client, "shop");
        let (mut opens, mut shuts, mut heard) = (Vec::new(), Vec::new(), Vec::new());
        let label = async |value: Option<&str>| {
            let patch = json!({ "metadata": { "labels": { DOOR: value } } });
            api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        };
        let (begin, worked) = (Instant::now(), process.processor()?);
        while begin.elapsed() < time {
            let start = Instant::now();
            label(Some("open")).await?;
            until(flow, true)?;
            thread::sleep(PAUSE);
            opens.push(became(flow, start, true)?);
            heard.push(news.until(flow, start, true)?);
            let start = Instant::now();
            label(None).await?;
            until(flow, false)?;
            thread::sleep(PAUSE);
            shuts.push(became(flow, start, false)?);
            heard.push(news.until(flow, start, false)?);
        }
        let processor = (process.processor()? - worked).as_secs_f64() / begin.elapsed().as_secs_f64();
        Ok(Flips { opens, shuts, heard, processor, memory: process.memory()? })
    })
}
