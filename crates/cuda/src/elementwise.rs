//! What stands between the products of a layer, and what is asked of logits.
//!
//! Matrices are row-major and without gaps; all are f32 where nothing else is said. Addresses are taken at their word: what
//! they announce must be taken, on boundaries of the type.

use crate::driver::{Address, Arg, CudaError, Driver, Dtype, Launch, Module};
use crate::paged::Cached;
use std::sync::Arc;

/// Its kernels.
pub const MODULE: Module = Module { name: "elementwise", text: include_str!("../kernels/elementwise.cu") };

/// Every set of macros that kernels are asked for with, for models of these head dimensions.
pub(crate) fn variants(head_dims: &[usize]) -> Vec<Vec<(&'static str, i64)>> {
    let dims = || head_dims.iter().map(|&dim| Some(dim)).chain([None]);
    let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    dtypes.into_iter().flat_map(|dtype| dims().map(move |dim| defines(dtype, dim))).collect()
}

/// What [`argmax`] gives for a row in which something is no number.
pub const NONE: u32 = u32::MAX;

/// Threads of every block; THREADS of the kernels.
const THREADS: u32 = 256;

/// Rows up to this length are left to one warp: it holds a few numbers a lane and meets no other.
const SHORT: usize = 512;

/// Root-mean-square norm of each row of `x: [rows, n]`: `y = x / sqrt(mean(x²) + eps) · weight`. `y` may be `x`.
///
/// # Errors
/// When the device fails.
pub fn rms_norm(
    driver: &Arc<dyn Driver>,
    x: Address,
    weight: Address,
    y: Address,
    rows: usize,
    n: usize,
    eps: f32,
) -> Result<(), CudaError> {
    let mut args = vec![Arg::Pointer(x), Arg::Pointer(weight), Arg::Pointer(y), int(n)?, Arg::Float(eps)];
    if n > SHORT {
        return run(driver, Dtype::Bf16, "rms_norm", rows, &args);
    }
    args.push(int(rows)?);
    run(driver, Dtype::Bf16, "rms_norm_short", rows.div_ceil(THREADS as usize / 32), &args)
}

/// SwiGLU's product of `n` numbers: `gate = silu(gate) · up`.
///
/// # Errors
/// When the device fails.
pub fn silu_mul(driver: &Arc<dyn Driver>, gate: Address, up: Address, n: usize) -> Result<(), CudaError> {
    let args = [Arg::Pointer(gate), Arg::Pointer(up), long(n)];
    run(driver, Dtype::Bf16, "silu_mul", blocks(driver, n), &args)
}

/// `y += x` for `n` numbers.
///
/// # Errors
/// When the device fails.
pub fn add(driver: &Arc<dyn Driver>, y: Address, x: Address, n: usize) -> Result<(), CudaError> {
    run(driver, Dtype::Bf16, "add", blocks(driver, n), &[Arg::Pointer(y), Arg::Pointer(x), long(n)])
}

/// Adds `bias: [n]` to each row of `y: [rows, n]`.
///
/// # Errors
/// When the device fails.
pub fn add_bias(
    driver: &Arc<dyn Driver>,
    y: Address,
    bias: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    run(driver, Dtype::Bf16, "add_bias", rows, &[Arg::Pointer(y), Arg::Pointer(bias), int(n)?])
}

/// Multiplies row `i` of `x: [rows, n]` with `factors[i]`.
///
/// # Errors
/// When the device fails.
pub fn scale_rows(
    driver: &Arc<dyn Driver>,
    x: Address,
    factors: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    run(driver, Dtype::Bf16, "scale_rows", rows, &[Arg::Pointer(x), Arg::Pointer(factors), int(n)?])
}

/// The nearest `dtype` of each of `n` numbers, as products and kernels take them.
///
/// # Errors
/// When the device fails.
pub fn to_element(
    driver: &Arc<dyn Driver>,
    x: Address,
    y: Address,
    n: usize,
    dtype: Dtype,
) -> Result<(), CudaError> {
    run(driver, dtype, "to_element", blocks(driver, n), &[Arg::Pointer(x), Arg::Pointer(y), long(n)])
}

/// Rows `ids: [rows]` (u32) of `table: [vocabulary, n]` in `dtype`, to `y: [rows, n]`. The ids are below `vocabulary`.
///
/// # Errors
/// When the device fails.
pub fn embed(
    driver: &Arc<dyn Driver>,
    table: Address,
    dtype: Dtype,
    ids: Address,
    y: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    run(driver, dtype, "embed", rows, &[Arg::Pointer(table), Arg::Pointer(ids), Arg::Pointer(y), int(n)?])
}

