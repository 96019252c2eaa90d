//! Kubernetes manifests: objects of any kind, one or many to a file, as people write them and as `kubectl get --output yaml|json` prints them.
//!
//! Policies are read strictly: an unknown field of a `spec` is an error, since it may be what somebody relied on. Of other objects only what names,
//! labels and addresses workloads is read.

mod admin;
mod network_policy;
mod objects;

use std::sync::Arc;

use crate::{
    diagnostic::{Diagnostics, Source},
    policy::Policy,
    workloads::Workloads,
    yaml::tree::Fields,
};

/// What files of manifests say together.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Policies in the order in which they were read.
    pub policies: Vec<Policy>,
    /// What is not used, and what looks wrong; never an error.
    pub notes: Diagnostics,
}

impl Manifests {
    /// Adds all objects of a file.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing of it is used then.
    pub fn read(&mut self, source: &Arc<Source>) -> Result<(), Diagnostics> {
        let _ = source;
        Err(Diagnostics::default())
    }

    /// Workloads, nodes, namespaces and service addresses of all objects.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn workloads(&self) -> Result<Workloads, Diagnostics> {
        Err(Diagnostics::default())
    }
}

/// Reads an object whose kind is that of a policy; `None` for other kinds.
fn policy(api_version: &str, kind: &str, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Option<Policy>> {
    match kind {
        "NetworkPolicy" => Some(network_policy::read(api_version, object, found).map(Policy::Network)),
        "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy" | "ClusterNetworkPolicy" => {
            Some(admin::read(api_version, kind, object, found).map(Policy::Guard))
        }
        _ => None,
    }
}
