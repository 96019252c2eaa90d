//! The walls of one node under test: a publisher, and programs that judge by what it wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    path::Path,
    sync::Arc,
};

use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    node::{NodeError, Reading},
    publish::{Plan, Publisher},
    read,
    store::Store,
};
use bulkhead_ebpf::{
    abi::{Direction, mark},
    reason::Reason,
};
use bulkhead_model::{
    Machine, Mode, Origin, Packet, Verdict, World,
    generate::{Event, GATEWAY, START, Scenario, Step, resolve},
    packet::{Body, Ip, Message, Neighbour, Transport, link_local},
    reason,
    world::EndpointId,
};

use crate::{compiled, frames};

/// A frame with what the kernel knows of it.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
    /// It came in by an interface.
    pub(crate) transit: bool,
}

/// What a program says.
#[derive(Debug)]
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

/// Endpoint, direction and reason.
type Key = (EndpointId, &'static str, &'static str);
/// What was counted by each rule.
type Counted = BTreeMap<Key, BTreeMap<String, Sum>>;
/// What should have been.
type Expected = BTreeMap<Key, Vec<Verdict>>;

#[derive(Debug, Default)]
struct Sum {
    packets: u64,
    flows: u64,
}

/// What has happened in a scenario.
#[derive(Default)]
struct Run {
    log: Vec<String>,
    expected: Expected,
}

impl<P: Programs> Walls<P> {
    pub(crate) fn new(store: P::Store, programs: P, directory: &Path) -> Self {
        let publisher = Publisher::open(store, directory).expect("empty tables");
        Self { publisher, programs, slots: BTreeMap::new() }
    }

    /// Publishes a world. Endpoints that are new to it have a link and no policy for a moment: then nothing but address
    /// resolution may pass.
    fn change(&mut self, machine: &mut Machine, world: &Arc<World>, run: &mut Run) -> Result<(), String> {
        let desired = compiled::desired(world).map_err(|error| format!("not compiled: {error}"))?;
        let plan = self.prepare(world, &desired).map_err(|error| format!("not prepared: {error}"))?;
        let fresh: BTreeMap<_, _> =
            plan.attach.iter().filter(|attach| attach.new).map(|attach| (attach.slot, id(&attach.endpoint))).collect();
        let slots: Vec<_> = fresh.keys().copied().collect();
        self.slots = plan.attach.iter().map(|attach| (id(&attach.endpoint), attach.slot)).collect();

        self.programs.published(&slots);
        let mut pending = Machine::new(Arc::clone(world));
        for id in fresh.values() {
            pending.set_mode(id, Mode::Pending);
            for event in greetings(world, id) {
                self.event(&mut pending, &event, run)?;
            }
        }

        let removed = plan.removed.clone();
        let done = self.publisher.commit(plan).and_then(|_| self.publisher.release(&removed));
        done.map_err(|error| format!("not published: {error}"))?;
        self.programs.published(&[]);
        machine.change(Arc::clone(world));
        Ok(())
    }

    fn prepare(&mut self, world: &World, desired: &Desired) -> Result<Plan, NodeError> {
        self.publisher.prepare(desired, &mut |endpoint| {
            Ok(world.endpoint(&id(&endpoint.name)).expect("an endpoint of the world").1.mac)
        })
    }

    fn counted(&self) -> Counted {
        let readings = read::counters(self.publisher.store(), self.publisher.names()).expect("tables");
        let readings = readings.into_iter().filter_map(|reading| {
            let Reading { endpoint, direction, reason, rule, packets, flows, .. } = reading;
            // Denials of one rule have the name of their direction as well, which the key has already.
            let rule = rule.trim_end_matches(" ingress").trim_end_matches(" egress").to_owned();
            Some(((id(&endpoint?), direction, reason.label()), (rule, packets, flows)))
        });
        let mut counted = Counted::new();
        for (key, (rule, packets, flows)) in readings {
            let sum = counted.entry(key).or_default().entry(rule).or_default();
            sum.packets += packets;
            sum.flows += flows;
        }
        counted
    }

