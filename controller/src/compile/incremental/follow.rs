//! From one model to another by what differs, and the way back.

use std::{collections::BTreeMap, mem, sync::Arc};

use bulkhead_dataplane::node::Discovered;

use super::{Cluster, Compiler, Misfits, Touch, edit::Edit};
use crate::{
    diagnostic::Diagnostics,
    model::{Model, Workload},
    workloads::{self, Frontend},
};

/// How much was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What differs.
    Changes,
    /// The same model means the same as before.
    Nothing,
}

/// So many events cost less than compiling all of it, and one more for so many workloads.
const EVENTS: (usize, usize) = (64, 64);

/// What takes one change back.
#[derive(Debug)]
pub(super) enum Back {
    Edit(Edit),
    /// It means the same, but places and warnings.
    Model(Arc<Model>),
    Time(u64),
    /// Said of all of the way.
    Misfits(Misfits),
    Cluster(Box<Cluster>),
}

/// A way that was gone before a branch began.
#[derive(Debug)]
pub(crate) struct Branch(Option<Vec<Back>>);

impl Compiler {
    /// From here on the way back is kept, until [`Compiler::keep`] or [`Compiler::go_back`].
    pub fn begin(&mut self) {
        self.way = Some(Vec::new());
    }

    /// What was changed stays.
    pub fn keep(&mut self) {
        self.way = None;
    }

    /// Takes back whatever was changed since [`Compiler::begin`]. Ids may be others than before.
    pub fn go_back(&mut self) {
        let way = self.way.take().unwrap_or_default();
        let first =
            way.iter().find_map(|back| if let Back::Misfits(misfits) = back { Some(misfits.clone()) } else { None });
        // Something on the way may be shut.
        let now = mem::replace(&mut self.cluster.misfits, Misfits::Any);
        way.into_iter().rev().for_each(|back| self.take_back(back));
        self.cluster.misfits = first.unwrap_or(now);
    }

    /// Begins a branch of the way: what [`Compiler::join`] wants back.
    pub(crate) fn branch(&mut self) -> Branch {
        Branch(self.way.replace(Vec::new()))
    }

    /// Ends a branch: it becomes part of the way, or is taken back.
    pub(crate) fn join(&mut self, Branch(outer): Branch, keep: bool) {
        if !keep {
            self.go_back();
        }
        let steps = mem::replace(&mut self.way, outer);
        if let Some(way) = &mut self.way {
            way.extend(steps.into_iter().flatten());
        }
    }

    /// Compiles another model, or the same for another network or time. What differs is carried out event by event; all is compiled where something
    /// differs that no event changes (nodes, resolvers, the service label, Intents, Guards, the node's network), where a rule ended in between, where
    /// much differs, where the events do not fit one after the other, and where something is shut that may not be.
    ///
    /// # Errors
    /// See [`super::super::compile`]; then nothing changed.
    pub fn follow(
        &mut self,
        model: Arc<Model>,
        discovered: &Discovered,
        now: u64,
        misfits: Misfits,
    ) -> Result<Extent, Diagnostics> {
        let before = mem::replace(&mut self.cluster.misfits, misfits);
        let done = self.follow_as_said(model, discovered, now);
        match &done {
            Ok(_) if self.cluster.misfits != before => self.remember(|| Back::Misfits(before)),
            Ok(_) => {}
            Err(_) => self.cluster.misfits = before,
        }
        done
    }

    fn follow_as_said(&mut self, model: Arc<Model>, discovered: &Discovered, now: u64) -> Result<Extent, Diagnostics> {
        if self.doubtful {
            return self.anew(model, discovered, now);
        }
        let may_stay = self.shut().all(|name| self.cluster.misfits.include(name));
        if may_stay && *discovered == self.cluster.discovered && !self.something_ends(now) {
            if Arc::ptr_eq(&model, &self.cluster.model) {
                self.pass_time(now);
                return Ok(Extent::Nothing);
            }
            if self.cluster.model.has_frame_of(&model) && self.take_steps(&model) {
                self.pass_time(now);
                let before = mem::replace(&mut self.cluster.model, model);
                self.remember(|| Back::Model(before));
                return Ok(Extent::Changes);
            }
            if self.doubtful {
                return self.anew(model, discovered, now);
            }
        }
        self.replace(model, discovered.clone(), now).map(|_| Extent::Whole)
    }

