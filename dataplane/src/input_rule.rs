//! The nftables rule that needs no agent: what arrives for a VXLAN port without the bit of the check on the underlay is dropped before
//! the socket, on every link and for both families.
//!
//! It stands in a table of its own, in the network namespace of the calling thread (the one that holds the VXLAN
//! sockets). No other table is read or written. Everything goes through the `nft` program: scripts are written in its
//! language and listings read as JSON.

use std::{collections::BTreeSet, fmt::Write as _};

use bulkhead_ebpf::mark::Layout;
use serde_json::{Value, json};

use crate::{
    nft::{error, nft, objects, without_state},
    node::NodeError,
};

/// Name of the table, family `inet`.
pub const TABLE: &str = "bulkhead";
const CHAIN: &str = "input";
const COUNTER: &str = "unverified";
/// Who made it. The JSON of nft 1.0.6 leaves a table's comment out, but not those of the counter and of the rule, so
/// they have it too.
pub(crate) const COMMENT: &str = "made by Bulkhead: VXLAN packets that no guarded link verified";
/// Before the `filter` chains of firewalls, after conntrack, NAT and whatever sets marks.
const PRIORITY: i32 = -10;

/// Makes the rule stand, for exactly these UDP ports, with the bit where the layout has it. Does nothing when it does; repairs what differs in one
/// transaction, during which the rule is never gone. The counter goes on.
///
/// # Errors
/// [`NodeError::Kernel`] when there is no port (see [`remove`]), nft is missing or refuses, or somebody else has a
/// table of this name.
pub fn ensure(ports: &BTreeSet<u16>, mark: &Layout) -> Result<(), NodeError> {
    let doing = "set the nftables input rule";
    if ports.is_empty() {
        return Err(error(doing, "no UDP port is given; a node without overlays needs no rule"));
    }
    let found = list()?;
    if found.as_ref().is_some_and(|table| table.stands(ports, mark)) {
        return Ok(());
    }
    if found.as_ref().is_some_and(|table| !table.is_ours()) {
        return Err(error(
            doing,
            &format!(
                "there is a table `inet {TABLE}` that Bulkhead did not make; rename it, or delete it with `nft delete table inet {TABLE}`"
            ),
        ));
    }
    // In place the counter loses nothing. What is beyond that, such as a chain at another hook, is replaced whole.
    let in_place = nft(&["-f", "-"], &script(ports, mark, None));
    if in_place.is_ok() && present(ports, mark)? {
        return Ok(());
    }
    match list()? {
        Some(table) => nft(&["-f", "-"], &script(ports, mark, Some(table.counted())))?,
        None => in_place?,
    };
    if present(ports, mark)? {
        return Ok(());
    }
    let intended = script(ports, mark, None);
    Err(error(
        doing,
        &format!("nft took it and lists something else; compare `nft list table inet {TABLE}` with\n{intended}"),
    ))
}

/// Whether the rule stands for exactly these ports and this bit.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn present(ports: &BTreeSet<u16>, mark: &Layout) -> Result<bool, NodeError> {
    Ok(list()?.is_some_and(|table| table.stands(ports, mark)))
}

/// Makes a rule that stands ask for the bit where the layout has it, in one transaction. Where there is none, none is made.
///
/// # Errors
/// As [`ensure`].
pub fn follow(ports: &BTreeSet<u16>, mark: &Layout) -> Result<(), NodeError> {
    if ports.is_empty() || !list()?.is_some_and(|table| table.is_ours()) { Ok(()) } else { ensure(ports, mark) }
}

/// Packets that it has dropped; 0 without a rule.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn counter() -> Result<u64, NodeError> {
    Ok(list()?.filter(Table::is_ours).map_or(0, |table| table.counted().packets))
}

/// Removes table, rule and counter. What is not there is no error, and a table that Bulkhead did not make stays.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn remove() -> Result<(), NodeError> {
    if list()?.is_some_and(|table| table.is_ours()) {
        nft(&["delete", "table", "inet", TABLE], "")?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
}

