//! Shuts a container's link where the agent cannot: in the pinned programs an endpoint that no table knows lets nothing pass.

use std::path::Path;

use crate::{
    attach::{Classifiers, Links},
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
    links.shut_both(&maps, link)
}
