//! What holds of an admin policy that cannot be read in full. Pure.
//!
//! Kubernetes asks to fail closed on what is not known (the types of `policy.networking.k8s.io`): a rule that lets through is about nobody then, here about
//! those of its peers that can be read, and one that denies or passes on denies all. Of a denial whose peers can be read that is less: it is of all ports
//! where some cannot be. An action that is not known may be a denial too.

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
        let part = |rule: &Json| match rule["action"].as_str() {
            _ if reads(rule) => rule.clone(),
            Some("Accept" | "Allow") => readable(rule, field, reads),
            action => {
                let wide = without_limits(rule);
                if action == Some("Deny") && reads(&wide) { wide } else { everybody(field) }
            }
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

/// A rule about all ports.
fn without_limits(rule: &Json) -> Json {
    let mut wide = rule.clone();
    if let Some(fields) = wide.as_object_mut() {
        fields.retain(|field, _| !LIMITS.contains(&field.as_str()));
    }
    wide
}

/// What can be read of a rule that lets through, in its place: rules are called by where they stand.
fn readable(rule: &Json, field: &str, reads: impl Fn(&Json) -> bool) -> Json {
    let mut some = without_limits(rule);
    // Peers first: which ports can be named depends on them.
    for list in [field].into_iter().chain(LIMITS) {
        // What is null is not there.
        let Some(items) = rule.get(list).filter(|items| !items.is_null()) else { continue };
        let with = |items: Vec<Json>| {
            let mut with = some.clone();
            with[list] = items.into();
            with
        };
        let all = items.as_array().map(Vec::as_slice).unwrap_or_default();
        let items: Vec<_> = all.iter().filter(|item| reads(&with(vec![(*item).clone()]))).cloned().collect();
        if items.is_empty() {
            return nobody(field);
        }
        some = with(items);
    }
    if reads(&some) { some } else { nobody(field) }
}

/// A rule that denies all: every peer that a policy can name.
fn everybody(field: &str) -> Json {
    let mut peers = vec![json!({ "namespaces": {} })];
    if field == admin::side(Direction::Egress).1 {
        peers.extend([json!({ "nodes": {} }), json!({ "networks": ["0.0.0.0/0", "::/0"] })]);
    }
    json!({ "action": "Deny", field: peers })
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
