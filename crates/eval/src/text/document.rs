//! A long text with facts at chosen depths.

use std::ops::Range;

use thiserror::Error;

use super::{Fact, FactSource, Haystack, Rng};

/// Distinct filler sentences in one document: each is counted once, and a text of millions of tokens repeats them in
/// random order.
const POOL: usize = 4_096;

/// Sentences between two line breaks, where these are asked for.
const PARAGRAPH: usize = 11;

/// What cannot be built.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A depth is no fraction of the text.
    #[error("depth {depth} is outside 0 to 1; give the fraction of the text that stands before the fact")]
    Depth {
        /// The depth asked for.
        depth: f64,
    },
    /// The facts alone are longer than the text.
    #[error(
        "{facts} facts take {needed} tokens, more than the {tokens} of the text; ask for a longer text or fewer facts"
    )]
    TooShort {
        /// Length asked for, in tokens.
        tokens: usize,
        /// Facts and distractors together.
        facts: usize,
        /// Tokens these take.
        needed: usize,
    },
    /// More facts than there are different ones.
    #[error("{facts} facts are more than the {capacity} different ones there are; ask for fewer distractors", capacity = FactSource::CAPACITY)]
    TooManyFacts {
        /// Facts and distractors together.
        facts: usize,
    },
}

/// A fact and where it stands in a document.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedFact {
    /// The fact.
    pub fact: Fact,
    /// The depth it was asked for or drawn for: the fraction of the text's tokens before it.
    pub depth: f64,
    /// Tokens before it.
    pub token: usize,
    /// Where its sentence stands in the text, in bytes.
    pub byte_range: Range<usize>,
}

/// A text and the facts in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The whole text, without a space at either end.
    pub text: String,
    /// Length in tokens by the counter it was built with, special tokens apart.
    pub tokens: usize,
    /// The facts to ask for, in the order their depths were given.
    pub facts: Vec<PlacedFact>,
    /// Facts of the same form that nobody asks for, in text order.
    pub distractors: Vec<PlacedFact>,
}

/// What a document should be. Filler, facts and distractors are drawn from streams of their own, so asking for more of
/// one leaves the words of the others as they were.
#[derive(Debug, Clone)]
pub struct DocumentPlan {
    seed: u64,
    tokens: usize,
    depths: Vec<f64>,
    distractors: usize,
    sentences: Vec<(f64, String)>,
    paragraphs: bool,
}

impl DocumentPlan {
    /// A text of about `tokens` tokens without facts.
    pub fn new(seed: u64, tokens: usize) -> Self {
        Self { seed, tokens, depths: Vec::new(), distractors: 0, sentences: Vec::new(), paragraphs: false }
    }

    /// Hides one fact at each of these depths, fractions of the text from 0 (its begin) to 1 (its end).
    pub fn depths(mut self, depths: impl IntoIterator<Item = f64>) -> Self {
        self.depths = depths.into_iter().collect();
        self
    }

    /// Adds this many facts of the same form, for other names or attributes, at random places.
    pub fn distractors(mut self, distractors: usize) -> Self {
        self.distractors = distractors;
        self
    }

    /// Hides sentences of the caller's own at these depths.
    pub fn sentences(mut self, sentences: impl IntoIterator<Item = (f64, String)>) -> Self {
        self.sentences = sentences.into_iter().collect();
        self
    }

    /// Breaks the line every eleven sentences, for people to read. Off by default: the built-in model was trained on
    /// sentences joined by single spaces.
    pub fn paragraphs(mut self, paragraphs: bool) -> Self {
        self.paragraphs = paragraphs;
        self
    }

    /// Builds the text. `count` gives the tokens of a text; whether it counts a begin token does not matter.
    ///
    /// A sentence is counted once, in the place it will have (after a full stop), and the counts are added up: exact
    /// for tokenizers that do not merge across the space after a full stop, as all common ones are. The length reaches the one asked for and
    /// exceeds it by less than a sentence.
    ///
    /// # Errors
    /// When a depth is no fraction, when the facts alone exceed the length, or when there are not enough different
    /// facts.
    pub fn build(&self, mut count: impl FnMut(&str) -> usize) -> Result<Document, TextError> {
        let mut depths = self.depths.iter().chain(self.sentences.iter().map(|(depth, _)| depth));
        if let Some(&depth) = depths.find(|depth| !(0.0..=1.0).contains(*depth)) {
            return Err(TextError::Depth { depth });
        }
        let facts = self.depths.len() + self.distractors;
        if facts > FactSource::CAPACITY {
            return Err(TextError::TooManyFacts { facts });
        }
        let mut writer = Writer::new(self.paragraphs, &mut count);
        let hidden = self.draw_facts(&mut writer);
        let mut needed: usize = hidden.iter().map(|hidden| hidden.tokens).sum();
        if needed > self.tokens {
            return Err(TextError::TooShort { tokens: self.tokens, facts: hidden.len(), needed });
        }

        let mut rng = Rng::stream(self.seed, 3);
        let mut pool: Vec<Sentence> = Haystack::new(self.seed).take(POOL).map(Sentence::new).collect();
        let mut fill_to = |writer: &mut Writer, tokens: usize| {
            while writer.tokens < tokens {
                writer.push(&mut pool[rng.below(POOL)]);
            }
        };
        let mut document =
            Document { text: String::new(), tokens: 0, facts: Vec::new(), distractors: Vec::new() };
        let mut asked: Vec<(usize, PlacedFact)> = Vec::with_capacity(self.depths.len());
        for Hidden { asked_as, depth, fact, mut sentence, tokens } in hidden {
            // No fact starts so late that those after it would run over the end.
            fill_to(&mut writer, ((depth * self.tokens as f64) as usize).min(self.tokens - needed));
            needed -= tokens;
            let token = writer.tokens;
            let byte_range = writer.push(&mut sentence);
            let Some(fact) = fact else { continue };
            let placed = PlacedFact { fact, depth, token, byte_range };
            match asked_as {
                Some(index) => asked.push((index, placed)),
                None => document.distractors.push(placed),
            }
        }
        fill_to(&mut writer, self.tokens);

        asked.sort_by_key(|(index, _)| *index);
        document.facts = asked.into_iter().map(|(_, placed)| placed).collect();
        document.tokens = writer.tokens;
        document.text = writer.text;
        Ok(document)
    }

