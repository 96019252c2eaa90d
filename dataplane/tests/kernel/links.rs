//! Attachments on real links, judged by what arrives.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use aya_obj::generated::bpf_insn;
use bulkhead_dataplane::{
    attach::{Attachment, Classifiers, Guard, Hook, Links, Place, Says},
    load::{Maps, Sizes},
    pins::Kind,
    sys::{self, LinkKind, Map},
};
use bulkhead_ebpf::abi::program::{FROM_WORKLOAD, OVERLAY_IN, TO_WORKLOAD, UNDERLAY};
use bulkhead_topology::Netns;

use crate::{Directory, ready, refused};

const NEXT: i32 = -1;
const DROP: i32 = 2;
const SIZES: Sizes = Sizes {
    slots: 4,
    views: 4,
    sets: 4,
    lists: 4,
    rows: 4,
    addresses: 4,
    prefixes: 4,
    rule_counters: 4,
    counters: 4,
    vteps: 4,
    owners: 4,
    services: 4,
    backends: 4,
    contacts: 4,
    flows: 4,
};

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(dst, src), off, imm }
}

/// A program that returns one verdict.
fn always(verdict: i32) -> OwnedFd {
    sys::load_classifier("always", &[insn(0xb7, 0, 0, 0, verdict), insn(0x95, 0, 0, 0, 0)]).unwrap()
}

/// A program that drops what a stub with this value sends to it, and passes the rest on.
fn drops(value: i32) -> OwnedFd {
    let instructions = [
        insn(0x61, 2, 1, 48, 0),
        insn(0xb7, 0, 0, 0, NEXT),
        insn(0x55, 2, 0, 1, value),
        insn(0xb7, 0, 0, 0, DROP),
        insn(0x95, 0, 0, 0, 0),
    ];
    sys::load_classifier("drops", &instructions).unwrap()
}

/// A veth pair between two namespaces, and sockets at both ends.
struct Pair {
    near: Netns,
    _far: Netns,
    link: &'static str,
    sockets: [UdpSocket; 2],
}

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 2);

impl Pair {
    fn new() -> Self {
        Self::named("veth0")
    }

    fn named(link: &'static str) -> Self {
        let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
        let pair = Self { sockets: [near.run(|| socket(None)), far.run(|| socket(None))], near, _far: far, link };
        pair.add_link()
    }

