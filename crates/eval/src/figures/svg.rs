//! What figures are made of: panels that a page sets side by side as it has room, and a file in rows of a fixed width.

use std::fmt::Write;

/// Style sheet of figures for dark pages: a page that shows [`Figure::inline`] has it once, a file has its own.
pub const STYLE: &str = include_str!("figure.css");

/// Width that a file's panels are set in, where they are not wider themselves.
const FILE_WIDTH: f64 = 1000.0;
/// Space around the drawing of a file.
const MARGIN: f64 = 16.0;
/// Space between panels.
const GAP: f64 = 20.0;

/// Colours that people who see few colours can tell apart (after Okabe and Ito, <https://jfly.uni-koeln.de/color/>).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#00805c", "#b1558c", "#a87000", "#4b55c4", "#3a3f45", "#8a5a34"];
/// Dashes tell apart methods that share a colour.
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name for its file, without ending: letters, digits, `-`, `_` and `.` only.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What tells lines or colours apart.
    pub(super) legend: Option<Panel>,
    pub(super) panels: Vec<Panel>,
}

/// A part of a figure, drawn from the origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Panel {
    /// What it shows: its heading.
    name: String,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) body: String,
}

impl Figure {
    /// As HTML for a page that has [`STYLE`]: the legend, then panels that flow.
    pub fn inline(&self) -> String {
        let mut html = String::new();
        for (i, panel) in self.legend.iter().chain(&self.panels).enumerate() {
            let (w, h, body) = (panel.width, panel.height, &panel.body);
            if self.legend.is_some() && i == 0 {
                html.push_str("<div class=\"legend\">");
            }
            let _ = write!(
                html,
                "<svg class=\"fig\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" font-size=\"12\" role=\"img\" aria-label=\"{}\">\n{body}</svg>",
                escape(&format!("{}: {}", self.title, panel.name))
            );
            html.push_str(if self.legend.is_some() && i == 0 { "</div>\n" } else { "\n" });
        }
        html
    }

    /// As an SVG file of its own.
    pub fn file(&self) -> String {
        let mut placed = String::new();
        let (mut x, mut y, mut row, mut right) = (MARGIN, MARGIN + 24.0, 0.0_f64, 0.0_f64);
        for (i, panel) in self.legend.iter().chain(&self.panels).enumerate() {
            let after_legend = self.legend.is_some() && i == 1;
            if x > MARGIN && (after_legend || x + panel.width > FILE_WIDTH + MARGIN) {
                (x, y, row) = (MARGIN, y + row + GAP, 0.0);
            }
            let _ = write!(placed, "<g transform=\"translate({x:.1} {y:.1})\">\n{}</g>\n", panel.body);
            right = right.max(x + panel.width);
            x += panel.width + GAP;
            row = row.max(panel.height);
        }
        let title = escape(&self.title);
        let width = (right + MARGIN).max(text_width(&self.title) * 1.3 + 2.0 * MARGIN);
        let height = y + row + MARGIN;
        format!(
            "<svg class=\"fig\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" role=\"img\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text class=\"ink\" x=\"{MARGIN}\" y=\"{:.1}\" font-size=\"14\" font-weight=\"600\" fill=\"#1d2024\">{title}</text>\n{placed}</svg>\n",
            MARGIN + 12.0,
        )
    }
}

impl Panel {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, ..Self::default() }
    }

    /// Writes a line of SVG.
    pub(super) fn draw(&mut self, line: impl std::fmt::Display) {
        let _ = writeln!(self.body, "{line}");
    }

    /// Text; `anchor` is `start`, `middle` or `end`, `class` is `ink` or `dim`.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        let fill = if class == "ink" { "#1d2024" } else { "#5f6770" };
        let text = escape(text);
        self.draw(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{text}</text>"
        ));
    }

    /// The heading of a panel.
    pub(super) fn heading(&mut self, x: f64, y: f64, text: &str) {
        self.name = text.to_string();
        let text = escape(text);
        self.draw(format_args!(
            "<text class=\"ink\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"13\" font-weight=\"600\" fill=\"#1d2024\">{text}</text>"
        ));
    }

    /// Points of a series joined by a line, each with what it says when pointed at.
    pub(super) fn series(&mut self, index: usize, points: &[(f64, f64, String)]) {
        self.draw(open_series(index));
        if points.len() > 1 {
            let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
            let dash = DASHES[index / COLOURS.len() % DASHES.len()];
            self.draw(format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.7\" stroke-linejoin=\"round\" stroke-dasharray=\"{dash}\"/>",
                path.join(" ")
            ));
        }
        for (x, y, says) in points {
            self.draw(marker(index, *x, *y, &format!("<title>{}</title>", escape(says))));
        }
        self.draw("</g>");
    }

    /// Names of series with their marks, in lines of at most `width`.
    pub(super) fn legend<'a>(names: impl Iterator<Item = (usize, &'a str)>, width: f64) -> Self {
        let mut panel = Self { name: "legend".into(), ..Self::new(0.0, 20.0) };
        let (mut x, mut y) = (0.0, 14.0);
        for (i, name) in names {
            let takes = 34.0 + text_width(name) + 18.0;
            if x > 0.0 && x + takes > width {
                (x, y) = (0.0, y + 20.0);
            }
            let (from, to, at) = (x, x + 26.0, y - 4.0);
            let dash = DASHES[i / COLOURS.len() % DASHES.len()];
            panel.draw(open_series(i));
            panel.draw(format_args!(
                "<line x1=\"{from:.1}\" y1=\"{at:.1}\" x2=\"{to:.1}\" y2=\"{at:.1}\" stroke=\"currentColor\" stroke-width=\"1.7\" stroke-dasharray=\"{dash}\"/>"
            ));
            panel.draw(marker(i, x + 13.0, at, ""));
            panel.draw("</g>");
            panel.text(x + 32.0, y, "start", "ink", name);
            panel.width = f64::max(panel.width, x + takes);
            x += takes;
        }
        panel.height = y + 8.0;
        panel
    }
}

