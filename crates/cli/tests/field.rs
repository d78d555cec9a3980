//! Faults that people report of programs like this one: what the command does with odd files, odd numbers and odd readers.

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const QUESTION: &str = "What is the locker code of Ada Winter?";

fn reattn() -> Command {
    Command::cargo_bin("reattn").unwrap()
}

fn file(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ask(path: &Path, more: &[&str]) -> assert_cmd::assert::Assert {
    reattn().arg("ask").arg("--context").arg(path).arg(QUESTION).args(more).assert()
}

#[test]
fn text_is_read_in_the_encodings_it_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let sentence = "The locker code of Ada Winter is 44713. It rained on Tuesday.";
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for (name, bytes) in [
        ("mark.txt", format!("\u{feff}{sentence}").into_bytes()),
        ("utf16.txt", utf16(&format!("\u{feff}{sentence}"))),
        ("utf16-without-mark.txt", utf16(sentence)),
    ] {
        let answer = ask(&file(dir.path(), name, bytes), &["-q"]).success();
        assert!(text(&answer.get_output().stdout).contains("44713"), "{name}");
    }
    for (name, bytes, says) in [
        ("report.txt", &b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"[..], "a PDF document"),
        ("letter.txt", b"PK\x03\x04\x14\0\0\0\x08\0word/document.xml", "a Word document"),
        ("data.txt", b"some\0thing else\0\0", "a binary file"),
        ("latin.txt", b"caf\xe9", "iconv"),
        ("empty.txt", b"  \n", "the file is empty"),
    ] {
        let error = ask(&file(dir.path(), name, bytes), &[]).code(2);
        let error = text(&error.get_output().stderr);
        assert!(error.contains(name) && error.contains(says), "{error}");
    }
    let error = ask(dir.path(), &[]).code(2);
    assert!(text(&error.get_output().stderr).contains("this is a folder"));
    let error = ask(&dir.path().join("none.txt"), &[]).code(2);
    assert!(text(&error.get_output().stderr).contains("there is no such file"));
}

#[test]
fn numbers_below_zero_are_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let notes = file(dir.path(), "notes.txt", "The locker code of Ada Winter is 44713. It rained.");
    let drawn = ask(&notes, &["--seed", "-1", "--temperature", "0.1"]).success();
    assert!(text(&drawn.get_output().stderr).contains("seed "));
    for (flag, value, says) in [
        ("--temperature", "-1", "--temperature is -1; it must be at least 0"),
        ("--temperature", "nan", "--temperature"),
        ("--top-p", "-0.5", "--top-p is -0.5"),
        ("--min-p", "-0.5", "--min-p is -0.5"),
        ("--repetition-penalty", "-2", "--repetition-penalty is -2"),
        ("--threads", "-1", "--threads"),
        ("--chunk", "-1", "--chunk"),
        ("--seed", "-2", "--seed"),
        ("--top-k", "-3", "--top-k"),
        ("--max-new-tokens", "-1", "--max-new-tokens"),
        ("--evidence", "-1", "--evidence"),
    ] {
        let error = ask(&notes, &[flag, value]).code(2);
        let error = text(&error.get_output().stderr);
        assert!(error.contains(says) && !error.contains("unexpected argument"), "{flag}: {error}");
    }
    for (command, flag, value) in [
        ("eval needle", "--lengths", "-1"),
        ("eval needle", "--depths", "-1"),
        ("eval needle", "--samples", "-1"),
        ("eval needle", "--evidence", "-1"),
        ("demo", "--tokens", "-1"),
        ("demo", "--facts", "-1"),
        ("demo", "--seed", "-2"),
        ("bench", "--decode", "-1"),
    ] {
        let error = reattn().args(command.split(' ')).args([flag, value]).assert().code(2);
        let error = text(&error.get_output().stderr);
        assert!(error.contains(flag) && !error.contains("unexpected argument"), "{command} {flag}: {error}");
    }
    let demo = ["demo", "--tokens", "600", "--facts", "1", "--distractors", "0", "--seed", "-1"];
    let demo = reattn().args(demo).assert();
    assert!(text(&demo.get_output().stderr).contains("(drawn)"));
}

#[test]
fn evaluations_warn_of_the_window_as_ask_does() {
    let eval = |length: &str, method: &str| {
        let args =
            ["eval", "needle", "--samples", "1", "--depths", "50", "--lengths", length, "--method", method];
        text(&reattn().args(args).assert().success().get_output().stderr)
    };
    let warning = "exceed the model's window of 512; full attention breaks there";
    assert!(eval("600", "full").contains(warning));
    assert!(!eval("512", "full").contains(warning) && !eval("600", "reattention").contains(warning));
}

