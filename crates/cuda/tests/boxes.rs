//! The search through boxes against a plain copy of its rule. Numbers are such that sums of products are exact: the very same
//! tokens and scores must come out, ties included.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use common::{AnyStore, Rng};
use cuda_emulator::{emulator, facts};
use reattention_cuda::driver::{Block, CudaError, Driver, Dtype, Facts};
use reattention_cuda::testing::boxes::{Boxes, LARGE, SMALL};
use reattention_cuda::testing::paged::{Cached, CachedShape, Copied, PageEntry, copy_queries};
use reattention_cuda::testing::top_k::{MOST_KEYS, Voters};
use reattention_kernels::{
    HeadPairing, KvView, ListedRequest, PAGE, Queries, Reference, TopK, TopKRequest, TopKRule, f16,
};
use std::ops::Range;
use std::sync::Arc;

/// What keys and queries are.
#[derive(Clone, Copy, Debug)]
enum Data {
    /// Small integers, so that many bounds and scores tie.
    Ties,
    /// Multiples of a quarter.
    Quarters,
    /// As `Quarters`, but tokens near each other have near keys.
    Clusters,
    /// As `Quarters`, but some elements are no numbers.
    Gaps,
}

/// One search.
#[derive(Clone, Debug)]
struct Case {
    data: Data,
    half: bool,
    head_dim: usize,
    n_kv_heads: usize,
    group: usize,
    q_len: usize,
    voters: Voters,
    /// Keys searched.
    keys: Range<usize>,
    /// The token before which keys may be put into boxes.
    boxed: usize,
    k: usize,
    probes: usize,
    multiprocessors: usize,
    /// Of the device, in bytes.
    memory: usize,
    seed: u64,
}

const BASE: Case = Case {
    data: Data::Quarters,
    half: true,
    head_dim: 16,
    n_kv_heads: 1,
    group: 1,
    q_len: 1,
    voters: Voters::ALL,
    keys: 5..2000,
    boxed: 1990,
    k: 4,
    probes: 8,
    multiprocessors: 4,
    memory: 1 << 30,
    seed: 1,
};

/// Queries and cached keys of a case.
struct Text {
    queries: Vec<f32>,
    store: AnyStore,
}

impl Case {
    fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    fn request(&self) -> TopKRequest {
        TopKRequest {
            keys: self.keys.clone(),
            k: self.k,
            pairing: HeadPairing::Grouped,
            rule: TopKRule::Exact,
        }
    }

    fn text(&self) -> Text {
        let mut rng = Rng(self.seed ^ (self.head_dim * 64 + self.probes) as u64);
        let mut quarter = |most: usize| rng.int(0, 8 * most) as f32 / 4.0 - most as f32;
        let queries = self.q_len * self.n_heads() * self.head_dim;
        let queries: Vec<f32> = (0..queries)
            .map(|_| if matches!(self.data, Data::Ties) { quarter(2).round() } else { quarter(2) })
            .collect();
        let centres: Vec<f32> = (0..64 * self.head_dim).map(|_| quarter(3)).collect();
        let mut drawn = 0;
        let len = self.keys.end.max(self.boxed) + 3;
        let store = AnyStore::new(self.half, len, self.n_kv_heads, self.head_dim, || {
            let (row, element) = (drawn / self.head_dim, drawn % self.head_dim);
            drawn += 1;
            match self.data {
                Data::Ties => quarter(2).round(),
                Data::Quarters => quarter(4),
                Data::Clusters => centres[row / 21 % 64 * self.head_dim + element] + quarter(1),
                Data::Gaps if drawn * 7919 % 601 == 0 => f32::NAN,
                Data::Gaps => quarter(4),
            }
        });
        Text { queries, store }
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        let Self { multiprocessors, memory, .. } = *self;
        let emulator = emulator(Facts { multiprocessors, memory, ..facts() })?;
        Some(Arc::new(emulator.with_seed(self.seed)))
    }

    /// The device finds what the rule says.
    fn same(&self) {
        let Some(driver) = self.driver() else { return };
        let text = self.text();
        let copied = Copied::new(&driver, &text.store.view()).unwrap();
        let mut boxes = Boxes::new(self.keys.start);
        boxes.extend(&driver, &copied.cached(), self.boxed).unwrap();
        self.check(&driver, &boxes, &copied.cached(), &text);
    }

