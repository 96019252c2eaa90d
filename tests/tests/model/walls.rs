//! The walls of one node under test: a publisher, and programs that judge by what it wrote.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    node::{NodeError, Reading, Wire},
    publish::{Plan, Publisher},
    read,
    store::{Node, Store, Views},
};
use bulkhead_ebpf::{
    abi::{self, Direction, mark, node},
    reason::Reason,
};
use bulkhead_model::{
    Machine, Mode, Origin, Packet, Seen, Verdict, World,
    generate::{Event, GATEWAY, START, Scenario, Step, resolve},
    packet::{Body, Ip, Message, Neighbour, Transport, link_local},
    reason,
    world::EndpointId,
};
use bulkhead_tests::test_run::{Frame, Passed};
use tempfile::TempDir;

use crate::{compiled, frames};

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
    /// Runs `overlay_out`.
    fn leave(&mut self, vni: u32, frame: &Frame) -> Result<Passed, String>;
}

pub(crate) struct Walls<P: Programs> {
    publisher: Publisher<P::Store>,
    programs: P,
    slots: BTreeMap<EndpointId, u32>,
    /// Modes that are not the default.
    modes: BTreeMap<EndpointId, Mode>,
    observe: bool,
    /// In force, as it was compiled.
    desired: Desired,
    /// State directory of the publisher.
    _directory: TempDir,
}

thread_local! {
    /// What the publisher of this thread takes for the wall clock: nanoseconds of Unix time.
    static CLOCK: Cell<u64> = const { Cell::new(START) };
}

fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(CLOCK.get())
}

/// Endpoint, direction and reason.
type Key = (EndpointId, &'static str, &'static str);
/// What was counted by each rule.
type Counted = BTreeMap<Key, BTreeMap<String, Sum>>;
/// What should have been. Of a verdict that may have one of several reasons each key holds it.
type Expected = BTreeMap<Key, Vec<Verdict>>;
/// How many verdicts that were, by endpoint and direction, and how many more there may be; those beside them apart.
type Totals = BTreeMap<(EndpointId, &'static str, bool), (u64, u64)>;

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
    totals: Totals,
}

impl<P: Programs> Walls<P> {
    pub(crate) fn new(store: P::Store, programs: P, directory: TempDir) -> Self {
        let mut publisher = Publisher::open(store, directory.path()).expect("empty tables");
        publisher.set_clock(clock);
        Self {
            publisher,
            programs,
            slots: BTreeMap::new(),
            modes: BTreeMap::new(),
            observe: false,
            desired: Desired::default(),
            _directory: directory,
        }
    }

    /// Publishes a world. Endpoints that are new to it have a link and no policy for a moment: then nothing but address
    /// resolution may pass.
    fn change(&mut self, machine: &mut Machine, world: &Arc<World>, run: &mut Run) -> Result<(), String> {
        CLOCK.set(machine.now());
        self.desired = compiled::desired(world, machine.now()).map_err(|error| format!("not compiled: {error}"))?;
        let local: BTreeSet<_> = world.local().collect();
        self.modes.retain(|id, _| local.contains(id));
        self.publish(machine, world, run)?;
        machine.change(Arc::clone(world));
        Ok(())
    }

    /// Publishes what was compiled, with modes as they are.
    fn publish(&mut self, machine: &Machine, world: &Arc<World>, run: &mut Run) -> Result<(), String> {
        let mut desired = self.desired.clone();
        desired.manner.observe = self.observe;
        for endpoint in &mut desired.endpoints {
            endpoint.mode = match self.modes.get(&id(&endpoint.name)).copied().unwrap_or_default() {
                Mode::Pending => abi::Mode::Pending,
                Mode::Enforce => abi::Mode::Enforce,
                Mode::Observe => abi::Mode::Observe,
                Mode::Quarantine => abi::Mode::Quarantine,
            };
        }
        let plan = self.prepare(world, &desired).map_err(|error| format!("not prepared: {error}"))?;
        let fresh: BTreeMap<_, _> =
            plan.attach.iter().filter(|attach| attach.new).map(|attach| (attach.slot, id(&attach.endpoint))).collect();
        let slots: Vec<_> = fresh.keys().copied().collect();
        self.slots = plan.attach.iter().map(|attach| (id(&attach.endpoint), attach.slot)).collect();

        self.programs.published(&slots);
        let mut pending = Machine::new(Arc::clone(world));
        pending.copy_switches(machine);
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
        Ok(())
    }

