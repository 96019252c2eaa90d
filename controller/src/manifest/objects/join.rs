//! From objects to workloads, nodes, namespaces and service addresses.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bulkhead_ebpf::abi::Mode;

use super::{
    KINDS, Metadata, Object, Objects, Seen,
    owners::{Owners, owner},
    pods::{APP_NAME, Pod, SERVICE_OF, Template},
    services::{Service, ServicePort, Slice, SliceEndpoint},
};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    labels::{Labels, NAMESPACE_NAME},
    model::ServiceName,
    ports::Transport,
    workloads::{
        Endpoint, Frontend, FrontendPort, Listens, Node, Outside, Owner, SERVICE_LABEL, Target, Workload, WorkloadName,
        Workloads, segment_of,
    },
};

/// Node of workloads that are on none yet.
const UNSCHEDULED: &str = "(unscheduled)";
/// Namespace of the cluster's own DNS, and its name there: that of its service or the value of its label.
const SYSTEM_NAMESPACE: &str = "kube-system";
const DNS: &str = "kube-dns";
const DNS_LABEL: &str = "k8s-app";
/// First of the addresses that are made up. Nobody has them: 240.0.0.0/4 is reserved, and routers discard 0100::/64.
const MADE_UP: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(240, 0, 0, 1), Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));

impl Objects {
    /// Puts all objects together. `namespaces` are those that policies mention.
    pub(in super::super) fn workloads<'a>(
        &'a self,
        namespaces: impl Iterator<Item = &'a str>,
    ) -> Result<Workloads, Diagnostics> {
        let mut found = Diagnostics::default();
        let objects = without_twins(&self.0, &mut found);
        let mut join = Join::new(objects, found, false);
        join.nodes();
        join.pods();
        join.controllers();
        let namespaces = join.namespaces(namespaces);
        let (frontends, resolvers) = join.services();
        join.make_up_addresses(&frontends);
        let Join { found, nodes, workloads, .. } = join;
        let nodes = nodes.into_iter().map(|(name, node)| (name, Arc::new(node))).collect();
        let service_label = service_label(&workloads);
        let workloads = workloads.into_iter().map(|(name, workload)| (name, Arc::new(workload))).collect();
        found.or(Workloads { service_label, resolvers, nodes, workloads, namespaces, frontends, live: false })
    }
}

/// Puts together what runs in a cluster (`namespaces` are those of policies), by what its API server says of it at a moment at which things come and go: nothing is made up, and where two
/// have one address the one that stands behind the other has it. What else does not fit is told beside it.
pub(crate) fn live<'a>(objects: Vec<&'a Seen>, namespaces: impl Iterator<Item = &'a str>) -> (Workloads, Diagnostics) {
    let objects = objects.into_iter().map(|Seen(object)| object).collect();
    let mut join = Join::new(objects, Diagnostics::default(), true);
    join.nodes();
    join.pods();
    let namespaces = join.namespaces(namespaces);
    let (frontends, resolvers) = join.services();
    join.place_in_overlays();
    let Join { found, nodes, workloads, .. } = join;
    let nodes = nodes.into_iter().map(|(name, node)| (name, Arc::new(node))).collect();
    let workloads = workloads.into_iter().map(|(name, workload)| (name, Arc::new(workload))).collect();
    let service_label = SERVICE_OF.to_owned();
    (Workloads { service_label, resolvers, nodes, workloads, namespaces, frontends, live: true }, found)
}

/// Objects while they are put together.
struct Join<'a> {
    /// They are of a cluster as it is now, and not as somebody wrote it.
    live: bool,
    objects: Vec<&'a Object>,
    owners: Owners<'a>,
    found: Diagnostics,
    nodes: BTreeMap<String, Node>,
    workloads: BTreeMap<WorkloadName, Workload>,
    /// Pods that are alive, by the names of their workloads.
    pods: BTreeMap<WorkloadName, &'a Pod>,
    /// Who has an address.
    addresses: BTreeMap<IpAddr, (WorkloadName, Place)>,
}