    /// Makes the link, once more if it is gone.
    fn add_link(mut self) -> Self {
        let (link, far) = (self.link, self._far.path().display().to_string());
        run(
            &self.near,
            &format!(
                "ip link add {link} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {far}"
            ),
        );
        // Neighbours are known, so that nothing but the datagrams is on the link.
        for (netns, link, own, other, mac) in
            [(&self.near, link, NEAR, FAR, "02:00:00:00:00:02"), (&self._far, "eth0", FAR, NEAR, "02:00:00:00:00:01")]
        {
            netns.set_sysctl(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
            run(netns, &format!("ip address add {own}/24 dev {link}"));
            run(netns, &format!("ip link set {link} up"));
            run(netns, &format!("ip neighbour add {other} lladdr {mac} nud permanent dev {link}"));
        }
        self.sockets = [self.near.run(|| socket(Some(NEAR))), self._far.run(|| socket(Some(FAR)))];
        self
    }

    /// Whether a datagram gets through: from the far end to the near one, which is ingress of the near link, or the other way.
    fn passes(&self, hook: Hook) -> bool {
        let [near, far] = &self.sockets;
        let (from, to) = if hook == Hook::Egress { (near, far) } else { (far, near) };
        let payload: [u8; 8] = std::array::from_fn(|_| fastrand::u8(..));
        from.send_to(&payload, to.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 8];
        // One that was sent before may still be there.
        while to.recv(&mut buffer).is_ok() {
            if buffer == payload {
                return true;
            }
        }
        false
    }

    fn guard(&self, hook: Hook, program: u32, value: u32) -> Guard {
        Guard { link: self.link.to_owned(), hook, program, value }
    }

    fn ifindex(&self) -> u32 {
        self.near.run(|| nix::net::if_::if_nametoindex(self.link)).unwrap()
    }

    /// A classifier of somebody else at the near end; its link.
    fn foreign(&self, verdict: i32, kind: LinkKind) -> OwnedFd {
        self.near.run(|| sys::link_create(&always(verdict), self.ifindex(), kind)).unwrap()
    }
}

fn socket(address: Option<Ipv4Addr>) -> UdpSocket {
    let socket = UdpSocket::bind((address.unwrap_or(Ipv4Addr::UNSPECIFIED), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

#[track_caller]
fn run(netns: &Netns, line: &str) -> String {
    let mut words = line.split(' ');
    let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Pinned maps with programs at some places.
struct Kernel {
    directory: Directory,
    maps: Maps,
}

impl Kernel {
    fn new(programs: &[(u32, &OwnedFd)]) -> Self {
        let directory = Directory::new();
        let maps = Maps::create(&directory.pins(), &SIZES).unwrap();
        let kernel = Self { directory, maps };
        for (index, program) in programs {
            kernel.put(*index, program);
        }
        kernel
    }

    fn put(&self, index: u32, program: &OwnedFd) {
        let array = self.maps.get("PROGRAMS_TC").unwrap();
        array.put(&index.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes()).unwrap();
    }

    fn links(&self, classifiers: Classifiers) -> Links {
        Links::new(&self.directory.pins(), classifiers)
    }

    fn pinned(&self, kind: Kind) -> usize {
        self.directory.pins().names(kind).unwrap().len()
    }
}

/// What all pins say: place, what the stub says, and whether it is alive.
fn places(attachments: &[Attachment]) -> Vec<(Place, Option<Says>, bool)> {
    attachments.iter().map(|attachment| (attachment.place, attachment.stub, attachment.alive)).collect()
}

const BOTH: [Classifiers; 2] = [Classifiers::Auto, Classifiers::Clsact];

const fn place(classifiers: Classifiers, hook: Hook) -> Place {
    match (classifiers, hook) {
        (_, Hook::XdpNative) => Place::XdpNative,
        (_, Hook::XdpGeneric) => Place::XdpGeneric,
        (Classifiers::Auto, Hook::Ingress) => Place::TcxIngress,
        (Classifiers::Auto, Hook::Egress) => Place::TcxEgress,
        (Classifiers::Clsact, Hook::Ingress) => Place::ClsactIngress,
        (Classifiers::Clsact, Hook::Egress) => Place::ClsactEgress,
    }
}

/// Whether this kernel has TCX. Without it `Auto` is clsact, and what is said of TCX cannot be tried.
fn tcx() -> bool {
    let pair = Pair::new();
    pair.near.run(|| sys::link_create(&always(NEXT), pair.ifindex(), LinkKind::TcxIngress)).is_ok()
}

#[track_caller]
fn ready_with_tcx() -> bool {
    ready() && bulkhead_fixtures::skip::require("a kernel with TCX (6.6)", tcx())
}

#[test]
fn stubs_hand_their_value_to_their_program() {
    if !ready_with_tcx() {
        return;
    }
    for classifiers in BOTH {
        let (pair, kernel) = (Pair::new(), Kernel::new(&[(FROM_WORKLOAD, &drops(3)), (TO_WORKLOAD, &drops(4))]));
        let links = kernel.links(classifiers);
        let attach = |hook, program, value| {
            pair.near.run(|| links.attach(&kernel.maps, &pair.guard(hook, program, value))).unwrap()
        };
        let list = || places(&pair.near.run(|| links.list()).unwrap());
        let (ingress, egress) = (place(classifiers, Hook::Ingress), place(classifiers, Hook::Egress));

        attach(Hook::Ingress, FROM_WORKLOAD, 3);
        assert!(!pair.passes(Hook::Ingress) && pair.passes(Hook::Egress), "{classifiers:?}");
        attach(Hook::Egress, TO_WORKLOAD, 3);
        assert!(!pair.passes(Hook::Ingress) && pair.passes(Hook::Egress), "{classifiers:?}");
        assert_eq!(list(), [(ingress, Some((FROM_WORKLOAD, 3)), true), (egress, Some((TO_WORKLOAD, 3)), true)]);

        // Another value, in the same attachment.
        attach(Hook::Ingress, FROM_WORKLOAD, 4);
        attach(Hook::Egress, TO_WORKLOAD, 4);
        assert!(pair.passes(Hook::Ingress) && !pair.passes(Hook::Egress), "{classifiers:?}");
        assert_eq!(list(), [(ingress, Some((FROM_WORKLOAD, 4)), true), (egress, Some((TO_WORKLOAD, 4)), true)]);

        // One write into the array changes what every link does.
        kernel.put(TO_WORKLOAD, &drops(5));
        assert!(pair.passes(Hook::Egress), "{classifiers:?}");
        // A jump to nowhere drops.
        kernel.maps.get("PROGRAMS_TC").unwrap().remove(&TO_WORKLOAD.to_ne_bytes()).unwrap();
        assert!(!pair.passes(Hook::Egress), "{classifiers:?}");

        pair.near.run(|| links.retain(&[])).unwrap();
        assert!(pair.passes(Hook::Ingress) && pair.passes(Hook::Egress), "{classifiers:?}");
        assert_eq!((list(), kernel.pinned(Kind::Link), kernel.pinned(Kind::Stub)), (vec![], 0, 0));
    }
}

#[test]
fn attaching_again_changes_nothing() {
    if !ready_with_tcx() {
        return;
    }
    for classifiers in BOTH {
        let (pair, kernel) = (Pair::new(), Kernel::new(&[(FROM_WORKLOAD, &always(DROP))]));
        let guard = pair.guard(Hook::Ingress, FROM_WORKLOAD, 1);
        let pin = || {
            let pins = kernel.directory.pins();
            let name = pins.names(Kind::Link).unwrap().into_iter().find(|name| name.contains("ingress")).unwrap();
            // A BPF file system makes a new inode for whatever is pinned anew.
            let path = pins.path(Kind::Link, &name);
            (std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap()), path)
        };
        let filters = || run(&pair.near, &format!("tc filter show dev {} ingress", pair.link));
        pair.near.run(|| kernel.links(classifiers).attach(&kernel.maps, &guard)).unwrap();
        let (before, shown) = (pin(), filters());
        for _ in 0..3 {
            // As after a restart.
            let maps = Maps::open(&kernel.directory.pins()).unwrap();
            pair.near.run(|| kernel.links(classifiers).attach(&maps, &guard)).unwrap();
        }
        assert_eq!((pin().1, filters(), kernel.pinned(Kind::Stub)), (before.1, shown, 1), "{classifiers:?}");
        if classifiers == Classifiers::Auto {
            assert_eq!(pin().0, before.0, "the same attachment");
        }
        assert!(!pair.passes(Hook::Ingress), "{classifiers:?}");
    }
}

#[test]
fn what_others_attached_stays() {
    if !ready_with_tcx() {
        return;
    }
    for classifiers in BOTH {
        let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(NEXT))]));
        // A filter and, before or after us, a TCX program.
        let filter = pinned_filter(&kernel, &always(DROP));
        pair.near.run(|| {
            qdisc_add_clsact(pair.link).unwrap();
            let mut program = SchedClassifier::from_pin(&filter).unwrap();
            let options = NlOptions { priority: 50, handle: TcHandle::AUTO_ASSIGN, classid: None };
            let id = program
                .attach_with_options(pair.link, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
                .unwrap();
            std::mem::forget(program.take_link(id).unwrap());
        });
        let foreign = [pair.foreign(NEXT, LinkKind::TcxIngress), pair.foreign(NEXT, LinkKind::TcxEgress)];
        let there = || {
            let programs = foreign.iter().map(|link| sys::link_facts(link).unwrap()).collect::<Vec<_>>();
            (programs, run(&pair.near, &format!("tc filter show dev {} ingress pref 50", pair.link)))
        };
        let before = there();
        assert!(before.1.contains("direct-action"), "{}", before.1);

        let links = kernel.links(classifiers);
        for hook in [Hook::Ingress, Hook::Egress] {
            pair.near.run(|| links.attach(&kernel.maps, &pair.guard(hook, UNDERLAY, 0))).unwrap();
        }
        assert_eq!(there(), before, "{classifiers:?}");
        assert!(!pair.passes(Hook::Ingress), "{classifiers:?}: a filter behind ours still drops");
        // Ours is in force too.
        kernel.put(UNDERLAY, &always(DROP));
        assert!(!pair.passes(Hook::Egress), "{classifiers:?}");

        pair.near.run(|| links.detach_all()).unwrap();
        assert_eq!(there(), before, "{classifiers:?}");
        assert!(!pair.passes(Hook::Ingress) && pair.passes(Hook::Egress), "{classifiers:?}");
        // The clsact was there before us.
        assert!(run(&pair.near, &format!("tc qdisc show dev {}", pair.link)).contains("clsact"), "{classifiers:?}");
    }
}

/// Pins a program of somebody else, below the test's own directory.
fn pinned_filter(kernel: &Kernel, program: &OwnedFd) -> PathBuf {
    let path = kernel.directory.0.join("theirs");
    sys::obj_pin(program, &path).unwrap();
    path
}

#[test]
fn ours_comes_first() {
    if !ready_with_tcx() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(DROP))]));
    // TC_ACT_OK ends the chain: whoever stands behind is not asked.
    let _theirs = pair.foreign(0, LinkKind::TcxIngress);
    pair.near
        .run(|| kernel.links(Classifiers::Auto).attach(&kernel.maps, &pair.guard(Hook::Ingress, UNDERLAY, 0)))
        .unwrap();
    assert!(!pair.passes(Hook::Ingress));
}

