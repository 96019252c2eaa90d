//! From the model to what one node shall enforce. Pure: the same model and the same network give the same [`Desired`].

mod cut;
mod draft;
mod incremental;
mod members;
mod network;
mod services;
mod walls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

pub use self::incremental::{Change, Compiler, Extent, Misfits, Moved};
pub(crate) use self::network::yield_to_nodes;
pub(crate) use self::walls::{Key, Met, Surroundings, Walls};

use bulkhead_dataplane::{
    desired::{self, Desired, Entry, Interval, Manner, Peers, PolicySet, RuleId, SelectorId, SetId, View},
    node::{Discovered, direction_label},
};
use bulkhead_ebpf::abi::{Action, Class, Direction, LIST_CHAIN, LIST_ENTRIES, SET_INTERVALS, VIEW_CHAIN};

use self::draft::{Draft, Everybody, LookedUp, Said, Selector, Step, Subject};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, suggest},
    model::{Isolation, Model, Workload},
    ports::Stretch,
    workloads::WorkloadName,
};

/// Tier of Intents and Kubernetes policies. Before and behind it each Guard that concerns a policy set has one.
pub const TIER: u8 = 200;
/// Tier of what nobody isolates.
const OPEN: u8 = u8::MAX;
/// Rule of what no policy isolates.
pub const NOT_ISOLATED: &str = "not isolated";
/// Rule by which a node reaches the workloads that run on it.
pub const NODE_REACHES: &str = "node may reach its workloads";

/// What isolates a workload whose rules do not fit the tables.
pub const DOES_NOT_FIT: &str = "rules do not fit,";

/// Compiles what the named node shall enforce. `discovered` is what that node's own network says; what ends before `now`, in nanoseconds of Unix
/// time, is left out, and what ends later has a view until then.
///
/// # Errors
/// An unknown node, an address of a workload that is a node's, policies that do not fit the tables.
pub fn compile(model: &Model, node: &str, discovered: &Discovered, now: u64) -> Result<Desired, Diagnostics> {
    let Some(own) = model.nodes.get(node) else {
        let error = Diagnostic::nowhere(format!("node `{node}` is not in the workloads file"));
        return Err(error.help(suggest(node, model.nodes.keys().map(String::as_str))).into());
    };
    let mut found = Diagnostics::default();
    let local =
        model.workloads.iter().filter(|(_, workload)| *workload.node == *node && !workload.endpoints.is_empty());
    let local: Vec<_> = local
        .map(|(name, workload)| {
            let subject = Subject { model, name, workload, now, listening: &Everybody, policies: &LookedUp };
            (subject, phases(subject, &mut found))
        })
        .collect();
    let names = Names::of(local.iter().flat_map(|(_, phases)| phases).flat_map(|phase| &phase.drafts));

    let mut sets: BTreeMap<PolicySet, usize> = BTreeMap::new();
    let mut chains = Vec::new();
    for (subject, phases) in &local {
        let mut views: Vec<View> = Vec::new();
        for phase in phases {
            let [ingress, egress] = phase.drafts.each_ref().map(|draft| {
                let set = policy_set(draft, &names);
                found.0.extend(too_long(*subject, &set, draft));
                let next = sets.len();
                *sets.entry(set).or_insert(next)
            });
            // Not an id yet; ids follow the content, not the order of workloads.
            let [ingress, egress] = [ingress, egress].map(|index| SetId(u32::try_from(index).unwrap_or(u32::MAX)));
            follow(&mut views, View { ingress, egress, until: phase.until });
        }
        if views.len() > VIEW_CHAIN as usize {
            let error = too_many_ends(*subject, views.len());
            // Of a Guard that concerns many workloads one says enough.
            if !found.0.iter().any(|other| other.place == error.place) {
                found.push(error);
            }
        }
        chains.push(views);
    }
    let network = network::Network::new(model, node, discovered, &names.selectors);
    let addresses = found.take(network.addresses());
    found.0.dedup();
    found.or(())?;

    let mut ids = vec![SetId(0); sets.len()];
    for (id, &index) in (0..).map(SetId).zip(sets.values()) {
        ids[index] = id;
    }
    let mut endpoints = Vec::new();
    for ((Subject { name, workload, .. }, _), mut views) in local.iter().zip(chains) {
        for set in views.iter_mut().flat_map(|view| [&mut view.ingress, &mut view.egress]) {
            *set = ids[set.0 as usize];
        }
        endpoints.extend(endpoints_of(name, workload, &views));
    }
    let prefixes = network.prefixes();
    Ok(Desired {
        selectors: names.selectors.iter().map(ToString::to_string).collect(),
        rules: names.rules.iter().cloned().collect(),
        sets: sets.into_keys().map(Arc::new).collect(),
        endpoints,
        addresses: addresses.unwrap_or_default(),
        prefixes,
        overlays: network::overlays(model, node, own, discovered),
        services: services::services(model, node, &network.underlay, &network.segments),
        manner: Manner::default(),
    })
}

