//! One text and what is asked of it.

use super::{Options, Task};
use crate::EvalError;
use crate::text::{DocumentPlan, Fact, FactSource, TextError};
use reattention_engine::{Engine, Prompt, PromptError, Source};

/// Questions of a dialogue under [`Task::MultiNeedle`].
pub const TOGETHER: usize = 5;

/// What a model with a chat template is told before it is asked for the end of a chain.
const FOLLOW: &str = "In the text, a number is sometimes said to be with another person: then it is that person's number, \
                      who may again refer to somebody else. Follow such references to their end and give the number.";

/// One text, read once, and the dialogues held about it, each from the end of the text.
pub(super) struct Sample {
    pub(super) seed: u64,
    pub(super) context: Prompt,
    pub(super) dialogues: Vec<Dialogue>,
}

/// Questions asked one after the other in one session.
pub(super) struct Dialogue {
    pub(super) task: Task,
    pub(super) questions: Vec<Question>,
}

/// A question, with the beginning of its answer.
pub(super) struct Question {
    pub(super) fact: Fact,
    /// Depth in per cent.
    pub(super) depth: Option<f64>,
    pub(super) prompt: Prompt,
}

impl Sample {
    pub(super) fn new(
        engine: &Engine,
        options: &Options,
        length: usize,
        seed: u64,
    ) -> Result<Self, EvalError> {
        let asks = |task| options.tasks.contains(&task);
        let facts = if asks(Task::NearDuplicates) || asks(Task::MultiNeedle) { options.facts } else { 0 };
        let chains = if asks(Task::MultiHop) { options.chains } else { 0 };
        let people = facts.saturating_add(chains.saturating_mul(options.hops.saturating_add(1)));
        let too_many = || TextError::TooManyFacts { facts: people };
        if people > FactSource::CAPACITY {
            return Err(too_many().into());
        }
        let mut source = FactSource::alike(seed, facts);
        let facts: Vec<Fact> = source.by_ref().take(facts).collect();
        let chains = (0..chains)
            .map(|_| source.next_chain(options.hops).ok_or_else(too_many))
            .collect::<Result<Vec<_>, _>>()?;

        let mut told: Vec<(f64, String)> =
            facts.iter().enumerate().map(|(i, fact)| (depth(i, facts.len()), fact.sentence())).collect();
        for (c, chain) in chains.iter().enumerate() {
            let sentences = chain.sentences();
            // Each chain reaches through the whole text, its number first, and no two links stand side by side.
            let place =
                |i: usize| (i as f64 + (c as f64 + 0.5) / chains.len() as f64) / sentences.len() as f64;
            told.extend(sentences.iter().enumerate().map(|(i, sentence)| (place(i), sentence.clone())));
        }
        // A tokenizer that fails on plain English fails on the prompt too, with its own message.
        let count = |text: &str| engine.tokenizer().encode_text(text).map_or(0, |e| e.ids.len());
        let text = DocumentPlan::new(seed, length).sentences(told).build(count)?.text;
        let context = engine.context(&[Source { name: "text".into(), text }])?;

        let single = |task, question| Dialogue { task, questions: vec![question] };
        let of_fact = |i: usize| question(engine, &facts[i], Some(100.0 * depth(i, facts.len())), None);
        let mut dialogues = Vec::new();
        if asks(Task::NearDuplicates) {
            for i in 0..facts.len() {
                dialogues.push(single(Task::NearDuplicates, of_fact(i)?));
            }
        }
        if asks(Task::MultiNeedle) {
            // The facts of one dialogue are spread over the text.
            let apart = facts.len().div_ceil(TOGETHER);
            for first in 0..apart {
                let questions = (first..facts.len()).step_by(apart).map(of_fact).collect::<Result<_, _>>()?;
                dialogues.push(Dialogue { task: Task::MultiNeedle, questions });
            }
        }
        for chain in &chains {
            dialogues.push(single(Task::MultiHop, question(engine, &chain.fact(), None, Some(FOLLOW))?));
        }
        Ok(Self { seed, context, dialogues })
    }
}

/// Depth of the `i`-th of `n` facts, from 0 to 1.
fn depth(i: usize, n: usize) -> f64 {
    if n < 2 { 0.5 } else { i as f64 / (n - 1) as f64 }
}

/// The question in the model's own form, and the answer up to its number.
fn question(
    engine: &Engine,
    fact: &Fact,
    depth: Option<f64>,
    hint: Option<&str>,
) -> Result<Question, PromptError> {
    let text = match hint.filter(|_| engine.has_template()) {
        Some(hint) => format!("{hint} {}", fact.question()),
        None => fact.question(),
    };
    let mut prompt = engine.question(&text)?;
    // A template ends where the answer's first word stands; without one, a space comes before it.
    let space = if engine.has_template() { "" } else { " " };
    let begun = format!("{space}The {} of {} is", fact.attribute, fact.name);
    let ids = engine.tokenizer().encode_text(&begun)?.ids;
    prompt.origins.resize(prompt.ids.len() + ids.len(), None);
    prompt.ids.extend(ids);
    Ok(Question { fact: fact.clone(), depth, prompt })
}
