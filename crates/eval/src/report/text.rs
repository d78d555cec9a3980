//! The report as Markdown: the same tables and figures, for a README or a paper's appendix.

use super::content::Content;
use crate::figures::{FOLDER, Figure, markdown as aligned};
use crate::run::Table;
use std::fmt::Write;

pub(super) fn markdown(content: &Content<'_>) -> String {
    let mut text = String::new();
    let model = content.model.as_deref().map_or(String::new(), |m| format!(" of {}", plain(m)));
    let _ = write!(text, "# Evaluation{model}\n\n{}\n", plain(&content.summary()));
    if let Some(note) = content.unfinished() {
        let _ = write!(text, "\n**{note}**\n");
    }
    if !content.facts.is_empty() {
        text.push('\n');
    }
    for (name, value) in &content.facts {
        let _ = writeln!(text, "- {}: {}", plain(name), plain(value));
    }
    for table in &content.settings {
        add_table(&mut text, "##", table);
    }
    if !content.problems.is_empty() {
        text.push_str("\n## Rows that could not be asked\n\n");
        for problem in &content.problems {
            let _ = writeln!(text, "- {}", plain(problem));
        }
    }
    for section in &content.sections {
        let _ = write!(text, "\n## {}\n", plain(&section.suite));
        for table in &section.tables {
            add_table(&mut text, "###", table);
        }
        for figure in section.figures.iter().chain(&section.by_task) {
            add_figure(&mut text, figure);
        }
        add_table(&mut text, "###", &section.cost);
    }
    text
}

fn add_table(text: &mut String, level: &str, table: &Table) {
    let mut lines = vec![table.head.clone()];
    lines.extend(table.rows.iter().cloned());
    for cell in lines.iter_mut().flatten() {
        *cell = plain(cell).replace('|', "\\|");
    }
    let _ = write!(text, "\n{level} {}\n\n{}", plain(&table.title), aligned(&lines));
    for note in &table.notes {
        let _ = write!(text, "\n{}\n", plain(note));
    }
}

fn add_figure(text: &mut String, figure: &Figure) {
    let title = plain(&figure.title).replace(['[', ']'], "");
    let _ = write!(text, "\n![{title}]({FOLDER}/{}.svg)\n", figure.name);
}

/// A text in one line, in which no sign begins an element.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '`' | '*' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
