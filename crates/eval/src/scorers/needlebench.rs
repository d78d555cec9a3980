//! NeedleBench's score (OpenCompass `datasets/needlebench/origin.py`), which ReAttention's own evaluation uses.

use super::python::is_space;
use super::sequence::levenshtein;
use super::{Sample, Score, ScoreError};

/// 1 if the keyword stands in the prediction; else a fifth of how alike prediction and needle are, by Levenshtein
/// distance over the longer length with all spaces removed.
///
/// The reference is `needle*keyword`. As published, it is split at every `*`: the keyword ends at a second one.
///
/// # Errors
/// When the reference is no text, or the texts are too long.
pub fn needlebench(sample: &Sample) -> Result<Score, ScoreError> {
    let reference = sample.text()?;
    let mut parts = reference.split('*');
    let (Some(needle), Some(keyword)) = (parts.next(), parts.next()) else {
        return Ok(Score::raised("IndexError: the reference is not `needle*keyword`"));
    };
    if sample.prediction.contains(keyword) {
        return Ok(Score::of(1.0));
    }
    let bare = |text: &str| text.chars().filter(|c| !is_space(*c)).collect::<Vec<char>>();
    let (prediction, needle) = (bare(&sample.prediction), bare(needle));
    let longer = prediction.len().max(needle.len());
    let alike = match longer {
        0 => 1.0,
        _ => 1.0 - levenshtein(&prediction, &needle)? as f64 / longer as f64,
    };
    Ok(Score::of(0.2 * alike))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn score(prediction: &str, reference: &str) -> f64 {
        needlebench(&Sample::new(prediction, json!(reference))).unwrap_or_default().value
    }

    #[test]
    fn the_keyword_is_enough() {
        assert_eq!(score("It was the Lighthouse.", "\nThe hero lives in the Lighthouse.\n*Lighthouse"), 1.0);
        assert_eq!(score("the lighthouse", "lighthouse*Lighthouse"), 0.2 * (1.0 - 3.0 / 13.0));
    }

    #[test]
    fn spaces_do_not_count_and_empty_is_alike() {
        assert_eq!(score("a b\tc", "abc*z"), 0.2);
        assert_eq!(score(" ", "\n*z"), 0.2);
        assert_eq!(score("", "abcd*z"), 0.0);
        assert!(needlebench(&Sample::new("x", json!("no star"))).is_ok_and(|s| s.note.is_some()));
    }

    #[test]
    fn a_star_in_the_needle_cuts_it() {
        assert_eq!(score("five", "four*five*six"), 1.0);
    }
}
