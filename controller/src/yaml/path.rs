//! Where something stands, as a path of fields: what objects of Kubernetes have instead of lines.

use std::fmt::Write as _;

use serde_saphyr::Spanned;

use super::tree::{self, Item, Value};
use crate::diagnostic::Place;

/// The innermost value or field of a file's first document that begins at a place or before it: `spec.services.web.calls[0]`. Empty for the document as
/// a whole, and where the file cannot be read.
pub(crate) fn path(place: &Place) -> String {
    let mut path = String::new();
    if let Some(document) = tree::documents(place.source()).unwrap_or_default().first() {
        descend(document, place, &mut path);
    }
    path
}

fn descend(item: &Item, place: &Place, path: &mut String) {
    let at = (u64::from(place.line), u64::from(place.column));
    let begins = |location: serde_saphyr::Location| (location.line(), location.column());
    match &item.value {
        Value::Mapping(entries) => {
            let before = entries.iter().rev().find(|(key, _)| begins(key.referenced) <= at);
            // A mapping may begin where its first key does.
            let is_key = |key: &Spanned<String>| key.referenced.span().byte_len() == Some(place.len().into());
            if let Some((key, value)) = before.filter(|(key, _)| begins(key.referenced) < at || is_key(key)) {
                let name = &key.value;
                // A String takes every text.
                let _ = match name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
                    true if path.is_empty() => write!(path, "{name}"),
                    true => write!(path, ".{name}"),
                    false => write!(path, "[{name:?}]"),
                };
                descend(value, place, path);
            }
        }
        Value::List(items) => {
            let before = items.iter().enumerate().rev().find(|(_, item)| begins(item.referenced) <= at);
            if let Some((index, item)) = before {
                let _ = write!(path, "[{index}]");
                descend(item, place, path);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnostic::source, policy};

    #[test]
    fn what_is_wrong_has_a_path() {
        let paths = |spec: &str| {
            let text = format!(
                "apiVersion: bulkhead.io/v1\nkind: Intent\nmetadata:\n  name: a\n  namespace: shop\nspec:\n{spec}"
            );
            let found = policy::parse(&source("intent/shop/a", text)).unwrap_err();
            found.0.iter().map(|error| path(error.place.as_ref().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(
            paths("  services:\n    web:\n      calls:\n      - db:1\n      - db\n"),
            ["spec.services.web.calls[1]"]
        );
        assert_eq!(paths("  services:\n    a.b:\n      isolate: x\n    c: {}\n"), ["spec.services[\"a.b\"].isolate"]);
        assert_eq!(paths("  {services: {web: {accepts: [world], call: []}}}\n"), ["spec.services.web.call"]);
        assert_eq!(paths("  {services: {web: {accepts: [world:1, world]}}}\n"), ["spec.services.web.accepts[1]"]);
        assert_eq!(paths("  mode: audit\n"), ["spec"]);
    }
}
