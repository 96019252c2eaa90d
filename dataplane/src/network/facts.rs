//! What is used of rtnetlink's messages.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags},
    link::{InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkInfo, LinkXdp},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteProtocol, RouteType, RouteVia},
    rule::{RuleAttribute, RuleFlags},
};

use super::{MarkRule, XdpPlace};
use crate::node::Port;

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
    /// A bridge that keeps VLANs apart.
    pub(super) filters_vlans: bool,
    /// A port of a bridge that reaches no other such port.
    pub(super) isolated: bool,
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
    /// How the node forwards what comes by it, given the link that it is a port of.
    pub(super) fn port(&self, master: Option<&Self>) -> Port {
        let through = match master {
            // Somebody else's switch, or a bridge that does not bring everything everywhere, has the last word.
            Some(master) if !master.bridge || master.filters_vlans || self.isolated => None,
            Some(bridge) => bridge.mac.map(|router| (bridge.index, router)),
            None if self.master.is_some() => None,
            None => self.mac.map(|router| (0, router)),
        };
        through.map(|(bridge, router)| Port { link: self.index, bridge, router }).unwrap_or_default()
    }

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
                            LinkInfo::Data(InfoData::Bridge(infos)) => {
                                link.filters_vlans = infos.contains(&InfoBridge::VlanFiltering(true));
                            }
                            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                                link.isolated = infos.contains(&InfoBridgePort::Isolated(true));
                            }
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

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn read(index: u32, attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        Link::read(&RouteNetlinkMessage::NewLink(message)).unwrap()
    }

    fn bridge(filters_vlans: bool) -> Link {
        let infos = vec![InfoBridge::AgeingTime(300), InfoBridge::VlanFiltering(filters_vlans)];
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(infos))];
        read(10, vec![LinkAttribute::Address(vec![2, 0, 0, 0, 0, 10]), LinkAttribute::LinkInfo(info)])
    }

    fn veth(master: Option<u32>, isolated: bool) -> Link {
        let infos = vec![InfoBridgePort::Isolated(isolated)];
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::PortData(InfoPortData::BridgePort(infos))];
        let mut attributes = vec![LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]), LinkAttribute::LinkInfo(info)];
        attributes.extend(master.map(LinkAttribute::Controller));
        read(7, attributes)
    }

    #[test]
    fn a_port_says_nothing_where_another_has_the_last_word() {
        let by = |bridge, router| Port { link: 7, bridge, router: [2, 0, 0, 0, 0, router] };
        assert_eq!(veth(None, false).port(None), by(0, 7));
        assert_eq!(veth(Some(10), false).port(Some(&bridge(false))), by(10, 10));
        // VLANs; an isolated port; a switch of others; one that has gone.
        assert_eq!(veth(Some(10), false).port(Some(&bridge(true))), Port::default());
        assert_eq!(veth(Some(10), true).port(Some(&bridge(false))), Port::default());
        assert_eq!(veth(Some(10), false).port(Some(&Link { bridge: false, ..bridge(false) })), Port::default());
        assert_eq!(veth(Some(10), false).port(None), Port::default());
    }
}
