//! The attention that keys get, on an emulated device against the plain backend.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
mod views;

use common::Rng;
use reattention_cuda::driver::Block;
use reattention_cuda::testing::key_mass::{add_mass_of_tokens, key_mass};
use reattention_cuda::testing::paged::{Copied, copy_queries};
use reattention_cuda::testing::rope::Ropes;
use reattention_cuda::testing::segments::{DeviceKeys, DeviceSegment, Views};
use reattention_kernels::{Band, KeySet, KvView, Position, Queries, Reference, Segment};
use std::sync::Arc;
use views::{Shape, assert_near, device, part, rope, segment};

/// Keys and queries stay in f32 after they are rotated, whatever the cached type.
const TOLERANCE: f32 = 2e-5;

/// The masses under a seed, given the log-sum-exp.
fn run(
    seed: u64,
    q: &Queries,
    kv: &KvView,
    views: &[Vec<Segment>],
    scale: f32,
    lse: &[f32],
) -> Vec<Vec<f32>> {
    let driver = device(seed).expect("the first device was there");
    let (kv, ropes) = (Copied::new(&driver, kv).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, q).unwrap();
    let lse = Block::of(&driver, lse).unwrap();
    let segments = Views::of(&driver, &ropes, views).unwrap();
    let mass = key_mass(&driver, &rows, &kv.cached(), &segments, scale, lse.span()).unwrap().read().unwrap();
    driver.wait().unwrap();
    mass
}

/// `seen` is what attention saw, `views` what is asked about.
fn check(shape: &Shape, seen: &[Vec<Segment>], views: &[Vec<Segment>], rng: &mut Rng) -> Vec<Vec<f32>> {
    let store = shape.store(rng);
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
    let (q, kv) = (shape.queries(&data), store.view());
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let (mut out, mut lse) = (vec![0.0; data.len()], vec![0.0; q.q_len * q.n_heads]);
    Reference.attend(&q, &kv, seen, scale, &mut out, Some(&mut lse));
    let want = Reference.key_mass(&q, &kv, views, scale, &lse);
    let seed = rng.next() % 1000;
    let got = run(seed, &q, &kv, views, scale, &lse);
    assert_eq!(got.len(), want.len());
    for (head, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_near(got, want, TOLERANCE, &format!("{shape:?}, seed {seed}, head {head}"));
    }
    if seed.is_multiple_of(4) {
        assert!(
            got == run(seed + 1, &q, &kv, views, scale, &lse),
            "{shape:?}: depends on the order of threads"
        );
    }
    got
}

#[test]
fn agrees_with_the_reference_over_random_segments() {
    if device(0).is_none() {
        return;
    }
    let mut rng = Rng(80);
    for round in 0..60 {
        let len = rng.pick(&[1, 40, 129, 700, 1300]);
        let shape = Shape {
            half: round % 2 == 0,
            head_dim: [16, 32, 48, 16, 128, 256][round % 6],
            n_kv_heads: rng.int(1, 3),
            group: rng.pick(&[1, 2, 3, 5, 7, 16, 24]),
            q_len: rng.pick(&[1, 1, 2, 9, 23]),
            len,
            first: rng.int(0, len),
        };
        let ropes = [rope(shape.head_dim, 10_000.0, 1.0), rope(shape.head_dim, 500_000.0, 1.1)];
        let lists = if round % 3 == 0 { shape.n_kv_heads } else { 1 };
        let views: Vec<Vec<Segment>> = (0..lists)
            .map(|_| (0..rng.int(0, 3)).map(|_| segment(&mut rng, len, &ropes)).collect())
            .collect();
        check(&shape, &views, &views, &mut rng);
    }
}

/// What InfLLM asks of every step: the mass of a window that crosses pages, out of an attention that saw more than it.
#[test]
fn the_mass_of_a_window_out_of_more() {
    if device(0).is_none() {
        return;
    }
    let mut rng = Rng(81);
    for (half, q_len, group, local) in [(false, 40, 4, 1500), (true, 90, 2, 700), (true, 9, 16, 1100)] {
        let (n_kv_heads, first) = (2, 2500);
        let len = first + q_len;
        let rope = rope(32, 10_000.0, 1.0);
        let oldest = first + 1 - local;
        let slot = Position::Index { offset: -(oldest as i64) };
        let near = part(KeySet::Range(oldest..len), Band::between(0, local), slot, slot, &rope);
        let blocks: Arc<[u32]> = (0..oldest as u32).filter(|t| t % 200 < 16).collect();
        let (zero, far) = (Position::Constant(0), Position::Constant(local as i64));
        let outside = part(KeySet::Gathered(blocks), Band::between(local, usize::MAX), zero, far, &rope);
        let shape = Shape { half, head_dim: 32, n_kv_heads, group, q_len, len, first };
        let views = [vec![near.clone(), outside]];
        check(&shape, &views, &[vec![near]], &mut rng);
        for mass in check(&shape, &views, &views, &mut rng) {
            assert_near(&[mass.iter().sum()], &[q_len as f32], 5e-5, "the mass of all keys");
        }
    }
}

