//! What the verb prints.

use std::process::{Command, Output};

use bulkhead_controller::{
    diagnostic::Drawn,
    lint::{Check, Finding, json, summary},
};
use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::support::{WORKLOADS, all, example, examples, findings, guard, intent, ours};

fn text(findings: &[Finding]) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(140);
    let mut text = String::new();
    for finding in findings {
        handler.render_report(&mut text, &Drawn::from(finding.named())).unwrap();
        text.push('\n');
    }
    text + &summary(findings)
}

fn several() -> Vec<Finding> {
    let policies = all(&[
        intent("shop", "services:\n  web: { calls: [ops/backup:22] }\n  db: { accepts: [world:5432] }\n"),
        intent("ops", "services:\n  backup: { isolate: audit }\n"),
        guard(
            "g",
            1,
            "rules:\n  - deny: { to: world, expires: 2025-01-01T00:00:00Z }\n  - pass: { from: any }\n  - deny: { from: world }\n",
        ),
    ]);
    findings(&policies, WORKLOADS)
}

#[test]
fn findings_are_drawn_and_counted() {
    insta::assert_snapshot!(text(&several()));
    assert_eq!(summary(&[]), "nothing found");
}

#[test]
fn findings_are_objects_for_programs() {
    insta::assert_snapshot!(format!("{:#}", json(&several())));
    assert_eq!(json(&[]).to_string(), "[]");
}

#[test]
fn checks_have_names() {
    for check in Check::ALL {
        assert_eq!(check.name().parse(), Ok(check));
    }
    assert!(Check::ALL.is_sorted());
    assert!("shadowed".parse::<Check>().unwrap_err().starts_with("there is no such check"));
}

/// Policies to copy say what is found of them.
#[test]
fn policies_to_copy() {
    let said: Vec<String> = [
        ("shop.yaml", "shop-workloads.yaml"),
        ("guard.yaml", "examples-workloads.yaml"),
        ("audit.yaml", "examples-workloads.yaml"),
        ("ports.yaml", "ports-workloads.yaml"),
        ("quarantine.yaml", "examples-workloads.yaml"),
        ("tenants.yaml", "examples-workloads.yaml"),
    ]
    .iter()
    .map(|(policy, with)| {
        let found = findings(&ours(&example(policy)), &example(with));
        let lines: String = found.iter().map(|finding| format!("{}\n", finding.named())).collect();
        format!("# {policy}\n{lines}{}\n", summary(&found))
    })
    .collect();
    insta::assert_snapshot!(said.join("\n"));
}

fn run(more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.arg("lint").args(["shop.yaml", "shop-workloads.yaml"]).args(more).current_dir(examples());
    command.output().unwrap()
}

#[test]
fn the_exit_status_says_whether_something_is_found() {
    let found = run(&["--json"]);
    assert_eq!(found.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((&found[0]["check"], &found[0]["line"]), (&"not-isolated".into(), &33.into()));
    let good = run(&["--allow", "not-isolated", "--allow", "expired"]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    assert_eq!(String::from_utf8_lossy(&good.stdout), "nothing found\n");
    let wrong = run(&["--allow", "everything"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("shadowed-rule"));
}
