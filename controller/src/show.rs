//! What the command line shows of a node: tables for people, JSON for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bulkhead_dataplane::{
    desired::EndpointName,
    node::{ContactRecord, Contacts, Discovered, FlowRecord, Reading, Status},
};
use bulkhead_ebpf::{
    abi::{Class, Direction},
    reason::Reason,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    api::types::{NodeBody, RevisionBody, StatusBody},
    compile::{NODE_REACHES, NOT_ISOLATED, isolated},
    diagnostic::{Diagnostics, source},
    explain::{Explainer, Party, Question},
    guard::Guard,
    intent::{self, Intent},
    labels::Selector,
    metrics::protocol,
    model::{Isolation, Model, ServiceName, Workload},
    network_policy::NetworkPolicy,
    peers::{Peers, UNKNOWN},
    policy::{self, Policy},
    ports::{class_of, point},
    store::Revision,
    workloads::{Frontend, FrontendPort, Target, WorkloadName, mode_name},
};

/// Lines of a table with aligned columns; the first is the head.
#[must_use]
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|i| {
        rows.iter().map(|row| row[i].chars().count()).chain([head[i].len()]).max().unwrap_or_default()
    });
    let mut text = String::new();
    for row in std::iter::once(head.map(ToOwned::to_owned)).chain(rows.iter().cloned()) {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// One line of `bulkhead get workloads`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkloadLine {
    namespace: String,
    workload: String,
    service: String,
    node: String,
    isolated: bool,
    mode: String,
    link: String,
    segment: u32,
    #[schema(value_type = Vec<String>)]
    addresses: Vec<IpAddr>,
    /// `guarded`, `not guarded`; empty for what is on another node.
    guard: String,
}

/// Endpoints of all workloads, and whether those of this node are guarded.
#[must_use]
pub fn workloads(model: &Model, node: &str, status: &Status) -> Vec<WorkloadLine> {
    let attached: BTreeSet<&EndpointName> =
        status.endpoints.iter().filter(|endpoint| endpoint.attached).map(|endpoint| &endpoint.name).collect();
    let mut lines = Vec::new();
    for (name, workload) in &model.workloads {
        for (index, endpoint) in (0..).zip(&workload.endpoints) {
            let full = EndpointName { namespace: name.namespace.clone(), workload: name.name.clone(), index };
            lines.push(WorkloadLine {
                namespace: name.namespace.clone(),
                workload: name.name.clone(),
                service: workload.service.to_string(),
                node: workload.node.to_string(),
                isolated: [Direction::Ingress, Direction::Egress]
                    .into_iter()
                    .any(|direction| model.isolating(workload, direction, false).is_some()),
                mode: mode_name(workload.mode).to_owned(),
                link: endpoint.link.clone(),
                segment: endpoint.segment,
                addresses: endpoint.addresses.clone(),
                guard: match *workload.node == *node {
                    false => "",
                    true if attached.contains(&full) => "guarded",
                    true => "not guarded",
                }
                .to_owned(),
            });
        }
    }
    lines
}

/// As a table.
#[must_use]
pub fn workloads_table(lines: &[WorkloadLine]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let addresses: Vec<_> = line.addresses.iter().map(ToString::to_string).collect();
            [
                line.namespace.clone(),
                line.workload.clone(),
                line.service.clone(),
                line.node.clone(),
                (if line.isolated { "yes" } else { "no" }).to_owned(),
                line.mode.clone(),
                line.guard.clone(),
                line.link.clone(),
                line.segment.to_string(),
                addresses.join(","),
            ]
        })
        .collect();
    table(
        ["NAMESPACE", "WORKLOAD", "SERVICE", "NODE", "ISOLATED", "MODE", "GUARD", "LINK", "SEGMENT", "ADDRESSES"],
        &rows,
    )
}

/// One line of `bulkhead get policies`: a listed service, or a document of another kind than Intent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyLine {
    kind: String,
    origin: String,
    /// `enforce` or `audit`.
    mode: String,
    /// Empty for what is about the whole cluster.
    namespace: String,
    name: String,
    /// Whom it is about; empty for everybody.
    selects: String,
    /// How many these are.
    workloads: usize,
    /// What it says of traffic to them.
    ingress: Vec<String>,
    /// What it says of traffic from them.
    egress: Vec<String>,
}

