//! The scored predictions that live in the project, and what the runner says of wrong ones.

use conformance::scorers::{TaskOutcome, is_scorers, names, run};
use std::path::{Path, PathBuf};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/scorers")
}

#[test]
fn every_row_has_the_official_score() {
    assert!(is_scorers(&dir()) && !is_scorers(&dir().join("../golden")));
    let names = names(&dir()).unwrap();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let outcome = run(&dir(), &name).unwrap();
        assert!(outcome.failures.is_empty() && outcome.passed > 0 && outcome.averages > 1, "{outcome:?}");
    }
}

/// The outcome of one task with its rows changed.
fn changed(name: &str, change: impl Fn(&str) -> String) -> TaskOutcome {
    let copy = tempfile::tempdir().unwrap();
    let file = format!("{name}.jsonl");
    std::fs::create_dir_all(copy.path().join(&file).parent().unwrap()).unwrap();
    std::fs::copy(dir().join("summary.json"), copy.path().join("summary.json")).unwrap();
    let text = std::fs::read_to_string(dir().join(&file)).unwrap();
    std::fs::write(copy.path().join(&file), change(&text)).unwrap();
    run(copy.path(), name).unwrap()
}

#[test]
fn a_wrong_score_fails_its_row_and_a_missing_row_the_average() {
    let outcome =
        changed("longbench/passage_count", |text| text.replacen("\"expected\": 1.0", "\"expected\": 0.9", 1));
    assert!(outcome.failures.iter().any(|f| f.contains("score 1, not 0.9")), "{outcome:?}");
    let outcome = changed("longbench/passage_count", |text| text.split_inclusive('\n').skip(1).collect());
    assert!(outcome.failures.iter().any(|f| f.starts_with("rows ")), "{outcome:?}");
}

#[test]
fn an_unknown_task_is_skipped() {
    let outcome = changed("ruler/vt", |text| text.replace("\"ruler\"", "\"rule\""));
    assert!(outcome.passed == 0 && outcome.skipped > 0 && outcome.failures.is_empty(), "{outcome:?}");
}
