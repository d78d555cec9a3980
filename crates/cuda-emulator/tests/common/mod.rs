//! Starting small kernels.

pub(crate) use cuda_emulator::device_with_seed as emulator;
use reattention_cuda::driver::{Arg, Block, CudaError, Driver, Launch, Module};
use std::sync::Arc;

/// Runs `kernel` of `text`.
pub(crate) fn run(
    driver: &Arc<dyn Driver>,
    text: &'static str,
    defines: &[(&'static str, i64)],
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    args: &[Arg],
) -> Result<(), CudaError> {
    let module = Module { name: "test", text };
    let function = driver.function(&module, defines, "kernel")?;
    // SAFETY: the emulator checks numbers and types of arguments; the kernels of these tests stay within their blocks, but
    // for one that writes into a guard zone.
    unsafe { driver.launch(function, Launch { grid, threads, shared }, args) }
}

/// Runs a kernel whose one parameter is an array of `len` numbers, and returns them.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn output<T: bytemuck::Pod>(
    driver: &Arc<dyn Driver>,
    text: &'static str,
    threads: u32,
    len: usize,
) -> Result<Vec<T>, CudaError> {
    let out = Block::new(driver, len * size_of::<T>())?;
    run(driver, text, &[("ELEMENT", 0)], [1, 1, 1], threads, 0, &[out.arg()])?;
    out.read(0, len)
}
