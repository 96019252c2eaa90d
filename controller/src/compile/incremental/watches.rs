//! Where others listen by the name of a port: egress rules by name are about it, so that it changes them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::draft::Listening;
use crate::{
    model::{Model, Peer, Workload},
    ports::Transport,
    workloads::WorkloadName,
};

/// Whose port of which name somebody's rules are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watch {
    pub(super) peer: Peer,
    pub(super) port: String,
    pub(super) transport: Option<Transport>,
}

/// How many listen at each port, and how many kinds of workloads watch it.
#[derive(Debug, Default)]
struct Watched {
    listening: BTreeMap<(Transport, u16), usize>,
    users: usize,
}

/// All that is watched.
#[derive(Debug, Default)]
pub(super) struct Watches(BTreeMap<Watch, Watched>);

/// Watches whose ports a workload is counted at.
pub(super) type Counted = Vec<(Watch, (Transport, u16))>;

impl Watches {
    /// One more user.
    pub(super) fn acquire(&mut self, model: &Model, watch: &Watch) {
        let watched = self.0.entry(watch.clone()).or_insert_with(|| {
            let mut watched = Watched::default();
            let members = model.candidates(&watch.peer);
            for at in members.flat_map(|(name, workload)| watch.listens(model, name, workload)) {
                *watched.listening.entry(at).or_default() += 1;
            }
            watched
        });
        watched.users += 1;
    }

    /// One user less.
    pub(super) fn release(&mut self, watch: &Watch) {
        if let Some(watched) = self.0.get_mut(watch) {
            watched.users -= 1;
            if watched.users == 0 {
                self.0.remove(watch);
            }
        }
    }

    /// Where a workload is counted, as the model is now.
    pub(super) fn of(&self, model: &Model, name: &WorkloadName, workload: &Workload) -> Counted {
        let all = self.0.keys();
        all.flat_map(|watch| watch.listens(model, name, workload).map(|at| (watch.clone(), at))).collect()
    }

    /// Counts somebody here who was counted there. Watches that find other ports than before.
    pub(super) fn recount(&mut self, before: &Counted, after: &Counted) -> BTreeSet<Watch> {
        let mut touched = BTreeSet::new();
        for (watch, at) in after {
            let Some(watched) = self.0.get_mut(watch) else { continue };
            let count = watched.listening.entry(*at).or_default();
            *count += 1;
            if *count == 1 {
                touched.insert(watch.clone());
            }
        }
        for (watch, at) in before {
            let Some(watched) = self.0.get_mut(watch) else { continue };
            let Some(count) = watched.listening.get_mut(at) else { continue };
            *count -= 1;
            if *count == 0 {
                watched.listening.remove(at);
                touched.insert(watch.clone());
            }
        }
        touched
    }
}

impl Watch {
    fn listens<'a>(
        &self,
        model: &Model,
        name: &WorkloadName,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (Transport, u16)> + use<'a> {
        let mut at = workload.listens(&self.port, self.transport).peekable();
        // Mostly it has no port of that name.
        let is_member = at.peek().is_some() && model.matches(&self.peer, name, workload);
        at.filter(move |_| is_member)
    }
}

impl Listening for Watches {
    fn ports(
        &self,
        _model: &Model,
        peer: &Peer,
        name: &str,
        transport: Option<Transport>,
    ) -> BTreeSet<(Transport, u16)> {
        let watch = Watch { peer: peer.clone(), port: name.to_owned(), transport };
        self.0.get(&watch).map(|watched| watched.listening.keys().copied().collect()).unwrap_or_default()
    }
}
