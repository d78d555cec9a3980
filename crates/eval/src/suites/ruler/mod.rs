//! RULER's 13 tasks, generated (NVIDIA/RULER `scripts/data/synthetic`, arXiv 2404.06654; Apache-2.0).
//!
//! Prompts and answer prefixes are the published ones, byte for byte; needles, depths, repeats, sizes and the examples of `vt` and
//! `cwe` follow the published rules. Random numbers are this project's own, and so are the word list and, unless the user has the
//! essays, the long text: rows are RULER-style, not RULER's. `qa_1` and `qa_2` need the user's copies of SQuAD and HotpotQA.

mod material;
mod niah;
mod qa;
mod tables;
mod vt;
mod words;

use super::data::published;
use super::generate::{GenerateError, around_context, check_grid, most_that_fit, whole};
use crate::EvalError;
use crate::run::{self, Asked, Made, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use crate::text::Rng;
use material::{Documents, Material};
use niah::{Haystack, Kind, Niah};
use reattention_engine::Source;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

const NAME: &str = "ruler";

/// Lengths below which the published code writes smaller lists and takes smaller steps.
const SHORT: usize = 4096;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Lengths of prompt and answer together, in tokens. The published ones are 4096 to 131072.
    pub lengths: Vec<usize>,
    /// Names of tasks; none for all that can be made.
    pub tasks: Vec<String>,
    /// Texts for each task and length. Published tables have 500.
    pub samples: usize,
    /// Seed of all texts.
    pub seed: u64,
    /// A folder with any of `PaulGrahamEssays.json` (or `.txt` files), `dev-v2.0.json` (SQuAD 2.0, `qa_1`),
    /// `hotpot_dev_distractor_v1.json` (`qa_2`), `english_words.json` (`cwe` beyond the own word list).
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { lengths: vec![4096, 8192, 16_384], tasks: Vec::new(), samples: 2, seed: 42, data: None }
    }
}

/// The suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    material: Material,
    tasks: Vec<Task>,
    readings: Vec<Reading>,
    /// What could not be made, and why.
    left_out: Vec<String>,
    /// Units of haystack by task and length, once known.
    units: Mutex<HashMap<(&'static str, usize), usize>>,
}

