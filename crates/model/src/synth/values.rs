//! The numbers of a random model, row by row, whatever the file stores them in.

use crate::weights::{Layout, MlpRoles, Part, Pieces, Role, Roles, Slot, clex};
use crate::{Config, ModelError};
use half::bf16;
use std::collections::HashMap;

/// A tensor as a file stores it: for each of its rows, the row of the model's own tensor that stands there.
pub(super) struct StoredTensor {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    cols: usize,
    rows: Vec<Row>,
    mean: f32,
    deviation: f32,
    /// Subtracted from every value, since readers add it.
    offset: f32,
}

/// What stands in a row.
#[derive(Clone)]
enum Row {
    /// A row of the model's own tensor.
    Own(u64, usize),
    /// One element of a row of the model's own tensor in each column: columns of its transpose.
    Element(usize, Vec<(u64, usize)>),
}

/// Every tensor of the model in the order in which a file has them.
pub(super) fn tensors(config: &Config, layout: Layout, seed: u64) -> Result<Vec<StoredTensor>, ModelError> {
    let roles = Roles { config, layout };
    let mut list = List { seed, tensors: Vec::new(), by_name: HashMap::new() };
    let width = 1.0 / (config.hidden as f32).sqrt();
    list.add("embed", &roles.embed(), 0.0, width);
    for layer in 0..config.n_layers {
        for (role, linear) in ["q", "k", "v", "o"].iter().zip(roles.attention(layer)) {
            list.linear(&format!("{layer}.{role}"), &linear);
        }
        let mut gated = |of: &str, mlp: &[Role; 3]| {
            for (role, linear) in ["gate", "up", "down"].iter().zip(mlp) {
                list.linear(&format!("{layer}{of}.{role}"), linear);
            }
        };
        match roles.mlp(layer) {
            MlpRoles::Dense(mlp) => gated("", &mlp),
            MlpRoles::Sparse(sparse) => {
                for (expert, mlp) in roles.experts(layer).enumerate() {
                    gated(&format!(".{expert}"), &mlp);
                }
                if let Some((mlp, weight)) = &sparse.shared {
                    gated(".shared", mlp);
                    list.linear(&format!("{layer}.shared.weight"), weight);
                }
                list.linear(&format!("{layer}.router"), &sparse.router);
            }
        }
        let names = ["attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm"];
        for (role, slot) in names.iter().zip(roles.norms(layer)) {
            if let Some(slot) = slot {
                list.add(&format!("{layer}.{role}"), &slot, 1.0, 0.1);
            }
        }
        if let Some(slot) = roles.sinks(layer) {
            list.add(&format!("{layer}.sinks"), &slot, 0.0, 1.0);
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
    fn linear(&mut self, role: &str, linear: &Role) {
        let inputs = linear.weight.taken()[1];
        self.add(role, &linear.weight, 0.0, 1.0 / (inputs as f32).sqrt());
        if let Some(bias) = &linear.bias {
            self.add(&format!("{role}.bias"), bias, 0.0, 0.1);
        }
    }

    /// Places the rows of the model's tensor `role` where `slot` will look for them.
    fn add(&mut self, role: &str, slot: &Slot, mean: f32, deviation: f32) {
        let at = *self.by_name.entry(slot.name.clone()).or_insert_with(|| {
            let rows = slot.shape.iter().product::<usize>() / slot.cols.max(1);
            self.tensors.push(StoredTensor {
                name: slot.name.clone(),
                shape: slot.shape.clone(),
                cols: slot.cols,
                rows: vec![Row::Own(0, 0); rows],
                mean,
                deviation,
                offset: slot.offset,
            });
            self.tensors.len() - 1
        });
        let key = role.bytes().fold(self.seed ^ 0x9e37_79b9_7f4a_7c15, |h, b| mix(h ^ u64::from(b)));
        let tensor = &mut self.tensors[at];
        let flat = |pieces: &Pieces| pieces.ranges().iter().cloned().flatten().collect::<Vec<_>>();
        match &slot.part {
            Part::Rows(pieces) | Part::Mxfp4(pieces) => {
                for (row, stored) in flat(pieces).into_iter().enumerate() {
                    tensor.rows[stored] = Row::Own(key, row);
                }
            }
            Part::Columns { rows, columns } => {
                for (element, stored) in rows.clone().enumerate() {
                    let row = &mut tensor.rows[stored];
                    if let Row::Own(..) = row {
                        *row = Row::Element(element, vec![(0, 0); slot.cols]);
                    }
                    let Row::Element(_, of) = row else { continue };
                    for (row, column) in flat(columns).into_iter().enumerate() {
                        of[column] = (key, row);
                    }
                }
            }
        }
    }
}

impl StoredTensor {
    /// Elements of a row; 1 for a vector.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of the tensor taken as a matrix.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Writes stored row `row` to `out: [cols]`.
    pub(super) fn fill_row(&self, row: usize, out: &mut [f32]) {
        match &self.rows[row] {
            Row::Own(key, row) => {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = self.value(*key, *row, i))
            }
            Row::Element(i, of) => out.iter_mut().zip(of).for_each(|(x, (key, row))| {
                *x = self.value(*key, *row, *i);
            }),
        }
    }

    /// Element `i` of row `row` of the model's tensor `key`.
    fn value(&self, key: u64, row: usize, i: usize) -> f32 {
        let state = mix(key ^ (row as u64).wrapping_mul(0xd134_2543_de82_ef95));
        let state = state.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The difference is a bf16 too: norms lie around one.
        bf16::from_f32(self.mean + self.deviation * normal(mix(state))).to_f32() - self.offset
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
