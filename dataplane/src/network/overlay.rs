//! From links, routes, neighbours and forwarding entries to VXLAN devices and who owns what behind them. No input or
//! output here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::facts::{Assigned, Fdb, Link, Mac, Neighbour, Route, Vxlan};
use crate::node::{Discovered, DiscoveredOverlay, Port};

/// Tables of one network namespace.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Assigned>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) fdb: Vec<Fdb>,
}

impl Network {
    pub(super) fn discovered(&self) -> Discovered {
        Discovered { addresses: self.node_addresses(), overlays: self.overlays(), ..Discovered::default() }
    }

    /// Own addresses, sorted, without those of loopback, and of those of one link with what a bridge has: every veth pair has such addresses.
    pub(super) fn node_addresses(&self) -> Vec<IpAddr> {
        let bridges: BTreeSet<u32> = self.links.iter().filter(|link| link.bridge).map(|link| link.index).collect();
        let own = self.addresses.iter().filter(|assigned| match assigned.address {
            IpAddr::V4(address) => !address.is_loopback(),
            IpAddr::V6(address) if address.is_unicast_link_local() => bridges.contains(&assigned.link),
            IpAddr::V6(address) => !address.is_loopback(),
        });
        own.map(|assigned| assigned.address).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How the node forwards what comes by its links, by their indexes.
    pub(super) fn ports(&self) -> BTreeMap<u32, Port> {
        let links: BTreeMap<u32, &Link> = self.links.iter().map(|link| (link.index, link)).collect();
        let master = |link: &Link| links.get(&link.master?).copied();
        self.links.iter().map(|link| (link.index, link.port(master(link)))).collect()
    }

    /// VXLAN devices that have a VNI, by name.
    pub(super) fn overlays(&self) -> Vec<DiscoveredOverlay> {
        let routes = self.best_routes();
        let mut overlays: Vec<_> = self.links.iter().filter_map(|link| self.overlay(link, &routes)).collect();
        overlays.sort_by(|a, b| a.device.cmp(&b.device));
        overlays
    }

    fn overlay(&self, device: &Link, routes: &Routes<'_>) -> Option<DiscoveredOverlay> {
        let vxlan = device.vxlan.as_ref()?;
        let vni = vxlan.vni?;
        let elsewhere = device.lower_netns.is_some();
        let peers = self.peers(device, vni, vxlan.local, routes);
        Some(DiscoveredOverlay {
            device: device.name.clone(),
            vni,
            port: vxlan.port,
            own: vxlan.local,
            underlays: if elsewhere { Vec::new() } else { self.underlays(vxlan) },
            peers: peers.into_iter().map(|(vtep, prefixes)| (vtep, prefixes.into_iter().collect())).collect(),
        })
    }

    /// The link that the device is bound to; else those that have its address; else those of the default route.
    pub(super) fn underlays(&self, vxlan: &Vxlan) -> Vec<String> {
        // Nothing comes from outside by loopback, where some keep a VTEP's address.
        let names = |indexes: BTreeSet<u32>| -> Vec<String> {
            let links = self.links.iter().filter(|link| indexes.contains(&link.index) && link.name != "lo");
            links.map(|link| link.name.clone()).collect()
        };
        if let Some(bound) = vxlan.link {
            return names([bound].into());
        }
        let holders = self.addresses.iter().filter(|assigned| Some(assigned.address) == vxlan.local);
        let holders = names(holders.map(|assigned| assigned.link).collect());
        if !holders.is_empty() {
            return holders;
        }
        let reaches = |route: &&Route| vxlan.local.is_none_or(|local| local.is_ipv4() == route.prefix.is_ipv4());
        let default = self.routes.iter().filter(|route| route.prefix.prefix() == 0).filter(reaches);
        names(default.flat_map(|route| route.links.iter().copied()).collect())
    }

    /// VTEPs of static entries, and what each owns.
    fn peers(
        &self,
        device: &Link,
        vni: u32,
        own: Option<IpAddr>,
        routes: &Routes<'_>,
    ) -> BTreeMap<IpAddr, BTreeSet<IpNetwork>> {
        let is_own = |vtep| Some(vtep) == own || self.addresses.iter().any(|assigned| assigned.address == vtep);
        let on_device = |index: u32| index == device.index || Some(index) == device.master;

        let mut peers = BTreeMap::<_, BTreeSet<_>>::new();
        let mut vteps = Claims::<Mac, IpAddr>::default();
        for entry in self.fdb.iter().filter(|entry| entry.link == device.index && entry.vni.is_none_or(|of| of == vni))
        {
            let vtep = Some(entry.vtep).filter(|vtep| !is_own(*vtep));
            if let Some(vtep) = vtep {
                peers.entry(vtep).or_default();
            }
            if let Some(mac) = entry.mac {
                vteps.add(mac, vtep);
            }
        }
        let mut macs = Claims::<IpAddr, Mac>::default();
        for entry in self.neighbours.iter().filter(|entry| on_device(entry.link)) {
            macs.add(entry.address, Some(entry.mac));
        }
        let behind = |address| vteps.sole(&macs.sole(&address)?);

        let mut owners = Claims::<IpNetwork, IpAddr>::default();
        for (prefix, best) in routes {
            if !best.iter().any(|route| route.links.iter().any(|index| on_device(*index))) {
                continue;
            }
            for route in best {
                let binds = !route.learned && route.links.iter().all(|index| on_device(*index));
                owners.add(*prefix, route.gateway.filter(|_| binds).and_then(behind));
            }
        }
        for address in macs.keys() {
            owners.add(IpNetwork::from(*address), behind(*address));
        }
        let owners: BTreeMap<_, _> = owners.keys().filter_map(|prefix| Some((*prefix, owners.sole(prefix)?))).collect();
        let lengths: BTreeSet<u8> = owners.keys().map(IpNetwork::prefix).collect();
        for (prefix, vtep) in &owners {
            // flannel's gateways, for one: the prefix around them belongs to the same VTEP.
            if around(&owners, &lengths, prefix) != Some(vtep) {
                peers.entry(*vtep).or_default().insert(*prefix);
            }
        }
        peers
    }

    /// The routes of the lowest metric to each prefix: those that the kernel takes.
    pub(super) fn best_routes(&self) -> Routes<'_> {
        let mut best = Routes::new();
        for route in &self.routes {
            let kept = best.entry(route.prefix).or_default();
            kept.retain(|other| other.metric <= route.metric);
            if kept.first().is_none_or(|other| other.metric == route.metric) {
                kept.push(route);
            }
        }
        best
    }
}

