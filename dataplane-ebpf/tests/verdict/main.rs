//! The verdict code over plain tables: what becomes of each kind of packet, every counter compared after each one; random and damaged
//! packets over random tables; the fuzzers' corpus.

mod corpus;
mod early;
mod harness;
mod lab;
mod node;
mod observe;
mod random;
mod services;
mod underlay;
mod workload;

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

/// Those that need a kernel: the verdict code never states none, and has no memory that could be short.
const BY_PROGRAMS: [bulkhead_ebpf::reason::Reason; 2] =
    [bulkhead_ebpf::reason::Reason::None, bulkhead_ebpf::reason::Reason::NoMemory];

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
    let missing = bulkhead_ebpf::reason::Reason::ALL.iter().filter(|reason| !reached.contains(reason));
    assert!(missing.eq(&BY_PROGRAMS), "reached: {reached:?}");
}
