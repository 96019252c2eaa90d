//! What several tests need.

use std::collections::BTreeMap;

use bulkhead_controller::{
    audit::{Event, Outcome},
    input::Inputs,
    store::{Author, Document, Draft, Origin, Reader, Revision, Summary},
};
use serde_json::Value;
use tempfile::TempDir;

/// In memory where the machine has that: these tests write thousands of small files, and what a disk does with them is not their subject.
pub(crate) fn directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// A draft whose texts tell which one it is.
pub(crate) fn draft(version: u64, bytes: usize, documents: Option<u64>) -> Draft {
    let text = format!("# version {version}\n{}", "x".repeat(bytes));
    let document = |version| Document { text: format!("# document {version}"), author: author(), time: version };
    Draft {
        node: "n1".to_owned(),
        author: author(),
        origin: Origin::Files,
        time: version,
        reason: format!("version {version}"),
        inputs: Inputs {
            policies: [("a.yaml".to_owned(), text)].into(),
            workloads: ("w.yaml".to_owned(), String::new()),
            ..Inputs::default()
        },
        summary: Summary { rules: 3, ..Summary::default() },
        // 0 stands for a set without documents.
        documents: documents
            .map(|version| (version > 0).then(|| (format!("d{version}"), document(version))).into_iter().collect()),
    }
}

pub(crate) fn author() -> Author {
    Author { uid: Some(1000), name: "somebody".to_owned() }
}

/// Everything that a database says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dump {
    /// The newest first.
    pub(crate) revisions: Vec<Revision>,
    pub(crate) settings: BTreeMap<String, Value>,
}

pub(crate) const KEYS: [&str; 2] = ["confirm", "held"];

pub(crate) fn dump(reader: &Reader) -> Dump {
    let heads = reader.revisions(1000, None).unwrap();
    let revisions: Vec<_> = heads.iter().map(|head| reader.revision(head.number).unwrap().unwrap()).collect();
    assert!(heads.iter().eq(revisions.iter().map(|revision| &revision.head)), "list and revisions differ");
    let setting = |key: &str| Some((key.to_owned(), reader.setting(key).unwrap()?));
    Dump { revisions, settings: KEYS.into_iter().filter_map(setting).collect() }
}

pub(crate) fn event(number: u64, detail: &str) -> Event {
    Event {
        actor: author(),
        action: "revision.apply".to_owned(),
        target: "n1".to_owned(),
        revision_before: number.checked_sub(1),
        revision_after: Some(number),
        outcome: Outcome::Ok,
        detail: detail.to_owned(),
    }
}