/// Endpoints of a workload, each with the same views.
fn endpoints_of(name: &WorkloadName, workload: &Workload, views: &[View]) -> impl Iterator<Item = desired::Endpoint> {
    (0..).zip(&workload.endpoints).map(move |(index, endpoint)| desired::Endpoint {
        name: network::endpoint_name(name, index),
        service: workload.service.to_string(),
        link: endpoint.link.clone(),
        segment: endpoint.segment,
        addresses: endpoint.addresses.clone(),
        mode: workload.mode,
        views: views.to_vec(),
    })
}

/// Adds a view, or prolongs the one before if it is the same.
fn follow(views: &mut Vec<View>, view: View) {
    match views.last_mut() {
        Some(last) if (last.ingress, last.egress) == (view.ingress, view.egress) => last.until = view.until,
        _ => views.push(view),
    }
}

/// What a workload is judged by until a deadline.
struct Phase {
    drafts: [Draft; 2],
    until: Option<u64>,
}

impl Phase {
    /// The only one of a workload whose rules do not fit: shut in some directions, and open in those in which nothing could deny.
    fn shut(subject: Subject<'_>, directions: [bool; 2]) -> Self {
        let draft = |direction| match directions[direction as usize] {
            true => subject.shut(direction),
            false => subject.open(direction),
        };
        Self { drafts: [Direction::Ingress, Direction::Egress].map(draft), until: None }
    }
}

/// One phase until each end of a rule, and one after the last.
fn phases(subject: Subject<'_>, found: &mut Diagnostics) -> Vec<Phase> {
    let ends = subject.ends();
    let begins = std::iter::once(subject.now).chain(ends.iter().copied());
    let deadlines = ends.iter().copied().map(Some).chain([None]);
    let phase = |(now, until)| Phase {
        drafts: [Direction::Ingress, Direction::Egress]
            .map(|direction| Subject { now, ..subject }.draft(direction, found)),
        until,
    };
    begins.zip(deadlines).map(phase).collect()
}

/// Name of the rule that denies what no other allows.
#[must_use]
pub fn isolated(by: impl fmt::Display, direction: Direction) -> String {
    format!("{by} isolated {}", direction_label(direction))
}

/// Selectors and rules of a node in the order of their ids.
struct Names {
    selectors: Vec<Selector>,
    rules: Vec<desired::Rule>,
}

impl Names {
    fn of<'a>(drafts: impl Iterator<Item = &'a Draft>) -> Self {
        let (mut selectors, mut rules) = (BTreeMap::new(), BTreeSet::new());
        for (selector, rule) in drafts.flat_map(Draft::written) {
            rules.insert(&**rule);
            if let Some(selector) = selector {
                selectors.insert(selector.to_string(), selector.clone());
            }
        }
        let mut selectors: Vec<_> = selectors.into_values().collect();
        selectors.sort();
        Self { selectors, rules: rules.into_iter().cloned().collect() }
    }
}

/// Ids of selectors and rules.
trait Ids {
    fn selector(&self, selector: &Selector) -> SelectorId;
    fn rule(&self, rule: &desired::Rule) -> RuleId;
}

impl Ids for Names {
    fn selector(&self, selector: &Selector) -> SelectorId {
        SelectorId(id(self.selectors.binary_search(selector)))
    }

    fn rule(&self, rule: &desired::Rule) -> RuleId {
        RuleId(id(self.rules.binary_search(rule)))
    }
}

fn policy_set(draft: &Draft, ids: &dyn Ids) -> PolicySet {
    let lines = (0..).zip(&draft.steps).flat_map(|(at, step)| step.lines.iter().map(move |line| (at, line)));
    // There may be many, and how many such an iterator does not say.
    let mut stretches = Vec::with_capacity(draft.steps.iter().map(|step| step.lines.len()).sum());
    stretches.extend(lines.map(|(at, line)| match &line.said {
        Said::Written(selector, rule) => {
            let selector = selector.as_ref().map(|selector| ids.selector(selector));
            (line.stretch, (at, selector), ids.rule(rule))
        }
        Said::Known(selector, rule) => (line.stretch, (at, *selector), *rule),
    }));
    let interval = |(start, covering): (u16, Vec<_>)| Interval { start, entries: entries(&draft.steps, &covering) };
    PolicySet {
        direction: draft.direction,
        isolated: draft.isolated,
        classes: cut::cut(&stretches).map(|axis| axis.into_iter().map(interval).collect()),
    }
}

