//! The parser against everything that can come by: the catalogue of fixtures, random and damaged packets with etherparse
//! as a second opinion, third-party captures, and each frame cut at each byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use bulkhead_ebpf::packet::{
    Arp, Ethernet, Fault, Frame, Ip, Parsed, Role, Transport, Vxlan, ipv4, ipv6, neighbour_target, protocol, quoted,
    transport,
};
use bulkhead_fixtures::catalogue::{self, B, Health, Part, catalogue, named};
use bulkhead_fixtures::{self as fixtures, Flow, Layer, captures, oracle, proto, skip, strategy};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Addresses as the fixtures write them.
trait Address: Copy {
    fn ip(self) -> IpAddr;
}

impl Address for u32 {
    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }
}

impl Address for [u32; 4] {
    fn ip(self) -> IpAddr {
        let mut octets = [0; 16];
        for (part, word) in octets.chunks_mut(4).zip(self) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

fn flow<A: Address>(ip: &Ip<A>, transport: &Transport) -> Flow {
    let src = ip.source.ip();
    let icmp = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMP6 };
    let transport = match transport.protocol {
        _ if ip.later_fragment => fixtures::Transport::Opaque,
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            fixtures::Transport::Ports { src: transport.source_port, dst: transport.destination_port }
        }
        number if number == icmp => {
            let [kind, code] = transport.destination_port.to_be_bytes();
            fixtures::Transport::Icmp { kind, code }
        }
        _ => fixtures::Transport::Opaque,
    };
    Flow { src, dst: ip.destination.ip(), protocol: ip.protocol, transport }
}

/// IP packet at `offset`, with its transport header.
fn packet(frame: &[u8], offset: usize, ethertype: u16) -> Parsed<Option<(Flow, Transport)>> {
    Ok(match ethertype {
        Ethernet::IPV4 => {
            let ip = ipv4(frame, offset)?;
            let transport = transport(frame, &ip, false)?;
            Some((flow(&ip, &transport), transport))
        }
        Ethernet::IPV6 => {
            let ip = ipv6(frame, offset)?;
            let transport = transport(frame, &ip, true)?;
            Some((flow(&ip, &transport), transport))
        }
        _ => None,
    })
}

fn parse(frame: &[u8]) -> Parsed<Option<(Flow, Transport)>> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    packet(frame, Ethernet::LEN, ethernet.ethertype())
}

fn read(frame: &[u8]) -> Parsed<Option<Flow>> {
    Ok(parse(frame)?.map(|(flow, _)| flow))
}

/// Without the VLAN tags, which the kernel takes off before any program sees the frame (and tells beside it). `None`
/// where a tag is cut.
fn untagged(frame: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    while frame.at::<Ethernet>(0).is_some_and(Ethernet::tagged) {
        if frame.len() < Ethernet::LEN + 4 {
            return None;
        }
        frame.drain(12..16);
    }
    Some(frame)
}

/// The parser never claims anything else than etherparse, and refuses what etherparse reads only with a reason.
fn agree(frame: &[u8]) -> Result<(), String> {
    let Some(frame) = untagged(frame) else {
        return Ok(());
    };
    let (ours, theirs) = (read(&frame), oracle::flow(&frame));
    let agree = match (&ours, &theirs) {
        // It trusts no length beyond the header's own, so it reads more; what follows is the receiver's matter.
        (_, Err(_)) => true,
        (Ok(Some(ours)), Ok(Some(theirs))) => ours == theirs || knowingly_different(ours, theirs),
        (Ok(None), Ok(theirs)) => theirs.is_none() || !is_ip(&frame),
        (Ok(Some(_)), Ok(None)) => false,
        (Err(fault), Ok(theirs)) => theirs.is_some_and(|theirs| *fault == Fault::Malformed && refused(&frame, &theirs)),
    };
    if agree { Ok(()) } else { Err(format!("parser: {ours:?}\netherparse: {theirs:?}\n{frame:02x?}")) }
}

/// etherparse also looks into MACsec frames.
fn is_ip(frame: &[u8]) -> bool {
    frame.at::<Ethernet>(0).is_some_and(|ethernet| [Ethernet::IPV4, Ethernet::IPV6].contains(&ethernet.ethertype()))
}

