//! What Bulkhead adds to the start of a pod, on a node that has it and on the same node without it, in turns.
//!
//! A pod runs when the first byte that its program writes has come to the runtime. It is reachable when a pod of the other node is answered by it, which
//! asks from then on: a policy lets that one in and no other.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_cluster::Node;
use bulkhead_tests::{
    guarded::AGNHOST,
    probe::{Flow, PATIENCE, Pace},
};
use clap::Args;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::Stage;
use crate::cni::at;

/// UDP port on which a started pod answers.
const PORT: u16 = 9001;
/// On this node the pods start.
const NODE: usize = 0;
/// Where kubelets keep what containers write, and CNI's host-local which addresses are given.
const LOGS: &str = "/var/log/pods";
const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";
/// Lets them in, and nobody else.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: started, namespace: shop }
spec:
  podSelector: { matchLabels: { app: started } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: b } } }], ports: [{ protocol: UDP, port: 9001 }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: caller, namespace: shop }
spec:
  podSelector: { matchLabels: { app: b } }
  policyTypes: [Egress]
  egress: [{ to: [{ podSelector: { matchLabels: { app: started } } }], ports: [{ protocol: UDP, port: 9001 }] }]
";

/// What to measure.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct Options {
    /// Starts of pods with Bulkhead and without it, in `start`.
    #[arg(long, default_value_t = 60)]
    starts: usize,
    /// Turns into which they are parted, in `start`.
    #[arg(long, default_value_t = 3)]
    turns: usize,
}

/// From the call to the API server.
#[derive(Default)]
struct Times {
    runs: Vec<Duration>,
    answers: Vec<Duration>,
}

/// Measures, and prints a table.
pub(super) fn run(stage: &mut Stage, options: &Options, smoke: bool) -> Result<()> {
    let (turns, starts) =
        if smoke { (1, 1) } else { (options.turns.max(1), options.starts.div_ceil(options.turns.max(1))) };
    stage.guarded.apply(POLICIES);
    let mut times = [Times::default(), Times::default()];
    for _ in 0..turns {
        for guarded in [true, false] {
            if !guarded {
                stage.unguard()?;
            }
            let times = &mut times[usize::from(!guarded)];
            // The first one after a change is no measure.
            for turn in 0..=starts {
                let (runs, answers) = start(stage).with_context(|| format!("a pod starts, guarded: {guarded}"))?;
                if turn > 0 {
                    times.runs.push(runs);
                    times.answers.push(answers);
                }
            }
        }
        stage.guard()?;
    }
    if smoke {
        println!("pods start and are reached, with Bulkhead and without");
        return Ok(());
    }
    println!("milliseconds from the call that makes a pod, {} starts each", times[0].runs.len());
    println!("              with p50      p99   without p50      p99     ratios");
    let of: [(&str, fn(&Times) -> &[Duration]); 2] =
        [("it runs", |times| &times.runs), ("it is reached", |times| &times.answers)];
    for (what, of) in of {
        let [with, without] = times.each_ref().map(|times| [50, 99].map(|percent| at(of(times), percent)));
        println!(
            "{what:<13} {:>8.0} {:>8.0}      {:>8.0} {:>8.0}   {:.3} {:.3}",
            with[0],
            with[1],
            without[0],
            without[1],
            with[0] / without[0],
            with[1] / without[1]
        );
    }
    Ok(())
}

/// Starts a pod and removes it: how long until it ran, and until it answered.
fn start(stage: &Stage) -> Result<(Duration, Duration)> {
    let caller = &stage.callers[1];
    let node = stage.guarded.cluster.node(NODE);
    let given = addresses(node)?;
    stage.ask(async |client: Client| {
        let api: Api<Pod> = Api::namespaced(client, "shop");
        let container = json!({ "name": "main", "image": AGNHOST, "args": ["netexec", format!("--udp-port={PORT}")] });
        let spec = json!({ "nodeName": node.name, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "started", "labels": { "app": "started" } }, "spec": spec });
        let pod = serde_json::from_value(pod)?;
        let (called, begin) = (SystemTime::now(), Instant::now());
        let made = api.create(&PostParams::default(), &pod).await?;
        let uid = made.metadata.uid.context("a pod without uid")?;
        let log = node.file(Path::new(LOGS).join(format!("shop_started_{uid}")).join("main/0.log"));
        let ran = first_line(&log)?.duration_since(called)?;
        let address = addresses(node)?.into_iter().find(|address| !given.contains(address)).context("no address was given")?;
        let flow = Flow::start(caller, address, PORT, Pace::FINE)?;
        let answered = loop {
            if let Some(answered) = flow.first_answered(begin) {
                break answered;
            }
            ensure!(begin.elapsed() < PATIENCE, "{address} does not answer; it wrote: {}", fs::read_to_string(&log).unwrap_or_default());
            thread::sleep(Duration::from_millis(2));
        };
        drop(flow);
        api.delete("started", &DeleteParams::default().grace_period(0)).await?;
        // Its address is given back when it is gone.
        while addresses(node)?.len() > given.len() {
            ensure!(begin.elapsed() < PATIENCE, "the pod does not go");
            thread::sleep(Duration::from_millis(20));
        }
        Ok((ran, answered))
    })
}

/// When the first line of a container's log came.
fn first_line(log: &PathBuf) -> Result<SystemTime> {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        if let Some((time, _)) = text.split_once(' ') {
            let time: Timestamp = time.parse()?;
            return Ok(time.into());
        }
        ensure!(begin.elapsed() < PATIENCE, "{} stays empty", log.display());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Addresses that pods of a node have been given.
fn addresses(node: &Node) -> Result<Vec<IpAddr>> {
    let entries = fs::read_dir(node.file(ADDRESSES))?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
