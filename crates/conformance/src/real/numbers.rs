//! What a model says after prompts and about a text, beside a float32 run.

use super::prompt_ids;
use crate::Outcome;
use anyhow::ensure;
use reattention::methods::{Step, StepKind, build};
use reattention::{Context, KvDtype, Settings};
use reattention_kernels::Backend;
use reattention_model::{Logits, Model, Scratch, Tokenizer};
use serde::Deserialize;
use std::sync::Arc;

/// Largest difference of a float run's log-probabilities, ill-conditioned prompts included.
const FLOAT: f64 = 1e-3;
/// Largest divergence of a run with activations in 8 bits, on well-conditioned prompts.
const DIVERGENCE: f64 = 0.02;
/// A best token that leads by less may be another one: in float, and with activations in 8 bits.
const MARGINS: [f64; 2] = [0.01, 0.5];
/// Relative difference of the perplexity with activations in 8 bits; in float only rounding is left.
const PERPLEXITY: [f64; 2] = [1e-4, 0.01];
/// Mean difference of a token's log-probability with activations in 8 bits.
const MEAN_DIFFERENCE: f64 = 0.08;
/// Tokens that the reference backend, which is plain and slow, reads of a model's prompts, the shortest first.
const REFERENCE_TOKENS: usize = 80;

/// Prompts with the log-probabilities after them.
#[derive(Debug, Deserialize)]
pub(super) struct Prompts {
    prompts: Vec<Prompt>,
}

#[derive(Debug, Deserialize)]
struct Prompt {
    name: String,
    special: bool,
    text: String,
    ids: Vec<u32>,
    /// The best tokens: id, log-probability in float, that of another engine.
    top: Vec<(u32, f64, f64)>,
    ill_conditioned: bool,
    /// Most likely tokens in float, each following the ones before it.
    greedy: Vec<u32>,
    /// How far each is ahead of the next best.
    greedy_margins: Vec<f64>,
}

/// A text with the log-probabilities of its tokens.
#[derive(Debug, Deserialize)]
pub(super) struct Perplexity {
    text: String,
    ids: Vec<u32>,
    perplexity: f64,
    at: Vec<At>,
}

#[derive(Debug, Deserialize)]
struct At {
    /// The token that is predicted stands behind this one.
    position: usize,
    token: u32,
    logprob: f64,
}

/// Whether a backend multiplies decoded weights by activations as they are.
pub(super) fn is_float(backend: &Arc<dyn Backend>) -> bool {
    backend.name() == "reference"
}

/// A model on a backend.
pub(super) struct Runner<'a> {
    model: &'a Model,
    backend: &'a Arc<dyn Backend>,
    /// 0 for float arithmetic, 1 with activations in 8 bits.
    rounds: usize,
}

impl<'a> Runner<'a> {
    pub(super) fn new(model: &'a Model, backend: &'a Arc<dyn Backend>) -> Self {
        Self { model, backend, rounds: usize::from(!is_float(backend)) }
    }

    /// The tokens of every prompt, the log-probabilities after it, and the tokens that follow.
    pub(super) fn prompts(&self, cases: &Prompts, tokenizer: &Tokenizer) -> anyhow::Result<Outcome> {
        ensure!(!cases.prompts.is_empty(), "prompts.json has no prompts");
        let mut failures = Vec::new();
        for prompt in &cases.prompts {
            if prompt_ids(&prompt.text, prompt.special, &prompt.ids, tokenizer)? != prompt.ids {
                failures.push(format!("{}: other tokens", prompt.name));
            }
        }
        let (mut worst_kl, mut worst_difference) = (0.0f64, 0.0f64);
        let wanted = self.affordable(&cases.prompts);
        for prompt in &wanted {
            let mut reader = Reader::new(self)?;
            let logits = reader.read(&prompt.ids)?;
            let seen = Seen::of(prompt, &logits);
            let name = &prompt.name;
            if self.rounds == 0 {
                worst_difference = worst_difference.max(seen.difference);
                if exceeds(seen.difference, FLOAT) {
                    failures.push(format!("{name}: log-probabilities differ by {:.1e}", seen.difference));
                }
            } else if !prompt.ill_conditioned {
                worst_kl = worst_kl.max(seen.divergence);
                if exceeds(seen.divergence, DIVERGENCE) {
                    failures.push(format!("{name}: KL {:.4}", seen.divergence));
                }
            }
            if self.rounds == 0 || !prompt.ill_conditioned {
                failures.extend(self.greedy(prompt, logits, &mut reader)?);
            }
        }
        if !failures.is_empty() {
            return Ok(Outcome::Failed(failures));
        }
        let measure = match self.rounds {
            0 => format!("max |Δlog p| {worst_difference:.1e}"),
            _ => format!("max KL {worst_kl:.4}"),
        };
        Ok(Outcome::Passed(format!("{} of {} prompts, {measure}", wanted.len(), cases.prompts.len())))
    }

