//! Objects that are no policies: namespaces, pods and what makes them, services, nodes.

mod flannel;
mod join;
mod known;
mod owners;
mod pods;
mod pool;
mod seen;
mod services;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::SystemTime};

pub(crate) use self::{join::live, pool::Pool};
use self::{
    pods::{Controller, Pod},
    services::{Service, Slice},
};
use super::read::{note_metadata, note_unknown, warning};
use crate::{
    diagnostic::{Diagnostics, Place},
    labels::Labels,
    workloads::{NodeSegment, Owner, WorkloadName},
    yaml::tree::{Fields, Node},
};

/// Namespace of an object that says none.
const DEFAULT_NAMESPACE: &str = "default";
/// Annotation of a pod that the kubelet runs from a file: its unique id there, which is the one that CNI plugins are told.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// A kind of object that is read.
#[derive(Debug)]
pub(super) struct Kind {
    /// Its name.
    name: &'static str,
    /// The API group in which it is, whatever the version.
    group: &'static str,
    /// What to write when it stands elsewhere.
    api_version: &'static str,
    what: What,
}

/// How a kind is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Namespace,
    Node,
    Pod,
    /// What makes pods from a template.
    Controller,
    Service,
    EndpointSlice,
    Endpoints,
}

/// Kinds in the order in which the first of two workloads of one name keeps it.
const KINDS: [Kind; 13] = [
    kind("Namespace", "", "v1", What::Namespace),
    kind("Node", "", "v1", What::Node),
    kind("Pod", "", "v1", What::Pod),
    kind("Deployment", "apps", "apps/v1", What::Controller),
    kind("StatefulSet", "apps", "apps/v1", What::Controller),
    kind("DaemonSet", "apps", "apps/v1", What::Controller),
    kind("ReplicaSet", "apps", "apps/v1", What::Controller),
    kind("ReplicationController", "", "v1", What::Controller),
    kind("Job", "batch", "batch/v1", What::Controller),
    kind("CronJob", "batch", "batch/v1", What::Controller),
    kind("Service", "", "v1", What::Service),
    kind("EndpointSlice", "discovery.k8s.io", "discovery.k8s.io/v1", What::EndpointSlice),
    kind("Endpoints", "", "v1", What::Endpoints),
];

const fn kind(name: &'static str, group: &'static str, api_version: &'static str, what: What) -> Kind {
    Kind { name, group, api_version, what }
}

