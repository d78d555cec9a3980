//! `reattn score`: predictions that exist, scored without a model.

use assert_cmd::Command;
use serde_json::Value;
use std::path::PathBuf;

fn reattn(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("reattn").unwrap().arg("score").args(args).assert()
}

fn file(dir: &tempfile::TempDir, lines: &[&str]) -> PathBuf {
    let path = dir.path().join("preds.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn a_file_of_predictions_gets_its_score() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        &[
            r#"{"pred": "\nlet a = 1;", "answers": ["let a = 1;"], "length": 90}"#,
            r#"{"pred": "", "answers": ["x"], "length": 9000}"#,
        ],
    );
    let path = path.to_str().unwrap();
    let assert = reattn(&[path, "--suite", "longbench", "--task", "lcc_e"]).success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(text.starts_with("longbench lcc_e  50.00  (2 rows)\n"), "{text}");
    assert!(["levenshtein", "difflib", "0-4k", "8k+"].iter().all(|part| text.contains(part)), "{text}");

    let assert = reattn(&[path, "--suite", "longbench", "--task", "lcc_e", "--json", "-q"]).success();
    let report: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(report["summary"]["percent"], 50.0);
    assert_eq!(report["rows"][0]["value"], 1.0);
    assert_eq!(report["summary"]["groups"][1]["name"], "8k+");
}

#[test]
fn bad_lines_are_named_and_the_exit_code_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        &[
            r#"{"id": 1, "prediction": "key 42", "label": "42"}"#,
            r#"{"id": 1, "prediction": "42", "label": "42"}"#,
            r#"{"id": 2, "prediction": null, "label": "42"}"#,
            r#"{"id": 3, "prediction": "42", "label": "42", "task": "math_find"}"#,
            r#"{"id": 4, "prediction": "42", "label": 42}"#,
        ],
    );
    let path = path.to_str().unwrap();
    let assert = reattn(&[path, "--suite", "infinitebench", "--task", "passkey"]).code(2);
    let output = assert.get_output();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("infinitebench passkey  50.00  (2 rows)"));
    let log = String::from_utf8_lossy(&output.stderr);
    for part in [
        "jsonl:2: id `1`",
        "jsonl:3: `prediction` is null",
        "jsonl:4: a prediction of task",
        "jsonl:5: scored 0",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn unknown_suites_tasks_and_files_are_refused() {
    let missing = reattn(&["none.jsonl", "--suite", "ruler", "--task", "vt"]).code(2);
    assert!(String::from_utf8_lossy(&missing.get_output().stderr).contains("none.jsonl"));
    let task = reattn(&["none.jsonl", "--suite", "ruler", "--task", "passkey"]).code(2);
    assert!(String::from_utf8_lossy(&task.get_output().stderr).contains("niah_single_1"));
    let suite = reattn(&["none.jsonl", "--suite", "longbanch", "--task", "lcc"]).code(2);
    assert!(String::from_utf8_lossy(&suite.get_output().stderr).contains("needlebench"));
}