    fn check(&self, driver: &Arc<dyn Driver>, boxes: &Boxes, kv: &Cached, text: &Text) {
        let q = self.queries(text);
        let rows = copy_queries(driver, &q).unwrap();
        let found = boxes.search(driver, &rows, kv, &self.request(), self.voters, self.probes).unwrap();
        let (got, want) = (found.read().unwrap(), self.by_the_rule(&q, &text.store.view()));
        assert_eq!((got.q_len, got.n_heads, got.k), (want.q_len, want.n_heads, want.k), "{self:?}");
        let row = |found: &TopK, row: usize| {
            let of = row * found.k..(row + 1) * found.k;
            found.scores[of.clone()].iter().copied().zip(found.indices[of].to_vec()).collect::<Vec<_>>()
        };
        for r in 0..got.q_len * got.n_heads {
            assert_eq!(row(&got, r), row(&want, r), "row {r} of {self:?}");
        }
    }

    fn queries<'a>(&self, text: &'a Text) -> Queries<'a> {
        let Self { q_len, head_dim, .. } = *self;
        Queries { data: &text.queries, n_heads: self.n_heads(), q_len, head_dim, first: self.keys.end }
    }

    /// The rule, one loop after another.
    fn by_the_rule(&self, q: &Queries, kv: &KvView) -> TopK {
        let first = self.keys.start;
        let large = (self.boxed.min(self.keys.end).saturating_sub(first)) / LARGE;
        let within = LARGE / SMALL;
        let boxes = |kv_head: usize, size: usize| -> Vec<Vec<f32>> {
            let bounds = |i: usize| bounds_of(kv, kv_head, first + i * size..first + (i + 1) * size);
            (0..large * LARGE / size).map(bounds).collect()
        };
        let levels: Vec<[Vec<Vec<f32>>; 2]> =
            (0..self.n_kv_heads).map(|h| [boxes(h, LARGE), boxes(h, SMALL)]).collect();
        let k = self.k.min(self.keys.len());
        let q_len = self.voters.count(self.q_len);
        let mut found = TopK { q_len, n_heads: self.n_heads(), k, indices: Vec::new(), scores: Vec::new() };
        let mut key = vec![0.0; self.head_dim];
        for row in 0..q_len * self.n_heads() {
            let (voter, head) = (row / self.n_heads(), row % self.n_heads());
            let kv_head = head / self.group;
            let query = q.row(self.voters.first + voter * self.voters.stride, head);
            let for_boxes: Vec<f32> =
                query.iter().map(|x| x.max(0.0)).chain(query.iter().map(|x| x.min(0.0))).collect();
            let [large_boxes, small_boxes] = &levels[kv_head];
            let look = |boxes: &[Vec<f32>], among: Vec<usize>, most: usize| {
                best(among.into_iter().map(|i| (dot(&for_boxes, &boxes[i]), i)), most)
            };
            let promising = look(large_boxes, (0..large).collect(), self.probes.div_ceil(2));
            let inside = promising.iter().flat_map(|&(_, i)| i * within..(i + 1) * within).collect();
            let promising = look(small_boxes, inside, self.probes);
            let tokens = promising.iter().flat_map(|&(_, i)| first + i * SMALL..first + (i + 1) * SMALL);
            let tokens = tokens.chain(first + large * LARGE..self.keys.end);
            let scored = tokens.map(|t| {
                kv.copy_key(kv_head, t, &mut key);
                (dot(query, &key), t)
            });
            let mut best = best(scored, k);
            best.resize(k, (f32::NEG_INFINITY, ListedRequest::NONE as usize));
            found.scores.extend(best.iter().map(|b| b.0));
            found.indices.extend(best.iter().map(|b| b.1 as u32));
        }
        found
    }
}

fn bounds_of(kv: &KvView, kv_head: usize, tokens: Range<usize>) -> Vec<f32> {
    let mut key = vec![0.0; kv.head_dim];
    let (mut largest, mut smallest) =
        (vec![f32::NEG_INFINITY; kv.head_dim], vec![f32::INFINITY; kv.head_dim]);
    for token in tokens {
        kv.copy_key(kv_head, token, &mut key);
        largest.iter_mut().zip(&key).for_each(|(a, &x)| *a = a.max(x));
        smallest.iter_mut().zip(&key).for_each(|(a, &x)| *a = a.min(x));
    }
    largest.extend(smallest);
    largest
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // A zero is a zero, whatever its sign.
    a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() + 0.0
}

