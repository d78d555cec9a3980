//! The original needle test: one sentence about San Francisco in a long text (gkamradt/LLMTest_NeedleInAHaystack
//! `needlehaystack/llm_needle_haystack_tester.py`; MIT).
//!
//! The text is repeated until it is long enough and cut to the length less a buffer of 200 tokens; the needle stands at its depth,
//! moved back to the end of the sentence before it. The published score is a language model's opinion, which needs one: here an
//! answer is scored offline, as NeedleBench does, with ROUGE beside it, as kvpress does for this test (without its stemmer).

use super::essays::Essays;
use super::generate::{Cut, GenerateError, check_grid, grid, whole};
use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, Table, Tools, by_task};
use crate::scorers::{Sample, Score, ScoreError, needlebench, rouge_google};
use reattention_engine::Source;
use serde_json::{Value, json};
use std::path::PathBuf;

const NAME: &str = "haystack";

/// Tokens kept free for prompt and answer, as published, unless they take more.
const BUFFER: usize = 200;

const SYSTEM: &str =
    "You are a helpful AI bot that answers questions for a user. Keep your response short and direct";

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Lengths of prompt and answer together, in tokens. Published: 35 from 1000 to 16000.
    pub lengths: Vec<usize>,
    /// Depths in per cent. Published: 35 from 0 to 100.
    pub depths: Vec<f64>,
    /// What is hidden.
    pub needle: String,
    /// What is asked.
    pub question: String,
    /// What an answer must hold.
    pub keyword: String,
    /// Seed of the prose that stands in for the essays.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// A folder with the essays.
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![1000, 4750, 8500, 12_250, 16_000],
            depths: (0..=10).map(|d| f64::from(d) * 10.0).collect(),
            needle: "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n".into(),
            question: "What is the best thing to do in San Francisco?".into(),
            keyword: "eat a sandwich and sit in Dolores Park".into(),
            seed: 42,
            max_new_tokens: 64,
            data: None,
        }
    }
}

/// The suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    essays: Essays,
    readings: Vec<Reading>,
}

impl Suite {
    /// The suite.
    ///
    /// # Errors
    /// When an option is out of range, a file of the user's is malformed, or a length is too short for prompt and needle.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        check_grid(NAME, &options.lengths, &options.depths, 1)?;
        let longest = options.lengths.iter().copied().max().unwrap_or_default();
        let essays = Essays::load(options.data.as_deref(), options.seed, longest.saturating_mul(7))?;
        let places: Vec<Option<f64>> = options.depths.iter().copied().map(Some).collect();
        let readings = grid(NAME, &options.lengths, &places, 1);
        let suite = Self { options, essays, readings };
        for length in &suite.options.lengths {
            suite.room(*length, tools)?;
        }
        Ok(suite)
    }

    /// Tokens of text that a length has room for.
    fn room(&self, length: usize, tools: &Tools<'_>) -> Result<usize, EvalError> {
        let (asked, question) = self.asked(String::new(), tools);
        let around = whole(tools, &asked, &question)?.max(BUFFER);
        let needed = around + tools.count(&self.options.needle);
        let short = || GenerateError::TooShort { what: NAME.to_string(), length, needed };
        Ok(length.checked_sub(needed).ok_or_else(short)?)
    }

    fn asked(&self, text: String, tools: &Tools<'_>) -> (Asked, Question) {
        let o = &self.options;
        // Two messages of the user's in the published code; chat templates here render one.
        let after =
            format!("\n\n{} Don't give information outside the document or repeat your findings", o.question);
        // A model without a template continues a text: it is told that the answer comes now.
        let after = if tools.chat() { after } else { format!("{after}\n") };
        let question = Question {
            after,
            max_new_tokens: o.max_new_tokens,
            sample: Sample::new("", json!(format!("{}*{}", o.needle, o.keyword))),
            ..Question::default()
        };
        let source = Source { name: NAME.to_string(), text };
        let system = Some(SYSTEM.to_string());
        (Asked { chat: tools.chat(), system, source, ..Asked::default() }, question)
    }
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let o = &self.options;
        json!({
            "lengths": o.lengths, "depths": o.depths, "needle": o.needle, "question": o.question,
            "keyword": o.keyword, "seed": o.seed, "max_new_tokens": o.max_new_tokens, "haystack": self.essays.name,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let length = reading.length.unwrap_or_default();
        let mut room = self.room(length, tools)?;
        let text = self.essays.text();
        let cut = Cut::filled(&[&text], room, tools)?;
        let depth = reading.rows[0].depth.unwrap_or_default();
        loop {
            room = room.min(cut.tokens());
            let text = cut.with(&self.options.needle, place(&cut, depth, room), room);
            let (mut asked, question) = self.asked(text, tools);
            let needed = whole(tools, &asked, &question)?;
            if needed <= length || room == 0 {
                asked.questions.push(question);
                return Ok(Made::Asked(asked));
            }
            room = room.saturating_sub(needed - length);
        }
    }

    fn score(&self, _: &str, sample: &Sample) -> Result<Score, ScoreError> {
        let rouge = |n| rouge_google::rouge_n(&sample.prediction, &self.options.needle, n);
        // Case, punctuation and marks of layout are no part of what was found.
        let bare = Sample {
            prediction: bare(&sample.prediction),
            expected: json!(format!("{}*{}", bare(&self.options.needle), bare(&self.options.keyword))),
            ..sample.clone()
        };
        let score = needlebench::needlebench(&bare)?.with("rouge_1", rouge(1)?).with("rouge_2", rouge(2)?);
        Ok(score.with("rouge_l", rouge_google::rouge_l(&sample.prediction, &self.options.needle)?))
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let mut tables = by_task(NAME, rows);
        for table in &mut tables {
            table.notes.push(format!(
                "haystack: {}; scored by the needle's words, not by a language model as published",
                self.essays.name
            ));
        }
        tables
    }
}

