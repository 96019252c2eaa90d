//! The library against the kernel. Every test needs root.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    panic,
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use bulkhead_fixtures::{Frame as Packet, skip};
use bulkhead_topology::{
    Builder, Error, Netns, Process, Topology, WorkloadSpec, kept, random_mac, remove_kept,
    rtnl::Rtnl,
    sweep,
    traffic::{
        Capture, Direction, Frame, NumberedReceiver, NumberedSender, Outcome, RawLink, Stream, TcpEcho, UdpEcho, echo,
    },
};
use ipnetwork::IpNetwork;

/// For what must happen: long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not happen.
const BRIEF: Duration = Duration::from_millis(200);

fn shop() -> Builder {
    Topology::builder().nodes(2).workload("web", 0).workload("cart", 0).workload("db", 1)
}

/// The namespaces of a topology that `ip netns` lists.
fn listed(id: &str) -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.contains(id)).collect()
}

/// Names of the links in this thread's namespace.
fn links() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("proc is mounted");
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[test]
fn every_workload_reaches_every_other_at_once() {
    if !skip::root() {
        return;
    }
    let topology = shop().workload("payments", 1).build().unwrap();
    for server in topology.workloads() {
        for address in server.addresses() {
            let tcp = TcpEcho::start(&server.netns, (address, 0).into()).unwrap();
            let udp = UdpEcho::start(&server.netns, (address, 0).into()).unwrap();
            for client in topology.workloads() {
                let way = format!("{} to {} ({address})", client.name, server.name);
                let probe = client.client().deadline(PATIENCE);
                assert_eq!(probe.ping(address).unwrap(), Outcome::Answered, "ping {way}");
                assert_eq!(probe.udp(udp.addr()).unwrap(), Outcome::Answered, "UDP {way}");
                assert_eq!(probe.tcp(tcp.addr()).unwrap(), Outcome::Answered, "TCP {way}");
            }
            assert_eq!(tcp.accepted(), topology.workloads().len() as u64);
            assert_eq!(udp.received(), topology.workloads().len() as u64);
        }
    }
    for (node, workload) in topology.workloads().iter().map(|workload| (topology.node_of(workload), workload)) {
        for overlay in node.overlays() {
            let answer = workload.client().deadline(PATIENCE).ping(overlay.gateway).unwrap();
            assert_eq!(answer, Outcome::Answered, "{} to its gateway", workload.name);
        }
        for address in workload.addresses() {
            let answer = node.netns.client().deadline(PATIENCE).ping(address).unwrap();
            assert_eq!(answer, Outcome::Answered, "{} to {address}", node.name);
        }
    }
}

/// Traffic between nodes is encapsulated as flannel would, and traffic within a node never leaves it.
#[test]
fn overlay_is_vxlan_in_the_right_family() {
    if !skip::root() {
        return;
    }
    let topology = shop().build().unwrap();
    let (web, cart, db) = (topology.workload("web"), topology.workload("cart"), topology.workload("db"));
    for (overlay, ether_type, udp_header) in
        [(&topology.node(0).overlay4, [0x08, 0x00], 14 + 20), (&topology.node(0).overlay6, [0x86, 0xdd], 14 + 40)]
    {
        let (port, vni) = (overlay.port.to_be_bytes(), overlay.vni.to_be_bytes());
        let encapsulated = move |frame: &Frame| {
            let field = |at: usize, length: usize| frame.bytes.get(at..at + length);
            field(12, 2) == Some(&ether_type)
                && field(udp_header + 2, 2) == Some(&port)
                && field(udp_header + 8 + 4, 3) == Some(&vni[1..])
        };
        let capture =
            Capture::start(&topology.node(0).netns, &topology.node(0).underlay.link.name, encapsulated).unwrap();
        let family =
            |addresses: [IpAddr; 2]| addresses.into_iter().find(|a| a.is_ipv4() == overlay.vtep.is_ipv4()).unwrap();
        assert!(web.client().deadline(PATIENCE).ping(family(cart.addresses())).unwrap().is_answered());
        assert_eq!(capture.counts().frames, 0, "web and cart share a node");
        assert!(web.client().deadline(PATIENCE).ping(family(db.addresses())).unwrap().is_answered());
        assert!(capture.wait_for(2, PATIENCE), "request and reply");
        let captured = capture.stop().unwrap();
        let directions: Vec<_> = captured.frames.iter().map(|frame| frame.direction).collect();
        assert_eq!(directions, [Direction::Sent, Direction::Received]);
        assert_eq!(captured.lost, 0);
    }
}

