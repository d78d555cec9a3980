//! NeedleBench's single retrieval, as ReAttention's needle figures were made (OpenCompass `datasets/needlebench/origin.py`,
//! Apache-2.0; arXiv 2407.11963).
//!
//! The lines of the haystack are shuffled, joined and cut to the length less a buffer of 600 tokens; a needle drawn from a list
//! stands behind the first `depth` per cent of the tokens, wherever that is in a sentence. Tokens are the model's own (NeedleBench
//! counts GPT-4's). The user's `needles.jsonl` and essays are used if given, else needles and prose of this project's own.

use super::essays::{Essays, broken, read};
use super::generate::{Cut, GenerateError, check_grid, grid, whole};
use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, Table, Tools, by_task};
use crate::scorers::needlebench;
use crate::scorers::{Sample, Score, ScoreError};
use crate::text::Rng;
use reattention_engine::Source;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const NAME: &str = "needlebench";

/// Tokens kept free for prompt and answer, as published, unless they take more.
const BUFFER: usize = 600;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Lengths of prompt and answer together, in tokens.
    pub lengths: Vec<usize>,
    /// Depths in per cent. Published: 0 to 100 in steps of 10.
    pub depths: Vec<f64>,
    /// Texts for each length and depth. Published: 10.
    pub samples: usize,
    /// Seed of all texts.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// A folder with any of `needles.jsonl` and `PaulGrahamEssays.jsonl` (or `.json`, or `.txt` files).
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![4096, 32_768],
            depths: (0..=10).map(|d| f64::from(d) * 10.0).collect(),
            samples: 2,
            seed: 42,
            max_new_tokens: 50,
            data: None,
        }
    }
}

/// The suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    essays: Essays,
    needles: Vec<Needle>,
    needles_name: &'static str,
    readings: Vec<Reading>,
}

/// A line of `needles.jsonl`.
#[derive(Clone, Debug, Deserialize)]
struct Needle {
    needle: String,
    retrieval_question: String,
    /// What an answer must hold.
    arg2: String,
    language: String,
}

impl Suite {
    /// The suite.
    ///
    /// # Errors
    /// When an option is out of range, a file of the user's is malformed, or a length is too short for prompt and needle.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        check_grid(NAME, &options.lengths, &options.depths, options.samples)?;
        let longest = options.lengths.iter().copied().max().unwrap_or_default();
        let essays = Essays::load(options.data.as_deref(), options.seed, longest.saturating_mul(7))?;
        let own = options.data.as_ref().map(|d| d.join("needles.jsonl")).filter(|f| f.is_file());
        let (needles, needles_name) = match own {
            Some(file) => (needles(&file)?, "needles.jsonl"),
            None => (OWN.map(Needle::own).to_vec(), "own needles"),
        };
        let places: Vec<Option<f64>> = options.depths.iter().copied().map(Some).collect();
        let readings = grid(NAME, &options.lengths, &places, options.samples);
        let suite = Self { options, essays, needles, needles_name, readings };
        for reading in &suite.readings {
            suite.room(reading, tools)?;
        }
        Ok(suite)
    }

    /// Needle of a reading.
    fn needle(&self, reading: &Reading) -> (&Needle, Rng) {
        // As published, the seed is that of the repeat: every length and depth has the same needles and order of lines.
        let repeat = reading.at % self.options.samples as u64;
        let mut rng = Rng::stream(self.options.seed, repeat);
        (&self.needles[rng.below(self.needles.len())], rng)
    }

    /// Tokens of haystack that a reading has room for.
    fn room(&self, reading: &Reading, tools: &Tools<'_>) -> Result<usize, EvalError> {
        let (needle, _) = self.needle(reading);
        let (asked, question) = self.asked(needle, String::new(), tools);
        let around = whole(tools, &asked, &question)?.max(BUFFER);
        let needed = around + tools.count(&needle.line());
        let length = reading.length.unwrap_or_default();
        let short = || GenerateError::TooShort { what: NAME.to_string(), length, needed };
        Ok(length.checked_sub(needed).ok_or_else(short)?)
    }

    fn asked(&self, needle: &Needle, text: String, tools: &Tools<'_>) -> (Asked, Question) {
        let chat = tools.chat();
        let question = Question {
            after: format!("\n\nNow, the question is: {}", needle.question(chat)),
            max_new_tokens: self.options.max_new_tokens,
            sample: Sample::new("", json!(format!("{}*{}", needle.line(), needle.arg2))),
            ..Question::default()
        };
        let source = Source { name: NAME.to_string(), text };
        (Asked { chat, before: BEFORE.to_string(), source, ..Asked::default() }, question)
    }
}

