//! Kubernetes manifests: objects of any kind, one or many to a file, as people write them and as `kubectl get --output yaml|json` prints them.
//!
//! Policies are read strictly: an unknown field of a `spec` is an error, since it may be what somebody relied on. Of other objects only what names,
//! labels and addresses workloads is read.

mod admin;
mod network_policy;
mod objects;
mod own;
mod partly;
mod ports;
mod prefixes;
mod read;
mod selectors;

use std::{collections::BTreeMap, fmt, sync::Arc};

use self::objects::{Known, Objects};
pub(crate) use self::{
    objects::{MIRROR, Pool, Seen, live},
    own::VERSION,
};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, Severity, Source},
    policy::Policy,
    workloads::Workloads,
    yaml::tree::{self, Fields, Item, Node, Value},
};

/// Kinds of policies that are read.
const POLICIES: [&str; 4] =
    ["NetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy"];

/// What `networking.k8s.io` has beside policies.
const NO_POLICIES: [&str; 4] = ["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"];

/// API groups of others whose objects are policies or parts of them.
const FOREIGN_GROUPS: [&str; 3] = ["projectcalico.org", "cilium.io", "antrea.io"];

/// What files of manifests say together.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Policies in the order in which they were read.
    pub policies: Vec<Policy>,
    /// What is not used, and what looks wrong; never an error.
    pub notes: Diagnostics,
    /// All else.
    objects: Objects,
}

impl Manifests {
    /// Adds all objects of a file.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing of it is used then.
    pub fn read(&mut self, source: &Arc<Source>) -> Result<(), Diagnostics> {
        let documents = tree::documents(source).map_err(|error| match source.inner().contains("{{") {
            true => error.help("this looks like a template: fill it in first, as `helm template` does"),
            false => error,
        })?;
        self.take(source, &documents)
    }

    /// The same of documents that were read from it.
    pub(crate) fn take(&mut self, source: &Arc<Source>, documents: &[Item]) -> Result<(), Diagnostics> {
        let mut file = File::default();
        let documents: Vec<_> = documents.iter().filter(|document| document.value != Value::Null).collect();
        for document in &documents {
            file.object(Node::new(source, document), None);
        }
        file.note();
        if documents.is_empty() {
            file.found.push(Diagnostic::warning(&Place::start(source), "the file has no object"));
        }
        if file.found.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
            return Err(file.found);
        }
        self.policies.append(&mut file.policies);
        self.objects.append(&mut file.objects);
        self.notes.0.append(&mut file.found.0);
        Ok(())
    }

    /// The policies and the notes, for those who have their workloads from elsewhere.
    #[must_use]
    pub fn only_policies(mut self) -> Vec<Policy> {
        if let Some(place) = self.objects.first() {
            let note = Diagnostic::warning(place, "this object is not used: only policies are read here");
            self.notes.push(note.help("workloads come from the workloads file"));
        }
        self.policies.extend(self.notes.0.into_iter().map(Policy::Noted));
        self.policies
    }

    /// Workloads, nodes, namespaces and service addresses of all objects.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn workloads(&self) -> Result<Workloads, Diagnostics> {
        let namespaces = self.policies.iter().filter_map(|policy| match policy {
            Policy::Network(policy) => Some(policy.name.namespace.as_str()),
            Policy::Intent(intent) => Some(intent.namespace.as_str()),
            _ => None,
        });
        self.objects.workloads(namespaces)
    }
}

/// Reads an object that is no policy, `None` where nothing comes of it. `source` names it; what is read of it does not keep its text.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn see(source: &Arc<Source>, object: serde_json::Value) -> Result<Option<Seen>, Diagnostics> {
    let item = tree::nowhere(Value::of_json(object));
    let mut file = File::default();
    file.object(Node::new(source, &item), None);
    if file.found.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(file.found);
    }
    Ok(file.objects.into_one())
}

