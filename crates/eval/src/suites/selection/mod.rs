//! Selection: what methods lose against a base method that they approximate.
//!
//! The arms are compared with the first of them, the base, on one text a sample. The text is read once an arm, one arm
//! after the other, and holds everything that is asked:
//!
//! - **near-duplicates**: facts of one form whose people share first and last names with others; each is asked for from the
//!   end of the text.
//! - **multi-needle**: the same facts, [`TOGETHER`] asked for one after the other, the answers staying in the context.
//! - **multi-hop**: chains, of which the last link is asked for (RULER's variable tracking in the facts' own words; see
//!   [`Chain`](crate::text::Chain)).
//! - **perplexity**: how well every token of the text is predicted from what came before it.
//!
//! A question is put with the beginning of its answer, so that the answer's first token is the first that has to be found.
//! For each, the arm's own greedy answer is right or wrong, as in [`needle`](super::needle); everything else is measured on
//! the *base's* answer, which every arm is made to give, so that all of them stand before the same tokens:
//!
//! - `kl_first`, `kl_answer`: Kullback-Leibler divergence KL(base || arm) of the prediction of the answer's first token, and
//!   its mean over the whole answer and what ends it, in nats.
//! - `agreement`: share of these predictions whose likeliest token is the base's.
//! - `recall`: share of the base's votes for centres of spans, over question and answer, whose centre the arm's view held.
//!   Both arms vote with their own queries, and an arm that read the text otherwise has other queries and keys, so part of
//!   what is missing is no fault of its selection. Most votes come from heads that are nearly indifferent: a low recall
//!   alone means little.
//! - `mass`: share of the attention which the base's answer pays (all layers and heads) that falls on tokens the arm's view
//!   held as well; `mass_selected`: the same of the attention to what the base selected, global and local tokens apart.
//!
//! Between two arms, the base's logits, votes and attention are kept: for a question, `vocab_size` numbers for each token of
//! the answer, and the size of a view for each of them and each layer, 4 bytes each.

mod probe;
mod sample;

use super::perplexity;
use crate::{Arm, EvalError};
use probe::{Given, Limits, Loss, Observation};
use reattention_engine::{Cancel, Engine, Progress, Session, argmax, peak_rss, reset_peak_rss};
use reattention_model::Logits;
use sample::Sample;
use serde::Serialize;
use std::time::Instant;

pub use sample::TOGETHER;

/// What is asked or measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Facts that are hard to tell apart, one question at a time.
    NearDuplicates,
    /// The same facts, several questions in one session.
    MultiNeedle,
    /// Chains of facts.
    MultiHop,
    /// The text itself.
    Perplexity,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NearDuplicates, Self::MultiNeedle, Self::MultiHop, Self::Perplexity];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NearDuplicates => "near-duplicates",
            Self::MultiNeedle => "multi-needle",
            Self::MultiHop => "multi-hop",
            Self::Perplexity => "perplexity",
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text lengths in tokens, questions apart.
    pub lengths: Vec<usize>,
    /// What is asked.
    pub tasks: Vec<Task>,
    /// Texts a length.
    pub samples: usize,
    /// Facts in each text, at evenly spread depths.
    pub facts: usize,
    /// Chains in each text; each reaches through all of it.
    pub chains: usize,
    /// Links of a chain. The built-in model mostly follows one and sometimes two.
    pub hops: usize,
    /// Seed of the first text; the others follow.
    pub seed: u64,
    /// Tokens an answer may take.
    pub max_new_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![4096, 16_384, 65_536],
            tasks: Task::ALL.to_vec(),
            samples: 1,
            facts: 25,
            chains: 4,
            hops: 1,
            seed: 1,
            max_new_tokens: 32,
        }
    }
}

/// One question under one arm. What compares with the base is left out for the base itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// The task.
    pub task: Task,
    /// Depth of the fact in per cent; none for a chain.
    pub depth: Option<f64>,
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
    /// What is lost against the base.
    #[serde(flatten)]
    pub loss: Option<Loss>,
}

