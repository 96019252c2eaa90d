//! The walls of one node under test: a publisher, and programs that judge by what it wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    node::{NodeError, Reading},
    publish::Publisher,
    read,
    store::Store,
};
use bulkhead_ebpf::{
    abi::{Direction, mark},
    reason::Reason,
};
use bulkhead_model::{
    Machine, Origin, Packet, Verdict, World,
    generate::{Event, Scenario, Step, resolve},
    reason,
    world::EndpointId,
};

use crate::compiled;

/// A frame with what the kernel knows of it.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
    /// It came in by an interface.
    pub(crate) transit: bool,
}

/// What a program says.
pub(crate) struct Passed {
    pub(crate) pass: bool,
    /// The mark that it leaves.
    pub(crate) mark: u32,
    /// The reason, where it can be seen.
    pub(crate) reason: Option<Reason>,
}

/// Programs under test.
pub(crate) trait Programs {
    /// Their tables.
    type Store: Store;
    /// The tables have changed; `fresh` are slots with new owners.
    fn published(&mut self, fresh: &[u32]);
    /// Whether they can be run on that packet here.
    fn can_run(&self, packet: &Packet) -> bool;
    /// Runs `from_workload` or `to_workload`.
    fn run(&mut self, direction: Direction, slot: u32, frame: &Frame) -> Result<Passed, String>;
}

pub(crate) struct Walls<P: Programs> {
    publisher: Publisher<P::Store>,
    programs: P,
    slots: BTreeMap<EndpointId, u32>,
}

/// What was counted: by endpoint, direction, reason and rule.
type Counted = BTreeMap<(String, &'static str, &'static str, String), u64>;

impl<P: Programs> Walls<P> {
    pub(crate) fn new(store: P::Store, programs: P, directory: &Path) -> Self {
        let publisher = Publisher::open(store, directory).expect("empty tables");
        Self { publisher, programs, slots: BTreeMap::new() }
    }

    /// Publishes a world.
    fn apply(&mut self, world: &World) -> Result<(), String> {
        let desired = compiled::desired(world).map_err(|error| format!("not compiled: {error}"))?;
        self.publish(world, &desired).map_err(|error| format!("not published: {error}"))
    }

    fn publish(&mut self, world: &World, desired: &Desired) -> Result<(), NodeError> {
        let id = |name: &EndpointName| EndpointId {
            namespace: name.namespace.clone(),
            workload: name.workload.clone(),
            index: name.index as usize,
        };
        let plan = self.publisher.prepare(desired, &mut |endpoint| {
            Ok(world.endpoint(&id(&endpoint.name)).expect("an endpoint of the world").1.mac)
        })?;
        let fresh: Vec<_> = plan.attach.iter().filter(|attach| attach.new).map(|attach| attach.slot).collect();
        self.slots = plan.attach.iter().map(|attach| (id(&attach.endpoint), attach.slot)).collect();
        let removed = plan.removed.clone();
        self.publisher.commit(plan)?;
        self.publisher.release(&removed)?;
        self.programs.published(&fresh);
        Ok(())
    }

    fn counted(&self) -> Counted {
        let readings = read::counters(self.publisher.store(), self.publisher.names()).expect("tables");
        readings
            .into_iter()
            .map(|Reading { endpoint, direction, reason, rule, packets, .. }| {
                let endpoint =
                    endpoint.map_or_else(String::new, |e| format!("{}/{}#{}", e.namespace, e.workload, e.index));
                ((endpoint, direction, reason.label(), rule), packets)
            })
            .collect()
    }

    /// Runs a scenario; an error says what the model thinks and what was seen. Returns how many verdicts were compared.
    pub(crate) fn check(&mut self, scenario: &Scenario) -> Result<usize, String> {
        let first = &scenario.worlds[0];
        // Nothing is remembered of the scenario before.
        let mut machine = Machine::new(World { workloads: Vec::new(), ..World::clone(first) });
        self.apply(machine.world())?;
        let mut log = Vec::new();
        let before = self.counted();
        let mut expected: BTreeMap<(String, &'static str, &'static str), Vec<BTreeSet<String>>> = BTreeMap::new();
        let change = |walls: &mut Self, machine: &mut Machine, to: &Arc<World>| {
            walls.apply(to)?;
            machine.change(Arc::clone(to));
            Ok::<_, String>(())
        };
        change(self, &mut machine, first)?;
        for (nth, step) in scenario.steps.iter().enumerate() {
            match step {
                Step::Change(to) => {
                    log.push(format!("world {}", to.index(scenario.worlds.len())));
                    change(self, &mut machine, to.get(&scenario.worlds))?;
                }
                Step::Packet(conversation, what) => {
                    let world = Arc::clone(machine.world());
                    for event in resolve(&world, &scenario.conversations, nth, *conversation, *what) {
                        self.event(&mut machine, &event, &mut log, &mut expected)?;
                    }
                }
            }
        }
        let verdicts = expected.values().map(Vec::len).sum();
        compare(&before, &self.counted(), &expected).map_err(|error| format!("{}\n{error}", log.join("\n")))?;
        Ok(verdicts)
    }

