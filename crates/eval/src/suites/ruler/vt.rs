//! Variable tracking (RULER `variable_tracking.py`): which variables have a value, through a chain of assignments.

use super::super::generate::NOISE;
use super::{Drawn, Prompt};
use crate::text::Rng;

/// Links of the chain.
const HOPS: usize = 4;

/// Fewest noise lines: there are as many as statements.
pub(super) const LEAST: usize = HOPS + 1;

/// Value in the example before it is drawn anew for each text.
const EXAMPLE_VALUE: &str = "12345";

/// The example that stands before the text: a smaller text of its own with its answer, the same in all samples but for names and
/// value.
pub(super) fn example(prompt: &Prompt, rng: &mut Rng, units: usize) -> Drawn {
    statements(prompt, rng, units, 3, EXAMPLE_VALUE.to_string())
}

/// The example as text, as long as its names and value are.
pub(super) fn example_text(example: &Drawn) -> String {
    format!("{}{} {}\n", example.text(), example.prefix, example.answers.join(" "))
}

/// A text of `units` noise lines behind the example, whose names and value are drawn anew.
pub(super) fn draw(prompt: &Prompt, example: &Drawn, rng: &mut Rng, units: usize) -> Drawn {
    let mut shown = example_text(example);
    for name in &example.answers {
        shown = shown.replace(name.as_str(), &letters(rng, name.len()));
    }
    shown = shown.replace(EXAMPLE_VALUE, &value(rng));
    let value = value(rng);
    let mut drawn = statements(prompt, rng, units, 5, value);
    drawn.before = format!("{shown}\n{}", drawn.before);
    drawn
}

fn statements(prompt: &Prompt, rng: &mut Rng, units: usize, letters_each: usize, value: String) -> Drawn {
    let mut names: Vec<String> = Vec::new();
    while names.len() <= HOPS {
        let name = letters(rng, letters_each);
        if !names.contains(&name) && name != "VAR" {
            names.push(name);
        }
    }
    let mut chain = vec![format!("VAR {} = {value}", names[0])];
    chain.extend(names.windows(2).map(|pair| format!("VAR {} = VAR {} ", pair[1], pair[0])));
    let mut places = rng.sample(units, chain.len());
    places.sort_unstable();
    let mut lines = vec![NOISE.to_string(); units];
    for (before, (place, statement)) in places.into_iter().zip(chain).enumerate() {
        lines.insert(place + before, statement);
    }
    let (before, after) = prompt.around();
    let fill = |text: &str| text.replace("{query}", &value).replace("{num_v}", &(HOPS + 1).to_string());
    Drawn {
        before: fill(before),
        context: lines.join("\n"),
        after: fill(after),
        prefix: fill(&prompt.answer_prefix),
        answers: names,
    }
}

/// 10000 to 99998, as NumPy's `randint` with its open end.
fn value(rng: &mut Rng) -> String {
    rng.between(10_000, 99_998).to_string()
}

fn letters(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| char::from(b'A' + rng.below(26) as u8)).collect()
}