/// The questions of one arm, length, task and depth taken together; see the module for the measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The arm.
    pub arm: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// The task.
    pub task: Task,
    /// Depth in per cent; none for all depths and for chains.
    pub depth: Option<f64>,
    /// Questions.
    pub samples: usize,
    /// Right answers.
    pub correct: usize,
    /// Mean of `kl_first`.
    pub kl_first: Option<f64>,
    /// Largest `kl_first`.
    pub kl_first_max: Option<f64>,
    /// Mean of `kl_answer`.
    pub kl_answer: Option<f64>,
    /// Mean of `agreement`.
    pub agreement: Option<f64>,
    /// Mean of `recall`, over the questions for which the base voted.
    pub recall: Option<f64>,
    /// Mean of `mass`.
    pub mass: Option<f64>,
    /// Mean of `mass_selected`.
    pub mass_selected: Option<f64>,
}

/// Perplexity of the tokens at positions `from .. to` of the texts of one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// The arm.
    pub arm: String,
    /// Length of the text, in tokens.
    pub length: usize,
    /// First position.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Exponential of the mean loss.
    pub perplexity: f64,
    /// Mean loss less that of the base, in nats; none for the base.
    pub loss_delta: Option<f64>,
}

/// One reading of one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The arm.
    pub arm: String,
    /// Length asked for, in tokens.
    pub length: usize,
    /// Seed of the text.
    pub seed: u64,
    /// Tokens of the text.
    pub tokens: usize,
    /// Time taken to read it; under [`Task::Perplexity`] with the prediction of every token.
    pub prefill_s: f64,
    /// Tokens read a second.
    pub prefill_tok_s: f64,
    /// Tokens decoded a second behind text and first question (of the median token), nothing recorded; none without
    /// questions.
    pub decode_tok_s: Option<f64>,
    /// The most keys any query attended to.
    pub attended_max: usize,
    /// Keys and values held.
    pub kv_bytes: usize,
    /// The most memory the process held during this reading (or so far, where the system cannot start anew), what is kept
    /// of the base included.
    pub peak_rss_bytes: Option<usize>,
}

/// Result of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Questions by arm, length and task.
    pub totals: Vec<Cell>,
    /// Questions by arm, length, task and depth.
    pub cells: Vec<Cell>,
    /// Perplexity by arm, length and position.
    pub buckets: Vec<Bucket>,
    /// Speed and memory of every reading.
    pub runs: Vec<Run>,
    /// Every question and answer.
    pub rows: Vec<Row>,
}

/// Runs all arms on the same texts and compares them with the first. `watch` is told what runs (arm, length, sample) and
/// how far reading has come.
///
/// # Errors
/// When a method refuses its settings or cannot be asked several questions of a text read once, a text is too short for
/// what it should hold, or a step fails.
pub fn run(
    engine: &Engine,
    arms: &[Arm],
    options: &Options,
    cancel: &Cancel,
    mut watch: impl FnMut(&str, Progress),
) -> Result<Report, EvalError> {
    // What cannot work is refused before hours are spent on the rest.
    for arm in arms {
        if !arm.build(engine)?.splits() {
            return Err(EvalError::Whole { arm: arm.name.clone() });
        }
    }
    for &length in &options.lengths {
        Sample::new(engine, options, length, options.seed)?;
    }
    let mut report = Report::default();
    for &length in &options.lengths {
        let mut losses = vec![Losses::new(engine, length); arms.len()];
        for i in 0..options.samples {
            let sample = Sample::new(engine, options, length, options.seed.wrapping_add(i as u64))?;
            let mut base: Option<Reading> = None;
            for (arm, losses) in arms.iter().zip(&mut losses) {
                let name = format!("{} at {length}, text {} of {}", arm.name, i + 1, options.samples);
                let of = Of { engine, arm, options, length, cancel };
                let reading = of.read(&sample, base.as_ref(), &mut report, |p| watch(&name, p))?;
                losses.add(&reading.losses, base.as_ref().map(|b| &b.losses[..]));
                base.get_or_insert(reading);
            }
        }
        for (arm, losses) in arms.iter().zip(&losses) {
            report.buckets.extend(losses.buckets(&arm.name, length));
        }
    }
    report.totals = cells(&report.rows, |_| None);
    report.cells = cells(&report.rows, |row| row.depth);
    Ok(report)
}