/// What stands before the haystack, as published.
const BEFORE: &str = "You are an intelligent AI assistant skilled in answering user questions.\nPlease keep your answers concise and clear. Do not talk about irrelevant topics or repeat your answers.\nThe document given to you by the user is ";

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        1
    }

    fn options(&self) -> Value {
        let o = &self.options;
        json!({
            "lengths": o.lengths, "depths": o.depths, "samples": o.samples, "seed": o.seed,
            "max_new_tokens": o.max_new_tokens, "haystack": self.essays.name, "needles": self.needles_name,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let (needle, mut rng) = self.needle(reading);
        let length = reading.length.unwrap_or_default();
        let mut room = self.room(reading, tools)?;
        let mut lines: Vec<&str> = self.essays.texts.iter().map(String::as_str).collect();
        rng.shuffle(&mut lines);
        let cut = Cut::filled(&lines, room, tools)?;
        loop {
            room = room.min(cut.tokens());
            let depth = reading.rows[0].depth.unwrap_or_default();
            let at = (room as f64 * (depth / 100.0)) as usize;
            let (mut asked, question) = self.asked(needle, cut.with(&needle.line(), at, room), tools);
            let needed = whole(tools, &asked, &question)?;
            if needed <= length || room == 0 {
                asked.questions.push(question);
                return Ok(Made::Asked(asked));
            }
            // Cutting between two letters makes a token or two more.
            room = room.saturating_sub(needed - length);
        }
    }

    fn score(&self, _: &str, sample: &Sample) -> Result<Score, ScoreError> {
        needlebench::needlebench(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let mut tables = by_task(NAME, rows);
        for table in &mut tables {
            table.notes.push(format!("haystack: {}; needles: {}", self.essays.name, self.needles_name));
        }
        tables
    }
}

impl Needle {
    fn own((needle, question, keyword): (&str, &str, &str)) -> Self {
        let [needle, retrieval_question, arg2, language] =
            [needle, question, keyword, "English"].map(String::from);
        Self { needle, retrieval_question, arg2, language }
    }

    /// The needle on a line of its own.
    fn line(&self) -> String {
        format!("\n{}\n", self.needle)
    }

    /// The question as published for chat models. For base models as in ReAttention's evaluation: what asks for the form of the answer
    /// becomes the beginning of the answer.
    fn question(&self, chat: bool) -> String {
        if chat {
            return self.retrieval_question.clone();
        }
        let cut = self.retrieval_question.replace("Please answer in the format '", "");
        let keep = cut.chars().count().saturating_sub(BLANK);
        cut.chars().take(keep).collect()
    }
}

/// Characters that the questions end with for the blank: `________.'`.
const BLANK: usize = 10;

fn needles(file: &Path) -> Result<Vec<Needle>, GenerateError> {
    const EXPECTED: &str = "NeedleBench's objects with `needle`, `retrieval_question`, `arg2` and `language`";
    let text = read(file, EXPECTED)?;
    let mut needles: Vec<Needle> = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let reason = |e: serde_json::Error| broken(file, &format!("line {}: {e}", i + 1), EXPECTED);
        needles.push(serde_json::from_str(line).map_err(reason)?);
    }
    needles.retain(|n| n.language == "English");
    match needles.is_empty() {
        true => Err(broken(file, "there is no English needle", EXPECTED)),
        false => Ok(needles),
    }
}

/// Needles for those who have none: sentence, question, keyword.
const OWN: [(&str, &str, &str); 6] = [
    (
        "The lost lamp of the old harbor is kept in the Painted Tower.",
        "Where is the lost lamp of the old harbor kept? Please answer in the format 'The lost lamp of the old harbor is kept in the ________.'",
        "Painted Tower",
    ),
    (
        "The baker of the village hid the golden crown under the Seventh Oak.",
        "Where did the baker of the village hide the golden crown? Please answer in the format 'The baker of the village hid the golden crown under the ________.'",
        "Seventh Oak",
    ),
    (
        "The last letter of the captain was carried home by the sailor Ivo Quimby.",
        "Who carried the last letter of the captain home? Please answer in the format 'The last letter of the captain was carried home by the sailor ________.'",
        "Ivo Quimby",
    ),
    (
        "The broken clock in the library stopped at Nine Past Four.",
        "When did the broken clock in the library stop? Please answer in the format 'The broken clock in the library stopped at ________.'",
        "Nine Past Four",
    ),
    (
        "The silver ring of the musician was found inside the Winter Drum.",
        "Where was the silver ring of the musician found? Please answer in the format 'The silver ring of the musician was found inside the ________.'",
        "Winter Drum",
    ),
    (
        "The secret path to the castle begins behind the Red Mill.",
        "Where does the secret path to the castle begin? Please answer in the format 'The secret path to the castle begins behind the ________.'",
        "Red Mill",
    ),
];

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

    fn options(data: Option<&Path>) -> Options {
        let data = data.map(Path::to_path_buf);
        Options {
            lengths: vec![3000],
            depths: vec![0.0, 50.0, 100.0],
            samples: 3,
            data,
            ..Options::default()
        }
    }

    fn texts(suite: &Suite, tools: &Tools<'_>) -> Vec<Asked> {
        let made = |r: &Reading| match suite.make(r, tools).unwrap() {
            Made::Asked(asked) => asked,
            Made::Predicted { .. } => panic!("nothing is to be predicted"),
        };
        suite.readings().iter().map(made).collect()
    }

    #[test]
    fn needles_stand_at_their_depth_and_repeats_share_them() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let suite = Suite::new(options(None), &tools).unwrap();
        let made = texts(&suite, &tools);
        let again = texts(&Suite::new(options(None), &tools).unwrap(), &tools);
        let mut needles = Vec::new();
        for ((reading, asked), other) in suite.readings().iter().zip(&made).zip(&again) {
            assert_eq!(asked.source.text, other.source.text);
            let reference = asked.questions[0].sample.expected.as_str().unwrap();
            let (needle, keyword) = reference.split_once('*').unwrap();
            assert!(needle.contains(keyword));
            let at = asked.source.text.find(needle).unwrap();
            let rest = asked.source.text.len() - needle.len();
            let depth = reading.rows[0].depth.unwrap() / 100.0;
            assert!((at as f64 / rest as f64 - depth).abs() < 0.02, "{at} of {rest} for {depth}");
            let size = whole(&tools, asked, &asked.questions[0]).unwrap();
            assert!(size <= 3000 && size > 2300, "{size}");
            let sample = Sample::new(&format!("It is {keyword}"), json!(reference));
            assert_eq!(suite.score(NAME, &sample).unwrap().value, 1.0);
            needles.push(needle.to_string());
        }
        assert_eq!(needles[..3], needles[3..6]);
        assert_ne!(made[0].source.text[200..400], made[1].source.text[200..400]);
    }

    #[test]
    fn the_prompt_is_the_published_one() {
        let needle = Needle::own(OWN[0]);
        assert!(OWN.iter().all(|(n, q, k)| n.contains(k) && q.ends_with("________.'")));
        assert_eq!(
            needle.question(false),
            "Where is the lost lamp of the old harbor kept? The lost lamp of the old harbor is kept in the "
        );
        assert_eq!(needle.question(true), OWN[0].1);
        let engine = engine();
        let tools = Tools::of(&engine);
        let suite = Suite::new(options(None), &tools).unwrap();
        let (asked, question) = suite.asked(&needle, "TEXT".into(), &tools);
        assert_eq!(
            format!("{}{}{}", asked.before, asked.source.text, question.after),
            format!(
                "You are an intelligent AI assistant skilled in answering user questions.\nPlease keep your answers concise and clear. Do not talk about irrelevant topics or repeat your answers.\nThe document given to you by the user is TEXT\n\nNow, the question is: {}",
                needle.question(false)
            )
        );
    }

    #[test]
    fn the_users_needles_and_essays_are_used() {
        let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
        let tools = Tools::of(&engine);
        let file = dir.path().join("needles.jsonl");
        let line = |language: &str| json!({"needle": "The key is under the mat.", "retrieval_question": "Where is the key? Please answer in the format 'The key is under the ________.'", "arg2": "mat", "language": language, "arg1": "key"});
        std::fs::write(&file, format!("{}\n\n{}\n", line("Chinese"), line("English"))).unwrap();
        std::fs::write(dir.path().join("PaulGrahamEssays.jsonl"), "{\"text\": \"One line. \"}\n").unwrap();
        let suite = Suite::new(options(Some(dir.path())), &tools).unwrap();
        assert_eq!((suite.needles.len(), &suite.options()["needles"]), (1, &json!("needles.jsonl")));
        let asked = &texts(&suite, &tools)[0];
        assert!(asked.source.text.starts_with("\nThe key is under the mat.\nOne line. One line. "));
        let error = || Suite::new(options(Some(dir.path())), &tools).unwrap_err().to_string();
        std::fs::write(&file, format!("{}\n", line("Chinese"))).unwrap();
        assert!(error().contains("needles.jsonl: there is no English needle"), "{}", error());
        std::fs::write(&file, "{}\n").unwrap();
        assert!(error().contains("line 1: missing field `needle`"), "{}", error());
        let short = Options { lengths: vec![500], ..options(None) };
        let error = Suite::new(short, &tools).unwrap_err().to_string();
        assert!(error.starts_with("`needlebench` takes at least 6"), "{error}");
    }
}
