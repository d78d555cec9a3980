//! Dense layers: `y = x · wᵀ + bias`.
//!
//! A few rows are bound by reading the weights once: each output is a dot product along its row of weights, in f32.
//! Many rows are bound by arithmetic: weights are transposed panel by panel (`COLS · LANES` outputs wide, a block of
//! inputs deep, so that a panel stays in cache) and multiplied with all rows by register tiles. bf16 weights on a path
//! with pair products round the activations to bf16 there; every other combination computes in f32.

use super::Path;
use super::blocks::linear_blocks;
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Load, Operand, Pair, Simd, Single, next_rows, tile, with_rows};
use crate::{Matrix, MatrixData};
use half::{bf16, f16};

/// Up to this many rows weights are read in place.
const FEW_ROWS: usize = 4;

/// Bytes of weights one thread takes at a time when there are few rows.
const STRIP_BYTES: usize = 128 << 10;

/// Units of input a panel is deep: with 64 outputs 256 KiB, a part of the second-level cache.
const DEPTH: usize = 1024;

/// Rows one thread takes at a time when there are few panels.
const ROW_BLOCK: usize = 256;

/// Multiply-adds below which waking another thread costs more than it saves.
const SMALL: usize = 1 << 18;

/// See [`crate::Backend::linear`].
pub(crate) fn linear(
    pool: &Pool,
    path: Path,
    x: &[f32],
    rows: usize,
    w: &Matrix,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let (outputs, inputs) = (w.rows(), w.cols());
    assert_eq!(
        (x.len(), y.len()),
        (rows * inputs, rows * outputs),
        "linear: {rows} rows, {outputs} x {inputs}"
    );
    assert!(
        bias.is_none_or(|b| b.len() == outputs),
        "linear: {:?} biases, {outputs} outputs",
        bias.map(<[f32]>::len)
    );
    if rows == 0 || outputs == 0 {
        return;
    }
    let call = Call { pool, path, x, rows, inputs, outputs, bias, y: Shared::new(y) };
    match w.data() {
        MatrixData::F32(w) => call.single(w),
        MatrixData::F16(w) => call.single::<f16>(w),
        // Rows of an odd length do not start on whole units.
        MatrixData::Bf16(w) if path.has_pair_dot() && inputs % 2 == 0 => call.pair(w),
        MatrixData::Bf16(w) => call.single(w),
        MatrixData::Blocks(kind, blocks) => linear_blocks(&call, *kind, blocks),
    }
}

/// The arguments of one call.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) pool: &'a Pool,
    pub(super) path: Path,
    /// `[rows, inputs]`.
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// `[rows, outputs]`.
    pub(super) y: Shared<f32>,
}

/// Rows of weights that panels are made from.
pub(super) trait Weights: Copy + Send + Sync {
    /// Rows are cut at multiples of so many elements.
    const WHOLE: usize;

    /// Writes elements `from..from + len` of row `row` as units; an element missing to a whole unit is zero.
    unsafe fn unpack<S: Simd, M: Operand>(self, row: usize, from: usize, len: usize, units: *mut u32);

    /// All rows, where they are units as they stand.
    fn units<M: Operand>(self) -> Option<*const u32> {
        None
    }
}

/// Rows of `inputs` elements.
#[derive(Clone, Copy)]
struct Dense<'a, T> {
    w: &'a [T],
    inputs: usize,
}

impl<T: Load> Weights for Dense<'_, T> {
    const WHOLE: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd, M: Operand>(self, row: usize, from: usize, len: usize, units: *mut u32) {
        let row = &self.w[row * self.inputs + from..][..len];
        let whole = len - len % S::LANES;
        // SAFETY: within the row, and within the units it fills.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                M::put::<S>(units, i, T::load::<S>(row[i..].as_ptr()));
            }
            for i in whole..len {
                M::put_one(units, i, row[i].widen());
            }
        }
    }

    #[inline(always)]
    fn units<M: Operand>(self) -> Option<*const u32> {
        (size_of::<T>() * M::PER_UNIT == 4).then_some(self.w.as_ptr().cast())
    }
}