/// Who comes later and goes before ours is named, and overtaken: it stays, and runs behind.
#[test]
fn who_goes_before_ours_is_overtaken() {
    if !ready_with_tcx() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(DROP))]));
    let links = kernel.links(Classifiers::Auto);
    for (hook, kind) in [(Hook::Ingress, LinkKind::TcxIngress), (Hook::Egress, LinkKind::TcxEgress)] {
        let guard = pair.guard(hook, UNDERLAY, 7);
        pair.near.run(|| links.attach(&kernel.maps, &guard)).unwrap();
        let theirs = pair.foreign(0, kind);
        let programs = || pair.near.run(|| sys::tcx_programs(pair.ifindex(), kind)).unwrap();
        let (listed, before) = (|| pair.near.run(|| links.list()).unwrap().pop().unwrap(), programs());
        assert!(pair.passes(hook), "what they let pass is not judged");
        assert_eq!((listed().alive, listed().behind, before.len()), (true, Some(before[0]), 2));
        assert!(!guard.is(&listed()));
        assert!(listed().to_string().ends_with(&format!(" (behind program {})", before[0])), "{}", listed());

        assert!(!pair.near.run(|| links.attach(&kernel.maps, &guard)).unwrap(), "it is no new one");
        assert!(!pair.passes(hook));
        assert!(guard.is(&listed()));
        assert_eq!(programs(), [before[1], before[0]]);
        assert_eq!((kernel.pinned(Kind::Link), kernel.pinned(Kind::Stub)), (1, 1));
        drop(theirs);
        pair.near.run(|| links.detach(&guard)).unwrap();
    }
}

