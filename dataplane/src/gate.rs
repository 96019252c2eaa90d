//! The gate of bridges, for whoever wants it: ports that no program guards neither send nor receive. It is nftables of family `bridge`, which needs no
//! agent once it stands: a container that a runtime starts past the plugin reaches nobody, whoever is away.
//!
//! It knows ports by a pattern of names, since not every kernel tells nft of which bridge a port is. Everything is in a table of its own, in the network
//! namespace of the calling thread.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::json;

use crate::{
    nft::{error, is_installed, nft, objects, without_state},
    node::NodeError,
};

/// Name of the table, family `bridge`.
pub const TABLE: &str = "bulkhead";
const COUNTER: &str = "unguarded";
const SET: &str = "guarded";
/// Who made it. Tables' comments are not in every listing, so the counter has it.
const COMMENT: &str = "made by Bulkhead: frames of bridge ports that no program guards";
const DOING: &str = "set the gate of bridges";

/// Reads a pattern of names: letters, digits, `-`, `_` and `.`, and `*` at the end.
///
/// # Errors
/// Why it is none.
pub fn pattern(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match name.len() {
        0 => Err("the names of ports, such as `veth*`: all links cannot be meant"),
        16.. => Err("names of links have at most 15 characters"),
        _ if name.chars().all(plain) => Ok(text.to_owned()),
        _ => Err("letters, digits, `-`, `_` and `.`, and `*` at the end for all names that begin so"),
    }
}

/// Shuts ports whose names match, but for the guarded ones. One transaction; the counter goes on.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses, or somebody else has a table of this name.
pub fn ensure(pattern: &str, guarded: &BTreeSet<String>) -> Result<(), NodeError> {
    if list()?.is_some_and(|table| !is_ours(&table)) {
        let why = format!(
            "there is a table `bridge {TABLE}` that Bulkhead did not make; rename it, or delete it with `nft delete table bridge {TABLE}`"
        );
        return Err(error(DOING, &why));
    }
    nft(&["-f", "-"], &script(pattern, guarded))?;
    if stands(pattern, guarded)? {
        Ok(())
    } else {
        let why = format!(
            "nft took it and lists something else; compare `nft list table bridge {TABLE}` with\n{}",
            script(pattern, guarded)
        );
        Err(error(DOING, &why))
    }
}

/// Whether exactly this gate stands.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn stands(pattern: &str, guarded: &BTreeSet<String>) -> Result<bool, NodeError> {
    let Some(table) = list()? else { return Ok(false) };
    let of = |name: &str| json!({ "family": "bridge", "table": TABLE, "name": name });
    let with = |name: &str, more: serde_json::Value| {
        let mut object = of(name);
        object
            .as_object_mut()
            .into_iter()
            .for_each(|object| object.extend(more.as_object().cloned().unwrap_or_default()));
        object
    };
    let mut set = with(SET, json!({ "type": "ifname" }));
    if !guarded.is_empty() {
        set["elem"] = json!(guarded);
    }
    let rule = |chain: &str, key: &str| {
        let key = json!({ "meta": { "key": key } });
        json!({ "rule": { "family": "bridge", "table": TABLE, "chain": chain, "comment": COMMENT, "expr": [
            { "match": { "op": "==", "left": key, "right": pattern } },
            { "match": { "op": "!=", "left": key, "right": format!("@{SET}") } },
            { "counter": COUNTER },
            { "drop": null },
        ] } })
    };
    let chain = |name: &str, hook: &str, priority: i32| json!({ "chain": with(name, json!({ "type": "filter", "hook": hook, "prio": priority, "policy": "accept" })) });
    let intended = [
        json!({ "table": { "family": "bridge", "name": TABLE } }),
        json!({ "counter": with(COUNTER, json!({ "comment": COMMENT })) }),
        json!({ "set": set }),
        chain("from", "prerouting", -300),
        chain("to", "postrouting", 300),
        rule("from", "iifname"),
        rule("to", "oifname"),
    ];
    let mut listed: Vec<_> = table.iter().map(without_state).collect();
    for object in &mut listed {
        // A set's elements come in an order of its own.
        if let Some(names) =
            object.get_mut("set").and_then(|set| set.get_mut("elem")).and_then(|names| names.as_array_mut())
        {
            names.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
        }
    }
    Ok(listed.len() == intended.len() && listed.iter().all(|object| intended.contains(object)))
}

/// Frames that it has dropped; 0 without a gate.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn counter() -> Result<u64, NodeError> {
    let table = list()?.filter(|table| is_ours(table)).unwrap_or_default();
    let counted = table.iter().find_map(|object| object["counter"]["packets"].as_u64());
    Ok(counted.unwrap_or_default())
}

/// Opens it for good. What is not there is no error, and a table that Bulkhead did not make stays.
///
/// # Errors
/// [`NodeError::Kernel`] when nft is missing or refuses.
pub fn remove() -> Result<(), NodeError> {
    if list()?.is_some_and(|table| is_ours(&table)) {
        nft(&["delete", "table", "bridge", TABLE], "")?;
    }
    Ok(())
}

fn script(pattern: &str, guarded: &BTreeSet<String>) -> String {
    let names: Vec<_> = guarded.iter().map(|name| format!("\"{name}\"")).collect();
    let elements = if names.is_empty() {
        String::new()
    } else {
        format!("add element bridge {TABLE} {SET} {{ {} }}\n", names.join(", "))
    };
    let mut script = format!(
        "add table bridge {TABLE} {{ comment \"{COMMENT}\"; }}
add counter bridge {TABLE} {COUNTER} {{ packets 0 bytes 0; comment \"{COMMENT}\"; }}
add set bridge {TABLE} {SET} {{ type ifname; }}
flush set bridge {TABLE} {SET}
{elements}"
    );
    for (chain, hook, priority, key) in [("from", "prerouting", -300, "iifname"), ("to", "postrouting", 300, "oifname")]
    {
        let body = write!(
            script,
            "add chain bridge {TABLE} {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}
flush chain bridge {TABLE} {chain}
add rule bridge {TABLE} {chain} {key} \"{pattern}\" {key} != @{SET} counter name {COUNTER} drop comment \"{COMMENT}\"
"
        );
        body.expect("a String takes everything");
    }
    script
}

fn is_ours(table: &[serde_json::Value]) -> bool {
    table.iter().any(|object| object["counter"]["comment"] == COMMENT || object["rule"]["comment"] == COMMENT)
}

/// `None` if there is no such table.
fn list() -> Result<Option<Vec<serde_json::Value>>, NodeError> {
    // A node that has neither overlays nor a gate needs no nft.
    if !is_installed() {
        return Ok(None);
    }
    let tables = objects(&["-j", "list", "tables", "bridge"])?;
    if !tables.iter().any(|object| object["table"]["name"] == TABLE) {
        return Ok(None);
    }
    objects(&["-j", "-n", "list", "table", "bridge", TABLE]).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_says_which_ports() {
        for good in ["veth*", "veth1a", "cali*", "lxc_a.b-c*"] {
            assert_eq!(pattern(good).unwrap(), good);
        }
        for bad in ["", "*", "ve*th", "veth\"", "a b", "veth; drop", "abcdefghijklmnop"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
