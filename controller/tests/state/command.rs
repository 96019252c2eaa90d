//! `bulkhead audit verify`.

use std::{
    fs,
    process::{Command, Output},
};

use bulkhead_controller::audit::Log;

use crate::support::{directory, event};

fn verify(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(["audit", "verify"]).args(args).output().unwrap();
    // Errors are drawn, in lines of limited length.
    let said = String::from_utf8(stderr).unwrap().replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    (status.code(), String::from_utf8(stdout).unwrap(), said)
}

#[test]
fn it_prints_the_head_and_what_is_wrong() {
    let directory = directory();
    let state = directory.path().to_str().unwrap();
    let (code, _, said) = verify(&["--state", state]);
    assert!(code == Some(1) && said.contains("there is no audit.jsonl in it"), "{said}");

    let mut log = Log::new(directory.path());
    let first = log.record(&event(1, "")).unwrap();
    let second = log.record(&event(2, "")).unwrap();
    drop(log);
    let (code, printed, _) = verify(&["--state", state, "--head", &first.hash]);
    assert_eq!(code, Some(0));
    for line in
        ["ok       2 records in 1 file\n", "since    1 records", &format!("head     {} (record 2)", second.hash)]
    {
        assert!(printed.contains(line), "{line} in {printed}");
    }

    // Cut behind the first record: only who has kept the head sees it.
    let file = directory.path().join("audit.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.split_inclusive('\n').next().unwrap()).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(verify(&[path]).0, Some(0));
    let (code, printed, said) = verify(&[path, "--head", &second.hash]);
    assert!(code == Some(1) && printed.is_empty() && said.contains("records were removed from the end"), "{said}");

    fs::write(&file, text.replace("somebody", "nobody")).unwrap();
    let (code, _, said) = verify(&[path]);
    assert!(code == Some(1) && said.contains("audit.jsonl:1") && said.contains("were changed"), "{said}");

    let (code, _, said) = verify(&["--head", "abc"]);
    assert!(code == Some(2) && said.contains("64 hex digits"), "{said}");
}
