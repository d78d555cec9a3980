//! The numbers of a random model, row by row, whatever the file stores them in.

use crate::weights::{Layout, Pieces, Roles, Slot, clex};
use crate::{Config, ModelError};
use half::bf16;
use std::collections::HashMap;

/// A tensor as a file stores it: for each of its rows, the row of the model's own tensor that stands there.
pub(super) struct StoredTensor {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    rows: Vec<(u64, usize)>,
    mean: f32,
    deviation: f32,
}

/// Every tensor of the model in the order in which a file has them.
pub(super) fn tensors(config: &Config, layout: Layout, seed: u64) -> Result<Vec<StoredTensor>, ModelError> {
    let roles = Roles { config, layout };
    let mut list = List { seed, tensors: Vec::new(), by_name: HashMap::new() };
    let width = 1.0 / (config.hidden as f32).sqrt();
    list.add("embed", &roles.embed(), 0.0, width);
    for layer in 0..config.n_layers {
        for (role, linear) in ["q", "k", "v", "o", "gate", "up", "down"].iter().zip(roles.linears(layer)) {
            let slot = linear.slot(".weight");
            let deviation = 1.0 / (slot.shape[1] as f32).sqrt();
            list.add(&format!("{layer}.{role}"), &slot, 0.0, deviation);
            if linear.bias {
                list.add(&format!("{layer}.{role}.bias"), &linear.slot(".bias"), 0.0, 0.1);
            }
        }
        for (role, slot) in ["attn_norm", "mlp_norm", "q_norm", "k_norm"].iter().zip(roles.norms(layer)) {
            list.add(&format!("{layer}.{role}"), &slot, 1.0, 0.1);
        }
    }
    list.add("norm", &roles.norm(), 1.0, 0.1);
    if let Some(head) = roles.lm_head() {
        list.add("lm_head", &head, 0.0, width);
    }
    for slot in clex::slots(config) {
        // Small enough that the frequencies stay near those of NTK scaling.
        list.add(&slot.name, &slot, 0.0, 0.02);
    }
    Ok(list.tensors)
}

struct List {
    seed: u64,
    tensors: Vec<StoredTensor>,
    by_name: HashMap<String, usize>,
}

impl List {
    /// Places the rows of the model's tensor `role` where `slot` will look for them.
    fn add(&mut self, role: &str, slot: &Slot, mean: f32, deviation: f32) {
        let at = *self.by_name.entry(slot.name.clone()).or_insert_with(|| {
            let (name, shape) = (slot.name.clone(), slot.shape.clone());
            self.tensors.push(StoredTensor { name, rows: vec![(0, 0); shape[0]], shape, mean, deviation });
            self.tensors.len() - 1
        });
        let key = role.bytes().fold(self.seed ^ 0x9e37_79b9_7f4a_7c15, |h, b| mix(h ^ u64::from(b)));
        let stored = |pieces: &Pieces| pieces.ranges().iter().cloned().flatten().collect::<Vec<_>>();
        for (row, stored) in stored(&slot.pieces).into_iter().enumerate() {
            self.tensors[at].rows[stored] = (key, row);
        }
    }
}

impl StoredTensor {
    /// Elements of a row; 1 for a vector.
    pub(super) fn cols(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Writes stored row `row` to `out: [cols]`.
    pub(super) fn fill_row(&self, row: usize, out: &mut [f32]) {
        let (key, logical) = self.rows[row];
        let mut state = mix(key ^ (logical as u64).wrapping_mul(0xd134_2543_de82_ef95));
        for x in out {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *x = bf16::from_f32(self.mean + self.deviation * normal(mix(state))).to_f32();
        }
    }
}

/// SplitMix64's finisher.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The sum of four uniform numbers, centred and scaled to a variance of 1: close to normal, and cheap.
fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    (sum as f32 / 65_535.0 - 2.0) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_about_normal() {
        let values: Vec<f32> = (0..100_000).map(|i| normal(mix(i))).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
