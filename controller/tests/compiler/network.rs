//! Addresses, prefixes and overlays.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_controller::compile::compile;
use bulkhead_dataplane::{
    desired::{Backend, Desired, SelectorId, ServiceAddress},
    node::{Discovered, DiscoveredOverlay},
};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use crate::support::{NOW, desired, model};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn names(desired: &Desired, ids: &BTreeSet<SelectorId>) -> BTreeSet<String> {
    ids.iter().map(|id| desired.selectors[id.0 as usize].clone()).collect()
}

/// Selectors that the programs find for an address: the known one, else those of the longest prefix. Masqueraded traffic does not use what is
/// known of a node.
fn found(desired: &Desired, segment: u32, address: IpAddr, masqueraded: bool) -> BTreeSet<String> {
    if let Some(known) = desired.addresses.get(&(segment, address))
        && !(masqueraded && known.node)
    {
        return names(desired, &known.selectors);
    }
    let longest = desired
        .prefixes
        .iter()
        .filter(|((of, prefix), _)| *of == segment && prefix.contains(address))
        .max_by_key(|((_, prefix), _)| prefix.prefix());
    names(desired, &longest.expect("every address has a prefix").1.selectors)
}

const WORKLOADS: &str = "apiVersion: bulkhead/v1
kind: Workloads
nodes:
  - { name: n1, addresses: [192.0.2.1, '2001:db8::1'], segments: [{ vni: 7, vtep: 192.0.2.1, prefixes: [10.1.1.0/24, 'fd01:1::/64'] }] }
  - { name: n2, addresses: [192.0.2.2], segments: [{ vni: 7, vtep: 192.0.2.2, prefixes: [10.1.2.0/24] }, { vni: 7, vtep: '2001:db8::2', prefixes: ['fd01:2::/64'] }] }
workloads:
  - { name: a, namespace: x, labels: { app: a }, node: n1, endpoints: [{ segment: 7, addresses: [10.1.1.5, 'fd01:1::5'], link: va }] }
  - { name: b, namespace: x, labels: { app: b }, node: n2, endpoints: [{ segment: 7, addresses: [10.1.2.5, 'fd01:2::5'], link: vb }] }
";

/// Mentions every entity and the externals, so that each has a selector.
fn policy(externals: &[&str]) -> String {
    let named: Vec<_> = externals.iter().enumerate().map(|(i, prefixes)| format!("e{i}: {{ {prefixes} }}")).collect();
    let calls: Vec<_> = (0..externals.len()).map(|i| format!(", e{i}:1")).collect();
    format!(
        "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: x\nexternal: {{ {} }}\nservices:\n  b: {{}}\n  a:\n    accepts: [world:1, nodes:1, metadata:1, cluster:1, node:1]\n    calls: [b:1{}]\n",
        named.join(", "),
        calls.concat()
    )
}

