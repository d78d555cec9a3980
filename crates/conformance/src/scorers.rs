//! Published predictions with the score that the official scorer gives each: `SUITE/TASK.jsonl` and `summary.json`.

use anyhow::{Context, bail, ensure};
use reattention_eval::scorers::{Sample, Score, ScoreError, Scorer, Suite, leval, rouge_pltrdy, segment};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Largest difference of a row, on a scale of 0 to 1.
const TOLERANCE: f64 = 1e-6;
/// Largest difference of an average in per cent that is given unrounded.
const TOLERANCE_PERCENT: f64 = 1e-6;
/// And of one given with two decimals.
const TOLERANCE_ROUNDED: f64 = 0.005 + 1e-6;

/// Whether `dir` holds scored predictions rather than cases.
pub fn is_scorers(dir: &Path) -> bool {
    dir.join("summary.json").is_file() && !dir.join("cases").exists()
}

/// What came of one file.
#[derive(Debug, Default)]
pub struct TaskOutcome {
    /// `SUITE/TASK`.
    pub name: String,
    /// Rows scored as the official code does.
    pub passed: usize,
    /// Rows of tasks that have no scorer.
    pub skipped: usize,
    /// The rows that differ, and the averages.
    pub failures: Vec<String>,
    /// Averages compared.
    pub averages: usize,
}

impl TaskOutcome {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "task": self.name, "passed": self.passed, "failed": self.failures.len(), "skipped": self.skipped,
            "averages": self.averages, "failures": self.failures })
    }

    /// As a line.
    pub fn text(&self) -> String {
        let status = match (self.failures.len(), self.passed) {
            (0, 0) => "skipped",
            (0, _) => "ok",
            _ => "FAILED",
        };
        let counts = format!("{} rows, {} averages", self.passed + self.skipped, self.averages);
        let more = self.failures.len().saturating_sub(3);
        let mut text = format!("{status:7} {}  {counts}", self.name);
        for failure in self.failures.iter().take(3) {
            text += &format!("  |  {failure}");
        }
        if more > 0 {
            text += &format!("  |  and {more} more");
        }
        text
    }
}

/// The files below `dir`, as `SUITE/TASK`, in order.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for suite in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let files = entries(&suite)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "jsonl"));
        let stem = |path: &Path| path.file_stem().and_then(|s| s.to_str()).map(str::to_string);
        let suite = stem(&suite).context("a folder's name is not UTF-8")?;
        names.extend(files.filter_map(|file| Some(format!("{suite}/{}", stem(&file)?))));
    }
    names.sort();
    Ok(names)
}

fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    read.map(|entry| Ok(entry?.path())).collect()
}