impl Suite {
    /// The suite. Without names of tasks, what cannot be made for want of data or length is left out, and tables say so.
    ///
    /// # Errors
    /// When an option is out of range, a task that is asked for by name cannot be made, or a file of the user's is malformed.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        check_grid(NAME, &options.lengths, &[0.0], options.samples)?;
        if let Some(data) = options.data.as_ref().filter(|d| !d.is_dir()) {
            let problem = format!("{} is not a folder", data.display());
            return Err(GenerateError::Option { suite: NAME, option: "data", problem }.into());
        }
        let longest = options.lengths.iter().copied().max().unwrap_or_default();
        let material = Material::load(options.data.as_deref(), options.seed, longest)?;
        let mut tasks: Vec<Task> = TASKS.to_vec();
        if !options.tasks.is_empty() {
            tasks = options.tasks.iter().map(|name| Task::named(name)).collect::<Result<_, _>>()?;
        }
        let mut suite = Self {
            options,
            material,
            tasks: Vec::new(),
            readings: Vec::new(),
            left_out: Vec::new(),
            units: Mutex::default(),
        };
        for task in tasks {
            match suite.check_data(task) {
                Ok(()) => suite.tasks.push(task),
                Err(error) => suite.leave_out(error)?,
            }
        }
        for length in suite.options.lengths.clone() {
            for task in suite.tasks.clone() {
                match suite.check_length(task, length, tools)? {
                    Ok(()) => {
                        let samples = 0..suite.options.samples;
                        suite.readings.extend(samples.map(|sample| reading(task, length, sample)));
                    }
                    Err(error) => suite.leave_out(error)?,
                }
            }
        }
        if suite.readings.is_empty() {
            let problem = format!("are such that no task can be made: {}", suite.left_out.join("; "));
            return Err(GenerateError::Option { suite: NAME, option: "lengths", problem }.into());
        }
        Ok(suite)
    }

    /// Takes note of a task that cannot be made, which is an error if it was asked for by name.
    fn leave_out(&mut self, why: GenerateError) -> Result<(), GenerateError> {
        match self.options.tasks.is_empty() {
            true => self.left_out.push(why.to_string()),
            false => return Err(why),
        }
        Ok(())
    }

    fn check_data(&self, task: Task) -> Result<(), GenerateError> {
        let Some((documents, expected)) = self.documents(task) else { return Ok(()) };
        let Some(documents) = documents else {
            return Err(GenerateError::NoData {
                task: task.name.to_string(),
                expected: expected.to_string(),
                data: self.options.data.clone(),
            });
        };
        let (samples, most) = (self.options.samples, documents.questions.len());
        match samples > most {
            true => Err(GenerateError::Option {
                suite: NAME,
                option: "samples",
                problem: format!("is {samples}, and {} has {most} questions", task.name),
            }),
            false => Ok(()),
        }
    }

    /// The documents of a question answering task, and the file they are in.
    fn documents(&self, task: Task) -> Option<(Option<&Documents>, &'static str)> {
        match task.rule {
            Rule::Squad => Some((self.material.squad.as_ref(), "SQuAD's `dev-v2.0.json`")),
            Rule::HotpotQa => {
                Some((self.material.hotpotqa.as_ref(), "HotpotQA's `hotpot_dev_distractor_v1.json`"))
            }
            _ => None,
        }
    }

    /// Whether the shortest texts of a task fit a length. Of those far shorter only the first is looked at.
    fn check_length(
        &self,
        task: Task,
        length: usize,
        tools: &Tools<'_>,
    ) -> Result<Result<(), GenerateError>, EvalError> {
        for sample in 0..self.options.samples {
            let needed = self.size(task, length, sample, self.least(task, sample), tools)?;
            if needed > length {
                let what = format!("{NAME} {}", task.name);
                return Ok(Err(GenerateError::TooShort { what, length, needed }));
            }
            if 4 * needed < length {
                break;
            }
        }
        Ok(Ok(()))
    }

    /// Fewest units of a sample's text.
    fn least(&self, task: Task, sample: usize) -> usize {
        match task.rule {
            Rule::Niah(niah) => niah.least(),
            Rule::Vt => vt::LEAST,
            Rule::Cwe => words::LEAST_COMMON,
            Rule::Fwe => words::LEAST_FREQUENT,
            Rule::Squad | Rule::HotpotQa => {
                let documents = self.documents(task).and_then(|(d, _)| d);
                documents.and_then(|d| d.questions.get(sample)).map_or(1, |q| q.gold.len())
            }
        }
    }

    /// Units a text shrinks by while it does not fit. Where the published step would leave little of the text, a small part of it.
    fn step(&self, task: Task, length: usize, units: usize) -> usize {
        let published = match task.rule {
            Rule::Niah(niah) if niah.haystack == Haystack::Essay => niah.step(),
            Rule::Fwe => length / 32,
            _ if length < SHORT => 5,
            Rule::Niah(niah) => niah.step(),
            _ => 10,
        };
        if published * 4 <= units { published } else { (units / 32).max(1) }
    }

    /// Units that fit a length, found with the first sample's words.
    fn units(&self, task: Task, length: usize, tools: &Tools<'_>) -> Result<usize, EvalError> {
        let known = || self.units.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(units) = known().get(&(task.name, length)) {
            return Ok(*units);
        }
        let least = self.least(task, 0);
        let units = most_that_fit(least, length, |units| self.size(task, length, 0, units, tools))?;
        let units = units.unwrap_or(least);
        known().insert((task.name, length), units);
        Ok(units)
    }

    fn size(
        &self,
        task: Task,
        length: usize,
        sample: usize,
        units: usize,
        tools: &Tools<'_>,
    ) -> Result<usize, EvalError> {
        let (asked, question) = self.asked(task, length, sample, units, tools)?;
        whole(tools, &asked, &question)
    }

    fn asked(
        &self,
        task: Task,
        length: usize,
        sample: usize,
        units: usize,
        tools: &Tools<'_>,
    ) -> Result<(Asked, Question), EvalError> {
        let prompt = prompt(task.prompt);
        let rng = &mut self.rng(task, length, sample as u64);
        let drawn = match task.rule {
            Rule::Niah(niah) => niah.draw(prompt, &self.material, rng, units),
            Rule::Vt => vt::draw(prompt, &self.example(task, length, tools)?, rng, units),
            Rule::Cwe => words::common(prompt, &self.material.lexicon, rng, length, units),
            Rule::Fwe => words::frequent(prompt, rng, length, units),
            Rule::Squad | Rule::HotpotQa => {
                let missing = || GenerateError::NoData {
                    task: task.name.to_string(),
                    expected: "its file".into(),
                    data: self.options.data.clone(),
                };
                let documents = self.documents(task).and_then(|(d, _)| d).ok_or_else(missing)?;
                qa::draw(prompt, documents, rng, sample, units)
            }
        };
        let question = Question {
            after: drawn.after,
            prefix: drawn.prefix,
            sample: Sample { index: sample, ..Sample::new("", json!(drawn.answers)) },
            max_new_tokens: prompt.tokens_to_generate,
            ..Question::default()
        };
        let source = Source { name: task.name.to_string(), text: drawn.context };
        Ok((Asked { chat: tools.chat(), before: drawn.before, source, ..Asked::default() }, question))
    }

    /// The example of `vt`: the longest of its kind with at most 500 tokens, as published, unless the shortest has more.
    fn example(&self, task: Task, length: usize, tools: &Tools<'_>) -> Result<Drawn, EvalError> {
        let draw = |units| vt::example(prompt(task.prompt), &mut self.rng(task, length, EXAMPLE), units);
        let units = most_that_fit(vt::LEAST, EXAMPLE_TOKENS, |units| {
            let example = draw(units);
            Ok::<_, EvalError>(tools.count(&format!("{}{}", example.text(), example.prefix)))
        })?;
        Ok(draw(units.unwrap_or(vt::LEAST)))
    }

    /// Numbers of a row: the same whatever other tasks, lengths and samples there are.
    fn rng(&self, task: Task, length: usize, sample: u64) -> Rng {
        let number = TASKS.iter().position(|t| t.name == task.name).unwrap_or_default() as u64;
        Rng::stream(self.options.seed, (number << 56) ^ ((length as u64) << 24) ^ sample)
    }
}

