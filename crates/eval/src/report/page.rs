//! The report as an HTML page of its own.

use super::content::{Content, Section};
use super::embed::Embedded;
use crate::figures::{FOLDER, Figure, STYLE, escape};
use crate::run::Table;
use std::fmt::Write;

const PAGE: &str = include_str!("page.html");
const SHEET: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("view.js");

/// Up to so many lines a table of time and memory stands open.
const OPEN: usize = 12;

pub(super) fn html(content: &Content<'_>, embedded: &Embedded) -> String {
    let heading = content.model.as_deref().map_or("Evaluation".into(), |m| format!("Evaluation of {m}"));
    let unfinished = content.unfinished();
    let note =
        |of: Option<&String>| of.map_or(String::new(), |n| format!("<p class=\"callout\">{}</p>", escape(n)));
    let body: String = content.sections.iter().enumerate().map(|(i, s)| section(i, s)).collect();
    fill(&[
        ("title", &escape(&heading)),
        ("style", SHEET),
        ("figure-style", STYLE),
        ("summary", &escape(&content.summary())),
        ("unfinished", &note(unfinished.as_ref())),
        ("links", &links(content)),
        ("run", &run(content)),
        ("sections", &body),
        ("rows-note", &note(embedded.note.as_ref())),
        ("rows", &embedded.json),
        ("script", SCRIPT),
    ])
}

/// Puts parts into the page. It is gone through once, so that no part is looked for in another.
fn fill(parts: &[(&str, &str)]) -> String {
    let size = parts.iter().map(|p| p.1.len()).sum::<usize>() + PAGE.len();
    let mut html = String::with_capacity(size);
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        html.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        html.push_str(parts.iter().find(|p| p.0 == name).map_or("", |p| p.1));
        rest = after;
    }
    html.push_str(rest);
    html
}

fn links(content: &Content<'_>) -> String {
    let mut links = String::from("<a href=\"#run\">Run</a>");
    for (i, section) in content.sections.iter().enumerate() {
        let _ = write!(links, "<a href=\"#suite-{i}\">{}</a>", escape(&section.suite));
    }
    links.push_str("<a href=\"#rows\">Rows</a>");
    links
}

/// What was run.
fn run(content: &Content<'_>) -> String {
    let mut html = String::new();
    if !content.facts.is_empty() {
        html.push_str("<dl class=\"facts\">\n");
        let is_long = |fact: &&(String, String)| fact.1.chars().count() > 30;
        let (long, short): (Vec<_>, Vec<_>) = content.facts.iter().partition(is_long);
        let classes = std::iter::repeat_n(" class=\"long\"", long.len()).chain(std::iter::repeat(""));
        for ((name, value), class) in long.iter().chain(&short).zip(classes) {
            let _ = writeln!(html, "<div{class}><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        html.push_str("</dl>\n");
    }
    for settings in &content.settings {
        html.push_str(&table(settings));
    }
    if !content.problems.is_empty() {
        let n = content.problems.len();
        let _ =
            write!(html, "<details><summary>Rows of files that could not be asked ({n})</summary>\n<ul>\n");
        for problem in &content.problems {
            let _ = writeln!(html, "<li>{}</li>", escape(problem));
        }
        html.push_str("</ul>\n</details>\n");
    }
    html
}

fn section(index: usize, section: &Section) -> String {
    let mut html = format!(
        "<section id=\"suite-{index}\" aria-labelledby=\"suite-{index}-name\">\n<h2 id=\"suite-{index}-name\">{}</h2>\n",
        escape(&section.suite)
    );
    for of in &section.tables {
        // A caption that says what the heading says is for those who cannot see that it stands below it.
        let html_of = table(of);
        html.push_str(&match of.title == section.suite {
            true => html_of.replacen("<caption>", "<caption class=\"unseen\">", 1),
            false => html_of,
        });
    }
    section.figures.iter().for_each(|f| html.push_str(&figure(f)));
    if !section.by_task.is_empty() {
        let _ = writeln!(
            html,
            "<details class=\"figures\"><summary>Figures by task ({})</summary>",
            section.by_task.len()
        );
        section.by_task.iter().for_each(|f| html.push_str(&figure(f)));
        html.push_str("</details>\n");
    }
    let open = if section.cost.rows.len() <= OPEN { " open" } else { "" };
    let _ = write!(
        html,
        "<details{open}><summary>Rows, time and memory by method and length</summary>\n{}</details>\n",
        table(&section.cost).replacen("<caption>", "<caption class=\"unseen\">", 1)
    );
    html.push_str("</section>\n");
    html
}

fn figure(of: &Figure) -> String {
    format!(
        "<figure>\n<figcaption>{} <a class=\"file\" href=\"{}/{}.svg\">SVG</a></figcaption>\n<div class=\"panels\">\n{}</div>\n</figure>\n",
        escape(&of.title),
        FOLDER,
        of.name,
        of.inline()
    )
}

/// A table; columns of numbers stand to the right.
fn table(of: &Table) -> String {
    let text_column: Vec<bool> = (0..of.head.len())
        .map(|c| c == 0 || of.rows.iter().filter_map(|r| r.get(c)).any(|cell| !is_number(cell)))
        .collect();
    let class = |c: usize| if text_column.get(c).copied().unwrap_or(true) { "" } else { " class=\"n\"" };
    // Only long texts are broken.
    let class_of = |c: usize, cell: &str| match class(c) {
        "" if cell.chars().count() > 40 => " class=\"long\"",
        class => class,
    };
    let mut html = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{0}\" tabindex=\"0\"><table>\n<caption>{0}</caption>\n<thead><tr>",
        escape(&of.title)
    );
    for (c, name) in of.head.iter().enumerate() {
        let _ = write!(html, "<th scope=\"col\"{}>{}</th>", class(c), escape(name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in &of.rows {
        // Means stand below what they are of.
        let mean = row.first().is_some_and(|name| name == "mean" || name.starts_with("average"));
        html.push_str(if mean { "<tr class=\"mean\">" } else { "<tr>" });
        for (c, cell) in row.iter().enumerate() {
            let tag = if c == 0 { "th scope=\"row\"" } else { "td" };
            let _ = write!(html, "<{tag}{}>{}</{}>", class_of(c, cell), escape(cell), &tag[..2]);
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
    for note in &of.notes {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(note));
    }
    html
}

/// Whether a cell is a number, a length such as 4k or 1m, or empty.
fn is_number(cell: &str) -> bool {
    let number = cell.trim_end_matches(['k', 'm', '%']);
    matches!(cell, "" | "-") || number.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_in_once() {
        let html = fill(&[("title", "{{rows}}"), ("rows", "{{title}}")]);
        assert!(html.contains("<title>{{rows}}</title>") && html.contains(">{{title}}</script>"));
    }

    #[test]
    fn numbers_stand_to_the_right_and_nothing_escapes_its_cell() {
        let html = table(&Table {
            title: "a<b".into(),
            head: ["task", "tokens", "why", "full"].map(String::from).to_vec(),
            rows: vec![
                ["<x>", "4k", "none", "93.20"].map(String::from).to_vec(),
                ["mean", "", "", "-"].map(String::from).to_vec(),
            ],
            notes: vec!["</p><script>".into()],
        });
        assert_eq!(html.matches("<td class=\"n\">").count(), 4);
        assert!(html.contains("<th scope=\"row\">&lt;x&gt;</th>") && html.contains("<tr class=\"mean\">"));
        assert!(!html.contains("<script>") && html.contains("<caption>a&lt;b</caption>"));
    }
}
