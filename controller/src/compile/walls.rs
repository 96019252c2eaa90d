//! The walls of one workload, compiled for it alone by the compiler's own code: what somebody asks of single connections needs no node's tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{self, Desired, Endpoint, PolicySet, RuleId, Segment, SelectorId, SetId, View},
    node::Discovered,
};
use bulkhead_ebpf::abi::{Action, Direction, Mode};

use super::{
    Ids,
    draft::{Draft, Everybody, LookedUp, Selector, Subject},
    network::{Underlay, endpoint_name},
    policy_set, too_long,
};
use crate::{
    diagnostic::Diagnostics,
    model::{Model, Peer, Workload},
    ports::Stretch,
    workloads::WorkloadName,
};

/// Somebody who is met at a wall.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Met<'a> {
    /// A workload by one of its addresses, or by none where none is known.
    Workload(&'a WorkloadName, &'a Workload, Option<IpAddr>),
    /// A node by its own address.
    Node(IpAddr),
    /// Whoever comes from outside with this address: with that of a node, what is masqueraded.
    Outside(IpAddr),
}

/// Where addresses lie, as the model says it and one node sees it.
#[derive(Debug)]
pub(crate) struct Surroundings(Underlay);

impl Surroundings {
    pub(crate) fn new(model: &Model, node: &str) -> Self {
        Self(Underlay::new(model, node, &Discovered::default()))
    }

    /// Whether a peer is somebody, as an endpoint in a segment meets it.
    pub(crate) fn is(&self, model: &Model, segment: Segment, peer: &Peer, met: Met<'_>) -> bool {
        let selector = Selector { peer: Arc::new(peer.clone()), port: None };
        self.matching(model, segment, [(SelectorId(0), &selector)].into_iter(), met).next().is_some()
    }

    fn matching<'s>(
        &'s self,
        model: &'s Model,
        segment: Segment,
        selectors: impl Iterator<Item = (SelectorId, &'s Selector)> + Clone + 's,
        met: Met<'s>,
    ) -> impl Iterator<Item = SelectorId> + 's {
        let nets = selectors.clone().flat_map(|(_, selector)| selector.nets().copied());
        let longest = match met {
            Met::Outside(address) => Some(self.0.longest(segment, address, nets)),
            Met::Workload(..) | Met::Node(_) => None,
        };
        let matches = move |selector: &Selector| match (met, longest) {
            (Met::Workload(name, workload, address), _) => {
                let holds = |address| selector.has_port(workload) && selector.holds(address);
                selector.has_member(model, name, workload) || address.is_some_and(holds)
            }
            (Met::Node(address), _) => selector.has_node(model, &self.0, address),
            (Met::Outside(_), longest) => longest.is_some_and(|net| selector.covers(model, &self.0, segment, net)),
        };
        selectors.filter(move |(_, selector)| matches(selector)).map(|(id, _)| id)
    }
}

/// What is judged at a wall, in the order of judgement; also what nobody reaches, which the sets leave out.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Which rule says it, an index of [`Desired::rules`].
    pub(crate) rule: RuleId,
    /// What a match does.
    pub(crate) action: Action,
    /// It is judged beside what is enforced.
    pub(crate) audit: bool,
    /// About whom; `None` for everyone.
    pub(crate) selector: Option<SelectorId>,
    /// On which ports.
    pub(crate) stretch: Stretch,
}

/// The two walls of a workload at one time.
#[derive(Debug)]
pub(crate) struct Walls {
    /// One endpoint and its two sets. Selectors have their ids in the order in which they are written, so that of several rules that do the same
    /// the first one decides.
    pub(crate) desired: Desired,
    /// Lines of each direction.
    pub(crate) lines: [Vec<Line>; 2],
    selectors: Vec<Selector>,
    segment: Segment,
}

impl Walls {
    /// Compiles them by the rules that hold at `now`, in nanoseconds of Unix time.
    ///
    /// # Errors
    /// Policies that do not fit the tables.
    pub(crate) fn new(model: &Model, name: &WorkloadName, workload: &Workload, now: u64) -> Result<Self, Diagnostics> {
        let mut found = Diagnostics::default();
        let subject = Subject { model, name, workload, now, listening: &Everybody, policies: &LookedUp };
        let drafts = [Direction::Ingress, Direction::Egress].map(|direction| subject.draft(direction, &mut found));
        let unreached = [Direction::Ingress, Direction::Egress].map(|direction| subject.unreached(direction));
        let written = Written::new(drafts.iter().chain(&unreached));
        let sets = drafts.each_ref().map(|draft| {
            let set = policy_set(draft, &written);
            found.0.extend(too_long(subject, &set, draft));
            set
        });
        let lines =
            [0, 1].map(|at| [&drafts[at], &unreached[at]].into_iter().flat_map(|of| written.lines(of)).collect());
        let segment = workload.endpoints.first().map(|endpoint| endpoint.segment).unwrap_or_default();
        let Written { selectors, rules, .. } = written;
        let desired = alone(endpoint(name, segment), sets, &selectors, rules);
        found.or(Self { desired, lines, selectors, segment })
    }

