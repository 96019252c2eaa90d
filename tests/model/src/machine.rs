use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    Prefix, World,
    packet::{Arp, Body, Fragment, Ip, Mac, Message, Neighbour, Packet, Transport, flag, link_local},
    policy::{Decision, Direction, Reading, Want, Why},
    service::Call,
    world::{Endpoint, EndpointId, Peer, Protocol, Segment, Workload},
};

/// Reasons of a verdict, by their label.
pub mod reason {
    #![expect(missing_docs, reason = "the labels are the documentation's words")]
    pub const RULE: &str = "rule";
    pub const NOT_ISOLATED: &str = "not_isolated";
    pub const REPLY: &str = "reply";
    pub const RELATED: &str = "related";
    pub const RESOLUTION: &str = "resolution";
    pub const DENIED_BY_RULE: &str = "denied_by_rule";
    pub const ISOLATED: &str = "isolated";
    pub const NO_FLOW: &str = "no_flow";
    pub const REVOKED: &str = "revoked";
    pub const PENDING: &str = "pending";
    pub const QUARANTINE: &str = "quarantine";
    pub const SPOOFED_MAC: &str = "spoofed_mac";
    pub const SPOOFED_SOURCE: &str = "spoofed_source";
    pub const SPOOFED_RESOLUTION: &str = "spoofed_resolution";
    pub const VLAN_TAG: &str = "vlan_tag";
    pub const TUNNEL: &str = "tunnel";
    pub const FRAGMENT: &str = "fragment";
    pub const MALFORMED: &str = "malformed";
    pub const NOT_IP: &str = "not_ip";
    pub const NOT_FOR_US: &str = "not_for_us";
    pub const ITSELF: &str = "itself";
    pub const PLAIN_OVERLAY_SOURCE: &str = "plain_overlay_source";
    pub const OBSERVED: &str = "observed";
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It passes.
    pub allow: bool,
    /// Label of the reason.
    pub reason: &'static str,
    /// Rules any of which may be named; empty where no rule decides.
    pub rules: BTreeSet<String>,
    /// Other reasons that may be named as well: backends of a service that decide together need not have the same.
    pub or: BTreeSet<&'static str>,
    /// It begins a flow.
    pub begins: bool,
    /// It called a service, or answers such a call: once the node has chosen a backend, a later wall has the last word.
    pub provisional: bool,
    /// What would become of it if all that is audited were enforced, where that is not the same.
    pub would: Option<Would>,
}

/// A verdict that only reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Would {
    /// It would pass.
    pub allow: bool,
    /// Label of the reason.
    pub reason: &'static str,
    /// Rules any of which may be named.
    pub rules: BTreeSet<String>,
}

/// What holds for an endpoint as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Its policy is not known yet.
    Pending,
    /// Its policy holds.
    #[default]
    Enforce,
    /// Its policy is asked, and what it would drop passes.
    Observe,
    /// Nothing may pass.
    Quarantine,
}

/// Where a packet to a workload comes from, beside what its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process of the node.
    Node,
    /// From elsewhere, through the node.
    Forwarded,
    /// From another node, by the overlay; it has passed the check on the underlay.
    Overlay,
    /// An endpoint of this node; its own side has let it pass.
    Local(EndpointId),
}

/// What was seen to become of a packet, as far as the model follows it: see [`Machine::set_seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Seen {
    /// It was dropped, or passed because the endpoint only observes.
    #[default]
    Refused,
    /// It passed because it was allowed.
    Allowed,
    /// It passed, for one reason or the other.
    Passed,
}

/// What identifies a flow at an endpoint, whichever side sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    local: IpAddr,
    remote: IpAddr,
    what: What,
}

impl Key {
    const fn is_tcp(&self) -> bool {
        matches!(self.what, What::Ports(Protocol::Tcp, ..))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ports(Protocol, u16, u16),
    /// Identifier, and the direction in which the question goes.
    Echo(u16, Direction),
    /// Type and code, and the direction in which it goes: nothing tells questions from answers.
    Icmp(u8, u8, Direction),
    Other(u8),
}

/// A flow that was allowed, or was let through: what its first packet asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    initiator: Direction,
    want: Want,
    sender: Sender,
}