/// An authentication header of IPv4 is a protocol of its own to us, and etherparse reads on behind it; with the mobility
/// header of IPv6 it is the other way round.
fn knowingly_different(ours: &Flow, theirs: &Flow) -> bool {
    const MOBILITY: u8 = 135;
    (ours.src, ours.dst) == (theirs.src, theirs.dst)
        && if ours.src.is_ipv4() {
            ours.protocol == proto::AUTH && ours.transport == fixtures::Transport::Opaque
        } else {
            theirs.protocol == MOBILITY
        }
}

/// What the parser refuses by its own rules: extension headers that are too many or too long, or a routing header that
/// leads elsewhere. Both only exist in IPv6.
fn refused(frame: &[u8], theirs: &Flow) -> bool {
    if theirs.src.is_ipv4() {
        return false;
    }
    let (mut at, mut next, mut count) = (Ethernet::LEN + 40, frame[20], 0);
    while let (0 | 43 | 44 | 51 | 60 | 135, Some(&[following, len, _, left, ..])) = (next, frame.get(at..)) {
        if next == proto::ROUTING && left > 0 {
            return true;
        }
        at += match next {
            proto::FRAGMENT => 8,
            proto::AUTH => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        count += 1;
        next = following;
    }
    count > 6 || at > 1024
}

#[test]
fn good_frames_are_read_as_they_were_meant_and_odd_ones_not_otherwise() {
    for entry in catalogue() {
        let Some(frame) = untagged(&entry.bytes()) else {
            continue;
        };
        let meant = entry.frame.flows().first().copied();
        match (entry.health, read(&frame)) {
            (Health::Bad(Part::Link | Part::Network | Part::Transport), _) | (Health::Odd, Err(_)) => {}
            (_, Ok(Some(ours))) if meant.is_some_and(|meant| knowingly_different(&ours, &meant)) => {}
            (_, ours) => assert_eq!(ours, Ok(meant), "{} ({})", entry.name, entry.note),
        }
    }
}

/// Malformed frames that the parser reads all the same: their lengths or order are wrong, which the receiver's stack
/// finds out, and nothing that the verdict rests on is read from the wrong place.
const READ_ALL_THE_SAME: &[&str] = &[
    "ipv4/len-0",
    "ipv4/len-over",
    "ipv4/len-in-udp",
    "ipv4/auth/cut",
    "ipv4/fragment/too-far",
    "ipv6/len-over",
    "ipv6/len-0",
    "ipv6/len-in-udp",
    "ipv6/hop-by-hop-second",
    "ipv6/fragment/too-far",
    "ipv4/tcp/offset-15",
    "ipv4/udp/len-7",
    "ipv4/udp/len-0",
    "ipv4/udp/len-over",
    "ipv6/tcp/offset-15",
    "ipv6/udp/len-7",
    "ipv6/udp/len-0",
    "ipv6/udp/len-over",
];

#[test]
fn malformed_frames_are_refused() {
    let read: Vec<_> = catalogue()
        .into_iter()
        .filter(|entry| matches!(entry.health, Health::Bad(Part::Link | Part::Network | Part::Transport)))
        .filter(|entry| !entry.name.starts_with("arp/"))
        .filter(|entry| untagged(&entry.bytes()).is_some_and(|frame| read(&frame).is_ok()))
        .map(|entry| entry.name)
        .collect();
    assert_eq!(read, READ_ALL_THE_SAME);
}

#[test]
fn tagged_frames_are_known_as_such() {
    for entry in catalogue() {
        let bytes = entry.bytes();
        let Some(ethernet) = bytes.as_slice().at::<Ethernet>(0) else {
            continue;
        };
        let tagged = matches!(entry.frame.layout()[1].0, Layer::Vlan { .. });
        assert_eq!(ethernet.tagged(), tagged, "{}", entry.name);
        assert_eq!((ethernet.source, ethernet.destination), (array(&bytes, 6), array(&bytes, 0)));
        assert_eq!(ethernet.to_group(), bytes[0] & 1 == 1);
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().unwrap()
}

#[test]
fn a_cut_frame_is_truncated_or_reads_the_same() {
    for entry in catalogue() {
        let Some(frame) = untagged(&entry.bytes()) else {
            continue;
        };
        let whole = read(&frame);
        for len in 0..=frame.len() {
            let cut = read(&frame[..len]);
            let same = cut == whole || cut == Err(Fault::Truncated);
            // A header that contradicts itself may be refused before the end of the frame is missed.
            let refused_earlier = whole == Err(Fault::Truncated) && cut == Err(Fault::Malformed);
            assert!(same || refused_earlier, "{} cut to {len}: {cut:?}, whole: {whole:?}", entry.name);
            agree(&frame[..len]).unwrap_or_else(|error| panic!("{} cut to {len}: {error}", entry.name));
        }
    }
}

#[test]
fn headers_suffice() {
    for entry in catalogue().into_iter().filter(|entry| entry.health == Health::Good) {
        let layout = entry.frame.layout();
        let last = layout
            .iter()
            .find(|(layer, _)| matches!(layer, Layer::Tcp | Layer::Udp | Layer::Sctp | Layer::Icmp | Layer::Icmpv6));
        let (Some((_, Range { end, .. })), Some(whole)) = (last, untagged(&entry.bytes())) else {
            continue;
        };
        let tags = entry.bytes().len() - whole.len();
        assert_eq!(read(&whole[..end - tags]), read(&whole), "{}: cut behind its transport header", entry.name);
    }
}

#[test]
fn roles_follow_from_flags_and_types() {
    for (name, role) in [
        ("tcp/syn", Role::Begin),
        ("tcp/syn-data", Role::Begin),
        ("tcp/syn-ecn", Role::Begin),
        ("tcp/syn-fin", Role::Begin),
        ("tcp/syn-rst", Role::Begin),
        ("tcp/syn-ack", Role::Continue),
        ("tcp/ack", Role::Continue),
        ("tcp/fin", Role::Continue),
        ("tcp/rst", Role::Continue),
        ("tcp/null", Role::Continue),
        ("tcp/xmas", Role::Continue),
        ("udp/dns", Role::Any),
        ("sctp/init", Role::Any),
        ("icmp/echo", Role::Any),
        ("icmp/echo-reply", Role::Continue),
        ("icmp/port-unreachable", Role::Error),
        ("icmp/too-big", Role::Error),
        ("icmp/time-exceeded", Role::Error),
        ("icmp/parameter-problem", Role::Error),
        ("icmp/unknown-type", Role::Any),
        ("icmp/other-family", Role::Any),
        ("other/gre", Role::Any),
        ("fragment/second", Role::Any),
    ] {
        for family in ["ipv4", "ipv6"] {
            let name = format!("{family}/{name}");
            let (_, transport) = parse(&named(&name).bytes()).unwrap().unwrap();
            assert_eq!(transport.role, role, "{name}");
        }
    }
    let (_, redirect) = parse(&named("ipv4/icmp/redirect").bytes()).unwrap().unwrap();
    assert_eq!(redirect.role, Role::Any, "a redirect is no word about a flow");
}

/// What an ICMP error in `frame` quotes.
fn quote(frame: &[u8]) -> Parsed<Flow> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Fault::Truncated)?;
    let (_, error) = parse(frame)?.expect("an IP packet");
    Ok(if ethernet.ethertype() == Ethernet::IPV4 {
        let ip = ipv4(frame, error.end)?;
        flow(&ip, &quoted(frame, &ip, false)?)
    } else {
        let ip = ipv6(frame, error.end)?;
        flow(&ip, &quoted(frame, &ip, true)?)
    })
}

