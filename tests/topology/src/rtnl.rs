//! The few rtnetlink requests that a topology is made of, over a blocking socket.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage, State,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{Error, Mac, Netns, Result};

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A link as the kernel numbers it. The index is unique only within its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Hardware address; zero on loopback.
    pub mac: Mac,
}

/// A link's own packet counters (`IFLA_STATS64`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub struct LinkStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

/// One end of a veth pair that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address.
    pub mac: Mac,
}

/// A VXLAN device as flannel makes it: no learning, bound to one underlay link and address.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address; the other nodes' FDB and neighbour entries name it.
    pub mac: Mac,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Index of the underlay link.
    pub link: u32,
    /// This node's address there. Its family is that of the outer packets.
    pub vtep: IpAddr,
    /// Of inner packets.
    pub mtu: u32,
}

/// A route netlink socket of one namespace. It stays there, whichever thread uses it.
pub struct Rtnl {
    socket: Socket,
    netns: String,
}

impl fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rtnl").field(&self.netns).finish()
    }
}

impl Rtnl {
    /// Opens a socket in `netns`.
    pub fn open(netns: &Netns) -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = netns.run(open).map_err(Error::os(format!("{}: open a netlink socket", netns.name())))?;
        Ok(Self { socket, netns: netns.name().to_owned() })
    }

    /// Sends any request, with the given `NLM_F_*` flags, and returns the answers. `what` is for the error.
    pub fn request(
        &mut self,
        what: impl fmt::Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let netns = self.netns.clone();
        self.exchange(message, flags).map_err(Error::os(format_args!("{netns}: {what}")))
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        // A dump is answered by "done" instead and takes no harm from the flag.
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        return Err(answer.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
                // Messages are aligned to four bytes, except that the last may end early.
                rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// Finds a link by name.
    pub fn link(&mut self, name: &str) -> Result<Link> {
        Ok(describe(&self.query(name)?))
    }

    /// Reads a link's packet counters.
    pub fn stats(&mut self, name: &str) -> Result<LinkStats> {
        let message = self.query(name)?;
        let stats = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(*stats),
            _ => None,
        });
        let stats = stats.ok_or_else(|| Error::Invalid(format!("{}: link {name} has no counters", self.netns)))?;
        Ok(LinkStats {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            rx_dropped: stats.rx_dropped,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            tx_dropped: stats.tx_dropped,
        })
    }

    fn query(&mut self, name: &str) -> Result<LinkMessage> {
        let answers =
            self.request(format_args!("find link {name}"), RouteNetlinkMessage::GetLink(named(name, vec![])), 0)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(message),
            _ => None,
        });
        found.ok_or_else(|| Error::Invalid(format!("{}: no answer about link {name}", self.netns)))
    }

    /// Makes a bridge without STP, whose ports forward at once, and brings it up.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<Link> {
        let attributes =
            vec![LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(mtu), kind(InfoKind::Bridge, None)];
        self.add_link("bridge", name, attributes)
    }

    /// Makes a VXLAN device and brings it up.
    pub fn add_vxlan(&mut self, vxlan: &Vxlan<'_>) -> Result<Link> {
        let local = match vxlan.vtep {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        };
        let data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Link(vxlan.link),
            local,
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(false),
        ];
        let attributes = vec![
            LinkAttribute::Address(vxlan.mac.to_vec()),
            LinkAttribute::Mtu(vxlan.mtu),
            kind(InfoKind::Vxlan, Some(InfoData::Vxlan(data))),
        ];
        self.add_link("vxlan device", vxlan.name, attributes)
    }

    /// Makes a veth pair, brings both ends up and returns them. The near end becomes a port of `bridge`, an
    /// index in this namespace, the far end lies in `far_netns`.
    pub fn add_veth(
        &mut self,
        near: VethEnd<'_>,
        bridge: u32,
        far: VethEnd<'_>,
        far_netns: &Netns,
        mtu: u32,
    ) -> Result<(Link, Link)> {
        let attributes = |end: VethEnd<'_>| vec![LinkAttribute::Address(end.mac.to_vec()), LinkAttribute::Mtu(mtu)];
        let mut far_attributes = attributes(far);
        far_attributes.push(LinkAttribute::NetNsFd(far_netns.raw_fd()));
        // The far end comes up by a request of its own: the kernel configures it before the two are
        // connected.
        let peer = InfoData::Veth(InfoVeth::Peer(named(far.name, far_attributes)));
        let mut near_attributes = attributes(near);
        near_attributes.extend([LinkAttribute::Controller(bridge), kind(InfoKind::Veth, Some(peer))]);
        let near = self.add_link("veth pair", near.name, near_attributes)?;
        let mut rtnl = Self::open(far_netns)?;
        let far = rtnl.link(far.name)?;
        rtnl.set_up(far.index)?;
        Ok((near, far))
    }

    fn add_link(&mut self, what: &str, name: &str, attributes: Vec<LinkAttribute>) -> Result<Link> {
        let message = RouteNetlinkMessage::NewLink(up(named(name, attributes)));
        self.request(format_args!("add {what} {name}"), message, CREATE)?;
        self.link(name)
    }

    /// Deletes a link; a veth pair goes whole.
    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        self.request(format_args!("delete link {name}"), RouteNetlinkMessage::DelLink(named(name, vec![])), 0).map(drop)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = RouteNetlinkMessage::SetLink(up(indexed(index, vec![])));
        self.request(format_args!("bring link {index} up"), message, 0).map(drop)
    }

    /// Lets a bridge port send a frame back to where it came from, as a workload needs that calls itself by a
    /// service address.
    pub fn set_hairpin(&mut self, port: u32) -> Result<()> {
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ];
        let message = RouteNetlinkMessage::NewLink(indexed(port, vec![LinkAttribute::LinkInfo(info)]));
        self.request(format_args!("set hairpin mode on port {port}"), message, 0).map(drop)
    }

    /// Adds an address, without duplicate address detection, and with the prefix's route unless it is a
    /// single address.
    pub fn add_address(&mut self, index: u32, address: IpNetwork) -> Result<()> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        self.request(format_args!("add address {address} to link {index}"), message, CREATE).map(drop)
    }

    /// Removes an address from a link.
    pub fn delete_address(&mut self, index: u32, address: IpNetwork) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        self.request(format_args!("delete address {address} of link {index}"), message, 0).map(drop)
    }

    /// Adds a route through a gateway. With `onlink` the gateway need not lie in a prefix of the link, which
    /// is how flannel routes.
    pub fn add_route(&mut self, destination: IpNetwork, gateway: IpAddr, index: u32, onlink: bool) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            destination_prefix_length: destination.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            flags: if onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
        if destination.prefix() > 0 {
            message.attributes.push(RouteAttribute::Destination(destination.network().into()));
        }
        let message = RouteNetlinkMessage::NewRoute(message);
        self.request(format_args!("add route {destination} via {gateway}"), message, CREATE).map(drop)
    }

    /// Adds the default route of the gateway's family.
    pub fn add_default_route(&mut self, gateway: IpAddr, index: u32) -> Result<()> {
        let everything = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.add_route(IpNetwork::new(everything, 0).expect("0 is a valid prefix length"), gateway, index, false)
    }

    /// Adds a permanent neighbour (ARP or ND) entry.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<()> {
        let message = neighbour(index, address, mac, family(address), NeighbourFlags::empty());
        self.request(format_args!("add neighbour {address}"), message, CREATE).map(drop)
    }

    /// Adds a permanent forwarding entry to a VXLAN device: frames to `mac` go to the VTEP `vtep`.
    pub fn add_fdb(&mut self, index: u32, mac: Mac, vtep: IpAddr) -> Result<()> {
        let message = neighbour(index, vtep, mac, AddressFamily::Bridge, NeighbourFlags::Own);
        self.request(format_args!("add forwarding entry to VTEP {vtep}"), message, CREATE).map(drop)
    }

    /// Why traffic could not flow yet: links without carrier, and addresses that are still tentative. A bridge
    /// without ports never has carrier and counts as ready.
    pub fn unready(&mut self) -> Result<Vec<String>> {
        let list = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links: Vec<_> = self
            .request("list links", list, NLM_F_DUMP)?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect();
        let has_port = |bridge: u32| {
            let port = LinkAttribute::Controller(bridge);
            links.iter().any(|link| link.attributes.contains(&port))
        };
        let (mut unready, mut idle) = (Vec::new(), Vec::new());
        for link in &links {
            // Loopback and VXLAN devices have no carrier to speak of and stay "unknown".
            let carrier = link
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, LinkAttribute::OperState(State::Up | State::Unknown)));
            if is_bridge(link) && !has_port(link.header.index) {
                idle.push(link.header.index);
            } else if !carrier || !link.header.flags.contains(LinkFlags::Up) {
                unready.push(format!("{}: link {}", self.netns, describe(link).name));
            }
        }
        let list = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        for answer in self.request("list addresses", list, NLM_F_DUMP)? {
            let RouteNetlinkMessage::NewAddress(address) = answer else {
                continue;
            };
            let index = address.header.index;
            if is_tentative(&address) && !idle.contains(&index) {
                unready.push(format!("{}: an address of link {index}", self.netns));
            }
        }
        Ok(unready)
    }
}

fn is_bridge(link: &LinkMessage) -> bool {
    let bridge = LinkInfo::Kind(InfoKind::Bridge);
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(info) if info.contains(&bridge)))
}

fn is_tentative(address: &AddressMessage) -> bool {
    address.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Flags(flags) => flags.contains(AddressFlags::Tentative),
        _ => false,
    })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.ip());
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    message.header.flags = if address.is_ipv6() { AddressHeaderFlags::Nodad } else { AddressHeaderFlags::empty() };
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    message
}

fn indexed(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn named(name: &str, mut attributes: Vec<LinkAttribute>) -> LinkMessage {
    attributes.push(LinkAttribute::IfName(name.to_owned()));
    indexed(0, attributes)
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn kind(kind: InfoKind, data: Option<InfoData>) -> LinkAttribute {
    let info = std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data));
    LinkAttribute::LinkInfo(info.collect())
}

fn neighbour(
    index: u32,
    address: IpAddr,
    mac: Mac,
    family: AddressFamily,
    flags: NeighbourFlags,
) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = flags;
    message.attributes =
        vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link { name: String::new(), index: message.header.index, mac: Mac::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => {
                link.mac = address.as_slice().try_into().unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}
