//! What RULER's tasks are made of: words, the long text, and the documents of the question answering tasks.

use super::super::essays::{Essays, OWN, broken, read};
use super::super::generate::GenerateError;
use crate::text::Rng;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Everything a task may take from.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) lexicon: Lexicon,
    /// The essays, all white space single spaces.
    essay: String,
    /// Where each word of them ends.
    ends: Vec<usize>,
    /// Where they are from.
    pub(super) essay_name: String,
    pub(super) squad: Option<Documents>,
    pub(super) hotpotqa: Option<Documents>,
}

impl Material {
    /// What the user's folder has, and own texts for what it lacks. `tokens` is the longest length asked for.
    pub(super) fn load(data: Option<&Path>, seed: u64, tokens: usize) -> Result<Self, GenerateError> {
        // A token is seldom longer than a word with its space; should the text not suffice, it is repeated as RULER does.
        let essays = Essays::load(data, seed, tokens.saturating_mul(7))?;
        let essay = essays.text().split_whitespace().collect::<Vec<_>>().join(" ");
        let mut ends: Vec<usize> = essay.match_indices(' ').map(|(at, _)| at).collect();
        ends.push(essay.len());
        let file =
            |names: [&str; 2]| data.and_then(|d| names.iter().map(|n| d.join(n)).find(|path| path.is_file()));
        Ok(Self {
            lexicon: Lexicon::load(data)?,
            essay,
            ends,
            essay_name: essays.name,
            squad: file(["dev-v2.0.json", "squad.json"]).map(|f| squad(&f)).transpose()?,
            hotpotqa: file(["hotpot_dev_distractor_v1.json", "hotpotqa.json"])
                .map(|f| hotpotqa(&f))
                .transpose()?,
        })
    }

    /// How much the user's files hold, so that a run is not gone on with other ones. Own prose is of the seed and has no size.
    pub(super) fn sizes(&self) -> serde_json::Value {
        let documents = |d: &Option<Documents>| d.as_ref().map(|d| [d.documents.len(), d.questions.len()]);
        serde_json::json!({
            "essay_words": (self.essay_name != OWN).then_some(self.ends.len()),
            "english_words": self.lexicon.english.as_ref().map(Vec::len),
            "squad": documents(&self.squad),
            "hotpotqa": documents(&self.hotpotqa),
        })
    }

    /// The first `words` words of the essays, which are repeated where they do not suffice.
    pub(super) fn essay(&self, words: usize) -> String {
        let (whole, rest) = (words / self.ends.len(), words % self.ends.len());
        let mut parts = vec![self.essay.as_str(); whole];
        if rest > 0 {
            parts.push(&self.essay[..self.ends[rest - 1]]);
        }
        parts.join(" ")
    }
}

/// Words, and RULER's keys made of them.
#[derive(Debug)]
pub(super) struct Lexicon {
    nouns: Vec<&'static str>,
    adjectives: Vec<&'static str>,
    /// All words once, in alphabetical order.
    words: Vec<&'static str>,
    /// The user's larger list, for texts of more words.
    english: Option<Vec<String>>,
}

impl Lexicon {
    fn load(data: Option<&Path>) -> Result<Self, GenerateError> {
        let file = data.map(|d| d.join("english_words.json")).filter(|f| f.is_file());
        let english = file.map(|f| english_words(&f)).transpose()?;
        let (nouns, adjectives, verbs) = (section("# Nouns"), section("# Adjectives"), section("# Verbs"));
        let words: BTreeSet<&str> = [&nouns[..], &adjectives, &verbs].concat().into_iter().collect();
        Ok(Self { nouns, adjectives, words: words.into_iter().collect(), english })
    }

    /// An adjective and a noun with a hyphen.
    pub(super) fn key(&self, rng: &mut Rng) -> String {
        let adjective = self.adjectives[rng.below(self.adjectives.len())];
        format!("{adjective}-{}", self.nouns[rng.below(self.nouns.len())])
    }

    /// `count` different words: of the list, or, if that has fewer, of the user's larger list, or else compounds of two nouns.
    pub(super) fn words(&self, rng: &mut Rng, count: usize) -> Vec<String> {
        if count <= self.words.len() {
            return rng.sample(self.words.len(), count).into_iter().map(|i| self.words[i].into()).collect();
        }
        if let Some(english) = self.english.as_ref().filter(|e| e.len() >= count) {
            return rng.sample(english.len(), count).into_iter().map(|i| english[i].clone()).collect();
        }
        let n = self.nouns.len();
        let mut seen = BTreeSet::new();
        // Two pairs may read the same (`sun` + `flower` beside a noun `sunflower`), so a few more are drawn than needed.
        let pairs = rng.sample(n * n, count + count / 50 + 100).into_iter();
        let compounds = pairs.map(|i| format!("{}{}", self.nouns[i / n], self.nouns[i % n]));
        compounds.filter(|word| seen.insert(word.clone())).take(count).collect()
    }
}

