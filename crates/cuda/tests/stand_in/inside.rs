//! What is tested where the stand-in is found; `stand_in.rs` starts it.

use crate::common::{AnyStore, Rng};
use cuda_emulator::{Emulator, facts};
use half::{bf16, f16};
use reattention_cuda::driver::{Arg, Block, CudaError, Driver, Dtype, Facts, Launch, Module, Product};
use reattention_cuda::nvidia::Nvidia;
use reattention_cuda::{Cuda, Offload};
use reattention_kernels::{
    Backend, Band, Cpu, HeadPairing, KeySet, Position, Queries, RopeTable, Segment, TopKRequest, TopKRule,
};
use std::sync::Arc;

fn open() -> Arc<dyn Driver> {
    Arc::new(Nvidia::open(0).unwrap())
}

#[test]
#[ignore = "needs the stand-in"]
fn facts_are_the_devices() {
    assert_eq!(Nvidia::count(), Ok(1));
    let driver = open();
    assert_eq!(driver.facts(), &Facts { name: cuda_stand_in::NAME.into(), ..facts() });
    assert_eq!(Nvidia::open(1).map(drop), Err(CudaError::NoDevice { index: 1, count: 1 }));
}

/// On a device of 64 MiB, half of which products take.
#[test]
#[ignore = "needs the stand-in"]
fn memory_that_is_out_is_told_in_numbers() {
    const MIB: usize = 1 << 20;
    let driver = open();
    let start = driver.free_memory().unwrap();
    assert_eq!(start, 32 * MIB);
    let blocks: Vec<Block> = (0..8).map(|_| Block::new(&driver, 3 * MIB).unwrap()).collect();
    assert_eq!(driver.free_memory(), Ok(8 * MIB));
    let refused = CudaError::OutOfMemory { what: "device memory", wanted: 9 * MIB, free: 8 * MIB };
    assert_eq!(driver.alloc(9 * MIB), Err(refused));
    // What has come back is given out again, also in pieces of other sizes.
    drop(blocks);
    assert_eq!(driver.free_memory(), Ok(start));
    let large = Block::zeroed(&driver, 20 * MIB).unwrap();
    assert!(large.read::<u8>(0, large.bytes()).unwrap().iter().all(|x| *x == 0));
    drop(large);
    let pinned = driver.alloc_pinned(4 * MIB).unwrap();
    if std::env::var_os(cuda_stand_in::variables::PINNED).is_some() {
        // 16 MiB, of which staging takes 8.
        let refused = driver.alloc_pinned(5 * MIB);
        assert!(
            matches!(
                refused,
                Err(CudaError::OutOfMemory { what: "pinned host memory", wanted, free }) if wanted == 5 * MIB && free > 0
            ),
            "{refused:?}"
        );
    }
    // SAFETY: nothing uses it.
    unsafe { driver.free_pinned(pinned) };
    assert_eq!(driver.free_memory(), Ok(start));
}

/// Sources are overwritten as soon as the call is back, while the copies wait.
#[test]
#[ignore = "needs the stand-in"]
fn uploads_leave_their_source_alone() {
    const HALF: usize = 4 << 20;
    let driver = open();
    let byte = |size: usize, i: usize| (i.wrapping_mul(31).wrapping_add(size) >> 3) as u8;
    let mut kept = Vec::new();
    for size in [1, 255, 256, 257, HALF - 1, HALF, 100, HALF + 1, 3, 2 * HALF, 3 * HALF + 17] {
        let mut data: Vec<u8> = (0..size).map(|i| byte(size, i)).collect();
        kept.push((size, Block::of(&driver, &data).unwrap()));
        data.fill(0);
    }
    for (size, block) in &kept {
        let found = block.read::<u8>(0, *size).unwrap();
        assert!((0..*size).all(|i| found[i] == byte(*size, i)), "{size} bytes");
    }
    // Many small ones: the halves change often.
    let all = Block::new(&driver, 40_000 * 300).unwrap();
    let mut part = [0u8; 300];
    for i in 0..40_000 {
        part.fill(i as u8);
        all.write(i * part.len(), &part).unwrap();
    }
    let found = all.read::<u8>(0, all.bytes()).unwrap();
    assert!((0..found.len()).all(|i| found[i] == (i / part.len()) as u8));
}

/// Writes into two places and reads none.
const MARK: Module = Module {
    name: "mark",
    text: "extern \"C\" __global__ void mark(int *a, long long *b, float x, int y, long long z) {\n\
           int i = blockIdx.x * blockDim.x + threadIdx.x;\n\
           a[i] = (int)(2 * x) + y + i;\n\
           b[i] = z - i;\n\
           }\n",
};

fn mark(driver: &Arc<dyn Driver>, a: u64, b: u64, n: u32) -> Result<(), CudaError> {
    let function = driver.function(&MARK, &[("ELEMENT", 1)], "mark")?;
    let args = [Arg::Pointer(a), Arg::Pointer(b), Arg::Float(-1.5), Arg::Int(-7), Arg::Long(1 << 40)];
    // SAFETY: the arguments are those of the kernel.
    unsafe { driver.launch(function, Launch { grid: [n / 64, 1, 1], threads: 64, shared: 0 }, &args) }
}

