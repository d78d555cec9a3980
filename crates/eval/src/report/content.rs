//! What a report shows, in no form yet.

use super::manifest;
use crate::figures::{Figure, distinct, of_suite, short};
use crate::run::{Journal, Row, Table, by_task};
use crate::suites::perplexity;
use serde_json::{Map, Value};

/// A report's content.
pub(super) struct Content<'a> {
    /// What was evaluated: the heading.
    pub(super) model: Option<String>,
    /// What is said of the run as a whole.
    pub(super) facts: Vec<(String, String)>,
    /// Methods and suites with their settings.
    pub(super) settings: Vec<Table>,
    /// Rows of the user's files that could not be asked.
    pub(super) problems: Vec<String>,
    /// Names of the methods, in order.
    pub(super) methods: Vec<String>,
    /// One part for each suite.
    pub(super) sections: Vec<Section>,
    /// All rows in the order of tables, each with its number in the journal, from 1.
    pub(super) rows: Vec<(usize, &'a Row)>,
    /// Rows that there are to be.
    pub(super) total: Option<usize>,
}

/// A suite's part.
pub(super) struct Section {
    /// The suite.
    pub(super) suite: String,
    /// Its tables as papers print them.
    pub(super) tables: Vec<Table>,
    /// Figures over all its tasks, and of the tasks where there are few.
    pub(super) figures: Vec<Figure>,
    /// Figures of single tasks, where there are many.
    pub(super) by_task: Vec<Figure>,
    /// Outcomes, time and memory by method and length.
    pub(super) cost: Table,
}

/// Up to so many tasks a suite's figures stand open.
const FEW: usize = 3;

impl<'a> Content<'a> {
    /// What there is to show of a run. The tables are those of `results` if the run is finished, else of the rows.
    pub(super) fn new(manifest: &Map<String, Value>, journal: &'a Journal, results: Option<&Value>) -> Self {
        let all = journal.rows();
        let with = |mut names: Vec<String>, of: fn(&Row) -> &String| {
            let mut known: std::collections::HashSet<String> = names.iter().cloned().collect();
            names.extend(all.iter().map(of).filter(|n| known.insert((*n).clone())).cloned());
            names
        };
        let suites = with(manifest::names(manifest, "suites"), |r| &r.suite);
        let tasks = with(manifest::tasks(manifest), |r| &r.task);
        let methods = with(manifest::names(manifest, "arms"), |r| &r.method);
        let total = manifest::total(manifest);
        let finished = total.is_none_or(|total| total <= all.len());
        let results = results.filter(|_| finished);
        // Several jobs share the process, so its memory is no method's own.
        let with_memory = manifest.get("jobs").and_then(Value::as_u64).is_none_or(|jobs| jobs <= 1);

        fn refs(names: &[String]) -> Vec<&str> {
            names.iter().map(String::as_str).collect()
        }
        let ordered = journal.ordered(&refs(&suites), &refs(&tasks), &refs(&methods));
        let section = |suite: &String| {
            let rows: Vec<&Row> = ordered.iter().copied().filter(|r| r.suite == *suite).collect();
            Section::new(suite, &rows, &methods, with_memory, results)
        };
        let done = |suite: &str| all.iter().filter(|r| r.suite == suite).count();
        Self {
            model: manifest::model(manifest),
            facts: manifest::facts(manifest),
            settings: manifest::arms(manifest).into_iter().chain(manifest::suites(manifest, done)).collect(),
            problems: manifest::problems(manifest),
            sections: suites.iter().filter(|s| done(s) > 0).map(section).collect(),
            rows: numbered(all, &ordered),
            methods,
            total,
        }
    }

    /// All figures.
    pub(super) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|s| s.figures.iter().chain(&s.by_task))
    }

    /// How far an unfinished run has come.
    pub(super) fn unfinished(&self) -> Option<String> {
        let total = self.total.filter(|total| *total > self.rows.len())?;
        let group = |n: usize| crate::figures::grouped(n as u64);
        Some(format!(
            "Unfinished: {} of {} rows are there, and all that follows is of these.",
            group(self.rows.len()),
            group(total)
        ))
    }

    /// The run in one line.
    pub(super) fn summary(&self) -> String {
        let count = |n: usize, one: &str| {
            format!("{} {one}{}", crate::figures::grouped(n as u64), if n == 1 { "" } else { "s" })
        };
        let suites: Vec<&str> = self.sections.iter().map(|s| s.suite.as_str()).collect();
        let parts = [suites.join(", "), count(self.methods.len(), "method"), count(self.rows.len(), "row")];
        parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" · ")
    }
}

/// Each row with its number in the journal.
fn numbered<'a>(all: &'a [Row], ordered: &[&'a Row]) -> Vec<(usize, &'a Row)> {
    let number: std::collections::HashMap<*const Row, usize> =
        all.iter().enumerate().map(|(i, row)| (std::ptr::from_ref(row), i + 1)).collect();
    ordered.iter().map(|row| (number.get(&std::ptr::from_ref(*row)).copied().unwrap_or(0), *row)).collect()
}

