//! Workloads of this node by what their rules depend on: another one of a kind costs no draft.

use std::{collections::BTreeSet, sync::Arc};

use bulkhead_dataplane::desired::{self, PolicySet, RuleId, SelectorId, SetId, View};
use bulkhead_ebpf::abi::{Direction, VIEW_CHAIN};

use super::{
    super::{
        Excess, Ids, Phase,
        draft::{Draft, Selector, Subject},
        follow, phases, policy_set,
    },
    Cluster,
    drawn::{Drawings, DrawnId, Named, Selecting},
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
    /// In the order of their names.
    policies: Vec<DrawnId>,
    frontends: Few<ServiceName>,
    resolver: bool,
    ports: Arc<PortNames>,
    /// Guards that concern it.
    guards: Vec<usize>,
    /// Its rules do not fit; by direction whether it is shut.
    shut: Option<[bool; 2]>,
}

/// What a workload was before one of the policies of its namespace said something else; nothing else about it changed.
pub(super) type Before<'a> = Option<(&'a Key, &'a PolicyName)>;

/// One kind, and what it uses.
#[derive(Debug, Default)]
pub(super) struct Kind {
    pub(super) users: BTreeSet<WorkloadName>,
    pub(super) views: Vec<View>,
    pub(super) watches: BTreeSet<Watch>,
    /// Beside those of its policies.
    selectors: BTreeSet<SelectorId>,
    rules: BTreeSet<RuleId>,
    /// One for each use.
    sets: Vec<SetId>,
}

/// The rules do not fit the tables. By direction whether some that is enforced may deny.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refused(pub(super) [bool; 2]);

/// Workloads of this node whose rules need not fit the tables. Of one that does not, none holds: only its node reaches it, and it reaches nobody, but in a
/// direction in which nothing that is enforced could deny, which is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Misfits {
    /// Where some do not fit all is as it was.
    #[default]
    None,
    /// The same, but for these.
    These(BTreeSet<WorkloadName>),
    /// Whoever.
    Any,
}

impl Misfits {
    pub(super) fn include(&self, name: &WorkloadName) -> bool {
        match self {
            Self::None => false,
            Self::These(these) => these.contains(name),
            Self::Any => true,
        }
    }
}

impl Key {
    /// That of all that are shut in these directions, and open in the others: it depends on nothing else.
    pub(super) fn shut(directions: [bool; 2]) -> Self {
        Self {
            namespace: String::new(),
            services: Few::default(),
            policies: Vec::new(),
            frontends: Few::default(),
            resolver: false,
            ports: Arc::default(),
            guards: Vec::new(),
            shut: Some(directions),
        }
    }

    /// All such.
    pub(super) fn all_shut() -> impl Iterator<Item = Self> {
        [[false, false], [false, true], [true, false], [true, true]].into_iter().map(Self::shut)
    }

    pub(super) const fn is_shut(&self) -> bool {
        self.shut.is_some()
    }
}

