//! What is measured.

use std::net::IpAddr;

use bulkhead_dataplane::node::direction_label;
use bulkhead_ebpf::{
    abi::{Direction, mark},
    reason::Reason,
};
use bulkhead_fixtures::{Frame, tcp};

use super::{
    rig::Subject,
    world::{self, Family, PORT, SERVICE_PORT, TIERS, Tables, Tunnel},
};

/// `TCX_NEXT`, `TCX_DROP`, `XDP_DROP`, `XDP_PASS`.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// TCP flags.
const SYN: Option<u8> = Some(tcp::SYN);
const ACK: Option<u8> = Some(tcp::ACK);

/// How each run of a test run gets a packet that makes it do what the case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The packet stays good: the program runs alone.
    None,
    /// The mark is set anew.
    SameFlow,
    /// Another source port for each.
    NextFlow,
    /// Another epoch for each: the flow must be judged again.
    NextEpoch,
    /// Another generation of the overlays' tables for each: who owns the inner source must be looked up.
    NextOverlays,
    /// Of one of so many flows for each, drawn at random. The packets before are of each of them.
    RandomFlow(u32),
}

impl Driver {
    /// Name of the baseline's program.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::SameFlow => Some("same_flow"),
            Self::NextFlow => Some("next_flow"),
            Self::NextEpoch => Some("next_epoch"),
            Self::NextOverlays => Some("next_overlays"),
            Self::RandomFlow(_) => Some("random_flow"),
        }
    }
}

/// Flow table of the endpoint in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    /// As the packets before left it.
    Kept,
    /// Empty, and never full.
    Room,
    /// Full: each new flow pushes another out.
    Full,
}

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) subject: Subject,
    pub(crate) family: Family,
    pub(crate) tables: Tables,
    /// Packets that come first, with the program that gets them.
    pub(crate) before: Vec<(Subject, Vec<u8>)>,
    pub(crate) packet: Vec<u8>,
    /// `skb->mark` with which it comes.
    pub(crate) mark: u32,
    pub(crate) driver: Driver,
    pub(crate) flows: Flows,
    /// What the program must return.
    pub(crate) action: i32,
    /// Reasons under which each packet counts, in the subject's direction, and whether as a flow.
    pub(crate) counts: Vec<(Reason, bool)>,
    /// Nanoseconds above the empty program on a machine where the floor program takes 43.
    pub(crate) target: Option<f64>,
}

impl Case {
    /// What `--only` looks in.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}/{}", self.name, self.subject.name(), family(self.family))
    }

    /// Flows among which each packet's is drawn at random; `None` for one hot packet.
    pub(crate) const fn spread(&self) -> Option<u32> {
        match self.driver {
            Driver::RandomFlow(flows) => Some(flows),
            _ => None,
        }
    }

    /// Direction under which it counts.
    pub(crate) const fn direction(&self) -> &'static str {
        direction_label(match self.subject {
            Subject::FromWorkload | Subject::OverlayOut => Direction::Egress,
            _ => Direction::Ingress,
        })
    }
}

/// Label of a family.
pub(crate) const fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for subject in [Subject::FromWorkload, Subject::ToWorkload] {
            workload(&mut cases, family, subject);
        }
        services(&mut cases, family);
        decapsulated(&mut cases, family);
    }
    for family in Family::ALL {
        for subject in [Subject::UnderlayXdp, Subject::Underlay] {
            underlay(&mut cases, family, subject);
        }
    }
    cases
}

/// A packet (TCP with these flags, UDP without) between the endpoint and a peer, as `subject` sees it. `port` is that of who began it.
fn packet(subject: Subject, peer: IpAddr, begun_by_peer: bool, port: u16, flags: Option<u8>) -> Vec<u8> {
    packet_to(PORT, subject, peer, begun_by_peer, port, flags)
}

/// The same, to another port.
fn packet_to(to: u16, subject: Subject, peer: IpAddr, begun_by_peer: bool, port: u16, flags: Option<u8>) -> Vec<u8> {
    let (own, remote) = if begun_by_peer { (to, port) } else { (port, to) };
    match subject {
        Subject::FromWorkload | Subject::OverlayOut => world::sent(peer, own, remote, flags),
        _ => world::got(peer, remote, own, flags),
    }
}

