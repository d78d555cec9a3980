//! LongBench's edit similarity of code (`lcc`, `repobench-p`): `fuzz.ratio` of `fuzzywuzzy` 0.18.0 with either back end.
//!
//! `fuzzywuzzy` takes python-Levenshtein where it is installed and Python's own `difflib` where not. The scores differ, so both
//! are given and named.

use super::sequence::{affordable, common_length};
use super::{Score, ScoreError};
use std::collections::HashMap;

/// Both scores, 0 to 1 in steps of a hundredth; the row's value is python-Levenshtein's.
///
/// # Errors
/// When a line is too long.
pub fn code_similarity(prediction: &str, reference: &str) -> Result<Score, ScoreError> {
    let (line, reference) = (characters(first_code_line(prediction)), characters(reference));
    let score =
        |back_end: fn(&[char], &[char]) -> Result<f64, ScoreError>| ratio(&line, &reference, back_end);
    let (levenshtein, difflib) = (score(levenshtein_ratio)?, score(difflib_ratio)?);
    Ok(Score::of(levenshtein).with("levenshtein", levenshtein).with("difflib", difflib))
}

/// The first line without a backtick, `#` or `//`, leading newlines aside; empty if there is none.
fn first_code_line(prediction: &str) -> &str {
    let lines = prediction.trim_start_matches('\n').split('\n');
    lines.into_iter().find(|line| !line.contains(['`', '#']) && !line.contains("//")).unwrap_or("")
}

/// `fuzz.ratio` over 100: equal texts 1, an empty one 0, else per cent rounded half to even.
fn ratio(
    prediction: &[char],
    reference: &[char],
    back_end: fn(&[char], &[char]) -> Result<f64, ScoreError>,
) -> Result<f64, ScoreError> {
    if prediction == reference {
        return Ok(1.0);
    }
    if prediction.is_empty() || reference.is_empty() {
        return Ok(0.0);
    }
    Ok((100.0 * back_end(prediction, reference)?).round_ties_even() / 100.0)
}

/// python-Levenshtein's: one minus the insertions and deletions over both lengths, in this order of rounding.
fn levenshtein_ratio(prediction: &[char], reference: &[char]) -> Result<f64, ScoreError> {
    let both = prediction.len() + reference.len();
    let edits = both - 2 * common_length(prediction, reference)?;
    Ok(1.0 - edits as f64 / both as f64)
}

/// difflib's: twice the characters in matching blocks over both lengths. The longest block is found first, then the longest
/// to its left and right. In references of 200 characters or more, those that make up over a hundredth of it start no
/// block ("autojunk").
fn difflib_ratio(prediction: &[char], reference: &[char]) -> Result<f64, ScoreError> {
    affordable(prediction.len(), reference.len())?;
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    for (at, c) in reference.iter().enumerate() {
        places.entry(*c).or_default().push(at);
    }
    if reference.len() >= 200 {
        places.retain(|_, at| at.len() <= reference.len() / 100 + 1);
    }
    let (mut matched, mut open) = (0, vec![(0, prediction.len(), 0, reference.len())]);
    while let Some((a_from, a_to, b_from, b_to)) = open.pop() {
        let (a, b, size) = longest_block(prediction, reference, &places, (a_from, a_to, b_from, b_to));
        if size > 0 {
            matched += size;
            open.push((a_from, a, b_from, b));
            open.push((a + size, a_to, b + size, b_to));
        }
    }
    Ok(2.0 * matched as f64 / (prediction.len() + reference.len()) as f64)
}

/// The longest block, of equally long ones the first in the prediction and then in the reference, widened by equal characters
/// on both sides.
fn longest_block(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    (a_from, a_to, b_from, b_to): (usize, usize, usize, usize),
) -> (usize, usize, usize) {
    let (mut start_a, mut start_b, mut size) = (a_from, b_from, 0);
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for i in a_from..a_to {
        let mut next = HashMap::new();
        let all = places.get(&a[i]).map_or(&[][..], Vec::as_slice);
        let from = all.partition_point(|j| *j < b_from);
        for &j in all[from..].iter().take_while(|j| **j < b_to) {
            let length = j.checked_sub(1).and_then(|j| ending.get(&j)).map_or(1, |n| n + 1);
            next.insert(j, length);
            if length > size {
                (start_a, start_b, size) = (i + 1 - length, j + 1 - length, length);
            }
        }
        ending = next;
    }
    while start_a > a_from && start_b > b_from && a[start_a - 1] == b[start_b - 1] {
        (start_a, start_b, size) = (start_a - 1, start_b - 1, size + 1);
    }
    while start_a + size < a_to && start_b + size < b_to && a[start_a + size] == b[start_b + size] {
        size += 1;
    }
    (start_a, start_b, size)
}

fn characters(text: &str) -> Vec<char> {
    text.chars().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(prediction: &str, reference: &str) -> (f64, f64) {
        let score = code_similarity(prediction, reference).unwrap_or_default();
        (score.part("levenshtein").unwrap_or(-1.0), score.part("difflib").unwrap_or(-1.0))
    }

    #[test]
    fn the_first_line_of_code_counts() {
        assert_eq!(both("\n\n```rust\n# x\n// y\nlet x = 1;\nlet y = 2;", "let x = 1;"), (1.0, 1.0));
        assert_eq!(both("let x = 1; // one\nlet y;", "let y;"), (1.0, 1.0));
        assert_eq!(both("# none", "x"), (0.0, 0.0));
        assert_eq!(both("", ""), (1.0, 1.0));
    }

    #[test]
    fn back_ends_differ() {
        assert_eq!(both("abXcdef", "cdefYab"), (0.57, 0.57));
        // Two characters are in common, but the first longest block is one that leaves nothing beside it.
        assert_eq!(both("tide", "diet"), (0.5, 0.25));
    }

    #[test]
    fn halves_round_to_even() {
        assert_eq!(both("mmmmmmmn", "mmmmmmmm"), (0.88, 0.88));
        // 1/8 is 12.5 per cent.
        assert_eq!(both("pqrstuvw", "p2345678"), (0.12, 0.12));
    }

    #[test]
    fn frequent_characters_start_no_block_from_200_on() {
        let long = |n: usize| "ab".repeat(n);
        assert_eq!(both(&long(99), &format!("b{}", long(99))).1, 1.0);
        assert_eq!(both(&long(110), &format!("b{}", long(110))), (1.0, 0.0));
    }
}
