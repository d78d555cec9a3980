//! Comparing tensors, with what differs and by how much.

use crate::moves;
use crate::probe::NearTie;
use std::collections::BTreeMap;

/// What a comparison found, collected over a case.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Differences beyond the tolerance.
    pub(crate) failures: Vec<String>,
    /// Tolerance of logits in cases that need more than the usual one.
    pub(crate) loose_logits: f32,
    /// Largest difference of logits.
    pub(crate) logits: f32,
    /// Selections found equal.
    pub(crate) selections: usize,
    /// Votes that rounding moved between nearly tied keys.
    pub(crate) moved: usize,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    /// Compares numbers; `what` names them.
    pub(crate) fn numbers(&mut self, what: &str, got: &[f32], want: &[f32], tolerance: f32) -> f32 {
        if got.len() != want.len() {
            self.failures.push(format!("{what}: {} numbers instead of {}", got.len(), want.len()));
            return f32::INFINITY;
        }
        let differs = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::INFINITY } else { (a - b).abs() };
        let worst = got.iter().zip(want).map(|(a, b)| differs(*a, *b)).fold(0.0, f32::max);
        if worst > tolerance {
            self.failures.push(format!("{what}: differs by {worst:.1e}, allowed {tolerance:.0e}"));
        }
        worst
    }

    /// Compares logits and remembers the largest difference.
    pub(crate) fn logits(&mut self, what: &str, got: &[f32], want: &[f32], tolerance: f32) {
        let worst = self.numbers(what, got, want, tolerance.max(self.loose_logits));
        self.logits = self.logits.max(worst);
    }

    /// Compares lists of indices.
    pub(crate) fn lists<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &[T], want: &[T]) {
        if got != want {
            let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
            let (a, b) = (got.get(at), want.get(at));
            self.failures.push(format!(
                "{what}: entry {at} is {a:?} instead of {b:?} ({} of {})",
                got.len(),
                want.len()
            ));
        }
    }

    /// Compares votes by key; each query and head may have given a vote to the other key of a near tie.
    pub(crate) fn votes(&mut self, what: &str, got: &Votes, want: &Votes, ties: &[NearTie]) {
        let mut missing: BTreeMap<usize, i64> = want.clone();
        for (key, votes) in got {
            *missing.entry(*key).or_default() -= votes;
        }
        self.moved += moves::settle(&mut missing, ties);
        if let Some((key, votes)) = missing.iter().find(|m| *m.1 != 0) {
            self.failures.push(format!("{what}: key {key} has {votes} votes too few"));
        }
    }
}

/// Votes by token.
pub(crate) type Votes = BTreeMap<usize, i64>;
