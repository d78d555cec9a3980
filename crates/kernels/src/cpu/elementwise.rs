//! Norms and activations.

use super::Path;
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Simd};
use crate::Activation;
use crate::activation::{GELU_CUBIC, GELU_SLOPE};
use std::f32::consts::LOG2_E;

/// Elements below which waking another thread costs more than it saves, and elements taken at a time above.
const STRIP: usize = 32 << 10;

/// See [`crate::Backend::rms_norm`].
pub(crate) fn rms_norm(pool: &Pool, path: Path, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let dim = weight.len();
    assert!(
        x.len() == y.len() && x.len().is_multiple_of(dim.max(1)),
        "rms_norm: {} inputs, {} outputs, {dim} weights",
        x.len(),
        y.len()
    );
    if dim == 0 {
        return;
    }
    let rows = x.len() / dim;
    let strip = (STRIP / dim).max(1);
    let y = Shared::new(y);
    let work = |_: &mut (), i: usize| {
        let range = i * strip * dim..((i + 1) * strip).min(rows) * dim;
        // SAFETY: strips of rows are disjoint; the backend only holds available paths.
        unsafe {
            path.call(RmsNorm { x: &x[range.clone()], weight, eps, y: y.part(range.start, range.len()) })
        }
    };
    pool.each(rows.div_ceil(strip), rows * dim <= STRIP, || (), work);
}

/// See [`crate::Backend::gate`].
pub(crate) fn gate(pool: &Pool, path: Path, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate: lengths of gate and up");
    let len = up.len();
    let gate = Shared::new(gate);
    let work = |_: &mut (), i: usize| {
        let range = i * STRIP..((i + 1) * STRIP).min(len);
        // SAFETY: strips are disjoint; the backend only holds available paths.
        unsafe {
            let (gate, up) = (gate.part(range.start, range.len()), &up[range]);
            match activation {
                Activation::Silu => path.call(Gate { form: Silu, gate, up }),
                Activation::GeluTanh => path.call(Gate { form: GeluTanh, gate, up }),
                Activation::ClampedSwiglu { alpha, limit } => {
                    path.call(Gate { form: ClampedSwiglu { alpha, limit }, gate, up })
                }
            }
        }
    };
    pool.each(len.div_ceil(STRIP), len <= STRIP, || (), work);
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.weight.len();
        let whole = dim - dim % S::LANES;
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            // SAFETY: `whole` is at most the length of the three rows.
            unsafe {
                // Four sums hide the latency of the additions.
                let mut sums = [S::splat(0.0); 4];
                for i in (0..whole).step_by(S::LANES) {
                    let v = S::load(x.as_ptr().add(i));
                    let s = &mut sums[i / S::LANES % 4];
                    *s = S::mul_add(v, v, *s);
                }
                let mut sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
                for i in whole..dim {
                    sum += x[i] * x[i];
                }
                let factor = 1.0 / (sum / dim as f32 + self.eps).sqrt();
                for i in (0..whole).step_by(S::LANES) {
                    let v = S::mul(S::load(x.as_ptr().add(i)), S::splat(factor));
                    S::store(y.as_mut_ptr().add(i), S::mul(v, S::load(self.weight.as_ptr().add(i))));
                }
                for i in whole..dim {
                    y[i] = x[i] * factor * self.weight[i];
                }
            }
        }
    }
}

/// One of the activations, on a register of gates and one of ups.
trait Form: Copy {
    unsafe fn of<S: Simd>(self, gate: S::V, up: S::V) -> S::V;
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

impl Form for Silu {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, gate: S::V, up: S::V) -> S::V {
        // SAFETY: arithmetic on registers; the path's contract holds.
        unsafe {
            let gate = floored::<S>(gate);
            S::mul(gated::<S>(gate, gate), up)
        }
    }
}

impl Form for GeluTanh {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, gate: S::V, up: S::V) -> S::V {
        // SAFETY: arithmetic on registers; the path's contract holds.
        unsafe {
            let gate = floored::<S>(gate);
            let cube = S::mul(S::mul(gate, gate), gate);
            let slope = S::mul(S::splat(GELU_SLOPE), S::mul_add(S::splat(GELU_CUBIC), cube, gate));
            S::mul(gated::<S>(gate, slope), up)
        }
    }
}

impl Form for ClampedSwiglu {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, gate: S::V, up: S::V) -> S::V {
        // SAFETY: arithmetic on registers; the path's contract holds.
        unsafe {
            let gate = floored::<S>(at_most::<S>(gate, self.limit));
            let up = S::max(S::splat(-self.limit), at_most::<S>(up, self.limit));
            let slope = S::mul(S::splat(self.alpha), gate);
            S::mul(gated::<S>(gate, slope), S::add(up, S::splat(1.0)))
        }
    }
}

/// Far below, the limit of an activation is zero, yet the exponential would overflow. This order of operands keeps a NaN.
#[inline(always)]
unsafe fn floored<S: Simd>(gate: S::V) -> S::V {
    // SAFETY: arithmetic on registers; the path's contract holds.
    unsafe { S::max(S::splat(-1000.0), gate) }
}

/// The smaller of `x` and `limit`; a NaN stays one.
#[inline(always)]
unsafe fn at_most<S: Simd>(x: S::V, limit: f32) -> S::V {
    // SAFETY: arithmetic on registers; the path's contract holds.
    unsafe {
        let zero = S::splat(0.0);
        S::sub(zero, S::max(S::splat(-limit), S::sub(zero, x)))
    }
}

/// `x · sigmoid(slope)`.
#[inline(always)]
unsafe fn gated<S: Simd>(x: S::V, slope: S::V) -> S::V {
    // SAFETY: arithmetic on registers; the path's contract holds.
    unsafe {
        let power = S::max(S::mul(slope, S::splat(LOG2_E)), S::splat(-125.0));
        let e = S::exp2(S::sub(S::splat(0.0), power));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

struct Gate<'a, F> {
    form: F,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl<F: Form> Kernel for Gate<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.up.len();
        let whole = len - len % S::LANES;
        // SAFETY: `whole` is at most the length of both slices.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let g = self.gate.as_mut_ptr().add(i);
                S::store(g, self.form.of::<S>(S::load(g), S::load(self.up.as_ptr().add(i))));
            }
            if whole < len {
                let (mut g, mut u) = ([0.0f32; 16], [0.0f32; 16]);
                g[..len - whole].copy_from_slice(&self.gate[whole..]);
                u[..len - whole].copy_from_slice(&self.up[whole..]);
                let v = self.form.of::<S>(S::load(g.as_ptr()), S::load(u.as_ptr()));
                S::store(g.as_mut_ptr(), v);
                self.gate[whole..].copy_from_slice(&g[..len - whole]);
            }
        }
    }
}
