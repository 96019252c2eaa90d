//! What rules of nftables do with packet marks, from `nft -j list ruleset`.

use serde_json::Value;

use crate::{input_rule, node::MarkUser};

/// What a ruleset says.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Rules that use the mark, with the table that each stands in: family and name.
    pub(super) users: Vec<((String, String), MarkUser)>,
    /// Families with rules of iptables that nft does not show.
    pub(super) hidden: Vec<String>,
}

/// Reads the objects of a listing.
pub(super) fn read(objects: &[Value]) -> Found {
    let mut found = Found::default();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let text = |field: &str| rule[field].as_str().unwrap_or_default().to_owned();
        let (family, table, chain) = (text("family"), text("table"), text("chain"));
        if table == input_rule::TABLE && rule["comment"] == input_rule::COMMENT {
            continue;
        }
        let (mut reads, mut writes) = (0, 0);
        for statement in rule["expr"].as_array().into_iter().flatten() {
            if statement.get("xt").is_some_and(may_mark) && !found.hidden.contains(&family) {
                found.hidden.push(family.clone());
            }
            match statement.get("mangle") {
                Some(mangle) if is_mark(&mangle["key"]) => {
                    let value = &mangle["value"];
                    writes |= !bits(value).kept;
                    reads |= read_for(value);
                }
                _ => reads |= read_by(statement, u32::MAX),
            }
        }
        if reads | writes != 0 {
            let comment = rule["comment"].as_str().map(|comment| format!(" \"{comment}\"")).unwrap_or_default();
            let handle = rule["handle"].as_u64().unwrap_or_default();
            let rule = format!(
                "nftables {family} {table} {chain}, handle {handle}{comment} (`nft -a list chain {family} {table} {chain}`)"
            );
            found.users.push(((family, table), MarkUser { rule, reads, writes }));
        }
    }
    found
}

/// Whether a match or target of iptables may have to do with marks. Old versions of nft do not say what it is.
fn may_mark(xt: &Value) -> bool {
    match xt["name"].as_str() {
        Some(name) => ["mark", "MARK", "CONNMARK", "TPROXY", "HMARK", "SET", "socket"].contains(&name),
        None => true,
    }
}

fn is_mark(value: &Value) -> bool {
    value["meta"]["key"] == "mark"
}

/// What is known of each bit of a value.
#[derive(Clone, Copy, Debug, Default)]
struct Bits {
    /// As the mark has it.
    kept: u32,
    zero: u32,
    one: u32,
}

/// Name and operands of an operation on bits.
fn operation(value: &Value) -> Option<(&str, &Vec<Value>)> {
    ["&", "|", "^"].into_iter().find_map(|name| Some((name, value.get(name)?.as_array()?)))
}

