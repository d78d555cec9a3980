//! Attention over segments of every path against the plain backend.

mod common;
use common::{AnyStore, Rng, assert_close, backends, key_set};
use reattention_kernels::{
    Backend, Band, Cpu, KeySet, KvView, LogitRule, Position, Queries, Reference, RopeTable, Segment,
};
use std::sync::Arc;

fn rope(head_dim: usize, base: f32, multiplier: f32) -> Arc<RopeTable> {
    let pairs = head_dim / 2;
    let inv_freq = (0..pairs).map(|i| base.powf(-(i as f32) / pairs as f32)).collect();
    Arc::new(RopeTable::new(inv_freq, multiplier, 4096))
}

fn position(rng: &mut Rng) -> Position {
    match rng.int(0, 6) {
        4 => Position::Grouped { width: rng.int(1, 9), offset: rng.int(0, 90) as i64 },
        5 => Position::Modulo {
            modulus: rng.int(1, 90),
            offset: rng.int(0, 90) as i64,
            max: rng.int(0, 120) as i64,
        },
        6 => Position::Stair { border: rng.int(0, 700), width: rng.int(1, 50) },
        0 => Position::Index { offset: rng.int(0, 40) as i64 - 20 },
        1 => Position::Capped { max: rng.int(1, 400) as i64 },
        2 => Position::Rank { offset: rng.int(0, 300) as i64 - 3 },
        _ => Position::Constant(rng.int(0, 5000) as i64),
    }
}

fn segment(rng: &mut Rng, len: usize, ropes: &[Arc<RopeTable>]) -> Segment {
    let band = match rng.int(0, 3) {
        3 => Band { min: rng.int(0, 3), max: rng.int(0, 5), unit: rng.int(1, 130) },
        0 => Band::between(rng.int(0, 100), rng.int(0, 400)),
        1 => Band::between(rng.int(0, 300), usize::MAX),
        _ => Band::CAUSAL,
    };
    Segment {
        keys: key_set(rng, len),
        band,
        key_position: position(rng),
        query_position: position(rng),
        key_rope: ropes[rng.int(0, ropes.len() - 1)].clone(),
        query_rope: ropes[rng.int(0, ropes.len() - 1)].clone(),
    }
}

struct Shape {
    half: bool,
    head_dim: usize,
    n_kv_heads: usize,
    group: usize,
    q_len: usize,
    len: usize,
    first: usize,
}

fn check(shape: &Shape, views: &[Vec<Segment>], rng: &mut Rng) {
    let Shape { half, head_dim, n_kv_heads, group, q_len, len, first } = *shape;
    let store = AnyStore::new(half, len, n_kv_heads, head_dim, || rng.normal());
    let n_heads = n_kv_heads * group;
    let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.normal()).collect();
    let q = Queries { data: &data, n_heads, q_len, head_dim, first };
    // Some shapes have their logits capped, low enough to bend most of them.
    let softcap = (rng.normal() > 0.4).then_some(1.5);
    let scale = LogitRule { scale: 1.0 / (head_dim as f32).sqrt(), softcap };
    let (mut want, mut want_lse) = (vec![f32::NAN; data.len()], vec![f32::NAN; q_len * n_heads]);
    Reference.attend(&q, &store.view(), views, scale, &mut want, Some(&mut want_lse));
    for backends in backends() {
        let what = format!(
            "{}: half {half}, dim {head_dim}, {n_kv_heads} x {group} heads, {q_len} queries from {first}, {len} keys",
            backends[0].name()
        );
        // Where the path multiplies in bf16, keys, queries and weights are each rounded to eight bits.
        let tolerance = if half && backends[0].name().contains("bf16") { 4e-2 } else { 2e-5 };
        let mut before: Option<(Vec<f32>, Vec<f32>)> = None;
        for backend in &backends {
            let (mut got, mut lse) = (vec![f32::NAN; data.len()], vec![f32::NAN; q_len * n_heads]);
            backend.attend(&q, &store.view(), views, scale, &mut got, Some(&mut lse));
            assert_close(&got, &want, tolerance, &what);
            assert_close(&lse, &want_lse, tolerance, &format!("{what}, lse"));
            let mut without = vec![f32::NAN; data.len()];
            backend.attend(&q, &store.view(), views, scale, &mut without, None);
            assert!(without == got, "{what}: asking for the log-sum-exp changes the output");
            if let Some(before) = &before {
                assert!(before.0 == got && before.1 == lse, "{what}: depends on the number of threads");
            }
            before = Some((got, lse));
        }
        check_mass(&backends, &q, &store.view(), views, scale, &want_lse, tolerance, &what);
    }
}