/// The best `most`, ties to the lower number; what has no score is not there.
fn best(scored: impl Iterator<Item = (f32, usize)>, most: usize) -> Vec<(f32, usize)> {
    let mut scored: Vec<_> = scored.filter(|s| !s.0.is_nan()).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.truncate(most);
    scored
}

#[test]
fn the_best_boxes_are_looked_into() {
    for (seed, data) in (1..).zip([Data::Ties, Data::Quarters, Data::Clusters, Data::Gaps]) {
        for probes in [1, 2, 3, 8, 31, 100] {
            Case { data, probes, seed, ..BASE }.same();
        }
    }
    let four = Case { n_kv_heads: 2, group: 4, q_len: 3, probes: 5, data: Data::Ties, ..BASE };
    four.same();
    Case { half: false, ..four.clone() }.same();
    Case { head_dim: 64, group: 7, q_len: 5, data: Data::Clusters, ..four.clone() }.same();
    Case { head_dim: 128, keys: 5..1200, ..four.clone() }.same();
    Case { head_dim: 64, half: false, keys: 5..1200, ..four }.same();
}

#[test]
fn shapes_drawn_at_random() {
    let mut rng = Rng(3);
    for seed in 0..40 {
        let first = rng.int(0, 1100);
        let end = first + rng.int(0, 1500);
        let most = [10, 100, 700][rng.int(0, 2)];
        let data = rng.pick(&[Data::Ties, Data::Ties, Data::Quarters, Data::Clusters, Data::Gaps]);
        let case = Case {
            data,
            half: rng.int(0, 2) > 0,
            n_kv_heads: rng.int(1, 3),
            group: rng.pick(&[1, 3, 5]),
            q_len: rng.int(1, 3),
            keys: first..end,
            boxed: first + rng.int(0, 1500),
            k: rng.int(1, 30),
            probes: rng.int(1, most),
            seed,
            ..BASE
        };
        case.same();
    }
}

#[test]
fn many_probes_score_large_boxes_in_memory() {
    // More large boxes than lists of the fused search hold.
    let many = Case { keys: 100..11_000, boxed: 10_990, probes: 133, ..BASE };
    for (seed, data) in (1..).zip([Data::Ties, Data::Quarters, Data::Clusters]) {
        Case { data, seed, ..many.clone() }.same();
    }
    Case { probes: 160, ..many.clone() }.same();
    Case { probes: 600, k: 64, ..many.clone() }.same();
    Case { n_kv_heads: 2, group: 7, q_len: 3, data: Data::Ties, ..many.clone() }.same();
    Case { half: false, group: 4, data: Data::Clusters, ..many }.same();
    // Boxes too long for the fused search.
    let wide = Case { head_dim: 256, keys: 3..1420, boxed: 1415, group: 3, q_len: 6, ..BASE };
    for (data, probes) in [(Data::Ties, 1), (Data::Quarters, 2), (Data::Clusters, 5), (Data::Ties, 40)] {
        Case { data, probes, ..wide.clone() }.same();
    }
}

#[test]
fn ranges_end_anywhere_and_keys_in_no_box_are_scored() {
    let case = Case { probes: 3, k: 7, group: 2, data: Data::Ties, ..BASE };
    for (first, end, boxed) in [
        (0, 1024, 1024),
        (1, 1024, 1024),
        (1017, 1400, 1400),
        (1023, 1151, 1151),
        (1023, 1150, 1150),
        // Boxes beyond the end are not looked into.
        (7, 700, 1500),
        (7, 100, 1500),
        (7, 7, 1500),
        (7, 10, 1500),
        // Many younger keys.
        (7, 1500, 300),
        (7, 1500, 100),
        (7, 1500, 0),
    ] {
        Case { keys: first..end, boxed, seed: end as u64, ..case.clone() }.same();
    }
    Case { q_len: 0, ..case.clone() }.same();
    Case { k: 0, ..case }.same();
}

#[test]
fn some_tokens_of_a_step_vote() {
    let case = Case { q_len: 11, group: 2, n_kv_heads: 2, keys: 9..900, data: Data::Clusters, ..BASE };
    for (first, stride) in [(0, 4), (3, 4), (10, 1), (11, 1), (2, 3)] {
        for probes in [2, 40] {
            Case { voters: Voters { first, stride }, probes, ..case.clone() }.same();
        }
    }
}

