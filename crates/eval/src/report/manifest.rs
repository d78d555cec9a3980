//! What a manifest says, for people. Every part of it is optional: what is there is shown.

use crate::run::Table;
use serde_json::{Map, Value};

/// Parts that stand elsewhere than in the list of facts.
const APART: [&str; 2] = ["suites", "arms"];
/// Parts that come first, with the names that people see.
const FIRST: [(&str, &str); 8] = [
    ("model", "model"),
    ("seed", "seed"),
    ("version", "version"),
    ("backend", "backend"),
    ("machine", "machine"),
    ("threads", "threads"),
    ("jobs", "jobs"),
    ("command", "command"),
];

/// What is said of the run as a whole: name and value, in order.
pub(super) fn facts(manifest: &Map<String, Value>) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    for (key, name) in FIRST {
        if let Some(value) = manifest.get(key).filter(|v| !v.is_null()) {
            facts.push((name.to_string(), say(value)));
        }
    }
    let others = manifest.iter().filter(|(key, value)| {
        !value.is_null() && !APART.contains(&key.as_str()) && !FIRST.iter().any(|f| f.0 == key.as_str())
    });
    facts.extend(others.map(|(key, value)| match (key.as_str(), value.as_i64()) {
        ("started_unix", Some(seconds)) => ("started".to_string(), date(seconds)),
        _ => field(key, value),
    }));
    facts
}

/// The model as the heading names it.
pub(super) fn model(manifest: &Map<String, Value>) -> Option<String> {
    let name = match manifest.get("model")? {
        Value::String(name) => name.clone(),
        model => say(model.get("name")?),
    };
    Some(if name == "built-in" { "the built-in model".into() } else { name })
}

/// A list of the manifest, empty where there is none.
fn list<'a>(manifest: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    manifest.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Names of suites or arms, in their order.
pub(super) fn names(manifest: &Map<String, Value>, key: &str) -> Vec<String> {
    list(manifest, key).iter().filter_map(name).collect()
}

fn name(of: &Value) -> Option<String> {
    match of {
        Value::String(name) => Some(name.clone()),
        of => of.get("arm").or_else(|| of.get("name")).and_then(Value::as_str).map(str::to_string),
    }
}

/// Names of all suites' tasks, in their order.
pub(super) fn tasks(manifest: &Map<String, Value>) -> Vec<String> {
    let of = |suite: &Value| suite.get("tasks").and_then(Value::as_array).cloned().unwrap_or_default();
    list(manifest, "suites").iter().flat_map(of).filter_map(|t| name(&t)).collect()
}

/// Rows that a suite is to have under one arm; none where the manifest does not say.
fn rows_of(suite: &Value) -> Option<usize> {
    let rows = suite.get("rows")?;
    rows.as_u64().map(|n| n as usize).or_else(|| rows.as_array().map(Vec::len))
}

/// Rows that the run is to have; none where the manifest does not say.
pub(super) fn total(manifest: &Map<String, Value>) -> Option<usize> {
    let (suites, arms) = (list(manifest, "suites"), list(manifest, "arms").len());
    let rows = suites.iter().map(rows_of).sum::<Option<usize>>()?;
    (!suites.is_empty() && arms > 0).then_some(rows * arms)
}

/// The arms with their parameters, one line each.
pub(super) fn arms(manifest: &Map<String, Value>) -> Option<Table> {
    let arms: Vec<Arm> = list(manifest, "arms").iter().map(Arm::of).collect();
    if arms.is_empty() {
        return None;
    }
    let differ = arms.iter().any(|arm| arm.name != arm.method);
    let mut head = vec!["arm".to_string()];
    head.extend(differ.then(|| "method".to_string()));
    head.push("parameters".into());
    let line = |arm: Arm| {
        let mut line = vec![arm.name];
        line.extend(differ.then_some(arm.method));
        line.push(arm.params.join(" "));
        line
    };
    Some(Table {
        title: "Methods".into(),
        head,
        rows: arms.into_iter().map(line).collect(),
        notes: Vec::new(),
    })
}

/// An arm of the manifest: `arm` is what rows call it, `name` its method.
struct Arm {
    name: String,
    method: String,
    /// As `key=value`.
    params: Vec<String>,
}

impl Arm {
    fn of(value: &Value) -> Self {
        let name = name(value).unwrap_or_else(|| say(value));
        let mut params = Vec::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            match (key.as_str(), value) {
                ("arm" | "name" | "method", _) | (_, Value::Null) => {}
                ("params", Value::Object(object)) => {
                    params.extend(object.iter().map(|(k, v)| format!("{k}={}", say(v))));
                }
                (key, value) => params.push(format!("{key}={}", say(value))),
            }
        }
        let method = value.get("method").or_else(|| value.get("name"));
        Self { method: method.map_or(name.clone(), say), name, params }
    }
}

/// The suites with version, options and rows; `done` counts the rows of one that are there.
pub(super) fn suites(manifest: &Map<String, Value>, done: impl Fn(&str) -> usize) -> Option<Table> {
    let arms = list(manifest, "arms").len().max(1);
    let line = |suite: &Value| {
        let name = name(suite).unwrap_or_else(|| say(suite));
        let rows = match rows_of(suite).map(|n| n * arms) {
            Some(total) if total != done(&name) => format!("{} of {total}", done(&name)),
            _ => done(&name).to_string(),
        };
        let field = |key: &str| suite.get(key).map_or("-".into(), say);
        vec![name, field("version"), rows, suite.get("options").map_or("-".into(), options)]
    };
    let rows: Vec<Vec<String>> = list(manifest, "suites").iter().map(line).collect();
    let head = ["suite", "version", "rows", "options"].map(String::from).to_vec();
    (!rows.is_empty()).then(|| Table { title: "Suites".into(), head, rows, notes: Vec::new() })
}

