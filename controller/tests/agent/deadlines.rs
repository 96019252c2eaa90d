//! What ends: on the wall clock, in the tables as jiffies, and out of the tables once it is over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_controller::{agent::Agent, compile::compile, diagnostic::Diagnostics, model::Model};
use bulkhead_dataplane::{
    desired::{Desired, View},
    memory::MemoryNode,
    node::{Discovered, Node as _},
    store::{Endpoints, Store as _, Views},
};

use bulkhead_ebpf::abi::EndpointWord;

use crate::{
    home::eventually,
    life::alive,
    support::{Home, WORKLOADS},
};

/// Every view ends when the label `until` of web-1 says so, unless that has passed; then the same holds for ever.
fn ending(model: &Model, node: &str, discovered: &Discovered, now: u64) -> Result<Desired, Diagnostics> {
    let mut desired = compile(model, node, discovered, now)?;
    let until = model.workloads.values().find_map(|workload| workload.labels.get("until")?.parse().ok());
    if let Some(until) = until.filter(|&until| until > now) {
        for endpoint in &mut desired.endpoints {
            let last = endpoint.views[0];
            endpoint.views = vec![View { until: Some(until), ..last }, last];
        }
    }
    Ok(desired)
}

fn after(time: Duration) -> u64 {
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time;
    until.as_nanos().try_into().unwrap()
}

fn write(home: &Home, until: u64) {
    home.write("workloads.yaml", &WORKLOADS.replace("{ app: web }", &format!("{{ app: web, until: '{until}' }}")));
}

fn start(home: &Home) -> Agent<MemoryNode> {
    Agent::start_with(home.node().unwrap(), home.settings(), ending).unwrap_or_else(|error| panic!("{error}"))
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
    let mut agent = start(&home);
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
    let agent = start(&home);
    alive(&home, agent, |_| {
        eventually("what has ended is gone", || in_force(&home) == [u64::MAX; 2]);
    });
}

#[test]
fn a_deadline_that_the_node_refuses_to_take_out_does_not_keep_the_agent_awake() {
    let home = Home::new();
    write(&home, after(Duration::ZERO));
    let mut agent = start(&home);
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