    pub(super) fn remember(&mut self, back: impl FnOnce() -> Back) {
        if let Some(way) = &mut self.way {
            way.push(back());
        }
    }

    /// Whether a rule that held holds no longer, or one that did not does.
    fn something_ends(&self, now: u64) -> bool {
        let Cluster { model, now: before, .. } = &self.cluster;
        let mut ends = model.guards.iter().flat_map(|guard| &guard.rules).filter_map(|rule| rule.expires);
        ends.any(|end| (*before < end) != (now < end))
    }

    fn pass_time(&mut self, now: u64) {
        let before = mem::replace(&mut self.cluster.now, now);
        self.remember(|| Back::Time(before));
    }

    /// Carries out what differs, or nothing of it.
    fn take_steps(&mut self, to: &Model) -> bool {
        let (few, share) = EVENTS;
        let most = few + to.workloads.len() / share;
        let branch = self.branch();
        let first = policies_and_services(&self.cluster.model, to);
        let mut taken = first.len() <= most && self.carry_out_all(first);
        if taken {
            // Which policies select a workload, and what leads to it, is known by now.
            let then = workloads(&self.cluster.model, to);
            taken = then.len() <= most && self.carry_out_all(then);
        }
        self.join(branch, taken);
        taken
    }

    fn carry_out_all(&mut self, edits: Vec<Edit>) -> bool {
        // Why not, all of it together says.
        edits.into_iter().all(|edit| self.carry_out(edit, |_| ()).is_ok())
    }

    fn take_back(&mut self, back: Back) {
        match back {
            Back::Edit(edit) if self.doubtful => _ = edit.apply(Arc::make_mut(&mut self.cluster.model)),
            Back::Edit(edit) => {
                // It fitted before.
                if let Err(refused) = self.carry_out(edit, |_| ()) {
                    self.doubtful = true;
                    self.take_back(Back::Edit(refused.0));
                }
            }
            Back::Model(model) => self.cluster.model = model,
            Back::Time(now) => self.cluster.now = now,
            Back::Misfits(_) => {}
            Back::Cluster(cluster) if self.doubtful => self.cluster = *cluster,
            Back::Cluster(cluster) => {
                let Cluster { model, node, discovered, now, .. } = &*cluster;
                let (model, node, discovered) = (Arc::clone(model), node.clone(), discovered.clone());
                let again = Cluster::new(model, node, discovered, *now, self.cluster.misfits.clone());
                if self.put_cluster(again, &mut Touch::default()).is_err() {
                    self.doubtful = true;
                    self.cluster = *cluster;
                }
            }
        }
    }

    /// Compiles all of it as if nothing had been compiled.
    fn anew(&mut self, model: Arc<Model>, discovered: &Discovered, now: u64) -> Result<Extent, Diagnostics> {
        let fresh = Self::with(model, &self.cluster.node, discovered.clone(), now, self.cluster.misfits.clone())?;
        let before = mem::replace(self, fresh);
        self.way = before.way;
        self.remember(|| Back::Cluster(Box::new(before.cluster)));
        Ok(Extent::Whole)
    }
}