/// The words of `words.txt` between a heading and the next one.
fn section(heading: &str) -> Vec<&'static str> {
    let lines = include_str!("words.txt").lines().skip_while(|l| *l != heading).skip(1);
    lines.take_while(|l| !l.starts_with('#')).flat_map(str::split_whitespace).collect()
}

/// The values of RULER's `english_words.json`.
fn english_words(file: &Path) -> Result<Vec<String>, GenerateError> {
    const EXPECTED: &str = "RULER's object of numbers and words";
    let words: HashMap<String, String> =
        serde_json::from_str(&read(file, EXPECTED)?).map_err(|e| broken(file, &e.to_string(), EXPECTED))?;
    let words: BTreeSet<String> = words.into_values().collect();
    Ok(words.into_iter().collect())
}

/// Documents and the questions they answer.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// All documents once, in alphabetical order.
    pub(super) documents: Vec<String>,
    /// In the order of the file.
    pub(super) questions: Vec<Asked>,
}

/// A question.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) answers: Vec<String>,
    /// The documents that belong to it: where the answer is, and HotpotQA's own distractors.
    pub(super) gold: Vec<usize>,
    /// Documents on the same subject, which come next.
    pub(super) more: Vec<usize>,
}

impl Documents {
    fn new(texts: impl Iterator<Item = String>) -> Self {
        let texts: BTreeSet<String> = texts.collect();
        Self { documents: texts.into_iter().collect(), questions: Vec::new() }
    }

    /// Numbers of documents by their texts.
    fn numbers<'a>(&self, texts: impl Iterator<Item = &'a String>) -> Vec<usize> {
        texts.filter_map(|t| self.documents.binary_search(t).ok()).collect()
    }
}

/// SQuAD 2.0's questions that have an answer, each with its paragraph.
fn squad(file: &Path) -> Result<Documents, GenerateError> {
    const EXPECTED: &str = "SQuAD 2.0: `data` of `paragraphs` with `context` and `qas`";
    #[derive(serde::Deserialize)]
    struct File {
        data: Vec<Article>,
    }
    #[derive(serde::Deserialize)]
    struct Article {
        paragraphs: Vec<Paragraph>,
    }
    #[derive(serde::Deserialize)]
    struct Paragraph {
        context: String,
        qas: Vec<Qa>,
    }
    #[derive(serde::Deserialize)]
    struct Qa {
        question: String,
        #[serde(default)]
        answers: Vec<Answer>,
        is_impossible: bool,
    }
    #[derive(serde::Deserialize)]
    struct Answer {
        text: String,
    }
    let parsed: File =
        serde_json::from_str(&read(file, EXPECTED)?).map_err(|e| broken(file, &e.to_string(), EXPECTED))?;
    let paragraphs = parsed.data.iter().flat_map(|a| &a.paragraphs);
    let mut all = Documents::new(paragraphs.map(|p| p.context.clone()));
    for article in parsed.data {
        let same = all.numbers(article.paragraphs.iter().map(|p| &p.context));
        for (i, paragraph) in article.paragraphs.into_iter().enumerate() {
            for qa in paragraph.qas.into_iter().filter(|qa| !qa.is_impossible) {
                let answers = qa.answers.into_iter().map(|a| a.text).collect();
                let more = same.iter().copied().filter(|d| *d != same[i]).collect();
                all.questions.push(Asked { question: qa.question, answers, gold: vec![same[i]], more });
            }
        }
    }
    non_empty(file, EXPECTED, all)
}

/// HotpotQA's questions, each with its ten paragraphs.
fn hotpotqa(file: &Path) -> Result<Documents, GenerateError> {
    const EXPECTED: &str =
        "HotpotQA: a list of `question`, `answer` and `context`, pairs of a title and sentences";
    #[derive(serde::Deserialize)]
    struct Row {
        question: String,
        answer: String,
        context: Vec<(String, Vec<String>)>,
    }
    let rows: Vec<Row> =
        serde_json::from_str(&read(file, EXPECTED)?).map_err(|e| broken(file, &e.to_string(), EXPECTED))?;
    let text = |(title, lines): &(String, Vec<String>)| format!("{title}\n{}", lines.concat());
    let mut all = Documents::new(rows.iter().flat_map(|r| &r.context).map(text));
    for row in rows {
        let texts: Vec<String> = row.context.iter().map(text).collect();
        let gold = all.numbers(texts.iter());
        all.questions.push(Asked {
            question: row.question,
            answers: vec![row.answer],
            gold,
            more: Vec::new(),
        });
    }
    non_empty(file, EXPECTED, all)
}

fn non_empty(file: &Path, expected: &str, documents: Documents) -> Result<Documents, GenerateError> {
    match documents.questions.is_empty() {
        true => Err(broken(file, "there is no question with an answer", expected)),
        false => Ok(documents),
    }
}