#[test]
fn released_pages_are_not_touched() {
    let Some(driver) = device(7) else { return };
    let mut rng = Rng(82);
    let (len, q_len) = (3300, 5);
    let shape = Shape { half: false, head_dim: 16, n_kv_heads: 1, group: 2, q_len, len, first: len - q_len };
    let mut store = shape.store(&mut rng);
    let common::AnyStore::F32(of) = &mut store else { panic!("f32 was asked for") };
    (of.keys[1], of.values[1]) = (None, None);
    let own = Position::Index { offset: 0 };
    let band = Band::between(0, len - 2048 - q_len);
    let rope = rope(16, 1e4, 1.0);
    let of = |band| part(KeySet::Range(0..len), band, own, own, &rope);
    // No distance is that of the second: nothing is seen.
    let views = [vec![of(band), of(Band::between(1700, 1700))]];
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
    let (kv, ropes) = (Copied::new(&driver, &store.view()).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, &shape.queries(&data)).unwrap();
    let lse = Block::of(&driver, &vec![7.0f32; q_len * 2]).unwrap();
    let segments = Views::of(&driver, &ropes, &views).unwrap();
    let mass = key_mass(&driver, &rows, &kv.cached(), &segments, 0.2, lse.span()).unwrap().read().unwrap();
    for of_head in mass {
        assert!(of_head[..2048].iter().all(|m| *m == 0.0) && of_head[2100..len].iter().all(|m| *m > 0.0));
        assert!(of_head[len..].iter().all(|m| *m == 0.0));
    }
}

/// Evidence: the mass of global, found and local tokens, added to what they have, with a count that only the device knows.
#[test]
fn the_mass_of_tokens_is_added_up_over_heads() {
    let Some(_) = device(0) else { return };
    let mut rng = Rng(83);
    for (round, (group, found)) in
        [(1, 0), (4, 1), (3, 64), (16, 200), (20, 333), (4, 5000)].into_iter().enumerate()
    {
        let (len, global, local, capacity) = (1500, 16, 200, 400);
        let half = round % 2 == 0;
        let shape = Shape { half, head_dim: 32, n_kv_heads: 3, group, q_len: 1, len, first: len - 1 };
        let store = shape.store(&mut rng);
        let data: Vec<f32> = (0..shape.elements()).map(|_| rng.normal()).collect();
        let q = shape.queries(&data);
        let rope = rope(32, 10_000.0, 1.0);
        let kept = found.min(capacity);
        let tokens: Vec<u32> = (0..kept as u32).map(|i| 20 + 3 * i).collect();
        let query = Position::Constant((global + kept + local) as i64 - 1);
        let key = |offset: usize| Position::Rank { offset: offset as i64 };
        let list = [
            part(KeySet::Range(0..global), Band::CAUSAL, key(0), query, &rope),
            part(KeySet::Gathered(tokens.clone().into()), Band::CAUSAL, key(global), query, &rope),
            part(KeySet::Range(len - local..len), Band::CAUSAL, key(global + kept), query, &rope),
        ];
        let (scale, kv) = (0.25, store.view());
        let (mut out, mut lse) = (vec![0.0; data.len()], vec![0.0; q.n_heads]);
        Reference.attend(&q, &kv, &[list.to_vec()], scale, &mut out, Some(&mut lse));
        let by_head = Reference.key_mass(&q, &kv, &[list.to_vec()], scale, &lse);
        let mut want: Vec<f32> = (0..len).map(|t| (t % 5) as f32).collect();
        let keys = list.iter().flat_map(|s| (0..s.keys.len()).map(|rank| s.keys.token(rank)));
        for (i, t) in keys.enumerate() {
            want[t] += by_head.iter().map(|mass| mass[i]).sum::<f32>();
        }
        let runs: Vec<Vec<f32>> = [0, 1, 2]
            .into_iter()
            .map(|seed| {
                let driver = device(seed).expect("the first device was there");
                let (kv, ropes) = (Copied::new(&driver, &kv).unwrap(), Ropes::new(&driver));
                let rows = copy_queries(&driver, &q).unwrap();
                let mut padded = tokens.clone();
                padded.resize(capacity, u32::MAX);
                let found_tokens = Block::of(&driver, &padded).unwrap();
                let count = Block::of(&driver, &[found as u32]).unwrap();
                let mut list = list.clone().map(|s| DeviceSegment::new(&driver, &ropes, &s).unwrap());
                let (tokens, count) = (Arc::new(found_tokens), Arc::new(count));
                list[1].keys = DeviceKeys::Counted { tokens, count, capacity, end: len };
                let views = Views::new(&driver, vec![list.to_vec()]).unwrap();
                let lse = Block::of(&driver, &lse).unwrap();
                let mass = Block::of(&driver, &(0..len).map(|t| (t % 5) as f32).collect::<Vec<_>>()).unwrap();
                add_mass_of_tokens(&driver, &rows, &kv.cached(), &views, scale, lse.span(), mass.span())
                    .unwrap();
                mass.read(0, len).unwrap()
            })
            .collect();
        assert_near(&runs[0], &want, TOLERANCE, &format!("{shape:?}, {found} found"));
        assert!(runs.iter().all(|run| *run == runs[0]), "{shape:?}: depends on the order of threads");
    }
}
