//! LongBench v2 (THUDM/LongBench): 503 questions with four choices, read from users' copies.
//!
//! The prompt is the published one for zero shots, byte by byte (`prompts/longbench_v2.txt`), with the fields stripped as in
//! `pred.py`. Chain of thought, which takes two calls, is not covered. Answers are greedy, where `pred.py` samples at
//! temperature 0.1. A row's task is its group: `easy_short` to `hard_long`.

use super::data::{Fields, Shelf, find, percent, planned};
use crate::EvalError;
use crate::run::{
    self, Asked, Made, Problem, Question, Reading, Row, RowKey, Table, Tools, cut_middle, methods,
};
use crate::scorers::python::strip;
use crate::scorers::{self, Sample, Score, ScoreError, Scorer, Summary};
use reattention_engine::Source;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder with `data.json` (one list) or `data.jsonl`.
    pub data: PathBuf,
    /// Most tokens of a prompt, template apart: longer ones are cut in the middle.
    pub limit: Option<usize>,
    /// Most rows: the first ones.
    pub samples: Option<usize>,
}

const TASK: &str = "longbench-v2";
const PROMPT: &str = include_str!("../../prompts/longbench_v2.txt");
const MAX_NEW_TOKENS: usize = 128;
const DIFFICULTIES: [&str; 2] = ["easy", "hard"];
const LENGTHS: [&str; 3] = ["short", "medium", "long"];

/// The LongBench v2 suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    shelf: Shelf,
}

impl Suite {
    /// Reads the folder.
    ///
    /// # Errors
    /// When the file is missing or cannot be read, or no row can be asked.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let names = |_: &str| {
            let files =
                ["data.json", "data.jsonl", "longbench_v2.json", "longbench_v2.jsonl", "data/data.json"];
            vec![((), files.map(PathBuf::from).to_vec())]
        };
        let mut shelf = Shelf::default();
        for (_, (), path) in find("LongBench v2", &options.data, &[TASK], None, names)? {
            shelf.add(&path, options.samples, |row, number| {
                let asked = ask(row)?;
                row.is("difficulty", &DIFFICULTIES)?;
                row.is("length", &LENGTHS)?;
                let id = row.id(&["_id", "id"])?.unwrap_or_else(|| number.to_string());
                Ok(Reading {
                    task: format!("{}_{}", row.text("difficulty")?, row.text("length")?),
                    rows: vec![RowKey { id, depth: None, task: None }],
                    tokens: planned(&asked, options.limit, tools),
                    ..Reading::default()
                })
            })?;
        }
        Ok(Self { options, shelf: shelf.not_empty()? })
    }
}

/// What is asked of a row.
fn ask(row: &Fields) -> Result<Asked, String> {
    let (before, after) = PROMPT.split_once("$DOC$").unwrap_or((PROMPT, ""));
    let mut after = after.replace("$Q$", strip(row.text("question")?));
    for letter in ["A", "B", "C", "D"] {
        after = after.replace(&format!("$C_{letter}$"), strip(row.text(&format!("choice_{letter}"))?));
    }
    row.is("answer", &["A", "B", "C", "D"])?;
    let sample = Sample::new("", row.text("answer")?.into());
    Ok(Asked {
        chat: true,
        before: before.to_string(),
        source: Source { name: String::new(), text: strip(row.text("context")?).to_string() },
        questions: vec![Question { after, sample, max_new_tokens: MAX_NEW_TOKENS, ..Question::default() }],
        ..Asked::default()
    })
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "longbench-v2"
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let Options { data: _, limit, samples } = &self.options;
        json!({ "limit": limit, "samples": samples, "files": self.shelf.files() })
    }

    fn readings(&self) -> &[Reading] {
        self.shelf.readings()
    }

    fn problems(&self) -> &[Problem] {
        self.shelf.problems()
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let mut asked = self.shelf.row(reading, ask)?;
        asked.source.name = self.shelf.source_name(reading);
        if let Some(limit) = self.options.limit {
            cut_middle(tools, &mut asked, limit)?;
        }
        Ok(Made::Asked(asked))
    }

    fn score(&self, _: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::LongBenchV2, TASK)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let groups: Vec<&str> = DIFFICULTIES.into_iter().chain(LENGTHS).collect();
        let mut head = vec!["method".to_string(), "rows".into(), "overall".into()];
        head.extend(groups.iter().map(|g| g.to_string()));
        let (mut lines, mut notes) = (Vec::new(), Vec::new());
        for method in methods(rows) {
            let of: Vec<&Row> = rows.iter().copied().filter(|r| r.method == method).collect();
            let refused = crate::figures::distinct(of.iter().filter_map(|r| r.refused.clone()));
            notes.extend(refused.iter().map(|why| format!("{method}: {why}")));
            let summary = summary(&of);
            let group = |name: &&str| summary.groups.iter().find(|g| g.name == *name).map(|g| g.percent);
            let mut line = vec![method, summary.rows.to_string()];
            line.push(percent((summary.rows > 0).then_some(summary.percent)));
            line.extend(groups.iter().map(|g| percent(group(g))));
            lines.push(line);
        }
        vec![Table { title: "LongBench v2".into(), head, rows: lines, notes }]
    }
}