    /// As `bulkhead bypass` would.
    fn bypass(&mut self, left: Duration) -> Result<(), String> {
        let store = self.publisher.store_mut();
        let (jiffies, hz) = store.clock().map_err(|error| error.to_string())?;
        let until = if left.is_zero() { 0 } else { jiffies + left.as_secs() * hz + hz };
        store.put::<Node>(&[(node::BYPASS, until)]).map_err(|error| error.to_string())?;
        self.programs.published(&[]);
        Ok(())
    }

    /// Lets time pass with nobody there but the programs. The clock that they read cannot be moved, so what is written for
    /// them to compare it with comes nearer instead: every deadline in the tables. Nothing is published, and an agent that
    /// starts again finds what it would have found after that time.
    fn pass_time(&mut self, time: Duration) -> Result<(), NodeError> {
        let store = self.publisher.store_mut();
        let (_, hz) = store.clock()?;
        let jiffies = time.as_secs() * hz;
        let mut views = store.entries::<Views>()?;
        views.retain(|(_, view)| view.deadline != u64::MAX);
        for (_, view) in &mut views {
            view.deadline = view.deadline.saturating_sub(jiffies);
        }
        store.put::<Views>(&views)?;
        let bypass = store.get::<Node>(&node::BYPASS)?.unwrap_or_default();
        store.put::<Node>(&[(node::BYPASS, bypass.saturating_sub(jiffies))])?;
        self.publisher.reopen()?;
        self.programs.published(&[]);
        Ok(())
    }

    fn prepare(&mut self, world: &World, desired: &Desired) -> Result<Plan, NodeError> {
        self.publisher.prepare(desired, &mut |endpoint| {
            let mac = world.endpoint(&id(&endpoint.name)).expect("an endpoint of the world").1.mac;
            Ok(Wire::to(mac))
        })
    }

    fn counted(&self) -> Counted {
        let readings =
            read::counters(self.publisher.store(), self.publisher.names(), &mut read::Idle::default()).expect("tables");
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

    /// Reasons that the programs have counted an endpoint's packets under.
    pub(crate) fn reasons(&self, endpoint: &EndpointId, way: &str) -> BTreeSet<&'static str> {
        let counted = self.counted();
        let some = counted.iter().filter(|((id, label, _), rules)| {
            id == endpoint && *label == way && rules.values().any(|sum| sum.packets > 0)
        });
        some.map(|((_, _, reason), _)| *reason).collect()
    }

