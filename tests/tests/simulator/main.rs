//! The kernel and `bulkhead simulate` agree: for every pair of workloads and of a workload and what is outside, each at every boundary of ports, the
//! programs let a connection begin exactly if the simulator says so.
//!
//! Each node of a case has tables of its own, published as the agent publishes them. The caller's program judges the first packet, then the callee's.

mod ask;
mod cases;
mod node;

use bulkhead_fixtures::skip;

use crate::{ask::Compared, node::Kernels};

#[test]
fn the_kernel_lets_through_what_the_simulator_says() {
    if !skip::programs() {
        return;
    }
    let Some(data) = skip::test_data() else { return };
    let mut kernels = Kernels::default();
    let (mut all, mut wrong) = (Compared::default(), Vec::new());
    for case in cases::all(&data) {
        let compared = ask::compare(&case, &mut kernels, &mut wrong);
        println!("{}: {compared}", case.name);
        all += compared;
    }
    println!("together: {all}");
    let shown = wrong.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n\n");
    assert!(wrong.is_empty(), "{} of {} verdicts differ\n{shown}", wrong.len(), all.verdicts);
    let refused = all.verdicts - all.allowed;
    assert!(all.allowed >= 200_000 && refused >= 50_000, "fewer verdicts than promised: {all}");
}
