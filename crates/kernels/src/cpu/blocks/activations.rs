//! Rows of activations in 8 bits, as products with blocks take them.

use super::super::simd::{Kernel, Simd};
use super::formats::Format;
use std::marker::PhantomData;

/// Activations that share a scale.
const LEN: usize = 32;

/// Room after a row of numbers, for the last vector.
const SLACK: usize = 16;

/// Rows of `inputs` activations, each 32 rounded to 8 bits with a scale of their own, zeros up to a whole number of steps.
///
/// Where a group holds something that is not finite, its scale is NaN, and so is every product with the row.
#[derive(Default)]
pub(super) struct Activations {
    /// `[rows, padded]`.
    codes: Vec<i8>,
    /// What the zero of the weights' codes adds to every sum of four products, negative: `[rows, padded / 4]`.
    excess: Vec<i32>,
    /// A scale for every group of weights: `[rows, padded / GROUP + SLACK]`.
    scales: Vec<f32>,
    /// What offsets of groups of weights are multiplied with: `[rows, padded / GROUP + SLACK]`.
    sums: Vec<f32>,
    padded: usize,
    groups: usize,
}

impl Activations {
    /// Rounds `x: [rows, inputs]` for weights of this format. Meant to run inside [`Simd::call`].
    #[inline(always)]
    unsafe fn fill<S: Simd, F: Format>(&mut self, x: &[f32], rows: usize, inputs: usize) {
        self.padded = inputs.next_multiple_of(F::STEP);
        self.groups = self.padded / F::GROUP + SLACK;
        self.codes = vec![0; rows * self.padded];
        self.excess = vec![0; rows * self.padded / 4];
        self.scales = vec![0.0; rows * self.groups];
        self.sums = vec![0.0; rows * self.groups];
        for (r, row) in x.chunks_exact(inputs.max(1)).enumerate() {
            let codes = &mut self.codes[r * self.padded..][..inputs];
            let excess = &mut self.excess[r * self.padded / 4..][..inputs / 4];
            let at = r * self.groups;
            let blocks =
                row.chunks_exact(LEN).zip(codes.chunks_exact_mut(LEN)).zip(excess.chunks_exact_mut(LEN / 4));
            for (block, ((x, codes), excess)) in blocks.enumerate() {
                // SAFETY: `x` and `codes` are `LEN` long; the path's contract holds.
                let scale = unsafe { round::<S>(x, codes) };
                for (excess, codes) in excess.iter_mut().zip(codes.chunks_exact(4)) {
                    *excess = -i32::from(F::ZERO) * codes.iter().map(|&c| i32::from(c)).sum::<i32>();
                }
                for part in 0..LEN / F::GROUP {
                    let group = at + block * (LEN / F::GROUP) + part;
                    let codes = &codes[part * F::GROUP..][..F::GROUP];
                    self.scales[group] = scale;
                    self.sums[group] = scale * codes.iter().map(|&c| i32::from(c)).sum::<i32>() as f32;
                }
            }
        }
    }

    pub(super) fn codes(&self, row: usize) -> *const i8 {
        self.codes[row * self.padded..].as_ptr()
    }

    pub(super) fn excess(&self, row: usize) -> *const i32 {
        self.excess[row * self.padded / 4..].as_ptr()
    }

    pub(super) fn scales(&self, row: usize) -> *const f32 {
        self.scales[row * self.groups..].as_ptr()
    }

    pub(super) fn sums(&self, row: usize) -> *const f32 {
        self.sums[row * self.groups..].as_ptr()
    }
}

/// Fills activations.
pub(super) struct Fill<'a, F> {
    pub(super) activations: &'a mut Activations,
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Kernel for Fill<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the contract of the kernel.
        unsafe { self.activations.fill::<S, F>(self.x, self.rows, self.inputs) }
    }
}

/// Rounds 32 activations to -127..=127 and gives their scale.
#[inline(always)]
unsafe fn round<S: Simd>(x: &[f32], codes: &mut [i8]) -> f32 {
    let mut rounded = [0.0f32; LEN];
    // SAFETY: `LEN` is a multiple of `LANES`; codes are at most 127 in size, and finite.
    unsafe {
        let (mut largest, mut odd) = (S::splat(0.0), S::splat(0.0));
        for i in (0..LEN).step_by(S::LANES) {
            let v = S::load(x[i..].as_ptr());
            largest = S::max(S::max(v, S::sub(S::splat(0.0), v)), largest);
            // Zero, unless something is not finite.
            odd = S::mul_add(v, S::splat(0.0), odd);
        }
        let largest = S::max_lane(largest);
        if S::sum(odd) != 0.0 {
            return f32::NAN;
        }
        // The quotient overflows for the smallest numbers, which are nothing beside any others.
        let factor = 127.0 / largest;
        if !factor.is_finite() {
            return 0.0;
        }
        for i in (0..LEN).step_by(S::LANES) {
            let v = S::mul(S::load(x[i..].as_ptr()), S::splat(factor));
            S::store(rounded[i..].as_mut_ptr(), S::round(v));
        }
        for (code, x) in codes.iter_mut().zip(rounded) {
            *code = x.to_int_unchecked::<i32>() as i8;
        }
        largest / 127.0
    }
}
