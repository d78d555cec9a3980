//! LongBench's retrieval and count scores: which share of the prediction's numbers is the right one.

use super::Score;
use super::python::{decimal, digit_runs};

/// `passage_retrieval_en`: the number after the first `Paragraph ` of the answer.
pub fn english(prediction: &str, answer: &str) -> Score {
    numbered(prediction, answer, "Paragraph ")
}

/// `passage_retrieval_zh`: the number after the first `段落` of the answer.
pub fn chinese(prediction: &str, answer: &str) -> Score {
    numbered(prediction, answer, "段落")
}

/// `passage_count`: the answer itself. Numbers are compared as text, so `07` is not `7`.
pub fn count(prediction: &str, answer: &str) -> f64 {
    let numbers: Vec<&str> = digit_runs(prediction).collect();
    let right = numbers.iter().filter(|n| **n == answer).count();
    if numbers.is_empty() { 0.0 } else { right as f64 / numbers.len() as f64 }
}

fn numbered(prediction: &str, answer: &str, before: &str) -> Score {
    let number = answer.split(before).skip(1).find_map(|after| {
        let end = after.find(|c| decimal(c).is_none()).unwrap_or(after.len());
        (end > 0).then_some(&after[..end])
    });
    match number {
        Some(number) => Score::of(count(prediction, number)),
        None => Score::raised("IndexError: the reference names no paragraph"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_right_numbers() {
        assert_eq!(count("8, 8 or 9", "8"), 2.0 / 3.0);
        assert_eq!(count("none", "8"), 0.0);
        assert_eq!((count("88", "8"), count("08", "8")), (0.0, 0.0));
    }

    #[test]
    fn digits_of_any_script_are_numbers_but_not_equal() {
        assert_eq!(count("８", "8"), 0.0);
        assert_eq!(count("8 ８", "8"), 0.5);
        assert_eq!(count("8²", "8"), 1.0);
    }

    #[test]
    fn the_first_paragraph_of_the_answer_counts() {
        assert_eq!(english("4", "Paragraph x Paragraph 4 Paragraph 5").value, 1.0);
        assert_eq!(chinese("段落 12", "段落12").value, 1.0);
        assert!(english("4", "paragraph 4").note.is_some());
    }
}