/// The words of a text in lower case, with single spaces between them.
fn bare(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The token before which the needle stands: at its depth, then back until a full stop is the token before, or the beginning.
fn place(cut: &Cut, depth: f64, room: usize) -> usize {
    if depth >= 100.0 {
        return room;
    }
    let mut at = (room as f64 * (depth / 100.0)) as usize;
    while at > 0 && cut.part(at - 1, at) != "." {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Suite as _;
    use reattention_engine::{Engine, Package};
    use reattention_kernels::Cpu;
    use std::sync::Arc;

    fn engine() -> Engine {
        let package = Package::built_in().unwrap();
        package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(1).unwrap())).unwrap()
    }

    #[test]
    fn needles_stand_behind_a_sentence_at_or_before_their_depth() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let options = Options { lengths: vec![1500, 4000], ..Options::default() };
        let suite = Suite::new(options.clone(), &tools).unwrap();
        for reading in suite.readings() {
            let Made::Asked(asked) = suite.make(reading, &tools).unwrap() else { panic!("asked") };
            let (text, needle) = (&asked.source.text, &options.needle);
            let at = text.find(needle.as_str()).unwrap();
            let depth = reading.rows[0].depth.unwrap();
            assert!(depth == 100.0 || at == 0 || text[..at].ends_with('.'), "{depth}");
            let found = 100.0 * at as f64 / (text.len() - needle.len()) as f64;
            assert!(found <= depth + 1.0 && found > depth - 6.0, "{found} for {depth}");
            let (size, length) =
                (whole(&tools, &asked, &asked.questions[0]).unwrap(), reading.length.unwrap());
            assert!(size <= length && size + BUFFER > length, "{size} of {length}");
        }
    }

    #[test]
    fn prompt_and_scores() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let suite = Suite::new(Options::default(), &tools).unwrap();
        let (asked, question) = suite.asked("TEXT".into(), &tools);
        assert_eq!(
            asked.system.as_deref(),
            Some(
                "You are a helpful AI bot that answers questions for a user. Keep your response short and direct"
            )
        );
        assert_eq!(
            question.after,
            "\n\nWhat is the best thing to do in San Francisco? Don't give information outside the document or repeat your findings\n"
        );
        let score = |said: &str| {
            suite.score(NAME, &Sample { prediction: said.into(), ..question.sample.clone() }).unwrap()
        };
        let right = score("The best thing to do is eat a sandwich and sit in Dolores Park.");
        assert!(right.value == 1.0 && right.part("rouge_1").unwrap() > 0.7);
        assert!(score("See the Golden Gate Bridge.").value < 0.2);
        // As models and people write it.
        for right in [
            "Eat a sandwich and sit in Dolores Park on a sunny day.",
            "**Eat a sandwich, and sit\nin Dolores Park!**",
            "EAT A SANDWICH AND SIT IN DOLORES PARK",
        ] {
            assert_eq!(score(right).value, 1.0, "{right}");
        }
        assert!(score("Eat a sandwich and sit in Golden Gate Park.").value < 0.5);
        let short = Options { lengths: vec![5000, 100], ..Options::default() };
        let error = Suite::new(short, &tools).unwrap_err().to_string();
        assert!(
            error.starts_with("`haystack` takes at least ") && error.contains("100 were asked"),
            "{error}"
        );
    }
}
