//! `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy` (v1alpha1) and `ClusterNetworkPolicy` (v1alpha2): Guards by another name.

use bulkhead_ebpf::abi::{Action, Direction};
use serde_saphyr::Spanned;

use super::{
    ports, prefixes,
    read::{self, Named, add, warning},
    selectors::selector,
};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    guard::{Guard, Kind, Rule, Subjects, Tier, Whom},
    intent::Cidrs,
    labels::Selector,
    model::{Peer, Scope},
    ports::{Ports, Transport},
    yaml::{
        at,
        tree::{Fields, Item, Node, Value},
    },
};

/// How the kinds differ.
struct Dialect {
    kind: Kind,
    /// The version that can be read.
    version: &'static str,
    /// What names of its rules begin with.
    prefix: &'static str,
    actions: &'static [(&'static str, Action)],
    /// Field of a rule that limits ports.
    ports: &'static str,
    /// Items that a list may have.
    most: usize,
}

const DIALECTS: [Dialect; 3] = [
    Dialect {
        kind: Kind::AdminNetworkPolicy,
        version: "policy.networking.k8s.io/v1alpha1",
        prefix: "adminnetworkpolicy",
        actions: &[("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        ports: "ports",
        most: 100,
    },
    Dialect {
        kind: Kind::BaselineAdminNetworkPolicy,
        version: "policy.networking.k8s.io/v1alpha1",
        prefix: "baselineadminnetworkpolicy",
        actions: &[("Allow", Action::Allow), ("Deny", Action::Deny)],
        ports: "ports",
        most: 100,
    },
    Dialect {
        kind: Kind::ClusterNetworkPolicy,
        version: "policy.networking.k8s.io/v1alpha2",
        prefix: "clusternetworkpolicy",
        actions: &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        ports: "protocols",
        most: 25,
    },
];

/// Prefixes that a list may have.
const MOST_NETWORKS: usize = 25;
/// The highest priority number.
const MOST_PRIORITY: i64 = 1000;
/// Characters that a rule's name may have.
const MOST_NAME: usize = 100;
/// The name of the only `BaselineAdminNetworkPolicy` that a cluster has.
const BASELINE_NAME: &str = "default";

/// Peers of both directions.
const INGRESS_PEERS: [&str; 2] = ["namespaces", "pods"];
/// Peers of egress.
const EGRESS_PEERS: [&str; 5] = ["namespaces", "pods", "nodes", "networks", "domainNames"];

pub(super) fn read(api_version: &str, kind: &str, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Guard> {
    let dialect = DIALECTS.iter().find(|dialect| dialect.kind.name() == kind)?;
    if !read::version(api_version, kind, dialect.version, object, found) {
        return None;
    }
    object.ignore(&["kind", "status"]);
    let named = read::named(object, found);
    let spec = object.required("spec", found);
    object.note_rest(&["tier", "priority", "subject", "ingress", "egress"], found);
    let spec = spec?.fields(found)?;
    Reader { dialect, named: named?, found }.guard(spec)
}

/// Reads one object.
struct Reader<'a> {
    dialect: &'static Dialect,
    named: Named,
    found: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn guard(mut self, mut spec: Fields<'_>) -> Option<Guard> {
        let rank = self.rank(&mut spec);
        let subject = spec.required("subject", self.found);
        let (ingress, egress) = (spec.get("ingress"), spec.get("egress"));
        spec.refuse_rest(self.found);
        let subjects = subject.and_then(|subject| self.subjects(subject));
        let mut rules = Vec::new();
        for (direction, list) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            let Some(list) = list else { continue };
            let items = read::at_most(list, self.dialect.most, side(direction).0, self.found);
            for (index, item) in items.into_iter().enumerate() {
                rules.extend(self.rule(direction, index, item).unwrap_or_default());
            }
        }
        let (tier, priority, priority_place) = rank?;
        Some(Guard {
            kind: self.dialect.kind,
            tier,
            name: self.named.name,
            place: self.named.place,
            priority,
            priority_place,
            subjects: subjects?,
            compare: None,
            rules,
        })
    }

    /// When it is judged, and where that is written.
    fn rank(&mut self, spec: &mut Fields<'_>) -> Option<(Tier, u32, Place)> {
        let tier = match self.dialect.kind {
            Kind::BaselineAdminNetworkPolicy => {
                let Named { name, place, .. } = &self.named;
                if name != BASELINE_NAME {
                    let message = format!("a BaselineAdminNetworkPolicy is called `{BASELINE_NAME}`, not `{name}`");
                    let help = format!("write `name: {BASELINE_NAME}`: a cluster has one, judged last");
                    self.found.push(Diagnostic::error(place, message).help(help));
                }
                return Some((Tier::Baseline, u32::MAX, place.clone()));
            }
            Kind::ClusterNetworkPolicy => self.tier(spec),
            Kind::AdminNetworkPolicy | Kind::Guard => Some(Tier::Admin),
        };
        let written = spec.required("priority", self.found)?;
        let number = written.integer(self.found)?;
        let priority = u32::try_from(number).ok().filter(|_| number <= MOST_PRIORITY);
        if priority.is_none() {
            let help = format!("priorities are 0 to {MOST_PRIORITY}; lower is judged first");
            self.found.push(written.error(format!("{number} is not a priority"), help));
        }
        Some((tier?, priority?, written.place()))
    }

    fn tier(&mut self, spec: &mut Fields<'_>) -> Option<Tier> {
        let written = spec.required("tier", self.found)?;
        match written.text(self.found)? {
            "Admin" => Some(Tier::Admin),
            "Baseline" => Some(Tier::Baseline),
            other => {
                let help = "write `Admin` for before NetworkPolicies, or `Baseline` for behind them";
                self.found.push(written.error(format!("`{other}` is not a tier"), help));
                None
            }
        }
    }

    fn subjects(&mut self, subject: Node<'_>) -> Option<Subjects> {
        let mut fields = subject.fields(self.found)?;
        let (field, written) = read::one_of(&mut fields, "a subject", &INGRESS_PEERS, self.found)?;
        let (namespaces, workloads) = self.workloads(field, written)?;
        Some(Subjects { place: Some(subject.place()), namespaces, services: Vec::new(), workloads })
    }

    /// Labels of namespaces and of the workloads in them.
    fn workloads(&mut self, field: &str, written: Node<'_>) -> Option<(Selector, Selector)> {
        if field == "namespaces" {
            if let Some((key, _)) = entry(written, |key| key == "namespaceSelector") {
                let help = "v1alpha1 once had it: write what it says as `namespaces: { matchLabels: ... }` itself";
                let message = "`namespaces` is a selector and has no `namespaceSelector`";
                self.found.push(Diagnostic::error(&at(written.source, key), message).help(help));
                return None;
            }
            return Some((selector(written, self.found), Selector::everybody()));
        }
        let mut fields = written.fields(self.found)?;
        let namespaces = fields.get("namespaceSelector");
        let pods = fields.get("podSelector");
        fields.refuse_rest(self.found);
        self.missing(written, namespaces.is_some(), pods.is_some());
        let mut either = |written: Option<Node<'_>>| {
            written.map_or_else(Selector::everybody, |written| selector(written, self.found))
        };
        Some((either(namespaces), either(pods)))
    }

    /// What is said of `pods` with less than two selectors. v1alpha1 wants both, but its own examples and tools do with one; v1alpha2 can do without
    /// namespaces.
    fn missing(&mut self, written: Node<'_>, namespaces: bool, pods: bool) {
        let cluster = self.dialect.kind == Kind::ClusterNetworkPolicy;
        match (namespaces, pods) {
            (true, true) => {}
            (false, false) => {
                let help =
                    "write `podSelector: {}` for every pod, and `namespaceSelector` with labels of their namespaces";
                self.found.push(written.error("`pods` has no selector", help));
            }
            (true, false) if cluster => {
                self.found.push(written.error("`podSelector` is missing", "for every pod write `podSelector: {}`"));
            }
            (true, false) => {
                let message = "`podSelector` is missing: that is every pod of these namespaces";
                self.found.push(warning(written, message, "write `podSelector: {}` if that is meant"));
            }
            (false, true) if cluster => {}
            (false, true) => {
                let message = "`namespaceSelector` is missing: that is every namespace";
                self.found.push(warning(written, message, "write `namespaceSelector: {}` if that is meant"));
            }
        }
    }

    /// One rule for each peer of an item.
    fn rule(&mut self, direction: Direction, index: usize, item: Node<'_>) -> Option<Vec<Rule>> {
        let mut fields = item.fields(self.found)?;
        let (list, field) = side(direction);
        let called = fields.get("name").and_then(|name| self.rule_name(name));
        let action = fields.required("action", self.found);
        let peers = fields.required(field, self.found);
        let ports = fields.get(self.dialect.ports);
        fields.refuse_rest(self.found);
        let action = action.and_then(|action| self.action(action));
        let peers = peers.map(|peers| self.peers(direction, field, peers));
        let limits = ports.map_or_else(|| vec![Ports::Any], |ports| self.ports(ports));
        let (action, peers) = (action?, peers?);
        if let Some(ports) = ports
            && direction == Direction::Egress
        {
            self.nameless(&peers, &limits, ports);
        }
        let mut name = format!("{} {}: {list}[{index}]", self.dialect.prefix, self.named.name);
        if let Some(called) = called.filter(|called| !called.is_empty()) {
            name.push_str(&format!(" {called}"));
        }
        let rule = |peer| Rule {
            name: name.clone(),
            place: item.place(),
            action,
            direction,
            peer: Whom::Is(peer),
            ports: limits.clone(),
            audit: false,
            expires: None,
        };
        Some(peers.into_iter().map(rule).collect())
    }

    fn rule_name<'a>(&mut self, written: Node<'a>) -> Option<&'a str> {
        let name = written.text(self.found)?;
        let length = name.chars().count();
        if length > MOST_NAME {
            let message = format!("the name of a rule has {length} characters, more than {MOST_NAME}");
            self.found.push(written.error(message, "shorten it"));
        }
        if name.contains(char::is_control) {
            let help = "write it on one line: it is shown with the rule's verdicts";
            self.found.push(written.error("the name of a rule has a control character", help));
        }
        Some(name)
    }

    fn action(&mut self, written: Node<'_>) -> Option<Action> {
        let name = written.text(self.found)?;
        let action = self.dialect.actions.iter().find(|(of, _)| *of == name);
        if action.is_none() {
            let names: Vec<_> = self.dialect.actions.iter().map(|(name, _)| *name).collect();
            let message = format!("`{name}` is no action that {} knows", self.dialect.kind.name());
            let help = match name {
                "Pass" => format!("write {}: nothing is judged behind it", read::any(&names)),
                _ => format!("write {}", read::any(&names)),
            };
            self.found.push(written.error(message, help));
        }
        action.map(|(_, action)| *action)
    }

    fn peers(&mut self, direction: Direction, field: &str, list: Node<'_>) -> Vec<Peer> {
        let items = read::at_most(list, self.dialect.most, field, self.found);
        if items.is_empty() && matches!(list.value(), Value::List(_)) {
            let help = format!("write `{field}: [{{ namespaces: {{}} }}]` for every workload");
            self.found.push(list.error(format!("`{field}` is empty and would match nobody"), help));
        }
        items.into_iter().filter_map(|item| self.peer(direction, item)).collect()
    }

    fn peer(&mut self, direction: Direction, item: Node<'_>) -> Option<Peer> {
        let mut fields = item.fields(self.found)?;
        let names = match direction {
            Direction::Ingress => &INGRESS_PEERS[..],
            Direction::Egress => &EGRESS_PEERS,
        };
        let outside = |key: &str| EGRESS_PEERS.contains(&key) && !INGRESS_PEERS.contains(&key);
        if direction == Direction::Ingress
            && let Some((key, _)) = entry(item, outside)
        {
            let name = &key.value;
            let help =
                "write `namespaces` or `pods`; for addresses that call use a NetworkPolicy with `ipBlock`, or a Guard";
            self.found.push(item.error(format!("`{name}` is a peer of `egress` only"), help));
            return None;
        }
        let (field, written) = read::one_of(&mut fields, "a peer", names, self.found)?;
        match field {
            "nodes" => Some(Peer::Nodes(selector(written, self.found))),
            "networks" => self.networks(written),
            "domainNames" => {
                let message =
                    "`domainNames` cannot be enforced: which addresses a name has is not seen where packets are judged";
                let help = "write the addresses as `networks: [198.51.100.0/24]`, or allow a proxy that knows names";
                self.found.push(written.error(message, help));
                None
            }
            _ => {
                let (namespaces, labels) = self.workloads(field, written)?;
                Some(Peer::Workloads { namespaces: Scope::Labelled(namespaces), labels })
            }
        }
    }

    fn networks(&mut self, list: Node<'_>) -> Option<Peer> {
        let items = read::at_most(list, MOST_NETWORKS, "networks", self.found);
        if items.is_empty() && matches!(list.value(), Value::List(_)) {
            let help = "write `networks: [198.51.100.0/24]`";
            self.found.push(list.error("`networks` is empty and would match nobody", help));
        }
        let mut cidrs: Vec<_> = items.into_iter().filter_map(|item| prefixes::prefix(item, self.found)).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        (!cidrs.is_empty()).then(|| Peer::Cidrs(Cidrs { cidrs, except: Vec::new() }))
    }

    fn ports(&mut self, list: Node<'_>) -> Vec<Ports> {
        let field = self.dialect.ports;
        let items = read::at_most(list, self.dialect.most, field, self.found);
        if items.is_empty() && matches!(list.value(), Value::List(_)) {
            let help = format!("leave `{field}` out for every port and protocol");
            self.found.push(list.error(format!("`{field}` is empty and would match nothing"), help));
        }
        let mut all = Vec::new();
        for item in items {
            let ports =
                if self.dialect.kind == Kind::ClusterNetworkPolicy { self.protocol(item) } else { self.port(item) };
            if let Some(ports) = ports {
                add(&mut all, ports);
            }
        }
        all
    }

    /// A port of v1alpha1.
    fn port(&mut self, item: Node<'_>) -> Option<Ports> {
        let mut fields = item.fields(self.found)?;
        let names = ["portNumber", "portRange", "namedPort"];
        let (field, written) = read::one_of(&mut fields, "a port", &names, self.found)?;
        if field == "namedPort" {
            return Some(Ports::Named { name: ports::name(written, self.found)?, transport: None });
        }
        let mut fields = written.fields(self.found)?;
        let transport = ports::protocol(&mut fields, self.found);
        if field == "portRange" {
            return ports::range(&mut fields, transport, self.found);
        }
        let port = fields.required("port", self.found);
        fields.refuse_rest(self.found);
        let port = ports::number(port?, self.found);
        Some(Ports::one(transport?, port?))
    }

    /// A protocol of v1alpha2.
    fn protocol(&mut self, item: Node<'_>) -> Option<Ports> {
        let mut fields = item.fields(self.found)?;
        let names = ["tcp", "udp", "sctp", "destinationNamedPort"];
        let (field, written) = read::one_of(&mut fields, "a protocol", &names, self.found)?;
        let transport = match field {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            _ => return Some(Ports::Named { name: ports::name(written, self.found)?, transport: None }),
        };
        let mut fields = written.fields(self.found)?;
        let port = fields.get("destinationPort");
        fields.refuse_rest(self.found);
        let Some(port) = port else {
            let help = "for every port write `destinationPort: { range: { start: 1, end: 65535 } }`";
            self.found.push(written.error("`destinationPort` is missing", help));
            return None;
        };
        let mut fields = port.fields(self.found)?;
        match read::one_of(&mut fields, "a port", &["number", "range"], self.found)? {
            ("number", number) => Some(Ports::one(transport, ports::number(number, self.found)?)),
            (_, range) => ports::range(&mut range.fields(self.found)?, Some(transport), self.found),
        }
    }

    /// Refuses names of ports where nobody has any.
    fn nameless(&mut self, peers: &[Peer], ports: &[Ports], written: Node<'_>) {
        let outside = peers.iter().any(|peer| matches!(peer, Peer::Nodes(_) | Peer::Cidrs(_)));
        let name = ports.iter().find_map(|ports| match ports {
            Ports::Named { name, .. } => Some(name),
            _ => None,
        });
        if let Some(name) = name.filter(|_| outside) {
            let message = format!("`{name}` is the name of a port, and `nodes` and `networks` have none");
            let help = "write the port's number; only workloads name their ports";
            self.found.push(written.error(message, help));
        }
    }
}

/// The first entry of a mapping whose key is one of some.
fn entry<'a>(node: Node<'a>, is: impl Fn(&str) -> bool) -> Option<&'a (Spanned<String>, Item)> {
    let Value::Mapping(entries) = node.value() else { return None };
    entries.iter().find(|(key, _)| is(&key.value))
}

/// List of rules of a direction, and the field of their peers.
pub(super) const fn side(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    }
}

#[cfg(test)]
mod tests;