/// One arm at one length.
struct Of<'a> {
    engine: &'a Engine,
    arm: &'a Arm,
    options: &'a Options,
    length: usize,
    cancel: &'a Cancel,
}

/// What is kept of the base: the loss of every token, and what it gave to each question of each dialogue.
struct Reading {
    losses: Vec<f32>,
    given: Vec<Vec<Given>>,
}

impl Of<'_> {
    /// Reads a text, asks everything, and adds rows and the run to the report.
    fn read(
        &self,
        sample: &Sample,
        base: Option<&Reading>,
        report: &mut Report,
        mut watch: impl FnMut(Progress),
    ) -> Result<Reading, EvalError> {
        let Self { engine, arm, options, cancel, .. } = *self;
        reset_peak_rss();
        let mut session = arm.session(engine)?;
        let (ids, start) = (&sample.context.ids, Instant::now());
        let losses = if options.tasks.contains(&Task::Perplexity) {
            perplexity::losses(&mut session, ids, cancel, &mut watch)?
        } else {
            session.prefill(&sample.context, cancel, &mut watch)?;
            Vec::new()
        };
        let prefill_s = start.elapsed().as_secs_f64();
        session.pin()?;
        let decode_tok_s = self.decode_rate(&mut session, sample)?;
        let limits = Limits {
            tokens: options.max_new_tokens,
            stop_tokens: engine.stop_tokens(),
            stop_strings: engine.stop_strings(),
            tokenizer: engine.tokenizer(),
            cancel,
        };
        let mut given = Vec::new();
        for (d, dialogue) in sample.dialogues.iter().enumerate() {
            let mut answers = Vec::new();
            for (q, question) in dialogue.questions.iter().enumerate() {
                let base = base.map(|b| &b.given[d][q]);
                let seen = probe::ask(&mut session, &question.prompt, base, &limits)?;
                report.rows.push(self.row(sample, dialogue.task, question, &seen, base)?);
                if base.is_none() {
                    answers.push(Given::of(seen));
                }
            }
            given.push(answers);
            session.truncate(ids.len())?;
        }
        report.runs.push(Run {
            arm: arm.name.clone(),
            length: self.length,
            seed: sample.seed,
            tokens: ids.len(),
            prefill_s,
            prefill_tok_s: ids.len() as f64 / prefill_s.max(1e-9),
            decode_tok_s,
            attended_max: session.attended_max(),
            kv_bytes: session.kv_bytes(),
            peak_rss_bytes: peak_rss(),
        });
        Ok(Reading { losses, given })
    }

    fn row(
        &self,
        sample: &Sample,
        task: Task,
        question: &sample::Question,
        seen: &Observation,
        base: Option<&Given>,
    ) -> Result<Row, EvalError> {
        let answer = self.engine.tokenizer().decode(&seen.own, true)?;
        Ok(Row {
            arm: self.arm.name.clone(),
            length: self.length,
            task,
            depth: question.depth,
            seed: sample.seed,
            question: question.fact.question(),
            expected: question.fact.value.clone(),
            correct: question.fact.is_answered_by(&answer),
            answer,
            loss: base.map(|base| Loss::new(base, seen)),
        })
    }

    /// Tokens decoded a second behind the text and the first question, as in ordinary use.
    fn decode_rate(&self, session: &mut Session, sample: &Sample) -> Result<Option<f64>, EvalError> {
        const WARM_UP: usize = 4;
        const TIMED: usize = 32;
        let Some(question) = sample.dialogues.iter().flat_map(|d| &d.questions).next() else {
            return Ok(None);
        };
        session.prefill(&question.prompt, self.cancel, |_| {})?;
        let mut token = argmax(session.logits());
        let mut seconds = Vec::new();
        for _ in 0..WARM_UP + TIMED {
            let start = Instant::now();
            token = argmax(&session.feed_step(&[token], probe::DECODE, &Logits::Last)?);
            seconds.push(start.elapsed().as_secs_f64());
        }
        session.truncate(sample.context.ids.len())?;
        // The median, since another process that gets in the way for a moment says nothing of the method.
        let timed = &mut seconds[WARM_UP..];
        timed.sort_by(f64::total_cmp);
        Ok(Some(1.0 / timed[timed.len() / 2].max(1e-9)))
    }
}

