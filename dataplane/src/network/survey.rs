//! What the network is like beside what the agent makes of it, for whoever decides whether to install one.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{
    facts::{Fdb, Link},
    overlay::Network,
};

/// Links, VXLAN devices and routes of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// VXLAN devices, by name.
    pub devices: Vec<VxlanDevice>,
    /// Links, loopback left out, by index.
    pub links: Vec<SurveyedLink>,
    /// Best routes of the main table that have a gateway and no VXLAN device, default routes left out, by prefix.
    pub plain: Vec<PlainRoute>,
}

/// A VXLAN device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VxlanDevice {
    /// Name.
    pub device: String,
    /// VNI; `None` for a device that takes it from each packet (`external`).
    pub vni: Option<u32>,
    /// UDP port.
    pub port: u16,
    /// Own VTEP address.
    pub own: Option<IpAddr>,
    /// Takes forwarding entries from packets.
    pub learning: bool,
    /// Its socket, and so the underlay, is in another network namespace.
    pub elsewhere: bool,
    /// Links that carry it.
    pub underlays: Vec<String>,
    /// Static forwarding entries that name a VTEP.
    pub permanent: usize,
    /// VTEPs that only learned entries name, which bind nothing.
    pub learned: Vec<IpAddr>,
    /// Other nodes' VTEPs that static entries name.
    pub peers: usize,
    /// Prefixes and addresses that these own.
    pub owned: usize,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SurveyedLink {
    /// Name.
    pub name: String,
    /// Index, unique within the network namespace only.
    pub index: u32,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Carries a VXLAN device.
    pub underlay: bool,
    /// The host side of a veth pair that is a port of a bridge, as those of containers are.
    pub port: bool,
    /// XDP programs: where each runs, and its id.
    pub xdp: Vec<(XdpPlace, u32)>,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpPlace {
    /// In the driver.
    Native,
    /// Behind the driver.
    Generic,
    /// On the card.
    Hardware,
}

/// A route by which packets leave as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlainRoute {
    /// Destination.
    pub prefix: IpNetwork,
    /// Next hop; `None` for several.
    pub gateway: Option<IpAddr>,
    /// Links by which it leaves.
    pub links: Vec<String>,
    /// What it leads to.
    pub reach: Reach,
}

/// What is known of the place that a plain route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Addresses that an overlay binds to a VTEP, which this route takes out of it.
    Overlay,
    /// The gateway is another node's VTEP address: host-gw, or flannel's DirectRouting.
    Node,
    /// A gateway of which no overlay knows: another node of host-gw, or a router.
    Gateway,
}

impl Network {
    pub(super) fn survey(&self, learned: &[Fdb]) -> Survey {
        let mut devices: Vec<_> = self.links.iter().filter_map(|link| self.device(link, learned)).collect();
        devices.sort_by(|a, b| a.device.cmp(&b.device));
        let underlays: BTreeSet<&str> =
            devices.iter().flat_map(|device| device.underlays.iter().map(String::as_str)).collect();
        let links = self.links.iter().filter(|link| link.name != "lo").map(|link| SurveyedLink {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            underlay: underlays.contains(link.name.as_str()),
            port: link.veth && link.master.is_some(),
            xdp: link.xdp.clone(),
        });
        let mut links: Vec<_> = links.collect();
        links.sort_by_key(|link| link.index);
        Survey { links, plain: self.plain_routes(), devices }
    }

    fn device(&self, link: &Link, learned: &[Fdb]) -> Option<VxlanDevice> {
        let vxlan = link.vxlan.as_ref()?;
        let overlay = self.overlays().into_iter().find(|overlay| overlay.device == link.name);
        let peers = overlay.map(|overlay| overlay.peers).unwrap_or_default();
        let elsewhere = link.lower_netns.is_some();
        let only = learned.iter().filter(|entry| entry.link == link.index).map(|entry| entry.vtep);
        let only: BTreeSet<IpAddr> = only.filter(|vtep| peers.iter().all(|(peer, _)| peer != vtep)).collect();
        Some(VxlanDevice {
            device: link.name.clone(),
            vni: vxlan.vni,
            port: vxlan.port,
            own: vxlan.local,
            learning: vxlan.learning,
            elsewhere,
            underlays: if elsewhere { Vec::new() } else { self.underlays(vxlan) },
            permanent: self.fdb.iter().filter(|entry| entry.link == link.index).count(),
            learned: only.into_iter().collect(),
            owned: peers.iter().map(|(_, prefixes)| prefixes.len()).sum(),
            peers: peers.len(),
        })
    }

    fn plain_routes(&self) -> Vec<PlainRoute> {
        let overlays = self.overlays();
        let peers = || overlays.iter().flat_map(|overlay| &overlay.peers);
        // A bridge that has a VXLAN device as its port leads into the overlay too.
        let devices = self.links.iter().filter(|link| link.vxlan.is_some());
        let inside: BTreeSet<u32> = devices.flat_map(|link| [Some(link.index), link.master]).flatten().collect();
        let best = self.best_routes();
        let plain = best.values().flatten().filter(|route| {
            let by_gateway = route.gateway.is_some() || route.links.len() > 1;
            by_gateway && route.prefix.prefix() > 0 && route.links.iter().all(|link| !inside.contains(link))
        });
        let named = |index: &u32| self.links.iter().find(|link| link.index == *index).map(|link| link.name.clone());
        plain
            .map(|route| PlainRoute {
                prefix: route.prefix,
                gateway: route.gateway,
                links: route.links.iter().filter_map(named).collect(),
                reach: if peers().flat_map(|(_, owned)| owned).any(|owned| within(route.prefix, *owned)) {
                    Reach::Overlay
                } else if peers().any(|(vtep, _)| Some(*vtep) == route.gateway) {
                    Reach::Node
                } else {
                    Reach::Gateway
                },
            })
            .collect()
    }
}

/// Whether the first prefix is the second one or a part of it: a longer prefix is taken before a shorter one.
fn within(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.network())
}
