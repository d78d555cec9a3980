//! InfiniteBench (OpenBMB/InfiniteBench): 12 tasks, read from users' copies.
//!
//! Prompts are the published ones, byte by byte (`prompts/infinitebench.json`): `yarn_mistral_templates` for base models and
//! `gpt4_templates` for chat models, filled as `create_prompt` in `src/eval_utils.py` fills them, with one exception: GPT-4 gets the
//! bare expression of `math_calc`, and its template is asked here. No system message, greedy.

use super::data::{
    Fields, Shelf, Tally, around, find, jsonl, mean, percent, planned, published, scorable, table, tallies,
};
use crate::EvalError;
use crate::figures::distinct;
use crate::run::{self, Asked, Made, Problem, Question, Reading, Row, RowKey, Table, Tools, cut_middle};
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use reattention_engine::Source;
use regex::Regex;
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
    /// Which of the two published sets of prompts.
    pub prompts: Prompts,
    /// Which of two published limits of answers.
    pub new_tokens: NewTokens,
    /// Most tokens of a prompt, template apart: longer ones are cut in the middle. InfiniteBench cuts to 128k.
    pub limit: Option<usize>,
    /// Most rows of a task: the first ones.
    pub samples: Option<usize>,
}

/// Which prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prompts {
    /// Those for chat models where the model has a chat template, else those for base models.
    #[default]
    Fitting,
    /// `yarn_mistral_templates`, without chat template.
    Base,
    /// `gpt4_templates`, in the model's chat template if it has one.
    Chat,
}

/// Limits of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewTokens {
    /// InfiniteBench's: 3 to 30,000. They fit base models; chat models often begin with more words.
    #[default]
    Official,
    /// InfLLM's: 32 to 64,000.
    InfLlm,
}

/// Tasks in the order of the paper: retrieval, code, mathematics, books.
const TASKS: [&str; 12] = [
    "passkey",
    "number_string",
    "kv_retrieval",
    "code_debug",
    "code_run",
    "math_find",
    "math_calc",
    "longbook_choice_eng",
    "longbook_qa_eng",
    "longbook_sum_eng",
    "longdialogue_qa_eng",
    "longbook_qa_chn",
];

/// `prompts/infinitebench.json`.
#[derive(Deserialize)]
pub(super) struct Published {
    pub(super) yarn_mistral_templates: HashMap<String, String>,
    pub(super) gpt4_templates: HashMap<String, String>,
    pub(super) max_new_tokens: HashMap<String, usize>,
    pub(super) max_new_tokens_infllm: HashMap<String, usize>,
}

/// Prompts and limits as published.
pub(super) static PUBLISHED: LazyLock<Published> =
    LazyLock::new(|| published(include_str!("../../prompts/infinitebench.json")));

/// The InfiniteBench suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    chat: bool,
    shelf: Shelf,
}

impl Suite {
    /// Reads the folder.
    ///
    /// # Errors
    /// When a file is missing or cannot be read, or no row can be asked.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let chat = match options.prompts {
            Prompts::Fitting => tools.chat(),
            Prompts::Base => false,
            Prompts::Chat => true,
        };
        let mut suite = Self { options, chat, shelf: Shelf::default() };
        let Options { data, tasks, limit, samples, .. } = suite.options.clone();
        let mut shelf = Shelf::default();
        for (task, (), path) in find("InfiniteBench", &data, &TASKS, tasks.as_deref(), jsonl)? {
            shelf.add(&path, samples, |row, number| {
                let asked = suite.ask(&task, row)?;
                scorable(scorers::Suite::InfiniteBench, &task, &asked.questions[0].sample)?;
                let id = row.id(&["id", "_id"])?.unwrap_or_else(|| number.to_string());
                Ok(Reading {
                    task: task.clone(),
                    rows: vec![RowKey { id, depth: None, task: None }],
                    tokens: planned(&asked, limit, tools),
                    ..Reading::default()
                })
            })?;
        }
        suite.shelf = shelf.not_empty()?;
        Ok(suite)
    }

    /// What is asked of a row.
    fn ask(&self, task: &str, row: &Fields) -> Result<Asked, String> {
        let templates = if self.chat { &PUBLISHED.gpt4_templates } else { &PUBLISHED.yarn_mistral_templates };
        let limits = match self.options.new_tokens {
            NewTokens::Official => &PUBLISHED.max_new_tokens,
            NewTokens::InfLlm => &PUBLISHED.max_new_tokens_infllm,
        };
        let (Some(template), Some(&max_new_tokens)) = (templates.get(task), limits.get(task)) else {
            return Err(format!("there is no prompt for {task}"));
        };
        let context = row.text(if row.get("content").is_some() { "content" } else { "context" })?;
        let values = values(task, row)?;
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (before, after) = around(template, &values);
        let sample = Sample::new("", label(task, row)?);
        Ok(Asked {
            chat: self.chat,
            before,
            source: Source { name: String::new(), text: context.to_string() },
            questions: vec![Question { after, sample, max_new_tokens, ..Question::default() }],
            ..Asked::default()
        })
    }
}

