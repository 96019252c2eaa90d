//! What holds of an admin policy that cannot be read in full: its denials, and of what it lets through whatever can be read. Pure.
//!
//! Kubernetes asks for that of peers that are not known: `fail closed` (the types of `policy.networking.k8s.io`). Its rules are judged in their order, so
//! that without a rule that lets through more is denied than was meant, and never less.

use serde_json::{Value as Json, json};

use super::{File, Object};
use crate::{
    diagnostic::{Severity, source},
    yaml::tree::{self, Node, Value},
};

/// Lists of rules, and the field of the peers of each.
const LISTS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// Fields that limit ports, by version.
const LIMITS: [&str; 2] = ["ports", "protocols"];

/// Such a policy without what cannot be read of it; `None` where it is not known whom it is about or when it is judged.
pub(super) fn partly(api_version: &str, kind: &str, node: Node<'_>) -> Option<Object> {
    let written = node.value().json();
    let mut policy = json!({ "apiVersion": api_version, "kind": kind, "metadata": written["metadata"] });
    policy["spec"] = written["spec"].clone();
    let spec = policy["spec"].as_object_mut()?;
    let lists = LISTS.map(|(list, field)| (list, field, spec.remove(list)));
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
        policy["spec"][list] = rules.iter().map(|rule| readable(rule, field, reads)).collect();
    }
    let name = policy["metadata"]["name"].as_str()?.to_owned();
    is_read(&policy).then(|| Object {
        name: format!("{} {name}", kind.to_lowercase()),
        line: node.item.referenced.line(),
        text: policy.to_string(),
    })
}

/// A rule, or what can be read of it, in its place: rules are called by where they stand.
fn readable(rule: &Json, field: &str, reads: impl Fn(&Json) -> bool) -> Json {
    let mut some = rule.clone();
    let limits = LIMITS.map(|limits| (limits, some.as_object_mut().and_then(|rule| rule.remove(limits))));
    let peers = (field, rule.get(field).cloned());
    // Peers first: which ports can be named depends on them.
    for (list, items) in [peers].into_iter().chain(limits) {
        let Some(items) = items else { continue };
        let with = |items: Vec<Json>| {
            let mut with = some.clone();
            with[list] = items.into();
            with
        };
        let items = items.as_array().into_iter().flatten();
        let items: Vec<_> = items.filter(|item| reads(&with(vec![(*item).clone()]))).cloned().collect();
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
