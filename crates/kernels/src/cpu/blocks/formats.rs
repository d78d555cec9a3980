//! How the codes and scales of each type of block become vectors.
//!
//! Everything is read through unchecked loads of whole vectors: checks of single bytes would keep the loops from becoming
//! vector code. The layouts, one weight at a time, are in [`crate::BlockType`].

use super::super::simd::Simd;
use crate::BlockType;

/// A type of blocks, read in steps of one or several blocks.
///
/// A weight is `scale · (code - ZERO) - offset`, with a scale and an offset for every [`Format::GROUP`] weights. Pointers
/// given to the functions point to [`Format::step_bytes`] readable bytes.
pub(super) trait Format: Copy + Send + Sync + 'static {
    const TYPE: BlockType;
    /// Weights of a step: at least 64, a multiple of the weights of a block.
    const STEP: usize;
    /// Weights that share a scale: 32 or 16.
    const GROUP: usize;
    const ZERO: u8;
    /// Whether offsets are not all zero.
    const OFFSETS: bool;
    /// Whether codes may be larger than 127.
    const WIDE: bool;

    /// Scales of the groups of a step.
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16];

    /// Offsets of the groups of a step, zeros after them.
    #[inline(always)]
    unsafe fn offsets<S: Simd>(_step: *const u8) -> [f32; 16] {
        [0.0; 16]
    }

    /// The codes of weights `4 · LANES · i ..` of a step, as unsigned bytes.
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V;

    fn step_bytes() -> usize {
        Self::STEP / Self::TYPE.len() * Self::TYPE.bytes()
    }
}

/// Calls `$body` with the type `$F` that reads blocks of type `$kind`.
macro_rules! with_format {
    ($kind:expr, $F:ident => $body:expr) => {
        match $kind {
            BlockType::Q4_0 => {
                type $F = formats::Q4_0;
                $body
            }
            BlockType::Q5_0 => {
                type $F = formats::Q5_0;
                $body
            }
            BlockType::Q8_0 => {
                type $F = formats::Q8_0;
                $body
            }
            BlockType::Q4K => {
                type $F = formats::Q4K;
                $body
            }
            BlockType::Q5K => {
                type $F = formats::Q5K;
                $body
            }
            BlockType::Q6K => {
                type $F = formats::Q6K;
                $body
            }
        }
    };
}
pub(super) use with_format;

/// The half-precision number at `p`.
#[inline(always)]
unsafe fn half<S: Simd>(p: *const u8) -> f32 {
    // SAFETY: the caller vouches for two bytes and for the path.
    unsafe { S::widen_half(u16::from_le_bytes(p.cast::<[u8; 2]>().read())) }
}

