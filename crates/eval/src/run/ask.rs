//! Asking: from a text and its questions to rows.

use super::{Asked, Question, Reading, Row, Seconds, Suite, Tokens};
use crate::suites::perplexity::{edges, losses};
use crate::{Arm, EvalError};
use reattention_engine::{
    Cancel, Engine, Finish, GenerateOptions, Generation, Progress, Prompt, PromptError, Session,
    SessionError, peak_rss,
};
use reattention_model::{ChatTemplate, Tokenizer};
use std::time::Instant;

/// Longest part of a prompt's end that a row keeps, in bytes.
const TAIL: usize = 800;

/// What suites may know of the model when they name and make texts: its tokenizer and its chat template. The weights need not
/// be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Tools<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, if questions are asked in one.
    pub template: Option<&'a ChatTemplate>,
}

impl<'a> Tools<'a> {
    /// Those of a loaded model.
    pub fn of(engine: &'a Engine) -> Self {
        Self { tokenizer: engine.tokenizer(), template: engine.template() }
    }

    /// Tokens of a text by itself.
    pub fn count(&self, text: &str) -> usize {
        // A tokenizer that fails on plain text fails on the prompt too, with its own message.
        self.tokenizer.encode_text(text).map_or(0, |e| e.ids.len())
    }

    /// Whether questions are asked in a chat template: suites with two forms of a prompt take the one for chat models.
    pub fn chat(&self) -> bool {
        self.template.is_some()
    }

    /// Texts that end an answer of one line: a line break for a model without chat template, which would otherwise go on.
    pub fn stop_at_line(&self) -> Vec<String> {
        if self.chat() { Vec::new() } else { vec!["\n".into()] }
    }

    /// Tokens that stand around text and question: begin token or chat template, and the system message.
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn around(&self, asked: &Asked) -> Result<usize, EvalError> {
        let bare = Asked { chat: asked.chat, system: asked.system.clone(), ..Asked::default() };
        self.prompt_tokens(&bare, &Question::default())
    }

    /// Tokens of the whole prompt of a question.
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn prompt_tokens(&self, asked: &Asked, question: &Question) -> Result<usize, EvalError> {
        Ok(self.opening(asked)?.ids.len() + self.closing(asked, question)?.ids.len())
    }

    /// Tokens of the longest prompt and answer of a reading together.
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn longest(&self, asked: &Asked) -> Result<usize, EvalError> {
        let opening = self.opening(asked)?.ids.len();
        let closing = |question: &Question| -> Result<usize, EvalError> {
            Ok(self.closing(asked, question)?.ids.len() + question.max_new_tokens)
        };
        let longest = asked.questions.iter().try_fold(0, |most, q| closing(q).map(|n: usize| n.max(most)))?;
        Ok(opening + longest)
    }

    fn opening(&self, asked: &Asked) -> Result<Prompt, PromptError> {
        let template = self.template.filter(|_| asked.chat);
        Prompt::opening(asked.system.as_deref(), &asked.before, &asked.source, self.tokenizer, template)
    }

    fn closing(&self, asked: &Asked, question: &Question) -> Result<Prompt, PromptError> {
        let template = self.template.filter(|_| asked.chat);
        Prompt::closing(&question.after, &question.prefix, self.tokenizer, template)
    }
}

/// Cuts a prompt as LongBench and InfiniteBench do: of more than `limit` tokens (template apart) the first and the last
/// `limit / 2` stay. What is left out is counted in [`Asked::cut`]. The published code decodes both halves and encodes them
/// anew; leaving the bytes between them out is the same, unless a token ends within a character.
///
/// # Errors
/// When the tokenizer fails, or the reading has several questions: the rule is for one.
pub fn cut_middle(tools: &Tools<'_>, asked: &mut Asked, limit: usize) -> Result<(), EvalError> {
    let [question] = asked.questions.as_mut_slice() else { return Err(EvalError::CutsOneQuestion) };
    let prompt = format!("{}{}{}", asked.before, asked.source.text, question.after);
    let encoded = tools.tokenizer.encode_text(&prompt)?;
    let (n, half) = (encoded.ids.len(), limit / 2);
    if n <= limit {
        return Ok(());
    }
    let boundary = |mut byte: usize| {
        while !prompt.is_char_boundary(byte) {
            byte += 1;
        }
        byte
    };
    let from = if half == 0 { 0 } else { boundary(encoded.offsets[half - 1].end) };
    let to = if half == 0 { prompt.len() } else { boundary(encoded.offsets[n - half].start).max(from) };
    asked.cut = n - 2 * half;
    let text = asked.before.len()..asked.before.len() + asked.source.text.len();
    if text.start <= from && to <= text.end {
        asked.source.text.replace_range(from - text.start..to - text.start, "");
    } else {
        // What is cut reaches into the instructions: nothing tells text from question any more but the prompt's end.
        let after = prompt[to.max(text.end)..].to_string();
        asked.source.text = format!("{}{}", &prompt[..from], &prompt[to..to.max(text.end)]);
        asked.before = String::new();
        question.after = after;
    }
    Ok(())
}

