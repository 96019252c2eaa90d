//! The database against a list in memory.

use std::collections::BTreeMap;

use bulkhead_controller::store::{Condition, Document, Draft, Head, Reader, Retention, Revision, Store, StoreError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Dump, KEYS, directory, draft, dump};

const RETENTION: Retention = Retention { revisions: 4, bytes: 1500, predecessors: 2 };

#[derive(Clone, Debug)]
enum Change {
    Stage {
        version: u64,
        bytes: usize,
        documents: Option<u64>,
    },
    /// Of the number so far below the latest.
    Commit(u64),
    Refuse(u64),
    Set(usize, u64),
    Unset(usize),
    Reopen,
    /// Both, or none where the latter fails.
    Together(u64, u64),
}

fn change() -> impl Strategy<Value = Change> {
    let stage = (1..4_u64, prop_oneof![Just(0_usize), Just(400), Just(2000)], proptest::option::of(0..3_u64))
        .prop_map(|(version, bytes, documents)| Change::Stage { version, bytes, documents });
    let below = prop_oneof![8 => Just(0_u64), 1 => 1..4_u64];
    prop_oneof![
        6 => stage,
        5 => below.clone().prop_map(Change::Commit),
        2 => below.clone().prop_map(Change::Refuse),
        1 => (0..KEYS.len(), 0..9_u64).prop_map(|(key, value)| Change::Set(key, value)),
        1 => (0..KEYS.len()).prop_map(Change::Unset),
        1 => Just(Change::Reopen),
        1 => (below, 0..9_u64).prop_map(|(below, value)| Change::Together(below, value)),
    ]
}

/// Says the same as the database by the plainest means.
#[derive(Clone, Default)]
struct Model {
    /// The oldest first.
    revisions: Vec<Revision>,
    settings: BTreeMap<String, Value>,
}

impl Model {
    fn find(&mut self, condition: &Condition) -> Option<&mut Revision> {
        self.revisions.iter_mut().find(|revision| revision.head.condition == *condition)
    }

    fn stage(&mut self, draft: &Draft) {
        let in_force = self.find(&Condition::InForce).cloned();
        let documents =
            draft.documents.clone().unwrap_or_else(|| in_force.clone().map(|r| r.documents).unwrap_or_default());
        let mut head = Head {
            number: self.revisions.last().map_or(1, |last| last.head.number + 1),
            node: draft.node.clone(),
            parent: in_force.map(|revision| revision.head.number),
            author: draft.author.clone(),
            origin: draft.origin,
            time: draft.time,
            reason: draft.reason.clone(),
            summary: draft.summary.clone(),
            condition: Condition::Staged,
            took_effect: false,
        };
        if let Some(last) = self.revisions.last() {
            let tried = matches!(last.head.condition, Condition::Staged | Condition::Refused { .. });
            let as_new =
                Head { number: head.number, time: head.time, condition: Condition::Staged, ..last.head.clone() };
            if tried && as_new == head && (&last.inputs, &last.documents) == (&draft.inputs, &documents) {
                head.number = last.head.number;
                self.revisions.pop();
            }
        }
        if let Some(staged) = self.find(&Condition::Staged) {
            staged.head.condition = Condition::Superseded;
        }
        self.revisions.push(Revision { head, inputs: draft.inputs.clone(), documents });
        self.prune();
    }

    fn commit(&mut self, number: u64) -> bool {
        if self.find(&Condition::InForce).is_some_and(|revision| revision.head.number == number) {
            return true;
        }
        if self.find(&Condition::Staged).is_none_or(|revision| revision.head.number != number) {
            return false;
        }
        if let Some(before) = self.find(&Condition::InForce) {
            before.head.condition = Condition::Superseded;
        }
        let staged = self.find(&Condition::Staged).unwrap();
        (staged.head.condition, staged.head.took_effect) = (Condition::InForce, true);
        self.prune();
        true
    }

    fn refuse(&mut self, number: u64) -> bool {
        match self.find(&Condition::Staged).filter(|revision| revision.head.number == number) {
            Some(staged) => staged.head.condition = Condition::Refused { why: "no".to_owned() },
            None => return false,
        }
        true
    }

