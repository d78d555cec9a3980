//! Averages of rows: cells for figures, tables for people.

use super::Row;
use crate::figures::{distinct, markdown, short};
use serde::{Deserialize, Serialize};

/// The rows of one suite, task, method, length and depth together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The suite.
    pub suite: String,
    /// Its task.
    pub task: String,
    /// The arm: the method's name, where each method stands for one.
    pub method: String,
    /// Length the texts stand for, in tokens.
    pub length: Option<usize>,
    /// Where answers lie, in per cent of the text.
    pub depth: Option<f64>,
    /// Rows with a score.
    pub samples: usize,
    /// Of these, with the full score.
    pub correct: usize,
    /// Mean score in per cent, unrounded; none without rows that have one.
    pub score: Option<f64>,
    /// Time that all rows took, reading included.
    pub seconds: f64,
    /// The most memory the process has held during them.
    pub peak_rss_bytes: Option<usize>,
    /// The most keys any query attended to.
    pub attended_max: usize,
    /// Why rows were refused, if any were.
    pub refused: Option<String>,
}

/// A table as a paper prints it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// Lines, each as long as the head.
    pub rows: Vec<Vec<String>>,
    /// What to know about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Table {
    /// As Markdown that also reads well as plain text.
    pub fn markdown(&self) -> String {
        let mut lines = vec![self.head.clone()];
        lines.extend(self.rows.iter().cloned());
        let mut text = format!("{}\n\n{}", self.title, markdown(&lines));
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }
}

/// Cells of rows, in the order in which they first come. Rows without length or depth fall into one cell.
pub fn cells(rows: &[&Row]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut sums: Vec<f64> = Vec::new();
    for row in rows {
        let same = |c: &Cell| {
            c.suite == row.suite
                && c.task == row.task
                && c.method == row.method
                && c.length == row.length
                && c.depth == row.depth
        };
        let at = cells.iter().rposition(same).unwrap_or_else(|| {
            cells.push(Cell {
                suite: row.suite.clone(),
                task: row.task.clone(),
                method: row.method.clone(),
                length: row.length,
                depth: row.depth,
                ..Cell::default()
            });
            sums.push(0.0);
            cells.len() - 1
        });
        let cell = &mut cells[at];
        cell.seconds += row.seconds.read + row.seconds.answer;
        cell.peak_rss_bytes = cell.peak_rss_bytes.max(row.peak_rss_bytes);
        cell.attended_max = cell.attended_max.max(row.tokens.attended_max);
        cell.refused = cell.refused.take().or_else(|| row.refused.clone());
        if let Some(score) = row.score {
            cell.samples += 1;
            cell.correct += usize::from(row.is_right());
            sums[at] += score;
            cell.score = Some(100.0 * sums[at] / cell.samples as f64);
        }
    }
    cells
}

/// Names of the methods of rows, in their order.
pub fn methods(rows: &[&Row]) -> Vec<String> {
    distinct(rows.iter().map(|r| r.method.clone()))
}

/// Mean score in per cent; none without a row that has one.
pub fn mean_score(rows: &[&Row]) -> Option<f64> {
    let scores: Vec<f64> = rows.iter().filter_map(|r| r.score).collect();
    (!scores.is_empty()).then(|| 100.0 * scores.iter().sum::<f64>() / scores.len() as f64)
}

/// One line a task and length, one column a method, and the mean over tasks for each length where there are several.
pub fn by_task(title: &str, rows: &[&Row]) -> Vec<Table> {
    let (methods, tasks) = (methods(rows), distinct(rows.iter().map(|r| r.task.clone())));
    let mut lengths = distinct(rows.iter().map(|r| r.length));
    lengths.sort();
    let by_length = lengths.iter().any(Option::is_some);
    let mut head = vec!["task".to_string()];
    if by_length {
        head.push("tokens".into());
    }
    head.push("rows".into());
    head.extend(methods.iter().cloned());
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    for length in &lengths {
        let mut sums = vec![Vec::new(); methods.len()];
        let name = length.map_or("-".into(), short);
        for task in &tasks {
            let of = |m: &str| -> Vec<&Row> {
                let same = |r: &&Row| r.method == m && r.task == *task && r.length == *length;
                rows.iter().copied().filter(same).collect()
            };
            let count = methods.iter().map(|m| of(m).len()).max().unwrap_or(0);
            if count == 0 {
                continue;
            }
            let mut line = vec![task.clone()];
            line.extend(by_length.then(|| name.clone()));
            line.push(count.to_string());
            for (method, sums) in methods.iter().zip(&mut sums) {
                let mean = mean_score(&of(method));
                sums.push(mean);
                line.push(mean.map_or("-".into(), |m| format!("{m:.2}")));
                let refused = distinct(of(method).iter().filter_map(|r| r.refused.clone()));
                notes.extend(refused.iter().map(|why| format!("{method}, {task} at {name}: {why}")));
            }
            lines.push(line);
        }
        if tasks.len() > 1 {
            let mut line = vec!["mean".to_string()];
            line.extend(by_length.then(|| name.clone()));
            line.push(String::new());
            line.extend(sums.iter().map(|of| {
                let known: Option<Vec<f64>> = of.iter().copied().collect();
                known
                    .filter(|k| !k.is_empty())
                    .map_or("-".into(), |k| format!("{:.2}", k.iter().sum::<f64>() / k.len() as f64))
            }));
            lines.push(line);
        }
    }
    vec![Table { title: title.to_string(), head, rows: lines, notes: distinct(notes.into_iter()) }]
}
