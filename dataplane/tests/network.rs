//! Discovery against real links, routes, neighbours and forwarding entries.

use std::{collections::BTreeSet, net::IpAddr, os::unix::fs::MetadataExt as _, thread, time::Duration};

use bulkhead_dataplane::{
    network::{self, Found, KnownInside, LinkFacts, LinkWatch, Mac},
    node::{ContainerLink, Discovered, DiscoveredOverlay, NodeError, Port, Wire},
};
use bulkhead_fixtures::skip;
use bulkhead_topology::{Netns, Overlay, Topology};
use ipnetwork::IpNetwork;

/// Runs a command line, which no argument with spaces needs, in a namespace.
#[track_caller]
fn run(netns: &Netns, line: &str) -> String {
    let mut words = line.split_ascii_whitespace();
    let output = netns.command(words.next().expect("a program")).args(words).output().expect(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect(line)
}

#[track_caller]
fn discover(netns: &Netns) -> Discovered {
    netns.run(network::discover).expect("discovery")
}

#[track_caller]
fn overlay(netns: &Netns, device: &str) -> DiscoveredOverlay {
    let found = discover(netns);
    found.overlays.into_iter().find(|overlay| overlay.device == device).unwrap_or_else(|| panic!("no {device}"))
}

#[track_caller]
fn link(netns: &Netns, name: &str) -> Result<LinkFacts, NodeError> {
    netns.run(|| network::link(name))
}

/// Link-local addresses of bridges.
fn of_bridges(netns: &Netns) -> Vec<IpAddr> {
    let (links, listed) =
        (run(netns, "ip -oneline link show type bridge"), run(netns, "ip -6 -oneline address show scope link"));
    // Its number, with a colon, stands before each.
    let of = |line: &str| line.split_once(' ').map(|(number, _)| number.to_owned());
    let bridges: BTreeSet<_> = links.lines().filter_map(of).collect();
    let listed = listed.lines().filter(|line| of(line).is_some_and(|number| bridges.contains(&number)));
    let address = |line: &str| Some(ip(line.split_ascii_whitespace().nth(3)?.split('/').next()?));
    listed.filter_map(address).collect()
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect(address)
}

fn nets<const N: usize>(networks: [&str; N]) -> Vec<IpNetwork> {
    networks.map(|network| network.parse().expect(network)).to_vec()
}

fn hex(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn flannel_gives_each_vtep_its_prefix() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(3).second_nic().workload("web", 0).build().unwrap();
    for node in topology.nodes() {
        let found = discover(&node.netns);
        let mut own: Vec<IpAddr> = vec![node.underlay.v4.into(), node.underlay.v6.into()];
        own.extend(node.second.iter().flat_map(|nic| [IpAddr::from(nic.v4), nic.v6.into()]));
        own.extend(node.overlays().into_iter().flat_map(|overlay| [overlay.address, overlay.gateway]));
        own.extend(of_bridges(&node.netns));
        own.sort_unstable();
        assert_eq!(found.addresses, own);

        let others = || topology.nodes().iter().filter(|other| other.name != node.name);
        let expected = |own: &Overlay, other: fn(&bulkhead_topology::Node) -> &Overlay| {
            let mut peers: Vec<_> = others().map(other).map(|overlay| (overlay.vtep, vec![overlay.prefix])).collect();
            peers.sort();
            DiscoveredOverlay {
                device: own.device.name.clone(),
                vni: own.vni,
                port: own.port,
                own: Some(own.vtep),
                underlays: vec!["eth0".to_owned()],
                peers,
            }
        };
        let mut overlays =
            vec![expected(&node.overlay4, |node| &node.overlay4), expected(&node.overlay6, |node| &node.overlay6)];
        overlays.sort_by(|a, b| a.device.cmp(&b.device));
        assert_eq!(found.overlays, overlays);
    }
}

/// Each change takes the binding away and its reverse brings it back, so that no step passes for the reason of another.
#[test]
fn each_link_of_the_chain_is_needed_and_what_is_learned_is_none() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(2).build().unwrap();
    let node = topology.node(0);
    for (own, other) in node.overlays().into_iter().zip(topology.node(1).overlays()) {
        let device = &own.device.name;
        let (mac, vtep, gateway, prefix) = (hex(other.device.mac), other.vtep, other.address, other.prefix);
        let peers = || overlay(&node.netns, device).peers;
        let owned = vec![(vtep, vec![prefix])];
        let known = vec![(vtep, vec![])];

        let neighbour = |state: &str| format!("ip neigh replace {gateway} lladdr {mac} dev {device} nud {state}");
        let route = |how: &str| format!("ip route replace {prefix} via {gateway} dev {device} onlink {how}");
        let fdb = |how: &str| format!("bridge fdb replace {mac} dev {device} dst {vtep} self {how}");
        let cases = [
            (neighbour("reachable"), neighbour("permanent"), &known),
            (neighbour("stale"), neighbour("permanent"), &known),
            (format!("ip neigh del {gateway} dev {device}"), neighbour("permanent"), &known),
            (route("proto ra"), route("proto boot"), &known),
            (route("proto bgp"), route("proto boot"), &known),
            (route("proto dhcp"), route("proto boot"), &known),
            (neighbour("permanent extern_learn"), neighbour("permanent"), &known),
            (fdb("dynamic"), fdb("permanent"), &vec![]),
            // Not a change in place: the kernel lets nobody's learning take over what was added by hand.
            (
                format!("bridge fdb del {mac} dev {device} dst {vtep} self ; {}", fdb("static extern_learn")),
                fdb("permanent"),
                &vec![],
            ),
        ];
        for (change, reverse, without) in cases {
            assert_eq!(peers(), owned, "before {change}");
            for line in change.split(" ; ") {
                run(&node.netns, line);
            }
            // The gateway's own address is bound by its neighbour entry, with or without the route.
            let left = peers();
            let left: Vec<_> = left
                .into_iter()
                .map(|(vtep, prefixes)| {
                    (
                        vtep,
                        prefixes.into_iter().filter(|prefix| *prefix != IpNetwork::from(gateway)).collect::<Vec<_>>(),
                    )
                })
                .collect();
            assert_eq!(&left, without, "after {change}");
            run(&node.netns, &reverse);
            assert_eq!(peers(), owned, "after {reverse}");
        }
        // `static` and the marks of other route makers (80 is Calico's) bind as well.
        for kept in [fdb("static"), fdb("permanent"), route("proto 80"), route("proto static")] {
            run(&node.netns, &kept);
            assert_eq!(peers(), owned, "after {kept}");
        }
    }
}

