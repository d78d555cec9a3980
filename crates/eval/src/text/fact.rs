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
        answers(answer, &self.value)
    }
}

/// Whether `answer` gives `value`: whether its first number of at least as many digits is that, all of them exact. Shorter
/// ones number a list or a line.
pub fn answers(answer: &str, value: &str) -> bool {
    numbers(answer)
        .into_iter()
        .find(|number| number.len() >= value.len())
        .is_some_and(|number| number == value)
}

/// Whether `value` is among the numbers in `answer`, all digits exact.
pub fn holds(answer: &str, value: &str) -> bool {
    numbers(answer).iter().any(|number| number == value)
}

/// The numbers in a text as its reader takes them: runs of digits, also of full width, with thousands set apart or not
/// (`48271`, `48,271`, `48'271`, and with a space that does not break).
pub fn numbers(text: &str) -> Vec<String> {
    // Runs of digits, each with the one character that stands between it and the run before, if it is one.
    let mut runs: Vec<(Option<char>, String)> = Vec::new();
    let (mut between, mut is_open) = (Vec::new(), false);
    for c in text.chars() {
        let Some(digit) = digit(c) else {
            is_open = false;
            if between.len() < 2 {
                between.push(c);
            }
            continue;
        };
        match runs.last_mut().filter(|_| is_open) {
            Some((_, run)) => run.push(digit),
            None => {
                runs.push((Some(between.as_slice()).filter(|b| b.len() == 1).map(|b| b[0]), digit.into()))
            }
        }
        between.clear();
        is_open = true;
    }
    let mut numbers = Vec::new();
    let mut rest = runs.as_slice();
    while let Some(((_, first), later)) = rest.split_first() {
        let mark = later.first().and_then(|(mark, _)| *mark).filter(|mark| GROUPING.contains(mark));
        let same = later.iter().take_while(|(between, _)| mark.is_some() && *between == mark).count();
        let groups = &later[..same];
        // Numbers in a list, as in `12345,67890`, are not of three digits each.
        let is_one = first.len() <= 3 && groups.iter().all(|(_, run)| run.len() == 3);
        let taken = if is_one { same } else { 0 };
        numbers.push(groups[..taken].iter().fold(first.clone(), |number, (_, run)| number + run));
        rest = &later[taken..];
    }
    numbers
}

/// What stands between thousands: comma, apostrophes, underscore, and the spaces that do not break.
const GROUPING: [char; 7] = [',', '\'', '\u{2019}', '_', '\u{a0}', '\u{202f}', '\u{2009}'];

/// A digit of ASCII or of full width (U+FF10 to U+FF19), as one of ASCII.
fn digit(c: char) -> Option<char> {
    match c {
        '0'..='9' => Some(c),
        '\u{ff10}'..='\u{ff19}' => char::from_digit(c as u32 - 0xff10, 10),
        _ => None,
    }
}

/// A number that is told in several places: somebody has it, somebody else has what that one has, and so on. Asked for the
/// last one's number, a reader has to go back through all of them (the variable tracking of RULER, arXiv 2404.06654, in
/// sentences of the kind of [`Fact`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What the number is.
    pub attribute: String,
    /// Whose it is: the first has it, each other one has what the one before has.
    pub names: Vec<String>,
    /// The number.
    pub value: String,
}

impl Chain {
    /// `The secret code of Mara Velten is 48271.`, `The secret code of Otto Finch is with Mara Velten.`, ...
    pub fn sentences(&self) -> Vec<String> {
        let of = |name: &String, is: &str| format!("The {} of {name} is {is}.", self.attribute);
        let links = self.names.windows(2).map(|pair| of(&pair[1], &format!("with {}", pair[0])));
        self.names.first().map(|name| of(name, &self.value)).into_iter().chain(links).collect()
    }

    /// The number as the last one's.
    pub fn fact(&self) -> Fact {
        Fact {
            attribute: self.attribute.clone(),
            name: self.names.last().cloned().unwrap_or_default(),
            value: self.value.clone(),
        }
    }
}

/// Draws facts of which no two share both attribute and name, and no two share a value: so a right answer can be right
/// for one reason only.
#[derive(Debug, Clone)]
pub struct FactSource {
    rng: Rng,
    first_names: Vec<&'static str>,
    last_names: Vec<&'static str>,
    asked: HashSet<(&'static str, String)>,
    values: HashSet<usize>,
}

impl FactSource {
    /// How many facts there are: every attribute of every name.
    pub const CAPACITY: usize = ATTRIBUTES.len() * FIRST_NAMES.len() * LAST_NAMES.len();

    /// A source for `seed`.
    pub fn new(seed: u64) -> Self {
        Self::of(seed, FIRST_NAMES.to_vec(), LAST_NAMES.to_vec())
    }

    /// A source of about `facts` facts that are hard to tell apart: so few first and last names that most facts share
    /// each of them with several others.
    pub fn alike(seed: u64, facts: usize) -> Self {
        // Room for half as many again of one attribute alone, so that none has to be searched for long.
        let names = ((1.5 * facts as f64).sqrt().ceil() as usize + 1).min(FIRST_NAMES.len());
        let mut rng = Rng::stream(seed, 5);
        let mut few = |all: &[&'static str]| {
            let mut rest = all.to_vec();
            (0..names).map(|_| rest.swap_remove(rng.below(rest.len()))).collect::<Vec<_>>()
        };
        let (first, last) = (few(&FIRST_NAMES), few(&LAST_NAMES));
        Self::of(seed, first, last)
    }