/// All that kinds use, with ids that stay.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    pub(super) selectors: Registry<Selector>,
    pub(super) rules: Registry<desired::Rule>,
    pub(super) sets: Registry<PolicySet>,
    pub(super) watches: Watches,
    pub(super) drawings: Drawings,
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
    /// The kind of a workload. Draws policies that are not drawn yet.
    pub(super) fn key(
        &mut self,
        cluster: &Cluster,
        (name, workload): (&WorkloadName, &Workload),
        before: Before<'_>,
        turnover: &mut Turnover,
    ) -> Key {
        let Cluster { model, .. } = cluster;
        let concerning = |(_, guard): &(usize, &Guard)| guard.subjects.hold(model, name, workload);
        let (mut named, drawings) = self.named(turnover);
        let before = before.map(|(key, edited)| (key.policies.as_slice(), edited));
        Key {
            namespace: name.namespace.clone(),
            services: workload.services.clone(),
            policies: drawings.of(model, &workload.policies, before, &mut named),
            frontends: workload.frontends.clone(),
            resolver: workload.addresses().any(|address| model.resolvers.contains(&address)),
            ports: Arc::clone(&workload.ports),
            guards: model.guards.iter().enumerate().filter(concerning).map(|(at, _)| at).collect(),
            shut: None,
        }
    }

    fn named<'a>(&'a mut self, turnover: &'a mut Turnover) -> (Named<'a>, &'a mut Drawings) {
        let Self { selectors, rules, drawings, .. } = self;
        (Named { selectors, rules, turnover }, drawings)
    }

    /// Compiles a kind by the example of one workload. It has no users yet.
    pub(super) fn kind(
        &mut self,
        cluster: &Cluster,
        (name, workload): (&WorkloadName, &Workload),
        key: &Key,
        turnover: &mut Turnover,
    ) -> Result<Kind, Refused> {
        let watches = self.watched(cluster, (name, workload), key);
        let mut kind = Kind { watches, ..Kind::default() };
        kind.watches.iter().for_each(|watch| self.watches.acquire(&cluster.model, watch));
        self.drawings.acquire(&key.policies);
        let mut found = Diagnostics::default();
        let Cluster { model, now, .. } = cluster;
        let policies = Selecting { drawings: &self.drawings, ids: &key.policies };
        let subject = Subject { model, name, workload, now: *now, listening: &self.watches, policies: &policies };
        let phases = phases(subject, &mut found);
        if self.write(&phases, &mut kind, turnover) && found.0.is_empty() {
            return Ok(kind);
        }
        // Drawings stay until they are swept: who comes next may be of this kind too, and is known by them.
        self.release_symbols(&kind, turnover);
        self.drawings.abandon(&key.policies);
        // Where not all of it was drafted, something that was not may deny.
        let may_deny = |at: usize| !found.0.is_empty() || phases.iter().any(|phase| phase.drafts[at].isolated);
        Err(Refused([0, 1].map(may_deny)))
    }

    /// The kind of all that are shut in some directions, by the example of one.
    pub(super) fn shut_kind(
        &mut self,
        cluster: &Cluster,
        (name, workload): (&WorkloadName, &Workload),
        directions: [bool; 2],
        turnover: &mut Turnover,
    ) -> Kind {
        let Cluster { model, now, .. } = cluster;
        let policies = Selecting { drawings: &self.drawings, ids: &[] };
        let subject = Subject { model, name, workload, now: *now, listening: &self.watches, policies: &policies };
        let (phase, mut kind) = (Phase::shut(subject, directions), Kind::default());
        self.write(&[phase], &mut kind, turnover);
        kind
    }

    /// Adds what a kind is judged by. Whether it fits the tables.
    fn write(&mut self, phases: &[Phase], kind: &mut Kind, turnover: &mut Turnover) -> bool {
        for draft in phases.iter().flat_map(|phase| &phase.drafts) {
            self.symbols(draft, kind, turnover);
        }
        let mut fits = true;
        for phase in phases {
            let [ingress, egress] = phase.drafts.each_ref().map(|draft| {
                let set = policy_set(draft, self);
                fits &= Excess::of(&set).is_none();
                let (id, new) = self.sets.acquire(&set);
                if new {
                    turnover.sets.push(SetId(id));
                }
                kind.sets.push(SetId(id));
                SetId(id)
            });
            follow(&mut kind.views, View { ingress, egress, until: phase.until });
        }
        fits && kind.views.len() <= VIEW_CHAIN as usize
    }

    fn symbols(&mut self, draft: &Draft, kind: &mut Kind, turnover: &mut Turnover) {
        let (mut named, _) = self.named(turnover);
        for (selector, rule) in draft.written() {
            named.rule(rule, |id| kind.rules.insert(id));
            selector.into_iter().for_each(|selector| _ = named.selector(selector, |id| kind.selectors.insert(id)));
        }
    }

    /// Nobody is of this kind any more.
    pub(super) fn release(&mut self, key: &Key, kind: &Kind, turnover: &mut Turnover) {
        self.release_symbols(kind, turnover);
        let (mut named, drawings) = self.named(turnover);
        drawings.release(&key.policies, &mut named);
    }

    fn release_symbols(&mut self, kind: &Kind, turnover: &mut Turnover) {
        kind.watches.iter().for_each(|watch| self.watches.release(watch));
        for &id in &kind.sets {
            turnover.sets.extend(self.sets.release(id.0).map(|_| id));
        }
        self.named(turnover).0.forget(&kind.selectors, &kind.rules);
    }

    /// Policies that were drawn for nobody in the end are not.
    pub(super) fn sweep(&mut self, turnover: &mut Turnover) {
        let (mut named, drawings) = self.named(turnover);
        drawings.sweep(&mut named);
    }

    /// Whose ports by name the egress rules of a workload are about.
    fn watched(&self, cluster: &Cluster, (name, workload): (&WorkloadName, &Workload), key: &Key) -> BTreeSet<Watch> {
        let Cluster { model, .. } = cluster;
        let mut watches = BTreeSet::new();
        let mut watch = |peer: &dyn Fn() -> Option<Peer>, ports: &Ports| {
            let Ports::Named { name: port, transport } = ports else { return };
            let watch = |peer| Watch { peer, port: port.clone(), transport: *transport };
            watches.extend(peer().map(watch));
        };
        let policies = self.drawings.named(&key.policies);
        let policies = policies.flat_map(|policy| model.rules_of_policy(policy, Direction::Egress));
        for rule in model.rules_of_intents(workload, Direction::Egress).chain(policies) {
            watch(&|| Some(Peer::clone(&rule.peer)), &rule.ports);
        }
        for guard in model.guards.iter().filter(|guard| guard.subjects.hold(model, name, workload)) {
            for rule in guard.rules.iter().filter(|rule| rule.direction == Direction::Egress) {
                rule.ports.iter().for_each(|ports| watch(&|| guard.peer(rule, model, &name.namespace), ports));
            }
        }
        watches
    }
}