#[test]
fn a_binding_follows_the_route_that_the_kernel_takes() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(3).build().unwrap();
    let node = topology.node(0);
    let (own, other, third) = (&node.overlay4, &topology.node(1).overlay4, &topology.node(2).overlay4);
    let device = &own.device.name;
    let peers = || overlay(&node.netns, device).peers;
    let prefixes_of = |vtep: IpAddr| peers().into_iter().find(|(of, _)| *of == vtep).expect("a known VTEP").1;
    let gateway = vec![IpNetwork::from(other.address)];
    assert_eq!(prefixes_of(other.vtep), [other.prefix]);

    // A plain route that is better (flannel's DirectRouting): nothing of the prefix comes encapsulated.
    run(&node.netns, &format!("ip route del {}", other.prefix));
    run(&node.netns, &format!("ip route add {} via {} dev {device} onlink metric 50", other.prefix, other.address));
    assert_eq!(prefixes_of(other.vtep), [other.prefix]);
    run(&node.netns, &format!("ip route add {} via {} dev eth0 metric 10", other.prefix, other.vtep));
    assert_eq!(prefixes_of(other.vtep), gateway);
    run(&node.netns, &format!("ip route del {} metric 10", other.prefix));
    // Worse ones change nothing.
    run(&node.netns, &format!("ip route add {} via {} dev {device} onlink metric 90", other.prefix, third.address));
    assert_eq!(prefixes_of(other.vtep), [other.prefix]);
    assert_eq!(prefixes_of(third.vtep), [third.prefix]);
    run(&node.netns, &format!("ip route del {} metric 90", other.prefix));
    // Two next hops: nobody owns it.
    run(
        &node.netns,
        &format!(
            "ip route replace {} metric 50 nexthop via {} dev {device} onlink nexthop via {} dev {device} onlink",
            other.prefix, other.address, third.address
        ),
    );
    assert_eq!(prefixes_of(other.vtep), gateway);
    assert_eq!(prefixes_of(third.vtep), [third.prefix]);
    // Another table is no route of the node's own.
    run(&node.netns, &format!("ip route del {} metric 50", other.prefix));
    run(&node.netns, &format!("ip route add {} via {} dev {device} onlink table 7", other.prefix, other.address));
    assert_eq!(prefixes_of(other.vtep), gateway);
}

