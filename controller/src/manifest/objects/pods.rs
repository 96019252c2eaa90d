//! Pods, and what makes them from a template.

use std::{collections::BTreeMap, mem, net::IpAddr, sync::Arc};

use super::super::{
    ports,
    read::{note_metadata, note_unknown},
};
use super::{Metadata, address, known, list, section};
use crate::{
    diagnostic::{Diagnostics, Place},
    labels::Labels,
    workloads::{PortNames, SERVICE_LABEL},
    yaml::tree::{Fields, Node},
};

/// The better one of the labels that name a service.
pub(super) const APP_NAME: &str = "app.kubernetes.io/name";
/// Label that names the service of a pod of a cluster, beside those that it has. No object of Kubernetes can have one that is called so.
pub(super) const SERVICE_OF: &str = "@service";

/// What a pod and a template of pods have in common.
#[derive(Debug, PartialEq)]
pub(super) struct Template {
    pub(super) labels: Arc<Labels>,
    /// Node that it says to run on, and where.
    pub(super) node: Option<(Arc<str>, Place)>,
    /// It lives in its node's own network.
    pub(super) host: bool,
    /// Named ports.
    pub(super) ports: Arc<PortNames>,
}

/// A pod.
#[derive(Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) template: Template,
    /// Its addresses in their order, and where they stand.
    pub(super) addresses: Box<[(IpAddr, Place)]>,
    /// Addresses of its node.
    pub(super) node_addresses: Box<[IpAddr]>,
    /// It runs no more, and its addresses may be those of another.
    pub(super) finished: bool,
}

impl Pod {
    /// Names its service by one label. Which label names services is otherwise decided for all pods, and one that comes would change it for the others.
    pub(super) fn name_service(&mut self) {
        let labels = &self.template.labels;
        if let Some(name) = labels.get(APP_NAME).or_else(|| labels.get(SERVICE_LABEL)).map(str::to_owned) {
            Arc::make_mut(&mut self.template.labels).insert(SERVICE_OF, name);
        }
    }
}

/// What makes pods from a template.
#[derive(Debug, PartialEq)]
pub(super) struct Controller {
    pub(super) metadata: Metadata,
    pub(super) template: Template,
    /// It makes no pods any more: a job that is done, or what its own maker keeps to be able to go back to it.
    pub(super) retired: bool,
}

