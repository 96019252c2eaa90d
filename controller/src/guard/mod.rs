//! `kind: Guard`: what owners of the platform write. Judged before every Intent; isolates nobody by itself.

mod read;
mod resolve;

use std::fmt;

use bulkhead_ebpf::abi::{Action, Direction};

use crate::{
    diagnostic::Place,
    labels::Selector,
    model::{self, ServiceName},
    ports::Ports,
};

pub(crate) use read::{Fields, MatchFields, RuleFields, SubjectFields};
pub(crate) use resolve::resolve;

/// One document. Its first rule that matches decides; when none does, what comes after it is asked.
///
/// Kubernetes' `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy` and `ClusterNetworkPolicy` are the same by another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Its kind, as texts name it.
    pub kind: Kind,
    /// Before or behind Intents and `NetworkPolicy`.
    pub tier: Tier,
    /// Name.
    pub name: String,
    /// Where its name stands.
    pub place: Place,
    /// Guards are judged by ascending priority.
    pub priority: u32,
    /// Where its priority stands.
    pub priority_place: Place,
    /// Whom it concerns.
    pub subjects: Subjects,
    /// Label of namespaces that tells who is the same and who is other, and where it stands.
    pub compare: Option<(String, Place)>,
    /// Rules in order, one for each peer that is written.
    pub rules: Vec<Rule>,
}

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Our own.
    Guard,
    /// `policy.networking.k8s.io/v1alpha1`.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
}

impl Kind {
    /// As documents say it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guard => "Guard",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// Several of them.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Guard => "Guards",
            Self::AdminNetworkPolicy => "AdminNetworkPolicies",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicies",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicies",
        }
    }
}

/// When a Guard is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before Intents and `NetworkPolicy`.
    Admin,
    /// Behind them: for what nobody isolates.
    Baseline,
}

/// Whom a Guard concerns: every workload that fulfils all conditions. Without a condition every workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// Where they stand; `None` when they are left out.
    pub place: Option<Place>,
    /// Labels of the workload's namespace.
    pub namespaces: Selector,
    /// Services, of one of which it is a member; empty for no condition.
    pub services: Vec<(ServiceName, Place)>,
    /// Labels of the workload.
    pub workloads: Selector,
}

impl fmt::Display for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if !self.namespaces.is_everybody() {
            words.push(format!("namespaces [{}]", self.namespaces));
        }
        if !self.workloads.is_everybody() {
            words.push(format!("workloads [{}]", self.workloads));
        }
        words.extend(self.services.iter().map(|(service, _)| service.to_string()));
        f.write_str(&words.join(" "))
    }
}

/// A rule for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable, unique and without line numbers: `guard tenants: deny to node:22/tcp`.
    pub name: String,
    /// Where its peer is written.
    pub place: Place,
    /// What a match does.
    pub action: Action,
    /// Traffic to whom it concerns, or from it.
    pub direction: Direction,
    /// The other side.
    pub peer: Whom,
    /// Ports on the side that listens, never empty.
    pub ports: Vec<Ports>,
    /// It is judged beside what is enforced, and reported.
    pub audit: bool,
    /// End, in nanoseconds of Unix time; `None` for never.
    pub expires: Option<u64>,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Workloads whose namespace has the label's value of the namespace of the workload that it concerns.
    Same,
    /// Everyone else, known or not.
    Other,
    /// The same for whomever it concerns.
    Is(model::Peer),
}

impl Rule {
    /// Whether it holds at a time, in nanoseconds of Unix time.
    #[must_use]
    pub fn holds(&self, now: u64) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}
