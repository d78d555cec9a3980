//! L-Eval (OpenLMLab/LEval): 20 tasks of documents with several questions each, read from users' copies.
//!
//! L-Eval is GPL-3.0, so none of its text stands here: what a model is told about the form of its answers is this project's own, and
//! scores are L-Eval's for prompts that are not. From its protocol come the cut of long documents, by words from the right and for
//! code from the left; 512 new tokens; and the number of words wanted of open answers, which is the reference's. `sci_fi` is asked in
//! one answer, `True [fact: False]`, where L-Eval asks twice, the second time without the document.
//!
//! A document is read once for all of its questions. What only a model or a person judges is not asked, and named.

use super::data::{Fields, Shelf, find, grouped, planned, scorable, table, tallies};
use crate::EvalError;
use crate::run::{self, Asked, Made, NOT_COVERED, Problem, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::leval::{TASKS, Task};
use crate::scorers::python::split;
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use reattention_engine::Source;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder with `{task}.jsonl`, or with L-Eval's folders of them: `LEval-data`, `Closed-ended-tasks`, `Open-ended-tasks`,
    /// `Exam`, `Generation`.
    pub data: PathBuf,
    /// Tasks; all that have a file if left out.
    pub tasks: Option<Vec<String>>,
    /// Most tokens of a document: longer ones are cut by words. L-Eval takes the model's window less 512.
    pub limit: Option<usize>,
    /// Most documents of a task: the first ones.
    pub samples: Option<usize>,
}

const MAX_NEW_TOKENS: usize = 512;

/// Tasks by what scores them.
const GROUPS: [(&str, &[&str]); 3] = [
    ("exam", &["coursera", "gsm100", "quality", "topic_retrieval_longchat", "tpo", "codeU", "sci_fi"]),
    (
        "F1",
        &[
            "financial_qa",
            "legal_contract_qa",
            "multidoc_qa",
            "narrative_qa",
            "natural_question",
            "scientific_qa",
        ],
    ),
    (
        "ROUGE",
        &[
            "gov_report_summ",
            "meeting_summ",
            "news_summ",
            "paper_assistant",
            "patent_summ",
            "review_summ",
            "tv_show_summ",
        ],
    ),
];

/// The L-Eval suite.
#[derive(Debug)]
pub struct Suite {
    options: Options,
    shelf: Shelf,
    /// By reading: how many questions stand before it in its file. L-Eval's topics are told apart by that.
    before: Vec<usize>,
}

impl Suite {
    /// Reads the folder.
    ///
    /// # Errors
    /// When a file is missing or cannot be read, or no row can be asked.
    pub fn new(options: Options, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let known = TASKS.map(|(name, _)| name);
        let (mut shelf, mut before) = (Shelf::default(), Vec::new());
        for (task, (), path) in find("L-Eval", &options.data, &known, options.tasks.as_deref(), files)? {
            let mut questions = 0;
            shelf.add(&path, options.samples, |row, number| {
                let asked = ask(&task, row, questions)?;
                for question in &asked.questions {
                    scorable(scorers::Suite::LEval, &task, &question.sample)?;
                }
                let question = asked.questions.iter().map(|q| tools.count(&q.after)).max().unwrap_or(0);
                let key = |n| RowKey { id: format!("{number}.{n}"), depth: None, task: None };
                let rows: Vec<RowKey> = (1..=asked.questions.len()).map(key).collect();
                before.push(questions);
                questions += rows.len();
                Ok(Reading {
                    task: task.clone(),
                    tokens: planned(&asked, options.limit.map(|limit| limit + question), tools),
                    rows,
                    ..Reading::default()
                })
            })?;
        }
        Ok(Self { options, shelf: shelf.not_empty()?, before })
    }
}

/// Names that the file of a task may have.
fn files(task: &str) -> Vec<((), Vec<PathBuf>)> {
    let kinds = ["", "Closed-ended-tasks", "Open-ended-tasks", "Exam", "Generation"];
    let homes = ["", "data", "LEval-data", "LEval"];
    let name = |home: &str, kind: &str| PathBuf::from(home).join(kind).join(format!("{task}.jsonl"));
    vec![((), homes.iter().flat_map(|home| kinds.map(|kind| name(home, kind))).collect())]
}