/// Policies as they are written, a line for each listed service and for each document of another kind.
///
/// # Errors
/// The stored revision cannot be read by this version.
pub fn policies(revision: &Revision, model: &Model) -> Result<Vec<PolicyLine>, Diagnostics> {
    let mut lines = Vec::new();
    for (file, text) in &revision.inputs.policies {
        for document in policy::parse(&source(file, text))? {
            match document {
                Policy::Intent(intent) => {
                    lines.extend(intent.services.iter().map(|service| of_service(model, &intent, service)));
                }
                Policy::Network(policy) => lines.push(of_network_policy(model, &policy)),
                Policy::Guard(guard) => lines.push(of_guard(model, &guard)),
                Policy::Noted(_) => {}
            }
        }
    }
    Ok(lines)
}

fn mode(audit: bool) -> String {
    (if audit { "audit" } else { "enforce" }).to_owned()
}

fn of_service(model: &Model, intent: &Intent, service: &intent::Service) -> PolicyLine {
    let name = ServiceName::new(intent.namespace.clone(), service.name.clone());
    let text = |line: &intent::Line| format!("{}:{}", line.peer, line.ports);
    let selected = model.services.get(&name).map(|service| Selector::equal(&service.select));
    PolicyLine {
        kind: "Intent".to_owned(),
        origin: service.place.origin(),
        mode: mode(intent.audit || service.audit),
        workloads: model.workloads.values().filter(|workload| workload.services.contains(&name)).count(),
        selects: selected.map(|selector| selector.to_string()).unwrap_or_default(),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        ingress: service.accepts.iter().map(text).collect(),
        egress: service.calls.iter().map(text).collect(),
    }
}

fn of_network_policy(model: &Model, policy: &NetworkPolicy) -> PolicyLine {
    let rules = |direction| -> Vec<String> {
        let rules = policy.rules.iter().filter(|rule| policy.isolates(direction) && rule.direction == direction);
        let pairs =
            rules.flat_map(|rule| rule.peers.iter().flat_map(|peer| rule.ports.iter().map(move |on| (peer, on))));
        pairs.map(|(peer, ports)| format!("{peer}:{ports}")).collect()
    };
    PolicyLine {
        kind: "NetworkPolicy".to_owned(),
        namespace: policy.name.namespace.clone(),
        name: policy.name.name.clone(),
        origin: policy.place.origin(),
        mode: mode(false),
        selects: policy.pods.to_string(),
        workloads: model.workloads.values().filter(|workload| workload.policies.contains(&policy.name)).count(),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    }
}

fn of_guard(model: &Model, guard: &Guard) -> PolicyLine {
    let rules = |direction| -> Vec<String> {
        let rules = guard.rules.iter().filter(|rule| rule.direction == direction);
        // Behind the colon stands what the rule does to whom.
        rules.map(|rule| rule.name.split_once(": ").map_or(rule.name.as_str(), |(_, text)| text).to_owned()).collect()
    };
    let concerns = |(name, workload): &(&WorkloadName, &Workload)| guard.subjects.hold(model, name, workload);
    PolicyLine {
        kind: guard.kind.name().to_owned(),
        namespace: String::new(),
        name: guard.name.clone(),
        origin: guard.place.origin(),
        mode: mode(!guard.rules.is_empty() && guard.rules.iter().all(|rule| rule.audit)),
        selects: guard.subjects.to_string(),
        workloads: model.workloads.iter().filter(concerns).count(),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    }
}

/// As a table.
#[must_use]
pub fn policies_table(lines: &[PolicyLine]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            [
                line.kind.clone(),
                line.namespace.clone(),
                line.name.clone(),
                line.origin.clone(),
                line.mode.clone(),
                line.selects.clone(),
                line.workloads.to_string(),
                line.ingress.join(" "),
                line.egress.join(" "),
            ]
        })
        .collect();
    table(["KIND", "NAMESPACE", "NAME", "ORIGIN", "MODE", "SELECTS", "WORKLOADS", "INGRESS", "EGRESS"], &rows)
}

