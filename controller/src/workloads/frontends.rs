//! `services` of the workloads file: addresses that are not a workload's, but lead to some.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Node, PortNames, Reader, Workload, WorkloadName};
use crate::{
    diagnostic::{Diagnostic, Place, suggest},
    model::ServiceName,
    ports::{Transport, port_name, port_number},
};

/// Most of what one service may have: all of it multiplies in the tables.
const MAX_ADDRESSES: usize = 64;
const MAX_PORTS: usize = 128;
const MAX_BACKENDS: usize = 4096;

/// Addresses that the nodes' kernels translate to those of backends: a Kubernetes Service, a virtual address of Swarm.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Where its name stands.
    pub place: Place,
    /// Its addresses. Each leads to backends of its family.
    pub addresses: BTreeSet<IpAddr>,
    /// Its ports.
    pub ports: Vec<FrontendPort>,
    /// Workloads that answer.
    pub workloads: BTreeSet<WorkloadName>,
    /// Who else answers.
    pub outside: BTreeSet<Outside>,
    /// It is the service of a DNS resolver, and not merely at its address.
    pub resolver: bool,
}

/// A backend that is no workload with an address: an address outside, or a pod in the network of its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outside {
    /// Where it answers.
    pub address: IpAddr,
    /// On which ports.
    pub listens: Listens,
}

/// On which ports a backend answers that is no workload with an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listens {
    /// Where the service's ports lead. These are its named ports, those of a pod: two pods of one node have one address and names of their own.
    Named(Arc<PortNames>),
    /// Nowhere but here, by the service's port that is called: an `EndpointSlice` says for those in it where they listen.
    At(Arc<BTreeMap<(Transport, u16), u16>>),
}

impl From<IpAddr> for Outside {
    /// Nobody that names ports.
    fn from(address: IpAddr) -> Self {
        Self { address, listens: Listens::Named(Arc::default()) }
    }
}

/// A port of a [`Frontend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendPort {
    /// Protocol.
    pub transport: Transport,
    /// Port that is called.
    pub port: u16,
    /// Port that answers.
    pub target: Target,
    /// Port on every address of every node that leads there too.
    pub node_port: Option<u16>,
}

/// Port on which a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The same on all.
    Number(u16),
    /// Each workload's port of this name.
    Named(String),
}

impl FrontendPort {
    /// Port on which a backend with these named ports listens: of several of one name the first with the protocol.
    #[must_use]
    pub fn target_of(&self, ports: &PortNames) -> Option<u16> {
        match &self.target {
            Target::Number(number) => Some(*number),
            Target::Named(name) => ports.get(name)?.iter().find(|port| port.0 == self.transport).map(|port| port.1),
        }
    }

