//! Several needles asked for in one question, as in the Llama 3 report and STRING (HKUNLP/STRING `niah/test_niah_llama.py`,
//! arXiv 2410.18745): numbers of six digits, each somewhere in its share of the text; enough of them must come back.

use super::essays::{Essays, sentences};
use super::generate::{GenerateError, check_grid, grid, most_that_fit, whole};
use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, Table, Tools, by_task};
use crate::scorers::{Sample, Score, ScoreError};
use crate::text::{Rng, holds};
use reattention_engine::Source;
use serde_json::{Value, json};
use std::path::PathBuf;

const NAME: &str = "multi_needle";

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Lengths of prompt and answer together, in tokens.
    pub lengths: Vec<usize>,
    /// Texts for each length.
    pub samples: usize,
    /// Needles in a text.
    pub needles: usize,
    /// How many of them an answer must have to count.
    pub wanted: usize,
    /// Seed of all texts.
    pub seed: u64,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// A folder with the essays.
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lengths: vec![4096, 32_768],
            samples: 5,
            needles: 4,
            wanted: 2,
            seed: 42,
            max_new_tokens: 128,
            data: None,
        }
    }
}

/// The suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    /// Sentences of the essays.
    sentences: Vec<String>,
    essays_name: String,
    readings: Vec<Reading>,
}

impl Suite {
    /// The suite.
    ///
    /// # Errors
    /// When an option is out of range, a file of the user's is malformed, or a length is too short for prompt and needles.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        check_grid(NAME, &options.lengths, &[0.0], options.samples)?;
        if options.wanted == 0 || options.wanted > options.needles {
            let problem =
                format!("is {}; it can be 1 to {}, the number of needles", options.wanted, options.needles);
            return Err(GenerateError::Option { suite: NAME, option: "wanted", problem }.into());
        }
        let longest = options.lengths.iter().copied().max().unwrap_or_default();
        let essays = Essays::load(options.data.as_deref(), options.seed, longest.saturating_mul(7))?;
        let sentences = essays.texts.iter().flat_map(|t| sentences(t)).map(String::from).collect();
        let readings = grid(NAME, &options.lengths, &[None], options.samples);
        let suite = Self { options, sentences, essays_name: essays.name, readings };
        for reading in &suite.readings {
            let (asked, question) = suite.asked(reading, 0, tools);
            suite.check(reading, whole(tools, &asked, &question)?)?;
        }
        Ok(suite)
    }

    fn check(&self, reading: &Reading, needed: usize) -> Result<(), GenerateError> {
        let length = reading.length.unwrap_or_default();
        match needed > length {
            true => Err(GenerateError::TooShort { what: NAME.to_string(), length, needed }),
            false => Ok(()),
        }
    }

    /// The prompt of a reading with so many sentences.
    fn asked(&self, reading: &Reading, sentences: usize, tools: &Tools<'_>) -> (Asked, Question) {
        let stream = ((reading.length.unwrap_or_default() as u64) << 24) ^ reading.at;
        let mut rng = Rng::stream(self.options.seed, stream);
        let n = self.options.needles;
        let mut numbers: Vec<String> = Vec::new();
        while numbers.len() < n {
            let number = rng.between(100_000, 999_999).to_string();
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        // Each in its own share of the text, the last of which ends a hundredth before the end.
        let share = 0.99 / n as f64;
        let places: Vec<usize> =
            (0..n).map(|i| ((i as f64 + rng.unit()) * share * sentences as f64) as usize).collect();
        let (mut parts, mut from) = (Vec::new(), 0);
        let among = |from: usize, to: usize| {
            self.sentences.iter().cycle().skip(from % self.sentences.len()).take(to - from)
        };
        for (place, number) in places.into_iter().zip(&numbers) {
            parts.extend(among(from, place).cloned());
            parts.push(format!("One of the magic number is: {number}."));
            from = place;
        }
        parts.extend(among(from, sentences).cloned());
        let chat = tools.chat();
        let question = Question {
            after: format!("{QUESTION}{}", if chat { "" } else { "\nThe numbers are" }),
            max_new_tokens: self.options.max_new_tokens,
            sample: Sample::new("", json!(numbers)),
            ..Question::default()
        };
        let source = Source { name: NAME.to_string(), text: parts.join(" ") };
        (Asked { chat, before: BEFORE.to_string(), source, ..Asked::default() }, question)
    }
}

const BEFORE: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you about the important information there.\n";

