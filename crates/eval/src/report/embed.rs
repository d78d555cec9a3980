//! The rows as the page embeds them: one compact JSON object, each text once.

use crate::figures::{distinct, grouped};
use crate::run::Row;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Most bytes of rows that a page takes: browsers read as much in about a second.
pub(super) const BUDGET: usize = 32 << 20;
/// Longest text that a page takes whole, in bytes.
const TEXT: usize = 16 << 10;
/// Where not all rows fit: right ones kept of each suite, task, method and length.
const SAMPLE: usize = 5;

/// Rows for a page.
pub(super) struct Embedded {
    /// JSON that can stand in a `script` element.
    pub(super) json: String,
    /// Rows in it.
    pub(super) rows: usize,
    /// Which rows are left out, if any are.
    pub(super) note: Option<String>,
}

/// Embeds rows with their numbers: all if they fit into `budget` bytes, else the failures and some right ones of each kind.
pub(super) fn rows(rows: &[(usize, &Row)], budget: usize) -> Embedded {
    let (chosen, note) = choose(rows, budget);
    let mut pool = Pool::default();
    let mut names = [Pool::default(), Pool::default(), Pool::default()];
    // Each as text at once: as values, all together would take many times their size.
    let lines: Vec<String> =
        chosen.iter().map(|(number, row)| line(*number, row, &mut names, &mut pool).to_string()).collect();
    let mut lengths = distinct(chosen.iter().filter_map(|(_, r)| r.length));
    lengths.sort_unstable();
    let [suites, tasks, methods] = names.map(|n| n.texts);
    let head = json!({
        "suites": suites, "tasks": tasks, "methods": methods, "lengths": lengths, "total": rows.len(), "texts": pool.texts,
    });
    let head = head.to_string();
    let json = format!("{},\n\"rows\":[{}]}}", head.trim_end_matches('}'), lines.join(",\n"));
    // No `<`, and neither an end nor a beginning of an element or comment can come of a prediction.
    Embedded { json: json.replace('<', "\\u003c"), rows: chosen.len(), note }
}

/// The rows that fit, in their order, and what to say of the others.
fn choose<'a>(rows: &[(usize, &'a Row)], budget: usize) -> (Vec<(usize, &'a Row)>, Option<String>) {
    if Sizes::default().all(rows) <= budget {
        return (rows.to_vec(), None);
    }
    let failed = |row: &Row| row.score.is_some_and(|s| s < 1.0) || row.refused.is_some();
    let failures = rows.iter().filter(|(_, r)| failed(r)).count();
    let mut sizes = Sizes::default();
    let all: Vec<_> = rows.iter().copied().filter(|(_, r)| failed(r)).collect();
    let bytes = sizes.all(&all);
    // Every so manieth failure, where not even these fit.
    let every = bytes.div_ceil(budget.max(1)).max(1);
    let mut kept: HashMap<(&str, &str, &str, Option<usize>), usize> = HashMap::new();
    let (mut seen, mut chosen, mut right) = (0, Vec::new(), 0);
    for &(number, row) in rows {
        if failed(row) {
            seen += 1;
            if (seen - 1) % every == 0 {
                chosen.push((number, row));
            }
        } else if every == 1 {
            let kind = kept.entry((&row.suite, &row.task, &row.method, row.length)).or_default();
            if *kind < SAMPLE {
                *kind += 1;
                right += 1;
                chosen.push((number, row));
            }
        }
    }
    let group = |n: usize| grouped(n as u64);
    let others = group(rows.len() - failures);
    let note = if every == 1 {
        format!(
            "The run is too large for one page: all {} failures can be browsed here, and of the {others} other rows the first {SAMPLE} of each task, method and length ({} rows). All rows are in rows.jsonl.",
            group(failures),
            group(right)
        )
    } else {
        format!(
            "The run is too large for one page: one in {every} of its {} failures can be browsed here ({} rows), and none of the {others} other rows. All rows are in rows.jsonl.",
            group(failures),
            group(chosen.len())
        )
    };
    (chosen, Some(note))
}

/// Bytes that rows take, each text counted once.
#[derive(Default)]
struct Sizes<'a> {
    seen: HashSet<&'a str>,
}

