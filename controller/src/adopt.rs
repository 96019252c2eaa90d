//! Containers that run although nobody told of them: started by a chain without the plugin, or before there was an agent. Pure, but for [`cache`].
//!
//! Whose link is found without a guard, and is of the node's networks, is looked for in the results that runtimes keep, then among the workloads of the
//! file that have addresses and no link. Whom neither knows is nobody: nothing is guessed from an address alone.

pub mod arriving;
pub mod cache;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use bulkhead_dataplane::{
    cni::protocol::{Ask, Attached, Interface, Key, Request, VERSION},
    node::{ContainerLink, Containers},
};

use self::{arriving::Arriving, cache::Cached};
use crate::{attachments::LISTED, names::Qualified, workloads::Workloads};

/// What is looked for, and where it is asked who it is.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Directory in which libcni keeps results; `None` to ask there for nobody.
    pub cache: Option<PathBuf>,
    /// Bridges whose ports are workloads' whatever addresses they have; a port that is new or nobody's is shut.
    pub bridges: BTreeSet<String>,
    /// Links of containers whose ADD waits: nobody is looked for behind them.
    pub arriving: Arriving,
}

/// A link of the node's networks behind which somebody runs whom nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Name of the link.
    pub link: String,
    /// Name of the bridge that it is a port of.
    pub bridge: Option<String>,
    /// Addresses at its other end.
    pub addresses: Vec<IpAddr>,
    /// Nothing passes it. If it is not, everything does.
    pub shut: bool,
    /// Why nobody is known.
    pub why: String,
}

/// What was found since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Containers that ran when the agent started, and are guarded since.
    pub adopted: u64,
    /// Containers that started without a guard while the agent ran.
    pub unenforced: u64,
    /// Links of nobody, as it was looked last.
    pub strangers: Vec<Stranger>,
}

/// Links of the node's networks that no endpoint guards: their other end has an address of a prefix of this node or one that the file lists for it, or
/// they are ports of a bridge of which guarded links are ports too, or of one that is named. What is shut is by our own doing.
pub fn unguarded<'a>(
    containers: &'a Containers,
    guarded: &BTreeSet<&str>,
    (workloads, node): (&Workloads, &str),
    bridges: &BTreeSet<String>,
) -> Vec<&'a ContainerLink> {
    let segments = workloads.nodes.get(node).map(|node| node.segments.as_slice()).unwrap_or_default();
    let listed: BTreeSet<IpAddr> = workloads
        .workloads
        .values()
        .filter(|workload| *workload.node == *node)
        .flat_map(|workload| workload.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()))
        .collect();
    let of_node = |address: &IpAddr| {
        listed.contains(address)
            || segments.iter().flat_map(|segment| &segment.prefixes).any(|prefix| prefix.contains(*address))
    };
    // The guard of one that was renamed stands, although no endpoint is said to have it by that name.
    let is_guarded = |link: &&ContainerLink| link.guarded || guarded.contains(link.link.as_str());
    let among: BTreeSet<&String> =
        containers.links.iter().filter(is_guarded).filter_map(|link| link.bridge.as_ref()).chain(bridges).collect();
    let ours = |link: &&ContainerLink| {
        link.shut
            || link.addresses.iter().any(of_node)
            || link.bridge.as_ref().is_some_and(|bridge| among.contains(bridge))
    };
    containers.links.iter().filter(|link| !is_guarded(link) && ours(link)).collect()
}

/// Who runs behind a link: the ADD that would have told of it, or why nobody is known.
///
/// # Errors
/// Nobody is known, or several may be it.
pub fn identify(
    link: &ContainerLink,
    containers: &Containers,
    cached: &[Cached],
    (joined, node): (&Workloads, &str),
) -> Result<Request, String> {
    match by_cache(link, containers, cached, (joined, node)) {
        Some(found) => found,
        None => by_addresses(link, (joined, node)),
    }
}

fn request(network: &str, attached: Attached) -> Request {
    Request { version: VERSION, network: network.to_owned(), waits: false, ask: Ask::Add(attached) }
}

/// An entry whose result names the link on the host, else the only one whose addresses its other end has.
fn by_cache(
    link: &ContainerLink,
    containers: &Containers,
    cached: &[Cached],
    (joined, node): (&Workloads, &str),
) -> Option<Result<Request, String>> {
    let fit = |entry: &&Cached| fits(entry, link, containers);
    let (named, addressed): (Vec<_>, Vec<_>) =
        cached.iter().filter(fit).partition(|entry| entry.outside.contains(&link.link));
    match (&named[..], &addressed[..]) {
        ([entry], _) | ([], [entry]) => Some(attached(entry, link, containers, (joined, node))),
        ([], []) => None,
        (several, others) => {
            let all: Vec<_> = several.iter().chain(others.iter()).map(|entry| entry.key.container.as_str()).collect();
            Some(Err(format!("results of several containers fit it: {}", all.join(", "))))
        }
    }
}

