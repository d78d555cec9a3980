//! The search over all keys against the plain backend.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use common::{AnyStore, Rng};
use cuda_emulator::{emulator, facts};
use reattention_cuda::driver::{Block, CudaError, Driver, Dtype};
use reattention_cuda::testing::paged::{Cached, CachedShape, Copied, PageEntry, copy_queries};
use reattention_cuda::testing::top_k::{Voters, top_k, top_k_of};
use reattention_kernels::{
    HeadPairing, KvView, ListedRequest, Queries, Reference, TopK, TopKRequest, TopKRule, bf16, f16,
};
use std::ops::Range;
use std::sync::Arc;

/// One search.
#[derive(Clone, Debug)]
struct Case {
    half: bool,
    head_dim: usize,
    n_kv_heads: usize,
    group: usize,
    q_len: usize,
    len: usize,
    request: TopKRequest,
    multiprocessors: usize,
    seed: u64,
}

/// A search for the best four keys in bf16 by `heads`, KV heads and query heads of each.
fn half(head_dim: usize, heads: (usize, usize), q_len: usize, keys: Range<usize>) -> Case {
    // What follows the range must not be looked at.
    let len = keys.end + 7;
    let request = TopKRequest { keys, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    let (n_kv_heads, group) = heads;
    Case { half: true, head_dim, n_kv_heads, group, q_len, len, request, multiprocessors: 4, seed: 1 }
}

/// As `half`, in f32.
fn single(head_dim: usize, heads: (usize, usize), q_len: usize, keys: Range<usize>) -> Case {
    Case { half: false, ..half(head_dim, heads, q_len, keys) }
}

impl Case {
    fn k(mut self, k: usize) -> Self {
        self.request.k = k;
        self
    }

    fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn multiprocessors(mut self, multiprocessors: usize) -> Self {
        self.multiprocessors = multiprocessors;
        self
    }

    fn tiles(mut self) -> Self {
        self.request.rule = TopKRule::BestPerTile { tile: 128 };
        self
    }

    fn interleaved(mut self) -> Self {
        self.request.pairing = HeadPairing::Interleaved;
        self
    }

    fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        let mut facts = facts();
        facts.multiprocessors = self.multiprocessors;
        let emulator = emulator(facts)?;
        Some(Arc::new(emulator.with_seed(self.seed)))
    }

    fn queries<'a>(&self, data: &'a [f32]) -> Queries<'a> {
        let Self { q_len, head_dim, len, .. } = *self;
        Queries { data, n_heads: self.n_heads(), q_len, head_dim, first: len }
    }

    fn data(&self, mut draw: impl FnMut() -> f32) -> Vec<f32> {
        (0..self.q_len * self.n_heads() * self.head_dim).map(|_| draw()).collect()
    }

    fn store(&self, draw: impl FnMut() -> f32) -> AnyStore {
        AnyStore::new(self.half, self.len, self.n_kv_heads, self.head_dim, draw)
    }

    /// What the device finds.
    fn found(&self, driver: &Arc<dyn Driver>, q: &Queries, kv: &KvView) -> Result<TopK, CudaError> {
        let copied = Copied::new(driver, kv)?;
        let rows = copy_queries(driver, q)?;
        top_k(driver, &rows, &copied.cached(), &self.request)?.read()
    }

    /// Small integers, whose products are exact, so that many scores tie: the very same tokens and scores.
    fn same(&self) {
        let Some(driver) = self.driver() else { return };
        let mut rng = Rng(self.seed + self.head_dim as u64);
        let store = self.store(|| rng.small());
        let data = self.data(|| rng.small());
        let q = self.queries(&data);
        let want = Reference.top_k(&q, &store.view(), &self.request);
        let got = self.found(&driver, &q, &store.view()).unwrap();
        assert!(got == want, "{self:?}: {}", difference(&got, &want));
    }

    /// Any numbers: scores within `tolerance` of the product of the lengths of query and key, and keys as good as the best within
    /// that.
    fn near(&self, tolerance: f32) {
        let Some(driver) = self.driver() else { return };
        let mut rng = Rng(self.seed + self.head_dim as u64);
        let store = self.store(|| rng.normal());
        let mut data = self.data(|| rng.normal());
        let got = self.found(&driver, &self.queries(&data), &store.view()).unwrap();
        if self.half {
            data.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        let q = self.queries(&data);
        let want = Reference.top_k(&q, &store.view(), &self.request);
        assert_eq!((got.q_len, got.n_heads, got.k), (want.q_len, want.n_heads, want.k));
        let mut key = vec![0.0; self.head_dim];
        for i in 0..want.indices.len() {
            let (token, head) = (i / want.k / want.n_heads, i / want.k % want.n_heads);
            let kv_head = self.request.pairing.kv_head(head, want.n_heads, self.n_kv_heads);
            store.view().copy_key(kv_head, got.indices[i] as usize, &mut key);
            let query = q.row(token, head);
            let close = tolerance * (dot(query, query) * dot(&key, &key)).sqrt();
            let (score, of_token) = (got.scores[i], dot(query, &key));
            assert!((score - of_token).abs() <= close, "{self:?}: {score} for {of_token}");
            let best = want.scores[i];
            assert!((score - best).abs() <= close, "{self:?}: {score} for {best}");
            let row = &got.indices[i / want.k * want.k..][..want.k];
            assert!(row.iter().filter(|&&t| t == got.indices[i]).count() == 1, "{self:?}: {row:?}");
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn difference(got: &TopK, want: &TopK) -> String {
    let slot = |of: &TopK, i: usize| (of.indices.get(i).copied(), of.scores.get(i).copied());
    match (0..want.indices.len()).find(|&i| slot(got, i) != slot(want, i)) {
        Some(i) => {
            let (slot_of, row) = (i % want.k, i / want.k);
            format!("slot {slot_of} of row {row}: {:?} for {:?}", slot(got, i), slot(want, i))
        }
        None => format!("shape {:?}", (got.q_len, got.n_heads, got.k)),
    }
}

#[test]
fn queries_of_one_token() {
    half(128, (2, 4), 1, 1000..2100).same();
    // Where only one block has work, some of its warps may have none.
    for keys in [0..1, 5..21, 1020..1030, 1024..2048, 3..700] {
        half(128, (2, 4), 1, keys.clone()).multiprocessors(1).same();
        half(128, (1, 7), 2, keys).multiprocessors(40).seed(2).same();
    }
    half(64, (2, 16), 1, 17..1200).same();
    half(80, (1, 5), 1, 0..777).same();
    half(256, (2, 4), 1, 900..1300).same();
    half(16, (4, 3), 4, 1..600).seed(0).same();
}

#[test]
fn queries_of_a_few_tokens() {
    half(128, (1, 8), 3, 500..1500).same();
    half(128, (2, 3), 20, 100..1100).same();
    half(48, (1, 16), 3, 1023..1400).same();
    half(256, (1, 1), 40, 1000..1100).same();
    half(96, (1, 7), 9, 0..300).same();
}

#[test]
fn chunks_of_queries() {
    half(64, (1, 4), 40, 1000..1700).same();
    half(64, (1, 1), 300, 3..400).multiprocessors(3).same();
    half(32, (2, 8), 33, 77..1300).same();
    half(128, (1, 4), 300, 1000..1100).same();
    half(256, (1, 3), 50, 1010..1050).same();
}

#[test]
fn any_number_of_keys_is_found() {
    for k in [1, 2, 3, 7, 31, 64] {
        half(32, (2, 8), 5, 100..1140).k(k).seed(k as u64).same();
        half(32, (2, 2), 1, 100..1140).k(k).seed(k as u64).same();
    }
    // There are fewer than asked for.
    half(32, (2, 8), 5, 1020..1030).k(64).same();
    half(32, (2, 8), 5, 50..50).same();
    half(32, (2, 8), 0, 50..90).same();
}

#[test]
fn every_order_of_threads_gives_the_same() {
    for seed in 0..12 {
        half(32, (2, 2), 7, 1000..1500).k(8).seed(seed).same();
        half(64, (1, 4), 40, 900..1100).seed(seed).same();
    }
}

#[test]
fn the_best_of_each_tile() {
    for keys in [1000..2700, 0..128, 5..134, 1..1025, 9..9] {
        half(32, (2, 8), 5, keys.clone()).tiles().same();
        half(32, (2, 2), 1, keys).tiles().k(9).same();
    }
    half(128, (1, 4), 70, 300..1200).tiles().same();
}

#[test]
fn heads_of_other_kv_heads() {
    half(32, (2, 8), 5, 1000..1200).interleaved().same();
    half(32, (4, 3), 1, 1000..1200).interleaved().same();
}

#[test]
fn any_numbers() {
    half(128, (2, 4), 1, 1000..2100).near(1e-6);
    half(64, (1, 4), 40, 1000..1700).near(1e-6);
    half(256, (2, 4), 1, 900..1300).k(16).near(1e-6);
}

#[test]
fn single_precision() {
    single(16, (1, 1), 5, 1000..1200).same();
    single(128, (2, 4), 1, 1000..1400).near(1e-6);
    single(64, (1, 4), 20, 1000..1100).near(1e-6);
    single(128, (1, 8), 9, 10..200).k(7).near(1e-6);
    single(256, (1, 2), 17, 10..80).near(1e-6);
}

#[test]
fn half_precision_of_ieee() {
    let case = half(64, (2, 3), 4, 100..900);
    let Some(driver) = case.driver() else { return };
    let mut rng = Rng(9);
    let store = case.store(|| rng.small());
    let data = case.data(|| rng.small());
    let q = case.queries(&data);
    let AnyStore::Bf16(pages) = &store else { unreachable!("the case is in bf16") };
    let keys: Vec<f16> = pages.keys[0].as_ref().unwrap().iter().map(|x| f16::from_f32(x.to_f32())).collect();
    let keys = Block::of(&driver, &keys).unwrap();
    let table = Block::of(&driver, &[PageEntry { keys: keys.at(), values: 0 }]).unwrap();
    let shape = CachedShape { len: case.len, n_kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    // SAFETY: the one page of this shape stays until the end.
    let cached = unsafe { Cached::new(&driver, table.at(), shape) };
    let rows = copy_queries(&driver, &q).unwrap();
    let got = top_k(&driver, &rows, &cached, &case.request).unwrap().read().unwrap();
    let want = Reference.top_k(&q, &store.view(), &case.request);
    assert!(got == want, "{}", difference(&got, &want));
}

#[test]
fn some_tokens_vote() {
    let case = half(32, (2, 2), 23, 1000..1300);
    let Some(driver) = case.driver() else { return };
    let mut rng = Rng(4);
    let store = case.store(|| rng.small());
    let data = case.data(|| rng.small());
    let all = Reference.top_k(&case.queries(&data), &store.view(), &case.request);
    let copied = Copied::new(&driver, &store.view()).unwrap();
    let rows = copy_queries(&driver, &case.queries(&data)).unwrap();
    for voters in
        [Voters { first: 2, stride: 4 }, Voters { first: 22, stride: 1 }, Voters { first: 23, stride: 3 }]
    {
        let got = top_k_of(&driver, &rows, voters, &copied.cached(), &case.request).unwrap().read().unwrap();
        assert_eq!(got.q_len, voters.count(23));
        for (i, token) in (voters.first..23).step_by(voters.stride).enumerate() {
            for head in 0..4 {
                assert_eq!(got.row(i, head), all.row(token, head), "{voters:?}: {token}, {head}");
            }
        }
    }
}

#[test]
fn scores_that_are_no_numbers_never_win() {
    let case = half(32, (1, 2), 1, 0..40).k(6);
    let Some(driver) = case.driver() else { return };
    let mut rng = Rng(5);
    let mut store = case.store(|| rng.small());
    let AnyStore::Bf16(pages) = &mut store else { unreachable!("the case is in bf16") };
    let page = pages.keys[0].as_mut().unwrap();
    // All keys but numbers 7, 8 and 30.
    for token in (0..40).filter(|t| ![7, 8, 30].contains(t)) {
        page[token * 32 + 3] = bf16::NAN;
    }
    let data = case.data(|| 1.0);
    let got = case.found(&driver, &case.queries(&data), &store.view()).unwrap();
    for head in 0..2 {
        let mut tokens = got.row(0, head)[..3].to_vec();
        tokens.sort_unstable();
        assert_eq!(tokens, [7, 8, 30]);
        assert_eq!(got.row(0, head)[3..], [ListedRequest::NONE; 3]);
        assert_eq!(got.scores[head * 6 + 3..head * 6 + 6], [f32::NEG_INFINITY; 3]);
    }
}

#[test]
fn what_is_not_served_is_refused() {
    let refused = |case: Case| {
        let Some(driver) = case.driver() else { return };
        let (store, data) = (case.store(|| 0.5), case.data(|| 0.5));
        let got = case.found(&driver, &case.queries(&data), &store.view());
        assert!(matches!(got, Err(CudaError::Unsupported { .. })), "{case:?}: {got:?}");
    };
    refused(half(32, (1, 1), 1, 0..100).k(65));
    refused(half(24, (1, 1), 1, 0..100));
    refused(half(272, (1, 1), 1, 0..100));
    let mut case = half(32, (1, 1), 1, 0..100);
    case.request.rule = TopKRule::BestPerTile { tile: 64 };
    refused(case);
}