/// Docker's layout: a VXLAN device in a bridge, one neighbour and one forwarding entry for each remote container.
#[test]
fn docker_gives_each_address_its_vtep() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("docker").unwrap();
    let host = Netns::new("dockerhost").unwrap();
    for line in [
        "ip link add br0 type bridge",
        "ip link add vxlan0 type vxlan id 4097 dstport 4789 learning proxy l2miss l3miss",
        "ip link set vxlan0 master br0",
        "ip link set br0 up",
        "ip link set vxlan0 up",
        "ip addr add 10.0.1.1/24 dev br0",
        "bridge fdb add 02:42:0a:00:01:03 dev vxlan0 dst 192.0.2.2 self permanent",
        "ip neigh add 10.0.1.3 lladdr 02:42:0a:00:01:03 dev vxlan0 nud permanent",
        "ip neigh add 2001:db8:1::3 lladdr 02:42:0a:00:01:03 dev vxlan0 nud permanent",
        "bridge fdb add 02:42:0a:00:01:04 dev vxlan0 dst 192.0.2.2 self static",
        "ip neigh add 10.0.1.4 lladdr 02:42:0a:00:01:04 dev br0 nud permanent",
        "bridge fdb add 02:42:0a:00:01:05 dev vxlan0 dst 192.0.2.3 self permanent",
        "ip neigh add 10.0.1.5 lladdr 02:42:0a:00:01:05 dev vxlan0 nud permanent",
        // A local container, and a neighbour of another link with a remote container's MAC.
        "ip neigh add 10.0.1.9 lladdr 02:42:0a:00:01:09 dev br0 nud permanent",
        "ip link add other type bridge",
        "ip link set other up",
        "ip neigh add 10.0.1.6 lladdr 02:42:0a:00:01:05 dev other nud permanent",
        // Entries for another VNI, for this node itself and for a group.
        "bridge fdb add 02:42:0a:00:01:07 dev vxlan0 dst 192.0.2.7 vni 4098 self permanent",
        "ip neigh add 10.0.1.7 lladdr 02:42:0a:00:01:07 dev vxlan0 nud permanent",
        "bridge fdb add 02:42:0a:00:01:08 dev vxlan0 dst 10.0.1.1 self permanent",
        "ip neigh add 10.0.1.8 lladdr 02:42:0a:00:01:08 dev vxlan0 nud permanent",
        "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.4 self permanent",
    ] {
        run(&netns, line);
    }
    let found = overlay(&netns, "vxlan0");
    let of_2 = nets(["10.0.1.3/32", "10.0.1.4/32", "2001:db8:1::3/128"]);
    let peers =
        vec![(ip("192.0.2.2"), of_2.clone()), (ip("192.0.2.3"), nets(["10.0.1.5/32"])), (ip("192.0.2.4"), vec![])];
    assert_eq!((found.vni, found.port, found.own, &found.peers), (4097, 4789, None, &peers));

    // Two entries that contradict each other bind nothing.
    run(&netns, "ip neigh add 10.0.1.5 lladdr 02:42:0a:00:01:03 dev br0 nud permanent");
    assert_eq!(overlay(&netns, "vxlan0").peers[..2], [(ip("192.0.2.2"), of_2), (ip("192.0.2.3"), vec![])]);
    run(&netns, "ip neigh del 10.0.1.5 dev br0");

    // In another namespace the device keeps its socket here; its links there are not ours to name.
    run(&netns, "ip route add default dev other");
    assert_eq!(overlay(&netns, "vxlan0").underlays, ["other"]);
    run(&netns, &format!("ip link set vxlan0 netns {}", host.name()));
    run(&host, "ip link add other type bridge");
    run(&host, "ip link set other up");
    run(&host, "ip route add default dev other");
    assert_eq!(discover(&netns).overlays, []);
    assert_eq!(overlay(&host, "vxlan0").underlays, [""; 0]);
}

