//! The search among keys in few bits: every path against the plain backend, and what rounding costs.

mod common;
use common::{AnyStore, Rng, backends};
use reattention_kernels::{
    Backend, Element, HeadPairing, ListedRequest, LowBitKeys, Queries, Reference, TopKRequest, TopKRule,
};

#[test]
fn every_path_finds_the_same_keys() {
    let mut rng = Rng(30);
    for round in 0..40 {
        let (n_kv_heads, group) = (rng.int(1, 3), rng.pick(&[1, 2, 4, 7, 16]));
        let (head_dim, tiles) =
            (rng.pick(&[2, 16, 18, 36, 64, 80, 128, 130, 256]), rng.pick(&[0, 1, 3, 16, 40]));
        let (q_len, k) = (rng.pick(&[1, 1, 3, 40]), rng.pick(&[1, 4, 16, 100]));
        let bits = rng.pick(&[8, 4, 2]);
        let len = tiles * LowBitKeys::TILE + rng.int(0, 63);
        let store = AnyStore::new(round % 2 == 0, len + 1, n_kv_heads, head_dim, || rng.normal());
        let n_heads = n_kv_heads * group;
        let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.normal()).collect();
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: len };
        let mut keys = LowBitKeys::new(bits, n_kv_heads, head_dim);
        // In two steps, the second of which is forgotten and repeated.
        let first = tiles / 3 * LowBitKeys::TILE;
        keys.add(&store.view(), 0..first);
        keys.add(&store.view(), first..tiles * LowBitKeys::TILE);
        keys.truncate(first + 5);
        keys.add(&store.view(), first..tiles * LowBitKeys::TILE);
        let want = Reference.top_k_low_bit(&q, &keys, k);
        assert_eq!(want.k, k.min(keys.len()));
        for backend in backends().iter().flatten() {
            let got = backend.top_k_low_bit(&q, &keys, k);
            let name = backend.name();
            assert!(
                got == want,
                "{name}: {bits} bits, dim {head_dim}, {n_kv_heads} x {group}, {q_len} queries, k {k}"
            );
        }
    }
}

#[test]
fn scores_are_near_those_of_the_keys() {
    let mut rng = Rng(31);
    let (head_dim, len) = (64, 1024);
    let store = AnyStore::new(true, len, 1, head_dim, || rng.normal());
    let data: Vec<f32> = (0..head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads: 1, q_len: 1, head_dim, first: len };
    let request = TopKRequest { keys: 0..len, k: len, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    let exact = Reference.top_k(&q, &store.view(), &request);
    let mut of = vec![0.0; len];
    exact.indices.iter().zip(&exact.scores).for_each(|(&i, &s)| of[i as usize] = s);
    let size = (of.iter().map(|s| s * s).sum::<f32>() / len as f32).sqrt();
    for (bits, most) in [(8, 0.02), (4, 0.25), (2, 1.2)] {
        let mut keys = LowBitKeys::new(bits, 1, head_dim);
        keys.add(&store.view(), 0..len);
        let found = Reference.top_k_low_bit(&q, &keys, len);
        let error: f32 =
            found.indices.iter().zip(&found.scores).map(|(&i, s)| (s - of[i as usize]).powi(2)).sum();
        let error = (error / len as f32).sqrt() / size;
        assert!(error < most && error > most / 20.0, "{bits} bits: scores are off by {error} of their size");
    }
}

#[test]
fn values_that_codes_hold_exactly_lose_nothing() {
    // Keys of odd numbers up to 15, queries of whole numbers: 4 bits and 8 hold both.
    let mut rng = Rng(32);
    let (head_dim, len) = (8, 640);
    let mut odd = 0;
    let store = AnyStore::new(false, len, 1, head_dim, || {
        odd += 1;
        if odd % head_dim == 0 { 15.0 } else { (rng.next() % 16) as f32 * 2.0 - 15.0 }
    });
    let data = [127.0, -3.0, 0.0, 64.0, 5.0, -100.0, 1.0, 2.0];
    let q = Queries { data: &data, n_heads: 1, q_len: 1, head_dim, first: len };
    let mut keys = LowBitKeys::new(4, 1, head_dim);
    keys.add(&store.view(), 0..len);
    let request = TopKRequest { keys: 0..len, k: 20, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    assert_eq!(Reference.top_k_low_bit(&q, &keys, 20), Reference.top_k(&q, &store.view(), &request));
}

#[test]
fn what_is_no_number_does_no_harm() {
    let mut n = 0;
    let store = AnyStore::new(false, 64, 1, 2, || {
        n += 1;
        if n % 5 == 0 { f32::NAN } else { f32::from_f32(1.0) }
    });
    let mut keys = LowBitKeys::new(8, 1, 2);
    keys.add(&store.view(), 0..64);
    let data = [f32::INFINITY, 1.0, 1.0, 1.0];
    let q = Queries { data: &data, n_heads: 1, q_len: 2, head_dim: 2, first: 64 };
    let want = Reference.top_k_low_bit(&q, &keys, 3);
    assert_eq!(want.row(0, 0), [0, 1, 2], "a query without a length");
    assert!(want.row(1, 0).iter().all(|&i| i < 64) && want.scores.iter().all(|s| s.is_finite()));
    for backend in backends().iter().flatten() {
        assert_eq!(backend.top_k_low_bit(&q, &keys, 3).indices, want.indices, "{}", backend.name());
    }
}

#[test]
fn keys_set_one_by_one_are_found_and_others_are_not() {
    let mut rng = Rng(33);
    const DIM: usize = 18;
    let (head_dim, n) = (DIM, 1200);
    let key =
        |i: usize| -> Vec<f32> { (0..head_dim).map(|j| ((i * 7 + j * 3) % 31) as f32 - 15.0).collect() };
    let mut keys = LowBitKeys::new(8, 1, head_dim);
    for i in 0..n {
        assert_eq!(keys.push(), i);
        keys.set(0, i, &[100.0; DIM]);
        keys.set(0, i, &key(i));
    }
    (0..3).for_each(|_| {
        keys.push();
    });
    let data: Vec<f32> = (0..5 * head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads: 1, q_len: 5, head_dim, first: n };
    let want = Reference.top_k_low_bit(&q, &keys, n + 3);
    for row in 0..5 {
        let mut found = want.row(row, 0)[..n].to_vec();
        found.sort_unstable();
        assert!(found.iter().copied().eq(0..n as u32), "every key that was set");
        assert_eq!(want.row(row, 0)[n..], [ListedRequest::NONE; 3], "none that was not");
    }
    for backend in backends().iter().flatten() {
        assert!(backend.top_k_low_bit(&q, &keys, n + 3) == want, "{}", backend.name());
    }
    keys.truncate(1100);
    assert_eq!((keys.len(), keys.push()), (1088, 1088));
    for backend in backends().iter().flatten() {
        let found = backend.top_k_low_bit(&q, &keys, 1089);
        assert_eq!(found.row(0, 0)[1088], ListedRequest::NONE, "{}", backend.name());
    }
}
