//! Connections as people and programs read them.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{Class, Direction};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Connection, Connections, Party, Range, Simulation};
use crate::{
    explain::{self, peer_name},
    show::table as columns,
};

/// How a party is written.
#[must_use]
pub fn party(party: Party<'_>) -> String {
    match party {
        Party::Outside(range) => format!("{range}[External]"),
        Party::Group(name) => name.to_owned(),
    }
}

/// One line for each, sorted: `shop/web[Deployment] => shop/db[StatefulSet] : TCP 5432`. Protocols with ports alone.
#[must_use]
pub fn list(connections: &[Connection<'_>]) -> String {
    let lines = connections.iter().filter_map(|connection| {
        let ports = connection.ports.list();
        let line = || format!("{} => {} : {ports}\n", party(connection.from), party(connection.to));
        (!ports.is_empty()).then(line)
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines.concat()
}

/// A table with a line for each, in which outside is named as policies name it, and a summary.
#[must_use]
pub fn table(simulation: &Simulation<'_>, connections: &[Connection<'_>]) -> String {
    let rows: Vec<_> = lines(simulation, connections).into_iter().collect();
    let groups = simulation.groups().count();
    let inside = |party: &Party<'_>| matches!(party, Party::Group(_));
    let pairs = connections.iter().filter(|connection| inside(&connection.from) && inside(&connection.to)).count();
    let entered: BTreeSet<_> = connections.iter().filter(|c| !inside(&c.from)).map(|c| c.to).collect();
    let leaving: BTreeSet<_> = connections.iter().filter(|c| !inside(&c.to)).map(|c| c.from).collect();
    format!(
        "{}\n{groups} workloads; {pairs} of {} pairs may connect; {} can be called from outside, {} may call outside\n",
        columns(["FROM", "TO", "PORTS"], &rows),
        groups * groups.saturating_sub(1),
        entered.len(),
        leaving.len(),
    )
}

/// Lines of the table; those about outside come first, as they are what people look for.
fn lines(simulation: &Simulation<'_>, connections: &[Connection<'_>]) -> BTreeSet<[String; 3]> {
    let mut lines = BTreeSet::new();
    // Ranges with one workload on the other side and the same ports.
    let mut ranges: BTreeMap<(Direction, &str, String), BTreeSet<Range>> = BTreeMap::new();
    for Connection { from, to, ports } in connections {
        let ports = ports.to_string();
        match (*from, *to) {
            (Party::Outside(range), Party::Group(group)) => {
                ranges.entry((Direction::Ingress, group, ports)).or_default().insert(range);
            }
            (Party::Group(group), Party::Outside(range)) => {
                ranges.entry((Direction::Egress, group, ports)).or_default().insert(range);
            }
            (from, to) => _ = lines.insert([party(from), party(to), ports]),
        }
    }
    for ((direction, group, ports), ranges) in ranges {
        for outside in names(simulation, direction, group, &ranges) {
            lines.insert(match direction {
                Direction::Ingress => [outside, group.to_owned(), ports.clone()],
                Direction::Egress => [group.to_owned(), outside, ports.clone()],
            });
        }
    }
    lines
}

/// As few words as say which ranges: what has a name is called by it, where all of it is there.
fn names(simulation: &Simulation<'_>, direction: Direction, group: &str, ranges: &BTreeSet<Range>) -> BTreeSet<String> {
    let meets = |range: &&Range| simulation.meets(group, range.is_ipv6());
    let all: Vec<&Range> = simulation.outside(direction).iter().filter(meets).collect();
    if all.iter().all(|range| ranges.contains(*range)) {
        return BTreeSet::from(["(outside)".to_owned()]);
    }
    let named = |range: &Range| {
        let name = name(simulation, range);
        let whole = |wanted: &str| {
            all.iter().filter(|other| name_is(simulation, other, wanted)).all(|other| ranges.contains(*other))
        };
        if !name.is_empty() && whole(&name) { format!("({name})") } else { range.to_string() }
    };
    ranges.iter().map(named).collect()
}

fn name_is(simulation: &Simulation<'_>, range: &Range, wanted: &str) -> bool {
    name(simulation, range) == wanted
}

fn name(simulation: &Simulation<'_>, range: &Range) -> String {
    peer_name(simulation.model(), explain::Party::Address(range.first()))
}

/// A connection for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionLine {
    /// Who begins: a workload, `shop/web[Deployment]`, or a range outside, `10.0.0.0-10.0.0.255[External]`.
    pub from: String,
    /// Who listens.
    pub to: String,
    /// On which ports.
    pub ports: PortSet,
}

/// Stretches by protocol, first and last; protocols without any are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortSet {
    /// TCP ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<[u16; 2]>,
    /// UDP ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<[u16; 2]>,
    /// SCTP ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sctp: Vec<[u16; 2]>,
    /// ICMP, type * 256 + code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp: Vec<[u16; 2]>,
    /// ICMP for IPv6, type * 256 + code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp6: Vec<[u16; 2]>,
    /// Numbers of other protocols.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other: Vec<[u16; 2]>,
}

impl From<&Connections> for PortSet {
    fn from(ports: &Connections) -> Self {
        let of = |class| ports.of(class).map(|(first, last)| [first, last]).collect();
        Self {
            tcp: of(Class::Tcp),
            udp: of(Class::Udp),
            sctp: of(Class::Sctp),
            icmp: of(Class::Icmp),
            icmp6: of(Class::Icmp6),
            other: of(Class::Other),
        }
    }
}

/// Connections for programs.
#[must_use]
pub fn json(connections: &[Connection<'_>]) -> Vec<ConnectionLine> {
    let of = |connection: &Connection<'_>| ConnectionLine {
        from: party(connection.from),
        to: party(connection.to),
        ports: (&connection.ports).into(),
    };
    connections.iter().map(of).collect()
}

/// A graph for Graphviz.
#[must_use]
pub fn dot(connections: &[Connection<'_>]) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = String::from("digraph connections {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    let outside = |party: &Party<'_>| matches!(party, Party::Outside(_));
    let mut parties: Vec<_> = connections.iter().flat_map(|connection| [connection.from, connection.to]).collect();
    parties.sort();
    parties.dedup();
    for other in parties {
        let shape = if outside(&other) { " [shape=ellipse]" } else { "" };
        text.push_str(&format!("  {}{shape};\n", quote(&party(other))));
    }
    for Connection { from, to, ports } in connections {
        let label = quote(&ports.to_string());
        text.push_str(&format!("  {} -> {} [label={label}];\n", quote(&party(*from)), quote(&party(*to))));
    }
    text.push_str("}\n");
    text
}
