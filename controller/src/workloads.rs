//! `kind: Workloads`: the workloads file, for networks that no orchestrator describes.

mod frontends;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_dataplane::desired::Segment;
use bulkhead_ebpf::abi::{ENDPOINT_ADDRESSES, Mode};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_saphyr::Spanned;

use self::frontends::FrontendFields;
pub use self::frontends::{Frontend, FrontendPort, Listens, Outside, Target};
pub use crate::names::WorkloadName;
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Source, suggest},
    intent::valid_name,
    labels::{Labels, NAMESPACE_NAME},
    model::ServiceName,
    ports::{Transport, listening, port_name},
    yaml::{self, Checked, Entries, at},
};

/// Label that names a workload's service unless `serviceLabel` says another.
pub const SERVICE_LABEL: &str = "app";
/// UDP port of an overlay of which neither the node's kernel nor the file says another: flannel's.
pub const VXLAN_PORT: u16 = 8472;
/// VNIs have 24 bits.
const MAX_VNI: u32 = 0x00ff_ffff;

/// Modes that can be written.
const MODES: [Mode; 3] = [Mode::Enforce, Mode::Observe, Mode::Quarantine];

/// Name of a mode.
#[must_use]
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Pending => "pending",
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
        Mode::Quarantine => "quarantine",
    }
}

/// What the file says.
#[derive(Clone, Debug, Default)]
pub struct Workloads {
    /// Label that names a workload's service.
    pub service_label: String,
    /// Addresses of DNS resolvers.
    pub resolvers: BTreeSet<IpAddr>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Workloads by name. There are many, and several who know them.
    pub workloads: BTreeMap<WorkloadName, Arc<Workload>>,
    /// Labels of namespaces, their names among them. One that is not listed has its name alone.
    pub namespaces: BTreeMap<String, Labels>,
    /// Service addresses, by the name of the service. (A service that an Intent lists may be called the same and be another.)
    pub frontends: BTreeMap<ServiceName, Frontend>,
    /// They are those of a cluster that is watched, and not somebody's word: they come and go, and what runtimes tell of this node goes before.
    pub live: bool,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands.
    pub place: Place,
    /// Labels.
    pub labels: Labels,
    /// Addresses, those of its VTEPs included.
    pub addresses: BTreeSet<IpAddr>,
    /// Overlays of which it is a member.
    pub segments: Vec<NodeSegment>,
}

/// Membership of a node in an overlay. A dual-stack overlay may be written as two with the same VNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSegment {
    /// VNI.
    pub vni: Segment,
    /// Address in the underlay.
    pub vtep: IpAddr,
    /// UDP port, where the file says one.
    pub port: Option<u16>,
    /// Inner prefixes. One that several nodes list is the overlay's but binds to none of them: there addresses bind.
    pub prefixes: BTreeSet<IpNetwork>,
}

/// A workload. What many have in common they can share.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where it stands.
    pub place: Place,
    /// Labels.
    pub labels: Arc<Labels>,
    /// Node that it runs on.
    pub node: Arc<str>,
    /// Whether policy holds, is only judged, or nothing passes at all.
    pub mode: Mode,
    /// Named ports that it listens on.
    pub ports: Arc<PortNames>,
    /// Endpoints. May be empty: then whoever makes the links tells them.
    pub endpoints: Vec<Endpoint>,
    /// It lives in its node's own network: it has no address of its own, and no policy is about it.
    pub host: bool,
    /// Who made it and others like it; a lone pod is its own. `None` where nobody says of what kind it is.
    pub owner: Option<Arc<Owner>>,
    /// Unique id, where it has one: another of the same name is another workload.
    pub uid: Option<Arc<str>>,
}

/// Ports by their names, those of one name in the order in which they are written: several containers of a pod may have one each.
pub type PortNames = BTreeMap<String, Vec<(Transport, u16)>>;

/// The overlay in whose prefixes of a node some address is; 0 for none.
#[must_use]
pub fn segment_of(segments: &[NodeSegment], addresses: &[IpAddr]) -> Segment {
    let holds = |segment: &&NodeSegment| {
        addresses.iter().any(|address| segment.prefixes.iter().any(|net| net.contains(*address)))
    };
    segments.iter().find(holds).map_or(0, |segment| segment.vni)
}

