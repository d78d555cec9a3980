//! The store of keys and values: what comes back, what moves to the host, what is given back.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use common::Rng;
use cuda_emulator::{emulator, facts};
use reattention_cuda::driver::Facts;
use reattention_cuda::{Cuda, Offload};
use reattention_kernels::{
    Band, CacheShape, Chosen, ChosenSegment, Cpu, Device, DeviceCache, DeviceMatrix, DeviceQueries,
    DeviceType, DeviceView, HeadPairing, KeySet, PAGE, Position, RopeTable, Search, Segment, Tensor,
    TopKRequest, TopKRule, VoteRule,
};
use std::sync::Arc;

const SHAPE: CacheShape = CacheShape { layers: 2, n_kv_heads: 4, head_dim: 64, dtype: DeviceType::Bf16 };
const ROW: usize = SHAPE.n_kv_heads * SHAPE.head_dim;
/// Bytes of one side of a page.
const SIDE: usize = ROW * PAGE * 2;

fn cuda(offload: Offload, memory: usize) -> Option<Cuda> {
    let emulator = emulator(Facts { memory, ..facts() })?;
    Some(Cuda::on(Arc::new(emulator), Cpu::new(1).unwrap(), offload))
}

fn tensor(cuda: &Cuda, data: &[f32]) -> Tensor {
    let mut tensor = cuda.tensor(data.len()).unwrap();
    cuda.write(&mut tensor, data).unwrap();
    tensor
}

/// Numbers that bf16 holds exactly, told apart by token.
fn rows(from: usize, n: usize, salt: usize) -> Vec<f32> {
    (from * ROW..(from + n) * ROW).map(|i| ((i * 31 + salt) % 257) as f32 - 128.0).collect()
}

/// Appends `n` tokens to every layer.
fn feed(cuda: &Cuda, cache: &mut dyn DeviceCache, n: usize) {
    for layer in 0..SHAPE.layers {
        let from = cache.len(layer);
        let (keys, values) = (tensor(cuda, &rows(from, n, layer)), tensor(cuda, &rows(from, n, layer + 100)));
        cache.append(layer, n, &keys, &values).unwrap();
    }
}

fn search(cuda: &Cuda, cache: &mut dyn DeviceCache, len: usize) -> Vec<u32> {
    let mut rng = Rng(3);
    let data: Vec<f32> = (0..8 * SHAPE.head_dim).map(|_| rng.normal()).collect();
    let q = DeviceQueries { data: &tensor(cuda, &data), n_heads: 8, q_len: 1, first: len - 1 };
    let chosen = cache.search(1, &q, &wanted(len)).unwrap();
    let found = cache.chosen(&chosen).unwrap();
    assert!(found.len() <= chosen.most() && cache.chosen_most().unwrap() >= found.len());
    found
}

