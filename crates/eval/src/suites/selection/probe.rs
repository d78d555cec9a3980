//! One question under one arm: what it answered, predicted, voted for and looked at, and how that compares.

use crate::EvalError;
use reattention::LayerTrace;
use reattention::methods::StepKind;
use reattention_engine::{Cancel, Prompt, Session, SessionError, argmax};
use reattention_kernels::{KeySet, Segment};
use reattention_model::{Logits, Tokenizer};
use serde::Serialize;

/// How tokens of an answer are fed.
pub(super) const DECODE: StepKind = StepKind::Decode;

/// What ends an answer.
pub(super) struct Limits<'a> {
    pub(super) tokens: usize,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) stop_strings: Vec<String>,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) cancel: &'a Cancel,
}

/// What an arm did with a question.
pub(super) struct Observation {
    /// Its own greedy answer, without a stop token.
    pub(super) own: Vec<u32>,
    /// The answer that stays in the context: the base's.
    script: Script,
    /// Prediction of each token of the script and of what follows it.
    logits: Vec<Vec<f32>>,
    /// Every layer of every step of question and script.
    trace: Vec<LayerTrace>,
}

/// An answer to follow.
#[derive(Clone)]
struct Script {
    tokens: Vec<u32>,
    /// The stop token it ended with, if it did.
    end: Option<u32>,
}

/// What is kept of the base's observation.
pub(super) struct Given {
    script: Script,
    logits: Vec<Vec<f32>>,
    looks: Vec<Look>,
}

/// What one layer of one step of the base voted for and looked at.
struct Look {
    layer: usize,
    /// The step's last token.
    token: usize,
    /// One a list of segments.
    lists: Vec<ListLook>,
}

struct ListLook {
    /// Voted centres and their votes.
    centres: Vec<(u32, u32)>,
    segments: Vec<Segment>,
    /// The tokens of the slots the segments speak of, where they are not the slots' indices.
    slots: Option<Vec<u32>>,
    /// Attention to each key of the segments; empty but for decode steps.
    mass: Vec<f32>,
}

/// What an arm lost against the base on one question; [the suite](super) says what each number is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// KL of the prediction of the answer's first token, in nats.
    pub kl_first: f64,
    /// Mean KL over the answer and what ends it, in nats.
    pub kl_answer: f64,
    /// Share of the answer's predictions whose likeliest token is the base's.
    pub agreement: f64,
    /// Share of the base's votes for centres that the arm's views held; none where the base did not vote.
    pub recall: Option<f64>,
    /// Share of the base's attention on tokens that the arm's views held.
    pub mass: Option<f64>,
    /// The same of the base's attention to what it selected.
    pub mass_selected: Option<f64>,
}

/// Asks `question`, lets the session answer, and then makes the base's answer stand in the context, if there is a base.
pub(super) fn ask(
    session: &mut Session,
    question: &Prompt,
    base: Option<&Given>,
    limits: &Limits,
) -> Result<Observation, EvalError> {
    let answer = session.len() + question.ids.len();
    session.trace(true);
    if base.is_none() {
        session.gather_evidence();
    }
    session.prefill(question, limits.cancel, |_| {})?;
    let (own, mut logits) = answer_greedily(session, limits)?;
    let mut trace = session.trace(true);
    let script = base.map_or_else(|| own.clone(), |base| base.script.clone());
    if own.tokens != script.tokens {
        // The arm's answer gives way to the base's from where they part.
        let same = own.tokens.iter().zip(&script.tokens).take_while(|(a, b)| a == b).count();
        session.truncate(answer + same)?;
        logits.truncate(same + 1);
        trace.retain(|t| t.tokens.end <= answer + same);
        for &token in &script.tokens[same..] {
            logits.push(session.feed_step(&[token], DECODE, &Logits::Last)?);
        }
    }
    trace.extend(session.trace(false));
    if let Some(end) = script.end {
        session.feed_step(&[end], DECODE, &Logits::None)?;
    }
    Ok(Observation { own: own.tokens, script, logits, trace })
}

/// The likeliest token again and again, and the predictions of these and of what follows them.
fn answer_greedily(session: &mut Session, limits: &Limits) -> Result<(Script, Vec<Vec<f32>>), EvalError> {
    let mut logits = vec![session.logits().to_vec()];
    let mut tokens = Vec::new();
    while tokens.len() < limits.tokens {
        if limits.cancel.is_cancelled() {
            let done = session.len();
            return Err(SessionError::Cancelled { done, total: done + limits.tokens - tokens.len() }.into());
        }
        let token = argmax(&logits[tokens.len()]);
        if limits.stop_tokens.contains(&token) {
            return Ok((Script { tokens, end: Some(token) }, logits));
        }
        tokens.push(token);
        logits.push(session.feed_step(&[token], DECODE, &Logits::Last)?);
        let text = limits.tokenizer.decode(&tokens, true)?;
        if limits.stop_strings.iter().any(|stop| text.contains(stop.as_str())) {
            break;
        }
    }
    Ok((Script { tokens, end: None }, logits))
}

