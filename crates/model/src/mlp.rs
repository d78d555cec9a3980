//! The MLP of a layer on the host: one for all tokens, or a mixture of experts whose tokens are grouped by expert.

use crate::weights::{GatedMlp, Mlp, SparseMlp};
use crate::{Config, Experts};
use reattention_kernels::profile::Part;
use reattention_kernels::{Activation, Backend};

/// Memory that MLPs work in.
#[derive(Debug, Default)]
pub(crate) struct MlpScratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    scores: Vec<f32>,
    /// Rows of one expert, and what it makes of them.
    gathered: Vec<f32>,
    made: Vec<f32>,
}

impl MlpScratch {
    /// Bytes taken for steps of at most `tokens` tokens: in the worst case all go to one expert.
    pub(crate) fn planned_bytes(config: &Config, tokens: usize) -> usize {
        let of_experts = |e: &Experts| {
            // Which expert a token goes to, and with what weight, stands beside its row.
            e.count + 2 * config.hidden + e.per_token * size_of::<Assigned>() / 4
        };
        4 * tokens * (2 * widest(config) + config.experts.as_ref().map_or(0, of_experts))
    }

    pub(crate) fn resize(&mut self, config: &Config, n: usize) {
        self.gate.resize(n * widest(config), 0.0);
        self.up.resize(n * widest(config), 0.0);
        if let Some(experts) = &config.experts {
            self.scores.resize(n * experts.count, 0.0);
            self.gathered.resize(n * config.hidden, 0.0);
            self.made.resize(n * config.hidden, 0.0);
        }
    }
}

/// Width of the widest MLP of a model.
fn widest(config: &Config) -> usize {
    let Some(experts) = &config.experts else { return config.intermediate };
    let is_dense = experts.sparse.iter().any(|sparse| !sparse);
    let dense = if is_dense { config.intermediate } else { 0 };
    dense.max(experts.intermediate).max(experts.shared.unwrap_or(0))
}

/// A row sent to an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Assigned {
    expert: u32,
    row: u32,
    weight: f32,
}

/// What the MLP makes of the rows `x`, `[n, hidden]` both.
pub(crate) fn forward(
    mlp: &Mlp,
    config: &Config,
    backend: &dyn Backend,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    scratch: &mut MlpScratch,
) {
    let MlpScratch { gate, up, scores, gathered, made } = scratch;
    let mut gated = |mlp: &GatedMlp, x: &[f32], n: usize, out: &mut [f32]| {
        apply(mlp, config.activation, backend, x, n, out, gate, up);
    };
    let (sparse, experts) = match (mlp, &config.experts) {
        (Mlp::Sparse(sparse), Some(experts)) => (sparse, experts),
        (Mlp::Dense(mlp), _) => return gated(mlp, x, n, out),
        (Mlp::Sparse(_), None) => unreachable!("sparse layers are made of a configuration of experts"),
    };
    let hidden = config.hidden;
    let scores = &mut scores[..n * experts.count];
    sparse.router.forward(backend, x, n, scores);
    out.fill(0.0);
    // Each row adds up its experts in the order of their numbers, whoever else is sent to them.
    for assigned in by_expert(scores, experts).chunk_by(|a, b| a.expert == b.expert) {
        let rows = assigned.len() * hidden;
        let (gathered, made) = (&mut gathered[..rows], &mut made[..rows]);
        for (to, a) in gathered.chunks_exact_mut(hidden).zip(assigned) {
            to.copy_from_slice(&x[a.row as usize * hidden..][..hidden]);
        }
        gated(&sparse.experts[assigned[0].expert as usize], gathered, assigned.len(), made);
        backend.mark(Part::Elementwise);
        for (made, a) in made.chunks_exact(hidden).zip(assigned) {
            add(a.weight, made, &mut out[a.row as usize * hidden..][..hidden]);
        }
        backend.mark(Part::Mlp);
    }
    add_shared(sparse, backend, x, n, out, &mut made[..n * hidden], scores, gated);
}

