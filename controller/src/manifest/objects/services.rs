//! Services, and who answers where their selectors do not say it.

use std::{collections::BTreeSet, net::IpAddr};

use super::super::{ports, read::note_unknown};
use super::{Metadata, Object, address, known, list, section};
use crate::{
    diagnostic::{Diagnostics, Place},
    labels::Labels,
    ports::{Transport, port_name},
    workloads::{FrontendPort, Target},
    yaml::tree::{Fields, Node, Value},
};

/// Label of an `EndpointSlice`: the service to which it belongs.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an `EndpointSlice`: who keeps it, and the one that makes slices of what selectors of services match.
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");

/// A service.
#[derive(Debug, PartialEq)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    /// Its addresses inside the cluster.
    pub(super) cluster: BTreeSet<IpAddr>,
    /// Its addresses for those outside.
    pub(super) external: BTreeSet<IpAddr>,
    pub(super) ports: Vec<ServicePort>,
    /// Labels of the pods that answer; without any, slices alone say it.
    pub(super) selector: Labels,
}

/// A port of a service.
#[derive(Debug, PartialEq)]
pub(super) struct ServicePort {
    /// Where it stands.
    pub(super) place: Place,
    /// Empty for the only one, which needs none.
    pub(super) name: String,
    pub(super) port: FrontendPort,
}

/// Some of those that answer for a service.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Slice {
    /// Name of the service, in the namespace of the slice.
    pub(super) service: String,
    /// It is not made of what the service's selector matches: whoever is in it answers beside that.
    pub(super) beside: bool,
    pub(super) endpoints: Vec<SliceEndpoint>,
    /// Where all of them listen, by the name of the service's port.
    pub(super) ports: Vec<(String, Transport, u16)>,
}

/// One that answers.
#[derive(Debug, PartialEq)]
pub(super) struct SliceEndpoint {
    pub(super) addresses: Vec<IpAddr>,
    /// The pod that it is said to be.
    pub(super) pod: Option<String>,
}

