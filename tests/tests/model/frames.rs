//! From the model's packets to bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_fixtures::{Frame, IcmpError, NdOption};
use bulkhead_model::{
    Packet,
    packet::{Body, Broken, ErrorKind, Fragment, Ip, Message, Neighbour, Transport},
};

/// The frame on the wire.
pub(crate) fn frame(packet: &Packet) -> Vec<u8> {
    let mut frame = Frame::eth(packet.from, packet.to);
    if packet.tagged {
        frame = frame.vlan(7);
    }
    match &packet.body {
        Body::Ip(packet) => ip(frame, packet),
        Body::Arp(arp) => {
            let operation = if arp.request { 1 } else { 2 };
            frame.arp(operation, arp.sender_mac, arp.sender, [0; 6], arp.target)
        }
        Body::Foreign => frame.ether_type(0x88cc).payload(64),
        Body::Broken(how) => broken(frame, *how),
    }
    .build()
}

fn ip(frame: Frame, ip: &Ip) -> Frame {
    let mut frame = frame.ip(ip.source, ip.destination);
    if ip.extended {
        frame = if ip.v6() {
            frame.hop_by_hop(&[1, 0]).dest_opts(&[1, 4, 0, 0, 0, 0])
        } else {
            frame.ipv4_options(&[1; 12])
        };
    }
    match ip.fragment {
        None => transport(frame, ip),
        Some(Fragment::First) => transport(frame.fragment(7, 0, true), ip),
        // What a later part holds looks like a header and is none.
        Some(Fragment::Later) => transport(frame.fragment(7, 1480, false), ip),
    }
}

fn transport(frame: Frame, ip: &Ip) -> Frame {
    match &ip.transport {
        Transport::Tcp { source, destination, flags } => frame.tcp(*source, *destination, *flags).payload(8),
        Transport::Udp { source, destination } => frame.udp(*source, *destination).payload(8),
        Transport::Sctp { source, destination } => frame.sctp(*source, *destination).sctp_chunk(1, 0, &[0; 16]),
        Transport::Echo { request: true, id } => frame.icmp_echo(*id, 1).payload(8),
        Transport::Echo { request: false, id } => frame.icmp_echo_reply(*id, 1).payload(8),
        Transport::Error { kind, about } => {
            let kind = match kind {
                ErrorKind::PortUnreachable => IcmpError::PortUnreachable,
                ErrorKind::TooBig => IcmpError::TooBig { mtu: 1400 },
                ErrorKind::TimeExceeded => IcmpError::TimeExceeded,
            };
            frame.icmp_error(kind, &self::ip(Frame::bare(), about))
        }
        Transport::Icmp { kind, code } => frame.icmp(*kind, *code, [0; 4]).payload(16),
        Transport::Neighbour(message) => neighbour(frame, message),
        Transport::Other(number) => frame.raw_l4(*number, &[0xa5; 24]),
    }
}

fn neighbour(frame: Frame, neighbour: &Neighbour) -> Frame {
    let source: Vec<_> = neighbour.mac.into_iter().map(NdOption::Source).collect();
    let target: Vec<_> = neighbour.mac.into_iter().map(NdOption::Target).collect();
    match neighbour.message {
        Message::Solicitation(about) => frame.nd_ns(about, &source),
        Message::Advertisement(about) => frame.nd_na(about, 0x60, &target),
        Message::RouterSolicitation => frame.nd_rs(&source),
        Message::RouterAdvertisement => frame.nd_ra(0, 1800, &source),
        Message::Redirect => frame.nd_redirect(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, &target),
        Message::ListenerReport(group) => frame.mld2_report(&[(4, group)]),
        Message::ListenerQuery => frame.mld_query(Ipv6Addr::UNSPECIFIED),
    }
    .ttl(neighbour.hop_limit)
}

fn broken(frame: Frame, how: Broken) -> Frame {
    let addressed = |frame: Frame, v6: bool| {
        let pair: (IpAddr, IpAddr) = if v6 {
            (
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8).into(),
            )
        } else {
            (Ipv4Addr::new(203, 0, 113, 9).into(), Ipv4Addr::new(203, 0, 113, 8).into())
        };
        frame.ip(pair.0, pair.1)
    };
    let header = |v6: bool| if v6 { 40 } else { 20 };
    match how {
        Broken::CutHeader(v6) => addressed(frame, v6).udp(1, 2).truncate(14 + header(v6) - 1),
        Broken::Version(v6) => addressed(frame, v6).ip_version(if v6 { 4 } else { 6 }).udp(1, 2).payload(8),
        Broken::CutTransport(v6) => addressed(frame, v6).tcp(1, 2, 2).truncate(14 + header(v6) + 13),
        Broken::ShortTcp(v6) => addressed(frame, v6).tcp(1, 2, 2).data_offset(4),
        Broken::SourceRoute => addressed(frame, true).routing(0, 1, &[Ipv6Addr::LOCALHOST]).tcp(1, 2, 2),
    }
}
