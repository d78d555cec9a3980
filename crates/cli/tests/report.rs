//! `reattn report` as a person calls it. What the page shows is tested where it is made.

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

fn report(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("reattn").unwrap().arg("report").args(args).assert()
}

/// A run of two rows, of which one is there.
fn run(dir: &Path) {
    let manifest = r#"{ "suites": [{ "name": "needle", "rows": 2 }], "arms": [{ "name": "full" }] }"#;
    let row = r#"{ "suite": "needle", "task": "single", "method": "full", "id": "1", "score": 1.0 }"#;
    std::fs::write(dir.join("run.json"), manifest).unwrap();
    std::fs::write(dir.join("rows.jsonl"), format!("{row}\n")).unwrap();
}

#[test]
fn a_report_says_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path());
    let path = dir.path().display().to_string();
    let page = dir.path().join("report.html");
    let output = report(&[&path]).success().get_output().clone();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", page.display()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 of 2 rows, unfinished") && said.contains("report.md"), "{said}");
    assert!(page.exists() && dir.path().join("report.md").exists());

    let output = report(&[&path, "--json", "-q"]).success().get_output().clone();
    let written: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((written["rows"].as_u64(), written["total"].as_u64()), (Some(1), Some(2)));
    assert_eq!(written["page"], page.display().to_string());
    assert!(output.stderr.is_empty());
}

#[test]
fn what_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let said = |path: &str| String::from_utf8(report(&[path]).code(2).get_output().stderr.clone()).unwrap();
    assert!(said(&path).contains("run.json"));
    run(dir.path());
    std::fs::write(dir.path().join("rows.jsonl"), "{\"suite\": 3}\n").unwrap();
    assert!(said(&path).contains("rows.jsonl:1"));
    assert!(!dir.path().join("report.html").exists());
}