#[test]
fn little_memory_holds_the_scores_of_few_voters_at_once() {
    // 16 KiB of scores, and 6 KiB a voter.
    let memory = 16 << 20;
    let case = Case { memory, q_len: 9, n_kv_heads: 2, keys: 9..1200, data: Data::Clusters, ..BASE };
    Case { probes: 96, boxed: 1200, ..case.clone() }.same();
    Case { voters: Voters { first: 1, stride: 2 }, probes: 96, ..case }.same();
}

#[test]
fn looking_into_every_box_finds_the_best_of_all_keys() {
    for (half, head_dim, k) in [(true, 16, 4), (true, 80, 64), (false, 16, 9)] {
        let (keys, boxed) = (20..1100, 1090);
        let case = Case { half, head_dim, k, keys, boxed, group: 4, q_len: 2, probes: 128, ..BASE };
        let Some(driver) = case.driver() else { return };
        let mut rng = Rng(head_dim as u64);
        let store = AnyStore::new(half, 1110, 1, head_dim, || rng.normal());
        // Queries that bf16 holds.
        let queries: Vec<f32> = (0..2 * 4 * head_dim).map(|_| rng.small()).collect();
        let text = Text { queries, store };
        let copied = Copied::new(&driver, &text.store.view()).unwrap();
        let mut boxes = Boxes::new(20);
        boxes.extend(&driver, &copied.cached(), case.boxed).unwrap();
        let q = case.queries(&text);
        let rows = copy_queries(&driver, &q).unwrap();
        let got = boxes
            .search(&driver, &rows, &copied.cached(), &case.request(), case.voters, case.probes)
            .unwrap();
        let (got, want) = (got.read().unwrap(), Reference.top_k(&q, &text.store.view(), &case.request()));
        for (slot, (got_score, want_score)) in got.scores.iter().zip(&want.scores).enumerate() {
            assert!((got_score - want_score).abs() < 1e-4, "{got_score} for {want_score}: {case:?}");
            if got.indices[slot] != want.indices[slot] {
                // A near tie: the reference has it nearby.
                let of_row = want.row(slot / k / 4, slot / k % 4);
                let tied = of_row.contains(&got.indices[slot]) || slot % k == k - 1;
                assert!(tied, "slot {slot}: {case:?}");
            }
        }
    }
}

#[test]
fn rounding_of_queries_is_that_of_keys() {
    let case = Case { data: Data::Clusters, probes: 4, group: 3, ..BASE };
    let Some(driver) = case.driver() else { return };
    let mut text = case.text();
    let copied = Copied::new(&driver, &text.store.view()).unwrap();
    let mut boxes = Boxes::new(5);
    boxes.extend(&driver, &copied.cached(), case.boxed).unwrap();
    // What bf16 rounds away, halves of its last bit excluded.
    let exact = text.queries.clone();
    text.queries.iter_mut().for_each(|x| *x *= 1.0 + 1.0 / 1024.0);
    let q = case.queries(&text);
    let rows = copy_queries(&driver, &q).unwrap();
    let got = boxes.search(&driver, &rows, &copied.cached(), &case.request(), case.voters, 4).unwrap();
    let text = Text { queries: exact, ..text };
    assert_eq!(got.read().unwrap(), case.by_the_rule(&case.queries(&text), &text.store.view()));
}

