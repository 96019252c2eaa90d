//! Label selectors.

use std::collections::{BTreeMap, BTreeSet};

use super::read;
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    intent::valid_name,
    labels::{Requirement, Selector},
    yaml::{
        at,
        tree::{Node, Value},
    },
};

/// How keys of labels look.
const KEY: &str = "a key is up to 63 letters, digits, `-`, `_` and `.`, a letter or digit first and last, behind a prefix such as `example.com/` if it has one";
/// How values of labels look.
const VALUE: &str = "a value is empty, or up to 63 letters, digits, `-`, `_` and `.`, a letter or digit first and last";

/// Reads a selector; an empty one selects everybody.
pub(super) fn selector(node: Node<'_>, found: &mut Diagnostics) -> Selector {
    let Some(mut fields) = node.fields(found) else { return Selector::everybody() };
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        let labels = self::labels(labels, found);
        requirements.extend(labels.iter().map(|(label, value)| Requirement::is(label, value)));
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        let expressions = expressions.list(found);
        requirements.extend(expressions.into_iter().filter_map(|written| expression(written, found)));
    }
    fields.refuse_rest(found);
    requirements.into_iter().collect()
}

/// Reads labels with their values.
pub(super) fn labels(labels: Node<'_>, found: &mut Diagnostics) -> BTreeMap<String, String> {
    let Value::Mapping(entries) = labels.value() else {
        labels.fields(found);
        return BTreeMap::new();
    };
    let mut read = BTreeMap::new();
    for (label, value) in entries {
        check_key(&label.value, &at(labels.source, label), found);
        if let Some(value) = self::value(Node::new(labels.source, value), found) {
            read.insert(label.value.clone(), value);
        }
    }
    read
}

fn expression(written: Node<'_>, found: &mut Diagnostics) -> Option<Requirement> {
    let mut fields = written.fields(found)?;
    let label = fields.required("key", found);
    let operator = fields.required("operator", found);
    let values = fields.get("values");
    fields.refuse_rest(found);
    let (label, operator) = (label?, operator?);
    let name = label.text(found)?.to_owned();
    check_key(&name, &label.place(), found);
    let items = values.map(|values| values.list(found)).unwrap_or_default();
    let operation = operator.text(found)?;
    match operation {
        "In" | "NotIn" if items.is_empty() => {
            let message = format!("`operator: {operation}` has no `values`");
            found.push(values.unwrap_or(written).error(message, "write `values: [one, two]`"));
            None
        }
        "In" => Some(Requirement::In(name, all(&items, found))),
        "NotIn" => Some(Requirement::NotIn(name, all(&items, found))),
        "Exists" | "DoesNotExist" if !items.is_empty() => {
            let message = format!("`operator: {operation}` has `values`, of which it says nothing");
            let help = "remove `values`, or write `operator: In` or `operator: NotIn`";
            found.push(values.unwrap_or(written).error(message, help));
            None
        }
        "Exists" => Some(Requirement::Exists(name)),
        "DoesNotExist" => Some(Requirement::Missing(name)),
        _ => {
            let help = format!("write {}", read::any(&["In", "NotIn", "Exists", "DoesNotExist"]));
            found.push(operator.error(format!("`{operation}` is no operator of a selector"), help));
            None
        }
    }
}

fn all(items: &[Node<'_>], found: &mut Diagnostics) -> BTreeSet<String> {
    items.iter().filter_map(|&item| value(item, found)).collect()
}

/// Value of a label.
fn value(written: Node<'_>, found: &mut Diagnostics) -> Option<String> {
    let value = written.text(found)?;
    if !value.is_empty() && !valid_name(value) {
        found.push(written.error(format!("`{value}` cannot be the value of a label"), VALUE));
    }
    Some(value.to_owned())
}

/// Says so where no label can have this key.
pub(super) fn check_key(label: &str, place: &Place, found: &mut Diagnostics) {
    if !key(label) {
        found.push(Diagnostic::error(place, format!("`{label}` cannot be the key of a label")).help(KEY));
    }
}

/// Whether a label may have this key.
fn key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(read::subdomain) && valid_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnostic::source, yaml::tree::documents};

    /// A selector as text, or what is wrong with it.
    fn said(text: &str) -> String {
        let source = source("s.yaml", text);
        let documents = documents(&source).unwrap();
        let mut found = Diagnostics::default();
        let selector = selector(Node::new(&source, &documents[0]), &mut found);
        if found.0.is_empty() { selector.to_string() } else { found.to_string() }
    }

    #[test]
    fn selectors_say_what_they_require() {
        for (text, meant) in [
            ("{}", ""),
            ("{ matchLabels: {}, matchExpressions: [] }", ""),
            ("{ matchLabels: , matchExpressions: }", ""),
            ("matchLabels: { app: web, example.com/tier: '' }", "app=web,example.com/tier="),
            ("matchExpressions: [{ key: app, operator: In, values: [b, a, b] }]", "app in (a b)"),
            ("matchExpressions: [{ key: app, operator: NotIn, values: [a] }]", "app not in (a)"),
            (
                "matchExpressions: [{ key: app, operator: Exists }, { key: b, operator: DoesNotExist, values: [] }]",
                "app,!b",
            ),
            ("{ matchLabels: { a: x }, matchExpressions: [{ key: a, operator: In, values: [x] }] }", "a=x"),
        ] {
            assert_eq!(said(text), meant, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_selector() {
        let cases = [
            "[]",
            "app: web",
            "matchLabels: [app]",
            "matchLabels: { app: 1 }",
            "matchLabels: { app: }",
            "matchLabels: { 'a b': web, 'Example.com/x': 'a b' }",
            "matchLabels: { a/b/c: web }",
            "matchExpressions: { key: app }",
            "matchExpressions: [{}]",
            "matchExpressions: [{ key: app, operator: in, values: [a] }]",
            "matchExpressions: [{ key: app, operator: In }]",
            "matchExpressions: [{ key: app, operator: NotIn, values: [] }]",
            "matchExpressions: [{ key: app, operator: Exists, values: [a] }]",
            "matchExpressions: [{ key: app, operator: DoesNotExist, values: [a] }]",
            "matchExpressions: [{ key: '-app', operator: In, values: [a, 'b c', 7], value: b }]",
        ];
        insta::assert_snapshot!(read::testing::table(&cases, said));
    }
}