    /// Facts and sentences, by depth. The facts to ask for are drawn first, so the number of distractors does not change
    /// them.
    fn draw_facts(&self, writer: &mut Writer) -> Vec<Hidden> {
        let mut rng = Rng::stream(self.seed, 4);
        let asked = self.depths.iter().enumerate().map(|(index, &depth)| (Some(index), depth));
        let distractors = (0..self.distractors).map(|_| (None, rng.unit()));
        let facts = asked
            .chain(distractors)
            .zip(FactSource::new(self.seed))
            .map(|((asked_as, depth), fact)| (asked_as, depth, fact.sentence(), Some(fact)));
        let own = self.sentences.iter().map(|(depth, sentence)| (None, *depth, sentence.clone(), None));
        let mut hidden: Vec<Hidden> = facts
            .chain(own)
            .map(|(asked_as, depth, sentence, fact)| {
                let mut sentence = Sentence::new(sentence);
                let tokens = writer.cost(&mut sentence, Separator::Space);
                Hidden { asked_as, depth, fact, sentence, tokens }
            })
            .collect();
        hidden.sort_by(|a, b| a.depth.total_cmp(&b.depth));
        hidden
    }
}

/// A fact or a sentence on its way into the text.
struct Hidden {
    /// Index of its depth in the plan; none for what nobody asks for.
    asked_as: Option<usize>,
    depth: f64,
    /// None for a sentence of the caller's own.
    fact: Option<Fact>,
    sentence: Sentence,
    tokens: usize,
}

/// What stands before a sentence.
#[derive(Clone, Copy)]
enum Separator {
    Nothing,
    Space,
    LineBreak,
}

impl Separator {
    fn text(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Space => " ",
            Self::LineBreak => "\n",
        }
    }
}

/// A sentence and, once known, its tokens after each [`Separator`].
struct Sentence {
    text: String,
    tokens: [Option<usize>; 3],
}

impl Sentence {
    fn new(text: String) -> Self {
        Self { text, tokens: [None; 3] }
    }
}

/// Joins sentences and adds up their tokens.
struct Writer<'a> {
    text: String,
    tokens: usize,
    sentences: usize,
    paragraphs: bool,
    count: &'a mut dyn FnMut(&str) -> usize,
}

impl<'a> Writer<'a> {
    fn new(paragraphs: bool, count: &'a mut dyn FnMut(&str) -> usize) -> Self {
        Self { text: String::new(), tokens: 0, sentences: 0, paragraphs, count }
    }

    /// Appends a sentence and returns its place in the text, in bytes.
    fn push(&mut self, sentence: &mut Sentence) -> Range<usize> {
        let separator = match self.sentences {
            0 => Separator::Nothing,
            n if self.paragraphs && n.is_multiple_of(PARAGRAPH) => Separator::LineBreak,
            _ => Separator::Space,
        };
        self.tokens += self.cost(sentence, separator);
        self.sentences += 1;
        self.text.push_str(separator.text());
        let start = self.text.len();
        self.text.push_str(&sentence.text);
        start..self.text.len()
    }