#[test]
fn a_clsact_of_ours_goes_with_the_last_filter() {
    if !ready() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(NEXT))]));
    let links = kernel.links(Classifiers::Clsact);
    let guards = [Hook::Ingress, Hook::Egress].map(|hook| pair.guard(hook, UNDERLAY, 0));
    let qdiscs = || run(&pair.near, &format!("tc qdisc show dev {}", pair.link));
    let before = qdiscs();
    for guard in &guards {
        pair.near.run(|| links.attach(&kernel.maps, guard)).unwrap();
    }
    assert_eq!(qdiscs().matches("clsact").count(), 1);
    pair.near.run(|| links.retain(&guards[..1])).unwrap();
    assert_eq!(qdiscs().matches("clsact").count(), 1, "the other one is still there");
    pair.near.run(|| links.retain(&[])).unwrap();
    assert_eq!(qdiscs(), before);
    assert_eq!(kernel.pinned(Kind::Link), 0);
}

#[test]
fn an_ingress_qdisc_is_not_taken_for_clsact() {
    if !ready() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(DROP))]));
    run(&pair.near, &format!("tc qdisc add dev {} ingress", pair.link));
    let guard = pair.guard(Hook::Egress, UNDERLAY, 0);
    let why = refused(pair.near.run(|| kernel.links(Classifiers::Clsact).attach(&kernel.maps, &guard)));
    assert!(why.contains("`ingress` qdisc") && why.contains("tc qdisc show dev veth0"), "{why}");
    assert!(pair.passes(Hook::Ingress) && pair.passes(Hook::Egress));
    assert_eq!(kernel.pinned(Kind::Link), 0);
}