impl<'a> Join<'a> {
    fn new(objects: Vec<&'a Object>, found: Diagnostics, live: bool) -> Self {
        Self {
            live,
            owners: Owners::new(&objects),
            objects,
            found,
            nodes: BTreeMap::new(),
            workloads: BTreeMap::new(),
            pods: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    fn nodes(&mut self) {
        for object in &self.objects {
            let Object::Node(metadata, machine) = object else { continue };
            let node = Node {
                place: metadata.place.clone(),
                labels: metadata.labels.clone(),
                addresses: machine.addresses.clone(),
                segments: if self.live { machine.segments.clone() } else { Vec::new() },
            };
            self.nodes.insert(metadata.name.name.clone(), node);
        }
    }

    /// The node of a workload, which may be known from it alone.
    fn node(&mut self, metadata: &Metadata, template: &Template) -> &mut Node {
        let (name, place) = match &template.node {
            Some((name, place)) => (&**name, place),
            None => (UNSCHEDULED, &metadata.place),
        };
        let node =
            || Node { place: place.clone(), labels: Labels::new(), addresses: BTreeSet::new(), segments: Vec::new() };
        self.nodes.entry(name.to_owned()).or_insert_with(node)
    }

    /// Pods that are alive, each a workload.
    fn pods(&mut self) {
        let live = self.live;
        let mut alive: Vec<_> = pods(&self.objects).into_iter().filter(|pod| !pod.finished).collect();
        if live {
            // One that waits for a node is nobody's peer yet.
            alive.retain(|pod| pod.template.node.is_some());
            alive.reverse();
        }
        for pod in alive {
            let node = self.node(&pod.metadata, &pod.template);
            if pod.template.node.is_some() && !live {
                node.addresses.extend(&pod.node_addresses);
            }
            let above = self.owners.of(&pod.metadata, &pod.template.labels);
            let owner = above.unwrap_or_else(|| owner(&pod.metadata));
            let name = self.add(&pod.metadata, &pod.template, owner);
            if !pod.template.host {
                self.own(&name, pod);
            }
            self.pods.insert(name, pod);
        }
    }

    /// Gives a pod its addresses.
    fn own(&mut self, name: &WorkloadName, pod: &Pod) {
        if pod.addresses.is_empty() {
            return;
        }
        let mut addresses = Vec::with_capacity(pod.addresses.len());
        for (address, place) in &pod.addresses {
            let address = *address;
            if let Some((owner, first)) = self.addresses.get(&address) {
                if self.live {
                    // It ended, or is about to, and its address was given again before the API server was told.
                    continue;
                }
                let message = format!("{address} of pod `{name}` belongs to pod `{owner}` already");
                let error = Diagnostic::error(place, message).note(first, "given here");
                self.found.push(error.help("an address has one owner: leave out the pod that is gone"));
            } else {
                self.addresses.insert(address, (name.clone(), place.clone()));
            }
            addresses.push(address);
        }
        if let Some(workload) = self.workloads.get_mut(name).filter(|_| !addresses.is_empty()) {
            workload.endpoints = vec![Endpoint { segment: 0, addresses, link: String::new(), placeholder: false }];
        }
    }

    /// Controllers of whose pods none is known, each a workload that stands for all of them.
    fn controllers(&mut self) {
        let mut alone = self.owners.alone(&pods(&self.objects));
        alone.sort_by_key(|controller| KINDS.iter().position(|kind| kind.name == controller.metadata.kind));
        for controller in alone {
            self.node(&controller.metadata, &controller.template);
            let above = self.owners.of(&controller.metadata, &controller.template.labels);
            let owner = above.unwrap_or_else(|| owner(&controller.metadata));
            self.add(&controller.metadata, &controller.template, owner);
        }
    }

    fn add(&mut self, metadata: &Metadata, template: &Template, owner: Arc<Owner>) -> WorkloadName {
        let name = self.free_name(metadata);
        let workload = Workload {
            place: metadata.place.clone(),
            labels: Arc::clone(&template.labels),
            node: template.node.as_ref().map_or_else(|| UNSCHEDULED.into(), |(name, _)| Arc::clone(name)),
            mode: Mode::Enforce,
            ports: Arc::clone(&template.ports),
            endpoints: Vec::new(),
            host: template.host,
            owner: Some(owner),
            uid: metadata.uid.clone(),
        };
        self.workloads.insert(name.clone(), workload);
        name
    }

    /// The object's own name, or with its kind where another has that already: `web.statefulset`.
    fn free_name(&self, metadata: &Metadata) -> WorkloadName {
        let mut name = metadata.name.clone();
        while self.workloads.contains_key(&name) {
            let longer = format!("{}.{}", name.name, metadata.kind.to_ascii_lowercase());
            name = WorkloadName::new(name.namespace.as_str(), longer);
        }
        name
    }

    /// Labels of all namespaces that are defined or mentioned.
    fn namespaces(&self, mentioned: impl Iterator<Item = &'a str>) -> BTreeMap<String, Labels> {
        let mut namespaces: BTreeMap<String, Labels> = BTreeMap::new();
        let objects =
            self.objects.iter().filter_map(|object| object.metadata()).map(|metadata| metadata.name.namespace.as_str());
        let mentioned = objects.chain(mentioned).filter(|name| !name.is_empty());
        namespaces.extend(mentioned.map(|name| (name.to_owned(), Labels::new())));
        for object in &self.objects {
            if let Object::Namespace(metadata) = object {
                namespaces.insert(metadata.name.name.clone(), metadata.labels.clone());
            }
        }
        for (name, labels) in &mut namespaces {
            labels.insert(NAMESPACE_NAME, name.as_str());
        }
        namespaces
    }

    /// Service addresses, and which of them are those of resolvers.
    fn services(&mut self) -> (BTreeMap<ServiceName, Frontend>, BTreeSet<IpAddr>) {
        let (mut frontends, mut resolvers) = (BTreeMap::new(), BTreeSet::new());
        let slices = self.slices();
        let nodes: BTreeSet<IpAddr> = self.nodes.values().flat_map(|node| &node.addresses).copied().collect();
        let mut taken = Taken::default();
        let services = self.objects.iter().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        });
        for service in services {
            let name = ServiceName::from(&service.metadata.name);
            let mut frontend = self.frontend(service, slices.get(&name).map_or(&[], Vec::as_slice));
            // A load balancer made of nodes has their addresses: who calls one calls the node, where a pod forwards it.
            frontend.addresses.retain(|address| !nodes.contains(address));
            taken.note_shared(service, &frontend, &mut self.found);
            if frontend.resolver {
                resolvers.extend(&service.cluster);
            }
            frontends.insert(name, frontend);
        }
        (frontends, resolvers)
    }