impl<'a> Sizes<'a> {
    fn all(&mut self, rows: &[(usize, &'a Row)]) -> usize {
        rows.iter().map(|(_, row)| self.of(row)).sum()
    }

    fn of(&mut self, row: &'a Row) -> usize {
        let own = [&row.tail, &row.prediction].into_iter().chain(row.note.iter()).chain(row.refused.iter());
        let texts = own.chain(row.evidence.iter().map(|e| &e.text));
        let mut bytes = 140 + 30 * row.evidence.len() + row.expected.as_str().map_or(40, str::len);
        for text in texts {
            if self.seen.insert(text) {
                bytes += text.len().min(TEXT) + 4;
            }
        }
        bytes
    }
}

/// One row, as an array: the page's script names the places.
fn line(number: usize, row: &Row, [suites, tasks, methods]: &mut [Pool; 3], pool: &mut Pool) -> Value {
    let round = |x: f64, digits: i32| (x * 10f64.powi(digits)).round() / 10f64.powi(digits);
    let optional = |text: &Option<String>, pool: &mut Pool| text.as_ref().map(|t| pool.add(&shown(t)));
    let t = row.tokens;
    let evidence: Vec<Value> = row
        .evidence
        .iter()
        .map(|e| json!([pool.add(&e.source), e.line, round(e.weight, 4), pool.add(&shown(&e.text))]))
        .collect();
    let parts: Vec<Value> =
        row.parts.iter().map(|(name, value)| json!([pool.add(name), round(*value, 4)])).collect();
    json!([
        number,
        suites.add(&row.suite),
        tasks.add(&row.task),
        methods.add(&row.method),
        row.length,
        row.depth.map(|d| round(d, 2)),
        pool.add(&shown(&row.id)),
        row.score.map(|s| round(s, 4)),
        pool.add(&shown(&row.tail)),
        pool.add(&shown(&expected(&row.expected))),
        pool.add(&shown(&row.prediction)),
        optional(&row.note, pool),
        optional(&row.refused, pool),
        [t.prompt, t.context, t.cut, t.kept, t.attended_max, t.generated],
        [round(row.seconds.read, 3), round(row.seconds.answer, 3)],
        row.peak_rss_bytes,
        evidence,
        parts,
    ])
}

/// A reference for people: a text as it is, of several one a line.
fn expected(of: &Value) -> String {
    match of {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(several) if several.iter().all(Value::is_string) => {
            several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// A text, or its beginning where it is gigantic.
fn shown(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= TEXT {
        return text.into();
    }
    let mut end = TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let left = grouped((text.len() - end) as u64);
    format!("{} … [{left} more bytes, see rows.jsonl]", &text[..end]).into()
}

/// Texts by number.
#[derive(Default)]
struct Pool {
    texts: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Pool {
    fn add(&mut self, text: &str) -> usize {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        self.numbers.insert(text.to_string(), self.texts.len());
        self.texts.push(text.to_string());
        self.texts.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: usize, score: f64) -> Row {
        Row {
            suite: "s".into(),
            task: format!("t{}", id % 2),
            method: "m".into(),
            id: id.to_string(),
            prediction: format!("{id} {}", "x".repeat(1000)),
            score: Some(score),
            ..Row::default()
        }
    }

    fn embed(of: &[Row], budget: usize) -> Embedded {
        rows(&of.iter().enumerate().map(|(i, r)| (i + 1, r)).collect::<Vec<_>>(), budget)
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let all: Vec<Row> = (0..100).map(|i| row(i, if i < 10 { 0.0 } else { 1.0 })).collect();
        let whole = embed(&all, 1 << 20);
        assert_eq!((whole.rows, whole.note), (100, None));
        let some = embed(&all, 50_000);
        assert_eq!(some.rows, 10 + 2 * SAMPLE);
        let note = some.note.unwrap();
        assert!(
            note.contains("all 10 failures") && note.contains("90 other rows") && note.contains("(10 rows)"),
            "{note}"
        );
        let few = embed(&all, 4_000);
        assert!(few.rows < 10 && few.note.unwrap().contains("of its 10 failures"));
    }

    #[test]
    fn no_text_leaves_the_script_and_gigantic_ones_are_cut() {
        let hostile = "</script><!--<script>\u{0}\u{2028}\"\\";
        let mut one = row(0, 0.0);
        one.prediction = hostile.into();
        one.tail = "é".repeat(TEXT);
        one.expected = json!(["a", "b"]);
        let json = embed(&[one], BUDGET).json;
        assert!(!json.contains('<') && !json.contains('\0'));
        let value: Value = serde_json::from_str(&json).unwrap();
        let texts: Vec<&str> =
            value["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert!(texts.contains(&hostile) && texts.contains(&"a\nb"));
        assert!(texts.iter().any(|t| t.ends_with("… [16,384 more bytes, see rows.jsonl]")));
    }
}
