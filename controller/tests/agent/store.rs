//! What becomes of a revision between the files, the database and the node.

use std::{fs, thread};

use bulkhead_controller::{
    agent::{Agent, StartError},
    audit::{Wanted, verify_state},
    input::Inputs,
    store::{Author, Condition, Document, Draft, Head, Origin, Store, StoreError, Summary},
};
use bulkhead_dataplane::store::{Prefixes4, Store as _};
use bulkhead_fixtures::skip;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use crate::support::{Home, INTENT, WORKLOADS};

const BAD: &str = "services: {}\n";

/// What an agent writes that ends before it knows what became of it.
fn staged(intent: &str) -> Draft {
    Draft {
        node: "n1".to_owned(),
        author: Author::files(),
        origin: Origin::Files,
        time: 1_700_000_000,
        reason: String::new(),
        inputs: Inputs {
            policies: [("shop.yaml".to_owned(), intent.to_owned())].into(),
            workloads: ("workloads.yaml".to_owned(), WORKLOADS.to_owned()),
            ..Inputs::default()
        },
        summary: Summary::default(),
        documents: None,
    }
}

fn history(home: &Home) -> Vec<(u64, Condition)> {
    let store = Store::open(&home.state()).unwrap();
    store
        .reader()
        .revisions(100, None)
        .unwrap()
        .into_iter()
        .map(|Head { number, condition, .. }| (number, condition))
        .collect()
}

fn rules(home: &Home) -> Vec<String> {
    bulkhead_dataplane::names::Names::load(&home.state()).unwrap().rules.into_values().map(|rule| rule.name).collect()
}

#[test]
fn what_was_staged_when_an_agent_ended_is_tried_first() {
    let home = Home::new();
    drop(home.agent());
    let author = Author { uid: Some(1000), name: "somebody".to_owned() };
    let draft = Draft { author: author.clone(), origin: Origin::Api, ..staged(&INTENT.replace("5432", "5433")) };
    Store::open(&home.state()).unwrap().stage(&draft).unwrap();
    home.write("policies/shop.yaml", BAD);
    let agent = home.agent();
    assert_eq!(agent.health().revision, 2);
    let head = Store::open(&home.state()).unwrap().reader().latest().unwrap().unwrap();
    assert_eq!((head.author, head.origin), (author, Origin::Api));
    assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
    assert_eq!(history(&home), [(2, Condition::InForce), (1, Condition::Superseded)]);
}

#[test]
fn what_was_staged_and_does_not_fit_gives_way_to_what_was_in_force() {
    let home = Home::new();
    drop(home.agent());
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    let large = INTENT.replace("db: {}", "db: { accepts: [stripe:1] }");
    Store::open(&home.state()).unwrap().stage(&staged(&large)).unwrap();
    for files in [large.as_str(), BAD] {
        home.write("policies/shop.yaml", files);
        let agent = home.agent();
        assert_eq!(agent.health().revision, 1);
        assert!(agent.health().refused);
        let [(2, Condition::Refused { why }), (1, Condition::InForce)] = &history(&home)[..] else {
            panic!("{:?}", history(&home))
        };
        assert!(why.contains("PREFIXES4"), "{why}");
    }
}

#[test]
fn files_that_changed_replace_what_was_staged() {
    let home = Home::new();
    drop(home.agent());
    Store::open(&home.state()).unwrap().stage(&staged(&INTENT.replace("5432", "5433"))).unwrap();
    // Back to what is in force.
    drop(home.agent());
    let [(2, Condition::Refused { why }), (1, Condition::InForce)] = &history(&home)[..] else {
        panic!("{:?}", history(&home))
    };
    assert!(why.contains("found other input"), "{why}");

    Store::open(&home.state()).unwrap().stage(&staged(&INTENT.replace("5432", "5433"))).unwrap();
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5434"));
    assert_eq!(home.agent().health().revision, 3);
    assert_eq!(history(&home)[..2], [(3, Condition::InForce), (2, Condition::Superseded)]);
}

