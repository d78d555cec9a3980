//! Lines over length, one a method: mean score, time and memory side by side.

use super::heat::named;
use super::scale::{From, Scale, plain};
use super::svg::{Panel, slug};
use super::{Figure, distinct, short};
use crate::run::Cell;

/// Size of a panel's plot, and the space around it.
const PLOT: (f64, f64) = (250.0, 170.0);
const LEFT: f64 = 52.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;

/// What a panel shows of the cells of one method and length.
type Value = fn(&[&Cell]) -> Option<f64>;

/// The lines of one suite and task: mean score in per cent, seconds a question and, where it is one method's own, peak memory
/// in MiB. None where there are fewer than two lengths. `methods` gives each method its colour, the same in all figures of a
/// run; a length that a method refused has no point.
pub fn length_lines(
    suite: &str,
    task: &str,
    cells: &[Cell],
    methods: &[String],
    with_memory: bool,
) -> Option<Figure> {
    let of: Vec<&Cell> = cells.iter().filter(|c| c.suite == suite && c.task == task).collect();
    figure(suite, task, &of, methods, with_memory, |cells, value| value(cells))
}

/// The same over all tasks of a suite: means of the tasks' values (of memory the largest), where all tasks of a length have one.
pub fn mean_lines(suite: &str, cells: &[Cell], methods: &[String], with_memory: bool) -> Option<Figure> {
    let of: Vec<&Cell> = cells.iter().filter(|c| c.suite == suite).collect();
    let tasks_at =
        |length: Option<usize>| distinct(of.iter().filter(|c| c.length == length).map(|c| &c.task));
    let name = format!("mean of {} tasks", distinct(of.iter().map(|c| &c.task)).len());
    figure(suite, &name, &of, methods, with_memory, |cells, value| {
        let tasks = tasks_at(cells.first()?.length);
        let of_task =
            |task: &&String| value(&cells.iter().copied().filter(|c| c.task == **task).collect::<Vec<_>>());
        let values: Vec<f64> = tasks.iter().map(of_task).collect::<Option<_>>()?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    })
}

fn figure(
    suite: &str,
    task: &str,
    cells: &[&Cell],
    methods: &[String],
    with_memory: bool,
    together: impl Fn(&[&Cell], Value) -> Option<f64>,
) -> Option<Figure> {
    let mut lengths = distinct(cells.iter().filter_map(|c| c.length));
    lengths.sort_unstable();
    if lengths.len() < 2 {
        return None;
    }
    let present: Vec<(usize, &String)> =
        methods.iter().enumerate().filter(|(_, m)| cells.iter().any(|c| c.method == **m)).collect();
    let names: Vec<String> = lengths.iter().map(|l| short(*l)).collect();
    let chart = |title: &str, unit: &str, value: Value, percent: bool| {
        let series: Vec<Series> = present
            .iter()
            .map(|(index, method)| Series {
                index: *index,
                name: method.to_string(),
                values: lengths
                    .iter()
                    .map(|l| {
                        let at = |c: &&&Cell| c.method == **method && c.length == Some(*l);
                        together(&cells.iter().filter(at).copied().collect::<Vec<_>>(), value)
                    })
                    .collect(),
            })
            .collect();
        let all = || series.iter().flat_map(|s| s.values.iter().flatten().copied());
        let scale = if percent { Scale::percent(all()) } else { Scale::of(all(), From::Zero) };
        all()
            .next()
            .is_some()
            .then(|| Chart { title, unit, axis: "tokens", names: &names, scale, series: &series }.panel())
    };
    let mut panels = vec![
        chart("mean score, %", " %", score, true),
        chart("seconds a question", " s", |c| seconds(c).filter(|s| *s > 0.0), false),
    ];
    if with_memory {
        panels.push(chart("peak memory, MiB", " MiB", memory, false));
    }
    Some(Figure {
        name: format!(
            "{}-{}-length",
            slug(suite),
            slug(if task.starts_with("mean of ") { "mean" } else { task })
        ),
        title: format!("{}: by length", named(suite, task)),
        legend: Some(legend(&present, methods)),
        panels: panels.into_iter().flatten().collect(),
    })
}

/// The methods that are present, with the marks they have among all.
pub(super) fn legend(present: &[(usize, &String)], methods: &[String]) -> Panel {
    let shown = |i: usize| present.iter().any(|(at, _)| *at == i);
    Panel::legend(methods.iter().enumerate().map(|(i, m)| (i, m.as_str())).filter(|(i, _)| shown(*i)), 960.0)
}

/// Mean score over cells, in per cent; none where nothing has one.
fn score(cells: &[&Cell]) -> Option<f64> {
    let samples: usize = cells.iter().map(|c| c.samples).sum();
    let sum: f64 = cells.iter().map(|c| c.score.unwrap_or(0.0) * c.samples as f64).sum();
    (samples > 0).then(|| sum / samples as f64)
}