/// A service address, and what it leads to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceLine {
    namespace: String,
    name: String,
    #[schema(value_type = Vec<String>)]
    addresses: Vec<IpAddr>,
    /// `80/tcp -> 8080`, with `node port 30080` where every node has one.
    ports: Vec<String>,
    /// Workloads that answer, `namespace/name`, and addresses outside.
    backends: Vec<String>,
}

/// Service addresses of a model.
#[must_use]
pub fn services(model: &Model) -> Vec<ServiceLine> {
    let line = |(name, frontend): (&ServiceName, &Frontend)| ServiceLine {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        addresses: frontend.addresses.iter().copied().collect(),
        ports: frontend.ports.iter().map(port_text).collect(),
        backends: frontend
            .workloads
            .iter()
            .map(ToString::to_string)
            .chain(frontend.outside.iter().map(|outside| outside.address.to_string()))
            .collect(),
    };
    model.frontends.iter().map(line).collect()
}

fn port_text(port: &FrontendPort) -> String {
    let target = match &port.target {
        Target::Number(number) => number.to_string(),
        Target::Named(name) => name.clone(),
    };
    let node = port.node_port.map(|port| format!(", node port {port}")).unwrap_or_default();
    format!("{} -> {target}{node}", point(port.transport.class(), port.port))
}

/// As a table.
#[must_use]
pub fn services_table(lines: &[ServiceLine]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let addresses: Vec<_> = line.addresses.iter().map(ToString::to_string).collect();
            [
                line.namespace.clone(),
                line.name.clone(),
                addresses.join(","),
                line.ports.join(" "),
                line.backends.join(" "),
            ]
        })
        .collect();
    table(["NAMESPACE", "SERVICE", "ADDRESSES", "PORTS", "BACKENDS"], &rows)
}

/// One line of `bulkhead get rules`.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RuleLine {
    rule: String,
    origin: String,
    allowed_packets: u64,
    allowed_bytes: u64,
    blocked_packets: u64,
    blocked_bytes: u64,
    /// Of packets that are counted already: what an audited rule would do with them.
    would_allow_packets: u64,
    would_deny_packets: u64,
}

/// Rules of the revision in force, and those that are gone but counted, with what they decided on this node. Replies count for the rule that
/// allowed the flow.
#[must_use]
pub fn rules(model: &Model, readings: &[Reading]) -> Vec<RuleLine> {
    let mut lines: BTreeMap<String, RuleLine> = BTreeMap::new();
    for (rule, origin) in origins(model) {
        lines.insert(rule.clone(), RuleLine { rule, origin, ..RuleLine::default() });
    }
    for reading in readings.iter().filter(|reading| reading.endpoint.is_some() && !reading.rule.is_empty()) {
        let line = lines
            .entry(reading.rule.clone())
            .or_insert_with(|| RuleLine { rule: reading.rule.clone(), ..RuleLine::default() });
        match reading.reason {
            Reason::WouldAllow => line.would_allow_packets += reading.packets,
            Reason::WouldDeny => line.would_deny_packets += reading.packets,
            _ => {}
        }
        if reading.reason.beside() {
            continue;
        }
        let (packets, bytes) = match reading.reason.blocked() {
            true => (&mut line.blocked_packets, &mut line.blocked_bytes),
            false => (&mut line.allowed_packets, &mut line.allowed_bytes),
        };
        *packets += reading.packets;
        *bytes += reading.bytes;
    }
    lines.into_values().collect()
}

/// Where each rule is written.
fn origins(model: &Model) -> BTreeMap<String, String> {
    let mut origins: BTreeMap<String, String> =
        model.rules.iter().map(|rule| (rule.named.name.clone(), rule.place.origin())).collect();
    let guards = model.guards.iter().flat_map(|guard| &guard.rules);
    origins.extend(guards.map(|rule| (rule.name.clone(), rule.place.origin())));
    for direction in [Direction::Ingress, Direction::Egress] {
        let services = model.services.iter().map(|(name, service)| Isolation::Service(name, service));
        let policies = model.network_policies.values().filter(|policy| policy.isolates(direction));
        for isolation in services.chain(policies.map(|policy| Isolation::Policy(policy))) {
            origins.insert(isolated(isolation, direction), isolation.place().origin());
        }
    }
    for rule in [NOT_ISOLATED, NODE_REACHES] {
        origins.insert(rule.to_owned(), String::new());
    }
    origins
}