/// Scores the file `name` and compares rows and averages.
///
/// # Errors
/// When a file is missing or not what it should be.
pub fn run(dir: &Path, name: &str) -> anyhow::Result<TaskOutcome> {
    let path = dir.join(format!("{name}.jsonl"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut outcome = TaskOutcome { name: name.to_string(), ..TaskOutcome::default() };
    let mut rows = Vec::new();
    for (number, line) in text.split('\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let row = Row::parse(line).with_context(|| format!("{} line {}", path.display(), number + 1))?;
        let Some(scorer) = &row.scorer else {
            outcome.skipped += 1;
            continue;
        };
        let score = match scorer.score(&row.sample) {
            Ok(score) => score,
            // Refusing a reference of the wrong type is what raising amounts to.
            Err(_) if row.extra.contains_key("official_raises") => Score::default(),
            Err(error) => {
                outcome.failures.push(format!("{}: {error}", row.id));
                continue;
            }
        };
        match row.check(scorer, &score) {
            Ok(()) => outcome.passed += 1,
            Err(error) => outcome.failures.push(format!("{}: {error:#}", row.id)),
        }
        rows.push((row, score));
    }
    if rows.is_empty() {
        return Ok(outcome);
    }
    let summary = dir.join("summary.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(&summary)?)
        .with_context(|| summary.display().to_string())?;
    let (suite, task) = name.split_once('/').context("a name is SUITE/TASK")?;
    let entries = match &all["suites"][suite][task] {
        Value::Array(list) => list.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    for entry in entries {
        let model = entry["model"].as_str();
        let of_entry =
            |(row, _): &&(Row, Score)| model.is_none_or(|m| m.starts_with('(') || row.sample.model == m);
        let rows: Vec<&(Row, Score)> = rows.iter().filter(of_entry).collect();
        let mut averages = Averages { outcome: &mut outcome, rows };
        averages.compare(&entry);
    }
    Ok(outcome)
}

struct Row {
    id: String,
    scorer: Option<Scorer>,
    sample: Sample,
    expected: Value,
    extra: Map<String, Value>,
}

impl Row {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut row: Map<String, Value> = serde_json::from_str(line)?;
        let extra = match row.remove("extra") {
            Some(Value::Object(extra)) => extra,
            _ => Map::new(),
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_string);
        let suite: Option<Suite> = text(row.get("suite")).and_then(|s| s.parse().ok());
        let task = text(extra.get("dataset")).or_else(|| text(row.get("task"))).context("no task")?;
        let scorer = suite.map(|suite| match (suite, text(extra.get("metric")).as_deref()) {
            (Suite::Ruler, Some("string_match_part")) => Scorer::new(suite, "qa_1"),
            (Suite::Ruler, Some(_)) => Scorer::new(suite, "vt"),
            _ => Scorer::new(suite, &task),
        });
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|v| v.as_str().map(str::to_string)).collect()
        };
        let sample = Sample {
            prediction: text(row.get("prediction")).context("no prediction")?,
            expected: row.remove("label").or_else(|| row.remove("references")).context("no reference")?,
            classes: extra.get("all_classes").and_then(texts),
            question: text(extra.get("question")),
            model: text(extra.get("model")).unwrap_or_default(),
            length: extra.get("length").and_then(Value::as_u64),
            index: extra.get("topic_index").and_then(Value::as_u64).unwrap_or(0) as usize,
            ..Sample::default()
        };
        let expected = row.remove("expected").context("no expected score")?;
        let id = text(row.get("id")).context("no id")?;
        Ok(Self { id, scorer: scorer.and_then(Result::ok), sample, expected, extra })
    }

    /// Compares the score, and what the row tells of the way to it.
    fn check(&self, scorer: &Scorer, score: &Score) -> anyhow::Result<()> {
        equal("score", score, &self.expected)?;
        let references = self.sample.references().unwrap_or_default();
        self.check_each(scorer, &references)?;
        if let Some(words) = self.extra.get("jieba_prediction") {
            let cut = segment::cut(&self.sample.prediction);
            ensure!(json!(cut) == *words, "words are {cut:?}, not {words}");
        }
        if let Some(words) = self.extra.get("jieba_references") {
            let cut: Vec<Vec<&str>> = references.iter().map(|r| segment::cut(r)).collect();
            ensure!(json!(cut) == *words, "words are {cut:?}, not {words}");
        }
        let task = leval::TASKS.iter().find(|t| t.0 == scorer.task()).map(|t| t.1);
        let processed = |name: &str| self.extra.get(name).and_then(Value::as_str);
        if let (Some(task), Some(prediction), Some(reference), [first, ..]) =
            (task, processed("processed_prediction"), processed("processed_reference"), &references[..])
        {
            let ours = leval::extract(task, &self.sample.prediction, first).context("nothing extracted")?;
            ensure!(ours.0 == prediction, "extracted {:?}, not {prediction:?}", ours.0);
            ensure!(ours.1 == reference, "extracted {:?} of the reference, not {reference:?}", ours.1);
        }
        if let Some(unlimited) = self.extra.get("expected_without_recursion_limit").and_then(Value::as_f64) {
            let scores: Result<Vec<f64>, ScoreError> =
                references.iter().map(|r| rouge_pltrdy::rouge_l(&self.sample.prediction, r, None)).collect();
            let best = scores?.into_iter().fold(0.0, f64::max);
            ensure!((best - unlimited).abs() <= TOLERANCE, "without a limit {best}, not {unlimited}");
        }
        Ok(())
    }

    /// The score against each reference alone: a list, or a list for each part.
    fn check_each(&self, scorer: &Scorer, references: &[&str]) -> anyhow::Result<()> {
        let Some(each) = self.extra.get("expected_per_reference") else { return Ok(()) };
        for (at, reference) in references.iter().enumerate() {
            let expected = match each {
                Value::Object(parts) => parts
                    .iter()
                    .map(|(part, list)| (part.clone(), list[at].clone()))
                    .collect::<Map<_, _>>()
                    .into(),
                list => list[at].clone(),
            };
            let sample = Sample { expected: json!([reference]), ..self.sample.clone() };
            equal("score against one reference", &scorer.score(&sample)?, &expected)?;
        }
        Ok(())
    }
}

/// Compares a score with a number, or its parts with an object of numbers. Those of ROUGE are in per cent.
fn equal(what: &str, score: &Score, expected: &Value) -> anyhow::Result<()> {
    if let Some(expected) = expected.as_f64() {
        ensure!((score.value - expected).abs() <= TOLERANCE, "{what} {}, not {expected}", score.value);
        return Ok(());
    }
    let Value::Object(parts) = expected else { bail!("expected is {expected}") };
    for (name, expected) in parts {
        let scale = if name.starts_with("rouge") { 100.0 } else { 1.0 };
        let expected = expected.as_f64().context("expected is no number")? / scale;
        // Where the official code raises there are no parts, and each is 0.
        let ours = score.part(name).or(score.note.map(|_| 0.0)).with_context(|| format!("no part {name}"))?;
        ensure!((ours - expected).abs() <= TOLERANCE, "{what} {name} {ours}, not {expected}");
    }
    Ok(())
}

struct Averages<'a> {
    outcome: &'a mut TaskOutcome,
    rows: Vec<&'a (Row, Score)>,
}

