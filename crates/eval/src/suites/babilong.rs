//! BABILong (booydar/babilong): 20 tasks at lengths from none to ten million tokens, read from users' copies.
//!
//! Prompts are the published ones, byte by byte (`prompts/babilong.json`): instruction, examples, form of the answer, context,
//! question. Greedy, 15 new tokens, as in `scripts/run_model_on_babilong.py`.

use super::data::{
    Fields, Shelf, around, find, length, mean, percent, planned, published, scorable, table, tallies,
};
use crate::EvalError;
use crate::figures::{distinct, short};
use crate::run::{self, Asked, Made, Problem, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::python::strip;
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use reattention_engine::Source;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::LazyLock;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder with `data/{task}/{length}.json` or other files named by task and length.
    pub data: PathBuf,
    /// Tasks, `qa1` to `qa20`; all that have a file if left out.
    pub tasks: Option<Vec<String>>,
    /// Lengths, named as files are (`0k`, `128k`, `1M`); all that have a file if left out.
    pub lengths: Option<Vec<String>>,
    /// Most rows of a task and length: the first ones.
    pub samples: Option<usize>,
}

/// The published lengths.
pub const LENGTHS: [&str; 13] =
    ["0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M"];

/// `prompts/babilong.json`.
#[derive(Deserialize)]
struct Published {
    template: String,
    prompts: HashMap<String, Prompt>,
    max_new_tokens: usize,
}

#[derive(Deserialize)]
struct Prompt {
    instruction: String,
    examples: String,
    post_prompt: String,
}

static PUBLISHED: LazyLock<Published> =
    LazyLock::new(|| published(include_str!("../../prompts/babilong.json")));

/// The BABILong suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    shelf: Shelf,
}

impl Suite {
    /// Reads the folder.
    ///
    /// # Errors
    /// When a file is missing or cannot be read, or no row can be asked.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let known = scorers::Suite::BabiLong.tasks();
        let lengths = match &options.lengths {
            Some(lengths) => lengths.clone(),
            None => LENGTHS.map(String::from).to_vec(),
        };
        let names = |task: &str| {
            let place = |name: &String| (name.clone(), files(task, name));
            lengths.iter().map(place).collect()
        };
        let mut shelf = Shelf::default();
        for (task, name, path) in find("BABILong", &options.data, &known, options.tasks.as_deref(), names)? {
            shelf.add(&path, options.samples, |row, number| {
                let asked = ask(&task, row)?;
                scorable(scorers::Suite::BabiLong, &task, &asked.questions[0].sample)?;
                Ok(Reading {
                    task: task.clone(),
                    length: length(&name),
                    rows: vec![RowKey { id: number.to_string(), depth: None, task: None }],
                    tokens: planned(&asked, None, tools),
                    ..Reading::default()
                })
            })?;
        }
        Ok(Self { options, shelf: shelf.not_empty()? })
    }
}

/// Names that the file of a task and length may have.
fn files(task: &str, length: &str) -> Vec<PathBuf> {
    let stems = [
        format!("data/{task}/{length}"),
        format!("{task}/{length}"),
        format!("{length}/{task}"),
        format!("{task}_{length}"),
    ];
    stems
        .iter()
        .flat_map(|stem| [format!("{stem}.json"), format!("{stem}.jsonl")])
        .map(PathBuf::from)
        .collect()
}