fn open_series(index: usize) -> String {
    let colour = index % COLOURS.len();
    format!("<g class=\"c{colour}\" color=\"{}\">", COLOURS[colour])
}

/// A mark of a shape of its own for each series of a panel, so that colour is not needed to tell them apart.
fn marker(index: usize, x: f64, y: f64, inside: &str) -> String {
    let polygon = |points: &[(f64, f64)]| {
        let points: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon points=\"{}\" fill=\"currentColor\">{inside}</polygon>", points.join(" "))
    };
    match index % 6 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"currentColor\">{inside}</circle>"),
        1 => polygon(&[(-3.1, -3.1), (3.1, -3.1), (3.1, 3.1), (-3.1, 3.1)]),
        2 => polygon(&[(0.0, -4.2), (4.0, 3.0), (-4.0, 3.0)]),
        3 => polygon(&[(0.0, -4.6), (4.6, 0.0), (0.0, 4.6), (-4.6, 0.0)]),
        4 => polygon(&[(0.0, 4.2), (4.0, -3.0), (-4.0, -3.0)]),
        _ => polygon(&[
            (-1.3, -4.2),
            (1.3, -4.2),
            (1.3, -1.3),
            (4.2, -1.3),
            (4.2, 1.3),
            (1.3, 1.3),
            (1.3, 4.2),
            (-1.3, 4.2),
            (-1.3, 1.3),
            (-4.2, 1.3),
            (-4.2, -1.3),
            (-1.3, -1.3),
        ]),
    }
}

/// About how wide a text of the usual size is: enough to place it.
pub(super) fn text_width(text: &str) -> f64 {
    6.6 * text.chars().count() as f64
}

/// Text for HTML and SVG. Control characters, which neither may hold, are named.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Signs that turn the direction of what follows would turn the page's own text, too.
            '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(out, "⟨U+{:04X}⟩", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A text as part of a file's name.
pub(super) fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let slug: String = text.chars().take(80).map(plain).collect();
    // A name of dots alone would be a folder.
    if slug.trim_matches('.').is_empty() { "figure".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_element() {
        assert_eq!(
            escape("</text><script a='\"'>&\0\u{202e}"),
            "&lt;/text&gt;&lt;script a=&#39;&quot;&#39;&gt;&amp;⟨U+0000⟩⟨U+202E⟩"
        );
        assert_eq!(slug("../a b/ü"), "..-a-b--");
        assert_eq!(slug(".."), "figure");
    }

    #[test]
    fn a_file_sets_panels_in_rows_and_the_legend_apart() {
        let panel = |width: f64| Panel { width, height: 100.0, body: "<g/>\n".into(), ..Panel::default() };
        let figure = Figure {
            name: "a".into(),
            title: "a<b".into(),
            legend: Some(panel(50.0)),
            panels: vec![panel(480.0), panel(480.0), panel(480.0)],
        };
        let at: Vec<String> = figure
            .file()
            .lines()
            .filter_map(|l| l.strip_prefix("<g transform=\"translate("))
            .map(|l| l.trim_end_matches(")\">").to_string())
            .collect();
        assert_eq!(at, ["16.0 40.0", "16.0 160.0", "516.0 160.0", "16.0 280.0"]);
        assert!(figure.file().contains("<title>a&lt;b</title>"));
        assert_eq!(figure.inline().matches("<svg").count(), 4);
    }
}
