//! ROUGE-L of the Python package `rouge` 1.0.1 (pltrdy), which LongBench uses. It is not Google's.
//!
//! Texts are split at every ASCII dot, also inside `3.5`. Words are compared as they stand, with case and punctuation. All
//! counts are of *distinct* words: the words of the common subsequences of every pair of sentences form one set.

use super::sequence::{Tie, affordable, common};
use super::{ScoreError, python, segment};
use std::collections::{HashMap, HashSet};

/// Steps the package's recursion can take when called as by LongBench's `eval.py` under CPython's limit of 1,000 frames.
/// Beyond, it raises `RecursionError`, and `eval.py` turns that into a score of 0.
pub const RECURSION: usize = 990;

/// The F value between two texts. `recursion` is the number of steps the package may recurse; beyond, the score is 0 as in
/// the published evaluation. Without it, the score is what the package gives under a higher limit.
///
/// # Errors
/// When the texts are too long.
pub fn rouge_l(prediction: &str, reference: &str, recursion: Option<usize>) -> Result<f64, ScoreError> {
    let mut ids = HashMap::new();
    let prediction_sentences = sentences(prediction, &mut ids);
    let reference_sentences = sentences(reference, &mut ids);
    if prediction_sentences.is_empty() || reference_sentences.is_empty() {
        return Ok(0.0);
    }
    // A path back is never shorter than the shorter sentence, so it need not be walked to know.
    let longest = |sentences: &[Vec<usize>]| sentences.iter().map(Vec::len).max().unwrap_or(0);
    let least = longest(&prediction_sentences).min(longest(&reference_sentences));
    if recursion.is_some_and(|most| least > most) {
        return Ok(0.0);
    }
    let total = |sentences: &[Vec<usize>]| sentences.iter().map(Vec::len).sum::<usize>();
    affordable(total(&prediction_sentences), total(&reference_sentences))?;
    let mut overlap = HashSet::new();
    for reference in &reference_sentences {
        for prediction in &prediction_sentences {
            let found = common(reference, prediction, Tie::Second)?;
            if recursion.is_some_and(|most| found.steps > most) {
                return Ok(0.0);
            }
            overlap.extend(found.places.into_iter().map(|i| reference[i]));
        }
    }
    let distinct = |sentences: &[Vec<usize>]| sentences.iter().flatten().collect::<HashSet<_>>().len();
    let precision = overlap.len() as f64 / distinct(&prediction_sentences) as f64;
    let recall = overlap.len() as f64 / distinct(&reference_sentences) as f64;
    Ok(2.0 * (precision * recall / (precision + recall + 1e-8)))
}

/// LongBench's `rouge_score`.
///
/// # Errors
/// When the texts are too long.
pub fn english(prediction: &str, reference: &str) -> Result<f64, ScoreError> {
    rouge_l(prediction, reference, Some(RECURSION))
}

/// LongBench's `rouge_zh_score`: as [`english`], over jieba's words with spaces between. It is one call deeper, so it has one
/// step less.
///
/// # Errors
/// When the texts are too long.
pub fn chinese(prediction: &str, reference: &str) -> Result<f64, ScoreError> {
    let spaced = |text| segment::cut(text).join(" ");
    rouge_l(&spaced(prediction), &spaced(reference), Some(RECURSION - 1))
}

/// Sentences as numbers of words. A sentence of spaces alone is one empty word.
fn sentences<'a>(text: &'a str, ids: &mut HashMap<&'a str, usize>) -> Vec<Vec<usize>> {
    let mut sentences = Vec::new();
    for sentence in text.split('.').filter(|s| !s.is_empty()) {
        let mut words: Vec<&str> = python::split(sentence).collect();
        if words.is_empty() {
            words.push("");
        }
        let numbered = words.into_iter().map(|word| {
            let next = ids.len();
            *ids.entry(word).or_insert(next)
        });
        sentences.push(numbered.collect());
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(prediction: &str, reference: &str, expected: f64) {
        let score = english(prediction, reference);
        assert!(score.as_ref().is_ok_and(|s| (s - expected).abs() < 1e-9), "{prediction}: {score:?}");
    }

    #[test]
    fn counts_are_of_distinct_words() {
        // The subsequence is `no no`: one of two distinct words, and one of three.
        near("no no yes", "yes no no maybe", 2.0 * (0.5 * (1.0 / 3.0)) / (0.5 + 1.0 / 3.0 + 1e-8));
        near("same words", "same words", 2.0 / (2.0 + 1e-8));
    }

    #[test]
    fn dots_split_wherever_they_stand() {
        near("4.25 km", "4 25 km", 2.0 / (2.0 + 1e-8));
        near("x y z.u v", "u v.x y z", 2.0 / (2.0 + 1e-8));
    }

    #[test]
    fn case_and_punctuation_count() {
        near("Yes, sir", "yes sir", 2.0 * 0.25 / (1.0 + 1e-8));
    }

    #[test]
    fn texts_without_sentences_score_nothing() {
        near("", "a", 0.0);
        near("...", "a", 0.0);
        // A sentence of spaces is one empty word, on both sides the same.
        near(" . ", " ", 2.0 / (2.0 + 1e-8));
    }

    #[test]
    fn ties_step_back_in_the_prediction() {
        near("q p", "p q", 2.0 * 0.25 / (1.0 + 1e-8));
        near("q p. p r", "p q. q r", 2.0 * (1.0 * 1.0) / (2.0 + 1e-8));
    }

    #[test]
    fn recursion_ends_at_a_thousand_frames() {
        let text = |n: usize| (0..n).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ");
        near(&text(990), &text(990), 2.0 / (2.0 + 1e-8));
        near(&text(991), &text(991), 0.0);
        let all = rouge_l(&text(991), &text(991), None);
        assert!(all.is_ok_and(|s| s > 0.99));
    }

    #[test]
    fn chinese_words_are_jiebas() {
        assert!(chinese("明天开会", "明天 开会").is_ok_and(|s| (s - 2.0 / (2.0 + 1e-8)).abs() < 1e-9));
        assert!(chinese("", "x").is_ok_and(|s| s == 0.0));
    }
}
