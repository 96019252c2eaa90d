//! What a node is like before anything is installed: facts for `bulkhead check`. Nothing is changed, pinned or attached here, and no agent is needed.
//!
//! Each probe gives plain data, or the error that kept it from looking; what the facts mean is judged elsewhere. Everything concerns the network
//! namespace of the calling thread.

mod driver;
mod firewall;
mod kernel;
mod programs;
mod rootless;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::{
    driver::Driver,
    firewall::Firewall,
    kernel::Kernel,
    programs::{Foreign, Hanging, Place, hanging},
    rootless::{Process, Rootless},
};
use crate::{
    load::{self, Rehearsal, Sizes},
    mark,
    network::{self, Survey},
    node::{MarkConflicts, NodeError},
    pins::Pins,
};

/// What a probe found, or why it could not look.
pub type Probe<T> = Result<T, String>;

/// What the probes found.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Directory on a bpffs that was asked about.
    pub directory: PathBuf,
    /// Mask of the mark that was asked about.
    pub mark_mask: u32,
    /// Whether something of this version is pinned there already.
    pub installed: bool,
    /// Kernel and rights of this process.
    pub kernel: Kernel,
    /// Loading this version's programs and tables, which are gone again.
    pub rehearsal: Probe<Rehearsal>,
    /// Whether things can be pinned.
    pub pins: Probe<()>,
    /// Links, VXLAN devices and routes.
    pub network: Probe<Survey>,
    /// Drivers of the underlay's links, by name of the link.
    pub drivers: Vec<(String, Driver)>,
    /// What hangs on the links that would be guarded.
    pub hanging: Vec<Hanging>,
    /// nftables, iptables and IPVS.
    pub firewall: Firewall,
    /// Who else uses the mark.
    pub marks: MarkConflicts,
    /// Containers that no program of ours can guard.
    pub rootless: Probe<Rootless>,
}

/// Looks at everything, for an agent with these pins and this mask of the mark. Takes some seconds: the verifier does.
#[must_use]
pub fn facts(pins: &Path, mark_mask: u32) -> Facts {
    let (sizes, pins) = (Sizes::default(), Pins::new(pins));
    let network = network::survey().map_err(told);
    let survey = network.as_ref().ok();
    let underlay = survey.iter().flat_map(|survey| &survey.links).filter(|link| link.underlay);
    Facts {
        directory: pins.base().to_owned(),
        mark_mask,
        installed: pins.exist(),
        kernel: Kernel::look(),
        rehearsal: load::rehearse(&sizes, mark_mask).map_err(told),
        pins: pins.check().map_err(told),
        drivers: underlay.map(|link| (link.name.clone(), Driver::look(&link.name, link.index))).collect(),
        hanging: survey.map(|survey| hanging(&pins, survey)).unwrap_or_default(),
        firewall: Firewall::look(),
        marks: mark::conflicts(mark_mask, sizes.slots),
        rootless: Rootless::look(),
        network,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn told(error: NodeError) -> String {
    error.to_string()
}
