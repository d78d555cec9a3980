//! NEON: four lanes, thirty-two registers.

use super::{Kernel, Simd};
use half::{bf16, f16};
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const COLS: usize = 4;

    #[target_feature(enable = "neon")]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        vst1q_f32(p, v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> float32x4_t {
        let mut wide = [0.0f32; 4];
        for i in 0..4 {
            wide[i] = (*p.add(i)).to_f32();
        }
        vld1q_f32(wide.as_ptr())
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: float32x4_t) {
        let mut wide = [0.0f32; 4];
        vst1q_f32(wide.as_mut_ptr(), v);
        for i in 0..4 {
            *p.add(i) = bf16::from_f32(wide[i]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vbslq_f32(vcgtq_f32(a, b), a, b)
    }
    #[inline(always)]
    unsafe fn gt(a: float32x4_t, b: float32x4_t) -> u32 {
        const BITS: [u32; 4] = [1, 2, 4, 8];
        vaddvq_u32(vandq_u32(vcgtq_f32(a, b), vld1q_u32(BITS.as_ptr())))
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        vaddvq_f32(v)
    }
    #[inline(always)]
    unsafe fn max_lane(v: float32x4_t) -> f32 {
        vmaxnmvq_f32(v)
    }
    #[inline(always)]
    unsafe fn round(v: float32x4_t) -> float32x4_t {
        vrndnq_f32(v)
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: float32x4_t, n: float32x4_t) -> float32x4_t {
        let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
        let scaled = vreinterpretq_u32_s32(vaddq_s32(vreinterpretq_s32_f32(v), exponent));
        // Not less: a NaN is neither less nor more, and stays.
        let lost = vcltq_f32(n, vdupq_n_f32(-125.0));
        vreinterpretq_f32_u32(vbicq_u32(scaled, lost))
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
        let mask = vdupq_n_u32(0xffff_0000);
        let low = vfmaq_f32(
            acc,
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(a)),
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(b)),
        );
        vfmaq_f32(low, vreinterpretq_f32_u32(vandq_u32(a, mask)), vreinterpretq_f32_u32(vandq_u32(b, mask)))
    }
}