/// As a table.
#[must_use]
pub fn rules_table(lines: &[RuleLine]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let counts =
                [line.allowed_packets, line.blocked_packets, line.would_allow_packets, line.would_deny_packets];
            let [allowed, blocked, would_allow, would_deny] = counts.map(|count| count.to_string());
            [line.rule.clone(), line.origin.clone(), allowed, blocked, would_allow, would_deny]
        })
        .collect();
    table(["RULE", "ORIGIN", "ALLOWED", "BLOCKED", "WOULD ALLOW", "WOULD DENY"], &rows)
}

/// One line of `bulkhead get flows`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowLine {
    namespace: String,
    workload: String,
    /// Of the initiator, as the workload sees it: `ingress`, `egress`.
    direction: String,
    /// Who is at the other end; its address where it is outside.
    peer: String,
    #[schema(value_type = String)]
    local: IpAddr,
    #[schema(value_type = String)]
    remote: IpAddr,
    /// IP protocol.
    protocol: u8,
    local_port: u16,
    remote_port: u16,
    /// What the flow is about: `5432/tcp`.
    port: String,
    /// Name of the rule that allowed it.
    rule: String,
    reason: String,
    /// Wire segments of the initiator.
    packets: u64,
    /// Wire segments of the replies.
    reply_packets: u64,
    /// Bytes of the initiator.
    bytes: u64,
    /// Bytes of the replies.
    reply_bytes: u64,
    /// First packet, nanoseconds of Unix time.
    first: u64,
    /// Latest packet, nanoseconds of Unix time.
    last: u64,
    /// The verdict is of the current epoch; else it is judged again with its next packet.
    current: bool,
    /// Its packets are forwarded directly, on a node that does; else they take the node's way.
    direct: bool,
}

/// Flows that are in the tables.
#[must_use]
pub fn flows(names: &Names<'_>, flows: &[FlowRecord]) -> Vec<FlowLine> {
    let line = |flow: &FlowRecord| {
        let port = if flow.direction == "ingress" { flow.local_port } else { flow.remote_port };
        FlowLine {
            namespace: flow.endpoint.namespace.clone(),
            workload: flow.endpoint.workload.clone(),
            direction: flow.direction.to_owned(),
            peer: names.peer(&flow.endpoint, flow.remote),
            local: flow.local,
            remote: flow.remote,
            protocol: flow.protocol,
            local_port: flow.local_port,
            remote_port: flow.remote_port,
            port: flow_point(flow.protocol, port),
            rule: flow.rule.to_string(),
            reason: flow.reason.label().to_owned(),
            packets: flow.packets[0],
            reply_packets: flow.packets[1],
            bytes: flow.bytes[0],
            reply_bytes: flow.bytes[1],
            first: flow.first,
            last: flow.last,
            current: flow.current,
            direct: flow.direct,
        }
    };
    flows.iter().map(line).collect()
}

/// As a table.
#[must_use]
pub fn flows_table(flows: &[FlowLine]) -> String {
    let rows: Vec<_> = flows
        .iter()
        .map(|flow| {
            [
                format!("{}/{}", flow.namespace, flow.workload),
                flow.direction.clone(),
                flow.peer.clone(),
                flow.port.clone(),
                format!("{}/{}", flow.packets, flow.reply_packets),
                format!("{}/{}", flow.bytes, flow.reply_bytes),
                flow.rule.clone(),
                time(flow.last),
            ]
        })
        .collect();
    table(["WORKLOAD", "DIRECTION", "PEER", "PORT", "PACKETS", "BYTES", "RULE", "LAST"], &rows)
}

