//! `Intent` and `Guard` of `bulkhead.io`: what people write for Bulkhead, as objects of Kubernetes. The `spec` says what the document of a file says,
//! with lists where that takes one text as well; the namespace of an Intent and the name of a Guard stand in `metadata`.

use serde_saphyr::Spanned;

use super::{group, read, selectors};
use crate::{
    diagnostic::Diagnostics,
    guard::{self, MatchFields, RuleFields, SubjectFields},
    intent::{self, ExternalFields, ServiceFields},
    policy::{Policy, Reader},
    yaml::{
        Entries, OneOrMany,
        tree::{Fields, Node, Value},
    },
};

/// The API group.
const GROUP: &str = "bulkhead.io";
/// The version that can be read.
pub(crate) const VERSION: &str = "bulkhead.io/v1";
const INTENT: &str = "Intent";
const GUARD: &str = "Guard";

/// Fields of a `spec`, for those who write them beside it.
const OF_INTENT: [&str; 4] = ["mode", "dns", "external", "services"];
const OF_GUARD: [&str; 6] = ["priority", "mode", "for", "compare", "external", "rules"];

/// Whether an API group is ours.
pub(super) fn is_ours(group: &str) -> bool {
    group == GROUP
}

/// Whether it is a kind of ours, in whatever version.
pub(super) fn is_kind(api_version: &str, kind: &str) -> bool {
    is_ours(group(api_version)) && [INTENT, GUARD].contains(&kind)
}

