//! Random views for the tests of attention.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::common::{AnyStore, Rng, key_set};
use cuda_emulator::{emulator, facts};
use reattention_cuda::driver::Driver;
use reattention_kernels::{Band, KeySet, Position, Queries, RopeTable, Segment};
use std::sync::Arc;

/// A device whose threads run in the order of `seed`; `None`, and a line, where there is no compiler for it.
pub(crate) fn device(seed: u64) -> Option<Arc<dyn Driver>> {
    let emulator = emulator(facts())?;
    Some(Arc::new(emulator.with_seed(seed)))
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Keys and values in bf16, else in f32.
    pub(crate) half: bool,
    pub(crate) head_dim: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) q_len: usize,
    pub(crate) len: usize,
    pub(crate) first: usize,
}

impl Shape {
    pub(crate) fn elements(&self) -> usize {
        self.q_len * self.n_kv_heads * self.group * self.head_dim
    }

    pub(crate) fn queries<'a>(&self, data: &'a [f32]) -> Queries<'a> {
        let Self { head_dim, q_len, first, .. } = *self;
        Queries { data, n_heads: self.n_kv_heads * self.group, q_len, head_dim, first }
    }

    pub(crate) fn store(&self, rng: &mut Rng) -> AnyStore {
        AnyStore::new(self.half, self.len, self.n_kv_heads, self.head_dim, || rng.normal())
    }
}

pub(crate) fn rope(head_dim: usize, base: f32, multiplier: f32) -> Arc<RopeTable> {
    let pairs = head_dim / 2;
    let inv_freq = (0..pairs).map(|i| base.powf(-(i as f32) / pairs as f32)).collect();
    Arc::new(RopeTable::new(inv_freq, multiplier, 4096))
}

pub(crate) fn part(
    keys: KeySet,
    band: Band,
    key_position: Position,
    query_position: Position,
    rope: &Arc<RopeTable>,
) -> Segment {
    Segment { keys, band, key_position, query_position, key_rope: rope.clone(), query_rope: rope.clone() }
}

/// Any: positions beyond the tables and below zero too.
fn position(rng: &mut Rng) -> Position {
    match rng.int(0, 6) {
        0 => Position::Index { offset: rng.int(0, 40) as i64 - 20 },
        1 => Position::Capped { max: rng.int(1, 400) as i64 },
        2 => Position::Rank { offset: rng.int(0, 300) as i64 - 3 },
        3 => Position::Constant(rng.int(0, 5000) as i64),
        4 => Position::Grouped { width: rng.int(1, 9), offset: rng.int(0, 90) as i64 },
        5 => Position::Modulo {
            modulus: rng.int(1, 90),
            offset: rng.int(0, 90) as i64,
            max: rng.int(0, 120) as i64,
        },
        _ => Position::Stair { border: rng.int(0, 700), width: rng.int(1, 50) },
    }
}

pub(crate) fn segment(rng: &mut Rng, len: usize, ropes: &[Arc<RopeTable>]) -> Segment {
    let band = match rng.int(0, 3) {
        0 => Band::between(rng.int(0, 100), rng.int(0, 400)),
        1 => Band::between(rng.int(0, 300), usize::MAX),
        2 => Band { min: rng.int(0, 3), max: rng.int(0, 5), unit: rng.int(1, 130) },
        _ => Band::CAUSAL,
    };
    Segment {
        keys: key_set(rng, len),
        band,
        key_position: position(rng),
        query_position: position(rng),
        key_rope: ropes[rng.int(0, ropes.len() - 1)].clone(),
        query_rope: ropes[rng.int(0, ropes.len() - 1)].clone(),
    }
}

/// Fails unless every pair differs by at most `tolerance` times the largest number expected.
pub(crate) fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    within(got, want, tolerance, 0.0, what);
}

/// The same for logarithms, for which one is not small.
pub(crate) fn assert_logs_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    within(got, want, tolerance, 1.0, what);
}

fn within(got: &[f32], want: &[f32], tolerance: f32, least: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let largest = want.iter().filter(|w| w.is_finite()).fold(least, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g == w || (g - w).abs() <= tolerance * largest,
            "{what}: element {i} is {g}, expected {w} (of {largest})"
        );
    }
}