#[test]
fn probes_tell_what_happened() {
    if !skip::root() {
        return;
    }
    let topology = shop().build().unwrap();
    let (web, db) = (topology.workload("web"), topology.workload("db"));
    for address in db.addresses() {
        let closed = SocketAddr::new(address, 9);
        assert_eq!(web.client().deadline(PATIENCE).tcp(closed).unwrap(), Outcome::Refused);
        assert_eq!(web.client().deadline(PATIENCE).udp(closed).unwrap(), Outcome::Refused);

        let silent = NumberedReceiver::start(&db.netns, (address, 0).into()).unwrap();
        assert_eq!(web.client().deadline(BRIEF).udp(silent.addr()).unwrap(), Outcome::TimedOut);
        assert_eq!(silent.foreign(), 1, "the probe arrived and was not answered");

        let server = TcpEcho::start(&db.netns, (address, 0).into()).unwrap();
        let mut stream = web.client().deadline(PATIENCE).source_port(4321).connect(server.addr()).unwrap();
        assert_eq!(stream.local_addr().unwrap().port(), 4321);
        assert_eq!(echo(&mut stream, PATIENCE).unwrap(), Outcome::Answered);
    }
    for nowhere in ["198.51.100.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
        // The node has no default route and says so.
        let client = web.client().deadline(PATIENCE);
        assert_eq!(client.ping(nowhere).unwrap(), Outcome::Unreachable);
        assert_eq!(client.udp((nowhere, 9).into()).unwrap(), Outcome::Unreachable);
    }

    let server = TcpEcho::start(&db.netns, (db.v4, 0).into()).unwrap();
    let mut stream = web.client().deadline(PATIENCE).connect(server.addr()).unwrap();
    Rtnl::open(&topology.node(0).netns).unwrap().delete_link(&web.link.name).expect("pull web's cable");
    assert_eq!(echo(&mut stream, BRIEF).unwrap(), Outcome::TimedOut);
    drop(server);
}

/// An EtherType for experiments, which no other traffic has.
fn experimental(frame: &Frame) -> bool {
    frame.bytes.get(12..14) == Some(&[0x88, 0xb5])
}

#[test]
fn outsider_reaches_each_nic_with_any_frame() {
    if !skip::root() {
        return;
    }
    let topology = shop().second_nic().build().unwrap();
    let outsider = topology.outsider();
    for node in topology.nodes() {
        let pairs =
            [(&outsider.underlay, &node.underlay), (outsider.second.as_ref().unwrap(), node.second.as_ref().unwrap())];
        for (from, to) in pairs {
            let frame = [&to.link.mac[..], &from.link.mac, &[0x88, 0xb5], &[7; 60]].concat();
            let capture = Capture::start(&node.netns, &to.link.name, experimental).unwrap();
            let raw = RawLink::open(&outsider.netns, &from.link.name).unwrap();
            raw.send(&frame).unwrap();
            raw.send(&frame).unwrap();
            assert!(capture.wait_for(2, PATIENCE), "{} {}", node.name, to.link.name);
            let captured = capture.stop().unwrap();
            assert_eq!(captured.lost, 0);
            for seen in captured.frames {
                assert_eq!((seen.direction, seen.segments, seen.vlan), (Direction::Received, 1, None));
                assert_eq!(seen.bytes, frame);
                assert!(seen.at.elapsed().is_ok_and(|age| age < PATIENCE));
            }
            let tagged = [&frame[..12], &[0x81, 0x00, 0x00, 42], &frame[12..]].concat();
            let capture = Capture::start(&node.netns, &to.link.name, experimental).unwrap();
            raw.send(&tagged).unwrap();
            assert!(capture.wait_for(1, PATIENCE), "a tagged frame");
            let seen = capture.frames().remove(0);
            assert_eq!((seen.vlan, seen.bytes), (Some(42), frame), "the kernel keeps the tag beside the packet");
            for address in [IpAddr::from(to.v4), to.v6.into()] {
                assert!(outsider.netns.client().deadline(PATIENCE).ping(address).unwrap().is_answered());
            }
        }
    }
}

