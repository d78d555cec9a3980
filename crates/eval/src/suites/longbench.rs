//! LongBench (THUDM/LongBench, version 1): 21 tasks and the 13 of LongBench-E, read from users' copies.
//!
//! Prompts are the published ones, byte by byte (`prompts/longbench.json`). The few-shot and code tasks are asked without chat
//! template, as published. Greedy, with the published number of new tokens; `samsum` ends at a line break.

use super::data::{
    Fields, Shelf, Tally, around, find, grouped, jsonl, percent, planned, published, table, tallies,
};
use crate::EvalError;
use crate::figures::distinct;
use crate::run::{self, Asked, Made, Problem, Question, Reading, Row, RowKey, Table, Tools, cut_middle};
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
    /// The folder with `{task}.jsonl` or `data/{task}.jsonl`.
    pub data: PathBuf,
    /// Tasks; all that have a file if left out.
    pub tasks: Option<Vec<String>>,
    /// Run LongBench-E (`{task}_e.jsonl`) instead.
    pub extended: bool,
    /// Most tokens of a prompt, template apart: longer ones are cut in the middle.
    pub limit: Option<usize>,
    /// Most rows of a task: the first ones.
    pub samples: Option<usize>,
}

/// Tasks by category, as LongBench's paper groups them.
pub const CATEGORIES: [(&str, &[&str]); 6] = [
    ("SQA", &["narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"]),
    ("MQA", &["hotpotqa", "2wikimqa", "musique", "dureader"]),
    ("Sum", &["gov_report", "qmsum", "multi_news", "vcsum"]),
    ("FSL", &["trec", "triviaqa", "samsum", "lsht"]),
    ("Synthetic", &["passage_count", "passage_retrieval_en", "passage_retrieval_zh"]),
    ("Code", &["lcc", "repobench-p"]),
];

const CHINESE: [&str; 5] = ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"];

/// Tasks of LongBench-E, without their `_e`.
const EXTENDED: [&str; 13] = [
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "gov_report",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
];

/// Tasks that are asked without chat template.
const BARE: [&str; 6] = ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"];

/// `prompts/longbench.json`.
#[derive(Deserialize)]
struct Published {
    prompts: HashMap<String, String>,
    max_new_tokens: HashMap<String, usize>,
}

static PUBLISHED: LazyLock<Published> =
    LazyLock::new(|| published(include_str!("../../prompts/longbench.json")));

/// The LongBench suite.
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
        let known = tasks(options.extended);
        let chosen = options.tasks.as_ref().map(|chosen| {
            let named = |task: &String| match options.extended && !task.ends_with("_e") {
                true => format!("{task}_e"),
                false => task.clone(),
            };
            chosen.iter().map(named).collect::<Vec<_>>()
        });
        let mut shelf = Shelf::default();
        for (task, (), path) in find("LongBench", &options.data, &known, chosen.as_deref(), jsonl)? {
            shelf.add(&path, options.samples, |row, number| {
                let asked = ask(&task, row)?;
                let id = row.id(&["_id", "id"])?.unwrap_or_else(|| number.to_string());
                Ok(Reading {
                    task: task.clone(),
                    rows: vec![RowKey { id, depth: None, task: None }],
                    tokens: planned(&asked, options.limit, tools),
                    ..Reading::default()
                })
            })?;
        }
        Ok(Self { options, shelf: shelf.not_empty()? })
    }
}

/// Names of the tasks, in the order of their categories.
fn tasks(extended: bool) -> Vec<String> {
    let all = CATEGORIES.iter().flat_map(|(_, tasks)| *tasks);
    match extended {
        true => all.filter(|t| EXTENDED.contains(t)).map(|t| format!("{t}_e")).collect(),
        false => all.map(|t| t.to_string()).collect(),
    }
}

fn plain(task: &str) -> &str {
    task.strip_suffix("_e").unwrap_or(task)
}

