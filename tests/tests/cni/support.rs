//! What the tests of the plugin have in common.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bulkhead_fixtures::skip;
use bulkhead_tests::{
    Lab,
    chain::{Chain, Container},
};
use bulkhead_topology::{
    Netns, Topology, cpu,
    traffic::{Capture, Frame, Outcome, TcpEcho},
};
use serde_json::Map;

pub(crate) const POLICY: &str = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\nservices:\n  web: { calls: ['db:8080', 'db:7777/udp', 'db:echo/icmp'] }\n  db: {}\n  guest: {}\n";
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// For what must happen on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not happen.
pub(crate) const BRIEF: Duration = Duration::from_millis(300);

/// Two nodes; on the second one `db`, which `web` may call.
pub(crate) fn lab(contained: &[&str]) -> Lab {
    let mut lab = Lab::new(Topology::builder().nodes(2).workload("db", 1)).unwrap();
    lab.contained = contained.iter().map(|name| ((*name).to_owned(), (0, Vec::new()))).collect();
    lab.write_workloads().unwrap();
    lab.policy("shop.yaml", POLICY).unwrap();
    lab
}

/// Has the file say which addresses a container will get that is the first of a chain from 100 on: then the other node knows them beforehand.
pub(crate) fn foretell(lab: &mut Lab, name: &str) -> [IpAddr; 2] {
    let addresses = lab.topology.node(0).overlays().map(|overlay| match overlay.prefix.network() {
        IpAddr::V4(base) => IpAddr::from((u32::from(base) + 100).to_be_bytes()),
        IpAddr::V6(base) => IpAddr::from((u128::from(base) + 0x64).to_be_bytes()),
    });
    lab.contained.insert(name.to_owned(), (0, addresses.to_vec()));
    lab.write_workloads().unwrap();
    addresses
}

/// Servers of `db` on a port, one for each of its addresses.
pub(crate) fn db(lab: &Lab, port: u16) -> Vec<TcpEcho> {
    let db = lab.topology.workload("db");
    db.addresses().into_iter().map(|address| TcpEcho::start(&db.netns, (address, port).into()).unwrap()).collect()
}

#[track_caller]
pub(crate) fn calls(from: &Netns, to: IpAddr, port: u16, deadline: Duration, expected: Outcome) {
    let start = Instant::now();
    loop {
        let outcome = from.client().deadline(deadline.min(Duration::from_secs(3))).tcp((to, port).into()).unwrap();
        // A node that has just heard of a container may still be busy telling its tables.
        if outcome == expected || expected != Outcome::Answered || start.elapsed() > deadline {
            assert_eq!(outcome, expected, "{to} {port}");
            return;
        }
    }
}

/// A container that may call 8080 of `db` and no other port, and one that may call nobody.
#[track_caller]
pub(crate) fn guarded(chain: &Chain<'_>, to: IpAddr) {
    let (mut web, mut guest) = (Container::new("web-1"), Container::new("guest-1"));
    chain.add(&mut web).unwrap();
    chain.add(&mut guest).unwrap();
    calls(&web.netns, to, 8080, PATIENCE, Outcome::Answered);
    calls(&web.netns, to, 9999, BRIEF, Outcome::TimedOut);
    calls(&guest.netns, to, 8080, BRIEF, Outcome::TimedOut);
    chain.del(&web);
    chain.del(&guest);
}

/// What a node has pinned of a kind, as in `links`, by name; nothing where nothing is pinned.
pub(crate) fn pin_paths(lab: &Lab, node: usize, kind: &str) -> Vec<(String, PathBuf)> {
    let layouts = fs::read_dir(lab.pins(node)).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    let layouts: Vec<_> = layouts.unwrap_or_default();
    let directories = layouts.iter().filter_map(|layout| fs::read_dir(layout.join(kind)).ok());
    let named =
        directories.flatten().map(Result::unwrap).map(|pin| (pin.file_name().into_string().unwrap(), pin.path()));
    let mut found: Vec<_> = named.collect();
    found.sort();
    found
}

/// The names alone.
pub(crate) fn pins(lab: &Lab, node: usize, kind: &str) -> Vec<String> {
    pin_paths(lab, node, kind).into_iter().map(|(name, _)| name).collect()
}

/// Has all stubs of a node be of another version, as after an upgrade.
pub(crate) fn age_stubs(lab: &Lab, node: usize) {
    let stubs = pin_paths(lab, node, "stubs");
    assert!(!stubs.is_empty());
    for (name, path) in stubs {
        let (says, _) = name.rsplit_once('-').unwrap();
        fs::rename(&path, path.with_file_name(format!("{says}-{:016x}", 1))).unwrap();
    }
}