    /// Follows the most likely tokens up to the first that is not clearly ahead.
    fn greedy(
        &self,
        prompt: &Prompt,
        mut logits: Vec<f32>,
        reader: &mut Reader<'_>,
    ) -> anyhow::Result<Option<String>> {
        for (i, (&token, &margin)) in prompt.greedy.iter().zip(&prompt.greedy_margins).enumerate() {
            if margin < MARGINS[self.rounds] {
                return Ok(None);
            }
            let best = best_token(&logits);
            if best != token {
                return Ok(Some(format!("{}: token {i} is {best} instead of {token}", prompt.name)));
            }
            // The reference is slow: a few steps show that decoding does what reading does.
            if self.rounds == 0 && i >= 2 {
                return Ok(None);
            }
            logits = reader.follow(token)?;
        }
        Ok(None)
    }

    /// The prompts there is time for.
    fn affordable<'p>(&self, prompts: &'p [Prompt]) -> Vec<&'p Prompt> {
        let mut wanted: Vec<&Prompt> = prompts.iter().collect();
        if self.rounds == 0 {
            wanted.sort_by_key(|p| p.ids.len());
            let mut tokens = 0;
            let fit = wanted.iter().take_while(|p| {
                tokens += p.ids.len();
                tokens <= REFERENCE_TOKENS
            });
            let fit = fit.count().max(1);
            wanted.truncate(fit);
        }
        wanted
    }

    /// The tokens of a text, and how likely each is.
    pub(super) fn perplexity(&self, case: &Perplexity, tokenizer: &Tokenizer) -> anyhow::Result<Outcome> {
        ensure!(case.ids.len() > 1 && !case.at.is_empty(), "perplexity.json has nothing to predict");
        if self.rounds == 0 {
            return Ok(Outcome::Skipped("plain arithmetic is too slow for 2,000 tokens".into()));
        }
        let mut failures = Vec::new();
        if !prompt_ids(&case.text, false, &case.ids, tokenizer)?.starts_with(&case.ids) {
            failures.push("the text has other tokens".into());
        }
        let losses = Reader::new(self)?.losses(&case.ids)?;
        let perplexity = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
        let relative = (perplexity / case.perplexity - 1.0).abs();
        if exceeds(relative, PERPLEXITY[self.rounds]) {
            failures.push(format!("perplexity {perplexity:.4} instead of {:.4}", case.perplexity));
        }
        let mut difference = 0.0;
        for at in &case.at {
            ensure!(
                case.ids.get(at.position + 1) == Some(&at.token),
                "no token {} at {}",
                at.token,
                at.position
            );
            difference += (losses[at.position] + at.logprob).abs() / case.at.len() as f64;
        }
        if exceeds(difference, MEAN_DIFFERENCE) {
            failures.push(format!("log-probabilities differ by {difference:.3} on average"));
        }
        Ok(match failures.is_empty() {
            true => Outcome::Passed(format!(
                "perplexity {perplexity:.4}, {:.2} % off; mean |Δlog p| {difference:.3}",
                100.0 * relative
            )),
            false => Outcome::Failed(failures),
        })
    }
}