/// Reads an object whose kind is that of a policy; `None` for other kinds.
fn policy(api_version: &str, kind: &str, object: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Option<Policy>> {
    match kind {
        "NetworkPolicy" => Some(network_policy::read(api_version, object, found).map(Policy::Network)),
        "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy" | "ClusterNetworkPolicy" => {
            Some(admin::read(api_version, kind, object, found).map(Policy::Guard))
        }
        _ if own::is_kind(api_version, kind) => Some(own::read(api_version, kind, object, found)),
        _ => None,
    }
}

/// How a policy of Kubernetes is called beside services: `networkpolicy shop/web`.
pub(crate) fn title(kind: &str, name: &impl fmt::Display) -> String {
    format!("{} {name}", kind.to_lowercase())
}

/// What holds of an object that is not used as it is.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// See [`title`].
    pub(crate) name: String,
    /// Line where it stands.
    pub(crate) line: u64,
    /// It as a document in one line.
    pub(crate) text: String,
}

/// What can be read of policies that are not used.
#[derive(Default)]
pub(crate) struct Remains {
    /// Whom NetworkPolicies isolate, and what admin policies say.
    pub(crate) objects: Vec<Object>,
    /// Something that is a policy, or may be one, says nothing.
    pub(crate) partial: bool,
}

/// Reads of the documents of a file that cannot be used what holds all the same. After `torn` documents the text went on.
pub(crate) fn remains(source: &Arc<Source>, documents: &[Item], torn: bool) -> Remains {
    let mut remains = Remains::default();
    for (index, document) in documents.iter().enumerate() {
        let torn = torn && index + 1 == documents.len();
        remains.object(Node::new(source, document), "", torn);
    }
    remains
}

impl Remains {
    fn object(&mut self, node: Node<'_>, of: &str, torn: bool) {
        let mut found = Diagnostics::default();
        let Some(mut object) = node.fields(&mut found) else {
            self.partial |= *node.value() != Value::Null;
            return;
        };
        let mut text = |name| object.get(name).and_then(|node| node.text(&mut found));
        let (api_version, kind) = (text("apiVersion").unwrap_or(""), text("kind").unwrap_or(of));
        let item = kind.strip_suffix("List");
        if let (Some(of), Some(items)) = (item, object.get("items")) {
            let items = items.list(&mut found);
            for (index, item) in items.iter().enumerate() {
                self.object(*item, of, torn && index + 1 == items.len());
            }
            return;
        }
        let foreign = foreign(&Header { api_version, kind, place: node.place() }).is_some();
        if kind == "NetworkPolicy" && !foreign {
            let wall = network_policy::wall(&mut object, torn);
            self.partial |= wall.is_none();
            self.objects.extend(wall);
        } else if POLICIES.contains(&kind) && !foreign {
            // A rule that was cut off may be about less than it seems to be.
            let part = if torn { None } else { partly::partly(api_version, kind, node) };
            self.partial |= part.is_none();
            self.objects.extend(part);
        } else {
            self.partial |=
                foreign || kind.is_empty() || group(api_version) == "bulkhead" || own::is_ours(group(api_version));
        }
    }
}

/// What every object begins with.
struct Header<'a> {
    api_version: &'a str,
    kind: &'a str,
    /// Where the kind stands, or the object where its list says it.
    place: Place,
}

impl Header<'_> {
    /// The API group; empty for the first one, which has no name.
    fn group(&self) -> &str {
        group(self.api_version)
    }

    fn error(&self, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.place, message).help(help)
    }
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// A file while it is read.
#[derive(Default)]
struct File {
    policies: Vec<Policy>,
    objects: Objects,
    found: Diagnostics,
    /// What is not used: how often, and where first.
    skipped: BTreeMap<String, (usize, Place)>,
}

impl File {
    /// Reads an object, or a list of some. Items of a list whose name says their kind need no header of their own.
    fn object(&mut self, node: Node<'_>, of: Option<(&str, &str)>) {
        let Some(mut fields) = node.fields(&mut self.found) else { return };
        let Some(header) = self.header(&mut fields, of) else { return };
        if header.group() == "bulkhead" {
            self.found.push(header.error(
                "a file holds documents of Bulkhead or of Kubernetes, not both",
                "split it: put this document into a file of its own",
            ));
            return;
        }
        if let Some(item) = header.kind.strip_suffix("List") {
            let items = fields.get("items");
            if item.is_empty() || items.is_some() || POLICIES.contains(&item) || own::is_kind(header.api_version, item)
            {
                let of = (!item.is_empty()).then_some((header.api_version, item));
                for item in items.map(|items| items.list(&mut self.found)).unwrap_or_default() {
                    self.object(item, of);
                }
                return;
            }
        }
        if let Some(help) = foreign(&header) {
            self.found.push(header.error(not_understood(&header), help));
        } else if let Some(policy) = policy(header.api_version, header.kind, &mut fields, &mut self.found) {
            self.policies.extend(policy);
        } else {
            self.other(&header, &mut fields);
        }
    }

