//! The six tasks of InfiniteBench that are generated, at any length: passkey, number string, key-value retrieval, Math.Find,
//! Math.Calc and Code.Run (OpenBMB/InfiniteBench `data/construct_synthetic_dataset.py`, arXiv 2402.13718; MIT).
//!
//! The published sets have one size each, about 128k tokens of GPT-4's. Here a text grows until prompt and answer fill the length
//! asked for, counted by the model's own tokenizer, and never exceed it. Prompts are the published ones: those of the base model
//! (`yarn_mistral_templates`), or those of GPT-4 where the model has a chat template. Random numbers are this project's own
//! ([`Rng`]), so rows are of the published kind, not the published rows.

mod code_run;
mod kv_retrieval;
mod math_calc;
mod math_find;
mod number_string;
mod passkey;

use super::generate::{GenerateError, around_context, check_grid, grid, most_that_fit, whole};
use super::infinitebench::PUBLISHED;
use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Tools};
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use crate::text::{Rng, numbers};
use reattention_engine::Source;
use serde_json::{Value, json};

/// A task, one file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Five digits in a text of one line over and over.
    Passkey,
    /// Ten digits with repeats in the same text.
    NumberString,
    /// The value of a key in a JSON object of random identifiers.
    KvRetrieval,
    /// The largest, second smallest, ... number of a list.
    MathFind,
    /// All intermediate values of a sum.
    MathCalc,
    /// What a chain of functions returns.
    CodeRun,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 6] =
        [Self::Passkey, Self::NumberString, Self::KvRetrieval, Self::MathFind, Self::MathCalc, Self::CodeRun];

    /// InfiniteBench's name for it, which is also the suite's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::NumberString => "number_string",
            Self::KvRetrieval => "kv_retrieval",
            Self::MathFind => "math_find",
            Self::MathCalc => "math_calc",
            Self::CodeRun => "code_run",
        }
    }

    /// The task of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Kinds of rows that a length has besides its samples, where they are not depths: questions of Math.Find, depths of Code.Run.
    fn kinds(self) -> Option<usize> {
        match self {
            Self::Passkey | Self::NumberString | Self::KvRetrieval => None,
            Self::MathFind => Some(math_find::KINDS.len()),
            Self::MathCalc => Some(1),
            Self::CodeRun => Some(code_run::LEVELS.len()),
        }
    }

    /// Fewest units a text has.
    fn least(self) -> usize {
        match self {
            Self::Passkey | Self::NumberString => 0,
            Self::KvRetrieval => 1,
            Self::MathFind => math_find::LEAST,
            Self::MathCalc => 2,
            Self::CodeRun => code_run::LEAST,
        }
    }

    /// Most tokens of an answer: the official limit for a base model's form of the prompt, InfLLM's larger one for a chat model,
    /// which says more than the number. None where the answer grows with the text.
    fn max_new_tokens(self, chat: bool) -> Option<usize> {
        let limits = if chat { &PUBLISHED.max_new_tokens_infllm } else { &PUBLISHED.max_new_tokens };
        limits.get(self.name()).copied().filter(|_| self != Self::MathCalc)
    }

    fn draw(self, rng: &mut Rng, which: Which, units: usize) -> Drawn {
        match self {
            Self::Passkey => passkey::draw(rng, which.depth, units),
            Self::NumberString => number_string::draw(rng, which.depth, units),
            Self::KvRetrieval => kv_retrieval::draw(rng, which.depth, units),
            Self::MathFind => math_find::draw(rng, which.kind, units),
            Self::MathCalc => math_calc::draw(rng, units),
            Self::CodeRun => code_run::draw(rng, which.kind, units),
        }
    }
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Lengths of prompt and answer together, in tokens.
    pub lengths: Vec<usize>,
    /// Depths in per cent, 0 the beginning: passkey, number string and key-value retrieval.
    pub depths: Vec<f64>,
    /// Texts for each length and depth; Math.Find has them for each of its seven questions, Code.Run for each of its five depths
    /// of calls.
    pub samples: usize,
    /// Seed of all texts.
    pub seed: u64,
    /// Most tokens of an answer, instead of the limits of InfiniteBench (base models) and InfLLM (chat models).
    pub max_new_tokens: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![4096, 32_768, 131_072],
            depths: vec![0.0, 25.0, 50.0, 75.0, 100.0],
            samples: 1,
            seed: 42,
            max_new_tokens: None,
        }
    }
}

/// One of the tasks, as a suite.
#[derive(Debug)]
pub struct Suite {
    task: Task,
    options: Options,
    readings: Vec<Reading>,
    scorer: Scorer,
}

/// Row of a reading: what is peculiar to it within its length.
#[derive(Clone, Copy, Debug)]
struct Which {
    depth: f64,
    kind: usize,
}

