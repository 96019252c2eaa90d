//! The examples of the command line's help work when they are pasted.

use std::{
    fs,
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
    for verb in ["simulate", "explain", "diff", "blast-radius", "lint", "manifest"] {
        let help = text(&run(&[verb, "--help"]).stdout);
        let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  bulkhead ")).collect();
        assert!(!examples.is_empty(), "{verb}: {help}");
        for example in examples {
            // What another program does with it is that one's.
            let example = example.split_once(" | ").map_or(example, |(command, _)| command);
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
    assert_eq!(tried, 7);
}

/// What README.md says of the verbs that ask files is what they print.
#[test]
fn the_readme_shows_what_is_printed() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```sh\ncd policy-examples\n").unwrap();
    let (commands, rest) = rest.split_once("```\n").unwrap();
    let mut explained = 0;
    for line in commands.lines() {
        let command = line.split_once(" #").map_or(line, |(command, _)| command);
        let words = command.strip_prefix("bulkhead ").unwrap_or_else(|| panic!("{line}")).split_whitespace();
        let ran = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .args(words)
            .current_dir(root.join("policy-examples"))
            .output()
            .unwrap();
        let shown = text(&ran.stdout);
        assert!(!shown.is_empty(), "{command}: {}", text(&ran.stderr));
        if command.contains(" explain ") {
            assert!(rest.contains(&format!("```\n{shown}```\n")), "{shown}");
            explained += 1;
        }
    }
    assert_eq!(explained, 1);
}

/// Whoever reads what is wrong may have seen enough of it.
#[test]
fn nobody_has_to_read_all_that_is_wrong() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(["simulate", "/nowhere"]).stderr(writer).status();
    assert_eq!(ran.unwrap().code(), Some(1));
}

/// Runbooks speak of verbs and options that there are.
#[test]
fn runbooks_name_what_there_is() {
    let whole = text(&run(&["help"]).stdout);
    let topics: Vec<&str> = whole
        .lines()
        .skip_while(|line| !line.starts_with("Topics"))
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(topics, ["first-hour", "worst-day", "reboot", "uninstall", "threat-model", "words"]);
    let mut commands = 0;
    for topic in topics {
        let shown = run(&["help", topic]);
        assert!(shown.status.success() && shown.stdout.len() > 400, "{topic}");
        let runbook = text(&shown.stdout);
        for command in runbook.lines().filter_map(|line| line.strip_prefix("     bulkhead ")) {
            let mut words = command.split_whitespace();
            let verb = words.next().unwrap();
            let help = text(&run(&["help", verb]).stdout);
            assert!(!help.is_empty(), "{topic}: {command}");
            for option in words.filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{topic}: {command}: {option}");
            }
            commands += 1;
        }
    }
    assert!(commands > 10, "{commands}");
    let unknown = run(&["help", "words-of-wisdom"]);
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("threat-model"));
}
