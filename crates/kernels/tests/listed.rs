//! The search among listed keys, of every path, against the plain backend and against the search over all keys.

mod common;
use common::{AnyStore, Rng, backends};
use reattention_kernels::{Backend, HeadPairing, ListedRequest, Queries, Reference, TopKRequest, TopKRule};

/// `len` tokens dealt out to `lists` lists, in shuffled order.
fn deal(rng: &mut Rng, len: usize, lists: usize) -> Vec<Vec<u32>> {
    let mut dealt = vec![Vec::new(); lists];
    let mut tokens: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        tokens.swap(i, rng.int(0, i));
    }
    tokens.into_iter().for_each(|t| dealt[rng.int(0, lists - 1)].push(t));
    dealt
}

#[test]
fn finds_the_same_keys_as_the_reference() {
    let mut rng = Rng(20);
    for round in 0..60 {
        let (n_kv_heads, group) = (rng.int(1, 3), rng.pick(&[1, 2, 4, 7, 16]));
        let (head_dim, len) =
            (rng.pick(&[2, 16, 18, 36, 64, 80, 128, 130, 256]), rng.pick(&[1, 40, 700, 2300]));
        let (q_len, k) = (rng.pick(&[1, 1, 3, 40]), rng.pick(&[1, 4, 5, 16, 17, 64]));
        let store = AnyStore::new(round % 2 == 0, len, n_kv_heads, head_dim, || rng.small());
        let n_heads = n_kv_heads * group;
        let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.small()).collect();
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: len };
        let lists = rng.int(1, 40);
        let dealt = deal(&mut rng, len, lists);
        let per_row = rng.int(1, lists);
        let mut looks = Vec::new();
        for _ in 0..q_len * n_heads {
            let first = rng.int(0, lists - 1);
            looks.extend((0..per_row).map(|i| match rng.int(0, 9) {
                0 => ListedRequest::NONE,
                _ => ((first + i) % lists) as u32,
            }));
        }
        let keys = |list: u32| &dealt[list as usize][..];
        let request = ListedRequest { k, lists: &looks, per_row, keys: &keys };
        let want = Reference.top_k_listed(&q, &store.view(), &request);
        for backend in backends().iter().flatten() {
            let got = backend.top_k_listed(&q, &store.view(), &request);
            let shape =
                format!("{}: dim {head_dim}, {n_kv_heads} x {group}, {q_len} queries, k {k}", backend.name());
            assert_eq!(got, want, "{shape}");
        }
    }
}

#[test]
fn lists_of_everything_give_what_the_search_over_all_gives() {
    let mut rng = Rng(21);
    let (n_kv_heads, group, head_dim, len, q_len) = (2, 7, 64, 3000, 150);
    let store = AnyStore::new(true, len, n_kv_heads, head_dim, || rng.normal());
    let n_heads = n_kv_heads * group;
    let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads, q_len, head_dim, first: len };
    let dealt = deal(&mut rng, len, 50);
    let looks: Vec<u32> = (0..q_len * n_heads).flat_map(|_| 0..50).collect();
    for k in [1, 4, 40] {
        let all = TopKRequest { keys: 0..len, k, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        let keys = |list: u32| &dealt[list as usize][..];
        for backend in backends().iter().flatten() {
            let listed = ListedRequest { k, lists: &looks, per_row: 50, keys: &keys };
            let (got, want) =
                (backend.top_k_listed(&q, &store.view(), &listed), backend.top_k(&q, &store.view(), &all));
            assert!(got == want, "{}, k {k}", backend.name());
        }
    }
}

#[test]
fn scores_that_are_no_numbers_are_no_scores() {
    let store = AnyStore::new(false, 10, 1, 2, || 1.0);
    let data = [f32::NAN, 1.0, 1.0, 1.0];
    let q = Queries { data: &data, n_heads: 1, q_len: 2, head_dim: 2, first: 10 };
    let keys = |_: u32| &[3u32, 1, 2][..];
    let request = ListedRequest { k: 4, lists: &[0, 0], per_row: 1, keys: &keys };
    for backend in backends().iter().flatten() {
        let found = backend.top_k_listed(&q, &store.view(), &request);
        assert_eq!(found, Reference.top_k_listed(&q, &store.view(), &request), "{}", backend.name());
        assert_eq!(found.indices, [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 1, 2, 3, u32::MAX]);
    }
}
