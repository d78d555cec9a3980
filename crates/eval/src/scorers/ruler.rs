//! RULER's string match (NVIDIA/RULER `scripts/eval`).

use super::python::strip;
use super::{Sample, Score, ScoreError};

/// The share of references found in the prediction, whatever their case: niah, vt, cwe, fwe.
///
/// # Errors
/// When the references are no list of texts.
pub fn match_all(sample: &Sample) -> Result<Score, ScoreError> {
    let found = found(sample)?;
    if found.is_empty() {
        return Ok(Score::raised("ZeroDivisionError: there is no reference"));
    }
    Ok(Score::of(found.iter().filter(|f| **f).count() as f64 / found.len() as f64))
}

/// 1 if any reference is found: `qa_1`, `qa_2`.
///
/// # Errors
/// When the references are no list of texts.
pub fn match_part(sample: &Sample) -> Result<Score, ScoreError> {
    let found = found(sample)?;
    if found.is_empty() {
        return Ok(Score::raised("ValueError: there is no reference"));
    }
    Ok(Score::of(f64::from(u8::from(found.contains(&true)))))
}

fn found(sample: &Sample) -> Result<Vec<bool>, ScoreError> {
    let prediction = processed(&sample.prediction).to_lowercase();
    let references = sample.references()?;
    Ok(references.iter().map(|r| prediction.contains(&r.to_lowercase())).collect())
}

/// What the official script does to a prediction before it is scored: control characters become newlines, the ends are
/// stripped before and after.
pub fn processed(prediction: &str) -> String {
    let printable = strip(prediction).replace(|c| c <= '\u{1f}', "\n");
    strip(&printable).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scores(prediction: &str, references: &[&str]) -> (f64, f64) {
        let sample = Sample::new(prediction, json!(references));
        let value = |score: Result<Score, ScoreError>| score.unwrap_or_default().value;
        (value(match_all(&sample)), value(match_part(&sample)))
    }

    #[test]
    fn all_and_part() {
        assert_eq!(scores("Red, GREEN", &["green", "blue", "red", "red"]), (0.75, 1.0));
        assert_eq!(scores("987654", &["8765"]), (1.0, 1.0));
        assert_eq!(scores("none", &[""]), (1.0, 1.0));
        assert!(match_all(&Sample::new("x", json!([]))).is_ok_and(|s| s.note.is_some()));
    }

    #[test]
    fn control_characters_become_newlines() {
        assert_eq!(processed("\u{0}\t one\u{1}two\u{1f}  "), "one\ntwo");
        assert_eq!(scores("one\ttwo", &["one\ntwo", "one\ttwo"]), (0.5, 1.0));
    }

    #[test]
    fn case_as_in_python() {
        assert_eq!(scores("İZMİR", &["izmir"]), (0.0, 0.0));
        assert_eq!(scores("ΝΌΜΟΣ", &["νόμος"]), (1.0, 1.0));
    }
}
