//! Programs of others on the same links: they stay what and where they are, and go on to drop what they drop.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_insn;
use bulkhead_dataplane::sys::{self, LinkKind};
use bulkhead_fixtures::skip;
use bulkhead_tests::{Agent, Lab};
use bulkhead_topology::traffic::Outcome;

use crate::{
    detach::detach_all,
    listing::{say, tcx},
    policy::shop,
    probe::{Ask, BRIEF, PATIENCE, Servers, allowed, ask, denied},
};

const NEXT: i32 = -1;
const DROP: i32 = 2;
const XDP_PASS: i32 = 2;

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(dst, src), off, imm }
}

/// A classifier that drops TCP over IPv6, and lets the next one judge the rest.
fn no_tcp6() -> OwnedFd {
    let protocol = i32::from(0x86dd_u16.to_be());
    let instructions = [
        insn(0xbf, 6, 1, 0, 0),
        // `skb->protocol`, and the next header of IPv6 behind the Ethernet header.
        insn(0x61, 7, 6, 16, 0),
        insn(0x55, 7, 0, 4, protocol),
        insn(0x30, 0, 0, 0, 14 + 6),
        insn(0x55, 0, 0, 2, 6),
        insn(0xb7, 0, 0, 0, DROP),
        insn(0x95, 0, 0, 0, 0),
        insn(0xb7, 0, 0, 0, NEXT),
        insn(0x95, 0, 0, 0, 0),
    ];
    sys::load_classifier("no_tcp6", &instructions).unwrap()
}

fn always(verdict: i32) -> [bpf_insn; 2] {
    [insn(0xb7, 0, 0, 0, verdict), insn(0x95, 0, 0, 0, 0)]
}

/// What somebody else has on node 0 of [`shop`]: on the link of `web` TCX programs on both sides, of which those for what it sends drop TCP over
/// IPv6; on the link of `cart-1` a filter in a clsact that does so; a firewall with a counter.
pub(crate) struct Others {
    _tcx: Vec<OwnedFd>,
    pin: PathBuf,
}

impl Others {
    pub(crate) fn install(lab: &Lab) -> Self {
        let netns = &lab.topology.node(0).netns;
        let web = lab.topology.workload("web").link.index;
        let plain = sys::load_classifier("plain", &always(NEXT)).unwrap();
        let hang = |program: &OwnedFd, side| netns.run(|| sys::link_create(program, web, side)).unwrap();
        let tcx = vec![
            hang(&no_tcp6(), LinkKind::TcxIngress),
            hang(&plain, LinkKind::TcxIngress),
            hang(&plain, LinkKind::TcxEgress),
        ];
        let pin = Path::new("/sys/fs/bpf").join(format!("theirs-{}", lab.topology.id()));
        sys::obj_pin(&no_tcp6(), &pin).unwrap();
        let others = Self { _tcx: tcx, pin };
        let cart = &lab.topology.workload("cart-1").link.name;
        for line in [
            format!("tc qdisc add dev {cart} clsact"),
            format!("tc filter add dev {cart} ingress pref 50 bpf da object-pinned {}", others.pin.display()),
            "nft add table inet theirs".to_owned(),
            "nft add chain inet theirs in { type filter hook input priority 0 ; }".to_owned(),
            "nft add rule inet theirs in counter accept".to_owned(),
        ] {
            say(netns, &line);
        }
        others
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // Filters go with their links.
        let _ = fs::remove_file(&self.pin);
    }
}

/// What hangs on the links, in their order, and what filters and XDP say of themselves.
#[derive(Debug, PartialEq, Eq)]
struct Hung {
    ingress: Vec<u32>,
    egress: Vec<u32>,
    filters: String,
    xdp: String,
}

fn hung(lab: &Lab) -> Hung {
    let node = lab.topology.node(0);
    let (web, cart) = (lab.topology.workload("web").link.index, &lab.topology.workload("cart-1").link.name);
    let underlay = say(&node.netns, &format!("ip -d link show dev {}", node.underlay.link.name));
    Hung {
        ingress: tcx(&node.netns, web, LinkKind::TcxIngress),
        egress: tcx(&node.netns, web, LinkKind::TcxEgress),
        filters: say(&node.netns, &format!("tc filter show dev {cart} ingress"))
            + &say(&node.netns, &format!("tc qdisc show dev {cart}")),
        xdp: underlay.lines().filter(|line| line.contains("prog/xdp")).collect(),
    }
}

/// The programs of others drop what they drop, and nothing else of what policy allows is lost.
#[track_caller]
fn they_drop(lab: &Lab) {
    for (from, to, port) in [("web", "cart-2", 8080), ("cart-1", "db", 5432)] {
        let to = lab.topology.workload(to);
        assert_eq!(ask(lab, from, to.v4.into(), Ask::Tcp(port), PATIENCE), Outcome::Answered, "{from} {port}");
        assert_eq!(ask(lab, from, to.v6.into(), Ask::Tcp(port), BRIEF), Outcome::TimedOut, "{from} {port}");
    }
    // IPv6 as such passes, theirs and ours.
    allowed(lab, "web", "cart-2", Ask::Udp(5300));
}

