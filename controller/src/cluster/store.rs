//! What the API server has told so far, reduced to what is read of it. Pure.
//!
//! A kind that is listed anew stays as it was until its list is complete.

use std::{collections::BTreeMap, mem, sync::Arc};

use serde_json::{Value, json};

use super::{
    changes::{self, Claims, News},
    index::Index,
    kinds::{KINDS, Key, Kind, NAMESPACES, NODES, PODS, SERVICES, SLICES},
};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, source},
    input::{Files, LIVE, Listing},
    manifest::{self, MIRROR, Pool, Seen},
    source::{Changes, PolicyText},
    yaml::{tree::Item, write},
};

/// An object.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// Text of a policy; one that has none isolates as a file does that cannot be read.
    Policy(Arc<Result<String, Diagnostic>>),
    /// What is read of another one.
    Seen(Arc<Seen>),
}

impl Told {
    const fn seen(&self) -> Option<&Arc<Seen>> {
        match self {
            Self::Seen(seen) => Some(seen),
            Self::Policy(_) => None,
        }
    }
}

/// Objects of a kind.
#[derive(Debug, Default)]
struct Kept {
    objects: BTreeMap<Key, Told>,
    /// Of a list that is not complete yet.
    coming: Option<Vec<(Key, Told)>>,
    complete: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Store {
    kinds: [Kept; KINDS.len()],
    claims: Claims,
    index: Index,
    pool: Pool,
    /// Pods that are asked for, by the number of the question, and whether the watch has told something of them since.
    asked: BTreeMap<u64, (Key, bool)>,
    questions: u64,
    /// What is other than when it was read or asked for last.
    news: News,
    /// As they were read last, unless something changed since.
    read: Option<Files>,
    /// What was found wrong with them then.
    pub(super) notes: Diagnostics,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            kinds: Default::default(),
            claims: Claims::default(),
            index: Index::default(),
            pool: Pool::default(),
            asked: BTreeMap::new(),
            questions: 0,
            news: News { all: true, ..News::default() },
            read: None,
            notes: Diagnostics::default(),
        }
    }

    /// A list begins.
    pub(super) fn begin(&mut self, kind: usize) {
        self.kinds[kind].coming = Some(Vec::new());
        if kind == PODS {
            self.asked.values_mut().for_each(|(_, overtaken)| *overtaken = true);
        }
    }

    /// An object of a list.
    ///
    /// # Errors
    /// It cannot be read; it stays as it was, if it was known.
    pub(super) fn list(&mut self, kind: usize, object: Value) -> Result<(), Diagnostics> {
        let kept = &mut self.kinds[kind];
        let (key, told) = reduce(&KINDS[kind], object, &kept.objects, &mut self.pool);
        let (told, result) = match told {
            Ok(Reduced { told, .. }) => (told, Ok(())),
            Err(found) => (kept.objects.get(&key).cloned(), Err(found)),
        };
        kept.coming.get_or_insert_default().extend(told.map(|told| (key, told)));
        result
    }

    /// The list is complete: what it has not is gone. Whether something is new.
    pub(super) fn end(&mut self, kind: usize) -> bool {
        let kept = &mut self.kinds[kind];
        // Maps of what is in order have no gaps.
        let coming: BTreeMap<_, _> = kept.coming.take().unwrap_or_default().into_iter().collect();
        self.news.all |= !kept.complete || coming != kept.objects;
        let before = mem::replace(&mut kept.objects, coming);
        kept.complete = true;
        if kind == PODS {
            let (before, after) = (&before, &kept.objects);
            let keys = before.keys().filter(|key| !after.contains_key(*key)).chain(after.keys());
            let mut keys: Vec<_> = keys.collect();
            // Of what changed while nobody told of it nothing else is known.
            keys.sort_by_key(|key| seen(after, key).map(Seen::created));
            for key in keys {
                self.claims.change(key, seen(before, key), seen(after, key));
            }
            self.claims.compact();
        } else {
            for key in before.keys().chain(kept.objects.keys()) {
                // To be told twice of one changes nothing.
                self.index.change(kind, key, seen(&before, key), seen(&kept.objects, key));
            }
        }
        self.has_news()
    }

    /// How many objects of a kind are known.
    pub(super) fn count(&self, kind: usize) -> usize {
        self.kinds[kind].objects.len()
    }

    /// The cluster has no such kind, and so no object of it. Whether something is new.
    pub(super) fn absent(&mut self, kind: usize) -> bool {
        self.begin(kind);
        self.end(kind)
    }

    /// An object is new or other than before. Whether that matters.
    ///
    /// # Errors
    /// It cannot be read; it stays as it was.
    pub(super) fn apply(&mut self, kind: usize, object: Value) -> Result<bool, Diagnostics> {
        let (key, told) = reduce(&KINDS[kind], object, &self.kinds[kind].objects, &mut self.pool);
        let told = told?;
        if kind == PODS {
            self.overtake(&key);
        }
        Ok(self.put(kind, key, told))
    }

    /// An object is gone. Whether that matters.
    pub(super) fn delete(&mut self, kind: usize, object: &Value) -> bool {
        let key = key(object);
        if kind == PODS {
            self.overtake(&key);
        }
        self.put(kind, key, Reduced::default())
    }

    /// What is on the way as an answer may be older than what the watch has told of a pod.
    fn overtake(&mut self, key: &Key) {
        self.asked.values_mut().filter(|(of, _)| of == key).for_each(|(_, overtaken)| *overtaken = true);
    }

    /// The server is asked for a pod. The number of the question.
    pub(super) fn ask(&mut self, namespace: &str, name: &str) -> u64 {
        self.questions += 1;
        self.asked.insert(self.questions, (Key::new(namespace.to_owned(), name.to_owned()), false));
        self.questions
    }

    /// The server has answered, with a pod or with none. An answer is not used where the watch has told something since it was asked for: that of a pod
    /// that is gone by now would stay for good. Nor is that of another pod of the name. Whether something is new.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn answered(&mut self, question: u64, uid: &str, pod: Option<Value>) -> Result<bool, Diagnostics> {
        let Some((_, overtaken)) = self.asked.remove(&question) else { return Ok(false) };
        // The runtime names the original where this is its image in the cluster.
        let original = |pod: &Value| pod["metadata"]["annotations"][MIRROR].as_str().map(str::to_owned);
        let own = |pod: &Value| pod["metadata"]["uid"].as_str().map(str::to_owned);
        let is_it = |pod: &Value| original(pod).or_else(|| own(pod)).as_deref() == Some(uid);
        match pod.filter(|pod| is_it(pod) && !overtaken) {
            Some(pod) => self.apply(PODS, pod),
            None => Ok(false),
        }
    }

    /// Puts what is kept of an object in the place of what was there. Whether that matters.
    fn put(&mut self, kind: usize, key: Key, Reduced { told, document }: Reduced) -> bool {
        let objects = &mut self.kinds[kind].objects;
        if objects.get(&key) == told.as_ref() {
            return false;
        }
        let before = match &told {
            Some(told) => objects.insert(key.clone(), told.clone()),
            None => objects.remove(&key),
        };
        let was = before.as_ref().and_then(Told::seen);
        let is = told.as_ref().and_then(Told::seen);
        let (from, to) = (was.map(|seen| &**seen), is.map(|seen| &**seen));
        let news = &mut self.news;
        match kind {
            _ if KINDS[kind].is_policy => _ = news.policies.insert((kind, key), document),
            PODS => {
                self.claims.change(&key, from, to);
                news.pods.entry(key).or_insert_with(|| was.cloned());
            }
            NAMESPACES if is.is_some() => _ = news.namespaces.insert(key),
            NODES | SERVICES | SLICES => {
                self.index.change(kind, &key, from, to);
                news.others.entry((kind, key)).or_insert_with(|| was.cloned());
            }
            _ => news.all = true,
        }
        true
    }

    /// Whether every kind was listed once.
    pub(super) fn is_complete(&self) -> bool {
        self.missing().is_none()
    }

    /// A kind of which no list is complete yet.
    pub(super) fn missing(&self) -> Option<&'static str> {
        self.kinds.iter().zip(&KINDS).find(|(kept, _)| !kept.complete).map(|(_, kind)| kind.name)
    }

    /// Whether the labels of a namespace are known.
    pub(super) fn has_namespace(&self, name: &str) -> bool {
        seen(&self.kinds[NAMESPACES].objects, &Key::new(String::new(), name.to_owned())).is_some()
    }

    /// Whether a pod is known that can still run, with its namespace: policies select by the labels of both.
    pub(super) fn has_pod(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.pod(namespace, name, uid).is_some()
    }

    /// The same of one that had an address already.
    pub(super) fn has_run(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.pod(namespace, name, uid).is_some_and(|pod| pod.claims().next().is_some())
    }

    fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<&Arc<Seen>> {
        if !self.has_namespace(namespace) {
            return None;
        }
        let key = Key::new(namespace.to_owned(), name.to_owned());
        self.kinds[PODS].objects.get(&key)?.seen().filter(|seen| seen.is_pod(uid))
    }

    /// Whether it was not read since something changed.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_none()
    }

    /// All of it is to be read.
    #[cfg(test)]
    pub(super) fn doubt(&mut self) {
        self.news.all = true;
    }

    /// What changed since it was read or asked this; `None` where only reading all of it says that.
    pub(super) fn changes(&mut self) -> Option<Changes> {
        // What did not fit together may fit now.
        if !self.notes.0.is_empty() && !self.news.others.is_empty() {
            return None;
        }
        let mut changes = changes::changes(&self.news, (&self.claims, &self.index), &*self)?;
        for ((kind, key), document) in &mut self.news.policies {
            let text = match self.kinds[*kind].objects.get(key) {
                Some(Told::Policy(text)) => {
                    Some(PolicyText { text: Result::clone(text).ok()?, document: document.take() })
                }
                _ => None,
            };
            changes.policies.insert(KINDS[*kind].full_name(key), text);
        }
        if !mem::take(&mut self.news).is_none() {
            self.read = None;
        }
        Some(changes)
    }

    /// All of it, for the agent. Told are names and places that cannot be used together, once.
    pub(super) fn read(&mut self) -> Files {
        if let Some(read) = self.read.as_ref().filter(|_| self.news.is_none()) {
            return read.clone();
        }
        let mut policies = BTreeMap::new();
        let (mut objects, mut pods) = (Vec::new(), Vec::new());
        for (kept, kind) in self.kinds.iter().zip(&KINDS) {
            for (key, told) in &kept.objects {
                match told {
                    Told::Policy(text) => _ = policies.insert(kind.full_name(key), Result::clone(text)),
                    Told::Seen(seen) if kind.name == KINDS[PODS].name => pods.push((self.claims.since(key), &**seen)),
                    Told::Seen(seen) => objects.push(&**seen),
                }
            }
        }
        pods.sort_by_key(|(since, _)| *since);
        objects.extend(pods.into_iter().map(|(_, pod)| pod));
        let mentioned = KINDS.iter().zip(&self.kinds).filter(|(kind, _)| kind.is_policy);
        let mentioned = mentioned.flat_map(|(_, kept)| kept.objects.keys().map(|key| key.namespace.as_str()));
        let (workloads, notes) = manifest::live(objects, mentioned);
        for note in notes.0.iter().filter(|note| !self.notes.0.contains(note)) {
            tracing::warn!("{note}");
        }
        self.notes = notes;
        let files =
            Files { policies: Ok(policies), workloads: (LIVE.to_owned(), Ok(Listing::Live(Arc::new(workloads)))) };
        (self.read, self.news) = (Some(files.clone()), News::default());
        files
    }
}

