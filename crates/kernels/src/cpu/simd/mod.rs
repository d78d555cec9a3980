//! Vectors of f32 on each path, behind one trait, so that every kernel is written once.
//!
//! All methods are `inline(always)`: they take on the instruction set of the [`Simd::call`] they end up in. Hence the
//! one contract of every `unsafe fn` here and in the kernels built on it: it runs (transitively) inside `Simd::call` of
//! its own path, and pointers are valid for what the method reads or writes (`LANES` elements unless it says otherwise).
//!
//! Dot products run over *units* of four bytes: one f32 ([`Single`]), or two bf16 ([`Pair`]). Both kinds of operand
//! can then be moved, transposed and broadcast by the same code.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract above covers every operation of every function")]
#![allow(clippy::missing_safety_doc, reason = "one contract for all, above")]

mod portable;
pub(crate) use portable::Portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, available as avx2_available};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, available as avx512_available};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

use half::{bf16, f16};
use std::f32::consts::LN_2;

/// Work to be compiled once for each path.
pub(crate) trait Kernel {
    /// Does the work; implementations are `inline(always)`.
    unsafe fn run<S: Simd>(self);
}

/// Vectors of one path.
pub(crate) trait Simd: Copy + 'static {
    /// `LANES` f32.
    type V: Copy;
    /// f32 in a vector.
    const LANES: usize;
    /// Vectors side by side in a register tile; with [`MAX_ROWS`] rows the tile fills the register file.
    const COLS: usize;

    /// Runs `kernel` with this path's instructions enabled.
    unsafe fn call<K: Kernel>(kernel: K);

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Rounds to nearest, ties to even.
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Bit `i` says whether lane `i` of `a` is greater than that of `b`.
    unsafe fn gt(a: Self::V, b: Self::V) -> u32;
    unsafe fn sum(v: Self::V) -> f32;
    unsafe fn max_lane(v: Self::V) -> f32;
    /// The nearest integer.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `v · 2^n` for integral `n` of at most 126 and `v` in [0.5, 2]; for `n` below -125 zero or as good as. NaN where both are.
    unsafe fn scale_by_power(v: Self::V, n: Self::V) -> Self::V;
    /// `acc + a₀b₀ + a₁b₁` in each lane, for lanes that hold two bf16.
    unsafe fn dot_pairs(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// For lanes that hold four bytes: adds the products of the bytes of `a` (unsigned) and `b` (signed) to the integer in
    /// each lane of `acc`.
    unsafe fn dot_quads(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// Field `field` of `BITS` bits of every byte.
    unsafe fn field<const BITS: usize>(v: Self::V, field: usize) -> Self::V;

    /// The integers in the lanes as f32.
    unsafe fn ints_to_floats(v: Self::V) -> Self::V;

    /// [`Simd::dot_quads`] for bytes of `a` up to 127.
    #[inline(always)]
    unsafe fn dot_small_quads(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        Self::dot_quads(acc, a, b)
    }

    /// [`Simd::dot_quads`] for signed bytes of `a`; those of `b` are at least -127.
    unsafe fn dot_signed_quads(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// `4 · LANES` bytes: 32 from `p`, the next 32 from `STRIDE` bytes later.
    #[inline(always)]
    unsafe fn load_halves<const STRIDE: usize>(p: *const u8) -> Self::V {
        const { assert!(Self::LANES <= 8) }
        Self::load(p.cast())
    }

    /// Fills `4 · LANES` bytes with the `BYTES` bytes at `p`, twice, then with those `STRIDE` bytes later, twice, and so on.
    /// Words are shifted right by `shift`, those of every second copy by `STEP` more; bits of the next byte move in.
    unsafe fn repeat<const BYTES: usize, const STRIDE: usize, const STEP: u32>(
        p: *const u8,
        shift: u32,
    ) -> Self::V;

    /// The bits of every byte that are in `mask`, too.
    unsafe fn mask_bytes(v: Self::V, mask: u8) -> Self::V;

    /// The bits of either.
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;

    /// Words shifted left by `BITS` bits.
    unsafe fn up<const BITS: i32>(v: Self::V) -> Self::V;

    /// Every byte of `codes`, which are at most 15, as the byte of `table` it is the number of.
    unsafe fn lookup(codes: Self::V, table: &[u8; 16]) -> Self::V;

    /// `byte` taken off every byte, around the end.
    unsafe fn sub_bytes(v: Self::V, byte: u8) -> Self::V;

    /// Byte `i` is `byte` where bit `i` of `bits` is set, zero elsewhere.
    unsafe fn bytes_where(bits: u64, byte: u8) -> Self::V;

    /// A float for every `group` bytes (32 or 16): the lanes they lie in get it.
    unsafe fn per_group(floats: &[f32], group: usize) -> Self::V;

    /// Sixteen signed bytes (in the order of memory) as f32.
    #[inline(always)]
    unsafe fn widen_bytes(bytes: u128) -> [f32; 16] {
        bytes.to_ne_bytes().map(|b| f32::from(b as i8))
    }

    /// Half precision, by its bits, as f32.
    #[inline(always)]
    unsafe fn widen_half(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }

    /// Asks for the cache line of `p`, which need not be readable.
    #[inline(always)]
    unsafe fn prefetch<T>(_p: *const T) {}

    /// Asks for the cache line of `p` to come as far as the second level: more of these can be under way at once.
    #[inline(always)]
    unsafe fn prefetch_far<T>(_p: *const T) {}

    /// `2^x` for `x` of at most 126, relative error below 3e-7; below -125 zero or as good as. NaN stays NaN: the weight of a
    /// logit that is no number must spoil the sum, or damage would look like an answer.
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // Below the smallest power nothing is left, and infinities must not reach the subtraction. This order keeps a NaN.
        let x = Self::max(Self::splat(-200.0), x);
        let n = Self::round(x);
        let f = Self::sub(x, n);
        // Interpolates 2^f on [-1/2, 1/2] at Chebyshev nodes.
        let mut p = Self::splat(EXP2[5]);
        for i in (0..5).rev() {
            p = Self::mul_add(p, f, Self::splat(EXP2[i]));
        }
        Self::scale_by_power(p, n)
    }

    /// Turns `rows` rows of `units` units, `stride` apart, into columns `dst_stride` apart; writes nothing else:
    /// `dst[u · dst_stride + r] = src[r · stride + u]`.
    #[inline(always)]
    unsafe fn transpose(
        src: *const u32,
        stride: usize,
        rows: usize,
        units: usize,
        dst: *mut u32,
        dst_stride: usize,
    ) {
        let (whole_rows, whole_units) = (rows - rows % Self::LANES, units - units % 4);
        for r in (0..whole_rows).step_by(Self::LANES) {
            for u in (0..whole_units).step_by(4) {
                let columns = Self::four_columns(opaque(src.wrapping_add(r * stride + u)), stride);
                for i in 0..4 {
                    Self::store(dst.add((u + i) * dst_stride + r).cast(), columns[i]);
                }
            }
        }
        for r in 0..rows {
            for u in if r < whole_rows { whole_units } else { 0 }..units {
                *dst.add(u * dst_stride + r) = src.add(r * stride + u).read_unaligned();
            }
        }
    }

    /// The first four columns of `LANES` rows of units, `stride` apart.
    #[inline(always)]
    unsafe fn four_columns(src: *const u32, stride: usize) -> [Self::V; 4] {
        let mut columns = [Self::splat(0.0); 4];
        for u in 0..4 {
            let mut column = [0u32; 16];
            for r in 0..Self::LANES {
                column[r] = src.add(r * stride + u).read_unaligned();
            }
            columns[u] = Self::load(column.as_ptr().cast());
        }
        columns
    }

    /// `dst[i] = (a[i], b[i])` for `n` elements.
    #[inline(always)]
    unsafe fn interleave(a: *const bf16, b: *const bf16, n: usize, dst: *mut u32) {
        for i in 0..n {
            *dst.add(i) = u32::from((*a.add(i)).to_bits()) | u32::from((*b.add(i)).to_bits()) << 16;
        }
    }

    /// `(a[i], b[i])` for `2 · LANES` elements.
    #[inline(always)]
    unsafe fn interleaved(a: *const bf16, b: *const bf16) -> [Self::V; 2] {
        let mut both = [0u32; 32];
        Self::interleave(a, b, 2 * Self::LANES, both.as_mut_ptr());
        [Self::load(both.as_ptr().cast()), Self::load(both.as_ptr().add(Self::LANES).cast())]
    }
}

/// Rows of a register tile.
pub(crate) const MAX_ROWS: usize = 6;

/// Coefficients of `2^f`.
const EXP2: [f32; 6] = [1.0, LN_2, 0.240_221_07, 0.055_503_57, 0.009_676_032, 0.001_339_086_3];

/// How the units of a dot product are multiplied.
pub(crate) trait Operand: Copy + Default + Send + Sync + 'static {
    /// Elements in a unit.
    const PER_UNIT: usize;

    /// Adds the products of the units of `a` and `b` to `acc`.
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V;

    /// Writes `LANES` elements, rounded where the unit needs it, from element `i` of `units` on.
    unsafe fn put<S: Simd>(units: *mut u32, i: usize, v: S::V);

    /// Writes element `i` of `units`.
    unsafe fn put_one(units: *mut u32, i: usize, x: f32);

    /// The `2 · LANES` elements from `i` on of as many rows as a unit has elements, by units.
    unsafe fn values<S: Simd, E: Load>(rows: *const *const E, i: usize) -> [S::V; 2];

    /// Writes the elements of `row` to `units: [ceil(row.len() / PER_UNIT)]`.
    #[inline(always)]
    unsafe fn pack_row<S: Simd>(row: &[f32], units: *mut u32) {
        let whole = row.len() - row.len() % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            Self::put::<S>(units, i, S::load(row.as_ptr().add(i)));
        }
        for i in whole..row.len() {
            Self::put_one(units, i, row[i]);
        }
        for i in row.len()..row.len().next_multiple_of(Self::PER_UNIT) {
            Self::put_one(units, i, 0.0);
        }
    }
}

