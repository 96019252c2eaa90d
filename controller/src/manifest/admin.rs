//! `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy` (v1alpha1) and `ClusterNetworkPolicy` (v1alpha2): Guards by another name.

use crate::{diagnostic::Diagnostics, guard::Guard, yaml::tree::Fields};

pub(super) fn read(
    _api_version: &str,
    _kind: &str,
    _object: &mut Fields<'_>,
    _found: &mut Diagnostics,
) -> Option<Guard> {
    None
}