/// Two blocks of 32 weights, each with a scale at its start.
#[inline(always)]
unsafe fn two_scales<S: Simd, const BYTES: usize>(step: *const u8) -> [f32; 16] {
    let mut scales = [0.0; 16];
    // SAFETY: a step is two blocks of `BYTES` bytes.
    unsafe {
        scales[0] = half::<S>(step);
        scales[1] = half::<S>(step.add(BYTES));
    }
    scales
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0;

impl Format for Q8_0 {
    const TYPE: BlockType = BlockType::Q8_0;
    const STEP: usize = 64;
    const GROUP: usize = 32;
    const ZERO: u8 = 128;
    const OFFSETS: bool = false;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { two_scales::<S, 34>(step) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        // SAFETY: the bytes of two blocks, or a part of one's.
        unsafe { S::sub_bytes(S::load_halves::<34>(step.add(from / 32 * 34 + 2 + from % 32)), 128) }
    }
}

/// Four bits of each of 64 weights, the upper halves of blocks of 32 in the upper bits.
#[inline(always)]
unsafe fn nibbles<S: Simd, const BLOCK: usize, const AT: usize>(step: *const u8, from: usize) -> S::V {
    // SAFETY: the codes of a block are 16 bytes from `AT` on.
    unsafe {
        let p = step.add(from / 32 * BLOCK + AT + from % 16);
        S::mask_bytes(S::repeat::<16, BLOCK, 4>(p, (from % 32 / 16 * 4) as u32), 15)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4_0;

impl Format for Q4_0 {
    const TYPE: BlockType = BlockType::Q4_0;
    const STEP: usize = 64;
    const GROUP: usize = 32;
    const ZERO: u8 = 8;
    const OFFSETS: bool = false;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { two_scales::<S, 18>(step) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { nibbles::<S, 18, 2>(step, 4 * S::LANES * i) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5_0;

impl Format for Q5_0 {
    const TYPE: BlockType = BlockType::Q5_0;
    const STEP: usize = 64;
    const GROUP: usize = 32;
    const ZERO: u8 = 16;
    const OFFSETS: bool = false;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { two_scales::<S, 22>(step) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        // SAFETY: the fifth bits of a block are the four bytes after its scale.
        unsafe {
            let fifth = |block: usize| u32::from_le_bytes(step.add(block * 22 + 2).cast::<[u8; 4]>().read());
            let bits = (u64::from(fifth(0)) | u64::from(fifth(1)) << 32) >> from;
            S::or(nibbles::<S, 22, 6>(step, from), S::bytes_where(bits, 16))
        }
    }
}

/// The 6-bit scales (first eight) and minima of a block of Q4_K or Q5_K.
#[inline(always)]
unsafe fn k_scales<S: Simd>(step: *const u8) -> [f32; 16] {
    // SAFETY: they lie in bytes 4 to 16.
    unsafe {
        let [a, b, c] = step.add(4).cast::<[u32; 3]>().read_unaligned().map(u32::from_le);
        let low = |x: u32| u128::from(x & 0x3f3f_3f3f);
        let high = |x: u32, y: u32| u128::from(x & 0x0f0f_0f0f | (y >> 2) & 0x3030_3030);
        let bytes = low(a) | high(c, a) << 32 | low(b) << 64 | high(c >> 4, b) << 96;
        S::widen_bytes(u128::from_ne_bytes(bytes.to_le_bytes()))
    }
}

/// Scales of Q4_K and Q5_K.
#[inline(always)]
unsafe fn k_factors<S: Simd>(step: *const u8) -> [f32; 16] {
    // SAFETY: the contract.
    let (mut scales, d) = unsafe { (k_scales::<S>(step), half::<S>(step)) };
    for i in 0..8 {
        scales[i] *= d;
    }
    scales
}

/// Offsets of Q4_K and Q5_K.
#[inline(always)]
unsafe fn k_offsets<S: Simd>(step: *const u8) -> [f32; 16] {
    // SAFETY: the contract.
    let (scales, least) = unsafe { (k_scales::<S>(step), half::<S>(step.add(2))) };
    let mut offsets = [0.0; 16];
    for i in 0..8 {
        offsets[i] = scales[8 + i] * least;
    }
    offsets
}

/// The lower four bits of Q4_K and Q5_K, which begin at byte `AT`.
#[inline(always)]
unsafe fn k_nibbles<S: Simd, const AT: usize>(step: *const u8, from: usize) -> S::V {
    // SAFETY: 32 bytes hold 64 weights.
    unsafe {
        let p = step.add(AT + from / 64 * 32 + from % 32);
        S::mask_bytes(S::repeat::<32, 32, 4>(p, (from % 64 / 32 * 4) as u32), 15)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Format for Q4K {
    const TYPE: BlockType = BlockType::Q4K;
    const STEP: usize = 256;
    const GROUP: usize = 32;
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { k_factors::<S>(step) }
    }

    #[inline(always)]
    unsafe fn offsets<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { k_offsets::<S>(step) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { k_nibbles::<S, 16>(step, 4 * S::LANES * i) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5K;

impl Format for Q5K {
    const TYPE: BlockType = BlockType::Q5K;
    const STEP: usize = 256;
    const GROUP: usize = 32;
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { k_factors::<S>(step) }
    }

    #[inline(always)]
    unsafe fn offsets<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { k_offsets::<S>(step) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        // SAFETY: bit `g` of 32 bytes from byte 16 on belongs to group `g`.
        unsafe {
            let fifth = S::repeat::<32, 0, 1>(step.add(16 + from % 32), (from / 32) as u32);
            S::or(k_nibbles::<S, 48>(step, from), S::up_four_bits(S::mask_bytes(fifth, 1)))
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q6K;

impl Format for Q6K {
    const TYPE: BlockType = BlockType::Q6K;
    const STEP: usize = 256;
    const GROUP: usize = 16;
    const ZERO: u8 = 32;
    const OFFSETS: bool = false;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: sixteen scales from byte 192 on, what they all are multiplied with after them.
        unsafe {
            let d = half::<S>(step.add(208));
            let mut scales = S::widen_bytes(step.add(192).cast::<u128>().read_unaligned());
            scales.iter_mut().for_each(|s| *s *= d);
            scales
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        let (part, at) = (from / 128, from % 128);
        // SAFETY: 64 bytes hold the lower bits of 128 weights, 32 bytes from byte 128 on the upper ones.
        unsafe {
            let low = S::repeat::<64, 0, 0>(step.add(part * 64 + at % 64), (at / 64 * 4) as u32);
            let high = step.add(128 + part * 32 + at % 32);
            let high = S::repeat::<32, 0, 2>(high, (at / 32 * 2) as u32);
            S::or(S::mask_bytes(low, 15), S::up_four_bits(S::mask_bytes(high, 3)))
        }
    }
}