#[test]
fn what_a_kernel_refuses_is_staged_once_and_closed_when_it_is_not_wanted_any_more() {
    let home = Home::new();
    let mut agent = home.agent();
    home.store.memory().budget = Some(3);
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    for _ in 0..3 {
        agent.refresh();
    }
    assert_eq!(history(&home), [(2, Condition::Staged), (1, Condition::InForce)]);
    home.store.memory().budget = None;
    home.write("policies/shop.yaml", INTENT);
    agent.refresh();
    assert!(!agent.health().failed);
    assert!(matches!(&history(&home)[..], [(2, Condition::Refused { .. }), (1, Condition::InForce)]));
}

#[test]
fn what_does_not_fit_is_refused_under_one_number() {
    let home = Home::new();
    let mut agent = home.agent();
    home.store.set_limit::<Prefixes4>(home.store.entries::<Prefixes4>().unwrap().len());
    home.write("policies/shop.yaml", &INTENT.replace("db: {}", "db: { accepts: [stripe:1] }"));
    for _ in 0..3 {
        // As when the node's network changes: everything is tried again.
        home.links.network().attached.remove("veth-db");
        agent.check();
        agent.refresh();
    }
    assert!(matches!(&history(&home)[..], [(2, Condition::Refused { .. }), (1, Condition::InForce)]));
    assert_eq!(agent.health().revision, 1);
}

#[test]
fn a_database_that_cannot_be_used_is_kept_aside() {
    for damage in [
        b"{\"format\":1}".to_vec(),
        b"SQLite format 3\0 and nothing of the kind".repeat(500),
        // A schema of a later version.
        {
            let directory = tempfile::TempDir::new().unwrap();
            drop(Store::open(directory.path()).unwrap());
            let file = directory.path().join("bulkhead.db");
            rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 7).unwrap();
            fs::read(file).unwrap()
        },
    ] {
        let home = Home::new();
        drop(home.agent());
        let file = home.state().join("bulkhead.db");
        fs::write(&file, &damage).unwrap();
        home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
        let agent = home.agent();
        assert_eq!((agent.health().revision, agent.health().failed), (1, false));
        assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
        let aside: Vec<_> = fs::read_dir(home.state())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().contains("bulkhead.db.unusable-"))
            .filter(|path| !["-wal", "-shm"].iter().any(|end| path.to_str().unwrap().ends_with(end)))
            .collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert_eq!(fs::read(&aside[0]).unwrap(), damage);
    }
}

#[test]
fn a_database_that_alone_knew_what_was_in_force_is_not_gone_on_without() {
    let home = Home::new();
    drop(home.agent());
    let mut store = Store::open(&home.state()).unwrap();
    let document = Document { text: INTENT.to_owned(), author: Author::files(), time: 1 };
    let documents = Some([("db".to_owned(), document)].into());
    let number = store.stage(&Draft { documents, ..staged(INTENT) }).unwrap().head.number;
    store.commit(number).unwrap();
    drop(store);
    let file = home.state().join("bulkhead.db");
    fs::write(&file, "something else").unwrap();
    let node = home.node().unwrap();
    let before = home.store.snapshot();
    let Err(StartError::Store(error @ StoreError::DocumentsInForce { .. })) = Agent::start(node, home.settings())
    else {
        panic!("started")
    };
    for said in ["bulkhead.db: file is not a database", "remove", "api-documents-in-force"] {
        assert!(error.to_string().contains(said), "{said} in {error}");
    }
    assert!(home.store.snapshot() == before, "what is in force stays");
    assert_eq!(fs::read_to_string(&file).unwrap(), "something else");

    fs::remove_file(home.state().join("api-documents-in-force")).unwrap();
    home.agent();
}

/// Action, outcome, revisions before and after, and detail of each record.
fn audited(home: &Home) -> Vec<(String, String, Option<u64>, Option<u64>, String)> {
    verify_state(&home.state(), &Wanted::default()).unwrap_or_else(|broken| panic!("{broken}"));
    let text = fs::read_to_string(home.state().join("audit.jsonl")).unwrap();
    let records = text.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let word = |key: &str| record[key].as_str().unwrap().to_owned();
        let number = |key: &str| record[key].as_u64();
        assert_eq!(record["target"], "n1");
        assert_eq!(record["actor"]["name"], if record["action"] == "revision.apply" { "files" } else { "agent" });
        (word("action"), word("outcome"), number("revision_before"), number("revision_after"), word("detail"))
    });
    records.collect()
}

