//! Packets as people describe them; nothing here knows how they lie on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A frame between a workload and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Sender's MAC.
    pub from: Mac,
    /// Receiver's MAC.
    pub to: Mac,
    /// Carries a VLAN tag.
    pub tagged: bool,
    /// What it carries.
    pub body: Body,
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// IP.
    Ip(Ip),
    /// Address resolution of IPv4.
    Arp(Arp),
    /// Some other protocol than IP and ARP.
    Foreign,
    /// IP whose headers are cut off or contradict themselves.
    Broken(Broken),
}

/// How the headers of an IP packet are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The IP header is cut off. `true` for IPv6, in all of these.
    CutHeader(bool),
    /// The version is not what the EtherType says.
    Version(bool),
    /// The transport header is cut off.
    CutTransport(bool),
    /// A TCP header that is shorter than a TCP header.
    ShortTcp(bool),
    /// An IPv6 routing header that says where the packet really goes.
    SourceRoute,
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub destination: IpAddr,
    /// One part of a packet.
    pub fragment: Option<Fragment>,
    /// With IPv4 options or IPv6 extension headers, which change nothing.
    pub extended: bool,
    /// What it carries.
    pub transport: Transport,
}

/// Which part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The first one.
    First,
    /// A later one.
    Later,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags: see [`flag`].
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6 echo.
    Echo {
        /// Question or answer.
        request: bool,
        /// Identifier.
        id: u16,
    },
    /// ICMP or ICMPv6 error.
    Error {
        /// Which.
        kind: ErrorKind,
        /// The packet that it is about.
        about: Box<Ip>,
    },
    /// Another ICMP message, of the packet's family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ICMPv6 that resolves addresses or manages groups.
    Neighbour(Neighbour),
    /// Another protocol.
    Other(u8),
}

/// Errors of ICMP and ICMPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Port unreachable.
    PortUnreachable,
    /// Too big for the next link.
    TooBig,
    /// Hop limit exceeded.
    TimeExceeded,
}

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Begin.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub request: bool,
    /// The MAC that it claims.
    pub sender_mac: Mac,
    /// The address that it claims.
    pub sender: Ipv4Addr,
    /// Whom it asks or answers.
    pub target: Ipv4Addr,
}

/// Neighbour discovery and multicast listeners. Addresses of the packet are in [`Ip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Which message.
    pub message: Message,
    /// Hop limit.
    pub hop_limit: u8,
    /// The sender's link-layer address, where the message states it.
    pub mac: Option<Mac>,
}

/// Messages of [`Neighbour`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who has this address?
    Solicitation(Ipv6Addr),
    /// I have this address.
    Advertisement(Ipv6Addr),
    /// Are there routers?
    RouterSolicitation,
    /// I am a router.
    RouterAdvertisement,
    /// There is a better way.
    Redirect,
    /// I listen to this group.
    ListenerReport(Ipv6Addr),
    /// Who listens?
    ListenerQuery,
}

impl Ip {
    /// Whether it is IPv6.
    #[must_use]
    pub const fn v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The packet that answers this one, if there is such a thing.
    #[must_use]
    pub fn answer(&self) -> Option<Self> {
        let transport = match self.transport {
            Transport::Tcp { source, destination, flags } => {
                let flags =
                    if flags & flag::SYN != 0 && flags & flag::ACK == 0 { flag::SYN | flag::ACK } else { flag::ACK };
                Transport::Tcp { source: destination, destination: source, flags }
            }
            Transport::Udp { source, destination } => Transport::Udp { source: destination, destination: source },
            Transport::Sctp { source, destination } => Transport::Sctp { source: destination, destination: source },
            Transport::Echo { request: true, id } => Transport::Echo { request: false, id },
            Transport::Other(number) => Transport::Other(number),
            _ => return None,
        };
        Some(Self { source: self.destination, destination: self.source, transport, ..self.clone() })
    }
}

/// The link-local address that a MAC implies.
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let word = |a: u8, b: u8| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(mac[0] ^ 2, mac[1]),
        word(mac[2], 0xff),
        word(0xfe, mac[3]),
        word(mac[4], mac[5]),
    )
}
