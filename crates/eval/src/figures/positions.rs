//! Perplexity by position, one line a method.

use super::curves::{Chart, Series, legend};
use super::heat::named;
use super::scale::{From, Scale};
use super::svg::slug;
use super::{Figure, distinct, short};
use crate::run::Row;
use crate::suites::perplexity::buckets;

/// The perplexity of texts of one suite and task by position. None where no row has losses by position.
pub fn position_lines(suite: &str, task: &str, rows: &[&Row], methods: &[String]) -> Option<Figure> {
    let of: Vec<&Row> = rows.iter().copied().filter(|r| r.suite == suite && r.task == task).collect();
    let buckets = buckets(&of);
    let mut froms = distinct(buckets.iter().map(|b| b.from));
    froms.sort_unstable();
    let end = |from: &usize| buckets.iter().filter(|b| b.from == *from).map(|b| b.to).max().unwrap_or(*from);
    let names: Vec<String> = froms.iter().map(|from| short(end(from))).collect();
    let series: Vec<Series> = distinct(buckets.iter().map(|b| b.method.clone()))
        .into_iter()
        .map(|name| {
            let at = |from: &usize| {
                let bucket = buckets.iter().find(|b| b.method == name && b.from == *from)?;
                Some(bucket.perplexity).filter(|p| p.is_finite() && bucket.tokens > 0)
            };
            let index = methods.iter().position(|m| *m == name).unwrap_or(0);
            Series { index, values: froms.iter().map(at).collect(), name }
        })
        .filter(|s| s.values.iter().any(Option::is_some))
        .collect();
    if series.is_empty() {
        return None;
    }
    let scale = Scale::of(series.iter().flat_map(|s| s.values.iter().flatten().copied()), From::Least);
    let present: Vec<(usize, &String)> = series.iter().map(|s| (s.index, &s.name)).collect();
    let chart = Chart {
        title: "perplexity",
        unit: "",
        axis: "positions up to",
        names: &names,
        scale,
        series: &series,
    };
    Some(Figure {
        name: format!("{}-{}-position", slug(suite), slug(task)),
        title: format!("{}: perplexity by position", named(suite, task)),
        legend: Some(legend(&present, methods)),
        panels: vec![chart.panel()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Bucket;

    #[test]
    fn losses_of_several_texts_are_added_up() {
        let row = |method: &str, second: f64| Row {
            suite: "perplexity".into(),
            task: "text".into(),
            method: method.into(),
            buckets: vec![
                Bucket { from: 0, to: 512, tokens: 511, loss: 511.0 },
                Bucket { from: 512, to: 1024, tokens: 512, loss: second * 512.0 },
            ],
            ..Row::default()
        };
        let rows = [row("full", 2.0), row("full", 4.0), row("window", 0.0)];
        let rows: Vec<&Row> = rows.iter().collect();
        let methods = ["full".to_string(), "window".to_string()];
        let svg = position_lines("perplexity", "text", &rows, &methods).unwrap().file();
        assert!(svg.contains("full, 1k: 20.09") && svg.contains("window, 512: 2.718"), "{svg}");
        assert!(svg.contains(">512<") && svg.matches("<polyline").count() == 2);
        assert!(position_lines("perplexity", "other", &rows, &methods).is_none());
    }
}