/// From one mechanism to the other, as after a change of settings.
#[test]
fn a_link_is_guarded_once() {
    if !ready_with_tcx() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(DROP))]));
    for classifiers in [Classifiers::Clsact, Classifiers::Auto, Classifiers::Clsact] {
        let links = kernel.links(classifiers);
        pair.near.run(|| links.attach(&kernel.maps, &pair.guard(Hook::Ingress, UNDERLAY, 0))).unwrap();
        let list = places(&pair.near.run(|| links.list()).unwrap());
        assert_eq!(list, [(place(classifiers, Hook::Ingress), Some((UNDERLAY, 0)), true)]);
        assert!(!pair.passes(Hook::Ingress));
    }
}

#[test]
fn a_link_that_went_is_forgotten_and_a_new_one_guarded() {
    if !ready_with_tcx() {
        return;
    }
    for classifiers in BOTH {
        let (pair, kernel) = (Pair::new(), Kernel::new(&[(FROM_WORKLOAD, &always(DROP))]));
        let links = kernel.links(classifiers);
        let guard = pair.guard(Hook::Ingress, FROM_WORKLOAD, 2);
        pair.near.run(|| links.attach(&kernel.maps, &guard)).unwrap();
        run(&pair.near, &format!("ip link delete {}", pair.link));
        let why = refused(pair.near.run(|| links.attach(&kernel.maps, &guard)));
        assert!(why.contains("attach to link veth0"), "{why}");
        let gone = pair.near.run(|| links.list()).unwrap();
        assert_eq!(places(&gone), [(place(classifiers, Hook::Ingress), Some((FROM_WORKLOAD, 2)), false)]);
        assert!(gone[0].to_string().ends_with("ingress from_workload (gone)"), "{}", gone[0]);

        let pair = pair.add_link();
        assert!(pair.passes(Hook::Ingress), "the new link is not guarded yet");
        pair.near.run(|| links.attach(&kernel.maps, &guard)).unwrap();
        assert!(!pair.passes(Hook::Ingress), "{classifiers:?}");
        pair.near.run(|| links.retain(std::slice::from_ref(&guard))).unwrap();
        let list = pair.near.run(|| links.list()).unwrap();
        assert_eq!(places(&list), [(place(classifiers, Hook::Ingress), Some((FROM_WORKLOAD, 2)), true)]);
        assert_eq!(list[0].ifindex, pair.ifindex());
    }
}

