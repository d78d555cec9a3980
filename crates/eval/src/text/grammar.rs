//! English-like filler: noun phrases, clauses, sentences, and texts of them.

use super::Rng;
use super::words::{
    ADJECTIVES, ADVERBS, CONJUNCTIONS, FIRST_NAMES, INTRANSITIVE_VERBS, LAST_NAMES, NOUNS, PLACES,
    QUANTITIES, TIMES, TRANSITIVE_VERBS,
};

/// An endless source of sentences; the same seed gives the same ones.
#[derive(Debug, Clone)]
pub struct Haystack {
    rng: Rng,
}

impl Haystack {
    /// A source for `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::stream(seed, 1) }
    }

    /// The next sentence, with its full stop and no space around it.
    pub fn sentence(&mut self) -> String {
        sentence(&mut self.rng)
    }
}

impl Iterator for Haystack {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.sentence())
    }
}

/// Plain prose without facts, for perplexity: whole sentences joined by single spaces, at least `bytes` bytes and at
/// most one sentence more.
pub fn prose(seed: u64, bytes: usize) -> String {
    let mut haystack = Haystack::new(seed);
    let mut text = haystack.sentence();
    while text.len() < bytes {
        text.push(' ');
        text.push_str(&haystack.sentence());
    }
    text
}

/// A name of the kind the facts use, for example `Mara Velten`.
pub(super) fn full_name(rng: &mut Rng) -> String {
    format!("{} {}", rng.pick(&FIRST_NAMES), rng.pick(&LAST_NAMES))
}

fn sentence(rng: &mut Rng) -> String {
    let body = match rng.below(100) {
        0..45 => clause(rng),
        45..70 => format!("{}, {} {}", clause(rng), rng.pick(&CONJUNCTIONS), clause(rng)),
        70..82 => format!("{}, {}", rng.pick(&TIMES), clause(rng)),
        82..88 => format!("in {}, {}", 1500 + rng.below(521), clause(rng)),
        88..94 => format!("{}; it cost {} coins", clause(rng), 2 + rng.below(9998)),
        _ => format!("\"{},\" said {}", capitalized(&clause(rng)), noun_phrase(rng)),
    };
    format!("{}.", capitalized(&body))
}

fn clause(rng: &mut Rng) -> String {
    match rng.below(100) {
        0..40 => format!("{} {} {}", noun_phrase(rng), rng.pick(&TRANSITIVE_VERBS), noun_phrase(rng)),
        40..60 => format!("{} {} {}", noun_phrase(rng), rng.pick(&INTRANSITIVE_VERBS), rng.pick(&PLACES)),
        60..75 => {
            let (subject, adverb, verb) = (noun_phrase(rng), rng.pick(&ADVERBS), rng.pick(&TRANSITIVE_VERBS));
            format!("{subject} {adverb} {verb} {} {}", noun_phrase(rng), rng.pick(&PLACES))
        }
        75..85 => format!("{} was {} {}", noun_phrase(rng), rng.pick(&ADJECTIVES), rng.pick(&TIMES)),
        85..93 => {
            format!("there were {} {} {}", rng.pick(&QUANTITIES), plural(rng.pick(&NOUNS)), rng.pick(&PLACES))
        }
        _ => format!("{} {} {}", full_name(rng), rng.pick(&TRANSITIVE_VERBS), noun_phrase(rng)),
    }
}

fn noun_phrase(rng: &mut Rng) -> String {
    match rng.below(100) {
        0..45 => format!("the {} {}", rng.pick(&ADJECTIVES), rng.pick(&NOUNS)),
        45..75 => format!("the {}", rng.pick(&NOUNS)),
        75..85 => {
            let adjective = rng.pick(&ADJECTIVES);
            format!("{} {adjective} {}", article(adjective), rng.pick(&NOUNS))
        }
        85..93 => rng.pick(&FIRST_NAMES).to_owned(),
        _ => format!("the {} of {}", rng.pick(&NOUNS), rng.pick(&FIRST_NAMES)),
    }
}

/// The indefinite article, right for the words of the lists (the `h` of `honest` is silent).
fn article(word: &str) -> &'static str {
    if word == "honest" || word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The plural, right for the words of the lists.
fn plural(noun: &str) -> String {
    match noun {
        "child" => "children".to_owned(),
        "fish" => noun.to_owned(),
        "wolf" => "wolves".to_owned(),
        _ if ["x", "ch", "sh"].iter().any(|end| noun.ends_with(end)) => format!("{noun}es"),
        _ => match noun.strip_suffix("ry") {
            Some(stem) => format!("{stem}ries"),
            None => format!("{noun}s"),
        },
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_sentences() {
        let of = |seed| Haystack::new(seed).take(50).collect::<Vec<_>>();
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    /// The text is part of every recorded measurement: this fails when the generator's output moves.
    #[test]
    fn the_first_sentences_of_seed_zero_stay_as_they_are() {
        assert_eq!(
            Haystack::new(0).take(3).collect::<Vec<_>>(),
            [
                "The library carefully avoided a weary ship inside the tower.",
                "The quiet garden lost the baker of Lydia.",
                "The weary captain studied an ancient musician."
            ]
        );
    }

    #[test]
    fn sentences_are_one_line_capitalized_and_closed() {
        for sentence in Haystack::new(11).take(5_000) {
            assert!(
                sentence.ends_with('.') && !sentence.contains('\n') && !sentence.contains("  "),
                "{sentence}"
            );
            assert!(sentence.trim_start_matches('"').starts_with(char::is_uppercase), "{sentence}");
        }
    }

    #[test]
    fn words_agree() {
        assert_eq!(
            ["child", "wolf", "fish", "box", "bench", "story", "valley", "bee"].map(plural),
            ["children", "wolves", "fish", "boxes", "benches", "stories", "valleys", "bees"]
        );
        assert_eq!(["old", "honest", "heavy"].map(article), ["an", "an", "a"]);
    }

    #[test]
    fn prose_ends_with_the_sentence_that_reaches_the_length() {
        for bytes in [0, 1, 500, 10_000] {
            let text = prose(5, bytes);
            assert!(text.len() >= bytes && text.len() < bytes + 400, "{bytes}: {}", text.len());
            assert!(text.ends_with('.'));
        }
        assert!(prose(5, 10_000).starts_with(&prose(5, 500)));
    }
}