/// Seconds a question, reading included.
fn seconds(cells: &[&Cell]) -> Option<f64> {
    let samples: usize = cells.iter().map(|c| c.samples).sum();
    (samples > 0).then(|| cells.iter().map(|c| c.seconds).sum::<f64>() / samples as f64)
}

/// The most memory held, in MiB.
fn memory(cells: &[&Cell]) -> Option<f64> {
    cells.iter().filter_map(|c| c.peak_rss_bytes).max().map(|b| b as f64 / f64::from(1 << 20))
}

/// One line: a value, if any, at each place of the axis.
pub(super) struct Series {
    /// Which colour and mark it has.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) values: Vec<Option<f64>>,
}

/// One plot.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// Stands behind values that are pointed at.
    pub(super) unit: &'a str,
    /// What runs to the right, and the names of its places.
    pub(super) axis: &'a str,
    pub(super) names: &'a [String],
    pub(super) scale: Scale,
    pub(super) series: &'a [Series],
}

impl Chart<'_> {
    pub(super) fn panel(&self) -> Panel {
        let mut panel = Panel::new(LEFT + PLOT.0 + 10.0, TOP + PLOT.1 + BOTTOM);
        panel.heading(LEFT, 14.0, self.title);
        let y = |v: f64| TOP + PLOT.1 * (1.0 - self.scale.at(v));
        for tick in &self.scale.ticks {
            let at = y(*tick);
            panel.draw(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#e2e4e7\"/>",
                LEFT + PLOT.0
            ));
            panel.text(LEFT - 7.0, at + 4.0, "end", "dim", &plain(*tick));
        }
        let step = PLOT.0 / self.names.len() as f64;
        let x = |i: usize| LEFT + step * (i as f64 + 0.5);
        let widest = self.names.iter().map(|n| super::svg::text_width(n)).fold(0.0, f64::max);
        let every = ((widest + 6.0) / step).ceil().max(1.0) as usize;
        for (i, name) in self.names.iter().enumerate().step_by(every) {
            panel.text(x(i), TOP + PLOT.1 + 17.0, "middle", "dim", name);
        }
        panel.text(LEFT + PLOT.0 / 2.0, TOP + PLOT.1 + 34.0, "middle", "dim", self.axis);
        for (nth, series) in self.series.iter().enumerate() {
            // Lines that lie on each other stay visible.
            let aside = (nth as f64 - (self.series.len() as f64 - 1.0) / 2.0) * 1.2;
            let point = |(i, v): (usize, &Option<f64>)| {
                let v = (*v)?;
                let digits = if v < 10.0 && self.unit != " %" { 3 } else { 2 };
                Some((
                    x(i) + aside,
                    y(v),
                    format!("{}, {}: {v:.digits$}{}", series.name, self.names[i], self.unit),
                ))
            };
            let points: Vec<_> = series.values.iter().enumerate().filter_map(point).collect();
            panel.series(series.index, &points);
        }
        panel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(method: &str, task: &str, length: usize, score: Option<f64>) -> Cell {
        Cell {
            suite: "ruler".into(),
            task: task.into(),
            method: method.into(),
            length: Some(length),
            samples: if score.is_some() { 4 } else { 0 },
            score,
            seconds: if score.is_some() { 2.0 } else { 0.0 },
            peak_rss_bytes: score.map(|_| 5 << 20),
            ..Cell::default()
        }
    }

    #[test]
    fn a_refused_length_has_no_point() {
        let cells = [
            cell("dca", "a", 512, Some(100.0)),
            cell("full", "a", 512, Some(100.0)),
            cell("full", "a", 4096, Some(0.0)),
            cell("dca", "a", 4096, None),
        ];
        let methods = ["dca".to_string(), "full".to_string()];
        let svg = length_lines("ruler", "a", &cells, &methods, true).unwrap().file();
        // Three points for each of three panels, and one line each; a mark for each method in the legend.
        assert_eq!(svg.matches("<title>").count() - 1, 9, "{svg}");
        assert_eq!((svg.matches("<polyline").count(), svg.matches("peak memory").count()), (3, 1));
        assert!(svg.contains("full, 512: 0.500 s") && svg.contains("dca, 512: 100.00 %"));
        let alone = length_lines("ruler", "a", &cells, &methods, false).unwrap().file();
        assert!(!alone.contains("peak memory"));
        assert!(length_lines("ruler", "a", &cells[..2], &methods, true).is_none());
    }

    #[test]
    fn the_mean_is_of_tasks_and_only_where_all_have_one() {
        let cells = [
            cell("full", "a", 512, Some(100.0)),
            Cell { samples: 40, ..cell("full", "b", 512, Some(50.0)) },
            cell("full", "a", 4096, Some(100.0)),
            cell("full", "b", 4096, None),
        ];
        let figure = mean_lines("ruler", &cells, &["full".to_string()], false).unwrap();
        assert_eq!(figure.name, "ruler-mean-length");
        let svg = figure.file();
        assert!(svg.contains("full, 512: 75.00 %") && !svg.contains("full, 4k:"), "{svg}");
    }
}
