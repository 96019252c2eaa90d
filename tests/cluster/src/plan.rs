//! Addresses, which are the same in all clusters: none of them leaves its namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// Of the underlay.
pub(crate) const MTU: u32 = 1500;
/// Host number of the control plane; nodes have 1 and up.
const CONTROL: u8 = 254;
/// Pods of all nodes.
pub(crate) const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// Addresses of Services.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// Of the Service that leads to the API server.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Of the Service that leads to CoreDNS.
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";

/// What kube-proxy translates Service addresses with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// Rules of iptables.
    #[default]
    Iptables,
    /// A table of nftables.
    Nftables,
}

impl ProxyMode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// How flannel takes packets from node to node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Encapsulated.
    #[default]
    Vxlan,
    /// Plain where the underlay leads there at once, as it does here, else encapsulated.
    DirectRouting,
    /// Plain, and there is no VXLAN device.
    HostGw,
}

impl Backend {
    /// As flannel's settings have it.
    pub(crate) fn settings(self) -> Value {
        match self {
            Self::Vxlan => json!({ "Type": "vxlan" }),
            Self::DirectRouting => json!({ "Type": "vxlan", "DirectRouting": true }),
            Self::HostGw => json!({ "Type": "host-gw" }),
        }
    }
}

/// What differs between clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: u8,
    pub(crate) proxy: ProxyMode,
    pub(crate) dual_stack: bool,
    pub(crate) backend: Backend,
    /// As the controller manager has it.
    pub(crate) controllers: &'static str,
    /// Whose requests are written down.
    pub(crate) audited: Option<&'static str>,
}

impl Plan {
    /// As many as there are families.
    fn families<T>(self, both: [T; 2]) -> impl Iterator<Item = T> {
        both.into_iter().take(1 + usize::from(self.dual_stack))
    }

    /// Joined as options and fields of Kubernetes have it.
    pub(crate) fn list<T: ToString>(self, both: [T; 2]) -> String {
        self.families(both).map(|one| one.to_string()).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn services(self) -> String {
        self.list(SERVICES)
    }

    pub(crate) fn pods(self) -> String {
        self.list(PODS)
    }

    /// A host's addresses with their prefixes.
    pub(crate) fn underlay(self, host: u8) -> impl Iterator<Item = IpNetwork> {
        let [v4, v6] = underlay(host);
        self.families([network(v4, 24), network(v6, 64)])
    }

    /// Prefixes of a node's pods.
    pub(crate) fn pods_of(self, node: u8) -> Vec<IpNetwork> {
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, 0);
        self.families([network(Ipv4Addr::new(10, 244, node, 0).into(), 24), network(v6.into(), 64)]).collect()
    }
}

/// Both addresses of a host.
pub(crate) fn underlay(host: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into());
    [Ipv4Addr::new(172, 31, 77, host).into(), v6.into()]
}

/// Address of the API server.
pub(crate) fn control() -> IpAddr {
    underlay(CONTROL)[0]
}

pub(crate) fn control_host() -> u8 {
    CONTROL
}

fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(address, prefix).expect("prefix lengths here are constants of the family")
}
