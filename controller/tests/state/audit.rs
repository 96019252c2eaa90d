//! Writing the log: crashes, full files, two writers.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bulkhead_controller::audit::{AuditError, Head, Limits, Log, Wanted, verify, verify_state};
use serde_json::Value;

use crate::support::{directory, event};

fn current(state: &Path) -> PathBuf {
    state.join("audit.jsonl")
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn records_say_who_what_and_when_and_follow_each_other() {
    let directory = directory();
    let mut log = Log::new(directory.path());
    let heads: Vec<Head> = (1..4).map(|number| log.record(&event(number, "")).unwrap()).collect();
    drop(log);
    let lines = records(&current(directory.path()));
    let keys: Vec<_> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "seq",
        "time",
        "actor",
        "action",
        "target",
        "revision_before",
        "revision_after",
        "outcome",
        "detail",
        "prev",
        "hash",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(lines[2]["prev"], lines[1]["hash"]);
    assert_eq!(lines[2]["hash"], heads[2].hash);
    assert!(humantime::parse_rfc3339(lines[0]["time"].as_str().unwrap()).is_ok());
    let mode = fs::metadata(current(directory.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (verified, files) = verify_state(directory.path(), &Wanted::default()).unwrap();
    assert_eq!((verified.records, files, verified.head.as_ref()), (3, 1, heads.last()));
    // An older head says how much came after.
    let wanted = Wanted { head: Some(heads[0].hash.clone()), after: None };
    assert_eq!(verify_state(directory.path(), &wanted).unwrap().0.since, Some(2));
}

#[test]
fn a_line_that_a_crash_cut_anywhere_is_kept_and_named() {
    let written = directory();
    let mut log = Log::new(written.path());
    log.record(&event(1, "")).unwrap();
    let before = fs::read(current(written.path())).unwrap();
    log.record(&event(2, "detail")).unwrap();
    drop(log);
    let whole = fs::read(current(written.path())).unwrap();
    for end in before.len()..=whole.len() {
        let crashed = directory();
        fs::write(current(crashed.path()), &whole[..end]).unwrap();
        let mut log = Log::new(crashed.path());
        log.record(&event(3, "")).unwrap();
        drop(log);
        let after = fs::read(current(crashed.path())).unwrap();
        assert!(after.starts_with(&whole[..end]), "what was there stays");
        let (verified, _) =
            verify_state(crashed.path(), &Wanted::default()).unwrap_or_else(|broken| panic!("{end}: {broken}"));
        // Without its newline a record is whole all the same.
        let torn = end > before.len() && end < whole.len() - 1;
        assert_eq!(verified.torn.len(), usize::from(torn), "{end}");
        assert_eq!(verified.records, if torn || end >= whole.len() - 1 { 3 } else { 2 });
        if torn {
            let named = &records(&current(crashed.path()))[1];
            assert_eq!(named["action"], "audit.torn");
            assert_eq!(named["torn"]["bytes"], end - before.len() + 1);
        }
    }
}

#[test]
fn a_crash_while_a_torn_line_is_closed_is_closed_as_well() {
    let written = directory();
    let file = current(written.path());
    let mut log = Log::new(written.path());
    log.record(&event(1, "")).unwrap();
    drop(log);
    let append = |bytes: &[u8]| fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(bytes).unwrap();
    for left in ["{\"seq\":2,\"ti", "{\"seq\":2\n", "{\"seq\":2\n{\"se", "\0\0\0\0", "\n\n", "\n\0\n{"] {
        append(left.as_bytes());
        Log::new(written.path()).record(&event(2, "")).unwrap();
        verify_state(written.path(), &Wanted::default()).unwrap_or_else(|broken| panic!("{left:?}: {broken}"));
    }
}

#[test]
fn a_record_that_was_changed_is_not_taken_for_a_torn_one() {
    let written = directory();
    let file = current(written.path());
    let mut log = Log::new(written.path());
    log.record(&event(1, "")).unwrap();
    log.record(&event(2, "the truth")).unwrap();
    drop(log);
    let text = fs::read_to_string(&file).unwrap().replace("the truth", "something");
    fs::write(&file, text).unwrap();
    Log::new(written.path()).record(&event(3, "")).unwrap();
    let broken = verify_state(written.path(), &Wanted::default()).unwrap_err();
    assert_eq!(broken.line, Some(2));
    assert!(broken.why.contains("were changed"), "{broken}");
}

#[test]
fn the_chain_goes_on_over_files() {
    let directory = directory();
    let limits = Limits { bytes: 1500 };
    let mut heads = Vec::new();
    for number in 1..=20 {
        // As often with an agent that has just started as with one that lives.
        let mut log = Log::with_limits(directory.path(), limits);
        heads.push(log.record(&event(2 * number, "")).unwrap());
        heads.push(log.record(&event(2 * number + 1, "")).unwrap());
    }
    let wanted = Wanted { head: Some(heads[3].hash.clone()), after: None };
    let (verified, files) = verify_state(directory.path(), &wanted).unwrap();
    assert_eq!((verified.records, verified.head, verified.since), (40, heads.last().cloned(), Some(36)));
    assert!(files > 5, "{files} files");

    // The oldest file is archived: the rest is whole with the hash that it ended with, and only so.
    let first = directory.path().join("audit-000001.jsonl");
    let last = records(&first).last().unwrap()["hash"].as_str().unwrap().to_owned();
    fs::rename(&first, directory.path().join("elsewhere")).unwrap();
    let broken = verify_state(directory.path(), &Wanted::default()).unwrap_err();
    assert!(broken.why.contains("--after"), "{broken}");
    let after = Wanted { head: Some(last.clone()), after: Some(last.clone()) };
    let (verified, _) = verify_state(directory.path(), &after).unwrap();
    assert_eq!(verified.since, Some(verified.records));
    let other = Wanted { head: None, after: Some(heads[0].hash.clone()) };
    assert!(verify_state(directory.path(), &other).is_err());
    verify(&[directory.path().join("elsewhere")], &Wanted::default()).unwrap();
}

#[test]
fn a_crash_between_two_files_goes_on_in_a_new_one() {
    let directory = directory();
    Log::new(directory.path()).record(&event(1, "")).unwrap();
    fs::rename(current(directory.path()), directory.path().join("audit-000001.jsonl")).unwrap();
    let head = Log::new(directory.path()).record(&event(2, "")).unwrap();
    assert_eq!(head.seq, 2);
    verify_state(directory.path(), &Wanted::default()).unwrap();
}

#[test]
fn two_cannot_write() {
    let directory = directory();
    let mut log = Log::new(directory.path());
    log.record(&event(1, "")).unwrap();
    assert!(matches!(Log::new(directory.path()).record(&event(2, "")), Err(AuditError::InUse { .. })));
    log.record(&event(3, "")).unwrap();
    assert_eq!(verify_state(directory.path(), &Wanted::default()).unwrap().0.records, 2);
}

#[test]
fn what_could_not_be_recorded_is_said_later() {
    let directory = directory();
    fs::create_dir(current(directory.path())).unwrap();
    let mut log = Log::new(directory.path());
    for number in 1..3 {
        assert!(matches!(log.record(&event(number, "")), Err(AuditError::System { .. })));
    }
    fs::remove_dir(current(directory.path())).unwrap();
    log.record(&event(3, "")).unwrap();
    let lines = records(&current(directory.path()));
    assert_eq!((lines.len(), lines[0]["action"].as_str()), (2, Some("audit.lost")));
    assert!(lines[0]["detail"].as_str().unwrap().starts_with("2 records before this one may be missing"));
    verify_state(directory.path(), &Wanted::default()).unwrap();
}

#[test]
fn a_long_detail_is_cut_and_says_so() {
    let directory = directory();
    Log::new(directory.path()).record(&event(1, &"ä".repeat(5000))).unwrap();
    let detail = records(&current(directory.path()))[0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.ends_with("ä [1808 more bytes]"), "{}", &detail[8000..]);
}

#[test]
fn it_is_verified_while_it_is_written() {
    let directory = directory();
    let mut log = Log::with_limits(directory.path(), Limits { bytes: 4000 });
    log.record(&event(0, "")).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..2000).for_each(|number| drop(log.record(&event(number, "")).unwrap())));
        while !writer.is_finished() {
            verify_state(directory.path(), &Wanted::default()).unwrap_or_else(|broken| panic!("{broken}"));
        }
        writer.join().unwrap();
    });
    assert_eq!(verify_state(directory.path(), &Wanted::default()).unwrap().0.records, 2000);
}