/// Rows `ids: [rows]` (u32) of `x`, whose rows have `n` numbers, to `y: [rows, n]`.
///
/// # Errors
/// When the device fails.
pub fn gather_rows(
    driver: &Arc<dyn Driver>,
    x: Address,
    ids: Address,
    y: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let args = [Arg::Pointer(x), Arg::Pointer(ids), Arg::Pointer(y), int(n)?];
    run(driver, Dtype::Bf16, "gather_rows", rows, &args)
}

/// New keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct NewRows {
    /// Raw keys, each token's `[n_kv_heads, head_dim]`, in f32.
    pub keys: Address,
    /// Values, alike.
    pub values: Address,
    /// Numbers from one token to the next, in both.
    pub stride: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Writes `rows` to the pages of `cached`, the first at token `first`. The pages are there.
///
/// # Errors
/// When the device fails, or rows do not start on boundaries of four numbers.
pub fn append(
    driver: &Arc<dyn Driver>,
    rows: &NewRows,
    cached: &Cached,
    first: usize,
) -> Result<(), CudaError> {
    let NewRows { keys, values, stride, tokens } = *rows;
    if !(keys | values).is_multiple_of(16) || !stride.is_multiple_of(4) || !cached.head_dim.is_multiple_of(4)
    {
        return Err(CudaError::Unsupported {
            what: format!("keys at {keys:#x} and values at {values:#x}, {stride} numbers a token"),
        });
    }
    let numbers = tokens * cached.n_kv_heads * cached.head_dim;
    let args = [
        Arg::Pointer(keys),
        Arg::Pointer(values),
        Arg::Pointer(cached.pages),
        int(first)?,
        int(tokens)?,
        int(cached.n_kv_heads)?,
        int(stride)?,
    ];
    let defines = defines(cached.dtype, Some(cached.head_dim));
    start(driver, &defines, "append", blocks(driver, numbers), &args)
}

/// The index of the largest number of each row of `x: [rows, n]`, to `y: [rows]` (u32); the lower one where they tie, [`NONE`]
/// where any is no number. `n` is not zero.
///
/// # Errors
/// When the device fails.
pub fn argmax(
    driver: &Arc<dyn Driver>,
    x: Address,
    y: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    run(driver, Dtype::Bf16, "argmax", rows, &[Arg::Pointer(x), Arg::Pointer(y), int(n)?])
}

/// How badly each row of `x: [rows, n]` foresees its target, `targets: [rows]` (u32, below `n`): `-log softmax(x)[target]`, to
/// `y: [rows]`.
///
/// # Errors
/// When the device fails.
pub fn losses(
    driver: &Arc<dyn Driver>,
    x: Address,
    targets: Address,
    y: Address,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let args = [Arg::Pointer(x), Arg::Pointer(targets), Arg::Pointer(y), int(n)?];
    run(driver, Dtype::Bf16, "losses", rows, &args)
}

fn defines(dtype: Dtype, head_dim: Option<usize>) -> Vec<(&'static str, i64)> {
    let mut defines = vec![("ELEMENT", dtype.element())];
    defines.extend(head_dim.map(|dim| ("HEAD_DIM", dim as i64)));
    defines
}

fn run(
    driver: &Arc<dyn Driver>,
    dtype: Dtype,
    name: &'static str,
    blocks: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    start(driver, &defines(dtype, None), name, blocks, args)
}

fn start(
    driver: &Arc<dyn Driver>,
    defines: &[(&'static str, i64)],
    name: &'static str,
    blocks: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    if blocks == 0 {
        return Ok(());
    }
    // Not above the largest grid, nor the largest int that a row's number is kept in.
    let Ok(grid) = i32::try_from(blocks) else {
        return Err(CudaError::Unsupported { what: format!("{blocks} blocks of `{name}`") });
    };
    let function = driver.function(&MODULE, defines, name)?;
    let launch = Launch { grid: [grid as u32, 1, 1], threads: THREADS, shared: 0 };
    // SAFETY: the functions of this file pass the parameters of their kernels, and their callers the memory.
    unsafe { driver.launch(function, launch, args) }
}

/// Blocks for `n` numbers, four a thread: enough to fill the device, and no more than there is work for.
fn blocks(driver: &Arc<dyn Driver>, n: usize) -> usize {
    let full = 8 * driver.facts().multiprocessors;
    n.div_ceil(4 * THREADS as usize).min(full.max(1))
}

fn int(x: usize) -> Result<Arg, CudaError> {
    let x = i32::try_from(x).map_err(|_| CudaError::Unsupported { what: format!("a length of {x}") })?;
    Ok(Arg::Int(x))
}

fn long(x: usize) -> Arg {
    Arg::Long(x as i64)
}