impl Call<'_> {
    fn single<T: Load>(&self, w: &[T]) {
        if self.rows <= FEW_ROWS {
            self.few(w)
        } else {
            self.many::<Single, _>(Dense { w, inputs: self.inputs })
        }
    }

    fn pair(&self, w: &[bf16]) {
        if self.rows <= FEW_ROWS {
            self.few(w)
        } else {
            self.many::<Pair, _>(Dense { w, inputs: self.inputs })
        }
    }

    pub(super) fn is_small(&self) -> bool {
        self.rows * self.inputs * self.outputs < SMALL
    }

    fn few<T: Load>(&self, w: &[T]) {
        let strip = (STRIP_BYTES / (self.inputs * size_of::<T>()).max(1)).next_multiple_of(4).max(4);
        let work = |_: &mut (), i: usize| {
            let outputs = i * strip..((i + 1) * strip).min(self.outputs);
            // SAFETY: the backend only holds available paths; strips are disjoint ranges of outputs within `w`.
            unsafe { self.path.call(Strip { call: self, w, outputs }) }
        };
        self.pool.each(self.outputs.div_ceil(strip), self.is_small(), || (), work);
    }

    pub(super) fn many<M: Operand, W: Weights>(&self, w: W) {
        let units = self.inputs.div_ceil(M::PER_UNIT);
        // A stride that is no power of two keeps the rows of a tile out of each other's cache sets.
        let stride = units.next_multiple_of(16) + 16;
        let mut x = vec![0u32; self.rows * stride];
        let packed = Shared::new(&mut x);
        let row_blocks = self.rows.div_ceil(64);
        let pack = |_: &mut (), i: usize| {
            let rows = i * 64..((i + 1) * 64).min(self.rows);
            // SAFETY: blocks of rows are disjoint, and `x` outlives the loop.
            let out = unsafe { packed.part(rows.start * stride, rows.len() * stride) };
            let x = &self.x[rows.start * self.inputs..rows.end * self.inputs];
            // SAFETY: the path is available, and both slices hold `rows.len()` rows.
            unsafe {
                self.path.call(PackRows::<M> { x, inputs: self.inputs, out, stride, operand: M::default() })
            }
        };
        self.pool.each(row_blocks, self.is_small(), || (), pack);

        let width = self.path.tile_width();
        let panels = self.outputs.div_ceil(width);
        let row_block = if panels >= 16 { self.rows } else { ROW_BLOCK };
        let row_blocks = self.rows.div_ceil(row_block);
        let depth = units.div_ceil(units.div_ceil(DEPTH).max(1)).max(1);
        let depth = depth.next_multiple_of(W::WHOLE.div_ceil(M::PER_UNIT));
        let work = |panel: &mut Vec<u32>, i: usize| {
            let rows = i % row_blocks * row_block..((i % row_blocks + 1) * row_block).min(self.rows);
            let first = i / row_blocks * width;
            let outputs = first..(first + width).min(self.outputs);
            let mut from = 0;
            loop {
                let count = depth.min(units - from);
                let (panel, unpacked) = panel.split_at_mut(depth * width);
                let pack = Pack::<M, W> {
                    w,
                    inputs: self.inputs,
                    outputs: outputs.clone(),
                    from,
                    count,
                    panel: &mut *panel,
                    unpacked,
                    operand: M::default(),
                };
                // SAFETY: the path is available; the outputs and units are those of `w`.
                unsafe { self.path.call(pack) };
                let tiles = Tiles::<M> {
                    call: self,
                    x: &x,
                    stride,
                    rows: rows.clone(),
                    outputs: outputs.clone(),
                    from,
                    count,
                    panel,
                    operand: M::default(),
                };
                // SAFETY: the path is available; panels and blocks of rows are disjoint parts of `y`.
                unsafe { self.path.call(tiles) };
                from += count;
                if from >= units {
                    break;
                }
            }
        };
        // Room for the panel and, behind it, sixteen unpacked rows of weights.
        let scratch = || vec![0u32; depth * (width + 16)];
        self.pool.each(panels * row_blocks, self.is_small(), scratch, work);
    }
}

