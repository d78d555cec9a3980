//! The store of keys and values: what comes back, what moves to the host, what is given back.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use common::Rng;
use cuda_emulator::{Emulator, facts};
use reattention_cuda::driver::Facts;
use reattention_cuda::{Cuda, Offload};
use reattention_kernels::{
    CacheShape, Cpu, Device, DeviceCache, DeviceQueries, DeviceType, HeadPairing, PAGE, Search, Tensor,
    TopKRequest, TopKRule, VoteRule,
};
use std::sync::Arc;

const SHAPE: CacheShape = CacheShape { layers: 2, n_kv_heads: 4, head_dim: 64, dtype: DeviceType::Bf16 };
const ROW: usize = SHAPE.n_kv_heads * SHAPE.head_dim;
/// Bytes of one side of a page.
const SIDE: usize = ROW * PAGE * 2;

fn cuda(offload: Offload, memory: usize) -> Option<Cuda> {
    match Emulator::new(Facts { memory, ..facts() }) {
        Ok(emulator) => Some(Cuda::on(Arc::new(emulator), Cpu::new(1).unwrap(), offload)),
        Err(error) => {
            println!("{error}");
            None
        }
    }
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
    let request =
        TopKRequest { keys: 5..len - 9, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    let search = Search {
        request,
        boxes: None,
        first_voter: 0,
        voter_stride: 1,
        vote: VoteRule::Margin,
        scale: 0.125,
        clip: 6,
        offsets: -2..3,
    };
    let chosen = cache.search(1, &q, &search).unwrap();
    let found = cache.chosen(&chosen).unwrap();
    assert!(found.len() <= chosen.most && cache.chosen_most().unwrap() >= found.len());
    found
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