/// Stream of the example of `vt`.
const EXAMPLE: u64 = (1 << 24) - 1;
/// Most tokens of the example of `vt`.
const EXAMPLE_TOKENS: usize = 500;

fn reading(task: Task, length: usize, sample: usize) -> Reading {
    Reading {
        task: task.name.to_string(),
        length: Some(length),
        rows: vec![RowKey { id: sample.to_string(), depth: None, task: None }],
        tokens: length,
        at: sample as u64,
    }
}

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
            "lengths": o.lengths, "tasks": self.tasks.iter().map(|t| t.name).collect::<Vec<_>>(),
            "samples": o.samples, "seed": o.seed, "haystack": self.material.essay_name,
            "data": self.material.sizes(), "left_out": self.left_out,
        })
    }

    fn readings(&self) -> &[Reading] {
        &self.readings
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let (task, length) = (Task::named(&reading.task)?, reading.length.unwrap_or_default());
        let sample = reading.at as usize;
        let least = self.least(task, sample);
        let mut units = self.units(task, length, tools)?.max(least);
        loop {
            let (mut asked, question) = self.asked(task, length, sample, units, tools)?;
            let needed = whole(tools, &asked, &question)?;
            if needed <= length {
                asked.questions.push(question);
                return Ok(Made::Asked(asked));
            }
            if units == least {
                let what = format!("{NAME} {}", task.name);
                return Err(GenerateError::TooShort { what, length, needed }.into());
            }
            units = units.saturating_sub(self.step(task, length, units)).max(least);
        }
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::Ruler, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let mut notes = self.left_out.iter().map(|why| format!("left out: {why}")).collect::<Vec<_>>();
        let essay = |r: &&Row| {
            Task::named(&r.task)
                .is_ok_and(|t| matches!(t.rule, Rule::Niah(n) if n.haystack == Haystack::Essay))
        };
        if rows.iter().any(essay) {
            notes.push(format!("haystack of the essay tasks: {}", self.material.essay_name));
        }
        tables::tables(rows, notes)
    }
}

