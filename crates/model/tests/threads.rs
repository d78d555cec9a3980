//! Models run on the threads that the caller gave, whatever type their weights have. A file of its own, with one test: other
//! tests would start threads beside it.
#![cfg(target_os = "linux")]

use reattention_kernels::Cpu;
use reattention_model::load;
use reattention_model::synth::{GgufType, Shape, write_gguf};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn products_of_every_type_start_no_threads_of_their_own() {
    let mut shape = Shape::tiny("llama");
    (shape.hidden, shape.intermediate, shape.n_heads, shape.head_dim) = (256, 512, 8, 32);
    let dir = tempfile::tempdir().unwrap();
    let types = [
        GgufType::F32,
        GgufType::F16,
        GgufType::Bf16,
        GgufType::Q4_0,
        GgufType::Q4_1,
        GgufType::Q5_0,
        GgufType::Q5_1,
        GgufType::Q8_0,
        GgufType::Q2K,
        GgufType::Q3K,
        GgufType::Q4K,
        GgufType::Q5K,
        GgufType::Q6K,
    ];
    let path = |dtype: GgufType| dir.path().join(format!("{dtype:?}.gguf"));
    // Writing quantises on a pool; one of its own keeps rayon's global one from being there before the products.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| types.iter().for_each(|&dtype| write_gguf(&path(dtype), &shape, dtype, 1).unwrap()));
    let before = threads();
    let cpu = Cpu::new(1).unwrap();
    for dtype in types {
        let (_, weights) = load(&path(dtype)).unwrap();
        let q = &weights.layers[0].q;
        // Few rows, which are multiplied in place, and many, for which weights are unpacked.
        for rows in [1, 5, 40] {
            let mut y = vec![0.0; rows * q.rows()];
            q.forward(&cpu, &vec![0.5; rows * q.cols()], rows, &mut y);
            assert!(y.iter().all(|y| y.is_finite()));
        }
        assert_eq!(threads(), before, "{dtype:?}");
    }
}
