//! Heat maps: mean score by length and depth, one panel a method.

use super::svg::{Panel, slug, text_width};
use super::{Figure, distinct, escape, short};
use crate::run::Cell;

/// More depths than this are put together in bands of ten per cent.
const MOST_DEPTHS: usize = 21;

/// The heat maps of one suite and task: length to the right, depth downwards, the mean score in per cent in each cell. None
/// where no cell has length and depth. A cell whose rows were all refused is empty and says why when pointed at.
pub fn heat_maps(suite: &str, task: &str, cells: &[Cell]) -> Option<Figure> {
    let of = |c: &&Cell| c.suite == suite && c.task == task && c.length.is_some() && c.depth.is_some();
    let cells: Vec<&Cell> = cells.iter().filter(of).collect();
    if cells.is_empty() {
        return None;
    }
    let methods = distinct(cells.iter().map(|c| c.method.clone()));
    let mut lengths = distinct(cells.iter().filter_map(|c| c.length));
    lengths.sort_unstable();
    let bands = Bands::of(&cells);
    let map = |method: &String| {
        let of: Vec<&Cell> = cells.iter().copied().filter(|c| c.method == *method).collect();
        panel(method, &of, &lengths, &bands)
    };
    Some(Figure {
        name: format!("{}-{}-depth", slug(suite), slug(task)),
        title: format!("{}: mean score (%) by length and depth", named(suite, task)),
        legend: Some(legend()),
        panels: methods.iter().map(map).collect(),
    })
}

/// A suite and its task, once where both have the same name.
pub(super) fn named(suite: &str, task: &str) -> String {
    if suite == task || task.is_empty() { suite.to_string() } else { format!("{suite} {task}") }
}

/// Rows of the map: single depths, or bands of them.
struct Bands {
    /// Lower and upper end of each, in per cent; equal for a single depth.
    ends: Vec<(f64, f64)>,
}

impl Bands {
    fn of(cells: &[&Cell]) -> Self {
        let mut depths = distinct(cells.iter().filter_map(|c| c.depth));
        depths.sort_by(f64::total_cmp);
        if depths.len() <= MOST_DEPTHS {
            return Self { ends: depths.into_iter().map(|d| (d, d)).collect() };
        }
        Self { ends: (0..10).map(|i| (10.0 * f64::from(i), 10.0 * f64::from(i + 1))).collect() }
    }

    fn has(&self, band: usize, depth: f64) -> bool {
        let (from, to) = self.ends[band];
        let last = band + 1 == self.ends.len();
        depth == from || (from < depth && (depth < to || (last && depth <= to)))
    }

    fn label(&self, band: usize) -> String {
        let (from, to) = self.ends[band];
        let round = |x: f64| (x * 10.0).round() / 10.0;
        if from == to { format!("{}", round(from)) } else { format!("{from}–{to}") }
    }
}

fn panel(method: &str, cells: &[&Cell], lengths: &[usize], bands: &Bands) -> Panel {
    let n = bands.ends.len();
    let (w, h) = (
        (440.0 / lengths.len() as f64).clamp(15.0, 52.0).floor(),
        (300.0 / n as f64).clamp(13.0, 26.0).floor(),
    );
    let widest = (0..n).map(|band| text_width(&bands.label(band))).fold(0.0, f64::max);
    let (left, top) = (26.0 + widest, 26.0);
    let right = left + w * lengths.len() as f64;
    let mut panel =
        Panel::new(right.max(left + 1.1 * text_width(method)).max(150.0) + 6.0, top + h * n as f64 + 40.0);
    panel.heading(left, 14.0, method);
    for band in 0..n {
        let y = top + h * band as f64;
        // Names of rows that are lower than their text would stand on each other.
        if h >= 15.0 || band % 2 == 0 {
            panel.text(left - 6.0, y + h / 2.0 + 4.0, "end", "dim", &bands.label(band));
        }
        for (l, length) in lengths.iter().enumerate() {
            let here: Vec<&&Cell> = cells
                .iter()
                .filter(|c| c.length == Some(*length) && c.depth.is_some_and(|d| bands.has(band, d)))
                .collect();
            let x = left + w * l as f64;
            let at = format!("{method}, {} tokens, depth {} %", short(*length), bands.label(band));
            draw_cell(&mut panel, (x, y, w - 1.5, h - 1.5), &here, &at);
        }
    }
    let below = top + h * n as f64 + 14.0;
    let every = (34.0 / w).ceil() as usize;
    for (l, length) in lengths.iter().enumerate().step_by(every.max(1)) {
        panel.text(left + w * (l as f64 + 0.5), below, "middle", "dim", &short(*length));
    }
    panel.text(left, below + 18.0, "start", "dim", "tokens");
    let middle = top + h * n as f64 / 2.0;
    panel.draw(format_args!(
        "<text class=\"dim\" transform=\"translate(11 {middle:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#5f6770\">depth, %</text>"
    ));
    panel
}