#[test]
fn underlays_are_the_bound_link_else_the_address_else_the_default_route() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("underlay").unwrap();
    for line in [
        "ip link add name a type bridge",
        "ip link add name b type bridge",
        "ip link add name c type bridge",
        "ip link set dev a up",
        "ip link set dev b up",
        "ip link set dev c up",
        "ip addr add 192.0.2.1/24 dev a",
        "ip addr add 192.0.2.9/32 dev lo",
        "ip addr add 2001:db8::1/64 dev a nodad",
        "ip route add default dev c",
        "ip -6 route add default nexthop via fe80::1 dev a nexthop via fe80::2 dev b",
        "ip link add bound type vxlan id 1 dstport 8472 local 192.0.2.1 dev b",
        "ip link add held type vxlan id 2 dstport 8472 local 192.0.2.1",
        "ip link add onlo type vxlan id 3 dstport 8472 local 192.0.2.9",
        "ip link add far6 type vxlan id 4 dstport 8472 local 2001:db8::9",
        "ip link add any type vxlan id 5 dstport 8473",
        "ip link add external type vxlan external dstport 8474",
    ] {
        run(&netns, line);
    }
    let found = discover(&netns);
    let summary: Vec<_> = found
        .overlays
        .iter()
        .map(|overlay| (overlay.device.as_str(), overlay.vni, overlay.port, overlay.own, overlay.underlays.join(" ")))
        .collect();
    let expected = [
        ("any", 5, 8473, None, "a b c".to_owned()),
        ("bound", 1, 8472, Some(ip("192.0.2.1")), "b".to_owned()),
        ("far6", 4, 8472, Some(ip("2001:db8::9")), "a b".to_owned()),
        ("held", 2, 8472, Some(ip("192.0.2.1")), "a".to_owned()),
        ("onlo", 3, 8472, Some(ip("192.0.2.9")), "c".to_owned()),
    ];
    assert_eq!(summary, expected);
    // 127.0.0.1, ::1 and fe80:: of links that are no bridges are not among them.
    let of_bridges = of_bridges(&netns);
    assert_eq!(of_bridges.len(), 3);
    let own = ["192.0.2.1", "192.0.2.9", "2001:db8::1"].map(ip).into_iter().chain(of_bridges);
    assert_eq!(found.addresses, BTreeSet::from_iter(own).into_iter().collect::<Vec<_>>());
}

/// Real learning: two devices with no entry but the one that floods talk to each other.
#[test]
fn what_the_kernel_learned_from_packets_binds_nothing() {
    if !skip::root() {
        return;
    }
    let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
    run(&near, &format!("ip link add eth0 type veth peer name eth0 netns {}", far.name()));
    for (netns, own, other) in [(&near, 1, 2), (&far, 2, 1)] {
        for line in [
            format!("ip addr add 192.0.2.{own}/24 dev eth0"),
            "ip link set eth0 up".to_owned(),
            format!("ip link add vx type vxlan id 9 dstport 8472 local 192.0.2.{own} remote 192.0.2.{other} dev eth0"),
            format!("ip addr add 10.9.0.{own}/24 dev vx"),
            "ip link set vx up".to_owned(),
        ] {
            run(netns, &line);
        }
    }
    let answered = || near.client().ping(ip("10.9.0.2")).unwrap().is_answered();
    assert!((0..20).any(|_| answered()), "the two devices reach each other");
    let learned = run(&near, "bridge fdb show dev vx");
    let far_mac = hex(link(&far, "vx").unwrap().mac.unwrap());
    assert!(learned.contains(&far_mac), "{far_mac} is learned:\n{learned}");
    assert!(run(&near, "ip neigh show dev vx").contains("10.9.0.2"), "the neighbour is learned");

    let known = vec![(ip("192.0.2.2"), vec![])];
    assert_eq!(overlay(&near, "vx").peers, known);
    // Only one of the two made permanent is not enough; both are.
    run(&near, &format!("ip neigh replace 10.9.0.2 lladdr {far_mac} dev vx nud permanent"));
    assert_eq!(overlay(&near, "vx").peers, known);
    run(&near, &format!("bridge fdb replace {far_mac} dev vx dst 192.0.2.2 self permanent"));
    assert_eq!(overlay(&near, "vx").peers, [(ip("192.0.2.2"), nets(["10.9.0.2/32"]))]);
}