/// What `bulkhead status` says of a node, under whichever revision; `Err` says why that is not known.
#[must_use]
pub fn status(revision: Result<Option<&RevisionBody>, &str>, node: &NodeBody) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    match revision {
        Ok(Some(revision)) => {
            let summary = &revision.summary;
            let at = time(revision.time.saturating_mul(1_000_000_000));
            let _ = writeln!(text, "revision  {} of node {}, published {at}", revision.number, revision.node);
            let _ = writeln!(
                text,
                "compiled  {} rules, {} selectors, {} policy sets, {} endpoints, {} addresses, {} prefixes",
                summary.rules, summary.selectors, summary.sets, summary.endpoints, summary.addresses, summary.prefixes
            );
        }
        Ok(None) => text.push_str("revision  none is known\n"),
        Err(why) => _ = writeln!(text, "revision  UNKNOWN, {why}"),
    }
    let _ = writeln!(text, "epoch     {}", node.epoch);
    let _ =
        writeln!(text, "boundary  input rule {}", if node.input_rule { "stands or is not needed" } else { "MISSING" });
    if node.direct {
        text.push_str("forwards  directly between workloads, past bridge, routes and netfilter\n");
    }
    if node.mark_mask != NO_MASK {
        let _ = writeln!(text, "mark      {}", node.mark_mask);
    }
    for user in &node.mark_users {
        let _ = writeln!(text, "CONFLICT  {} of it is used by {}", user.bits, user.rule);
    }
    for why in &node.mark_unread {
        let _ = writeln!(text, "unknown   who else uses these bits: {why}");
    }
    if !node.mark_remedy.is_empty() {
        let _ = writeln!(text, "remedy    {}", node.mark_remedy);
    }
    text.push('\n');
    let endpoints: Vec<_> = node
        .endpoints
        .iter()
        .map(|endpoint| {
            [
                endpoint.name.clone(),
                endpoint.link.clone(),
                endpoint.mode.clone(),
                (if endpoint.guarded { "guarded" } else { "NOT GUARDED" }).to_owned(),
                endpoint.epoch.to_string(),
                endpoint.slot.to_string(),
            ]
        })
        .collect();
    text.push_str(&table(["ENDPOINT", "LINK", "MODE", "GUARD", "EPOCH", "SLOT"], &endpoints));
    text.push('\n');
    let links: Vec<_> = node.links.iter().map(|link| [link.link.clone(), link.guard.clone()]).collect();
    text.push_str(&table(["LINK", "GUARD"], &links));
    text.push('\n');
    let tables: Vec<_> = node
        .tables
        .iter()
        .map(|table| [table.table.clone(), table.used.to_string(), table.limit.to_string()])
        .collect();
    text.push_str(&table(["TABLE", "USED", "LIMIT"], &tables));
    text
}

/// How a mask is written where no programs are in force yet.
const NO_MASK: &str = "0x00000000";

/// What `bulkhead status` says of an agent that answers.
#[must_use]
pub fn agent(agent: &StatusBody) -> String {
    let mut text = format!("agent     version {}, since {}\n", agent.version, seconds(agent.started));
    for trouble in &agent.troubles {
        let _ = writeln!(text, "TROUBLE   {trouble}");
    }
    let drift = &agent.drift;
    if drift.found > 0 {
        let latest = drift.latest.map(seconds).unwrap_or_default();
        let what = drift.what.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "drift     {} guards were found missing since then, {} of them were put back; the latest at {latest}: {what}",
            drift.found, drift.repaired
        );
    }
    let found = &agent.found;
    if found.adopted > 0 || found.unenforced_starts > 0 {
        let _ = writeln!(
            text,
            "found     {} containers that ran before the agent were adopted, {} started without a guard since then",
            found.adopted, found.unenforced_starts
        );
    }
    if agent.audit_lost > 0 {
        let _ = writeln!(text, "audit     {} records could not be written since then", agent.audit_lost);
    }
    text
}

fn seconds(seconds: u64) -> String {
    time(seconds.saturating_mul(1_000_000_000))
}

/// How an endpoint is called.
#[must_use]
pub fn full_name(EndpointName { namespace, workload, index }: &EndpointName) -> String {
    format!("{namespace}/{workload}#{index}")
}