/// What is known of who sent a packet to the endpoint, beside its address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sender {
    /// The address says who it is. `passing`: it came from elsewhere and names no local endpoint.
    Address { passing: bool },
    /// A local endpoint, and an own address of it: the node may have replaced the packet's.
    Endpoint(EndpointId, IpAddr),
    /// A local endpoint that has left the node since. Should one of its name come, that is somebody else.
    Gone,
}

/// Endpoints of one node, with what they remember.
#[derive(Clone, Debug)]
pub struct Machine {
    world: Arc<World>,
    /// Nanoseconds of Unix time.
    now: u64,
    /// The whole node observes.
    observe: bool,
    /// Until then the whole node observes: nanoseconds of Unix time.
    bypass: u64,
    modes: BTreeMap<EndpointId, Mode>,
    seen: Seen,
    flows: BTreeMap<EndpointId, BTreeMap<Key, Flow>>,
}

/// A packet on its way through one endpoint's wall.
struct Passage<'a> {
    workload: &'a Workload,
    endpoint: &'a Endpoint,
    direction: Direction,
    local: IpAddr,
    remote: IpAddr,
    /// The packet came by the overlay.
    encapsulated: bool,
    /// It has an address of an endpoint of this node, none of which is known to have sent it.
    forged: bool,
    sender: Sender,
}

/// What is said of a packet under one reading of the policy.
struct Opinion {
    verdict: Verdict,
    effect: Effect,
}

/// What a verdict does to what the endpoint remembers.
enum Effect {
    Nothing,
    Remember(Key, Flow),
    Forget(Key),
    /// It would have begun: remembered where it passes all the same.
    Refuse(Key, Flow),
    /// It goes on from somebody else: remembered where it passes all the same, else forgotten.
    Hear(Key, Flow),
}

impl<'a> Passage<'a> {
    /// Of what the workload sends.
    const fn out(workload: &'a Workload, endpoint: &'a Endpoint, ip: &Ip) -> Self {
        Self {
            workload,
            endpoint,
            direction: Direction::Egress,
            local: ip.source,
            remote: ip.destination,
            encapsulated: false,
            forged: false,
            sender: Sender::Address { passing: false },
        }
    }
}

impl From<Verdict> for Opinion {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, effect: Effect::Nothing }
    }
}

impl Opinion {
    fn drop(reason: &'static str) -> Self {
        Verdict::of(false, reason).into()
    }

    fn pass(reason: &'static str) -> Self {
        Verdict::of(true, reason).into()
    }
}

impl Verdict {
    fn of(allow: bool, reason: &'static str) -> Self {
        let (rules, or) = (BTreeSet::new(), BTreeSet::new());
        Self { allow, reason, rules, or, begins: false, provisional: false, would: None }
    }

    fn decided(call: Call) -> Self {
        let Call { decision, others, provisional, .. } = call;
        let label = |why: Why| match (decision.allow, why) {
            (true, Why::NotIsolated) => reason::NOT_ISOLATED,
            (true, _) => reason::RULE,
            (false, Why::Rule) => reason::DENIED_BY_RULE,
            (false, _) => reason::ISOLATED,
        };
        let reason = label(decision.why);
        let or = others.into_iter().map(label).filter(|other| *other != reason).collect();
        Self { rules: decision.rules, or, provisional, ..Self::of(decision.allow, reason) }
    }

    /// Of a refused packet that looks like an answer and belongs to no flow: where nothing but the isolation refuses it, what is named is the missing
    /// flow, and no rule.
    fn without_flow(self) -> Self {
        let label = |reason| if reason == reason::ISOLATED { reason::NO_FLOW } else { reason };
        let (reason, or) = (label(self.reason), self.or.into_iter().map(label).collect::<BTreeSet<_>>());
        let rules = if reason == reason::NO_FLOW && or.is_empty() { BTreeSet::new() } else { self.rules };
        Self { reason, or, rules, ..self }
    }
}

