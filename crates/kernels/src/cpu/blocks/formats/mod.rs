//! How the codes and scales of each type of block become vectors.
//!
//! Everything is read through unchecked loads of whole vectors: checks of single bytes would keep the loops from becoming
//! vector code. The layouts, one weight at a time, are in [`crate::BlockType`].

mod classic;
mod k_quants;
mod listed;
mod ternary;

use super::super::simd::Simd;
use crate::BlockType;
pub(super) use {classic::*, k_quants::*, listed::*, ternary::*};

/// A type of blocks, read in steps of one or several blocks.
///
/// A weight is `scale · (code - ZERO) - offset`, with a scale and an offset for every [`Format::GROUP`] weights. Pointers
/// given to the functions point to [`Format::step_bytes`] readable bytes.
pub(super) trait Format: Copy + Send + Sync + 'static {
    const TYPE: BlockType;
    /// Weights of a step: at least 64, a multiple of the weights of a block.
    const STEP: usize;
    /// Weights that share a scale: 32 or 16.
    const GROUP: usize = 32;
    const ZERO: u8;
    /// Whether offsets are not all zero.
    const OFFSETS: bool = false;
    const CODES: Codes = Codes::Small;

    /// Scales of the groups of a step.
    unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16];

    /// Offsets of the groups of a step, zeros after them.
    #[inline(always)]
    unsafe fn offsets<S: Simd>(_step: *const u8) -> [f32; 16] {
        [0.0; 16]
    }

    /// The codes of weights `4 · LANES · i ..` of a step, a byte each.
    unsafe fn codes<S: Simd>(step: *const u8, i: usize) -> S::V;

    fn step_bytes() -> usize {
        Self::STEP / Self::TYPE.len() * Self::TYPE.bytes()
    }
}

/// What the bytes of codes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// Unsigned, at most 127.
    Small,
    /// Unsigned.
    Wide,
    /// Signed; `ZERO` is 0.
    Signed,
}

/// Calls `$body` with the type `$F` that reads blocks of type `$kind`.
macro_rules! with_format {
    ($kind:expr, $F:ident => $body:expr) => {
        with_format!($kind, $F => $body; Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs, Mxfp4,
            Nvfp4, Tq1_0, Tq2_0, Q1_0)
    };
    ($kind:expr, $F:ident => $body:expr; $($format:ident),*) => {
        match $kind {
            $(BlockType::$format => {
                type $F = formats::$format;
                $body
            })*
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

/// The same number for every group.
#[inline(always)]
fn everywhere(scale: f32) -> [f32; 16] {
    [scale; 16]
}

/// Four bits of each of 64 weights, the upper halves of blocks of 32 in the upper bits. Blocks are `BLOCK` bytes, their
/// codes begin at byte `AT`.
#[inline(always)]
unsafe fn nibbles<S: Simd, const BLOCK: usize, const AT: usize>(step: *const u8, from: usize) -> S::V {
    // SAFETY: the codes of a block are 16 bytes from `AT` on.
    unsafe {
        let p = step.add(from / 32 * BLOCK + AT + from % 16);
        S::mask_bytes(S::repeat::<16, BLOCK, 4>(p, (from % 32 / 16 * 4) as u32), 15)
    }
}

/// Two bits of each of 256 weights, which begin at byte `AT`: 32 bytes hold the codes of 128.
#[inline(always)]
unsafe fn two_bits<S: Simd, const AT: usize>(step: *const u8, from: usize) -> S::V {
    let (part, at) = (from / 128, from % 128);
    // SAFETY: the codes are 64 bytes from `AT` on.
    unsafe {
        let p = step.add(AT + part * 32 + at % 32);
        S::mask_bytes(S::repeat::<32, 0, 2>(p, (at / 32 * 2) as u32), 3)
    }
}
