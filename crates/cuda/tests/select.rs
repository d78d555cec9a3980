//! From votes to spans, against a plain copy of the rule.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use common::Rng;
use cuda_emulator::{emulator, facts};
use reattention_cuda::driver::{Block, Driver};
use reattention_cuda::testing::select::{Choice, Tallies, select};
use reattention_cuda::testing::top_k::Found;
use reattention_kernels::{ListedRequest, VoteRule};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const NONE: u32 = ListedRequest::NONE;

fn driver(seed: u64) -> Option<Arc<dyn Driver>> {
    let emulator = emulator(facts())?;
    Some(Arc::new(emulator.with_seed(seed)))
}

/// The best keys of rows of `k`, best first.
struct Best {
    k: usize,
    tokens: Vec<u32>,
    scores: Vec<f32>,
}

impl Best {
    /// `rows` of distinct tokens of `middle`, which come more often the lower they are, with scores drawn by `score`.
    fn random(
        rng: &mut Rng,
        rows: usize,
        k: usize,
        middle: &Range<usize>,
        mut score: impl FnMut(&mut Rng) -> f32,
    ) -> Self {
        let (mut tokens, mut scores) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let from = tokens.len();
            while tokens.len() < from + k {
                let reach = rng.int(1, middle.len());
                let token = (middle.start + rng.int(0, reach - 1)) as u32;
                if !tokens[from..].contains(&token) {
                    tokens.push(token);
                }
            }
            let mut of_row: Vec<f32> = (0..k).map(|_| score(rng)).collect();
            of_row.sort_by(|a, b| b.total_cmp(a));
            scores.extend(of_row);
        }
        Self { k, tokens, scores }
    }

    /// Some rows have found fewer keys.
    fn with_gaps(mut self, rng: &mut Rng) -> Self {
        for row in 0..self.tokens.len() / self.k {
            let found = if rng.int(0, 2) == 0 { rng.int(0, self.k) } else { self.k };
            for slot in row * self.k + found..(row + 1) * self.k {
                (self.tokens[slot], self.scores[slot]) = (NONE, f32::NEG_INFINITY);
            }
        }
        self
    }

    fn on_device(&self, driver: &Arc<dyn Driver>) -> Found {
        Found {
            indices: Block::of(driver, &self.tokens).unwrap(),
            scores: Block::of(driver, &self.scores).unwrap(),
            q_len: self.tokens.len() / self.k,
            n_heads: 1,
            k: self.k,
        }
    }

    /// The rule as it is documented. Weights are counted in steps of 2^-32.
    fn chosen(&self, choice: &Choice) -> Vec<u32> {
        let mut weights: BTreeMap<u32, u64> = BTreeMap::new();
        for (tokens, scores) in self.tokens.chunks(self.k).zip(self.scores.chunks(self.k)) {
            let found = tokens.iter().take_while(|&&t| t != NONE).count();
            let scores = &scores[..found];
            let exp = |score: &f32| ((score - scores[0]) * choice.scale).exp();
            let total: f32 = scores.iter().map(exp).sum();
            for (token, score) in tokens.iter().zip(scores) {
                if !choice.middle.contains(&(*token as usize)) {
                    continue;
                }
                let weight = match choice.vote {
                    VoteRule::Count => 1.0,
                    VoteRule::Margin => (score - scores[found - 1]) * choice.scale,
                    VoteRule::Softmax => exp(score) / total,
                };
                *weights.entry(*token).or_default() += (f64::from(weight) * 2f64.powi(32)) as u64;
            }
        }
        let mut heaviest: Vec<(u32, u64)> = weights.into_iter().collect();
        heaviest.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        heaviest.truncate(choice.clip);
        let mut chosen: Vec<u32> = heaviest
            .iter()
            .flat_map(|(token, _)| i64::from(*token) + choice.before..i64::from(*token) + choice.after)
            .filter(|&t| t >= choice.middle.start as i64 && t < choice.middle.end as i64)
            .map(|t| t as u32)
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

fn choice(vote: VoteRule, clip: usize, span: Range<i64>, middle: Range<usize>) -> Choice {
    Choice { vote, scale: 0.25, clip, before: span.start, after: span.end, middle }
}

/// Selects one after another with the same tallies.
fn check(seed: u64, cases: impl IntoIterator<Item = (Best, Choice)>) {
    let Some(driver) = driver(seed) else { return };
    let mut tallies = Tallies::new(&driver).unwrap();
    let mut most = 0;
    for (best, choice) in cases {
        let selected = select(&driver, &best.on_device(&driver), &choice, &mut tallies).unwrap();
        let (got, want) = (selected.read().unwrap(), best.chosen(&choice));
        assert!(got.len() <= selected.capacity && selected.tokens.bytes() == 4 * selected.capacity);
        assert_eq!(got.len(), want.len(), "{choice:?}");
        assert!(got == want, "{choice:?}");
        most = most.max(want.len());
        assert_eq!(tallies.most().unwrap(), most);
    }
}

#[test]
fn votes_are_counted() {
    let mut rng = Rng(1);
    let cases = (0..30).map(|round| {
        let start = rng.int(0, 100);
        let middle = start..start + rng.int(8, 3000);
        let best = {
            let (rows, k) = (rng.int(1, 200), rng.int(1, 6));
            Best::random(&mut rng, rows, k, &middle, |rng| rng.small()).with_gaps(&mut rng)
        };
        let half = rng.int(0, 20) as i64;
        (
            best,
            choice(
                VoteRule::Count,
                rng.int(1, 150),
                -half..half + rng.int(0, 2) as i64,
                middle.start..middle.end + round % 2,
            ),
        )
    });
    check(1, cases.collect::<Vec<_>>());
}

#[test]
fn margins_are_weighed() {
    let mut rng = Rng(2);
    for seed in 0..4 {
        let middle = 16..16 + rng.int(100, 5000);
        let best = Best::random(&mut rng, 100, 4, &middle, |rng| rng.normal() * 10.0).with_gaps(&mut rng);
        let small = Best::random(&mut rng, 100, 4, &middle, |rng| rng.small());
        let of = |clip| choice(VoteRule::Margin, clip, -16..16, middle.clone());
        check(seed, [(best, of(40)), (small, of(50))]);
    }
}

#[test]
fn shares_are_weighed() {
    let mut rng = Rng(3);
    for seed in 0..4 {
        let middle = 16..16 + rng.int(100, 5000);
        let best = Best::random(&mut rng, 100, 4, &middle, |rng| rng.normal() * 10.0).with_gaps(&mut rng);
        check(seed, [(best, choice(VoteRule::Softmax, 40, -16..16, middle))]);
    }
}

#[test]
fn many_votes_and_long_middles_take_many_blocks() {
    let mut rng = Rng(4);
    for seed in 0..3 {
        let (many, long) = (5..9000, 100..400_000);
        let counted = Best::random(&mut rng, 2000, 4, &many, |rng| rng.small()).with_gaps(&mut rng);
        let far = Best::random(&mut rng, 50, 4, &long, |rng| rng.normal());
        let weighed = Best::random(&mut rng, 2000, 4, &many, |rng| rng.normal() * 10.0);
        check(
            seed,
            [
                (counted, choice(VoteRule::Count, 127, -16..16, many.clone())),
                (far, choice(VoteRule::Margin, 100, -16..16, long)),
                (weighed, choice(VoteRule::Margin, 500, -3..4, many)),
            ],
        );
    }
}

#[test]
fn a_span_of_one_and_no_clip_list_what_was_voted_for() {
    let best = |tokens: &[u32]| Best { k: 1, tokens: tokens.into(), scores: vec![1.0; tokens.len()] };
    let one = |tokens: &[u32], clip, span: Range<i64>| {
        let best = best(tokens);
        let choice = choice(VoteRule::Count, clip, span, 10..20);
        let want = best.chosen(&choice);
        check(7, [(best, choice)]);
        want
    };
    assert_eq!(one(&[15, 12, 15], usize::MAX, 0..1), [12, 15]);
    assert_eq!(one(&[10, 12, 19], usize::MAX, -3..3), [10, 11, 12, 13, 14, 16, 17, 18, 19]);
    assert_eq!(one(&[15], 1, -3..3), [12, 13, 14, 15, 16, 17]);
    // All are tied: the lower tokens stay.
    assert_eq!(one(&[19, 11, 17, 13], 2, 0..1), [11, 13]);
    // Votes for what is not in the middle do not count; spans reach over its ends.
    assert_eq!(one(&[3, 9, 20, 4000, 14], 2, -100..100), (10..20).collect::<Vec<u32>>());
    assert_eq!(one(&[12, 13], 0, -3..3), [0; 0]);
    assert_eq!(one(&[12, 13], 4, 2..2), [0; 0]);
    assert_eq!(one(&[], 4, -3..3), [0; 0]);
}

#[test]
fn weights_far_apart_and_close_together_are_told_apart() {
    // Margins from 2^-30 to 2^20, some of which differ in the last bit; the second key of each row weighs nothing.
    let mut rng = Rng(8);
    for vote in [VoteRule::Margin, VoteRule::Softmax] {
        let (mut tokens, mut scores) = (Vec::new(), Vec::new());
        for token in 0..300u32 {
            let power = (rng.int(0, 50) as f32 - 30.0).exp2();
            let score =
                if token % 3 == 0 { power } else { power * (1.0 + f32::EPSILON * (token % 3) as f32) };
            tokens.extend([token, 1000 + token]);
            scores.extend([score, 0.0]);
        }
        let best = Best { k: 2, tokens, scores };
        for clip in [1, 17, 299, 300, 301, 599, 600, 601] {
            let best = Best { k: 2, tokens: best.tokens.clone(), scores: best.scores.clone() };
            check(clip as u64, [(best, Choice { scale: 1.0, ..choice(vote, clip, 0..1, 0..2000) })]);
        }
    }
}