/// A unit is one f32.
#[derive(Clone, Copy, Default)]
pub(crate) struct Single;

/// A unit is two bf16.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pair;

impl Operand for Single {
    const PER_UNIT: usize = 1;

    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        S::mul_add(a, b, acc)
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(units: *mut u32, i: usize, v: S::V) {
        S::store(units.cast::<f32>().add(i), v);
    }

    #[inline(always)]
    unsafe fn put_one(units: *mut u32, i: usize, x: f32) {
        *units.cast::<f32>().add(i) = x;
    }

    #[inline(always)]
    unsafe fn values<S: Simd, E: Load>(rows: *const *const E, i: usize) -> [S::V; 2] {
        let row = (*rows).add(i);
        [E::load::<S>(row), E::load::<S>(row.add(S::LANES))]
    }
}

impl Operand for Pair {
    const PER_UNIT: usize = 2;

    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        S::dot_pairs(acc, a, b)
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(units: *mut u32, i: usize, v: S::V) {
        S::store_bf16(units.cast::<bf16>().add(i), v);
    }

    #[inline(always)]
    unsafe fn put_one(units: *mut u32, i: usize, x: f32) {
        *units.cast::<bf16>().add(i) = bf16::from_f32(x);
    }

    #[inline(always)]
    unsafe fn values<S: Simd, E: Load>(rows: *const *const E, i: usize) -> [S::V; 2] {
        // Pair operands come with bf16 elements only.
        S::interleaved((*rows).cast::<bf16>().add(i), (*rows.add(1)).cast::<bf16>().add(i))
    }
}