pub(super) fn pod(mut metadata: Option<Metadata>, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Pod> {
    // They are those of its template, and there are many pods: once is enough.
    let labels = metadata.as_mut().map(|metadata| mem::take(&mut metadata.labels)).unwrap_or_default();
    let template = object.required("spec", found)?.fields(found).map(|mut spec| template(labels, &mut spec, found));
    let (mut addresses, mut node_addresses, mut finished) = (BTreeMap::<IpAddr, Place>::new(), Vec::new(), false);
    if let Some(mut status) = section(object, "status", found) {
        let own = status_addresses(&mut status, "podIP", "podIPs", found);
        addresses.extend(own.into_iter().rev().map(|(address, written)| (address, written.place())));
        let nodes = status_addresses(&mut status, "hostIP", "hostIPs", found);
        node_addresses.extend(nodes.into_iter().map(|(address, _)| address));
        let phase = status.get("phase").and_then(|phase| phase.text(found));
        finished = matches!(phase, Some("Succeeded" | "Failed"));
    }
    let addresses = addresses.into_iter().collect();
    let node_addresses = node_addresses.into();
    Some(Pod { metadata: metadata?, template: template?, addresses, node_addresses, finished })
}

pub(super) fn controller(
    kind: &str,
    metadata: Option<Metadata>,
    object: &mut Fields<'_>,
    found: &mut Diagnostics,
) -> Option<Controller> {
    let mut spec = object.required("spec", found)?.fields(found)?;
    note_unknown(&mut spec, known::controller(kind), found);
    // A controller with replicas is kept without any when its maker has gone on to another.
    let none = spec.get("replicas").and_then(|replicas| replicas.integer(found)) == Some(0);
    let owned = metadata.as_ref().is_some_and(|metadata| metadata.owner.is_some());
    let retired = none && owned || kind == "Job" && job_is_done(object, found);
    if kind == "CronJob" {
        let mut job = spec.required("jobTemplate", found)?.fields(found)?;
        note_unknown(&mut job, &known::TEMPLATE, found);
        spec = job.required("spec", found)?.fields(found)?;
        note_unknown(&mut spec, &known::JOB, found);
    }
    let mut made = spec.required("template", found)?.fields(found)?;
    note_unknown(&mut made, &known::TEMPLATE, found);
    let mut labels = Labels::new();
    if let Some(mut metadata) = section(&mut made, "metadata", found) {
        note_metadata(&mut metadata, found);
        labels.extend(metadata.get("labels").map(|labels| labels.texts(found)).unwrap_or_default());
    }
    let template = template(labels, &mut made.required("spec", found)?.fields(found)?, found);
    Some(Controller { metadata: metadata?, template, retired })
}

fn job_is_done(object: &mut Fields<'_>, found: &mut Diagnostics) -> bool {
    let Some(mut status) = section(object, "status", found) else { return false };
    list(&mut status, "conditions", found).into_iter().any(|condition| {
        let Some(mut fields) = condition.fields(found) else { return false };
        let mut text = |name| fields.get(name).and_then(|text| text.text(found));
        matches!((text("type"), text("status")), (Some("Complete" | "Failed"), Some("True")))
    })
}

/// Addresses of which the first stands alone as well.
fn status_addresses<'a>(
    status: &mut Fields<'a>,
    one: &'static str,
    many: &'static str,
    found: &mut Diagnostics,
) -> Vec<(IpAddr, Node<'a>)> {
    let mut written: Vec<_> = status.get(one).into_iter().collect();
    for item in list(status, many, found) {
        written.extend(item.fields(found).and_then(|mut fields| fields.get("ip")));
    }
    written.into_iter().filter_map(|written| Some((address(written, found)?, written))).collect()
}

fn template(labels: Labels, spec: &mut Fields<'_>, found: &mut Diagnostics) -> Template {
    note_unknown(spec, &known::POD_SPEC, found);
    let node = spec.get("nodeName").and_then(|node| Some((Arc::<str>::from(node.text(found)?), node.place())));
    let host = spec.get("hostNetwork").and_then(|host| host.bool(found)) == Some(true);
    let mut ports = PortNames::new();
    for container in list(spec, "containers", found) {
        if let Some(mut fields) = container.fields(found) {
            note_unknown(&mut fields, &known::CONTAINER, found);
            container_ports(&mut fields, &mut ports, found);
        }
    }
    for container in list(spec, "initContainers", found) {
        let Some(mut fields) = container.fields(found) else { continue };
        note_unknown(&mut fields, &known::CONTAINER, found);
        // One that is always restarted goes on beside the others.
        if fields.get("restartPolicy").and_then(|policy| policy.text(found)) == Some("Always") {
            container_ports(&mut fields, &mut ports, found);
        }
    }
    Template { labels: Arc::new(labels), node: node.filter(|(name, _)| !name.is_empty()), host, ports: Arc::new(ports) }
}

/// Named ports of a container. A name that several containers have given means each of these ports.
fn container_ports(container: &mut Fields<'_>, ports: &mut PortNames, found: &mut Diagnostics) {
    for item in list(container, "ports", found) {
        let Some(mut fields) = item.fields(found) else { continue };
        note_unknown(&mut fields, &known::CONTAINER_PORT, found);
        let Some(name) = fields.get("name").and_then(|name| name.text(found)) else { continue };
        // Without a number it is a name for nothing.
        let number = fields.get("containerPort").and_then(|port| ports::number(port, found));
        if let (Some(number), Some(transport)) = (number, ports::protocol(&mut fields, found)) {
            let of_name = ports.entry(name.to_owned()).or_default();
            if !of_name.contains(&(transport, number)) {
                of_name.push((transport, number));
            }
        }
    }
}
