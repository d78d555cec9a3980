//! A [`Driver`] that runs the kernels of `reattention-cuda` on the CPU.
//!
//! The same kernel text that a GPU gets is compiled with the machine's C++ compiler behind CUDA's words and
//! functions (`fibers.hpp`, `cuda.hpp`), and run thread by thread. Nothing of it is fast; it is there so that kernels and the code that starts
//! them are tested on machines without a GPU. What a kernel may get wrong without showing it on a GPU is made to show:
//!
//! * which lanes, warps and blocks run first is drawn by a seed ([`Emulator::with_seed`]), so that a missing barrier gives
//!   wrong results under some seeds;
//! * background copies happen as late as they may, or (in half the threads) at any time before;
//! * fresh memory, device and shared, holds no numbers, and what is written beyond the end of a block or of dynamic shared
//!   memory is an error of the launch;
//! * the host and the device see pinned memory at different addresses (on Linux);
//! * lanes that do not meet at a warp-wide call, and threads that wait for ever, are errors of the launch, as are arguments
//!   whose types are not those of the kernel's parameters.
//!
//! Blocks run one after another: a kernel that waits for another block never ends. Reads beyond the end of a block are not
//! found, but what they see are no plausible numbers.
//!
//! ```
//! use reattention_cuda::driver::{Arg, Block, Launch, Module};
//!
//! const TWICE: Module = Module {
//!     name: "twice",
//!     text: r#"
//! extern "C" __global__ void twice(float *x, int n) {
//!     int i = blockIdx.x * blockDim.x + threadIdx.x;
//!     if (i < n) x[i] *= 2;
//! }
//! "#,
//! };
//!
//! // Prints why, where there is no compiler.
//! let Some(device) = cuda_emulator::device() else { return Ok(()) };
//! let x = Block::of(&device, &[1.0f32, 2.0, 3.0])?;
//! let twice = device.function(&TWICE, &[], "twice")?;
//! let launch = Launch { grid: [1, 1, 1], threads: 32, shared: 0 };
//! // SAFETY: `x` holds three floats.
//! unsafe { device.launch(twice, launch, &[x.arg(), Arg::Int(3)])? };
//! assert_eq!(x.read::<f32>(0, 3)?, [2.0, 4.0, 6.0]);
//! # Ok::<(), reattention_cuda::driver::CudaError>(())
//! ```
#![deny(missing_docs)]

mod compile;
mod memory;
mod pinned;
mod product;
mod skipped;

pub use skipped::{REQUIRE_TOOLS, skipped};

use compile::{Kernel, Order, Uint3, lock};
use memory::{Memory, complain};
use reattention_cuda::driver::{
    Address, Arg, COMMON, CudaError, Driver, Facts, Function, Launch, Module, Pinned, Product,
};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Bytes of the stack of one thread, with its state and copies; the odd lines keep those of a warp apart in the cache.
const STACK: usize = (80 << 10) + 5 * 64;
/// Bytes behind dynamic shared memory that nobody may write.
const SHARED_GUARD: usize = 1024;
const MOST_THREADS: u32 = 1024;
const WARP: u32 = 32;

/// There is no C++ compiler that could compile kernels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("skipped: no C++ compiler ({tried}; the variable CXX names another)")]
pub struct NoCompiler {
    tried: String,
}

impl NoCompiler {
    fn advice(&self) -> &'static str {
        "install one, or name it by the variable CXX"
    }
}