    /// Selectors that somebody matches: their bits are the row.
    pub(crate) fn row(&self, model: &Model, surroundings: &Surroundings, met: Met<'_>) -> BTreeSet<SelectorId> {
        surroundings.matching(model, self.segment, (0..).map(SelectorId).zip(&self.selectors), met).collect()
    }

    /// The set of a direction.
    pub(crate) const fn set(direction: Direction) -> SetId {
        SetId(direction as u32)
    }

    /// Whom a line is about.
    pub(crate) fn peer(&self, line: &Line) -> Option<&Peer> {
        line.selector.and_then(|id| self.selectors.get(id.0 as usize)).map(|selector| &*selector.peer)
    }

    /// What two walls share that judge alike.
    pub(crate) fn key(&self, direction: Direction) -> Vec<Key> {
        let of = |line: &Line| {
            let Stretch { class, first, last } = line.stretch;
            let selector = line.selector.and_then(|id| self.selectors.get(id.0 as usize)).cloned();
            let rule = self.desired.rules[line.rule.0 as usize].clone();
            Key { rule, selector, does: (line.action, line.audit), stretch: (class as u32, first, last) }
        };
        self.lines[direction as usize].iter().map(of).collect()
    }
}

/// A line without ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    rule: desired::Rule,
    selector: Option<Selector>,
    does: (Action, bool),
    stretch: (u32, u16, u16),
}

/// A node that has nothing but one endpoint.
fn alone(endpoint: Endpoint, sets: [PolicySet; 2], selectors: &[Selector], rules: Vec<desired::Rule>) -> Desired {
    Desired {
        selectors: selectors.iter().map(ToString::to_string).collect(),
        rules: rules.into(),
        sets: Vec::from(sets).into(),
        endpoints: vec![endpoint],
        ..Desired::default()
    }
}

fn endpoint(name: &WorkloadName, segment: Segment) -> Endpoint {
    let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(Walls::set);
    Endpoint {
        name: endpoint_name(name, 0),
        service: String::new(),
        link: String::new(),
        segment,
        addresses: Vec::new(),
        mode: Mode::Enforce,
        views: vec![View { ingress, egress, until: None }],
    }
}

/// Selectors and rules in the order in which drafts have them.
struct Written {
    selectors: Vec<Selector>,
    selector_ids: BTreeMap<Selector, SelectorId>,
    rules: Vec<desired::Rule>,
    rule_ids: BTreeMap<Arc<desired::Rule>, RuleId>,
}

impl Written {
    fn new<'a>(drafts: impl Iterator<Item = &'a Draft>) -> Self {
        let (selectors, rules) = (Vec::new(), Vec::new());
        let mut written = Self { selectors, selector_ids: BTreeMap::new(), rules, rule_ids: BTreeMap::new() };
        for (selector, rule) in drafts.flat_map(Draft::written) {
            if let Some(selector) = selector
                && !written.selector_ids.contains_key(selector)
            {
                let id = SelectorId(next(written.selectors.len()));
                written.selector_ids.insert(selector.clone(), id);
                written.selectors.push(selector.clone());
            }
            if !written.rule_ids.contains_key(rule) {
                written.rule_ids.insert(Arc::clone(rule), RuleId(next(written.rules.len())));
                written.rules.push(desired::Rule::clone(rule));
            }
        }
        written
    }

    fn lines(&self, draft: &Draft) -> Vec<Line> {
        let lines = draft.steps.iter().flat_map(|step| step.lines.iter().map(move |line| (step, line)));
        lines
            .filter_map(|(step, line)| {
                let (selector, rule) = line.written()?;
                Some(Line {
                    rule: self.rule(rule),
                    action: step.action,
                    audit: step.audit,
                    selector: selector.map(|selector| self.selector(selector)),
                    stretch: line.stretch,
                })
            })
            .collect()
    }
}

impl Ids for Written {
    fn selector(&self, selector: &Selector) -> SelectorId {
        self.selector_ids[selector]
    }

    fn rule(&self, rule: &desired::Rule) -> RuleId {
        self.rule_ids[rule]
    }
}

fn next(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