    fn prune(&mut self) {
        let (mut kept, mut bytes, mut effective) = (Vec::new(), 0, 0);
        for (nth, revision) in self.revisions.iter().rev().enumerate() {
            bytes += serde_json::to_string(&revision.inputs).unwrap().len() as u64;
            bytes += serde_json::to_string(&revision.documents).unwrap().len() as u64;
            effective += u64::from(revision.head.took_effect);
            let needed = matches!(revision.head.condition, Condition::Staged | Condition::InForce)
                || revision.head.took_effect && effective <= RETENTION.predecessors + 1;
            if needed || (nth as u64) < RETENTION.revisions && bytes <= RETENTION.bytes {
                kept.insert(0, revision.clone());
            }
        }
        self.revisions = kept;
    }

    fn dump(&self) -> Dump {
        Dump { revisions: self.revisions.iter().rev().cloned().collect(), settings: self.settings.clone() }
    }

    fn documents(&mut self) -> BTreeMap<String, Document> {
        self.find(&Condition::InForce).map(|revision| revision.documents.clone()).unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if bulkhead_fixtures::skip::long() { 1000 } else { 128 }))]

    #[test]
    fn it_says_what_a_list_says(changes in proptest::collection::vec(change(), 1..40)) {
        let directory = directory();
        let mut store = Store::open_with(directory.path(), RETENTION).unwrap();
        let mut model = Model::default();
        for change in changes {
            let latest = model.revisions.last().map_or(0, |last| last.head.number);
            match change {
                Change::Stage { version, bytes, documents } => {
                    let draft = draft(version, bytes, documents);
                    let staged = store.stage(&draft).unwrap();
                    model.stage(&draft);
                    prop_assert_eq!(Some(&staged), model.revisions.last());
                }
                Change::Commit(below) => {
                    let number = latest.saturating_sub(below);
                    let done = store.commit(number);
                    prop_assert_eq!(done.is_ok(), model.commit(number), "{:?}", done);
                }
                Change::Refuse(below) => {
                    let number = latest.saturating_sub(below);
                    let done = store.refuse(number, "no");
                    prop_assert_eq!(done.is_ok(), model.refuse(number), "{:?}", done);
                }
                Change::Set(key, value) => {
                    store.set(KEYS[key], &value).unwrap();
                    model.settings.insert(KEYS[key].to_owned(), json!(value));
                }
                Change::Unset(key) => {
                    prop_assert_eq!(store.unset(KEYS[key]).unwrap(), model.settings.remove(KEYS[key]).is_some());
                }
                Change::Reopen => {
                    drop(store);
                    store = Store::open_with(directory.path(), RETENTION).unwrap();
                }
                Change::Together(below, value) => {
                    let number = latest.saturating_sub(below);
                    let done = store.write(|write| {
                        write.set(KEYS[0], &value)?;
                        write.commit(number)
                    });
                    if model.commit(number) {
                        done.unwrap();
                        model.settings.insert(KEYS[0].to_owned(), json!(value));
                    } else {
                        prop_assert!(matches!(done, Err(StoreError::NotStaged { .. })), "{:?}", done);
                    }
                }
            }
            prop_assert_eq!(dump(store.reader()), model.dump());
            prop_assert_eq!(store.reader().documents().unwrap(), model.documents());
            // A reader beside the writer sees the same.
            let reader = Reader::open(directory.path()).unwrap().unwrap();
            prop_assert_eq!(dump(&reader), model.dump());
            let with_documents = model.revisions.iter().any(|revision| {
                matches!(revision.head.condition, Condition::Staged | Condition::InForce) && !revision.documents.is_empty()
            });
            prop_assert_eq!(directory.path().join("api-documents-in-force").exists(), with_documents);
        }
    }
}

#[test]
fn lists_are_paged() {
    let directory = directory();
    let mut store = Store::open(directory.path()).unwrap();
    for version in 1..=5 {
        let number = store.stage(&draft(version, 0, None)).unwrap().head.number;
        store.commit(number).unwrap();
    }
    let numbers = |limit, before| -> Vec<u64> {
        store.reader().revisions(limit, before).unwrap().iter().map(|head| head.number).collect()
    };
    assert_eq!(numbers(2, None), [5, 4]);
    assert_eq!(numbers(2, Some(4)), [3, 2]);
    assert_eq!(numbers(9, Some(2)), [1]);
    assert_eq!(numbers(0, None), [0; 0]);
}
