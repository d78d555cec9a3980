//! Memory, arguments, refusals and dense products.
#![allow(missing_docs)]

mod common;

use common::{emulator, run};
use cuda_emulator::facts;
use half::{bf16, f16};
use reattention_cuda::driver::{Arg, Block, CudaError, Driver, Dtype, Facts, Launch, Module, Product};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

#[test]
fn arguments_of_all_types_arrive() {
    let text = r#"
extern "C" __global__ void kernel(const float *__restrict__ in, int i, long long l, float f, double *out, const int *none) {
    if (blockIdx.x + blockIdx.y + blockIdx.z + threadIdx.x > 0) return;
    out[0] = in[1]; out[1] = i; out[2] = (double)l; out[3] = f; out[4] = none == nullptr;
    out[5] = gridDim.x * 100 + gridDim.y * 10 + gridDim.z; out[6] = blockDim.x; out[7] = EXTRA;
}
"#;
    let Some(driver) = emulator(1) else { return };
    let (input, out) = (Block::of(&driver, &[1.5f32, 2.5, 3.5]).unwrap(), Block::new(&driver, 64).unwrap());
    let args = [
        Arg::Pointer(input.at() + 4),
        Arg::Int(-7),
        Arg::Long(-(1 << 40)),
        Arg::Float(0.1),
        out.arg(),
        Arg::Pointer(0),
    ];
    run(&driver, text, &[("EXTRA", -9)], [2, 3, 4], 64, 0, &args).unwrap();
    let expected = [3.5, -7.0, -(2f64.powi(40)), f64::from(0.1f32), 1.0, 234.0, 64.0, -9.0];
    assert_eq!(out.read::<f64>(0, 8).unwrap(), expected);

    let refused =
        |args: &[Arg]| run(&driver, text, &[("EXTRA", -9)], [1, 1, 1], 32, 0, args).unwrap_err().to_string();
    let mut wrong = args;
    wrong[1] = Arg::Long(1);
    assert!(refused(&wrong).contains("arguments are pllfpp, parameters pilfpp"), "{}", refused(&wrong));
    assert!(refused(&args[..5]).contains("arguments are pilfp,"), "{}", refused(&args[..5]));
    let mut wrong = args;
    wrong[0] = Arg::Pointer(64);
    assert!(refused(&wrong).contains("argument 0, 0x40, points to nothing"), "{}", refused(&wrong));
}

const WRITE: &str = r#"
extern "C" __global__ void kernel(int *out, int at) {
    if (threadIdx.x == 5) out[at] = 7;
}
"#;

#[test]
fn writes_beyond_the_ends_are_found() {
    let Some(driver) = emulator(1) else { return };
    let block = Block::new(&driver, 40).unwrap();
    let write = |at| run(&driver, WRITE, &[], [1, 1, 1], 32, 0, &[block.arg(), Arg::Int(at)]);
    write(9).unwrap();
    let told = write(10).unwrap_err().to_string();
    assert!(told.contains("`kernel`, byte 40 of a block of 40 bytes"), "{told}");
    // It is told once.
    write(0).unwrap();
    let told = write(-1).unwrap_err().to_string();
    assert!(told.contains("byte -4 of a block of 40 bytes"), "{told}");
    driver.wait().unwrap();
    // The host may write beyond the end of pinned memory, too.
    let pinned = driver.alloc_pinned(16).unwrap();
    // SAFETY: the emulator keeps bytes behind a block for this.
    unsafe { pinned.host.add(17).write(1) };
    assert!(driver.wait().unwrap_err().to_string().contains("byte 17 of a block of 16 bytes"));
    // SAFETY: it was taken above and is not used any more.
    unsafe { driver.free_pinned(pinned) };
}

#[test]
fn dynamic_shared_memory_has_an_end() {
    let text = r#"
extern "C" __global__ void kernel(int at) {
    DYNAMIC_SHARED(bytes);
    if (threadIdx.x == 31) bytes[at] = 7;
}
"#;
    let Some(driver) = emulator(1) else { return };
    let write = |at, shared| run(&driver, text, &[], [1, 1, 1], 32, shared, &[Arg::Int(at)]);
    write(99, 100).unwrap();
    let told = write(100, 100).unwrap_err().to_string();
    assert!(told.contains("it writes byte 100 of 100 bytes of dynamic shared memory"), "{told}");
    assert!(write(0, 228 << 10).unwrap_err().to_string().contains("a block has 232448"));
}

