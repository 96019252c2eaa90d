//! What one direction of a workload is judged by, before ids are given.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bulkhead_dataplane::{
    desired::{self, RuleId, SelectorId},
    node::direction_label,
};
use bulkhead_ebpf::{
    abi::{Action, Direction},
    reason::Reason,
};

use super::{DOES_NOT_FIT, NODE_REACHES, NOT_ISOLATED, OPEN, TIER, isolated};
use crate::{
    diagnostic::{Diagnostic, Diagnostics},
    guard::Tier,
    intent::Entity,
    model::{Isolation, Model, Peer, PolicyName, Workload},
    network_policy::NetworkPolicy,
    ports::{Ports, Stretch, Transport},
    workloads::WorkloadName,
};

/// A distinct peer expression. Its text is its identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Selector {
    pub(super) peer: Arc<Peer>,
    /// Of the peer's workloads only those whose port of this name has this number.
    pub(super) port: Option<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) transport: Transport,
    pub(super) number: u16,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)?;
        if let Some(NamedPort { name, transport, number }) = &self.port {
            write!(f, " with port {name}={number}/{transport}")?;
        }
        Ok(())
    }
}

/// One direction of a workload.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) direction: Direction,
    /// In order of judgement; the last one is for everyone.
    pub(super) steps: Vec<Step>,
    /// Something that is enforced may deny.
    pub(super) isolated: bool,
}

/// What does the same in one tier: its order does not matter.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Ascending, but for what passes on over several: it has the last one that it leaves.
    pub(super) tier: u8,
    pub(super) action: Action,
    pub(super) audit: bool,
    pub(super) reason: Reason,
    pub(super) lines: Vec<Line>,
}

/// A rule, resolved for the workload.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) stretch: Stretch,
    pub(super) said: Said,
}

/// Whom a line is about, `None` for everyone, and which rule says it.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Written(Option<Selector>, Arc<desired::Rule>),
    /// By the ids that they have already.
    Known(Option<SelectorId>, RuleId),
}

impl Line {
    /// What is said without ids.
    pub(super) const fn written(&self) -> Option<(Option<&Selector>, &Arc<desired::Rule>)> {
        match &self.said {
            Said::Written(selector, rule) => Some((selector.as_ref(), rule)),
            Said::Known(..) => None,
        }
    }
}

/// Kubernetes policies that select a workload.
pub(super) trait Policies {
    /// The first that isolates it in a direction.
    fn isolating<'a>(&self, subject: Subject<'a>, direction: Direction) -> Option<&'a NetworkPolicy>;

    /// Adds the lines of all, in order.
    fn lines(&self, subject: Subject<'_>, direction: Direction, lines: &mut Vec<Line>);
}

/// Looks all of them up.
pub(super) struct LookedUp;

impl Policies for LookedUp {
    fn isolating<'a>(&self, subject: Subject<'a>, direction: Direction) -> Option<&'a NetworkPolicy> {
        subject.model.policies_of(subject.workload).find(|policy| policy.isolates(direction))
    }

    fn lines(&self, subject: Subject<'_>, direction: Direction, lines: &mut Vec<Line>) {
        for name in &subject.workload.policies {
            subject.policy_lines(name, direction, lines);
        }
    }
}

/// Where those who match a peer listen by the name of a port.
pub(super) trait Listening {
    /// All such ports.
    fn ports(&self, model: &Model, peer: &Peer, name: &str, transport: Option<Transport>)
    -> BTreeSet<(Transport, u16)>;
}

/// Asks every workload.
pub(super) struct Everybody;

impl Listening for Everybody {
    fn ports(
        &self,
        model: &Model,
        peer: &Peer,
        name: &str,
        transport: Option<Transport>,
    ) -> BTreeSet<(Transport, u16)> {
        let listeners = model.workloads.iter().filter(|(member, workload)| model.matches(peer, member, workload));
        listeners.flat_map(|(_, workload)| workload.listens(name, transport)).collect()
    }
}

/// A workload at a time.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) model: &'a Model,
    pub(super) name: &'a WorkloadName,
    pub(super) workload: &'a Workload,
    pub(super) now: u64,
    pub(super) listening: &'a dyn Listening,
    pub(super) policies: &'a dyn Policies,
}