impl Section {
    fn new(
        suite: &str,
        rows: &[&Row],
        methods: &[String],
        with_memory: bool,
        results: Option<&Value>,
    ) -> Self {
        let tasks = distinct(rows.iter().map(|r| r.task.clone()));
        let mut tables = results.map(|r| tables_of(suite, r)).unwrap_or_default();
        if tables.is_empty() {
            tables = tables_of_rows(suite, rows);
        }
        // Tables of the same rows have the same notes: said once.
        let mut said = std::collections::HashSet::new();
        for table in &mut tables {
            table.notes.retain(|note| said.insert(note.clone()));
        }
        let mut figures = of_suite(suite, rows, methods, with_memory);
        // Of many tasks only what is over all of them stands open.
        let open = if tasks.len() <= FEW { figures.len() } else { usize::from(figures.len() > 1) };
        let by_task = figures.split_off(open.min(figures.len()));
        let cost = cost(suite, rows, methods, with_memory);
        Self { suite: suite.to_string(), tables, figures, by_task, cost }
    }
}

/// What the rows of a run that is not finished give.
fn tables_of_rows(suite: &str, rows: &[&Row]) -> Vec<Table> {
    let (predicted, asked): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| !r.buckets.is_empty());
    let mut tables = Vec::new();
    if !asked.is_empty() {
        tables.extend(by_task(suite, &asked));
    }
    if !predicted.is_empty() {
        tables.push(perplexity::table(&predicted));
    }
    tables
}

/// The tables of a suite in a run's results: each says whose it is.
fn tables_of(suite: &str, results: &Value) -> Vec<Table> {
    let of = |table: &&Value| table.get("suite").and_then(Value::as_str) == Some(suite);
    let tables = results.get("tables").and_then(Value::as_array).into_iter().flatten();
    tables.filter(of).filter_map(|t| serde_json::from_value(t.clone()).ok()).collect()
}

/// Outcomes, time and memory: one line a method and length.
fn cost(suite: &str, rows: &[&Row], methods: &[String], with_memory: bool) -> Table {
    let mut lengths = distinct(rows.iter().map(|r| r.length));
    lengths.sort_unstable();
    let scored = rows.iter().any(|r| r.score.is_some());
    let partly = rows.iter().any(|r| r.score.is_some_and(|s| s > 0.0 && s < 1.0));
    let mut head = vec!["method".to_string(), "tokens".into(), "rows".into()];
    head.extend(scored.then(|| "right".to_string()));
    head.extend(partly.then(|| "partly".to_string()));
    head.extend(scored.then(|| "wrong".to_string()));
    head.extend(["refused", "s reading", "s answering", "keys seen", "keys kept"].map(String::from));
    head.extend(with_memory.then(|| "peak MiB".to_string()));
    let mut lines = Vec::new();
    for method in methods {
        for length in &lengths {
            let of: Vec<&&Row> = rows.iter().filter(|r| r.method == *method && r.length == *length).collect();
            if of.is_empty() {
                continue;
            }
            let count = |is: &dyn Fn(&Row) -> bool| of.iter().filter(|r| is(r)).count().to_string();
            let asked: Vec<&&&Row> = of.iter().filter(|r| r.seconds.read + r.seconds.answer > 0.0).collect();
            let mean = |value: fn(&Row) -> f64| match asked.len() {
                0 => "-".into(),
                n => format!("{:.2}", asked.iter().map(|r| value(r)).sum::<f64>() / n as f64),
            };
            let most = |value: fn(&Row) -> usize| {
                asked.iter().map(|r| value(r)).max().map_or("-".into(), |n| n.to_string())
            };
            let mut line = vec![method.clone(), length.map_or("-".into(), short), of.len().to_string()];
            line.extend(scored.then(|| count(&Row::is_right)));
            line.extend(partly.then(|| count(&|r| r.score.is_some_and(|s| s > 0.0 && s < 1.0))));
            line.extend(scored.then(|| count(&|r| r.score.is_some_and(|s| s <= 0.0))));
            line.push(count(&|r| r.score.is_none() && r.refused.is_some()));
            line.extend([mean(|r| r.seconds.read), mean(|r| r.seconds.answer)]);
            line.extend([most(|r| r.tokens.attended_max), most(|r| r.tokens.kept)]);
            let peak = of.iter().filter_map(|r| r.peak_rss_bytes).max();
            line.extend(with_memory.then(|| peak.map_or("-".into(), |b| (b >> 20).to_string())));
            lines.push(line);
        }
    }
    let notes =
        vec!["Seconds are means over rows that were asked; keys and memory are the most of any row.".into()];
    Table { title: format!("{suite}: rows, time and memory"), head, rows: lines, notes }
}