impl changes::Objects for Store {
    fn get(&self, kind: usize, key: &Key) -> Option<&Seen> {
        seen(&self.kinds[kind].objects, key)
    }

    fn of_namespace<'a>(&'a self, kind: usize, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Seen)> {
        let first = Key::new(namespace.to_owned(), String::new());
        let inside = self.kinds[kind].objects.range(first..).take_while(move |(key, _)| key.namespace == namespace);
        inside.filter_map(|(key, told)| Some((key, &**told.seen()?)))
    }

    fn all(&self, kind: usize) -> impl Iterator<Item = (&Key, &Seen)> {
        self.kinds[kind].objects.iter().filter_map(|(key, told)| Some((key, &**told.seen()?)))
    }
}

fn seen<'a>(objects: &'a BTreeMap<Key, Told>, key: &Key) -> Option<&'a Seen> {
    objects.get(key)?.seen().map(|seen| &**seen)
}

fn key(object: &Value) -> Key {
    let text = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
    Key::new(text("namespace").to_owned(), text("name").to_owned())
}

/// What is kept of an object.
#[derive(Default)]
struct Reduced {
    /// `None` where nothing comes of it.
    told: Option<Told>,
    /// What is read of the text of a policy, where that is known: until somebody has asked for it.
    document: Option<Item>,
}

