//! Needle: facts hidden in generated text, asked for one by one.
//!
//! One sample is one text of the length asked for with one fact at each depth; every fact is asked for, so the facts of
//! the other depths serve as near-identical distractors (more can be added). The text is read once, and each question
//! starts from the same point, unless the method's result depends on reading both together. An answer is right when its
//! first number of so many digits is the fact's, however it is written.
//!
//! With `keys` above 1 a question asks for that many facts at once, spread over the text. It scores the share of their
//! numbers that the answer holds as whole runs of digits.

use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::{Sample, Score, ScoreError};
use crate::suites::generate::GenerateError;
use crate::text::{Document, DocumentPlan, Fact, answers, holds};
use reattention_engine::Source;
use serde_json::{Value, json};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Lengths in tokens: the prompt, template and longest question included, and the longest answer.
    pub lengths: Vec<usize>,
    /// Depths in per cent: 0 is the beginning, 100 the end.
    pub depths: Vec<f64>,
    /// Texts a length.
    pub samples: usize,
    /// Further near-identical facts in each text.
    pub distractors: usize,
    /// Facts that a question asks for; each number makes a task of its own, from one reading of the text.
    pub keys: Vec<usize>,
    /// Seed of the first text; the others follow.
    pub seed: u64,
    /// Tokens an answer may take.
    pub max_new_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![512, 4096, 32_768],
            depths: vec![0.0, 25.0, 50.0, 75.0, 100.0],
            samples: 4,
            distractors: 0,
            keys: vec![1],
            seed: 1,
            max_new_tokens: 32,
        }
    }
}

/// The needle suite.
#[derive(Clone, Debug)]
pub struct Suite {
    options: Options,
    readings: Vec<Reading>,
}

impl Suite {
    /// The suite with these options.
    ///
    /// # Errors
    /// When a length is too short for its facts, or a question asks for more facts than there are.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        if let Some(&keys) = options.keys.iter().find(|n| !(1..=options.depths.len()).contains(*n)) {
            let problem = format!("is {keys}; it can be 1 to {}, the number of depths", options.depths.len());
            return Err(GenerateError::Option { suite: "needle", option: "keys", problem }.into());
        }
        let mut readings = Vec::new();
        for &length in &options.lengths {
            // A length too short for its facts is refused before hours are spent on the others.
            fitted(&options, length, options.seed, tools)?;
            for sample in 0..options.samples as u64 {
                let at = options.seed.wrapping_add(sample);
                let rows = options.keys.iter().flat_map(|&keys| {
                    options.depths.iter().map(move |depth| RowKey {
                        id: format!("{at}@{depth}"),
                        // Several facts lie at several depths.
                        depth: (keys == 1).then_some(*depth),
                        task: Some(task(keys)),
                    })
                });
                readings.push(Reading {
                    task: task(options.keys[0]),
                    length: Some(length),
                    rows: rows.collect(),
                    tokens: length,
                    at,
                });
            }
        }
        Ok(Self { options, readings })
    }
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "needle"
    }

    fn version(&self) -> u32 {
        3
    }

    fn options(&self) -> Value {
        let Options { lengths, depths, samples, distractors, keys, seed, max_new_tokens } = &self.options;
        json!({
            "lengths": lengths, "depths": depths, "samples": samples, "distractors": distractors, "keys": keys,
            "seed": seed, "max_new_tokens": max_new_tokens,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        Ok(Made::Asked(fitted(&self.options, reading.length.unwrap_or(0), reading.at, tools)?))
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        if task == SINGLE {
            return Ok(Score::of(f64::from(u8::from(answers(&sample.prediction, sample.text()?)))));
        }
        let values = sample.references()?;
        let found = values.iter().filter(|value| holds(&sample.prediction, value)).count();
        Ok(Score::of(found as f64 / values.len().max(1) as f64))
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        vec![run::by_depth(run::Suite::name(self), rows)]
    }
}

/// The task of questions that ask for one fact.
const SINGLE: &str = "single";

/// The task of questions that ask for `keys` facts.
fn task(keys: usize) -> String {
    if keys == 1 { SINGLE.into() } else { format!("keys-{keys}") }
}

/// The text of one sample with its questions, as long as prompt and longest answer may be together.
fn fitted(options: &Options, length: usize, seed: u64, tools: &Tools<'_>) -> Result<Asked, EvalError> {
    let mut tokens = length;
    loop {
        let asked = asked(options, document(options, tokens, seed, tools)?, tools);
        let needed = tools.longest(&asked)?;
        let Some(excess) = needed.checked_sub(length).filter(|excess| *excess > 0) else { return Ok(asked) };
        let short = || GenerateError::TooShort { what: "needle".into(), length, needed };
        tokens = tokens.checked_sub(excess).ok_or_else(short)?;
    }
}

/// The questions about a text.
fn asked(options: &Options, text: Document, tools: &Tools<'_>) -> Asked {
    let stop = tools.stop_at_line();
    let facts: Vec<&Fact> = text.facts.iter().map(|f| &f.fact).collect();
    let question = |keys: usize, first: usize| {
        let asked: Vec<&Fact> =
            (0..keys).map(|i| facts[(first + i * facts.len() / keys) % facts.len()]).collect();
        let question: Vec<String> = asked.iter().map(|f| f.question()).collect();
        let question = question.join(" ");
        let values: Vec<&str> = asked.iter().map(|f| f.value.as_str()).collect();
        Question {
            after: match tools.chat() {
                true => format!("\n\n{question}"),
                false => format!("\nQuestion: {question}\nAnswer:"),
            },
            sample: Sample::new("", if keys == 1 { values[0].into() } else { values.into() }),
            max_new_tokens: options.max_new_tokens * keys,
            // Several numbers may come in a list, a line each.
            stop: if keys == 1 { stop.clone() } else { Vec::new() },
            ..Question::default()
        }
    };
    let n = facts.len();
    let questions = options.keys.iter().flat_map(|&keys| (0..n).map(move |first| (keys, first)));
    Asked {
        chat: true,
        questions: questions.map(|(keys, first)| question(keys, first)).collect(),
        source: Source { name: "haystack".into(), text: text.text },
        ..Asked::default()
    }
}

/// The text of one sample.
fn document(options: &Options, length: usize, seed: u64, tools: &Tools<'_>) -> Result<Document, EvalError> {
    let depths = options.depths.iter().map(|d| d / 100.0);
    let plan = DocumentPlan::new(seed, length).depths(depths).distractors(options.distractors);
    Ok(plan.build(|text| tools.count(text))?)
}