/// A text of some number of units, and what is asked of it.
struct Drawn {
    context: String,
    /// What stands for the placeholders of the prompt, `{context}` apart.
    fill: Vec<(&'static str, String)>,
    /// The label, in its published type.
    answer: Value,
}

impl Suite {
    /// The suite of a task.
    ///
    /// # Errors
    /// When an option is out of range, or a length is too short for the shortest text.
    pub fn new(task: Task, options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        check_grid(task.name(), &options.lengths, &options.depths, options.samples)?;
        let places = match task.kinds() {
            Some(kinds) => vec![None; kinds],
            None => options.depths.iter().copied().map(Some).collect(),
        };
        let readings = grid(task.name(), &options.lengths, &places, options.samples);
        let scorer = Scorer::new(scorers::Suite::InfiniteBench, task.name()).map_err(|e| {
            GenerateError::Option { suite: task.name(), option: "task", problem: e.to_string() }
        })?;
        let suite = Self { task, options, readings, scorer };
        // A length too short for its text is refused before hours are spent on the others.
        let shortest = suite.options.lengths.iter().min();
        for reading in suite.readings.iter().filter(|r| r.length.as_ref() == shortest) {
            let (asked, question) = suite.asked(reading, task.least(), tools)?;
            suite.check(reading, whole(tools, &asked, &question)?)?;
        }
        Ok(suite)
    }

    fn check(&self, reading: &Reading, needed: usize) -> Result<(), GenerateError> {
        let length = reading.length.unwrap_or_default();
        match needed > length {
            true => Err(GenerateError::TooShort { what: self.task.name().to_string(), length, needed }),
            false => Ok(()),
        }
    }

    /// The prompt of a reading with a text of `units`.
    fn asked(
        &self,
        reading: &Reading,
        units: usize,
        tools: &Tools<'_>,
    ) -> Result<(Asked, Question), EvalError> {
        let row = reading.at as usize / self.options.samples;
        let which = Which { depth: self.options.depths.get(row).copied().unwrap_or_default(), kind: row };
        // One stream for each row of each length: neither the units tried nor the other rows change what it draws first.
        let stream = reading.at ^ ((reading.length.unwrap_or_default() as u64) << 24);
        let mut rng = Rng::stream(self.options.seed, stream);
        let drawn = self.task.draw(&mut rng, which, units);
        let chat = tools.chat();
        let (before, after) = around_context(template(chat, self.task));
        let fill = |text: &str| {
            drawn.fill.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
        };
        let limit = self.options.max_new_tokens.or(self.task.max_new_tokens(chat));
        let question = Question {
            after: fill(after),
            max_new_tokens: limit.unwrap_or_else(|| tools.count(&format!(" {}", drawn.answer)) + MARGIN),
            sample: Sample::new("", drawn.answer.clone()),
            ..Question::default()
        };
        let source = Source { name: self.task.name().to_string(), text: drawn.context.clone() };
        let asked = Asked { chat, before: fill(before), source, ..Asked::default() };
        Ok((asked, question))
    }
}

/// Tokens of an answer beyond those of the label, where the limit follows the label.
const MARGIN: usize = 16;

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        self.task.name()
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let o = &self.options;
        json!({
            "lengths": o.lengths, "depths": o.depths, "samples": o.samples, "seed": o.seed,
            "max_new_tokens": o.max_new_tokens,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let length = reading.length.unwrap_or_default();
        let units = most_that_fit(self.task.least(), length, |units| {
            let (asked, question) = self.asked(reading, units, tools)?;
            whole(tools, &asked, &question)
        })?;
        let units = match units {
            Ok(units) => units,
            Err(needed) => {
                self.check(reading, needed)?;
                self.task.least()
            }
        };
        let (mut asked, question) = self.asked(reading, units, tools)?;
        asked.questions.push(question);
        Ok(Made::Asked(asked))
    }

    fn score(&self, _: &str, sample: &Sample) -> Result<Score, ScoreError> {
        let score = self.scorer.score(sample)?;
        Ok(match self.task {
            Task::MathCalc => {
                let dropped = Sample { model: "gpt4".into(), ..sample.clone() };
                score.with("first_number_dropped", self.scorer.score(&dropped)?.value)
            }
            // Thousands set apart are the same number; the published code takes what stands before the first comma.
            Task::Passkey | Task::NumberString => {
                let numbers = Sample { prediction: numbers(&sample.prediction).join(" "), ..sample.clone() };
                let (published, told) = (score.value, self.scorer.score(&numbers)?.value);
                Score { value: published.max(told), ..score }.with("published", published)
            }
            _ => score,
        })
    }
}

/// The published prompt of a task.
fn template(chat: bool, task: Task) -> &'static str {
    let templates = if chat { &PUBLISHED.gpt4_templates } else { &PUBLISHED.yarn_mistral_templates };
    templates.get(task.name()).map_or("", String::as_str)
}

/// Where the `n + 1` places between `n` units have the one at `depth` per cent.
fn place(depth: f64, n: usize) -> usize {
    ((depth / 100.0 * n as f64).round() as usize).min(n)
}

#[cfg(test)]
mod tests;
