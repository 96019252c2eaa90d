//! The wall clock steps by an hour while an agent lives: what ends, ends when the clock says so.
//!
//! The clock is the machine's, so that this stands alone: cargo runs one test binary after the other. It is off for as long as an agent needs to follow
//! it, some tenths of a second each time, and only in the long variant of the tests.

use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant, SystemTime},
};

use bulkhead_dataplane::{
    kernel::KernelStore,
    load::Maps,
    pins::Pins,
    store::{Endpoints, Store as _, Views},
};
use bulkhead_ebpf::abi::{EndpointWord, VIEW_CHAIN};
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab, visit};
use bulkhead_topology::{
    Topology,
    traffic::{Outcome, TcpEcho, UdpEcho},
};

const CAP_SYS_TIME: u8 = 25;
const HOUR: Duration = Duration::from_secs(3600);
/// How far from what is written an end may be.
const SECOND: Duration = Duration::from_secs(1);
/// For what must happen: long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not happen.
const BRIEF: Duration = Duration::from_millis(100);

/// The wall clock is off by some seconds, until this is dropped.
struct Stepped(i64);

impl Stepped {
    fn by(seconds: i64) -> Self {
        step(seconds).unwrap();
        Self(seconds)
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        if let Err(error) = step(-self.0) {
            eprintln!("THE CLOCK IS OFF by {} s: {error}", self.0);
        }
    }
}