/// The hole that Bulkhead closes: without it the kernel decapsulates for anyone.
#[test]
fn forged_overlay_packet_reaches_an_unguarded_workload() {
    if !skip::root() {
        return;
    }
    let topology = shop().build().unwrap();
    let (node, web, outsider) = (topology.node(0), topology.workload("web"), topology.outsider());
    let raw = RawLink::open(&outsider.netns, &outsider.underlay.link.name).unwrap();
    for (overlay, from, to) in [
        (&node.overlay4, IpAddr::from(outsider.underlay.v4), IpAddr::from(web.v4)),
        (&node.overlay6, outsider.underlay.v6.into(), web.v6.into()),
    ] {
        let receiver = NumberedReceiver::start(&web.netns, (to, 0).into()).unwrap();
        let claimed =
            topology.node(1).overlays().into_iter().find(|other| other.vtep.is_ipv4() == to.is_ipv4()).unwrap().address;
        let inner =
            Packet::eth(random_mac(), overlay.device.mac).ip(claimed, to).udp(7, receiver.addr().port()).payload(16);
        let forged = Packet::eth(outsider.underlay.link.mac, node.underlay.link.mac)
            .ip(from, overlay.vtep)
            .udp(49_152, overlay.port)
            .vxlan(overlay.vni)
            .inner(inner);
        raw.send(&forged.build()).unwrap();
        eventually("the forged datagram arrives", || receiver.foreign() == 1);
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn numbered_datagrams_are_all_accounted_for() {
    const DATAGRAMS: u64 = 2_000;
    if !skip::root() {
        return;
    }
    let topology = shop().build().unwrap();
    let (web, db) = (topology.workload("web"), topology.workload("db"));
    for address in db.addresses() {
        let receiver = NumberedReceiver::start(&db.netns, (address, 0).into()).unwrap();
        let port = receiver.addr().port().to_be_bytes();
        let header = if address.is_ipv4() { 14 + 20 } else { 14 + 40 };
        let of_stream = move |frame: &Frame| frame.bytes.get(header + 2..header + 4) == Some(&port);
        let capture = Capture::count(&db.netns, &db.eth0.name, of_stream).unwrap();
        let sender = NumberedSender::start(&web.netns, Stream::new(receiver.addr(), 20_000).limit(DATAGRAMS)).unwrap();
        let id = sender.id();
        assert_eq!(sender.finish().unwrap(), DATAGRAMS);
        assert!(receiver.wait_for(id, DATAGRAMS, PATIENCE), "missing: {:?}", receiver.received(id).missing(DATAGRAMS));
        let received = receiver.received(id);
        assert_eq!(
            (received.datagrams, received.distinct, received.missing(DATAGRAMS)),
            (DATAGRAMS, DATAGRAMS, vec![])
        );
        assert_eq!(received.missing(DATAGRAMS + 2).first(), Some(&(DATAGRAMS..DATAGRAMS + 2)));
        assert_eq!(receiver.received(!id).datagrams, 0, "another stream");
        let captured = capture.stop().unwrap();
        assert_eq!((captured.counts.frames, captured.counts.segments, captured.lost), (DATAGRAMS, DATAGRAMS, 0));
        assert!(captured.frames.is_empty());
        assert_eq!(db.netns.udp_buffer_errors().unwrap(), 0);
        let stats = Rtnl::open(&db.netns).unwrap().stats(&db.eth0.name).unwrap();
        assert!(stats.rx_packets >= DATAGRAMS && stats.rx_bytes >= DATAGRAMS * 64, "{stats:?}");
        assert_eq!(stats.rx_dropped, 0);
    }
    let endless = NumberedSender::start(&web.netns, Stream::new((db.v4, 9).into(), 1_000)).unwrap();
    eventually("datagrams are sent", || endless.sent() > 10);
    assert!(endless.stop().unwrap() > 10);
}

/// Counts of a capture are those of the wire although the kernel moves many segments as one frame. The oracle
/// is TCP's own counter.
#[test]
fn capture_counts_wire_segments() {
    if !skip::root() {
        return;
    }
    let topology = shop().build().unwrap();
    let (web, db) = (topology.workload("web"), topology.workload("db"));
    for address in db.addresses() {
        let server = TcpEcho::start(&db.netns, (address, 0).into()).unwrap();
        let protocol = if address.is_ipv4() { 14 + 9 } else { 14 + 6 };
        let sent_tcp = move |frame: &Frame| frame.direction == Direction::Sent && frame.bytes.get(protocol) == Some(&6);
        let before = tcp_segments_sent(&web.netns);
        let capture = Capture::count(&web.netns, &web.eth0.name, sent_tcp).unwrap();
        let mut stream = web.client().deadline(PATIENCE).connect(server.addr()).unwrap();
        let bulk = vec![7; 1 << 20];
        let mut back = vec![0; bulk.len()];
        let mut writer = stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&bulk).unwrap());
            stream.read_exact(&mut back).unwrap();
        });
        assert!(back == bulk);
        drop((stream, writer));
        eventually("every segment is captured", || capture.counts().segments == tcp_segments_sent(&web.netns) - before);
        let captured = capture.stop().unwrap();
        assert_eq!(captured.lost, 0);
        assert!(
            captured.counts.segments > 2 * captured.counts.frames,
            "segmentation offload works: {:?}",
            captured.counts
        );
    }
}