#[test]
fn an_attachment_that_somebody_removed_comes_back() {
    if !ready_with_tcx() {
        return;
    }
    for classifiers in BOTH {
        let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(DROP))]));
        let links = kernel.links(classifiers);
        let guard = pair.guard(Hook::Ingress, UNDERLAY, 0);
        let attach = || pair.near.run(|| links.attach(&kernel.maps, &guard)).unwrap();
        attach();
        let pins = kernel.directory.pins();
        match classifiers {
            Classifiers::Auto => {
                let name = pins.names(Kind::Link).unwrap().remove(0);
                sys::link_detach(&sys::obj_get(&pins.path(Kind::Link, &name)).unwrap()).unwrap();
            }
            Classifiers::Clsact => drop(run(&pair.near, &format!("tc qdisc delete dev {} clsact", pair.link))),
        }
        assert!(pair.passes(Hook::Ingress));
        assert!(!pair.near.run(|| links.list()).unwrap()[0].alive, "{classifiers:?}");
        attach();
        assert!(!pair.passes(Hook::Ingress), "{classifiers:?}");
    }
}

#[test]
fn links_of_other_namespaces_are_kept_but_detached_with_all() {
    if !ready_with_tcx() {
        return;
    }
    let kernel = Kernel::new(&[(UNDERLAY, &always(DROP))]);
    let pairs = [Pair::new(), Pair::new()];
    let links = kernel.links(Classifiers::Auto);
    for pair in &pairs {
        pair.near.run(|| links.attach(&kernel.maps, &pair.guard(Hook::Ingress, UNDERLAY, 0))).unwrap();
    }
    pairs[0].near.run(|| links.retain(&[])).unwrap();
    assert!(pairs[0].passes(Hook::Ingress) && !pairs[1].passes(Hook::Ingress));

    // From wherever, and without anything but the pins.
    let pins = kernel.directory.pins();
    Links::new(&pins, Classifiers::Auto).detach_all().unwrap();
    assert!(pairs[1].passes(Hook::Ingress));
    pins.remove_all().unwrap();
    assert!(!pins.exist());
}

#[test]
fn filters_elsewhere_are_named_and_their_maps_stay() {
    if !ready() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(NEXT))]));
    let links = kernel.links(Classifiers::Clsact);
    pair.near.run(|| links.attach(&kernel.maps, &pair.guard(Hook::Ingress, UNDERLAY, 0))).unwrap();
    let why = refused(links.detach_all());
    assert!(why.contains("another network namespace") && why.contains("detach there"), "{why}");
    assert!(pair.passes(Hook::Ingress), "its jump still leads somewhere");
    pair.near.run(|| links.detach_all()).unwrap();
}

#[test]
fn stubs_of_an_array_that_is_gone_are_not_used() {
    if !ready_with_tcx() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[(UNDERLAY, &always(NEXT))]));
    let pins = kernel.directory.pins();
    let guard = pair.guard(Hook::Ingress, UNDERLAY, 0);
    pair.near.run(|| kernel.links(Classifiers::Auto).attach(&kernel.maps, &guard)).unwrap();
    pins.remove(Kind::Map, "PROGRAMS_TC").unwrap();
    let maps = Maps::create(&pins, &SIZES).unwrap();
    pair.near.run(|| kernel.links(Classifiers::Auto).attach(&maps, &guard)).unwrap();
    assert!(!pair.passes(Hook::Ingress), "the new array is empty");
    let array = Map::from_pin(&pins.path(Kind::Map, "PROGRAMS_TC")).unwrap();
    array.put(&UNDERLAY.to_ne_bytes(), &always(NEXT).as_raw_fd().to_ne_bytes()).unwrap();
    assert!(pair.passes(Hook::Ingress));
}

