//! The database as it is after each call that changes a file, opened again: it is the old or the new one, never an error and never a mixture.
//!
//! A process that is killed leaves what it has written. A machine that loses power leaves what was synced, and of what came later any part, the last
//! of it torn.

use std::{collections::BTreeMap, fs, path::Path};

use bulkhead_controller::store::Store;
use bulkhead_fixtures::skip;

use crate::{
    support::{Dump, KEYS, directory, draft, dump},
    vfs::{Call, listen, note},
};

/// What is done, and the contents after each transaction, the empty database first.
struct Recording {
    calls: Vec<Call>,
    contents: Vec<Dump>,
}

/// Sets up a database and changes it; it is closed and opened in between, so that the log is carried over as well.
fn record(rounds: u64) -> Recording {
    let directory = directory();
    let mut contents = vec![Dump::default()];
    let calls = listen(|| {
        let mut version = 0;
        for round in 0..rounds {
            let mut store = Store::open(directory.path()).unwrap();
            let mut done = |store: &Store| {
                note(Call::Done);
                contents.push(dump(store.reader()));
            };
            for _ in 0..3 {
                version += 1;
                let number = store.stage(&draft(version, 9000, Some(version))).unwrap().head.number;
                done(&store);
                if version % 4 == 0 {
                    store.refuse(number, "no").unwrap();
                } else {
                    store
                        .write(|write| {
                            write.set(KEYS[0], &version)?;
                            write.commit(number)
                        })
                        .unwrap();
                }
                done(&store);
            }
            store.set(KEYS[1], &round).unwrap();
            done(&store);
        }
    });
    Recording { calls, contents }
}

type Files = BTreeMap<String, Vec<u8>>;

fn apply(files: &mut Files, call: &Call) {
    match call {
        Call::Write { file, offset, bytes } => {
            let file = files.entry(file.clone()).or_default();
            file.resize(file.len().max(offset + bytes.len()), 0);
            file[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Call::Truncate { file, len } => files.entry(file.clone()).or_default().resize(*len, 0),
        Call::Delete { file } => drop(files.remove(file)),
        Call::Sync { .. } | Call::Done => {}
    }
}

fn killed(calls: &[Call]) -> Files {
    let mut files = Files::new();
    calls.iter().for_each(|call| apply(&mut files, call));
    files
}

fn unpowered(calls: &[Call], random: &mut fastrand::Rng) -> Files {
    let synced =
        |name: &str| calls.iter().rposition(|call| matches!(call, Call::Sync { file } if file == name)).unwrap_or(0);
    let mut files = Files::new();
    for (index, call) in calls.iter().enumerate() {
        let safe = match call {
            Call::Write { file, .. } | Call::Truncate { file, .. } => index < synced(file),
            // SQLite syncs the directory after those that matter; of the others both is tried.
            Call::Delete { .. } => index + 1 < calls.len(),
            Call::Sync { .. } | Call::Done => true,
        };
        match call {
            _ if safe || random.bool() => apply(&mut files, call),
            Call::Write { file, offset, bytes } if random.bool() => {
                let bytes = bytes[..random.usize(0..bytes.len())].to_vec();
                apply(&mut files, &Call::Write { file: file.clone(), offset: *offset, bytes });
            }
            _ => {}
        }
    }
    files
}

fn reopen(directory: &Path, files: &Files) -> Dump {
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
    }
    let store = Store::open(directory).unwrap_or_else(|error| panic!("{error}"));
    dump(store.reader())
}

#[test]
fn after_each_call_the_old_or_the_new_revision_is_there() {
    let long = skip::long();
    let Recording { calls, contents } = record(if long { 6 } else { 3 });
    let mut random = fastrand::Rng::with_seed(11);
    let (mut met_old, mut met_new) = (0, 0);
    for end in 0..=calls.len() {
        let calls = &calls[..end];
        let done = calls.iter().filter(|call| matches!(call, Call::Done)).count();
        let lost = (0..if long { 8 } else { 3 }).map(|_| unpowered(calls, &mut random));
        for (image, files) in std::iter::once(killed(calls)).chain(lost).enumerate() {
            let directory = directory();
            let found = reopen(directory.path(), &files);
            let old = found == contents[done];
            let new = contents.get(done + 1) == Some(&found);
            assert!(old || new, "image {image} after {end} calls, {done} transactions: {:?}", found.revisions);
            met_old += usize::from(old);
            met_new += usize::from(new);
        }
    }
    // Both were there to be met.
    assert!(met_old > calls.len() && met_new > contents.len(), "{met_old} old, {met_new} new");
}

#[test]
fn a_log_that_is_cut_or_flipped_anywhere_is_an_older_state_or_refused() {
    let Recording { calls, contents } = record(1);
    // Before it is closed, everything is in the log.
    let last = calls.iter().rposition(|call| matches!(call, Call::Done)).unwrap();
    let files = killed(&calls[..=last]);
    let log = &files["bulkhead.db-wal"];
    let mut random = fastrand::Rng::with_seed(12);
    let frames = (0..).map(|frame| 32 + frame * (24 + 4096)).take_while(|&end| end <= log.len());
    let cuts: Vec<_> = frames.chain((0..60).map(|_| random.usize(0..log.len()))).collect();
    for cut in cuts {
        let directory = directory();
        let mut cut_files = files.clone();
        cut_files.insert("bulkhead.db-wal".to_owned(), log[..cut].to_vec());
        let found = reopen(directory.path(), &cut_files);
        assert!(contents.contains(&found), "cut at {cut}: {:?}", found.revisions);
    }
    for _ in 0..60 {
        let directory = directory();
        let mut flipped = files.clone();
        let at = random.usize(0..log.len());
        flipped.get_mut("bulkhead.db-wal").unwrap()[at] ^= 1 << random.u8(0..8);
        let found = reopen(directory.path(), &flipped);
        assert!(contents.contains(&found), "flipped at {at}: {:?}", found.revisions);
    }
}

#[test]
fn a_text_that_changed_by_itself_is_not_believed() {
    let directory = directory();
    let mut store = Store::open(directory.path()).unwrap();
    let number = store.stage(&draft(1, 50_000, None)).unwrap().head.number;
    store.commit(number).unwrap();
    drop(store);
    let file = directory.path().join("bulkhead.db");
    let mut bytes = fs::read(&file).unwrap();
    // SQLite finds nothing wrong with another letter in a text.
    let at = bytes.windows(20).position(|window| window == [b'x'; 20]).unwrap();
    bytes[at] = b'y';
    fs::write(&file, bytes).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(error.is_unusable());
    assert!(error.to_string().contains("the texts of revision 1 are not what was written"), "{error}");
}
