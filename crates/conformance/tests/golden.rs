//! The golden cases that live in the project, and what the runner says of broken ones.

use conformance::{Case, Outcome, run};
use reattention_kernels::{Backend, Cpu, Reference};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden")
}

fn backends() -> [Arc<dyn Backend>; 2] {
    [Arc::new(Reference), Arc::new(Cpu::new(2).unwrap())]
}

#[test]
fn every_case_passes_on_every_backend() {
    let names = Case::names(&dir()).unwrap();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        for backend in backends() {
            let outcome = run(&dir(), &name, &backend);
            assert!(
                matches!(outcome, Outcome::Passed(_)),
                "{name} on {}: {}",
                backend.name(),
                outcome.text()
            );
        }
    }
}

/// A copy of the cases of one model with one manifest changed.
fn changed(name: &str, change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> Outcome {
    let copy = std::env::temp_dir().join(format!("conformance-{}-{name}", std::process::id()));
    std::fs::create_dir_all(copy.join("cases")).unwrap();
    for extension in ["json", "safetensors"] {
        let file = format!("cases/{name}.{extension}");
        std::fs::copy(dir().join(&file), copy.join(&file)).unwrap();
    }
    let model = copy.join("models/mistral-a");
    std::fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir().join("models/mistral-a").join(file), model.join(file)).unwrap();
    }
    let path = copy.join(format!("cases/{name}.json"));
    let mut manifest = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    std::fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let outcome = run(&copy, name, &backends()[1]);
    std::fs::remove_dir_all(&copy).unwrap();
    outcome
}

#[test]
fn a_wrong_parameter_is_noticed() {
    let outcome = changed("reatt.mistral-a.mid4.clip8", |m| m["params"]["recall_clip"] = 7.into());
    let Outcome::Failed(reasons) = outcome else { panic!("{}", outcome.text()) };
    assert!(
        reasons.iter().any(|r| r.contains("centres")) && reasons.iter().any(|r| r.contains("differs by")),
        "{reasons:?}"
    );
    let outcome =
        changed("hf_sliding48.mistral-a.n300", |m| m["config_overrides"]["sliding_window"] = 47.into());
    assert!(matches!(outcome, Outcome::Failed(_)), "{}", outcome.text());
}

#[test]
fn an_unknown_method_is_skipped_and_a_broken_manifest_fails() {
    let skipped = changed("streaming.mistral-a.b", |m| m["method"] = "teleport".into());
    assert!(matches!(&skipped, Outcome::Skipped(why) if why.contains("teleport")), "{}", skipped.text());
    let failed = changed("streaming.mistral-a.b", |m| drop(m.remove("params")));
    assert!(matches!(&failed, Outcome::Failed(why) if why[0].contains("n_init")), "{}", failed.text());
}
