//! What is used of rtnetlink's messages.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkXdp},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteProtocol, RouteType, RouteVia},
    rule::{RuleAttribute, RuleFlags},
};

use super::{MarkRule, XdpPlace};

/// A MAC address, in the order of the wire.
pub type Mac = [u8; 6];

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(super) mac: Option<Mac>,
    /// Index of the bridge or bond that it is a port of.
    pub(super) master: Option<u32>,
    /// Index of the link that it stands on, for veth the other end.
    pub(crate) lower: Option<u32>,
    /// Id of the namespace of `lower` (for VXLAN, of its socket), where that is not this one.
    pub(crate) lower_netns: Option<i32>,
    pub(crate) veth: bool,
    pub(super) bridge: bool,
    pub(super) vxlan: Option<Vxlan>,
    /// Bytes of a packet.
    pub(super) mtu: u32,
    /// XDP programs: mode and id.
    pub(super) xdp: Vec<(XdpPlace, u32)>,
}

/// What is particular to a VXLAN device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vxlan {
    /// `None` if it has none of its own.
    pub(super) vni: Option<u32>,
    pub(super) port: u16,
    pub(super) local: Option<IpAddr>,
    pub(super) link: Option<u32>,
    /// Takes forwarding entries from packets.
    pub(super) learning: bool,
}

impl Link {
    pub(crate) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else {
            return None;
        };
        let mut link = Self { index: message.header.index, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(address) => link.mac = mac(address),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.lower = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.lower_netns = Some(*id),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Xdp(infos) => link.xdp = xdp(infos),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Veth) => link.veth = true,
                            LinkInfo::Kind(InfoKind::Bridge) => link.bridge = true,
                            LinkInfo::Data(InfoData::Vxlan(infos)) => link.vxlan = Some(Vxlan::read(infos)),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(link)
    }
}

impl Vxlan {
    fn read(infos: &[InfoVxlan]) -> Self {
        let mut vxlan = Self::default();
        let mut external = false;
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = Some(*vni),
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Link(index) => vxlan.link = Some(*index),
                InfoVxlan::CollectMetadata(on) => external = *on,
                InfoVxlan::Learning(on) => vxlan.learning = *on,
                _ => {}
            }
        }
        vxlan.vni = vxlan.vni.filter(|_| !external);
        vxlan.link = vxlan.link.filter(|index| *index != 0);
        vxlan.local = vxlan.local.filter(|address| !address.is_unspecified());
        vxlan
    }
}

/// Programs by their modes. The kernel names them so where there are several, and in [`LinkXdp::ProgId`] alone where there is one.
fn xdp(infos: &[LinkXdp]) -> Vec<(XdpPlace, u32)> {
    let named = infos.iter().filter_map(|info| match info {
        LinkXdp::DrvProgId(id) => Some((XdpPlace::Native, *id)),
        LinkXdp::SkbProgId(id) => Some((XdpPlace::Generic, *id)),
        LinkXdp::HwProgId(id) => Some((XdpPlace::Hardware, *id)),
        _ => None,
    });
    named.collect()
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) link: u32,
    pub(super) address: IpAddr,
}

impl Assigned {
    pub(super) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            return None;
        };
        let (mut own, mut prefix) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => own = Some(*address),
                // On a point-to-point link this is the other side's.
                AddressAttribute::Address(address) => prefix = Some(*address),
                // Somebody else has it.
                AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Dadfailed) => return None,
                _ => {}
            }
        }
        Some(Self { link: message.header.index, address: own.or(prefix)? })
    }
}

/// A usable unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) prefix: IpNetwork,
    /// `None` for a route without a gateway, and for one with several.
    pub(super) gateway: Option<IpAddr>,
    /// Links by which it leaves; several only without `gateway`.
    pub(super) links: Vec<u32>,
    /// The lower the better.
    pub(super) metric: u32,
    /// A routing protocol or a packet brought it.
    pub(super) learned: bool,
}

