//! Shuts a container's link where the agent cannot: in the pinned programs an endpoint that no table knows lets nothing pass.

use std::path::Path;

use bulkhead_ebpf::abi::program;

use crate::{
    attach::{Classifiers, Guard, Hook, Links},
    load::Maps,
    node::NodeError,
    pins::Pins,
};

/// Hangs the programs before a link, of an endpoint that is none. What guards the link already stays.
///
/// # Errors
/// Nothing is pinned, or the kernel refuses.
pub(super) fn close(pins: &Path, link: &str) -> Result<(), NodeError> {
    let pins = Pins::new(pins);
    pins.expect()?;
    let (maps, links) = (Maps::open(&pins)?, Links::new(&pins, Classifiers::default()));
    for (hook, program) in [(Hook::Ingress, program::FROM_WORKLOAD), (Hook::Egress, program::TO_WORKLOAD)] {
        links.shut(&maps, &Guard { link: link.to_owned(), hook, program, value: 0 })?;
    }
    Ok(())
}