/// Entries of an interval; keys are a step and its selector, if it has one, in their order. What nobody reaches is left out.
fn entries(steps: &[Step], covering: &[((usize, Option<SelectorId>), RuleId)]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    // Tiers below are left by everyone who is not decided yet.
    let mut reached = 0;
    for of_step in covering.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
        let ((at, first), rule) = of_step[0];
        let step = &steps[at];
        if step.tier < reached {
            continue;
        }
        let Step { tier, action, audit, reason, .. } = *step;
        let selectors: Vec<_> =
            of_step.iter().filter_map(|((_, selector), rule)| Some(((*selector)?, *rule))).collect();
        if !selectors.is_empty() {
            entries.push(Entry { tier, action, audit, reason, peers: Peers::Selectors(selectors) });
        }
        // Everybody stands before all selectors.
        if first.is_none() {
            entries.push(Entry { tier, action, audit, reason, peers: Peers::Any(rule) });
            if audit {
                continue;
            }
            // Only those go on whom a `pass` let out of this tier, behind what it leaves.
            let passes = entries.iter().filter(|entry| entry.action == Action::Pass && entry.tier >= tier);
            match passes.map(|entry| entry.tier).min() {
                Some(left) => reached = left + 1,
                None => break,
            }
        }
    }
    entries
}

/// Both come from the same drafts: what is looked up is there.
fn id(found: Result<usize, usize>) -> u32 {
    u32::try_from(found.unwrap_or_else(|at| at)).unwrap_or(u32::MAX)
}

/// Ranges of ports that a message lists.
const MOST_SHOWN: usize = 12;
/// Entries of a list.
const MOST_ENTRIES: usize = LIST_ENTRIES * LIST_CHAIN as usize;

/// How much there is of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excess {
    /// Entries of the longest list.
    Entries(Class, usize),
    /// Intervals of the port table.
    Intervals(Class, usize),
}

impl Excess {
    /// What of a set does not fit the tables; the first, where that is more.
    fn of(set: &PolicySet) -> Option<Self> {
        let classes = || Class::ALL.into_iter().zip(&set.classes);
        let longest = |intervals: &[Interval]| intervals.iter().map(|interval| interval.entries.len()).max();
        let entries = classes().map(|(class, all)| Self::Entries(class, longest(all).unwrap_or_default()));
        let intervals = classes().map(|(class, all)| Self::Intervals(class, all.len()));
        entries.chain(intervals).find(|found| match *found {
            Self::Entries(_, entries) => entries > MOST_ENTRIES,
            Self::Intervals(_, intervals) => intervals > SET_INTERVALS,
        })
    }
}

/// What is wrong when the rules of a workload cut a class into more intervals than port tables have, or make a list too long.
fn too_long(subject: Subject<'_>, set: &PolicySet, draft: &Draft) -> Option<Diagnostic> {
    let excess = Excess::of(set)?;
    let Subject { model, name, workload, .. } = subject;
    let isolating = model.isolating(workload, set.direction, true);
    let place = isolating.map_or(&workload.place, Isolation::place);
    let name = isolating.map_or_else(|| format!("workload `{name}`"), |isolation| format!("`{isolation}`"));
    let direction = direction_label(set.direction);
    let (class, intervals) = match excess {
        Excess::Entries(class, entries) => {
            let message = format!(
                "the rules of {name} become {entries} entries of one list of {class:?} at {direction}, {MOST_ENTRIES} fit"
            );
            let help = "write rules of Guards that do the same one after the other: they become one entry";
            return Some(Diagnostic::error(place, message).help(help));
        }
        Excess::Intervals(class, intervals) => (class, intervals),
    };
    let (mut ranges, mut said): (Vec<String>, _) = (Vec::new(), BTreeSet::new());
    for line in draft.steps.iter().flat_map(|step| &step.lines).filter(|line| line.stretch.class == class) {
        let Stretch { first, last, .. } = line.stretch;
        if (first, last) == (0, u16::MAX) {
            continue;
        }
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let Some((_, rule)) = line.written() else { continue };
        if said.insert((first, last, &rule.origin)) {
            ranges.push(format!("{range} ({})", rule.origin));
        }
    }
    let more = match ranges.len().saturating_sub(MOST_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    ranges.truncate(MOST_SHOWN);
    let message = format!(
        "the rules of {name} cut {class:?} at {direction} into {intervals} intervals, {SET_INTERVALS} fit: {}{more}",
        ranges.join(", ")
    );
    Some(Diagnostic::error(place, message).help("write neighbouring ports as one range, or split the service"))
}

/// What is wrong when rules end at more times than a chain of views has.
fn too_many_ends(subject: Subject<'_>, views: usize) -> Diagnostic {
    let Subject { model, name, workload, now, .. } = subject;
    let rules: Vec<_> = model
        .guards
        .iter()
        .filter(|guard| guard.subjects.hold(model, name, workload))
        .flat_map(|guard| &guard.rules)
        .filter(|rule| rule.expires.is_some_and(|end| end > now))
        .collect();
    let listed: Vec<_> = rules.iter().map(|rule| format!("{} ({})", rule.name, rule.place.origin())).collect();
    let message = format!(
        "rules that concern workload `{name}` end at {} times, {} fit: {}",
        views - 1,
        VIEW_CHAIN - 1,
        listed.join(", ")
    );
    let place = rules.first().map_or(&workload.place, |rule| &rule.place);
    Diagnostic::error(place, message).help("let some of them end at the same time, and remove what has ended")
}