impl Route {
    pub(super) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else {
            return None;
        };
        let header = &message.header;
        let everything = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        // What is cloned is an exception of one destination that a packet brought (a path MTU).
        let usable =
            header.kind == RouteType::Unicast && !header.flags.intersects(RouteFlags::Dead | RouteFlags::Cloned);
        let (mut destination, mut gateway, mut links, mut metric) = (everything, None, Vec::new(), 0);
        let mut table = u32::from(header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = (*address).into(),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = (*address).into(),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
                    gateway = Some((*address).into());
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(address))
                | RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    gateway = Some((*address).into());
                }
                RouteAttribute::Oif(index) => links.push(*index),
                RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Table(id) => table = *id,
                _ => {}
            }
        }
        let learned = !matches!(
            header.protocol,
            RouteProtocol::Unspec
                | RouteProtocol::Kernel
                | RouteProtocol::Boot
                | RouteProtocol::Static
                | RouteProtocol::Other(_)
        );
        let prefix = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
        (usable && table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(Self {
            prefix,
            gateway,
            links,
            metric,
            learned,
        })
    }
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) link: u32,
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
}

impl Neighbour {
    pub(super) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewNeighbour(message) = message else {
            return None;
        };
        let (mut address, mut mac_address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some((*found).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some((*found).into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac_address = mac(bytes),
                _ => {}
            }
        }
        fixed(&message.header, &[NeighbourState::Permanent]).then_some(Self {
            link: message.header.ifindex,
            address: address?,
            mac: mac_address?,
        })
    }
}

/// A static forwarding entry of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fdb {
    pub(super) link: u32,
    /// `None` for what is flooded: the entry tells of a VTEP and binds nothing.
    pub(super) mac: Option<Mac>,
    pub(super) vtep: IpAddr,
    /// VNI, where it is not the device's.
    pub(super) vni: Option<u32>,
}

impl Fdb {
    pub(super) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        Self::read_any(message).and_then(|(entry, fixed)| fixed.then_some(entry))
    }

    /// Also what was learned; whether it is static.
    pub(super) fn read_any(message: &RouteNetlinkMessage) -> Option<(Self, bool)> {
        let RouteNetlinkMessage::NewNeighbour(message) = message else {
            return None;
        };
        let (mut vtep, mut mac_address, mut vni) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                // The family of the message is the bridge's, so the address is bytes.
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => vtep = address(bytes),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac_address = mac(bytes),
                NeighbourAttribute::Vni(id) => vni = Some(*id),
                _ => {}
            }
        }
        let vtep = vtep.filter(|vtep| !vtep.is_multicast() && !vtep.is_unspecified())?;
        // The `static` of the tools is NOARP to the kernel.
        let entry = Self { link: message.header.ifindex, mac: mac_address, vtep, vni };
        Some((entry, fixed(&message.header, &[NeighbourState::Permanent, NeighbourState::Noarp])))
    }
}

/// Whether an administrator (or a program for one) wrote the entry as a fact: one of the states is set, which VXLAN
/// devices combine with others, and it is neither what a routing daemon learned nor an address for which this node
/// answers.
fn fixed(header: &NeighbourHeader, states: &[NeighbourState]) -> bool {
    let state = u16::from(header.state);
    states.iter().any(|of| state & u16::from(*of) != 0)
        && !header.flags.intersects(NeighbourFlags::ExtLearned | NeighbourFlags::Proxy)
}

/// A unicast MAC address; the bytes of other links' addresses and of groups give none.
fn mac(bytes: &[u8]) -> Option<Mac> {
    Mac::try_from(bytes).ok().filter(|mac| *mac != Mac::default() && mac[0] & 1 == 0)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A rule of policy routing that asks for the mark.
pub(super) fn mark_rule(message: &RouteNetlinkMessage, command: &str) -> Option<MarkRule> {
    let RouteNetlinkMessage::NewRule(rule) = message else { return None };
    let (mut mark, mut mask, mut priority, mut table) = (None, None, 0, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    // The kernel leaves a mark of 0 out, and shows a mask with each mark.
    let mask = mask.or_else(|| mark.map(|_| u32::MAX)).filter(|mask| *mask != 0)?;
    let not = if rule.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    let text =
        format!("{command} {priority}: {not}from all fwmark {:#x}/{mask:#x} lookup {table}", mark.unwrap_or_default());
    Some(MarkRule { text, mask })
}