impl Machine {
    /// Every endpoint enforces, nothing is remembered.
    #[must_use]
    pub fn new(world: impl Into<Arc<World>>) -> Self {
        Self {
            world: world.into(),
            now: 0,
            observe: false,
            bypass: 0,
            modes: BTreeMap::new(),
            seen: Seen::Refused,
            flows: BTreeMap::new(),
        }
    }

    /// The world in force.
    #[must_use]
    pub const fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Changes the world. Endpoints that are gone are forgotten; flows of the others are judged again when their next
    /// packet comes.
    pub fn change(&mut self, world: impl Into<Arc<World>>) {
        let world = world.into();
        let local: BTreeSet<_> = world.local().collect();
        self.flows.retain(|id, _| local.contains(id));
        self.modes.retain(|id, _| local.contains(id));
        for flow in self.flows.values_mut().flat_map(BTreeMap::values_mut) {
            if matches!(&flow.sender, Sender::Endpoint(id, _) if !local.contains(id)) {
                flow.sender = Sender::Gone;
            }
        }
        self.world = world;
    }

    /// The time: nanoseconds of Unix time.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// Sets the time.
    pub const fn set_now(&mut self, now: u64) {
        self.now = now;
    }

    /// Whether the whole node observes, whatever the modes of its endpoints are.
    pub const fn set_observe(&mut self, observe: bool) {
        self.observe = observe;
    }

    /// Until when the whole node observes: nanoseconds of Unix time.
    pub const fn set_bypass(&mut self, until: u64) {
        self.bypass = until;
    }

