//! What a policy file that never was good isolates all the same: the services that can be read of it. Nobody may call them, and they may call
//! nobody, until the file is good.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{
    intent::valid_name,
    yaml::{self, Entries},
};

/// Last line of the texts that are made here, by which they are known again in a revision.
const MARK: &str = "# The services of a file that never was good, isolated.\n";

/// How often a text is made shorter until it can be read.
const CUTS: usize = 32;

/// A document of any kind, as far as it matters here. Other fields may be as they like.
#[derive(Deserialize)]
struct Document {
    kind: Option<String>,
    mode: Option<String>,
    namespace: Option<String>,
    services: Option<Entries<Option<Service>>>,
}

#[derive(Deserialize)]
struct Service {
    select: Option<BTreeMap<String, String>>,
    isolate: Option<String>,
}

/// A namespace and the name of a service in it.
pub(super) type Name = (String, String);

/// Whether [`of`] made this text.
pub(super) fn is(text: &str) -> bool {
    text.ends_with(MARK)
}

/// A policy file that isolates the services which can be read of `text`, each in the line in which it is written, but for those that are `listed`
/// elsewhere. `None` when there are none.
pub(super) fn of(text: &str, listed: &BTreeSet<Name>) -> Option<String> {
    let mut seen = listed.clone();
    let (mut isolation, mut line) = (String::new(), 1);
    let mut to = |isolation: &mut String, wanted: u64| {
        while line < wanted {
            isolation.push('\n');
            line += 1;
        }
    };
    for document in documents(text) {
        let begin = document.referenced.line();
        let Document { kind, mode, namespace, services } = document.value;
        let (Some("Intent"), Some(namespace)) = (kind.as_deref(), namespace.filter(|name| valid_name(name))) else {
            continue;
        };
        let mut opened = false;
        for (name, service) in services.map(|services| services.0).unwrap_or_default() {
            let select = match service.as_ref().and_then(|service| service.select.as_ref()) {
                Some(select) => match labels(select) {
                    Some(select) => format!("select: {{{select}}}"),
                    None => continue,
                },
                None => String::new(),
            };
            if !valid_name(&name.value) || !seen.insert((namespace.clone(), name.value.clone())) {
                continue;
            }
            if !opened {
                opened = true;
                to(&mut isolation, begin);
                let mode = if mode.as_deref() == Some("audit") { "mode: audit, " } else { "" };
                let head = format!(
                    r#"--- {{apiVersion: bulkhead/v1, kind: Intent, {mode}namespace: "{namespace}", services: {{"#
                );
                isolation.push_str(&head);
            }
            to(&mut isolation, name.referenced.line());
            let audited = service.and_then(|service| service.isolate).as_deref() == Some("audit");
            let isolate = if audited { "isolate: audit, " } else { "" };
            // A String takes every text.
            let _ = write!(isolation, r#" "{}": {{{isolate}{select}}},"#, name.value);
        }
        if opened {
            isolation.push_str(" }}");
        }
    }
    (!isolation.is_empty()).then(|| format!("{isolation}\n{MARK}"))
}

/// Documents of a text up to where it cannot be read, without the service in which that happens: what it selects may stand further down.
fn documents(text: &str) -> Vec<Spanned<Document>> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut len = lines.len();
    for _ in 0..CUTS {
        match yaml::read::<Spanned<Document>>(&lines[..len].concat()) {
            Ok(mut documents) => {
                if len < lines.len()
                    && let Some(Some(services)) = documents.last_mut().map(|last| last.value.services.as_mut())
                {
                    services.0.pop();
                }
                return documents;
            }
            Err(error) => {
                let bad = error.location().map_or(len, |location| usize::try_from(location.line()).unwrap_or(len));
                len = bad.min(len).saturating_sub(1);
            }
        }
    }
    Vec::new()
}

/// Labels in YAML's flow style, if they are such as containers have.
fn labels(select: &BTreeMap<String, String>) -> Option<String> {
    let plain = |text: &str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '+' | ' '))
    };
    let mut written = String::new();
    for (key, value) in select {
        if !plain(key) || !plain(value) {
            return None;
        }
        // As above.
        let _ = write!(written, r#""{key}": "{value}", "#);
    }
    Some(written)
}
