//! GGML's blocks of few bits: how many weights a block holds, in how many bytes, and what they are.
//!
//! The layouts are those of GGUF files ("ggml-common.h" and "ggml-quants.c" of llama.cpp). Decoding here is plain, one
//! weight at a time: the fast kernels are tested against it.

use half::f16;

/// A type of blocks. All numbers in them are little-endian; scales are in half precision where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockType {
    /// 32 weights of 4 bits and a scale: 4.5 bits a weight.
    Q4_0,
    /// 32 weights of 4 bits, a scale and a minimum: 5 bits a weight.
    Q4_1,
    /// 32 weights of 5 bits and a scale: 5.5 bits a weight.
    Q5_0,
    /// 32 weights of 5 bits, a scale and a minimum: 6 bits a weight.
    Q5_1,
    /// 32 weights of 8 bits and a scale: 8.5 bits a weight.
    Q8_0,
    /// 256 weights of 2 bits, with a scale and a minimum of 4 bits for every 16: 2.6 bits a weight.
    Q2K,
    /// 256 weights of 3 bits, with a scale of 6 bits for every 16: 3.4 bits a weight.
    Q3K,
    /// 256 weights of 4 bits, with a scale and a minimum of 6 bits for every 32: 4.5 bits a weight.
    Q4K,
    /// 256 weights of 5 bits, with a scale and a minimum of 6 bits for every 32: 5.5 bits a weight.
    Q5K,
    /// 256 weights of 6 bits, with a scale of 8 bits for every 16: 6.6 bits a weight.
    Q6K,
    /// 32 weights that are each one of sixteen listed numbers, and a scale: 4.5 bits a weight.
    Iq4Nl,
    /// 256 weights that are each one of the same numbers, with a scale of 6 bits for every 32: 4.25 bits a weight.
    Iq4Xs,
    /// 32 floats of 4 bits (E2M1 of the OCP MX specification), and a power of two: 4.25 bits a weight.
    Mxfp4,
    /// 64 floats of 4 bits, with a scale that is a float of 8 bits for every 16: 4.5 bits a weight.
    Nvfp4,
    /// 256 weights of -1, 0 and 1, five in a byte, and a scale: 1.7 bits a weight.
    Tq1_0,
    /// 256 weights of 2 bits and a scale, meant for -1, 0 and 1: 2.1 bits a weight.
    Tq2_0,
    /// 128 signs and a scale: 1.1 bits a weight.
    Q1_0,
}

/// What the sixteen codes of IQ4_NL and IQ4_XS stand for.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the sixteen codes of MXFP4 and NVFP4 stand for, twice: floats of a sign, two bits of exponent and one of mantissa.
pub(crate) const FP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl BlockType {
    /// Every type.
    pub const ALL: [Self; 17] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nvfp4,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Q1_0,
    ];

    /// Its name as reports spell it; files spell it in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Tq1_0 => "tq1_0",
            Self::Tq2_0 => "tq2_0",
            Self::Q1_0 => "q1_0",
        }
    }

    /// Weights of a block.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl | Self::Mxfp4 => 32,
            Self::Nvfp4 => 64,
            Self::Q1_0 => 128,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
            Self::Iq4Xs | Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
            Self::Nvfp4 => 36,
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Q1_0 => 18,
        }
    }

    /// Bytes of `cols` weights; `None` when they are no whole number of blocks, or too many to count.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.len()).then(|| (cols / self.len()).checked_mul(self.bytes())).flatten()
    }

    /// The weights of a block.
    ///
    /// # Panics
    /// If `block` or `out` is not as long as a block.
    pub(crate) fn decode(self, block: &[u8], out: &mut [f32]) {
        assert_eq!((block.len(), out.len()), (self.bytes(), self.len()), "a block of {self:?}");
        match self {
            Self::Q4_0 => {
                fill(out, |i| half(block, 0) * (f32::from(nibble(block[2 + i % 16], i / 16)) - 8.0))
            }
            Self::Q4_1 => {
                fill(out, |i| half(block, 0) * f32::from(nibble(block[4 + i % 16], i / 16)) + half(block, 2))
            }
            Self::Q5_0 => fill(out, |i| half(block, 0) * (f32::from(five_bits(&block[2..], i)) - 16.0)),
            Self::Q5_1 => {
                fill(out, |i| half(block, 0) * f32::from(five_bits(&block[4..], i)) + half(block, 2))
            }
            Self::Q8_0 => fill(out, |i| half(block, 0) * f32::from(block[2 + i] as i8)),
            Self::Q2K => fill(out, |i| {
                let (scale, least) = (block[i / 16] & 15, block[i / 16] >> 4);
                let code = two_bits(&block[16..], i);
                half(block, 80) * f32::from(scale) * f32::from(code) - half(block, 82) * f32::from(least)
            }),
            Self::Q3K => fill(out, |i| {
                let high = block[i % 32] >> (i / 32) & 1;
                let code = two_bits(&block[32..], i) | high << 2;
                half(block, 108) * (f32::from(q3_scale(block, i / 16)) - 32.0) * (f32::from(code) - 4.0)
            }),
            Self::Q4K | Self::Q5K => fill(out, |i| {
                let (group, low) = (i / 32, if self == Self::Q4K { 16 } else { 48 });
                let mut code = nibble(block[low + i / 64 * 32 + i % 32], group % 2);
                if self == Self::Q5K {
                    code |= (block[16 + i % 32] >> group & 1) << 4;
                }
                let (scale, least) = k_scale(block, group);
                half(block, 0) * f32::from(scale) * f32::from(code) - half(block, 2) * f32::from(least)
            }),
            Self::Q6K => fill(out, |i| {
                let (part, at) = (i / 128, i % 128);
                let low = nibble(block[part * 64 + at % 64], at / 64);
                let high = block[128 + part * 32 + at % 32] >> (at / 32 * 2) & 3;
                let scale = f32::from(block[192 + i / 16] as i8);
                half(block, 208) * scale * (f32::from(low | high << 4) - 32.0)
            }),
            Self::Iq4Nl => {
                fill(out, |i| half(block, 0) * listed(IQ4_VALUES, nibble(block[2 + i % 16], i / 16)))
            }
            Self::Iq4Xs => fill(out, |i| {
                let group = i / 32;
                let low = nibble(block[4 + group / 2], group % 2);
                let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * group) & 3;
                let scale = f32::from(u16::from(low) | high << 4) - 32.0;
                let code = nibble(block[8 + group * 16 + i % 16], i % 32 / 16);
                half(block, 0) * scale * listed(IQ4_VALUES, code)
            }),
            Self::Mxfp4 => {
                fill(out, |i| half_power(block[0]) * listed(FP4_DOUBLED, nibble(block[1 + i % 16], i / 16)))
            }
            Self::Nvfp4 => fill(out, |i| {
                let (group, at) = (i / 16, i % 16);
                let code = nibble(block[4 + group * 8 + at % 8], at / 8);
                HALF_E4M3[usize::from(block[group])] * listed(FP4_DOUBLED, code)
            }),
            Self::Tq1_0 => fill(out, |i| {
                let (byte, digit) = match i {
                    0..160 => (i % 32, i / 32),
                    160..240 => (32 + i % 16, (i - 160) / 16),
                    _ => (48 + i % 4, (i - 240) / 4),
                };
                half(block, 52) * (f32::from(ternary_digit(block[byte], digit)) - 1.0)
            }),
            Self::Tq2_0 => fill(out, |i| half(block, 64) * (f32::from(two_bits(block, i)) - 1.0)),
            Self::Q1_0 => {
                fill(out, |i| half(block, 0) * (f32::from(block[2 + i / 8] >> (i % 8) & 1) * 2.0 - 1.0))
            }
        }
    }
}