#[test]
fn icmp_errors_quote_the_flow_that_they_are_about() {
    for family in ["ipv4", "ipv6"] {
        let read = |name: &str| quote(&named(&format!("{family}/icmp/{name}")).bytes());
        let about = |name: &str| Ok(named(&format!("{family}/{name}")).frame.flows()[0]);
        for name in [
            "port-unreachable",
            "host-unreachable",
            "prohibited",
            "too-big",
            "time-exceeded",
            "parameter-problem",
            "from-router",
            "quote-8",
        ] {
            assert_eq!(read(name), about("tcp/syn"), "{family}/icmp/{name}");
        }
        for name in ["about-udp", "about-options"] {
            assert_eq!(read(name), about("udp/dns"), "{family}/icmp/{name}");
        }
        for name in ["quote-ip", "quote-cut", "quote-none"] {
            assert_eq!(read(name), Err(Fault::Truncated), "{family}/icmp/{name}");
        }
        assert_eq!(read("quote-junk"), Err(Fault::Malformed));
    }
}

#[test]
fn neighbour_messages_name_their_target() {
    let target = |name: &str| {
        let bytes = named(name).bytes();
        let ip = ipv6(bytes.as_slice(), Ethernet::LEN).unwrap();
        neighbour_target(bytes.as_slice(), ip.transport).map(Address::ip)
    };
    assert_eq!(target("nd/solicitation"), Ok(B.v6.into()));
    assert_eq!(target("nd/solicitation-dad"), Ok(catalogue::A.v6.into()));
    assert_eq!(target("nd/advertisement"), Ok(catalogue::A.v6.into()));
    assert_eq!(target("nd/solicitation-behind-options"), Ok(B.v6.into()));
    assert_eq!(target("nd/solicitation-short"), Err(Fault::Truncated));
}

