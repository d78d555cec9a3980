//! BABILong's score (booydar/babilong `babilong/metrics.py`).

use super::{Sample, Score, ScoreError};

/// Whether the prediction's first sentence names the target and no other label of the task, those of the question aside.
///
/// A label is named when it is contained, so `none` also names `one` in `qa7`. The published cut at `Question` never takes
/// effect, since the text is in lower case by then.
///
/// # Errors
/// When the question or the target is missing.
pub fn babilong(labels: &[&str], sample: &Sample) -> Result<Score, ScoreError> {
    let target = sample.text()?.to_lowercase();
    let question = sample.question()?.to_lowercase();
    let prediction = sample.prediction.to_lowercase();
    let said = [".", "<context>", "<example>"]
        .into_iter()
        .fold(prediction.as_str(), |text, end| text.split(end).next().unwrap_or(""));
    let labels: Vec<String> = labels.iter().map(|l| l.to_lowercase()).collect();
    let named: Vec<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| said.contains(label) && !question.contains(label))
        .collect();
    let targets: Vec<&str> = if target.contains(',') && target.chars().count() > 3 {
        target.split(',').collect()
    } else {
        vec![&target]
    };
    let right = targets.iter().all(|t| named.contains(t)) && named.len() == targets.len();
    Ok(Score::of(f64::from(u8::from(right))))
}

/// The labels of a task, `qa1` to `qa20`.
pub fn labels(task: &str) -> Option<&'static [&'static str]> {
    const PLACES: &[&str] = &["bathroom", "bedroom", "garden", "hallway", "kitchen", "office"];
    const YES_NO: &[&str] = &["no", "yes"];
    Some(match task {
        "qa1" | "qa2" | "qa3" | "qa4" | "qa11" | "qa12" | "qa13" => PLACES,
        "qa5" => &["Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"],
        "qa6" | "qa9" | "qa17" | "qa18" => YES_NO,
        "qa7" => &["none", "one", "three", "two"],
        "qa8" => &["apple", "football", "milk", "nothing"],
        "qa10" => &["maybe", "no", "yes"],
        "qa14" => &["bedroom", "cinema", "kitchen", "office", "park", "school"],
        "qa15" => &["cat", "mouse", "sheep", "wolf"],
        "qa16" => &["gray", "green", "white", "yellow"],
        "qa19" => &["e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"],
        "qa20" => &["bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn score(task: &str, target: &str, prediction: &str, question: &str) -> f64 {
        let sample =
            Sample { question: Some(question.to_string()), ..Sample::new(prediction, json!(target)) };
        labels(task).map_or(-1.0, |labels| babilong(labels, &sample).unwrap_or_default().value)
    }

    #[test]
    fn only_the_target_may_be_named() {
        assert_eq!(score("qa1", "garden", "In the Garden. Not the kitchen.", "Where is Ann?"), 1.0);
        assert_eq!(score("qa1", "garden", "garden or kitchen", "Where is Ann?"), 0.0);
        assert_eq!(score("qa2", "garden", "from kitchen to garden", "After the kitchen?"), 1.0);
        assert_eq!(score("qa1", "garden", "garden<context>kitchen", "Where?"), 1.0);
        assert_eq!(score("qa1", "garden", "garden Question: kitchen", "Where?"), 0.0);
    }

    #[test]
    fn sets_and_contained_labels() {
        assert_eq!(score("qa8", "milk,apple", "apple and milk", "What?"), 1.0);
        assert_eq!(score("qa8", "milk,apple", "apple", "What?"), 0.0);
        assert_eq!(score("qa19", "s,e", "s,e", "How?"), 1.0);
        assert_eq!(score("qa7", "none", "none", "How many?"), 0.0);
    }

    #[test]
    fn a_question_is_needed() {
        let sample = Sample::new("garden", json!("garden"));
        assert!(matches!(babilong(&["garden"], &sample), Err(ScoreError::Missing { .. })));
    }
}
