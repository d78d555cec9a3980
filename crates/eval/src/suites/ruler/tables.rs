//! RULER's tables: tasks by length for each method, and averages over lengths.

use crate::figures::{distinct, short};
use crate::run::{Row, Table, by_task, mean_score, methods};

/// Tasks by length with the methods side by side, and averages by method.
pub(super) fn tables(rows: &[&Row], notes: Vec<String>) -> Vec<Table> {
    let (methods, tasks) = (methods(rows), distinct(rows.iter().map(|r| r.task.as_str())));
    let mut lengths = distinct(rows.iter().filter_map(|r| r.length));
    lengths.sort_unstable();
    let names: Vec<String> = lengths.iter().map(|l| short(*l)).collect();
    let of = |method: &str, task: &str, length: usize| {
        let same = |r: &&Row| r.method == method && r.task == task && r.length == Some(length);
        mean_score(&rows.iter().copied().filter(same).collect::<Vec<_>>())
    };
    // A task that was not made or not scored at a length is not part of that length's average.
    let average = |method: &str, length: usize| {
        let scores: Vec<f64> = tasks.iter().filter_map(|task| of(method, task, length)).collect();
        mean(&scores)
    };
    let mut tables = by_task("RULER-style tasks", rows);
    for table in &mut tables {
        table.notes.extend(notes.iter().cloned());
    }
    let lines = methods.iter().map(|method| {
        let by_length: Vec<Option<f64>> = lengths.iter().map(|length| average(method, *length)).collect();
        let known: Option<Vec<f64>> = by_length.iter().copied().collect();
        let over = |weight: fn(usize, usize) -> usize| known.as_ref().and_then(|k| weighted(k, weight));
        let averages = [over(|_, _| 1), over(|i, _| i + 1), over(|i, n| n - i)];
        line(method, by_length.iter().copied().chain(averages))
    });
    let mut head = head("method", &names);
    head.extend(["Avg.", "wAvg. (inc)", "wAvg. (dec)"].map(String::from));
    tables.push(Table { title: "RULER-style averages".into(), head, rows: lines.collect(), notes });
    tables
}

fn head(first: &str, lengths: &[String]) -> Vec<String> {
    std::iter::once(first.to_string()).chain(lengths.iter().cloned()).collect()
}

fn line(name: &str, scores: impl Iterator<Item = Option<f64>>) -> Vec<String> {
    let scores = scores.map(|s| s.map_or("-".into(), |s| format!("{s:.2}")));
    std::iter::once(name.to_string()).chain(scores).collect()
}

fn mean(scores: &[f64]) -> Option<f64> {
    (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
}

/// Average over lengths with a weight by place among how many: RULER's `wAvg. (inc)` weighs the six lengths 1 to 6, `(dec)` 6 to 1.
fn weighted(scores: &[f64], weight: fn(usize, usize) -> usize) -> Option<f64> {
    let weights: Vec<f64> = (0..scores.len()).map(|i| weight(i, scores.len()) as f64).collect();
    let total: f64 = weights.iter().sum();
    (total > 0.0).then(|| scores.iter().zip(&weights).map(|(s, w)| s * w).sum::<f64>() / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_weighted_as_in_the_published_table() {
        // Llama-3.1-8B of RULER's README: 95.5 93.8 91.6 87.4 84.7 77.0 has 88.3, 85.4 and 91.3.
        let scores = [95.5, 93.8, 91.6, 87.4, 84.7, 77.0];
        let round = |s: Option<f64>| (s.unwrap() * 10.0).round() / 10.0;
        assert_eq!(round(weighted(&scores, |_, _| 1)), 88.3);
        assert_eq!(round(weighted(&scores, |i, _| i + 1)), 85.4);
        assert_eq!(round(weighted(&scores, |i, n| n - i)), 91.3);
    }

    #[test]
    fn tasks_stand_by_length_and_refusals_below() {
        let row = |task: &str, length, score: Option<f64>| Row {
            task: task.into(),
            method: "full".into(),
            length: Some(length),
            score,
            refused: score.is_none().then(|| "too long".to_string()),
            ..Row::default()
        };
        let rows = [
            row("vt", 8192, Some(0.5)),
            row("vt", 4096, Some(1.0)),
            row("cwe", 4096, Some(0.0)),
            row("cwe", 8192, None),
        ];
        let tables = tables(&rows.iter().collect::<Vec<_>>(), vec!["note".into()]);
        assert_eq!(tables[0].head, ["task", "tokens", "rows", "full"]);
        assert_eq!(tables[0].rows[0], ["vt", "4k", "1", "100.00"]);
        assert_eq!(tables[0].notes, ["full, cwe at 8k: too long", "note"]);
        assert_eq!(tables[1].rows, [["full", "50.00", "50.00", "50.00", "50.00", "50.00"]]);
    }
}
