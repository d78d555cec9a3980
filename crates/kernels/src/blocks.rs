//! GGML's blocks of few bits: how many weights a block holds, in how many bytes, and what they are.
//!
//! The layouts are those of GGUF files ("ggml-common.h" and "ggml-quants.c" of llama.cpp). Decoding here is plain, one
//! weight at a time: the fast kernels are tested against it.

use half::f16;

/// A type of blocks. All numbers in them are little-endian; scales are in half precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// 32 weights of 4 bits and a scale: 4.5 bits a weight.
    Q4_0,
    /// 32 weights of 5 bits and a scale: 5.5 bits a weight.
    Q5_0,
    /// 32 weights of 8 bits and a scale: 8.5 bits a weight.
    Q8_0,
    /// 256 weights of 4 bits, with a scale and a minimum of 6 bits for every 32: 4.5 bits a weight.
    Q4K,
    /// 256 weights of 5 bits, with a scale and a minimum of 6 bits for every 32: 5.5 bits a weight.
    Q5K,
    /// 256 weights of 6 bits, with a scale of 8 bits for every 16: 6.6 bits a weight.
    Q6K,
}

impl BlockType {
    /// Every type.
    pub const ALL: [Self; 6] = [Self::Q4_0, Self::Q5_0, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Its name as files and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q5_0 => "q5_0",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Weights of a block.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
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
                let d = half(block, 0);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = d * (f32::from(nibble(block[2 + i % 16], i / 16)) - 8.0);
                }
            }
            Self::Q5_0 => {
                let (d, high) =
                    (half(block, 0), u32::from_le_bytes([block[2], block[3], block[4], block[5]]));
                for (i, out) in out.iter_mut().enumerate() {
                    let code = nibble(block[6 + i % 16], i / 16) | ((high >> i & 1) as u8) << 4;
                    *out = d * (f32::from(code) - 16.0);
                }
            }
            Self::Q8_0 => {
                let d = half(block, 0);
                out.iter_mut().zip(&block[2..]).for_each(|(out, &b)| *out = d * f32::from(b as i8));
            }
            Self::Q4K | Self::Q5K => {
                let (d, least) = (half(block, 0), half(block, 2));
                let (scales, mins) = k_scales(block);
                let low = if self == Self::Q4K { 16 } else { 48 };
                for (i, out) in out.iter_mut().enumerate() {
                    let group = i / 32;
                    let mut code = nibble(block[low + i / 64 * 32 + i % 32], group % 2);
                    if self == Self::Q5K {
                        code |= (block[16 + i % 32] >> group & 1) << 4;
                    }
                    *out = d * f32::from(scales[group]) * f32::from(code) - least * f32::from(mins[group]);
                }
            }
            Self::Q6K => {
                let d = half(block, 208);
                for (i, out) in out.iter_mut().enumerate() {
                    let (part, at) = (i / 128, i % 128);
                    let low = nibble(block[part * 64 + at % 64], at / 64);
                    let high = block[128 + part * 32 + at % 32] >> (at / 32 * 2) & 3;
                    let scale = f32::from(block[192 + i / 16] as i8);
                    *out = d * scale * (f32::from(low | high << 4) - 32.0);
                }
            }
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower (0) or the upper (1) four bits.
fn nibble(byte: u8, which: usize) -> u8 {
    byte >> (4 * which) & 15
}

/// The eight scales and minima of a block of Q4_K or Q5_K: 6 bits each, in bytes 4 to 16.
fn k_scales(block: &[u8]) -> ([u8; 8], [u8; 8]) {
    let packed = &block[4..16];
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[i + 4] & 63;
        scales[i + 4] = packed[i + 8] & 15 | packed[i] >> 6 << 4;
        mins[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    }
    (scales, mins)
}
