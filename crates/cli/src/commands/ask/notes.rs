//! What the reader of an answer of the built-in model must know: it answers everything with five digits of an attribute, also
//! what it was not trained on (its card, `models/needle`).

use reattention_engine::{Generation, Source};
use reattention_eval::text::{attributes, numbers};

/// Digits of the numbers that the built-in model knows.
const DIGITS: usize = 5;

/// What is to be said about an answer of the built-in model.
pub(super) fn notes(question: &str, sources: &[Source], answer: &Generation) -> Vec<String> {
    let evidence: Vec<Vec<String>> = answer.evidence.iter().map(|e| numbers(&e.text)).collect();
    let read = || sources.iter().flat_map(|s| numbers(&s.text)).collect();
    // Without evidence there is the whole text to look in.
    let told = if evidence.is_empty() { vec![read()] } else { evidence };
    about_question(question).into_iter().chain(about_answer(&told, &numbers(&answer.text))).collect()
}

/// A question of a form that the model was not trained on.
fn about_question(question: &str) -> Option<String> {
    let fact = question.trim().strip_prefix("What is the ").and_then(|rest| rest.split_once(" of "));
    let known = attributes().join(", ");
    match fact {
        None => Some(
            "the built-in model only looks up facts asked for as \"What is the ATTRIBUTE of NAME?\"; a real model (--model) answers other questions".into(),
        ),
        Some((attribute, _)) if !attributes().contains(&attribute) => Some(format!(
            "the built-in model was trained on facts of four attributes ({known}), and `{attribute}` is none of them; name a real model with --model"
        )),
        Some(_) => None,
    }
}

/// An answer with a number that is not in what it was read from: `told` are the numbers of each passage.
fn about_answer(told: &[Vec<String>], answered: &[String]) -> Option<String> {
    if told.iter().flatten().any(|number| answered.contains(number)) {
        return None;
    }
    Some(match told.first().and_then(|passage| passage.iter().find(|n| n.chars().count() != DIGITS)) {
        Some(number) => format!(
            "the built-in model knows numbers of {DIGITS} digits only, and the passage it read has {number}; read it there, or name a real model with --model"
        ),
        None => format!(
            "the answer is not in the passage that it was read from; the built-in model answers with {DIGITS} digits even where the text has none"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_of_other_forms_are_noted() {
        for known in ["What is the locker code of Ada Winter?", " What is the secret code of X of Y? "] {
            assert_eq!(about_question(known), None);
        }
        assert!(about_question("Why did it rain?").unwrap().contains("only looks up facts"));
        assert!(
            about_question("What is the capital of France?").unwrap().contains("`capital` is none of them")
        );
    }

    #[test]
    fn numbers_that_the_text_does_not_have_are_noted() {
        let of = |told: &[&[&str]], answered: &str| {
            let told: Vec<Vec<String>> =
                told.iter().map(|p| p.iter().map(ToString::to_string).collect()).collect();
            about_answer(&told, &[answered.to_string()]).unwrap_or_default()
        };
        assert_eq!(of(&[&["12", "44713"]], "44713"), "");
        assert_eq!(of(&[&["12"], &["44713"]], "44713"), "");
        assert!(of(&[&["4471"]], "44713").contains("5 digits only, and the passage it read has 4471"));
        assert!(of(&[&[]], "44713").contains("even where the text has none"));
        assert!(of(&[&["10000"]], "44713").contains("is not in the passage"));
        assert!(!of(&[&["4471"]], "").is_empty());
    }
}
