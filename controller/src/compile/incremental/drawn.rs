//! Kubernetes policies, drawn once for all whom they select: what one says depends on nobody, unless it names ports.

use std::{collections::BTreeSet, mem};

use bulkhead_dataplane::desired::{self, RuleId, SelectorId};
use bulkhead_ebpf::abi::Direction;
use foldhash::HashMap;

use super::{
    super::draft::{Line, Policies, Said, Selector, Subject, plain_lines},
    kinds::Turnover,
    registry::Registry,
};
use crate::{
    model::{Model, PolicyName, Rule},
    network_policy::NetworkPolicy,
    ports::{Ports, Stretch},
};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// A policy as it was when it was drawn. One that says something else since has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct DrawnId(u32);

impl DrawnId {
    const fn at(self) -> usize {
        self.0 as usize
    }
}

/// What a policy says.
#[derive(Debug)]
struct Drawn {
    name: PolicyName,
    /// By direction.
    isolates: [bool; 2],
    /// By direction; `None` where ports are named, so that others decide what is said.
    lines: Option<[Box<[IdLine]>; 2]>,
    selectors: BTreeSet<SelectorId>,
    rules: BTreeSet<RuleId>,
}

/// A line, by ids.
#[derive(Clone, Copy, Debug)]
struct IdLine {
    stretch: Stretch,
    selector: Option<SelectorId>,
    rule: RuleId,
}

/// All that somebody of this node needs.
#[derive(Debug, Default)]
pub(super) struct Drawings {
    all: Vec<Option<Drawn>>,
    /// Kinds that use each.
    uses: Vec<usize>,
    free: Vec<DrawnId>,
    /// Those that say what the model says.
    current: HashMap<PolicyName, DrawnId>,
    /// Those that nobody uses yet.
    fresh: Vec<DrawnId>,
}

/// Those that the model does not say any more, if the event that changed it takes effect.
#[derive(Debug)]
pub(super) struct Outdated(HashMap<PolicyName, DrawnId>);

impl Drawings {
    /// A policy is about to say something else. Its drawing of before.
    pub(super) fn outdate(&mut self, name: &PolicyName) -> Outdated {
        Outdated(self.current.remove_entry(name).into_iter().collect())
    }

    /// All may.
    pub(super) fn outdate_all(&mut self) -> Outdated {
        Outdated(mem::take(&mut self.current))
    }

    /// They say what the model says after all.
    pub(super) fn restore(&mut self, Outdated(before): Outdated) {
        self.current.extend(before);
    }

    /// The policies that select somebody, in order: `before`, where nothing is other than before but `edited`.
    pub(super) fn of(
        &mut self,
        model: &Model,
        selecting: &[PolicyName],
        before: Option<(&[DrawnId], &PolicyName)>,
        symbols: &mut Named<'_>,
    ) -> Vec<DrawnId> {
        let Some((before, edited)) = before else {
            return selecting.iter().map(|name| self.draw(model, name, symbols)).collect();
        };
        let mut all = Vec::with_capacity(before.len() + 1);
        all.extend_from_slice(before);
        let place = all.binary_search_by(|id| self.get(*id).name.cmp(edited));
        let now = selecting.binary_search(edited).is_ok().then(|| self.draw(model, edited, symbols));
        match (place, now) {
            (Ok(at), Some(now)) => all[at] = now,
            (Ok(at), None) => _ = all.remove(at),
            (Err(at), Some(now)) => all.insert(at, now),
            (Err(_), None) => {}
        }
        all
    }

