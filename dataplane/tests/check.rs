//! What `bulkhead check` is told of real links, routes, rules and processes.

use std::{
    fs,
    net::IpAddr,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use aya_obj::generated::bpf_insn;
use bulkhead_dataplane::{
    attach::{Classifiers, Guard, Hook, Links},
    check::{self, Driver, Firewall, Foreign, Hanging, Place, Rootless},
    load::{self, Maps, Sizes},
    mark,
    network::{self, PlainRoute, Reach, Survey, SurveyedLink, VxlanDevice, XdpPlace},
    pins::Pins,
    sys::{self, LinkKind},
};
use bulkhead_ebpf::abi::program;
use bulkhead_fixtures::skip;
use bulkhead_topology::{Netns, Process, Topology};

/// Runs a command line, which no argument with spaces needs, in a namespace.
#[track_caller]
fn run(netns: &Netns, line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    let output = netns.command(words.next().expect("a program")).args(words).output().expect(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect(line)
}

const PINS: &str = "/sys/fs/bpf/bulkhead-test-check";

#[track_caller]
fn survey(netns: &Netns) -> Survey {
    netns.run(network::survey).expect("a survey")
}

#[track_caller]
fn device(netns: &Netns, name: &str) -> VxlanDevice {
    survey(netns).devices.into_iter().find(|device| device.device == name).expect(name)
}

#[track_caller]
fn link(netns: &Netns, name: &str) -> SurveyedLink {
    survey(netns).links.into_iter().find(|link| link.name == name).expect(name)
}

#[track_caller]
fn hanging(netns: &Netns, name: &str) -> Hanging {
    hanging_beside(netns, &Pins::new(Path::new(PINS)), name)
}

#[track_caller]
fn hanging_beside(netns: &Netns, pins: &Pins, name: &str) -> Hanging {
    let survey = survey(netns);
    let hanging = netns.run(|| check::hanging(pins, &survey));
    hanging.into_iter().find(|hanging| hanging.link == name).expect(name)
}

#[track_caller]
fn driver(netns: &Netns, name: &str) -> Driver {
    let index = link(netns, name).index;
    netns.run(|| Driver::look(name, index))
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect(address)
}

fn insn(code: u8, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm }
}

/// Somebody else's classifier, which passes everything on.
fn classifier() -> OwnedFd {
    sys::load_classifier("somebody_elses", &[insn(0xb7, -1), insn(0x95, 0)]).unwrap()
}

#[test]
fn the_kernel_takes_the_programs_and_nothing_stays() {
    if !skip::programs() {
        return;
    }
    let path = Path::new(PINS);
    let topology = Topology::builder().nodes(2).workload("web", 0).build().unwrap();
    let node = topology.node(0);
    let found = node.netns.run(|| check::facts(path, mark::DEFAULT));
    let rehearsal = found.rehearsal.as_ref().unwrap();
    // Ten of TC, two of XDP, three stubs.
    assert_eq!(rehearsal.programs, 15);
    assert_eq!(found.pins, Ok(()));
    assert!(!path.exists(), "looking makes no directory");
    assert_eq!(found.kernel.lacking, Ok(vec![]));
    let release = Command::new("uname").arg("-r").output().unwrap();
    assert_eq!(found.kernel.release, Ok(String::from_utf8(release.stdout).unwrap().trim().to_owned()));
    let drivers: Vec<&str> = found.drivers.iter().map(|(link, _)| link.as_str()).collect();
    assert_eq!(drivers, ["eth0"]);
    let mut guarded = vec!["eth0", &topology.workload("web").link.name];
    guarded.extend(node.overlays().map(|overlay| overlay.device.name.as_str()));
    guarded.sort_unstable();
    let mut hanging: Vec<&str> = found.hanging.iter().map(|hanging| hanging.link.as_str()).collect();
    hanging.sort_unstable();
    assert_eq!(hanging, guarded);
    assert_eq!(found.kernel.btf, Path::new("/sys/kernel/btf/vmlinux").exists());

    // What the kernel does not take is named.
    let refused = load::rehearse(&Sizes { lists: u32::MAX, ..Sizes::default() }, mark::DEFAULT).unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("LISTS") && refused.contains("os error"), "{refused}");
    let refused = load::rehearse(&Sizes::default(), 1).unwrap_err();
    assert!(refused.to_string().contains("use the mask of the mark"), "{refused}");
}