/// Outputs `outputs` of few rows.
struct Strip<'a, T> {
    call: &'a Call<'a>,
    w: &'a [T],
    outputs: std::ops::Range<usize>,
}

impl<T: Load> Kernel for Strip<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Four weight rows at once where sixteen sums fit the register file.
        with_rows!(self.call.rows.min(FEW_ROWS), R => if S::COLS == 4 {
            // SAFETY: the contract of the kernel.
            unsafe { self.dots::<S, R, 4>() }
        } else {
            // SAFETY: as above.
            unsafe { self.dots::<S, R, 2>() }
        })
    }
}

impl<T: Load> Strip<'_, T> {
    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const O: usize>(&self) {
        let end = self.outputs.end;
        let mut o = self.outputs.start;
        // SAFETY: `o` and the rows stay within the matrix; the path's contract holds.
        unsafe {
            while o + O <= end {
                self.block::<S, R, O>(o);
                o += O;
            }
            while o < end {
                self.block::<S, R, 1>(o);
                o += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const O: usize>(&self, o: usize) {
        let Call { x, inputs, outputs, bias, y, .. } = *self.call;
        let whole = inputs - inputs % S::LANES;
        // SAFETY: all indices lie within `x: [R, inputs]` and `w: [outputs, inputs]`; each output is written here only.
        unsafe {
            let mut acc = [[S::splat(0.0); O]; R];
            let (x, w) = (x.as_ptr(), self.w.as_ptr().add(o * inputs));
            for i in (0..whole).step_by(S::LANES) {
                let mut weights = [S::splat(0.0); O];
                for c in 0..O {
                    weights[c] = T::load::<S>(w.add(c * inputs + i));
                }
                for r in 0..R {
                    let v = S::load(x.add(r * inputs + i));
                    for c in 0..O {
                        acc[r][c] = S::mul_add(v, weights[c], acc[r][c]);
                    }
                }
            }
            for r in 0..R {
                let out = y.part(r * outputs + o, O);
                for c in 0..O {
                    let mut sum = S::sum(acc[r][c]);
                    for i in whole..inputs {
                        sum += *x.add(r * inputs + i) * (*w.add(c * inputs + i)).widen();
                    }
                    out[c] = sum + bias.map_or(0.0, |b| b[o + c]);
                }
            }
        }
    }
}

/// Rounds and pads rows of activations.
struct PackRows<'a, M> {
    x: &'a [f32],
    inputs: usize,
    out: &'a mut [u32],
    stride: usize,
    #[allow(dead_code, reason = "names the operand type")]
    operand: M,
}

impl<M: Operand> Kernel for PackRows<'_, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (row, out) in self.x.chunks_exact(self.inputs.max(1)).zip(self.out.chunks_exact_mut(self.stride))
        {
            // SAFETY: the stride is at least the number of units of a row.
            unsafe { M::pack_row::<S>(row, out.as_mut_ptr()) }
        }
    }
}

/// Writes the transposed weights of a panel of outputs, units `from..from + count`, to `panel: [count, COLS · LANES]`, zeros
/// where there is no output.
struct Pack<'a, M, W> {
    w: W,
    inputs: usize,
    outputs: std::ops::Range<usize>,
    from: usize,
    count: usize,
    panel: &'a mut [u32],
    /// Room for sixteen rows of weights.
    unpacked: &'a mut [u32],
    #[allow(dead_code, reason = "names the operand type")]
    operand: M,
}