fn draw_cell(panel: &mut Panel, (x, y, w, h): (f64, f64, f64, f64), cells: &[&&Cell], at: &str) {
    let samples: usize = cells.iter().map(|c| c.samples).sum();
    let refused = cells.iter().find_map(|c| c.refused.as_deref());
    if samples == 0 {
        if let Some(why) = refused {
            let title = escape(&format!("{at}: refused: {why}"));
            panel.draw(format_args!(
                "<rect class=\"none\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"#f4f4f2\" stroke=\"#b9bec4\" stroke-width=\"0.8\" stroke-dasharray=\"3 2\"><title>{title}</title></rect>"
            ));
        }
        return;
    }
    let mean = cells.iter().map(|c| c.score.unwrap_or(0.0) * c.samples as f64).sum::<f64>() / samples as f64;
    let title = escape(&format!("{at}: {mean:.2} % (rows: {samples})"));
    let (fill, ink) = colour(mean / 100.0);
    panel.draw(format_args!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{fill}\"><title>{title}</title></rect>"
    ));
    if w >= 26.0 {
        panel.draw(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"{ink}\" pointer-events=\"none\">{mean:.0}</text>",
            x + w / 2.0,
            y + h / 2.0 + 4.0
        ));
    }
}

fn legend() -> Panel {
    const STEPS: usize = 20;
    let mut panel = Panel::new(300.0, 20.0);
    panel.text(0.0, 14.0, "start", "dim", "0");
    for i in 0..STEPS {
        let (fill, _) = colour((i as f64 + 0.5) / STEPS as f64);
        panel.draw(format_args!(
            "<rect x=\"{}\" y=\"4\" width=\"7.5\" height=\"12\" fill=\"{fill}\"/>",
            12.0 + 7.0 * i as f64
        ));
    }
    panel.text(12.0 + 7.0 * STEPS as f64 + 6.0, 14.0, "start", "dim", "100 % mean score");
    panel
}

/// Orange (0) over pale to blue (1): told apart by nearly everyone, and by lightness from the middle where not. With the
/// colour of text upon it.
fn colour(share: f64) -> (String, &'static str) {
    const STOPS: [[f64; 3]; 5] = [
        [187.0, 84.0, 22.0],
        [232.0, 160.0, 96.0],
        [241.0, 233.0, 219.0],
        [130.0, 178.0, 208.0],
        [30.0, 98.0, 148.0],
    ];
    let at = share.clamp(0.0, 1.0) * 4.0;
    let (i, t) = ((at.floor() as usize).min(3), at - at.floor().min(3.0));
    let rgb: Vec<f64> = (0..3).map(|c| STOPS[i][c] + (STOPS[i + 1][c] - STOPS[i][c]) * t).collect();
    let light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    let hex =
        format!("#{:02x}{:02x}{:02x}", rgb[0].round() as u8, rgb[1].round() as u8, rgb[2].round() as u8);
    (hex, if light < 128.0 { "#ffffff" } else { "#1d2024" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(method: &str, length: usize, depth: f64, score: Option<f64>) -> Cell {
        Cell {
            suite: "needle".into(),
            task: "single".into(),
            method: method.into(),
            length: Some(length),
            depth: Some(depth),
            samples: if score.is_some() { 4 } else { 0 },
            score,
            refused: score.is_none().then(|| "too <long>".into()),
            ..Cell::default()
        }
    }

    #[test]
    fn a_map_shows_each_cells_mean_and_why_one_is_empty() {
        let cells = [
            cell("a<b", 1 << 20, 0.0, Some(75.0)),
            cell("a<b", 4096, 100.0, None),
            cell("c", 4096, 0.0, Some(100.0)),
        ];
        let figure = heat_maps("needle", "single", &cells).unwrap();
        assert_eq!((figure.panels.len(), figure.name.as_str()), (2, "needle-single-depth"));
        let svg = figure.file();
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        for part in [
            "a&lt;b",
            ">1m<",
            ">4k<",
            ">75<",
            ">100<",
            "refused: too &lt;long&gt;",
            "depth 0 %: 75.00 % (rows: 4)",
        ] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert!(heat_maps("needle", "other", &cells).is_none());
    }

    #[test]
    fn many_depths_fall_into_bands() {
        let cells: Vec<Cell> = (0..=100)
            .map(|d| cell("m", 512, f64::from(d), Some(if d < 10 { 50.0 } else { 100.0 })))
            .collect();
        let svg = heat_maps("needle", "single", &cells).unwrap().file();
        assert!(svg.contains(">0–10<") && svg.contains(">90–100<"), "{svg}");
        assert!(
            svg.contains("depth 0–10 %: 50.00 % (rows: 40)")
                && svg.contains("depth 90–100 %: 100.00 % (rows: 44)")
        );
    }
}