fn check_mass(
    backends: &[Cpu],
    q: &Queries,
    kv: &KvView,
    views: &[Vec<Segment>],
    scale: LogitRule,
    lse: &[f32],
    tolerance: f32,
    what: &str,
) {
    let want = Reference.key_mass(q, kv, views, scale, lse);
    let all: Vec<_> = backends.iter().map(|b| b.key_mass(q, kv, views, scale, lse)).collect();
    assert_eq!(all[0].len(), want.len(), "{what}: heads");
    for (head, (got, want)) in all[0].iter().zip(&want).enumerate() {
        assert_close(got, want, tolerance, &format!("{what}, mass of head {head}"));
    }
    assert!(all.iter().all(|mass| *mass == all[0]), "{what}: the mass depends on the number of threads");
}

#[test]
fn agrees_with_the_reference_over_random_segments() {
    let mut rng = Rng(20);
    for round in 0..90 {
        let len = rng.pick(&[1, 40, 129, 700, 1300]);
        let shape = Shape {
            half: round % 2 == 0,
            head_dim: rng.pick(&[2, 16, 18, 34, 64, 64, 80, 96, 128, 256]),
            n_kv_heads: rng.int(1, 3),
            group: rng.pick(&[1, 2, 3, 7, 16]),
            q_len: rng.pick(&[1, 1, 2, 9, 33]),
            len,
            first: rng.int(0, len),
        };
        let ropes = [rope(shape.head_dim, 10_000.0, 1.0), rope(shape.head_dim, 500_000.0, 1.1)];
        let lists = if round % 3 == 0 { shape.n_kv_heads } else { 1 };
        let views: Vec<Vec<Segment>> = (0..lists)
            .map(|_| (0..rng.int(0, 3)).map(|_| segment(&mut rng, len, &ropes)).collect())
            .collect();
        check(&shape, &views, &mut rng);
    }
}

/// Few rows and whole heads take a way of their own: every number of rows, with gaps, bands and several segments.
#[test]
fn few_rows_agree_with_the_reference() {
    let mut rng = Rng(25);
    for (i, (group, q_len)) in [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (9, 1),
        (16, 1),
        (1, 8),
        (2, 3),
        (1, 5),
    ]
    .into_iter()
    .enumerate()
    {
        for head_dim in [64, 128, rng.pick(&[16, 32, 48, 80, 96, 112, 192, 256])] {
            let len = rng.int(400, 2500);
            let shape = Shape {
                half: i % 4 != 3,
                head_dim,
                n_kv_heads: rng.int(1, 2),
                group,
                q_len,
                len,
                first: len - q_len,
            };
            let ropes = [rope(head_dim, 10_000.0, 1.0), rope(head_dim, 500_000.0, 1.1)];
            let views = vec![(0..rng.int(1, 3)).map(|_| segment(&mut rng, len, &ropes)).collect()];
            check(&shape, &views, &mut rng);
        }
    }
}

#[test]
fn causal_chunks_cross_tiles_blocks_and_pages() {
    let mut rng = Rng(21);
    for (half, q_len, group, first, head_dim) in
        [(false, 300, 2, 900, 32), (true, 300, 2, 900, 64), (true, 130, 16, 0, 16), (false, 77, 5, 1000, 64)]
    {
        let len = first + q_len;
        let rope = rope(head_dim, 10_000.0, 1.0);
        let all = Segment {
            keys: KeySet::Range(0..len),
            band: Band::CAUSAL,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: rope.clone(),
            query_rope: rope.clone(),
        };
        let shape = Shape { half, head_dim, n_kv_heads: 1, group, q_len, len, first };
        check(&shape, &[vec![all.clone()]], &mut rng);
        // A window and what lies before it, at a constant distance.
        let near = Segment { band: Band::between(0, 100), ..all.clone() };
        let far = Segment {
            band: Band::between(100, usize::MAX),
            key_position: Position::Constant(0),
            query_position: Position::Constant(100),
            ..all
        };
        check(&shape, &[vec![near, far]], &mut rng);
    }
}

