//! What container runtimes told of the interfaces that they made, and what it makes of the workloads file. Pure.
//!
//! The file says who a workload is: labels, ports, and its addresses where other nodes must know them beforehand. The runtime says where it is: by which
//! link, with which addresses. Where both say something of one workload they must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::{
    cni::protocol::{Attached, Interface, Key},
    desired::Segment,
};
use bulkhead_ebpf::abi::{ENDPOINT_ADDRESSES, Mode};
use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, source},
    workloads::{Endpoint, NodeSegment, Workload, WorkloadName, Workloads, segment_of},
};

/// Network of those that no runtime told of: the workloads file lists the addresses that their links were found with. No network of a runtime is called so.
pub const LISTED: &str = "(workloads file)";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network.
    pub network: String,
    /// What the runtime said.
    pub attached: Attached,
}

impl Attachment {
    /// Whose it is. One that is listed with another unique id is another, such as the next pod of a `StatefulSet`: this one still runs, and is called
    /// by its id as well.
    #[must_use]
    pub fn workload(&self, workloads: &Workloads) -> WorkloadName {
        let plain = self.plain();
        let listed = workloads.workloads.get(&plain).and_then(|listed| listed.uid.as_deref());
        self.called(plain, listed)
    }

    /// Takes over the labels that a cluster gives to it: they hold as long as the container runs, also when its pod was deleted and nobody but the
    /// runtime knows of it any more. Whether something is new.
    pub fn learn(&mut self, workloads: &Workloads) -> bool {
        let listed = workloads.workloads.get(&self.plain()).filter(|_| workloads.live);
        let attached = &mut self.attached;
        let its = listed.filter(|listed| attached.uid.is_some() && attached.uid.as_deref() == listed.uid.as_deref());
        let known = attached.labels.iter().map(|(label, value)| (label.as_str(), value.as_str()));
        let Some(listed) = its.filter(|listed| !listed.labels.iter().eq(known)) else { return false };
        attached.labels = listed.labels.iter().map(|(label, value)| (label.to_owned(), value.to_owned())).collect();
        true
    }

    fn plain(&self) -> WorkloadName {
        let Attached { namespace, name, .. } = &self.attached;
        WorkloadName::new(namespace.clone(), name.clone())
    }

    /// Its name where one of its plain name is listed with a unique id.
    fn called(&self, plain: WorkloadName, listed: Option<&str>) -> WorkloadName {
        match (&self.attached.uid, listed) {
            (Some(own), Some(listed)) if own != listed => {
                let short: String = own.chars().take(8).collect();
                WorkloadName::new(plain.namespace.as_str(), format!("{}.{short}", plain.name))
            }
            _ => plain,
        }
    }
}

/// All of them, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments(Vec<Attachment>);

