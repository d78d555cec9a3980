//! Tables and figures of results, as text, Markdown and SVG.

mod lines;

pub use lines::needle_lines_svg;

use crate::run::Cell;
use crate::suites::selection;
use std::fmt::Write;

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

/// Heat maps of needle accuracy, one a method: length to the right, depth downwards. Opens in any browser.
pub fn needle_svg(cells: &[Cell]) -> String {
    const CELL: (usize, usize) = (64, 32);
    let methods = distinct(cells.iter().map(|c| c.method.clone()));
    let lengths = distinct(cells.iter().filter_map(|c| c.length));
    let depths = distinct(cells.iter().filter_map(|c| c.depth));
    let (left, top) = (70, 40);
    let panel = top + CELL.1 * depths.len() + 34;
    let (width, height) = (left + CELL.0 * lengths.len().max(3) + 20, panel * methods.len() + 10);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (m, method) in methods.iter().enumerate() {
        let y0 = m * panel + top;
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-size=\"15\" font-weight=\"bold\">{}</text>",
            y0 - 14,
            escape(method)
        );
        for (d, depth) in depths.iter().enumerate() {
            let y = y0 + d * CELL.1;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{depth}%</text>",
                left - 8,
                y + CELL.1 / 2 + 4
            );
            for (l, length) in lengths.iter().enumerate() {
                let Some(cell) = cells
                    .iter()
                    .find(|c| c.method == *method && c.length == Some(*length) && c.depth == Some(*depth))
                else {
                    continue;
                };
                let Some(share) = accuracy(&[cell]) else { continue };
                let x = left + l * CELL.0;
                let ink = if share > 0.6 { "white" } else { "black" };
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                    CELL.0 - 2,
                    CELL.1 - 2,
                    colour(share)
                );
                let _ = writeln!(
                    svg,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\">{share:.2}</text>",
                    x + CELL.0 / 2 - 1,
                    y + CELL.1 / 2 + 3
                );
            }
        }
        for (l, length) in lengths.iter().enumerate() {
            let (x, y) = (left + l * CELL.0 + CELL.0 / 2 - 1, y0 + CELL.1 * depths.len() + 14);
            let _ =
                writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", short(*length));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A length as people say it: 512, 4k, 1m.
pub fn short(tokens: usize) -> String {
    match tokens {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}m", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

/// Mean score over cells, 0 to 1; none where nothing was asked.
fn accuracy(cells: &[&Cell]) -> Option<f64> {
    let samples: usize = cells.iter().map(|c| c.samples).sum();
    let sum: f64 = cells.iter().map(|c| c.score.unwrap_or(0.0) / 100.0 * c.samples as f64).sum();
    (samples > 0).then(|| sum / samples as f64)
}

/// Seconds a question, reading included.
fn seconds(cells: &[&Cell]) -> Option<f64> {
    let samples: usize = cells.iter().map(|c| c.samples).sum();
    (samples > 0).then(|| cells.iter().map(|c| c.seconds).sum::<f64>() / samples as f64)
}

/// The most memory held, in bytes.
fn peak(cells: &[&Cell]) -> Option<usize> {
    cells.iter().filter_map(|c| c.peak_rss_bytes).max()
}

/// Cells of one method and length, in their order.
fn groups(cells: &[Cell]) -> Vec<Vec<&Cell>> {
    let mut groups: Vec<Vec<&Cell>> = Vec::new();
    for method in distinct(cells.iter().map(|c| c.method.clone())) {
        for length in distinct(cells.iter().filter_map(|c| c.length)) {
            let of = |c: &&Cell| c.method == method && c.length == Some(length);
            let group: Vec<_> = cells.iter().filter(of).collect();
            if !group.is_empty() {
                groups.push(group);
            }
        }
    }
    groups
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

fn number(x: f64) -> String {
    if x < 1000.0 { format!("{x:.2}") } else { format!("{x:.2e}") }
}

/// From pale red (0) over yellow to green (1).
fn colour(share: f64) -> String {
    let mix = |a: f64, b: f64, t: f64| (a + (b - a) * t).round() as u8;
    let (from, to, t) = if share < 0.5 {
        ((244.0, 204.0, 204.0), (255.0, 229.0, 153.0), share * 2.0)
    } else {
        ((255.0, 229.0, 153.0), (39.0, 119.0, 66.0), share * 2.0 - 1.0)
    };
    format!("#{:02x}{:02x}{:02x}", mix(from.0, to.0, t), mix(from.1, to.1, t), mix(from.2, to.2, t))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(method: &str, length: usize, depth: f64, correct: usize) -> Cell {
        Cell {
            method: method.into(),
            length: Some(length),
            depth: Some(depth),
            samples: 4,
            correct,
            score: Some(25.0 * correct as f64),
            seconds: 2.0,
            peak_rss_bytes: Some(5 << 20),
            ..Cell::default()
        }
    }

    #[test]
    fn a_refused_length_has_no_point() {
        let refused = Cell {
            samples: 0,
            score: None,
            peak_rss_bytes: None,
            refused: Some("too long".into()),
            ..cell("dca", 4096, 0.0, 0)
        };
        let lines = needle_lines_svg(&[
            cell("dca", 512, 0.0, 4),
            cell("full", 512, 0.0, 4),
            cell("full", 4096, 0.0, 0),
            refused,
        ]);
        assert_eq!(lines.matches("<text").count(), lines.matches("</text>").count());
        // One point of dca and two of full in each of the three panels, and a line only where there are two points.
        assert_eq!((lines.matches("<circle").count(), lines.matches("<polyline").count()), (9, 3), "{lines}");
    }

    #[test]
    fn the_heat_map_is_well_formed_and_names_what_it_shows() {
        let svg = needle_svg(&[cell("a<b", 1 << 20, 0.0, 4), cell("a<b", 4096, 100.0, 0)]);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(
            svg.contains("a&lt;b") && svg.contains(">1m<") && svg.contains(">4k<") && svg.contains(">1.00<")
        );
    }
}
