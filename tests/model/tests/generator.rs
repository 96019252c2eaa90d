//! What the generator makes is worth judging: a test that can only see denials proves nothing.

use std::{collections::BTreeMap, time::Duration};

use bulkhead_model::{
    Machine, Packet, Verdict, World, Would,
    generate::{Event, Features, START, Scenario, Step, resolve, scenario, worlds},
    packet::{Body, Transport},
    policy::{Action, Direction, Level, Ports, Want, Whom},
    reason,
    world::{Entity, Protocol, Workload},
    yaml,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

fn scenarios(features: Features, cases: usize) -> impl Iterator<Item = Scenario> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..cases).map(move |_| scenario(features, 100..120).new_tree(&mut runner).unwrap().current())
}

fn nanoseconds(time: &Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

/// All verdicts of a scenario.
fn verdicts(scenario: &Scenario) -> Vec<Verdict> {
    let mut machine = Machine::new(scenario.worlds[0].clone());
    machine.set_now(START);
    let mut seen = Vec::new();
    for (nth, step) in scenario.steps.iter().enumerate() {
        match step {
            Step::Change(to) => machine.change(to.get(&scenario.worlds).clone()),
            Step::Wait(time) => machine.set_now(machine.now() + nanoseconds(time)),
            Step::Mode(endpoint, mode) => {
                let local: Vec<_> = machine.world().local().collect();
                if !local.is_empty() {
                    machine.set_mode(endpoint.get(&local), *mode);
                }
            }
            Step::Observe(observe) => machine.set_observe(*observe),
            Step::Bypass(time) => machine.set_bypass(machine.now() + nanoseconds(time)),
            Step::Packet(conversation, what) => {
                for event in resolve(&machine.world().clone(), &scenario.conversations, nth, *conversation, *what) {
                    seen.extend(event.happen(&mut machine));
                }
            }
        }
    }
    seen
}

#[test]
fn half_is_allowed_and_every_reason_occurs() {
    let mut seen = BTreeMap::new();
    let (mut allowed, mut all) = (0, 0);
    for scenario in scenarios(Features::default(), 200) {
        for verdict in verdicts(&scenario) {
            *seen.entry(verdict.reason).or_insert(0) += 1;
            allowed += u32::from(verdict.allow);
            all += 1;
        }
    }
    eprintln!("{allowed} of {all} allowed: {seen:?}");
    assert!((35..65).contains(&(allowed * 100 / all)), "{allowed} of {all} allowed: {seen:?}");
    for reason in [
        reason::RULE,
        reason::NOT_ISOLATED,
        reason::REPLY,
        reason::RELATED,
        reason::RESOLUTION,
        reason::ISOLATED,
        reason::NO_FLOW,
        reason::REVOKED,
        reason::SPOOFED_MAC,
        reason::SPOOFED_SOURCE,
        reason::SPOOFED_RESOLUTION,
        reason::VLAN_TAG,
        reason::TUNNEL,
        reason::FRAGMENT,
        reason::MALFORMED,
        reason::NOT_IP,
        reason::NOT_FOR_US,
        reason::PLAIN_OVERLAY_SOURCE,
    ] {
        assert!(seen.contains_key(reason), "{reason} never occurred: {seen:?}");
    }
}

#[test]
fn guards_audits_and_deadlines_decide() {
    let features = Features { guards: true, audit: true, expiry: true, ..Features::default() };
    let (mut guarded, mut unguarded) = (0, 0);
    let (mut would, mut by_guard, mut allowed, mut all) = ([0; 2], [0; 2], 0, 0);
    for scenario in scenarios(features, 200) {
        let guards = |world: &World| world.policy.iter().any(|level| matches!(level, Level::Guard(_)));
        if scenario.worlds.iter().any(|world| guards(world)) {
            guarded += 1;
        } else {
            unguarded += 1;
        }
        for verdict in verdicts(&scenario) {
            if let Some(would_be) = &verdict.would {
                would[usize::from(would_be.allow)] += 1;
            }
            if verdict.rules.iter().any(|rule| rule.starts_with("guard ")) {
                by_guard[usize::from(verdict.allow)] += 1;
            }
            allowed += usize::from(verdict.allow);
            all += 1;
        }
    }
    let seen = format!(
        "{guarded} scenarios with Guards, {unguarded} without; would deny and allow: {would:?}; Guards deny and allow: \
         {by_guard:?}; {allowed} of {all} allowed"
    );
    eprintln!("{seen}");
    assert!(guarded > 100 && unguarded > 10, "{seen}");
    assert!(would[0] > all / 50 && would[1] > 20, "{seen}");
    assert!(by_guard.iter().all(|of| *of > all / 50), "{seen}");
    assert!((35..65).contains(&(allowed * 100 / all)), "{seen}");
}

/// Whether the workload is the service's: by the labels that the first document selects which declares it, else by its name.
fn member(world: &World, namespace: &str, name: &str, workload: &Workload) -> bool {
    let intents = world.policy.iter().flat_map(|level| match level {
        Level::Intents(intents) => intents.as_slice(),
        Level::Guard(_) => &[],
    });
    let declared = intents.filter(|intent| intent.namespace == namespace).find_map(|intent| intent.services.get(name));
    let by_name = || [(world.service_label.clone(), name.to_owned())].into();
    let labels = declared.and_then(|service| service.select.clone()).unwrap_or_else(by_name);
    workload.namespace == namespace && labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
}

/// A name that no listener has is a mistake to the product, and fails a scenario that was to be judged.
#[test]
fn guards_name_ports_that_somebody_has() {
    let features = Features { guards: true, ..Features::default() };
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    let mut named = BTreeMap::new();
    for world in (0..8_000).flat_map(|_| worlds(features).new_tree(&mut runner).unwrap().current()) {
        let guards = world.policy.iter().filter_map(|level| match level {
            Level::Guard(guard) => Some(guard),
            Level::Intents(_) => None,
        });
        for (guard, rule) in guards.flat_map(|guard| guard.rules.iter().map(move |rule| (guard, rule))) {
            for (whom, beside) in &rule.peers {
                for port in rule.ports.iter().chain(beside) {
                    let Ports::Named(port) = port else { continue };
                    let listeners: Vec<_> = world
                        .workloads
                        .iter()
                        .filter(|workload| match (rule.direction, whom) {
                            (Direction::Ingress, _) => guard.subject.holds(&world, workload),
                            (Direction::Egress, Whom::Service(namespace, name)) => {
                                member(&world, namespace, name, workload)
                            }
                            (Direction::Egress, _) => true,
                        })
                        .collect();
                    // Of entities the known workloads alone name their ports.
                    let nameless = matches!(whom, Whom::Entity(entity) if *entity != Entity::Cluster);
                    assert!(rule.direction == Direction::Ingress || !nameless, "{whom:?} has no port names: {guard:?}");
                    let has = listeners.is_empty() || listeners.iter().any(|w| w.ports.contains_key(port));
                    assert!(has, "{whom:?} has no port {port}: {guard:?} {}", yaml::workloads(&world));
                    *named.entry(rule.direction == Direction::Ingress).or_insert(0) += 1;
                }
            }
        }
    }
    eprintln!("{named:?}");
    assert!(named.len() == 2 && named.values().all(|of| *of > 50), "{named:?}");
}

#[test]
fn deadlines_are_written_and_passed() {
    let features = Features { guards: true, expiry: true, ..Features::default() };
    let mut passed = 0;
    for scenario in scenarios(features, 100) {
        let waited: u64 = scenario
            .steps
            .iter()
            .map(|step| match step {
                Step::Wait(time) => nanoseconds(time),
                _ => 0,
            })
            .sum();
        let rules = scenario.worlds[0].policy.iter().flat_map(|level| match level {
            Level::Guard(guard) => guard.rules.as_slice(),
            Level::Intents(_) => &[],
        });
        let ends: Vec<_> = rules.filter(|rule| rule.action != Action::Pass).filter_map(|rule| rule.expires).collect();
        passed += ends.iter().filter(|end| (START..=START + waited).contains(end)).count();
        let files = yaml::policies(&scenario.worlds[0]);
        assert!(ends.is_empty() || files.iter().any(|(_, text)| text.contains(", expires: 202")), "{files:?}");
    }
    assert!(passed > 20, "only {passed} deadlines passed");
}

#[test]
fn some_only_watch() {
    let features = Features { modes: true, ..Features::default() };
    let (mut watched, mut enforced, mut observed, mut begun) = (0, 0, 0, 0);
    for scenario in scenarios(features, 100) {
        let verdicts = verdicts(&scenario);
        let of: Vec<_> = verdicts.iter().filter(|verdict| verdict.reason == reason::OBSERVED).collect();
        if of.is_empty() {
            enforced += 1;
        } else {
            watched += 1;
        }
        observed += of.len();
        begun += of.iter().filter(|verdict| verdict.begins).count();
    }
    let seen = format!("{watched} scenarios watch, {enforced} do not; {observed} observed, {begun} of them begin");
    eprintln!("{seen}");
    assert!(watched > 30 && enforced > 20 && observed > 500 && begun > 50, "{seen}");
}

#[test]
fn services_are_called() {
    let features = Features { services: true, guards: true, ..Features::default() };
    let mut seen = BTreeMap::new();
    for scenario in scenarios(features, 200) {
        let mut machine = Machine::new(scenario.worlds[0].clone());
        for (nth, step) in scenario.steps.iter().enumerate() {
            let Step::Packet(conversation, what) = step else { continue };
            let world = machine.world().clone();
            for event in resolve(&world, &scenario.conversations, nth, *conversation, *what) {
                let kind = match &event {
                    Event::Translate(from, _, to, _) if from == to => "itself",
                    Event::Translate(..) => "local",
                    Event::Leave(..) => "overlay",
                    Event::Send(_, packet) if calls(&world, packet) => "elsewhere",
                    _ => continue,
                };
                for verdict in event.happen(&mut machine) {
                    *seen.entry((kind, verdict.reason)).or_insert(0) += 1;
                }
            }
        }
    }
    eprintln!("{seen:?}");
    for (kind, reason, least) in [
        ("local", reason::RULE, 100),
        ("local", reason::NOT_ISOLATED, 50),
        ("local", reason::REPLY, 100),
        ("local", reason::ISOLATED, 50),
        ("local", reason::DENIED_BY_RULE, 5),
        ("itself", reason::ITSELF, 5),
        ("overlay", reason::RULE, 50),
        ("overlay", reason::ISOLATED, 5),
        ("elsewhere", reason::RULE, 20),
        ("elsewhere", reason::ISOLATED, 20),
        ("elsewhere", reason::TUNNEL, 1),
    ] {
        assert!(seen.get(&(kind, reason)).is_some_and(|count| *count >= least), "{kind} {reason}: {seen:?}");
    }
}

fn calls(world: &World, packet: &Packet) -> bool {
    let Body::Ip(ip) = &packet.body else { return false };
    let (protocol, port) = match ip.transport {
        Transport::Tcp { destination, .. } => (Protocol::Tcp, destination),
        Transport::Udp { destination, .. } => (Protocol::Udp, destination),
        Transport::Sctp { destination, .. } => (Protocol::Sctp, destination),
        _ => return false,
    };
    world.translation(1, ip.destination, Want::Port(protocol, port)).is_some()
}

#[test]
fn a_seed_makes_the_same_again() {
    let features = Features { guards: true, audit: true, expiry: true, modes: true, services: true };
    let run = || scenarios(features, 30).map(|scenario| verdicts(&scenario)).collect::<Vec<_>>();
    let all = run();
    assert_eq!(all, run());
    let all: Vec<_> = all.iter().flatten().collect();
    assert!(all.iter().any(|verdict| verdict.would.is_some() && verdict.provisional), "an audited policy of a call");
    // What observes passes, and what reports says something else than what holds.
    for verdict in all {
        assert!(verdict.allow || verdict.reason != reason::OBSERVED, "{verdict:?}");
        let differs = |would: &Would| would.allow != verdict.allow || verdict.reason == reason::OBSERVED;
        assert!(verdict.would.as_ref().is_none_or(differs), "{verdict:?}");
    }
}

#[test]
fn worlds_are_written_as_files() {
    let scenario = scenarios(Features::default(), 1).next().unwrap();
    let files = yaml::policies(&scenario.worlds[0]);
    assert!(files.iter().all(|(_, text)| text.starts_with("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: ")));
    assert!(yaml::workloads(&scenario.worlds[0]).contains("\n  - { name: n1, addresses: [\"192.0.2.1\""));
}