impl Attachments {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.0.iter()
    }

    /// Adds one, in the place of the one with its key, and of those that stand for its links since nobody had told of them.
    pub fn add(&mut self, attachment: Attachment) {
        let Attached { key, interfaces, .. } = &attachment.attached;
        self.0.retain(|known| {
            let same =
                |own: &Interface| interfaces.iter().any(|link| (&link.link, link.ifindex) == (&own.link, own.ifindex));
            known.network != LISTED || known.attached.key == *key || !known.attached.interfaces.iter().any(same)
        });
        match self.0.iter_mut().find(|known| known.attached.key == attachment.attached.key) {
            Some(known) => *known = attachment,
            None => self.0.push(attachment),
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &Key) {
        self.0.retain(|known| known.attached.key != *key);
    }

    /// Takes out those of a network that are not listed.
    pub fn keep(&mut self, network: &str, valid: &[Key]) {
        self.0.retain(|known| known.network != network || valid.contains(&known.attached.key));
    }

    /// Links on the host, by name and index.
    #[must_use]
    pub fn links(&self) -> BTreeSet<(String, u32)> {
        let interfaces = self.0.iter().flat_map(|known| &known.attached.interfaces);
        interfaces.map(|interface| (interface.link.clone(), interface.ifindex)).collect()
    }

    /// Takes out those of whose links one is gone: with one end of a veth pair the other goes.
    pub fn forget(&mut self, gone: &BTreeSet<(String, u32)>) {
        self.0.retain(|known| {
            let mut links = known.attached.interfaces.iter();
            !links.any(|interface| gone.contains(&(interface.link.clone(), interface.ifindex)))
        });
    }

    /// Calls links by the names that they have now.
    pub fn rename(&mut self, renamed: &BTreeMap<(String, u32), String>) {
        for interface in self.0.iter_mut().flat_map(|known| &mut known.attached.interfaces) {
            if let Some(name) = renamed.get(&(interface.link.clone(), interface.ifindex)) {
                interface.link.clone_from(name);
            }
        }
    }

    /// The workloads of the file, with what is attached on this node.
    ///
    /// # Errors
    /// What the runtimes say contradicts the file, or itself.
    pub fn join(&self, workloads: &Workloads, node: &str) -> Result<Workloads, Diagnostics> {
        let mut joined = workloads.clone();
        let mut found = Diagnostics::default();
        if self.0.is_empty() {
            return Ok(joined);
        }
        if workloads.live {
            self.displace(&mut joined);
        }
        let mut owners: BTreeMap<(Segment, IpAddr), BTreeSet<WorkloadName>> = BTreeMap::new();
        let own = |name: &WorkloadName, workload: &Workload, owners: &mut BTreeMap<_, BTreeSet<_>>| {
            for endpoint in &workload.endpoints {
                for address in &endpoint.addresses {
                    owners.entry((endpoint.segment, *address)).or_default().insert(name.clone());
                }
            }
        };
        joined.workloads.iter().for_each(|(name, workload)| own(name, workload, &mut owners));
        for attachment in &self.0 {
            let name = attachment.workload(workloads);
            let owner =
                |segment, address| owners.get(&(segment, address))?.iter().find(|owner| **owner != name).cloned();
            let before = joined.workloads.remove(&name).map(Arc::unwrap_or_clone);
            if let Some(workload) = found.take(join(before, workloads, attachment, node, owner)) {
                own(&name, &workload, &mut owners);
                joined.workloads.insert(name, Arc::new(workload));
            }
        }
        found.or(joined)
    }

    /// One workload of those that [`Attachments::join`] gives; `None` for nobody. `owner` says who else has an address.
    ///
    /// # Errors
    /// As [`Attachments::join`].
    pub fn joined(
        &self,
        workloads: &Workloads,
        node: &str,
        name: &WorkloadName,
        owner: impl Fn(Segment, IpAddr) -> Option<WorkloadName>,
    ) -> Result<Option<Arc<Workload>>, Diagnostics> {
        if let Some(left) = self.left_of(workloads, name) {
            return Ok(Some(left));
        }
        let mut of = self.0.iter().filter(|attachment| attachment.workload(workloads) == *name);
        // In a cluster the runtime says where it is.
        let listed = workloads.workloads.get(name).map(|workload| Workload::clone(workload));
        let listed = listed.map(|workload| match workloads.live {
            true => Workload { endpoints: Vec::new(), ..workload },
            false => workload,
        });
        let joined =
            of.try_fold(listed, |before, attachment| join(before, workloads, attachment, node, &owner).map(Some));
        joined.map(|workload| workload.map(Arc::new))
    }

    /// Whose they are.
    #[must_use]
    pub fn workloads(&self, workloads: &Workloads) -> BTreeSet<WorkloadName> {
        self.0.iter().map(|known| known.workload(workloads)).collect()
    }

    /// These workloads, of which something changed, and those whose names or whose being attached went with it. `uid` says which unique id each had.
    pub fn renamed<'a>(
        &self,
        names: &BTreeSet<WorkloadName>,
        workloads: &Workloads,
        uid: impl Fn(&WorkloadName) -> Option<&'a str>,
    ) -> BTreeSet<WorkloadName> {
        let mut renamed = names.clone();
        for known in &self.0 {
            let plain = known.plain();
            if names.contains(&plain) {
                renamed.extend([known.workload(workloads), known.called(plain.clone(), uid(&plain))]);
            }
        }
        renamed
    }

    /// Who is here is known from the runtimes: where a cluster gives such an address to somebody else, or others to whom it gives it, that is not so any
    /// more or not yet.
    fn displace(&self, workloads: &mut Workloads) {
        let attached = self.workloads(workloads);
        let told: BTreeSet<IpAddr> = self.addresses().collect();
        for (name, workload) in &mut workloads.workloads {
            let is_here = attached.contains(name);
            // Others share those of which nothing changes.
            if is_here {
                Arc::make_mut(workload).endpoints.clear();
            } else if has_some(workload, &told) {
                leave(Arc::make_mut(workload), &told);
            }
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let interfaces = self.0.iter().flat_map(|known| &known.attached.interfaces);
        interfaces.flat_map(|interface| interface.addresses.iter().copied())
    }

    /// Addresses of a workload that is attached, each with the overlay in which it is.
    #[must_use]
    pub fn addresses_of(&self, workloads: &Workloads, node: &str, name: &WorkloadName) -> Vec<(Segment, IpAddr)> {
        let of = self.0.iter().filter(|known| known.workload(workloads) == *name);
        let interfaces = of.flat_map(|known| &known.attached.interfaces);
        let placed = |interface: &Interface| {
            let segment = segment_of(segments(workloads, node), &interface.addresses);
            interface.addresses.iter().map(move |address| (segment, *address)).collect::<Vec<_>>()
        };
        interfaces.flat_map(placed).collect()
    }

    /// What a workload that is not attached has left where a cluster gives it addresses that are attached.
    #[must_use]
    pub fn left_of(&self, workloads: &Workloads, name: &WorkloadName) -> Option<Arc<Workload>> {
        let attached = || self.0.iter().any(|known| known.workload(workloads) == *name);
        let workload = workloads.workloads.get(name).filter(|_| workloads.live && !attached())?;
        let mut workload = Arc::clone(workload);
        let told = self.addresses().collect();
        if has_some(&workload, &told) {
            leave(Arc::make_mut(&mut workload), &told);
        }
        Some(workload)
    }

    /// Workloads that are not attached, and to which a cluster gives addresses that were, and are not any more.
    #[must_use]
    pub fn given_back(&self, before: &Self, workloads: &Workloads) -> Vec<(WorkloadName, Arc<Workload>)> {
        let now: BTreeSet<IpAddr> = self.addresses().collect();
        let free: BTreeSet<IpAddr> = before.addresses().filter(|address| !now.contains(address)).collect();
        if free.is_empty() || !workloads.live {
            return Vec::new();
        }
        let given = workloads.workloads.iter().filter(|(_, workload)| has_some(workload, &free)).map(|(name, _)| name);
        given.filter_map(|name| Some((name.clone(), self.left_of(workloads, name)?))).collect()
    }

    /// Takes over the labels that a cluster gives to those that are attached. Whether something is new.
    pub fn learn(&mut self, workloads: &Workloads) -> bool {
        let mut new = false;
        for attachment in &mut self.0 {
            new |= attachment.learn(workloads);
        }
        new
    }

    /// Workloads that others have otherwise: first those of which something went, then those of which something came.
    #[must_use]
    pub fn differing(&self, others: &Self, workloads: &Workloads) -> Vec<WorkloadName> {
        let less = |some: &Self, than: &Self| -> BTreeSet<WorkloadName> {
            let less = some.0.iter().filter(|attachment| !than.0.contains(attachment));
            less.map(|attachment| attachment.workload(workloads)).collect()
        };
        let (gone, new) = (less(self, others), less(others, self));
        gone.difference(&new).chain(&new).cloned().collect()
    }
}

