//! The verb itself, on whatever machine this is.

use std::process::{Command, Output};

use serde_json::Value;

fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(words).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn examples_of_the_help_work_and_the_exit_status_says_whether_the_node_can_be_guarded() {
    let help = String::from_utf8(run(&["check", "--help"]).stdout).unwrap();
    let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  bulkhead ")).collect();
    assert_eq!(examples.len(), 2, "{help}");
    for example in examples {
        let output = run(&example.split_whitespace().collect::<Vec<_>>());
        let stdout = String::from_utf8_lossy(&output.stdout);
        let good = if example.contains("--json") {
            json(&output)["enforceable"].as_bool().unwrap()
        } else {
            let last = stdout.lines().last().unwrap();
            assert!(last.starts_with("this node can"), "{stdout}");
            last.starts_with("this node can be guarded")
        };
        assert_eq!(output.status.code(), Some(if good { 0 } else { 1 }), "{example}: {stdout}");
    }
}

/// Whoever runs it and wherever: what is not a BPF file system is none.
#[test]
fn a_directory_that_cannot_hold_pins_is_a_problem_and_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let pins = directory.path().join("pins");
    let output = run(&["check", "--json", "--pins", pins.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let found = json(&output);
    let lines = found["lines"].as_array().unwrap();
    let bpffs: Vec<&Value> = lines.iter().filter(|line| line["topic"] == "bpffs").collect();
    assert_eq!(bpffs.len(), 1);
    assert_eq!(bpffs[0]["verdict"], "problem");
    assert!(bpffs[0]["remedy"].as_str().unwrap().contains("mount -t bpf"), "{found:#}");
    assert!(!pins.exists());
}

#[test]
fn a_mask_that_cannot_be_used_is_refused_at_once() {
    let output = run(&["check", "--mark-mask", "0x4000"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("kube-proxy's"), "{output:?}");
}
