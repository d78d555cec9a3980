//! Published models beside llama.cpp's tokens and a float32 run, where their files are at hand.

use conformance::{Outcome, real};
use reattention_kernels::{Backend, Cpu, Reference};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/real");

/// The model file that a variable names; says so where it names none.
fn file(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} names no model file (testdata/README.md)");
    }
    path
}

fn passes(variable: &str, folder: &str) {
    let Some(path) = file(variable) else { return };
    let files = real::Files::new(&[path]).unwrap();
    let mut models = real::Real::new(&files);
    let backends: [Arc<dyn Backend>; 2] = [Arc::new(Reference), Arc::new(Cpu::new(2).unwrap())];
    for part in ["tokens", "prompts"] {
        for (backend, outcome) in models.run(Path::new(DIR), &format!("{folder}/{part}"), &backends) {
            assert!(
                matches!(outcome, Outcome::Passed(_)),
                "{folder}/{part} on {backend}: {}",
                outcome.text()
            );
        }
    }
}

#[test]
fn smollm2_says_what_a_float_run_says() {
    passes("REATTENTION_SMOLLM2", "smollm2");
}

#[test]
fn qwen2_5_says_what_a_float_run_says() {
    passes("REATTENTION_QWEN05", "qwen05");
}

#[test]
fn a_model_without_file_is_skipped_with_a_word() {
    let files = real::Files::default();
    let names = real::names(Path::new(DIR));
    assert!(names.contains(&"smollm2/tokens".to_string()) && real::is_real(Path::new(DIR)));
    let outcomes = real::Real::new(&files).run(Path::new(DIR), "smollm2/tokens", &[]);
    let (_, outcome) = &outcomes[0];
    assert!(
        matches!(outcome, Outcome::Skipped(_)) && outcome.text().contains("SmolLM2"),
        "{}",
        outcome.text()
    );
}

#[test]
fn files_are_told_apart_by_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc");
    std::fs::write(&path, "abc").unwrap();
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(real::sha256(&path).unwrap(), hash);
    let files = real::Files::new(std::slice::from_ref(&path)).unwrap();
    assert_eq!(files.with_hash(hash), Some(path.as_path()));
    assert_eq!(files.iter().count(), 1);
}
