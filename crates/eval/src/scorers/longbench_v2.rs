//! LongBench v2's accuracy (THUDM/LongBench `pred.py`, `result.py`): the letter that the answer names, or none.

use super::{Sample, Score, ScoreError};

/// 1 if the prediction names the right letter.
///
/// # Errors
/// When the reference is no text.
pub fn score(sample: &Sample) -> Result<Score, ScoreError> {
    let wanted = sample.text()?;
    Ok(Score::right(letter(&sample.prediction).is_some_and(|l| wanted == l.to_string())))
}

/// `extract_answer`: the letter after the first `The correct answer is (` that a letter and `)` follow, else after the first
/// `The correct answer is ` that a letter follows; asterisks are left out first.
pub fn letter(prediction: &str) -> Option<char> {
    const PHRASE: &str = "The correct answer is ";
    let plain = prediction.replace('*', "");
    let after = |at: usize| &plain[at + PHRASE.len()..];
    let said = || plain.match_indices(PHRASE).map(|(at, _)| after(at));
    let option = |text: &str| text.chars().next().filter(|c| ('A'..='D').contains(c));
    let bracketed = said().find_map(|rest| {
        let rest = rest.strip_prefix('(')?;
        option(rest).filter(|_| rest[1..].starts_with(')'))
    });
    bracketed.or_else(|| said().find_map(option))
}

#[cfg(test)]
mod tests {
    use super::super::{Scorer, Suite};
    use super::*;
    use serde_json::json;

    #[test]
    fn letters_as_the_published_expressions_find_them() {
        for (prediction, expected) in [
            ("The correct answer is (B).", Some('B')),
            ("**The correct answer is (C)**", Some('C')),
            ("The *correct* answer is D", Some('D')),
            ("The correct answer is A, no: The correct answer is (B)", Some('B')),
            ("The correct answer is (E). The correct answer is (A)", Some('A')),
            ("The correct answer is (B because", None),
            ("The correct answer is Beta", Some('B')),
            ("the correct answer is (B)", None),
            ("The correct answer is: (B)", None),
            ("The correct answer is (é)", None),
            ("B", None),
        ] {
            assert_eq!(letter(prediction), expected, "{prediction}");
        }
    }

    #[test]
    fn averages_by_difficulty_and_length() {
        let scorer = Scorer::new(Suite::LongBenchV2, "longbench-v2").unwrap();
        let row = |answer: &str, groups: [&str; 2]| {
            let groups = groups.map(String::from).to_vec();
            let sample = Sample { groups, ..Sample::new("The correct answer is (A)", json!(answer)) };
            let score = scorer.score(&sample).unwrap();
            (sample, score)
        };
        let found = scorer.summary(&[
            row("A", ["easy", "short"]),
            row("B", ["easy", "long"]),
            row("A", ["hard", "long"]),
        ]);
        assert!((found.percent - 200.0 / 3.0).abs() < 1e-9);
        let groups: Vec<_> = found.groups.iter().map(|g| (g.name, g.rows, g.percent)).collect();
        assert_eq!(groups, [("easy", 2, 50.0), ("hard", 1, 100.0), ("short", 1, 100.0), ("long", 2, 50.0)]);
    }
}
