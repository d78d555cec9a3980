//! ROUGE of Google's `rouge_score` 0.1.2 without stemmer: InfiniteBench's `longbook_sum_eng` and L-Eval.
//!
//! Words are the runs of `a-z0-9` in the lower-cased text, so an accent splits a word. Counts are of all words.

use super::ScoreError;
use super::sequence::{Tie, affordable, common, common_length, counts, shared};
use std::collections::{BTreeSet, HashMap};

/// ROUGE-N, F value.
///
/// # Errors
/// When the texts are too long.
pub fn rouge_n(prediction: &str, reference: &str, n: usize) -> Result<f64, ScoreError> {
    let (prediction, reference) = (prediction.to_lowercase(), reference.to_lowercase());
    let (prediction, reference) = (words(&prediction), words(&reference));
    let grams = |words: &[&str]| counts(words.windows(n.max(1)).map(|w| w.join(" ")));
    let total = |words: &[&str]| (words.len() + 1).saturating_sub(n.max(1));
    Ok(f_value(shared(&grams(&reference), &grams(&prediction)), total(&prediction), total(&reference)))
}

/// ROUGE-L over whole texts, F value.
///
/// # Errors
/// When the texts are too long.
pub fn rouge_l(prediction: &str, reference: &str) -> Result<f64, ScoreError> {
    let (prediction, reference) = (prediction.to_lowercase(), reference.to_lowercase());
    let (prediction, reference) = (words(&prediction), words(&reference));
    let mut ids = HashMap::new();
    let (p, r) = (number(&prediction, &mut ids), number(&reference, &mut ids));
    Ok(f_value(common_length(&r, &p)?, p.len(), r.len()))
}

/// ROUGE-L at summary level, F value: sentences are lines, and of each reference line the union of its common subsequences
/// with every line of the prediction counts, no word more often than both texts have it.
///
/// # Errors
/// When the texts are too long.
pub fn rouge_l_sum(prediction: &str, reference: &str) -> Result<f64, ScoreError> {
    let (prediction, reference) = (prediction.to_lowercase(), reference.to_lowercase());
    let mut ids = HashMap::new();
    let mut lines = |text| -> Vec<Vec<usize>> { lines(text).map(|l| number(&words(l), &mut ids)).collect() };
    let (prediction, reference) = (lines(&prediction), lines(&reference));
    let total = |lines: &[Vec<usize>]| lines.iter().map(Vec::len).sum::<usize>();
    affordable(total(&prediction), total(&reference))?;
    let mut left_in_prediction = counts(prediction.iter().flatten().copied());
    let mut left_in_reference = counts(reference.iter().flatten().copied());
    let mut hits = 0;
    for line in &reference {
        let mut union = BTreeSet::new();
        for other in &prediction {
            union.extend(common(line, other, Tie::First)?.places);
        }
        for place in union {
            let word = line[place];
            let (Some(p), Some(r)) = (left_in_prediction.get_mut(&word), left_in_reference.get_mut(&word))
            else {
                continue;
            };
            if *p > 0 && *r > 0 {
                (*p, *r, hits) = (*p - 1, *r - 1, hits + 1);
            }
        }
    }
    Ok(f_value(hits, total(&prediction), total(&reference)))
}

/// Non-empty lines; only a newline ends one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').filter(|line| !line.is_empty())
}

fn words(lower: &str) -> Vec<&str> {
    let other = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit());
    lower.split(other).filter(|word| !word.is_empty()).collect()
}

fn number(words: &[&str], ids: &mut HashMap<String, usize>) -> Vec<usize> {
    let one = |word: &&str| {
        let next = ids.len();
        *ids.entry((*word).to_string()).or_insert(next)
    };
    words.iter().map(one).collect()
}

fn f_value(same: usize, prediction: usize, reference: usize) -> f64 {
    let precision = same as f64 / prediction.max(1) as f64;
    let recall = same as f64 / reference.max(1) as f64;
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(score: Result<f64, ScoreError>, expected: f64) {
        assert!(
            score.as_ref().is_ok_and(|s| (s - expected).abs() < 1e-12),
            "{score:?} instead of {expected}"
        );
    }

    #[test]
    fn all_words_count_whatever_their_case() {
        near(rouge_n("The dog the", "the DOG ran", 1), 2.0 / 3.0);
        near(rouge_n("one two three", "two three four", 2), 0.5);
        near(rouge_n("one", "one", 2), 0.0);
        near(rouge_l("a b c d", "a x c d"), 0.75);
    }

    #[test]
    fn accents_split_words() {
        near(rouge_n("naïve", "na ve", 1), 1.0);
        near(rouge_l("café", "cafe"), 0.0);
    }

    #[test]
    fn at_summary_level_the_order_of_lines_is_free() {
        near(rouge_l_sum("e f\ng h", "g h\ne f"), 1.0);
        near(rouge_l("e f\ng h", "g h\ne f"), 0.5);
        near(rouge_l_sum("\n", "g"), 0.0);
    }

    #[test]
    fn at_summary_level_no_word_counts_twice() {
        // Both reference lines find `x`, which the prediction has once.
        near(rouge_l_sum("x", "x\nx"), 2.0 / 3.0);
    }
}