impl Subject<'_> {
    pub(super) fn draft(self, direction: Direction, found: &mut Diagnostics) -> Draft {
        let mut draft = Draft { direction, steps: Vec::new(), isolated: false };
        self.guards(Tier::Admin, &mut draft, found);
        if self.isolation(&mut draft) {
            return draft;
        }
        self.guards(Tier::Baseline, &mut draft, found);
        draft.steps.extend(self.open(direction).steps);
        draft
    }

    /// What holds where nothing isolates.
    pub(super) fn open(self, direction: Direction) -> Draft {
        let open = Arc::new(desired::Rule { name: NOT_ISOLATED.to_owned(), origin: String::new() });
        let lines = everyone(&open);
        let step = Step { tier: OPEN, action: Action::Allow, audit: false, reason: Reason::NotIsolated, lines };
        Draft { direction, steps: vec![step], isolated: false }
    }

    /// What holds where [`Self::draft`] does not fit: only its node reaches it, for health checks, and it reaches nobody.
    pub(super) fn shut(self, direction: Direction) -> Draft {
        let mut draft = Draft { direction, steps: Vec::new(), isolated: true };
        let step = |action, reason, lines| Step { tier: TIER, action, audit: false, reason, lines };
        draft.push(step(Action::Allow, Reason::Rule, self.node(direction)));
        let rest = Arc::new(desired::Rule { name: isolated(DOES_NOT_FIT, direction), origin: String::new() });
        draft.push(step(Action::Deny, Reason::Isolated, everyone(&rest)));
        draft
    }

    /// What is written behind what [`Self::draft`] ends with: nobody reaches it.
    pub(super) fn unreached(self, direction: Direction) -> Draft {
        let mut draft = Draft { direction, steps: Vec::new(), isolated: false };
        if self.model.isolating(self.workload, direction, false).is_some() {
            self.guards(Tier::Baseline, &mut draft, &mut Diagnostics::default());
        }
        draft
    }

    /// Ends that rules of Guards still have before them.
    pub(super) fn ends(self) -> BTreeSet<u64> {
        let guards = self.model.guards.iter().filter(|guard| guard.subjects.hold(self.model, self.name, self.workload));
        guards.flat_map(|guard| &guard.rules).filter_map(|rule| rule.expires).filter(|&end| end > self.now).collect()
    }

    /// Each Guard has a tier of its own, so that a `pass` leaves it and what is behind it is asked.
    fn guards(self, of: Tier, draft: &mut Draft, found: &mut Diagnostics) {
        let concerning = self.model.guards.iter().filter(|guard| {
            guard.tier == of
                && guard.subjects.hold(self.model, self.name, self.workload)
                && guard.rules(draft.direction, self.now).next().is_some()
        });
        let concerning: Vec<_> = concerning.collect();
        let (first, room) = match of {
            Tier::Admin => (0, TIER),
            Tier::Baseline => (TIER + 1, OPEN - TIER - 1),
        };
        if let Some(surplus) = concerning.get(usize::from(room)) {
            let message = format!(
                "{} Guards of one tier concern workload `{}` at {}, {room} fit",
                concerning.len(),
                self.name,
                direction_label(draft.direction)
            );
            found.push(Diagnostic::error(&surplus.place, message).help("put rules of several of them into one"));
            return;
        }
        for (tier, guard) in (first..).zip(concerning) {
            for rule in guard.rules(draft.direction, self.now) {
                let Some(peer) = guard.peer(rule, self.model, &self.name.namespace).map(Arc::new) else { continue };
                let named = Arc::new(desired::Rule { name: rule.name.clone(), origin: rule.place.origin() });
                let mut lines = Vec::new();
                rule.ports.iter().for_each(|ports| self.lines(draft.direction, &peer, ports, &named, &mut lines));
                let reason = if rule.action == Action::Deny { Reason::DeniedByRule } else { Reason::Rule };
                // Whom Kubernetes passes on, nobody else of this tier is asked about.
                let leaves = rule.action == Action::Pass && guard.passes_all();
                let tier = if leaves { first + (room - 1) } else { tier };
                draft.push(Step { tier, action: rule.action, audit: rule.audit, reason, lines });
            }
            draft.isolated |=
                guard.rules(draft.direction, self.now).any(|rule| rule.action == Action::Deny && !rule.audit);
        }
    }

    /// What Intents and Kubernetes policies say together. Whether nothing behind it can be reached.
    fn isolation(self, draft: &mut Draft) -> bool {
        let Self { model, workload, .. } = self;
        let direction = draft.direction;
        let step = |action, audit, reason, lines| Step { tier: TIER, action, audit, reason, lines };
        let mut services = model.isolating_services(workload);
        let first = services.next();
        let enforced = first.into_iter().chain(services).find(|service| !service.audit());
        let enforced = enforced.or_else(|| self.policies.isolating(self, direction).map(Isolation::Policy));
        let Some(first) = enforced.or(first) else { return false };
        // Where nothing is enforced all is reported only.
        let only_audit = first.audit();
        let (audited, enforced): (Vec<_>, Vec<_>) =
            model.rules_of_intents(workload, direction).partition(|rule| rule.audit || only_audit);
        for (audit, rules) in [(false, enforced), (true, audited)] {
            let mut lines: Vec<Line> = Vec::new();
            for rule in rules {
                self.lines(direction, &rule.peer, &rule.ports, &rule.named, &mut lines);
            }
            if !audit {
                // Those that select it are enforced, and isolate it.
                self.policies.lines(self, direction, &mut lines);
            }
            if only_audit == audit {
                lines.extend(self.node(direction));
            }
            draft.push(step(Action::Allow, audit, Reason::Rule, lines));
        }
        let rest = Arc::new(desired::Rule { name: isolated(first, direction), origin: first.place().origin() });
        draft.push(step(Action::Deny, only_audit, Reason::Isolated, everyone(&rest)));
        draft.isolated |= !only_audit;
        !only_audit
    }

    /// What lets a node reach the workload, whoever isolates it.
    fn node(self, direction: Direction) -> Vec<Line> {
        let mut lines = Vec::new();
        if direction == Direction::Ingress {
            let rule = Arc::new(desired::Rule { name: NODE_REACHES.to_owned(), origin: String::new() });
            self.lines(direction, &Arc::new(Peer::Entity(Entity::Node)), &Ports::Any, &rule, &mut lines);
        }
        lines
    }

    /// Adds what the rules of a Kubernetes policy are for the workload.
    pub(super) fn policy_lines(self, name: &PolicyName, direction: Direction, lines: &mut Vec<Line>) {
        for rule in self.model.rules_of_policy(name, direction) {
            self.lines(direction, &rule.peer, &rule.ports, &rule.named, lines);
        }
    }

    /// Adds what a rule is for the workload: its ports are those of the side that listens.
    fn lines(
        self,
        direction: Direction,
        peer: &Arc<Peer>,
        ports: &Ports,
        rule: &Arc<desired::Rule>,
        lines: &mut Vec<Line>,
    ) {
        let Self { model, workload, .. } = self;
        match (ports, direction) {
            (Ports::Named { name, transport }, Direction::Ingress) => {
                let own = workload.listens(name, *transport);
                lines.extend(own.map(|(transport, number)| line(one(transport, number), peer, None, rule)));
            }
            (Ports::Named { name, transport }, Direction::Egress) => {
                let listening = self.listening.ports(model, peer, name, *transport);
                let port = |(transport, number)| {
                    line(one(transport, number), peer, Some(NamedPort { name: name.clone(), transport, number }), rule)
                };
                lines.extend(listening.into_iter().map(port));
            }
            (ports, _) => plain_lines(peer, ports, rule, lines),
        }
    }
}