/// Asks the questions of a reading whose rows are in `wanted` (indices, in order), and hands over each row when it is done.
pub(super) fn ask(
    engine: &Engine,
    arm: &Arm,
    suite: &dyn Suite,
    reading: &Reading,
    asked: &Asked,
    wanted: &[usize],
    evidence: usize,
    cancel: &Cancel,
    mut watch: impl FnMut(Progress),
    mut done: impl FnMut(Row) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let tools = Tools::of(engine);
    let opening = tools.opening(asked)?;
    let mut session = arm.session(engine)?;
    let splits = session.method().splits();
    let mut shared = 0.0;
    if splits {
        let start = Instant::now();
        session.prefill(&opening, cancel, &mut watch)?;
        session.pin()?;
        shared = start.elapsed().as_secs_f64() / wanted.len().max(1) as f64;
    }
    for &index in wanted {
        let question = &asked.questions[index];
        let closing = tools.closing(asked, question)?;
        let start = Instant::now();
        if evidence > 0 {
            session.gather_evidence();
        }
        if splits {
            session.prefill(&closing, cancel, |_| {})?;
        } else {
            session = arm.session(engine)?;
            if evidence > 0 {
                session.gather_evidence();
            }
            session.prefill(&joined(&opening, &closing), cancel, &mut watch)?;
        }
        let read = shared + start.elapsed().as_secs_f64();
        let mut stop_strings = question.stop.clone();
        if engine.has_template() {
            stop_strings.extend(engine.stop_strings());
        }
        let options = GenerateOptions {
            max_new_tokens: question.max_new_tokens,
            stop_tokens: engine.stop_tokens(),
            stop_strings,
            evidence,
            ..GenerateOptions::default()
        };
        let answer = session.generate(&options, Some(engine.tokenizer().as_ref()), cancel, |_| {})?;
        if answer.finish == Finish::Cancelled {
            // Half an answer is no row: it is asked again when the run goes on.
            let done = opening.ids.len() + closing.ids.len();
            return Err(SessionError::Cancelled { done, total: done }.into());
        }
        let mut row = row(suite, reading, index, question, &answer);
        row.method.clone_from(&arm.name);
        row.seconds = Seconds { read, answer: answer.elapsed.as_secs_f64() };
        row.tokens = Tokens {
            prompt: opening.ids.len() + closing.ids.len(),
            context: opening.context_tokens(),
            cut: asked.cut,
            kept: session.kept(),
            attended_max: session.attended_max(),
            generated: answer.ids.len(),
        };
        row.peak_rss_bytes = peak_rss();
        done(row)?;
        if splits {
            session.truncate(opening.ids.len())?;
        }
    }
    Ok(())
}

/// Predicts every token of a text.
pub(super) fn predict(
    engine: &Engine,
    session: &mut Session,
    text: &str,
    most: Option<usize>,
    cancel: &Cancel,
    watch: impl FnMut(Progress),
) -> Result<Row, EvalError> {
    let mut ids = engine.tokenizer().prefix().to_vec();
    let begin = ids.len();
    let encoded = engine.tokenizer().encode_text(text)?;
    ids.extend(&encoded.ids);
    ids.truncate(most.unwrap_or(usize::MAX));
    if ids.len() < begin.max(1) + 1 {
        return Err(EvalError::TooShort { tokens: ids.len(), needed: 2 });
    }
    let start = Instant::now();
    let losses = losses(session, &ids, cancel, watch)?;
    let buckets = edges(ids.len(), engine.model().shape().window)
        .windows(2)
        .map(|pair| {
            // The first token of all is predicted from nothing and counts nowhere.
            let of = &losses[pair[0].max(1) - 1..pair[1] - 1];
            super::Bucket {
                from: pair[0],
                to: pair[1],
                tokens: of.len(),
                loss: of.iter().map(|l| f64::from(*l)).sum(),
            }
        })
        .collect();
    // Words are of the text that was read: a file cut short counts as far as it was read.
    let read: usize = encoded.offsets.get(ids.len() - begin - 1).map_or(0, |o| o.end);
    Ok(Row {
        buckets,
        words: Some(text.get(..read).unwrap_or(text).split_whitespace().count() as u64),
        seconds: Seconds { read: start.elapsed().as_secs_f64(), answer: 0.0 },
        tokens: Tokens {
            prompt: ids.len(),
            context: ids.len().saturating_sub(begin),
            kept: session.kept(),
            attended_max: session.attended_max(),
            ..Tokens::default()
        },
        peak_rss_bytes: peak_rss(),
        ..Row::default()
    })
}

/// The row of an answer: all but what only the session knows.
fn row(suite: &dyn Suite, reading: &Reading, index: usize, question: &Question, answer: &Generation) -> Row {
    let key = &reading.rows[index];
    let mut sample = question.sample.clone();
    sample.prediction.clone_from(&answer.text);
    let mut row = Row {
        suite: suite.name().to_string(),
        task: reading.task_of(index).to_string(),
        length: reading.length,
        depth: key.depth,
        id: key.id.clone(),
        tail: tail(&format!("{}{}", question.after, question.prefix)),
        expected: sample.expected.clone(),
        prediction: answer.text.clone(),
        evidence: answer.evidence.clone(),
        words: sample.length,
        index: sample.index,
        ..Row::default()
    };
    match suite.score(reading.task_of(index), &sample) {
        Ok(score) => {
            row.score = Some(score.value);
            row.parts = score.parts.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
            row.note = score.note.map(str::to_string);
        }
        Err(error) => row.refused = Some(format!("not scored: {error}")),
    }
    row
}

fn tail(prompt: &str) -> String {
    let mut from = prompt.len().saturating_sub(TAIL);
    while !prompt.is_char_boundary(from) {
        from += 1;
    }
    prompt[from..].to_string()
}

/// Opening and closing as one prompt, for methods that read both together.
fn joined(opening: &Prompt, closing: &Prompt) -> Prompt {
    let mut prompt = opening.clone();
    prompt.question = Some(prompt.ids.len());
    prompt.ids.extend_from_slice(&closing.ids);
    prompt.origins.resize(prompt.ids.len(), None);
    prompt
}
