//! A backend that also notes which keys nearly tied, so that a vote that rounding moved can be told from a wrong one.

use reattention_kernels::profile::Part;
use reattention_kernels::{
    Activation, Backend, DeviceError, KvView, ListedRequest, LogitRule, LowBitKeys, Matrix, Queries, Segment,
    SignRequest, TopK, TopKRequest, TopKRule,
};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Scores whose difference is at most this part of the larger may change their order between two implementations in f32.
///
/// Queries and keys come out of layers in f32 that sum in another order elsewhere: hidden states that agree to some 1e-5 of
/// their size give scores that agree to some 1e-5 of theirs. A difference of a hundredth is none of rounding.
const NEAR: f64 = 1e-4;

/// Two keys of a query and head that nearly tie, of which the rule could as well have taken the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NearTie {
    /// The query and head, by number.
    pub(crate) row: u32,
    /// The key that was chosen.
    pub(crate) chosen: u32,
    /// The key that was not.
    pub(crate) rejected: u32,
}

/// Passes everything on to another backend.
#[derive(Debug)]
pub(crate) struct Probe {
    inner: Arc<dyn Backend>,
    /// One list for every search since the last [`Probe::take`].
    searches: Mutex<Vec<Vec<NearTie>>>,
}

impl Probe {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, searches: Mutex::default() }
    }

    /// The near ties of every search so far, in order.
    pub(crate) fn take(&self) -> Vec<Vec<NearTie>> {
        std::mem::take(&mut self.searches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for Probe {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.inner.install(f);
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        self.inner.each(n, work);
    }

    fn mark(&self, part: Part) {
        self.inner.mark(part);
    }

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        self.inner.linear(x, rows, w, bias, y);
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        self.inner.rms_norm(x, weight, eps, y);
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.inner.silu_mul(gate, up);
    }

    fn gate(&self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        self.inner.gate(activation, gate, up);
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let found = self.inner.top_k(q, kv, request)?;
        let ties = near_ties(q, kv, request, &found);
        self.searches.lock().unwrap_or_else(PoisonError::into_inner).push(ties);
        Ok(found)
    }

    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        self.inner.top_k_listed(q, kv, request)
    }

    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        self.inner.top_k_low_bit(q, keys, k)
    }

    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        self.inner.top_k_signs(q, request)
    }

    fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) -> Result<(), DeviceError> {
        self.inner.attend(q, kv, views, rule, out, lse)
    }

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.inner.key_mass(q, kv, views, rule, lse)
    }
}

/// The near ties of a search, from queries and keys as they were given, with sums in f64.
fn near_ties(q: &Queries, kv: &KvView, request: &TopKRequest, found: &TopK) -> Vec<NearTie> {
    let first = request.keys.start;
    // Without tiles every key is a tile of its own, and any may be chosen.
    let tile = match request.rule {
        TopKRule::Exact => 1,
        TopKRule::BestPerTile { tile } => tile,
    };
    let mut ties = Vec::new();
    for row in 0..found.q_len * found.n_heads {
        let head = row % found.n_heads;
        let kv_head = request.pairing.kv_head(head, q.n_heads, kv.n_kv_heads);
        let scores = scores(q.row(row / found.n_heads, head), kv, kv_head, request.keys.clone());
        let tiles = scores.len().div_ceil(tile);
        // What is beyond the number of tiles was filled up.
        let chosen = &found.indices[row * found.k..][..found.k.min(tiles)];
        let held = chosen.iter().map(|&token| token as usize).filter(|token| request.keys.contains(token));
        let chosen: Vec<usize> = held.map(|token| token - first).collect();
        let best: Vec<f64> =
            scores.chunks(tile).map(|t| t.iter().copied().fold(f64::NEG_INFINITY, f64::max)).collect();
        for &one in &chosen {
            for other in (0..scores.len()).filter(|other| !chosen.contains(other)) {
                let within = one / tile == other / tile;
                let is_candidate = is_near(scores[other], best[other / tile])
                    && !chosen.iter().any(|&c| c / tile == other / tile);
                if is_near(scores[one], scores[other]) && (within || is_candidate) {
                    let token = |i: usize| (first + i) as u32;
                    ties.push(NearTie { row: row as u32, chosen: token(one), rejected: token(other) });
                }
            }
        }
    }
    ties
}

fn is_near(a: f64, b: f64) -> bool {
    (a - b).abs() <= NEAR * a.abs().max(b.abs())
}

