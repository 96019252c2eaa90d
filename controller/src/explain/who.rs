//! Who is asked about.

use std::net::IpAddr;

use super::Party;
use crate::{diagnostic::Diagnostic, simulate::Simulation, workloads::WorkloadName};

/// Somebody as a person names them.
#[derive(Clone, Debug)]
pub enum Who {
    /// A workload.
    Workload(WorkloadName),
    /// An address.
    Address(IpAddr),
}

impl Who {
    /// Reads `namespace/name`, or an address.
    ///
    /// # Errors
    /// There is no such workload.
    pub fn parse(simulation: &Simulation<'_>, text: &str) -> Result<Self, Diagnostic> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name =
            text.split_once('/').map(|(namespace, name)| WorkloadName::new(namespace.to_owned(), name.to_owned()));
        let found = name.and_then(|name| simulation.member(&name).cloned());
        found.map(Self::Workload).ok_or_else(|| no_workload(simulation, text))
    }

    /// As a question names it.
    #[must_use]
    pub const fn party(&self) -> Party<'_> {
        match self {
            Self::Workload(name) => Party::Workload(name),
            Self::Address(address) => Party::Address(*address),
        }
    }
}

/// What to say of a workload that nobody has.
#[must_use]
pub fn no_workload(simulation: &Simulation<'_>, text: &str) -> Diagnostic {
    Diagnostic::nowhere(format!("there is no workload `{text}`")).help(simulation.suggest(text))
}