/// What is asked of a row.
fn ask(task: &str, row: &Fields) -> Result<Asked, String> {
    let name = plain(task);
    row.is("dataset", &[name, task][..1 + usize::from(name != task)])?;
    let (Some(template), Some(&max_new_tokens)) =
        (PUBLISHED.prompts.get(name), PUBLISHED.max_new_tokens.get(name))
    else {
        return Err(format!("there is no prompt for {name}"));
    };
    let (before, after) = around(template, &[("input", row.text("input")?)]);
    let classes = match row.get("all_classes") {
        None if matches!(name, "trec" | "lsht") => return Err("`all_classes` is missing".into()),
        None => None,
        Some(_) => Some(row.texts("all_classes")?),
    };
    let length = match row.get("length") {
        None if !task.ends_with("_e") => None,
        _ => Some(row.whole("length")?),
    };
    let sample = Sample { classes, length, ..Sample::new("", row.texts("answers")?.into()) };
    let stop = if name == "samsum" { vec!["\n".to_string()] } else { Vec::new() };
    Ok(Asked {
        chat: !BARE.contains(&name),
        before,
        source: Source { name: String::new(), text: row.text("context")?.to_string() },
        questions: vec![Question { after, sample, max_new_tokens, stop, ..Question::default() }],
        ..Asked::default()
    })
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "longbench"
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let Options { data: _, tasks, extended, limit, samples } = &self.options;
        json!({
            "tasks": tasks, "extended": extended, "limit": limit, "samples": samples, "files": self.shelf.files(),
        })
    }

    fn readings(&self) -> &[Reading] {
        self.shelf.readings()
    }

    fn problems(&self) -> &[Problem] {
        self.shelf.problems()
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let mut asked = self.shelf.row(reading, |row| ask(&reading.task, row))?;
        asked.source.name = self.shelf.source_name(reading);
        if let Some(limit) = self.options.limit {
            cut_middle(tools, &mut asked, limit)?;
        }
        Ok(Made::Asked(asked))
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::LongBench, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let (order, suffix) = match self.options.extended {
            true => (tasks(true), "_e"),
            false => (tasks(false), ""),
        };
        let tallies = tallies(scorers::Suite::LongBench, &order, rows);
        let title = if self.options.extended { "LongBench-E" } else { "LongBench" };
        let grouped_by = |title: String, wanted: &dyn Fn(&str) -> bool| {
            let names: Vec<(&str, Vec<String>)> = CATEGORIES
                .iter()
                .map(|(name, tasks)| {
                    let tasks = tasks.iter().filter(|t| wanted(t)).map(|t| format!("{t}{suffix}"));
                    (*name, tasks.collect())
                })
                .collect();
            grouped(&title, &tallies, &names)
        };
        let mut tables = vec![grouped_by(format!("{title}: categories"), &|_| true)];
        let has = |chinese: bool| tallies.iter().any(|t| CHINESE.contains(&plain(&t.task)) == chinese);
        if has(true) && has(false) {
            let title = format!("{title}: categories, English and code tasks");
            tables.push(grouped_by(title, &|task| !CHINESE.contains(&task)));
        }
        tables.push(table(&format!("{title}: tasks"), &tallies));
        if self.options.extended {
            tables.push(by_length(&format!("{title}: tasks by length"), &tallies));
        }
        tables
    }
}

