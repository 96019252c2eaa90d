//! What holds of an admin policy that cannot be read in full. Pure.
//!
//! Kubernetes asks to fail closed on peers that are not known (the types of `policy.networking.k8s.io`). Rules are judged in their order: without a rule that
//! lets through more is denied than was meant, and without one that denies or passes on those behind it would let through what it keeps from them. Those
//! are left out too, so that the policy itself lets nothing through that it would not as a whole. What it denies to peers that cannot be read others may let
//! through; ports that cannot be read of a denial are all ports.

use bulkhead_ebpf::abi::Direction;
use serde_json::{Value as Json, json};

use super::{File, Object, admin, title};
use crate::{
    diagnostic::{Severity, source},
    yaml::tree::{self, Node, Value},
};

/// Fields that limit ports, by version.
const LIMITS: [&str; 2] = ["ports", "protocols"];

/// Such a policy without what cannot be read of it; `None` where it is not known whom it is about or when it is judged.
pub(super) fn partly(api_version: &str, kind: &str, node: Node<'_>) -> Option<Object> {
    let written = node.value().json();
    let mut policy = json!({ "apiVersion": api_version, "kind": kind, "metadata": written["metadata"] });
    policy["spec"] = written["spec"].clone();
    let spec = policy["spec"].as_object_mut()?;
    let lists = [Direction::Ingress, Direction::Egress].map(admin::side);
    let lists = lists.map(|(list, field)| (list, field, spec.remove(list)));
    if !is_read(&policy) {
        return None;
    }
    let bare = policy.clone();
    for (list, field, rules) in lists {
        let Some(Json::Array(rules)) = rules else { continue };
        let reads = |rule: &Json| {
            let mut alone = bare.clone();
            alone["spec"][list] = json!([rule]);
            is_read(&alone)
        };
        // Whether all that denies or passes on so far is there in full.
        let mut whole = true;
        let part = |rule: &Json| {
            let may_let_through = rule["action"] != "Deny";
            if reads(rule) && (whole || !may_let_through) {
                return rule.clone();
            }
            whole &= ["Accept", "Allow"].iter().any(|action| rule["action"] == *action);
            if whole || !may_let_through { readable(rule, field, reads) } else { nobody(field) }
        };
        policy["spec"][list] = rules.iter().map(part).collect();
    }
    let name = policy["metadata"]["name"].as_str()?.to_owned();
    is_read(&policy).then(|| Object {
        name: title(kind, &name),
        line: node.item.referenced.line(),
        text: policy.to_string(),
    })
}

/// What can be read of a rule, in its place: rules are called by where they stand.
fn readable(rule: &Json, field: &str, reads: impl Fn(&Json) -> bool) -> Json {
    let mut some = rule.clone();
    let limits = LIMITS.map(|limits| (limits, some.as_object_mut().and_then(|rule| rule.remove(limits))));
    // What is null is not there.
    let limits = limits.map(|(list, items)| (list, items.filter(|items| !items.is_null())));
    let denies = rule["action"] == "Deny";
    let peers = (field, rule.get(field).cloned());
    // Peers first: which ports can be named depends on them.
    for (list, items) in [peers].into_iter().chain(limits) {
        let Some(items) = items else { continue };
        let with = |items: Vec<Json>| {
            let mut with = some.clone();
            with[list] = items.into();
            with
        };
        let all = items.as_array().map(Vec::as_slice).unwrap_or_default();
        let items: Vec<_> = all.iter().filter(|item| reads(&with(vec![(*item).clone()]))).cloned().collect();
        if list != field && denies && (items.is_empty() || items.len() < all.len()) {
            continue;
        }
        if items.is_empty() {
            return nobody(field);
        }
        some = with(items);
    }
    if reads(&some) { some } else { nobody(field) }
}

/// A rule that is about nobody.
fn nobody(field: &str) -> Json {
    let nobody =
        ["Exists", "DoesNotExist"].map(|operator| json!({ "key": "bulkhead.io/nobody", "operator": operator }));
    json!({ "action": "Deny", field: [{ "namespaces": { "matchExpressions": nobody } }] })
}

/// Whether it is a policy that can be used.
fn is_read(policy: &Json) -> bool {
    let item = tree::nowhere(Value::of_json(policy.clone()));
    let mut file = File::default();
    file.object(Node::new(&source("", ""), &item), None);
    !file.policies.is_empty() && file.found.0.iter().all(|found| found.severity == Severity::Warning)
}
