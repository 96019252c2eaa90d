use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use proptest::{prelude::*, sample::Index};

use super::{Features, GATEWAY, START, TICK, TUNNEL_PORT};
use crate::{
    Machine, Mode, Origin, Verdict, World,
    packet::{
        Arp, Body, Broken, ErrorKind, Fragment, Ip, Mac, Message, Neighbour, Packet, Transport, flag, link_local,
    },
    policy::{Direction, Want},
    reason,
    world::{Endpoint, EndpointId, METADATA, Protocol, Segment},
};

/// The other end of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An endpoint on this node, by place in the first world.
    Local(EndpointId),
    /// Somebody elsewhere.
    Elsewhere(IpAddr),
    /// Somebody on another node, by the overlay.
    Behind(IpAddr),
    /// This node itself.
    Node(IpAddr),
    /// A service, by an address of it or of this node.
    Service(Translated),
}

/// What the node makes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The address that is called.
    pub called: IpAddr,
    /// The chosen backend, and where it is.
    pub backend: (IpAddr, Behind),
    /// The backend's port.
    pub port: u16,
    /// Address of this node that takes the caller's place.
    pub masquerade: Option<IpAddr>,
}

/// Where a chosen backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// An endpoint on this node.
    Local(EndpointId),
    /// On another node, by the overlay.
    Overlay,
    /// Where no later wall of this node is.
    Elsewhere,
}

/// Two ends, and what the first packet asks for.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// A local endpoint.
    pub near: EndpointId,
    /// Its address.
    pub near_address: IpAddr,
    /// The other end.
    pub far: Target,
    /// Its address.
    pub far_address: IpAddr,
    /// Who begins: the near end does if this is egress.
    pub direction: Direction,
    /// What is asked for.
    pub want: Want,
    /// The asker's port, or the identifier of an echo.
    pub port: u16,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame of a conversation.
    Packet(Index, Move),
    /// Another world.
    Change(Index),
    /// Time passes.
    Wait(Duration),
    /// The mode of an endpoint of this node.
    Mode(Index, Mode),
    /// Whether the whole node observes.
    Observe(bool),
    /// The whole node observes for so long.
    Bypass(Duration),
}

/// A frame, by what it is in its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The first packet (TCP: SYN), again if need be.
    Ask,
    /// A later packet of the side that asked.
    Continue,
    /// An answer to the first packet.
    Answer,
    /// The side that was asked begins a conversation on the same ports.
    AskBack,
    /// TCP with any flags, from either side.
    Flags(bool, u8),
    /// An ICMP error about the question (`true`) or the answer, to whom it was that sent it.
    Error(bool, ErrorKind),
    /// The same, but sent to somebody who did not send it.
    Misdirected(bool, ErrorKind),
    /// A fragment from either side.
    Fragment(bool, Fragment),
    /// IPv4 options or IPv6 extension headers in the first packet.
    Extended,
    /// The first packet with somebody else's source.
    SpoofedSource,
    /// The first packet with somebody else's MAC.
    SpoofedMac,
    /// The first packet with a VLAN tag, from either side.
    Tagged(bool),
    /// The first packet in a frame for somebody else.
    NotForUs,
    /// Neither IP nor ARP, from either side.
    Foreign(bool),
    /// Broken headers, from either side.
    Broken(bool, Broken),
    /// ARP: to or from the endpoint; request; honest, a probe, of a wrong MAC or of a wrong address.
    Arp(bool, bool, u8),
    /// Neighbour discovery: to or from the endpoint; which; in which way it is wrong.
    Neighbour(bool, u8, u8),
    /// UDP to a group, to or from the endpoint.
    Group(bool),
    /// UDP to the overlay's port of the other end.
    Encapsulated,
    /// A local sender's packet that came without word of who sent it; a packet of another node's workload that did not
    /// come by the overlay. From a port that nothing else uses.
    Unheard(bool),
}

/// What happens at the walls of this node.
#[derive(Clone, Debug)]
pub enum Event {
    /// A workload sends.
    Send(EndpointId, Packet),
    /// A workload is to get.
    Deliver(EndpointId, Packet, Origin),
    /// A workload sends to another one of this node: two walls, the second only if the first lets it pass.
    Cross(EndpointId, EndpointId, Packet),
    /// A workload calls a service, or answers a call: the node replaces addresses and ports, and another workload of this
    /// node is to get the second packet.
    Translate(EndpointId, Packet, EndpointId, Packet),
    /// A workload calls a service whose backend is on another node: the second packet is about to leave by the overlay.
    Leave(EndpointId, Packet, Packet),
}