/// The index of the largest number; the first of equals.
fn best_token(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Log-probabilities beside the expected ones.
struct Seen {
    /// Largest difference among the best tokens.
    difference: f64,
    /// Kullback-Leibler divergence from the float run, all other tokens taken as one, which makes it no larger.
    divergence: f64,
}

impl Seen {
    fn of(prompt: &Prompt, logits: &[f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
        let log_sum = f64::from(largest) + sum.ln();
        let got: Vec<f64> = prompt
            .top
            .iter()
            .map(|(id, ..)| logits.get(*id as usize).map_or(f64::NAN, |l| f64::from(*l) - log_sum))
            .collect();
        let want: Vec<f64> = prompt.top.iter().map(|t| t.1).collect();
        Self::between(&want, &got)
    }

    fn between(want: &[f64], got: &[f64]) -> Self {
        let pairs = || want.iter().zip(got);
        let rest = |list: &[f64]| (1.0 - list.iter().map(|l| l.exp()).sum::<f64>()).max(1e-9);
        let of_rest = rest(want) * (rest(want) / rest(got)).ln();
        Self {
            // A number that is none is no small difference.
            difference: pairs()
                .map(|(a, b)| (a - b).abs())
                .fold(0.0f64, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
            divergence: pairs().map(|(a, b)| a.exp() * (a - b)).sum::<f64>() + of_rest,
        }
    }
}

/// Reads tokens under full attention, with keys and values as they are.
struct Reader<'a> {
    model: &'a Model,
    context: Context,
    scratch: Scratch,
    read: usize,
}

impl<'a> Reader<'a> {
    fn new(runner: &Runner<'a>) -> anyhow::Result<Self> {
        let shape = runner.model.shape();
        let method = build("full", &Settings::new(), shape)?;
        let context = Context::new(shape, method, None, KvDtype::F32, Arc::clone(runner.backend));
        Ok(Self { model: runner.model, context, scratch: Scratch::default(), read: 0 })
    }

    /// Reads a prompt; the logits behind it.
    fn read(&mut self, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
        let mut logits = Vec::new();
        for step in self.context.schedule(0..ids.len(), None) {
            logits = self.feed(&ids[step.tokens.clone()], &step, &Logits::Last)?;
        }
        Ok(logits)
    }

    /// Reads one more token.
    fn follow(&mut self, token: u32) -> anyhow::Result<Vec<f32>> {
        let step = Step { tokens: self.read..self.read + 1, kind: StepKind::Decode };
        self.feed(&[token], &step, &Logits::Last)
    }

    /// Minus the log-probability of each token but the first.
    fn losses(&mut self, ids: &[u32]) -> anyhow::Result<Vec<f64>> {
        let mut losses = Vec::with_capacity(ids.len());
        for step in self.context.schedule(0..ids.len(), Some(ids.len())) {
            let next = step.tokens.start + 1..(step.tokens.end + 1).min(ids.len());
            let want = Logits::Loss(ids[next].to_vec());
            losses.extend(self.feed(&ids[step.tokens.clone()], &step, &want)?.into_iter().map(f64::from));
        }
        Ok(losses)
    }

    fn feed(&mut self, tokens: &[u32], step: &Step, want: &Logits) -> anyhow::Result<Vec<f32>> {
        let out = self.model.forward(tokens, step, &mut self.context, &mut self.scratch, want, None)?;
        self.read = step.tokens.end;
        Ok(out)
    }
}

/// Whether a difference is more than its limit, or no number.
fn exceeds(difference: f64, limit: f64) -> bool {
    difference.is_nan() || difference > limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_distributions() {
        let same = [0.5f64.ln(), 0.25f64.ln()];
        let seen = Seen::between(&same, &same);
        assert!(seen.difference == 0.0 && seen.divergence.abs() < 1e-12);
        // Of (1/2, 1/4, 1/4) from (1/4, 1/2, 1/4): 1/2 ln 2 - 1/4 ln 2.
        let seen = Seen::between(&same, &[0.25f64.ln(), 0.5f64.ln()]);
        assert!(
            (seen.divergence - 0.25 * 2f64.ln()).abs() < 1e-9 && (seen.difference - 2f64.ln()).abs() < 1e-9
        );
        assert!(Seen::between(&same, &[f64::NAN, 0.0]).difference.is_nan());
    }
}
