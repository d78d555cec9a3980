//! Published models in GGUF: token ids, log-probabilities after prompts, perplexity.
//!
//! A folder of these holds a folder for each model with `tokens.json`, `prompts.json` and `perplexity.json`; the model's file is
//! named by its SHA-256 and given by hand. Expected numbers are those of a float32 run over the decoded weights, ids those of
//! llama.cpp. The `reference` backend is held to a float run's tolerance, on as many short prompts as it has time for;
//! others round activations to 8 bits and are held to what that moves.

mod file;
mod numbers;

pub use file::{Files, sha256};

use crate::Outcome;
use anyhow::{Context as _, ensure};
use numbers::Runner;
use reattention_kernels::Backend;
use reattention_model::{Checkpoint, Model, ModelError, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// What is compared of each model.
const PARTS: [&str; 3] = ["tokens", "prompts", "perplexity"];

/// Whether a folder holds cases of real models.
pub fn is_real(dir: &Path) -> bool {
    !models(dir).is_empty()
}

/// The names of all cases, `MODEL/PART`, in order.
pub fn names(dir: &Path) -> Vec<String> {
    let models = models(dir);
    models.iter().flat_map(|model| PARTS.iter().map(move |part| format!("{model}/{part}"))).collect()
}

fn models(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter(|e| e.path().join("tokens.json").is_file());
    let mut names: Vec<String> = named.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Runs the cases of one model after the other; its file is read once.
#[derive(Debug)]
pub struct Real<'a> {
    files: &'a Files,
    /// The model opened last, with its folder's name.
    opened: Option<(String, Opened)>,
}

#[derive(Debug)]
struct Opened {
    tokenizer: Tokenizer,
    checkpoint: Checkpoint,
    model: Option<Model>,
}

impl<'a> Real<'a> {
    /// With the model files given.
    pub fn new(files: &'a Files) -> Self {
        Self { files, opened: None }
    }

    /// Runs the case `name` of the folder `dir` on every backend.
    pub fn run(&mut self, dir: &Path, name: &str, backends: &[Arc<dyn Backend>]) -> Vec<(String, Outcome)> {
        match self.attempt(dir, name, backends) {
            Ok(outcomes) => outcomes,
            Err(error) => vec![("all".into(), Outcome::Failed(vec![format!("{error:#}")]))],
        }
    }

    fn attempt(
        &mut self,
        dir: &Path,
        name: &str,
        backends: &[Arc<dyn Backend>],
    ) -> anyhow::Result<Vec<(String, Outcome)>> {
        let (folder, part) = name.split_once('/').context("a case is MODEL/PART")?;
        let about: About = read(&dir.join(folder), "tokens")?;
        let Some(path) = self.files.with_hash(&about.file_sha256) else {
            let hash = about.file_sha256.get(..12).unwrap_or_default();
            let text = format!("no --model-file is {} (sha256 {hash}...)", about.model);
            return Ok(vec![("all".into(), Outcome::Skipped(text))]);
        };
        if self.opened.as_ref().is_none_or(|(name, _)| name != folder) {
            let checkpoint = Checkpoint::open(path)?;
            let tokenizer = checkpoint.tokenizer()?;
            self.opened = Some((folder.to_string(), Opened { tokenizer, checkpoint, model: None }));
        }
        let (_, opened) = self.opened.as_mut().context("a model is open")?;
        let dir = dir.join(folder);
        if part == "tokens" {
            return Ok(vec![("tokenizer".into(), tokens(&read(&dir, part)?, &opened.tokenizer)?)]);
        }
        let tokenizer = &opened.tokenizer;
        let model = match &mut opened.model {
            Some(model) => model,
            none => none.insert(Model::new(opened.checkpoint.config().clone(), opened.checkpoint.load()?)),
        };
        let run = |backend: &Arc<dyn Backend>| {
            let runner = Runner::new(model, backend);
            match part {
                "prompts" => runner.prompts(&read(&dir, part)?, tokenizer),
                _ => runner.perplexity(&read(&dir, part)?, tokenizer),
            }
        };
        // Thousands of tokens are too many for plain arithmetic, if there is another.
        let spared =
            |b: &Arc<dyn Backend>| part == "perplexity" && backends.len() > 1 && numbers::is_float(b);
        Ok(backends
            .iter()
            .filter(|b| !spared(b))
            .map(|b| (b.name(), run(b).unwrap_or_else(|e| Outcome::Failed(vec![format!("{e:#}")]))))
            .collect())
    }
}

/// Which model a folder is about.
#[derive(Debug, Deserialize)]
struct About {
    model: String,
    file_sha256: String,
}

/// Strings with their ids.
#[derive(Debug, Deserialize)]
pub struct Tokens {
    strings: Vec<Text>,
}

#[derive(Debug, Deserialize)]
struct Text {
    name: String,
    text: String,
    /// Special tokens as characters.
    ids: Vec<u32>,
    /// Special tokens parsed, where that differs.
    special: Option<Vec<u32>>,
}

/// Compares the ids of every string, with special tokens as characters and parsed.
///
/// # Errors
/// When the tokenizer fails on a string.
pub fn tokens(cases: &Tokens, tokenizer: &Tokenizer) -> anyhow::Result<Outcome> {
    ensure!(!cases.strings.is_empty(), "tokens.json has no strings");
    let mut failures = Vec::new();
    for case in &cases.strings {
        let mut compare = |what: &str, got: Vec<u32>, want: &[u32]| {
            if got != want {
                let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
                let near = |ids: &[u32]| format!("{:?}", ids.iter().skip(at).take(6).collect::<Vec<_>>());
                failures.push(format!(
                    "{} {what}: from token {at} on {} instead of {}",
                    case.name,
                    near(&got),
                    near(want)
                ));
            }
        };
        let special = case.special.as_ref().unwrap_or(&case.ids);
        compare("as text", tokenizer.encode_ordinary(&case.text)?.ids, &case.ids);
        compare("parsed", tokenizer.encode(&case.text, false)?.ids, special);
    }
    Ok(match failures.is_empty() {
        true => Outcome::Passed(format!("{} strings equal, as text and parsed", cases.strings.len())),
        false => Outcome::Failed(failures),
    })
}

/// Ids of a prompt by the tokenizer, with the begin token if `want` has it.
fn prompt_ids(
    text: &str,
    special: bool,
    want: &[u32],
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, ModelError> {
    let prefix = tokenizer.prefix();
    let begun = !prefix.is_empty() && want.starts_with(prefix);
    let mut ids = if begun { prefix.to_vec() } else { Vec::new() };
    ids.extend(match special {
        true => tokenizer.encode(text, false)?.ids,
        false => tokenizer.encode_ordinary(text)?.ids,
    });
    Ok(ids)
}

/// Reads `PART.json` of a model's folder.
///
/// # Errors
/// When it is missing or not what it should be.
pub fn read<T: DeserializeOwned>(dir: &Path, part: &str) -> anyhow::Result<T> {
    let path = dir.join(format!("{part}.json"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