impl Event {
    /// Lets it happen: what each of the walls says, the second one only if the first lets it pass.
    pub fn happen(&self, machine: &mut Machine) -> Vec<Verdict> {
        let (from, packet) = match self {
            Self::Deliver(id, packet, origin) => return vec![machine.deliver(id, packet, origin)],
            Self::Send(from, packet)
            | Self::Cross(from, _, packet)
            | Self::Translate(from, packet, ..)
            | Self::Leave(from, packet, _) => (from, packet),
        };
        let sent = machine.send(from, packet);
        let (mut passes, provisional) = (sent.allow, sent.provisional);
        let mut verdicts = vec![sent];
        if let Self::Translate(_, _, _, packet) | Self::Leave(_, _, packet) = self
            && passes
            && provisional
        {
            let left = machine.leave(from, packet);
            passes = left.allow;
            verdicts.push(left);
        }
        if let Self::Cross(_, to, packet) | Self::Translate(_, _, to, packet) = self
            && passes
        {
            verdicts.push(machine.deliver(to, packet, &Origin::Local(from.clone())));
        }
        verdicts
    }
}

#[derive(Clone, Debug)]
pub(super) struct Raw {
    candidates: Vec<Candidate>,
    /// Look for a candidate that is allowed.
    allowed: bool,
}

#[derive(Clone, Debug)]
struct Candidate {
    near: Index,
    far: Index,
    outgoing: bool,
    want: Index,
    v6: bool,
    port: Index,
    call: Option<Call>,
}

/// A call to a service, where the world has any.
#[derive(Clone, Debug)]
struct Call {
    front: Index,
    port: Index,
    backend: Index,
    /// 0 and 1: at a node's address, where the port is one of nodes; of another node's if 0.
    place: u8,
    masquerade: bool,
}

fn call(features: Features) -> BoxedStrategy<Option<Call>> {
    if !features.services {
        return Just(None).boxed();
    }
    let call = (any::<[Index; 3]>(), 0..5_u8, any::<bool>())
        .prop_map(|([front, port, backend], place, masquerade)| Call { front, port, backend, place, masquerade });
    prop::option::weighted(0.4, call).boxed()
}

pub(super) fn conversations(features: Features) -> impl Strategy<Value = Vec<Raw>> {
    let candidate =
        (any::<Index>(), any::<Index>(), any::<bool>(), any::<Index>(), any::<bool>(), any::<Index>(), call(features))
            .prop_map(|(near, far, outgoing, want, v6, port, call)| Candidate {
                near,
                far,
                outgoing,
                want,
                v6,
                port,
                call,
            });
    let raw = (prop::collection::vec(candidate, 32), prop::bool::weighted(0.6))
        .prop_map(|(candidates, allowed)| Raw { candidates, allowed });
    prop::collection::vec(raw, 4..14)
}

impl Raw {
    /// The first candidate, or the first that a line of the world's policy allows, or else anything does.
    pub(super) fn aim(&self, world: &Arc<World>) -> Conversation {
        let mut best: Option<(u8, Conversation)> = None;
        for conversation in self.candidates.iter().filter_map(|candidate| candidate.conversation(world)) {
            let rank = if self.allowed { conversation.allowed(world) } else { 2 };
            if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                best = Some((rank, conversation));
            }
            if rank == 2 {
                break;
            }
        }
        best.map_or_else(|| Conversation::nobodys(world), |(_, conversation)| conversation)
    }
}

