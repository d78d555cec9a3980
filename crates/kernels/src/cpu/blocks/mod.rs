//! Dense layers with weights in blocks of few bits.
//!
//! Few rows are bound by reading the blocks: activations are rounded to 8 bits, 32 with a scale of their own, and codes are
//! multiplied as integers. Many rows go the way of dense weights, with panels unpacked from the blocks.

mod activations;
mod formats;

use super::linear::{Call, Weights};
use super::pool::Shared;
use super::simd::{Kernel, Operand, Pair, Simd, Single};
use crate::BlockType;
use activations::{Activations, Fill};
use formats::{Codes, Format, with_format};
use std::marker::PhantomData;
use std::ops::Range;

/// Up to this many rows codes are multiplied as integers.
const FEW_ROWS: usize = 12;

/// Bytes of weights one thread takes at a time.
const STRIP_BYTES: usize = 64 << 10;

/// Largest row tile.
const TILE_ROWS: usize = 4;

/// Bytes of the longest step.
const STEP_BYTES: usize = 256;

/// See [`crate::Backend::linear`]; weights `[outputs, inputs]` in blocks, whose number the matrix has checked.
pub(super) fn linear_blocks(call: &Call, kind: BlockType, blocks: &[u8]) {
    with_format!(kind, F => Blocks::<F>::new(blocks, call.inputs).linear(call))
}

/// Rows of blocks.
#[derive(Clone, Copy)]
struct Blocks<'a, F> {
    blocks: &'a [u8],
    row_bytes: usize,
    format: PhantomData<F>,
}

impl<'a, F: Format> Blocks<'a, F> {
    fn new(blocks: &'a [u8], inputs: usize) -> Self {
        Self { blocks, row_bytes: inputs / F::TYPE.len() * F::TYPE.bytes(), format: PhantomData }
    }

    fn linear(self, call: &Call) {
        if call.rows <= FEW_ROWS {
            self.few(call)
        } else if call.path.has_pair_dot() {
            call.many::<Pair, Self>(self)
        } else {
            call.many::<Single, Self>(self)
        }
    }

    fn few(self, call: &Call) {
        let Call { pool, path, x, rows, inputs, outputs, bias, y } = *call;
        let mut activations = Activations::default();
        let fill = Fill { activations: &mut activations, x, rows, inputs, format: self.format };
        // SAFETY: the backend only holds available paths.
        unsafe { path.call(fill) };
        let strip = (STRIP_BYTES / self.row_bytes.max(1)).max(1);
        let work = |_: &mut (), i: usize| {
            let strip = i * strip..((i + 1) * strip).min(outputs);
            let job = Strip { weights: self, x: &activations, rows, outputs: strip, all: outputs, bias, y };
            // SAFETY: the path is available; strips are disjoint ranges of outputs.
            unsafe { path.call(job) }
        };
        pool.each(outputs.div_ceil(strip), call.is_small(), || (), work);
    }

    fn row(&self, row: usize) -> &'a [u8] {
        &self.blocks[row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

/// The steps of a part of a row; blocks that make no whole step are followed by zeros.
struct Steps<'a, F> {
    whole: &'a [u8],
    count: usize,
    last: [u8; STEP_BYTES],
    format: PhantomData<F>,
}

impl<'a, F: Format> Steps<'a, F> {
    #[inline(always)]
    fn new(row: &'a [u8]) -> Self {
        let (whole, rest) = row.split_at(row.len() / F::step_bytes() * F::step_bytes());
        let mut last = [0; STEP_BYTES];
        last[..rest.len()].copy_from_slice(rest);
        let count = row.len().div_ceil(F::step_bytes());
        Self { whole, count, last, format: PhantomData }
    }

    #[inline(always)]
    fn step(&self, number: usize) -> *const u8 {
        let at = number * F::step_bytes();
        if at < self.whole.len() { self.whole[at..].as_ptr() } else { self.last.as_ptr() }
    }
}

/// Outputs `outputs` of few rows.
struct Strip<'a, F> {
    weights: Blocks<'a, F>,
    x: &'a Activations,
    rows: usize,
    outputs: Range<usize>,
    all: usize,
    bias: Option<&'a [f32]>,
    y: Shared<f32>,
}

impl<F: Format> Kernel for Strip<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            // SAFETY: the contract of the kernel; the rows exist.
            let rows = unsafe {
                match left {
                    TILE_ROWS.. => self.dots::<S, TILE_ROWS>(row),
                    2.. => self.dots::<S, 2>(row),
                    _ => self.dots::<S, 1>(row),
                }
            };
            row += rows;
        }
    }
}