/// What is asked of a row, `before` questions of which stand before it in the file.
fn ask(task: &str, row: &Fields, before: usize) -> Result<Asked, String> {
    let kind = TASKS.iter().find(|(name, _)| *name == task).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| format!("there is no task {task}"))?;
    let (instructions, outputs) = (row.texts("instructions")?, row.texts("outputs")?);
    match row.text("evaluation")? {
        "exam" | "f1" | "rouge" => {}
        judge => {
            return Err(format!(
                "{NOT_COVERED}its `evaluation` is `{judge}`, which has no score that can be computed; questions: {}",
                instructions.len()
            ));
        }
    }
    if instructions.is_empty() || instructions.len() != outputs.len() {
        return Err(format!(
            "`instructions` has {} texts and `outputs` {}; as many belong into both, at least one",
            instructions.len(),
            outputs.len()
        ));
    }
    let question = |(n, (instruction, output)): (usize, (String, String))| Question {
        after: after(kind, &instruction, split(&output).count()),
        sample: Sample { index: before + n, ..Sample::new("", vec![output].into()) },
        max_new_tokens: MAX_NEW_TOKENS,
        ..Question::default()
    };
    Ok(Asked {
        chat: true,
        before: format!("{}\n\n", rule(kind)),
        source: Source { name: String::new(), text: row.text("input")?.to_string() },
        questions: instructions.into_iter().zip(outputs).enumerate().map(question).collect(),
        ..Asked::default()
    })
}

/// What the model is told about its answers.
fn rule(kind: Task) -> &'static str {
    match kind {
        Task::Choice => {
            "Read the document and answer the question that follows it. One of the options is right: answer with its letter, A, \
             B, C or D, and nothing else."
        }
        Task::Choices => {
            "Read the document and answer the question that follows it. One option is right, or several are: answer with the \
             letters of all that are right, such as B or ACD, and nothing else."
        }
        Task::Math => {
            "Here are problems with their solutions, and at the end one without. Solve it step by step in the same manner. End \
             with the words `The answer is` and the number."
        }
        Task::Code => {
            "Read the code and work out what the call that follows it prints. End with the words `the final output is` and what \
             is printed."
        }
        Task::Topics => {
            "Read the conversation and answer the question that follows it with a topic, in the words that name it in the \
             conversation, and nothing else."
        }
        Task::Judge => {
            "Read the story and judge the statement that follows it twice: whether it is true in the story, and whether it is \
             true in the real world. Answer with True or False in both places of this form: True [fact: False]"
        }
        Task::F1 => "Read the document and answer the question that follows it, briefly.",
        Task::Rouge => "Read the document and do what is asked after it.",
    }
}

fn after(kind: Task, instruction: &str, words: usize) -> String {
    match kind {
        Task::Math => format!("\n\n{instruction}\n"),
        Task::F1 | Task::Rouge => {
            format!("\n\nQuestion: {instruction}\nUse about {words} words.\nAnswer:")
        }
        _ => format!("\n\nQuestion: {instruction}\nAnswer:"),
    }
}

