//! A node's tables: what tests and fuzzers start from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_ebpf::{
    abi::{Action, AddressWord, Class, Config, EndpointWord, Entry, Mode, View},
    host::{HostTables, Line, entry, everyone, words},
    reason::Reason,
};
use bulkhead_fixtures::{
    VXLAN_PORT,
    catalogue::{A, B, Family, NODE_A, NODE_B, VNI},
};

/// Selectors of the lab.
pub(crate) mod selector {
    pub(crate) const PEER: u32 = 0;
    pub(crate) const WORLD: u32 = 1;
    pub(crate) const NODE: u32 = 2;
    pub(crate) const NODES: u32 = 3;
    /// In the second word of a row.
    pub(crate) const FAR: u32 = 70;
}

/// Rows of the lab.
pub(crate) mod row {
    pub(crate) const PEER: u16 = 1;
    pub(crate) const WORLD: u16 = 2;
    pub(crate) const OWN_NODE: u16 = 3;
    pub(crate) const OTHER_NODE: u16 = 4;
    pub(crate) const MASQUERADED: u16 = 5;
    pub(crate) const FAR: u16 = 6;
}

/// Slot of [`A`].
pub(crate) const SLOT: u32 = 1;
/// Slot of [`local`].
pub(crate) const LOCAL: u32 = 2;
/// A rule that ends an isolated direction of the lab's policy.
pub(crate) const ISOLATED: u16 = 9;
/// Views: the lab's policy, and none.
pub(crate) const CLOSED: u32 = 1;
pub(crate) const OPEN: u32 = 2;
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Another endpoint of the node.
pub(crate) fn local(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, 1, 6).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 6).into(),
    }
}

/// Echo requests of both families.
fn echo(entry: Entry) -> [Line; 2] {
    [(Class::Icmp, 8 << 8), (Class::Icmp6, 128 << 8)].map(|(class, value)| Line::new(class, value..=value, entry))
}

/// The policy of `A`'s ingress.
pub(crate) fn ingress(allow: &dyn Fn(u16, u32) -> Entry) -> Vec<Line> {
    let [echo4, echo6] = echo(allow(3, selector::PEER));
    vec![
        Line::new(Class::Tcp, 22..=22, entry(Action::Deny, Reason::DeniedByRule, 6, &[selector::PEER])),
        Line::new(Class::Tcp, 5432..=5432, allow(1, selector::PEER)),
        Line::new(Class::Udp, 53..=53, allow(2, selector::PEER)),
        echo4,
        echo6,
        Line::everything(allow(4, selector::NODE)),
        Line::new(Class::Tcp, 8443..=8443, allow(5, selector::WORLD)),
        Line::new(Class::Sctp, 9000..=9100, allow(7, selector::PEER)),
        Line::new(Class::Other, 47..=47, allow(8, selector::PEER)),
        Line::everything(everyone(Action::Deny, Reason::Isolated, ISOLATED)),
    ]
}

/// The policy of `A`'s egress.
pub(crate) fn egress(allow: &dyn Fn(u16, u32) -> Entry) -> Vec<Line> {
    let [echo4, echo6] = echo(allow(4, selector::PEER));
    vec![
        Line::new(Class::Tcp, 8080..=8080, allow(1, selector::PEER)),
        Line::new(Class::Udp, 53..=53, allow(2, selector::WORLD)),
        Line::new(Class::Udp, 0..=u16::MAX, allow(3, selector::NODES)),
        echo4,
        echo6,
        Line::everything(everyone(Action::Deny, Reason::Isolated, ISOLATED)),
    ]
}

pub(crate) fn allow(rule: u16, selector: u32) -> Entry {
    entry(Action::Allow, Reason::Rule, rule, &[selector])
}

/// Tables of a node: `A` in slot 1, isolated; [`local`] in slot 2, not; `B` behind the other node. (For the underlay the node is
/// `NODE_B`, to which the catalogue's frames go.)
pub(crate) fn tables() -> HostTables {
    let mut tables = HostTables::default();
    tables.now = 1_000_000;
    tables.config =
        Config { tunnel_ports: [VXLAN_PORT, 4789, 0, 0], budget: 1_000_000, vtep_count: 2, ..Config::default() };
    tables.config.vteps[0] = words(NODE_B.v4.into());
    tables.config.vteps[1] = words(NODE_B.v6.into());
    for (row, selectors) in [
        (row::PEER, &[selector::PEER][..]),
        (row::WORLD, &[selector::WORLD]),
        (row::OWN_NODE, &[selector::NODE, selector::NODES]),
        (row::OTHER_NODE, &[selector::NODES]),
        (row::MASQUERADED, &[selector::WORLD, selector::NODES]),
        (row::FAR, &[selector::FAR]),
    ] {
        tables.set_row(row.into(), selectors);
    }
    for family in FAMILIES {
        let (zero, subnet, whole): (IpAddr, _, _) = match family {
            Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), 24, 32),
            Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), 64, 128),
        };
        tables.set_address(VNI, A.ip(family), 0, SLOT as u16, 0);
        tables.set_address(VNI, local(family), row::PEER, LOCAL as u16, 0);
        tables.set_address(VNI, B.ip(family), row::PEER, 0, AddressWord::ENCAPSULATED);
        tables.set_address(VNI, NODE_A.ip(family), row::OWN_NODE, 0, AddressWord::NODE);
        tables.set_address(VNI, NODE_B.ip(family), row::OTHER_NODE, 0, AddressWord::NODE);
        tables.set_prefix(VNI, zero, 0, row::WORLD, 0);
        for node in [NODE_A, NODE_B] {
            tables.set_prefix(VNI, node.ip(family), whole, row::MASQUERADED, 0);
        }
        let overlay = AddressWord::OVERLAY | AddressWord::ENCAPSULATED;
        tables.set_prefix(VNI, B.ip(family), subnet, 0, overlay);
    }
    tables.set_info(SLOT, VNI, A.mac, &[A.v4.into(), A.v6.into()]);
    tables.set_info(LOCAL, VNI, [2, 0x42, 10, 244, 1, 6], &[local(Family::V4), local(Family::V6)]);
    for vtep in [NODE_A.v4.into(), NODE_A.v6.into()] {
        tables.set_vtep(VNI, vtep);
    }
    tables.set_owner(VNI, A.v4.into(), 24, NODE_A.v4.into());
    tables.set_owner(VNI, A.v6.into(), 64, NODE_A.v4.into());
    tables.set_policy(1, &ingress(&allow));
    tables.set_policy(2, &egress(&allow));
    tables.set_policy(3, &[Line::everything(everyone(Action::Allow, Reason::NotIsolated, 0))]);
    tables.set_view(CLOSED, 1, 2, 0);
    tables.set_view(OPEN, 3, 3, View::OPEN_INGRESS | View::OPEN_EGRESS);
    tables.words.insert(SLOT, EndpointWord::new(1, CLOSED, Mode::Enforce));
    tables.words.insert(LOCAL, EndpointWord::new(1, OPEN, Mode::Enforce));
    tables
}
