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

/// The weights of a folder under other names.
fn renamed(dir: &Path, name: impl Fn(&str) -> Option<String>) {
    let file = dir.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = all.tensors().into_iter().filter_map(|(old, tensor)| Some((name(&old)?, tensor)));
    let written = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(&file, written).unwrap();
}

fn with_keys(dir: &Path, keys: serde_json::Value) {
    let file = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(&file, config.to_string()).unwrap();
}

#[test]
fn tensors_are_found_under_the_names_that_tools_give_them() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let plan = Checkpoint::open(dir.path()).unwrap().plan().unwrap();
    for (begin, strip) in [
        ("", "model."),
        ("_orig_mod.", ""),
        ("module._orig_mod.", ""),
        ("base_model.model.", ""),
        ("language_model.", ""),
    ] {
        model(dir.path());
        renamed(dir.path(), |name| Some(format!("{begin}{}", name.strip_prefix(strip).unwrap_or(name))));
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(opened.plan().unwrap(), plan, "{begin}");
        opened.load().unwrap();
    }
    // One tensor under two names is no matter of taste.
    model(dir.path());
    let file = dir.path().join("model.safetensors");
    std::fs::copy(&file, dir.path().join("copy.safetensors")).unwrap();
    renamed(dir.path(), |name| Some(format!("module.{name}")));
    std::fs::rename(&file, dir.path().join("other.safetensors")).unwrap();
    let index = serde_json::json!({ "weight_map": {
        "model.norm.weight": "copy.safetensors", "module.model.norm.weight": "other.safetensors" } });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = error(dir.path());
    assert!(error.contains("copy.safetensors") && error.contains("other.safetensors"), "{error}");
}

#[test]
fn base_models_and_mixed_classes_are_read_as_their_type_says() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    with_keys(dir.path(), serde_json::json!({ "architectures": ["LlamaModel"] }));
    Checkpoint::open(dir.path()).unwrap().load().unwrap();
    renamed(dir.path(), |name| (name != "lm_head.weight").then(|| name.to_string()));
    let untied = serde_json::json!({ "tie_word_embeddings": false });
    with_keys(dir.path(), untied);
    let error = Checkpoint::open(dir.path()).unwrap().plan().unwrap_err().to_string();
    assert!(error.contains("base model") && error.contains("tie_word_embeddings"), "{error}");
    with_keys(dir.path(), serde_json::json!({ "tie_word_embeddings": true }));
    Checkpoint::open(dir.path()).unwrap().load().unwrap();

    model(dir.path());
    with_keys(dir.path(), serde_json::json!({ "model_type": "mistral" }));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().config().family.name, "mistral");
    with_keys(dir.path(), serde_json::json!({ "architectures": ["LlamaForSequenceClassification"] }));
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("LlamaForSequenceClassification"));
}
