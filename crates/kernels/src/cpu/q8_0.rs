//! Dense layers with Q8_0 weights: blocks of a scale in half precision and 32 signed bytes.
//!
//! Few rows read the blocks in place and multiply in f32, so that activations are not rounded. Many rows unpack the
//! weights to bf16, a panel of outputs at a time, and go the way of bf16 weights.

use super::Path;
use super::linear::{FEW_ROWS, linear};
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Simd, with_rows};
use crate::matrix::{Q8_0_BYTES, Q8_0_LEN, q8_0_scale};
use crate::{Buffer, Matrix, MatrixData};
use half::bf16;
use std::ops::Range;

/// Outputs unpacked at a time.
const PANEL: usize = 512;

/// Bytes of weights one thread takes at a time.
const STRIP_BYTES: usize = 128 << 10;

/// See [`crate::Backend::linear`]; `w: [outputs, inputs]` in blocks. The caller has checked all lengths.
pub(crate) fn linear_q8_0(
    pool: &Pool,
    path: Path,
    x: &[f32],
    rows: usize,
    w: &Matrix,
    blocks: &[u8],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    if rows <= FEW_ROWS {
        few(pool, path, x, rows, w, blocks, bias, y)
    } else {
        many(pool, path, x, rows, w, blocks, bias, y)
    }
}

fn few(
    pool: &Pool,
    path: Path,
    x: &[f32],
    rows: usize,
    w: &Matrix,
    blocks: &[u8],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (outputs, inputs) = (w.rows(), w.cols());
    let row_bytes = inputs / Q8_0_LEN * Q8_0_BYTES;
    let strip = (STRIP_BYTES / row_bytes.max(1)).max(1);
    let y = Shared::new(y);
    let work = |_: &mut (), i: usize| {
        let outputs = i * strip..((i + 1) * strip).min(outputs);
        let job = Strip { x, rows, inputs, blocks, row_bytes, all: w.rows(), outputs, bias, y };
        // SAFETY: the backend only holds available paths; strips are disjoint ranges of outputs.
        unsafe { path.call(job) }
    };
    pool.each(outputs.div_ceil(strip), rows * inputs * outputs < 1 << 18, || (), work);
}

/// Outputs `outputs` of few rows.
struct Strip<'a> {
    /// `[rows, inputs]`.
    x: &'a [f32],
    rows: usize,
    inputs: usize,
    blocks: &'a [u8],
    row_bytes: usize,
    all: usize,
    outputs: Range<usize>,
    bias: Option<&'a [f32]>,
    y: Shared<f32>,
}

impl Kernel for Strip<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the contract of the kernel.
        with_rows!(self.rows.min(FEW_ROWS), R => unsafe { self.dots::<S, R>() });
    }
}

impl Strip<'_> {
    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize>(&self) {
        for o in self.outputs.clone() {
            let row = &self.blocks[o * self.row_bytes..(o + 1) * self.row_bytes];
            // SAFETY: a block is 32 weights, and `x` holds `inputs` elements a row; each output is written here only.
            unsafe {
                let mut acc = [S::splat(0.0); R];
                for (b, block) in row.chunks_exact(Q8_0_BYTES).enumerate() {
                    let scale = S::splat(q8_0_scale(block));
                    let weights = block.as_ptr().add(2).cast::<i8>();
                    let mut part = [S::splat(0.0); R];
                    for i in (0..Q8_0_LEN).step_by(S::LANES) {
                        let w = widen::<S>(weights.add(i));
                        for r in 0..R {
                            let v = S::load(self.x.as_ptr().add(r * self.inputs + b * Q8_0_LEN + i));
                            part[r] = S::mul_add(v, w, part[r]);
                        }
                    }
                    for r in 0..R {
                        acc[r] = S::mul_add(part[r], scale, acc[r]);
                    }
                }
                for r in 0..R {
                    self.y.part(r * self.all + o, 1)[0] = S::sum(acc[r]) + self.bias.map_or(0.0, |b| b[o]);
                }
            }
        }
    }
}

/// `LANES` bytes as f32.
#[inline(always)]
unsafe fn widen<S: Simd>(bytes: *const i8) -> S::V {
    let mut wide = [0.0f32; 16];
    // SAFETY: the caller vouches for `LANES` bytes, at most 16, and for the path.
    unsafe {
        for lane in 0..S::LANES {
            wide[lane] = f32::from(*bytes.add(lane));
        }
        S::load(wide.as_ptr())
    }
}

/// A row of blocks to bf16.
struct Unpack<'a> {
    row: &'a [u8],
    out: &'a mut [bf16],
}

impl Kernel for Unpack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (block, out) in self.row.chunks_exact(Q8_0_BYTES).zip(self.out.chunks_exact_mut(Q8_0_LEN)) {
            // SAFETY: a block and its part of the row hold 32 elements, a multiple of `LANES`.
            unsafe {
                let scale = S::splat(q8_0_scale(block));
                for i in (0..Q8_0_LEN).step_by(S::LANES) {
                    let w = widen::<S>(block.as_ptr().add(2 + i).cast());
                    S::store_bf16(out.as_mut_ptr().add(i), S::mul(w, scale));
                }
            }
        }
    }
}

fn many(
    pool: &Pool,
    path: Path,
    x: &[f32],
    rows: usize,
    w: &Matrix,
    blocks: &[u8],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (outputs, inputs) = (w.rows(), w.cols());
    let row_bytes = inputs / Q8_0_LEN * Q8_0_BYTES;
    let mut out = vec![0.0; rows * PANEL.min(outputs)];
    for first in (0..outputs).step_by(PANEL) {
        let n = PANEL.min(outputs - first);
        let mut panel = Buffer::<bf16>::zeroed(n * inputs);
        let shared = Shared::new(&mut panel);
        let unpack = |_: &mut (), i: usize| {
            let row = &blocks[(first + i) * row_bytes..(first + i + 1) * row_bytes];
            // SAFETY: rows of the panel are disjoint, and the path is available.
            unsafe { path.call(Unpack { row, out: shared.part(i * inputs, inputs) }) }
        };
        pool.each(n, false, || (), unpack);
        let panel = Matrix::new(n, inputs, MatrixData::Bf16(panel)).expect("a panel has n * inputs elements");
        let out = &mut out[..rows * n];
        linear(pool, path, x, rows, &panel, bias.map(|b| &b[first..first + n]), out);
        for (y, out) in y.chunks_exact_mut(outputs).zip(out.chunks_exact(n)) {
            y[first..first + n].copy_from_slice(out);
        }
    }
}
