//! What single walls say. Each is compiled for itself ([`crate::compile::Walls`]) and asked of the programs' own code by [`Judge`]; the model is
//! read to say who wrote the rule that the tables name. Whoever tells why ([`crate::explain`], [`crate::lint`]) asks here, so that no story is told
//! that the tables do not know.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    rc::Rc,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{self, Desired, Peers, PolicySet, RuleId, SelectorId, SetId},
    node::NodeError,
    publish::{Answer, Judge},
};
use bulkhead_ebpf::abi::{Action, Class, Direction};

use crate::{
    compile::{self, Met, NODE_REACHES, NOT_ISOLATED, Surroundings, isolated},
    diagnostic::{Diagnostic, Diagnostics, Place},
    guard::{self, Guard},
    model::{Isolation, Model, Rule, Workload},
    ports::Stretch,
    workloads::WorkloadName,
};

/// Compiles walls when they are asked about, each once.
#[derive(Debug)]
pub(crate) struct Judges<'a> {
    model: &'a Model,
    surroundings: RefCell<HashMap<Arc<str>, Rc<Surroundings>>>,
    /// By workload, and by the next end of a rule: until then nothing changes.
    walls: RefCell<HashMap<(WorkloadName, Option<u64>), Rc<Walls>>>,
}

/// The walls of a workload at one time, ready to be asked.
#[derive(Debug)]
pub(crate) struct Walls {
    pub(crate) compiled: compile::Walls,
    surroundings: Rc<Surroundings>,
    judge: RefCell<Judge>,
    /// The same where each pass from a tier on allows instead, so that it shows who passes.
    stopping: BTreeMap<u8, RefCell<Judge>>,
    /// Tiers that rules leave.
    passing: BTreeMap<(SetId, RuleId), u8>,
    /// What was asked: the same all over an interval of a set.
    asked: RefCell<HashMap<Asked, Ruling>>,
}

/// Set, class, number of the interval, row, and whether as if what is audited were enforced.
type Asked = (SetId, Class, usize, BTreeSet<SelectorId>, bool);

/// What a wall says of somebody at a point.
#[derive(Clone, Debug)]
pub(crate) struct Ruling {
    /// It passes.
    pub(crate) allow: bool,
    /// The rule that says so, an index of [`Desired::rules`].
    pub(crate) rule: Option<RuleId>,
    /// Rules that passed it on before.
    pub(crate) passed: Vec<RuleId>,
}

impl<'a> Judges<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        Self { model, surroundings: RefCell::default(), walls: RefCell::default() }
    }

    /// The model.
    pub(crate) const fn model(&self) -> &'a Model {
        self.model
    }

    /// The walls of a workload by the rules that hold at `now`.
    ///
    /// # Errors
    /// Policies that do not fit the tables.
    pub(crate) fn walls(&self, name: &WorkloadName, workload: &Workload, now: u64) -> Result<Rc<Walls>, Diagnostics> {
        let concerning = self.model.guards.iter().filter(|guard| guard.subjects.hold(self.model, name, workload));
        let ends = concerning.flat_map(|guard| &guard.rules).filter_map(|rule| rule.expires);
        let key = (name.clone(), ends.filter(|&end| end > now).min());
        if let Some(known) = self.walls.borrow().get(&key) {
            return Ok(Rc::clone(known));
        }
        let walls = self.lower(name, workload, compile::Walls::new(self.model, name, workload, now)?)?;
        self.walls.borrow_mut().insert(key, Rc::clone(&walls));
        Ok(walls)
    }

    /// Makes compiled walls ready to be asked.
    ///
    /// # Errors
    /// Policies that do not fit the tables.
    pub(crate) fn lower(
        &self,
        name: &WorkloadName,
        workload: &Workload,
        compiled: compile::Walls,
    ) -> Result<Rc<Walls>, Diagnostics> {
        let new = || Rc::new(Surroundings::new(self.model, &workload.node));
        let surroundings =
            Rc::clone(self.surroundings.borrow_mut().entry(Arc::clone(&workload.node)).or_insert_with(new));
        let walls = Walls::new(compiled, surroundings);
        let walls = walls.map_err(|error| Diagnostic::error(&workload.place, format!("workload `{name}`: {error}")));
        Ok(Rc::new(walls?))
    }
}

impl Walls {
    fn new(compiled: compile::Walls, surroundings: Rc<Surroundings>) -> Result<Self, NodeError> {
        let desired = &compiled.desired;
        let mut passing = BTreeMap::new();
        for (set, id) in desired.sets.iter().zip((0..).map(SetId)) {
            let entries = set.classes.iter().flatten().flat_map(|interval| &interval.entries);
            for entry in entries.filter(|entry| entry.action == Action::Pass) {
                match &entry.peers {
                    Peers::Any(rule) => _ = passing.insert((id, *rule), entry.tier),
                    Peers::Selectors(some) => passing.extend(some.iter().map(|(_, rule)| ((id, *rule), entry.tier))),
                }
            }
        }
        let tiers: BTreeSet<u8> = passing.values().flat_map(|tier| [0, tier + 1]).collect();
        let stopping = tiers.into_iter().map(|tier| Ok((tier, RefCell::new(Judge::new(&stopping(desired, tier))?))));
        let stopping = stopping.collect::<Result<_, NodeError>>()?;
        let judge = RefCell::new(Judge::new(desired)?);
        Ok(Self { compiled, surroundings, judge, stopping, passing, asked: RefCell::default() })
    }

    /// Selectors that somebody matches.
    pub(crate) fn row(&self, model: &Model, met: Met<'_>) -> BTreeSet<SelectorId> {
        self.compiled.row(model, &self.surroundings, met)
    }