#[test]
fn a_link_tells_the_mac_at_its_other_end() {
    if !skip::root() {
        return;
    }
    let topology = Topology::builder().nodes(1).workload("web", 0).workload("db", 0).build().unwrap();
    let node = topology.node(0);
    for workload in topology.workloads() {
        let facts = link(&node.netns, &workload.link.name).unwrap();
        let expected = LinkFacts {
            name: workload.link.name.clone(),
            index: workload.link.index,
            mac: Some(workload.link.mac),
            master: Some("cni0".to_owned()),
            port: Port { link: workload.link.index, bridge: node.bridge.index, router: node.bridge.mac },
            peer: Some(workload.eth0.mac),
        };
        assert_eq!(facts, expected);
        assert_eq!(facts.wire().unwrap(), Wire { port: facts.port, mac: workload.eth0.mac });
        // It follows the container's address.
        run(&workload.netns, "ip link set eth0 address 02:00:00:00:00:77");
        assert_eq!(link(&node.netns, &workload.link.name).unwrap().peer, Some([2, 0, 0, 0, 0, 0x77]));
    }
}

#[test]
fn the_other_end_is_found_wherever_it_is() {
    if !skip::root() {
        return;
    }
    let (netns, other) = (Netns::new("here").unwrap(), Netns::new("there").unwrap());
    // In the same namespace; in another one; there with the same index, which the kernel then need not say.
    run(&netns, "ip link add a0 type veth peer name a1");
    run(&netns, &format!("ip link add b0 type veth peer name b1 netns {}", other.name()));
    run(&netns, &format!("ip link add c0 index 777 type veth peer name c1 index 777 netns {}", other.name()));
    for (near, far, place) in [("a0", "a1", &netns), ("a1", "a0", &netns), ("b0", "b1", &other), ("c0", "c1", &other)] {
        let facts = link(&netns, near).unwrap();
        assert_eq!(facts.peer, link(place, far).unwrap().mac, "{near}");
        assert_eq!(facts.master, None);
    }
    assert_eq!(link(&netns, "c0").unwrap().index, 777);
    // A port of a bridge.
    run(&netns, "ip link add br0 type bridge");
    run(&netns, "ip link set b0 master br0");
    let b0 = link(&netns, "b0").unwrap();
    let br0 = link(&netns, "br0").unwrap();
    assert_eq!(b0.master.as_deref(), Some("br0"));
    assert_eq!(b0.port, Port { link: b0.index, bridge: br0.index, router: br0.mac.unwrap() });
    // By an alternative name.
    run(&netns, "ip link property add dev b0 altname b-alias");
    assert_eq!(link(&netns, "b-alias").unwrap(), link(&netns, "b0").unwrap());

    // Asked for together they are the same, and so is what keeps some of them from being guarded.
    let names = ["a0", "a1", "b0", "c0", "b-alias", "lo", "veth-gone"];
    let Found { discovered, containers, ports } = netns.run(|| network::discover_with(names)).unwrap();
    assert_eq!(discovered, discover(&netns));
    for name in names {
        let alone = link(&netns, name).and_then(|facts| facts.wire());
        let text = |error: &NodeError| error.to_string();
        assert_eq!(containers[name].as_ref().map_err(text), alone.as_ref().map_err(text), "{name}");
    }
    assert_eq!(containers.len(), names.len());
    for name in ["a0", "b0", "br0"] {
        let alone = link(&netns, name).unwrap();
        assert_eq!(ports[&alone.index], alone.port, "{name}");
    }
    // Where the bridge does not bring everything everywhere, there is no way past it.
    run(&netns, "ip link set b0 type bridge_slave isolated on");
    assert_eq!(link(&netns, "b0").unwrap().port, Port::default());
    let found = netns.run(|| network::discover_with(["b0"])).unwrap();
    assert_eq!(found.containers["b0"].as_ref().unwrap().port, Port::default());
}