/// One line a task and group of lengths, as LongBench-E is reported.
fn by_length(title: &str, tallies: &[Tally]) -> Table {
    let methods = distinct(tallies.iter().map(|t| t.method.clone()));
    let tasks = distinct(tallies.iter().map(|t| t.task.clone()));
    let mut head = vec!["task".to_string(), "words".into(), "rows".into()];
    head.extend(methods.iter().cloned());
    let mut rows = Vec::new();
    for task in &tasks {
        for length in ["0-4k", "4-8k", "8k+"] {
            let group = |method: &String| {
                let tally = tallies.iter().find(|t| t.task == *task && t.method == *method)?;
                tally.summary.as_ref()?.groups.iter().find(|g| g.name == length)
            };
            let Some(count) = methods.iter().filter_map(|m| Some(group(m)?.rows)).max() else { continue };
            let mut line = vec![task.clone(), length.to_string(), count.to_string()];
            line.extend(methods.iter().map(|m| percent(group(m).map(|g| g.percent))));
            rows.push(line);
        }
    }
    Table { title: title.to_string(), head, rows, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, nth, prompt, with_tools};
    use super::*;
    use crate::run::Suite as _;
    use crate::scorers::longbench::TASKS;

    /// A row in LongBench's form.
    fn row(id: &str, input: &str, context: &str, answers: &[&str], more: Value) -> String {
        let mut row = json!({
            "input": input, "context": context, "answers": answers, "length": 12, "all_classes": null,
            "language": "en", "_id": id,
        });
        let fields = row.as_object_mut().unwrap();
        fields.extend(more.as_object().cloned().unwrap_or_default());
        format!("{row}\n")
    }

    fn suite(files: &[(&str, &str)], options: Options) -> Result<(tempfile::TempDir, Suite), String> {
        let dir = folder_of(files);
        let options = Options { data: dir.path().to_path_buf(), ..options };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    #[test]
    fn every_task_has_a_category_a_prompt_a_limit_and_a_scorer() {
        let mut names = tasks(false);
        let mut scored: Vec<String> = TASKS.iter().map(|t| t.0.to_string()).collect();
        names.sort();
        scored.sort();
        assert_eq!(names, scored);
        for name in &names {
            let template = &PUBLISHED.prompts[name];
            assert_eq!(template.matches("{context}").count(), 1, "{name}");
            let (before, after) = around(template, &[("input", "")]);
            assert!(!format!("{before}{after}").contains(['{', '}']), "{name}");
            assert!((32..=512).contains(&PUBLISHED.max_new_tokens[name]), "{name}");
        }
        assert_eq!(PUBLISHED.prompts.len(), 21);
        assert_eq!(tasks(true).len(), 13);
    }

    #[test]
    fn prompts_are_the_published_ones() {
        let row = row("a", "Who {context}?", "It was {input}.", &["Tom", "Tim"], json!({}));
        let (_dir, found) = suite(&[("narrativeqa.jsonl", &row)], Options::default()).unwrap();
        let asked = first(&found);
        assert_eq!(
            prompt(&asked),
            "You are given a story, which can be either a novel or a movie script, and a question. Answer the \
             question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n\
             Story: It was {input}.\n\nNow, answer the question based on the story asconcisely as you can, using a \
             single phrase if possible. Do not provide any explanation.\n\nQuestion: Who {context}?\n\nAnswer:"
        );
        assert_eq!(
            asked.source,
            Source { name: "narrativeqa.jsonl:1".into(), text: "It was {input}.".into() }
        );
        let question = &asked.questions[0];
        assert_eq!((question.max_new_tokens, question.sample.expected.clone()), (128, json!(["Tom", "Tim"])));
        assert!(asked.chat && question.stop.is_empty() && question.prefix.is_empty());
    }

    #[test]
    fn few_shot_and_code_tasks_are_bare_and_samsum_ends_at_a_line() {
        let files = [
            (
                "data/trec.jsonl",
                row("t", "Q: x\nType:", "ex", &["Sea"], json!({ "all_classes": ["Sea", "Sky"] })),
            ),
            ("data/samsum.jsonl", row("s", "Dialogue: x\nSummary: ", "ex", &["y"], json!({}))),
            ("data/lcc.jsonl", row("l", "", "let a", &[" = 1;"], json!({ "dataset": "lcc" }))),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let (_dir, found) = suite(&files, Options::default()).unwrap();
        let asked: Vec<Asked> = (0..3).map(|at| nth(&found, at)).collect();
        assert!(asked.iter().all(|a| !a.chat));
        let stops: Vec<usize> = asked.iter().map(|a| a.questions[0].stop.len()).collect();
        assert_eq!(stops, [0, 1, 0]);
        assert_eq!(asked[0].questions[0].sample.classes, Some(vec!["Sea".to_string(), "Sky".to_string()]));
        assert_eq!(prompt(&asked[2]), "Please complete the code given below. \nlet aNext line of code:\n");
    }

    #[test]
    fn bad_rows_are_named_and_good_ones_run() {
        let good = row("a", "x", "y", &["z"], json!({}));
        let other = row("b", "x", "y", &["z"], json!({ "dataset": "qasper" }));
        let no_classes = row("c", "x", "y", &["z"], json!({}));
        let files = [
            ("hotpotqa.jsonl", format!("{good}{good}{other}{{\"input\": 3, \"answers\": []}}\n{{}}\n")),
            ("trec.jsonl", no_classes),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let (_dir, found) = suite(&files, Options::default()).unwrap();
        assert_eq!(found.readings().len(), 1);
        let problems: Vec<String> = found.problems().iter().map(|p| p.to_string()).collect();
        let expected = [
            "hotpotqa.jsonl:2: id `a` stands on line 1 already (row 1)",
            "hotpotqa.jsonl:3: `dataset` is \"qasper\" where hotpotqa belongs",
            "hotpotqa.jsonl:4: `input` is a number where a text belongs",
            "hotpotqa.jsonl:5: `input` is missing",
            "trec.jsonl:1: `all_classes` is missing",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.ends_with(expected), "{problem} is not {expected}");
        }
    }

    #[test]
    fn chosen_tasks_need_their_files_only() {
        let row = row("a", "x", "y", &["z"], json!({}));
        let files = [("qasper_e.jsonl", row.as_str()), ("qasper.jsonl", row.as_str())];
        let tasks = |names: &[&str]| Some(names.iter().map(|n| n.to_string()).collect());
        let options =
            |extended, names: &[&str]| Options { extended, tasks: tasks(names), ..Options::default() };
        let (_dir, plain) = suite(&files, options(false, &["qasper"])).unwrap();
        assert_eq!(plain.readings()[0].task, "qasper");
        for name in ["qasper", "qasper_e"] {
            let (_dir, extended) = suite(&files, options(true, &[name])).unwrap();
            assert_eq!(extended.readings()[0].task, "qasper_e");
        }
        let error = suite(&files, options(false, &["lcc"])).unwrap_err();
        assert!(
            error.contains("expected lcc.jsonl or data/lcc.jsonl; found qasper.jsonl, qasper_e.jsonl"),
            "{error}"
        );
        let error = suite(&files, options(true, &["musique"])).unwrap_err();
        assert!(error.contains("LongBench has no task `musique_e`; it has qasper_e"), "{error}");
        let error = suite(&[("x.txt", "")], Options::default()).unwrap_err();
        assert!(
            error.contains("expected any of narrativeqa.jsonl") && error.contains("found x.txt"),
            "{error}"
        );
    }

    #[test]
    fn long_prompts_are_cut_in_the_middle() {
        let words: Vec<String> = (0..400).map(|n| format!("word{n}")).collect();
        let row = row("a", "Which?", &words.join(" "), &["z"], json!({}));
        let (_dir, whole) = suite(&[("hotpotqa.jsonl", &row)], Options::default()).unwrap();
        let limit = Some(300);
        let (_dir, cut) =
            suite(&[("hotpotqa.jsonl", &row)], Options { limit, ..Options::default() }).unwrap();
        let (whole, cut) = (first(&whole), first(&cut));
        let (text, full) = (prompt(&cut), prompt(&whole));
        let tokens = with_tools(|tools| (tools.count(&full), tools.count(&text)));
        assert_eq!(tokens.0 - cut.cut, 300);
        assert!(cut.cut > 0 && tokens.1.abs_diff(300) <= 4, "{tokens:?}");
        let kept = (0..=text.len()).rev().find(|n| full.starts_with(&text[..*n])).unwrap();
        assert!(full.ends_with(&text[kept..]) && kept > 100 && text.len() - kept > 100, "{text}");
    }

    #[test]
    fn tables_are_by_category_and_length() {
        let line = row("a", "x", "y", &["z"], json!({}));
        let (_dir, plain) = suite(&[("lcc.jsonl", &line)], Options::default()).unwrap();
        let row = |task: &str, score: f64, words: u64| Row {
            task: task.into(),
            method: "full".into(),
            score: Some(score),
            words: Some(words),
            ..Row::default()
        };
        let rows = [row("qasper", 0.5, 1), row("multifieldqa_zh", 1.0, 1), row("lcc", 0.25, 1)];
        let tables = plain.tables(&rows.iter().collect::<Vec<_>>());
        let titles: Vec<&str> = tables.iter().map(|t| t.title.as_str()).collect();
        assert_eq!(
            titles,
            ["LongBench: categories", "LongBench: categories, English and code tasks", "LongBench: tasks",]
        );
        assert_eq!(tables[0].rows, [["full", "75.00", "25.00", "50.00", "58.33"]]);
        assert_eq!(tables[1].rows, [["full", "50.00", "25.00", "37.50", "37.50"]]);
        let extended = Options { extended: true, ..Options::default() };
        let (_dir, extended) = suite(&[("lcc_e.jsonl", &line)], extended).unwrap();
        let rows = [row("lcc_e", 0.5, 3999), row("lcc_e", 1.0, 8000), row("lcc_e", 0.0, 9000)];
        let tables = extended.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[2].head, ["task", "words", "rows", "full"]);
        assert_eq!(tables[2].rows, [["lcc_e", "0-4k", "1", "50.00"], ["lcc_e", "8k+", "2", "50.00"]]);
    }
}
