//! Lines over length, one a method: accuracy, time and memory side by side.

use super::{accuracy, distinct, escape, groups, peak, seconds, short};
use crate::run::Cell;
use std::fmt::Write;

/// Size of a panel, the space around it, and the width of the legend.
const PANEL: (f64, f64) = (300.0, 230.0);
const LEFT: f64 = 64.0;
const TOP: f64 = 44.0;
const LEGEND: f64 = 150.0;

const COLOURS: [&str; 8] =
    ["#1b6ca8", "#c8553d", "#588157", "#8e5572", "#b8860b", "#333333", "#2a9d8f", "#d81b60"];
/// Dashes tell apart methods that share a colour.
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// Needle results by length, as three panels: share of facts found, seconds a question and peak memory. Opens in any
/// browser; a length that a method refused has no point.
pub fn needle_lines_svg(cells: &[Cell]) -> String {
    let groups = groups(cells);
    let lengths = distinct(cells.iter().filter_map(|c| c.length));
    let methods = distinct(cells.iter().map(|c| c.method.clone()));
    let panels = [
        Panel::new("facts found", Scale::Share, &groups, accuracy),
        Panel::new("seconds a question", Scale::Log, &groups, seconds),
        Panel::new("peak memory, MiB", Scale::Log, &groups, |g| peak(g).map(|b| b as f64 / (1 << 20) as f64)),
    ];
    let (width, height) = (3.0 * (PANEL.0 + LEFT) + LEGEND + 20.0, PANEL.1 + TOP + 44.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, LEFT + i as f64 * (PANEL.0 + LEFT), &methods, &lengths);
    }
    for (m, method) in methods.iter().enumerate() {
        let (x, y) = (width - LEGEND, TOP + 16.0 * m as f64 + 8.0);
        let style = style(m);
        let _ = writeln!(svg, "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" {style}/>", x + 26.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", x + 32.0, y + 4.0, escape(method));
    }
    svg.push_str("</svg>\n");
    svg
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    /// From 0 to 1.
    Share,
    /// Powers of ten.
    Log,
}

struct Panel {
    title: &'static str,
    scale: Scale,
    /// Method, length, value.
    points: Vec<(String, usize, f64)>,
}

impl Panel {
    fn new(
        title: &'static str,
        scale: Scale,
        groups: &[Vec<&Cell>],
        value: impl Fn(&[&Cell]) -> Option<f64>,
    ) -> Self {
        let point = |g: &Vec<&Cell>| Some((g[0].method.clone(), g[0].length?, value(g)?));
        let drawable = |p: &(String, usize, f64)| scale == Scale::Share || p.2 > 0.0;
        Self { title, scale, points: groups.iter().filter_map(point).filter(drawable).collect() }
    }

    fn draw(&self, svg: &mut String, left: f64, methods: &[String], lengths: &[usize]) {
        let values = || self.points.iter().map(|p| p.2);
        let (low, high) = match self.scale {
            Scale::Share => (0.0, 1.0),
            Scale::Log => {
                let low = values().fold(f64::INFINITY, f64::min).log10().floor();
                let high = values().fold(0.0, f64::max).log10().ceil();
                if low.is_finite() && high.is_finite() { (low, high.max(low + 1.0)) } else { (0.0, 1.0) }
            }
        };
        let place = |v: f64| if self.scale == Scale::Share { v } else { v.log10() };
        let y = |v: f64| TOP + PANEL.1 * (1.0 - (v - low) / (high - low));
        let x = |length: usize| {
            let rank = lengths.iter().position(|l| *l == length).unwrap_or(0);
            left + PANEL.0 * (rank as f64 + 0.5) / lengths.len().max(1) as f64
        };
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            TOP - 16.0,
            self.title
        );
        let ticks: Vec<f64> = match self.scale {
            Scale::Share => vec![0.0, 0.25, 0.5, 0.75, 1.0],
            Scale::Log => (low as i32..=high as i32).map(f64::from).collect(),
        };
        for tick in ticks {
            let (at, right) = (y(tick), left + PANEL.0);
            let label = if self.scale == Scale::Share { tick.to_string() } else { power_of_ten(tick as i32) };
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 6.0,
                at + 4.0
            );
        }
        for length in lengths {
            let (at, below) = (x(*length), TOP + PANEL.1 + 18.0);
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
                short(*length)
            );
        }
        for (m, method) in methods.iter().enumerate() {
            // Lines that lie on each other stay visible.
            let aside = (m as f64 - methods.len() as f64 / 2.0) * 1.2;
            let points: Vec<(f64, f64)> = self
                .points
                .iter()
                .filter(|p| p.0 == *method)
                .map(|p| (x(p.1) + aside, y(place(p.2))))
                .collect();
            if points.len() > 1 {
                let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let _ = writeln!(svg, "<polyline fill=\"none\" points=\"{}\" {}/>", path.join(" "), style(m));
            }
            for (x, y) in points {
                let colour = COLOURS[m % COLOURS.len()];
                let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
            }
        }
    }
}

fn style(method: usize) -> String {
    let (colour, dash) = (COLOURS[method % COLOURS.len()], DASHES[method / COLOURS.len() % DASHES.len()]);
    format!("stroke=\"{colour}\" stroke-width=\"1.6\" stroke-dasharray=\"{dash}\"")
}

fn power_of_ten(exponent: i32) -> String {
    if exponent >= 0 { 10u64.pow(exponent as u32).to_string() } else { format!("{}", 10f64.powi(exponent)) }
}