pub(super) fn read(api_version: &str, kind: &str, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Policy> {
    if !read::version(api_version, kind, VERSION, object, found) {
        return None;
    }
    object.ignore(&["kind", "status"]);
    // It says what is wrong with names; how they are used decides which of them may be.
    read::named(object, found)?;
    let mut metadata = object.get("metadata")?.fields(found)?;
    let spec = object.required("spec", found);
    object.refuse_beside(if kind == INTENT { &OF_INTENT } else { &OF_GUARD }, found);
    let mut spec = spec?.fields(found)?;
    // What a field means is said when all of them can be read.
    let mut unreadable = Diagnostics::default();
    let policy = if kind == INTENT {
        let namespace = metadata.get("namespace").and_then(|namespace| text(namespace, found));
        let namespace = namespace.unwrap_or_else(|| with(metadata.here(), "default".to_owned()));
        let fields = intent(namespace, &mut spec, &mut unreadable);
        let fields = found.take(unreadable.or(fields))??;
        Policy::Intent(Reader { source: object.here().source, found }.intent(fields))
    } else {
        let name = text(metadata.get("name")?, found)?;
        let fields = guard(name, &mut spec, &mut unreadable);
        let fields = found.take(unreadable.or(fields))??;
        Policy::Guard(Reader { source: object.here().source, found }.guard(fields))
    };
    Some(policy)
}

fn intent(namespace: Spanned<String>, spec: &mut Fields<'_>, found: &mut Diagnostics) -> Option<intent::Fields> {
    let mode = text_of(spec, "mode", found);
    let dns = text_of(spec, "dns", found);
    let external = externals(spec, found);
    let services = spec.required("services", found);
    spec.refuse_rest(found);
    let services = services?.fields(found)?;
    let services = services.entries().map(|(name, fields)| (name.clone(), service(fields, found))).collect();
    Some(intent::Fields { namespace, mode, dns, external, services: Entries(services) })
}

fn externals(spec: &mut Fields<'_>, found: &mut Diagnostics) -> Entries<ExternalFields> {
    let fields = spec.get("external").and_then(|external| external.fields(found));
    let mut externals = Vec::new();
    for (name, external) in fields.iter().flat_map(Fields::entries) {
        let Some(mut fields) = external.fields(found) else { continue };
        let cidrs = fields.required("cidrs", found).map(|cidrs| texts(cidrs, found)).unwrap_or_default();
        let except = fields.get("except").map(|except| texts(except, found)).unwrap_or_default();
        fields.refuse_rest(found);
        externals.push((name.clone(), ExternalFields { cidrs, except }));
    }
    Entries(externals)
}

fn service(node: Node<'_>, found: &mut Diagnostics) -> Option<ServiceFields> {
    if *node.value() == Value::Null {
        return None;
    }
    let mut fields = node.fields(found)?;
    let select = fields.get("select").map(|select| with(select, selectors::labels(select, found)));
    let accepts = fields.get("accepts").map(|accepts| texts(accepts, found)).unwrap_or_default();
    let calls = fields.get("calls").map(|calls| texts(calls, found)).unwrap_or_default();
    let isolate = text_of(&mut fields, "isolate", found);
    fields.refuse_rest(found);
    Some(ServiceFields { select, accepts, calls, isolate })
}

fn guard(name: Spanned<String>, spec: &mut Fields<'_>, found: &mut Diagnostics) -> Option<guard::Fields> {
    let priority = spec.required("priority", found);
    let priority = priority.and_then(|node| Some(with(node, node.integer(found)?.to_string())));
    let mode = text_of(spec, "mode", found);
    let subjects = spec.get("for").and_then(|node| Some(with(node, subjects(node, found)?)));
    let compare = spec.get("compare").and_then(|label| {
        selectors::check_key(label.text(found)?, &label.place(), found);
        text(label, found)
    });
    let external = externals(spec, found);
    let rules = spec.required("rules", found);
    spec.refuse_rest(found);
    let rules = rules?;
    let items = rules.list(found);
    let items = items.into_iter().filter_map(|item| Some(with(item, rule(item, found)?))).collect();
    Some(guard::Fields { name, priority: priority?, mode, subjects, compare, external, rules: with(rules, items) })
}

fn subjects(node: Node<'_>, found: &mut Diagnostics) -> Option<SubjectFields> {
    let mut fields = node.fields(found)?;
    let mut labels = |name| fields.get(name).map(|labels| with(labels, selectors::labels(labels, found)));
    let (namespaces, workloads) = (labels("namespaces"), labels("workloads"));
    let services = fields.get("services").map(|services| with(services, texts(services, found)));
    fields.refuse_rest(found);
    Some(SubjectFields { namespaces, services, workloads })
}

fn rule(node: Node<'_>, found: &mut Diagnostics) -> Option<RuleFields> {
    let mut fields = node.fields(found)?;
    let mut side = |name| {
        let node = fields.get(name)?;
        Some(with(node, matches(node, found)?))
    };
    let (allow, deny, pass) = (side("allow"), side("deny"), side("pass"));
    fields.refuse_rest(found);
    Some(RuleFields { allow, deny, pass })
}

fn matches(node: Node<'_>, found: &mut Diagnostics) -> Option<MatchFields> {
    let mut fields = node.fields(found)?;
    let mut peers = |name| fields.get(name).map(|peers| OneOrMany(texts(peers, found)));
    let (from, to) = (peers("from"), peers("to"));
    let ports = fields.get("ports").map(|node| with(node, ports(node, found)));
    let mode = text_of(&mut fields, "mode", found);
    let expires = text_of(&mut fields, "expires", found);
    fields.refuse_rest(found);
    Some(MatchFields { from, to, ports, mode, expires })
}

/// Ports, of which one is a number or a text.
fn ports(node: Node<'_>, found: &mut Diagnostics) -> Vec<Spanned<String>> {
    let items = node.list(found);
    let port = |item: Node<'_>| match item.value() {
        Value::Integer(number) => Some(with(item, number.to_string())),
        _ => text(item, found),
    };
    items.into_iter().filter_map(port).collect()
}

fn texts(node: Node<'_>, found: &mut Diagnostics) -> Vec<Spanned<String>> {
    node.list(found).into_iter().filter_map(|item| text(item, found)).collect()
}

fn text_of(fields: &mut Fields<'_>, name: &'static str, found: &mut Diagnostics) -> Option<Spanned<String>> {
    fields.get(name).and_then(|node| text(node, found))
}

fn text(node: Node<'_>, found: &mut Diagnostics) -> Option<Spanned<String>> {
    Some(with(node, node.text(found)?.to_owned()))
}

/// A value where another one stands.
fn with<T>(node: Node<'_>, value: T) -> Spanned<T> {
    Spanned { value, referenced: node.item.referenced, defined: node.item.defined }
}
