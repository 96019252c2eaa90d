//! Properties over random sequences of publishes.

use std::{collections::BTreeSet, ops::ControlFlow};

use bulkhead_dataplane::{
    memory::{Event, MemoryStore, Snapshot},
    node::{NodeError, Rehearsal},
    publish::CrashPoint,
    store::{CounterKeys, Ids, Lists, Node, Ports, Store, Views},
};
use bulkhead_ebpf::abi::{Class, node};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use crate::{
    history::History,
    judge::{Answer, Look, Question, meant, questions, read},
    rig::{Rig, wire},
    world::{Edit, Verbs, World, edits, world},
};

/// Revisions that packets may meet in one publish: the old one, those of the numbered steps, the new one.
const REVISIONS: [CrashPoint; 3] = [CrashPoint::FirstEpochs, CrashPoint::Flips, CrashPoint::LastEpochs];

pub(crate) fn config(cases: u32) -> ProptestConfig {
    // Each case is some hundred publishes and ten thousands of verdicts.
    let factor = if std::env::var_os("BULKHEAD_LONG").is_some() { 20 } else { 1 };
    ProptestConfig {
        cases: cases * factor,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..ProptestConfig::default()
    }
}

pub(crate) fn sequence(verbs: Verbs, publishes: usize) -> impl Strategy<Value = (World, Vec<Vec<Edit>>)> {
    (world(verbs), edits(verbs, publishes))
}

/// Answers of every revision of a publish, by slot.
pub(crate) struct Revisions(pub(crate) Vec<Snapshot>);

impl Revisions {
    /// Publishes `next` on a copy of `rig`; answers with the copy, too.
    pub(crate) fn of(rig: &Rig, next: &World) -> (Self, Rig) {
        let mut copy = rig.fork();
        let mut all = vec![copy.store.snapshot()];
        let copies = copy.keep_copies();
        copy.publish(&next.desired()).unwrap();
        copy.publisher.set_hook(None);
        all.extend(REVISIONS.iter().filter_map(|point| copies.lock().unwrap().remove(point)));
        (Self(all), copy)
    }