/// Compiles a text that has what all families share in it already, and says what the compiler found wrong.
///
/// # Errors
/// When there is no compiler, or the text does not compile.
pub fn compile_whole(whole: &Module, defines: &[(&'static str, i64)]) -> Result<(), CudaError> {
    compile::library("", whole, defines).map(drop)
}

/// A device of facts that a test may change: compute capability 9.0, 4 multiprocessors, 8 GiB.
pub fn facts() -> Facts {
    Facts {
        name: "emulated".into(),
        capability: (9, 0),
        multiprocessors: 4,
        memory: 8 << 30,
        shared_per_block: 227 << 10,
    }
}

/// An emulated device as tests take it; without a C++ compiler it says so and there is none.
pub fn device() -> Option<Arc<dyn Driver>> {
    device_with_seed(1)
}

/// As [`device`], with another order of lanes, warps and blocks ([`Emulator::with_seed`]).
pub fn device_with_seed(seed: u64) -> Option<Arc<dyn Driver>> {
    emulator(facts()).map(|emulator| Arc::new(emulator.with_seed(seed)) as _)
}

/// An emulated device of these facts, as [`device`].
pub fn emulator(facts: Facts) -> Option<Emulator> {
    Emulator::new(facts).inspect_err(|error| skipped("compiler", &error.to_string())).ok()
}

/// The emulated device.
pub struct Emulator {
    facts: Facts,
    seed: u64,
    state: Mutex<State>,
    /// Calls until one fails, below zero where none will; they count on.
    left: AtomicI64,
}

struct State {
    memory: Memory,
    kernels: Vec<Kernel>,
    known: HashMap<Key, Function>,
    launches: u64,
    stacks: Vec<u8>,
    shared: Vec<Line>,
}

/// The address of a family's text, which is as good as the text, its macros and the kernel's name.
type Key = (*const u8, Vec<(&'static str, i64)>, &'static str);

// SAFETY: the addresses in `known` are only compared.
unsafe impl Send for State {}

/// Shared memory starts on a boundary of 128 bytes.
#[derive(Clone, Copy)]
#[repr(align(128))]
struct Line(#[allow(dead_code, reason = "kernels use it")] [u8; 128]);

impl Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator")
            .field("facts", &self.facts)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Emulator {
    /// A device of these facts.
    ///
    /// # Errors
    /// When there is no C++ compiler; the text says that a test is skipped.
    pub fn new(facts: Facts) -> Result<Self, NoCompiler> {
        compile::compiler()?;
        let state = State {
            memory: Memory::new(facts.memory, 8 << 30),
            kernels: Vec::new(),
            known: HashMap::new(),
            launches: 0,
            stacks: Vec::new(),
            shared: Vec::new(),
        };
        Ok(Self { facts, seed: 1, state: Mutex::new(state), left: AtomicI64::new(-1) })
    }

    /// Draws the order of lanes, warps and blocks by another seed; with 0 they run in order.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Lets one call that asks the device for memory or work fail, after `calls` more that do not; those after it run again. A
    /// large number counts: [`Emulator::calls_left`].
    pub fn fail_after(&self, calls: i64) {
        self.left.store(calls, Ordering::SeqCst);
    }

    /// Calls until one fails.
    pub fn calls_left(&self) -> i64 {
        self.left.load(Ordering::SeqCst)
    }

    /// Counts a call, and fails if it is the one.
    fn called(&self, call: &'static str) -> Result<(), CudaError> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(CudaError::Call { call, reason: "a test lets it fail".into() }),
            _ => Ok(()),
        }
    }

    /// Gives the device this much pinned memory, in bytes, instead of 8 GiB.
    #[must_use]
    pub fn with_pinned_memory(self, bytes: usize) -> Self {
        lock(&self.state).memory = Memory::new(self.facts.memory, bytes);
        self
    }

    /// As [`Driver::function`] of a text that has what all families share in it already, with the kernel's parameters: a letter
    /// each, `p` for a pointer, `i`, `l` and `f` for `int`, `long long` and `float`. `None` if it has no such kernel.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn function_of_whole(
        &self,
        whole: &Module,
        defines: &[(&'static str, i64)],
        name: &str,
    ) -> Result<Option<(Function, &'static str)>, CudaError> {
        let Some(kernel) = compile::library("", whole, defines)?.kernel(name) else { return Ok(None) };
        Ok(Some((lock(&self.state).add(kernel), kernel.parameters)))
    }

    fn check_launch(
        &self,
        kernel: &Kernel,
        launch: &Launch,
        args: &[Arg],
        memory: &Memory,
    ) -> Result<(), String> {
        let Launch { grid: [x, y, z], threads, shared } = *launch;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(format!("a grid of {x} x {y} x {z} blocks"));
        }
        if threads == 0 || threads > MOST_THREADS || !threads.is_multiple_of(WARP) {
            return Err(format!("{threads} threads a block, not 32 to 1024 in warps of 32"));
        }
        if shared as usize > self.facts.shared_per_block {
            return Err(format!(
                "{shared} bytes of shared memory; a block has {}",
                self.facts.shared_per_block
            ));
        }
        let given: String = args
            .iter()
            .map(|arg| match arg {
                Arg::Pointer(_) => 'p',
                Arg::Int(_) => 'i',
                Arg::Long(_) => 'l',
                Arg::Float(_) => 'f',
            })
            .collect();
        if given != kernel.parameters {
            return Err(format!(
                "arguments are {given}, parameters {}: pointer, int, long, float",
                kernel.parameters
            ));
        }
        for (i, arg) in args.iter().enumerate() {
            if let Arg::Pointer(at) = *arg
                && !memory.is_pointer(at)
            {
                return Err(format!("argument {i}, {at:#x}, points to nothing that is taken"));
            }
        }
        Ok(())
    }
}

fn slot(arg: &Arg) -> u64 {
    match *arg {
        Arg::Pointer(at) => at,
        Arg::Int(x) => u64::from(x as u32),
        Arg::Long(x) => x as u64,
        Arg::Float(x) => u64::from(x.to_bits()),
    }
}

/// splitmix64
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The numbers below `n`, shuffled unless the seed is 0.
fn shuffled(n: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..n).collect();
    if seed != 0 {
        for i in (1..order.len()).rev() {
            order.swap(i, (mix(seed.wrapping_add(i as u64)) % (i as u64 + 1)) as usize);
        }
    }
    order
}

impl State {
    fn add(&mut self, kernel: Kernel) -> Function {
        self.kernels.push(kernel);
        Function(self.kernels.len() as u64 - 1)
    }

    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn run(
        &mut self,
        kernel: &Kernel,
        launch: &Launch,
        args: &[Arg],
        seed: u64,
    ) -> Result<(), String> {
        let args: Vec<u64> = args.iter().map(slot).collect();
        let mut failure = [0u8; 1024];
        // Neither is ever read before a kernel's block has filled it, so growing need not touch it.
        let stacks = (launch.threads as usize + 1) * STACK;
        if self.stacks.capacity() < stacks {
            self.stacks = Vec::with_capacity(stacks);
        }
        let lines = (launch.shared as usize + SHARED_GUARD).div_ceil(128);
        if self.shared.capacity() < lines {
            self.shared = Vec::with_capacity(lines);
        }
        let [x, y, z] = launch.grid;
        for block in shuffled(u64::from(x) * u64::from(y) * u64::from(z), seed) {
            let (bx, rest) = (block % u64::from(x), block / u64::from(x));
            let (by, bz) = (rest % u64::from(y), rest / u64::from(y));
            let order = Order {
                block: Uint3 { x: bx as u32, y: by as u32, z: bz as u32 },
                grid: Uint3 { x, y, z },
                threads: launch.threads,
                seed: if seed == 0 { 0 } else { mix(seed ^ mix(block)) | 1 },
                shared: self.shared.as_mut_ptr().cast(),
                shared_bytes: u64::from(launch.shared),
                guard: SHARED_GUARD as u64,
                // The first stack is a gap that an overflow of the second may write.
                stacks: self.stacks.as_mut_ptr().wrapping_add(STACK),
                stack_bytes: STACK as u64,
                args: args.as_ptr(),
                failure: failure.as_mut_ptr(),
                failure_bytes: failure.len() as u64,
            };
            // SAFETY: the memory is as long as the order says, the caller vouches for the arguments and holds the library.
            if !unsafe { kernel.run(&order) } {
                let end = failure.iter().position(|&x| x == 0).unwrap_or(failure.len());
                let text = String::from_utf8_lossy(&failure[..end]);
                return Err(format!("block ({bx}, {by}, {bz}): {text}"));
            }
        }
        self.memory.damage()
    }
}

// SAFETY: memory is the allocator's, kept until it is given back, and every range is checked against it.
unsafe impl Driver for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_memory(&self) -> Result<usize, CudaError> {
        Ok(lock(&self.state).memory.free_bytes())
    }

    fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        self.called("alloc")?;
        lock(&self.state).memory.alloc(bytes, false)
    }

    unsafe fn free(&self, at: Address) {
        // SAFETY: promised by the caller.
        unsafe { lock(&self.state).memory.free(at, false) }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.called("alloc_pinned")?;
        let mut state = lock(&self.state);
        let device = state.memory.alloc(bytes, true)?;
        Ok(Pinned { host: state.memory.host(device).unwrap_or(device as *mut u8), device })
    }

    unsafe fn free_pinned(&self, at: Pinned) {
        let mut state = lock(&self.state);
        if state.memory.host(at.device) != Some(at.host) {
            complain("pinned memory that is given back has an address of the host that is not its own");
        }
        // SAFETY: promised by the caller.
        unsafe { state.memory.free(at.device, true) }
    }

    unsafe fn upload(&self, data: &[u8], to: Address) -> Result<(), CudaError> {
        self.called("upload")?;
        let state = lock(&self.state);
        state.memory.check("an upload", to, data.len());
        // SAFETY: the range lies within a block, and nobody else writes while the state is locked.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        self.called("download")?;
        let state = lock(&self.state);
        state.memory.check("a download", from, data.len());
        // SAFETY: as for `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), CudaError> {
        self.called("clear")?;
        let state = lock(&self.state);
        state.memory.check("clearing", at, bytes);
        // SAFETY: as for `upload`.
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        self.called("copy")?;
        let state = lock(&self.state);
        state.memory.check("copying", from, bytes);
        state.memory.check("copying", to, bytes);
        assert!(
            from.abs_diff(to) >= bytes as u64,
            "{bytes} bytes are copied from {from:#x} to {to:#x}: they overlap"
        );
        // SAFETY: as for `upload`, and the ranges do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn function(
        &self,
        module: &Module,
        defines: &[(&'static str, i64)],
        name: &'static str,
    ) -> Result<Function, CudaError> {
        let key = (module.text.as_ptr(), defines.to_vec(), name);
        if let Some(&function) = lock(&self.state).known.get(&key) {
            return Ok(function);
        }
        // Without the lock: other threads need not wait for the compiler.
        let kernel =
            compile::library(COMMON, module, defines)?.kernel(name).ok_or_else(|| CudaError::Call {
                call: "finding a kernel",
                reason: format!("`{}` with {defines:?} has no kernel `{name}`", module.name),
            })?;
        let mut state = lock(&self.state);
        let function = state.add(kernel);
        state.known.insert(key, function);
        Ok(function)
    }

    unsafe fn launch(&self, function: Function, launch: Launch, args: &[Arg]) -> Result<(), CudaError> {
        self.called("launch")?;
        let mut state = lock(&self.state);
        let kernel = state.kernels[function.0 as usize];
        let failed = |reason: String| CudaError::Call {
            call: "launch",
            reason: format!("`{}`, {reason}", kernel.name),
        };
        self.check_launch(&kernel, &launch, args, &state.memory).map_err(failed)?;
        state.launches += 1;
        let seed = if self.seed == 0 { 0 } else { mix(self.seed ^ mix(state.launches)) | 1 };
        let _running = lock(&kernel.library.running);
        // SAFETY: the caller's promise, with numbers and types of arguments checked.
        unsafe { state.run(&kernel, &launch, args, seed) }.map_err(failed)
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), CudaError> {
        let Product { rows, inputs, outputs, dtype, x, w, y } = *product;
        self.called("multiply")?;
        let state = lock(&self.state);
        state.memory.check("x of a product", x, rows * inputs * product::size(dtype));
        state.memory.check("w of a product", w, outputs * inputs * product::size(dtype));
        state.memory.check("y of a product", y, rows * outputs * 4);
        // SAFETY: the matrices lie within blocks.
        unsafe { product::multiply(product) };
        Ok(())
    }

    fn wait(&self) -> Result<(), CudaError> {
        lock(&self.state).memory.damage().map_err(|reason| CudaError::Call { call: "wait", reason })
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