    /// Runs a scenario; an error says what the model thinks and what was seen. Returns how many verdicts were compared.
    pub(crate) fn check(&mut self, scenario: &Scenario) -> Result<usize, String> {
        let mut run = Run::default();
        let first = &scenario.worlds[0];
        // Nothing is remembered of the scenario before.
        let empty = Arc::new(World { workloads: Vec::new(), services: Vec::new(), ..World::clone(first) });
        let mut machine = Machine::new(Arc::clone(&empty));
        machine.set_now(START);
        (self.modes, self.observe) = (BTreeMap::new(), false);
        self.bypass(Duration::ZERO)?;
        let mut bypassed = START;
        self.change(&mut machine, &empty, &mut run)?;
        self.change(&mut machine, first, &mut run)?;
        for (nth, step) in scenario.steps.iter().enumerate() {
            match step {
                Step::Wait(time) => {
                    machine.set_now(machine.now() + u64::try_from(time.as_nanos()).expect("not for ever"));
                    CLOCK.set(machine.now());
                    if nth % 2 == 0 {
                        run.log.push(format!("wait {time:?}"));
                        self.pass_time(*time).map_err(|error| format!("{time:?} do not pass: {error}"))?;
                        continue;
                    }
                    // The wall clock steps, and the publisher learns of it.
                    run.log.push(format!("step the clock by {time:?}"));
                    let world = Arc::clone(machine.world());
                    self.publish(&machine, &world, &mut run)?;
                    self.bypass(Duration::from_nanos(bypassed.saturating_sub(machine.now())))?;
                }
                Step::Mode(which, mode) => {
                    let world = Arc::clone(machine.world());
                    let local: Vec<_> = world.local().collect();
                    if local.is_empty() {
                        continue;
                    }
                    let id = which.get(&local);
                    run.log.push(format!("{id:?} {mode:?}"));
                    machine.set_mode(id, *mode);
                    self.modes.insert(id.clone(), *mode);
                    self.publish(&machine, &world, &mut run)?;
                }
                Step::Observe(observe) => {
                    run.log.push(format!("node observes: {observe}"));
                    machine.set_observe(*observe);
                    self.observe = *observe;
                    let world = Arc::clone(machine.world());
                    self.publish(&machine, &world, &mut run)?;
                }
                Step::Bypass(time) => {
                    run.log.push(format!("bypass {time:?}"));
                    bypassed = machine.now() + u64::try_from(time.as_nanos()).expect("not for ever");
                    machine.set_bypass(bypassed);
                    self.bypass(*time)?;
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
        // What a counter counted is left out where it never did.
        counted.values_mut().for_each(|rules| rules.retain(|_, sum| sum.packets > 0));
        compare(&counted, &run.expected, &run.totals).map_err(|error| format!("{}\n{error}", run.log.join("\n")))?;
        Ok(usize::try_from(run.totals.values().map(|(least, _)| least).sum::<u64>()).expect("not that many"))
    }

    fn event(&mut self, machine: &mut Machine, event: &Event, run: &mut Run) -> Result<(), String> {
        match event {
            Event::Send(id, packet) => self.judge(machine, id, packet, None, 0, run).map(drop),
            Event::Deliver(id, packet, origin) => self.judge(machine, id, packet, Some(origin), 0, run).map(drop),
            Event::Translate(from, packet, to, translated) => {
                let Some(mark) = self.judge(machine, from, packet, None, 0, run)? else { return Ok(()) };
                if mark & mark::FINAL != 0 {
                    return self
                        .judge(machine, to, translated, Some(&Origin::Local(from.clone())), mark, run)
                        .map(drop);
                }
                // Two verdicts, one program after the other: the first one that drops it is the last.
                let left = machine.leave(from, translated);
                if left.allow {
                    run.expect(from, "egress", translated, &left);
                    self.judge(machine, to, translated, Some(&Origin::Local(from.clone())), mark, run).map(drop)
                } else {
                    let frame = Frame { bytes: frames::frame(translated), mark, transit: true };
                    let passed = self.programs.run(Direction::Ingress, self.slots[to], &frame)?;
                    run.compare(from, "egress", translated, &left, &passed)
                }
            }
            Event::Leave(from, packet, translated) => {
                let Some(mark) = self.judge(machine, from, packet, None, 0, run)? else { return Ok(()) };
                let segment = machine.world().endpoint(from).expect("an endpoint of the world").1.segment;
                let frame = Frame { bytes: frames::frame(translated), mark, transit: true };
                if mark & mark::FINAL != 0 {
                    return Ok(());
                }
                let passed = self.programs.leave(segment, &frame)?;
                let left = machine.leave(from, translated);
                run.compare(from, "egress", translated, &left, &passed)
            }
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
        let direction = if origin.is_none() { Direction::Egress } else { Direction::Ingress };
        let mark = if origin == Some(&Origin::Overlay) { mark::VERIFIED } else { mark };
        let frame = Frame { bytes: frames::frame(packet), mark, transit: origin != Some(&Origin::Node) };
        let passed = self.programs.run(direction, self.slots[id], &frame)?;
        // What passes because the endpoint only observes is no call to be judged again.
        machine.set_seen(match (direction, passed.reason) {
            (Direction::Egress, _) if passed.pass && passed.mark & mark::FINAL == 0 => Seen::Allowed,
            (Direction::Ingress, None) if passed.pass => Seen::Passed,
            (Direction::Ingress, Some(reason)) if passed.pass && reason != Reason::Observed => Seen::Allowed,
            _ => Seen::Refused,
        });
        let (label, verdict) = match origin {
            None => ("egress", machine.send(id, packet)),
            Some(origin) => ("ingress", machine.deliver(id, packet, origin)),
        };
        run.log.push(format!("from {origin:?}"));
        let provisional = verdict.provisional && verdict.allow && verdict.reason != reason::REPLY;
        run.compare(id, label, packet, &verdict, &passed)?;
        if passed.pass && direction == Direction::Egress && provisional == (passed.mark & mark::FINAL != 0) {
            return Err(format!("{}\nprovisional: {provisional}", run.log.join("\n")));
        }
        Ok(passed.pass.then_some(passed.mark))
    }
}

impl Run {
    fn compare(
        &mut self,
        id: &EndpointId,
        label: &'static str,
        packet: &Packet,
        verdict: &Verdict,
        passed: &Passed,
    ) -> Result<(), String> {
        self.log.push(format!(
            "{label} of {}/{}: {packet:?}\n  model: {verdict:?}\n  program: {passed:?}",
            id.namespace, id.workload
        ));
        // On a flow that is known the reason in hand is "a rule", whatever that was.
        let same = passed.reason.is_none_or(|seen| {
            seen.label() == verdict.reason
                || seen == Reason::Rule && verdict.reason == reason::NOT_ISOLATED
                || verdict.or.contains(seen.label())
        });
        if passed.pass != verdict.allow || !same {
            return Err(self.log.join("\n"));
        }
        self.expect(id, label, packet, verdict);
        Ok(())
    }

    /// Counts what must have been counted.
    fn expect(&mut self, id: &EndpointId, label: &'static str, packet: &Packet, verdict: &Verdict) {
        // What has no ports is no matter of lists, and has no second verdict.
        let listed = match &packet.body {
            Body::Ip(ip) => ip.fragment.is_none() && !matches!(ip.transport, Transport::Error { .. }),
            _ => false,
        };
        let later = verdict.provisional && verdict.allow;
        if let Some(would) = verdict.would.clone().filter(|_| listed && !later && verdict.reason != reason::OBSERVED) {
            let label_of_it = if would.allow { "would_allow" } else { "would_deny" };
            // What an endpoint may only have observed has none beside it.
            let unsure: BTreeSet<_> = verdict.or.iter().copied().filter(|or| *or == reason::OBSERVED).collect();
            let total = self.totals.entry((id.clone(), label, true)).or_default();
            *if unsure.is_empty() { &mut total.0 } else { &mut total.1 } += 1;
            let beside = Verdict { rules: BTreeSet::new(), or: unsure, allow: false, begins: false, ..verdict.clone() };
            self.expected.entry((id.clone(), label, label_of_it)).or_default().push(beside);
        }
        // Judged again after translation, and counted there.
        if later && verdict.reason != reason::REPLY {
            return;
        }
        self.totals.entry((id.clone(), label, false)).or_default().0 += 1;
        for reason in verdict.or.iter().copied().chain([verdict.reason]) {
            let mut verdict = verdict.clone();
            // Of what would have been dropped no rule counts, nor of what policy has no say in, nor of what lacks its flow.
            if [reason::OBSERVED, reason::NO_FLOW].contains(&reason) {
                verdict.rules.clear();
            }
            self.expected.entry((id.clone(), label, reason)).or_default().push(verdict);
        }
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

/// Whether the counters say what the model says: exactly by endpoint and direction; by reason and rule as far as the model
/// says which of several it was.
fn compare(counted: &Counted, expected: &Expected, totals: &Totals) -> Result<(), String> {
    let would = |reason: &str| reason.starts_with("would");
    for (key, (least, more)) in totals {
        let ours = counted.iter().filter(|((id, label, reason), _)| *key == (id.clone(), *label, would(reason)));
        let sum: u64 = ours.flat_map(|(_, rules)| rules.values()).map(|sum| sum.packets).sum();
        if !(least..=&(least + more)).contains(&&sum) {
            return Err(format!("{key:?}: {sum} packets are counted, {least} were judged, and perhaps {more} more"));
        }
    }
    for (key, wanted) in expected {
        let nothing = BTreeMap::new();
        let rules = counted.get(key).unwrap_or(&nothing);
        let fail = |why| Err(format!("{key:?}: {why}\n  model: {wanted:?}\n  counted: {rules:?}"));
        let sure = || wanted.iter().filter(|verdict| verdict.or.is_empty());
        let packets = sure().count() as u64..=wanted.len() as u64;
        if !packets.contains(&rules.values().map(|sum| sum.packets).sum::<u64>()) {
            return fail("not as many packets");
        }
        let begun = |verdict: &&Verdict| verdict.begins;
        let flows = sure().filter(begun).count() as u64..=wanted.iter().filter(begun).count() as u64;
        if wanted[0].allow && !would(key.2) && !flows.contains(&rules.values().map(|sum| sum.flows).sum::<u64>()) {
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
            let must = sure().filter(|sure| !sure.rules.is_empty() && sure.rules.is_subset(some)).count();
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
