//! `NetworkPolicy` of `networking.k8s.io/v1`.

use crate::{diagnostic::Diagnostics, network_policy::NetworkPolicy, yaml::tree::Fields};

pub(super) fn read(_api_version: &str, _object: &mut Fields<'_>, _found: &mut Diagnostics) -> Option<NetworkPolicy> {
    None
}
