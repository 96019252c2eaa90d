//! `NetworkPolicy` of `networking.k8s.io/v1`.

use bulkhead_ebpf::abi::Direction;

use super::{
    Object, ports, prefixes,
    read::{self, Named, add, warning},
    selectors::selector,
    title,
};
use crate::{
    diagnostic::{Diagnostics, Severity},
    intent::{Cidrs, contains},
    labels::Selector,
    model::{Peer, PolicyName, Scope},
    network_policy::{NetworkPolicy, Rule},
    ports::Ports,
    yaml::tree::{Fields, Node, Value},
};

/// The version that can be read.
const VERSION: &str = "networking.k8s.io/v1";

/// Directions with the field of their rules and their name among the types.
const DIRECTIONS: [(Direction, &str, &str, &str); 2] =
    [(Direction::Ingress, "ingress", "from", "Ingress"), (Direction::Egress, "egress", "to", "Egress")];

pub(super) fn read(api_version: &str, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<NetworkPolicy> {
    if !read::version(api_version, "NetworkPolicy", VERSION, object, found) {
        return None;
    }
    object.ignore(&["kind", "status"]);
    let named = read::named(object, found);
    let spec = object.get("spec");
    object.note_rest(&["podSelector", "policyTypes", "ingress", "egress"], found);
    let Some(spec) = spec else {
        let help = "Kubernetes takes it for one that selects every pod and lets nothing in; if that is meant write `spec: { podSelector: {} }`";
        found.push(object.here().error("`spec` is missing", help));
        return None;
    };
    let mut spec = spec.fields(found)?;
    let Named { name, place, namespace } = named?;
    let name = PolicyName::new(namespace, name);
    let pods = spec.get("podSelector").map_or_else(Selector::everybody, |pods| selector(pods, found));
    let types = spec.get("policyTypes");
    let written = DIRECTIONS.map(|(_, field, ..)| spec.get(field));
    spec.refuse_rest(found);
    let [ingress, egress] = isolated(types, written, found);
    let mut rules = Vec::new();
    for ((direction, field, side, _), list) in DIRECTIONS.into_iter().zip(written) {
        for (index, item) in list.map(|list| list.list(found)).unwrap_or_default().into_iter().enumerate() {
            let label = format!("networkpolicy {name}: {field}[{index}]");
            rules.extend(rule(label, item, (direction, side), &name.namespace, found));
        }
    }
    Some(NetworkPolicy { name, place, pods, ingress, egress, rules })
}

/// In which of the [`DIRECTIONS`] it isolates, by its types or else by the rules that it has.
fn isolated(types: Option<Node<'_>>, written: [Option<Node<'_>>; 2], found: &mut Diagnostics) -> [bool; 2] {
    let items = types.map(|types| types.list(found)).unwrap_or_default();
    let has_rules =
        written.map(|list| list.is_some_and(|list| !matches!(list.value(), Value::List(items) if items.is_empty())));
    if items.is_empty() {
        let [_, egress] = written;
        let isolates = [true, has_rules[1]];
        if let Some(empty) = egress.filter(|_| !isolates[1]) {
            let help = "to let nothing out write `policyTypes: [Ingress, Egress]`, else remove `egress`";
            found.push(warning(empty, "an empty `egress` isolates nobody without `policyTypes`", help));
        }
        return isolates;
    }
    let mut isolates = [false; 2];
    for item in items {
        let Some(name) = item.text(found) else { continue };
        match DIRECTIONS.iter().position(|(.., of)| *of == name) {
            Some(at) => isolates[at] = true,
            None => {
                let help = format!("write {}", read::any(&DIRECTIONS.map(|(.., of)| of)));
                found.push(item.error(format!("`{name}` is no type of a NetworkPolicy"), help));
            }
        }
    }
    for (at, (_, field, _, name)) in DIRECTIONS.into_iter().enumerate() {
        if let Some(list) = written[at].filter(|_| has_rules[at] && !isolates[at]) {
            let message = format!("`{field}` says nothing: `policyTypes` leaves `{name}` out");
            found.push(warning(list, message, format!("add `{name}` to `policyTypes`, or remove `{field}`")));
        }
    }
    isolates
}

