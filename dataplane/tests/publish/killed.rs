//! Random publishing into the maps of the kernel by processes that are killed, at each crash point in turn, while packets between all pairs are
//! judged by the programs: every verdict is that of the revision before or after one of the numbered steps of a publish that was on its way.
//!
//! Which verdicts these are is told by a publisher over tables in memory that publishes, and stops, in the same way: its tables at the end of each
//! step are asked by the verdict code.
//!
//! A publisher that is killed is this very test, run again with [`LIFE`] set. `BULKHEAD_SEED=n` repeats a run; `BULKHEAD_LONG=1` makes it a minute
//! from a seed of its own.

use std::{
    collections::BTreeMap,
    env,
    hash::{BuildHasher as _, RandomState},
    ops::ControlFlow,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type::BPF_MAP_TYPE_ARRAY};
use bulkhead_dataplane::{
    desired::{Desired, EndpointName},
    kernel::KernelStore,
    load::{Maps, Programs, Sizes},
    memory::Snapshot,
    pins::Pins,
    publish::{CrashPoint, Publisher},
    store::{EndpointInfos, Endpoints, Store as _},
    sys::{Map, Shape, Words},
};
use bulkhead_ebpf::abi::EndpointInfo;
use bulkhead_fixtures::skip;
use nix::sys::signal::{Signal, raise};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    pinned::{Directory, ready},
    probes::{FIRST_PORT, Loaded, Probe, Verdicts, config, host, probes, slots},
    random::Revisions,
    rig::{Rig, wire},
    slow::Slow,
    world::{Edit, Verbs, World, edits, namespace, world},
};

/// Set for a publisher that is to be killed: seed, life, directory of pins, state directory.
const LIFE: &str = "BULKHEAD_LIFE";
/// What `make test` runs, so that a change is judged by itself; the long variant looks for what is new.
const SEED: u64 = 4;
/// Lives after which each crash point has been met, and one life was not cut short.
const TURN: usize = CrashPoint::ALL.len() + 1;
/// Some probes long.
const PAUSE: Duration = Duration::from_micros(300);
const MINUTE: Duration = Duration::from_secs(60);

/// As small as the worlds: what is read whole by each new publisher costs by its size.
const SIZES: Sizes = Sizes {
    slots: 32,
    views: 256,
    sets: 64,
    lists: 512,
    rows: 128,
    addresses: 64,
    prefixes: 64,
    rule_counters: 2048,
    counters: 4096,
    vteps: 16,
    owners: 16,
    services: 16,
    backends: 64,
    contacts: 64,
    flows: 256,
};

/// One publisher's life: the worlds that it publishes, and where in the last one it dies.
struct Life {
    worlds: Vec<World>,
    death: Option<CrashPoint>,
    /// Every other one publishes entry by entry, the others as fast as they can.
    pause: Option<Duration>,
}

impl Life {
    /// The same in every process.
    fn new(seed: u64, life: usize) -> Self {
        let mut worlds = Vec::new();
        // Half of them begin with what the one before did not finish.
        if life > 0 && life % 2 == 1 {
            worlds.extend(sequence(seed, life - 1).pop());
        }
        worlds.extend(sequence(seed, life));
        // Crash points are an odd number with none at all among them, so that each turn has it the other way round.
        let pause = life.is_multiple_of(2).then_some(PAUSE);
        Self { worlds, death: CrashPoint::ALL.get(life % TURN).copied(), pause }
    }
}

/// A world, and what becomes of it.
fn sequence(seed: u64, life: usize) -> Vec<World> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(life as u64).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let changes = (1..5_usize).prop_flat_map(|count| (edits(Verbs::Anything, count), namespace(), any::<bool>()));
    let (mut world, (mut changes, namespace, last)) =
        (world(Verbs::Anything), changes).new_tree(&mut runner).unwrap().current();
    if last {
        changes.push(vec![namespace]);
    } else {
        changes.insert(0, vec![namespace]);
    }
    let mut worlds = vec![world.clone()];
    worlds.extend(changes.iter().map(|edits: &Vec<Edit>| {
        world.apply(edits);
        world.clone()
    }));
    worlds
}

/// What a publisher tells of its progress, in a map that it shares with the test: publishes begun, publishes finished, and the crash point at which
/// it dies, counted from 1.
struct Progress(Words);

