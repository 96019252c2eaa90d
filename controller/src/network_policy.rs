//! What a Kubernetes `NetworkPolicy` says, once it is read.

use bulkhead_ebpf::abi::Direction;

use crate::{
    diagnostic::Place,
    labels::Selector,
    model::{Peer, PolicyName},
    ports::Ports,
};

/// One object. It isolates the pods that it selects in the directions of its types, and its rules let through what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its name.
    pub name: PolicyName,
    /// Where its name stands.
    pub place: Place,
    /// Pods of its namespace that it is about.
    pub pods: Selector,
    /// It isolates traffic to its pods.
    pub ingress: bool,
    /// It isolates traffic from its pods.
    pub egress: bool,
    /// Rules in order; a rule in a direction that it does not isolate says nothing.
    pub rules: Vec<Rule>,
}

/// One item of `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable, unique and without line numbers: `networkpolicy shop/allow-web: ingress[0]`.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Direction.
    pub direction: Direction,
    /// Any of them; [`Peer::Any`] alone where it names none.
    pub peers: Vec<Peer>,
    /// Any of them; [`Ports::Any`] alone where it names none.
    pub ports: Vec<Ports>,
}

impl NetworkPolicy {
    /// Whether it isolates in a direction.
    #[must_use]
    pub const fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}
