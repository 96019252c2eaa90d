//! What ends: on the wall clock, in the tables as jiffies, and out of the tables once it is over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_dataplane::{
    node::Node as _,
    store::{Endpoints, Store as _, Views},
};

use bulkhead_ebpf::abi::EndpointWord;

use crate::{home::eventually, life::alive, support::Home};

/// A time that policies can write, at least so far ahead; nanoseconds of Unix time.
fn after(time: Duration) -> u64 {
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time;
    (until.as_secs() + 1) * 1_000_000_000
}

/// A Guard one of whose rules ends then.
fn write(home: &Home, until: u64) {
    let until = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(until));
    let rule = format!("deny: {{ to: world:25, expires: {until} }}");
    let guard = format!("apiVersion: bulkhead/v1\nkind: Guard\nname: g\npriority: 1\nrules:\n  - {rule}\n");
    home.write("policies/guard.yaml", &guard);
}

/// Deadlines in force, in jiffies.
fn in_force(home: &Home) -> Vec<u64> {
    let words = home.store.entries::<Endpoints>().unwrap();
    words
        .iter()
        .map(|(_, word)| home.store.get::<Views>(&EndpointWord(*word).view()).unwrap().unwrap().deadline)
        .collect()
}

const HOUR: Duration = Duration::from_secs(3600);
const HZ: u64 = 250;

#[test]
fn deadlines_follow_the_wall_clock() {
    let home = Home::new();
    let until = after(HOUR);
    write(&home, until);
    home.store.set_jiffies(1_000_000);
    let mut agent = home.agent();
    assert_eq!(agent.earliest_deadline(), Some(until));
    let near = |jiffies: u64| {
        let exact = jiffies + HOUR.as_secs() * HZ;
        // This thread may have been stopped for long.
        in_force(&home).iter().all(|deadline| (exact - 600 * HZ..=exact + HZ).contains(deadline))
    };
    assert!(near(1_000_000), "{:?}", in_force(&home));

    // The same again writes nothing.
    let epoch = agent.node().status().unwrap().epoch;
    agent.clock_stepped();
    agent.check();
    agent.refresh();
    assert_eq!(agent.node().status().unwrap().epoch, epoch);

    // As if the clock had been set by a day: at once when that is told, at the next look when it is not.
    home.store.set_jiffies(50_000_000);
    agent.refresh();
    assert!(near(1_000_000), "nobody told");
    agent.clock_stepped();
    assert!(near(50_000_000), "{:?}", in_force(&home));
    home.store.set_jiffies(9_000_000);
    agent.check();
    agent.refresh();
    assert!(near(9_000_000), "{:?}", in_force(&home));
}

#[test]
fn a_step_is_nothing_to_what_does_not_end() {
    let home = Home::new();
    let mut agent = home.agent();
    assert_eq!((agent.earliest_deadline(), agent.until_deadline()), (None, None));
    home.store.memory().budget = Some(0);
    home.store.set_jiffies(50_000_000);
    agent.clock_stepped();
    agent.check();
    agent.refresh();
    assert!(!agent.health().failed, "nothing was written");
}

#[test]
fn what_has_ended_is_taken_out_though_no_file_changes() {
    let home = Home::new();
    write(&home, after(Duration::from_secs(2)));
    let agent = home.agent();
    alive(&home, agent, |_| {
        eventually("what has ended is gone", || in_force(&home) == [u64::MAX; 2]);
    });
}

#[test]
fn a_deadline_that_the_node_refuses_to_take_out_does_not_keep_the_agent_awake() {
    let home = Home::new();
    write(&home, after(Duration::ZERO) - 1_000_000_000);
    let mut agent = home.agent();
    assert_eq!(agent.earliest_deadline(), None, "it had passed already");
    let mut ahead = Duration::from_millis(200);
    while agent.earliest_deadline().is_none() {
        write(&home, after(ahead));
        agent.refresh();
        ahead *= 2;
    }
    home.store.memory().budget = Some(0);
    while agent.until_deadline().is_some_and(|left| !left.is_zero()) {
        std::thread::yield_now();
    }
    agent.expire();
    assert!(agent.health().failed);
    assert_eq!(agent.until_deadline(), None, "it is tried again with the next look at the files");
    home.store.memory().budget = None;
    agent.refresh();
    assert!(!agent.health().failed);
    assert_eq!(in_force(&home), [u64::MAX; 2]);
}