    /// Port on which one outside listens, if it answers this one.
    #[must_use]
    pub fn answered_by(&self, outside: &Outside) -> Option<u16> {
        match &outside.listens {
            Listens::Named(ports) => self.target_of(ports),
            Listens::At(ports) => ports.get(&(self.transport, self.port)).copied(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FrontendFields {
    name: Spanned<String>,
    namespace: Spanned<String>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    ports: Vec<PortFields>,
    #[serde(default)]
    backends: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PortFields {
    port: Spanned<String>,
    target: Option<Spanned<String>>,
    protocol: Option<Spanned<String>>,
    node_port: Option<Spanned<String>>,
}

/// What is taken, and where.
struct Taken<'a> {
    resolvers: &'a BTreeSet<IpAddr>,
    nodes: &'a BTreeMap<String, Arc<Node>>,
    workloads: &'a BTreeMap<WorkloadName, Workload>,
    /// Of workloads and nodes.
    addresses: BTreeMap<IpAddr, (String, Place)>,
    ports: BTreeMap<(IpAddr, Transport, u16), Place>,
    node_ports: BTreeMap<(Transport, u16), Place>,
}

impl Reader<'_> {
    pub(super) fn frontends(
        &mut self,
        services: &[FrontendFields],
        resolvers: &BTreeSet<IpAddr>,
        nodes: &BTreeMap<String, Arc<Node>>,
        workloads: &BTreeMap<WorkloadName, Workload>,
    ) -> BTreeMap<ServiceName, Frontend> {
        let owned = self
            .owners
            .iter()
            .map(|((_, address), (name, place))| (*address, (format!("workload {name}"), place.clone())));
        let mut addresses: BTreeMap<_, _> = owned.collect();
        for (name, node) in nodes {
            addresses
                .extend(node.addresses.iter().map(|&address| (address, (format!("node {name}"), node.place.clone()))));
        }
        let mut taken =
            Taken { resolvers, nodes, workloads, addresses, ports: BTreeMap::new(), node_ports: BTreeMap::new() };
        let mut frontends: BTreeMap<ServiceName, Frontend> = BTreeMap::new();
        for fields in services {
            let (name, frontend) = self.frontend(fields, &mut taken);
            if let Some(first) = frontends.get(&name) {
                let error = Diagnostic::error(&frontend.place, format!("service `{name}` is listed twice"))
                    .note(&first.place, "first here");
                self.found.push(error.help("put its addresses, ports and backends together"));
            }
            frontends.insert(name, frontend);
        }
        // An address of a service that stands further down is none outside either.
        let all: BTreeSet<IpAddr> = frontends.values().flat_map(|frontend| &frontend.addresses).copied().collect();
        for written in services.iter().flat_map(|fields| &fields.backends) {
            if let Ok(address) = written.value.parse::<IpAddr>()
                && all.contains(&address)
            {
                self.error(written, format!("{address} is the address of a service"), "write who answers in the end");
            }
        }
        frontends
    }

    fn frontend(&mut self, fields: &FrontendFields, taken: &mut Taken<'_>) -> (ServiceName, Frontend) {
        let name = ServiceName::new(self.name(&fields.namespace, "a namespace"), self.name(&fields.name, "a service"));
        for (what, count, most) in [
            ("addresses", fields.addresses.len(), MAX_ADDRESSES),
            ("ports", fields.ports.len(), MAX_PORTS),
            ("backends", fields.backends.len(), MAX_BACKENDS),
        ] {
            if count > most {
                self.error(
                    &fields.name,
                    format!("service `{name}` has {count} {what}, {most} are allowed"),
                    "split it",
                );
            }
        }
        let mut addresses = BTreeSet::new();
        for written in &fields.addresses {
            let Some(address) = self.address(written) else { continue };
            if let Some((owner, first)) = taken.addresses.get(&address) {
                let error = Diagnostic::error(&self.at(written), format!("{address} is an address of {owner}"))
                    .note(first, "described here");
                self.found.push(error.help("the address of a service is nobody's own"));
            }
            if !addresses.insert(address) {
                self.error(written, format!("{address} is listed twice"), "keep one of the two");
            }
        }
        let (workloads, outside) = self.backends(&name, fields, taken);
        let mut ports = Vec::new();
        for written in &fields.ports {
            let port = self.frontend_port(&name, written, &addresses, taken);
            if let (Some(port), Some(target)) = (&port, &written.target) {
                self.target(target, port, &workloads, &outside, taken);
            }
            ports.extend(port);
        }
        if fields.ports.is_empty() {
            self.error(
                &fields.name,
                format!("service `{name}` has no port"),
                "write `ports: [{ port: 80, target: 8080 }]`",
            );
        } else if addresses.is_empty() && ports.iter().all(|port| port.node_port.is_none()) {
            let help = "write `addresses: [10.96.3.4]`, or remove it: workloads are called by their own addresses";
            self.error(&fields.name, format!("service `{name}` has neither an address nor a nodePort"), help);
        }
        let resolver = !addresses.is_disjoint(taken.resolvers);
        (name, Frontend { place: self.at(&fields.name), addresses, ports, workloads, outside, resolver })
    }

    fn backends(
        &mut self,
        service: &ServiceName,
        fields: &FrontendFields,
        taken: &Taken<'_>,
    ) -> (BTreeSet<WorkloadName>, BTreeSet<Outside>) {
        let (mut workloads, mut outside) = (BTreeSet::new(), BTreeSet::new());
        for written in &fields.backends {
            let fresh = if written.value.parse::<IpAddr>().is_ok() {
                let Some(address) = self.address(written) else { continue };
                // A node's own address is: what runs in its own network has no other.
                let node = taken.nodes.values().any(|node| node.addresses.contains(&address));
                if let Some((owner, first)) = taken.addresses.get(&address).filter(|_| !node) {
                    let error = Diagnostic::error(&self.at(written), format!("{address} is an address of {owner}"))
                        .note(first, "described here");
                    self.found.push(error.help("write the workload's name"));
                }
                outside.insert(address.into())
            } else {
                let name = WorkloadName::new(service.namespace.clone(), written.value.clone());
                if !taken.workloads.contains_key(&name) {
                    let of = taken.workloads.keys().filter(|known| known.namespace == name.namespace);
                    let known = suggest(&name.name, of.map(|known| known.name.as_str()));
                    let message = format!("there is no workload `{}` in namespace `{}`", name.name, name.namespace);
                    self.error(written, message, known);
                    continue;
                }
                workloads.insert(name)
            };
            if !fresh {
                self.error(written, format!("backend `{}` is listed twice", written.value), "keep one of the two");
            }
        }
        (workloads, outside)
    }

    fn frontend_port(
        &mut self,
        service: &ServiceName,
        fields: &PortFields,
        addresses: &BTreeSet<IpAddr>,
        taken: &mut Taken<'_>,
    ) -> Option<FrontendPort> {
        let transport = match fields.protocol.as_ref() {
            None => Some(Transport::Tcp),
            Some(written) => {
                let transport = Transport::parse(&written.value);
                if transport.is_none() {
                    self.error(
                        written,
                        format!("`{}` is not a protocol with ports", written.value),
                        "write `tcp`, `udp` or `sctp`",
                    );
                }
                transport
            }
        };
        let port = self.number(&fields.port);
        let node_port = fields.node_port.as_ref().map(|written| self.number(written));
        let target = match &fields.target {
            None => port.map(Target::Number),
            Some(written) if port_name(&written.value) => Some(Target::Named(written.value.clone())),
            Some(written) => {
                let number = port_number(&written.value);
                if number.is_none() {
                    let help =
                        "write a port, 1 to 65535, or the name of the workloads' port: small letters, digits and `-`";
                    self.error(written, format!("`{}` is not a port", written.value), help);
                }
                number.map(Target::Number)
            }
        };
        let (transport, port) = (transport?, port?);
        for &address in addresses {
            let place = self.at(&fields.port);
            if let Some(first) = taken.ports.insert((address, transport, port), place.clone()) {
                let message = format!("port {port}/{transport} of {address} leads to `{service}` and elsewhere");
                let error = Diagnostic::error(&place, message).note(&first, "first here");
                self.found.push(error.help("a port of an address belongs to one service, once"));
            }
        }
        if let (Some(written), Some(Some(number))) = (&fields.node_port, node_port) {
            let place = self.at(written);
            if let Some(first) = taken.node_ports.insert((transport, number), place.clone()) {
                let error = Diagnostic::error(&place, format!("nodePort {number}/{transport} is given twice"))
                    .note(&first, "first here");
                self.found.push(error.help("a nodePort belongs to one service"));
            }
        }
        Some(FrontendPort { transport, port, target: target?, node_port: node_port.flatten() })
    }

    fn number(&mut self, written: &Spanned<String>) -> Option<u16> {
        let number = port_number(&written.value);
        if number.is_none() {
            self.error(written, format!("`{}` is not a port", written.value), "ports are 1 to 65535");
        }
        number
    }

    /// A named port must be there, on each backend and of the protocol.
    fn target(
        &mut self,
        written: &Spanned<String>,
        port: &FrontendPort,
        workloads: &BTreeSet<WorkloadName>,
        outside: &BTreeSet<Outside>,
        taken: &Taken<'_>,
    ) {
        let Target::Named(name) = &port.target else { return };
        let place = self.at(written);
        if let Some(Outside { address, .. }) = outside.first() {
            let error = Diagnostic::error(&place, format!("backend {address} has no port names"));
            self.found.push(error.help("write the port's number; only workloads name their ports"));
        }
        for (workload, ports) in workloads.iter().map(|name| (name, &taken.workloads[name].ports)) {
            let error = match ports.get(name).map(Vec::as_slice) {
                Some(some) if some.iter().any(|(transport, _)| *transport == port.transport) => continue,
                Some([(transport, number), ..]) => {
                    let message = format!(
                        "port `{name}` of workload `{workload}` is {number}/{transport}, this one is {}",
                        port.transport
                    );
                    Diagnostic::error(&place, message).help(format!("write `protocol: {transport}`, or another port"))
                }
                Some([]) | None => Diagnostic::error(&place, format!("workload `{workload}` has no port `{name}`"))
                    .help(suggest(name, ports.keys().map(String::as_str))),
            };
            self.found.push(error);
        }
    }
}
