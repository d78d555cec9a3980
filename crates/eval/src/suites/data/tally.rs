//! Tables of rows as papers print them: a task's score is what the benchmark's own summary of its rows gives.

use crate::figures::{distinct, short};
use crate::run::{Row, Table};
use crate::scorers::{Sample, Score, Scorer, Suite, Summary};

/// The score of one task, length and method.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// The task.
    pub task: String,
    /// Length its texts stand for, in tokens.
    pub length: Option<usize>,
    /// The method.
    pub method: String,
    /// The benchmark's averages; none without a row that has a score.
    pub summary: Option<Summary>,
    /// Why rows have no score, if some have none.
    pub refused: Vec<String>,
}

/// Sums up rows by task, length and method: tasks in the order of `order` (others do not count), then lengths, then methods.
pub fn tallies<T: AsRef<str>>(suite: Suite, order: &[T], rows: &[&Row]) -> Vec<Tally> {
    let methods = distinct(rows.iter().map(|r| r.method.clone()));
    let mut lengths = distinct(rows.iter().map(|r| r.length));
    lengths.sort();
    let mut tallies = Vec::new();
    for task in order.iter().map(AsRef::as_ref) {
        let Ok(scorer) = Scorer::new(suite, task) else { continue };
        for &length in &lengths {
            for method in &methods {
                let of: Vec<&Row> = rows
                    .iter()
                    .copied()
                    .filter(|r| r.task == task && r.length == length && r.method == *method)
                    .collect();
                if !of.is_empty() {
                    tallies.push(Tally {
                        task: task.to_string(),
                        length,
                        method: method.clone(),
                        summary: summary(&scorer, &of),
                        refused: distinct(of.iter().filter_map(|r| r.refused.clone())),
                    });
                }
            }
        }
    }
    tallies
}

fn summary(scorer: &Scorer, rows: &[&Row]) -> Option<Summary> {
    let scored: Vec<(Sample, Score)> = rows
        .iter()
        .filter_map(|row| {
            let sample = Sample { length: row.words, index: row.index, ..Sample::default() };
            let mut score = Score::of(row.score?);
            for &name in scorer.parts() {
                if let Some((_, value)) = row.parts.iter().find(|(part, _)| part == name) {
                    score = score.with(name, *value);
                }
            }
            Some((sample, score))
        })
        .collect();
    (!scored.is_empty()).then(|| scorer.summary(&scored))
}

/// One line a task and length, one column a method, and the mean over the tasks of each length.
pub fn table(title: &str, tallies: &[Tally]) -> Table {
    let methods = distinct(tallies.iter().map(|t| t.method.clone()));
    let keys = distinct(tallies.iter().map(|t| (t.length, t.task.clone())));
    let mut lengths = distinct(tallies.iter().map(|t| t.length));
    lengths.sort();
    let by_length = lengths.iter().any(Option::is_some);
    let mut head = vec!["task".to_string()];
    head.extend(by_length.then(|| "tokens".to_string()));
    head.push("rows".into());
    head.extend(methods.iter().cloned());
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for &length in &lengths {
        let name = length.map_or("-".to_string(), short);
        let tasks: Vec<&String> = keys.iter().filter(|k| k.0 == length).map(|k| &k.1).collect();
        let of = |task: &str, method: &str| {
            tallies.iter().find(|t| t.length == length && t.task == task && t.method == method)
        };
        let score = |task: &str, method: &str| Some(of(task, method)?.summary.as_ref()?.percent);
        for task in &tasks {
            let count = methods.iter().filter_map(|m| Some(of(task, m)?.summary.as_ref()?.rows)).max();
            let mut line = vec![(*task).clone()];
            line.extend(by_length.then(|| name.clone()));
            line.push(count.unwrap_or(0).to_string());
            line.extend(methods.iter().map(|m| percent(score(task, m))));
            rows.push(line);
            for tally in methods.iter().filter_map(|m| of(task, m)) {
                notes.extend(tally.refused.iter().map(|why| format!("{}, {task}: {why}", tally.method)));
            }
        }
        if tasks.len() > 1 {
            let mut line = vec!["mean".to_string()];
            line.extend(by_length.then(|| name.clone()));
            line.push(String::new());
            line.extend(methods.iter().map(|m| percent(mean(tasks.iter().map(|t| score(t, m))))));
            rows.push(line);
        }
    }
    Table { title: title.to_string(), head, rows, notes: distinct(notes.into_iter()) }
}