/// Bits that decide what is put into the mark, as where that is looked up in a map. Bits that only pass through are not read.
fn read_for(value: &Value) -> u32 {
    match operation(value) {
        _ if is_mark(value) => 0,
        Some((_, operands)) => operands.iter().fold(0, |all, operand| all | read_for(operand)),
        None => read_by(value, u32::MAX),
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn bits(value: &Value) -> Bits {
    if is_mark(value) {
        return Bits { kept: u32::MAX, ..Bits::default() };
    }
    if let Some(number) = number(value) {
        return Bits { kept: 0, zero: !number, one: number };
    }
    let Some((name, operands)) = operation(value) else { return Bits::default() };
    let combine = |a: Bits, b: Bits| match name {
        "&" => Bits { kept: a.kept & (b.kept | b.one) | a.one & b.kept, zero: a.zero | b.zero, one: a.one & b.one },
        "|" => Bits { kept: a.kept & (b.kept | b.zero) | a.zero & b.kept, zero: a.zero & b.zero, one: a.one | b.one },
        _ => Bits {
            kept: a.kept & b.zero | a.zero & b.kept,
            zero: a.zero & b.zero | a.one & b.one,
            one: a.zero & b.one | a.one & b.zero,
        },
    };
    operands.iter().map(bits).reduce(combine).unwrap_or_default()
}

/// Bits of the mark that decide about an expression, of those that matter to what it stands in.
fn read_by(value: &Value, matter: u32) -> u32 {
    if is_mark(value) {
        return matter;
    }
    // Asks the routes, with the mark as it is: what that means stands in the rules of policy routing.
    if value.get("fib").is_some() {
        return 0;
    }
    if let Some((name, operands)) = operation(value) {
        let constant = operands.iter().filter_map(number).fold(None, |all: Option<u32>, number| {
            Some(match (name, all) {
                (_, None) => number,
                ("&", Some(all)) => all & number,
                (_, Some(all)) => all | number,
            })
        });
        let matter = match (name, constant) {
            ("&", Some(constant)) => matter & constant,
            ("|", Some(constant)) => matter & !constant,
            _ => matter,
        };
        return operands.iter().fold(0, |all, operand| all | read_by(operand, matter));
    }
    // Below another operation any bit may count.
    let below = |all, value| all | read_by(value, u32::MAX);
    match value {
        Value::Array(values) => values.iter().fold(0, below),
        Value::Object(fields) => fields.values().fold(0, below),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mark() -> Value {
        json!({ "meta": { "key": "mark" } })
    }

    fn rule(expr: &[Value]) -> Found {
        read(&[
            json!({ "table": { "family": "inet", "name": "t", "handle": 1 } }),
            json!({ "rule": { "family": "inet", "table": "t", "chain": "c", "handle": 7, "expr": expr } }),
        ])
    }

    #[track_caller]
    fn uses(expr: &Value, reads: u32, writes: u32) {
        let found = rule(&[
            json!({ "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": 1 } }),
            expr.clone(),
        ]);
        let users: Vec<(u32, u32)> = found.users.iter().map(|(_, user)| (user.reads, user.writes)).collect();
        let expected = if reads | writes == 0 { vec![] } else { vec![(reads, writes)] };
        assert_eq!(users, expected, "{expr}: {users:x?}");
    }

    #[test]
    fn what_is_compared_is_read() {
        let compare = |left: Value| json!({ "match": { "op": "==", "left": left, "right": 16 } });
        uses(&compare(mark()), u32::MAX, 0);
        uses(&compare(json!({ "&": [mark(), 0xf0] })), 0xf0, 0);
        uses(&compare(json!({ "&": [0xf0, mark()] })), 0xf0, 0);
        uses(&compare(json!({ "|": [mark(), 0xf0] })), !0xf0, 0);
        uses(&compare(json!({ "&": [{ "^": [mark(), 0x0f] }, 0xf00] })), 0xf00, 0);
        uses(&compare(json!({ "ct": { "key": "mark" } })), 0, 0);
        uses(&compare(json!({ "meta": { "key": "iifname" } })), 0, 0);
        uses(
            &compare(json!({ "concat": [{ "payload": { "protocol": "ip", "field": "saddr" } }, mark()] })),
            u32::MAX,
            0,
        );
        uses(&json!({ "vmap": { "key": { "&": [mark(), 3] }, "data": { "set": [[1, { "drop": null }]] } } }), 3, 0);
        // What goes elsewhere comes back some day.
        uses(&json!({ "mangle": { "key": { "ct": { "key": "mark" } }, "value": mark() } }), u32::MAX, 0);
        uses(&json!({ "mangle": { "key": { "ct": { "key": "mark" } }, "value": { "&": [mark(), 0xff] } } }), 0xff, 0);
        uses(&compare(json!({ "fib": { "result": "oif", "flags": ["saddr", "mark"] } })), 0, 0);
    }

    #[test]
    fn what_is_set_is_written() {
        let set = |value: Value| json!({ "mangle": { "key": mark(), "value": value } });
        uses(&set(json!(1)), 0, u32::MAX);
        uses(&set(json!({ "|": [mark(), 0x4000] })), 0, 0x4000);
        uses(&set(json!({ "^": [mark(), 0x4000] })), 0, 0x4000);
        uses(&set(json!({ "&": [mark(), 0xffff_0000_u32] })), 0, 0xffff);
        // iptables' set-xmark 0x1000000/0x3000000.
        uses(&set(json!({ "^": [{ "&": [mark(), 0xfcff_ffff_u32] }, 0x0100_0000] })), 0, 0x0300_0000);
        uses(
            &set(json!({ "|": [{ "&": [mark(), 0xffff_ff00_u32] }, { "&": [{ "ct": { "key": "mark" } }, 0xff] }] })),
            0,
            0xff,
        );
        uses(&set(json!({ "ct": { "key": "mark" } })), 0, u32::MAX);
        uses(&set(json!({ "map": { "key": mark(), "data": { "set": [[1, 2]] } } })), u32::MAX, u32::MAX);
        uses(&set(mark()), 0, 0);
        uses(&json!({ "mangle": { "key": { "ct": { "key": "mark" } }, "value": 5 } }), 0, 0);
    }

    #[test]
    fn rules_are_named_and_ours_is_none() {
        let expr =
            json!([{ "match": { "op": "==", "left": { "&": [mark(), 0x0100_0000] }, "right": 0 } }, { "drop": null }]);
        let of = |table: &str, comment: &str| json!({ "rule": { "family": "inet", "table": table, "chain": "input", "handle": 3, "comment": comment, "expr": expr } });
        let found =
            read(&[of("bulkhead", input_rule::COMMENT), of("bulkhead", "somebody's"), of("vpn", input_rule::COMMENT)]);
        let names: Vec<_> = found.users.iter().map(|(_, user)| user.rule.as_str()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names[0].starts_with("nftables inet bulkhead input, handle 3 \"somebody's\""), "{names:?}");
        assert!(names[1].starts_with("nftables inet vpn input"), "{names:?}");
        assert!(found.hidden.is_empty());
    }

    #[test]
    fn what_nft_does_not_show_is_said() {
        for (xt, hidden) in [
            (json!({ "type": "target", "name": "MARK" }), true),
            (json!({ "type": "match", "name": "mark" }), true),
            (Value::Null, true),
            (json!({ "type": "target", "name": "MASQUERADE" }), false),
        ] {
            let found = rule(&[json!({ "xt": xt })]);
            assert_eq!(found.hidden, if hidden { vec!["inet".to_owned()] } else { vec![] }, "{xt}");
        }
    }
}