/// Whether some of these addresses are a workload's.
fn has_some(workload: &Workload, addresses: &BTreeSet<IpAddr>) -> bool {
    workload.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).any(|address| addresses.contains(address))
}

/// Takes addresses away.
fn leave(workload: &mut Workload, addresses: &BTreeSet<IpAddr>) {
    for endpoint in &mut workload.endpoints {
        endpoint.addresses.retain(|address| !addresses.contains(address));
    }
    workload.endpoints.retain(|endpoint| !endpoint.addresses.is_empty());
}

/// What a workload is with one more attachment.
fn join(
    before: Option<Workload>,
    file: &Workloads,
    attachment: &Attachment,
    node: &str,
    owner: impl Fn(Segment, IpAddr) -> Option<WorkloadName>,
) -> Result<Workload, Diagnostics> {
    let name = attachment.workload(file);
    let Attached { key, labels, interfaces, .. } = &attachment.attached;
    let written = file.workloads.get(&name);
    let refuse = |message: String, help: &str| -> Result<Workload, Diagnostics> {
        let message = format!("container {} is workload `{name}`, but {message}", key.container);
        let error = match written {
            Some(written) => Diagnostic::error(&written.place, message),
            None => Diagnostic::nowhere(message),
        };
        Err(error.help(help).into())
    };
    if let Some(other) = written.filter(|written| *written.node != *node && !file.live) {
        let message = format!("the file says that it runs on node `{}`, not on `{node}`", other.node);
        return refuse(message, "correct its `node`, or give the container another name");
    }
    if written.is_some_and(|written| written.host) {
        return refuse("it has no network of its own".to_owned(), "give the container another name");
    }
    for interface in interfaces {
        for (family, own) in [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)] {
            let count = interface.addresses.iter().filter(|address| own(address)).count();
            if count > ENDPOINT_ADDRESSES {
                let message = format!("its interface {} has {count} {family} addresses", interface.name);
                return refuse(message, &format!("{ENDPOINT_ADDRESSES} of a family fit; attach it to another network"));
            }
        }
        let segment = segment_of(segments(file, node), &interface.addresses);
        if let Some(owner) = interface.addresses.iter().find_map(|address| owner(segment, *address)) {
            let message = format!("an address of its interface {} belongs to {owner} already", interface.name);
            return refuse(message, "an address has one owner: correct the workloads file, or the runtime's ranges");
        }
    }
    let listed = !file.live && written.is_some_and(|written| !written.endpoints.is_empty());
    let mut workload = before.unwrap_or_else(|| Workload {
        place: Place::start(&source(format!("network {}", attachment.network), String::new())),
        labels: Arc::new(labels.clone().into()),
        node: node.into(),
        mode: Mode::Enforce,
        ports: Arc::default(),
        endpoints: Vec::new(),
        host: false,
        owner: None,
        uid: attachment.attached.uid.as_deref().map(Arc::from),
    });
    // It runs where it runs, whatever is known of it elsewhere yet.
    if &*workload.node != node {
        workload.node = node.into();
    }
    for interface in interfaces {
        let same = |endpoint: &&mut Endpoint| {
            let of = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
            of(&endpoint.addresses) == of(&interface.addresses)
        };
        match workload.endpoints.iter_mut().find(same) {
            Some(endpoint) => endpoint.link.clone_from(&interface.link),
            None if listed => {
                let given: Vec<_> = interface.addresses.iter().map(IpAddr::to_string).collect();
                let message = format!("the file lists no endpoint with the addresses {}", given.join(", "));
                return refuse(
                    message,
                    "correct the addresses of its `endpoints`, or leave `endpoints` out: then the runtime's hold",
                );
            }
            None => {
                let segment = segment_of(segments(file, node), &interface.addresses);
                let (addresses, link) = (interface.addresses.clone(), interface.link.clone());
                workload.endpoints.push(Endpoint { segment, addresses, link, placeholder: false });
            }
        }
    }
    Ok(workload)
}

fn segments<'a>(file: &'a Workloads, node: &str) -> &'a [NodeSegment] {
    file.nodes.get(node).map(|node| node.segments.as_slice()).unwrap_or_default()
}
