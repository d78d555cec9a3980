//! Norms and activations.

use super::Path;
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Simd};
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

/// See [`crate::Backend::silu_mul`].
pub(crate) fn silu_mul(pool: &Pool, path: Path, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "silu_mul: lengths of gate and up");
    let len = up.len();
    let gate = Shared::new(gate);
    let work = |_: &mut (), i: usize| {
        let range = i * STRIP..((i + 1) * STRIP).min(len);
        // SAFETY: strips are disjoint; the backend only holds available paths.
        unsafe { path.call(SiluMul { gate: gate.part(range.start, range.len()), up: &up[range] }) }
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

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.up.len();
        let whole = len - len % S::LANES;
        // SAFETY: `whole` is at most the length of both slices.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let g = self.gate.as_mut_ptr().add(i);
                S::store(g, silu_mul_one::<S>(S::load(g), S::load(self.up.as_ptr().add(i))));
            }
            if whole < len {
                let (mut g, mut u) = ([0.0f32; 16], [0.0f32; 16]);
                g[..len - whole].copy_from_slice(&self.gate[whole..]);
                u[..len - whole].copy_from_slice(&self.up[whole..]);
                let v = silu_mul_one::<S>(S::load(g.as_ptr()), S::load(u.as_ptr()));
                S::store(g.as_mut_ptr(), v);
                self.gate[whole..].copy_from_slice(&g[..len - whole]);
            }
        }
    }
}

#[inline(always)]
unsafe fn silu_mul_one<S: Simd>(g: S::V, u: S::V) -> S::V {
    // SAFETY: arithmetic on registers; the path's contract holds.
    unsafe {
        // Far below, the limit is zero, yet the exponential would overflow. This order of operands keeps a NaN.
        let g = S::max(S::splat(-1000.0), g);
        let x = S::max(S::mul(g, S::splat(LOG2_E)), S::splat(-125.0));
        let e = S::exp2(S::sub(S::splat(0.0), x));
        S::mul(S::div(g, S::add(S::splat(1.0), e)), u)
    }
}
