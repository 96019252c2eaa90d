//! What the network says: links, addresses, VXLAN devices and whom their permanent entries bind.
//!
//! Everything here concerns the network namespace of the calling thread.

mod facts;
mod netlink;
mod overlay;
mod survey;
mod watch;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
};

use nix::errno::Errno;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkMessage},
    neighbour::NeighbourMessage,
    route::RouteMessage,
    rule::RuleMessage,
};

pub(crate) use self::facts::Link;
pub use self::{
    facts::Mac,
    survey::{PlainRoute, Reach, Survey, SurveyedLink, VxlanDevice, XdpPlace},
    watch::LinkWatch,
    workloads::KnownInside,
};
use self::{
    facts::{Assigned, Fdb, Neighbour, Route},
    netlink::Netlink,
    overlay::Network,
};
use crate::{
    node::{Discovered, NodeError, Port, Wire},
    sys::Doing as _,
};

/// Addresses of this node, VXLAN devices, and the inner prefixes that permanent entries bind to other nodes' VTEPs.
///
/// A VTEP owns a prefix where the main table's best route to it has a gateway by way of the VXLAN device (or of its
/// bridge), a permanent neighbour entry names the gateway's MAC address and a static forwarding entry the VTEP behind
/// that: flannel's layout. A permanent neighbour entry of the device (or of its bridge) binds its own address alone:
/// Docker's. What was learned, from packets or by a routing protocol, binds nothing, and neither does what two entries
/// say differently. VTEPs of static entries that own nothing are listed without prefixes.
///
/// Devices without a VNI of their own (`external`) are left out. A device whose socket is in another namespace has no
/// underlay here.
///
/// # Errors
/// [`NodeError::Kernel`] when the kernel refuses, or its tables change faster than they can be read.
pub fn discover() -> Result<Discovered, NodeError> {
    let network = netlink::run("discover the network", read)?;
    Ok(network.discovered())
}

async fn read(netlink: &mut Netlink) -> io::Result<Network> {
    Ok(Network {
        links: netlink.list(RouteNetlinkMessage::GetLink(LinkMessage::default()), Link::read).await?,
        addresses: netlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()), Assigned::read).await?,
        routes: netlink.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()), Route::read).await?,
        neighbours: netlink.list(neighbours(AddressFamily::Unspec), Neighbour::read).await?,
        fdb: netlink.list(neighbours(AddressFamily::Bridge), Fdb::read).await?,
    })
}

/// What [`discover`] binds, and beside it what it passes over: devices without a VNI, learned entries, routes that go around the overlays.
///
/// # Errors
/// As [`discover`].
pub fn survey() -> Result<Survey, NodeError> {
    netlink::run("look at the network", async |netlink| {
        let network = read(netlink).await?;
        let learned =
            |message: &RouteNetlinkMessage| Fdb::read_any(message).and_then(|(entry, fixed)| (!fixed).then_some(entry));
        let learned = netlink.list(neighbours(AddressFamily::Bridge), learned).await?;
        Ok(network.survey(&learned))
    })
}

fn neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// A rule of policy routing that asks for the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// As `ip rule` shows it.
    pub text: String,
    /// Bits that it compares.
    pub mask: u32,
}

/// Rules of policy routing that ask for the mark, of both families.
///
/// # Errors
/// [`NodeError::Kernel`].
pub fn mark_rules() -> Result<Vec<MarkRule>, NodeError> {
    netlink::run("list the rules of policy routing", async |netlink| {
        let mut rules = Vec::new();
        for (family, command) in [(AddressFamily::Inet, "ip rule"), (AddressFamily::Inet6, "ip -6 rule")] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let read = |answer: &RouteNetlinkMessage| facts::mark_rule(answer, command);
            rules.extend(netlink.list(RouteNetlinkMessage::GetRule(message), read).await?);
        }
        Ok(rules)
    })
}

/// What attaching to a link needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Name; the first one, where the link was asked for by an alternative name.
    pub name: String,
    /// Index, unique within the network namespace only.
    pub index: u32,
    /// Own MAC address; `None` for links without Ethernet.
    pub mac: Option<Mac>,
    /// Name of the bridge (or bond) that it is a port of.
    pub master: Option<String>,
    /// How the node forwards what comes by it.
    pub port: Port,
    /// MAC address of the other end of the veth pair, whichever namespace that is in; `None` for links of other kinds.
    pub peer: Option<Mac>,
}

impl LinkFacts {
    /// Where this link leads, and the MAC address of the container behind it.
    ///
    /// # Errors
    /// [`NodeError::Kernel`] when the link is not the host side of a veth pair.
    pub fn wire(&self) -> Result<Wire, NodeError> {
        let wire = self.peer.map(|mac| Wire { port: self.port, mac });
        wire.ok_or_else(|| NodeError::Kernel {
            doing: format!("find the container behind link {}", self.name),
            why: "the link is not the host side of a veth pair; `ip link show type veth` lists those there are"
                .to_owned(),
        })
    }
}

/// Facts of the link with that name.
///
/// # Errors
/// [`NodeError::Kernel`] when there is none, or when it is a veth pair whose other end the kernel does not show.
pub fn link(name: &str) -> Result<LinkFacts, NodeError> {
    netlink::run(&reading(name), async |netlink| facts(netlink, name).await)
}