type Routes<'a> = BTreeMap<IpNetwork, Vec<&'a Route>>;

/// The owner of the longest prefix that is shorter than this one and holds it.
fn around<'a>(
    owners: &'a BTreeMap<IpNetwork, IpAddr>,
    lengths: &BTreeSet<u8>,
    prefix: &IpNetwork,
) -> Option<&'a IpAddr> {
    lengths.range(..prefix.prefix()).rev().find_map(|length| {
        let network = IpNetwork::new(prefix.ip(), *length).ok()?.network();
        owners.get(&IpNetwork::new(network, *length).ok()?)
    })
}

/// Who is said to have what. What is said differently, or also to be nobody's, is nobody's.
#[derive(Debug)]
struct Claims<K, V>(BTreeMap<K, BTreeSet<Option<V>>>);

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V: Ord + Copy> Claims<K, V> {
    fn add(&mut self, key: K, value: Option<V>) {
        self.0.entry(key).or_default().insert(value);
    }

    fn sole(&self, key: &K) -> Option<V> {
        let said = self.0.get(key)?;
        said.first().copied().flatten().filter(|_| said.len() == 1)
    }

    fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u32 = 7;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A network with one device; each route is given as prefix and number of the node behind it, whose gateway is
    /// 10.255.0.n, MAC 2::n and VTEP 192.0.2.n.
    fn network(routes: &[(&str, u8)]) -> Network {
        let nodes: BTreeSet<u8> = routes.iter().map(|(_, node)| *node).collect();
        let mac = |node: u8| [2, 0, 0, 0, 0, node];
        let gateway = |node: u8| IpAddr::from([10, 255, 0, node]);
        let route = |(prefix, node): &(&str, u8)| Route {
            prefix: net(prefix),
            gateway: Some(gateway(*node)),
            links: vec![DEVICE],
            metric: 0,
            learned: false,
        };
        let vxlan = Vxlan { vni: Some(1), port: 8472, local: Some(ip("192.0.2.1")), ..Vxlan::default() };
        Network {
            links: vec![Link { name: "vx".to_owned(), index: DEVICE, vxlan: Some(vxlan), ..Link::default() }],
            addresses: Vec::new(),
            routes: routes.iter().map(route).collect(),
            neighbours: nodes
                .iter()
                .map(|node| Neighbour { link: DEVICE, address: gateway(*node), mac: mac(*node) })
                .collect(),
            fdb: nodes
                .iter()
                .map(|node| Fdb { link: DEVICE, mac: Some(mac(*node)), vtep: [192, 0, 2, *node].into(), vni: None })
                .collect(),
        }
    }

    fn owned(network: &Network, node: u8) -> Vec<String> {
        let overlays = network.overlays();
        let peer = overlays[0].peers.iter().find(|(vtep, _)| *vtep == IpAddr::from([192, 0, 2, node]));
        peer.expect("a known VTEP").1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_adds_nothing_is_left_out() {
        let network = network(&[("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("10.1.1.0/24", 2), ("10.1.1.7/32", 2)]);
        // The gateways lie in the first prefix: node 2's adds nothing, node 3's takes its address out of it. The /24
        // lies between, in node 3's prefix.
        assert_eq!(owned(&network, 2), ["10.0.0.0/8", "10.1.1.0/24"]);
        assert_eq!(owned(&network, 3), ["10.1.0.0/16", "10.255.0.3/32"]);
    }

    #[test]
    fn a_mac_behind_two_vteps_is_behind_neither() {
        let mut network = network(&[("10.2.0.0/16", 2), ("10.3.0.0/16", 3)]);
        let mut other = network.fdb[0];
        other.vtep = ip("192.0.2.3");
        network.fdb.push(other);
        assert_eq!(owned(&network, 2), [""; 0]);
        assert_eq!(owned(&network, 3), ["10.3.0.0/16", "10.255.0.3/32"]);
        // Nor when one of the two is this node.
        network.fdb[2].vtep = ip("192.0.2.1");
        assert_eq!(owned(&network, 2), [""; 0]);
    }

    #[test]
    fn this_nodes_own_addresses_are_no_peers() {
        let mut network = network(&[("10.2.0.0/16", 2), ("10.1.0.0/16", 1)]);
        assert_eq!(network.overlays()[0].peers.len(), 1);
        network.addresses.push(Assigned { link: 3, address: ip("192.0.2.2") });
        assert_eq!(network.overlays()[0].peers, []);
    }

    #[test]
    fn routes_of_equal_worth_must_agree() {
        for (gateway, links) in [(Some(ip("10.255.0.3")), vec![DEVICE]), (None, vec![3]), (None, vec![DEVICE, DEVICE])]
        {
            let mut network = network(&[("10.2.0.0/16", 2), ("10.3.0.0/16", 3)]);
            network.routes.push(Route { gateway, links, ..network.routes[0].clone() });
            assert_eq!(owned(&network, 2), ["10.255.0.2/32"]);
            // A worse one has no say.
            network.routes[2].metric = 1;
            assert_eq!(owned(&network, 2), ["10.2.0.0/16", "10.255.0.2/32"]);
        }
    }

    #[test]
    fn node_addresses_are_sorted_and_leave_out_what_workloads_do_not_reach() {
        let addresses = ["2001:db8::1", "169.254.20.10", "fe80::1", "192.0.2.1", "127.0.0.5", "::1", "192.0.2.1"];
        let mut addresses = addresses.map(|address| Assigned { link: 1, address: ip(address) }).to_vec();
        addresses.push(Assigned { link: 2, address: ip("fe80::2") });
        let links = vec![Link { index: 2, bridge: true, ..Link::default() }];
        let network = Network { addresses, links, ..Network::default() };
        let own = ["169.254.20.10", "192.0.2.1", "2001:db8::1", "fe80::2"].map(ip);
        assert_eq!(network.node_addresses(), own);
    }
}
