//! Perplexity by position: how well the next token is predicted near the beginning of a text and far from it.
//!
//! Each text is read once, as the method reads a context; bucket `[from, to)` holds the tokens at these positions, each
//! predicted from what came before it. Over several texts the losses of a bucket are added up. For texts from files the
//! perplexity by word, which does not depend on the tokenizer, stands beside it (as google-deepmind/pg19 defines it).

use crate::EvalError;
use crate::figures::{distinct, number};
use crate::run::{self, Made, Reading, Row, RowKey, Table, Tools, methods};
use crate::scorers::{Sample, Score, ScoreError};
use crate::text::prose;
use reattention_engine::{Cancel, Progress, Session};
use reattention_model::Logits;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files to read, in order; generated prose if there is none.
    pub files: Vec<PathBuf>,
    /// Most tokens of a text to read; prose needs a number.
    pub tokens: Option<usize>,
    /// Seed of the prose.
    pub seed: u64,
}

/// Perplexity of the tokens at positions `from .. to`, over all texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// The method.
    pub method: String,
    /// First position.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Exponential of the mean loss.
    pub perplexity: f64,
}

/// The perplexity suite.
#[derive(Clone, Debug)]
pub struct Suite {
    options: Options,
    readings: Vec<Reading>,
}

impl Suite {
    /// The suite with these options.
    ///
    /// # Errors
    /// When a file cannot be read, or prose is to be read without end.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let reading = |id: String, tokens: usize, at: usize| Reading {
            task: "text".into(),
            rows: vec![RowKey { id, depth: None, task: None }],
            tokens,
            at: at as u64,
            ..Reading::default()
        };
        let mut readings = Vec::new();
        for (at, file) in options.files.iter().enumerate() {
            let tokens = tools.count(&read(file)?) + 1;
            readings.push(reading(
                file.display().to_string(),
                tokens.min(options.tokens.unwrap_or(tokens)),
                at,
            ));
        }
        if options.files.is_empty() {
            let tokens = options.tokens.ok_or(EvalError::TooShort { tokens: 0, needed: 2 })?;
            readings.push(reading(format!("prose, seed {}", options.seed), tokens, 0));
        }
        Ok(Self { options, readings })
    }
}

fn read(file: &std::path::Path) -> Result<String, EvalError> {
    Ok(reattention_engine::read_text(file)?)
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn version(&self) -> u32 {
        1
    }

    fn options(&self) -> Value {
        let Options { files, tokens, seed } = &self.options;
        let files: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
        json!({ "files": files, "tokens": tokens, "seed": seed })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, _: &Tools<'_>) -> Result<Made, EvalError> {
        Ok(match self.options.files.get(reading.at as usize) {
            Some(file) => Made::Predicted { text: read(file)?, most: self.options.tokens },
            None => Made::Predicted {
                // More than enough: a token of prose takes less than eight bytes.
                text: prose(self.options.seed, 8 * reading.tokens),
                most: Some(reading.tokens),
            },
        })
    }

    fn score(&self, _: &str, _: &Sample) -> Result<Score, ScoreError> {
        Ok(Score::default())
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        vec![table(rows)]
    }
}

/// Buckets over all texts, by method and position.
pub fn buckets(rows: &[&Row]) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    for method in methods(rows) {
        let of: Vec<run::Bucket> =
            rows.iter().filter(|r| r.method == method).flat_map(|r| r.buckets.iter().copied()).collect();
        let mut froms = distinct(of.iter().map(|b| b.from));
        froms.sort_unstable();
        for from in froms {
            let same = || of.iter().filter(|b| b.from == from);
            let (tokens, loss) = same().fold((0, 0.0), |(n, sum), b| (n + b.tokens, sum + b.loss));
            let to = same().map(|b| b.to).max().unwrap_or(from);
            let perplexity = (loss / tokens.max(1) as f64).exp();
            buckets.push(Bucket { method: method.clone(), from, to, tokens, perplexity });
        }
    }
    buckets
}

/// One line a method, one column a bucket; then all tokens, and all words.
pub fn table(rows: &[&Row]) -> Table {
    let buckets = buckets(rows);
    let mut edges = distinct(buckets.iter().map(|b| b.from));
    edges.sort_unstable();
    let name = |from: &usize| {
        let to = buckets.iter().filter(|b| b.from == *from).map(|b| b.to).max().unwrap_or(*from);
        format!("{from}-{to}")
    };
    let mut head = vec!["method".to_string()];
    head.extend(edges.iter().map(name));
    head.extend(["all".to_string(), "by word".to_string()]);
    let line = |method: &String| {
        let of: Vec<&Row> = rows.iter().copied().filter(|r| r.method == *method).collect();
        let at = |from: &usize| buckets.iter().find(|b| b.method == *method && b.from == *from);
        let mut line = vec![method.clone()];
        line.extend(edges.iter().map(|f| at(f).map_or("-".into(), |b| number(b.perplexity))));
        let all = of.iter().flat_map(|r| &r.buckets).fold((0, 0.0), |(n, l), b| (n + b.tokens, l + b.loss));
        let words: u64 = of.iter().filter_map(|r| r.words).sum();
        let mean = |n: f64| if n > 0.0 { number((all.1 / n).exp()) } else { "-".into() };
        line.extend([mean(all.0 as f64), mean(words as f64)]);
        line
    };
    let refused = rows.iter().filter_map(|r| Some(format!("{}: {}", r.method, r.refused.as_ref()?)));
    Table {
        title: "perplexity".into(),
        rows: methods(rows).iter().map(line).collect(),
        head,
        notes: distinct(refused),
    }
}

/// Cuts `n` positions into `[0, window), [window, 2 window), [2 window, 4 window), ...`.
pub fn edges(n: usize, window: usize) -> Vec<usize> {
    let mut edges = vec![0];
    let mut edge = window.max(1);
    while edge < n {
        edges.push(edge);
        edge *= 2;
    }
    edges.push(n);
    edges
}

/// Reads `ids` as the context of a question to come, and returns the loss of every token but the first.
pub(crate) fn losses(
    session: &mut Session,
    ids: &[u32],
    cancel: &Cancel,
    mut watch: impl FnMut(Progress),
) -> Result<Vec<f32>, EvalError> {
    let (mut losses, start) = (Vec::with_capacity(ids.len()), Instant::now());
    for step in session.schedule(0..ids.len(), Some(ids.len())) {
        if cancel.is_cancelled() {
            return Err(reattention_engine::SessionError::Cancelled {
                done: step.tokens.start,
                total: ids.len(),
            }
            .into());
        }
        let (tokens, next) =
            (step.tokens.clone(), step.tokens.start + 1..(step.tokens.end + 1).min(ids.len()));
        losses.extend(session.feed_step(&ids[tokens], step.kind, &Logits::Loss(ids[next].to_vec()))?);
        watch(Progress::since(start, step.tokens.end, ids.len()));
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double_and_cover_everything() {
        assert_eq!(edges(8192, 512), [0, 512, 1024, 2048, 4096, 8192]);
        assert_eq!(edges(600, 512), [0, 512, 600]);
        assert_eq!(edges(100, 512), [0, 100]);
    }
}
