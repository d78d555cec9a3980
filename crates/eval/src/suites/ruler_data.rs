//! RULER's 13 tasks (NVIDIA/RULER), read from rows that its own scripts have generated.
//!
//! A row's `input` is asked as it is. Its last line is the question, which a method sees arrive after the text. With an
//! `answer_prefix` the prompt stands in the model's chat template, if it has one, and the prefix begins the answer; without one,
//! as older versions write rows, `input` ends with it and stands alone. Rows that a chat template of RULER's own is baked into
//! are refused, since its markers would be read as plain text.

use super::data::{Fields, Shelf, Tally, find, length, mean, percent, planned, table, tallies};
use crate::EvalError;
use crate::figures::{distinct, short};
use crate::run::{self, Asked, Made, Problem, Question, Reading, Row, RowKey, Table, Tools};
use crate::scorers::{self, Sample, Score, ScoreError, Scorer};
use reattention_engine::Source;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder with `{task}/validation.jsonl` or `{task}.jsonl`, below folders named by length (`4096`, `128k`) or not.
    pub data: PathBuf,
    /// Tasks; all that have a file if left out.
    pub tasks: Option<Vec<String>>,
    /// Lengths in tokens; all that have a folder if left out.
    pub lengths: Option<Vec<usize>>,
    /// Most rows of a task and length: the first ones.
    pub samples: Option<usize>,
}

/// The suite of RULER's own rows.
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
        let known = scorers::Suite::Ruler.tasks();
        let places = places(&options.data, options.lengths.as_deref());
        let names = |task: &str| places.iter().map(|(length, dir)| (*length, files(dir, task))).collect();
        let mut shelf = Shelf::default();
        for (task, length, path) in find("RULER", &options.data, &known, options.tasks.as_deref(), names)? {
            shelf.add(&path, options.samples, |row, number| {
                let asked = ask(&task, row)?;
                Ok(Reading {
                    task: task.clone(),
                    length,
                    // `index` is no id: in niah it is where the answer stands.
                    rows: vec![RowKey { id: number.to_string(), depth: None, task: None }],
                    tokens: planned(&asked, None, tools),
                    ..Reading::default()
                })
            })?;
        }
        Ok(Self { options, shelf: shelf.not_empty()? })
    }
}

/// Folders that may hold tasks, below `dir`: those named by a wanted length, or, where all are wanted, `dir` itself too.
fn places(dir: &Path, wanted: Option<&[usize]>) -> Vec<(Option<usize>, PathBuf)> {
    let folder = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((Some(length(&name)?), PathBuf::from(name))).filter(|_| entry.path().is_dir())
    };
    let mut places: Vec<(Option<usize>, PathBuf)> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(folder).collect();
    match wanted {
        None => places.push((None, PathBuf::new())),
        Some(wanted) => {
            places.retain(|(length, _)| length.is_some_and(|n| wanted.contains(&n)));
            // What is asked for and not there belongs into the error's list of what was expected.
            let missing = wanted.iter().filter(|n| !places.iter().any(|p| p.0 == Some(**n)));
            let missing: Vec<_> = missing.map(|n| (Some(*n), PathBuf::from(n.to_string()))).collect();
            places.extend(missing);
        }
    }
    places.sort();
    places
}

/// Names that the file of a task may have in a place.
fn files(place: &Path, task: &str) -> Vec<PathBuf> {
    ["", "data"]
        .iter()
        .flat_map(|data| {
            let dir = place.join(data);
            [dir.join(task).join("validation.jsonl"), dir.join(format!("{task}.jsonl"))]
        })
        .collect()
}

/// What RULER's chat templates begin with.
const MARKERS: [&str; 3] = ["<|", "[INST]", "<start_of_turn>"];

