//! Plain Rust: four lanes, no fused multiply-add (without hardware for it that would be a library call a lane).

use super::{Kernel, Simd};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; 4];

#[inline(always)]
fn map(a: Lanes, b: Lanes, f: fn(f32, f32) -> f32) -> Lanes {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    type V = Lanes;
    const LANES: usize = 4;
    const COLS: usize = 2;

    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Lanes {
        p.cast::<Lanes>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Lanes) {
        p.cast::<Lanes>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Lanes {
        let h = p.cast::<[u16; 4]>().read_unaligned();
        let mut v = [0.0; 4];
        for i in 0..4 {
            v[i] = f32::from_bits(u32::from(h[i]) << 16);
        }
        v
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Lanes {
        let h = p.cast::<[f16; 4]>().read_unaligned();
        [h[0].to_f32(), h[1].to_f32(), h[2].to_f32(), h[3].to_f32()]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Lanes) {
        for i in 0..4 {
            *p.add(i) = bf16::from_f32(v[i]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn mul_add(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map(map(a, b, |x, y| x * y), c, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn gt(a: Lanes, b: Lanes) -> u32 {
        (0..4).fold(0, |mask, i| mask | u32::from(a[i] > b[i]) << i)
    }
    #[inline(always)]
    unsafe fn sum(v: Lanes) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn max_lane(v: Lanes) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }
    #[inline(always)]
    unsafe fn round(v: Lanes) -> Lanes {
        // Adding and taking away 1.5 · 2²³ rounds to an integer with no library call; enough for |v| < 2²².
        const MAGIC: f32 = 12_582_912.0;
        [v[0] + MAGIC - MAGIC, v[1] + MAGIC - MAGIC, v[2] + MAGIC - MAGIC, v[3] + MAGIC - MAGIC]
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: Lanes, n: Lanes) -> Lanes {
        map(v, n, |x, n| {
            // In two halves, since 2^128 alone is no f32.
            let half = (n * 0.5) as i32;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            if n < -126.0 { 0.0 } else { x * power(half) * power(n as i32 - half) }
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Lanes, a: Lanes, b: Lanes) -> Lanes {
        let low = |v: Lanes| map(v, v, |x, _| f32::from_bits(x.to_bits() << 16));
        let high = |v: Lanes| map(v, v, |x, _| f32::from_bits(x.to_bits() & 0xffff_0000));
        Self::mul_add(high(a), high(b), Self::mul_add(low(a), low(b), acc))
    }

    #[inline(always)]
    unsafe fn dot_quads(acc: Lanes, a: Lanes, b: Lanes) -> Lanes {
        add_quads(acc, bytes(a).map(i16::from), bytes(b).map(|b| i16::from(b as i8)))
    }
    #[inline(always)]
    unsafe fn dot_signed_quads(acc: Lanes, a: Lanes, b: Lanes) -> Lanes {
        add_quads(acc, bytes(a).map(|a| i16::from(a as i8)), bytes(b).map(|b| i16::from(b as i8)))
    }
    #[inline(always)]
    unsafe fn field<const BITS: usize>(v: Lanes, field: usize) -> Lanes {
        words(v, |w| (w >> (field * BITS)) & (((1 << BITS) - 1) * 0x0101_0101))
    }
    #[inline(always)]
    unsafe fn ints_to_floats(v: Lanes) -> Lanes {
        v.map(|x| x.to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn repeat<const BYTES: usize, const STRIDE: usize, const STEP: u32>(
        p: *const u8,
        shift: u32,
    ) -> Lanes {
        const { assert!(BYTES >= 16 || BYTES == 8) }
        if BYTES >= 16 {
            return words(Self::load(p.cast()), |w| w >> shift);
        }
        let [a, b] = p.cast::<[u32; 2]>().read_unaligned();
        [a >> shift, b >> shift, a >> (shift + STEP), b >> (shift + STEP)].map(f32::from_bits)
    }
    #[inline(always)]
    unsafe fn mask_bytes(v: Lanes, mask: u8) -> Lanes {
        words(v, |w| w & u32::from_ne_bytes([mask; 4]))
    }
    #[inline(always)]
    unsafe fn or(a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| f32::from_bits(a.to_bits() | b.to_bits()))
    }
    #[inline(always)]
    unsafe fn up<const BITS: i32>(v: Lanes) -> Lanes {
        words(v, |w| w << BITS)
    }
    #[inline(always)]
    unsafe fn lookup(codes: Lanes, table: &[u8; 16]) -> Lanes {
        of_bytes(bytes(codes).map(|b| table[usize::from(b & 15)]))
    }
    #[inline(always)]
    unsafe fn sub_bytes(v: Lanes, byte: u8) -> Lanes {
        of_bytes(bytes(v).map(|b| b.wrapping_sub(byte)))
    }
    #[inline(always)]
    unsafe fn bytes_where(bits: u64, byte: u8) -> Lanes {
        of_bytes(std::array::from_fn(|i| byte * (bits >> i & 1) as u8))
    }
    #[inline(always)]
    unsafe fn per_group(floats: &[f32], _group: usize) -> Lanes {
        // Sixteen bytes lie in one group.
        [floats[0]; 4]
    }
}

/// Every lane by its bits.
#[inline(always)]
fn words(v: Lanes, f: impl Fn(u32) -> u32) -> Lanes {
    v.map(|x| f32::from_bits(f(x.to_bits())))
}

#[inline(always)]
fn bytes(v: Lanes) -> [u8; 16] {
    bytemuck::cast(v)
}

#[inline(always)]
fn of_bytes(bytes: [u8; 16]) -> Lanes {
    bytemuck::cast(bytes)
}

/// Adds the sum of every four products to the integer in their lane of `acc`.
#[inline(always)]
fn add_quads(acc: Lanes, a: [i16; 16], b: [i16; 16]) -> Lanes {
    let mut sums = acc.map(|x| x.to_bits() as i32);
    for i in 0..4 {
        for j in 4 * i..4 * i + 4 {
            sums[i] = sums[i].wrapping_add(i32::from(a[j]) * i32::from(b[j]));
        }
    }
    sums.map(|sum| f32::from_bits(sum as u32))
}