    /// Slices by their services.
    fn slices(&self) -> BTreeMap<ServiceName, Vec<&'a Slice>> {
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for object in &self.objects {
            if let Object::Slice(metadata, slice) = object {
                let name = ServiceName::new(metadata.name.namespace.as_str(), slice.service.as_str());
                slices.entry(name).or_default().push(slice);
            }
        }
        slices
    }

    /// What a service is. Whoever is in a slice of it answers, whether it has a selector or not: kube-proxy asks nothing else.
    fn frontend(&self, service: &Service, slices: &[&Slice]) -> Frontend {
        let selects = !service.selector.is_empty();
        // Those made of what the selector matches say it once more, and later.
        let slices: Vec<_> = slices.iter().copied().filter(|slice| slice.beside || !selects).collect();
        let told: &[&Slice] = if selects { &[] } else { &slices };
        let mut frontend = Frontend {
            place: service.metadata.place.clone(),
            addresses: service.cluster.union(&service.external).copied().collect(),
            ports: service.ports.iter().map(|port| target(port, told)).collect(),
            workloads: BTreeSet::new(),
            outside: BTreeSet::new(),
            resolver: is_resolver(&service.metadata) && !service.cluster.is_empty(),
        };
        if selects {
            self.answer_by_labels(service, &mut frontend);
        }
        slices.into_iter().for_each(|slice| self.answer_by_slice(service, slice, &mut frontend));
        frontend
    }

    /// Those in a slice are who has their addresses: nothing is sent to the pod that somebody says they are.
    fn answer_by_slice(&self, service: &Service, slice: &Slice, frontend: &mut Frontend) {
        let listens = (!slice.ports.is_empty()).then(|| Arc::new(listening(service, slice)));
        // A workload answers where the service says.
        let is_told = |name: &WorkloadName| {
            let (Some(listens), Some(workload)) = (&listens, self.workloads.get(name)) else { return true };
            let at = |port: &FrontendPort| listens.get(&(port.transport, port.port)).copied();
            frontend.ports.iter().all(|port| port.target_of(&workload.ports) == at(port))
        };
        for endpoint in &slice.endpoints {
            if let Some(name) = self.named(&service.metadata.name.namespace, endpoint) {
                frontend.workloads.insert(name);
                continue;
            }
            for &address in &endpoint.addresses {
                match (self.addresses.get(&address), &listens) {
                    (Some((name, _)), _) if is_told(name) => _ = frontend.workloads.insert(name.clone()),
                    (_, None) => _ = frontend.outside.insert(address.into()),
                    (_, Some(at)) => {
                        _ = frontend.outside.insert(Outside { address, listens: Listens::At(Arc::clone(at)) });
                    }
                }
            }
        }
    }

    /// The pod that one in a slice is said to be, where its name is all that tells: objects that somebody wrote may have no addresses, those of a cluster do.
    fn named(&self, namespace: &str, endpoint: &SliceEndpoint) -> Option<WorkloadName> {
        let name = WorkloadName::new(namespace, endpoint.pod.as_deref().filter(|_| !self.live)?);
        let pod = self.pods.get(&name).filter(|pod| !pod.template.host)?;
        let nobodys = || endpoint.addresses.iter().all(|address| !self.addresses.contains_key(address));
        (endpoint.addresses.is_empty() || pod.addresses.is_empty() && nobodys()).then_some(name)
    }

    /// Those in the service's namespace that have its labels. One in its node's own network answers there, and is no workload with an address.
    fn answer_by_labels(&self, service: &Service, frontend: &mut Frontend) {
        let namespace = service.metadata.name.namespace.as_str();
        let first = WorkloadName::new(namespace, "");
        let inside = self.workloads.range(first..).take_while(|(name, _)| name.namespace == namespace);
        for (name, workload) in inside {
            if !service.selector.iter().all(|(label, value)| workload.labels.get(label) == Some(value)) {
                continue;
            }
            if !workload.host {
                frontend.workloads.insert(name.clone());
            } else if let Some(pod) = self.pods.get(name) {
                let listens = || Listens::Named(Arc::clone(&pod.template.ports));
                let at = pod.addresses.iter().map(|&(address, _)| Outside { address, listens: listens() });
                frontend.outside.extend(at);
            }
        }
    }

    /// Puts endpoints into the overlays of their nodes.
    fn place_in_overlays(&mut self) {
        let Self { nodes, workloads, .. } = self;
        for workload in workloads.values_mut() {
            let segments = nodes.get(&*workload.node).map(|node| node.segments.as_slice()).unwrap_or_default();
            for endpoint in &mut workload.endpoints {
                endpoint.segment = segment_of(segments, &endpoint.addresses);
            }
        }
    }

    /// Gives each workload that has no address one of each family.
    fn make_up_addresses(&mut self, frontends: &BTreeMap<ServiceName, Frontend>) {
        let mut taken: BTreeSet<IpAddr> = self.addresses.keys().copied().collect();
        taken.extend(self.nodes.values().flat_map(|node| &node.addresses));
        taken.extend(frontends.values().flat_map(|frontend| {
            frontend.addresses.iter().copied().chain(frontend.outside.iter().map(|outside| outside.address))
        }));
        let free = |address: &IpAddr| !taken.contains(address);
        let mut v4 = (MADE_UP.0.to_bits()..u32::MAX).map(|bits| IpAddr::V4(bits.into())).filter(free);
        let first = MADE_UP.1.to_bits();
        let mut v6 = (first..first | u128::from(u64::MAX)).map(|bits| IpAddr::V6(bits.into())).filter(free);
        for workload in self.workloads.values_mut().filter(|of| !of.host && of.endpoints.is_empty()) {
            let addresses = v4.next().into_iter().chain(v6.next()).collect();
            workload.endpoints.push(Endpoint { segment: 0, addresses, link: String::new(), placeholder: true });
        }
    }
}

