//! The best keys of some rows so far.

/// Keys per row up to which they are kept in order; more are collected and cut now and then.
const ORDERED: usize = 8;

/// Lists of the best `k` keys of some rows.
///
/// A score and its token are kept as one number that is larger for a higher score and, among equals, for a lower token.
pub(super) struct Best {
    k: usize,
    /// Slots of a row: as many as are kept in order, or twice as many as are kept.
    slots: usize,
    /// The worst score that still gets in, of each row, and the slots in use.
    worst: Vec<f32>,
    used: Vec<u32>,
    kept: Vec<u64>,
}

fn encode(score: f32, token: u32) -> u64 {
    // Minus zero ties with zero.
    let bits = (score + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!token)
}

fn decode(kept: u64) -> (f32, u32) {
    let ordered = (kept >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    (f32::from_bits(bits), !(kept as u32))
}

impl Best {
    /// Empty lists that take nothing below `least`.
    pub(super) fn new(rows: usize, k: usize, least: f32) -> Self {
        let slots = if k > ORDERED { 2 * k } else { k };
        Self { k, slots, worst: vec![least; rows], used: vec![0; rows], kept: vec![0; rows * slots] }
    }

    /// The score below which nothing gets into the list of `row` any more.
    #[inline(always)]
    pub(super) fn worst(&self, row: usize) -> f32 {
        self.worst[row]
    }

    /// Takes in a score that is not below the worst kept. A NaN is no score.
    #[inline(always)]
    pub(super) fn insert(&mut self, row: usize, score: f32, token: u32) {
        if score.is_nan() || score < self.worst[row] {
            return;
        }
        self.push(row, encode(score, token));
    }

    #[inline(always)]
    fn push(&mut self, row: usize, new: u64) {
        let kept = &mut self.kept[row * self.slots..(row + 1) * self.slots];
        let used = &mut self.used[row];
        if self.k > ORDERED {
            kept[*used as usize] = new;
            *used += 1;
            if *used as usize == self.slots {
                kept.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
                self.worst[row] = decode(kept[self.k - 1]).0;
                *used = self.k as u32;
            }
            return;
        }
        let mut at = *used as usize;
        if at == self.k {
            at -= 1;
            if new <= kept[at] {
                return;
            }
        } else {
            *used += 1;
        }
        while at > 0 && kept[at - 1] < new {
            kept[at] = kept[at - 1];
            at -= 1;
        }
        kept[at] = new;
        if *used as usize == self.k {
            self.worst[row] = decode(kept[self.k - 1]).0;
        }
    }

    /// Takes in what `other` kept of the same rows.
    pub(super) fn merge(&mut self, other: &Self) {
        for (row, (kept, &used)) in other.kept.chunks_exact(other.slots).zip(&other.used).enumerate() {
            kept[..used as usize].iter().for_each(|&one| self.push(row, one));
        }
    }

    /// The best key of `row`, if there is one.
    pub(super) fn first(&self, row: usize) -> Option<(f32, u32)> {
        let kept = &self.kept[row * self.slots..][..self.used[row] as usize];
        kept.iter().max().map(|&one| decode(one))
    }

    /// Writes the list of `row` in no order; slots beyond what it holds are left alone.
    pub(super) fn finish_unordered(&mut self, row: usize, tokens: &mut [u32], scores: &mut [f32]) {
        let kept = &mut self.kept[row * self.slots..][..self.used[row] as usize];
        if kept.len() > self.k {
            kept.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
        }
        for (slot, &one) in kept.iter().take(self.k).enumerate() {
            (scores[slot], tokens[slot]) = decode(one);
        }
    }

    /// Writes the list of `row`, best first; slots beyond what it holds are left alone.
    pub(super) fn finish(&mut self, row: usize, tokens: &mut [u32], scores: &mut [f32]) {
        let kept = &mut self.kept[row * self.slots..][..self.used[row] as usize];
        kept.sort_unstable_by(|a, b| b.cmp(a));
        for (slot, &one) in kept.iter().take(self.k).enumerate() {
            (scores[slot], tokens[slot]) = decode(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_best_and_the_first_of_equals() {
        for k in [1, 4, 8, 9, 40] {
            let (mut all, mut halves) =
                (Best::new(2, k, f32::MIN), [0, 1].map(|_| Best::new(2, k, f32::MIN)));
            let scores: Vec<f32> =
                (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 22) as f32 % 60.0 - 30.0).collect();
            for (token, &score) in scores.iter().enumerate() {
                all.insert(1, score, token as u32);
                halves[token / 250].insert(1, score, token as u32);
            }
            all.insert(1, f32::NAN, 0);
            all.insert(1, f32::NEG_INFINITY, 0);
            let mut want: Vec<u32> = (0..500).collect();
            want.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            let [mut merged, later] = halves;
            merged.merge(&later);
            for mut lists in [all, merged] {
                let (mut tokens, mut found) = (vec![7; k], vec![0.0; k]);
                lists.finish_unordered(1, &mut tokens, &mut found);
                tokens.sort_by_key(|t| want.iter().position(|w| w == t));
                assert_eq!(tokens, want[..k], "k {k}, in any order");
                tokens.fill(7);
                lists.finish(0, &mut tokens, &mut found);
                assert_eq!((lists.first(0), &tokens[..]), (None, &vec![7; k][..]), "nothing came");
                lists.finish(1, &mut tokens, &mut found);
                assert_eq!(tokens, want[..k], "k {k}");
                assert!(found.iter().zip(&tokens).all(|(s, &t)| *s == scores[t as usize]));
                assert_eq!(lists.first(1), Some((found[0], tokens[0])));
            }
        }
    }
}