fn tcp_segments_sent(netns: &Netns) -> u64 {
    let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_ascii_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let counters = names.zip(values).filter(|(name, _)| ["OutSegs", "RetransSegs"].contains(name));
    counters.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn nothing_is_left_behind() {
    if !skip::root() {
        return;
    }
    let links_before = links();
    let topology = shop().second_nic().build().unwrap();
    let id = topology.id().to_owned();
    let expected: BTreeSet<_> = topology.namespaces().map(|netns| netns.name().to_owned()).collect();
    assert_eq!(listed(&id), expected);
    assert_eq!(expected.len(), 2 + 3 + 2, "nodes, workloads, outsider and fabric");
    assert_eq!(links(), links_before, "no link of ours in the caller's namespace");
    let handle = topology.workload("web").netns.clone();
    drop(topology);
    assert_eq!(listed(&id), BTreeSet::new());
    assert_eq!(links(), links_before);
    assert_eq!(handle.run(links), BTreeSet::from(["eth0", "lo"].map(str::to_owned)), "a handle stays usable");

    let failed = panic::catch_unwind(|| {
        let topology = shop().build().unwrap();
        panic::panic_any(topology.id().to_owned());
    });
    let id = *failed.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(listed(&id), BTreeSet::new(), "after a panic");
}

#[test]
fn what_cannot_be_built_is_refused_and_leaves_nothing() {
    if !skip::root() {
        return;
    }
    let names = || listed(&format!("bh-{}-", std::process::id()));
    for (builder, complaint) in [
        (shop().nodes(0), "0 nodes"),
        (shop().vni(10_000), "VNI 10000"),
        (shop().vni6(0), "VNI 0"),
        (shop().workload("web", 1), "two workloads are named web"),
        (shop().workload("lost", 2), "workload lost: there is no node 2"),
        (shop().workload_with(WorkloadSpec::new("a", 0).host(2)), "host number 2 is not free"),
        (shop().workload_with(WorkloadSpec::new("a", 0).host(255)), "host number 255 is not free"),
        (shop().workload_with(WorkloadSpec::new("a", 0).mac([1, 0, 0, 0, 0, 1])), "add veth pair"),
        (shop().workload("a/b", 0), "a/b"),
    ] {
        let error = builder.build().expect_err(complaint);
        assert!(error.to_string().contains(complaint), "{error}, not {complaint}");
        assert!(matches!(error, Error::Invalid(_) | Error::Os { .. }));
    }
    // Other tests of this process build and drop at the same time; what a refused one had left would stay.
    eventually("the namespaces of refused topologies are gone", || names().iter().all(|name| !name.ends_with("-a")));
}

#[test]
fn many_stand_side_by_side() {
    if !skip::root() {
        return;
    }
    let topologies: Vec<_> = thread::scope(|scope| {
        let builds: Vec<_> =
            (0..3).map(|_| scope.spawn(|| shop().nodes(3).workload("far", 2).build().unwrap())).collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    let ids: BTreeSet<_> = topologies.iter().map(Topology::id).collect();
    assert_eq!(ids.len(), topologies.len());
    for topology in &topologies {
        for address in topology.workload("far").addresses() {
            for client in ["web", "db"] {
                let answer = topology.workload(client).client().deadline(PATIENCE).ping(address).unwrap();
                assert!(answer.is_answered(), "{client} to {address}");
            }
        }
    }
}

#[test]
fn workloads_come_and_go() {
    if !skip::root() {
        return;
    }
    let mut topology = shop().build().unwrap();
    let mac = [0x02, 0, 0, 0, 0x12, 0x34];
    let late = topology.add_workload(&WorkloadSpec::new("late", 1).mac(mac).host(77)).unwrap().clone();
    assert_eq!(late.eth0.mac, mac);
    assert_eq!((late.v4.octets()[3], late.v6.octets()[15]), (77, 77));
    let host_side = |topology: &Topology| Rtnl::open(&topology.node(1).netns).unwrap().link(&late.link.name).ok();
    assert_eq!(host_side(&topology).as_ref(), Some(&late.link));
    for address in late.addresses() {
        assert!(topology.workload("web").client().deadline(PATIENCE).ping(address).unwrap().is_answered());
    }
    let mut rtnl = Rtnl::open(&late.netns).unwrap();
    let address = IpNetwork::new(late.v4.into(), 24).unwrap();
    let ping = |deadline| topology.node(1).netns.client().deadline(deadline).ping(late.v4.into()).unwrap();
    rtnl.delete_address(late.eth0.index, address).unwrap();
    assert_ne!(ping(BRIEF), Outcome::Answered, "without its address");
    rtnl.add_address(late.eth0.index, address).unwrap();
    assert_eq!(ping(PATIENCE), Outcome::Answered, "with it again");
    topology.remove_workload("late").unwrap();
    assert_eq!(host_side(&topology), None);
    assert!(!late.netns.path().exists());
    assert!(topology.remove_workload("late").is_err());
}

#[test]
fn namespaces_of_the_dead_are_swept_with_their_processes() {
    if !skip::root() {
        return;
    }
    let mut owner = std::process::Command::new("true").spawn().unwrap();
    let pid = owner.id();
    owner.wait().unwrap();
    let alive = Netns::new("alive").unwrap();
    let name = format!("bh-{pid}-000000-left");
    let added = std::process::Command::new("ip").args(["netns", "add", &name]).status().unwrap();
    assert!(added.success());
    let path = Path::new("/run/netns").join(&name);
    let inside =
        std::process::Command::new("nsenter").arg(format!("--net={}", path.display())).args(["sleep", "600"]).spawn();
    let mut inside = Process::from(inside.unwrap());
    let identity = |path: &str| fs::read_link(path).ok();
    let (own, theirs) = (identity("/proc/self/ns/net"), format!("/proc/{}/ns/net", inside.id()));
    // Another test's build may sweep at any time, so it may be gone already.
    eventually("the process is inside", || identity(&theirs) != own || inside_ended(&theirs));
    sweep();
    assert!(!path.exists());
    assert!(alive.path().exists(), "the living keep theirs");
    let status = inside.wait().unwrap();
    assert!(!status.success(), "killed: {status}");
}

/// A zombie has no namespaces any more.
fn inside_ended(ns: &str) -> bool {
    fs::read_link(ns).is_err()
}

#[test]
fn kept_topologies_stay_until_removed() {
    if !skip::root() {
        return;
    }
    /// Also when an assertion fails.
    struct Removed(String);
    impl Drop for Removed {
        fn drop(&mut self) {
            remove_kept(&self.0);
        }
    }
    let topology = shop().keep(true).build().unwrap();
    let id = topology.id().to_owned();
    let _removed = Removed(id.clone());
    let expected = listed(&id);
    drop(topology);
    sweep();
    assert_eq!(listed(&id), expected);
    assert!(kept().contains(&id));
    assert_eq!(remove_kept(&id), expected.into_iter().collect::<Vec<_>>());
    assert_eq!(listed(&id), BTreeSet::new());
    assert!(!kept().contains(&id));
}

#[test]
fn threads_and_processes_live_in_their_namespace() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("alone").unwrap();
    let outside = links();
    assert_eq!(netns.run(links), BTreeSet::from(["lo".to_owned()]));
    {
        let _guard = netns.enter().unwrap();
        assert_eq!(links(), BTreeSet::from(["lo".to_owned()]));
    }
    assert_eq!(links(), outside);

    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let output = netns
        .command("cat")
        .args(["/proc/self/net/dev", "/proc/self/mountinfo"])
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (devices, seen) = text.split_at(text.find("lo:").expect("the namespace's loopback"));
    assert!(!devices.contains("eth"));
    let bpffs = |mounts: &str| mounts.lines().filter(|line| line.contains(" - bpf ")).count();
    assert_eq!(bpffs(seen), bpffs(&mounts), "bpffs stays visible");

    let process = Process::from(netns.command("sleep").arg("600").spawn().unwrap());
    let proc = format!("/proc/{}", process.id());
    drop(process);
    assert!(!Path::new(&proc).exists());

    netns.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(netns.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert!(netns.set_sysctl("net/ipv4/no_such_key", "1").unwrap_err().to_string().contains("no_such_key"));
}