fn rule(
    name: String,
    item: Node<'_>,
    (direction, side): (Direction, &'static str),
    namespace: &str,
    found: &mut Diagnostics,
) -> Option<Rule> {
    let mut fields = item.fields(found)?;
    let (peers, ports) = (fields.get(side), fields.get("ports"));
    fields.refuse_rest(found);
    let peers = every(peers, Peer::Any, |item, found| peer(item, namespace, found), found);
    let ports = every(ports, Ports::Any, port, found);
    Some(Rule { name, place: item.place(), direction, peers, ports })
}

/// What a list says; without items it does not limit anything.
fn every<T: PartialEq>(
    list: Option<Node<'_>>,
    unlimited: T,
    read: impl Fn(Node<'_>, &mut Diagnostics) -> Option<T>,
    found: &mut Diagnostics,
) -> Vec<T> {
    let items = list.map(|list| list.list(found)).unwrap_or_default();
    if items.is_empty() {
        return vec![unlimited];
    }
    let mut all = Vec::new();
    for item in items {
        if let Some(one) = read(item, found) {
            add(&mut all, one);
        }
    }
    all
}

fn peer(item: Node<'_>, namespace: &str, found: &mut Diagnostics) -> Option<Peer> {
    let mut fields = item.fields(found)?;
    let pods = fields.get("podSelector");
    let namespaces = fields.get("namespaceSelector");
    let block = fields.get("ipBlock");
    fields.refuse_rest(found);
    match (pods, namespaces, block) {
        (None, None, Some(block)) => ip_block(block, found),
        (None, None, None) if fields.rest().next().is_some() => None,
        (None, None, None) => {
            let help = format!("write {}", read::any(&["podSelector", "namespaceSelector", "ipBlock"]));
            found.push(item.error("the peer is empty and would match nobody", help));
            None
        }
        (_, _, Some(block)) => {
            let help = "write each as an item of its own: addresses have no labels";
            found.push(block.error("the peer has `ipBlock` and a selector", help));
            None
        }
        (pods, namespaces, None) => Some(Peer::Workloads {
            namespaces: namespaces.map_or_else(
                || Scope::Named(namespace.to_owned()),
                |namespaces| Scope::Labelled(selector(namespaces, found)),
            ),
            labels: pods.map_or_else(Selector::everybody, |pods| selector(pods, found)),
        }),
    }
}

fn ip_block(block: Node<'_>, found: &mut Diagnostics) -> Option<Peer> {
    let mut fields = block.fields(found)?;
    let cidr = fields.required("cidr", found).and_then(|cidr| prefixes::prefix(cidr, found));
    let items = fields.get("except").map(|except| except.list(found)).unwrap_or_default();
    fields.refuse_rest(found);
    let mut except = Vec::new();
    for item in items {
        let Some(net) = prefixes::prefix(item, found) else { continue };
        if let Some(cidr) = cidr
            && (net == cidr || !contains(cidr, net))
        {
            let help = "an exception is a smaller prefix inside of `cidr`; remove or correct it";
            found.push(item.error(format!("{net} is not a part of {cidr}"), help));
        }
        except.push(net);
    }
    except.sort_unstable();
    except.dedup();
    Some(Peer::Cidrs(Cidrs { cidrs: vec![cidr?], except }))
}

fn port(item: Node<'_>, found: &mut Diagnostics) -> Option<Ports> {
    let mut fields = item.fields(found)?;
    let transport = ports::protocol(&mut fields, found);
    let (port, end) = (fields.get("port"), fields.get("endPort"));
    fields.refuse_rest(found);
    let by_name = port.filter(|port| matches!(port.value(), Value::Text(_)));
    if let Some(end) = end.filter(|_| port.is_none() || by_name.is_some()) {
        let help = "write the first port's number as `port`, or remove `endPort`";
        found.push(end.error("`endPort` is the end of a range that has no first number", help));
        return None;
    }
    let Some(port) = port else { return transport.map(ports::every) };
    if by_name.is_some() {
        return Some(Ports::Named { name: ports::name(port, found)?, transport: Some(transport?) });
    }
    let first = ports::number(port, found);
    let Some(end) = end else { return Some(Ports::one(transport?, first?)) };
    let last = ports::number(end, found);
    let (first, last) = (first?, last?);
    if last < first {
        found.push(end.error(format!("the range {first}-{last} is empty"), "write the lower one as `port`"));
        return None;
    }
    Some(Ports::Range { transport: transport?, first, last })
}

/// The policy without its rules: whom it isolates, and in which directions; nobody where its selector cannot be read. What follows a text that is `torn` is
/// not known.
pub(super) fn wall(object: &mut Fields<'_>, torn: bool) -> Option<Object> {
    let mut found = Diagnostics::default();
    let Named { name, namespace, .. } = read::named(object, &mut found)?;
    let line = object.get("metadata").map_or(0, |metadata| metadata.item.referenced.line());
    let spec = object.get("spec")?;
    let Value::Mapping(entries) = spec.value() else { return None };
    // In a torn text the last field may go on.
    let ends = |field: &str| !torn || entries.last().is_some_and(|(key, _)| key.value != field);
    let mut spec = spec.fields(&mut found)?;
    let (pods, types) = (spec.get("podSelector"), spec.get("policyTypes"));
    let written = DIRECTIONS.map(|(_, field, ..)| spec.get(field));
    // Without the field all pods are meant, unless it is misspelt or still to come.
    if pods.is_none() && (torn || spec.rest().next().is_some()) || !ends("podSelector") {
        return None;
    }
    if let Some(pods) = pods {
        let mut wrong = Diagnostics::default();
        selector(pods, &mut wrong);
        if !wrong.0.is_empty() {
            return None;
        }
    }
    let mut wrong = Diagnostics::default();
    let told = isolated(types, written, &mut wrong);
    let known = wrong.0.iter().all(|wrong| wrong.severity == Severity::Warning)
        && (!torn || types.is_some() && ends("policyTypes"));
    let types: Vec<_> =
        DIRECTIONS.iter().zip(told).filter(|(_, told)| *told || !known).map(|((.., name), _)| *name).collect();
    let pods = pods.map_or_else(|| serde_json::json!({}), |pods| pods.value().json());
    let text = serde_json::json!({
        "apiVersion": VERSION,
        "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "podSelector": pods, "policyTypes": types },
    });
    Some(Object { name: title("NetworkPolicy", &PolicyName::new(namespace, name)), line, text: text.to_string() })
}

#[cfg(test)]
mod tests;
