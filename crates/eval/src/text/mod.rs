//! Seeded text with hidden facts, for needle evaluations, perplexity and the demo.
//!
//! Everything is generated: no file, no network, and the same seed gives the same bytes on every machine and in
//! every release, because the generator brings its own [`Rng`].
//!
//! The prose and the facts are of the kind the built-in model was trained on (`models/needle`): short English
//! sentences of a small grammar, and facts like `The secret code of Mara Velten is 48271.`
//!
//! ```
//! use reattention_eval::text::DocumentPlan;
//!
//! let count = |text: &str| text.split_whitespace().count();
//! let document = DocumentPlan::new(7, 2_000).depths([0.1, 0.9]).distractors(5).build(count)?;
//! let hidden = &document.facts[0];
//! assert_eq!(document.text[hidden.byte_range.clone()], hidden.fact.sentence());
//! println!("{}{}", document.text, hidden.fact.prompt());
//! # Ok::<(), reattention_eval::text::TextError>(())
//! ```

mod document;
mod fact;
mod grammar;
mod rng;
mod words;

pub use document::{Document, DocumentPlan, PlacedFact, TextError};
pub use fact::{Chain, Fact, FactSource, answers, holds, numbers};
pub use grammar::{Haystack, prose};
pub use rng::Rng;

/// What facts are about: the attributes that the built-in model was trained on (`models/needle`).
pub fn attributes() -> &'static [&'static str] {
    &words::ATTRIBUTES
}
