//! Intents and Guards of files as objects of Kubernetes, for those who apply them with kubectl.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Source, source},
    manifest::{Manifests, VERSION},
    policy,
    yaml::{self, Family},
};

/// A document of either kind as it is written, each scalar as text: `1.10` is a label's value, and no number.
/// What is left of it is the `spec` of the object.
#[derive(Deserialize, Serialize)]
struct Document {
    #[serde(skip_serializing)]
    kind: String,
    #[serde(skip_serializing)]
    namespace: Option<String>,
    #[serde(skip_serializing)]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<String>,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    subjects: Option<Subjects>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare: Option<String>,
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    external: IndexMap<String, External>,
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<IndexMap<String, Option<Service>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize, Serialize)]
struct External {
    cidrs: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<String>,
}

#[derive(Default, Deserialize, Serialize)]
struct Service {
    #[serde(skip_serializing_if = "Option::is_none")]
    select: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accepts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    calls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolate: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Subjects {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workloads: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Serialize)]
struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<Matches>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny: Option<Matches>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<Matches>,
}

#[derive(Deserialize, Serialize)]
struct Matches {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Peers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Peers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

/// A list, as objects have it.
#[derive(Serialize)]
struct Peers(Vec<String>);

impl<'de> Deserialize<'de> for Peers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let yaml::OneOrMany(peers) = yaml::OneOrMany::deserialize(deserializer)?;
        Ok(Self(peers.into_iter().map(|peer| peer.value).collect()))
    }
}

/// Manifests of the policies of a file, one document each. An Intent is called as the file, and the second of a namespace as the file and its number.
///
/// # Errors
/// All that is wrong with the file, or with it as a manifest.
pub fn manifests(of: &Arc<Source>) -> Result<String, Diagnostics> {
    if yaml::family(of)? != Family::Policies {
        let error = Diagnostic::nowhere(format!("{} holds no policies of Bulkhead", of.name()));
        return Err(error.help("give files with `apiVersion: bulkhead/v1`; manifests are applied as they are").into());
    }
    policy::parse(of)?;
    let read: Result<Vec<Document>, _> = yaml::read(of.inner());
    let documents = read.map_err(|error| Diagnostic::nowhere(format!("{}: {error}", of.name())))?;
    let stem = Path::new(of.name()).file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut texts = Vec::new();
    for spec in documents {
        let metadata = match &spec.namespace {
            Some(namespace) => {
                let count = used.entry(namespace.clone()).or_default();
                *count += 1;
                let name = if *count == 1 { stem.clone() } else { format!("{stem}-{count}") };
                json!({ "name": name, "namespace": namespace })
            }
            None => json!({ "name": spec.name }),
        };
        let object = json!({ "apiVersion": VERSION, "kind": spec.kind, "metadata": metadata, "spec": spec });
        texts.push(text(of, &object)?);
    }
    let text = texts.join("---\n");
    // What comes out is read as everybody else reads it.
    Manifests::default().read(&source(of.name(), text.as_str()))?;
    Ok(text)
}

fn text(of: &Source, object: &Value) -> Result<String, Diagnostic> {
    serde_saphyr::to_string(object).map_err(|error| Diagnostic::nowhere(format!("{}: {error}", of.name())))
}
