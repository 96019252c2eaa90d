//! What a call to a service's address asks for: whom it may reach once a node has translated it.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    World,
    policy::{Decision, Direction, Reading, Want, Why},
    world::{Backend, Entity, Front, FrontPort, Protocol, Segment, Workload},
};

/// What nodes make of a call to an address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where it may end; never nowhere.
    pub backends: Vec<(IpAddr, Want)>,
    /// This node chooses, so that its later walls see the choice.
    pub here: bool,
}

/// The answer about a call, before the backend is chosen.
pub(crate) struct Call {
    /// One of those that decide it.
    pub(crate) decision: Decision,
    /// Why the others that decide it do.
    pub(crate) others: BTreeSet<Why>,
    /// A later wall of this node has the last word.
    pub(crate) provisional: bool,
    /// Refused; but a backend on this node is to the caller's policy what the caller itself is. Who reaches itself passes, and
    /// a wall that knows others by what policies say of them may take the one for the other until the backend is chosen.
    pub(crate) twin: bool,
}

impl From<Decision> for Call {
    fn from(decision: Decision) -> Self {
        Self { decision, others: BTreeSet::new(), provisional: false, twin: false }
    }
}

impl World {
    /// What becomes of a call; `None` where the address stands for itself, as that of a service without backends does.
    #[must_use]
    pub fn translation(&self, segment: Segment, address: IpAddr, want: Want) -> Option<Translation> {
        let Want::Port(protocol, _) = want else { return None };
        let (front, target) = self.called(address, want)?;
        let backends = front.backends.iter().filter_map(|backend| {
            let own = match backend {
                Backend::Address(address) => vec![*address],
                Backend::Workload(name) => {
                    let workload = self.workload(&front.namespace, name);
                    let endpoints = workload.iter().flat_map(|w| &w.endpoints).filter(|e| e.segment == segment);
                    endpoints.flat_map(|e| e.addresses.clone()).collect()
                }
            };
            own.into_iter().find(|own| own.is_ipv4() == address.is_ipv4())
        });
        let backends: Vec<_> = backends.map(|backend| (backend, Want::Port(protocol, target))).collect();
        (!backends.is_empty()).then_some(Translation { backends, here: self.translates(address) })
    }

    /// Whether a call is to a service of which no backend is known, and this node would choose one: if it knows one all the same, a later wall of this node
    /// has the last word.
    pub(crate) fn is_unanswered(&self, segment: Segment, address: IpAddr, want: Want) -> bool {
        let is_called = self.called(address, want).is_some() && self.translates(address);
        is_called && self.translation(segment, address, want).is_none()
    }

    /// Whether this node is the one that chooses among the backends of the address.
    fn translates(&self, address: IpAddr) -> bool {
        self.node_of(address).is_none_or(|node| node == self.here)
    }

    fn node_of(&self, address: IpAddr) -> Option<usize> {
        self.nodes.iter().position(|node| node.addresses.contains(&address))
    }

    /// The service that has the address and port, and the port of its backends.
    fn called(&self, address: IpAddr, want: Want) -> Option<(&Front, u16)> {
        let Want::Port(protocol, port) = want else { return None };
        let at_node = self.node_of(address).is_some();
        let target = |front: &Front| {
            let mut ports = front.ports.iter().filter(|p| p.protocol == protocol);
            let is_called = |p: &&FrontPort| {
                front.addresses.contains(&address) && p.port == port || at_node && p.node_port == Some(port)
            };
            ports.find(is_called).map(|p| p.target)
        };
        self.services.iter().find_map(|front| Some((front, target(front)?)))
    }

    /// Whether the way to the address passes a wall of this node behind the caller's own: a local workload's, or the
    /// overlay's.
    #[must_use]
    pub fn judged_later(&self, segment: Segment, address: IpAddr) -> bool {
        self.local_owner(segment, address).is_some() || self.peer(segment, address, false).behind
    }

    /// Whether one of the places where it may end is a node's tunnel.
    pub(crate) fn tunnels(&self, translation: &Translation) -> bool {
        translation.backends.iter().any(|(address, want)| {
            matches!(want, Want::Port(Protocol::Udp, port) if self.tunnel_ports.contains(port))
                && self.peer(0, *address, false).is(Entity::Nodes)
        })
    }

    /// Whether the workload may call: all whom no later wall judges must be allowed, and where there are none, somebody.
    pub(crate) fn call(
        &self,
        reading: Reading,
        subject: &Workload,
        segment: Segment,
        translation: &Translation,
    ) -> Call {
        let later = |address| translation.here && self.judged_later(segment, address);
        let ask = |(address, want): &(IpAddr, Want)| {
            let peer = self.peer(segment, *address, false);
            // Only what comes back here is known to be itself.
            let later = later(*address);
            let decide = if later { Self::decide } else { Self::read };
            (later, decide(self, reading, subject, Direction::Egress, &peer, *want))
        };
        let (inside, outside): (Vec<_>, Vec<_>) = translation.backends.iter().map(ask).partition(|(later, _)| *later);
        let provisional = !inside.is_empty();
        let twin = translation.here && outside.is_empty() && {
            let read = |address: IpAddr, want| {
                let peer = self.peer(segment, address, false);
                [Direction::Egress, Direction::Ingress].map(|way| self.read(reading, subject, way, &peer, want))
            };
            let own: Vec<_> =
                subject.endpoints.iter().filter(|e| e.segment == segment).flat_map(|e| &e.addresses).collect();
            translation.backends.iter().any(|(address, want)| {
                let own = own.iter().find(|own| own.is_ipv4() == address.is_ipv4());
                self.local_owner(segment, *address).is_some()
                    && own.is_some_and(|own| read(**own, *want) == read(*address, *want))
            })
        };
        let (asked, allow) = if outside.is_empty() {
            let some = inside.iter().any(|(_, decision)| decision.allow);
            (inside, some)
        } else {
            let all = outside.iter().all(|(_, decision)| decision.allow);
            (outside, all)
        };
        let mut deciding = asked.into_iter().map(|(_, decision)| decision).filter(|decision| decision.allow == allow);
        let mut decision = deciding.next().expect("a translation ends somewhere");
        let mut others = BTreeSet::new();
        // One that no rule decides may be meant as well: then any name will do.
        let mut named = !decision.rules.is_empty();
        for other in deciding {
            named &= !other.rules.is_empty();
            others.insert(other.why);
            decision.rules.extend(other.rules);
        }
        if !named {
            decision.rules.clear();
        }
        Call { twin: twin && !decision.allow, decision, others, provisional }
    }
}