    fn event(
        &mut self,
        machine: &mut Machine,
        event: &Event,
        log: &mut Vec<String>,
        expected: &mut BTreeMap<(String, &'static str, &'static str), Vec<BTreeSet<String>>>,
    ) -> Result<(), String> {
        let mut one = |walls: &mut Self,
                       machine: &mut Machine,
                       id: &EndpointId,
                       packet: &Packet,
                       origin: Option<&Origin>,
                       mark: u32| {
            if !walls.programs.can_run(packet) {
                return Ok((false, 0));
            }
            let (direction, verdict) = match origin {
                None => (Direction::Egress, machine.send(id, packet)),
                Some(origin) => (Direction::Ingress, machine.deliver(id, packet, origin)),
            };
            let mark = match origin {
                Some(Origin::Overlay) => mark::VERIFIED,
                _ => mark,
            };
            let frame = Frame { bytes: crate::frames::frame(packet), mark, transit: origin != Some(&Origin::Node) };
            let passed = walls.programs.run(direction, walls.slots[id], &frame)?;
            let label = if direction == Direction::Egress { "egress" } else { "ingress" };
            let Verdict { allow, reason, rules, .. } = verdict;
            log.push(format!(
                "{label} {}/{} {origin:?} {packet:?}: model {allow} {reason} {rules:?}, program {} {:?}",
                id.namespace, id.workload, passed.pass, passed.reason
            ));
            // On a flow that is known the reason in hand is "a rule", whatever that was.
            let same = passed
                .reason
                .is_none_or(|seen| seen.label() == reason || seen == Reason::Rule && reason == reason::NOT_ISOLATED);
            if passed.pass != allow || !same {
                return Err(log.join("\n"));
            }
            let endpoint = format!("{}/{}#{}", id.namespace, id.workload, id.index);
            expected.entry((endpoint, label, reason)).or_default().push(rules);
            Ok((allow, passed.mark))
        };
        match event {
            Event::Send(id, packet) => one(self, machine, id, packet, None, 0).map(drop),
            Event::Deliver(id, packet, origin) => one(self, machine, id, packet, Some(origin), 0).map(drop),
            Event::Cross(from, to, packet) => match one(self, machine, from, packet, None, 0)? {
                (true, mark) => one(self, machine, to, packet, Some(&Origin::Local(from.clone())), mark).map(drop),
                (false, _) => Ok(()),
            },
        }
    }
}

/// Whether the counters grew by what the model says: exactly by endpoint, direction and reason; by rule as far as the model
/// says which of several rules it was.
fn compare(
    before: &Counted,
    after: &Counted,
    expected: &BTreeMap<(String, &'static str, &'static str), Vec<BTreeSet<String>>>,
) -> Result<(), String> {
    let mut seen: BTreeMap<(String, &'static str, &'static str), BTreeMap<String, u64>> = BTreeMap::new();
    for (key, packets) in after {
        let grown = packets
            .checked_sub(before.get(key).copied().unwrap_or(0))
            .ok_or(format!("the counter of {key:?} went back"))?;
        if grown > 0 {
            let (endpoint, direction, reason, rule) = key.clone();
            let rule = rule.trim_end_matches(" ingress").trim_end_matches(" egress").to_owned();
            *seen.entry((endpoint, direction, reason)).or_default().entry(rule).or_default() += grown;
        }
    }
    for key in expected.keys().chain(seen.keys()).collect::<BTreeSet<_>>() {
        let none = (Vec::new(), BTreeMap::new());
        let wanted = expected.get(key).unwrap_or(&none.0);
        let counted = seen.get(key).unwrap_or(&none.1);
        let total: u64 = counted.values().sum();
        let fail = || Err(format!("{key:?}: model {wanted:?}, counted {counted:?}"));
        if total != wanted.len() as u64 {
            return fail();
        }
        for (rule, packets) in counted {
            // Each packet is counted by a rule that may have decided it, and none by two.
            let may = wanted.iter().filter(|rules| rules.is_empty() || rules.contains(rule)).count();
            if *packets > may as u64 {
                return fail();
            }
        }
        for rules in wanted.iter().filter(|rules| !rules.is_empty()) {
            let must = wanted.iter().filter(|other| !other.is_empty() && other.is_subset(rules)).count();
            let by: u64 = rules.iter().filter_map(|rule| counted.get(rule)).sum();
            if by < must as u64 {
                return fail();
            }
        }
    }
    Ok(())
}