const QUESTION: &str = "\n\n\nWhat are the magic numbers mentioned in the provided text?";

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
            "lengths": o.lengths, "samples": o.samples, "needles": o.needles, "wanted": o.wanted, "seed": o.seed,
            "max_new_tokens": o.max_new_tokens, "haystack": self.essays_name,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let sentences = most_that_fit(0, reading.length.unwrap_or_default(), |sentences| {
            let (asked, question) = self.asked(reading, sentences, tools);
            whole(tools, &asked, &question)
        })?;
        let sentences = match sentences {
            Ok(sentences) => sentences,
            Err(needed) => {
                self.check(reading, needed)?;
                0
            }
        };
        let (mut asked, question) = self.asked(reading, sentences, tools);
        asked.questions.push(question);
        Ok(Made::Asked(asked))
    }

    fn score(&self, _: &str, sample: &Sample) -> Result<Score, ScoreError> {
        let wanted = sample.references()?;
        let said = &sample.prediction;
        let found = wanted.iter().filter(|number| said.contains(**number) || holds(said, number)).count();
        let found = found as f64 / wanted.len().max(1) as f64;
        let enough = found * self.options.needles as f64 >= self.options.wanted as f64 - 1e-9;
        Ok(Score::of(f64::from(u8::from(enough))).with("found", found))
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let o = &self.options;
        let mut found: Vec<Row> = rows.iter().map(|r| (*r).clone()).collect();
        for row in &mut found {
            row.score = row.parts.iter().find(|(name, _)| name == "found").map(|(_, value)| *value);
        }
        let enough =
            format!("{NAME}: texts of which at least {} of {} needles were found", o.wanted, o.needles);
        let mut tables = by_task(&enough, rows);
        tables.extend(by_task(&format!("{NAME}: needles found"), &found.iter().collect::<Vec<_>>()));
        for table in &mut tables {
            table.notes.push(format!("haystack: {}", self.essays_name));
        }
        tables
    }
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
    fn each_needle_stands_in_its_share_of_the_text() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let options = Options { lengths: vec![5000], ..Options::default() };
        let suite = Suite::new(options, &tools).unwrap();
        for reading in suite.readings() {
            let Made::Asked(asked) = suite.make(reading, &tools).unwrap() else { panic!("asked") };
            let numbers: Vec<String> =
                serde_json::from_value(asked.questions[0].sample.expected.clone()).unwrap();
            for (i, number) in numbers.iter().enumerate() {
                let needle = format!("One of the magic number is: {number}.");
                let at = asked.source.text.find(&needle).unwrap() as f64 / asked.source.text.len() as f64;
                assert!(at > i as f64 * 0.2475 - 0.03 && at < (i + 1) as f64 * 0.2475 + 0.03, "{i}: {at}");
            }
            let size = whole(&tools, &asked, &asked.questions[0]).unwrap();
            assert!(size <= 5000 && size > 4900, "{size}");
            assert!(asked.questions[0].after.ends_with("in the provided text?\nThe numbers are"));
        }
    }

    #[test]
    fn two_of_four_are_enough() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let suite = Suite::new(Options::default(), &tools).unwrap();
        let score = |said: &str| {
            let score = suite.score(NAME, &Sample::new(said, json!(["1", "2", "3", "4"]))).unwrap();
            (score.value, score.part("found").unwrap())
        };
        assert_eq!([score("1 and 3"), score("4"), score("")], [(1.0, 0.5), (0.0, 0.25), (0.0, 0.0)]);
        let score =
            suite.score(NAME, &Sample::new("123,456 and **654321**", json!(["123456", "654321", "3", "9"])));
        assert_eq!(score.unwrap().value, 1.0);
        let row = |score, found| Row {
            task: NAME.into(),
            method: "full".into(),
            length: Some(4096),
            score: Some(score),
            parts: vec![("found".into(), found)],
            ..Row::default()
        };
        let tables = suite.tables(&[&row(1.0, 0.75), &row(0.0, 0.25)]);
        assert_eq!(tables.iter().map(|t| t.rows[0][3].as_str()).collect::<Vec<_>>(), ["50.00", "50.00"]);
        assert!(tables[0].title.contains("at least 2 of 4"));
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let engine = engine();
        let tools = Tools::of(&engine);
        let error = |options| Suite::new(options, &tools).unwrap_err().to_string();
        assert!(error(Options { wanted: 5, ..Options::default() }).contains("wanted is 5; it can be 1 to 4"));
        assert!(error(Options { lengths: vec![150], ..Options::default() }).contains("takes at least"));
    }
}
