//! The search among keys known by signs: every path against the plain backend, and what signs are worth.

mod common;
use common::{Rng, backends};
use reattention_kernels::{Backend, ListedRequest, Queries, Reference, SignGroup, SignRequest, TopK};

/// Keys in groups, by their difference to the group's centre.
struct Groups {
    keys: Vec<Vec<u32>>,
    codes: Vec<Vec<u32>>,
    slots: Vec<usize>,
}

impl Groups {
    fn new(head_dim: usize, groups: &[Vec<Vec<f32>>]) -> Self {
        let (mut made, mut token) = (Self { keys: Vec::new(), codes: Vec::new(), slots: Vec::new() }, 0);
        for group in groups {
            let slots = group.len().next_multiple_of(SignGroup::SLOTS);
            let mut codes = vec![u32::MAX; SignGroup::codes_len(head_dim, slots)];
            for (slot, difference) in group.iter().enumerate() {
                SignGroup::encode(difference, slot, slots, &mut codes);
            }
            made.keys.push((token..token + group.len() as u32).collect());
            token += group.len() as u32;
            made.codes.push(codes);
            made.slots.push(slots);
        }
        made
    }

    fn group(&self, i: u32) -> SignGroup<'_> {
        let i = i as usize;
        SignGroup { keys: &self.keys[i], slots: self.slots[i], codes: &self.codes[i] }
    }
}

#[test]
fn every_path_finds_the_same_keys() {
    let mut rng = Rng(40);
    for _ in 0..60 {
        let (n_heads, q_len) = (rng.int(1, 8), rng.pick(&[1, 1, 3, 20]));
        let (head_dim, k) = (rng.pick(&[2, 16, 18, 32, 36, 80, 128, 130, 256]), rng.pick(&[1, 4, 9, 100]));
        // Sizes are powers of two and all sums whole numbers, so that no path rounds.
        let n_groups = rng.int(1, 30);
        let groups: Vec<Vec<Vec<f32>>> = (0..n_groups)
            .map(|_| {
                let size = rng.pick(&[1.0, 2.0, 16.0]);
                let mut key = || (0..head_dim).map(|_| rng.pick(&[size, -size])).collect();
                let keys: Vec<Vec<f32>> = (0..70).map(|_| key()).collect();
                keys[..rng.int(0, 70)].to_vec()
            })
            .collect();
        let groups = Groups::new(head_dim, &groups);
        let mut data: Vec<f32> =
            (0..q_len * n_heads * head_dim).map(|_| rng.int(0, 254) as f32 - 127.0).collect();
        data.chunks_exact_mut(head_dim).for_each(|row| row[0] = 127.0);
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: 0 };
        let per_row = rng.int(1, n_groups);
        let (mut lists, mut centres) = (Vec::new(), Vec::new());
        for _ in 0..q_len * n_heads {
            let first = rng.int(0, n_groups - 1);
            for i in 0..per_row {
                lists.push(if rng.int(0, 9) == 0 {
                    ListedRequest::NONE
                } else {
                    ((first + i) % n_groups) as u32
                });
                centres.push(rng.int(0, 2000) as f32 - 1000.0);
            }
        }
        let request =
            SignRequest { k, lists: &lists, centres: &centres, per_row, group: &|i| groups.group(i) };
        // Backends need not order what they find.
        let ordered = |found: TopK| -> Vec<Vec<(u32, u32)>> {
            let of_row = |row: usize| {
                let slots = row * k..(row + 1) * k;
                let scores = found.scores[slots.clone()].iter().map(|s| s.to_bits());
                let mut keys: Vec<_> = found.indices[slots].iter().copied().zip(scores).collect();
                keys.sort_unstable();
                keys
            };
            (0..q_len * n_heads).map(of_row).collect()
        };
        let want = ordered(Reference.top_k_signs(&q, &request));
        for backend in backends().iter().flatten() {
            let got = ordered(backend.top_k_signs(&q, &request));
            assert!(
                got == want,
                "{}: dim {head_dim}, {n_heads} heads, {q_len} queries, k {k}, {per_row} of {n_groups} groups",
                backend.name()
            );
        }
    }
}

#[test]
fn the_best_keys_are_among_the_few_that_promise_most() {
    let mut rng = Rng(41);
    let (head_dim, n_groups, rows) = (32, 40, 50);
    let centres: Vec<Vec<f32>> =
        (0..n_groups).map(|_| (0..head_dim).map(|_| rng.normal()).collect()).collect();
    let differences: Vec<Vec<Vec<f32>>> = (0..n_groups)
        .map(|_| (0..50).map(|_| (0..head_dim).map(|_| rng.normal()).collect()).collect())
        .collect();
    let groups = Groups::new(head_dim, &differences);
    let data: Vec<f32> = (0..rows * head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads: 1, q_len: rows, head_dim, first: 0 };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let scores: Vec<f32> = (0..rows)
        .flat_map(|row| centres.iter().map(move |c| (row, c)))
        .map(|(row, c)| dot(q.row(row, 0), c))
        .collect();
    let lists: Vec<u32> = (0..rows).flat_map(|_| 0..n_groups as u32).collect();
    let request = SignRequest {
        k: 100,
        lists: &lists,
        centres: &scores,
        per_row: n_groups,
        group: &|i| groups.group(i),
    };
    let found = Reference.top_k_signs(&q, &request);
    let mut hits = 0;
    for row in 0..rows {
        let score = |token: usize| {
            let (group, slot) = (token / 50, token % 50);
            scores[row * n_groups + group] + dot(q.row(row, 0), &differences[group][slot])
        };
        let best = (0..n_groups * 50).max_by(|&a, &b| score(a).total_cmp(&score(b))).expect("keys");
        hits += usize::from(found.row(row, 0).contains(&(best as u32)));
    }
    assert!(
        hits >= rows * 9 / 10,
        "the best of 2000 keys is among the first 100 for {hits} of {rows} queries"
    );
}

#[test]
fn widened_codes_and_what_is_no_number() {
    let (head_dim, mut rng) = (34, Rng(42));
    let mut difference = || -> Vec<f32> { (0..head_dim).map(|_| rng.normal()).collect() };
    let differences: Vec<Vec<f32>> = (0..16).map(|_| difference()).collect();
    let mut codes = [16, 48].map(|slots| (slots, vec![0; SignGroup::codes_len(head_dim, slots)]));
    for (slots, codes) in &mut codes {
        for (slot, one) in differences.iter().enumerate() {
            SignGroup::encode(one, slot, *slots, codes);
        }
    }
    let mut widened = vec![0; codes[1].1.len()];
    SignGroup::widen(16, &codes[0].1, 48, &mut widened);
    assert_eq!(widened, codes[1].1);

    SignGroup::encode(&vec![f32::NAN; head_dim], 3, 48, &mut widened);
    let keys: Vec<u32> = (100..116).collect();
    let mut data = vec![1.0; 2 * head_dim];
    data[0] = f32::INFINITY;
    let q = Queries { data: &data, n_heads: 1, q_len: 2, head_dim, first: 0 };
    let group = |_: u32| SignGroup { keys: &keys, slots: 48, codes: &widened };
    let request = SignRequest { k: 2, lists: &[0, 0], centres: &[f32::NAN, 1.0], per_row: 1, group: &group };
    for backend in backends().iter().flatten() {
        let found = backend.top_k_signs(&q, &request);
        assert_eq!(found.row(0, 0), [ListedRequest::NONE; 2], "{}", backend.name());
        assert!(found.row(1, 0).iter().all(|token| (100..116).contains(token)));
        assert!(found.scores[2..].iter().all(|score| score.is_finite()));
    }
}
