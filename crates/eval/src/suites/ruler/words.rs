//! Common words (RULER `common_words_extraction.py`) and frequent words (`freq_words_extraction.py`).

use super::material::Lexicon;
use super::{Drawn, Prompt, SHORT};
use crate::text::Rng;

/// Words that are common.
const COMMON: usize = 10;

/// Fewest words of a list: the common ones and as many others.
pub(super) const LEAST_COMMON: usize = 2 * COMMON;

/// Fewest frequent words: from here on the first three differ in number from each other and from the fourth.
pub(super) const LEAST_FREQUENT: usize = 60;

/// A numbered list of `units` different words, of which ten come more often than the others, behind an example of its kind with its
/// answer.
pub(super) fn common(
    prompt: &Prompt,
    lexicon: &Lexicon,
    rng: &mut Rng,
    length: usize,
    units: usize,
) -> Drawn {
    let short = length < SHORT;
    let (shown, told) = if short { list(lexicon, rng, 20, 3, 1) } else { list(lexicon, rng, 40, 10, 3) };
    let (context, answers) =
        if short { list(lexicon, rng, units, 6, 1) } else { list(lexicon, rng, units, 30, 3) };
    let (before, after) = prompt.around();
    let example = format!("{before}{shown}{after}{} {}\n", prompt.answer_prefix, numbered(&told));
    Drawn {
        before: format!("{example}{before}"),
        context,
        after: after.to_string(),
        prefix: prompt.answer_prefix.clone(),
        answers,
    }
}

/// `count` words, the first ten of them `often` times and the others `seldom`, in random order; and those ten.
fn list(
    lexicon: &Lexicon,
    rng: &mut Rng,
    count: usize,
    often: usize,
    seldom: usize,
) -> (String, Vec<String>) {
    let mut common = lexicon.words(rng, count);
    let others = common.split_off(COMMON.min(common.len()));
    let times = |words: &[String], n| words.iter().cycle().take(words.len() * n).cloned().collect::<Vec<_>>();
    let mut all = [times(&common, often), times(&others, seldom)].concat();
    rng.shuffle(&mut all);
    (numbered(&all), common)
}

/// `1. word 2. word ...`
fn numbered(words: &[String]) -> String {
    let numbered: Vec<String> = words.iter().enumerate().map(|(i, w)| format!("{}. {w}", i + 1)).collect();
    numbered.join(" ")
}

/// Words of six random letters, the one of rank `k` as often as a zeta distribution with exponent 2 has it among `units`. The first
/// is dots, to be ignored; the three after it are the answer.
pub(super) fn frequent(prompt: &Prompt, rng: &mut Rng, length: usize, units: usize) -> Drawn {
    let kinds = (length / 50).max(4);
    let mut words: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    while words.len() < kinds {
        let word: String = (0..6).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words[0] = "...".to_string();
    let zeta = std::f64::consts::PI.powi(2) / 6.0;
    let mut text: Vec<&str> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let count = (units as f64 * ((i + 1) as f64).powi(-2) / zeta) as usize;
        text.extend(std::iter::repeat_n(word.as_str(), count));
    }
    rng.shuffle(&mut text);
    let (before, after) = prompt.around();
    Drawn {
        before: before.to_string(),
        context: text.join(" "),
        after: after.to_string(),
        prefix: prompt.answer_prefix.clone(),
        answers: words[1..4].to_vec(),
    }
}
