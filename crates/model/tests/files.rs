//! Models under the names and in the states that people have them.
#![allow(clippy::unwrap_used)]

use reattention_model::Checkpoint;
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use std::path::Path;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

fn model(dir: &Path) {
    write_hugging_face(dir, &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
}

fn error(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint.tokenizer().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn pointers_and_pages_in_a_files_place_are_named() {
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        for (text, says) in [(POINTER, "git lfs pull"), ("<!DOCTYPE html>\n<html lang=\"en\">", "web page")] {
            let dir = tempfile::tempdir().unwrap();
            model(dir.path());
            std::fs::write(dir.path().join(file), text).unwrap();
            let error = error(dir.path());
            assert!(error.contains(file) && error.contains(says), "{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("model.gguf");
    std::fs::write(&gguf, POINTER).unwrap();
    assert!(error(&gguf).contains("git lfs pull"));
}

#[test]
fn a_cache_of_the_hub_is_opened_at_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--me--tiny/snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    model(&snapshot);
    let found = Checkpoint::open(&dir.path().join("models--me--tiny")).unwrap();
    assert_eq!(found.config(), Checkpoint::open(&snapshot).unwrap().config());
    assert_eq!(found.fingerprint().unwrap(), Checkpoint::open(&snapshot).unwrap().fingerprint().unwrap());
}

#[test]
fn errors_say_everything_once() {
    let error = anyhow_chain(&Checkpoint::open(Path::new("/no/such/model")).unwrap_err());
    assert_eq!(error.matches("no such file").count(), 1, "{error}");
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let big = dir.path().join("big.gguf");
    std::fs::write(&big, [&b"GGUF"[..], &3u32.to_be_bytes(), &[0; 32]].concat()).unwrap();
    assert!(anyhow_chain(&Checkpoint::open(&big).unwrap_err()).contains("big-endian"));
}

/// An error with what caused it, as the command prints it.
fn anyhow_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
