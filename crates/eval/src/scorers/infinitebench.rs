//! InfiniteBench's twelve scores (OpenBMB/InfiniteBench `src/compute_scores.py`).
//!
//! A label is what its file has: a text, a number, a list, or a list in a list. Python takes a text where it expects a list of
//! texts and walks its characters; so does this.

use super::python::{Int, decimal, parse_float, split, strip};
use super::{Sample, Score, ScoreError, rouge_google, token_f1, wrong};
use serde_json::Value;

/// A task's way of scoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// `passkey`, `number_string`: the first run of ASCII digits is the label, as text.
    FirstNumber,
    /// `kv_retrieval`: the label is one of the words.
    KeyValue,
    /// `code_run`: the last word is the label's number.
    CodeRun,
    /// `code_debug`: the label's letter or function, in one of a few places.
    CodeDebug,
    /// `longbook_choice_eng`: the label's letter or text, in one of a few places.
    Choice,
    /// `longdialogue_qa_eng`: the first label is one of the upper-cased words.
    Dialogue,
    /// `math_find`: the first number is the label.
    MathFind,
    /// `math_calc`: how many of the label's numbers are right before the first wrong one.
    MathCalc,
    /// `longbook_qa_eng`: F1 of words.
    QaEnglish,
    /// `longbook_qa_chn`: F1 of characters.
    QaChinese,
    /// `longbook_sum_eng`: Google's ROUGE-Lsum.
    Summary,
}

/// All tasks.
pub const TASKS: [(&str, Task); 12] = [
    ("passkey", Task::FirstNumber),
    ("number_string", Task::FirstNumber),
    ("kv_retrieval", Task::KeyValue),
    ("longbook_sum_eng", Task::Summary),
    ("longbook_choice_eng", Task::Choice),
    ("longbook_qa_eng", Task::QaEnglish),
    ("longbook_qa_chn", Task::QaChinese),
    ("longdialogue_qa_eng", Task::Dialogue),
    ("math_find", Task::MathFind),
    ("math_calc", Task::MathCalc),
    ("code_run", Task::CodeRun),
    ("code_debug", Task::CodeDebug),
];

/// Scores a sample.
///
/// # Errors
/// When the label is of no type that the task can have, or the texts are too long.
pub fn score(task: Task, sample: &Sample) -> Result<Score, ScoreError> {
    let (prediction, label) = (sample.prediction.as_str(), &sample.expected);
    match task {
        Task::FirstNumber => {
            let numbers = prediction.split(|c: char| !c.is_ascii_digit());
            let first = numbers.into_iter().find(|n| !n.is_empty()).unwrap_or("");
            Ok(equal_text(sole(label)?, |label| label == first))
        }
        Task::KeyValue => {
            let cleaned = spaced(prediction, WORD_ENDS);
            // The one task that does not take a list of one for the one.
            Ok(equal_text(label, |label| split(&cleaned).any(|word| word == label)))
        }
        Task::CodeRun => code_run(prediction, sole(label)?),
        Task::CodeDebug => code_debug(prediction, &items(label)?),
        Task::Choice => choice(prediction, label),
        Task::Dialogue => {
            let cleaned = spaced(prediction, WORD_ENDS);
            let labels = items(label)?;
            Ok(match labels.first() {
                Some(label) => Score::right(split(&cleaned).any(|word| word.to_uppercase() == *label)),
                None => Score::raised("IndexError: the label is empty"),
            })
        }
        Task::MathFind => math_find(prediction, sole(label)?),
        Task::MathCalc => math_calc(prediction, label, &sample.model),
        Task::QaEnglish => Ok(best(items(label)?.iter().map(|l| token_f1::english(prediction, l)))),
        Task::QaChinese => {
            Ok(best(items(label)?.iter().map(|l| token_f1::chinese_characters(prediction, l))))
        }
        Task::Summary => summary(prediction, sample),
    }
}

const WORD_ENDS: &[char] = &['\n', ':', '"', '\'', '.', ',', '?', '!', '{', '}'];

fn code_run(prediction: &str, label: &Value) -> Result<Score, ScoreError> {
    let cleaned = spaced(prediction, &['\n', '.', '`', '\'', '"', ':']);
    let number = split(&cleaned).last().and_then(Int::parse);
    match label {
        Value::Number(label) => Ok(Score::right(number.is_some_and(|n| n.equals(label)))),
        Value::String(_) => Ok(Score::raised(NEVER_EQUAL)),
        other => Err(wrong("a number", other)),
    }
}