    fn of(seed: u64, first_names: Vec<&'static str>, last_names: Vec<&'static str>) -> Self {
        let rng = Rng::stream(seed, 2);
        Self { rng, first_names, last_names, asked: HashSet::new(), values: HashSet::new() }
    }

    /// A chain of `hops` links: `hops + 1` people of any name whom no other fact of the first attribute names. `None` when
    /// there are not enough of them left.
    pub fn next_chain(&mut self, hops: usize) -> Option<Chain> {
        let attribute = ATTRIBUTES[0];
        let taken = self.asked.iter().filter(|(of, _)| *of == attribute).count();
        if taken + hops >= FIRST_NAMES.len() * LAST_NAMES.len() {
            return None;
        }
        let mut name = || loop {
            let name = full_name(&mut self.rng);
            if self.asked.insert((attribute, name.clone())) {
                return name;
            }
        };
        let names = (0..=hops).map(|_| name()).collect();
        Some(Chain { attribute: attribute.to_owned(), names, value: self.value() })
    }

    /// An attribute and a name that were not drawn together yet; there must be one.
    fn person(&mut self) -> (&'static str, String) {
        loop {
            // Half of the facts ask for the first attribute outright, so that most of them differ in the name alone:
            // this is the mixture the built-in model was trained and measured on.
            let attribute = if self.rng.percent(50) { ATTRIBUTES[0] } else { self.rng.pick(&ATTRIBUTES) };
            let name = format!("{} {}", self.rng.pick(&self.first_names), self.rng.pick(&self.last_names));
            if self.asked.insert((attribute, name.clone())) {
                return (attribute, name);
            }
        }
    }

    fn value(&mut self) -> String {
        loop {
            let value = 10_000 + self.rng.below(90_000);
            if self.values.insert(value) {
                return value.to_string();
            }
        }
    }
}

impl Iterator for FactSource {
    type Item = Fact;

    /// The next fact; `None` when every attribute of every name was drawn: after [`FactSource::CAPACITY`] facts, if all
    /// names are in use.
    fn next(&mut self) -> Option<Fact> {
        if self.asked.len() == ATTRIBUTES.len() * self.first_names.len() * self.last_names.len() {
            return None;
        }
        let (attribute, name) = self.person();
        Some(Fact { attribute: attribute.to_owned(), name, value: self.value() })
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
    fn how_a_number_is_written_is_no_part_of_it() {
        for right in [
            "48,271",
            "**48271**",
            "1. The code is 48271.",
            "48\u{202f}271",
            "48'271",
            "\u{ff14}\u{ff18}\u{ff12}\u{ff17}\u{ff11}",
        ] {
            assert!(mara().is_answered_by(right), "{right}");
        }
        assert_eq!(
            numbers("12345,67890; 123,456 and 1,234,567, 48,271,5"),
            ["12345", "67890", "123456", "1234567", "48", "271", "5"]
        );
        assert!(holds("The numbers are 123,456, 700001 and 3.", "123456") && !holds("48,2711", "48271"));
        assert!(numbers("none").is_empty());
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

    #[test]
    fn alike_facts_share_names_and_stay_distinct() {
        let facts: Vec<Fact> = FactSource::alike(3, 40).take(40).collect();
        let keys: HashSet<_> = facts.iter().map(|f| (&f.attribute, &f.name)).collect();
        assert_eq!(keys.len(), 40);
        let part = |f: &Fact, i: usize| f.name.split(' ').nth(i).unwrap().to_owned();
        for i in 0..2 {
            let shared = |f: &&Fact| facts.iter().filter(|g| part(g, i) == part(f, i)).count() > 2;
            assert!(facts.iter().filter(shared).count() > 30, "part {i}");
        }
        assert_eq!(FactSource::alike(3, 2).count(), 4 * 3 * 3);
    }

    #[test]
    fn a_chain_leads_from_the_last_name_to_the_number() {
        let mut source = FactSource::alike(1, 30);
        let facts: Vec<Fact> = source.by_ref().take(20).collect();
        let chain = source.next_chain(2).unwrap();
        let [a, b, c] = &chain.names[..] else { panic!("{chain:?}") };
        let told = [
            format!("The secret code of {a} is {}.", chain.value),
            format!("The secret code of {b} is with {a}."),
            format!("The secret code of {c} is with {b}."),
        ];
        assert_eq!(chain.sentences(), told);
        assert_eq!(chain.fact().question(), format!("What is the secret code of {c}?"));
        assert!(facts.iter().all(|f| f.attribute != "secret code" || !chain.names.contains(&f.name)));
        let all = FIRST_NAMES.len() * LAST_NAMES.len();
        let mut source = FactSource::new(1);
        assert_eq!(source.next_chain(all), None);
        assert_eq!(
            (source.next_chain(all - 1).map(|c| c.names.len()), source.next_chain(0)),
            (Some(all), None)
        );
    }
}
