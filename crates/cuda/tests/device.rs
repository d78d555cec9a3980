//! A real GPU, where there is one: memory, launches, products and time. Elsewhere the tests say so and pass.

use half::{bf16, f16};
use reattention_cuda::driver::{Arg, Block, CudaError, Driver, Dtype, Launch, Module, Product};
use reattention_cuda::nvidia::Nvidia;
use reattention_cuda::testing::elementwise;
use std::sync::Arc;

/// The first device; none where a library or the device is missing, which is said.
fn device() -> Option<Arc<dyn Driver>> {
    match Nvidia::open(0) {
        Ok(device) => Some(Arc::new(device)),
        Err(error @ CudaError::Library { library, .. }) => {
            let what = if library.contains("driver") { "no CUDA driver" } else { "a library is missing" };
            println!("skipped: {what} ({error})");
            None
        }
        Err(CudaError::NoDevice { count: 0, .. }) => {
            println!("skipped: no CUDA device");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_is_missing_is_said_in_words() {
    match Nvidia::count() {
        Ok(count) => assert!(matches!(
            Nvidia::open(count),
            Err(CudaError::NoDevice { index, count: found }) if index == count && found == count
        )),
        Err(error @ CudaError::Library { .. }) => {
            assert_eq!(Nvidia::open(0).map(drop), Err(error.clone()));
            assert!(error.to_string().contains("install"), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn memory_holds_what_was_written() {
    let Some(driver) = device() else { return };
    let facts = driver.facts();
    assert!(
        facts.capability >= (8, 0) && facts.multiprocessors > 0 && facts.shared_per_block > 48 << 10,
        "{facts:?}"
    );
    // More than goes through the halves of staging memory at once, and many small pieces after it.
    let data: Vec<u32> = (0..5_000_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let block = Block::of(&driver, &data).unwrap();
    assert!(block.read::<u32>(0, data.len()).unwrap() == data);
    let small: Vec<Block> =
        data.chunks(999).take(3000).map(|part| Block::of(&driver, part).unwrap()).collect();
    for (block, part) in small.iter().zip(data.chunks(999)) {
        assert!(block.read::<u32>(0, part.len()).unwrap() == part);
    }

    let other = Block::zeroed(&driver, block.bytes()).unwrap();
    assert!(other.read::<u32>(0, data.len()).unwrap().iter().all(|x| *x == 0));
    // SAFETY: both blocks are that long.
    unsafe { driver.copy(block.at(), other.at(), block.bytes()).unwrap() };
    assert!(other.read::<u32>(0, data.len()).unwrap() == data);

    let free = driver.free_memory().unwrap();
    assert!(free > 0 && free <= facts.memory, "{free} of {}", facts.memory);
    assert!(
        matches!(driver.alloc(64 * facts.memory), Err(CudaError::OutOfMemory { wanted, .. }) if wanted == 64 * facts.memory)
    );
    assert!(Block::of(&driver, &[1u8]).is_ok(), "the device goes on after a refusal");
}

/// Doubles `n` floats, through dynamic shared memory of `n` floats.
const DOUBLE: Module = Module {
    name: "double",
    text: "extern \"C\" __global__ void twice(float *y, const float *x, int n, long long offset, float factor) {\n\
           DYNAMIC_SHARED(bytes);\n\
           float *shared = (float *)bytes;\n\
           for (int i = threadIdx.x; i < n; i += blockDim.x) shared[n - 1 - i] = x[i];\n\
           __syncthreads();\n\
           for (int i = threadIdx.x; i < n; i += blockDim.x) y[offset + i] = factor * shared[n - 1 - i];\n\
           }\n",
};

#[test]
fn kernels_run_and_read_pinned_memory() {
    let Some(driver) = device() else { return };
    let n = 20_000; // 80 kB of shared memory: more than a kernel has unasked
    let function = driver.function(&DOUBLE, &[("ELEMENT", 0)], "twice").unwrap();
    assert_eq!(driver.function(&DOUBLE, &[("ELEMENT", 0)], "twice"), Ok(function));
    let pinned = driver.alloc_pinned(4 * n).unwrap();
    for i in 0..n {
        // SAFETY: the memory has room for n floats.
        unsafe { pinned.host.cast::<f32>().add(i).write(i as f32) };
    }
    let out = Block::zeroed(&driver, 4 * (n + 8)).unwrap();
    let args = [out.arg(), Arg::Pointer(pinned.device), Arg::Int(n as i32), Arg::Long(8), Arg::Float(2.0)];
    let launch = Launch { grid: [1, 1, 1], threads: 256, shared: 4 * n as u32 };
    // SAFETY: the arguments are those of the kernel.
    unsafe { driver.launch(function, launch, &args).unwrap() };
    let expected: Vec<f32> = (0..n).map(|i| 2.0 * i as f32).collect();
    assert!(out.read::<f32>(32, n).unwrap() == expected);
    // SAFETY: nothing uses it any more.
    unsafe { driver.free_pinned(pinned) };

    let too_much = Launch { shared: 1 << 20, ..launch };
    // SAFETY: it is refused.
    let refused = unsafe { driver.launch(function, too_much, &args) };
    assert!(matches!(&refused, Err(CudaError::Call { call: "cuLaunchKernel", .. })), "{refused:?}");
    let missing = driver.function(&DOUBLE, &[("ELEMENT", 0)], "thrice");
    assert!(matches!(&missing, Err(CudaError::Call { call: "cuModuleGetFunction", .. })), "{missing:?}");
}

#[test]
fn products_are_those_of_plain_loops() {
    let Some(driver) = device() else { return };
    let number = |seed: usize, i: usize| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.5 - 1.0;
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        for (rows, inputs, outputs) in
            [(1, 64, 128), (3, 16, 5), (7, 257, 33), (130, 512, 384), (1, 0, 4), (0, 8, 4)]
        {
            let round = |x: f32| match dtype {
                Dtype::Bf16 => bf16::from_f32(x).to_f32(),
                Dtype::F16 => f16::from_f32(x).to_f32(),
                Dtype::F32 => x,
            };
            let x: Vec<f32> = (0..rows * inputs).map(|i| round(number(1, i))).collect();
            let w: Vec<f32> = (0..outputs * inputs).map(|i| round(number(2, i))).collect();
            let on_device = |data: &[f32]| {
                let from = Block::of(&driver, data).unwrap();
                let to = Block::new(&driver, data.len() * dtype.bytes()).unwrap();
                elementwise::to_element(&driver, from.span(), to.span(), data.len(), dtype).unwrap();
                to
            };
            let (x_there, w_there, y) =
                (on_device(&x), on_device(&w), Block::new(&driver, 4 * rows * outputs).unwrap());
            let product =
                Product { rows, inputs, outputs, dtype, x: x_there.at(), w: w_there.at(), y: y.at() };
            for _ in 0..2 {
                // SAFETY: the matrices are those announced.
                unsafe { driver.multiply(&product).unwrap() };
            }
            let found = y.read::<f32>(0, rows * outputs).unwrap();
            for (i, found) in found.iter().enumerate() {
                let (row, output) = (i / outputs, i % outputs);
                let terms =
                    (0..inputs).map(|j| f64::from(x[row * inputs + j]) * f64::from(w[output * inputs + j]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                // Sums in f32 in any order; a TF32 product of so few terms is off by more.
                assert!(
                    (f64::from(*found) - sum).abs() <= 1e-5 * size + 1e-30,
                    "{dtype:?} {product:?}: {found}, expected {sum}"
                );
            }
        }
    }
}

#[test]
fn time_is_the_devices() {
    let Some(driver) = device() else { return };
    let block = Block::new(&driver, 64 << 20).unwrap();
    let seconds = driver.time(&mut || {
        // SAFETY: the block is that long.
        (0..10).try_for_each(|_| unsafe { driver.clear(block.at(), block.bytes()) })
    });
    // 640 MiB at no more than 20 TB/s, and not a second.
    assert!((3e-5..1.0).contains(&seconds.unwrap()));
}
