//! From logits to a token: greedy, or drawn with temperature, top-k, top-p, min-p and repetition penalty.

use crate::draws::Draws;

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
    /// The tokens that count as seen, each once, and which they are by id; kept only where they are penalised.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence, which has seen no token.
    ///
    /// # Errors
    /// Names the first parameter out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let draws = Draws::new(sampling.seed);
        Ok(Self { sampling, draws, seen: Vec::new(), is_seen: Vec::new() })
    }

    /// Counts tokens among those seen.
    pub fn see(&mut self, tokens: &[u32]) {
        if self.sampling.repetition_penalty == 1.0 {
            return;
        }
        for &token in tokens {
            let at = token as usize;
            if self.is_seen.len() <= at {
                self.is_seen.resize(at + 1, false);
            }
            if !std::mem::replace(&mut self.is_seen[at], true) {
                self.seen.push(token);
            }
        }
    }

    /// The next token for `logits: [vocab_size]`, of which there is at least one.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return self.choose(logits);
        }
        let mut logits = logits.to_vec();
        for &token in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        self.choose(&logits)
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let s = &self.sampling;
        let first = argmax(logits);
        if s.temperature == 0.0 {
            return first;
        }
        let best = logits[first as usize];
        let weight = |token: u32| f64::from((logits[token as usize] - best) / s.temperature).exp();
        let mut ranked = Ranked::new(logits);
        if s.top_k > 0 {
            ranked.keep(s.top_k);
        }
        if s.min_p > 0.0 {
            // The most likely token weighs 1.
            ranked.tokens.retain(|&token| token == first || weight(token) >= f64::from(s.min_p));
        }
        let total: f64 = ranked.tokens.iter().map(|&token| weight(token)).sum();
        let (mut kept, mut most) = (total, ranked.tokens.len());
        if s.top_p < 1.0 {
            let enough = total * f64::from(s.top_p);
            (kept, most) = (0.0, 0);
            while most < ranked.tokens.len() && kept < enough {
                kept += weight(ranked.at(most));
                most += 1;
            }
        }
        let mut draw = self.draws.uniform() * kept;
        for rank in 0..most {
            draw -= weight(ranked.at(rank));
            if draw < 0.0 {
                return ranked.at(rank);
            }
        }
        ranked.at(most.max(1) - 1)
    }
}

/// Tokens by falling logit (ties to the lower id), put in order only as far as they are looked at: of a vocabulary of 150,000 a
/// draw looks at a few.
struct Ranked<'a> {
    logits: &'a [f32],
    tokens: Vec<u32>,
    /// How many of them stand in order.
    sorted: usize,
}

impl<'a> Ranked<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Self { logits, tokens: (0..logits.len() as u32).collect(), sorted: 0 }
    }

    /// Keeps the first `n`, in order.
    fn keep(&mut self, n: usize) {
        if n < self.tokens.len() {
            self.sort(n);
            self.tokens.truncate(n);
        }
    }

    /// The token of rank `rank`, from 0.
    fn at(&mut self, rank: usize) -> u32 {
        if rank >= self.sorted {
            self.sort((2 * self.sorted).max(rank + 1).max(64));
        }
        self.tokens[rank]
    }

    /// Puts the first `n` in order.
    fn sort(&mut self, n: usize) {
        let by_logit = |a: &u32, b: &u32| {
            let logits = [a, b].map(|token| self.logits[*token as usize]);
            logits[1].total_cmp(&logits[0]).then(a.cmp(b))
        };
        let n = n.min(self.tokens.len());
        let rest = &mut self.tokens[self.sorted..];
        let more = n - self.sorted;
        if more < rest.len() {
            rest.select_nth_unstable_by(more, by_logit);
        }
        rest[..more].sort_unstable_by(by_logit);
        self.sorted = n;
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
    use std::collections::HashSet;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn draws(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..n).map(|_| sampler.sample(&LOGITS)).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::default(), 3), [1, 1, 1]);
    }

    #[test]
    fn repetition_penalty_lowers_what_was_seen() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }).unwrap();
        sampler.see(&[1, 4, 4]);
        sampler.see(&[99, 1]);
        assert_eq!(sampler.sample(&LOGITS), 2);
        sampler.see(&[0]);
        assert_eq!(sampler.sample(&[-1.0, -3.0, -1.5]), 2);
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

    /// The rule in full: everything sorted, cut by top-k, min-p and top-p in this order, and drawn from.
    fn plain(s: &Sampling, draws: &mut Draws, logits: &[f32], seen: &[u32]) -> u32 {
        let mut logits = logits.to_vec();
        for &token in seen.iter().collect::<HashSet<_>>() {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
        }
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        tokens.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        tokens.truncate(if s.top_k > 0 { s.top_k } else { tokens.len() });
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
        let mut draw = draws.uniform() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        tokens[drawn.unwrap_or(weights.len() - 1)]
    }

    #[test]
    fn sorting_only_what_is_looked_at_draws_what_sorting_everything_draws() {
        let mut noise = Draws::new(5);
        for round in 0..400 {
            let vocab = [7, 64, 65, 3000][round % 4];
            let sharp = [0.5, 4.0, 30.0][round % 3];
            // Few distinct values, so that there are ties.
            let logits: Vec<f32> =
                (0..vocab).map(|_| ((noise.uniform() * 64.0).floor() / 64.0 * sharp) as f32).collect();
            let sampling = Sampling {
                temperature: [0.7, 1.0, 3.0][round % 3],
                top_k: [0, 0, 5, 100][round / 2 % 4],
                top_p: [1.0, 0.3, 0.95][round / 3 % 3],
                min_p: [0.0, 0.0, 0.1][round / 5 % 3],
                repetition_penalty: [1.0, 1.3][round / 7 % 2],
                seed: round as u64,
            };
            let mut sampler = Sampler::new(sampling.clone()).unwrap();
            let (mut draws, mut seen) = (Draws::new(sampling.seed), Vec::new());
            for _ in 0..20 {
                let token = sampler.sample(&logits);
                assert_eq!(token, plain(&sampling, &mut draws, &logits, &seen), "{sampling:?}");
                sampler.see(&[token]);
                seen.push(token);
            }
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..Sampling::default() }.validate().unwrap_err();
        assert_eq!(bad.to_string(), "top_p is 0; it must be above 0 and at most 1");
        let bad = Sampling { temperature: f32::NAN, ..Sampling::default() };
        assert!(bad.validate().is_err() && Sampler::new(bad).is_err());
    }
}
