//! What of an object of a cluster says whom else a change of it concerns.

use std::{net::IpAddr, time::SystemTime};

use super::{Object, Seen, join::is_resolver};
use crate::workloads::WorkloadName;

impl Seen {
    /// What is read of an object as a cluster has it.
    pub(super) fn new(mut object: Object) -> Self {
        if let Object::Pod(pod) = &mut object {
            pod.name_service();
            // Nodes of a cluster say that themselves.
            pod.node_addresses = Box::default();
        }
        Self(object)
    }

    /// Has it share its name with others who know it.
    pub(crate) fn call(&mut self, name: &WorkloadName) {
        if let Object::Pod(pod) = &mut self.0
            && pod.metadata.name == *name
        {
            pod.metadata.name = name.clone();
        }
    }

    /// Whether it is the pod with this unique id, and has not ended.
    pub(crate) fn is_pod(&self, uid: &str) -> bool {
        matches!(&self.0, Object::Pod(pod) if pod.metadata.uid.as_deref() == Some(uid) && !pod.finished)
    }

    /// Node of a pod that runs there.
    pub(crate) fn node(&self) -> Option<&str> {
        match &self.0 {
            Object::Pod(pod) if !pod.finished => pod.template.node.as_ref().map(|(node, _)| &**node),
            _ => None,
        }
    }

    /// Addresses that a pod says it has. One that does not run has none, and one in its node's network none of its own.
    pub(crate) fn claims(&self) -> impl Iterator<Item = IpAddr> {
        let pod = match &self.0 {
            Object::Pod(pod) if self.node().is_some() && !pod.template.host => Some(pod),
            _ => None,
        };
        pod.into_iter().flat_map(|pod| pod.addresses.iter().map(|(address, _)| *address))
    }

    /// When a pod was made.
    pub(crate) fn created(&self) -> Option<SystemTime> {
        match &self.0 {
            Object::Pod(pod) => pod.metadata.created,
            _ => None,
        }
    }

    /// Whether it is a service whose selector has this pod.
    pub(crate) fn selects(&self, pod: &Self) -> bool {
        match (&self.0, &pod.0) {
            (Object::Service(service), Object::Pod(pod)) => {
                let has = |(label, value): (&str, &str)| pod.template.labels.get(label) == Some(value);
                !service.selector.is_empty() && service.selector.iter().all(has)
            }
            _ => false,
        }
    }

    /// Service of a slice.
    pub(crate) fn service(&self) -> Option<&str> {
        match &self.0 {
            Object::Slice(_, slice) => Some(&slice.service),
            _ => None,
        }
    }

    /// Addresses of a service or node, and those that answer by a slice.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        match &self.0 {
            Object::Service(service) => service.cluster.iter().chain(&service.external).copied().collect(),
            Object::Node(_, machine) => machine.addresses.iter().copied().collect(),
            Object::Slice(_, slice) => {
                slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether two nodes are the same to their pods.
    pub(crate) fn places_pods_as(&self, other: Option<&Self>) -> bool {
        match (&self.0, other.map(|other| &other.0)) {
            (Object::Node(_, one), Some(Object::Node(_, other))) => one.segments == other.segments,
            (Object::Node(_, one), _) => one.segments.is_empty(),
            _ => false,
        }
    }

    /// Whether it is the service of the cluster's resolver.
    pub(crate) fn is_resolver(&self) -> bool {
        matches!(&self.0, Object::Service(service) if is_resolver(&service.metadata))
    }
}
