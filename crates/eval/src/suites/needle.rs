//! Needle: facts hidden in generated text, asked for one by one.
//!
//! One sample is one text of the length asked for with one fact at each depth; every fact is asked for, so the facts of
//! the other depths serve as near-identical distractors (more can be added). The text is read once, and each question
//! starts from the same point, unless the method's result depends on reading both together. An answer is right when its
//! first run of digits is the fact's number.

use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::{Sample, Score, ScoreError};
use crate::text::{Document, DocumentPlan, answers};
use reattention_engine::Source;
use serde_json::{Value, json};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text lengths in tokens, question apart.
    pub lengths: Vec<usize>,
    /// Depths in per cent: 0 is the beginning, 100 the end.
    pub depths: Vec<f64>,
    /// Texts a length.
    pub samples: usize,
    /// Further near-identical facts in each text.
    pub distractors: usize,
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
            seed: 1,
            max_new_tokens: 32,
        }
    }
}

/// Tokens that question and answer may take besides the text.
const ROOM: usize = 256;

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
    /// When a length is too short for its facts.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let mut readings = Vec::new();
        for &length in &options.lengths {
            // A length too short for its facts is refused before hours are spent on the others.
            document(&options, length, options.seed, tools)?;
            for sample in 0..options.samples as u64 {
                let at = options.seed.wrapping_add(sample);
                let row = |depth: &f64| RowKey { id: format!("{at}@{depth}"), depth: Some(*depth) };
                readings.push(Reading {
                    task: "single".into(),
                    length: Some(length),
                    rows: options.depths.iter().map(row).collect(),
                    tokens: length + ROOM,
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
        1
    }

    fn options(&self) -> Value {
        let Options { lengths, depths, samples, distractors, seed, max_new_tokens } = &self.options;
        json!({
            "lengths": lengths, "depths": depths, "samples": samples, "distractors": distractors, "seed": seed,
            "max_new_tokens": max_new_tokens,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let text = document(&self.options, reading.length.unwrap_or(0), reading.at, tools)?;
        let stop = tools.stop_at_line();
        let question = |question: &str, value: &str| Question {
            after: match tools.chat() {
                true => format!("\n\n{question}"),
                false => format!("\nQuestion: {question}\nAnswer:"),
            },
            sample: Sample::new("", value.into()),
            max_new_tokens: self.options.max_new_tokens,
            stop: stop.clone(),
            ..Question::default()
        };
        Ok(Made::Asked(Asked {
            chat: true,
            questions: text.facts.iter().map(|f| question(&f.fact.question(), &f.fact.value)).collect(),
            source: Source { name: "haystack".into(), text: text.text },
            ..Asked::default()
        }))
    }

    fn score(&self, _task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Ok(Score::of(f64::from(u8::from(answers(&sample.prediction, sample.text()?)))))
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        vec![run::by_depth(run::Suite::name(self), rows)]
    }
}

/// The text of one sample.
fn document(options: &Options, length: usize, seed: u64, tools: &Tools<'_>) -> Result<Document, EvalError> {
    let depths = options.depths.iter().map(|d| d / 100.0);
    let plan = DocumentPlan::new(seed, length).depths(depths).distractors(options.distractors);
    Ok(plan.build(|text| tools.count(text))?)
}