#[test]
fn boxes_grow_and_are_forgotten() {
    for half in [true, false] {
        let case = Case { half, n_kv_heads: 2, group: 2, keys: 30..9500, data: Data::Clusters, ..BASE };
        let Some(driver) = case.driver() else { return };
        let text = case.text();
        let copied = Copied::new(&driver, &text.store.view()).unwrap();
        let kv = copied.cached();
        let mut boxes = Boxes::new(30);
        assert_eq!((boxes.first(), boxes.bytes()), (30, 0));
        boxes.extend(&driver, &kv, 20).unwrap();
        boxes.extend(&driver, &kv, 157).unwrap();
        assert_eq!(boxes.bytes(), 0);
        boxes.extend(&driver, &kv, 158).unwrap();
        let page = 2 * PAGE * 2 * 16 * if half { 2 } else { 4 };
        let tables = boxes.bytes() - 2 * page;
        assert!(tables < 1024, "{tables} bytes of tables");
        let check = |boxes: &Boxes, boxed: usize| {
            let case = Case { boxed, ..case.clone() };
            case.check(&driver, boxes, &kv, &text);
        };
        check(&boxes, 158);
        for end in [300, 300, 299, 8221, 8222, 8230, 9460] {
            boxes.extend(&driver, &kv, end).unwrap();
        }
        assert_eq!(boxes.bytes() - tables, 3 * page);
        check(&boxes, 9460);
        boxes.truncate(9500);
        check(&boxes, 9460);
        boxes.truncate(8221);
        assert_eq!(boxes.bytes() - tables, 2 * page);
        check(&boxes, 8221);
        boxes.extend(&driver, &kv, 9400).unwrap();
        check(&boxes, 9400);
        // Other keys follow what is kept.
        boxes.truncate(1000);
        let other = Case { seed: 7, ..case.clone() }.text();
        let kept = Case { seed: 7, keys: 30..900, boxed: 9500, ..case.clone() };
        let other_copied = Copied::new(&driver, &other.store.view()).unwrap();
        boxes.truncate(29);
        boxes.extend(&driver, &other_copied.cached(), 950).unwrap();
        kept.check(&driver, &boxes, &other_copied.cached(), &other);
    }
}

#[test]
fn half_precision_has_boxes_too() {
    let case = Case { half: false, group: 2, keys: 5..1500, data: Data::Clusters, ..BASE };
    let Some(driver) = case.driver() else { return };
    let text = case.text();
    let AnyStore::F32(store) = &text.store else { unreachable!("the case says so") };
    let pages: Vec<Block> = store
        .keys
        .iter()
        .flatten()
        .map(|page| page.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>())
        .map(|page| Block::of(&driver, &page).unwrap())
        .collect();
    let entries: Vec<PageEntry> = pages.iter().map(|p| PageEntry { keys: p.at(), values: 0 }).collect();
    let table = Block::of(&driver, &entries).unwrap();
    let shape = CachedShape { len: store.len, n_kv_heads: 1, head_dim: 16, dtype: Dtype::F16 };
    // SAFETY: the pages of this shape stay until the end.
    let kv = unsafe { Cached::new(&driver, table.at(), shape) };
    let mut boxes = Boxes::new(5);
    boxes.extend(&driver, &kv, case.boxed.min(kv.len)).unwrap();
    for probes in [3, 200] {
        Case { probes, boxed: kv.len, ..case.clone() }.check(&driver, &boxes, &kv, &text);
    }
}

#[test]
fn order_of_threads_and_number_of_blocks_change_nothing() {
    for (seed, multiprocessors) in [(0, 1), (2, 1), (3, 7), (4, 132)] {
        let case = Case { seed, multiprocessors, data: Data::Ties, group: 2, k: 20, ..BASE };
        Case { probes: 6, ..case.clone() }.same();
        Case { probes: 200, keys: 50..9000, boxed: 9000, ..case }.same();
    }
}

#[test]
fn what_is_not_served_is_said() {
    let Some(driver) = BASE.driver() else { return };
    let text = BASE.text();
    let copied = Copied::new(&driver, &text.store.view()).unwrap();
    let kv = copied.cached();
    let mut boxes = Boxes::new(5);
    boxes.extend(&driver, &kv, 1990).unwrap();
    let rows = copy_queries(&driver, &BASE.queries(&text)).unwrap();
    let refused = |request: TopKRequest| {
        let found = boxes.search(&driver, &rows, &kv, &request, Voters::ALL, 8);
        matches!(found, Err(CudaError::Unsupported { .. }))
    };
    assert!(!refused(BASE.request()));
    assert!(refused(TopKRequest { k: MOST_KEYS + 1, ..BASE.request() }));
    assert!(refused(TopKRequest { pairing: HeadPairing::Interleaved, ..BASE.request() }));
    assert!(refused(TopKRequest { rule: TopKRule::BestPerTile { tile: 128 }, ..BASE.request() }));
    // SAFETY: nothing is read, since the shape is refused.
    let long = unsafe { Cached::new(&driver, 0, CachedShape { head_dim: 272, ..*kv }) };
    assert!(matches!(Boxes::new(5).extend(&driver, &long, 1990), Err(CudaError::Unsupported { .. })));
}