/// What is asked of a row.
fn ask(task: &str, row: &Fields) -> Result<Asked, String> {
    let input = row.text("input")?;
    if let Some(marker) = MARKERS.iter().find(|m| input.trim_start().starts_with(**m)) {
        return Err(format!(
            "`input` begins with a chat template (`{marker}`); generate the rows with model_template_type=base"
        ));
    }
    let prefix = match row.get("answer_prefix") {
        None => None,
        Some(_) => Some(row.text("answer_prefix")?),
    };
    let references = row.texts("outputs")?;
    if references.is_empty() {
        return Err("`outputs` is empty".into());
    }
    let lines = input.trim_end_matches('\n');
    let text = lines.rfind('\n').map_or("", |at| input[..at].trim_end_matches('\n'));
    Ok(Asked {
        chat: prefix.is_some(),
        source: Source { name: String::new(), text: text.to_string() },
        questions: vec![Question {
            after: input[text.len()..].to_string(),
            prefix: prefix.unwrap_or_default().to_string(),
            sample: Sample::new("", references.into()),
            max_new_tokens: new_tokens(task),
            ..Question::default()
        }],
        ..Asked::default()
    })
}

/// `tokens_to_generate`.
fn new_tokens(task: &str) -> usize {
    match task {
        "vt" => 30,
        "cwe" => 120,
        "fwe" => 50,
        "qa_1" | "qa_2" => 32,
        _ => 128,
    }
}

impl run::Suite for Suite {
    fn name(&self) -> &'static str {
        "ruler-data"
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
        Scorer::new(scorers::Suite::Ruler, task)?.score(sample)
    }

    fn tables(&self, rows: &[&Row]) -> Vec<Table> {
        let tallies = tallies(scorers::Suite::Ruler, &scorers::Suite::Ruler.tasks(), rows);
        vec![by_length("RULER: mean over tasks by length", &tallies), table("RULER: tasks", &tallies)]
    }
}