#[test]
fn names_with_dots_can_be_pinned() {
    if !ready_with_tcx() {
        return;
    }
    let (pair, kernel) = (Pair::named("veth0.100"), Kernel::new(&[(OVERLAY_IN, &always(DROP))]));
    let links = kernel.links(Classifiers::Auto);
    pair.near.run(|| links.attach(&kernel.maps, &pair.guard(Hook::Ingress, OVERLAY_IN, 1))).unwrap();
    let list = pair.near.run(|| links.list()).unwrap();
    assert_eq!((list[0].link.as_str(), list[0].to_string().as_str()), ("veth0.100", "tcx ingress overlay_in"));
    assert!(!pair.passes(Hook::Ingress));
}

/// A stub that a publish sweeps while somebody reads: it was listed, and is not there any more.
#[test]
fn a_stub_that_goes_meanwhile_keeps_nobody_from_reading() {
    if !ready() {
        return;
    }
    let (pair, program) = (Pair::new(), drops(7));
    let kernel = Kernel::new(&[(FROM_WORKLOAD, &program)]);
    let links = kernel.links(Classifiers::Auto);
    pair.near.run(|| links.attach(&kernel.maps, &pair.guard(Hook::Ingress, FROM_WORKLOAD, 7))).unwrap();
    let before = pair.near.run(|| links.list()).unwrap();
    assert_eq!(before.len(), 1);
    let pins = kernel.directory.pins();
    let gone = pins.path(Kind::Stub, &pins.names(Kind::Stub).unwrap()[0].replace("-7-", "-8-"));
    std::os::unix::fs::symlink("swept", &gone).unwrap();
    assert_eq!(pair.near.run(|| links.list()).unwrap(), before);
}

#[test]
fn xdp_in_either_mode() {
    if !ready() {
        return;
    }
    let (pair, kernel) = (Pair::new(), Kernel::new(&[]));
    let links = kernel.links(Classifiers::Auto);
    let attach = |hook| pair.near.run(|| links.attach(&kernel.maps, &pair.guard(hook, UNDERLAY, 0)));
    for hook in [Hook::XdpGeneric, Hook::XdpNative, Hook::XdpNative, Hook::XdpGeneric] {
        attach(hook).unwrap();
        // The array is empty.
        assert!(!pair.passes(Hook::Ingress), "{hook:?}");
        let list = pair.near.run(|| links.list()).unwrap();
        assert_eq!(places(&list), [(place(Classifiers::Auto, hook), Some((UNDERLAY, 0)), true)]);
        assert!(list[0].to_string().ends_with(" underlay"), "{}", list[0]);
    }
    pair.near.run(|| links.retain(&[])).unwrap();
    assert!(pair.passes(Hook::Ingress));
    assert_eq!((kernel.pinned(Kind::Link), kernel.pinned(Kind::Stub)), (0, 0));
}

#[test]
fn an_xdp_program_of_others_stays() {
    if !ready() {
        return;
    }
    let (pair, other, kernel) = (Pair::new(), Kernel::new(&[]), Kernel::new(&[]));
    // Any XDP program will do: here that of another directory of pins.
    pair.near
        .run(|| other.links(Classifiers::Auto).attach(&other.maps, &pair.guard(Hook::XdpGeneric, UNDERLAY, 0)))
        .unwrap();
    let before = pair.near.run(|| other.links(Classifiers::Auto).list()).unwrap();
    for hook in [Hook::XdpGeneric, Hook::XdpNative] {
        let why = refused(
            pair.near.run(|| kernel.links(Classifiers::Auto).attach(&kernel.maps, &pair.guard(hook, UNDERLAY, 0))),
        );
        assert!(why.contains("another XDP program is on the link"), "{why}");
    }
    pair.near.run(|| kernel.links(Classifiers::Auto).detach_all()).unwrap();
    assert_eq!(pair.near.run(|| other.links(Classifiers::Auto).list()).unwrap(), before);
    assert!(before[0].alive);
}
