//! Perplexity by position: how well the next token is predicted near the beginning of a text and far from it.
//!
//! The text is read as the method reads a context; bucket `[from, to)` holds the tokens at these positions, each predicted
//! from what came before it.

use crate::{Arm, EvalError};
use reattention_engine::{Cancel, Engine, Progress, Session};
use reattention_model::Logits;
use serde::Serialize;
use std::time::Instant;

/// Perplexity of the tokens at positions `from .. to`.
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

/// Result of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Perplexity by method and position.
    pub buckets: Vec<Bucket>,
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

/// Reads `text` once under each method. At most `most` tokens are read, if given.
///
/// # Errors
/// When a method refuses, or the text has fewer than two tokens.
pub fn run(
    engine: &Engine,
    arms: &[Arm],
    text: &str,
    most: Option<usize>,
    cancel: &Cancel,
    mut watch: impl FnMut(&str, Progress),
) -> Result<Report, EvalError> {
    let mut ids = engine.tokenizer().encode("", true)?.ids;
    ids.extend(engine.tokenizer().encode_text(text)?.ids);
    ids.truncate(most.unwrap_or(usize::MAX));
    if ids.len() < 2 {
        return Err(EvalError::TooShort { tokens: ids.len(), needed: 2 });
    }
    let edges = edges(ids.len(), engine.model().shape().window);
    let mut report = Report::default();
    for arm in arms {
        let losses = losses(&mut arm.session(engine)?, &ids, cancel, |p| watch(&arm.name, p))?;
        for pair in edges.windows(2) {
            // The first token of all is predicted from nothing and counts nowhere.
            let of = &losses[pair[0].max(1) - 1..pair[1] - 1];
            let mean = of.iter().map(|l| f64::from(*l)).sum::<f64>() / of.len() as f64;
            report.buckets.push(Bucket {
                method: arm.name.clone(),
                from: pair[0],
                to: pair[1],
                tokens: of.len(),
                perplexity: mean.exp(),
            });
        }
    }
    Ok(report)
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
