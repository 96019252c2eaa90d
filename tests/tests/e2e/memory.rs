//! The agent is killed for want of memory, and enforcement goes on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};
use bulkhead_topology::Topology;

use crate::{
    established::{alive, cut},
    policy::{SHOP, shop},
    probe::{Ask, PATIENCE, Servers, allowed, denied},
};

/// A control group with a limit of memory, of either version of control groups.
struct Group {
    directory: PathBuf,
    names: &'static Names,
}

/// What files of a group are called.
struct Names {
    used: &'static str,
    limit: &'static str,
    events: &'static str,
}

const V1: Names = Names { used: "memory.usage_in_bytes", limit: "memory.limit_in_bytes", events: "memory.oom_control" };
const V2: Names = Names { used: "memory.current", limit: "memory.max", events: "memory.events" };

impl Group {
    /// `None` where no group can be made.
    fn new(name: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (parent, names) = match root.join("cgroup.controllers").exists() {
            true => {
                fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
                (root.to_owned(), &V2)
            }
            false => (root.join("memory"), &V1),
        };
        let directory = parent.join(format!("bulkhead-test-{name}-{}", std::process::id()));
        fs::create_dir(&directory).ok()?;
        let group = Self { directory, names };
        group.directory.join(names.limit).exists().then_some(group)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap()
    }

    fn used(&self) -> u64 {
        self.read(self.names.used).trim().parse().unwrap()
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.directory.join(self.names.limit), bytes.to_string())
    }

    /// Processes that were killed for want of memory.
    fn kills(&self) -> u64 {
        let events = self.read(self.names.events);
        events.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    }

    /// Words that start a program in this group.
    fn command(&self) -> [String; 4] {
        let processes = self.directory.join("cgroup.procs");
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        ["sh".to_owned(), "-c".to_owned(), script.to_owned(), processes.display().to_string()]
    }

    fn start(&self, lab: &Lab) -> Agent {
        let words = self.command();
        let mut agent = Agent::spawn_by(lab, 0, &words.each_ref().map(String::as_str), &[]).unwrap();
        agent.wait().unwrap();
        agent
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// Memory of agent and tables on a node with so many endpoints.
fn used(endpoints: u32) -> Option<u64> {
    let group = Group::new("used");
    if !skip::require("a control group with a limit of memory", group.is_some()) {
        return None;
    }
    let builder = (0..endpoints).fold(Topology::builder(), |all, number| all.workload(format!("web-{number}"), 0));
    let lab = Lab::new(builder).unwrap();
    lab.policy("shop.yaml", "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: {}\n").unwrap();
    let group = group?;
    let agent = group.start(&lab);
    let used = group.used();
    agent.kill().unwrap();
    Some(used)
}

/// The unit's limit holds 400 endpoints, by what they take here.
#[test]
fn the_limit_of_the_unit_is_high_enough() {
    if !skip::root() {
        return;
    }
    let Some((few, many)) = used(3).zip(used(23)) else { return };
    let each = (many - few) / 20;
    eprintln!("{} KiB with three endpoints, {} KiB for each more", few / 1024, each / 1024);
    let unit = include_str!("../../../controller/deploy/bulkhead.service");
    let limit = unit.lines().find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M')).unwrap();
    let limit = limit.parse::<u64>().unwrap() << 20;
    assert!(each > 1 << 20, "flow tables count for the group");
    assert!(few + 400 * each < limit, "{few} + 400 * {each}");
}

#[test]
fn a_limit_of_memory_kills_the_agent_and_no_wall() {
    if !skip::root() {
        return;
    }
    let group = Group::new("limit");
    if !skip::require("a control group with a limit of memory", group.is_some()) {
        return;
    }
    let group = group.unwrap();
    let lab = shop();
    let servers = Servers::start(&lab, "cart-1", &[8080, 9999], &[]);
    let agent = group.start(&lab);
    let cart = lab.topology.workload("cart-1").addresses();
    let client = lab.topology.workload("web").client().deadline(PATIENCE);
    let mut streams = cart.map(|to| client.connect((to, 8080).into()).unwrap());
    alive(&mut streams);
    assert_eq!(group.kills(), 0);

    // More than the limit leaves, in files that are all within what the agent reads.
    group.limit(group.used() + (16 << 20)).unwrap();
    let large = format!("# {}\n", "x".repeat(4_000_000));
    for number in 0..32 {
        lab.policy(&format!("large-{number}.yaml"), &large).unwrap();
    }
    let (_, log) = agent.ended().unwrap();
    assert_eq!(group.kills(), 1, "{log}");

    let seen = servers.seen();
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    denied(&lab, "web", "cart-1", Ask::Tcp(9999));
    assert_eq!(servers.seen(), seen, "what is denied stays denied");
    alive(&mut streams);
    allowed(&lab, "web", "cart-1", Ask::Tcp(8080));

    // The next agent takes over, in the same group, with room for its start: that takes more than
    // what was in use when the limit was set.
    group.limit(1 << 40).unwrap();
    for number in 0..32 {
        lab.remove_policy(&format!("large-{number}.yaml")).unwrap();
    }
    let mut agent = group.start(&lab);
    alive(&mut streams);
    agent.apply(|| lab.policy("shop.yaml", &SHOP.replace("cart:8080", "cart:9999"))).unwrap();
    cut(&mut streams);
    allowed(&lab, "web", "cart-1", Ask::Tcp(9999));
    denied(&lab, "guest", "cart-1", Ask::Tcp(8080));
    agent.kill().unwrap();
}