/// What is asked of a row (`get_formatted_input`).
fn ask(task: &str, row: &Fields) -> Result<Asked, String> {
    let prompt = PUBLISHED.prompts.get(task).ok_or_else(|| format!("there is no prompt for {task}"))?;
    let question = row.text("question")?;
    let values = [
        ("instruction", prompt.instruction.as_str()),
        ("examples", &prompt.examples),
        ("post_prompt", &prompt.post_prompt),
        ("question", question),
    ];
    let (before, after) = around(&PUBLISHED.template, &values);
    let sample =
        Sample { question: Some(question.to_string()), ..Sample::new("", row.text("target")?.into()) };
    Ok(Asked {
        chat: true,
        before,
        source: Source { name: String::new(), text: strip(row.text("input")?).to_string() },
        questions: vec![Question {
            after: after.trim_end_matches(crate::scorers::python::is_space).to_string(),
            sample,
            max_new_tokens: PUBLISHED.max_new_tokens,
            ..Question::default()
        }],
        ..Asked::default()
    })
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "babilong"
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let Options { data: _, tasks, lengths, samples } = &self.options;
        json!({ "tasks": tasks, "lengths": lengths, "samples": samples, "files": self.shelf.files() })
    }

    fn readings(&self) -> &[Reading] {
        self.shelf.readings()
    }

    fn problems(&self) -> &[Problem] {
        self.shelf.problems()
    }

    fn make(&self, reading: &Reading, _: &Tools<'_>) -> Result<Made, EvalError> {
        let mut asked = self.shelf.row(reading, |row| ask(&reading.task, row))?;
        asked.source.name = self.shelf.source_name(reading);
        Ok(Made::Asked(asked))
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::BabiLong, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let tallies = tallies(scorers::Suite::BabiLong, &scorers::Suite::BabiLong.tasks(), rows);
        let mut lengths = distinct(tallies.iter().map(|t| t.length));
        lengths.sort();
        let head = lengths.iter().map(|n| n.map_or("-".to_string(), short));
        let line = |method: String| {
            let score = |task: &str, length| {
                let of = tallies.iter().find(|t| t.task == task && t.length == length && t.method == method);
                Some(of?.summary.as_ref()?.percent)
            };
            let headline = |length: &Option<usize>| {
                percent(mean(["qa1", "qa2", "qa3", "qa4", "qa5"].map(|t| score(t, *length)).into_iter()))
            };
            std::iter::once(method.clone()).chain(lengths.iter().map(headline)).collect()
        };
        let methods = distinct(tallies.iter().map(|t| t.method.clone()));
        vec![
            Table {
                title: "BABILong: mean of qa1 to qa5 by length".into(),
                head: std::iter::once("method".to_string()).chain(head).collect(),
                rows: methods.into_iter().map(line).collect(),
                notes: Vec::new(),
            },
            table("BABILong: tasks", &tallies),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, prompt, with_tools};
    use super::*;
    use crate::run::Suite as _;

    const ROW: &str = r#"{"input": " Ann went home. ", "question": "Where is Ann? ", "target": "office"}"#;

    fn suite(files: &[(&str, &str)], lengths: Option<&[&str]>) -> Result<(tempfile::TempDir, Suite), String> {
        let dir = folder_of(files);
        let lengths = lengths.map(|l| l.iter().map(|n| n.to_string()).collect());
        let options = Options { data: dir.path().to_path_buf(), lengths, ..Options::default() };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    #[test]
    fn every_task_has_a_prompt() {
        for task in scorers::Suite::BabiLong.tasks() {
            let prompt = &PUBLISHED.prompts[&task];
            let examples = prompt.examples.matches("<example>").count();
            assert!(examples >= 2 && examples == prompt.examples.matches("</example>").count(), "{task}");
        }
        assert_eq!(PUBLISHED.prompts.len(), 20);
    }

    #[test]
    fn the_prompt_is_the_published_one() {
        let (_dir, found) = suite(&[("data/qa4/1k.json", &format!("[{ROW}]"))], None).unwrap();
        let asked = first(&found);
        assert_eq!(
            prompt(&asked),
            "I will give you context with the facts about different people, their location and actions, hidden in \
             some random text and a question. You need to answer the question based only on the information from the \
             facts.\n\n<example>\nThe hallway is south of the kitchen. The bedroom is north of the kitchen. What is \
             the kitchen south of?\nAnswer: bedroom\n</example>\n<example>\nThe garden is west of the bedroom. The \
             bedroom is west of the kitchen. What is west of the bedroom?\nAnswer: garden\n</example>\n\nYour answer \
             should contain only one word - location. Do not write anything else after that.\n\n<context>\nAnn went \
             home.\n</context>\n\nQuestion: Where is Ann?"
        );
        assert_eq!((asked.questions[0].max_new_tokens, found.readings()[0].length), (15, Some(1024)));
        let sample = Sample { prediction: "Office.".into(), ..asked.questions[0].sample.clone() };
        assert_eq!(found.score("qa4", &sample).unwrap().value, 1.0);
    }

    #[test]
    fn files_are_found_by_task_and_length() {
        let files = [("qa2/0k.json", ROW), ("4k/qa1.jsonl", ROW), ("qa1_10M.jsonl", ROW)];
        let (_dir, found) = suite(&files, None).unwrap();
        let names: Vec<_> = found.readings().iter().map(|r| (r.task.as_str(), r.length)).collect();
        assert_eq!(names, [("qa1", Some(4096)), ("qa1", Some(10 << 20)), ("qa2", Some(0))]);
        let (_dir, found) = suite(&files, Some(&["0k"])).unwrap();
        assert_eq!(found.readings().len(), 1);
        let error = suite(&files, Some(&["2k"])).unwrap_err();
        assert!(error.contains("expected any of data/qa1/2k.json, data/qa2/2k.json"), "{error}");
        let bad = [(
            "qa1/0k.json",
            "{\"input\": \"x\", \"question\": \"y\"}\n{\"input\": \"x\", \"target\": \"z\"}",
        )];
        let error = suite(&bad, None).unwrap_err();
        assert!(error.contains("0k.json:1: `target` is missing"), "{error}");
    }

    #[test]
    fn the_headline_is_the_mean_of_the_first_five_tasks() {
        let (_dir, found) = suite(&[("qa1/0k.json", ROW)], None).unwrap();
        let row = |task: &str, length, score| Row {
            task: task.into(),
            length: Some(length),
            method: "m".into(),
            score: Some(score),
            ..Row::default()
        };
        let mut rows: Vec<Row> =
            (1..=5).map(|n| row(&format!("qa{n}"), 0, f64::from(u8::from(n < 4)))).collect();
        rows.extend([row("qa1", 4096, 1.0), row("qa9", 0, 1.0)]);
        let tables = found.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[0].head, ["method", "0", "4k"]);
        assert_eq!(tables[0].rows, [["m", "60.00", "-"]]);
    }
}