/// What InfLLM asks of every step: the mass of a window that crosses pages, out of an attention that saw more than it.
#[test]
fn the_mass_of_a_window_crosses_blocks_of_queries_pieces_and_pages() {
    let mut rng = Rng(26);
    for (half, q_len, group, local, head_dim) in [
        (false, 140, 4, 1500, 32),
        (true, 290, 2, 700, 64),
        (true, 9, 16, 1100, 128),
        (false, 1, 3, 2100, 18),
    ] {
        let (n_kv_heads, first) = (2, 2500);
        let len = first + q_len;
        let rope = rope(head_dim, 10_000.0, 1.0);
        let oldest = first + 1 - local;
        let slot = Position::Index { offset: -(oldest as i64) };
        let part = |keys, band, key_position, query_position| Segment {
            keys,
            band,
            key_position,
            query_position,
            key_rope: rope.clone(),
            query_rope: rope.clone(),
        };
        let near = part(KeySet::Range(oldest..len), Band::between(0, local), slot, slot);
        let blocks: Arc<[u32]> = (0..oldest as u32).filter(|t| t % 200 < 16).collect();
        let outside = Band::between(local, usize::MAX);
        let far =
            part(KeySet::Gathered(blocks), outside, Position::Constant(0), Position::Constant(local as i64));
        let store = AnyStore::new(half, len, n_kv_heads, head_dim, || rng.normal());
        let n_heads = n_kv_heads * group;
        let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| rng.normal()).collect();
        let q = Queries { data: &data, n_heads, q_len, head_dim, first };
        let (scale, views) = (1.0 / (head_dim as f32).sqrt(), [vec![near.clone(), far]]);
        let (mut out, mut lse) = (vec![0.0; data.len()], vec![0.0; q_len * n_heads]);
        Reference.attend(&q, &store.view(), &views, scale, &mut out, Some(&mut lse));
        for backends in backends() {
            let what = format!("{}: half {half}, dim {head_dim}, {q_len} queries", backends[0].name());
            let tolerance = if half && backends[0].name().contains("bf16") { 4e-2 } else { 5e-5 };
            check_mass(
                &backends,
                &q,
                &store.view(),
                &[vec![near.clone()]],
                scale.into(),
                &lse,
                tolerance,
                &what,
            );
            let all = backends[0].key_mass(&q, &store.view(), &views, scale, &lse);
            for (head, mass) in all.iter().enumerate() {
                assert_close(
                    &[mass.iter().sum()],
                    &[q_len as f32],
                    tolerance,
                    &format!("{what}, head {head}"),
                );
            }
        }
    }
}

#[test]
fn long_ranges_of_few_queries_are_split_and_merged() {
    let mut rng = Rng(22);
    for (half, n_kv_heads, group, len) in [(false, 1, 7, 9000), (true, 2, 4, 5000), (true, 1, 1, 3000)] {
        let rope = rope(64, 10_000.0, 1.0);
        let part = |keys| Segment {
            keys,
            band: Band::CAUSAL,
            key_position: Position::Rank { offset: 3 },
            query_position: Position::Constant(4000),
            key_rope: rope.clone(),
            query_rope: rope.clone(),
        };
        let gathered: Arc<[u32]> = (100..len as u32 - 300).filter(|t| t % 48 < 32).collect();
        let views = [vec![
            part(KeySet::Range(0..16)),
            part(KeySet::Gathered(gathered)),
            part(KeySet::Range(len - 300..len)),
        ]];
        let shape = Shape { half, head_dim: 64, n_kv_heads, group, q_len: 1, len, first: len - 1 };
        check(&shape, &views, &mut rng);
    }
}