impl Candidate {
    fn conversation(&self, world: &World) -> Option<Conversation> {
        let local: Vec<_> = world.local().collect();
        if local.is_empty() {
            return None;
        }
        let near = self.near.get(&local).clone();
        let (_, endpoint) = world.endpoint(&near)?;
        let near_address =
            *endpoint.addresses.iter().find(|a| a.is_ipv6() == self.v6).or(endpoint.addresses.first())?;
        let v6 = near_address.is_ipv6();
        let port = *self.port.get(&[40_000, 40_001, 53, 80]);
        if let Some((far, want)) = self.call.as_ref().and_then(|call| call.aim(world, &near, endpoint.segment, v6)) {
            let far_address = far.address(world, v6)?;
            return Some(Conversation {
                near,
                near_address,
                far,
                far_address,
                direction: Direction::Egress,
                want,
                port,
            });
        }
        let far = self.far.get(&targets(world, &near, endpoint.segment, near_address.is_ipv6())).clone();
        let far_address = far.address(world, near_address.is_ipv6())?;
        let direction = if self.outgoing { Direction::Egress } else { Direction::Ingress };
        let want = *self.want.get(&wants(near_address.is_ipv6()));
        Some(Conversation { near, near_address, far, far_address, direction, want, port })
    }
}

impl Call {
    /// Whom it reaches in that world; `None` where there is nothing to call.
    fn aim(&self, world: &World, near: &EndpointId, segment: Segment, v6: bool) -> Option<(Target, Want)> {
        if world.services.is_empty() {
            return None;
        }
        let front = self.front.get(&world.services);
        let port = self.port.get(&front.ports);
        let node = |n: usize| world.nodes.get(n)?.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
        let (called, want) = match (self.place, port.node_port) {
            (0, Some(number)) => {
                return Some((Target::Elsewhere(node(1)?), Want::Port(port.protocol, number)));
            }
            (1, Some(number)) => (node(world.here)?, number),
            _ => (front.addresses.iter().copied().find(|a| a.is_ipv6() == v6)?, port.port),
        };
        let want = Want::Port(port.protocol, want);
        let Some(translation) = world.translation(segment, called, want) else {
            return Some((Target::Elsewhere(called), want));
        };
        let (address, to) = *self.backend.get(&translation.backends);
        let Want::Port(_, port) = to else { return None };
        let behind = match world.local_owner(segment, address) {
            Some(id) => Behind::Local(id),
            None if world.judged_later(segment, address) => Behind::Overlay,
            None => Behind::Elsewhere,
        };
        // Who reaches itself would otherwise answer itself.
        let masquerade = self.masquerade || behind == Behind::Local(near.clone());
        let masquerade = if masquerade { node(world.here) } else { None };
        Some((Target::Service(Translated { called, backend: (address, behind), port, masquerade }), want))
    }
}

/// Who may be at the other end; those whom policies speak of more than once.
fn targets(world: &World, near: &EndpointId, segment: Segment, v6: bool) -> Vec<Target> {
    let mut found = Vec::new();
    for workload in &world.workloads {
        for (index, endpoint) in workload.endpoints.iter().enumerate() {
            let Some(address) = endpoint.addresses.iter().find(|a| a.is_ipv6() == v6) else {
                continue;
            };
            let id = EndpointId { namespace: workload.namespace.clone(), workload: workload.name.clone(), index };
            if id == *near || endpoint.segment != segment {
                continue;
            }
            let target = if workload.node == world.here { Target::Local(id) } else { Target::Behind(*address) };
            found.extend([target.clone(), target.clone(), target]);
        }
    }
    for (n, node) in world.nodes.iter().enumerate() {
        for address in node.addresses.iter().filter(|a| a.is_ipv6() == v6) {
            if n == world.here {
                found.push(Target::Node(*address));
            }
            let behind = world.peer(segment, *address, false).behind;
            found.push(if behind { Target::Behind(*address) } else { Target::Elsewhere(*address) });
        }
    }
    found.extend(
        world.resolvers.iter().filter(|a| a.is_ipv6() == v6 && !is_workload(world, **a)).map(|a| Target::Elsewhere(*a)),
    );
    let others: &[&str] = if v6 {
        &[
            "2001:db8:5::1",
            "2001:db8:6::1",
            "2600::1",
            "fd00:10:244:1::99",
            "fd00:10:244:2::99",
            "fd00:10:244:3::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1234",
            "::1",
            "ff02::fb",
        ]
    } else {
        &[
            "198.51.100.1",
            "198.51.100.13",
            "198.51.100.200",
            "203.0.113.7",
            "203.0.113.9",
            "203.0.113.200",
            "1.1.1.1",
            "10.244.1.99",
            "10.244.2.99",
            "10.244.3.1",
            "10.9.9.9",
            "192.0.2.77",
            "169.254.169.254",
            "169.254.1.1",
            "127.0.0.1",
            "224.0.0.251",
            "255.255.255.255",
        ]
    };
    for text in others {
        let address = text.parse().expect("literal");
        found.push(if world.peer(segment, address, false).behind {
            Target::Behind(address)
        } else {
            Target::Elsewhere(address)
        });
    }
    found.extend(
        METADATA
            .iter()
            .map(|text| text.parse::<IpAddr>().expect("literal"))
            .filter(|a| a.is_ipv6() == v6)
            .map(Target::Elsewhere),
    );
    found
}