impl<M: Operand, W: Weights> Kernel for Pack<'_, M, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (inputs, width, n) = (self.inputs, S::COLS * S::LANES, self.outputs.len());
        let (from, count) = (self.from, self.count);
        if n < width {
            self.panel[..count * width].fill(0);
        }
        let panel = self.panel.as_mut_ptr();
        // SAFETY: reads stay within the outputs' rows and the units `from..from + count`; writes within the panel.
        unsafe {
            if let Some(rows) = self.w.units::<M>() {
                let stride = inputs / M::PER_UNIT;
                let rows = rows.add(self.outputs.start * stride + from);
                S::transpose(rows, stride, n, count, panel, width);
                return;
            }
            let len = (count * M::PER_UNIT).min(inputs - from * M::PER_UNIT);
            for first in (0..n).step_by(16) {
                let rows = (n - first).min(16);
                for r in 0..rows {
                    let units = self.unpacked.as_mut_ptr().add(r * count);
                    let row = self.outputs.start + first + r;
                    self.w.unpack::<S, M>(row, from * M::PER_UNIT, len, units);
                }
                S::transpose(self.unpacked.as_ptr(), count, rows, count, panel.add(first), width);
            }
        }
    }
}

/// Adds the products of a packed panel with a block of rows. It knows nothing of the type of the weights, so that it is
/// compiled once for all.
struct Tiles<'a, M> {
    call: &'a Call<'a>,
    /// `[rows, stride]` units.
    x: &'a [u32],
    stride: usize,
    rows: std::ops::Range<usize>,
    outputs: std::ops::Range<usize>,
    from: usize,
    count: usize,
    panel: &'a [u32],
    #[allow(dead_code, reason = "names the operand type")]
    operand: M,
}

impl<M: Operand> Kernel for Tiles<'_, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let n = next_rows(self.rows.end - row);
            with_rows!(n, R => if S::COLS == 4 {
                // SAFETY: every block of units lies within the rows; the path's contract holds.
                unsafe { self.tile::<S, R, 4>(row, self.from, self.count) }
            } else {
                // SAFETY: as above.
                unsafe { self.tile::<S, R, 2>(row, self.from, self.count) }
            });
            row += n;
        }
    }
}

impl<M: Operand> Tiles<'_, M> {
    /// Rows `row..row + R`, all outputs of the panel, units `from..from + count`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize>(&self, row: usize, from: usize, count: usize) {
        let (outputs, width, n) = (self.call.outputs, C * S::LANES, self.outputs.len());
        // Sums of a panel that is not full width go through here.
        let mut edge = [0.0f32; 64];
        // SAFETY: the rows and outputs are this job's own part of `y`; `x` and the panel hold what `tile` reads.
        unsafe {
            let mut acc = [[S::splat(0.0); C]; R];
            for r in 0..R {
                let y = self.call.y.part((row + r) * outputs + self.outputs.start, n);
                let seed = match self.call.bias {
                    _ if from > 0 => &*y,
                    Some(bias) => &bias[self.outputs.clone()],
                    None => continue,
                };
                let seed = if n == width {
                    seed.as_ptr()
                } else {
                    edge[..n].copy_from_slice(seed);
                    edge.as_ptr()
                };
                for c in 0..C {
                    acc[r][c] = S::load(seed.add(c * S::LANES));
                }
            }
            let a = self.x.as_ptr().add(row * self.stride + from);
            let acc = tile::<S, M, R, C>(acc, a, self.stride, self.panel.as_ptr(), width, count);
            for r in 0..R {
                let y = self.call.y.part((row + r) * outputs + self.outputs.start, n);
                let out = if n == width { y.as_mut_ptr() } else { edge.as_mut_ptr() };
                for c in 0..C {
                    S::store(out.add(c * S::LANES), acc[r][c]);
                }
                if n < width {
                    y.copy_from_slice(&edge[..n]);
                }
            }
        }
    }
}
