//! One event at a time: how long the compiler takes, what it moves, and how many writes to the tables that becomes.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, anyhow, ensure};
use bulkhead_controller::{
    compile::{Change, Compiler},
    diagnostic::Diagnostics,
    intent::Cidrs,
    labels::{Requirement, Selector},
    model::{Peer, Scope},
};
use bulkhead_dataplane::{
    memory::{Event, MemoryStore},
    node::Wire,
    publish::Publisher,
    store::{self, Table as _},
};

use super::{
    micros,
    report::{Figure, Unit},
    world::World,
};

/// Targets in microseconds: of a pod, of a policy of one namespace, of any policy.
const POD: f64 = 200.0;
const NAMESPACED: f64 = 5_000.0;
const ANY: f64 = 50_000.0;
/// Writes for a pod's one address, and for the one service port that it backs.
const WRITES: f64 = 5.0;

/// The events of one cluster.
pub(crate) struct Events<'a> {
    world: &'a World,
    compiler: &'a mut Compiler,
    runs: u32,
    figures: &'a mut Vec<Figure>,
}

/// What happens to a pod.
const TO_PODS: [&str; 3] = ["added", "relabelled", "removed"];

fn fits<T>(told: Result<T, Diagnostics>) -> Result<T> {
    told.map_err(|found| anyhow!("{found}"))
}

impl<'a> Events<'a> {
    pub(crate) fn new(world: &'a World, compiler: &'a mut Compiler, runs: u32, figures: &'a mut Vec<Figure>) -> Self {
        Self { world, compiler, runs, figures }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        self.pods("remote", false)?;
        self.pods("local", true)?;
        self.policies("namespaced", NAMESPACED, |index| Peer::Workloads {
            namespaces: Scope::Named(format!("ns{}", 1 + index)),
            labels: [Requirement::is("version", &format!("v{}", index % 7))].into_iter().collect(),
        })?;
        let teams = || [Requirement::Exists("team".to_owned())].into_iter().collect::<Selector>();
        self.policies("labelled", ANY, |index| Peer::Workloads {
            namespaces: Scope::Labelled([Requirement::is("team", &format!("t{}", index % 50))].into_iter().collect()),
            labels: [Requirement::Exists("version".to_owned())].into_iter().collect(),
        })?;
        self.policies("everybody", ANY, |_| Peer::Workloads {
            namespaces: Scope::Labelled(teams()),
            labels: Selector::everybody(),
        })?;
        self.policies("cidr_outside", ANY, |index| cidr(&format!("203.0.{index}.0/24"), &[]))?;
        self.policies("cidr_of_all", ANY, |index| cidr("10.0.0.0/8", &[&format!("10.{}.0.0/16", 100 + index)]))?;
        self.writes()
    }

    fn figure(&mut self, case: &str, unit: Unit, values: Vec<f64>, target: Option<f64>) {
        self.figures.push(Figure::new(case, self.world.size.workloads, unit, values, target));
    }

    /// Something that happens to a pod.
    fn tell(&mut self, what: &str, index: u32, here: bool) -> Result<(f64, Change)> {
        let (name, before) = self.world.extra(index, here, 0);
        let (_, after) = self.world.extra(index, here, 4);
        let (before, after) = (Arc::new(before), Arc::new(after));
        let start = Instant::now();
        let change = fits(match what {
            "added" => self.compiler.upsert_workload(&name, &before),
            "relabelled" => self.compiler.upsert_workload(&name, &after),
            _ => self.compiler.remove_workload(&name),
        })?;
        Ok((micros(start), change))
    }

    fn pods(&mut self, kind: &str, here: bool) -> Result<()> {
        let mut times = TO_PODS.map(|_| Vec::new());
        for index in 0..self.runs {
            for (what, times) in TO_PODS.iter().zip(&mut times) {
                let (time, change) = self.tell(what, index, here)?;
                ensure!(!change.is_empty(), "a pod was {what}, and nothing moved");
                times.push(time);
            }
        }
        for (what, times) in TO_PODS.iter().zip(times) {
            self.figure(&format!("pod_{kind}_{what}"), Unit::Micros, times, Some(POD));
        }
        Ok(())
    }

    fn policies(&mut self, kind: &str, target: f64, peer: impl Fn(u32) -> Peer) -> Result<()> {
        let (mut added, mut removed, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        // One in three: each is another namespace's.
        for index in 0..self.runs.div_ceil(3) {
            let policy = self.world.extra_policy(index, peer(index));
            let name = policy.name.clone();
            let start = Instant::now();
            let change = fits(self.compiler.upsert_network_policy(policy))?;
            added.push(micros(start));
            ensure!(!change.sets.is_empty(), "a policy came, and no set is other");
            moved.push(change.addresses.len() as f64);
            let start = Instant::now();
            fits(self.compiler.remove_network_policy(&name))?;
            removed.push(micros(start));
        }
        self.figure(&format!("policy_{kind}_added"), Unit::Micros, added, Some(target));
        self.figure(&format!("policy_{kind}_removed"), Unit::Micros, removed, Some(target));
        self.figure(&format!("policy_{kind}_moves"), Unit::Addresses, moved, None);
        Ok(())
    }

    /// Writes to the tables for one pod.
    fn writes(&mut self) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let memory = MemoryStore::default();
        memory.set_limit::<store::Services>(65_536);
        let mut publisher = Publisher::open(memory, directory.path())?;
        self.publish(&mut publisher)?;
        for (kind, here, target) in [("remote", false, Some(WRITES)), ("local", true, None)] {
            for what in TO_PODS {
                self.tell(what, 0, here)?;
                let (writes, epochs) = self.publish(&mut publisher)?;
                self.figure(&format!("pod_{kind}_{what}_writes"), Unit::Writes, vec![writes], target);
                self.figure(&format!("pod_{kind}_{what}_epochs"), Unit::Writes, vec![epochs], None);
            }
        }
        Ok(())
    }

    /// Writes that it took: those of addresses, services and what they refer to, and those of endpoints whose flows are judged again.
    fn publish(&self, publisher: &mut Publisher<MemoryStore>) -> Result<(f64, f64)> {
        publisher.store().memory().journal = Some(Vec::new());
        let plan = publisher.prepare(self.compiler.desired(), &mut |_| Ok(Wire::to([2, 0, 0, 0, 0, 1])))?;
        let removed = plan.removed.clone();
        publisher.commit(plan)?;
        publisher.release(&removed)?;
        let journal = publisher.store().memory().journal.take().unwrap_or_default();
        let tables = journal.iter().filter_map(|event| match event {
            Event::Write { table, .. } => Some(*table),
            Event::GracePeriod => None,
        });
        let (epochs, writes): (Vec<_>, Vec<_>) = tables.partition(|table| *table == store::Endpoints::NAME);
        Ok((writes.len() as f64, epochs.len() as f64))
    }
}

fn cidr(net: &str, except: &[&str]) -> Peer {
    let nets = |texts: &[&str]| texts.iter().filter_map(|text| text.parse().ok()).collect();
    Peer::Cidrs(Cidrs { cidrs: nets(&[net]), except: nets(except) })
}
