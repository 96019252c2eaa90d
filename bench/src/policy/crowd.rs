//! Many policies on one workload: what one more costs, and one less, by how many others there are.

use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use bulkhead_controller::{
    compile::Compiler,
    diagnostic::{Diagnostics, source},
    model::Model,
    network_policy::NetworkPolicy,
    policy::{self, Policy},
    workloads,
};
use bulkhead_dataplane::{
    memory::MemoryStore,
    node::{Discovered, Wire},
    publish::Publisher,
};

use super::{
    micros,
    report::{Figure, Unit},
};

/// Policies beside the one that comes and goes.
const OTHERS: [usize; 3] = [0, 100, 1_000];

/// How many these are.
const COLUMN: u32 = 2;
const WORKLOADS: &str = "apiVersion: bulkhead/v1
kind: Workloads
nodes:
- { name: n1, addresses: [192.0.2.1] }
workloads:
- { name: web, namespace: shop, labels: { app: web }, node: n1, endpoints: [{ link: veth-web, addresses: [10.244.1.5] }] }
- { name: db, namespace: shop, labels: { app: db }, node: n1, endpoints: [{ link: veth-db, addresses: [10.244.1.6] }] }
";

fn fits<T>(told: Result<T, Diagnostics>) -> Result<T> {
    told.map_err(|found| anyhow!("{found}"))
}

/// Whom policies name, by their numbers.
type Peers = fn(usize) -> String;
/// Pods by a label, and the world by a prefix.
const KINDS: [(&str, Peers); 2] = [
    ("pods", |number| format!("podSelector: {{ matchLabels: {{ app: other-{number} }} }}")),
    ("prefixes", |number| format!("ipBlock: {{ cidr: 203.{}.{}.0/24 }}", number / 256, number % 256)),
];

/// Lets everybody of the namespace send.
fn policy(name: &str, to: &str) -> Result<NetworkPolicy> {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         podSelector: {{}}\n  policyTypes: [Egress]\n  egress: [{{ to: [{{ {to} }}], ports: [{{ protocol: UDP, port: 7000 }}] }}]\n"
    );
    match fits(policy::parse(&source(name, text)))?.pop() {
        Some(Policy::Network(policy)) => Ok(policy),
        _ => bail!("no policy"),
    }
}

/// Of each number of others: until it is compiled, and from then until it is in the tables, which are in memory here.
pub(super) fn run(runs: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let described = fits(workloads::parse(&source("workloads.yaml", WORKLOADS.to_owned())))?;
    for ((kind, peers), others) in KINDS.into_iter().flat_map(|kind| OTHERS.map(|others| (kind, others))) {
        let numbered = |number: usize| policy(&format!("policy-{number}"), &peers(number));
        // One in their midst.
        let open = numbered(others / 2)?;
        let others_of = (0..=others).filter(|number| *number != others / 2);
        let policies: Result<Vec<_>> = others_of.map(|number| Ok(Policy::Network(numbered(number)?))).collect();
        let model = fits(Model::build(&policies?, &described))?;
        let mut compiler = fits(Compiler::new(model, "n1", Discovered::default(), 0))?;
        let directory = tempfile::tempdir()?;
        let mut publisher = Publisher::open(MemoryStore::default(), directory.path())?;
        publish(&mut publisher, &compiler)?;
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..runs {
            for (times, comes) in times.chunks_mut(2).zip([true, false]) {
                let start = Instant::now();
                let told = match comes {
                    true => compiler.upsert_network_policy(open.clone()),
                    false => compiler.remove_network_policy(&open.name),
                };
                fits(told)?;
                times[0].push(micros(start));
                let start = Instant::now();
                publish(&mut publisher, &compiler)?;
                times[1].push(micros(start));
            }
        }
        for (times, what) in
            times.into_iter().zip(["added_compiled", "added_published", "removed_compiled", "removed_published"])
        {
            figures.push(Figure::new(&format!("beside_{others}_{kind}_{what}"), COLUMN, Unit::Micros, times, None));
        }
    }
    Ok(())
}

fn publish(publisher: &mut Publisher<MemoryStore>, compiler: &Compiler) -> Result<()> {
    let plan = publisher.prepare(compiler.desired(), &mut |_| Ok(Wire::to([2, 0, 0, 0, 0, 1])))?;
    let removed = plan.removed.clone();
    publisher.commit(plan)?;
    Ok(publisher.release(&removed)?)
}
