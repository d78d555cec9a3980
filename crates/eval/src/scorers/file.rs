//! Files of predictions: one JSON object a line, as the suites' own scripts write them.
//!
//! Every line gets a score or a problem that names it. Names of fields are those of the published files: the prediction is
//! `prediction`, `pred` or ends in `_pred` (LongBench v2: `response`); the reference is `label`, `ground_truth`, `references`, `answers`, `outputs`, `gt`,
//! `answer` or `target`. Fields may also stand in an object `extra`.

use super::{Sample, Score, Scorer, Suite, Summary};
use crate::jsonl::{Records, kind, parse};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::BufRead;

/// Longest line that is read, in bytes.
pub const LONGEST_LINE: usize = 16 << 20;

/// What came of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The task's averages over the lines that have a score.
    pub summary: Summary,
    /// Lines with a score, in order.
    pub rows: Vec<Row>,
    /// Lines without a score, in order.
    pub problems: Vec<Problem>,
}

/// A line with a score.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Number of the line, from 1.
    pub line: usize,
    /// The row's id, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its score.
    #[serde(flatten)]
    pub score: Score,
}

/// A line without a score.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// Scores every line of `input`. `model` is the model's name for lines that do not give one.
///
/// # Errors
/// When the input cannot be read on.
pub fn score_file(scorer: &Scorer, model: &str, input: impl BufRead) -> std::io::Result<Report> {
    let (mut rows, mut problems, mut scored) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first_line_of, mut index) = (HashMap::new(), 0);
    let mut records = Records::lines(input, LONGEST_LINE);
    while let Some(record) = records.next()? {
        let number = record.line;
        let result = record.bytes.and_then(|line| parse(&line)).and_then(|row| {
            let (id, sample) = read(scorer, model, index, &row)?;
            if let Some(id) = &id {
                let first = *first_line_of.entry(id.clone()).or_insert(number);
                if first != number {
                    return Err(format!("id `{id}` stands on line {first} already"));
                }
            }
            let score = scorer.score(&sample).map_err(|e| e.to_string())?;
            Ok((id, sample, score))
        });
        index += 1;
        match result {
            Ok((id, sample, score)) => {
                rows.push(Row { line: number, id, score: score.clone() });
                scored.push((
                    Sample {
                        length: sample.length,
                        index: sample.index,
                        groups: sample.groups,
                        ..Sample::default()
                    },
                    score,
                ));
            }
            Err(problem) => problems.push(Problem { line: number, problem }),
        }
    }
    Ok(Report { summary: scorer.summary(&scored), rows, problems })
}

/// The row's id and what is scored.
fn read(
    scorer: &Scorer,
    model: &str,
    index: usize,
    row: &Map<String, Value>,
) -> Result<(Option<String>, Sample), String> {
    let extra = row.get("extra").and_then(Value::as_object);
    let of = |name: &str| row.get(name).or_else(|| extra?.get(name)).filter(|v| !v.is_null());
    let text = |name: &str| match of(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("`{name}` is {} where a text belongs", kind(other))),
    };
    let whole = |name: &str| match of(name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| format!("`{name}` is {} where a whole number belongs", kind(value))),
    };
    if let Some(suite) = text("suite")?.filter(|s| *s != scorer.suite().name()) {
        return Err(format!("a prediction of suite {suite}, not {}", scorer.suite()));
    }
    let task = text("dataset")?.map_or_else(|| text("task"), |dataset| Ok(Some(dataset)))?;
    if let Some(task) =
        task.filter(|t| t != scorer.task() && Some(t.as_str()) != scorer.task().strip_suffix("_e"))
    {
        return Err(format!("a prediction of task {task}, not {}", scorer.task()));
    }
    if let Some(judge) = text("evaluation")?.filter(|e| !matches!(e.as_str(), "exam" | "f1" | "rouge")) {
        return Err(format!("its evaluation is `{judge}`, which has no score that can be computed"));
    }
    let id = match of("id").or_else(|| of("_id")) {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(other) => return Err(format!("the id is {} where a text or a number belongs", kind(other))),
    };
    // LongBench v2's scripts write what the model said to `response`, and the letter they found in it to `pred`.
    let v2 = scorer.suite() == Suite::LongBenchV2;
    let names = if v2 { ["response", "prediction"] } else { ["prediction", "pred"] };
    let named = names.into_iter().find_map(|name| row.get_key_value(name));
    let (name, prediction) = named
        .or_else(|| row.iter().find(|(name, _)| name.ends_with("_pred")))
        .ok_or("it has no prediction: neither `prediction` nor `pred` nor a field that ends in `_pred`")?;
    let Value::String(prediction) = prediction else {
        return Err(format!("`{name}` is {} where a text belongs", kind(prediction)));
    };
    let expected = REFERENCES.iter().find_map(|name| row.get(*name)).ok_or_else(|| {
        format!("it has no reference: none of {}", REFERENCES.map(|name| format!("`{name}`")).join(", "))
    })?;
    let classes = match of("all_classes") {
        None => None,
        Some(Value::Array(list)) => {
            let names = list.iter().map(|c| c.as_str().map(str::to_string)).collect::<Option<Vec<_>>>();
            Some(names.ok_or("`all_classes` has something other than texts")?)
        }
        Some(other) => return Err(format!("`all_classes` is {} where a list belongs", kind(other))),
    };
    let index = whole("topic_index")?.map_or(Ok(index), usize::try_from);
    let sample = Sample {
        prediction: prediction.clone(),
        expected: expected.clone(),
        classes,
        question: text("question")?,
        model: text("model")?.unwrap_or_else(|| model.to_string()),
        length: if v2 { None } else { whole("length")? },
        groups: if v2 {
            [text("difficulty")?, text("length")?].into_iter().flatten().collect()
        } else {
            vec![]
        },
        index: index.map_err(|_| "`topic_index` is too large")?,
    };
    Ok((id, sample))
}