    /// What was seen to become of the packet that is judged next. The model follows that in one case, which no policy decides: a
    /// refused call that may yet be one to the caller itself. Once the backend is chosen it is judged whatever was seen.
    pub const fn set_seen(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// The clock, and whether the node observes, of another machine.
    pub const fn copy_switches(&mut self, of: &Self) {
        (self.now, self.observe, self.bypass) = (of.now, of.observe, of.bypass);
    }

    /// Sets the mode of an endpoint.
    pub fn set_mode(&mut self, id: &EndpointId, mode: Mode) {
        self.modes.insert(id.clone(), mode);
    }

    /// Flows that the endpoint remembers.
    #[must_use]
    pub fn remembered(&self, id: &EndpointId) -> usize {
        self.flows.get(id).map_or(0, BTreeMap::len)
    }

    fn mode(&self, id: &EndpointId) -> Mode {
        self.modes.get(id).copied().unwrap_or_default()
    }

    /// Whether the endpoint's walls only watch.
    fn observes(&self, id: &EndpointId) -> bool {
        self.observe || self.now < self.bypass || self.mode(id) == Mode::Observe
    }

    /// The workload sends a frame.
    ///
    /// # Panics
    /// If there is no such endpoint on this node.
    pub fn send(&mut self, id: &EndpointId, packet: &Packet) -> Verdict {
        let opinions = Reading::both(self.now).map(|reading| self.sent(reading, id, packet));
        self.settle(id, opinions)
    }

    /// A frame is about to reach the workload.
    ///
    /// # Panics
    /// If there is no such endpoint on this node.
    pub fn deliver(&mut self, id: &EndpointId, packet: &Packet, origin: &Origin) -> Verdict {
        let seen = self.seen;
        let verdict = |machine: &mut Self, seen| {
            machine.seen = seen;
            let opinions = Reading::both(machine.now).map(|reading| machine.delivered(reading, id, packet, origin));
            machine.settle(id, opinions)
        };
        let allowed = verdict(self, seen);
        // Where nothing is dropped an answer changes nothing of what is remembered, so that the second verdict finds what the first one found.
        if seen == Seen::Passed && allowed.reason == reason::REPLY && self.observes(id) {
            let refused = verdict(self, Seen::Refused).reason;
            return Verdict { or: [refused].into_iter().filter(|or| *or == reason::OBSERVED).collect(), ..allowed };
        }
        allowed
    }

    /// What was sent to a service's address, now that a backend is chosen, before it goes on to that: as if it had been sent like this.
    ///
    /// # Panics
    /// If it is not IP, or there is no such endpoint on this node.
    pub fn leave(&mut self, caller: &EndpointId, packet: &Packet) -> Verdict {
        let Body::Ip(ip) = &packet.body else { panic!("no service without IP") };
        self.seen = Seen::Refused;
        let opinions = Reading::both(self.now).map(|reading| {
            let (workload, endpoint) = self.world.endpoint(caller).expect("a local endpoint");
            self.pass(reading, caller, &Passage::out(workload, endpoint, ip), ip, true)
        });
        self.settle(caller, opinions)
    }

    /// What holds is done; what would hold is noted where it differs.
    fn settle(&mut self, id: &EndpointId, [enforced, would]: [Opinion; 2]) -> Verdict {
        let Opinion { mut verdict, effect } = enforced;
        let would = would.verdict;
        if would.allow != verdict.allow {
            verdict.would = Some(Would { allow: would.allow, reason: would.reason, rules: would.rules });
        }
        // What is for somebody else is not dropped by way of enforcement.
        let observed = !verdict.allow && verdict.reason != reason::NOT_FOR_US && self.observes(id);
        if observed {
            let begins = matches!(effect, Effect::Refuse(..)) || verdict.begins;
            let (or, provisional) = (BTreeSet::new(), false);
            verdict = Verdict { allow: true, reason: reason::OBSERVED, or, begins, provisional, ..verdict };
        }
        verdict.begins &= verdict.allow;
        let flows = self.flows.entry(id.clone()).or_default();
        match effect {
            Effect::Remember(key, flow) => _ = flows.insert(key, flow),
            Effect::Refuse(key, flow) if observed => _ = flows.insert(key, flow),
            Effect::Hear(key, flow) if observed => _ = flows.insert(key, flow),
            // Of TCP it stays known who began: what the other side sends once more would begin anew where it may send.
            Effect::Forget(key) | Effect::Hear(key, _) if !observed && !key.is_tcp() => _ = flows.remove(&key),
            _ => {}
        }
        verdict
    }

    fn sent(&self, reading: Reading, id: &EndpointId, packet: &Packet) -> Opinion {
        let world = &*self.world;
        let (workload, endpoint) = world.endpoint(id).expect("a local endpoint");
        if packet.tagged {
            return Opinion::drop(reason::VLAN_TAG);
        }
        if packet.from != endpoint.mac {
            return Opinion::drop(reason::SPOOFED_MAC);
        }
        let ip = match &packet.body {
            Body::Foreign => return Opinion::drop(reason::NOT_IP),
            Body::Broken(_) => return Opinion::drop(reason::MALFORMED),
            Body::Arp(arp) => return resolution(honest_arp(endpoint, arp)),
            Body::Ip(ip) => ip,
        };
        if let (Transport::Neighbour(neighbour), None) = (&ip.transport, ip.fragment) {
            let stays = self.stays(endpoint, ip.destination, neighbour.message);
            return resolution(honest_neighbour(endpoint, ip.source, neighbour) && stays);
        }
        if !owns(endpoint, ip.source) {
            return Opinion::drop(reason::SPOOFED_SOURCE);
        }
        self.pass(reading, id, &Passage::out(workload, endpoint, ip), ip, true)
    }

    fn delivered(&self, reading: Reading, id: &EndpointId, packet: &Packet, origin: &Origin) -> Opinion {
        let world = &*self.world;
        let (workload, endpoint) = world.endpoint(id).expect("a local endpoint");
        let group = packet.to[0] & 1 == 1;
        if !group && packet.to != endpoint.mac {
            return Opinion::drop(reason::NOT_FOR_US);
        }
        if packet.tagged {
            return Opinion::drop(reason::VLAN_TAG);
        }
        let ip = match &packet.body {
            Body::Foreign => return Opinion::drop(reason::NOT_IP),
            Body::Broken(_) => return Opinion::drop(reason::MALFORMED),
            // Who sent it was held to the truth where it left.
            Body::Arp(_) => return resolution(true),
            Body::Ip(ip) => ip,
        };
        if let (Transport::Neighbour(neighbour), None) = (&ip.transport, ip.fragment) {
            let router = matches!(neighbour.message, Message::RouterAdvertisement | Message::Redirect);
            let from_workload = matches!(origin, Origin::Local(_));
            return resolution(neighbour.hop_limit == hop_limit(neighbour.message) && !(router && from_workload));
        }
        let own = owns(endpoint, ip.destination);
        if !own && !group && !to_group(ip.destination) {
            return Opinion::drop(reason::NOT_FOR_US);
        }
        let passage = Passage {
            workload,
            endpoint,
            direction: Direction::Ingress,
            local: ip.destination,
            remote: ip.source,
            encapsulated: *origin == Origin::Overlay,
            forged: *origin == Origin::Forwarded && world.local_owner(endpoint.segment, ip.source).is_some(),
            sender: match origin {
                Origin::Local(sender) => self.endpoint(sender, ip.source),
                Origin::Node => Sender::Address { passing: false },
                Origin::Forwarded | Origin::Overlay => Sender::Address { passing: true },
            },
        };
        self.pass(reading, id, &passage, ip, own)
    }

    /// A local sender of a packet.
    fn endpoint(&self, sender: &EndpointId, source: IpAddr) -> Sender {
        let Some((_, endpoint)) = self.world.endpoint(sender) else {
            return Sender::Address { passing: false };
        };
        let own = || endpoint.addresses.iter().copied().find(|own| own.is_ipv4() == source.is_ipv4());
        let address = if owns(endpoint, source) { source } else { own().unwrap_or(source) };
        Sender::Endpoint(sender.clone(), address)
    }

    /// What is asked of the policy: in the initiator's direction, which may be to a service.
    fn ask(&self, reading: Reading, passage: &Passage<'_>, flow: &Flow) -> Call {
        let Passage { workload, endpoint, remote, .. } = *passage;
        if flow.initiator == Direction::Egress
            && let Some(translation) = self.world.translation(endpoint.segment, remote, flow.want)
        {
            let call = self.world.call(reading, workload, endpoint.segment, &translation);
            if !call.twin || self.seen == Seen::Refused {
                return call;
            }
            let decision = Decision { allow: true, why: Why::Rule, rules: BTreeSet::new() };
            return Call { decision, others: BTreeSet::new(), ..call };
        }
        let peer = other_end(&self.world, endpoint.segment, remote, &flow.sender);
        let decision = self.world.decide(reading, workload, flow.initiator, &peer, flow.want);
        let provisional =
            flow.initiator == Direction::Egress && self.world.is_unanswered(endpoint.segment, remote, flow.want);
        Call { provisional, ..decision.into() }
    }

    /// `own`: the local address is one of the endpoint's, so that there is a flow to speak of.
    fn pass(&self, reading: Reading, id: &EndpointId, passage: &Passage<'_>, ip: &Ip, own: bool) -> Opinion {
        let world = &*self.world;
        match self.mode(id) {
            Mode::Enforce | Mode::Observe => {}
            Mode::Pending => return Opinion::drop(reason::PENDING),
            Mode::Quarantine => return Opinion::drop(reason::QUARANTINE),
        }
        let Passage { workload, direction, .. } = *passage;
        if ip.fragment.is_some() && world.isolated(reading, workload, direction) {
            return Opinion::drop(reason::FRAGMENT);
        }
        let peer = other_end(world, passage.endpoint.segment, passage.remote, &passage.sender);
        // What a local endpoint sends names it, and what one on another node sends comes by the overlay.
        let plain = direction == Direction::Ingress && !passage.encapsulated && peer.behind;
        if passage.forged || plain {
            return Opinion::drop(reason::PLAIN_OVERLAY_SOURCE);
        }
        if ip.fragment != Some(Fragment::Later)
            && let Transport::Udp { source, destination } = ip.transport
        {
            // Neither to a node's tunnel nor from one, so that nothing to it can ever be an answer: whoever sent it, an answer
            // goes to this address and port, and a node that knows of no conversation translates it as it would a call.
            let port = if direction == Direction::Egress { destination } else { source };
            let segment = passage.endpoint.segment;
            let remote = world.peer(segment, passage.remote, false);
            // In an overlay an address that nobody is known to have may be a node's.
            let at_node = remote.node.is_some()
                || remote.overlay && remote.workload.is_none() && !world.is_service(passage.remote);
            let translation = world.translation(segment, passage.remote, Want::Port(Protocol::Udp, port));
            if world.tunnel_ports.contains(&port) && at_node || translation.is_some_and(|to| world.tunnels(&to)) {
                let effect = if ip.fragment.is_none() { Effect::Forget(key(passage, ip)) } else { Effect::Nothing };
                return Opinion { effect, ..Opinion::drop(reason::TUNNEL) };
            }
        }
        if ip.fragment.is_some() {
            return Opinion::pass(reason::NOT_ISOLATED);
        }
        if let Transport::Error { about, .. } = &ip.transport {
            return if self.known(reading, id, passage, ip, about) {
                Opinion::pass(reason::RELATED)
            } else if world.isolated(reading, workload, direction) {
                Opinion::drop(reason::NO_FLOW)
            } else {
                Opinion::pass(reason::NOT_ISOLATED)
            };
        }

        // Whoever it says it is with: by its mark where it is the initiator, by its address else.
        let own_address = |address: IpAddr| passage.endpoint.addresses.contains(&address);
        let itself = |sender: &Sender| match sender {
            Sender::Endpoint(other, _) => other == id,
            Sender::Address { .. } => direction == Direction::Egress && own_address(passage.remote),
            Sender::Gone => false,
        };
        let key = key(passage, ip);
        let at_node = world.peer(passage.endpoint.segment, passage.remote, false).node.is_some();
        let flow = self.flows.get(id).and_then(|flows| flows.get(&key)).cloned().filter(|flow| {
            let against = flow.initiator != direction;
            // A node's address has several senders: its own processes, what passes through it, whom it hides.
            let other_sender = !against && direction == Direction::Ingress && flow.sender != passage.sender && at_node;
            !(other_sender || against && begins_always(ip))
        });
        if let Some(mut flow) = flow {
            // Who begins tells with each packet who it is; whom an answer is for is who was heard last.
            let mut heard = Effect::Nothing;
            if flow.initiator == direction && direction == Direction::Ingress && flow.sender != passage.sender {
                flow.sender = passage.sender.clone();
                heard = Effect::Remember(key.clone(), flow.clone());
            }
            if direction == Direction::Egress && self.unknown(passage, &flow) {
                return Opinion { effect: Effect::Forget(key), ..Opinion::drop(reason::REVOKED) };
            }
            if itself(&flow.sender) {
                return Opinion { effect: heard, ..Opinion::pass(reason::ITSELF) };
            }
            let asked = self.ask(reading, passage, &flow);
            return if flow.initiator == direction {
                let effect = match heard {
                    heard if asked.decision.allow => heard,
                    Effect::Remember(key, flow) => Effect::Hear(key, flow),
                    _ => Effect::Forget(key),
                };
                Opinion { effect, ..Verdict::decided(asked).into() }
            } else if asked.decision.allow {
                let Call { decision, provisional, .. } = asked;
                Verdict { rules: decision.rules, provisional, ..Verdict::of(true, reason::REPLY) }.into()
            } else {
                Opinion { effect: Effect::Forget(key), ..Opinion::drop(reason::REVOKED) }
            };
        }

        let flow = Flow { initiator: direction, want: want(ip), sender: passage.sender.clone() };
        if itself(&passage.sender) {
            let effect = if own && !answers_alone(ip) { Effect::Remember(key, flow) } else { Effect::Nothing };
            let begins = matches!(effect, Effect::Remember(..));
            return Opinion { effect, ..Verdict { begins, ..Verdict::of(true, reason::ITSELF) }.into() };
        }
        let asked = self.ask(reading, passage, &flow);
        let allow = asked.decision.allow;
        let mut verdict = Verdict::decided(asked);
        // Where a rule forbids it, that is more to say. Backends of a service may be refused for different reasons, of which any may be named.
        if !allow && answers_something(ip) {
            verdict = verdict.without_flow();
        }
        // An answer that nobody asked for may be allowed; it does not turn the other side's questions into answers.
        let effect = match own && !answers_alone(ip) {
            true if allow => Effect::Remember(key, flow),
            true if !answers_something(ip) => Effect::Refuse(key, flow),
            _ => Effect::Nothing,
        };
        let begins = matches!(effect, Effect::Remember(..));
        Opinion { effect, ..Verdict { begins, ..verdict }.into() }
    }

    /// Whether a message that resolves addresses stays where it is for: with groups of the link, and whoever can be on it.
    fn stays(&self, endpoint: &Endpoint, destination: IpAddr, message: Message) -> bool {
        if hop_limit(message) == 1 {
            return to_group(destination);
        }
        let peer = self.world.peer(endpoint.segment, destination, false);
        let is_known = peer.workload.is_some() || peer.node.is_some();
        let on_link = ["ff02::/16", "fe80::/10"].iter().any(|text| Prefix::literal(text).contains(destination));
        let network = |address: IpAddr| match address {
            IpAddr::V6(v6) => Some(u128::from(v6) >> 64),
            IpAddr::V4(_) => None,
        };
        let beside =
            endpoint.addresses.iter().any(|own| network(*own).is_some_and(|own| network(destination) == Some(own)));
        on_link || is_known || self.world.is_service(destination) || peer.overlay || beside
    }

    /// Whether nobody can tell any more who called: it is gone, and the address that was put in place of its own names others as well.
    fn unknown(&self, passage: &Passage<'_>, flow: &Flow) -> bool {
        let address = passage.remote;
        let shared =
            self.world.peer(passage.endpoint.segment, address, false).node.is_some() || self.world.is_service(address);
        flow.sender == Sender::Gone && shared
    }

    /// Whether an error is about a flow of the endpoint that still holds, and goes to the one whose packet it is about.
    fn known(&self, reading: Reading, id: &EndpointId, passage: &Passage<'_>, error: &Ip, about: &Ip) -> bool {
        if about.v6() != error.v6() || about.source != error.destination || about.fragment == Some(Fragment::Later) {
            return false;
        }
        // What arrives is about what the workload sent, and the other way round.
        let direction = passage.direction.reverse();
        let (local, remote) = match direction {
            Direction::Egress => (about.source, about.destination),
            Direction::Ingress => (about.destination, about.source),
        };
        if !owns(passage.endpoint, local) {
            return false;
        }
        let sender = Sender::Address { passing: false };
        let quoted = Passage { direction, local, remote, sender, ..*passage };
        let Some(flow) = self.flows.get(id).and_then(|flows| flows.get(&key(&quoted, about))) else {
            return false;
        };
        if self.unknown(&quoted, flow) {
            return false;
        }
        // Whom a call may reach is asked with its next packet, not with errors about it: they carry nothing but what
        // their receiver has sent, and only as long as the node still translates the address.
        let segment = passage.endpoint.segment;
        flow.initiator == Direction::Egress && self.world.translation(segment, remote, flow.want).is_some()
            || self.ask(reading, &quoted, flow).decision.allow
    }
}

/// Who the other end is.
fn other_end<'a>(world: &'a World, segment: Segment, remote: IpAddr, sender: &Sender) -> Peer<'a> {
    match sender {
        Sender::Address { passing } => world.peer(segment, remote, *passing),
        Sender::Gone => world.peer(segment, remote, false),
        Sender::Endpoint(id, own) => {
            let peer = world.peer(segment, *own, false);
            match world.endpoint(id) {
                // Its node may have replaced its address; it is still itself.
                Some((workload, _)) => Peer { workload: Some(workload), node: None, here: false, ..peer },
                None => peer,
            }
        }
    }
}

