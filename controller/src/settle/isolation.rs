//! What of a policy file that never was good holds all the same. The services, or the pods of NetworkPolicies, that can be read of it are isolated:
//! nobody may call them, and they may call nobody, until the file is good. Of admin policies what can be read holds, and denials that cannot deny all.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, de::DeserializeOwned};
use serde_saphyr::Spanned;

use crate::{
    diagnostic::source,
    intent::{Entity, valid_name},
    manifest::{self, Object},
    model::ServiceName,
    yaml::{self, Entries, tree},
};

/// How many lines are read again in all while a text is made shorter until it can be read.
const LINES: usize = 2_000_000;

/// A document of any kind, as far as it matters here. Other fields may be as they like.
#[derive(Deserialize)]
struct Document {
    kind: Option<String>,
    mode: Option<String>,
    namespace: Option<String>,
    services: Option<Entries<Option<Fields>>>,
    /// Where an object of Kubernetes says the same.
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    /// Objects of a list.
    items: Option<Vec<Spanned<Document>>>,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Spec {
    mode: Option<String>,
    services: Option<Entries<Option<Fields>>>,
}

impl Document {
    /// What is listed last of it.
    fn listed(&mut self) -> Option<&mut Entries<Option<Fields>>> {
        let items = self.items.iter_mut().flatten().rev();
        let below = items.filter_map(|item| item.value.listed()).next();
        below.or(self.spec.as_mut().and_then(|spec| spec.services.as_mut())).or(self.services.as_mut())
    }

    /// As a file says it.
    fn plain(self) -> Self {
        let Self { kind, metadata: Some(metadata), spec: Some(Spec { mode, services }), .. } = self else {
            return self;
        };
        let namespace = metadata.namespace.or_else(|| Some("default".to_owned()));
        Self { kind, mode, namespace, services, metadata: None, spec: None, items: None }
    }
}

#[derive(Deserialize)]
struct Fields {
    select: Option<BTreeMap<String, String>>,
    isolate: Option<String>,
}

/// A service that can be read.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) name: ServiceName,
    /// Lines in which its document begins and in which it stands; 0 when that was another text.
    lines: [u64; 2],
    select: Option<BTreeMap<String, String>>,
    /// Its document reports only, and it does.
    audit: [bool; 2],
}

/// What is isolated.
#[derive(Clone)]
pub(super) enum Isolated {
    Service(Service),
    /// Pods of a NetworkPolicy; an admin policy.
    Object(Object),
}

impl Isolated {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Service(service) => service.name.to_string(),
            Self::Object(object) => object.name.clone(),
        }
    }

    /// The same where its line means nothing.
    fn without_lines(self) -> Self {
        match self {
            Self::Service(service) => Self::Service(Service { lines: [0; 2], ..service }),
            Self::Object(object) => Self::Object(Object { line: 0, ..object }),
        }
    }
}

/// Whether it is an admin policy's: what can be read of it holds.
pub(super) fn is_partly(name: &str) -> bool {
    name.split_once(' ').is_some_and(|(kind, _)| kind != "networkpolicy")
}

/// What can be read of a text.
#[derive(Default)]
pub(super) struct Read {
    pub(super) isolated: Vec<Isolated>,
    /// Nothing is missing: what the text does not list is not meant to be isolated.
    whole: bool,
}

impl Read {
    /// Adds what an earlier text said, where this one is not whole.
    pub(super) fn or(mut self, earlier: Self) -> Vec<Isolated> {
        if !self.whole {
            for isolated in earlier.isolated {
                if self.isolated.iter().all(|known| known.name() != isolated.name()) {
                    self.isolated.push(isolated.without_lines());
                }
            }
        }
        self.isolated
    }
}

/// Reads a text as far as it goes.
pub(super) fn read(text: &str) -> Read {
    let mut ours = services(text);
    match objects(text) {
        Some(objects) if ours.isolated.is_empty() => objects,
        Some(objects) => {
            ours.isolated.extend(objects.isolated);
            ours.whole &= objects.whole;
            ours
        }
        None => ours,
    }
}

/// Reads policies of Kubernetes; `None` where there is none.
fn objects(text: &str) -> Option<Read> {
    let (documents, cut) = documents::<tree::Item>(text);
    // What stands below a `spec` is indented.
    let torn = cut.iter().find(|line| !line.trim().is_empty()).is_some_and(|next| next.starts_with([' ', '\t']));
    let manifest::Remains { objects, partial } = manifest::remains(&source("", text), &documents, torn);
    let whole = !partial && cut.is_empty();
    (!objects.is_empty()).then(|| Read { isolated: objects.into_iter().map(Isolated::Object).collect(), whole })
}