/// An element type vectors can be loaded from.
pub(crate) trait Load: bytemuck::Pod + Send + Sync {
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    fn widen(self) -> f32;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        S::load(p)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        S::load_bf16(p)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        S::load_f16(p)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// `acc[r][c] += Σ_u a[r · a_stride + u] ⊗ b[u · b_stride + c · LANES ..]` over `units` units.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, M: Operand, const R: usize, const C: usize>(
    mut acc: [[S::V; C]; R],
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
    units: usize,
) -> [[S::V; C]; R] {
    for u in 0..units {
        let mut row = [S::splat(0.0); C];
        for c in 0..C {
            row[c] = S::load(b.add(u * b_stride + c * S::LANES).cast());
        }
        for r in 0..R {
            let x = S::splat(f32::from_bits(*a.add(r * a_stride + u)));
            for c in 0..C {
                acc[r][c] = M::mac::<S>(acc[r][c], x, row[c]);
            }
        }
    }
    acc
}

/// The same pointer, but one the compiler knows nothing of.
///
/// Left to itself it keeps a running pointer for every row of a tile: more than there are registers.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "the pointer is renamed, not followed")]
#[allow(unused_mut, reason = "elsewhere it is the pointer it was")]
pub(crate) fn opaque<T>(mut p: *const T) -> *const T {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags))
    };
    p
}

/// Runs `$body` with the constant `$R` equal to `$rows`, which is between 1 and [`MAX_ROWS`].
macro_rules! with_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        match $rows {
            1 => {
                const $R: usize = 1;
                $body
            }
            2 => {
                const $R: usize = 2;
                $body
            }
            3 => {
                const $R: usize = 3;
                $body
            }
            4 => {
                const $R: usize = 4;
                $body
            }
            5 => {
                const $R: usize = 5;
                $body
            }
            _ => {
                const $R: usize = 6;
                $body
            }
        }
    };
}
pub(crate) use with_rows;

/// Rows of the next register tile when `left` rows remain: near-equal tiles rather than a full and a thin one.
#[inline(always)]
pub(crate) fn next_rows(left: usize) -> usize {
    left.div_ceil(left.div_ceil(MAX_ROWS))
}