impl Given {
    pub(super) fn of(observation: Observation) -> Self {
        let Observation { script, logits, trace, .. } = observation;
        Self { script, logits, looks: trace.into_iter().map(Look::of).collect() }
    }
}

impl Look {
    fn of(trace: LayerTrace) -> Self {
        let LayerTrace { layer, tokens, selections, segments, slots, mut mass, .. } = trace;
        mass.resize(segments.len(), Vec::new());
        let centres = |list: usize| {
            let Some(s) = selections.get(list) else { return Vec::new() };
            let voted = s.candidates.iter().copied().zip(s.votes.iter().copied());
            voted.filter(|(token, _)| s.centres.binary_search(token).is_ok()).collect()
        };
        let centres: Vec<Vec<(u32, u32)>> = (0..segments.len()).map(centres).collect();
        let lists = segments
            .into_iter()
            .zip(mass)
            .zip(centres)
            .enumerate()
            .map(|(list, ((segments, mass), centres))| {
                let slots = slots.get(list).cloned();
                ListLook { centres, segments, slots, mass }
            })
            .collect();
        Self { layer, token: tokens.end - 1, lists }
    }
}

impl Loss {
    /// What `seen` lost against `base`. Both followed the same script.
    pub(super) fn new(base: &Given, seen: &Observation) -> Self {
        let pairs: Vec<(&[f32], &[f32])> =
            base.logits.iter().zip(&seen.logits).map(|(b, s)| (&b[..], &s[..])).collect();
        let kl: Vec<f64> = pairs.iter().map(|(base, arm)| divergence(base, arm)).collect();
        let agree = pairs.iter().filter(|(base, arm)| argmax(base) == argmax(arm)).count();
        let mut held = Held::default();
        for look in &base.looks {
            let trace = seen.trace.iter().find(|t| t.layer == look.layer && t.tokens.contains(&look.token));
            if let Some(trace) = trace {
                held.add(look, trace);
            }
        }
        let n = pairs.len().max(1) as f64;
        Self {
            kl_first: kl.first().copied().unwrap_or(0.0),
            kl_answer: kl.iter().sum::<f64>() / n,
            agreement: agree as f64 / n,
            recall: share(held.votes),
            mass: share(held.mass),
            mass_selected: share(held.selected),
        }
    }
}

/// Of what the base voted for and looked at, in pairs: what the arm's views held as well, and all of it.
#[derive(Default)]
struct Held {
    votes: (f64, f64),
    mass: (f64, f64),
    selected: (f64, f64),
}

impl Held {
    fn add(&mut self, look: &Look, trace: &LayerTrace) {
        let (base, arm) = (look.lists.len(), trace.segments.len());
        for i in 0..base.max(arm) {
            // A list of segments for all heads stands for each of the other side's lists of one head.
            let (list, of_arm) = (&look.lists[i.min(base - 1)], i.min(arm - 1));
            let parts = (base.max(arm) / base) as f64;
            let add = |sums: &mut (f64, f64), token: usize, weight: f64| {
                sums.0 += if trace.holds(of_arm, token) { weight / parts } else { 0.0 };
                sums.1 += weight / parts;
            };
            for &(token, votes) in &list.centres {
                add(&mut self.votes, token as usize, f64::from(votes));
            }
            let keys = list.segments.iter().flat_map(|s| (0..s.keys.len()).map(move |rank| (s, rank)));
            for ((segment, rank), &mass) in keys.zip(&list.mass) {
                let slot = segment.keys.token(rank);
                let token = list.slots.as_ref().map_or(slot, |slots| slots[slot] as usize);
                add(&mut self.mass, token, f64::from(mass));
                if matches!(segment.keys, KeySet::Gathered(_)) {
                    add(&mut self.selected, token, f64::from(mass));
                }
            }
        }
    }
}

/// A part of a whole, if there is any.
fn share((part, whole): (f64, f64)) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// Kullback-Leibler divergence of the distributions of two rows of logits, in nats.
fn divergence(base: &[f32], arm: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|l| f64::from(l - most).exp()).sum();
        f64::from(most) + sum.ln()
    };
    let (of_base, of_arm) = (log_sum(base), log_sum(arm));
    let term = |(b, a): (&f32, &f32)| {
        let (b, a) = (f64::from(*b) - of_base, f64::from(*a) - of_arm);
        b.exp() * (b - a)
    };
    // Rounding alone can take the sum below zero.
    base.iter().zip(arm).map(term).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let (a, b) = ([0.0, 2f32.ln()], [5.0, 5.0]);
        let expected = (1.0 / 3.0) * (2.0f64 / 3.0).ln() + (2.0 / 3.0) * (4.0f64 / 3.0).ln();
        assert!((divergence(&a, &b) - expected).abs() < 1e-6);
        assert_eq!(divergence(&a, &a), 0.0);
        assert!(divergence(&[0.0, -1e4], &[-1e4, 0.0]) > 9000.0);
    }
}