/// A task: its name, its prompt and its rule.
#[derive(Clone, Copy, Debug)]
struct Task {
    name: &'static str,
    prompt: &'static str,
    rule: Rule,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Niah(Niah),
    Vt,
    Cwe,
    Fwe,
    Squad,
    HotpotQa,
}

impl Task {
    fn named(name: &str) -> Result<Self, GenerateError> {
        TASKS.into_iter().find(|t| t.name == name).ok_or_else(|| GenerateError::UnknownTask {
            suite: NAME,
            task: name.to_string(),
            known: TASKS.map(|t| t.name).join(", "),
        })
    }
}

/// A needle task: haystack, kinds of key and value, and numbers of keys, values and queries.
const fn niah(
    name: &'static str,
    haystack: Haystack,
    kinds: (Kind, Kind),
    counts: (usize, usize, usize),
) -> Task {
    let (keys, values, queries) = counts;
    let rule = Rule::Niah(Niah { haystack, key: kinds.0, value: kinds.1, keys, values, queries });
    Task { name, prompt: "niah", rule }
}

const fn task(name: &'static str, prompt: &'static str, rule: Rule) -> Task {
    Task { name, prompt, rule }
}

/// RULER's tasks, in the order of its tables (`scripts/synthetic.yaml`).
const TASKS: [Task; 13] = [
    niah("niah_single_1", Haystack::Noise, (Kind::Words, Kind::Numbers), (1, 1, 1)),
    niah("niah_single_2", Haystack::Essay, (Kind::Words, Kind::Numbers), (1, 1, 1)),
    niah("niah_single_3", Haystack::Essay, (Kind::Words, Kind::Uuids), (1, 1, 1)),
    niah("niah_multikey_1", Haystack::Essay, (Kind::Words, Kind::Numbers), (4, 1, 1)),
    niah("niah_multikey_2", Haystack::Needles, (Kind::Words, Kind::Numbers), (1, 1, 1)),
    niah("niah_multikey_3", Haystack::Needles, (Kind::Uuids, Kind::Uuids), (1, 1, 1)),
    niah("niah_multivalue", Haystack::Essay, (Kind::Words, Kind::Numbers), (1, 4, 1)),
    niah("niah_multiquery", Haystack::Essay, (Kind::Words, Kind::Numbers), (4, 1, 4)),
    task("vt", "variable_tracking", Rule::Vt),
    task("cwe", "common_words_extraction", Rule::Cwe),
    task("fwe", "freq_words_extraction", Rule::Fwe),
    task("qa_1", "qa", Rule::Squad),
    task("qa_2", "qa", Rule::HotpotQa),
];

/// A text and what is asked of it.
#[derive(Debug)]
struct Drawn {
    before: String,
    context: String,
    after: String,
    prefix: String,
    answers: Vec<String>,
}

impl Drawn {
    /// The prompt without its prefix.
    fn text(&self) -> String {
        format!("{}{}{}", self.before, self.context, self.after)
    }
}

/// A published prompt (`constants.py`).
#[derive(Debug, Deserialize)]
struct Prompt {
    tokens_to_generate: usize,
    template: String,
    answer_prefix: String,
}

impl Prompt {
    fn around(&self) -> (&str, &str) {
        around_context(&self.template)
    }
}

fn prompt(name: &str) -> &'static Prompt {
    static PROMPTS: LazyLock<BTreeMap<String, Prompt>> =
        LazyLock::new(|| published(include_str!("../../../prompts/ruler.json")));
    // Names come from the table of tasks, and a test looks each of them up.
    &PROMPTS[name]
}

#[cfg(test)]
mod tests;