#[test]
fn large_logits_do_not_overflow() {
    let mut rng = Rng(23);
    let rope = rope(32, 10_000.0, 1.0);
    let store = AnyStore::new(false, 500, 1, 32, || rng.normal() * 30.0);
    let data: Vec<f32> = (0..2 * 32).map(|_| rng.normal() * 30.0).collect();
    let q = Queries { data: &data, n_heads: 1, q_len: 2, head_dim: 32, first: 498 };
    let all = Segment {
        keys: KeySet::Range(0..500),
        band: Band::CAUSAL,
        key_position: Position::Constant(0),
        query_position: Position::Constant(0),
        key_rope: rope.clone(),
        query_rope: rope,
    };
    let (mut want, mut got) = (vec![0.0; 64], vec![0.0; 64]);
    Reference.attend(&q, &store.view(), &[vec![all.clone()]], 1.0, &mut want, None);
    for backend in backends().iter().flatten() {
        backend.attend(&q, &store.view(), &[vec![all.clone()]], 1.0, &mut got, None);
        assert_close(&got, &want, 1e-2, &backend.name());
    }
}

#[test]
fn bands_and_positions_give_the_published_distances() {
    // What the last of `n` queries is told of the distances of keys 0, 1, ... by a list of segments.
    let row = |n: usize, segments: &[(Band, Position, Position)]| -> Vec<i64> {
        let distance = |key: usize| {
            let seen: Vec<_> = segments.iter().filter(|s| s.0.sees(n - 1, key)).collect();
            assert_eq!(seen.len(), 1, "key {key} is seen by {} segments", seen.len());
            seen[0].2.at(n - 1, 0) - seen[0].1.at(key, key)
        };
        (0..n).map(distance).collect()
    };
    let own = Position::Index { offset: 0 };
    // STRING: shift 4, local value 1.
    let far = (Band::between(4, usize::MAX), own, Position::Index { offset: -3 });
    assert_eq!(row(9, &[(Band::between(0, 4), own, own), far]), [5, 4, 3, 2, 1, 3, 2, 1, 0]);
    // SelfExtend: groups of 2, window 4.
    let grouped = |offset| Position::Grouped { width: 2, offset };
    let far = (Band::between(4, usize::MAX), grouped(0), grouped(2));
    assert_eq!(row(10, &[(Band::between(0, 4), own, own), far]), [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]);
    // Dual chunk attention: largest distance 6, chunks of 4.
    let chunks = |min, max| Band { min, max, unit: 4 };
    let rest = |offset, max| Position::Modulo { modulus: 4, offset, max };
    let key = rest(0, i64::MAX);
    let segments = [
        (chunks(0, 1), key, key),
        (chunks(1, 2), key, rest(4, 6)),
        (chunks(2, usize::MAX), key, Position::Constant(6)),
    ];
    assert_eq!(row(14, &segments), [6, 5, 4, 3, 6, 5, 4, 3, 5, 4, 3, 2, 1, 0]);
    // Mesa: chunks of 8, stairs of 3.
    let stair = Position::Stair { border: 17, width: 3 };
    assert_eq!(
        row(20, &[(Band::CAUSAL, stair, stair)]),
        [8, 8, 7, 7, 7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 1, 0]
    );
}

/// The rows of `out: [rows, dim]` that are no numbers.
fn not_numbers(out: &[f32], dim: usize) -> Vec<bool> {
    out.chunks_exact(dim).map(|row| row.iter().any(|x| x.is_nan())).collect()
}