/// Adds what a rule about ports by number is, for everybody and in either direction.
pub(super) fn plain_lines(peer: &Arc<Peer>, ports: &Ports, rule: &Arc<desired::Rule>, lines: &mut Vec<Line>) {
    lines.extend(ports.stretches().into_iter().map(|stretch| line(stretch, peer, None, rule)));
}

fn line(stretch: Stretch, peer: &Arc<Peer>, port: Option<NamedPort>, rule: &Arc<desired::Rule>) -> Line {
    let everyone = **peer == Peer::Any && port.is_none();
    let selector = (!everyone).then(|| Selector { peer: Arc::clone(peer), port });
    Line { stretch, said: Said::Written(selector, Arc::clone(rule)) }
}

impl Draft {
    /// What its lines say without ids.
    pub(super) fn written(&self) -> impl Iterator<Item = (Option<&Selector>, &Arc<desired::Rule>)> {
        self.steps.iter().flat_map(|step| &step.lines).filter_map(Line::written)
    }

    /// Adds to the last step what does the same there.
    fn push(&mut self, step: Step) {
        let does = |step: &Step| (step.tier, step.action, step.audit, step.reason);
        match self.steps.last_mut() {
            _ if step.lines.is_empty() => {}
            Some(last) if does(last) == does(&step) => last.lines.extend(step.lines),
            _ => self.steps.push(step),
        }
    }
}

fn everyone(rule: &Arc<desired::Rule>) -> Vec<Line> {
    let stretches = Ports::Any.stretches().into_iter();
    stretches.map(|stretch| Line { stretch, said: Said::Written(None, Arc::clone(rule)) }).collect()
}

fn one(transport: Transport, number: u16) -> Stretch {
    Stretch { class: transport.class(), first: number, last: number }
}