fn workload(cases: &mut Vec<Case>, family: Family, subject: Subject) {
    let sent = subject == Subject::FromWorkload;
    let other = if sent { Subject::ToWorkload } else { Subject::FromWorkload };
    let peer = world::allowed(family);
    // What other nodes send arrives encapsulated, and to_workload takes the mark off.
    let (mark, same) = if sent { (0, Driver::None) } else { (mark::VERIFIED, Driver::SameFlow) };
    let established = if family == Family::V4 { 45.0 } else { 60.0 };
    let base = || Case {
        name: "",
        subject,
        family,
        tables: Tables::Usual,
        before: Vec::new(),
        packet: packet(subject, peer, !sent, 40_001, SYN),
        mark,
        driver: same,
        flows: Flows::Kept,
        action: NEXT,
        counts: vec![(Reason::Rule, false)],
        target: None,
    };
    // The peer of what the endpoint sends is the one that answers, and the other way round.
    cases.push(Case {
        name: "established",
        before: vec![(subject, packet(subject, peer, !sent, 40_000, SYN))],
        packet: packet(subject, peer, !sent, 40_000, ACK),
        target: Some(established),
        ..base()
    });
    cases.push(Case {
        name: "established_udp",
        before: vec![(subject, packet(subject, peer, !sent, 40_000, None))],
        packet: packet(subject, peer, !sent, 40_000, None),
        ..base()
    });
    cases.push(Case {
        name: "established_reply",
        before: vec![(other, packet(other, peer, sent, 40_000, SYN))],
        packet: packet(subject, peer, sent, 40_000, ACK),
        counts: vec![(Reason::Reply, false)],
        target: Some(established),
        ..base()
    });
    cases.push(Case {
        name: "new_no_insert",
        before: vec![(subject, packet(subject, peer, !sent, 40_001, SYN))],
        driver: Driver::NextEpoch,
        target: Some(80.0),
        ..base()
    });
    for (name, flows, target) in [("new_insert_room", Flows::Room, 400.0), ("new_insert_full", Flows::Full, 750.0)] {
        let counts = vec![(Reason::Rule, true)];
        cases.push(Case { name, driver: Driver::NextFlow, flows, counts, target: Some(target), ..base() });
    }
    for (name, flows, tables) in [
        ("established_of_1k", 1_000, Tables::Usual),
        ("established_of_10k", 10_000, Tables::Usual),
        ("established_of_50k", 50_000, Tables::ManyFlows),
        ("established_of_200k", 200_000, Tables::ManyFlows),
    ] {
        cases.push(Case {
            name,
            tables,
            before: vec![(subject, packet(subject, peer, !sent, 40_000, SYN))],
            packet: packet(subject, peer, !sent, 40_000, ACK),
            driver: Driver::RandomFlow(flows),
            ..base()
        });
    }
    for (name, (port, _)) in ["new_tier_1", "new_tier_3", "new_tier_8"].into_iter().zip(TIERS) {
        let packet = || packet_to(port, subject, peer, !sent, 40_001, SYN);
        cases.push(Case {
            name,
            before: vec![(subject, packet())],
            packet: packet(),
            driver: Driver::NextEpoch,
            ..base()
        });
    }
    // A flow about which audited entries say the same is an established one from its second packet on.
    let audited = |name, peer, counts, driver, flags| Case {
        name,
        tables: Tables::ManyFlows,
        before: vec![(subject, packet(subject, peer, !sent, 40_001, SYN))],
        packet: packet(subject, peer, !sent, 40_001, flags),
        driver,
        counts,
        ..base()
    };
    let rule = (Reason::Rule, false);
    let differs = vec![rule, (Reason::WouldDeny, false)];
    cases.push(audited("audited_new", peer, vec![rule], Driver::NextEpoch, SYN));
    cases.push(audited("audited_differs", world::doubtful(family), differs, same, ACK));
    let denied = |name, peer, tables, mark, target| Case {
        name,
        tables,
        packet: packet(subject, peer, !sent, 40_002, SYN),
        mark,
        driver: if mark == 0 { Driver::None } else { same },
        action: SHOT,
        counts: vec![(Reason::Isolated, true)],
        target: Some(target),
        ..base()
    };
    cases.push(denied("denied_known", world::denied(family), Tables::Usual, mark, 80.0));
    for (name, tables) in [("denied_unknown", Tables::Usual), ("denied_unknown_50000", Tables::ManyPrefixes)] {
        cases.push(denied(name, world::unknown(family, tables), tables, 0, 140.0));
    }
}