#[test]
#[ignore = "needs the stand-in"]
fn pinned_memory_is_written_by_kernels_and_copied() {
    let driver = open();
    let n = 256;
    let (there, here) = (Block::new(&driver, 8 * n).unwrap(), driver.alloc_pinned(4 * n).unwrap());
    assert_eq!(here.host as u64 == here.device, !cfg!(target_os = "linux"), "{here:?}");
    mark(&driver, here.device, there.at(), n as u32).unwrap();
    let mut copied = vec![0i32; n];
    // SAFETY: the memory is that long.
    unsafe { driver.download(here.device, bytemuck::cast_slice_mut(&mut copied)).unwrap() };
    // SAFETY: the kernel has run, and wrote as many numbers.
    let seen = unsafe { std::slice::from_raw_parts(here.host.cast::<i32>(), n) };
    for i in 0..n {
        assert_eq!((seen[i], copied[i]), (i as i32 - 10, i as i32 - 10));
    }
    assert!((0..n).all(|i| there.read::<i64>(8 * i, 1).unwrap() == [(1 << 40) - i as i64]));
    // SAFETY: both are that long.
    unsafe { driver.copy(here.device, there.at(), 4 * n).unwrap() };
    assert_eq!(there.read::<i32>(0, n).unwrap(), copied);
    // A kernel that nobody has waited for still uses it.
    mark(&driver, here.device, there.at(), n as u32).unwrap();
    // SAFETY: nothing that comes later uses it.
    unsafe { driver.free_pinned(here) };
    driver.wait().unwrap();
    let seconds = driver.time(&mut || mark(&driver, there.at(), there.at(), 64)).unwrap();
    assert!(seconds > 0.0 && seconds < 10.0, "{seconds}");
}