#[test]
fn arp_is_known_only_for_ipv4_over_ethernet() {
    for entry in catalogue().into_iter().filter(|entry| entry.name.starts_with("arp/")) {
        let bytes = entry.bytes();
        let known = bytes.as_slice().at::<Arp>(Ethernet::LEN).is_some_and(Arp::known);
        let expected = !matches!(entry.health, Health::Bad(Part::Network) | Health::Odd);
        assert_eq!(known, expected, "{} ({})", entry.name, entry.note);
    }
    let bytes = named("arp/reply").bytes();
    let arp: &Arp = bytes.as_slice().at(Ethernet::LEN).unwrap();
    assert!(!arp.request());
    assert_eq!((arp.sender_mac, arp.sender), (B.mac, B.v4.octets()));
    assert_eq!((arp.target_mac, arp.target), (catalogue::A.mac, catalogue::A.v4.octets()));
    assert!(named("arp/probe").bytes().as_slice().at::<Arp>(Ethernet::LEN).unwrap().request());
}

/// VNI and inner flow of a VXLAN frame.
fn decapsulated(frame: &[u8]) -> Parsed<(Option<u32>, Option<Flow>)> {
    let (_, udp) = parse(frame)?.expect("an IP packet");
    let vxlan: &Vxlan = frame.at(udp.end).ok_or(Fault::Truncated)?;
    let inner = udp.end + Vxlan::LEN;
    let ethernet: &Ethernet = frame.at(inner).ok_or(Fault::Truncated)?;
    let flow = packet(frame, inner + Ethernet::LEN, ethernet.ethertype())?.map(|(flow, _)| flow);
    Ok((vxlan.vni(), flow))
}

