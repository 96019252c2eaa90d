//! What containers leave behind: nothing.

use std::{collections::BTreeMap, fs};

use bulkhead_dataplane::kernel::Reader;
use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Agent, Lab,
    chain::{Chain, Container},
};

use crate::{
    plugins,
    support::{eventually, lab, pins},
};

/// By how much the memory of an agent may grow from the first round to the last, in KiB: what an allocator keeps and cuts up, not what each of hundreds
/// of containers would add. A kibibyte for each start of the long variant is 0.4 MiB.
const GROWTH: u64 = 4096;

/// What there is on a node, but for memory.
#[derive(Debug, PartialEq, Eq)]
struct Inventory {
    /// Links of the node's network namespace, as its kernel lists them.
    links: usize,
    /// Pins, by kind.
    pins: BTreeMap<&'static str, Vec<String>>,
    /// Entries in use, by table.
    tables: BTreeMap<&'static str, usize>,
}

impl Inventory {
    fn take(lab: &Lab) -> Self {
        let netns = &lab.topology.node(0).netns;
        let links = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().lines().skip(2).count();
        let kinds = ["links", "stubs", "flows", "programs", "maps"];
        let (base, state) = (lab.pins(0), lab.state(0));
        let status = netns.run(|| Reader::open(&base, &state).and_then(|reader| reader.status()));
        let tables = status.unwrap().tables.into_iter().map(|table| (table.table, table.used)).collect();
        Self { links, pins: kinds.into_iter().map(|kind| (kind, pins(lab, 0, kind))).collect(), tables }
    }

    fn pins(&self) -> usize {
        self.pins.values().map(Vec::len).sum()
    }

    fn entries(&self) -> usize {
        self.tables.values().sum()
    }
}

/// What the agent has open.
fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap().count()
}

/// Resident memory of the agent, in KiB.
fn resident(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn said(when: &str, inventory: &Inventory, agent: &Agent) {
    eprintln!(
        "{when}: {} links, {} pins, {} entries of tables, {} descriptors, {} KiB resident",
        inventory.links,
        inventory.pins(),
        inventory.entries(),
        descriptors(agent),
        resident(agent)
    );
}

/// Many containers run at the same time and are gone again, several times over. The first round fills what stays: counters of endpoints that are gone, what
/// is kept ready for the next ones, the allocator's memory. No later one adds to it.
#[test]
fn containers_that_are_gone_leave_nothing() {
    let Some(directory) = plugins() else { return };
    let (count, rounds) = if skip::long() { (100, 5) } else { (20, 2) };
    let lab = lab(&[]);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let chain = Chain::new(&lab, 0, &directory, "1.0.0", 100);
    let round = || {
        let mut many: Vec<_> = (0..count).map(|n| Container::new(&format!("many-{n}"))).collect();
        many.iter_mut().for_each(|container| chain.add(container).unwrap());
        many.iter().for_each(|container| chain.del(container));
    };
    said("at first", &Inventory::take(&lab), &agent);
    round();
    let (before, open, memory) = (Inventory::take(&lab), descriptors(&agent), resident(&agent));
    said(&format!("after {count} containers once"), &before, &agent);
    for _ in 1..rounds {
        round();
    }
    // The kernel takes links away a little after their namespaces; the agent may just be looking at something.
    eventually("all is as after the first round", || Inventory::take(&lab) == before && descriptors(&agent) <= open);
    let after = Inventory::take(&lab);
    said(&format!("after {count} containers {rounds} times"), &after, &agent);
    assert_eq!(after, before);
    let grown = resident(&agent).saturating_sub(memory);
    assert!(grown <= GROWTH, "{grown} KiB more resident, for {} containers", count * (rounds - 1));
}