/// L-Eval's cut: while there are more than `limit` tokens, the first `limit - 250 n` words stay in the `n`-th round, or the last ones
/// with `from_left`. Words are what stands between single spaces; negative numbers count from the other end, as in Python.
fn cut(text: &str, limit: usize, from_left: bool, count: impl Fn(&str) -> usize) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    let (mut kept, mut round) = (text.to_string(), 0);
    while count(&kept) > limit {
        // `n` words from the front for n >= 0, all but the last `-n` else; the other end takes the rest of the same division.
        let n = limit as i64 - 250 * round;
        let back = |n: i64| usize::try_from(n).map_or(0, |n| words.len().saturating_sub(n));
        let front = |n: i64| usize::try_from(n).map_or(0, |n| n.min(words.len()));
        words = match (from_left, n) {
            (false, 0..) => words[..front(n)].to_vec(),
            (false, _) => words[..back(-n)].to_vec(),
            (true, 1..) => words[back(n)..].to_vec(),
            (true, _) => words[front(-n)..].to_vec(),
        };
        kept = words.join(" ");
        round += 1;
    }
    kept
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "leval"
    }

    fn version(&self) -> u32 {
        2
    }

    fn options(&self) -> Value {
        let Options { data: _, tasks, limit, samples } = &self.options;
        json!({ "tasks": tasks, "limit": limit, "samples": samples, "files": self.shelf.files() })
    }

    fn readings(&self) -> &[Reading] {
        self.shelf.readings()
    }

    fn problems(&self) -> &[Problem] {
        self.shelf.problems()
    }

    fn make(&self, reading: &Reading, tools: &Tools<'_>) -> Result<Made, EvalError> {
        let before =
            usize::try_from(reading.at).ok().and_then(|at| self.before.get(at)).copied().unwrap_or(0);
        let mut asked = self.shelf.row(reading, |row| ask(&reading.task, row, before))?;
        asked.source.name = self.shelf.source_name(reading);
        if let Some(limit) = self.options.limit {
            let text = &asked.source.text;
            let kept = cut(text, limit, reading.task.contains("code"), |text| tools.count(text));
            asked.cut = if kept == *text { 0 } else { tools.count(text).saturating_sub(tools.count(&kept)) };
            asked.source.text = kept;
        }
        Ok(Made::Asked(asked))
    }

    fn score(&self, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
        Scorer::new(scorers::Suite::LEval, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let order: Vec<&str> = GROUPS.iter().flat_map(|(_, tasks)| *tasks).copied().collect();
        let tallies = tallies(scorers::Suite::LEval, &order, rows);
        let groups = GROUPS.map(|(name, tasks)| (name, tasks.to_vec()));
        vec![grouped("L-Eval: by kind of score", &tallies, &groups), table("L-Eval: tasks", &tallies)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, nth, with_tools};
    use super::*;
    use crate::run::Suite as _;

    fn row(document: &str, questions: &[(&str, &str)], evaluation: &str) -> String {
        let (instructions, outputs): (Vec<&str>, Vec<&str>) = questions.iter().copied().unzip();
        let row = json!({
            "instructions": instructions, "outputs": outputs, "input": document, "source": "own",
            "evaluation": evaluation,
        });
        format!("{row}\n")
    }

    fn suite(files: &[(&str, &str)], limit: Option<usize>) -> Result<(tempfile::TempDir, Suite), String> {
        let dir = folder_of(files);
        let options = Options { data: dir.path().to_path_buf(), limit, ..Options::default() };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    #[test]
    fn every_task_has_a_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, tasks)| *tasks).copied().collect();
        let mut tasks = TASKS.map(|(name, _)| name);
        grouped.sort();
        tasks.sort();
        assert_eq!(grouped, tasks);
    }

    #[test]
    fn a_document_is_read_once_for_its_questions() {
        let text = [
            row("A quiz.", &[("One? A. x B. y", "A"), ("Two? A. x B. y", "B")], "exam"),
            row("Another.", &[("Three? A. x B. y", "B")], "exam"),
        ]
        .concat();
        let (_dir, found) = suite(&[("LEval-data/Closed-ended-tasks/quality.jsonl", &text)], None).unwrap();
        let ids: Vec<Vec<&str>> =
            found.readings().iter().map(|r| r.rows.iter().map(|k| k.id.as_str()).collect()).collect();
        assert_eq!(ids, [vec!["1.1", "1.2"], vec!["2.1"]]);
        let asked = first(&found);
        assert_eq!(asked.source, Source { name: "quality.jsonl:1".into(), text: "A quiz.".into() });
        assert!(asked.before.contains("answer with its letter") && asked.before.ends_with("\n\n"));
        let question = &asked.questions[1];
        assert_eq!(question.after, "\n\nQuestion: Two? A. x B. y\nAnswer:");
        assert_eq!((question.max_new_tokens, question.sample.expected.clone()), (512, json!(["B"])));
        let places: Vec<usize> = [first(&found), nth(&found, 1)]
            .iter()
            .flat_map(|a| a.questions.iter().map(|q| q.sample.index).collect::<Vec<_>>())
            .collect();
        assert_eq!(places, [0, 1, 2]);
        let sample = Sample { prediction: "(B)".into(), ..question.sample.clone() };
        assert_eq!(found.score("quality", &sample).unwrap().value, 1.0);
    }

    #[test]
    fn open_answers_are_told_their_length() {
        let text = row("A report.", &[("Sum it up.", "four words it has")], "rouge");
        let (_dir, found) = suite(&[("news_summ.jsonl", &text)], None).unwrap();
        assert!(first(&found).questions[0].after.contains("Use about 4 words."));
    }

    #[test]
    fn judged_and_broken_rows_are_named() {
        let text = [
            row("x", &[("a", "b"), ("c", "d")], "LLM"),
            row("x", &[("a", "b")], "human"),
            row("x", &[("a", "b")], "f1"),
            json!({ "instructions": ["a"], "outputs": [], "input": "x", "evaluation": "f1" }).to_string()
                + "\n",
            json!({ "instructions": [], "outputs": [], "input": "x", "evaluation": "f1" }).to_string() + "\n",
            json!({ "instructions": "a", "outputs": ["b"], "input": "x", "evaluation": "f1" }).to_string()
                + "\n",
            json!({ "instructions": ["a"], "outputs": ["b"], "evaluation": "f1" }).to_string() + "\n",
            json!({ "instructions": ["a"], "outputs": ["b"], "input": "x" }).to_string() + "\n",
        ]
        .concat();
        let (_dir, found) = suite(&[("financial_qa.jsonl", &text)], None).unwrap();
        assert_eq!(found.readings().len(), 1);
        let problems: Vec<String> = found.problems().iter().map(|p| p.to_string()).collect();
        let expected = [
            "jsonl:1: not covered: its `evaluation` is `LLM`, which has no score that can be computed; questions: 2",
            "jsonl:2: not covered: its `evaluation` is `human`",
            "jsonl:4: `instructions` has 1 texts and `outputs` 0",
            "jsonl:5: `instructions` has 0",
            "jsonl:6: `instructions` is a text where a list",
            "jsonl:7: `input` is missing",
            "jsonl:8: `evaluation` is missing",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        assert!(problems.iter().zip(expected).all(|(p, e)| p.contains(e)), "{problems:?}");
    }

    #[test]
    fn documents_are_cut_by_words_as_published() {
        let text = (0..1000).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
        // One token a word: the first round is enough.
        let words = |text: &str| text.split_whitespace().count();
        assert_eq!(words(&cut(&text, 600, false, words)), 600);
        assert_eq!(cut(&text, 1000, false, words), text);
        assert!(cut(&text, 600, true, words).ends_with(" w999"));
        assert_eq!(words(&cut(&text, 600, true, words)), 600);
        // Two tokens a word: 600, then 350, then 100 words.
        let double = |text: &str| 2 * words(text);
        assert_eq!(words(&cut(&text, 600, false, double)), 100);
        assert_eq!(words(&cut(&text, 600, true, double)), 100);
        // 200 words, then all but the last 50, then all but the last 300, which is none.
        assert_eq!(words(&cut(&text, 200, false, double)), 0);
        let some = |text: &str| if words(text) > 150 { 201 } else { 0 };
        assert_eq!(words(&cut(&text, 200, false, some)), 150);
        assert_eq!(words(&cut(&text, 200, true, some)), 150);
        assert!(cut(&text, 0, false, words).is_empty());
    }

    #[test]
    fn cut_tokens_are_counted() {
        let document = (0..500).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        let code = row(&document, &[("What is printed?", "7")], "exam");
        let quiz = row(&document, &[("Which?", "A")], "exam");
        let (_dir, found) = suite(&[("codeU.jsonl", &code), ("tpo.jsonl", &quiz)], Some(900)).unwrap();
        let asked: Vec<Asked> = (0..2).map(|at| nth(&found, at)).collect();
        let (quiz, code) = (&asked[0], &asked[1]);
        assert!(quiz.cut > 0 && document.starts_with(&quiz.source.text) && !quiz.source.text.is_empty());
        assert!(code.cut > 0 && document.ends_with(&code.source.text) && !code.source.text.is_empty());
        assert!(with_tools(|tools| tools.count(&quiz.source.text)) <= 900);
    }

    #[test]
    fn topics_are_balanced_in_the_table() {
        let text = row("x", &[("a", "b")], "exam");
        let (_dir, found) = suite(&[("topic_retrieval_longchat.jsonl", &text)], None).unwrap();
        let row = |index, score| Row {
            task: "topic_retrieval_longchat".into(),
            method: "m".into(),
            score: Some(score),
            index,
            ..Row::default()
        };
        let rows = [row(0, 1.0), row(3, 1.0), row(1, 1.0), row(2, 0.0)];
        let tables = found.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[0].head, ["method", "exam", "mean of groups", "mean of tasks"]);
        assert_eq!(tables[0].rows, [["m", "66.67", "66.67", "66.67"]]);
    }
}