/// What of policies, namespaces and services makes one model of another. What goes makes room first.
fn policies_and_services(from: &Model, to: &Model) -> Vec<Edit> {
    let mut edits = Vec::new();
    edits.extend(gone(&from.network_policies, &to.network_policies).map(|name| Edit::Policy(name.clone(), None)));
    edits.extend(gone(&from.namespaces, &to.namespaces).map(|name| Edit::Namespace(name.clone(), None)));
    edits.extend(gone(&from.frontends, &to.frontends).map(|name| Edit::Frontend(name.clone(), None)));
    let namespaces = other(&from.namespaces, &to.namespaces, |a, b| a == b);
    edits.extend(namespaces.map(|(name, labels)| Edit::Namespace(name.clone(), Some(labels.clone()))));
    let policies = other(&from.network_policies, &to.network_policies, |a, b| a == b);
    edits.extend(policies.map(|(name, policy)| Edit::Policy(name.clone(), Some(policy.clone()))));
    let frontends = other(&from.frontends, &to.frontends, |a, b| frontend(a) == frontend(b));
    edits.extend(frontends.map(|(name, frontend)| Edit::Frontend(name.clone(), Some(frontend.clone()))));
    edits
}

/// What of workloads does.
fn workloads(from: &Model, to: &Model) -> Vec<Edit> {
    let gone = gone(&from.workloads, &to.workloads).map(|name| Edit::Workload(name.clone(), None));
    let other = other(&from.workloads, &to.workloads, |a, b| workload(a) == workload(b));
    let other = other.map(|(name, workload)| Edit::Workload(name.clone(), Some(Box::new(workload.clone()))));
    gone.chain(other).collect()
}

/// All of it but where it stands.
fn frontend(frontend: &Frontend) -> impl PartialEq {
    let Frontend { place: _, addresses, ports, workloads, outside, resolver } = frontend;
    (addresses, ports, workloads, outside, resolver)
}

/// All of it but where it stands.
fn workload(workload: &Workload) -> impl PartialEq {
    let Workload { described, services, policies, frontends, service } = workload;
    let workloads::Workload { place: _, labels, node, mode, ports, endpoints, host, owner, uid: _ } = &**described;
    ((labels, node, mode, ports, endpoints, host, owner), (services, policies, frontends, service))
}

fn gone<'a, K: Ord, V>(from: &'a BTreeMap<K, V>, to: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    from.keys().filter(|key| !to.contains_key(*key))
}

fn other<'a, K: Ord, V>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    to.iter().filter(move |(key, value)| !from.get(key).is_some_and(|before| same(before, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::compile,
        diagnostic::source,
        workloads::{self, WorkloadName},
    };

    const CLUSTER: &str = "apiVersion: bulkhead/v1
kind: Workloads
nodes: [{ name: n, addresses: [192.0.2.1] }]
workloads:
  - { name: w, namespace: a, node: n, endpoints: [{ addresses: [10.0.0.1], link: veth0 }] }
";

    fn model() -> Model {
        let listed = workloads::parse(&source("w.yaml", CLUSTER)).unwrap_or_else(|found| panic!("{found}"));
        Model::build(&[], &listed).unwrap_or_else(|found| panic!("{found}"))
    }

    /// Where the way back leads nowhere, all is compiled as at first.
    #[test]
    fn in_doubt_all_is_compiled_anew() {
        let network = Discovered::default();
        let mut compiler = Compiler::new(model(), "n", network.clone(), 1).unwrap_or_else(|found| panic!("{found}"));
        let name = WorkloadName::new("a".to_owned(), "w".to_owned());
        let mut node = compiler.model().workloads[&name].clone();
        Arc::make_mut(&mut node.described).endpoints[0].addresses = vec!["192.0.2.1".parse().unwrap()];
        compiler.begin();
        compiler.remove_workload(&name).unwrap_or_else(|found| panic!("{found}"));
        compiler.remember(|| Back::Edit(Edit::Workload(name.clone(), Some(Box::new(node)))));
        compiler.go_back();
        assert!(compiler.doubtful);
        assert!(compiler.model().workloads.contains_key(&name), "the model is what it was");

        assert_eq!(compiler.follow(Arc::new(model()), &network, 2, Misfits::None), Ok(Extent::Whole));
        assert!(!compiler.doubtful);
        assert_eq!(Ok(compiler.desired().clone()), compile(&model(), "n", &network, 2));
        assert_eq!(compiler.follow(Arc::new(model()), &network, 3, Misfits::None), Ok(Extent::Changes));
    }
}