/// `activation(gate(x), up(x))`, through `down`.
fn apply(
    mlp: &GatedMlp,
    activation: Activation,
    backend: &dyn Backend,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    gate: &mut [f32],
    up: &mut [f32],
) {
    let width = n * mlp.gate.rows();
    let (gate, up) = (&mut gate[..width], &mut up[..width]);
    mlp.gate.forward(backend, x, n, gate);
    mlp.up.forward(backend, x, n, up);
    backend.gate(activation, gate, up);
    mlp.down.forward(backend, gate, n, out);
}

/// The expert that every token passes, weighted by a sigmoid.
fn add_shared(
    sparse: &SparseMlp,
    backend: &dyn Backend,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    made: &mut [f32],
    scores: &mut [f32],
    mut gated: impl FnMut(&GatedMlp, &[f32], usize, &mut [f32]),
) {
    let Some((mlp, weight)) = &sparse.shared else { return };
    let hidden = weight.cols();
    gated(mlp, x, n, made);
    let scores = &mut scores[..n];
    weight.forward(backend, x, n, scores);
    for ((made, out), score) in made.chunks_exact(hidden).zip(out.chunks_exact_mut(hidden)).zip(scores) {
        add(1.0 / (1.0 + (-*score).exp()), made, out);
    }
}

fn add(weight: f32, made: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(made).for_each(|(o, m)| *o += weight * m);
}

/// The experts of every row with the largest scores, ties to the lower number, in the order of experts and then of rows.
///
/// Weights are the softmax of all scores, or of those chosen where they are to add up to one.
fn by_expert(scores: &[f32], experts: &Experts) -> Vec<Assigned> {
    let mut all = Vec::with_capacity(scores.len() / experts.count * experts.per_token);
    let mut order: Vec<u32> = Vec::with_capacity(experts.count);
    for (row, scores) in scores.chunks_exact(experts.count).enumerate() {
        order.clear();
        order.extend(0..experts.count as u32);
        let score = |e: u32| scores[e as usize];
        order.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let chosen = &order[..experts.per_token];
        let largest = score(chosen[0]);
        let power = |e: u32| (score(e) - largest).exp();
        let sum: f32 = match experts.renormalises {
            true => chosen.iter().map(|&e| power(e)).sum(),
            false => (0..experts.count as u32).map(power).sum(),
        };
        let assigned = |&expert: &u32| Assigned { expert, row: row as u32, weight: power(expert) / sum };
        all.extend(chosen.iter().map(assigned));
    }
    all.sort_unstable_by_key(|a| (a.expert, a.row));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(per_token: usize, renormalises: bool) -> Experts {
        Experts {
            count: 4,
            per_token,
            intermediate: 1,
            shared: None,
            renormalises,
            biases: false,
            sparse: [true].into(),
        }
    }

    #[test]
    fn rows_are_sent_to_their_largest_scores_and_grouped_by_expert() {
        let ln = |x: f32| x.ln();
        let scores = [ln(1.0), ln(4.0), ln(2.0), ln(3.0), ln(5.0), ln(1.0), ln(5.0), ln(5.0)];
        let found = |per_token, renormalises| {
            let all = by_expert(&scores, &experts(per_token, renormalises));
            all.iter().map(|a| (a.expert, a.row, (a.weight * 560.0).round())).collect::<Vec<_>>()
        };
        // Row 0 holds 0.1, 0.4, 0.2 and 0.3; row 1 has three equal ones, of which the lower two are taken.
        assert_eq!(found(2, false), [(0, 1, 175.0), (1, 0, 224.0), (2, 1, 175.0), (3, 0, 168.0)]);
        assert_eq!(found(2, true), [(0, 1, 280.0), (1, 0, 320.0), (2, 1, 280.0), (3, 0, 240.0)]);
        assert_eq!(found(1, true), [(0, 1, 560.0), (1, 0, 560.0)]);
    }

    #[test]
    fn scores_that_are_no_numbers_make_no_numbers() {
        let all = by_expert(&[f32::NAN, 1.0, 2.0, 3.0], &experts(2, true));
        assert!(all.iter().all(|a| a.weight.is_nan()), "{all:?}");
    }
}
