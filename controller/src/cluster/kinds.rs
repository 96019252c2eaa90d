//! What is watched of a cluster.

use kube::core::ApiResource;

use crate::workloads::WorkloadName;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// API group and version, as objects carry it.
    pub(super) api_version: &'static str,
    pub(super) name: &'static str,
    plural: &'static str,
    /// Its objects are policies.
    pub(super) is_policy: bool,
    /// A cluster may not have it: it is defined by an object itself.
    pub(super) is_optional: bool,
    /// Those that are watched, by their labels.
    pub(super) labels: Option<&'static str>,
}

/// Places of kinds in [`KINDS`].
pub(super) const NAMESPACES: usize = 0;
pub(super) const NODES: usize = 1;
pub(super) const PODS: usize = 2;
pub(super) const SERVICES: usize = 3;
pub(super) const SLICES: usize = 4;
/// Places of those that people write for Bulkhead.
pub(super) const OURS: [usize; 2] = [9, 10];

/// All of them. Slices that Kubernetes makes of what the selectors of services match are left out: the selectors say it.
pub(super) const KINDS: [Kind; 11] = [
    object("v1", "Namespace", "namespaces"),
    object("v1", "Node", "nodes"),
    object("v1", "Pod", "pods"),
    object("v1", "Service", "services"),
    Kind {
        labels: Some("endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"),
        ..object("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
    },
    Kind { is_policy: true, ..object("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies") },
    optional("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies"),
    optional("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
    optional("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"),
    optional("bulkhead.io/v1", "Intent", "intents"),
    optional("bulkhead.io/v1", "Guard", "guards"),
];

const fn object(api_version: &'static str, name: &'static str, plural: &'static str) -> Kind {
    Kind { api_version, name, plural, is_policy: false, is_optional: false, labels: None }
}

const fn optional(api_version: &'static str, name: &'static str, plural: &'static str) -> Kind {
    Kind { is_policy: true, is_optional: true, ..object(api_version, name, plural) }
}

impl Kind {
    /// How the client calls it.
    pub(super) fn resource(&self) -> ApiResource {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", self.api_version));
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: self.api_version.to_owned(),
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Name of an object of this kind, as rules carry it: `networkpolicy/shop/web`.
    pub(super) fn full_name(&self, key: &Key) -> String {
        let kind = self.name.to_ascii_lowercase();
        match key.namespace.as_str() {
            "" => format!("{kind}/{}", key.name),
            namespace => format!("{kind}/{namespace}/{}", key.name),
        }
    }
}

/// Namespace, empty for what is in none, and name. A pod is the workload of its name.
pub(super) type Key = WorkloadName;
