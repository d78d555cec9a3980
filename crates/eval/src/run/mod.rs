//! Running benchmarks: what a [`Suite`] is, and what comes of asking its questions.
//!
//! A suite names its [`Reading`]s (texts and the rows asked of each) at once and makes each text when its turn comes, so that
//! a run of a million tokens a text holds one of them at a time. [`run`] asks every question under every [`Arm`](crate::Arm),
//! in several jobs if wanted, and hands each finished [`Row`] to a [`Journal`], from which a later run of the same kind goes on.

mod ask;
mod drive;
mod journal;
mod row;
mod table;

pub use ask::{Tools, cut_middle};
pub use drive::{Options, Watch, run};
pub use journal::{Journal, JournalError, MANIFEST, ROWS, read_run};
pub use row::{Bucket, Row, Seconds, Tokens};
pub use table::{Cell, Table, by_depth, by_task, cells, mean_score, methods};

use crate::EvalError;
use crate::scorers::{Sample, Score, ScoreError};
use reattention_engine::Source;
use serde::Serialize;
use serde_json::Value;

/// A benchmark with its options: which texts there are, what is asked of them, and how answers score.
pub trait Suite: Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Raised whenever the same options give other prompts or scores, so that runs of two versions are not mixed.
    fn version(&self) -> u32;

    /// Every option that decides prompts or scores, as recorded with a run.
    fn options(&self) -> Value;

    /// Every text to read, in order. No text is made yet.
    fn readings(&self) -> &[Reading];

    /// Rows of the user's files that cannot be asked; they are reported, and the others are run.
    fn problems(&self) -> &[Problem] {
        &[]
    }

    /// Makes the text of a reading, and its questions: one for each of the reading's rows, in their order.
    ///
    /// # Errors
    /// When the text cannot be made or its file cannot be read.
    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError>;

    /// Scores an answer, as the benchmark's published code does where there is one.
    ///
    /// # Errors
    /// When the sample cannot be scored: the row then says why.
    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError>;

    /// The tables a paper prints of these rows (all of this suite).
    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        by_task(self.name(), rows)
    }
}

/// A text and the rows that are asked of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The task: `niah_single_1`, `hotpotqa`.
    pub task: String,
    /// The length it stands for in tables, in tokens; none for texts that are as long as they are.
    pub length: Option<usize>,
    /// The rows, one for each question.
    pub rows: Vec<RowKey>,
    /// Tokens the prompt and the answer may take together, as well as is known before the text is made: what is planned for.
    pub tokens: usize,
    /// The suite's own number for it: a seed, a line.
    pub at: u64,
}

impl Reading {
    /// The task of the row of this index.
    pub fn task_of(&self, row: usize) -> &str {
        self.rows.get(row).and_then(|key| key.task.as_deref()).unwrap_or(&self.task)
    }

    /// The tasks of its rows, in their order, each once.
    pub fn tasks(&self) -> Vec<&str> {
        let mut tasks = Vec::new();
        for task in (0..self.rows.len()).map(|row| self.task_of(row)) {
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
        tasks
    }
}

/// What tells a row from the others of its suite, task and length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowKey {
    /// Its name: the row's own id, or a number.
    pub id: String,
    /// Where the answer lies, in per cent of the text, if it lies in one place.
    pub depth: Option<f64>,
    /// The row's task where it is not the reading's: one text, read once, may serve several tasks.
    pub task: Option<String>,
}

/// What a reading turns out to be.
#[derive(Clone, Debug)]
pub enum Made {
    /// A text to read once, and questions.
    Asked(Asked),
    /// A text whose every token is to be predicted: one row.
    Predicted {
        /// The text.
        text: String,
        /// Most tokens to read.
        most: Option<usize>,
    },
}

/// A text and its questions.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Whether the model's chat template, if it has one, stands around text and question.
    pub chat: bool,
    /// System message; a model without a template reads it before everything else.
    pub system: Option<String>,
    /// What stands before the text.
    pub before: String,
    /// The text.
    pub source: Source,
    /// One for each row of the reading.
    pub questions: Vec<Question>,
    /// Tokens that the suite's rule for too long prompts has left out.
    pub cut: usize,
}

/// A question about a text.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What stands behind the text. The method sees it arrive after the text, apart from it.
    pub after: String,
    /// How the answer begins: it stands behind the chat template, where there is one.
    pub prefix: String,
    /// What the answer is scored against; its prediction is filled in.
    pub sample: Sample,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Texts that end the answer, besides the model's stop tokens.
    pub stop: Vec<String>,
}

/// A row of a user's file that cannot be asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Number of the line, from 1; none if the whole file is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is wrong, and what was expected.
    pub problem: String,
}

/// How a problem begins that is no fault of the file: the suite knowingly leaves such rows out.
pub const NOT_COVERED: &str = "not covered: ";

impl Problem {
    /// Whether the file is at fault.
    pub fn is_fault(&self) -> bool {
        !self.problem.starts_with(NOT_COVERED)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}