impl Progress {
    const BEGUN: usize = 0;
    const FINISHED: usize = 1;
    const DEATH: usize = 2;

    fn path(pins: &Path) -> PathBuf {
        pins.join("progress")
    }

    fn create(pins: &Path) -> Self {
        let shape = Shape {
            kind: BPF_MAP_TYPE_ARRAY as u32,
            key_size: 4,
            value_size: 8,
            max_entries: 3,
            flags: BPF_F_MMAPABLE,
        };
        let map = Map::create("progress", &shape, None).unwrap();
        map.pin(&Self::path(pins)).unwrap();
        Self(Words::map(&map).unwrap())
    }

    fn open(pins: &Path) -> Self {
        Self(Words::map(&Map::from_pin(&Self::path(pins)).unwrap()).unwrap())
    }

    fn get(&self, what: usize) -> usize {
        usize::try_from(self.0[what].load(Ordering::SeqCst)).unwrap()
    }

    fn set(&self, what: usize, value: usize) {
        self.0[what].store(value as u64, Ordering::SeqCst);
    }
}

/// The publisher that is killed.
fn live(life: &str) {
    let [seed, life, pins, state] = life.split(' ').collect::<Vec<_>>().try_into().expect("four words");
    let Life { worlds, death, pause } = Life::new(seed.parse().unwrap(), life.parse().unwrap());
    let progress = Progress::open(Path::new(pins));
    let store = KernelStore::new(Maps::create(&Pins::new(Path::new(pins)), &SIZES).unwrap()).unwrap();
    let mut publisher = Publisher::open(Slow { store, pause }, Path::new(state)).unwrap();
    for (nth, world) in worlds.iter().enumerate() {
        if nth + 1 == worlds.len() {
            let progress = Progress::open(Path::new(pins));
            publisher.set_hook(Some(Box::new(move |reached| {
                if Some(reached) == death {
                    progress.set(Progress::DEATH, 1 + CrashPoint::ALL.iter().position(|at| *at == reached).unwrap());
                    raise(Signal::SIGKILL).unwrap();
                }
                ControlFlow::Continue(())
            })));
        }
        progress.set(Progress::BEGUN, nth + 1);
        let plan = publisher.prepare(&world.desired(), &mut wire).unwrap();
        let removed = plan.removed.clone();
        publisher.commit(plan).unwrap();
        publisher.release(&removed).unwrap();
        progress.set(Progress::FINISHED, nth + 1);
    }
}

/// A running publisher; dropping it ends it.
struct Publishing(Child);

