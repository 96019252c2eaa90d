//! What the fuzz target asserts, over the policies to copy, over broken ones, and over every input that ever failed.

#[path = "../../fuzz/check.rs"]
mod check;

use std::{fs, path::PathBuf};

use bulkhead_fixtures::skip;
use proptest::prelude::*;

use crate::support::{EXAMPLES, example};

#[test]
fn corpus() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut replayed = 0;
    for directory in ["../policy-examples", "../policy-examples/kubernetes", "fuzz/regressions"] {
        let entries = fs::read_dir(here.join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            check::check(&fs::read(path).unwrap());
            replayed += 1;
        }
    }
    assert!(replayed > 2 * EXAMPLES.len(), "{replayed} inputs");
}

/// Policies and workloads to copy, ours and for Kubernetes.
fn examples() -> Vec<String> {
    let ours = EXAMPLES.iter().flat_map(|(policy, workloads)| [(*policy).to_owned(), (*workloads).to_owned()]);
    let kubernetes = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples/kubernetes");
    let kubernetes = fs::read_dir(kubernetes).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = ours.chain(kubernetes.map(|name| format!("kubernetes/{name}"))).collect();
    names.sort();
    names.dedup();
    names.iter().map(|name| example(name)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if skip::long() { 20_000 } else { 512 }))]

    #[test]
    fn broken_examples(which: prop::sample::Index, cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), "[-{}\\[\\]:,&*!|>'\"# \n\ta0/é]{0,4}"), 1..4)) {
        let examples = examples();
        let mut text = examples[which.index(examples.len())].clone();
        for (from, len, insert) in cuts {
            let starts: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
            let from = from.index(starts.len());
            let to = (from + len.index(8)).min(starts.len() - 1);
            text.replace_range(starts[from]..starts[to], &insert);
        }
        check::check(text.as_bytes());
    }
}