/// The containers behind links, by the links' names.
pub type Containers<'a> = BTreeMap<&'a str, Result<Wire, NodeError>>;

/// What [`discover_with`] finds.
#[derive(Debug)]
pub struct Found<'a> {
    /// As [`discover`].
    pub discovered: Discovered,
    /// Of the links that were asked for.
    pub containers: Containers<'a>,
    /// Of all links, by their indexes.
    pub ports: BTreeMap<u32, Port>,
}

/// What [`discover`] says, and as [`LinkFacts::wire`] the containers behind these links, in one go: each for itself takes a socket, a thread and
/// a list of all links.
///
/// # Errors
/// As [`discover`].
pub fn discover_with<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Found<'a>, NodeError> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    netlink::run("discover the network", async |netlink| {
        let network = read(netlink).await?;
        let known: BTreeMap<&str, &Link> = network.links.iter().map(|link| (link.name.as_str(), link)).collect();
        let ports = network.ports();
        let mut containers = BTreeMap::new();
        for name in names {
            let wire = match known.get(name) {
                Some(link) if link.veth => {
                    let mac = peer_mac(netlink, link).await.map_err(|error| failed(name, &error));
                    mac.map(|mac| Wire { port: ports[&link.index], mac })
                }
                // What it is instead, or that it came a moment ago, or has the name beside its own.
                _ => facts(netlink, name).await.map_err(|error| failed(name, &error)).and_then(|of| of.wire()),
            };
            containers.insert(name, wire);
        }
        let discovered = network.discovered();
        Ok(Found { discovered, containers, ports })
    })
}

fn failed(name: &str, error: &io::Error) -> NodeError {
    NodeError::Kernel { doing: reading(name), why: error.to_string() }
}

fn reading(name: &str) -> String {
    format!("read link {name}")
}

async fn facts(netlink: &mut Netlink, name: &str) -> io::Result<LinkFacts> {
    let link =
        get(netlink, 0, LinkAttribute::IfName(name.to_owned())).await.map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => {
                io::Error::other("there is no such link in this network namespace; `ip -br link` lists those there are")
            }
            _ => error,
        })?;
    let master = match link.master {
        Some(index) => Some(get(netlink, index, None).await?),
        None => None,
    };
    let peer = if link.veth { Some(peer_mac(netlink, &link).await?) } else { None };
    let port = link.port(master.as_ref());
    let master = master.map(|master| master.name);
    Ok(LinkFacts { name: link.name, index: link.index, mac: link.mac, master, port, peer })
}

/// The other end is named by index and, where that is not ours, by our id of its namespace, which the kernel gives on
/// demand.
async fn peer_mac(netlink: &mut Netlink, link: &Link) -> io::Result<Mac> {
    // An index that is equal on both sides may be left out.
    let index = link.lower.unwrap_or(link.index);
    let netns = link.lower_netns.map(LinkAttribute::IfNetnsId);
    let peer = get(netlink, index, netns).await.map_err(|error| {
        io::Error::other(format!(
            "the container's end of the veth pair (index {index}) cannot be read: {error}; the container may be going away, else \
             CAP_NET_ADMIN is needed in the user namespace that owns the container's network namespace"
        ))
    })?;
    // Between the two requests the container may have gone, and its index to another link.
    if !peer.veth || peer.lower.unwrap_or(peer.index) != link.index {
        return Err(io::Error::other("the container's end of the veth pair changed while it was read; try again"));
    }
    peer.mac.ok_or_else(|| io::Error::other("the container's end of the veth pair has no MAC address"))
}

/// The link with that index, or with what the attribute says.
async fn get(netlink: &mut Netlink, index: u32, attribute: impl Into<Option<LinkAttribute>>) -> io::Result<Link> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.extend(attribute.into());
    let answer = netlink.get(RouteNetlinkMessage::GetLink(message)).await?;
    Link::read(&answer).ok_or_else(|| io::Error::other("the kernel answered with something else than a link"))
}

/// What the link of this index is called; `None` where there is none.
pub(crate) fn name_of(index: u32) -> Result<Option<String>, NodeError> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as large as the call demands. (That of `nix` does not see that it failed.)
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null() {
        return match Errno::last() {
            Errno::ENXIO | Errno::ENODEV => Ok(None),
            error => Err(error).doing(|| format!("look for link {index}")),
        };
    }
    let name = CStr::from_bytes_until_nul(&name).doing(|| format!("read the name of link {index}"))?;
    Ok(Some(name.to_string_lossy().into_owned()))
}

/// Identity of the calling thread's network namespace: the inode number that `readlink /proc/self/ns/net` shows.
///
/// # Errors
/// [`NodeError::Kernel`] when /proc is not mounted.
pub fn namespace() -> Result<u64, NodeError> {
    let path = "/proc/thread-self/ns/net";
    let namespace = fs::metadata(path)
        .map_err(|error| NodeError::Kernel { doing: format!("read {path}"), why: error.to_string() })?;
    Ok(namespace.ino())
}