#[test]
fn a_place_that_is_no_bpffs_is_told() {
    if !skip::programs() {
        return;
    }
    let why = Pins::new(Path::new("/tmp/bulkhead")).check().unwrap_err().to_string();
    assert!(why.contains("not on a BPF file system") && why.contains("mount -t bpf"), "{why}");
}

#[test]
fn vxlan_devices_are_described() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(3).workload("web", 0).build().unwrap();
    let node = topology.node(0);
    for line in [
        "ip link add guess type vxlan id 77 dstport 4790 local 192.0.2.1 dev eth0 learning",
        "bridge fdb add 02:00:00:00:00:09 dev guess dst 192.0.2.9 self dynamic",
        "bridge fdb add 02:00:00:00:00:08 dev guess dst 192.0.2.8 self dynamic",
        "bridge fdb add 02:00:00:00:00:07 dev guess dst 192.0.2.8 self permanent",
        "ip link add meta type vxlan external dstport 4791",
    ] {
        run(&node.netns, line);
    }
    let flannel = device(&node.netns, &node.overlay4.device.name);
    assert_eq!(
        flannel,
        VxlanDevice {
            device: node.overlay4.device.name.clone(),
            vni: Some(node.overlay4.vni),
            port: node.overlay4.port,
            own: Some(node.overlay4.vtep),
            learning: false,
            elsewhere: false,
            underlays: vec!["eth0".to_owned()],
            permanent: 2,
            learned: vec![],
            peers: 2,
            owned: 2,
        }
    );
    let guess = device(&node.netns, "guess");
    assert_eq!((guess.vni, guess.port, guess.learning, guess.permanent), (Some(77), 4790, true, 1));
    assert_eq!(guess.learned, [ip("192.0.2.9")], "the other VTEP has a static entry too");
    let meta = device(&node.netns, "meta");
    assert_eq!((meta.vni, meta.port), (None, 4791));

    let eth0 = link(&node.netns, "eth0");
    assert!(eth0.underlay && !eth0.port, "{eth0:?}");
    assert!(run(&node.netns, "ip link show eth0").contains(&format!(" mtu {} ", eth0.mtu)), "{eth0:?}");
    let port = &*topology.workload("web").link.name;
    assert!(link(&node.netns, port).port, "{:?}", survey(&node.netns).links);
}

#[test]
fn a_driver_tells_its_name_and_what_it_can_do_in_xdp() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let node = topology.node(0);
    let (eth0, bridge) = (driver(&node.netns, "eth0"), driver(&node.netns, &node.bridge.name));
    assert_eq!((eth0.name, bridge.name), (Ok("veth".to_owned()), Ok("bridge".to_owned())));
    if skip::require("a kernel that tells XDP features (6.3)", eth0.xdp.is_ok()) {
        let can = |xdp: Result<u64, String>| xdp.unwrap() & (Driver::XDP_BASIC | Driver::XDP_FRAGMENTS);
        assert_eq!((can(eth0.xdp), can(bridge.xdp)), (Driver::XDP_BASIC | Driver::XDP_FRAGMENTS, 0));
    }
}

#[test]
fn programs_and_filters_of_others_are_found() {
    if !skip::programs() {
        return;
    }
    let topology = Topology::builder().nodes(1).workload("web", 0).build().unwrap();
    let node = topology.node(0);
    let netns = &node.netns;
    let port = &*topology.workload("web").link.name;
    for link in ["eth0", port] {
        assert_eq!(hanging(netns, link).foreign, Ok(vec![]));
    }
    let index = link(netns, port).index;
    let pin = Path::new("/sys/fs/bpf").join(format!("bulkhead-test-{}-foreign", std::process::id()));
    let _unpin = Unpin(&pin);
    let program = classifier();
    sys::obj_pin(&program, &pin).unwrap();
    let id = sys::program_id(&program).unwrap();
    run(netns, &format!("tc qdisc add dev {port} clsact"));
    run(netns, &format!("tc filter add dev {port} ingress pref 50 bpf direct-action object-pinned {}", pin.display()));
    run(netns, &format!("tc filter add dev {port} egress protocol all pref 7 u32 match u32 0 0"));
    let filter =
        Foreign { place: Place::ClsactIngress, id: Some(id), name: "somebody_elses".to_owned(), priority: Some(50) };
    let other_kind = Foreign { place: Place::ClsactEgress, id: None, name: String::new(), priority: Some(7) };
    assert_eq!(hanging(netns, port).foreign, Ok(vec![filter.clone(), other_kind.clone()]));
    assert_eq!(hanging(netns, port).ingress_qdisc, Ok(false));

    if skip::require("a kernel with TCX (6.6)", netns.run(|| sys::tcx_programs(index, LinkKind::TcxIngress)).is_ok()) {
        let links = netns.run(|| {
            [LinkKind::TcxIngress, LinkKind::TcxEgress].map(|kind| sys::link_create(&program, index, kind).unwrap())
        });
        let tcx = |place| Foreign { place, priority: None, ..filter.clone() };
        let all = vec![tcx(Place::TcxIngress), tcx(Place::TcxEgress), filter.clone(), other_kind.clone()];
        assert_eq!(hanging(netns, port).foreign, Ok(all));
        drop(links);
    }
    run(netns, "tc qdisc add dev eth0 ingress");
    assert_eq!(hanging(netns, "eth0").ingress_qdisc, Ok(true));
}