/// Names for what readers find, by the revision in force.
#[derive(Debug)]
pub struct Names<'a> {
    model: &'a Model,
    explainer: Explainer<'a>,
    peers: Arc<Peers>,
    origins: BTreeMap<String, String>,
}

/// One line of `bulkhead observe`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Observation {
    /// What stays the same while the same thing goes on.
    pub key: String,
    /// Latest packet, nanoseconds of Unix time.
    pub last: u64,
    /// `allowed` or `blocked`; of what passed all the same `would_deny` (audited policies are against it) or `observed` (policy is against it).
    pub verdict: String,
    from: String,
    to: String,
    port: String,
    reason: String,
    rule: String,
    origin: String,
    /// Wire segments; of what was denied, those that were sampled.
    pub packets: u64,
    bytes: u64,
    /// In words.
    pub text: String,
}

impl<'a> Names<'a> {
    /// Names of a model, as a node sees them.
    #[must_use]
    pub fn new(model: &'a Model, node: &str) -> Self {
        Self::with(model, Peers::new(model, node, &Discovered::default()).into())
    }

    /// Names of a model, with those for addresses that are made already.
    #[must_use]
    pub fn with(model: &'a Model, peers: Arc<Peers>) -> Self {
        Self { model, explainer: Explainer::new(model), peers, origins: origins(model) }
    }

    /// Who has the address of a contact's peer now.
    #[must_use]
    pub fn workload(&self, contact: &ContactRecord) -> Option<&WorkloadName> {
        self.peers.workload(contact.endpoint.as_ref()?, contact.peer)
    }

    fn peer(&self, endpoint: &EndpointName, address: IpAddr) -> String {
        match self.peers.name(endpoint, address) {
            // For a person an address says more.
            name if name == "world" || name == UNKNOWN => address.to_string(),
            name => name,
        }
    }

    fn rule(&self, rule: &str) -> String {
        match self.origins.get(rule).filter(|origin| !origin.is_empty()) {
            Some(origin) => format!("{rule} ({origin})"),
            None => rule.to_owned(),
        }
    }

    /// A flow that was allowed.
    #[must_use]
    pub fn flow(&self, flow: &FlowRecord) -> Observation {
        let inward = flow.direction == "ingress";
        let own = service_of(self.model, &flow.endpoint);
        let peer = self.peer(&flow.endpoint, flow.remote);
        let port = flow_point(flow.protocol, if inward { flow.local_port } else { flow.remote_port });
        let grounds = match &*flow.rule {
            "" => flow.reason.text().to_owned(),
            rule => format!("by {}", self.rule(rule)),
        };
        let stale = if flow.current { "" } else { "; judged again with its next packet" };
        let at = format!("at {own}'s {}", flow.direction);
        let (from, to) = if inward { (peer, own) } else { (own, peer) };
        let [packets, replies] = flow.packets;
        let text =
            format!("ALLOWED {from} -> {to} {port}  {at} {grounds}; {packets} packets, {replies} replies{stale}");
        Observation {
            key: flow_key(flow),
            last: flow.last,
            verdict: "allowed".to_owned(),
            from,
            to,
            port,
            reason: flow.reason.label().to_owned(),
            rule: flow.rule.to_string(),
            origin: self.origins.get(&*flow.rule).cloned().unwrap_or_default(),
            packets: packets + replies,
            bytes: flow.bytes[0] + flow.bytes[1],
            text,
        }
    }

    /// A sample of what was denied, or would have been.
    #[must_use]
    pub fn contact(&self, contact: &ContactRecord) -> Observation {
        let (class, value) = asked(contact);
        let port = point(class, value);
        let (verdict, word) = verdict(contact);
        let (from, to, text) = match &contact.endpoint {
            None => self.at_boundary(contact, word),
            Some(endpoint) => {
                let own = service_of(self.model, endpoint);
                let peer = self.peer(endpoint, contact.peer);
                let (from, to) = if contact.direction == "ingress" { (peer, own) } else { (own, peer) };
                let text = match contact.reason {
                    Reason::Isolated | Reason::DeniedByRule | Reason::WouldDeny => {
                        self.explained(endpoint, contact, class, value)
                    }
                    _ => None,
                };
                let side = if contact.direction == "ingress" { &to } else { &from };
                let text = text.unwrap_or_else(|| {
                    format!("{from} -> {to} {port}  at {side}'s {}: {}", contact.direction, self.grounds(contact))
                });
                let text = format!("{word} {text}");
                (from, to, text)
            }
        };
        Observation {
            key: contact_key(contact),
            last: contact.last,
            verdict: verdict.to_owned(),
            from,
            to,
            port,
            reason: contact.reason.label().to_owned(),
            rule: contact.rule.to_string(),
            origin: self.origins.get(&*contact.rule).cloned().unwrap_or_default(),
            packets: contact.packets,
            bytes: contact.bytes,
            text,
        }
    }

