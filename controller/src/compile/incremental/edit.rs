//! Events, as they change a model and back.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    labels::Labels,
    model::{Model, PolicyName, ServiceName, Workload},
    network_policy::NetworkPolicy,
    workloads::{Frontend, WorkloadName},
};

/// What takes the place of something; `None` takes it away.
#[derive(Debug)]
pub(super) enum Edit {
    Workload(WorkloadName, Option<Box<Workload>>),
    Policy(PolicyName, Option<Arc<NetworkPolicy>>),
    Namespace(String, Option<Labels>),
    Frontend(ServiceName, Option<Frontend>),
}

impl Edit {
    /// Changes the model. What changes it back.
    pub(super) fn apply(self, model: &mut Model) -> Self {
        match self {
            Self::Workload(name, workload) => {
                let before = model.put_workload(&name, workload.map(|workload| *workload)).map(Box::new);
                Self::Workload(name, before)
            }
            Self::Policy(name, policy) => {
                let before = model.put_network_policy(&name, policy);
                Self::Policy(name, before)
            }
            Self::Namespace(name, labels) => {
                let before = model.put_namespace(&name, labels.as_ref());
                Self::Namespace(name, before)
            }
            Self::Frontend(name, frontend) => {
                let before = model.put_frontend(&name, frontend);
                Self::Frontend(name, before)
            }
        }
    }

    /// The policy that it is about, if it is about one.
    pub(super) const fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Policy(name, _) => Some(name),
            _ => None,
        }
    }

    /// Workloads whom selectors may match otherwise by it; it has yet to be applied.
    pub(super) fn affected(&self, model: &Model) -> BTreeSet<WorkloadName> {
        match self {
            Self::Workload(name, _) => BTreeSet::from([name.clone()]),
            Self::Policy(..) => BTreeSet::new(),
            Self::Namespace(name, _) => model.of_namespace(name).map(|(name, _)| name.clone()).collect(),
            Self::Frontend(name, frontend) => {
                let listed = |frontend: Option<&Frontend>| {
                    frontend.map(|frontend| frontend.workloads.clone()).unwrap_or_default()
                };
                let (before, after) = (listed(model.frontends.get(name)), listed(frontend.as_ref()));
                before.symmetric_difference(&after).cloned().collect()
            }
        }
    }

    /// The namespace of all whose rules it may change although what they are stays the same.
    pub(super) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Workload(..) | Self::Frontend(..) => None,
            Self::Policy(policy, _) => Some(&policy.namespace),
            Self::Namespace(namespace, _) => Some(namespace),
        }
    }

    /// Whether it changes those of such a workload.
    pub(super) fn concerns(&self, model: &Model, workload: &Workload) -> bool {
        match self {
            Self::Workload(..) | Self::Frontend(..) => false,
            Self::Policy(policy, new) => {
                let selects = |policy: &Arc<NetworkPolicy>| !workload.host && policy.pods.matches(&workload.labels);
                new.iter().any(selects) || model.network_policies.get(policy).is_some_and(selects)
            }
            Self::Namespace(..) => true,
        }
    }
}