    /// Runs a scenario; an error says what the model thinks and what was seen. Returns how many verdicts were compared.
    pub(crate) fn check(&mut self, scenario: &Scenario) -> Result<usize, String> {
        let mut run = Run::default();
        let first = &scenario.worlds[0];
        // Nothing is remembered of the scenario before.
        let empty = Arc::new(World { workloads: Vec::new(), ..World::clone(first) });
        let mut machine = Machine::new(Arc::clone(&empty));
        self.change(&mut machine, &empty, &mut run)?;
        // The same scenario has run before, in part, when a failure is made smaller.
        let before = self.counted();
        self.change(&mut machine, first, &mut run)?;
        machine.set_now(START);
        for (nth, step) in scenario.steps.iter().enumerate() {
            match step {
                Step::Wait(_) | Step::Mode(..) | Step::Observe(_) | Step::Bypass(_) => {
                    return Err(format!("the harness does not do this yet: {step:?}"));
                }
                Step::Change(to) => {
                    run.log.push(format!("world {}", to.index(scenario.worlds.len())));
                    self.change(&mut machine, to.get(&scenario.worlds), &mut run)?;
                }
                Step::Packet(conversation, what) => {
                    let world = Arc::clone(machine.world());
                    for event in resolve(&world, &scenario.conversations, nth, *conversation, *what) {
                        self.event(&mut machine, &event, &mut run)?;
                    }
                }
            }
        }
        let mut counted = self.counted();
        for (key, rules) in &mut counted {
            for (rule, sum) in rules.iter_mut() {
                let Some(before) = before.get(key).and_then(|rules| rules.get(rule)) else { continue };
                let grown = |now: u64, before: u64| now.checked_sub(before).ok_or(format!("{key:?} {rule}: went back"));
                *sum = Sum { packets: grown(sum.packets, before.packets)?, flows: grown(sum.flows, before.flows)? };
            }
            rules.retain(|_, sum| sum.packets > 0);
        }
        compare(&counted, &run.expected).map_err(|error| format!("{}\n{error}", run.log.join("\n")))?;
        Ok(run.expected.values().map(Vec::len).sum())
    }

    fn event(&mut self, machine: &mut Machine, event: &Event, run: &mut Run) -> Result<(), String> {
        match event {
            Event::Send(id, packet) => self.judge(machine, id, packet, None, 0, run).map(drop),
            Event::Deliver(id, packet, origin) => self.judge(machine, id, packet, Some(origin), 0, run).map(drop),
            Event::Translate(..) | Event::Leave(..) => Err("the harness translates nothing yet".to_owned()),
            Event::Cross(from, to, packet) => {
                let Some(mark) = self.judge(machine, from, packet, None, 0, run)? else { return Ok(()) };
                self.judge(machine, to, packet, Some(&Origin::Local(from.clone())), mark, run).map(drop)
            }
        }
    }

    /// One packet at one wall: sent, or delivered where there is an origin. The mark with which it goes on, if it does.
    fn judge(
        &mut self,
        machine: &mut Machine,
        id: &EndpointId,
        packet: &Packet,
        origin: Option<&Origin>,
        mark: u32,
        run: &mut Run,
    ) -> Result<Option<u32>, String> {
        if !self.programs.can_run(packet) {
            return Ok(None);
        }
        let (direction, label, verdict) = match origin {
            None => (Direction::Egress, "egress", machine.send(id, packet)),
            Some(origin) => (Direction::Ingress, "ingress", machine.deliver(id, packet, origin)),
        };
        let mark = if origin == Some(&Origin::Overlay) { mark::VERIFIED } else { mark };
        let frame = Frame { bytes: frames::frame(packet), mark, transit: origin != Some(&Origin::Node) };
        let passed = self.programs.run(direction, self.slots[id], &frame)?;
        run.log.push(format!(
            "{label} of {}/{}, from {origin:?}: {packet:?}\n  model: {verdict:?}\n  program: {passed:?}",
            id.namespace, id.workload
        ));
        // On a flow that is known the reason in hand is "a rule", whatever that was.
        let same = passed.reason.is_none_or(|seen| {
            seen.label() == verdict.reason || seen == Reason::Rule && verdict.reason == reason::NOT_ISOLATED
        });
        if passed.pass != verdict.allow || !same {
            return Err(run.log.join("\n"));
        }
        run.expected.entry((id.clone(), label, verdict.reason)).or_default().push(verdict);
        Ok(passed.pass.then_some(passed.mark))
    }
}

