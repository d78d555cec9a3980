//! AVX-512 with BF16: sixteen lanes, thirty-two registers, dot products of bf16 pairs in one instruction.

use super::{Kernel, Simd, opaque};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Whether this machine has what [`Avx512`] needs.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const COLS: usize = 4;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        _mm512_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m512) {
        // SAFETY: both types are 256 bits of bf16.
        let packed: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(v));
        _mm256_storeu_si256(p.cast(), packed);
    }

    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn gt(a: __m512, b: __m512) -> u32 {
        u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        _mm512_reduce_max_ps(v)
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: __m512, n: __m512) -> __m512 {
        _mm512_scalef_ps(v, n)
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: both types are 512 bits.
        _mm512_dpbf16_ps(
            acc,
            std::mem::transmute::<__m512, __m512bh>(a),
            std::mem::transmute::<__m512, __m512bh>(b),
        )
    }

    #[inline(always)]
    unsafe fn dot_quads(acc: __m512, a: __m512, b: __m512) -> __m512 {
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(acc), a, b))
    }
    #[inline(always)]
    unsafe fn dot_signed_quads(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // The sign goes over to `b`.
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        let b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
        _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(acc), _mm512_abs_epi8(a), b))
    }
    #[inline(always)]
    unsafe fn load_halves<const STRIDE: usize>(p: *const u8) -> __m512 {
        if STRIDE == 32 {
            return _mm512_loadu_ps(p.cast());
        }
        let low = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
        let high = _mm256_loadu_si256(p.add(STRIDE).cast());
        _mm512_castsi512_ps(_mm512_inserti64x4::<1>(low, high))
    }
    #[inline(always)]
    unsafe fn repeat<const BYTES: usize, const STRIDE: usize, const STEP: u32>(
        p: *const u8,
        shift: u32,
    ) -> __m512 {
        if BYTES >= 64 {
            let shift = _mm_cvtsi32_si128(shift as i32);
            return _mm512_castsi512_ps(_mm512_srl_epi32(_mm512_loadu_si512(p.cast()), shift));
        }
        const { assert!(BYTES >= 16 || BYTES == 8 && STRIDE == 8) }
        let (first, second) = (shift as i32, (shift + STEP) as i32);
        if BYTES == 8 {
            let each = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
            let twice = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), each);
            let shifts = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xcccc, second);
            return _mm512_castsi512_ps(_mm512_srlv_epi32(twice, shifts));
        }
        let copies = if BYTES == 32 {
            _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()))
        } else {
            let low = _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast()));
            _mm512_mask_broadcast_i32x4(low, 0xff00, _mm_loadu_si128(p.add(STRIDE).cast()))
        };
        let every_second = if BYTES == 32 { 0xff00 } else { 0xf0f0 };
        let shifts = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), every_second, second);
        _mm512_castsi512_ps(_mm512_srlv_epi32(copies, shifts))
    }
    #[inline(always)]
    unsafe fn mask_bytes(v: __m512, mask: u8) -> __m512 {
        let mask = _mm512_set1_epi8(mask as i8);
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask))
    }
    #[inline(always)]
    unsafe fn or(a: __m512, b: __m512) -> __m512 {
        _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)))
    }
    #[inline(always)]
    unsafe fn up<const BITS: i32>(v: __m512) -> __m512 {
        _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(v), _mm_cvtsi32_si128(BITS)))
    }
    #[inline(always)]
    unsafe fn lookup(codes: __m512, table: &[u8; 16]) -> __m512 {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        _mm512_castsi512_ps(_mm512_shuffle_epi8(table, _mm512_castps_si512(codes)))
    }
    #[inline(always)]
    unsafe fn sub_bytes(v: __m512, byte: u8) -> __m512 {
        _mm512_castsi512_ps(_mm512_sub_epi8(_mm512_castps_si512(v), _mm512_set1_epi8(byte as i8)))
    }
    #[inline(always)]
    unsafe fn bytes_where(bits: u64, byte: u8) -> __m512 {
        _mm512_castsi512_ps(_mm512_maskz_set1_epi8(bits, byte as i8))
    }
    #[inline(always)]
    unsafe fn per_group(floats: &[f32], group: usize) -> __m512 {
        let low = _mm512_set1_ps(floats[0]);
        if group >= 32 {
            return _mm512_mask_broadcastss_ps(low, 0xff00, _mm_set_ss(floats[1]));
        }
        let four = _mm512_castps128_ps512(_mm_loadu_ps(floats[..4].as_ptr()));
        let lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        _mm512_permutexvar_ps(lanes, four)
    }
    #[inline(always)]
    unsafe fn widen_bytes(bytes: u128) -> [f32; 16] {
        // SAFETY: both types are 128 bits.
        let bytes: __m128i = std::mem::transmute(bytes);
        let mut floats = [0.0; 16];
        _mm512_storeu_ps(floats.as_mut_ptr(), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
        floats
    }
    #[inline(always)]
    unsafe fn widen_half(bits: u16) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
    #[inline(always)]
    unsafe fn field<const BITS: usize>(v: __m512, field: usize) -> __m512 {
        let shifted = _mm512_srl_epi32(_mm512_castps_si512(v), _mm_cvtsi32_si128((field * BITS) as i32));
        let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
        _mm512_castsi512_ps(_mm512_and_si512(shifted, mask))
    }
    #[inline(always)]
    unsafe fn ints_to_floats(v: __m512) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_castps_si512(v))
    }

    #[inline(always)]
    unsafe fn four_columns(src: *const u32, stride: usize) -> [__m512; 4] {
        // Loads put the units of rows i, 4 + i, 8 + i and 12 + i side by side, ...
        let mut a = [_mm512_setzero_si512(); 4];
        for r in 0..4 {
            let rows = opaque(src.wrapping_add(4 * r * stride));
            for i in 0..4 {
                let row = _mm_loadu_si128(rows.wrapping_add(i * stride).cast());
                a[i] = match r {
                    0 => _mm512_castsi128_si512(row),
                    1 => _mm512_mask_broadcast_i32x4(a[i], 0x00f0, row),
                    2 => _mm512_mask_broadcast_i32x4(a[i], 0x0f00, row),
                    _ => _mm512_mask_broadcast_i32x4(a[i], 0xf000, row),
                };
            }
        }
        // ... then 4 x 4 units change places within each quarter.
        let (low, high) = (_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
        let (low2, high2) = (_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
        [
            _mm512_castsi512_ps(_mm512_unpacklo_epi64(low, low2)),
            _mm512_castsi512_ps(_mm512_unpackhi_epi64(low, low2)),
            _mm512_castsi512_ps(_mm512_unpacklo_epi64(high, high2)),
            _mm512_castsi512_ps(_mm512_unpackhi_epi64(high, high2)),
        ]
    }

    #[inline(always)]
    unsafe fn transpose(
        src: *const u32,
        stride: usize,
        rows: usize,
        units: usize,
        dst: *mut u32,
        dst_stride: usize,
    ) {
        for r in (0..rows).step_by(16) {
            for u in (0..units).step_by(16) {
                let (src, dst) = (src.add(r * stride + u), dst.add(u * dst_stride + r));
                transpose16(src, stride, (rows - r).min(16), (units - u).min(16), dst, dst_stride);
            }
        }
    }

    #[inline(always)]
    unsafe fn interleaved(a: *const bf16, b: *const bf16) -> [__m512; 2] {
        let first = _mm512_set_epi64(
            0x002f_000f_002e_000e,
            0x002d_000d_002c_000c,
            0x002b_000b_002a_000a,
            0x0029_0009_0028_0008,
            0x0027_0007_0026_0006,
            0x0025_0005_0024_0004,
            0x0023_0003_0022_0002,
            0x0021_0001_0020_0000,
        );
        let second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
        let (a, b) = (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast()));
        [
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, first, b)),
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, second, b)),
        ]
    }

    #[inline(always)]
    unsafe fn interleave(a: *const bf16, b: *const bf16, n: usize, dst: *mut u32) {
        let whole = n - n % 32;
        for i in (0..whole).step_by(32) {
            let [first, second] = Self::interleaved(a.add(i), b.add(i));
            _mm512_storeu_ps(dst.add(i).cast(), first);
            _mm512_storeu_ps(dst.add(i + 16).cast(), second);
        }
        for i in (whole..n).step_by(16) {
            let mask = low_bits(n - i);
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a.add(i).cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b.add(i).cast()));
            let both = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            _mm512_mask_storeu_epi32(dst.add(i).cast(), mask, both);
        }
    }
}