fn is_workload(world: &World, address: IpAddr) -> bool {
    world.workloads.iter().any(|w| w.endpoints.iter().any(|e| e.addresses.contains(&address)))
}

/// What may be asked for: what lines offer, and their neighbours.
fn wants(v6: bool) -> Vec<Want> {
    use Protocol::{Sctp, Tcp, Udp};
    let mut found: Vec<_> = [80, 80, 443, 5432, 8080, 8080, 8050, 8000, 8099, 7999, 8100, 9100, 8472, 65535]
        .map(|port| Want::Port(Tcp, port))
        .into();
    found.extend([53, 53, 8050, 8200, 8201, TUNNEL_PORT].map(|port| Want::Port(Udp, port)));
    found.extend([9000, 9000, 80].map(|port| Want::Port(Sctp, port)));
    found.push(Want::Port(Tcp, 53));
    let icmp = |kind, code| {
        if v6 { Want::Icmp6(kind, code) } else { Want::Icmp(kind, code) }
    };
    let echo = if v6 { icmp(128, 0) } else { icmp(8, 0) };
    found.extend([echo, echo, echo, if v6 { icmp(139, 0) } else { icmp(13, 0) }]);
    found.extend([89, 47, 50].map(Want::Other));
    found
}

impl Target {
    fn address(&self, world: &World, v6: bool) -> Option<IpAddr> {
        match self {
            Self::Local(id) => world.endpoint(id)?.1.addresses.iter().copied().find(|a| a.is_ipv6() == v6),
            Self::Elsewhere(address) | Self::Behind(address) | Self::Node(address) => Some(*address),
            Self::Service(translated) => Some(translated.called),
        }
    }
}

impl Conversation {
    /// Fills a world without local endpoints: no step finds its end.
    fn nobodys(world: &World) -> Self {
        let near = EndpointId { namespace: String::new(), workload: String::new(), index: 0 };
        let address = world.nodes[world.here].addresses[0];
        Self {
            near,
            near_address: address,
            far: Target::Node(address),
            far_address: address,
            direction: Direction::Ingress,
            want: Want::Other(255),
            port: 0,
        }
    }

    /// Whether the first packet passes in that world: 0 no, 1 as nobody cares or it is its own, 2 by a rule, or not before its
    /// backend is known.
    fn allowed(&self, world: &Arc<World>) -> u8 {
        let mut machine = Machine::new(Arc::clone(world));
        machine.set_now(START);
        let events = self.frames(world, Move::Ask, 0);
        let verdicts: Vec<_> = events.iter().flat_map(|event| event.happen(&mut machine)).collect();
        let denied_late = verdicts.len() > 1 && verdicts[0].provisional && !verdicts[1].allow;
        let itself = matches!(&self.far, Target::Service(Translated { backend: (_, Behind::Local(id)), .. }) if *id == self.near);
        if denied_late {
            2
        } else if verdicts.is_empty() || verdicts.iter().any(|verdict| !verdict.allow) {
            0
        } else {
            1 + u8::from(!itself && verdicts.iter().any(|verdict| verdict.reason == reason::RULE))
        }
    }

    fn question(&self) -> Ip {
        let (source, destination) = match self.direction {
            Direction::Egress => (self.near_address, self.far_address),
            Direction::Ingress => (self.far_address, self.near_address),
        };
        let transport = match self.want {
            Want::Port(Protocol::Tcp, to) => Transport::Tcp { source: self.port, destination: to, flags: flag::SYN },
            Want::Port(Protocol::Udp, to) => Transport::Udp { source: self.port, destination: to },
            Want::Port(Protocol::Sctp, to) => Transport::Sctp { source: self.port, destination: to },
            Want::Icmp(8, 0) | Want::Icmp6(128, 0) => Transport::Echo { request: true, id: self.port },
            Want::Icmp(kind, code) | Want::Icmp6(kind, code) => Transport::Icmp { kind, code },
            Want::Other(number) => Transport::Other(number),
        };
        Ip { source, destination, fragment: None, extended: false, transport }
    }