/// Addresses and ports that lead to a service.
#[derive(Default)]
struct Taken {
    ports: BTreeMap<(IpAddr, Transport, u16), (String, Place)>,
    node_ports: BTreeMap<(Transport, u16), (String, Place)>,
}

impl Taken {
    /// A port leads to one service. Where it does not, nobody knows who answers, and it may be anyone of all that have it.
    fn note_shared(&mut self, service: &Service, frontend: &Frontend, found: &mut Diagnostics) {
        let name = service.metadata.full_name();
        for ServicePort { place, port, .. } in &service.ports {
            let FrontendPort { transport, port: number, node_port, .. } = port;
            let mine = || (name.clone(), place.clone());
            for &address in &frontend.addresses {
                match self.ports.entry((address, *transport, *number)) {
                    Entry::Vacant(free) => _ = free.insert(mine()),
                    Entry::Occupied(first) => {
                        let port = format!("port {number}/{transport} of {address}");
                        found.push(shared(&port, place, &name, first.get()));
                    }
                }
            }
            if let Some(node_port) = node_port
                && let Some(first) = self.node_ports.insert((*transport, *node_port), mine())
            {
                found.push(shared(&format!("nodePort {node_port}/{transport}"), place, &name, &first));
            }
        }
    }
}

fn shared(what: &str, place: &Place, name: &str, (owner, first): &(String, Place)) -> Diagnostic {
    let message = format!("{what} leads to service `{name}` and to `{owner}`");
    Diagnostic::error(place, message).note(first, "first here").help("a port belongs to one service, once")
}

/// An object has its kind and name alone: of those that have the same only the first is used, and the others are wrong.
fn without_twins<'a>(objects: &'a [Object], found: &mut Diagnostics) -> Vec<&'a Object> {
    let mut first: BTreeMap<(&str, &WorkloadName), &Place> = BTreeMap::new();
    let mut alone = Vec::new();
    for object in objects {
        let Some(metadata) = object.metadata() else { continue };
        match first.entry((metadata.kind, &metadata.name)) {
            Entry::Vacant(entry) => {
                entry.insert(&metadata.place);
                alone.push(object);
            }
            Entry::Occupied(entry) => {
                let message = format!("{} `{}` is defined twice", metadata.kind, metadata.full_name());
                let error = Diagnostic::error(&metadata.place, message).note(entry.get(), "first here");
                found.push(error.help("keep one of the two"));
            }
        }
    }
    alone
}

fn pods<'a>(objects: &[&'a Object]) -> Vec<&'a Pod> {
    let pods = objects.iter().filter_map(|object| match object {
        Object::Pod(pod) => Some(pod),
        _ => None,
    });
    pods.collect()
}

/// A port of a service. Where slices say who answers, they also say on which port, and not the service.
fn target(port: &ServicePort, slices: &[&Slice]) -> FrontendPort {
    let mut ports = slices.iter().flat_map(|slice| &slice.ports);
    let found = ports.find(|(name, transport, _)| *name == port.name && *transport == port.port.transport);
    let target = found.map_or_else(|| port.port.target.clone(), |(_, _, number)| Target::Number(*number));
    FrontendPort { target, ..port.port.clone() }
}

/// Where those of a slice listen, by the service's ports.
fn listening(service: &Service, slice: &Slice) -> BTreeMap<(Transport, u16), u16> {
    let called = service.ports.iter().filter_map(|ServicePort { name, port, .. }| {
        let (_, _, number) =
            slice.ports.iter().find(|(of, transport, _)| of == name && *transport == port.transport)?;
        Some(((port.transport, port.port), *number))
    });
    called.collect()
}

pub(super) fn is_resolver(service: &Metadata) -> bool {
    let labelled = service.labels.get(DNS_LABEL).is_some_and(|value| value == DNS);
    service.name.namespace == SYSTEM_NAMESPACE && (service.name.name == DNS || labelled)
}