/// One transaction. With `replace` the table is made anew and the counter starts from there.
fn script(ports: &BTreeSet<u16>, mark: &Layout, replace: Option<Counted>) -> String {
    let mut script = format!("add table inet {TABLE} {{ comment \"{COMMENT}\"; }}\n");
    if replace.is_some() {
        let again = script.clone();
        script += &format!("delete table inet {TABLE}\n{again}");
    }
    let Counted { packets, bytes } = replace.unwrap_or_default();
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let verified = mark.verified();
    // Adding a counter that exists changes nothing, its value included.
    let body = write!(
        script,
        "add counter inet {TABLE} {COUNTER} {{ packets {packets} bytes {bytes}; comment \"{COMMENT}\"; }}
add chain inet {TABLE} {CHAIN} {{ type filter hook input priority {PRIORITY}; policy accept; }}
flush chain inet {TABLE} {CHAIN}
add rule inet {TABLE} {CHAIN} udp dport {{ {ports} }} meta mark & {verified:#010x} == 0 counter name {COUNTER} drop comment \"{COMMENT}\"
"
    );
    body.expect("a String takes everything");
    script
}

/// Our table as nft lists it: one JSON object for each thing in it.
struct Table(Vec<Value>);

impl Table {
    fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter_map(move |object| object.get(kind))
    }

    fn counter(&self) -> Option<&Value> {
        self.all("counter").find(|counter| counter["name"] == COUNTER)
    }

    /// Either mark is enough: drift may have taken the other.
    fn is_ours(&self) -> bool {
        self.all("counter").chain(self.all("rule")).any(|object| object["comment"] == COMMENT)
    }

    fn counted(&self) -> Counted {
        let value = |field: &str| self.counter().and_then(|counter| counter[field].as_u64()).unwrap_or_default();
        Counted { packets: value("packets"), bytes: value("bytes") }
    }

    /// Exactly the table that [`script`] makes, and not `dormant`.
    fn stands(&self, ports: &BTreeSet<u16>, mark: &Layout) -> bool {
        let ports = match ports.iter().collect::<Vec<_>>().as_slice() {
            // nft makes a plain comparison of a set of one.
            [port] => json!(port),
            ports => json!({ "set": ports }),
        };
        let intended = [
            json!({ "table": { "family": "inet", "name": TABLE } }),
            json!({ "counter": { "family": "inet", "table": TABLE, "name": COUNTER, "comment": COMMENT } }),
            json!({ "chain": { "family": "inet", "table": TABLE, "name": CHAIN, "type": "filter", "hook": "input", "prio": PRIORITY, "policy": "accept" } }),
            json!({ "rule": { "family": "inet", "table": TABLE, "chain": CHAIN, "comment": COMMENT, "expr": [
                { "match": { "op": "==", "left": { "payload": { "protocol": "udp", "field": "dport" } }, "right": ports } },
                { "match": { "op": "==", "left": { "&": [{ "meta": { "key": "mark" } }, mark.verified()] }, "right": 0 } },
                { "counter": COUNTER },
                { "drop": null },
            ] } }),
        ];
        // In which order nft lists them depends on its age.
        self.0.len() == intended.len() && self.0.iter().all(|object| intended.contains(&without_state(object)))
    }
}

/// `None` if there is no such table.
fn list() -> Result<Option<Table>, NodeError> {
    let tables = objects(&["-j", "list", "tables", "inet"])?;
    if !tables.iter().any(|object| object["table"]["name"] == TABLE) {
        return Ok(None);
    }
    Ok(Some(Table(objects(&["-j", "-n", "list", "table", "inet", TABLE])?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_ports_is_refused_before_anything_runs() {
        let refused = ensure(&BTreeSet::new(), &Layout::DEFAULT).unwrap_err().to_string();
        assert!(refused.contains("no UDP port"), "{refused}");
    }
}