#[test]
fn deep_stacks_are_told() {
    let text = r#"
__device__ __noinline__ int deep(int depth) {
    volatile int large[LENGTH];
    for (int i = 0; i < LENGTH; i++) large[i] = depth + i;
    return large[999] + (depth > 0 ? deep(depth - 1) : 0) + large[depth];
}
extern "C" __global__ void kernel(int *out, int depth) {
    int sum = deep(depth);
    __syncwarp();
    if (threadIdx.x == 0) out[0] = sum;
}
"#;
    let Some(driver) = emulator(0) else { return };
    let out = Block::new(&driver, 4).unwrap();
    let run = |length, depth| {
        run(&driver, text, &[("LENGTH", length)], [1; 3], 32, 0, &[out.arg(), Arg::Int(depth)])
    };
    run(7000, 1).unwrap();
    let told = run(7000, 2).unwrap_err().to_string();
    assert!(told.contains("needs more than"), "{told}");
    assert!(matches!(run(9000, 0), Err(CudaError::Compile { .. })));
}

#[test]
fn fresh_memory_holds_no_numbers() {
    let text = r#"
template <int N> __device__ float of_template() {
    __shared__ float values[N];
    return values[threadIdx.x % N];
}
extern "C" __global__ void kernel(float *out) {
    DYNAMIC_SHARED(bytes);
    __shared__ float values[32];
    float before = values[threadIdx.x], dynamic = ((float *)bytes)[threadIdx.x], templated = of_template<8>();
    __syncwarp();
    values[threadIdx.x] = 0;
    ((float *)bytes)[threadIdx.x] = 0;
    __syncwarp();
    // Written in one block, not seen in the next.
    out[blockIdx.x * WARP + threadIdx.x] = isnan(before) && isnan(dynamic) && isnan(templated);
}
"#;
    let Some(driver) = emulator(1) else { return };
    let out = Block::new(&driver, 4 * 32 * 4).unwrap();
    assert!(out.read::<f32>(0, 128).unwrap().iter().all(|x| x.is_nan()));
    run(&driver, text, &[], [4, 1, 1], 32, 128, &[out.arg()]).unwrap();
    assert_eq!(out.read::<f32>(0, 128).unwrap(), [1.0; 128]);
}

#[test]
fn memory_is_counted() {
    let Some(emulator) = cuda_emulator::emulator(Facts { memory: 4096, ..facts() }) else { return };
    let driver: Arc<dyn Driver> = Arc::new(emulator.with_pinned_memory(1024));
    let block = Block::new(&driver, 3000).unwrap();
    assert_eq!(block.at() % 256, 0);
    let free = driver.free_memory().unwrap();
    assert_eq!(free, 4096 - 3072);
    let refused = CudaError::OutOfMemory { what: "device memory", wanted: 2000, free };
    assert_eq!(driver.alloc(2000), Err(refused));
    assert!(matches!(
        driver.alloc_pinned(2000),
        Err(CudaError::OutOfMemory { what: "pinned host memory", wanted: 2000, free: 1024 })
    ));
    drop(block);
    assert_eq!(driver.free_memory().unwrap(), 4096);
}