    /// Checks what the object begins with.
    fn header<'a>(&mut self, fields: &mut Fields<'a>, of: Option<(&'a str, &'a str)>) -> Option<Header<'a>> {
        let here = fields.here();
        let (api_version, kind) = (fields.get("apiVersion"), fields.get("kind"));
        let place = kind.unwrap_or(here).place();
        let mut text = |written: Option<Node<'a>>, of: Option<&'a str>, name: &str, example: &str| match written {
            Some(node) => node.text(&mut self.found),
            None => of.or_else(|| {
                let help = format!("write `{name}: {example}`, as every object of Kubernetes has it");
                self.found.push(here.error(format!("the object has no `{name}`"), help));
                None
            }),
        };
        let api_version = text(api_version, of.map(|of| of.0), "apiVersion", "apps/v1");
        let kind = text(kind, of.map(|of| of.1), "kind", "Deployment");
        Some(Header { api_version: api_version?, kind: kind?, place })
    }

    /// Reads an object that is no policy.
    fn other(&mut self, header: &Header<'_>, fields: &mut Fields<'_>) {
        match objects::known(header.api_version, header.kind) {
            Known::Kind(kind) => {
                if let Some(unused) = self.objects.read(kind, fields, &mut self.found) {
                    self.skip(unused.to_owned(), &header.place);
                }
            }
            Known::Elsewhere(right) => {
                let message = format!("there is no `{}` in apiVersion `{}`", header.kind, header.api_version);
                self.found.push(header.error(message, format!("write `apiVersion: {right}`")));
            }
            Known::Not => self.skip(format!("kind `{}` ({})", header.kind, header.api_version), &header.place),
        }
    }

    fn skip(&mut self, what: String, place: &Place) {
        self.skipped.entry(what).or_insert_with(|| (0, place.clone())).0 += 1;
    }

    /// Says what is not used.
    fn note(&mut self) {
        for (what, (count, place)) in &self.skipped {
            let message = match count {
                1 => format!("an object of {what} is not used"),
                _ => format!("{count} objects of {what} are not used"),
            };
            let help = "only policies are read, and what names, labels or addresses workloads";
            self.found.push(Diagnostic::warning(place, message).help(help));
        }
    }
}

/// What to write instead of a policy that is none of those that are known; `None` for what is one of them, or no policy.
///
/// To pass over a policy would be to say of traffic that it passes, or does not, against somebody's word.
fn foreign(header: &Header<'_>) -> Option<String> {
    let known = "write a `NetworkPolicy` (networking.k8s.io/v1), `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy` or `ClusterNetworkPolicy` (policy.networking.k8s.io), an Intent or a Guard, or leave it out";
    let group = header.group();
    if FOREIGN_GROUPS
        .iter()
        .any(|foreign| group.strip_suffix(foreign).is_some_and(|sub| sub.is_empty() || sub.ends_with('.')))
    {
        return Some(format!("only policies of Kubernetes itself are read: {known}"));
    }
    if own::is_ours(group) && !own::is_kind(header.api_version, header.kind) {
        return Some("`bulkhead.io` has the kinds `Intent` and `Guard`".to_owned());
    }
    let policy = header.kind.contains("NetworkPolicy")
        || group == "policy.networking.k8s.io"
        // A misspelt policy must not be passed over.
        || (group == "networking.k8s.io" && !NO_POLICIES.contains(&header.kind))
        || header.kind == "EgressFirewall";
    (policy && !POLICIES.contains(&header.kind)).then(|| known.to_owned())
}

fn not_understood(header: &Header<'_>) -> String {
    format!("`{}` of `{}` is a policy, or part of one, that is not understood", header.kind, header.api_version)
}

