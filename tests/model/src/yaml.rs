//! Writes a world as the files that the product reads.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

use crate::{
    Prefix, World,
    intent::{Intent, Line, Name},
    policy::{Action, Direction, Guard, Level, Ports, Rule, Subject, Whom},
    world::{Backend, Front, Protocol},
};

/// The documents of a world: name of the file and its text. The workloads file is not among them.
#[must_use]
pub fn policies(world: &World) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for level in &world.policy {
        match level {
            Level::Guard(guard) => files.push((format!("guard-{}.yaml", guard.name), guard_document(guard))),
            Level::Intents(intents) => {
                for intent in intents {
                    files.push((format!("{}-{}.yaml", intent.namespace, files.len()), document(intent)));
                }
            }
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
    if !world.namespaces.is_empty() {
        out.push_str("namespaces:\n");
    }
    for (name, labels) in &world.namespaces {
        line(&mut out, format_args!("  - {{ name: {name}, labels: {} }}", map(labels)));
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
    if !world.services.is_empty() {
        out.push_str("services:\n");
    }
    for service in &world.services {
        line(&mut out, format_args!("  - {}", front(service)));
    }
    out
}

fn front(front: &Front) -> String {
    let ports = front.ports.iter().map(|port| {
        let mut text = format!("{{ port: {}, target: {}", port.port, port.target);
        if let Some(number) = port.node_port {
            write!(text, ", nodePort: {number}").expect("a String takes everything");
        }
        if port.protocol != Protocol::Tcp {
            write!(text, ", protocol: {}", port.protocol.name()).expect("a String takes everything");
        }
        text + " }"
    });
    let backends = front.backends.iter().map(|backend| match backend {
        Backend::Workload(name) => name.clone(),
        Backend::Address(own) => address(own),
    });
    format!(
        "{{ name: {}, namespace: {}, addresses: {}, ports: {}, backends: {} }}",
        front.name,
        front.namespace,
        list(front.addresses.iter().map(address)),
        list(ports),
        list(backends)
    )
}

/// A peer and a port as a line of an `Intent` has them.
#[must_use]
pub fn edge(peer: &Name, ports: &Ports) -> String {
    format!("{}:{}", name(peer), port(ports))
}

/// The same with every protocol written.
#[must_use]
pub fn canonical_edge(peer: &Name, ports: &Ports) -> String {
    format!("{}:{}", name(peer), canonical_port(ports))
}

/// Name of what a rule of a Guard says of one of its peers, with every protocol written, without what may change of it.
#[must_use]
pub fn rule_id(guard: &Guard, rule: &Rule, number: usize) -> String {
    let (peer, own) = &rule.peers[number];
    let ports: Vec<_> = own.iter().chain(&rule.ports).map(canonical_port).collect();
    let ports = if ports.is_empty() { String::new() } else { format!(":{}", ports.join(",")) };
    format!("guard {}: {} {} {}{ports}", guard.name, verb(rule.action), preposition(rule.direction), whom(peer))
}

fn guard_document(guard: &Guard) -> String {
    let mut out = format!(
        "apiVersion: bulkhead/v1\nkind: Guard\nname: {}\npriority: {}\n{}",
        guard.name,
        guard.priority,
        if guard.audit { "mode: audit\n" } else { "" }
    );
    let Subject { namespaces, services, workloads } = &guard.subject;
    let mut parts = Vec::new();
    let wanted = |labels: &BTreeMap<String, Option<String>>| {
        let any = |value: &Option<String>| value.clone().unwrap_or_else(|| "any".to_owned());
        map(&labels.iter().map(|(key, value)| (key.clone(), any(value))).collect())
    };
    if !namespaces.is_empty() {
        parts.push(format!("namespaces: {}", wanted(namespaces)));
    }
    if !services.is_empty() {
        let names = services.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
        parts.push(format!("services: {}", list(names)));
    }
    if !workloads.is_empty() {
        parts.push(format!("workloads: {}", wanted(workloads)));
    }
    if !parts.is_empty() {
        line(&mut out, format_args!("for: {{ {} }}", parts.join(", ")));
    }
    if let Some(compare) = &guard.compare {
        line(&mut out, format_args!("compare: {compare}"));
    }
    out.push_str(if guard.rules.is_empty() { "rules: []\n" } else { "rules:\n" });
    for rule in &guard.rules {
        let peers = rule.peers.iter().map(|(peer, ports)| match ports {
            Some(ports) => format!("{}:{}", whom(peer), port(ports)),
            None => whom(peer),
        });
        // One is written as one.
        let mut peers: Vec<_> = peers.collect();
        let peers = if peers.len() == 1 { peers.remove(0) } else { list(peers) };
        let mut parts = vec![format!("{}: {peers}", preposition(rule.direction))];
        if !rule.ports.is_empty() {
            parts.push(format!("ports: {}", list(rule.ports.iter().map(port))));
        }
        if rule.audit {
            parts.push("mode: audit".to_owned());
        }
        if let Some(expires) = rule.expires {
            parts.push(format!("expires: {}", time(expires)));
        }
        line(&mut out, format_args!("  - {}: {{ {} }}", verb(rule.action), parts.join(", ")));
    }
    out
}

const fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
    }
}

const fn preposition(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn whom(whom: &Whom) -> String {
    match whom {
        Whom::Same => "same".to_owned(),
        Whom::Other => "other".to_owned(),
        Whom::Entity(entity) => entity.name().to_owned(),
        Whom::Service(namespace, name) => format!("{namespace}/{name}"),
    }
}

/// RFC 3339, to the second.
fn time(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let days = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while day >= days[month] {
        day -= days[month];
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", month + 1, day + 1, second % 60)
}

fn document(intent: &Intent) -> String {
    let mut out = format!("apiVersion: bulkhead/v1\nkind: Intent\nnamespace: {}\n", intent.namespace);
    if intent.audit {
        out.push_str("mode: audit\n");
    }
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
        let empty =
            service.select.is_none() && !service.audit && service.accepts.is_empty() && service.calls.is_empty();
        line(&mut out, format_args!("  {name}:{}", if empty { " {}" } else { "" }));
        if let Some(labels) = &service.select {
            line(&mut out, format_args!("    select: {}", map(labels)));
        }
        if service.audit {
            out.push_str("    isolate: audit\n");
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

fn canonical_port(ports: &Ports) -> String {
    let suffix = if matches!(ports, Ports::Range(Protocol::Tcp, ..)) { "/tcp" } else { "" };
    format!("{}{suffix}", port(ports))
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
