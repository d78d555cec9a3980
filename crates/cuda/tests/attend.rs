//! Attention on an emulated device against the plain backend.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
mod views;

use common::{AnyStore, Rng};
use reattention_cuda::driver::Block;
use reattention_cuda::testing::attend::attend;
use reattention_cuda::testing::paged::{Copied, copy_queries};
use reattention_cuda::testing::rope::Ropes;
use reattention_cuda::testing::segments::{DeviceKeys, DeviceSegment, Views};
use reattention_kernels::{Band, KeySet, KvView, Position, Queries, Reference, Segment};
use std::sync::Arc;
use views::{Shape, assert_logs_near, assert_near, device, part, rope, segment};

/// Attends under a seed; gives the output and the log-sum-exp.
fn run(seed: u64, q: &Queries, kv: &KvView, views: &[Vec<Segment>], scale: f32) -> (Vec<f32>, Vec<f32>) {
    let driver = device(seed).expect("the first device was there");
    let (kv, ropes) = (Copied::new(&driver, kv).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, q).unwrap();
    let out = Block::new(&driver, 4 * q.data.len()).unwrap();
    let lse = Block::new(&driver, 4 * q.q_len * q.n_heads).unwrap();
    let segments = Views::of(&driver, &ropes, views).unwrap();
    attend(&driver, &rows, &kv.cached(), &segments, scale, out.span(), Some(lse.span())).unwrap();
    let with_lse = out.read(0, q.data.len()).unwrap();
    if seed == 0 {
        attend(&driver, &rows, &kv.cached(), &segments, scale, out.span(), None).unwrap();
        assert_eq!(
            out.read::<f32>(0, q.data.len()).unwrap(),
            with_lse,
            "asking for the log-sum-exp changes the output"
        );
    }
    driver.wait().unwrap();
    (with_lse, lse.read(0, q.q_len * q.n_heads).unwrap())
}

/// In bf16 rotated keys, rotated queries and weights are rounded to eight bits each, 0.4 % at most: logits of a few units are off by
/// about a hundredth, and so are weights.
fn tolerance(half: bool) -> f32 {
    if half { 2e-2 } else { 2e-5 }
}

fn check_store(shape: &Shape, store: &AnyStore, views: &[Vec<Segment>], rng: &mut Rng) {
    if device(0).is_none() {
        return;
    }
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
    let q = shape.queries(&data);
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let (mut want, mut want_lse) = (vec![f32::NAN; data.len()], vec![f32::NAN; q.q_len * q.n_heads]);
    Reference.attend(&q, &store.view(), views, scale, &mut want, Some(&mut want_lse));
    let seed = rng.next() % 1000;
    let (got, lse) = run(seed, &q, &store.view(), views, scale);
    let what = format!("{shape:?}, seed {seed}");
    assert_near(&got, &want, tolerance(shape.half), &what);
    assert_logs_near(&lse, &want_lse, tolerance(shape.half), &format!("{what}, lse"));
    if seed.is_multiple_of(4) {
        assert!(
            (got, lse) == run(seed + 1, &q, &store.view(), views, scale),
            "{what}: depends on the order of threads"
        );
    }
}

fn check(shape: &Shape, views: &[Vec<Segment>], rng: &mut Rng) {
    let store = shape.store(rng);
    check_store(shape, &store, views, rng);
}