/// Nobody reads on: the work is over with the pipe, and that is no failure.
#[cfg(unix)]
#[test]
fn a_reader_that_leaves_ends_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let notes = file(dir.path(), "notes.txt", "The locker code of Ada Winter is 44713. It rained.");
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("reattn"))
        .args(["ask", "--max-new-tokens", "2000", "-q", "--context"])
        .arg(&notes)
        .arg(QUESTION)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn file_names_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9\x1b[31m.txt");
    let path = dir.path().join(name);
    if std::fs::write(&path, "The locker code of Ada Winter is 44713. It rained.").is_err() {
        println!("skipped: this file system takes Unicode names only");
        return;
    }
    let answer = ask(&path, &[]).success();
    assert!(text(&answer.get_output().stdout).contains("44713"));
    // The question is no file name.
    let error = reattn().arg("ask").arg("--context").arg(&path).arg(name).assert().code(2);
    assert!(text(&error.get_output().stderr).contains("the question `caf\u{fffd}"));
    // Folders of runs and texts to read may be called so, too.
    let (out, read) = (dir.path().join(std::ffi::OsStr::from_bytes(b"r\xfcn")), dir.path().join(name));
    std::fs::write(&read, "It rained on Tuesday. ".repeat(20)).unwrap();
    let mut eval = reattn();
    eval.args(["eval", "perplexity", "-q", "--tokens", "60", "--out"]).arg(&out).arg("--data").arg(&read);
    eval.assert().success();
    let report = reattn().args(["report", "--json"]).arg(&out).assert().success();
    let report: Value = serde_json::from_slice(&report.get_output().stdout).unwrap();
    assert!(report["page"].as_str().unwrap().contains("r\u{fffd}n"));
    let log = text(&answer.get_output().stderr);
    assert!(log.contains("caf\u{fffd}\\u{1b}[31m.txt:1") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn nothing_a_file_holds_steers_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let notes = "\u{1b}]52;c;YQ==\u{7}The locker code of Ada Winter is \u{1b}[31m44718\u{1b}[0m. It rained.";
    let answer = ask(&file(dir.path(), "escape.txt", notes), &[]).success();
    let log = text(&answer.get_output().stderr);
    assert!(log.contains("evidence") && !log.contains('\u{1b}') && !log.contains('\u{7}'), "{log:?}");
    for args in [
        &["ask", "--context", "no\u{1b}[2Jfile", "x"][..],
        &["ask", "--no-such-flag\u{1b}[2J", "x"],
        &["ask", "--context", "x", "--method", "\u{9b}2J", "x"],
        &["eval", "\u{1b}[2J"],
        &["report", "\u{1b}]52;c;YQ==\u{7}"],
        &["score", "\u{1b}[2J", "--suite", "ruler", "--task", "qa_1"],
        &["inspect", "\u{1b}[2J"],
    ] {
        let error = reattn().args(args).assert().code(2);
        let error = text(&error.get_output().stderr);
        assert!(!error.contains(|c: char| c.is_control() && c != '\n'), "{args:?}: {error:?}");
    }
    // As JSON the text is the same, and steers nothing either.
    let notes = "The locker code of Ada Winter is 44718\u{9b}31m\u{202e}. It rained.";
    let json = ask(&file(dir.path(), "c1.txt", notes), &["-q", "--json"]).success();
    let json = text(&json.get_output().stdout);
    assert!(!json.contains(['\u{9b}', '\u{202e}']), "{json:?}");
    let answer: Value = serde_json::from_str(&json).unwrap();
    assert!(answer["evidence"].to_string().contains('\u{202e}'), "{json}");
}

#[test]
fn the_built_in_model_says_what_it_cannot_know() {
    let dir = tempfile::tempdir().unwrap();
    let notes = |number: &str| {
        let told = format!("The locker code of Ada Winter is {number}. The cat slept all afternoon.");
        file(dir.path(), "notes.txt", told)
    };
    let noted = |path: &Path, question: &str| -> Vec<String> {
        let run =
            reattn().args(["ask", "-q", "--json", "--context"]).arg(path).arg(question).assert().success();
        let answer: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
        answer["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_string()).collect()
    };
    assert_eq!(noted(&notes("44713"), QUESTION), [""; 0]);
    for number in ["4471", "7", "447189"] {
        let found = noted(&notes(number), QUESTION);
        assert!(
            found.len() == 1 && found[0].contains("5 digits only") && found[0].contains(number),
            "{found:?}"
        );
    }
    let found = noted(&notes("44713"), "What is the phone number of Ada Winter?");
    assert!(found.iter().any(|n| n.contains("`phone number` is none of them")), "{found:?}");
    let found = noted(&notes("44713"), "Why did it rain?");
    assert!(found.iter().any(|n| n.contains("only looks up facts")), "{found:?}");
}

/// What an editor puts before the first row hides nothing.
#[test]
fn a_byte_order_mark_drops_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let row = r#"{"pred": "blue", "outputs": ["blue"], "length": 100}"#;
    let rows = file(dir.path(), "niah.jsonl", format!("\u{feff}{row}\n{row}\n"));
    let score =
        reattn().arg("score").arg(&rows).args(["--suite", "ruler", "--task", "niah_single_1"]).assert();
    assert!(text(&score.success().get_output().stdout).contains("100.00  (2 rows)"));
}

/// Ctrl-C ends the work at once, wherever it is.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_work() {
    use std::os::unix::process::ExitStatusExt;
    // What a shell without job control runs in the background ignores interrupts, and so do its children.
    let own = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = own.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    if ignored.and_then(|bits| u64::from_str_radix(bits, 16).ok()).is_some_and(|bits| bits & 2 != 0) {
        eprintln!("skipped: these tests run with interrupts ignored");
        return;
    }
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("reattn"))
        .args(["demo", "--tokens", "4m", "-q"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    // A shell shows the signal as 130.
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

#[test]
fn files_that_are_not_there_are_named() {
    let error = reattn().args(["score", "NOWHERE", "--suite", "ruler", "--task", "qa_1"]).assert().code(2);
    let error = text(&error.get_output().stderr);
    assert!(error.contains("NOWHERE") && error.contains("one JSON object a line"), "{error}");
}

#[test]
fn a_run_that_is_not_there_is_named() {
    let error = reattn().args(["report", "NOWHERE"]).assert().code(2);
    let error = text(&error.get_output().stderr);
    assert!(
        error.contains("NOWHERE: there is no such folder") && error.contains("eval SUITE --out"),
        "{error}"
    );
}