    /// What a wall says of a row at a point. With `would` as if what is audited were enforced.
    pub(crate) fn ask(
        &self,
        direction: Direction,
        (class, value): (Class, u16),
        row: &BTreeSet<SelectorId>,
        would: bool,
    ) -> Ruling {
        let set = compile::Walls::set(direction);
        let intervals = &self.compiled.desired.sets[set.0 as usize].classes[class as usize];
        let interval = intervals.partition_point(|interval| interval.start <= value);
        let mut asked = self.asked.borrow_mut();
        let ruling = || self.judge(set, (class, value), row, would);
        asked.entry((set, class, interval, row.clone(), would)).or_insert_with(ruling).clone()
    }

    fn judge(&self, set: SetId, (class, value): (Class, u16), row: &BTreeSet<SelectorId>, would: bool) -> Ruling {
        let ask = |judge: &RefCell<Judge>| {
            let row = judge.borrow_mut().row(row);
            judge.borrow().ask(set, class, value, row, would)
        };
        let Answer { allow, rule, .. } = ask(&self.judge);
        let mut passed = Vec::new();
        let mut next = self.stopping.get(&0);
        while let Some(rule) = next.and_then(|judge| ask(judge).rule)
            && let Some(tier) = self.passing.get(&(set, rule))
        {
            passed.push(rule);
            next = self.stopping.get(&(tier + 1));
        }
        Ruling { allow, rule, passed }
    }

    /// Stretches of all axes of which a wall says the same.
    pub(crate) fn stretches(&self, direction: Direction) -> impl Iterator<Item = Stretch> {
        let classes = Class::ALL.into_iter().zip(&self.compiled.desired.sets[direction as usize].classes);
        classes.flat_map(|(class, intervals)| {
            let ends = intervals.iter().skip(1).map(|next| next.start - 1).chain([u16::MAX]);
            intervals.iter().zip(ends).map(move |(interval, last)| Stretch { class, first: interval.start, last })
        })
    }

    /// A rule by its id.
    pub(crate) fn rule(&self, id: RuleId) -> &desired::Rule {
        &self.compiled.desired.rules[id.0 as usize]
    }
}

/// The same policy, but that every pass from a tier on allows.
fn stopping(desired: &Desired, tier: u8) -> Desired {
    let stopped = |set: &Arc<PolicySet>| {
        let mut set = PolicySet::clone(set);
        let entries = set.classes.iter_mut().flatten().flat_map(|interval| &mut interval.entries);
        for entry in entries.filter(|entry| entry.action == Action::Pass && entry.tier >= tier) {
            entry.action = Action::Allow;
        }
        Arc::new(set)
    };
    Desired { sets: desired.sets.iter().map(stopped).collect(), ..desired.clone() }
}

/// Who says what a wall does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says<'a> {
    /// A Guard.
    Guard(&'a Guard, &'a guard::Rule),
    /// An Intent or a `NetworkPolicy`.
    Rule(&'a Rule),
    /// Nobody let it through before.
    Isolated(Isolation<'a>, Direction),
    /// A node reaches what runs on it.
    Node,
    /// Nothing isolates the workload.
    Nobody,
}

impl<'a> Says<'a> {
    /// Who wrote a rule of a wall; `None` if the model has no such rule.
    pub(crate) fn of(
        model: &'a Model,
        workload: &'a Workload,
        direction: Direction,
        rule: &desired::Rule,
    ) -> Option<Self> {
        let desired::Rule { name, origin } = rule;
        let is = |own: &str, place: &Place| own == name && place.origin() == *origin;
        if origin.is_empty() {
            return match name.as_str() {
                NODE_REACHES => Some(Self::Node),
                NOT_ISOLATED => Some(Self::Nobody),
                _ => None,
            };
        }
        let mut guards = model.guards.iter().flat_map(|guard| guard.rules.iter().map(move |rule| (guard, rule)));
        if let Some((guard, rule)) = guards.find(|(_, rule)| rule.direction == direction && is(&rule.name, &rule.place))
        {
            return Some(Self::Guard(guard, rule));
        }
        if let Some(rule) = model.rules_of(workload, direction).find(|rule| is(&rule.named.name, &rule.place)) {
            return Some(Self::Rule(rule));
        }
        let mut isolations = model.isolations(workload, direction).into_iter();
        let by = isolations.find(|by| is(&isolated(*by, direction), by.place()))?;
        Some(Self::Isolated(by, direction))
    }

    /// Its name, where it is written as a rule.
    pub(crate) fn rule(self) -> Option<&'a str> {
        match self {
            Self::Guard(_, rule) => Some(&rule.name),
            Self::Rule(rule) => Some(&rule.named.name),
            Self::Isolated(..) | Self::Node | Self::Nobody => None,
        }
    }

    /// Where it is written, if it is.
    pub(crate) const fn place(self) -> Option<&'a Place> {
        match self {
            Self::Guard(_, rule) => Some(&rule.place),
            Self::Rule(rule) => Some(&rule.place),
            Self::Isolated(isolation, _) => Some(isolation.place()),
            Self::Node | Self::Nobody => None,
        }
    }
}

/// Name and place: `guard tenants: deny from other (guard.yaml:9)`.
impl fmt::Display for Says<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Isolated(isolation, direction) => f.write_str(&isolated(isolation, direction))?,
            Self::Node => f.write_str(NODE_REACHES)?,
            says => f.write_str(says.rule().unwrap_or(NOT_ISOLATED))?,
        }
        self.place().map_or(Ok(()), |place| write!(f, " ({})", place.origin()))
    }
}
