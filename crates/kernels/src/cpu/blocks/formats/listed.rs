//! Blocks whose codes are numbers in a list of sixteen: IQ4_NL and IQ4_XS, and the 4-bit floats MXFP4 and NVFP4.

use super::{Codes, Format, half, nibbles};
use crate::BlockType;
use crate::blocks::{FP4_DOUBLED, HALF_E4M3, IQ4_VALUES, half_power};
use crate::cpu::simd::Simd;

/// [`FP4_DOUBLED`] from zero on: products of small unsigned codes cost least.
const FP4_CODES: [u8; 16] = {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < 16 {
        codes[i] = (FP4_DOUBLED[i] + FP4_ZERO as i8) as u8;
        i += 1;
    }
    codes
};

const FP4_ZERO: u8 = 12;

/// [`IQ4_VALUES`] by their bits.
const IQ4_CODES: [u8; 16] = {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < 16 {
        codes[i] = IQ4_VALUES[i] as u8;
        i += 1;
    }
    codes
};

#[derive(Clone, Copy)]
pub(in super::super) struct Iq4Nl;

impl Format for Iq4Nl {
    const TYPE: BlockType = BlockType::Iq4Nl;
    const STEP: usize = 64;
    const ZERO: u8 = 0;
    const CODES: Codes = Codes::Signed;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        let mut scales = [0.0; 16];
        // SAFETY: a step is two blocks, which begin with their scales.
        (scales[0], scales[1]) = unsafe { (half::<S>(step), half::<S>(step.add(18))) };
        scales
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { S::lookup(nibbles::<S, 18, 2>(step, 4 * S::LANES * i), &IQ4_CODES) }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Iq4Xs;

impl Format for Iq4Xs {
    const TYPE: BlockType = BlockType::Iq4Xs;
    const STEP: usize = 256;
    const ZERO: u8 = 0;
    const CODES: Codes = Codes::Signed;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: a scale for all, two bytes of upper bits, four of lower ones begin the block.
        let (d, high, low) = unsafe {
            let high = u16::from_le_bytes(step.add(2).cast::<[u8; 2]>().read());
            (half::<S>(step), u32::from(high), u32::from_le_bytes(step.add(4).cast::<[u8; 4]>().read()))
        };
        let mut scales = [0.0; 16];
        for i in 0..8 {
            let scale = low >> (4 * i) & 15 | (high >> (2 * i) & 3) << 4;
            scales[i] = d * (scale as i32 - 32) as f32;
        }
        scales
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: every 32 weights are 16 bytes from byte 8 on.
        unsafe { S::lookup(nibbles::<S, 16, 8>(step, 4 * S::LANES * i), &IQ4_CODES) }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Mxfp4;

impl Format for Mxfp4 {
    const TYPE: BlockType = BlockType::Mxfp4;
    const STEP: usize = 64;
    const ZERO: u8 = FP4_ZERO;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        let mut scales = [0.0; 16];
        // SAFETY: a step is two blocks, which begin with their exponents.
        (scales[0], scales[1]) = unsafe { (half_power(*step), half_power(*step.add(17))) };
        scales
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { S::lookup(nibbles::<S, 17, 1>(step, 4 * S::LANES * i), &FP4_CODES) }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Nvfp4;

impl Format for Nvfp4 {
    const TYPE: BlockType = BlockType::Nvfp4;
    const STEP: usize = 64;
    const GROUP: usize = 16;
    const ZERO: u8 = FP4_ZERO;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        let mut scales = [0.0; 16];
        for g in 0..4 {
            // SAFETY: a byte a group begins the block.
            scales[g] = HALF_E4M3[usize::from(unsafe { *step.add(g) })];
        }
        scales
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: every 16 weights are 8 bytes from byte 4 on, the second eight in the upper bits.
        unsafe {
            let p = step.add(4 + 2 * S::LANES * i);
            S::lookup(S::mask_bytes(S::repeat::<8, 8, 4>(p, 0), 15), &FP4_CODES)
        }
    }
}
