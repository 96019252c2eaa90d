//! Any one change to a log is found.

use std::{fs, path::PathBuf, sync::LazyLock};

use bulkhead_controller::audit::{Limits, Log, Wanted, files, verify};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::{directory, event};

/// Bytes of the files of a log, and its head. It has a torn line in the first and in the last file.
static LOG: LazyLock<(Vec<Vec<u8>>, String)> = LazyLock::new(|| {
    let directory = directory();
    let mut head = String::new();
    for number in 0..24 {
        let mut log = Log::with_limits(directory.path(), Limits { bytes: 3000 });
        head = log.record(&event(number, "some detail")).unwrap().hash;
        drop(log);
        if [2, 22].contains(&number) {
            let file = directory.path().join("audit.jsonl");
            let mut bytes = fs::read(&file).unwrap();
            bytes.extend_from_slice(b"{\"seq\":7,\"time\":\"20");
            fs::write(&file, bytes).unwrap();
        }
    }
    let files = files(directory.path()).unwrap().iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    assert!(files.len() >= 3, "{} files", files.len());
    (files, head)
});

/// Places are parts of the whole, so that they fit whatever there is.
#[derive(Clone, Debug)]
enum Change {
    Flip {
        at: f64,
        with: u8,
    },
    Insert {
        at: f64,
        byte: u8,
    },
    Remove {
        at: f64,
    },
    Cut {
        at: f64,
    },
    /// As a cut, but what comes after the line stays.
    CutLine {
        line: f64,
        at: f64,
    },
    RemoveLine {
        line: f64,
    },
    Repeat {
        line: f64,
        before: f64,
    },
    Swap {
        one: f64,
        other: f64,
    },
    RemoveFile {
        file: f64,
    },
    SwapFiles {
        one: f64,
        other: f64,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let part = || 0.0..1.0_f64;
    prop_oneof![
        4 => (part(), 1..=255_u8).prop_map(|(at, with)| Change::Flip { at, with }),
        1 => (part(), any::<u8>()).prop_map(|(at, byte)| Change::Insert { at, byte }),
        1 => part().prop_map(|at| Change::Remove { at }),
        1 => part().prop_map(|at| Change::Cut { at }),
        1 => (part(), part()).prop_map(|(line, at)| Change::CutLine { line, at }),
        1 => part().prop_map(|line| Change::RemoveLine { line }),
        1 => (part(), part()).prop_map(|(line, before)| Change::Repeat { line, before }),
        1 => (part(), part()).prop_map(|(one, other)| Change::Swap { one, other }),
        1 => part().prop_map(|file| Change::RemoveFile { file }),
        1 => (part(), part()).prop_map(|(one, other)| Change::SwapFiles { one, other }),
    ]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of a small number"
)]
fn place(part: f64, of: usize) -> usize {
    (part * of as f64) as usize
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

fn apply(change: &Change, file: usize, files: &mut Vec<Vec<u8>>) {
    let bytes = &mut files[file];
    let len = bytes.len();
    match *change {
        Change::Flip { at, with } => bytes[place(at, len)] ^= with,
        Change::Insert { at, byte } => bytes.insert(place(at, len), byte),
        Change::Remove { at } => drop(bytes.remove(place(at, len))),
        Change::Cut { at } => bytes.truncate(place(at, len)),
        Change::CutLine { line, at } => {
            let mut lines = lines(bytes);
            let line = place(line, lines.len());
            let end = place(at, lines[line].len() - 1);
            lines[line].truncate(end);
            lines[line].push(b'\n');
            *bytes = lines.concat();
        }
        Change::RemoveLine { line } => {
            let mut lines = lines(bytes);
            lines.remove(place(line, lines.len()));
            *bytes = lines.concat();
        }
        Change::Repeat { line, before } => {
            let mut lines = lines(bytes);
            let line = lines[place(line, lines.len())].clone();
            lines.insert(place(before, lines.len() + 1), line);
            *bytes = lines.concat();
        }
        Change::Swap { one, other } => {
            let mut lines = lines(bytes);
            let (one, other) = (place(one, lines.len()), place(other, lines.len()));
            lines.swap(one, other);
            *bytes = lines.concat();
        }
        Change::RemoveFile { file } => drop(files.remove(place(file, files.len()))),
        Change::SwapFiles { one, other } => {
            let (one, other) = (place(one, files.len()), place(other, files.len()));
            files.swap(one, other);
        }
    }
}

fn write(files: &[Vec<u8>]) -> (TempDir, Vec<PathBuf>) {
    let directory = directory();
    let paths = files.iter().enumerate().map(|(index, bytes)| {
        let path = directory.path().join(index.to_string());
        fs::write(&path, bytes).unwrap();
        path
    });
    let paths = paths.collect();
    (directory, paths)
}

#[test]
fn as_it_is_it_is_whole() {
    let (files, head) = &*LOG;
    let (_directory, paths) = write(files);
    let verified = verify(&paths, &Wanted { head: Some(head.clone()), after: None }).unwrap();
    assert_eq!((verified.torn.len(), verified.since, verified.records), (2, Some(0), 26));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if bulkhead_fixtures::skip::long() { 20_000 } else { 4000 }))]

    #[test]
    fn one_change_is_found(change in change(), file in 0.0..1.0_f64) {
        let (original, head) = &*LOG;
        let mut files = original.clone();
        apply(&change, place(file, original.len()), &mut files);
        // A line that is swapped with itself, or with its like.
        if files == *original {
            return Ok(());
        }
        let (_directory, paths) = write(&files);
        let found = verify(&paths, &Wanted { head: Some(head.clone()), after: None });
        prop_assert!(found.is_err(), "{:?}", found);

        // Without the head all but what is removed from the end, whole records of it.
        let whole: Vec<u8> = original.concat();
        let from_the_end = whole.starts_with(&files.concat()) && files.iter().zip(original).all(|(left, all)| all.starts_with(left));
        if !from_the_end {
            let found = verify(&paths, &Wanted::default());
            prop_assert!(found.is_err(), "{:?}", found);
        }
    }
}