/// Damage must not look like an answer: where the plain backend gives no number, every path gives none.
#[test]
fn what_is_no_number_stays_none_on_every_path() {
    let mut rng = Rng(77);
    for round in 0..60 {
        let len = rng.pick(&[1, 40, 129, 700, 2100]);
        let (half, dim, n_kv_heads, group) =
            (round % 2 == 0, rng.pick(&[16, 34, 64]), rng.int(1, 2), rng.pick(&[1, 3]));
        let (q_len, n_heads) = (rng.pick(&[1, 2, 33]).min(len), n_kv_heads * group);
        let mut store = AnyStore::new(half, len, n_kv_heads, dim, || rng.normal());
        let mut data: Vec<f32> = (0..q_len * n_heads * dim).map(|_| rng.normal()).collect();
        let (is_key, token) = (rng.int(0, 2), rng.int(0, len - 1));
        let bad = rng.pick(&[f32::NAN, -f32::NAN]);
        // All keys, or one element of one.
        let all = rng.int(0, 3) == 0;
        match is_key {
            0 => data[0] = f32::NAN,
            side => store.damage(side == 1, if all { 0..len } else { token..token + 1 }, bad),
        }
        let q = Queries { data: &data, n_heads, q_len, head_dim: dim, first: len - q_len };
        let table = rope(dim, 10_000.0, 1.0);
        let own = Position::Index { offset: 0 };
        let part = |keys| Segment {
            keys: KeySet::Range(keys),
            band: Band::CAUSAL,
            key_position: own,
            query_position: own,
            key_rope: Arc::clone(&table),
            query_rope: Arc::clone(&table),
        };
        let views = [vec![part(0..len / 2), part(len / 2..len)]];
        let scale = 1.0 / (dim as f32).sqrt();
        let run = |backend: &dyn Backend| {
            let (mut out, mut lse) = (vec![0.0; data.len()], vec![0.0; q_len * n_heads]);
            backend.attend(&q, &store.view(), &views, scale.into(), &mut out, Some(&mut lse)).unwrap();
            let mass = backend.key_mass(&q, &store.view(), &views, scale.into(), &lse).unwrap();
            (not_numbers(&out, dim), not_numbers(&lse, 1), not_numbers(&mass.concat(), 1))
        };
        let want = run(&Reference);
        assert!(want.0.contains(&true), "round {round}: nothing sees the damage");
        for backend in backends().iter().flatten() {
            let got = run(backend);
            for (what, got, want) in
                [("output", got.0, &want.0), ("lse", got.1, &want.1), ("mass", got.2, &want.2)]
            {
                let lost = want.iter().zip(&got).position(|(want, got)| *want && !got);
                assert_eq!(lost, None, "{}: {what} of round {round} hides {bad}, len {len}", backend.name());
            }
        }
    }
}

/// What is left of tokens that were rolled back, were it no numbers, is not looked at.
#[test]
fn what_lies_behind_the_last_key_changes_nothing() {
    let mut rng = Rng(78);
    for round in 0..40 {
        let len = rng.pick(&[1, 7, 40, 129, 1030]);
        let (half, dim, group) = (round % 2 == 0, rng.pick(&[16, 34, 64]), rng.pick(&[1, 3]));
        let q_len = rng.pick(&[1, 2, 33]).min(len);
        let mut store = AnyStore::new(half, len, 2, dim, || rng.normal());
        let data: Vec<f32> = (0..q_len * 2 * group * dim).map(|_| rng.normal()).collect();
        let q = Queries { data: &data, n_heads: 2 * group, q_len, head_dim: dim, first: len - q_len };
        let table = rope(dim, 10_000.0, 1.0);
        let own = Position::Index { offset: 0 };
        let views = [vec![Segment {
            keys: KeySet::Range(0..len),
            band: Band::CAUSAL,
            key_position: own,
            query_position: own,
            key_rope: Arc::clone(&table),
            query_rope: table,
        }]];
        let run = |backend: &Cpu, store: &AnyStore| {
            let mut out = vec![0.0; data.len()];
            backend.attend(&q, &store.view(), &views, 0.2, &mut out, None);
            out
        };
        let want: Vec<_> = backends().iter().flatten().map(|backend| run(backend, &store)).collect();
        for side in [true, false] {
            store.damage(side, len..len.next_multiple_of(reattention_kernels::PAGE), f32::NAN);
        }
        for (backend, want) in backends().iter().flatten().zip(want) {
            assert!(run(backend, &store) == want, "{}: round {round}, len {len}", backend.name());
        }
    }
}