    fn answers(&self, slot: u32, question: &Question) -> BTreeSet<Answer> {
        self.0.iter().map(|tables| read(&mut &*tables, slot, question)).collect()
    }
}

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn tables_mean_what_was_desired((mut world, edits) in sequence(Verbs::Anything, 6)) {
        let questions = questions();
        let mut rig = Rig::new();
        for edits in [Vec::new()].iter().chain(&edits) {
            world.apply(edits);
            let desired = world.desired();
            rig.publish(&desired).unwrap();
            rig.assert_means(&desired, &questions);
            // The same again is nothing at all.
            let again = rig.publish(&desired).unwrap();
            prop_assert_eq!((again.writes, again.grace_periods), (0, 0));
            // What is counted as used is what the tables reach, and no more.
            let usage = rig.usage();
            let mut restarted = rig.fork();
            prop_assert_eq!(&usage, &restarted.usage());
            restarted.publish(&desired).unwrap();
            prop_assert_eq!(&usage, &restarted.usage());
            restarted.assert_means(&desired, &questions);
            let ids = rig.store.entries::<Ids>().unwrap().len();
            prop_assert_eq!(ids, desired.selectors.len());
        }
    }

    #[test]
    fn a_crash_anywhere_leaves_one_revision_and_is_made_good((world, edits) in sequence(Verbs::Anything, 1), budgets in prop::collection::vec(0.0..1.0f64, 6)) {
        let questions = questions();
        let mut rig = Rig::new();
        // No publisher ends a bypass or makes it longer, nor one that takes over.
        let bypassed = (node::BYPASS, 1 << 40);
        rig.store.put::<Node>(&[bypassed]).unwrap();
        rig.publish(&world.desired()).unwrap();
        let mut next = world.clone();
        next.apply(&edits[0]);
        let (revisions, mut finished) = Revisions::of(&rig, &next);
        let (usage, slots) = (finished.usage(), finished.slots.clone());

        let asked: BTreeSet<u32> = rig.slots.values().chain(slots.values()).copied().collect();
        let asked = asked.into_iter().flat_map(|slot| questions.iter().map(move |question| (slot, question)));
        let expected: Vec<_> = asked.map(|(slot, question)| (slot, question, revisions.answers(slot, question))).collect();
        let check = |crashed: &Rig, stop: &str| {
            let tables = crashed.store.snapshot();
            for (slot, question, expected) in &expected {
                let answer = read(&mut &tables, *slot, question);
                assert!(expected.contains(&answer), "{stop}: slot {slot} asked {question:?} says {answer:?}, not one of {expected:?}");
            }
            let mut restarted = crashed.fork();
            restarted.publish(&next.desired()).unwrap();
            restarted.assert_means(&next.desired(), &questions);
            assert_eq!(restarted.usage(), usage, "{stop}: what is used afterwards");
            for rig in [crashed, &restarted] {
                assert_eq!(rig.store.get::<Node>(&bypassed.0).unwrap(), Some(bypassed.1), "{stop}: the bypass");
            }
        };

        for point in CrashPoint::ALL {
            let mut copy = rig.fork();
            copy.publisher.set_hook(Some(Box::new(move |reached| if reached == point { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })));
            prop_assert!(copy.publish(&next.desired()).is_err(), "every point is reached");
            check(&copy, &format!("{point:?}"));
        }

        // In the middle of any write as well: there is some number of writes for each of which one is the last.
        let mut copy = rig.fork();
        copy.store.memory().journal = Some(Vec::new());
        copy.publish(&next.desired()).unwrap();
        let writes = copy.store.memory().journal.take().unwrap().len();
        for share in budgets {
            let copy = &mut rig.fork();
            let budget = (share * writes as f64) as usize;
            copy.store.memory().budget = Some(budget);
            let stopped = copy.publish(&next.desired()).is_err();
            copy.store.memory().budget = None;
            if stopped {
                check(copy, &format!("after {budget} of {writes} writes"));
                // The same publisher goes on as well as a new one.
                copy.publish(&next.desired()).unwrap();
                copy.assert_means(&next.desired(), &questions);
            }
        }
    }

    /// In tables that may be too small, also after a publish that stopped in the middle of its writes, and beside a plan that is under way.
    #[test]
    fn a_rehearsal_says_what_the_publish_then_does(
        (mut world, edits) in sequence(Verbs::Anything, 8),
        (views, sets, lists) in (4..24_usize, 3..16_usize, 6..48_usize),
        stops in prop::collection::vec(prop::option::of(0..40_usize), 8),
    ) {
        let store = MemoryStore::default();
        store.set_limit::<Views>(views);
        store.set_limit::<Ports>(sets * Class::COUNT as usize);
        store.set_limit::<Lists>(lists);
        let mut rig = Rig::open(store, tempfile::tempdir().unwrap());
        for (edits, stop) in edits.iter().zip(&stops) {
            let before = world.desired();
            world.apply(edits);
            let desired = world.desired();
            if stop.is_some() {
                rig.store.memory().budget = *stop;
                // What it came to does not matter.
                let _ = rig.publish(&desired);
                rig.store.memory().budget = None;
            } else if let Ok(plan) = rig.publisher.prepare(&before, &mut wire) {
                rig.rehearse(&desired).ok();
                prop_assert!(rig.publisher.commit(plan).is_ok(), "the plan under way holds");
            }
            let rehearsal = rig.rehearse(&desired);
            // Whoever asks twice hears the same.
            let again = rig.rehearse(&desired);
            prop_assert_eq!(said(&rehearsal), said(&again));
            let usage = rig.publisher.usage().unwrap();
            match (rehearsal, rig.publish(&desired)) {
                (Ok(rehearsal), Ok(published)) => {
                    prop_assert_eq!((rehearsal.writes, rehearsal.grace_periods), (published.writes, published.grace_periods));
                    prop_assert_eq!(rehearsal.tables, rig.publisher.usage().unwrap());
                }
                (Err(rehearsal), Err(published)) => {
                    prop_assert!(matches!(published, NodeError::Capacity { .. }), "{}", published);
                    prop_assert_eq!(format!("{rehearsal:?}"), format!("{published:?}"));
                    prop_assert_eq!(usage, rig.publisher.usage().unwrap());
                }
                (rehearsal, published) => prop_assert!(false, "rehearsed {rehearsal:?}, published {published:?}"),
            }
        }
    }

    #[test]
    fn programs_see_one_revision_whenever_they_run((world, edits) in sequence(Verbs::Anything, 3), seed in any::<u64>()) {
        race(world, &edits, seed);
    }

    #[test]
    fn no_step_allows_what_neither_revision_allows((world, edits) in sequence(Verbs::Allow, 3)) {
        opens_nothing(world, &edits)?;
    }

    /// What a list denies is as safe. Of lists that do both, or pass on, no single row could say it.
    #[test]
    fn no_step_allows_what_both_revisions_deny((world, edits) in sequence(Verbs::Deny, 3)) {
        opens_nothing(world, &edits)?;
    }
}