/// Reads services of Intents.
fn services(text: &str) -> Read {
    let (mut documents, cut) = documents::<Spanned<Document>>(text);
    if !cut.is_empty() {
        leave_out_torn(&mut documents, &cut);
    }
    let mut whole = cut.is_empty() && !documents.is_empty();
    let mut services: Vec<Service> = Vec::new();
    let items = |mut document: Spanned<Document>| match document.value.items.take() {
        Some(items) => items,
        None => vec![document],
    };
    for document in documents.into_iter().flat_map(items) {
        let begin = document.referenced.line();
        let Document { kind, mode, namespace, services: listed, .. } = document.value.plain();
        if kind.as_deref() == Some("Guard") {
            continue;
        }
        let (Some("Intent"), Some(namespace)) = (kind.as_deref(), namespace.filter(|name| valid_name(name))) else {
            whole = false;
            continue;
        };
        for (name, fields) in listed.map(|listed| listed.0).unwrap_or_default() {
            let full = ServiceName::new(namespace.clone(), name.value);
            let (select, isolate) = fields.map(|fields| (fields.select, fields.isolate)).unwrap_or_default();
            let valid = valid_name(&full.name) && Entity::parse(&full.name).is_none();
            if !valid || select.as_ref().is_some_and(BTreeMap::is_empty) {
                whole = false;
            } else if services.iter().all(|known| known.name != full) {
                services.push(Service {
                    name: full,
                    lines: [begin, name.referenced.line()],
                    select,
                    audit: [mode.as_deref() == Some("audit"), isolate.as_deref() == Some("audit")],
                });
            }
        }
    }
    Read { isolated: services.into_iter().map(Isolated::Service).collect(), whole }
}

/// Documents of a text up to where it cannot be read, and the lines after that.
fn documents<T: DeserializeOwned>(text: &str) -> (Vec<T>, Vec<&str>) {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (mut len, mut work) = (lines.len(), 0);
    while work < LINES {
        work += len + 1;
        match yaml::read::<T>(&lines[..len].concat()) {
            Ok(documents) => return (documents, lines.split_off(len)),
            Err(error) => {
                let bad = error.location().map_or(len, |location| usize::try_from(location.line()).unwrap_or(len));
                len = bad.min(len).saturating_sub(1);
            }
        }
    }
    (Vec::new(), lines)
}

/// Leaves out the last service when the text that was cut off may go on about it: it may select others than it seems to.
fn leave_out_torn(documents: &mut [Spanned<Document>], cut: &[&str]) {
    let listed = documents.iter_mut().rev().find_map(|document| document.value.listed());
    let next = cut.iter().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    if let (Some(listed), Some(next)) = (listed, next)
        && let Some((name, _)) = listed.0.last()
    {
        let indent = next.len() - next.trim_start_matches(' ').len();
        if indent as u64 >= name.referenced.column() {
            listed.0.pop();
        }
    }
}

/// A policy file that isolates these and says nothing else, each in its line as far as that can be.
pub(super) fn text(isolated: &[Isolated]) -> String {
    let (mut text, mut line, mut open) = (String::new(), 1, None);
    // A file is of one family.
    let objects = isolated.iter().any(|isolated| matches!(isolated, Isolated::Object(_)));
    let end = if objects { " }}}\n" } else { " }}\n" };
    let to = |text: &mut String, line: &mut u64, wanted: u64| {
        while *line < wanted {
            text.push('\n');
            *line += 1;
        }
    };
    for isolated in isolated {
        let Service { name, lines, select, audit } = match isolated {
            Isolated::Service(service) => service,
            Isolated::Object(object) => {
                if open.take().is_some() {
                    text.push_str(end);
                    line += 1;
                }
                to(&mut text, &mut line, object.line);
                // A String takes every text; so below.
                let _ = writeln!(text, "--- {}", object.text);
                line += 1;
                continue;
            }
        };
        let document = (lines[0], &name.namespace, audit[0]);
        if open != Some(document) {
            if open.replace(document).is_some() {
                text.push_str(end);
                line += 1;
            }
            to(&mut text, &mut line, lines[0]);
            let mode = if audit[0] { "mode: audit, " } else { "" };
            let namespace = quoted(&name.namespace);
            let _ = match objects {
                true => write!(
                    text,
                    "--- {{apiVersion: {}, kind: Intent, metadata: {{name: isolated, namespace: {namespace}}}, spec: {{{mode}services: {{",
                    manifest::VERSION
                ),
                false => write!(
                    text,
                    "--- {{apiVersion: bulkhead/v1, kind: Intent, {mode}namespace: {namespace}, services: {{"
                ),
            };
        }
        to(&mut text, &mut line, lines[1]);
        let isolate = if audit[1] { "isolate: audit, " } else { "" };
        let _ = write!(text, " {}: {{{isolate}", quoted(&name.name));
        if let Some(select) = select {
            let labels: Vec<_> =
                select.iter().map(|(key, value)| format!("{}: {}", quoted(key), quoted(value))).collect();
            let _ = write!(text, "select: {{{}}}", labels.join(", "));
        }
        text.push_str("},");
    }
    if open.is_some() {
        text.push_str(end);
    }
    text
}

/// A text in YAML's double quotes.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => _ = write!(quoted, "\\U{:08x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
