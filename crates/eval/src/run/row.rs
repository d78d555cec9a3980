//! One question and what came of it, as it stands in a run's journal.

use reattention_engine::Evidence;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One question under one method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The suite.
    pub suite: String,
    /// Its task.
    pub task: String,
    /// The arm: the method's name, where each method stands for one.
    pub method: String,
    /// Length the text stands for in tables, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Where the answer lies, in per cent of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// Tells the row from the others of its suite, task and length.
    pub id: String,
    /// The end of the prompt: question and what follows it.
    #[serde(default)]
    pub tail: String,
    /// The reference.
    #[serde(default)]
    pub expected: Value,
    /// What the model said.
    #[serde(default)]
    pub prediction: String,
    /// The score, 0 to 1; none where nothing was asked, or where it could not be scored.
    #[serde(default)]
    pub score: Option<f64>,
    /// Scores reported apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(String, f64)>,
    /// What is peculiar about the score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why there is no score: the method refuses the length, memory does not suffice, the reference is malformed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Tokens, counted.
    #[serde(default)]
    pub tokens: Tokens,
    /// Time taken.
    #[serde(default)]
    pub seconds: Seconds,
    /// The most memory the process has held since this arm began this text; of all jobs together, where there are several.
    #[serde(default)]
    pub peak_rss_bytes: Option<usize>,
    /// The passages the answer looked at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// Words or characters of the context as the benchmark counts them: the groups of LongBench-E.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<u64>,
    /// Place in the task's file: L-Eval's topics.
    #[serde(default)]
    pub index: usize,
    /// Losses by position, where the text itself was predicted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<Bucket>,
}

impl Row {
    /// Whether it has the full score.
    pub fn is_right(&self) -> bool {
        self.score.is_some_and(|s| s >= 1.0)
    }
}

/// Tokens of one question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// Text, question and everything around them.
    pub prompt: usize,
    /// Of these, of the text.
    pub context: usize,
    /// Left out by the suite's rule for too long prompts.
    pub cut: usize,
    /// Kept in the cache when the answer was done.
    pub kept: usize,
    /// The most keys any query attended to.
    pub attended_max: usize,
    /// Generated.
    pub generated: usize,
}

/// Time of one question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading: the question, and its share of the text where several questions are asked of one reading.
    pub read: f64,
    /// Answering.
    pub answer: f64,
}

/// Loss of the tokens at positions `from .. to`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// First position.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Sum of their losses, in nats.
    pub loss: f64,
}
