//! Cutting a set of vectors into small groups of near ones, top down.

/// Vectors `[n, dim]`.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    pub(super) data: &'a [f32],
    pub(super) dim: usize,
}

impl<'a> Points<'a> {
    /// The vector `i`.
    pub(super) fn at(&self, i: u32) -> &'a [f32] {
        &self.data[i as usize * self.dim..(i as usize + 1) * self.dim]
    }

    /// Mean of the vectors `of`, `[dim]`.
    pub(super) fn mean(&self, of: &[u32]) -> Vec<f32> {
        let mut mean = vec![0.0; self.dim];
        for &i in of {
            mean.iter_mut().zip(self.at(i)).for_each(|(m, x)| *m += x);
        }
        mean.iter_mut().for_each(|m| *m /= of.len().max(1) as f32);
        mean
    }

    /// Sum of the squared distances of the vectors `of` to `centre`.
    pub(super) fn scatter(&self, of: &[u32], centre: &[f32]) -> f32 {
        of.iter().map(|&i| distance(self.at(i), centre)).sum()
    }
}

/// Rounds of two-means after the first cut.
const ROUNDS: usize = 2;

/// Cuts the vectors `of` into groups of at most `most` near ones; the order within a group is kept.
///
/// A group of equal vectors is never cut: it may be larger.
pub(super) fn partition(points: Points, of: Vec<u32>, most: usize, groups: &mut Vec<Vec<u32>>) {
    if of.len() <= most {
        groups.push(of);
        return;
    }
    match halves(points, &of) {
        Some((a, b)) => {
            partition(points, a, most, groups);
            partition(points, b, most, groups);
        }
        None => groups.push(of),
    }
}

/// Two groups of near vectors, or `None` if all are equal.
fn halves(points: Points, of: &[u32]) -> Option<(Vec<u32>, Vec<u32>)> {
    let mean = points.mean(of);
    let far = |from: &[f32]| {
        let mut best = (0.0, of[0]);
        for &i in of {
            let d = distance(points.at(i), from);
            if d > best.0 {
                best = (d, i);
            }
        }
        best.1
    };
    let farthest = points.at(far(&mean));
    // One round of power iteration from the farthest vector towards the direction of largest variance.
    let towards: Vec<f32> = farthest.iter().zip(&mean).map(|(x, m)| x - m).collect();
    let offset = dot(&mean, &towards);
    let mut direction = vec![0.0; points.dim];
    for &i in of {
        let along = dot(points.at(i), &towards) - offset;
        direction.iter_mut().zip(points.at(i)).zip(&mean).for_each(|((d, x), m)| *d += along * (x - m));
    }
    let mut limit = dot(&mean, &direction);
    let mut is_high: Vec<bool> = of.iter().map(|&i| dot(points.at(i), &direction) > limit).collect();
    let side = |is_high: &[bool], high: bool| -> Vec<u32> {
        of.iter().zip(is_high).filter(|s| *s.1 == high).map(|s| *s.0).collect()
    };
    let (mut low, mut high) = (side(&is_high, false), side(&is_high, true));
    for _ in 0..ROUNDS {
        if low.is_empty() || high.is_empty() {
            break;
        }
        let (a, b) = (points.mean(&low), points.mean(&high));
        direction = b.iter().zip(&a).map(|(b, a)| b - a).collect();
        limit = (dot(&b, &b) - dot(&a, &a)) / 2.0;
        is_high = of.iter().map(|&i| dot(points.at(i), &direction) > limit).collect();
        (low, high) = (side(&is_high, false), side(&is_high, true));
    }
    let larger = if low.len() > high.len() { &low } else { &high };
    let equal = |of: &[u32]| of.iter().all(|&i| points.at(i) == points.at(of[0]));
    if of.len() - larger.len() >= of.len() / 8 && larger.len() < of.len()
        || larger.len() < of.len() && equal(larger)
    {
        return Some((low, high));
    }
    if equal(of) {
        return None;
    }
    // A few outliers would be cut off one by one: cut at the median along the direction instead.
    let mut order: Vec<(f32, u32)> = of.iter().map(|&i| (dot(points.at(i), &direction), i)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cut = order.len() / 2;
    let sorted = |half: &[(f32, u32)]| {
        let mut half: Vec<u32> = half.iter().map(|h| h.1).collect();
        half.sort_unstable();
        half
    };
    Some((sorted(&order[..cut]), sorted(&order[cut..])))
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, n) = ([0.0f32; 8], a.len() / 8 * 8);
    for (a, b) in a[..n].chunks_exact(8).zip(b[..n].chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a[n..].iter().zip(&b[n..]).map(|(a, b)| a * b).sum::<f32>()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, n) = ([0.0f32; 8], a.len() / 8 * 8);
    for (a, b) in a[..n].chunks_exact(8).zip(b[..n].chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += (a[i] - b[i]) * (a[i] - b[i]);
        }
    }
    sums.iter().sum::<f32>() + a[n..].iter().zip(&b[n..]).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, dim: usize) -> Vec<f32> {
        let mut state = 1u64;
        (0..n * dim)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn groups(data: &[f32], dim: usize, most: usize) -> Vec<Vec<u32>> {
        let mut groups = Vec::new();
        let n = (data.len() / dim) as u32;
        partition(Points { data, dim }, (0..n).collect(), most, &mut groups);
        let mut all: Vec<u32> = groups.concat();
        assert!(groups.iter().all(|g| g.is_sorted()), "the order within a group is kept");
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>(), "every vector is in one group");
        groups
    }

    #[test]
    fn groups_are_small_and_near() {
        let (dim, n) = (12, 4000);
        // Forty tight bundles.
        let centres = noise(40, dim);
        let data: Vec<f32> = noise(n, dim)
            .iter()
            .enumerate()
            .map(|(i, x)| centres[i / dim % 40 * dim + i % dim] + 0.01 * x)
            .collect();
        let groups = groups(&data, dim, 128);
        assert!(groups.iter().all(|g| g.len() <= 128));
        let mixed = groups.iter().filter(|g| g.iter().any(|i| i % 40 != g[0] % 40)).count();
        assert!(mixed <= groups.len() / 5, "{mixed} of {} groups mix bundles", groups.len());
    }

    #[test]
    fn equal_vectors_stay_together_and_outliers_do_not_stop_the_cut() {
        assert_eq!(groups(&[3.0; 200 * 4], 4, 64).len(), 1);
        let mut data = vec![1.0; 300 * 2];
        data[7] = 100.0;
        let cut = groups(&data, 2, 64);
        assert_eq!(cut.len(), 2, "one outlier, and the equal rest");
        let mut line = noise(500, 2);
        line[0] = 1e6;
        assert!(groups(&line, 2, 64).iter().all(|g| g.len() <= 64));
        let bad: Vec<f32> = vec![f32::NAN; 100 * 2];
        assert!(!groups(&bad, 2, 64).is_empty(), "damaged keys end in some groups");
    }
}
