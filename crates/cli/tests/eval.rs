//! `reattn eval` as a user meets it: a run that is killed, folders of other runs, flags that mean nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn reattn(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("reattn").unwrap().args(args).assert()
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// What a table says, without times and memory.
fn scores(dir: &Path) -> Vec<(String, u64, u64, u64)> {
    let text = std::fs::read_to_string(dir.join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    let number = |cell: &Value, key: &str| cell[key].as_u64().unwrap();
    let cell = |c: &Value| {
        (c["method"].to_string(), number(c, "length"), number(c, "samples"), number(c, "correct"))
    };
    results["cells"].as_array().unwrap().iter().map(cell).collect()
}

/// Starts the command and kills it once `is_time`, or after five minutes.
fn kill_when(args: &[String], is_time: impl Fn() -> bool) {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("reattn"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !is_time() && child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(300) {
        // The run needs the processor more than the one who watches it.
        std::thread::park_timeout(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A disk that fails says nothing of the method: the run ends with what it has, and asks again when it is resumed.
#[test]
fn a_disk_that_fails_is_no_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let shown = out.display().to_string();
    let args = [
        "eval",
        "needle",
        "--lengths",
        "4k",
        "--samples",
        "1",
        "--method",
        "full,infllm",
        "--set",
        "infllm.cold=disk",
        "--jobs",
        "1",
        "-q",
        "--out",
        &shown,
    ];
    let command =
        |temporary: &Path| Command::cargo_bin("reattn").unwrap().args(args).env("TMPDIR", temporary).assert();
    let rows = || -> Vec<Value> {
        let text = std::fs::read_to_string(out.join("rows.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let assert = command(&dir.path().join("missing")).code(1);
    let message = String::from_utf8_lossy(&assert.get_output().stderr).to_string();
    assert!(message.contains("TMPDIR"), "{message}");
    assert!(rows().iter().all(|row| row["method"] == "full" && row.get("refused").is_none()));
    command(dir.path()).success();
    let of = |method: &str| rows().iter().filter(|row| row["method"] == method).count();
    assert_eq!((of("full"), of("infllm")), (5, 5));
    assert!(rows().iter().all(|row| row.get("refused").is_none()));
}

#[test]
fn a_killed_run_goes_on_to_the_same_table() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    let args = |out: &Path| {
        [
            "eval",
            "needle",
            "--lengths",
            "512,2k",
            "--samples",
            "6",
            "--method",
            "full,reattention",
            "-q",
            "--out",
        ]
        .map(String::from)
        .into_iter()
        .chain([out.display().to_string()])
        .collect::<Vec<_>>()
    };
    let run = |out: &Path| {
        let args = args(out);
        reattn(&args.iter().map(String::as_str).collect::<Vec<_>>()).success()
    };
    run(&whole);
    let rows = lines(&whole.join("rows.jsonl"));
    assert_eq!(rows, 2 * 2 * 6 * 5);

    // Whoever watches may be kept waiting until the run is over: then it is begun anew.
    let done = (0..5)
        .map(|_| {
            let _ = std::fs::remove_dir_all(&killed);
            kill_when(&args(&killed), || lines(&killed.join("rows.jsonl")) >= 20);
            lines(&killed.join("rows.jsonl"))
        })
        .find(|done| *done < rows);
    assert!(done.is_some_and(|done| done >= 20), "{done:?} of {rows} rows were there when it was killed");
    assert!(!killed.join("results.json").exists());
    // Threads and jobs decide no score, so they may be others now.
    let mut again = args(&killed);
    again.extend(["--threads", "1"].map(String::from));
    reattn(&again.iter().map(String::as_str).collect::<Vec<_>>()).success();
    assert_eq!(lines(&killed.join("rows.jsonl")), rows);
    assert_eq!(scores(&killed), scores(&whole));

    // Another run has no business in that folder.
    let out = killed.display().to_string();
    let other = ["eval", "needle", "--lengths", "512", "--method", "full", "-q", "--out", &out];
    let assert = reattn(&other).code(2);
    let message = String::from_utf8_lossy(&assert.get_output().stderr).to_string();
    assert!(message.contains("other `suites`"), "{message}");
}

#[test]
fn flags_that_mean_nothing_to_a_suite_are_refused() {
    for (args, says) in [
        (vec!["eval", "needle", "--hops", "2"], "--hops: needle does not take it"),
        (vec!["eval", "perplexity", "--depths", "5"], "--depths: perplexity does not take it"),
        (vec!["eval", "multi_needle", "--tokens", "5"], "--tokens: multi-needle does not take it"),
        (vec!["eval", "needle,selection"], "run it by itself"),
        (vec!["eval", "needle", "--jobs", "0"], "from 1"),
        (vec!["eval", "poetry"], "poetry"),
        (vec!["eval"], "SUITE"),
    ] {
        let assert = reattn(&args).code(2);
        let message = String::from_utf8_lossy(&assert.get_output().stderr).to_string();
        assert!(message.contains(says), "{args:?}: {message}");
    }
}

#[test]
fn several_suites_make_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let book = dir.path().join("book.txt");
    std::fs::write(&book, "The old ship was near the lake. ".repeat(40)).unwrap();
    let out = dir.path().join("run");
    let [book, shown] = [book.display().to_string(), out.display().to_string()];
    let args =
        ["eval", "needle,perplexity", "--lengths", "512", "--samples", "1", "--data", &book, "--out", &shown];
    let assert = reattn(&args).success();
    let text = String::from_utf8_lossy(&assert.get_output().stdout).to_string();
    assert!(text.contains("needle\n") && text.contains("perplexity\n") && text.contains("by word"), "{text}");
    assert_eq!(text.trim_end(), std::fs::read_to_string(out.join("table.md")).unwrap().trim_end());
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(manifest["model"]["fingerprint"].as_str().unwrap().len(), 32);
    assert_eq!(manifest["suites"][1]["name"], "perplexity");
    assert!(manifest["arms"][0]["params"]["top_k"].is_number() && manifest["machine"]["cores"].is_number());
}