fn code_debug(prediction: &str, label: &[String]) -> Result<Score, ScoreError> {
    let [function, letter, ..] = label else {
        return Ok(Score::raised("IndexError: the label is not a function and a letter"));
    };
    let prediction = strip(prediction);
    let start: String = prediction.chars().take(2).collect();
    if start == format!("{letter}.") || start == format!("{letter}:") {
        return Ok(Score::of(1.0));
    }
    let mut cleaned = spaced(prediction, &['\n', '`', '\'', '"', '-', '*']);
    for word in ["Option", "option"] {
        cleaned = cleaned.replace(word, " ");
    }
    let cleaned = squeezed(cleaned);
    let said = after_prefix(&cleaned, &["answer is:", "is:", "answer:", "correct option is:"]);
    Ok(Score::right(
        said.flatten().is_some_and(|s| s.starts_with(letter.as_str()) || s.starts_with(function.as_str())),
    ))
}

fn choice(prediction: &str, label: &Value) -> Result<Score, ScoreError> {
    let labels = items(label)?;
    // `in` asks for an element of a list, and for a part of a text.
    let is_label = |text: &str| match label {
        Value::String(label) => label.contains(text),
        _ => labels.iter().any(|l| l == text),
    };
    let prediction = strip(prediction);
    let Some(first) = prediction.chars().next() else { return Ok(Score::of(0.0)) };
    if ('A'..='D').contains(&first) {
        return Ok(Score::right(is_label(&first.to_string())));
    }
    if is_label(prediction) {
        return Ok(Score::of(1.0));
    }
    let cleaned = squeezed(spaced(prediction, &['\n', '"', '\'', '.', ',', '?', '!', '{', '}']));
    if let Some(said) = after_prefix(&cleaned, &["answer is:", "answer:", "answer is", "option is"]) {
        return Ok(Score::right(said.is_some_and(|s| labels.iter().any(|l| s.starts_with(l.as_str())))));
    }
    // `in "ABCD"` also holds for `BC`.
    Ok(Score::right(split(&cleaned).find(|word| "ABCD".contains(word)).is_some_and(is_label)))
}

fn math_find(prediction: &str, label: &Value) -> Result<Score, ScoreError> {
    let Value::Number(label) = label else {
        return match label {
            Value::String(_) | Value::Null => Ok(Score::raised("TypeError: the label is no number")),
            other => Err(wrong("a number", other)),
        };
    };
    let Some(start) = prediction.find(|c| decimal(c).is_some()) else { return Ok(Score::of(0.0)) };
    let from = &prediction[start..];
    let digits = |text: &str| text.find(|c| decimal(c).is_none()).unwrap_or(text.len());
    let whole = digits(from);
    let decimals = from[whole..].strip_prefix('.').map_or(0, digits);
    let number = if decimals > 0 { &from[..whole + 1 + decimals] } else { &from[..whole] };
    Ok(if label.is_f64() {
        Score::right(parse_float(number) == label.as_f64())
    } else {
        match Int::parse(number) {
            Some(number) => Score::right(number.equals(label)),
            None => Score::raised("ValueError: int() of a decimal number"),
        }
    })
}

fn math_calc(prediction: &str, label: &Value, model: &str) -> Result<Score, ScoreError> {
    let Value::Array(mut label) = label.clone() else {
        return match label {
            Value::Number(_) | Value::String(_) => Ok(Score::raised("AssertionError: the label is no list")),
            other => Err(wrong("a list of numbers", other)),
        };
    };
    if let Some(Value::Array(inner)) = label.first() {
        label = inner.clone();
    }
    if label.is_empty() {
        return Ok(Score::raised("IndexError: the label is empty"));
    }
    let numbers = prediction.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    let numbers: Option<Vec<Int>> = numbers.map(Int::parse).collect();
    let Some(numbers) = numbers else {
        return Ok(Score::raised("ValueError: int() of more than 4300 digits"));
    };
    let skipped = usize::from(model == "gpt4");
    let equal = |(number, label): &(&Int, &Value)| matches!(label, Value::Number(l) if number.equals(l));
    let right = numbers.iter().skip(skipped).zip(&label).take_while(equal).count();
    Ok(Score::of(right as f64 / label.len() as f64))
}

