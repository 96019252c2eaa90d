//! What differs between IPv4 and IPv6, so that verdict code is written once and neither family pays for the other.

use crate::{
    abi::{
        AddressKey4, AddressKey6, AddressWord, ENDPOINT_ADDRESSES, EndpointInfo, Flow, FlowKey4, FlowKey6, PrefixKey4,
        PrefixKey6, mapped,
    },
    packet::{self, Frame, Ip, Parsed},
    tables::{FlowRef, Tables},
    verdict::{Case, Outcome},
};

/// An address family.
pub trait Family {
    /// An address as it lies in the packet.
    type Address: Copy + PartialEq;
    /// Key of a flow.
    type FlowKey: Copy + Default;
    /// IPv6.
    const V6: bool;
    /// Size of the IP header without options.
    const HEADER: usize = if Self::V6 { 40 } else { 20 };

    /// Parses the IP header at `offset`.
    ///
    /// # Errors
    /// [`packet::Fault`].
    fn parse<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Ip<Self::Address>>;
    /// IPv6 form of an address; IPv4 as ::ffff:a.b.c.d.
    fn mapped(address: Self::Address) -> [u32; 4];
    /// Which of the endpoint's own addresses this is.
    fn own(info: &EndpointInfo, address: Self::Address) -> Option<u8>;
    /// The endpoint's first address.
    fn first(info: &EndpointInfo) -> Option<Self::Address>;
    /// The address that stands for any, as services name it: see [`crate::abi::ServiceKey`].
    fn any() -> [u32; 4];
    /// Multicast or limited broadcast.
    fn group(address: Self::Address) -> bool;
    /// Key of a flow.
    fn key(
        local: (Self::Address, u8),
        remote: Self::Address,
        local_port: u16,
        remote_port: u16,
        protocol: u8,
    ) -> Self::FlowKey;
    /// Word of a known address, and whether its tag is right: it is not where the entry was given to another address while it was read.
    fn address<T: Tables>(tables: &T, segment: u32, address: Self::Address) -> Option<(AddressWord, bool)>;
    /// Word of the longest prefix.
    fn prefix<T: Tables>(tables: &T, segment: u32, address: Self::Address) -> AddressWord;
    /// A flow of an endpoint.
    fn flow<T: Tables>(tables: &T, slot: u32, key: &Self::FlowKey) -> Option<FlowRef>;
    /// Inserts a flow unless it is there.
    fn insert<T: Tables>(tables: &T, slot: u32, key: &Self::FlowKey, flow: &Flow);
    /// Removes a flow.
    fn remove<T: Tables>(tables: &T, slot: u32, key: &Self::FlowKey);
    /// Asks the lists.
    fn decide<T: Tables>(tables: &T, case: Case<Self::FlowKey, Self::Address>, flow: Option<FlowRef>) -> Outcome;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Address = u32;
    type FlowKey = FlowKey4;
    const V6: bool = false;

    #[inline(always)]
    fn parse<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Ip<u32>> {
        packet::ipv4(frame, offset)
    }

    #[inline(always)]
    fn mapped(address: u32) -> [u32; 4] {
        mapped(address)
    }

    #[inline(always)]
    fn own(info: &EndpointInfo, address: u32) -> Option<u8> {
        for i in 0..ENDPOINT_ADDRESSES {
            if i >= info.ipv4_count as usize {
                break;
            }
            if info.ipv4[i] == address {
                return Some(i as u8);
            }
        }
        None
    }

    #[inline(always)]
    fn first(info: &EndpointInfo) -> Option<u32> {
        (info.ipv4_count > 0).then_some(info.ipv4[0])
    }

    #[inline(always)]
    fn any() -> [u32; 4] {
        mapped(0)
    }

    #[inline(always)]
    fn group(address: u32) -> bool {
        let first = address.to_ne_bytes()[0];
        first & 0xf0 == 0xe0 || address == u32::MAX
    }

    #[inline(always)]
    fn key(local: (u32, u8), remote: u32, local_port: u16, remote_port: u16, protocol: u8) -> FlowKey4 {
        FlowKey4 { local: local.0, remote, local_port, remote_port, protocol, padding: [0; 3] }
    }

    #[inline(always)]
    fn address<T: Tables>(tables: &T, segment: u32, address: u32) -> Option<(AddressWord, bool)> {
        let key = AddressKey4 { segment, address };
        let word = AddressWord(tables.address4(&key)?);
        Some((word, word.tag() == key.tag()))
    }

    #[inline(always)]
    fn prefix<T: Tables>(tables: &T, segment: u32, address: u32) -> AddressWord {
        let key = PrefixKey4 { segment: segment.to_be_bytes(), address: address.to_ne_bytes() };
        AddressWord(tables.prefix4(&key).unwrap_or(0))
    }

