//! What the generator makes is worth judging: a test that can only see denials proves nothing.

use std::collections::BTreeMap;

use bulkhead_model::{
    Machine, Origin, Verdict,
    generate::{Event, Step, resolve, scenario},
    reason, yaml,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

#[test]
fn half_is_allowed_and_every_reason_occurs() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen = BTreeMap::new();
    let (mut allowed, mut all) = (0, 0);
    let mut count = |verdict: &Verdict| {
        *seen.entry(verdict.reason).or_insert(0) += 1;
        allowed += u32::from(verdict.allow);
        all += 1;
        verdict.allow
    };
    for _ in 0..200 {
        let scenario = scenario(100..120).new_tree(&mut runner).unwrap().current();
        let mut machine = Machine::new(scenario.worlds[0].clone());
        for (nth, step) in scenario.steps.iter().enumerate() {
            match step {
                Step::Change(to) => machine.change(to.get(&scenario.worlds).clone()),
                Step::Packet(conversation, what) => {
                    for event in resolve(&machine.world().clone(), &scenario.conversations, nth, *conversation, *what) {
                        match event {
                            Event::Send(id, packet) => count(&machine.send(&id, &packet)),
                            Event::Deliver(id, packet, origin) => count(&machine.deliver(&id, &packet, &origin)),
                            Event::Cross(from, to, packet) => {
                                count(&machine.send(&from, &packet))
                                    && count(&machine.deliver(&to, &packet, &Origin::Local(from)))
                            }
                        };
                    }
                }
            }
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
        reason::SOURCE_DENIED,
        reason::PLAIN_OVERLAY_SOURCE,
    ] {
        assert!(seen.contains_key(reason), "{reason} never occurred: {seen:?}");
    }
}

#[test]
fn worlds_are_written_as_files() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let scenario = scenario(1..2).new_tree(&mut runner).unwrap().current();
    let files = yaml::policies(&scenario.worlds[0]);
    assert!(files.iter().all(|(_, text)| text.starts_with("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: ")));
    assert!(yaml::workloads(&scenario.worlds[0]).contains("\n  - { name: n1, addresses: [\"192.0.2.1\""));
}
