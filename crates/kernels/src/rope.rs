//! Rotary position embedding: cosines and sines of any position from two small tables.

/// Positions covered by the fine table; the coarse table steps by this much.
const FINE: usize = 256;

/// RoPE rotation for one set of frequencies.
///
/// The angle of pair `i` at position `p` is `p · inv_freq[i]`; dimensions `i` and `i + rotary_dim / 2` form a pair
/// (the half-split layout of Hugging Face models). Cosines and sines come from `cos(a + b)` with `a` a multiple of 256
/// positions, so the tables stay small at millions of positions; angles are computed in f64.
#[derive(Debug)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    multiplier: f32,
    /// `[FINE, 2, pairs]`: cosines, then sines, multiplier not applied.
    fine: Vec<f32>,
    /// `[n, 2, pairs]`: the same times the multiplier, for positions `0, FINE, 2 FINE, ...`.
    coarse: Vec<f32>,
}

impl RopeTable {
    /// A table of `inv_freq: [head_dim / 2]` that covers positions below `positions` (others are right but slow).
    ///
    /// `multiplier` scales cosine and sine alike (YaRN's attention factor; 1 elsewhere). A pair of frequency 0 stands still:
    /// neither rotated nor scaled, as the dimensions behind the rotated ones of partial rotary embedding.
    pub fn new(inv_freq: Vec<f32>, multiplier: f32, positions: usize) -> Self {
        let pairs = inv_freq.len();
        let table = |steps: usize, step: usize, multiplier: f32| {
            let mut table = vec![0.0; steps * 2 * pairs];
            for i in 0..steps {
                for (pair, (cos, sin)) in exact(&inv_freq, (i * step) as i64).enumerate() {
                    let multiplier = of_pair(inv_freq[pair], multiplier);
                    table[2 * i * pairs + pair] = cos * multiplier;
                    table[(2 * i + 1) * pairs + pair] = sin * multiplier;
                }
            }
            table
        };
        let (fine, coarse) = (table(FINE, 1, 1.0), table(positions.div_ceil(FINE), FINE, multiplier));
        Self { inv_freq, multiplier, fine, coarse }
    }

    /// Frequencies, `[head_dim / 2]`.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Factor on cosine and sine of the pairs that are rotated.
    pub fn multiplier(&self) -> f32 {
        self.multiplier
    }

    /// Positions the tables cover.
    pub fn positions(&self) -> usize {
        if self.inv_freq.is_empty() {
            usize::MAX
        } else {
            self.coarse.len() / (2 * self.inv_freq.len()) * FINE
        }
    }

    /// Positions that the fine table covers, and from one row of the coarse table to the next.
    pub const FINE: usize = FINE;

    /// The tables: `[FINE, 2, head_dim / 2]` cosines, then sines, of the first positions, without the multiplier; and `[n, 2,
    /// head_dim / 2]` of the positions `0, FINE, 2 FINE, ...`, times the multiplier.
    pub fn tables(&self) -> (&[f32], &[f32]) {
        (&self.fine, &self.coarse)
    }

    /// Writes cosine and sine of `position`, times the multiplier, to `cos` and `sin`, each `[head_dim / 2]`.
    pub fn cos_sin(&self, position: i64, cos: &mut [f32], sin: &mut [f32]) {
        let pairs = self.inv_freq.len();
        debug_assert!(cos.len() == pairs && sin.len() == pairs);
        let Some([coarse, fine]) = self.parts(position) else {
            for (i, (c, s)) in exact(&self.inv_freq, position).enumerate() {
                let multiplier = of_pair(self.inv_freq[i], self.multiplier);
                (cos[i], sin[i]) = (c * multiplier, s * multiplier);
            }
            return;
        };
        for i in 0..pairs {
            let (ca, sa, cb, sb) = (coarse[i], coarse[pairs + i], fine[i], fine[pairs + i]);
            cos[i] = ca * cb - sa * sb;
            sin[i] = sa * cb + ca * sb;
        }
    }

    /// Cosines, then sines, of the two angles that `position`'s is the sum of, each `[2, head_dim / 2]`, if the tables
    /// cover it. The multiplier is in the first.
    pub(crate) fn parts(&self, position: i64) -> Option<[&[f32]; 2]> {
        let (p, row) = (usize::try_from(position).ok()?, 2 * self.inv_freq.len());
        let coarse = self.coarse.get((p / FINE).checked_mul(row)?..)?.get(..row)?;
        Some([coarse, &self.fine[p % FINE * row..][..row]])
    }

    /// Cosines, then sines, of the first `positions` (at most 256) positions, without the multiplier: `[positions, 2,
    /// head_dim / 2]`.
    ///
    /// Turning by `a + b` is turning by `a` ([`Self::cos_sin`]) and then by `b`.
    pub(crate) fn near(&self, positions: usize) -> &[f32] {
        &self.fine[..positions * 2 * self.inv_freq.len()]
    }

    /// Rotates `row: [head_dim]` in place by `position`.
    pub fn rotate(&self, position: i64, row: &mut [f32]) {
        let pairs = self.inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; pairs], vec![0.0; pairs]);
        self.cos_sin(position, &mut cos, &mut sin);
        let (low, high) = row.split_at_mut(pairs);
        for i in 0..pairs {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// The factor on a pair of this frequency.
fn of_pair(frequency: f32, multiplier: f32) -> f32 {
    if frequency == 0.0 { 1.0 } else { multiplier }
}

fn exact(inv_freq: &[f32], position: i64) -> impl Iterator<Item = (f32, f32)> {
    inv_freq.iter().map(move |&f| {
        let (sin, cos) = (position as f64 * f64::from(f)).sin_cos();
        (cos as f32, sin as f32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_agree_with_the_angles_themselves() {
        let inv_freq: Vec<f32> = (0..16).map(|i| 500_000f32.powf(-(i as f32) / 16.0)).collect();
        let table = RopeTable::new(inv_freq.clone(), 1.25, 4_000_000);
        let (mut cos, mut sin) = (vec![0.0; 16], vec![0.0; 16]);
        for p in [0, 1, 255, 256, 257, 65_535, 1_234_567, 3_999_999, 4_100_000, -3] {
            table.cos_sin(p, &mut cos, &mut sin);
            for i in 0..16 {
                let angle = p as f64 * f64::from(inv_freq[i]);
                assert!((f64::from(cos[i]) - 1.25 * angle.cos()).abs() < 5e-7, "cos at {p}, pair {i}");
                assert!((f64::from(sin[i]) - 1.25 * angle.sin()).abs() < 5e-7, "sin at {p}, pair {i}");
            }
        }
    }

    #[test]
    fn rotation_keeps_length_and_depends_on_distance_only() {
        let table = RopeTable::new(vec![1.0, 0.1], 1.0, 1000);
        let dot = |p: i64, q: i64| {
            let (mut a, mut b) = ([1.0f32, -2.0, 0.5, 3.0], [0.3f32, 0.7, -1.0, 2.0]);
            table.rotate(p, &mut a);
            table.rotate(q, &mut b);
            a.iter().zip(&b).map(|(x, y)| x * y).sum::<f32>()
        };
        assert!((dot(10, 3) - dot(907, 900)).abs() < 1e-4);
    }
}