impl Publishing {
    fn start(seed: u64, life: usize, pins: &Path, state: &Path) -> Self {
        let module = module_path!().split_once("::").expect("a crate and a module").1;
        let test = format!("{module}::every_verdict_is_that_of_a_revision_though_publishers_are_killed");
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(LIFE, format!("{seed} {life} {} {}", pins.display(), state.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is to be expected of a life.
struct Expected {
    life: usize,
    death: Option<CrashPoint>,
    probes: Vec<Probe>,
    /// For each publish, the 0th being none: verdicts of each probe while it is on its way, and afterwards (after the crash, for the last).
    during: Vec<Vec<Verdicts>>,
    after: Vec<Vec<Verdicts>>,
    infos: BTreeMap<u32, EndpointInfo>,
    /// What is in force at the end, and in which slots, if it was finished.
    finished: Option<(Desired, BTreeMap<EndpointName, u32>)>,
    /// Publishes of which some packet may meet more revisions than two.
    stepped: usize,
}

impl Expected {
    /// Verdicts of a probe that ran when `finished` publishes had ended for certain, and no more than `begun` can have begun.
    fn verdicts(&self, probe: usize, finished: usize, begun: usize, first: bool) -> Option<u8> {
        let mut verdicts = self.after[finished][probe];
        self.during[finished + 1..=begun].iter().for_each(|during| verdicts.add(during[probe]));
        verdicts.all(first, begun > finished)
    }
}

/// Plays each life in memory and hands on what is to be expected of it, as long as anyone listens.
fn foresee(seed: u64, to: &SyncSender<Expected>) {
    let mut rig = Rig::new();
    rig.store.set_limit::<Endpoints>(SIZES.slots as usize);
    rig.store.set_limit::<EndpointInfos>(SIZES.slots as usize);
    for life in 0.. {
        let Life { worlds, death, .. } = Life::new(seed, life);
        // Tables of the revisions, for each publish; those of the first are there already.
        let mut revisions: Vec<Vec<Snapshot>> = vec![vec![rig.store.snapshot()]];
        for (nth, world) in worlds.iter().enumerate() {
            let (Revisions(mut met), next) = Revisions::of(&rig, world);
            match death.filter(|_| nth + 1 == worlds.len()) {
                Some(point) => {
                    rig = rig.fork();
                    rig.publisher.set_hook(Some(Box::new(move |reached| {
                        if reached == point { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })));
                    assert!(rig.publish(&world.desired()).is_err(), "every point is reached");
                    rig = rig.fork();
                }
                None => rig = next,
            }
            met.push(rig.store.snapshot());
            revisions.push(met);
        }

        let mut seen: Vec<(u32, EndpointInfo)> = Vec::new();
        for found in revisions.iter().flatten().flat_map(slots).map(untold) {
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
        let probes = probes(&seen);
        let (mut during, mut after) = (Vec::new(), Vec::new());
        let (mut stepped, mut known): (_, Option<(&Snapshot, Vec<Verdicts>)>) = (0, None);
        for met in &revisions {
            let mut all = vec![Verdicts::default(); probes.len()];
            let mut distinct = 0;
            for tables in met {
                // Most are as those before.
                if known.as_ref().is_none_or(|(known, _)| *known != tables) {
                    let host = host(tables);
                    let judged: Vec<Verdicts> = probes.iter().map(|probe| probe.judged(&host)).collect();
                    distinct += usize::from(known.is_none_or(|(_, before)| before != judged));
                    known = Some((tables, judged));
                }
                let (_, judged) = known.as_ref().unwrap();
                all.iter_mut().zip(judged).for_each(|(all, judged)| all.add(*judged));
            }
            stepped += usize::from(distinct > 1);
            during.push(all);
            after.push(known.as_ref().unwrap().1.clone());
        }
        let finished = death.is_none().then(|| (worlds.last().unwrap().desired(), rig.slots.clone()));
        let infos = slots(&rig.store.snapshot()).map(untold).collect();
        if to.send(Expected { life, death, probes, during, after, infos, finished, stepped }).is_err() {
            return;
        }
    }
}

/// What was seen.
#[derive(Default)]
struct Seen {
    probes: AtomicU64,
    /// While a publish was on its way.
    during: AtomicU64,
    /// Of these, verdicts that alone were right.
    sharp: AtomicU64,
}

/// Probes until `done`.
fn probe(expected: &Expected, programs: Loaded<'_>, progress: &Progress, done: &AtomicBool, seen: &Seen) {
    while !done.load(Ordering::Relaxed) {
        let nth = fastrand::usize(..expected.probes.len());
        let probe = &expected.probes[nth];
        // Packets of flows that are known, and first ones.
        let first = fastrand::bool();
        let port = if first { fastrand::u16(FIRST_PORT..FIRST_PORT + 15_000) } else { probe.port() };
        let finished = progress.get(Progress::FINISHED);
        let verdict = probe.run(programs, port);
        let begun = progress.get(Progress::BEGUN);
        let Some(right) = expected.verdicts(nth, finished, begun, first) else { continue };
        assert!(
            verdict & right != 0,
            "life {}, publishes {finished} to {begun}: {probe:?} from port {port} says {verdict:#b}, not one of {right:#b}; before {:?}, then {:?}",
            expected.life,
            expected.after[finished][nth],
            expected.during[finished + 1..=begun].iter().map(|during| during[nth]).collect::<Vec<_>>(),
        );
        seen.probes.fetch_add(1, Ordering::Relaxed);
        if begun > finished {
            seen.during.fetch_add(1, Ordering::Relaxed);
            seen.sharp.fetch_add(u64::from(right.is_power_of_two()), Ordering::Relaxed);
        }
    }
}

/// But for which of the slot's owners it is: that is an epoch, of which publishers that began anew more often have had more.
fn untold((slot, info): (u32, EndpointInfo)) -> (u32, EndpointInfo) {
    (slot, EndpointInfo { tenancy: 0, ..info })
}

/// Everything stands still: the tables are those of one moment, and every verdict is what they say.
fn check(expected: &Expected, programs: Loaded<'_>, store: &KernelStore) {
    let Expected { life, death, probes, .. } = expected;
    let infos: BTreeMap<u32, EndpointInfo> =
        store.entries::<EndpointInfos>().unwrap().into_iter().map(untold).collect();
    assert_eq!(infos, expected.infos, "life {life}: both publishers gave the same slots");
    // Not a port that was used in this life.
    let port = FIRST_PORT + 15_000 + u16::try_from(life % 20_000).unwrap();
    let last = expected.after.len() - 1;
    for (nth, probe) in probes.iter().enumerate() {
        let verdict = probe.run(programs, port);
        let Some(right) = expected.verdicts(nth, last, last, true) else { continue };
        assert_eq!(verdict, right, "life {life}, after {death:?}: {probe:?}");
        if let Some((desired, slots)) = &expected.finished
            && let Some(meant) = probe.desired(desired, |name| slots[name])
        {
            assert_eq!(verdict, meant, "life {life}: {probe:?}");
        }
    }
}

#[test]
fn every_verdict_is_that_of_a_revision_though_publishers_are_killed() {
    if let Ok(life) = env::var(LIFE) {
        return live(&life);
    }
    if !ready() {
        return;
    }
    let long = skip::long();
    let seed = match env::var("BULKHEAD_SEED") {
        Ok(seed) => seed.parse().expect("BULKHEAD_SEED is a number"),
        Err(_) if long => RandomState::new().hash_one(0),
        Err(_) => SEED,
    };
    println!("BULKHEAD_SEED={seed}");
    let (directory, state) = (Directory::new(), tempfile::tempdir().unwrap());
    let mut maps = Maps::create(&directory.pins(), &SIZES).unwrap();
    let programs = Programs::load(&directory.pins(), &mut maps, &config()).unwrap();
    let programs = Loaded::new(&programs);
    let store = KernelStore::new(maps).unwrap();
    let progress = Progress::create(&directory.0);

    let (to, foreseen) = mpsc::sync_channel(2);
    let forecast = thread::spawn(move || foresee(seed, &to));
    // The publisher and whoever foresees need time as well.
    let probers = thread::available_parallelism().map_or(1, |cpus| cpus.get().saturating_sub(1).clamp(1, 4));
    let seen = Seen::default();
    let start = Instant::now();
    let (mut deaths, mut publishes, mut stepped) = (BTreeMap::new(), 0, 0);
    let enough = |lives: usize| lives >= TURN && (!long || start.elapsed() >= MINUTE);
    for lives in 0.. {
        if enough(lives) {
            break;
        }
        let expected = foreseen.recv().expect("whoever foresees says why it fails");
        [Progress::BEGUN, Progress::FINISHED, Progress::DEATH].iter().for_each(|what| progress.set(*what, 0));
        let mut publishing = Publishing::start(seed, expected.life, &directory.0, state.path());
        let done = AtomicBool::new(false);
        let status = thread::scope(|scope| {
            for _ in 0..probers {
                scope.spawn(|| probe(&expected, programs, &progress, &done, &seen));
            }
            let status = publishing.wait();
            done.store(true, Ordering::Relaxed);
            status
        });
        let died = progress.get(Progress::DEATH).checked_sub(1).map(|at| CrashPoint::ALL[at]);
        assert_eq!(died, expected.death, "life {}: {status}", expected.life);
        assert_eq!(status.signal(), died.map(|_| Signal::SIGKILL as i32), "life {}: {status}", expected.life);
        assert!(died.is_some() || status.success(), "life {}: {status}", expected.life);
        died.into_iter().for_each(|point| *deaths.entry(point).or_insert(0) += 1);
        publishes += expected.during.len() - 1;
        stepped += expected.stepped;
        check(&expected, programs, &store);
    }
    // Whoever foresees the rest ends when nobody listens.
    drop(foreseen);
    forecast.join().unwrap();

    let Seen { probes, during, sharp } = seen;
    let (probes, during, sharp) = (probes.into_inner(), during.into_inner(), sharp.into_inner());
    println!(
        "{probes} probes in {:?}, {during} of them during {publishes} publishes ({stepped} in several steps), {sharp} with one right verdict; \
         killed: {deaths:?}",
        start.elapsed()
    );
    assert!(CrashPoint::ALL.iter().all(|point| deaths.contains_key(point)), "killed at each point: {deaths:?}");
    assert!(during > 0 && sharp > 0 && stepped > 0, "too few probes, or too simple publishes, to mean anything");
}