    /// A sample of what was denied to a peer, or from one, whose address is somebody else's by now, in words: what is in force says nothing of it.
    #[must_use]
    pub fn contact_of(&self, contact: &ContactRecord, peer: &str) -> String {
        let (class, value) = asked(contact);
        let port = point(class, value);
        let own = contact.endpoint.as_ref().map_or_else(|| "node".to_owned(), |own| service_of(self.model, own));
        let (from, to) = if contact.direction == "ingress" { (peer, &*own) } else { (&*own, peer) };
        format!("{from} -> {to} {port}  at {own}'s {}: {}", contact.direction, self.grounds(contact))
    }

    /// What the tables in force said of it.
    fn grounds(&self, contact: &ContactRecord) -> String {
        let grounds = match (contact.reason, &*contact.rule) {
            (Reason::WouldDeny, rule) if !rule.is_empty() => format!("by {}", self.rule(rule)),
            (reason, _) => plain(reason),
        };
        let audit = if contact.would_pass { "; audit: would be allowed" } else { "" };
        format!("{grounds}{audit}")
    }

    /// What the policy says, without the verdict; `None` when it cannot be told, or the revision in force would allow what another one denied.
    fn explained(&self, endpoint: &EndpointName, contact: &ContactRecord, class: Class, value: u16) -> Option<String> {
        let own = WorkloadName::new(endpoint.namespace.clone(), endpoint.workload.clone());
        let own = Party::Workload(&own);
        let peer = self.peers.workload(endpoint, contact.peer).map_or(Party::Address(contact.peer), Party::Workload);
        let (from, to) = if contact.direction == "ingress" { (peer, own) } else { (own, peer) };
        // What cannot be told, the tables in force have said.
        let answer = self.explainer.explain(Question { from, to, class, value }, contact.last).ok()?;
        if contact.reason == Reason::WouldDeny {
            return answer.would_block(self.model).map(|why| format!("{}  {why}", answer.subject()));
        }
        answer.text(self.model).strip_prefix("BLOCKED ").map(ToOwned::to_owned)
    }

    fn at_boundary(&self, contact: &ContactRecord, word: &str) -> (String, String, String) {
        let from = contact.peer.to_string();
        let what = contact.inner.map_or_else(String::new, |(vni, inner)| format!(" (VNI {vni}, inner source {inner})"));
        let text = format!("{word} tunnel packet from {from}{what}  at the node's boundary: {}", plain(contact.reason));
        (from, "node".to_owned(), text)
    }
}

/// What stays the same while a flow goes on.
fn flow_key(flow: &FlowRecord) -> String {
    let FlowRecord { endpoint, direction, local, local_port, remote, remote_port, protocol, .. } = flow;
    format!("{} {direction} {local}:{local_port} {remote}:{remote_port} {protocol}", full_name(endpoint))
}

/// What stays the same while it is denied again and again.
fn contact_key(contact: &ContactRecord) -> String {
    let ContactRecord { endpoint, direction, peer, protocol, port, reason, .. } = contact;
    let endpoint = endpoint.as_deref().map_or_else(|| "node".to_owned(), full_name);
    format!("{endpoint} {direction} {peer} {protocol} {port} {} {}", reason.label(), verdict(contact).0)
}