/// Rows of the user's files that could not be asked.
pub(super) fn problems(manifest: &Map<String, Value>) -> Vec<String> {
    let mut problems = Vec::new();
    for suite in list(manifest, "suites") {
        for problem in suite.get("problems").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| problem.get(key).map(say);
            problems.push(match (text("file"), text("line"), text("problem")) {
                (Some(file), Some(line), Some(what)) => format!("{file}:{line}: {what}"),
                (Some(file), None, Some(what)) => format!("{file}: {what}"),
                _ => say(problem),
            });
        }
    }
    problems
}

fn options(of: &Value) -> String {
    match of {
        Value::Object(object) => {
            let known = object.iter().filter(|(_, v)| !v.is_null());
            known.map(|(k, v)| format!("{k}={}", say(v))).collect::<Vec<_>>().join(" ")
        }
        other => say(other),
    }
}

/// A name and a value, sizes in units for people.
fn field(key: &str, value: &Value) -> (String, String) {
    match (key.strip_suffix("_bytes"), value.as_f64()) {
        (Some(name), Some(bytes)) => {
            let gib = bytes / f64::from(1 << 30);
            (
                name.replace('_', " "),
                if gib >= 1.0 { format!("{gib:.1} GiB") } else { format!("{:.0} MiB", 1024.0 * gib) },
            )
        }
        _ => (key.replace('_', " "), say(value)),
    }
}

/// Date and time of seconds since 1970, in UTC (days to civil date after Howard Hinnant,
/// <https://howardhinnant.github.io/date_algorithms.html>).
fn date(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

/// A value in a line.
fn say(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "none".into(),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(say).collect();
            // Sentences have commas of their own.
            values.join(if values.iter().any(|v| v.contains(' ')) { "; " } else { "," })
        }
        Value::Object(object) => {
            let one = |(k, v): (&String, &Value)| {
                let (key, value) = field(k, v);
                if matches!(k.as_str(), "name" | "processor") { value } else { format!("{key} {value}") }
            };
            object.iter().filter(|(_, v)| !v.is_null()).map(one).collect::<Vec<_>>().join(", ")
        }
        // Depths are numbers with a point even where they are whole.
        Value::Number(n) => n.as_f64().filter(|_| n.is_f64()).map_or(n.to_string(), |x| x.to_string()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn what_a_manifest_has_is_shown_and_nothing_is_needed() {
        let manifest = object(json!({
            "arms": [{ "name": "reattention", "arm": "r", "params": { "span": 32, "reference": false } }, { "name": "full", "params": {} }],
            "suites": [{ "name": "needle", "version": 2, "options": { "depths": [0.0, 12.5], "left_out": ["a, b", "c"], "data": null, "files": [] }, "rows": 8, "tasks": ["single"],
                "problems": [{ "file": "a.jsonl", "line": 3, "problem": "no `answer`" }] }],
            "model": { "name": "built-in", "fingerprint": "ab12" }, "seed": 1, "kv": "bf16", "started_unix": 1_763_742_000,
            "machine": { "processor": "EPYC", "cores": 2, "memory_bytes": 25_769_803_776_u64 },
        }));
        assert_eq!(model(&manifest).as_deref(), Some("the built-in model"));
        assert_eq!(
            (names(&manifest, "arms"), tasks(&manifest)),
            (vec!["r".to_string(), "full".into()], vec!["single".to_string()])
        );
        assert_eq!(total(&manifest), Some(16));
        assert_eq!(arms(&manifest).unwrap().rows[0], ["r", "reattention", "span=32 reference=false"]);
        assert_eq!(
            suites(&manifest, |_| 5).unwrap().rows[0],
            ["needle", "2", "5 of 16", "depths=0,12.5 left_out=a, b; c files=none"]
        );
        assert_eq!(problems(&manifest), ["a.jsonl:3: no `answer`"]);
        let facts = facts(&manifest);
        assert_eq!(facts[0], ("model".into(), "built-in, fingerprint ab12".into()));
        assert_eq!(facts[2], ("machine".into(), "EPYC, cores 2, memory 24.0 GiB".into()));
        assert_eq!(
            facts[3..],
            [("kv".into(), "bf16".into()), ("started".into(), "2025-11-21 16:20 UTC".into())]
        );

        let empty = Map::new();
        assert!(super::facts(&empty).is_empty() && arms(&empty).is_none() && suites(&empty, |_| 0).is_none());
        assert_eq!((total(&empty), model(&empty)), (None, None));
        assert_eq!(
            (date(0), date(951_826_200)),
            ("1970-01-01 00:00 UTC".into(), "2000-02-29 12:10 UTC".into())
        );
        let odd = object(json!({ "arms": ["full", 3], "suites": [null, { "rows": "many" }], "model": 7 }));
        assert_eq!(arms(&odd).unwrap().rows[1], ["3", ""]);
        assert_eq!((total(&odd), suites(&odd, |_| 0).unwrap().rows.len()), (None, 2));
    }
}