/// The product of a query with every key of a KV head.
fn scores(query: &[f32], kv: &KvView, kv_head: usize, keys: Range<usize>) -> Vec<f64> {
    let mut key = vec![0.0; kv.head_dim];
    let mut score = |token| {
        kv.copy_key(kv_head, token, &mut key);
        query.iter().zip(&key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    keys.map(&mut score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Findings, Votes};
    use reattention_kernels::{Buffer, HeadPairing, PAGE, Pages, Reference};

    /// Keys of one element, which are their scores for the query 1.
    struct Keys([Vec<Option<Buffer<f32>>>; 2], usize);

    impl Keys {
        fn new(scores: &[f32]) -> Self {
            let side = || {
                let mut page = Buffer::zeroed(PAGE);
                page[..scores.len()].copy_from_slice(scores);
                vec![Some(page)]
            };
            Self([side(), side()], scores.len())
        }

        fn view(&self) -> KvView<'_> {
            let [keys, values] = &self.0;
            KvView { pages: Pages::F32 { keys, values }, len: self.1, n_kv_heads: 1, head_dim: 1 }
        }
    }

    /// What the comparison says where our search found its votes and the published code `theirs`, for one query of one head.
    fn compared(scores: &[f32], k: usize, rule: TopKRule, theirs: &[usize]) -> Findings {
        let probe = Probe::new(Arc::new(Reference));
        let keys = Keys::new(scores);
        let q = Queries { data: &[1.0], n_heads: 1, q_len: 1, head_dim: 1, first: scores.len() };
        let request = TopKRequest { keys: 0..scores.len(), k, pairing: HeadPairing::Grouped, rule };
        let found = probe.top_k(&q, &keys.view(), &request).unwrap();
        let votes = |keys: &mut dyn Iterator<Item = usize>| -> Votes {
            let mut votes = Votes::new();
            keys.for_each(|key| *votes.entry(key).or_default() += 1);
            votes
        };
        let ours = votes(&mut found.indices.iter().map(|&i| i as usize));
        let mut findings = Findings::default();
        let ties = probe.take();
        findings.votes("votes", &ours, &votes(&mut theirs.iter().copied()), &ties[0]);
        findings
    }

    const TILES: TopKRule = TopKRule::BestPerTile { tile: 4 };
    /// Three tiles of four keys; 1, 5 and 9 are the best of each.
    const SCORES: [f32; 12] = [1.0, 8.0, 2.0, 3.0, 1.0, 7.0, 2.0, 3.0, 1.0, 6.0, 2.0, 3.0];

    /// `SCORES` with key `at` as large as key `like`, but for a part of it.
    fn nearly(at: usize, like: usize, less: f32) -> Vec<f32> {
        let mut scores = SCORES.to_vec();
        scores[at] = scores[like] * (1.0 - less);
        scores
    }

    #[test]
    fn a_tile_may_have_the_other_of_two_keys_that_nearly_tie() {
        let ok = compared(&nearly(3, 1, 3e-5), 2, TILES, &[3, 5]);
        assert!(ok.failures.is_empty() && ok.moved == 1, "{:?}", ok.failures);
        for (less, theirs) in [(1e-2, [3, 5]), (3e-5, [2, 5]), (3e-5, [1, 3])] {
            let wrong = compared(&nearly(3, 1, less), 2, TILES, &theirs);
            assert!(!wrong.failures.is_empty(), "{theirs:?} with {less}");
        }
    }

    #[test]
    fn another_tile_may_win_whose_best_nearly_ties() {
        assert!(compared(&nearly(9, 5, 3e-5), 2, TILES, &[1, 9]).failures.is_empty());
        // Either of two that nearly are the best of that tile.
        let mut scores = nearly(9, 5, 3e-5);
        scores[8] = scores[9] * (1.0 - 2e-5);
        assert!(compared(&scores, 2, TILES, &[1, 8]).failures.is_empty());
        // Not two of one tile, and not for a key that is far away.
        assert!(!compared(&scores, 2, TILES, &[8, 9]).failures.is_empty());
        assert!(!compared(&nearly(9, 5, 1e-2), 2, TILES, &[1, 9]).failures.is_empty());
    }

    #[test]
    fn without_tiles_any_key_may_that_nearly_ties() {
        assert!(compared(&nearly(3, 5, 3e-5), 2, TopKRule::Exact, &[1, 3]).failures.is_empty());
        assert!(!compared(&nearly(3, 5, 1e-2), 2, TopKRule::Exact, &[1, 3]).failures.is_empty());
        assert!(!compared(&SCORES, 2, TopKRule::Exact, &[1, 9]).failures.is_empty());
    }

    #[test]
    fn slots_that_no_tile_fills_are_no_ties() {
        // Four wanted of three tiles: the last slot is the first key.
        let scores = nearly(3, 1, 1e-2);
        assert!(compared(&scores, 4, TILES, &[1, 5, 9, 0]).failures.is_empty());
        assert!(!compared(&scores, 4, TILES, &[1, 5, 9, 2]).failures.is_empty());
    }
}
