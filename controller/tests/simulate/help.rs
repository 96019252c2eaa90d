//! The examples of the command line's help work when they are pasted.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

fn run(words: &[&str]) -> Output {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(words).current_dir(root).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_verb_that_asks_files_has_an_example_that_works() {
    let mut tried = 0;
    for verb in ["simulate", "explain", "diff", "blast-radius", "lint"] {
        let help = text(&run(&[verb, "--help"]).stdout);
        let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  bulkhead ")).collect();
        assert!(!examples.is_empty(), "{verb}: {help}");
        for example in examples {
            let (command, blocked) =
                example.split_once(" || ").map_or((example, false), |(command, _)| (command, true));
            let ran = run(&command.split_whitespace().collect::<Vec<_>>());
            let (stdout, stderr) = (text(&ran.stdout), text(&ran.stderr));
            assert!(!stdout.is_empty(), "{example}: {stderr}");
            // Something is found of the example of `lint`.
            assert_eq!(ran.status.success(), !blocked && verb != "lint", "{example}: {stdout}{stderr}");
            tried += 1;
        }
    }
    assert_eq!(tried, 6);
}
