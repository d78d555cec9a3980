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
                if let Some(why) = of(method).iter().find_map(|r| r.refused.as_ref()) {
                    notes.push(format!("{method}, {task} at {name}: {why}"));
                }
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

/// One line a method, task and length, one column a depth: the mean score, 0 to 1; then the mean over all, time and memory.
pub fn by_depth(title: &str, rows: &[&Row]) -> Table {
    let cells = cells(rows);
    let tasks = distinct(cells.iter().map(|c| c.task.clone()));
    let mut depths: Vec<f64> = distinct(cells.iter().filter_map(|c| c.depth));
    depths.sort_by(f64::total_cmp);
    let mut head = vec!["method".to_string()];
    head.extend((tasks.len() > 1).then(|| "task".to_string()));
    head.push("tokens".into());
    head.extend(depths.iter().map(|d| format!("{d}%")));
    head.extend(["mean", "s a question", "peak MiB"].map(String::from));
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    for method in methods(rows) {
        for task in &tasks {
            let of: Vec<&Cell> = cells.iter().filter(|c| c.method == method && c.task == *task).collect();
            let mut lengths = distinct(of.iter().map(|c| c.length));
            lengths.sort();
            for length in lengths {
                let of: Vec<&Cell> = of.iter().copied().filter(|c| c.length == length).collect();
                let some = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2}"));
                let samples: usize = of.iter().map(|c| c.samples).sum();
                let mean = |sum: f64| (samples > 0).then(|| sum / samples as f64);
                let score = of.iter().map(|c| c.score.unwrap_or(0.0) / 100.0 * c.samples as f64).sum();
                let at = |d: &f64| of.iter().find(|c| c.depth == Some(*d)).and_then(|c| c.score);
                let mut line = vec![method.clone()];
                line.extend((tasks.len() > 1).then(|| task.clone()));
                line.push(length.map_or("-".into(), |n| n.to_string()));
                line.extend(depths.iter().map(|d| some(at(d).map(|s| s / 100.0))));
                line.push(some(mean(score)));
                line.push(some(mean(of.iter().map(|c| c.seconds).sum())));
                let peak = of.iter().filter_map(|c| c.peak_rss_bytes).max();
                line.push(peak.map_or("-".into(), |b| (b >> 20).to_string()));
                lines.push(line);
                if let Some(why) = of.iter().find_map(|c| c.refused.as_ref()) {
                    notes.push(format!("{method} at {} tokens: {why}", length.unwrap_or(0)));
                }
            }
        }
    }
    Table { title: title.to_string(), head, rows: lines, notes: distinct(notes.into_iter()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, task: &str, length: usize, depth: f64, score: Option<f64>) -> Row {
        Row {
            suite: "s".into(),
            task: task.into(),
            method: method.into(),
            length: Some(length),
            depth: Some(depth),
            score,
            refused: score.is_none().then(|| "too long".into()),
            seconds: super::super::Seconds { read: 0.25, answer: 0.25 },
            peak_rss_bytes: Some(5 << 20),
            ..Row::default()
        }
    }

    #[test]
    fn depths_stand_side_by_side() {
        let rows = [
            row("full", "a", 512, 0.0, Some(1.0)),
            row("full", "a", 512, 50.0, Some(1.0)),
            row("full", "a", 512, 50.0, Some(0.0)),
            row("dca", "a", 512, 0.0, Some(0.0)),
            row("dca", "a", 512, 50.0, Some(0.5)),
            row("dca", "a", 4096, 0.0, None),
        ];
        let table = by_depth("needle", &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.head, ["method", "tokens", "0%", "50%", "mean", "s a question", "peak MiB"]);
        assert_eq!(table.rows[0], ["full", "512", "1.00", "0.50", "0.67", "0.50", "5"]);
        assert_eq!(table.rows[1], ["dca", "512", "0.00", "0.50", "0.25", "0.50", "5"]);
        assert_eq!(table.rows[2], ["dca", "4096", "-", "-", "-", "-", "5"]);
        assert_eq!(table.notes, ["dca at 4096 tokens: too long"]);
        let text = table.markdown();
        assert!(text.contains("| full   |    512 | 1.00 |") && text.ends_with("too long\n"), "{text}");
    }

    #[test]
    fn tasks_stand_below_each_other_with_their_mean() {
        let rows = [
            row("full", "a", 512, 0.0, Some(1.0)),
            row("full", "a", 512, 50.0, Some(0.5)),
            row("full", "b", 512, 0.0, Some(0.25)),
            row("dca", "a", 512, 0.0, Some(1.0)),
            row("dca", "a", 512, 50.0, Some(1.0)),
            row("dca", "b", 512, 0.0, None),
        ];
        let table = &by_task("s", &rows.iter().collect::<Vec<_>>())[0];
        assert_eq!(table.head, ["task", "tokens", "rows", "full", "dca"]);
        assert_eq!(table.rows[0], ["a", "512", "2", "75.00", "100.00"]);
        assert_eq!(table.rows[1], ["b", "512", "1", "25.00", "-"]);
        // A mean over fewer tasks than the others have would not compare with theirs.
        assert_eq!(table.rows[2], ["mean", "512", "", "50.00", "-"]);
        assert_eq!(table.notes, ["dca, b at 512: too long"]);
    }

    #[test]
    fn cells_count_what_has_a_score() {
        let rows =
            [row("m", "a", 1, 0.0, Some(1.0)), row("m", "a", 1, 0.0, Some(0.5)), row("m", "a", 1, 0.0, None)];
        let cells = cells(&rows.iter().collect::<Vec<_>>());
        assert_eq!(cells.len(), 1);
        assert_eq!((cells[0].samples, cells[0].correct, cells[0].score), (2, 1, Some(75.0)));
        assert_eq!(cells[0].refused.as_deref(), Some("too long"));
    }
}