/// Adds to the wall clock, in the kernel: nothing is lost between reading and setting it.
fn step(seconds: i64) -> io::Result<()> {
    // SAFETY: plain integers.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET;
    change.time.tv_sec = seconds;
    // SAFETY: the kernel reads and writes one `timex`.
    let state = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A node with an agent, and what is guarded there for a while.
struct Shop {
    agent: Agent,
    tables: KernelStore,
    servers: (TcpEcho, UdpEcho),
    lab: Lab,
}

impl Shop {
    fn new() -> Self {
        let builder = Topology::builder().nodes(1).workload("web", 0).workload("cart", 0).workload("guest", 0);
        let lab = Lab::new(builder).unwrap();
        let policy = "apiVersion: bulkhead/v1
kind: Intent
namespace: shop
services:
  web:
    calls: [cart:5300/udp]
  cart: {}
";
        lab.policy("shop.yaml", policy).unwrap();
        let cart = lab.topology.workload("cart");
        let servers = (
            TcpEcho::start(&cart.netns, (cart.v4, 8080).into()).unwrap(),
            UdpEcho::start(&cart.netns, (cart.v4, 5300).into()).unwrap(),
        );
        let agent = Agent::start(&lab, 0, &[]).unwrap();
        let tables = KernelStore::new(Maps::open(&Pins::new(&lab.pins(0))).unwrap()).unwrap();
        Self { agent, tables, servers, lab }
    }

    /// `guest` may call `cart` for a while, and `web` may not.
    fn guard(&mut self, allow: SystemTime, deny: SystemTime) {
        let guard = visit(allow, deny);
        let lab = &self.lab;
        self.agent.apply(|| lab.policy("guard.yaml", &guard)).unwrap();
    }

    /// When what is in force ends, in jiffies as the kernel counts them, on the wall clock as it is now.
    fn ends(&self) -> Vec<SystemTime> {
        let mut deadlines = BTreeSet::new();
        for (_, word) in self.tables.entries::<Endpoints>().unwrap() {
            let mut index = EndpointWord(word).view();
            for _ in 0..VIEW_CHAIN {
                let view = self.tables.get::<Views>(&index).unwrap().unwrap();
                if view.deadline == u64::MAX {
                    break;
                }
                deadlines.insert(view.deadline);
                index = view.next;
            }
        }
        let (now, (jiffies, hz)) = (SystemTime::now(), self.tables.clock().unwrap());
        let time = |jiffies: u64| Duration::from_secs_f64(jiffies as f64 / hz as f64);
        let wall = |deadline: u64| match deadline.checked_sub(jiffies) {
            Some(left) => now + time(left),
            None => now - time(jiffies - deadline),
        };
        deadlines.into_iter().map(wall).collect()
    }

    /// Waits until exactly these ends are in force, each to a second. Returns how long that took.
    #[track_caller]
    fn follows(&self, wanted: &[SystemTime]) -> Duration {
        let start = Instant::now();
        loop {
            let ends = self.ends();
            let near = |a: &SystemTime, b: &SystemTime| {
                a.duration_since(*b).or_else(|_| b.duration_since(*a)).is_ok_and(|apart| apart <= SECOND)
            };
            let all = |some: &[SystemTime], of: &[SystemTime]| some.iter().all(|a| of.iter().any(|b| near(a, b)));
            if all(&ends, wanted) && all(wanted, &ends) {
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "{ends:?} and not {wanted:?}\n{}", self.agent.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `guest` and `web` see when they call `cart`, where these shall be answered: `BRIEF` for what shall not.
    fn outcomes(&self, guest: bool, web: bool) -> (Outcome, Outcome) {
        let patience = |answered| if answered { PATIENCE } else { BRIEF };
        let client = |name, answered| self.lab.topology.workload(name).client().deadline(patience(answered));
        let tcp = client("guest", guest).tcp(self.servers.0.addr()).unwrap();
        (tcp, client("web", web).udp(self.servers.1.addr()).unwrap())
    }

    #[track_caller]
    fn reach(&self, guest: bool, web: bool) {
        let [guest_sees, web_sees] = [guest, web].map(shall_see);
        assert_eq!(self.outcomes(guest, web), (guest_sees, web_sees), "guest and web\n{}", self.agent.log());
    }
}

fn shall_see(answered: bool) -> Outcome {
    if answered { Outcome::Answered } else { Outcome::TimedOut }
}

/// One test, so that nothing runs beside it.
#[test]
fn what_expires_ends_by_a_clock_that_steps_by_an_hour() {
    // Whoever runs `make test` has other things on the machine that read its clock.
    if !skip::long()
        || !skip::root()
        || !skip::require("CAP_SYS_TIME", skip::capability(CAP_SYS_TIME))
        || !skip::require("a kernel that lets root step the wall clock", step(0).is_ok())
    {
        return;
    }
    let mut shop = Shop::new();
    let hour = i64::try_from(HOUR.as_secs()).unwrap();

    // Hours ahead: the ends stay where they are on the wall clock, and what they end stays in force.
    let ends = [SystemTime::now() + 2 * HOUR, SystemTime::now() + 3 * HOUR];
    shop.guard(ends[0], ends[1]);
    shop.follows(&ends);
    shop.reach(true, false);
    for seconds in [hour, -hour] {
        let stepped = Stepped::by(seconds);
        let there = shop.follows(&ends);
        shop.reach(true, false);
        drop(stepped);
        println!(
            "a step of {seconds} s: the ends are in place after {there:?}, and back after {:?}",
            shop.follows(&ends)
        );
    }

    // Half an hour ahead: the step ends both, and the step back begins both anew.
    let ends = [SystemTime::now() + HOUR / 2; 2];
    shop.guard(ends[0], ends[1]);
    shop.follows(&ends);
    shop.reach(true, false);
    let stepped = Stepped::by(hour);
    let there = shop.follows(&[]);
    shop.reach(false, true);
    drop(stepped);
    println!("a step over the ends: over after {there:?}, and back after {:?}", shop.follows(&ends));
    shop.reach(true, false);

    // Soon: an hour back and forth, and they end when they should. A machine that is too busy to look before gets more time.
    for seconds in [5, 20, 60] {
        let end = SystemTime::now() + Duration::from_secs(seconds);
        shop.guard(end, end);
        let stepped = Stepped::by(-hour);
        shop.follows(&[end]);
        drop(stepped);
        let left = |until: SystemTime| until.duration_since(SystemTime::now()).unwrap_or_default();
        if left(end) < 2 * SECOND {
            continue;
        }
        shop.follows(&[end]);
        // Not a second too early, nor one too late.
        let mut before = 0;
        loop {
            let seen = shop.outcomes(true, false);
            if left(end) < SECOND {
                break;
            }
            assert_eq!(seen, (shall_see(true), shall_see(false)), "{:?} before the end", left(end));
            before += 1;
        }
        if before == 0 {
            continue;
        }
        thread::sleep(left(end + SECOND));
        shop.reach(false, true);
        return;
    }
    panic!("a minute was not enough to apply a policy");
}
