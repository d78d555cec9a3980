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
        ("--temperature", "-1", "temperature"),
        ("--top-p", "-0.5", "top_p"),
        ("--repetition-penalty", "-2", "repetition_penalty"),
        ("--seed", "-2", "--seed"),
        ("--top-k", "-3", "--top-k"),
        ("--max-new-tokens", "-1", "--max-new-tokens"),
        ("--evidence", "-1", "--evidence"),
    ] {
        let error = ask(&notes, &[flag, value]).code(2);
        let error = text(&error.get_output().stderr);
        assert!(error.contains(says) && !error.contains("unexpected argument"), "{flag}: {error}");
    }
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
    let error = reattn().args(["ask", "--context", "no\u{1b}[2Jfile", "x"]).assert().code(2);
    assert!(!text(&error.get_output().stderr).contains('\u{1b}'));
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
    let found = noted(&notes("44713"), "Why did it rain?");
    assert!(found.iter().any(|n| n.contains("only looks up facts")), "{found:?}");
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