/// A mask of the lowest `n` of 16 bits.
#[inline(always)]
fn low_bits(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

/// Transposes up to 16 x 16 units.
#[inline(always)]
unsafe fn transpose16(
    src: *const u32,
    stride: usize,
    rows: usize,
    units: usize,
    dst: *mut u32,
    dst_stride: usize,
) {
    if rows == 16 && units == 16 {
        for first in (0..16).step_by(4) {
            let columns = Avx512::four_columns(src.add(first), stride);
            for u in 0..4 {
                _mm512_storeu_ps(dst.add((first + u) * dst_stride).cast(), columns[u]);
            }
        }
        return;
    }
    let load_mask = low_bits(units);
    let store_mask = low_bits(rows);
    let mut a = [_mm512_setzero_si512(); 16];
    for r in 0..16 {
        if r < rows {
            a[r] = _mm512_maskz_loadu_epi32(load_mask, src.add(r * stride).cast());
        }
    }
    // Four rounds of pairwise exchange: 1, 2, then 4 and 8 units apart.
    let mut b = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    // a[4i + j] then holds units j, j + 4, j + 8, j + 12 of rows 4i .. 4i + 4.
    for i in 0..4 {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for j in 0..4 {
        b[j] = _mm512_shuffle_i32x4::<0x88>(a[j], a[4 + j]);
        b[4 + j] = _mm512_shuffle_i32x4::<0xdd>(a[j], a[4 + j]);
        b[8 + j] = _mm512_shuffle_i32x4::<0x88>(a[8 + j], a[12 + j]);
        b[12 + j] = _mm512_shuffle_i32x4::<0xdd>(a[8 + j], a[12 + j]);
    }
    for j in 0..4 {
        a[j] = _mm512_shuffle_i32x4::<0x88>(b[j], b[8 + j]);
        a[8 + j] = _mm512_shuffle_i32x4::<0xdd>(b[j], b[8 + j]);
        a[4 + j] = _mm512_shuffle_i32x4::<0x88>(b[4 + j], b[12 + j]);
        a[12 + j] = _mm512_shuffle_i32x4::<0xdd>(b[4 + j], b[12 + j]);
    }
    for u in 0..16 {
        if u < units {
            _mm512_mask_storeu_epi32(dst.add(u * dst_stride).cast(), store_mask, a[u]);
        }
    }
}