/// Rows of a larger matrix start anywhere; what is chosen for one boundary does not do for a lesser one.
#[test]
#[ignore = "needs the stand-in"]
fn products_start_at_any_element() {
    let driver = open();
    let (rows, inputs, outputs, room) = (3, 20, 7, 200);
    for (dtype, bytes) in [(Dtype::Bf16, 2), (Dtype::F16, 2), (Dtype::F32, 4)] {
        let encode = |x: f32| match dtype {
            Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F32 => x.to_le_bytes().to_vec(),
        };
        // Small integers are exact in all three.
        let (x, w) = (|i: usize| (i % 7) as f32 - 3.0, |i: usize| (i % 5) as f32 - 1.0);
        let on_device = |of: &dyn Fn(usize) -> f32| {
            Block::of(&driver, &(0..room).flat_map(|i| encode(of(i))).collect::<Vec<u8>>()).unwrap()
        };
        let (x_there, w_there) = (on_device(&x), on_device(&w));
        for [x_from, w_from, y_from] in [[0, 0, 0], [1, 3, 1], [16, 0, 8], [0, 1, 3], [60, 60, 0]] {
            let y = Block::zeroed(&driver, 4 * (y_from + rows * outputs + 1)).unwrap();
            let at = |block: &Block, from: usize, bytes| block.at() + (from * bytes) as u64;
            let product = Product {
                rows,
                inputs,
                outputs,
                dtype,
                x: at(&x_there, x_from, bytes),
                w: at(&w_there, w_from, bytes),
                y: at(&y, y_from, 4),
            };
            // SAFETY: the matrices lie within the blocks.
            unsafe { driver.multiply(&product).unwrap() };
            let found = y.read::<f32>(0, y_from + rows * outputs + 1).unwrap();
            let term = |row: usize, output: usize, i: usize| {
                x(x_from + row * inputs + i) * w(w_from + output * inputs + i)
            };
            let sums = (0..rows * outputs)
                .map(|at| (0..inputs).map(|i| term(at / outputs, at % outputs, i)).sum::<f32>());
            let expected: Vec<f32> =
                std::iter::repeat_n(0.0, y_from).chain(sums).chain(std::iter::once(0.0)).collect();
            assert_eq!(found, expected, "{product:?}");
        }
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn threads_share_a_device() {
    let driver = open();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let driver = &driver;
            scope.spawn(move || {
                for i in 0..30 {
                    let data = vec![thread * 1000 + i; 5000];
                    let block = Block::of(driver, &data).unwrap();
                    let marks = Block::new(driver, 64 * 12).unwrap();
                    mark(driver, marks.at(), marks.at() + 256, 64).unwrap();
                    assert!(block.read::<u64>(0, data.len()).unwrap() == data);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs the stand-in"]
fn searches_and_attention_are_the_same() {
    let same = |offload| {
        let cpu = || Cpu::new(1).unwrap();
        let real = Cuda::open(0, cpu(), offload).unwrap();
        let emulated = Cuda::on(Arc::new(Emulator::new(facts()).unwrap()), cpu(), offload);
        let (len, head_dim, n_heads) = (1500, 32, 4);
        let mut rng = Rng(3);
        let store = AnyStore::new(true, len, 2, head_dim, || rng.normal());
        let data: Vec<f32> = (0..3 * n_heads * head_dim).map(|_| rng.normal()).collect();
        let q = Queries { data: &data, n_heads, q_len: 3, head_dim, first: len - 3 };
        let (keys, pairing, rule) = (5..1400, HeadPairing::Grouped, TopKRule::Exact);
        let request = TopKRequest { keys, k: 4, pairing, rule };
        let found = real.top_k(&q, &store.view(), &request).unwrap();
        assert!(found == emulated.top_k(&q, &store.view(), &request).unwrap());
        assert!(found.scores.iter().all(|s| s.is_finite()));

        let frequencies = (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32));
        let rope = Arc::new(RopeTable::new(frequencies.collect(), 1.0, 4096));
        let segment = Segment {
            keys: KeySet::Range(0..len),
            band: Band::CAUSAL,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: rope.clone(),
            query_rope: rope,
        };
        let attend = |cuda: &Cuda| {
            let (mut out, mut lse) = (vec![0.0; data.len()], vec![0.0; 3 * n_heads]);
            let views = [vec![segment.clone()]];
            cuda.attend(&q, &store.view(), &views, 0.2.into(), &mut out, Some(&mut lse)).unwrap();
            (out, lse)
        };
        let (out, lse) = attend(&real);
        assert!(out.iter().any(|x| *x != 0.0) && lse.iter().all(|x| x.is_finite()));
        assert!((out, lse) == attend(&emulated));
    };
    same(Offload::Off);
    same(Offload::Values);
}

#[test]
#[ignore = "needs the stand-in"]
fn no_device_is_none() {
    assert_eq!(Nvidia::count(), Ok(0));
    assert_eq!(Nvidia::open(0).map(drop), Err(CudaError::NoDevice { index: 0, count: 0 }));
}

#[test]
#[ignore = "needs the stand-in"]
fn too_old_a_device_is_named() {
    let refused = Nvidia::open(0).map(drop);
    let expected = CudaError::TooOld { name: cuda_stand_in::NAME.into(), capability: (7, 5) };
    assert_eq!(refused, Err(expected));
}

#[test]
#[ignore = "needs the stand-in"]
fn old_drivers_are_refused_with_advice() {
    let refused = Nvidia::open(0).map(drop).unwrap_err();
    assert!(matches!(refused, CudaError::Library { .. }), "{refused:?}");
    assert!(refused.to_string().contains("525 or later"), "{refused}");
}

#[test]
#[ignore = "needs the stand-in"]
fn drivers_may_be_too_old_for_portable_code() {
    let driver = open();
    let refused = driver.function(&MARK, &[("ELEMENT", 1)], "mark").unwrap_err().to_string();
    assert!(refused.contains("cuModuleLoadData failed: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), "{refused}");
    assert!(
        refused
            .contains("NVRTC is of CUDA 13.0, the driver of 12.4: a newer driver or an older NVRTC would do"),
        "{refused}"
    );
}

#[test]
#[ignore = "needs the stand-in"]
fn kernels_that_fail_are_told_by_the_next_wait() {
    let driver = open();
    let small = Block::new(&driver, 16).unwrap();
    // Beyond the end of the first block.
    mark(&driver, small.at(), small.at(), 64).unwrap();
    let failed = driver.wait().unwrap_err().to_string();
    assert_eq!(
        failed,
        "cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
    );
    // A device that failed fails in all that follows, and everything can still be dropped.
    let after = small.read::<u8>(0, 1).unwrap_err().to_string();
    assert!(after.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{after}");
    assert!(driver.alloc(100).is_err());
}

#[test]
#[ignore = "needs the stand-in"]
fn texts_that_do_not_compile_are_shown_with_their_lines() {
    let driver = open();
    let wrong =
        Module { name: "wrong", text: "extern \"C\" __global__ void wrong(int *a) {\n a[0] = nowhere;\n}\n" };
    match driver.function(&wrong, &[("ELEMENT", 0)], "wrong") {
        Err(CudaError::Compile { module: "wrong", architecture, log }) => {
            assert_eq!(architecture, "sm_90a");
            assert!(log.contains("wrong.cu:2") && log.contains("nowhere"), "{log}");
        }
        other => panic!("{other:?}"),
    }
    assert!(driver.function(&MARK, &[("ELEMENT", 1)], "mark").is_ok(), "the device goes on");
}

#[test]
#[ignore = "needs the stand-in"]
fn nothing_compiles_with_a_compiler_that_fails() {
    let refused = open().function(&MARK, &[("ELEMENT", 1)], "mark").unwrap_err();
    assert!(refused.to_string().contains("NVRTC_ERROR_INTERNAL_ERROR"), "{refused}");
}
