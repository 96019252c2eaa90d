//! The host's side of a container's interface.

use std::{fs::File, io, path::Path};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Code, Error};
use crate::{netlink, netns, network::Link};

/// Name and index of the link on the host that is the other end of the interface of that name in a network namespace.
///
/// # Errors
/// There is no such namespace or interface, or it is not one end of a veth pair whose other end is here.
pub(super) fn host_side(netns: &Path, ifname: &str) -> Result<(String, u32), Error> {
    let bad = |why: String| {
        Error::new(
            Code::Link,
            format!("interface {ifname} in {}: {why}", netns.display()),
            "`bulkhead-cni` guards veth pairs: it stands behind a plugin that makes one, such as bridge or ptp",
        )
    };
    let inner = File::open(netns)
        .and_then(|netns| {
            netns::within(&netns, || get(LinkMessage::default(), Some(LinkAttribute::IfName(ifname.to_owned()))))
        })
        .map_err(|error| bad(error.to_string()))?;
    if !inner.veth {
        return Err(bad("it is no end of a veth pair".to_owned()));
    }
    // An index that is equal on both sides may be left out.
    let index = inner.lower.unwrap_or(inner.index);
    let mut message = LinkMessage::default();
    message.header.index = index;
    let outer =
        get(message, None).map_err(|error| bad(format!("its other end, link {index}, is not here: {error}")))?;
    // Indexes repeat in namespaces: this must be the pair of that one.
    if !outer.veth || outer.lower.unwrap_or(outer.index) != inner.index || outer.lower_netns.is_none() {
        return Err(bad(format!("its other end is not link {index} of this network namespace")));
    }
    Ok((outer.name, outer.index))
}

fn get(mut message: LinkMessage, attribute: Option<LinkAttribute>) -> io::Result<Link> {
    message.attributes.extend(attribute);
    let mut found = None;
    netlink::exchange(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST | NLM_F_ACK, |answer| {
        found = Link::read(&answer).or(found.take());
    })?;
    found.ok_or_else(|| io::Error::other("the kernel answered with something else than a link"))
}