fn set(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn entities() {
    let desired = desired(&policy(&[]), WORKLOADS, "n1").unwrap();
    let (world, nodes, node, metadata, cluster) =
        ("entity world", "entity nodes", "entity node", "entity metadata", "entity cluster");
    for (address, masqueraded, expected) in [
        ("203.0.113.9", false, vec![world]),
        ("2001:db8:ffff::9", false, vec![world]),
        ("10.1.2.5", false, vec![cluster, "service x/b"]),
        ("10.1.1.5", false, vec![cluster]),
        ("10.1.2.77", false, vec![]),
        ("fd01:2::77", false, vec![]),
        ("192.0.2.1", false, vec![node, nodes]),
        ("192.0.2.2", false, vec![nodes]),
        ("2001:db8::2", false, vec![nodes]),
        ("192.0.2.1", true, vec![nodes, world]),
        ("192.0.2.2", true, vec![nodes, world]),
        ("169.254.169.254", false, vec![metadata]),
        ("fd00:ec2::254", false, vec![metadata]),
        ("fd20:ce::254", false, vec![metadata]),
        ("169.254.169.253", false, vec![]),
        ("fd00:ec2::253", false, vec![world]),
        ("fe80::1", false, vec![]),
        ("127.0.0.1", false, vec![]),
        ("::1", false, vec![]),
        ("224.0.0.251", false, vec![]),
        ("ff02::1", false, vec![]),
        ("255.255.255.255", false, vec![]),
        ("0.0.0.0", false, vec![]),
        ("::", false, vec![]),
    ] {
        assert_eq!(found(&desired, 7, ip(address), masqueraded), set(&expected), "{address} masqueraded={masqueraded}");
    }
    assert!(!desired.selectors.iter().any(|selector| selector == "service x/a"), "nobody on this node asks for it");
}

#[test]
fn cidrs_match_whoever_has_the_address() {
    let policy = policy(&["cidrs: [10.1.0.0/16, 192.0.2.0/24, 169.254.0.0/16], except: [10.1.2.0/25]"]);
    let desired = desired(&policy, WORKLOADS, "n1").unwrap();
    let e = "cidr 10.1.0.0/16,169.254.0.0/16,192.0.2.0/24 except 10.1.2.0/25";
    for (address, masqueraded, expected) in [
        ("10.1.1.5", false, vec!["entity cluster", e]),
        ("10.1.2.5", false, vec!["entity cluster", "service x/b"]),
        ("10.1.2.77", false, vec![]),
        ("10.1.2.200", false, vec![e]),
        ("10.1.9.9", false, vec![e, "entity world"]),
        ("192.0.2.1", false, vec![e, "entity node", "entity nodes"]),
        ("192.0.2.1", true, vec![e, "entity nodes", "entity world"]),
        ("169.254.169.254", false, vec![e, "entity metadata"]),
        ("169.254.1.1", false, vec![e]),
    ] {
        assert_eq!(found(&desired, 7, ip(address), masqueraded), set(&expected), "{address} masqueraded={masqueraded}");
    }
}

fn discovered(peers: &[(&str, &[&str])]) -> Discovered {
    let peers =
        peers.iter().map(|(vtep, prefixes)| (ip(vtep), prefixes.iter().map(|prefix| net(prefix)).collect())).collect();
    let overlay = DiscoveredOverlay {
        device: "flannel.7".to_owned(),
        vni: 7,
        port: 4789,
        own: Some(ip("192.0.2.1")),
        underlays: vec!["eth0".to_owned()],
        peers,
    };
    Discovered {
        addresses: vec![ip("192.0.2.1"), ip("10.1.1.0"), ip("10.1.1.1")],
        overlays: vec![overlay],
        ..Discovered::default()
    }
}

#[test]
fn the_kernels_bindings_complete_the_file() {
    let model = model(("p.yaml", &policy(&[])), ("w.yaml", WORKLOADS)).unwrap();
    let discovered = discovered(&[("192.0.2.2", &["10.1.2.0/24"]), ("192.0.2.3", &["10.1.3.0/24", "10.1.2.128/25"])]);
    let desired = compile(&model, "n1", &discovered, NOW).unwrap();
    let [overlay] = desired.overlays.as_slice() else { panic!("{:?}", desired.overlays) };
    assert_eq!(
        (overlay.vni, overlay.port, overlay.own.as_slice()),
        (7, 4789, [ip("192.0.2.1")].as_slice()),
        "the kernel knows the port"
    );
    let peers: Vec<_> = overlay
        .peers
        .iter()
        .map(|(vtep, prefixes)| (vtep.to_string(), prefixes.iter().map(ToString::to_string).collect::<Vec<_>>()))
        .collect();
    let peer = |vtep: &str, prefixes: &[&str]| {
        (vtep.to_owned(), prefixes.iter().map(|&prefix| prefix.to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        peers,
        [
            peer("192.0.2.2", &["10.1.2.0/24"]),
            peer("192.0.2.3", &["10.1.3.0/24"]),
            peer("2001:db8::2", &["fd01:2::/64"])
        ],
        "what contradicts the file does not bind"
    );
    let (node, nodes) = ("entity node", "entity nodes");
    assert_eq!(found(&desired, 7, ip("10.1.1.1"), false), set(&[node, nodes]), "the bridge's address is the node's");
    assert_eq!(found(&desired, 7, ip("192.0.2.3"), false), set(&[nodes]), "a VTEP is a node");
    assert_eq!(found(&desired, 7, ip("10.1.3.9"), false), set(&[]), "an overlay's address is not the world's");

    let encapsulated = |address: &str| desired.addresses[&(7, ip(address))].encapsulated;
    assert!(encapsulated("10.1.2.5"));
    assert!(!encapsulated("fd01:2::5"), "no device carries its prefix");
    assert!(!encapsulated("10.1.1.5"), "it lives here");
    assert!(!encapsulated("192.0.2.2"), "the underlay is plain");
    for segment in [0, 7] {
        let prefix = |text: &str| &desired.prefixes[&(segment, net(text))];
        assert_eq!((prefix("10.1.2.0/24").overlay, prefix("10.1.2.0/24").encapsulated), (true, true));
        assert_eq!((prefix("10.1.1.0/24").overlay, prefix("10.1.1.0/24").encapsulated), (true, false));
        assert_eq!((prefix("0.0.0.0/0").overlay, prefix("0.0.0.0/0").encapsulated), (false, false));
    }
}

#[test]
fn a_prefix_of_several_nodes_binds_by_address() {
    let text = "apiVersion: bulkhead/v1
kind: Workloads
nodes:
  - { name: n1, addresses: [192.0.2.1], segments: [{ vni: 4097, vtep: 192.0.2.1, port: 4789, prefixes: [10.0.1.0/24] }] }
  - { name: n2, addresses: [192.0.2.2], segments: [{ vni: 4097, vtep: 192.0.2.2, prefixes: [10.0.1.0/24] }] }
workloads:
  - { name: a, namespace: x, node: n1, endpoints: [{ segment: 4097, addresses: [10.0.1.5], link: va }] }
  - { name: b, namespace: x, node: n2, endpoints: [{ segment: 4097, addresses: [10.0.1.6], link: vb }] }
";
    let desired = desired("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: x\nservices: {}\n", text, "n1").unwrap();
    let overlay = &desired.overlays[0];
    assert_eq!(overlay.port, 4789);
    assert_eq!(overlay.peers.iter().collect::<Vec<_>>(), [(&ip("192.0.2.2"), &BTreeSet::from([net("10.0.1.6/32")]))]);
    assert!(desired.prefixes[&(4097, net("10.0.1.0/24"))].overlay);
}

#[test]
fn service_addresses_lead_to_backends_of_their_family_and_segment() {
    let text = format!(
        "{WORKLOADS}  - {{ name: c, namespace: x, node: n2, ports: {{ api: 81 }}, endpoints: [{{ segment: 7, addresses: [10.1.2.6], link: vc }}, {{ addresses: [10.9.9.9], link: vd }}] }}
services:
  - {{ name: s, namespace: x, addresses: [10.96.0.1, 'fd00:96::1'], ports: [{{ port: 80, target: 8080, nodePort: 30080 }}, {{ port: 53, protocol: udp }}], backends: [a, b, c, 203.0.113.5, 10.1.2.99] }}
  - {{ name: t, namespace: x, addresses: [10.96.0.2], ports: [{{ port: 80, target: api }}], backends: [c] }}
"
    );
    let model = model(("p.yaml", &policy(&[])), ("w.yaml", &text)).unwrap();
    let desired = compile(&model, "n1", &discovered(&[("192.0.2.2", &["10.1.2.0/24"])]), NOW).unwrap();
    let lead = |segment, address: Option<&str>, protocol, port| {
        let key = ServiceAddress { segment, address: address.map(ip), protocol, port };
        desired.services[&key].iter().copied().collect::<Vec<_>>()
    };
    let to = |address: &str, port, judged_later| Backend { address: ip(address), port, judged_later };
    let v4 = |port| {
        vec![
            to("10.1.1.5", port, true),
            to("10.1.2.5", port, true),
            to("10.1.2.6", port, true),
            to("10.1.2.99", port, true),
        ]
    };
    // No device carries the IPv6 prefix of n2.
    let v6 = |port| vec![to("fd01:1::5", port, true), to("fd01:2::5", port, false)];
    let outside = |port| to("203.0.113.5", port, false);
    for (port, target, protocol) in [(80, 8080, 6), (53, 53, 17)] {
        let mut seven = v4(target);
        seven.push(outside(target));
        assert_eq!(lead(7, Some("10.96.0.1"), protocol, port), seven);
        assert_eq!(lead(7, Some("fd00:96::1"), protocol, port), v6(target));
        let mut zero = seven.clone();
        zero.insert(4, to("10.9.9.9", target, false));
        assert_eq!(lead(0, Some("10.96.0.1"), protocol, port), zero, "what is not in the overlay is met in segment 0");
    }
    let mut all = v4(8080);
    all.push(outside(8080));
    all.extend(v6(8080));
    assert_eq!(lead(7, None, 6, 30080), all, "a NodePort leads to all");
    assert_eq!(lead(7, Some("10.96.0.2"), 6, 80), [to("10.1.2.6", 81, true)], "each by its own port");
    assert_eq!(desired.services.len(), 2 * (2 * 2 + 1 + 1), "two segments");

    // Nobody who answers is nobody to be allowed to: the address is there all the same.
    let none = text.replace("addresses: [10.96.0.2]", "addresses: [10.96.0.2, 'fd00:96::2']");
    let desired = crate::support::desired(&policy(&[]), &none, "n1").unwrap();
    let key = ServiceAddress { segment: 7, address: Some(ip("fd00:96::2")), protocol: 6, port: 80 };
    assert_eq!(desired.services[&key], BTreeSet::new());
}

fn network() -> impl Strategy<Value = IpNetwork> {
    // Few values, so that they nest and collide with what the file says.
    let v4 = (
        prop_oneof![Just(0_u32), Just(0x0a01_0000), Just(0x0a01_0200), Just(0xc000_0200), Just(0xa9fe_0000)],
        0..1024_u32,
        0..=32_u8,
    )
        .prop_map(|(base, low, prefix)| (IpAddr::V4((base | low).into()), prefix));
    let v6 = (prop_oneof![Just(0_u128), Just(0xfd01_0002 << 96), Just(0xfd00_0ec2 << 96)], 0..1024_u128, 0..=128_u8)
        .prop_map(|(base, low, prefix)| (IpAddr::V6((base | low).into()), prefix));
    prop_oneof![v4, v6].prop_map(|(address, prefix)| {
        let net = IpNetwork::new(address, prefix).unwrap();
        IpNetwork::new(net.network(), prefix).unwrap()
    })
}

/// CIDRs, each with prefixes inside of it that do not belong.
fn external() -> impl Strategy<Value = (Vec<IpNetwork>, Vec<IpNetwork>)> {
    let with_hole = (network(), prop::option::of((any::<u128>(), any::<u8>()))).prop_map(|(outer, hole)| {
        let hole = hole.map(|(bits, longer)| match outer {
            IpNetwork::V4(outer) => {
                let prefix = outer.prefix() + longer % (33 - outer.prefix());
                let inside = u32::from(outer.network())
                    | (u32::try_from(bits & 0xffff_ffff).unwrap() & !u32::from(outer.mask()));
                let net = ipnetwork::Ipv4Network::new(inside.into(), prefix).unwrap();
                IpNetwork::new(net.network().into(), prefix).unwrap()
            }
            IpNetwork::V6(outer) => {
                let prefix = outer.prefix() + longer % (129 - outer.prefix());
                let inside = u128::from(outer.network()) | (bits & !u128::from(outer.mask()));
                let net = ipnetwork::Ipv6Network::new(inside.into(), prefix).unwrap();
                IpNetwork::new(net.network().into(), prefix).unwrap()
            }
        });
        (outer, hole)
    });
    prop::collection::vec(with_hole, 1..4)
        .prop_map(|parts| (parts.iter().map(|part| part.0).collect(), parts.iter().filter_map(|part| part.1).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The longest prefix alone says all that matches: the same as asking every CIDR.
    #[test]
    fn prefixes_are_complete(externals in prop::collection::vec(external(), 1..5), random in prop::collection::vec(any::<u128>(), 16)) {
        let quote = |nets: &[IpNetwork]| nets.iter().map(|net| format!("'{net}'")).collect::<Vec<_>>().join(", ");
        let text: Vec<_> = externals.iter().map(|(cidrs, except)| format!("cidrs: [{}], except: [{}]", quote(cidrs), quote(except))).collect();
        let desired = desired(&policy(&text.iter().map(String::as_str).collect::<Vec<_>>()), WORKLOADS, "n1").unwrap();

        let mut addresses: Vec<IpAddr> = random.iter().map(|&bits| IpAddr::V6(bits.into())).collect();
        addresses.extend(random.iter().map(|&bits| IpAddr::V4(u32::try_from(bits >> 96).unwrap().into())));
        for prefix in externals.iter().flat_map(|(cidrs, except)| cidrs.iter().chain(except)) {
            match prefix {
                IpNetwork::V4(net) => for edge in [u32::from(net.network()).wrapping_sub(1), net.network().into(), net.broadcast().into(), u32::from(net.broadcast()).wrapping_add(1)] {
                    addresses.push(IpAddr::V4(edge.into()));
                },
                IpNetwork::V6(net) => for edge in [u128::from(net.network()).wrapping_sub(1), net.network().into(), net.broadcast().into(), u128::from(net.broadcast()).wrapping_add(1)] {
                    addresses.push(IpAddr::V6(edge.into()));
                },
            }
        }
        addresses.extend(["10.1.1.5", "10.1.2.5", "192.0.2.1", "169.254.169.254", "fd00:ec2::254"].map(ip));
        for segment in [0, 7] {
            for &address in &addresses {
                let holds = |nets: &[IpNetwork]| nets.iter().any(|net| net.contains(address));
                let expected: BTreeSet<usize> = externals.iter().enumerate().filter(|(_, (cidrs, except))| holds(cidrs) && !holds(except)).map(|(i, _)| i).collect();
                for masqueraded in [false, true] {
                    let selectors = found(&desired, segment, address, masqueraded);
                    let cidrs: BTreeSet<&str> = selectors.iter().map(String::as_str).filter(|text| text.starts_with("cidr ")).collect();
                    let wanted: BTreeSet<String> = expected.iter().map(|&i| {
                        let (mut cidrs, mut except) = externals[i].clone();
                        for nets in [&mut cidrs, &mut except] {
                            nets.sort();
                            nets.dedup();
                        }
                        let join = |nets: &[IpNetwork]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                        if except.is_empty() { format!("cidr {}", join(&cidrs)) } else { format!("cidr {} except {}", join(&cidrs), join(&except)) }
                    }).collect();
                    prop_assert_eq!(cidrs, wanted.iter().map(String::as_str).collect(), "{} in {}", address, segment);
                }
            }
        }
    }
}