fn summary(rows: &[&Row]) -> Summary {
    let scored: Vec<(Sample, Score)> = rows
        .iter()
        .filter_map(|row| {
            let groups = row.task.split('_').map(str::to_string).collect();
            Some((Sample { groups, ..Sample::default() }, Score::of(row.score?)))
        })
        .collect();
    Scorer::new(scorers::Suite::LongBenchV2, TASK).map_or_else(|_| Summary::default(), |s| s.summary(&scored))
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, prompt, with_tools};
    use super::*;
    use crate::run::Suite as _;

    fn row(id: &str, more: Value) -> Value {
        let mut row = json!({
            "_id": id, "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short",
            "question": " Who? ", "choice_A": "Ann", "choice_B": "Bob\n", "choice_C": "Cid", "choice_D": "Dan",
            "answer": "B", "context": "\nBob did it.\n",
        });
        row.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        row
    }

    fn suite(text: &str, name: &str) -> Result<(tempfile::TempDir, Suite), String> {
        let dir = folder_of(&[(name, text)]);
        let options = Options { data: dir.path().to_path_buf(), ..Options::default() };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    #[test]
    fn the_prompt_is_the_published_one() {
        let rows = json!([row("a", json!({}))]);
        let lines = format!("{}\n", row("a", json!({})));
        for (text, name) in
            [(serde_json::to_string_pretty(&rows).unwrap(), "data.json"), (lines, "data.jsonl")]
        {
            let (_dir, found) = suite(&text, name).unwrap();
            let asked = first(&found);
            assert_eq!(
                prompt(&asked),
                "Please read the following text and answer the question below.\n\n<text>\nBob did it.\n</text>\n\n\
                 What is the correct answer to this question: Who?\nChoices:\n(A) Ann\n(B) Bob\n(C) Cid\n(D) Dan\n\n\
                 Format your response as follows: \"The correct answer is (insert answer here)\"."
            );
            assert_eq!(asked.questions[0].max_new_tokens, 128);
            let sample = Sample {
                prediction: "The correct answer is (B).".into(),
                ..asked.questions[0].sample.clone()
            };
            assert_eq!(found.score("easy_short", &sample).unwrap().value, 1.0);
        }
    }

    #[test]
    fn other_groups_and_letters_are_problems() {
        let rows = json!([
            row("a", json!({ "difficulty": "odd" })),
            row("b", json!({ "length": 12 })),
            row("c", json!({ "answer": "E" })),
            row("d", json!({ "choice_C": null })),
            row("e", json!({ "difficulty": "hard", "length": "long" })),
            row("e", json!({})),
        ]);
        let (_dir, found) = suite(&serde_json::to_string_pretty(&rows).unwrap(), "data.json").unwrap();
        assert_eq!(found.readings().iter().map(|r| r.task.as_str()).collect::<Vec<_>>(), ["hard_long"]);
        let problems: Vec<&str> = found.problems().iter().map(|p| p.problem.as_str()).collect();
        let expected =
            ["`difficulty`", "`length` is 12", "`answer` is \"E\"", "`choice_C` is missing", "id `e`"];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        assert!(problems.iter().zip(expected).all(|(p, e)| p.starts_with(e)), "{problems:?}");
        assert!(found.problems().iter().all(|p| p.line.is_some_and(|l| l > 1)));
        assert!(suite("[{}]", "data.json").unwrap_err().contains("data.json:1: `question` is missing"));
    }

    #[test]
    fn accuracy_is_by_difficulty_and_length() {
        let (_dir, found) = suite(&row("a", json!({})).to_string(), "data.jsonl").unwrap();
        let row = |task: &str, score| Row { task: task.into(), method: "m".into(), score, ..Row::default() };
        let rows = [row("easy_short", Some(1.0)), row("hard_short", Some(0.0)), row("hard_long", None)];
        let tables = found.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[0].head[2..], ["overall", "easy", "hard", "short", "medium", "long"]);
        assert_eq!(tables[0].rows, [["m", "2", "50.00", "100.00", "0.00", "50.00", "-", "-"]]);
    }
}