#[test]
fn vxlan_frames_are_read_inside() {
    for family in ["ipv4", "ipv6"] {
        let read = |name: &str| decapsulated(&untagged(&named(&format!("vxlan/{family}/{name}")).bytes()).unwrap());
        let inner = |name: &str| named(&format!("vxlan/{family}/{name}")).frame.flows().get(1).copied();
        for name in [
            "tcp",
            "tcp6",
            "udp",
            "icmp",
            "full",
            "arp",
            "vlan-outside",
            "checksummed",
            "no-checksum",
            "inner-fragment",
            "options",
        ] {
            assert_eq!(read(name), Ok((Some(catalogue::VNI), inner(name))), "vxlan/{family}/{name}");
        }
        assert_eq!(read("vni-0"), Ok((Some(0), inner("vni-0"))));
        assert_eq!(read("vni-largest"), Ok((Some(0xff_ffff), inner("vni-largest"))));
        assert_eq!(read("port-4789"), Ok((Some(4096), inner("port-4789"))));
        assert_eq!(read("vlan-inside"), Ok((Some(catalogue::VNI), None)), "a tag inside hides the packet");
        for name in ["no-vni", "no-vni-others", "reserved", "group-policy", "all-flags"] {
            assert_eq!(read(name).map(|(vni, _)| vni), Ok(None), "vxlan/{family}/{name}");
        }
        for name in ["short", "empty", "no-frame", "inner-short", "inner-no-ip"] {
            assert_eq!(read(name), Err(Fault::Truncated), "vxlan/{family}/{name}");
        }
        for name in ["inner-ihl", "inner-tcp"] {
            assert_eq!(read(name), Err(Fault::Malformed), "vxlan/{family}/{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(if skip::long() { 200_000 } else { 4_000 })
    })]

    #[test]
    fn random_packets_are_read_as_they_were_built(packet in strategy::packet()) {
        let frame = untagged(&packet.bytes()).unwrap();
        let (flow, transport) = parse(&frame).unwrap().unwrap();
        prop_assert_eq!(flow, packet.flow);
        if packet.flow.protocol == proto::TCP && packet.flow.transport != fixtures::Transport::Opaque {
            prop_assert_eq!(transport.tcp_flags, packet.tcp_flags);
            prop_assert_eq!(&frame[transport.end..], packet.payload);
        }
        let fragment = packet.fragment.is_some_and(|fragment| fragment.more || fragment.offset > 0);
        let (found, hop_limit) = if packet.flow.src.is_ipv4() {
            let ip = ipv4(frame.as_slice(), Ethernet::LEN).unwrap();
            (ip.fragment, ip.hop_limit)
        } else {
            let ip = ipv6(frame.as_slice(), Ethernet::LEN).unwrap();
            (ip.fragment, ip.hop_limit)
        };
        prop_assert_eq!((found, hop_limit), (fragment, packet.ttl));
    }

    #[test]
    fn random_vxlan_frames_are_read_inside((outer, vni, inner, frame) in strategy::vxlan(strategy::addresses())) {
        let bytes = frame.build();
        prop_assert_eq!(read(&bytes), Ok(Some(outer)));
        let expected = if inner.vlans.is_empty() { Some(inner.flow) } else { None };
        prop_assert_eq!(decapsulated(&bytes), Ok((Some(vni), expected)));
    }

    #[test]
    fn damaged_packets_are_read_as_etherparse_reads_them(bytes in strategy::damaged()) {
        agree(&bytes).map_err(TestCaseError::fail)?;
        // Nothing to compare with, but none of it may panic.
        let _ = quote_or_decapsulate(&bytes);
    }
}

fn quote_or_decapsulate(bytes: &[u8]) -> Parsed<()> {
    if parse(bytes)?.is_some() {
        let _ = quote(bytes);
        let _ = decapsulated(bytes);
    }
    Ok(())
}

#[test]
fn a_later_fragment_has_no_ports_whatever_length_the_packet_claims() {
    // IPv6 that claims no payload, and a fragment header at offset 8 that says TCP.
    let mut frame = vec![2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 44, 0];
    frame.extend([0xfd; 32]);
    frame.extend([6, 0, 0, 8, 0, 0, 0, 0]);
    frame.extend([0; 12]);
    frame.push(0x50);
    frame.extend([0; 32]);
    agree(&frame).unwrap();
    assert_eq!(read(&frame).unwrap().unwrap().transport, fixtures::Transport::Opaque);
}

#[test]
fn third_party_captures_are_read_as_etherparse_reads_them() {
    let Some(data) = skip::test_data() else {
        return;
    };
    let (mut frames, mut flows) = (0, 0);
    let mut different = Vec::new();
    for captured in captures(&data.join("captures")).unwrap() {
        let captured = captured.unwrap();
        let Some(frame) = captured.ethernet() else {
            continue;
        };
        frames += 1;
        flows += usize::from(matches!(untagged(&frame).map(|frame| read(&frame)), Some(Ok(Some(_)))));
        let _ = quote_or_decapsulate(&frame);
        if let Err(error) = agree(&frame) {
            different.push(format!("{} packet {}: {error}", captured.file.display(), captured.number));
        }
    }
    println!("{frames} frames, {flows} of them IP packets that the parser reads");
    assert!(frames > 90_000 && flows > 10_000, "only {flows} of {frames} frames were read");
    assert!(
        different.is_empty(),
        "{} differ, among them\n{}",
        different.len(),
        different[..different.len().min(5)].join("\n")
    );
}