fn fill(out: &mut [f32], weight: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = weight(i));
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower (0) or the upper (1) four bits.
fn nibble(byte: u8, which: usize) -> u8 {
    byte >> (4 * which) & 15
}

/// Code `i` of 32: four bytes of fifth bits, sixteen bytes of the lower four.
fn five_bits(codes: &[u8], i: usize) -> u8 {
    nibble(codes[4 + i % 16], i / 16) | (codes[i / 8] >> (i % 8) & 1) << 4
}

/// Code `i` of 256: 32 bytes hold the codes of 128 weights, 32 weights in the same bits.
fn two_bits(codes: &[u8], i: usize) -> u8 {
    codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Scale `group` of the sixteen of a block of Q3_K: the lower four bits in bytes 96 to 104, the upper two in the next four.
fn q3_scale(block: &[u8], group: usize) -> u8 {
    let (low, high) = (nibble(block[96 + group % 8], group / 8), block[104 + group % 4] >> (group / 4 * 2));
    low | (high & 3) << 4
}

/// Scale and minimum `group` of the eight of a block of Q4_K or Q5_K: 6 bits each, in bytes 4 to 16.
fn k_scale(block: &[u8], group: usize) -> (u8, u8) {
    let packed = &block[4..16];
    match group.checked_sub(4) {
        None => (packed[group] & 63, packed[group + 4] & 63),
        Some(i) => {
            let low = packed[i + 8];
            (low & 15 | packed[i] >> 6 << 4, low >> 4 | packed[i + 4] >> 6 << 4)
        }
    }
}

fn listed(values: [i8; 16], code: u8) -> f32 {
    f32::from(values[usize::from(code)])
}

/// `2^(exponent - 128)`: half of what an exponent byte (E8M0 of the OCP MX specification) stands for.
#[inline(always)]
pub(crate) fn half_power(exponent: u8) -> f32 {
    // The two smallest are no normal numbers.
    let bits = if exponent < 2 { 0x20_0000 << exponent } else { (u32::from(exponent) - 1) << 23 };
    f32::from_bits(bits)
}

/// Half of what a byte stands for as a float of four bits of exponent and three of mantissa, its highest bit unused; the
/// code that is no number stands for zero, as in llama.cpp.
pub(crate) static HALF_E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
        values[byte] = match exponent {
            _ if byte == 0x7f => 0.0,
            0 => mantissa as f32 / 1024.0,
            _ => f32::from_bits((exponent + 119) << 23 | mantissa << 20),
        };
        byte += 1;
    }
    values
};

/// Digit `digit` (0 to 4) of five in base 3, which a byte holds as a fraction of 256.
fn ternary_digit(byte: u8, digit: usize) -> u8 {
    let shifted = byte.wrapping_mul([1, 3, 9, 27, 81][digit]);
    ((u16::from(shifted) * 3) >> 8) as u8
}