/// What the templates of a task want besides the context.
fn values(task: &str, row: &Fields) -> Result<Vec<(&'static str, String)>, String> {
    let input = || Ok::<_, String>(row.text("input")?.to_string());
    let mut values = match task {
        "passkey" | "number_string" | "kv_retrieval" => vec![("input", input()?)],
        "longbook_choice_eng" | "longbook_qa_eng" | "longbook_qa_chn" => vec![("question", input()?)],
        "math_find" => vec![("prefix", prefix(&input()?)?), ("input", input()?)],
        "code_run" => {
            let call = call(&input()?)?;
            let function = call.split('(').next().unwrap_or_default().to_string();
            vec![("func", function), ("func_call", call)]
        }
        _ => Vec::new(),
    };
    if has_options(task) {
        let names = ["OPTION_A", "OPTION_B", "OPTION_C", "OPTION_D"];
        values.extend(names.into_iter().zip(options(row)?));
    }
    Ok(values)
}

fn has_options(task: &str) -> bool {
    matches!(task, "longbook_choice_eng" | "code_debug")
}

fn options(row: &Fields) -> Result<[String; 4], String> {
    let options = row.texts("options")?;
    let n = options.len();
    options.try_into().map_err(|_| format!("`options` has {n} texts where 4 belong"))
}

/// `What is the largest number in the following list?`, from the words of the question.
fn prefix(input: &str) -> Result<String, String> {
    static WANTED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("The .+ of").expect("the pattern is fixed and valid"));
    let found = WANTED.find(input).ok_or("`input` does not say `The ... of`, so nothing is asked for")?;
    let number = found.as_str().to_lowercase();
    Ok(format!("What is {} in the following list?", number.strip_suffix(" of").unwrap_or(&number)))
}

/// The call whose result is asked for.
fn call(input: &str) -> Result<String, String> {
    static CALL: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"func_[0-9]+\(-?[0-9]+\)").expect("the pattern is fixed and valid"));
    let found = CALL.find(input).ok_or("`input` has no call like func_12(3)")?;
    Ok(found.as_str().to_string())
}

/// The answer as the published scorers get it: text and letter where there are options (`get_answer`); for `kv_retrieval`, whose
/// scorer does not unwrap lists, the one element of its list.
fn label(task: &str, row: &Fields) -> Result<Value, String> {
    let answer = row.value("answer")?;
    if has_options(task) {
        let text = match answer {
            Value::Array(list) if list.len() == 2 => {
                let letter = list[1].as_str().is_some_and(|l| matches!(l, "A" | "B" | "C" | "D"));
                return if letter && list[0].is_string() {
                    Ok(answer.clone())
                } else {
                    Err(format!("`answer` is {answer} where a text and a letter of A to D belong"))
                };
            }
            Value::Array(list) if list.len() == 1 => list[0].as_str(),
            one => one.as_str(),
        };
        let text = text.ok_or_else(|| format!("`answer` is {answer} where the text of an option belongs"))?;
        let at = options(row)?.iter().position(|option| option == text);
        let at = at.ok_or_else(|| format!("`answer` is {answer}, which is none of the options"))?;
        let letter = ["A", "B", "C", "D"][at];
        return Ok(json!([text, letter]));
    }
    match answer {
        Value::Array(list) if list.len() == 1 && task == "kv_retrieval" => Ok(list[0].clone()),
        answer => Ok(answer.clone()),
    }
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "infinitebench"
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let Options { data: _, tasks, prompts: _, new_tokens, limit, samples } = &self.options;
        let new_tokens = match new_tokens {
            NewTokens::Official => "official",
            NewTokens::InfLlm => "infllm",
        };
        json!({
            "tasks": tasks, "prompts": if self.chat { "chat" } else { "base" }, "new_tokens": new_tokens,
            "limit": limit, "samples": samples, "files": self.shelf.files(),
        })
    }

    fn readings(&self) -> &[Reading] {
        self.shelf.readings()
    }

    fn problems(&self) -> &[Problem] {
        self.shelf.problems()
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let mut asked = self.shelf.row(reading, |row| self.ask(&reading.task, row))?;
        asked.source.name = self.shelf.source_name(reading);
        if let Some(limit) = self.options.limit {
            cut_middle(tools, &mut asked, limit)?;
        }
        Ok(Made::Asked(asked))
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::InfiniteBench, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let tallies = tallies(scorers::Suite::InfiniteBench, &TASKS, rows);
        vec![wide(&tallies), table("InfiniteBench: tasks", &tallies)]
    }
}

