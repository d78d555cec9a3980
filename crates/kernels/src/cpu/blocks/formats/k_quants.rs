//! Blocks of 256 weights whose groups have scales of few bits: Q2_K to Q6_K.

use super::{Format, half, two_bits};
use crate::BlockType;
use crate::cpu::simd::Simd;

#[derive(Clone, Copy)]
pub(in super::super) struct Q2K;

impl Format for Q2K {
    const TYPE: BlockType = BlockType::Q2K;
    const STEP: usize = 256;
    const GROUP: usize = 16;
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: sixteen bytes, of a scale in the lower and a minimum in the upper bits, begin the block.
        unsafe {
            let packed = step.cast::<u128>().read_unaligned();
            times(S::widen_bytes(packed & (u128::MAX / 255 * 15)), half::<S>(step.add(80)))
        }
    }

    #[inline(always)]
    unsafe fn offsets<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: as above.
        unsafe {
            let packed = u128::from_le(step.cast::<u128>().read_unaligned()) >> 4;
            let least = u128::from_le(packed & (u128::MAX / 255 * 15));
            times(S::widen_bytes(least), half::<S>(step.add(82)))
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { two_bits::<S, 16>(step, 4 * S::LANES * i) }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Q3K;

impl Format for Q3K {
    const TYPE: BlockType = BlockType::Q3K;
    const STEP: usize = 256;
    const GROUP: usize = 16;
    const ZERO: u8 = 4;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: twelve bytes of scales from byte 96 on, what they all are multiplied with after them.
        unsafe {
            let [a, b, c] = step.add(96).cast::<[u32; 3]>().read_unaligned().map(u32::from_le);
            // The lower four bits lie in 8 bytes, eight scales in the lower and eight in the upper bits; the upper two in 4.
            let four = |low: u32, high: u32| u128::from(low & 0x0f0f_0f0f | (high & 0x0303_0303) << 4);
            let bytes =
                four(a, c) | four(b, c >> 2) << 32 | four(a >> 4, c >> 4) << 64 | four(b >> 4, c >> 6) << 96;
            let mut scales = S::widen_bytes(u128::from_ne_bytes(bytes.to_le_bytes()));
            scales.iter_mut().for_each(|s| *s -= 32.0);
            times(scales, half::<S>(step.add(108)))
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        // SAFETY: bit `g` of the first 32 bytes belongs to weights `32 g ..`.
        unsafe {
            let third = S::repeat::<32, 0, 1>(step.add(from % 32), (from / 32) as u32);
            S::or(two_bits::<S, 32>(step, from), S::up::<2>(S::mask_bytes(third, 1)))
        }
    }
}

/// Every scale times `d`.
#[inline(always)]
fn times(mut scales: [f32; 16], d: f32) -> [f32; 16] {
    scales.iter_mut().for_each(|s| *s *= d);
    scales
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
pub(in super::super) struct Q4K;

impl Format for Q4K {
    const TYPE: BlockType = BlockType::Q4K;
    const STEP: usize = 256;
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;

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
pub(in super::super) struct Q5K;

impl Format for Q5K {
    const TYPE: BlockType = BlockType::Q5K;
    const STEP: usize = 256;
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;

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
            S::or(k_nibbles::<S, 48>(step, from), S::up::<4>(S::mask_bytes(fifth, 1)))
        }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Q6K;

impl Format for Q6K {
    const TYPE: BlockType = BlockType::Q6K;
    const STEP: usize = 256;
    const GROUP: usize = 16;
    const ZERO: u8 = 32;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: sixteen scales from byte 192 on, what they all are multiplied with after them.
        unsafe {
            let scales = S::widen_bytes(step.add(192).cast::<u128>().read_unaligned());
            times(scales, half::<S>(step.add(208)))
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
            S::or(S::mask_bytes(low, 15), S::up::<4>(S::mask_bytes(high, 3)))
        }
    }
}
