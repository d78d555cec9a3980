//! Blocks of less than three bits a weight with one scale: TQ1_0 and TQ2_0, whose weights are -1, 0 and 1, and the signs
//! of Q1_0.

use super::{Format, everywhere, half, two_bits};
use crate::BlockType;
use crate::cpu::simd::Simd;

#[derive(Clone, Copy)]
pub(in super::super) struct Tq1_0;

impl Format for Tq1_0 {
    const TYPE: BlockType = BlockType::Tq1_0;
    const STEP: usize = 256;
    const ZERO: u8 = 1;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        everywhere(unsafe { half::<S>(step.add(52)) })
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let mut codes = [0u8; 64];
        for (part, codes) in codes[..4 * S::LANES].chunks_exact_mut(16).enumerate() {
            // Sixteen weights are the same digit of sixteen bytes, but for the last: four digits of four bytes.
            let at = 4 * S::LANES * i + 16 * part;
            let (first, digit) = if at < 160 { (at % 32, at / 32) } else { (32, (at - 160) / 16) };
            // SAFETY: the digits are the first 52 bytes of the block.
            let bytes = unsafe {
                if at < 240 {
                    step.add(first).cast::<[u8; 16]>().read().map(|b| b.wrapping_mul(POWERS[digit]))
                } else {
                    let bytes = step.add(48).cast::<[u8; 4]>().read();
                    std::array::from_fn(|j| bytes[j % 4].wrapping_mul(POWERS[j / 4]))
                }
            };
            for (code, byte) in codes.iter_mut().zip(bytes) {
                // Three times the byte, in units of 256.
                *code = u8::from(byte > 85) + u8::from(byte > 170);
            }
        }
        // SAFETY: a vector is at most 64 bytes.
        unsafe { S::load(codes.as_ptr().cast()) }
    }
}

/// What moves a digit in base 3 to the front.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

#[derive(Clone, Copy)]
pub(in super::super) struct Tq2_0;

impl Format for Tq2_0 {
    const TYPE: BlockType = BlockType::Tq2_0;
    const STEP: usize = 256;
    const ZERO: u8 = 1;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        everywhere(unsafe { half::<S>(step.add(64)) })
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        // SAFETY: the contract.
        unsafe { two_bits::<S, 0>(step, 4 * S::LANES * i) }
    }
}

#[derive(Clone, Copy)]
pub(in super::super) struct Q1_0;

impl Format for Q1_0 {
    const TYPE: BlockType = BlockType::Q1_0;
    const STEP: usize = 128;
    const ZERO: u8 = 1;

    #[inline(always)]
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        everywhere(unsafe { half::<S>(step) })
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V {
        let from = 4 * S::LANES * i;
        // SAFETY: sixteen bytes of signs follow the scale.
        unsafe {
            let signs = u64::from_le_bytes(step.add(2 + from / 64 * 8).cast::<[u8; 8]>().read());
            S::bytes_where(signs >> (from % 64), 2)
        }
    }
}
