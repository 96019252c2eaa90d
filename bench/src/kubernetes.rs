//! What Bulkhead takes, and how soon what is said holds, on a real cluster with flannel. One cluster serves all parts.

mod latency;
mod news;
mod scale;
mod start;
mod traffic;

use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use bulkhead_cluster::Cluster;
use bulkhead_tests::{
    guarded::{Guarded, NAMESPACE, Way, pod},
    inside::Pod,
    probe::Server,
};
use clap::{Args, ValueEnum};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};

/// UDP port on which the servers answer.
const PORT: u16 = 9000;
/// Who the agents are to the API server.
const AGENT: &str = "system:serviceaccount:bulkhead-system:bulkhead";
/// It would delete pods of a large cluster, whose owners do not exist.
const CONTROLLERS: &str = "*,-garbage-collector-controller";

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From the call to the API server until a policy holds.
    Latency,
    /// What Bulkhead adds to the start of a pod.
    Start,
    /// What it takes from the traffic between pods.
    Traffic,
    /// What an agent needs in a large cluster. The last one: the cluster stays large.
    Scale,
}

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only this; may be given several times.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Changes of each kind, in `latency`.
    #[arg(long, default_value_t = 50)]
    repetitions: usize,
    #[command(flatten)]
    start: start::Options,
    #[command(flatten)]
    traffic: traffic::Options,
    #[command(flatten)]
    scale: scale::Options,
    /// Nodes forward packets between pods directly.
    #[arg(long)]
    direct: bool,
    /// Little of all, and no figures: does it work at all?
    #[arg(long)]
    smoke: bool,
}

/// A cluster with a pod that calls and one that serves on each node.
struct Stage {
    guarded: Guarded,
    /// Callers, called `a` and `b`.
    callers: [Pod; 2],
    /// Servers, called `s1` and `s2`.
    servers: [Pod; 2],
    _answers: Vec<Server>,
}

/// Measures, and prints a table for each part.
///
/// # Errors
/// The cluster cannot be started, or what is to happen does not.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut stage = Stage::new(options.direct)?;
    for part in Part::value_variants() {
        if options.part.is_empty() || options.part.contains(part) {
            match part {
                Part::Latency => latency::run(&mut stage, options.repetitions, options.smoke)?,
                Part::Start => start::run(&mut stage, &options.start, options.smoke)?,
                Part::Traffic => traffic::run(&mut stage, &options.traffic, options.smoke)?,
                Part::Scale => scale::run(&mut stage, &options.scale, options.smoke)?,
            }
            // The next one begins without.
            stage.clear()?;
        }
    }
    Ok(())
}

impl Stage {
    fn new(direct: bool) -> Result<Self> {
        let builder = Cluster::builder().controllers(CONTROLLERS).audit(AGENT);
        let guarded = Guarded::start_as(builder, Way { direct, ..Way::ALONE });
        let guarded = guarded.context("the programs of the tests: `tests/setup/setup.sh --test`")?;
        let pause = |name: &str, node: &str| pod(name, node, "args: [pause]");
        let pods = [pause("a", "n1"), pause("b", "n2"), pause("s1", "n1"), pause("s2", "n2")].concat();
        guarded.apply(&format!("{NAMESPACE}{pods}"));
        guarded.wait_for(&["a", "b", "s1", "s2"]);
        let of = |pod: &str, node: usize| Pod::new(guarded.cluster.node(node), &guarded.address(pod));
        let (callers, servers) = ([of("a", 0)?, of("b", 1)?], [of("s1", 0)?, of("s2", 1)?]);
        let answers = servers.iter().map(|pod| Server::start(pod, PORT)).collect::<Result<_>>()?;
        Ok(Self { guarded, callers, servers, _answers: answers })
    }

    /// Takes away the policies of a part. In one call: kubectl asks for five of them a second.
    fn clear(&self) -> Result<()> {
        self.ask(async |client| {
            let policies: Api<NetworkPolicy> = Api::namespaced(client, "shop");
            policies.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
            Ok(())
        })
    }

    /// Takes Bulkhead out of both nodes.
    fn unguard(&mut self) -> Result<()> {
        (0..2).for_each(|node| self.guarded.unguard(node));
        let links: usize = (0..2).map(|node| self.guarded.links(node)).sum();
        ensure!(links == 0, "{links} programs are attached to links");
        Ok(())
    }

    /// Has it guard both again, and all that runs there.
    fn guard(&mut self) -> Result<()> {
        for node in 0..2 {
            self.guarded.guard(node);
            let unguarded = self.guarded.metric(node, "bulkhead_endpoints_unguarded", &[]);
            ensure!(self.guarded.links(node) > 0 && unguarded == 0.0, "{unguarded} pods are not guarded");
        }
        Ok(())
    }

    /// Runs something that asks the API server, by a connection that is made, and kept, in the namespace where that is.
    fn ask<T: Send>(&self, ask: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let kubeconfig = Kubeconfig::read_from(self.guarded.cluster.kubeconfig())?;
        self.guarded.cluster.control_plane().run(|| connected(kubeconfig, ask))
    }

    /// The same on a thread of its own, while other things happen.
    fn beside<T: Send + 'static>(
        &self,
        ask: impl AsyncFnOnce(Client) -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let kubeconfig = Kubeconfig::read_from(self.guarded.cluster.kubeconfig())?;
        let netns = self.guarded.cluster.control_plane().clone();
        Ok(thread::spawn(move || netns.run(|| connected(kubeconfig, ask))))
    }
}

fn connected<T>(kubeconfig: Kubeconfig, ask: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        ask(Client::try_from(config)?).await
    })
}