    /// From the near end, or to it.
    const fn outgoing(&self, asker: bool) -> bool {
        matches!(self.direction, Direction::Egress) == asker
    }

    fn frames(&self, world: &World, what: Move, nonce: u16) -> Vec<Event> {
        let Some((_, near)) = world.endpoint(&self.near) else {
            return Vec::new();
        };
        if let Target::Local(far) | Target::Service(Translated { backend: (_, Behind::Local(far)), .. }) = &self.far
            && world.endpoint(far).is_none()
        {
            return Vec::new();
        }
        let question = self.question();
        let answer = || question.answer();
        let side = |asker: bool| if asker { Some(question.clone()) } else { answer() };
        let ip = |ip: Ip, asker: bool| self.carry(world, near, Body::Ip(ip), self.outgoing(asker));
        match what {
            Move::Ask => ip(question, true),
            Move::Continue => {
                let mut packet = question;
                if let Transport::Tcp { flags, .. } = &mut packet.transport {
                    *flags = flag::ACK;
                }
                ip(packet, true)
            }
            Move::Answer => answer().map_or_else(Vec::new, |packet| ip(packet, false)),
            Move::AskBack => answer().map_or_else(Vec::new, |mut packet| {
                match &mut packet.transport {
                    Transport::Tcp { flags, .. } => *flags = flag::SYN,
                    Transport::Echo { request, .. } => *request = true,
                    _ => {}
                }
                ip(packet, false)
            }),
            Move::Flags(asker, set) => side(asker).map_or_else(Vec::new, |mut packet| {
                if let Transport::Tcp { flags, .. } = &mut packet.transport {
                    *flags = set;
                }
                ip(packet, asker)
            }),
            Move::Error(about_question, kind) | Move::Misdirected(about_question, kind) => {
                side(about_question).map_or_else(Vec::new, |about| {
                    let (mut source, destination) = (about.destination, about.source);
                    let mut about = about;
                    if matches!(what, Move::Misdirected(..)) {
                        // Somebody else's packet; the error itself is addressed as ever.
                        about.source = other_address(about.source);
                    } else if kind != ErrorKind::PortUnreachable
                        && !self.outgoing(!about_question)
                        && !matches!(self.far, Target::Local(_))
                    {
                        // Routers on the way send these.
                        source = other_address(source);
                    }
                    let transport = Transport::Error { kind, about: Box::new(about) };
                    ip(Ip { source, destination, fragment: None, extended: false, transport }, !about_question)
                })
            }
            Move::Fragment(asker, part) => {
                side(asker).map_or_else(Vec::new, |packet| ip(Ip { fragment: Some(part), ..packet }, asker))
            }
            Move::Extended => ip(Ip { extended: true, ..question }, true),
            Move::SpoofedSource => {
                let source = other_address(self.near_address);
                let packet = Ip { source, destination: self.far_address, ..question };
                self.carry(world, near, Body::Ip(packet), true)
            }
            Move::SpoofedMac => {
                change(self.carry(world, near, Body::Ip(question), true), |frame| frame.from[5] ^= 0x80)
            }
            Move::Tagged(asker) => {
                change(side(asker).map_or_else(Vec::new, |packet| ip(packet, asker)), |frame| frame.tagged = true)
            }
            Move::NotForUs => change(ip(question, true), |frame| frame.to[5] ^= 0x80),
            Move::Foreign(outgoing) => self.carry(world, near, Body::Foreign, outgoing),
            Move::Broken(outgoing, broken) => self.carry(world, near, Body::Broken(broken), outgoing),
            Move::Arp(outgoing, request, wrong) => arp(near, outgoing, request, wrong)
                .map_or_else(Vec::new, |arp| self.carry(world, near, Body::Arp(arp), outgoing)),
            Move::Neighbour(outgoing, which, wrong) => {
                let packet = neighbour(near, outgoing, which, wrong);
                self.carry(world, near, Body::Ip(packet), outgoing)
            }
            Move::Group(outgoing) => {
                let group: IpAddr = if question.v6() {
                    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into()
                } else {
                    Ipv4Addr::new(224, 0, 0, 251).into()
                };
                let source = if outgoing { self.near_address } else { self.far_address };
                let transport = Transport::Udp { source: 5353, destination: 8050 };
                let packet = Ip { source, destination: group, fragment: None, extended: false, transport };
                // A bridge floods it; one of those whom it reaches is enough here.
                change(self.carry(world, near, Body::Ip(packet), outgoing), |frame| {
                    frame.to = [0x33, 0x33, 0, 0, 0, 0xfb];
                })
            }
            Move::Encapsulated => {
                let transport = Transport::Udp { source: self.port, destination: TUNNEL_PORT };
                let packet = Ip {
                    source: self.near_address,
                    destination: self.far_address,
                    fragment: None,
                    extended: false,
                    transport,
                };
                self.carry(world, near, Body::Ip(packet), true)
            }
            Move::Unheard(asker) => match (&self.far, side(asker)) {
                (Target::Local(_) | Target::Behind(_), Some(mut packet)) if !self.outgoing(asker) => {
                    match &mut packet.transport {
                        Transport::Tcp { source, .. }
                        | Transport::Udp { source, .. }
                        | Transport::Sctp { source, .. } => *source = nonce,
                        Transport::Echo { id, .. } => *id = nonce,
                        _ => return Vec::new(),
                    }
                    let frame = self.frame(world, near, Body::Ip(packet), false);
                    vec![Event::Deliver(self.near.clone(), frame, Origin::Forwarded)]
                }
                _ => Vec::new(),
            },
        }
    }