/// What is kept of an object, and its name.
fn reduce(
    kind: &Kind,
    mut object: Value,
    known: &BTreeMap<Key, Told>,
    pool: &mut Pool,
) -> (Key, Result<Reduced, Diagnostics>) {
    let key = key(&object);
    let key = known.get_key_value(&key).map_or(key, |(known, _)| known.clone());
    if kind.is_policy {
        let (text, document) = match text(kind, &key, &object["spec"]) {
            Ok(PolicyText { text, document }) => (Ok(text), document),
            Err(found) => (Err(found), None),
        };
        return (key, Ok(Reduced { told: Some(Told::Policy(Arc::new(text))), document }));
    }
    if let Value::Object(fields) = &mut object {
        // Items of lists have none.
        fields.insert("apiVersion".to_owned(), kind.api_version.into());
        fields.insert("kind".to_owned(), kind.name.into());
    }
    let source = source(kind.full_name(&key), "");
    let seen = manifest::see(&source, object).map(|seen| {
        let told = seen.map(|mut seen| {
            seen.call(&key);
            seen.share(pool);
            Told::Seen(Arc::new(seen))
        });
        Reduced { told, document: None }
    });
    (key, seen)
}

/// A policy as somebody could have written it: without what the API server adds.
pub(super) fn text(kind: &Kind, key: &Key, spec: &Value) -> Result<PolicyText, Diagnostic> {
    let metadata = match key.namespace.as_str() {
        "" => json!({ "name": key.name }),
        namespace => json!({ "name": key.name, "namespace": namespace }),
    };
    let document = json!({ "apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, "spec": spec });
    if let Some((text, document)) = write::write(&document) {
        return Ok(PolicyText { text, document: Some(document) });
    }
    let text = serde_saphyr::to_string(&document)
        .map_err(|error| Diagnostic::nowhere(format!("{} cannot be written as YAML: {error}", kind.full_name(key))))?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{policy, yaml::tree};

    /// Texts that YAML could take for something else.
    const ODD: &[&str] = &[
        "",
        "~",
        "null",
        "true",
        "No",
        "1.10",
        "0x1f",
        "1e3",
        ".inf",
        "2027-01-31",
        "- a",
        "a: b",
        "#",
        "*a",
        "&a",
        "!a",
        "|",
        "%a",
        "@a",
        "'",
        "\"",
        "\\",
        " a",
        "a ",
        "a\nb",
        "a\r\n",
        "\t",
        "\0",
        "\u{7f}",
        "\u{85}",
        "\u{9f}",
        "\u{2028}",
        "\u{feff}",
        "\u{fffe}",
        "---",
        "...",
        "<<",
        "=",
    ];

    fn string() -> impl Strategy<Value = String> {
        prop_oneof![select(ODD).prop_map(str::to_owned), any::<String>()]
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            string().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((string(), inner), 0..4)
                    .prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    /// Whoever asks what changed gets a policy read as its text would be, with the lines that its rules are known by.
    #[test]
    fn a_policy_comes_with_what_is_read_of_it() {
        let kind = KINDS.iter().position(|kind| kind.name == "NetworkPolicy").unwrap();
        let mut store = Store::new();
        (0..KINDS.len()).for_each(|kind| _ = store.absent(kind));
        store.apply(NAMESPACES, json!({ "metadata": { "name": "shop" } })).unwrap();
        store.read();
        let from = json!([{ "podSelector": { "matchLabels": { "app.kubernetes.io/name": "shop-front" } } }]);
        let ingress =
            json!([{ "from": from, "ports": [{ "port": 80, "protocol": "TCP" }] }, { "ports": [{ "port": "dns" }] }]);
        let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress });
        store.apply(kind, json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": spec })).unwrap();

        let mut changes = store.changes().unwrap();
        let PolicyText { text, document } = changes.policies.remove("networkpolicy/shop/web").unwrap().unwrap();
        let source = source("networkpolicy/shop/web", text);
        let known = policy::read(&source, &[document.unwrap()]).unwrap();
        assert_eq!(format!("{known:?}"), format!("{:?}", policy::parse(&source)));
        assert_eq!(known.unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn a_policy_is_read_as_it_was_told(spec in json()) {
            let kind = KINDS.iter().find(|kind| kind.name == "Intent").unwrap();
            let key = Key::new("shop".to_owned(), "web".to_owned());
            let text = text(kind, &key, &spec).unwrap().text;
            let documents = tree::documents(&source("shop/web", text.as_str())).unwrap_or_else(|error| panic!("{error}\n{text}"));
            prop_assert_eq!(documents.len(), 1);
            prop_assert_eq!(&documents[0].value.json()["spec"], &spec, "{}", text);
        }
    }
}
