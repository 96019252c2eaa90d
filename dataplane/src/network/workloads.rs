//! Who runs here: veth pairs that lead into other network namespaces, and what their far ends are called and have for addresses.
//!
//! Nothing enters another namespace: the kernel tells of it by the id that this namespace has for it. That needs `CAP_NET_ADMIN` in the user namespace
//! that owns the other one.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};

use super::{
    facts::{Assigned, Link},
    get,
    netlink::{self, Netlink},
};
use crate::node::{ContainerLink, Containers, NodeError};

/// The far end of a pair.
#[derive(Clone, Debug)]
struct Inside {
    name: String,
    addresses: Vec<IpAddr>,
}

/// Far ends that were read, by the index of the near end and the id of their namespace. They are read until their container is guarded: by then it has the
/// addresses by which it is known, and keeps them for our purposes as long as the pair is there.
#[derive(Debug, Default)]
pub struct KnownInside(BTreeMap<(u32, i32), Inside>);

impl KnownInside {
    /// Has the far ends of those that are not guarded read again the next time: they may have had some of their addresses alone.
    pub fn forget_unguarded(&mut self, containers: &Containers) {
        let guarded = |index: u32| containers.links.iter().any(|link| link.index == index && link.guarded);
        self.0.retain(|(index, _), _| guarded(*index));
    }

    /// All pairs that lead out of the calling thread's network namespace. `shut` and `guarded` of none are set.
    ///
    /// # Errors
    /// [`NodeError::Kernel`] when the links of this namespace cannot be listed. A far end that cannot be read says so itself.
    pub fn containers(&mut self) -> Result<Containers, NodeError> {
        let known = &mut self.0;
        netlink::run_strictly("look for containers' links", async |netlink| {
            let links = netlink.list(RouteNetlinkMessage::GetLink(LinkMessage::default()), Link::read).await?;
            let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
            let mut found = Containers::default();
            for link in links.iter().filter(|link| link.veth) {
                let Some(netns) = link.lower_netns else { continue };
                let read = match known.get(&(link.index, netns)) {
                    Some(inside) => Ok(inside.clone()),
                    None => inside(netlink, link, netns).await,
                };
                let mut container = ContainerLink {
                    link: link.name.clone(),
                    index: link.index,
                    netns,
                    bridge: link.master.and_then(name),
                    ..ContainerLink::default()
                };
                match read {
                    Ok(inside) => {
                        (container.inside, container.addresses) = (inside.name.clone(), inside.addresses.clone());
                        // One that has none yet may get some.
                        if !inside.addresses.is_empty() {
                            known.insert((link.index, netns), inside);
                        }
                    }
                    Err(error) => container.unread = error.to_string(),
                }
                found.links.push(container);
            }
            known.retain(|(index, netns), _| {
                links.iter().any(|link| (link.index, link.lower_netns) == (*index, Some(*netns)))
            });
            found.links.sort_by_key(|link| link.index);
            found.names = links.into_iter().map(|link| link.name).collect();
            Ok(found)
        })
    }
}

async fn inside(netlink: &mut Netlink, near: &Link, netns: i32) -> io::Result<Inside> {
    // An index that is equal on both sides may be left out.
    let index = near.lower.unwrap_or(near.index);
    let far = get(netlink, index, LinkAttribute::IfNetnsId(netns)).await?;
    // Between the requests the container may have gone, and its index to another link.
    if !far.veth || far.lower.unwrap_or(far.index) != near.index {
        return Err(io::Error::other("the container's end of the veth pair changed while it was read"));
    }
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.attributes.push(AddressAttribute::TargetNetNsId(netns));
    let assigned = netlink.list(RouteNetlinkMessage::GetAddress(message), Assigned::read).await?;
    let mut addresses: Vec<_> = assigned
        .into_iter()
        .filter(|assigned| assigned.link == index)
        .map(|assigned| assigned.address)
        .filter(|address| !local(*address))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Inside { name: far.name, addresses })
}

/// Says nothing of who has it.
fn local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address) || address.is_loopback(),
    }
}