/// The label that names services. There is one for all workloads, so the better known one gives way only to one that whoever has it has as well:
/// else a workload would lose the name that it has by `app`.
fn service_label(workloads: &BTreeMap<WorkloadName, Workload>) -> String {
    let has = |workload: &Workload, label: &str| workload.labels.contains(label);
    let any = workloads.values().any(|workload| has(workload, APP_NAME));
    let all = workloads.values().all(|workload| has(workload, APP_NAME) || !has(workload, SERVICE_LABEL));
    if any && all { APP_NAME } else { SERVICE_LABEL }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::manifests;

    fn workloads(text: &str) -> Workloads {
        manifests(text).workloads().unwrap_or_else(|found| panic!("{found}"))
    }

    fn named<'a>(workloads: &'a Workloads, name: &str) -> &'a Workload {
        let (namespace, name) = name.split_once('/').unwrap();
        &workloads.workloads[&WorkloadName::new(namespace.to_owned(), name.to_owned())]
    }

    fn frontend<'a>(workloads: &'a Workloads, name: &str) -> &'a Frontend {
        let (namespace, name) = name.split_once('/').unwrap();
        &workloads.frontends[&ServiceName::new(namespace.to_owned(), name.to_owned())]
    }

    fn outside(frontend: &Frontend) -> impl Iterator<Item = IpAddr> {
        frontend.outside.iter().map(|outside| outside.address)
    }

    fn addresses(of: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
        of.into_iter().map(|address| address.to_string()).collect()
    }

    #[test]
    fn a_pod_is_what_it_and_its_status_say() {
        let found = workloads(
            "apiVersion: v1\nkind: Pod\nmetadata: { name: web-1, namespace: shop, labels: { app: web } }\nspec:\n  nodeName: n1\n  \
             containers:\n  - ports: [{ name: http, containerPort: 8080 }, { containerPort: 9 }]\n  \
             - ports: [{ name: dns, containerPort: 53, protocol: UDP }, { name: http, containerPort: 81 }]\n  \
             initContainers:\n  - { restartPolicy: Always, ports: [{ name: mesh, containerPort: 15001 }] }\n  \
             - ports: [{ name: once, containerPort: 1 }]\n\
             status: { phase: Running, hostIP: 192.0.2.1, podIP: 10.244.1.5, podIPs: [{ ip: 10.244.1.5 }, { ip: \"2001:db8::5\" }] }\n",
        );
        let web = named(&found, "shop/web-1");
        assert_eq!((&*web.node, web.labels.get("app"), web.host), ("n1", Some("web"), false));
        assert_eq!(web.place.to_string(), "m.yaml:3:19");
        let ports: Vec<_> =
            web.ports.iter().map(|(name, ports)| format!("{name} {}/{}", ports[0].1, ports[0].0)).collect();
        assert_eq!(ports, ["dns 53/udp", "http 8080/tcp", "mesh 15001/tcp"]);
        let [endpoint] = &web.endpoints[..] else { panic!("{:?}", web.endpoints) };
        assert_eq!(addresses(&endpoint.addresses), ["10.244.1.5", "2001:db8::5"]);
        assert_eq!((endpoint.segment, endpoint.link.as_str(), endpoint.placeholder), (0, "", false));
        assert_eq!(addresses(&found.nodes["n1"].addresses), ["192.0.2.1"]);
        assert!(!found.nodes.contains_key(UNSCHEDULED));
    }

    #[test]
    fn pods_that_have_ended_are_left_out_and_their_addresses_free() {
        let pod = |name: &str, phase: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec: {{}}\nstatus: {{ phase: {phase}, podIP: 10.244.1.5 }}\n---\n"
            )
        };
        let found = workloads(&[pod("a", "Succeeded"), pod("b", "Failed"), pod("c", "Running")].concat());
        assert_eq!(addresses(found.workloads.keys()), ["default/c"]);
    }

    #[test]
    fn made_up_addresses_are_nobodys() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: { name: real }\nspec: {}\nstatus: { podIP: 240.0.0.2 }\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: { name: host }\nspec: { hostNetwork: true }\n---\n\
             apiVersion: apps/v1\nkind: DaemonSet\nmetadata: { name: b, labels: { app: not-this } }\n\
             spec: { template: { metadata: { labels: { app: b } }, spec: {} } }\n---\n\
             apiVersion: v1\nkind: ReplicationController\nmetadata: { name: a }\nspec: { template: { spec: {} } }\n";
        let found = workloads(text);
        let of = |name: &str| {
            let endpoints = &named(&found, name).endpoints;
            endpoints.iter().flat_map(|endpoint| addresses(&endpoint.addresses)).collect::<Vec<_>>()
        };
        assert_eq!(of("default/a"), ["240.0.0.1", "100::1"]);
        assert_eq!(of("default/b"), ["240.0.0.3", "100::2"]);
        assert!(named(&found, "default/a").endpoints[0].placeholder);
        assert_eq!(named(&found, "default/b").labels.get("app"), Some("b"));
        assert!(named(&found, "default/host").host && of("default/host").is_empty());
        let unscheduled = &found.nodes[UNSCHEDULED];
        assert!(unscheduled.addresses.is_empty() && unscheduled.labels.is_empty() && unscheduled.segments.is_empty());
    }

    #[test]
    fn workloads_of_one_name_are_told_apart() {
        let made = |kind: &str| {
            format!(
                "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{ name: web }}\nspec: {{ template: {{ spec: {{}} }} }}\n---\n"
            )
        };
        let found = workloads(&[made("StatefulSet"), made("DaemonSet"), made("Deployment")].concat());
        assert_eq!(
            addresses(found.workloads.keys()),
            ["default/web", "default/web.daemonset", "default/web.statefulset"]
        );
        assert_eq!(named(&found, "default/web").owner.as_ref().unwrap().kind, "Deployment");
    }

    #[test]
    fn namespaces_are_those_that_are_defined_or_mentioned() {
        let found = workloads(
            "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { tenant: red } }\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: {}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: { name: a, namespace: ops }\nspec: {}\n",
        );
        let labels = |name: &str| {
            found.namespaces[name].iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(addresses(found.namespaces.keys()), ["default", "ops", "shop"]);
        assert_eq!(labels("shop"), ["kubernetes.io/metadata.name=shop", "tenant=red"]);
        assert_eq!(labels("ops"), ["kubernetes.io/metadata.name=ops"]);
    }

    #[test]
    fn a_node_has_its_labels_and_addresses_and_no_prefixes() {
        let found = workloads(
            "apiVersion: v1\nkind: Node\nmetadata: { name: n1, labels: { zone: a } }\nspec: { podCIDR: 10.244.1.0/24 }\n\
             status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }, { type: ExternalIP, address: 203.0.113.1 }, { type: Hostname, address: n1 }] }\n",
        );
        let node = &found.nodes["n1"];
        assert_eq!(addresses(&node.addresses), ["192.0.2.1", "203.0.113.1"]);
        assert_eq!((node.labels.get("zone"), node.segments.len()), (Some("a"), 0));
    }

    /// Two pods with addresses, one of them in its node's network, and a deployment.
    const BACKENDS: &str = "apiVersion: v1\nkind: Pod\nmetadata: { name: a, namespace: shop, labels: { app: web } }\nspec: {}\n\
         status: { podIP: 10.244.1.5 }\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: { name: b, namespace: shop, labels: { app: web } }\n\
         spec: { hostNetwork: true, nodeName: n1, containers: [{ name: b, ports: [{ name: http, containerPort: 9100 }] }] }\n\
         status: { podIP: 192.0.2.1, hostIP: 192.0.2.1 }\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: c, namespace: shop }\n\
         spec: { template: { metadata: { labels: { app: web, v: \"2\" } }, spec: {} } }\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: { name: d, labels: { app: web } }\nspec: {}\n---\n";

    #[test]
    fn a_service_leads_to_those_that_its_selector_matches() {
        let found = workloads(&format!(
            "{BACKENDS}apiVersion: v1\nkind: Service\nmetadata: {{ name: web, namespace: shop }}\nspec:\n  \
             selector: {{ app: web }}\n  clusterIP: 10.96.0.5\n  clusterIPs: [10.96.0.5, \"2001:db8::60\"]\n  externalIPs: [198.51.100.7, 192.0.2.1]\n  \
             ports: [{{ port: 80, targetPort: http, nodePort: 30080 }}, {{ port: 53, protocol: UDP }}, {{ port: 443, targetPort: 8443, nodePort: 0 }}]\n\
             status: {{ loadBalancer: {{ ingress: [{{ ip: 198.51.100.8 }}, {{ hostname: lb.example.com }}, {{ ip: 198.51.100.9, ipMode: Proxy }}] }} }}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{ name: headless, namespace: shop }}\n\
             spec: {{ selector: {{ v: \"2\" }}, clusterIP: None, clusterIPs: [None], ports: [{{ port: 80 }}] }}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{ name: outside, namespace: shop }}\n\
             spec: {{ type: ExternalName, externalName: example.com }}\n"
        ));
        let web = frontend(&found, "shop/web");
        assert_eq!(
            addresses(&web.addresses),
            ["10.96.0.5", "198.51.100.7", "198.51.100.8", "2001:db8::60"],
            "a node's own address is not a service's"
        );
        assert_eq!(addresses(&web.workloads), ["shop/a", "shop/c"]);
        assert_eq!(addresses(outside(web)), ["192.0.2.1"], "what is in its node's network answers there");
        let answers = |of: &Outside| web.ports.iter().map(|port| port.answered_by(of)).collect::<Vec<_>>();
        assert_eq!(
            answers(web.outside.first().unwrap()),
            [Some(9100), Some(53), Some(8443)],
            "and has named its ports"
        );
        let ports: Vec<_> =
            web.ports.iter().map(|port| (port.transport, port.port, port.target.clone(), port.node_port)).collect();
        assert_eq!(
            ports,
            [
                (Transport::Tcp, 80, Target::Named("http".into()), Some(30080)),
                (Transport::Udp, 53, Target::Number(53), None),
                (Transport::Tcp, 443, Target::Number(8443), None),
            ]
        );
        let headless = frontend(&found, "shop/headless");
        assert!(headless.addresses.is_empty());
        assert_eq!(addresses(&headless.workloads), ["shop/c"]);
        assert_eq!(found.frontends.len(), 2);
    }

    #[test]
    fn slices_say_who_answers_where_no_selector_does() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: { name: db, namespace: shop }\n\
             spec: { clusterIP: 10.96.0.6, ports: [{ name: sql, port: 5432 }] }\n---\n";
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: { name: db-x, namespace: shop, labels: { kubernetes.io/service-name: db } }\n\
             endpoints:\n- { addresses: [10.244.1.5] }\n- { addresses: [203.0.113.5] }\n- { addresses: [192.0.2.1], targetRef: { kind: Pod, name: b } }\n\
             ports: [{ name: sql, port: 6432, protocol: TCP }]\n";
        let old = "apiVersion: v1\nkind: Endpoints\nmetadata: { name: db, namespace: shop }\nsubsets:\n\
             - addresses: [{ ip: 10.244.1.5 }, { ip: 192.0.2.1 }]\n  notReadyAddresses: [{ ip: 203.0.113.5 }]\n  ports: [{ name: sql, port: 6432 }]\n";
        for answering in [slice, old] {
            let found = workloads(&format!("{BACKENDS}{service}{answering}"));
            let db = frontend(&found, "shop/db");
            assert_eq!(addresses(&db.workloads), ["shop/a"]);
            assert_eq!(addresses(outside(db)), ["192.0.2.1", "203.0.113.5"]);
            assert_eq!(db.ports[0].target, Target::Number(6432), "the slice says where they listen");
        }
        let found = workloads(&format!("{BACKENDS}{service}"));
        assert_eq!(frontend(&found, "shop/db").ports[0].target, Target::Number(5432));
    }

    /// kube-proxy sends to the addresses in all slices of a service, and asks for nobody's name.
    #[test]
    fn whoever_is_in_a_slice_answers_beside_those_that_the_selector_matches() {
        let slice = |name: &str, label: &str, endpoint: &str, port: u16| {
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{ name: {name}, namespace: shop, labels: {{ kubernetes.io/service-name: web{label} }} }}\n\
                 endpoints: [{{ {endpoint} }}]\nports: [{{ port: {port} }}]\n"
            )
        };
        let web = |selector: &str, slices: &[String]| {
            let service = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{ name: web, namespace: shop }}\n\
                 spec: {{ clusterIP: 10.96.0.6, selector: {{ {selector} }}, ports: [{{ port: 80, targetPort: 8080 }}] }}\n"
            );
            let frontend = frontend(&workloads(&format!("{BACKENDS}{service}{}", slices.concat())), "shop/web").clone();
            let port = &frontend.ports[0];
            let at = |of: &Outside| port.answered_by(of).map(|port| format!("{}:{port}", of.address));
            let outside: Vec<_> = frontend.outside.iter().filter_map(at).collect();
            (addresses(&frontend.workloads), outside)
        };
        let says = |workloads: &[&str], outside: &[&str]| -> (Vec<String>, Vec<String>) {
            (addresses(workloads), addresses(outside))
        };
        let own = ", endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io";
        let other = ", endpointslice.kubernetes.io/managed-by: somebody";
        let (old, beside) = ("addresses: [10.244.9.9]", "addresses: [203.0.113.5]");
        let slices = [slice("s1", own, old, 8080), slice("s2", "", beside, 90), slice("s3", other, beside, 91)];
        let both = ["192.0.2.1:8080", "203.0.113.5:90", "203.0.113.5:91"];
        assert_eq!(web("app: web", &slices), says(&["shop/a", "shop/c"], &both));
        assert_eq!(web("", &slices[..1]), says(&[], &["10.244.9.9:8080"]), "what a selector has left behind");
        for (endpoint, workloads, outside) in [
            ("addresses: [203.0.113.5], targetRef: { kind: Pod, name: a }", &[][..], &["203.0.113.5:80"][..]),
            ("addresses: [10.244.1.5], targetRef: { kind: Pod, name: e }", &["shop/a"], &[]),
            ("addresses: [10.244.1.6], targetRef: { kind: Pod, name: e }", &["shop/e"], &[]),
            ("targetRef: { kind: Pod, name: a }", &["shop/a"], &[]),
        ] {
            let unknown = "---\napiVersion: v1\nkind: Pod\nmetadata: { name: e, namespace: shop }\nspec: {}\n";
            let slices = [slice("s1", "", endpoint, 80), unknown.to_owned()];
            assert_eq!(web("", &slices), says(workloads, outside), "{endpoint}");
        }
        // Each of them listens where its own slice says.
        let known = "addresses: [10.244.1.5]";
        let slices = [slice("s1", "", known, 80), slice("s2", "", known, 81)];
        assert_eq!(web("", &slices), says(&["shop/a"], &["10.244.1.5:81"]));
        assert_eq!(web("app: nobody", &slices[..1]), says(&[], &["10.244.1.5:80"]));
    }

    #[test]
    fn the_clusters_dns_is_the_resolver() {
        let service = |name: &str, namespace: &str, label: &str, address: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace}, labels: {{ k8s-app: {label} }} }}\n\
                 spec: {{ clusterIP: {address}, ports: [{{ port: 53, protocol: UDP }}] }}\n---\n"
            )
        };
        let found = workloads(&format!(
            "{}{}{}",
            service("kube-dns", "kube-system", "x", "10.96.0.10"),
            service("coredns", "kube-system", "kube-dns", "10.96.0.11"),
            service("kube-dns", "shop", "kube-dns", "10.96.0.12"),
        ));
        assert_eq!(addresses(&found.resolvers), ["10.96.0.10", "10.96.0.11"]);
    }

    /// A cluster as it is at a moment.
    fn cluster(text: &str) -> (Workloads, Diagnostics) {
        let seen: Vec<_> = manifests(text).objects.0.into_iter().map(Seen::new).collect();
        live(seen.iter().collect(), ["policed"].into_iter())
    }

    fn running(name: &str, created: &str, rest: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, uid: u-{name}, creationTimestamp: '2026-01-01T00:00:{created}Z', labels: {{ app: web }} }}\n{rest}\n---\n"
        )
    }

    #[test]
    fn an_address_that_was_given_again_is_the_last_pods() {
        let pod = |name| running(name, "01", "spec: { nodeName: n1 }\nstatus: { phase: Running, podIP: 10.244.1.5 }");
        for pods in [[pod("old"), pod("new")], [pod("z-old"), pod("a-new")]] {
            let (found, notes) = cluster(&pods.concat());
            assert!(notes.0.is_empty(), "{notes}");
            let owners = found.workloads.iter().filter(|(_, workload)| !workload.endpoints.is_empty());
            let owners: Vec<_> = owners.map(|(name, _)| name.name.as_str()).collect();
            assert!(matches!(owners[..], ["new" | "a-new"]), "{owners:?}");
        }
    }

    #[test]
    fn nothing_is_made_up_of_a_cluster() {
        let (found, _) =
            cluster(&[running("waits", "01", "spec: {}"), running("starts", "02", "spec: { nodeName: n1 }")].concat());
        assert_eq!(addresses(found.workloads.keys()), ["shop/starts"], "one without a node is nobody's peer yet");
        let starts = named(&found, "shop/starts");
        assert!(starts.endpoints.is_empty() && found.live);
        assert_eq!(starts.uid.as_deref(), Some("u-starts"));
        assert!(found.namespaces.contains_key("policed"));
    }

    #[test]
    fn pods_are_in_the_overlay_of_their_node() {
        let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    flannel.alpha.coreos.com/backend-type: vxlan\n    \
             flannel.alpha.coreos.com/backend-data: '{\"VNI\":1,\"VtepMAC\":\"f2:00:00:00:00:01\"}'\n    flannel.alpha.coreos.com/public-ip: 192.0.2.1\n    \
             flannel.alpha.coreos.com/backend-v6-data: '{\"VNI\":1,\"VtepMAC\":\"f2:00:00:00:00:02\"}'\n    flannel.alpha.coreos.com/public-ipv6: 'fd00::1'\n\
             spec: { podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:244:0:1::/64'] }\n\
             status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }] }\n---\n";
        let status = |ips: &str| format!("spec: {{ nodeName: n1 }}\nstatus: {{ podIPs: [{ips}] }}");
        let (found, _) = cluster(
            &[
                node.to_owned(),
                running("in", "01", &status("{ ip: 10.244.1.5 }, { ip: 'fd00:244:0:1::5' }")),
                running("out", "01", &status("{ ip: 10.9.1.5 }")),
            ]
            .concat(),
        );
        let node = &found.nodes["n1"];
        let own = ["10.244.1.0", "10.244.1.1", "192.0.2.1", "fd00::1", "fd00:244:0:1::", "fd00:244:0:1::1"];
        assert_eq!(addresses(&node.addresses), own);
        let segments: Vec<_> =
            node.segments.iter().map(|of| (of.vni, of.vtep.to_string(), addresses(&of.prefixes))).collect();
        assert_eq!(
            segments,
            [
                (1, "192.0.2.1".to_owned(), vec!["10.244.1.0/24".to_owned()]),
                (1, "fd00::1".to_owned(), vec!["fd00:244:0:1::/64".to_owned()])
            ]
        );
        assert_eq!(named(&found, "shop/in").endpoints[0].segment, 1);
        assert_eq!(named(&found, "shop/out").endpoints[0].segment, 0);
    }

    /// Where a load balancer forwards from the developer's own machine its address is 127.0.0.1.
    #[test]
    fn a_service_keeps_its_other_addresses() {
        let (listed, _) = cluster(
            "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\nspec: { clusterIP: 10.96.0.9, ports: [{ port: 80 }] }\n\
             status: { loadBalancer: { ingress: [{ ip: 127.0.0.1 }, { ip: 192.0.2.80 }] } }\n",
        );
        let frontend = listed.frontends.values().next().unwrap();
        assert_eq!(addresses(&frontend.addresses), ["10.96.0.9", "192.0.2.80"]);
    }

    /// kube-proxy may send to any of them.
    #[test]
    fn two_services_with_one_address_both_have_it() {
        let service = |name: &str, more: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
                 spec: {{ externalIPs: [198.51.100.7], ports: [{{ name: http, port: 80 }}{more}] }}\n---\n"
            )
        };
        let (found, notes) = cluster(&[service("a", ""), service("b", ", { name: https, port: 443 }")].concat());
        assert_eq!(notes.0.len(), 1, "{notes}");
        for name in ["default/a", "default/b"] {
            assert_eq!(addresses(&frontend(&found, name).addresses), ["198.51.100.7"]);
        }
    }

    /// One pod that comes must not change how the services of all others are called.
    #[test]
    fn each_workload_of_a_cluster_has_the_name_of_its_service() {
        let pod = |name: &str, labels: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, labels: {{ {labels} }} }}\nspec: {{ nodeName: n1 }}\n---\n"
            )
        };
        let (found, _) =
            cluster(&[pod("a", "app: a"), pod("b", "app: x, app.kubernetes.io/name: b"), pod("c", "x: c")].concat());
        let service = |name| named(&found, name).labels.get(&found.service_label);
        assert_eq!(["default/a", "default/b", "default/c"].map(service), [Some("a"), Some("b"), None]);
    }

    /// The kubelet tells plugins the id of the file's pod, and the API server has another for its image of it.
    #[test]
    fn a_mirrored_pod_has_the_id_of_the_original() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: { name: a, uid: image, annotations: { kubernetes.io/config.mirror: original } }\nspec: { nodeName: n1 }\n";
        let (found, _) = cluster(text);
        assert_eq!(named(&found, "default/a").uid.as_deref(), Some("original"));
    }

    #[test]
    fn the_label_that_names_services_leaves_nobody_without_a_name() {
        let label = |labels: &[&str]| {
            let pods = labels.iter().enumerate().map(|(i, labels)| {
                format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p{i}, labels: {{ {labels} }} }}\nspec: {{}}\n---\n"
                )
            });
            workloads(&pods.collect::<String>()).service_label
        };
        assert_eq!(label(&[]), "app");
        assert_eq!(label(&["x: z"]), "app");
        assert_eq!(label(&["app: a"]), "app");
        assert_eq!(label(&["app.kubernetes.io/name: a", "x: z"]), "app.kubernetes.io/name");
        assert_eq!(
            label(&["app.kubernetes.io/name: a, app: a", "app.kubernetes.io/name: b"]),
            "app.kubernetes.io/name"
        );
        assert_eq!(label(&["app.kubernetes.io/name: a", "app: b"]), "app");
    }
}