/// One line a method, one column a task, named as in the paper.
fn wide(tallies: &[Tally]) -> Table {
    const NAMES: [&str; 12] = [
        "PassKey", "Number", "KV", "C.Debug", "C.Run", "M.Find", "M.Calc", "En.MC", "En.QA", "En.Sum",
        "En.Dia", "Zh.QA",
    ];
    let there: Vec<usize> = (0..12).filter(|at| tallies.iter().any(|t| t.task == TASKS[*at])).collect();
    let mut head = vec!["method".to_string()];
    head.extend(there.iter().map(|at| NAMES[*at].to_string()));
    head.push("mean".into());
    let line = |method: String| {
        let score = |at: &usize| {
            Some(
                tallies
                    .iter()
                    .find(|t| t.task == TASKS[*at] && t.method == method)?
                    .summary
                    .as_ref()?
                    .percent,
            )
        };
        let mut line = vec![method.clone()];
        line.extend(there.iter().map(|at| percent(score(at))));
        line.push(percent(mean(there.iter().map(score))));
        line
    };
    let rows = distinct(tallies.iter().map(|t| t.method.clone())).into_iter().map(line).collect();
    Table { title: "InfiniteBench".into(), head, rows, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, nth, prompt, with_tools};
    use super::*;
    use crate::run::Suite as _;

    fn suite(task: &str, rows: &[Value], options: Options) -> Result<(tempfile::TempDir, Suite), String> {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let dir = folder_of(&[(&format!("{task}.jsonl"), &text)]);
        let options = Options { data: dir.path().to_path_buf(), ..options };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    /// Prompt and label of a row.
    fn of(task: &str, row: Value, prompts: Prompts) -> (String, Value) {
        let options = Options { prompts, ..Options::default() };
        let (_dir, suite) = suite(task, &[row], options).unwrap();
        let asked = first(&suite);
        assert_eq!(asked.chat, prompts == Prompts::Chat);
        (prompt(&asked), asked.questions[0].sample.expected.clone())
    }

    #[test]
    fn every_task_has_both_prompts_limits_and_a_scorer() {
        let names = [
            "input",
            "question",
            "prefix",
            "func",
            "func_call",
            "OPTION_A",
            "OPTION_B",
            "OPTION_C",
            "OPTION_D",
        ];
        let values = names.map(|name| (name, ""));
        for task in TASKS {
            for templates in [&PUBLISHED.gpt4_templates, &PUBLISHED.yarn_mistral_templates] {
                let template = &templates[task];
                assert_eq!((template.matches("{context}").count(), templates.len()), (1, 12), "{task}");
                let (before, after) = around(template, &values);
                assert!(!format!("{before}{after}").contains(['{', '}']), "{task}");
            }
            assert!(PUBLISHED.max_new_tokens[task] >= 3 && PUBLISHED.max_new_tokens_infllm[task] >= 32);
            assert!(Scorer::new(scorers::Suite::InfiniteBench, task).is_ok());
        }
    }

    #[test]
    fn base_prompts_are_the_published_ones() {
        let row =
            json!({ "id": 0, "context": "grass", "input": "What is the pass key?", "answer": ["71432"] });
        assert_eq!(
            of("passkey", row, Prompts::Base).0,
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz \
             you about the important information.\n\ngrass\n\nWhat is the pass key?\n\nThe pass key is"
        );
        let row = json!({
            "id": 0, "context": "[3, 7]", "input": "You should answer with only one number, no other words. The \
            second largest number of the list is:", "answer": 3,
        });
        assert_eq!(
            of("math_find", row, Prompts::Base).0,
            "What is the second largest number in the following list?\n\n[3, 7]\n\nYou should answer with only one \
             number, no other words. The second largest number of the list is:"
        );
        let row = json!({ "id": 0, "context": "def f", "input": "value of func_12(-3).", "answer": [4] });
        assert_eq!(
            of("code_run", row, Prompts::Base).0,
            "There is a function called func_12 in the following Python code.\n\ndef f\n\nPlease compute the exact \
             value of func_12(-3). The value of func_12(-3) is"
        );
    }

    #[test]
    fn chat_prompts_are_the_published_ones() {
        let row = json!({
            "id": 0, "context": "A book.", "input": "Who?", "options": ["Ann", "Bob", "Cid", "Dan"],
            "answer": ["Cid"],
        });
        let (prompt, label) = of("longbook_choice_eng", row, Prompts::Chat);
        assert_eq!(
            prompt,
            "Read the book and answer the question.\n\nA book.\n\nQuestion: Who?\n\nOnly one of the following options \
             is correct, tell me the answer using one single letter (A, B, C, or D). Don't say anything else.\nA. \
             Ann\nB. Bob\nC. Cid\nD. Dan"
        );
        assert_eq!(label, json!(["Cid", "C"]));
        let row = json!({ "id": 0, "context": "一本书", "input": "谁？", "answer": ["他"] });
        assert_eq!(
            of("longbook_qa_chn", row, Prompts::Chat).0,
            "请根据以下书籍回答我的问题。\n\n一本书\n\n问题：谁？\n请尽量简短地回答。"
        );
    }

    #[test]
    fn a_model_without_template_gets_base_prompts_and_the_limit_asked_for() {
        let row = json!({ "id": 7, "context": "x", "input": "y", "answer": 5 });
        let rows = [row.clone(), row];
        let options = Options { new_tokens: NewTokens::InfLlm, ..Options::default() };
        let (_dir, found) = suite("number_string", &rows[..1], options).unwrap();
        let asked = first(&found);
        assert!(!asked.chat && prompt(&asked).ends_with("The sequence of digits is"));
        assert_eq!(asked.questions[0].max_new_tokens, 32);
        assert_eq!(found.options()["prompts"], "base");
        let (_dir, found) = suite("number_string", &rows, Options::default()).unwrap();
        assert_eq!(first(&found).questions[0].max_new_tokens, 12);
        assert!(matches!(found.problems(), [p] if p.problem == "id `7` stands on line 1 already (row 1)"));
    }

    #[test]
    fn labels_are_what_the_scorers_take() {
        let kv = |answer: Value| json!({ "id": 0, "context": "{}", "input": "Key: \"a\"", "answer": answer });
        for answer in [json!("b-1"), json!(["b-1"])] {
            let (_dir, found) = suite("kv_retrieval", &[kv(answer)], Options::default()).unwrap();
            let sample = Sample { prediction: "\"b-1\"".into(), ..first(&found).questions[0].sample.clone() };
            let score = found.score("kv_retrieval", &sample).unwrap();
            assert_eq!((score.value, score.note), (1.0, None));
        }
        let debug = |id: usize, answer: Value| json!({ "id": id, "context": "c", "input": "", "options": ["f", "g", "h", "i"], "answer": answer });
        let rows = [
            debug(0, json!("g")),
            debug(1, json!(["f", "A"])),
            debug(2, json!(["z"])),
            debug(3, json!(["f", "E"])),
            debug(4, json!(3)),
            json!({ "id": 5, "context": "c", "options": ["f"], "answer": "f" }),
            json!({ "id": 6, "context": "c", "options": ["f", "g", "h", "i"] }),
        ];
        let (_dir, found) = suite("code_debug", &rows, Options::default()).unwrap();
        let labels: Vec<Value> =
            (0..2).map(|at| nth(&found, at).questions[0].sample.expected.clone()).collect();
        assert_eq!(labels, [json!(["g", "B"]), json!(["f", "A"])]);
        let problems: Vec<&str> = found.problems().iter().map(|p| p.problem.as_str()).collect();
        let expected = [
            "none of the options",
            "a letter of A to D",
            "text of an option",
            "1 texts where 4",
            "`answer` is missing",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        assert!(problems.iter().zip(expected).all(|(p, e)| p.contains(e)), "{problems:?}");
    }

    #[test]
    fn rows_that_could_never_be_scored_or_asked_are_problems() {
        let row = |id: usize, input: &str, answer: Value| json!({ "id": id, "context": "c", "input": input, "answer": answer });
        for (task, bad, part) in [
            ("math_calc", row(0, "", json!({})), "an object where a list of numbers"),
            ("longbook_qa_eng", row(0, "?", json!([1])), "where a list of texts"),
            ("math_find", row(0, "Which?", json!(1)), "`The ... of`"),
            ("code_run", row(0, "f(1)", json!(1)), "no call like func_12(3)"),
        ] {
            let error = suite(task, &[bad], Options::default()).unwrap_err();
            assert!(error.contains(part) && error.contains(&format!("{task}.jsonl:1")), "{error}");
        }
    }

    #[test]
    fn the_paper_s_table_has_a_column_a_task() {
        let key = json!({ "id": 0, "context": "x", "input": "y", "answer": "5" });
        let (_dir, found) = suite("passkey", &[key], Options::default()).unwrap();
        let row = |task: &str, score| Row {
            task: task.into(),
            method: "m".into(),
            score: Some(score),
            ..Row::default()
        };
        let rows = [row("longbook_qa_chn", 0.5), row("passkey", 1.0), row("passkey", 0.0)];
        let tables = found.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[0].head, ["method", "PassKey", "Zh.QA", "mean"]);
        assert_eq!(tables[0].rows, [["m", "50.00", "50.00", "50.00"]]);
        assert_eq!(tables[1].rows.len(), 3);
    }
}
