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

    #[inline(always)]
    unsafe fn dot_quads(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Less 128 the unsigned bytes are signed; 128 times the other operand is added apart.
        let less = vreinterpretq_f32_u8(veorq_u8(vreinterpretq_u8_f32(a), vdupq_n_u8(0x80)));
        let more = quad_sums(vdupq_n_s8(64), vreinterpretq_s8_f32(b));
        let more = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(acc), vshlq_n_s32::<1>(more)));
        Self::dot_signed_quads(more, less, b)
    }
    #[inline(always)]
    unsafe fn dot_small_quads(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        Self::dot_signed_quads(acc, a, b)
    }
    #[inline(always)]
    unsafe fn dot_signed_quads(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        let sums = quad_sums(vreinterpretq_s8_f32(a), vreinterpretq_s8_f32(b));
        vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(acc), sums))
    }
    #[inline(always)]
    unsafe fn repeat<const BYTES: usize, const STRIDE: usize, const STEP: u32>(
        p: *const u8,
        shift: u32,
    ) -> float32x4_t {
        // A negative number of bits shifts to the right.
        let first = vdupq_n_s32(-(shift as i32));
        if BYTES >= 16 {
            return vreinterpretq_f32_u32(vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), first));
        }
        const { assert!(BYTES >= 16 || BYTES == 8) }
        let shifts = vcombine_s32(vget_low_s32(first), vdup_n_s32(-((shift + STEP) as i32)));
        let half = vld1_u8(p);
        vreinterpretq_f32_u32(vshlq_u32(vreinterpretq_u32_u8(vcombine_u8(half, half)), shifts))
    }
    #[inline(always)]
    unsafe fn field<const BITS: usize>(v: float32x4_t, field: usize) -> float32x4_t {
        let shifted = vshlq_u32(vreinterpretq_u32_f32(v), vdupq_n_s32(-((field * BITS) as i32)));
        Self::mask_bytes(vreinterpretq_f32_u32(shifted), ((1u16 << BITS) - 1) as u8)
    }
    #[inline(always)]
    unsafe fn mask_bytes(v: float32x4_t, mask: u8) -> float32x4_t {
        vreinterpretq_f32_u8(vandq_u8(vreinterpretq_u8_f32(v), vdupq_n_u8(mask)))
    }
    #[inline(always)]
    unsafe fn or(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vreinterpretq_f32_u8(vorrq_u8(vreinterpretq_u8_f32(a), vreinterpretq_u8_f32(b)))
    }
    #[inline(always)]
    unsafe fn up<const BITS: i32>(v: float32x4_t) -> float32x4_t {
        vreinterpretq_f32_u32(vshlq_n_u32::<BITS>(vreinterpretq_u32_f32(v)))
    }
    #[inline(always)]
    unsafe fn lookup(codes: float32x4_t, table: &[u8; 16]) -> float32x4_t {
        vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_f32(codes)))
    }
    #[inline(always)]
    unsafe fn sub_bytes(v: float32x4_t, byte: u8) -> float32x4_t {
        vreinterpretq_f32_u8(vsubq_u8(vreinterpretq_u8_f32(v), vdupq_n_u8(byte)))
    }
    #[inline(always)]
    unsafe fn bytes_where(bits: u64, byte: u8) -> float32x4_t {
        const OWN: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        let spread = vcombine_u8(vdup_n_u8(bits as u8), vdup_n_u8((bits >> 8) as u8));
        let set = vtstq_u8(spread, vld1q_u8(OWN.as_ptr()));
        vreinterpretq_f32_u8(vandq_u8(set, vdupq_n_u8(byte)))
    }
    #[inline(always)]
    unsafe fn per_group(floats: &[f32], _group: usize) -> float32x4_t {
        // Sixteen bytes lie in one group.
        vdupq_n_f32(floats[0])
    }
    #[inline(always)]
    unsafe fn widen_bytes(bytes: u128) -> [f32; 16] {
        let bytes = vld1q_s8((&raw const bytes).cast());
        let mut floats = [0.0; 16];
        for (i, part) in [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)].into_iter().enumerate() {
            let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(part)));
            vst1q_f32(floats.as_mut_ptr().add(8 * i), low);
            vst1q_f32(floats.as_mut_ptr().add(8 * i + 4), vcvtq_f32_s32(vmovl_high_s16(part)));
        }
        floats
    }
    #[inline(always)]
    unsafe fn ints_to_floats(v: float32x4_t) -> float32x4_t {
        vcvtq_f32_s32(vreinterpretq_s32_f32(v))
    }
}

/// Sums of four products of signed bytes, in the lanes they lie in.
#[inline(always)]
unsafe fn quad_sums(a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(a, b)))
}
