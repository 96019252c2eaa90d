//! Workloads of this node by what their rules depend on: another one of a kind costs no draft.

use std::{collections::BTreeSet, sync::Arc};

use bulkhead_dataplane::desired::{self, PolicySet, RuleId, SelectorId, SetId, View};
use bulkhead_ebpf::abi::{Direction, VIEW_CHAIN};

use super::{
    super::{
        Ids,
        draft::{Draft, Selector, Subject},
        follow, phases, policy_set, too_long,
    },
    Cluster,
    registry::Registry,
    watches::{Watch, Watches},
};
use crate::{
    diagnostic::Diagnostics,
    few::Few,
    guard::Guard,
    model::{Peer, PolicyName, ServiceName, Workload},
    ports::Ports,
    workloads::{PortNames, WorkloadName},
};

/// What a workload's drafts depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    services: Few<ServiceName>,
    policies: Few<PolicyName>,
    frontends: Few<ServiceName>,
    resolver: bool,
    ports: Arc<PortNames>,
    /// Guards that concern it.
    guards: Vec<usize>,
}

impl Key {
    pub(super) fn of(cluster: &Cluster, name: &WorkloadName, workload: &Workload) -> Self {
        let Cluster { model, .. } = cluster;
        let concerning = |(_, guard): &(usize, &Guard)| guard.subjects.hold(model, name, workload);
        Self {
            namespace: name.namespace.clone(),
            services: workload.services.clone(),
            policies: workload.policies.clone(),
            frontends: workload.frontends.clone(),
            resolver: workload.addresses().any(|address| model.resolvers.contains(&address)),
            ports: Arc::clone(&workload.ports),
            guards: model.guards.iter().enumerate().filter(concerning).map(|(at, _)| at).collect(),
        }
    }
}

/// One kind, and what it uses.
#[derive(Debug, Default)]
pub(super) struct Kind {
    pub(super) users: BTreeSet<WorkloadName>,
    pub(super) views: Vec<View>,
    pub(super) watches: BTreeSet<Watch>,
    selectors: BTreeSet<SelectorId>,
    rules: BTreeSet<RuleId>,
    /// One for each use.
    sets: Vec<SetId>,
}

/// The rules do not fit the tables.
#[derive(Debug)]
pub(super) struct Refused;

/// All that kinds use, with ids that stay.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    pub(super) selectors: Registry<Selector>,
    pub(super) rules: Registry<desired::Rule>,
    pub(super) sets: Registry<PolicySet>,
    pub(super) watches: Watches,
}

/// What became new and what is gone; nothing is both.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    pub(super) new_selectors: Vec<SelectorId>,
    pub(super) gone_selectors: Vec<(SelectorId, Arc<Selector>)>,
    pub(super) rules: Vec<RuleId>,
    pub(super) sets: Vec<SetId>,
}

impl Ids for Symbols {
    fn selector(&self, selector: &Selector) -> SelectorId {
        SelectorId(self.selectors.id(selector).unwrap_or(u32::MAX))
    }

    fn rule(&self, rule: &desired::Rule) -> RuleId {
        RuleId(self.rules.id(rule).unwrap_or(u32::MAX))
    }
}

impl Symbols {
    /// Compiles a kind by the example of one workload. It has no users yet.
    pub(super) fn kind(
        &mut self,
        cluster: &Cluster,
        (name, workload): (&WorkloadName, &Workload),
        turnover: &mut Turnover,
    ) -> Result<Kind, Refused> {
        let mut kind = Kind { watches: watched(cluster, name, workload), ..Kind::default() };
        kind.watches.iter().for_each(|watch| self.watches.acquire(&cluster.model, watch));
        let mut found = Diagnostics::default();
        let subject = Subject { model: &cluster.model, name, workload, now: cluster.now, listening: &self.watches };
        let phases = phases(subject, &mut found);
        for draft in phases.iter().flat_map(|phase| &phase.drafts) {
            self.symbols(draft, &mut kind, turnover);
        }
        let mut fits = found.0.is_empty();
        for phase in &phases {
            let [ingress, egress] = phase.drafts.each_ref().map(|draft| {
                let set = policy_set(draft, self);
                let subject =
                    Subject { model: &cluster.model, name, workload, now: cluster.now, listening: &self.watches };
                fits &= too_long(subject, &set, draft).is_none();
                let (id, new) = self.sets.acquire(&set);
                if new {
                    turnover.sets.push(SetId(id));
                }
                kind.sets.push(SetId(id));
                SetId(id)
            });
            follow(&mut kind.views, View { ingress, egress, until: phase.until });
        }
        if fits && kind.views.len() <= VIEW_CHAIN as usize {
            return Ok(kind);
        }
        self.release(&kind, turnover);
        Err(Refused)
    }

    fn symbols(&mut self, draft: &Draft, kind: &mut Kind, turnover: &mut Turnover) {
        for line in draft.steps.iter().flat_map(|step| &step.lines) {
            let (id, new) = self.rules.acquire_once(&line.rule, |id| kind.rules.insert(RuleId(id)));
            turnover.rules.extend(new.then_some(RuleId(id)));
            let Some(selector) = &line.selector else { continue };
            let (id, new) = self.selectors.acquire_once(selector, |id| kind.selectors.insert(SelectorId(id)));
            turnover.new_selectors.extend(new.then_some(SelectorId(id)));
        }
    }

    /// Nobody is of this kind any more.
    pub(super) fn release(&mut self, kind: &Kind, turnover: &mut Turnover) {
        kind.watches.iter().for_each(|watch| self.watches.release(watch));
        for &id in &kind.sets {
            turnover.sets.extend(self.sets.release(id.0).map(|_| id));
        }
        for &id in &kind.rules {
            turnover.rules.extend(self.rules.release(id.0).map(|_| id));
        }
        for &id in &kind.selectors {
            turnover.gone_selectors.extend(self.selectors.release(id.0).map(|selector| (id, selector)));
        }
    }
}

/// Whose ports by name the egress rules of a workload are about.
fn watched(cluster: &Cluster, name: &WorkloadName, workload: &Workload) -> BTreeSet<Watch> {
    let Cluster { model, .. } = cluster;
    let mut watches = BTreeSet::new();
    let mut watch = |peer: &dyn Fn() -> Option<Peer>, ports: &Ports| {
        let Ports::Named { name: port, transport } = ports else { return };
        let watch = |peer| Watch { peer, port: port.clone(), transport: *transport };
        watches.extend(peer().map(watch));
    };
    for rule in model.rules_of(workload, Direction::Egress) {
        watch(&|| Some(Peer::clone(&rule.peer)), &rule.ports);
    }
    for guard in model.guards.iter().filter(|guard| guard.subjects.hold(model, name, workload)) {
        for rule in guard.rules.iter().filter(|rule| rule.direction == Direction::Egress) {
            rule.ports.iter().for_each(|ports| watch(&|| guard.peer(rule, model, &name.namespace), ports));
        }
    }
    watches
}