/// Losses of the texts of one length under one arm, added up by position.
#[derive(Clone)]
struct Losses {
    edges: Vec<usize>,
    /// Tokens, sum of their losses, and sum of the base's if there is one.
    sums: Vec<(usize, f64, Option<f64>)>,
}

impl Losses {
    fn new(engine: &Engine, length: usize) -> Self {
        let edges = perplexity::edges(length, engine.model().shape().window);
        Self { sums: vec![(0, 0.0, None); edges.len() - 1], edges }
    }

    fn add(&mut self, losses: &[f32], base: Option<&[f32]>) {
        for (pair, (tokens, own, others)) in self.edges.windows(2).zip(&mut self.sums) {
            // The first token of all is predicted from nothing and counts nowhere.
            let of = pair[0].max(1) - 1..pair[1] - 1;
            let sum = |losses: &[f32]| losses.iter().map(|l| f64::from(*l)).sum::<f64>();
            let Some(now) = losses.get(of.clone()) else { continue };
            *tokens += now.len();
            *own += sum(now);
            if let Some(base) = base.and_then(|b| b.get(of)) {
                *others = Some(others.unwrap_or(0.0) + sum(base));
            }
        }
    }

    fn buckets(&self, arm: &str, length: usize) -> impl Iterator<Item = Bucket> {
        self.edges.windows(2).zip(&self.sums).filter(|(_, sums)| sums.0 > 0).map(move |(pair, sums)| {
            let (tokens, own, others) = *sums;
            Bucket {
                arm: arm.to_string(),
                length,
                from: pair[0],
                to: pair[1],
                tokens,
                perplexity: (own / tokens as f64).exp(),
                loss_delta: others.map(|others| (own - others) / tokens as f64),
            }
        })
    }
}

/// Rows taken together by arm, length, task and `depth`, in the order of their first rows.
fn cells(rows: &[Row], depth: impl Fn(&Row) -> Option<f64>) -> Vec<Cell> {
    let mut groups: Vec<(Option<f64>, Vec<&Row>)> = Vec::new();
    for row in rows {
        let depth = depth(row);
        let same = |(d, of): &&mut (Option<f64>, Vec<&Row>)| {
            *d == depth && (&of[0].arm, of[0].length, of[0].task) == (&row.arm, row.length, row.task)
        };
        match groups.iter_mut().find(same) {
            Some((_, of)) => of.push(row),
            None => groups.push((depth, vec![row])),
        }
    }
    let cell = |(depth, rows): (Option<f64>, Vec<&Row>)| {
        let all = |get: fn(&Loss) -> Option<f64>| {
            rows.iter().filter_map(|row| get(row.loss.as_ref()?)).collect::<Vec<f64>>()
        };
        let mean = |get: fn(&Loss) -> Option<f64>| {
            let values = all(get);
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        Cell {
            arm: rows[0].arm.clone(),
            length: rows[0].length,
            task: rows[0].task,
            depth,
            samples: rows.len(),
            correct: rows.iter().filter(|r| r.correct).count(),
            kl_first: mean(|l| Some(l.kl_first)),
            kl_first_max: all(|l| Some(l.kl_first)).into_iter().reduce(f64::max),
            kl_answer: mean(|l| Some(l.kl_answer)),
            agreement: mean(|l| Some(l.agreement)),
            recall: mean(|l| l.recall),
            mass: mean(|l| l.mass),
            mass_selected: mean(|l| l.mass_selected),
        }
    };
    groups.into_iter().map(cell).collect()
}
