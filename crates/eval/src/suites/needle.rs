//! Needle: facts hidden in generated text, asked for one by one.
//!
//! One sample is one text of the length asked for with one fact at each depth; every fact is asked for, so the facts of
//! the other depths serve as near-identical distractors (more can be added). The text is read once, and each question
//! starts from the same point, unless the method's result depends on reading both together. An answer is right when its
//! first run of digits is the fact's number.

use crate::text::{Document, DocumentPlan};
use crate::{Arm, EvalError};
use reattention_engine::{
    Cancel, Engine, GenerateOptions, Progress, SessionError, Source, peak_rss, reset_peak_rss,
};
use serde::Serialize;
use std::time::Instant;

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

/// One length and depth under one method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The method.
    pub method: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// Depth in per cent.
    pub depth: f64,
    /// Facts asked for.
    pub samples: usize,
    /// Right answers.
    pub correct: usize,
    /// Time taken; reading the text is shared out evenly among its questions.
    pub seconds: f64,
    /// The most memory the process has held while the texts of this method and length were read and asked (where the system
    /// cannot tell, since the run began).
    pub peak_rss_bytes: Option<usize>,
    /// Why the method refused this length; nothing was asked then.
    pub refused: Option<String>,
}

/// One question of one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The method.
    pub method: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// Depth in per cent.
    pub depth: f64,
    /// Seed of the text.
    pub seed: u64,
    /// The question.
    pub question: String,
    /// The right number.
    pub expected: String,
    /// What was answered.
    pub answer: String,
    /// Whether it is right.
    pub correct: bool,
    /// Tokens of text and question.
    pub prompt_tokens: usize,
    /// The most keys any query attended to.
    pub attended_max: usize,
}

/// Result of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Accuracy by method, length and depth.
    pub cells: Vec<Cell>,
    /// Every question and answer.
    pub rows: Vec<Row>,
}

/// Runs all methods on the same texts. `watch` is told what runs (method, length, sample) and how far reading has come.
///
/// # Errors
/// When a method refuses its settings, or a step fails. A length that a method refuses is no error: its cells say so.
pub fn run(
    engine: &Engine,
    arms: &[Arm],
    options: &Options,
    cancel: &Cancel,
    mut watch: impl FnMut(&str, Progress),
) -> Result<Report, EvalError> {
    let mut report = Report::default();
    // A length too short for its facts is refused before hours are spent on the others.
    for &length in &options.lengths {
        document(engine, options, length, options.seed)?;
    }
    for &length in &options.lengths {
        let texts = (0..options.samples as u64)
            .map(|i| document(engine, options, length, options.seed.wrapping_add(i)))
            .collect::<Result<Vec<_>, _>>()?;
        for arm in arms {
            let first = report.cells.len();
            for &depth in &options.depths {
                report.cells.push(Cell {
                    method: arm.name.clone(),
                    length,
                    depth,
                    samples: 0,
                    correct: 0,
                    seconds: 0.0,
                    peak_rss_bytes: None,
                    refused: None,
                });
            }
            reset_peak_rss();
            for (i, text) in texts.iter().enumerate() {
                let name = format!("{} at {length}, text {} of {}", arm.name, i + 1, texts.len());
                let start = Instant::now();
                let answers = match ask_all(engine, arm, text, options, cancel, |p| watch(&name, p)) {
                    Err(EvalError::Session(SessionError::Method(reason))) => {
                        for cell in &mut report.cells[first..] {
                            cell.refused = Some(reason.to_string());
                        }
                        break;
                    }
                    answers => answers?,
                };
                let share = start.elapsed().as_secs_f64() / answers.len().max(1) as f64;
                for (index, answer) in answers.into_iter().enumerate() {
                    let (fact, cell) = (&text.facts[index].fact, &mut report.cells[first + index]);
                    let correct = fact.is_answered_by(&answer.text);
                    cell.samples += 1;
                    cell.correct += usize::from(correct);
                    cell.seconds += share;
                    cell.peak_rss_bytes = peak_rss();
                    report.rows.push(Row {
                        method: arm.name.clone(),
                        length,
                        depth: options.depths[index],
                        seed: options.seed.wrapping_add(i as u64),
                        question: fact.question(),
                        expected: fact.value.clone(),
                        answer: answer.text,
                        correct,
                        prompt_tokens: answer.prompt_tokens,
                        attended_max: answer.attended_max,
                    });
                }
            }
        }
    }
    Ok(report)
}

/// The text of one sample.
fn document(engine: &Engine, options: &Options, length: usize, seed: u64) -> Result<Document, EvalError> {
    // A tokenizer that fails on plain English fails on the prompt too, with its own message.
    let count = |text: &str| engine.tokenizer().encode_text(text).map_or(0, |e| e.ids.len());
    let depths = options.depths.iter().map(|d| d / 100.0);
    Ok(DocumentPlan::new(seed, length).depths(depths).distractors(options.distractors).build(count)?)
}

struct Answer {
    text: String,
    prompt_tokens: usize,
    attended_max: usize,
}

fn ask_all(
    engine: &Engine,
    arm: &Arm,
    text: &Document,
    options: &Options,
    cancel: &Cancel,
    mut watch: impl FnMut(Progress),
) -> Result<Vec<Answer>, EvalError> {
    let source = [Source { name: "haystack".into(), text: text.text.clone() }];
    let generate = GenerateOptions {
        max_new_tokens: options.max_new_tokens,
        stop_tokens: engine.stop_tokens(),
        stop_strings: engine.stop_strings(),
        ..GenerateOptions::default()
    };
    let context = engine.context(&source)?;
    let mut session = arm.session(engine)?;
    let splits = session.method().splits();
    if splits {
        session.prefill(&context, cancel, &mut watch)?;
        session.pin();
    }
    let mut answers = Vec::new();
    for placed in &text.facts {
        let question = engine.question(&placed.fact.question())?;
        let prompt_tokens = context.ids.len() + question.ids.len();
        if splits {
            session.prefill(&question, cancel, |_| {})?;
        } else {
            session = arm.session(engine)?;
            session.prefill(&engine.ask(&source, &placed.fact.question())?, cancel, &mut watch)?;
        }
        let answer = session.generate(&generate, Some(engine.tokenizer().as_ref()), cancel, |_| {})?;
        answers.push(Answer { text: answer.text, prompt_tokens, attended_max: session.attended_max() });
        if splits {
            session.truncate(context.ids.len())?;
        }
    }
    Ok(answers)
}