/// Reads a text.
#[cfg(test)]
fn manifests(text: &str) -> Manifests {
    let mut manifests = Manifests::default();
    manifests.read(&crate::diagnostic::source("m.yaml", text)).unwrap_or_else(|found| panic!("{found}"));
    manifests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::source;

    fn names(manifests: &Manifests) -> Vec<String> {
        manifests.workloads().unwrap().workloads.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_misspelt_policy_is_no_object_to_pass_over() {
        let text = "apiVersion: networking.k8s.io/v1\nkind: NetPolicies\nmetadata: { name: a }\n";
        let said = Manifests::default().read(&source("m.yaml", text)).unwrap_err().to_string();
        assert!(said.contains("that is not understood"), "{said}");
        let text = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: { name: a }\n";
        assert!(Manifests::default().read(&source("m.yaml", text)).is_ok());
    }

    #[test]
    fn every_document_and_item_is_read_and_empty_ones_are_skipped() {
        let read = manifests(
            "# first\n---\n---\napiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: {}\n---\nnull\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Pod, metadata: { name: b }, spec: {} }\n\
             - apiVersion: v1\n  kind: List\n  items: [{ apiVersion: v1, kind: Pod, metadata: { name: c }, spec: {} }]\n---\n\
             apiVersion: v1\nkind: PodList\nitems:\n- { metadata: { name: d }, spec: {} }\n\
             - { apiVersion: v1, kind: Pod, metadata: { name: e }, spec: {} }\n---\n\
             apiVersion: apps/v1\nkind: DeploymentList\nitems: []\n---\napiVersion: v1\nkind: List\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: null\n",
        );
        assert!(read.notes.0.is_empty(), "{}", read.notes);
        assert_eq!(names(&read), ["default/a", "default/b", "default/c", "default/d", "default/e"]);
    }

    #[test]
    fn json_is_read_as_it_is() {
        let read = manifests(
            r#"{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a", "labels": {"n": "1"}}, "spec": {}}]}"#,
        );
        assert_eq!(names(&read), ["default/a"]);
    }

    #[test]
    fn nothing_of_a_bad_file_is_used_and_all_that_is_wrong_is_told() {
        let mut read = manifests("apiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: {}\n");
        let bad = "apiVersion: v1\nkind: Pod\nmetadata: { name: b }\nspec: {}\n---\nkind: Pod\n---\napiVersion: v1\nkind: Pod\nmetadata: {}\n";
        let found = read.read(&source("bad.yaml", bad)).unwrap_err();
        assert_eq!(found.0.len(), 3, "{found}");
        assert_eq!(names(&read), ["default/a"]);
    }

    #[test]
    fn what_is_not_used_is_noted_once_with_its_count() {
        let ingress = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: { name: a }\n";
        let read = manifests(&[ingress; 3].join("---\n"));
        assert_eq!(
            read.notes.to_string().lines().next(),
            Some("m.yaml:2:7: warning: 3 objects of kind `Ingress` (networking.k8s.io/v1) are not used")
        );
    }

    #[test]
    fn kinds_are_those_of_their_group() {
        let ours = |api_version: &str, kind: &str| match objects::known(api_version, kind) {
            Known::Kind(_) => "read",
            Known::Elsewhere(_) => "elsewhere",
            Known::Not => "not",
        };
        assert_eq!(ours("v1", "Pod"), "read");
        assert_eq!(ours("extensions/v1beta1", "Deployment"), "read");
        assert_eq!(ours("v1", "Deployment"), "elsewhere");
        assert_eq!(ours("events.k8s.io/v1", "Node"), "elsewhere");
        assert_eq!(ours("serving.knative.dev/v1", "Service"), "not");
        assert_eq!(ours("v1", "ConfigMap"), "not");
    }

    #[test]
    fn what_looks_like_a_policy_is_not_passed_over() {
        for (api_version, kind, refused) in [
            ("networking.k8s.io/v1", "NetworkPolicy", false),
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", false),
            ("networking.k8s.io/v1", "Ingress", false),
            ("policy/v1", "PodDisruptionBudget", false),
            ("notcilium.io/v1", "Thing", false),
            ("crd.antrea.io/v1beta1", "ClusterGroup", true),
            ("projectcalico.org/v3", "NetworkPolicy", true),
            ("network.openshift.io/v1", "EgressNetworkPolicy", true),
            ("k8s.ovn.org/v1", "EgressFirewall", true),
        ] {
            let place = Place::start(&source("m.yaml", ""));
            let header = Header { api_version, kind, place };
            assert_eq!(foreign(&header).is_some(), refused, "{api_version} {kind}");
        }
    }
}
