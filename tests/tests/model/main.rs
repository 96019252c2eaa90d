//! Random policies, workloads and packets: what the programs do is what the reference model says.
//!
//! A scenario goes through everything: the model writes its world as YAML, the controller compiles that, the publisher
//! writes tables, and the programs judge frames by them, while the model judges the packets that the frames stand for.
//! Verdicts are compared one by one, counters (by endpoint, direction, reason and rule) at the end of each scenario.
//!
//! A failure is printed as it was first seen, and again made as small as it gets in two minutes; what is run after it runs on
//! new tables. `BULKHEAD_SEED=n` repeats a run. `BULKHEAD_LONG=1` runs ten times as many scenarios, from a seed of its own.

mod compiled;
mod frames;
mod gone;
mod host;
mod kernel;
mod refused;
mod walls;

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, RandomState},
};

use bulkhead_dataplane::memory::MemoryStore;
use bulkhead_fixtures::skip;
use bulkhead_model::generate::{self, Features};
use bulkhead_tests::test_run::Kernel;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::{
    host::Host,
    walls::{Programs, Walls},
};

/// What `make test` runs, so that a change is judged by itself; the long variant looks for what is new. This seed once showed counters of an
/// endpoint given away in the publish that removed it.
const SEED: u64 = 10_509_956_797_270_165_902;

/// What the scenarios have beside allow-lists.
const FEATURES: Features = Features { guards: true, audit: true, expiry: true, modes: true, services: true };

/// Runs scenarios, which together have at least so many verdicts; ten times as many of both in the long variant.
fn scenarios<P: Programs>(features: Features, cases: u32, promised: usize, raise: impl Fn() -> Walls<P>) {
    let long = skip::long();
    let seed = match std::env::var("BULKHEAD_SEED") {
        Ok(seed) => seed.parse().expect("BULKHEAD_SEED is a number"),
        Err(_) if long => RandomState::new().hash_one(0),
        Err(_) => SEED,
    };
    println!("BULKHEAD_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let (cases, promised) = if long { (10 * cases, 10 * promised) } else { (cases, promised) };
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));

    let walls = RefCell::new(raise());
    let (verdicts, failed) = (Cell::new(0), Cell::new(false));
    let result = runner.run(&generate::scenario(features, 1..800), |scenario| {
        let mut walls = walls.borrow_mut();
        if failed.get() {
            // Whatever the tables hold after a failure, flows and counters of the same endpoints among it, has no say in the next one.
            *walls = raise();
        }
        match walls.check(&scenario) {
            Ok(compared) => verdicts.set(verdicts.get() + compared),
            Err(difference) => {
                let worlds = scenario.worlds.iter().enumerate();
                let worlds = worlds.map(|(n, world)| format!("## world {n}\n{}", compiled::files(world)));
                let failure = format!("{}\n{difference}", worlds.collect::<String>());
                if !failed.replace(true) {
                    println!("BULKHEAD_SEED={seed}, before it is made smaller:\n{failure}");
                }
                return Err(TestCaseError::fail(failure));
            }
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(difference, _)) => panic!("BULKHEAD_SEED={seed}\n{difference}"),
        Err(TestError::Abort(why)) => panic!("BULKHEAD_SEED={seed}: {why}"),
    }
    println!("{} verdicts in {cases} scenarios", verdicts.get());
    assert!(verdicts.get() >= promised, "fewer verdicts than the {promised} promised");
}

/// New tables in memory, judged by the library.
fn library() -> Walls<Host> {
    let store = MemoryStore::default();
    Walls::new(store.clone(), Host::new(store), tempfile::tempdir().expect("a directory"))
}

/// New tables in the kernel, judged by its programs.
fn programs() -> Walls<Kernel> {
    let (store, kernel) = kernel::load().expect("programs load");
    Walls::new(store, kernel, tempfile::tempdir_in("/dev/shm").expect("a directory"))
}

#[test]
fn verdicts_of_the_library() {
    scenarios(FEATURES, 60, 10_000, library);
}

#[test]
fn verdicts_of_the_kernel() {
    if !skip::programs() {
        return;
    }
    scenarios(FEATURES, 250, 100_000, programs);
}