/// Whatever some step of these publishes allows, the revision before it or the one after it allows.
fn opens_nothing(world: World, edits: &[Vec<Edit>]) -> Result<(), TestCaseError> {
    let questions = questions();
    let mut rig = Rig::new();
    rig.publish(&world.desired()).unwrap();
    let mut before = world;
    for edits in edits {
        let mut after = before.clone();
        after.apply(edits);
        let (old, new) = (before.desired(), after.desired());
        let (revisions, copy) = Revisions::of(&rig, &after);
        for (name, slot) in rig.slots.iter().chain(&copy.slots) {
            for question in &questions {
                let allowed = |desired: &bulkhead_dataplane::desired::Desired| {
                    let endpoint = desired.endpoints.iter().find(|endpoint| endpoint.name == *name);
                    endpoint
                        .is_some_and(|endpoint| meant(desired, endpoint, question).iter().any(|answer| answer.allows()))
                };
                let opened = revisions.answers(*slot, question).iter().any(|answer| answer.allows());
                prop_assert!(!opened || allowed(&old) || allowed(&new), "{} {:?}", name.workload, question);
            }
        }
        rig = copy;
        before = after;
    }
    Ok(())
}

/// Errors are not compared but for what they say.
fn said(rehearsal: &Result<Rehearsal, NodeError>) -> Result<&Rehearsal, String> {
    rehearsal.as_ref().map_err(ToString::to_string)
}

/// A program that starts at some moment, takes its time, and ends before a grace period does that began after it started.
struct Program<'a> {
    history: &'a History,
    now: usize,
    end: usize,
    random: &'a mut fastrand::Rng,
}

impl Program<'_> {
    fn tick(&mut self) {
        // Mostly at once, sometimes much later: it is the far jumps that find what is freed too early.
        self.now = match self.random.u8(..4) {
            0 => self.random.usize(self.now..=self.end),
            1 => self.random.usize(self.now..=self.end.min(self.now + 3)),
            _ => self.now,
        };
    }
}

impl Look for Program<'_> {
    fn bytes(&mut self, table: &'static str, key: &[u8]) -> Option<Vec<u8>> {
        self.tick();
        self.history.at(self.now, table, key)
    }

    fn all(&mut self, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.tick();
        self.history.all(self.now, table)
    }
}

/// Publishes one world after another while programs run, and asks each for one of the revisions of the publishes that it met.
fn race(mut world: World, edits: &[Vec<Edit>], seed: u64) {
    let mut rig = Rig::new();
    rig.publish(&world.desired()).unwrap();
    let start = rig.store.snapshot();
    let mut slots: BTreeSet<u32> = rig.slots.values().copied().collect();
    rig.store.memory().journal = Some(Vec::new());
    // Revisions of each publish, and the moment at which it ended.
    let mut publishes = Vec::new();
    for edits in edits {
        world.apply(edits);
        let (revisions, _) = Revisions::of(&rig, &world);
        rig.publish(&world.desired()).unwrap();
        slots.extend(rig.slots.values());
        let writes = rig
            .store
            .memory()
            .journal
            .as_ref()
            .unwrap()
            .iter()
            .filter(|event| matches!(event, Event::Write { .. }))
            .count();
        publishes.push((revisions, writes));
    }
    let history = History::new(&start, rig.store.memory().journal.take().unwrap());
    let last = *history.ends.last().unwrap();

    let mut random = fastrand::Rng::with_seed(seed);
    for slot in slots {
        for question in &questions() {
            let answers: Vec<BTreeSet<Answer>> =
                publishes.iter().map(|(revisions, _)| revisions.answers(slot, question)).collect();
            for _ in 0..4 {
                let start = random.usize(..=last);
                let end = history.ends.iter().copied().find(|end| *end > start).unwrap_or(last);
                let mut program = Program { history: &history, now: start, end, random: &mut random };
                let answer = read(&mut program, slot, question);
                let now = program.now;
                let mut began = 0;
                let met = publishes.iter().zip(&answers).filter(|((_, ended), _)| {
                    let meets = began <= now && start <= *ended;
                    began = *ended;
                    meets
                });
                let expected: BTreeSet<&Answer> = met.flat_map(|(_, answers)| answers).collect();
                assert!(
                    expected.contains(&answer),
                    "slot {slot}, from {start} to {now} of {last}: {question:?} says {answer:?}, not one of {expected:?}"
                );
            }
        }
    }
}

#[test]
fn nothing_leaks_over_two_hundred_publishes() {
    let mut runner = TestRunner::deterministic();
    let (mut world, edits) = sequence(Verbs::Anything, 200).new_tree(&mut runner).unwrap().current();
    let mut rig = Rig::new();
    for edits in &edits {
        world.apply(edits);
        rig.publish(&world.desired()).unwrap();
    }
    let desired = world.desired();
    rig.assert_means(&desired, &questions());
    // As many as a node needs that has never seen anything else: counters of what is gone stay, and whoever needs one takes it.
    let mut fresh = Rig::new();
    fresh.publish(&desired).unwrap();
    assert_eq!(rig.usage(), fresh.usage());
    let keys = |rig: &Rig| rig.store.entries::<CounterKeys>().unwrap().len();
    assert!(keys(&rig) > keys(&fresh));
}
