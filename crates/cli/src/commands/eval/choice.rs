//! The suites by name: what each takes, and how it is made.

use super::Args;
use crate::common::distinct;
use crate::failure::{Blame, Failure};
use anyhow::{Context, anyhow};
use reattention_eval::run::{Suite, Tools};
use reattention_eval::suites::{needle, perplexity};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum SuiteName {
    /// Facts hidden at several depths of texts of several lengths.
    Needle,
    /// How well the next token is predicted, by position.
    Perplexity,
    /// What arms lose against a base arm that they approximate: facts, logits, votes, attention, perplexity, speed.
    Selection,
}

impl SuiteName {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Perplexity => "perplexity",
            Self::Selection => "selection",
        }
    }

    /// The flags that mean something to it.
    pub(super) fn takes(self) -> &'static [&'static str] {
        match self {
            Self::Needle => &["lengths", "depths", "samples", "distractors"],
            Self::Perplexity => &["data", "tokens"],
            Self::Selection => &["lengths", "samples", "tasks", "arm", "facts", "chains", "hops"],
        }
    }

    /// The suite as the flags describe it.
    pub(super) fn make(
        self,
        args: &Args,
        tools: &Tools<'_>,
        window: usize,
    ) -> Result<Box<dyn Suite>, Failure> {
        let (texts, seed) = (&args.texts, args.seed);
        let lengths = |default: Vec<usize>| texts.lengths.as_deref().map_or(default, distinct);
        let depths = |default: Vec<f64>| texts.depths.as_deref().map_or(default, distinct);
        Ok(match self {
            Self::Needle => {
                let default = needle::Options::default();
                let options = needle::Options {
                    lengths: lengths(default.lengths),
                    depths: depths(default.depths),
                    samples: texts.samples.unwrap_or(default.samples),
                    distractors: texts.distractors.unwrap_or(default.distractors),
                    seed,
                    max_new_tokens: default.max_new_tokens,
                };
                Box::new(needle::Suite::new(options, tools).input()?)
            }
            Self::Perplexity => {
                let files = texts.data.as_deref().map(text_files).transpose()?.unwrap_or_default();
                let tokens = texts.tokens.or(files.is_empty().then_some(16 * window));
                Box::new(perplexity::Suite::new(perplexity::Options { files, tokens, seed }, tools).input()?)
            }
            Self::Selection => {
                return Err(Failure::Input(anyhow!("selection compares arms; run it by itself")));
            }
        })
    }
}

/// A text, or all .txt files of a folder by name, as PG19's are.
fn text_files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let named = || format!("--data {}", path.display());
    if !std::fs::metadata(path).with_context(named).input()?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(named).input()? {
        let file = entry.with_context(named).input()?.path();
        if file.extension().is_some_and(|e| e == "txt") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Failure::Input(anyhow!("--data {}: no .txt file there", path.display())));
    }
    files.sort();
    Ok(files)
}
