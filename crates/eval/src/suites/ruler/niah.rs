//! Needles in a haystack (RULER `scripts/data/synthetic/niah.py`): eight of the tasks.

use super::super::essays::sentences;
use super::super::generate::{NOISE, uuid};
use super::material::Material;
use super::{Drawn, Prompt};
use crate::text::Rng;

/// What needles stand among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haystack {
    /// One line over and over.
    Noise,
    /// The essays.
    Essay,
    /// Other needles.
    Needles,
}

/// Kind of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Numbers,
    Words,
    Uuids,
}

/// What tells the eight tasks apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Niah {
    pub(super) haystack: Haystack,
    pub(super) key: Kind,
    pub(super) value: Kind,
    /// Keys in the text, values of each, keys asked for.
    pub(super) keys: usize,
    pub(super) values: usize,
    pub(super) queries: usize,
}

impl Niah {
    /// Fewest units of haystack: as many as there are places for needles to take.
    pub(super) fn least(&self) -> usize {
        self.keys * self.values
    }

    /// Units a text shrinks by while it does not fit.
    pub(super) fn step(&self) -> usize {
        if self.haystack == Haystack::Essay { 500 } else { 25 }
    }

    /// A text of `units` lines, words or needles of haystack.
    pub(super) fn draw(&self, prompt: &Prompt, material: &Material, rng: &mut Rng, units: usize) -> Drawn {
        let mut keys: Vec<String> = Vec::new();
        while keys.len() < self.keys {
            let key = random(self.key, material, rng);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let values: Vec<Vec<String>> = keys
            .iter()
            .map(|_| (0..self.values).map(|_| random(self.value, material, rng)).collect())
            .collect();
        let told = |key: &String, value: &String| {
            format!("One of the special magic {} for {key} is: {value}.", name(self.value))
        };
        let mut needles: Vec<String> =
            keys.iter().zip(&values).flat_map(|(k, values)| values.iter().map(move |v| told(k, v))).collect();
        rng.shuffle(&mut needles);
        let asked = rng.sample(keys.len(), self.queries);
        let context = match self.haystack {
            Haystack::Essay => among_sentences(&material.essay(units), &needles, rng),
            Haystack::Noise => among_lines(vec![NOISE.to_string(); units], &needles, rng),
            Haystack::Needles => {
                let mut line = || loop {
                    let key = random(self.key, material, rng);
                    // A second value for the key that is asked for would make the answer ambiguous.
                    if !keys.contains(&key) {
                        return told(&key, &random(self.value, material, rng));
                    }
                };
                let lines = (0..units).map(|_| line()).collect();
                among_lines(lines, &needles, rng)
            }
        };
        let queries: Vec<&str> = asked.iter().map(|i| keys[*i].as_str()).collect();
        let query = match queries.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{}, and {last}", rest.join(", ")),
            _ => queries.concat(),
        };
        let one = self.queries * self.values == 1;
        let kind = if one { name(self.value).trim_end_matches('s') } else { name(self.value) };
        let fill = |text: &str| {
            let text = if one { singular(text) } else { text.to_string() };
            text.replace("{type_needle_v}", kind).replace("{query}", &query)
        };
        let (before, after) = prompt.around();
        Drawn {
            before: fill(before),
            context,
            after: fill(after),
            prefix: fill(&prompt.answer_prefix),
            answers: asked.iter().flat_map(|i| values[*i].clone()).collect(),
        }
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Numbers => "numbers",
        Kind::Words => "words",
        Kind::Uuids => "uuids",
    }
}

fn random(kind: Kind, material: &Material, rng: &mut Rng) -> String {
    match kind {
        Kind::Numbers => rng.between(1_000_000, 9_999_999).to_string(),
        Kind::Words => material.lexicon.key(rng),
        Kind::Uuids => uuid(rng),
    }
}

/// The wording for one answer, by RULER's replacements.
fn singular(text: &str) -> String {
    text.replace("Some", "A").replace("are all", "is").replace("are", "is").replace("answers", "answer")
}

/// Needles at random places between lines. As published, the needle that is first in the list takes the last place.
fn among_lines(mut lines: Vec<String>, needles: &[String], rng: &mut Rng) -> String {
    let mut places = rng.sample(lines.len(), needles.len());
    places.sort_unstable_by(|a, b| b.cmp(a));
    for (place, needle) in places.into_iter().zip(needles) {
        lines.insert(place, needle.clone());
    }
    lines.join("\n")
}

/// Needles between sentences, at depths drawn from 40 even ones (0, 3, 5, ... 100 per cent). As published, parts are joined by
/// spaces even where one is empty.
fn among_sentences(text: &str, needles: &[String], rng: &mut Rng) -> String {
    let sentences = sentences(text);
    let mut places: Vec<usize> = rng
        .sample(DEPTHS, needles.len())
        .into_iter()
        .map(|i| (sentences.len() as f64 * (depth(i) / 100.0)) as usize)
        .collect();
    places.sort_unstable();
    let (mut parts, mut from) = (Vec::new(), 0);
    for (place, needle) in places.into_iter().zip(needles) {
        parts.push(sentences[from..place].join(" "));
        parts.push(needle.clone());
        from = place;
    }
    parts.push(sentences[from..].join(" "));
    parts.join(" ")
}

const DEPTHS: usize = 40;

/// Depth `i` of the 40, in whole per cent.
fn depth(i: usize) -> f64 {
    (i as f64 * 100.0 / (DEPTHS - 1) as f64).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_rulers() {
        let depths: Vec<f64> = (0..DEPTHS).map(depth).collect();
        assert_eq!(depths[..8], [0.0, 3.0, 5.0, 8.0, 10.0, 13.0, 15.0, 18.0]);
        assert_eq!(depths[36..], [92.0, 95.0, 97.0, 100.0]);
    }

    #[test]
    fn one_answer_is_asked_for_in_the_singular() {
        assert_eq!(
            singular("Some special magic {type_needle_v} are hidden. What are all the answers?"),
            "A special magic {type_needle_v} is hidden. What is the answer?"
        );
    }

    #[test]
    fn needles_stand_between_sentences_and_lines() {
        let text = "One. Two. Three. Four.";
        for seed in 0..50 {
            let rng = &mut Rng::new(seed);
            let needles = ["N1.".to_string(), "N2.".to_string()];
            let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
            let mut found = words(&among_sentences(text, &needles, rng));
            assert!(found.iter().position(|w| w == "N1.") < found.iter().position(|w| w == "N2."));
            found.retain(|w| !needles.contains(w));
            assert_eq!(found, words(text));
            let lines = among_lines(vec!["x".into(); 3], &needles, rng);
            let found: Vec<&str> = lines.split('\n').collect();
            assert!(found.len() == 5 && lines.find("N2.") < lines.find("N1."), "{lines}");
        }
    }
}