    fn origin(&self) -> Origin {
        match &self.far {
            Target::Local(id) => Origin::Local(id.clone()),
            Target::Behind(_) | Target::Service(Translated { backend: (_, Behind::Overlay), .. }) => Origin::Overlay,
            Target::Elsewhere(_) | Target::Service(_) => Origin::Forwarded,
            Target::Node(_) => Origin::Node,
        }
    }

    fn frame(&self, world: &World, near: &Endpoint, body: Body, outgoing: bool) -> Packet {
        let far_mac = match &self.far {
            Target::Local(id) => world.endpoint(id).map_or(GATEWAY, |(_, endpoint)| endpoint.mac),
            _ => GATEWAY,
        };
        let (from, to): (Mac, Mac) = if outgoing { (near.mac, far_mac) } else { (far_mac, near.mac) };
        Packet { from, to, tagged: false, body }
    }

    fn carry(&self, world: &World, near: &Endpoint, body: Body, outgoing: bool) -> Vec<Event> {
        let packet = self.frame(world, near, body, outgoing);
        if let Target::Service(translated) = &self.far
            && let Some(event) = self.translate(world, near, translated, &packet, outgoing)
        {
            return vec![event];
        }
        vec![match (&self.far, outgoing) {
            (Target::Local(far), true) => Event::Cross(self.near.clone(), far.clone(), packet),
            (Target::Local(far), false) => Event::Cross(far.clone(), self.near.clone(), packet),
            (_, true) => Event::Send(self.near.clone(), packet),
            (_, false) => Event::Deliver(self.near.clone(), packet, self.origin()),
        }]
    }
}

impl Conversation {
    /// A packet of a call, whose backend another wall guards: what the first wall sees, and what the second one does. `None`
    /// for what the node does not translate.
    fn translate(
        &self,
        world: &World,
        near: &Endpoint,
        translated: &Translated,
        packet: &Packet,
        outgoing: bool,
    ) -> Option<Event> {
        let Body::Ip(ip) = &packet.body else { return None };
        let (Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination }) = ip.transport
        else {
            return None;
        };
        let called = if outgoing { (ip.destination, destination) } else { (ip.source, source) };
        let Want::Port(_, port) = self.want else { return None };
        if ip.fragment.is_some() || called != (translated.called, port) {
            return None;
        }
        let (backend, behind) = &translated.backend;
        let caller = translated.masquerade.unwrap_or(if outgoing { ip.source } else { ip.destination });
        let (source, destination) = if outgoing { (caller, *backend) } else { (*backend, caller) };
        let transport = ported(&ip.transport, outgoing, translated.port);
        let other = Ip { source, destination, transport, ..ip.clone() };
        let body = Body::Ip(other);
        match behind {
            Behind::Local(id) => {
                let (_, endpoint) = world.endpoint(id)?;
                let (from, to) = if outgoing { (GATEWAY, endpoint.mac) } else { (endpoint.mac, GATEWAY) };
                let other = Packet { from, to, tagged: false, body };
                Some(if outgoing {
                    Event::Translate(self.near.clone(), packet.clone(), id.clone(), other)
                } else {
                    let packet = Packet { from: GATEWAY, to: near.mac, ..packet.clone() };
                    Event::Translate(id.clone(), other, self.near.clone(), packet)
                })
            }
            Behind::Overlay if outgoing => {
                let other = Packet { from: GATEWAY, to: GATEWAY, tagged: false, body };
                Some(Event::Leave(self.near.clone(), packet.clone(), other))
            }
            Behind::Overlay | Behind::Elsewhere => None,
        }
    }
}