#[test]
fn agrees_with_the_reference_over_random_segments() {
    let mut rng = Rng(70);
    for round in 0..120 {
        let len = rng.pick(&[1, 40, 129, 700, 1300, 2500]);
        let half = round % 2 == 0;
        let shape = Shape {
            half,
            head_dim: if half { rng.pick(&[16, 64, 128]) } else { rng.pick(&[16, 16, 32]) },
            n_kv_heads: rng.int(1, 3),
            group: rng.pick(&[1, 2, 3, 5, 7]),
            q_len: rng.pick(&[1, 1, 2, 9, 23]),
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

#[test]
fn every_head_dim_and_group_has_a_kernel() {
    let mut rng = Rng(71);
    let in_bf16 =
        [(48, 6, 3), (80, 16, 1), (96, 4, 20), (112, 1, 20), (160, 5, 2), (256, 2, 3), (256, 16, 5)];
    let in_f32 = [(128, 8, 9), (256, 2, 3), (256, 16, 5)];
    for (half, (head_dim, group, q_len)) in
        in_bf16.map(|case| (true, case)).into_iter().chain(in_f32.map(|case| (false, case)))
    {
        for _ in 0..3 {
            let len = rng.int(90, 300);
            let shape = Shape { half, head_dim, n_kv_heads: 1, group, q_len, len, first: len - q_len };
            let ropes = [rope(head_dim, 10_000.0, 1.0), rope(head_dim, 500_000.0, 1.1)];
            check(&shape, &[vec![segment(&mut rng, len, &ropes), segment(&mut rng, len, &ropes)]], &mut rng);
        }
    }
}

#[test]
fn causal_chunks_cross_tiles_and_pages() {
    let mut rng = Rng(72);
    for (half, q_len, group, first, head_dim) in
        [(false, 40, 2, 990, 16), (true, 70, 2, 970, 64), (true, 20, 7, 0, 16), (true, 33, 5, 1000, 128)]
    {
        let len = first + q_len;
        let rope = rope(head_dim, 10_000.0, 1.0);
        let own = Position::Index { offset: 0 };
        let all = part(KeySet::Range(0..len), Band::CAUSAL, own, own, &rope);
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

/// Groups, windows and stairs of the methods: each key is seen once, in blocks of tokens.
#[test]
fn bands_of_whole_blocks_are_cut_where_they_end() {
    let mut rng = Rng(73);
    let rope = rope(16, 10_000.0, 1.0);
    for (half, first, unit) in [(true, 200, 64), (false, 127, 50), (false, 0, 7)] {
        let (q_len, group) = (45, 3);
        let len = first + q_len;
        let shape = Shape { half, head_dim: 16, n_kv_heads: 2, group, q_len, len, first };
        let rest = |offset, max| Position::Modulo { modulus: unit, offset, max };
        let key = rest(0, i64::MAX);
        let chunks =
            |min, max, query| part(KeySet::Range(0..len), Band { min, max, unit }, key, query, &rope);
        let (unit, far) = (unit as i64, 2 * unit as i64 - 3);
        let views = [
            chunks(0, 1, key),
            chunks(1, 2, rest(unit, far)),
            chunks(2, usize::MAX, Position::Constant(far)),
        ];
        check(&shape, &[views.to_vec()], &mut rng);
        let stair = Position::Stair { border: first + 3, width: 5 };
        let grouped = Position::Grouped { width: 4, offset: 9 };
        let near = part(KeySet::Range(0..len), Band::between(0, 20), stair, stair, &rope);
        let far = part(KeySet::Range(0..len), Band::between(20, usize::MAX), grouped, grouped, &rope);
        check(&shape, &[vec![near, far]], &mut rng);
    }
}

#[test]
fn long_ranges_of_few_queries_are_split_and_merged() {
    let mut rng = Rng(74);
    for (half, n_kv_heads, group, len) in [(false, 1, 7, 2900), (true, 2, 4, 3500), (true, 1, 1, 3000)] {
        let rope = rope(16, 10_000.0, 1.0);
        let (key, query) = (Position::Rank { offset: 3 }, Position::Constant(4000));
        let gathered: Arc<[u32]> = (100..len as u32 - 300).filter(|t| t % 48 < 32).collect();
        let views = [vec![
            part(KeySet::Range(0..16), Band::CAUSAL, key, query, &rope),
            part(KeySet::Gathered(gathered), Band::CAUSAL, key, query, &rope),
            part(KeySet::Range(len - 300..len), Band::CAUSAL, key, query, &rope),
        ]];
        let shape = Shape { half, head_dim: 16, n_kv_heads, group, q_len: 1, len, first: len - 1 };
        check(&shape, &views, &mut rng);
    }
}

/// Where the pages of keys that no query sees are gone, nobody looks there.
#[test]
fn released_pages_are_not_touched() {
    let mut rng = Rng(75);
    for half in [false, true] {
        let (len, q_len) = (4200, 9);
        let shape = Shape { half, head_dim: 16, n_kv_heads: 2, group: 2, q_len, len, first: len - q_len };
        let mut store = shape.store(&mut rng);
        for page in 1..3 {
            match &mut store {
                AnyStore::F32(s) => (s.keys[page], s.values[page]) = (None, None),
                AnyStore::Bf16(s) => (s.keys[page], s.values[page]) = (None, None),
            }
        }
        let rope = rope(16, 10_000.0, 1.0);
        let own = Position::Index { offset: 0 };
        let kept = 3 * 1024;
        let far = Band::between(len - 500, usize::MAX);
        let views = [vec![
            part(KeySet::Range(0..len), far, own, own, &rope),
            part(KeySet::Range(0..len), Band::between(0, len - kept - q_len), own, own, &rope),
            // No distance is that: nothing is seen.
            part(KeySet::Range(0..len), Band::between(2600, 2600), own, own, &rope),
            part(KeySet::Range(0..len), Band::between(2900, 2600), own, own, &rope),
        ]];
        check_store(&shape, &store, &views, &mut rng);
        // As a list, of which some queries see the end and some the start.
        let list: Arc<[u32]> = (0..len as u32).step_by(3).collect();
        let views = [vec![
            part(KeySet::Gathered(list.clone()), far, own, own, &rope),
            part(KeySet::Gathered(list), Band::between(0, len - kept - q_len), own, own, &rope),
        ]];
        check_store(&shape, &store, &views, &mut rng);
    }
}

#[test]
fn who_sees_nothing_gets_zeros() {
    let Some(driver) = device(3) else { return };
    let mut rng = Rng(76);
    let shape = Shape { half: true, head_dim: 16, n_kv_heads: 2, group: 2, q_len: 5, len: 100, first: 95 };
    let store = shape.store(&mut rng);
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
    let (kv, ropes) = (Copied::new(&driver, &store.view()).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, &shape.queries(&data)).unwrap();
    let own = Position::Index { offset: 0 };
    let rope = rope(16, 1e4, 1.0);
    let of = |keys, band| part(keys, band, own, own, &rope);
    for views in [
        vec![vec![]],
        vec![vec![of(KeySet::Range(7..7), Band::CAUSAL)]],
        vec![vec![of(KeySet::Gathered([].into()), Band::CAUSAL)]],
        vec![vec![of(KeySet::Range(0..100), Band::between(200, 300))]],
    ] {
        let segments = Views::of(&driver, &ropes, &views).unwrap();
        let (out, lse) = (Block::new(&driver, 4 * data.len()).unwrap(), Block::new(&driver, 4 * 20).unwrap());
        attend(&driver, &rows, &kv.cached(), &segments, 0.2, out.span(), Some(lse.span())).unwrap();
        assert!(out.read::<f32>(0, data.len()).unwrap().iter().all(|x| *x == 0.0));
        assert!(lse.read::<f32>(0, 20).unwrap().iter().all(|x| *x == f32::NEG_INFINITY));
    }
}

/// ReAttention without the host: global, as many spans as the device found, and local behind them, at contiguous positions.
#[test]
fn counts_and_shifts_that_only_the_device_knows() {
    let Some(driver) = device(5) else { return };
    let mut rng = Rng(77);
    for (round, (q_len, found)) in
        [(1, 0), (1, 1), (1, 400), (1, 1000), (12, 0), (12, 333), (30, 64)].into_iter().enumerate()
    {
        let (len, global, local, capacity) = (2000, 16, 200, 700);
        let half = round % 2 == 0;
        let shape = Shape { half, head_dim: 16, n_kv_heads: 2, group: 3, q_len, len, first: len - q_len };
        let store = shape.store(&mut rng);
        let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
        let q = shape.queries(&data);
        let rope = rope(16, 10_000.0, 1.0);
        let kept = found.min(capacity);
        let tokens: Vec<u32> = (0..kept as u32).map(|i| 20 + 2 * i).collect();
        // Towards this view the first local key stands behind all selected ones.
        let start = len - local;
        let view = |selected: KeySet, shift: i64| {
            let query = Position::Index { offset: global as i64 - start as i64 + shift };
            let key = |offset| Position::Rank { offset };
            [
                part(KeySet::Range(0..global), Band::CAUSAL, key(0), query, &rope),
                part(selected, Band::CAUSAL, key(global as i64), query, &rope),
                part(KeySet::Range(start..len), Band::CAUSAL, key(global as i64 + shift), query, &rope),
            ]
        };
        let scale = 0.3;
        let (mut want, mut want_lse) = (vec![f32::NAN; data.len()], vec![f32::NAN; q_len * q.n_heads]);
        let views = [view(KeySet::Gathered(tokens.clone().into()), kept as i64).to_vec()];
        Reference.attend(&q, &store.view(), &views, scale, &mut want, Some(&mut want_lse));

        let (kv, ropes) = (Copied::new(&driver, &store.view()).unwrap(), Ropes::new(&driver));
        let rows = copy_queries(&driver, &q).unwrap();
        // What lies beyond the count is no token.
        let mut padded = tokens;
        padded.resize(capacity, u32::MAX);
        let list = Block::of(&driver, &padded).unwrap();
        let count = Block::of(&driver, &[found as u32]).unwrap();
        let shift = Arc::new(Block::of(&driver, &[kept as u32]).unwrap());
        let mut segments =
            view(KeySet::Range(0..0), 0).map(|s| DeviceSegment::new(&driver, &ropes, &s).unwrap());
        segments[1].keys =
            DeviceKeys::Counted { tokens: Arc::new(list), count: Arc::new(count), capacity, end: len };
        segments[2].key_shift = Some(Arc::clone(&shift));
        segments.iter_mut().for_each(|s| s.query_shift = Some(Arc::clone(&shift)));
        let segments = Views::new(&driver, vec![segments.to_vec()]).unwrap();
        let out = Block::new(&driver, 4 * data.len()).unwrap();
        let lse = Block::new(&driver, 4 * q_len * q.n_heads).unwrap();
        attend(&driver, &rows, &kv.cached(), &segments, scale, out.span(), Some(lse.span())).unwrap();
        let what = format!("{shape:?}, {found} found");
        assert_near(&out.read(0, data.len()).unwrap(), &want, tolerance(half), &what);
        assert_logs_near(&lse.read(0, q_len * q.n_heads).unwrap(), &want_lse, tolerance(half), &what);
    }
}

/// Queries stand at the same place of the step towards all segments, and yet differ by table or by shift alone.
#[test]
fn queries_are_turned_anew_for_another_table_or_shift() {
    let Some(driver) = device(6) else { return };
    let mut rng = Rng(79);
    let shape = Shape { half: false, head_dim: 16, n_kv_heads: 1, group: 2, q_len: 9, len: 130, first: 121 };
    let store = shape.store(&mut rng);
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
    let q = shape.queries(&data);
    let (one, other) = (rope(16, 10_000.0, 1.0), rope(16, 500_000.0, 1.1));
    let own = Position::Index { offset: 0 };
    let shifted = Position::Index { offset: 40 };
    let of = |keys, query, rope| part(KeySet::Range(keys), Band::CAUSAL, own, query, rope);
    // So few that one block goes over them all.
    let views = [vec![of(0..40, own, &one), of(40..90, own, &other), of(90..130, shifted, &other)]];
    let mut want = vec![f32::NAN; data.len()];
    Reference.attend(&q, &store.view(), &views, 0.3, &mut want, None);

    let (kv, ropes) = (Copied::new(&driver, &store.view()).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, &q).unwrap();
    let shift = Arc::new(Block::of(&driver, &[40u32]).unwrap());
    let mut list: Vec<_> = views[0].iter().map(|s| DeviceSegment::new(&driver, &ropes, s).unwrap()).collect();
    (list[2].query_position, list[2].query_shift) = (own, Some(shift));
    let views = Views::new(&driver, vec![list]).unwrap();
    let out = Block::new(&driver, 4 * data.len()).unwrap();
    attend(&driver, &rows, &kv.cached(), &views, 0.3, out.span(), None).unwrap();
    assert_near(&out.read(0, data.len()).unwrap(), &want, tolerance(false), "three ways to stand");
}

#[test]
fn large_logits_do_not_overflow() {
    let Some(_) = device(0) else { return };
    let mut rng = Rng(78);
    let shape = Shape { half: false, head_dim: 32, n_kv_heads: 1, group: 1, q_len: 2, len: 500, first: 498 };
    let store = AnyStore::new(false, 500, 1, 32, || rng.normal() * 30.0);
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal() * 30.0).collect();
    let still = Position::Constant(0);
    let views = [vec![part(KeySet::Range(0..500), Band::CAUSAL, still, still, &rope(32, 1e4, 1.0))]];
    let mut want = vec![0.0; 64];
    Reference.attend(&shape.queries(&data), &store.view(), &views, 1.0, &mut want, None);
    let (got, _) = run(1, &shape.queries(&data), &store.view(), &views, 1.0);
    assert_near(&got, &want, 1e-3, "large logits");
}