/// Whether a result may be that of a link. One that names an interface which this host has not is of a container that is gone, and one that names
/// another container's link is that one's: before a link is guarded, whoever is behind it may give itself any address.
fn fits(entry: &Cached, link: &ContainerLink, containers: &Containers) -> bool {
    let named = entry.outside.contains(&link.link);
    let of_another = || containers.links.iter().any(|other| entry.outside.contains(&other.link));
    (named || !of_another())
        && entry.outside.iter().all(|name| containers.names.contains(name))
        && entry.inside.iter().any(|inside| is_interface(inside.name.as_str(), &inside.addresses, link, named))
}

fn is_interface(name: &str, addresses: &[IpAddr], link: &ContainerLink, named: bool) -> bool {
    if link.addresses.is_empty() {
        // It has none, or they cannot be read.
        named && (link.inside.is_empty() || link.inside == name)
    } else {
        link.inside == name && addresses.iter().all(|address| link.addresses.contains(address))
    }
}

/// What ADD would have told.
fn attached(
    entry: &Cached,
    link: &ContainerLink,
    containers: &Containers,
    (workloads, node): (&Workloads, &str),
) -> Result<Request, String> {
    let interface = |inside: &bulkhead_dataplane::cni::config::Interface| {
        let is = |found: &&ContainerLink| {
            is_interface(&inside.name, &inside.addresses, found, entry.outside.contains(&found.link))
        };
        // Two pairs may have ends of one name and no address of their own: the link that was asked for comes first.
        let found = Some(link).filter(is).or_else(|| containers.links.iter().find(is));
        let found = found.ok_or_else(|| {
            format!("container {} has interface {}, whose link is not here", entry.key.container, inside.name)
        })?;
        let (link, ifindex) = (found.link.clone(), found.index);
        Ok(Interface { name: inside.name.clone(), link, ifindex, addresses: inside.addresses.clone() })
    };
    let interfaces = entry.inside.iter().map(interface).collect::<Result<_, String>>()?;
    let name = entry.name.clone().unwrap_or_else(|| entry.key.container.clone());
    let namespace = match &entry.namespace {
        Some(namespace) => namespace.clone(),
        None => namespace_of(&name, (workloads, node)),
    };
    let (key, uid, labels) = (entry.key.clone(), entry.uid.clone(), entry.labels.clone());
    Ok(request(&entry.network, Attached { key, namespace, name, uid, labels, interfaces }))
}

/// Where neither the runtime nor the network's configuration names one: that of the only workload of this name which the file has on this node, else the
/// plugin's default.
fn namespace_of(name: &str, (workloads, node): (&Workloads, &str)) -> String {
    let mut known =
        workloads.workloads.iter().filter(|(known, workload)| known.name == name && *workload.node == *node);
    match (known.next(), known.next()) {
        (Some((name, _)), None) => name.namespace.clone(),
        _ => "default".to_owned(),
    }
}

/// The workload of the file that has just these addresses on this node, and no link.
fn by_addresses(link: &ContainerLink, (joined, node): (&Workloads, &str)) -> Result<Request, String> {
    if !link.unread.is_empty() {
        return Err(format!("no result of a runtime names it, and its other end cannot be read: {}", link.unread));
    }
    if link.addresses.is_empty() {
        return Err("no result of a runtime names it, and its other end has no address".to_owned());
    }
    let own: BTreeSet<&IpAddr> = link.addresses.iter().collect();
    let mut found =
        joined.workloads.iter().filter(|(_, workload)| *workload.node == *node).flat_map(|(name, workload)| {
            let here = workload.endpoints.iter().filter(|endpoint| {
                endpoint.link.is_empty()
                    && !endpoint.placeholder
                    && endpoint.addresses.iter().collect::<BTreeSet<_>>() == own
            });
            here.map(move |endpoint| (name, workload, endpoint))
        });
    let (name, workload, endpoint) = match (found.next(), found.next()) {
        (Some(one), None) => one,
        (None, _) => return Err("no result of a runtime and no workload of the file has its addresses".to_owned()),
        (Some((one, ..)), Some((other, ..))) => return Err(format!("both {one} and {other} have its addresses")),
    };
    let interface = Interface {
        name: link.inside.clone(),
        link: link.link.clone(),
        ifindex: link.index,
        addresses: endpoint.addresses.clone(),
    };
    // No runtime calls a container so: neither DEL nor GC of one is about this. It goes with its link.
    let key = Key { container: format!("link {} {}", link.link, link.index), ifname: link.inside.clone() };
    let Qualified { namespace, name } = name.clone().into();
    // Of a pod it is the one that is listed now: when the next one of its name is, this one keeps its labels and its own name.
    let uid = workload.uid.as_deref().map(str::to_owned);
    let (labels, interfaces) = (BTreeMap::new(), vec![interface]);
    Ok(request(LISTED, Attached { key, namespace, name, uid, labels, interfaces }))
}

#[cfg(test)]
mod tests;
