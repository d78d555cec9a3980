//! The search for the best keys of every path against the plain backend.

mod common;
use common::{AnyStore, Rng, backends};
use reattention_kernels::{Backend, HeadPairing, Queries, Reference, TopK, TopKRequest, TopKRule};
use std::ops::Range;

struct Case {
    half: bool,
    head_dim: usize,
    n_kv_heads: usize,
    group: usize,
    q_len: usize,
    len: usize,
    keys: Range<usize>,
    k: usize,
    pairing: HeadPairing,
    rule: TopKRule,
}

fn check(case: &Case, rng: &mut Rng) {
    let Case { half, head_dim, n_kv_heads, group, q_len, len, .. } = *case;
    let store = AnyStore::new(half, len, n_kv_heads, head_dim, || rng.small());
    let n_heads = n_kv_heads * group;
    let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.small()).collect();
    let q = Queries { data: &data, n_heads, q_len, head_dim, first: len };
    let request = TopKRequest { keys: case.keys.clone(), k: case.k, pairing: case.pairing, rule: case.rule };
    let want = Reference.top_k(&q, &store.view(), &request);
    for backend in backends().iter().flatten() {
        let got = backend.top_k(&q, &store.view(), &request);
        assert_same(&got, &want, &backend.name(), case);
    }
}

fn assert_same(got: &TopK, want: &TopK, name: &str, case: &Case) {
    let Case { half, head_dim, n_kv_heads, group, q_len, keys, k, pairing, rule, .. } = case;
    let shape = format!(
        "{name}: half {half}, dim {head_dim}, {n_kv_heads} x {group} heads, {q_len} queries, keys {keys:?}, k {k}, \
         {pairing:?}, {rule:?}"
    );
    assert_eq!((got.q_len, got.n_heads, got.k), (want.q_len, want.n_heads, want.k), "{shape}");
    assert!(got.indices == want.indices, "{shape}: {:?} expected {:?}", got.indices, want.indices);
    assert!(got.scores == want.scores, "{shape}: {:?} expected {:?}", got.scores, want.scores);
}

/// Small integers give many exact ties: order among them is checked as well.
#[test]
fn finds_the_same_keys_in_the_same_order_as_the_reference() {
    let mut rng = Rng(10);
    for round in 0..90 {
        let len = rng.pick(&[1, 5, 63, 200, 1024, 1500, 2300]);
        let start = rng.int(0, len - 1);
        let case = Case {
            half: round % 2 == 0,
            head_dim: rng.pick(&[2, 16, 18, 30, 64, 64, 80, 96, 128, 130, 256]),
            n_kv_heads: rng.int(1, 3),
            group: rng.pick(&[1, 2, 4, 7, 16]),
            q_len: rng.pick(&[1, 1, 2, 5, 17]),
            len,
            keys: start..rng.int(start, len),
            k: rng.pick(&[1, 2, 4, 4, 5, 16, 64]),
            pairing: if round % 3 == 0 { HeadPairing::Interleaved } else { HeadPairing::Grouped },
            rule: match round % 5 {
                0 => TopKRule::BestPerTile { tile: 128 },
                1 => TopKRule::BestPerTile { tile: rng.int(1, 70) },
                _ => TopKRule::Exact,
            },
        };
        check(&case, &mut rng);
    }
}

#[test]
fn ranges_and_blocks_of_rows_are_merged_in_order() {
    let mut rng = Rng(11);
    for half in [false, true] {
        for (q_len, group, len, k) in [(1, 3, 20_000, 8), (130, 5, 1100, 4), (1, 1, 9000, 64)] {
            let case = Case {
                half,
                head_dim: 16,
                n_kv_heads: 2,
                group,
                q_len,
                len,
                keys: 7..len - 5,
                k,
                pairing: HeadPairing::Grouped,
                rule: TopKRule::Exact,
            };
            check(&case, &mut rng);
        }
    }
}

#[test]
fn real_scores_are_the_true_best() {
    let mut rng = Rng(12);
    let (head_dim, n_heads, len, k) = (64, 4, 6000, 4);
    let store = AnyStore::new(false, len, 2, head_dim, || rng.normal());
    let data: Vec<f32> = (0..3 * n_heads * head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads, q_len: 3, head_dim, first: len };
    let request = TopKRequest { keys: 1..len, k, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    let want = Reference.top_k(&q, &store.view(), &request);
    for backend in backends().iter().flatten() {
        let got = backend.top_k(&q, &store.view(), &request);
        common::assert_close(&got.scores, &want.scores, 1e-5, &backend.name());
        // Keys may trade places only where their scores agree to rounding.
        for (i, (g, w)) in got.indices.iter().zip(&want.indices).enumerate() {
            let row = i / k * k;
            let near = (row..row + k).any(|j| j != i && (want.scores[j] - want.scores[i]).abs() < 1e-4);
            assert!(g == w || near, "{}: slot {i} is {g}, expected {w}", backend.name());
        }
    }
}

#[test]
fn scores_that_are_no_numbers_come_last() {
    let (head_dim, len) = (16, 300);
    for half in [false, true] {
        let mut at = 0;
        // Every third key is NaN, and all of the first half of the keys hold minus infinities.
        let store = AnyStore::new(half, len, 1, head_dim, || {
            let key = at / head_dim;
            at += 1;
            match key {
                k if k % 3 == 0 => f32::NAN,
                k if k < 150 => f32::NEG_INFINITY,
                k => 1.0 + (k % 5) as f32,
            }
        });
        let data = vec![1.0; head_dim];
        let q = Queries { data: &data, n_heads: 1, q_len: 1, head_dim, first: len };
        let paths = backends();
        let paths = paths.iter().flatten().map(|path| path as &dyn Backend);
        for backend in paths.chain([&Reference as &dyn Backend]) {
            let ask = |keys: Range<usize>, k| {
                let request = TopKRequest { keys, k, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
                backend.top_k(&q, &store.view(), &request).unwrap().indices
            };
            assert_eq!(ask(0..300, 4), [154, 164, 169, 179], "{}", backend.name());
            let mut all = ask(140..160, 20);
            assert!(all[..6].iter().all(|&t| t > 150 && t % 3 != 0), "{}: {all:?}", backend.name());
            all.sort_unstable();
            assert!(all.iter().copied().eq(140..160), "{}: {all:?}", backend.name());
        }
    }
}