/// The same with another destination port (`to`) or source port.
fn ported(transport: &Transport, to: bool, port: u16) -> Transport {
    let mut transport = transport.clone();
    if let Transport::Tcp { source, destination, .. }
    | Transport::Udp { source, destination }
    | Transport::Sctp { source, destination } = &mut transport
    {
        *(if to { destination } else { source }) = port;
    }
    transport
}

/// The events of the `nth` step's packet in that world; none where one of its ends does not exist now.
#[must_use]
pub fn resolve(
    world: &World,
    conversations: &[Conversation],
    nth: usize,
    conversation: Index,
    what: Move,
) -> Vec<Event> {
    let nonce = u16::try_from(50_000 + nth).unwrap_or(u16::MAX);
    conversation.get(conversations).frames(world, what, nonce)
}

fn change(mut events: Vec<Event>, edit: impl Fn(&mut Packet)) -> Vec<Event> {
    for event in &mut events {
        match event {
            Event::Send(_, packet)
            | Event::Deliver(_, packet, _)
            | Event::Cross(_, _, packet)
            | Event::Translate(_, packet, ..)
            | Event::Leave(_, packet, _) => edit(packet),
        }
    }
    events
}

/// An address nearby that is nobody's.
fn other_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) ^ 0x40).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) ^ 0x4000).to_be_bytes()),
    }
}

fn arp(near: &Endpoint, outgoing: bool, request: bool, wrong: u8) -> Option<Arp> {
    let own = near.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })?;
    let gateway = Ipv4Addr::new(10, 244, 1, 1);
    let mut arp = if outgoing {
        Arp { request, sender_mac: near.mac, sender: own, target: gateway }
    } else {
        Arp { request, sender_mac: GATEWAY, sender: gateway, target: own }
    };
    match wrong {
        0 => arp.sender = Ipv4Addr::UNSPECIFIED,
        1 => arp.sender_mac[0] ^= 4,
        2 => arp.sender = Ipv4Addr::from(u32::from(arp.sender) ^ 0x40),
        3 => arp.target = arp.sender,
        _ => {}
    }
    Some(arp)
}

fn neighbour(near: &Endpoint, outgoing: bool, which: u8, wrong: u8) -> Ip {
    let own_link_local = link_local(near.mac);
    let own = near.addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let own = own.unwrap_or(own_link_local);
    let gateway = link_local(GATEWAY);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let (mut source, mut about) = if outgoing { (own_link_local, gateway) } else { (gateway, own) };
    if which == 1 && outgoing {
        about = own;
    } else if which == 1 {
        about = gateway;
    }
    let message = |about| match which {
        0 => Message::Solicitation(about),
        1 => Message::Advertisement(about),
        2 => Message::RouterSolicitation,
        3 => Message::RouterAdvertisement,
        4 => Message::Redirect,
        5 => Message::ListenerReport(group),
        _ => Message::ListenerQuery,
    };
    let mut hop_limit = if which >= 5 { 1 } else { 255 };
    let mut mac = (which < 5).then_some(if outgoing { near.mac } else { GATEWAY });
    match wrong {
        0 => hop_limit = 64,
        1 => mac = mac.map(|_| [2, 9, 9, 9, 9, 9]),
        2 => about = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x99),
        3 => source = Ipv6Addr::UNSPECIFIED,
        4 => source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x1234),
        5 => source = own,
        6 => source = Ipv6Addr::new(0x2001, 0xdb8, 6, 0, 0, 0, 0, 1),
        7 => mac = None,
        _ => {}
    }
    let neighbour = Neighbour { message: message(about), hop_limit, mac };
    let destination = match wrong {
        _ if !outgoing => own,
        // Where a router would pass it on to, and where a neighbour is.
        8 => Ipv6Addr::new(0x2001, 0xdb8, 6, 0, 0, 0, 0, 1),
        9 => gateway,
        10 => Ipv6Addr::from(u128::from(own) ^ 0xff00),
        11 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x99),
        _ => group,
    };
    Ip {
        source: source.into(),
        destination: destination.into(),
        fragment: None,
        extended: false,
        transport: Transport::Neighbour(neighbour),
    }
}

