//! Intents and Guards as objects, beside what they say: who they are, which edition they are, what is said of them. And the nodes.
//!
//! Of what only changes here nobody else hears: a status that is written is no news of a policy.

use std::{collections::BTreeMap, sync::Arc};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde_json::Value;

use super::{
    kinds::{KINDS, Key, NODES, OURS},
    store,
};

/// An Intent or a Guard.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    /// Place of its kind.
    pub(super) kind: usize,
    pub(super) key: Key,
    /// Unique, also among objects of one name.
    pub(super) uid: String,
    /// Counts what people change of it.
    pub(super) generation: i64,
    /// As the agent is given it; empty where it cannot be written.
    pub(super) text: Arc<str>,
    /// What is said of it.
    pub(super) status: Value,
}

/// Those that are there, and while a list comes those of it.
#[derive(Debug)]
struct Table<T> {
    known: BTreeMap<Key, T>,
    coming: BTreeMap<Key, T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), coming: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    fn hear(&mut self, event: &Event<DynamicObject>, read: impl FnOnce(&DynamicObject) -> T) {
        match event {
            Event::Init => self.coming = BTreeMap::new(),
            Event::InitApply(object) => _ = self.coming.insert(key(object), read(object)),
            Event::InitDone => self.known = std::mem::take(&mut self.coming),
            Event::Apply(object) => _ = self.known.insert(key(object), read(object)),
            Event::Delete(object) => _ = self.known.remove(&key(object)),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Roster {
    ours: [Table<Arc<Object>>; OURS.len()],
    /// Unique ids of nodes.
    nodes: Table<String>,
}

impl Roster {
    /// Takes what a watch tells. Whether people may want to hear how it stands now.
    pub(super) fn hear(&mut self, kind: usize, event: &Event<DynamicObject>) -> bool {
        if let Some(at) = OURS.iter().position(|&ours| ours == kind) {
            let matters = match event {
                Event::Apply(object) => self.ours[at].known.get(&key(object)).is_none_or(|known| !is(known, object)),
                Event::Init | Event::InitApply(_) => false,
                Event::InitDone | Event::Delete(_) => true,
            };
            self.ours[at].hear(event, |object| Arc::new(read(kind, object)));
            return matters;
        }
        if kind == NODES {
            self.nodes.hear(event, |node| node.metadata.uid.clone().unwrap_or_default());
        }
        false
    }

    /// The cluster has no such kind.
    pub(super) fn absent(&mut self, kind: usize) {
        if let Some(at) = OURS.iter().position(|&ours| ours == kind) {
            self.ours[at] = Table::default();
        }
    }

    /// Those of both kinds, by the names that policies have.
    pub(super) fn objects(&self) -> BTreeMap<String, Arc<Object>> {
        let objects = self.ours.iter().flat_map(|table| table.known.values());
        objects.map(|object| (KINDS[object.kind].full_name(&object.key), Arc::clone(object))).collect()
    }

    /// Unique id of a node.
    pub(super) fn node(&self, name: &str) -> Option<&str> {
        self.nodes.known.get(&Key::new(String::new(), name.to_owned())).map(String::as_str)
    }

    /// Unique ids of nodes by their names.
    pub(super) fn nodes(&self) -> BTreeMap<String, String> {
        self.nodes.known.iter().map(|(key, uid)| (key.name.clone(), uid.clone())).collect()
    }

    /// What was written of one, before the watch tells it.
    pub(super) fn say(&mut self, of: &Object, status: &Value) {
        let tables = OURS.iter().zip(&mut self.ours).filter(|(kind, _)| **kind == of.kind);
        for known in tables.filter_map(|(_, table)| table.known.get_mut(&of.key)).filter(|known| known.uid == of.uid) {
            Arc::make_mut(known).status = status.clone();
        }
    }
}

fn key(object: &DynamicObject) -> Key {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Key::new(text(&object.metadata.namespace), text(&object.metadata.name))
}

fn is(known: &Object, object: &DynamicObject) -> bool {
    Some(&known.uid) == object.metadata.uid.as_ref() && Some(known.generation) == object.metadata.generation
}

fn read(kind: usize, object: &DynamicObject) -> Object {
    let key = key(object);
    let text = store::text(&KINDS[kind], &key, &object.data["spec"]).map(|written| written.text).unwrap_or_default();
    Object {
        kind,
        uid: object.metadata.uid.clone().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        text: text.into(),
        status: object.data.get("status").cloned().unwrap_or_default(),
        key,
    }
}