fn resolution(honest: bool) -> Opinion {
    if honest { Opinion::pass(reason::RESOLUTION) } else { Opinion::drop(reason::SPOOFED_RESOLUTION) }
}

fn owns(endpoint: &Endpoint, address: IpAddr) -> bool {
    endpoint.addresses.contains(&address) || address == IpAddr::V6(link_local(endpoint.mac))
}

fn to_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// A workload speaks for its own addresses only; before it has one it may ask whether somebody has it.
fn honest_arp(endpoint: &Endpoint, arp: &Arp) -> bool {
    let probe = arp.request && arp.sender.is_unspecified();
    arp.sender_mac == endpoint.mac && (probe || owns(endpoint, arp.sender.into()))
}

fn honest_neighbour(endpoint: &Endpoint, source: IpAddr, neighbour: &Neighbour) -> bool {
    let near = |address: IpAddr| Prefix::literal("fe80::/10").contains(address) || address == Ipv6Addr::UNSPECIFIED;
    let asks = owns(endpoint, source) || near(source);
    let honest = match neighbour.message {
        Message::Solicitation(_) | Message::RouterSolicitation | Message::ListenerReport(_) => asks,
        Message::Advertisement(target) => owns(endpoint, source) && owns(endpoint, target.into()),
        Message::RouterAdvertisement | Message::Redirect | Message::ListenerQuery => false,
    };
    let mac = neighbour.mac.is_none_or(|mac: Mac| mac == endpoint.mac);
    honest && mac && neighbour.hop_limit == hop_limit(neighbour.message)
}

