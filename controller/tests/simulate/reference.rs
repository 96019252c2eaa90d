//! What policies of Kubernetes mean, written once more as its documentation tells it: the rules of admin policies by priority and order, of which the
//! first that matches decides, where `Pass` leaves all of them; then network policies, of which any may allow where one isolates; then the
//! baseline. Nothing of the compiler is used here.

use bulkhead_controller::{
    guard::{Guard, Tier, Whom},
    labels::Labels,
    model::{Model, Peer, Scope},
    network_policy::NetworkPolicy,
    policy::Policy,
    ports::{Ports, Transport},
    simulate::{Party, Simulation, display},
    workloads::{Workload, WorkloadName, Workloads},
};
use bulkhead_ebpf::abi::{Action, Class, Direction};
use proptest::prelude::*;

use crate::cluster::{admins, cluster};

/// Ports that are asked about: those that policies and workloads name, and one that nobody does.
const ASKED: [u16; 3] = [80, 8080, 443];

type Member<'a> = (&'a WorkloadName, &'a Workload);

struct Cluster<'a> {
    workloads: &'a Workloads,
    policies: &'a [NetworkPolicy],
    admins: &'a [Guard],
}

impl Cluster<'_> {
    fn namespace(&self, name: &str) -> Labels {
        self.workloads.namespaces.get(name).cloned().unwrap_or_default()
    }

    fn is(&self, peer: &Peer, (name, workload): Member<'_>) -> bool {
        match peer {
            Peer::Any => true,
            Peer::Workloads { namespaces, labels } => {
                let inside = match namespaces {
                    Scope::Named(namespace) => *namespace == name.namespace,
                    Scope::Labelled(selector) => selector.matches(&self.namespace(&name.namespace)),
                };
                inside && labels.matches(&workload.labels)
            }
            Peer::Cidrs(cidrs) => {
                let address = workload.endpoints[0].addresses[0];
                cidrs.cidrs.iter().any(|net| net.contains(address))
            }
            other => panic!("{other} is not drawn"),
        }
    }

    /// Whether ports hold one of TCP, on the side that listens.
    fn holds(ports: &[Ports], port: u16, listener: &Workload) -> bool {
        ports.iter().any(|ports| match ports {
            Ports::Any => true,
            Ports::Range { transport: Transport::Tcp, first, last } => (*first..=*last).contains(&port),
            Ports::Named { name, .. } => {
                listener.ports.get(name).is_some_and(|ports| ports.contains(&(Transport::Tcp, port)))
            }
            other => panic!("{other} is not drawn"),
        })
    }

    fn guards(&self, tier: Tier, direction: Direction, own: Member<'_>, peer: Member<'_>, port: u16) -> Option<Action> {
        let listener = if direction == Direction::Egress { peer.1 } else { own.1 };
        let mut of_tier: Vec<&Guard> = self.admins.iter().filter(|admin| admin.tier == tier).collect();
        of_tier.sort_by_key(|admin| admin.priority);
        let about = of_tier.into_iter().filter(|admin| {
            admin.subjects.namespaces.matches(&self.namespace(&own.0.namespace))
                && admin.subjects.workloads.matches(&own.1.labels)
        });
        let mut rules = about.flat_map(|admin| &admin.rules).filter(|rule| rule.direction == direction);
        let found = rules.find(|rule| {
            let Whom::Is(whom) = &rule.peer else { panic!("not drawn") };
            self.is(whom, peer) && Self::holds(&rule.ports, port, listener)
        });
        found.map(|rule| rule.action)
    }

    fn allows(&self, direction: Direction, own: Member<'_>, peer: Member<'_>, port: u16) -> bool {
        match self.guards(Tier::Admin, direction, own, peer, port) {
            Some(Action::Allow) => return true,
            Some(Action::Deny) => return false,
            _ => {}
        }
        let listener = if direction == Direction::Egress { peer.1 } else { own.1 };
        let isolating: Vec<&NetworkPolicy> = self
            .policies
            .iter()
            .filter(|policy| policy.name.namespace == own.0.namespace && policy.pods.matches(&own.1.labels))
            .filter(|policy| policy.isolates(direction))
            .collect();
        if !isolating.is_empty() {
            let mut rules =
                isolating.iter().flat_map(|policy| &policy.rules).filter(|rule| rule.direction == direction);
            return rules.any(|rule| {
                rule.peers.iter().any(|whom| self.is(whom, peer)) && Self::holds(&rule.ports, port, listener)
            });
        }
        self.guards(Tier::Baseline, direction, own, peer, port) != Some(Action::Deny)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn simulation_says_what_the_documentation_says((policies, workloads) in cluster(), admins in admins()) {
        let reference = Cluster { workloads: &workloads, policies: &policies, admins: &admins };
        let all: Vec<Policy> =
            policies.iter().cloned().map(Policy::Network).chain(admins.iter().cloned().map(Policy::Guard)).collect();
        let model = Model::build(&all, &workloads).unwrap();
        let simulation = Simulation::new(&model, 0).unwrap();
        for (from, caller) in &workloads.workloads {
            for (to, callee) in workloads.workloads.iter().filter(|(to, _)| *to != from) {
                let names = [from, to].map(|name| display(name, &model.workloads[name]));
                let found = simulation.between(Party::Group(&names[0]), Party::Group(&names[1]));
                for port in ASKED {
                    let expected = reference.allows(Direction::Egress, (from, caller), (to, callee), port)
                        && reference.allows(Direction::Ingress, (to, callee), (from, caller), port);
                    let found = found.of(Class::Tcp).any(|(first, last)| (first..=last).contains(&port));
                    prop_assert_eq!(found, expected, "{} calls {} on {}", from, to, port);
                }
            }
        }
    }
}
