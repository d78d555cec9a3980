//! Blocks of 32 weights with a scale, and a minimum in some: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

use super::{Codes, Format, half, nibbles};
use crate::BlockType;
use crate::cpu::simd::Simd;

/// Defines a format read in steps of two blocks: name, bytes of a block, and the rest of its [`Format`].
macro_rules! classic {
    ($name:ident, $bytes:literal, { $($rest:tt)* }, $step:ident, $from:ident, $S:ident => $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(in super::super) struct $name;

        impl Format for $name {
            const TYPE: BlockType = BlockType::$name;
            const STEP: usize = 64;
            $($rest)*

            #[inline(always)]
            unsafe fn scales<S: Simd>(step: *const u8) -> [f32; 16] {
                // SAFETY: a step is two blocks, which begin with their scales.
                unsafe { pair(half::<S>(step), half::<S>(step.add($bytes))) }
            }

            #[inline(always)]
            unsafe fn codes<$S: Simd>($step: *const u8, i: usize) -> $S::V {
                let $from = 4 * $S::LANES * i;
                // SAFETY: the contract; the codes lie within two blocks.
                unsafe { $codes }
            }
        }
    };
}

classic!(Q4_0, 18, { const ZERO: u8 = 8; }, step, from, S => nibbles::<S, 18, 2>(step, from));

classic!(Q4_1, 20, {
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn offsets<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { minima::<S, 20>(step) }
    }
}, step, from, S => nibbles::<S, 20, 4>(step, from));

classic!(Q5_0, 22, { const ZERO: u8 = 16; }, step, from, S => {
    S::or(nibbles::<S, 22, 6>(step, from), fifth_bits::<S, 22, 2>(step, from))
});

classic!(Q5_1, 24, {
    const ZERO: u8 = 0;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn offsets<S: Simd>(step: *const u8) -> [f32; 16] {
        // SAFETY: the contract.
        unsafe { minima::<S, 24>(step) }
    }
}, step, from, S => {
    S::or(nibbles::<S, 24, 8>(step, from), fifth_bits::<S, 24, 4>(step, from))
});

classic!(Q8_0, 34, {
    const ZERO: u8 = 128;
    const CODES: Codes = Codes::Wide;
}, step, from, S => {
    S::sub_bytes(S::load_halves::<34>(step.add(from / 32 * 34 + 2 + from % 32)), 128)
});

#[inline(always)]
fn pair(first: f32, second: f32) -> [f32; 16] {
    let mut both = [0.0; 16];
    (both[0], both[1]) = (first, second);
    both
}

/// The offsets of two blocks of `BLOCK` bytes whose minima follow their scales: a minimum is added, an offset taken off.
#[inline(always)]
unsafe fn minima<S: Simd, const BLOCK: usize>(step: *const u8) -> [f32; 16] {
    // SAFETY: a step is two blocks.
    unsafe { pair(-half::<S>(step.add(2)), -half::<S>(step.add(2 + BLOCK))) }
}

/// The fifth bits of 64 weights in two blocks of `BLOCK` bytes, four bytes from `AT` on in each.
#[inline(always)]
unsafe fn fifth_bits<S: Simd, const BLOCK: usize, const AT: usize>(step: *const u8, from: usize) -> S::V {
    // SAFETY: a step is two blocks.
    unsafe {
        let fifth = |block: usize| u32::from_le_bytes(step.add(block * BLOCK + AT).cast::<[u8; 4]>().read());
        S::bytes_where((u64::from(fifth(0)) | u64::from(fifth(1)) << 32) >> from, 16)
    }
}