#[test]
fn ranges_of_the_host_are_checked() {
    let Some(driver) = emulator(1) else { return };
    let (one, other) = (Block::zeroed(&driver, 64).unwrap(), Block::of(&driver, &[7u8; 64]).unwrap());
    // SAFETY: both blocks are that long.
    unsafe { driver.copy(other.at() + 8, one.at(), 8).unwrap() };
    assert_eq!(one.read::<u8>(0, 16).unwrap(), [7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    // SAFETY: the emulator refuses before it touches anything.
    let beyond: [&dyn Fn(); 3] = unsafe {
        [
            &|| driver.upload(&[0; 65], one.at()).unwrap(),
            &|| driver.download(one.at() + 60, &mut [0; 8]).unwrap(),
            &|| driver.clear(one.at() + 64, 1).unwrap(),
        ]
    };
    for call in beyond {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    }
}

#[test]
fn geometries_and_names_are_checked() {
    let Some(driver) = emulator(1) else { return };
    let block = Block::zeroed(&driver, 4).unwrap();
    let args = [block.arg(), Arg::Int(0)];
    let start =
        |grid, threads| run(&driver, WRITE, &[], grid, threads, 0, &args).map_err(|error| error.to_string());
    start([1, 1, 1], 1024).unwrap();
    assert!(start([1, 0, 1], 32).unwrap_err().contains("a grid of 1 x 0 x 1"));
    assert!(start([1, 1, 1], 33).unwrap_err().contains("33 threads"));
    assert!(start([1, 1, 1], 2048).unwrap_err().contains("2048 threads"));
    let left_out = Module {
        name: "left_out",
        text: "#if ELEMENT == 1\nextern \"C\" __global__ void kernel(int *x) { *x = 1; }\n#endif\n",
    };
    assert!(driver.function(&left_out, &[("ELEMENT", 1)], "kernel").is_ok());
    let told = driver.function(&left_out, &[("ELEMENT", 0)], "kernel").unwrap_err().to_string();
    assert!(told.contains("`left_out`") && told.contains("no kernel `kernel`"), "{told}");
    let broken =
        Module { name: "broken", text: "\nextern \"C\" __global__ void kernel(int *x) { *y = 1; }\n" };
    let told = driver.function(&broken, &[], "kernel").unwrap_err();
    assert!(
        matches!(&told, CudaError::Compile { module: "broken", log, .. } if log.contains("broken.cu:2")),
        "{told}"
    );
    // A float atomic would make results depend on order.
    let broken = Module {
        name: "order",
        text: "extern \"C\" __global__ void kernel(float *x) { atomicAdd(x, 1.0f); }\n",
    };
    assert!(driver.function(&broken, &[], "kernel").is_err());
}

#[test]
fn threads_share_one_device() {
    let text = r#"
extern "C" __global__ void kernel(int *out, int first) {
    __shared__ int values[64];
    values[threadIdx.x] = first + threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
}
"#;
    let Some(driver) = emulator(1) else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            // Two emulators: compiled kernels are shared between them.
            let driver = if thread < 2 { Arc::clone(&driver) } else { emulator(thread).unwrap() };
            scope.spawn(move || {
                let out = Block::new(&driver, 256).unwrap();
                for round in 0..50 {
                    let first = thread as i32 * 1000 + round;
                    run(&driver, text, &[], [1, 1, 1], 64, 0, &[out.arg(), Arg::Int(first)]).unwrap();
                    let expected: Vec<i32> = (first..first + 64).rev().collect();
                    assert_eq!(out.read::<i32>(0, 64).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn products_are_exact_sums() {
    let Some(driver) = emulator(1) else { return };
    let (rows, inputs, outputs) = (3, 21, 5);
    let number = |i: usize| ((i * 37 % 64) as f32 - 32.0) / 16.0;
    let x: Vec<f32> = (0..rows * inputs).map(number).collect();
    let w: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 11)).collect();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let place = |x: &[f32]| match dtype {
            Dtype::Bf16 => Block::of(&driver, &x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            Dtype::F16 => Block::of(&driver, &x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
            Dtype::F32 => Block::of(&driver, x),
        };
        let (x_there, w_there) = (place(&x).unwrap(), place(&w).unwrap());
        let y = Block::new(&driver, rows * outputs * 4).unwrap();
        let product = Product { rows, inputs, outputs, dtype, x: x_there.at(), w: w_there.at(), y: y.at() };
        // SAFETY: the blocks have these shapes.
        unsafe { driver.multiply(&product).unwrap() };
        let y: Vec<f32> = y.read(0, rows * outputs).unwrap();
        for i in 0..rows {
            for j in 0..outputs {
                let sum: f32 = (0..inputs).map(|k| x[i * inputs + k] * w[j * inputs + k]).sum();
                assert_eq!(y[i * outputs + j], sum, "{dtype:?} ({i}, {j})");
            }
        }
    }
}

#[test]
fn time_passes() {
    let Some(driver) = emulator(1) else { return };
    let mut work = || {
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(2) {}
        Ok(())
    };
    assert!(driver.time(&mut work).unwrap() >= 0.002);
    let module = Module { name: "test", text: WRITE };
    let function = driver.function(&module, &[], "kernel").unwrap();
    let block = Block::zeroed(&driver, 4).unwrap();
    let launch = Launch { grid: [1; 3], threads: 32, shared: 0 };
    // SAFETY: the block has a number at index 0.
    let mut work = || unsafe { driver.launch(function, launch, &[block.arg(), Arg::Int(0)]) };
    assert!(driver.time(&mut work).unwrap() > 0.0);
    assert_eq!(block.read::<i32>(0, 1).unwrap(), [7]);
}
