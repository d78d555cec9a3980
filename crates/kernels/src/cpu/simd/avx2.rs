//! AVX2 with FMA and F16C: eight lanes, sixteen registers.

use super::{Kernel, Simd, opaque};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Whether this machine has what [`Avx2`] needs.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const COLS: usize = 2;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m256) {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
        // A NaN must stay one: rounding could carry it into an infinity.
        let quiet = _mm256_or_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let out = _mm256_blendv_epi8(rounded, quiet, nan);
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(out, out));
        _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
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
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn gt(a: __m256, b: __m256) -> u32 {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) as u32
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m256) -> f32 {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: __m256, n: __m256) -> __m256 {
        let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
        let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
        // Not less: a NaN is neither less nor more, and stays.
        _mm256_and_ps(scaled, _mm256_cmp_ps::<_CMP_NLT_UQ>(n, _mm256_set1_ps(-125.0)))
    }
    #[inline(always)]
    unsafe fn dot_quads(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // The instruction that multiplies bytes saturates sums of two products: even and odd bytes go as 16-bit numbers.
        let (acc, a, b) = (_mm256_castps_si256(acc), _mm256_castps_si256(a), _mm256_castps_si256(b));
        let even_a = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
        let even_b = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
        let even = _mm256_madd_epi16(even_a, even_b);
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
        _mm256_castsi256_ps(_mm256_add_epi32(acc, _mm256_add_epi32(even, odd)))
    }
    #[inline(always)]
    unsafe fn dot_small_quads(acc: __m256, a: __m256, b: __m256) -> __m256 {
        let pairs = _mm256_maddubs_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
        let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), quads))
    }
    #[inline(always)]
    unsafe fn dot_signed_quads(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // The sign goes over to `b`, so that the unsigned operand is at most 128 and no sum of two products saturates.
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let size = _mm256_castsi256_ps(_mm256_abs_epi8(a));
        Self::dot_small_quads(acc, size, _mm256_castsi256_ps(_mm256_sign_epi8(b, a)))
    }
    #[inline(always)]
    unsafe fn repeat<const BYTES: usize, const STRIDE: usize, const STEP: u32>(
        p: *const u8,
        shift: u32,
    ) -> __m256 {
        if BYTES >= 32 {
            let shift = _mm_cvtsi32_si128(shift as i32);
            return _mm256_castsi256_ps(_mm256_srl_epi32(_mm256_loadu_si256(p.cast()), shift));
        }
        const { assert!(BYTES >= 16 || BYTES == 8 && STRIDE == 8) }
        let (first, second) = (shift as i32, (shift + STEP) as i32);
        if BYTES == 8 {
            let twice = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
            let twice = _mm256_permute4x64_epi64::<0b01_01_00_00>(twice);
            let shifts = _mm256_set_epi32(second, second, first, first, second, second, first, first);
            return _mm256_castsi256_ps(_mm256_srlv_epi32(twice, shifts));
        }
        let shifts = _mm256_set_epi32(second, second, second, second, first, first, first, first);
        let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_srlv_epi32(twice, shifts))
    }
    #[inline(always)]
    unsafe fn mask_bytes(v: __m256, mask: u8) -> __m256 {
        _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    unsafe fn or(a: __m256, b: __m256) -> __m256 {
        _mm256_or_ps(a, b)
    }
    #[inline(always)]
    unsafe fn up<const BITS: i32>(v: __m256) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<BITS>(_mm256_castps_si256(v)))
    }
    #[inline(always)]
    unsafe fn lookup(codes: __m256, table: &[u8; 16]) -> __m256 {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        _mm256_castsi256_ps(_mm256_shuffle_epi8(table, _mm256_castps_si256(codes)))
    }
    #[inline(always)]
    unsafe fn sub_bytes(v: __m256, byte: u8) -> __m256 {
        _mm256_castsi256_ps(_mm256_sub_epi8(_mm256_castps_si256(v), _mm256_set1_epi8(byte as i8)))
    }
    #[inline(always)]
    unsafe fn bytes_where(bits: u64, byte: u8) -> __m256 {
        // Every byte gets the byte of `bits` its own bit is in, ...
        let spread = _mm256_set_epi64x(
            0x0303_0303_0303_0303,
            0x0202_0202_0202_0202,
            0x0101_0101_0101_0101,
            0x0000_0000_0000_0000,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread);
        // ... and looks whether it is set.
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own);
        _mm256_castsi256_ps(_mm256_and_si256(set, _mm256_set1_epi8(byte as i8)))
    }
    #[inline(always)]
    unsafe fn per_group(floats: &[f32], group: usize) -> __m256 {
        let first = _mm256_set1_ps(floats[0]);
        if group >= 32 {
            return first;
        }
        _mm256_blend_ps::<0xf0>(first, _mm256_set1_ps(floats[1]))
    }
    #[inline(always)]
    unsafe fn widen_bytes(bytes: u128) -> [f32; 16] {
        // SAFETY: both types are 128 bits.
        let bytes: __m128i = std::mem::transmute(bytes);
        let mut floats = [0.0; 16];
        let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        _mm256_storeu_ps(floats.as_mut_ptr(), low);
        let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
        _mm256_storeu_ps(floats.as_mut_ptr().add(8), high);
        floats
    }
    #[inline(always)]
    unsafe fn widen_half(bits: u16) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
    #[inline(always)]
    unsafe fn field<const BITS: usize>(v: __m256, field: usize) -> __m256 {
        let shifted = _mm256_srl_epi32(_mm256_castps_si256(v), _mm_cvtsi32_si128((field * BITS) as i32));
        let mask = _mm256_set1_epi8(((1u16 << BITS) - 1) as i8);
        _mm256_castsi256_ps(_mm256_and_si256(shifted, mask))
    }
    #[inline(always)]
    unsafe fn ints_to_floats(v: __m256) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_castps_si256(v))
    }

    #[inline(always)]
    unsafe fn dot_pairs(acc: __m256, a: __m256, b: __m256) -> __m256 {
        let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000u32 as i32));
        let low = |v: __m256| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)));
        let acc = _mm256_fmadd_ps(low(a), low(b), acc);
        _mm256_fmadd_ps(_mm256_and_ps(a, mask), _mm256_and_ps(b, mask), acc)
    }
    #[inline(always)]
    unsafe fn four_columns(src: *const u32, stride: usize) -> [__m256; 4] {
        // Rows i and 4 + i side by side, ...
        let mut a = [_mm256_setzero_ps(); 4];
        let (first, second) = (src, opaque(src.wrapping_add(4 * stride)));
        for i in 0..4 {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(first.wrapping_add(i * stride).cast()));
            a[i] = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(second.wrapping_add(i * stride).cast()));
        }
        // ... then 4 x 4 units change places within each half.
        let (low, high) = (_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]));
        let (low2, high2) = (_mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3]));
        [
            _mm256_shuffle_ps::<0x44>(low, low2),
            _mm256_shuffle_ps::<0xee>(low, low2),
            _mm256_shuffle_ps::<0x44>(high, high2),
            _mm256_shuffle_ps::<0xee>(high, high2),
        ]
    }
}
