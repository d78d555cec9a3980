//! From logits to a token: greedy, or drawn with temperature, top-k, top-p, min-p and repetition penalty.

use crate::draws::Draws;
use std::collections::HashSet;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// Logits of tokens already seen are divided (if positive) or multiplied (if negative) by it; 1 for none.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A sampling parameter out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}; it must be {expected}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    expected: &'static str,
}

impl Sampling {
    /// Checks every number.
    ///
    /// # Errors
    /// Names the first parameter out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |name, value: f32, ok: bool, expected| {
            if ok { Ok(()) } else { Err(SamplingError { name, value, expected }) }
        };
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "at least 0")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "above 0")
    }
}

/// Draws tokens one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    draws: Draws,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(sampling: Sampling) -> Self {
        let draws = Draws::new(sampling.seed);
        Self { sampling, draws }
    }

    /// The next token for `logits: [vocab_size]`, after `seen`.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> u32 {
        let s = &self.sampling;
        let mut logits = logits.to_vec();
        if s.repetition_penalty != 1.0 {
            for &token in seen.iter().collect::<HashSet<_>>() {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / s.repetition_penalty
                    } else {
                        *logit * s.repetition_penalty
                    };
                }
            }
        }
        if s.temperature == 0.0 {
            return argmax(&logits);
        }
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if s.top_k > 0 && s.top_k < tokens.len() {
            tokens.select_nth_unstable_by(s.top_k - 1, by_logit);
            tokens.truncate(s.top_k);
        }
        tokens.sort_unstable_by(by_logit);
        let best = logits[tokens[0] as usize];
        let weight = |t: &u32| f64::from((logits[*t as usize] - best) / s.temperature).exp();
        let mut weights: Vec<f64> = tokens.iter().map(weight).collect();
        weights.truncate(weights.iter().take_while(|w| **w >= f64::from(s.min_p)).count().max(1));
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let enough = weights.iter().position(|w| {
            reached += w / total;
            reached >= f64::from(s.top_p)
        });
        weights.truncate(enough.map_or(weights.len(), |i| i + 1));
        let mut draw = self.draws.uniform() * weights.iter().sum::<f64>();
        for (token, weight) in tokens.iter().zip(&weights) {
            draw -= weight;
            if draw < 0.0 {
                return *token;
            }
        }
        tokens[weights.len() - 1]
    }
}

/// The token with the largest logit; ties go to the lower id.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn draws(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..n).map(|_| sampler.sample(&LOGITS, &[])).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::default(), 3), [1, 1, 1]);
    }

    #[test]
    fn repetition_penalty_lowers_what_was_seen() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        assert_eq!(sampler.sample(&LOGITS, &[1, 4, 4, 99]), 2);
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0]), 1);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let many = draws(sampling.clone(), 20_000);
        assert_eq!(many[..50], draws(sampling, 50)[..]);
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        for (token, logit) in LOGITS.iter().enumerate() {
            let share = many.iter().filter(|t| **t == token as u32).count() as f32 / many.len() as f32;
            assert!((share - logit.exp() / total).abs() < 0.02, "token {token} has share {share}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let base = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
        let kinds = |s: Sampling| draws(s, 3000).into_iter().collect::<HashSet<_>>();
        assert_eq!(kinds(Sampling { top_k: 2, ..base.clone() }), [1, 4].into());
        assert_eq!(kinds(Sampling { top_k: 3, ..base.clone() }), [1, 2, 4].into());
        assert_eq!(kinds(Sampling { top_p: 0.39, ..base.clone() }), [1].into());
        assert_eq!(kinds(Sampling { top_p: 0.5, ..base.clone() }), [1, 4].into());
        assert_eq!(kinds(Sampling { min_p: 0.3, ..base }), [1, 2, 4].into());
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..Sampling::default() }.validate().unwrap_err();
        assert_eq!(bad.to_string(), "top_p is 0; it must be above 0 and at most 1");
        assert!(Sampling { temperature: f32::NAN, ..Sampling::default() }.validate().is_err());
    }
}