struct Unpin<'a>(&'a Path);

impl Drop for Unpin<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[test]
fn an_xdp_program_of_others_is_found_with_its_mode() {
    if !skip::programs() {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    let index = link(netns, "eth0").index;
    for (kind, place) in [(LinkKind::XdpNative, XdpPlace::Native), (LinkKind::XdpGeneric, XdpPlace::Generic)] {
        let program = sys::load_xdp("xdp_of_others", &[insn(0xb7, 2), insn(0x95, 0)]).unwrap();
        let attached = netns.run(|| sys::link_create(&program, index, kind)).unwrap();
        let id = sys::program_id(&program).unwrap();
        assert_eq!(link(netns, "eth0").xdp, [(place, id)]);
        let foreign =
            Foreign { place: Place::Xdp(place), id: Some(id), name: "xdp_of_others".to_owned(), priority: None };
        assert_eq!(hanging(netns, "eth0").foreign, Ok(vec![foreign]));
        sys::link_detach(&attached).unwrap();
    }
    assert_eq!(link(netns, "eth0").xdp, []);
}

/// What our own agent attached is nobody else's.
#[test]
fn our_own_programs_are_not_foreign() {
    if !skip::programs() {
        return;
    }
    let topology = Topology::builder().nodes(1).build().unwrap();
    let netns = &topology.node(0).netns;
    let pins = Pins::new(&Path::new("/sys/fs/bpf").join(format!("bulkhead-test-{}-own", std::process::id())));
    let links = Links::new(&pins, Classifiers::Auto);
    let _detach = Detach(&pins, &links);
    let maps = Maps::create(&pins, &Sizes::default()).unwrap();
    for hook in [Hook::Ingress, Hook::XdpGeneric] {
        let guard = Guard { link: "eth0".to_owned(), hook, program: program::UNDERLAY, value: 0 };
        netns.run(|| links.attach(&maps, &guard)).unwrap();
    }
    assert_eq!(link(netns, "eth0").xdp.len(), 1);
    assert_eq!(hanging_beside(netns, &pins, "eth0").foreign, Ok(vec![]));
    // To somebody who does not know these pins they are.
    assert_eq!(hanging(netns, "eth0").foreign.as_ref().map(Vec::len), Ok(2));
}

struct Detach<'a>(&'a Pins, &'a Links);

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.1.detach_all().and_then(|()| self.0.remove_all()) {
            eprintln!("{error}");
        }
    }
}

#[test]
fn routes_around_the_overlay_are_found() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(3).build().unwrap();
    let node = topology.node(0);
    let (other, third) = (&topology.node(1).overlay4, &topology.node(2).overlay4);
    let plain = || survey(&node.netns).plain;
    assert_eq!(plain(), [], "flannel's own routes lead into the overlay");

    // Default routes, worse ones, those of another table and those that need no gateway are none.
    run(&node.netns, &format!("ip route replace default via {} dev eth0", other.vtep));
    run(&node.netns, &format!("ip route add {} via {} dev eth0 table 7", third.prefix, third.vtep));
    run(&node.netns, "ip route add 203.0.113.0/24 dev eth0");
    assert_eq!(plain(), []);

    // DirectRouting, in place of the route into the overlay.
    run(&node.netns, &format!("ip route replace {} via {} dev eth0", other.prefix, other.vtep));
    // A part of what the overlay owns; a part of that which it does not own is covered by no overlay.
    let host = format!("{}/32", third.address);
    run(&node.netns, &format!("ip route add {host} via {} dev eth0", third.vtep));
    run(&node.netns, "ip route add 198.51.100.0/24 via 203.0.113.7 dev eth0");
    let route = |prefix: &str, gateway: IpAddr, reach| PlainRoute {
        prefix: prefix.parse().unwrap(),
        gateway: Some(gateway),
        links: vec!["eth0".to_owned()],
        reach,
    };
    let mut expected = vec![
        route(&other.prefix.to_string(), other.vtep, Reach::Node),
        route(&host, third.vtep, Reach::Overlay),
        route("198.51.100.0/24", ip("203.0.113.7"), Reach::Gateway),
    ];
    expected.sort_by_key(|route| route.prefix);
    assert_eq!(plain(), expected);
}

