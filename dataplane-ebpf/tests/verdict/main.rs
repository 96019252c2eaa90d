//! The verdict code over plain tables: what becomes of each kind of packet, every counter compared after each one; random and damaged
//! packets over random tables; the fuzzers' corpus.

mod corpus;
mod direct;
mod early;
mod established;
mod harness;
mod lab;
mod node;
mod observe;
mod random;
mod services;
mod underlay;
mod workload;

use bulkhead_ebpf::reason::Reason;

/// Makes each function a test, and a list of all of them.
macro_rules! scenarios {
    ($($name:ident)*) => {
        pub(crate) const SCENARIOS: &[fn()] = &[$($name,)*];

        mod each {
            $(#[test]
            fn $name() {
                super::$name();
            })*
        }
    };
}
use scenarios;

/// Those that need a kernel: the verdict code never states none, has no memory that could be short, and is not asked at the gate of bridges.
const BY_KERNEL: [Reason; 3] = [Reason::None, Reason::NoMemory, Reason::Unguarded];

#[test]
fn every_reason_is_reached() {
    for scenario in
        [workload::SCENARIOS, observe::SCENARIOS, services::SCENARIOS, underlay::SCENARIOS, early::SCENARIOS]
            .into_iter()
            .flatten()
    {
        scenario();
    }
    let reached = lab::reached();
    let missing = Reason::ALL.iter().filter(|reason| !reached.contains(reason));
    assert!(missing.eq(&BY_KERNEL), "reached: {reached:?}");
}