const REFERENCES: [&str; 8] =
    ["label", "ground_truth", "references", "answers", "outputs", "gt", "answer", "target"];

#[cfg(test)]
mod tests {
    use super::super::Suite;
    use super::*;

    fn report(suite: Suite, task: &str, text: impl AsRef<[u8]>) -> Option<Report> {
        score_file(&Scorer::new(suite, task).ok()?, "", text.as_ref()).ok()
    }

    fn problems(suite: Suite, task: &str, text: impl AsRef<[u8]>) -> Vec<(usize, String)> {
        let found = report(suite, task, text).map(|r| r.problems);
        found.into_iter().flatten().map(|p| (p.line, p.problem)).collect()
    }

    #[test]
    fn every_suite_s_own_fields_are_read() {
        for (suite, task, line) in [
            (Suite::InfiniteBench, "passkey", r#"{"id": 3, "prediction": "12", "ground_truth": "12"}"#),
            (
                Suite::LongBench,
                "hotpotqa",
                r#"{"pred": "Oslo", "answers": ["Oslo"], "all_classes": null, "length": 9}"#,
            ),
            (Suite::LEval, "tpo", r#"{"query": "?", "gt": "B", "m_pred": "B", "evaluation": "exam"}"#),
            (Suite::Ruler, "vt", r#"{"index": 0, "pred": "X Y", "outputs": ["x", "y"]}"#),
            (Suite::BabiLong, "qa1", r#"{"target": "office", "prediction": "office", "question": "Where?"}"#),
            (Suite::NeedleBench, "needlebench", r#"{"prediction": "red", "answer": "is red*red"}"#),
        ] {
            let found = report(suite, task, line);
            assert!(found.is_some_and(|r| r.summary.percent == 100.0 && r.problems.is_empty()), "{task}");
        }
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_scored() {
        let text = concat!(
            "{\"id\": \"a\", \"prediction\": \"12\", \"label\": \"12\"}\n",
            "\n",
            "{\"id\": \"a\", \"prediction\": \"12\", \"label\": \"12\"}\n",
            "{\"prediction\": \"12\"}\n",
            "{\"label\": \"12\"}\n",
            "{\"prediction\": 12, \"label\": \"12\"}\n",
            "{\"prediction\": \"12\", \"label\": {}}\n",
            "{\"prediction\": \"12\", \"label\": \"12\", \"task\": \"math_find\"}\n",
            "[1]\n",
            "{\"prediction\": \"12\n",
            "{\"id\": \"b\", \"prediction\": \"13\", \"label\": \"12\"}",
        );
        let found = report(Suite::InfiniteBench, "passkey", text);
        assert!(found.is_some_and(|r| r.summary.rows == 2 && r.summary.percent == 50.0));
        let found = problems(Suite::InfiniteBench, "passkey", text);
        let expected = [
            (3, "id `a` stands on line 1 already"),
            (4, "no reference"),
            (5, "no prediction"),
            (6, "`prediction` is a number"),
            (7, "an object where"),
            (8, "of task math_find, not passkey"),
            (9, "a list where an object belongs"),
            (10, "not JSON"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((line, problem), (wanted, part)) in found.iter().zip(expected) {
            assert!(*line == wanted && problem.contains(part), "{line}: {problem}");
        }
    }

    #[test]
    fn gigantic_lines_and_bad_bytes_are_passed_over() {
        let good = b"{\"pred\": \"x\", \"outputs\": [\"x\"]}\n";
        let text = [&b"\"".repeat(LONGEST_LINE + 5)[..], b"\n", good, b"\xff\n", good].concat();
        let found = problems(Suite::Ruler, "vt", &text);
        assert!(
            matches!(&found[..], [(1, long), (3, bytes)] if long.contains("16 MiB") && bytes.contains("UTF-8"))
        );
        assert!(report(Suite::Ruler, "vt", &text).is_some_and(|r| r.summary.rows == 2));
    }

    #[test]
    fn what_only_a_judge_can_score_is_said() {
        let line = r#"{"gt": "x", "m_pred": "x", "evaluation": "LLM"}"#;
        assert!(problems(Suite::LEval, "financial_qa", line).iter().any(|p| p.1.contains("`LLM`")));
    }

    #[test]
    fn separators_inside_texts_end_no_line() {
        let line = "{\"pred\": \"x\u{2028}y\u{85}\", \"outputs\": [\"x\u{2028}y\"]}\r\n";
        assert!(
            report(Suite::Ruler, "vt", line).is_some_and(|r| r.summary.rows == 1 && r.problems.is_empty())
        );
    }

    #[test]
    fn topics_follow_the_place_in_the_file() {
        let row = |said: &str| format!("{{\"gt\": \"sea\", \"m_pred\": \"{said}\"}}\n");
        let text = [row("sea"), row("sky"), row("sky"), row("sea")].concat();
        let found = report(Suite::LEval, "topic_retrieval_longchat", text).map(|r| r.summary.groups);
        assert!(found.is_some_and(|g| g[0].rows == 2 && g[0].percent == 100.0 && g[1].percent == 0.0));
    }
}