fn summary(prediction: &str, sample: &Sample) -> Result<Score, ScoreError> {
    let references = sample.references()?;
    if references.is_empty() {
        return Ok(Score::raised("ValueError: there is no reference"));
    }
    let scores: Result<Vec<f64>, ScoreError> =
        references.iter().map(|r| rouge_google::rouge_l_sum(prediction, r)).collect();
    Ok(best(scores?.into_iter()))
}

const NEVER_EQUAL: &str = "label and answer are of two types, which are never equal";

/// A text is compared, anything else is never equal to one.
fn equal_text(label: &Value, equal: impl Fn(&str) -> bool) -> Score {
    match label {
        Value::String(label) => Score::right(equal(label)),
        _ => Score::raised(NEVER_EQUAL),
    }
}

/// `label[0]` of a list, else the label; a text or a number.
fn sole(label: &Value) -> Result<&Value, ScoreError> {
    let one = match label {
        Value::Array(list) => {
            list.first().ok_or(ScoreError::Missing { field: "the first label of the list" })?
        }
        one => one,
    };
    match one {
        Value::String(_) | Value::Number(_) => Ok(one),
        other => Err(wrong("a text or a number", other)),
    }
}

/// The elements of a list of texts, or the characters of a text.
fn items(label: &Value) -> Result<Vec<String>, ScoreError> {
    match label {
        Value::String(text) => Ok(text.chars().map(String::from).collect()),
        Value::Array(list) => list
            .iter()
            .map(|one| one.as_str().map(str::to_string).ok_or_else(|| wrong("a list of texts", label)))
            .collect(),
        other => Err(wrong("a text or a list of texts", other)),
    }
}

/// What follows the first of `prefixes` that occurs, less one character; `Some(None)` if nothing follows it.
fn after_prefix<'a>(text: &'a str, prefixes: &[&str]) -> Option<Option<&'a str>> {
    prefixes.iter().find_map(|prefix| {
        let mut rest = text[text.find(prefix)? + prefix.len()..].chars();
        Some(rest.next().map(|_| rest.as_str()))
    })
}

fn spaced(text: &str, ends: &[char]) -> String {
    text.replace(ends, " ")
}

fn squeezed(mut text: String) -> String {
    while text.contains("  ") {
        text = text.replace("  ", " ");
    }
    text
}