#[test]
fn tables_and_chains_are_listed() {
    if !skip::root() || !skip::require("nft (package nftables)", Command::new("nft").arg("--version").output().is_ok())
    {
        return;
    }
    let netns = Netns::new("firewall").unwrap();
    assert_eq!(netns.run(Firewall::look), Firewall::empty());
    for line in [
        "nft add table ip kube-proxy",
        "nft add chain ip kube-proxy services",
        "nft add table inet kube-network-policies",
        "nft add chain inet kube-network-policies postrouting { type filter hook postrouting priority -5 ; }",
    ] {
        run(&netns, line);
    }
    let pair = |family: &str, name: &str| (family.to_owned(), name.to_owned());
    let mut expected = Firewall {
        tables: [pair("ip", "kube-proxy"), pair("inet", "kube-network-policies")].into(),
        chains: ["services", "postrouting"].map(str::to_owned).into(),
        ..Firewall::empty()
    };
    assert_eq!(netns.run(Firewall::look), expected);

    for program in ["iptables-nft", "ip6tables-legacy"] {
        let list = netns.command(program).args(["-t", "nat", "-S"]).output();
        // Not every kernel has the legacy tables.
        if !skip::require(program, list.is_ok_and(|output| output.status.success())) {
            continue;
        }
        run(&netns, &format!("{program} -t nat -N KUBE-SVC-{}", &program[..4]));
        let chains = netns.run(Firewall::look).chains;
        assert!(chains.contains(&format!("KUBE-SVC-{}", &program[..4])), "{program}: {chains:?}");
        expected.chains = chains;
    }
    assert_eq!(netns.run(Firewall::look).unread, expected.unread);

    let ask = ["-t", "mangle", "-A", "FORWARD", "-j", "NFQUEUE"];
    let asked = netns.command("iptables-nft").args(ask).output();
    if skip::require("iptables-nft with NFQUEUE", asked.is_ok_and(|output| output.status.success())) {
        assert_eq!(netns.run(Firewall::look).queues, [pair("ip", "mangle")].into());
    }
}

#[test]
fn rootless_containers_are_found() {
    if !skip::root() {
        return;
    }
    const NOBODY: u32 = 65_534;
    // A program that has the name of a carrier.
    let directory = tempfile::tempdir().unwrap();
    let carrier = directory.path().join("slirp4netns");
    fs::copy("/bin/sleep", &carrier).unwrap();
    let sleep = |command: &mut Command| Process::from(command.stdin(Stdio::null()).spawn().unwrap());
    let carrier = sleep(Command::new(&carrier).arg("1000"));
    // Namespaces that root has made are those of ordinary containers, also with a user namespace.
    let roots = sleep(Command::new("unshare").args(["--user", "--map-root-user", "--net", "sleep", "1000"]));
    let others =
        sleep(Command::new("unshare").args(["--user", "--map-root-user", "--net", "sleep", "1000"]).uid(NOBODY));
    let made = |process: &Process| fs::read_link(format!("/proc/{}/ns/net", process.id())).ok();
    let own = fs::read_link("/proc/self/ns/net").ok();
    let ready = |process: &Process| {
        (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            made(process) != own
        })
    };
    assert!(ready(&roots), "a namespace of root");
    if !skip::require("user namespaces for everybody (kernel.unprivileged_userns_clone)", ready(&others)) {
        return;
    }
    let found = Rootless::look().unwrap();
    assert!(found.carriers.iter().any(|process| process.pid == carrier.id() && process.program == "slirp4netns"));
    let namespaces: Vec<(u32, u32)> = found.namespaces.iter().map(|process| (process.pid, process.uid)).collect();
    assert!(namespaces.contains(&(others.id(), NOBODY)), "{found:?}");
    assert!(namespaces.iter().all(|(pid, _)| *pid != roots.id()), "{found:?}");
}