/// The hop limit that shows that no router has passed the message on (RFC 4861, RFC 3810).
const fn hop_limit(message: Message) -> u8 {
    match message {
        Message::ListenerReport(_) | Message::ListenerQuery => 1,
        _ => 255,
    }
}

/// TCP says of itself that it begins.
const fn begins_always(ip: &Ip) -> bool {
    matches!(ip.transport, Transport::Tcp { flags, .. } if flags & (flag::SYN | flag::ACK) == flag::SYN)
}

/// Nothing is asked with it, not even in the middle of a conversation.
const fn answers_alone(ip: &Ip) -> bool {
    matches!(ip.transport, Transport::Echo { request: false, .. })
}

/// What cannot be the first packet of a conversation.
const fn answers_something(ip: &Ip) -> bool {
    match ip.transport {
        Transport::Tcp { .. } => !begins_always(ip),
        Transport::Echo { request, .. } => !request,
        _ => false,
    }
}

/// What the packet asks for, if it is the first one.
const fn want(ip: &Ip) -> Want {
    let v6 = ip.v6();
    match ip.transport {
        Transport::Tcp { destination, .. } => Want::Port(Protocol::Tcp, destination),
        Transport::Udp { destination, .. } => Want::Port(Protocol::Udp, destination),
        Transport::Sctp { destination, .. } => Want::Port(Protocol::Sctp, destination),
        Transport::Echo { request: true, .. } if v6 => Want::Icmp6(128, 0),
        Transport::Echo { request: true, .. } => Want::Icmp(8, 0),
        Transport::Echo { .. } if v6 => Want::Icmp6(129, 0),
        Transport::Echo { .. } => Want::Icmp(0, 0),
        Transport::Icmp { kind, code } if v6 => Want::Icmp6(kind, code),
        Transport::Icmp { kind, code } => Want::Icmp(kind, code),
        // Never asked for: errors and resolution have rules of their own.
        Transport::Error { .. } | Transport::Neighbour(_) if v6 => Want::Icmp6(0, 0),
        Transport::Error { .. } | Transport::Neighbour(_) => Want::Icmp(0, 0),
        Transport::Other(number) => Want::Other(number),
    }
}

fn key(passage: &Passage<'_>, ip: &Ip) -> Key {
    let sent = passage.direction == Direction::Egress;
    let ports = |protocol, source, destination| {
        if sent { What::Ports(protocol, source, destination) } else { What::Ports(protocol, destination, source) }
    };
    let what = match ip.transport {
        Transport::Tcp { source, destination, .. } => ports(Protocol::Tcp, source, destination),
        Transport::Udp { source, destination } => ports(Protocol::Udp, source, destination),
        Transport::Sctp { source, destination } => ports(Protocol::Sctp, source, destination),
        Transport::Echo { request, id } => {
            What::Echo(id, if request { passage.direction } else { passage.direction.reverse() })
        }
        Transport::Icmp { kind, code } => What::Icmp(kind, code, passage.direction),
        Transport::Other(number) => What::Other(number),
        // Have no flow; a key that no flow has.
        Transport::Error { .. } | Transport::Neighbour(_) => What::Icmp(0xff, 0xff, passage.direction),
    };
    Key { local: passage.local, remote: passage.remote, what }
}