/// A search among `len` tokens.
fn wanted(len: usize) -> Search {
    let request =
        TopKRequest { keys: 5..len - 9, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    Search {
        request,
        boxes: None,
        first_voter: 0,
        voter_stride: 1,
        vote: VoteRule::Margin,
        scale: 0.125,
        clip: 6,
        offsets: -2..3,
    }
}

#[test]
fn what_was_appended_comes_back_from_wherever_it_lies() {
    let mut found = Vec::new();
    for (offload, memory) in [(Offload::Off, 64 << 20), (Offload::Values, 64 << 20), (Offload::Old, 8 << 20)]
    {
        let Some(cuda) = cuda(offload, memory) else { return };
        let mut cache = cuda.cache(SHAPE);
        let mut len = 0;
        // Steps that a reserve of an eighth of the memory has room for.
        for n in [1, 299, 300, 300, 124, 1, 275].into_iter().chain([300; 20]) {
            feed(&cuda, cache.as_mut(), n);
            len += n;
        }
        assert_eq!((cache.len(0), cache.held(len)), (len, len));
        let pages = len.div_ceil(PAGE) * SHAPE.layers;
        let (there, here) = cache.bytes();
        assert_eq!(there + here, 2 * pages * SIDE, "{offload:?}");
        match offload {
            Offload::Off => assert_eq!(here, 0),
            Offload::Values => assert_eq!(here, pages * SIDE),
            Offload::Old => assert!(here > pages * SIDE && there < memory, "{there} there, {here} here"),
        }
        for layer in 0..SHAPE.layers {
            for tokens in [0..3, 1020..1030, 2047..2049, len - 700..len] {
                let [keys, values] = cache.read(layer, tokens.clone()).unwrap();
                assert_eq!(keys, rows(tokens.start, tokens.len(), layer), "{offload:?}, {tokens:?}");
                assert_eq!(values, rows(tokens.start, tokens.len(), layer + 100), "{offload:?}, {tokens:?}");
            }
        }
        found.push(search(&cuda, cache.as_mut(), len));

        cache.truncate(1500);
        feed(&cuda, cache.as_mut(), 40);
        assert_eq!(cache.read(1, 1490..1540).unwrap()[0], rows(1490, 50, 1), "after a roll-back");
        cache.release(0..1);
        assert_eq!(cache.held(1540), 1540 - PAGE);
        drop(cache);
    }
    assert!(!found[0].is_empty() && found.iter().all(|f| *f == found[0]), "{found:?}");
}

#[test]
fn memory_that_does_not_suffice_is_an_error_that_says_what_would() {
    let Some(cuda) = cuda(Offload::Off, 3 << 20) else { return };
    let mut cache = cuda.cache(SHAPE);
    let (keys, values) = (tensor(&cuda, &rows(0, 100, 0)), tensor(&cuda, &rows(0, 100, 1)));
    let error = loop {
        if let Err(error) = cache.append(0, 100, &keys, &values) {
            break error.to_string();
        }
        assert!(cache.len(0) < 10_000, "more than there is memory for");
    };
    assert!(error.starts_with("emulated: device memory of") && error.contains("--kv-offload"), "{error}");
    // What was there before still is.
    assert_eq!(cache.read(0, 0..100).unwrap()[0], rows(0, 100, 0));
}

/// What another device has made, or nobody, leads nowhere: it is refused wherever it is given.
#[test]
fn what_another_device_made_is_refused() {
    let (Some(here), Some(there)) = (cuda(Offload::Off, 64 << 20), cuda(Offload::Off, 64 << 20)) else {
        return;
    };
    let row = |i: usize, out: &mut [f32]| out.fill(i as f32);
    let foreign = [
        (tensor(&there, &[1.0; ROW]), there.matrix(2, ROW, DeviceType::F32, &row).unwrap()),
        // However much it claims to hold.
        (Tensor::new(1 << 40, Box::new(())), DeviceMatrix::new(2, ROW, Box::new(vec![0u64; 64]))),
    ];
    for (mut strange, matrix) in foreign {
        let (mut own, own_matrix) =
            (tensor(&here, &[1.0; ROW]), here.matrix(2, ROW, DeviceType::F32, &row).unwrap());
        let mut cache = here.cache(SHAPE);
        let q = DeviceQueries { data: &strange, n_heads: 4, q_len: 1, first: 0 };
        let view = DeviceView { segments: &[vec![]], chosen: None };
        let refusals = [
            here.read(&strange, 0..1).map(drop),
            here.linear(&strange, 1, &own_matrix, None, &mut own),
            here.linear(&tensor(&here, &[1.0; ROW]), 1, &matrix, None, &mut own),
            here.embed(&matrix, &[0], &mut own),
            here.rms_norm(&strange, 1, &tensor(&here, &[1.0; ROW]), 1e-5, &mut own),
            here.add(&mut own, &strange, ROW),
            here.silu_mul(&mut own, &strange, ROW),
            here.pick(&strange, 1, &[0], &mut own),
            here.losses(&strange, 1, &[0]).map(drop),
            cache.append(0, 1, &strange, &own),
            cache.append(0, 1, &own, &strange),
            cache.attend(0, &q, &view, 1.0, &mut own, false),
            cache.chosen(&Chosen::new(5, Box::new(()))).map(drop),
            here.write(&mut strange, &[1.0]),
            here.add(&mut strange, &own, ROW),
            here.scale_rows(&mut strange, 1, &[2.0]),
        ];
        for (i, refusal) in refusals.into_iter().enumerate() {
            let error = refusal.expect_err("what is not its own").to_string();
            assert!(error.contains("of another device"), "call {i}: {error}");
        }
        assert_eq!(cache.len(0), 0);
        assert_eq!(here.read(&own, 0..ROW).unwrap(), [1.0; ROW]);
    }
}

/// A selection of a longer cache names tokens that this one does not hold.
#[test]
#[should_panic(expected = "keys up to 591 of 100")]
fn a_selection_of_a_longer_cache_is_no_view_of_a_shorter_one() {
    let Some(cuda) = cuda(Offload::Off, 64 << 20) else { panic!("keys up to 591 of 100: skipped") };
    let (mut long, mut short) = (cuda.cache(SHAPE), cuda.cache(SHAPE));
    feed(&cuda, long.as_mut(), 600);
    feed(&cuda, short.as_mut(), 100);
    let queries = tensor(&cuda, &vec![1.0; 8 * SHAPE.head_dim]);
    let q = |first| DeviceQueries { data: &queries, n_heads: 8, q_len: 1, first };
    let chosen = long.search(1, &q(599), &wanted(600)).unwrap();
    let rope = Arc::new(RopeTable::new(vec![1.0; SHAPE.head_dim / 2], 1.0, 1));
    let segment = Segment {
        keys: KeySet::Range(0..0),
        band: Band::CAUSAL,
        key_position: Position::Constant(0),
        query_position: Position::Constant(0),
        key_rope: Arc::clone(&rope),
        query_rope: rope,
    };
    let chosen = ChosenSegment { tokens: &chosen, index: 0, moves: false };
    let view = DeviceView { segments: &[vec![segment]], chosen: Some(chosen) };
    let mut out = cuda.tensor(8 * SHAPE.head_dim).unwrap();
    let _ = short.attend(1, &q(99), &view, 1.0, &mut out, false);
}

#[test]
#[should_panic(expected = "embed: an id beyond 2")]
fn rows_that_a_table_does_not_have_are_not_read() {
    let Some(cuda) = cuda(Offload::Off, 64 << 20) else { panic!("embed: an id beyond 2: skipped") };
    let table = cuda.matrix(2, 4, DeviceType::F32, &|_, out| out.fill(1.0)).unwrap();
    let mut out = cuda.tensor(4).unwrap();
    let _ = cuda.embed(&table, &[2], &mut out);
}

#[test]
fn lengths_beyond_all_memory_are_refused() {
    let Some(cuda) = cuda(Offload::Off, 64 << 20) else { return };
    // Four bytes each, as many as make no bytes in 64 bits.
    let error = cuda.tensor(1 << 62).unwrap_err().to_string();
    assert!(error.contains("device memory"), "{error}");
}