    /// Tokens that a sentence adds to the text: those of "full stop, separator, sentence" less those of the full stop,
    /// so that begin tokens and a tokenizer's own leading space cancel.
    fn cost(&mut self, sentence: &mut Sentence, separator: Separator) -> usize {
        *sentence.tokens[separator as usize].get_or_insert_with(|| {
            let before = if matches!(separator, Separator::Nothing) { "" } else { "." };
            let joined = format!("{before}{}{}", separator.text(), sentence.text);
            (self.count)(&joined).saturating_sub((self.count)(before))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words and punctuation marks, plus a begin token.
    fn count(text: &str) -> usize {
        1 + text.split_whitespace().count() + text.matches(['.', ',', ';', '"', '?']).count()
    }

    fn build(plan: &DocumentPlan) -> Document {
        plan.build(count).unwrap()
    }

    #[test]
    fn the_same_plan_gives_the_same_document() {
        let plan = |seed| DocumentPlan::new(seed, 3_000).depths([0.2, 0.7]).distractors(9);
        assert_eq!(build(&plan(5)), build(&plan(5)));
        assert_ne!(build(&plan(5)).text, build(&plan(6)).text);
    }

    #[test]
    fn byte_ranges_and_token_offsets_point_at_the_facts() {
        for paragraphs in [false, true] {
            let plan = DocumentPlan::new(1, 5_000)
                .depths([0.9, 0.0, 0.5, 1.0])
                .distractors(30)
                .paragraphs(paragraphs);
            let document = build(&plan);
            assert_eq!((document.facts.len(), document.distractors.len()), (4, 30));
            for placed in document.facts.iter().chain(&document.distractors) {
                assert_eq!(document.text[placed.byte_range.clone()], placed.fact.sentence());
                assert_eq!(placed.token, count(&document.text[..placed.byte_range.start]) - 1);
                let asked = placed.depth * document.tokens as f64;
                assert!((placed.token as f64 - asked).abs() < 100.0, "{} for {asked}", placed.token);
            }
            assert_eq!(document.facts.iter().map(|f| f.depth).collect::<Vec<_>>(), [0.9, 0.0, 0.5, 1.0]);
            assert_eq!(document.facts[1].byte_range.start, 0);
            assert_eq!(document.facts[3].byte_range.end, document.text.len());
            assert_eq!(document.text.contains('\n'), paragraphs);
        }
    }

    #[test]
    fn the_length_is_reached_and_passed_by_less_than_a_sentence() {
        let longest = Haystack::new(2).take(POOL).map(|s| count(&s)).max().unwrap();
        for tokens in [1, 50, 1_000, 131_072] {
            for paragraphs in [false, true] {
                let document = build(&DocumentPlan::new(2, tokens).paragraphs(paragraphs));
                assert_eq!(document.tokens, count(&document.text) - 1);
                assert!(
                    (tokens..tokens + longest).contains(&document.tokens),
                    "{} for {tokens}",
                    document.tokens
                );
            }
        }
    }

    #[test]
    fn facts_are_distinct_and_distractors_leave_them_alone() {
        let few = build(&DocumentPlan::new(3, 60_000).depths([0.1, 0.5]));
        let many = build(&DocumentPlan::new(3, 60_000).depths([0.1, 0.5]).distractors(1_000));
        let facts = |d: &Document| d.facts.iter().map(|f| f.fact.clone()).collect::<Vec<_>>();
        assert_eq!(facts(&few), facts(&many));
        let all: std::collections::HashSet<_> =
            many.facts.iter().chain(&many.distractors).map(|f| f.fact.question()).collect();
        assert_eq!(all.len(), 1_002);
    }

    #[test]
    fn sentences_of_the_callers_own_stand_at_their_depths() {
        let own = [(1.0, "Here it ends."), (0.25, "A quarter is read.")].map(|(d, s)| (d, s.to_owned()));
        let document = build(&DocumentPlan::new(6, 2_000).depths([0.5]).sentences(own));
        let at = document.text.find(" A quarter is read. ").unwrap();
        assert!((count(&document.text[..at]) as f64 - 500.0).abs() < 60.0);
        assert!(document.text.ends_with(" Here it ends."));
        assert_eq!((document.facts.len(), document.distractors.len()), (1, 0));
        assert_eq!(document.tokens, count(&document.text) - 1);
        let wrong = DocumentPlan::new(6, 2_000).sentences([(2.0, "Nowhere.".to_owned())]).build(count);
        assert_eq!(wrong, Err(TextError::Depth { depth: 2.0 }));
    }

    #[test]
    fn a_million_tokens_take_few_counts() {
        let mut counted = 0usize;
        let document = DocumentPlan::new(4, 1_000_000)
            .depths([0.5])
            .build(|text| {
                counted += 1;
                count(text)
            })
            .unwrap();
        assert!(document.tokens >= 1_000_000);
        assert!(counted <= 2 * (POOL + 2), "{counted}");
    }

    #[test]
    fn impossible_plans_are_refused() {
        let plan = DocumentPlan::new(0, 1_000);
        for depth in [-0.1, 1.1, f64::NAN] {
            assert!(
                matches!(plan.clone().depths([depth]).build(count), Err(TextError::Depth { .. })),
                "{depth}"
            );
        }
        let short = DocumentPlan::new(0, 20).depths([0.1, 0.2, 0.3]).build(count).unwrap_err();
        assert!(matches!(short, TextError::TooShort { tokens: 20, facts: 3, .. }), "{short}");
        let greedy = plan.distractors(FactSource::CAPACITY + 1).build(count).unwrap_err();
        assert!(greedy.to_string().contains("14400"), "{greedy}");
    }
}