/// One line a method, one column a group of tasks: the mean of those that there are, then the mean of these means, and the mean
/// of all tasks. A task without a score leaves its group without one.
pub fn grouped<T: AsRef<str>>(title: &str, tallies: &[Tally], groups: &[(&str, Vec<T>)]) -> Table {
    let methods = distinct(tallies.iter().map(|t| t.method.clone()));
    let has = |task: &&str| tallies.iter().any(|t| t.task == *task);
    let groups: Vec<(&str, Vec<&str>)> = groups
        .iter()
        .map(|(name, tasks)| (*name, tasks.iter().map(AsRef::as_ref).filter(has).collect::<Vec<_>>()))
        .filter(|(_, tasks)| !tasks.is_empty())
        .collect();
    let mut head = vec!["method".to_string()];
    head.extend(groups.iter().map(|g| g.0.to_string()));
    head.extend(["mean of groups".to_string(), "mean of tasks".to_string()]);
    let line = |method: &String| {
        let score = |task: &str| {
            Some(tallies.iter().find(|t| t.task == task && t.method == *method)?.summary.as_ref()?.percent)
        };
        let means: Vec<Option<f64>> =
            groups.iter().map(|(_, tasks)| mean(tasks.iter().map(|t| score(t)))).collect();
        let mut line = vec![method.clone()];
        line.extend(means.iter().map(|m| percent(*m)));
        line.push(percent(mean(means.iter().copied())));
        line.push(percent(mean(groups.iter().flat_map(|g| &g.1).map(|t| score(t)))));
        line
    };
    let notes = groups.iter().map(|(name, tasks)| format!("{name}: {}.", tasks.join(", "))).collect();
    Table { title: title.to_string(), head, rows: methods.iter().map(line).collect(), notes }
}

/// The mean of values that are all known; none of nothing.
pub fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let known: Vec<f64> = values.collect::<Option<_>>()?;
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// A score with the two decimals that papers print.
pub fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |v| format!("{v:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: &str, method: &str, score: Option<f64>) -> Row {
        let refused = score.is_none().then(|| "too long".to_string());
        Row { task: task.into(), method: method.into(), score, refused, ..Row::default() }
    }

    #[test]
    fn tasks_and_groups_are_averaged() {
        let rows = [
            row("musique", "full", Some(1.0)),
            row("hotpotqa", "full", Some(0.5)),
            row("hotpotqa", "full", Some(0.0)),
            row("qasper", "full", Some(0.75)),
            row("qasper", "full", None),
            row("qasper", "local", None),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let found = tallies(Suite::LongBench, &["qasper", "hotpotqa", "musique", "no task"], &rows);
        let table = table("t", &found);
        assert_eq!(table.head, ["task", "rows", "full", "local"]);
        assert_eq!(
            table.rows,
            [
                ["qasper", "1", "75.00", "-"],
                ["hotpotqa", "2", "25.00", "-"],
                ["musique", "1", "100.00", "-"],
                ["mean", "", "66.67", "-"],
            ]
        );
        assert_eq!(table.notes, ["full, qasper: too long", "local, qasper: too long"]);
        let groups = [
            ("SQA", vec!["narrativeqa", "qasper"]),
            ("MQA", vec!["hotpotqa", "musique"]),
            ("Code", vec!["lcc"]),
        ];
        let grouped = grouped("g", &found, &groups);
        assert_eq!(grouped.head, ["method", "SQA", "MQA", "mean of groups", "mean of tasks"]);
        assert_eq!(
            grouped.rows,
            [["full", "75.00", "62.50", "68.75", "66.67"], ["local", "-", "-", "-", "-"],]
        );
        assert_eq!(grouped.notes, ["SQA: qasper.", "MQA: hotpotqa, musique."]);
    }

    #[test]
    fn the_benchmark_s_own_summary_counts() {
        let parts = |a, b, c| vec![("rouge1".into(), a), ("rouge2".into(), b), ("rougeL".into(), c)];
        let rouge = Row { parts: parts(1.0, 0.5, 0.625), ..row("news_summ", "full", Some(0.625)) };
        let found = tallies(Suite::LEval, &["news_summ"], &[&rouge]);
        let percent = found[0].summary.as_ref().unwrap().percent;
        assert!((percent - (100.0_f64 * 50.0 * 62.5).cbrt()).abs() < 1e-9, "{percent}");
        let topic = |index, score| Row { index, ..row("topic_retrieval_longchat", "full", Some(score)) };
        let rows = [topic(0, 1.0), topic(3, 1.0), topic(1, 1.0), topic(2, 0.0)];
        let rows: Vec<&Row> = rows.iter().collect();
        let found = tallies(Suite::LEval, &["topic_retrieval_longchat"], &rows);
        assert!((found[0].summary.as_ref().unwrap().percent - 200.0 / 3.0).abs() < 1e-9);
    }
}