/// What is known of a kind.
pub(super) enum Known {
    /// It is read.
    Kind(&'static Kind),
    /// Kubernetes has it in another API version.
    Elsewhere(&'static str),
    /// Nothing.
    Not,
}

/// Looks a kind up. Others may use the same name in a group of theirs.
pub(super) fn known(api_version: &str, name: &str) -> Known {
    let group = super::group(api_version);
    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else { return Known::Not };
    match group {
        _ if kind.group == group => Known::Kind(kind),
        // Where workloads were before `apps`.
        "extensions" if kind.group == "apps" => Known::Kind(kind),
        _ if !group.contains('.') || group.ends_with(".k8s.io") => Known::Elsewhere(kind.api_version),
        _ => Known::Not,
    }
}

/// Objects of files.
#[derive(Debug, Default)]
pub(super) struct Objects(Vec<Object>);

impl Objects {
    /// Adds an object of a known kind. Returns what it is where nothing comes of it.
    pub(super) fn read(
        &mut self,
        kind: &Kind,
        object: &mut Fields<'_>,
        found: &mut Diagnostics,
    ) -> Option<&'static str> {
        match read(kind, object, found)? {
            Object::Unused(what) => Some(what),
            object => {
                self.0.push(object);
                None
            }
        }
    }

    /// Where the first one stands.
    pub(super) fn first(&self) -> Option<&Place> {
        self.0.iter().find_map(|object| object.metadata().map(|metadata| &metadata.place))
    }

    /// The last one, `None` where nothing comes of any.
    pub(super) fn into_one(mut self) -> Option<Seen> {
        self.0.pop().map(Seen::new)
    }

    /// Adds those of another file.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}

/// An object of a cluster, reduced to what is read of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen(Object);

/// An object as far as it is read.
#[derive(Debug, PartialEq)]
enum Object {
    Namespace(Metadata),
    Node(Metadata, Machine),
    Pod(Pod),
    Controller(Controller),
    Service(Service),
    Slice(Metadata, Slice),
    /// What it is, and that nothing comes of it.
    Unused(&'static str),
}

impl Object {
    const fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Namespace(metadata) | Self::Node(metadata, _) | Self::Slice(metadata, _) => Some(metadata),
            Self::Pod(pod) => Some(&pod.metadata),
            Self::Controller(controller) => Some(&controller.metadata),
            Self::Service(service) => Some(&service.metadata),
            Self::Unused(_) => None,
        }
    }
}

/// What is read of a node.
#[derive(Debug, Default, PartialEq)]
struct Machine {
    addresses: BTreeSet<IpAddr>,
    /// Overlays of flannel's of which it is a member.
    segments: Vec<NodeSegment>,
}

/// What names an object.
#[derive(Debug, PartialEq)]
struct Metadata {
    kind: &'static str,
    /// Where its name stands.
    place: Place,
    /// Its namespace is empty for what is in none.
    name: WorkloadName,
    labels: Labels,
    owner: Option<Arc<Owner>>,
    /// Unique id; of what the API server only mirrors, that of the original.
    uid: Option<Arc<str>>,
    /// When it was made; `None` where nobody says, or what is written is no time.
    created: Option<SystemTime>,
}

impl Metadata {
    /// Its name as it is said to people.
    fn full_name(&self) -> String {
        match self.name.namespace.as_str() {
            "" => self.name.name.clone(),
            _ => self.name.to_string(),
        }
    }
}

fn read(kind: &Kind, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Object> {
    // Everything wrong is told, also of an object whose name is.
    let metadata = metadata(kind, object, found);
    let fields: &[&str] = match kind.what {
        What::EndpointSlice => &known::SLICE,
        What::Endpoints => &known::ENDPOINTS,
        _ => &known::OBJECT,
    };
    note_unknown(object, fields, found);
    match kind.what {
        What::Namespace => metadata.map(Object::Namespace),
        What::Node => {
            let mut machine = Machine { addresses: node_addresses(object, found), segments: Vec::new() };
            flannel::read(object, &mut machine, found);
            Some(Object::Node(metadata?, machine))
        }
        What::Pod => pods::pod(metadata, object, found).map(Object::Pod),
        What::Controller => pods::controller(kind.name, metadata, object, found).map(Object::Controller),
        What::Service => services::service(metadata, object, found),
        What::EndpointSlice => services::slice(metadata, object, found),
        What::Endpoints => services::endpoints(metadata, object, found),
    }
}

fn metadata(kind: &Kind, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Metadata> {
    let mut fields = object.required("metadata", found)?.fields(found)?;
    note_metadata(&mut fields, found);
    let written = fields.required("name", found);
    let name = written.and_then(|name| valid(name, 253, "an object", found));
    let namespace = fields.get("namespace");
    let namespace = match kind.what {
        What::Namespace | What::Node => Some(""),
        _ => namespace.map_or(Some(DEFAULT_NAMESPACE), |name| valid(name, 63, "a namespace", found)),
    };
    let labels = fields.get("labels").map(|labels| labels.texts(found)).unwrap_or_default().into();
    let owner = owner(&mut fields, found).map(Arc::new);
    let created = fields.get("creationTimestamp").and_then(|time| time.text(found));
    let own = fields.get("uid").and_then(|uid| uid.text(found));
    let annotations = fields.get("annotations").map(|annotations| annotations.texts(found)).unwrap_or_default();
    let uid = annotations.get(MIRROR).map(String::as_str).or(own).map(Arc::from);
    Some(Metadata {
        kind: kind.name,
        place: written?.place(),
        name: WorkloadName::new(namespace?, name?),
        labels,
        owner,
        uid,
        created: created.and_then(|time| humantime::parse_rfc3339(time).ok()),
    })
}

/// A name that Kubernetes allows. Names become parts of rules and metrics, where what they are made of matters.
fn valid<'a>(written: Node<'a>, most: usize, of: &str, found: &mut Diagnostics) -> Option<&'a str> {
    let name = written.text(found)?;
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (1..=most).contains(&name.len())
        && name.chars().all(|c| ends(c) || matches!(c, '-' | '.'))
        && name.starts_with(ends)
        && name.ends_with(ends);
    if !valid {
        let help = format!("1 to {most} small letters, digits, `-` or `.`, a letter or digit at both ends");
        found.push(written.error(format!("`{name}` cannot be the name of {of}"), help));
    }
    valid.then_some(name)
}

/// Who made an object: the one of its owners that is its controller.
///
/// A reference without a kind counts as that of a pod: there is nothing else that it could say.
fn owner(metadata: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Owner> {
    let mut owner = None;
    for reference in list(metadata, "ownerReferences", found) {
        let Some(mut fields) = reference.fields(found) else { continue };
        if fields.get("controller").and_then(|controller| controller.bool(found)) != Some(true) {
            continue;
        }
        let kind = fields.get("kind").map_or(Some("Pod"), |kind| kind.text(found));
        let name = fields.required("name", found).and_then(|name| name.text(found));
        if let (Some(kind), Some(name)) = (kind, name) {
            owner = owner.or(Some(Owner { kind: kind.to_owned(), name: name.to_owned() }));
        }
    }
    // A node owns the pods that its own files describe, and they have nothing else in common.
    owner.filter(|owner| owner.kind != "Node")
}

fn node_addresses(object: &mut Fields<'_>, found: &mut Diagnostics) -> BTreeSet<IpAddr> {
    let Some(mut status) = section(object, "status", found) else { return BTreeSet::new() };
    let mut addresses = BTreeSet::new();
    for item in list(&mut status, "addresses", found) {
        let Some(mut fields) = item.fields(found) else { continue };
        let kind = fields.get("type").and_then(|kind| kind.text(found));
        // Others are names.
        if matches!(kind, Some("InternalIP" | "ExternalIP")) {
            addresses.extend(fields.get("address").and_then(|written| address(written, found)));
        }
    }
    addresses
}

/// A mapping that may be left out.
fn section<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> Option<Fields<'a>> {
    fields.get(name)?.fields(found)
}

/// A list that may be left out.
fn list<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> Vec<Node<'a>> {
    fields.get(name).map(|list| list.list(found)).unwrap_or_default()
}

/// An address; none where it is empty, as a status has it before the address is known, and where it leads to no other machine: what makes services reachable
/// on a developer's own writes such ones.
fn address(written: Node<'_>, found: &mut Diagnostics) -> Option<IpAddr> {
    let text = written.text(found).filter(|text| !text.is_empty())?;
    let message = || format!("`{text}` is not an address that a node, pod or service can have");
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() || address.is_loopback() => {
            found.push(warning(
                written,
                message(),
                "it is left out: nothing that is judged comes from there or goes there",
            ));
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            found.push(written.error(message(), "write `10.244.1.5` or `2001:db8::5`"));
            None
        }
    }
}