#[test]
fn what_others_attached_stays_and_still_drops() {
    if !skip::root() {
        return;
    }
    let lab = shop();
    let _servers = [
        Servers::start(&lab, "cart-2", &[8080], &[5300]),
        Servers::start(&lab, "db", &[5432], &[]),
        Servers::start(&lab, "cart-1", &[], &[5300]),
    ];
    let others = Others::install(&lab);
    let netns = &lab.topology.node(0).netns;
    let underlay = lab.topology.node(0).underlay.link.index;
    let pass = sys::load_xdp("theirs", &always(XDP_PASS)).unwrap();
    let xdp = netns.run(|| sys::link_create(&pass, underlay, LinkKind::XdpGeneric)).unwrap();
    let before = hung(&lab);
    assert_eq!((before.ingress.len(), before.egress.len()), (2, 1), "{before:?}");
    assert!(before.filters.contains("pref 50") && before.filters.contains("clsact"), "{before:?}");
    assert!(before.xdp.contains("prog/xdp id"), "{before:?}");
    they_drop(&lab);
    allowed(&lab, "guest", "cart-1", Ask::Udp(5300));

    // Ours stands before theirs, and everything else is as it was.
    let behind_ours = |what: &str| {
        let now = hung(&lab);
        let theirs = |all: &[u32]| all.split_first().map(|(_, theirs)| theirs.to_vec()).unwrap_or_default();
        let (ingress, egress) = (theirs(&now.ingress), theirs(&now.egress));
        let ours = [now.ingress[0], now.egress[0]];
        assert_eq!(Hung { ingress, egress, ..now }, before, "{what}");
        they_drop(&lab);
        denied(&lab, "guest", "cart-1", Ask::Udp(5300));
        ours
    };
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let first = behind_ours("installed");
    agent.kill().unwrap();
    assert_eq!(behind_ours("without an agent"), first);

    // As another version would have named its stubs: this one puts its own in their place.
    let stubs = stubs(&lab);
    assert!(stubs.len() > 4, "{stubs:?}");
    for stub in &stubs {
        let name = stub.file_name().unwrap().to_str().unwrap();
        let (name, _) = name.rsplit_once('-').unwrap();
        fs::rename(stub, stub.with_file_name(format!("{name}-0123456789abcdef"))).unwrap();
    }
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let second = behind_ours("upgraded");
    assert!(first.iter().zip(second).all(|(first, second)| *first != second), "{first:?} {second:?}");
    agent.kill().unwrap();
    // Programs of another layout take over.
    Agent::start(&lab, 0, &["--mark-mask", "0x0fff0000"]).unwrap().kill().unwrap();
    assert_eq!(behind_ours("with another mask"), second);

    // There is one place for XDP, and it is taken.
    let (status, log) = Agent::spawn(&lab, 0, &["--xdp", "generic"]).unwrap().ended().unwrap();
    assert_ne!(status, 0);
    assert!(log.contains("another XDP program is on the link, and stays"), "{log}");
    behind_ours("with XDP");

    // Somebody comes later, and stands before us: what he lets pass would not be judged. He stays, and runs behind ours.
    let late = sys::load_classifier("late", &always(NEXT)).unwrap();
    let web = lab.topology.workload("web").link.index;
    let _late = netns.run(|| sys::link_create(&late, web, LinkKind::TcxIngress)).unwrap();
    let crowded = hung(&lab);
    let [late, ours, theirs @ ..] = &crowded.ingress[..] else { panic!("{crowded:?}") };
    assert_eq!((*ours, theirs), (second[0], &before.ingress[..]));
    Agent::start(&lab, 0, &[]).unwrap().kill().unwrap();
    let now = hung(&lab);
    assert_eq!(now.ingress, [&[*ours, *late], theirs].concat());
    assert_eq!(Hung { ingress: crowded.ingress.clone(), ..now }, crowded);
    they_drop(&lab);

    detach_all(&lab, &lab.state(0));
    let ingress = [&[*late], theirs].concat();
    assert_eq!(hung(&lab), Hung { ingress, ..before });
    they_drop(&lab);
    allowed(&lab, "guest", "cart-1", Ask::Udp(5300));

    // It was theirs that dropped.
    drop((others, xdp));
    allowed(&lab, "web", "cart-2", Ask::Tcp(8080));
}

fn stubs(lab: &Lab) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for layout in fs::read_dir(lab.pins(0)).unwrap() {
        for stub in fs::read_dir(layout.unwrap().path().join("stubs")).unwrap() {
            found.push(stub.unwrap().path());
        }
    }
    found
}