fn id(name: &EndpointName) -> EndpointId {
    EndpointId { namespace: name.namespace.clone(), workload: name.workload.clone(), index: name.index as usize }
}

/// What a workload sends first, and gets first: one packet, and one message that resolves an address.
fn greetings(world: &World, id: &EndpointId) -> Vec<Event> {
    let (_, endpoint) = world.endpoint(id).expect("an endpoint of the world");
    let near = endpoint.addresses[0];
    let far = *world.nodes[world.here].addresses.iter().find(|a| a.is_ipv4() == near.is_ipv4()).expect("both families");
    let ip = |source, destination, transport| {
        Body::Ip(Ip { source, destination, fragment: None, extended: false, transport })
    };
    let udp = Transport::Udp { source: 1, destination: 9 };
    let about = Message::RouterSolicitation;
    let solicitation = Transport::Neighbour(Neighbour { message: about, hop_limit: 255, mac: Some(endpoint.mac) });
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let sent = [ip(near, far, udp.clone()), ip(link_local(endpoint.mac).into(), routers.into(), solicitation)];
    let send = |body| Event::Send(id.clone(), Packet { from: endpoint.mac, to: GATEWAY, tagged: false, body });
    let got = Packet { from: GATEWAY, to: endpoint.mac, tagged: false, body: ip(far, near, udp) };
    sent.into_iter().map(send).chain([Event::Deliver(id.clone(), got, Origin::Node)]).collect()
}

/// Whether the counters say what the model says: exactly by endpoint, direction and reason; by rule as far as the model says
/// which of several rules it was.
fn compare(counted: &Counted, expected: &Expected) -> Result<(), String> {
    for (key, wanted) in expected {
        let nothing = BTreeMap::new();
        let rules = counted.get(key).unwrap_or(&nothing);
        let fail = |why| Err(format!("{key:?}: {why}\n  model: {wanted:?}\n  counted: {rules:?}"));
        if rules.values().map(|sum| sum.packets).sum::<u64>() != wanted.len() as u64 {
            return fail("not as many packets");
        }
        let begun = wanted.iter().filter(|verdict| verdict.begins).count() as u64;
        if wanted[0].allow && rules.values().map(|sum| sum.flows).sum::<u64>() != begun {
            return fail("not as many flows");
        }
        // Each packet is counted by one of the rules that may have decided it.
        let named: Vec<_> = wanted.iter().map(|verdict| &verdict.rules).collect();
        for (rule, sum) in rules {
            let may = named.iter().filter(|rules| rules.is_empty() || rules.contains(rule)).count();
            if sum.packets > may as u64 {
                return fail("more packets of a rule than it can have decided");
            }
        }
        for some in named.iter().filter(|rules| !rules.is_empty()) {
            let must = named.iter().filter(|rules| !rules.is_empty() && rules.is_subset(some)).count();
            if some.iter().filter_map(|rule| rules.get(rule)).map(|sum| sum.packets).sum::<u64>() < must as u64 {
                return fail("fewer packets of some rules than they must have decided");
            }
        }
    }
    // Endpoints have names of their own in each scenario, so what else is counted of them nobody expected.
    let ours: BTreeSet<_> = expected.keys().map(|(id, ..)| id).collect();
    match counted.iter().find(|(key, rules)| ours.contains(&key.0) && !rules.is_empty() && !expected.contains_key(*key))
    {
        Some((key, rules)) => Err(format!("{key:?}: unexpectedly counted {rules:?}")),
        None => Ok(()),
    }
}