#[test]
fn what_files_do_and_what_is_refused_is_recorded_once() {
    let home = Home::new();
    home.write("policies/shop.yaml", "services: {}\n");
    assert!(home.start().is_err());
    home.write("policies/shop.yaml", INTENT);
    let mut agent = home.agent();
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
    agent.refresh();
    home.write("policies/shop.yaml", &INTENT.replace("db:5432", "bd:5432"));
    for _ in 0..3 {
        agent.check();
        agent.refresh();
    }
    home.store.memory().budget = Some(0);
    home.write("policies/shop.yaml", &INTENT.replace("5432", "5434"));
    for _ in 0..3 {
        agent.refresh();
    }
    home.store.memory().budget = None;
    agent.refresh();
    drop(agent);
    drop(home.agent());

    let records = audited(&home);
    let short: Vec<_> = records
        .iter()
        .map(|(action, outcome, before, after, _)| (action.as_str(), outcome.as_str(), *before, *after))
        .collect();
    assert_eq!(
        short,
        [
            ("agent.start", "refused", None, None),
            ("agent.start", "ok", None, Some(1)),
            ("revision.apply", "ok", None, Some(1)),
            ("revision.apply", "ok", Some(1), Some(2)),
            ("revision.apply", "refused", Some(2), Some(2)),
            ("revision.apply", "failed", Some(2), Some(2)),
            ("revision.apply", "ok", Some(2), Some(3)),
            ("agent.start", "ok", Some(3), Some(3)),
        ]
    );
    assert!(records[0].4.contains("shop.yaml:1"), "{}", records[0].4);
    assert!(records[4].4.contains("did you mean `db`?"), "{}", records[4].4);
}

/// A file system of its own for a directory, in a mount namespace that ends with the thread.
struct Small<'a>(&'a std::path::Path);

impl<'a> Small<'a> {
    fn new(at: &'a std::path::Path, size: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(format!("size={size}").as_str())).unwrap();
        Self(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Takes all the space that is left.
fn fill(home: &Home) {
    for size in [1 << 16, 1 << 12, 1] {
        let mut number = 0;
        while fs::write(home.state().join(format!("filler-{size}-{number}")), vec![1; size]).is_ok() {
            number += 1;
        }
    }
}

fn make_room(home: &Home) {
    for entry in fs::read_dir(home.state()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("filler") {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn on_a_full_disk_nothing_changes_and_the_last_good_revision_starts() {
    if !skip::require("root, to mount", skip::root()) {
        return;
    }
    let on_a_full_disk = || {
        let home = Home::new();
        let state = home.state();
        let small = Small::new(&state, "2m");
        let mut agent = home.agent();
        let before = home.store.snapshot();
        fill(&home);
        home.write("policies/shop.yaml", &format!("{}# {}\n", INTENT.replace("5432", "5433"), "x".repeat(100_000)));
        for _ in 0..4 {
            agent.refresh();
        }
        assert!(home.store.snapshot() == before);
        let failures = audited(&home).into_iter().filter(|(_, outcome, ..)| outcome == "failed").count();
        assert!(failures <= 1, "the log has no space for more than a bit, and is told once");
        assert_eq!((agent.health().revision, agent.health().failed, agent.health().refused), (1, true, false));
        // A later start falls back; what it says is in the log.
        drop(agent);
        let mut agent: Agent<_> = home.agent();
        assert_eq!(agent.health().revision, 1);
        assert!(agent.refused().contains("no space is left, nothing was changed"), "{}", agent.refused());
        assert_eq!(home.attached(), ["veth-db", "veth-web"]);

        make_room(&home);
        agent.refresh();
        assert_eq!((agent.health().revision, agent.health().failed, agent.refused()), (2, false, ""));
        assert!(rules(&home).contains(&"shop: web calls db:5433/tcp".to_owned()));
        drop((agent, small));
    };
    thread::scope(|scope| scope.spawn(on_a_full_disk).join().unwrap());
}