impl Averages<'_> {
    fn compare(&mut self, entry: &Value) {
        if let Some(rows) = entry["rows"].as_u64() {
            self.one("rows", self.rows.len() as f64, rows as f64, 0.0);
        }
        self.values("average", &entry["expected_avg_percent"], TOLERANCE_PERCENT);
        self.values("average", &entry["official_percent"], TOLERANCE_ROUNDED);
        if let Some(sum) = entry["expected_sum"].as_f64() {
            let ours = self.rows.iter().map(|r| r.1.value).sum();
            self.one("sum", ours, sum, TOLERANCE_PERCENT);
        }
        for (dataset, expected) in entry["by_dataset"].as_object().into_iter().flatten() {
            let of =
                |row: &&&(Row, Score)| row.0.extra.get("dataset").and_then(Value::as_str) == Some(dataset);
            let rows = self.rows.iter().filter(of).copied().collect();
            let mut averages = Averages { outcome: self.outcome, rows };
            averages.values(dataset, &expected["official_percent"], TOLERANCE_ROUNDED);
            if expected["official_percent"].is_null() {
                averages.values(dataset, expected, TOLERANCE_ROUNDED);
            }
        }
        self.summaries(entry);
    }

    /// Compares what the suite's own way of averaging gives.
    fn summaries(&mut self, entry: &Value) {
        let Some(scorer) = self.rows.first().and_then(|r| r.0.scorer.as_ref()) else { return };
        let scored: Vec<_> = self.rows.iter().map(|r| (r.0.sample.clone(), r.1.clone())).collect();
        let summary = scorer.summary(&scored);
        if let Some(all) = entry["official_all"].as_f64() {
            self.one("average", summary.percent, all, TOLERANCE_ROUNDED);
        }
        for (bucket, expected) in entry["official_by_bucket"].as_object().into_iter().flatten() {
            let ours = summary.groups.iter().find(|g| g.name == bucket).map_or(f64::NAN, |g| g.percent);
            self.one(bucket, ours, expected.as_f64().unwrap_or(f64::NAN), TOLERANCE_ROUNDED);
        }
        if let Some(balanced) = entry["expected_balanced_percent"].as_f64() {
            self.one("balanced average", summary.percent, balanced, TOLERANCE_PERCENT);
        }
        let by_topic = entry["expected_avg_percent_by_topic_index"].as_array().into_iter().flatten();
        for (at, expected) in by_topic.enumerate() {
            let ours = summary.groups.get(at).map_or(f64::NAN, |g| g.percent);
            self.one("topic", ours, expected.as_f64().unwrap_or(f64::NAN), TOLERANCE_PERCENT);
        }
    }

    /// Means of the rows in per cent: a number, or an object with one for each part.
    fn values(&mut self, what: &str, expected: &Value, tolerance: f64) {
        let n = self.rows.len().max(1) as f64;
        if let Some(expected) = expected.as_f64() {
            let ours = 100.0 * self.rows.iter().map(|r| r.1.value).sum::<f64>() / n;
            self.one(what, ours, expected, tolerance);
        }
        for (part, expected) in expected.as_object().into_iter().flatten().filter(|(name, _)| *name != "rows")
        {
            let values =
                self.rows.iter().map(|r| r.1.part(part).or(r.1.note.map(|_| 0.0)).unwrap_or(f64::NAN));
            let ours = 100.0 * values.sum::<f64>() / n;
            self.one(&format!("{what} {part}"), ours, expected.as_f64().unwrap_or(f64::NAN), tolerance);
        }
    }

    fn one(&mut self, what: &str, ours: f64, expected: f64, tolerance: f64) {
        self.outcome.averages += 1;
        let near = (ours - expected).abs() <= tolerance;
        if !near {
            self.outcome.failures.push(format!("{what} {ours}, not {expected}"));
        }
    }
}