/// One line a method, one column a length: the mean over the tasks, then the mean over lengths, plain and weighed by 1, 2, ... with
/// growing (inc) or falling (dec) length, as in RULER's table.
pub fn by_length(title: &str, tallies: &[Tally]) -> Table {
    let mut lengths = distinct(tallies.iter().map(|t| t.length));
    lengths.sort();
    let mut head = vec!["method".to_string()];
    head.extend(lengths.iter().map(|n| n.map_or("-".to_string(), short)));
    if lengths.len() > 1 {
        head.extend(["Avg.", "wAvg. (inc)", "wAvg. (dec)"].map(String::from));
    }
    let line = |method: String| {
        let of = |length: &Option<usize>| {
            let tallies = tallies.iter().filter(|t| t.length == *length && t.method == method);
            mean(tallies.map(|t| t.summary.as_ref().map(|s| s.percent)))
        };
        let means: Vec<Option<f64>> = lengths.iter().map(of).collect();
        let weighed = |weight: &dyn Fn(usize) -> usize| {
            let known: Vec<f64> = means.iter().copied().collect::<Option<_>>()?;
            let weights: Vec<f64> = (0..known.len()).map(|at| weight(at) as f64).collect();
            let sum: f64 = known.iter().zip(&weights).map(|(value, weight)| value * weight).sum();
            Some(sum / weights.iter().sum::<f64>())
        };
        let n = means.len();
        let mut line = vec![method.clone()];
        line.extend(means.iter().map(|m| percent(*m)));
        if n > 1 {
            line.extend([
                percent(mean(means.iter().copied())),
                percent(weighed(&|at| at + 1)),
                percent(weighed(&|at| n - at)),
            ]);
        }
        line
    };
    let rows = distinct(tallies.iter().map(|t| t.method.clone())).into_iter().map(line).collect();
    Table { title: title.to_string(), head, rows, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{first, folder_of, prompt, with_tools};
    use super::*;
    use crate::run::Suite as _;

    const ROW: &str = concat!(
        "{\"index\": 3, \"input\": \"Memorize it.\\nThe pass is 7.\\n\\nWhat is the pass?\", \"outputs\": [\"7\"], ",
        "\"length\": 30, \"answer_prefix\": \" The pass is\"}\n",
    );

    fn suite(
        files: &[(&str, &str)],
        lengths: Option<&[usize]>,
    ) -> Result<(tempfile::TempDir, Suite), String> {
        let dir = folder_of(files);
        let lengths = lengths.map(<[usize]>::to_vec);
        let options = Options { data: dir.path().to_path_buf(), lengths, ..Options::default() };
        let suite = with_tools(|tools| Suite::new(options, tools)).map_err(|e| e.to_string())?;
        Ok((dir, suite))
    }

    #[test]
    fn the_prompt_is_the_row_s_and_its_last_line_the_question() {
        let (_dir, found) = suite(&[("vt/validation.jsonl", &format!("{ROW}{ROW}"))], None).unwrap();
        assert_eq!(found.readings().len(), 2, "{:?}", found.problems());
        let asked = first(&found);
        assert_eq!(prompt(&asked), "Memorize it.\nThe pass is 7.\n\nWhat is the pass? The pass is");
        let question = &asked.questions[0];
        assert_eq!(
            (question.after.as_str(), question.prefix.as_str()),
            ("\n\nWhat is the pass?", " The pass is")
        );
        assert_eq!((asked.source.text.as_str(), asked.chat), ("Memorize it.\nThe pass is 7.", true));
        assert_eq!(question.max_new_tokens, 30);
        let sample = Sample { prediction: " 7.".into(), ..question.sample.clone() };
        assert_eq!(found.score("vt", &sample).unwrap().value, 1.0);
    }

    #[test]
    fn older_rows_stand_alone_and_baked_templates_are_refused() {
        let row = |input: &str| format!("{}\n", json!({ "input": input, "outputs": ["7"] }));
        let text = [row("one line"), row("[INST] x\ny [/INST]"), row("<|im_start|>user\nx\n"), row("a\nb\n")]
            .concat();
        let (_dir, found) = suite(&[("qa_1.jsonl", &text)], None).unwrap();
        let ids: Vec<&str> = found.readings().iter().map(|r| r.rows[0].id.as_str()).collect();
        assert_eq!(ids, ["1", "4"]);
        let asked = first(&found);
        assert!(!asked.chat && asked.source.text.is_empty());
        assert_eq!(prompt(&asked), "one line");
        assert_eq!(found.problems().iter().map(|p| p.line).collect::<Vec<_>>(), [Some(2), Some(3)]);
        assert!(found.problems()[0].problem.contains("model_template_type=base"));
    }

    #[test]
    fn lengths_are_folders() {
        let files = [
            ("4096/data/vt/validation.jsonl", ROW),
            ("8k/vt.jsonl", ROW),
            ("8k/cwe.jsonl", ROW),
            ("fwe.jsonl", ROW),
        ];
        let (_dir, found) = suite(&files, None).unwrap();
        let names: Vec<_> = found.readings().iter().map(|r| (r.task.as_str(), r.length)).collect();
        assert_eq!(names, [("vt", Some(4096)), ("vt", Some(8192)), ("cwe", Some(8192)), ("fwe", None)]);
        let (_dir, found) = suite(&files, Some(&[4096])).unwrap();
        assert_eq!(found.readings().len(), 1);
        let error = suite(&files, Some(&[16_384])).unwrap_err();
        assert!(error.contains("16384/niah_single_1/validation.jsonl"), "{error}");
        let error = suite(&[("vt.jsonl", "{\"input\": \"x\", \"outputs\": []}")], None).unwrap_err();
        assert!(error.contains("vt.jsonl:1: `outputs` is empty"), "{error}");
    }

    #[test]
    fn lengths_are_weighed_both_ways() {
        let (_dir, found) = suite(&[("vt.jsonl", ROW)], None).unwrap();
        let row = |length, score| Row {
            task: "vt".into(),
            length: Some(length),
            method: "m".into(),
            score: Some(score),
            ..Row::default()
        };
        let rows = [row(4096, 0.9), row(8192, 0.6), row(16_384, 0.0)];
        let tables = found.tables(&rows.iter().collect::<Vec<_>>());
        assert_eq!(tables[0].head, ["method", "4k", "8k", "16k", "Avg.", "wAvg. (inc)", "wAvg. (dec)"]);
        assert_eq!(tables[0].rows, [["m", "90.00", "60.00", "0.00", "50.00", "35.00", "65.00"]]);
    }
}
