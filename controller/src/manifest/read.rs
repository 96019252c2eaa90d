//! What readers of policies have in common: versions, names, lists, and fields of which one is written.

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    yaml::tree::{Fields, Node},
};

/// Whether an object has the version of its kind that can be read; if not, that is told.
pub(super) fn version(
    found_version: &str,
    kind: &str,
    readable: &str,
    object: &mut Fields<'_>,
    found: &mut Diagnostics,
) -> bool {
    let here = object.get("apiVersion").unwrap_or_else(|| object.here());
    if found_version != readable {
        let message = format!("{kind} of `{found_version}` cannot be read");
        found.push(
            here.error(message, format!("write it as `apiVersion: {readable}`, the only version that can be read")),
        );
    }
    found_version == readable
}

/// What an object is called.
pub(super) struct Named {
    pub(super) name: String,
    /// Where its name stands.
    pub(super) place: Place,
    /// `default` where it has none.
    pub(super) namespace: String,
}

/// What `metadata` can have, once had among it.
const METADATA: [&str; 17] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "clusterName",
    "initializers",
];

/// Notes what no `metadata` has: a namespace or labels that are misspelt make another object of it.
pub(super) fn note_metadata(metadata: &mut Fields<'_>, found: &mut Diagnostics) {
    note_unknown(metadata, &METADATA, found);
}

/// Notes what is none of these fields.
pub(super) fn note_unknown(fields: &mut Fields<'_>, known: &[&'static str], found: &mut Diagnostics) {
    // A cluster has many objects, with nothing else in them.
    if !fields.are_among(known) {
        fields.ignore(known);
        fields.note_rest(&[], found);
    }
}

/// Reads `metadata`, of which values that are not needed may be anything.
pub(super) fn named(object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Named> {
    let mut metadata = object.required("metadata", found)?.fields(found)?;
    note_metadata(&mut metadata, found);
    let namespace = metadata.get("namespace").map(|namespace| name(namespace, "a namespace", label, found));
    let written = metadata.required("name", found)?;
    let name = name(written, "an object", shown, found)?;
    let namespace = namespace.unwrap_or_else(|| Some("default".to_owned()));
    Some(Named { name, place: written.place(), namespace: namespace? })
}

fn name(written: Node<'_>, of: &str, valid: impl Fn(&str) -> bool, found: &mut Diagnostics) -> Option<String> {
    let name = written.text(found)?;
    if !valid(name) {
        let help = "write small letters, digits and `-`, a letter or digit first and last";
        found.push(written.error(format!("`{name}` cannot be the name of {of}"), help));
        return None;
    }
    Some(name.to_owned())
}

/// Whether a text can be shown as the name of an object. Kubernetes knows neither capitals nor `_`, but other tools take them.
fn shown(text: &str) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    (1..=253).contains(&text.len())
        && text.starts_with(end)
        && text.ends_with(end)
        && text.chars().all(|c| end(c) || matches!(c, '-' | '_' | '.'))
}

/// Whether a text is what DNS calls a label.
fn label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && part(text)
}

/// Whether a text is labels with dots between them.
pub(super) fn subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(part)
}

fn part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(plain) && text.ends_with(plain) && text.chars().all(|c| plain(c) || c == '-')
}

/// Items of a list that may have no more than so many.
pub(super) fn at_most<'a>(list: Node<'a>, most: usize, what: &str, found: &mut Diagnostics) -> Vec<Node<'a>> {
    let items = list.list(found);
    if items.len() > most {
        let message = format!("`{what}` has {} items, more than {most}", items.len());
        found.push(list.error(message, "write the rest into another object"));
    }
    items
}

/// The one field of several that a mapping has, and nothing beside it.
pub(super) fn one_of<'a>(
    fields: &mut Fields<'a>,
    what: &str,
    names: &[&'static str],
    found: &mut Diagnostics,
) -> Option<(&'static str, Node<'a>)> {
    let written: Vec<_> = names.iter().filter_map(|&name| Some((name, fields.get(name)?))).collect();
    fields.refuse_rest(found);
    match written.as_slice() {
        [one] => Some(*one),
        // What stands there instead was told.
        [] if fields.rest().next().is_some() => None,
        several => {
            let message = format!("{what} has one of {}; this one has {}", any(names), several.len());
            let help = if several.is_empty() {
                "write one of them"
            } else {
                "keep one, and write another rule or object for what is left"
            };
            found.push(fields.here().error(message, help));
            None
        }
    }
}

/// Names to choose from.
pub(super) fn any(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [head @ .., last] if !head.is_empty() => format!("{} or {last}", head.join(", ")),
        few => few.concat(),
    }
}

/// A warning at a value.
pub(super) fn warning(at: Node<'_>, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic::warning(&at.place(), message).help(help)
}

/// Adds what is not there yet.
pub(super) fn add<T: PartialEq>(all: &mut Vec<T>, one: T) {
    if !all.contains(&one) {
        all.push(one);
    }
}

#[cfg(test)]
pub(super) mod testing;
