//! What the fuzz target asserts, over requests of every kind, over broken ones, and over every input that ever failed.

#[path = "../../fuzz/api.rs"]
mod api;

use std::{fs, path::PathBuf};

use bulkhead_fixtures::skip;
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

fn requests() -> Vec<String> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/requests");
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn corpus() {
    let api = api::Api::new();
    let (mut sent, mut good) = (0, 0);
    for text in requests() {
        let (requests, answered) = api.check(text.as_bytes());
        assert!(requests > 0, "{text}");
        sent += requests;
        good += answered;
    }
    assert!(good > 15 && sent - good > 15, "{good} of {sent}");
}

#[test]
fn broken_requests() {
    let (api, requests) = (api::Api::new(), requests());
    let cut = (any::<Index>(), any::<Index>(), "[{}\\[\\]:,\"\\\\/?&=%# \n0-9a-zé\u{0}]{0,4}");
    let broken = (any::<Index>(), prop::collection::vec(cut, 1..4));
    let config = ProptestConfig::with_cases(if skip::long() { 5_000 } else { 256 });
    let tried = TestRunner::new(config).run(&broken, |(which, cuts)| {
        let mut text = which.get(&requests).clone();
        for (from, len, insert) in cuts {
            let starts: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
            let from = from.index(starts.len());
            let to = (from + len.index(8)).min(starts.len() - 1);
            text.replace_range(starts[from]..starts[to], &insert);
        }
        api.check(text.as_bytes());
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
}