    #[inline(always)]
    fn flow<T: Tables>(tables: &T, slot: u32, key: &FlowKey4) -> Option<FlowRef> {
        tables.flow4(slot, key)
    }

    #[inline(always)]
    fn insert<T: Tables>(tables: &T, slot: u32, key: &FlowKey4, flow: &Flow) {
        tables.insert4(slot, key, flow);
    }

    #[inline(always)]
    fn remove<T: Tables>(tables: &T, slot: u32, key: &FlowKey4) {
        tables.remove4(slot, key);
    }

    #[inline(always)]
    fn decide<T: Tables>(tables: &T, case: Case<FlowKey4, u32>, flow: Option<FlowRef>) -> Outcome {
        tables.decide4(case, flow)
    }
}

/// The link-local address that a MAC implies, RFC 4291 appendix A.
#[must_use]
#[inline(always)]
pub const fn link_local(mac: &[u8; 6]) -> [u32; 4] {
    [
        0xfe80_0000_u32.to_be(),
        0,
        u32::from_ne_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff]),
        u32::from_ne_bytes([0xfe, mac[3], mac[4], mac[5]]),
    ]
}

/// Number of the link-local address among an endpoint's own.
pub const LINK_LOCAL: u8 = ENDPOINT_ADDRESSES as u8;

#[inline(always)]
pub(crate) fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    // Not `==`, which may become a call of `bcmp`. The last word differs most often.
    a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
}

impl Family for V6 {
    type Address = [u32; 4];
    type FlowKey = FlowKey6;
    const V6: bool = true;

    #[inline(always)]
    fn parse<F: Frame + ?Sized>(frame: &F, offset: usize) -> Parsed<Ip<[u32; 4]>> {
        packet::ipv6(frame, offset)
    }

    #[inline(always)]
    fn mapped(address: [u32; 4]) -> [u32; 4] {
        address
    }

    #[inline(always)]
    fn own(info: &EndpointInfo, address: [u32; 4]) -> Option<u8> {
        for i in 0..ENDPOINT_ADDRESSES {
            if i >= info.ipv6_count as usize {
                break;
            }
            if same(&info.ipv6[i], &address) {
                return Some(i as u8);
            }
        }
        same(&link_local(&info.mac), &address).then_some(LINK_LOCAL)
    }

    #[inline(always)]
    fn first(info: &EndpointInfo) -> Option<[u32; 4]> {
        (info.ipv6_count > 0).then_some(info.ipv6[0])
    }

    #[inline(always)]
    fn any() -> [u32; 4] {
        [0; 4]
    }

    #[inline(always)]
    fn group(address: [u32; 4]) -> bool {
        address[0].to_ne_bytes()[0] == 0xff
    }

    #[inline(always)]
    fn key(local: ([u32; 4], u8), remote: [u32; 4], local_port: u16, remote_port: u16, protocol: u8) -> FlowKey6 {
        FlowKey6 { remote, local_port, remote_port, protocol, local: local.1, padding: [0; 2] }
    }

    #[inline(always)]
    fn address<T: Tables>(tables: &T, segment: u32, address: [u32; 4]) -> Option<(AddressWord, bool)> {
        let key = AddressKey6 { segment, address };
        let word = AddressWord(tables.address6(&key)?);
        Some((word, word.tag() == key.tag()))
    }

    #[inline(always)]
    fn prefix<T: Tables>(tables: &T, segment: u32, address: [u32; 4]) -> AddressWord {
        AddressWord(tables.prefix6(&prefix_key(segment, address)).unwrap_or(0))
    }

    #[inline(always)]
    fn flow<T: Tables>(tables: &T, slot: u32, key: &FlowKey6) -> Option<FlowRef> {
        tables.flow6(slot, key)
    }

    #[inline(always)]
    fn insert<T: Tables>(tables: &T, slot: u32, key: &FlowKey6, flow: &Flow) {
        tables.insert6(slot, key, flow);
    }

    #[inline(always)]
    fn remove<T: Tables>(tables: &T, slot: u32, key: &FlowKey6) {
        tables.remove6(slot, key);
    }

    #[inline(always)]
    fn decide<T: Tables>(tables: &T, case: Case<FlowKey6, [u32; 4]>, flow: Option<FlowRef>) -> Outcome {
        tables.decide6(case, flow)
    }
}

/// Key of a trie with IPv6 addresses.
#[must_use]
#[inline(always)]
pub const fn prefix_key(segment: u32, address: [u32; 4]) -> PrefixKey6 {
    let a = address[0].to_ne_bytes();
    let b = address[1].to_ne_bytes();
    let c = address[2].to_ne_bytes();
    let d = address[3].to_ne_bytes();
    PrefixKey6 {
        segment: segment.to_be_bytes(),
        address: [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]],
    }
}