/// Calls to a service address: provisional where they leave the workload, and judged for good after translation, where they leave by the overlay.
fn services(cases: &mut Vec<Case>, family: Family) {
    let (from, out) = (Subject::FromWorkload, Subject::OverlayOut);
    let call = |flags| packet_to(SERVICE_PORT, from, world::service(family), false, 40_003, flags);
    let translated = |flags| packet(out, world::allowed(family), false, 40_003, flags);
    let base = |name, subject, packet, driver, counts| Case {
        name,
        subject,
        family,
        tables: Tables::Usual,
        before: vec![(subject, if subject == from { call(SYN) } else { translated(SYN) })],
        packet,
        mark: 0,
        driver,
        flows: Flows::Kept,
        action: NEXT,
        counts,
        target: None,
    };
    // Its flow is provisional: the packet counts after translation.
    cases.push(base("service_new", from, call(SYN), Driver::NextEpoch, Vec::new()));
    cases.push(base("service_established", from, call(ACK), Driver::None, Vec::new()));
    // The mark, which tells whose it is, is taken off.
    cases.push(base("translated", out, translated(ACK), Driver::SameFlow, vec![(Reason::Rule, false)]));
}

/// What comes out of a tunnel, of which UDP could be a tunnel's again.
fn decapsulated(cases: &mut Vec<Case>, family: Family) {
    let subject = Subject::OverlayIn;
    for (name, flags) in [("decapsulated", ACK), ("decapsulated_udp", None)] {
        cases.push(Case {
            name,
            subject,
            family,
            tables: Tables::Usual,
            before: Vec::new(),
            packet: packet(subject, world::allowed(family), true, 40_004, flags),
            mark: mark::VERIFIED,
            driver: Driver::None,
            flows: Flows::Kept,
            action: NEXT,
            counts: Vec::new(),
            target: None,
        });
    }
}

fn underlay(cases: &mut Vec<Case>, family: Family, subject: Subject) {
    let xdp = subject == Subject::UnderlayXdp;
    let (pass, drop) = if xdp { (XDP_PASS, XDP_DROP) } else { (NEXT, SHOT) };
    let base = |name, packet| Case {
        name,
        subject,
        family,
        tables: Tables::Usual,
        before: Vec::new(),
        packet,
        mark: 0,
        driver: Driver::None,
        flows: Flows::Kept,
        action: pass,
        counts: Vec::new(),
        target: None,
    };
    let tunnelled = |tunnel: &Tunnel| world::tunnelled(family, tunnel);
    let genuine = || Tunnel::genuine(family);
    let verified = || if xdp { Vec::new() } else { vec![(Reason::Verified, false)] };
    cases.push(base("foreign", world::plain(family)));
    cases.push(Case {
        // What XDP lets pass counts in TC.
        counts: verified(),
        target: xdp.then_some(60.0),
        ..base("genuine", tunnelled(&genuine()))
    });
    if !xdp {
        let driver = Driver::NextOverlays;
        cases.push(Case { counts: verified(), driver, ..base("genuine_new", tunnelled(&genuine())) });
    }
    // By policy XDP drops a SYN; of what passes it counts nothing.
    let knocks = |from, flags| world::tunnelled(Family::V4, &Tunnel::knocks(from, flags));
    cases.push(Case { counts: verified(), ..base("syn_allowed", knocks(world::allowed(family), tcp::SYN)) });
    cases.push(if xdp {
        Case {
            action: drop,
            counts: vec![(Reason::Verified, false), (Reason::Isolated, true)],
            target: Some(140.0),
            ..base("syn_denied", knocks(world::denied(family), tcp::SYN))
        }
    } else {
        Case { counts: verified(), ..base("syn_denied", knocks(world::denied(family), tcp::SYN)) }
    });
    cases.push(Case { counts: verified(), ..base("no_syn_denied", knocks(world::denied(family), tcp::ACK)) });
    let vlan =
        Frame::eth(world::OTHER_MAC, world::OWN_MAC).vlan(5).ip(world::allowed(family), world::own(family)).udp(1, 2);
    let broken =
        Frame::eth(world::OTHER_MAC, world::OWN_MAC).ip(world::allowed(family), world::own(family)).ip_version(9);
    for (reason, tunnel) in [
        (Reason::UnknownVtep, Tunnel { vtep: world::vtep(family, 251), ..genuine() }),
        (Reason::WrongVtep, Tunnel { vtep: world::vtep(family, 3), ..genuine() }),
        (Reason::UnknownVni, Tunnel { vni: 77, ..genuine() }),
        (Reason::BadVxlan, Tunnel { broken: true, ..genuine() }),
        (Reason::OuterFragment, Tunnel { fragment: true, ..genuine() }),
        (Reason::NotIp, Tunnel { inner: vlan, ..genuine() }),
        (Reason::Malformed, Tunnel { inner: broken, ..genuine() }),
    ] {
        let counts = vec![(reason, false)];
        cases.push(Case { action: drop, counts, ..base(reason.label(), tunnelled(&tunnel)) });
    }
}