#[test]
fn links_that_cannot_be_guarded_are_told_with_their_remedy() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("links").unwrap();
    let missing = link(&netns, "veth-gone").unwrap_err().to_string();
    assert!(missing.contains("veth-gone") && missing.contains("ip -br link"), "{missing}");
    run(&netns, "ip link add d0 type bridge");
    let facts = link(&netns, "d0").unwrap();
    assert_eq!(facts.peer, None);
    let refused = facts.wire().unwrap_err().to_string();
    assert!(refused.contains("d0") && refused.contains("ip link show type veth"), "{refused}");
    assert_eq!(link(&netns, "lo").unwrap().mac, None);
}

#[test]
fn the_namespace_is_that_of_the_calling_thread() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("inode").unwrap();
    let inode = std::fs::metadata(netns.path()).unwrap().ino();
    assert_eq!(netns.run(network::namespace).unwrap(), inode);
    assert_ne!(network::namespace().unwrap(), inode);
}

/// Callers may be async themselves: a second runtime on their thread would panic.
#[test]
fn discovery_may_be_called_inside_an_async_runtime() {
    if !skip::root() {
        return;
    }
    let netns = Netns::new("async").unwrap();
    run(&netns, "ip addr add 192.0.2.1/32 dev lo");
    let found = netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { network::discover() })
    });
    assert_eq!(found.unwrap().addresses, [ip("192.0.2.1")]);
}

#[test]
fn containers_are_found_with_what_their_far_ends_are_called_and_have() {
    if !skip::root() {
        return;
    }
    let (node, one, other) = (Netns::new("node").unwrap(), Netns::new("one").unwrap(), Netns::new("other").unwrap());
    run(&node, "ip link add br0 type bridge");
    run(&node, &format!("ip link add veth1 type veth peer name eth0 netns {}", one.name()));
    run(&node, "ip link set veth1 master br0");
    run(&node, &format!("ip link add veth2 type veth peer name net1 netns {}", other.name()));
    // Both ends are here: nobody is behind it.
    run(&node, "ip link add here type veth peer name there");
    let mut known = KnownInside::default();
    let mut look = || node.run(|| known.containers()).unwrap();
    let found = look();
    let names = ["br0", "here", "lo", "there", "veth1", "veth2"].map(str::to_owned);
    assert_eq!(found.names, names.into());
    let of = |found: &[ContainerLink], name: &str| found.iter().find(|link| link.link == name).cloned();
    let first = of(&found.links, "veth1").unwrap();
    assert_eq!((first.bridge.as_deref(), first.inside.as_str(), &first.addresses[..]), (Some("br0"), "eth0", &[][..]));
    assert_eq!((found.links.len(), first.unread.as_str()), (2, ""));

    // What came later is seen, of this link alone, without what is local to a link.
    run(&one, "ip link set eth0 up");
    run(&one, "ip address add 10.1.0.7/24 dev eth0");
    run(&one, "ip address add 2001:db8::7/64 dev eth0 nodad");
    run(&one, "ip address add 169.254.0.7/16 dev eth0");
    run(&one, "ip address add 10.9.9.9/32 dev lo");
    run(&other, "ip address add 10.1.0.8/24 dev net1");
    let found = look();
    let first = of(&found.links, "veth1").unwrap();
    assert_eq!(first.addresses, [ip("10.1.0.7"), ip("2001:db8::7")]);
    let second = of(&found.links, "veth2").unwrap();
    assert_eq!((second.bridge, second.inside.as_str(), &second.addresses[..]), (None, "net1", &[ip("10.1.0.8")][..]));
    assert_ne!(first.netns, second.netns);
    assert!(!first.shut && !second.shut);

    run(&node, "ip link delete veth1");
    assert_eq!(look().links.into_iter().map(|link| link.link).collect::<Vec<_>>(), ["veth2"]);
}

#[test]
fn a_link_that_comes_is_told_of() {
    if !skip::root() {
        return;
    }
    let node = Netns::new("node").unwrap();
    let watch = node.run(LinkWatch::open).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || {
        watch.wait().unwrap();
        tell.send(()).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "nothing has come yet");
    run(&node, "ip link add veth1 type veth peer name veth2");
    told.recv_timeout(Duration::from_secs(60)).expect("a link came");
    waiter.join().unwrap();
}