/// What became of a contact, for programs and for people.
fn verdict(contact: &ContactRecord) -> (&'static str, &'static str) {
    match contact.reason {
        _ if contact.observed => ("observed", "OBSERVED"),
        Reason::WouldDeny => ("would_deny", "WOULD DENY"),
        _ => ("blocked", "BLOCKED"),
    }
}

/// What a contact asked for: the class, and the point of its axis.
fn asked(contact: &ContactRecord) -> (Class, u16) {
    match class_of(contact.protocol) {
        Class::Other => (Class::Other, contact.protocol.into()),
        class => (class, contact.port),
    }
}

/// Flows that were allowed and samples of what was denied, as they went on: the latest last.
#[must_use]
pub fn observations(names: &Names<'_>, flows: &[FlowRecord], contacts: &Contacts) -> Vec<Observation> {
    in_words(names, flows, &contacts.records)
}

fn in_words<'a>(
    names: &Names<'_>,
    flows: impl IntoIterator<Item = &'a FlowRecord>,
    contacts: impl IntoIterator<Item = &'a ContactRecord>,
) -> Vec<Observation> {
    let mut found: Vec<Observation> = flows.into_iter().map(|flow| names.flow(flow)).collect();
    found.extend(contacts.into_iter().map(|contact| names.contact(contact)));
    found.sort_by_key(|observation| observation.last);
    found
}

/// What of several looks is new: a flow once, what is denied again and again each time it is seen.
#[derive(Debug, Default)]
pub struct News {
    /// Packets of what was there at the latest look.
    shown: BTreeMap<String, u64>,
}

impl News {
    /// What of what is there is new. Words and names are made for that alone: they take long.
    pub fn of<'a>(
        &mut self,
        flows: &[FlowRecord],
        contacts: &Contacts,
        names: impl FnOnce() -> Names<'a>,
    ) -> Vec<Observation> {
        let before = std::mem::take(&mut self.shown);
        let mut is_new = |key: String, packets: u64, is_told_again: bool| {
            let is_new = before.get(&key).is_none_or(|shown| is_told_again && *shown != packets);
            self.shown.insert(key, packets);
            is_new
        };
        let is_news = |flow: &&FlowRecord| is_new(flow_key(flow), flow.packets.iter().sum(), false);
        let flows: Vec<_> = flows.iter().filter(is_news).collect();
        let is_news = |contact: &&ContactRecord| is_new(contact_key(contact), contact.packets, true);
        let contacts: Vec<_> = contacts.records.iter().filter(is_news).collect();
        if flows.is_empty() && contacts.is_empty() {
            return Vec::new();
        }
        in_words(&names(), flows, contacts)
    }
}

/// What several streams tell one after the other, each thing once: every one begins with all that is there.
#[derive(Debug, Default)]
pub struct Streams {
    /// Packets of what the streams before told and this one has not told yet.
    before: BTreeMap<String, u64>,
    now: BTreeMap<String, u64>,
}

impl Streams {
    /// Another stream begins.
    pub fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Whether no stream before told of an observation.
    pub fn is_new(&mut self, observation: &Observation) -> bool {
        let told = self.before.remove(&observation.key);
        self.now.insert(observation.key.clone(), observation.packets);
        told.is_none_or(|packets| observation.verdict != "allowed" && observation.packets != packets)
    }
}

/// What a flow is about; its ports of ICMP are no points of an axis.
fn flow_point(number: u8, port: u16) -> String {
    match class_of(number) {
        Class::Other | Class::Icmp | Class::Icmp6 => protocol(number),
        class => point(class, port),
    }
}

/// A reason as part of a sentence.
fn plain(reason: Reason) -> String {
    format!("{}: {}", reason.label(), reason.text().trim_end_matches('.'))
}

fn service_of(model: &Model, endpoint: &EndpointName) -> String {
    let name = WorkloadName::new(endpoint.namespace.clone(), endpoint.workload.clone());
    let service = model.workloads.get(&name).map(|workload| &*workload.service).filter(|service| !service.is_empty());
    format!("{}/{}", endpoint.namespace, service.unwrap_or(&endpoint.workload))
}

/// Nanoseconds of Unix time as people write it, in UTC.
#[must_use]
pub fn time(nanoseconds: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(nanoseconds)).to_string()
}