/// What is pinned for the links of a node.
pub(crate) fn pinned(lab: &Lab, node: usize) -> Vec<String> {
    pins(lab, node, "links")
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether programs are installed that a test starts; one that returns when they are not has been said to be skipped.
#[track_caller]
pub(crate) fn installed(programs: &[&str]) -> bool {
    let there =
        |name: &str| ["/usr/bin", "/usr/sbin", "/bin"].iter().any(|directory| Path::new(directory).join(name).exists());
    programs
        .iter()
        .all(|name| skip::require(&format!("{name} (`tests/setup/setup.sh --test` installs it)"), there(name)))
}

/// Files of a container that has nothing but busybox.
pub(crate) fn image(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
}

/// A thread for each CPU that this process may use, bound to it, that does nothing but run. They end with this value.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut busy = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        for cpu in cpu::allowed().unwrap() {
            let stop = Arc::clone(&stop);
            busy.threads.push(thread::spawn(move || {
                cpu::stay_on(cpu).unwrap();
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            }));
        }
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // One that could not be bound has said so.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Sees what containers send, on the bridge of the first node and at the second node's end of the wire; there before they are.
pub(crate) struct Witness([Capture; 2]);

impl Witness {
    /// What it knows packets by: an IPv4 header of packets of 805 bytes, which are those of `ping -s 777`. (With `-p` busybox fills the ICMP code with
    /// the pattern too, and then it is no echo.)
    const MARK: [u8; 4] = [0x45, 0, 0x03, 0x25];

    pub(crate) fn new(lab: &Lab) -> Self {
        let (here, there) = (lab.topology.node(0), lab.topology.node(1));
        let mark = |frame: &Frame| frame.bytes.windows(Self::MARK.len()).any(|bytes| bytes == Self::MARK);
        let count = |netns, link| Capture::count(netns, link, mark).unwrap();
        Self([count(&here.netns, &here.bridge.name), count(&there.netns, &there.underlay.link.name)])
    }

    /// A container's program: sends it twelve packets from its first moment on, and logs how many it has sent shortly before it is 100 ms old.
    pub(crate) fn sends(to: Ipv4Addr) -> String {
        format!(
            "read begin rest </proc/uptime; busybox ping -c 12 -i 0.005 -W 1 -s 777 {to} & busybox usleep 80000; \
             busybox grep ^Icmp: /proc/net/snmp; read now rest </proc/uptime; echo took $begin $now; wait; true"
        )
    }

    /// Whether such a log shows ten packets or more in the first 100 ms. The clock goes by hundredths of a second.
    fn is_early(log: &str) -> bool {
        // Names, and below them values.
        let rows = log.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let rows: Vec<Vec<&str>> = rows.map(|row| row.split(' ').collect()).collect();
        let [names, values] = &rows[..] else { panic!("no counters: {log}") };
        let sent: usize = values[names.iter().position(|name| *name == "OutEchos").unwrap()].parse().unwrap();
        let took = log.lines().find_map(|line| line.strip_prefix("took ")?.split_once(' ')).unwrap();
        let hundredths = |clock: &str| clock.replace('.', "").parse::<u64>().unwrap();
        sent >= 10 && hundredths(took.1) - hundredths(took.0) <= 9
    }

    /// Starts containers that may call nobody, until so many count. A start that sent too little in its first 100 ms shows nothing, and is done again.
    pub(crate) fn sees_nothing_of(&self, wanted: usize, how: &str, mut start: impl FnMut() -> String) {
        let (mut counted, mut repeated) = (0, 0);
        while counted < wanted {
            let log = start();
            assert!(log.contains("12 packets transmitted, 0 packets received"), "{how}, start {counted}: {log}");
            assert_eq!(self.saw(), [0, 0], "{how}, start {counted}: {log}");
            if Self::is_early(&log) {
                counted += 1;
            } else {
                repeated += 1;
                assert!(
                    repeated <= wanted + 20,
                    "{how}: {repeated} starts sent too little in their first 100 ms: {log}"
                );
            }
        }
        thread::sleep(BRIEF);
        let saw = self.saw();
        eprintln!(
            "{how}: {counted} starts count, {repeated} sent too little and were repeated; seen on bridge and wire: {saw:?}"
        );
        assert_eq!(saw, [0, 0], "{how}");
    }

    /// Frames on the bridge and on the wire.
    pub(crate) fn saw(&self) -> [u64; 2] {
        self.0.each_ref().map(|capture| capture.counts().frames)
    }
}

pub(crate) fn none() -> Map<String, serde_json::Value> {
    Map::new()
}
