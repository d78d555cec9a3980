//! What stands between the products of a layer, and what is asked of logits.
//!
//! Matrices are row-major and without gaps; all are f32 where nothing else is said, and start on boundaries of their type. Spans of
//! memory know their length and their device: a matrix that does not fit in one panics, and one of another device is refused.

use crate::driver::{Arg, CudaError, Driver, Dtype, Launch, Module, Span};
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
    x: Span,
    weight: Span,
    y: Span,
    rows: usize,
    n: usize,
    eps: f32,
) -> Result<(), CudaError> {
    let (x, y) = (floats(driver, x, rows, n)?, floats(driver, y, rows, n)?);
    let mut args = vec![x, floats(driver, weight, 1, n)?, y, int(n)?, Arg::Float(eps)];
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
pub fn silu_mul(driver: &Arc<dyn Driver>, gate: Span, up: Span, n: usize) -> Result<(), CudaError> {
    let args = [floats(driver, gate, 1, n)?, floats(driver, up, 1, n)?, long(n)];
    run(driver, Dtype::Bf16, "silu_mul", blocks(driver, n), &args)
}

/// `y += x` for `n` numbers.
///
/// # Errors
/// When the device fails.
pub fn add(driver: &Arc<dyn Driver>, y: Span, x: Span, n: usize) -> Result<(), CudaError> {
    let args = [floats(driver, y, 1, n)?, floats(driver, x, 1, n)?, long(n)];
    run(driver, Dtype::Bf16, "add", blocks(driver, n), &args)
}

/// Adds `bias: [n]` to each row of `y: [rows, n]`.
///
/// # Errors
/// When the device fails.
pub fn add_bias(
    driver: &Arc<dyn Driver>,
    y: Span,
    bias: Span,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let args = [floats(driver, y, rows, n)?, floats(driver, bias, 1, n)?, int(n)?];
    run(driver, Dtype::Bf16, "add_bias", rows, &args)
}

/// Multiplies row `i` of `x: [rows, n]` with `factors[i]`.
///
/// # Errors
/// When the device fails.
pub fn scale_rows(
    driver: &Arc<dyn Driver>,
    x: Span,
    factors: Span,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let args = [floats(driver, x, rows, n)?, floats(driver, factors, 1, rows)?, int(n)?];
    run(driver, Dtype::Bf16, "scale_rows", rows, &args)
}

/// The nearest `dtype` of each of `n` numbers, as products and kernels take them.
///
/// # Errors
/// When the device fails.
pub fn to_element(
    driver: &Arc<dyn Driver>,
    x: Span,
    y: Span,
    n: usize,
    dtype: Dtype,
) -> Result<(), CudaError> {
    let args = [floats(driver, x, 1, n)?, y.arg(driver, n, dtype.bytes())?, long(n)];
    run(driver, dtype, "to_element", blocks(driver, n), &args)
}

/// Rows `ids: [rows]` (u32) of `table: [vocabulary, n]` in `dtype`, to `y: [rows, n]`.
///
/// # Errors
/// When the device fails.
///
/// # Safety
/// The ids are below `vocabulary`, and the table has so many rows.
pub unsafe fn embed(
    driver: &Arc<dyn Driver>,
    table: Span,
    dtype: Dtype,
    ids: Span,
    y: Span,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let (table, ids) = (table.arg(driver, 0, dtype.bytes())?, ids.arg(driver, rows, size_of::<u32>())?);
    run(driver, dtype, "embed", rows, &[table, ids, floats(driver, y, rows, n)?, int(n)?])
}

/// Rows `ids: [rows]` (u32) of `x`, whose rows have `n` numbers, to `y: [rows, n]`.
///
/// # Errors
/// When the device fails.
///
/// # Safety
/// `x` has all these rows.
pub unsafe fn gather_rows(
    driver: &Arc<dyn Driver>,
    x: Span,
    ids: Span,
    y: Span,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let (x, ids) = (floats(driver, x, 0, n)?, ids.arg(driver, rows, size_of::<u32>())?);
    run(driver, Dtype::Bf16, "gather_rows", rows, &[x, ids, floats(driver, y, rows, n)?, int(n)?])
}

/// New keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct NewRows<'a> {
    /// Raw keys, each token's `[n_kv_heads, head_dim]`, in f32.
    pub keys: Span<'a>,
    /// Values, alike.
    pub values: Span<'a>,
    /// Numbers from one token to the next, in both.
    pub stride: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Writes `rows` to the pages of `cached`, the first at token `first`.
///
/// # Errors
/// When the device fails, or rows do not start on boundaries of four numbers.
///
/// # Safety
/// The pages of these tokens are there.
pub unsafe fn append(
    driver: &Arc<dyn Driver>,
    rows: &NewRows,
    cached: &Cached,
    first: usize,
) -> Result<(), CudaError> {
    let NewRows { keys, values, stride, tokens } = *rows;
    let width = cached.n_kv_heads * cached.head_dim;
    // The last row may end where the memory does.
    let reach = tokens.checked_sub(1).map_or(0, |gaps| gaps.saturating_mul(stride).saturating_add(width));
    let (keys, values) = (floats(driver, keys, 1, reach)?, floats(driver, values, 1, reach)?);
    let on_boundary = |arg| matches!(arg, Arg::Pointer(at) if at.is_multiple_of(16));
    let strides = stride.is_multiple_of(4) && cached.head_dim.is_multiple_of(4);
    if !on_boundary(keys) || !on_boundary(values) || !strides {
        return Err(CudaError::Unsupported {
            what: format!("keys {keys:?} and values {values:?}, {stride} numbers a token"),
        });
    }
    let numbers = tokens * width;
    let args =
        [keys, values, cached.arg(driver)?, int(first)?, int(tokens)?, int(cached.n_kv_heads)?, int(stride)?];
    let defines = defines(cached.dtype, Some(cached.head_dim));
    start(driver, &defines, "append", blocks(driver, numbers), &args)
}

/// The index of the largest number of each row of `x: [rows, n]`, to `y: [rows]` (u32); the lower one where they tie, [`NONE`]
/// where any is no number. `n` is not zero.
///
/// # Errors
/// When the device fails.
pub fn argmax(driver: &Arc<dyn Driver>, x: Span, y: Span, rows: usize, n: usize) -> Result<(), CudaError> {
    let args = [floats(driver, x, rows, n)?, y.arg(driver, rows, size_of::<u32>())?, int(n)?];
    run(driver, Dtype::Bf16, "argmax", rows, &args)
}

/// How badly each row of `x: [rows, n]` foresees its target, `targets: [rows]` (u32): `-log softmax(x)[target]`, to `y: [rows]`.
///
/// # Errors
/// When the device fails.
///
/// # Safety
/// The targets are below `n`.
pub unsafe fn losses(
    driver: &Arc<dyn Driver>,
    x: Span,
    targets: Span,
    y: Span,
    rows: usize,
    n: usize,
) -> Result<(), CudaError> {
    let targets = targets.arg(driver, rows, size_of::<u32>())?;
    let args = [floats(driver, x, rows, n)?, targets, floats(driver, y, 1, rows)?, int(n)?];
    run(driver, Dtype::Bf16, "losses", rows, &args)
}

/// `x` as an argument, if it holds a matrix of f32 `[rows, n]`.
fn floats(driver: &Arc<dyn Driver>, x: Span, rows: usize, n: usize) -> Result<Arg, CudaError> {
    x.arg(driver, rows.saturating_mul(n), size_of::<f32>())
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
    // SAFETY: the functions of this file pass the parameters of their kernels, in memory whose length they have checked.
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