pub(super) fn service(metadata: Option<Metadata>, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Object> {
    let mut spec = object.required("spec", found)?.fields(found)?;
    note_unknown(&mut spec, &known::SERVICE, found);
    if spec.get("type").and_then(|kind| kind.text(found)) == Some("ExternalName") {
        // An alias in DNS: nothing is ever called by an address of its own.
        return Some(Object::Unused("kind `Service` with type `ExternalName`"));
    }
    let mut written: Vec<Node<'_>> = spec.get("clusterIP").into_iter().collect();
    written.extend(list(&mut spec, "clusterIPs", found));
    let headless = |written: &Node<'_>| matches!(written.value(), Value::Text(text) if text == "None");
    let cluster = written.into_iter().filter(|written| !headless(written));
    let cluster = cluster.filter_map(|written| address(written, found)).collect();
    let mut external: BTreeSet<IpAddr> = BTreeSet::new();
    for written in list(&mut spec, "externalIPs", found) {
        external.extend(address(written, found));
    }
    external.extend(ingress(object, found));
    let ports = list(&mut spec, "ports", found).into_iter().filter_map(|port| service_port(port, found)).collect();
    let selector = spec.get("selector").map(|selector| selector.texts(found)).unwrap_or_default().into();
    Some(Object::Service(Service { metadata: metadata?, cluster, external, ports, selector }))
}

/// Addresses of load balancers that do not only forward to node ports.
fn ingress(object: &mut Fields<'_>, found: &mut Diagnostics) -> Vec<IpAddr> {
    let status = section(object, "status", found);
    let Some(mut balancer) = status.and_then(|mut status| section(&mut status, "loadBalancer", found)) else {
        return Vec::new();
    };
    let mut addresses = Vec::new();
    for item in list(&mut balancer, "ingress", found) {
        let Some(mut fields) = item.fields(found) else { continue };
        // What a proxy sends on comes from the proxy, and no node translates its address.
        let proxy = fields.get("ipMode").and_then(|mode| mode.text(found)) == Some("Proxy");
        addresses.extend(fields.get("ip").and_then(|written| address(written, found)).filter(|_| !proxy));
    }
    addresses
}

fn service_port(written: Node<'_>, found: &mut Diagnostics) -> Option<ServicePort> {
    let mut fields = written.fields(found)?;
    note_unknown(&mut fields, &known::SERVICE_PORT, found);
    let name = fields.get("name").and_then(|name| name.text(found)).unwrap_or_default().to_owned();
    let port = fields.required("port", found).and_then(|port| ports::number(port, found));
    let transport = ports::protocol(&mut fields, found);
    let target = match fields.get("targetPort") {
        // As the API server prints it where nobody wrote it.
        Some(written) if *written.value() != Value::Integer(0) => target(written, found),
        _ => port.map(Target::Number),
    };
    let node_port = fields.get("nodePort").filter(|port| *port.value() != Value::Integer(0));
    let node_port = node_port.and_then(|port| ports::number(port, found));
    let port = FrontendPort { transport: transport?, port: port?, target: target?, node_port };
    Some(ServicePort { place: written.place(), name, port })
}

/// Port on which pods answer: a number, or the name that each pod has for its own.
fn target(written: Node<'_>, found: &mut Diagnostics) -> Option<Target> {
    let Value::Text(name) = written.value() else { return ports::number(written, found).map(Target::Number) };
    // A pod's port may well be called `any`.
    let valid = port_name(name) || name == "any";
    if !valid {
        let help = "write a port, 1 to 65535, or the name of the pods' port: small letters, digits and `-`";
        found.push(written.error(format!("`{name}` is not a port"), help));
    }
    valid.then(|| Target::Named(name.clone()))
}

/// Reads an `EndpointSlice`.
pub(super) fn slice(metadata: Option<Metadata>, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Object> {
    let names = object.get("addressType").and_then(|kind| kind.text(found)) == Some("FQDN");
    let mut slice = Slice::default();
    for item in list(object, "endpoints", found) {
        let Some(mut fields) = item.fields(found) else { continue };
        let addresses = if names { Vec::new() } else { list(&mut fields, "addresses", found) };
        let addresses = addresses.into_iter().filter_map(|written| address(written, found)).collect();
        slice.endpoints.push(SliceEndpoint { addresses, pod: pod_of(&mut fields, found) });
    }
    slice.ports = slice_ports(object, found);
    let metadata = metadata?;
    let (label, maker) = MANAGED_BY;
    slice.beside = metadata.labels.get(label).is_none_or(|by| by != maker);
    match metadata.labels.get(SERVICE_NAME) {
        Some(service) => service.clone_into(&mut slice.service),
        None => return Some(Object::Unused("kind `EndpointSlice` without a service")),
    }
    Some(Object::Slice(metadata, slice))
}

/// Reads `Endpoints`, which are called as their service is.
pub(super) fn endpoints(
    metadata: Option<Metadata>,
    object: &mut Fields<'_>,
    found: &mut Diagnostics,
) -> Option<Object> {
    let mut slice = Slice::default();
    for subset in list(object, "subsets", found) {
        let Some(mut subset) = subset.fields(found) else { continue };
        for item in ["addresses", "notReadyAddresses"]
            .into_iter()
            .flat_map(|name| list(&mut subset, name, found))
            .collect::<Vec<_>>()
        {
            let Some(mut fields) = item.fields(found) else { continue };
            let addresses = fields.required("ip", found).and_then(|written| address(written, found));
            let pod = pod_of(&mut fields, found);
            slice.endpoints.push(SliceEndpoint { addresses: addresses.into_iter().collect(), pod });
        }
        slice.ports.extend(slice_ports(&mut subset, found));
    }
    let metadata = metadata?;
    slice.service.clone_from(&metadata.name.name);
    Some(Object::Slice(metadata, slice))
}

fn pod_of(endpoint: &mut Fields<'_>, found: &mut Diagnostics) -> Option<String> {
    let mut reference = section(endpoint, "targetRef", found)?;
    let kind = reference.get("kind")?.text(found)?;
    let name = reference.get("name")?.text(found)?;
    (kind == "Pod").then(|| name.to_owned())
}

fn slice_ports(fields: &mut Fields<'_>, found: &mut Diagnostics) -> Vec<(String, Transport, u16)> {
    let mut ports = Vec::new();
    for item in list(fields, "ports", found) {
        let Some(mut fields) = item.fields(found) else { continue };
        let name = fields.get("name").and_then(|name| name.text(found)).unwrap_or_default();
        let number = fields.get("port").and_then(|port| ports::number(port, found));
        if let (Some(transport), Some(number)) = (ports::protocol(&mut fields, found), number) {
            ports.push((name.to_owned(), transport, number));
        }
    }
    ports
}