impl<F: Format> Strip<'_, F> {
    /// Rows `first..first + R`; gives their number.
    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize>(&self, first: usize) -> usize {
        for o in self.outputs.clone() {
            let steps = Steps::<F>::new(self.weights.row(o));
            // SAFETY: steps are whole and the activations padded to whole steps; the path's contract holds.
            let sums = unsafe {
                // Two sums a row, so that additions need not wait for each other.
                let mut sums = [[S::splat(0.0); 2]; R];
                for number in 0..steps.count {
                    self.step::<S, R>(first, number, steps.step(number), &mut sums);
                }
                sums
            };
            for r in 0..R {
                // SAFETY: each output is written here only.
                unsafe {
                    let sum = S::sum(S::add(sums[r][0], sums[r][1]));
                    self.y.part((first + r) * self.all + o, 1)[0] = sum + self.bias.map_or(0.0, |b| b[o]);
                }
            }
        }
        R
    }

    /// Adds the products of one step with `R` rows from `first` on.
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize>(
        &self,
        first: usize,
        number: usize,
        step: *const u8,
        sums: &mut [[S::V; 2]; R],
    ) {
        let groups = F::STEP / F::GROUP;
        let span = 4 * S::LANES;
        // SAFETY: `number` is a step of the padded rows, which have room after them for a vector of groups.
        unsafe {
            let scales = F::scales::<S>(step);
            let mut products = [[0.0f32; 16]; R];
            for r in 0..R {
                let x = self.x.scales(first + r).add(number * groups);
                for g in 0..groups {
                    products[r][g] = scales[g] * *x.add(g);
                }
            }
            for i in 0..F::STEP / span {
                let codes = F::codes::<S>(step, i);
                let at = number * F::STEP + i * span;
                for r in 0..R {
                    let zero = if F::ZERO == 0 {
                        S::splat(0.0)
                    } else {
                        S::load(self.x.excess(first + r).add(at / 4).cast())
                    };
                    let x = S::load(self.x.codes(first + r).add(at).cast());
                    let dot = match F::CODES {
                        Codes::Small => S::dot_small_quads(zero, codes, x),
                        Codes::Wide => S::dot_quads(zero, codes, x),
                        Codes::Signed => S::dot_signed_quads(zero, codes, x),
                    };
                    let scale = S::per_group(&products[r][i * span / F::GROUP..], F::GROUP);
                    sums[r][i % 2] = S::mul_add(S::ints_to_floats(dot), scale, sums[r][i % 2]);
                }
            }
            if F::OFFSETS {
                let offsets = F::offsets::<S>(step);
                for r in 0..R {
                    let x = self.x.sums(first + r).add(number * groups);
                    for g in (0..groups).step_by(S::LANES) {
                        let less = S::mul(S::load(offsets[g..].as_ptr()), S::load(x.add(g)));
                        sums[r][1] = S::sub(sums[r][1], less);
                    }
                }
            }
        }
    }
}

impl<F: Format> Weights for Blocks<'_, F> {
    const WHOLE: usize = F::STEP;

    #[inline(always)]
    unsafe fn unpack<S: Simd, M: Operand>(self, row: usize, from: usize, len: usize, units: *mut u32) {
        let row = &self.row(row)[from / F::STEP * F::step_bytes()..];
        let steps = Steps::<F>::new(&row[..row.len().min(len.div_ceil(F::STEP) * F::step_bytes())]);
        for number in 0..steps.count {
            let first = number * F::STEP;
            // SAFETY: steps are whole, and `units` has room for `len` elements, whole blocks of them.
            unsafe { unpack_step::<S, M, F>(steps.step(number), units, first, F::STEP.min(len - first)) }
        }
    }
}

/// Writes the first `len` weights of a step (a multiple of 32) as elements `first..` of `units`.
#[inline(always)]
unsafe fn unpack_step<S: Simd, M: Operand, F: Format>(
    step: *const u8,
    units: *mut u32,
    first: usize,
    len: usize,
) {
    let span = 4 * S::LANES;
    // SAFETY: the caller's word; vectors of codes are stored to as many bytes, sixteen of which are widened at a time.
    unsafe {
        let (scales, offsets) = (F::scales::<S>(step), F::offsets::<S>(step));
        for i in 0..F::STEP / span {
            let mut codes = [0u128; 4];
            S::store(codes.as_mut_ptr().cast(), S::sub_bytes(F::codes::<S>(step, i), F::ZERO));
            for (part, &codes) in codes[..span / 16].iter().enumerate() {
                let at = i * span + part * 16;
                if at >= len {
                    return;
                }
                let widened = S::widen_bytes(codes);
                let (scale, offset) = (S::splat(scales[at / F::GROUP]), S::splat(offsets[at / F::GROUP]));
                for j in (0..16).step_by(S::LANES) {
                    let weight = S::sub(S::mul(S::load(widened[j..].as_ptr()), scale), offset);
                    M::put::<S>(units, first + at + j, weight);
                }
            }
        }
    }
}