fn best(scores: impl Iterator<Item = f64>) -> Score {
    Score::of(scores.fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::super::{Scorer, Suite};
    use super::*;
    use serde_json::json;

    fn of(task: &str, prediction: &str, label: Value) -> Score {
        let scorer = Scorer::new(Suite::InfiniteBench, task);
        scorer.and_then(|s| s.score(&Sample::new(prediction, label))).unwrap_or_else(|_| Score::of(-1.0))
    }

    fn value(task: &str, prediction: &str, label: Value) -> f64 {
        of(task, prediction, label).value
    }

    #[test]
    fn first_number_as_text() {
        assert_eq!(value("passkey", "It is 55021, not 7.", json!("55021")), 1.0);
        assert_eq!(value("passkey", "key 2: 55021", json!(["55021"])), 0.0);
        assert_eq!(value("number_string", "055021", json!("55021")), 0.0);
        assert_eq!(value("passkey", "５５０２１", json!("55021")), 0.0);
        assert!(of("passkey", "55021", json!(55021)).note.is_some());
    }

    #[test]
    fn key_value_and_dialogue_by_words() {
        assert_eq!(value("kv_retrieval", "{\"k\": \"ab-12\"}", json!("ab-12")), 1.0);
        assert_eq!(value("kv_retrieval", "AB-12", json!("ab-12")), 0.0);
        assert_eq!(value("kv_retrieval", "ab-12;", json!("ab-12")), 0.0);
        assert!(of("kv_retrieval", "ab-12", json!(["ab-12"])).note.is_some());
        assert_eq!(value("longdialogue_qa_eng", "It was Groß.", json!(["GROSS", "X"])), 1.0);
        assert_eq!(value("longdialogue_qa_eng", "Old Tom", json!(["OLD TOM"])), 0.0);
    }

    #[test]
    fn code_run_takes_the_last_word_as_a_python_int() {
        for prediction in ["it is -1_2.", "`-12`", "x: -１２"] {
            assert_eq!(value("code_run", prediction, json!(-12)), 1.0, "{prediction}");
        }
        assert_eq!(value("code_run", "+12", json!([12])), 1.0);
        assert_eq!(value("code_run", "12.0", json!(12)), 0.0);
        assert_eq!(value("code_run", "", json!(0)), 0.0);
        assert!(of("code_run", "12", json!("12")).note.is_some());
    }

    #[test]
    fn code_debug_looks_after_the_first_prefix_in_its_order() {
        let label = || json!(["load_all", "C"]);
        assert_eq!(value("code_debug", " C: other", label()), 1.0);
        assert_eq!(value("code_debug", "C) load_all", label()), 0.0);
        assert_eq!(value("code_debug", "The bug is: **Option C**", label()), 1.0);
        assert_eq!(value("code_debug", "What is: odd. The answer is: load_all", label()), 1.0);
        assert_eq!(value("code_debug", "answer:C", label()), 0.0);
        assert_eq!(value("code_debug", "The answer is:", label()), 0.0);
        assert!(of("code_debug", "C.", json!(["f"])).note.is_some());
    }

    #[test]
    fn choice_goes_from_letter_to_prefix_to_word() {
        let label = || json!(["the sea", "C"]);
        assert_eq!(value("longbook_choice_eng", " C", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "Certainly B", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "the sea", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "my answer is:  the sea!", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "my option is C", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "my answer is", label()), 0.0);
        assert_eq!(value("longbook_choice_eng", "either BC, or C", label()), 0.0);
        assert_eq!(value("longbook_choice_eng", "surely C", label()), 1.0);
        assert_eq!(value("longbook_choice_eng", "\u{1c}", label()), 0.0);
    }

    #[test]
    fn math_find_reads_the_first_number() {
        assert_eq!(value("math_find", "-41.", json!(41)), 1.0);
        assert_eq!(value("math_find", "٤١", json!([41])), 1.0);
        assert_eq!(value("math_find", "2.50", json!(2.5)), 1.0);
        assert_eq!(value("math_find", "no", json!(41)), 0.0);
        assert!(of("math_find", "41.0", json!(41)).note.is_some());
        assert!(of("math_find", "41", json!("41")).note.is_some());
    }

    #[test]
    fn math_calc_counts_up_to_the_first_wrong_number() {
        assert_eq!(value("math_calc", "[4, -5, 7]", json!([[4, 5, 6, 7]])), 0.5);
        assert_eq!(value("math_calc", "", json!([4])), 0.0);
        let gpt4 = Sample { model: "gpt4".into(), ..Sample::new("9, 4, 5", json!([4, 5])) };
        assert_eq!(score(Task::MathCalc, &gpt4).map(|s| s.value), Ok(1.0));
        assert!(of("math_calc", "4", json!([])).note.is_some());
    }

    #[test]
    fn a_text_is_walked_by_characters() {
        assert_eq!(value("longbook_qa_eng", "y", json!("xyz")), 1.0);
        assert_eq!(value("longbook_qa_eng", "xyz", json!("xyz")), 0.0);
        assert_eq!(value("longbook_qa_eng", "xyz", json!(["xyz"])), 1.0);
        assert_eq!(value("longbook_qa_chn", "春，夏", json!(["秋", "春夏"])), 1.0);
    }

    #[test]
    fn summaries_take_the_best_reference() {
        assert_eq!(value("longbook_sum_eng", "u v\nw", json!("w\nu v")), 1.0);
        assert_eq!(value("longbook_sum_eng", "u v\nw", json!(["z", "w\nu v"])), 1.0);
        assert_eq!(value("longbook_sum_eng", "", json!("w")), 0.0);
    }

    #[test]
    fn other_types_are_refused() {
        for (task, label) in
            [("passkey", json!(null)), ("longbook_qa_eng", json!([1])), ("math_calc", json!({}))]
        {
            let error =
                Scorer::new(Suite::InfiniteBench, task).and_then(|s| s.score(&Sample::new("1", label)));
            assert!(matches!(error, Err(ScoreError::WrongType { .. })), "{task}: {error:?}");
        }
    }
}