/// What makes workloads of one kind: a Deployment, a StatefulSet, and so on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its kind.
    pub kind: String,
    /// Its name, in the namespace of its workloads.
    pub name: String,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// VNI, 0 for none.
    pub segment: Segment,
    /// Own addresses.
    pub addresses: Vec<IpAddr>,
    /// Host-side link; empty where nobody knows it yet: then whoever makes it tells, and nothing is guarded before.
    pub link: String,
    /// The addresses are made up, since nobody knows them yet: no prefix holds them.
    pub placeholder: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: Checked,
    #[serde(rename = "kind")]
    _kind: Checked,
    service_label: Option<Spanned<String>>,
    #[serde(default)]
    namespaces: Vec<NamespaceFields>,
    #[serde(default)]
    resolvers: Vec<Spanned<String>>,
    #[serde(default)]
    nodes: Vec<NodeFields>,
    #[serde(default)]
    workloads: Vec<WorkloadFields>,
    #[serde(default)]
    services: Vec<FrontendFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceFields {
    name: Spanned<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFields {
    name: Spanned<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    segments: Vec<SegmentFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentFields {
    vni: Spanned<u32>,
    vtep: Spanned<String>,
    port: Option<Spanned<u16>>,
    #[serde(default)]
    prefixes: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadFields {
    name: Spanned<String>,
    namespace: Spanned<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    node: Spanned<String>,
    mode: Option<Spanned<String>>,
    #[serde(default)]
    ports: Entries<Spanned<String>>,
    #[serde(default)]
    endpoints: Vec<EndpointFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointFields {
    segment: Option<Spanned<u32>>,
    addresses: Spanned<Vec<Spanned<String>>>,
    link: Option<Spanned<String>>,
}

/// Reads a workloads file: one document.
///
/// # Errors
/// Everything that is wrong with it; nothing of it is used then.
pub fn parse(source: &Arc<Source>) -> Result<Workloads, Diagnostics> {
    let documents = yaml::documents::<Document>(source, "Workloads", |kind| match kind {
        "Intent" | "Guard" => Some("policies stand in files of the directory given by `--policies`"),
        _ => None,
    })?;
    let mut documents = documents.into_iter();
    let Some(document) = documents.next() else {
        return Err(Diagnostic::error(&Place::start(source), "the file has no document").into());
    };
    if let Some(second) = documents.next() {
        return Err(Diagnostic::error(&at(source, &second), "a workloads file is one document")
            .help("put everything in the first one")
            .into());
    }
    let mut reader = Reader { source, found: Diagnostics::default(), owners: BTreeMap::new(), links: BTreeMap::new() };
    let workloads = reader.document(document.value);
    reader.found.or(workloads)
}

/// Turns what was deserialized into what is meant, and collects what is wrong.
struct Reader<'a> {
    source: &'a Arc<Source>,
    found: Diagnostics,
    /// Who has an address in a segment.
    owners: BTreeMap<(Segment, IpAddr), (String, Place)>,
    /// Who has a link of a node.
    links: BTreeMap<(String, String), Place>,
}

impl Reader<'_> {
    fn at<T>(&self, value: &Spanned<T>) -> Place {
        at(self.source, value)
    }

    fn error<T>(&mut self, value: &Spanned<T>, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(&self.at(value), message).help(help));
    }

    fn name(&mut self, name: &Spanned<String>, of: &str) -> String {
        if !valid_name(&name.value) {
            let help = "1 to 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends";
            self.error(name, format!("`{}` cannot be the name of {of}", name.value), help);
        }
        name.value.clone()
    }

    fn address(&mut self, written: &Spanned<String>) -> Option<IpAddr> {
        let address = written
            .value
            .parse::<IpAddr>()
            .ok()
            .filter(|address| !address.is_unspecified() && !address.is_multicast() && !address.is_loopback());
        if address.is_none() {
            self.error(
                written,
                format!("`{}` is not an address that a node or workload can have", written.value),
                "write `10.244.1.5` or `2001:db8::5`",
            );
        }
        address
    }

    fn document(&mut self, document: Document) -> Workloads {
        let service_label = document.service_label.map_or_else(|| SERVICE_LABEL.to_owned(), |label| label.value);
        let resolvers = document.resolvers.iter().filter_map(|address| self.address(address)).collect();
        let mut nodes: BTreeMap<String, Arc<Node>> = BTreeMap::new();
        for fields in &document.nodes {
            let (name, node) = self.node(fields);
            if let Some(first) = nodes.get(&name) {
                let error = Diagnostic::error(&node.place, format!("node `{name}` is listed twice"))
                    .note(&first.place, "first here");
                self.found.push(error.help("keep one of the two"));
            }
            nodes.insert(name, Arc::new(node));
        }
        let mut workloads: BTreeMap<WorkloadName, Workload> = BTreeMap::new();
        for fields in &document.workloads {
            let (name, workload) = self.workload(fields, &nodes);
            if let Some(first) = workloads.get(&name) {
                let error = Diagnostic::error(&workload.place, format!("workload `{name}` is listed twice"))
                    .note(&first.place, "first here");
                self.found.push(error.help("give it another name, or another endpoint"));
            }
            workloads.insert(name, workload);
        }
        let mut namespaces = self.namespaces(&document.namespaces);
        for name in workloads.keys() {
            namespaces.entry(name.namespace.clone()).or_default();
        }
        for (name, labels) in &mut namespaces {
            labels.insert(NAMESPACE_NAME, name.as_str());
        }
        let frontends = self.frontends(&document.services, &resolvers, &nodes, &workloads);
        let workloads = workloads.into_iter().map(|(name, workload)| (name, Arc::new(workload))).collect();
        Workloads { service_label, resolvers, nodes, workloads, namespaces, frontends, live: false }
    }

    fn namespaces(&mut self, written: &[NamespaceFields]) -> BTreeMap<String, Labels> {
        let mut first: BTreeMap<String, Place> = BTreeMap::new();
        let mut namespaces = BTreeMap::new();
        for fields in written {
            let name = self.name(&fields.name, "a namespace");
            let place = self.at(&fields.name);
            if let Some(first) = first.insert(name.clone(), place.clone()) {
                let error = Diagnostic::error(&place, format!("namespace `{name}` is listed twice"));
                self.found.push(error.note(&first, "first here").help("keep one of the two"));
            }
            if let Some(other) = fields.labels.get(NAMESPACE_NAME).filter(|other| **other != name) {
                let message = format!("`{NAMESPACE_NAME}` of namespace `{name}` is its name, not `{other}`");
                self.error(&fields.name, message, "leave the label out: every namespace has it");
            }
            namespaces.insert(name, fields.labels.clone().into());
        }
        namespaces
    }

    fn node(&mut self, fields: &NodeFields) -> (String, Node) {
        let name = self.name(&fields.name, "a node");
        let mut addresses: BTreeSet<IpAddr> =
            fields.addresses.iter().filter_map(|address| self.address(address)).collect();
        let mut segments: Vec<NodeSegment> = Vec::new();
        for written in &fields.segments {
            let vni = self.vni(&written.vni, 1);
            let Some(vtep) = self.address(&written.vtep) else {
                continue;
            };
            if segments.iter().any(|segment| segment.vni == vni && segment.vtep == vtep) {
                self.error(
                    &written.vni,
                    format!("node `{name}` lists segment {vni} with VTEP {vtep} twice"),
                    "put the prefixes together",
                );
            }
            let prefixes = written.prefixes.iter().filter_map(|prefix| self.prefix(prefix)).collect();
            addresses.insert(vtep);
            segments.push(NodeSegment { vni, vtep, port: written.port.as_ref().map(|port| port.value), prefixes });
        }
        if addresses.is_empty() {
            self.error(&fields.name, format!("node `{name}` has no address"), "write `addresses: [192.0.2.1]`");
        }
        (name, Node { place: self.at(&fields.name), labels: fields.labels.clone().into(), addresses, segments })
    }

    fn vni(&mut self, vni: &Spanned<u32>, least: u32) -> Segment {
        if !(least..=MAX_VNI).contains(&vni.value) {
            self.error(
                vni,
                format!("{} is not a VNI", vni.value),
                format!("a VNI is 1 to {MAX_VNI}; an endpoint outside of every overlay has segment 0"),
            );
        }
        vni.value
    }

    fn prefix(&mut self, written: &Spanned<String>) -> Option<IpNetwork> {
        let net = written.value.parse::<IpNetwork>().ok().filter(|net| net.ip() == net.network());
        if net.is_none() {
            self.error(
                written,
                format!("`{}` is not a prefix", written.value),
                "write `10.244.1.0/24`, without bits behind the prefix",
            );
        }
        net
    }

    fn workload(&mut self, fields: &WorkloadFields, nodes: &BTreeMap<String, Arc<Node>>) -> (WorkloadName, Workload) {
        let name =
            WorkloadName::new(self.name(&fields.namespace, "a namespace"), self.name(&fields.name, "a workload"));
        let node = nodes.get(&fields.node.value).map(|node| &**node);
        if node.is_none() {
            let known = suggest(&fields.node.value, nodes.keys().map(String::as_str));
            self.error(&fields.node, format!("there is no node `{}`", fields.node.value), known);
        }
        let mut ports = BTreeMap::new();
        for (port, written) in &fields.ports.0 {
            if !port_name(&port.value) {
                self.error(
                    port,
                    format!("`{}` cannot be the name of a port", port.value),
                    "small letters, digits and `-`, with a letter, and not `any`",
                );
            }
            match listening(&written.value) {
                Some(listening) => _ = ports.insert(port.value.clone(), vec![listening]),
                None => self.error(
                    written,
                    format!("`{}` is not a port that a workload listens on", written.value),
                    "write `8080`, or `53/udp`",
                ),
            }
        }
        let endpoints =
            fields.endpoints.iter().map(|endpoint| self.endpoint(&name, &fields.node.value, node, endpoint)).collect();
        let workload = Workload {
            place: self.at(&fields.name),
            labels: Arc::new(fields.labels.clone().into()),
            node: fields.node.value.as_str().into(),
            mode: fields.mode.as_ref().map_or(Mode::Enforce, |mode| self.mode(mode)),
            ports: Arc::new(ports),
            endpoints,
            host: false,
            owner: None,
            uid: None,
        };
        (name, workload)
    }

    fn mode(&mut self, written: &Spanned<String>) -> Mode {
        let known = MODES.into_iter().find(|&mode| mode_name(mode) == written.value);
        if known.is_none() {
            let help = suggest(&written.value, MODES.map(mode_name));
            self.error(written, format!("mode `{}` is not known", written.value), help);
        }
        known.unwrap_or(Mode::Enforce)
    }

    fn endpoint(
        &mut self,
        workload: &WorkloadName,
        node_name: &str,
        node: Option<&Node>,
        fields: &EndpointFields,
    ) -> Endpoint {
        let segment = fields.segment.as_ref().map_or(0, |segment| self.vni(segment, 0));
        if let (Some(node), Some(written)) = (node, &fields.segment)
            && segment != 0
            && !node.segments.iter().any(|member| member.vni == segment)
        {
            let help = format!(
                "add `{{ vni: {segment}, vtep: .., prefixes: [..] }}` to its `segments`, or correct the number"
            );
            self.error(written, format!("node `{node_name}` is no member of segment {segment}"), help);
        }
        let mut addresses = Vec::new();
        for written in &fields.addresses.value {
            let Some(address) = self.address(written) else { continue };
            if let Some(node) = node
                && node.addresses.contains(&address)
            {
                self.error(
                    written,
                    format!("{address} is an address of node `{node_name}`"),
                    "a workload in the node's own network has no endpoint: leave it out",
                );
            }
            let place = self.at(written);
            if let Some((owner, first)) = self.owners.get(&(segment, address)) {
                let error =
                    Diagnostic::error(&place, format!("{address} in segment {segment} belongs to {owner} already"))
                        .note(first, "given here");
                self.found.push(error.help("an address has one owner in a segment"));
            }
            self.owners.insert((segment, address), (workload.to_string(), place));
            addresses.push(address);
        }
        if fields.addresses.value.is_empty() {
            self.error(&fields.addresses, "an endpoint has at least one address", "write `addresses: [10.244.1.5]`");
        }
        for (family, count) in [
            ("IPv4", addresses.iter().filter(|address| address.is_ipv4()).count()),
            ("IPv6", addresses.iter().filter(|address| address.is_ipv6()).count()),
        ] {
            if count > ENDPOINT_ADDRESSES {
                self.error(
                    &fields.addresses,
                    format!("the endpoint has {count} {family} addresses, {ENDPOINT_ADDRESSES} fit"),
                    "give the others to another endpoint",
                );
            }
        }
        let link = fields.link.as_ref().map(|link| self.link(node_name, link)).unwrap_or_default();
        Endpoint { segment, addresses, link, placeholder: false }
    }

    fn link(&mut self, node: &str, link: &Spanned<String>) -> String {
        if link.value.is_empty()
            || link.value.len() > 15
            || link.value.contains(|c: char| c == '/' || c.is_whitespace())
        {
            self.error(
                link,
                format!("`{}` is not the name of a link", link.value),
                "write the host-side link as `ip link` shows it on the node",
            );
        }
        let place = self.at(link);
        if let Some(first) = self.links.insert((node.to_owned(), link.value.clone()), place.clone()) {
            let error = Diagnostic::error(&place, format!("link `{}` of node `{node}` has two endpoints", link.value))
                .note(&first, "first here");
            self.found.push(error.help("an endpoint has a link of its own"));
        }
        link.value.clone()
    }
}
