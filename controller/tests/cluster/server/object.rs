//! Single objects of the API server in memory, and those of one namespace: read and written.

use std::collections::BTreeMap;

use axum::{
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{EVENTS, Shared, status};

/// What the path of an object, or of the objects of a namespace, stands for.
pub(super) struct One {
    pub(super) collection: String,
    namespace: String,
    /// Empty for all of the namespace.
    name: String,
    /// It is an event, in the group where events were first.
    is_old: bool,
}

impl One {
    pub(super) fn of(path: &str) -> Option<Self> {
        let parts: Vec<_> = path.strip_suffix("/status").unwrap_or(path).split('/').collect();
        // `/api/v1` and `/apis/group/version`, each with an empty part before it.
        let begin = if parts.get(1) == Some(&"api") { 3 } else { 4 };
        let (before, rest) = parts.split_at_checked(begin)?;
        let (namespace, plural, name) = match *rest {
            ["namespaces", namespace, plural] => (namespace, plural, ""),
            ["namespaces", namespace, plural, name] => (namespace, plural, name),
            [plural, name] => ("", plural, name),
            _ => return None,
        };
        let mut collection = format!("{}/{plural}", before.join("/"));
        let is_old = collection == "/api/v1/events";
        if is_old {
            collection = EVENTS.to_owned();
        }
        Some(Self { is_old, collection, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    pub(super) fn answer(
        &self,
        shared: &Shared,
        method: &Method,
        body: &[u8],
        query: &BTreeMap<String, String>,
    ) -> Response {
        let known =
            shared.content().objects[&self.collection].get(&(self.namespace.clone(), self.name.clone())).cloned();
        if *method == Method::GET {
            return match known {
                Some(object) => object.to_string().into_response(),
                None if self.name.is_empty() => self.list(shared, query),
                None => status(StatusCode::NOT_FOUND, "NotFound"),
            };
        }
        {
            let mut content = shared.content();
            let object = format!("{}/{}", self.collection, self.name);
            if content.forbidden.iter().any(|of| *of == self.collection || *of == object) {
                return status(StatusCode::FORBIDDEN, "Forbidden");
            }
            content.writes.push(format!("{method} {}", self.collection));
        }
        let mut sent: Value = serde_json::from_slice(body).unwrap();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let new = match (method, known) {
            (&Method::POST, _) => {
                sent["metadata"]["namespace"] = self.namespace.clone().into();
                sent
            }
            (&Method::PUT, Some(known)) if version(&known) != version(&sent) => {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            (&Method::PUT, Some(_)) => sent,
            (&Method::PATCH, Some(known)) => {
                if self.is_old {
                    sent["note"] = sent["message"].take();
                }
                let mut new = known.clone();
                merge(&mut new, sent);
                if !self.is_old && new["note"] != known["note"] {
                    return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
                }
                new
            }
            _ => return status(StatusCode::NOT_FOUND, "NotFound"),
        };
        shared.put(&self.collection, new).to_string().into_response()
    }

    fn list(&self, shared: &Shared, query: &BTreeMap<String, String>) -> Response {
        let label = query.get("labelSelector").and_then(|label| label.split_once('='));
        let name = query.get("fieldSelector").and_then(|field| field.strip_prefix("metadata.name="));
        let content = shared.content();
        let those = content.objects[&self.collection].iter().filter(|((namespace, of), object)| {
            *namespace == self.namespace
                && name.is_none_or(|name| name == of)
                && label.is_none_or(|(label, value)| object["metadata"]["labels"][label] == value)
        });
        let items: Vec<_> = those.map(|(_, object)| object.clone()).collect();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }).to_string().into_response()
    }
}

/// As RFC 7396 has it.
fn merge(known: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !known.is_object() {
                *known = json!({});
            }
            for (name, field) in fields {
                merge(&mut known[name], field);
            }
        }
        other => *known = other,
    }
}
