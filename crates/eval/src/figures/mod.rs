//! Tables and figures of results, as text, Markdown and SVG.

mod curves;
mod heat;
mod positions;
mod scale;
mod svg;

pub use curves::{length_lines, mean_lines};
pub use heat::heat_maps;
pub use positions::position_lines;
pub use svg::{Figure, STYLE};

pub(crate) use scale::grouped;
pub(crate) use svg::escape;

use crate::run::{Row, cells};
use crate::suites::selection;
use std::fmt::Write;

/// Name of the folder of a run's figures, beside its rows.
pub const FOLDER: &str = "figures";

/// The figures of a suite's rows: lines of the mean over its tasks where there are several, then for each task heat maps, lines
/// by length and lines by position, as far as its rows have depths, lengths and losses. `methods` are those of the whole run, so
/// that each has one colour in all its figures; memory is shown only if it is one method's own (`with_memory`).
pub fn of_suite(suite: &str, rows: &[&Row], methods: &[String], with_memory: bool) -> Vec<Figure> {
    let of: Vec<&Row> = rows.iter().copied().filter(|r| r.suite == suite).collect();
    let cells = cells(&of);
    let tasks = distinct(cells.iter().map(|c| c.task.clone()));
    let mut figures = Vec::new();
    if tasks.len() > 1 {
        figures.extend(mean_lines(suite, &cells, methods, with_memory));
    }
    for task in &tasks {
        figures.extend(heat_maps(suite, task, &cells));
        figures.extend(length_lines(suite, task, &cells, methods, with_memory));
        figures.extend(position_lines(suite, task, &of, methods));
    }
    number_names(&mut figures);
    figures
}

/// Numbers names that are there already: tasks may differ only in letters that no file's name has.
fn number_names(figures: &mut [Figure]) {
    let mut taken = std::collections::HashSet::new();
    for figure in figures {
        let (name, mut n) = (figure.name.clone(), 1);
        while !taken.insert(figure.name.to_lowercase()) {
            n += 1;
            figure.name = format!("{name}-{n}");
        }
    }
}

/// What arms lose against the first: questions by task, then perplexity, then speed and memory.
pub fn selection_table(report: &selection::Report) -> String {
    let some = |x: Option<f64>, digits: usize| x.map_or("-".into(), |x| format!("{x:.digits$}"));
    let header = |names: &[&str]| vec![names.iter().map(|n| n.to_string()).collect::<Vec<_>>()];
    let mut parts = Vec::new();
    if !report.totals.is_empty() {
        let mut rows = header(&[
            "arm",
            "tokens",
            "task",
            "right",
            "KL first",
            "largest",
            "KL answer",
            "agreement",
            "recall",
            "mass",
            "mass sel.",
        ]);
        rows.extend(report.totals.iter().map(|c| {
            vec![
                c.arm.clone(),
                c.length.to_string(),
                c.task.name().to_string(),
                format!("{}/{}", c.correct, c.samples),
                some(c.kl_first, 4),
                some(c.kl_first_max, 4),
                some(c.kl_answer, 4),
                some(c.agreement, 3),
                some(c.recall, 3),
                some(c.mass, 4),
                some(c.mass_selected, 3),
            ]
        }));
        parts.push(markdown(&rows));
    }
    if !report.buckets.is_empty() {
        let mut rows = header(&["arm", "tokens", "positions", "perplexity", "loss over base"]);
        rows.extend(report.buckets.iter().map(|b| {
            let positions = format!("{}-{}", b.from, b.to);
            let delta = some(b.loss_delta, 4);
            vec![b.arm.clone(), b.length.to_string(), positions, number(b.perplexity), delta]
        }));
        parts.push(markdown(&rows));
    }
    let mut rows = header(&[
        "arm",
        "tokens",
        "seed",
        "prefill tok/s",
        "decode tok/s",
        "keys and values MiB",
        "peak MiB",
    ]);
    rows.extend(report.runs.iter().map(|r| {
        vec![
            r.arm.clone(),
            r.length.to_string(),
            r.seed.to_string(),
            format!("{:.0}", r.prefill_tok_s),
            some(r.decode_tok_s, 1),
            (r.kv_bytes >> 20).to_string(),
            r.peak_rss_bytes.map_or("-".into(), |b| (b >> 20).to_string()),
        ]
    }));
    parts.push(markdown(&rows));
    parts.join("\n")
}

/// A length as people say it: 512, 4k, 1m.
pub fn short(tokens: usize) -> String {
    match tokens {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}m", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

pub(crate) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// Rows as a Markdown table that also reads well as plain text; the first is the header.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut table = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (s, &w))| if c == 0 { format!("{s:<w$}") } else { format!("{s:>w$}") })
            .collect();
        let _ = writeln!(table, "| {} |", cells.join(" | "));
        if i == 0 {
            let rule: Vec<String> = widths
                .iter()
                .enumerate()
                .map(
                    |(c, &w)| {
                        if c == 0 { "-".repeat(w) } else { format!("{}:", "-".repeat(w.saturating_sub(1))) }
                    },
                )
                .collect();
            let _ = writeln!(table, "| {} |", rule.join(" | "));
        }
    }
    table
}

/// A perplexity, as tables show it.
pub(crate) fn number(x: f64) -> String {
    if x < 1000.0 { format!("{x:.2}") } else { format!("{x:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_suite_have_names_of_their_own() {
        let row = |task: &str, length: usize| Row {
            suite: "s".into(),
            task: task.into(),
            method: "m".into(),
            length: Some(length),
            depth: Some(50.0),
            score: Some(1.0),
            ..Row::default()
        };
        let rows = [row("a/b", 512), row("a/b", 1024), row("a b", 512), row("a b", 1024)];
        let figures = of_suite("s", &rows.iter().collect::<Vec<_>>(), &["m".to_string()], true);
        let names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            names,
            ["s-mean-length", "s-a-b-depth", "s-a-b-length", "s-a-b-depth-2", "s-a-b-length-2"]
        );
    }
}
