//! Facts to hide in a text and to ask for.

use std::collections::HashSet;

use super::Rng;
use super::grammar::full_name;
use super::words::{ATTRIBUTES, FIRST_NAMES, LAST_NAMES};

/// One fact: a five-digit number that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fact {
    /// What the number is, for example `secret code`.
    pub attribute: String,
    /// Whose it is, for example `Mara Velten`.
    pub name: String,
    /// The number: five digits, the first not zero.
    pub value: String,
}

impl Fact {
    /// `The secret code of Mara Velten is 48271.`
    pub fn sentence(&self) -> String {
        format!("The {} of {} is {}.", self.attribute, self.name, self.value)
    }

    /// `What is the secret code of Mara Velten?`
    pub fn question(&self) -> String {
        format!("What is the {} of {}?", self.attribute, self.name)
    }

    /// The question in the frame the built-in model was trained on, to stand directly after the text:
    /// `\nQuestion: What is the secret code of Mara Velten?\nAnswer:`
    pub fn prompt(&self) -> String {
        format!("\nQuestion: {}\nAnswer:", self.question())
    }

    /// Whether the first number in `answer` is this fact's, all digits exact.
    pub fn is_answered_by(&self, answer: &str) -> bool {
        answer.split(|c: char| !c.is_ascii_digit()).find(|run| !run.is_empty()) == Some(self.value.as_str())
    }
}

/// Draws facts of which no two share both attribute and name, and no two share a value: so a right answer can be right
/// for one reason only.
#[derive(Debug, Clone)]
pub struct FactSource {
    rng: Rng,
    asked: HashSet<(&'static str, String)>,
    values: HashSet<usize>,
}

impl FactSource {
    /// How many facts there are: every attribute of every name.
    pub const CAPACITY: usize = ATTRIBUTES.len() * FIRST_NAMES.len() * LAST_NAMES.len();

    /// A source for `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::stream(seed, 2), asked: HashSet::new(), values: HashSet::new() }
    }
}

impl Iterator for FactSource {
    type Item = Fact;

    /// The next fact; `None` after [`FactSource::CAPACITY`] of them.
    fn next(&mut self) -> Option<Fact> {
        if self.asked.len() == Self::CAPACITY {
            return None;
        }
        let (attribute, name) = loop {
            // Half of the facts ask for the first attribute outright, so that most of them differ in the name alone:
            // this is the mixture the built-in model was trained and measured on.
            let attribute = if self.rng.percent(50) { ATTRIBUTES[0] } else { self.rng.pick(&ATTRIBUTES) };
            let name = full_name(&mut self.rng);
            if self.asked.insert((attribute, name.clone())) {
                break (attribute, name);
            }
        };
        let value = loop {
            let value = 10_000 + self.rng.below(90_000);
            if self.values.insert(value) {
                break value;
            }
        };
        Some(Fact { attribute: attribute.to_owned(), name, value: value.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mara() -> Fact {
        Fact { attribute: "secret code".into(), name: "Mara Velten".into(), value: "48271".into() }
    }

    #[test]
    fn a_fact_reads_as_the_model_was_taught() {
        assert_eq!(mara().sentence(), "The secret code of Mara Velten is 48271.");
        assert_eq!(mara().question(), "What is the secret code of Mara Velten?");
        assert_eq!(mara().prompt(), "\nQuestion: What is the secret code of Mara Velten?\nAnswer:");
    }

    #[test]
    fn only_the_exact_number_answers() {
        assert!(mara().is_answered_by(" The secret code of Mara Velten is 48271."));
        assert!(mara().is_answered_by("48271"));
        for wrong in ["", "no number", "48272", "148271", "482710", "12345 or 48271"] {
            assert!(!mara().is_answered_by(wrong), "{wrong}");
        }
    }

    #[test]
    fn facts_are_distinct_until_there_are_no_more() {
        let facts: Vec<Fact> = FactSource::new(9).collect();
        assert_eq!(facts.len(), FactSource::CAPACITY);
        let keys: HashSet<_> = facts.iter().map(|f| (&f.attribute, &f.name)).collect();
        let values: HashSet<_> = facts.iter().map(|f| &f.value).collect();
        assert_eq!((keys.len(), values.len()), (facts.len(), facts.len()));
        assert!(facts.iter().all(|f| f.value.len() == 5 && !f.value.starts_with('0')));
    }

    #[test]
    fn the_same_seed_gives_the_same_facts() {
        let of = |seed| FactSource::new(seed).take(20).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
