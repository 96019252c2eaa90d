//! What the fuzz target asserts, over the policies to copy, over broken ones, and over every input that ever failed.

#[path = "../../fuzz/check.rs"]
mod check;

use std::{fs, path::PathBuf};

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn broken_examples(which in 0..EXAMPLES.len(), workloads: bool, cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), "[-{}\\[\\]:,&*!|>'\"# \n\ta0/é]{0,4}"), 1..4)) {
        let mut text = example(if workloads { EXAMPLES[which].1 } else { EXAMPLES[which].0 });
        for (from, len, insert) in cuts {
            let starts: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
            let from = from.index(starts.len());
            let to = (from + len.index(8)).min(starts.len() - 1);
            text.replace_range(starts[from]..starts[to], &insert);
        }
        check::check(text.as_bytes());
    }
}
