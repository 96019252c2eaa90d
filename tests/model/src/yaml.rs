//! Writes a world as the files that the product reads.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

use crate::{
    Prefix, World,
    intent::{Intent, Line, Name},
    policy::{Level, Ports},
    world::Protocol,
};

/// The documents of a world: name of the file and its text. The workloads file is not among them.
///
/// # Panics
/// On a [`Level::Tier`], which has no document yet.
#[must_use]
pub fn policies(world: &World) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for level in &world.policy {
        let Level::Intents(intents) = level else { panic!("tiers have no document yet") };
        for intent in intents {
            files.push((format!("{}-{}.yaml", intent.namespace, files.len()), document(intent)));
        }
    }
    files
}

/// The workloads file.
#[must_use]
pub fn workloads(world: &World) -> String {
    let mut out = format!("apiVersion: bulkhead/v1\nkind: Workloads\nserviceLabel: {}\n", world.service_label);
    line(&mut out, format_args!("resolvers: {}", list(world.resolvers.iter().map(address))));
    out.push_str("nodes:\n");
    for node in &world.nodes {
        let segments = node.segments.iter().map(|segment| {
            let prefixes = list(segment.prefixes.iter().map(prefix));
            format!("{{ vni: {}, vtep: {}, prefixes: {prefixes} }}", segment.vni, address(&segment.vtep))
        });
        line(
            &mut out,
            format_args!(
                "  - {{ name: {}, addresses: {}, segments: {} }}",
                node.name,
                list(node.addresses.iter().map(address)),
                list(segments)
            ),
        );
    }
    out.push_str(if world.workloads.is_empty() { "workloads: []\n" } else { "workloads:\n" });
    for workload in &world.workloads {
        let ports = workload.ports.iter().map(|(name, (port, protocol))| (name, format!("{port}/{}", protocol.name())));
        let endpoints = workload.endpoints.iter().map(|endpoint| {
            let addresses = list(endpoint.addresses.iter().map(address));
            format!("{{ segment: {}, addresses: {addresses}, link: {} }}", endpoint.segment, endpoint.link)
        });
        line(
            &mut out,
            format_args!(
                "  - {{ name: {}, namespace: {}, labels: {}, node: {}, ports: {}, endpoints: {} }}",
                workload.name,
                workload.namespace,
                map(&workload.labels),
                world.nodes[workload.node].name,
                map(&ports.collect()),
                list(endpoints)
            ),
        );
    }
    out
}

/// A peer and a port as a line of an `Intent` has them.
#[must_use]
pub fn edge(peer: &Name, ports: &Ports) -> String {
    format!("{}:{}", name(peer), port(ports))
}

/// The same with every protocol written.
#[must_use]
pub fn canonical_edge(peer: &Name, ports: &Ports) -> String {
    let suffix = if matches!(ports, Ports::Range(Protocol::Tcp, ..)) { "/tcp" } else { "" };
    format!("{}{suffix}", edge(peer, ports))
}

fn document(intent: &Intent) -> String {
    let mut out = format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {}\n", intent.namespace);
    if intent.dns {
        out.push_str("dns: cluster\n");
    }
    if !intent.external.is_empty() {
        out.push_str("external:\n");
    }
    for (name, cidrs) in &intent.external {
        let within = list(cidrs.cidrs.iter().map(prefix));
        let except = list(cidrs.except.iter().map(prefix));
        if cidrs.except.is_empty() {
            line(&mut out, format_args!("  {name}: {{ cidrs: {within} }}"));
        } else {
            line(&mut out, format_args!("  {name}: {{ cidrs: {within}, except: {except} }}"));
        }
    }
    out.push_str(if intent.services.is_empty() { "services: {}\n" } else { "services:\n" });
    for (name, service) in &intent.services {
        let empty = service.select.is_none() && service.accepts.is_empty() && service.calls.is_empty();
        line(&mut out, format_args!("  {name}:{}", if empty { " {}" } else { "" }));
        if let Some(labels) = &service.select {
            line(&mut out, format_args!("    select: {}", map(labels)));
        }
        for (key, lines) in [("accepts", &service.accepts), ("calls", &service.calls)] {
            if !lines.is_empty() {
                line(&mut out, format_args!("    {key}:"));
            }
            for Line { peer, ports, .. } in lines {
                line(&mut out, format_args!("      - {}", edge(peer, ports)));
            }
        }
    }
    out
}

fn name(name: &Name) -> String {
    match name {
        Name::Entity(entity) => entity.name().to_owned(),
        Name::Own(name) => name.clone(),
        Name::Other(namespace, name) => format!("{namespace}/{name}"),
    }
}

fn port(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any".to_owned(),
        Ports::Range(Protocol::Tcp, first, last) if first == last => first.to_string(),
        Ports::Range(Protocol::Tcp, first, last) => format!("{first}-{last}"),
        Ports::Range(protocol, first, last) if first == last => format!("{first}/{}", protocol.name()),
        Ports::Range(protocol, first, last) => format!("{first}-{last}/{}", protocol.name()),
        Ports::Echo => "echo/icmp".to_owned(),
        Ports::Proto(number) => format!("proto/{number}"),
        Ports::Named(name) => name.clone(),
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a String takes everything");
}

// Colons mean something in flow style.
fn address(address: &IpAddr) -> String {
    format!("\"{address}\"")
}

fn prefix(prefix: &Prefix) -> String {
    format!("\"{prefix}\"")
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "))
}

fn map<K: std::fmt::Display, V: std::fmt::Display>(items: &BTreeMap<K, V>) -> String {
    format!("{{{}}}", items.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", "))
}