pub(super) fn step(features: Features) -> BoxedStrategy<Step> {
    let usual = prop_oneof![
        100 => (any::<Index>(), turn()).prop_map(|(conversation, what)| Step::Packet(conversation, what)),
        1 => any::<Index>().prop_map(Step::Change),
    ];
    let Features { expiry, modes, .. } = features;
    if !expiry && !modes {
        return usual.boxed();
    }
    // Deadlines lie between the times that the clock shows.
    let wait = (1..4_u64).prop_map(|n| Step::Wait(Duration::from_secs(n * TICK.as_secs())));
    if !modes {
        return prop_oneof![50 => usual, 1 => wait].boxed();
    }
    let mode = prop_oneof![2 => Just(Mode::Observe), 3 => Just(Mode::Enforce)];
    prop_oneof![
        200 => usual,
        3 => wait,
        4 => (any::<Index>(), mode).prop_map(|(endpoint, mode)| Step::Mode(endpoint, mode)),
        2 => prop::bool::weighted(0.3).prop_map(Step::Observe),
        1 => (1..4_u64).prop_map(|n| Step::Bypass(Duration::from_secs(n * TICK.as_secs()) - TICK / 2)),
    ]
    .boxed()
}

fn turn() -> impl Strategy<Value = Move> {
    let kind = || prop_oneof![Just(ErrorKind::PortUnreachable), Just(ErrorKind::TooBig), Just(ErrorKind::TimeExceeded)];
    let part = prop_oneof![Just(Fragment::First), Just(Fragment::Later)];
    let broken = prop_oneof![
        any::<bool>().prop_map(Broken::CutHeader),
        any::<bool>().prop_map(Broken::Version),
        any::<bool>().prop_map(Broken::CutTransport),
        any::<bool>().prop_map(Broken::ShortTcp),
        Just(Broken::SourceRoute),
    ];
    prop_oneof![
        30 => Just(Move::Ask),
        14 => Just(Move::Continue),
        20 => Just(Move::Answer),
        5 => Just(Move::AskBack),
        5 => any::<(bool, u8)>().prop_map(|(asker, flags)| Move::Flags(asker, flags & 0x3f)),
        6 => (any::<bool>(), kind()).prop_map(|(about, kind)| Move::Error(about, kind)),
        2 => (any::<bool>(), kind()).prop_map(|(about, kind)| Move::Misdirected(about, kind)),
        3 => (any::<bool>(), part).prop_map(|(asker, part)| Move::Fragment(asker, part)),
        3 => Just(Move::Extended),
        2 => Just(Move::SpoofedSource),
        2 => Just(Move::SpoofedMac),
        2 => any::<bool>().prop_map(Move::Tagged),
        2 => Just(Move::NotForUs),
        1 => any::<bool>().prop_map(Move::Foreign),
        2 => (any::<bool>(), broken).prop_map(|(outgoing, broken)| Move::Broken(outgoing, broken)),
        2 => (any::<(bool, bool)>(), 0..7_u8).prop_map(|((outgoing, request), wrong)| Move::Arp(outgoing, request, wrong)),
        4 => (any::<bool>(), 0..7_u8, 0..16_u8).prop_map(|(outgoing, which, wrong)| Move::Neighbour(outgoing, which, wrong)),
        2 => any::<bool>().prop_map(Move::Group),
        1 => Just(Move::Encapsulated),
        3 => any::<bool>().prop_map(Move::Unheard),
    ]
}