    fn draw(&mut self, model: &Model, name: &PolicyName, symbols: &mut Named<'_>) -> DrawnId {
        if let Some(id) = self.current.get(name) {
            return *id;
        }
        let isolates = |direction| model.network_policies.get(name).is_some_and(|policy| policy.isolates(direction));
        let rules = |direction| model.rules_of_policy(name, direction);
        let is_named = |rule: &Rule| matches!(rule.ports, Ports::Named { .. });
        let mut drawn = Drawn {
            name: name.clone(),
            isolates: DIRECTIONS.map(isolates),
            lines: None,
            selectors: BTreeSet::new(),
            rules: BTreeSet::new(),
        };
        if !DIRECTIONS.into_iter().flat_map(rules).any(is_named) {
            drawn.lines = Some(DIRECTIONS.map(|direction| {
                let mut lines = Vec::new();
                for rule in rules(direction) {
                    plain_lines(&rule.peer, &rule.ports, &rule.named, &mut lines);
                }
                let known = lines.iter().filter_map(|line| {
                    let (selector, rule) = line.written()?;
                    let selector = selector.map(|selector| symbols.selector(selector, |id| drawn.selectors.insert(id)));
                    let rule = symbols.rule(rule, |id| drawn.rules.insert(id));
                    Some(IdLine { stretch: line.stretch, selector, rule })
                });
                known.collect()
            }));
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.uses.push(0);
            DrawnId(u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX))
        });
        self.all[id.at()] = Some(drawn);
        self.current.insert(name.clone(), id);
        self.fresh.push(id);
        id
    }

    /// A drawing that some kind uses, or that is fresh. To go on without one would leave a wall out.
    fn get(&self, id: DrawnId) -> &Drawn {
        self.all[id.at()].as_ref().expect("who has the id uses the drawing")
    }

    /// A kind uses these.
    pub(super) fn acquire(&mut self, ids: &[DrawnId]) {
        ids.iter().for_each(|id| self.uses[id.at()] += 1);
    }

    /// It does so no more.
    pub(super) fn release(&mut self, ids: &[DrawnId], symbols: &mut Named<'_>) {
        for id in ids {
            self.uses[id.at()] -= 1;
            self.drop_unused(*id, symbols);
        }
    }

    /// A kind does not come to use these. What was drawn for it stays until it is swept.
    pub(super) fn abandon(&mut self, ids: &[DrawnId]) {
        ids.iter().for_each(|id| self.uses[id.at()] -= 1);
    }

    /// Of what was drawn since the last time, what nobody came to use goes.
    pub(super) fn sweep(&mut self, symbols: &mut Named<'_>) {
        for id in mem::take(&mut self.fresh) {
            self.drop_unused(id, symbols);
        }
    }

    fn drop_unused(&mut self, id: DrawnId, symbols: &mut Named<'_>) {
        if self.uses[id.at()] > 0 {
            return;
        }
        let Some(drawn) = self.all[id.at()].take() else { return };
        symbols.forget(&drawn.selectors, &drawn.rules);
        if self.current.get(&drawn.name) == Some(&id) {
            self.current.remove(&drawn.name);
        }
        self.free.push(id);
    }

    /// Policies of somebody whose ports have names.
    pub(super) fn named<'a>(&'a self, ids: &'a [DrawnId]) -> impl Iterator<Item = &'a PolicyName> {
        let drawn = ids.iter().map(|id| self.get(*id));
        drawn.filter(|drawn| drawn.lines.is_none()).map(|drawn| &drawn.name)
    }
}

/// Selectors and rules with ids, and what of them comes and goes.
pub(super) struct Named<'a> {
    pub(super) selectors: &'a mut Registry<Selector>,
    pub(super) rules: &'a mut Registry<desired::Rule>,
    pub(super) turnover: &'a mut Turnover,
}

impl Named<'_> {
    /// Id of a selector for one more user; `takes` as of [`Registry::acquire_once`].
    pub(super) fn selector(&mut self, selector: &Selector, takes: impl FnOnce(SelectorId) -> bool) -> SelectorId {
        let (id, new) = self.selectors.acquire_once(selector, |id| takes(SelectorId(id)));
        self.turnover.new_selectors.extend(new.then_some(SelectorId(id)));
        SelectorId(id)
    }

    /// The same of a rule.
    pub(super) fn rule(&mut self, rule: &desired::Rule, takes: impl FnOnce(RuleId) -> bool) -> RuleId {
        let (id, new) = self.rules.acquire_once(rule, |id| takes(RuleId(id)));
        self.turnover.rules.extend(new.then_some(RuleId(id)));
        RuleId(id)
    }

    /// One user less of each.
    pub(super) fn forget<'s>(
        &mut self,
        selectors: impl IntoIterator<Item = &'s SelectorId>,
        rules: impl IntoIterator<Item = &'s RuleId>,
    ) {
        for &id in rules {
            self.turnover.rules.extend(self.rules.release(id.0).map(|_| id));
        }
        for &id in selectors {
            let Some(selector) = self.selectors.release(id.0) else { continue };
            // What became new on the way to something that does not fit is neither new nor gone.
            match self.turnover.new_selectors.iter().position(|new| *new == id) {
                Some(at) => _ = self.turnover.new_selectors.remove(at),
                None => self.turnover.gone_selectors.push((id, selector)),
            }
        }
    }
}

/// The policies that select somebody, drawn.
pub(super) struct Selecting<'a> {
    pub(super) drawings: &'a Drawings,
    pub(super) ids: &'a [DrawnId],
}

impl Selecting<'_> {
    fn drawn(&self) -> impl Iterator<Item = &Drawn> {
        self.ids.iter().map(|id| self.drawings.get(*id))
    }
}

impl Policies for Selecting<'_> {
    fn isolating<'a>(&self, subject: Subject<'a>, direction: Direction) -> Option<&'a NetworkPolicy> {
        let first = self.drawn().find(|drawn| drawn.isolates[direction as usize])?;
        subject.model.network_policies.get(&first.name).map(AsRef::as_ref)
    }

    fn lines(&self, subject: Subject<'_>, direction: Direction, lines: &mut Vec<Line>) {
        lines.reserve(self.drawn().filter_map(|drawn| Some(drawn.lines.as_ref()?[direction as usize].len())).sum());
        for Drawn { name, lines: drawn, .. } in self.drawn() {
            match drawn {
                Some(drawn) => lines.extend(drawn[direction as usize].iter().map(|known| {
                    let IdLine { stretch, selector, rule } = *known;
                    Line { stretch, said: Said::Known(selector, rule) }
                })),
                None => subject.policy_lines(name, direction, lines),
            }
        }
    }
}
