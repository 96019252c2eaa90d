//! What is measured.

use bulkhead_dataplane::node::direction_label;
use bulkhead_ebpf::{
    abi::{Direction, mark},
    reason::Reason,
};
use bulkhead_fixtures::{Frame, tcp};

use super::{
    rig::Subject,
    world::{self, Family, PORT, Prefixes, Tunnel},
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
}

impl Driver {
    /// Name of the baseline's program.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::SameFlow => Some("same_flow"),
            Self::NextFlow => Some("next_flow"),
            Self::NextEpoch => Some("next_epoch"),
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
    pub(crate) prefixes: Prefixes,
    /// Packets that come first, with the program that gets them.
    pub(crate) before: Vec<(Subject, Vec<u8>)>,
    pub(crate) packet: Vec<u8>,
    /// `skb->mark` with which it comes.
    pub(crate) mark: u32,
    pub(crate) driver: Driver,
    pub(crate) flows: Flows,
    /// What the program must return.
    pub(crate) action: i32,
    /// Reason under which each packet counts, in the subject's direction; `None` where nothing counts.
    pub(crate) reason: Option<Reason>,
    /// Each packet counts as a flow.
    pub(crate) starts: bool,
    /// Nanoseconds above the empty program on a machine where the floor program takes 43.
    pub(crate) target: Option<f64>,
}

impl Case {
    /// What `--only` looks in.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}/{}", self.name, self.subject.name(), family(self.family))
    }

    /// Direction under which it counts.
    pub(crate) const fn direction(&self) -> &'static str {
        direction_label(match self.subject {
            Subject::FromWorkload => Direction::Egress,
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
    }
    for family in Family::ALL {
        for subject in [Subject::UnderlayXdp, Subject::Underlay] {
            underlay(&mut cases, family, subject);
        }
    }
    cases
}

/// A packet (TCP with these flags, UDP without) between the endpoint and a peer, as `subject` sees it. `port` is the endpoint's or the peer's that is the lower one.
fn packet(subject: Subject, peer: std::net::IpAddr, begun_by_peer: bool, port: u16, flags: Option<u8>) -> Vec<u8> {
    let (own, remote) = if begun_by_peer { (PORT, port) } else { (port, PORT) };
    match subject {
        Subject::FromWorkload => world::sent(peer, own, remote, flags),
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
        prefixes: Prefixes::Few,
        before: Vec::new(),
        packet: packet(subject, peer, !sent, 40_001, SYN),
        mark,
        driver: same,
        flows: Flows::Kept,
        action: NEXT,
        reason: Some(Reason::Rule),
        starts: false,
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
        reason: Some(Reason::Reply),
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
        cases.push(Case { name, driver: Driver::NextFlow, flows, starts: true, target: Some(target), ..base() });
    }
    let denied = |name, peer, prefixes, mark, target| Case {
        name,
        prefixes,
        packet: packet(subject, peer, !sent, 40_002, SYN),
        mark,
        driver: if mark == 0 { Driver::None } else { same },
        action: SHOT,
        reason: Some(Reason::Isolated),
        starts: true,
        target: Some(target),
        ..base()
    };
    cases.push(denied("denied_known", world::denied(family), Prefixes::Few, mark, 80.0));
    for (name, prefixes) in [("denied_unknown", Prefixes::Few), ("denied_unknown_50000", Prefixes::Many)] {
        cases.push(denied(name, world::unknown(family, prefixes), prefixes, 0, 140.0));
    }
}

fn underlay(cases: &mut Vec<Case>, family: Family, subject: Subject) {
    let xdp = subject == Subject::UnderlayXdp;
    let (pass, drop) = if xdp { (XDP_PASS, XDP_DROP) } else { (NEXT, SHOT) };
    let base = |name, packet| Case {
        name,
        subject,
        family,
        prefixes: Prefixes::Few,
        before: Vec::new(),
        packet,
        mark: 0,
        driver: Driver::None,
        flows: Flows::Kept,
        action: pass,
        reason: None,
        starts: false,
        target: None,
    };
    let tunnelled = |tunnel: &Tunnel| world::tunnelled(family, tunnel);
    let genuine = || Tunnel::genuine(family);
    cases.push(base("foreign", world::plain(family)));
    cases.push(Case {
        // What XDP lets pass counts in TC.
        reason: (!xdp).then_some(Reason::Verified),
        target: xdp.then_some(60.0),
        ..base("genuine", tunnelled(&genuine()))
    });
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
        cases.push(Case { action: drop, reason: Some(reason), ..base(reason.label(), tunnelled(&tunnel)) });
    }
}
